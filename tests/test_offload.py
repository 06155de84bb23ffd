"""Connections that bypass every rule since their flow is offloaded: a ban ends these too, where conntrack(8) is installed."""
import contextlib
import socket

import pytest

import banwatch
from conftest import need
from harness import FakeMachine, House, poll
from test_choice import KINDS, programs, settled

ROUTER, LAN = {4: '203.0.113.1', 6: '2001:db8:1::1'}, {4: '192.168.1.2', 6: '2001:db8:2::2'}
ATTACKER, INNOCENT = {4: '198.51.100.7', 6: '2001:db8:bad::7'}, {4: '198.51.100.8', 6: '2001:db8:bad:8::8'}
# as fw4 with `option flow_offloading 1`
FLOWTABLE = """
table inet fw4 {
    flowtable ft { hook ingress priority filter; devices = { lan, wan }; }
    chain forward { type filter hook forward priority filter; policy accept; meta l4proto { tcp, udp } flow add @ft; }
}
"""
# as fw3 shows it; the target is a chain here, so that what stands in front of it counts, and nothing is offloaded
OLD = """
for tool in iptables ip6tables; do
    $tool -N FLOWOFFLOAD
    $tool -A FORWARD -m comment --comment '!fw3: Traffic offloading' -m conntrack --ctstate RELATED,ESTABLISHED -j FLOWOFFLOAD
done
"""


# --- through a real router

@pytest.fixture
def offloading(network):
    """The router offloads what it forwards."""
    done = network.router.run(['nft', '-f', '-'], input=FLOWTABLE)
    if done.returncode:
        pytest.skip('needs a kernel with flowtables: ' + done.stderr.split('\n')[0])
    return network


class Talk:
    """A TCP connection from an address outside to the LAN, through the router."""

    def __init__(self, network, source, version):
        self.listening = network.lan.listen(LAN[version], 0)
        self.client = network.attacker.connect(LAN[version], self.listening.getsockname()[1], source)
        self.server = self.listening.accept()[0]
        self.server.settimeout(0.7)
        self.client.settimeout(5)
        for _ in range(3):                           # what is established is offloaded
            assert self.passes()
            self.server.sendall(b'answer')
            assert self.client.recv(100) == b'answer'

    def passes(self):
        """Does what is sent from outside arrive?"""
        self.client.sendall(b'question')
        with contextlib.suppress(socket.timeout):
            return bool(self.server.recv(100))
        return False


def tracked(network, version, ip):
    """What conntrack knows of the connections of an address."""
    listed = network.router.run(['conntrack', '-L', '-f', 'ipv%d' % version]).stdout
    return [line for line in listed.split('\n') if 'src=%s ' % ip in line]


def offloaded(network, version, ip):
    return any('OFFLOAD' in line for line in tracked(network, version, ip))


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_a_ban_ends_an_offloaded_connection_and_leaves_others(offloading, daemon, programs, kind):
    need('conntrack')
    guard = daemon(firewall=kind)
    assert settled(guard)
    for version in 4, 6:
        an_offloaded_connection_ends(offloading, guard, version)
    assert guard.ask('status')['wrong'] == []


def an_offloaded_connection_ends(offloading, guard, version):
    his, hers = (Talk(offloading, who[version], version) for who in (ATTACKER, INNOCENT))
    assert all(poll(lambda: offloaded(offloading, version, who[version])) for who in (ATTACKER, INNOCENT))
    assert guard.command('ban', ATTACKER[version]).returncode == 0
    assert poll(lambda: not his.passes(), 3), 'what is offloaded goes on'
    assert hers.passes() and offloaded(offloading, version, INNOCENT[version])
    assert not offloading.attacker.reaches(ROUTER[version], source=ATTACKER[version])
    assert not his.passes() and hers.passes()
    assert guard.command('unban', ATTACKER[version]).returncode == 0 and poll(his.passes)


@pytest.mark.slow
def test_a_chosen_nft_ends_offloaded_connections_too(offloading, daemon, programs):
    need('conntrack')
    guard = daemon(firewall='auto')
    assert settled(guard, 'nft') == 'nft'
    his = Talk(offloading, ATTACKER[4], 4)
    assert poll(lambda: offloaded(offloading, 4, ATTACKER[4]))
    assert guard.command('ban', '198.51.100.0/29').returncode == 0      # a whole network
    assert poll(lambda: not his.passes(), 3)


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_without_conntrack_no_new_connection_gets_through_and_nobody_complains(offloading, daemon, programs, kind):
    programs.hide('conntrack')
    guard = daemon(firewall=kind)
    assert settled(guard)
    Talk(offloading, ATTACKER[4], 4)
    said = guard.said()
    assert guard.command('ban', ATTACKER[4]).returncode == 0
    assert not offloading.attacker.reaches(ROUTER[4], source=ATTACKER[4])
    listening = offloading.lan.listen(LAN[4], 7)
    assert not offloading.attacker.reaches(LAN[4], 7, source=ATTACKER[4]) and offloading.attacker.reaches(LAN[4], 7, source=INNOCENT[4])
    listening.close()
    assert [line for line in guard.said()[len(said):].split('\n') if line] == ['[manual] ban 198.51.100.7 for 10m (by hand)']
    assert guard.ask('status')['wrong'] == []


# --- without a flowtable: does it ask conntrack, and for whom?

@pytest.mark.slow
@pytest.mark.parametrize('kind, version', [('iptables', 4), ('ipset', 6)])
def test_where_fw3_offloads_the_entries_of_who_is_banned_go_and_no_others(network, daemon, programs, kind, version):
    need('conntrack')
    network.router.script(OLD)
    guard = daemon(firewall=kind)
    assert settled(guard)
    talks = [Talk(network, who[version], version) for who in (ATTACKER, INNOCENT)]
    assert tracked(network, version, ATTACKER[version]) and tracked(network, version, INNOCENT[version])
    assert guard.command('ban', ATTACKER[version]).returncode == 0
    assert poll(lambda: not tracked(network, version, ATTACKER[version]))
    assert tracked(network, version, INNOCENT[version]) and talks[1].passes() and not talks[0].passes()
    assert 'offloaded' not in guard.said()


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_where_nothing_is_offloaded_conntrack_is_left_alone(network, daemon, programs, kind):
    need('conntrack')
    mark = network.path('mark')
    programs.replace('conntrack', ': >%s\n' % mark)
    network.router.script('nft add table inet fw4; nft add set inet fw4 flowtable_like "{ type ipv4_addr; }"')
    guard = daemon(firewall=kind)
    assert settled(guard) and guard.command('ban', ATTACKER[4], ATTACKER[6]).returncode == 0
    assert guard.command('unban', '--all').returncode == 0 and guard.command('ban', ATTACKER[4]).returncode == 0
    assert not network.router.run(['test', '-e', mark]).returncode == 0


# --- on a machine whose clock is turned

LISTED = {'iptables': '-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j FLOWOFFLOAD\n',
          'nft': 'table inet fw4 {\n\tflowtable ft {\n\t\thook ingress priority filter\n\t}\n}\n'}


@pytest.fixture
def made(tmp_path):
    """A function that starts a daemon on a machine that offloads; its conntrack is the test's."""
    def start(kind='nft', shown=None, **options):
        machine = FakeMachine()
        machine.problem, machine.shown = {}, LISTED[kind] if shown is None else shown
        machine.which = lambda name: '/usr/sbin/' + name
        machine.answer = lambda command: (machine.problem.get(command.argv[0], ''), machine.shown)
        return House(tmp_path, firewall=kind, machine=machine, **options)
    return start


def cuts(house):
    """What conntrack was told, one text for each time it was run."""
    return [command.stdin for command in house.machine.ran if command.argv[0] == 'conntrack']


@pytest.mark.parametrize('kind', ['nft', 'iptables'])
def test_all_connections_of_a_banned_network_are_ended_in_both_directions(made, kind):
    house = made(kind)
    house.ask('ban', networks=['192.0.2.0/28', '2001:db8:5::/64'], seconds=60)
    text = ''.join(cuts(house)).split('\n')
    for net, family in (('192.0.2.0/28', 'ipv4'), ('2001:db8:5::/64', 'ipv6')):
        assert {'-D -f %s -%s %s' % (family, side, net) for side in 'sd'} <= set(text)


def test_bans_of_one_turn_are_one_run_of_conntrack(made):
    house = made()
    house.ask('ban', networks=['10.0.0.%d' % n for n in range(200)], seconds=60)
    assert len(cuts(house)) == 1 and cuts(house)[0].count('-D ') == 400


def test_an_unban_and_an_extension_end_no_connection(made):
    house = made()
    house.ask('ban', networks=['192.0.2.7'], seconds=60)
    house.ask('ban', networks=['192.0.2.7'], seconds=90)
    house.ask('unban', networks=['192.0.2.7'])
    assert len(cuts(house)) == 1


def test_a_ban_of_some_ports_ends_no_connection_to_others(made):
    house = made(port='ssh')
    house.fail('192.0.2.7', 3)
    assert house.banned() == ['192.0.2.7'] and cuts(house) == []


def test_a_ban_that_had_to_wait_for_the_firewall_ends_connections_when_it_is_in(made):
    house = made()
    house.machine.problem['nft'] = 'nft: no'
    for n in range(3):
        house.ask('ban', networks=['192.0.2.%d' % n], seconds=6000)
    assert cuts(house) == []
    house.machine.problem.clear()
    house.pass_time(60)
    assert all('-s 192.0.2.%d\n' % n in ''.join(cuts(house)) for n in range(3))


def test_a_ban_during_the_first_look_ends_connections_too(made, tmp_path):
    machine, held = made().machine, []
    run = machine.run
    machine.run = lambda command, done, seconds=10: held.append((command, done))
    (tmp_path / 'second').mkdir()
    house = House(tmp_path / 'second', firewall='nft', machine=machine)
    house.daemon.answer({'do': 'ban', 'networks': ['192.0.2.7'], 'seconds': 60}, len)
    while held:
        run(*held.pop(0))
        house.turn()
    assert '-s 192.0.2.7\n' in ''.join(cuts(house))


def test_a_firewall_that_begins_to_offload_is_noticed_within_a_minute(made):
    house = made(shown='')
    house.ask('ban', networks=['192.0.2.7'], seconds=6000)
    assert cuts(house) == []
    house.machine.shown = LISTED['nft']
    house.pass_time(60)
    house.ask('ban', networks=['192.0.2.8'], seconds=60)
    assert '-s 192.0.2.8\n' in ''.join(cuts(house))


def test_a_conntrack_in_trouble_is_told_once_and_delays_no_answer(made):
    house = made()
    house.machine.problem['conntrack'] = 'conntrack: no permission'
    for n in range(5):
        assert house.ask('ban', networks=['192.0.2.%d' % n], seconds=60)['trouble'] == ''
    assert sum('no permission' in line for line in house.machine.logged) == 1
    assert any('offloaded connections' in line for line in house.machine.logged)


def test_what_looks_like_offload_is_told_from_what_does_not():
    assert banwatch.offloads([LISTED['nft']]) and banwatch.offloads([None, LISTED['iptables']])
    assert not banwatch.offloads([None, '', 'table inet x {\n\tset flowtable_like {\n\t}\n}\n', '-N FLOWOFFLOADS\n'])
