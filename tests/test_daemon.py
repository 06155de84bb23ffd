"""The daemon in this process: real files, real sockets and pipes; the clock, the programs and the log are the test's."""
import json
import os
import resource
import socket
import time

import pytest

import banwatch
from harness import LINE, FakeMachine, House, turn


@pytest.fixture
def house(tmp_path):
    return House(tmp_path)


@pytest.fixture
def make(tmp_path):
    return lambda *args, **more: House(tmp_path, *args, **more)


# --- from a line to a ban, and to its end

def test_three_failures_ban_and_the_ban_ends(house):
    house.fail('192.0.2.7', 2)
    assert house.banned() == []
    house.fail('192.0.2.7')
    assert house.banned() == ['192.0.2.7']
    assert house.machine.said('[dropbear] ban 192.0.2.7 for 10m (3 failures, ban number 1)')
    house.pass_time(599)
    assert house.banned() == ['192.0.2.7']
    house.pass_time(1)
    assert house.banned() == [] and house.machine.said('unban 192.0.2.7 (its time is over)')


def test_the_second_ban_is_longer(house):
    for until in (600, 1200):
        house.fail('192.0.2.7', 3)
        assert house.ask('banned')['banned'][0]['left'] == until
        house.pass_time(until)


def test_live_lines_count_as_now_whatever_their_date(house):
    house.fail('192.0.2.7', 2)                     # the line says 2024
    house.pass_time(599)
    house.fail('192.0.2.7')
    assert house.banned() == ['192.0.2.7']


def test_maxbans_holds_and_status_says_when_it_bites(house):
    house.more = 'maxbans = 2\n'
    house.ask('reload')
    for n in range(3):
        house.fail('192.0.2.%d' % n, 3)
        house.pass_time(1)
    assert house.banned() == ['192.0.2.1', '192.0.2.2']
    assert house.ask('status')['wrong'] == ['maxbans is reached: 1 ban lifted before their time']


def test_who_attacks_now_is_banned_though_others_fill_the_table_for_ever(house):
    house.more = 'maxbans = 3\n'
    house.ask('reload')
    assert 'full' not in house.ask('ban', networks=['198.51.100.1', '198.51.100.2'], seconds=-1)
    assert house.ask('ban', networks=['198.51.100.3'], seconds=-1)['full'] == (
        'maxbans is reached: each further ban lifts that of whoever has been silent longest')
    house.pass_time(5)
    for n in range(7, 9):
        house.fail('192.0.2.%d' % n, 3)
        assert '192.0.2.%d' % n in house.banned() and len(house.banned()) == 3
    assert house.banned() == ['192.0.2.7', '192.0.2.8', '198.51.100.3']
    house.fail('192.0.2.7')                          # it is not silent
    house.pass_time(1)
    for n in range(4):
        house.ask('ban', networks=['198.51.100.%d' % (90 + n)], seconds=60)
        if n < 2:
            assert '192.0.2.7' in house.banned()
    assert '192.0.2.7' not in house.banned()


def test_one_ban_more_than_there_is_room_for_is_told_at_once(house):
    house.more = 'maxbans = 2\n'
    house.ask('reload')
    answer = house.ask('ban', networks=['198.51.100.%d' % n for n in range(1, 4)], seconds=60)
    assert answer['refused'] == ['198.51.100.1: lifted again: maxbans is reached'] and answer['full']


def test_after_a_restart_the_oldest_bans_go_first(house):
    for n, seconds in ((1, 900), (2, 100), (3, 500)):
        house.ask('ban', networks=['198.51.100.%d' % n], seconds=seconds)
        house.pass_time(1)
    house.stop()
    house.more = 'maxbans = 2\n'
    house.restart()
    assert house.banned() == ['198.51.100.2', '198.51.100.3']


def test_a_ban_by_hand_is_answered_in_time_by_a_firewall_that_is_not(tmp_path):
    machine = FakeMachine()
    house = House(tmp_path, firewall='nft', machine=machine)
    machine.run = lambda command, done, seconds=10: None
    answers = []
    house.daemon.answer({'do': 'ban', 'networks': ['198.51.100.7']}, answers.append)
    house.turn()
    house.pass_time(banwatch.ANSWER_SECONDS - 1)
    assert answers == []
    house.pass_time(2)
    assert len(answers) == 1 and 'nft does not answer yet' in json.dumps(answers)


def test_little_ram_means_fewer_bans(tmp_path):
    machine = FakeMachine()
    machine.memory = lambda: (10000, 64000)
    house = House(tmp_path, machine=machine)
    assert house.daemon.judge.bans.limit == 6400


# --- what must never be banned

def test_an_address_that_becomes_ours_is_released_within_a_minute(house):
    house.fail('203.0.113.254', 3)
    assert house.banned() == ['203.0.113.254']
    house.machine.nets = [banwatch.make_exempt('203.0.113.254', 'a gateway')]
    house.pass_time(60)
    assert house.banned() == [] and house.machine.said('overlaps 203.0.113.254 (a gateway)')


def test_a_restored_ban_that_overlaps_ours_is_released(house):
    house.fail('192.168.1.7', 3)
    assert house.banned() == ['192.168.1.7']
    house.crash()
    house.restart(nets=[banwatch.make_exempt('192.168.1.0/24', 'the LAN')])
    assert house.banned() == []


@pytest.mark.parametrize('net, why', [
    ('192.168.1.77', 'overlaps 192.168.1.0/24 (the LAN)'), ('192.168.0.0/16', 'overlaps 192.168.1.0/24 (the LAN)'),
    ('0.0.0.0/0', 'overlaps 192.168.1.0/24 (the LAN)'), ('::/0', 'overlaps'), ('127.0.0.1', 'overlaps 127.0.0.0/8'),
    ('fe80::1', 'overlaps fe80::/10 (link-local)')])
def test_a_ban_by_hand_of_ours_is_refused_with_the_reason(house, net, why):
    house.machine.nets = [banwatch.make_exempt('192.168.1.0/24', 'the LAN')]
    house.pass_time(60)
    answer = house.ask('ban', networks=[net], seconds=60)
    assert answer['banned'] == [] and answer['refused'][0].startswith('%s: not banned: overlaps ' % net)
    if net != '0.0.0.0/0':
        assert why in answer['refused'][0]


def test_rules_are_rendered_without_what_is_ours_even_if_a_ticket_slipped_in(tmp_path):
    house = House(tmp_path, firewall='iptables')
    house.machine.nets = [banwatch.make_exempt('192.168.1.0/24', 'the LAN')]
    house.daemon.protect()
    house.daemon.judge.bans.put(banwatch.Ticket('sshd', '192.168.1.7', 0, None, 1, 5), 0)
    assert house.daemon.wall.syncs[0].wanted() == {}


def test_if_netlink_fails_the_last_known_networks_stay_protected(house):
    house.machine.nets = [banwatch.make_exempt('192.168.1.0/24', 'the LAN')]
    house.pass_time(60)

    def broken():
        raise OSError(1, 'no netlink')
    house.machine.networks = broken
    house.pass_time(60)
    house.fail('192.168.1.7', 9)
    assert house.banned() == []
    assert 'netlink: the addresses of this machine are not known: no netlink' in house.ask('status')['wrong']


# --- by hand

def test_ban_and_unban_by_hand(house):
    answer = house.ask('ban', networks=['192.0.2.7', '198.51.100.0/24'], seconds=3600)
    assert answer == {'banned': ['192.0.2.7', '198.51.100.0/24'], 'seconds': 3600, 'refused': [], 'trouble': ''}
    assert {row['jail'] for row in house.ask('banned')['banned']} == {'manual'}
    answer = house.ask('unban', networks=['198.51.100.77', '203.0.113.9'])
    assert answer == {'unbanned': ['198.51.100.0/24'], 'missing': ['203.0.113.9'], 'listed': [], 'trouble': ''}
    assert house.banned() == ['192.0.2.7']


def test_a_ban_by_hand_for_ever_and_one_over_the_cap(house):
    assert house.ask('ban', networks=['192.0.2.7'], seconds=-1)['seconds'] == -1
    assert house.ask('banned')['banned'][0]['until'] is None
    assert house.ask('ban', networks=['192.0.2.8'], seconds=10 ** 8)['seconds'] == 4 * 604800


def test_a_ban_by_hand_again_sets_a_new_end(house):
    house.ask('ban', networks=['192.0.2.7'], seconds=3600)
    house.ask('ban', networks=['192.0.2.7'], seconds=60)
    rows = house.ask('banned')['banned']
    assert len(rows) == 1 and rows[0]['left'] == 60 and rows[0]['count'] == 1


def test_unban_lifts_in_every_jail_forgets_failures_and_keeps_history(house):
    house.fail('192.0.2.7', 3)
    house.ask('ban', jail='sshd', networks=['192.0.2.7'], seconds=60)
    house.daemon.judge.fails.add(('luci', '192.0.2.7'), house.machine.now, 2, 600, 5)
    house.ask('unban', networks=['192.0.2.7'])
    assert house.banned() == [] and not house.daemon.judge.fails.recent
    assert house.daemon.judge.bans.history['dropbear', '192.0.2.7'][0] == 1


def test_unban_in_one_jail_leaves_the_others(house):
    house.fail('192.0.2.7', 3)
    house.ask('ban', jail='sshd', networks=['192.0.2.7'], seconds=60)
    house.ask('unban', jail='sshd', networks=['192.0.2.7'])
    assert [row['jail'] for row in house.ask('banned')['banned']] == ['dropbear']


def test_unban_all(house):
    house.ask('ban', networks=['192.0.2.7', '192.0.2.8', '2001:db8::/48'], seconds=60)
    assert len(house.ask('unban', networks=[], all=True)['unbanned']) == 3 and house.banned() == []


def test_unban_of_an_address_inside_a_banned_64(house):
    house.fail('2001:db8:5::7', 3)
    assert house.banned() == ['2001:db8:5::/64']
    assert house.ask('unban', networks=['2001:db8:5::1234'])['unbanned'] == ['2001:db8:5::/64']


@pytest.mark.parametrize('request_', [
    {}, {'do': 'x'}, {'do': 'ban'}, {'do': 'ban', 'networks': 5}, {'do': 'ban', 'networks': ['1.2.3.4; x']},
    {'do': 'ban', 'networks': ['192.0.2.7'], 'seconds': 'x'}, {'do': 'ban', 'networks': [['x']], 'seconds': 5},
    {'do': 'ban', 'networks': ['192.0.2.7'], 'jail': 'nope'}, {'do': 'status', 'jail': ['x']}, {'do': ['x']},
    {'do': 'unban', 'networks': None}, {'do': 'banned', 'jail': 'nope'}])
def test_a_senseless_request_gets_an_error_and_changes_nothing(house, request_):
    answers = []
    house.daemon.answer(request_, answers.append)
    house.turn()
    assert answers[0]['error'] and house.banned() == []


# --- crash and restart

def test_what_banned_has_shown_a_sigkill_does_not_lose(house):
    house.fail('192.0.2.7', 3)
    assert house.banned() == ['192.0.2.7']
    house.crash()
    house.restart()
    assert house.banned() == ['192.0.2.7'] and house.machine.said('restored 1 ban')


def test_what_ban_has_answered_a_sigkill_does_not_lose(house):
    house.ask('ban', networks=['192.0.2.7'], seconds=3600)
    house.crash()
    house.restart()
    assert house.banned() == ['192.0.2.7']


def test_what_unban_has_answered_does_not_come_back(house):
    house.ask('ban', networks=['192.0.2.7'], seconds=3600)
    house.ask('unban', networks=['192.0.2.7'])
    house.crash()
    house.restart()
    assert house.banned() == []


def test_after_a_second_nothing_is_lost_at_all(house):
    house.fail('192.0.2.7', 2)
    house.pass_time(1)
    house.crash()
    house.restart()
    house.fail('192.0.2.7', 1)
    assert house.banned() == ['192.0.2.7']


def test_a_restored_ban_lasts_just_as_long_as_it_had_left(house):
    house.fail('192.0.2.7', 3)
    house.banned()
    house.crash()
    house.machine.pass_time(100)
    house.restart()
    assert house.ask('banned')['banned'][0]['left'] == 500
    house.pass_time(500)
    assert house.banned() == []


def test_a_ban_that_ended_meanwhile_is_not_restored(house):
    house.fail('192.0.2.7', 3)
    house.banned()
    house.crash()
    house.machine.pass_time(601)
    house.restart()
    assert house.banned() == []
    house.fail('192.0.2.7', 3)
    assert house.ask('banned')['banned'][0]['count'] == 2


def test_a_reboot_restores_from_the_kept_copy(house):
    house.fail('192.0.2.7', 3)
    house.stop()
    os.unlink(str(house.folder / 'run' / 'state.json'))
    house.restart(boot='boot-2', now=20.0)
    assert house.banned() == ['192.0.2.7']


def test_power_loss_loses_at_most_save(house):
    house.fail('192.0.2.7', 3)
    house.daemon.judge.bans.tickets['dropbear', '192.0.2.7'].until = None
    house.pass_time(3599)
    assert not (house.folder / 'state').exists()
    house.pass_time(1)
    assert (house.folder / 'state').exists()


def test_a_torn_live_state_is_put_aside_and_the_kept_one_used(house):
    house.fail('192.0.2.7', 3)
    house.stop()
    live = house.folder / 'run' / 'state.json'
    live.write_text(live.read_text()[:-20])
    house.restart()
    assert house.banned() == ['192.0.2.7']
    assert (house.folder / 'run' / 'state.json.bad').exists() and house.machine.said('cannot be used')


@pytest.mark.parametrize('text', [b'', b'\n', bytes(4096), b'[1,2]', b'""', b'{"banwatch":1', b'\xff\xfe'])
@pytest.mark.parametrize('torn', ['run/state.json', 'state'])
def test_whatever_a_state_file_holds_it_is_put_aside_and_the_other_one_used(house, torn, text):
    house.fail('192.0.2.7', 3)
    house.stop()
    (house.folder / torn).write_bytes(text)
    house.restart()
    assert house.banned() == ['192.0.2.7']
    assert (house.folder / (torn + '.bad')).read_bytes() == text and house.machine.said('cannot be used')


def test_with_two_empty_states_it_starts_with_nothing(house):
    house.fail('192.0.2.7', 3)
    house.stop()
    for torn in 'run/state.json', 'state':
        (house.folder / torn).write_bytes(b'')
    house.restart()
    assert house.banned() == []
    house.fail('192.0.2.8', 3)
    assert house.banned() == ['192.0.2.8']


def test_two_hostile_states_do_not_stop_the_start(house):
    house.stop()
    for path in (house.folder / 'run' / 'state.json', house.folder / 'state'):
        path.write_text('{"banwatch":1,"bans":[["dropbear","0.0.0.0/0",-1,0,1,1],["dropbear","127.0.0.1",-1,0,1,1],["nojail","192.0.2.1",-1,0,1,1]]}')
    house.restart()
    assert house.banned() == []


def full_runtime(house):
    """From now on nothing can be written into `runtime`, as where /tmp is full."""
    write = house.machine.replace

    def replace(path, *more):
        if '/run/' in path:
            raise OSError(28, 'No space left on device')
        write(path, *more)
    house.machine.replace = replace


def test_a_restart_with_a_full_tmp_loses_no_ban(house):
    house.fail('192.0.2.7', 3)
    house.fail('192.0.2.9', 2)
    house.pass_time(5)
    full_runtime(house)
    house.pass_time(5)
    house.fail('192.0.2.8', 3)
    house.ask('unban', networks=['192.0.2.7'])
    house.stop()
    house.restart()
    assert house.banned() == ['192.0.2.8']
    assert house.daemon.judge.fails.recent.keys() == {('dropbear', '192.0.2.9')}, 'failures are in the live state alone'
    assert not [key for key in house.daemon.wing('report').tally['incidents'] if 'killed' in key[1]]


def test_a_kept_state_that_was_written_with_the_live_one_is_not_the_newer_one(house):
    house.fail('192.0.2.7', 3)
    house.fail('192.0.2.9', 2)
    ticks = type(house.machine).ticks
    house.machine.ticks = lambda: setattr(house.machine, 'now', house.machine.now + 0.4) or ticks(house.machine)
    house.daemon.store.save_all()
    with open(str(house.folder / 'state')) as kept, open(str(house.folder / 'run' / 'state.json')) as live:
        assert json.load(kept)['ticks'] == json.load(live)['ticks']


def test_idle_time_writes_nothing(house):
    house.pass_time(5)
    written = house.machine.written
    for _ in range(120):
        house.pass_time(60)
    assert house.machine.written == written


def test_a_thousand_bans_write_little_to_flash(house):
    for n in range(0, 1000, 10):
        house.write(''.join(LINE % (k, '10.0.%d.%d' % (k >> 8, k & 255)) for k in range(n, n + 10) for _ in range(3)))
        house.pass_time(5)
    house.pass_time(3600)
    assert 0 < (house.folder / 'state').stat().st_size < 120000


def test_a_full_disk_is_one_warning_and_no_loss(house):
    def full(path, text):
        raise OSError(28, 'No space left on device')
    house.machine.replace = full
    for n in range(5):
        house.fail('192.0.2.%d' % n, 3)
        house.pass_time(2)
    assert len(house.banned()) == 5
    assert sum('No space left' in line for line in house.machine.logged) == 1
    assert house.ask('status')['wrong'][0].endswith('not saved: No space left on device')
    del house.machine.replace
    house.pass_time(30)
    house.fail('192.0.2.99', 3)
    house.pass_time(30)
    assert house.ask('status')['wrong'] == []


# --- the firewall

class Programs:
    """A stand-in for iptables whose answers the test chooses."""

    def __init__(self, machine):
        self.problem, self.listing = {}, '-P INPUT ACCEPT\n-P FORWARD ACCEPT\n'
        self.machine = machine
        machine.answer = self.answer

    def answer(self, command):
        name = command.argv[0]
        return self.problem.get(name, ''), self.listing if '-S' in command.argv else ''

    def restores(self, name='iptables-restore'):
        return [c.stdin for c in self.machine.ran if c.argv[0] == name]


@pytest.fixture
def walled(tmp_path):
    machine = FakeMachine()
    programs = Programs(machine)
    house = House(tmp_path, firewall='iptables', machine=machine)
    house.programs = programs
    return house


def test_all_bans_of_one_turn_are_one_batch(walled):
    before = len(walled.programs.restores())
    walled.write(''.join(LINE % (n, '10.0.%d.%d' % (n >> 8, n & 255)) for n in range(150) for _ in range(3)))
    batches = walled.programs.restores()[before:]
    assert len(batches) == 1 and batches[0].count('-j DROP') == 150


def test_restored_bans_go_into_the_kernel_in_one_batch(tmp_path):
    house = House(tmp_path)
    for n in range(20):
        house.fail('10.0.0.%d' % n, 3)
    house.stop()
    house.firewall = 'iptables'
    machine = FakeMachine()
    programs = Programs(machine)
    house.machine = machine
    house.start()
    assert [text.count('-j DROP') for text in programs.restores()] == [20]


def test_bans_by_hand_have_a_section_of_their_own(make):
    house = make('[manual]\nbantime = 5m\n')
    assert house.ask('ban', networks=['192.0.2.7'])['seconds'] == 300


def test_failures_that_name_a_host_are_told(house):
    house.write('Nov 20 13:00:00 h sshd[1]: error: PAM: Authentication failure for root from host.example\n')
    assert house.ask('status')['wrong'] == ['sshd: 1 failure named a host instead of an address; names are not looked up (sshd: set `UseDNS no`)']


def test_a_failing_firewall_is_told_once_shown_and_tried_again_and_nothing_is_lost(walled):
    walled.programs.problem['iptables-restore'] = 'iptables-restore: Memory allocation problem.'
    walled.fail('192.0.2.7', 3)
    for _ in range(20):
        walled.pass_time(5)
    assert sum('Memory allocation' in line for line in walled.machine.logged) == 1
    assert walled.ask('status')['wrong'] == ['iptables: iptables-restore: Memory allocation problem.']
    assert walled.banned() == ['192.0.2.7']
    walled.programs.problem.clear()
    walled.pass_time(60)
    assert '192.0.2.7/32 -j DROP' in walled.programs.restores()[-1]
    assert walled.machine.said('iptables: works again') and walled.ask('status')['wrong'] == []


def test_ban_by_hand_tells_of_the_firewalls_trouble(walled):
    walled.programs.problem['iptables-restore'] = 'iptables-restore: no'
    assert walled.ask('ban', networks=['192.0.2.7'], seconds=60)['trouble'] == 'iptables-restore: no'
    assert walled.ask('ban', networks=['192.0.2.8'], seconds=60)['trouble'] == 'iptables-restore: no'
    assert walled.ask('ban', networks=['2001:db8::8'], seconds=60)['trouble'] == ''


def test_a_missing_ip6tables_never_stops_ipv4(tmp_path):
    machine = FakeMachine()
    programs = Programs(machine)
    programs.problem['ip6tables'] = 'ip6tables is not installed'
    house = House(tmp_path, firewall='iptables', machine=machine)
    house.fail('192.0.2.7', 3)
    assert '192.0.2.7/32 -j DROP' in programs.restores()[-1]
    assert house.ask('status')['wrong'] == ['ip6tables: ip6tables is not installed']


def test_every_minute_the_kernel_is_compared_and_mended_and_that_is_said(walled):
    walled.fail('192.0.2.7', 3)
    ran = len(walled.machine.ran)
    walled.pass_time(60)
    assert walled.machine.ran[ran].argv == ['iptables', '-w', '5', '-S', '-v']
    assert walled.machine.said('iptables: repaired (INPUT rule missing, FORWARD rule missing, chain banwatch missing)')


def test_nothing_is_run_in_between(walled):
    ran = len(walled.machine.ran)
    for _ in range(59):
        walled.pass_time(1)
    assert len(walled.machine.ran) == ran


def test_while_a_batch_is_under_way_the_next_ones_gather(walled):
    waiting = []
    walled.machine.run = lambda command, done, seconds=10: (walled.machine.ran.append(command), waiting.append(done))
    ran = len(walled.machine.ran)
    for n in range(5):
        walled.fail('192.0.2.%d' % n, 3)
    assert len(walled.machine.ran) == ran + 1
    waiting.pop()('', '')
    walled.turn()
    assert len(walled.machine.ran) == ran + 2 and walled.machine.ran[-1].stdin.count('-j DROP') == 5


def test_the_answer_to_a_ban_waits_for_the_kernel(walled):
    waiting, answers = [], []
    walled.machine.run = lambda command, done, seconds=10: waiting.append(done)
    walled.daemon.answer({'do': 'ban', 'networks': ['192.0.2.7'], 'seconds': 60}, answers.append)
    walled.turn()
    assert not answers
    waiting.pop()('', '')
    walled.turn()
    assert answers[0]['banned'] == ['192.0.2.7']


def test_stop_saves_tidies_up_and_ends(walled):
    walled.fail('192.0.2.7', 3)
    walled.programs.listing = '-A INPUT -j banwatch\n-N banwatch\n'
    walled.daemon.stop()
    walled.turn()
    assert walled.daemon.stopping
    assert '-D INPUT -j banwatch' in walled.programs.restores()[-1] and '-X banwatch' in walled.programs.restores()[-1]
    assert '192.0.2.7' in (walled.folder / 'state').read_text()
    assert not (walled.folder / 'run' / 'control').exists()


def test_a_firewall_that_fails_once_at_the_stop_is_tried_again(walled):
    walled.programs.listing = '-A INPUT -j banwatch\n-N banwatch\n'
    walled.programs.problem['iptables'] = 'iptables: Resource temporarily unavailable.'
    walled.daemon.stop()
    walled.turn()
    assert not walled.daemon.stopping
    walled.programs.problem.clear()
    walled.pass_time(2)
    assert walled.daemon.stopping and not walled.daemon.left_behind
    assert '-X banwatch' in walled.programs.restores()[-1]


def test_a_stop_after_many_failures_is_tried_again_soon(walled):
    walled.programs.listing = '-A INPUT -j banwatch\n-N banwatch\n'
    walled.programs.problem.update({'iptables': 'iptables: no', 'ip6tables': 'ip6tables: no'})
    for _ in range(5):
        walled.pass_time(60)
    walled.daemon.stop()
    walled.turn()
    walled.programs.problem.clear()
    walled.pass_time(2)
    assert walled.daemon.stopping and not walled.daemon.left_behind


def test_who_waits_for_a_firewall_that_is_parted_with_gets_an_answer(walled):
    held, answers = [], []
    walled.machine.run = lambda command, done, seconds=10: held.append(done)
    walled.daemon.answer({'do': 'ban', 'networks': ['192.0.2.7'], 'seconds': 60}, answers.append)
    walled.daemon.answer({'do': 'ban', 'networks': ['192.0.2.8'], 'seconds': 60}, answers.append)
    walled.turn()
    walled.firewall = 'none'
    walled.ask('reload')
    while held:
        held.pop(0)('', '')
        walled.turn()
    assert [answer['banned'] for answer in answers] == [['192.0.2.7'], ['192.0.2.8']]


def test_rules_that_could_not_be_taken_out_are_told(walled):
    walled.programs.problem['iptables'] = 'iptables: no'
    walled.daemon.stop()
    for _ in range(10):
        walled.pass_time(1)
    assert walled.daemon.stopping and walled.daemon.left_behind == ['iptables']
    assert walled.machine.said('iptables: not all could be taken out')


def test_a_firewall_that_never_worked_does_not_delay_the_stop(tmp_path):
    machine = FakeMachine()
    programs = Programs(machine)
    programs.problem['ip6tables'] = 'ip6tables is not installed'
    house = House(tmp_path, firewall='iptables', machine=machine)
    house.daemon.stop()
    house.turn()
    assert house.daemon.stopping and not house.daemon.left_behind


def test_a_ban_that_ends_while_stopping_brings_no_rules_back(walled):
    walled.fail('192.0.2.7', 3)
    held = []
    answer, walled.machine.run = walled.machine.run, lambda command, done, seconds=10: (
        held.append((command, done)) if command.argv[0] == 'ip6tables' else FakeMachine.run(walled.machine, command, done))
    walled.daemon.stop()
    walled.turn()
    ran = len(walled.machine.ran)
    walled.pass_time(601)
    assert len(walled.machine.ran) == ran


def test_a_quick_change_of_mind_about_the_firewall_ends_with_rules(walled):
    walled.fail('192.0.2.7', 3)
    held = []
    walled.machine.run = lambda command, done, seconds=10: held.append((command, done))
    for firewall in ('none', 'iptables'):
        walled.firewall = firewall
        walled.ask('reload')
    restores = []
    while held:
        command, done = held.pop(0)
        if command.argv[0] == 'iptables-restore':
            restores.append(command.stdin)
        done('', '-A INPUT -j banwatch\n-N banwatch\n' if '-S' in command.argv else '')
        walled.turn()
    assert '192.0.2.7/32 -j DROP' in restores[-1] and '-X banwatch\n' not in restores[-1]


def test_without_a_free_descriptor_the_socket_rests_for_a_second(house):
    class Full:
        def accept(self):
            raise OSError(24, 'Too many open files')
    control = house.daemon.control
    real, control.sock = control.sock, Full()
    control.sock.fileno = real.fileno
    control.accept()
    assert real not in house.daemon.loop.selector.get_map()
    control.sock = real
    house.pass_time(1)
    assert real in house.daemon.loop.selector.get_map()


def test_a_socket_that_somebody_removed_does_not_keep_the_daemon_from_stopping(house):
    os.unlink(str(house.folder / 'run' / 'control'))
    house.daemon.stop()
    house.turn()
    assert house.daemon.stopping


def test_stop_does_not_wait_for_ever(walled):
    walled.machine.run = lambda command, done, seconds=10: None
    walled.daemon.stop()
    walled.turn()
    assert not walled.daemon.stopping
    walled.pass_time(banwatch.STOP_SECONDS)
    assert walled.daemon.stopping


# --- reload

def test_a_reload_keeps_bans_and_counts_and_takes_the_new_options(house):
    house.fail('192.0.2.7', 3)
    house.fail('192.0.2.8', 2)
    house.defaults['maxretry'] = 5
    house.daemon.signalled(banwatch.signal.SIGHUP)
    house.turn()
    assert house.banned() == ['192.0.2.7']
    house.fail('192.0.2.8', 2)
    assert house.banned() == ['192.0.2.7']
    house.fail('192.0.2.8')
    assert house.banned() == ['192.0.2.7', '192.0.2.8']
    assert house.machine.said('reloaded c')


def test_an_invalid_conf_changes_nothing_and_is_told(house):
    house.fail('192.0.2.7', 3)
    house.defaults['maxretry'] = 'x'
    house.daemon.signalled(banwatch.signal.SIGHUP)
    assert house.machine.said("reload refused, nothing has changed: c:7: maxretry: 'x' is not a number")
    assert house.ask('reload')['code'] == 78
    house.fail('192.0.2.8', 3)
    assert house.banned() == ['192.0.2.7', '192.0.2.8']


def test_ignoreip_added_while_banned_lifts_the_ban_at_reload(house):
    house.fail('192.0.2.7', 3)
    house.defaults['ignoreip'] = '192.0.2.0/24'
    house.ask('reload')
    assert house.banned() == []


def test_a_jail_that_is_switched_off_releases_its_bans(house):
    house.fail('192.0.2.7', 3)
    house.text = '[dropbear]\nenabled = false\n'
    house.ask('reload')
    assert house.banned() == [] and house.machine.said('this jail is off')


def test_a_reload_opens_new_sources_closes_old_ones_and_leaves_the_rest_alone(house):
    kept = house.daemon.sources['fifo:' + house.fifo]
    house.text = '[luci]\nsource = fifo:%s\n' % (house.folder / 'other')
    house.ask('reload')
    assert len(house.daemon.sources) == 2 and house.daemon.sources['fifo:' + house.fifo] is kept
    house.text = ''
    house.ask('reload')
    assert list(house.daemon.sources.values()) == [kept]


def test_runtime_and_state_need_a_restart(house):
    house.folder = house.folder / 'elsewhere'
    assert 'needs a restart' in house.ask('reload')['error']


def test_a_reload_from_iptables_to_none_takes_the_rules_out(walled):
    walled.programs.listing = '-A INPUT -j banwatch\n-N banwatch\n'
    walled.firewall = 'none'
    walled.ask('reload')
    assert '-X banwatch' in walled.programs.restores()[-1]
    assert [row['name'] for row in walled.ask('status')['firewall']] == ['none']


def test_a_runtime_folder_that_has_gone_is_made_anew_within_a_minute(house):
    import shutil
    house.fail('192.0.2.7', 3)
    shutil.rmtree(str(house.folder / 'run'))
    house.pass_time(60)
    assert house.machine.said('run: has gone; making it again')
    house.pass_time(1)
    assert json.loads((house.folder / 'run' / 'state.json').read_text())['bans']
    sock = client(house)
    sock.sendall(b'{"do":"banned"}\n')
    house.turn()
    assert '192.0.2.7' in sock.recv(9999).decode()


def test_a_daemon_whose_folder_was_taken_by_another_one_gives_way(house):
    import shutil
    shutil.rmtree(str(house.folder / 'run'))
    other = banwatch.Daemon(FakeMachine(), house.conf(), requests=banwatch.request_table())
    other.start()
    house.pass_time(60)
    assert house.daemon.stopping and house.machine.said('stopping: another banwatch is running')
    assert (house.folder / 'run' / 'control').exists()
    other.stop()


def test_a_daemon_that_finds_no_place_for_its_socket_can_be_stopped(house):
    import shutil
    shutil.rmtree(str(house.folder / 'run'))
    (house.folder / 'run').write_text('a file')
    house.pass_time(60)
    assert house.machine.said('stopping: ') and house.daemon.stopping
    assert not house.machine.said('bug')


def test_restored_failures_are_bounded_too(house):
    for n in range(20):
        house.fail('10.0.0.%d' % n, 1)
    house.pass_time(1)
    house.crash()
    house.more = 'maxtracked = 5\n'
    house.restart()
    assert len(house.daemon.judge.fails.recent) == 5


def test_auto_looks_again_while_what_it_chose_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(banwatch, 'LOGS', (str(tmp_path / 'auth.log'), str(tmp_path / 'messages')))
    machine = FakeMachine()
    machine.exists, machine.which = lambda path: os.path.exists(path) and 'tmp' in path, lambda name: None
    house = House(tmp_path, '[dropbear]\nsource = auto\n', machine=machine)
    assert house.daemon.sources['auto'].meant == '/var/log/messages'
    house.daemon.sources['auto'].trouble = 'waiting for it to appear'
    (tmp_path / 'messages').write_text('')
    machine.time = (tmp_path / 'messages').stat().st_mtime
    house.pass_time(60)
    assert house.daemon.sources['auto'].meant == str(tmp_path / 'messages')


def test_positions_belong_to_the_file_not_to_the_words_in_the_conf(tmp_path):
    machine = FakeMachine()
    (tmp_path / 'logfile').write_text(dated(machine, 5, 3))
    house = House(tmp_path, '[dropbear]\nsource = %s\n' % (tmp_path / 'logfile'), machine=machine)
    house.turn()
    assert house.banned() == ['192.0.2.7']
    house.ask('unban', networks=['192.0.2.7'])
    house.text = ''
    house.ask('reload')
    house.text = '[dropbear]\nsource = %s\n' % (tmp_path / 'logfile')
    house.ask('reload')
    house.turn()
    assert house.banned() == []


def test_a_state_that_cannot_be_written_is_told_at_the_start(tmp_path):
    machine = FakeMachine()
    machine.writable = lambda path: False
    house = House(tmp_path, machine=machine)
    assert house.ask('status')['wrong'] == ['%s: cannot be written' % (tmp_path / 'state')]


def test_after_a_restart_status_tells_when_the_state_was_saved(house):
    house.fail('192.0.2.7', 3)
    house.stop()
    house.machine.pass_time(30)
    house.restart()
    assert house.ask('status')['saved'] == pytest.approx(house.machine.time - 30, abs=0.1)


# --- backlog of a file

def dated(machine, ago, n=1, ip='192.0.2.7'):
    import time
    when = time.strftime('%b %d %H:%M:%S', time.localtime(machine.time - ago))
    return ''.join("%s h dropbear[%d]: Bad password attempt for 'root' from %s:5\n" % (when, n, ip) for n in range(n))


def test_a_backlog_counts_at_its_own_time(tmp_path):
    machine = FakeMachine()
    log = tmp_path / 'file'
    log.write_text(dated(machine, 3600, 9, '192.0.2.1') + dated(machine, 300, 2) + 'dropbear[1]: undated\n')
    house = House(tmp_path, '[dropbear]\nsource = %s\n' % log, machine=machine)
    house.turn()
    assert house.banned() == [] and house.ask('status')['tracked'] == 1
    house.pass_time(290)
    with open(str(log), 'a') as f:
        f.write(dated(machine, 0))
    house.pass_time(1)
    assert house.banned() == ['192.0.2.7']


def test_a_backlog_of_now_bans_at_once_and_is_not_counted_twice_after_a_crash(tmp_path):
    machine = FakeMachine()
    log = tmp_path / 'file'
    log.write_text(dated(machine, 60, 2))
    house = House(tmp_path, '[dropbear]\nsource = %s\n' % log, machine=machine)
    house.turn()
    house.pass_time(2)
    house.crash()
    house.restart()
    house.turn()
    assert house.banned() == []
    with open(str(log), 'a') as f:
        f.write(dated(house.machine, 0))
    house.pass_time(1)
    assert house.banned() == ['192.0.2.7']


def test_a_crash_before_the_save_counts_the_unsaved_lines_again_once(tmp_path):
    machine = FakeMachine()
    log = tmp_path / 'file'
    log.write_text('')
    house = House(tmp_path, '[dropbear]\nsource = %s\n' % log, machine=machine)
    house.pass_time(2)
    house.ask('status')
    house.daemon.store.save()
    with open(str(log), 'a') as f:
        f.write(dated(machine, 0, 2))
    house.daemon.sources[str(log)].look()          # read, not yet saved
    house.crash()
    house.restart()
    house.turn()
    assert len(house.daemon.judge.fails.recent['dropbear', '192.0.2.7']) == 2


# --- the socket

def client(house):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(house.folder / 'run' / 'control'))
    sock.settimeout(2)
    return sock


def test_a_request_over_the_socket_is_answered(house):
    sock = client(house)
    sock.sendall(b'{"do":"banned"}\n')
    house.turn()
    assert json.loads(sock.recv(1000).decode()) == {'banned': []}


@pytest.mark.parametrize('junk', [b'junk\n', b'[]\n', b'\xff\xfe\n', b'5\n', b'[' * 60000 + b'\n'])
def test_junk_over_the_socket_gets_an_error(house, junk):
    sock = client(house)
    sock.sendall(junk)
    house.turn()
    assert 'error' in json.loads(sock.recv(1000).decode())


def test_a_client_that_talks_too_much_or_says_nothing_is_dropped(house):
    big, silent = client(house), client(house)
    house.turn()
    big.sendall(b'x' * 70000)
    house.turn()
    assert len(house.daemon.control.clients) == 1
    house.pass_time(banwatch.CLIENT_SECONDS)
    assert not house.daemon.control.clients
    assert silent.recv(10) == b''


def test_too_many_clients_are_turned_away(house):
    crowd = []
    for _ in range(banwatch.CLIENTS + 5):
        crowd.append(client(house))
        house.turn(2)
    assert len(house.daemon.control.clients) == banwatch.CLIENTS


def test_a_second_daemon_is_refused(house):
    second = banwatch.Daemon(FakeMachine(), house.conf(), requests=banwatch.request_table())
    with pytest.raises(banwatch.Problem, match='another banwatch is running'):
        second.start()


# --- the loop

def test_idle_there_is_no_wake_up_but_once_a_minute(house):
    house.turn(5)
    assert 59 < house.daemon.loop.due() <= 60
    house.fail('192.0.2.7')
    house.pass_time(1)
    house.turn(5)
    assert 58 < house.daemon.loop.due() <= 60


def test_cancelling_a_timer_leaves_another_one_of_the_same_moment_alone(house):
    called = []
    timers = [house.daemon.loop.after(5, lambda n=n: called.append(n)) for n in range(3)]
    house.daemon.loop.cancel(timers[1])
    house.daemon.loop.cancel(None)
    house.pass_time(5)
    assert called == [0, 2]


def test_a_bug_in_a_handler_is_told_once_and_the_others_go_on(house):
    def bug():
        raise RuntimeError('oops')
    for _ in range(3):
        house.daemon.loop.after(0, bug)
        house.turn()
    assert sum('RuntimeError: oops' in line for line in house.machine.logged) == 1
    house.fail('192.0.2.7', 3)
    assert house.banned() == ['192.0.2.7']


def test_dry_run_touches_nothing(tmp_path):
    machine = FakeMachine()
    conf, _ = banwatch.read_config('[banwatch]\nsource = fifo:%s\nruntime = %s\nstate = %s\n[DEFAULT]\nmaxretry = 1\n' % (
        tmp_path / 'log', tmp_path / 'run', tmp_path / 'state'), 'c')
    daemon = banwatch.Daemon(machine, conf, dry_run=True, requests=banwatch.request_table())
    daemon.start()
    turn(daemon, 2)
    with open(str(tmp_path / 'log'), 'w') as f:
        f.write(LINE % (1, '192.0.2.7'))
    turn(daemon, 3)
    assert machine.said('[dropbear] would ban 192.0.2.7 for 10m') and not machine.ran
    machine.pass_time(7200)
    turn(daemon, 3)
    daemon.stop()
    turn(daemon)
    assert daemon.stopping and sorted(p.name for p in tmp_path.iterdir()) == ['log']


# --- hostile lines

def test_a_flood_of_junk_neither_bans_nor_breaks(house):
    junk = [b'x' * 1000000 + b'\n', os.urandom(100000).replace(b'\n', b'') + b'\n', b'\x1b[2J\r' * 1000 + b'\n',
            b'\0' * 5000 + b'\n', b"dropbear[1]: Bad password attempt for 'root' from 999.1.2.3:5\n" * 9,
            b"junk x dropbear[1]: Bad password attempt for 'root' from 192.0.2.9:5\n" * 9]
    source = house.daemon.sources['fifo:' + house.fifo]
    for block in junk:
        source.hand_over(block)
    house.turn()
    assert house.banned() == []
    assert not house.machine.said('bug')
    house.fail('192.0.2.7', 3)
    assert '192.0.2.7' in house.banned()


# --- filters: names, files, modes

CLOSED = 'Nov 20 12:00:00 h sshd[%d]: Connection closed by %s port 5 [preauth]\n'
FTP = 'Nov 20 12:00:00 h vsftpd[%d]: [bob] FAIL LOGIN: Client "%s"\n'


def tell(house, form, ip='192.0.2.7', times=3):
    """Writes this line so many times, from as many processes."""
    house.write(''.join(form % (n, ip) for n in range(1, times + 1)))


def names(house):
    return [row['jail'] for row in house.ask('status')['jails']]


def row(house, jail):
    return house.ask('status', jail=jail)['jails'][0]


@pytest.fixture
def filter_d(tmp_path, monkeypatch):
    """The folder of filters beside the conf, which is called `c`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'filter.d').mkdir()
    return tmp_path / 'filter.d'


def test_only_three_jails_are_on_by_themselves(house):
    assert names(house) == ['manual', 'dropbear', 'sshd', 'luci']
    tell(house, FTP)
    assert house.banned() == []


@pytest.mark.parametrize('jail', sorted(name for name, options in banwatch.JAILS.items() if 'enabled' in options))
def test_a_jail_that_is_off_is_on_as_soon_as_it_is_named(make, jail):
    house = make('[%s]\n' % jail)
    assert names(house) == ['manual', 'dropbear', 'sshd', 'luci', jail]
    assert row(house, jail)['origin'] == 'built-in'
    house.text = '[%s]\nenabled = false\n' % jail
    house.ask('reload')
    assert jail not in names(house)
    house.text, house.defaults['enabled'] = '', 'true'
    house.ask('reload')
    assert names(house) == ['manual', 'dropbear', 'sshd', 'luci']


def test_vsftpd_alone_in_the_conf_counts_and_switched_off_it_does_not(make):
    house = make('[vsftpd]\n')
    tell(house, FTP)
    assert house.banned() == ['192.0.2.7'] and house.machine.said('[vsftpd] ban 192.0.2.7 for 10m (3 failures')
    house.text = '[vsftpd]\nenabled = false\n'
    house.ask('reload')
    assert house.banned() == []
    tell(house, FTP)
    assert house.banned() == []


def test_a_jail_that_is_switched_on_keeps_the_options_that_belong_to_it(make):
    house = make('[asterisk]\n[recidive]\n[kernel-scan]\nmaxretry = 7\n')
    jails = house.daemon.judge.jails.by_name
    assert (jails['asterisk'].options['port'], jails['asterisk'].options['protocol']) == ('5060,5061,4569,5038', ['tcp', 'udp'])
    assert [jails['recidive'].options[name] for name in ('maxretry', 'findtime', 'bantime')] == [5, 86400, 604800]
    assert (jails['kernel-scan'].options['maxretry'], jails['kernel-scan'].options['forward']) == (7, False)
    assert jails['sshd'].options['forward'] and jails['sshd'].options['maxretry'] == 3


def test_a_mode_makes_a_jail_stricter_and_a_reload_changes_it(make):
    house = make('[sshd]\nmode = aggressive\n')
    tell(house, CLOSED)
    assert house.banned() == ['192.0.2.7']
    house.text = '[sshd]\nmode = normal\n'
    house.ask('reload')
    tell(house, CLOSED, '192.0.2.8')
    house.text = ''
    house.ask('reload')
    tell(house, CLOSED, '192.0.2.9')
    assert house.banned() == ['192.0.2.7']


def test_a_mode_that_does_not_exist_is_refused_and_changes_nothing(house):
    house.text = '[sshd]\nmode = agressive\n'
    answer = house.ask('reload')
    assert answer['code'] == 78
    assert answer['error'] == "c:9: [sshd]: built-in sshd.conf:12: failregex: there is no 'mode-agressive' ('agressive' is not a mode of it)"
    house.fail('192.0.2.7', 3)
    assert house.banned() == ['192.0.2.7']


def test_a_jail_may_name_another_filter_with_options_which_win_over_its_mode(make):
    house = make('[outside]\nfilter = sshd[mode=aggressive]\nmode = normal\nmaxretry = 2\n[sshd]\nenabled = false\n')
    tell(house, CLOSED, times=2)
    assert [(ban['jail'], ban['ip']) for ban in house.ask('banned')['banned']] == [('outside', '192.0.2.7')]
    assert (row(house, 'outside')['filter'], row(house, 'outside')['origin']) == ('sshd[mode=aggressive]', 'built-in')


def test_a_filter_that_there_is_not_is_refused_with_a_hint(house):
    house.text = '[outside]\nfilter = sshdd\n'
    assert house.ask('reload')['error'] == "c:9: [outside]: no filter is called 'sshdd' (did you mean sshd?)"


def test_a_file_beside_the_conf_wins_over_a_built_in_filter(house, filter_d):
    (filter_d / 'dropbear.conf').write_text('[Definition]\nfailregex = knocked: <HOST>$\n')
    house.ask('reload')
    assert row(house, 'dropbear')['origin'] == str(filter_d / 'dropbear.conf') and row(house, 'sshd')['origin'] == 'built-in'
    house.fail('192.0.2.7', 3)
    assert house.banned() == []
    house.write('knocked: 192.0.2.8\n' * 3)
    assert house.banned() == ['192.0.2.8'] and house.machine.said('[dropbear] ban 192.0.2.8')


def test_a_local_file_beside_the_conf_changes_one_option_of_a_built_in_filter(house, filter_d):
    (filter_d / 'sshd.local').write_text('[Definition]\nmode = ddos\n')
    house.ask('reload')
    assert row(house, 'sshd')['origin'] == 'built-in'
    tell(house, CLOSED)
    house.write(''.join('Nov 20 12:00:00 h sshd[%d]: Failed password for root from 192.0.2.8 port 5 ssh2\n' % n for n in range(3)))
    assert house.banned() == ['192.0.2.7', '192.0.2.8']


def test_a_file_with_a_mistake_is_told_with_its_place_and_changes_nothing(house, filter_d):
    (filter_d / 'dropbear.conf').write_text('[Definition]\n\nfailregex = knocked\n')
    answer = house.ask('reload')
    assert answer == {'code': 78, 'error': "c: [dropbear]: %s:3: failregex: 'knocked' has no <HOST>" % (filter_d / 'dropbear.conf')}
    house.fail('192.0.2.7', 3)
    assert house.banned() == ['192.0.2.7']


def test_status_tells_where_each_filter_came_from(make, filter_d):
    (filter_d / 'door.conf').write_text('[Definition]\nfailregex = knocked: <HOST>$\n')
    house = make('[door]\n[shop]\nfailregex = from <HOST>$\n[bell]\nfilter = door\n[recidive]\n[entry]\nfilter = %s\n' % (filter_d / 'door.conf'))
    path = str(filter_d / 'door.conf')
    assert {each['jail']: each['origin'] for each in house.ask('status')['jails']} == {
        'manual': None, 'dropbear': 'built-in', 'sshd': 'built-in', 'luci': 'built-in', 'door': path, 'shop': 'conf', 'bell': path,
        'recidive': 'built-in', 'entry': path}
    assert {each['jail']: each['filter'] for each in house.ask('status')['jails']}['bell'] == 'door'


# --- what a reload keeps

def test_a_reload_keeps_what_a_connection_has_said(house):
    house.write('Nov 20 12:00:00 h sshd[5]: Invalid user bob from 192.0.2.7 port 5\n')
    house.ask('reload')
    house.write('Nov 20 12:00:01 h sshd[5]: Failed password for invalid user bob from 192.0.2.7 port 5 ssh2\n')
    assert row(house, 'sshd')['failures'] == 1
    house.write('Nov 20 12:00:02 h sshd[5]: Failed password for invalid user bob from 192.0.2.7 port 5 ssh2\n')
    assert row(house, 'sshd')['failures'] == 2


def test_a_reload_keeps_what_a_connection_has_said_to_a_file_of_filter_d_too(house, filter_d):
    (filter_d / 'door.conf').write_text(
        '[Definition]\nfailregex = door<F-MLFID>\\d+</F-MLFID>: <F-NOFAIL>connect</F-NOFAIL> from <HOST>$\n'
        '    door<F-MLFID>\\d+</F-MLFID>: wrong password$\n')
    house.text = '[door]\n'
    house.ask('reload')
    house.write('door5: connect from 192.0.2.7\n')
    house.ask('reload')
    house.write('door5: wrong password\n' * 3)
    assert house.banned() == ['192.0.2.7']


def test_a_port_that_was_tried_before_a_reload_is_not_new_after_it(make):
    house = make('[kernel-scan]\nmaxretry = 3\n')
    packet = ('Nov 20 12:00:00 r kernel: [ 9.1] REJECT wan in: IN=wan OUT= MAC= SRC=192.0.2.7 DST=203.0.113.1 LEN=44 TOS=0x00 PREC=0x00 '
              'TTL=50 ID=5 PROTO=TCP SPT=4000 DPT=%d WINDOW=1024 RES=0x00 SYN URGP=0\n')
    house.write(packet % 23 + packet % 80)
    house.ask('reload')
    house.write(packet % 23 + packet % 80)
    assert house.banned() == []
    house.write(packet % 443)
    assert house.banned() == ['192.0.2.7']


# --- a regex that takes for ever

SLOW = '[slow]\nfailregex = ^(?:a+)+ <HOST>$\n'
ENDLESS = 'a' * 60 + '!\n'
WRONG = 'slow: a regex of conf takes too long for some lines, which are skipped'


def test_a_runaway_regex_is_told_once_and_takes_nothing_from_the_other_jails(make):
    house = make(SLOW)
    house.write(LINE % (1, '192.0.2.8') + ENDLESS + LINE % (2, '192.0.2.8') + 'a 192.0.2.7\n' * 2 + ENDLESS + 'a 192.0.2.7\n' + LINE % (3, '192.0.2.8'))
    assert house.banned() == ['192.0.2.7', '192.0.2.8']
    assert sum('takes too long' in line for line in house.machine.logged) == 1
    assert house.ask('status')['wrong'] == [WRONG] and not house.machine.said('bug')


def test_where_a_regex_runs_away_again_and_again_long_lines_rest_for_a_minute_short_ones_and_neighbours_do_not(make):
    house, long = make(SLOW), 'a' * 50 + ' 192.0.2.9\n'
    house.write(ENDLESS * 3 + long * 3 + 'a 192.0.2.7\n' * 3 + ''.join(LINE % (n, '192.0.2.8') for n in range(3)))
    assert house.banned() == ['192.0.2.7', '192.0.2.8']
    assert house.ask('status')['wrong'] == [WRONG + '; lines of over 45 characters rest for a minute']
    house.pass_time(61)
    house.write(long * 3)
    assert house.banned() == ['192.0.2.7', '192.0.2.8', '192.0.2.9']


def test_a_regex_that_has_run_away_is_wrong_until_it_has_not_for_ten_minutes(make):
    house = make(SLOW)
    house.write(ENDLESS)
    house.pass_time(banwatch.CALM_SECONDS - 10)
    house.write(ENDLESS)
    house.pass_time(60)
    assert house.ask('status')['wrong'] == [WRONG]
    house.pass_time(banwatch.CALM_SECONDS + 60)
    assert house.ask('status')['wrong'] == []
    house.write(ENDLESS)
    assert house.ask('status')['wrong'] == [WRONG]


@pytest.mark.parametrize('text', ['[slow]\nfailregex = ^a+ <HOST>$\n', '[slow]\nenabled = false\n', ''])
def test_a_regex_that_is_mended_or_gone_after_a_reload_is_no_longer_wrong(make, text):
    house = make(SLOW)
    house.write(ENDLESS)
    assert house.ask('status')['wrong'] == [WRONG]
    house.text = text
    house.ask('reload')
    assert house.ask('status')['wrong'] == []


def test_a_regex_that_is_mended_does_not_rest_any_more(make):
    house = make(SLOW)
    house.write(ENDLESS * 3)
    house.text = '[slow]\nfailregex = ^a+ <HOST>$\n'
    house.ask('reload')
    house.write('a 192.0.2.7\n' * 3)
    assert house.banned() == ['192.0.2.7']


# names that such a regex takes an hour for, in sshd's lines; a conf, and the file of a filter, that have one
WICKED = 'Nov 20 12:00:00 h sshd[%d]: Failed password for %s from 192.0.2.7 port 5 ssh2\n'
ENDLESS_NAME = 'a' * 45
GREEDY, EXCEPT = r'^Failed password for (?:a+)+ from <HOST> port \d+ ssh\d\d', '^(?!Failed password for (?:a+)+b)<F-CONTENT>.+</F-CONTENT>$'
FOREIGN = {
    "the conf's ignoreregex": ('[sshd]\nignoreregex = for (a+)+b\n', ''), "the conf's failregex": ('[sshd]\nfilter = sshd\nfailregex = %s\n' % GREEDY, ''),
    "the conf's prefregex": ('[sshd]\nprefregex = %s\n' % EXCEPT, ''), "an option of the conf's": ('[sshd]\nfilter = sshd[prefregex="%s"]\n' % EXCEPT, ''),
    'a file with `program`': ('[mine]\n', '[Definition]\nprogram = sshd\nfailregex = %s\n' % GREEDY),
    'a .local of a built-in one': ('[sshd]\n', '[Definition]\nprefregex = %s\n' % EXCEPT)}


@pytest.mark.slow
@pytest.mark.parametrize('where', FOREIGN)
def test_no_regex_that_is_not_built_in_holds_the_daemon_whatever_filter_it_hangs_on(make, filter_d, where):
    text, file = FOREIGN[where]
    (filter_d / ('mine.conf' if '[mine]' in text else 'sshd.local')).write_text(file or '[Definition]\n')
    house, began = make(text), time.process_time()
    house.write(''.join(WICKED % (n, ENDLESS_NAME) for n in range(20)) + ''.join(LINE % (n, '192.0.2.8') for n in range(3)))
    assert time.process_time() - began < 5
    assert '192.0.2.8' in house.banned()
    assert 'take' in ''.join(house.ask('status')['wrong']) and 'rest for a minute' in ''.join(house.ask('status')['wrong'])
    assert not house.machine.said('bug')


def test_who_makes_an_ignoreregex_run_away_is_counted_all_the_same(make):
    house = make('[sshd]\nignoreregex = for (?:a+)+b\n')
    house.write(''.join(WICKED % (n, ENDLESS_NAME) for n in range(3)))
    assert house.banned() == ['192.0.2.7']
    (wrong,) = house.ask('status')['wrong']
    assert wrong.startswith('sshd: an ignoreregex takes too long for some lines of built-in, which count; lines of over ')
    house.pass_time(61)
    house.write(''.join(WICKED.replace('192.0.2.7', '192.0.2.9') % (n, 'aab') for n in range(3)))
    assert house.banned() == ['192.0.2.7'], 'it holds again'


def test_after_a_reload_the_same_regexes_go_on_resting_and_others_do_not(make):
    house = make(FOREIGN["the conf's failregex"][0])
    house.write(''.join(WICKED % (n, ENDLESS_NAME) for n in range(3)))
    good = ''.join(WICKED % (n, 'a') for n in range(9, 12))
    house.ask('reload')
    house.write(good)
    assert house.banned() == [] and house.ask('status')['wrong']
    house.text = house.text.replace('(?:a+)+', 'a+').replace('\\d\\d', '\\d')
    house.ask('reload')
    house.write(good)
    assert house.banned() == ['192.0.2.7'] and house.ask('status')['wrong'] == []


# --- recidive

AGAIN = '[recidive]\n'


@pytest.fixture
def strict(make):
    return lambda text=AGAIN, **more: make(text, **dict({'bantime_increment': 'false'}, **more))


def offend(house, times, ip='192.0.2.7', every=3600):
    """Gets an address banned so many times, once in `every` seconds."""
    for _ in range(times):
        house.fail(ip, 3)
        house.pass_time(every)


def jails_of(house, ip='192.0.2.7'):
    return sorted(ban['jail'] for ban in house.ask('banned')['banned'] if ban['ip'] == ip)


def test_without_being_asked_nobody_counts_bans(strict):
    house = strict('')
    offend(house, 9)
    assert house.banned() == []


def test_five_bans_within_a_day_ban_for_a_week(strict):
    house = strict()
    offend(house, 4)
    assert house.banned() == []
    house.fail('192.0.2.7', 3)
    assert jails_of(house) == ['dropbear', 'recidive']
    assert house.machine.said('[recidive] ban 192.0.2.7 for 1w (5 failures, ban number 1)')
    house.pass_time(604799)
    assert jails_of(house) == ['recidive']
    house.pass_time(1)
    assert house.banned() == []


def test_a_ban_that_is_older_than_a_day_does_not_count(strict):
    house = strict()
    offend(house, 12, every=21601)                   # never five within a day
    assert not house.machine.said('[recidive]')


def test_bans_of_different_jails_count_together_and_those_of_others_do_not(strict):
    house = strict()
    offend(house, 2)
    for _ in range(2):
        house.write(''.join('h sshd[%d]: Failed password for root from 192.0.2.7 port 5 ssh2\n' % n for n in range(3)))
        house.pass_time(3600)
    offend(house, 3, '192.0.2.8')
    assert house.banned() == []
    house.fail('192.0.2.7', 3)
    assert jails_of(house) == ['dropbear', 'recidive'] and jails_of(house, '192.0.2.8') == []


LUCI = 'Fri Nov 20 08:00:00 2026 daemon.err uhttpd[9]: luci: failed login on /x for y from 192.0.2.7\n'
PACKET = ('Nov 20 08:00:00 r kernel: [ 9.1] DROP wan in: IN=wan OUT= MAC= SRC=192.0.2.7 DST=203.0.113.1 LEN=44 TOS=0x00 PREC=0x00 '
          'TTL=50 ID=5 PROTO=TCP SPT=443 DPT=%d WINDOW=1024 RES=0x00 SYN URGP=0\n')


@pytest.mark.parametrize('jail, text', [
    ('luci', ''), ('kernel-scan', '[kernel-scan]\nmaxretry = 3\n'), ('dropbear', '[dropbear]\nport = ssh\n'),
    ('dropbear', '[dropbear]\nforward = false\n')])
def test_bans_that_are_narrower_than_those_of_recidive_do_not_count(strict, jail, text):
    house = strict('[recidive]\nbantime = 1w\n' + text)
    for n in range(8):
        house.write({'luci': LUCI * 3, 'kernel-scan': ''.join(PACKET % (n * 10 + k) for k in range(3))}.get(
            jail, ''.join(LINE % (k, '192.0.2.7') for k in range(3))))
        assert jails_of(house) == [jail]
        house.pass_time(3600)
    assert not house.machine.said('[recidive]')


@pytest.mark.parametrize('port, protocol, wide', [
    ('http,https', 'tcp', True), ('https', 'tcp', True), ('http', 'tcp udp', False), ('22', 'tcp', False), ('79:81', 'tcp', False)])
def test_a_recidive_that_closes_no_more_counts_them(strict, port, protocol, wide):
    house = strict('[recidive]\nport = %s\nprotocol = %s\n[luci]\nport = http,443:444\n' % (port, protocol))
    for _ in range(5):
        house.write(LUCI * 3)
        house.pass_time(3600)
    assert jails_of(house) == ['recidive'] * wide


@pytest.mark.parametrize('chain, counted', [('INPUT', True), ('INPUT FORWARD', False)])
def test_what_is_forwarded_matters_only_where_bans_stop_it(make, chain, counted):
    house = make('[recidive]\n[dropbear]\nforward = false\n', bantime_increment='false')
    house.more = 'chain = %s\n' % chain
    house.ask('reload')
    offend(house, 5)
    assert jails_of(house) == ['recidive'] * counted


def test_a_network_is_counted_as_it_was_banned(strict):
    house = strict(ipv4prefix=24)
    for n in range(5):
        house.fail('2001:db8:5::%x' % n, 3)
        house.fail('192.0.2.%d' % n, 3)
        house.pass_time(3600)
    assert sorted((ban['jail'], ban['ip']) for ban in house.ask('banned')['banned']) == [
        ('recidive', '192.0.2.0/24'), ('recidive', '2001:db8:5::/64')]


@pytest.mark.parametrize('jail', [None, 'manual', 'dropbear'])
def test_bans_by_hand_do_not_count(strict, jail):
    house = strict()
    for _ in range(6):
        house.ask('ban', networks=['192.0.2.7'], jail=jail, seconds=60)
        house.pass_time(61)
    assert house.banned() == [] and not house.machine.said('[recidive]')


def test_its_own_bans_do_not_count(strict):
    house = strict('[recidive]\nmaxretry = 2\nbantime = 1h\nfindtime = 1w\n[again]\nfilter = recidive\nmaxretry = 4\nfindtime = 1w\n')
    offend(house, 3)
    assert [line.split(' (')[0] for line in house.machine.logged if line.startswith('[recidive] ban')] == [
        '[recidive] ban 192.0.2.7 for 1h']
    assert not house.machine.said('[again]')
    offend(house, 1)
    assert house.machine.said('[again] ban 192.0.2.7')
    assert sum(line.startswith('[recidive] ban') for line in house.machine.logged) == 2


def test_a_ban_that_is_made_longer_or_restored_counts_once(strict):
    house = strict('[recidive]\nmaxretry = 2\n', bantime_extend='1m')
    house.fail('192.0.2.7', 9)
    house.banned()
    house.crash()
    house.restart()
    assert jails_of(house) == ['dropbear']
    house.pass_time(1200)
    house.fail('192.0.2.7', 3)
    assert jails_of(house) == ['dropbear', 'recidive']


def test_a_crash_does_not_forget_how_often_somebody_was_banned(strict):
    house = strict()
    offend(house, 4)
    house.crash()
    house.restart()
    house.fail('192.0.2.7', 3)
    assert jails_of(house) == ['dropbear', 'recidive']


def test_unban_by_hand_forgets_how_often_somebody_was_banned(strict):
    house = strict()
    offend(house, 4)
    house.ask('unban', networks=['192.0.2.7'])
    offend(house, 4)
    assert not house.machine.said('[recidive]')


def test_recidive_bans_nobody_who_is_never_banned(strict):
    house = strict('[recidive]\nmaxretry = 1\nignoreip = 192.0.2.7\n')
    for ip in ('192.0.2.7', '192.0.2.8'):
        house.fail(ip, 3)
    assert jails_of(house) == ['dropbear'] and jails_of(house, '192.0.2.8') == ['dropbear', 'recidive']


@pytest.mark.parametrize('text', ['', AGAIN, '[vsftpd]\nfindtime = 1d\n'])
def test_a_backlog_is_as_old_for_a_jail_as_its_own_findtime_says(tmp_path, text):
    machine = FakeMachine()
    log = tmp_path / 'file'
    log.write_text(dated(machine, 3600, 9, '192.0.2.1') + dated(machine, 60, 3, '192.0.2.2'))
    house = House(tmp_path, '[dropbear]\nsource = %s\n%s' % (log, text), machine=machine)
    house.turn()
    assert house.banned() == ['192.0.2.2']


# --- what is wrong with a request, and what with the daemon

def test_a_bug_in_the_answer_to_a_request_is_told_as_one_and_logged_with_its_traceback(house):
    def broken(daemon, request, reply):
        raise KeyError('oh')
    house.daemon.requests = dict(house.daemon.requests, status=broken)
    answers = []
    house.daemon.loop.after(0, lambda: house.daemon.answer({'do': 'status'}, answers.append))
    house.turn()
    assert answers == [{'error': 'a bug in the daemon; its log has the traceback', 'code': 1}]
    assert house.machine.said('KeyError')
    assert house.ask('banned') == {'banned': []}, 'it goes on'


# --- what an owner would want to know

def test_a_ban_that_stops_nobody_is_told(make):
    house = make(firewall='nft', bantime='1h')
    house.fail('192.0.2.7', 3)
    house.fail('192.0.2.7', 20)                    # under way when the ban came
    house.pass_time(60)
    assert not any('goes on' in text for text in house.ask('status')['wrong'])
    house.fail('192.0.2.7', banwatch.GOES_ON)
    house.pass_time(60)
    assert any('192.0.2.7 goes on although it is banned by dropbear' in text for text in house.ask('status')['wrong'])
    assert house.machine.said('192.0.2.7 goes on although') and sum('goes on' in line for line in house.machine.logged) == 1
    house.ask('unban', networks=['192.0.2.7'])
    house.pass_time(60)
    assert not any('goes on' in text for text in house.ask('status')['wrong'])


def test_without_a_firewall_nobody_is_said_to_go_on(house):
    house.fail('192.0.2.7', 3)
    house.pass_time(11)
    house.fail('192.0.2.7', 50)
    house.pass_time(60)
    assert not any('goes on' in text for text in house.ask('status')['wrong'])


def test_until_the_default_route_is_known_bans_in_its_network_rest(make):
    house = make(firewall='nft')
    house.ask('ban', networks=['203.0.113.66'], seconds=-1)
    lan = [banwatch.make_exempt('203.0.113.0/24', 'the LAN, eth0')]

    def told(seconds):
        """Is the kernel told of it, once so many seconds have gone by?"""
        house.machine.ran.clear()
        house.pass_time(seconds)
        return any('203.0.113.66' in command.stdin for command in house.machine.ran)
    house.machine.nets = lan
    assert not told(60) and house.banned() == ['203.0.113.66']
    house.machine.nets, house.machine.outward = [], {2}
    assert told(banwatch.ROUTE_SECONDS) and house.banned() == ['203.0.113.66']
    house.machine.nets = lan
    house.pass_time(60)
    assert house.banned() == []


def test_what_is_logged_moves_no_cursor_and_forges_no_line(capsys):
    banwatch.Machine().log('a\x1b[2J\nbanwatch: b')
    assert capsys.readouterr().err == 'a\\x1b[2J\\nbanwatch: b\n'


def test_a_lock_holds_also_where_its_text_finds_no_room(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        assert banwatch.Machine().lock(str(tmp_path / 'lock'))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# --- pages in places of others

@pytest.mark.parametrize('mode, followed', [(0o755, True), (0o777, False), (0o1777, False), (0o775, False)])
def test_a_page_goes_through_a_link_only_where_nobody_else_can_make_one(tmp_path, mode, followed):
    place, other = tmp_path / 'www', tmp_path / 'other'
    place.mkdir()
    other.write_text('theirs')
    (place / 'page.html').symlink_to(other)
    place.chmod(mode)
    banwatch.write_page(str(place / 'page.html'), 'page', 0o600)
    assert (place / 'page.html').read_text() == 'page' and (place / 'page.html').is_symlink() == followed
    assert other.read_text() == ('page' if followed else 'theirs')


# --- blindness

ODD = 'level=warn msg="login refused" ip=192.0.2.%d\n'


def test_a_source_whose_lines_have_no_tag_is_told(house):
    house.write(''.join(ODD % n for n in range(19)))
    assert not house.ask('status')['wrong']
    house.write(ODD % 20 + 'Nov 20 12:00:00 h cron[1]: x\n')
    (wrong,) = house.ask('status')['wrong']
    assert wrong.startswith('%s: most of its lines have no tag' % house.daemon.sources['fifo:' + house.fifo].what)
    (row,) = house.ask('status')['sources']
    assert (row['sampled'], row['tagless']) == (21, 20)
    assert sum('no tag' in line for line in house.machine.logged) == 1
    assert any('no tag' in row['text'] for row in house.ask('report')['summary']['warnings'])


def test_and_no_more_once_they_have_one(house):
    house.write(''.join(ODD % n for n in range(20)))
    assert house.ask('status')['wrong']
    for _ in range(30):
        house.machine.pass_time(1)
        house.fail('192.0.2.7')
    assert not house.ask('status')['wrong']


def test_lines_without_a_tag_are_right_in_a_jails_own_log(tmp_path):
    house = House(tmp_path, text='[sshd]\nsource = fifo:%s\n[dropbear]\nenabled = false\n[luci]\nenabled = false\n'
                  % (tmp_path / 'log'))
    house.write(''.join(ODD % n for n in range(40)))
    assert not house.ask('status')['wrong']


def test_of_a_flood_few_lines_are_looked_at(house):
    house.write(''.join(ODD % (n % 250) for n in range(500)))
    (row,) = house.ask('status')['sources']
    assert row['sampled'] == 20


def test_refusals_whose_address_is_cut_off_are_told(house):
    house.write('Fri Nov 20 12:00:00 2026 daemon.err ' + ('uhttpd[904]: luci: failed login on /' + 'x' * 1200)[:1003] + '\n')
    (wrong,) = house.ask('status')['wrong']
    assert wrong == 'luci: 1 refusal is so long that the log daemon may have cut off the address; they do not count'
    assert wrong in [row['text'] for row in house.ask('report')['summary']['warnings']]
