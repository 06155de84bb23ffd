"""A small internet for tests: a router, an attacker on its WAN side and a host on its LAN, all in
namespaces of this machine, so that real servers, real clients and the real firewall can be used.

    attacker, eth0                              router                             lan, eth0
    203.0.113.66 .67 .254                  wan  203.0.113.1
    2001:db8:1::66 ::67 ::fe     <------>       2001:db8:1::1
    198.51.100.7 .8                        lan  192.168.1.1          <------>   192.168.1.2
    2001:db8:bad::7 2001:db8:bad:8::8           2001:db8:2::1                   2001:db8:2::2

The router's default route leads to 203.0.113.254 and 2001:db8:1::fe; from behind them come 198.51.100.7
and the like. The namespaces have no names: each lives as long as a process in it, and its first process
ends when the test's end of a pipe closes, whatever happened to the test. The router also has a /dev, a
/run and accounts of its own, so a syslog daemon can own /dev/log and nothing here touches the machine's.
"""
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000

# the router's own users: name -> password (those of the machine are not there)
USERS = {'root': 'root is at home', 'alice': 'correct horse'}

LINKS = """
ip link add wan type veth peer name eth0 netns {attacker}
ip link add lan type veth peer name eth0 netns {lan}
"""

ROUTER = """
ip link set lo up; ip link set wan up; ip link set lan up
ip address add 203.0.113.1/24 dev wan; ip address add 2001:db8:1::1/64 dev wan nodad
ip address add 192.168.1.1/24 dev lan; ip address add 2001:db8:2::1/64 dev lan nodad
ip route add default via 203.0.113.254; ip route add default via 2001:db8:1::fe
echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
"""

ATTACKER = """
ip link set lo up; ip link set eth0 up
for n in 66 67 254; do ip address add 203.0.113.$n/24 dev eth0; done
for n in 66 67 fe; do ip address add 2001:db8:1::$n/64 dev eth0 nodad; done
for ip in 198.51.100.7/32 198.51.100.8/32; do ip address add $ip dev eth0; done
for ip in 2001:db8:bad::7/128 2001:db8:bad:8::8/128; do ip address add $ip dev eth0 nodad; done
ip route add 192.168.1.0/24 via 203.0.113.1; ip route add 2001:db8:2::/64 via 2001:db8:1::1
"""

LAN = """
ip link set lo up; ip link set eth0 up
ip address add 192.168.1.2/24 dev eth0; ip address add 2001:db8:2::2/64 dev eth0 nodad
ip route add default via 192.168.1.1; ip route add default via 2001:db8:2::1
"""

# A /dev with what servers need, where `log` can be made; the machine's own stays as it is.
PRIVATE_FILES = """
mount -t tmpfs -o mode=755 banwatch-test /run
mkdir /run/dev /run/sshd
for name in null zero full random urandom tty; do touch /run/dev/$name; mount --bind /dev/$name /run/dev/$name; done
mkdir /run/dev/pts /run/dev/shm; mount --bind /dev/pts /run/dev/pts; ln -s pts/ptmx /run/dev/ptmx
ln -s /proc/self/fd /run/dev/fd
mount --rbind /run/dev /dev
mount --bind {passwd} /etc/passwd
mount --bind {shadow} /etc/shadow
"""


def poll(question, seconds=10, pause=0.02):
    """The first true answer of `question()`, or its last one when the time is up."""
    deadline = time.monotonic() + seconds
    while True:
        answer = question()
        if answer or time.monotonic() > deadline:
            return answer
        time.sleep(pause)


class Namespace:
    """One host of the test's internet: a network, and a view of the file system, of its own."""

    def __init__(self):
        self.processes = []
        # cat ends at the end of its input: when this test process is gone, so is the namespace
        self.holder = subprocess.Popen(['unshare', '--net', '--mount', '--propagation', 'private', 'cat'],
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self.holder.stdin.write(b'\n')
        self.holder.stdin.flush()
        if not self.holder.stdout.readline():        # cat's echo: unshare is done
            raise OSError('no namespace could be made (see what unshare said above)')

    def command(self, argv):
        return ['nsenter', '--target', str(self.holder.pid), '--net', '--mount'] + [str(word) for word in argv]

    def run(self, argv, **more):
        """Runs a program in here to its end; the CompletedProcess, output as text."""
        more = dict(dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         universal_newlines=True, timeout=60), **more)
        if 'input' in more:
            del more['stdin']
        return subprocess.run(self.command(argv), **more)

    def output(self, argv):
        """What a program prints, which must succeed."""
        done = self.run(argv)
        assert done.returncode == 0, done
        return done.stdout

    def script(self, text):
        """Runs shell commands, each of which must succeed."""
        return self.output(['sh', '-ec', text])

    def popen(self, argv, **more):
        """Starts a program that ends with the namespace at the latest; its pid is the program's own."""
        more = dict(dict(stdin=subprocess.DEVNULL, start_new_session=True), **more)
        process = subprocess.Popen(self.command(argv), **more)
        self.processes.append(process)
        return process

    @contextlib.contextmanager
    def entered(self):
        """Sockets that this test makes inside `with` belong to this namespace, for ever."""
        with open('/proc/self/ns/net') as home, open('/proc/%d/ns/net' % self.holder.pid) as here:
            enter(here)
            try:
                yield
            finally:
                enter(home)

    def connect(self, address, port, source=None, timeout=1):
        """A TCP connection from here, OSError (a timeout too) if there is none."""
        with self.entered():
            return socket.create_connection((address, port), timeout, (source, 0) if source else None)

    def reaches(self, address, port=22, source=None):
        """Does a TCP connection get through within a second?"""
        try:
            self.connect(address, port, source).close()
        except OSError:
            return False
        return True

    def listen(self, address, port):
        """A listening TCP socket in here."""
        family = socket.AF_INET6 if ':' in address else socket.AF_INET
        with self.entered():
            listening = socket.socket(family)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((address, port))
            listening.listen(5)
            return listening

    def inhabitants(self):
        """The pids of all processes in this namespace: only what came from here can be in it."""
        ours = os.readlink('/proc/%d/ns/net' % self.holder.pid)
        found = []
        for pid in filter(str.isdigit, os.listdir('/proc')):
            with contextlib.suppress(OSError):
                if os.readlink('/proc/%s/ns/net' % pid) == ours:
                    found.append(int(pid))
        return found

    def close(self):
        """Ends every process in here, those too that daemons left behind; with them the namespace goes."""
        with contextlib.suppress(OSError):
            while self.inhabitants() not in ([], [self.holder.pid]):
                for pid in set(self.inhabitants()) - {self.holder.pid}:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                for process in self.processes:
                    process.wait(5)
        self.holder.stdin.close()
        self.holder.stdout.close()
        self.holder.wait(5)


def enter(net):
    if LIBC.setns(net.fileno(), CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), 'setns')


class Network:
    """The router, the attacker and the LAN's host, connected. `directory` takes the router's own files."""

    def __init__(self, directory):
        self.directory = str(directory)
        self.hosts = []
        try:
            self.router, self.attacker, self.lan = [self.host() for _ in range(3)]
            self.router.script(PRIVATE_FILES.format(**self.accounts()))
            self.router.script(LINKS.format(attacker=self.attacker.holder.pid, lan=self.lan.holder.pid))
            self.attacker.script(ATTACKER)
            self.lan.script(LAN)
            self.router.script(ROUTER)
        except BaseException:
            self.close()
            raise

    def host(self):
        self.hosts.append(Namespace())
        return self.hosts[-1]

    def accounts(self):
        """Writes a passwd and a shadow with the machine's service accounts and USERS; their paths."""
        with open('/etc/passwd') as f:
            passwd = [line for line in f if line.split(':')[0] not in USERS and 0 < int(line.split(':')[2]) < 1000]
        shadow = [line.split(':')[0] + ':*:19000:0:99999:7:::\n' for line in passwd]
        for number, (name, password) in enumerate(USERS.items()):
            uid = 2000 * number                      # the first one is root
            passwd.append('%s:x:%d:%d::/:/bin/sh\n' % (name, uid, uid))
            shadow.append('%s:%s:19000:0:99999:7:::\n' % (name, hashed(password)))
        return {'passwd': self.write('passwd', ''.join(passwd)), 'shadow': self.write('shadow', ''.join(shadow))}

    def write(self, name, text):
        """Writes a file of the router's; its path."""
        path = os.path.join(self.directory, name)
        with open(path, 'w') as f:
            f.write(text)
        return path

    def close(self):
        for host in self.hosts:
            host.close()
        self.hosts = []


def hashed(password):
    return subprocess.run(['openssl', 'passwd', '-6', '-salt', 'banwatch', password],
                          stdout=subprocess.PIPE, universal_newlines=True, check=True).stdout.strip()
