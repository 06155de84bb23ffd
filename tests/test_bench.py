"""The bench: its logs are logs, its table is a table. What it measures is not judged here."""
import json
import os
import random
import re
import subprocess
import sys
import time

import pytest

import banwatch
import bench
from conftest import need

WRITERS = [bench.attack_log, bench.plain_log]
END = 1795179705                     # Fri Nov 20 13:01:45 2026, UTC


def run(*words, codes=(0,)):
    done = subprocess.run([sys.executable, bench.__file__] + list(words), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, timeout=300)
    assert done.returncode in codes, done.stderr
    return done.stdout


def moments(path):
    with open(str(path), 'rb') as f:
        return [time.strptime('2026 ' + line[:15].decode(), '%Y %b %d %H:%M:%S') for line in f]


@pytest.mark.parametrize('write', WRITERS)
def test_each_line_written_has_a_date_a_host_a_program_and_a_message(write):
    for raw in write(2000, random.Random(1)):
        assert banwatch.read_line(raw.rstrip(b'\n')).date == raw[:15]
        # syslogd names itself with its version
        assert re.match(rb'.{15} gate [a-z]+(\(pam_unix\))?(\[\d+\]| 1\.4\.1)?: \S.*\n$', raw), raw


@pytest.mark.parametrize('write', WRITERS)
def test_the_same_seed_writes_the_same_log_of_the_length_asked_for(write):
    log = write(500, random.Random(7))
    assert len(log) == 500 and log == write(500, random.Random(7)) != write(500, random.Random(8))


@pytest.mark.parametrize('write', WRITERS)
def test_addresses_are_those_set_aside_for_documentation(write):
    found = set(re.findall(rb'(?<![\d.])(?:\d+\.){3}\d+', b''.join(write(2000, random.Random(1)))))
    assert found and all(ip.startswith((b'192.0.2.', b'198.51.100.', b'203.0.113.')) for ip in found)


def test_an_attack_log_holds_each_kind_of_line_that_openssh_writes_under_attack():
    log = b''.join(bench.attack_log(2000, random.Random(1)))
    for text in (b'reverse mapping checking', b'Invalid user', b'input_userauth_request', b'check pass; user unknown',
                 b'authentication failure;', b'Failed password for root', b'Failed password for invalid user', b'Bye Bye',
                 b'Connection closed by', b'message repeated 5 times', b'Did not receive identification'):
        assert text in log


def test_a_repeated_log_has_the_lines_asked_for_and_its_time_rises_to_the_end_given(tmp_path):
    bench.repeat(bench.attack_log(30, random.Random(1)), str(tmp_path / 'log'), 1000, END)
    times = moments(tmp_path / 'log')
    assert len(times) == 1000 and times == sorted(times)
    assert time.strftime('%b %d %H:%M:%S', times[-1]) == 'Nov 20 13:01:45'
    assert time.mktime(times[-1]) - time.mktime(times[0]) == 999 * bench.STEP


def test_a_repeated_log_keeps_texts_and_line_ends_and_leaves_out_what_has_no_date(tmp_path):
    bench.repeat([b'Dec 10 06:55:46 h a: x\r\n', b'no date\n', b'Dec  1 06:55:46 h b: y'], str(tmp_path / 'log'), 3, END)
    assert (tmp_path / 'log').read_bytes() == (b'Nov 20 13:01:31 h a: x\r\nNov 20 13:01:38 h b: y\n'
                                               b'Nov 20 13:01:45 h a: x\r\n')


def test_a_log_too_long_for_its_year_goes_slower(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, 'YEAR_AT_MOST', 100)
    bench.repeat(bench.attack_log(30, random.Random(1)), str(tmp_path / 'log'), 1000, END)
    times = moments(tmp_path / 'log')
    assert times == sorted(times) and time.mktime(times[-1]) - time.mktime(times[0]) <= 100


def test_a_log_without_dates_is_refused(tmp_path):
    with pytest.raises(bench.Missing):
        bench.repeat([b'just words\n'], str(tmp_path / 'log'), 10, END)


VARIED = [b'Dec 10 06:55:46 gate sshd[24]: Failed password for root from 203.0.113.%d port %d ssh2\n' % (n, 2000 + n) for n in range(100)]


def test_a_varied_log_has_other_pids_ports_and_most_of_the_addresses_in_each_copy(tmp_path):
    bench.repeat(VARIED, str(tmp_path / 'log'), 300, END, bench.varied(random.Random(1)))
    found = [re.fullmatch(rb'.{15} gate sshd\[(\d+)\]: Failed password for root from ([\d.]+) port (\d+) ssh2', line).groups()
             for line in (tmp_path / 'log').read_bytes().split(b'\n')[:-1]]
    assert len(found) == 300 and len({pid for pid, _, _ in found}) == 3        # one process in each copy
    assert len({port for _, _, port in found}) > 290
    kept = sum(ip.startswith(b'203.0.113.') for _, ip, _ in found)
    assert 60 < kept < 120 and all(banwatch.address(ip.decode()) for _, ip, _ in found)


def test_a_log_of_a_crowd_has_one_failure_of_each(tmp_path):
    bench.crowd_log(str(tmp_path / 'log'), 200, END)
    text = (tmp_path / 'log').read_bytes()
    seen = list(banwatch.load_filter('sshd').scan(banwatch.tidy(text), lambda date: 1.0))
    assert [event.ip for event in seen] == bench.crowd(200) and len(moments(tmp_path / 'log')) == 200


def test_runs_in_turn_alternate_and_one_that_fails_is_not_tried_again(tmp_path):
    measured, ran = bench.Bench(str(tmp_path), bench.arguments(['--times', '3'])), []

    def fail():
        ran.append('b')
        raise bench.Missing('not here')
    assert bench.in_turn(measured, {'a': lambda: ran.append('a') or 7, 'b': fail}) == {'a': [7, 7, 7], 'b': None}
    assert ran == ['a', 'b', 'a', 'a'] and measured.notes == ['b: not here']
    ran.clear()
    bench.in_turn(measured, {name: lambda name=name: ran.append(name) or 1 for name in 'ab'})
    assert ''.join(ran) == 'abbaab'


def test_runs_in_turn_are_compared_pair_by_pair():
    row = bench.pair('x', 'us', [1, 9, 4], 'peer', [2, 6, 4])
    assert (row.ours, row.theirs, bench.ratio(row)) == (4, 4, 1) and '1.00 x' in bench.cells(row)
    assert bench.ratio(bench.pair('x', 'us', [10, 10, 30], 'peer', [10, 5, 10])) == 2
    assert bench.ratio(bench.pair('x', 'us', [1], 'peer', None)) is None


def test_processor_time_is_that_of_the_programs_that_ran():
    cpu, wall = bench.spent(bench.call, [sys.executable, '-c', 'import time; time.sleep(0.2)\nwhile time.process_time() < 0.1: pass'])
    assert 0.1 <= cpu < wall and wall > 0.2


def test_a_peer_that_does_not_end_is_told_so(tmp_path):
    (tmp_path / 'log').write_bytes(b'x\n')
    with pytest.raises(bench.Missing, match='not done after 0.1 s'):
        bench.timed_pipeline([['cat'], ['sleep', '60']], str(tmp_path / 'log'), 0.1)


def test_ten_thousand_addresses_are_ten_thousand():
    found = {bench.spread(n) for n in range(11000)}
    assert len(found) == 11000 and all(banwatch.address(ip) == ip for ip in found)


def test_a_crowd_comes_from_everywhere_is_always_the_same_and_ends_with_whom_it_is_told():
    ips = bench.crowd(2000, '198.51.100.9')
    assert len(set(ips)) == 2000 and all(banwatch.address(ip) == ip for ip in ips)
    assert ips[-1] == '198.51.100.9' and bench.crowd(1000, '203.0.113.1') == ips[:999] + ['203.0.113.1']
    assert bench.crowd(0) == [] and bench.crowd(1, 'x') == ['x']
    spread = {banwatch.IPTables(4, [], {}).chain(ip) for ip in ips}
    assert len(spread) == 28                           # all /5 of what is not multicast


@pytest.mark.parametrize('most, sizes', [(10000, [1000, 2000, 1000, 10000, 1000, 10000]), (1500, [1000, 1500] * 3), (7, [7] * 3)])
def test_each_firewall_gets_a_thousand_bans_and_as_many_as_it_may(most, sizes):
    assert [count for _, count in bench.each_size(bench.Bench('', bench.arguments(['--bans', str(most)])))] == sizes


def test_the_rules_of_each_firewall_and_of_the_flat_chain_name_all_who_are_banned():
    for kind in list(bench.MOST) + ['flat']:
        texts = ''.join(text for _, text in bench.commands(kind, bench.crowd(50)))
        assert set(bench.crowd(50)) <= set(re.findall(r'[\d.]+', texts)), kind


def test_what_is_written_to_a_fifo_waits_for_a_reader_however_much_it_is(tmp_path):
    os.mkfifo(str(tmp_path / 'fifo'))
    with open(str(tmp_path / 'fifo'), 'wb', 0, opener=bench.open_fifo) as f:
        assert f.write(bytes(bench.PIPE_BYTES)) == bench.PIPE_BYTES


def test_a_written_failure_is_one_to_the_dropbear_jail():
    line = bench.failure('198.18.0.7', END)
    assert line.startswith('Fri Nov 20 13:01:45 2026 authpriv.warn dropbear[1]: ')
    assert banwatch.read_line(line.encode().rstrip()).program == b'dropbear'


def test_a_goal_is_met_from_above_by_speed_and_from_below_by_time():
    def row(unit, ours, theirs, goal):
        return bench.met(bench.result('x', unit, ours, 'peer', theirs, goal))
    speed, delay = bench.Goal(2, 4, 'x'), bench.Goal(20, 5, 'value')
    assert [row('lines/s', n, 100, speed) for n in (100, 200, 400)] == ['no', 'reach', 'aim']
    assert [row('ms', n, None, delay) for n in (21, 20, 5)] == ['no', 'reach', 'aim']
    assert row('lines/s', 100, None, speed) == row('ms', None, 1, delay) == ''


def test_a_number_that_cannot_be_had_is_a_dash():
    text = '\n'.join(bench.table([bench.result('what', 'ms', None, 'peer', 2.0),
                                  bench.result('what', 's', 1.0, 'other', quoted='3 s')]))
    assert re.search(r'what\s+-\s+peer\s+2.0 ms', text) and re.search(r'1.000 s\s+other\s+3 s\*', text)


def test_a_peer_that_is_not_installed_costs_only_its_own_number(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, 'SSHGUARD', '/nowhere/')
    measured = bench.Bench(str(tmp_path), bench.arguments(['memory']))
    assert measured.tried('sshguard', bench.Sshguard, str(tmp_path)) is None
    assert measured.notes == ['sshguard: sshg-parser is not installed (Debian: apt install sshguard)']


@pytest.mark.slow
def test_help_names_every_row():
    assert all(name in run('--help') for name in bench.ROWS)


@pytest.mark.parametrize('words', [['nonsense'], ['--hostile', 'replay'], ['--seconds', '0'], ['--bans', '0'], ['--times', '0'],
                                   ['sshd']])
def test_an_unknown_row_or_filter_is_a_usage_error(words):
    with pytest.raises(SystemExit):
        bench.arguments(words)


def test_the_jails_that_have_nothing_to_do_have_nothing_to_do(tmp_path):
    made = [banwatch.own_filter({}, [regex]) for regex in bench.OWN_REGEXES.values()]
    assert all(each.needed for each in made) and len(made) + len(bench.STOCK_FILTERS) == len(bench.BUILT_IN) == 10
    block = banwatch.tidy(b''.join(bench.attack_log(500, random.Random(1))))
    assert not [seen for each in made + [banwatch.load_filter(name) for name in bench.BUILT_IN]
                for seen in each.scan(block, lambda date: 0.0)]


def test_a_conf_turns_jails_on_and_off(tmp_path):
    measured = bench.Bench(str(tmp_path), bench.arguments([]))
    for default, jails, wanted in ((True, (), {'dropbear', 'sshd', 'luci'}),
                                   (False, ['[x]\nenabled = true\nfilter = sshd'], {'x'})):
        path = measured.conf('maxretry = 7', jails=jails, default=default)
        with open(path) as f:
            config, problems = banwatch.read_config(f.read(), path)
        assert not problems
        on = {name: config.options(name) for name in config.jails() if config.options(name)['enabled']}
        assert set(on) == wanted and all(options['maxretry'] == 7 for options in on.values())


# --- hostile lines

REGEXES = [r'^no such <F-USER>.{2,30}</F-USER> (?:from|at) \[?<HOST>\]?(?: port \d+)?', r'^[^\s"a-y]\W+\S{3}[\d.]$']


def texts(**more):
    return bench.Texts(banwatch, random.Random(1), REGEXES, r'^(?:error: )?', 'prog(?:-x)?', **more)


def test_a_text_grown_of_a_regex_matches_it():
    made = [banwatch.compile_line(r'^(?:error: )?(?:%s)' % regex[1:]) for regex in REGEXES]
    messages = [texts().message([]).decode() for _ in range(3)] + [
        message.decode() for grower in [texts()] for message in (grower.message([]) for _ in range(200))]
    assert len(set(messages)) > 100
    for message in messages:
        assert any(regex.search(message) for regex in made), message


def test_what_a_regex_may_repeat_is_a_piece():
    repeats = []
    bench.grown(bench.simplified(banwatch.parsed('a(?:bc)+d{2}e?')), random.Random(1), repeats)
    assert repeats == ['bc', 'd']


def test_a_hostile_line_is_one_line_of_the_length_asked_for():
    grower = texts(known=[(b'Nov 20 13:01:45 h prog: ', b'no such thing')])
    for _ in range(300):
        line = grower.line()
        block = bench.hostile_block(line, 2000)
        assert len(block) == 2001 and block.index(b'\n') == 2000
        assert block == bench.hostile_block(line, 2000)
        grower.changed(line)


def test_the_search_finds_what_costs_most():
    clock = iter(range(3000))

    def cost(line):
        return bench.hostile_block(line, 500).count(b'"')
    found, tries = bench.slowest(texts(), cost, 2000, clock=lambda: next(clock))
    assert tries > 1900 and len(found) == bench.KEPT and found == sorted(found, key=lambda pair: -pair[0])
    assert found[0][0] > 300
    less = bench.simpler(found[0][1], random.Random(1), cost, 300, 200, clock=lambda: next(clock))
    assert cost(less) >= 300 and len(less.start) <= len(found[0][1].start)


def test_every_built_in_filter_is_searched_in_its_strictest_mode():
    specs = {name: bench.strictest(banwatch, name) for name in banwatch.FILTERS}
    assert specs['sshd'] == 'sshd[mode=aggressive]' and specs['vsftpd'] == 'vsftpd'
    assert specs['recidive'] is specs['common'] is None
    assert all(bench.samples(name) for name, spec in specs.items() if spec)


def test_a_line_that_takes_long_is_marked():
    def worst(ms):
        return bench.Worst('x', ms, 7, ms, '^y', b'z' * 8192 + b'\n', (b'z',), b'', False)
    slow, fast = (list(bench.hostile_lines([worst(ms)])) for ms in (bench.HOSTILE_REACH * 2, bench.HOSTILE_REACH / 2))
    assert 'over' in slow[1] and 'over' not in fast[1] and max(map(len, slow)) <= bench.WIDTH


def test_a_regex_without_end_is_aborted_and_not_waited_for():
    line = bench.Hostile(b'dropbear: ', b'', (b'a',), False, b'!', False)
    endless, harmless = (bench.stopwatch(banwatch, banwatch.load_filter('dropbear', failregex=(regex,)), 200)
                         for regex in ('^(?:a+)+$', '^a+$'))
    assert endless(line) > 10 * min(harmless(line) for _ in range(5))


@pytest.mark.slow
def test_hostile_lines_are_sought_and_shown():
    lines = run('--hostile', '--seconds', '1', 'lighttpd-auth', 'asterisk', codes=(0, 1)).split('\n')
    assert max(map(len, lines)) <= bench.WIDTH
    assert {line.split()[0] for line in lines[1:] if ' ms ' in line} == {'lighttpd-auth', 'asterisk'}
    answer = json.loads(run('--hostile', '--json', '--seconds', '0.5', 'luci', codes=(0, 1)))
    assert [(worst['filter'], worst['tries'] > 0) for worst in answer['hostile']] == [('luci', True)]


@pytest.mark.slow
def test_the_replay_row_prints_its_table_within_the_width():
    lines = run('--lines', '2000', '--times', '1', 'replay').split('\n')
    assert max(map(len, lines)) <= bench.WIDTH
    text = '\n'.join(lines)
    for what in ('replay, attack log', 'replay, plain log', 'sshguard parser+blocker', 'fail2ban-regex', '2,000 lines'):
        assert what in text
    assert re.search(r'replay, attack log\s+\d+ k/s', text)


@pytest.mark.bench
@pytest.mark.parametrize('row, whats', [
    ('jails', ['replay, 10 more jails', 'replay, 10 more jails, all built in']),
    ('filters', ["fail2ban's sshd.conf, attack log", "fail2ban's sshd.conf, plain log"]),
    ('many', ['10,000 addresses, extra', '10,000 addresses, a line'])])
def test_the_rows_about_filters_run_on_a_tiny_log(row, whats):
    answer = json.loads(run('--json', '--lines', '300', '--times', '1', row))
    assert answer['machine']['cpus'] == os.cpu_count()
    assert list(dict.fromkeys(found['what'] for found in answer['results'])) == whats
    # what may fail: so few lines take no time; a peer is not here
    for note in answer['notes']:
        assert 'ended with' not in note and 'nothing to do have found' not in note


@pytest.mark.slow
@pytest.mark.parametrize('row, whats', [
    ('cpu', ['cpu, attack log', '  less the start', '  wall', 'cpu, plain log', '  less the start', '  wall']),
    ('varied', ['cpu, varied log', '  less the start', '  wall', 'cpu, varied log']),
    ('addresses', ['cpu, 300 addresses', '  less the start', '  wall']),
    ('live', ['live, %s log, %s' % (kind, how) for kind in ('attack', 'varied', 'plain')
              for how in ('line by line', '20 lines a block', '300 lines a block')])])
def test_the_rows_about_processor_time_run_on_a_tiny_log(row, whats):
    need('sshguard')
    answer = json.loads(run('--json', '--lines', '300', '--times', '1', row))
    assert [found['what'] for found in answer['results']] == whats
    assert not [found for found in answer['results'] if None in (found['ours'], found['theirs'])], answer['notes']


@pytest.mark.slow
def test_instructions_are_counted_of_replay_and_of_a_daemon(tmp_path, monkeypatch):
    ran = []                                                  # each would take valgrind half a minute
    monkeypatch.setattr(bench, 'instructions', lambda argv: ran.append(argv) or len(ran))
    rows = list(bench.instruction_rows(bench.Bench(str(tmp_path), bench.arguments(['--lines', '40']))))
    assert [row.what for row in rows] == ['instructions, ' + how for how in ('replay', 'line by line', '300 lines a block')]
    assert {row.ours for row in rows} == {1000 / 30}          # thousands, of 40 lines without the first 10
    for argv in ran[:4]:
        bench.call(argv)


PEERS = {'sshg-fw-iptables', 'sshg-fw-ipset', 'sshg-fw-nft-sets', 'fail2ban iptables', 'fail2ban iptables-ipset', 'fail2ban nftables'}


@pytest.mark.slow
@pytest.mark.parametrize('row, number, peers', [
    pytest.param('bursts', 9, PEERS | {'one iptables restore', 'one ipset restore', 'one nft -f'}, marks=pytest.mark.bench),
    pytest.param('restore', 6, {'start with none'}, marks=pytest.mark.bench), pytest.param('crowded', 6, {'none banned'}, marks=pytest.mark.bench),
    ('unban', 3, {'the burst'}), ('check', 9, {'with none'}), ('packets', 8, {'none banned', 'flat chain'})])
def test_the_rows_about_firewalls_run_with_few_bans(row, number, peers):
    need('ip', 'unshare', 'nsenter', 'iptables', 'ipset', 'nft', 'fail2ban-server', 'sshguard', root=True)
    answer = json.loads(run('--json', '--bans', '8', '--times', '1', row))
    assert answer['machine']['cpus'] == os.cpu_count()
    assert len(answer['results']) == number and {found['peer'] for found in answer['results']} == peers
    assert not [found for found in answer['results'] if None in (found['ours'], found['theirs'])], answer['notes']


@pytest.mark.slow
def test_the_rows_about_a_router_run_on_little():
    found = json.loads(run('--json', '--lines', '300', '--bans', '50', '--times', '1', 'flash', 'flood'))
    assert [row['what'] for row in found['results']] == ['flash, 50 bans in %d h' % hours for hours in (1, 10, 24)] + [
        'flood of 200,000 addresses'] * 2 + ['  memory at most, over a bare interpreter']
    assert not [row for row in found['results'] if row['ours'] is None], found['notes']
    written = [row['ours'] for row in found['results'][:3]]
    assert 1 < written[0] < written[1] < written[2] < 100


@pytest.mark.bench
def test_starts_are_measured_from_source_and_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, 'instructions', lambda argv: len(argv))           # each takes valgrind a second or two
    rows = list(bench.start_rows(bench.Bench(str(tmp_path), bench.arguments(['--times', '1']))))
    assert [row.what for row in rows if row.what[0] != ' '] == [
        '%s, %s' % (what, how) for how in ('from source', 'installed') for what in ('--help', 'status', 'report', 'check', 'daemon')]
    assert all(row.ours and row.theirs for row in rows)


@pytest.mark.slow
def test_instructions_are_counted():
    need('valgrind')
    assert 5 < bench.instructions([sys.executable, '-IS', '-c', 'pass']) < 500
