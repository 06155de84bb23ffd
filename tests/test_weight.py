"""What a start weighs: a router compiles the source at each start, and has the memory for it once."""
import os
import re
import resource
import subprocess
import sys

import pytest

import banwatch
from harness import poll
from network import Namespace

CONF = '[banwatch]\nsource = fifo:%s/log\nfirewall = none\nruntime = %s/run\nstate = %s/state\n'


@pytest.fixture
def conf(tmp_path):
    (tmp_path / 'conf').write_text(CONF % ((tmp_path,) * 3))
    return str(tmp_path / 'conf')


def in_place(folder):
    """The path of a banwatch that `install` has put into a folder, and that stays in it."""
    subprocess.run([sys.executable, banwatch.__file__, 'install', '--root', str(folder), '--kind', 'openwrt'],
                   stdout=subprocess.DEVNULL, check=True)
    launcher = folder / 'usr/sbin/banwatch'
    launcher.write_text(launcher.read_text().replace("'/usr/lib", "'%s/usr/lib" % folder))
    return str(launcher)


class Started:
    """`banwatch.py run`, from source."""

    def __init__(self, conf, program=banwatch.__file__, **more):
        self.conf = conf
        self.process = subprocess.Popen([sys.executable, program, '-c', conf, 'run'],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **more)
        self.first = self.process.stderr.readline().decode()           # it says something when it has read its conf

    def of(self, name):
        with open('/proc/%d/%s' % (self.process.pid, name), 'rb') as f:
            return f.read().decode()

    def end(self):
        self.process.terminate()
        rest = self.process.stderr.read().decode()
        return self.process.wait(10), rest


@pytest.fixture(scope='module')
def started(tmp_path_factory):
    """A daemon that tests share which only look at it, or end it."""
    folder = tmp_path_factory.mktemp('started')
    (folder / 'conf').write_text(CONF % ((folder,) * 3))
    daemon = Started(str(folder / 'conf'))
    yield daemon
    daemon.end()


def kilobytes(status, key='VmRSS'):
    return int(re.search(key + r':\s+(\d+)', status)[1])


def bare():
    """Kilobytes of an interpreter that does nothing."""
    text = subprocess.run([sys.executable, '-c', 'print(open("/proc/self/status").read())'], stdout=subprocess.PIPE).stdout
    return kilobytes(text.decode())


def test_a_daemon_started_from_source_takes_no_more_memory_than_byte_code_does(started):
    assert kilobytes(started.of('status')) - bare() < 12000


def test_it_is_still_the_process_that_was_started_and_says_what_it_is(started):
    assert started.first.startswith('banwatch ' + banwatch.VERSION)
    assert started.of('comm') == 'banwatch\n' and banwatch.__file__ in started.of('cmdline')


def test_what_it_was_started_from_is_not_kept_open(started):
    def deleted():
        listed = subprocess.run(['ls', '-l', '/proc/%d/fd' % started.process.pid], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return b'(deleted)' in listed.stdout
    assert not deleted() and started.process.poll() is None


def test_modules_that_somebody_has_put_into_the_temporary_folder_are_not_taken(conf, tmp_path):
    (tmp_path / 'tmp').mkdir()
    for name in list(banwatch.LazyModule.names) + ['re', 'os', 'collections', 'heapq', 'locale', 'threading', 'encodings']:
        (tmp_path / 'tmp' / (name + '.py')).write_text('open(%r, "w")\n' % str(tmp_path / 'taken'))
    daemon = Started(conf, env=dict(os.environ, TMPDIR=str(tmp_path / 'tmp')))
    assert '/proc/self/fd' in daemon.of('cmdline') and daemon.end()[0] == 0
    assert not (tmp_path / 'taken').exists()


def test_a_term_ends_it(conf):
    code, rest = Started(conf).end()
    assert (code, rest.splitlines()[-1]) == (0, 'stopped')


def test_a_conf_from_standard_input_is_still_there_after_the_change_to_byte_code(conf):
    with open(conf) as text:
        daemon = Started('-', stdin=text)
    assert daemon.first.startswith('banwatch ') and daemon.end()[0] == 0


def test_it_runs_from_source_where_there_is_no_room_for_byte_code(conf):
    daemon = Started(conf, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000)))
    assert daemon.first.startswith('banwatch ') and '/proc/self/fd' not in daemon.of('cmdline')
    assert daemon.end()[0] == 0


@pytest.mark.parametrize('compiled', [True, False])
def test_an_installed_daemon_takes_as_little_also_where_python_is_not_the_one_it_was_compiled_for(conf, tmp_path, compiled):
    launcher = in_place(tmp_path)
    for byte_code in tmp_path.glob('usr/lib/banwatch/__pycache__/*') if not compiled else ():
        byte_code.unlink()
    # as on OpenWrt, Python writes none
    daemon = Started(conf, program=launcher, env=dict(os.environ, PYTHONDONTWRITEBYTECODE='1'))
    try:
        assert kilobytes(daemon.of('status')) - bare() < 12000
        assert ('/proc/self/fd' in daemon.of('cmdline')) is not compiled
        assert not list(tmp_path.glob('usr/lib/banwatch/__pycache__/*')) or compiled
    finally:
        daemon.end()


@pytest.mark.parametrize('word', ['status', 'banned', 'ban 198.51.100.9', 'stop'])
def test_a_command_that_asks_the_daemon_imports_next_to_nothing(started, word):
    conf = started.conf
    assert poll(lambda: os.path.exists(os.path.join(os.path.dirname(conf), 'run', 'control')))
    done = subprocess.run([sys.executable, '-X', 'importtime', banwatch.__file__, '-c', conf] + word.split(),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    imported = {line.split('|')[2].strip() for line in done.stderr.decode().splitlines() if line.startswith('import time:')}
    assert done.returncode == 0 and 'json' in imported
    assert not imported & {'socket', 'selectors', 'subprocess', 'threading', 'random', 'shlex', 'calendar', 'tempfile', 'textwrap'}


def test_what_is_written_at_the_very_end_is_not_lost(tmp_path):
    with open(str(tmp_path / 'out'), 'wb') as out:
        done = subprocess.run([sys.executable, banwatch.__file__, '--help'], stdout=out, stderr=subprocess.PIPE)
    assert done.returncode == 0 and (tmp_path / 'out').read_text().rstrip() == banwatch.help_text()


@pytest.mark.slow
def test_it_bans_also_when_an_upgrade_of_python_has_taken_the_modules_away(conf, tmp_path):
    router = Namespace()
    try:
        daemon = router.popen([sys.executable, banwatch.__file__, '-c', conf, 'run'], stderr=subprocess.DEVNULL)
        assert poll((tmp_path / 'run' / 'control').exists)
        router.script('mount -t tmpfs empty ' + os.path.dirname(os.__file__))
        (tmp_path / 'log').write_text("Nov 20 12:27:01 r dropbear[1]: Bad password attempt for 'root' from 198.51.100.9:1\n" * 5)
        ask = [sys.executable, banwatch.__file__, '-c', conf, 'banned']
        assert poll(lambda: daemon.poll() or b'198.51.100.9' in subprocess.run(ask, stdout=subprocess.PIPE).stdout) is True
    finally:
        router.close()


def test_it_stays_as_it_is_where_the_name_it_was_started_by_is_another_python_s(conf, tmp_path):
    other = tmp_path / 'python3'
    other.write_text('#!/bin/sh\nexit 1\n')
    other.chmod(0o755)
    process = subprocess.Popen([str(other), banwatch.__file__, '-c', conf, 'run'], executable=os.path.realpath(sys.executable),
                               env=dict(os.environ, PYTHONHOME=sys.base_prefix), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr.readline().startswith(b'banwatch ')
    process.terminate()
    assert process.wait(10) == 0


@pytest.mark.slow
def test_the_first_start_after_an_upgrade_of_python_that_keeps_byte_code_takes_as_little(conf, tmp_path):
    launcher = in_place(tmp_path)
    for byte_code in tmp_path.glob('usr/lib/banwatch/__pycache__/*'):
        byte_code.unlink()
    daemon = Started(conf, program=launcher, env={key: os.environ[key] for key in os.environ if key != 'PYTHONDONTWRITEBYTECODE'})
    try:
        assert kilobytes(daemon.of('status')) - bare() < 12000
    finally:
        daemon.end()


@pytest.mark.slow
@pytest.mark.parametrize('closed', ['>&-', '2>&-', '<&- >&- 2>&-'])
def test_it_starts_and_ends_also_with_standard_files_closed(conf, tmp_path, closed):
    command = 'exec "%s" "%s" -c "%s" run %s' % (sys.executable, banwatch.__file__, conf, closed)
    process = subprocess.Popen(['sh', '-c', command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert poll(lambda: process.poll() or (tmp_path / 'run' / 'control').exists()) is True
    process.terminate()
    assert process.wait(10) == 0
