"""The summary: what is counted, kept and told, how other lines are grouped, and what a person gets to read."""
import itertools
import json
import os
import random
import re
import time

import pytest

import banwatch
from harness import FakeMachine, House, config, facts_of, zone
from test_filters import CORPORA, read_groups

NOW, WALL = 900000.0, 1800000000.0                 # Fri 15 Jan 2027 08:00, UTC
HEAD = 'Fri Jan 15 08:00:00 2027 daemon.info '


@pytest.fixture(autouse=True)
def utc(monkeypatch):
    with zone(monkeypatch, 'UTC'):
        yield


def summary(report, now=NOW, wall=None, bans=None, **facts):
    machine = FakeMachine()
    machine.now, machine.time = now, WALL + now - NOW if wall is None else wall
    return banwatch.summarise(report, facts_of(machine, bans or banwatch.Bans(100), **dict({'running': True}, **facts)))


def begun(seconds=3600):
    """A Report whose period began so long ago."""
    report = banwatch.Report(NOW - seconds)
    report.tally.set_clock(WALL - 1 - (NOW - 1))
    return report


def warnings(report, **more):
    return [row['text'] for row in summary(report, **more)['warnings']]


def text(report, **more):
    return banwatch.report_text(summary(report, **more))


def rows(tally, part):
    tally.fold()
    return {key if len(key) > 1 else key[0]: cell for key, cell in tally[part].items()}


# --- what is counted

def test_a_failure_counts_for_its_jail_its_address_its_name_and_its_hour():
    tally = banwatch.Tally(0)
    tally.set_clock(WALL - (100))
    for ip, user in (('192.0.2.1', 'root'), ('192.0.2.1', 'bob'), ('192.0.2.2', 'root'), ('192.0.2.2', None)):
        tally.failure('sshd', ip, user, 2, 150)
    assert rows(tally, 'jails') == {'sshd': [8, 0, 0, 0, 0, 0]}
    assert rows(tally, 'addresses') == {'192.0.2.1': [4, 150, 'sshd'], '192.0.2.2': [4, 150, 'sshd']}
    assert rows(tally, 'users')['root'][:2] == [4, 2] and rows(tally, 'users')['bob'][:2] == [2, 1]
    assert rows(tally, 'pairs') == {(ip, user): [2, 150] for ip, user in (
        ('192.0.2.1', 'root'), ('192.0.2.1', 'bob'), ('192.0.2.2', 'root'))}
    assert rows(tally, 'hours') == {WALL // 3600: [8, 0]}


def test_a_login_tells_how_many_failures_on_that_account_came_before_it_and_begins_anew():
    tally = banwatch.Tally(0)
    for ip, user, n in (('192.0.2.1', 'root', 4), ('192.0.2.1', 'bob', 9), ('192.0.2.2', 'root', 9)):
        tally.failure('sshd', ip, user, n, 10)
    for when in (20, 30):
        tally.login('dropbear', '192.0.2.1', '192.0.2.1', 'root', when, '')
    assert rows(tally, 'guessed') == {('root', '192.0.2.1', 'dropbear'): [4, 20]}
    assert rows(tally, 'logins') == {('root', '192.0.2.1', 'dropbear'): [2, 20, 30]}


def test_a_login_tells_of_failures_that_an_earlier_mail_has_told_of():
    for seconds, told in ((60, [('root', '192.0.2.1', 'sshd')]), (2 * banwatch.DAY, [])):
        report = banwatch.Report(0)
        report.tally.failure('sshd', '192.0.2.1', 'root', 4, 10)
        report.send(seconds), report.gone(seconds)
        report.tally.login('sshd', '192.0.2.1', '192.0.2.1', 'root', seconds + 1, '')
        assert list(report.tally['guessed']) == told


def test_failures_before_a_login_are_not_told_again_at_the_next_one_though_a_mail_failed():
    report = banwatch.Report(0)
    report.tally.failure('sshd', '192.0.2.1', 'root', 4, 10)
    report.send(20)
    report.tally.login('sshd', '192.0.2.1', '192.0.2.1', 'root', 30, '')
    report.came_back()
    report.tally.login('sshd', '192.0.2.1', '192.0.2.1', 'root', 40, '')
    assert rows(report.tally, 'guessed') == {('root', '192.0.2.1', 'sshd'): [4, 30]}


def test_on_a_busy_day_a_login_after_failures_is_noticed_all_the_same():
    tally = banwatch.Tally(0)
    for n in range(1000):                          # more than there is room for
        tally.failure('sshd', '10.%d.%d.1' % divmod(n, 256), 'user%d' % n, 5, n)
    for when in range(2000, 2004):                 # one by one: between them the state is saved
        tally.failure('sshd', '192.0.2.1', 'alice', 1, when)
        tally.dump(when)
    tally.login('sshd', '192.0.2.1', '192.0.2.1', 'alice', 2004, '')
    assert rows(tally, 'guessed') == {('alice', '192.0.2.1', 'sshd'): [4, 2004]}


def test_a_few_failures_before_a_login_from_an_address_that_is_never_banned_were_mistyping():
    for n, left in ((banwatch.FEW - 1, 0), (banwatch.FEW, banwatch.FEW)):
        tally = banwatch.Tally(0)
        tally.ignored('sshd', '10.0.0.5', 'root', n, 10, 'the LAN')
        tally.login('sshd', '10.0.0.5', '10.0.0.5', 'root', 20, 'the LAN')
        assert rows(tally, 'ignored') == {('10.0.0.5', 'the LAN'): [left, 10]}


def test_what_a_login_has_forgiven_is_told_of_nobody():
    tally = banwatch.Tally(0)
    tally.ignored('sshd', '192.0.2.1', 'root', 2, 10, '')
    assert rows(tally, 'ignored') == {} and rows(tally, 'jails') == {'sshd': [0, 2, 0, 0, 0, 0]}


def key_of(part, n):
    return tuple(float(n) if code == 'm' else n if code == 'h' else 'k%d' % n for code in banwatch.PARTS[part].key)


def cell_of(part, n=1, when=5.0):
    return [{'n': n, 'f': when, 'l': when, 't': 't', 'e': 'e', 'b': False, 'd': []}[code] for code in banwatch.PARTS[part].cell]


@pytest.mark.parametrize('part', banwatch.PARTS)
def test_a_flood_keeps_each_part_within_its_limit_and_counts_what_it_lets_go_of(part):
    tally, limit = banwatch.Tally(0), banwatch.PARTS[part].limit
    tally.note(part, key_of(part, 10 ** 6), *cell_of(part, 50))
    for n in range(4 * limit):
        tally.note(part, key_of(part, n), *cell_of(part))
        assert len(tally[part]) <= 1.1 * limit + 1
    if part in banwatch.OLDEST_GO:
        assert key_of(part, 4 * limit - 1) in tally[part] and key_of(part, 0) not in tally[part]
    elif part != 'pairs':
        assert tally[part][key_of(part, 10 ** 6)][0] == 50              # what came most often stays
    if part not in banwatch.OLDEST_GO + ('counts',):
        assert tally['counts'][part,][0] + len(tally[part]) == 4 * limit + 1


@pytest.mark.parametrize('part, precious, rest', [('rules', ('warning', 'r', 't'), ('info', 'r%d', 't')),
                                                  ('other', ('kernel', 't', 'err'), ('p%d', 't', ''))])
def test_what_is_severe_outlives_what_comes_more_often(part, precious, rest):
    tally = banwatch.Tally(0)
    tally.note(part, precious, *cell_of(part))
    for n in range(3 * banwatch.PARTS[part].limit):
        tally.note(part, (rest[0] % n if '%' in rest[0] else rest[0], rest[1] % n if '%' in rest[1] else rest[1], rest[2]),
                   *cell_of(part, 9))
    assert precious in tally[part]
    assert precious in [tuple(row[:3]) for row in tally.dump(10, kept=True)[part]]


def test_ten_thousand_addresses_with_ten_thousand_names_stay_few():
    tally = banwatch.Tally(0)
    tally.set_clock(WALL - (0))
    for n in range(10000):
        tally.failure('sshd', '10.%d.%d.1' % divmod(n, 256), 'user%d' % n, 1, 10)
    tally.fold()
    assert all(len(tally[part]) <= 1.1 * banwatch.PARTS[part].limit + 1 for part in banwatch.PARTS)
    assert len(tally.uncounted) <= banwatch.FOLDED
    assert rows(tally, 'jails') == {'sshd': [10000, 0, 0, 0, 0, 0]} and rows(tally, 'hours') == {WALL // 3600: [10000, 0]}
    assert rows(tally, 'counts')['addresses'][0] + len(tally['addresses']) == 10000


def test_a_name_is_cut_and_a_long_one_fills_no_memory():
    tally = banwatch.Tally(0)
    tally.failure('sshd', '192.0.2.1', 'x' * 8000, 1, 1)
    tally.login('sshd', '192.0.2.1', '192.0.2.1', 'x' * 8000, 2, '')
    assert {len(user) for (user,) in tally['users']} | {len(user) for user, _, _ in tally['logins']} == {banwatch.NAME_LENGTH}
    assert tally['guessed']                        # the cut names are still the same


def test_hours_are_those_of_the_wall_clock():
    tally = banwatch.Tally(0)
    for now in (0, 1799, 1800, 5399, 5400):
        tally.set_clock(WALL + 1800 + now - (now))
        tally.failure('sshd', '192.0.2.1', None, 1, now)
    assert list(rows(tally, 'hours').values()) == [[2, 0], [2, 0], [1, 0]]


def test_a_failure_of_a_while_ago_counts_for_the_hour_it_was_in():
    tally = banwatch.Tally(0)
    tally.set_clock(WALL + 100 - (10000))
    for when in (9900, 9899, 6300, 6299, 9950):
        tally.failure('sshd', '192.0.2.1', None, 1, when)
    hour = WALL // 3600
    assert rows(tally, 'hours') == {hour: [2, 0], hour - 1: [2, 0], hour - 2: [1, 0]}


def test_hours_go_on_after_a_restart_though_a_file_rounds_them():
    report = banwatch.Report(0)
    report.tally.set_clock(WALL + 1000.08 - (1000.0))
    report.tally.failure('sshd', '192.0.2.1', None, 3, 1000.0)
    again, _ = banwatch.load_report(json.loads(json.dumps(report.dump(1000.0))), 50.0, 10, WALL + 1010.08 - 50)      # a reboot: other ticks
    again.tally.failure('sshd', '192.0.2.1', None, 4, 50)
    assert [cell for cell in rows(again.tally, 'hours').values()] == [[7, 0]]


@pytest.mark.parametrize('step', [-7200, -5400, -600, 600, 5400, 86400, -1700000000])
def test_no_failure_is_lost_from_the_chart_when_the_clock_is_set(step):
    report = banwatch.Report(NOW - 7200)
    for now, wall in ((NOW - 3000, WALL - 3000), (NOW, WALL), (NOW + 60, WALL + 60 + step), (NOW + 4000, WALL + 4000 + step)):
        report.tally.set_clock(wall - (now))
        report.tally.failure('sshd', '192.0.2.1', None, 5, now)
        bars = summary(report, now, wall)['hours']
        assert sum(bar['failures'] for bar in bars) == rows(report.tally, 'jails')['sshd'][0]
        assert len(bars) <= banwatch.CHART_BARS


def random_events(rnd, n, start):
    """(name of a method of Tally, its arguments) of things that happen, one a second."""
    names, whys = ['root', 'bob', 'eve'], ['', 'the LAN']
    for when in range(start, start + n):
        net, user, jail = '192.0.2.%d' % rnd.randrange(5), rnd.choice(names), rnd.choice(['sshd', 'luci'])
        yield rnd.choice([('failure', 'sshd', net, user, rnd.randrange(1, 4), when), ('login', jail, net, net, user, when, rnd.choice(whys)),
                          ('ignored', jail, net, user, 1, when, rnd.choice(whys)), ('note', 'other', (jail, user, ''), 1, when, when, net),
                          ('note', 'rules', ('info', jail, user), 1, when, when, [[when, net]]), ('note', 'steps', (when,), 5),
                          ('count', 'reboots')])


def happen(tally, events):
    tally.set_clock(WALL - (0))
    for name, *arguments in events:
        getattr(tally, name)(*arguments)
    tally.fold()
    return tally


@pytest.mark.parametrize('seed', range(10))
def test_two_parts_of_a_period_that_are_put_together_tell_what_the_whole_would(seed):
    rnd = random.Random(seed)
    first, second = list(random_events(rnd, 60, 0)), [('login', 'sshd', '192.0.2.9', '192.0.2.9', 'x', 60, '')]
    # what a login finds, it finds in its own part; so none stands behind the cut
    second += [event for event in random_events(rnd, 60, 61) if event[0] != 'login']
    whole = happen(banwatch.Tally(0), first + second)
    merged = happen(banwatch.Tally(0), first).merge(happen(banwatch.Tally(60), second))
    for part in banwatch.PARTS:
        if part != 'users':
            assert merged[part] == whole[part], part
    assert merged.begun == 0


def test_a_name_that_was_tried_from_two_addresses_counts_as_such_though_a_mail_failed_in_between():
    for second, networks in (('192.0.2.2', 2), ('192.0.2.1', 1)):
        report = begun()
        report.tally.failure('sshd', '192.0.2.1', 'bob', 1, NOW)
        report.send(NOW)
        report.tally.failure('sshd', second, 'bob', 1, NOW)
        report.came_back()
        assert summary(report)['users'] == [{'user': 'bob', 'failures': 2, 'addresses': 2}] * (networks == 2)
        assert rows(report.tally, 'users')['bob'][:2] == [2, networks]


# --- dump and load

@pytest.mark.parametrize('seed', range(5))
def test_a_tally_comes_back_with_the_time_that_has_passed(seed):
    tally = happen(banwatch.Tally(0), random_events(random.Random(seed), 100, 0))
    before = tally.dump(100)
    back, lost = banwatch.load_tally(json.loads(json.dumps(before)), 5000.0, 30, 100 - (5000 - 30))
    after = back.dump(5000.0 - 30)
    assert lost == 0 and after == before and back.begun == 5000 - 30 - 100


def test_a_report_comes_back_with_what_it_has_told():
    report = begun()
    report.tally.login('sshd', '192.0.2.1', '192.0.2.1', 'root', NOW, '')
    report.send(NOW), report.gone(NOW)
    report.tally.failure('sshd', '192.0.2.7', 'root', 1, NOW + 5)
    back, lost = banwatch.load_report(json.loads(json.dumps(report.dump(NOW + 10))), 100.0, 20)
    assert (lost, back.logins_reported, back.last, back.mail_due, back.maybe_sent) == (0, {('root', '192.0.2.1'): 70}, 70, False, False)
    assert rows(back.tally, 'addresses') == {'192.0.2.7': [1, 75, 'sshd']}


def test_a_mail_on_its_way_and_one_that_is_owed_are_remembered():
    report = begun()
    report.send(NOW)
    back, _ = banwatch.load_report(report.dump(NOW), NOW, 0)
    assert (back.maybe_sent, back.mail_due) == (True, True) and summary(back)['repeat']
    report.came_back()
    back, _ = banwatch.load_report(report.dump(NOW), NOW, 0)
    assert (back.maybe_sent, back.mail_due) == (False, True) and not summary(back)['repeat']


HOSTILE = [
    {'addresses': [['no address', 5, 3, 'sshd']]}, {'addresses': [['192.0.2.1/99', 5, 3, 'sshd']] * 2}, {'begun': 1e15}, {'begun': 'x'},
    {'begun': -1e10}, {'steps': [[1e15, 5], [1, 1e15], [2, -1e10]]}, {'logins': [['u', '192.0.2.1', 's', 1, 1e15, -1e10]]},
    {'rules': [['warning', 'r', 't', 1, 1, 1, {}], ['x', 'r', 't', 1, 1, 1, [[1e15, 5]]], ['info', 'r', 't', 1, 1, 1, [[1]]]]},
    {'hours': [[0, -5, 1e15], [-1e10, 5, 5], [1e10, 5, 5]]}, {'jails': [['s', 1e15, 1.5, 1, 1, 1, -1]]}, {'known': 5}, {'known': {'a': 1}},
    {'counts': {'reboots': 5}}, {'counts': 'reboots'}, {'other': [[]]}, {'other': [None, 5, 'x', {}]}, {'last': 'x'}, {'last': []}, {'sending': 1},
    {'incidents': [['a\x1b[31m\n', 'b\u202e', 1, 1, 1]]}, {'logins': [['\x00' * 999, '\n', '<b>', 1, 1, 1]]}]


@pytest.mark.parametrize('state', HOSTILE, ids=lambda state: json.dumps(state)[:50])
def test_a_hostile_state_costs_no_more_than_its_rows(state):
    good = ['root', '192.0.2.1', 'sshd', 1, 5, 5]
    report, _ = banwatch.load_report(dict(state, logins=state.get('logins', []) + [good]), NOW, 0)
    assert report.tally['logins']['root', '192.0.2.1', 'sshd'] == [1, NOW - 5, NOW - 5]
    told = summary(report)
    assert all(line.isprintable() for line in banwatch.report_text(told).split('\n')) and banwatch.report_page(told)


def test_one_bad_row_does_not_take_the_others_with_it():
    good = {'counts': [['reboots', 1]], 'logins': [['root', '192.0.2.1', 'sshd', 1, 5, 5]], 'ports': [['22/tcp', 9]]}
    bad = dict(good, counts=[['reboots', 'x'], ['reboots', 1], ['starts', True]], ports=[['22/tcp', 9], ['23/tcp', float('nan')]])
    report, lost = banwatch.load_report(bad, NOW, 0)
    assert lost == 3 and report.tally.dump(NOW) == good
    report, lost = banwatch.load_report({'known': [['root', '192.0.2.1', 5], [1], ['bob', '192.0.2.1', 'x'], ['eve', '192.0.2.2', 5]]}, NOW, 0)
    assert lost == 2 and set(report.logins_reported) == {('root', '192.0.2.1'), ('eve', '192.0.2.2')}


@pytest.mark.parametrize('state', [None, 5, [], 'x', [1], True])
def test_what_is_no_report_is_an_empty_one(state):
    report, _ = banwatch.load_report(state, NOW, 0)
    assert banwatch.is_empty(summary(report))


def wild(rnd, depth=0):
    """Anything that may stand in JSON."""
    return rnd.choice([None, True, False, 0, -1, 1, 1.5, 1e15, -1e10, 1e300, 10 ** 30, float('nan'), float('inf'), '', 'x', 'warning', 'info', 'err',
                       '192.0.2.1', '2001:db8::/64', '\x1b[31m', '<b>', '\ud800', 'x' * 1000] + ([] if depth > 2 else [
                           [wild(rnd, depth + 1) for _ in range(rnd.randrange(7))], {str(wild(rnd, 9)): wild(rnd, depth + 1)}]))


@pytest.mark.parametrize('seed', range(40))
def test_whatever_stands_in_a_state_file_is_never_an_exception(seed):
    rnd = random.Random(seed)
    state = happen(banwatch.Tally(0), random_events(rnd, 30, 0)).dump(30)
    for part in rnd.sample(sorted(banwatch.PARTS), 6):
        for _ in range(5):
            row = [wild(rnd, 1) if rnd.random() < 0.3 else 'info' if code == 't' else [] if code == 'd' else 5
                   for code in banwatch.PARTS[part].key + banwatch.PARTS[part].cell]
            state.setdefault(part, []).append(row if rnd.random() < 0.8 else wild(rnd))
    for option in rnd.sample(['begun', 'known', 'last', 'owed', 'sending', rnd.choice(sorted(banwatch.PARTS))], 1):
        state[option] = wild(rnd)
    report, _ = banwatch.load_report(json.loads(json.dumps(state)), NOW, rnd.choice([0, 5, 1e6]))
    told = summary(report)
    assert_readable(banwatch.report_text(told))
    json.dumps(told), banwatch.report_page(told), banwatch.subject_text(told)
    json.dumps(report.dump(NOW)), json.dumps(report.dump(NOW, kept=True))


def test_what_is_kept_on_flash_holds_no_name_that_was_tried_from_one_address_only():
    report = begun()
    for ip, user in (('192.0.2.1', 'S3cret'), ('192.0.2.1', 'S3cret'), ('192.0.2.1', 'shared'), ('192.0.2.2', 'shared')):
        report.tally.failure('sshd', ip, user, 1, NOW)
    assert 'S3cret' in json.dumps(report.dump(NOW)) and 'S3cret' not in json.dumps(report.dump(NOW, kept=True))
    assert 'shared' in json.dumps(report.dump(NOW, kept=True))
    report.send(NOW)                               # nor while a mail is on its way
    assert 'S3cret' not in json.dumps(report.dump(NOW, kept=True))


def test_what_is_kept_on_flash_is_small():
    report = begun()
    for part in banwatch.PARTS:
        for n in range(banwatch.PARTS[part].limit):
            key = tuple(NOW - n if code == 'm' else int(WALL) // 3600 - n if code == 'h' else 'x' * 30 + str(n) for code in banwatch.PARTS[part].key)
            report.tally.note(part, key if part != 'addresses' else ('10.1.%d.%d' % divmod(n, 256),), *cell_of(part, n, NOW))
    kept = report.dump(NOW, kept=True)
    assert len(json.dumps(kept)) < 100000
    again, lost = banwatch.load_report(kept, NOW, 0)
    assert lost == 0
    for part in set(banwatch.PARTS) - set(banwatch.OLDEST_GO) - {'counts', 'pairs', 'earlier', 'users'}:
        left = again.tally['counts'].get((part,), [0])[0]
        assert left + len(again.tally[part]) == banwatch.PARTS[part].limit, part           # what it leaves out is counted


# --- nothing lost, nothing twice

class Postman:
    """What an owner gets to read, whatever happens on the way: the protocol of Report.send, gone and came_back,
    the files behind it, and what each mail has told."""

    def __init__(self, rnd):
        self.rnd, self.now, self.n = rnd, NOW, 0
        self.report = banwatch.Report(NOW)
        self.happened, self.mails = {}, []         # address -> failures; (addresses -> failures, repeat?, new logins)
        self.unsure = False          # may a mail have gone without our knowing it?
        self.save()

    def save(self):
        self.file, self.saved = json.dumps(self.report.dump(self.now)), dict(self.happened)

    def fail(self):
        self.n += 1
        ip = '192.0.%d.%d' % divmod(self.n, 250)
        self.happened[ip] = self.rnd.randrange(1, 5)
        self.report.tally.set_clock(WALL + self.now - NOW - (self.now))
        self.report.tally.failure('sshd', ip, 'root', self.happened[ip], self.now)
        self.report.tally.login('sshd', ip, ip, 'user%d' % self.n, self.now, '')

    def crash(self):
        """What was not saved is read from the log again."""
        gone, self.now = self.rnd.choice([0, 5, 100]), self.rnd.choice([self.now, 50.0])
        self.report, lost = banwatch.load_report(json.loads(self.file), self.now, gone, self.report.tally.offset)
        assert lost == 0
        again, self.happened = {ip for ip in self.happened if ip not in self.saved}, dict(self.saved)
        for _ in again:
            self.fail()

    def mail(self, delivered=True, known=True, meanwhile=2):
        """One that is delivered or not; `known`: we live to hear of it; `meanwhile` the log goes on."""
        told = summary(self.report, self.now)
        assert told['repeat'] == self.unsure
        self.report.send(self.now)
        self.save()
        for _ in range(self.rnd.randrange(meanwhile + 1)):
            self.fail()
        if self.rnd.random() < 0.5:
            self.save()
        if delivered:
            self.mails.append(({row['ip']: row['failures'] for row in told['addresses']}, told['repeat'],
                               {row['ip'] for row in told['logins'] if row['new']}))
        self.unsure = not known or self.unsure and not delivered
        if not known:
            return self.crash()
        (self.report.gone if delivered else lambda now: self.report.came_back())(self.now)
        self.save()


@pytest.mark.parametrize('seed', range(25))
def test_every_failure_is_told_once_or_twice_in_a_mail_that_says_so(seed):
    rnd = random.Random(seed)
    post = Postman(rnd)
    for _ in range(rnd.randrange(5, 25)):
        post.now += rnd.randrange(1000)
        rnd.choice([post.fail, post.fail, post.save, post.crash, post.mail, lambda: post.mail(delivered=False),
                    lambda: post.mail(known=False), lambda: post.mail(False, False)])()
    post.mail(meanwhile=0)
    for ip, n in post.happened.items():
        told = [(repeat, ip in new) for seen, repeat, new in post.mails if seen.get(ip) == n]
        assert told and told[0][1], '%s was not told, or not as a new login' % ip
        assert all(repeat for repeat, _ in told[1:]), '%s was told twice in mails that do not say so' % ip
    assert not any(ip in seen and seen[ip] != post.happened[ip] for seen, _, _ in post.mails for ip in post.happened)


def test_a_login_is_new_until_a_mail_has_told_of_it():
    report = begun()

    def login():
        report.tally.login('sshd', '192.0.2.1', '192.0.2.1', 'root', NOW, '')
        return summary(report)['logins'][0]['new']
    assert login()
    report.send(NOW), report.came_back()
    assert login()
    report.send(NOW), report.gone(NOW)
    assert not login()


def test_a_failed_mail_goes_on_with_its_period():
    report = banwatch.Report(NOW - 2 * banwatch.DAY)
    report.send(NOW - banwatch.DAY)
    assert summary(report)['seconds'] == 2 * banwatch.DAY
    report.came_back()
    assert report.mail_due and summary(report)['seconds'] == 2 * banwatch.DAY
    report.send(NOW), report.gone(NOW)
    assert not report.mail_due and summary(report)['seconds'] == 0


# --- rules

def digest(rules='', guard=banwatch.unguarded, **more):
    made, problems = banwatch.make_digest(config(rules, **more), guard)
    assert problems == []
    return made


def log(*messages, head=HEAD):
    """A tidy block of lines; each begins with its program."""
    return banwatch.tidy(''.join(head + message + '\n' for message in messages).encode())


def read(made, *messages, tally=None, now=NOW, head=HEAD):
    """(the Tally, what is to be mailed) after these lines."""
    tally = tally or banwatch.Tally(now)
    return tally, list(made.read(log(*messages, head=head), [], tally, now))


def noted(made, *messages, **more):
    """[(level, text, times)] of what rules have noted."""
    return [(level, said, cell[0]) for (level, _, said), cell in read(made, *messages, **more)[0]['rules'].items()]


DOOR = '[rule door]\nregex = ^the door is (?P<state>open|shut)(?: by <F-USER>\\S+</F-USER>)?(?: at <HOST>)?$\n'


def test_a_rule_notes_the_lines_it_means_and_no_other():
    assert noted(digest(DOOR), 'gate: the door is open', 'gate: the window is open', 'cat[12]: the door is open') == [
        ('info', 'the door is open', 2)]


def test_program_names_who_writes_the_line():
    made = digest(DOOR + 'program = gate.*\n')
    assert noted(made, 'gate: the door is open', 'gatekeeper[1]: the door is open', 'cat: the door is open', 'my-gate: the door is open') == [
        ('info', 'the door is open', 2)]
    assert noted(digest('[rule cats]\nprogram = cat\n'), 'cat: miau', 'dog: wuff') == [('info', 'miau', 1)]


def test_several_regexes_are_one_rule():
    made = digest('[rule r]\ntext = it\nregex = ^one$\n    ^two$\n')
    assert noted(made, 'p: one', 'p: two', 'p: three') == [('info', 'it', 2)]


@pytest.mark.parametrize('level, part', [('warning', 'rules'), ('info', 'rules'), ('other', 'other'), ('ignore', None)])
def test_report_says_where_the_lines_are_told(level, part):
    tally, _ = read(digest(DOOR + 'report = %s\n' % level), 'gate: the door is open')
    assert [name for name in ('rules', 'other') if tally[name]] == [part] * bool(part)
    if level in ('warning', 'info'):
        assert list(tally['rules']) == [(level, 'door', 'the door is open')]


def test_text_is_filled_in_with_what_a_regex_has_captured():
    made = digest(DOOR + 'text = <program>: <state> for <F-USER> from <HOST> = <ip> = <ADDR>, <F-STATE>\n')
    assert noted(made, 'gate: the door is open by bob at 192.0.2.7', 'gate: the door is open by eve at 2001:db8::1', 'gate: the door is shut') == [
        ('info', 'gate: open for bob from 192.0.2.7 = 192.0.2.7 = 192.0.2.7, open', 1),
        ('info', 'gate: open for eve from 2001:db8::1 = 2001:db8::1 = 2001:db8::1, open', 1),
        ('info', 'gate: shut for ? from ? = ? = ?, shut', 1)]


def test_without_a_text_the_summary_says_what_the_messages_have_in_common():
    assert noted(digest('[rule r]\nregex = ^door\n'), 'p: door 5 of 192.0.2.7', 'p: door 6 of 192.0.2.8') == [('info', 'door * of *', 2)]


def test_what_is_captured_comes_out_printable_and_short():
    made = digest('[rule r]\nregex = ^x (?P<all>.*)\ntext = <all>\n')
    (_, said, _), = noted(made, 'p: x \x1b[31m' + 'y' * 290)
    assert said.startswith('\\x1b[31my') and len(said) == banwatch.TEXT_LENGTH and said.isprintable()


@pytest.mark.parametrize('which, shown', [
    ('none', []), ('all', ['one', 'two', 'three']), ('first', ['one']), ('last', ['three']), ('firstlast', ['one', 'three'])])
def test_details_says_which_lines_are_shown(which, shown):
    made, report = digest('[rule r]\nprogram = p\ntext = it\ndetails = %s\n' % which), begun()
    for n, word in enumerate(('one', 'two', 'three')):
        read(made, 'p: ' + word, tally=report.tally, now=NOW - 10 + n)
    row, = summary(report, details={name: rule.options['details'] for name, rule in made.rules.items()})['noted']
    assert row['details'] == [[WALL - 10 + n, 'p: ' + word] for n, word in enumerate(('one', 'two', 'three')) if word in shown]
    assert row['times'] == 3


def test_firstlast_shows_one_line_once():
    made, report = digest('[rule r]\nprogram = p\ndetails = firstlast\n'), begun()
    read(made, 'p: one', tally=report.tally)
    assert len(summary(report, details={'r': 'firstlast'})['noted'][0]['details']) == 1


def test_of_many_lines_the_first_and_the_latest_are_kept():
    made, tally = digest('[rule r]\nprogram = p\ntext = it\ndetails = all\n'), banwatch.Tally(0)
    for n in range(50):
        read(made, 'p: line %d' % n, tally=tally, now=n)
    kept = [line.rpartition(' ')[2] for _, line in tally['rules']['info', 'r', 'it'][3]]
    assert kept == ['0'] + [str(n) for n in range(51 - banwatch.DETAILS, 50)]


def test_lines_that_are_not_shown_are_not_kept_either():
    tally, _ = read(digest('[rule r]\nregex = ^bad\ntext = it\n'), 'p: bad password for S3cret from 192.0.2.7')
    assert 'S3cret' not in json.dumps(tally.dump(NOW)) and len(tally['rules']) == 1


def test_mail_asks_for_one_at_once():
    for more, wanted in (('mail = yes\n', 1), ('', 0), ('mail = yes\nreport = ignore\n', 1), ('mail = yes\nmaxretry = 2\n', 0)):
        _, mails = read(digest(DOOR + 'text = open!\n' + more), 'gate: the door is open')
        assert [(rule.name, said, line) for rule, said, line in mails] == [('door', 'open!', HEAD + 'gate: the door is open')] * wanted


def test_maxretry_wants_so_many_lines_within_findtime_and_then_begins_anew():
    made, tally = digest(DOOR + 'maxretry = 3\nfindtime = 60\n'), banwatch.Tally(0)
    seen = []
    for now in (0, 10, 60, 69, 70, 71, 72):        # the third within a minute at 69, and again at 72
        read(made, 'gate: the door is open', tally=tally, now=now)
        seen.append(sum(cell[0] for cell in tally['rules'].values()))
    assert seen == [0, 0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize('key, same, other', [
    ('ip', 'open by bob at 192.0.2.7', 'open by bob at 192.0.2.8'), ('user', 'open by bob', 'open by eve'),
    ('F-USER', 'open by bob', 'open by eve'), ('state', 'open', 'shut'), ('F-STATE', 'open', 'shut')])
def test_key_counts_each_for_itself(key, same, other):
    rule = DOOR + 'maxretry = 2\ntext = it\n'
    for option, times in (('', 1), ('key = %s\n' % key, 0)):
        assert sum(n for *_, n in noted(digest(rule + option), 'gate: the door is ' + same, 'gate: the door is ' + other)) == times
    assert noted(digest(rule + 'key = %s\n' % key), *['gate: the door is ' + same] * 2) == [('info', 'it', 1)]


def test_key_may_be_the_program():
    made = digest('[rule r]\nregex = ^x$\nkey = program\nmaxretry = 2\ntext = <program>\n')
    assert noted(made, 'a: x', 'b: x', 'a: x') == [('info', 'a', 1)]


PHONE = ('[rule ring]\nregex = ^ring of <F-USER>\\S+</F-USER>$\nmaxretry = 2\nkey = user\ntext = rings <F-USER>\n'
         '[rule answer]\nregex = ^answer of <F-USER>\\S+</F-USER>$\nkey = user\nreport = ignore\n')


def test_resets_makes_another_rule_begin_anew_for_the_same_key_only():
    calls = ['p: ring of bob', 'p: ring of eve', 'p: answer of bob', 'p: ring of bob', 'p: ring of eve']
    assert noted(digest(PHONE), *calls) == [('info', 'rings bob', 1), ('info', 'rings eve', 1)]
    # rules are looked at one after the other, a block at a time: lines come one by one here
    made, tally = digest(PHONE + 'resets = ring\n'), banwatch.Tally(0)
    for line in calls:
        read(made, line, tally=tally)
    assert noted(made, tally=tally) == [('info', 'rings eve', 1)]


def test_resets_holds_for_lines_that_come_in_one_block():
    made = digest(PHONE + 'resets = ring\n')
    assert noted(made, 'p: ring of bob', 'p: answer of bob', 'p: ring of bob') == []
    assert noted(made, 'p: ring of eve', 'p: ring of eve', 'p: answer of eve') == [('info', 'rings eve', 1)]


def test_grace_keeps_the_other_rule_from_counting_for_a_while():
    for grace, expected in ('', [2]), ('grace = 60\n', []):
        made, tally = digest(PHONE + 'resets = ring\n' + grace), banwatch.Tally(0)
        read(made, 'p: answer of bob', tally=tally, now=0)
        for now in (58, 59):
            read(made, 'p: ring of bob', tally=tally, now=now)
        assert [cell[1] for cell in tally['rules'].values()] == ([59] if expected else [])
        for now in (60, 61):
            read(made, 'p: ring of bob', tally=tally, now=now)
        assert sum(cell[0] for cell in tally['rules'].values()) == len(expected) + 1


def test_what_rules_have_counted_survives_a_reload_and_not_its_findtime():
    for wait, times in ((599, 1), (600, 0)):
        old = digest(DOOR + 'maxretry = 2\n')
        read(old, 'gate: the door is open', now=0)
        made = digest(DOOR + 'maxretry = 2\n')
        made.adopt(old)
        made.purge(wait)
        assert len(made.fails.recent) == times
        assert len(noted(made, 'gate: the door is open', now=wait)) == times


def test_what_rules_count_is_bounded():
    made, tally = digest(PHONE + 'resets = ring\ngrace = 1d\n'), banwatch.Tally(0)
    for n in range(1500):
        read(made, 'p: ring of u%d' % n, 'p: answer of v%d' % n, tally=tally)
    assert len(made.fails.recent) <= 1000 and len(made.graces) <= 1100


def test_a_line_of_a_rule_is_not_told_a_second_time_among_the_others():
    for level in ('warning', 'info', 'ignore'):
        tally, _ = read(digest(DOOR + 'report = %s\nmaxretry = 9\n' % level), 'gate: the door is open', 'gate: the roof is open')
        assert [said for _, said, _ in tally['other']] == ['the roof is open']


def test_rules_of_the_conf_see_what_a_jail_explains():
    made, tally = digest(DOOR), banwatch.Tally(0)
    block = log('gate: the door is open', 'gate: the roof is open')
    list(made.read(block, [1], tally, NOW))
    assert len(tally['rules']) == 1 and len(tally['other']) == 1


def test_a_rule_with_the_name_of_a_built_in_one_overrides_it_option_by_option():
    assert noted(digest(), 'banwatch: something', 'cat: mew') == []
    made = digest('[rule banwatch]\nreport = warning\ntext = look!\n')
    assert 'banwatch' in made.rules and 'banwatch' not in made.built_in
    assert noted(made, 'banwatch: something', 'cat: mew') == [('warning', 'look!', 1)]          # with the built-in program


def test_built_in_rules_see_only_what_no_jail_and_no_rule_of_the_conf_explains():
    line = 'kernel: Out of memory: Killed process 1 (x)'
    assert noted(digest('[rule mine]\nprogram = .*\ntext = mine\n'), line) == [('info', 'mine', 1)]
    (level, _, times), = noted(digest(), line)
    assert (level, times) == ('warning', 1)
    tally = banwatch.Tally(0)
    list(digest().read(log(line), [1], tally, NOW))
    assert not tally['rules'] and not tally['other']


def test_without_other_neither_built_in_rules_nor_the_grouping_run():
    made = digest(DOOR + '[report]\nother = no\n')
    tally, _ = read(made, 'gate: the door is open', 'kernel: Out of memory: Killed process 1 (x)', 'p: something')
    assert list(tally['rules']) == [('info', 'door', 'the door is open')] and not tally['other'] and not made.shapes


AROUND = banwatch.look_around(
    [banwatch.make_exempt('192.168.1.0/24', 'the LAN, br-lan'), banwatch.make_exempt('203.0.113.1', 'this machine, wan'),
     banwatch.make_exempt('203.0.113.254', 'a gateway')], ['root', 'alice'])


@pytest.mark.parametrize('asked, passed', [
    ('lan', '192.168.1.7 203.0.113.1'), ('!lan', '198.51.100.7 192.0.2.7 2001:db8::7 203.0.113.254'), ('192.0.2.0/24', '192.0.2.7'),
    ('192.0.2.0/24, lan', '192.168.1.7 203.0.113.1 192.0.2.7'), ('!lan !192.0.2.0/24', '198.51.100.7 2001:db8::7 203.0.113.254'),
    ('192.0.0.0/8 !lan', '192.0.2.7'), ('2001:db8::/32', '2001:db8::7'), ('::ffff:192.0.2.0/120', '192.0.2.7')])
def test_a_rule_may_ask_for_networks(asked, passed):
    made = digest('[rule in]\nregex = ^in from <HOST>$\ntext = <HOST>\nip = %s\n' % asked)
    made.around = AROUND
    ips = '192.168.1.7 203.0.113.1 198.51.100.7 192.0.2.7 2001:db8::7 203.0.113.254 host.example.net'.split()
    found = [said for _, said, _ in noted(made, *('gate: in from ' + ip for ip in ips))]
    assert found == [ip for ip in ips if ip in passed.split()]


@pytest.mark.parametrize('asked, passed', [
    ('exists', 'root alice'), ('unknown', 'eve exists'), ('eve', 'eve'), ('root eve', 'root eve'), ('eve exists', 'root alice eve')])
def test_a_rule_may_ask_for_accounts(asked, passed):
    made = digest('[rule in]\nregex = ^in(?: of <F-USER>\\S+</F-USER>)?$\ntext = <F-USER>\nuser = %s\n' % asked)
    made.around = AROUND
    found = [said for _, said, _ in noted(made, 'gate: in', *('gate: in of ' + name for name in ('root', 'alice', 'eve', 'exists')))]
    assert found == passed.split()


def test_a_login_to_an_account_of_this_machine_from_elsewhere_is_a_mail_at_once(tmp_path):
    text = ('[rule abroad]\nprogram = dropbear\nregex = ^Password auth succeeded for \'<F-USER>[^\']+</F-USER>\' from <HOST>:\nip = !192.0.2.0/24\n'
            'user = exists\ntext = <F-USER> has logged in from <HOST>\nmail = yes\n')
    house = House(tmp_path, text=text)
    sent = []
    house.machine.answer = lambda command: (sent.append(command.stdin), ('', ''))[1]
    line = "Thu Mar  7 12:34:56 2024 authpriv.notice dropbear[5]: Password auth succeeded for '%s' from %s:5\n"
    house.write(line % ('alice', '192.0.2.7') + line % ('eve', '198.51.100.7'))
    house.pass_time(120)
    assert sent == []
    house.write(line % ('alice', '198.51.100.7'))
    house.pass_time(120)
    assert len(sent) == 1 and 'alice has logged in from 198.51.100.7' in sent[0]


def test_a_rule_is_tried_on_a_log_by_test(tmp_path, capsys):
    conf, lines = tmp_path / 'c', tmp_path / 'l'
    conf.write_text('[rule in]\nprogram = sshd\nregex = ^in of <F-USER>\\S+</F-USER> from <HOST>$\nip = !192.0.2.0/24\nuser = exists\n'
                    'text = <F-USER>, <HOST>\n')
    lines.write_text(''.join('%ssshd[5]: in of %s from %s\n' % (HEAD, *row) for row in (
        ('root', '198.51.100.7'), ('root', '192.0.2.7'), ('nobody9', '198.51.100.7'))) + HEAD + 'x: in of root from 198.51.100.7\n')
    assert banwatch.main(['-c', str(conf), 'test', 'rule:in', str(lines)]) == 0
    out = capsys.readouterr().out
    assert 'lines     4: 1 matched, 1 not; 0 logins, 0 that tell something but no failure, 2 ignored' in out
    assert 'root, 198.51.100.7' in out and 'not what `ip` asks for' in out and 'not what `user` asks for' in out
    banwatch.main(['-c', str(conf), 'test', 'rule:in', str(lines), '--json'])
    assert [json.loads(row)['match'] for row in capsys.readouterr().out.split('\n')[:-1]] == [True, False, False, False]
    assert banwatch.main(['test', 'rule:din', str(lines)]) == 78 and 'no such rule' in capsys.readouterr().err


@pytest.mark.parametrize('rule, said', [
    ('regex = (\n', 'is not a regex'), ('program = [\n', 'is not a regex'), ('report = loud\n', "'loud'"), ('details = some\n', "'some'"),
    ('maxretry = 0\n', 'maxretry'), ('findtime = x\n', 'is not a duration'), ('mail = perhaps\n', "'perhaps'"), ('resets = a b\n', 'is not a name'),
    ('grace = x\n', 'is not a duration'), ('bantime = 5\n', 'no such option'), ('regexp = x\n', 'did you mean regex'),
    ('key = user\nregex = x\n', "key: no regex has a 'user'"), ('text = by <F-USER>\nregex = x\n', '<F-USER> means nothing here'),
    ('text = <b>\nregex = x\n', '<b> means nothing here'), ('resets = nobody\nregex = x\n', 'there is no [rule nobody]'),
    ('regex = <HOST> and <HOST>\n', 'more than one <HOST>'), ('ip = lan\nregex = x\n', 'ip: no regex has a <HOST>'),
    ('user = root\nregex = x <HOST>\n', 'user: no regex has a <F-USER>'), ('ip = here\nregex = x <HOST>\n', "'here'"),
    ('ip = !!lan\nregex = x <HOST>\n', "'!!lan'")])
def test_what_is_wrong_with_a_rule_is_said_with_its_line(rule, said):
    made, problems = banwatch.read_config('\n[rule r]\n' + rule + 'program = p\n' * ('program' not in rule), 'test.conf')
    problems += banwatch.make_digest(made)[1]
    assert len(problems) == 1 and said in problems[0] and problems[0].startswith('test.conf:3: ')


def test_a_regex_that_runs_away_skips_its_line_and_is_named():
    machine = FakeMachine()
    made = digest('[rule slow]\nregex = ^(a+)+$\n' + DOOR, machine.guard)
    tally, _ = read(made, 'p: ' + 'a' * 40 + 'b', 'gate: the door is open')
    assert made.rules['slow'].guarded.trouble.startswith('its regex takes too long') and list(tally['rules']) == [('info', 'door', 'the door is open')]


@pytest.mark.slow
def test_a_regex_that_runs_away_again_and_again_has_to_rest():
    machine = FakeMachine()
    made = digest('[rule slow]\nregex = ^(a+)+$\n', machine.guard)
    start = time.process_time()
    for _ in range(20):
        read(made, 'p: ' + 'a' * 40 + 'b')
    assert time.process_time() - start < 2         # 20 times a quarter of a second without


# --- other lines

def others(*messages, made=None, head=HEAD, **more):
    """{template: number of lines} of what is grouped."""
    return {said: cell[0] for (_, said, _), cell in read(made or digest(), *messages, head=head, **more)[0]['other'].items()}


ALIKE = [
    ['p[%d]: worker %d has ended' % (n, n * 7) for n in range(9)],
    ['p: lease of 192.0.2.%d to 00:11:22:33:44:%02x' % (n, n) for n in range(9)],
    ['p: peer 2001:db8::%x is away' % n for n in range(1, 9)], ['p: peer fe80::%x:1 port %d' % (n, n) for n in range(1, 9)],
    ['p: session 8f3a%04x9bc%x begins' % (n * 999, n) for n in range(9)], ["p: cannot open '/tmp/%s'" % 'abc'[:n] for n in range(1, 4)],
    ['p: query from host%d.example.org refused' % n for n in range(9)],
    ['p: query from %s.example.org refused' % name for name in ('mail', 'www', 'gate', 'printer')],
    ['p: user %s is away' % name for name in ('bob', 'eve', 'mallory')],
    ['p: took %d.%d s, %d%%' % (n, n, n) for n in range(9)], ['p: at 0x%x in 0x%08x' % (n, n * 77) for n in range(9)],
    ['p: since Fri Jan %2d 07:0%d:00 2027' % (n, n) for n in range(1, 9)]]


@pytest.mark.parametrize('messages', ALIKE, ids=lambda messages: messages[0])
def test_lines_that_a_person_would_call_the_same_are_one_group(messages):
    assert list(others(*messages).values()) == [len(messages)]
    made, tally = digest(), banwatch.Tally(0)
    for message in messages:
        read(made, message, tally=tally)
    assert [cell[0] for cell in tally['other'].values()] == [len(messages)]


def test_a_line_that_is_said_to_be_repeated_counts_so_often():
    lines = ['p: purr', 'p: message repeated 5 times: [ purr ]', 'p: message repeated 17 times: [ purr ]']
    assert others(*lines) == {'purr': 23}
    assert noted(digest('[rule r]\nprogram = p\n'), *lines) == [('info', 'purr', 23)]
    assert noted(digest('[rule r]\nprogram = p\nmaxretry = 7\n'), *lines[:2]) == []
    assert noted(digest('[rule r]\nprogram = p\nmaxretry = 6\n'), *lines[:2]) == [('info', 'purr', 1)]


@pytest.mark.parametrize('messages', [
    ['p: link eth0 is up', 'p: link eth0 is down'], ['p: fan failed', 'p: fan works'], ['p: started', 'p: stopped'],
    ['p: cannot read disk sda', 'p: cannot write disk sda'], ['a: the same', 'b: the same'],
    ['p: interface wan is up', 'p: interface wan is down'], ['p: service cron enabled', 'p: service cron disabled'],
    ['p: backup done', 'p: backup failed'], ['p: a b c', 'p: a b c d']], ids=lambda messages: messages[0])
def test_lines_that_mean_different_things_are_different_groups(messages):
    made, tally = digest(), banwatch.Tally(0)
    for _ in range(3):
        for message in messages:
            read(made, message, tally=tally)
    assert sorted(cell[0] for cell in tally['other'].values()) == [3, 3]


def test_an_interface_with_another_number_goes_up_and_down_in_two_groups():
    assert others(*['p: link eth%d is %s' % (n, how) for n in range(5) for how in ('up', 'down')]) == {
        'link eth* is up': 5, 'link eth* is down': 5}


def test_a_group_has_its_program_its_times_and_an_example():
    made, report = digest(), begun()
    for n in range(3):
        read(made, 'p[%d]: took %d ms' % (n, n), tally=report.tally, now=NOW - 60 + n)
    row, = summary(report)['other']
    assert (row['program'], row['text'], row['times'], row['level'], row['first'], row['last'], row['example']) == (
        'p', 'took * ms', 3, '', WALL - 60, WALL - 58, 'took 0 ms')


@pytest.mark.parametrize('head', [
    'Fri Jan 15 08:00:00 2027 kern.err ', 'Fri Jan 15 08:00:00 2027 kern.crit ', 'Fri Jan 15 08:00:00 2027 local0.alert ',
    'Jan 15 08:00:00 router daemon.emerg ', '<3>Jan 15 08:00:00 router ', '<11>', '<10>1 2027-01-15T08:00:00Z router '])
def test_lines_of_level_err_and_worse_come_first(head):
    report, made = begun(), digest()
    read(made, *['p: chatter'] * 50, tally=report.tally)
    message = 'q: it burns' if '>1 ' not in head else 'q - - - it burns'
    read(made, message, tally=report.tally, head=head)
    assert [(row['level'], row['text']) for row in summary(report)['other']] == [('err', 'it burns'), ('', 'chatter')]


def test_a_message_cannot_raise_its_own_level():
    assert [level for _, _, level in read(digest(), 'p: kern.err kernel: x', 'p: <3>x', ' kern.err x')[0]['other']] == ['', '', '']


@pytest.mark.parametrize('message, secret', [
    ('login failure for hunter2 from 192.0.2.7', 'hunter2'), ('authentication failure; user=hunter2 rhost=192.0.2.7', 'hunter2'),
    ('unknown user: hunter2', 'hunter2'), ("no such user 'correct horse'", 'horse'), ('rejected username "correct horse" at gate', 'horse'),
    ('failure for invalid user hunter2', 'hunter2'), ('refused for user hunter2', 'hunter2'), ('refused, login=hunter2', 'hunter2')])
def test_a_name_that_was_typed_shows_neither_in_the_template_nor_in_the_example(message, secret):
    report = begun()
    read(digest(), 'p: ' + message, tally=report.tally)
    told = summary(report)
    assert len(told['other']) == 1 and secret not in json.dumps(told)


def test_nor_does_it_show_in_the_example_of_a_rule():
    tally, _ = read(digest('[rule r]\nregex = ^bad\nreport = other\n'), 'p: bad password for hunter2 from 192.0.2.7')
    assert 'hunter2' not in json.dumps(tally.dump(NOW)) and len(tally['other']) == 1


def corpus_lines(*names):
    """Raw lines that the filters of these corpora take for a failure or a login."""
    return [raw for name in names for group in read_groups(os.path.join(CORPORA, name + '.log'))
            for _, verdict, _, _, raw in group if verdict.startswith(('FAIL', 'OK'))]


def consume(settings, block, now=NOW):
    """The Tally after a block, as the daemon reads it."""
    jails, (made, problems), tally, explained = banwatch.Jails(settings), banwatch.make_digest(settings), banwatch.Tally(now), []
    assert jails.problems + problems == []
    block = jails.tidied(None, block)
    for _ in jails.scan_tidy(None, block, lambda date: now, WALL, explained):
        pass
    list(made.read(block, explained, tally, now))
    return tally


HEADERS = {
    'logread': 'Fri Jan 15 08:00:00 2027 authpriv.warn ', 'logread -t': 'Fri Jan 15 08:00:00 2027 [ 12.345] authpriv.warn ',
    'RFC 3164': 'Jan 15 08:00:00 router ', 'no host': 'Jan 15 08:00:00 ', 'busybox': 'Jan 15 08:00:00 router authpriv.warn ',
    'ISO': '2027-01-15T08:00:00.123+01:00 router ', 'datagram': '<86>Jan 15 08:00:00 router ', 'bare': '', 'epoch': '1800000000.123 '}


@pytest.mark.parametrize('form', list(HEADERS) + ['RFC 5424', 'RFC 5424 with data'])
@pytest.mark.parametrize('program, said', [('dropbear', "Bad password attempt for 'root' from 192.0.2.7:53066"), ('guard', 'halt, 192.0.2.7')])
def test_what_a_jail_explains_is_not_among_the_others_whatever_its_header(form, program, said):
    def line(program, pid, message):
        if form.startswith('RFC 5424'):
            return '<86>1 2027-01-15T08:00:00Z router %s %s - %s %s\n' % (program, pid, '-' if form == 'RFC 5424' else '[a b="c] d"]', message)
        return '%s%s[%s]: %s\n' % (HEADERS[form], program, pid, message)
    # lines that nothing explains stand between: none of them may go in place of another
    block = ''.join(line(program, n, said) + line('cat', n, 'mew number %d' % n) + line('cat', n, 'purr') for n in range(5))
    tally = consume(config('[guard]\nenabled = yes\nfailregex = halt, <HOST>$\n'), block.encode())
    assert {said: cell[0] for (_, said, _), cell in tally['other'].items()} == {'mew number *': 5, 'purr': 5} and not tally['rules']


@pytest.mark.parametrize('name', ['dropbear', 'sshd', 'luci', 'formats'])
def test_no_failure_and_no_login_of_a_corpus_is_among_the_others(name):
    found = corpus_lines(name)
    tally = consume(config(), b''.join(line + b'\n' for line in found))
    assert len(found) > 5 and not tally['other'] and not tally['rules'], list(tally['other']) + list(tally['rules'])


def test_a_line_that_only_contains_what_a_jail_looks_for_is_still_told():
    tally = consume(config(), (HEAD + "cat: ate dropbear[1]: Bad password attempt for 'root' from 192.0.2.7:5\n").encode())
    assert len(tally['other']) == 1


def test_packets_that_the_firewall_has_logged_are_counted_by_port():
    packet = 'kernel: [  12.3] reject wan in: IN=eth1 OUT= SRC=192.0.2.7 DST=198.51.100.1 LEN=40 TTL=240 ID=%d PROTO=%s SPT=%d DPT=%d WINDOW=1024'
    tally, _ = read(digest(), *[packet % (n, 'TCP', n, 23) for n in range(9)] + [packet % (1, 'UDP', 5, 5060)], head='Jan 15 08:00:00 router ')
    assert rows(tally, 'ports') == {'23/tcp': [9], '5060/udp': [1]} and not tally['other']


def test_packets_are_counted_by_port_where_a_jail_explains_them_too():
    packet = '%skernel: [  12.3] reject wan in: IN=eth1 OUT= SRC=192.0.2.7 DST=198.51.100.1 LEN=40 TTL=240 ID=1 PROTO=TCP SPT=%d DPT=23 WINDOW=1024\n'
    tally = consume(config('[kernel-scan]\nenabled = yes\n'), ''.join(packet % (HEAD, n) for n in range(9)).encode())
    assert rows(tally, 'ports') == {'23/tcp': [9]} and not tally['other']


@pytest.mark.parametrize('path', sorted(os.listdir(CORPORA)))
def test_no_line_of_a_corpus_is_an_exception(path):
    with open(os.path.join(CORPORA, path), 'rb') as f:
        raw = b''.join(line.rpartition(b'\t')[2] for line in f)
    report = begun()
    report.tally = consume(config(''.join('[%s]\nenabled = yes\n' % name for name in banwatch.JAILS)), raw)
    assert_readable(text(report))


@pytest.mark.parametrize('line', [
    b'\xc2\xa0', b' ' * 400 + b'x', b'\xe2\x80\x83 \xc2\x85', b'\x00', b'\xff\xfe', b'\x1b[31m', b'*', b'* * *', b"'", b'"' * 300, b'[  1.5] ',
    b'[  1.5] \xc2\xa0', b'\xe2\x80\xae', b'message repeated 3 times: [ ]', b'message repeated 3 times: [ x ]', b'(' * 300, b'=' * 300, b'1:' * 300,
    b'user ' * 60, b'\xed\xa0\x80', b'a' * 9000, b'\\' * 300, b'%s %d {}'], ids=repr)
def test_no_message_is_an_exception(line):
    for head in (b'', HEAD.encode() + b'p: ', b'<11>1 2027-01-15T08:00:00Z h p 1 - - ', b'Jan 15 08:00:00 h p: '):
        made, report = digest('[rule all]\nprogram = q?\nmaxretry = 3\n'), begun()
        for _ in range(2):
            list(made.read(banwatch.tidy(head + line + b'\n'), [], report.tally, NOW))
        assert_readable(text(report))


def test_a_program_with_a_wild_name_comes_out_printable():
    report = begun()
    made = digest('[rule r]\nregex = ^hello\nreport = other\n')
    list(made.read(b'\nJan 15 08:00:00 h \x1b[31m\xff: x\nJan 15 08:00:00 h \x1bq: hello\n', [], report.tally, NOW))
    assert_readable(text(report))


def random_lines(rnd, n):
    words = [''.join(rnd.choice('abcdefghijklmnopqrstuvwxyz') for _ in range(rnd.randrange(2, 9))) for _ in range(5000)]
    for _ in range(n):
        yield '%s%s: %s\n' % (HEAD, rnd.choice(words), ' '.join(rnd.choices(words, k=rnd.randrange(1, 12))))


def flood(n):
    made, tally, found = digest(), banwatch.Tally(0), random_lines(random.Random(1), n)
    for _ in range(n // 500):
        list(made.read(('\n' + ''.join(itertools.islice(found, 500))).encode(), [], tally, NOW))
        assert len(made.shapes) <= banwatch.KNOWN_SHAPES
        assert len(tally['other']) <= 1.1 * banwatch.PARTS['other'].limit + 1
    counted = sum(cell[0] for cell in tally['other'].values())
    assert counted + rows(tally, 'counts')['other'][0] >= n - n // 50           # nearly nothing is simply gone


def test_random_lines_fill_no_memory():
    flood(2000)


@pytest.mark.slow
def test_a_hundred_thousand_random_lines_fill_no_memory():
    flood(100000)


def test_a_flood_of_long_lines_is_cut_and_quickly_read():
    rnd, made, tally = random.Random(1), digest(), banwatch.Tally(0)
    letters = bytes(range(32, 127)) + b"''::..  "
    block = b''.join(HEAD.encode() + b'p: ' + bytes(rnd.choices(letters, k=8000)) + b'\n' for _ in range(25))
    start = time.process_time()
    list(made.read(banwatch.tidy(block), [], tally, NOW))
    assert time.process_time() - start < 0.5
    assert sum(map(len, made.shapes)) <= 25 * banwatch.MESSAGE_LENGTH
    assert all(len(said) <= banwatch.TEXT_LENGTH and len(cell[3]) <= banwatch.TEXT_LENGTH for (_, said, _), cell in tally['other'].items())


# --- what a summary says

def test_nothing_has_no_warning():
    report = begun()
    report.tally.note('lines', ('x',), 5)
    assert warnings(report) == []


def failures_then_login(n, known):
    report = begun()
    report.logins_reported = {('root', '192.0.2.1'): NOW - 5000} if known else {}
    for _ in range(n):
        report.tally.failure('sshd', '192.0.2.1', 'root', 1, NOW - 60)
    report.tally.login('sshd', '192.0.2.1', '192.0.2.1', 'root', NOW - 60, '')
    return warnings(report)


@pytest.mark.parametrize('n, known, warned', [(0, False, 0), (1, False, 1), (2, True, 0), (3, True, 1), (9, False, 1)])
def test_failures_on_an_account_that_then_logged_in(n, known, warned):
    assert failures_then_login(n, known) == ['root logged in from 192.0.2.1 after %s (sshd, 07:59)' % banwatch.plural(n, 'failure')] * warned


def test_an_address_that_is_never_banned_but_fails():
    report = begun()
    report.tally.ignored('sshd', '192.168.1.5', 'root', 7, NOW - 60, '192.168.1.0/24 (the LAN, br-lan)')
    assert warnings(report) == ['192.168.1.5 failed 7 times, last 07:59; it is never banned: 192.168.1.0/24 (the LAN, br-lan)']
    report.tally['ignored']['192.168.1.5', '192.168.1.0/24 (the LAN, br-lan)'][0] = 0
    assert warnings(report) == []


@pytest.mark.parametrize('user, addresses, banned, warned', [
    ('root', 10, 0, 1), ('root', 9, 0, 0), ('root', 12, 3, 0), ('root', 13, 3, 1), ('oracle', 50, 0, 0)])
def test_guessing_that_hides_behind_many_addresses(user, addresses, banned, warned):
    report, bans = begun(), banwatch.Bans(100)
    for n in range(addresses):
        report.tally.failure('sshd', '192.0.2.%d' % n, user, 1, NOW)
    for n in range(banned):
        bans.add('sshd', '192.0.2.%d' % n, NOW, 600, 5)
    said = warnings(report, bans=bans, accounts=['root'])
    assert [line.startswith('root: tried from %d addresses' % (addresses - banned)) for line in said] == [True] * warned


def test_a_source_that_is_silent_and_one_that_has_failed():
    quiet, spoken, broken = ('/log', banwatch.DAY, ''), ('/other', banwatch.DAY, ''), ('fifo:/x', banwatch.DAY, 'No such file')
    new = '/new', banwatch.SILENT - 1, ''
    for seconds, said in ((banwatch.SILENT - 1, []), (banwatch.SILENT, ['/log: not a line for 12h: is it still the log? (see `source`)'])):
        report = begun(seconds)
        report.tally.note('lines', ('/other',), 5)
        assert warnings(report, sources=[quiet, spoken, new, broken]) == said + ['fifo:/x: No such file']


def test_incidents_of_the_firewall_the_state_and_the_mail():
    report = begun()
    for when in (NOW - 1800, NOW - 60):
        report.tally.note('incidents', ('nft', 'repaired'), 1, when, when)
    report.tally.note('incidents', ('mail', 'no route'), 1, NOW, NOW)
    assert warnings(report) == ['mail: no route (08:00)', 'nft: repaired (2 times, 07:30–07:59)']


def test_rules_warn_with_their_lines_and_info_does_not():
    report = begun()
    report.tally.note('rules', ('warning', 'r', 'it burns'), 1, NOW, NOW, [[NOW, 'a line']])
    report.tally.note('rules', ('info', 'i', 'all is well'), 1, NOW, NOW, [])
    told = summary(report, details={'r': 'all'})
    assert told['warnings'] == [{'text': 'it burns (08:00)', 'details': [[WALL, 'a line']]}]
    assert [row['text'] for row in told['noted']] == ['all is well']


def test_mails_that_were_too_many_and_a_daemon_that_does_not_run():
    report = begun()
    report.tally.count('unmailed', 3)
    assert warnings(report, running=False) == ['the daemon is not running: nobody is banned',
                                               '3 mails were not sent at once, for there were more than `mailmax` in an hour']


def test_new_logins_come_first():
    report = begun()
    report.logins_reported = {('root', '192.0.2.1'): NOW - 5000}
    for n, user in ((1, 'root'), (2, 'root'), (1, 'alice')):
        report.tally.login('sshd', '192.0.2.%d' % n, '192.0.2.%d' % n, user, NOW - n, '')
    assert [(row['user'], row['ip'], row['new']) for row in summary(report)['logins']] == [
        ('alice', '192.0.2.1', True), ('root', '192.0.2.2', True), ('root', '192.0.2.1', False)]


def test_names_that_may_be_passwords_are_a_number():
    report = begun()
    for ip, user in (('192.0.2.1', 'S3cret'), ('192.0.2.1', 'root'), ('192.0.2.1', 'admin'), ('192.0.2.2', 'admin'), ('192.0.2.2', '0ther')):
        report.tally.failure('sshd', ip, user, 1, NOW)
    report.tally.login('sshd', '192.0.2.9', '192.0.2.9', 'carol', NOW, '')
    report.tally.failure('sshd', '192.0.2.9', 'carol', 1, NOW)
    told = summary(report, accounts=['root'])
    assert {row['ip']: (sorted(row['users']), row['hidden']) for row in told['addresses']} == {
        '192.0.2.1': (['admin', 'root'], 1), '192.0.2.2': (['admin'], 1), '192.0.2.9': (['carol'], 0)}
    for shown in (json.dumps(told), banwatch.report_text(told), banwatch.report_page(told)):
        assert 'S3cret' not in shown and '0ther' not in shown


def test_a_name_that_a_firewall_of_passwords_hides_behind_stays_hidden_when_typed_twice_from_one_address():
    report = begun()
    for _ in range(3):
        report.tally.failure('sshd', '192.0.2.1', 'S3cret', 1, NOW)
        report.tally.fold()
    assert 'S3cret' not in json.dumps(summary(report))


def test_neighbours_are_told_by_24_and_48():
    report = begun()
    for ip in ('192.0.2.1', '192.0.2.200', '192.0.3.1', '2001:db8:1:1::/64', '2001:db8:1:ffff::/64', '2001:db8:2::/64'):
        report.tally.failure('sshd', ip, None, 2, NOW)
    assert summary(report)['networks'] == [{'network': '192.0.2.0/24', 'addresses': 2, 'failures': 4, 'bans': 0},
                                           {'network': '2001:db8:1::/48', 'addresses': 2, 'failures': 4, 'bans': 0}]


@pytest.mark.parametrize('hours, width', [(1, 1), (24, 1), (35, 1), (36, 2), (71, 2), (72, 3), (168, 5)])
def test_the_chart_has_no_gaps_and_longer_periods_have_wider_bars(hours, width):
    report = banwatch.Report(NOW - 3600 * hours)
    for ago in (hours, hours / 2, 0):
        report.tally.set_clock(WALL - ago * 3600 - (NOW - ago * 3600))
        report.tally.failure('sshd', '192.0.2.1', None, 5, NOW - ago * 3600)
    bars = summary(report)['hours']
    assert {bar['hours'] for bar in bars} == {width} and len(bars) == -(-(hours + 1) // width) <= banwatch.CHART_BARS
    assert [bar['start'] for bar in bars] == [WALL - hours * 3600 + n * width * 3600 for n in range(len(bars))]
    assert sum(bar['failures'] for bar in bars) == 15


def test_without_failures_there_is_no_chart():
    assert summary(begun(banwatch.DAY))['hours'] == []


def test_one_address_is_told_with_its_bans_and_until_when():
    report, bans = begun(), banwatch.Bans(100)
    for n, seconds in ((1, 600), (2, banwatch.FOREVER), (3, 600)):
        report.tally.failure('sshd', '192.0.2.%d' % n, 'root', 9 - n, NOW)
        bans.add('sshd', '192.0.2.%d' % n, NOW, seconds, 5)
    bans.remove(('sshd', '192.0.2.3'))
    found = [(row['ip'], row['failures'], row['bans'], row['active'], row['until']) for row in summary(report, bans=bans)['addresses']]
    assert found == [('192.0.2.1', 8, 1, True, WALL + 600), ('192.0.2.2', 7, 1, True, None), ('192.0.2.3', 6, 1, False, None)]


def test_rare_lines_of_a_chatty_program_are_one_row():
    report = begun()
    for n in range(20):
        report.tally.note('other', ('chatty', 'template ' + 'x' * n, ''), 1, NOW, NOW, 'x')
    report.tally.note('other', ('chatty', 'often', ''), 50, NOW, NOW, 'x')
    assert [(row['times'], row['kinds'], row['text']) for row in summary(report)['other']] == [
        (50, 1, 'often'), (20, 20, '20 different lines')]


# --- how it looks

def assert_readable(shown):
    """For a terminal of 80 columns, with nothing in it that moves its cursor."""
    found = shown.split('\n')
    assert found.pop() == '' and len(found) <= banwatch.TEXT_LINES
    for line in found:
        assert len(line) <= banwatch.TEXT_WIDTH and line.isprintable(), line


WILD = ['Bcc: x@y', '\x1b[31m<script>', 'a\r\nb', '\u202egnp', '\ud800', 'x' * 300, 'y ' * 150, '', ' ', '\x00', '\\', '&<>"\'', '漢字' * 60, 'é' * 90,
        '-' * 300, 'a-' * 150, '\t', '\u2028']


def wild_report(rnd, n, times=5):
    report = begun(banwatch.DAY)
    for part, (_, key, cell) in banwatch.PARTS.items():
        for k in range(n):
            fields = [rnd.choice(WILD) + str(k) if code == 't' else int(WALL) // 3600 - k if code == 'h' else NOW - 3600 * k for code in key]
            if part == 'addresses':
                fields = ['198.51.%d.%d' % divmod(k, 8)]
            if part in ('rules', 'other'):
                fields[0 if part == 'rules' else 2] = rnd.choice(['warning', 'info'] if part == 'rules' else ['err', ''])
            report.tally.note(part, tuple(fields), *[{'n': times, 't': rnd.choice(WILD), 'b': rnd.random() < 0.5, 'e': rnd.choice(WILD), 'd': [
                [NOW, rnd.choice(WILD)]] * 10}.get(code, NOW - k) for code in cell])
    return report


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('n, times', [(1, 1), (25, 10 ** 6), (45, 10 ** 15)])
def test_whatever_has_happened_fits_120_lines_of_80_columns_that_are_printable(seed, n, times):
    report = wild_report(random.Random(seed), n, times)
    told = summary(report, host=WILD[seed], details={name: 'all' for _, name, _ in report.tally['rules']}, firewall=[WILD[seed + 3]],
                   sources=[(name, 0, name) for name in WILD])
    for most in (1.0, 0.25, 0):
        assert_readable(banwatch.report_text(told, most))
    assert banwatch.subject_text(told).isprintable()


@pytest.mark.parametrize('hours, said', [(23.99, '07:59'), (24.01, '07:59'), (26, 'Fri 07:59'), (100, 'Fri 07:59'), (200, '15 Jan 07:59')])
def test_a_moment_is_told_with_its_day_where_that_is_not_clear(hours, said):
    report = begun(3600 * hours)
    report.tally.note('incidents', ('nft', 'repaired'), 1, NOW - 60, NOW - 60)
    assert warnings(report) == ['nft: repaired (%s)' % said]


def test_a_long_warning_takes_three_lines_at_most():
    report = begun()
    report.tally.note('incidents', ('nft', 'so it goes ' * 40), 1, NOW, NOW)
    shown = text(report).split('WARNING\n')[1].split('\n\n')[0].split('\n')
    assert len(shown) == 3 and shown[0].startswith('  nft: so it goes')


def test_tables_end_in_how_many_more_there_are():
    report = begun()
    for n in range(40):
        report.tally.failure('sshd', '198.51.%d.1' % n, 'root', 1, NOW)
        report.tally.login('sshd', '192.0.2.%d' % n, '192.0.2.%d' % n, 'alice', NOW, '')
    assert text(report).count('  + 28 more\n') == 2


def test_an_empty_day_has_two_lines():
    report = banwatch.Report(NOW - banwatch.DAY)
    report.tally.note('lines', ('/log',), 500)
    assert text(report) == 'router: all quiet, nothing to report.\nThu 14 Jan 08:00 – Fri 15 Jan 08:00, 1d · up 1w3d\n'


def test_what_an_empty_day_lacks_makes_it_a_day_to_be_told():
    for part in ('addresses', 'logins', 'ignored', 'incidents', 'ports', 'rules', 'other'):
        report = begun()
        report.tally.note(part, ('192.0.2.1',) if part == 'addresses' else key_of(part, 5), *cell_of(part, 3, NOW))
        assert not banwatch.is_empty(summary(report)), part
    assert not banwatch.is_empty(dict(summary(begun()), repeat=True))


@pytest.mark.parametrize('warned, bans, logins, failures, said', [
    (2, 14, 1, 99, '2 warnings, 14 bans, 1 login'), (0, 0, 0, 0, 'all quiet'), (1, 0, 0, 0, '1 warning'), (0, 0, 0, 7, '7 failures'),
    (0, 1, 2, 5, '1 ban, 2 logins'), (0, 0, 1200, 1, '1,200 logins, 1 failure')])
def test_the_verdict_says_the_most_in_few_words(warned, bans, logins, failures, said):
    report = begun()
    for n in range(warned):
        report.tally.note('incidents', ('nft', str(n)), 1, NOW, NOW)
    report.tally.note('jails', ('sshd',), failures, 0, bans, 0, 0, 0)
    if logins:
        report.tally.note('logins', ('root', '192.0.2.1', 'sshd'), logins, NOW, NOW)
    told = summary(report)
    assert banwatch.verdict_text(told) == said and banwatch.subject_text(told) == '[router] %s — Fri 15 Jan' % said
    assert banwatch.report_text(told).startswith('router: ' + said)


@pytest.mark.parametrize('hours, said', [(1, ''), (24, ''), (30, ''), (48, ', covers 2 days'), (72, ', covers 3 days'), (240, ', covers 10 days')])
def test_the_subject_says_how_many_days_it_covers(hours, said):
    assert banwatch.subject_text(summary(begun(3600 * hours))) == '[router] all quiet — Fri 15 Jan' + said


def test_the_subject_says_that_it_may_be_a_repeat():
    report = begun()
    report.maybe_sent = True
    assert banwatch.subject_text(summary(report)).endswith(' (may be a repeat)') and 'may have told this already' in text(report)


def test_the_first_lines_tell_of_the_period_of_reboots_and_of_the_clock_even_on_an_empty_day():
    report = begun(banwatch.DAY)
    report.tally.count('reboots', 2), report.tally.count('starts')
    report.tally.note('steps', (NOW - 3600,), -7200)
    about = 'Thu 14 Jan 08:00 – Fri 15 Jan 08:00, 1d · up 1w3d · 2 reboots · 1 restart · the clock was put back by 2h at 07:00'
    assert ' '.join(text(report).split()).startswith('router: all quiet, nothing to report. ' + about)
    report.tally.note('ports', ('22/tcp',), 9)
    assert about in ' '.join(text(report).split())
    assert_readable(text(report))


def test_packets_dropped_and_logged_are_told_under_firewall():
    report = begun()
    report.tally.note('drops', ('dropbear, sshd',), 15321)
    for port, n in (('23/tcp', 812), ('22/tcp', 1230)):
        report.tally.note('ports', (port,), n)
    shown = text(report)
    assert re.search(r'FIREWALL\n  BANNED BY +PACKETS DROPPED\n  dropbear, sshd +15,321\n', shown)
    assert 'by port: 22/tcp 1,230, 23/tcp 812' in ' '.join(shown.split())


def test_what_was_let_go_of_is_told_under_health():
    report = begun()
    for n in range(2000):
        report.tally.failure('sshd', '10.%d.%d.1' % divmod(n, 256), None, 1, NOW)
    let_go = sum(summary(report)['health']['let_go'].values())
    assert let_go >= 1600 and '%s too many to be told one by one' % format(let_go, ',') in ' '.join(text(report).split())


# --- the built-in rules do what corpora/rules.txt says: what a healthy router writes, and what it does not

HERE = os.path.dirname(os.path.abspath(__file__))
BUILT_IN = banwatch.make_digest(banwatch.Config())[0].built_in


def samples():
    """(rule or '-', raw line) of each sample."""
    with open(os.path.join(HERE, 'corpora', 'rules.txt'), encoding='utf-8') as f:
        return [tuple(line.rstrip('\n').split('\t', 1)) for line in f if line.strip() and line[0] != '#']


def taken_apart(raw):
    line = banwatch.read_line(raw.encode())
    return (line.program or b'').decode(), banwatch.as_message(line.message)


def regex_of(raw):
    """(rule, which of its regexes; None if it needs none) that a line falls under; ('-', None) if under none."""
    program, message = taken_apart(raw)
    for name, rule in BUILT_IN.items():
        if rule.match(program, message) is not None:
            return name, next((n for n, regex in enumerate(rule.regexes) if regex.search(message)), None)
    return '-', None


@pytest.mark.parametrize('name', ['-'] + list(BUILT_IN))
def test_every_sample_falls_under_its_rule(name):
    wrong = [(raw, regex_of(raw)[0]) for rule, raw in samples() if rule == name and regex_of(raw)[0] != name]
    assert [rule for rule, _ in samples()].count(name) and not wrong


def test_every_regex_has_a_sample():
    seen = {regex_of(raw) for _, raw in samples()}
    for name, rule in BUILT_IN.items():
        for n in range(len(rule.options['regex'])) if rule.options['regex'] else [None]:
            assert (name, n) in seen, (name, n is not None and rule.options['regex'][n])


def test_a_regex_is_anchored_and_knows_no_digit():
    """Only one of all lines that differ in digits alone is looked at."""
    for name, rule in BUILT_IN.items():
        for text in rule.options['regex']:
            assert text.startswith('^'), (name, text)
            for raw in [raw for rule, raw in samples() if rule == name]:
                message = taken_apart(raw)[1]
                other = re.sub(r'(?<![A-Za-z\d])\d+(?![A-Za-z\d])', '7', message)
                assert bool(re.search(text, other)) == bool(re.search(text, message)), (text, raw)


def test_no_line_takes_a_rule_long():
    lines = [raw for _, raw in samples()] + ['Mar  5 09:00:00 r kernel: ' + part * 150 for part in ('a: ', 'x ', '-', 'w.', '1')]
    began = time.process_time()
    for raw in lines:
        regex_of((raw + ' ') * 3 + raw[-60:] * 20)
    assert time.process_time() - began < 0.01 * len(lines)


def test_what_is_built_in_says_only_what_it_was_told_to_say():
    """A text with a field of the log would show what somebody typed."""
    for rule in BUILT_IN.values():
        assert '<' not in rule.options['text'] and bool(rule.options['text']) == (rule.options['report'] != 'ignore')
