"""The scan of the built-in filters against a slow and obvious model of it, and against itself: how a log is cut into
blocks must not matter.

What a connection is. A line is the first regex's that matches it; it changes nothing if its <HOST> is no address, if its
time says that it is too old, or if an ignoreregex matches. A connection is what one host says under one pid, or under
the id of its own that a line names (<F-MLFID>); a line with neither stands alone, and so each guess in it counts. It
begins with its first line, and anew with a line of another address, with one that is more than SESSION_SECONDS after
the first, and after a login. It has the address and the latest user that its lines have named. It has made as many
guesses as it has lines of its most frequent kind, and so a line tells of new guesses only where it makes its kind more
frequent than any was before; a line counts one, with <F-TIMES> so many, with <F-DISTINCT> none if its address has shown
the same text within SESSION_SECONDS. Guesses of a connection without an address wait until a line names it, and are
told then. A line with <F-CHILD> whose connection is not known (or would begin anew) belongs to the parent, the
connection of the latest guess from its address that was no child's, if that is on the same host, not too old and has no
line of this kind; else it begins a connection, which waits for its parent. A parent that has new guesses to tell claims
waiting children of the same host and user (or of no user), oldest first, until all its new guesses are theirs: these
wait no more, and what one has told that has the same address, lines of one kind, and was born not more than
SESSION_SECONDS before the parent, the parent need not tell again; those lines are the parent's from then on, the child
has none. A login ends its connection, and takes back one of the guesses that wait if it is of the same user. Of
connections, of parents and of addresses with children the latest SESSIONS are remembered, of the children of one
address CHILDREN. Each line is judged at its own time; one without a date is as late as the line before that had one.
"""
import collections
import copy
import datetime
import functools
import glob
import itertools
import os
import random
import re
import time

import pytest

import banwatch

CORPORA = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'corpora')
SESSIONS, CHILDREN, SESSION_SECONDS, MOST_TIMES = 1000, 16, 600, 100


# --- the model: a line at a time, a regex at a time

# a built-in filter; does it hear lines without a tag? does somebody want to know what the lines say?
Settings = collections.namedtuple('Settings', 'filter mode bare ignoreregex keeps')
Row = collections.namedtuple('Row', 'regex kind says child')
# one matched line: `says` is 'guess', 'login' or 'nothing'; `ip` is None where the regex has no <HOST>
Heard = collections.namedtuple('Heard', 'kind says child date host pid ip user distinct times text port')


def blanks(regex):
    r"""A regex of a filter in which \s is a blank or a tab."""
    found, inside = '', False
    for piece in re.findall(r'\\.|\[\^?|.', regex):
        if piece == r'\s':
            piece = r' \t' if inside else r'[ \t]'
        elif inside and piece[0] == '[':
            piece = piece.replace('[', r'\[')
        elif piece[0] in '[]':
            inside = piece[0] == '['
        found += piece
    return found


def grouped(text):
    """A regex in a filter's language as Python has it (bytes)."""
    regex = re.sub('<(?:HOST|ADDR)>', r'\\[?(?P<ip>[\\w.:%-]{1,255})\\]?', text)
    regex = re.sub('<F-(USER|MLFID|DISTINCT|TIMES)>', lambda m: '(?P<%s>' % m.group(1).lower(), regex)
    regex = re.sub('<F-[A-Z]+>', '(?:', regex)
    return blanks(re.sub('</F-[A-Z]+>', ')', regex))


@functools.lru_cache(maxsize=None)
def read_filter(name, mode):
    """(regex of a header with the tag, regex of a header without one, Rows) of a built-in filter."""
    definition = banwatch.Definition(name, {'mode': mode} if mode else {})
    definition.load([banwatch.BUILT_IN], banwatch.no_files)
    before, after = re.fullmatch(r'\^(.*)<F-CONTENT>\.\+\??</F-CONTENT>(.*?)\$', definition.get(
        'prefregex') or '^<F-CONTENT>.+</F-CONTENT>$').groups()
    rows = []
    for kind, part in enumerate(banwatch.paragraphs(definition.get('failregex'))):
        for text in part:
            body = grouped(text[1:]) + ('' if text.endswith('$') and not text.endswith('\\$') else '.*$')
            regex = '%s(?P<begin>)%s%s' % (grouped(before), body[:-1], grouped(after)) + r'\r?$'
            says = 'nothing' if '<F-NOFAIL>' in text else 'login' if '<F-MLFGAINED>' in text else 'guess'
            rows.append(Row(re.compile(regex.encode()), kind, says, '<F-CHILD>' in text))
    tag = banwatch.TAG % grouped(definition.get('program')).encode()
    return re.compile(banwatch.HEAD + tag + banwatch.INNER_DATE), re.compile(banwatch.BARE), rows


def group(m, *names):
    """What the first of these groups that has matched holds, or None."""
    found = m.groupdict()
    return next((found[name] for name in names if found.get(name) is not None), None)


def typed(name):
    """A name without sshd's escapes."""
    if name is None:
        return None
    pieces = re.split(br'(\\\\|\\[23][0-7][0-7])', name)
    return b''.join(bytes([int(piece[1:], 8)]) if len(piece) == 4 else b'\\' if n % 2 else piece for n, piece in enumerate(pieces)
                    ) if len(pieces) > 1 else name


def port_after(line, m):
    """The port that a row's line tells right behind the address, or None."""
    if 'ip' not in m.re.groupindex or m.group('ip') is None:
        return None
    rest = line[m.end('ip'):].decode('latin-1')
    rest = rest[1:] if rest.startswith(']') else rest
    for before in ':', ' port ', ', port=':
        digits = re.match('[0-9]{1,5}(?![0-9A-Za-z_])', rest[len(before):])
        if rest.startswith(before) and digits:
            return digits.group()
    return None


class Connection:
    def __init__(self, born):
        self.born = born
        self.ip = self.user = self.port = None
        self.lines = {}              # kind -> how many lines of it
        self.guesses = 0             # of the most frequent kind, ever
        self.waiting = 0             # guesses that nobody was told of, for want of an address


ADDRESS_FIRST = {'kernel-scan', 'nextcloud', 'home-assistant', 'vaultwarden', 'postfix', 'proxmox', 'exim', 'nginx-http-auth', 'openvpn',
                 'adguardhome'}


class Model:
    """What a jail with a built-in filter says of each line."""

    def __init__(self, settings):
        self.escapes = settings.filter == 'sshd'
        self.tagged, self.bare, self.rows = read_filter(settings.filter, settings.mode)
        self.bare = self.bare if settings.bare else None
        self.ignored = re.compile(settings.ignoreregex or '(?!)')
        self.keeps = settings.keeps
        self.anywhere = settings.filter not in ADDRESS_FIRST
        self.connections = {}        # (host, pid) -> Connection, in the order of their beginning
        self.parents = {}            # address -> (host, pid) of its latest guess
        self.children = {}           # address -> {(host, pid): Connection} that wait for a parent
        self.shown = {}              # (address, text) -> when it was shown last, the latest at the end

    def heard(self, line):
        """The Heard of a line, or None."""
        for header in (self.tagged, self.bare):
            head = header and header.match(line)
            for row in self.rows if head else ():
                m = row.regex.match(line, head.end())
                if m:
                    return Heard(
                        row.kind, row.says, row.child, group(head, 'date', 'date2', 'date3', 'date4', 'date5'),
                        group(head, 'host', 'host3', 'host4'), group(m, 'mlfid') or group(head, 'pid'),
                        group(m, 'ip'), typed(group(m, 'user')) if self.escapes else group(m, 'user'), group(m, 'distinct'), group(m, 'times'),
                        line[m.start('begin'):m.end()], port_after(line, m))

    def events(self, line, moment):
        """The LogEvents of a line."""
        heard = self.heard(line)
        if heard is None:
            return []
        when = None if heard.date is None else banwatch.date_time(heard.date, TODAY)
        if when is None:                           # the daemon's own date, behind its tag
            m = re.compile(br'\[?(' + banwatch.ANY_DATE + br')\]?:? ').match(line, line.find(b': ') + 2) if b': ' in line else None
            when = m and banwatch.date_time(m.group(1), TODAY)
        when = moment(when)
        if when is None or self.ignored.search(heard.text.decode('utf-8', 'backslashreplace')):
            return []
        if self.anywhere and heard.ip and heard.says == 'guess' and banwatch.may_be_cut(line):
            return []
        ip = None
        if heard.ip is not None:
            try:
                ip = banwatch.address(heard.ip.decode())
            except ValueError:                     # a name, or what only looks like an address
                return []
        weight, text = self.weight(heard, ip, when), line.strip().decode('utf-8', 'backslashreplace')
        found, known_user = [], heard.user
        if heard.pid is not None:
            connection = self.connection(heard, ip, when)
            before, waiting = connection.user, connection.waiting
            ip, known_user, weight = self.add(connection, heard, ip, weight)
        if weight > 0 and ip:
            user = as_text(known_user) if heard.says == 'guess' else None
            port = heard.port or heard.pid is not None and connection.port
            told = text, dict({'user': user} if user else {}, **{'port': port} if port else {})
            found.append(banwatch.LogEvent(ip, user, weight, False, when, told if self.keeps else None))
        if heard.says == 'login':
            back = 0
            if heard.pid is not None:
                back = 0 if waiting else self.taken_back(connection, heard.host, before, known_user)
                self.connections.pop((heard.host, heard.pid), None)
            if ip and known_user:
                told = text, {'port': heard.port}
                found.append(banwatch.LogEvent(ip, as_text(known_user), back, True, when, told if self.keeps else None))
        return found

    def taken_back(self, connection, host, before, user):
        """1 for a guess that only children's lines have told of, of the user who is let in: PAM has asked more than one module."""
        if before in (None, user):
            others = [n for kind, n in connection.lines.items() if not any(row.child for row in self.rows if row.kind == kind)]
            if connection.guesses > max(others + [0]):
                return 1
        for key, child in self.children.get(connection.ip, {}).items():
            if key[0] == host and child.user in (None, user) and child.guesses and child is not connection:
                del self.children[connection.ip][key]
                return 1
        return 0

    def weight(self, heard, ip, when):
        """How many guesses a line stands for by itself."""
        weight = 1 if heard.says == 'guess' else 0
        if heard.distinct is not None:
            key = ip, heard.distinct[:64]
            seen = self.shown.pop(key, None)
            self.shown[key] = when
            forget(self.shown, 10 * SESSIONS)
            if seen is not None and when - seen <= SESSION_SECONDS:
                weight = 0
        if heard.times:
            weight *= min(int(heard.times[:9]), MOST_TIMES)
        return weight

    def connection(self, heard, ip, when):
        """The Connection that a line belongs to."""
        key = heard.host, heard.pid
        own = self.connections.get(key)
        if own and not (ip and own.ip and ip != own.ip) and when - own.born <= SESSION_SECONDS:
            return own
        parent_key = self.parents.get(ip)
        if heard.child and parent_key and parent_key[0] == heard.host:
            parent = self.connections.get(parent_key)
            if parent and heard.kind not in parent.lines and when - parent.born <= SESSION_SECONDS:
                return parent
        self.connections.pop(key, None)
        self.connections[key] = made = Connection(when)
        forget(self.connections, SESSIONS)
        return made

    def add(self, connection, heard, ip, weight):
        """Adds a line to its connection: (address, user as known by now, guesses to be told)."""
        if ip is not None:
            connection.ip = ip
        connection.port = heard.port or connection.port
        before = connection.user
        if heard.user is not None:
            connection.user = heard.user
        if heard.says == 'guess':
            self.count(connection, heard, weight)
        told = 0
        if connection.ip is not None and connection.waiting:
            told, connection.waiting = connection.waiting, 0
            if heard.says == 'login' and before == connection.user:
                told -= 1                          # that one was right in the end
        return connection.ip, connection.user, told

    def count(self, connection, heard, weight):
        key = heard.host, heard.pid
        if not heard.child:
            self.parents[connection.ip] = key
            forget(self.parents, SESSIONS)
        elif connection.ip and not connection.lines:
            waiting = self.children.setdefault(connection.ip, {})
            forget(self.children, SESSIONS)
            waiting.pop(key, None)
            waiting[key] = connection
            forget(waiting, CHILDREN)
        lines = connection.lines.get(heard.kind, 0) + weight
        connection.lines[heard.kind] = lines
        new = lines - connection.guesses
        if new > 0:
            connection.guesses = lines
            if not heard.child:
                new -= self.claim(connection, heard.host, new)
            connection.waiting += new

    def claim(self, parent, host, most):
        """How many of a parent's new guesses its children have told already."""
        found, waiting = 0, self.children.get(parent.ip, {})
        for key, child in list(waiting.items()):
            if found == most:
                break
            if child is parent:
                del waiting[key]
                continue
            if key[0] != host or child.user not in (None, parent.user):
                continue
            del waiting[key]
            if (child.ip == parent.ip and len(child.lines) == 1
                    and parent.born - child.born <= SESSION_SECONDS):
                (kind, n), = child.lines.items()
                told = min(n, most - found)
                parent.lines[kind] = parent.lines.get(kind, 0) + told
                child.lines, child.guesses = {}, 0
                found += told
        if not waiting:
            self.children.pop(parent.ip, None)
        return found


def as_text(raw):
    return raw[:512].decode('utf-8', 'backslashreplace') if raw else None


def forget(known, most):
    """Drops the oldest when there are too many, and a twentieth more."""
    if len(known) > most:
        for key in list(known)[:len(known) - most + most // 20]:
            del known[key]


def modelled(jails, cut):
    """{jail: its LogEvents} as the model has them; `cut` is [(lines, moment)]."""
    models = {name: Model(settings) for name, settings in jails.items()}
    found, before = {name: [] for name in jails}, b''
    for lines, moment in cut:
        for raw in lines:
            tidy = banwatch.tidy(raw, before).split(b'\n')[1:-1]      # one, or as often as it came again
            for name, model in models.items():
                for line in tidy:
                    found[name] += model.events(line, moment)
            before = next((line for line in reversed(tidy) if line), before)
    return found


@functools.lru_cache(maxsize=8)
def untouched(jails):
    """Jails that have heard nothing yet; to make them takes longer than to copy them."""
    made = banwatch.Jails(config(dict(jails)))
    assert not made.problems
    return made


def scanned(jails, cut):
    """The same as banwatch has them."""
    made = copy.deepcopy(untouched(tuple(jails.items())))
    found = {name: [] for name in jails}
    for lines, moment in cut:
        for jail, event in made.scan(None, b''.join(lines), moment, WALL):
            found[jail.name].append(event)
    return found


# --- logs: visits from the corpora and some of our own, all at the same time

START = 1772701000                   # Mar 5 2026, 8:56:40 UTC
WALL = START + 5 * 86400
TODAY = WALL // 86400
MODES = {'sshd': ('', 'ddos', 'extra', 'aggressive'), 'dropbear': ('', 'ddos', 'extra', 'aggressive'),
         'dovecot': ('', 'more', 'pam'), 'postfix': ('', 'more'), 'exim': ('', 'more'), 'openvpn': ('', 'aggressive')}
NAMES = sorted(name for name in banwatch.FILTERS if not name.startswith('common') and name != 'recidive')
ESCAPE = re.compile(r'\\(x[0-9a-fA-F]{2}|[rett\\])')
PLAIN = {'r': '\r', 'e': '\x1b', 't': '\t', '\\': '\\'}
ADDRESS4 = re.compile(rb'\b(?:192\.0\.2|198\.51\.100|203\.0\.113)\.\d{1,3}\b')
ADDRESS6 = re.compile(rb'\b2001:db8::[0-9a-f]+\b')


@functools.lru_cache(maxsize=None)
def visits(name):
    """Lists of (program, message) from the corpora of a filter."""
    found = []
    for path in glob.glob(os.path.join(CORPORA, '*.log')):
        kind = os.path.basename(path).split('.')[0]
        if kind == name or kind in ('formats', 'hostile') and name in ('sshd', 'dropbear', 'luci'):
            with open(path, encoding='utf-8') as f:
                for part in re.split(r'\n(?:#.*)?\n', f.read()):
                    visit = [read_sample(line) for line in part.split('\n') if line.count('\t') > 2 and line[0] != '#']
                    found.append([(program, message) for program, message in visit if program is not None])
    return [visit for visit in found if visit]


def read_sample(line):
    raw = ESCAPE.sub(lambda m: PLAIN.get(m.group(1)) or chr(int(m.group(1)[1:], 16)), line.split('\t', 3)[3])
    line = banwatch.read_line(raw.encode('utf-8'))
    return line.program, line.message


PAM = b'%sauthentication failure%s; logname= uid=0 euid=0 tty=ssh ruser= rhost=192.0.2.1  user=%s'
# (is it a child's?, message)
PAM_LINES = [(True, PAM % (b'pam_unix(sshd:auth): ', b'', b'%s')), (True, PAM % (b'pam_sss(sshd:auth): ', b'', b'%s')),
             (True, PAM % (b'PAM 2 more ', b's', b'%s')),
             (False, b'error: PAM: Authentication failure for %s from 192.0.2.1'),
             (False, b'Failed keyboard-interactive/pam for %s from 192.0.2.1 port 5 ssh2'),
             (False, b'Failed password for %s from 192.0.2.1 port 5 ssh2'),
             (False, b'Failed password for %s from 192.0.2.1 port 5 ssh2'),
             (False, b'Invalid user %s from 192.0.2.1 port 5'),
             (False, b'Connection from 192.0.2.1 port 5 on 192.0.2.250 port 22'),
             (False, b'Disconnecting: Too many authentication failures'),
             (False, b'Accepted password for %s from 192.0.2.1 port 5 ssh2'),
             (False, b'Failed hostbased for %s from 192.0.2.1 port 5 ssh2: x')]


def pam_visit(rng):
    """A connection of sshd's, and the children that ask for its passwords."""
    user = rng.choice((b'root', b'admin', b'bob'))
    for _ in range(rng.randint(1, 9)):
        child, message = rng.choice(PAM_LINES)
        yield child, b'sshd', message.replace(b'%s', rng.choice((user, user, user, b'eve')))


def dropbear_visit(rng):
    """Guesses that wait for an address."""
    yield False, b'dropbear', b'Child connection from 192.0.2.1:5' if rng.random() < 0.5 else b'x'
    for _ in range(rng.randint(1, 5)):
        yield False, b'dropbear', rng.choice((
            b'Login attempt for nonexistent user', b'root login rejected', b"User 'bob' has invalid shell, rejected",
            b"Bad password attempt for 'bob' from 192.0.2.1:5", b'Client trying multiple usernames from 192.0.2.1:5',
            b"Password auth succeeded for 'bob' from 192.0.2.1:5",
            b"Exit before auth from <192.0.2.1:5>: (user 'bob', 2 fails): Exited normally"))


def stamp(when, form):
    return time.strftime(form, time.gmtime(when)).encode()


def zoned(when):
    return stamp(when + 3600, '%Y-%m-%dT%H:%M:%S.25+01:00')


# what stands before the tag
FORMS = {
    'syslog': lambda when, host: stamp(when, '%b %e %H:%M:%S ') + host,
    'busybox': lambda when, host: stamp(when, '%b %e %H:%M:%S ') + host + b'authpriv.info ',
    'logread': lambda when, host: stamp(when, '%a %b %e %H:%M:%S %Y ') + b'auth.info ',
    'logread -t': lambda when, host: stamp(when, '%a %b %e %H:%M:%S %Y ') + b'[%d.484] auth.info ' % when,
    'zoned': lambda when, host: zoned(when) + b' ' + host,
    'iso': lambda when, host: stamp(when, '%Y-%m-%d %H:%M:%S ') + host,
    'datagram': lambda when, host: b'<38>' + stamp(when, '%b %e %H:%M:%S ') + host,
    'epoch': lambda when, host: b'%d.5 ' % when + host,
    'whole': lambda when, host: b'%d ' % when + host,
    'file': lambda when, host: stamp(when, '[%Y-%m-%d %H:%M:%S] '),
    'wrong': lambda when, host: b'Xxx 35 09:12:44 ' + host,
    'rfc5424': None}


def log(rng, names, count, bare=False, undated=True, users=40):
    """That many lines of visits that go on at the same time, each with its newline."""
    forms = rng.sample(sorted(set(FORMS) - {'wrong'}), rng.randint(1, 3)) * 20 + ['wrong'] * undated
    hosts = rng.choice(([b''], [b'gate '], [b'gate ', b'ap '], [b'', b'a ', b'b ']))
    pids = [b'%d' % rng.randint(1, 99999) for _ in range(rng.choice((3, 20, users)))]
    ips = ([b'192.0.2.%d' % n for n in range(1, rng.choice((2, 4, users)))],
           [b'2001:db8::%x' % n for n in range(1, rng.choice((2, 4)))])
    steps = rng.choice(((0,), (0, 0, 1), (1, 5, 30), (0, 1, 2, 3, 60, 250), (1, 200, 599, 601, -5), (7,)))
    tagless, when, lines, going = 0.7 if bare else 0.02, START, [], []
    while len(lines) < count:
        when += rng.choice(steps)
        if len(going) < 1 or len(going) < 8 and rng.random() < 0.4:
            name = rng.choice(names)
            own = rng.random()
            if name == 'sshd' and own < 0.6:
                visit = list(pam_visit(rng))
            elif name == 'dropbear' and own < 0.4:
                visit = list(dropbear_visit(rng))
            else:
                visit = [(False,) + pair for pair in rng.choice(visits(name))]
            going.append((visit, rng.choice(hosts), rng.choice(pids), rng.choice(ips[0]), rng.choice(ips[1])))
        visit, host, pid, ip4, ip6 = rng.choice(going)
        child, program, message = visit.pop(0)
        going = [each for each in going if each[0]]
        if rng.random() < 0.8:
            message = ADDRESS6.sub(ip6, ADDRESS4.sub(ip4, message))
        if child or rng.random() < 0.03:
            pid = rng.choice(pids)
        lines += written(rng, when, rng.choice(forms), host, program, pid, message, tagless, undated)
    return lines[:count]


def written(rng, when, form, host, program, pid, message, tagless, undated):
    """The line or lines of a message."""
    chance = rng.random()
    if chance < 0.01:
        message = message * (9000 // (len(message) + 1))
    elif chance < 0.03:
        message += b' ' + b'x' * rng.choice((100, 250, 1000, 8100, 9000))
    elif chance < 0.06:
        message = b'message repeated %d times: [ %s]' % (rng.choice((1, 2, 3, 120)), message)
    elif chance < 0.08:
        return [b'Mar  5 09:00:00 gate last message repeated %d times\n' % rng.randint(1, 4)]
    elif chance < 0.09:
        return [rng.choice((b'\n', b'junk\xff\x00\n', b'a: b: c\n', b'sshd[5]:\n', b'dropbear[1]: sshd[2]: x\n'))]
    end = b'\r\n' if rng.random() < 0.03 else b'\n'
    if form == 'rfc5424' and rng.random() > tagless:
        return [b'<38>1 %s %s %s %s - - %s%s' % (
            stamp(when, '%Y-%m-%dT%H:%M:%SZ'), host.strip() or b'-', program or b'-',
            pid if rng.random() < 0.9 else b'-', message, end)]
    head = FORMS[form or 'syslog']
    head = b'' if head is None or undated and rng.random() < 0.04 else head(when, host)
    if not head and not undated:
        head = FORMS['syslog'](when, host)
    if rng.random() < tagless:
        return [(FORMS['file'](when, host) if head else b'') + message + end]
    return [head + program + (b'[%s]' % pid if rng.random() < 0.93 else b'') + b': ' + message + end]


def some_jails(rng, most):
    """{name: Settings} of a few jails."""
    found = {}
    for n in range(rng.randint(1, most)):
        name = rng.choice(('sshd', 'sshd', 'sshd', 'dropbear', 'dropbear', 'dovecot', 'postfix', 'kernel-scan',
                           rng.choice(NAMES)))
        found['jail%d' % n] = Settings(name, rng.choice(MODES.get(name, ('',))), rng.random() < 0.2,
                                       'for (?:bob|root) ' if rng.random() < 0.15 else '', rng.random() < 0.2)
    return found


def config(jails, **options):
    """The Config of these jails."""
    text = ''.join('[%s]\nenabled = false\n' % name for name in ('sshd', 'dropbear', 'luci'))
    text += '[action note]\nactionban = /bin/true\n[DEFAULT]\n' + ''.join('%s = %s\n' % (key.replace('_', '.'), value) for key, value in options.items())
    for name, settings in jails.items():
        text += '[%s]\nenabled = true\nfilter = %s\n' % (name, settings.filter)
        for option, value in (('mode', settings.mode), ('source', settings.bare and '/nowhere/log'),
                              ('ignoreregex', settings.ignoreregex), ('action', settings.keeps and 'note')):
            text += '%s = %s\n' % (option, value) if value else ''
    made, problems = banwatch.read_config(text, 'test.conf')
    assert not problems
    return made


def blocks(lines, sizes):
    """The lines in blocks of these sizes, in turn."""
    at, found = 0, []
    for size in sizes:
        if at >= len(lines):
            return found
        found.append(lines[at:at + size])
        at += size


def cuts(rng):
    """Endless sizes of blocks, in three ways: single lines, all alike, and all sorts."""
    return [itertools.repeat(1), itertools.repeat(rng.choice((2, 7, 20, 100, 300, 1000))),
            iter(lambda: int(1000 ** rng.random()), None)]


# --- how lines get their time: each is a function of nothing that returns a function of the number of the block

def replay():
    """In the log's own time."""
    return lambda n: banwatch.own_time


def as_replay():
    return lambda n: lambda date: 0.0 if date is None else date


def live():
    """As of now; for a file that nobody has read for a while some time goes by."""
    return lambda n: lambda date: 5000.0 + 40 * n


def late():
    """A source tells of what was before: at its own time, but no later than now; without a date as of now."""
    def moment(date):
        when = date
        return 90000.0 if when is None else min(90000.0, 90000.0 - WALL + when)
    return lambda n: moment


def old():
    """The same; without a date it does not matter."""
    def moment(date):
        when = date
        return None if when is None or when > START + 3000 else when - WALL
    return lambda n: moment


def timed(cut, moment):
    return [(lines, moment(n)) for n, lines in enumerate(cut)]


SEEDS = [1, 2, 3, int(datetime.date.today().strftime('%Y%m%d'))]


def mixes(seed, count, lines, most=4, undated=True):
    """(what to say of it, rng, jails, lines) of that many random logs for so many jails."""
    for n in range(count):
        rng = random.Random('%d.%d' % (seed, n))
        jails = some_jails(rng, most)
        bare = any(jail.bare for jail in jails.values())
        names = [jail.filter for jail in jails.values()] * 6 + [rng.choice(NAMES)]
        made = log(rng, names, rng.randint(lines // 3, lines), bare, undated)
        yield 'seed %d, mix %d, jails %s' % (seed, n, jails), rng, jails, made


class Differs(AssertionError):
    """Two that should have heard the same have not."""


def agree(one, other, *where):
    """Raises Differs if two dicts of events do, with the first event in which they do."""
    for name in one:
        for n, (a, b) in enumerate(itertools.zip_longest(one[name], other[name])):
            if a != b:
                raise Differs('%s: %s, event %d: %s, but %s' % (', '.join(where), name, n, a, b))


def check_lines(seed, count, lines):
    """Line by line, in each way to give them their time."""
    told = 0
    for what, rng, jails, made in mixes(seed, count, lines):
        ones = blocks(made, itertools.repeat(1))
        for way, of_model in (replay, as_replay), (live, live), (late, late), (old, old):
            ours, models = scanned(jails, timed(ones, way())), modelled(jails, timed(ones, of_model()))
            agree(ours, models, what, way.__name__)
            told += sum(map(len, models.values()))
    assert told > 10 * count, 'seed %d: too little is told' % seed


def check_live(seed, count, lines):
    """In blocks that have the same time for each of their lines."""
    for what, rng, jails, made in mixes(seed, count, lines):
        for sizes in cuts(rng)[1:]:
            cut = timed(blocks(made, sizes), live())
            ours, models = scanned(jails, cut), modelled(jails, cut)
            agree(ours, models, what)


def check_blocks(seed, count, lines, most=4, undated=False):
    """In blocks whose lines have each a time of their own, against the model and against single lines."""
    for what, rng, jails, made in mixes(seed, count, lines, most, undated):
        models = modelled(jails, timed(blocks(made, itertools.repeat(1)), as_replay()))
        for sizes in cuts(rng):
            ours = scanned(jails, timed(blocks(made, sizes), replay()))
            agree(ours, models, what)
        for way in (late, old):
            first, *others = [scanned(jails, timed(blocks(made, sizes), way())) for sizes in cuts(rng)]
            for ours in others:
                agree(ours, first, what, way.__name__)


class Machine:
    """What a replay asks of its machine."""
    read_or_none = staticmethod(banwatch.no_files)
    guard = staticmethod(banwatch.unguarded)
    networks = staticmethod(lambda: [])
    chance = staticmethod(lambda: 0.0)
    accounts = staticmethod(lambda: [])
    wall = staticmethod(lambda: WALL)


def check_bans(seed, count, lines):
    """The same are banned at the same times."""
    for what, rng, jails, made in mixes(seed, count, lines, 1):
        conf = config(jails, maxretry=rng.choice((1, 2, 3, 5, 20)), findtime=rng.choice((1, 30, 600, 86400)),
                      bantime=rng.choice((1, 600, 86400)), bantime_increment=rng.choice(('true', 'false')))
        found = []
        for sizes in cuts(rng):
            judged = banwatch.Replay(conf, Machine)
            for block in blocks(made, sizes):
                judged.read(b''.join(block))
            found.append({'bans': judged.found, 'failures': [judged.failures]})
        for other in found[1:]:
            agree(other, found[0], what)


# --- tests

SIZE = pytest.mark.parametrize('count, lines', [(1, 100), pytest.param(3, 400, marks=pytest.mark.slow)], ids=['few', 'many'])


def seeded(test):
    return SIZE(pytest.mark.parametrize('seed', SEEDS)(test))


def guess(text, at=START, pid=7, host='gate'):
    return ('%s %s sshd[%d]: %s\n' % (stamp(at, '%b %e %H:%M:%S').decode(), host, pid, text)).encode()


CHILD = 'pam_unix(sshd:auth): authentication failure; logname= uid=0 euid=0 tty=ssh ruser= rhost=192.0.2.1  user=root'
TOLD = 'error: PAM: Authentication failure for root from 192.0.2.1'
FAILED = 'Failed password for root from 192.0.2.1 port 5 ssh2'
TOO_MANY = 'Disconnecting: Too many authentication failures'


@pytest.mark.parametrize('lines, guesses', [
    ([guess(FAILED), guess('Invalid user root from 192.0.2.1')], [1]),               # two kinds, one guess
    ([guess(FAILED), guess(CHILD), guess(FAILED), guess(CHILD)], [1, 1]),
    ([guess(FAILED), guess(FAILED, pid=8), guess(FAILED, host='ap')], [1, 1, 1]),    # three connections
    ([guess(FAILED), guess('Invalid user root from 192.0.2.1', START + 600)], [1]),
    ([guess(FAILED), guess('Invalid user root from 192.0.2.1', START + 601)], [1, 1]),
    ([guess(TOO_MANY), guess('Connection from 192.0.2.1 port 5')], [1]),             # waits for the address
    ([guess(TOO_MANY), guess('Accepted password for root from 192.0.2.1 port 5 ssh2')], [1, 0]),     # whose guess was it?
    ([guess(CHILD, pid=8), guess(CHILD, pid=9), guess(TOLD), guess(TOLD), guess(TOLD)], [1, 1, 1]),   # children first
    ([guess(TOLD), guess(CHILD, pid=8), guess(CHILD, pid=9)], [1, 1]),               # the parent first
    ([guess(CHILD, pid=8), guess(TOLD, host='ap')], [1, 1]),
    ([guess(CHILD, pid=8), guess(TOLD.replace('root', 'bob'))], [1, 1]),
    ([guess(CHILD, pid=8), guess(TOLD, START + 601)], [1, 1])])
def test_the_model_counts_as_its_rules_say(lines, guesses):
    jails = {'x': Settings('sshd', '', False, '', False)}
    cut = timed(blocks(lines, itertools.repeat(1)), replay())
    assert [event.guesses for event in modelled(jails, cut)['x'] if event.guesses or event.login] == guesses
    assert scanned(jails, timed(blocks(lines, itertools.repeat(1)), replay())) == modelled(jails, cut)


@seeded
def test_single_lines_are_heard_as_the_model_hears_them(seed, count, lines):
    check_lines(seed, count, lines)


@seeded
def test_lines_of_one_time_are_heard_as_the_model_hears_them_in_blocks(seed, count, lines):
    check_live(seed, count, lines)


@seeded
def test_how_a_log_is_cut_into_blocks_does_not_matter(seed, count, lines):
    check_blocks(seed, count, lines)


@seeded
def test_nor_with_lines_that_have_no_date(seed, count, lines):
    check_blocks(seed, count, lines, 1, True)


@pytest.mark.slow
@pytest.mark.parametrize('seed', SEEDS)
def test_nor_with_lines_that_have_no_date_in_several_jails(seed):
    check_blocks(seed, 3, 300, 4, True)


@seeded
def test_nor_for_who_is_banned(seed, count, lines):
    check_bans(seed, 3 * count, lines)


@pytest.mark.slow
@pytest.mark.parametrize('seed', SEEDS[::3])
def test_of_too_many_connections_and_children_the_same_are_forgotten(seed):
    rng, jails = random.Random(seed), {'x': Settings('sshd', '', False, '', False)}
    made = [guess(rng.choice((FAILED, CHILD, CHILD, TOLD, TOO_MANY)).replace('192.0.2.1', '10.0.%d.%d' % divmod(
        rng.randrange(rng.choice((5, 3000, 3000))), 250)), START + n // 50, rng.randrange(1 + n)) for n in range(10000)]
    ones = blocks(made, itertools.repeat(1))
    ours, models = scanned(jails, timed(ones, replay())), modelled(jails, timed(ones, as_replay()))
    agree(ours, models, 'seed %d' % seed)
