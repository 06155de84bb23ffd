"""A small internet for tests, in namespaces of this machine: real servers, clients and firewalls can be used.

    attacker, eth0                             router                          lan, eth0
    203.0.113.66                          wan  203.0.113.1
    2001:db8:1::66                <------->    2001:db8:1::1
    198.51.100.7 .8                       lan  192.168.1.1          <------>   192.168.1.2
    2001:db8:bad::7 2001:db8:bad:8::8          2001:db8:2::1                   2001:db8:2::2

The router's default route leads to 203.0.113.254 and 2001:db8:1::fe, which the attacker's side holds too;
behind them is everybody else, such as 198.51.100.7. Namespaces have no names: each lives as long as a
process in it, and its first process ends when this one does, whatever happened to the test. The router
has its own /dev, /run and accounts, so a syslog daemon can own /dev/log and the machine's stay untouched.
"""
import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import time

from harness import Running

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000

# the router's users; behind each the crypt(3) of its password, which Python 3.13 cannot make any more
PASSWORDS = {'root': 'root is at home', 'alice': 'correct horse'}
SHADOW = """\
root:$6$banwatch$lZeY4Po.n/gW8JItW9ohe10XYfKcLcBIq9R5QypyTquBCx14bNiraOPsiGAhNt7I0VoNYTDbRyzUHnatMcmuU1:19000:0:99999:7:::
alice:$6$banwatch$E/OUykjctemyMdjAvKA4XIQDMPyJ43MBkGYvdyr5MDrUdj.xzExy.F1fEnZ/SUFoDY37hL0Su95jEgZme4.a20:19000:0:99999:7:::
"""
PASSWD = 'root:x:0:0::/:/bin/sh\nalice:x:2000:100::/:/bin/sh\n'

LINKS = """
ip link add wan type veth peer name eth0 netns {attacker}
ip link add lan type veth peer name eth0 netns {lan}
"""

ROUTER = """
for device in lo wan lan; do ip link set $device up; done
ip address add 203.0.113.1/24 dev wan; ip address add 2001:db8:1::1/64 dev wan
ip address add 192.168.1.1/24 dev lan; ip address add 2001:db8:2::1/64 dev lan
ip route add default via 203.0.113.254; ip route add default via 2001:db8:1::fe
echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
"""

ATTACKER = """
ip link set lo up; ip link set eth0 up
ip address add 203.0.113.66/24 dev eth0; ip address add 203.0.113.254/24 dev eth0
ip address add 2001:db8:1::fe/64 dev eth0; ip address add 2001:db8:1::66/64 dev eth0
ip address add 198.51.100.7/32 dev eth0; ip address add 198.51.100.8/32 dev eth0
ip address add 2001:db8:bad::7/128 dev eth0; ip address add 2001:db8:bad:8::8/128 dev eth0
ip route add 192.168.1.0/24 via 203.0.113.1; ip route add 2001:db8:2::/64 via 2001:db8:1::1
"""

LAN = """
ip link set lo up; ip link set eth0 up
ip address add 192.168.1.2/24 dev eth0; ip address add 2001:db8:2::2/64 dev eth0
ip route add default via 192.168.1.1; ip route add default via 2001:db8:2::1
"""

# A /dev with what servers need and room for `log`; mounts made here are seen here only.
FILES = """
mount -t tmpfs -o mode=755 banwatch-test /run
mkdir /run/sshd /run/dev /run/dev/pts /run/dev/shm
for name in null zero full random urandom tty; do
    : >/run/dev/$name; mount --bind /dev/$name /run/dev/$name
done
mount --bind /dev/pts /run/dev/pts; ln -s pts/ptmx /run/dev/ptmx; ln -s /proc/self/fd /run/dev/fd
mount --rbind /run/dev /dev
mount --bind {passwd} /etc/passwd; mount --bind {shadow} /etc/shadow
"""


class Namespace:
    """One host: a network, and a view of the file system, of its own."""

    def __init__(self):
        self.processes = []
        # cat lives until its input ends: at the latest when this process is gone
        self.holder = subprocess.Popen(['unshare', '--net', '--mount', '--propagation', 'private', 'cat'],
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self.holder.stdin.write(b'\n')
        self.holder.stdin.flush()
        if not self.holder.stdout.readline():        # cat's echo says that unshare is done
            raise OSError('this machine lets nobody make namespaces (unshare has said why)')
        # an IPv6 address can be used at once, not after a second of asking whether it is another's
        self.script('echo 0 | tee /proc/sys/net/ipv6/conf/all/accept_dad /proc/sys/net/ipv6/conf/default/accept_dad')

    def command(self, argv):
        """The argv that runs `argv` in here; nsenter then *is* the program, with its pid."""
        return ['nsenter', '--target', str(self.holder.pid), '--net', '--mount', '--root'] + [str(word) for word in argv]

    def run(self, argv, **more):
        """Runs a program to its end, 60 s at most; the CompletedProcess with its output as text."""
        how = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=60)
        how.update(more)
        if 'input' not in how:
            how.setdefault('stdin', subprocess.DEVNULL)
        return subprocess.run(self.command(argv), **how)

    def output(self, argv):
        """What a program prints; it must succeed."""
        done = self.run(argv)
        assert done.returncode == 0, done
        return done.stdout

    def script(self, text):
        """Runs shell commands, each of which must succeed."""
        return self.output(['sh', '-ec', text])

    def popen(self, argv, **more):
        """Starts a program, which ends with the namespace, or with this process, at the latest."""
        how = dict(stdin=subprocess.DEVNULL, start_new_session=True)
        how.update(more)
        argv = self.command(['setpriv', '--pdeathsig', 'KILL'] + list(argv))
        self.processes.append(subprocess.Popen(argv, **how))
        return self.processes[-1]

    @contextlib.contextmanager
    def entered(self):
        """Sockets made by this process inside `with` are of this namespace, and stay so."""
        with open('/proc/self/ns/net') as home, open('/proc/%d/ns/net' % self.holder.pid) as here:
            enter(here)
            try:
                yield
            finally:
                enter(home)

    def connect(self, address, port, source=None, seconds=1.0):
        """A TCP connection from here; OSError if there is none within that time."""
        with self.entered():
            return socket.create_connection((address, port), seconds, (source, 0) if source else None)

    def reaches(self, address, port=9, source=None):
        """Does a TCP connection from here get through within a second? On the router something listens at port 9."""
        return self.reached([(address, port, source)]) == [True]

    def reached(self, knocks, seconds=1.0):
        """For each (address, port, source): does a TCP connection from here get through? All at the same time."""
        with contextlib.ExitStack() as opened:
            with self.entered():
                socks = [opened.enter_context(socket.socket(socket.AF_INET6 if ':' in knock[0] else socket.AF_INET)) for knock in knocks]
            for sock, (address, port, source) in zip(socks, knocks):
                sock.setblocking(False)
                if source:
                    sock.bind((source, 0))
                sock.connect_ex((address, port))
            waiting, deadline = list(socks), time.monotonic() + seconds
            while waiting and time.monotonic() < deadline:
                _, ended, _ = select.select([], waiting, [], max(0, deadline - time.monotonic()))
                waiting = [sock for sock in waiting if sock not in ended]
            return [sock not in waiting and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) for sock in socks]

    def listen(self, address, port):
        """A listening TCP socket in here."""
        with self.entered():
            listening = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET)
        listening.bind((address, port))
        listening.listen(100)
        return listening

    def inhabitants(self):
        """The pids of the processes in here: nothing can be in this network that did not come from here."""
        ours = os.readlink('/proc/%d/ns/net' % self.holder.pid)
        found = []
        for pid in filter(str.isdigit, os.listdir('/proc')):
            with contextlib.suppress(OSError):       # it has just ended
                if os.readlink('/proc/%s/ns/net' % pid) == ours:
                    found.append(int(pid))
        return found

    def close(self):
        """Ends every process in here, also what daemons left behind; with the last one the namespace goes."""
        for _ in range(100):                         # a process may fork while it is looked for
            others = set(self.inhabitants()) - {self.holder.pid} if self.holder.poll() is None else ()
            if not others:
                break
            for pid in others:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in self.processes:
                process.poll()
        for process in self.processes:
            process.wait(5)
        self.holder.communicate(timeout=5)


def enter(net):
    if LIBC.setns(net.fileno(), CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), 'setns: ' + os.strerror(ctypes.get_errno()))


class Network:
    """The three hosts, connected. `directory` takes the files that its servers need."""

    def __init__(self, directory):
        self.directory = str(directory)
        self.log = os.path.join(self.directory, 'messages')
        self.hosts, self.scope = [], None
        try:
            self.router, self.attacker, self.lan = self.host(), self.host(), self.host()
            self.router.script(FILES.format(passwd=self.write('passwd', PASSWD + service_accounts(), 0o644),
                                            shadow=self.write('shadow', SHADOW)))
            self.router.script(LINKS.format(attacker=self.attacker.holder.pid, lan=self.lan.holder.pid))
            self.attacker.script(ATTACKER)
            self.lan.script(LAN)
            self.router.script(ROUTER)
            self.scope = self.router.listen('::', 9)    # to knock at: a connection to a server would count as a failure
        except BaseException:
            self.close()
            raise

    def host(self):
        self.hosts.append(Namespace())
        return self.hosts[-1]

    def path(self, name):
        return os.path.join(self.directory, name)

    def write(self, name, text, mode=0o600):
        """Writes a file of the router's; its path."""
        with open(self.path(name), 'w') as f:
            f.write(text)
        os.chmod(self.path(name), mode)
        return self.path(name)

    def close(self):
        for host in self.hosts:
            host.close()
        self.hosts = []
        if self.scope:
            self.scope.close()


def service_accounts():
    """The machine's passwd lines of services (sshd wants one of its own), without people and root."""
    with open('/etc/passwd') as f:
        return ''.join(line for line in f if 0 < int(line.split(':')[2]) < 1000)


class Daemon(Running):
    """`banwatch.py run` on the router, following its log."""

    def __init__(self, network, text='', source=None, firewall='iptables', **options):
        self.network = network
        super().__init__(network.directory, text, source or network.log, firewall, **options)

    def popen(self, argv, **more):
        return self.network.router.popen(argv, **more)

    def run(self, argv, **more):
        return self.network.router.run(argv, **more)
