"""A machine for tests: its clock is turned by hand, and what it would run is written down."""
import atexit
import contextlib
import functools
import itertools
import os
import py_compile
import sys
import tempfile
import time

import pytest

import banwatch

PROGRAM = os.path.abspath(banwatch.__file__)


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
    made.protect([])
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
