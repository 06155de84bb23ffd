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

WRITERS = [bench.attack_log, bench.plain_log]
END = 1795179705                     # Fri Nov 20 13:01:45 2026, UTC


def run(*words):
    done = subprocess.run([sys.executable, bench.__file__] + list(words), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, timeout=300)
    assert done.returncode == 0, done.stderr
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


def test_ten_thousand_addresses_are_ten_thousand():
    found = {bench.spread(n) for n in range(11000)}
    assert len(found) == 11000 and all(banwatch.address(ip) == ip for ip in found)


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


def test_help_names_every_row():
    assert all(name in run('--help') for name in bench.ROWS)


def test_an_unknown_row_is_a_usage_error():
    with pytest.raises(SystemExit):
        bench.arguments(['nonsense'])


@pytest.mark.slow
def test_the_replay_row_prints_its_table_within_the_width():
    lines = run('--lines', '2000', 'replay').split('\n')
    assert max(map(len, lines)) <= bench.WIDTH
    text = '\n'.join(lines)
    for what in ('replay, attack log', 'replay, plain log', 'sshguard parser+blocker', 'fail2ban-regex', '2,000 lines'):
        assert what in text
    assert re.search(r'replay, attack log\s+\d+ k/s', text)


@pytest.mark.slow
def test_as_json_the_same_results_come_with_the_machine():
    answer = json.loads(run('--json', '--lines', '500', 'replay'))
    assert answer['machine']['cpus'] == os.cpu_count()
    assert answer['results'][0]['what'] == 'replay, attack log' and answer['results'][0]['ours'] > 0
