"""The command line: what is typed, what is printed, and the exit code; with real processes."""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest

import banwatch
from conftest import need
from harness import PROGRAM, House, Running, banwatch_argv

LOG = ''.join('Nov 20 12:%02d:00 h sshd[%d]: Failed password for root from 192.0.2.7 port 5 ssh2\n' % (n, n) for n in range(12))


def banwatch_py(*words, **more):
    """The CompletedProcess of a command line."""
    more = dict({'stdin': subprocess.DEVNULL, 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE,
                 'universal_newlines': True, 'timeout': 30}, **more)
    if 'input' in more:
        del more['stdin']
    return subprocess.run(banwatch_argv(*words), **more)


@pytest.fixture
def running(tmp_path):
    made = Running(tmp_path, maxretry=3)
    yield made
    made.close()


@pytest.fixture(scope='module')
def one():
    with tempfile.TemporaryDirectory() as folder:          # not pytest's own, where only its user may look
        os.chmod(folder, 0o755)
        made = Running(folder, maxretry=3)
        yield made
        made.close()


@pytest.fixture
def shared(one):
    """A daemon that tests share which leave nothing behind but bans."""
    yield one
    assert one.command('unban', '--all').returncode == 0


# --- without a daemon

def test_help_names_every_command_and_the_first_one_to_try():
    for words in (['--help'], ['-h'], ['help']):
        done = banwatch_py(*words)
        assert done.returncode == 0
    for word, verb in banwatch.COMMANDS.items():
        assert '  %s' % word in done.stdout and verb.help in done.stdout
    assert 'banwatch.py replay /var/log/auth.log' in done.stdout


@pytest.mark.parametrize('word', sorted(banwatch.COMMANDS))
def test_every_command_has_help_of_its_own(word):
    done = banwatch_py(word, '--help')
    assert done.returncode == 0 and banwatch.COMMANDS[word].help in done.stdout


def test_version():
    assert banwatch_py('--version').stdout == 'banwatch %s\n' % banwatch.VERSION


@pytest.mark.parametrize('words, text', [
    ([], 'which command?'), (['foo'], 'foo: no such command'), (['ban'], 'usage: banwatch.py ban'),
    (['status', 'a', 'b'], 'usage: banwatch.py status [JAIL] [--json]'), (['status', '--foo'], 'option --foo not recognized'),
    (['-x'], 'option -x not recognized'), (['ban', '1.2.3'], '1.2.3 is not an address or network'),
    (['ban', '-t', '1x', '192.0.2.7'], '-t 1x is not a duration'), (['ban', '-t', '0', '192.0.2.7'], '-t 0 is too short'),
    (['unban'], 'unban takes addresses, or --all'), (['unban', '--all', '192.0.2.7'], 'unban takes addresses, or --all'),
    (['ban', '999.1.1.1'], '999.1.1.1 is not an address'), (['ban', '\x1b[31m'], '\\x1b[31m is not an address')])
def test_wrong_words_are_one_line_and_exit_64(words, text):
    done = banwatch_py(*words)
    assert done.returncode == 64 and done.stdout == ''
    assert done.stderr.startswith('banwatch: ' + text) and done.stderr.count('\n') == 1


@pytest.mark.parametrize('words', [['status'], ['banned'], ['ban', '192.0.2.7'], ['unban', '192.0.2.7'], ['reload'], ['stop']])
def test_without_a_daemon_commands_say_so_and_exit_69(words, tmp_path):
    conf = tmp_path / 'c'
    conf.write_text('[banwatch]\nruntime = %s\n' % (tmp_path / 'run'))
    done = banwatch_py('-c', str(conf), *words)
    assert done.returncode == 69
    assert done.stderr == 'banwatch: no daemon is running (%s/run/control); start one with: banwatch.py run\n' % tmp_path


def test_a_bad_conf_is_all_its_problems_and_exit_78(tmp_path):
    conf = tmp_path / 'c'
    conf.write_text('[sshd]\nbantime = 1x\nmaxretry = 0\n[sshx]\n')
    for word in ('check', 'run', 'replay'):
        done = banwatch_py('-c', str(conf), word)
        assert done.returncode == 78 and done.stdout == ''
        assert [line[:len(str(conf)) + 3] for line in done.stderr.split('\n')] == ['%s:%d:' % (conf, n) for n in (2, 3, 4)] + ['']


@pytest.mark.parametrize('name, text', [('missing', 'No such file or directory'), ('.', 'Is a directory'), ('latin', 'byte 8 is not UTF-8')])
def test_an_unreadable_conf_is_one_line_and_exit_78(tmp_path, name, text):
    (tmp_path / 'latin').write_bytes(b'[sshd]\n#\xff\n')
    done = banwatch_py('-c', str(tmp_path / name), 'check')
    assert (done.returncode, done.stderr) == (78, 'banwatch: %s: %s\n' % (tmp_path / name, text))


def test_check_prints_the_effective_configuration_and_reads_standard_input(tmp_path):
    assert banwatch_py('-c', '-', 'check', input='[sshd]\nmaxretry = 9\n').stdout == '-: all right\n'
    printed = banwatch_py('-c', '-', 'check', '--print', input='[sshd]\nmaxretry = 9\n').stdout
    assert 'maxretry = 9\n' in printed and 'findtime = 10m\n' in printed
    assert banwatch_py('-c', '-', 'check', '--print', input=printed).stdout == printed


def test_replay_says_who_would_have_been_banned_when_and_how_long():
    done = banwatch_py('replay', '-', input=LOG)
    assert done.returncode == 0
    assert done.stdout.split('\n')[0] == '12 lines, 12 failures, 1 ban of 1 address'
    assert re.search(r'-11-20 12:04:00 +sshd +192.0.2.7 +5 +1 +10m', done.stdout)


def test_replay_as_json():
    answer = json.loads(banwatch_py('replay', '--json', '-', input=LOG).stdout)
    assert answer['lines'] == 12 and answer['failures'] == 12
    (ban,) = answer['bans']
    assert {k: ban[k] for k in ('jail', 'ip', 'seconds', 'count', 'failures')} == {
        'jail': 'sshd', 'ip': '192.0.2.7', 'seconds': 600, 'count': 1, 'failures': 5}
    assert time.strftime('%m-%d %H:%M', time.localtime(ban['time'])) == '11-20 12:04'


def test_replay_reads_several_files_packed_ones_too_and_without_a_last_newline(tmp_path):
    import gzip
    with gzip.open(str(tmp_path / 'a.gz'), 'wb') as f:
        f.write(''.join(LOG.splitlines(True)[:7]).encode())
    (tmp_path / 'b').write_text(''.join(LOG.splitlines(True)[7:]).rstrip('\n'))
    answer = json.loads(banwatch_py('replay', '--json', str(tmp_path / 'a.gz'), str(tmp_path / 'b')).stdout)
    assert (answer['lines'], answer['failures']) == (12, 12)


def test_replay_in_the_logs_own_time_bans_longer_the_second_time():
    log = ''.join('Nov 20 %02d:%02d:00 h sshd[%d]: Failed password for root from 192.0.2.7 port 5 ssh2\n' % (hour, n, n)
                  for hour in (1, 2, 3) for n in range(5))
    bans = json.loads(banwatch_py('replay', '--json', '-', input=log).stdout)['bans']
    assert [(ban['seconds'], ban['count']) for ban in bans] == [(600, 1), (1200, 2), (2400, 3)]


@pytest.mark.parametrize('name, code', [('/no/such/file', 1), ('/etc', 1)])
def test_replay_of_what_cannot_be_read_is_one_line(name, code):
    done = banwatch_py('replay', name)
    assert done.returncode == code and done.stderr.startswith('banwatch: %s: ' % name) and done.stderr.count('\n') == 1


def test_a_torn_gz_file_is_one_line(tmp_path):
    (tmp_path / 'x.gz').write_bytes(b'\x1f\x8b\x08junk')
    done = banwatch_py('replay', str(tmp_path / 'x.gz'))
    assert done.returncode == 1 and done.stderr.startswith('banwatch: ') and done.stderr.count('\n') == 1


def test_output_into_a_closed_pipe_is_no_error():
    command = '%s %s --help | true; %s %s replay - </dev/null | head -c1' % ((sys.executable, PROGRAM) * 2)
    done = subprocess.run(['sh', '-c', command], stderr=subprocess.PIPE)
    assert done.stderr == b''


# --- as somebody else

def as_nobody(*words, **more):
    need('setpriv', root=True)
    python = '/usr/bin/python3'
    need(python)
    program = os.path.join('/tmp', 'banwatch-test-%d.py' % os.getpid())
    with open(PROGRAM) as f, open(program, 'w') as g:
        g.write(f.read())
    try:
        return subprocess.run(['setpriv', '--reuid=65534', '--clear-groups', python, program] + list(words), cwd='/',
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=30, **more)
    finally:
        os.unlink(program)


def test_without_root_run_names_what_it_cannot_do_and_exits_77():
    done = as_nobody('run')
    assert done.returncode == 77
    assert done.stderr == 'banwatch: only root can change the firewall; `run --dry-run` needs no rights\n'


def test_without_root_a_command_says_who_may_talk_to_the_daemon(shared):
    os.chmod(str(shared.conf), 0o644)
    done = as_nobody('-c', str(shared.conf), 'status')
    assert done.returncode == 77 and 'only root may talk to the daemon' in done.stderr


def test_replay_needs_no_rights():
    done = as_nobody('replay', '/dev/null')
    assert done.returncode == 0 and done.stdout == '0 lines, 0 failures, 0 bans of 0 addresses\n'


# --- with a daemon

def test_from_failures_to_banned_to_unban(shared):
    shared.fail('192.0.2.77')
    shared.until(lambda: shared.ask('banned'), 'the ban')
    assert re.search(r'192\.0\.2\.77 +dropbear +\d{4}-\d\d-\d\d [\d:]+ +\d{4}-\d\d-\d\d [\d:]+ +(9m5\ds|10m) +1\n', shared.command('banned').stdout)
    assert shared.command('unban', '192.0.2.77').stdout == '192.0.2.77: unbanned\n'
    assert shared.command('banned').stdout == 'nobody is banned\n'
    done = shared.command('unban', '192.0.2.77')
    assert (done.returncode, done.stderr) == (1, 'banwatch: 192.0.2.77: is not banned\n')


def test_ban_by_hand_says_for_how_long(shared):
    assert shared.command('ban', '-t', '2h', '192.0.2.7', '198.51.100.77/24').stdout == '192.0.2.7: banned for 2h\n198.51.100.0/24: banned for 2h\n'
    assert shared.command('ban', '-t', '-1', '192.0.2.8').stdout == '192.0.2.8: banned for ever\n'
    assert 'for ever' in shared.command('banned').stdout
    assert shared.command('ban', '-j', 'sshd', '192.0.2.9').stdout == '192.0.2.9: banned for 10m\n'
    assert shared.command('ban', '-t', '1y', '192.0.2.9').stdout == '192.0.2.9: banned for 4w\n(bantime.maxtime is 4w; -t -1 bans for ever)\n'
    assert [row['ip'] for row in shared.json('banned', 'sshd', '--json')] == ['192.0.2.9']
    assert shared.command('unban', '-j', 'sshd', '192.0.2.9').returncode == 0
    assert len(shared.command('unban', '--all').stdout.split('\n')) == 5


@pytest.mark.parametrize('net', ['127.0.0.1', '0.0.0.0/0', '::/0', 'fe80::/64', '224.0.0.1'])
def test_ban_of_what_is_ours_is_refused_with_the_reason_and_exit_1(shared, net):
    done = shared.command('ban', net)
    assert done.returncode == 1 and done.stdout == ''
    assert done.stderr.startswith('banwatch: %s: not banned: overlaps ' % net)


def test_an_unknown_jail_is_told_with_the_known_ones(shared):
    for words in (['ban', '-j', 'nope', '192.0.2.7'], ['status', 'nope'], ['banned', 'nope'], ['unban', '-j', 'nope', '192.0.2.7']):
        done = shared.command(*words)
        assert done.returncode == 1 and done.stderr == 'banwatch: nope: no such jail (there are: manual dropbear sshd luci)\n'


def test_status_shows_jails_sources_firewall_memory_and_what_is_wrong(running):
    running.fail('192.0.2.7', 2)
    running.until(lambda: running.ask('status')['tracked'], 'the failures')
    text = running.command('status').stdout
    assert 'banwatch %s, pid %d, up ' % (banwatch.VERSION, running.process.pid) in text
    assert re.search(r'source +fifo:\S+/fifo: 2 lines, last \d', text) and re.search(r'firewall +none: 0 bans', text)
    assert re.search(r'dropbear +2 +1 +0 +0 +0', text)
    answer = running.json('status', '--json')
    assert answer['memory'] > 1000 and answer['wrong'] == [] and answer['saved'] is None
    assert [jail['jail'] for jail in running.json('status', 'sshd', '--json')['jails']] == ['sshd']


def test_status_says_what_is_wrong(tmp_path):
    made = Running(tmp_path, '[luci]\nsource = exec:/no/such/program\n')
    try:
        assert 'WRONG: exec:/no/such/program: No such file or directory' in made.command('status').stdout
    finally:
        made.close()


def test_status_says_which_filters_are_not_built_in(tmp_path):
    (tmp_path / 'filter.d').mkdir()
    (tmp_path / 'filter.d' / 'web.conf').write_text('[Definition]\nfailregex = ^no <HOST>$\n')
    made = Running(tmp_path, '[web]\n[shop]\nfailregex = ^gone <HOST>$\n')
    try:
        text = made.command('status').stdout
        assert re.search(r'filter +web: %s/filter.d/web.conf\n' % re.escape(str(tmp_path)), text)
        assert re.search(r'filter +shop: conf\n', text) and not re.search(r'filter +sshd', text)
    finally:
        made.close()


def test_a_second_daemon_is_one_line_and_exit_1(running):
    done = running.command('run')
    assert done.returncode == 1
    assert done.stderr.split('\n')[-2] == 'banwatch: another banwatch is running (%s/run/lock)' % running.conf.parent
    assert running.command('status').returncode == 0


def test_a_runtime_folder_whose_socket_cannot_be_made_is_one_line(tmp_path):
    conf = tmp_path / 'c'
    conf.write_text('[banwatch]\nfirewall = none\nsource = -\nruntime = %s\n' % (tmp_path / ('x' * 120)))
    done = banwatch_py('-c', str(conf), 'run')
    assert done.returncode == 1 and 'path too long' in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.slow
def test_two_thousand_networks_fit_into_one_command(shared):
    nets = ['%d.%d.%d.0/24' % (20 + n % 100, n // 100 % 200, n // 20000) for n in range(2100)]
    done = shared.command('ban', *nets)
    assert done.returncode == 0 and done.stdout.count(': banned for 10m\n') == 2100
    assert shared.command('unban', *nets[:-1], '198.51.100.7').stderr == 'banwatch: 198.51.100.7: is not banned\n'
    assert [row['ip'] for row in shared.json('banned', '--json')] == nets[-1:]


def test_a_ban_that_becomes_shorter_is_called_so_in_the_log(running):
    for time in ('1h', '2h', '1h', '-1', '1h'):
        running.command('ban', '-t', time, '192.0.2.7')
    assert re.findall(r'\[manual\] (\w+) ', running.said()) == ['ban', 'extend', 'shorten', 'extend', 'shorten']


def test_stop_has_ended_the_daemon_when_it_returns(running):
    assert running.command('stop').stdout == 'stopped\n'
    running.start()
    assert running.command('status').returncode == 0


def test_stop_ends_the_daemon_and_its_bans_come_back(running):
    running.command('ban', '192.0.2.7')
    assert running.command('stop').stdout == 'stopped\n'
    assert running.process.wait(5) == 0
    assert running.command('status').returncode == 69
    running.start()
    assert [row['ip'] for row in running.json('banned', '--json')] == ['192.0.2.7']


def test_a_sigkill_loses_no_ban_that_was_shown(running):
    running.command('ban', '-t', '1h', '192.0.2.7')
    running.fail('192.0.2.8')
    running.until(lambda: len(running.ask('banned')) == 2, 'the ban')
    running.process.kill()
    running.process.wait(5)
    running.start()
    assert sorted(row['ip'] for row in running.json('banned', '--json')) == ['192.0.2.7', '192.0.2.8']


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_idle_daemon_at_once(running, number):
    time.sleep(0.3)
    began = time.time()
    running.process.send_signal(number)
    assert running.process.wait(5) == 0
    assert time.time() - began < 1.5 and running.said().endswith('stopped\n')


def test_hup_reloads_at_once_and_a_bad_conf_is_refused(running):
    running.conf.write_text(running.text.replace('maxretry = 3', 'maxretry = 1'))
    running.process.send_signal(signal.SIGHUP)
    running.until(lambda: 'reloaded' in running.said(), 'the reload')
    running.fail('192.0.2.7', 1)
    running.until(lambda: running.ask('banned'), 'the ban')
    running.conf.write_text(running.text.replace('maxretry = 3', 'maxretry = x'))
    running.process.send_signal(signal.SIGHUP)
    running.until(lambda: "reload refused, nothing has changed: %s:7: maxretry: 'x'" % running.conf in running.said(), 'the refusal')


def test_a_conf_from_standard_input_cannot_be_read_again_and_stays_in_force(tmp_path):
    text = '[banwatch]\nsource = fifo:%s\nfirewall = none\nruntime = %s\nstate = %s\n' % (
        tmp_path / 'fifo', tmp_path / 'run', tmp_path / 'state')
    (tmp_path / 'c').write_text(text)
    said = open(str(tmp_path / 'said'), 'w+')
    with open(str(tmp_path / 'c')) as conf:
        process = subprocess.Popen([sys.executable, PROGRAM, '-c', '-', 'run'], stdin=conf, stderr=said)
    try:
        end = time.time() + 10
        while banwatch_py('-c', str(tmp_path / 'c'), 'status').returncode and time.time() < end:
            time.sleep(0.05)
        done = banwatch_py('-c', str(tmp_path / 'c'), 'reload')
        assert done.returncode == 78
        assert done.stderr.strip().endswith('a conf from standard input cannot be read again; restart instead')
        process.send_signal(signal.SIGHUP)
        while 'reload refused' not in (tmp_path / 'said').read_text() and time.time() < end:
            time.sleep(0.05)
        assert 'cannot be read again' in (tmp_path / 'said').read_text()
        assert banwatch_py('-c', str(tmp_path / 'c'), 'status').returncode == 0, 'where it said to listen'
    finally:
        process.terminate()
        process.wait(10)
        said.close()


def test_a_mistake_in_the_conf_never_bars_the_way_out(running):
    running.command('ban', '192.0.2.7')
    running.conf.write_text(running.text + '[sshd\n')
    done = running.command('unban', '192.0.2.7')
    assert (done.returncode, done.stdout) == (0, '192.0.2.7: unbanned\n')
    assert done.stderr == 'banwatch: %s has mistakes (banwatch.py check tells)\n' % running.conf
    assert running.command('status').returncode == 0 and running.command('stop').returncode == 0
    assert running.process.wait(5) == 0


def test_the_daemon_outlives_its_runtime_folder_and_can_be_stopped(running):
    import shutil
    shutil.rmtree(str(running.conf.parent / 'run'))
    running.process.terminate()
    assert running.process.wait(5) == 0
    assert 'bug' not in running.said()


def test_a_conf_that_begins_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / 'c').write_bytes(b'\xef\xbb\xbf[sshd]\nmaxretry = 9\n')
    assert banwatch_py('-c', str(tmp_path / 'c'), 'check').returncode == 0


def test_output_to_a_full_disk_is_one_line():
    with open('/dev/full', 'w') as full:
        done = banwatch_py('--help', stdout=full)
    assert done.returncode == 1 and done.stderr == 'banwatch: the system says: No space left on device\n'


def test_replay_of_what_is_no_log_asks_whether_it_is_one():
    done = banwatch_py('replay', '-', input='PK rubbish\n' * 50)
    assert done.returncode == 0 and 'is this a log?' in done.stderr
    assert banwatch_py('replay', '-', input=LOG).stderr == ''


def test_reload_answers_with_the_problems_of_the_conf(running):
    assert running.command('reload').stdout == 'reloaded\n'
    good = running.conf.read_text()
    running.conf.write_text(good + '[sshx]\n')
    done = running.command('reload')
    assert done.returncode == 78 and "no filter is called 'sshx'" in done.stderr
    running.conf.write_text(good)
    assert running.command('status').returncode == 0


@pytest.mark.slow
def test_an_idle_daemon_does_not_wake_up(running):
    time.sleep(0.5)

    def switches():
        with open('/proc/%d/status' % running.process.pid) as f:
            return sum(int(n) for n in re.findall(r'ctxt_switches:\s+(\d+)', f.read()))
    before = switches()
    time.sleep(2)
    assert switches() - before <= 1


def test_a_slow_client_and_a_flood_of_clients_do_not_stop_the_daemon(shared):
    path = str(shared.conf.parent / 'run' / 'control')
    slow = []
    for _ in range(8):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        sock.sendall(b'{"do":')
        slow.append(sock)
    assert shared.command('status').returncode == 0
    for _ in range(50):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            sock.sendall(b'junk\n')
    shared.fail('192.0.2.78')
    shared.until(lambda: '192.0.2.78' in shared.command('banned').stdout, 'the ban')


def test_the_runtime_folder_is_ours_alone(shared):
    folder = shared.conf.parent / 'run'
    assert folder.stat().st_mode & 0o777 == 0o700
    shared.command('banned')
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())


def test_dry_run_says_whom_it_would_ban_and_touches_nothing(tmp_path):
    conf = tmp_path / 'c'
    conf.write_text('[banwatch]\nsource = -\nruntime = %s\nstate = %s\n' % (tmp_path / 'run', tmp_path / 'state'))
    process = subprocess.Popen([sys.executable, PROGRAM, '-c', str(conf), 'run', '--dry-run'], stdin=subprocess.PIPE,
                               stderr=subprocess.PIPE, universal_newlines=True)
    process.stdin.write(LOG)
    process.stdin.close()
    for line in process.stderr:
        if 'would ban' in line:
            break
    assert line == '[sshd] would ban 192.0.2.7 for 10m (5 failures, ban number 1)\n'
    process.terminate()
    assert process.wait(5) == 0
    assert [path.name for path in tmp_path.iterdir()] == ['c']
    process.stderr.close()


# --- as shipped

def test_the_readme_is_short_and_its_commands_exist():
    with open(os.path.join(os.path.dirname(PROGRAM), 'README'), encoding='utf-8') as f:
        text = f.read()
    assert text.count('\n') <= 200 and max(len(line) for line in text.split('\n')) <= 100
    for word in re.findall(r'banwatch\.py (?:-c \S+ )?([a-z]+)', text):
        assert word in banwatch.COMMANDS, word
    for word in ('python3 banwatch.py replay /var/log/auth.log', 'sh tests/run', 'MIT'):
        assert word in text


def test_a_page_is_written_where_a_link_points_to_and_the_link_stays(tmp_path):
    real, link = tmp_path / 'real', tmp_path / 'link'
    real.write_text('old')
    link.symlink_to(real)
    banwatch.write_page(str(link), 'new', 0o644)
    assert link.is_symlink() and real.read_text() == 'new'
    with pytest.raises(banwatch.Problem, match='not a file'):
        banwatch.write_page(str(tmp_path), 'new', 0o644)


# --- folders that strangers may write to

PROGRAM = os.path.abspath(banwatch.__file__)
STRANGERS = 'collections encodings errno functools itertools os re time json ipaddress getopt heapq socket struct subprocess selectors textwrap'.split()
EVIL = 'import os\nopen(%r, "a").write(__name__ + " ")\nos._exit(3)\n'
FILTER = '[Definition]\nfailregex = please ban <HOST>$\n'
ONE_LINE_LOG = ''.join('Nov 20 08:00:0%d h sshd[%d]: please ban 192.0.2.7\n' % (n, n) for n in range(6))


def run(argv, **more):
    more = dict({'stdin': subprocess.DEVNULL, 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'universal_newlines': True, 'timeout': 60}, **more)
    if 'input' in more:
        del more['stdin']
    return subprocess.run([str(word) for word in argv], **more)


def plant(folder):
    """Puts modules with the names of the standard library's into a folder; the file that tells of those that were run."""
    ran = str(folder / 'ran')
    for name in STRANGERS:
        (folder / (name + '.py')).write_text(EVIL % ran)
    return ran


@pytest.fixture
def program(tmp_path):
    return shutil.copy(PROGRAM, str(tmp_path / 'banwatch.py'))


@pytest.mark.parametrize('how', ['beside the program', 'in PYTHONPATH', 'in the current directory'])
def test_no_module_is_taken_from_where_strangers_may_write(how, program, tmp_path):
    place = tmp_path if how == 'beside the program' else tmp_path / 'place'
    place.mkdir(exist_ok=True)
    ran = plant(place)
    # what the interpreter itself imports before it looks at the program is not ours to choose
    for name in 'encodings', 'os', 'collections', 'functools', 'itertools', 're', 'heapq', 'time', 'errno':
        if how == 'in PYTHONPATH':
            os.unlink(str(place / (name + '.py')))
    environment = dict(os.environ, PYTHONPATH=str(place)) if how == 'in PYTHONPATH' else os.environ
    log = tmp_path / 'log'
    log.write_text(ONE_LINE_LOG)
    for words in ['check'], ['replay', log], ['-c', os.devnull, 'status']:
        run([sys.executable, program] + words, env=environment, cwd=str(place))
    assert not os.path.exists(ran), open(ran).read()


def test_the_launcher_takes_no_module_from_anywhere_but_the_library(tmp_path):
    """All of them, also those that an interpreter imports by itself: for that there is -I."""
    root, place = tmp_path / 'root', tmp_path / 'place'
    (root / 'etc').mkdir(parents=True)
    (root / 'etc' / 'openwrt_release').write_text('')
    place.mkdir()
    assert run([sys.executable, PROGRAM, 'install', '--root', root]).returncode == 0
    launcher = root / 'usr' / 'sbin' / 'banwatch'
    library = root / 'usr' / 'lib' / 'banwatch'
    text = launcher.read_text()
    first, rest = text.replace("'/usr/lib/banwatch'", repr(str(library))).split('\n', 1)
    assert first == '#!/usr/bin/python3 -IS'
    launcher.write_text('#!%s -IS\n%s' % (sys.executable, rest))
    ran = [plant(folder) for folder in (place, root / 'usr' / 'sbin', library)]
    done = run([launcher, '--version'], env=dict(os.environ, PYTHONPATH=str(place), PYTHONHOME='/nowhere'), cwd=str(place))
    assert done.stdout == 'banwatch %s\n' % banwatch.VERSION, done
    assert not any(map(os.path.exists, ran))


@pytest.mark.parametrize('conf, words', [(None, []), ('', ['-c', '-'])])
def test_without_a_conf_file_no_filter_comes_from_the_current_directory(conf, words, tmp_path):
    if conf is None and os.path.lexists(banwatch.CONF):
        pytest.skip('this machine has a conf')
    (tmp_path / 'filter.d').mkdir()
    (tmp_path / 'filter.d' / 'sshd.conf').write_text(FILTER)
    (tmp_path / 'sshd').write_text(FILTER)
    (tmp_path / 'log').write_text(ONE_LINE_LOG)
    more = {} if conf is None else {'input': conf}
    done = run([sys.executable, PROGRAM] + words + ['replay', '--json', 'log'], cwd=str(tmp_path), **more)
    assert json.loads(done.stdout)['bans'] == []
    done = run([sys.executable, PROGRAM] + words + ['test', 'sshd', 'log'], cwd=str(tmp_path), **more)
    assert 'filter    sshd (built-in)' in done.stdout, done


def test_a_filter_of_the_conf_with_a_relative_path_is_looked_for_from_where_the_conf_lies(tmp_path):
    (tmp_path / 'etc' / 'my').mkdir(parents=True)
    (tmp_path / 'etc' / 'my' / 'door.conf').write_text(FILTER)
    (tmp_path / 'log').write_text(ONE_LINE_LOG)
    conf = '[door]\nfilter = my/door\n'
    (tmp_path / 'etc' / 'conf').write_text(conf)
    done = run([sys.executable, PROGRAM, '-c', '../etc/conf', 'replay', '--json', '../log'], cwd=str(tmp_path / 'etc'))
    assert [(ban['jail'], ban['ip']) for ban in json.loads(done.stdout)['bans']] == [('door', '192.0.2.7')]
    done = run([sys.executable, PROGRAM, '-c', '-', 'check'], input=conf, cwd=str(tmp_path / 'etc'))
    assert (done.returncode, done.stderr) == (78, "-:1: [door]: filter: 'my/door' is not an absolute path\n")


def test_ban_spares_the_session_that_it_is_typed_in():
    here = dict(os.environ, SSH_CONNECTION='198.51.100.7 50000 203.0.113.1 22')
    for argv in ([sys.executable, PROGRAM], ['sh', '-c', 'env -u SSH_CONNECTION %s %s "$@"; exit $?' % (sys.executable, PROGRAM), 'sh']):
        done = run(argv + ['ban', '192.0.2.1', '198.51.100.0/24'], env=here)
        assert done.returncode == 1 and 'holds 198.51.100.7, from which your own session comes' in done.stderr, done.stderr
        assert run(argv + ['ban', '198.51.100.8'], env=here).returncode != 1
        assert run(argv + ['ban', '--force', '198.51.100.0/24'], env=here).returncode != 1


# --- metrics

SAMPLE = re.compile(r'(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(?P<labels>[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*")\})? '
                    r'(?P<value>-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)')


def metrics(rows):
    """{(name, labels): value} of lines in Prometheus' text format; each family is announced once, before its samples, which stand together."""
    found, family, families = {}, None, {}
    for row in rows:
        if row.startswith('#'):
            word, name, rest = re.fullmatch(r'# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+)', row).groups()
            assert word == 'HELP' and name not in families or word == 'TYPE' and name == family and rest in ('gauge', 'counter')
            family, families[name] = name, rest
            continue
        m = SAMPLE.fullmatch(row)
        assert m and m.group('name') == family and (m.group('name'), m.group('labels')) not in found, row
        found[m.group('name'), m.group('labels')] = float(m.group('value'))
    for name, kind in families.items():
        assert name.startswith('banwatch_') and (kind == 'counter') == name.endswith('_total')
    return found


def test_metrics_are_in_the_text_format_of_prometheus(running):
    running.fail('192.0.2.7', 3)
    running.wait_banned('192.0.2.7')
    out = running.command('status', '--metrics')
    found = metrics(out.stdout.rstrip('\n').split('\n'))
    assert out.returncode == 0 and found['banwatch_bans_total', 'jail="dropbear"'] == found['banwatch_banned', 'jail="dropbear"'] == 1
    assert found['banwatch_failures_total', 'jail="dropbear"'] == 3 and found['banwatch_log_lines_total', 'source="fifo:%s"' % running.fifo] == 3
    assert found['banwatch_info', 'version="%s"' % banwatch.VERSION] == 1 and found['banwatch_resident_memory_bytes', None] > 5e6
    assert found['banwatch_firewall_up', 'name="none"'] == found['banwatch_log_up', 'source="fifo:%s"' % running.fifo] == 1


def test_metrics_tell_what_does_not_work_and_escape_what_others_have_named(tmp_path):
    house = House(tmp_path, text='[web]\nfilter = sshd\nsource = exec:/no/such "pro\\\\gram"\n', firewall='nft')
    house.machine.answer = lambda command: ('nft: no', '')
    house.daemon.drops['sshd, web'] += 7
    house.pass_time(61)
    found = metrics(banwatch.metrics_rows(house.ask('status')))
    (label,) = [labels for name, labels in found if name == 'banwatch_log_up' and 'such' in labels]
    assert label == r'source="exec:/no/such \"pro\\\\gram\""' and found['banwatch_log_up', label] == 0
    assert found['banwatch_firewall_up', 'name="nft"'] == 0 and found['banwatch_problems', None] >= 2
    assert found['banwatch_dropped_packets_total', 'jails="sshd, web"'] == 7


def test_failures_that_a_login_takes_back_do_not_count_down(tmp_path):
    house = House(tmp_path, text='[sshd]\nmaxretry = 9\n')
    pam = 'Nov 20 13:01:45 gate sshd[5]: pam_unix(sshd:auth): authentication failure; logname= uid=0 euid=0 tty=ssh ruser= rhost=192.0.2.7  user=alice\n'
    house.write(pam)
    before = metrics(banwatch.metrics_rows(house.ask('status')))
    house.write('Nov 20 13:01:45 gate sshd[5]: Accepted password for alice from 192.0.2.7 port 5 ssh2\n')
    after = metrics(banwatch.metrics_rows(house.ask('status')))
    name = 'banwatch_failures_total', 'jail="sshd"'
    assert before[name] == after[name] == 1 and after['banwatch_failures_taken_back_total', 'jail="sshd"'] == 1
