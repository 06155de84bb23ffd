"""Actions: commands of the operator's own at each ban and unban. What they are told, in which order, and what if they fail."""
import ast
import json
import os
import random
import re
import signal
import sys

import pytest

import banwatch
from harness import LINE, FakeMachine, House, config, poll, seeds
from test_filters import corpus, listeners

OFF = '[dropbear]\nenabled = false\n[sshd]\nenabled = false\n[luci]\nenabled = false\n'
BELL = '[bell]\nfailregex = ^from <HOST> by <F-USER>.*</F-USER>$\n'
NOTE = '''[action note]
actionstart = note start
actionstop = note stop
actionban = note ban <ip> <restored>
actionunban = note unban <ip>
'''
# names as an attacker would like to have them: UTF-8, but for one
HOSTILE = [text if type(text) is bytes else text.encode() for text in (
    'two words', '"', "it's", '$(touch pwned)', '`touch pwned`', '; touch pwned', '| touch pwned', '-rf', '--', '<ip> <matches> <F-USER>',
    '%s{}\\', '~root', '*', 'a\0b', 'a\rb\x1b[31m\x7f', '\u2028\u202e', '\u20ac\U0001f600', b'\xff\xfe', 'x' * 8000, '\U000e0001' * 300)]


class Hands(FakeMachine):
    """A FakeMachine on which the commands of `bell` end when the test says so, while `holding` is set."""
    holding = False              # not `slow`: that is what a Machine calls its seconds of slow searches

    def __init__(self):
        self.held = []               # what waits for their end
        super().__init__()

    def run(self, command, done, seconds=10):
        if self.holding and command.environment.get('BANWATCH_JAIL') == 'bell':
            self.ran.append(command)
            self.held.append(done)
        else:
            super().run(command, done, seconds)

    def finish(self, problem=''):
        self.held.pop(0)(problem, '')


class RealActions(FakeMachine):
    """A FakeMachine that really runs the commands of actions; their deadlines are on its clock."""

    def run(self, command, done, seconds=10):
        if command.environment:
            banwatch.Machine.run(self, command, done, seconds)
        else:
            super().run(command, done, seconds)


class Bell(House):
    """A House where each line `from 192.0.2.7 by x` is a ban in the jail `bell`, which has the action `note`."""

    def __init__(self, folder, text=NOTE, machine=None, firewall='command', **defaults):
        self.broken = set()          # words; a command with one of them fails
        machine = machine or Hands()
        machine.answer = lambda command: ('note: broken' if self.broken & set(command.argv) else '', '')
        super().__init__(folder, OFF + BELL + text, firewall, machine, **dict({'action': 'note', 'maxretry': 1}, **defaults))

    def ring(self, *ips, by=b'x'):
        with open(self.fifo, 'wb') as f:
            f.write(b''.join(b'from %s by %s\n' % (ip.encode(), by) for ip in ips))
        self.turn()

    def commands(self):
        """What has been run for the jail."""
        return [command for command in self.machine.ran if command.environment.get('BANWATCH_JAIL') == 'bell']

    def ran(self):
        """The same as lines, without the program; those that were not asked for yet."""
        found = [' '.join(command.argv[1:]) for command in self.commands()]
        self.machine.ran = [command for command in self.machine.ran if not command.environment]
        return found

    def until(self, question, seconds=10):
        """Lets real programs end; what happens meanwhile takes no time of the daemon's clock."""
        assert poll(lambda: (self.machine.reap(), self.turn(1), question())[-1], seconds), self.machine.logged

    def trouble(self):
        return [row['trouble'] for row in self.ask('status')['actions'] if row['name'] == 'note (bell)'][0]


@pytest.fixture
def bell(tmp_path):
    made = Bell(tmp_path)
    assert made.ran() == ['start']
    return made


@pytest.fixture
def make(tmp_path):
    return lambda *args, **more: Bell(tmp_path, *args, **more)


@pytest.fixture
def diary(tmp_path):
    """A program that writes down its arguments and environment; and a function that reads what it has written."""
    program, notes = tmp_path / 'diary', tmp_path / 'notes'
    program.write_text('#!%s -SE\nimport os, sys\nnote = [list(map(os.fsencode, sys.argv[1:])), dict(os.environb)]\n'
                       'with open(%r, "a") as f:\n    f.write(repr(note) + "\\n")\n' % (sys.executable, str(notes)))
    program.chmod(0o755)
    return program, lambda: [ast.literal_eval(line) for line in notes.read_text().split('\n')[:-1]] if notes.exists() else []


@pytest.fixture
def fifo(network):
    """A source, and a function that writes lines to it."""
    path = network.path('fifo')

    def write(*lines):
        with open(path, 'wb') as f:
            f.write(b''.join((line if type(line) is bytes else line.encode()) + b'\n' for line in lines))
    return 'fifo:' + path, write


def complaints(text):
    return banwatch.in_order(banwatch.read_config(text, 'c')[1])


# --- what a command is told

def test_each_tag_means_what_it_means_in_fail2ban(make):
    tags = 'jail name port protocol ip family ip-rev bantime bancount failures time restored'.split()
    house = make('port = ssh,8000:8080\n[action note]\nactionban = note ' + ' '.join('%s=<%s>' % (tag, tag) for tag in tags))
    house.ring('192.0.2.7', '2001:db8::7')
    four, six = (dict(word.split('=') for word in line.split(' ')) for line in house.ran())
    assert four == {
        'jail': 'bell', 'name': 'bell', 'port': '22,8000:8080', 'protocol': 'tcp', 'ip': '192.0.2.7', 'family': 'inet4', 'ip-rev': '7.2.0.192.',
        'bantime': '600', 'bancount': '1', 'failures': '1', 'time': '1800000000', 'restored': '0'}
    assert (six['ip'], six['family'], six['ip-rev']) == ('2001:db8::/64', 'inet6', '0.' * 24 + '8.b.d.0.1.0.0.2.')


def test_bancount_and_bantime_grow_and_a_ban_for_ever_lasts_minus_one(make):
    house = make('[action note]\nactionban = note <ip> <bancount> <bantime>')
    house.ring('192.0.2.7')
    house.pass_time(601)
    house.ring('192.0.2.7')
    house.ask('ban', networks=['192.0.2.8'], seconds=-1, jail='bell')
    assert house.ran() == ['192.0.2.7 1 600', '192.0.2.7 2 1200', '192.0.2.8 1 -1']


def test_a_program_finds_every_tag_in_its_environment(make):
    house = make()
    house.ring('192.0.2.7', by=b'root')
    start, ban = house.commands()
    assert start.environment == {'BANWATCH_JAIL': 'bell', 'BANWATCH_NAME': 'bell', 'BANWATCH_PORT': '', 'BANWATCH_PROTOCOL': 'tcp'}
    assert ban.environment == dict(start.environment, **{'BANWATCH_' + key: value for key, value in {
        'IP': '192.0.2.7', 'FAMILY': 'inet4', 'IP_REV': '7.2.0.192.', 'BANTIME': '600', 'BANCOUNT': '1', 'FAILURES': '1', 'TIME': '1800000000',
        'RESTORED': '0', 'F_USER': 'root', 'MATCHES': 'from 192.0.2.7 by root', 'FID': '192.0.2.7', 'IPMATCHES': 'from 192.0.2.7 by root',
        'IPJAILMATCHES': 'from 192.0.2.7 by root', 'IPFAILURES': '1', 'IPJAILFAILURES': '1', 'JAIL_NAME': 'bell', 'JAIL_BANNED': '1',
        'JAIL_BANNED_TOTAL': '1', 'JAIL_FOUND': '0', 'JAIL_FOUND_TOTAL': '1',
        'RAW_TICKET': "Ticket: ip=192.0.2.7 time=1800000000 bantime=600 bancount=1 #attempts=1 matches='from 192.0.2.7 by root'"}.items()})


def test_the_matches_are_the_last_ten_lines_one_a_line(make):
    house = make(maxretry=12)
    for n in range(12):
        house.ring('192.0.2.7', by=b'%d' % n)
    environment = house.commands()[-1].environment
    assert environment['BANWATCH_MATCHES'].split('\n') == ['from 192.0.2.7 by %d' % n for n in range(2, 12)]
    assert environment['BANWATCH_F_USER'] == '11' and environment['BANWATCH_FAILURES'] == '12'


def test_a_built_in_filter_tells_the_line_and_the_user(tmp_path):
    house = House(tmp_path, '[action note]\nactionban = note <ip>', 'command', action='note')
    house.fail('192.0.2.7', 3)
    ban, = [command for command in house.machine.ran if 'BANWATCH_IP' in command.environment]
    assert ban.argv == ['note', '192.0.2.7'] and ban.environment['BANWATCH_F_USER'] == 'root'
    assert ban.environment['BANWATCH_MATCHES'] == ''.join(LINE % (n, '192.0.2.7') for n in range(3)).rstrip('\n')


@pytest.mark.slow
def test_built_in_filters_tell_whole_lines_and_ports_of_each_form_but_rfc_5424():
    told = ports = 0
    for name, group in (case.values for case in corpus()):
        block = b''.join(row[-1] + b'\n' for row in group)
        for made, bare in listeners(name) if not re.search(br'^<\d+>1 ', block, re.M) else ():
            made.keep_matches = True
            for seen in made.scan(banwatch.tidy(block), lambda date: 1000.0, bare):
                if not seen.login:
                    line, fields = seen.told
                    assert line.encode('utf-8', 'surrogateescape') in banwatch.tidy(block) or line in [
                        row[-1].strip().decode('utf-8', 'backslashreplace') for row in group]
                    assert {name: value for name, value in fields.items() if name != 'port'} == ({'user': seen.user} if seen.user else {})
                    assert fields.get('port', '0').isdigit()                  # that of its line, or of its connection
                    ports += 'port' in fields
                    told += 1
    assert told > 1000 and ports > 300


def test_without_an_action_nothing_of_the_log_is_kept(tmp_path):
    house = House(tmp_path)
    house.fail('192.0.2.7', 2)
    assert not house.daemon.judge.jails.by_name['dropbear'].matches


def test_text_of_the_log_is_in_no_argument_but_in_the_environment(make):
    house = make('[action note]\nactionban = note <ip> <bantime>')
    for n, name in enumerate(HOSTILE):
        house.ring('192.0.2.%d' % n, by=name)
    bans = house.commands()
    assert len(bans) == len(HOSTILE)
    for n, (ban, name) in enumerate(zip(bans, HOSTILE)):
        line = 'from 192.0.2.%d by %s' % (n, name.decode('utf-8', 'backslashreplace'))
        user = banwatch.printable(name.decode('utf-8', 'backslashreplace'))[:256]
        assert ban.argv == ['note', '192.0.2.%d' % n, '600']
        assert ban.environment['BANWATCH_F_USER'] == user
        assert ban.environment['BANWATCH_MATCHES'].startswith(banwatch.printable(line)[:256])
        assert not re.search('[\0-\x1f\x7f-\x9f\u2028\u202e]', ''.join(ban.environment.values()))


@pytest.mark.slow
def test_real_programs_get_the_same_and_no_shell_sees_it(make, diary, tmp_path):
    program, notes = diary
    house = make('[action note]\nactionban = %s <ip>' % program, RealActions())
    for n, name in enumerate(HOSTILE):
        house.ring('192.0.2.%d' % n, by=name)
    house.until(lambda: len(notes()) == len(HOSTILE))
    for n, (name, (argv, environment)) in enumerate(zip(HOSTILE, notes())):
        user = banwatch.printable(name.decode('utf-8', 'backslashreplace'))[:256].encode()
        assert argv == [b'192.0.2.%d' % n] and environment[b'BANWATCH_F_USER'] == user
    assert not os.path.exists('/pwned') and not (tmp_path / 'pwned').exists()


def test_programs_start_in_the_root_folder_with_nothing_but_a_path_a_language_and_our_tags(make, diary):
    program, notes = diary
    house = make('[action note]\nactionban = %s' % program, RealActions())
    house.ring('192.0.2.7')
    house.until(notes)
    assert {key for key in notes()[0][1] if not key.startswith(b'BANWATCH_')} <= {b'PATH', b'LC_ALL', b'LC_CTYPE'}


@pytest.mark.slow
def test_where_text_is_not_utf_8_names_are_passed_on_all_the_same(daemon, fifo, diary, monkeypatch):
    monkeypatch.setenv('PYTHONUTF8', '0')              # as with a locale of ISO 8859-1
    monkeypatch.setenv('PYTHONCOERCECLOCALE', '0')
    monkeypatch.setenv('LC_ALL', 'C')
    program, notes = diary
    source, write = fifo
    running = daemon(BELL + '[action note]\nactionban = %s <ip>' % program, source, 'command', action='note', maxretry=1)
    write('from 198.51.100.7 by \u20ac')
    assert poll(notes), running.said()
    assert notes()[0][0] == [b'198.51.100.7'] and notes()[0][1][b'BANWATCH_F_USER'] == '\u20ac'.encode()


# --- the conf

@pytest.mark.parametrize('text, line, complaint', [
    ('[action note]\nactionban = note <ipp>', 2, "actionban: 'note <ipp>': <ipp> means nothing here (there are: jail name port protocol ip "),
    ('[action note]\n\nactionban = note <ip>\n    note <jail.closed>', 3, '<jail.closed> means nothing here'),
    ('[action note]\nactionban = note x=<F-user>', 2, '<F-user> is text of the log'),
    ('[action note]\nactionstart = note <ip>', 2, '<ip> means nothing here (there are: jail name port protocol)'),
    ('[action note]\nactioncheck = note <time>', 2, '<time> means nothing here'),
    ('[action note]\nactionban = /bin/<name> x', 2, 'the program has to be named'),
    ('[action note]\nactionban = note "<ip>', 2, "'note \"<ip>': no closing quotation"),
    ('[action note]\nactionban = note <ip>\\', 2, 'no escaped character'),
    ('[action note]\nactionbann = note', 2, 'actionbann: no such option in [action note] (did you mean actionban?)'),
    ('[action note]\nmaxretry = 3', 2, 'maxretry: no such option in [action note] (it belongs into [DEFAULT])'),
    ('[sshd]\nactionban = note', 2, 'actionban: no such option in [sshd] (it belongs into [action NAME])'),
    ('[action note]\ntimeout = 0', 2, 'timeout: \'0\' is too short'),
    ('[action note]\ntimeout = never', 2, 'is not a duration'),
    ('[action note]\n[action note]\n', 2, '[action note] stands here twice'),
    ('[action a b]\n', 1, '[action a b]: '),
    ('[action -x]\n', 1, '[action -x]: '),
    ('[sshd]\naction = note', 2, 'action: there is no [action note]'),
    ('[DEFAULT]\nmaxretry = 3\naction = note\n[action not]', 3, 'action: there is no [action note]'),
    ('[banwatch]\n\nfirewall = command', 3, 'firewall: command bans by `action` alone, but [manual] has none'),
    ('[banwatch]\nfirewall = command\n[DEFAULT]\naction = x\n[action x]\nactionstart = a', 2, 'but [manual] has none with an actionban'),
    ('[action x]\nactionban = note <ip>; note done', 2, '; is for a shell'),
    ('[banwatch]\nfirewall = command\n[DEFAULT]\naction = x\n[sshd]\naction =\n[action x]', 2, 'but [sshd] has none'),
])
def test_a_mistake_is_told_with_its_line(text, line, complaint):
    found = complaints(text)
    assert any(said.startswith('c:%d: ' % line) and complaint in said for said in found), found
    assert all('\n' not in said for said in found)


@pytest.mark.parametrize('option', ['actionban', 'actionunban', 'actionstart', 'actionflush'])
@pytest.mark.parametrize('words, tag, name', [
    ('note <F-USER>', 'F-USER', 'F_USER'), ('note --user=<F-USER>', 'F-USER', 'F_USER'), ('note "-m <matches>"', 'matches', 'MATCHES'),
    ("sh -c 'echo <F-ALT-USER>'", 'F-ALT-USER', 'F_ALT_USER'), ('<F-ID> x', 'F-ID', 'F_ID'), ('ssh router "add <matches>"', 'matches', 'MATCHES')])
def test_a_tag_of_the_logs_text_in_an_argument_is_a_mistake_that_names_the_variable(option, words, tag, name):
    """No quoting can hold what an attacker writes: not in a shell's script, not as an option."""
    said, = complaints('[action note]\n%s = %s' % (option, words))
    assert said.startswith('c:2: %s: ' % option) and '<%s> is text of the log' % tag in said and '$BANWATCH_%s in' % name in said


@pytest.mark.parametrize('line, word', [
    ('echo <ip> >>/tmp/bans', '>>/tmp/bans'), ('echo <ip> > /tmp/bans', '>'), ('note <ip> | mail root', '|'), ('note <ip> && note done', '&&'),
    ('note <ip> || true', '||'), ('note <ip> 2>/dev/null', '2>/dev/null'), ('note <ip> &', '&'), ('note <jail> </dev/null', '</dev/null')])
def test_what_only_a_shell_would_understand_is_a_mistake(line, word):
    """In fail2ban it works; here the program would get it as an argument, and nobody would notice."""
    found, = complaints('[action note]\nactionban = %s' % line)
    assert found.startswith("c:2: actionban: '%s': %s is for a shell" % (line, word))


@pytest.mark.parametrize('line', [
    "note '|' \"a \\\" > b\" --sep='&&' x=<ip>", 'note -verbose <jail>', 'note https://example.org/?a=<ip>&b=<bantime>',
    "sh -c 'echo <ip> \"$BANWATCH_F_USER\"'", "sh -c 'echo \"$1\"' sh <ip>",
    'ssh router add <ip> <bantime>', '/usr/bin/note -c <ip>', 'mail -s "ban of <ip>" root'])
def test_what_can_do_no_harm_is_no_mistake(line):
    assert complaints('[action note]\nactionban = %s' % line) == []


def test_a_jail_may_have_two_actions_and_names_one_twice_in_vain(make):
    house = make('action = note, other note\n' + NOTE + '[action other]\nactionban = other <ip>\n')
    house.ring('192.0.2.7')
    assert [command.argv for command in house.commands()] == [
        ['note', 'start'], ['note', 'ban', '192.0.2.7', '0'], ['other', '192.0.2.7']]


def test_each_line_of_an_option_is_a_command(make):
    house = make('[action note]\nactionban = note "a b" \'<ip>\' c\\ d ""\n    note second\n\n    # not this\n    note third ; nor this')
    house.ring('192.0.2.7')
    assert [command.argv for command in house.commands()] == [
        ['note', 'a b', '192.0.2.7', 'c d', ''], ['note', 'second'], ['note', 'third']]


def test_what_is_printed_reads_back_as_the_same():
    made = config('[sshd]\naction = note other\n' + NOTE + 'timeout = 3s\n'
                  '[action other]\nactionban =\n    other "a  b" <ip>\n    other \'x <jail> y\'\n')
    printed = banwatch.config_text(made)
    again, found = banwatch.read_config(printed, 'again')
    assert not found and banwatch.config_text(again) == printed
    for name in 'note', 'other':
        assert again.options('action ' + name) == made.options('action ' + name)
    assert again.get('sshd', 'action') == ['note', 'other'] and again.get('dropbear', 'action') == []


# --- their order

def test_start_comes_first_then_each_ban_its_unban_and_stop_last(bell):
    bell.ring('192.0.2.7')
    bell.ring('192.0.2.8')
    bell.ask('unban', networks=['192.0.2.7'])
    bell.ring('192.0.2.9')
    bell.pass_time(601)
    bell.ring('192.0.2.10')
    bell.stop()
    assert bell.ran() == ['ban 192.0.2.7 0', 'ban 192.0.2.8 0', 'unban 192.0.2.7', 'ban 192.0.2.9 0', 'unban 192.0.2.8', 'unban 192.0.2.9',
                          'ban 192.0.2.10 0', 'unban 192.0.2.10', 'stop']


def test_bans_of_other_jails_are_not_told(bell):
    bell.ask('ban', networks=['192.0.2.7'])
    assert bell.ran() == []


def test_restored_bans_are_told_after_the_start_as_such(bell):
    bell.ring('192.0.2.7', '192.0.2.8')
    bell.stop()
    bell.pass_time(60)
    bell.restart()
    bell.ring('192.0.2.9')
    assert sorted(bell.ran()[1:3]) == ['ban 192.0.2.7 1', 'ban 192.0.2.8 1']


def test_a_flush_stands_for_the_unbans_of_a_stop(make):
    house = make(NOTE + 'actionflush = note flush\n')
    house.ring('192.0.2.7', '192.0.2.8')
    house.ask('unban', networks=['192.0.2.8'])
    house.stop()
    assert house.ran() == ['start', 'ban 192.0.2.7 0', 'ban 192.0.2.8 0', 'unban 192.0.2.8', 'flush', 'stop']


def test_a_running_ban_that_is_extended_is_not_told_again(make):
    house = make(bantime_extend=60)
    house.ring('192.0.2.7')
    house.ring('192.0.2.7')
    house.ask('ban', networks=['192.0.2.7'], jail='bell', seconds=7200)
    assert house.ran() == ['start', 'ban 192.0.2.7 0']
    house.pass_time(7201)
    assert house.ran() == ['unban 192.0.2.7']


def test_one_command_at_a_time_and_what_ends_before_its_turn_is_never_told(bell):
    bell.machine.holding = True
    bell.ring('192.0.2.7', '192.0.2.8', '192.0.2.9')
    bell.ask('unban', networks=['192.0.2.8'])
    assert bell.ran() == ['ban 192.0.2.7 0']
    bell.ask('unban', networks=['192.0.2.7'])
    bell.ring('192.0.2.8')
    bell.machine.holding = False
    bell.machine.finish()
    bell.turn(9)
    assert bell.ran() == ['ban 192.0.2.9 0', 'unban 192.0.2.7', 'ban 192.0.2.8 0']


def test_a_ban_that_comes_and_goes_while_the_last_one_is_lifted_is_not_lifted_twice(bell):
    bell.ring('192.0.2.7')
    bell.machine.holding = True
    bell.ask('unban', networks=['192.0.2.7'])
    bell.ring('192.0.2.7')
    bell.ask('unban', networks=['192.0.2.7'])
    bell.machine.holding = False
    bell.machine.finish()
    bell.turn(9)
    assert bell.ran() == ['ban 192.0.2.7 0', 'unban 192.0.2.7'] and bell.daemon.wing('actions').runners[-1].idle()


def test_what_needs_no_program_waits_for_no_event(make):
    house = make('[action note]\nactionunban = note unban <ip>\n', firewall='nft')
    house.ring(*['192.0.2.%d' % n for n in range(9)])
    house.ask('unban', all=True, networks=[])
    assert len(house.ran()) == 9
    house.ring('192.0.2.7')
    house.daemon.minute()
    house.ask('unban', networks=['192.0.2.7'])
    assert house.ran() == ['unban 192.0.2.7']


def test_after_each_turn_of_the_loop_something_is_under_way_or_there_is_nothing_to_do(make):
    """A turn that leaves work behind, with nothing that wakes the loop, would delay it until something else happens."""
    house = make('[action note]\nactionban =\nactionunban = note unban <ip>\n', firewall='nft')
    house.ring('192.0.2.7', '192.0.2.8')
    courier, = [each for each in house.daemon.wing('actions').runners if each.name == 'note (bell)']
    for ticket in list(house.daemon.judge.bans.tickets.values()):
        house.daemon.unban(ticket, 'test')
    courier.minute()
    house.daemon.settle()
    assert courier.idle() and len(house.ran()) == 2


def test_a_reload_with_the_same_commands_goes_on(bell):
    bell.ring('192.0.2.7')
    bell.text += '[action other]\nactionban = other\n'
    bell.ask('reload')
    bell.ring('192.0.2.8')
    assert bell.ran() == ['ban 192.0.2.7 0', 'ban 192.0.2.8 0']


@pytest.mark.parametrize('change', [('note stop', 'note halt'), ('[bell]\n', '[bell]\nport = 22\n')])
def test_a_reload_with_other_commands_ends_the_old_ones_before_it_starts_the_new_ones(bell, change):
    bell.ring('192.0.2.7')
    bell.pass_time(1)
    bell.text = bell.text.replace(*change)
    bell.ask('reload')
    bell.turn(9)
    assert bell.ran() == ['ban 192.0.2.7 0', 'unban 192.0.2.7', 'stop', 'start', 'ban 192.0.2.7 1']


def test_the_new_commands_wait_until_the_last_of_the_old_ones_has_ended(bell):
    bell.ring('192.0.2.7')
    bell.pass_time(1)
    bell.machine.holding = True
    for text in 'note halt', 'note end':
        bell.text = re.sub('(?<=actionstop = ).*', text, bell.text)
        bell.ask('reload')
    for _ in range(9):
        bell.turn()
        if bell.machine.held:
            bell.machine.finish()
    assert bell.ran() == ['ban 192.0.2.7 0', 'unban 192.0.2.7', 'stop', 'start', 'ban 192.0.2.7 1']


def test_an_action_that_a_jail_no_longer_has_lifts_its_bans_and_they_go_on_without_it(bell):
    bell.ring('192.0.2.7')
    bell.pass_time(1)
    bell.text = bell.text.replace('[bell]\n', '[bell]\naction = other\n') + '[action other]\nactionban = note other <ip> <restored>\n'
    bell.ask('reload')
    bell.turn(9)
    assert sorted(bell.ran()) == ['ban 192.0.2.7 0', 'other 192.0.2.7 1', 'stop', 'unban 192.0.2.7'] and bell.banned() == ['192.0.2.7']


def test_a_jail_that_is_switched_off_lifts_its_bans(bell):
    bell.ring('192.0.2.7')
    bell.text = bell.text.replace('[bell]\n', '[bell]\nenabled = false\n')
    bell.ask('reload')
    bell.turn(9)
    assert bell.ran() == ['ban 192.0.2.7 0', 'unban 192.0.2.7', 'stop'] and bell.banned() == []


def test_a_reload_forgets_no_line_of_the_log(make):
    house = make(maxretry=2)
    house.ring('192.0.2.7', by=b'one')
    house.ask('reload')
    house.ring('192.0.2.7', by=b'two')
    assert house.commands()[-1].environment['BANWATCH_MATCHES'] == 'from 192.0.2.7 by one\nfrom 192.0.2.7 by two'


def test_lines_of_failures_that_no_longer_count_are_not_told(make):
    house = make(maxretry=2)
    house.ring('192.0.2.7', by=b'yesterday')
    house.pass_time(86400)
    house.ring('192.0.2.7', by=b'one')
    house.ring('192.0.2.7', by=b'two')
    assert house.commands()[-1].environment['BANWATCH_MATCHES'] == 'from 192.0.2.7 by one\nfrom 192.0.2.7 by two'


def test_with_firewall_none_nothing_is_run(tmp_path):
    house = House(tmp_path, NOTE, action='note')
    house.fail('192.0.2.7', 3)
    assert not [command for command in house.machine.ran if command.environment] and house.banned()


def test_a_dry_run_runs_nothing(tmp_path):
    machine = Hands()
    made = banwatch.Daemon(machine, config(OFF + BELL + NOTE, action='note', source='fifo:%s' % (tmp_path / 'log')), dry_run=True)
    made.start()
    made.ban(made.judge.jails.by_name['bell'], '192.0.2.7', 60)
    made.settle()
    assert not [command for command in machine.ran if command.environment]


# --- what if they fail

def test_a_ban_that_fails_is_tried_three_times_with_pauses_and_then_given_up_with_one_line(bell):
    bell.broken = {'ban'}
    bell.ring('192.0.2.7')
    assert bell.ran() == ['ban 192.0.2.7 0'] and bell.trouble() == 'note: broken'
    assert 'note (bell): note: broken' in bell.ask('status')['wrong']
    bell.turn(9)
    assert bell.ran() == []
    bell.pass_time(1)
    assert bell.ran() == ['ban 192.0.2.7 0']
    bell.pass_time(2)
    assert bell.ran() == ['ban 192.0.2.7 0']
    for _ in range(120):
        bell.pass_time(1)
    assert bell.ran() == [] and bell.banned() == ['192.0.2.7']
    assert [line for line in bell.machine.logged if 'note (bell)' in line] == [
        'note (bell): note: broken', 'note (bell): ban of 192.0.2.7 is given up']
    bell.broken = set()
    bell.ring('192.0.2.8')
    assert bell.ran() == ['ban 192.0.2.8 0'] and bell.trouble() == '' and bell.ask('status')['wrong'] == []


def test_an_unban_that_has_to_be_tried_again_does_not_overtake_the_next_ban(bell):
    bell.ring('192.0.2.7')
    bell.machine.holding = True
    bell.ring('192.0.2.8')
    bell.ask('unban', networks=['192.0.2.7'])
    bell.ring('192.0.2.7')
    bell.machine.holding, bell.broken = False, {'unban'}
    bell.machine.finish()
    bell.turn()
    bell.broken = set()
    for _ in range(9):
        bell.pass_time(1)
    assert bell.ran()[-3:] == ['unban 192.0.2.7', 'unban 192.0.2.7', 'ban 192.0.2.7 0']


def test_a_ban_that_has_failed_is_lifted_all_the_same(bell):
    """A program that was killed because it took too long may have done what it should."""
    bell.broken = {'ban'}
    bell.ring('192.0.2.7')
    bell.broken = set()
    bell.ask('unban', networks=['192.0.2.7'])
    bell.pass_time(2)
    assert bell.ran() == ['ban 192.0.2.7 0', 'unban 192.0.2.7']


def test_an_unban_that_was_given_up_is_tried_again_at_the_end(bell):
    bell.ring('192.0.2.7')
    bell.broken = {'unban'}
    bell.ask('unban', networks=['192.0.2.7'])
    for _ in range(9):
        bell.pass_time(1)
    assert bell.ran() == ['ban 192.0.2.7 0'] + 3 * ['unban 192.0.2.7'] and bell.machine.said('unban of 192.0.2.7 is given up')
    bell.stop()
    assert bell.ran() == ['unban 192.0.2.7', 'stop']


def test_a_start_that_fails_is_tried_again_and_bans_wait_for_it(bell):
    bell.broken = {'start'}
    bell.text = bell.text.replace('note stop', 'note halt')
    bell.ask('reload')
    assert bell.ran() == ['stop', 'start'] and bell.trouble() == 'note: broken'
    for n in range(20):
        bell.ring('192.0.2.%d' % n)
        bell.pass_time(300)
        bell.pass_time(301)
    bell.ring('192.0.2.99')
    courier, = [each for each in bell.daemon.wing('actions').runners if each.name == 'note (bell)']
    assert not courier.queue                       # what has been banned and unbanned meanwhile fills no memory
    bell.broken = set()
    bell.pass_time(61)
    assert set(bell.ran()[:-2]) == {'start'} and bell.ran() == []


def test_a_failing_check_starts_anew_and_tells_all_bans_again(make):
    house = make(NOTE + 'actioncheck = note check\nactionflush = note flush\n')
    house.ring('192.0.2.7', '192.0.2.8')
    assert 'check' not in house.ran()
    house.daemon.minute()
    house.turn()
    assert house.ran() == ['check']
    house.broken = {'check', 'stop', 'flush'}
    house.daemon.minute()
    house.turn(9)
    assert [line for line in house.ran() if line != 'flush'] == ['check', 'stop', 'start', 'ban 192.0.2.7 0', 'ban 192.0.2.8 0']
    house.broken = set()
    house.ask('unban', networks=['192.0.2.7'])
    assert house.ran() == ['unban 192.0.2.7'] and house.trouble() == ''


def test_a_stop_lifts_hundreds_of_bans_one_by_one(bell):
    for n in range(4):
        bell.ring(*['10.0.%d.%d' % (n, m) for m in range(100)])
    bell.turn(400)
    bell.stop()
    bell.turn(400)
    assert bell.daemon.stopping, repr([sorted(vars(each).items()) for each in bell.daemon.all_hands() if not each.closed()])[:3000]
    assert len(bell.ran()) == 801


def test_a_stop_in_the_middle_of_a_command_waits_for_its_end_and_not_for_a_pause(bell):
    bell.machine.holding = True
    bell.ring('192.0.2.7', '192.0.2.8')
    bell.daemon.stop()
    bell.turn()
    assert bell.ran() == ['ban 192.0.2.7 0'] and not bell.daemon.stopping
    bell.machine.holding = False
    bell.machine.finish('too late')
    bell.turn()
    assert bell.ran() == ['unban 192.0.2.7', 'stop'] and bell.daemon.stopping


def test_a_stop_ends_each_command_for_itself_though_they_fail(make):
    house = make(NOTE + 'actionflush = note flush\n    note flush2\n')
    house.ring('192.0.2.7')
    house.broken = {'flush', 'flush2', 'stop'}
    house.stop()
    assert house.ran()[2:] == ['flush', 'flush2', 'stop'] and house.daemon.stopping and not house.daemon.left_behind


def test_a_stop_does_not_wait_for_ever(bell):
    bell.ring('192.0.2.7')
    bell.machine.holding = True
    bell.daemon.stop()
    bell.turn()
    bell.pass_time(banwatch.STOP_SECONDS + 1)
    assert bell.daemon.stopping and bell.daemon.left_behind == ['note (bell)']


def test_who_fails_again_and_again_is_not_asked_for_each_ban_at_the_end(bell):
    """One that hangs would hold up those that come after a reload for hours."""
    bell.ring(*['192.0.2.%d' % n for n in range(50)])
    bell.turn(50)
    bell.ran()
    bell.broken = {'unban'}
    bell.text = bell.text.replace('note stop', 'note halt')
    bell.ask('reload')
    bell.turn(60)
    assert bell.ran()[:5] == ['unban 192.0.2.0', 'unban 192.0.2.1', 'unban 192.0.2.2', 'stop', 'start']


class Peer:
    """Another machine's list of addresses, as the commands change it; with `luck` some of them fail, before or after they did so."""

    def __init__(self, luck):
        self.luck, self.listed, self.failed = luck, set(), {}

    def answer(self, command):
        words = command.argv[1:]
        often = self.failed.get(words[0], 0)
        fails = bool(self.luck) and often < banwatch.ActionRunner.TRIES - 1 and self.luck.random() < 0.3
        self.failed[words[0]] = often + 1 if fails else 0
        if not fails or self.luck.random() < 0.5:
            {'ban': lambda: self.listed.add(words[1]), 'unban': lambda: self.listed.discard(words[1])}.get(words[0], self.listed.clear)()
        return 'broken' if fails else '', ''


@seeds(1, 2)
def test_whatever_happens_the_list_of_another_machine_ends_as_the_bans_that_there_are(bell, seed):
    luck = random.Random(seed)
    peer = Peer(luck)
    bell.machine.answer = lambda command: peer.answer(command) if command.environment.get('BANWATCH_JAIL') == 'bell' else ('', '')

    def finish():
        while bell.machine.held:                   # real ones end between two turns of the loop
            bell.machine.finish(peer.answer(bell.commands()[-1])[0])
            bell.turn(1)
            if luck.random() < 0.5:
                break
    steps = [lambda: bell.ring('192.0.2.%d' % luck.randrange(4)), lambda: bell.ask('unban', networks=['192.0.2.%d' % luck.randrange(4)]),
             lambda: bell.pass_time(luck.choice([1, 3, 300])), finish, finish, lambda: setattr(bell.machine, 'slow', luck.random() < 0.7)]
    for n in range(60):
        luck.choice(steps)()
        if luck.random() < 0.03:
            bell.text = re.sub('(?<=actionstop = ).*', 'note stop%d' % n, bell.text)
            bell.ask('reload')
    bell.machine.holding = False
    peer.luck = None
    for n in range(200):
        finish()
        bell.pass_time(1)
    assert sorted(peer.listed) == bell.banned()
    bell.stop()
    assert bell.daemon.stopping and not peer.listed


# --- real programs that misbehave

def script(folder, text):
    path = folder / 'program'
    path.write_text('#!/bin/sh\n' + text)
    path.chmod(0o755)
    return path


def read(path):
    """Text of a file, '' if it is not there (any more)."""
    try:
        with open(path) as f:
            return f.read()
    except OSError:
        return ''


def alive(pid):
    """Is there such a process? One that only waits to be waited for does not count."""
    return read('/proc/%s/stat' % pid).rpartition(')')[2].split()[:1] not in ([], ['Z'])


def test_one_that_hangs_is_killed_with_its_children_after_its_timeout(make, tmp_path):
    program = script(tmp_path, 'sleep 1000 &\necho $$ $! >%s/pids\nwait\n' % tmp_path)
    house = make('[action note]\nactionban = %s <ip>\ntimeout = 5s\n' % program, RealActions())
    house.ring('192.0.2.7')
    house.until(lambda: (tmp_path / 'pids').exists() and (tmp_path / 'pids').read_text())
    pids = (tmp_path / 'pids').read_text().split()
    house.pass_time(4)
    assert all(map(alive, pids))
    house.pass_time(2)
    house.until(house.trouble)
    assert house.trouble() == 'program did not answer in time'
    house.until(lambda: not any(map(alive, pids)))
    assert not os.path.exists('/proc/' + pids[0]) and not house.machine.programs       # no zombie of ours


@pytest.mark.slow
def test_one_that_hangs_delays_no_other_jail(make, tmp_path, diary):
    program, notes = diary
    house = make('[action note]\nactionban = sleep 1000\n[door]\nfailregex = ^<HOST> knocks$\naction = diary\n'
                 '[action diary]\nactionban = %s <ip>\n' % program, RealActions())
    house.ring('192.0.2.7')
    house.write('192.0.2.8 knocks\n')
    house.until(notes)
    assert notes()[0][0] == [b'192.0.2.8'] and house.banned() == ['192.0.2.7', '192.0.2.8']
    house.pass_time(11)
    house.until(lambda: not house.machine.programs)


@pytest.mark.parametrize('text, problem', [
    ('exit 3', 'program: exit code 3'), ('echo no way >&2; exit 1', 'program: no way'),
    (r'printf "\033[31mred\n" >&2; exit 1', r'program: \x1b[31mred'), ('kill -9 $$', 'program: exit code -9')])
def test_why_a_program_failed_is_said_in_one_harmless_line(make, tmp_path, text, problem):
    house = make('[action note]\nactionban = %s\n' % script(tmp_path, text), RealActions())
    house.ring('192.0.2.7')
    house.until(house.trouble)
    assert house.trouble() == problem and 'note (bell): ' + problem in house.machine.logged


@pytest.mark.parametrize('program', ['banwatch-missing', '/banwatch-missing/x', '/etc/passwd', '/'])
def test_a_program_that_cannot_be_run_is_named(make, program):
    house = make('[action note]\nactionban = %s <ip>\n' % program, RealActions())
    house.ring('192.0.2.7')
    assert program in house.trouble()
    for _ in range(9):
        house.pass_time(1)
    assert house.machine.said('ban of 192.0.2.7 is given up')


@pytest.mark.slow
@pytest.mark.parametrize('megabytes', [1, 50])
def test_what_a_program_prints_does_not_matter_and_takes_no_memory(make, tmp_path, megabytes):
    before = banwatch.Machine().memory()[0]
    house = make('[action note]\nactionban = %s\n' % script(tmp_path, 'head -c %d000000 /dev/zero; head -c %d000000 /dev/zero >&2\n' % (
        megabytes, megabytes)), RealActions())
    house.ring('192.0.2.7')
    most = []
    house.until(lambda: most.append(sum(len(text) for each in house.machine.programs for text in each.read.values()))
                or house.turn(99) or not house.machine.programs)
    assert house.trouble() == '' and max(most) < 1 << 20


@pytest.mark.slow
def test_a_grandchild_that_holds_the_pipes_holds_up_nothing(make, tmp_path):
    program = script(tmp_path, 'sleep 1000 &\necho $! >>%s/pids\n' % tmp_path)
    house = make('[action note]\nactionban = %s\nactionunban = true\n' % program, RealActions())
    house.ring('192.0.2.7', '192.0.2.8')
    house.until(lambda: (tmp_path / 'pids').exists() and (tmp_path / 'pids').read_text().count('\n') == 2 and not house.machine.programs)
    assert house.trouble() == ''
    for pid in (tmp_path / 'pids').read_text().split():
        os.kill(int(pid), signal.SIGKILL)


# --- memory

def evidence(house):
    """Bytes of the log that are kept for the jail, and for how many addresses."""
    kept = house.daemon.judge.jails.by_name['bell'].matches
    return sum(sys.getsizeof(line) for lines, fields in kept.values() for line in list(lines) + list(fields.values())), len(kept)


def flood(house, addresses, lines, text):
    """Failures, past the FIFO: it would take longer."""
    source = list(house.daemon.sources.values())[0]
    for n in range(addresses):
        house.daemon.consume(source, b''.join(b'from 10.%d.%d.%d by %s\n' % (n >> 16, n >> 8 & 255, n & 255, text) for _ in range(lines)), 0)


@pytest.mark.slow
@pytest.mark.parametrize('text', ['a', '\u20ac', '\U0001f600'])
def test_of_an_address_ten_kilobytes_are_kept_at_most(make, text):
    house = make(maxretry=30)
    flood(house, 3, 12, (text * 8000).encode()[:8000])
    size, addresses = evidence(house)
    assert addresses == 3 and size < 3 * 12000


@pytest.mark.slow
def test_of_a_thousand_addresses_lines_are_kept_at_most(make):
    house = make(maxretry=30)
    flood(house, 3000, 2, b'x' * 50)
    assert evidence(house)[1] <= 1100


@pytest.mark.slow
def test_the_lines_of_bans_take_no_more_memory_than_those_of_a_thousand(make):
    house = make(NOTE.replace('note ban', 'true'))
    flood(house, 1500, 1, b'x' * 900)
    tickets = house.daemon.judge.bans.tickets.values()
    assert len(tickets) == 1500 and sum(bool(ticket.matches) for ticket in tickets) <= 1100


@pytest.mark.slow
def test_lines_full_of_escapes_fit_into_an_environment(make):
    """Linux takes no argument or variable over 128 KiB: the ban would fail."""
    house = make('[action note]\nactionban = true <ip>\n', RealActions(), maxretry=10)
    flood(house, 1, 10, ('\U000e0001' * 2000).encode())
    house.turn()
    house.until(lambda: not house.machine.programs)
    assert house.trouble() == '' and house.banned()


# --- the daemon as a whole

def children(pid):
    """The command lines of the children of a process."""
    found = []
    for child in read('/proc/%d/task/%d/children' % (pid, pid)).split():
        found.append(read('/proc/%s/cmdline' % child).replace('\0', ' ') or 'zombie')
    return found


def banned_in_kernel(network, ip):
    return re.search(r'-s %s/32 .*-j DROP' % ip, network.router.output(['iptables', '-S']))


@pytest.mark.slow
def test_an_action_that_hangs_delays_nobody_and_is_told_and_leaves_no_process(network, daemon, fifo, diary):
    source, write = fifo
    program, notes = diary
    running = daemon(BELL + 'action = hang\n[door]\nfailregex = ^<HOST> knocks$\naction = diary\n'
                     '[action hang]\nactionban = sleep 1000\ntimeout = 1s\n[action diary]\nactionban = %s <ip>\n' % program,
                     source=source, maxretry=1)
    write('from 198.51.100.7 by x')
    assert poll(lambda: 'sleep 1000' in ' '.join(children(running.process.pid)))
    for ip in '198.51.100.8', '198.51.100.9':
        write(ip + ' knocks')
        assert poll(lambda: banned_in_kernel(network, ip), 1)
    assert poll(lambda: len(notes()) == 2, 1) and banned_in_kernel(network, '198.51.100.7')
    said = 'hang (bell): sleep did not answer in time'
    assert poll(lambda: said in running.ask('status')['wrong'])
    row = [row for row in running.ask('status')['actions'] if row['name'] == 'hang (bell)']
    assert row == [{'name': 'hang (bell)', 'trouble': 'sleep did not answer in time', 'pending': True, 'bans': row[0]['bans']}]
    shown = running.command('status').stdout
    assert 'WRONG: ' + said in shown and 'action    hang (bell): sleep did not answer in time\n' in shown
    assert poll(lambda: 'hang (bell): ban of 198.51.100.7 is given up\n' in running.said(), 15)
    assert running.said().count(said) == 1 and poll(lambda: not children(running.process.pid))
    assert running.bans('198.51.100.7')


@pytest.mark.slow
def test_names_of_real_log_lines_reach_the_program_as_they_are_and_do_nothing(daemon, fifo, diary):
    program, notes = diary
    source, write = fifo
    running = daemon('[action diary]\nactionban = %s <jail>\n' % program, source, 'command', action='diary', maxretry=3)
    names = ['root', '$(touch pwned)', "x'; touch pwned #", '-rf', '\xe9\u20ac', 'x from 198.51.100.77 port 1 ssh2']
    write(*['Nov 20 12:27:01 h sshd[%d%d]: Failed password for invalid user %s from 198.51.100.%d port 5 ssh2' % (n + 1, pid, name, n)
            for n, name in enumerate(names) for pid in range(3)])
    write(*[b"Nov 20 12:27:01 h dropbear[9%d]: Bad password attempt for '\xff\xfe' from 198.51.100.99:5" % n for n in range(3)])
    assert poll(lambda: len(notes()) == len(names) + 1), (notes(), running.said())
    told = {environment[b'BANWATCH_IP'].decode(): (argv, environment) for argv, environment in notes()}
    for n, name in enumerate(names):
        argv, environment = told['198.51.100.%d' % n]
        assert argv == [b'sshd'] and environment[b'BANWATCH_F_USER'] == name.encode()
        lines = environment[b'BANWATCH_MATCHES'].decode().split('\n')
        assert len(lines) == 3 and all('invalid user %s from 198' % name in line for line in lines)
    argv, environment = told['198.51.100.99']
    assert argv == [b'dropbear'] and environment[b'BANWATCH_F_USER'] == br'\xff\xfe'


@pytest.mark.slow
def test_a_life_with_a_reload_a_crash_and_a_stop(network, daemon, fifo, diary):
    source, write = fifo
    program, notes = diary
    text = BELL + ''.join(['[action diary]\n'] + ['action%s = %s %s <jail>\n' % (word, program, word) for word in ('start', 'stop')]
                          + ['action%s = %s %s <ip> <restored>\n' % (word, program, word) for word in ('ban', 'unban')])
    running = daemon(text.replace('[bell]\n', '[bell]\naction = diary\n'), source=source, maxretry=1)

    def new(count):
        """The next entries of the diary; there are no more than that."""
        poll(lambda: len(notes()) >= seen[0] + count)
        found = [b' '.join(argv).decode() for argv, _ in notes()[seen[0]:]]
        seen[0] += len(found)
        return found
    seen = [0]
    write('from 198.51.100.7 by x', 'from 198.51.100.8 by x')
    assert new(3) == ['start bell', 'ban 198.51.100.7 0', 'ban 198.51.100.8 0']
    running.command('reload')
    running.command('unban', '198.51.100.8')
    assert new(1) == ['unban 198.51.100.8 0']
    running.kill()
    running.start()
    assert new(2) == ['start bell', 'ban 198.51.100.7 1']
    with open(running.conf) as f:
        text = f.read()
    network.write('banwatch.conf', text.replace('[action diary]\n', '[action diary]\ntimeout = 5s\n'))
    assert running.command('reload').returncode == 0
    assert new(4) == ['unban 198.51.100.7 1', 'stop bell', 'start bell', 'ban 198.51.100.7 1']
    assert running.stop() == 0
    assert new(2) == ['unban 198.51.100.7 1', 'stop bell']


@pytest.mark.slow
def test_hundreds_of_commands_leave_no_zombie_and_no_descriptor(network, daemon, fifo):
    source, write = fifo
    running = daemon(BELL + '[action x]\nactionban = true\nactionunban = false\n', source, 'command', maxretry=1, action='x')

    def descriptors():
        return len(os.listdir('/proc/%d/fd' % running.process.pid))
    before = descriptors()
    for n in range(3):
        write(*['from 10.0.%d.%d by x' % (n, m) for m in range(100)])
    assert poll(lambda: [row['bans'] for row in running.ask('status')['actions'] if row['name'] == 'x (bell)'] == [300], 30)
    assert poll(lambda: children(running.process.pid) == [] and descriptors() <= before + 1)


@pytest.mark.slow
def test_a_stop_is_in_time_whatever_hangs_and_leaves_no_process(network, daemon, fifo):
    source, write = fifo
    running = daemon(BELL + 'action = hang\n[action hang]\nactionban = true\nactionflush = sleep 1000\n', source=source, maxretry=1)
    write('from 198.51.100.7 by x')
    assert poll(lambda: banned_in_kernel(network, '198.51.100.7'))
    poll(lambda: [row['bans'] for row in running.ask('status')['actions']] == [1])
    assert running.stop() == 1
    assert not banned_in_kernel(network, '198.51.100.7')
    assert 'hang (bell): not all bans could be lifted\n' in running.said()
    assert poll(lambda: not any('sleep' in read('/proc/%d/cmdline' % pid) for pid in network.router.inhabitants()))


# --- requests and states

def test_no_request_makes_a_command_of_what_is_no_address(bell):
    for networks in [['192.0.2.7; touch x'], ['-x'], ['$(x)'], ['192.0.2.7\0'], [['192.0.2.7']], [None], '192.0.2.7', {'192.0.2.7': 1}]:
        for seconds in [60, 'x', [], float('nan')]:
            bell.ask('ban', networks=networks, seconds=seconds, jail='bell')
    assert [line for line in bell.ran() if not re.match(r'(un)?ban 192\.0\.2\.7( 0)?$', line)] == []


def test_a_hostile_state_makes_no_command_but_of_addresses(make, tmp_path):
    os.makedirs(str(tmp_path / 'run'), 0o700)
    rows = [['bell', net, left, age, n, n] for net in ('192.0.2.7', '-x', '192.0.2.8 x', '$(x)', '127.0.0.1', '0.0.0.0/0', '192.0.2.9\0')
            for left, age, n in ((60, 0, 1), (-1, -1e9, 1e9), (1e10, 1e10, 0), (float('nan'), 0, 1), ('x', 0, 1))]
    (tmp_path / 'run' / 'state.json').write_text(json.dumps(
        {'banwatch': 1, 'boot': 'boot-1', 'ticks': 5000, 'wall': 1800000000, 'bans': rows}))
    (tmp_path / 'run' / 'state.json').chmod(0o600)
    house = make()
    assert [re.sub(r'\d$', '', line) for line in house.ran()] == ['start', 'ban 192.0.2.7 ']
