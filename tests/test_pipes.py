"""Programs that are told what happens, one JSON object a line: `actionpipe`, and Python actions as fail2ban has them."""
import glob
import json
import os
import socket
import sys
import threading

import pytest

import banwatch
from conftest import need
from harness import FakeMachine, House, Running, poll

WRITER = '#!/bin/sh\necho $$ >>%(folder)s/pids\nexec cat >>%(folder)s/told\n'


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'writer').write_text(WRITER % {'folder': tmp_path})
    (tmp_path / 'writer').chmod(0o755)
    return tmp_path


@pytest.fixture
def running(folder):
    """A function that starts a daemon with an [action NAME], whose lines are these."""
    made = []

    def start(action, firewall='command', **more):
        made.append(Running(folder, '[action tell]\n%s' % action, firewall=firewall, maxretry=3, ignoreself='no', ignoreip='198.51.100.1', action='tell', **more))
        return made[-1]
    yield start
    for each in made:
        each.close()


def told(folder, what=None):
    """The objects that the program has been told, or what one kind says of jails and addresses."""
    path = folder / 'told'
    rows = [json.loads(line) for line in path.read_text().split('\n')[:-1]] if path.exists() else []
    return [(row['jail'], row.get('ip')) for row in rows if row['do'] == what] if what else rows


def test_a_program_is_started_once_and_told_all_that_its_jails_do(folder, running):
    daemon = running('actionpipe = %s/writer\n' % folder, bantime='1h', **{'bantime_extend': '1h'})
    daemon.until(lambda: len(told(folder, 'start')) == 4, 'the starts')
    assert [jail for jail, _ in told(folder, 'start')] == ['manual', 'dropbear', 'sshd', 'luci']
    daemon.fail('192.0.2.7')
    daemon.until(lambda: told(folder, 'ban'), 'the ban')
    (row,) = [row for row in told(folder) if row['do'] == 'ban']
    for tag, value in {'ip': '192.0.2.7', 'fid': '192.0.2.7', 'jail': 'dropbear', 'jail.name': 'dropbear', 'family': 'inet4', 'ip-rev': '7.2.0.192.', 'failures': 3,
                       'ipfailures': 3, 'ipjailfailures': 3, 'bantime': 3600, 'bancount': 1, 'restored': 0, 'jail.banned': 1, 'jail.banned_total': 1,
                       'jail.found_total': 3, 'F-USER': 'root'}.items():
        assert row[tag] == value, tag
    assert row['matches'].count('Bad password attempt') == 3 and row['ipmatches'] == row['ipjailmatches'] == row['matches']
    assert row['raw-ticket'].startswith('Ticket: ip=192.0.2.7 time=') and '#attempts=3' in row['raw-ticket']
    daemon.fail('192.0.2.7', 1)
    daemon.until(lambda: told(folder, 'extend') == [('dropbear', '192.0.2.7')], 'the longer ban')
    assert daemon.command('unban', '192.0.2.7').returncode == 0
    daemon.until(lambda: told(folder, 'unban') == [('dropbear', '192.0.2.7')], 'the end of it')
    assert daemon.stop() == 0
    assert [jail for jail, _ in told(folder, 'stop')] == ['manual', 'dropbear', 'sshd', 'luci']
    assert len((folder / 'pids').read_text().split()) == 1


def test_a_program_that_ends_is_started_again_and_told_who_is_banned(folder, running):
    daemon = running('actionpipe = %s/writer\n' % folder)
    daemon.fail('192.0.2.7')
    daemon.until(lambda: told(folder, 'ban'), 'the ban')
    os.kill(int((folder / 'pids').read_text()), 9)
    daemon.until(lambda: len(told(folder, 'start')) == 8, 'the second start')
    daemon.until(lambda: len(told(folder, 'ban')) == 2, 'the ban told again')
    assert 'tell: has ended: exit code -9' in daemon.said() and daemon.ask('status')['wrong'] == ['tell: has ended: exit code -9']
    daemon.fail('192.0.2.8')
    daemon.until(lambda: ('dropbear', '192.0.2.8') in told(folder, 'ban'), 'the next ban')


def test_what_it_prints_goes_to_the_log_and_its_last_error_says_why_it_ended(folder, running):
    (folder / 'writer').write_text('#!/bin/sh\nread line\nprintf "so be it\\033[2J\\n"\necho no more >&2\nexit 3\n')
    daemon = running('actionpipe = %s/writer\n' % folder)
    daemon.until(lambda: 'has ended' in daemon.said(), 'its end')
    assert 'tell: so be it\\x1b[2J\n' in daemon.said() and 'tell: has ended: no more\n' in daemon.said()
    assert daemon.said().count('has ended') == 1


def test_bans_survive_a_restart_and_are_told_as_restored(folder, running):
    daemon = running('actionpipe = %s/writer\n' % folder)
    daemon.fail('192.0.2.7')
    daemon.until(lambda: told(folder, 'ban'), 'the ban')
    daemon.stop()
    daemon.start()
    daemon.until(lambda: len(told(folder, 'ban')) == 2, 'the ban told again')
    assert [row['restored'] for row in told(folder) if row['do'] == 'ban'] == [0, 1]


def test_a_reload_keeps_a_program_whose_entries_are_the_same_and_replaces_another(folder, running):
    daemon = running('actionpipe = %s/writer\n' % folder)
    daemon.until(lambda: told(folder, 'start'), 'the start')
    daemon.command('reload')
    assert len((folder / 'pids').read_text().split()) == 1
    daemon.conf.write_text(daemon.conf.read_text() + '    -x\n'.replace('    -x\n', 'timeout = 9s\n'))
    assert daemon.command('reload').returncode == 0
    daemon.until(lambda: len((folder / 'pids').read_text().split()) == 2, 'another program')
    assert [row['do'] for row in told(folder)].index('stop') == 4


def test_tags_of_a_jail_part_its_programs(folder, running):
    daemon = running('actionpipe = %s/writer <jail>\n' % folder)
    daemon.until(lambda: (folder / 'pids').exists() and len((folder / 'pids').read_text().split()) == 4, 'one for each')


def test_a_program_that_reads_nothing_holds_up_nobody(folder, monkeypatch, running):
    (folder / 'writer').write_text('#!/bin/sh\nexec sleep 60\n')
    daemon = running('actionpipe = %s/writer\n' % folder)
    networks = ['10.%d.%d.%d' % (n >> 16, n >> 8 & 255, n & 255) for n in range(4000)]
    (folder / 'list').write_text('\n'.join(networks))
    assert daemon.command('ban', '--file', folder / 'list').returncode == 0
    assert any('does not read what it is told' in text for text in daemon.ask('status')['wrong'])
    assert daemon.command('stop').returncode in (0, 1)


def test_a_program_that_is_not_there_is_trouble(folder, running):
    daemon = running('actionpipe = /no/such/program\n')
    daemon.until(lambda: daemon.ask('status')['wrong'], 'the trouble')
    assert 'No such file' in daemon.ask('status')['wrong'][0]


@pytest.mark.parametrize('text, why', [
    ('actionpipe = x <ip>', '<ip> means nothing here'), ('python = notify.py', 'is not an absolute path'), ('actionpipe = a | b', 'is for a shell'),
    ('actionpipe = x\nfoo = 5', 'foo: no such option in [action tell]'), ('actionbann = x', 'did you mean actionban?'),
    ('actionban = x <ipmatches>', 'finds it as $BANWATCH_IPMATCHES'), ('actionban = x <raw-ticket>', '$BANWATCH_RAW_TICKET'),
    ('actionban = x <ip-host>', '<ip-host> means nothing here')])
def test_mistakes_are_told_with_their_lines(text, why):
    _, problems = banwatch.read_config('[action tell]\n' + text + '\n', 'c')
    assert len(problems) == 1 and why in problems[0] and problems[0].startswith('c:%d: ' % (text.count('\n') + 2))


def test_further_entries_are_printed_and_read_back():
    config, problems = banwatch.read_config('[action tell]\npython = /x.py\ntopic = a b\n', 'c')
    assert problems == [] and config.more == {'action tell': {'topic': ('a b', 3)}}
    again, problems = banwatch.read_config(banwatch.config_text(config), 'c')
    assert problems == [] and again.more['action tell']['topic'][0] == 'a b'


def test_commands_may_use_the_further_tags(tmp_path):
    text = '[action tell]\nactionban = note <fid> <ipfailures> <ipjailfailures> <jail.banned> <jail.banned_total> <jail.found> <jail.found_total>\n'
    house = House(tmp_path, text=text, firewall='command', action='tell')
    house.fail('192.0.2.7', 3)
    house.turn()
    (command,) = [command for command in house.machine.ran if command.argv[0] == 'note']
    assert command.argv[1:] == ['192.0.2.7', '3', '3', '1', '1', '0', '3']
    assert command.environment['BANWATCH_IPMATCHES'].count('\n') == 2 and command.environment['BANWATCH_JAIL_BANNED'] == '1'
    assert 'ip=192.0.2.7' in command.environment['BANWATCH_RAW_TICKET']


# --- Python actions

NOTE = '''\
import json
class Action:
    def __init__(self, jail, name, topic='none', url=None):
        self.jail, self.name, self.topic, self.url = jail, name, topic, url
    def note(self, what, **more):
        with open('%(folder)s/told', 'a') as f:
            print(json.dumps(dict(more, do=what, jail=self.jail.name, name=self.name, topic=self.topic)), file=f)
    def start(self):
        self.note('start')
    def ban(self, aInfo):
        self.note('ban', ip=aInfo['ip'], failures=aInfo['failures'] + 1, host=aInfo['ip-host'], get=aInfo.get('nothing', 5), seconds=self.jail.actions.getBanTime())
    def unban(self, aInfo):
        self.note('unban', ip=aInfo['ip'])
        raise ValueError('no\\nway')
    def stop(self):
        self.note('stop')
'''


@pytest.fixture
def action(folder, running):
    """A function that starts a daemon with a Python action of this text."""
    def start(text=NOTE, more='topic = bans at home\n', **options):
        path = folder / 'notify.py'
        path.write_text(text % {'folder': folder} if '%(' in text else text)
        path.chmod(0o600)
        return running('python = %s\n%s' % (path, more), **options)
    return start


def test_a_class_of_the_owners_is_called_as_fail2ban_does(folder, action):
    daemon = action()
    daemon.until(lambda: told(folder, 'start'), 'the start')
    daemon.fail('127.0.0.1')
    daemon.until(lambda: told(folder, 'ban'), 'the ban')
    (row,) = [row for row in told(folder) if row['do'] == 'ban']
    assert (row['jail'], row['name'], row['topic'], row['failures'], row['get'], row['seconds']) == ('dropbear', 'tell', 'bans at home', 4, 5, 600)
    assert row['host'].startswith('localhost')     # by /etc/hosts
    daemon.command('unban', '127.0.0.1')
    daemon.until(lambda: 'tell: dropbear: unban 127.0.0.1: ' in daemon.said(), 'the exception')
    daemon.fail('127.0.0.1')
    daemon.until(lambda: len(told(folder, 'ban')) == 2, 'the next ban')
    daemon.stop()
    assert len(told(folder, 'unban')) == 2 and len(told(folder, 'stop')) == 4


def test_methods_that_it_has_are_called_flush_instead_of_many_unbans(folder, action):
    more = ('    def flush(self):\n        self.note("flush")\n    def prolong(self, aInfo):\n        self.note("prolong", ip=aInfo["ip"])\n')
    daemon = action(NOTE + more)
    daemon.fail('127.0.0.1')
    daemon.until(lambda: told(folder, 'ban'), 'the ban')
    daemon.command('ban', '-j', 'dropbear', '-t', '2h', '127.0.0.1')
    daemon.until(lambda: told(folder, 'prolong'), 'the longer ban')
    daemon.stop()
    assert told(folder, 'unban') == [] and ('dropbear', None) in told(folder, 'flush')


def test_a_failed_consistency_check_bans_all_again():
    done = []

    class Action:
        def start(self):
            done.append('start')

        def ban(self, info):
            done.append('ban ' + info['ip'])

        def reBan(self, info):
            done.append('again ' + info['ip'])

        def consistencyCheck(self):
            return False
    known = {}
    for row in {'do': 'start'}, {'do': 'ban', 'ip': '192.0.2.7'}, {'do': 'check'}:
        banwatch.tell_action(Action(), banwatch.ActionInfo(row), known)
    assert done == ['start', 'ban 192.0.2.7', 'start', 'again 192.0.2.7']


def test_restored_bans_are_passed_by_where_an_action_wants_that():
    done = []

    class Action:
        norestored = 1

        def ban(self, info):
            done.append(info['ip'])
    for restored in 1, 0:
        banwatch.tell_action(Action(), banwatch.ActionInfo({'do': 'ban', 'ip': '192.0.2.%d' % restored, 'restored': restored}), {})
    assert done == ['192.0.2.0']


@pytest.mark.parametrize('text, why', [
    ('import nothing_of_this_name\n', "No module named 'nothing_of_this_name'"), ('x = 1\n', "has no attribute 'Action'"), ('class Action(\n', 'SyntaxError')])
def test_what_is_wrong_with_a_file_is_told_with_its_last_line(action, text, why):
    daemon = action(text)
    daemon.until(lambda: daemon.ask('status')['wrong'], 'the trouble')
    assert why in daemon.ask('status')['wrong'][0] and 'Traceback' not in daemon.said()


def test_a_file_that_others_may_write_to_is_not_run(folder, action):
    daemon = action()
    daemon.stop()
    (folder / 'notify.py').chmod(0o666)
    (folder / 'told').unlink()
    daemon.start()
    daemon.until(lambda: 'others may write to it' in daemon.said(), 'the refusal')
    assert told(folder) == []


def test_options_are_in_no_argv(folder, action):
    daemon = action(more='topic = s3cret\n')
    daemon.until(lambda: told(folder, 'start'), 'the start')
    argvs = [open(path, 'rb').read() for path in glob.glob('/proc/[0-9]*/cmdline') if os.path.exists(path)]
    assert any(b'python-action' in argv for argv in argvs) and not any(b's3cret' in argv for argv in argvs)


def samples(name):
    found = glob.glob('/usr/lib/python3/dist-packages/fail2ban/tests/files/action.d/' + name) + glob.glob('/etc/fail2ban/action.d/' + name)
    if not found:
        need('fail2ban')
    return found[0]


def test_fail2bans_sample_action_runs_as_it_is(folder, running):
    daemon = running('python = %s\nopt1 = a\nopt2 = b\n' % samples('action_checkainfo.py').replace('_checkainfo', ''))
    daemon.fail('192.0.2.7')
    daemon.wait_banned('192.0.2.7')
    daemon.stop()
    assert 'Error' not in daemon.said() and 'has ended' not in daemon.said()


def test_fail2bans_sample_that_reads_all_of_an_info_runs_as_it_is(folder, running):
    daemon = running('python = %s\n' % samples('action_checkainfo.py'))
    daemon.fail('192.0.2.7')
    daemon.until(lambda: 'tell: jail info 1, 1, ' in daemon.said(), 'what it prints')
    assert 'tell: ban ainfo True, True, True, True' in daemon.said()


def test_fail2bans_smtp_action_sends_its_mails(folder, running):
    listening = socket.socket()
    listening.bind(('127.0.0.1', 0))
    listening.listen(5)
    mails = []

    def serve():
        while True:
            try:
                sock, _ = listening.accept()
            except OSError:
                return
            with sock, sock.makefile('rwb') as f:
                f.write(b'220 here\r\n')
                f.flush()
                for line in f:
                    word = line[:4].upper()
                    if word == b'DATA':
                        f.write(b'354 go\r\n')
                        f.flush()
                        mails.append(b''.join(iter(f.readline, b'.\r\n')).decode())
                    f.write(b'221 bye\r\n' if word == b'QUIT' else b'250 ok\r\n')
                    f.flush()
                    if word == b'QUIT':
                        break
    threading.Thread(target=serve, daemon=True).start()
    daemon = running('python = %s\nhost = 127.0.0.1:%d\ndest = me@example.org\nmatches = ipmatches\n' % (samples('smtp.py'), listening.getsockname()[1]))
    daemon.fail('192.0.2.7')
    assert poll(lambda: [mail for mail in mails if 'dropbear: banned 192.0.2.7' in mail]), daemon.said()
    (mail,) = [mail for mail in mails if 'banned 192.0.2.7' in mail]
    assert 'banned for 600 seconds' in mail and 'after 3 attempts against dropbear' in mail and mail.count('Bad password attempt') == 3
    listening.close()


def test_a_program_that_says_too_much_does_not_fill_the_log(folder, running):
    (folder / 'writer').write_text('#!/bin/sh\nyes so | head -n 5000\ncat >>%s/told\n' % folder)
    daemon = running('actionpipe = %s/writer\n' % folder)
    daemon.until(lambda: told(folder), 'its start')
    daemon.fail('192.0.2.7')
    daemon.until(lambda: told(folder, 'ban'), 'the ban')
    assert 100 <= daemon.said().count('tell: so\n') <= 200 and 'tell: says more, which is not logged\n' in daemon.said()
