"""Firewalls: the Commands they answer with, and what the real kernel makes of these."""
import collections
import ipaddress
import itertools
import math
import os
import random
import re
import signal
import struct
import time

import pytest

import banwatch
from banwatch import Change, IPSet, IPTables, NFTables
from conftest import need
from harness import config, pairwise, poll, seeds
from network import Namespace

HOOKS = ['INPUT', 'FORWARD']
CONF = config('[luci]\nport = 80,8000:8080\nprotocol = tcp udp\n[dropbear]\nport = ssh\nforward = false\n')
ALL, WEB, SSH, SCAN = 'sshd', 'luci', 'dropbear', 'kernel-scan'           # a jail for each door there is
JAILS = [ALL, 'manual', WEB, SSH, SCAN]


def door(hooks=HOOKS, **options):
    return banwatch.scope_of(config(**options).options('sshd'), hooks)


def doors(jails=JAILS, hooks=HOOKS):
    return {name: banwatch.scope_of(CONF.options(name), hooks) for name in jails}


PLAIN = door()


def now():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def ticket(net, jail=ALL, seconds=600):
    """A Ticket from now on, for ever if `seconds` is None."""
    since = now()
    return banwatch.Ticket(jail, banwatch.network_of(net), since, seconds and since + seconds, 1, 5)


def some(n, family, rng):
    """That many addresses of a family, or of both, in no order."""
    made = {}
    while len(made) < n:
        if family == 4 or not family and len(made) % 2:
            net = ipaddress.IPv4Address(rng.randrange(1 << 24, 224 << 24))
        else:
            net = ipaddress.IPv6Network(((0x2000 + rng.randrange(64)) << 112 | rng.getrandbits(48) << 64, 64))
        made[str(net)] = True
    return list(made)


# --- pure

def test_a_door_without_ports_is_all_packets_and_one_with_ports_a_match_for_each_of_them():
    assert banwatch.port_matches(door()) == ['']
    assert banwatch.port_matches(door(port='ssh,8000:8080')) == [' -p tcp -m tcp --dport 22', ' -p tcp -m tcp --dport 8000:8080']
    assert banwatch.port_matches(door(port='53', protocol='tcp udp')) == [
        ' -p tcp -m tcp --dport 53', ' -p udp -m udp --dport 53']


def test_jails_that_shut_the_same_share_a_door_whatever_protocol_they_name():
    assert door(protocol='udp') == door() == banwatch.Scope((), '', True)
    assert door(port='22') == door(port='ssh') != door()


@pytest.mark.parametrize('forward, hooks, made', [
    ('true', HOOKS, PLAIN), ('false', HOOKS, PLAIN._replace(forward=False)),
    ('true', ['INPUT'], PLAIN), ('false', ['INPUT'], PLAIN),               # with one hook there is nothing to leave alone
    ('true', ['FORWARD'], PLAIN), ('false', ['FORWARD'], None)])
def test_the_door_of_a_jail_that_leaves_forwarded_packets_alone_depends_on_the_hooks(forward, hooks, made):
    assert door(hooks, forward=forward) == made


@pytest.mark.parametrize('kind', ['iptables', 'ipset', 'nft'])
def test_the_options_of_the_jails_say_what_their_bans_shut(kind):
    made = config('[sshd]\nforward = false\n[kernel-scan]\nforward = true\nport = 23\n')
    for conf, wanted in ((config(), [PLAIN, PLAIN._replace(forward=False)]),
                         (made, [PLAIN._replace(forward=False), banwatch.Scope(('tcp',), '23', True)])):
        jails = {name: banwatch.Jail(name, conf.options(name)) for name in ('sshd', 'kernel-scan')}
        for firewall in banwatch.make_firewalls(kind, HOOKS, jails):
            assert list(firewall.scopes.values()) == wanted


@pytest.mark.parametrize('until, longest, seconds', [
    (None, 1000, 0), (110, 1000, 10), (110.001, 1000, 11), (110.999, 1000, 11), (100.001, 1000, 1),
    (100, 1000, 1), (50, 1000, 1), (2000, 1000, 1000), (1e12, 2147483, 2147483)])
def test_a_timeout_is_never_shorter_than_the_ban_nor_none_where_the_ban_has_one(until, longest, seconds):
    assert banwatch.timeout(until, 100.0, longest) == seconds


def test_an_entry_is_a_network_and_a_door_and_lasts_until_the_last_of_its_tickets_ends():
    rows = [('192.0.2.7', 'sshd', 60), ('192.0.2.7', 'manual', 50), ('192.0.2.7', 'luci', 70), ('192.0.2.8', 'manual', 50),
            ('192.0.2.8', 'sshd', None), ('192.0.2.9', 'sshd', None), ('192.0.2.9', 'manual', 50)]
    tickets = [banwatch.Ticket(jail, net, 0, until, 1, 5) for net, jail, until in rows]
    assert banwatch.entries_of(tickets, doors()) == {
        ('192.0.2.7', PLAIN): 60, ('192.0.2.7', doors()['luci']): 70, ('192.0.2.8', PLAIN): None, ('192.0.2.9', PLAIN): None}
    assert banwatch.entries_of(tickets, {'sshd': None}) == {}                 # its bans stop nothing; of others nothing is known


def test_a_packet_meets_some_tens_of_rules_at_a_thousand_bans():
    for family in 4, 6:
        firewall = IPTables(family, HOOKS, doors())
        chains = firewall.entries_by_chain({(net, PLAIN): None for net in some(1000, family, random.Random(1))})
        met = {name: len(firewall.rules(name, chains)) for name in chains}
        main = met.pop('banwatch') + met.pop('banwatch-input')
        assert sum(met.values()) == 1000 and main + max(met.values()) < 110


def test_a_network_wider_than_a_sub_chain_stands_in_the_main_chain():
    four, six = IPTables(4, HOOKS, {}), IPTables(6, HOOKS, {})
    assert four.home('0.0.0.0/4', PLAIN) == 'banwatch' and four.home('8.0.0.0/5', PLAIN) == 'banwatch-01'
    assert six.home('2001:db8::/48', PLAIN) == 'banwatch-2001' and six.home('2000::/3', PLAIN) == 'banwatch'


def test_a_ban_that_leaves_forwarded_packets_alone_stands_in_front_of_the_main_chain():
    firewall = IPTables(4, HOOKS, doors())
    chains = firewall.entries_by_chain({('192.0.2.7', doors()[SCAN]): None, ('198.51.100.7', PLAIN): None})
    rules = {name: firewall.rules(name, chains) for name in chains}
    assert rules['banwatch-input'] == {'-A banwatch-input -j banwatch', '-A banwatch-input -s 192.0.2.7/32 -j DROP'}
    assert not any('192.0.2.7' in rule for name in set(rules) - {'banwatch-input'} for rule in rules[name])
    for made in IPTables(4, HOOKS, doors([ALL])), IPTables(4, ['INPUT'], doors(hooks=['INPUT'])):
        assert 'banwatch-input' not in made.entries_by_chain({})


def test_names_fit_into_what_the_kernel_takes():
    for family, net in ((4, '203.0.113.9'), (6, 'ffff::1')):
        assert len(IPTables(family, HOOKS, {}).chain(net)) <= 28           # xtables
    many = {'jail%d' % n: banwatch.Scope(('tcp',), str(n), True) for n in range(9999)}
    assert max(len(name + '-new') for name in IPSet(6, HOOKS, many).sets.values()) <= 31
    assert len(set(IPSet(6, HOOKS, many).sets.values())) == 9999


def test_a_check_of_nft_asks_each_set_in_use_for_what_stays_longest():
    wanted = {('192.0.2.7', PLAIN): 60, ('192.0.2.8', PLAIN): 90, ('192.0.2.9', PLAIN): 80,
              ('2001:db8::/64', PLAIN): 70, ('2001:db8:1::/64', PLAIN): None, ('2001:db8:2::/64', PLAIN): 60}
    assert NFTables(HOOKS, doors()).check(wanted)[1].stdin.splitlines() == [
        'get element inet banwatch v4 { 192.0.2.8 }', 'get element inet banwatch v6_64 { 2001:db8:1:: }']


def test_no_firewall_does_nothing_and_is_never_amiss():
    null, change = banwatch.Null('none'), Change('192.0.2.7', PLAIN, False, False, None)
    assert (null.check({}), null.differences([], {}), null.rebuild([], {}, 0), null.change([change], 0), null.stop([])) == (
        [], '', [], [], [])


# --- the kernel

# what a test's wall is made of: the class, its family (None: both), which iptables
KINDS = {'iptables-nft': (IPTables, 4, 'iptables-nft'), 'iptables-legacy': (IPTables, 4, 'iptables-legacy'),
         'ip6tables-nft': (IPTables, 6, 'ip6tables-nft'), 'ip6tables-legacy': (IPTables, 6, 'ip6tables-legacy'),
         'ipset-nft': (IPSet, 4, 'iptables-nft'), 'ipset-legacy': (IPSet, 4, 'iptables-legacy'),
         'ipset6-nft': (IPSet, 6, 'ip6tables-nft'), 'ipset6-legacy': (IPSet, 6, 'ip6tables-legacy'),
         'nft': (NFTables, None, 'nft')}
FAST = 'iptables-nft', 'ip6tables-legacy', 'ipset6-nft', 'nft'             # what each of them is, is among these
# and each two of class, family and dialect, among these
PAIRS = ['nft'] + [name for name, (made, family, tool) in KINDS.items()
                   if (made, family, tool.partition('-')[2]) in pairwise([IPTables, IPSet], [4, 6], ['nft', 'legacy'])]

NETS = {4: ['192.0.2.7', '198.51.100.0/24', '198.51.100.7', '203.0.113.96/27', '8.8.8.8', '64.0.0.0/2'],
        6: ['2001:db8:5::/64', '2001:db8:5::7', '2a00:1::/48', '2001:db8:8::/61', '2400::1', '3000::/4']}
NETS[None] = NETS[4] + NETS[6]

FOREIGN = {IPTables: """
{tool} -N mine; {tool} -A mine -j ACCEPT; {tool} -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT; {tool} -N banwatches
{tool} -A INPUT -p tcp -m multiport --dports 1,2 -j mine; {tool} -A FORWARD -j mine; {tool} -A mine -j banwatches
{tool} -P FORWARD DROP
""", NFTables: """nft -f - <<.
table inet mine {{
    set gone {{ type ipv4_addr; flags timeout; elements = {{ 192.0.2.7 }}; }}
    chain input {{ type filter hook input priority 0; policy accept; ct state established accept; ip saddr @gone drop; }}
    chain forward {{ type filter hook forward priority 0; policy drop; ct state established accept; tcp dport 9 accept; }}
}}
table inet banwatches {{
    set v4 {{ type ipv4_addr; }}
    chain input {{ ip saddr @v4 drop; }}
}}
table ip banwatch {{
    chain input {{ type filter hook input priority -10; policy accept; }}
}}
"""}
FOREIGN[IPSet] = FOREIGN[IPTables] + """
ipset create mine hash:ip family {inet}; ipset create {twin} hash:net timeout 0
ipset create banwatch-41 hash:net family {inet} timeout 0; ipset add banwatch-41 {net}
{tool} -A mine -m set --match-set banwatch-41 src -j ACCEPT
"""


class Wall:
    """A firewall, the tickets it is to hold, and the kernel of a namespace."""

    def __init__(self, kind, space=None):
        self.kind = kind
        self.make, self.family, self.tool = KINDS[kind]
        self.space = space or Namespace()
        self.tickets = {}            # (jail, network) -> Ticket
        self.told = {}               # what the kernel has been told last, as `entries` returns it
        self.ran = 0                 # programs so far
        self.use(doors())

    def use(self, doors, hooks=HOOKS):
        """From now on with a new firewall of these settings, as after a reload or a kill."""
        self.firewall = self.make(*[self.family] * bool(self.family), hooks, doors)

    @property
    def nets(self):
        return NETS[self.family]

    # what a daemon does
    def run(self, command):
        name = command.argv[0]
        if name.startswith(self.tool.partition('-')[0]):
            name = name.replace(name.partition('-')[0], self.tool, 1)
        self.ran += 1
        return self.space.run([name] + command.argv[1:], input=command.stdin)

    def run_all(self, commands):
        for command in commands:
            done = self.run(command)
            assert done.returncode == 0, (command, done.stderr)

    def look(self, wanted):
        """What a check shows: of the first Command always something, of another one None if it fails."""
        done = [self.run(command) for command in self.firewall.check(wanted)]
        assert done[0].returncode == 0, done[0]
        return [None if each.returncode else each.stdout for each in done]

    def wanted(self):
        return banwatch.entries_of(self.tickets.values(), self.firewall.scopes)

    def rebuild(self):
        self.told = self.wanted()
        self.run_all(self.firewall.rebuild(self.look(self.told), self.told, now()))

    def differences(self):
        return self.firewall.differences(self.look(self.wanted()), self.wanted())

    def mend(self):
        """Rebuilds if that is needed; what was amiss."""
        found = self.differences()
        if found:
            self.rebuild()
        return found

    def changes(self):
        """The Changes that make what the kernel was told equal to the tickets."""
        old, self.told = self.told, self.wanted()
        return [Change(net, door, (net, door) in old, (net, door) not in self.told, self.told.get((net, door)))
                for net, door in dict.fromkeys(list(old) + list(self.told))
                if (net, door) not in old or old[net, door] != self.told.get((net, door), 'gone')]

    def change(self):
        """Tells the kernel of what has changed among the tickets."""
        commands = self.firewall.change(self.changes(), now())
        if commands is None:
            return self.rebuild()
        self.run_all(commands)

    def take(self, *nets, jail=ALL, seconds=600):
        """New tickets, or new ends for those that are there; None: for ever."""
        for net in nets:
            made = ticket(net, jail, seconds)
            self.tickets[made.key] = made

    def ban(self, *nets, **how):
        self.take(*nets, **how)
        self.change()

    def unban(self, *nets, jail=None):
        nets = [banwatch.network_of(net) for net in nets]
        self.tickets = {key: t for key, t in self.tickets.items() if t.network not in nets or jail not in (None, t.jail)}
        self.change()

    def crowd(self):
        """Tickets of each kind: every sort of network in every jail, for a while or for ever. Then the kernel has them."""
        for n, net in enumerate(self.nets):
            for m, jail in enumerate(JAILS):
                self.take(net, jail=jail, seconds=(None, 60, 3600.5, 86400 * 7)[(n + m) % 4])
        self.rebuild()

    def stop(self):
        self.run_all(self.firewall.stop(self.look({})))

    # what there is
    def filled(self, text):
        """A text with what it is about here filled in."""
        return text.format(tool=self.tool, net=self.nets[0], set='banwatch-%s' % self.family, **{
            6: dict(more='2001:db8:5::72', inet='inet6', other='inet', twin='banwatch-4')}.get(
            self.family, dict(more='192.0.2.72', inet='inet', other='inet6', twin='banwatch-6')))

    def script(self, text):
        self.space.script(self.filled(text))

    def save(self):
        """All that is in the kernel, of whomever."""
        more = self.tool + '-save; ' if self.make is not NFTables else ''
        shown = self.space.script(more + ('ipset save; ' if self.make is IPSet else '') + 'nft list ruleset')
        return [re.sub(r' \[\d+:\d+\]$', '', line) for line in shown.split('\n') if line[:1] != '#']

    def ours(self):
        return [line for line in self.save() if 'banwatch' in line]

    def read(self, *argv):
        """The lines that a program prints. While a daemon is at work, iptables may not find the set of a rule that has
        just gone."""
        done = []
        assert poll(lambda: done.append(self.space.run(argv)) or not done[-1].returncode, 3), done[-1]
        return done[-1].stdout.splitlines()

    def hook(self, name):
        """The rules of a hook, as iptables prints them."""
        return self.read(self.tool, '-S', name)[1:]

    def shut(self):
        """(hook, network, protocol, port, seconds) of each rule and element: what the kernel will go on to drop, and
        how long; math.inf for ever, and where there is nothing that ends by itself."""
        return sorted(self.table() if self.make is NFTables else self.rules())

    def rules(self):
        sets, chains = {}, {}
        if self.make is IPSet:
            for words in map(str.split, self.read('ipset', 'save')):
                if words[0] == 'add':
                    sets.setdefault(words[1], {})[words[2]] = int(words[4]) or math.inf
        for words in map(str.split, self.read(self.tool, '-S')):
            if words[0] == '-A':
                chains.setdefault(words[1], []).append(dict(zip(words, words[1:])))

        def met(chain, within):
            """What a packet from `within`, or anywhere, may be dropped by, from this chain on."""
            for row in chains.get(chain, ()):
                if row['-j'].startswith('banwatch'):
                    yield from met(row['-j'], row.get('-s', within))
                elif chain.startswith('banwatch') and (row['-j'] != 'DROP' or not {'-s', '--match-set'} & set(row)):
                    yield str(row), '', '', math.inf                       # nobody means that
                elif row['-j'] == 'DROP':
                    nets = sets.get(row['--match-set'], {}) if '--match-set' in row else {row['-s']: math.inf}
                    for net, left in nets.items():
                        if not within or ipaddress.ip_network(net).subnet_of(ipaddress.ip_network(within)):
                            port = row.get('--dport') or row.get('--ctorigdstport', '').join(('original ', ''))
                            yield banwatch.network_of(net), row.get('-p', ''), port if '-p' in row else '', left
        return [(hook,) + row for hook in ('INPUT', 'FORWARD') for row in met(hook, None)]

    def table(self):
        found = re.search(r'^table inet banwatch \{\n.*?^\}', self.space.output(['nft', 'list', 'ruleset']), re.S | re.M)
        found = found.group() if found else ''
        sets = {name: [(ip, lasting(left)) for ip, left in re.findall(
                    r'([\da-f:.]+)(?: timeout \w+ expires (\w+))?(?=,| \})', body)]
                for name, body in re.findall(r'\tset (\w+) \{\n.*?(elements = \{.*?|)\n\t\}', found, re.S)}
        for hook, body in re.findall(r'type filter hook (\w+) [^\n]*\n(.*?)\t\}', found, re.S):
            for row in body.splitlines():
                row = re.sub(r'meta l4proto (\w+) ct original proto-dst ([\d-]+) ', r'\1 dport original \2 ', row)
                m = re.match(r'\t\t(?:(tcp|udp) dport ((?:original )?[\d-]+) )?ip6? saddr (?:& (\S+) (?:== )?)?@(\w+) counter packets \d+ bytes \d+ drop$', row)
                if not m:
                    yield hook.upper(), row, '', '', math.inf              # nobody means that
                    continue
                protocol, port, mask, name = m.groups()
                bits = '/%d' % bin(int(ipaddress.ip_address(mask))).count('1') if mask else ''
                for ip, left in sets[name]:
                    net = banwatch.network_of(str(ipaddress.ip_network(ip + bits)))       # fails if a bit behind the mask is set
                    yield hook.upper(), net, protocol or '', (port or '').replace('-', ':'), left

    def meant(self):
        """What `shut` should return, by the tickets."""
        for (net, door), until in self.wanted().items():
            left = until - now() if until is not None and self.firewall.longest else math.inf
            for hook in self.firewall.hooks if door.forward else ['INPUT']:
                for protocol in door.protocols or ['']:
                    for port in door.ports.split(','):
                        yield hook, net, protocol, port, left
                        # before it was translated; what nft sees of INPUT may be only that
                        if port and (self.make is not NFTables or hook == 'FORWARD'):
                            yield hook, net, protocol, 'original ' + port, left

    def differs(self):
        """What the kernel has and the tickets do not say, or the other way round, or until another moment. What ipset
        prints is up to a second less than what is left; clocks have ticks, programs take their time."""
        before, have, want = now(), self.shut(), sorted(self.meant())
        if [row[:4] for row in have] != [row[:4] for row in want]:
            count = collections.Counter(row[:4] for row in have)
            count.subtract(row[:4] for row in want)
            return ['%+d: %s' % (n, ' '.join(row)) for row, n in count.items() if n]
        early, late = 1.1 if self.make is IPSet else 0.1, now() - before + 1.5
        return ['%s instead of %.3f' % (row, left) for row, (*_, left) in zip(have, want)
                if not left - early <= row[4] <= left + late]

    def right(self):
        """Asserts that the kernel has just our tickets, until when they say."""
        assert self.differs() == []
        assert self.differences() == ''


def lasting(text):
    """Seconds of nft's '6d23h59m59s996ms'; for ever if there is nothing."""
    units = {'d': 86400, 'h': 3600, 'm': 60, 's': 1, 'ms': 0.001}
    return sum(int(n) * units[unit] for n, unit in re.findall('([0-9]+)(ms|[dhms])', text)) if text else math.inf


def walls_of(firewall, space):
    """The Walls that show what a daemon with this firewall has put into a kernel."""
    made = [Wall(kind, space) for kind in {'iptables': ['iptables-nft', 'ip6tables-nft'],
                                           'ipset': ['ipset-nft', 'ipset6-nft'], 'nft': ['nft']}[firewall]]
    for wall in made:
        wall.tool = wall.tool.partition('-')[0]                            # whichever iptables this machine has
    return made


def kinds(classes, among=PAIRS):
    return [pytest.param(name, id=name, marks=[pytest.mark.slow] * (name not in FAST))
            for name, (made, _, _) in KINDS.items() if made in classes and name in among]


def only(*classes):
    """A test for the walls of these classes."""
    return pytest.mark.parametrize('wall', kinds(classes), indirect=True)


EVERY = pytest.mark.parametrize('wall', kinds((IPTables, IPSet, NFTables), KINDS), indirect=True)


# what somebody else may do to all that is in the kernel
FLUSH = {IPTables: {'rules': '{tool} -F', 'sets': '{tool} -F banwatch', 'all': '{tool} -F; {tool} -X'},
         IPSet: {'rules': '{tool} -F', 'sets': '{tool} -F; ipset destroy', 'all': '{tool} -F; {tool} -X; ipset destroy'},
         NFTables: {'rules': 'nft flush table inet banwatch', 'all': 'nft flush ruleset', 'sets':
                    'nft flush table inet banwatch; nft delete set inet banwatch v6_61; nft delete set inet banwatch v4'}}

SPLIT = ['-A FORWARD -j banwatch', '-A INPUT -j banwatch-input']
WHOLE = ['-A FORWARD -j banwatch', '-A INPUT -j banwatch']


def jumps(wall):
    """All that stands in the hooks of iptables and is ours."""
    return sorted(row for hook in HOOKS for row in wall.hook(hook) if '-j banwatch' in row)


@pytest.fixture(params=kinds((IPTables, IPSet, NFTables)))
def wall(request):
    made, _, tool = KINDS[request.param]
    need('unshare', 'nsenter', 'nft', tool, *['ipset'] * (made is IPSet), root=True)
    wall = Wall(request.param)
    yield wall
    wall.space.close()


@EVERY
def test_what_is_banned_is_what_the_tickets_say_after_a_rebuild_after_changes_and_after_both(wall):
    wall.take(*wall.nets[:2])
    wall.rebuild()
    wall.right()
    wall.ban(*wall.nets[2:])
    wall.right()
    wall.unban(wall.nets[0], wall.nets[4])
    wall.right()
    wall.ban(wall.nets[0], jail=SCAN)
    wall.ban(*wall.nets[:3], jail=WEB)
    wall.right()
    wall.rebuild()
    wall.right()
    wall.ban(wall.nets[0], jail=SSH, seconds=None)
    wall.unban(wall.nets[0], jail=SCAN)
    wall.right()
    wall.unban(*wall.nets)
    assert wall.shut() == []
    wall.right()


def test_start_bans_and_stop_leave_what_is_foreign_as_it_was(wall):
    wall.script(FOREIGN[wall.make])
    before = wall.save()
    wall.rebuild()
    wall.crowd()
    wall.right()
    wall.unban(*wall.nets[::2])
    wall.right()
    assert set(before) <= set(wall.save())
    wall.stop()
    assert wall.save() == before


def test_a_stop_leaves_nothing_not_a_rule_nor_a_set_nor_a_table(wall):
    for restart in doors(), {}:                                            # {}: as after a daemon that was killed
        wall.crowd()
        wall.use(restart)
        wall.stop()
        assert wall.ours() == [] and wall.shut() == []


def test_a_stop_after_somebody_flushed_everything_is_quiet(wall):
    wall.crowd()
    wall.script(FLUSH[wall.make]['all'])
    assert wall.firewall.stop(wall.look({})) == []


def test_looking_twice_changes_nothing(wall):
    wall.crowd()
    before = wall.save()
    assert wall.mend() == ''
    if wall.make is not NFTables:                                          # which counts milliseconds
        assert wall.save() == before


def test_any_number_of_bans_and_unbans_is_one_run_of_one_program(wall):
    many = some(500, wall.family, random.Random(2))
    wall.rebuild()
    for act in (lambda: wall.ban(*many[:400]), lambda: wall.ban(*many[:10], seconds=None), lambda: wall.unban(*many[:200]),
                lambda: (wall.take(*many[300:]), wall.unban(*many[200:250]))):
        before = wall.ran
        act()
        assert wall.ran == before + 1
    wall.right()


@pytest.mark.slow
def test_two_thousand_bans_are_one_batch(wall):
    wall.take(*some(2000, wall.family, random.Random(3)))
    checks, before = len(wall.firewall.check({})), wall.ran
    wall.rebuild()
    assert wall.ran <= before + checks + 2                                 # ipset: the sets, and rules that look into them
    wall.right()


def test_nothing_changed_is_nothing_to_run(wall):
    wall.crowd()
    assert wall.changes() == [] and (wall.firewall.change([], now()) == [] or wall.make is IPTables)


def test_a_batch_can_be_repeated(wall):
    wall.crowd()
    wall.take(*wall.nets[:3], jail=WEB, seconds=1000)
    wall.tickets = {key: each for key, each in wall.tickets.items() if each.network != wall.nets[4]}
    commands = wall.firewall.change(wall.changes(), now())
    for _ in range(3):
        wall.run_all(commands)
        wall.right()


def test_what_is_not_there_can_be_unbanned_and_what_is_there_banned_again(wall):
    wall.crowd()
    gone = [Change(net, PLAIN, True, True, None) for net in some(4, wall.family, random.Random(4))]
    wall.run_all(wall.firewall.change(gone, now()))
    wall.right()
    there = [Change(net, door, True, False, until) for (net, door), until in wall.told.items()]
    wall.run_all(wall.firewall.change(there, now()))
    wall.right()


def test_what_comes_and_goes_within_one_batch_was_never_there(wall):
    wall.crowd()
    both = [Change(net, PLAIN, False, True, None) for net in some(4, wall.family, random.Random(5))]
    wall.run_all(wall.firewall.change(both, now()))
    wall.right()


@pytest.mark.parametrize('flush', ['rules', 'sets', 'all'])
def test_a_change_of_what_somebody_has_flushed_fails_as_a_whole_or_does_no_harm_and_a_rebuild_makes_it_right(wall, flush):
    wall.crowd()
    wall.script(FLUSH[wall.make][flush])
    before = wall.shut()
    wall.take(*wall.nets[:2], jail=WEB, seconds=None)
    wall.tickets = {key: each for key, each in wall.tickets.items() if each.network != wall.nets[4]}
    done = [wall.run(command) for command in wall.firewall.change(wall.changes(), now())]
    if done[0].returncode:
        assert wall.shut() == before                                       # all or nothing
    wall.mend()
    wall.right()


XTABLES_DAMAGE = [
    ('{tool} -F banwatch', 'rules instead of'),
    ('{tool} -F banwatch-input', 'rules instead of'),
    ('{tool} -D banwatch-input 1', 'rules instead of'),
    ('{tool} -D INPUT -j banwatch-input', 'INPUT rule missing'),
    ('{tool} -F FORWARD', 'FORWARD rule missing'),
    ('{tool} -F INPUT; {tool} -F FORWARD', 'INPUT rule missing, FORWARD rule missing'),
    ('{tool} -D INPUT -j banwatch-input; {tool} -I INPUT -j banwatch', 'INPUT rule missing'),
    ('{tool} -I INPUT 1 -m conntrack --ctstate ESTABLISHED -j ACCEPT', 'INPUT rule not first'),
    ('{tool} -I FORWARD 1 -j ACCEPT', 'FORWARD rule not first'),
    ('{tool} -A INPUT -j banwatch-input', 'INPUT rule doubled'),
    ('{tool} -A INPUT -j banwatch', 'INPUT rule doubled'),
    ('{tool} -I INPUT 1 -j banwatch', 'INPUT rule doubled'),
    ('{tool} -A FORWARD -j banwatch-input', 'FORWARD rule doubled'),
    ('{tool} -A banwatch -j ACCEPT', 'rules instead of'),
    ('{tool} -I banwatch -p tcp --dport 22 -j ACCEPT', 'rules instead of'),
    ('rule=$({tool} -S banwatch | tail -n 1); {tool} $rule', 'rules instead of'),
    ('{tool} -R banwatch 1 -j RETURN', 'other rules than ours'),
    ('{tool} -N banwatch-0; {tool} -A banwatch-0 -j DROP', 'rules instead of'),
    ('{tool} -N banwatch-0', 'other rules than ours'),
    ('{tool} -F; {tool} -X', 'chain banwatch missing')]
# a set that rules look into cannot be destroyed
ANOTHER = '{tool} -F banwatch-input; {tool} -F banwatch; ipset destroy {set}; ipset create {set} '
DAMAGE = {
    IPTables: XTABLES_DAMAGE,
    IPSet: XTABLES_DAMAGE + [
        ('ipset flush {set}', 'set {set} has 0 entries instead of'),
        ('ipset flush', 'set {set} has 0 entries instead of'),
        ('ipset del {set} {net}', 'entries instead of'),
        ('ipset add {set}-1 {more}', 'entries instead of'),
        ('{tool} -F; {tool} -X; ipset destroy', 'set {set} missing'),
        ('{tool} -F banwatch; ipset destroy {set}-1', 'set {set}-1 missing'),
        (ANOTHER + 'hash:ip family {inet} timeout 0', 'set {set} is of another kind'),
        (ANOTHER + 'hash:net family {other} timeout 0 maxelem 1048576', 'set {set} is of another kind'),
        (ANOTHER + 'hash:net family {inet} timeout 300 maxelem 1048576', 'set {set} is of another kind'),
        (ANOTHER + 'hash:net family {inet} timeout 0 maxelem 65536', 'set {set} '),
        (ANOTHER + 'hash:net family {inet} timeout 0 maxelem 1048576 counters', 'set {set} '),
        ('ipset create {set}-9 hash:net family {inet} timeout 0; ipset add {set}-9 {net}', 'set {set}-9 not wanted'),
        ('ipset create {set}-new hash:ip family {inet}', 'set {set}-new not wanted')],
    NFTables: [
        ('nft delete table inet banwatch', 'table inet banwatch missing'),
        ('nft flush ruleset', 'table inet banwatch missing'),
        ('nft flush table inet banwatch', 'chain input has other rules than ours, chain forward has other rules than ours'),
        ('nft flush chain inet banwatch input', 'chain input has other rules than ours'),
        ('nft flush chain inet banwatch input; nft delete chain inet banwatch input', 'chain input missing'),
        ('nft chain inet banwatch input "{{ policy drop; }}"', 'chain input missing'),
        ('nft insert rule inet banwatch input accept', 'chain input has other rules than ours'),
        ('nft insert rule inet banwatch forward ct state established accept', 'chain forward has other rules than ours'),
        ('nft add rule inet banwatch input ip saddr @v4 drop', 'chain input has other rules than ours'),
        ('nft add rule inet banwatch forward ip saddr 9.9.9.9 drop', 'chain forward has other rules than ours'),
        ('nft add chain inet banwatch foreign', 'more than ours'),
        ('nft add set inet banwatch foreign "{{ type ipv4_addr; }}"', 'more than ours'),
        ('nft flush set inet banwatch v4', 'elements missing'),
        ('for name in v4 v6 v6_64; do nft flush set inet banwatch $name; done', 'elements missing'),
        ('nft flush table inet banwatch; nft delete set inet banwatch v6_61', 'set v6_61 missing'),
        ('nft delete table inet banwatch; nft add table inet banwatch; nft add chain inet banwatch input',
         'chain input missing'),
        ('nft add table inet banwatch "{{ flags dormant; }}"', 'table inet banwatch is switched off')]}


@pytest.mark.slow
def test_damage_is_noticed_told_and_mended_by_one_rebuild(wall):
    wall.crowd()
    for damage, told in DAMAGE[wall.make]:
        wall.script(damage)
        assert wall.filled(told) in wall.mend(), damage
        wall.right()
        if wall.make is not NFTables:
            assert [wall.hook(name)[0] for name in HOOKS] == ['-A INPUT -j banwatch-input', '-A FORWARD -j banwatch']
            assert jumps(wall) == SPLIT


@pytest.mark.slow
@only(IPTables, IPSet)
def test_damage_to_a_wall_without_a_chain_in_front_is_mended_too(wall):
    wall.use(doors([ALL, WEB]))
    wall.take(*wall.nets)
    wall.rebuild()
    for damage, told in (('{tool} -F banwatch', 'rules instead of'), ('{tool} -D INPUT -j banwatch', 'INPUT rule missing'),
                         ('{tool} -I INPUT 1 -j ACCEPT', 'INPUT rule not first'),
                         ('{tool} -A INPUT -j banwatch', 'INPUT rule doubled'),
                         ('{tool} -N banwatch-input; {tool} -A INPUT -j banwatch-input', 'INPUT rule doubled'),
                         ('{tool} -F; {tool} -X', 'chain banwatch missing')):
        wall.script(damage)
        assert told in wall.mend(), damage
        wall.right()
        assert wall.hook('INPUT')[0] == '-A INPUT -j banwatch' and jumps(wall) == WHOLE


@only(IPTables, IPSet)
def test_our_jump_stands_first_before_established(wall):
    wall.script(FOREIGN[wall.make])
    wall.rebuild()
    assert [wall.hook(name)[0] for name in HOOKS] == ['-A INPUT -j banwatch-input', '-A FORWARD -j banwatch']


def test_what_has_no_ticket_is_removed_at_the_start(wall):
    wall.crowd()
    wall.tickets = {key: each for key, each in wall.tickets.items() if each.jail == ALL and each.network in wall.nets[:2]}
    wall.use(doors())
    wall.rebuild()
    wall.right()


@only(IPTables, IPSet)
def test_a_table_of_the_other_iptables_is_only_a_warning(wall):
    """iptables-nft warns of legacy tables on every call; that is no trouble."""
    other = wall.tool.replace('nft', 'legacy') if 'nft' in wall.tool else wall.tool.replace('legacy', 'nft')
    need(other, root=True)
    wall.space.script('%s -N foreign' % other)
    wall.crowd()
    wall.right()


@pytest.mark.slow
@only(IPTables, IPSet)
def test_the_two_families_leave_each_other_alone(wall):
    twin = {'iptables': 'ip6tables', 'ip6tables': 'iptables', 'ipset': 'ipset6', 'ipset6': 'ipset'}
    name, _, dialect = wall.kind.partition('-')
    other = Wall(twin[name] + '-' + dialect, wall.space)
    for each in wall, other:
        each.crowd()
    wall.right()
    other.right()
    wall.stop()
    other.right()
    other.stop()
    assert wall.ours() == other.ours() == []


# --- how long

@only(IPSet, NFTables)
def test_the_kernel_never_lets_go_before_the_ticket_nor_a_second_after_it(wall):
    wall.take(wall.nets[0], seconds=None)
    for n, seconds in enumerate((2, 59.5, 600, 2147000)):
        wall.take(*some(3, wall.family, random.Random(n)), seconds=seconds)
    wall.rebuild()
    wall.right()
    wall.ban(*some(3, wall.family, random.Random(9)), seconds=70.25)
    wall.ban(wall.nets[2], seconds=None)
    wall.right()


@only(IPSet, NFTables)
@pytest.mark.parametrize('seconds', [banwatch.duration('4w'), banwatch.duration('100y')])
def test_a_ban_longer_than_the_kernel_can_count_lasts_as_long_as_that(wall, seconds):
    longest = {IPSet: 2147483, NFTables: 90000000}[wall.make]
    wall.take(wall.nets[0], seconds=seconds)
    wall.rebuild()
    wall.ban(wall.nets[1], seconds=seconds)
    assert wall.differences() == ''
    for *_, left in wall.shut():
        assert min(seconds, longest) - 2 < left < min(seconds, longest) + 2
    assert len(wall.shut()) == 4


def test_a_ban_whose_end_is_moved_ends_then(wall):
    wall.take(*wall.nets[:3], seconds=600)
    wall.rebuild()
    for seconds in 3600, 60, None, 1200, 30:
        wall.ban(*wall.nets[:3], seconds=seconds)
        wall.right()


def test_a_network_banned_by_two_jails_of_one_door_is_banned_until_both_are_over(wall):
    net = wall.nets[0]
    wall.take(net, jail=ALL, seconds=600)
    wall.take(net, jail='manual', seconds=3600)
    wall.rebuild()
    assert len(wall.shut()) == 2                                           # one for each hook
    wall.right()
    wall.unban(net, jail='manual')
    wall.right()
    wall.ban(net, jail='manual', seconds=None)
    wall.right()
    wall.unban(net, jail=ALL)
    wall.right()
    wall.ban(net, jail=ALL)
    wall.unban(net, jail='manual')
    wall.right()
    assert len(wall.shut()) == 2


@only(IPSet, NFTables)
@pytest.mark.slow
def test_what_has_ended_goes_from_the_kernel_by_itself(wall):
    wall.take(wall.nets[1], seconds=600)
    wall.rebuild()
    wall.ban(*wall.nets[:1] + some(3, wall.family, random.Random(6)), seconds=2)
    assert len(wall.shut()) == 10
    assert poll(lambda: len(wall.shut()) == 2, 5)
    wall.tickets = {key: each for key, each in wall.tickets.items() if each.network == wall.nets[1]}
    assert wall.differences() == ''                                              # before anybody has told the kernel,
    changes = wall.changes()
    assert len(changes) == 4
    wall.run_all(wall.firewall.change(changes, now()))
    wall.right()                                                           # and after that


@only(IPSet, NFTables)
@pytest.mark.slow
def test_what_has_just_ended_in_the_kernel_can_be_banned_anew_and_made_longer(wall):
    wall.rebuild()
    wall.ban(*wall.nets[:2], seconds=0.5)
    assert poll(lambda: wall.shut() == [], 5)
    wall.ban(*wall.nets[:2], seconds=600)                                  # a Change of what is `there`, as far as is known
    wall.right()


# --- doors: what is shut

def shuts(wall):
    return {(hook, protocol, port) for hook, _, protocol, port, _ in wall.shut()}


def test_ports_narrow_a_ban_to_them(wall):
    wall.take(wall.nets[0], wall.nets[1], jail=WEB)
    wall.rebuild()
    wall.right()
    assert {row for row in shuts(wall) if ' ' not in row[2]} == set(itertools.product(HOOKS, ('tcp', 'udp'), ('80', '8000:8080')))


@pytest.mark.slow
def test_a_ban_that_leaves_forwarded_packets_alone_is_not_met_by_them(wall):
    wall.script(FOREIGN[wall.make])
    before = wall.save()
    wall.take(wall.nets[0], jail=SCAN)
    wall.take(wall.nets[1], jail=SSH)
    wall.rebuild()
    wall.right()
    assert {row for row in shuts(wall) if ' ' not in row[2]} == {('INPUT', '', ''), ('INPUT', 'tcp', '22')}
    wall.ban(*wall.nets[2:], jail=SCAN)
    wall.right()
    assert {row[0] for row in wall.shut()} == {'INPUT'}
    wall.unban(*wall.nets[::2])
    wall.right()
    wall.unban(*wall.nets)
    wall.right()
    wall.stop()
    assert wall.save() == before


def test_an_address_banned_both_ways_stays_banned_for_the_one_when_the_other_is_over(wall):
    net = wall.nets[0]
    for over, left in ((ALL, SCAN), (SCAN, ALL)):
        wall.take(net, jail=over)
        wall.take(net, jail=left)
        wall.rebuild()
        assert len(wall.shut()) == 3
        wall.unban(net, jail=over)
        wall.right()
        wall.unban(net)


@pytest.mark.parametrize('hook', HOOKS)
def test_with_one_hook_only_the_other_is_left_alone(wall, hook):
    wall.use(doors(hooks=[hook]), [hook])
    wall.crowd()
    wall.right()
    assert {row[0] for row in wall.shut()} == {hook}
    assert ('22' in {row[3] for row in wall.shut()}) == (hook == 'INPUT')  # that jail leaves alone what is forwarded
    if wall.make is not NFTables:
        assert jumps(wall) == ['-A %s -j banwatch' % hook]


def test_bans_of_a_jail_that_stop_nothing_are_none(wall):
    wall.use(dict(doors(), **{SCAN: None}))
    wall.take(wall.nets[0], jail=SCAN)
    wall.take(wall.nets[1], jail='of another conf')
    wall.rebuild()
    assert wall.shut() == []
    wall.right()


def test_a_hook_that_is_no_longer_wanted_goes(wall):
    wall.crowd()
    wall.use(doors(hooks=['INPUT']), ['INPUT'])
    if wall.make is not NFTables:
        assert 'FORWARD rule not wanted' in wall.differences()
    wall.rebuild()
    wall.right()
    assert {row[0] for row in wall.shut()} == {'INPUT'}


@pytest.mark.slow
def test_other_doors_and_hooks_leave_nothing_of_the_earlier_ones(wall):
    wall.crowd()
    for jails, hooks in (([ALL], HOOKS), (JAILS, HOOKS), ([SCAN], HOOKS), ([WEB, SSH], ['INPUT']), ([WEB], ['FORWARD']),
                         ([], HOOKS), (JAILS, ['FORWARD']), ([SSH, ALL], HOOKS)):
        wall.use(doors(jails, hooks), hooks)
        wall.rebuild()
        wall.right()
        if wall.make is not NFTables:
            split = any(jail in (SSH, SCAN) for jail in jails)
            assert jumps(wall) == [(SPLIT if split and hooks == HOOKS else WHOLE)[hook == 'INPUT'] for hook in sorted(hooks)]
            assert ('banwatch-input' in str(wall.ours())) == (split and hooks == HOOKS)
    wall.stop()
    assert wall.ours() == []


@only(IPTables, IPSet)
def test_a_jump_to_the_chain_in_front_that_is_left_over_does_not_keep_it_from_going(wall):
    wall.crowd()
    wall.script('{tool} -I INPUT -j banwatch; {tool} -A FORWARD -j banwatch-input')
    wall.use(doors([ALL]))
    wall.rebuild()
    wall.right()
    assert jumps(wall) == WHOLE


# --- sets

LEFT = {
    'half filled': 'ipset create {set}-new hash:net family {inet} maxelem 1048576 timeout 0; ipset add {set}-new {more}',
    'half filled, of another type': 'ipset create {set}-new hash:ip family {inet}; ipset add {set}-new {more}',
    'half filled, of another size': 'ipset create {set}-new hash:net family {inet} timeout 0 maxelem 65536',
    'of another size': 'ipset create {set} hash:net family {inet} timeout 0 maxelem 65536',
    'of another family': 'ipset create {set} hash:net family {other} timeout 0 maxelem 1048576',
    'without timeout': 'ipset create {set} hash:net family {inet} maxelem 1048576',
    'with another timeout': 'ipset create {set} hash:net family {inet} maxelem 1048576 timeout 60',
    'with counters': 'ipset create {set} hash:net family {inet} maxelem 1048576 timeout 0 counters',
    'with comments': 'ipset create {set} hash:net family {inet} maxelem 1048576 timeout 0 comment',
    'of another type': 'ipset create {set} hash:ip family {inet} timeout 0', 'of other sets': 'ipset create {set} list:set',
    'of more doors': 'ipset create {set}-7 hash:net family {inet} timeout 0; ipset create {set}-7-new hash:ip',
    'in use': 'ipset create {set} hash:ip family {inet}; {tool} -N banwatch; {tool} -I INPUT -j banwatch; '
              '{tool} -A banwatch -m set --match-set {set} src -j DROP'}


@pytest.mark.slow
@only(IPSet)
@pytest.mark.parametrize('left', LEFT.values(), ids=[name.replace(' ', '-') for name in LEFT])
def test_sets_that_somebody_else_or_an_interrupted_start_has_left_do_not_matter(wall, left):
    wall.script(left)
    wall.crowd()
    wall.right()
    assert sorted(wall.space.output(['ipset', 'list', '-n']).split()) == sorted(wall.firewall.sets.values())
    wall.stop()
    assert wall.ours() == []


@pytest.mark.slow
@only(IPSet)
def test_sets_and_rules_can_take_turns(wall):
    wall.crowd()
    for made in IPTables, IPSet, IPTables:
        wall.make = made
        wall.use(doors())
        wall.rebuild()
        wall.right()
        assert bool(wall.space.output(['ipset', 'list', '-n'])) == (made is IPSet)
    wall.make = IPSet
    wall.use(doors())
    wall.rebuild()
    wall.make = IPTables
    wall.use({})
    wall.stop()
    wall.make = IPSet
    assert wall.ours() == []


@only(IPTables)
def test_a_set_of_somebody_else_is_not_taken_for_one_that_we_have_left(wall):
    need('ipset', root=True)
    wall.script('ipset create banwatch_good hash:net family {inet}; ipset add banwatch_good {net}')
    for rule in '{tool} -N banwatch_good; {tool} -A banwatch_good', '{tool} -A banwatch':
        wall.rebuild()
        wall.script(rule + ' -m set --match-set banwatch_good src -j ACCEPT')
        wall.rebuild()
        wall.right()
        assert len(wall.space.output(['ipset', 'list', 'banwatch_good']).split(wall.nets[0])) == 2
    wall.stop()
    assert 'banwatch_good' in wall.space.output(['ipset', 'list', '-n'])


@only(NFTables)
def test_a_network_of_a_length_that_is_new_is_written_anew_with_all_the_others_in_one_run(wall):
    wall.crowd()
    assert wall.firewall.change([Change('100.64.0.0/10', PLAIN, False, False, None)], now()) is None
    wall.take('100.64.0.0/10')
    before = wall.ran
    wall.rebuild()
    assert wall.ran == before + len(wall.firewall.check(wall.wanted())) + 1
    wall.right()


# --- anything, in any order

@EVERY
@pytest.mark.slow
@seeds()
def test_any_sequence_of_bans_unbans_and_damage_ends_with_the_kernel_equal_to_the_tickets(wall, seed):
    rng = random.Random(seed)
    wall.script(FOREIGN[wall.make])
    before = wall.save()
    wall.rebuild()
    pool = some(15, wall.family, rng) + wall.nets
    for _ in range(40):
        act, here, jail = rng.randrange(8), sorted({net for _, net in wall.tickets}), rng.choice(JAILS)
        if act < 3:
            wall.ban(*rng.sample(pool, rng.randrange(1, 6)), jail=jail, seconds=rng.choice([None, 60, 600.5, 86400]))
        elif act == 3 and here:                                            # both in one batch, also of the same address
            wall.take(*rng.sample(here, 1) + rng.sample(pool, 2), jail=jail)
            wall.unban(*rng.sample(here, min(len(here), 3)))
        elif act == 4 and here:
            wall.unban(*rng.sample(here, rng.randrange(1, len(here) + 1)), jail=rng.choice([None, jail]))
        elif act == 5:
            damage, _ = rng.choice(DAMAGE[wall.make])
            wall.space.run(['sh', '-c', wall.filled(damage)])             # of some there is nothing to damage at the moment
            wall.mend()
        elif act == 6:
            wall.use(doors(rng.sample(JAILS, rng.randrange(6))))
            wall.rebuild()
        else:
            wall.use(doors())
            wall.rebuild()
        wall.right()
    wall.stop()
    assert set(wall.ours()) <= set(before)


# --- packets

ROUTER = {4: '203.0.113.1', 6: '2001:db8:1::1'}
HOST = {4: '192.168.1.2', 6: '2001:db8:2::2'}              # on the LAN, behind the router
OUTSIDE = {4: '198.51.100.7', 6: '2001:db8:bad::7'}
INNOCENT = {4: '198.51.100.8', 6: '2001:db8:bad:8::8'}
BANNED = {4: '198.51.100.7', 6: '2001:db8:bad::/64'}
PACKET = {4: 'Nov 20 12:00:00 r kernel: [ 9.1] REJECT wan in: IN=wan OUT= MAC= SRC=198.51.100.7 DST=203.0.113.1 LEN=44 '
             'TOS=0x00 PREC=0x00 TTL=50 ID=5 PROTO=TCP SPT=4000 DPT=%d WINDOW=1024 RES=0x00 SYN URGP=0\n',
          6: 'Nov 20 12:00:00 r kernel: [ 9.1] REJECT wan in: IN=wan OUT= MAC= SRC=2001:0db8:0bad:0000:0000:0000:0000:0007 '
             'DST=2001:0db8:0001:0000:0000:0000:0000:0001 LEN=64 TC=0 HOPLIMIT=50 FLOWLBL=0 PROTO=TCP SPT=4000 DPT=%d '
             'WINDOW=1024 RES=0x00 SYN URGP=0\n'}


def reaches(network, version, source=OUTSIDE):
    """(does the attacker get through to the router, to the LAN behind it?)"""
    return tuple(network.attacker.reached([(to[version], 9, source[version]) for to in (ROUTER, HOST)]))


class Line:
    """An open TCP connection from outside to one who listens."""

    def __init__(self, network, door, to, source):
        self.near = network.attacker.connect(to, 9, source)
        self.far = door.accept()[0]

    def carries(self, seconds):
        """Does what is said arrive within that time?"""
        self.near.send(b'.')
        self.far.settimeout(seconds)
        try:
            return self.far.recv(100) != b''
        except OSError:
            return False

    def close(self):
        self.near.close()
        self.far.close()


@pytest.mark.slow
@pytest.mark.parametrize('kind', PAIRS)
def test_a_ban_cuts_off_also_what_is_open_and_nobody_else(network, kind):
    wall = Wall(kind, network.router)
    need('nft', wall.tool, *['ipset'] * (wall.make is IPSet), root=True)
    wall.script(FOREIGN[wall.make])                                        # which accepts what is established
    wall.rebuild()
    lan = network.lan.listen('::', 9)
    versions = [wall.family] if wall.family else [4, 6]
    lines, innocent = [[Line(network, door, to[version], who[version]) for version in versions
                        for door, to in ((network.scope, ROUTER), (lan, HOST))] for who in (OUTSIDE, INNOCENT)]
    assert all(line.carries(5) for line in lines + innocent)
    wall.ban(*[BANNED[version] for version in versions])
    assert not any(line.carries(0.3) for line in lines)
    assert all(line.carries(5) for line in innocent)
    for version in versions:
        assert reaches(network, version) == (False, False)
        assert reaches(network, version, INNOCENT) == (True, True)
    wall.unban(*[BANNED[version] for version in versions])
    for version in versions:
        assert reaches(network, version) == (True, True)
    for each in lines + innocent + [lan]:
        each.close()


@pytest.mark.slow
@pytest.mark.parametrize('firewall, version', [('iptables', 4), ('ipset', 6), ('nft', 4)])
def test_who_scans_ports_gets_nothing_through_to_the_router_and_all_through_it(network, daemon, version, firewall):
    door = network.lan.listen('::', 9)
    open(network.log, 'w').close()                         # what stood there before would count at its own time
    guard = daemon('[kernel-scan]\n', firewall=firewall)
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
@pytest.mark.parametrize('firewall', ['iptables', 'ipset', 'nft'])
def test_a_reload_that_switches_such_a_jail_on_and_off_leaves_no_second_jump_and_a_stop_leaves_nothing(
        network, daemon, firewall):
    open(network.log, 'w').close()
    guard = daemon(firewall=firewall)
    walls = walls_of(firewall, network.router)
    assert guard.command('ban', '-j', 'sshd', '192.0.2.7', '2001:db8:5::/64').returncode == 0
    with open(guard.conf) as f:
        plain = f.read()

    def hooks(*nets):
        return sorted(row[:2] for wall in walls for row in wall.shut() if row[1] in nets)

    def in_each(hooks, *nets):
        return sorted((hook, net) for hook in hooks for net in nets)
    for text, shut in (('[kernel-scan]\n', ['INPUT']), ('', []), ('[kernel-scan]\nforward = true\n', HOOKS),
                       ('[kernel-scan]\n', ['INPUT'])):
        with open(guard.conf, 'w') as f:
            f.write(plain + text)
        assert guard.command('reload').returncode == 0
        if text:
            assert guard.command('ban', '-j', 'kernel-scan', *OUTSIDE.values()).returncode == 0
        assert poll(lambda: hooks(*OUTSIDE.values()) == in_each(shut, *OUTSIDE.values()))
        assert hooks('192.0.2.7', '2001:db8:5::/64') == in_each(HOOKS, '192.0.2.7', '2001:db8:5::/64')
        if firewall != 'nft':
            inner = shut == ['INPUT']
            assert poll(lambda: [jumps(wall) for wall in walls] == [SPLIT if inner else WHOLE] * 2)
            assert poll(lambda: ['banwatch-input' in str(wall.ours()) for wall in walls] == [inner] * 2)
    assert guard.ask('status')['wrong'] == []
    assert guard.stop() == 0
    assert [wall.ours() for wall in walls] == [[]] * len(walls)


@pytest.mark.slow
@pytest.mark.parametrize('firewall', ['iptables', 'ipset', 'nft'])
def test_the_port_of_a_ban_is_the_one_that_the_attacker_talks_to(network, daemon, firewall):
    """As with a container's published port, or a port forward: the packet has another one when it is filtered."""
    inside = network.lan.listen('0.0.0.0', 22)
    network.router.script("""nft -f - <<.
table ip translated { chain pre { type nat hook prerouting priority -100; iifname "wan" tcp dport { 2222, 2223 } dnat to 192.168.1.2:22; }; }
.
""")
    try:
        daemon('[sshd]\nport = 2222\n', firewall=firewall).command('ban', '-j', 'sshd', '198.51.100.7')
        knocks = [('203.0.113.1', port, ip) for port in (2222, 2223) for ip in ('198.51.100.7', '198.51.100.8')]
        assert poll(lambda: network.attacker.reached(knocks) == [False, True, True, True])
    finally:
        network.router.script('nft delete table ip translated')
        inside.close()


@pytest.mark.slow
@pytest.mark.parametrize('firewall, damage', [
    ('nft', 'nft delete table inet banwatch'), ('nft', 'nft flush ruleset'), ('nft', 'nft flush chain inet banwatch input'),
    ('iptables', 'iptables -F INPUT'), ('iptables', 'iptables -I INPUT 1 -j ACCEPT'), ('ipset', 'iptables -F banwatch')])
def test_what_another_program_takes_away_is_back_within_a_second(network, daemon, firewall, damage):
    need('nft', 'iptables-nft')
    guard = daemon(firewall=firewall)
    walls = walls_of(firewall, network.router)
    assert guard.command('ban', '-t', '-1', '192.0.2.7').returncode == 0

    def there():                                             # a set that was swapped has another number
        return [[line for line in wall.ours() if not line.startswith('create ')] for wall in walls]
    intact = there()
    network.router.script(damage)
    began = time.monotonic()
    assert poll(lambda: there() == intact, 10)
    assert time.monotonic() - began < 3                      # a minute without events
    assert guard.stop() == 0
    network.router.script('iptables -D INPUT -j ACCEPT 2>/dev/null || :')


def test_our_own_changes_and_those_of_others_rules_are_no_reason_to_look():
    def message(kind, *attributes):
        body = b'\1\0\0\0' + b''.join(struct.pack('=HH', 4 + len(value), key) + value + bytes(-len(value) % 4) for key, value in attributes)
        return struct.pack('=IHHII', 16 + len(body), 10 << 8 | kind, 0, 0, 0) + body

    def end(pid):
        return message(15, (1, b'\0\0\0\5'), (2, pid.to_bytes(4, 'big')), (3, b'nft\0'))
    ours, filters, theirs, element = message(6, (1, b'banwatch\0')), message(8, (1, b'filter\0')), message(6, (1, b'fw4\0')), message(
        12, (1, b'banwatch\0'))
    for said, told in ((ours + end(7), True), (ours + end(9), False), (filters + end(7), True), (theirs + end(7), False),
                       (element + end(7), False), (ours + end(9) + filters + end(7), True), (ours + end(9) + theirs + end(7), False),
                       (b'', False), (b'\0' * 40, False), (ours, False)):
        assert banwatch.rules_changed(said, [9]) == (told, said == ours), said
    assert banwatch.rules_changed(end(7), [9], True) == (True, False)      # each message comes for itself


# --- the daemon and the kernel: whatever happens to either of them, what is shut is what `banned` shows

# the doors of test_firewalls.py, and no failures that would lead to bans of their own
TEXT = '[luci]\nport = 80,8000:8080\nprotocol = tcp udp\n[dropbear]\nport = ssh\nforward = false\n[kernel-scan]\n'
PARTS = {'iptables': {'chains'}, 'ipset': {'chains', 'sets'}, 'nft': {'table'}}        # what each firewall consists of
TIMES = ['1', '1.5', '90', '1h', '2w', '-1']


class Watch:
    """A daemon, the walls that show what it has put into the kernel, and what may happen to them."""

    def __init__(self, network, daemon, firewall, rng):
        open(network.log, 'w').close()
        self.router, self.rng = network.router, rng
        self.guard = daemon(TEXT, firewall=firewall)
        self.follow(firewall)

    def follow(self, firewall):
        self.firewall, self.walls = firewall, walls_of(firewall, self.router)

    def parts(self):
        """All that is ours in the kernel, of whichever firewall."""
        lists = {'chains': 'iptables -S; ip6tables -S', 'sets': 'ipset list -n', 'table': 'nft list tables'}
        return {part for part, command in lists.items() if 'banwatch' in self.router.run(['sh', '-c', command]).stdout}

    def differs(self):
        """What the kernel has other than `banned` says."""
        rows, found = self.guard.ask('banned'), []
        for wall in self.walls:
            wall.tickets = {(row['jail'], row['ip']): banwatch.Ticket(
                row['jail'], row['ip'], 0, row['until'] and row['until'] - time.time() + now(), 1, 0)
                for row in rows if wall.family in (None, banwatch.span(row['ip'])[0])}
            found += wall.differs()
            if wall.family:                                    # that of nft knows only of sets that it has made itself
                found += filter(None, [wall.differences()])
        return found + sorted(self.parts() ^ PARTS[self.firewall])

    def command(self, *words):
        done = self.guard.command(*words)
        assert done.returncode in (0, 1) and 'Traceback' not in done.stderr, done

    def some(self):
        return self.rng.sample(NETS[None], self.rng.randrange(1, 5))

    # what may happen
    def ban(self):
        self.command('ban', '-j', self.rng.choice(JAILS), '-t', self.rng.choice(TIMES), *self.some())

    def unban(self):
        jail = self.rng.choice(JAILS + [None])
        self.command('unban', *['-j', jail] * bool(jail), *self.some())

    def unban_all(self):
        self.command('unban', '--all')

    def damage(self):
        wall = self.rng.choice(self.walls)
        damage, _ = self.rng.choice(DAMAGE[wall.make])
        self.router.run(['sh', '-c', wall.filled(damage)])    # of some there is nothing to damage at the moment

    def reload(self):
        if self.rng.randrange(2):
            os.kill(self.guard.process.pid, signal.SIGHUP)     # and once more, so that it has come
        self.command('reload')

    def damage_and_reload(self):
        self.damage()
        self.reload()

    def damage_and_go_on(self):
        """What comes next meets what is damaged."""
        self.damage()
        self.rng.choice([self.ban, self.unban])()
        self.reload()

    def kill(self):
        self.guard.kill()
        if self.rng.randrange(2):
            self.damage()
        self.guard.start()

    def stop(self):
        assert self.guard.stop() == 0
        assert self.parts() == set()
        self.guard.start()

    def switch(self):
        """To another firewall, while it runs or between a kill and a start."""
        old, new = self.firewall, self.rng.choice(sorted(set(PARTS) - {self.firewall}))
        with open(self.guard.conf) as f:
            text = f.read()
        with open(self.guard.conf, 'w') as f:
            f.write(text.replace('firewall = ' + old, 'firewall = ' + new))
        if self.rng.randrange(2):
            self.guard.kill()
            self.guard.start()
        else:
            self.reload()
        self.follow(new)


@pytest.mark.slow
@seeds()
@pytest.mark.parametrize('firewall, switches', [('iptables', False), ('ipset', False), ('nft', False), ('nft', True)])
def test_whatever_happens_the_kernel_has_what_banned_shows_and_nothing_after_a_stop(network, daemon, firewall, switches, seed):
    need('ipset', 'nft', root=True)
    watch = Watch(network, daemon, firewall, random.Random(seed))
    acts = 10 * [watch.ban] + 4 * [watch.unban] + [watch.unban_all, watch.reload, watch.kill, watch.stop]
    acts += 8 * [watch.switch] if switches else 3 * [watch.damage_and_reload, watch.damage_and_go_on]
    done = []
    for _ in range(12):
        act = watch.rng.choice(acts)
        done.append(act.__name__)
        act()
        assert poll(lambda: watch.differs() == []), (watch.differs(), done, watch.guard.said())
    assert watch.guard.ask('status')['wrong'] == []
    assert watch.guard.stop() == 0
    assert watch.parts() == set()
    assert 'bug' not in watch.guard.said() and 'Traceback' not in watch.guard.said()


def over(limit):
    """More addresses than that, as arguments: /24s and the like that touch nothing of the router's."""
    return ['%d.%d.%d.0/24' % (20 + n % 100, n // 100 % 200, n // 20000) for n in range(limit + 50)]


@pytest.mark.slow
@pytest.mark.parametrize('firewall, more, limit', [
    ('iptables', '', 2000), ('ipset', 'maxbans = 100', 100), ('nft', 'maxbans = 100', 100)])
def test_maxbans_holds_in_the_kernel_and_in_the_tickets_and_status_says_when_it_bites(network, daemon, firewall, more, limit):
    need('ipset', 'nft', root=True)
    guard = daemon(firewall=firewall + '\n' + more)
    nets = over(limit)
    full = 'maxbans is reached' if more else 'plain iptables holds 2000'
    warning = 'banwatch: %s: each further ban lifts that of whoever has been silent longest\n' % full
    for some, said in ((nets[:limit - 1], ''), (nets[limit - 1:limit], warning), (nets[limit:], warning)):
        done = guard.command('ban', '-t', '2h', *some)
        assert (done.returncode, done.stderr) == (0, said)

    def in_kernel():
        wall_list = {'iptables': ['iptables', '-S'], 'ipset': ['ipset', 'list', 'banwatch-4'],
                     'nft': ['nft', 'list', 'set', 'inet', 'banwatch', 'v4_24']}[firewall]
        text = network.router.output(wall_list)
        return {net for net in nets if net in text or firewall == 'nft' and net.partition('/')[0] + ' ' in text}
    assert poll(lambda: len(in_kernel()) == limit), len(in_kernel())
    assert in_kernel() == {row['ip'] for row in guard.ask('banned')} == set(nets[50:])
    status = guard.ask('status')
    assert status['bans'] == limit == status['maxbans']
    assert full + ': 50 bans lifted before their time' in status['wrong']


@pytest.mark.slow
@pytest.mark.parametrize('firewall', ['iptables', 'ipset', 'nft'])
def test_an_ignoreip_added_while_banned_lifts_the_ban_in_the_kernel_at_a_reload(network, daemon, firewall):
    need('ipset', 'nft', root=True)
    guard = daemon(firewall=firewall)
    assert guard.command('ban', '192.0.2.7', '198.51.100.0/24', '2001:db8:9::/48').returncode == 0
    with open(guard.conf) as f:
        text = f.read()
    with open(guard.conf, 'w') as f:
        f.write(text + 'ignoreip = 198.51.100.7 2001:db8:9:1::/64\n')
    assert guard.command('reload').returncode == 0

    def listed():
        text = network.router.script('iptables -S; ip6tables -S; ipset list; nft list ruleset')
        return [part for part in ('192.0.2.7', '198.51.100.0', '2001:db8:9::') if part in text]
    assert poll(lambda: listed() == ['192.0.2.7']), listed()
    assert [row['ip'] for row in guard.ask('banned')] == ['192.0.2.7']
