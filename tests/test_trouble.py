"""Firewall programs that hang, fail, vanish or lie, and rules that somebody else takes away: nothing is lost."""
import contextlib
import os
import random
import re
import signal
import time

import pytest

import banwatch
from conftest import need
from harness import LINE, FakeMachine, House, poll, seeds
from network import Namespace
from test_choice import IPTABLES, KINDS, programs, settled, traces

RELOADING = 'Thu Mar  7 12:34:56 2024 user.notice firewall: Reloading firewall due to ifup of wan (eth1)\n'
TOOLS = {'nft': ['nft'], 'ipset': ['ipset'], 'iptables': ['iptables', 'iptables-restore']}


# --- a machine whose clock is turned, and whose firewall programs are real

class Real(FakeMachine):
    """The programs run in a namespace of their own."""

    def __init__(self, space):
        FakeMachine.__init__(self)
        self.space, self.answer = space, self.really

    def really(self, command):
        done = self.space.run(command.argv, input=command.stdin)
        said = [line for line in done.stderr.split('\n') if line and line[0] != '#']
        return '%s: %s' % (command.argv[0], (said + ['exit code %d' % done.returncode])[0]) if done.returncode else '', done.stdout


@pytest.fixture
def space():
    need('unshare', 'nsenter', 'nft', 'iptables', 'ip6tables', 'ipset', root=True)
    made = Namespace()
    yield made
    made.close()


@pytest.fixture
def real(tmp_path, space):
    """A function that starts a daemon with a kind of firewall, and two bans."""
    def start(kind):
        house = House(tmp_path, firewall=kind, machine=Real(space))
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


class Slow(Real):
    """Programs that end when the test says so, in any order; some fail, before or after they have done their work."""

    def __init__(self, space, rng):
        Real.__init__(self, space)
        self.pending, self.rng, self.luckless = [], rng, 0.0

    def run(self, command, done, seconds=10):
        self.pending.append((command, done))

    def end(self):
        command, done = self.pending.pop(self.rng.randrange(len(self.pending)))
        fate = self.rng.random() + (command.argv[:2] == ['ipset', 'list'])     # who cannot list has no sets
        self.answer = self.really if fate > self.luckless else lambda command: ('no luck', '')
        if fate < self.luckless / 2:
            self.really(command)
        Real.run(self, command, done)


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
    house = House(tmp_path, firewall=rng.choice(KINDS), machine=Slow(space, rng))
    nets = ['192.0.2.%d' % n for n in range(1, 9)] + ['2001:db8:%d::/48' % n for n in range(4)]

    def finish():
        while house.machine.pending:
            house.machine.end()
            house.turn()

    def crash():
        house.crash()
        old, house.machine = house.machine, Slow(space, rng)
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


class Router:
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
    return lambda kind: Router(network, daemon, programs, kind)


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
