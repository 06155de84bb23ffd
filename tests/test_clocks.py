"""Clocks: a start in 1970, a step of decades, an hour back, another zone. Nobody is free sooner or later for it, and the report knows."""
import contextlib
import glob
import os
import re
import time

import pytest

import banwatch
from banwatch import DAY, HOUR, MINUTE, SANE
from conftest import need
from harness import LINE, FakeMachine, House, Running, zone
from test_daemon import dated
from test_mail import Desk, Post, bodies

WALL = 1800000000.0                  # in 2027
YEARS = 56 * 365.25 * DAY
IN_1970, IN_2000 = 30.0, 946684830.0
# what happens to the clock: what it shows before, and how it is set, once or several times
CLOCKS = {
    'from 1970': (IN_1970, [YEARS]), 'from 2000': (IN_2000, [YEARS / 56 * 27]), 'an hour back': (WALL, [-HOUR]), 'an hour forward': (WALL, [HOUR]),
    'a day back': (WALL, [-DAY]), 'many times': (IN_1970, [HOUR, YEARS, -DAY, 5, HOUR / 2, YEARS, -YEARS]), 'another zone': (WALL, ['America/Los_Angeles', 'Asia/Kathmandu'])}
LOGIN = "Thu Mar  7 12:34:56 2024 authpriv.notice dropbear[9]: Password auth succeeded for 'root' from 192.0.2.7:53066\n"


class Clock:
    """One of CLOCKS."""

    def __init__(self, name, zones):
        (self.before, self.steps), self.zones = CLOCKS[name], zones

    def machine(self, made=None):
        made = made or FakeMachine()
        made.time = self.before
        return made

    def set(self, house, noticed=False):
        """Sets it; where this is to be `noticed`, a line follows each step."""
        for step in self.steps:
            if isinstance(step, str):
                self.zones(step)
            else:
                house.machine.time += step
            if noticed:
                house.write('hello\n')
                house.machine.pass_time(0.25)      # each has its moment
        house.turn()

    def jumps(self):
        return [step for step in self.steps if not isinstance(step, str)]


@pytest.fixture(params=sorted(CLOCKS))
def clock(request, monkeypatch):
    with contextlib.ExitStack() as zones:
        yield Clock(request.param, lambda name: zones.enter_context(zone(monkeypatch, name)))


@pytest.fixture
def house(tmp_path, clock):
    return House(tmp_path, machine=clock.machine(), maxretry=5)


@pytest.fixture
def desk(tmp_path, clock):
    return Desk(tmp_path, machine=clock.machine(Post()))


def left(house, ip='192.0.2.7'):
    """Seconds that an address has left by the ticket, by `banned` and by the state file, which agree; None if it is free."""
    rows = [row for row in house.ask('banned')['banned'] if row['ip'] == ip]
    now, state = house.machine.now, banwatch.load((house.folder / 'run' / 'state.json').read_text(), house.machine.clocks())
    on_file = [ticket.left(now) for ticket in state.tickets if ticket.network == ip]
    if not rows:
        assert not any(on_file)
        return None
    seconds = house.daemon.judge.bans.tickets['dropbear', ip].left(now)
    assert [rows[0]['left'], rows[0]['until'] - house.machine.time, on_file[0]] == pytest.approx([seconds] * 3, abs=0.1)
    return seconds


def about(seconds):
    return pytest.approx(seconds, abs=0.02)


# --- bans

def test_a_ban_ends_when_it_would_have(house, clock):
    house.fail('192.0.2.7', 5)
    house.pass_time(100)
    clock.set(house)
    assert left(house) == about(500)
    house.pass_time(MINUTE)
    clock.set(house)
    assert left(house) == about(440)
    house.pass_time(439)
    assert left(house) == about(1)
    house.pass_time(1)
    assert left(house) is None


def test_in_the_same_boot_a_restart_changes_nothing_about_that(house, clock):
    house.fail('192.0.2.7', 5)
    house.pass_time(100)
    for end, seconds in ((house.stop, 490), (house.crash, 480)):
        end()
        clock.set(house)
        house.machine.pass_time(10)
        house.restart()
        assert left(house) == about(seconds)
        clock.set(house)
        assert left(house) == about(seconds)


@pytest.mark.parametrize('saved, started, expected', [
    (WALL, WALL + 60, 440), (WALL, WALL - HOUR, 500), (WALL, IN_1970, 500), (IN_2000, WALL, 500), (WALL + YEARS, WALL, 500),
    (WALL, WALL + YEARS, 500), (WALL, WALL + 500, None)])
def test_after_a_reboot_a_ban_lasts_what_it_had_left_less_what_a_clock_that_can_be_true_says(tmp_path, saved, started, expected):
    machine = FakeMachine()
    machine.time = saved - 100
    house = House(tmp_path, machine=machine, bantime='10m')
    house.fail('192.0.2.7', 3)
    house.pass_time(100)
    house.stop()
    (tmp_path / 'run' / 'state.json').unlink()
    house.restart('boot-2', now=30.0, time=started)
    house.ask('status')
    house.daemon.store.save()
    assert left(house) == (expected and about(expected))
    house.machine.time = WALL + DAY                # NTP has answered
    house.turn()
    assert left(house) == (expected and about(expected))


SAVED = {'boot': 'a', 'ticks': 5000, 'wall': WALL}


@pytest.mark.parametrize('saved, clocks, seconds', [
    # the same boot: only the boot clock
    ({}, ('a', 5060, WALL), 60), ({}, ('a', 5060, WALL + YEARS), 60), ({}, ('a', 5060, IN_1970), 60), ({'wall': IN_1970}, ('a', 5060, WALL), 60),
    ({'wall': WALL + YEARS}, ('a', 5060, WALL), 60),
    # another one, both clocks can be true
    ({}, ('b', 9, WALL + 60), 60), ({}, ('b', 9999, WALL + 60), 60), ({}, ('b', 9, WALL), 0), ({'wall': SANE}, ('b', 9, SANE + 60), 60),
    # ... or one of them, or they contradict each other
    ({}, ('b', 9, WALL - 60), 0), ({}, ('b', 9, IN_1970), 0), ({}, ('b', 9, SANE - 1), 0), ({'wall': SANE - 1}, ('b', 9, WALL), 0),
    ({'wall': IN_2000}, ('b', 9, WALL), 0), ({'wall': IN_1970}, ('b', 9, IN_1970 + 60), 0), ({'wall': IN_2000}, ('b', 9, IN_2000 + 60), 0),
    ({'wall': WALL + YEARS}, ('b', 9, WALL), 0), ({'wall': -1e6}, ('b', 9, WALL), 0),
    ({}, ('b', 9, WALL + YEARS), 0), ({}, ('b', 9, WALL + 5 * 365 * DAY), 5 * 365 * DAY),
    # a boot clock that has gone back is another boot's, whatever its name
    ({}, ('a', 9, WALL + 60), 60), ({}, ('a', 9, IN_1970), 0)])
def test_seconds_that_have_passed_since_a_state_was_written(saved, clocks, seconds):
    assert banwatch.elapsed(dict(SAVED, **saved), clocks) == seconds


# --- failures and logins

def test_a_findtime_window_neither_opens_nor_closes(house, clock):
    for ip in ('192.0.2.7', '192.0.2.8', '192.0.2.9'):
        house.fail(ip, 4)
    house.pass_time(590)
    clock.set(house)
    house.fail('192.0.2.7')
    house.stop()
    clock.set(house)
    house.restart()
    house.fail('192.0.2.8')
    assert house.banned() == ['192.0.2.7', '192.0.2.8']
    house.pass_time(10)
    clock.set(house)
    house.fail('192.0.2.9')
    assert house.banned() == ['192.0.2.7', '192.0.2.8']


def test_a_login_forgives_for_an_hour_by_the_boot_clock(house, clock):
    house.fail('192.0.2.7', 2)
    clock.set(house)
    house.write(LOGIN)
    clock.set(house)
    house.pass_time(HOUR - 1)
    house.fail('192.0.2.7')
    assert house.ask('status', jail='dropbear')['jails'][0]['ignored'] == 1
    clock.set(house)
    house.pass_time(1)
    for _ in range(5):
        house.fail('192.0.2.7')
    assert house.banned() == ['192.0.2.7']


@pytest.mark.parametrize('wall', [IN_1970, IN_2000, WALL, WALL + YEARS])
def test_a_live_line_counts_as_now_whatever_either_clock_says(tmp_path, wall):
    machine = FakeMachine()
    machine.time = wall
    house = House(tmp_path, machine=machine, maxretry=5)
    for n, year in enumerate((1970, 2000, 2026, 2082, 2106)):
        assert house.banned() == []
        house.write(LINE.replace('2024', str(year)) % (n, '192.0.2.7'))
    assert house.banned() == ['192.0.2.7']


def logread_dated(machine, ago, ip='192.0.2.7'):
    when = time.strftime('%a %b %d %H:%M:%S %Y', time.localtime(machine.time - ago))
    return when + LINE[24:] % (ago, ip)


@pytest.mark.parametrize('line', [dated, logread_dated])
@pytest.mark.parametrize('shown', [IN_1970, WALL - DAY, WALL - HOUR, WALL + HOUR, WALL + YEARS])
def test_a_backlog_that_a_wrong_clock_cannot_place_bans_nobody(tmp_path, shown, line):
    machine, log = FakeMachine(), tmp_path / 'file'
    log.write_text(''.join(line(machine, ago) for ago in range(3000, 0, -400)))          # never three in ten minutes
    machine.time = shown
    house = House(tmp_path, '[dropbear]\nsource = %s\n' % log, machine=machine)
    house.turn()
    assert house.banned() == []
    with open(str(log), 'a') as f:                 # what is written from now on counts
        f.write(''.join(LINE % (n, '192.0.2.8') for n in range(3)))
    house.pass_time(1)
    assert house.banned() == ['192.0.2.8']


def test_lines_that_came_while_it_was_away_count_now_if_the_clock_cannot_place_them(tmp_path):
    machine, log = FakeMachine(), tmp_path / 'file'
    log.write_text('')
    house = House(tmp_path, '[dropbear]\nsource = %s\n' % log, machine=machine)
    house.stop()
    log.write_text(''.join(logread_dated(machine, 0) for _ in range(3)))
    house.restart(time=IN_1970)
    house.turn()
    assert house.banned() == ['192.0.2.7']


def test_history_is_forgotten_after_dbpurgeage_and_not_after_a_step(house, clock):
    house.fail('192.0.2.7', 5)
    house.pass_time(600)
    for wait in MINUTE, 29 * DAY:
        clock.set(house, noticed=True)
        house.pass_time(wait)
        assert house.daemon.judge.bans.history['dropbear', '192.0.2.7'][0] == 1
    house.pass_time(DAY)
    assert not house.daemon.judge.bans.history


# --- the report

def test_the_report_knows_its_period_its_hours_and_its_steps(desk, clock):
    desk.fail('192.0.2.7', 4)
    desk.write(LOGIN)
    desk.pass_time(2 * HOUR)
    desk.fail('192.0.2.8', 3)
    clock.set(desk, noticed=True)
    now, told = desk.machine.time, desk.summary()
    assert [told['seconds'], told['from'], told['to']] == pytest.approx([2 * HOUR, now - 2 * HOUR, now], abs=3)
    assert told['bans']['failures'] == sum(bar['failures'] for bar in told['hours']) == 7
    assert all(now - 3.5 * HOUR <= bar['start'] <= now for bar in told['hours'])
    assert [row['last'] for row in told['logins']] == pytest.approx([now - 2 * HOUR], abs=3) and told['logins'][0]['new']
    assert {row['ip']: row['last'] for row in told['addresses']} == pytest.approx({'192.0.2.7': now - 2 * HOUR, '192.0.2.8': now}, abs=3)
    assert sum(step['seconds'] for step in told['steps']) == pytest.approx(sum(clock.jumps()))
    for step in set(clock.jumps()[:1]):
        assert 'the clock was put %s by ' % ('forward' if step > 0 else 'back') in banwatch.about_text(told)
    assert ('the clock' in banwatch.about_text(told)) == bool(clock.jumps())


def test_each_step_is_told_once_with_its_length(tmp_path):
    desk = Desk(tmp_path)
    for step, said in ((HOUR, 'forward by 1h'), (-DAY, 'back by 1d'), (3, 'forward by 3s'), (1, None), (-1, None)):
        desk.machine.time += step
        desk.pass_time(MINUTE)
        assert said is None or desk.machine.said('the clock was put ' + said)
    assert [step['seconds'] for step in desk.summary()['steps']] == [HOUR, -DAY, 3]
    assert banwatch.about_text(desk.summary()).count('the clock was put') == 3
    desk.send()
    assert desk.summary()['steps'] == []


def test_what_a_mail_has_told_is_not_told_again_and_the_rest_not_lost(desk, clock):
    desk.machine.time = max(desk.machine.time, WALL)             # else it waits, see below
    desk.fail('192.0.2.7', 4)
    desk.write(LOGIN)
    desk.send()
    desk.fail('192.0.2.8', 3)
    clock.set(desk, noticed=True)
    desk.write(LOGIN)
    desk.pass_time(HOUR)
    desk.stop()
    clock.set(desk)
    desk.restart()
    told = desk.summary()
    assert told['bans']['failures'] == 3 and told['seconds'] == pytest.approx(HOUR, abs=3)
    assert [row['new'] for row in told['logins']] == [False] and told['logins'][0]['last'] == pytest.approx(told['to'] - HOUR, abs=3)
    desk.machine.time = max(desk.machine.time, WALL)
    desk.send()
    assert [re.search(r'\d+ failures', subject).group() for subject in desk.subjects()] == ['4 failures', '3 failures']
    desk.pass_time(DAY / 2 - 60)
    assert desk.failures() == 0 and not desk.send()['sent'] and len(desk.machine.posted) == 2


@pytest.mark.parametrize('end', ['stop', 'crash'])
@pytest.mark.parametrize('when', ['before', 'after'])
def test_a_step_just_before_it_ends_or_while_it_is_away_is_told_once(tmp_path, when, end):
    desk = Desk(tmp_path)
    desk.pass_time(MINUTE)
    desk.machine.time += YEARS * (when == 'before')
    getattr(desk, end)()
    desk.machine.time += YEARS * (when == 'after')
    desk.machine.pass_time(100)
    for _ in range(3):
        desk.restart()
        assert [step['seconds'] for step in desk.summary()['steps']] == [YEARS]
        getattr(desk, end)()


def test_after_a_reboot_there_is_no_telling_a_step_from_another_clock(tmp_path):
    desk = Desk(tmp_path)
    desk.stop()
    desk.restart('boot-2', now=30.0, time=WALL + HOUR)
    assert desk.summary()['steps'] == []


@pytest.mark.parametrize('shown, meanwhile', [
    (IN_1970, 'nothing'), (IN_2000, 'nothing'), (SANE - HOUR, 'nothing'), (IN_1970, 'stop'), (IN_1970, 'crash'), (IN_2000, 'reboot'), (IN_1970, 'reboots')])
def test_a_report_asked_for_before_the_clock_is_set_waits_for_that_and_goes_once(tmp_path, shown, meanwhile):
    desk = Desk(tmp_path)
    desk.fail('192.0.2.7', 4)
    desk.stop()
    desk.restart('boot-2', now=30.0, time=shown)
    assert desk.send()['problem'] == 'the clock is not set yet'
    desk.pass_time(10)
    if meanwhile in ('stop', 'crash'):
        getattr(desk, meanwhile)()
        desk.restart()
    for n in range({'reboot': 1, 'reboots': 2}.get(meanwhile, 0)):
        desk.stop()
        desk.restart('boot-%d' % (n + 3), now=30.0, time=shown)
    desk.pass_time(30)
    assert desk.machine.posted == []
    desk.machine.time = WALL
    for _ in range(24):
        desk.pass_time(HOUR)
    assert [subject.partition(' —')[0] for subject in desk.subjects()] == ['1 warning, ' * (meanwhile == 'crash') + '4 failures']
    assert desk.mails()[0]['Date'].datetime.timestamp() <= WALL + HOUR
    assert meanwhile != 'nothing' or 'the clock was put forward' in re.sub(r'\s+', ' ', bodies(desk.mails()[0])[0])


@pytest.mark.parametrize('boots', [[WALL + YEARS, WALL], [WALL + YEARS, IN_1970, IN_2000, WALL, WALL + 50 * YEARS, WALL]])
def test_boots_with_clocks_of_all_centuries_lose_nothing_of_a_report(tmp_path, boots):
    desk = Desk(tmp_path)
    desk.fail('192.0.2.7', 4)
    desk.write(LOGIN)
    for n, shown in enumerate(boots, 2):
        desk.stop()
        desk.restart('boot-%d' % n, now=30.0, time=shown)
    told = desk.summary()
    assert told['bans']['failures'] == 4 and told['logins'] and told['addresses'] and told['reboots'] == len(boots)
    assert not desk.machine.said('could not be read')
    assert banwatch.report_text(told)


# --- real daemons, whose wall clock alone is another one

@pytest.fixture
def set_clock(tmp_path, monkeypatch):
    """A function that sets the wall clock of all that is started from here: set_clock(when)."""
    found = glob.glob('/usr/lib/*/faketime/libfaketime.so.1')
    if not found:
        need('libfaketime')
    now = tmp_path / 'clock'

    def sets(when):
        (tmp_path / 'clock.new').write_text('%+f' % (when - time.time()))
        (tmp_path / 'clock.new').rename(now)
    sets(WALL)
    for name, value in (('LD_PRELOAD', found[0]), ('FAKETIME_TIMESTAMP_FILE', str(now)), ('FAKETIME_NO_CACHE', '1'),
                        ('FAKETIME_DONT_FAKE_MONOTONIC', '1'), ('NO_FAKE_STAT', '1')):
        monkeypatch.setenv(name, value)
    there = set(glob.glob('/dev/shm/*faketime_s*'))
    yield sets
    for path in set(glob.glob('/dev/shm/*faketime_s*')) - there:      # of processes that were killed, or became others
        with contextlib.suppress(OSError):
            os.unlink(path)


def one_ban(answer, shown):
    """When the one ban ends, by the boot clock, as `banned` tells it while the wall clock shows that."""
    (row,) = answer
    assert [row['until'] - row['left'], row['until'] - row['since']] == [pytest.approx(shown, abs=5), pytest.approx(600, abs=2)]
    return time.clock_gettime(time.CLOCK_BOOTTIME) + row['left']


@pytest.mark.slow
def test_a_real_daemon_and_its_commands_take_steps_of_decades_and_of_an_hour_during_a_ban(tmp_path, set_clock):
    (tmp_path / 'sendmail').write_text('#!/bin/sh\ncat >>%s/mail\n' % tmp_path)
    (tmp_path / 'sendmail').chmod(0o755)
    set_clock(IN_1970)
    running = Running(tmp_path, '[report]\nsendmail = %s/sendmail\n' % tmp_path, maxretry=3)
    with contextlib.closing(running):
        running.fail('192.0.2.7')
        running.until(lambda: running.json('banned', '--json'), 'the ban')
        end = one_ban(running.json('banned', '--json'), IN_1970)
        sent = running.command('report', '--send')
        assert sent.returncode == 1 and 'the clock is not set yet' in sent.stdout + sent.stderr
        for shown in WALL, WALL - HOUR:
            set_clock(shown)
            running.command('report')                      # it looks at the clock, as each line of the log and each minute do
            assert one_ban(running.json('banned', '--json'), shown) == pytest.approx(end, abs=2)
        running.process.kill()
        running.process.wait(5)
        set_clock(WALL + HOUR)
        running.start()
        assert one_ban(running.json('banned', '--json'), WALL + HOUR) == pytest.approx(end, abs=2)
        assert running.json('status', '--json')['bans'] == 1 and 'restored 1 ban' in running.said()
        told = running.json('report', '--json')
        assert [step['seconds'] for step in told['steps']] == pytest.approx([WALL - IN_1970, -HOUR, 2 * HOUR], abs=20)
        assert 0 <= told['seconds'] < 20 and told['to'] == pytest.approx(WALL + HOUR, abs=10) and told['bans']['failures'] == 3
        assert running.command('report', '--send').returncode == 0 and running.json('report', '--json')['steps'] == []
        assert (tmp_path / 'mail').read_text().count('Subject: ') == 1


@pytest.mark.slow
@pytest.mark.parametrize('firewall, listing', [('ipset', ['ipset', 'save']), ('nft', ['nft', '-j', 'list', 'ruleset'])])
def test_a_step_leaves_the_kernels_own_countdown_alone(network, daemon, set_clock, firewall, listing):
    need(*listing[:1])
    set_clock(IN_1970)
    banwatch_ = daemon(firewall=firewall, bantime='10m')

    def end():
        """When the kernel sets the address free, by the boot clock."""
        left = re.findall(r'192\.0\.2\.7\b[^\n]*?(?: timeout |"expires": )(\d+)', network.router.output(listing))
        return time.clock_gettime(time.CLOCK_BOOTTIME) + int(left[0]) if left else None
    network.router.output(banwatch_.argv('ban', '192.0.2.7'))
    before = end()
    for shown in WALL, WALL - HOUR:
        set_clock(shown)
        network.router.output(banwatch_.argv('ban', '-t', '1h', '192.0.2.8'))           # a batch, with the new clock
        assert end() == pytest.approx(before, abs=2)
    banwatch_.kill()
    set_clock(WALL + YEARS)
    banwatch_.start()
    assert end() == pytest.approx(before, abs=2) and banwatch_.bans('192.0.2.7')
