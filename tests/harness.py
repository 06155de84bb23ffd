"""What tests run banwatch in: a machine whose clock is turned by hand, a daemon on it in this process, and one that is a real process."""
import atexit
import contextlib
import functools
import ipaddress
import itertools
import json
import os
import pathlib
import py_compile
import subprocess
import sys
import tempfile
import time
import types

import pytest

import banwatch

PROGRAM = os.path.abspath(banwatch.__file__)
LINE = "Thu Mar  7 12:34:56 2024 authpriv.warn dropbear[%d]: Bad password attempt for 'root' from %s:53066\n"


@functools.lru_cache(maxsize=1)
def compiled():
    """The path of the program's byte code, which an installed one runs from, too: most of a short command's time is its compilation."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return py_compile.compile(PROGRAM, os.path.join(folder.name, 'banwatch.pyc'), doraise=True)


def banwatch_argv(*words):
    """The argv of a command line."""
    return [sys.executable, compiled()] + [str(word) for word in words]


class FakeMachine(banwatch.Machine):
    """Real files, real sockets; the clocks, the programs, the networks and the log are the test's."""

    def __init__(self):
        self.now, self.time = 5000.0, 1800000000.0
        self.boot = 'boot-1'
        self.logged, self.ran = [], []
        self.answer = lambda command: ('', '')     # Command -> (problem, output)
        self.nets = []
        self.name = 'router'
        self.luck = 0.0
        super().__init__()

    def ticks(self):
        return self.now

    def wall(self):
        return self.time

    def boot_id(self):
        return self.boot

    def chance(self):
        return self.luck

    def networks(self):
        return list(self.nets)

    def rule_events(self, changed):
        """The kernel's events would be those of other tests."""

    def host(self):
        return self.name

    def accounts(self):
        return ['root', 'alice']

    def log(self, text):
        self.logged.append(text)

    def run(self, command, done, seconds=10):
        self.ran.append(command)
        done(*self.answer(command))

    def pass_time(self, seconds):
        self.now += seconds
        self.time += seconds

    def said(self, text):
        return any(text in line for line in self.logged)


def seeds(*fixed):
    """Parametrizes a test by these seeds and today's date, so that each day tries something new; the test's name tells it."""
    return pytest.mark.parametrize('seed', list(fixed) + [int(time.strftime('%Y%m%d'))])


def pairwise(*lists):
    """Rows with one value of each list, so few that each two values of two lists still meet in one of them."""
    pairs = [(i, j) for j in range(len(lists)) for i in range(j)]
    left = {(i, a, j, b) for i, j in pairs for a in range(len(lists[i])) for b in range(len(lists[j]))}
    rows = []
    while left:
        rows.append(max(itertools.product(*map(range, map(len, lists))),
                        key=lambda row: sum((i, row[i], j, row[j]) in left for i, j in pairs)))
        left -= {(i, rows[-1][i], j, rows[-1][j]) for i, j in pairs}
    return [tuple(values[n] for values, n in zip(lists, row)) for row in rows]


def turn(daemon, times=1):
    """What the daemon's loop does, without waiting."""
    for _ in range(times):
        daemon.loop.due()
        daemon.settle()
        daemon.loop.due()
        daemon.loop.wait(0)
        daemon.settle()


class House:
    """A daemon on a FakeMachine, and what one does with it."""

    def __init__(self, folder, text='', firewall='none', machine=None, wings=None, **defaults):
        self.folder, self.text, self.firewall, self.wings = folder, text, firewall, wings
        self.more = ''               # further options of [banwatch]
        self.defaults = dict({'maxretry': 3, 'bantime': '10m'}, **defaults)
        self.machine = machine or FakeMachine()
        self.fifo = str(folder / 'log')
        self.start()

    def conf(self):
        text = '[banwatch]\nsource = fifo:%s\nfirewall = %s\nruntime = %s\nstate = %s\n%s%s%s%s' % (
            self.fifo, self.firewall, self.folder / 'run', self.folder / 'state', self.more, '[DEFAULT]\n' * bool(self.defaults),
            ''.join('%s = %s\n' % (k.replace('_', '.'), v) for k, v in self.defaults.items()), self.text)
        made, problems = banwatch.read_config(text, 'c')
        if problems:
            raise banwatch.Problem('\n'.join(problems), 78)
        return made

    def start(self):
        self.daemon = banwatch.Daemon(self.machine, self.conf(), self.conf, wings=self.wings, requests=banwatch.request_table())
        self.daemon.start()
        self.turn()

    def turn(self, times=3):
        turn(self.daemon, times)

    def pass_time(self, seconds):
        self.machine.pass_time(seconds)
        self.turn()

    def write(self, text):
        with open(self.fifo, 'w') as f:
            f.write(text)
        self.turn()

    def fail(self, ip, times=1):
        self.write(''.join(LINE % (n, ip) for n in range(times)))

    def ask(self, do, **request):
        answers = []
        self.daemon.answer(dict(request, do=do), answers.append)
        self.turn()
        return answers[0]

    def banned(self):
        return sorted(row['ip'] for row in self.ask('banned')['banned'])

    def crash(self):
        """SIGKILL: nothing is saved, all that is open goes."""
        os.close(self.machine.lock_fd)
        for source in self.daemon.sources.values():
            source.close()
        self.daemon.control.sock.close()

    def restart(self, boot=None, **clocks):
        old, self.machine = self.machine, FakeMachine()
        self.machine.now, self.machine.time, self.machine.boot = old.now, old.time, boot or old.boot
        for name, value in clocks.items():
            setattr(self.machine, name, value)
        self.start()

    def stop(self):
        self.daemon.stop()
        self.turn()
        os.close(self.machine.lock_fd)


class Running:
    """`banwatch.py run` as a real process, with files of its own, following a FIFO unless `source` names another log. Options are
    those of [DEFAULT], _ for a dot; `text` is more of the conf: sections of jails, for instance."""

    def __init__(self, folder, text='', source=None, firewall='none', **options):
        self.folder = pathlib.Path(str(folder))
        self.fifo, self.conf, self.errors = self.folder / 'fifo', self.folder / 'banwatch.conf', self.folder / 'banwatch.stderr'
        self.text = '\n'.join(
            ['[banwatch]', 'source = %s' % (source or 'fifo:%s' % self.fifo), 'firewall = ' + firewall,
             'runtime = %s' % (self.folder / 'run'), 'state = %s' % (self.folder / 'state'), '[DEFAULT]']
            + ['%s = %s' % (name.replace('_', '.'), value) for name, value in options.items()] + [''])
        self.conf.write_text(self.text + text + '\n')
        self.conf.chmod(0o600)
        self.start()

    def popen(self, argv, **more):
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, **more)

    def run(self, argv, **more):
        how = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=30)
        return subprocess.run(argv, **dict(how, **more))

    def argv(self, *words):
        return banwatch_argv('-c', self.conf, *words)

    def start(self):
        """Starts it, and waits until it answers."""
        with open(str(self.errors), 'ab') as errors:
            self.process = self.popen(self.argv('run'), stdout=errors, stderr=errors)
        self.until(lambda: self.process.poll() is not None or self.answers(), 'the start')
        assert self.process.poll() is None, self.said()

    def answers(self):
        with contextlib.suppress(banwatch.Problem):
            return bool(self.ask('status'))

    def ask(self, do):
        """What `status --json` or `banned --json` prints, or the report's answer, without the time that a client takes to start."""
        answer = banwatch.ask_daemon({'runtime': str(self.folder / 'run')}, {'do': do})
        return answer['banned'] if do == 'banned' else answer

    def command(self, *words):
        """The CompletedProcess of a command that asks it."""
        return self.run(self.argv(*words))

    def json(self, *words):
        return json.loads(self.command(*words).stdout)

    def said(self):
        """All that it has written to standard error."""
        return self.errors.read_text(errors='replace')

    def until(self, question, what, seconds=10):
        """Waits for a true answer of `question()`; fails if there never is one."""
        assert poll(question, seconds), '%s: not within %d s\n%s' % (what, seconds, self.said())

    def fail(self, ip, times=3):
        with open(str(self.fifo), 'w') as f:
            f.write(''.join(LINE % (n, ip) for n in range(times)))

    def failures(self, jail):
        return [row['failures'] for row in self.ask('status')['jails'] if row['jail'] == jail][0]

    def bans(self, ip):
        """The rows of `banned` that hold this address."""
        address = ipaddress.ip_address(ip)
        return [row for row in self.ask('banned') if address in ipaddress.ip_network(row['ip'])]

    def wait_banned(self, ip, seconds=10.0):
        """The rows of `banned` that hold this address, as soon as there are any; fails if there never are."""
        self.until(lambda: self.bans(ip), 'a ban of ' + ip, seconds)
        return self.bans(ip)

    def wait_failures(self, jail, count, seconds=10.0):
        """Returns when a jail has counted that many failures; fails if it never does, or counts more."""
        poll(lambda: self.failures(jail) >= count, seconds)
        assert self.failures(jail) == count

    def stop(self):
        """Ends it as init does; its exit code."""
        self.process.terminate()
        return self.process.wait(10)

    def kill(self):
        self.process.kill()
        self.process.wait(10)

    def close(self):
        if self.process.poll() is None:
            self.kill()


def poll(question, seconds=10.0):
    """The first true answer of `question()`, or its last one when the time is up."""
    deadline = time.monotonic() + seconds
    while True:
        answer = question()
        if answer or time.monotonic() > deadline:
            return answer
        time.sleep(0.02)


def config(text='', **options):
    """The Config of a conf file's text; `options` are those of [DEFAULT], with _ for a dot."""
    text += '\n[DEFAULT]\n' + ''.join('%s = %s\n' % (k.replace('_', '.'), v) for k, v in options.items()) if options else ''
    made, problems = banwatch.read_config(text, 'test.conf')
    assert not problems, problems
    return made


def jail(name='sshd', **options):
    """A Jail with the built-in filter of that name."""
    settings = config(**options).options(name)
    made = banwatch.Jail(name, settings, banwatch.load_filter(name) if name in banwatch.FILTERS else None)
    made.protect([], {})
    return made


def failure(ip, when, guesses=1, user=None):
    return banwatch.LogEvent(ip, user, guesses, False, when)


def login(ip, when, user):
    return banwatch.LogEvent(ip, user, 0, True, when)


@contextlib.contextmanager
def zone(monkeypatch, name):
    """This machine stands in another time zone for a while."""
    monkeypatch.setenv('TZ', name)
    time.tzset()
    banwatch.date_time.cache_clear()
    yield
    monkeypatch.undo()
    time.tzset()
    banwatch.date_time.cache_clear()


def facts_of(machine, bans, **more):
    """What `summarise` is told of a daemon that has only these bans."""
    daemon = types.SimpleNamespace(
        machine=machine, judge=types.SimpleNamespace(bans=bans), look_at_clock=lambda now, wall: None, control=None, dry_run=False,
        nameless=list, sources={}, wall=types.SimpleNamespace(syncs=[]))
    return dict(banwatch.facts_of_daemon(daemon, types.SimpleNamespace(rules={}, built_in={})), **more)
