"""OpenWrt's python3-light: every command works where Python has no module that is missing there."""
import ast
import gzip
import json
import os
import re
import resource
import subprocess
import sys

import pytest

import banwatch
from harness import LINE, poll
from network import Namespace
from test_commands import LOG
from test_floorplan import TREE
from test_install import BEFORE, plant

# package that has it -> modules that python3-light lacks, on one of OpenWrt 19.07 to 25.12 at least
LACKS = {
    'asyncio': 'asyncio _asyncio',
    'cgi': 'cgi cgitb',
    'codecs': 'unicodedata stringprep encodings.idna _codecs_cn _codecs_hk _codecs_iso2022 _codecs_jp _codecs_kr _codecs_tw',
    'ctypes': 'ctypes _ctypes',
    'dbm': 'dbm _dbm _gdbm',
    'decimal': 'decimal _decimal fractions statistics',      # the latter two are there, and import it
    'distutils': 'distutils lib2to3 ensurepip venv',
    'email': 'email smtplib mailbox nntplib smtpd importlib.metadata',        # all but the first are there, and import it
    'logging': 'logging concurrent.futures',                 # the latter is there, and imports it
    'lzma': 'lzma _lzma',
    'multiprocessing': 'multiprocessing _multiprocessing',
    'ncurses': 'curses _curses _curses_panel',
    'openssl': 'ssl _ssl _hashlib',                          # hashlib has md5 and sha without it
    'pydoc': 'pydoc pydoc_data doctest webbrowser',
    'readline': 'readline',
    'sqlite3': 'sqlite3 _sqlite3',
    'unittest': 'unittest',
    # pathlib and zipfile are there, and import urllib before Python 3.13, and so do those that import them
    'urllib': 'urllib http mimetypes pathlib zipfile zipapp importlib.resources json.tool compileall wsgiref',
    'uuid': 'uuid _uuid',
    'xml': 'xml xmlrpc pyexpat _elementtree plistlib',
}
NAMES = ' '.join(LACKS.values()).split()
LIGHT = 'import sys\nsys.modules.update(dict.fromkeys(%r))\n' % NAMES      # None: it cannot be imported

# Reads [file for the output, argument...] and runs that command line, each in a process of its own, which has imported nothing
# yet but banwatch; answers with its exit code. Compiling banwatch once is what takes the time.
COMMANDS = LIGHT + '''
import banwatch, json, os
for line in sys.stdin:
    output, *words = json.loads(line)
    pid = os.fork()
    if not pid:
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        sys.exit(banwatch.main(words))
    print(os.waitpid(pid, 0)[1], flush=True)
'''
PROBE = LIGHT + '''
import importlib
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        print(name)
    except ImportError:
        pass
try:
    'router.example'.encode('idna')
    print('idna')
except LookupError:
    pass
'''
RUN = LIGHT + 'import banwatch\nsys.exit(banwatch.main(sys.argv[1:]))\n'


def light_python(text, *words, folder='', **more):
    """A Python as on a router runs this text, started."""
    path = os.pathsep.join(filter(None, [os.path.dirname(os.path.abspath(banwatch.__file__)), str(folder)]))
    return subprocess.Popen([sys.executable, '-S', '-c', text] + list(words), env=dict(os.environ, PYTHONPATH=path), stderr=subprocess.STDOUT,
                            universal_newlines=True, **dict({'stdin': subprocess.DEVNULL, 'stdout': subprocess.PIPE}, **more))


class Light:
    """Command lines on a router: light('check') is its exit code and what it prints."""

    def __init__(self, folder):
        self.output = str(folder / 'output')
        self.process = light_python(COMMANDS, stdin=subprocess.PIPE)

    def __call__(self, *words):
        self.process.stdin.write(json.dumps([self.output] + [str(word) for word in words]) + '\n')
        self.process.stdin.flush()
        status = int(self.process.stdout.readline())
        with open(self.output, encoding='utf-8') as f:
            return status >> 8 if not status & 255 else -status, f.read()

    def close(self):
        self.process.communicate(timeout=10)


@pytest.fixture(scope='module')
def light(tmp_path_factory):
    made = Light(tmp_path_factory.mktemp('light'))
    yield made
    made.close()


def test_everything_banwatch_imports_anywhere_is_on_a_router_and_what_is_listed_here_is_not():
    nodes = list(ast.walk(TREE))
    imported = ({alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
                | {node.module for node in nodes if isinstance(node, ast.ImportFrom)})
    output, _ = light_python(PROBE, *sorted(imported | set(NAMES))).communicate(timeout=30)
    assert set(output.split('\n')) - {''} == imported - {'ssl'}             # a package of its own: see check_hub


@pytest.mark.parametrize('words, code, text', [
    (['--help'], 0, 'banwatch.py replay /var/log/auth.log'),
    (['check'], 0, 'all right'), (['check', '--print'], 0, 'bantime = 10m'), (['-c', 'bad', 'check'], 78, 'did you mean maxretry'),
    (['replay', 'log'], 0, '192.0.2.7'), (['replay', 'log.gz', '--json'], 0, '"192.0.2.7"'),
    (['test', 'sshd', 'log'], 0, '^Failed '), (['test', 'all', 'log', '--json'], 0, '"192.0.2.7"'), (['test', 'sshx', 'log'], 78, 'did you mean sshd'),
    (['test', '--regex', r'Failed \w+ for \S+ from <HOST>', 'log'], 0, '12 of 1 address'),
    (['status'], 69, 'no daemon is running'), (['report'], 69, 'no daemon is running'),
    (['install', '--root', 'router', '--dry-run'], 0, '/usr/sbin/banwatch'),
    (['uninstall', '--root', 'router', '--dry-run'], 0, ''),
    pytest.param(['doctor'], None, 'with all that is needed', marks=pytest.mark.slow)])
def test_a_command_works_on_a_router(light, tmp_path, words, code, text):
    conf = tmp_path / 'conf'
    conf.write_text('[banwatch]\nfirewall = none\nruntime = %s\nstate = %s\nsource = %s\n' % (tmp_path / 'run', tmp_path / 'state', tmp_path / 'log'))
    (tmp_path / 'bad').write_text('[DEFAULT]\nmaxretri = 5\n')
    (tmp_path / 'log').write_text(LOG)
    (tmp_path / 'log.gz').write_bytes(gzip.compress(LOG.encode()))
    plant(tmp_path / 'router', BEFORE['openwrt'])
    words = [tmp_path / word if word in ('log', 'log.gz', 'bad', 'router') else word for word in words]
    found, said = light('-c', conf, *words)
    assert text in said and 'Traceback' not in said
    assert found == code or code is None and found in (0, 1)


def test_a_daemon_on_a_router_bans_mails_its_report_and_stops(light, tmp_path):
    fifo, conf, mail = tmp_path / 'fifo', tmp_path / 'conf', tmp_path / 'mail'
    (tmp_path / 'sendmail').write_text('#!/bin/sh\ncat >%s\n' % mail)
    (tmp_path / 'sendmail').chmod(0o755)
    conf.write_text('[banwatch]\nsource = fifo:%s\nfirewall = none\nruntime = %s\nstate = %s\n[DEFAULT]\nmaxretry = 3\n'
                    '[report]\nto = Größe <me@example.org>\nsendmail = %s\n' % (fifo, tmp_path / 'run', tmp_path / 'state', tmp_path / 'sendmail'), encoding='utf-8')

    def does(*words):
        code, said = light('-c', conf, *words)
        return said if code == 0 else ''

    with open(str(tmp_path / 'stderr'), 'w') as errors:
        daemon = light_python(RUN, '-c', str(conf), 'run', stdout=errors)
    try:
        assert poll(lambda: does('status')), (tmp_path / 'stderr').read_text()
        fifo.write_text(''.join(LINE % (n, '192.0.2.7') for n in range(3)))
        assert poll(lambda: '192.0.2.7' in does('banned'))
        assert does('ban', '-t', '1h', '2001:db8::7') and does('unban', '192.0.2.7') and does('reload')
        assert [row['ip'] for row in json.loads(does('banned', '--json'))] == ['2001:db8::7']
        assert does('report') and does('report', '--send') == '' and 'me@example.org' in mail.read_text()
        fifo.write_text(LINE % (9, '192.0.2.9'))
        assert poll(lambda: '192.0.2.9' in does('report'))
        assert does('stop') and daemon.wait(10) == 0
    finally:
        daemon.kill()
        daemon.wait(10)
    # from the state file
    assert '192.0.2.9' in does('report') and '</html>' in does('report', '--html', '-') and json.loads(does('report', '--json'))
    assert 'Traceback' not in (tmp_path / 'stderr').read_text()


def test_a_bug_in_a_line_that_is_not_ascii_is_told_on_a_router_too(tmp_path):
    """Since Python 3.11 a traceback asks unicodedata how wide such a line is."""
    (tmp_path / 'bug.py').write_text("def bug():\n    return '…–' + str(1 / 0)\n", encoding='utf-8')
    text = LIGHT + "import banwatch, bug\nbanwatch.Machine().loop.call(bug.bug)\nprint('goes on')"
    output, _ = light_python(text, folder=tmp_path).communicate(timeout=30)
    assert 'bug, please report it' in output and 'bug.py' in output and 'ZeroDivisionError' in output
    assert output.endswith('goes on\n')


# --- what a start weighs: a router compiles the source at each start, and has the memory for it once

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
    for byte_code in tmp_path.glob('usr/lib/banwatch/banwatch.*[0-9].gz') if not compiled else ():
        byte_code.unlink()
    # as on OpenWrt, Python writes none
    daemon = Started(conf, program=launcher, env=dict(os.environ, PYTHONDONTWRITEBYTECODE='1'))
    try:
        assert kilobytes(daemon.of('status')) - bare() < 12000
        assert ('/proc/self/fd' in daemon.of('cmdline')) is not compiled
        assert not list(tmp_path.glob('usr/lib/banwatch/banwatch.*[0-9].gz')) or compiled
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
    for byte_code in tmp_path.glob('usr/lib/banwatch/banwatch.*[0-9].gz'):
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
