"""Lines: every form in which a log daemon writes a line is taken apart the same way."""
import calendar
import time

import pytest

import banwatch
from harness import zone

MESSAGE = b"Bad password attempt for 'root' from 192.0.2.7:5"

FORMS = [
    # line, date, host, program, pid
    (b'Thu Mar  7 12:34:56 2024 authpriv.warn dropbear[24]: ', b'Thu Mar  7 12:34:56 2024', None, b'dropbear', b'24'),
    (b'Fri Nov 20 13:01:45 2026 [1795179705.484] authpriv.warn dropbear[24]: ', b'Fri Nov 20 13:01:45 2026', None, b'dropbear', b'24'),
    (b'Fri Nov 20 13:01:45 2026 <unknown>.info dropbear[24]: ', b'Fri Nov 20 13:01:45 2026', None, b'dropbear', b'24'),
    (b'Fri Nov 20 13:01:45 2026 user.info : ', b'Fri Nov 20 13:01:45 2026', None, b'', None),
    (b'Fri Nov 20 13:01:45 2026 daemon.err openvpn(server)[2515]: ', b'Fri Nov 20 13:01:45 2026', None, b'openvpn(server)', b'2515'),
    (b'Nov  2 13:00:00 router dropbear[24]: ', b'Nov  2 13:00:00', b'router', b'dropbear', b'24'),
    (b'Nov  2 13:00:00 dropbear[24]: ', b'Nov  2 13:00:00', None, b'dropbear', b'24'),
    (b'Nov  2 13:00:00 router authpriv.warn dropbear[24]: ', b'Nov  2 13:00:00', b'router', b'dropbear', b'24'),
    (b'Nov  2 13:00:00.123456 router dropbear[24]: ', b'Nov  2 13:00:00.123456', b'router', b'dropbear', b'24'),
    (b'<84>Nov 20 13:03:54 router dropbear[24]: ', b'Nov 20 13:03:54', b'router', b'dropbear', b'24'),
    (b'<84>Nov 20 13:03:54 router PREFIX: dropbear[24]: ', b'Nov 20 13:03:54', b'router', b'dropbear', b'24'),
    (b'2026-11-20T13:03:54.123456+01:00 router dropbear[24]: ', b'2026-11-20T13:03:54.123456+01:00', b'router', b'dropbear', b'24'),
    (b'2026-11-20T13:03:54+0100 router dropbear[24]: ', b'2026-11-20T13:03:54+0100', b'router', b'dropbear', b'24'),
    (b'2026-11-20 13:03:54,123 router dropbear[24]: ', b'2026-11-20 13:03:54,123', b'router', b'dropbear', b'24'),
    (b'<84>1 2026-11-20T13:03:54Z router dropbear 24 - - ', b'2026-11-20T13:03:54Z', b'router', b'dropbear', b'24'),
    (b'<84>1 2026-11-20T13:03:54Z router dropbear 24 ID [a@1 x="] \\" y"][b c="d"] \xef\xbb\xbf', b'2026-11-20T13:03:54Z',
     b'router', b'dropbear', b'24'),
    (b'1795179705 router dropbear[24]: ', b'1795179705', b'router', b'dropbear', b'24'),
    (b'1795179705.484 dropbear[24]: ', b'1795179705.484', None, b'dropbear', b'24'),
    (b'dropbear[24]: ', None, None, b'dropbear', b'24'),
]


@pytest.mark.parametrize('head, date, host, program, pid', FORMS)
def test_a_line_is_taken_apart(head, date, host, program, pid):
    line = banwatch.read_line(head + MESSAGE)
    assert line == (date, host, program, pid, MESSAGE)


def test_a_line_without_a_tag_has_no_program():
    assert banwatch.read_line(b'just words').program is None
    assert banwatch.read_line(b'Nov  2 13:00:00 just words').program is None


def test_a_tag_inside_a_message_is_not_the_program():
    line = banwatch.read_line(b"Thu Mar  7 12:34:56 2024 user.notice root: authpriv.warn dropbear[3]: " + MESSAGE)
    assert line.program == b'root'
    assert banwatch.read_line(b'Nov 20 13:00:00 h root: dropbear[3]: ' + MESSAGE).program == b'root'


def test_a_date_is_never_taken_for_a_host_and_its_hour_for_a_program():
    for date in (b'2026-11-20 13:00:00', b'Nov 20 13:00:00', b'2026-11-20T13:00:00Z'):
        line = banwatch.read_line(date + b' login failed for bob')
        assert (line.date, line.program, line.message) == (date, None, b'login failed for bob')


def test_severity_is_no_part_of_a_connections_identity():
    lines = {banwatch.read_line(b'Nov  2 13:00:00 %sauthpriv.%s sshd[24]: x' % (host, level))[1:4]
             for host in (b'', b'h ') for level in (b'warn', b'info')}
    assert lines == {(None, b'sshd', b'24'), (b'h', b'sshd', b'24')}


def test_a_prefix_is_believed_only_where_logins_are_logged():
    assert banwatch.read_line(b'<30>Nov 20 13:03:54 h web: dropbear[24]: ' + MESSAGE).program == b'web'


def test_message_repeated_counts_but_never_more_than_a_hundred_times():
    head = b'Nov 20 13:00:00 h sshd[1]: '
    assert banwatch.tidy(head + b'message repeated 3 times: [ Failed x]\n') == b'\n' + (head + b'Failed x\n') * 3
    assert banwatch.tidy(head + b'message repeated 999999 times: [ x]\n').count(b'\n') == 101
    assert banwatch.tidy(head + b'x\n' + head[:18] + b'last message repeated 2 times\n') == b'\n' + (head + b'x\n') * 3
    assert banwatch.tidy(head[:18] + b'last message repeated 2 times\n', head + b'x') == b'\n' + (head + b'x\n') * 2


@pytest.mark.parametrize('head', [
    b'Thu Mar  7 12:34:56 2024 authpriv.warn sshd[1]: ', b'<38>Nov 20 13:00:00 h sshd[1]: ', b'2026-11-20T13:01:45Z h sshd: ', b'sshd[1]: ', b'',
    b'[2026-11-20 12:27:01] ', b'<38>1 2026-11-20T13:03:54Z h sshd 24 - - '])
def test_a_repeated_line_is_written_out_whatever_its_head(head):
    assert [banwatch.read_line(line).message for line in banwatch.tidy(head + b'message repeated 2 times: [ no x]\r\n').split(b'\n')[1:-1]] == [b'no x'] * 2


@pytest.mark.parametrize('line', [b'h sshd[1]: x message repeated 3 times: [ y]', b'h sshd[1]: message repeated 3 times: [ y', b'h x: last message repeated 2 times',
                                  b'h sshd[1]: message repeated x times: [ y]', b'h sshd[1]: last message repeated 2 times ago'])
def test_what_only_looks_like_a_repetition_is_a_line(line):
    line = b'Nov 20 13:00:00 ' + line
    assert banwatch.tidy(b'before\n' + line + b'\n') == b'\nbefore\n' + line + b'\n'


def test_long_lines_that_come_again_and_again_fill_no_memory():
    line = b'Nov 20 13:00:00 h sshd[1]: message repeated 100 times: [ %s]\n' % (b'x' * 8000)
    assert len(banwatch.tidy(line * 16)) < 1 << 20


# --- dates

NOW = 1795179705                                   # Fri Nov 20 2026, 13:01:45 UTC


@pytest.fixture
def utc(monkeypatch):
    with zone(monkeypatch, 'UTC'):
        yield


@pytest.mark.parametrize('date, when', [
    (b'Fri Nov 20 13:01:45 2026', NOW), (b'Nov 20 13:01:45', NOW), (b'Nov 20 13:01:45.5', NOW + .5),
    (b'2026-11-20T13:01:45Z', NOW), (b'2026-11-20T14:01:45+01:00', NOW), (b'2026-11-20T08:01:45-0500', NOW),
    (b'2026-11-20 13:01:45,250', NOW + .25), (b'2026-11-20T13:01:45', NOW), (b'1795179705.5', NOW + .5),
    (b'Nov 21 13:01:45', NOW + 86400), (b'Dec 31 13:01:45', 1767186105), (b'Jan  1 00:00:00', 1767225600),
    (b'Xxx 20 13:01:45', None), (b'2026-13-45T13:01:45Z', None), (b'', None),
    (b'nan', None), (b'1e300', None), (b'inf', None)])
def test_dates_are_read_and_missing_years_filled_in(utc, date, when):
    assert banwatch.date_time(date, NOW // 86400) == when


def test_a_date_without_a_zone_is_in_the_zone_of_the_machine(utc, monkeypatch):
    monkeypatch.setenv('TZ', 'CET-1')
    time.tzset()
    assert banwatch.date_time(b'Nov 20 14:01:45', NOW // 86400) == NOW


@pytest.mark.parametrize('junk', [b'', b'\xff\xfe\x00', b'<', b'<999>', b'[', b'::::', b'\x1b[31m', b' ' * 5000, b'a' * 9000,
                                  b'[' * 5000, b'<84>1 ' + b'[x="' * 2000, b'Nov 20 13:00:00 ' + b'a ' * 4000])
def test_junk_is_a_line_too(junk):
    assert banwatch.read_line(junk) and len(banwatch.tidy(junk + b'\n')) < 20000


def test_days_are_counted_as_the_calendar_does():
    for year in (1, 1899, 1900, 1970, 1999, 2000, 2024, 2026, 2100, 9999):
        for month in range(1, 13):
            for day in (0, 1, 28, 29, 31, 366):    # what a month does not have carries over
                fields = (year, month, day, 23, 59, 60)
                assert banwatch.epoch(fields, 3600) == calendar.timegm(fields + (0, 0, 0)) - 3600


@pytest.mark.parametrize('fields', [(2026, 0, 1, 0, 0, 0), (2026, 13, 1, 0, 0, 0), (0, 1, 1, 0, 0, 0)])
def test_a_month_or_a_year_that_is_none_is_no_date(fields):
    with pytest.raises(ValueError):
        banwatch.epoch(fields, 0)
