"""A day of a router's life, with all that happens in one: at its end tickets, kernel, files and report say what a model of our own says.

The model keeps a journal of what happened and knows nothing of the program but its contract: what a file does not hold is lost by cutting the
journal off where that file was written.
"""
import bisect
import collections
import gc
import heapq
import ipaddress
import os
import random
import re
import time

import pytest

import banwatch
from banwatch import DAY, HOUR, MINUTE, PARTS, SANE
from harness import House
from test_mail import Post, parsed

SAVE, FINDTIME, BANTIME, MAXRETRY, FORGIVEN = HOUR, 600, 600, 5, HOUR
SLOW = 1                             # seconds that the live file takes on a slow router
LAN = '192.168.1.'
JAILS = 'dropbear', 'sshd', 'luci'
NAMES = 'root', 'admin', 'pi', 'ubnt', 'test', 'alice'
PEOPLE = [(LAN + '10', 'root', 'dropbear'), (LAN + '11', 'root', 'luci'), ('203.0.113.50', 'alice', 'sshd'), ('2001:db8:77::5', 'root', 'dropbear')]
MIDNIGHT = time.mktime((2027, 1, 15, 0, 0, 0, 0, 0, -1))


# --- what is played to the daemon

class Ruleset:
    """The nft of a kernel before 6.12: sets whose elements run out, batches that are done as a whole or not at all."""

    def __init__(self, ticks):
        self.ticks, self.tables, self.writes = ticks, {}, 0

    def sets(self, tables=None):
        """name of a set -> {address: when it runs out}."""
        if tables is None:
            tables = self.tables
        now, sets = self.ticks(), tables['inet banwatch'][0]
        for name, there in sets.items():
            sets[name] = {ip: until for ip, until in there.items() if until is None or until > now}
        return sets

    def held(self):
        """(network, is it shut out of some ports only?) -> when that runs out."""
        found = {}
        for name, there in self.sets().items() if self.tables else ():
            length = '/64' if '_64' in name else ''
            found.update({(ip + length, 'door' in name): until for ip, until in there.items()})
        return found

    def hit(self, packets):
        self.tables['inet banwatch'][1]['input'][1][1] += packets

    def run(self, command):
        """(problem, output)"""
        try:
            if 'list' in command.argv:
                return '', self.listing()
            if '-t' in command.argv:
                for row in command.stdin.splitlines():
                    name, ips = re.fullmatch(r'get element inet banwatch (\w+) \{ (.*) \}', row).groups()
                    if ips not in self.sets()[name]:
                        raise KeyError(ips)
                return '', ''
            self.tables = self.changed(command.stdin)
            self.writes += 1
            return '', ''
        except KeyError as e:
            return 'nft: Error: No such file or directory: %s' % e, ''

    def listing(self):
        text = 'table inet fw4 {\n\tchain input {\n\t\ttype filter hook input priority filter; policy drop;\n\t}\n}\n'
        for name, (sets, chains) in self.tables.items():
            text += 'table %s {\n' % name
            text += ''.join('\tset %s {\n\t\ttype ipv%s_addr\n\t\tflags timeout\n\t}\n\n' % (each, each[1]) for each in sets)
            for chain, rows in chains.items():
                text += '\tchain %s {\n\t\t%s\n' % (chain, rows[0][0])
                text += ''.join('\t\t%s\n' % rule.replace('counter', 'counter packets %d bytes %d' % (n, 60 * n)) for rule, n in rows[1:]) + '\t}\n'
            text += '}\n'
        return text

    def changed(self, batch):
        tables = {name: ({each: dict(there) for each, there in sets.items()}, {chain: [list(row) for row in rows] for chain, rows in chains.items()})
                  for name, (sets, chains) in self.tables.items()}
        there = chain = None
        for row in batch.splitlines():
            words = row.split()
            if words[:2] == ['add', 'table']:
                tables.setdefault(' '.join(words[2:]), ({}, {}))
            elif words[:2] == ['delete', 'table']:
                del tables[' '.join(words[2:])]
            elif words[1:2] == ['element']:
                known = self.sets(tables)[words[4]]
                for text in row.partition('{ ')[2].partition(' }')[0].split(', '):
                    ip, _, seconds = text.partition(' timeout ')
                    if words[0] == 'delete':
                        del known[ip]
                    else:
                        known.setdefault(ip, self.ticks() + int(seconds[:-1]) if seconds else None)
            elif words[0] == 'table':
                there = tables.setdefault(' '.join(words[1:3]), ({}, {}))
            elif words[0] == 'set':
                there[0][words[1]] = {}
            elif words[0] == 'chain':
                chain = there[1].setdefault(words[1], [])
            elif words[0] == '}':
                chain = None
            elif chain is not None:
                chain.append([row, 0])
        return tables


class Follower:
    """`logread -f`, in this process."""
    pid = 0
    told = False                     # has the ring been read since it follows?

    def __init__(self):
        self.pipes = [os.pipe(), os.pipe()]
        self.stdout, self.stderr = [open(out, 'rb', 0) for out, _ in self.pipes]
        self.ends = [end for _, end in self.pipes]

    def wait(self, timeout=None):
        self.die()

    def die(self):
        for end in self.ends:
            os.close(end)
        self.ends = []


class Line:
    """One of the log: its meaning is (jail, ip, user, guesses) of what it is the first line of, or what else it counts as."""
    heard = None                     # how long the journal was when the daemon heard it
    followed = None                  # the Follower that has told it

    def __init__(self, text, when, meaning=None):
        self.text, self.when, self.meaning = text, when, meaning


class LifesRouter(Post):
    """A machine with a log daemon, a kernel and a sendmail."""

    def __init__(self, life):
        self.life = life
        super().__init__()
        self.nets = [banwatch.make_exempt(LAN + '0/24', 'the LAN, br-lan'), banwatch.make_exempt('198.51.100.1', 'a gateway')]

    def run(self, command, done, seconds=10):
        life, name = self.life, command.argv[0]
        if name == 'nft':
            return done(*life.ruleset.run(command))
        if name == 'logread':
            last = '-l' in command.argv
            lines = life.ring[-1:] if last else list(life.ring)
            if not last:
                if life.knows_ring and all(line.heard is None for line in lines):
                    life.note('incident', 'logread')           # there must have been more
                life.hear([line for line in lines if line.heard is None], life.knows_ring)
                life.follower.told = life.knows_ring = True
            return done('', ''.join(line.text for line in lines))
        if 'Message-ID:' in command.stdin:
            life.note('incident', 'mail') if self.refuses else life.note('sent')
        return super().run(command, done, seconds)

    def spawn_tethered(self, argv):
        self.life.follower = Follower()
        return self.life.follower, None

    def kill(self, process, number=9):
        pass

    def replace(self, path, text, mode=0o600):
        super().replace(path, text, mode)
        life = self.life
        life.files[os.path.basename(path)] = len(life.journal), life.now(), self.time
        life.flash += len(text) * (path.endswith('state'))
        if path.endswith('state'):
            life.kept, life.absent = life.kept + 1, 0
        if path.endswith('state.json'):
            self.pass_time(SLOW)


# --- what it ought to make of it

def net_of(ip):
    return str(ipaddress.ip_network(ip + '/64', False)) if ':' in ip else ip


class Model:
    """What is true after a journal of (when, what, ...). Moments are seconds since the day began; after a reboot, which knows not how long
    it took, they are moved to where the daemon must believe them."""

    def __init__(self, journal):
        self.fails, self.bans, self.times, self.forgiven = {}, {}, collections.Counter(), {}
        self.told = set()            # (user, ip) of logins that mails have told
        self.earlier = {}
        self.begin(0)
        for entry in journal:
            self.add(*entry)

    def begin(self, now):
        self.begun = now
        self.jails = collections.Counter()         # (jail, what) -> n
        self.least, self.most, self.last = collections.Counter(), collections.Counter(), {}
        self.pairs = collections.Counter()         # (net, user) -> failures since the last login
        self.users = {}                            # user -> [failures, networks]
        self.hours = []                            # (moment, seconds by which that may be wrong, failures or bans)
        self.logins, self.guessed, self.ignored = {}, collections.Counter(), collections.Counter()
        self.counts, self.steps = collections.Counter(), []        # of lines, incidents, starts; seconds

    def add(self, now, what, *more):
        if what != 'reboot':
            self.end(now)
        getattr(self, what)(now, *more)

    def end(self, now):
        for key in [key for key, ban in self.bans.items() if ban[1] <= now]:
            del self.bans[key]
            self.jails[key[0], 'ended'] += 1

    def heard(self, now, when, jail, ip, user, guesses):
        """A connection: so many guesses, or a login."""
        net = net_of(ip)
        if not guesses:
            key = user, ip, jail
            n, first, _ = self.logins.get(key, (0, when, 0))
            self.logins[key] = n + 1, first, when
            self.guessed[key] += self.pairs.get((net, user), 0) + self.earlier.pop((net, user), 0)
            self.pairs.update({(net, user): -self.pairs[net, user]} if (net, user) in self.pairs else {})
            if ip.startswith(LAN):
                self.ignored[net] = self.ignored[net] if self.ignored[net] >= 3 else 0
            if (jail, net) not in self.bans:
                self.forgiven[jail, ip, user] = when + FORGIVEN
        for _ in range(guesses):
            if ip.startswith(LAN) or self.forgiven.get((jail, ip, user), 0) > when:
                self.jails[jail, 'ignored'] += 1
                self.ignored[net] += ip.startswith(LAN)
            else:
                self.fail(now, when, jail, net, user)

    def fail(self, now, when, jail, net, user):
        self.jails[jail, 'failures'] += 1
        self.least[net] += 1
        self.most[net] += 1
        self.last[net] = when
        self.hours.append((when, 0, 'failures'))
        if user:
            known = self.users.setdefault(user, [0, 0])
            known[0] += 1
            known[1] += (net, user) not in self.pairs
            self.pairs[net, user] += 1
        key = jail, net
        if key in self.bans:
            return
        self.fails[key] = [t for t in self.fails.get(key, ()) if t > when - FINDTIME] + [when]
        if len(self.fails[key]) == MAXRETRY:
            del self.fails[key]
            self.bans[key] = now, now + min(BANTIME * 2 ** self.times[key], 28 * DAY), self.times[key] + 1
            self.times[key] += 1
            self.jails[jail, 'bans'] += 1
            self.hours.append((now, 0, 'bans'))

    def unban(self, now, net):
        for key in [key for key in self.bans if key[1] == net]:
            del self.bans[key]
            self.jails[key[0], 'lifted'] += 1
        for key in [key for key in self.fails if key[1] == net]:
            del self.fails[key]

    def incident(self, now, where, n=1):
        self.counts[where] += n

    def sent(self, now):
        self.told |= {key[:2] for key in self.logins}
        self.earlier = dict(self.pairs)
        self.begin(now)

    def set_clock(self, now, seconds):
        """By so much; who fails in the hour before may have failed in the one before that."""
        self.steps.append(round(seconds))
        self.hours = [(t, 1800, what) for t, _, what in self.hours]

    def reboot(self, now, moved):
        """All is as the kept file says, `moved` to later by what the clock does not know of."""
        self.begun += moved
        self.bans = {key: (since + moved, until + moved, n) for key, (since, until, n) in self.bans.items()}
        self.end(now)
        self.hours = [(t + moved, 1800, what) for t, _, what in self.hours]
        self.last = {net: t + moved for net, t in self.last.items()}
        self.logins = {key: (n, first + moved, last + moved) for key, (n, first, last) in self.logins.items()}
        self.fails, self.forgiven, self.pairs, self.earlier = {}, {}, collections.Counter(), {}
        # names that one address has tried may be passwords
        self.users = {user: known for user, known in self.users.items() if known[1] > 1}
        sure = {net for net, n in self.least.items() if sum(more >= n for other, more in self.most.items() if other != net) < banwatch.KEPT_ROWS}
        gone = {net for net, n in self.most.items() if sum(less > n for less in self.least.values()) >= banwatch.KEPT_ROWS}
        self.least = collections.Counter({net: n for net, n in self.least.items() if net in sure})
        self.most = collections.Counter({net: n for net, n in self.most.items() if net not in gone})
        self.counts['reboots'] += 1

    def start(self, now):
        self.counts['starts'] += 1

    def wave(self, now, n):
        """Lines that are no guesses, by what they are."""
        self.counts.update(n)


# --- the day

class Life(House):
    """A House whose router lives; what happens to it stands in `events`, a heap of (when, number, what to do)."""

    def __init__(self, folder, seed, pool):
        self.rng, self.pool = random.Random(seed), pool
        self.base, self.boots = 0.0, 1
        self.journal, self.model = [], Model([])
        self.ring, self.follower, self.daemon = [], None, None
        self.knows_ring, self.skew = False, 0
        self.files, self.flash, self.kept, self.starts, self.sends, self.absent = {}, 0, 0, 0, 0, 0
        self.ruleset = Ruleset(self.now)
        self.events, self.made, self.pid = [], 0, 2000
        self.uncounted = 0
        self.machine = LifesRouter(self)
        self.machine.now, self.machine.time = 30.0, MIDNIGHT
        self.base = -30.0
        super().__init__(folder, machine=self.machine)

    def conf(self):
        made, problems = banwatch.read_config('[banwatch]\nsource = logread\nfirewall = nft\nruntime = %s\nstate = %s\n[DEFAULT]\nmaxnetworks = 0\n' % (
            self.folder / 'run', self.folder / 'state'), 'c')
        assert not problems
        return made

    def now(self):
        return self.base + self.machine.now

    def start(self):
        self.starts += 1
        super().start()

    # what is noted
    def note(self, *entry):
        self.journal.append((self.now(),) + entry)
        self.model.add(*self.journal[-1])

    def hear(self, lines, count=True):
        """The daemon hears these lines now, all at once. Of a log that it has never heard before, only what it tells counts."""
        for line in lines:
            line.heard = len(self.journal)
        for line in lines:
            if type(line.meaning) is tuple:
                self.note('heard', self.now() if self.follower.told else line.when, *line.meaning)
        if count:
            self.note('wave', collections.Counter([line.meaning for line in lines if type(line.meaning) is str] + ['lines'] * len(lines)))

    def back_to(self, name):
        """Takes back what is not in that file; (when, what the clock showed) it was written."""
        length, when, wall = self.files[name]
        del self.journal[length:]
        self.model = Model(self.journal)
        for line in self.ring:
            line.heard = line.heard if line.heard is not None and line.heard < length else None
        return when, wall

    # how time passes
    def at(self, when, function, *arguments):
        self.made += 1
        heapq.heappush(self.events, (when, self.made, function, arguments))

    def live(self, until):
        """From event to event, ours and the daemon's, until then."""
        while True:
            for _ in range(2):
                self.daemon.loop.due()
                self.daemon.settle()
            wait = self.daemon.loop.due()
            if self.events and self.events[0][0] <= self.now():
                _, _, function, arguments = heapq.heappop(self.events)
                function(*arguments)
            elif self.now() >= until:
                return
            else:
                then = min([until] + [each[0] for each in self.events[:1]] + [self.now() + wait] * (wait is not None))
                self.machine.pass_time(max(0.001, then - self.now()))

    def turn(self, times=1):
        """Only what is there, at this moment."""
        self.daemon.loop.wait(0)
        self.daemon.settle()
        self.daemon.settle()

    # what is in the log
    def log(self, *texts):
        """Writes lines, each (text, meaning)."""
        stamp, when = time.strftime('%a %b %d %H:%M:%S %Y ', time.localtime(self.machine.time)), self.now() - self.machine.time % 1
        lines = [Line(stamp + text + '\n', when, meaning) for text, meaning in texts]
        self.ring = (self.ring + lines)[-2000:]
        if self.follower and self.follower.ends and self.daemon:
            for line in lines:
                line.followed = self.follower
            os.write(self.follower.ends[0], ''.join(line.text for line in lines).encode())
            if self.follower.told:
                self.hear(lines)
            self.turn()

    def connection(self, jail, ip, user, guesses):
        """Lines of somebody who tries so often, or logs in."""
        self.pid += 1
        pid, port, meaning = self.pid, self.rng.randrange(1024, 65536), (jail, ip, user, guesses)
        if jail == 'luci':
            texts = ['daemon.err uhttpd[904]: luci: %s login on / for %s from %s' % ('failed' if guesses else 'accepted', user, ip)] * max(1, guesses)
        elif jail == 'sshd':
            known = user in ('root', 'alice')
            rest = '%s from %s port %d' % (user, ip, port)
            texts = ['auth.info sshd[%d]: %s' % (pid, text) for text in ['Invalid user ' + rest] * (not known and guesses > 0) + [
                'Failed password for %s%s ssh2' % ('' if known else 'invalid user ', rest)] * guesses + ['Accepted password for %s ssh2' % rest] * (not guesses) + [
                'Connection closed by %s user %s %s port %d [preauth]' % ('authenticating' if known else 'invalid', user, ip, port)] * (guesses > 0)]
        elif guesses and user:
            texts = ["authpriv.warn dropbear[%d]: Bad password attempt for '%s' from %s:%d" % (pid, user, ip, port)] * guesses + [
                "authpriv.info dropbear[%d]: Exit before auth from <%s:%d>: (user '%s', %d fails): Exited normally" % (pid, ip, port, user, guesses)]
        elif guesses:
            texts = ['authpriv.warn dropbear[%d]: Login attempt for nonexistent user from %s:%d' % (pid, ip, port)] * guesses
        else:
            texts = ["authpriv.notice dropbear[%d]: Password auth succeeded for '%s' from %s:%d" % (pid, user, ip, port)]
        return [(text, meaning if n == 0 else None) for n, text in enumerate(texts)]

    def chatter(self):
        n = self.rng.randrange(1000, 9999)
        self.log(('daemon.info dnsmasq-dhcp[1207]: DHCPACK(br-lan) 192.168.1.%d 00:16:3e:5e:%02d:6c host' % (n % 200 + 20, n % 90 + 10), 'dhcp'),
                 ('daemon.info dnsmasq-dhcp[1207]: DHCPREQUEST(br-lan) 192.168.1.%d 00:16:3e:5e:%02d:6c' % (n % 200 + 20, n % 90 + 10), 'dhcp'),
                 ('user.notice mydaemon[%d]: it took %d ms to do nothing' % (n, n), 'other'))

    # who attacks
    def attackers(self, n):
        """(address, jail, names) of so many; in a small pool they come again and again."""
        if not self.pool:
            self.uncounted += n
        found = range(self.uncounted - n, self.uncounted) if not self.pool else self.rng.sample(range(self.pool), n)
        for k in found:
            ip = '2001:db8:%x::%x' % (k // 6 // 2, k) if k % 6 == 0 else '%d.%d.%d.%d' % (20 + k % 50, k // 50 % 200, k % 7, k % 250 + 1)
            names = [NAMES[k % len(NAMES)]] + (['secret%d' % k] if k % 10 == 3 else [])
            yield ip, JAILS[k % 3], names if k % 4 or k % 3 else [None]

    def wave(self):
        """In one or two minutes 20 to 200 addresses fail 1 to 12 times each, as long as the kernel lets them."""
        seconds, found = self.rng.randrange(60, 100), collections.defaultdict(list)
        for ip, jail, names in self.attackers(self.rng.randrange(20, 201 if self.pool else 121)):
            left, when = self.rng.randrange(1, 13), self.rng.randrange(seconds // 2)
            while left:
                n = min(left, self.rng.randrange(1, 4))
                left -= n
                found[when].append((jail, ip, self.rng.choice(names), n))
                when += self.rng.randrange(2, 8)
        for when, connections in found.items():
            self.at(self.now() + when + self.rng.random(), self.attack, connections)

    def attack(self, connections):
        held = self.ruleset.held()                 # some of theirs is on its way when the door shuts
        texts = [line for each in connections if (net_of(each[1]), each[0] == 'luci') not in held or self.rng.random() < 0.1 for line in self.connection(*each)]
        if texts:
            self.log(*texts)

    def person(self, ip, user, jail, before, after):
        """Mistypes so often, logs in, and mistypes again."""
        for n, guesses in enumerate([1] * before + [0] * (after is not None) + [1] * (after or 0)):
            self.at(self.now() + 5 * n, lambda guesses: self.log(*self.connection(jail, ip, user, guesses)), guesses)

    # what happens
    def reload_firewall(self):
        """As fw4 may: all rules go."""
        self.log(('user.notice firewall: Reloading firewall due to ifup of wan (eth1)', None))
        self.ruleset.tables = {}
        self.note('incident', 'nft')

    def restart_log(self, says=None):
        """A new log daemon: its ring is empty, whoever follows the old one hears no more."""
        if self.knows_ring and not self.follower.told:         # it has told, but the ring was not read yet
            self.hear([line for line in self.ring if line.heard is None and line.followed is self.follower])
        self.ring.clear()
        self.note('incident', 'logread')
        if self.rng.random() < 0.5 if says is None else says:
            os.write(self.follower.ends[1], b'Failed to find log object: Not found\n')
        else:
            self.follower.die()
        self.turn()

    def away(self, end, seconds):
        """The daemon is killed or stopped; somebody attacks meanwhile, and the ring has it."""
        getattr(self, end)()
        if end == 'crash':
            self.back_to('state.json')
        self.absent += seconds
        for _ in range(4):
            self.machine.pass_time(seconds / 4)
            self.log(*self.connection('sshd', '198.51.100.77', 'root', 2))
        self.renew()
        self.note('start')
        if end == 'crash':
            self.note('wave', {'banwatch': 1})
        self.start()

    def renew(self, **clocks):
        old, self.machine = self.machine, LifesRouter(self)
        for name in ('now', 'time', 'boot', 'posted', 'gone'):
            setattr(self.machine, name, clocks.get(name, getattr(old, name)))

    def reboot(self, shown=None):
        """The power goes: RAM is lost, the clock shows something (None: when its latest file was written), until NTP has answered."""
        self.crash()
        now = self.now() + 40
        when, saved = self.back_to('state')
        assert now - when - self.absent <= SAVE + MINUTE, 'more than `save` is lost'
        shown = saved + 2 if shown is None else shown
        (self.folder / 'run' / 'state.json').unlink()
        self.ring.clear()
        self.ruleset, self.knows_ring, self.boots = Ruleset(self.now), False, self.boots + 1
        self.renew(boot='boot-%d' % self.boots, now=30.0, time=shown)
        self.base = now - 30
        self.ring += [Line('Thu Jan  1 00:00:2%d 1970 daemon.info procd: - init -\n' % n, now) for n in range(3)]
        self.note('reboot', now - when - (shown - saved if SANE <= saved <= shown else 0))
        self.start()
        self.at(now + 45, self.set_clock)

    def set_clock(self, seconds=0):
        self.skew += seconds
        step = MIDNIGHT + self.now() + self.skew - self.machine.time
        self.machine.time += step
        self.note('set_clock', step)

    def unban_some(self):
        nets = sorted({net for (_, net), ban in self.model.bans.items() if ban[1] > self.now() + 10})
        for net in self.rng.sample(nets, min(3, len(nets))):
            self.note('unban', net)
            assert self.ask('unban', networks=[net])['unbanned'] == [net]

    def drop_packets(self):
        """Between two looks at the counters."""
        n = self.rng.randrange(1, 1000)
        self.ruleset.hit(n)
        self.note('wave', {'dropped': n})

    # who is right
    def check(self):
        """Asserts that tickets, kernel and history are the model's."""
        t0, model, bans = self.now(), self.model, {}
        model.end(t0)
        rows, shown = self.ask('banned')['banned'], self.machine.time - (self.now() - t0)
        assert {(row['jail'], row['ip']): row['count'] for row in rows} == {key: n for key, (_, _, n) in model.bans.items()}
        for row in rows:
            since, until, _ = model.bans[row['jail'], row['ip']]
            assert [row['left'], row['until'] - shown, shown - row['since']] == pytest.approx([until - t0, until - t0, t0 - since], abs=0.3), row
            key = row['ip'], row['jail'] == 'luci'
            bans[key] = max(until, bans.get(key, 0))
        held, now = self.ruleset.held(), self.now()
        assert {net: until for net, until in bans.items() if until > now} == pytest.approx({net: until - 0.5 for net, until in held.items()}, abs=0.8)
        assert {key: n for key, (n, _) in self.daemon.judge.bans.history.items()} == dict(model.times)
        fails = {key: len(seen) for key, seen in self.daemon.judge.fails.recent.items() if seen[-1] > self.machine.now - FINDTIME + 2}
        assert fails == {key: sum(t > seen[-1] - FINDTIME for t in seen) for key, seen in model.fails.items() if seen[-1] > now - FINDTIME + 2}

    def summary(self):
        """That of the daemon, after it has been held against the model."""
        t0, model = self.now(), self.model
        model.end(t0)
        told = self.ask('report')['summary']

        def wall(when):
            return pytest.approx(told['to'] - t0 + when, abs=2)
        found = {(row['jail'], what): row[what] for row in told['jails'] for what in ('failures', 'ignored', 'bans', 'ended', 'lifted') if row[what]}
        assert found == {key: n for key, n in model.jails.items() if n}
        assert {row['jail']: row['active'] for row in told['jails'] if row['active']} == collections.Counter(jail for jail, _ in model.bans)
        assert told['bans']['failures'] == sum(n for (_, what), n in model.jails.items() if what == 'failures') and told['bans']['active'] == len(model.bans)
        assert told['seconds'] == pytest.approx(t0 - model.begun, abs=2) and told['from'] == wall(model.begun)
        self.check_addresses(told, wall)
        if self.pool:                              # else there are too many for all to be told
            assert {row['user']: [row['failures'], row['addresses']] for row in told['users']} == {
                user: known for user, known in model.users.items() if known[1] > 1 or user in ('root', 'alice')}
        self.check_hours(told, t0)
        assert {(row['user'], row['ip'], row['by']): (row['times'], row['first'], row['last'], row['new']) for row in told['logins']} == {
            key: (n, wall(first), wall(last), key[:2] not in model.told) for key, (n, first, last) in model.logins.items()}
        self.check_warnings(told['warnings'])
        counts = collections.Counter({'dhcp': sum(row['times'] for row in told['noted'] if row['rule'] == 'dhcp'), 'lines': told['health']['lines'],
                                      'other': sum(row['times'] for row in told['other']), 'dropped': sum(row['packets'] for row in told['dropped']),
                                      'starts': told['starts'], 'reboots': told['reboots']})
        assert counts == {name: model.counts[name] for name in counts}
        assert {row['program'] for row in told['other']} <= {'mydaemon'} and {row['rule'] for row in told['noted']} <= {'dhcp'}
        assert [step['seconds'] for step in told['steps']] == model.steps
        return told

    def check_addresses(self, told, wall):
        model, rows = self.model, {row['ip']: row for row in told['addresses']}
        assert all(n <= rows[net]['failures'] for net, n in model.least.items() if self.pool)
        for net, row in rows.items():
            until = max([ban[1] for (_, banned), ban in model.bans.items() if banned == net], default=None)
            assert row['failures'] <= model.most[net] and row['last'] == wall(model.last[net])
            assert row['bans'] == sum(n for (_, banned), n in model.times.items() if banned == net)
            assert row['active'] == (until is not None) and row['until'] == (until and wall(until))

    def check_hours(self, told, t0):
        """A failure whose hour is not certain may be in one of two."""
        bars, moved = told['hours'], told['to'] - t0
        assert all(bar['hours'] == 1 for bar in bars)
        for what in 'failures', 'bans':
            known = [each for each in self.model.hours if each[2] == what]
            late, early = [sorted(when + moved + sign * (doubt + 1) for when, doubt, _ in known) for sign in (1, -1)]
            so_far = 0
            for bar in bars:
                assert bisect.bisect(late, bar['start']) <= so_far <= bisect.bisect(early, bar['start']), (bar, what)
                so_far += bar[what]
            assert so_far == len(known)

    def check_warnings(self, warnings):
        model, found, hiding = self.model, collections.Counter(), {}
        for text in [row['text'] for row in warnings]:
            guessed = re.match(r'(\S+) logged in from (\S+) after (\d+) failures? \((\w+), ', text)
            ignored = re.match(r'(\S+) failed (\d+) times?, last \S+( \S+)?; it is never banned: ' + re.escape(LAN), text)
            quiet = re.match(r'(\S+): tried from (\d+) addresses that stayed below the limit', text)
            if quiet:
                hiding[quiet.group(1)] = int(quiet.group(2))
                continue
            incident = re.match(r'(nft|logread|mail|banwatch)\b.* \((?:(\d+) times, )?[^()]*\)$', text)
            assert guessed or ignored or incident, text
            if guessed:
                found[guessed.group(1, 2, 4)] += int(guessed.group(3))
            elif ignored:
                found[ignored.group(1)] += int(ignored.group(2))
            else:
                found[incident.group(1)] += int(incident.group(2) or 1)
        expected = {key: n for key, n in model.guessed.items() if n >= 3 or n and key[:2] not in model.told}
        expected.update({net: n for net, n in model.ignored.items() if n}, **{
            where: model.counts[where] for where in ('nft', 'logread', 'mail', 'banwatch') if model.counts[where]})
        if not self.pool:                          # whoever failed hours ago may have been forgotten over all the others
            assert all(0 < found[key] <= n for key, n in expected.items() if key in found)
            expected = {key: found.get(key, 0) or n for key, n in expected.items() if key in found or type(key) is str}
        assert found == expected
        banned = {net for _, net in model.times}
        for user in ('root', 'alice') if self.pool else ():
            quiet = sum(name == user and net not in banned for net, name in model.pairs)
            assert max(10, quiet) <= hiding.pop(user) <= model.users[user][1] if quiet >= 10 else True, (user, quiet)

    def report(self, refuses=''):
        """At six, cron asks for the mail."""
        told, self.machine.refuses = self.summary(), refuses
        self.sends += 1
        answer = self.ask('report', send=True)
        assert bool(answer['sent']) == (not refuses)
        if refuses:
            assert self.machine.gone == [] and self.summary()['bans'] == told['bans']
            self.machine.refuses = ''
            self.live(self.now() + MINUTE - 3)
            told = self.summary()
            self.live(self.now() + 4)
        mail = parsed(self.machine.gone[-1].stdin)
        bans, failures = told['bans']['bans'], told['bans']['failures']
        assert '%s bans, ' % format(bans, ',') in mail['Subject'] + ', ' and len(self.machine.gone) == 1
        assert format(failures, ',') in next(mail.iter_parts()).get_content()
        assert self.summary()['bans']['bans'] == 0

    def size(self):
        """How many objects the daemon holds, but for what has a limit of its own: see `bounded`."""
        aside = [self, self.machine, self.daemon.judge.bans.history] + [jail.filter for jail in self.daemon.judge.jails.by_name.values()]
        seen, left = {id(each) for each in aside}, [self.daemon]
        while left:
            each = left.pop()
            if id(each) not in seen and not isinstance(each, (type, type(os), type(re.compile('')))):
                seen.add(id(each))
                left += (each.__closure__ or ()) if isinstance(each, type(lambda: 0)) else gc.get_referents(each)
        return len(seen)

    def bounded(self):
        """Asserts that nothing is beyond its limit, and nothing is wrong."""
        daemon = self.daemon
        assert len(daemon.judge.fails.recent) <= 10000 and len(daemon.judge.bans.history) <= daemon.judge.bans.limit
        assert len(daemon.judge.bans.ends) <= 2 * len(daemon.judge.bans.tickets) + 64 and len(daemon.with_matches) <= 300
        assert all(len(rows) <= 1.1 * PARTS[part].limit for part, rows in daemon.wing('report').tally.parts.items())
        for jail in daemon.judge.jails.watching():
            assert len(jail.logins) <= 1100 and len(jail.known_keys) <= 4097
            assert all(len(known) <= 1.1 * banwatch.SESSIONS + 1 for known in (jail.filter.sessions, jail.filter.parents, jail.filter.children))
        assert len(daemon.wing('report').tally.uncounted) <= 1000
        assert len(daemon.wing('report').digest.shapes) <= 1.1 * banwatch.KNOWN_SHAPES
        assert len(self.daemon.loop.timers.queue) < 20 and len(daemon.loop.selector.get_map()) < 6
        report, wall = daemon.wing('report'), daemon.wall
        assert not any([wall.old, report.alerts.alerts, report.alerts.batch, self.machine.programs])
        for worker in list(wall.syncs) + list(report.workers):
            assert not (worker.running or worker.retry or worker.replies or worker.serving or worker.trouble), worker.name
        assert not any(sync.changed or sync.new for sync in wall.syncs)
        assert daemon.loop.bugs == set() and daemon.wrong() == []
        del self.machine.ran[:]


@pytest.mark.slow
@pytest.mark.parametrize('seed, pool', [(1, 280), (2, 0)], ids=['who comes again', 'always others'])
def test_after_a_day_of_everything_tickets_kernel_files_and_report_are_what_they_ought_to_be(tmp_path, seed, pool):
    life = Life(tmp_path, seed, pool)
    rng, sizes = life.rng, []
    for hour in range(24):
        start = hour * HOUR
        life.at(start + rng.randrange(600, 1200), life.wave)
        life.at(start + 2700, life.drop_packets)
        for n in range(5):
            life.at(start + n * 700 + rng.randrange(700), life.chatter)
        for n in range(2):
            life.at(start + 1500 * n + rng.randrange(1200), life.person, *rng.choice(PEOPLE), rng.randrange(5), rng.choice([None, 0, 1, 6]))
        if hour % 4 == 3:
            life.at(start + rng.randrange(600, 3000), life.restart_log)
        if hour % 6 == 1:
            life.at(start + rng.randrange(600, 1300), life.reload_firewall)
        if hour % 3 == 2:
            life.at(start + rng.randrange(1200, 1500), life.unban_some)
    for when, act, *more in [(2, life.away, 'crash', 20), (3, life.away, 'stop', 400), (4, life.reboot, 30.0),
                             (8.6, life.away, 'crash', 9), (9.3, life.away, 'crash', 5), (10, life.reboot)]:
        life.at(when * HOUR + rng.randrange(600, 1300), act, *more)
    life.at(17 * HOUR + 100, life.set_clock, rng.choice([-HOUR, 1000, 5 * HOUR]))
    for hour in range(24):
        life.live(hour * HOUR + 1 - (hour == 6))
        if hour == 6:
            life.report('sendmail: cannot connect')
        if hour:
            life.check()
            life.summary()
            life.bounded()
        sizes.append(life.size())
    life.live(DAY)
    life.check()
    life.summary()
    life.bounded()
    assert not pool or max(sizes[18:]) < 1.2 * max(sizes[:18]), sizes          # without others every hour it is flat
    bans = sum(life.model.times.values())
    assert bans > 500 and life.flash / bans * 1000 < 1e6 and life.kept <= DAY / SAVE + life.starts + 4 * life.sends


# --- and what such days have found

@pytest.fixture
def life(tmp_path):
    made = Life(tmp_path, 1, 280)
    made.live(5)
    return made


def test_a_ban_that_ends_while_the_daemon_is_away_has_ended_for_the_report(life):
    life.log(*life.connection('sshd', '192.0.2.7', 'root', 5))
    life.live(100)
    life.away('crash', BANTIME)
    told = life.summary()['bans']
    assert (told['bans'], told['ended'], told['active']) == (1, 1, 0)


def test_a_daemon_that_is_killed_again_and_again_still_keeps_what_happens_each_save(life):
    life.log(*life.connection('sshd', '192.0.2.7', 'root', 5))
    for n in range(1, 5):
        life.live(n * 0.6 * SAVE)
        life.away('crash', 5)
    life.reboot()                                  # says how much is lost
    life.check()
    assert life.kept <= 3


@pytest.mark.parametrize('says', [True, False], ids=['with a word', 'without'])
def test_what_a_follower_tells_just_before_its_log_daemon_goes_is_heard(life, says):
    life.log(*life.connection('sshd', '192.0.2.7', 'root', 1))
    life.restart_log(says)
    life.live(life.now() + 1.5)                    # another one follows, and the ring is not read yet
    life.log(*life.connection('sshd', '192.0.2.7', 'root', 4))
    assert not life.follower.told
    life.restart_log(says)
    life.live(life.now() + 5)
    life.check()
    assert life.summary()['bans']['bans'] == 1
