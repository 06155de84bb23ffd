"""Which firewall `auto` takes: by what real listings show, on a machine whose clock is turned, and on a real router."""
import contextlib
import os
import random
import re
import signal
import socket
import sys
import time

import pytest

import banwatch
from conftest import need
from harness import LINE, FakeMachine, House, poll, seeds
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


NFT, IPSET = ['nft', 'ipset', 'iptables'], ['ipset', 'iptables', 'nft']
BARE, NEITHER = IPSET, NFT
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
        machine.which = lambda name: None if name in self.missing else '/usr/sbin/' + name
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
    assert chosen(house) == 'ipset' and house.machine.said('firewall: ipset (')
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
    house = auto('ip6tables', 'nft', 'ipset')
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
    house.tools.listing = {'nft': 'table inet fw4 {\n\tchain input {\n\t\tdrop\n\t}\n}\n'}
    house.tools.missing.clear()
    house.ask('reload')
    assert chosen(house) == 'nft' and house.ask('status')['wrong'] == []


def test_a_firewall_that_comes_up_after_us_is_followed_when_it_says_so(auto):
    house = auto()
    assert chosen(house) == 'ipset'
    house.tools.listing['nft'] = 'table inet fw4 {\n\tchain input {\n\t\tdrop\n\t}\n}\n'
    house.write('Mar  7 12:34:56 h firewall: Reloading firewall due to ifup of wan (eth1)\n')
    for _ in range(12):
        house.pass_time(1)
    assert chosen(house) == 'nft' and house.machine.said('firewall: nft (rules stand in the nft table inet fw4')


@pytest.mark.parametrize('path', ['/var/run/fw3.state', '/var/run/fw4.state'])
def test_a_start_of_openwrts_firewall_that_logs_nothing_is_known_by_its_file(auto, path):
    house, stamps = auto(), {}
    house.machine.changed = stamps.get
    house.pass_time(1)
    ran = len(house.machine.ran)
    house.pass_time(1)
    assert len(house.machine.ran) == ran
    stamps[path] = 5
    house.pass_time(1)
    house.pass_time(2)
    assert len(house.machine.ran) > ran


def test_a_better_kind_that_is_installed_later_is_taken(auto):
    house = auto('nft', 'ipset', iptables=RULES)
    assert chosen(house) == 'iptables'
    house.fail('192.0.2.7', 3)
    house.tools.missing.discard('ipset')
    for _ in range(62):
        house.pass_time(1)
    assert chosen(house) == 'ipset' and house.ask('status')['wrong'] == []
    assert any(command.argv[:1] == ['ipset'] and '192.0.2.7' in command.stdin for command in house.machine.ran)


def test_where_ip6tables_does_not_work_nft_bans_ipv6(auto):
    house = auto('ip6tables', iptables=RULES)
    house.turn(8)
    assert [row['name'] for row in house.ask('status')['firewall']] == ['ipset', 'nft'] and house.ask('status')['wrong'] == []
    assert any('ip6tables is not installed' in line for line in house.machine.logged)
    house.fail('192.0.2.7', 3)
    house.fail('2001:db8::7', 3)
    texts = {command.argv[0]: command.stdin for command in house.machine.ran if command.stdin}
    assert '192.0.2.7' in texts['ipset'] and '2001:db8::' in texts['nft'] and '192.0.2.7' not in texts['nft']
    house.ask('reload')
    house.turn(8)
    assert [row['name'] for row in house.ask('status')['firewall']] == ['ipset', 'nft']


def test_where_nobody_has_ipv6_a_missing_ip6tables_is_nothing(auto):
    house = auto('ip6tables', 'nft', 'ipset')
    house.machine.has_ipv6 = False
    assert house.ask('status')['wrong'] == [] and [row['name'] for row in house.ask('status')['firewall']] == ['iptables']
    house.machine.has_ipv6 = True
    assert house.ask('status')['wrong'] == ['ip6tables: ip6tables is not installed']


def test_a_kernel_that_cannot_tell_the_original_port_bans_by_the_inner_one(auto):
    house, refuse = auto(firewall='ipset'), lambda command: '--ctorigdstport' in command.stdin
    answer, house.text = house.machine.answer, '[sshd]\nport = 22\n'
    house.machine.answer = lambda command: ('iptables-restore: line 5 failed', '') if refuse(command) else answer(command)
    ran = len(house.machine.ran)
    house.ask('reload')
    house.turn(5)
    house.fail('192.0.2.7', 3)
    texts = [command.stdin for command in house.machine.ran[ran:] if command.argv[0] == 'iptables-restore']
    assert '--ctorigdstport 22 -m set' in texts[0] and '--dport 22 -m set' in texts[1] and '--ctorigdstport' not in texts[1]
    assert house.ask('status')['wrong'] == [] and not house.machine.said('iptables-restore')


def test_unban_of_many_is_one_line_in_the_log(auto):
    house = auto()
    house.ask('ban', networks=['198.51.100.%d' % n for n in range(50)], seconds=600)
    logged = len(house.machine.logged)
    house.ask('unban', networks=[], all=True)
    assert house.machine.logged[logged:] == ['unban 50 bans (by hand)']


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
    house.turn(5)
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
    assert chosen(house) == 'ipset' and house.ask('status')['wrong'] == []


@pytest.mark.parametrize('said', ["nft: invalid option -- 't'", "nft: unrecognized option '-t'"])
def test_an_nft_that_knows_no_t_lists_all(tmp_path, said):
    machine, asked = banwatch.Machine(), []
    script = tmp_path / 'nft'
    script.write_text('#!/bin/sh\n[ "$1" != -t ] || { echo "%s" >&2; exit 1; }\necho "$@"\n' % said)
    script.chmod(0o755)
    for _ in range(2):
        asked.append(banwatch.run_now(machine, banwatch.Command([str(script), '-t', 'list', 'ruleset'])))
    assert asked == [('', 'list ruleset\n')] * 2 and machine.forms == {str(script): 1}


def test_of_a_log_program_that_says_too_much_the_end_is_read():
    print_lines = [sys.executable, '-c', 'for n in range(200000): print("line %06d %s" % (n, "x" * 80))']
    machine = banwatch.Machine()
    problem, said = banwatch.run_now(machine, banwatch.Command(print_lines))
    assert problem.endswith('says more than can be read')
    problem, said = banwatch.run_now(machine, banwatch.Command(print_lines, tail=True))
    assert problem == '' and said.endswith('line 199999 %s\n' % ('x' * 80)) and 1 << 19 <= len(said) + 100 <= (1 << 20) + 70000
    assert said.startswith('line ')


@pytest.mark.parametrize('old', [False, True])
def test_offloaded_connections_are_cut_one_by_one_where_conntrack_is_old(auto, old):
    house = auto(firewall='nft', nft='table inet fw4 {\n\tflowtable ft {\n\t}\n}\n')
    answer = house.machine.answer
    house.machine.answer = lambda command: (
        ('conntrack v1.4.6 (conntrack-tools): unknown option `-R\'', '') if old and '-R' in command.argv else
        ('', 'table inet x {\n\tflowtable f {\n') if 'ruleset' in command.argv else answer(command))
    house.pass_time(60)
    house.fail('192.0.2.7', 3)
    ran = [' '.join(command.argv) + ' ' + command.stdin for command in house.machine.ran if command.argv[0] == 'conntrack']
    assert ran[0] == 'conntrack -R /proc/self/fd/0 -D -f ipv4 -s 192.0.2.7\n-D -f ipv4 -d 192.0.2.7\n'
    assert ran[1:] == ['conntrack -D -f ipv4 -s 192.0.2.7 ', 'conntrack -D -f ipv4 -d 192.0.2.7 '] * old
    assert house.ask('status')['wrong'] == []
    house.fail('192.0.2.8', 3)
    assert sum('-R' in command.argv for command in house.machine.ran) == (1 if old else 2)


def test_where_flows_are_offloaded_and_conntrack_is_missing_that_is_told(auto):
    house = auto('conntrack', firewall='nft')
    answer = house.machine.answer
    house.machine.answer = lambda command: ('', 'table inet x {\n\tflowtable f {\n') if 'ruleset' in command.argv else answer(command)
    house.pass_time(60)
    house.fail('192.0.2.7', 3)
    assert house.ask('status')['wrong'] == ['nft: offloaded connections of who is banned go on: conntrack is not installed']
    assert house.machine.said('offloaded connections of who is banned go on: conntrack is not installed')


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


ROUTERS = [('nothing at all', [], 'ipset'), ('fw4', [], 'nft'), ('fw4', IPTABLES, 'nft'), ('iptables', [], 'ipset'),
           ('iptables', ['ipset'], 'iptables'), ('nothing at all', ['nft', 'ipset'], 'iptables'), ('nothing at all', IPTABLES, 'nft'),
           ('an old iptables with rules', [], 'ipset'),
           ('an old iptables with rules', ['nft', 'ipset'], 'iptables'),
           ('rules of iptables-legacy beside iptables-nft', [], 'ipset'), ('our chains only', [], 'ipset'),
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
    programs.hide('ip6tables', 'ip6tables-restore', 'nft', 'ipset')
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
    assert settled(guard, 'ipset') == 'ipset'                            # there are no rules but ours
    assert poll(lambda: traces(network) == {'ipset'}), traces(network)
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


# --- firewall programs that hang, fail, vanish or lie, and rules that somebody else takes away: nothing is lost

RELOADING = 'Thu Mar  7 12:34:56 2024 user.notice firewall: Reloading firewall due to ifup of wan (eth1)\n'
TOOLS = {'nft': ['nft'], 'ipset': ['ipset'], 'iptables': ['iptables', 'iptables-restore']}


# --- a machine whose clock is turned, and whose firewall programs are real

class RealTools(FakeMachine):
    """The programs run in a namespace of their own."""

    def __init__(self, space):
        FakeMachine.__init__(self)
        self.space, self.answer = space, self.really

    def really(self, command):
        done = self.space.run(command.argv, input=command.stdin)
        said = [line for line in done.stderr.split('\n') if line and line[0] != '#']
        return '%s: %s' % (command.argv[0], (said + ['exit code %d' % done.returncode])[0]) if done.returncode else '', done.stdout


@pytest.fixture
def real(tmp_path, space):
    """A function that starts a daemon with a kind of firewall, and two bans."""
    def start(kind):
        house = House(tmp_path, firewall=kind, machine=RealTools(space))
        house.space = space
        ban(house, '192.0.2.7', '2001:db8::7')
        assert held(space, kind) == {'192.0.2.7', '2001:db8::7'}
        return house
    return start


def ban(house, *nets):
    return house.ask('ban', networks=list(nets), seconds=6000)


def held(space, kind):
    """The networks that the kernel has, whatever is around them."""
    if kind == 'nft':
        text = space.run(['nft', 'list', 'table', 'inet', 'banwatch']).stdout
        found = set()
        for length, body in re.findall(r'set v\d(?:_(\d+))? \{(.*?)\n\t\}', text, re.S):
            found.update(banwatch.network_of(ip + ('/' + length if length else '')) for ip in re.findall(r'([0-9a-f.:]+) timeout', body))
        return found
    if kind == 'ipset':
        text = space.run(['ipset', 'save']).stdout
        return {banwatch.network_of(net) for net in re.findall(r'^add banwatch-\S+ (\S+)', text, re.M)}
    text = ''.join(space.run([tool, '-S']).stdout for tool in ('iptables', 'ip6tables'))
    return {banwatch.network_of(net) for net in re.findall(r'^-A banwatch\S* -s (\S+) -j DROP', text, re.M)}


def tickets(house):
    return {row['ip'] for row in house.ask('banned')['banned']}


def right(house):
    """Asserts that the kernel has what the tickets say, and that nothing of it is amiss."""
    assert held(house.space, house.firewall) == tickets(house)
    ran, logged = len(house.machine.ran), len(house.machine.logged)
    house.pass_time(60)
    assert not [line for line in house.machine.logged[logged:] if 'repaired' in line]
    assert not [c for c in house.machine.ran[ran:] if c.stdin and 'get element' not in c.stdin], 'it was written anew'
    assert house.ask('status')['wrong'] == []


def news(house, since):
    return [line for line in house.machine.logged[since:] if not re.match(r'\[\w+\] (un)?ban|\[\w+\] extend|reloaded', line)]


FLUSH = 'for t in iptables ip6tables; do $t -F; $t -X; done'
VANISHED = [('nft', 'nft delete table inet banwatch'), ('nft', 'nft flush ruleset'), ('nft', 'nft flush table inet banwatch; nft delete set inet banwatch v4'),
            ('ipset', FLUSH + '; ipset destroy')]


@pytest.mark.slow
@pytest.mark.parametrize('kind, damage', VANISHED)
def test_a_batch_that_fails_since_ours_has_gone_is_followed_by_one_rebuild_at_once(real, kind, damage):
    house = real(kind)
    house.space.script(damage)
    ran, logged = len(house.machine.ran), len(house.machine.logged)
    assert ban(house, '192.0.2.8', '2001:db8::8')['trouble'] == ''
    writes = [c for c in house.machine.ran[ran:] if '192.0.2.7' in c.stdin and 'get element' not in c.stdin]
    assert len(writes) == 1
    for name in {line.split(':')[0] for line in news(house, logged)}:
        told = [line for line in news(house, logged) if line.startswith(name + ':')]
        assert sum('writing all rules again' in line for line in told) == 1 and len(told) <= 3, told
    right(house)


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_an_entry_that_has_gone_by_itself_does_not_stop_a_batch(real, kind):
    house = real(kind)
    house.space.script({'nft': 'nft delete element inet banwatch v4 { 192.0.2.7 }', 'ipset': 'ipset del banwatch-4 192.0.2.7',
                        'iptables': 'iptables-save | grep -v 192.0.2.7 | iptables-restore'}[kind])
    logged = len(house.machine.logged)
    assert house.ask('unban', networks=['192.0.2.7'])['trouble'] == ''
    assert ban(house, '192.0.2.8')['trouble'] == '' and ban(house, '2001:db8::7')['trouble'] == ''
    assert not news(house, logged)
    right(house)


# as `fw3 restart`, `fw4 stop`, a careless administrator, and one who takes out bits of it
DAMAGES = [('iptables', FLUSH), ('ipset', FLUSH), ('ipset', FLUSH + '; ipset destroy'), ('nft', 'nft flush ruleset'),
           ('nft', 'nft delete table inet banwatch'), ('iptables', 'nft flush ruleset'), ('ipset', 'nft flush ruleset'),
           ('nft', 'nft flush table inet banwatch'), ('nft', 'nft flush set inet banwatch v4'), ('nft', 'nft flush chain inet banwatch input'),
           ('nft', 'nft delete chain inet banwatch forward'), ('ipset', 'ipset flush banwatch-4'), ('ipset', 'ipset flush'),
           ('iptables', 'iptables -D FORWARD -j banwatch'), ('iptables', 'iptables -F banwatch'), ('iptables', 'iptables -A banwatch -j ACCEPT'),
           ('iptables', 'iptables -A INPUT -j banwatch'), ('ipset', 'ip6tables -D INPUT 1')]


@pytest.mark.slow
@pytest.mark.parametrize('kind, damage', DAMAGES)
def test_what_was_flushed_is_back_within_a_minute_and_told_in_one_line(real, kind, damage):
    house = real(kind)
    house.space.script(damage)
    logged = len(house.machine.logged)
    house.pass_time(60)
    told = news(house, logged)
    assert told and all('repaired (' in line for line in told) and len(told) == len({line.split(':')[0] for line in told}), told
    right(house)


@pytest.mark.slow
@pytest.mark.parametrize('kind, damage', [DAMAGES[0], DAMAGES[2], DAMAGES[3]])
@pytest.mark.parametrize('reason', ['HUP', 'the log'])
def test_a_hang_up_and_a_line_in_the_log_are_reasons_to_look(real, reason, kind, damage):
    house = real(kind)
    house.write(RELOADING) if reason == 'the log' else None
    house.space.script(damage)
    assert not held(house.space, kind)
    if reason == 'HUP':
        house.daemon.signalled(signal.SIGHUP)
        house.turn()
    else:
        house.pass_time(2)
    assert held(house.space, kind) == tickets(house)
    right(house)


@pytest.mark.slow
def test_a_reload_that_takes_longer_is_looked_after_too(real):
    house = real('nft')
    house.write(RELOADING)
    house.pass_time(3)
    house.space.script('nft flush ruleset')
    house.pass_time(7)
    right(house)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['iptables', 'ipset'])
def test_a_fight_for_the_first_place_does_not_fill_the_log(real, kind):
    house = real(kind)
    logged = len(house.machine.logged)
    for minute in range(8):
        house.space.script('iptables -D INPUT -j ACCEPT -i lo || :; iptables -I INPUT 1 -i lo -j ACCEPT')
        house.write(RELOADING)
        house.pass_time(60)
    assert [line.split(' (')[0] for line in news(house, logged)] == [kind + ': repaired']
    assert house.space.output(['iptables', '-S', 'INPUT']).split('\n')[1].startswith('-A INPUT -j banwatch')


class SlowTools(RealTools):
    """Programs that end when the test says so, in any order; some fail, before or after they have done their work."""

    def __init__(self, space, rng):
        RealTools.__init__(self, space)
        self.pending, self.rng, self.luckless = [], rng, 0.0

    def run(self, command, done, seconds=10):
        self.pending.append((command, done))

    def end(self):
        command, done = self.pending.pop(self.rng.randrange(len(self.pending)))
        fate = self.rng.random() + (command.argv[:2] == ['ipset', 'list'])     # who cannot list has no sets
        self.answer = self.really if fate > self.luckless else lambda command: ('no luck', '')
        if fate < self.luckless / 2:
            self.really(command)
        RealTools.run(self, command, done)


def kinds(space):
    """The kinds of firewall that have left something of ours."""
    rules = ''.join(space.run([tool, '-S']).stdout for tool in ('iptables', 'ip6tables'))
    found = {'nft'} if 'table inet banwatch\n' in space.run(['nft', 'list', 'tables']).stdout else set()
    if space.run(['ipset', 'list', '-n']).stdout or '--match-set' in rules:
        found.add('ipset')
    return found | ({'iptables'} if 'banwatch' in rules and 'ipset' not in found else set())


@pytest.mark.slow
@seeds(0)
def test_whatever_happens_in_whatever_order_the_kernel_ends_up_with_the_tickets(tmp_path, space, seed):
    """Bans, reloads to another kind, damage, failures and crashes, while the programs of all kinds are under way."""
    rng = random.Random(seed)
    house = House(tmp_path, firewall=rng.choice(KINDS), machine=SlowTools(space, rng))
    nets = ['192.0.2.%d' % n for n in range(1, 9)] + ['2001:db8:%d::/48' % n for n in range(4)]

    def finish():
        while house.machine.pending:
            house.machine.end()
            house.turn()

    def crash():
        house.crash()
        old, house.machine = house.machine, SlowTools(space, rng)
        assert not old.said('bug'), old.logged
        for command, _ in old.pending:               # what was under way comes to its end, or does not
            if rng.random() < 0.5:
                old.really(command)
        house.machine.now, house.machine.time, house.machine.luckless = old.now, old.time, old.luckless
        house.start()

    def step():
        what = rng.random()
        if what < 0.5 and house.machine.pending:
            house.machine.end()
        elif what < 0.75:
            house.daemon.answer({'do': rng.choice(['ban', 'ban', 'unban']), 'networks': [rng.choice(nets)], 'seconds': 6000}, len)
        elif what < 0.85:
            house.firewall = rng.choice(KINDS + ['none', 'auto', 'auto'])
            house.daemon.answer({'do': 'reload'}, len)
        elif what < 0.9:
            space.script(rng.choice(['nft flush ruleset', 'iptables -F', FLUSH, FLUSH + '; ipset destroy']))
        elif what < 0.92:
            crash()
        else:
            house.machine.pass_time(rng.choice([1, 5, 60]))
        house.turn()

    for _ in range(8):
        house.machine.luckless = rng.choice([0, 0.1, 0.4])
        for _ in range(25):
            step()
        house.firewall, house.machine.luckless = rng.choice(KINDS), 0
        house.daemon.answer({'do': 'reload'}, len)
        for _ in range(4):
            house.turn()
            finish()
            house.machine.pass_time(60)
        house.turn()
        finish()
        assert not house.machine.said('bug'), house.machine.logged
        assert kinds(space) == {house.firewall} and held(space, house.firewall) == set(tickets(house)), house.machine.logged[-9:]
        assert house.ask('status')['wrong'] == []
    house.daemon.stop()
    house.turn()
    finish()
    assert house.daemon.stopping and kinds(space) == set()


# --- when it looks

def looks(house):
    """The moments at which something was run, in seconds from now on; `write` and `pass_time` go on."""
    found, start = [], house.machine.now
    run = house.machine.run
    house.machine.run = lambda command, done, seconds=10: (found.append(house.machine.now - start), run(command, done, seconds))
    return found


@pytest.fixture
def calm(tmp_path):
    """A daemon whose firewall is as it should be."""
    machine = FakeMachine()
    machine.answer = lambda command: ('', '-N banwatch\n-A INPUT -j banwatch\n-A FORWARD -j banwatch\n' if '-S' in command.argv else '')
    house = House(tmp_path, firewall='iptables', machine=machine)
    house.pass_time(60)
    return house


def test_after_a_reload_of_the_firewall_it_looks_twice(calm):
    found = looks(calm)
    calm.write(RELOADING)
    for _ in range(59):
        calm.pass_time(1)
    assert sorted(set(found)) == [2, 10]


def test_however_often_the_firewall_says_so_it_looks_now_and_then(calm):
    found = looks(calm)
    for _ in range(590):
        calm.write(RELOADING * 10)
        calm.pass_time(0.1)
    assert 6 <= len(set(found)) <= 30


def test_a_reload_that_comes_just_before_a_look_has_looks_of_its_own(calm):
    found = looks(calm)
    calm.write(RELOADING)
    for _ in range(99):
        calm.pass_time(0.1)
    calm.write(RELOADING)
    for _ in range(400):
        calm.pass_time(0.1)
    assert any(2 <= when - 9.9 < 5 for when in found) and any(when - 9.9 >= 9 for when in found)


def test_what_stood_in_the_log_before_is_no_reason_to_look(tmp_path):
    log = tmp_path / 'messages'
    log.write_text(RELOADING * 3)
    machine = FakeMachine()
    house = House(tmp_path, '[dropbear]\nlogpath = %s\n' % log, firewall='iptables', machine=machine)
    house.turn()
    ran = len(machine.ran)
    for _ in range(59):
        house.pass_time(1)
    assert len(machine.ran) == ran


@pytest.mark.parametrize('line', ["authpriv.warn dropbear[1]: Bad password attempt for 'x' from 192.0.2.1:2", 'user.notice firewall: Reloaded',
                                  'user.info other: firewall is Reloading'])
def test_another_line_is_no_reason_to_look(calm, line):
    found = looks(calm)
    calm.write('Thu Mar  7 12:34:56 2024 %s\n' % line)
    for _ in range(59):
        calm.pass_time(1)
    assert not found


# --- bans that come while the firewall is in trouble

def test_what_waits_for_a_retry_is_in_the_one_batch_that_works(tmp_path):
    machine = FakeMachine()
    machine.answer = lambda command: ('no', '')
    house = House(tmp_path, firewall='nft', machine=machine)
    for n in range(50):
        house.fail('192.0.2.%d' % n, 3)
    house.pass_time(1)
    machine.answer = lambda command: ('', '')
    ran = len(machine.ran)
    house.pass_time(60)
    writes = [c for c in machine.ran[ran:] if 'add element' in c.stdin]
    assert len(writes) == 1 and all('192.0.2.%d ' % n in writes[0].stdin for n in range(50))


@pytest.mark.parametrize('seconds', [1, 7, 61])
def test_a_message_that_says_another_number_each_time_is_told_once(tmp_path, seconds):
    """As nft's, which names a line of what it was given; there are more of them from ban to ban."""
    machine = FakeMachine()
    numbers = iter(range(100000))
    machine.answer = lambda command: ('nft: /dev/stdin:%d:1-9: Error: Could not process rule' % next(numbers), '')
    house = House(tmp_path, firewall='nft', machine=machine)
    for _ in range(100):
        house.pass_time(seconds)
    assert sum('Could not process' in line for line in machine.logged) == 1


def test_a_bug_in_a_firewall_is_told_and_tried_again_and_the_ban_gets_there(tmp_path):
    machine = FakeMachine()
    house = House(tmp_path, firewall='nft', machine=machine)
    firewall, bugs = house.daemon.wall.syncs[0].firewall, iter([ZeroDivisionError('a bug')])
    change = firewall.change

    def once(changes, now):
        for bug in bugs:
            raise bug
        return change(changes, now)
    firewall.change = once
    house.daemon.ban(house.daemon.judge.jails.by_name['sshd'], '192.0.2.7', 600)
    house.daemon.loop.call(house.daemon.settle)
    assert machine.said('ZeroDivisionError')
    house.pass_time(2)
    assert any('192.0.2.7' in command.stdin for command in machine.ran) and house.ask('status')['wrong'] == []


# --- a real router with programs that go wrong

OTHER = 'Nov 20 13:00:0%d h vsftpd[%d]: [bob] FAIL LOGIN: Client "192.0.2.%d"\n'


class TroubledRouter:
    """The daemon on a router; its firewall programs can be made to go wrong. Two jails, each with a log of its own."""

    def __init__(self, network, daemon, programs, kind):
        self.network, self.programs, self.kind = network, programs, kind
        self.other = network.path('other')
        self.guard = daemon('[vsftpd]\nenabled = true\nlogpath = fifo:%s\nmaxretry = 1000\n' % self.other, firewall=kind, maxretry=3)
        assert settled(self.guard, kind) == kind
        self.counted = 0

    def go_wrong(self, script, *tools):
        for name in tools or TOOLS[self.kind]:
            if script is None:
                self.programs.hide(name)
            else:
                self.programs.replace(name, script.format(real=self.programs.real + '/' + name, mark=self.network.path('mark')))

    def go_right(self):
        for name in set(os.listdir(self.programs.folder)) & set(IPTABLES + ['nft', 'ipset']) | set(TOOLS[self.kind]):
            with contextlib.suppress(OSError):
                os.unlink(self.programs.path(name))
            self.programs.show(name)

    def fail(self, *ips):
        with open(self.network.log, 'a') as f:
            f.write(''.join(LINE % (n, ip) for ip in ips for n in range(3)))

    def alive(self):
        """Asserts that a line of another jail's log is counted, long before a program that hangs is given up."""
        self.counted += 1
        start = time.monotonic()
        with open(self.other, 'w') as f:
            f.write(OTHER % (self.counted % 10, self.counted, self.counted))
        assert poll(lambda: self.failures() == self.counted)
        assert time.monotonic() - start < 5

    def status(self):
        """What `status --json` prints, without the time that a client takes to start."""
        return banwatch.ask_daemon({'runtime': self.network.path('run')}, {'do': 'status'})

    def failures(self):
        return [row['failures'] for row in self.status()['jails'] if row['jail'] == 'vsftpd'][0]

    def wrong(self):
        return ' '.join(self.status()['wrong'])

    def banned(self):
        return {row['ip'] for row in self.guard.ask('banned')}

    def right(self, seconds=40):
        """Asserts that soon nothing is wrong, and the kernel has what the tickets say."""
        assert poll(lambda: not self.wrong() and settled(self.guard), seconds), self.wrong()
        assert poll(lambda: held(self.network.router, self.kind) == self.banned() and traces(self.network) == {self.kind}, 5)

    def told(self, text):
        return sum(text in line for line in self.guard.said().split('\n'))


@pytest.fixture
def router(network, daemon, programs):
    return lambda kind: TroubledRouter(network, daemon, programs, kind)


TROUBLES = {
    'exits with 1': ('cat >/dev/null; echo "Error: no such thing" >&2; exit 1\n', 'no such thing'),
    'exits with 4 and says nothing': ('exit 4\n', 'exit code 4'),
    'dies': ('kill -SEGV $$\n', 'exit code -11'),
    'prints a megabyte': ('head -c 1000000 /dev/zero | tr "\\0" x >&2; exit 1\n', 'xxxx'),
    'prints 20 MB': ('yes | head -c 20000000; exit 0\n', 'says more than can be read'),
    'never stops printing': ('exec yes\n', 'answer in time|more than can be read'),
    'hangs': ('exec sleep 1000\n', 'did not answer in time'),
    'leaves a child behind': ('sleep 1000 & exit 3\n', 'exit code 3'),
    'is not installed': (None, 'is not installed'),
}
COMMON = ('is not installed',)                            # the rest is the same for all kinds


@pytest.mark.slow
@pytest.mark.parametrize('kind, what', [(kind, what) for kind in KINDS for what in TROUBLES if kind == 'nft' or what in COMMON])
def test_a_tool_in_trouble_stops_nobody_loses_nothing_and_is_told_once(router, kind, what):
    script, text = TROUBLES[what]
    here = router(kind)
    here.fail('198.51.100.7')
    here.guard.wait_banned('198.51.100.7')
    here.go_wrong(script)
    here.fail('198.51.100.8')
    for _ in range(3):
        here.alive()
    assert poll(lambda: re.search(text, here.wrong()), 25), here.wrong()
    here.alive()
    done = here.guard.command('ban', '192.0.2.99')
    assert done.returncode == 1 and 'saved, but the firewall refused it' in done.stderr and re.search(text, done.stderr), done
    here.go_right()
    here.right()
    assert here.banned() == {'198.51.100.7', '198.51.100.8', '192.0.2.99'}
    lines = [line for line in here.guard.said().split('\n') if re.search(text, line)]
    assert 0 < len(lines) <= len(TOOLS[kind]) and len(set(lines)) == len(lines) and max(map(len, lines)) < 400, lines
    assert here.told('works again') == 1


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_a_tool_that_fails_for_the_first_batch_is_asked_again_at_once(router, kind):
    here = router(kind)
    tool = TOOLS[kind][-1]
    here.go_wrong('[ -e {mark} ] || {{ : >{mark}; echo "not now" >&2; exit 1; }}\nexec {real} "$@"\n', tool)
    assert here.guard.command('ban', '198.51.100.7').returncode == 0
    here.right(2)
    assert here.told('not now') == 1


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_a_tool_that_fails_every_second_time_gets_there(router, kind):
    here = router(kind)
    here.go_wrong('if rmdir {mark} 2>/dev/null; then exec {real} "$@"; fi\nmkdir {mark}; echo "not now" >&2; exit 1\n')
    for n in range(10):
        here.fail('198.51.100.%d' % n)
        here.alive()
    assert poll(lambda: len(here.banned()) == 10)
    here.go_right()
    here.right(70)


@pytest.mark.slow
def test_a_lock_that_somebody_holds_is_waited_for_then_told_and_nothing_is_lost(router, programs, network):
    programs.old_iptables()
    here = router('iptables')
    holder = network.router.popen(['flock', '/run/xtables.lock', 'sleep', '100'])
    assert poll(lambda: network.router.run(['flock', '-n', '/run/xtables.lock', 'true']).returncode)
    here.fail('198.51.100.7')
    for _ in range(3):
        here.alive()
    assert poll(lambda: 'xtables.lock' in here.wrong(), 15)
    os.killpg(holder.pid, signal.SIGKILL)
    poll(lambda: not here.wrong(), 40)
    assert here.wrong() == '' and here.told('xtables.lock') == 1
    assert '198.51.100.7/32 -j DROP' in network.router.output(['iptables-legacy', '-S'])


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_a_stop_while_the_tool_hangs_ends_in_time_and_stop_tidies_up_later(router, network, kind):
    here = router(kind)
    assert here.guard.command('ban', '198.51.100.7', '2001:db8:bad::7').returncode == 0
    here.go_wrong('exec sleep 1000\n', *TOOLS[kind] + IPTABLES * (kind != 'nft'))
    here.fail('198.51.100.8')
    here.guard.wait_banned('198.51.100.8')
    start = time.monotonic()
    assert here.guard.stop() == 1 and time.monotonic() - start < 5
    assert 'not all could be taken out; `banwatch.py stop` tries again' in here.guard.said()
    here.go_right()
    done = here.guard.command('stop')
    assert done.returncode == 69 and 'have been taken out' in done.stderr, done
    assert traces(network) == set()


@pytest.mark.slow
def test_nothing_of_ours_runs_on_after_a_stop(router, network):
    """A batch that comes through only then would bring back what the stop took out."""
    here = router('iptables')
    here.go_wrong('sleep 7; exec {real} "$@"\n', 'iptables-restore')
    here.fail('198.51.100.7')
    here.guard.wait_banned('198.51.100.7')
    assert here.guard.stop() == 1
    here.go_right()
    assert here.guard.command('stop').returncode == 69
    assert not poll(lambda: traces(network), 8)


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_a_stop_that_cannot_tidy_up_says_so(router, kind):
    here = router(kind)
    assert here.guard.command('ban', '198.51.100.7').returncode == 0
    here.guard.kill()
    here.go_wrong('echo "no way" >&2; exit 1\n', *TOOLS[kind] + ['iptables-restore'] * (kind == 'ipset'))
    done = here.guard.command('stop')
    assert done.returncode not in (0, 69) or 'may have left rules behind' in done.stderr, done
    here.go_right()
    assert here.guard.command('stop').returncode == 69 and traces(here.network) == set()


# --- an iptables that knows less

# What the old ones say to -w, and its exit code; `held` is there while another program changes the rules. 1.4.15
# (Asuswrt-Merlin) knows no lock; 1.4.21 (Entware) waits for it, but not for some seconds, and its -restore does not.
OLD_IPTABLES = '''#!/bin/sh
name=${0##*/}
version=@version
case " $*" in
    *' -w '*)
        case $version:$name in
            1.4.15:*-restore | 1.4.21:*-restore) echo "$name: invalid option -- 'w'" >&2; echo "Can't open 5: No such file" >&2; exit 1 ;;
            1.4.15:*) echo "$name v1.4.15: unknown option \\"-w\\"" >&2; echo "Try \\`$name -h' for more information." >&2; exit 2 ;;
        esac
        case "$*" in *'-w 5'*) echo "$name v1.4.21: Bad argument \\`5'" >&2; exit 2 ;; esac ;;
    *) [ ! -e @held ] || { echo "$name: Resource temporarily unavailable." >&2; exit 4; } ;;
esac
while [ -e @held ]; do sleep 0.1; done
echo "$name $*" >>@said
exec /usr/sbin/$(echo $name | sed 's/tables/tables-legacy/') "$@"
'''


@pytest.mark.slow
@pytest.mark.parametrize('version, firewall, held', [
    ('1.4.15', 'auto', False), ('1.4.15', 'iptables', True), ('1.4.21', 'auto', True), ('1.4.21', 'ipset', False)])
def test_an_old_iptables_is_taken_as_it_is(network, daemon, tmp_path, monkeypatch, version, firewall, held):
    need('iptables-legacy', 'ip6tables-legacy', 'ipset', root=True)
    tools = tmp_path / 'tools'
    tools.mkdir()
    text = OLD_IPTABLES.replace('@version', version).replace('@held', str(tmp_path / 'held')).replace('@said', str(tmp_path / 'said'))
    for name in 'iptables', 'ip6tables', 'iptables-restore', 'ip6tables-restore':
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv('PATH', '%s:%s' % (tools, os.environ['PATH']))
    network.router.script('iptables-legacy -A INPUT -i lo -j ACCEPT; ip6tables-legacy -A INPUT -i lo -j ACCEPT')
    network.write('messages', '')
    guard = daemon(firewall=firewall)
    assert poll(lambda: guard.ask('status')['firewall'] and not any(row['pending'] for row in guard.ask('status')['firewall']), 15)
    if held:
        (tmp_path / 'held').write_text('')
        network.router.popen(['sh', '-c', 'sleep 2; rm %s' % (tmp_path / 'held')])
    done = guard.command('ban', '198.51.100.7', '2001:db8:bad::7')
    assert (done.returncode, done.stderr) == (0, ''), guard.said()
    assert not network.attacker.reaches('203.0.113.1', source='198.51.100.7') and network.attacker.reaches('203.0.113.1', source='198.51.100.8')
    assert not network.attacker.reaches('2001:db8:1::1', source='2001:db8:bad::7')
    assert guard.ask('status')['wrong'] == [] and 'writing all anew' not in guard.said(), guard.said()
    assert guard.stop() == 0
    assert 'banwatch' not in network.router.script('iptables-legacy -S; ip6tables-legacy -S; ipset list -n')


def test_iptables_and_its_kin_run_one_at_a_time_where_nothing_waits_for_the_lock(tmp_path, monkeypatch):
    """Of a kind that knows no -w; asked once each, not again and again."""
    machine, ended = banwatch.Machine(), []
    (tmp_path / 'iptables').write_text(
        '#!/bin/sh\necho "$*" >>%s\ncase "$*" in *-w*) echo "iptables v1.4.15: unknown option \\"-w\\"" >&2; exit 2 ;; esac\n'
        'mkdir %s || exit 9\nsleep 0.1; rmdir %s\n' % (tmp_path / 'said', tmp_path / 'lock', tmp_path / 'lock'))
    (tmp_path / 'iptables').chmod(0o755)
    monkeypatch.setenv('PATH', '%s:%s' % (tmp_path, os.environ['PATH']))
    begin = lambda: [machine.run(banwatch.list_rules('iptables'), lambda *answer: ended.append(answer)) for _ in range(4)]
    banwatch.run_loop_until(machine, begin, lambda: len(ended) == 4, lambda number: machine.reap())
    assert ended == [('', '')] * 4
    machine.run(banwatch.list_rules('iptables'), lambda *answer: ended.append(answer))
    banwatch.run_loop_until(machine, lambda: None, lambda: len(ended) == 5, lambda number: machine.reap())
    said = (tmp_path / 'said').read_text().split('\n')
    assert said[-2:] == ['-S', ''] and sum('-w' in line for line in said) <= 8


def test_an_iptables_that_fails_is_not_called_not_installed():
    shown = {'nft': '', 'iptables': None, 'ip6tables': None}
    assert banwatch.choose_kinds(shown)[1] == 'no rules here yet; iptables is not installed'
    assert banwatch.choose_kinds(shown, ['iptables'])[1] == 'no rules here yet; iptables fails'


# --- connections that bypass every rule since their flow is offloaded: a ban ends these too, where conntrack(8) is installed

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
FW3_OFFLOADS = """
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
    network.router.script(FW3_OFFLOADS)
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
