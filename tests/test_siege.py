"""Guessing that hides: an account under siege, and bans that are widened to the network around them."""
import ipaddress
import json
import random

import pytest

import banwatch
from harness import House

LINE = 'Nov 20 12:00:%02d h sshd[%d]: Failed password for %s from %s port 5 ssh2\n'
LOGIN = 'Nov 20 12:00:00 h sshd[%d]: Accepted password for %s from %s port 5 ssh2\n'


@pytest.fixture
def house(tmp_path):
    return House(tmp_path, maxretry=5)


class Pids:
    pid = 0


def guess(house, user, *ips):
    lines = ''
    for ip in ips:
        Pids.pid += 1
        lines += LINE % (0, Pids.pid, user, ip)
    house.write(lines)


def login(house, user, ip):
    Pids.pid += 1
    house.write(LOGIN % (Pids.pid, user, ip))


def nets(n, form='10.%d.%d.1'):
    return [form % divmod(k, 250) for k in range(n)]


# --- siege

def test_the_second_guess_of_a_network_is_a_ban_once_ten_have_tried_an_account_that_exists(house):
    guess(house, 'root', *nets(9))
    guess(house, 'root', '10.0.0.1')
    assert house.banned() == []
    guess(house, 'root', '10.0.9.1')                       # the tenth: a stranger's single typo bans nobody
    assert house.banned() == []
    guess(house, 'root', '10.0.0.1')                       # its guesses before count
    assert house.banned() == ['10.0.0.1']
    guess(house, 'root', '10.0.9.1', '203.0.113.5')
    assert house.banned() == ['10.0.0.1', '10.0.9.1']
    house.pass_time(12 * 3600)                             # who comes back hours later too
    guess(house, 'root', '203.0.113.5')
    assert '203.0.113.5' in house.banned()


def test_a_siege_is_told_and_ends_a_day_after_the_last(house):
    guess(house, 'root', *nets(10))
    house.pass_time(61)
    said = 'siege: many networks guess at root, each a little: until a day after the last, two failures within a day are a ban'
    assert house.ask('status')['wrong'] == [said] and house.machine.said(said)
    assert any('many networks guess at root' in row['text'] for row in house.ask('report')['summary']['warnings'])
    house.pass_time(25 * 3600)
    house.pass_time(61)
    assert house.ask('status')['wrong'] == []
    guess(house, 'root', '203.0.113.5', '203.0.113.5')
    assert house.banned() == []


@pytest.mark.parametrize('user', ['nobody-here', 'admin'])
def test_names_that_do_not_exist_here_are_never_under_siege(house, user):
    guess(house, user, *nets(30))
    guess(house, user, *nets(30))
    assert house.banned() == []


def test_other_accounts_are_not_touched(house):
    guess(house, 'root', *nets(20))
    guess(house, 'alice', '203.0.113.5', '203.0.113.5', '203.0.113.5', '203.0.113.5')
    assert house.banned() == []


def test_slow_networks_are_no_siege(house):
    for ip in nets(15):
        guess(house, 'root', ip)
        house.pass_time(400)                               # six findtimes are an hour: nine of them at a time
    guess(house, 'root', '203.0.113.5', '203.0.113.5')
    assert house.banned() == []


def test_from_where_a_user_has_logged_in_within_a_month_he_may_mistype_as_ever(house):
    login(house, 'root', '198.51.100.7')
    house.pass_time(20 * 86400)
    house.stop()
    house.restart()                                        # it is kept
    guess(house, 'root', *nets(12))
    guess(house, 'root', *['198.51.100.7'] * 4)
    assert house.banned() == []
    guess(house, 'root', '198.51.100.7')
    assert house.banned() == ['198.51.100.7']
    house.pass_time(11 * 86400)
    guess(house, 'root', *nets(12, '11.%d.%d.1'))
    guess(house, 'root', '198.51.100.7', '198.51.100.7')
    assert '198.51.100.7' in house.banned()


@pytest.mark.parametrize('conf', ['[sshd]\nignorelogin = 0\n', '[sshd]\nmaxnetworks = 0\n'])
def test_logs_that_can_be_forged_neither_start_a_siege_nor_feel_it(tmp_path, conf):
    house = House(tmp_path, text=conf, maxretry=5)
    guess(house, 'root', *nets(30))
    guess(house, 'root', *nets(30))
    assert house.banned() == []


def test_nor_does_a_log_that_comes_by_udp():
    for text in '[banwatch]\nsource = udp:5514\n', '[sshd]\nsource = udp:5514\n', '[banwatch]\nsource = udp:5514\n[sshd]\nsource = /var/log/x\n':
        made, _ = banwatch.read_config(text, 'c')
        assert banwatch.Jails(made).by_name['sshd'].believed == ('/var/log/x' in text)


def test_what_is_known_of_sieges_is_bounded(house):
    for start in range(0, 3000, 500):
        guess(house, 'root', *['10.%d.%d.%d' % (n // 62500, n // 250 % 250, n % 250 + 1) for n in range(start, start + 500)])
    assert len(house.daemon.judge.targets['root']) <= 1000


# --- widening

def v6(n, form='2001:db8:5:%x::1'):
    return form % n


def ban(house, *ips):
    for ip in ips:
        guess(house, 'x', *[ip] * 5)


def test_four_networks_of_one_56_are_widened_to_it_and_four_of_those_to_the_48(house):
    ban(house, *[v6(n) for n in range(3)])
    assert len(house.banned()) == 3
    ban(house, v6(3))
    assert house.banned() == ['2001:db8:5::/56']
    ban(house, v6(9))                                      # within it: a late line bans nobody again
    assert house.banned() == ['2001:db8:5::/56']
    for block in 1, 2:
        ban(house, *[v6(256 * block + n) for n in range(4)])
    assert house.banned() == ['2001:db8:5:%s::/56' % part for part in ('100', '200')] + ['2001:db8:5::/56']
    ban(house, *[v6(256 * 3 + n) for n in range(4)])
    assert house.banned() == ['2001:db8:5::/48']
    assert house.machine.said('[sshd] unban 2001:db8:5:300::/56 (within 2001:db8:5::/48)')


def test_of_scattered_ones_it_takes_sixteen(house):
    ban(house, *[v6(256 * n) for n in range(15)])
    assert len(house.banned()) == 15
    ban(house, v6(256 * 15))
    assert house.banned() == ['2001:db8:5::/48']


def test_it_lasts_as_long_as_the_longest_of_them(house):
    house.ask('ban', networks=['2001:db8:5:1::/64'], seconds=7200, jail='sshd')
    ban(house, *[v6(n) for n in (2, 3, 4)])
    (row,) = house.ask('banned')['banned']
    assert row['ip'] == '2001:db8:5::/56' and 7100 < row['left'] <= 7200


def test_it_never_reaches_an_exempt_range(tmp_path):
    house = House(tmp_path, maxretry=5, ignoreip='2001:db8:5:77::/64')
    ban(house, *[v6(n) for n in range(8)])
    assert len(house.banned()) == 8


def test_ipv4_only_where_it_is_asked_for(tmp_path):
    house = House(tmp_path, maxretry=5, widen=0)
    ban(house, *['192.0.2.%d' % n for n in range(1, 7)])
    ban(house, *[v6(n) for n in range(6)])
    assert len(house.banned()) == 12
    house.stop()
    house.defaults['widen4'] = 3
    house.restart()
    house.ask('unban', networks=[], all=True)
    ban(house, *['192.0.2.%d' % n for n in range(1, 4)])
    assert house.banned() == ['192.0.2.0/24']


def test_jails_are_widened_each_by_itself(tmp_path):
    house = House(tmp_path, maxretry=5, text='[dropbear]\nport = 22\n')
    house.ask('ban', networks=['2001:db8:5:%x::/64' % n for n in range(3)], seconds=600, jail='dropbear')
    ban(house, v6(7))
    assert len(house.banned()) == 4


@pytest.mark.parametrize('seed', [1, 2, 3])
def test_what_is_counted_around_bans_is_what_there_is(tmp_path, seed):
    rng, bans = random.Random(seed), banwatch.Bans(10 ** 6)
    bans.crowded4 = {'a'}
    keys = [(rng.choice('ab'), net) for net in ['2001:db8:%x:%x::/64' % (rng.randrange(3), rng.randrange(600)) for _ in range(300)]
            + ['2001:db8:%x:%x00::/56' % (rng.randrange(3), rng.randrange(3)) for _ in range(30)] + ['192.0.2.%d' % n for n in range(99)]]
    for now in range(2000):
        jail, net = rng.choice(keys)
        if rng.random() < 0.5:
            bans.add(jail, net, now, 100, 5)
        else:
            bans.remove((jail, net))
    wanted = {}
    for jail, net in bans.tickets:
        for bits in (56, 48) if ':' in net else (24,) * (jail == 'a'):
            inner = ipaddress.ip_network(net)
            if bits < inner.prefixlen:
                key = jail, str(inner.supernet(new_prefix=bits)), inner.prefixlen == 56
                wanted[key] = wanted.get(key, 0) + 1
    assert dict(bans.crowds) == wanted


# --- both, in a replay

def test_forty_thousand_guesses_from_one_48_end_after_sixteen_bans(tmp_path, monkeypatch):
    import io
    monkeypatch.setattr(banwatch.Machine, 'accounts', lambda self: ['root'])
    made, _ = banwatch.read_config('', 'c')
    trial, rng, lines = banwatch.Replay(made, banwatch.Machine()), random.Random(7), []
    for n in range(40000):
        lines.append('Nov 20 12:00:%02d h sshd[%d]: Failed password for root from 2001:db8:5:%x::%x port 5 ssh2\n' % (
            n // 700, n, rng.randrange(10000), n))
        if n % 400 == 0:                                   # innocents: one typo, then the right password
            lines += ['Nov 20 12:00:%02d h sshd[%d]: %s password for root from 192.0.2.%d port 5 ssh2\n' % (n // 700, 50000 + n, word, n // 400)
                      for word in ('Failed', 'Accepted')]
    trial.read(''.join(lines).encode())
    assert len([ban for ban in trial.found if ':' in ban['ip'] and ban['ip'].endswith('/64')]) <= 16
    assert [ticket.network for ticket in trial.judge.bans.tickets.values()] == ['2001:db8:5::/48']
