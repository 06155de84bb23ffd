"""Lists: `banip`, files of it and of `ignoreip`; `ban --file`, `banned --plain`; `fail`."""
import json
import os
import time

import pytest

import banwatch
from conftest import need
from harness import FakeMachine, House, poll


# --- what a list is

@pytest.mark.parametrize('text, networks', [
    ('192.0.2.7\n', ['192.0.2.7']), ('  192.0.2.7  # why\n', ['192.0.2.7']), ('192.0.2.0/24 ; SBL1\n', ['192.0.2.0/24']),
    ('192.0.2.0/24;SBL1\n', ['192.0.2.0/24']), ('# a\n; b\n\n', []), ('192.0.2.7\r\n192.0.2.7\n', ['192.0.2.7']),
    ('192.0.2.4-192.0.2.7\n', ['192.0.2.4/30']), ('192.0.2.4 - 192.0.2.8\n', ['192.0.2.4/30', '192.0.2.8']),
    ('192.0.2.7/24\n', ['192.0.2.0/24']), ('2001:DB8::1\n2001:db8::/32 # x', ['2001:db8::1', '2001:db8::/32']),
    ('::ffff:192.0.2.7', ['192.0.2.7']), ('192.0.2.7 example.org\n', ['192.0.2.7'])])
def test_a_list_is_read_as_lists_are_published(text, networks):
    assert banwatch.read_networks(text) == (networks, [])


@pytest.mark.parametrize('line', ['example.org', '192.0.2.300', '192.0.2.0/33', '192.0.2.9-192.0.2.3', '192.0.2.1-2001:db8::1', '-', '2001:db8::g',
                                  '<html>', '\x1b[2J'])
def test_what_is_none_is_told_with_its_line_and_the_rest_is_used(line):
    networks, wrong = banwatch.read_networks('192.0.2.7\n%s\n192.0.2.8\n' % line)
    ((n, why),) = wrong
    assert networks == ['192.0.2.7', '192.0.2.8'] and n == 2 and why.endswith(' is not an address or network') and why.isprintable()


@pytest.mark.parametrize('net', ['192.0.2.7', '192.0.2.0/24', '0.0.0.0/0', '255.255.255.255', '10.0.0.0/31', '2001:db8::/32', '::/0', '2001:db8::1'])
def test_a_span_is_what_ipaddress_says(net):
    import ipaddress
    whole = ipaddress.ip_network(net)
    assert banwatch.span(net) == (whole.version, int(whole[0]), int(whole[-1]))


# --- banip

def in_kernel(house, net):
    return [command.stdin for command in house.machine.ran if net in command.stdin]


@pytest.fixture
def ours(tmp_path):
    """A function that starts a House with a list in a file, and an address beside it."""
    def start(text, more='', jail='', firewall='nft', nets=()):
        path = tmp_path / 'list'
        path.write_text(text)
        machine = FakeMachine()
        machine.nets = [banwatch.make_exempt(net, 'the LAN, br-lan') for net in nets]
        machine.changed = lambda path: os.stat(path).st_mtime_ns if os.path.exists(path) else None
        house = House(tmp_path, text=jail, firewall=firewall, machine=machine, banip='file:%s 198.51.100.1%s' % (path, more))
        house.list = path
        house.turn(5)
        return house
    return start


def test_what_a_list_names_is_banned_and_shown_but_no_ticket(ours):
    house = ours('192.0.2.0/24 ; x\n2001:db8::/32\n')
    rows = {row['ip']: row for row in house.ask('banned', jail='list')['banned']}
    assert set(rows) == {'192.0.2.0/24', '2001:db8::/32', '198.51.100.1'} and {(row['until'], row['left']) for row in rows.values()} == {(None, -1)}
    (text,) = in_kernel(house, '198.51.100.1')
    assert '192.0.2.0' in text and '2001:db8::' in text
    status = house.ask('status')
    assert status['bans'] == 0 and [row['banned'] for row in status['jails'] if row['jail'] == 'list'] == [3] and status['firewall'][0]['rules'] == 3
    house.daemon.store.save_all()
    for path in 'state', 'run/state.json':
        assert '192.0.2.0' not in (house.folder / path).read_text()


def test_a_list_is_looked_at_each_minute_and_taken_over(ours):
    house = ours('192.0.2.7\n192.0.2.8\n')
    ran = len(house.machine.ran)
    house.list.write_text('192.0.2.8\n192.0.2.9\n')
    os.utime(str(house.list), (5, 5))
    house.pass_time(61)
    said = ''.join(command.stdin for command in house.machine.ran[ran:] if 'element' in command.stdin)
    assert 'delete element inet banwatch v4_door2 { 192.0.2.7 }' in said and '192.0.2.9' in said
    assert set(house.banned()) == {'192.0.2.8', '192.0.2.9', '198.51.100.1'}
    logged = len(house.machine.logged)
    house.pass_time(61)
    assert not any('list' in line for line in house.machine.logged[logged:])


def test_what_overlaps_an_exempt_range_is_left_out_and_told(ours):
    house = ours('192.168.0.0/16\n192.0.2.7\n192.168.1.9\n', nets=['192.168.1.0/24'])
    assert set(house.banned()) == {'192.0.2.7', '198.51.100.1'}
    (wrong,) = house.ask('status')['wrong']
    assert wrong == 'list: 2 networks are never banned, as 192.168.0.0/16: 192.168.1.0/24 (the LAN, br-lan)'
    house.machine.nets.append(banwatch.make_exempt('192.0.2.0/24', 'the LAN, x'))
    house.pass_time(61)
    assert house.banned() == ['198.51.100.1']


def test_a_list_of_a_jail_closes_that_jails_ports(ours, tmp_path):
    house = ours('', jail='[sshd]\nport = 22\nbanip = 203.0.113.5\n')
    rows = {row['ip']: row['jail'] for row in house.ask('banned')['banned']}
    assert rows == {'198.51.100.1': 'list', '203.0.113.5': 'list-sshd'}
    (text,) = in_kernel(house, '203.0.113.5')
    name = [line.split()[4] for line in text.split('\n') if '203.0.113.5' in line][0]
    assert all('dport 22 ' in line or 'proto-dst 22 ' in line for line in text.split('\n') if '@%s ' % name in line)


def test_a_file_that_is_missing_or_wrong_is_told_and_keeps_what_it_had(ours):
    house = ours('192.0.2.7\nrubbish\nmore\n')
    assert house.ask('status')['wrong'] == ['%s: line 2: \'rubbish\' is not an address or network (and 1 more line)' % house.list]
    house.list.unlink()
    house.pass_time(61)
    assert '192.0.2.7' in house.banned()
    assert house.ask('status')['wrong'] == ['%s: cannot be read: No such file or directory' % house.list]
    house.list.write_text('192.0.2.8\n')
    house.pass_time(61)
    assert house.ask('status')['wrong'] == [] and set(house.banned()) == {'192.0.2.8', '198.51.100.1'}


def test_a_directory_or_a_fifo_is_no_list(ours, tmp_path):
    os.mkfifo(str(tmp_path / 'pipe'))
    house = ours('', more=' file:%s file:%s' % (tmp_path, tmp_path / 'pipe'))
    assert len([text for text in house.ask('status')['wrong'] if text.endswith('is not a file')]) == 2


def test_a_reload_without_it_lifts_a_list(ours):
    house = ours('192.0.2.7\n')
    house.defaults.pop('banip')
    ran = len(house.machine.ran)
    house.ask('reload')
    house.turn(5)
    assert house.banned() == [] and '@v4_door' not in house.machine.ran[-1].stdin
    assert any('add table' in command.stdin and '192.0.2.7' not in command.stdin for command in house.machine.ran[ran:])


def test_plain_iptables_says_what_has_no_room(ours):
    house = ours(''.join('10.%d.%d.1\n' % divmod(n, 250) for n in range(2500)), firewall='iptables')
    assert house.ask('status')['wrong'] == ['iptables: no room for 501 networks of lists']
    assert max(command.stdin.count('-j DROP') for command in house.machine.ran) == 2000


def test_unban_of_what_a_list_names_says_where_it_stands(ours):
    house = ours('192.0.2.0/24\n')
    assert house.ask('unban', networks=['192.0.2.7', '203.0.113.1'])['listed'] == ['192.0.2.7']


def test_ten_thousand_networks_are_one_batch(ours):
    house = ours(''.join('10.%d.%d.1\n2001:db8:%x::/48\n' % (n // 250, n % 250, n) for n in range(5000)))
    began = time.process_time()
    assert len(house.banned()) == 10001 and time.process_time() - began < 5
    assert len([1 for command in house.machine.ran if 'add element' in command.stdin]) == 1


# --- ignoreip

def test_a_file_of_ignoreip_exempts_and_lifts(tmp_path):
    path = tmp_path / 'friends'
    path.write_text('192.0.2.0/24 # office\n')
    machine = FakeMachine()
    machine.changed = lambda path: os.stat(path).st_mtime_ns if os.path.exists(path) else None
    house = House(tmp_path, machine=machine, ignoreip='file:%s' % path)
    house.fail('192.0.2.7', 3)
    house.fail('198.51.100.7', 3)
    assert house.banned() == ['198.51.100.7']
    path.write_text('192.0.2.0/24\n198.51.100.7\n')
    os.utime(str(path), (5, 5))
    house.pass_time(61)
    assert house.banned() == []


def test_replay_knows_lists_of_the_exempt(tmp_path):
    from harness import banwatch_argv
    import subprocess
    (tmp_path / 'friends').write_text('192.0.2.0/24\n')
    (tmp_path / 'c').write_text('[DEFAULT]\nignoreip = file:%s\n' % (tmp_path / 'friends'))
    log = ''.join('Nov 20 12:00:0%d h sshd[%d]: Failed password for root from %s port 5 ssh2\n' % (n, n, ip)
                  for ip in ('192.0.2.7', '198.51.100.7') for n in range(5))
    done = subprocess.run(banwatch_argv() + ['-c', str(tmp_path / 'c'), 'replay', '--json', '-'], input=log, stdout=subprocess.PIPE,
                          universal_newlines=True, timeout=30)
    assert [ban['ip'] for ban in json.loads(done.stdout)['bans']] == ['198.51.100.7']


# --- fail

def test_failures_that_others_have_seen_add_up_to_a_ban(tmp_path):
    house = House(tmp_path)
    assert house.ask('fail', networks=['192.0.2.7'], times=1)['said'] == ['192.0.2.7: 1 of 3 failures']
    assert house.ask('fail', networks=['192.0.2.7', '192.0.2.8'], times=2, user='bob')['said'] == [
        '192.0.2.7: banned for 10m', '192.0.2.8: 2 of 3 failures']
    assert house.ask('fail', networks=['192.0.2.7'], times=1)['said'] == ['192.0.2.7: is banned already, for 10m']
    assert house.ask('fail', networks=['127.0.0.1'], times=9)['said'] == ['127.0.0.1: never banned: 127.0.0.0/8 (ignoreip)']
    (row,) = house.ask('banned')['banned']
    assert (row['jail'], row['failures']) == ('manual', 3)
    house.pass_time(601)
    house.pass_time(61)
    assert house.ask('fail', networks=['192.0.2.8'], times=1)['said'] == ['192.0.2.8: 1 of 3 failures']


def test_they_count_in_a_jail_with_its_own_limits(tmp_path):
    house = House(tmp_path, text='[sshd]\nmaxretry = 2\nbantime = 1h\n')
    assert house.ask('fail', networks=['2001:db8::1'], times=2, jail='sshd')['said'] == ['2001:db8::/64: banned for 1h']


@pytest.mark.parametrize('request_', [{'networks': ['192.0.2.7']}, {'networks': ['192.0.2.7'], 'times': 0}, {'networks': ['192.0.2.7'], 'times': 'x'},
                                      {'networks': 5, 'times': 1}, {'networks': ['x'], 'times': 1}, {'networks': ['192.0.2.7'], 'times': 1, 'user': 5}])
def test_nonsense_is_no_failure(tmp_path, request_):
    assert House(tmp_path).ask('fail', **request_) == {'error': 'not a valid request', 'code': 64}


# --- on the command line

@pytest.mark.slow
def test_bans_move_to_another_machine_in_one_command(network, daemon):
    need('nft')
    guard = daemon(firewall='nft')
    assert guard.command('ban', '-t', '2h', '192.0.2.7', '2001:db8:5::/64').returncode == 0
    assert guard.command('ban', '-t', '-1', '192.0.2.8').returncode == 0
    listed, plain = guard.command('banned', '--json').stdout, guard.command('banned', '--plain').stdout
    assert sorted(plain.split()) == ['192.0.2.7', '192.0.2.8', '2001:db8:5::/64']
    path = network.write('bans', listed)
    assert guard.command('unban', '--all').returncode == 0 and guard.command('banned', '--plain').stdout == ''
    done = guard.command('ban', '--file', path)
    assert done.returncode == 0 and done.stdout == '3 networks are banned\n'
    left = {row['ip']: row['left'] for row in guard.ask('banned')}
    assert left['192.0.2.8'] == -1 and 7000 < left['192.0.2.7'] <= 7200
    done = guard.command('ban', '--file', network.write('list', '# x\n198.51.100.99 ; y\nnonsense\n'))
    assert done.returncode == 1 and done.stdout == '1 network is banned\n' and 'list:3: \'nonsense\' is not' in done.stderr
    done = guard.command('ban', '-t', '5m', '--file', network.write('one', '203.0.113.77\n'))
    assert done.returncode == 0 and 290 < [row['left'] for row in guard.ask('banned') if row['ip'] == '203.0.113.77'][0] <= 300
    assert guard.command('ban', '--file', '/no/such').stderr == 'banwatch: /no/such: No such file or directory\n'
    assert 'not what `banned --json` prints' in guard.command('ban', '--file', network.write('torn', '[{"ip":')).stderr
    assert guard.command('fail', '-n', '5', '198.51.100.98').stdout == '198.51.100.98: banned for 10m\n'
    assert guard.command('fail', '198.51.0.0/16').returncode == 64 and guard.command('fail', '-n', 'x', '198.51.100.9').returncode == 64


@pytest.mark.slow
def test_the_kernel_drops_whom_a_list_names_and_counts_it(network, daemon):
    need('nft')
    path = network.write('list', '198.51.100.0/28\n')
    guard = daemon(firewall='nft', banip='file:%s' % path)
    assert poll(lambda: not network.attacker.reaches('203.0.113.1', source='198.51.100.7'))
    assert network.attacker.reaches('203.0.113.1', source='203.0.113.66')
    assert [row['jails'] for row in guard.ask('report')['summary']['dropped']] == ['list']


# --- host names in ignoreip

@pytest.fixture
def at_home(tmp_path):
    """A function that starts a House whose ignoreip holds a name; `home.found` is what that stands for, None: nobody knows."""
    def start(*found, more=''):
        machine = FakeMachine()
        machine.found = list(found)
        machine.answer = lambda command: ('python3: Name or service not known', '') if machine.found is None else ('', '\n'.join(machine.found))
        house = House(tmp_path, machine=machine, ignoreip='127.0.0.1 Home.example.net' + more)
        house.turn()
        return house
    return start


def test_whom_a_name_stands_for_is_not_banned(at_home):
    house = at_home('198.51.100.7', '2001:db8:bad::7')
    for ip in '198.51.100.7', '2001:db8:bad::7', '2001:db8:bad::8', '198.51.100.8':
        house.fail(ip, 3)
    assert house.banned() == ['198.51.100.8', '2001:db8:bad::8']             # by itself, for its /64 holds an exempt one
    assert house.ask('status')['names'] == {'home.example.net': ['198.51.100.7', '2001:db8:bad::7']}
    assert house.ask('ban', networks=['198.51.100.0/24'])['refused'] == [
        '198.51.100.0/24: not banned: overlaps 198.51.100.7 (ignoreip, home.example.net)']


def test_a_name_is_looked_up_each_five_minutes_and_bans_of_where_it_moves_are_lifted(at_home):
    house = at_home('198.51.100.7')
    house.fail('198.51.100.8', 3)
    house.machine.found = ['198.51.100.8']
    ran = len(house.machine.ran)
    for _ in range(4):
        house.pass_time(60)
    assert len(house.machine.ran) == ran and house.banned() == ['198.51.100.8']
    house.pass_time(61)
    assert len(house.machine.ran) == ran + 1 and house.banned() == []
    house.fail('198.51.100.7', 3)
    assert house.banned() == ['198.51.100.7']


def test_while_a_name_cannot_be_looked_up_it_stands_for_what_it_did_also_after_a_restart(at_home):
    house = at_home('198.51.100.7')
    house.machine.found = None
    house.pass_time(301)
    assert house.ask('status')['wrong'] == [
        'home.example.net: cannot be looked up (Name or service not known); what it stood for before stays exempt']
    house.fail('198.51.100.7', 3)
    house.stop()
    before = house.machine.answer
    (house.folder / 'run' / 'state.json').unlink()
    house.machine = FakeMachine()
    house.machine.answer = before
    house.start()
    house.fail('198.51.100.7', 3)
    assert house.banned() == [] and house.ask('status')['names'] == {'home.example.net': ['198.51.100.7']}


def test_a_name_that_nobody_knows_stops_nothing_else(at_home):
    house = at_home('198.51.100.7', more=' gone.example.net')
    house.machine.answer = lambda command: ('x: No address', '') if command.argv[-1].startswith('gone') else ('', '198.51.100.7')
    house.pass_time(301)
    house.fail('198.51.100.7', 3)
    house.fail('198.51.100.9', 3)
    assert house.banned() == ['198.51.100.9']
    assert house.ask('status')['names']['home.example.net'] == ['198.51.100.7']


def test_a_name_that_stands_for_too_many_is_not_believed(at_home):
    house = at_home(*('198.51.100.%d' % n for n in range(17)))
    assert house.ask('status')['wrong'] == ['home.example.net: stands for 17 addresses, too many to believe']
    house.fail('198.51.100.7', 3)
    assert house.banned() == ['198.51.100.7']


def test_nonsense_among_the_kept_names_is_counted_and_left_out():
    names = banwatch.Names(None, None, None)
    assert names.load({'a.b': ['198.51.100.7'], 'c.d': 5, 'e.f': ['x']}, 0, 0) == 2 and names.kept == {'a.b': ['198.51.100.7']}
    assert names.load([1], 0, 0) == 0


def test_the_child_that_looks_up_knows_the_hosts_of_this_machine():
    import subprocess
    found = subprocess.run(banwatch.look_up('localhost').argv, stdout=subprocess.PIPE).stdout.decode()
    assert set(banwatch.read_addresses(found)) <= {'127.0.0.1', '::1'} and found
    gone = subprocess.run(banwatch.look_up('gone.invalid').argv, stderr=subprocess.PIPE)
    assert gone.returncode == 1 and gone.stderr.count(b'\n') == 1


@pytest.mark.parametrize('option, text, why', [
    ('ignoreip', '192.0.2.300', 'not an address, network, host name or file:/PATH'), ('ignoreip', '1.2.3', 'not an address'),
    ('ignoreip', 'nas', 'not an address'), ('ignoreip', 'a..b', 'not an address'), ('ignoreip', '-a.example', 'not an address'),
    ('banip', 'home.example.net', 'not an address, network or file:/PATH')])
def test_what_is_no_name_is_a_mistake(option, text, why):
    _, (problem,) = banwatch.read_config('[DEFAULT]\n%s = %s\n' % (option, text), 'c')
    assert why in problem


def test_a_replay_spares_whom_a_name_stands_for(tmp_path, monkeypatch):
    monkeypatch.setattr(banwatch, 'look_up', lambda name: banwatch.Command(['echo', '198.51.100.7']))
    config, _ = banwatch.read_config('[DEFAULT]\nignoreip = home.example.net\n', 'c')
    replay = banwatch.Replay(config, banwatch.Machine())
    assert replay.judge.jails.by_name['sshd'].refusal('198.51.100.7') == '198.51.100.7 (ignoreip, home.example.net)'
