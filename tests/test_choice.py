"""Which firewall `auto` takes: by what real listings show, on a machine whose clock is turned, and on a real router."""
import os
import re

import pytest

import banwatch
from conftest import need
from harness import FakeMachine, House, poll
from network import Namespace

# OpenWrt's fw4 as its templates render it, shortened; port 9 is what tests knock at.
FW4 = """
table inet fw4 {
    set blocked { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 } }
    chain input {
        type filter hook input priority filter; policy accept;
        iifname "lo" accept comment "!fw4: Accept traffic from loopback"
        ct state vmap { established : accept, related : accept } comment "!fw4: Handle inbound flows"
        tcp flags & (fin | syn | rst | ack) == syn jump syn_flood comment "!fw4: Rate limit TCP syn packets"
        iifname "lan" jump input_lan comment "!fw4: Handle lan IPv4/IPv6 input traffic"
        iifname "wan" jump input_wan comment "!fw4: Handle wan IPv4/IPv6 input traffic"
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state vmap { established : accept, related : accept } comment "!fw4: Handle forwarded flows"
        iifname "lan" accept
        jump handle_reject
    }
    chain output { type filter hook output priority filter; policy accept; oifname "lo" accept; }
    chain handle_reject { meta l4proto tcp reject with tcp reset; reject with icmpx type port-unreachable; }
    chain syn_flood { limit rate 25/second burst 50 packets return; drop comment "!fw4: Drop excess packets"; }
    chain input_lan { accept; }
    chain input_wan {
        meta nfproto ipv6 meta l4proto icmpv6 counter accept comment "!fw4: Allow-ICMPv6-Input"
        tcp dport 9 counter accept comment "!fw4: knock"
        ip saddr @blocked drop
        jump handle_reject
    }
    chain srcnat { type nat hook postrouting priority srcnat; policy accept; oifname "wan" meta nfproto ipv4 masquerade; }
    chain raw_prerouting { type filter hook prerouting priority raw; policy accept; }
}
"""
F2B = """
table inet f2b-table {
    set addr-set-sshd { type ipv4_addr; elements = { 192.0.2.9 } }
    chain f2b-chain { type filter hook input priority filter - 1; policy accept; tcp dport 22 ip saddr @addr-set-sshd reject; }
}
"""
DOCKER = """
iptables -t nat -N DOCKER; iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE; iptables -P FORWARD DROP
iptables -N DOCKER-USER; iptables -A DOCKER-USER -j RETURN; iptables -I FORWARD -j DOCKER-USER
iptables -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
"""
OURS = """
iptables -N banwatch; iptables -A banwatch -s 192.0.2.7 -j DROP
iptables -N banwatch-input; iptables -A banwatch-input -j banwatch; iptables -I INPUT -j banwatch-input; iptables -I FORWARD -j banwatch
"""
OLD = 'mkdir -p /run; mount -t tmpfs none /run; mount --bind "$(command -v xtables-legacy-multi)" "$(command -v xtables-nft-multi)"\n'


def nft(text):
    """The shell command that loads an nft ruleset."""
    return "nft -f - <<'EOF'\n%s\nEOF\n" % text


NFT, IPSET, BARE, NEITHER = (['nft', 'ipset', 'iptables'], ['ipset', 'iptables', 'nft'], ['iptables', 'nft'], ['nft', 'iptables'])
# what stands on a machine: (shell commands, the kinds to try, the table or word that `why` names)
MACHINES = {
    'nothing at all': ('', BARE, 'no rules here yet'),
    'fw4': (nft(FW4), NFT, 'inet fw4'),
    'iptables': ('iptables -A INPUT -i lo -j ACCEPT', IPSET, 'iptables'),
    'ip6tables only': ('ip6tables -A FORWARD -i lo -j ACCEPT', IPSET, 'iptables'),
    'a policy': ('iptables -P FORWARD DROP', IPSET, 'iptables'),
    'a policy of an nft table': (nft('table inet x { chain i { type filter hook input priority 0; policy drop; }\n}'), NFT, 'inet x'),
    'docker': (DOCKER, IPSET, 'iptables'),
    'nat only': ('iptables -t nat -A POSTROUTING -o wan -j MASQUERADE', IPSET, 'iptables'),
    'tables of iptables without rules': ('iptables -A INPUT -j DROP; iptables -D INPUT -j DROP; ip6tables -N mine', BARE, 'no rules'),
    "fail2ban's own table": (nft(F2B), NFT, 'inet f2b-table'),
    'fail2ban beside iptables': (DOCKER + nft(F2B), NFT, 'inet f2b-table'),
    'an nft table called as one of iptables': (nft(
        'table ip filter { chain input { type filter hook input priority 0; tcp dport 22 accept; }\n}'), NFT, 'ip filter'),
    'an nft table with chains called as those of iptables': (nft(
        'table inet filter { chain INPUT { type filter hook input priority 0; tcp dport 22 accept; }\n}'), NFT, 'inet filter'),
    'an nft table that begins with ct state': (nft(
        'table inet t { chain input { type filter hook input priority 0; ct state established accept; tcp dport 1 drop; }\n}'), NFT, 'inet t'),
    'an nft table that nobody has filled': (nft('table inet x { chain input { type filter hook input priority 0; }\n}'), BARE, 'no rules'),
    'an nft table with sets only': (nft(
        'table inet x { set s { type ipv4_addr; elements = { 192.0.2.1 }\n}\n map m { type ipv4_addr : verdict; }\n'
        'counter c { comment "hello"; }\n quota q { over 1 mbytes; }\n limit l { rate 4/second; }\n'
        'ct helper h { type "ftp" protocol tcp; }\n chain c { comment "hello"; }\n}'), BARE, 'no rules'),
    'a table called nearly as ours': (nft('table inet banwatch2 { chain i { drop; }\n}'), NFT, 'inet banwatch2'),
    'a chain called nearly as ours': ('iptables -N banwatch2; iptables -A banwatch2 -j DROP; iptables -A INPUT -j banwatch2', IPSET, 'iptables'),
    'our table only': (nft('table inet banwatch { set v4 { type ipv4_addr; }\n chain input { type filter hook input priority -10; '
                           'ip saddr @v4 drop; }\n}'), BARE, 'no rules'),
    'our chains only': (OURS, BARE, 'no rules'),
    'our chains beside a policy': (OURS + 'iptables -P FORWARD DROP', IPSET, 'iptables'),
    'rules of iptables-legacy beside iptables-nft': ('iptables-legacy -A INPUT -i lo -j ACCEPT', BARE, 'no rules'),
    'fw4, and rules of iptables-legacy': (nft(FW4) + 'iptables-legacy -A INPUT -i lo -j ACCEPT', NFT, 'inet fw4'),
    'an old iptables without rules': (OLD, BARE, 'no rules'),
    'an old iptables with rules': (OLD + 'iptables -A INPUT -i lo -j ACCEPT', IPSET, 'iptables'),
    'an old iptables with our chains': (OLD + OURS, BARE, 'no rules'),
    'an old iptables without nft': (OLD + 'mount --bind /dev/null "$(command -v nft)"; iptables -P INPUT DROP', IPSET, 'iptables'),
    'no nft': ('mount --bind /dev/null "$(command -v nft)"', BARE, 'no rules'),
    'no iptables': ('mount --bind /dev/null "$(command -v xtables-nft-multi)"', NEITHER, 'not installed'),
}
FAST = ('nothing at all', 'fw4', 'iptables')


@pytest.fixture
def space():
    """A host of its own without any rule."""
    need('unshare', 'nsenter', 'nft', 'iptables', 'ip6tables', 'iptables-legacy', 'ipset', root=True)
    made = Namespace()
    yield made
    made.close()


def listed(space):
    """What the probes show there, as `follow` wants it."""
    shown = {}
    for name, command in banwatch.PROBES.items():
        done = space.run(['sh', '-c', 'exec "$@"', '-'] + command.argv)
        shown[name] = None if done.returncode else done.stdout
    return shown


@pytest.mark.parametrize('what', [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in MACHINES])
def test_the_machines_own_firewall_is_known_by_its_rules(space, what):
    commands, kinds, why = MACHINES[what]
    space.script(commands)
    found, reason = banwatch.choose_kinds(listed(space))
    assert found == kinds and why in reason


@pytest.mark.slow
def test_a_table_that_belongs_to_a_running_program_counts(space):
    """nft prints its owner's name behind the brace: `table inet firewalld { # progname firewalld`."""
    space.popen(['sh', '-c', '''{ echo 'add table inet held { flags owner; }'; echo 'add chain inet held input { type filter hook input '\\
        'priority 0; }'; echo 'add rule inet held input tcp dport 22 drop'; exec sleep 60; } | nft -i'''])
    assert poll(lambda: 'tcp dport 22' in space.output(['nft', 'list', 'ruleset']))
    assert '{ # progname' in space.output(['nft', 'list', 'ruleset']) and banwatch.choose_kinds(listed(space))[0] == NFT


@pytest.mark.slow
def test_a_long_ruleset_is_read_in_no_time(space):
    rules = ''.join('ip saddr 10.%d.%d.0/24 tcp dport { 22, 80 } counter drop comment "rule %d"\n' % (n >> 8, n & 255, n) for n in range(1500))
    space.script('cat >/dev/null')
    assert space.run(['nft', '-f', '-'], input='table inet long { chain input { type filter hook input priority 0;\n%s}\n}' % rules).returncode == 0
    shown = listed(space)
    assert len(shown['nft']) > 100000
    machine = FakeMachine()
    before = banwatch.Machine.ticks(machine)
    assert banwatch.choose_kinds(shown)[0] == NFT
    assert banwatch.Machine.ticks(machine) - before < 0.2


def test_what_nft_prints_of_others_never_ends_up_raw_in_status():
    tables = banwatch.choose_kinds({'nft': 'table inet \x1b[2Jx {\n\tchain i {\n\t\tdrop\n\t}\n}\n', 'iptables': '', 'ip6tables': ''})
    assert '\x1b' not in tables[1]
    for junk in ('', '{', 'table', 'table inet x {\n', '\t\tdrop\n}\n', 'table inet x {\n\tchain {\n\t\t}\n' * 1000, '\n\t\t' * 10000, '\0\xff\n'):
        banwatch.choose_kinds({'nft': junk, 'iptables': junk, 'ip6tables': junk})


# --- on a machine whose clock is turned

class Tools:
    """Stand-ins for the firewall programs: some are not installed, or fail; what they list is the test's."""

    def __init__(self, machine, *missing, **listing):
        self.missing, self.listing, self.problem = set(missing), listing, {}
        self.held = None             # while a list: commands whose answers are waited for
        machine.answer, self.run, machine.run = self.answer, machine.run, self.start
        self.machine = machine

    def start(self, command, done, seconds=10):
        if self.held is None:
            return self.run(command, done, seconds)
        self.held.append((command, done))

    def answer(self, command):
        name = command.argv[0].replace('-restore', '')
        if name in self.missing:
            return '%s is not installed' % name, ''
        return self.problem.get(name, ''), self.listing.get(name, '') if 'ruleset' in command.argv or '-S' in command.argv else ''

    def release(self):
        held, self.held = self.held, None
        for command, done in held:
            self.machine.ran.append(command)
            done(*self.answer(command))


RULES = '-P INPUT ACCEPT\n-P FORWARD ACCEPT\n-A INPUT -i lo -j ACCEPT\n'


@pytest.fixture
def auto(tmp_path):
    """A function that starts a daemon with `firewall = auto` on a machine without some programs."""
    def start(*missing, firewall='auto', **listing):
        machine = FakeMachine()
        tools = Tools(machine, *missing, **listing)
        house = House(tmp_path, firewall=firewall, machine=machine)
        house.tools = tools
        house.turn(5)
        return house
    return start


def chosen(house):
    return house.ask('status')['firewall'][0]['name']


def test_it_takes_the_first_that_works(auto):
    house = auto('nft')
    assert chosen(house) == 'iptables' and house.machine.said('firewall: iptables (')
    assert house.ask('status')['wrong'] == []


def test_where_ipset_does_not_work_iptables_does(auto):
    house = auto('ipset', 'nft', iptables=RULES)
    assert chosen(house) == 'iptables' and house.ask('status')['wrong'] == []
    house.fail('192.0.2.7', 3)
    assert '-s 192.0.2.7/32 -j DROP' in house.machine.ran[-1].stdin


def test_it_says_why_it_took_another_one_than_it_wanted(auto):
    house = auto('ipset', iptables=RULES)
    assert 'ipset is not installed' in house.ask('status')['firewall'][0]['why'] + ' '.join(house.machine.logged)


def test_where_nothing_is_installed_that_is_said_once_and_tried_again_each_minute(auto):
    house = auto('nft', 'iptables', 'ip6tables', 'ipset')
    wrong = ' '.join(house.ask('status')['wrong'])
    assert 'nft is not installed' in wrong and 'iptables is not installed' in wrong
    for _ in range(600):
        house.pass_time(1)
    assert sum('not installed' in line for line in house.machine.logged) == 1, house.machine.logged
    assert len(house.machine.ran) < 600                      # a few each minute
    assert chosen(house) != 'none'


@pytest.mark.parametrize('program', ['nft', 'iptables'])
def test_a_program_that_is_installed_later_is_used_within_a_minute(auto, program):
    house = auto('nft', 'iptables', 'ip6tables', 'ipset')
    house.fail('192.0.2.7', 3)
    house.pass_time(200)
    house.tools.missing.discard(program)
    for _ in range(61):
        house.pass_time(1)
    assert chosen(house) == program
    assert not [text for text in house.ask('status')['wrong'] if 'ip6tables' not in text]
    assert house.machine.said('firewall: %s (' % program)
    assert any('192.0.2.7' in command.stdin for command in house.machine.ran)


def test_a_missing_ip6tables_stops_nothing_but_is_told(auto):
    house = auto('ip6tables', 'nft')
    assert chosen(house) == 'iptables' and house.ask('status')['wrong'] == ['ip6tables: ip6tables is not installed']
    assert house.ask('ban', networks=['192.0.2.7'], seconds=60)['trouble'] == ''
    for _ in range(10):
        house.pass_time(60)
    assert chosen(house) == 'iptables'
    assert sum('ip6tables is not installed' in line for line in house.machine.logged) == 1


def test_a_reload_keeps_the_choice_unless_the_machine_has_another_firewall_by_now(auto):
    house = auto('nft', iptables=RULES)
    assert chosen(house) == 'ipset'
    logged = len(house.machine.logged)
    house.ask('reload')
    assert chosen(house) == 'ipset' and not any(line.startswith('firewall: ') for line in house.machine.logged[logged:])
    house.tools.listing.clear()
    house.ask('reload')
    assert chosen(house) == 'iptables' and house.ask('status')['wrong'] == []


def test_a_firewall_that_comes_up_after_us_is_followed_when_it_says_so(auto):
    house = auto('nft')
    assert chosen(house) == 'iptables'
    house.tools.listing['iptables'] = RULES
    house.write('Mar  7 12:34:56 h firewall: Reloading firewall due to ifup of wan (eth1)\n')
    for _ in range(12):
        house.pass_time(1)
    assert chosen(house) == 'ipset' and house.machine.said('firewall: ipset (rules stand in iptables')


@pytest.mark.parametrize('before', ['', 'none', 'iptables'])
def test_a_ban_by_hand_while_it_looks_gets_no_yes_before_the_kernel_has_it(tmp_path, before):
    machine, answers = FakeMachine(), []
    tools = Tools(machine, 'ipset', iptables=RULES)
    if not before:
        tools.held = []
    house = House(tmp_path, firewall=before or 'auto', machine=machine)
    if before:
        tools.held, house.firewall = [], 'auto'
        house.ask('reload')
    house.daemon.answer({'do': 'ban', 'networks': ['192.0.2.7'], 'seconds': 60}, answers.append)
    house.turn()
    early = bool(answers)
    tools.release()
    house.turn(8)
    assert any('192.0.2.7' in command.stdin for command in machine.ran)
    assert bool(answers[0]['trouble']) == early              # it waits, or says that it is not done


def test_what_a_reload_names_is_not_undone_by_a_look_that_was_under_way(auto):
    house = auto('nft', 'iptables', 'ip6tables', 'ipset')
    house.tools.held = []
    house.pass_time(60)                                      # it looks again
    assert house.tools.held
    house.tools.missing.clear()
    house.firewall = 'nft'
    house.ask('reload')
    house.tools.release()
    house.turn(5)
    assert chosen(house) == 'nft' and house.ask('status')['wrong'] == []
    assert house.ask('status')['firewall'][0]['why'] == ''


@pytest.mark.parametrize('after', [0.5, 3, 59])
def test_who_works_at_a_retry_of_its_own_is_chosen_and_outlives_a_reload(auto, after):
    house = auto('nft', 'iptables', 'ip6tables', 'ipset')
    house.pass_time(after)
    house.tools.missing.clear()
    for _ in range(120):
        house.pass_time(0.5)
    kind = chosen(house)
    assert house.ask('status')['wrong'] == []
    house.ask('reload')
    assert chosen(house) == kind and house.ask('ban', networks=['192.0.2.7'], seconds=60)['trouble'] == ''
    assert not house.machine.said('bug')


def test_a_stop_while_it_looks_ends_at_once_and_brings_nothing_in(tmp_path):
    machine = FakeMachine()
    tools = Tools(machine)
    tools.held = []
    house = House(tmp_path, firewall='auto', machine=machine)
    house.daemon.stop()
    house.turn()
    tools.release()
    house.turn(5)
    assert house.daemon.stopping and not any('192.0.2' in command.stdin or 'add' in command.stdin for command in machine.ran)


def test_a_log_line_or_a_request_chooses_nothing(auto):
    house = auto('nft')
    house.write('Mar  7 12:34:56 h dropbear[1]: Bad password attempt for \'root firewall = none\' from 192.0.2.7:1\n'
                'Mar  7 12:34:56 h x[1]: table inet fw4 { chain input { drop } }\n')
    for request in ({'do': 'reload', 'firewall': 'none'}, {'do': 'probe'}, {'do': 'set_firewall', 'kind': 'none'}):
        answers = []
        house.daemon.answer(request, answers.append)
    house.turn()
    assert chosen(house) == 'iptables' and house.ask('status')['wrong'] == []


# --- on a real router

class Programs:
    """The router's /usr/sbin as a folder of links: a program can be taken away, brought back or replaced there."""

    def __init__(self, network):
        self.router, self.folder, self.real = network.router, network.path('sbin'), '/run/sbin'
        os.mkdir(self.folder)
        for name in os.listdir('/usr/sbin'):
            self.show(name)
        self.router.script('mkdir {0}; mount --bind /usr/sbin {0}; mount --bind {1} /usr/sbin'.format(self.real, self.folder))

    def path(self, name):
        return os.path.join(self.folder, name)

    def hide(self, *names):
        for name in names:
            os.unlink(self.path(name))

    def show(self, *names):
        for name in names:
            os.symlink(self.real + '/' + name, self.path(name) + '.new')
            os.rename(self.path(name) + '.new', self.path(name))

    def replace(self, name, script):
        """Puts a shell script in a program's place; the program itself stays in the folder `real`."""
        with open(self.path(name) + '.new', 'w') as f:
            f.write('#!/bin/sh\n' + script)
        os.chmod(f.name, 0o755)
        os.rename(f.name, self.path(name))

    def old_iptables(self):
        """iptables is iptables-legacy."""
        for name in ('iptables', 'iptables-save', 'iptables-restore', 'ip6tables', 'ip6tables-save', 'ip6tables-restore'):
            os.unlink(self.path(name))
            os.symlink(self.real + '/' + name.replace('tables', 'tables-legacy'), self.path(name))


IPTABLES = ['iptables', 'iptables-restore', 'ip6tables', 'ip6tables-restore']


@pytest.fixture
def programs(network):
    need('nft', 'ipset', 'iptables-legacy', 'iptables-nft')
    open(network.log, 'w').close()
    return Programs(network)


def traces(network):
    """The kinds of firewall that have left something of ours in the kernel."""
    router = network.router
    rules = router.run(['sh', '-c', 'for t in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do /run/sbin/$t-save; done']).stdout
    found = {'nft'} if 'table inet banwatch' in router.run(['/run/sbin/nft', 'list', 'tables']).stdout else set()
    if 'banwatch' in router.run(['/run/sbin/ipset', 'list', '-n']).stdout or '--match-set banwatch' in rules:
        found.add('ipset')
    elif 'banwatch' in rules:
        found.add('iptables')
    return found


def settled(guard, kind=None):
    """The name of the firewall in use, when it has done all that it was told, or what it could; and is of that kind, since `auto`
    may try others first."""
    def answer():
        walls = guard.ask('status')['firewall']
        return walls and not any(wall['pending'] and not wall['trouble'] for wall in walls) and kind in (None, walls[0]['name']) and walls[0]['name']
    return poll(answer)


BANNED = {'203.0.113.1': '198.51.100.7', '2001:db8:1::1': '2001:db8:bad::7'}
OTHERS = {'203.0.113.1': '198.51.100.8', '2001:db8:1::1': '2001:db8:bad:8::8'}


def stopped(network, versions=2):
    """True if the packets of who is banned do not get through, False if they do; those of others always must."""
    doors = list(BANNED)[:versions]
    reach = network.attacker.reached([(door, 9, who[door]) for who in (OTHERS, BANNED) for door in doors])
    assert all(reach[:versions]) and len(set(reach[versions:])) == 1
    return not reach[-1]


def set_up(network, programs, what):
    """Makes a machine out of MACHINES of the router."""
    if 'old iptables' in what:
        programs.old_iptables()
    network.router.script(re.sub('mkdir.*\n|mount.*?;', '', MACHINES[what][0]))


ROUTERS = [('nothing at all', [], 'iptables'), ('fw4', [], 'nft'), ('fw4', IPTABLES, 'nft'), ('iptables', [], 'ipset'),
           ('iptables', ['ipset'], 'iptables'), ('nothing at all', ['nft'], 'iptables'), ('nothing at all', IPTABLES, 'nft'),
           ('an old iptables with rules', [], 'ipset'),
           ('an old iptables with rules', ['nft', 'ipset'], 'iptables'),
           ('rules of iptables-legacy beside iptables-nft', [], 'iptables'), ('our chains only', [], 'iptables'),
           ('fw4, and rules of iptables-legacy', [], 'nft')]


@pytest.mark.slow
@pytest.mark.parametrize('what, hidden, kind', ROUTERS, ids=['%s, without %s' % (what, '+'.join(hidden) or 'nothing') for what, hidden, _ in ROUTERS])
def test_auto_bans_in_earnest_with_what_the_router_has(network, daemon, programs, what, hidden, kind):
    set_up(network, programs, what)
    programs.hide(*hidden)
    guard = daemon(firewall='auto')
    assert settled(guard, kind) == kind, guard.said()
    assert MACHINES[what][2].split()[-1] in [line for line in guard.command('status').stdout.split('\n') if line.startswith('firewall')][0] or hidden
    assert guard.ask('status')['wrong'] == []
    done = guard.command('ban', *BANNED.values())
    assert done.returncode == 0, done
    assert stopped(network) and traces(network) == {kind}
    assert guard.command('reload').returncode == 0
    assert settled(guard, kind) == kind and traces(network) == {kind}
    assert guard.command('unban', '--all').returncode == 0 and not stopped(network)
    assert guard.stop() == 0 and traces(network) == set()


@pytest.mark.slow
def test_without_ip6tables_ipv4_is_banned_and_status_says_what_is_missing(network, daemon, programs):
    programs.hide('ip6tables', 'ip6tables-restore', 'nft')
    guard = daemon(firewall='auto')
    assert settled(guard, 'iptables') == 'iptables'
    assert guard.command('ban', '198.51.100.7').returncode == 0 and stopped(network, versions=1)
    refused = guard.command('ban', '2001:db8:bad::7')
    assert refused.returncode == 1 and 'ip6tables is not installed' in refused.stderr
    assert guard.ask('status')['wrong'] == ['ip6tables: ip6tables is not installed']
    assert guard.stop() == 0 and traces(network) == set()


@pytest.mark.slow
def test_without_any_program_status_is_wrong_and_bans_are_kept_until_there_is_one(network, daemon, programs):
    programs.hide('nft', 'ipset', *IPTABLES)
    guard = daemon(firewall='auto')
    assert poll(lambda: 'WRONG: firewall: none works' in guard.command('status').stdout), guard.command('status').stdout
    refused = guard.command('ban', '198.51.100.7')
    assert refused.returncode == 1 and 'not installed' in refused.stderr
    programs.show('nft', *IPTABLES)
    assert poll(lambda: guard.ask('status')['wrong'] == [], 70)
    assert settled(guard, 'iptables') == 'iptables' and stopped(network, versions=1)
    assert guard.command('ban', '2001:db8:bad::7').returncode == 0 and stopped(network)


@pytest.mark.slow
def test_a_tool_that_cannot_do_what_is_needed_is_passed_over(network, daemon, programs):
    """An iptables without the match `set`, as on a router without kmod-ipt-ipset."""
    network.router.script('iptables -A INPUT -i lo -j ACCEPT')
    for name in ('iptables-restore', 'ip6tables-restore'):
        programs.replace(name, 'text=$(cat); case $text in *match-set*) echo "Couldn\'t load match set" >&2; exit 2;; esac\n'
                               'echo "$text" | /run/sbin/%s "$@"\n' % name)
    guard = daemon(firewall='auto')
    assert settled(guard, 'iptables') == 'iptables', guard.said()
    assert guard.command('ban', *BANNED.values()).returncode == 0 and stopped(network)
    assert poll(lambda: traces(network) == {'iptables'}), traces(network)


KINDS = ['iptables', 'ipset', 'nft']
PAIRS = pytest.mark.parametrize('before, after', [
    ('iptables', 'ipset'), ('ipset', 'iptables'), ('ipset', 'nft'), ('nft', 'iptables'), ('nft', 'none')])


def rewrite(guard, before, after):
    with open(guard.conf) as f:
        text = f.read()
    guard.network.write('banwatch.conf', text.replace('firewall = ' + before, 'firewall = ' + after))


@pytest.mark.slow
@PAIRS
def test_a_reload_to_another_kind_lets_nothing_through_and_leaves_nothing_behind(network, daemon, programs, before, after):
    guard = daemon(firewall=before)
    assert guard.command('ban', *BANNED.values()).returncode == 0
    rewrite(guard, before, after)
    assert guard.command('reload').returncode == 0 and settled(guard)
    wanted = {after} - {'none'}
    assert poll(lambda: traces(network) == wanted), traces(network)
    assert stopped(network) == bool(wanted)
    assert 'repaired' not in guard.said() and guard.ask('status')['wrong'] == []
    assert guard.command('unban', '--all').returncode == 0 and not stopped(network)
    assert guard.stop() == 0 and traces(network) == set()


@pytest.mark.slow
@PAIRS
def test_what_a_killed_daemon_left_of_another_kind_goes_at_the_next_start(network, daemon, programs, before, after):
    guard = daemon(firewall=before)
    assert guard.command('ban', *BANNED.values()).returncode == 0
    guard.kill()
    rewrite(guard, before, after)
    guard.start()
    wanted = {after} - {'none'}
    assert poll(lambda: traces(network) == wanted), traces(network)
    assert settled(guard) and stopped(network) == bool(wanted)
    assert guard.stop() == 0 and traces(network) == set()


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_auto_is_not_misled_by_what_a_killed_daemon_left(network, daemon, programs, kind):
    guard = daemon(firewall=kind)
    assert guard.command('ban', *BANNED.values()).returncode == 0
    guard.kill()
    rewrite(guard, kind, 'auto')
    guard.start()
    assert settled(guard, 'iptables') == 'iptables'                      # there are no rules but ours
    assert poll(lambda: traces(network) == {'iptables'}), traces(network)
    assert stopped(network)


@pytest.mark.slow
def test_sets_of_a_killed_daemon_go_even_if_the_rules_that_used_them_were_flushed(network, daemon, programs):
    """As `fw3 restart` does: rules go, sets stay."""
    guard = daemon(firewall='ipset')
    assert guard.command('ban', *BANNED.values()).returncode == 0
    guard.kill()
    network.router.script('for t in iptables ip6tables; do $t -F; $t -X; done')
    rewrite(guard, 'ipset', 'iptables')
    guard.start()
    assert poll(lambda: traces(network) == {'iptables'}), network.router.output(['ipset', 'list', '-n'])


@pytest.mark.slow
def test_a_name_or_a_size_of_others_neither_misleads_nor_slows(network, daemon, programs):
    rules = ''.join('ip saddr 10.%d.%d.0/24 counter drop\n' % (n >> 8, n & 255) for n in range(1000))
    text = 'table inet banwatch2 { chain input { type filter hook input priority 0;\n%s}\n}\ntable ip banwatch { }\n' % rules
    assert network.router.run(['nft', '-f', '-'], input=text).returncode == 0
    before = network.router.output(['nft', 'list', 'ruleset'])
    guard = daemon(firewall='auto')
    assert settled(guard, 'nft') == 'nft' and 'inet banwatch2' in guard.command('status').stdout
    assert guard.command('ban', *BANNED.values()).returncode == 0 and stopped(network)
    assert guard.stop() == 0
    assert re.sub(r'packets \d+ bytes \d+', '', network.router.output(['nft', 'list', 'ruleset'])) == re.sub(r'packets \d+ bytes \d+', '', before)
