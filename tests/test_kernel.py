"""The daemon and the kernel: whatever happens to either of them, what is shut is what `banned` shows."""
import os
import random
import signal
import time

import pytest

import banwatch
from conftest import need
from harness import poll, seeds
from test_firewalls import DAMAGE, JAILS, NETS, now, walls_of

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
