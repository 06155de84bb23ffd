"""The command `test`: what filters make of a log, line by line, for people and as JSON; and `replay` with recidive."""
import gzip
import io
import json
import os
import random
import re
import subprocess
import sys
import time

import pytest

import banwatch
from harness import banwatch_argv

SSHD = 'Nov 20 12:00:%02d h sshd[%d]: %s\n'
GUESS = 'Failed password for root from %s port 5 ssh2'
DROPBEAR = "Nov 20 12:00:00 h dropbear[%d]: Bad password attempt for 'alice' from %s:53066\n"
KEYS = ['line', 'match', 'ip', 'user', 'time', 'filter', 'failures', 'why']
NOTHING = {'match': False, 'ip': None, 'user': None, 'time': None, 'filter': None, 'failures': 0, 'why': ''}
# a connection tells its address in one line and its guesses in others
CONNECTIONS = r'''
[Definition]
prefregex = ^ door\[<F-MLFID>\d+</F-MLFID>\]: <F-CONTENT>.+</F-CONTENT>$
failregex = ^<F-NOFAIL>connect</F-NOFAIL> from <HOST>$
            ^wrong password for <F-USER>\S+</F-USER>$
            ^<F-MLFGAINED>welcome</F-MLFGAINED> <F-USER>\S+</F-USER>$
            ^<also-<mode>> <HOST>$
ignoreregex = for guest$
mode = plain
also-plain = alpha
also-more = beta
'''


class Done:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def tried(tmp_path, capsys):
    """A function that runs `banwatch.py test` in here, with a conf of its own; `log` becomes its last word, a file."""
    def run(*words, log=None, conf='', command='test'):
        (tmp_path / 'c').write_text(conf)
        words = [str(word) for word in words]
        if log is not None:
            (tmp_path / 'log').write_bytes(log if isinstance(log, bytes) else log.encode())
            words.append(str(tmp_path / 'log'))
        capsys.readouterr()
        code = banwatch.main(['-c', str(tmp_path / 'c'), command] + words)
        return Done(code, *capsys.readouterr())
    return run


@pytest.fixture
def rows(tried):
    """The same with --json: its rows."""
    def run(*words, **more):
        done = tried('--json', *words, **more)
        assert done.err == ''
        return [json.loads(line) for line in done.out.splitlines()]
    return run


def process(*words, **more):
    """The CompletedProcess of a real `banwatch.py test`."""
    more = dict({'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'timeout': 30}, **more)
    return subprocess.run(banwatch_argv('-c', '/dev/null', 'test', *words), **more)


def local(text, form='%Y-%m-%d %H:%M:%S'):
    return time.mktime(time.strptime(text, form))


def matches(found):
    return [row['line'] for row in found if row['match']]


def failures(found):
    return [row['failures'] for row in found]


# --- what may be tested

def test_a_built_in_filter_says_of_each_line_whether_it_matches_whose_it_is_and_when(rows):
    found = rows('sshd', '--now', int(local('2026-11-21 00:00:00')), log=SSHD % (7, 5, GUESS % '192.0.2.7') + 'else\n')
    assert found == [{'line': 1, 'match': True, 'ip': '192.0.2.7', 'user': 'root', 'filter': 'sshd', 'failures': 1, 'why': '',
                      'time': local('2026-11-20 12:00:07')}, dict(NOTHING, line=2)]
    assert all(list(row) == KEYS for row in found)


def test_an_option_in_brackets_changes_the_filter(rows):
    log = SSHD % (0, 5, 'Connection closed by 192.0.2.7 port 5 [preauth]')
    assert failures(rows('sshd', log=log)) == [0]
    assert failures(rows('sshd[mode=normal]', log=log)) == [0]
    for spec in ('sshd[mode=aggressive]', 'sshd[mode="ddos"]', "sshd[ mode = 'ddos' ]"):
        assert failures(rows(spec, log=log)) == [1]


def test_all_tries_every_built_in_filter_and_tells_which_one_it_was(rows):
    log = (SSHD % (0, 5, GUESS % '192.0.2.7') + DROPBEAR % (1, '192.0.2.8')
           + 'Nov 20 12:00:00 h vsftpd[3]: [bob] FAIL LOGIN: Client "192.0.2.9"\n'
           + 'Nov 20 12:00:00 h uhttpd[1]: luci: failed login on /admin for root from 192.0.2.10\n' + 'else\n')
    assert [(row['filter'], row['ip']) for row in rows('all', log=log)] == [
        ('sshd', '192.0.2.7'), ('dropbear', '192.0.2.8'), ('vsftpd', '192.0.2.9'), ('luci', '192.0.2.10'), (None, None)]


def test_all_means_those_that_read_a_log(tried):
    named = re.findall(r'(?m)^filter +(\S+) \(built-in\)$', tried('all', log='x\n').out)
    assert set(named) == set(banwatch.JAILS) - {'recidive'}


def test_a_jail_of_the_conf_is_tested_with_its_own_regexes_and_options(rows):
    conf = '[shop]\nfailregex = ^ login failed for <F-USER>\\S+</F-USER> from <HOST>$\nignoreregex = for test \n'
    log = ('2026-11-20 12:00:00 login failed for bob from 192.0.2.7\n'
           '2026-11-20 12:00:00 login failed for test from 192.0.2.7\n')
    first, second = rows('shop', log=log, conf=conf)
    assert (first['ip'], first['user'], first['filter'], first['time']) == ('192.0.2.7', 'bob', 'shop', local('2026-11-20 12:00:00'))
    assert second == dict(NOTHING, line=2, why='an ignoreregex matches')
    closed = SSHD % (0, 5, 'Connection closed by 192.0.2.7 port 5 [preauth]')
    assert failures(rows('sshd', log=closed, conf='[sshd]\nmode = aggressive\n')) == [1]


def test_a_jail_that_is_off_is_tested_with_the_filter_of_its_name(rows):
    log = 'Nov 20 12:00:00 h vsftpd[3]: [bob] FAIL LOGIN: Client "192.0.2.9"\n'
    assert failures(rows('vsftpd', log=log)) == failures(rows('vsftpd', log=log, conf='[vsftpd]\nenabled = false\n')) == [1]


def test_a_filter_of_the_folder_beside_the_conf_comes_before_a_built_in_one(rows, tmp_path):
    (tmp_path / 'filter.d').mkdir()
    (tmp_path / 'filter.d' / 'vsftpd.conf').write_text('[Definition]\nfailregex = ^gone: <HOST>$\n')
    log = 'gone: 192.0.2.9\nvsftpd[3]: [bob] FAIL LOGIN: Client "192.0.2.9"\n'
    assert matches(rows('vsftpd', log=log)) == [1]
    assert matches(rows('all', log=log)) == [2]


@pytest.mark.parametrize('options, line', [('', 1), ('[mode=plain]', 1), ('[mode=more]', 2), ('[mode="more"]', 2),
                                           ('[mode=other, also-other=gamma]', 3)])
def test_a_file_is_tested_by_its_path_with_options(rows, tmp_path, options, line):
    (tmp_path / 'door.conf').write_text(CONNECTIONS)
    log = ' door[1]: alpha 192.0.2.1\n door[2]: beta 192.0.2.2\n door[3]: gamma 192.0.2.3\n'
    found = rows(str(tmp_path / 'door.conf') + options, log=log)
    assert matches(found) == [line]
    assert found[line - 1]['filter'] == str(tmp_path / 'door.conf') + options


def test_a_file_in_this_folder_needs_no_slash_and_sees_what_it_includes(rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'door.conf').write_text('[INCLUDES]\nbefore = words.inc\n[Definition]\nfailregex = ^%(__gone)s <HOST>$\n')
    (tmp_path / 'words.inc').write_text('[DEFAULT]\n__gone = gone:\n')
    assert failures(rows('door.conf', log='gone: 192.0.2.9\n')) == [1]


def test_a_file_need_not_be_called_conf(rows, tmp_path):
    (tmp_path / 'door.txt').write_text('[Definition]\nfailregex = ^gone: <HOST>$\n')
    assert failures(rows(tmp_path / 'door.txt', log='gone: 192.0.2.9\n')) == [1]


def test_a_regex_on_the_command_line_sees_the_line_without_its_date(rows):
    log = ('2026-11-20 12:00:00 login failed for bob from 192.0.2.7\nlogin failed for bob from 192.0.2.7\n'
           'x 2026-11-20 12:00:00 login failed for bob from 192.0.2.7 on fire\n')
    found = rows('--regex', r'^\s?login failed for <F-USER>\S+</F-USER> from <HOST>$', log=log)
    assert matches(found) == [1, 2]
    assert (found[0]['ip'], found[0]['user'], found[0]['filter'], found[0]['time']) == (
        '192.0.2.7', 'bob', '--regex', local('2026-11-20 12:00:00'))


def test_with_a_regex_all_words_are_files(rows, tmp_path):
    (tmp_path / 'sshd').write_text('from 192.0.2.1\n')
    assert [row['ip'] for row in rows('--regex', 'from <HOST>', tmp_path / 'sshd', log='from 192.0.2.2\n')] == [
        '192.0.2.1', '192.0.2.2']


# --- where the lines come from

def test_standard_input_is_read_for_a_dash_and_if_nothing_is_named():
    for words in (['sshd', '-'], ['sshd'], ['--regex', 'from <HOST> port', '-'], ['--regex', 'from <HOST> port']):
        done = process(*(words + ['--json']), input=(SSHD % (0, 5, GUESS % '192.0.2.7')).encode())
        assert (done.returncode, done.stderr) == (0, b'') and json.loads(done.stdout.decode())['ip'] == '192.0.2.7'


def test_the_lines_of_several_files_are_one_log(rows, tmp_path):
    with gzip.open(str(tmp_path / 'old.gz'), 'wb') as f:
        f.write((SSHD % (0, 5, 'Invalid user bob from 192.0.2.7 port 5') + '\n').encode())
    (tmp_path / 'new').write_text((SSHD % (1, 5, 'Failed password for invalid user bob from 192.0.2.7 port 5 ssh2')).rstrip('\n'))
    found = rows('sshd', tmp_path / 'old.gz', tmp_path / 'new', log=SSHD % (2, 6, GUESS % '192.0.2.8'))
    assert [(row['line'], row['ip'], row['failures']) for row in found] == [
        (1, '192.0.2.7', 1), (2, None, 0), (3, '192.0.2.7', 0), (4, '192.0.2.8', 1)]


def test_every_line_has_a_row_whatever_is_in_it(rows):
    rng = random.Random(3)
    pieces = [b'', b'\r', b'\0', b'\xff\xfe', b'\xc3', b'\xe2\x80\xa8', b'\x85', b'\x0b\x0c', b'x' * 20480, b'\x1b[2J', b'[', b'">',
              'ü'.encode(), b'192.0.2.7', b'2001:db8::7', b'999.1.2.3', b'Nov 20 12:00:00 ', b'h sshd[5]: ', b'message repeated 3 times: [ ',
              b'last message repeated 2 times', b'<34>1 2026-11-20T12:00:00Z h sshd 5 - - ', b'Feb 31 25:61:61 ', b'99999999999 ',
              (GUESS % '192.0.2.7').encode(), b"dropbear[1]: Bad password attempt for 'x' from 192.0.2.7:5", b'for ', b' from ']
    lines = [b''.join(rng.choice(pieces) for _ in range(rng.randrange(6))) for _ in range(400)]
    for words in (['all'], ['--regex', r'from <HOST>(?:\s|:|$)'], ['--regex', r'^.*from <F-ID>\S+</F-ID>']):
        found = rows(*words, log=b'\n'.join(lines) + b'\n')
        assert [row['line'] for row in found] == list(range(1, 401))
        assert all(list(row) == KEYS for row in found)
        assert not any(row['match'] for row, line in zip(found, lines) if not line.strip())


def test_bytes_that_are_not_utf_8_are_escaped(rows):
    (row,) = rows('dropbear', log=b"Nov 20 12:00:00 h dropbear[1]: Bad password attempt for 'a\xffb' from 192.0.2.7:5\n")
    assert (row['user'], row['ip'], row['failures']) == ('a\\xffb', '192.0.2.7', 1)


def test_a_line_that_is_long_only_when_it_is_escaped_is_counted(rows):
    (row,) = rows('dropbear', log=b"dropbear[1]: Bad password attempt for '" + b'\xff' * 3000 + b"' from 192.0.2.7:5\n")
    assert (row['match'], row['ip'], row['failures']) == (True, '192.0.2.7', 1)


def test_a_line_of_20_kib_is_cut_and_its_neighbours_are_not(rows):
    guess = SSHD % (0, 5, GUESS % '192.0.2.7')
    found = rows('sshd', log=guess + 'x' * 20480 + guess + guess.rstrip('\n') + ' ' * 20480 + '\n' + guess)
    assert failures(found) == [1, 0, 0, 1]
    (row,) = rows('--regex', 'from <HOST>', log='from 192.0.2.7 ' + 'x' * 20480 + ' from 192.0.2.8\n')
    assert row['ip'] == '192.0.2.7'


def test_lines_may_end_in_carriage_returns(rows):
    guess = (SSHD % (0, 5, GUESS % '192.0.2.7')).replace('\n', '\r\n')
    assert failures(rows('sshd', log=guess)) == failures(rows('--regex', 'from <HOST> port 5 ssh2$', log=guess)) == [1]


def test_an_empty_log_has_no_rows_and_no_failure(tried):
    done = tried('sshd', '--json', log='')
    assert (done.code, done.out) == (1, '')


# --- match and failures

def test_a_second_line_of_the_same_guess_matches_but_adds_no_failure(rows):
    found = rows('sshd', log=SSHD % (0, 5, 'Invalid user bob from 192.0.2.7 port 5')
                 + SSHD % (1, 5, 'Failed password for invalid user bob from 192.0.2.7 port 5 ssh2')
                 + SSHD % (2, 5, 'Failed password for invalid user bob from 192.0.2.7 port 5 ssh2')
                 + SSHD % (3, 6, 'Failed password for invalid user bob from 192.0.2.7 port 6 ssh2'))
    assert [(row['match'], row['failures'], row['ip'], row['user']) for row in found] == [
        (True, n, '192.0.2.7', 'bob') for n in (1, 0, 1, 1)]
    assert [row['why'] for row in found] == ['', 'it tells of a guess that a line before has told of', '', '']


def test_a_line_without_an_address_counts_with_the_one_that_brings_it(rows):
    found = rows('dropbear', log='dropbear[7]: Login attempt for nonexistent user\ndropbear[7]: Login attempt for nonexistent user\n'
                 "dropbear[7]: Exit before auth from <192.0.2.9:5>: Max auth tries reached - user 'is invalid'\n")
    assert found[0] == dict(NOTHING, line=1, why='its address is not known yet')
    assert (found[2]['match'], found[2]['ip'], found[2]['failures']) == (True, '192.0.2.9', 2)


def test_in_a_file_of_filter_d_the_lines_of_a_connection_complete_each_other(rows, tmp_path):
    (tmp_path / 'door.conf').write_text(CONNECTIONS)
    date = '2026-11-20 12:00:0%d'
    log = '\n'.join(date % n + ' door[%s' % text for n, text in enumerate([
        '3]: connect from 192.0.2.3', '3]: wrong password for bob', '3]: wrong password for guest',
        '4]: wrong password for eve', '4]: connect from 192.0.2.4', '5]: welcome ann', '6]: connect from 192.0.2.6', '6]: welcome ann']))
    found = rows(tmp_path / 'door.conf', log=log)
    assert [(row['line'], row['ip'], row['user'], row['failures']) for row in found if row['match']] == [
        (2, '192.0.2.3', 'bob', 1), (5, '192.0.2.4', 'eve', 1)]
    assert found[2] == dict(NOTHING, line=3, why=found[2]['why']) and found[3]['why'] == 'its address is not known yet'
    assert found[1]['time'] == local('2026-11-20 12:00:01')


@pytest.mark.parametrize('others', [0, 1, 2, 5])
def test_a_line_that_an_ignoreregex_matches_says_so(rows, tried, tmp_path, others):
    path = tmp_path / 'door.conf'
    path.write_text('[Definition]\nfailregex = ^gone: <HOST>\n%signoreregex = on leave$\n' % ''.join(
        '    ^other %d <HOST>\n' % n for n in range(others)))
    log = 'gone: 192.0.2.1 on leave\ngone: 192.0.2.2\n'
    assert rows(path, log=log)[0] == dict(NOTHING, line=1, why='an ignoreregex matches')
    assert 'lines     2: 1 matched, 0 not;' in tried(path, log=log).out


def test_logins_and_lines_that_only_tell_something_are_no_match(rows):
    found = rows('sshd', log=SSHD % (0, 5, 'Accepted password for root from 192.0.2.7 port 5 ssh2')
                 + SSHD % (0, 6, 'Connection from 192.0.2.7 port 5 on 192.0.2.1 port 22'))
    assert found == [dict(NOTHING, line=n) for n in (1, 2)]


def test_repeated_messages_count_as_often_as_they_say(rows):
    log = SSHD % (0, 5, 'message repeated 3 times: [ %s]' % GUESS % '192.0.2.7') + 'Nov 20 12:00:01 h last message repeated 2 times\n'
    found = rows('sshd', log=log)
    assert [(row['match'], row['failures']) for row in found] == [(True, 3), (True, 2)]
    log = 'door: message repeated 4 times: [ no entry for 192.0.2.7]\n'
    assert failures(rows('--regex', 'no entry for <HOST>$', log=log)) == [4]


@pytest.mark.parametrize('name', ['bad.example', '999.1.2.3', '192.0.2.7.example'])
def test_a_name_is_never_looked_up_and_never_counted(rows, name):
    (row,) = rows('sshd', log=SSHD % (0, 5, GUESS % name))
    assert (row['ip'], row['failures'], row['why']) == (None, 0, 'it names no address')
    (row,) = rows('--regex', 'from <HOST> port', log=SSHD % (0, 5, GUESS % name))
    assert (row['ip'], row['failures'], row['why']) == (None, 0, 'it names no address')



@pytest.mark.parametrize('regex', [r'door <F-ID>\S+</F-ID> of <F-TUPLE_ID>\S+</F-TUPLE_ID>',
                                   r'door <F-MLFID>\S+</F-MLFID> of <F-TUPLE_MLFID>\S+</F-TUPLE_MLFID>(?: <HOST>)?'])
def test_an_id_of_several_parts_is_no_address_and_no_bug(rows, tried, regex):
    (row,) = rows('--regex', regex, log='door 192.0.2.7 of 192.0.2.8\n')
    assert (row['ip'], row['failures']) == (None, 0) and row['why']
    assert tried('--regex', regex, log='door 192.0.2.7 of 192.0.2.8\n').err == ''


def test_among_all_filters_the_one_that_counts_a_line_is_told(rows):
    """dropbear and vsftpd both know lines of PAM, by their tags; a line that one of them counts is that one's."""
    pam = 'pam_unix(%s:auth): authentication failure; logname= uid=0 euid=0 tty=x ruser=bob rhost=192.0.2.7 '
    found = rows('all', log='vsftpd: %s\ndropbear[5]: %s\n' % (pam % 'vsftpd', pam % 'dropbear'))
    assert [(row['filter'], row['failures']) for row in found] == [('vsftpd', 1), ('dropbear', 1)]


# --- the year that a date lacks

@pytest.mark.parametrize('now, year', [('2026-11-21', 2026), ('2020-03-01', 2019), ('2020-11-20', 2020), ('2001-01-01', 2000)])
def test_now_says_of_which_year_a_date_is(rows, now, year):
    epoch = str(int(local(now, '%Y-%m-%d') + 72000))
    (row,) = rows('sshd', '--now', epoch, log=SSHD % (0, 5, GUESS % '192.0.2.7'))
    assert row['time'] == local('%d-11-20 12:00:00' % year)
    (row,) = rows('--regex', 'from <HOST> port', '--now=' + epoch, log=SSHD % (0, 5, GUESS % '192.0.2.7'))
    assert row['time'] == local('%d-11-20 12:00:00' % year)


def test_a_year_in_the_date_is_believed_whatever_now_says(rows):
    (row,) = rows('dropbear', '--now', '1000000000.5',
                  log="Thu Mar  7 12:34:56 2024 authpriv.warn dropbear[1]: Bad password attempt for 'x' from 192.0.2.7:5\n")
    assert row['time'] == local('2024-03-07 12:34:56')


def test_a_line_without_a_date_has_no_time(rows):
    (row,) = rows('sshd', log='sshd[5]: %s\n' % GUESS % '192.0.2.7')
    assert row['match'] and row['time'] is None


# --- the summary

def test_the_summary_counts_lines_and_failures_and_names_the_filter(tried):
    log = (SSHD % (0, 5, 'Invalid user bob from 192.0.2.7 port 5') + SSHD % (1, 5, 'Failed password for invalid user bob from 192.0.2.7 port 5 ssh2')
           + SSHD % (2, 6, GUESS % '192.0.2.8') + SSHD % (3, 7, 'Accepted password for root from 192.0.2.9 port 5 ssh2')
           + SSHD % (4, 8, 'Connection from 192.0.2.7 port 5 on 192.0.2.1 port 22') + SSHD % (5, 9, GUESS % 'bad.example') + '\n')
    done = tried('sshd', log=log)
    assert (done.code, done.err) == (0, '')
    assert done.out.splitlines()[:3] == [
        'filter    sshd (built-in)',
        'lines     7: 3 matched, 1 not; 1 login, 1 that tell something but no failure, 1 ignored',
        'failures  2 of 2 addresses']


def test_the_summary_tells_where_a_filter_was_found(tried, tmp_path):
    (tmp_path / 'door.conf').write_text(CONNECTIONS)
    assert tried(tmp_path / 'door.conf', log='').out.startswith('filter    %s (%s)\n' % ((tmp_path / 'door.conf',) * 2))


def test_the_summary_tells_by_which_regex_how_many_lines_were_matched(tried, tmp_path):
    (tmp_path / 'door.conf').write_text('[Definition]\nfailregex = ^alpha <HOST>$\n    ^beta <HOST>$\n    ^gamma <HOST>$\n')
    done = tried(tmp_path / 'door.conf', log='beta 192.0.2.7\n' * 3 + 'alpha 192.0.2.7\n' + 'beta 192.0.2.8\n')
    table = done.out[done.out.index('LINES  REGEX'):].split('\n\n')[0]
    assert [line.split() for line in table.splitlines()[1:]] == [['4', '^beta', '<HOST>$'], ['1', '^alpha', '<HOST>$']]


def test_with_several_filters_the_summary_says_whose_a_regex_is(tried):
    done = tried('all', log=SSHD % (0, 5, GUESS % '192.0.2.7') + DROPBEAR % (1, '192.0.2.8'))
    assert re.search(r'(?m)^ +1  sshd: \^Failed ', done.out) and re.search(r'(?m)^ +1  dropbear: \^\[Bb\]ad ', done.out)


def test_the_summary_shows_the_first_ten_captures_with_user_and_time(tried):
    log = ''.join(SSHD % (n, n, GUESS % ('192.0.2.%d' % n)) for n in range(20)) + 'sshd[99]: ' + GUESS % '192.0.2.99' + '\n'
    done = tried('sshd', '--now', int(local('2026-11-21 00:00:00')), log='x\n' + log)
    table = done.out[done.out.index('LINE  ADDRESS'):].split('\n\n')[0].splitlines()
    assert len(table) == 11 and table[0].split() == ['LINE', 'ADDRESS', 'USER', 'TIME']
    assert table[3].split() == ['4', '192.0.2.2', 'root', '2026-11-20', '12:00:02']
    assert re.search(r'1  192\.0\.2\.99  root  no date', tried('sshd', log='sshd[9]: ' + GUESS % '192.0.2.99').out)


def test_the_summary_says_why_lines_were_not_counted(tried):
    done = tried('sshd', log=(SSHD % (0, 5, GUESS % 'bad.example') + SSHD % (0, 6, 'Disconnecting: Too many authentication failures') * 2))
    assert [line.split(None, 1) for line in done.out[done.out.index('NOT COUNTED'):].splitlines()[1:3]] == [
        ['2', 'its address is not known yet'], ['1', 'it names no address: bad.example']]


def test_the_summary_shows_what_no_regex_matches_the_most_frequent_first_and_numbers_aside(tried):
    log = ''.join('cron[%d]: ran job %d at 192.0.2.%d\n' % (n, n * 7, n) for n in range(30)) + 'odd one out\n' + 'kernel: hello\n' * 5
    shown = tried('sshd', log=log).out.split('the most frequent lines that no regex matches:\n')[1]
    assert shown.splitlines() == ['     30  cron[0]: ran job 0 at 192.0.2.0', '      5  kernel: hello', '      1  odd one out']


@pytest.mark.slow
def test_at_most_ten_kinds_of_missed_lines_are_shown_and_each_is_cut(tried):
    log = ''.join(chr(97 + n) * 5000 + '\n' for n in range(26))
    done = tried('sshd', log=log)
    assert '0 matched, 26 not;' in done.out
    shown = done.out.split('the most frequent lines that no regex matches:\n')[1].splitlines()
    assert len(shown) == 10 and max(len(line) for line in shown) < 200


def test_a_log_with_nothing_in_it_that_matters_has_a_short_summary(tried):
    done = tried('sshd', log='')
    assert done.code == 1
    assert done.out.splitlines()[1:] == [
        'lines     0: 0 matched, 0 not; 0 logins, 0 that tell something but no failure, 0 ignored', 'failures  0 of 0 addresses']


# --- a hostile log, a human reader

ESCAPES = '\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\u2028'


@pytest.mark.parametrize('words', [
    ['sshd'], ['dropbear'], ['all'], ['--regex', 'from <HOST>'], ['--regex', '^.* for <F-USER>.*</F-USER> from <HOST>'],

    ['--regex', 'from <F-ID>.*</F-ID> port'], ['--regex', 'for <F-USER>.*</F-USER> from <F-ID>\\S+</F-ID>']])
def test_what_a_log_says_never_reaches_the_terminal_raw(tried, words):
    lines = [SSHD % (0, 5, 'Failed password for %s from 192.0.2.7 port 5 ssh2' % ESCAPES),
             SSHD % (0, 6, 'Failed password for root from %s port 5 ssh2' % ESCAPES),
             "dropbear[3]: Bad password attempt for '%s' from 192.0.2.8:5\n" % ESCAPES,
             ESCAPES + '\n', '\r' + ESCAPES + 'dropbear[1]: x\n', 'h\x00h\x7f\x08\x08\n']
    done = tried(*words, log=''.join(lines))
    assert done.out and all(c.isprintable() or c == '\n' for c in done.out), repr(done.out)
    raw = tried(*words + ['--json'], log=''.join(lines)).out
    assert all(' ' <= c <= '~' or c == '\n' for c in raw)


def test_errors_show_no_escapes_either(tried, tmp_path):
    for words in (['\x1b[2J'], ['--regex', '\x1b[2J'], ['sshd', '--now', '\x1b[2J'], ['sshd[\x1b=]'], ['/no/\x1b[2J'], ['sshd[mode=\x1b[2J]']):
        done = tried(*words, log='x\n')
        assert done.code in (64, 78) and '\x1b' not in done.err and done.err.count('\n') == 1, words


def test_a_terminal_that_lacks_letters_is_no_error():
    done = process('sshd', '-', input='grüße von nirgendwo\n'.encode(), env=dict(os.environ, PYTHONIOENCODING='ascii'))
    assert (done.returncode, done.stderr) == (1, b'') and b' von nirgendwo' in done.stdout


def test_a_runaway_regex_is_stopped_and_the_next_lines_are_looked_at(rows):
    began = time.process_time()
    found = rows('--regex', '^(?:a+)+ <HOST>$', log='a' * 60 + '!\n' + 'aaa 192.0.2.7\n')
    assert time.process_time() - began < 3
    assert found[0] == dict(NOTHING, line=1, why='a regex took too long') and found[1]['failures'] == 1


# --- what is wrong

@pytest.mark.parametrize('words, code, text', [
    (['sshdd'], 78, "banwatch: no filter is called 'sshdd' (did you mean sshd?)"),
    (['SSHD'], 78, "banwatch: no filter is called 'SSHD' (did you mean sshd?)"),
    (['quite-else'], 78, "banwatch: no filter is called 'quite-else' (there are: adguardhome asterisk dovecot dropbear "),
    (['/no/such/file.conf'], 78, 'banwatch: /no/such/file.conf: cannot be read'),
    (['/etc'], 78, 'banwatch: /etc: cannot be read'),
    (['sshd', '/no/such/log'], 1, 'banwatch: /no/such/log: No such file or directory'),
    (['sshd', '/etc'], 1, 'banwatch: /etc: Is a directory'),
    (['sshd', '--now', 'noon'], 64, 'banwatch: --now noon is not a number of seconds'),
    (['sshd', '--now', ''], 64, 'banwatch: --now  is not a number of seconds'),
    (['--regex', 'login failed'], 64, "banwatch: 'login failed' has no <HOST>"),
    (['--regex', ''], 64, "banwatch: '' has no <HOST>"),
    (['--regex', '(<HOST>'], 64, "banwatch: '(<HOST>' is not a regex: missing ), unterminated subpattern"),
    (['--regex', '<HOST> and <HOST>'], 64, "banwatch: '<HOST> and <HOST>' has more than one <HOST>"),
    (['--regex', '<HOST> <NOTHING>'], 64, "banwatch: '<HOST> <NOTHING>' has a tag that is not known: <NOTHING>"),
    (['--regex', '%(__prefix_line)s<HOST>'], 64, "banwatch: '%(__prefix_line)s<HOST>' has %(...)s, which only a file of filter.d may have"),
    (['sshd[mode=agressive]'], 78, "built-in sshd.conf:12: failregex: there is no 'mode-agressive' ('agressive' is not a mode of it)"),
    (['sshd[mode'], 78, "banwatch: 'sshd[mode' is not a filter (try NAME or NAME[option=value,...])"),
    (['sshd[mode]'], 78, "banwatch: 'sshd[mode]': cannot make sense of [mode]"),
    (['sshd[mode=ddos, =x]'], 78, "banwatch: 'sshd[mode=ddos, =x]': cannot make sense of [ =x]"),
    (['all[mode'], 78, "banwatch: 'all[mode' is not a filter"),
    ([''], 78, "banwatch: '' is not a filter"),
    (['sshd', '--foo'], 64, 'banwatch: option --foo not recognized')])
def test_what_is_wrong_is_one_line_and_an_exit_code(tried, words, code, text):
    done = tried(*words, log='x\n') if code != 1 else tried(*words)
    assert done.code == code and done.out == '', done.err
    assert done.err.startswith(text) and done.err.count('\n') == 1


@pytest.mark.parametrize('now', ['nan', 'inf', '-inf', '-1e18', '1e300'])
def test_a_now_that_is_no_moment_is_told_as_one(tried, now):
    done = tried('sshd', '--now=' + now, log=SSHD % (0, 5, GUESS % '192.0.2.7'))
    assert (done.code, done.err) == (64, 'banwatch: --now %s is not a number of seconds\n' % now)


def test_without_a_filter_the_usage_is_told(tried):
    done = tried()
    assert (done.code, done.err) == (64, 'banwatch: usage: banwatch.py test FILTER [FILE...] (or --regex R)\n')
    done = tried('sshd', '--regex')
    assert (done.code, done.err) == (64, 'banwatch: option --regex requires argument (see --help)\n')


@pytest.mark.parametrize('conf', ['', '[recidive]\n', '[again]\nfilter = recidive\n'])
def test_recidive_reads_no_log_and_says_so(tried, conf):
    done = tried('again' if 'again' in conf else 'recidive', log='x\n', conf=conf)
    assert done.code in (64, 78) and done.out == ''
    assert done.err.count('\n') == 1 and 'reads no log' in done.err


@pytest.mark.parametrize('text, told', [
    ('[Definition]\nfailregex = gone\n', ":2: failregex: 'gone' has no <HOST>"),
    ('[Definition]\nignoreregex = x\n', ': failregex: there is none'),
    ('[Definition]\nfailregex = (<HOST>\n', ":2: failregex: '(<HOST>' is not a regex: missing ), unterminated subpattern"),
    ('[Definition]\n\nfailregex = %(__prefix)s <HOST>\n', ":3: failregex: '%(__prefix)s' is not defined anywhere"),
    ('[Definition]\nfailregex = <HOST>\nprefregex = (\n', ":3: prefregex: '(' is not a regex"),
    ('[Definition]\nfailregex = <a>\na = <b>\nb = <a> <HOST>\n', ': failregex: a <tag> stands in itself'),
    ('[INCLUDES]\nbefore = lost.conf\n[Definition]\nfailregex = %(x)s <HOST>\n', 'lost.conf, which is not there)'),
    ('failregex = <HOST>\n', ":1: 'failregex = <HOST>' stands before any [section]")])
def test_a_mistake_in_a_filters_file_is_told_with_its_place(tried, tmp_path, text, told):
    path = tmp_path / 'door.conf'
    path.write_text(text)
    done = tried(path, log='x\n')
    assert (done.code, done.out) == (78, '') and done.err.count('\n') == 1
    assert str(path) in done.err and told in done.err
    assert 'no such' not in done.err


def test_a_mistake_in_the_conf_is_told_first(tried, tmp_path):
    done = tried('sshd', log='x\n', conf='[sshd]\nmaxretry = x\n')
    assert done.code == 78 and done.err.startswith('%s:2: maxretry:' % (tmp_path / 'c'))


def test_a_jail_whose_mode_does_not_exist_is_told_with_its_place(tried, tmp_path):
    done = tried('luci', log='x\n', conf='\n[sshd]\nmode = agressive\n')
    assert done.code == 78 and done.err.startswith('%s:2: [sshd]: ' % (tmp_path / 'c'))
    assert "'agressive' is not a mode of it" in done.err and done.err.count('\n') == 1


def test_the_exit_code_says_whether_anything_matched(tried):
    for words in ([], ['--json']):
        assert tried('sshd', *words, log=SSHD % (0, 5, GUESS % '192.0.2.7')).code == 0
        assert tried('sshd', *words, log=SSHD % (0, 5, 'Accepted password for root from 192.0.2.7 port 5 ssh2')).code == 1
        assert tried('sshd', *words, log='nothing\n' * 9).code == 1


def test_every_filter_that_is_built_in_can_be_tested_by_its_name(tried):
    for name in banwatch.FILTERS:
        if not name.startswith('common') and name != 'recidive':
            assert tried(name, log='x\n').code == 1


def test_it_needs_no_rights_and_touches_nothing(tmp_path):
    before = sorted(os.listdir(str(tmp_path)))
    assert process('all', '--json', '/dev/null', cwd=str(tmp_path)).returncode == 1
    assert sorted(os.listdir(str(tmp_path))) == before


# --- replay and recidive

def bans(*hours):
    """A log with a ban of 192.0.2.7 at each of these hours."""
    start = int(local('2026-11-20 00:00:00'))
    return ''.join(time.strftime('%b %d %H:%M:%S', time.localtime(start + hour * 3600 + n)) + ' h sshd[%d]: %s\n' % (
        hour * 10 + n, GUESS % '192.0.2.7') for hour in hours for n in range(5))


def replayed(tried, log, conf):
    answer = json.loads(tried('--json', log=log, conf='[DEFAULT]\nbantime.increment = false\n' + conf, command='replay').out)
    return [(ban['jail'], ban['seconds'], ban['failures']) for ban in answer['bans']]


def test_replay_bans_for_a_week_who_was_banned_five_times_within_a_day(tried):
    sshd = ('sshd', 600, 5)
    assert replayed(tried, bans(0, 1, 2, 3, 23), '[recidive]\n') == [sshd] * 5 + [('recidive', 604800, 5)]
    assert replayed(tried, bans(0, 1, 2, 3, 25), '[recidive]\n') == [sshd] * 5
    assert replayed(tried, bans(0, 1, 2, 3), '[recidive]\n') == [sshd] * 4
    assert replayed(tried, bans(0, 1, 2, 3, 4), '') == [sshd] * 5


def test_replay_reads_with_the_modes_and_filters_of_the_conf(tried, tmp_path):
    (tmp_path / 'filter.d').mkdir()
    (tmp_path / 'filter.d' / 'door.conf').write_text(CONNECTIONS)
    log = ''.join('2026-11-20 12:00:0%d door[%d]: beta 192.0.2.7\n' % (n, n) for n in range(5))
    assert replayed(tried, log, '[door]\nmode = more\n') == [('door', 600, 5)]
    assert replayed(tried, log, '[entry]\nfilter = door[mode=more]\n') == [('entry', 600, 5)]
    assert replayed(tried, log, '[door]\n') == []


LOGIN = "%s 12:00:00 2026 authpriv.warn dropbear[%d]: Bad password attempt for 'root' from %s:53066\n"


def test_replay_forgets_a_ban_as_the_daemon_does_dbpurgeage_after_its_end(tried):
    def lengths(second):
        log = ''.join(LOGIN % (day, n, '192.0.2.7') for day in ('Fri Jan  2', second) for n in range(5))
        answer = json.loads(tried('--json', log=log, command='replay').out)
        return [(ban['count'], ban['seconds']) for ban in answer['bans']]
    assert lengths('Fri Jan 30') == [(1, 600), (2, 1200)]
    assert lengths('Fri Mar 20') == [(1, 600), (1, 600)]


def test_replay_keeps_no_more_bans_than_maxbans(tried):
    log = ''.join(LOGIN % ('Fri Jan  2', n, '198.51.100.%d' % ip) for ip in (1, 2, 3, 4, 5, 6, 1) for n in range(5))
    answer = json.loads(tried('--json', log=log, conf='[banwatch]\nmaxbans = 3\n', command='replay').out)
    assert [ban['ip'] for ban in answer['bans']] == ['198.51.100.%d' % n for n in (1, 2, 3, 4, 5, 6, 1)], 'lifted, and banned again'


# --- lines without a date, files of one jail

UNDATED = 'sshd[%d]: Failed password for root from 192.0.2.7 port 5 ssh2\n'


def test_failures_without_a_date_are_counted_but_never_two_of_them_make_a_ban(tried):
    answer = json.loads(tried('--json', log=''.join(UNDATED % n for n in range(20)), command='replay').out)
    assert (answer['failures'], answer['undated'], answer['bans']) == (20, 20, [])
    said = tried('-', log=''.join(UNDATED % n for n in range(20)), command='replay')
    assert '20 failures have no date that can be read' in said.err and 'is this a log?' not in said.err


def test_a_failure_without_a_date_is_enough_where_one_is_and_its_ban_has_none(tried):
    said = tried('-', log=UNDATED % 1, conf='[sshd]\nmaxretry = 1\n', command='replay')
    assert re.search(r'(?m)^no date +sshd +192.0.2.7 +1 ', said.out) and '1 failure has no date' in said.err
    (ban,) = json.loads(tried('--json', log=UNDATED % 1, conf='[sshd]\nmaxretry = 1\n', command='replay').out)['bans']
    assert ban['time'] is None


def test_failures_with_a_date_among_those_without_count_as_ever(tried):
    dated = bans(1).splitlines(True)
    answer = json.loads(tried('--json', log=''.join(line + UNDATED % n for n, line in enumerate(dated)), command='replay').out)
    assert (answer['failures'], answer['undated'], len(answer['bans'])) == (10, 5, 1)


@pytest.mark.parametrize('line', [
    '[GIN] 2026/11/20 - 12:27:01 | 200 | 1.2ms | 192.0.2.1 | GET "/"', '{"log":"x\\n","stream":"stdout","time":"2026-11-20T12:27:01.1Z"}',
    '{"ts":1795179705.4,"msg":"x"}', '20.11.2026 12:27:01 x'])
def test_a_log_in_another_form_is_not_called_none(tried, line):
    assert 'is this a log?' not in tried('-', log=(line + '\n') * 30, command='replay').err


OWN = '2026-11-20 12:00:0%d: (mod_auth.c.850) password doesn\'t match for / username: root IP: 192.0.2.7\n'


def test_a_jails_own_log_is_read_for_that_jail_and_said_so(tried, tmp_path):
    own, other = tmp_path / 'web.log', tmp_path / 'copy.log'
    log = ''.join(OWN % n for n in range(5))
    own.write_text(log + bans(1))
    conf = '[lighttpd-auth]\nsource = %s\n' % own
    said = tried(str(own), conf=conf, command='replay')
    assert '%s: read for lighttpd-auth\n' % own in said.err and 'lighttpd-auth' in said.out and 'sshd' not in said.out
    other.write_text(log + bans(1))
    said = tried(str(other), conf=conf, command='replay')
    assert 'read for' not in said.err and 'lighttpd-auth' in said.out and 'sshd' in said.out


def test_replay_for_one_jail_reads_lines_without_a_tag(tried, tmp_path):
    log = ''.join(OWN % n for n in range(5)) + bans(1)
    assert [ban['jail'] for ban in json.loads(tried('--json', log=log, conf='[lighttpd-auth]\n', command='replay').out)['bans']] == ['sshd']
    said = tried('-j', 'lighttpd-auth', '--json', log=log, conf='[lighttpd-auth]\n', command='replay')
    assert [ban['jail'] for ban in json.loads(said.out)['bans']] == ['lighttpd-auth']


@pytest.mark.parametrize('name', ['recidive', 'nothing'])
def test_replay_for_a_jail_that_reads_no_log_is_a_mistake(tried, name):
    said = tried('-j', name, '-', log='x\n', conf='[recidive]\n', command='replay')
    assert said.code == 64 and said.err.startswith('banwatch: %s: no jail that reads a log (there are: dropbear' % name)


def test_a_long_replay_says_on_a_terminal_how_far_it_has_come(tmp_path):
    log = tmp_path / 'log'
    log.write_bytes(b'x' * 99 + b'\n')
    said, machine = [], type('M', (), {'ticks': lambda self: next(clock)})()
    for tty, wanted in (True, '50 %, 1 lines a second'), (False, ''):
        clock, stream = iter((0, 0.5, 1.5, 2.0)), io.StringIO()
        stream.isatty = lambda: tty
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, 'stderr', stream)
            list(banwatch.with_progress([b'', b'x' * 48 + b'\n\n'], str(log), machine))
        said.append(stream.getvalue())
        assert wanted in said[-1] and bool(said[-1]) == tty
    assert said[0].endswith('\r\033[K')


def test_test_shows_what_a_regex_of_ones_own_sees(tried):
    said = tried('--regex', 'no door for <HOST>', log='<38>Nov 20 12:00:00 door[3]: other 192.0.2.7\n')
    assert 'sees       door[3]: other 192.0.2.7' in said.out.replace('sees      ', 'sees      ')


# --- the tag of a container

def test_program_names_the_tag_of_a_container(tried):
    log = ''.join('Nov 20 12:00:0%d host docker/mail[77]: %s\n' % (n, GUESS % '192.0.2.7') for n in range(5))
    assert replayed(tried, log, '[sshd]\nprogram = docker/(mail|post)\n') == [('sshd', 600, 5)]
    assert replayed(tried, log, '[sshd]\n') == replayed(tried, log, '[sshd]\nprogram = docker/web\n') == []


@pytest.mark.parametrize('conf, text', [
    ('[door]\nprogram = x\n', 'program: the filter door has no tag of its own'),
    ('[x]\nprogram = x\nfailregex = no <HOST>\n', 'program: has no meaning without a `filter`'),
    ('[sshd]\nprogram = (\n', 'is not a regex')])
def test_program_where_it_means_nothing_is_a_mistake(tried, tmp_path, conf, text):
    (tmp_path / 'filter.d').mkdir()
    (tmp_path / 'filter.d' / 'door.conf').write_text('[Definition]\nfailregex = no <HOST>\n')
    said = tried('-', log='x\n', conf=conf, command='replay')
    assert said.code == 78 and text in said.err
