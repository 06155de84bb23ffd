"""Firewalls: the Commands they answer with, and what the real kernel makes of these."""
import random
import re
import subprocess

import pytest

import banwatch
from conftest import need
from machine import config, jail
from network import Namespace, poll

HOOKS = ['INPUT', 'FORWARD']


def ticket(net, jail='sshd'):
    return banwatch.Ticket(jail, banwatch.network(net), 0, 600, 1, 5)


def doors(**options):
    return banwatch.door_matches(config(**options).jail('sshd'))


# --- pure

def test_each_port_and_protocol_is_a_match_of_its_own():
    assert doors() == ['']
    assert doors(port='ssh,8000:8080') == [' -p tcp -m tcp --dport 22', ' -p tcp -m tcp --dport 8000:8080']
    assert doors(port='53', protocol='tcp udp') == [' -p tcp -m tcp --dport 53', ' -p udp -m udp --dport 53']


def test_a_packet_meets_some_tens_of_rules_at_a_thousand_bans():
    wall, rng = banwatch.IPTables(4, HOOKS, {}), random.Random(1)
    tickets = [ticket('%d.%d.%d.%d' % (rng.randrange(1, 224), *[rng.randrange(256) for _ in range(3)])) for _ in range(1000)]
    chains = wall.rules(tickets)
    longest = max(len(rules) for name, rules in chains.items() if name != 'banwatch')
    assert len(chains['banwatch']) + longest < 100


def test_a_network_wider_than_a_sub_chain_stands_in_the_main_chain():
    wall = banwatch.IPTables(4, HOOKS, {})
    assert wall.chain('0.0.0.0/4') == 'banwatch' and wall.chain('8.0.0.0/5') == 'banwatch-01'
    assert banwatch.IPTables(6, HOOKS, {}).chain('2001:db8::/48') == 'banwatch-2001'
    assert banwatch.IPTables(6, HOOKS, {}).chain('2000::/3') == 'banwatch'


def test_chain_names_fit_into_xtables_28_characters():
    for family, net in ((4, '203.0.113.9'), (6, 'ffff::1')):
        assert len(banwatch.IPTables(family, HOOKS, {}).chain(net)) <= 28


def test_commands_for_one_program_are_one_batch():
    merged = banwatch.merge([banwatch.Command(['a', 'x'], '1\n'), banwatch.Command(['b'], '2\n'), banwatch.Command(['a', 'x'], '3\n')])
    assert merged == [banwatch.Command(['a', 'x'], '1\n3\n'), banwatch.Command(['b'], '2\n')]


def test_the_null_firewall_does_nothing_and_is_never_amiss():
    null = banwatch.Null()
    assert (null.check(), null.mend([], [ticket('192.0.2.7')]), null.ban([], []), null.unban([], []), null.stop([])) == (
        [], ('', []), [], [], [])


# --- the kernel

VARIANTS = [('iptables-nft', 4), ('iptables-legacy', 4), ('ip6tables-nft', 6), ('ip6tables-legacy', 6)]
NETS = {4: ['192.0.2.7', '198.51.100.0/24', '203.0.113.9', '8.8.8.8', '0.0.0.0/2'],
        6: ['2001:db8:5::/64', '2001:db8::7', '2a00:1::/48', '2400::1', '3000::/4']}
FOREIGN = """
{tool} -N mine; {tool} -A mine -j ACCEPT; {tool} -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT
{tool} -A INPUT -p tcp -m multiport --dports 1,2 -j mine; {tool} -A FORWARD -j mine; {tool} -P FORWARD DROP
"""


class Wall:
    """A firewall and the kernel of a namespace of its own."""

    def __init__(self, tool, family, doors=None, hooks=HOOKS):
        self.tool = tool
        self.firewall = banwatch.IPTables(family, hooks, doors or {})
        self.space = Namespace()
        self.tickets = []

    def close(self):
        self.space.close()

    def run(self, commands):
        """Runs Commands as the daemon does; what they printed."""
        shown = []
        for command in commands:
            name = command.argv[0].replace(self.firewall.name, self.tool, 1)
            done = self.space.run([name] + command.argv[1:], input=command.stdin)
            assert done.returncode == 0, (command, done.stderr)
            shown.append(done.stdout)
        return shown

    def mend(self):
        amiss, commands = self.firewall.mend(self.run(self.firewall.check()), self.tickets)
        self.run(commands)
        return amiss

    def ban(self, *nets):
        new = [ticket(net) for net in nets]
        self.tickets += new
        self.run(self.firewall.ban(new, self.tickets))

    def unban(self, *nets):
        nets = [banwatch.network(net) for net in nets]
        gone = [t for t in self.tickets if t.network in nets]
        self.tickets = [t for t in self.tickets if t.network not in nets]
        self.run(self.firewall.unban(gone, self.tickets))

    def script(self, text):
        self.space.script(text.format(tool=self.tool))

    def save(self):
        """What is in the kernel, without counters and comments."""
        text = self.space.output([self.tool + '-save', '-t', 'filter'])
        return [line.split(' [')[0] for line in text.split('\n') if line and line[0] != '#']

    def banned(self):
        rows = [line.split() for line in self.save() if line.startswith('-A banwatch') and line.endswith('DROP')]
        return sorted(banwatch.network(row[row.index('-s') + 1]) for row in rows)

    def first(self, hook):
        return [line for line in self.save() if line.startswith('-A %s ' % hook)][0]

    def right(self):
        """Asserts that the kernel has just our tickets."""
        assert self.banned() == sorted(t.network for t in self.tickets)
        assert self.mend() == ''


@pytest.fixture(params=VARIANTS, ids=[tool for tool, _ in VARIANTS])
def wall(request):
    need('unshare', 'nsenter', request.param[0], root=True)
    made = Wall(*request.param)
    yield made
    made.close()


def nets(wall):
    return NETS[wall.firewall.family]


def test_start_ban_unban_stop_leave_foreign_rules_as_they_were(wall):
    wall.script(FOREIGN)
    before = wall.save()
    wall.tickets = [ticket(net) for net in nets(wall)[:2]]
    assert 'missing' in wall.mend()
    wall.right()
    wall.ban(*nets(wall)[2:])
    wall.right()
    wall.unban(nets(wall)[0], nets(wall)[4])
    wall.right()
    wall.run(wall.firewall.stop(wall.run(wall.firewall.check())))
    assert wall.save() == before


def test_our_jump_stands_first_before_established(wall):
    wall.script(FOREIGN)
    wall.mend()
    for hook in HOOKS:
        assert wall.first(hook) == '-A %s -j banwatch' % hook


def test_starting_twice_changes_nothing(wall):
    wall.tickets = [ticket(nets(wall)[0])]
    wall.mend()
    before = wall.save()
    assert wall.mend() == '' and wall.save() == before


def test_banning_and_unbanning_twice_is_harmless(wall):
    wall.mend()
    one = ticket(nets(wall)[0])
    for _ in range(2):
        wall.run(wall.firewall.ban([one], [one]))
        assert wall.banned() == [one.network]
    for _ in range(2):
        wall.run(wall.firewall.unban([one], []))
        assert wall.banned() == []


@pytest.mark.parametrize('damage, told', [
    ('{tool} -F banwatch', 'rules instead of'),
    ('{tool} -D INPUT -j banwatch', 'INPUT rule missing'),
    ('{tool} -F FORWARD', 'FORWARD rule missing'),
    ('{tool} -I INPUT 1 -j ACCEPT', 'INPUT rule not first'),
    ('{tool} -A INPUT -j banwatch', 'INPUT rule doubled'),
    ('{tool} -I INPUT 1 -j banwatch', 'INPUT rule doubled'),
    ('{tool} -A banwatch -j ACCEPT', 'rules instead of'),
    ('{tool} -N banwatch-0; {tool} -A banwatch-0 -j DROP', 'rules instead of'),
    ('{tool} -F; {tool} -X', 'chain banwatch missing')])
def test_damage_is_noticed_told_and_mended_in_one_batch(wall, damage, told):
    wall.tickets = [ticket(net) for net in nets(wall)]
    wall.mend()
    wall.script(damage)
    assert told in wall.mend()
    wall.right()
    assert wall.first('INPUT') == '-A INPUT -j banwatch' and wall.save().count('-A INPUT -j banwatch') == 1


def test_rules_without_a_ticket_are_removed_at_the_start(wall):
    wall.tickets = [ticket(net) for net in nets(wall)]
    wall.mend()
    wall.tickets = wall.tickets[:1]
    wall.mend()
    wall.right()


def test_stop_after_somebody_flushed_everything_is_quiet(wall):
    wall.mend()
    wall.script('{tool} -F; {tool} -X')
    assert wall.firewall.stop(wall.run(wall.firewall.check())) == []


def test_ports_narrow_the_rule_to_them(wall):
    wall.firewall.doors = {'sshd': doors(port='22,8000:8080', protocol='tcp udp')}
    wall.tickets = [ticket(nets(wall)[0])]
    wall.mend()
    assert wall.mend() == ''
    rules = [line for line in wall.save() if line.endswith('DROP') and 'banwatch' in line]
    assert sorted(rule.split(' -p ')[1] for rule in rules) == [
        '%s -m %s --dport %s -j DROP' % (protocol, protocol, port)
        for protocol in ('tcp', 'udp') for port in ('22', '8000:8080')]


def test_a_network_banned_by_two_jails_has_one_rule_and_keeps_it_until_both_are_over(wall):
    net = nets(wall)[0]
    wall.tickets = [ticket(net, 'sshd'), ticket(net, 'luci')]
    wall.mend()
    assert wall.banned() == [net] and wall.mend() == ''
    gone, wall.tickets = wall.tickets[:1], wall.tickets[1:]
    wall.run(wall.firewall.unban(gone, wall.tickets))
    assert wall.banned() == [net]


def test_a_hook_that_is_no_longer_wanted_goes(wall):
    wall.mend()
    wall.firewall.hooks = ['INPUT']
    assert wall.mend() == 'FORWARD rule not wanted'
    assert '-A FORWARD -j banwatch' not in wall.save() and wall.first('INPUT') == '-A INPUT -j banwatch'


def test_two_thousand_bans_are_one_batch(wall):
    rng = random.Random(3)
    made = set()
    while len(made) < 2000:
        bits = rng.getrandbits(32) if wall.firewall.family == 4 else (0x2000 + rng.randrange(64)) << 112 | rng.getrandbits(112)
        made.add(str(banwatch.ipaddress.ip_address(bits)) if wall.firewall.family == 4 else str(banwatch.ipaddress.IPv6Address(bits)))
    wall.tickets = [ticket(net) for net in made]
    assert len(wall.firewall.mend([''], wall.tickets)[1]) == 1
    wall.mend()
    wall.right()


def test_any_sequence_of_bans_unbans_and_damage_ends_with_the_kernel_equal_to_the_tickets(wall):
    seed = random.randrange(10 ** 6)
    rng = random.Random(seed)
    print('seed', seed)
    wall.mend()
    pool = [str(banwatch.ipaddress.ip_network((rng.getrandbits(28) << 4, 28))) for _ in range(30)] \
        if wall.firewall.family == 4 else ['2%03x:%x::/64' % (rng.getrandbits(12), rng.getrandbits(16)) for _ in range(30)]
    for _ in range(25):
        here = {t.network for t in wall.tickets}
        away = sorted(set(pool) - here)
        act = rng.randrange(5)
        if act < 2 and away:
            wall.ban(*rng.sample(away, min(len(away), rng.randrange(1, 6))))
        elif act == 2 and here:
            wall.unban(*rng.sample(sorted(here), min(len(here), rng.randrange(1, 6))))
        elif act == 3:
            wall.script(rng.choice(['{tool} -F banwatch', '{tool} -F INPUT', '{tool} -F', '{tool} -I FORWARD -j ACCEPT']))
            wall.mend()
        else:
            wall.mend()
        assert wall.banned() == sorted(t.network for t in wall.tickets), seed
    wall.right()


def test_a_table_of_the_other_iptables_is_only_a_warning(wall):
    """iptables-nft warns of legacy tables on every call; that is no trouble."""
    other = 'iptables-legacy' if 'legacy' not in wall.tool else 'iptables-nft'
    need(other, root=True)
    wall.space.script('%s -N foreign' % other)
    wall.tickets = [ticket(nets(wall)[0])]
    wall.mend()
    wall.right()


# --- forward = false: bans that leave alone what the router forwards

SCAN = ['kernel-scan']
ROUTER = {4: '203.0.113.1', 6: '2001:db8:1::1'}
HOST = {4: '192.168.1.2', 6: '2001:db8:2::2'}              # on the LAN, behind the router
OUTSIDE = {4: '198.51.100.7', 6: '2001:db8:bad::7'}
PACKET = {4: 'Nov 20 12:00:00 r kernel: [ 9.1] REJECT wan in: IN=wan OUT= MAC= SRC=198.51.100.7 DST=203.0.113.1 LEN=44 TOS=0x00 '
             'PREC=0x00 TTL=50 ID=5 PROTO=TCP SPT=4000 DPT=%d WINDOW=1024 RES=0x00 SYN URGP=0\n',
          6: 'Nov 20 12:00:00 r kernel: [ 9.1] REJECT wan in: IN=wan OUT= MAC= SRC=2001:0db8:0bad:0000:0000:0000:0000:0007 '
             'DST=2001:0db8:0001:0000:0000:0000:0000:0001 LEN=64 TC=0 HOPLIMIT=50 FLOWLBL=0 PROTO=TCP SPT=4000 DPT=%d WINDOW=1024 '
             'RES=0x00 SYN URGP=0\n'}


def scan_wall(wall, inner=SCAN, hooks=HOOKS):
    """Gives the wall a firewall whose jail kernel-scan, or none, has `forward = false`."""
    wall.firewall = banwatch.IPTables(wall.firewall.family, hooks, {}, inner)
    return wall


def jumps(wall):
    """All that stands in the hooks and is ours."""
    return sorted(line for line in wall.save() if re.match('-A (INPUT|FORWARD) -j banwatch', line))


SPLIT = ['-A FORWARD -j banwatch', '-A INPUT -j banwatch-input']
WHOLE = ['-A FORWARD -j banwatch', '-A INPUT -j banwatch']


def test_the_rules_of_a_ban_to_the_router_only_stand_in_front_of_the_main_chain():
    chains = banwatch.IPTables(4, HOOKS, {}, SCAN).rules([ticket('192.0.2.7', 'kernel-scan'), ticket('198.51.100.7')])
    assert chains['banwatch-input'] == {'-A banwatch-input -j banwatch', '-A banwatch-input -s 192.0.2.7/32 -j DROP'}
    assert not any('192.0.2.7' in rule for name, rules in chains.items() for rule in rules if name != 'banwatch-input')
    assert 'banwatch-input' not in banwatch.IPTables(4, HOOKS, {}).rules([ticket('192.0.2.7', 'kernel-scan')])


def test_with_one_hook_only_there_is_no_chain_in_front():
    assert 'banwatch-input' not in banwatch.IPTables(4, ['INPUT'], {}, SCAN).rules([ticket('192.0.2.7', 'kernel-scan')])


def test_where_only_forwarded_packets_are_stopped_a_ban_to_the_router_only_stops_none():
    chains = banwatch.IPTables(4, ['FORWARD'], {}, SCAN).rules([ticket('192.0.2.7', 'kernel-scan'), ticket('198.51.100.7')])
    rules = ' '.join(rule for rules in chains.values() for rule in rules)
    assert '198.51.100.7' in rules and '192.0.2.7' not in rules


def test_the_options_of_the_jails_say_whose_bans_go_to_the_router_only():
    jails = {name: banwatch.Jail(name, banwatch.Config().jail(name)) for name in ('sshd', 'kernel-scan')}
    for wall in banwatch.make_firewalls('iptables', HOOKS, jails):
        assert wall.inner == {'kernel-scan'}
    made = banwatch.read_config('[sshd]\nforward = false\n[kernel-scan]\nforward = true\n', 'c')[0]
    jails = {name: banwatch.Jail(name, made.jail(name)) for name in jails}
    assert [wall.inner for wall in banwatch.make_firewalls('iptables', HOOKS, jails)] == [{'sshd'}] * 2


def test_the_kernel_takes_bans_to_the_router_only_and_only_input_enters_their_chain(wall):
    wall.script(FOREIGN)
    before = wall.save()
    scan_wall(wall).tickets = [ticket(nets(wall)[0], 'kernel-scan'), ticket(nets(wall)[1])]
    wall.mend()
    wall.right()
    assert jumps(wall) == SPLIT and wall.first('INPUT') == SPLIT[1] and wall.first('FORWARD') == SPLIT[0]
    inner = [line for line in wall.save() if line.startswith('-A banwatch-input ')]
    assert inner[0] == '-A banwatch-input -j banwatch' and len(inner) == 2 and inner[1].endswith('-j DROP')
    new = [ticket(net, 'kernel-scan') for net in nets(wall)[2:]]
    wall.tickets += new
    wall.run(wall.firewall.ban(new, wall.tickets))
    wall.right()
    wall.unban(*nets(wall)[::2])
    wall.right()
    wall.unban(*nets(wall))
    wall.right()
    wall.run(wall.firewall.stop(wall.run(wall.firewall.check())))
    assert wall.save() == before


def test_an_address_banned_both_ways_stays_banned_for_the_one_when_the_other_is_over(wall):
    net = nets(wall)[0]
    both = [ticket(net, 'kernel-scan'), ticket(net)]
    for gone, left in (both, both[::-1]):
        scan_wall(wall).tickets = list(both)
        wall.mend()
        assert wall.banned() == [net, net]
        wall.tickets = [left]
        wall.run(wall.firewall.unban([gone], wall.tickets))
        wall.right()


def test_switching_it_on_and_off_leaves_one_jump_in_each_hook(wall):
    wall.script(FOREIGN)
    wall.tickets = [ticket(nets(wall)[1])]
    for inner, wanted in (((), WHOLE), (SCAN, SPLIT), ((), WHOLE), (SCAN, SPLIT)):
        scan_wall(wall, inner).mend()
        assert jumps(wall) == wanted and wall.mend() == ''
        assert ('-N banwatch-input' in ' '.join(wall.save()) or ':banwatch-input' in ' '.join(wall.save())) == bool(inner)
    scan_wall(wall, SCAN, ['INPUT']).mend()
    assert jumps(wall) == ['-A INPUT -j banwatch'] and wall.mend() == ''


@pytest.mark.parametrize('damage, told', [
    ('{tool} -F banwatch-input', 'rules instead of'),
    ('{tool} -D banwatch-input 1', 'rules instead of'),
    ('{tool} -D INPUT -j banwatch-input', 'INPUT rule missing'),
    ('{tool} -I INPUT 1 -j ACCEPT', 'INPUT rule not first'),
    ('{tool} -A INPUT -j banwatch-input', 'INPUT rule doubled'),
    ('{tool} -D INPUT -j banwatch-input; {tool} -I INPUT -j banwatch', 'INPUT rule missing'),

    ('{tool} -A INPUT -j banwatch', 'INPUT rule doubled'),
    ('{tool} -A FORWARD -j banwatch-input', 'FORWARD rule doubled'),
    ('{tool} -F; {tool} -X', 'chain banwatch missing')])
def test_damage_to_the_chain_in_front_is_noticed_told_and_mended(wall, damage, told):
    scan_wall(wall).tickets = [ticket(nets(wall)[0], 'kernel-scan'), ticket(nets(wall)[1])]
    wall.mend()
    wall.script(damage)
    assert told in wall.mend()
    wall.right()
    assert jumps(wall) == SPLIT and wall.first('INPUT') == SPLIT[1]


def test_a_jump_to_the_chain_in_front_that_is_left_over_does_not_keep_it_from_going(wall):
    scan_wall(wall).mend()
    wall.script('{tool} -I INPUT -j banwatch')
    wall.tickets = [ticket(nets(wall)[1])]
    scan_wall(wall, ()).mend()
    wall.right()
    assert jumps(wall) == WHOLE


def test_a_stop_that_knows_of_no_jails_leaves_nothing_either(wall):
    """As after a daemon that was killed."""
    before = wall.save()
    scan_wall(wall).tickets = [ticket(net, 'kernel-scan') for net in nets(wall)]
    wall.mend()
    scan_wall(wall, ())
    wall.run(wall.firewall.stop(wall.run(wall.firewall.check())))
    assert [line for line in wall.save() if 'banwatch' in line] == [line for line in before if 'banwatch' in line] == []


def reaches(network, version):
    """(does the attacker get through to the router, to the LAN behind it?)"""
    return tuple(network.attacker.reaches(to[version], source=OUTSIDE[version]) for to in (ROUTER, HOST))


def saved(network, version):
    return network.router.output([{4: 'iptables-save', 6: 'ip6tables-save'}[version]])


@pytest.mark.slow
@pytest.mark.parametrize('version', [4, 6], ids=['IPv4', 'IPv6'])
def test_who_scans_ports_gets_nothing_through_to_the_router_and_all_through_it(network, daemon, version):
    door = network.lan.listen('::', 9)
    open(network.log, 'w').close()                         # what stood there before would count at its own time
    guard = daemon('[kernel-scan]\n')
    assert reaches(network, version) == (True, True)
    with open(network.log, 'a') as f:
        f.write(''.join(PACKET[version] % port for port in list(range(20, 34)) * 2))
    guard.wait_failures('kernel-scan', 14)
    assert guard.bans(OUTSIDE[version]) == []
    with open(network.log, 'a') as f:
        f.write(PACKET[version] % 443)
    (ban,) = guard.wait_banned(OUTSIDE[version])
    assert ban['jail'] == 'kernel-scan'
    assert poll(lambda: reaches(network, version) == (False, True))
    assert guard.command('ban', '-j', 'sshd', OUTSIDE[version]).returncode == 0
    assert reaches(network, version) == (False, False)
    assert guard.command('unban', '-j', 'sshd', OUTSIDE[version]).returncode == 0
    assert reaches(network, version) == (False, True)
    door.close()


@pytest.mark.slow
@pytest.mark.parametrize('version', [4, 6], ids=['IPv4', 'IPv6'])
def test_a_reload_that_switches_such_a_jail_on_and_off_leaves_no_second_jump_and_a_stop_leaves_nothing(network, daemon, version):
    door = network.lan.listen('::', 9)
    open(network.log, 'w').close()
    guard = daemon()
    assert reaches(network, version) == (True, True)       # and so they know each other's hardware address, banned or not
    assert guard.command('ban', '-j', 'sshd', '192.0.2.7', '2001:db8:5::/64').returncode == 0
    with open(guard.conf) as f:
        plain = f.read()
    for text, inner in (('[kernel-scan]\n', True), ('', False), ('[kernel-scan]\nforward = true\n', False), ('[kernel-scan]\n', True)):
        with open(guard.conf, 'w') as f:
            f.write(plain + text)
        assert guard.command('reload').returncode == 0
        if text:
            assert guard.command('ban', '-j', 'kernel-scan', OUTSIDE[version]).returncode == 0
        entry = '-A INPUT -j banwatch-input' if inner else '-A INPUT -j banwatch'
        assert poll(lambda: saved(network, version).count('-A INPUT -j banwatch') == 1 and entry + '\n' in saved(network, version))
        assert saved(network, version).count('-A FORWARD -j banwatch\n') == 1
        assert ('banwatch-input' in saved(network, version)) == inner
        assert poll(lambda: reaches(network, version) == (not text, not text or inner))
    assert guard.ask('status')['wrong'] == []
    assert guard.stop() == 0
    assert 'banwatch' not in saved(network, version)
    assert reaches(network, version) == (True, True)
    door.close()
