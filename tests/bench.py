#!/usr/bin/env python3
"""Measures banwatch beside its peers, in one run on this machine, and prints one table.

    python3 tests/bench.py [--log FILE] [--plain FILE] [--lines N] [--idle SECONDS] [--bans N] [--times N]
        [--json] [ROW...]
    python3 tests/bench.py --hostile [--seconds N] [--json] [FILTER...]

--log and --plain name an OpenSSH log under attack and a plain system log ("Dec 10 06:55:46 host
prog[1]: ..."); both are repeated to N lines with time going on. Without them the bench writes logs
of a like mix itself. Rows: see ROWS below, or --help. Nothing is a pass or a fail here: numbers
depend on the machine, so the ones to trust are ratios within one run.

--hostile looks for the line that costs a built-in filter the most, as an attacker would, for N
seconds in all; it ends with 1 if it found one that takes longer than HOSTILE_REACH.

As root the whole run moves into a network namespace of its own, so no packet and no firewall rule
of it reaches the machine. The peers are Debian's `fail2ban` and `sshguard`; what is missing costs
its numbers only, and the table says so. All files are in one temporary folder, removed at the end.
"""
import argparse
import collections
import contextlib
import fcntl
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time

BANWATCH = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'banwatch.py')
SSHGUARD = '/usr/libexec/sshguard/'
OWN_NET = 'BANWATCH_BENCH_NET'       # set in the environment once we are in our own network namespace
# UTC: a log without years and zones must not meet a change of the clocks
ENVIRON = dict(os.environ, TZ='UTC', LC_ALL='C', PYTHONDONTWRITEBYTECODE='1')
WIDTH = 110                          # columns of the output


class Missing(Exception):
    """Why a number cannot be had here."""


# ---- Results -------------------------------------------------------------------------------
# One line of the table: our number beside one peer's. `unit` is a key of UNITS; None is a dash.
# `paired` is the median of the ratios of runs in turn, where there were some.

Result = collections.namedtuple('Result', 'what unit ours peer theirs goal quoted paired')
# What the project means to get to. `by` is 'x' (times the peer) or 'value' (the number itself).
Goal = collections.namedtuple('Goal', 'reach aim by')

# unit -> how a number of it looks, True if more is better
UNITS = {
    'lines/s': (lambda n: '%.0f k/s' % (n / 1000), True),
    's': (lambda n: '%.3f s' % n, False),
    'ms': (lambda n: '%.1f ms' % n, False),
    'MB': (lambda n: '%.1f MB' % n, False),
    'us': (lambda n: '%.1f us' % n, False),
    'M': (lambda n: '%.1f M' % n, False),                # million instructions
    'k': (lambda n: '%.1f k' % n, False),                # thousand
    'kB': (lambda n: '%.0f kB' % n, False),
    '/min': (lambda n: '%.0f/min' % n, False),
    '/s': (lambda n: '%.1f k/s' % (n / 1000), True),
    'MB/s': (lambda n: '%.0f MB/s' % n, True),
}


def result(what, unit, ours, peer='', theirs=None, goal=None, quoted='', paired=None):
    """`quoted` is a peer's number from an earlier measurement elsewhere, as text."""
    return Result(what, unit, ours, peer, theirs, goal, quoted, paired)


def number_text(value, unit):
    return '-' if value is None else UNITS[unit][0](value)


def ratio(row):
    """Our number in terms of the peer's."""
    if row.paired is not None:
        return row.paired
    return row.ours / row.theirs if row.ours is not None and row.theirs else None


def goal_text(value, row):
    if value is None:
        return ''
    return '%g x' % value if row.goal.by == 'x' else number_text(value, row.unit)


def met(row):
    """Which goal our number meets: 'aim', 'reach', 'no'; '' where nothing was measured."""
    value = row.goal and (ratio(row) if row.goal.by == 'x' else row.ours)
    if value is None:
        return ''
    more = UNITS[row.unit][1]
    for name in ('aim', 'reach'):
        goal = getattr(row.goal, name)
        if value >= goal if more else value <= goal:
            return name
    return 'no'


HEAD = 'what', 'banwatch', 'peer', "peer's", 'ratio', 'reach', 'aim', 'met'


def cells(row):
    times = ratio(row)
    return (row.what, number_text(row.ours, row.unit), row.peer,
            row.quoted + '*' if row.quoted else number_text(row.theirs, row.unit) if row.peer else '',
            '' if times is None else '%.2f x' % times,
            goal_text(row.goal and row.goal.reach, row), goal_text(row.goal and row.goal.aim, row), met(row))


def table(rows):
    """Lines of the table; what stands above is not said again."""
    rows = [HEAD] + [cells(row) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    above = None
    for row in rows:
        shown = ('', '') + row[2:] if row[:2] == above else row
        above = row[:2]
        yield '  '.join(cell.ljust(width) if name in ('what', 'peer') else cell.rjust(width)
                        for cell, width, name in zip(shown, widths, HEAD)).rstrip()


# ---- Logs ----------------------------------------------------------------------------------
# Logs are lists of lines (bytes). `repeat` makes long ones of short ones.

STEP = 7                             # seconds a line
YEAR_AT_MOST = 330 * 86400           # without a year in its dates a log has to fit into one
STAMP = re.compile(rb'[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d ')
MONTHS = 'Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec'.split()


def stamp(when):
    """'Dec 10 06:55:46', in UTC."""
    t = time.gmtime(when)
    return b'%s %2d %02d:%02d:%02d' % (MONTHS[t.tm_mon - 1].encode(), t.tm_mday, t.tm_hour, t.tm_min, t.tm_sec)


def repeat(seed, path, lines, end, copy=lambda texts: texts):
    """Writes `lines` lines: those of `seed` over and over, one every STEP seconds, the last at `end`. Each time as
    `copy` makes them of what follows their dates."""
    texts = [line.rstrip(b'\n')[15:] + b'\n' for line in seed if STAMP.match(line)]
    if not texts:
        raise Missing('the log has no line that begins like "Dec 10 06:55:46 "')
    step = min(STEP, YEAR_AT_MOST / lines)
    with open(path, 'wb', 1 << 20) as f:
        for n, text in zip(range(lines), itertools.chain.from_iterable(copy(texts) for _ in itertools.count())):
            f.write(stamp(end - (lines - 1 - n) * step) + text)


FRESH = 0.7                          # of the addresses in each copy of a varied log
VARIES = re.compile(rb'(?<=\[)\d+(?=\]: )|(?<= port )\d+|(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w.-])')


def varied(rng):
    """A `copy` for `repeat`: pids and ports are others each time, and so are most of the addresses."""
    def copy(texts):
        known = {}                   # pid, port or address -> what stands for it in this copy

        def other(m):
            text = m.group()
            if text not in known:
                known[text] = b'%d' % rng.randrange(1024, 65536) if b'.' not in text else (
                    spread(rng.randrange(1 << 17)).encode() if rng.random() < FRESH else text)
            return known[text]
        return [VARIES.sub(other, text) for text in texts]
    return copy


USERS = 'root admin test oracle postgres ubuntu git pi support guest ftp user webmaster nagios'.split()
PAM = 'pam_unix(sshd:auth): authentication failure; logname= uid=0 euid=0 tty=ssh ruser= rhost=%s '
REVERSE = 'reverse mapping checking getaddrinfo for host-%s.example.net [%s] failed - POSSIBLE BREAK-IN ATTEMPT!'
FAREWELLS = (
    'Received disconnect from %s: 11: Bye Bye [preauth]',
    'Connection closed by %s [preauth]',
    'error: Received disconnect from %s: 14: No more user authentication methods available. [preauth]',
)
VISITS = (
    'Connection closed by %s [preauth]',
    'Did not receive identification string from %s',
    'error: Received disconnect from %s: 3: com.jcraft.jsch.JSchException: Auth fail [preauth]',
)
# How often one address stands in a log under attack: a few do most of it, the others come by.
ATTACKERS = [('203.0.113.%d' % n, weight) for n, weight in
             enumerate((870, 350, 170, 80, 53, 43, 22, 15, 15, 12, 12, 10, 10, 9, 8, 8, 7) + (4,) * 20, 10)]


def known_user(rng, ip, port):
    """One guess at a user who exists: the most frequent connection."""
    if rng.random() < 0.15:
        yield REVERSE % (port, ip)
    rhost = ip if rng.random() < 0.9 else 'host-%s.example.net' % port
    yield PAM % rhost + ' user=root'
    yield 'Failed password for root from %s port %d ssh2' % (ip, port)
    yield 'Received disconnect from %s: 11: Bye Bye [preauth]' % ip


def invalid_user(rng, ip, port):
    user = rng.choice(USERS)
    if rng.random() < 0.3:
        yield REVERSE % (port, ip)
    yield 'Invalid user %s from %s' % (user, ip)
    yield 'input_userauth_request: invalid user %s [preauth]' % user
    yield 'pam_unix(sshd:auth): check pass; user unknown'
    yield PAM % ip
    yield 'Failed password for invalid user %s from %s port %d ssh2' % (user, ip, port)
    yield rng.choice(FAREWELLS) % ip


def many_guesses(rng, ip, port):
    """A client that guesses until it is thrown out."""
    yield PAM % ip + ' user=root'
    yield 'Failed password for root from %s port %d ssh2' % (ip, port)
    yield 'message repeated 5 times: [ Failed password for root from %s port %d ssh2]' % (ip, port)
    yield 'Disconnecting: Too many authentication failures for root [preauth]'
    yield 'PAM 5 more authentication failures; logname= uid=0 euid=0 tty=ssh ruser= rhost=%s  user=root' % ip
    yield 'PAM service(sshd) ignoring max retries; 6 > 3'


def no_guess(rng, ip, port):
    yield rng.choice(VISITS) % ip


CONNECTIONS = [(known_user, 380), (invalid_user, 112), (no_guess, 40), (many_guesses, 4)]


def choices(rng, weighted):
    """One of the first of each pair, as often as the second says."""
    return rng.choices([what for what, _ in weighted], [weight for _, weight in weighted])[0]


def attack_log(lines, rng):
    """An OpenSSH server's log under attack; the dates are to be set by `repeat`."""
    found, pid = [], 24200
    while len(found) < lines:
        pid += rng.randint(1, 4)
        for text in choices(rng, CONNECTIONS)(rng, choices(rng, ATTACKERS), rng.randint(1024, 65535)):
            found.append(('Dec 10 06:55:46 gate sshd[%d]: %s\n' % (pid, text)).encode())
    return found[:lines]


# Lines of an old Linux host's log, as often as one such host wrote them. {pid} {ip} {name} vary.
PLAIN = [
    ('ftpd[{pid}]: connection from {ip} () at Mon Jul 18 03:26:49 2005', 617),
    ('ftpd[{pid}]: connection from {ip} ({name}) at Mon Jul 18 03:26:49 2005', 292),
    ('sshd(pam_unix)[{pid}]: authentication failure; logname= uid=0 euid=0 tty=NODEVssh ruser= rhost={name}  user=root', 190),
    ('sshd(pam_unix)[{pid}]: authentication failure; logname= uid=0 euid=0 tty=NODEVssh ruser= rhost={ip} ', 300),
    ('sshd(pam_unix)[{pid}]: check pass; user unknown', 116),
    ('su(pam_unix)[{pid}]: session opened for user cyrus by (uid=0)', 86),
    ('su(pam_unix)[{pid}]: session closed for user cyrus', 86),
    ('kernel: ACPI: Interpreter enabled, PCI: Probing PCI hardware (bus 00)', 76),
    ('logrotate: ALERT exited abnormally with [1]', 43),
    ('crond[{pid}]: (root) CMD (/usr/lib/sa/sa1 1 1)', 40),
    ('sshd(pam_unix)[{pid}]: session opened for user test by (uid=509)', 36),
    ('sshd(pam_unix)[{pid}]: session closed for user test', 36),
    ('klogind[{pid}]: Authentication failed from {ip} ({ip}): Permission denied in replay cache code', 46),
    ('named[{pid}]: notify question section contains no SOA', 16),
    ('cups: cupsd shutdown succeeded', 12),
    ("udev[{pid}]: removing device node '/udev/vcs2'", 8),
    ('syslogd 1.4.1: restart.', 7),
]


def plain_log(lines, rng):
    """A host's log with all sorts of programs in it."""
    return [('Jun 14 15:16:01 gate %s\n' % choices(rng, PLAIN).format(
        pid=rng.randint(500, 32000), ip='198.51.100.%d' % rng.randint(1, 254),
        name='host-%d.example.net' % rng.randint(1, 254))).encode() for _ in range(lines)]


# first bytes of addresses that belong to nobody in particular
PUBLIC = sorted(set(range(1, 224)) - {10, 100, 127, 169, 172, 192, 198, 203})


def crowd(count, last='198.51.100.1'):
    """That many addresses from all over the internet, always the same, and as the last one `last`."""
    rng, found = random.Random(1), {}
    while len(found) < count - 1:
        found['%d.%d.%d.%d' % (rng.choice(PUBLIC), rng.randrange(256), rng.randrange(256), rng.randrange(1, 255))] = None
    return list(found) + [last] * (count > 0)


def spread(n):
    """The n-th address of 198.18.0.0/15, the range that is set aside for benchmarks."""
    return '198.%d.%d.%d' % (18 + (n >> 16), n >> 8 & 255, n & 255)


def crowd_log(path, count, end):
    """Writes one failed login of each of so many addresses, ten a second, the last at `end`."""
    with open(path, 'wb', 1 << 20) as f:
        for n, ip in enumerate(crowd(count)):
            f.write(stamp(end - (count - 1 - n) / 10) + b' gate sshd[%d]: Failed password for root from %s port %d ssh2\n' % (
                n * 7919 % 60000, ip.encode(), 1024 + n * 7907 % 60000))


def failure(ip, when=None):
    """A failed login, as OpenWrt's logread prints it."""
    date = time.strftime('%a %b %e %H:%M:%S %Y', time.gmtime(when))
    return "%s authpriv.warn dropbear[1]: Bad password attempt for 'root' from %s:1\n" % (date, ip)


def sshd_failure(ip):
    """A failed login, as syslogd writes it (sshguard 2.4 knows neither logread's form nor today's dropbear)."""
    return '%s gate sshd[1]: Failed password for root from %s port 1 ssh2\n' % (stamp(time.time()).decode(), ip)


# ---- Programs ------------------------------------------------------------------------------
# Starting them, timing them, stopping them, looking at them through /proc.

PATIENCE = 30                        # seconds for a daemon to start, or to have digested what it got
HOLD = 3                             # seconds without change that make a number settled


def installed(name, package):
    """The path of a peer's program."""
    found = shutil.which(name, path='%s:/usr/sbin:/sbin' % os.environ.get('PATH', ''))
    if found is None:
        raise Missing('%s is not installed (Debian: apt install %s)' % (os.path.basename(name), package))
    return found


PACKAGES = {'nft': 'nftables', 'ip': 'iproute2'}          # else a program's own name


def tool(name, *words):
    """The argv of a program of the administrator's."""
    return [installed(name, PACKAGES.get(name, re.sub('-restore', '', name))), *words]


def wait_until(true, what, seconds=PATIENCE, pause=0.05):
    """Asks `true` again and again; Missing if it stays false."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise Missing('%s: not within %d s' % (what, seconds))
        time.sleep(pause)


def settled(read, what):
    """The value of `read()` once it has not changed for HOLD seconds."""
    last = [read(), time.monotonic()]

    def steady():
        value = read()
        if value != last[0]:
            last[:] = value, time.monotonic()
        return time.monotonic() - last[1] >= HOLD
    wait_until(steady, what, pause=0.2)
    return last[0]


def call(argv, seconds=600, stdin=subprocess.DEVNULL, **more):
    """(wall seconds, standard output) of a program; Missing with its complaint if it fails."""
    began = time.perf_counter()
    try:
        done = subprocess.run(argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              env=ENVIRON, timeout=seconds, **more)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise Missing(str(e)) from None
    took = time.perf_counter() - began
    if done.returncode:
        said = done.stderr.decode('utf-8', 'replace').strip().split('\n')[-1]
        raise Missing('%s ended with %d: %s' % (' '.join(argv[1:3]), done.returncode, said))
    return took, done.stdout.decode('utf-8', 'replace')


def succeeds(argv):
    try:
        return bool(call(argv, 10))
    except Missing:
        return False


def start_pipeline(argvs, stdin):
    """The programs of `argvs`, each reading from the one before, the first from `stdin`."""
    started = []
    for i, argv in enumerate(argvs):
        last = i == len(argvs) - 1
        started.append(subprocess.Popen(argv, stdin=started[-1].stdout if started else stdin, env=ENVIRON,
                                        stdout=subprocess.DEVNULL if last else subprocess.PIPE,
                                        stderr=subprocess.DEVNULL))
        if i:
            started[-2].stdout.close()
    return started


def end(processes, signal_number=signal.SIGTERM):
    """Stops what we have started; what does not obey in time is killed."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal_number)
    for process in processes:
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def timed_pipeline(argvs, path, seconds=600):
    """(wall seconds, '') of a pipeline that reads the file at `path`."""
    with open(path, 'rb') as f:
        began = time.perf_counter()
        started = start_pipeline(argvs, f)
        try:
            if any([process.wait(max(0, began + seconds - time.perf_counter())) for process in started]):
                raise Missing('%s ended with %s' % (argvs[0][0], [process.returncode for process in started]))
        except subprocess.TimeoutExpired:
            raise Missing('not done after %g s' % seconds) from None
        finally:
            end(started)
        return time.perf_counter() - began, ''


def proc_status(path, *keys):
    """The sum of these numbers in a status file of /proc; 0 if the process has gone."""
    try:
        with open(path) as f:
            return sum(int(line.split()[1]) for line in f if line.startswith(keys))
    except OSError:
        return 0


def rss(pids):
    """Resident memory of these processes together, MB."""
    return sum(proc_status('/proc/%d/status' % pid, 'VmRSS:') for pid in pids) / 1024


def switches(pids):
    """How often any thread of these processes has been given the processor."""
    return sum(proc_status('/proc/%d/task/%s/status' % (pid, task), 'voluntary_ctxt', 'nonvoluntary_ctxt')
               for pid in pids for task in os.listdir('/proc/%d/task' % pid))


# ---- Daemons -------------------------------------------------------------------------------
# Each is a context manager with `pids`, and `write`, which hands it lines of log.

class Reader:
    """A daemon of one process that reads `log`, in a folder of its own; `start` waits until it is `ready`."""
    name, said = '', subprocess.DEVNULL

    def __init__(self, folder):
        self.folder = tempfile.mkdtemp(dir=folder)
        self.log = os.path.join(self.folder, 'log')

    def put(self, name, *rows):
        with open(os.path.join(self.folder, name), 'w') as f:
            f.write('\n'.join(rows) + '\n')

    def start(self, argv, opener=None):
        self.launch(argv)
        try:
            wait_until(self.ready, self.name)
            # held open: else who reads a FIFO may see it end
            self.out = open(self.log, 'wb' if opener else 'ab', 0, opener=opener)
        except BaseException:
            end([self.process])
            raise
        return self

    def launch(self, argv):
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=self.said, stderr=self.said, env=ENVIRON)
        self.pids = [self.process.pid]

    def write(self, text):
        self.out.write(text.encode())

    def __exit__(self, *why):
        end([self.process])
        self.out.close()


PIPE_BYTES = 1 << 20                 # /proc/sys/fs/pipe-max-size; of 10,000 lines all but a hundred fit
F_SETPIPE_SZ = 1031                  # fcntl has it since Python 3.10


def widened(fd):
    """A pipe that takes a whole burst in one write."""
    fcntl.fcntl(fd, F_SETPIPE_SZ, PIPE_BYTES)
    return fd


def open_fifo(path, flags):
    """Both ends: what is written while nobody reads waits there."""
    return widened(os.open(path, os.O_RDWR))


class Banwatch(Reader):
    """A banwatch of ours that listens to a FIFO, or follows a file."""
    name = 'banwatch run'

    def __init__(self, folder, firewall='none', source='fifo', program=(sys.executable, BANWATCH), **options):
        super().__init__(folder)
        self.program = program
        self.conf, self.source = os.path.join(self.folder, 'conf'), source
        self.put('conf', '[banwatch]', 'source = %s' % (('fifo:' if source == 'fifo' else '') + self.log),
                 'firewall = ' + firewall, 'runtime = %s/run' % self.folder, 'state = %s/state' % self.folder,
                 '[DEFAULT]', *['%s = %s' % option for option in options.items()] + ['[dropbear]', 'enabled = true'])

    def argv(self, *words):
        return [*self.program, '-c', self.conf, *words]

    def __enter__(self):
        if self.source == 'fifo':
            os.mkfifo(self.log, 0o600)
        else:
            open(self.log, 'w').close()
        self.said = open(os.path.join(self.folder, 'said'), 'w+')
        return self.start(self.argv('run'), open_fifo if self.source == 'fifo' else None)

    def again(self, number, text):
        """Ends it with this signal, lets a line wait for the next one, and starts that; the moment (perf_counter) then."""
        end([self.process], number)
        self.write(text)
        moment = time.perf_counter()
        self.launch(self.argv('run'))
        return moment

    def ready(self):
        if self.process.poll() is not None:
            self.said.seek(0)
            raise Missing('banwatch run: ' + (self.said.read().strip().split('\n')[-1] or 'ended'))
        answer = self.status()
        return answer is not None and all(
            wall['name'] and not wall['trouble'] and not wall['pending'] for wall in answer['firewall'])

    def ask(self, **request):
        """Sends a request, without a client's start; a function that returns the answer."""
        asking = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        asking.settimeout(PATIENCE)
        asking.connect(os.path.join(self.folder, 'run/control'))
        asking.sendall(json.dumps(request).encode() + b'\n')

        def answer():
            with asking, asking.makefile('rb') as answers:
                return json.loads(answers.readline().decode())
        return answer

    def status(self):
        """What `status --json` says; None if nobody answers."""
        try:
            return json.loads(call(self.argv('status', '--json'), 30)[1])
        except Missing:
            return None

    def __exit__(self, *why):
        super().__exit__(*why)
        self.said.close()


class Fail2ban(Reader):
    """A fail2ban-server with Debian's filter for dropbear, iptables, and a log file."""
    name = 'fail2ban-server'

    def __init__(self, folder, action='iptables'):
        self.server, self.client = installed('fail2ban-server', 'fail2ban'), installed('fail2ban-client', 'fail2ban')
        super().__init__(folder)
        for name in ('filter.d', 'action.d'):
            os.symlink('/etc/fail2ban/' + name, os.path.join(self.folder, name))
        self.put('fail2ban.conf', '[Definition]', 'loglevel = ERROR', 'logtarget = %s/said' % self.folder,
                 'syslogsocket = auto', 'dbfile = None', 'dbmaxmatches = 10', 'dbpurgeage = 1d')
        self.put('jail.conf', '[dropbear]', 'enabled = true', 'filter = dropbear', 'backend = auto',
                 'maxretry = 1', 'logpath = ' + self.log,
                 'action = %s[name=bench, type=allports, protocol=%s, blocktype=%s]' % (
                     (action,) + (('udp', 'drop') if action == 'nftables' else ('all', 'DROP'))))

    def argv(self, program, *words):
        return [program, '-c', self.folder, '-s', self.folder + '/socket', '-p', self.folder + '/pid'] + list(words)

    def __enter__(self):
        open(self.log, 'w').close()
        return self.start(self.argv(self.server, '-f', 'start'))

    def ready(self):
        return succeeds(self.argv(self.client, 'status', 'dropbear'))


def offline():
    """What is put before a program so that it reaches no nameserver; empty if nothing is needed, or helps."""
    argv = ['unshare', '--map-root-user', '--net']
    return argv if OWN_NET not in os.environ and succeeds(argv + ['true']) else []


def sshguard_argvs(*blocker, firewall='sshg-fw-null', before=()):
    """sshguard's pipeline as its script starts it, with the limits of Debian's conf unless told otherwise."""
    return [list(before) + [installed(SSHGUARD + 'sshg-parser', 'sshguard')],
            [SSHGUARD + 'sshg-blocker'] + list(blocker or ('-a', '30'))
            + ['-p', '120', '-s', '1800', '-N', '128', '-n', '32'],
            [SSHGUARD + firewall]]


# what sshguard leaves to the administrator
SSHGUARD_RULES = {
    'sshg-fw-iptables': (['iptables', '-N', 'sshguard'], ['iptables', '-I', 'INPUT', '-j', 'sshguard']),
    'sshg-fw-ipset': (['ipset', 'create', 'sshguard4', 'hash:net'],
                      ['iptables', '-I', 'INPUT', '-m', 'set', '--match-set', 'sshguard4', 'src', '-j', 'DROP']),
}


class Sshguard:
    """sshguard's three processes, fed through a pipe; one failure is enough for a ban."""

    def __init__(self, folder, firewall='sshg-fw-null'):
        self.argvs = sshguard_argvs('-a', '10', firewall=firewall)         # 10: what one failure weighs
        self.firewall = firewall

    def __enter__(self):
        for argv in SSHGUARD_RULES.get(self.firewall, ()):
            call(tool(*argv))
        self.processes = start_pipeline(self.argvs, subprocess.PIPE)
        widened(self.processes[0].stdin.fileno())
        self.pids = [process.pid for process in self.processes]
        try:
            if 'nft' in self.firewall:
                wait_until(self.ready, 'sshguard')
        except BaseException:
            end(self.processes)
            raise
        return self

    @staticmethod
    def ready():
        try:
            return 'drop' in call(['nft', 'list', 'table', 'ip', 'sshguard'])[1]
        except Missing:
            return False

    def write(self, text):
        os.write(self.processes[0].stdin.fileno(), text.encode())

    def __exit__(self, *why):
        self.processes[0].stdin.close()
        try:
            self.processes[-1].wait(5)             # it takes its rules away at the end of its input
        except subprocess.TimeoutExpired:
            pass
        end(self.processes)


# ---- Rows ----------------------------------------------------------------------------------
# A row is a function that yields Results. What fails in it becomes a note under the table.

DEFAULT_JAILS = 'dropbear', 'sshd', 'luci'
STOCK = '/etc/fail2ban/filter.d/%s.conf'

class Bench:
    """One run: its logs, its folder, what is to be said under the table."""

    def __init__(self, folder, options):
        self.folder, self.options = folder, options
        self.notes = []
        self.paths = {}              # 'attack', 'varied', 'plain' -> the long log
        self.waves = {}              # (firewall, bans) -> what bursts and their ends take

    def note(self, text):
        if text not in self.notes:
            self.notes.append(text)

    def tried(self, who, function, *args):
        """What the function returns; None, and a note, if it cannot be had."""
        try:
            return function(*args)
        except (Missing, OSError) as e:
            self.note('%s: %s' % (who, e))

    def path(self, name):
        return os.path.join(self.folder, name)

    def reading(self, who, took, start):
        """The seconds of a run without those of a start; None, and a note, if they cannot be told."""
        return self.tried(who, reading, took[0], start[0]) if took and start else None

    def speed(self, who, lines, took, start):
        """Lines a second of a run without its start; None if they cannot be told."""
        seconds = self.reading(who, took, start)
        return seconds and lines / seconds

    def log(self, kind):
        """The path of the long log of this kind."""
        if kind not in self.paths:
            given = self.options.plain if kind == 'plain' else self.options.log
            if given:
                with open(given, 'rb') as f:
                    seed = f.read().split(b'\n')[:-1]
            else:
                seed = (plain_log if kind == 'plain' else attack_log)(2000, random.Random(1))
            repeat(seed, self.path(kind), self.options.lines, time.time(),
                   **{'copy': varied(random.Random(2))} if kind == 'varied' else {})
            self.paths[kind] = self.path(kind)
            self.note('%s log: %s lines, %s' % (kind, format(self.options.lines, ','),
                                                os.path.basename(given) + ' repeated' if given else 'written by the bench'))
        return self.paths[kind]

    def cut(self, kind, lines):
        """The path of the first lines of the long log of this kind."""
        path = self.path('%s log, %d lines' % (kind, lines))
        with open(self.log(kind), 'rb') as f, open(path, 'wb') as out:
            out.writelines(itertools.islice(f, lines))
        return path

    def conf(self, *rows, jails=(), default=True, name='replay'):
        """A conf file for `replay`: the three jails that are on by default (or not), and others."""
        path = self.path(name + '.conf')
        sections = ['[%s]\nenabled = %s' % (jail, str(default).lower()) for jail in DEFAULT_JAILS]
        with open(path, 'w') as f:
            f.write('\n'.join(['[banwatch]', 'firewall = none', '[DEFAULT]', *rows, *sections, *jails]) + '\n')
        return path

    def replay(self, conf, path):
        """(wall seconds, the answer) of a replay, None and a note if it fails."""
        return self.tried('banwatch replay', call, [sys.executable, BANWATCH, '-c', conf, 'replay', '--json', path])

    def fail2ban(self, path, filter):
        """The same of fail2ban-regex."""
        return self.tried('fail2ban-regex', lambda: call(
            [installed('fail2ban-regex', 'fail2ban'), '--usedns', 'no', path, filter]))


def best(times, functions):
    """{name: the least of `times` results, None if there is none}; they take turns, so that a busy
    moment meets all of them. The least, because what disturbs a run can only make it slower."""
    found = {name: [] for name in functions}
    for _ in range(times):
        for name, function in functions.items():
            if None not in found[name]:
                found[name].append(function())
    return {name: None if None in values else min(values) for name, values in found.items()}


def replay_rows(bench):
    yield from replay_row(bench, 'attack', Goal(2, 4, 'x'))
    yield from replay_row(bench, 'plain', Goal(4, 10, 'x'))


LONG_ENOUGH = 200000                 # lines that take every program much longer than its start
FAIL2BAN_LINES = 20000               # it is slow: so many lines tell its speed


def replay_row(bench, kind, goal):
    lines, few = bench.options.lines, min(bench.options.lines, FAIL2BAN_LINES)
    path, short, one = bench.log(kind), bench.cut(kind, few), bench.cut(kind, 1)
    conf, before = bench.conf(), offline()
    took = best(3, {
        'banwatch': lambda: bench.replay(conf, path),
        'fail2ban': lambda: bench.fail2ban(short, 'sshd'),
        'start': lambda: bench.fail2ban(one, 'sshd'),
        'sshguard': lambda: bench.tried('sshguard', lambda: timed_pipeline(sshguard_argvs(before=before), path)),
        'parser': lambda: bench.tried('sshguard', lambda: timed_pipeline(sshguard_argvs(before=before)[:1], path)),
    })
    speed = {name: lines / done[0] for name, done in took.items() if done}
    speed['fail2ban'] = bench.speed('fail2ban-regex', few, took['fail2ban'], took['start'])
    bench.note('lines/s: whole wall time, best of 3 in turn; only fail2ban-regex, which read %s lines, less its start'
               % format(few, ','))
    if lines < LONG_ENOUGH:
        bench.note('under %s lines these numbers tell more about how each program starts' % format(LONG_ENOUGH, ','))
    found, names = parser_finds(short, before) if took['parser'] else (None, 0)
    bench.note('failures found in 100 lines of the %s log: banwatch %s, fail2ban-regex %s, sshg-parser %s' % (
        kind, per_100(failures(took['banwatch']), lines), per_100(took['fail2ban'] and matched(took['fail2ban'][1]), few),
        per_100(found, few)))
    if names:
        bench.note('sshg-parser asks a nameserver for each name in a failure, here for %s in 100 lines of the %s log; %s' % (
            per_100(names, few), kind, 'it cannot reach one, so that costs it nothing'
            if before or OWN_NET in os.environ else 'it waited for the answers: its number means little'))
    what = 'replay, %s log' % kind
    for name, peer, wanted in (('sshguard', 'sshguard parser+blocker', goal),
                               ('parser', 'sshguard parser alone', None), ('fail2ban', 'fail2ban-regex', None)):
        yield result(what, 'lines/s', speed.get('banwatch'), peer, speed.get(name), wanted)


def reading(took, start):
    """The seconds left without the start; Missing if they are lost in its jitter."""
    if took - start < start / 4:
        raise Missing('so few lines take no longer than its start')
    return took - start


def failures(done):
    """How many failures a replay has found; None if there was none."""
    return done and json.loads(done[1])['failures']


def per_100(found, lines):
    return '-' if found is None else '%.1f' % (100 * found / lines)


def matched(said):
    """How many lines fail2ban-regex says have matched."""
    m = re.search(r'(\d+) matched', said)
    return m and int(m.group(1))


def parser_finds(path, before):
    """(attacks that sshguard's parser sees in a log, names it could not resolve there); it prints a line for each."""
    with open(path, 'rb') as f:
        done = subprocess.run(sshguard_argvs(before=before)[0], stdin=f, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, env=ENVIRON)
    return done.stdout.count(b'\n'), done.stderr.count(b'Could not resolve')


# Jails that an attack on sshd does not concern. Some with a failregex of their own, some with a file of
# fail2ban's, and as many of our own kind.
OWN_REGEXES = {
    'wiki': r'wiki\[\d+\]: login of <F-USER>\S+</F-USER> refused, address <HOST>$',
    'camera': r'camera: wrong PIN entered by <HOST>(?: \(\d+ tries\))?$',
    'printer': r'^\s*\S+ printer: access denied to <ADDR> for job \d+',
    'torrent': r'torrent-daemon.* RPC password mismatch from <HOST>:\d+',
    'music': r'music: <F-USER>.*</F-USER> is unknown here \(client <HOST>\)$',
}
STOCK_FILTERS = 'postfix', 'dovecot', 'proftpd', 'asterisk', 'apache-auth'
BUILT_IN = ('postfix', 'dovecot', 'proftpd', 'asterisk', 'exim', 'vsftpd', 'pure-ftpd', 'openvpn', 'nginx-http-auth',
            'lighttpd-auth')


def stock(name):
    """The path of a filter file of fail2ban's."""
    if not os.path.exists(STOCK % name):
        raise Missing(STOCK % name + ' is missing (Debian: apt install fail2ban)')
    return STOCK % name


def jail_rows(bench):
    """What jails cost that have nothing to do."""
    rows = {'3': ('', lambda: []),
            '13': ('10 more jails', lambda: [
                '[%s]\nenabled = true\nfailregex = %s' % item for item in OWN_REGEXES.items()] + [
                '[%s]\nenabled = true\nfilter = %s' % (name, stock(name)) for name in STOCK_FILTERS]),
            'built-in': ('10 more jails, all built in', lambda: ['[%s]\nenabled = true' % name for name in BUILT_IN])}
    path, one, confs = bench.log('attack'), bench.cut('attack', 1), {}
    for name, (_, jails) in rows.items():
        conf = bench.tried('jails', lambda: bench.conf(jails=jails(), name='jails ' + name))
        if conf:
            confs[name, path], confs[name, one] = conf, conf
    took = best(3, {key: lambda key=key: bench.replay(confs[key], key[1]) for key in confs})
    seconds = {name: bench.reading('banwatch replay', took.get((name, path)), took.get((name, one))) for name in rows}
    starts = [(name, took[name, one][0]) for name in rows if took.get((name, one))]
    bench.note('jails: seconds of a replay of the attack log, best of 3 in turn, less its start, which takes '
               + ', '.join('%.2f s (%s)' % (start, name + ' jails' if name.isdigit() else '13, all built in')
                           for name, start in starts))
    found = {failures(took.get((name, path))) for name in rows} - {None}
    if len(found) > 1:
        bench.note('jails: those that should have nothing to do have found something: %s failures' % sorted(found))
    for name, (what, _) in rows.items():
        if what:
            yield result('replay, ' + what, 's', seconds[name], 'the 3 jails', seconds['3'],
                         Goal(1.3, 1.1, 'x') if name == '13' else None)


def filter_rows(bench):
    """One filter file of fail2ban's, read by both."""
    few = min(bench.options.lines, FAIL2BAN_LINES)
    sshd = stock('sshd')
    conf = bench.conf(jails=['[stock]\nenabled = true\nfilter = ' + sshd], default=False, name='stock')
    for kind in ('attack', 'plain'):
        logs = {'log': bench.cut(kind, few), 'start': bench.cut(kind, 1)}
        runs = {'banwatch': lambda path: bench.replay(conf, path), 'fail2ban': lambda path: bench.fail2ban(path, sshd)}
        took = best(3, {(who, name): lambda run=run, path=path: run(path)
                        for who, run in runs.items() for name, path in logs.items()})
        ours, theirs = (bench.speed(who, few, took[name, 'log'], took[name, 'start'])
                        for name, who in (('banwatch', 'banwatch replay'), ('fail2ban', 'fail2ban-regex')))
        bench.note("fail2ban's sshd.conf: failures in 100 lines of the %s log: banwatch %s, fail2ban-regex %s" % (
            kind, per_100(failures(took['banwatch', 'log']), few),
            per_100(took['fail2ban', 'log'] and matched(took['fail2ban', 'log'][1]), few)))
        yield result("fail2ban's sshd.conf, %s log" % kind, 'lines/s', ours, 'fail2ban-regex', theirs)
    bench.note("fail2ban's sshd.conf: %s lines, best of 3 in turn, both less their start" % format(few, ','))


TRIALS = 20


class Attacker:
    """Someone in 198.51.100.0/24 who sends datagrams to this host and sees whether they arrive.

    The arrival of a packet is what a ban is about, and asking so costs 5 microseconds, without a
    process: `iptables -S` or `-save` takes milliseconds a look, and `nft monitor` tells when the
    ruleset was committed, not when packets stop; besides it is one more process to be scheduled.
    On `lo` a datagram is with its receiver before sendto() returns, or never comes."""

    def __init__(self, ip):
        self.there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.there.bind(('127.0.0.1', 0))
        self.there.settimeout(0.002)               # in case the kernel puts a delivery off
        self.here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.here.bind((ip, 0))
        self.n = 0

    def arrives(self):
        self.n += 1
        sent = b'%d' % self.n
        try:
            self.here.sendto(sent, self.there.getsockname())
            while self.there.recv(16) != sent:
                pass                               # an earlier one, late
            return True
        except OSError:
            return False

    def stopped(self, seconds):
        """The moment (perf_counter) of the first datagram after which none arrived."""
        last = time.perf_counter() + seconds
        while time.perf_counter() < last:
            moment = time.perf_counter()
            if not self.arrives() and not any(self.arrives() for _ in range(3)):
                return moment
            time.sleep(0.0001)                     # leaves the processor to those who are measured
        raise Missing('%s was not shut out within %d s' % (self.here.getsockname()[0], seconds))

    def close(self):
        self.here.close()
        self.there.close()


def own_network():
    """Sees to it that 198.51.100.0/24 is on our `lo`; Missing unless the network is ours alone."""
    if OWN_NET not in os.environ:
        raise Missing('needs root and unshare(1), for a network namespace')
    call(tool('ip', 'link', 'set', 'lo', 'up'))
    call(tool('ip', 'address', 'replace', '198.51.100.0/24', 'dev', 'lo'))


def delays(daemon, line, trials=TRIALS, pause=1, before=lambda: None):
    """Milliseconds from a line until its address is shut out, for each of so many addresses, with up to
    `pause` seconds in between."""
    found, rng = [], random.Random(1)
    with daemon:
        before()
        for n in range(1, trials + 1):
            attacker = Attacker('198.51.100.%d' % n)
            try:
                if not attacker.arrives():
                    raise Missing('198.51.100.%d was shut out before its time' % n)
                # not an awaited event: who polls must not be met at the same point of each period
                time.sleep(pause * rng.random())
                began = time.perf_counter()
                daemon.write(line('198.51.100.%d' % n))
                found.append(1000 * (attacker.stopped(15) - began))
            finally:
                attacker.close()
    return found


def latency_rows(bench):
    def measure(who, make, line=failure):
        return bench.tried('latency, ' + who, lambda: own_network() or delays(make(), line))

    # ignoreself is off because here the attackers' addresses are this machine's own
    options = {'maxretry': 1, 'ignoreself': 'false'}
    ours = {source: measure('banwatch', lambda: Banwatch(bench.folder, 'iptables', source, **options))
            for source in ('fifo', 'file')}
    sshguard = measure('sshguard', lambda: Sshguard(bench.folder, 'sshg-fw-nft-sets'), sshd_failure)
    fail2ban = measure('fail2ban', lambda: Fail2ban(bench.folder))
    if ours['fifo'] or sshguard or fail2ban:
        bench.note('latency: %d addresses, one line each; sshguard with its nft backend; fail2ban backend auto, iptables'
                   % TRIALS)
    for name, pick in (('median', statistics.median), ('worst', max)):
        goal = Goal(20, 5, 'value') if name == 'median' else None
        for source, peer, theirs, quoted, goal in (
                ('fifo', 'sshguard, pipe', sshguard, '4-11 ms', goal),
                ('file', 'fail2ban, file', fail2ban, '370-480 ms', None)):
            yield result('line -> dropped, %s, %s' % (source, name), 'ms', ours[source] and pick(ours[source]),
                         peer, theirs and pick(theirs), goal, '' if theirs or name == 'worst' else quoted)


class Bare:
    """A Python that does nothing."""

    def __init__(self, python):
        self.argv = [python, '-c', 'import time; time.sleep(3600)']

    def __enter__(self):
        self.process = subprocess.Popen(self.argv, env=ENVIRON)
        self.pids = [self.process.pid]
        return self

    def __exit__(self, *why):
        end([self.process])


def idle_rss(daemon):
    """(resident MB, the program) of a daemon that has nothing to do."""
    with daemon:
        return settled(lambda: rss(daemon.pids), 'resident memory'), os.readlink('/proc/%d/exe' % daemon.pids[0])


TRACKED, BANNED = 10000, 1000


def busy_rss(bench):
    """Resident MB with TRACKED addresses that have failed once, and BANNED that are banned."""
    with Banwatch(bench.folder, maxretry=2, findtime='1d', bantime='1d') as daemon:
        for n in range(BANNED):
            daemon.write(2 * failure(spread(TRACKED + n)))
        for n in range(TRACKED):
            daemon.write(failure(spread(n)))

        def digested():
            answer = daemon.status()
            return answer and (answer['tracked'], answer['bans']) == (TRACKED, BANNED)
        wait_until(digested, '%d tracked and %d banned addresses' % (TRACKED, BANNED), pause=0.5)
        return settled(lambda: rss(daemon.pids), 'resident memory')


def memory_rows(bench):
    bare = idle_rss(Bare(sys.executable))[0]
    idle, _ = bench.tried('banwatch memory', lambda: idle_rss(Banwatch(bench.folder))) or (None, '')
    busy = bench.tried('banwatch memory', busy_rss, bench)
    fail2ban, python = bench.tried('fail2ban', lambda: idle_rss(root_only(Fail2ban, bench.folder))) or (None, '')
    sshguard, _ = bench.tried('sshguard', lambda: idle_rss(Sshguard(bench.folder))) or (None, '')
    # fail2ban may run under another Python than we do
    fail2ban_bare = idle_rss(Bare(python))[0] if python else None
    yield result('memory, idle, in all', 'MB', idle, 'bare interpreter', bare)
    yield result('memory, idle, in all', 'MB', idle, 'fail2ban, 1 jail', fail2ban)
    yield result('memory, idle, in all', 'MB', idle, 'sshguard, 3 processes', sshguard)
    yield result('  over a bare interpreter', 'MB', idle and idle - bare, 'fail2ban, 1 jail',
                 fail2ban and fail2ban - fail2ban_bare, Goal(6, 5, 'value'))
    yield result('  and 10,000 tracked, 1,000 banned', 'MB', busy and busy - bare, goal=Goal(14, 9, 'value'))


def root_only(make, *args):
    """A peer that wants to write firewall rules as soon as it starts."""
    if OWN_NET not in os.environ:
        raise Missing('needs root and unshare(1), for a network namespace')
    return make(*args)


def many_rows(bench):
    """What 10,000 addresses cost more than one; nobody is banned, so bans do not blur it."""
    conf = bench.conf('maxretry = 100000')
    paths = {name: bench.path(name + ' addresses') for name in ('one', 'many', 'start')}
    now = time.time()
    for name, path in paths.items():
        with open(path, 'w') as f:
            f.writelines(failure(spread(n if name == 'many' else 0), now - STEP * (TRACKED - n))
                         for n in range(TRACKED if name != 'start' else 1))
    took = best(5, {name: lambda path=path: bench.replay(conf, path) for name, path in paths.items()})
    extra = None
    if took['many'] and took['one']:
        extra = took['many'][0] - took['one'][0]
        bench.note('10,000 addresses: %.3f s; one, as many lines: %.3f s (best of 5); the difference is %.1f us an address'
                   % (took['many'][0], took['one'][0], extra / TRACKED * 1e6))
    yield result('10,000 addresses, extra', 's', extra, 'sshguard', None, Goal(0.5, 0.05, 'value'), '74 s')
    yield result('10,000 addresses, extra', 's', extra, 'fail2ban', None, None, '1.3 s')
    each, same = (seconds and seconds / TRACKED * 1e6 for seconds in (
        bench.reading('banwatch replay', took[name], took['start']) for name in ('many', 'one')))
    yield result('10,000 addresses, a line', 'us', each, 'one address', same)


def median_wall(argvs, times=10):
    """{name: median wall milliseconds}, in turn."""
    found = {name: [] for name in argvs}
    for _ in range(times):
        for name, argv in argvs.items():
            found[name].append(1000 * call(argv, 60)[0])
    return {name: statistics.median(values) for name, values in found.items()}


def in_place(bench):
    """The argv of a banwatch that `install` has put into a folder, as byte code."""
    root = bench.path('root')
    if not os.path.exists(root):
        os.makedirs(root + '/etc')
        open(root + '/etc/openwrt_release', 'w').close()
        call([sys.executable, BANWATCH, 'install', '--root', root])
        launcher = root + '/usr/sbin/banwatch'
        with open(launcher) as f:
            text = f.read()
        with open(launcher, 'w') as f:             # it stays in its folder, and starts the Python that all else is started with
            f.write(re.sub('^#!.*', '#!%s -IS' % sys.executable, text).replace("'/usr/lib", "'%s/usr/lib" % root))
    return [root + '/usr/sbin/banwatch']


PASS = [sys.executable, '-c', 'pass']


def status_walls(bench):
    with Banwatch(bench.folder) as daemon:
        words = daemon.argv('status')
        return median_wall({'source': words, 'installed': in_place(bench) + words[2:], 'pass': PASS}, 20)


def instructions(argv):
    """Millions of instructions that a program takes, its children left out."""
    done = subprocess.run([installed('valgrind', 'valgrind'), '--tool=callgrind', '--callgrind-out-file=/dev/null'] + argv,
                          stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENVIRON)
    count = re.search(rb'Collected : (\d+)', done.stderr)
    if done.returncode or not count:
        raise Missing('callgrind: %s' % done.stderr.decode('utf-8', 'replace').strip().split('\n')[-1])
    return int(count.group(1)) / 1e6


def first_answer(bench, program):
    """Milliseconds from a daemon's start to its first answer."""
    daemon = Banwatch(bench.folder, program=program)
    os.mkfifo(daemon.log, 0o600)
    began = time.perf_counter()
    daemon.launch(daemon.argv('run'))
    try:
        def answers():
            try:
                return daemon.ask(do='status')()
            except OSError:
                return None
        wait_until(answers, 'banwatch run', pause=0.001)
        return 1000 * (time.perf_counter() - began)
    finally:
        end([daemon.process])


def start_rows(bench):
    bench.note('starts: wall time, median of %d, and instructions as callgrind counts them (a router does 300 to 600 M a second); '
               'daemon: until it answers for the first time, least of %d' % (4 * bench.options.times, bench.options.times))
    placed = bench.tried('install', in_place, bench)
    for name, program in (('from source', [sys.executable, BANWATCH]), ('installed', placed)):
        if not program:
            continue
        with Banwatch(bench.folder) as daemon:
            argvs = {words: program + daemon.argv(*words.split())[2:] for words in ('--help', 'status', 'report', 'check')}
            walls = bench.tried(name, median_wall, dict(argvs, none=PASS), 4 * bench.options.times) or {}
            cost = {words: bench.tried('instructions', instructions, argv) for words, argv in dict(argvs, none=PASS).items()}
        for words in argvs:
            yield result('%s, %s' % (words, name), 'ms', walls.get(words), 'python3 -c pass', walls.get('none'))
            yield result('  instructions', 'M', cost[words], 'python3 -c pass', cost['none'])
        began = [bench.tried('start', first_answer, bench, program) for _ in range(bench.options.times)]
        yield result('daemon, %s' % name, 'ms', None not in began and min(began) or None, 'python3 -c pass', walls.get('none'))


def fail2ban_status(bench):
    with root_only(Fail2ban, bench.folder) as daemon:
        return median_wall({'status': daemon.argv(daemon.client, 'status')})['status']


def status_rows(bench):
    walls = bench.tried('banwatch status', status_walls, bench) or {}
    theirs = bench.tried('fail2ban', fail2ban_status, bench)
    yield result('status, wall', 'ms', walls.get('source'), 'python3 -c pass', walls.get('pass'))
    yield result('status, wall', 'ms', walls.get('source'), 'fail2ban-client status', theirs)
    yield result('status, wall, installed', 'ms', walls.get('installed'), 'python3 -c pass', walls.get('pass'), Goal(3, 1.5, 'x'))


FLOOD, FITTING = 200000, 8000        # addresses: more than are tracked, and fewer
FLOOD_MB, FLOOD_SPEED = 16, 0.8      # over a bare interpreter; of the speed with fewer addresses


def flooded(bench, count):
    """(microseconds of processor a line, most resident MB) of a daemon that takes failures of so many addresses in turn."""
    lines = bench.options.lines
    with Banwatch(bench.folder, program=in_place(bench), maxretry=1000) as daemon:
        stat = '/proc/%d/stat' % daemon.pids[0]

        def ticks():
            with open(stat) as f:
                return sum(map(int, f.read().rpartition(')')[2].split()[11:13]))
        before = ticks()
        for at in range(0, lines, 1000):           # each comes back when all others were there
            daemon.write(''.join(stranger(n * 7919 % count, n) for n in range(at, min(at + 1000, lines))))

        def digested():
            answer = daemon.ask(do='status')()
            return sum(source['lines'] for source in answer['sources']) == lines
        wait_until(digested, '%d lines' % lines, 600, 0.5)
        return ((ticks() - before) / os.sysconf('SC_CLK_TCK') / lines * 1e6,
                proc_status('/proc/%d/status' % daemon.pids[0], 'VmHWM:') / 1024)


def stranger(n, pid):
    """A wrong password for one of many users from one of many addresses, each on a connection of its own."""
    return 'Nov 20 12:27:01 router sshd[%d]: Failed password for invalid user u%d from %d.%d.%d.1 port 5555 ssh2\n' % (
        pid % 60000, pid % 3000, 20 + (n >> 16), n >> 8 & 255, n & 255)


def flood_rows(bench):
    bench.note('flood: %s lines through a FIFO, one failure each, nobody is banned; processor time of the daemon, system included'
               % format(bench.options.lines, ','))
    bare = idle_rss(Bare(sys.executable))[0]
    cost, most = bench.tried('flood', flooded, bench, FLOOD) or (None, None)
    for count in (FITTING, 50):
        yield result('flood of %s addresses' % format(FLOOD, ','), 'us', cost, '%s addresses' % format(count, ','),
                     (bench.tried('flood', flooded, bench, count) or [None])[0], Goal(1 / FLOOD_SPEED, 1, 'x') if count == FITTING else None)
    yield result('  memory at most, over a bare interpreter', 'MB', most and most - bare, goal=Goal(FLOOD_MB, FLOOD_MB, 'value'))


def flash_written(hours, bans):
    """Kilobytes that a daemon writes to its kept state for so many bans, spread over so many hours; how often it writes."""
    banwatch = engine()
    from harness import FakeMachine, turn
    with tempfile.TemporaryDirectory(prefix='banwatch-bench-') as folder:
        machine, sizes = FakeMachine(), []
        state, replace = folder + '/state', machine.replace
        machine.replace = lambda path, text: [replace(path, text), sizes.append(len(text)) if path == state else None]
        config, _ = banwatch.read_config('[banwatch]\nsource = fifo:%s/log\nfirewall = none\nruntime = %s/run\nstate = %s\n'
                                         '[DEFAULT]\nmaxretry = 1\nignoreself = false\n' % (folder, folder, state), 'bench')
        daemon = banwatch.Daemon(machine, config)
        daemon.start()
        (source,) = daemon.sources.values()
        for ip in crowd(bans):
            daemon.consume(source, sshd_failure(ip).encode(), 0)
            machine.pass_time(hours * 3600 / bans)
            turn(daemon)
        daemon.stop()
        turn(daemon, 3)
        assert daemon.stopping
    return sum(sizes) / 1000, len(sizes)


def flash_rows(bench):
    bans = min(FEW, bench.options.bans)
    for hours in (1, 10, 24):
        written, times = bench.tried('flash', flash_written, hours, bans) or (None, 0)
        what = '%s bans in %d h' % (format(bans, ','), hours)
        bench.note('flash: %s are %d writes' % (what, times))
        yield result('flash, ' + what, 'kB', written, 'fail2ban', None, Goal(1000, 100, 'value') if bans == FEW else None, '39,000 kB')


def wakeup_rows(bench):
    """All of them at once: who sleeps does not disturb."""
    daemons = {'banwatch': lambda: Banwatch(bench.folder), 'fail2ban': lambda: root_only(Fail2ban, bench.folder),
               'sshguard': lambda: Sshguard(bench.folder)}
    with contextlib.ExitStack() as stack:
        up = {}
        for name, make in daemons.items():
            daemon = bench.tried(name + ' idle', lambda: stack.enter_context(make()))
            if daemon:
                up[name] = daemon.pids
        if 'banwatch' in up:
            bench.tried('banwatch', settled, lambda: switches(up['banwatch']), 'wake-ups')
        before = {name: switches(pids) for name, pids in up.items()}
        time.sleep(bench.options.idle)             # this is the measurement
        count = {name: switches(pids) - before[name] for name, pids in up.items()}
    bench.note('wake-ups: context switches of all threads in %g s, scaled: %s' % (
        bench.options.idle, ', '.join('%s %d' % item for item in count.items())))
    rate = {name: n * 60 / bench.options.idle for name, n in count.items()}
    yield result('wake-ups, idle', '/min', rate.get('banwatch'), 'fail2ban', rate.get('fail2ban'), Goal(1, 1, 'value'))
    yield result('wake-ups, idle', '/min', rate.get('banwatch'), 'sshguard', rate.get('sshguard'))


# ---- Firewalls -----------------------------------------------------------------------------
# Rows about bans by the thousand. All is in the kernel when the address whose ban came last is shut
# out: the bans of one write become batches in their order, and a batch is all or nothing, or, with
# ipset, done line by line. To ask so costs 5 microseconds and no process; see Attacker. When the clock
# has stopped, the kernel's own list has to hold all of them.

FEW = 1000
MOST = {'iptables': 2000, 'ipset': 10000, 'nft': 10000}      # firewall -> bans
GOALS = {1000: Goal(0.1, 0.03, 'value'), 2000: Goal(0.2, 0.06, 'value'), 10000: Goal(1, 0.25, 'value')}
LISTS = {'iptables': ('iptables', '-S'), 'ipset': ('ipset', 'save'), 'nft': ('nft', 'list', 'ruleset')}
# ignoreself is off because here the attackers' addresses are this machine's own
AT_ONCE = {'maxretry': 1, 'ignoreself': 'false', 'bantime': '1d'}
GIVE_UP = 60                         # seconds for all of a burst


def each_size(bench):
    """Yields (firewall, how many bans)."""
    for kind, most in MOST.items():
        for count in sorted({min(size, bench.options.bans) for size in (FEW, most)}):
            yield kind, count


def sized(what, count, kind):
    return '%s %s, %s' % (what, format(count, ','), kind)


def listed(kind):
    """All addresses in a firewall's rules or sets."""
    return set(re.findall(r'\b(?:\d{1,3}\.){3}\d{1,3}\b', call(tool(*LISTS[kind]))[1]))


def wiped():
    """Takes out of the kernel what others have left there."""
    own_network()
    for argv in (('iptables', '-F'), ('iptables', '-X'), ('ipset', 'destroy'), ('nft', 'flush', 'ruleset')):
        succeeds(tool(*argv))


@contextlib.contextmanager
def knocking(ip):
    attacker = Attacker(ip)
    try:
        yield attacker
    finally:
        attacker.close()


def once_listed(kind, ips, moment):
    """The moment given if the kernel lists all of these now, else the one when it does."""
    if set(ips) <= listed(kind):
        return moment
    wait_until(lambda: set(ips) <= listed(kind), '%d bans in %s' % (len(ips), kind))
    return time.perf_counter()


def burst(kind, daemon, ips, line=failure):
    """Seconds from the moment that a line for each address is written, in one go, until all are banned."""
    text = ''.join(map(line, ips))
    with knocking(ips[-1]) as last:
        began = time.perf_counter()
        daemon.write(text)
        return once_listed(kind, ips, last.stopped(GIVE_UP)) - began


def lifted(kind, daemon, ips):
    """Seconds from the request to unban all until the kernel has none."""
    with knocking(ips[-1]) as last:
        began = time.perf_counter()
        answer = daemon.ask(do='unban', networks=[], all=True)
        wait_until(last.arrives, 'unban --all', pause=0.0001)
        took = time.perf_counter() - began
    if answer().get('trouble') or set(ips) & listed(kind):
        raise Missing('some are left')
    return took


def waves(bench, kind, count):
    """[(seconds of a burst, seconds until all are free again)] of one daemon; two rows want to know."""
    if (kind, count) not in bench.waves:
        wiped()
        ips = crowd(count)
        with Banwatch(bench.folder, kind, **AT_ONCE) as daemon:
            bench.waves[kind, count] = [(burst(kind, daemon, ips), lifted(kind, daemon, ips))
                                       for _ in range(bench.options.times)]
    return bench.waves[kind, count]


def at_best(kind, ips):
    """Seconds that one program takes which bans all of these in one go."""
    argv, text = {
        'iptables': (('iptables-restore', '--noflush'), '*filter\n:flat - [0:0]\n%sCOMMIT\n' % ''.join(
            '-A flat -s %s/32 -j DROP\n' % ip for ip in ips)),
        'ipset': (('ipset', 'restore'), 'create flat hash:net maxelem 1048576 timeout 0\n' + ''.join(
            'add flat %s timeout 86400\n' % ip for ip in ips)),
        'nft': (('nft', '-f', '-'), 'table inet flat {\nset flat {\ntype ipv4_addr; flags timeout;\n}\n}\n'
                'add element inet flat flat { %s }\n' % ', '.join('%s timeout 1d' % ip for ip in ips)),
    }[kind]
    wiped()
    with tempfile.TemporaryFile('w+') as f:
        f.write(text)
        f.seek(0)
        return call(tool(*argv), stdin=f)[0]


def iptables_note(bench):
    bench.note('iptables here is ' + version('iptables', ['iptables', '-V']))


def peer_burst(kind, ips, make, line):
    wiped()
    with make() as daemon:
        return burst(kind, daemon, ips, line)


# firewall -> sshguard's backend, fail2ban's action
BACKENDS = {'iptables': ('sshg-fw-iptables', 'iptables'), 'ipset': ('sshg-fw-ipset', 'iptables-ipset'),
            'nft': ('sshg-fw-nft-sets', 'nftables')}


def burst_rows(bench):
    bench.note('burst: one line each, in one write, until the kernel has all; ours: best of %d in one daemon; '
               'fail2ban follows a file, backend auto' % bench.options.times)
    iptables_note(bench)
    for kind, count in each_size(bench):
        what, ips = sized('burst of', count, kind), crowd(count)
        found = bench.tried(what, waves, bench, kind, count)
        ours = found and min(took for took, _ in found)
        limit = best(bench.options.times, {'': lambda: bench.tried(what, at_best, kind, ips)})['']
        yield result(what, 's', ours, {'nft': 'one nft -f'}.get(kind, 'one %s restore' % kind), limit, GOALS.get(count))
        if count <= FEW:
            backend, action = BACKENDS[kind]
            for who, make, line in ((backend, lambda: Sshguard(bench.folder, backend), sshd_failure),
                                    ('fail2ban ' + action, lambda: Fail2ban(bench.folder, action), failure)):
                yield result(what, 's', ours, who, bench.tried(who, peer_burst, kind, ips, make, line))
    bench.tried('bursts', wiped)


def unban_rows(bench):
    bench.note('unban: from the request of `unban --all` until the kernel has none, without the start of the command')
    for kind, count in each_size(bench):
        found = bench.tried(sized('unban', count, kind), waves, bench, kind, count)
        yield result(sized('unban', count, kind), 's', found and min(took for _, took in found),
                     'the burst', found and min(took for took, _ in found), GOALS.get(count))


STARTS = {signal.SIGTERM: 'restore', signal.SIGKILL: 'restore, killed,'}


def restarts(bench, kind):
    """{(signal, bans): [seconds of each start after that signal until a newcomer is shut out]}; the sizes take turns."""
    daemons, found, newcomers = {}, collections.defaultdict(list), itertools.count(2)
    with contextlib.ExitStack() as stack:
        for count in [0] + [count for each, count in each_size(bench) if each == kind]:
            wiped()
            daemon = daemons[count] = stack.enter_context(Banwatch(bench.folder, kind, **AT_ONCE))
            if count > 1:
                burst(kind, daemon, crowd(count - 1))
            end([daemon.process])
        for _ in range(bench.options.times):
            for count, daemon in daemons.items():
                for number in STARTS:
                    ip = '198.51.100.%d' % next(newcomers)
                    with knocking(ip) as newcomer:
                        began = daemon.again(number, failure(ip))
                        moment = newcomer.stopped(GIVE_UP)
                        found[number, count].append(once_listed(kind, crowd(count - 1) + [ip], moment) - began)
                    # for he is not counted; and what has been answered is remembered by one who is killed
                    daemon.ask(do='unban', networks=[ip])()
                end([daemon.process])
    return found


def restore_rows(bench):
    bench.note('restore: until a newcomer is shut out whose line waits in the FIFO, less that of a start without bans, '
               'each the best of %d in turn; killed: by SIGKILL, so the kernel has the bans still' % bench.options.times)
    found = {kind: bench.tried('restore, ' + kind, restarts, bench, kind) for kind in MOST}
    for number, name in STARTS.items():
        for kind, count in each_size(bench):
            full, none = (found[kind] and min(found[kind][number, n]) for n in (count, 0))
            yield result(sized(name, count, kind), 's', full and full - none, 'start with none', none, GOALS.get(count))


@contextlib.contextmanager
def inside(bench, kind, *more, wings=None):
    """A Daemon of banwatch that runs in this process, and a function that lets it work until it is idle. It has these
    wings, or all."""
    banwatch, folder = engine(), tempfile.mkdtemp(dir=bench.folder)
    config, problems = banwatch.read_config('\n'.join(
        ['[banwatch]', 'source = fifo:%s/log' % folder, 'firewall = ' + kind, 'runtime = %s/run' % folder,
         'state = %s/state' % folder, *more]), 'bench')
    daemon = banwatch.Daemon(banwatch.Machine(), config, wings=wings)
    daemon.machine.log = lambda text: None
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)}
    pair = banwatch.listen_to_signals(daemon.loop, daemon.signalled)

    def work(done=lambda: all(each.idle() for each in daemon.wall.syncs + daemon.wall.old)):
        until = time.monotonic() + PATIENCE
        while not done():
            daemon.loop.due()
            daemon.settle()
            daemon.loop.wait(0 if done() else 0.1)
            if time.monotonic() > until:
                raise Missing('%s: not idle after %d s' % (kind, PATIENCE))
    try:
        daemon.start()
        work()
        yield daemon, work
        daemon.stop()
        work(lambda: daemon.stopping)
    finally:
        banwatch.deafen(daemon.loop, pair)
        for number, handler in before.items():
            signal.signal(number, handler)


def used():
    """Seconds so far: (processor time of this process, of its children, wall)."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time(), children.ru_utime + children.ru_stime, time.perf_counter()


def minutes(bench, kind, count):
    """Milliseconds of (own processor time, that of children, wall) for what the daemon does once a minute, at best."""
    wiped()
    found = []
    with inside(bench, kind) as (daemon, work):
        jail = daemon.judge.jails.by_name['sshd']
        for ip in crowd(count, '203.0.113.1'):
            daemon.ban(jail, ip, 86400)
        work()
        for _ in range(bench.options.times):
            before = used()
            daemon.minute()
            work()
            found.append([1000 * (now - then) for now, then in zip(used(), before)])
    return [min(each) for each in zip(*found)]


def check_rows(bench):
    bench.note('check: all that the daemon does once a minute, above all its look at what the kernel has; run inside the '
               'bench, best of %d' % bench.options.times)
    for kind, most in MOST.items():
        count = min(most, bench.options.bans)
        full, none = (bench.tried('check, ' + kind, minutes, bench, kind, n) or (None,) * 3 for n in (count, 0))
        for n, name in enumerate(('own CPU', "children's CPU", 'wall')):
            yield result('%s, %s' % (sized('check of', count, kind), name), 'ms', full[n], 'with none', none[n])


def crowded_rows(bench):
    trials, few = 4 * bench.options.times, min(FEW, bench.options.bans)
    bench.note('line -> dropped, by firewall: %d addresses, one line each, into a FIFO' % trials)

    def measure(kind, count):
        wiped()
        daemon = Banwatch(bench.folder, kind, **AT_ONCE)
        crowded = crowd(count, '198.51.100.254')
        return delays(daemon, failure, trials, 0.4, lambda: count and burst(kind, daemon, crowded))
    for kind in MOST:
        full, none = (bench.tried('crowded, ' + kind, measure, kind, count) for count in (few, 0))
        for name, pick, goal in (('median', statistics.median, Goal(20, 5, 'value')), ('worst', max, None)):
            yield result('line -> dropped, %s, %s banned, %s' % (kind, format(few, ','), name), 'ms',
                         full and pick(full), 'none banned', none and pick(none), goal)


def microseconds_a_line(bench, blocks, other):
    """What one line of these blocks costs the daemon, at best; does its summary tell of all other lines?"""
    with inside(bench, 'none', '[report]', 'other = ' + other) as (daemon, _):
        (source,) = daemon.sources.values()

        def once():
            before = time.process_time()
            for block in blocks:
                daemon.consume(source, block, 0)
            return (time.process_time() - before) / sum(block.count(b'\n') for block in blocks) * 1e6
        return min(once() for _ in range(bench.options.times))


def report_rows(bench):
    bench.note('summary: processor time of the daemon for a line, with the lines that nothing explains and without them '
               '(`other = no`); run inside the bench, best of %d' % bench.options.times)
    for kind in ('attack', 'plain'):
        with open(bench.cut(kind, min(bench.options.lines, 20000)), 'rb') as f:
            lines = f.readlines()
        for each, how in ((1000, '1,000 at a time'), (1, 'one at a time')):
            blocks = [b''.join(lines[at:at + each]) for at in range(0, len(lines), each)]
            took = {other: bench.tried('summary', microseconds_a_line, bench, blocks, other) for other in ('yes', 'no')}
            yield result('summary, %s log, %s' % (kind, how), 'us', None not in took.values() and took['yes'] - took['no'] or None,
                         'all the rest', took['no'], Goal(5, 3, 'value'))
    with Banwatch(bench.folder) as daemon:
        walls = bench.tried('report', median_wall, {'report': daemon.argv('report'), 'pass': [sys.executable, '-c', 'pass']}) or {}
    yield result('report, wall', 'ms', walls.get('report'), 'python3 -c pass', walls.get('pass'))


def in_turn(bench, functions):
    """{name: results of its runs, None if one fails}: they take turns, each second time the other way round."""
    found = {name: [] for name in functions}
    for n in range(bench.options.times):
        for name in list(functions)[::-1 if n % 2 else 1]:
            if None not in found[name]:
                found[name].append(bench.tried(name, functions[name]))
    return {name: None if None in values else values for name, values in found.items()}


def pair(what, unit, ours, peer, theirs, goal=None):
    """The Result of runs in turn: medians, and that of the ratios."""
    return result(what, unit, ours and statistics.median(ours), peer, theirs and statistics.median(theirs), goal,
                  paired=statistics.median(a / b for a, b in zip(ours, theirs)) if ours and theirs and all(theirs) else None)


def spent(function, *args):
    """(processor seconds, system included, of all programs that it runs; wall seconds)."""
    before = used()
    function(*args)
    after = used()
    return after[1] - before[1], after[2] - before[2]


ENDLESS = 60                         # seconds after which a program is not waited for


def cpu_rows(bench):
    for kind in ('attack', 'plain'):
        yield from cpu_row(bench, '%s log' % kind, bench.log(kind), bench.options.lines, Goal(1, 0.77, 'x'))


def varied_rows(bench):
    path, lines = bench.log('varied'), bench.options.lines
    bench.note('varied log: the attack log, with pids, ports and %d %% of the addresses new each time' % (100 * FRESH))
    yield from cpu_row(bench, 'varied log', path, lines, None)
    replays = replayed(bench)
    took = in_turn(bench, {'varied': lambda: spent(replays, path), 'repeated': lambda: spent(replays, bench.log('attack'))})
    ours, theirs = (took[name] and [1e6 * cpu / lines for cpu, _ in took[name]] for name in took)
    yield pair('cpu, varied log', 'us', ours, 'attack log', theirs, Goal(1.5, 1.2, 'x'))


def address_rows(bench):
    addresses, path = min(TRACKED, bench.options.lines), bench.path('crowd log')
    crowd_log(path, addresses, time.time())
    bench.note('%s addresses: one failed login each, ten a second; whoever takes more than %d s is not waited for' % (
        format(addresses, ','), ENDLESS))
    yield from cpu_row(bench, '%s addresses' % format(addresses, ','), path, addresses, Goal(0.1, 0.05, 'x'))


def replayed(bench):
    """A function that lets an installed banwatch replay a log."""
    program, conf = in_place(bench), bench.conf()
    return lambda path: call(program + ['-c', conf, 'replay', '--json', path], ENDLESS)


def cpu_row(bench, what, path, lines, goal):
    """Processor time of an installed banwatch beside that of all of sshguard's processes."""
    with open(path, 'rb') as f, open(bench.path('one line'), 'wb') as out:
        out.write(f.readline())
    before, replays = offline(), replayed(bench)

    def pipeline(path):
        return timed_pipeline(sshguard_argvs(before=before), path, ENDLESS)
    took, start = (in_turn(bench, {'banwatch replay': lambda: spent(replays, log), 'sshguard': lambda: spent(pipeline, log)})
                   for log in (path, bench.path('one line')))
    bench.note('cpu: user and system, banwatch as installed, sshguard all three processes together, both with their start '
               '(as wall); medians of %d runs in turn, ratio: median of those of each two' % bench.options.times)

    each = {name: runs and [1e6 / lines * cpu for cpu, _ in runs] for name, runs in took.items()}
    least = {name: runs and 1e6 / lines * statistics.median(cpu for cpu, _ in runs) for name, runs in start.items()}
    walls = {name: runs and [wall for _, wall in runs] for name, runs in took.items()}
    later = {name: runs and least[name] and [cpu - least[name] for cpu in runs] for name, runs in each.items()}
    for text, unit, found, wanted in (('cpu, %s' % what, 'us', each, goal), ('  less the start', 'us', later, None),
                                      ('  wall', 's', walls, None)):
        yield pair(text, unit, found['banwatch replay'], 'sshguard, 3 processes', found['sshguard'], wanted)


LIVE_LINES = 6000                    # of a log are enough
LIVE_BLOCKS = (1, Goal(25, 15, 'value')), (20, None), (300, Goal(5, 4, 'value'))


def live(bench, path, size, wings=None, warm=0.1):
    """Microseconds of processor time that a daemon needs for a line as it comes in, so many at once, when it has been
    running for a while: the first tenth is not measured."""
    with open(path, 'rb') as f:
        lines = list(itertools.islice(f, LIVE_LINES))
    first = int(len(lines) * warm)
    blocks = [b''.join(lines[at:at + size]) for at in range(first, len(lines), size)]
    with inside(bench, 'none', wings=wings) as (daemon, _):
        (source,) = daemon.sources.values()
        if first:
            daemon.consume(source, b''.join(lines[:first]), 0)
        before = time.process_time()
        for block in blocks:
            daemon.consume(source, block, 0)
        return (time.process_time() - before) / max(1, len(lines) - first) * 1e6


def live_rows(bench):
    bench.note('live: processor time of a daemon with all its wings for a line, so many a block, and with the guard alone; run '
               'inside the bench, medians of %d runs in turn, %s lines each' % (
                   bench.options.times, format(min(LIVE_LINES, bench.options.lines), ',')))
    for kind in ('attack', 'varied', 'plain'):
        path = bench.log(kind)
        for size, goal in LIVE_BLOCKS:
            took = in_turn(bench, {'all wings': lambda: live(bench, path, size),
                                   'the guard': lambda: live(bench, path, size, [])})
            yield pair('live, %s log, %s' % (kind, '%d lines a block' % size if size > 1 else 'line by line'), 'us',
                       took['all wings'], 'the guard alone', took['the guard'], goal)


COUNTED_LINES = 1200                 # callgrind makes them fifty times as slow
COUNTED = ('import sys; sys.path.insert(0, %r); import bench; options = bench.arguments(["live"]); bench.LIVE_LINES = %d; '
           'bench.live(bench.Bench(%r, options), %r, %d, %r, 0)')


def counted(bench, path, size, wings, lines):
    """Millions of instructions that a daemon takes to start, to hear that many lines, and to stop."""
    return instructions([sys.executable, '-c', COUNTED % (os.path.dirname(os.path.abspath(__file__)), lines, bench.folder,
                                                          path, size, wings)])


def thousands_a_line(count, few, many):
    """Thousands of instructions for each line that one run has more than the other."""
    before = count(few)
    return 1000 * (count(many) - before) / (many - few)


def instruction_rows(bench):
    many = min(bench.options.lines, COUNTED_LINES)
    few = many // 4
    bench.note('instructions for a line, as callgrind counts them: those of %d lines less those of the first %d' % (many, few))
    path, replay = bench.log('attack'), in_place(bench) + ['-c', bench.conf(), 'replay', '--json']
    yield result('instructions, replay', 'k', bench.tried('instructions', thousands_a_line, lambda lines: instructions(
        replay + [bench.cut('attack', lines)]), few, many))
    for size, _ in LIVE_BLOCKS[::2]:
        each, guard = (bench.tried('instructions', thousands_a_line, lambda lines: counted(bench, path, size, wings, lines),
                                   few, many) for wings in (None, []))
        yield result('instructions, %s' % ('%d lines a block' % size if size > 1 else 'line by line'), 'k', each,
                     'the guard alone', guard)


class Link:
    """A router behind a cable of its own to a client; it bans `ips`, and not the client."""

    def __init__(self, client, router, n, kind, ips):
        self.client = client
        self.address = '198.51.100.%d' % (2 * n + 1)
        client.script('ip link add r{0} type veth peer name eth0 netns {1}\n'
                      'ip address add 198.51.100.{2}/31 dev r{0}\n'
                      # one packet is one frame, as on a wire, and not up to 45 of them at once
                      'ip link set r{0} gso_max_segs 1\nip link set r{0} up\n'.format(n, router.holder.pid, 2 * n))
        router.script('ip address add %s/31 dev eth0; ip link set eth0 up' % self.address)
        for argv, text in commands(kind, ips):
            done = router.run(argv, input=text)
            if done.returncode:
                raise Missing('%s: %s' % (argv[0], done.stderr.strip()))
        self.scope = router.listen(self.address, 9)
        with client.entered():
            self.flowing = self.connected()

    def connected(self):
        there = socket.create_connection((self.address, 9), 5)
        return there, self.scope.accept()[0]

    def connects(self, times=50):
        """TCP connections a second, one after the other, both ends in this process: nobody waits to be scheduled."""
        with self.client.entered():
            began = time.perf_counter()
            for _ in range(times):
                there, here = self.connected()
                # ended by a reset: else each leaves its port in TIME_WAIT
                there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
                there.close()
                here.close()
            return times / (time.perf_counter() - began)

    def flow(self, size=1 << 20, piece=bytes(1 << 15)):
        """MB a second through a connection that is there already: piece by piece, each read before the next is sent."""
        there, here = self.flowing
        began = time.perf_counter()
        for _ in range(size // len(piece)):
            there.sendall(piece)
            here.recv(len(piece), socket.MSG_WAITALL)
        return size / 1e6 / (time.perf_counter() - began)


def commands(kind, ips):
    """(argv, input) of programs that ban these on an empty machine; `flat`: as everybody does it with iptables."""
    if kind == 'flat':
        return [(['iptables-restore', '--noflush'], '*filter\n:flat - [0:0]\n-I INPUT -j flat\n%sCOMMIT\n' % ''.join(
            '-A flat -s %s/32 -j DROP\n' % ip for ip in ips))]
    banwatch = engine()
    jails = {'sshd': banwatch.Jail('sshd', banwatch.Config().options('sshd'))}
    firewall = banwatch.make_firewalls(kind, ['INPUT', 'FORWARD'], jails)[0]
    wanted = {(ip, firewall.scopes['sshd']): 86400 for ip in ips}
    return [(command.argv, command.stdin) for command in firewall.rebuild(['', ''], wanted, 0)]


FLAT = Goal(0.9, 0.97, 'x')          # as fast as without a ban


def speeds(bench):
    """{(firewall, bans): (connections a second, MB a second)}, at best; a link for each, which take turns."""
    wiped()
    engine()                                       # lets the module find banwatch
    from network import Namespace
    with contextlib.ExitStack() as stack:
        def host():
            made = Namespace()
            stack.callback(made.close)
            return made
        client, links, found = host(), {}, collections.defaultdict(list)
        for key in [(kind, 0) for kind in MOST] + list(each_size(bench)) + [
                ('flat', count) for kind, count in each_size(bench) if kind == 'iptables']:
            links[key] = Link(client, host(), len(links), key[0], crowd(key[1], '203.0.113.1'))
            for each in (links[key].scope,) + links[key].flowing:
                stack.enter_context(each)
        # short and often: on a busy machine one of them stays undisturbed
        for _ in range(10 * bench.options.times):
            for key, link in links.items():
                found[key].append((link.connects(), link.flow()))
    return {key: [max(values) for values in zip(*each)] for key, each in found.items()}


def packet_rows(bench):
    bench.note('packets: of a client who is not banned, over a link of its own for each firewall and size; best of %d in '
               'turn; both ends in one process; flat chain: a rule for each ban, one after the other' % (
                   10 * bench.options.times))
    iptables_note(bench)
    found = bench.tried('packets', speeds, bench) or {}
    for n, (what, unit) in enumerate((('connects at', '/s'), ('one flow at', 'MB/s'))):
        for kind, count in each_size(bench):
            ours, none, flat = (found.get(key, (None, None))[n] for key in ((kind, count), (kind, 0), ('flat', count)))
            name = sized(what, count, kind)
            yield result(name, unit, ours, 'none banned', none, None if kind == 'iptables' else FLAT)
            if kind == 'iptables':
                yield result(name, unit, ours, 'flat chain', flat)


# ---- Traps and the gate ---------------------------------------------------------------------

TRAP_GUESSES, GATE_ADDRESSES = 300, 10000


def trapped(bench):
    """(guesses a second, median ms from a guess to its ban on record, MB that 32 clients take)."""
    own_network()
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    daemon = Banwatch(bench.folder, ignoreself='false', ignoreip='192.0.2.1')
    with open(daemon.conf, 'a') as f:
        f.write('[trap]\nsource = trap:http:127.0.0.1:%d\n' % port)
    request = b'GET / HTTP/1.0\r\nAuthorization: Basic cm9vdDp4\r\n\r\n'

    def knock(n):
        sock = socket.create_connection(('127.0.0.1', port), 5, ('127.1.%d.%d' % (n // 200, n % 200 + 1), 0))
        sock.sendall(request)
        return sock
    with daemon:
        began = time.perf_counter()
        for n in range(TRAP_GUESSES):
            with knock(n) as sock:
                while sock.recv(4096):
                    pass
        speed, waits = TRAP_GUESSES / (time.perf_counter() - began), []
        for n in range(1000, 1020):
            at = time.perf_counter()
            with knock(n):
                while not any(row['ip'] == '127.1.%d.%d' % (n // 200, n % 200 + 1) for row in daemon.ask(do='banned')()['banned']):
                    pass
            waits.append(time.perf_counter() - at)
        before = rss(daemon.pids)
        socks = [socket.create_connection(('127.0.0.1', port), 5, ('127.2.0.%d' % (n + 1), 0)) for n in range(32)]
        daemon.status()
        grown = rss(daemon.pids) - before
        for sock in socks:
            sock.close()
    return speed, 1000 * statistics.median(waits), grown


def trap_rows(bench):
    speed, wait, grown = bench.tried('traps', trapped, bench) or (None, None, None)
    bench.note('traps: %d guesses by HTTP, one after the other; until a ban is on record, asked for over the socket' % TRAP_GUESSES)
    yield result('trap, guesses', '/s', speed)
    yield result('trap, guess to ban', 'ms', wait, goal=Goal(20, 5, 'value'))
    yield result('trap, 32 clients', 'MB', grown, goal=Goal(2, 1, 'value'))


def calls(function, ips):
    """Calls a second."""
    began = time.perf_counter()
    for ip in ips:
        function(ip)
    return len(ips) / (time.perf_counter() - began)


def gate_rows(bench):
    banwatch = engine()
    ips = ['10.%d.%d.%d' % (n >> 16, n >> 8 & 255, n & 255) for n in range(GATE_ADDRESSES)] * 5
    counts = {}

    def plain(ip):
        counts[ip] = counts.get(ip, 0) + 1
    yield result('gate, 10,000 addresses', '/s', calls(banwatch.gate(maxretry=9), ips), 'a plain dict', calls(plain, ips))


Row = collections.namedtuple('Row', 'function help')
ROWS = {
    'replay': Row(replay_rows, 'lines a second through `replay`, on an attack log and on a plain log'),
    'cpu': Row(cpu_rows, "processor time of `replay` beside sshguard's, on an attack log and on a plain log"),
    'varied': Row(varied_rows, 'the same on an attack log in which pids, ports and most addresses are ever new'),
    'addresses': Row(address_rows, 'the same for failed logins of 10,000 addresses'),
    'live': Row(live_rows, 'what a line costs the daemon, by lines a block, and what it costs the guard alone'),
    'instr': Row(instruction_rows, 'the same and of `replay` in instructions'),
    'jails': Row(jail_rows, 'what ten more jails cost that have nothing to do'),
    'filters': Row(filter_rows, "fail2ban's own sshd.conf, read by banwatch and by fail2ban-regex"),
    'latency': Row(latency_rows, 'from a line in the FIFO or file to the first packet that is dropped'),
    'memory': Row(memory_rows, 'resident memory, idle and busy, over a bare interpreter'),
    'many': Row(many_rows, '10,000 addresses with one failure each, against one address'),
    'status': Row(status_rows, 'how long `status` takes, against `python3 -c pass`'),
    'starts': Row(start_rows, 'what commands and the daemon take to start, from source and installed: time and instructions'),
    'flood': Row(flood_rows, 'time and memory for failures of 200,000 addresses, against fewer'),
    'flash': Row(flash_rows, 'what a thousand bans write to flash, in an hour and in a day'),
    'wakeups': Row(wakeup_rows, 'context switches while nothing happens'),
    'bursts': Row(burst_rows, 'a thousand bans and more in one write, until the kernel has all; by firewall'),
    'restore': Row(restore_rows, 'the same bans after a restart, also of a daemon that was killed'),
    'unban': Row(unban_rows, 'the same bans lifted by `unban --all`, until the kernel has none'),
    'check': Row(check_rows, 'what the daemon does once a minute with so many bans'),
    'report': Row(report_rows, 'what the daily summary costs the daemon a line, and how long `report` takes'),
    'crowded': Row(crowded_rows, 'as `latency`, for each firewall, with 1,000 banned already and with none'),
    'traps': Row(trap_rows, 'guesses at a trap: how many a second, how long until the ban, memory'),
    'gate': Row(gate_rows, 'connections that the gate judges, against counting them in a dict'),
    'packets': Row(packet_rows, 'what bans cost the packets of a client who is not banned'),
}


# ---- Hostile lines -------------------------------------------------------------------------
# The line that costs a filter the most, sought as an attacker would who knows our regexes: texts that
# nearly match, with a piece in them over and over, up to the longest line there is; what was slow is
# changed a little and tried again. Every line is one anybody could write: all of it is free.

HOSTILE_REACH = 5                    # ms a line
KEPT = 8                             # the slowest lines, which are changed further
TRUST = 3                            # the least of so many runs is what a line takes
NEVER = '^(?!)'                      # a regex that matches nothing

# head: the header and the tag; start, end: texts around the piece(s), which are mixed or one after the other
Hostile = collections.namedtuple('Hostile', 'head start fills mixed end bare')
# What was found: `regex` alone costs `part` ms; the line begins like `line`, then `fills` go on and on
Worst = collections.namedtuple('Worst', 'filter ms tries part regex line fills end bare')

HEADERS = (b'Nov 20 13:01:45 gate ', b'Fri Nov 20 13:01:45 2026 authpriv.warn ', b'2026-11-20T13:01:45+01:00 gate ',
           b'<38>Nov 20 13:01:45 gate ', b'Nov 20 13:01:45 ', b'1795179705.1 ', b'[2026-11-20 13:01:45] ', b'')
FILLERS = [bytes([c]) for c in b' a1.:,;"\'()[]<>{}=/\\-@_%\t\xff'] + [
    b'a ', b'a:', b'1.', b'a=', b': ', b', ', b'a.a', b'a.b ', b'[1]', b'(a) ', b'" ', b"' ", b' from ', b' for ',
    b' a from 192.0.2.7', b' rhost=', b'rhost=1', b'192.0.2.7 ', b'2001:db8::7 ', b'\\303', b'\xc3\xa9',
    b'message repeated 5 times: [ ', b'Nov 20 13:01:45 ']
HOSTS = '(?:192\\.0\\.2\\.7|2001:db8::7|::ffff:192\\.0\\.2\\.7|host\\.example\\.net)'


def engine():
    """The module banwatch, which here runs inside of us."""
    sys.dont_write_bytecode = True
    sys.path.insert(0, os.path.dirname(BANWATCH))
    import banwatch
    return banwatch


def member(among, c):
    """Is the character among those that a class of a parsed regex names?"""
    found, kinds = False, {'DIGIT': c.isdigit(), 'SPACE': c.isspace(), 'WORD': c.isalnum() or c == '_'}
    for op, arg in among:
        name = str(op)
        found |= (name == 'LITERAL' and arg == ord(c) or name == 'RANGE' and arg[0] <= ord(c) <= arg[1]
                  or name == 'CATEGORY' and kinds[str(arg).split('_')[-1]] == ('_NOT_' not in str(arg)))
    return found != any(str(op) == 'NEGATE' for op, _ in among)


def simplified(parts):
    """Of a parsed regex the parts that make a text: a text, a list of characters or lists of parts one
    of which stands there, or (least, most, parts). What it looks at ahead and behind is left out."""
    found = []
    for op, arg in parts:
        name = str(op)
        if name == 'LITERAL':
            found.append(chr(arg))
        elif name in ('ANY', 'IN', 'NOT_LITERAL'):
            among = arg if name == 'IN' else [('NEGATE', None), ('LITERAL', 10 if name == 'ANY' else arg)]
            found.append([c for c in map(chr, range(32, 127)) if member(among, c)] or ['\t'])
        elif name.endswith('_REPEAT'):
            found.append((arg[0], arg[1], simplified(arg[2])))
        elif name in ('SUBPATTERN', 'ATOMIC_GROUP'):
            found += simplified(arg[-1] if name == 'SUBPATTERN' else arg)
        elif name == 'BRANCH':
            found.append([simplified(way) for way in arg[1]])
    return found


def grown(parts, rng, repeats):
    """A text of these parts; what may be repeated in it is added to `repeats`."""
    text = ''
    for part in parts:
        if isinstance(part, str):
            text += part
        elif isinstance(part, list):
            text += grown(rng.choice(part), rng, repeats)
        else:
            least, most, parts = part
            for _ in range(max(least, min(most, rng.randint(0, 2)))):
                text += grown(parts, rng, repeats)
            if most > 1:
                repeats.append(grown(parts, rng, []))
    return text


def samples(name):
    """[(header and tag, message)] of the sample lines of a filter."""
    banwatch, found = engine(), []
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'corpora')
    for file in os.listdir(folder) if os.path.isdir(folder) else []:
        if file.split('.')[0] == name:
            with open(os.path.join(folder, file), 'rb') as f:
                raws = [line.split(b'\t', 3)[3] for line in f.read().split(b'\n') if line.count(b'\t') > 2 and line[:1] != b'#']
            found += [(raw[:len(raw) - len(message)], message) for raw, message in
                      ((raw, banwatch.read_line(raw).message) for raw in raws) if raw.endswith(message)]
    return found


class Texts:
    """What lines against one filter are made of. `regexes` are as in a filter's failregex."""

    def __init__(self, banwatch, rng, regexes, before='', program='', known=()):
        def plain(regex):
            return simplified(banwatch.parsed(re.sub('</?F-[A-Z]+>', lambda m: ')' if m.group()[1] == '/' else '(?:',
                                                     re.sub('<(?:HOST|ADDR)>', lambda m: HOSTS, regex))))
        self.rng = rng
        self.regexes, self.program = [plain(regex) for regex in regexes], plain(program)
        self.before = plain(before)
        self.known = known           # (header and tag, message) of sample lines

    def head(self):
        if self.known and self.rng.random() < 0.2:
            return self.rng.choice(self.known)[0]
        tag = grown(self.program, self.rng, []).encode() + self.rng.choice((b': ', b'[7]: '))
        return self.rng.choice(HEADERS) + self.rng.choice((tag, tag, tag, b''))

    def message(self, repeats):
        if self.known and self.rng.random() < 0.2:
            return self.rng.choice(self.known)[1]
        return (grown(self.before, self.rng, repeats) + grown(self.rng.choice(self.regexes), self.rng, repeats)).encode(
            'utf-8', 'replace')

    def piece(self):
        """Something to be repeated."""
        repeats = []
        message = self.message(repeats) or b'a'
        way = self.rng.randrange(6)
        if way == 0:
            return self.rng.choice(FILLERS)
        if way == 1 and any(repeats):
            return self.rng.choice([piece for piece in repeats if piece]).encode('utf-8', 'replace')
        if way == 2:
            return message
        if way == 3:
            return self.head() + message[:self.rng.randrange(len(message) + 1)] or b'a'
        at = self.rng.randrange(len(message))
        words = message.split(b' ')
        return (message[at:at + self.rng.randint(1, 12)] if way == 4 else
                b' ' * self.rng.randint(0, 1) + self.rng.choice(words) + b' ' * self.rng.randint(0, 1)) or b' '

    def start(self):
        message = self.message([])
        return message[:self.rng.choice((0, len(message), self.rng.randint(0, len(message))))]

    def fills(self):
        return tuple(self.piece() for _ in range(self.rng.choice((1, 1, 2))))

    def end(self):
        message = self.message([])
        return self.rng.choice((b'', message[self.rng.randint(0, len(message)):], self.rng.choice(FILLERS)))

    def mixed(self):
        return self.rng.random() < 0.5

    bare = mixed

    def line(self):
        return Hostile(*(getattr(self, field)() for field in Hostile._fields))

    def changed(self, line):
        """A line that differs from this one in one or two things, perhaps by a byte only."""
        for _ in range(self.rng.choice((1, 1, 2))):
            field = self.rng.choice(Hostile._fields)
            value = getattr(line, field)
            if field in ('start', 'end') and value and self.rng.random() < 0.6:
                value = self.nudged(value)
            elif field == 'fills' and self.rng.random() < 0.6:
                n = self.rng.randrange(len(value))
                value = value[:n] + (self.nudged(value[n]) or b' ',) + value[n + 1:]
            else:
                value = getattr(self, field)()
            line = line._replace(**{field: value})
        return line

    def nudged(self, text):
        at, piece = self.rng.randrange(len(text)), self.rng.choice(FILLERS + [self.piece()])
        return self.rng.choice((text[:at] + text[at + 1:], text[:at] + piece + text[at:], text[:at], text[at:], text + piece))


def hostile_block(line, longest):
    """The bytes of a Hostile, `longest` of them at most, with the newline."""
    room = max(0, longest - len(line.head + line.start + line.end))
    if line.mixed:
        body = b''.join(line.fills) * (room // len(b''.join(line.fills)) + 1)
    else:
        share = -(-room // len(line.fills))            # rounded up
        body = b''.join((fill * (share // len(fill) + 1))[:share] for fill in line.fills)
    return (line.head + line.start + body[:room] + line.end)[:longest].replace(b'\n', b' ') + b'\n'


def slowest(texts, cost, seconds, known=(), clock=time.monotonic):
    """([(cost, Hostile)], how many were tried): the KEPT ones that cost most, of all that time allows."""
    until, tries = clock() + seconds, 0
    found = [(cost(line), line) for line in known]
    while not tries or clock() < until:
        tries += 1
        again = len(found) == KEPT and texts.rng.random() < 0.7
        line = texts.changed(texts.rng.choice(found)[1]) if again else texts.line()
        took = cost(line)
        if len(found) < KEPT or took > found[-1][0]:
            took = min([took] + [cost(line) for _ in range(TRUST - 1)])
            found = sorted(found + [(took, line)], key=lambda pair: pair[0], reverse=True)[:KEPT]
    return found, tries


def simpler(line, rng, cost, least, seconds, clock=time.monotonic):
    """A Hostile with less around its pieces that costs `least` at least."""
    until = clock() + seconds
    while clock() < until:
        field = rng.choice(('start', 'end'))
        text = getattr(line, field)
        at = rng.randint(0, len(text))
        less = line._replace(**{field: text[:at] + text[rng.randint(at, len(text)):]})
        if min(cost(less) for _ in range(TRUST)) >= least:
            line = less
    return line


def strictest(banwatch, name):
    """A built-in filter's name with the mode that has the most regexes; None if it has none."""
    modes = re.findall(r'^m(?:ode|dre)-(\w+) *=', banwatch.FILTERS[name], re.M)
    made = [(spec, banwatch.load_filter(spec)) for spec in
            ['%s[mode=%s]' % (name, mode) for mode in modes] or [name] if not name.startswith('common')]
    made = [(spec, filter) for spec, filter in made if isinstance(filter, banwatch.Filter)]
    return max(made, key=lambda pair: len(pair[1].definition.get('failregex')), default=(None, None))[0]


def stopwatch(banwatch, filter, longest):
    """A function that tells how many ms the filter needs for a Hostile of `longest` bytes."""
    guard, moment = banwatch.Machine().guard, banwatch.own_time

    def cost(line):
        block = banwatch.tidy(hostile_block(line, longest))
        began = time.perf_counter()
        try:
            guard(lambda: collections.deque(filter.scan(block, moment, line.bare), 0))
        except banwatch.Runaway:
            pass                     # aborted: it takes at least so long
        return 1000 * (time.perf_counter() - began)
    return cost


def hostile(spec, seconds, seed=1):
    """The Worst of a filter of ours."""
    banwatch, rng = engine(), random.Random(seed)
    filter = banwatch.load_filter(spec)
    get = filter.definition.get
    regexes = banwatch.text_rows(get('failregex'))
    texts = Texts(banwatch, rng, regexes, get('prefregex').partition('<F-CONTENT>')[0], get('program'),
                  samples(spec.split('[')[0]))
    # what grows with the square of a line's length can be told from shorter ones, many more of them
    short, shorter = slowest(texts, stopwatch(banwatch, filter, banwatch.PLAIN_LINE // 4), 0.5 * seconds)
    cost = stopwatch(banwatch, filter, banwatch.PLAIN_LINE)
    found, tries = slowest(texts, cost, 0.4 * seconds, [line for _, line in short])
    ms, line = found[0]
    line = simpler(line, rng, cost, 0.95 * ms, 0.1 * seconds)

    def best_of(filter):
        cost = stopwatch(banwatch, filter, banwatch.PLAIN_LINE)
        once = cost(line)
        return once if once > 10 * HOSTILE_REACH else min([once] + [cost(line) for _ in range(2 * TRUST)])
    # with a second one, for which no text is needed: else a line might not be looked at at all
    alone = [(best_of(banwatch.load_filter(spec, failregex=(regex, NEVER))), regex) for regex in regexes]
    nothing = best_of(banwatch.load_filter(spec, failregex=(NEVER,)))
    part, regex = max(alone)
    if nothing > 0.8 * part:
        part, regex = nothing, '(what stands before the message)'
    raw = hostile_block(line, banwatch.PLAIN_LINE)
    return Worst(spec, best_of(filter), shorter + tries, part, regex, raw, line.fills, line.end, line.bare)


def hostile_lines(found):
    """Lines of the table of what hostile lines cost."""
    yield '%-22s %9s  %4s  %6s  %9s  %s' % ('filter', 'worst', '', 'tries', 'alone', 'its most expensive regex')
    for worst in sorted(found, key=lambda worst: worst.ms, reverse=True):
        for text in ('%-22s %6.2f ms  %4s  %6d  %6.2f ms  %s' % (
                worst.filter, worst.ms, 'over' if worst.ms > HOSTILE_REACH else '', worst.tries, worst.part, worst.regex),
                '    %s%s' % ('bare: ' if worst.bare else '', repr(worst.line)[1:]),
                '    of %s%s' % (' and '.join(repr(fill)[1:] for fill in worst.fills),
                                 ', ending in %s' % repr(worst.end)[1:] if worst.end else '')):
            yield text[:WIDTH]


def main_hostile(options):
    banwatch = engine()
    specs = [spec for spec in (strictest(banwatch, name) for name in options.rows or banwatch.FILTERS) if spec]
    found = []
    for spec in specs:
        print('measuring: %s' % spec, file=sys.stderr)
        found.append(hostile(spec, options.seconds / len(specs)))
    if options.json:
        print(json.dumps({'machine': machine(), 'reach': HOSTILE_REACH, 'hostile': [
            dict(worst._asdict(), line=worst.line.decode('latin-1'), end=worst.end.decode('latin-1'),
                 fills=[fill.decode('latin-1') for fill in worst.fills]) for worst in found]}))
    else:
        print('\n'.join(itertools.chain(hostile_lines(found), [''], wrapped(
            '- worst: one line of %d bytes, least of several runs; it should stay under %g ms. alone: the same line '
            'with this regex only. Below: how the line begins, and of what it is made. bare: in a source of its own, '
            'whose lines need no tag' % (banwatch.PLAIN_LINE, HOSTILE_REACH)))))
    return 1 if any(worst.ms > HOSTILE_REACH for worst in found) else 0


# ---- Main ----------------------------------------------------------------------------------

def version(name, argv):
    try:
        return call(argv, 10)[1].split('\n')[0]
    except Missing:
        return 'no ' + name


def machine():
    """What the numbers were measured on, and with."""
    with open('/proc/cpuinfo') as f:
        model = re.search(r'model name\s*: (.*)', f.read())
    return {'cpus': os.cpu_count(), 'cpu': model.group(1) if model else os.uname().machine,
            'load': os.getloadavg()[0], 'kernel': os.uname().release,
            'python': '%s (%s)' % (sys.version.split()[0], sys.executable),
            'banwatch': version('banwatch', [sys.executable, BANWATCH, '--version']),
            'fail2ban': version('fail2ban', ['fail2ban-server', '--version']), 'sshguard': version('sshguard', ['sshguard', '-v'])}


def wrapped(text):
    """Lines of at most WIDTH columns; what follows the first is indented."""
    lines = ['']
    for word in text.split(' '):
        if lines[-1].strip() and len(lines[-1]) + 1 + len(word) > WIDTH:
            lines.append('   ')
        lines[-1] += (' ' if lines[-1] else '') + word
    return lines


def report(here, rows, notes):
    """Lines of the whole output."""
    yield from wrapped('%(cpus)d CPUs (%(cpu)s, load %(load).1f), Linux %(kernel)s, Python %(python)s, '
                       '%(banwatch)s, %(fail2ban)s, %(sshguard)s' % here)
    yield ''
    yield from table(rows)
    yield ''
    notes = ['ratio: banwatch / peer. reach, aim: what banwatch should and would like to get to.'] + notes
    if any(row.quoted for row in rows):
        notes.append('* measured once elsewhere, not in this run')
    for text in notes:
        yield from wrapped('- ' + text)


def arguments(argv):
    parser = argparse.ArgumentParser(
        description='Measures banwatch beside its peers and prints one table.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='rows:\n' + '\n'.join('  %-9s %s' % (name, row.help) for name, row in ROWS.items()))
    parser.add_argument('--log', metavar='FILE', help='an OpenSSH log under attack, to be repeated')
    parser.add_argument('--plain', metavar='FILE', help='a plain system log, to be repeated')
    parser.add_argument('--lines', type=int, default=1000000, metavar='N', help='length of the logs (1000000)')
    parser.add_argument('--idle', type=float, default=15, metavar='SECONDS', help='how long to count wake-ups (15)')
    parser.add_argument('--bans', type=int, default=10000, metavar='N', help='bans at most, in rows about firewalls (10000)')
    parser.add_argument('--times', type=int, default=5, metavar='N', help='how often those measure (5)')
    parser.add_argument('--json', action='store_true', help='print the results as JSON')
    parser.add_argument('--hostile', action='store_true', help='look for the line that costs each built-in filter most')
    parser.add_argument('--seconds', type=float, default=90, metavar='N', help='how long to look for them, in all (90)')
    parser.add_argument('rows', nargs='*', metavar='ROW', help='which rows, or with --hostile which filters (default: all)')
    options = parser.parse_args(argv)
    unknown = [name for name in options.rows if name not in (engine().FILTERS if options.hostile else ROWS)]
    if unknown:
        parser.error('no such %s: %s' % ('filter' if options.hostile else 'row', ' '.join(unknown)))
    if min(options.lines, options.bans, options.times) < 1 or options.idle <= 0 or options.seconds <= 0:
        parser.error('numbers must be positive')
    return options


def enter_own_network():
    """Starts this program anew in a network namespace of its own, if that is possible."""
    if os.geteuid() == 0 and OWN_NET not in os.environ and succeeds(['unshare', '--net', 'true']):
        os.environ[OWN_NET] = '1'
        sys.stdout.flush()
        os.execvp('unshare', ['unshare', '--net', sys.executable, os.path.abspath(__file__)] + sys.argv[1:])


def main(argv):
    options = arguments(argv)
    if options.hostile:
        return main_hostile(options)
    enter_own_network()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))     # so that everything is cleaned up
    here, rows = machine(), []
    with tempfile.TemporaryDirectory(prefix='banwatch-bench-') as folder:
        bench = Bench(folder, options)
        for name in options.rows or ROWS:
            print('measuring: %s' % name, file=sys.stderr)
            rows += bench.tried(name, lambda: list(ROWS[name].function(bench))) or []
    if options.json:
        print(json.dumps({'machine': here, 'notes': bench.notes, 'results': [
            dict(row._asdict(), goal=row.goal and row.goal._asdict(), ratio=ratio(row), met=met(row)) for row in rows]}))
    else:
        print('\n'.join(report(here, rows, bench.notes)))
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
