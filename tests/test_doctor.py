"""doctor: each finding of each check on machines made of words, and the whole of it on real ones."""
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

import banwatch
from banwatch import OK, PROBLEM, WARNING
from conftest import need
from harness import FakeMachine, config, poll

WALL = {'name': 'nft', 'trouble': '', 'pending': False, 'why': '', 'mended': '', 'offload': False, 'rules': 3}
JAIL = {'jail': 'sshd', 'filter': 'sshd', 'failures': 0, 'ignored': 0}
ESCAPE = 'a\x1b[2Jb\nc\u202e'


class WordMachine(FakeMachine):
    """Its files, programs and what runs are words."""

    def __init__(self, files={}, programs=('logger', 'sendmail', 'nft', 'logread', 'sshd')):
        super().__init__()
        self.files, self.tools = dict(files), {name: lambda command: ('', '') for name in programs}
        self.free, self.writes, self.running, self.given = 5 << 20, True, {'init'}, []

    def read(self, path, limit=0):
        return self.files.get(path, '')

    def end_of(self, path, size):
        return self.read(path)[-size:]

    def exists(self, path):
        return path in self.files

    def age(self, path):
        return 0 if path in self.files else None

    def which(self, name):
        return '/usr/bin/' + name if name in self.tools else None

    def run(self, command, done, seconds=10):
        self.ran.append(command)
        self.given.append(seconds)
        name = command.argv[0]
        done(*self.tools[name](command) if name in self.tools else (name + ' is not installed', ''))

    def free_bytes(self, folder):
        return self.free

    def writable(self, path):
        return self.writes

    def processes(self):
        return self.running


class Friend(banwatch.Doctor):
    """A doctor who knows what he is told; waiting turns the clock."""

    def __init__(self, machine=None, conf='', answer=None, mail=False, **options):
        self.machine, self.mail, self.mistakes, self.absent = machine or WordMachine(), mail, [], 'no daemon is running'
        self.config = config('[banwatch]\n' + ''.join('%s = %s\n' % row for row in options.items()) + conf)
        self.answer = None if answer is None else dict(
            {'version': banwatch.VERSION, 'pid': 7, 'uptime': 60, 'memory': 12345, 'wrong': [], 'firewall': [], 'jails': []}, **answer)

    def pause(self, seconds):
        self.machine.pass_time(seconds)


def only(check, *friend, **more):
    """The one finding of a check."""
    found, = check(Friend(*friend, **more))
    return found


def says(found, level, *words):
    """Is a finding of this level, and holds these words?"""
    assert found.level == level and all(word in found.text + ' | ' + found.remedy for word in words), found
    return True


# python, conf, daemon

def test_a_python_with_all_modules_is_ok():
    says(only(banwatch.check_python), OK, 'Python 3.')


def test_a_module_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'gzip', None)
    says(only(banwatch.check_python), PROBLEM, 'lacks gzip', 'whole python3')


def test_a_python_that_is_too_old_is_a_problem(monkeypatch):
    monkeypatch.setattr(sys, 'version_info', (3, 6, 9, 'final', 0))
    says(only(banwatch.check_python), PROBLEM, 'Python 3.6.9 is too old')


def test_a_python_that_it_was_not_compiled_for_is_told(monkeypatch):
    monkeypatch.setattr(banwatch, 'COMPILED', 'code', raising=False)       # by the loader, at this start
    says(only(banwatch.check_python), WARNING, 'it starts slower', 'banwatch install')


def test_every_module_that_is_imported_later_is_looked_for(monkeypatch):
    for name in banwatch.LazyModule.names:
        with monkeypatch.context() as without:
            without.setitem(sys.modules, name, None)
            says(only(banwatch.check_python), PROBLEM, 'lacks ' + name)
    with open(banwatch.__file__) as f:
        inside = set(re.findall(r'^ +import (\S+)$', f.read(), re.M))
    # the interpreter itself needs it; the loader that `install` writes; where the conf says https, and then it is told
    assert inside == {'importlib.util', 'bz2', 'ssl'}


def test_a_conf_without_mistakes_is_named():
    says(only(banwatch.check_conf), OK, 'conf: test.conf')


def test_each_mistake_of_the_conf_is_told_and_that_a_daemon_does_not_start_with_it():
    friend = Friend()
    friend.mistakes = ['x.conf:1: a', 'x.conf:2: b']
    first, second = banwatch.check_conf(friend)
    assert says(first, PROBLEM, 'x.conf:1: a', 'keeps its old conf', 'does not start') and says(second, PROBLEM, 'x.conf:2: b')


@pytest.mark.parametrize('text, mistakes', [
    (b'[banwatch]\nruntime = /nowhere\n[sshd]\nmaxretry = x\n', 1), (b'[banwatch]\nruntime = /nowhere\n', 0)])
def test_a_conf_from_standard_input_is_read_once(text, mistakes):
    there, back = os.dup(0), os.pipe()
    os.write(back[1], text), os.close(back[1])
    try:
        os.dup2(back[0], 0)
        friend = banwatch.Doctor(WordMachine(), '-', False)
    finally:
        os.dup2(there, 0), os.close(there), os.close(back[0])
    assert len(friend.mistakes) == mistakes and (mistakes or friend.config['runtime'] == '/nowhere')


def test_no_daemon_is_a_problem():
    says(only(banwatch.check_daemon), PROBLEM, 'no daemon is running', 'banwatch.py install')


def test_a_daemon_that_does_not_answer_is_to_be_restarted():
    friend = Friend()
    friend.absent = 'the daemon does not answer on /run/control'
    found, = banwatch.check_daemon(friend)
    assert says(found, PROBLEM, 'restart it') and 'install' not in found.remedy


def test_a_daemon_says_its_pid_and_its_memory():
    says(only(banwatch.check_daemon, answer={}), OK, 'pid 7', '12,345 kB')


def test_a_daemon_of_another_version_has_to_be_restarted():
    says(list(banwatch.check_daemon(Friend(answer={'version': '0.0'})))[0], WARNING, '0.0', banwatch.VERSION, 'restart')


def test_what_is_wrong_with_the_daemon_is_told_but_what_the_firewall_has_to_say_only_once():
    friend = Friend(answer={'wrong': ['nft: refused', '/flash: not saved: full'], 'firewall': [dict(WALL, trouble='refused')]})
    _, wrong = banwatch.check_daemon(friend)
    firewall, = banwatch.check_firewall(friend)
    assert says(wrong, PROBLEM, '/flash: not saved: full') and says(firewall, PROBLEM, 'nft: refused')


# the log

def logging_house(path, most=8, **programs):
    """A house whose `logger` writes what is more urgent than `most` into a file."""
    house = WordMachine({path: 'older lines\n'})

    def logger(command):
        level = command.argv[command.argv.index('-p') + 1].partition('.')[2]
        if {'warning': 4, 'info': 6}[level] < most:
            house.files[path] += 'Nov 20 12:00:00 router banwatch: %s\n' % command.argv[-1]
        return '', ''
    house.tools.update({'logger': logger}, **programs)
    return house


@pytest.fixture
def messages(tmp_path):
    path = tmp_path / 'messages'
    path.write_text('')                            # a source may be a pattern, so it is there for real
    return str(path)


def test_a_line_that_comes_back_is_ok(messages):
    says(only(banwatch.check_log, logging_house(messages), source=messages), OK, 'comes through ' + messages)


def test_the_line_is_sent_where_logins_are_logged_and_not_where_other_news_are(messages):
    house = logging_house(messages)
    only(banwatch.check_log, house, source=messages)
    facilities = {command.argv[command.argv.index('-p') + 1].partition('.')[0] for command in house.ran}
    assert facilities == {'authpriv'}              # user.notice, the default, never reaches /var/log/auth.log


def test_a_log_that_shows_warnings_only_hides_the_failures_of_sshd(messages):
    says(only(banwatch.check_log, logging_house(messages, most=5), source=messages), PROBLEM, 'warnings only', '-l 8')


def test_a_line_that_does_not_come_back_within_three_seconds_is_a_problem(messages):
    house = logging_house(messages, most=0)
    before = house.ticks()
    says(only(banwatch.check_log, house, source=messages), PROBLEM, 'does not come through ' + messages)
    assert 3 <= house.ticks() - before < 3.5


def test_without_logger_nothing_can_be_said(messages):
    says(only(banwatch.check_log, WordMachine(programs=()), source=messages), WARNING, 'no `logger`')


def test_a_logger_that_finds_no_log_daemon_is_a_problem(messages):
    house = WordMachine()
    house.tools['logger'] = lambda command: ('logger: socket /dev/log: No such file or directory', '')
    says(only(banwatch.check_log, house, source=messages), PROBLEM, '/dev/log', 'is the log daemon running')


def test_a_source_that_nobody_else_can_read_is_not_asked():
    house = WordMachine()
    says(only(banwatch.check_log, house, source='fifo:/run/x'), OK, 'not asked')
    assert not house.ran


def test_logread_is_asked_on_openwrt(messages):
    house = logging_house(messages)
    house.tools['logread'] = lambda command: ('', house.files[messages])
    house.files['/etc/openwrt_release'] = 'x'
    says(only(banwatch.check_log, house), OK, 'comes through logread')


def test_a_logread_that_knows_no_option_is_asked_without(messages):
    house = logging_house(messages)
    house.tools['logread'] = lambda command: ('invalid option', '') if command.argv[1:] else ('', house.files[messages])
    says(only(banwatch.check_log, house, source='logread'), OK, 'comes through logread')


def test_no_program_is_waited_for_longer_than_five_seconds(messages):
    house = logging_house(messages, most=0)
    friend = Friend(house, answer={}, source=messages)
    for check in banwatch.CHECKS:
        list(check(friend))
    assert house.given and max(house.given) <= 5


@pytest.mark.parametrize('text, level, words', [
    ('', OK, 'not hidden'), ('LogLevel INFO\n#LogLevel QUIET\nUseDNS no\n', OK, 'not hidden'),
    ('  loglevel quiet\n', PROBLEM, 'LogLevel quiet'), ('LogLevel FATAL', PROBLEM, 'set LogLevel INFO'),
    ('Port 22\nLogLevel ERROR\n', PROBLEM, 'sshd logs no failures'), ('UseDNS yes\n', WARNING, 'UseDNS no')])
def test_what_sshd_is_told_to_log(text, level, words):
    says(only(banwatch.check_log_level, WordMachine({'/etc/ssh/sshd_config': text}, ())), level, words)


def test_sshd_itself_is_asked_for_it_knows_all_its_files():
    house = WordMachine({'/etc/ssh/sshd_config': 'Include /etc/ssh/sshd_config.d/*.conf\nLogLevel INFO\n'})
    house.tools['sshd'] = lambda command: ('', 'port 22\nloglevel QUIET\nusedns no\n')
    says(only(banwatch.check_log_level, house), PROBLEM, 'QUIET')


# firewall and flows

@pytest.mark.parametrize('wall, level, words', [
    ({}, OK, ['stand first, with 3 bans']), ({'trouble': 'nft: refused'}, PROBLEM, ['nft: refused', 'tried again']),
    ({'pending': True}, WARNING, ['does not answer yet']), ({'name': 'none'}, WARNING, ['nobody is blocked', 'firewall = auto']),
    ({'name': 'command'}, OK, ['action']), ({'mended': 'table banwatch missing'}, WARNING, ['are again', 'table banwatch missing', 'what else'])])
def test_how_the_firewall_is(wall, level, words):
    says(only(banwatch.check_firewall, answer={'firewall': [dict(WALL, **wall)]}), level, *words)


def test_each_family_is_told():
    walls = [dict(WALL, name='iptables'), dict(WALL, name='ip6tables', trouble='not installed')]
    four, six = banwatch.check_firewall(Friend(answer={'firewall': walls}))
    assert says(four, OK, 'iptables: its rules') and says(six, PROBLEM, 'ip6tables: not installed')


def test_without_a_daemon_and_without_a_firewall_there_is_something_to_install():
    says(only(banwatch.check_firewall, WordMachine(programs=())), PROBLEM, 'neither', 'nftables')


def test_without_a_daemon_nothing_is_said_of_a_firewall_that_is_there():
    assert not list(banwatch.check_firewall(Friend()))


def test_offloaded_flows_want_conntrack():
    answer = {'firewall': [dict(WALL, offload=True)]}
    says(only(banwatch.check_offload, answer=answer), WARNING, 'offloaded', 'install conntrack')
    says(only(banwatch.check_offload, WordMachine(programs=['conntrack']), answer=answer), OK, 'conntrack')
    assert not list(banwatch.check_offload(Friend(answer={'firewall': [WALL]})))


# clock, mail, room

def test_a_clock_that_is_not_set_is_a_problem():
    house = WordMachine()
    house.time = 1000.0
    says(only(banwatch.check_clock, house), PROBLEM, '1970-01-01', 'ntpd')


def test_a_clock_that_is_set_is_told_with_its_zone():
    says(only(banwatch.check_clock), OK, time.strftime('%Y-%m-%d %H:%M:%S %Z', time.localtime(1800000000)))


def test_another_zone_than_that_of_the_machine_is_told(monkeypatch):
    monkeypatch.setenv('TZ', 'UTC0')
    says(only(banwatch.check_clock, WordMachine({'/etc/TZ': 'CET-1CEST\n'})), WARNING, 'CET-1CEST', 'restart banwatch')
    says(only(banwatch.check_clock, WordMachine({'/etc/TZ': 'UTC0\n'})), OK)


def test_a_sendmail_that_is_missing_and_one_that_is_no_program():
    says(only(banwatch.check_mail, WordMachine(programs=())), WARNING, 'not installed', 'msmtp-mta')
    says(only(banwatch.check_mail, WordMachine({'/usr/lib/sendmail': ''}, ())), WARNING, '/usr/lib/sendmail is no program')


def test_a_sendmail_that_is_there_is_not_run_unasked():
    house = WordMachine()
    says(only(banwatch.check_mail, house, '[report]\nto = me@example.org'), OK, 'me@example.org', '--mail')
    assert not house.ran


def test_a_test_mail_is_a_whole_mail_and_the_owner_looks_whether_it_arrives():
    house = WordMachine()
    says(only(banwatch.check_mail, house, '[report]\nto = me@example.org', mail=True), OK, 'me@example.org', 'arrives')
    head, _, body = house.ran[0].stdin.partition('\n\n')
    assert 'To: me@example.org' in head and 'Subject: [router] a test by banwatch doctor' in head and 'daily summary' in body


def test_a_mail_that_is_refused_is_a_problem_and_nobody_says_that_it_is_tried_again():
    house = WordMachine()
    house.tools['sendmail'] = lambda command: ('sendmail: no such user', '')
    found = only(banwatch.check_mail, house, mail=True)
    assert says(found, PROBLEM, 'no such user', 'msmtprc') and 'tries again' not in found.remedy and 'kept' not in found.remedy


@pytest.mark.parametrize('free, writes, level, words', [
    (None, True, PROBLEM, 'cannot be written'), (5 << 20, False, PROBLEM, 'set `state`'),
    (600 << 10, True, WARNING, '600 kB are free'), (5 << 20, True, OK, '5,120 kB are free')])
def test_room_for_the_state(free, writes, level, words):
    house = WordMachine()
    house.free, house.writes = free, writes
    says(only(banwatch.check_room, house, state='/flash/state'), level, '/flash', words)


@pytest.mark.parametrize('kilobytes, level, words', [(60000, OK, '60,000 kB'), (4000, WARNING, 'maxtracked')])
def test_memory_that_is_free(kilobytes, level, words):
    house = WordMachine({'/proc/meminfo': 'MemTotal: 64000 kB\nMemAvailable:   %d kB\n' % kilobytes})
    says(list(banwatch.check_room(Friend(house)))[1], level, words)


# jails and rivals

WEEK = {'uptime': 8 * 86400, 'jails': [JAIL]}


def test_a_jail_of_the_conf_that_has_seen_nothing_for_a_week_is_named_with_what_to_type():
    says(only(banwatch.check_jails, conf='[sshd]\nenabled = true', answer=WEEK), WARNING, 'sshd: not one failure for', 'banwatch.py test sshd LOGFILE')
    row = dict(JAIL, jail='outer', filter='sshd[mode=aggressive]')
    says(only(banwatch.check_jails, conf='[outer]\nfilter = sshd[mode=aggressive]', answer=dict(WEEK, jails=[row])),
         WARNING, "test 'sshd[mode=aggressive]' LOGFILE")


@pytest.mark.parametrize('conf, answer', [
    ('', WEEK), ('[sshd]\nenabled = true', dict(WEEK, uptime=6 * 86400)),
    ('[sshd]\nenabled = true', dict(WEEK, jails=[dict(JAIL, failures=1)])),
    ('[sshd]\nenabled = true', dict(WEEK, jails=[dict(JAIL, ignored=1)])),
    ('[sshd]\nenabled = true', dict(WEEK, jails=[dict(JAIL, filter=None)])), ('[sshd]\nenabled = true', None)])
def test_a_jail_that_nobody_asked_for_that_has_seen_something_or_that_is_young_is_not_named(conf, answer):
    assert not list(banwatch.check_jails(Friend(conf=conf, answer=answer)))


def test_another_banning_tool_is_named_once():
    house = WordMachine()
    house.running |= {'fail2ban-server', 'sshguard', 'sshg-blocker'}
    assert [found.text for found in banwatch.check_rivals(Friend(house))] == ['fail2ban is here, too', 'sshguard is here, too']
    assert not list(banwatch.check_rivals(Friend()))


# the whole

def test_a_check_that_fails_does_not_stop_the_others_and_what_it_had_found_stands():
    def check_a(doctor):
        yield banwatch.Finding(OK, 'so far')
        raise KeyError('offload')

    def check_b(doctor):
        raise TimeoutError('late')
        yield

    def check_c(doctor):
        yield banwatch.Finding(OK, 'well')
    so_far, a, b, c = banwatch.findings(Friend(), [check_a, check_b, check_c])
    assert (so_far.text, c.text) == ('so far', 'well')
    assert says(a, WARNING, 'a: could not be looked at', 'offload') and says(b, WARNING, 'late')


def test_lines_are_short_and_printable_whatever_files_and_daemon_say(monkeypatch):
    monkeypatch.setenv('TZ', 'UTC0')
    long = ESCAPE * 200
    house = WordMachine({'/etc/TZ': long})
    house.tools['logger'] = lambda command: (long, '')
    friend = Friend(house, answer={'wrong': [long], 'firewall': [dict(WALL, trouble=long)], 'version': long,
                                   'uptime': 8 * 86400, 'jails': [dict(JAIL, filter=long)]}, conf='[sshd]\nenabled = true')
    friend.mistakes = [long]
    found = list(banwatch.findings(friend))
    assert len(found) > 8
    for row in found:
        assert (row.text + row.remedy).isprintable() and len('%-8s %s (%s)' % row) <= 200, row


# a packet

class Kernel(WordMachine):
    """Its programs succeed, but for one; packets of the loopback pass as often as it says."""

    def __init__(self, passing, failing=''):
        super().__init__()
        self.passing, self.tools = list(passing), {name: lambda command: ('', '') for name in ('nft', 'iptables', 'iptables-restore', 'ipset')}
        if failing:
            self.tools[failing] = lambda command: (failing + ': refused', '')

    def root(self):
        return True

    def passes(self, ip):
        return self.passing.pop(0)


@pytest.mark.parametrize('kind', ['nft', 'iptables', 'ipset'])
@pytest.mark.parametrize('passing, failing, level, text', [
    ([True, False], '', OK, 'a packet that has to be dropped is dropped'),
    ([True, True], '', PROBLEM, 'a packet that its rules drop comes through'),
    ([False], '', WARNING, 'not tried, for packets from 127.66.97.110 pass nowhere'),
    ([True], 'list', PROBLEM, 'its rules cannot be read'), ([True], 'change', PROBLEM, ': refused')])
def test_a_packet_is_dropped_or_it_is_said_what_is_wrong(kind, passing, failing, level, text):
    tools = {'list': {'nft': 'nft'}.get(kind, 'iptables'), 'change': {'iptables': 'iptables-restore'}.get(kind, kind)}
    if (kind, failing) == ('nft', 'change'):
        machine = Kernel(passing)
        machine.tools['nft'] = lambda command: ('nft: refused' if command.stdin else '', '')
    else:
        machine = Kernel(passing, tools.get(failing, ''))
    says(only(banwatch.check_drops, machine, answer={'firewall': [dict(WALL, name=kind)]}), level, kind, text)


@pytest.mark.parametrize('wall', [{'name': 'none'}, {'name': 'command'}, {'trouble': 'refused'}])
def test_a_firewall_that_is_none_or_does_not_work_is_sent_no_packet(wall):
    assert not list(banwatch.check_drops(Friend(Kernel([]), answer={'firewall': [dict(WALL, **wall)]})))


RULES = '-P INPUT ACCEPT\n-A INPUT -i lo -j ACCEPT\n'


@pytest.mark.parametrize('failing, kind, level', [('', 'ipset', OK), ('ipset', 'iptables', OK), ('iptables-restore', 'nft', OK)])
def test_without_a_daemon_the_firewall_that_one_would_take_is_tried(failing, kind, level):
    machine = Kernel([True, False] * 3, failing)
    machine.tools['iptables'] = machine.tools['ip6tables'] = lambda command: ('', RULES if '-S' in command.argv else '')
    machine.passes = lambda ip: not (machine.ran and machine.ran[-1].stdin and 'drop' in machine.ran[-1].stdin.lower())
    says(only(banwatch.check_drops, machine), level, kind + ': a packet that has to be dropped is dropped')


def test_without_a_daemon_a_firewall_that_the_conf_names_is_tried_alone():
    says(only(banwatch.check_drops, Kernel([True], 'iptables'), firewall='iptables'), PROBLEM, 'iptables', 'cannot be read')


@pytest.mark.parametrize('to, level', [('root', WARNING), ('me@example.org', OK), ('me@example.org, root', WARNING)])
def test_msmtp_wants_whole_addresses(to, level, tmp_path, monkeypatch):
    os.symlink('/usr/bin/msmtp', str(tmp_path / 'sendmail'))
    machine = WordMachine()
    machine.which = lambda name: str(tmp_path / name)
    says(only(banwatch.check_mail, machine, conf='[report]\nto = %s\n' % to), level, to)
    machine.which = lambda name: '/usr/sbin/exim4'
    says(only(banwatch.check_mail, machine, conf='[report]\nto = %s\n' % to), OK)


def test_processes_of_other_networks_are_not_of_this_machine():
    need('unshare', root=True)
    child = subprocess.Popen(['unshare', '-n', 'sh', '-c', 'exec sleep 50'])
    own = subprocess.Popen(['sleep', '51'])
    try:
        assert poll(lambda: open('/proc/%d/comm' % child.pid).read() == 'sleep\n')
        machine = banwatch.Machine()
        assert 'sleep' in machine.processes()
        own.kill()
        own.wait()
        if not any(row.strip() == 'sleep' for row in subprocess.run(['ps', '-C', 'sleep', '-o', 'comm=,pid='], stdout=subprocess.PIPE,
                                                                     universal_newlines=True).stdout.split('\n')):
            assert os.readlink('/proc/%d/ns/net' % child.pid) != os.readlink('/proc/self/ns/net')
    finally:
        child.kill()
        child.wait()


# real ones

class ExaminedRouter:
    """banwatch on the router, with a syslogd, a sendmail of our own, and the machine's doctor."""

    def __init__(self, network, daemon, firewall, **more):
        need('busybox', 'logger', 'nft', root=True)
        self.network = network
        self.sendmail = network.write('sendmail', '#!/bin/sh\ncat >%s\n' % network.path('mail'), 0o755)
        self.syslog = network.router.popen(['busybox', 'syslogd', '-n', '-O', network.log])
        assert poll(lambda: network.router.run(['test', '-S', '/dev/log']).returncode == 0)
        self.daemon = daemon('[report]\nsendmail = %s\nto = me@example.org' % self.sendmail, firewall=firewall, **more)

    def doctor(self, *words):
        """(exit code, findings)"""
        done = self.daemon.command('doctor', '--json', *words)
        assert not done.stderr, done
        return done.returncode, [banwatch.Finding(**row) for row in json.loads(done.stdout)]


def of(found, beginning):
    """The findings whose text begins so; other banning tools may run on the machine that tests."""
    return [row for row in found if row.text.startswith(beginning)]


SPOIL = {'nft': 'nft delete table inet banwatch', 'iptables': 'iptables -I INPUT 1 -p icmp -j ACCEPT',
         'ipset': 'iptables -D INPUT -j banwatch'}
CHAIN = 'iptables -N banwatch-trial; iptables -I INPUT 2 -j banwatch-trial; iptables -A banwatch-trial -s 127.66.97.110 -j DROP'
LEFT = {'iptables': CHAIN, 'ipset': CHAIN, 'nft': 'nft -f - <<X\ntable inet banwatch-trial { chain input { '
        'type filter hook input priority -10; ip saddr 127.66.97.110 drop; }; }\nX'}        # by a doctor that was killed


def rules(network):
    """All that the router's kernel has been told, without what changes by itself."""
    return re.sub(r'(?m)\[\d+:\d+\]|expires \S+|packets \d+ bytes \d+|^#.*', '',
                  network.router.script('iptables-save; nft list ruleset; ipset list -n'))



FORGER = """
import re, socket
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    with open('/proc/net/udp') as f:
        for port in re.findall(r'(?m)^ *\\d+: 0100007F:(\\w+)', f.read()):
            sender.sendto(b'banwatch', ('127.0.0.1', int(port, 16)))
"""


@pytest.mark.slow
def test_packets_of_others_are_not_taken_for_the_one_that_was_sent(network):
    need('iptables', root=True)
    forger = network.router.popen([sys.executable, '-c', FORGER])
    with network.router.entered():
        assert banwatch.Machine().passes(banwatch.TRIAL_IP)
        network.router.script('iptables -I INPUT -s %s -j DROP' % banwatch.TRIAL_IP)
        assert not any(banwatch.Machine().passes(banwatch.TRIAL_IP) for _ in range(3)) and forger.poll() is None


@pytest.mark.slow
@pytest.mark.parametrize('firewall', sorted(SPOIL))
def test_on_a_real_router_all_is_well_and_what_somebody_spoils_is_mended_and_told(network, daemon, firewall):
    router = ExaminedRouter(network, daemon, firewall)
    network.router.script('iptables -A INPUT -i lo -j ACCEPT; iptables -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT')
    assert router.daemon.command('ban', '198.51.100.7').returncode == 0
    before = rules(network)
    network.router.script(LEFT[firewall])
    code, found = router.doctor('--mail')
    assert rules(network) == before
    assert code == 0 and {row.level for row in found} <= {OK, WARNING}, found
    for beginning in ('daemon: pid', 'conf: ', 'log: what is logged', firewall + ': its rules stand first', firewall + ': a packet that has to be dropped is dropped', 'clock: ', 'mail: ' + router.sendmail):
        assert [row.level for row in of(found, beginning)] == [OK], (beginning, found)
    with open(network.path('mail')) as f:
        assert 'To: me@example.org' in f.read()
    network.router.script(SPOIL[firewall])
    code, found = router.doctor()
    mended, = [row for row in found if 'are again' in row.text]
    assert code == 0 and says(mended, WARNING, firewall, 'what else changes the firewall')
    assert of(router.doctor()[1], firewall + ': its rules stand first')


@pytest.mark.slow
def test_on_a_real_router_each_thing_that_is_amiss_is_a_line_and_the_exit_code(network, daemon):
    os.mkfifo(network.log + '.pipe')               # which nobody ever writes to
    router = ExaminedRouter(network, daemon, 'nft', source=network.log + '*')
    network.write('sendmail', '#!/bin/sh\necho "no such user" >&2; exit 67\n', 0o755)
    router.syslog.kill()
    router.syslog.wait(5)
    network.router.script('rm -f /dev/log; mount -t tmpfs none /run/sshd; mkdir /run/sshd/up /run/sshd/work /run/sshd/etc; '
                          'mount -t overlay none -o lowerdir=/etc,upperdir=/run/sshd/up,workdir=/run/sshd/work /etc; '
                          'mkdir -p /etc/ssh /etc/rc.d /etc/init.d; echo LogLevel QUIET >/etc/ssh/sshd_config; '
                          ': >/etc/init.d/banip; : >/etc/rc.d/S95banip')
    with open(router.daemon.conf, 'a') as f:
        f.write('\n[nonsense\n')
    router.daemon.stop()
    done = router.daemon.command('doctor', '--mail')
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    rows = done.stdout.splitlines()
    assert all(len(row) <= 200 for row in rows)
    wrong = [row[9:] for row in rows if row.startswith(PROBLEM)]
    for words in ('no daemon is running', '%s:' % router.daemon.conf, 'log: ', 'LogLevel QUIET', 'no such user'):
        assert [row for row in wrong if words in row], (words, rows)
    assert [row for row in rows if row.startswith('warning  banIP is here, too')]
    assert [row for row in rows if row.startswith('ok       clock')], 'the others go on'


@pytest.mark.slow
def test_an_ordinary_user_is_told_to_be_root():
    need('setpriv', root=True)
    with open(banwatch.__file__) as program:           # who may not read where it lies gets it as standard input
        done = subprocess.run(['setpriv', '--reuid=65534', '--clear-groups', sys.executable, '-', 'doctor'], stdin=program,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=30)
    assert (done.returncode, done.stdout) == (77, '') and 'try sudo' in done.stderr, done


@pytest.mark.slow
def test_who_has_no_patience_with_a_program_that_hangs_can_end_it(tmp_path):
    (tmp_path / 'messages').write_text('')
    (tmp_path / 'logger').write_text('#!/bin/sh\n: >%s/begun\nexec sleep 60\n' % tmp_path)
    (tmp_path / 'logger').chmod(0o755)
    conf = tmp_path / 'c.conf'
    conf.write_text('[banwatch]\nruntime = %s/run\nsource = %s/messages\n' % (tmp_path, tmp_path))
    with subprocess.Popen([sys.executable, banwatch.__file__, '-c', str(conf), 'doctor'], stdout=subprocess.DEVNULL,
                          env=dict(os.environ, PATH='%s:%s' % (tmp_path, os.environ['PATH']))) as process:
        assert poll((tmp_path / 'begun').exists)
        process.send_signal(signal.SIGINT)
        assert process.wait(3) == 130
