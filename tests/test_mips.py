"""A 32-bit little-endian MIPS, as in small routers, emulated: banwatch does there what it does here. Run by `sh tests/run -m mips`."""
import glob
import json
import os
import random
import subprocess
import sys
import time

import pytest

import bench
from conftest import TESTS, need
from harness import PROGRAM, poll

pytestmark = [pytest.mark.mips, pytest.mark.slow]

ROOT = os.path.join(os.path.dirname(TESTS), '.mips', 'root')
MIPS = ['qemu-mipsel-static', '-L', ROOT, ROOT + '/usr/bin/python3.11']
HERE = [sys.executable]
NOW = 1795179705                                   # Fri Nov 20 2026, 14:01:45 in Berlin
CORPORA = sorted(glob.glob(os.path.join(TESTS, 'corpora', '*.log')))
ENVIRON = dict(os.environ, TZ='CET-1CEST,M3.5.0,M10.5.0/3', PYTHONIOENCODING='utf-8', PYTHONDONTWRITEBYTECODE='1')


@pytest.fixture(autouse=True)
def emulated():
    need(MIPS[0], MIPS[3])


def run(python, *words, **more):
    """The CompletedProcess of a Python there or here."""
    how = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=170, env=ENVIRON)
    return subprocess.run(python + [str(word) for word in words], **dict(how, **more))


def banwatch_py(python, *words):
    """(exit code, output, errors) of a command line."""
    done = run(python, PROGRAM, *words)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_the_processor_has_32_bits_and_puts_the_little_end_first():
    done = run(MIPS, '-c', 'import struct, sys, time; print(struct.calcsize("P"), sys.byteorder)')
    assert done.stdout.decode() == '4 little\n', done.stderr
    assert b'OverflowError' in run(MIPS, '-c', 'import time; time.gmtime(1 << 31)').stderr       # and time ends in 2038


@pytest.mark.parametrize('words', [
    ['--version'], ['--help'], ['check'], ['check', '--print'], ['-c', '/nonexistent', 'check'],
    ['replay', 'LOG'], ['replay', 'LOG', '--json'], ['replay'] + CORPORA,
    ['test', 'sshd', 'LOG', '--now', NOW], ['test', 'all', '--now', NOW] + CORPORA, ['test', 'all', '--json', '--now', NOW] + CORPORA,
    ['test', '--regex', r'Failed \w+ for <F-USER>\S+</F-USER> from <HOST>', 'LOG', '--now', NOW, '--json']],
    ids=lambda words: ' '.join(str(word) for word in words[:3] if not str(word).startswith('/')))
def test_a_command_prints_what_it_prints_here_byte_by_byte(words, tmp_path):
    bench.repeat(bench.attack_log(2000, random.Random(1)), str(tmp_path / 'log'), 5000, NOW)
    words = [tmp_path / 'log' if word == 'LOG' else word for word in words]
    there = banwatch_py(MIPS, *words)
    assert there == banwatch_py(HERE, *words) and 'Traceback' not in there[2]


class Either:
    """`banwatch.py run` there or here, with one log, no firewall and one state for both."""

    def __init__(self, folder, more=''):
        self.folder, self.process = folder, None
        self.conf, self.mail = folder / 'conf', folder / 'mail'
        (folder / 'log').write_text('')
        (folder / 'sendmail').write_text('#!/bin/sh\ncat >%s\n' % self.mail)
        (folder / 'sendmail').chmod(0o755)
        self.conf.write_text('[banwatch]\nsource = %s\n  fifo:%s\nfirewall = none\nruntime = %s\nstate = %s\n[DEFAULT]\nmaxretry = 3\n%s\n'
                             '[report]\nto = me@example.org\nsendmail = %s\n' % (
                                 folder / 'log', folder / 'fifo', folder / 'run', folder / 'state', more, folder / 'sendmail'))

    def start(self, python):
        self.python = python
        with open(str(self.folder / 'stderr'), 'a') as errors:
            self.process = subprocess.Popen(python + [PROGRAM, '-c', str(self.conf), 'run'], stdin=subprocess.DEVNULL, stderr=errors, env=dict(ENVIRON, TZ='UTC'))
        assert poll(lambda: self('status')[0] == 0, 30), self.said()

    def __call__(self, *words, python=HERE):
        return banwatch_py(python, '-c', self.conf, *words)

    def banned(self):
        """Address -> how often banned."""
        return {row['ip']: row['count'] for row in json.loads(self('banned', '--json')[1])}

    def fail(self, ip, source='log'):
        with open(str(self.folder / source), 'a') as f:
            f.write(bench.failure(ip, time.time()) * 3)
        assert poll(lambda: (ip + '/64' if ':' in ip else ip) in self.banned(), 20), self.said()

    def stop(self):
        """Ends it as init does."""
        self.process.terminate()
        assert self.process.wait(20) == 0
        assert 'Traceback' not in self.said(), self.said()

    def close(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait(5)

    def said(self):
        return (self.folder / 'stderr').read_text()


@pytest.fixture
def running(tmp_path):
    made = []

    def make(*words):
        made.append(Either(tmp_path, *words))
        return made[0]
    yield make
    made[0].close()


def test_a_daemon_bans_reports_and_answers_commands_from_there_and_from_here(running):
    daemon = running()
    daemon.start(MIPS)
    daemon.fail('192.0.2.7')
    daemon.fail('2001:db8::', 'fifo')
    for python, ip in ((MIPS, '198.51.100.7'), (HERE, '198.51.100.8')):
        assert daemon('ban', '-t', '2h', ip, python=python)[0] == 0
        code, said, _ = daemon('banned', python=python)
        assert code == 0 and '192.0.2.7' in said and ip in said
    assert daemon('unban', '192.0.2.7', python=MIPS)[0] == 0
    assert daemon.banned() == {'2001:db8::/64': 1, '198.51.100.7': 1, '198.51.100.8': 1}
    assert daemon('report', '--html', '-', python=MIPS)[1].endswith('</html>\n')
    code, said, errors = daemon('report', '--send', python=MIPS)
    assert code == 0, errors
    assert 'Subject: ' in daemon.mail.read_text() and '192.0.2.7' in daemon.mail.read_text()
    daemon.stop()


@pytest.mark.parametrize('order', [(MIPS, HERE, MIPS), (HERE, MIPS, HERE)], ids=['from there', 'from here'])
def test_what_one_has_saved_the_other_goes_on_with(running, order):
    daemon = running()
    for n, python in enumerate(order):
        daemon.start(python)
        assert daemon.banned() == {'198.51.100.%d' % i: 1 for i in range(n)}
        daemon.fail('198.51.100.%d' % n)
        daemon.stop()
    code, said, _ = daemon('report', python=MIPS)         # of what the state tells
    assert code == 0 and all('198.51.100.%d' % n in said for n in range(3)) and 'of the state' not in daemon.said()


def test_a_ban_beyond_2038_is_shown_and_reported_where_time_has_32_bits(running):
    daemon = running('bantime = 700w\nbantime.maxtime = 700w')
    daemon.start(MIPS)
    daemon.fail('192.0.2.7')
    there, here = daemon('banned', python=MIPS), daemon('banned')
    assert there[1].split()[:11] == here[1].split()[:11] and ' 20' in there[1], there       # all but what is left
    for words in (['report'], ['report', '--html', '-'], ['report', '--send']):
        assert daemon(*words, python=MIPS)[::2] == (0, ''), words
    assert '192.0.2.7' in daemon.mail.read_text()
    daemon.stop()


def test_lines_dated_after_2038_or_before_1902_are_read_where_time_has_32_bits(tmp_path):
    dates = ['2040-01-01T00:00:00+00:00', '2040-01-01 00:00:00', 'Sun Jan  1 12:00:00 2040', '9999999999', '0001-01-01T00:00:00Z']
    (tmp_path / 'log').write_text(''.join('%s h sshd[1]: Failed password for root from 192.0.2.7 port 5 ssh2\n' % date for date in dates))
    for words in (['test', 'sshd', tmp_path / 'log'], ['test', 'sshd', '--json', tmp_path / 'log'], ['replay', tmp_path / 'log']):
        code, said, errors = banwatch_py(MIPS, *words)
        assert (code, errors) == (0, ''), words


def test_what_decides_passes_its_fast_tests_there():
    """pytest is pure Python: this machine's runs there too."""
    path = os.path.dirname(os.path.dirname(os.path.abspath(pytest.__file__)))
    files = [os.path.join(TESTS, 'test_%s.py' % name) for name in ('deciders', 'state', 'lines', 'report')]
    done = run(MIPS, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-m', 'not slow', *files, env=dict(ENVIRON, PYTHONPATH=path, TZ='UTC'))
    assert done.returncode == 0, done.stdout.decode()[-5000:] + done.stderr.decode()
