#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""banwatch keeps password guessers off a router: it follows the log, counts failed logins per
address, and bans offenders in the kernel's firewall, for longer each time.

    log file ─┐                                             ┌─> nft, ipset or iptables-restore
    logread  ─┤  bytes   ┌───────┐ failure ┌──────┐ ticket  │   (one batch a turn)
    fifo     ─┼─────────>│ Jails │────────>│ Bans │─────────┼─> state, JSON
    udp      ─┤  lines   └───────┘         └──────┘         └─> commands of your own
    program  ─┘      filter, count, limits    ^
                 │                            └── banwatch ban / unban, over a Unix socket
                 └─> Digest ─> Tally ─> summary, once a day by mail

What it touches, as root
    runs      nft, ipset, iptables, ip6tables and their -restore; conntrack, if flows are offloaded;
              logread or journalctl if they are the log source; the programs named in
              `source = exec:...` and `[action ...]`; sendmail, for mails; logger and sshd -T for
              `doctor`, the init system's own for `install`; itself, as byte code, and its Python
              to look up host names in `ignoreip`. Never a shell.
    writes    `runtime` (/var/run/banwatch: lock, socket, live state), `state`
              (/etc/banwatch.state), nothing else (each with .new while it is written, .bad if it
              could not be used); a FIFO that `source` names is made if it is missing; the page that
              `report --html` names; `install` writes what it says, each step before it does it.
    reads     the log files, its conf, filters (filter.d beside the conf, /etc/banwatch/filter.d,
              /etc/fail2ban/filter.d), /proc, the resolv.conf files, addresses and routes (netlink).
    listens   on its Unix socket; on UDP only if `source = udp:...`, on loopback unless told
              otherwise; on TCP only if `source = trap:...`.
    connects  to the Local API of a CrowdSec, if [crowdsec] names one; nowhere else.

Map, from the ground up; a section names only itself and what stands above it:

    Part I, the guard: read this before you trust it
        Values  Conf  Lines  Filters  Judge  Firewalls  State          decide, and are pure
        ~~~~~~~~~~~~~~~~~~~~~~~~~~~~ water line ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
        Machine  Worker  Sources  Wall  Store  Control  Daemon  Commands            act
    Part II, the wings: told what happens, they can neither ban nor run a firewall command
        Language  Actions  Tally  Digest  Proxies  Summary  Fleet  Replay  Doctor  Install  Gate
    Part III: Appendix (built-in filters, rules, date forms, init scripts), Main

Two doors: every new ban goes through Daemon.ban, every release through Daemon.unban.
"""

import sys

if __name__ == '__main__':
    # Nothing is imported from where this file lies, or from PYTHONPATH: who may write there would
    # run his code as root. They stand before the standard library's own path, whose first entry is
    # python3x.zip.
    OWN_PATH = [place.endswith('python%d%d.zip' % sys.version_info[:2]) for place in sys.path]
    del sys.path[:OWN_PATH.index(True) if True in OWN_PATH else 1]

import collections
import errno
import functools
import itertools
import os
import re
import time


class LazyModule:
    """A module that is imported when it is first used: `banwatch status` needs few of these, and
    each costs a router time."""
    names = {}                       # of all of them -> may a daemon need it?

    def __init__(self, name, daemon):
        self.name = name
        self.names[name] = daemon

    def __getattr__(self, attribute):
        module = globals()[self.name] = __import__(self.name)
        return getattr(module, attribute)

    @classmethod
    def load_for_daemon(cls):
        """Imports what a daemon may need: an upgrade of Python may delete the files under it."""
        for name, daemon in cls.names.items():
            if daemon:
                __import__(name)


binascii, bisect, fcntl, glob, heapq, ipaddress, json, random, sched, selectors = (
    LazyModule(name, True)
    for name in 'binascii bisect fcntl glob heapq ipaddress json random sched selectors'.split())
shlex, signal, socket, stat, struct, subprocess, termios, textwrap, warnings = (
    LazyModule(name, True)
    for name in 'shlex signal socket stat struct subprocess termios textwrap warnings'.split())
_socket, bz2, difflib, getopt, gzip, marshal, shutil, syslog, tempfile, traceback, zlib = (
    LazyModule(name, False)
    for name in '_socket bz2 difflib getopt gzip marshal shutil syslog tempfile traceback zlib'
    .split())

VERSION = '0.1'


# ---- Values --------------------------------------------------------------------------------
# Owns: nothing. The plain values that all sections speak in, and how they look as text. Always
# true: an address or network is the text that `ipaddress` printed for it; a length is in seconds
# (FOREVER for a permanent ban); a moment is in seconds of one clock, always passed as an argument.

FOREVER = -1
MINUTE, HOUR, DAY = 60, 3600, 86400
PLAIN_LINE = 8192                    # bytes of a line that are looked at; the rest is cut

# `tail`: of a program that prints too much, is the end enough?
Command = collections.namedtuple('Command', 'argv stdin environment tail')
Command.__new__.__defaults__ = '', {}, False
# What one line of a log said: `login` is True for a success; `guesses` is how many it stands for,
# or a login takes back; `told` is (line, fields of its regex), if somebody wants to know.
LogEvent = collections.namedtuple('LogEvent', 'ip user guesses login when told')
LogEvent.__new__.__defaults__ = None,
# A network to ban, for so many seconds, after so many failures; matches: (lines, fields) or None.
BanOrder = collections.namedtuple('BanOrder', 'network failures seconds matches')
BanOrder.__new__.__defaults__ = None,
# A program that runs on and is told what happens: `feeder.lines` are for its standard input.
Feed = collections.namedtuple('Feed', 'argv environment feeder')
# What a server is asked: the address of a socket (a path, or (ip, port)), the name that its
# certificate must have ('': no TLS), what is sent; `feed` gets what comes back, piece by piece and
# b'' at the end, and returns whether that was all, or raises ValueError.
Request = collections.namedtuple('Request', 'place certified text feed')
# A network of a list: since when and until when it is banned, None for ever.
Listed = collections.namedtuple('Listed', 'since until')
# A range of addresses that is never banned, as numbers, with the reason for the operator.
Exempt = collections.namedtuple('Exempt', 'version first last why')


class Problem(Exception):
    """One line for the operator: what, where, what to do. `code` is the exit code it ends with."""

    def __init__(self, text, code=1):
        Exception.__init__(self, text)
        self.code = code


class Regex:
    """A compiled regex that is made when it is used first: a command that only asks the daemon
    needs none."""

    def __init__(self, pattern, flags=0):
        self.source = pattern, flags

    def __getattr__(self, name):
        made = re.compile(*self.source)
        for each in ('match', 'fullmatch', 'search', 'sub', 'split', 'findall', 'finditer'):
            # from now on there is nothing between
            setattr(self, each, getattr(made, each))
        if name in self.__dict__:
            return self.__dict__[name]
        return getattr(made, name)


class Ticket:
    """One ban: `network` is shut out by `jail` from `since` to `until` (None: for ever), in
    ticks."""
    __slots__ = ('jail', 'network', 'key', 'since', 'until', 'count', 'failures', 'matches',
                 'ignored')

    def __init__(self, jail, network, since, until, count, failures):
        self.jail = jail
        self.network = network
        self.key = jail, network
        self.since = since
        self.until = until
        self.count = count           # how many bans of this network in this jail, this one included
        self.failures = failures     # that led to it
        self.matches = None          # (lines, fields) of the log, if the jail has an action
        self.ignored = 0             # failures that came although it was in force

    def left(self, now):
        """Seconds it still lasts, FOREVER for a permanent one."""
        if self.until is None:
            return FOREVER
        return max(0, self.until - now)


SECONDS = {'': 1, 's': 1, 'm': 60, 'h': 3600, 'd': 86400, 'w': 604800, 'mo': 2629800, 'y': 31557600}
DURATION = Regex(r'\s*(\d+(?:\.\d+)?)\s*(mo|[smhdwy]?)', re.I)


def duration(text):
    """Seconds that '600', '10m', '2h30m' or '7d' stand for (fail2ban's units, no arithmetic)."""
    total, end = 0, 0
    for part in iter(lambda: DURATION.match(text, end), None):
        if not part.group(2) and (end or part.end() != len(text)):
            break                                  # a number without unit stands alone
        total += float(part.group(1)) * SECONDS[part.group(2).lower()]
        end = part.end()
    if not end or end != len(text) or total > 100 * SECONDS['y']:
        raise ValueError('is not a duration (try 600, 10m, 2h30m, 7d)')
    if total == int(total):
        return int(total)
    return total


@functools.lru_cache(maxsize=64)
def duration_text(seconds):
    """'2h30m' for 9000; the two largest units, whole years from two on, 'for ever' for FOREVER."""
    if seconds == FOREVER:
        return 'for ever'
    if seconds >= 2 * SECONDS['y']:
        return '%d years' % round(seconds / SECONDS['y'])
    seconds, parts = int(seconds + 0.5), []
    for unit in ('w', 'd', 'h', 'm', 's'):
        n, rest = divmod(seconds, SECONDS[unit])
        if n and len(parts) < 2:
            parts.append('%d%s' % (n, unit))
            seconds = rest
        elif parts:
            break
    return ''.join(parts) or '0s'


def for_text(seconds):
    """'for 10m', 'for ever'."""
    if seconds == FOREVER:
        return duration_text(seconds)
    return 'for ' + duration_text(seconds)


# what `ipaddress` would take for IPv4, and print the same; most addresses are known by this,
# soonest
DOTTED = r'(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)'
IPV4, IPV4_RAW = Regex(DOTTED), Regex(DOTTED.encode())


@functools.lru_cache(maxsize=2048)
def address(text):
    """The address in `text` as text: IPv4 for ::ffff:a.b.c.d, without zone; ValueError if it is
    none."""
    if IPV4.fullmatch(text):
        return text
    ip = ipaddress.ip_address(text.strip('[]').partition('%')[0])
    return str(getattr(ip, 'ipv4_mapped', None) or ip)


# networks whose addresses have those of others inside: NAT64 (RFC 6052) and Teredo (RFC 4380) one
# IPv4 client each, 6to4 (RFC 3056) one site in each /48
TRANSLATED = ('64:ff9b::/96', 128), ('2001::/32', 128), ('2002::/16', 48)


def customer_prefix(ip, prefix):
    """How many bits of an IPv6 address say whose it is: `prefix`, where no IPv4 one is inside."""
    if ip.startswith(('64:ff9b:', '2001:', '2002:')):
        for net, bits in TRANSLATED:
            if networks_overlap(ip, net):
                return bits
    return prefix


@functools.lru_cache(maxsize=2048)
def network_of(text, ipv4prefix=32, ipv6prefix=128):
    """The network around `text` (an address or network) as text; a single address has no prefix."""
    if ipv4prefix == 32 and IPV4.fullmatch(text):
        return text
    if '/' in text:
        if '%' in text:
            raise ValueError('a network has no zone')
        net = ipaddress.ip_network(text, strict=False)
        mapped = getattr(net.network_address, 'ipv4_mapped', None)
        # packets of IPv4 are never seen as ::ffff:a.b.c.d
        if mapped and net.prefixlen >= 96:
            net = ipaddress.ip_network('%s/%d' % (mapped, net.prefixlen - 96))
    else:
        net = ipaddress.ip_network(address(text))
        if net.version == 4:
            prefix = ipv4prefix
        else:
            prefix = ipv6prefix
        if prefix != net.prefixlen:
            net = net.supernet(new_prefix=prefix)
    if net.prefixlen < net.max_prefixlen:
        return str(net)
    return str(net.network_address)


def span(text):
    """(version, first, last) of an address or network, as numbers."""
    if ':' in text:
        return span6(text)
    ip, _, bits = text.partition('/')
    first = int.from_bytes(socket.inet_aton(ip), 'big')
    return 4, first, first + (1 << 32 - int(bits or 32)) - 1


@functools.lru_cache(maxsize=2048)
def span6(text):
    """The same of IPv6, which takes longer."""
    net = ipaddress.ip_network(text)
    first = int(net.network_address)
    return net.version, first, first + net.num_addresses - 1


def read_networks(text):
    """(the networks of a list, in order, each once; [(line, what is wrong there), ...]). A line is
    an address, a network, or FIRST-LAST; what follows `#`, `;` or a blank explains it."""
    found, wrong = {}, []
    for n, line in enumerate(text.split('\n'), 1):
        words = re.split('[#;]', line.replace(' - ', '-'), maxsplit=1)[0].split()
        try:
            if words:
                found.update(dict.fromkeys(networks_of(words[0])))
        except (ValueError, TypeError):
            wrong.append((n, '%s is not an address or network' % quoted(words[0][:60])))
    return list(found), wrong


def networks_of(word):
    """The networks that an entry of a list means; ValueError or TypeError for what is none."""
    first, dash, last = word.partition('-')
    if not dash:
        return [network_of(word)]
    return [network_of(str(net)) for net in ipaddress.summarize_address_range(
        *(ipaddress.ip_address(address(end)) for end in (first, last)))]


def make_exempt(text, why):
    """The Exempt of an address or network that must never be banned, because it is `why`."""
    return Exempt(*(span(network_of(text)) + ('%s (%s)' % (network_of(text), why),)))


def merge_ranges(ranges):
    """version -> (first numbers, last numbers, whys) of what these Exempts cover, in order; those
    that overlap are one."""
    found = {4: ([], [], []), 6: ([], [], [])}
    for version, first, last, why in sorted(ranges):
        firsts, lasts, whys = found[version]
        if lasts and first <= lasts[-1]:
            lasts[-1] = max(last, lasts[-1])
        else:
            firsts.append(first)
            lasts.append(last)
            whys.append(why)
    return found


def exempt_reason(text, ranges):
    """Why a network must not be touched, '' if it may be; `ranges` is what merge_ranges returns."""
    version, first, last = span(text)
    firsts, lasts, whys = ranges[version]
    n = bisect.bisect_right(firsts, last) - 1
    if n >= 0 and lasts[n] >= first:
        return whys[n]
    return ''


def wider_networks(net):
    """The networks around one that its ban may be widened to, the smallest first."""
    ip, _, prefix = net.partition('/')
    if ':' in net:
        steps, prefix = (56, 48), int(prefix or 128)
    else:
        steps, prefix = (24,), int(prefix or 32)
    return [network_of('%s/%d' % (ip, step)) for step in steps if step < prefix]


def networks_overlap(one, other):
    """True if two networks share an address."""
    version, first, last = span(one)
    other_version, other_first, other_last = span(other)
    return version == other_version and first <= other_last and other_first <= last


@functools.lru_cache(maxsize=None)
def never_banned():
    """Exempts of what is not a host: multicast, link-local, broadcast."""
    return tuple(make_exempt(text, why) for text, why in (
        ('0.0.0.0', 'no address'), ('255.255.255.255', 'broadcast'), ('224.0.0.0/4', 'multicast'),
        ('169.254.0.0/16', 'link-local'), ('::', 'no address'), ('fe80::/10', 'link-local'),
        ('ff00::/8', 'multicast')))


def later_end(one, other):
    """The later one of two ends, None for never."""
    if one is None or other is None:
        return None
    return max(one, other)


class Recent(dict):
    """A dict that never holds more than `limit` entries: it forgets the oldest, some at a time (to
    look for one each time would be quadratic)."""

    def __init__(self, limit):
        dict.__init__(self)
        self.limit = limit

    def put(self, key, value):
        """Sets an entry, which is the newest from now on."""
        if key in self:
            del self[key]
        self[key] = value
        if len(self) > self.limit:
            surplus = len(self) - self.limit + self.limit // 20
            for key in list(itertools.islice(self, surplus)):
                del self[key]


def slide(moments, when, times, seconds, most):
    """Adds a moment, so many times, to a sorted list of them: a sliding window, which holds `most`
    at most, and none that is older than `seconds` before the newest."""
    for _ in range(min(times, most)):
        bisect.insort(moments, when)
    if moments[0] <= moments[-1] - seconds:
        del moments[:bisect.bisect_right(moments, moments[-1] - seconds)]
    del moments[:-most]


def printable(text):
    """`text` with all that could move a cursor, forge a line or break a terminal written as
    escapes."""
    if text.isprintable():
        return text
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


def quoted(text):
    """The same in quotes."""
    return "'%s'" % printable(text)


def shortened(text, most):
    """A text of so many characters at most."""
    if len(text) <= most:
        return text
    return text[:most - 1] + '…'


def plural(n, word, many=''):
    """'1 ban', '2 bans'."""
    return '%s %s' % (format(n, ','), word if n == 1 else many or word + 's')


def table(head, rows):
    """Lines of a plain text table, each column as wide as it must be, numbers to the right."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    right = [all(row[n].replace(',', '').isdigit() for row in rows) for n in range(len(head))]
    for row in [head] + rows:
        cells = [cell.rjust(width) if number else cell.ljust(width)
                 for cell, width, number in zip(row, widths, right)]
        yield '  '.join(cells).rstrip()


# ---- Conf ----------------------------------------------------------------------------------
# Owns: nothing. One row of OPTIONS is the whole of an option: what reads it, its default, and the
# line of banwatch.conf that explains it. Always true: reading a conf finds every problem in one
# go, each with its line; what `config_text` prints reads back as the same configuration.

# what reads options: text -> value, or ValueError with what is wrong, to be said after the text

def positive_count(text):
    """A whole number of something."""
    if not text.isdigit() or not 1 <= int(text) <= 1000000:
        raise ValueError('is not a number from 1 to 1000000')
    return int(text)


def count_or_none(text):
    """The same, or 0 for off."""
    if text == '0':
        return 0
    return positive_count(text)


def unless(word, read):
    """What reads an option that may also be this word, which is None."""
    return lambda text: None if text == word else read(text)


def decimal(text):
    """A positive number, perhaps with a fraction."""
    if not re.match(r'\d{1,9}(\.\d{1,9})?$', text):
        raise ValueError('is not a number (try 1, 2.5)')
    return float(text)


def decimals(text):
    """Some of them."""
    return [decimal(word) for word in text.split()]


URL = Regex(r'(?P<tls>https?)://(?P<host>[\w.-]+|\[[\da-fA-F:]+\])(?::(?P<port>\d{1,5}))?'
            r'(?P<path>/\S*)?|unix:(?P<socket>/\S+)')


def server_url(text):
    """The address of an HTTP server, or nothing."""
    m = URL.fullmatch(text)
    if text and not (m and int(m.group('port') or 1) < 65536):
        raise ValueError('is not an address (try http://192.0.2.1:8080, https://hub.example.net, '
                         'unix:/run/crowdsec.sock)')
    return text.rstrip('/')


def secret(text):
    """A key or a password: what a line of HTTP, and JSON, can hold."""
    if not re.fullmatch('[!-~]*', text):
        raise ValueError('has blanks or letters that no key has')
    return text


FLAGS = {'true': True, 'yes': True, 'on': True, '1': True,
         'false': False, 'no': False, 'off': False, '0': False}


def flag(text):
    """True or False."""
    if text.lower() not in FLAGS:
        raise ValueError('is neither true nor false')
    return FLAGS[text.lower()]


def positive_duration(text):
    """Seconds, one at least."""
    seconds = duration(text)
    if seconds < 1:
        raise ValueError('is too short (1s at least)')
    return seconds


def ban_seconds(text):
    """Seconds of a ban, FOREVER for -1."""
    if text == '-1':
        return FOREVER
    return positive_duration(text)


def absolute_path(text):
    """A path."""
    if not text.startswith('/'):
        raise ValueError('is not an absolute path')
    return text


LISTED = 'file:'                     # in front of the path of a list of networks


# a name with a dot in it whose last part has a letter: 192.0.2.1.5 is a mistake
HOST_NAME = Regex(r'(?=.{4,253}$)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?\.)+'
                  r'(?=[a-z0-9-]*[a-z])[a-z0-9-]{1,63}', re.I)


def network_words(*more):
    """What reads addresses, networks, and file:/PATH for lists of them, as they are printed; host
    names, if there may be such."""
    def read(text):
        found, bad = [], []
        for word in name_list(text):
            try:
                if HOST_NAME.fullmatch(word) and more:
                    word = word.lower()
                elif not word.startswith(LISTED + '/'):
                    word = network_of(word)
                found.append(word)
            except ValueError:
                bad.append(word)
        if bad:
            kinds = ('an address', 'network') + more
            raise ValueError('%s: not %s or file:/PATH'
                             % (quoted(' '.join(bad)), ', '.join(kinds)))
        return tuple(dict.fromkeys(found))
    return read


def single_addresses(text):
    """Single addresses."""
    try:
        return [address(word) for word in name_list(text)]
    except ValueError:
        raise ValueError('is not an address') from None


def rule_networks(text):
    """What a rule asks of an address: (is it excluded?, network or 'lan'), ..."""
    found = []
    for word in name_list(text):
        bare = word[word.startswith('!'):]
        try:
            if bare != 'lan':
                bare = network_of(bare)
            found.append((word.startswith('!'), bare))
        except ValueError:
            raise ValueError('%s: not an address, network or lan' % quoted(word)) from None
    return tuple(found)


def text_rows(text):
    """The lines of a value, but for empty ones."""
    return [line for line in text.split('\n') if line]


def paragraphs(text):
    """Lists of lines; an empty line ends a list. See Filters for what the lists mean."""
    return [part.split('\n') for part in re.split(r'\n{2,}', text) if part]


PORTS = {'ssh': '22', 'http': '80', 'https': '443', 'ftp': '21', 'smtp': '25', 'submission': '587',
         'imap': '143', 'imaps': '993', 'pop3': '110', 'pop3s': '995', 'openvpn': '1194'}


def port_list(text):
    """'22,8000:8080' for 'ssh,8000:8080'; '' for all ports."""
    if text in ('', 'all', 'any', '0:65535', '1:65535'):
        return ''
    words = text.replace(',', ' ').split()
    found = [port_range(PORTS.get(word, word)) for word in words]
    bad = [word for word, port in zip(words, found) if not port]
    if bad:
        raise ValueError('%s: no port (try 22, ssh, 8000:8080)' % quoted(' '.join(bad)))
    if len(found) > 15:
        raise ValueError('names over 15 ports (each is a rule of its own)')
    return ','.join(found)


def port_range(text):
    """'22', or '8000:8080' for '8000-8080', as iptables prints it; None for anything else."""
    m = re.fullmatch('([0-9]{1,5})(?:[:-]([0-9]{1,5}))?', text)
    if m is None:
        return None
    first, last = int(m.group(1)), int(m.group(2) or m.group(1))
    if not 0 < first <= last < 65536:
        return None
    if first == last:
        return str(first)
    return '%d:%d' % (first, last)


def one_of(*words):
    """What reads an option that is one of these words."""
    def read(text):
        if text not in words:
            raise ValueError('is not one of: ' + ' '.join(words))
        return text
    return read


def name_list(text):
    """Words with blanks or commas between, each once."""
    return list(dict.fromkeys(text.replace(',', ' ').split()))


def some_of(*words):
    """What reads an option that is some of these words."""
    def read(text):
        found = name_list(text)
        if not found or set(found) - set(words):
            raise ValueError('is not a choice of: ' + ' '.join(words))
        return found
    return read


def prefix_length(least, most):
    """What reads the number of bits that a network's addresses have in common."""
    def read(text):
        if not text.isdigit() or not least <= int(text) <= most:
            raise ValueError('is not a prefix length from %d to %d' % (least, most))
        return int(text)
    return read


SOURCE = Regex(r'auto|logread|journalctl|-|/\S.*|fifo:/\S.*|exec:/\S.*|'
               r'(?:udp|trap:(?:telnet|rlogin|ssh|http|tcp)):'
               r'(?:(?:\[[\da-fA-F:]+\]|[\d.]+):)?(?P<port>\d{1,5})')


def source_list(text):
    """Log sources, one a line."""
    bad = [line for line in text_rows(text) if not is_source(line)]
    if bad:
        raise ValueError(
            '%s: no log source (one a line: auto, logread, journalctl, /var/log/messages, '
            'fifo:/PATH, udp:127.0.0.1:5514, trap:telnet:23, exec:/PROGRAM ARGS, -)'
            % quoted(' | '.join(bad)))
    return text_rows(text)


def is_source(line):
    """Does a line name a source?"""
    m = SOURCE.fullmatch(line)
    if not m or not 0 < int(m.group('port') or 1) < 65536:
        return False
    if not line.startswith('exec:'):
        return not re.search(r'[,\s]/', line)
    try:
        return bool(shlex.split(line))
    except ValueError:                             # an open quotation
        return False


TAG_WORD = r'[A-Za-z][\w.-]*'
OPERATOR = Regex(r'(?<!\S)(?:[|&]{1,2}(?!\S)|\d?[<>]\S*)|;(?!\S)')
JAIL_TAGS = ('jail', 'name', 'port', 'protocol')
TICKET_TAGS = ('ip', 'fid', 'family', 'ip-rev', 'bantime', 'bancount', 'failures', 'ipfailures',
               'ipjailfailures', 'time', 'restored', 'jail.banned', 'jail.banned_total',
               'jail.found', 'jail.found_total')
LOG_TAGS = 'matches', 'ipmatches', 'ipjailmatches', 'raw-ticket'


def command_line(text):
    """The arguments of a command, as a shell would part them."""
    try:
        words = shlex.split(text)
    except ValueError as e:
        raise ValueError('%s: %s' % (quoted(text), str(e).lower())) from None
    if not words:
        raise ValueError('names no program')
    operator = OPERATOR.search(re.sub(r'"(?:\\.|[^"\\])*"|\'[^\']*\'|<[^<>\s]+>', 'x', text))
    if operator:
        raise ValueError(
            '%s: %s is for a shell, which does not read this (try a script of your own, or quotes)'
                         % (quoted(text), printable(operator.group())))
    return words


def command_reader(*tags):
    """What reads an action's commands, one a line, as lists of arguments; these <tags> mean
    something there. Text of the log is never an argument: a name like `-o ProxyCommand=...` would
    be an option."""
    def read(text):
        return [read_one(line) for line in text_rows(text)]

    def read_one(line):
        words = command_line(line)
        for tag in re.findall('<([A-Za-z][^<>]*)>', line):
            if tag in LOG_TAGS or tag.startswith('F-'):
                name = re.sub('[^A-Z0-9]', '_', tag.upper())
                raise ValueError(
                    '%s: <%s> is text of the log, which is never put into an argument; your '
                    'program finds it as $BANWATCH_%s in its environment'
                    % (quoted(line), tag, name))
            if tag not in tags:
                raise ValueError('%s: <%s> means nothing here (there are: %s)' % (
                    quoted(line), tag, ' '.join(tags)))
        if '<' in words[0]:
            raise ValueError('%s: the program has to be named' % quoted(line))
        return words
    return read


MAILBOX = Regex(r"""(?:[^<>,@:;\n]*[^<>,@:;\n\s] +(?=<))?(<)?"""
                r"""[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+(?:@[A-Za-z0-9.:\[\]-]+)?(?(1)>)""")


def mailboxes(text):
    """Mail addresses, commas between."""
    words = [part.strip() for part in text.split(',')]
    for word in words:
        if not MAILBOX.fullmatch(word) or word.startswith('-'):
            raise ValueError(
                '%s: no mail address (try root, me@example.org, Me <me@example.org>; commas '
                'between)'
                             % quoted(word))
    return ', '.join(words)


def mailbox(text):
    """One of them, or none."""
    if ',' in text:
        raise ValueError('is more than one address')
    if text:
        return mailboxes(text)
    return ''


def file_mode(text):
    """The permissions of a file."""
    if not re.fullmatch('0?[4-7][0-7][0-7]', text):
        raise ValueError('is not a file mode (try 600, 644)')
    return int(text, 8)


def valid_regex(text):
    """A regex, as text."""
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as e:
        raise ValueError('%s is not a regex: %s' % (quoted(text), getattr(e, 'msg', e))) from None
    return text


def valid_name(text):
    """The name of a section, or nothing."""
    if not re.fullmatch(r'(?:[A-Za-z0-9][\w.-]{0,29})?', text):
        raise ValueError('is not a name')
    return text


Option = collections.namedtuple('Option', 'section name read default help')

# section 'banwatch', 'report': once for the program; 'DEFAULT': for every jail, where it may be set
# anew; 'action', 'rule': for each [action NAME] and [rule NAME]
OPTIONS = [Option(*row) for row in (
    ('banwatch', 'source', source_list, 'auto',
     'Where the log is: auto | logread | journalctl | /PATH (globs allowed) | fifo:/PATH |\n'
     'exec:/PROGRAM ARGS | udp:PORT (on loopback) | udp:ADDR:PORT | - (standard input). One a\n'
     'line, several allowed.'),
    ('banwatch', 'firewall', one_of('auto', 'ipset', 'nft', 'iptables', 'command', 'none'), 'auto',
     "auto | ipset | nft | iptables | command | none. auto does as the machine's own firewall\n"
     'does; ipset is iptables with sets; command bans by `action` alone; none counts and\n'
     'reports but bans nobody.'),
    ('banwatch', 'chain', some_of('INPUT', 'FORWARD'), 'INPUT FORWARD',
     'Which packets of a banned address are stopped: to the router itself (INPUT), through it\n'
     '(FORWARD; then your LAN cannot talk to it either, since the answers do not get through).'),
    ('banwatch', 'runtime', absolute_path, '/var/run/banwatch',
     'Directory for the socket, the lock and the live state. Best on a RAM disk.'),
    ('banwatch', 'state', absolute_path, '/etc/banwatch.state',
     'The copy of bans, history and summary that outlives a reboot. On flash: see `save`.'),
    ('banwatch', 'save', positive_duration, '1h',
     'Write that copy at most this often. A power failure forgets at most this much.'),
    ('banwatch', 'poll', positive_duration, '1s',
     'How often log files are looked at. Longer saves power, and is how late a ban may be.'),
    ('banwatch', 'maxtracked', positive_count, '10000',
     'At most this many addresses with failures in memory; the least recently seen go first.'),
    ('banwatch', 'maxbans', unless('auto', positive_count), 'auto',
     'At most this many bans; one more lifts that of whoever has been silent longest. auto is\n'
     '20000, or 100 for each MB of RAM if that is less. Plain iptables holds 2000; ipset and\n'
     'nft are as fast with all of them.'),
    ('banwatch', 'dbpurgeage', positive_duration, '30d',
     'How long after its last ban an address is remembered, and banned longer next time.'),
    ('DEFAULT', 'enabled', flag, 'true',
     'false switches a jail off. One that stands here with options is on, unless it says so.'),
    ('DEFAULT', 'filter', str, '',
     'The filter of a jail: NAME or NAME[option=value]. Empty: the one that is named like the\n'
     'jail. Looked for in filter.d beside this file, in /etc/banwatch/filter.d, among the\n'
     "built-in ones, in /etc/fail2ban/filter.d (fail2ban's files work as they are). none: no log,\n"
     'but what `fail` and gates tell.'),
    ('DEFAULT', 'program', valid_regex, '',
     'A regex for the tag that its lines have, if it is not the one that the filter expects: that\n'
     'of a container, as vaultwarden-\\d+ or docker/mail.'),
    ('DEFAULT', 'mode', str, '',
     'How strict its filter is, if it knows modes: dropbear and sshd have normal, ddos, extra,\n'
     'aggressive.'),
    ('DEFAULT', 'failregex', text_rows, '',
     "Your own regexes, one a line, in fail2ban's language; without a `filter` they see the\n"
     'whole line but its date.'),
    ('DEFAULT', 'prefregex', str, '',
     'A line must match this first; <F-CONTENT> in it is what the others see.'),
    ('DEFAULT', 'maxlines', unless('', positive_count), '',
     'How many lines a regex with <SKIPLINES> may span.'),
    ('DEFAULT', 'datepattern', str, '', 'How lines are dated, if in none of the usual ways.'),
    ('DEFAULT', 'ignoreregex', text_rows, '', 'Lines that match one of these are never failures.'),
    ('DEFAULT', 'source', source_list, '',
     'A log for this jail alone (also called logpath). Empty: those of [banwatch]. For [trap]:\n'
     'trap:PROTOCOL:PORT or trap:PROTOCOL:ADDR:PORT; telnet, rlogin, ssh, http or tcp.'),
    ('DEFAULT', 'port', port_list, '',
     'Ports that a ban closes: numbers, names, ranges, at most 15. Empty: all of them. Behind a\n'
     'port forward, that is the inner port.'),
    ('DEFAULT', 'protocol', some_of('tcp', 'udp'), 'tcp',
     'tcp, udp or both; matters only with `port`.'),
    ('DEFAULT', 'forward', flag, 'true',
     'Its bans also stop what the router forwards, if `chain` has FORWARD; false: to the router\n'
     'only.'),
    ('DEFAULT', 'action', name_list, '',
     'Commands of your own that run at each ban and unban, besides the firewall: names of [action\n'
     'NAME].'),
    ('DEFAULT', 'maxretry', positive_count, '5', 'This many failures ...'),
    ('DEFAULT', 'findtime', positive_duration, '10m', '... within this time are a ban ...'),
    ('DEFAULT', 'bantime', ban_seconds, '10m', '... of this length, -1 for ever.'),
    ('DEFAULT', 'bantime.increment', flag, 'true', 'Each further ban of an address is longer:'),
    ('DEFAULT', 'bantime.factor', decimal, '1',
     'bantime x factor x 1, 2, 4, 8 ... up to bantime.maxtime'),
    ('DEFAULT', 'bantime.multipliers', decimals, '',
     'or, if this is set, bantime x factor x the n-th of these; the last one serves from then on.'),
    ('DEFAULT', 'bantime.maxtime', positive_duration, '4w',
     'No ban is longer than this, but for those of -1.'),
    ('DEFAULT', 'bantime.rndtime', duration, '0',
     'Add a random time up to this, so that a botnet cannot learn when a ban ends.'),
    ('DEFAULT', 'bantime.overalljails', flag, 'false',
     'Count the bans of all jails, not of this one alone.'),
    ('DEFAULT', 'bantime.extend', duration, '0',
     'Each attempt seen during a ban makes it this much longer (0: not at all).'),
    ('DEFAULT', 'ignoreip', network_words('host name'), '127.0.0.0/8 ::1',
     'Addresses and networks that are never banned: put your own here. A host name (your home\n'
     'with a changing address) is looked up each five minutes. file:/PATH is a list: one a line,\n'
     'or FIRST-LAST; what follows # or ; explains it.'),
    ('DEFAULT', 'banip', network_words(), '',
     'The same, but always banned: from everything if it stands here, from its ports in a jail.\n'
     'A file is looked at each minute. What is never banned is left out.'),
    ('DEFAULT', 'ignoreself', flag, 'true',
     'Nor are this machine, its LAN, the gateway and the resolvers. Leave this on.'),
    ('DEFAULT', 'ignorelogin', duration, '1h',
     'After a login, mistyping that same user\'s password from there is forgiven for this long.'),
    ('DEFAULT', 'ipv4prefix', prefix_length(8, 32), '32',
     'Count and ban IPv4 addresses by networks of this size.'),
    ('DEFAULT', 'ipv6prefix', prefix_length(32, 128), '64',
     'The same for IPv6, where an attacker owns a /64.'),
    ('DEFAULT', 'widen', count_or_none, '4',
     'So many networks of one IPv6 /56 banned at a time, and all of it is, for the longest of\n'
     'them; so many such /56, or the square of that of smaller ones, and the /48 is. 0: never.'),
    ('DEFAULT', 'widen4', count_or_none, '0',
     'The same for an IPv4 /24, which has more than one owner.'),
    ('DEFAULT', 'maxnetworks', count_or_none, '10',
     'An account that exists here and that so many networks have tried within six findtimes is\n'
     'under siege until a day after the last: two failures within a day are a ban then. 0: never.'),
    ('crowdsec', 'url', server_url, '',
     'http://ADDR:PORT, https://NAME or unix:/PATH of a Local API. Empty: none.'),
    ('crowdsec', 'key', secret, '', 'What `cscli bouncers add` has printed: needed to pull. Each\n'
     'router needs a key of its own.'),
    ('crowdsec', 'machine', secret, '', 'The name that `cscli machines add` was given: needed to\n'
     'push ...'),
    ('crowdsec', 'password', secret, '', '... and its password.'),
    ('crowdsec', 'interval', positive_duration, '10s', 'How often it is asked what is new.'),
    ('crowdsec', 'pull', flag, 'true', 'Ban whom it has decided to ban, for as long as it says.'),
    ('crowdsec', 'push', one_of('bans', 'alerts', 'no'), 'bans',
     'Tell it of new bans: bans: for everybody as long as here; alerts: it decides itself, by its\n'
     'profiles; no: nothing.'),
    ('crowdsec', 'scopes', some_of('ip', 'range'), 'ip range',
     'Which decisions are pulled: of addresses, of networks.'),
    ('crowdsec', 'origins', name_list, '',
     'Of which origins: cscli, crowdsec, CAPI, lists ... Empty: all.'),
    ('crowdsec', 'maxdecisions', unless('auto', positive_count), 'auto',
     'At most so many; those that last longest. auto as for `maxbans`.'),
    ('crowdsec', 'port', port_list, '', 'Ports that its decisions close. Empty: all of them.'),
    ('crowdsec', 'protocol', some_of('tcp', 'udp'), 'tcp', 'tcp, udp or both, with `port`.'),
    ('crowdsec', 'forward', flag, 'true', 'Do they stop what the router forwards, too?'),
    ('report', 'to', mailboxes, 'root', 'Who gets it; several with commas.'),
    ('report', 'from', mailbox, '', 'Its sender. Empty: root at this host\'s name.'),
    ('report', 'sendmail', command_line, 'sendmail -t -i',
     'Gets the mail on standard input. On OpenWrt install msmtp-mta for it, and name your mail\n'
     'provider in /etc/msmtprc.'),
    ('report', 'empty', flag, 'true',
     'false: no mail for a day on which nothing happened; true: a short one, but at most each 12\n'
     'hours.'),
    ('report', 'other', flag, 'true',
     'Tell of log lines that no jail and no rule explains. false saves some 3 us a line; the\n'
     'built-in rules are then not used either.'),
    ('report', 'mailmax', positive_count, '6',
     'Rules with `mail` send this many mails an hour at most; the rest waits for the summary.'),
    ('report', 'htmlmode', file_mode, '600',
     'Who may read the page that `report --html` writes; 644 for a web server with its own user.'),
    ('action', 'actionstart', command_reader(*JAIL_TAGS), '',
     'Runs once at the start, before any ban ...'),
    ('action', 'actionstop', command_reader(*JAIL_TAGS), '',
     '... and once after all bans are lifted.'),
    ('action', 'actionban', command_reader(*JAIL_TAGS + TICKET_TAGS), '',
     'For each ban: address-list add <ip> seconds=<bantime>'),
    ('action', 'actionunban', command_reader(*JAIL_TAGS + TICKET_TAGS), '',
     'For each ban that ends.'),
    ('action', 'actionflush', command_reader(*JAIL_TAGS), '',
     'Lifts all bans at the end, instead of actionunban for each.'),
    ('action', 'actioncheck', command_reader(*JAIL_TAGS), '',
     'Each minute; if it fails: actionstop, actionstart, and actionban for all.'),
    ('action', 'actionpipe', command_reader(*JAIL_TAGS), '',
     'A program that is started once, and gets one JSON object a line: {"do": "start" | "ban" |\n'
     '"unban" | "extend" | "check" | "stop", ...} with all of what is listed above.'),
    ('action', 'python', unless('', absolute_path), '',
     "A file with a class Action(jail, name, ...) as fail2ban's Python actions have; it gets the\n"
     'further entries of this section as options. It runs in a process of its own.'),
    ('action', 'timeout', positive_duration, '10s',
     'A command that takes longer is killed. It is tried three times.'),
    ('proxy', 'program', valid_regex, '',
     'A regex that fits the whole name of the program that writes the line (sslh, haproxy).'),
    ('proxy', 'regex', text_rows, '',
     'Regexes, one a line, that see the message: <HOST> is the client, <F-PORT>\\d+</F-PORT> the\n'
     'port from which the proxy goes on.'),
    ('proxy', 'address', single_addresses, '127.0.0.1', 'The addresses from which it goes on.'),
    ('proxy', 'keep', positive_duration, '2m', 'How long after such a line a failure may come.'),
    ('rule', 'program', valid_regex, '',
     'A regex that fits the whole name of the program that writes the line (kernel, dnsmasq.*).\n'
     'Empty: any.'),
    ('rule', 'regex', text_rows, '',
     "Regexes, one a line, in fail2ban's language; they see the message, what stands behind\n"
     '`program[pid]: `.'),
    ('rule', 'ip', rule_networks, '',
     'Only lines whose <HOST> is in one of these networks, and in none with a ! in front; lan is\n'
     "this machine's own. `ip = !lan !198.51.100.0/24` is from anywhere else."),
    ('rule', 'user', name_list, '',
     'Only lines whose <F-USER> is one of these names; exists: an account of this machine;\n'
     'unknown: none.'),
    ('rule', 'report', one_of('warning', 'info', 'other', 'ignore'), 'info',
     'warning: under WARNING. info: under NOTED. other: under OTHER LOG LINES.\n'
     'ignore: not at all.'),
    ('rule', 'text', str, '',
     'What the summary says (port scan by <HOST>). Empty: the message, its numbers and addresses\n'
     'as *.'),
    ('rule', 'details', one_of('all', 'none', 'first', 'last', 'firstlast'), 'none',
     'Which of the lines it shows: all | none | first | last | firstlast.'),
    ('rule', 'mail', flag, 'false', 'true: also one mail at once.'),
    ('rule', 'key', str, '',
     'Count each program, ip, user or F-NAME by itself, as a regex has captured it. Empty: all\n'
     'together.'),
    ('rule', 'maxretry', positive_count, '1', 'It takes this many lines ...'),
    ('rule', 'findtime', positive_duration, '10m', '... within this time.'),
    ('rule', 'resets', valid_name, '',
     'Name of another rule, which starts counting again, for the same key, when this one fits ...'),
    ('rule', 'grace', duration, '0',
     '... and whose lines are not counted for this long from then on.'),
)]
ROWS = {(row.section, row.name): row for row in OPTIONS}
ALIASES = {'logpath': 'source'}
# the jails that need not be written down, and what they do not take from [DEFAULT]
OFF = {'enabled': 'false'}
JAILS = {
    'dropbear': {}, 'sshd': {}, 'luci': {'port': 'http,https', 'ignorelogin': '0'},
    'vsftpd': OFF, 'proftpd': OFF, 'pure-ftpd': OFF, 'openvpn': OFF,
    'asterisk': dict(OFF, port='5060,5061,4569,5038', protocol='tcp udp'),
    'nginx-http-auth': dict(OFF, port='http,https', ignorelogin='0'),
    'lighttpd-auth': dict(OFF, port='http,https', ignorelogin='0'),
    'postfix': OFF, 'dovecot': OFF, 'exim': OFF,
    'adguardhome': dict(OFF, port='http,https,3000'), 'vaultwarden': dict(OFF, port='http,https'),
    'home-assistant': dict(OFF, port='http,https,8123'), 'nextcloud': dict(OFF, port='http,https'),
    'proxmox': OFF, 'pam-generic': OFF, 'mikrotik': OFF,
    'trap': dict(OFF, maxretry='2', findtime='1d', bantime='1d', ignorelogin='0'),
    'recidive': dict(OFF, maxretry='5', findtime='1d', bantime='1w'),
    'kernel-scan': dict(OFF, maxretry='15', forward='false')}
NOTES = {
    'luci': '; LuCI logs whatever its client sends, line breaks too. So this jail closes the\n'
            "; web's ports only, and a login that it reports forgives nobody. (So do the logs of\n"
            '; nginx and lighttpd.)',
    'vsftpd': '; Filters for other daemons: enable what you run, and say where it logs if that '
              'is not syslog.',
    'vaultwarden': "; A user name may hold line breaks: close the web's ports only.",
    'pam-generic':
        '; What PAM refuses to any program but sshd and dropbear. Where a second module lets in\n'
        '; whom the first has refused (winbind, sssd), it counts people who log in. OpenWrt cuts\n'
        '; lines, and the blanks before the cut: a program that takes names of 900 blanks (FTP)\n'
        '; lets its clients forge an address, so there set `port`.',
    'mikrotik':
        '; RouterOS by UDP. Its lines have no tag, so they need a source of their own:\n'
        '; source = udp:192.168.1.1:514. A ban closes this machine and what it forwards; only an\n'
        '; `action` can tell the RouterOS device.',
    'trap': '; Servers that let nobody in: whoever talks to them is up to something. Needs a\n'
            '; `source = trap:telnet:23`, and a firewall that lets it be reached. A connection\n'
            '; counts one, each password one.',
    'recidive': '; Who has been banned by the other jails so often is banned for longer, from\n'
                '; everything. It counts only bans that close at least what its own do: not\n'
                '; those of luci, unless it says `port = http,https` itself.',
    'kernel-scan': "; Counts different ports in the lines that the router's own firewall logs\n"
                   '; for packets it drops (OpenWrt: `option log 1` for the zone). Anybody can\n'
                   "; forge a packet's sender: think twice. So its bans never touch what is\n"
                   '; forwarded.'}
MANUAL = 'manual'                                  # the jail of bans by hand
HUB = 'crowdsec'                                   # that of what a CrowdSec decides
LIST = 'list'                                      # that of `banip`; list-NAME: in a jail's section
RULE = (
    'Rules of your own for the summary, besides the built-in ones. One with the name of a\n'
    'built-in rule takes its place, option by option. There are:\n'
    '    <rules>')
ACTION = (
    'Commands of your own, for `action = NAME`. One a line; no shell: quotes hold words\n'
    'together, and each <tag> is filled in inside its word:\n'
    '    <%s>\n'
    'and, of a ban,\n'
    '    <%s>\n'
    'Your program finds the same in its environment (BANWATCH_IP), and there only what comes\n'
    "from the log, which is the attacker's text: BANWATCH_MATCHES, the lines of the failures,\n"
    'and what the filter has captured, BANWATCH_F_USER and so on. In a script, write\n'
    '"$BANWATCH_F_USER", with the quotes. Each jail runs its commands for itself, and from\n'
    'the start after a crash: name a list after <jail>, and let actionstart begin with an\n'
    'empty one. <ip> may be a network, and is a /64 for IPv6; <time> and <bantime> (its full\n'
    'length, -1 for ever) are in seconds. That a running ban becomes longer is not told. At a\n'
    'stop, all together have some 4 s: with many bans, give an actionflush. Bans by hand\n'
    'without -j belong to the jail `manual`.' % (
              '> <'.join(JAIL_TAGS), '> <'.join(TICKET_TAGS)))
PROXY = (
    'A proxy in front of a daemon of this machine (sslh, haproxy), whose log names the real\n'
    'client: failures that the daemon reports for the address and port of the proxy count for\n'
    'that client. Those that no such line explains count for nobody. For `sslh -n`:\n'
    '    program = sslh.*\n'
    '    regex   = connection from <HOST>:\\d+ to .* forwarded from \\S+:<F-PORT>\\d+</F-PORT> to\n'
    'and for haproxy, with `option logasap` and log-format "client %ci:%cp through %bi:%bp":\n'
    '    regex   = ^client <HOST>:\\d+ through \\S+:<F-PORT>\\d+</F-PORT>$')
NAMED_SECTIONS = {'action': ACTION, 'proxy': PROXY, 'rule': RULE}  # they have names
SECTIONS = {
    'banwatch': 'banwatch.conf: every option with its default. All of it may be left out. A\n'
                'comment is a line that starts with ; or #, or follows ` ;`. Times: 600, 10m,\n'
                '2h30m, 7d, 4w.\n'
                'After a change: banwatch.py check, then banwatch.py reload.',
    'DEFAULT': 'For every jail; a jail may override each of these.',
    'crowdsec': 'Bans shared with others through a CrowdSec: pulled from its Local API, and\n'
                'pushed. Pulled ones are the jail `crowdsec`. Keep this file to yourself (chmod\n'
                '600).',
    'report': 'The summary: banwatch.py report shows it. For a mail each morning, cron runs: '
              'banwatch.py report --send'}
NO_CONF = 'built-in defaults'        # what stands for the name of a conf file where there is none


class Config:
    """What a conf file says; asked by section and option, it answers with the defaults filled
    in."""

    def __init__(self, name=NO_CONF):
        self.name = name
        self.settings = {}           # section -> {option: (value, text, line)}, as written
        self.heads = {}              # section -> line of its head
        self.more = {}               # section of an action -> {entry of its own: (text, line)}

    def __getitem__(self, option):
        return self.get('banwatch', option)

    def get(self, section, option):
        """The value in force, parsed."""
        row = ROWS[kind_of(section), option]
        written = self.settings.get(section, {})
        if option in written:
            return written[option][0]
        if row.section == 'rule':
            known = built_in_rules()
        else:
            known = JAILS
        # a built-in jail that is off is on as soon as its section stands in the conf
        switched_on = option == 'enabled' and section in self.settings
        if option in known.get(section, ()) and not switched_on:
            return row.read(known[section][option])
        if row.section == 'DEFAULT' and option in self.settings.get('DEFAULT', ()):
            return self.settings['DEFAULT'][option][0]
        return default_value(row.section, option)

    def text(self, section, option):
        """The value in force, as it was written."""
        written = self.settings.get(section, {})
        if option in written:
            return written[option][1]
        return ROWS[kind_of(section), option].default

    def where(self, section, option=None):
        """'file:line' of an option, or of its section."""
        written = self.settings.get(section, {}).get(option)
        if written:
            line = written[2]
        else:
            line = self.heads.get(section)
        if line:
            return '%s:%d' % (self.name, line)
        return self.name

    def options(self, section):
        """All options of a section, name -> value."""
        kind = kind_of(section)
        return {row.name: self.get(section, row.name) for row in OPTIONS if row.section == kind}

    def jails(self):
        """Names of the jails that are on."""
        written = [name for name in self.settings
                   if kind_of(name) == 'DEFAULT' and name not in ('DEFAULT', MANUAL, LIST)]
        unwritten = [name for name in JAILS if name not in written]
        return [name for name in unwritten + written if self.get(name, 'enabled')]


def kind_of(section):
    """Which rows of OPTIONS a section has: its own, those of 'action' or 'rule', or, as a jail,
    'DEFAULT'."""
    kind = section.partition(' ')[0]
    if section in ('banwatch', HUB, 'report') or section != kind and kind in NAMED_SECTIONS:
        return kind
    return 'DEFAULT'


@functools.lru_cache(maxsize=None)
def default_value(section, option):
    """The default of an option, parsed; it is asked for on each turn of the loop."""
    row = ROWS[section, option]
    return row.read(row.default)


@functools.lru_cache(maxsize=1)
def built_in_rules():
    """'rule NAME' -> {option: text} of RULES."""
    found = {}
    for _, section, key, value in read_ini(RULES):
        found.setdefault(section, {}).update({key: value} if key else {})
    return found


def read_ini(text):
    """Yields (line number, section, key, value), key None for a section's head, and (line number,
    None, None, complaint) for what is neither."""
    section = key = None
    at, value = 0, []
    for n, raw in enumerate(text.split('\n') + ['[]'], 1):
        line = raw.rstrip('\r')
        if line.lstrip()[:1] in ('#', ';'):
            continue
        line = re.split(r'\s;', line, maxsplit=1)[0].rstrip()
        if key and (not line or line[0] in ' \t'):
            value.append(line.strip())             # goes on, or an empty line that may lie inside
            continue
        if key:
            yield at, section, key, '\n'.join(value).strip('\n')
            key = None
        head = re.match(r'\[([^\[\]]+)\]$', line)
        pair = re.match(r'([^\s=:\[][^=:]*?)\s*[=:]\s*(.*)$', line)
        if head:
            section = head.group(1).strip()
            yield n, section, None, ''
        elif pair and section:
            at, key, value = n, pair.group(1).lower(), [pair.group(2)]
        elif line.strip() and n <= text.count('\n') + 1:
            why = ' is neither a [section] nor `option = value`'
            if pair:
                why = ' stands before any [section]'
            elif re.match(r'\s+(\[.+\]|[\w.]+\s*=)', line):
                why = ' must begin in the first column'
            yield n, None, None, quoted(line.strip()) + why


def read_config(text, name):
    """(Config, problems): the problems are 'file:line: what is wrong', all of them at once."""
    config, problems = Config(name), []
    for n, section, key, value in read_ini(text):
        if section is None:
            complaint = value
        else:
            complaint = take_entry(config, n, section, key, value)
        if complaint:
            problems.append('%s:%d: %s' % (name, n, complaint))
    for section, entries in config.more.items():
        if not config.get(section, 'python'):
            problems += ['%s:%d: %s' % (name, n, unknown_option(key, section))
                         for key, (_, n) in entries.items()]
    return config, in_order(problems) + lacking_actions(config)


def lacking_actions(config):
    """Problems of actions that jails name but that are not there, or that they need."""
    found = set()
    for jail in [MANUAL] + config.jails():
        actions = config.get(jail, 'action')
        if 'action' in config.settings.get(jail, ()):
            section = jail
        else:
            section = 'DEFAULT'
        for name in actions:
            if 'action ' + name not in config.settings:
                found.add('%s: action: there is no [action %s]' % (
                    config.where(section, 'action'), printable(name)))
        bans = any(config.get('action ' + name, option) for name in actions
                   for option in ('actionban', 'actionpipe', 'python'))
        if config['firewall'] == 'command' and not bans:
            found.add(
                '%s: firewall: command bans by `action` alone, but [%s] has none with an actionban'
                % (
                config.where('banwatch', 'firewall'), jail))
    return sorted(found)


def take_entry(config, n, section, key, value):
    """Puts one entry of a conf file into `config`; returns what is wrong with it, or ''."""
    if key is None:
        if section in config.heads:
            return '[%s] stands here twice' % printable(section)
        config.heads[section] = n
        if section in SECTIONS or re.match(
                r'(action |proxy |rule )?[A-Za-z0-9][\w.-]{0,29}$', section):
            config.settings[section] = {}
            return ''
        return "[%s]: a jail's name is up to 30 letters, digits, dots and dashes" % printable(
            section)
    written = config.settings.get(section, {})
    key = ALIASES.get(key, key)
    row = ROWS.get((kind_of(section), key))
    if not row and kind_of(section) == 'action':   # it may be one for the owner's Python
        config.more.setdefault(section, {})[key] = value, n
        return ''
    if not row:
        return unknown_option(key, section)
    if key in written:
        return '%s: stands in [%s] twice' % (key, section)
    written[key] = row.read(row.default), value, n
    try:
        written[key] = row.read(value), value, n
    except ValueError as e:
        text = str(e)
        if not text.startswith("'"):
            text = '%s %s' % (quoted(value), text)
        if re.search('[#;]', value):
            text += ' (a comment after a value starts with ` ;`)'
        return '%s: %s' % (key, text)
    return ''


def unknown_option(key, section):
    """What to say of an option that there is not."""
    return '%s: no such option in [%s]%s' % (printable(key), printable(section),
                                             option_hint(key, section))


def option_hint(key, section):
    """A hint for a mistyped or misplaced option: ' (did you mean maxretry?)'."""
    there = [other for other, name in ROWS if name == key]
    if there:
        if there[0] in NAMED_SECTIONS:
            name = there[0] + ' NAME'
        else:
            name = there[0]
        return ' (it belongs into [%s])' % name
    meant = closest_word(key, [row.name for row in OPTIONS if row.section == kind_of(section)])
    if meant:
        return ' (did you mean %s?)' % meant
    return ''


def closest_word(word, words):
    """The word that is most likely meant by one that is not known; '' if none is like it."""
    return ''.join(difflib.get_close_matches(word, words, 1))


def choose_from(word, words, more=()):
    """'did you mean dhcp?', of these `words` or of `more`; or all words, if none is like it."""
    meant = closest_word(word, words + list(more))
    if meant:
        return 'did you mean %s?' % meant
    return 'there are: ' + ' '.join(words)


def in_order(problems):
    """Problems ('file:line: ...') by line."""
    def line(text):
        m = re.search(r':(\d+): ', text)
        if m:
            return int(m.group(1))
        return 0
    return sorted(problems, key=line)


def config_text(config):
    """The effective configuration in its own syntax, each option explained; reads back the same."""
    out = []
    for section in SECTIONS:
        out += comments(SECTIONS[section]) + ['', '[%s]' % section]
        for row in OPTIONS:
            if row.section == section:
                out += comments(row.help) + [setting_text(row.name, config.text(section, row.name))]
        out.append('')
    out.append('; A jail. Without a `filter` of its own it takes the one that is named like it.')
    jails = [name for name in config.settings if kind_of(name) == 'DEFAULT'
             and name not in SECTIONS]
    for name in dict.fromkeys(list(JAILS) + jails):
        said = dict(JAILS.get(name, {}), enabled='true' if config.get(name, 'enabled') else 'false')
        said.update((key, value[1]) for key, value in config.settings.get(name, {}).items())
        if name in NOTES:
            out.append(NOTES[name])
        out += ['[%s]' % name] + [setting_text(key, said[key]) for key in said] + ['']
    words = ' '.join(section[5:] for section in built_in_rules())
    rules = '\n    '.join(textwrap.wrap(words, 96, break_on_hyphens=False))
    for kind, about in NAMED_SECTIONS.items():
        out += comments(about.replace('<rules>', rules)) + ['; [%s NAME]' % kind]
        for row in OPTIONS:
            if row.section == kind:
                out += comments(row.help) + ['; ' + setting_text(row.name, row.default)]
        out.append('')
        for name in config.settings:
            if kind_of(name) == kind:
                rows = [setting_text(key, value[1]) for key, value in config.settings[name].items()]
                rows += [setting_text(key, value[0])
                         for key, value in config.more.get(name, {}).items()]
                out += ['[%s]' % name] + rows + ['']
    return '\n'.join(out)


def comments(text):
    """Lines of a comment."""
    return ['; ' + line for line in text.split('\n')]


def setting_text(key, text):
    """An entry of a conf file."""
    return ('%s = %s' % (key, text.replace('\n', '\n    '))).rstrip()


# ---- Lines ---------------------------------------------------------------------------------
# Owns: nothing. Knows the forms in which log daemons write a line, and how dates are written:
#     Thu Nov 20 12:27:01 2026 authpriv.warn dropbear[123]: text      OpenWrt's logread (-t too)
#     Nov 20 12:27:01 host prog[1]: text, Nov 20 12:27:01 prog[1]: text    RFC 3164, busybox -S
#     Nov 20 12:27:01 host authpriv.warn prog[1]: text                busybox syslogd
#     2026-11-20T12:27:01.123+01:00 host prog[1]: text                rsyslog, journalctl
#     <86>Nov 20 12:27:01 host prog[1]: text                          datagrams
#     <86>1 2026-11-20T12:27:01Z host prog 1 - [x y="z"] text         RFC 5424
#     1795179705.484 prog[1]: text;  prog[1]: text;  text             epoch; no date; nothing
#     [2026-11-20 12:27:01] text, 2026/11/20 12:27:01: text           a daemon's own file
#     [2026-11-20 12:27:01][text, {"level":2,"time":"2026-11-20T12:27:01Z", ...}
# Always true: a line's program is never taken from its message.

Line = collections.namedtuple('Line', 'date host program pid message')

LEVEL = br'(?:[a-z]+\d?|<unknown>)\.[a-z]+ '
# a device without a name, or one of UniFi's, kept by another log daemon, with its own name for
# itself: host 0123456789ab,U7-Pro-8.6.11+18870:
HOST = (br'(?:(?:[^\s:\[\]]+|(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f.]{0,15})'
        br'(?: \(?"?(?:[\w-]+,)?[0-9a-f]{12},[\w.+-]+"?\)?:?)?)')
UNIX_DATE = br'[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d'
ISO_DATE = br'\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z| ?[+-]\d\d:?\d\d)?'
ANY_DATE = (
    # months also in other languages, as journalctl's default has them
    br'(?:[A-Z][a-z]{2} (?:[A-Z][a-z]{2} )?|[A-Za-z\x80-\xff]{3,9}\.? | ?1?\d\xe6\x9c\x88 )'
    br'[ \d]?\d \d\d:\d\d:\d\d(?:\.\d+)?(?: \d{4}(?=[\]: ]))?'
    br'|(?:[A-Z][a-z]{2} )?\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?'
    br'(?:Z| ?[+-]\d\d:?\d\d| (?:[A-Z]{3,5}|[+-]\d\d)(?= ))?'
    br'|\d{10}(?:\.\d+)?|(?<=\[) {0,4}\d+\.\d{6}(?: <[ \d.]{12} >)?(?=\] )')
# Header before the program tag. The three common syslog forms come first, for speed; the last one
# is for all the rest. <PRI> of the facilities auth and authpriv lets logd's `log_prefix` pass, and
# only there, where a login may be logged.
HEAD = (br'(?:(?P<date>' + UNIX_DATE + br') (?:<[a-z0-9]{1,9}\.[a-z0-9]{1,9}> )?'
        br'(?:' + LEVEL + br'|(?P<host>' + HOST + br') (?:' + LEVEL + br')?)?'
        br'|(?P<date2>[A-Z][a-z]{2} ' + UNIX_DATE + br' \d{4}) (?:\[ *\d+\.\d+\] )?' + LEVEL +
        br'|(?P<date3>' + ISO_DATE + br') (?:[a-z]+\d?\.[a-z]+: (?:' + UNIX_DATE + br' )?)?'
        br'(?:(?P<host3>' + HOST + br') (?:' + LEVEL + br')?)?'
        br'|(?!' + UNIX_DATE + br' |' + ISO_DATE + br' )'
        br'(?:<(?:(?P<auth>3[2-9]|8[0-7])|\d{1,3})>)?(?:\[?(?P<date4>' + ANY_DATE + br')\]?:? )?'
        br'(?:' + LEVEL + br'|(?P<host4>' + HOST + br') (?:' + LEVEL + br')?)?'
        br'(?(auth)(?:' + HOST + br': (?=' + HOST + br'\[\d+\]: ))?))')
HEADER = Regex(HEAD.replace(br'(?=' + HOST + br'\[\d+\]: )', b''))
# Header of a daemon's own file: its date in front, or the `time` of a JSON object. There, quotes
# inside of a text are escaped, so what a client wrote holds no key.
JSON_DATE = (br'\{(?:"\w{1,32}":(?:"(?:[^"\\\n]|\\.){0,256}"|\d{1,9}),){0,6}"time":"(?P<date6>'
             + ISO_DATE + b')"')
OWN_HEAD = br'\[?(?P<%s>' + ANY_DATE + br')(?:\]?:?  ?|\](?=\[))'
# docker's syslog driver has the container's number for a tag
CONTAINER = br'(?:' + ANY_DATE + br') (?:[\w.-]+ )?[0-9a-f]{12}\[\d+\]: (?:' + OWN_HEAD % b'date7'
BARE = (br'(?:(?:<\d{1,3}>)?(?:' + CONTAINER + br')?|(?:' + OWN_HEAD % b'date5' + br'|(?='
        + JSON_DATE + br'))?))')
HEAD_DATES, HOST_GROUPS = ('date', 'date2', 'date3', 'date4'), ('host', 'host3', 'host4')
DATE_GROUPS = HEAD_DATES + ('date5', 'date6', 'date7')
TAG = br'(?:%s)(?:\[(?P<pid>\d+)\])?: '
# what a daemon that thinks it has a file of its own writes behind its tag, as in a container
OWN_DATE = br'\[?(%s' + ANY_DATE + br')\]?:? '
INNER, INNER_DATE = Regex(OWN_DATE % b''), b'(?:' + OWN_DATE % b'?:' + b')?'
ANY_TAG = TAG % br'(?P<program>[^\s:\[\]]*)'
# two dates with digits in the same places look alike
SHAPE = bytes.maketrans(b'123456789', b'000000000')
LINE = Regex(b'(?:' + HEAD + ANY_TAG + b'|' + BARE + br')(?P<message>.*)', re.S)
# what log daemons write instead of a line that comes again
AGAIN = Regex(b'(?:' + HEAD
              + br'(?:syslog[\w-]*(?:\[\d+\])?: )?last message repeated (?P<more>\d{1,9}) times?'
              b'|' + HEAD.replace(b'?P<', b'?P<v').replace(b'(?(', b'(?(v')
              + ANY_TAG.replace(b'?P<', b'?P<w')
              + br"Last message '(?P<start>[^\n]{0,20})' repeated (?P<more2>\d{1,9}) times, "
              br'suppressed by syslog-ng on \S+'
              b'|(?P<head>' + HEAD.replace(b'?P<', b'?P<x') .replace(b'(?(', b'(?(x') +
              ANY_TAG.replace(b'?P<', b'?P<y') + b'|' + BARE.replace(b'?P<', b'?P<z') +
              br')message repeated (?P<times>\d{1,9}) times: \[ ?(?P<message>.*?) ?\])\r?', re.S)
MOST_TIMES = 100                                   # what one such line may count at most ...
MOST_ROOM = 1 << 18                                # ... and what all of a block may add, in bytes
RFC5424 = Regex(br'\n<(\d{1,3})>1 (\S+) (\S+) (\S+) (\S+) \S+ '
                br'(?:-|(?:\[[^\]"\n]*(?:"(?:[^"\\\n]|\\.)*"[^\]"\n]*)*\])+) ?(?:\xef\xbb\xbf)?')
# a line of a container, as docker's json-file driver keeps it
DOCKER = Regex(br'\n\{"log":"((?:[^"\\\n]|\\.){0,8192}?)(?:\\r)?(?:\\n)?",'
               br'"stream":"std(?:out|err)"(?:,"attrs":\{[^{}\n]{0,512}\})?'
               br',"time":"(\d{4}-\d\d-\d\dT[\d:.]{8,20}(?:Z|[+-]\d\d:\d\d))"\}(?=\n)')
ESCAPE = Regex(br'\\(?:u([0-9a-fA-F]{4})|(.))')
LONG = Regex(b'(\n[^\n]{%d})[^\n]+' % PLAIN_LINE)


def read_line(line):
    """The Line in `line` (bytes, no newline); program None if it has no tag at all."""
    m = LINE.match(tidy(line + b'\n')[1:].partition(b'\n')[0])
    program, pid, message = m.group('program', 'pid', 'message')
    return Line(first_group(m, DATE_GROUPS), first_group(m, HOST_GROUPS), program, pid, message)


def first_group(m, names):
    """The first of these groups that a match has; None if it has none of them."""
    return next((m[name] for name in names if m[name] is not None), None)


def tidy(block, before=b''):
    """A block of whole lines as all filters want it: with a newline in front; the headers of RFC
    5424 written as those of RFC 3164; a line over PLAIN_LINE cut, with a mark so that it never ends
    like a whole one; a line that says how often another one came written as that one, so often.
    That may be the one `before` the block."""
    block = b'\n' + block
    if b'\r' in block:
        block = block.replace(b'\r\n', b'\n')
    at = 0
    while at >= 0 and len(block) - at > PLAIN_LINE:
        at = block.rfind(b'\n', at + 1, at + PLAIN_LINE + 2)
    if at < 0:                                     # a line is longer than that
        block = LONG.sub(br'\1 [cut]', block)
    if b'<' in block and b'>1 ' in block:          # one byte is found far sooner than three
        block = RFC5424.sub(plain_head, block)
    if b' repeated ' in block:
        block = expanded(block, before)
    return block


def out_of_containers(block):
    """A block in which each line that docker's json-file driver has written is what the container
    wrote, with docker's date in front: one line, whatever it holds."""
    return DOCKER.sub(lambda m: b'\n%s %s' % (m.group(2), ESCAPE.sub(unescaped_json, m.group(1))),
                      block)


def unescaped_json(m):
    """The bytes that one escape of JSON stands for; a blank for the end of a line."""
    code, letter = m.groups()
    if code:
        letter = chr(int(code, 16)).encode('utf-8', 'replace')
    elif letter in b'nrt':
        letter = b' '
    if letter in b'\r\n':
        return b' '
    return letter


def expanded(block, before):
    """A block with `message repeated 3 times: [ x ]` as three lines x, and `last message repeated 3
    times` (syslog-ng: `Last message 'x' repeated ...`) as three more of the line before. What long
    lines may add is bounded."""
    parts, done, room = [], 0, MOST_ROOM
    at = block.find(b' repeated ')
    while at >= 0:
        start, end = block.rfind(b'\n', 0, at) + 1, block.find(b'\n', at)
        m = AGAIN.fullmatch(block, start, end)
        if m:
            parts.append(block[done:start])
            before = parts[-1].strip(b'\n').rpartition(b'\n')[2] or before
            if m.group('more'):
                times, line = int(m.group('more')), before
            elif m.group('more2'):
                times = int(m.group('more2'))
                line = b''
                if b': ' + m.group('start') in before:
                    line = before
            else:
                times, line = int(m.group('times')), m.group('head') + m.group('message')
            times = min(times, MOST_TIMES, max(0, room) // (len(line) + 1))
            room -= times * len(line)
            if line:
                parts.append((line + b'\n') * times)
                before = line
            done = end + 1
        at = block.find(b' repeated ', end)
    return b''.join(parts) + block[done:]


# What log daemons leave of a line that is too long for them: 255 bytes (busybox) or 1023 (musl,
# logd), of which <PRI>, or <PRI> and the date, may be gone, and replaced, by now
CUT_SIZES = frozenset(size - gone for size in (255, 1023) for gone in (0, 4, 5, 20, 21))
SHORTEST_CUT = 150                   # bytes from the tag on; before it there may be a long head


def may_be_cut(line):
    """True if a log daemon may have cut a line (bytes): it is as long as those that one has cut.
    What it ends in may be the client's own text, and what followed may have been the address."""
    if len(line) < SHORTEST_CUT:
        return False
    # without a tag it is in a daemon's own file, which nobody cuts, or came by UDP
    tag = LINE.match(line).start('program')
    if tag < 0:
        return line[:1] == b'<' and len(line) in CUT_SIZES
    return len(line) - tag in CUT_SIZES or len(line) in CUT_SIZES


def plain_head(m):
    """RFC 5424's header as one of RFC 3164; '-' stands for a field that is not known."""
    priority, date, host, program, pid = m.groups()
    if date == b'-':
        date = b''
    else:
        date = date + b' '
    if pid.isdigit():
        pid = b'[%s]' % pid
    else:
        pid = b''
    # of no facility that is believed more than others
    return b'\n<%d>%s%s %s%s: ' % (8 + (int(priority) & 7), date, host.replace(b':', b'.'), program,
                                   pid)


MONTHS = 'Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec'.split()
# the two ways in which headers are dated, by the fields of DATE_FIELDS
HEAD_DATE = Regex(
    r'(?:(?:\w{3} )?(?P<Y>\d{4})[-/](?P<m>\d\d)[-/](?P<d>\d\d)[T ]'
    r'(?P<H>\d\d):(?P<M>\d\d):(?P<S>\d\d)'
    r'(?P<f>[.,]\d+)?(?P<z>Z| ?[+-]\d\d(?::?\d\d)?| [A-Z]{3,5})?'
    r'|(?:\w{3} )?(?P<b>1?\d(?=月)|\w{3,5})[.月]? (?P<d2>[ \d]?\d) '
    r'(?P<H2>\d\d):(?P<M2>\d\d):(?P<S2>\d\d)(?P<f2>\.\d+)?(?: (?P<Y2>\d{4}))?'
    r'|(?P<epoch>\d{10}(?:\.\d+)?|\d{1,9}\.\d{6}(?= <|$))(?: <.*)?)$')
# ... of French, German, Spanish, Italian, Portuguese, Dutch, Polish and Russian
FOREIGN_MONTHS = {name: n for n, names in enumerate((
    'ene gen sty jan янв', 'fév fev lut фев', 'mär mrt мар', 'avr abr kwi апр',
    'mai mei maj mag май', 'juin giu cze июн', 'juil lug lip июл', 'aoû ago sie авг',
    'set wrz сен', 'okt out ott paź окт', 'lis ноя', 'déc dez dic des gru дек'), 1)
    for name in names.split()}
OFFSETS = {b'%d:%02d' % divmod(second, 60): second for second in range(600)}
TEN_MINUTES = {b'%02d:%d' % divmod(n, 6): 600 * n for n in range(144)}


CALENDAR = 28 * 365.25 * 86400        # seconds after which days and weekdays are the same again


def local_time(when):
    """time.localtime; also after January 2038 where the system's time has 32 bits, as on OpenWrt
    19.07."""
    try:
        return time.localtime(when)
    except OverflowError:
        times = when // CALENDAR - 1               # as it is between 1998 and 2026
        there = time.localtime(when - times * CALENDAR)
        return time.struct_time((there.tm_year + 28 * int(times),) + there[1:])


@functools.lru_cache(maxsize=256)
def date_time(date, today, foreign=False):
    """Seconds since 1970 of a line's date (bytes), None if it is none, or none in English unless
    `foreign`. `today` (days since 1970, of now) fills in a missing year: the one that brings the
    date nearest to, but not past, tomorrow."""
    m = HEAD_DATE.match(date.decode('utf-8', 'replace').strip())
    if m is None:
        return None
    fields = m.groupdict()
    for name in 'dHMSfY':
        fields[name] = fields[name] or fields.pop(name + '2')
    fraction, name = fields.pop('f') or '0', (fields['b'] or '').lower()
    if foreign:
        fields['b'] = str(FOREIGN_MONTHS.get(name) or FOREIGN_MONTHS.get(name[:3]) or name)
    try:
        return field_time(fields, today * 86400 + 86399) + float(fraction.replace(',', '.'))
    except (ValueError, OverflowError, KeyError):
        return None


class Calendar:
    """Reads many dates, each as date_time does, but asks for the zone once a day."""

    def __init__(self, today):
        self.today = today
        # a date without its last four characters -> its time at 0:00 there
        self.starts = Recent(1000)
        # a date without its clock -> its midnight; None for a day that is not 24 hours long
        self.midnights = Recent(100)

    def parse(self, date):
        """The time of a date (bytes), None if it is none."""
        year = date[-5:] if date[-5:-4] == b' ' else b''              # logread's stands at the end
        clock = date[:len(date) - len(year)]
        start, offset = clock[:-4], OFFSETS.get(clock[-4:])
        if offset is None:
            return date_time(date, self.today)
        when = self.starts.get(start + year)
        if when is None:
            when = self.start(start, year)
            if when is None:
                when = date_time(date, self.today)
                if when is None:
                    return None
                when -= offset
            self.starts.put(start + year, when)
        return when + offset

    def start(self, start, year):
        """When ten minutes of a day begin, by its midnight; None if that does not tell."""
        day, minutes = start[:-4], TEN_MINUTES.get(start[-4:])
        if minutes is None:
            return None
        if day + year not in self.midnights:
            first, last = (date_time(day + text + year, self.today)
                           for text in (b'00:00:00', b'23:59:59'))
            if first is None or last is None or last - first != DAY - 1:
                first = None
            self.midnights.put(day + year, first)
        midnight = self.midnights[day + year]
        return None if midnight is None else midnight + minutes


class Heads:
    """Reads what stands in lines before their tag. Those of one log look alike: what was read is
    kept in two parts, parted at the last four digits of the clock, and the next line's most likely
    is made of two parts that are known: begins[...] + ends[...] is its time, of `host`."""

    def __init__(self, tag, today):
        self.tag, self.calendar = tag, Calendar(today)
        self.host, self.end, self.shape, self.date = None, b'', None, None
        self.begins, self.ends = Recent(1000), {}
        self.width = self.cut = 0    # of a head with the newline before it, and of its last part

    def inner(self, block, at, end):
        """The time that stands behind the tag of a line, where its head tells none, or only in a
        foreign language, without a year; or None."""
        tag = block.find(b': ', at, end)
        m = tag >= 0 and INNER.match(block, tag + 2, end)
        if m:
            return self.calendar.parse(m.group(1))
        return self.date and date_time(self.date, self.calendar.today, True)

    def read(self, head):
        """(time or None, host) of a head (bytes); None if it is none."""
        date = head[:len(head) - len(self.end)]
        if date.translate(SHAPE) != self.shape or not head.endswith(self.end):
            m = HEADER.fullmatch(head)
            # a line has one tag: what stands behind it is its message
            if m is None or b': ' in head and self.tag.search(head):
                return None
            date, self.host = first_group(m, HEAD_DATES), first_group(m, HOST_GROUPS)
            self.begins, self.ends = Recent(1000), {}
            self.date = date
            if not date or not head.startswith(date):
                self.shape = None
                return date and self.calendar.parse(date), self.host
            self.end, self.shape = head[len(date):], date.translate(SHAPE)
            self.width = len(head) + 1
            self.cut = len(self.end) + (9 if date[-5:-4] == b' ' else 4)
        self.date = date
        when, offset = self.calendar.parse(date), OFFSETS.get(head[-self.cut:][:4])
        if when is not None and offset is not None:
            self.ends[head[-self.cut:]] = offset
            self.begins.put(b'\n' + head[:-self.cut], when - offset)
        return when, self.host


def epoch(fields, offset):
    """Seconds since 1970 of (year, month, day, hour, minute, second), `offset` seconds east of
    Greenwich, or in this machine's zone for None."""
    if offset is None:
        return time.mktime(fields + (0, 0, -1))
    year, month, day, hour, minute, second = fields
    if not (year and 1 <= month <= 12):
        raise ValueError('no date')
    # Fliegel and Van Flandern (1968): days, in years that begin in March; calendar.timegm would
    # cost half a megabyte
    if month < 3:
        years, months = (year + 4799, month + 9)
    else:
        years, months = (year + 4800, month - 3)
    leap_days = years // 4 - years // 100 + years // 400
    days = day + (153 * months + 2) // 5 + 365 * years + leap_days - 2472633
    return ((days * 24 + hour) * 60 + minute) * 60 + second - offset


def zone_seconds(zone):
    """Seconds east of Greenwich of 'Z', '+0100', '-07:30', 'CET', 'UTC+2'."""
    m = re.match(r'\s*([A-Za-z]*)(?:([+-])(\d\d?):?(\d\d)?)?$', zone)
    if m is None:
        raise ValueError('no zone')
    seconds = ZONES[m.group(1).upper()] * 3600
    if m.group(2):
        offset = int(m.group(3)) * 3600 + int(m.group(4) or 0) * 60
        if m.group(2) == '-':
            seconds -= offset
        else:
            seconds += offset
    return seconds


DAYS = 'Mon Tue Wed Thu Fri Sat Sun'.split()
FULL_DAYS = 'Monday Tuesday Wednesday Thursday Friday Saturday Sunday'.split()
FULL_MONTHS = ('January February March April May June July August September October '
               'November December').split()
OFFSET = r'[+-][01]\d(?::?\d\d)?'
DATE_FIELDS = {
    'a': '(?P<a>%s)' % '|'.join(DAYS), 'A': '(?P<A>%s)' % '|'.join(FULL_DAYS),
    'b': '(?P<b>%s)' % '|'.join(MONTHS), 'B': '(?P<B>%s)' % '|'.join(FULL_MONTHS),
    'd': r'(?P<d>[12]\d|3[01]|[0 ]?[1-9])', 'Exd': r'(?P<d>[12]\d|0[1-9]|3[01])',
    'm': '(?P<m>1[0-2]|0?[1-9])', 'Exm': '(?P<m>0[1-9]|1[0-2])',
    'Y': r'(?P<Y>\d{4})', 'ExY': r'(?P<Y>20\d\d)', 'y': r'(?P<y>\d\d)', 'Exy': r'(?P<y>\d\d)',
    'H': r'(?P<H>2[0-3]|[01]?\d)', 'ExH': r'(?P<H>[01]\d|2[0-3])', 'k': r' ?(?P<H>[0-2]?\d)',
    'Exk': r' ?(?P<H>[01]?\d|2[0-3])', 'I': r'(?P<I>1[0-2]|0?[1-9])', 'l': r' ?(?P<I>1?\d)',
    'Exl': r' ?(?P<I>1[0-2]|\d)',
    'M': r'(?P<M>[0-5]?\d)', 'ExM': r'(?P<M>[0-5]\d)', 'S': r'(?P<S>6[01]|[0-5]?\d)',
    'ExS': r'(?P<S>[0-5]\d|6[01])',
    'f': r'(?P<f>\d{1,6})', 'p': '(?P<p>AM|PM)',
    'j': r'(?P<j>36[0-6]|3[0-5]\d|[12]\d\d|0?[1-9]\d|0{0,2}[1-9])',
    'w': '(?P<w>[0-6])', 'z': '(?P<z>Z|UTC|GMT|%s)' % OFFSET, 'Z': '(?P<Z>Z|[A-Z]{3,5})',
    'Exz': '(?P<z>(?:[A-Z]{1,5})?%s|[A-Z]{3,5}|Z)' % OFFSET, 'ExZ': '(?P<Z>[A-Z]{3,5}|Z)', '%': '%'}
EPOCHS = {'EPOCH': r'(?P<epoch>\d{10,11}\b(?:\.\d{3,6})?)',
          'LEPOCH': r'(?P<epoch>\d{10,11}(?:\d{3}(?:\.\d{1,6}|\d{3})?)?)'}
TAI64N = '@(?P<tai>[0-9a-f]{24})'
LINE_BEGIN = '{^LN-BEG}'


class DateFormat:
    """One way to write a date: `regex` finds it in a line (text), `group` is what is cut out
    there."""

    def __init__(self, pattern):
        text, unbound = pattern, pattern.startswith('{UNB}')
        if unbound:
            text = text[5:]
        begin = text.startswith(LINE_BEGIN)
        if begin:
            text = text[len(LINE_BEGIN):]
        word = text.lstrip('^').upper()
        # alone: at the beginning, in [brackets], or in audit(...:1)
        if word in EPOCHS:
            text = r'(?:^|(?<=^\[)|(?<=\baudit\())%s(?=:\d+\)|\b|\W|$)' % EPOCHS[word]
            unbound, begin = True, False
        elif word == 'TAI64N':
            text = TAI64N
        text = re.sub(r'(?<!\\)\{(L?EPOCH)\}', lambda m: EPOCHS[m.group(1).upper()], text,
                      flags=re.I)
        named = re.search('%[aAbBpc]', text)
        text = re.sub(r'%(%|Ex[a-zA-Z]|[a-zA-Z])', date_field, text)
        # what is cut out of the line: the first plain group, or all
        self.group = 1
        compiled = re.compile(text.replace('**', ''))
        plain = set(range(1, compiled.groups + 1)) - set(compiled.groupindex.values())
        if plain:
            self.group = min(plain)
        else:
            text = re.sub(r'^(\^?)(.*?)(\$?)$', r'\1(\2)\3', text, flags=re.S)
        free_begin = unbound or text.startswith(('^', '(^', '(**', '**', '(?:^'))
        free_end = unbound or re.search(r'(?:\$\)?|\\b|\*\*\)*)$', text)
        text = re.sub(r'^(\(*)\*\*|\*\*(\)*)$', r'\1\2', re.sub(r'^(\(*)\*\*', r'\1', text))
        if not free_end:
            text += r'(?=\b|\W|$)'
        if begin and not free_begin:
            text = r'^(?:\W{0,2})?' + text
        elif not free_begin:
            text = r'(?=^|\b|\W)' + text
        # may stand inside of a word
        self.unbound = '**' in pattern or unbound and word not in EPOCHS
        self.anchored = word in EPOCHS or text.startswith(('^', '(^', '(?:^')) and not unbound
        self.regex = re.compile(text, re.I if named else 0)
        self.times = Recent(256)     # (text, now) -> seconds since 1970 or None

    def time(self, m, now):
        """Seconds since 1970 of what `regex` has found, None if that is no date."""
        key = m.group(), now
        if key not in self.times:
            when = None
            if m.group(self.group):
                try:
                    when = field_time(m.groupdict(), now)
                except (ValueError, OverflowError, KeyError):
                    pass
            self.times.put(key, when)
        return self.times[key]


def date_field(m):
    """The regex of a field of a datepattern that m has found, as %d; ValueError if there is
    none."""
    try:
        return DATE_FIELDS[m.group(1)]
    except KeyError:
        raise ValueError('%s is not a field of a date' % m.group()) from None


def date_formats(pattern=''):
    """The DateFormats that a `datepattern` (one a line; empty: all default ones) stands for;
    ValueError says what is wrong. As in fail2ban, {^LN-BEG} alone means those at a line's
    beginning, {DATE} each of them in that place, and a default one is looked for at the beginning
    first."""
    found = []
    for line in pattern.split('\n') if pattern.strip() else ['{DEFAULT}']:
        line = line.strip()
        if line in ('{DEFAULT}', LINE_BEGIN):
            found += anchored_date_formats()
            found += [t for t in default_date_formats() if line == '{DEFAULT}' or t.anchored]
        elif line == '{NONE}':
            return []
        elif '{DATE}' in line.upper():
            for default in DATES:
                bare = default.replace(LINE_BEGIN, '').lstrip('^')
                inner = {'EPOCH': '{EPOCH}', 'TAI64N': TAI64N}.get(bare, bare)
                found.append(
                    date_format(re.sub(r'\{DATE\}', lambda m: inner, line, flags=re.I), line))
        elif line:
            found.append(date_format(line, line))
    return found


def date_format(pattern, line):
    """The DateFormat of a pattern; ValueError names the line of a datepattern it comes from."""
    try:
        return DateFormat(pattern)
    except (ValueError, re.error) as e:
        raise ValueError('%s: %s' % (quoted(line), e)) from None


@functools.lru_cache(maxsize=1)
def default_date_formats():
    """The DateFormats of DATES, in their order; made once."""
    return [DateFormat(text) for text in DATES]


@functools.lru_cache(maxsize=1)
def anchored_date_formats():
    """The same, at the beginning of a line, for those that may stand anywhere in one."""
    return [DateFormat(LINE_BEGIN + text) for text in DATES if text[0] not in '^{'
            and text != 'EPOCH']


def locate_date(line, choice):
    """(template, its match) of the date in a line: the first template that begins the line, else
    the one that stands nearest to its beginning; (None, None) if there is none."""
    best, nearest = (None, None), len(line) + 1
    for template in choice:
        m = template.regex.search(line)
        if m:
            start = m.start(template.group)
            if template.anchored or start <= 1:
                return template, m
            if start < nearest:
                best, nearest = (template, m), start
    return best


def field_time(field, now):
    """Seconds since 1970 that a date's fields mean. What is missing is filled in from `now`: today
    (yesterday, if that is in the future), this year (the last, if more than a day in the
    future)."""
    if field.get('epoch'):
        digits = field['epoch'].partition('.')[0]
        return float(field['epoch']) / (1 if len(digits) < 13 else 1e3 if len(digits) < 16 else 1e6)
    if field.get('tai'):
        return int(field['tai'][1:16], 16)
    zone = field.get('z') or field.get('Z')
    if zone:
        offset = zone_seconds(zone)
    else:
        offset = None
    if zone is None:
        here = time.localtime(now)
    else:
        here = time.gmtime(now + offset)
    if field.get('Y'):
        year = int(field['Y'])
    elif field.get('y'):
        year = 2000 + int(field['y'])
    else:
        year = None
    month = field.get('b') or field.get('B') or field.get('m')
    month = month and (int(month) if month.isdigit() else MONTHS.index(month[:3].title()) + 1)
    day = field.get('d') and int(field['d'])
    if field.get('j'):
        month, day = 1, int(field['j'])            # mktime and timegm carry over
    today = not month and not day
    hour = int(field.get('H') or 0)
    if field.get('I'):
        hour = int(field['I']) % 12
        if (field.get('p') or '').lower() == 'pm':
            hour += 12
    clock = hour, int(field.get('M') or 0), int(field.get('S') or 0)
    if not 1 <= (day or 1) <= (366 if field.get('j') else 31):
        raise ValueError('no day')

    def moment(year, month, day):
        return epoch((year, month, day) + clock, offset)
    if today:
        when = moment(here.tm_year, here.tm_mon, here.tm_mday)
        if when <= now:
            return when
        return moment(here.tm_year, here.tm_mon, here.tm_mday - 1)
    # 2096 is 8 years before 2104
    for year in [year] if year else range(here.tm_year, here.tm_year - 9, -1):
        when = moment(year, month or 1, day or 1)
        if offset is None:
            there = time.localtime(when)
        else:
            there = time.gmtime(when + offset)
        if field.get('j'):
            return when
        real = there.tm_mday == (day or 1)         # 30 February would be 2 March
        if real and (field.get('Y') or field.get('y') or when <= now + 86400):
            return when
    raise ValueError('no day')


# ---- Filters -------------------------------------------------------------------------------
# Owns: compiled regexes, and what each connection has said so far. Always true: what a regex
# captures is an address only if `ipaddress` would say so; a regex that is not built in sees one
# line at a time, never a block, and never longer than its guard allows.
#
# The language is fail2ban's, files and all: [INCLUDES], [Definition], [Init], %(name)s, <name>;
# <HOST> is the address, <F-USER>...</F-USER> the user; a line with <F-NOFAIL> only tells something
# about its connection, one with <F-MLFGAINED> is a login; <F-MLFID> is the connection; <F-CONTENT>
# in prefregex is what the other regexes see. A filter with an option `program` is of our own kind,
# as all built-in ones are: its regexes see the messages of these programs, from their first byte,
# all at once in a whole block; its connections are (host, pid), unless <F-MLFID> says otherwise.
# Some things are added there. An empty line parts a failregex into kinds: one guess makes a daemon
# write several lines, but at most one of each kind; so a connection has made as many guesses as it
# has lines of its most frequent kind. A line with <F-CHILD> may come from a process that was forked
# for one guess, with a pid of its own (PAM, when sshd asks for a keyboard-interactive password): it
# belongs to a connection of the same address that has no such line yet, or to the next guess there.
# A line with <F-DISTINCT> counts once for each text in there, one with <F-TIMES> as often as it
# says. One with <F-CUT> is how a refusal begins whose address a log daemon has cut off. A line that
# is as long as log daemons cut them does not count: a name in it could end like an address. (But
# where `address = first`: no text of the client's that could do so stands before the address.)

FAIL, NOFAIL, LOGIN, CUT = range(4)
# One regex of a filter of our own kind: where its groups are (0: it has none); `special` is a
# Special or None
Row = collections.namedtuple('Row', 'kind verdict ip user child special')
Special = collections.namedtuple('Special', 'distinct times mlfid')
# The one regex over a block that all of them are part of. `rows`: number of the group that ends a
# row -> Row; `texts`: the same -> the regex as it is written; `demands`: sets of texts, one of each
# must be in a block
BlockRegex = collections.namedtuple('Form', 'regex rows texts demands')
# What one line is, for `test`: `verdict` one of FAIL NOFAIL LOGIN, or None with the reason `why`
Look = collections.namedtuple('Look', 'verdict regex ip id user when fields why')

IP4 = r'(?:\d{1,3}\.){3}\d{1,3}'
IP6 = r'(?:[0-9a-fA-F]{1,4}::?|:){1,7}(?:[0-9a-fA-F]{1,4}|(?<=:):)(?:%[\w.-]+)?'
TAGS = {
    'IP4': r'(?:::[fF]{4,6}:)?(?P<ip4>%s)' % IP4, 'IP6': r'(?P<ip6>%s)' % IP6,
    'DNS': r'(?P<dns>[\w\-.^_]*\w)', 'CIDR': r'(?P<cidr>\d+)',
    'F-ID/': r'(?P<fid>\S+)', 'F-PORT/': r'(?P<fport>\w+)'}
TAGS['ADDR'] = r'\[?(?:%(IP4)s|%(IP6)s)\]?' % TAGS
TAGS['HOST'] = r'(?:%(ADDR)s|%(DNS)s)' % TAGS
TAGS['SUBNET'] = r'\[?(?:%(IP4)s|%(IP6)s)(?:/%(CIDR)s)?\]?' % TAGS
TAGS.update(
    {'F-%s/' % name: TAGS[name] for name in ('IP4', 'IP6', 'DNS', 'CIDR', 'ADDR', 'SUBNET')})
TAG_NAMES = {'ID': 'fid', 'PORT': 'fport'}
OWN_FIELDS = ('USER', 'NOFAIL', 'MLFGAINED', 'MLFID', 'CHILD', 'DISTINCT', 'TIMES', 'CUT')
MOST_TEXT = 512                                    # bytes of a name that are kept
SESSIONS = 1000                                    # connections remembered per filter
CHILDREN = 16                                      # ... and per address, those that may be a child
SESSION_SECONDS = 600                              # dropbear gives up after 300 s, sshd after 120
MOST_RUNAWAYS = 3                                  # regexes aborted, until a filter has to rest ...
REST_SECONDS = 60                                  # ... for so long
CALM_SECONDS = 600                                 # after which it is in trouble no more


def no_files(path):
    """What a directory without files reads as."""


class Runaway(Exception):
    """A regex has used up its time."""


def unguarded(search, *arguments):
    """What a search finds, however long it takes: for tests and for regexes of this file."""
    return search(*arguments)


# the files of filters
BUILT_IN = 'built-in'
FILTER_DIRECTORIES = ('/etc/banwatch/filter.d', BUILT_IN, '/etc/fail2ban/filter.d')
SPEC = Regex(r'\s*([^\[\]]+?)\s*(?:\[(.*)\])?\s*$', re.S)
PLAIN_WORD = Regex(r'[\w-]*')           # an option's value that cannot be a part of a regex
PARAMETER = Regex(
    r'\s*([\w./-]+(?:\?\w+=\w+)?)\s*=\s*(?:"([^"]*)"|\'([^\']*)\'|([^,\]]*?))\s*(?:,|\]\s*\[|$)')


def conf_directory(conf):
    """The directory that a conf file lies in, '' if there is no such file."""
    if conf in (NO_CONF, '-'):
        return ''
    return os.path.dirname(os.path.abspath(conf))


def filter_directories(conf):
    """Where filters are looked for: first in filter.d beside the conf, never in the current
    directory."""
    directory = conf_directory(conf)
    return ((os.path.join(directory, 'filter.d'),) if directory else ()) + FILTER_DIRECTORIES


def filter_spec(text):
    """(name, {option: text}) of 'NAME[option=value, other="a value"]'."""
    m, params, at = SPEC.match(text), {}, 0
    if m is None:
        raise ValueError('%s is not a filter (try NAME or NAME[option=value,...])' % quoted(text))
    inner = m.group(2) or ''
    while inner[at:].strip():
        p = PARAMETER.match(inner, at)
        if p is None:
            raise ValueError('%s: cannot make sense of [%s]'
                             % (quoted(text), printable(inner[at:])))
        params[p.group(1).lower()] = next((part for part in p.groups()[1:] if part is not None), '')
        at = p.end()
    return m.group(1), params


class Definition:
    """A filter's options, with everything that stands in for something else filled in."""

    def __init__(self, name, params, origin=None):
        self.name, self.params = name, params
        self.sections = {}           # section -> {option: [(text, where), ...]}; the last one holds
        self.origin = origin         # where the filter was found
        self.missing = []            # files that were to be included
        self.foreign = False         # has any of it been read from a file?
        self.directories, self.read = (), no_files

    def load(self, directories, read):
        """Takes in the filter's file (its name is a path, or is looked for in these directories)
        and what that includes. A NAME.local is read after NAME.conf, or after the next one there
        is."""
        self.directories, self.read, later = directories, read, []
        name, file = self.name, self.name + '.conf'
        if '/' in self.name:
            directory, _, file = self.name.rpartition('/')
            directories, name = [directory or '/'], re.sub(r'\.conf$', '', file)
        for directory in directories:
            local, path = self.fetch(directory, name + '.local')
            if local is not None and path != self.name:
                later.insert(0, (path, local, directory))
            text, path = self.fetch(directory, file)
            if text is None and file != name + '.conf':
                text, path = self.fetch(directory, name + '.conf')
            if text is not None:
                if directory == BUILT_IN:
                    self.origin = BUILT_IN
                else:
                    self.origin = path
                self.take(path, text, directory)
                break
        for path, text, directory in later:
            self.origin = self.origin or path
            self.take(path, text, directory)
        if self.origin is None:
            raise LookupError(name)

    def fetch(self, directory, file):
        """(text or None, path) of a file in a directory."""
        if directory == BUILT_IN:
            return FILTERS.get(re.sub(r'\.conf$', '', file)), '%s %s' % (BUILT_IN, file)
        path = '%s/%s' % (directory, file)
        return self.read(path), path

    def take(self, path, text, directory, loop=()):
        """Takes in one file's text, and before and after it what it includes."""
        if text is None or path in loop:
            return
        self.foreign = self.foreign or directory != BUILT_IN
        entries = list(read_ini(text))
        wanted = {key: value for _, section, key, value in entries if section == 'INCLUDES' and key}
        self.include(wanted.get('before', ''), directory, loop + (path,), path)
        for n, section, key, value in entries:
            where = '%s:%d' % (path, n)
            if section is None:
                raise ValueError('%s: %s' % (where, value))
            if key is not None and section != 'INCLUDES':
                self.sections.setdefault(section, {}).setdefault(key, []).append((value, where))
        self.include(wanted.get('after', ''), directory, loop + (path,), path)

    def include(self, names, directory, loop, path):
        for name in names.split():
            if '/' in name:                        # as in fail2ban, from where this file lies
                place = os.path.normpath(os.path.join(directory, name))
                found = (None if directory == BUILT_IN else self.read(place), place,
                         os.path.dirname(place))
            else:
                places = [f for f in (directory,) + tuple(self.directories) if f and f != BUILT_IN]
                if directory == BUILT_IN:
                    places = [BUILT_IN]
                elif name == 'common.conf':
                    places.append(BUILT_IN)
                found = None, name, directory
                for place in places:
                    text, where = self.fetch(place, name)
                    if text is not None:
                        found = text, where, place
                        break
            text, where, at = found
            if text is None and not name.endswith('.local'):
                self.missing.append('%s includes %s, which is not there' % (path, name))
            self.take(where, text, at, loop)
            if name.endswith('.conf') and at != BUILT_IN:
                local = where[:-5] + '.local'
                self.take(local, self.read(local), at, loop)

    def last(self, section, option, back=0):
        """(text, where) of an option as it stands in a section; None if it does not."""
        rows = self.sections.get(section, {}).get(option, ())
        if len(rows) > back:
            return rows[-1 - back]
        return None

    def meaning(self, failregex, ignoreregex):
        """What two filters that mean the same have in common."""
        return self.origin, self.params, self.sections, list(failregex), list(ignoreregex)

    def given(self, option, back=0):
        """(text, section) of an option in force, nothing filled in yet; None if there is none."""
        if option in self.params and not back:
            text = self.params[option]
            # which is written as RFC 3164, see `tidy`
            if option == 'logtype' and text == 'rfc5424':
                text = 'file'
            return text, 'Definition'
        for section in ('Init', 'Definition', 'DEFAULT'):
            row = self.last(section, option, back)
            if row:
                return row[0], 'Definition' if section == 'DEFAULT' else section
        return None

    def where(self, option):
        """'file:line' of an option, '' if it is the conf's."""
        for section in ('Init', 'Definition', 'DEFAULT'):
            row = self.last(section, option)
            if row and option not in self.params:
                return row[1]
        if self.sections:
            return self.origin
        return ''

    def get(self, option, default=''):
        """The text of an option with everything filled in; ValueError if that cannot be done."""
        found = self.given(option)
        if found is None:
            return default
        try:
            return self.tagged(self.interpolated(found[0], found[1], option))
        except ValueError as e:
            raise self.complaint(option, e) from None

    def told(self, option, read, *words):
        """What `read` makes of an option; its ValueError says where that stands."""
        try:
            return read(*words)
        except ValueError as e:
            raise self.complaint(option, e) from None

    def complaint(self, option, why):
        """A ValueError that says where the option stands."""
        where, why = self.where(option), '%s%s' % (why, ' (%s)' % '; '.join(self.missing)
                                                   if self.missing else '')
        return ValueError('%s: %s: %s' % (where, option, why) if where else str(why))

    def interpolated(self, text, section, option, back=0, depth=0):
        """`text` with %(name)s, %(section/name)s and %(known/name)s filled in."""
        if '%' not in text:
            return text
        if depth > 10:
            raise ValueError('%s stands in itself' % quoted(option))

        def filled(m):
            if m.group() == '%%':
                return '%'
            at, _, name = m.group(1).rpartition('/')
            if name == '__name__':
                return section
            again = 0
            # what it was before this file, or above this section
            if at == 'known':
                if name == option:
                    again = back + 1
                else:
                    again = 1
                found = self.last(section, name,
                                  again) or self.last('DEFAULT', name) or self.last('Init', name)
            elif not at:
                if name in self.params:
                    return self.interpolated(self.params[name], section, name, 0, depth + 1)
                found = next(
                    filter(None,
                           (self.last(s, name)
                            for s in (section, 'DEFAULT', 'Definition', 'Init'))), None)
            else:
                if at == 'default':
                    at = 'DEFAULT'
                found = self.last(at, name) or self.last('DEFAULT', name)
            if found is None:
                raise ValueError('%s is not defined anywhere' % quoted(m.group()))
            return self.interpolated(found[0], section, name, again, depth + 1)
        return re.sub(r'%%|%\(([^()]+)\)s', filled, text)

    def tagged(self, text):
        """`text` with each <name> filled in that an option, or section/option, is named like."""
        for _ in range(64):
            if len(text) > 1 << 18:
                break
            before, text = text, re.sub(r'<([^\s<>]+)>', self.tag, text)
            if text == before:
                return text
        raise ValueError('a <tag> stands in itself')

    def tag(self, m):
        name = m.group(1)
        if name == name.upper() and name in TAGS:
            return m.group()
        at, _, option = name.rpartition('/')
        if not at:
            found = self.given(name.lower() if name.lower() in self.params else name)
        elif at == 'known':
            row = self.last('Init', option) or self.last('Definition', option)
            found = row and (row[0], 'Definition')
        else:
            row = self.last(at,
                            option) or self.sections.get(at) is not None and self.last(
                                'DEFAULT', option)
            found = row and (row[0], at)
        if found:
            text = self.interpolated(found[0], found[1], name)
        else:
            text = ''
        if m.group() in text:
            raise ValueError('a <tag> stands in itself')
        if found:
            return text
        return m.group()


# regexes
def compile_line(text, multiline=False):
    """The compiled form of a regex in fail2ban's language, for one line (text); ValueError says
    what is wrong."""
    opened, skips = set(), []
    if len(re.findall('<(?:HOST|ADDR)>', text)) > 1:
        raise ValueError('%s has more than one <HOST>' % quoted(text))

    def replace(m):
        closing, name = m.group(1), m.group(2)
        if not closing and name == 'SKIPLINES':
            skips.append(name)
            return r'\n(?P<skiplines%d>(?:(?:.*\n)*?))' % (len(skips) - 1)
        if not closing and name in TAGS:
            return TAGS[name]
        field = re.match(r'F-([A-Z0-9_]+)$', name)
        if field is None or closing and name not in opened:
            return m.group()
        opened.add(name)
        if closing:
            return ')'
        return '(?P<%s>' % TAG_NAMES.get(field.group(1), field.group(1).lower())
    regex = re.sub(r'<(/?)([\w-]+/?)>', replace, text)
    regex = re.sub(r'(?<!\\)\((?:\?:)?(\(\?[a-z]+)\)', r'\1:', regex)      # ((?i)x) is (?i:x) today
    return compile_regex(regex, re.M if multiline else 0, text)


def compile_regex(regex, flags, text):
    """A regex, ready; ValueError names `text`, which is how its author wrote it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return re.compile(regex, flags)
    except (re.error, OverflowError, RecursionError) as e:
        raise ValueError('%s is not a regex: %s' % (quoted(text), getattr(e, 'msg', e))) from None


def reject_unfilled_tag(text):
    """ValueError if a line of a failregex is a <tag> that nothing was filled in for: a mode, most
    likely."""
    m = re.fullmatch(r'\s*<([\w.?/-]+)>\s*', text)
    if m and m.group(1) not in TAGS:
        name, _, mode = m.group(1).partition('-')
        raise ValueError('there is no %s%s'
                         % (quoted(m.group(1)), ' (%s is not a mode of it)' % quoted(mode) if mode
                            else ''))


def native_row(text, n):
    """A line of a failregex of our own kind as a part of one large regex over a block (text): its
    groups get names of their own, an address is simple text, and nothing matches a line's end."""
    reject_unfilled_tag(text)
    if not text.startswith('^'):
        raise ValueError('%s: with `program`, a regex begins with ^' % quoted(text))
    hosts = len(re.findall('<(?:HOST|ADDR)>', text))
    unknown = re.search('</?(?!(?:/?F-(?:%s))>)[A-Z][A-Z0-9_/-]*>' % '|'.join(OWN_FIELDS),
                        re.sub('<(?:HOST|ADDR)>', '', text))
    if hosts > 1 or unknown:
        if hosts > 1:
            limit = 'there is one <HOST> at most'
        else:
            limit = 'there is no ' + unknown.group()
        raise ValueError('%s: with `program`, %s' % (quoted(text), limit))
    if re.search(r'(?<!\\)(?:\\\\)*\\[1-9]', text):
        raise ValueError('%s: with `program`, there is no \\1 (but (?P<name>...) and (?P=name))'
                         % quoted(text))
    if any(inside and piece in ('\\D', '\\W') for piece, inside in regex_pieces(text)):
        raise ValueError('%s: with `program`, there is no \\D or \\W in [...]' % quoted(text))
    body = re.sub('<(?:HOST|ADDR)>', r'\\[?(?P<ip%d>[\\w.:%%-]{1,255})\\]?' % n, text[1:])
    body = re.sub('<(/?)F-([A-Z]+)>', lambda m: ')' if m.group(1) else (
        '(?P<%s%d>' % (m.group(2).lower(), n)
        if m.group(2) in ('USER', 'MLFID', 'DISTINCT', 'TIMES') else '(?:'), body)
    if re.search(r'(?<!\\)(?:\\\\)*\$$', body):
        body = body[:-1]
    else:
        body = body + '.*'
    return one_line(body) + '(?P<end%d>)' % n


def regex_pieces(regex):
    """Yields (text, is it inside of a class?) of a regex's smallest parts: 'a', '\\s', '[^', ']',
    '(', ')?'."""
    inside = False
    for m in re.finditer(r'\\.|\[\^?\]?|\)\?(?!\?)|.', regex, re.S):
        piece = m.group()
        yield piece, inside
        if inside:
            inside = piece != ']'
        else:
            inside = piece[0] == '['


def one_line(regex):
    """`regex` so that its classes do not match a newline."""
    return ''.join(piece + '\\n' if piece.startswith('[^') and not inside
                   else {False: '[ \\t]', True: ' \\t'}[inside] if piece == '\\s'
                   else '[^%s\\n]' % piece.lower() if piece in ('\\D', '\\W') and not inside
                   else piece
                   for piece, inside in regex_pieces(regex))


def without_groups(regex):
    """`regex` with each (x) as (?:x)."""
    found = list(regex_pieces(regex))
    return ''.join('(?:' if piece == '(' and not inside and found[n + 1:n + 2] != [('?', False)]
                   else piece
                   for n, (piece, inside) in enumerate(found))


def optional_groups_as_branches(regex):
    """`regex` with each (x)? as ((x)|), which means the same to Python and costs it far less."""
    out, opened = [], []
    for piece, inside in regex_pieces(regex):
        if not inside and piece == '(':
            opened.append(len(out))
        elif not inside and piece[0] == ')':
            start = opened.pop()
            if piece == ')?':
                plain = out[start + 1:start + 3] == ['?', ':']
                if plain:
                    out[start:start], piece = ([], '|)')
                else:
                    out[start:start], piece = (['(?:'], ')|)')
        out.append(piece)
    return ''.join(out)


def best_literals(regex):
    """A set of texts (bytes), one of which at least stands in whatever matches a compiled regex;
    None if there is none worth looking for. Longer and fewer is better."""
    return most_telling(required_literals(regex.pattern, regex.flags))


def required_literals(pattern, flags):
    """All such sets that a regex with these flags has, small ones first."""
    if flags & re.I:
        return []
    if isinstance(pattern, bytes):
        coding = 'latin-1'
    else:
        coding = 'utf-8'
    sets = literal_sets(parsed(pattern, flags & re.M), coding)
    return sorted((found for found in sets if found and min(map(len, found)) > 2), key=len)


def parsed(pattern, flags=0):
    """What Python's own parser makes of a regex: pairs (operation, argument)."""
    try:
        from re import _parser as parser           # since Python 3.11
    except ImportError:
        import sre_parse as parser
    return parser.parse(pattern, flags)


def most_telling(sets):
    """The most telling of some sets of texts."""
    sets = [found for found in sets if found and min(map(len, found)) > 2]
    return max(sets,
               key=lambda found: (min(10, min(map(len, found))) - len(found), min(map(len, found))),
               default=None)


def literal_sets(parts, coding='utf-8'):
    """Yields for each part of a parsed regex that must be there the set of texts that may stand for
    it."""
    run = b''
    for op, arg in list(parts) + [('END', None)]:
        name = str(op)
        if name == 'LITERAL':
            run += chr(arg).encode(coding)
            continue
        if name not in ('AT', 'ASSERT_NOT'):
            # a date may have stood between two that are no letters, and been cut out
            for piece in re.split(br'(?<=[^\w\x80-\xff])(?=[^\w\x80-\xff])', run):
                yield {piece}
            run = b''
        if name == 'SUBPATTERN' and not arg[1] & re.I:
            yield from literal_sets(arg[-1], coding)
        elif name == 'ATOMIC_GROUP':
            yield from literal_sets(arg, coding)
        elif name in ('MAX_REPEAT', 'MIN_REPEAT', 'POSSESSIVE_REPEAT') and arg[0]:
            yield from literal_sets(arg[2], coding)
        elif name == 'BRANCH':
            ways = [most_telling(literal_sets(way, coding)) for way in arg[1]]
            if all(ways):
                yield set().union(*ways)


def only_literal(texts):
    """The one text (str) of a set that has no other; else '', which stands in everything."""
    if texts and len(texts) == 1:
        return min(texts).decode('utf-8')
    return ''


def with_lines(block, texts):
    """(start, end) of the lines of a block in which one of these texts stands, in order; all for
    None."""
    if texts is None:
        return [m.span() for m in re.finditer(b'[^\n]+', block)]
    found = {}
    for text in texts:
        at = block.find(text)
        while at >= 0:
            end = block.find(b'\n', at)
            found[block.rfind(b'\n', 0, at) + 1] = end
            at = block.find(text, end)
    return sorted(found.items())


@functools.lru_cache(maxsize=2048)
def captured_address(text):
    """The address in `text` (bytes) as text, '' for a name, None for what looks like an address but
    is none."""
    try:
        if IPV4_RAW.fullmatch(text):
            return text.decode()
        return address(text.decode())
    except ValueError:
        if re.match(br'[\d.]+$|.*:', text):
            return None
        return ''


@functools.lru_cache(maxsize=1024)
def as_text(raw):
    """The text of bytes of a log that are kept, such as a user's name: at most MOST_TEXT."""
    return raw[:MOST_TEXT].decode('utf-8', 'backslashreplace')


def unescaped(name):
    """A name (bytes) as PAM writes it, too: sshd doubles backslashes, and writes \\303 for what is
    not ASCII. (What moves a cursor stays escaped.)"""
    return re.sub(br'\\(\\|[23][0-7]{2})', lambda m: (
        b'\\' if m.group(1) == b'\\' else bytes([int(m.group(1), 8)])), name)


CUT_OFF = 'a log daemon may have cut it'
new_tuple = tuple.__new__  # a namedtuple's own __new__ takes four times as long


class Guarded:
    """Runs regexes that are not built in under a watchdog. Where they take too long again and
    again, lines as long as those, or nearly, rest for a minute: who sends such hides no others."""

    def __init__(self, guard, what):
        self.guard, self.what = guard, what
        self.runaways = []           # when one was aborted, lately
        self.rests = 0               # until when long lines are not looked at
        self.size = 0                # what counts as long
        self.last = 0                # when one was aborted last
        self.trouble = ''

    def __call__(self, now, size, search, *arguments):
        """What `search` returns for a line of so many characters; Runaway if that takes too long,
        or while such lines rest."""
        resting = self.rests - REST_SECONDS <= now < self.rests
        if resting and size >= self.size:
            raise Runaway
        try:
            return self.guard(search, *arguments)
        except Runaway:
            self.last, self.trouble = now, self.what
            slide(self.runaways, now, 1, REST_SECONDS, MOST_RUNAWAYS)
            if not resting:
                self.size = size if len(self.runaways) == 1 else min(size, self.size)
            if resting or len(self.runaways) == MOST_RUNAWAYS:
                # each time fewer are looked at, so that all of them together take no minute
                self.size = min(size, self.size) * 3 // 4
                self.rests = now + REST_SECONDS
                self.trouble += '; lines of over %d characters rest for a minute' % self.size
            raise

    def heal(self, now):
        """Ends its trouble if no regex has run away for CALM_SECONDS."""
        if now - self.last > CALM_SECONDS:
            self.trouble = ''


class Session:
    """What one connection has said: its address and user, lines of each kind, guesses counted."""
    __slots__ = ('born', 'ip', 'port', 'user', 'lines', 'counted', 'pending')

    def __init__(self, when):
        self.born = when
        self.ip = self.port = self.user = None
        self.lines = {}              # kind -> how many lines of it
        self.counted = 0             # guesses so far
        self.pending = 0             # of these, the ones that still wait for an address


@functools.lru_cache(maxsize=32)
def block_regex(tag, rest, texts, led, bare):
    """The BlockRegex of a filter's parts: what its tag matches, the rest of a line, (kind, regex as
    it is written) of each row; is the regex to begin with the tag; may a line lack it?"""
    if bare:
        whole = b'\n(?:' + HEAD + tag + INNER_DATE + b'|' + BARE + b')' + rest
    elif led:
        whole = tag + INNER_DATE + rest
    else:
        whole = b'\n' + HEAD + tag + INNER_DATE + rest
    regex = compile_regex(optional_groups_as_branches(whole.decode('latin-1')).encode('latin-1'),
                          re.M, 'what all of them make')
    at, rows, written = regex.groupindex.get, {}, {}
    for n, (kind, text) in enumerate(texts):
        ip, user, distinct, times, mlfid = (
            at('%s%d' % (name, n), 0) for name in ('ip', 'user', 'distinct', 'times', 'mlfid'))
        mlfid, verdict, special = mlfid or at('mlfid', 0), FAIL, None
        if '<F-NOFAIL>' in text:
            verdict = NOFAIL
        elif '<F-MLFGAINED>' in text:
            verdict = LOGIN
        elif '<F-CUT>' in text:
            verdict = CUT
        if distinct or times or mlfid:
            special = Special(distinct, times, mlfid)
        written[at('end%d' % n)] = text
        rows[at('end%d' % n)] = Row(kind, verdict, ip, user, '<F-CHILD>' in text, special)
    demands = required_literals(regex.pattern if bare else tag + rest, regex.flags)
    # a regex that begins with a text finds it faster than many others could be looked for
    if led and not bare:
        demands = [texts for texts in demands if len(texts) == 1]
    return BlockRegex(regex, rows, written, [sorted(texts) for texts in demands])


PORT_BEHIND = Regex(br'\]?(?::| port |, port=)(\d{1,5})\b')


def port_behind(block, at):
    """The port that stands in a line right behind the address that ends there; None without one."""
    m = at and PORT_BEHIND.match(block, at)
    return m and m.group(1).decode()


class Filter:
    """A filter of our own kind: `scan` turns a block into LogEvents, in two steps. `read` takes
    each line by itself, and remembers nothing; `hear` knows connections, and no regex. Where its
    regexes are not built in, it looks at one line at a time, under `guard`; at an ignoreregex
    always so.

    What is always true of connections: one is (host, pid), or what <F-MLFID> says; it has one
    address, once that is known, and ends after SESSION_SECONDS, with a login, or where its pid has
    another address. It has made as many guesses as it has lines of its most frequent kind
    (`counted`); those made before its address was known wait for that (`pending`). A child's line
    belongs to the latest connection of its address on the same host (`parents`) that has no line of
    its kind yet; else it is a connection of its own, whose guesses the next such connection there
    may claim, once, if they name the same user (`children`). A login takes back one guess of the
    same user: one that still waits, else one that only children's lines have told of."""
    keep_matches = False                  # does somebody want to know what the lines say?
    unpacks = True                        # does it want to see what docker has packed into JSON?

    def __init__(self, definition, failregex=(), ignoreregex=(), guard=unguarded):
        self.origin, self.definition = definition.origin, definition
        self.foreign = definition.foreign or bool(failregex) or not all(
            PLAIN_WORD.fullmatch(text) for text in definition.params.values())
        self.failing = Guarded(
            guard, 'a regex of %s takes too long for some lines, which are skipped' % self.origin)
        self.ignoring = Guarded(
            guard, 'an ignoreregex takes too long for some lines of %s, which count' % self.origin)
        self.meaning = definition.meaning(failregex, ignoreregex)
        program, prefregex = definition.get('program'), definition.get(
            'prefregex') or '^<F-CONTENT>.+</F-CONTENT>$'
        parts = re.match(r'\^(.*)<F-CONTENT>\.\+\??</F-CONTENT>(.*?)\$$', prefregex, re.S)
        if parts is None:
            raise definition.complaint('prefregex',
                                       'with `program`, it is ^...<F-CONTENT>.+</F-CONTENT>...$')
        before, after = (one_line(without_groups(re.sub(
            '<(/?)F-MLFID>', lambda m: ')' if m.group(1) else '(?P<mlfid>', part)))
            for part in parts.groups())
        for option, text in ('program', program), ('prefregex', before), ('prefregex', after):
            definition.told(option, compile_regex, text, 0, text)
        if failregex:
            kinds = [failregex]
        else:
            kinds = paragraphs(definition.get('failregex'))
        texts = [(kind, text) for kind, part in enumerate(kinds) for text in part]
        rows = [definition.told('failregex', native_row, text, n)
                for n, (_, text) in enumerate(texts)]
        self.ignore = [definition.told('ignoreregex', compile_line, text)
                       for text in ignoreregex or text_rows(definition.get('ignoreregex'))]
        # those that may run away
        self.guards = (self.failing, self.ignoring) if self.foreign or self.ignore else ()
        begin = '(?P<begin>)' if self.ignore else ''
        self.tag = TAG % one_line(without_groups(program)).encode()
        self.rest = ('%s%s(?:%s)%s' % (before, begin, '|'.join(rows), after)).encode() + br'\r?$'
        self.texts = texts           # (kind, regex as it is written)
        # may the regex begin with the tag, which C finds fast, and the head be read afterwards?
        self.tag_is_literal = [str(op) for op, _ in list(parsed(program))[:3]] == ['LITERAL'] * 3
        self.as_sshd = definition.get('escapes') == 'sshd'
        self.shortest_cut = SHORTEST_CUT
        if definition.get('address') == 'first':
            self.shortest_cut = PLAIN_LINE * 2
        self.heads = None
        self.forms = {}              # may a line lack the tag? -> its BlockRegex
        try:
            self.form(False)
        except (ValueError, IndexError):           # one of them is no regex: which?
            for _, text in texts:
                definition.told('failregex', compile_line, text)
            raise
        self.sessions = Recent(SESSIONS)           # (host, pid) -> Session
        self.parents = Recent(SESSIONS)            # ip -> identity of its latest session
        # ip -> {identity: Session} of those that may be a child of that
        self.children = Recent(SESSIONS)
        self.distinct = Recent(10 * SESSIONS)      # (ip, text) -> when it was seen last
        self.names = 0               # failures that named a host, not an address
        self.cut = 0                 # refusals whose address may have been cut off

    def form(self, bare):
        """The BlockRegex; with `bare` a line needs no tag."""
        if bare not in self.forms:
            try:
                self.forms[bare] = block_regex(self.tag, self.rest, tuple(self.texts),
                                               self.tag_is_literal, bare)
            except ValueError as e:
                raise ValueError('%s: %s' % (self.definition.name, e)) from None
        return self.forms[bare]

    def needle(self, bare):
        """A text (bytes) that stands in each line that matters, b'' if there is no such one."""
        single = [texts[0] for texts in self.form(bare).demands if len(texts) == 1]
        return max(single, key=len, default=b'')

    def scan(self, block, moment, bare=False, wall=0, explained=None):
        """Yields a LogEvent for each line of a tidy block that is a login, or tells of guesses that
        no line before it has told of. `moment` turns a line's date (seconds since 1970, None if it
        has none) into its time, or into None for a line too old to matter. `explained`, if it is a
        list, gets a position in each line that a regex matches."""
        said = self.read(block, bare, wall, explained)
        if not said:
            return ()
        return self.hear(said, moment, bare)

    def read(self, block, bare=False, wall=0, explained=None):
        """What the lines of a tidy block say, each by itself: tuples (number of its Row, less than
        0 where an ignoreregex matches; seconds since 1970 or None; host; pid; address, '' for a
        name, False where it may have been cut off, None where there is none; user; what a Special
        has; what a LogEvent tells, or the text in place of an address)."""
        regex, rows, _, demanded = self.forms.get(bare) or self.form(bare)
        said = []
        for texts in demanded:
            for text in texts:
                if text in block:
                    break
            else:
                return said
        today = int(wall) // 86400
        if self.heads is None or self.heads.calendar.today != today:
            self.heads = Heads(re.compile(self.tag), today)
        heads, led = self.heads, self.tag_is_literal and not bare
        begins, ends, width, cut, known_host = (
            heads.begins, heads.ends, heads.width, heads.cut, heads.host)
        pid_at, add, keep = regex.groupindex['pid'], said.append, self.keep_matches
        as_sshd, shortest = self.as_sshd, self.shortest_cut
        found = regex.finditer(block)
        if self.foreign:
            found = self.matches_in_lines(regex, block, demanded, led, wall)
        for m in found:
            n, at = m.lastindex, m.start()
            _, verdict, ip_at, user_at, _, special = rows[n]
            if led:
                try:
                    when = begins[block[at - width:at - cut]] + ends[block[at - cut:at]]
                    host = known_host
                except KeyError:
                    head = heads.read(block[block.rfind(b'\n', 0, at) + 1:at])
                    if head is None:
                        continue
                    when, host = head
                    begins, ends, width, cut, known_host = (
                        heads.begins, heads.ends, heads.width, heads.cut, heads.host)
            else:
                date, host = first_group(m, DATE_GROUPS if bare else HEAD_DATES), first_group(
                    m, HOST_GROUPS)
                heads.date = date
                when = date and heads.calendar.parse(date)
            if when is None:
                when = heads.inner(block, at, m.end())
            doubtful = m.end() - at >= shortest and verdict != LOGIN and may_be_cut(
                block[block.rfind(b'\n', 0, at + 1) + 1:m.end()])
            if verdict == CUT and not doubtful:
                continue
            if explained is not None:              # not what only says so in its message
                explained.append(at)
            ip = user = told = None
            if user_at:
                user = m[user_at]
                if as_sshd and user and b'\\' in user:
                    user = unescaped(user)
            if ip_at:
                ip = captured_address(m[ip_at])
                if not ip:
                    told = m[ip_at]
            if doubtful and (ip_at or verdict == CUT):
                ip = False
            if keep and told is None:
                line = block[block.rfind(b'\n', 0, at + 1) + 1:m.end()]
                told = line.strip().decode('utf-8', 'backslashreplace'), port_behind(
                    block, ip_at and m.end(ip_at))
            if special:
                special = [m[group] if group else None for group in special]
            if self.ignore and self.ignored(block, m, wall):
                n = -n
            add((n, when, host, m[pid_at], ip, user, special, told))
        return said

    def hear(self, said, moment, bare=False):
        """Yields the LogEvents that follow from what lines have said. (One long function, for it is
        called for each line of an attack.)"""
        rows, sessions, parents, children = (
            self.forms[bare].rows, self.sessions, self.parents, self.children)
        for n, when, host, pid, ip, user, special, told in said:
            when = moment(when)
            if when is None or n < 0:
                continue
            kind, verdict, ip_at, _, child, _ = rows[n]
            if not ip and (ip_at or ip is False):
                self.names += ip == '' and verdict == FAIL
                self.cut += ip is False
                continue
            new = 1 if verdict == FAIL else 0
            if special:
                pid, new = self.special(special, ip, when, pid, new)
            if pid is not None:
                identity = host, pid
                session = sessions.get(identity)
                if session is None or when - session.born > SESSION_SECONDS or (
                        ip and session.ip and ip != session.ip):
                    session = self.parent(host, ip, kind, when) if child else None
                    if session is None:
                        session = Session(when)
                        sessions.put(identity, session)
                if ip is None:
                    ip = session.ip
                else:
                    session.ip = ip
                if told is not None and told[1]:
                    session.port = told[1]
                known = session.user
                if user is None:
                    user = known
                else:
                    session.user = user
                if verdict == FAIL:
                    if child:
                        if ip and not session.lines:
                            self.wait(ip, identity, session)
                    elif ip in parents:
                        parents[ip] = identity
                    else:
                        parents.put(ip, identity)
                    lines = session.lines.get(kind, 0) + new
                    session.lines[kind] = lines
                    new = lines - session.counted
                    if new > 0:
                        session.counted = lines
                        if ip in children and not child:
                            new -= self.claim(session, new)
                        session.pending += new
                    elif not session.pending:      # most lines tell nothing new
                        continue
                told_late = ip is not None and session.pending
                new = 0
                if told_late:
                    new, session.pending = session.pending, 0
                    if verdict == LOGIN and known == user:     # one of its user's guesses was right
                        new -= 1
            if new > 0 and ip:
                name, says = as_text(user) if user and verdict == FAIL else None, told
                if told is not None:
                    fields = {'user': name, 'port': told[1] or pid is not None and session.port}
                    says = told[0], {key: value for key, value in fields.items() if value}
                yield new_tuple(LogEvent, (ip, name, new, False, when, says))
            if verdict == LOGIN:
                back = 0
                if pid is not None:
                    if not told_late:
                        back = self.taken_back(session, host, ip, known, user)
                    # what comes later under this pid is another connection
                    sessions.pop(identity, None)
                if ip and user:
                    says = told
                    if told is not None:
                        says = told[0], {'port': told[1]}
                    yield LogEvent(ip, as_text(user), back, True, when, says)

    def taken_back(self, session, host, ip, known, user):
        """1 if a login takes back a guess that PAM alone has told of, else 0: where it asks several
        modules, one refuses before another one lets in."""
        kinds = {row.kind for row in self.forms[False].rows.values() if row.child}
        if known in (None, user):
            failed = [n for kind, n in session.lines.items() if kind not in kinds]
            if session.counted > max(failed, default=0):
                return 1
        waiting = self.children.get(ip, {})
        for identity, child in waiting.items():
            if identity[0] == host and child.user in (None, user) and child.counted and (
                    child is not session):
                del waiting[identity]
                return 1
        return 0

    def matches_in_lines(self, regex, block, demanded, led, wall):
        """Yields what a regex that is not built in finds in a block, line by line."""
        for start, end in with_lines(block, most_telling(demanded)):
            try:
                m = self.failing(wall, end - start, regex.search, block,
                                 start if led else start - 1, end)
            except Runaway:
                continue
            if m:
                yield m

    def ignored(self, block, m, wall):
        """Does an ignoreregex match? One that takes too long does not: else a long name would hide
        a guess."""
        text = block[m.start('begin'):m.end()].decode('utf-8', 'backslashreplace')
        try:
            return self.ignoring(wall, len(text), matches_any, self.ignore, text)
        except Runaway:
            return False

    def parent(self, host, ip, kind, when):
        """The Session of this host that a child's line may belong to, None if there is none."""
        identity = self.parents.get(ip)
        if identity is None or identity[0] != host:
            return None
        session = self.sessions.get(identity)
        if session and kind not in session.lines and when - session.born <= SESSION_SECONDS:
            return session
        return None

    def wait(self, ip, identity, session):
        """Notes a session that may be a child of one that has not spoken yet."""
        waiting = self.children.get(ip)
        if waiting is None:
            self.children.put(ip, {identity: session})
            return
        waiting.pop(identity, None)
        waiting[identity] = session
        if len(waiting) > CHILDREN:
            del waiting[next(iter(waiting))]

    def claim(self, session, most):
        """How many of a connection's `most` new guesses its children have told already."""
        waiting, found = self.children[session.ip], 0
        for identity, child in list(waiting.items()):
            if found == most:
                break
            if child is not session and (child.user not in (None, session.user)
                                         or identity[0] != self.parents[session.ip][0]):
                continue  # it asked for another user's password, or elsewhere
            del waiting[identity]
            if (child is not session and child.ip == session.ip and len(child.lines) == 1
                    and session.born - child.born <= SESSION_SECONDS):
                (kind, n), = child.lines.items()
                told = min(n, most - found)
                session.lines[kind] = session.lines.get(kind, 0) + told
                child.lines, child.counted = {}, 0
                found += told
        if not waiting:
            del self.children[session.ip]
        return found

    def special(self, special, ip, when, pid, new):
        """(connection, guesses) of a line that names its own."""
        distinct, times, mlfid = special
        if distinct is not None:
            seen = self.distinct.get((ip, distinct[:64]))
            self.distinct.put((ip, distinct[:64]), when)
            if seen is not None and when - seen <= SESSION_SECONDS:
                new = 0
        if times:
            new *= min(int(times[:9]), MOST_TIMES)
        return mlfid or pid, new

    def examine(self, block, wall):
        """(Look or None, failures it counts) of the next line, as a tidy block (of several if it is
        one that came again), for `test`."""
        if b'\n{"log":"' in block:
            block = out_of_containers(block)
        said = self.read(block, True, wall)
        if not said:
            return None, 0
        n, when, _, _, ip, user, _, told = said[0]
        _, rows, texts, _ = self.form(True)
        verdict, why = rows[abs(n)].verdict, ''
        events = [event for event in self.hear(said, lambda date: when or 0.0, True)
                  if not event.login]
        if events:
            ip, user, verdict = events[-1].ip, events[-1].user, FAIL
        else:
            user = user and as_text(user)
            if n < 0:
                verdict, why = None, 'an ignoreregex matches'
            elif ip is False:
                verdict, why = None, CUT_OFF
            elif rows[n].ip and not ip:
                verdict, why = None, 'it names no address'
            elif verdict == FAIL and not ip:
                verdict, why = None, 'its address is not known yet'
            elif verdict == FAIL:
                why = 'it tells of a guess that a line before has told of'
        name = ip
        if not ip:
            name = None
            if type(told) is bytes:
                name = as_text(told)
        return (Look(verdict, texts[abs(n)], ip or None, name, user, when, {}, why),
                sum(event.guesses for event in events))


def matches_any(regexes, text):
    """True if one of these regexes stands in a text."""
    return any(regex.search(text) for regex in regexes)


ENGINES = {}                         # 'lines' -> the class of filters in fail2ban's own manner


def line_engine(*words):
    """A filter in fail2ban's own manner; ValueError if this program has none."""
    if 'lines' not in ENGINES:
        raise ValueError('only filters with `program` can be used')
    return ENGINES['lines'](*words)


class History:
    """The filter `recidive`: it reads no log, but is told of the bans of other jails."""
    guards, names, cut, keep_matches, unpacks = (), 0, 0, False, False

    def __init__(self, definition):
        self.origin = definition.origin
        self.meaning = definition.meaning((), ())

    def needle(self, bare):
        return b''

    def scan(self, block, moment, bare=False, wall=0, explained=None):
        return ()


def load_filter(spec, params=None, read=no_files, directories=FILTER_DIRECTORIES, guard=unguarded,
                failregex=(), ignoreregex=()):
    """A new filter: of ours, or a file's. `spec` is 'NAME' or 'NAME[option=value]'; `read(path)` is
    a file's text or None. ValueError says what is wrong with it, and where."""
    name, given = filter_spec(spec)
    definition = Definition(name, dict(params or {}, **given))
    try:
        definition.load(directories, read)
    except LookupError:
        if '/' in name:
            raise ValueError('%s: cannot be read' % printable(name)) from None
        names = [each for each in sorted(FILTERS) if not each.startswith('common')]
        hint = choose_from(name.lower(), names, SECTIONS)
        raise ValueError('no filter is called %s (%s)' % (quoted(name), hint)) from None
    if definition.given('history') is not None:
        return History(definition)
    if any('program' in options for options in definition.sections.values()):
        return Filter(definition, failregex, ignoreregex, guard)
    if 'program' in definition.params:
        raise ValueError('program: the filter %s has no tag of its own' % printable(name))
    return line_engine(definition, failregex, ignoreregex, guard)


def check_own(failregex):
    """ValueError if a regex of the conf has what only a file may have."""
    for text in failregex:
        if re.search(r'%\(\S+\)s', text):
            raise ValueError('%s has %%(...)s, which only a file of filter.d may have'
                             % quoted(text))


def own_filter(params, failregex, ignoreregex=(), guard=unguarded):
    """The filter of a jail that has regexes of its own and no `filter`."""
    if 'program' in params:
        raise ValueError('program: has no meaning without a `filter`')
    check_own(failregex)
    for text in failregex:
        unknown = re.search(r'</?(?!F-|SKIPLINES>|%s)[A-Z][A-Z0-9_-]*>'
                            % '|'.join(name + '>' for name in TAGS), text)
        if unknown:
            raise ValueError('%s has a tag that is not known: %s' % (quoted(text), unknown.group()))
    return line_engine(Definition('failregex', params, 'conf'), failregex, ignoreregex, guard)


# ---- Judge ---------------------------------------------------------------------------------
# Owns: recent failures, tickets, history, who has logged in. Turns log events into bans; the daemon
# and a replay both use it whole. Always true: what overlaps an exempt range is never banned,
# whatever the log says; one ticket per (jail, network); no dict grows beyond its limit.

class Fails:
    """Failures per (jail, network), in a sliding window. Each list is sorted, holds maxretry
    moments at most, and nothing in it is older than findtime before its newest."""

    def __init__(self, limit):
        # (jail, network) -> moments, oldest first; least recently seen first
        self.recent = Recent(limit)

    def add(self, key, when, guesses, findtime, maxretry):
        """How many failures lie within `findtime`, after `guesses` more at `when`."""
        seen = self.recent.get(key)
        if seen is None:
            seen = [when] * min(guesses, maxretry)
        else:
            slide(seen, when, guesses, findtime, maxretry)
        self.recent.put(key, seen)
        return len(seen)

    def take_back(self, key, guesses):
        """Forgets the latest failures."""
        seen = self.recent.get(key, [])
        del seen[-guesses:]
        if not seen:
            self.recent.pop(key, None)

    def put(self, key, seen):
        """Takes in a restored list of moments, oldest first."""
        if seen and len(self.recent) < self.recent.limit:
            self.recent[key] = seen

    def purge(self, now, findtimes):
        """Drops what is older than its jail's findtime (name -> seconds), and jails not named
        there."""
        for key in [key for key, seen in self.recent.items()
                    if key[0] not in findtimes or seen[-1] <= now - findtimes[key[0]]]:
            del self.recent[key]


def ban_length(options, bans, chance):
    """Seconds of the next ban after `bans` earlier ones (fail2ban's bantime.* rules); `chance` is
    a random number from 0 to 1. The cap is applied last: no ban is longer than bantime.maxtime."""
    seconds = options['bantime']
    if seconds == FOREVER:
        return FOREVER
    if options['bantime.increment']:
        steps = options['bantime.multipliers']
        if steps:
            times = steps[min(bans, len(steps) - 1)]
        else:
            times = 1 << min(bans, 20)
        seconds = max(seconds, seconds * options['bantime.factor'] * times)
    seconds += chance * options['bantime.rndtime']
    return min(seconds, options['bantime.maxtime'])


class Bans:
    """Who is banned until when, and how often before."""

    def __init__(self, limit):
        self.limit = limit
        # (jail, network) -> Ticket; who has been silent longest stands first
        self.tickets = {}
        # (jail, network) -> (bans so far, end of the last), oldest first
        self.history = Recent(limit)
        # name of a list's jail -> {network: Listed}: no tickets, for they have no history, and
        # somebody else keeps them
        self.lists = {}
        self.ends = []               # heap of (until, key); rows that no longer hold are skipped
        self.dropped = 0             # bans that `limit` has cost
        # (jail, a network around, is it of /56?) -> how many banned ones lie in it
        self.crowds = collections.Counter()
        self.crowded4 = ()           # jails that widen bans of IPv4, too

    def earlier(self, jail, network, jails=None):
        """How many bans the network has behind it, in `jail` or in all `jails`."""
        return sum(self.history.get((name, network), (0, 0))[0] for name in jails or [jail])

    def add(self, jail, network, now, seconds, failures):
        """The Ticket of a new ban, or of the running one with its new end."""
        key = jail, network
        if seconds == FOREVER:
            until = None
        else:
            until = now + seconds
        ticket = self.tickets.get(key)
        if ticket is None:
            ticket = Ticket(jail, network, now, until, self.earlier(jail, network) + 1, failures)
        ticket.until = until
        self.put(ticket, now)
        return ticket

    def put(self, ticket, now):
        """Takes in a ticket, new or restored."""
        if not self.tickets.pop(ticket.key, None):
            self.count_crowd(ticket, 1)
        self.tickets[ticket.key] = ticket
        if ticket.until is not None:
            heapq.heappush(self.ends, (ticket.until, ticket.key))
            if len(self.ends) > 2 * len(self.tickets) + 64:
                self.ends = [(t.until, t.key) for t in self.tickets.values() if t.until is not None]
                heapq.heapify(self.ends)
        last = now if ticket.until is None else ticket.until
        self.history.put(ticket.key, (ticket.count, last))

    def heard(self, key):
        """The ticket of somebody who has tried again although he is banned."""
        ticket = self.tickets[key] = self.tickets.pop(key)
        return ticket

    def remove(self, key):
        ticket = self.tickets.pop(key, None)
        if ticket:
            self.count_crowd(ticket, -1)
        return ticket

    def count_crowd(self, ticket, n):
        """Counts a ticket of IPv6 for the networks around it (those of IPv4 too, in a jail that
        widens them)."""
        if ':' in ticket.network or ticket.jail in self.crowded4:
            for wide in wider_networks(ticket.network):
                key = ticket.jail, wide, ticket.network.endswith('/56')
                self.crowds[key] += n
                if not self.crowds[key]:
                    del self.crowds[key]

    def next_end(self):
        """The ticket that ends first, None if none ever does."""
        while self.ends:
            until, key = self.ends[0]
            ticket = self.tickets.get(key)
            if ticket is not None and ticket.until == until:
                return ticket
            heapq.heappop(self.ends)
        return None

    def purge(self, now, age):
        """Forgets history whose last ban ended more than `age` ago and is not running."""
        for key in [key for key, (_, last) in self.history.items()
                    if last < now - age and key not in self.tickets]:
            del self.history[key]


# Of the log, for the commands of an action: lines of an address, bytes of a line, characters of a
# field, addresses.
MATCH_LINES, MATCH_BYTES, MATCH_FIELD, MOST_MATCHES = 10, 1000, 256, 300


class Jail:
    """A filter, its limits, what it ignores, and who has logged in."""

    def __init__(self, name, options, filter=None):
        self.name = name
        self.options = options
        self.filter = filter         # None: bans by hand only
        self.exempt, self.exempt_ranges = (), merge_ranges(())
        self.known_keys = Recent(2048)             # address -> what `key_of` says of it
        self.logins = Recent(1000)   # (ip, user) -> until when their failures are forgiven
        # key -> (lines, fields) of its failures, if an action wants them
        self.matches = Recent(MOST_MATCHES)
        if filter and options['action']:
            filter.keep_matches = True
        self.failures = self.banned = self.ignored = self.taken_back = 0   # since the start
        # is its log no text of strangers', as far as is known?
        self.believed = bool(options['ignorelogin']) and not any(
            spec.startswith('udp:') for spec in options['source'])

    def protect(self, machine, files):
        """Sets what is never banned: ignoreip (`files` is what `listed_networks` wants), and with
        ignoreself these Exempts of the machine. True if that is new."""
        exempt = never_banned()
        for word in self.options['ignoreip']:
            why = 'ignoreip'
            if HOST_NAME.fullmatch(word):
                why += ', ' + word
            exempt += tuple(make_exempt(net, why) for net in listed_networks(word, files))
        if self.options['ignoreself']:
            exempt = tuple(machine) + exempt
        changed = exempt != self.exempt
        if changed:
            self.exempt, self.exempt_ranges = exempt, merge_ranges(exempt)
            self.known_keys.clear()
        return changed

    def refusal(self, network):
        """Why an address or network must not be banned; '' if it may be."""
        return exempt_reason(network, self.exempt_ranges)

    def key_of(self, ip):
        """(why the address is never banned or '', key it is counted and banned by): the address
        itself where its network holds an exempt one."""
        net = ip
        if ':' in ip or self.options['ipv4prefix'] != 32:
            net = network_of(ip, self.options['ipv4prefix'],
                             customer_prefix(ip, self.options['ipv6prefix']))
            if net != ip and self.refusal(net):
                net = ip
        known = self.refusal(ip), (self.name, net)
        self.known_keys.put(ip, known)
        return known

    def forgives(self, event):
        """True for a single failure of somebody who has logged in from there lately."""
        until = self.logins.get((event.ip, event.user), event.when)
        return event.guesses == 1 and until > event.when

    def note_match(self, key, told, n):
        """Keeps the lines that told of the last `n` failures of an address, and the latest
        fields."""
        rows, fields = self.matches.get(key, ((), {}))
        line, found = told
        fields = dict(fields, **{name: value[:MATCH_FIELD] for name, value in found.items()})
        # as bytes, for one rare letter makes each letter of a text take four
        rows = (rows + (line.encode()[:MATCH_BYTES],))[-min(n, MATCH_LINES):]
        self.matches.put(key, (rows, fields))

    def note_login(self, event):
        """Remembers a login: it had fewer than maxretry failures before it."""
        self.logins.put((event.ip, event.user), event.when + self.options['ignorelogin'])


def listed_networks(word, files):
    """The networks that a word of ignoreip or banip means; `files` is path -> those in a list,
    and host name -> addresses."""
    if word.startswith(LISTED):
        return files.get(word[len(LISTED):], ())
    if HOST_NAME.fullmatch(word):
        return files.get(word, ())
    return [word]


class Jails:
    """The jails of one configuration, and who listens to what."""

    def __init__(self, config, read=no_files, guard=unguarded):
        self.problems = []
        self.listening = {}          # source -> jails
        # source -> its last line, which `last message repeated` may mean
        self.before = {}
        self.hooks = config['chain']
        self.by_name = {MANUAL: Jail(MANUAL, config.options(MANUAL))}
        for name in config.jails():
            options = config.options(name)
            try:
                made = jail_filter(name, options, config.name, read, guard)
                self.by_name[name] = Jail(name, options, made)
            except ValueError as e:
                self.problems.append('%s: [%s]: %s' % (config.where(name), name, e))
        # name of a list's jail -> the words of its banip
        self.lists = {}
        if config.get('DEFAULT', 'banip'):
            self.lists[LIST] = config.get('DEFAULT', 'banip')
            self.by_name[LIST] = Jail(LIST, config.options(LIST))
        for jail in self.watching():
            if 'banip' in config.settings.get(jail.name, ()):
                self.lists['%s-%s' % (LIST, jail.name)] = jail.options['banip']
        for name in self.lists.keys() - {LIST}:
            self.by_name[name] = Jail(name, self.by_name[name[len(LIST) + 1:]].options)
        if config.get(HUB, 'url'):
            options = dict(config.options(LIST), **config.options(HUB))
            self.by_name[HUB] = Jail(HUB, dict(options, action=[]))
        self.everywhere = config['source']
        self.sources = list(self.everywhere)
        for jail in self.watching():
            self.sources += jail.options['source']
        self.sources = list(dict.fromkeys(self.sources))
        if any(spec.startswith('udp:') for spec in self.everywhere):
            for jail in self.by_name.values():
                jail.believed = jail.believed and bool(jail.options['source'])
        self.find_guards()

    def find_guards(self):
        """Lists the Guardeds of the filters, each with the name of its jail."""
        self.guards = [(jail.name, guard) for jail in self.watching() for guard in
                       jail.filter.guards]

    def watching(self):
        """The jails that have a filter."""
        return [jail for jail in self.by_name.values() if jail.filter]

    def adopt(self, old):
        """Takes over what the jails of an earlier configuration know, and filters that mean the
        same; call before the first line."""
        for name, jail in self.by_name.items():
            before = old.by_name.get(name)
            if before:
                for what in ('logins', 'failures', 'taken_back', 'banned', 'ignored', 'matches'):
                    setattr(jail, what, getattr(before, what))
                if jail.filter and before.filter and jail.filter.meaning == before.filter.meaning:
                    before.filter.keep_matches = jail.filter.keep_matches
                    jail.filter = before.filter                # with all that it knows
        self.find_guards()

    def crowded4(self):
        """Names of the jails that widen bans of IPv4."""
        return {name for name, jail in self.by_name.items() if jail.options['widen4']}

    def files(self):
        """Paths of the lists that ignoreip and banip name."""
        words = set(itertools.chain(*self.lists.values()))
        words.update(*(jail.options['ignoreip'] for jail in self.by_name.values()))
        return sorted(word[len(LISTED):] for word in words if word.startswith(LISTED))

    def names(self):
        """The host names in ignoreip."""
        words = itertools.chain(*(jail.options['ignoreip'] for jail in self.by_name.values()))
        return sorted({word for word in words if HOST_NAME.fullmatch(word)})

    def protect(self, machine, files):
        """True if something is new for one of them."""
        return any([jail.protect(machine, files) for jail in self.by_name.values()])

    def listeners(self, source):
        """[(jail, may a line lack its tag?, a text that each of its lines holds)] of those that
        listen to `source`; for None all, as in a replay."""
        if source not in self.listening:
            rows = self.listening[source] = []
            for jail in self.watching():
                if source is None or source in (jail.options['source'] or self.everywhere):
                    bare = bool(jail.options['source'])
                    rows.append((jail, bare, jail.filter.needle(bare)))
        return self.listening[source]

    def tidied(self, source, block):
        """A block of whole lines as `scan_tidy` wants it."""
        last = self.before.get(source, b'')
        block = tidy(block, last)
        self.before[source] = block[block.rfind(b'\n', 0, -1) + 1:-1] or last
        return block

    def scan(self, source, block, moment, wall=0):
        """Yields (jail, LogEvent) for a block of whole lines; `moment` turns a line's date (seconds
        since 1970, or None) into its time, or into None for a line too old to matter."""
        if self.listeners(source) and block:
            yield from self.scan_tidy(source, self.tidied(source, block), moment, wall)

    def scan_tidy(self, source, block, moment, wall=0, explained=None):
        """The same for a tidy block; the list `explained` gets a position in each line that a
        filter knows. Anybody may send datagrams in another's name: a login that comes so forgives
        nobody."""
        forged = source is not None and source.startswith('udp:')
        for jail, bare, needle in self.listeners(source):
            seen, there = block, explained
            if bare and jail.filter.unpacks and b'\n{"log":"' in block:
                seen, there = out_of_containers(block), []
            if needle in seen:
                for event in jail.filter.scan(seen, moment, bare, wall, there):
                    if not (forged and event.login):
                        yield jail, event
            if there is not explained and explained is not None:
                explained += same_lines(there, seen, block)


def same_lines(positions, block, other):
    """Where the lines in which these positions of a block lie begin in another one, which has as
    many lines."""
    starts = [m.end() for m in re.finditer(b'\n', other)]
    return [starts[max(0, block.count(b'\n', 0, at + 1) - 1)] for at in positions]


def jail_filter(name, options, conf, read, guard):
    """The filter that a jail's options ask for; ValueError says what is wrong with it. A path is
    meant from where the conf lies."""
    own, ignore, spec = options['failregex'], options['ignoreregex'], options['filter'] or name
    params = {}
    for key in ('program', 'mode', 'prefregex', 'maxlines', 'datepattern'):
        if options[key]:
            params[key] = str(options[key])
    check_own(own)
    if options['filter'] == 'none':
        return None
    if own and not options['filter']:
        return own_filter(params, own, ignore, guard)
    if '/' in spec.partition('[')[0] and not spec.startswith('/'):
        if not conf_directory(conf):
            raise ValueError('filter: %s is not an absolute path' % quoted(spec))
        spec = os.path.join(conf_directory(conf), spec)
    return load_filter(spec, params, read, filter_directories(conf), guard, own, ignore)


def as_wide(one, other, hooks):
    """True if bans of a jail with the options `one` stop all that those of `other` do, where these
    hooks are."""
    if other['forward'] and not one['forward'] and 'FORWARD' in hooks:
        return False
    if not (one['port'] and other['port']):
        return not one['port']
    if not set(other['protocol']) <= set(one['protocol']):
        return False
    wide = port_spans(one['port'])
    return all(any(first <= start and end <= last for first, last in wide)
               for start, end in port_spans(other['port']))


def port_spans(ports):
    """[(first, last), ...] of '22,8000:8080'."""
    return [(int(part.partition(':')[0]), int(part.rpartition(':')[2]))
            for part in ports.split(',')]


UNDER_WAY = 10                       # seconds after a ban in which older lines may come
# What has become of a log event, for those who are told.
LOGGED_IN, IGNORED, FAILED = 'login', 'ignored', 'failure'


class Judge:
    """The one ban policy: log events go in, BanOrders come out."""

    def __init__(self, jails, maxtracked, maxbans, chance):
        self.jails = jails
        self.fails, self.bans = Fails(maxtracked), Bans(maxbans)
        self.chance = chance         # () -> a random number from 0 to 1
        self.accounts = set()        # names that exist on this machine
        self.targets = Recent(20)    # such a name -> {network: its last two failures}
        self.sieges = Recent(20)     # ... that is under siege -> until when
        self.homes = Recent(200)     # (user, network) -> when he logged in from there last
        # functions of (outcome, jail name, network, LogEvent, why exempt or '')
        self.told = ()

    def weigh(self, jail, event):
        """The BanOrder that an event completes, else None."""
        refusal, key = jail.known_keys.get(event.ip) or jail.key_of(event.ip)
        if event.login:
            outcome = LOGGED_IN
        elif refusal or jail.logins and jail.forgives(event):
            outcome = IGNORED
        else:
            outcome = FAILED
        for tell in self.told:
            tell(outcome, jail.name, key[1], event, refusal)
        if outcome == FAILED:
            jail.failures += event.guesses
            return self.count(jail, key, event)
        if outcome == IGNORED:
            jail.ignored += event.guesses
        else:
            if event.guesses:
                jail.failures -= event.guesses
                jail.taken_back += event.guesses
                self.fails.take_back(key, event.guesses)
            if jail.options['ignorelogin'] and key not in self.bans.tickets:
                jail.note_login(event)
                self.homes.put((event.user, key[1]), event.when)
        return None

    def count(self, jail, key, event):
        """The same for a failure that counts."""
        options = jail.options
        if key not in self.bans.tickets and ':' in key[1]:
            for wide in wider_networks(key[1]):
                if (jail.name, wide) in self.bans.tickets:
                    key = jail.name, wide
        if key in self.bans.tickets:
            ticket = self.bans.heard(key)
            if event.when > ticket.since + UNDER_WAY:
                ticket.ignored += event.guesses
            if not options['bantime.extend'] or ticket.until is None:
                return None
            return self.longer(ticket, options, event)
        n = self.fails.add(key, event.when, event.guesses, options['findtime'], options['maxretry'])
        if event.told:
            jail.note_match(key, event.told, n)
        if event.user in self.accounts and self.besieged(jail, key[1], event):
            n = max(n, 2)
        elif n < options['maxretry']:
            return None
        if options['bantime.overalljails']:
            everywhere = self.jails.by_name
        else:
            everywhere = None
        seconds = ban_length(options, self.bans.earlier(jail.name, key[1], everywhere),
                             self.chance())
        return BanOrder(key[1], max(n, event.guesses), seconds, jail.matches.pop(key, None))

    def besieged(self, jail, net, event):
        """Is this the second failure of a network within a day, of an account under siege? Logs
        that can be forged neither start a siege nor feel it, else they would shut out others; nor
        do networks from which that user has logged in within a month."""
        most, user, when = jail.options['maxnetworks'], event.user, event.when
        if not (most and jail.believed):
            return False
        if when - self.homes.get((user, net), float('-inf')) < 30 * DAY:
            return False
        networks = self.targets.get(user)
        if networks is None:
            networks = Recent(1000)
        self.targets.put(user, networks)
        seen = [moment for moment in networks.get(net, ()) if moment > when - DAY]
        networks.put(net, (seen + [when] * min(2, event.guesses))[-2:])
        since, lately = when - 6 * jail.options['findtime'], 0
        for moments in reversed(list(networks.values())):      # the latest are the last
            if moments[-1] <= since or lately == most:
                break
            lately += 1
        if lately == most:
            self.sieges.put(user, when + DAY)
        return self.sieges.get(user, 0) > when and len(networks[net]) > 1

    @staticmethod
    def longer(ticket, options, event):
        """bantime.extend: each attempt during a ban makes it longer, up to bantime.maxtime."""
        extra = options['bantime.extend'] * event.guesses
        seconds = min(ticket.until - event.when + extra, options['bantime.maxtime'])
        return BanOrder(ticket.network, ticket.failures + event.guesses, seconds)

    def ban(self, jail, network, now, seconds, failures):
        """(Ticket, its end before: False if it is new) of a ban."""
        before = self.bans.tickets.get((jail.name, network))
        if before:
            end = before.until
        else:
            end = False
        self.fails.recent.pop((jail.name, network), None)
        ticket = self.bans.add(jail.name, network, now, seconds, failures)
        ticket.failures = max(ticket.failures, failures)
        if not before:
            jail.banned += 1
        return ticket, end

    def after_ban(self, jail, network, now):
        """Yields (jail, LogEvent) for the jails that count bans, after a new one. What is narrow
        since anybody can forge its lines (luci, kernel-scan) adds up to nothing wider: a ban counts
        only where it stops all that theirs would."""
        if jail.filter and not isinstance(jail.filter, History):
            for other in self.jails.by_name.values():
                if isinstance(other.filter, History) and as_wide(
                        jail.options, other.options, self.jails.hooks):
                    yield other, LogEvent(network, None, 1, False, now)

    def widening(self, jail, network, now):
        """(BanOrder for a network around one that was just banned, the Tickets that it makes
        needless) where too many others in it are banned; None if there is no such one."""
        if ':' in network:
            most = jail.options['widen']
        else:
            most = jail.options['widen4']
        for wide in wider_networks(network):
            few, many = (self.bans.crowds[jail.name, wide, of56] for of56 in (False, True))
            limit = most
            if wide.endswith('/48'):
                limit = most * most
            if most and few + most * many >= limit and not jail.refusal(wide):
                tickets = [ticket for ticket in self.bans.tickets.values()
                           if ticket.jail == jail.name and networks_overlap(ticket.network, wide)]
                lefts = [ticket.left(now) for ticket in tickets]
                seconds = max(lefts)
                if FOREVER in lefts:
                    seconds = FOREVER
                failures = sum(ticket.failures for ticket in tickets)
                return BanOrder(wide, failures, seconds), tickets
        return None

    def leaving(self, now):
        """Yields (Ticket, why) of those that have to go; the caller removes each. Those that
        `limit` leaves no room for are the ones that have been silent longest, for whoever attacks
        now is to be banned."""
        bans = self.bans
        ticket = bans.next_end()
        while ticket is not None and ticket.until <= now:
            yield ticket, 'its time is over'
            ticket = bans.next_end()
        surplus = max(0, len(bans.tickets) - bans.limit)
        bans.dropped += surplus
        for ticket in list(itertools.islice(bans.tickets.values(), surplus)):
            yield ticket, 'maxbans'

    def purge(self, now, age):
        """Forgets what no longer matters: failures by findtime, history by `age`."""
        findtimes = {name: jail.options['findtime'] for name, jail in self.jails.by_name.items()}
        self.fails.purge(now, findtimes)
        self.bans.purge(now, age)


# ---- Firewalls -----------------------------------------------------------------------------
# Owns: which chains and sets the last batches have made. Turns tickets into Commands. Always true:
# all that is ours stands in chains, sets or a table of our own, which a packet enters before
# anything else, so a ban also cuts what is established; no other rule is touched. An entry goes
# into the kernel with the time it has left, where the kernel can count that down, so it ends
# without us too.

# What a ban stops: packets of these protocols to these ports (none: all packets), forwarded ones
# too? Lists have sets of their own, and are counted by themselves.
Scope = collections.namedtuple('Scope', 'protocols ports forward listed')
Scope.__new__.__defaults__ = False,
# What has to happen to an entry: is it `there` already, is it `gone` or until when (None: for
# ever).
Change = collections.namedtuple('Change', 'network scope there gone until')


def scope_of(options, hooks):
    """The Scope of a jail's bans; None if they stop nothing where these hooks are."""
    if not options['forward'] and 'INPUT' not in hooks:
        return None
    if options['port']:
        protocols = tuple(options['protocol'])
    else:
        protocols = ()
    return Scope(protocols, options['port'], options['forward'] or len(hooks) < 2)


def entries_of(tickets, scopes):
    """(network, Scope) -> when the last of its tickets ends, None for never; `scopes` is jail ->
    Scope."""
    wanted = {}
    for ticket in tickets:
        scope = scopes.get(ticket.jail)
        if scope:
            key = ticket.network, scope
            if key in wanted:
                wanted[key] = later_end(wanted[key], ticket.until)
            else:
                wanted[key] = ticket.until
    return wanted


def timeout(until, now, longest):
    """Whole seconds until then, 0 for never, rounded up: the kernel never lifts a ban before its
    end."""
    if until is None:
        return 0
    return int(min(max(1, -((now - until) // 1)), longest))


class Null:
    """firewall = none: counts and reports, bans nobody. firewall = command: leaves it to `action`.
    And the contract of all firewalls: `wanted` is what entries_of returns, `shown` what the
    Commands of `check` have printed."""
    family = None                    # 4 or 6, None: both
    capacity = None                  # bans that it can hold
    longest = None                   # seconds that the kernel can count down, None: it cannot
    scopes = {}                      # jail -> Scope
    # may it match the port that a client talks to, before that was translated? Needs conntrack
    original = False

    def __init__(self, name):
        self.name = self.tool = name

    def settings(self):
        """What two of a kind may differ in."""
        return self.name

    def check(self, wanted):
        """Commands that show what the kernel has. The first never fails because something of ours
        is missing; if another one does, None stands for what it shows."""
        return []

    def differences(self, shown, wanted):
        """What is wrong with what the kernel has, in words; '' if nothing."""
        return ''

    def rebuild(self, shown, wanted, now):
        """Commands that make it right, whatever is there."""
        return []

    def change(self, changes, now):
        """Commands for some Changes, which may be repeated; None if only a rebuild can do it."""
        return []

    def stop(self, shown):
        """Commands that leave nothing of ours."""
        return []

    def counters(self, shown):
        """(jails, rule) -> packets that a rule of ours has dropped since it was made."""
        return {}


OURS = 'banwatch'                    # how all begins that we make in the kernel
TRIAL = OURS + '-trial'              # and what `doctor` makes there for a moment


class IPTables(Null):
    """Rules in chain `banwatch`, spread over sub-chains by an address's leading bits, so that a
    packet meets some tens of them and not all. A changed sub-chain is written again as a whole."""
    # how ipset lists our sets: their names, for here each is a leftover
    LIST = '-n'
    capacity = 2000                  # each packet pays for each rule it meets
    rank = 1                         # where our jump stands among a hook's rules
    original = True

    def __init__(self, family, hooks, scopes, name=OURS):
        self.family = family
        self.main = name
        # in front of it, for bans that leave alone what is forwarded
        self.inner = name + '-input'
        self.tool = self.name = 'iptables' if family == 4 else 'ip6tables'
        # bits of an address, and those that name its sub-chain
        if family == 4:
            self.bits, self.lead = (32, 5)
        else:
            self.bits, self.lead = (128, 16)
        self.hooks = hooks           # ['INPUT', 'FORWARD']
        self.scopes = scopes
        self.has_inner = any(scope and not scope.forward for scope in scopes.values())
        self.our_chain = re.compile(r'%s(-[0-9a-f]+|-input)?$' % name)
        self.our_set = re.compile(r'%s-%d(-\d+)?(-new)?$' % (name, family))
        self.sets = {}               # Scope -> the name of its set, 31 characters at most
        self.chains = {}             # chain -> the entries in it, as far as we have told the kernel

    def settings(self):
        return self.name, self.hooks, self.scopes

    def home(self, net, scope):
        """The chain that an entry's rules stand in."""
        if scope.forward:
            return self.chain(net)
        return self.inner

    def chain(self, net):
        """The sub-chain of a network; the main chain if it is wider than one."""
        first, last = (end >> (self.bits - self.lead) for end in span(net)[1:])
        if first != last:
            return self.main
        return '%s-%0*x' % (self.main, (self.lead + 3) // 4, first)

    def entries_by_chain(self, wanted):
        """chain -> its entries; the chains that the hooks enter always."""
        chains = {self.main: set()}
        if self.has_inner:
            chains[self.inner] = set()
        for net, scope in wanted:
            chains.setdefault(self.home(net, scope), set()).add((net, scope))
        return chains

    def rules(self, chain, chains):
        """The rules of one of the chains that `entries_by_chain` returns, as `iptables -S` prints
        them."""
        found = set()
        if chain == self.inner:
            found.add('-A %s -j %s' % (chain, self.main))
        if chain == self.main:
            for name in set(chains) - {self.main, self.inner}:
                found.add('-A %s -s %s -j %s' % (chain, self.network_of_chain(name), name))
        for each in chains[chain]:
            found.update('-A %s%s -j DROP' % (chain, match) for match in self.drops(each))
        return found

    def drops(self, entry):
        """What the rules of one of the things in a chain match."""
        net, scope = entry
        if '/' not in net:
            net = '%s/%d' % (net, self.bits)
        return [' -s %s%s' % (net, match) for match in self.endings(scope)]

    def network_of_chain(self, chain):
        """The network that a sub-chain is for."""
        first = int(chain.rpartition('-')[2], 16) << (self.bits - self.lead)
        if self.family == 4:
            made = ipaddress.IPv4Address
        else:
            made = ipaddress.IPv6Address
        return '%s/%d' % (made(first), self.lead)

    def check(self, wanted):
        """Lists the rules, our sets, and what packets may pass the rules by, which fw4 may have set
        up."""
        return [list_rules(self.tool, '-v'), Command(['ipset', 'list', self.LIST]),
                Command(['nft', 'list', 'flowtables'])]

    def sizes(self, shown):
        """name of a set of ours -> how many entries it has; here that does not matter."""
        return {name: 0 for name in (shown[1] or '').split() if self.our_set.match(name)}

    def counters(self, shown):
        found, jails = {}, {}
        for scope, names in jails_behind(self.scopes).items():
            for ending in self.endings(scope):
                jails[ending] = names
        for row in (shown[0] or '').split('\n'):
            m = COUNTER.search(row)
            if m and row.startswith('-A ' + self.main) and row.endswith('-j DROP'):
                rule = row[:m.start()]
                names = [jails[ending] for ending in jails if ending and rule.endswith(ending)]
                found[names[0] if names else jails.get('', ''), rule] = int(m.group(1))
        return found

    def endings(self, scope):
        """How the rules of a Scope end."""
        found = port_matches(scope)
        if scope.ports and self.original:
            found += port_matches(scope, ' -p {0} -m conntrack --ctorigdstport {1}')
        return found

    def restore(self, rows):
        """The Command that changes these rows, all of them or none."""
        text = '\n'.join(['*filter'] + rows + ['COMMIT', ''])
        return [Command([self.tool + '-restore'] + WAITS[0] + ['--noflush'], text)]

    def listing(self, shown):
        """(chains of ours -> their rules, hook -> its rules) in what `iptables -S` printed."""
        chains, hooks = {}, {hook: [] for hook in self.hooks}
        for row in COUNTER.sub('', shown).split('\n'):
            word, _, rest = row.partition(' ')
            name = rest.partition(' ')[0]
            if word == '-N' and self.our_chain.match(name):
                chains[name] = []
            elif word == '-A' and self.our_chain.match(name):
                chains.setdefault(name, []).append(row.rstrip())
            elif word == '-A' and name in ('INPUT', 'FORWARD'):
                hooks.setdefault(name, []).append(row.rstrip())
        return chains, hooks

    def differences(self, shown, wanted):
        chains, hooks = self.listing(shown[0])
        found = []
        for hook, there in hooks.items():
            wrong = self.misplaced(hook, there)
            if wrong:
                found.append('%s rule %s' % (hook, wrong))
        spread = self.entries_by_chain(wanted)
        rules = {name: sorted(self.rules(name, spread)) for name in spread}
        have = {name: sorted(rows) for name, rows in chains.items()}
        if have != rules:
            n, m = (sum(map(len, some.values())) for some in (have, rules))
            if self.main not in have:
                found.append('chain %s missing' % self.main)
            elif n != m:
                found.append('%d rules instead of %d' % (n, m))
            else:
                found.append('other rules than ours')
        for name in sorted(set(self.sizes(shown)) - set(self.sets.values())):
            found.append('set %s not wanted' % name)
        return ', '.join(found)

    def rebuild(self, shown, wanted, now):
        there, hooks = self.listing(shown[0])
        self.chains, rows = self.entries_by_chain(wanted), []
        for hook, have in hooks.items():
            if self.misplaced(hook, have):
                rows += self.unhook(hook, have)
                if hook in self.hooks:
                    rows.append('-I %s %d -j %s' % (hook, self.rank, self.entry(hook)))
        rows = self.fill(self.chains, set(there) - set(self.chains), rows)
        # sets that are not wanted any more; those being filled go by themselves
        used = {name + more for name in self.sets.values() for more in ('', '-new')}
        return self.restore(rows) + destroy(set(self.sizes(shown)) - used)

    def entry(self, hook):
        """The chain that a hook jumps to."""
        if self.has_inner and hook == 'INPUT':
            return self.inner
        return self.main

    def jumps(self, hook, there):
        """Our jumps among a hook's rules, to either chain, as often as they stand there."""
        ours = ['-A %s -j %s' % (hook, chain) for chain in (self.main, self.inner)]
        return [row for row in there if row in ours]

    def unhook(self, hook, there):
        """Rows that delete them."""
        return ['-D' + row[2:] for row in self.jumps(hook, there)]

    def misplaced(self, hook, there):
        """What is wrong with our jump among a hook's rules; '' if it is right."""
        jump, ours = '-A %s -j %s' % (hook, self.entry(hook)), self.jumps(hook, there)
        if hook not in self.hooks:
            if ours:
                return 'not wanted'
            return ''
        if ours != [jump]:
            if jump in ours:
                return 'doubled'
            return 'missing'
        if there[0] == jump:
            return ''
        return 'not first'

    def fill(self, names, gone=(), hooks=()):
        """Rows that write these chains from scratch and delete those that are gone, once the hooks
        are changed."""
        rows = [':%s - [0:0]' % name for name in sorted(set(names) | set(gone))]
        for name in sorted(names):
            rows += sorted(self.rules(name, self.chains))
        return rows + list(hooks) + ['-X %s' % name for name in sorted(gone)]

    def change(self, changes, now):
        """Rewrites the sub-chains of what has changed, and the main chain, which is short."""
        touched = {self.main}
        for each in changes:
            chain = self.home(each.network, each.scope)
            touched.add(chain)
            inside = self.chains.setdefault(chain, set())
            if each.gone:
                inside.discard((each.network, each.scope))
            else:
                inside.add((each.network, each.scope))
        gone = {name for name in touched - {self.main, self.inner} if not self.chains[name]}
        for name in gone:
            del self.chains[name]
        return self.restore(self.fill(touched - gone, gone))

    def stop(self, shown):
        chains, hooks = self.listing(shown[0])
        rows = [':%s - [0:0]' % name for name in sorted(chains)]
        for hook, there in hooks.items():
            rows += self.unhook(hook, there)
        rows += ['-X %s' % name for name in sorted(chains)]
        if rows:
            commands = self.restore(rows)
        else:
            commands = []
        return commands + destroy(self.sizes(shown))


def port_matches(scope, form=' -p {0} -m {0} --dport {1}'):
    """What stands in front of a rule's target: a match per protocol and port, or [''] for all
    packets. Not `multiport`, which a router may lack: one rule refused is a whole batch refused."""
    if not scope.ports:
        return ['']
    ports = scope.ports.split(',')
    return [form.format(protocol, port) for protocol in scope.protocols for port in ports]


# How iptables and its kin are told to wait for each other, with whatever the installed ones know of
# that: the lock came with 1.4.20, a limit of seconds with 1.6.0, and with 1.6.2 for -restore.
WAITS = (['-w', '5'], ['-w'], [])
# The same for what begins with these: nft lists without elements since 0.9.1.
FORMS = {'-w': WAITS, '-t': (['-t'], [])}
NO_SUCH_OPTION = Regex(
    r"(?:unknown|unrecognized|invalid) option.*\b[wt]\b|Bad argument .5'|Can't open 5\b")
LOCKED = 4  # iptables' exit code if something else changes its rules just now


def forms_of(command):
    """The forms of the first option of a Command, if not every version of its program takes it."""
    return FORMS.get(command.argv[1] if command.argv[1:] else '')


def in_form(command, n):
    """Such a Command in the n-th of its forms."""
    forms = forms_of(command)
    return command._replace(argv=command.argv[:1] + forms[n] + command.argv[1 + len(forms[0]):])


def list_rules(tool, *more):
    """The Command that lists all rules."""
    return Command([tool] + WAITS[0] + ['-S'] + list(more))


# a rule's counter as iptables -v, and as nft print it
COUNTER = Regex(r' -c (\d+) \d+| counter packets (\d+) bytes \d+')


def jails_behind(scopes):
    """Scope -> names of its jails, as text."""
    found = {}
    for jail, scope in scopes.items():
        if scope:
            found.setdefault(scope, []).append(jail)
    return {scope: ', '.join(names) for scope, names in found.items()}


def destroy(sets):
    """The Commands that destroy ipsets."""
    if not sets:
        return []
    return [Command(['ipset', 'restore'], ''.join('destroy %s\n' % name for name in sorted(sets)))]


FOREIGN = -1                         # instead of a number of entries


class IPSet(IPTables):
    """Sets with timeouts, one for each Scope, and one rule for each set and port in chain
    `banwatch`."""
    LIST = '-t'                      # with their sizes
    capacity = None
    longest = 2147483                # ipset(8): the largest timeout it takes
    SIZE = 'maxelem 1048576 timeout 0'         # `-exist` takes no set with other settings

    def __init__(self, family, hooks, scopes, name=OURS):
        IPTables.__init__(self, family, hooks, scopes, name)
        if family == 4:
            self.name = 'ipset'
        else:
            self.name = 'ipset6'
        if family == 4:
            self.inet = 'inet'
        else:
            self.inet = 'inet6'
        for scope in scopes.values():
            if scope and scope not in self.sets:
                if self.sets:
                    number = '-%d' % len(self.sets)
                else:
                    number = ''
                self.sets[scope] = '%s-%d%s' % (name, family, number)

    def entries_by_chain(self, wanted):
        """chain -> the Scopes of its sets, whatever is in them."""
        chains = IPTables.entries_by_chain(self, ())
        for scope in self.sets:
            chains[self.main if scope.forward else self.inner].add(scope)
        return chains

    def drops(self, scope):
        return self.endings(scope)

    def endings(self, scope):
        return ['%s -m set --match-set %s src' % (match, self.sets[scope])
                for match in IPTables.endings(self, scope)]

    def sizes(self, shown):
        """name of a set of ours -> how many entries it has, FOREIGN if it is not as we make
        them."""
        found = {}
        right = re.compile(r'family %s hashsize \d+ %s(?! [cfs])' % (self.inet, self.SIZE))
        for part in (shown[1] or '').split('\n\n'):
            fields = dict(row.split(': ', 1) for row in part.split('\n') if ': ' in row)
            if self.our_set.match(fields.get('Name', '')):
                ours = fields.get('Type') == 'hash:net' and right.match(fields.get('Header', ''))
                if ours:
                    found[fields['Name']] = int(fields.get('Number of entries', 0))
                else:
                    found[fields['Name']] = FOREIGN
        return found

    def differences(self, shown, wanted):
        found = [IPTables.differences(self, shown, wanted)]
        sizes, counted = self.sizes(shown), collections.Counter(scope for _, scope in wanted)
        for scope, name in self.sets.items():
            n = sizes.get(name)
            if n is None:
                found.append('set %s missing' % name)
            elif n == FOREIGN:
                found.append('set %s is of another kind' % name)
            elif n != counted[scope]:
                found.append('set %s has %d entries instead of %d' % (name, n, counted[scope]))
        return ', '.join(filter(None, found))

    def rebuild(self, shown, wanted, now):
        """Fills new sets and swaps them with those in use, so that no packet slips through
        meanwhile."""
        rows, commands = [], []
        if FOREIGN in self.sizes(shown).values():              # another kind cannot be swapped
            commands, shown = self.stop(shown), ['', '']
        for scope, name in self.sets.items():
            for each in (name, name + '-new'):
                rows.append('create %s hash:net family %s %s -exist' % (each, self.inet, self.SIZE))
            rows.append('flush %s-new' % name)
            for (net, where), until in wanted.items():
                if where == scope:
                    rows.append('add %s-new %s timeout %d'
                                % (name, net, timeout(until, now, self.longest)))
            rows += ['swap %s %s-new' % (name, name), 'destroy %s-new' % name]
        if rows:
            commands.append(Command(['ipset', 'restore'], '\n'.join(rows + [''])))
        return commands + IPTables.rebuild(self, shown, wanted, now)

    def change(self, changes, now):
        rows = []
        for each in changes:
            name = self.sets[each.scope]
            if not each.gone:
                seconds = timeout(each.until, now, self.longest)
                rows.append('add %s %s timeout %d -exist' % (name, each.network, seconds))
            elif each.there:
                rows.append('del %s %s -exist' % (name, each.network))
        if not rows:
            return []
        return [Command(['ipset', 'restore'], '\n'.join(rows + ['']))]


def nft_tables(listed):
    """'inet fw4' -> {'chain input': its rows, 'set x': ...} of what `nft list` printed."""
    tables, parts, rows = {}, {}, []
    for line in listed.split('\n'):
        if line.startswith('\t\t'):
            rows.append(line.strip())
        elif line.startswith('\t') and line.endswith(' {'):
            rows = parts.setdefault(line[1:-2], [])
        elif line.startswith('table ') and ' {' in line:       # behind that may stand who owns it
            parts = tables.setdefault(line[6:].partition(' {')[0], {})
    return tables


class NFTables(Null):
    """A table of our own with a set for each Scope and prefix length in use, and chains in front of
    those of others. A network is looked up by its leading bits in a plain hash: an interval set is
    slow to change."""
    name = tool = 'nft'
    longest = 90000000               # nft reads a time of up to eight digits
    original = True

    def __init__(self, hooks, scopes, name=OURS, family=None):
        self.table = 'inet ' + name
        self.family = family
        self.hooks = hooks
        self.scopes = scopes
        self.numbers = {}            # Scope -> its number
        for scope in scopes.values():
            if scope:
                self.numbers.setdefault(scope, len(self.numbers))
        self.sets = {}               # name of a set -> (Scope, family, prefix length)

    def settings(self):
        return self.hooks, self.scopes, self.family

    def set_of(self, net, scope):
        """(name of a set, what it is for, the address that stands in it) for an entry."""
        if ':' in net:
            family, bits = (6, 128)
        else:
            family, bits = (4, 32)
        ip, _, prefix = net.partition('/')
        prefix, name = int(prefix or bits), 'v%d' % family
        if prefix != bits:
            name += '_%d' % prefix
        if self.numbers[scope]:
            name += '_door%d' % self.numbers[scope]
        return name, (scope, family, prefix), ip

    def elements_by_set(self, wanted):
        """name of a set -> {address: until}; single addresses and IPv6 /64 have sets always."""
        self.sets, found = {}, {}
        for scope in self.numbers:
            for usual in '0.0.0.0', '::', '::/64':
                if self.family in (None, 6) and ':' in usual or self.family is None:
                    name, use, _ = self.set_of(usual, scope)
                    self.sets[name], found[name] = use, {}
        for (net, scope), until in wanted.items():
            name, use, ip = self.set_of(net, scope)
            self.sets[name] = use
            found.setdefault(name, {})[ip] = until
        return found

    def rules(self, hook):
        """The rules of a chain, in the order of their sets' names: (set, rule)."""
        for name, (scope, family, prefix) in sorted(self.sets.items()):
            if hook != 'INPUT' and not scope.forward:
                continue
            if family == 4:
                ip, zero = ('ip', '0.0.0.0')
            else:
                ip, zero = ('ip6', '::')
            net = ipaddress.ip_network('%s/%d' % (zero, prefix))
            if prefix == net.max_prefixlen:
                mask = ''
            else:
                mask = ' & %s' % net.netmask
            matches = port_matches(scope, '{0} dport {1} ')
            if scope.ports and self.original and hook == 'FORWARD':
                matches += port_matches(scope, 'meta l4proto {0} ct original proto-dst {1} ')
            for match in matches:
                yield name, '%s%s saddr%s @%s counter drop' % (
                    match.replace(':', '-'), ip, mask, name)

    def check(self, wanted):
        """Lists all but the elements, and asks for one element of each set: the one that stays
        longest."""
        last = {}
        for (net, scope), until in wanted.items():
            name, _, ip = self.set_of(net, scope)
            if name not in last or last[name][0] is not None and (
                until is None or until > last[name][0]):
                last[name] = until, ip
        commands = [Command(['nft', '-t', 'list', 'ruleset', 'inet'])]
        if last:
            rows = ['get element %s %s { %s }\n' % (self.table, name, ip)
                    for name, (_, ip) in last.items()]
            commands.append(Command(['nft', '-t', '-f', '-'], ''.join(rows)))
        return commands

    def listing(self, shown):
        """(names of sets, chain -> its rules, the first of them the hook) of our table; None if
        there is none."""
        parts = nft_tables(shown).get(self.table)
        if parts is None:
            return None
        sets, chains = set(), {}
        for part, rows in parts.items():
            kind, _, name = part.partition(' ')
            if kind == 'set':
                sets.add(name)
            elif kind == 'chain':
                chains[name] = rows
        return sets, chains

    def differences(self, shown, wanted):
        there = self.listing(shown[0])
        if there is None:
            return 'table %s missing' % self.table
        sets, chains = there
        found = ['set %s missing' % name for name in sorted(set(self.sets) - sets)]
        if re.search(r'^table %s \{\n\tflags .*\bdormant\b' % self.table, shown[0], re.M):
            found.append('table %s is switched off' % self.table)
        names = {hook.lower() for hook in self.hooks}
        for hook in self.hooks:
            have, rules = chains.get(hook.lower()), [name for name, _ in self.rules(hook)]
            if not have or not re.search(r'\bhook %s\b.*policy accept' % hook.lower(), have[0]):
                found.append('chain %s missing' % hook.lower())
            elif [self.looks_up(row) for row in have[1:]] != rules:
                found.append('chain %s has other rules than ours' % hook.lower())
        if set(chains) - names or sets - set(self.sets):
            found.append('more than ours in table %s' % self.table)
        if not found and None in shown:
            found.append('elements missing')
        return ', '.join(found)

    def counters(self, shown):
        found, jails, there = {}, jails_behind(self.scopes), self.listing(shown[0] or '')
        if there is None:
            return found
        for chain, rows in there[1].items():
            for row in rows:
                m, name = COUNTER.search(row), self.looks_up(row)
                if m and name in self.sets:
                    found[jails[self.sets[name][0]], chain + row[:m.start()]] = int(m.group(2))
        return found

    @staticmethod
    def looks_up(row):
        """The set that a rule of ours looks into; what else stands in it, nft versions print
        differently."""
        m = re.search(r' @(\w+) (?:counter packets \d+ bytes \d+ )?drop$', row)
        return m and m.group(1)

    def rebuild(self, shown, wanted, now):
        """All of it from scratch, in one transaction."""
        elements = self.elements_by_set(wanted)
        rows = ['add table ' + self.table, 'delete table ' + self.table, 'table %s {' % self.table]
        for name, (_, family, _) in sorted(self.sets.items()):
            rows += ['set %s {' % name, 'type ipv%d_addr; flags timeout;' % family, '}']
        for hook in self.hooks:
            chain = hook.lower()
            rows += ['chain %s {' % chain,
                     'type filter hook %s priority -10; policy accept;' % chain]
            rows += [rule for _, rule in self.rules(hook)] + ['}']
        rows.append('}')
        rows += [self.elements('add', name, each, now) for name, each in elements.items() if each]
        return [Command(['nft', '-f', '-'], '\n'.join(rows + ['']))]

    def elements(self, verb, name, each, now=None):
        """A row that adds or deletes these addresses; with `now`, each until its time."""
        words = []
        for ip, until in each.items():
            if now is None:
                seconds = 0
            else:
                seconds = timeout(until, now, self.longest)
            words.append('%s timeout %ds' % (ip, seconds) if seconds else ip)
        return '%s element %s %s { %s }' % (verb, self.table, name, ', '.join(words))

    def change(self, changes, now):
        """None if a set is needed that is not there: then all has to be written. What may be there
        is deleted first, since a kernel before 6.12 keeps the first timeout of an element; to
        delete what is not there would fail, so before that it is added."""
        old, new = {}, {}
        for each in changes:
            name, _, ip = self.set_of(each.network, each.scope)
            if name not in self.sets:
                return None
            if each.there:
                old.setdefault(name, {})[ip] = None
            if not each.gone:
                new.setdefault(name, {})[ip] = each.until
        rows = [self.elements(verb, name, each) for verb in ('add', 'delete')
                for name, each in old.items()]
        rows += [self.elements('add', name, each, now) for name, each in new.items()]
        if not rows:
            return []
        return [Command(['nft', '-f', '-'], '\n'.join(rows + ['']))]

    def stop(self, shown):
        """A table that vanishes before we delete it is no failure."""
        if not self.listing(shown[0]):
            return []
        return [
            Command(['nft', '-f', '-'],
                    'add table %s\ndelete table %s\n' % (self.table, self.table))]


# Which firewall: what `firewall = auto` looks at.

IPTABLES_CHAINS = {'chain INPUT', 'chain FORWARD', 'chain OUTPUT', 'chain PREROUTING',
                   'chain POSTROUTING'}


def nft_tables_with_rules(listed):
    """Names of the nft tables in `nft -t list ruleset` that hold rules of others, or a policy to
    drop; None stands for those that iptables-nft keeps, which are its business."""
    empty = re.compile(r'type \w+ hook .*policy accept;$|comment "|.*\bjump banwatch(-input)?$')
    found = set()
    for name, parts in nft_tables(listed or '').items():
        chains = {part: rows for part, rows in parts.items() if part.startswith('chain ')}
        rules = [row for chain, rows in chains.items() if not chain.startswith('chain banwatch')
                 for row in rows if not empty.match(row)]
        if rules and name not in ('inet ' + OURS, 'inet ' + TRIAL):
            kept = re.match(r'ip6? (filter|nat|mangle|raw|security)$', name)
            found.add(None if kept and IPTABLES_CHAINS & set(chains) else name)
    return found


def iptables_has_rules(listed):
    """True if `iptables -S` shows rules or policies that are not ours."""
    return any(re.match(r'-P \w+ DROP|-A (?!banwatch)', row)
               and not re.search(r' -j banwatch(-input)?$', row)
               for row in (listed or '').split('\n'))


PROBES = {'nft': Command(['nft', '-t', 'list', 'ruleset']),
          'iptables': list_rules('iptables'), 'ip6tables': list_rules('ip6tables')}


def choose_kinds(shown, failed=()):
    """(kinds of firewall to try, in this order; why) on a machine whose PROBES have shown this,
    None for a program that is missing, or one of those that have `failed`."""
    tables = nft_tables_with_rules(shown['nft'])
    native = sorted(tables - {None})
    if native:
        return ['nft', 'ipset',
                'iptables'], 'rules stand in the nft table %s' % printable(native[0])
    if None in tables or iptables_has_rules(shown['iptables']) or iptables_has_rules(
        shown['ip6tables']):
        return ['ipset', 'iptables', 'nft'], 'rules stand in iptables'
    if shown['iptables'] is not None:
        return ['ipset', 'iptables', 'nft'], 'no rules here yet; iptables is installed'
    if 'iptables' in failed:
        why = 'fails'
    else:
        why = 'is not installed'
    return ['nft', 'ipset', 'iptables'], 'no rules here yet; iptables ' + why


# kind -> the firewalls that it stands for, one per family or one for both
FIREWALLS = {
    'none': lambda hooks, scopes: [Null('none')],
    'command': lambda hooks, scopes: [Null('command')],
    'nft': lambda hooks, scopes: [NFTables(hooks, scopes)],
    'ipset': lambda hooks, scopes: [IPSet(4, hooks, scopes), IPSet(6, hooks, scopes)],
    'iptables': lambda hooks, scopes: [IPTables(4, hooks, scopes), IPTables(6, hooks, scopes)]}


def make_firewalls(kind, hooks, jails):
    """The firewalls of a kind; `jails` is name -> Jail."""
    scopes = {}
    for name, jail in jails.items():
        scopes[name] = scope_of(jail.options, hooks)
        if scopes[name] and (is_list(name) or name == HUB):
            scopes[name] = scopes[name]._replace(listed=name.partition('-')[0])
    return FIREWALLS[kind](hooks, scopes)


def is_list(name):
    """Is this the jail of a `banip`?"""
    return name == LIST or name.startswith(LIST + '-')


def cut_connections(networks):
    """The Command that ends the connections of these networks, those too that bypass every rule
    because their flow is offloaded; conntrack(8)."""
    rows = ['-D -f ipv%d %s %s\n' % (span(net)[0], side, net) for net in networks
            for side in ('-s', '-d')]
    # for `-`, it wants a /dev/stdin, which OpenWrt lacks
    return Command(['conntrack', '-R', '/proc/self/fd/0'], ''.join(rows))


def cut_one_by_one(net):
    """The same of one network, where conntrack is older than 1.4.7."""
    return [Command(['conntrack', '-D', '-f', 'ipv%d' % span(net)[0], side, net])
            for side in ('-s', '-d')]


def offloads(shown):
    """True if flows may bypass the rules, by what a firewall's check has shown."""
    return any(re.search(r'\bflowtable |\bFLOWOFFLOAD\b', text or '') for text in shown)


# ---- State ---------------------------------------------------------------------------------
# Owns: the format. Two files hold it, the live one in `runtime` and the kept one on flash:
#     {"banwatch": 1,                     format
#      "boot": "…", "ticks": s, "wall": s   boot id, boot clock and wall clock when it was written
#      "bans":    [[jail, network, seconds left (-1: for ever), seconds since its start, count,
# failures]]
#      "history": [[jail, network, bans, seconds since the last one's end (< 0: not yet)]]
#      "homes":   [[user, network, seconds since he logged in from there]]
#      "names":   {name: [address]}         what host names in `ignoreip` stood for last
#      "report":  {...}}                    what a wing of that name has to keep
#   and in the live one
#     "unkept":  s                         seconds for which the kept one has lacked something of
# this (null: it does not)
#      "running": true                      false once it has been told to stop
#      "fails":   [[jail, network, [seconds since each failure]]]
#      "logins":  [[jail, ip, user, seconds left]]
#      "sources": {source: position}}
# Always true: moments are written as lengths, so that a file outlives its clocks. In the same boot
# the boot clock says how much time has passed since; in another one the wall clock, if both of its
# readings can be true; else none has. A file may be torn or hostile: each row is checked by itself.

FORMAT = 1
SANE = 1767225600                    # 1 Jan 2026: a clock that shows less has not been set yet
TOO_LONG = 10 * 365 * DAY            # no router is off for so long: its clock is wrong
KEPT_BYTES = 1 << 20                 # 20,000 bans; jffs2 and ubifs write half as much
KEPT_ROWS = 50                       # that a wing may keep on flash of each of its parts

Pieces = collections.namedtuple('Pieces', 'bans fails logins sources wings homes')
Pieces.__new__.__defaults__ = {},
Restored = collections.namedtuple('Restored', (
    'tickets history homes fails logins sources state lost age booted offset dirty_since killed '
    'written path'))


def packed(value):
    """JSON without blanks."""
    return json.dumps(value, separators=(',', ':'))


def dump(bans, fails, logins, sources, wings, homes, clocks, dirty_since=None, running=True):
    """The live state as text. `clocks` is (boot id, ticks, wall); `dirty_since` is since when the
    kept one lacks something; `running` whether the daemon goes on."""
    now = clocks[1]
    state, rows = dump_bans(bans, clocks)
    rows['homes'] = dump_homes(homes, now)
    state.update((wing.name, wing.dump(now)) for wing in wings if wing.keeps)
    state['sources'] = sources
    state['running'] = running
    if dirty_since is None:
        state['unkept'] = None
    else:
        state['unkept'] = round(now - dirty_since, 2)
    rows['fails'] = ([jail, net, [round(now - when, 2) for when in seen]]
                     for (jail, net), seen in fails.recent.items())
    rows['logins'] = ([jail, ip, user, round(until - now, 2)]
                      for (jail, ip, user), until in logins.items() if until > now)
    # row by row: as a whole, json would hold thousands of little texts at a time
    parts = [',"%s":[%s]' % (part, ','.join(map(packed, rows[part]))) for part in rows]
    return packed(state)[:-1] + ''.join(parts) + '}'


def dump_bans(bans, clocks):
    """(head of a state, part -> its rows, one by one)."""
    boot, now, wall = clocks
    head = {'banwatch': FORMAT, 'boot': boot, 'ticks': round(now, 2), 'wall': round(wall, 2)}
    longest = sorted(bans.tickets.values(), key=lambda t: (t.until is not None, -(t.until or 0)))
    latest = reversed(list(bans.history.items()))
    return head, {
        'bans': (
            [t.jail, t.network, round(t.left(now), 2), round(now - t.since, 2), t.count, t.failures]
                 for t in longest),
        'history': ([jail, net, n, round(now - last, 2)] for (jail, net), (n, last) in latest)}


def dump_homes(homes, now):
    """Rows of who has logged in from where, the latest first."""
    return [[user, net, round(now - when)] for (user, net), when in reversed(list(homes.items()))]


def dump_kept(bans, wings, homes, clocks):
    """(the kept state as text, at most KEPT_BYTES: the wings, the longest bans, the latest history;
    how many bans have no room)."""
    state, rows = dump_bans(bans, clocks)
    kept = {wing.name: wing.dump(clocks[1], True, KEPT_ROWS) for wing in wings if wing.keeps}
    kept['homes'] = dump_homes(homes, clocks[1])
    room = KEPT_BYTES - 200 - len(packed(kept))
    state.update(kept)
    for part in rows:
        state[part] = []
        for row in rows[part]:
            room -= len(packed(row)) + 2
            if room < 0:
                break
            state[part].append(row)
    text = packed(state).replace('],[', '],\n[')
    return text, len(bans.tickets) - len(state['bans'])


def load(text, clocks):
    """The Restored state in `text`, in this machine's ticks; ValueError if it is not a state at
    all."""
    state = json.loads(text)
    if type(state) is not dict or state.get('banwatch') != FORMAT:
        raise ValueError('not a state file of this version')
    now, gone = clocks[1], elapsed(state, clocks)
    restored, lost = {}, 0
    for part, take_row in LOADERS.items():
        restored[part] = []
        rows = state.get(part, [])
        for row in rows if type(rows) is list else [None]:
            try:
                restored[part].append(take_row(row, now, gone))
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                lost += 1
    sources, same_boot = state.get('sources'), state.get('boot') == clocks[0]
    sources = checked_dict(sources)
    offset, dirty_since, written = None, None, 0
    try:
        written = checked_number(state.get('wall'))
        if same_boot:                # how the clocks stood to each other
            offset = written - checked_number(state.get('ticks'))
    except ValueError:
        pass
    try:
        if state.get('unkept') is not None:
            dirty_since = now - gone - checked_number(state['unkept'], 0)
    except ValueError:
        pass
    return Restored(
        restored['bans'], dict(restored['history']), dict(restored['homes']),
        dict(restored['fails']),
        dict(restored['logins']),
        sources, state, lost, gone, not same_boot, offset, dirty_since,
        same_boot and state.get('running') is True, written, '')


def elapsed(state, clocks):
    """Seconds since a state was written."""
    boot, now, wall = clocks
    try:
        # it was rounded
        if state.get('boot') == boot and checked_number(state.get('ticks')) <= now + 1:
            return max(0, now - state['ticks'])
        then = checked_number(state.get('wall'))
        if SANE <= then <= wall < then + TOO_LONG:
            return wall - then
        return 0
    except ValueError:
        return 0


def checked_number(value, least=-1e10, most=1e10):
    """A number as it stands in a state file; ValueError for anything else."""
    if type(value) not in (int, float) or not least <= value <= most:
        raise ValueError('not a number from %g to %g' % (least, most))
    return value


def checked_count(value):
    """The same, as a whole number."""
    return int(checked_number(value, 0))


def checked_dict(value):
    """A dict; an empty one for anything else."""
    if type(value) is dict:
        return value
    return {}


def checked_key(jail, net):
    """(jail, network) of a ticket."""
    if type(jail) is not str or type(net) is not str or len(jail) > 64:
        raise ValueError('not a ticket')
    return jail, network_of(net)


def load_ban(row, now, gone):
    """The Ticket in a row."""
    jail, net, left, age, n, failures = row
    if left == FOREVER:
        until = None
    else:
        until = now + checked_number(left, 0) - gone
    jail, net = checked_key(jail, net)
    since = now - checked_number(age) - gone
    return Ticket(jail, net, since, until, checked_count(n), checked_count(failures))


def load_history(row, now, gone):
    """(key, (bans so far, end of the last)) in a row."""
    jail, net, n, age = row
    return checked_key(jail, net), (checked_count(n), now - checked_number(age) - gone)


def load_fails(row, now, gone):
    """(key, moments) in a row."""
    jail, net, ages = row
    return checked_key(jail, net), sorted(now - checked_number(age, 0) - gone
                                          for age in ages[:1000])


def load_login(row, now, gone):
    """((jail, ip, user), until) in a row."""
    jail, ip, user, left = row
    if type(user) is not str:
        raise ValueError('not a user')
    return checked_key(jail, ip) + (user,), now + checked_number(left) - gone


def load_home(row, now, gone):
    """((user, network), moment) in a row."""
    user, net, age = row
    if type(user) is not str or type(net) is not str:
        raise ValueError('not a login')
    return (user[:MOST_TEXT], network_of(net)), now - checked_number(age) - gone


LOADERS = {'bans': load_ban, 'history': load_history, 'homes': load_home, 'fails': load_fails,
           'logins': load_login}


# ==== the water line: everything above decides, everything below acts ========================

# ---- Machine -------------------------------------------------------------------------------
# Owns: the outside world. Always true: here is the only exec, the only clock, the only file that
# is written. A program gets an argv list, its own process group, a deadline and LC_ALL=C; what it
# prints is bounded; it is never waited for, its pipes and its end are events of the loop.

LOCK_TRIES, LOCK_SECONDS = 20, 0.25    # for an iptables that does not wait for others
LIST_BYTES = 4 << 20                 # of a list of networks
TAIL_BYTES = 1 << 19                 # of a log that a program prints
OUTPUT_BYTES = 8 << 20               # a firewall with 50,000 rules lists them in this
SBIN = '/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin:/opt/sbin:/opt/bin'
RESOLVERS = ('/etc/resolv.conf', '/tmp/resolv.conf.d/resolv.conf.auto', '/tmp/resolv.conf.auto',
             '/run/systemd/resolve/resolv.conf')
PIECE_BYTES = 1 << 15                # of an answer, in a turn
MOST_SAID = 100                      # lines that a program of the owner's may log in a minute
PACKET_SECONDS = 0.3                 # for a packet from here to here
READ, WRITE = 1, 2                   # what `selectors` calls EVENT_READ and EVENT_WRITE


class Loop:
    """One selector, one scheduler: each fd carries its handler, each timer its function."""

    def __init__(self, ticks, log):
        self.selector = selectors.DefaultSelector()
        self.timers = sched.scheduler(ticks, lambda seconds: None)
        self.made = 0                # timers so far
        self.ticks = ticks
        self.log = log
        self.bugs = set()            # tracebacks already told

    def watch(self, fd, handler, events=READ):
        self.selector.register(fd, events, handler)

    def unwatch(self, fd):
        """Forgets an fd, also one that is not watched (any more)."""
        try:
            self.selector.unregister(fd)
        except (KeyError, ValueError):
            pass

    def at(self, when, function):
        """A timer that calls `function` once, for `cancel`."""
        # before Python 3.10, timers of equal time and priority are equal
        self.made += 1
        return self.timers.enterabs(when, self.made, self.call, (function,))

    def after(self, seconds, function):
        return self.at(self.ticks() + seconds, function)

    def cancel(self, timer):
        if timer is not None and timer in self.timers.queue:
            self.timers.cancel(timer)

    def call(self, function):
        """Calls a handler; a bug in it is told once and does not stop the others."""
        try:
            return function()
        except Exception as e:
            text = traced(e)
            if text not in self.bugs:
                self.bugs.add(text)
                for line in ['bug, please report it:'] + text.rstrip('\n').split('\n'):
                    self.log(line)

    def due(self):
        """Runs the timers that are due; seconds until the next one, None if there is none."""
        return self.timers.run(blocking=False)

    def wait(self, seconds):
        for key, _ in self.selector.select(None if seconds is None else max(0, seconds)):
            # not closed by a handler before it
            if self.selector.get_map().get(key.fd) is key:
                self.call(key.data)


def traced(e):
    """The traceback of an exception."""
    try:
        # as 4-tuples: from whole frames Python 3.11 and later draws ^^^^, and wants unicodedata for
        # it, which python3-light lacks
        frames = [tuple(frame) for frame in traceback.extract_tb(e.__traceback__)]
        return ''.join(['Traceback (most recent call last):\n'] + traceback.format_list(frames)
                       + traceback.format_exception_only(type(e), e))
    except ImportError:                            # an upgrade of Python has taken it away
        return repr(e)


class Program:
    """A Command that runs to its end: `done(problem, output, exit code)`, problem '' if that is
    0."""

    def __init__(self, machine, command, done, seconds):
        self.machine, self.done, self.name = machine, done, os.path.basename(command.argv[0])
        self.late = False
        # of what the commands of an action print, only the first line matters
        if command.environment:
            self.most = 4096
        else:
            self.most = OUTPUT_BYTES
        self.tail = command.tail
        self.read = {}               # fd -> what came from it, up to `most`
        self.left = command.stdin.encode()
        self.process = machine.spawn(command.argv, subprocess.PIPE, command.environment)
        machine.pids.append(self.process.pid)
        for stream in (self.process.stdout, self.process.stderr, self.process.stdin):
            os.set_blocking(stream.fileno(), False)
        for stream in (self.process.stdout, self.process.stderr):
            self.read[stream.fileno()] = b''
            machine.loop.watch(stream.fileno(), functools.partial(self.readable, stream.fileno()))
        self.open = set(self.read)
        self.timer = machine.loop.after(seconds, self.expired)
        machine.programs.add(self)
        self.writing = False
        self.write()

    def write(self):
        fd = self.process.stdin.fileno()
        try:
            while self.left:
                self.left = self.left[os.write(fd, self.left):]
        except BlockingIOError:
            if not self.writing:
                self.writing = True
                self.machine.loop.watch(fd, self.write, WRITE)
            return
        except OSError:
            self.left = b''                        # it has closed its end; its exit code tells why
        self.end_of_input()

    def end_of_input(self):
        if self.process.stdin.closed:
            return
        if self.writing:
            self.writing = False
            self.machine.loop.unwatch(self.process.stdin.fileno())
        try:
            self.process.stdin.close()
        except OSError:
            pass

    def readable(self, fd):
        """Takes what there is; True if there was something, and room for it."""
        room = len(self.read[fd]) < self.most
        try:
            chunk = os.read(fd, 65536)
        except BlockingIOError:
            return False
        except OSError:
            chunk = b''
        if not chunk:
            self.open.discard(fd)
            self.machine.loop.unwatch(fd)
        elif room:
            self.read[fd] += chunk
            if self.tail and len(self.read[fd]) > 2 * TAIL_BYTES:
                self.read[fd] = self.read[fd][-TAIL_BYTES:]
                self.read[fd] = self.read[fd][self.read[fd].find(b'\n') + 1:]
            if len(self.read[fd]) >= OUTPUT_BYTES:
                self.machine.kill(self.process)
        return bool(chunk) and room

    def expired(self):
        self.late = True
        self.machine.kill(self.process)

    def ended(self):
        """Looks whether the process has ended; if so, hands over what it said."""
        if self.process.poll() is None:
            return
        out, err = self.read
        for fd in (out, err):                      # the rest; a grandchild may hold the pipes open
            while fd in self.open and self.readable(fd):
                pass
            self.machine.loop.unwatch(fd)
        self.end_of_input()
        self.process.stdout.close()
        self.process.stderr.close()
        self.machine.loop.cancel(self.timer)
        self.machine.programs.discard(self)
        self.done(self.problem(self.read[err]), self.read[out].decode('utf-8', 'surrogateescape'),
                  self.process.returncode)

    def problem(self, err):
        said = [line for line in err.decode('utf-8', 'replace').split('\n')
                if line.strip() and line[:1] != '#']
        if max(map(len, self.read.values())) >= OUTPUT_BYTES:
            return '%s says more than can be read' % self.name
        if self.late:
            return '%s did not answer in time' % self.name
        if self.process.returncode:
            said = said or ['exit code %d' % self.process.returncode]
            return '%s: %s' % (self.name, printable(said[0])[:200])
        return ''


class Fed(Program):
    """A program that runs on. What it prints is logged, under the name of who feeds it."""

    def __init__(self, machine, feed, done):
        self.feeder = feed.feeder
        self.last = ''               # of its errors, for who asks why it has ended
        self.minute, self.said = 0, 0              # how much it has said in this minute
        Program.__init__(self, machine, Command(feed.argv, '', feed.environment), done, 0)
        machine.loop.cancel(self.timer)            # it has all the time in the world
        self.feeder.program = self

    def write(self):
        if self.process.stdin.closed:
            return
        fd, lines = self.process.stdin.fileno(), self.feeder.lines
        try:
            while lines or self.left:
                if not self.left:
                    self.left = lines.popleft()
                self.left = self.left[os.write(fd, self.left):]
        except BlockingIOError:
            if not self.writing:
                self.writing = True
                self.machine.loop.watch(fd, self.write, WRITE)
            return
        except OSError:                            # it has closed its end, and will end
            lines.clear()
            self.left = b''
        if self.writing:
            self.writing = False
            self.machine.loop.unwatch(fd)
        if self.feeder.over:
            self.end_of_input()

    def readable(self, fd):
        more = Program.readable(self, fd)
        said = self.read[fd].split(b'\n')
        self.read[fd] = said.pop()[-1000:]
        for line in said:
            line = printable(line[:1000].decode('utf-8', 'backslashreplace')).strip()
            if line and fd == list(self.read)[1]:
                self.last = line
            if line:
                self.log(line)
        return more

    def log(self, line):
        """Logs a line, MOST_SAID of them in a minute."""
        minute = self.machine.ticks() // MINUTE
        if minute != self.minute:
            self.minute, self.said = minute, 0
        self.said += 1
        if self.said > MOST_SAID:
            line = 'says more, which is not logged'
        if self.said <= MOST_SAID + 1:
            self.machine.log('%s: %s' % (self.feeder.name, line))

    def problem(self, err):
        if self.feeder.over:
            return ''
        return 'has ended: %s' % (self.last or 'exit code %d' % self.process.returncode)


class Exchange:
    """Sends a Request, and hands over what comes back."""

    def __init__(self, machine, request, done, seconds):
        self.loop, self.done, self.left, self.feed = machine.loop, done, request.text, request.feed
        self.sock, self.shaken = None, not request.certified
        self.timer = self.loop.after(seconds, functools.partial(self.end, 'no answer in time'))
        try:
            if isinstance(request.place, str):
                family = socket.AF_UNIX
            elif ':' in request.place[0]:
                family = socket.AF_INET6
            else:
                family = socket.AF_INET
            self.sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            self.sock.setblocking(False)
            code = self.sock.connect_ex(request.place)
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
            if request.certified:
                import ssl
                self.sock = ssl.create_default_context().wrap_socket(
                    self.sock, server_hostname=request.certified, do_handshake_on_connect=False)
            self.watch(WRITE)
        except (OSError, ValueError, ImportError) as e:        # answers later, as all do
            self.loop.cancel(self.timer)
            why = getattr(e, 'strerror', None) or str(e)
            self.timer = self.loop.after(0, functools.partial(self.end, why))

    def watch(self, events):
        self.loop.unwatch(self.sock)
        self.loop.watch(self.sock, self.ready, events)

    def ready(self):
        """Does what can be done without waiting: a piece of the answer, at most."""
        try:
            problem = self.go_on()
        except BlockingIOError:
            return
        except (OSError, ValueError) as e:
            wanted = {'SSLWantReadError': READ, 'SSLWantWriteError': WRITE}.get(type(e).__name__)
            if wanted:
                return self.watch(wanted)
            problem = getattr(e, 'strerror', None) or str(e)
        if problem is not None:
            self.end(problem)

    def go_on(self):
        """'' when all is there, None if there is more to come."""
        if not self.shaken:
            self.sock.do_handshake()
            self.shaken = True
        while self.left:
            self.left = self.left[self.sock.send(self.left):]
        self.watch(READ)
        data = self.sock.recv(PIECE_BYTES)
        while not self.feed(data):
            if not data:
                return 'half an answer'
            if not getattr(self.sock, 'pending', int)():       # what TLS has read ahead
                return None
            data = self.sock.recv(PIECE_BYTES)
        return ''

    def end(self, problem):
        self.loop.cancel(self.timer)
        if self.sock is not None:
            self.loop.unwatch(self.sock)
            self.sock.close()
        self.done(problem, '')


GUARD_SECONDS = 0.25                                # for a regex that is not built in, on one line
# what is slow, where a search of USUAL takes USUAL_SECONDS; how much of it there may be in a minute
SLOW_SECONDS, GUARD_TOTAL = 0.02, 1
USUAL, USUAL_SECONDS = ('(?:[ab]|ba)+c', 'ab' * 12), 0.002


def regex_slowness():
    """How many times slower regexes are here than where SLOW_SECONDS was measured; 1 at least."""
    search = re.compile(USUAL[0]).search
    began = time.process_time()
    search(USUAL[1])
    return max(1, (time.process_time() - began) / USUAL_SECONDS)


GZIP = 31                            # how zlib is told that there is gzip's head
# reads a source, writes its code: without docstrings, which take memory and flash
COMPILE = ('import marshal, sys; sys.stdout.buffer.write(marshal.dumps(compile('
           'sys.stdin.buffer.read(), "banwatch.py", "exec", dont_inherit=True, optimize=2)))')


def gzipped(text):
    """Bytes in gzip's form, always the same for the same."""
    packer = zlib.compressobj(9, zlib.DEFLATED, GZIP)
    return packer.compress(text) + packer.flush()


class Machine:
    """What the program may do to the machine it runs on; tests have one of their own."""

    def __init__(self):
        self.loop = Loop(self.ticks, self.log)
        self.programs = set()
        self.forms = {}              # program -> which of the forms of its option it takes
        self.pids = collections.deque(maxlen=100)  # of programs that were started lately
        # does one run that waits for nobody? what is next
        self.alone, self.turns = False, collections.deque()
        self.lock_fd = None
        self.outward = set()         # interfaces that a default route goes through, or did
        self.has_ipv6 = True         # has an interface an address of IPv6?
        self.written = 0             # bytes of state files, for `status`
        self.guards = self.guarding = False
        # since when so many seconds went into slow searches
        self.slow_since, self.slow = 0, 0

    # clocks and chance
    def ticks(self):
        """Seconds since the boot, sleep included."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self):
        return time.time()

    def clocks(self):
        """(boot id, ticks, wall), as the state files want them."""
        return self.boot_id(), self.ticks(), self.wall()

    def boot_id(self):
        return self.read('/proc/sys/kernel/random/boot_id').strip()

    def chance(self):
        return random.random()

    # what there is
    def which(self, name):
        """Absolute path of a program, None if it is not installed."""
        for directory in os.environ.get('PATH', '').split(':') + SBIN.split(':'):
            found = os.path.join(directory, name)
            if directory.startswith('/') and os.path.isfile(found) and os.access(found, os.X_OK):
                return found
        return None

    def exists(self, path):
        return os.path.exists(path)

    def host(self):
        return self.read('/proc/sys/kernel/hostname').strip() or 'localhost'

    def accounts(self):
        """Names of the accounts of this machine."""
        return [line.partition(':')[0] for line in self.read('/etc/passwd').split('\n')
                if ':' in line]

    def age(self, path):
        """Seconds since a file was changed, None if it is not there."""
        try:
            return self.wall() - os.stat(path).st_mtime
        except OSError:
            return None

    def changed(self, path):
        """When a file was changed last, None if it is not there."""
        try:
            return os.stat(path).st_mtime_ns
        except OSError:
            return None

    def root(self):
        return os.geteuid() == 0

    def free_bytes(self, directory):
        try:
            there = os.statvfs(directory)
        except OSError:
            return None
        return there.f_bavail * there.f_frsize

    def processes(self):
        """Names of those that run here: not those of containers, which have a network of theirs."""
        found = set()
        for path in glob.glob('/proc/[0-9]*'):
            try:
                if os.path.samefile(path + '/ns/net', '/proc/self/ns/net'):
                    found.add(self.read(path + '/comm').strip())
            except OSError:                        # it has ended, or is not ours to look at
                pass
        return found

    def end_of(self, path, size):
        """The last bytes of a file, as text; '' if it cannot be read."""
        try:
            with open(open_log(path), 'rb') as f:              # a FIFO has no end
                f.seek(max(0, os.fstat(f.fileno()).st_size - size))
                return f.read(size).decode('utf-8', 'replace')
        except OSError:
            return ''

    def read(self, path, missing='', errors='replace', limit=1 << 20):
        """Text of a file of the system, so many bytes of it; `missing` if it cannot be read."""
        try:
            with open(path, 'rb') as f:
                return f.read(limit).decode('utf-8', errors)
        except OSError:
            return missing

    def list_text(self, path):
        """Text of a list of networks, as much of it as a router has room for; OSError."""
        with open(open_log(path), 'rb') as f:
            return f.read(LIST_BYTES).decode('utf-8', 'replace')

    def read_or_none(self, path):
        """Text of a file, such as one of a filter; None if there is none."""
        return self.read(path, None)

    def guard(self, search, *arguments):
        """What `search` returns; Runaway if that takes longer than GUARD_SECONDS of processor
        time."""
        if not self.guards:
            signal.signal(signal.SIGVTALRM, self.abort)
            self.slow_seconds = min(GUARD_SECONDS / 2, SLOW_SECONDS * regex_slowness())
            self.guards = True
        self.guarding = True
        signal.setitimer(signal.ITIMER_VIRTUAL, GUARD_SECONDS)
        try:
            found = search(*arguments)
        finally:
            self.guarding = False
            left = signal.setitimer(signal.ITIMER_VIRTUAL, 0)[0]
        if GUARD_SECONDS - left > self.slow_seconds:
            self.charge(GUARD_SECONDS - left)
        return found

    def charge(self, seconds):
        """Adds up slow searches; Runaway if there is more of it than GUARD_TOTAL within a
        minute."""
        now = self.ticks()
        if now - self.slow_since > 60:
            self.slow_since, self.slow = now, 0
        self.slow += seconds
        if self.slow > GUARD_TOTAL:
            raise Runaway

    def abort(self, number, frame):
        if self.guarding:
            raise Runaway

    def memory(self):
        """(resident kB of this process, kB of RAM in the machine)."""
        own = re.search(r'VmRSS:\s+(\d+)', self.read('/proc/self/status'))
        ram = re.search(r'MemTotal:\s+(\d+)', self.read('/proc/meminfo'))
        return int(own.group(1)) if own else 0, int(ram.group(1)) if ram else 1 << 20

    # programs
    def spawn(self, argv, stdin, more={}, tether=None):
        """A process in a session of its own. Whoever has `tether`, a terminal of ours, hears when
        we are gone."""
        if argv[0].startswith('/'):
            path = argv[0]
        else:
            path = self.which(argv[0])
        if path is None:
            raise FileNotFoundError(errno.ENOENT, '%s is not installed' % argv[0])
        environment = dict(more, PATH=os.environ.get('PATH', SBIN) + ':' + SBIN, LC_ALL='C')
        # in UTF-8, whatever our own locale is: it may have no way to write a name of the log
        argv = [word.encode('utf-8', 'surrogateescape') for word in [path] + list(argv[1:])]
        environment = {key.encode(): value.encode('utf-8', 'surrogateescape')
                       for key, value in environment.items()}
        return subprocess.Popen(
            argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            bufsize=0, cwd='/', start_new_session=True, env=environment,
            preexec_fn=None if tether is None
            else functools.partial(fcntl.ioctl, tether, termios.TIOCSCTTY, 0))

    def spawn_tethered(self, argv):
        """(process, the end of a terminal that is to stay open): when we die, however that happens,
        the kernel hangs it up, and the process gets SIGHUP. (-, None) where there are no such
        terminals."""
        try:
            ours, theirs = os.openpty()
        except OSError:
            return self.spawn(argv, subprocess.DEVNULL), None
        try:
            return self.spawn(argv, subprocess.DEVNULL, tether=theirs), ours
        except subprocess.SubprocessError:         # it cannot be had
            os.close(ours)
            return self.spawn(argv, subprocess.DEVNULL), None
        except OSError:
            os.close(ours)
            raise
        finally:
            os.close(theirs)

    def run(self, command, done, seconds=10):
        """Starts a Command, or sends a Request; `done(problem, output)` is called when it has
        ended."""
        if isinstance(command, Request):
            Exchange(self, command, done, seconds)
        elif isinstance(command, Feed):
            self.begin(Fed, command, lambda problem, output, code: done(problem, output))
        elif forms_of(command):
            self.run_in_turn(command, done, seconds)
        else:
            self.start(command, lambda problem, output, code: done(problem, output), seconds)

    def start(self, command, done, seconds):
        self.begin(Program, command, done, seconds)

    def begin(self, kind, command, done, *more):
        """Starts a program; if that cannot be, it has ended already."""
        try:
            kind(self, command, done, *more)
        except (OSError, ValueError) as e:         # ValueError: a NUL in the conf
            why = getattr(e, 'strerror', None) or str(e)
            done('%s: %s' % (printable(command.argv[0]), why) if getattr(e, 'filename', 1) else why,
                 '', None)

    def own_argv(self, *words):
        """The argv of a command of our own: in isolated mode, but with what is installed beside
        Python."""
        return [sys.executable, '-I', sys._xoptions.get('banwatch', __file__)] + list(words)

    def run_in_turn(self, command, done, seconds, tries=0):
        """Runs a program whose option has several forms. Which of them it takes is found out once;
        those of iptables' kin that wait for nobody run one at a time, and again where somebody
        else was at it."""
        tool, forms = command.argv[0], forms_of(command)
        form = self.forms.setdefault(tool, 0)
        alone = forms is WAITS and not WAITS[form]
        if alone and self.alone:
            self.turns.append((command, done, seconds, tries))
            return
        self.alone = self.alone or alone

        def ended(problem, output, code):
            if alone:
                self.alone = False
            if problem and form + 1 < len(forms) and NO_SUCH_OPTION.search(problem):
                # -restore learned both at once, and takes the first alone for nothing
                if tool.endswith('-restore'):
                    self.forms[tool] = 2
                else:
                    self.forms[tool] = max(self.forms[tool], form + 1)
                self.run_in_turn(command, done, seconds)
            elif forms is WAITS and form and code == LOCKED and tries < LOCK_TRIES:
                self.loop.after(LOCK_SECONDS,
                                functools.partial(self.run_in_turn, command, done, seconds,
                                                  tries + 1))
            else:
                done(problem, output)
            if self.turns and not self.alone:
                self.run_in_turn(*self.turns.popleft())
        self.start(in_form(command, form), ended, seconds)

    def reap(self):
        for program in list(self.programs):
            self.loop.call(program.ended)

    def kill_all(self):
        """What comes through only after our end would bring back what we have taken out."""
        for program in self.programs:
            self.kill(program.process)

    def kill(self, process, number=None):
        try:
            os.killpg(process.pid, number or signal.SIGKILL)
        except OSError:
            pass

    # files
    def directory(self, path):
        """Makes sure of a directory that is ours alone."""
        try:
            os.makedirs(path, 0o700, exist_ok=True)
            there = os.lstat(path)
        except OSError as e:
            if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                code = os.EX_NOPERM
            else:
                code = 1
            raise Problem('%s: %s (see `runtime` in the conf)' % (path, e.strerror), code) from None
        if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.geteuid():
            raise Problem('%s: not a directory of our own; remove it or set `runtime`' % path)
        if there.st_mode & 0o077:
            os.chmod(path, 0o700)

    def lock(self, path):
        """True if no other process holds this lock; it is held until we end."""
        if self.lock_fd is not None:
            os.close(self.lock_fd)
        self.lock_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self.lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        try:
            os.ftruncate(self.lock_fd, 0)
            os.write(self.lock_fd, b'%d\n' % os.getpid())
        except OSError:                            # no room: it is only for people
            pass
        return True

    def replace(self, path, text, mode=0o600):
        """Writes a file of ours as a whole: after a crash there is the old one or the new one."""
        new = path + '.new'
        self.remove(new)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                     0o600)
        try:
            with open(fd, 'wb') as f:
                os.fchmod(fd, mode)
                f.write(text if isinstance(text, bytes)
                        else text.encode('utf-8', 'backslashreplace'))
                f.flush()
                os.fsync(f.fileno())
            os.rename(new, path)
        except OSError as e:
            self.remove(new)
            if e.errno != errno.EBUSY:
                raise
            self.overwrite(path, text)             # a file that is mounted by itself
        self.written += len(text)

    def overwrite(self, path, text):
        """Writes a file of ours in its place, which a crash may tear."""
        with open(os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC), 'wb') as f:
            f.write(text if isinstance(text, bytes) else text.encode('utf-8', 'backslashreplace'))
            f.truncate()
            f.flush()
            os.fsync(f.fileno())

    def followed(self, path):
        """What a path is a link to, as to a disk, if it is our own link in a directory of our own;
        else the path."""
        try:
            link, place = os.lstat(path), os.stat(os.path.dirname(path) or '.')
            if link.st_uid == place.st_uid == os.geteuid() and not place.st_mode & 0o022:
                return os.path.realpath(path)
        except OSError:
            pass
        return path

    def remove(self, path):
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass

    # what `install` needs
    def make_directory(self, path):
        os.makedirs(path, 0o755, exist_ok=True)

    def remove_directory(self, path):
        shutil.rmtree(path)

    def mode(self, path, otherwise):
        """The permissions of a file, if it is there."""
        try:
            return stat.S_IMODE(os.stat(path).st_mode)
        except FileNotFoundError:
            return otherwise

    def link(self, target, path):
        self.make_directory(os.path.dirname(path))
        os.symlink(target, path)

    def unzipped(self, path):
        """The bytes in a file that gzip has made; OSError, ValueError or zlib.error if there are
        none."""
        with open(path, 'rb') as f:
            return zlib.decompress(f.read(), GZIP)

    def unpacked(self, path):
        """The bytes in a file that bzip2 has made."""
        with open(path, 'rb') as f:
            return bz2.decompress(f.read())

    def compile(self, path, hashed=False):
        """Puts the byte code of a packed source beside it, packed, as the loader that `install`
        writes wants it; with a hash instead of a time, where others may change that."""
        import importlib.util
        with open(path, 'rb') as f:
            there = f.read()
        if hashed:
            head = struct.pack('<I', 3) + importlib.util.source_hash(there)
        else:
            head = struct.pack('<III', 0, int(os.stat(path).st_mtime) & 0xffffffff, len(there))
        # by another Python: where in a line something stands takes a third of all room
        made = subprocess.run(
            [sys.executable, '-IS', '-X', 'no_debug_ranges', '-c', COMPILE],
            input=bz2.decompress(there), stdout=subprocess.PIPE, check=True).stdout
        made = importlib.util.MAGIC_NUMBER + head + made
        self.replace(self.byte_code(path), gzipped(made), 0o644)

    def compiled(self, path):
        """Is the byte code there, whole, made by this Python of what the source is now?"""
        import importlib.util
        try:
            made = self.unzipped(self.byte_code(path))
            if made[:4] != importlib.util.MAGIC_NUMBER or not marshal.loads(made[16:]):
                return False
            there = os.stat(path)
            if made[4]:
                with open(path, 'rb') as f:
                    return made[8:16] == importlib.util.source_hash(f.read())
            return struct.unpack('<II', made[8:16]) == (int(there.st_mtime) & 0xffffffff,
                                                        there.st_size & 0xffffffff)
        except (OSError, EOFError, ValueError, TypeError, IndexError, struct.error, zlib.error):
            return False

    @staticmethod
    def byte_code(path):
        return '%s/banwatch.%s.gz' % (os.path.dirname(path), sys.implementation.cache_tag)

    def make_fifo(self, path):
        os.mkfifo(path, 0o600)

    def writable(self, path):
        """False if a file cannot be made here."""
        return os.access(os.path.dirname(path), os.W_OK)

    def recall(self, path):
        """Text of a state file; None if there is none; ValueError if it is not ours to trust."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as e:
            raise ValueError(e.strerror) from None
        with open(fd, 'rb') as f:
            there = os.fstat(fd)
            if not stat.S_ISREG(
                there.st_mode) or there.st_uid != os.geteuid() or there.st_mode & 0o022:
                raise ValueError('not a file of our own')
            if there.st_size > 64 << 20:
                raise ValueError('too large')
            return f.read().decode()

    def put_aside(self, path):
        """Renames a file that cannot be used; what it is called now."""
        try:
            os.rename(path, path + '.bad')
            return path + '.bad'
        except OSError as e:
            return 'not movable: %s' % e.strerror

    def rule_events(self, changed):
        """Calls `changed()` whenever another program changes rules of ours, or among which ours
        stand; nothing where the kernel does not tell that (legacy iptables)."""
        try:
            link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 12)
            link.bind((0, 1 << NFT_GROUP - 1))
        except OSError:
            return
        link.setblocking(False)
        begun = False

        def readable():
            nonlocal begun
            try:
                told, begun = rules_changed(link.recv(1 << 16), self.pids, begun)
            except BlockingIOError:
                return
            except OSError:                        # there were too many to be told
                told = True
            if told:
                changed()
        self.loop.watch(link, readable)

    # network
    def networks(self):
        """Frees of this machine: addresses, LANs, gateways, resolvers; OSError if they are
        unknown."""
        found = [(text, 'a resolver') for text in self.resolvers()]
        addresses, gateways, outward = read_netlink()
        self.outward = outward or self.outward     # while the line is down, its network is no LAN
        self.has_ipv6 = any(':' in ip and ip != '::1' for ip, *_ in addresses)
        found += [(text, 'a gateway') for text in gateways]
        for ip, peer, bits, index in addresses:
            name = interface(index)
            found += [(ip, 'this machine, %s' % name)]
            if peer != ip:
                found += [(peer, 'the other end of %s' % name)]
            if index not in self.outward:
                if name == 'lo':
                    what = 'this machine'
                else:
                    what = 'the LAN, %s' % name
                found += [('%s/%d' % (peer, bits), what)]
        rows = {}
        for text, why in found:
            try:
                rows.setdefault(network_of(text), make_exempt(text, why))
            except ValueError:
                pass
        return list(rows.values())

    def resolvers(self):
        for path in RESOLVERS:
            try:
                there = os.stat(path)
            except OSError:
                continue
            if there.st_uid == 0 and not there.st_mode & 0o022:      # /tmp is everybody's
                yield from re.findall(r'^nameserver\s+(\S+)', self.read(path), re.M)

    def passes(self, ip):
        """Does a packet from an address of the loopback get through to us?"""
        with socket.socket(socket.AF_INET,
                           socket.SOCK_DGRAM) as here, socket.socket(
                               socket.AF_INET, socket.SOCK_DGRAM) as there:
            here.settimeout(PACKET_SECONDS)
            try:
                here.bind(('127.0.0.1', 0))
                there.bind((ip, 0))
                word = os.urandom(16)
                here.connect(there.getsockname())          # from now on it hears nobody else
                there.sendto(word, here.getsockname())
                while here.recv(16) != word:
                    pass
                return True
            except OSError:
                return False

    def be_called(self, name):
        """What `ps` and `pidof` call us, however we were started."""
        try:
            with open('/proc/self/comm', 'w') as f:
                f.write(name)
        except OSError:
            pass

    def become_byte_code(self):
        """Starts this process anew from byte code if it had to compile its source: what that leaves
        behind is 20 MB. Comes back if it had not, or if that cannot be."""
        top = self.top()
        if 'banwatch' in sys._xoptions and sys.argv[0].startswith('/proc/self/fd/'):
            os.close(int(os.path.basename(sys.argv[0])))           # it has been read
        elif 'COMPILED' in globals():              # by the loader that `install` writes
            if COMPILED:                           # just now, as after an upgrade of Python
                self.become(COMPILED)
        elif top.f_globals is globals():
            self.become(top.f_code)

    @staticmethod
    def top():
        """The frame of the program that runs: our own source, or whoever has imported us."""
        frame = sys._getframe()
        while frame.f_back:
            frame = frame.f_back
        return frame

    def become(self, code):
        """Starts this process anew from the code of the whole program; comes back if that cannot
        be."""
        import importlib.util
        try:
            with tempfile.TemporaryFile() as f:
                f.write(importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code))
                f.flush()
                os.set_inheritable(f.fileno(), True)
                path = '/proc/self/fd/%d' % f.fileno()
                if not os.path.samefile(sys.executable, '/proc/self/exe'):
                    return  # a wrapper's word for another Python, or one that is being upgraded
                open(path, 'rb').close()
                # -I: or modules would be looked for beside that file, in /tmp
                os.execv(sys.executable,
                         [sys.executable, '-IS', '-X', 'banwatch=' + __file__, path] + sys.argv[1:])
        except (OSError, ValueError, TypeError):
            pass                                   # then as it is

    def log_to_syslog(self):
        syslog.openlog('banwatch', syslog.LOG_PID, syslog.LOG_DAEMON)
        self.log = lambda text: syslog.syslog(syslog.LOG_NOTICE, printable(text))
        self.loop.log = self.log

    def log(self, text):
        """One line to standard error, where init scripts and procd pick it up."""
        if sys.stderr.isatty():
            stamp = time.strftime('%H:%M:%S ')
        else:
            stamp = ''
        try:
            sys.stderr.write(stamp + printable(text) + '\n')
            sys.stderr.flush()
        except OSError:
            pass


def host_name(ip):
    """The name that belongs to an address, by the resolver, which may take its time; None if there
    is none."""
    try:
        return socket.gethostbyaddr(ip)[0]
    except OSError:
        return None


def open_log(path):
    """A descriptor of a log file; OSError if it is no file. To open a FIFO or a device has effects,
    and the path may be another file's since somebody looked: so it is opened without any first."""
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise OSError(0, 'is not a file')
        return os.open('/proc/self/fd/%d' % place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    finally:
        os.close(place)


def interface(index):
    """The name of a network interface, as br-lan."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return 'interface %d' % index


def read_netlink():
    """(addresses as (ip, peer, prefix length, interface), default gateways, their interfaces):
    rtnetlink(7)."""
    addresses, gateways, outward = [], [], set()
    for body in netlink_dump(22, 20):              # RTM_GETADDR, RTM_NEWADDR
        family, bits, _, _, index = struct.unpack_from('=BBBBI', body)
        attributes = dict(netlink_attributes(body, 8))
        raw = attributes.get(2, attributes.get(1))                   # IFA_LOCAL, IFA_ADDRESS
        if raw and family in (socket.AF_INET, socket.AF_INET6):
            addresses.append((socket.inet_ntop(family, raw),
                              socket.inet_ntop(family, attributes.get(1, raw)), bits, index))
    for body in netlink_dump(26, 24):              # RTM_GETROUTE, RTM_NEWROUTE
        family, bits, _, _, _, _, _, kind, _ = struct.unpack_from('=BBBBBBBBI', body)
        if bits or kind != 1 or family not in (socket.AF_INET, socket.AF_INET6):
            continue                               # only unicast default routes
        hops = [dict(netlink_attributes(body, 12))]
        paths, at = hops[0].get(9, b''), 0         # RTA_MULTIPATH: struct rtnexthop, attributes
        while at + 8 <= len(paths):
            size, _, _, index = struct.unpack_from('=HBBi', paths, at)
            hops.append(dict(netlink_attributes(paths[at:at + size], 8)))
            hops[-1][4] = struct.pack('=i', index)
            at += max(8, size + 3 & ~3)
        for hop in hops:
            if 5 in hop:                           # RTA_GATEWAY
                gateways.append(socket.inet_ntop(family, hop[5]))
            if 4 in hop:                           # RTA_OIF
                outward.add(struct.unpack('=i', hop[4])[0])
    return addresses, gateways, outward


# nftables' events, which iptables-nft's changes are, too (linux/netfilter/nf_tables.h): of tables,
# chains and rules, new or deleted, and of who has changed something, which ends a batch
NFT_CHANGES, NFT_GENERATION = (0, 2, 3, 5, 6, 8), 15
NFT_SUBSYSTEM, NFT_GROUP = 10, 7


def rules_changed(messages, own, changed=False):
    """(Do netlink messages (bytes) tell that somebody but these processes has changed rules of
    ours, or those that ours stand among? Has such a batch begun, of which the end is not there?)"""
    at, told = 0, False
    while at + 20 <= len(messages):
        size, kind = struct.unpack_from('=IH', messages, at)
        attributes = dict(netlink_attributes(messages[at:at + size], 20))
        if kind >> 8 == NFT_SUBSYSTEM and kind & 255 in NFT_CHANGES:
            changed = changed or attributes.get(1) in (OURS.encode() + b'\0', b'filter\0')
        elif kind >> 8 == NFT_SUBSYSTEM and kind & 255 == NFT_GENERATION:
            told = told or changed and int.from_bytes(attributes.get(2, b''), 'big') not in own
            changed = False
        at += max(16, size + 3 & ~3)
    return told, changed


def netlink_dump(ask, answer):
    """Yields the bodies of the `answer` messages that a dump request is answered with."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as link:
        link.settimeout(2)
        link.bind((0, 0))
        link.send(struct.pack('=IHHIIB3x', 20, ask, 0x301, 1, 0, 0))  # NLM_F_REQUEST | NLM_F_DUMP
        while True:
            answers, at = link.recv(1 << 18), 0
            while at + 16 <= len(answers):
                size, kind = struct.unpack_from('=IH', answers, at)
                if kind == 2:                      # NLMSG_ERROR
                    raise OSError(-struct.unpack_from('=i', answers, at + 16)[0], 'netlink')
                if kind == 3 or size < 16:         # NLMSG_DONE
                    return
                if kind == answer:
                    yield answers[at + 16:at + size]
                at += size + 3 & ~3


def netlink_attributes(body, at):
    """Yields (kind, bytes) of each struct rtattr from `at` on: rtnetlink(7)."""
    while at + 4 <= len(body):
        size, kind = struct.unpack_from('=HH', body, at)
        if size < 4:
            return
        yield kind & 0x3fff, body[at + 4:at + size]
        at += size + 3 & ~3


# ---- Worker --------------------------------------------------------------------------------
# Owns: one thing that is under way. Always true: what goes wrong is reported once, and tried again
# later and later; whoever waits for the end is answered; a bug in a script is trouble, not a hang.

class Failed(Exception):
    """A Command has failed, and why."""


def patience(attempts):
    """Seconds until the next try after so many that have failed: few at first, then a minute."""
    return min(MINUTE, 2 ** min(attempts, 9) / 2)


class Worker:
    """Does one thing at a time: `work()` is a script, a generator that yields Commands and is sent
    what each has printed; one that fails is thrown into it as Failed."""
    seconds = 10                     # for a Command

    def __init__(self, machine, name):
        self.machine, self.name = machine, name
        self.running = None          # the script under way
        self.retry = None            # timer
        self.trouble, self.attempts = '', 0
        self.replies = []            # to be called with `trouble` once what is to do now is done
        self.serving = []            # those that wait for the script under way

    def work(self):
        """The script."""
        raise NotImplementedError

    def due(self):
        """Is there something to do?"""
        return True

    def blocked(self):
        """Does something else have to end first?"""
        return False

    def settle(self):
        """Starts what there is to do, unless something is under way. A script that needs no program
        ends at once, and nothing would call us: then looks again."""
        while not self.running and not self.blocked():
            self.serving, self.replies = self.serving + self.replies, []
            if self.retry or not self.due():
                return self.answer()
            self.running = self.work()
            self.go_on('', None)

    def go_on(self, problem, output):
        """Runs the script up to the next Command that takes time."""
        while True:
            try:
                if problem:
                    command = self.running.throw(Failed(problem))
                else:
                    command = self.running.send(output)
            except StopIteration:
                return self.ended('')
            except Failed as e:
                return self.ended(str(e))
            except Exception:                      # or it would be under way for ever
                self.ended('a bug; the log has its traceback')
                raise
            answers, script = [], self.running

            def done(problem, output):
                if self.running is not script:     # it has been given up
                    return
                if answers is None:
                    self.go_on(problem, output)
                else:
                    answers.append((problem, output))
            self.machine.run(command, done, self.seconds)
            if not answers:
                answers = None
                return
            problem, output = answers[0]

    def ended(self, problem):
        """The script has ended."""
        self.running = None
        if problem:
            self.failed(problem)
        else:
            self.succeeded()
        self.answer()

    def succeeded(self):
        self.trouble, self.attempts = '', 0

    def failed(self, problem):
        """Reports a problem once, and tries again later."""
        if problem != self.trouble:
            self.machine.log(with_name(self.name, problem))
        self.trouble = problem
        self.attempts += 1
        self.wait(patience(self.attempts))

    def wait(self, seconds):
        """Does nothing for a while."""
        self.retry = self.machine.loop.after(seconds, self.stop_waiting)

    def stop_waiting(self):
        """From now on there is something to do again."""
        self.machine.loop.cancel(self.retry)
        self.retry = None

    def answer(self):
        """Answers those that have waited for what has just ended."""
        serving, self.serving = self.serving, []
        for reply in serving:
            reply(self.trouble)


def in_turn(commands):
    """Yields Commands one after the other, for a script; what each has printed."""
    outputs = []
    for command in commands:
        outputs.append((yield command))
    return outputs


def with_name(name, problem):
    """A problem with the name of what has it, which may be that of the program that told it."""
    if problem.startswith(name + ':'):
        return problem
    return '%s: %s' % (name, problem)


# ---- Sources -------------------------------------------------------------------------------
# Owns: where the log comes from, offsets, partial lines. Always true: a source hands over whole
# lines, each once; one that ends or fails is opened again, later and later, and neither spins nor
# disturbs the others.

# lines count: as of now; at their own time, else now; ... else not
LIVE, RECENT, OLD = range(3)
CHUNK = 1 << 17
# seconds to the next chunk: signals and clients come in between
SOON = 0.001
BACKLOG = 1 << 18                    # of a log seen for the first time, this much is read back
# bytes before an offset that tell whether it is still the same file
MARK = 64
MOST_FILES = 200                     # of a glob; each takes a descriptor
RETIRE = 600                         # a renamed file that has been quiet for so long is let go
FEW_LINES = 20                       # that are looked at before it is said that they have no tag
SEEN = 100                           # lines of a program by which it is known what it tells again
# seconds after which the ring is asked whether there is nothing to hear
SILENCE = 300
RING_SECONDS = 10                    # to read it
SETTLE = 1                           # seconds in which a program that was started tells old lines
PATIENCE = 60                        # seconds between attempts, at most


class LineSplitter:
    """Makes whole lines of what comes in pieces. A line over PLAIN_LINE keeps its beginning
    only."""

    def __init__(self):
        self.partial, self.held = b'', 0           # held: bytes read since the last newline

    def feed(self, chunk):
        """The whole lines there are by now, as one block."""
        end = chunk.rfind(b'\n') + 1
        if end:
            block, self.partial = self.partial + chunk[:end], chunk[end:]
            self.held = len(self.partial)
            return block
        if len(self.partial) <= PLAIN_LINE:
            self.partial += chunk
        self.held += len(chunk)
        return b''

    def rest(self):
        """The last line, if its newline never came."""
        block, self.partial, self.held = self.partial, b'', 0
        if block:
            return block + b'\n'
        return b''


class Source:
    """One place that lines come from; `deliver(source, block, age)` takes them, age LIVE, RECENT or
    OLD."""
    fills = False                    # does it get hold of what was written while it did not listen?

    def __init__(self, spec, argument, machine, deliver, poll=1, complain=lambda source,
                 reason: None):
        self.spec = spec             # as the conf names it
        self.argument = argument     # what to open: a path, an address, a command
        self.machine, self.loop, self.deliver, self.poll = machine, machine.loop, deliver, poll
        self.complain = complain     # told each time that it fails
        self.meant = self.what = spec              # what `auto` has found; the same for people
        self.trouble = ''            # why nothing comes, for `status`
        self.reason = ''             # why it was closed last
        self.lines = 0
        self.last = None             # ticks of the last line
        # of the lines that were looked at lately: how many, how many without a tag; and when
        self.sampled, self.tagless, self.sampled_at = 0, 0, float('-inf')
        self.tries = 0
        self.timer = None

    def start(self, position=None):
        self.since = self.machine.ticks()
        try:
            self.trouble = ''
            self.open(position)
        except (OSError, Problem) as e:
            self.fail(getattr(e, 'strerror', None) or str(e))

    def fail(self, reason):
        """Closes the source, and opens it again after a while."""
        self.close()
        if reason != self.reason:
            self.machine.log('%s: %s; trying again' % (self.what, reason))
        self.complain(self, reason)
        self.trouble = self.reason = reason
        self.timer = self.loop.after(min(PATIENCE, 2 ** min(self.tries, 9)), self.start)
        self.tries += 1

    def close(self):
        self.loop.cancel(self.timer)
        self.shut()

    def hand_over(self, block, age=LIVE):
        if not block:
            return
        self.lines += block.count(b'\n')
        self.last = self.machine.ticks()
        if self.last - self.since > PATIENCE:
            self.tries = 0
        self.deliver(self, block, age)

    def sample(self, block):
        """Looks whether lines of a tidy block have a tag (`program: `), as built-in filters need
        it: at the first ones of a source, then at one a second at most."""
        now = self.machine.ticks()
        if self.sampled >= FEW_LINES and now - self.sampled_at < 1:
            return
        self.sampled_at = now
        for line in block.split(b'\n', FEW_LINES + 1)[1:FEW_LINES + 1]:
            if line:
                self.sampled += 1
                self.tagless += LINE.match(line).start('program') < 0
        if self.sampled > 8 * FEW_LINES:           # what was long ago matters less
            self.sampled, self.tagless = self.sampled // 2, self.tagless // 2

    def blind(self):
        """Do most of its lines lack a tag?"""
        return self.sampled >= FEW_LINES and self.tagless > self.sampled / 2

    def position(self):
        """What `start` needs to go on from here after a restart; None if there is no such thing."""
        return None

    def quiet(self, seconds):
        """Has the file of this name not been written to for so long?"""
        age = self.machine.age(self.meant)
        return age is not None and age > seconds

    def check(self):
        """Once a minute: is this still what the conf means?"""


class Pipe(Source):
    """A FIFO, or standard input. We hold the FIFO's other end too, so it never reaches its end."""
    fd = None

    def open(self, position):
        if self.argument == '-':
            self.fd = os.dup(0)
        else:
            if not os.path.lexists(self.argument):
                self.machine.make_fifo(self.argument)
            self.fd = os.open(self.argument, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            if not stat.S_ISFIFO(os.fstat(self.fd).st_mode):
                raise OSError(0, 'is not a FIFO')
        self.cutter = LineSplitter()
        try:
            self.loop.watch(self.fd, self.readable)
        except PermissionError:                    # epoll takes no regular file
            self.timer = self.loop.after(SOON, self.whole_file)

    def readable(self):
        try:
            chunk = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return True
        if chunk:
            self.hand_over(self.cutter.feed(chunk))
        else:
            self.hand_over(self.cutter.rest())
            self.shut()
            self.trouble = 'ended'
        return bool(chunk)

    def whole_file(self):
        if self.readable():
            self.timer = self.loop.after(SOON, self.whole_file)

    def check(self):
        if self.argument != '-' and self.fd is not None:
            try:
                same = os.path.samestat(os.stat(self.argument), os.fstat(self.fd))
            except OSError:
                same = False
            if not same:
                self.fail('was replaced')

    def shut(self):
        if self.fd is not None:
            self.loop.unwatch(self.fd)
            os.close(self.fd)
            self.fd = None


class Child(Source):
    """A program that prints log lines. It is killed with its whole group. What it prints in the
    first second may be older: it counts at its own time."""
    process = settling = tether = None

    def open(self, position):
        self.process, self.tether = self.machine.spawn_tethered(self.argument)
        self.cutter, self.said = LineSplitter(), ''
        self.settling = self.loop.after(SETTLE, self.settled)
        for stream, handler in ((self.process.stdout, self.readable),
                                (self.process.stderr, self.complaint)):
            os.set_blocking(stream.fileno(), False)
            self.loop.watch(stream.fileno(), handler)

    def readable(self):
        try:
            chunk = os.read(self.process.stdout.fileno(), 1 << 16)
        except BlockingIOError:
            return
        if chunk:
            self.take(self.cutter.feed(chunk))
            return
        self.take(self.cutter.rest())
        self.settled()
        self.complaint()
        self.fail('ended' + (': ' + self.said if self.said else ''))

    def take(self, block):
        """Hands a block over."""
        self.hand_over(block, RECENT if self.settling else LIVE)

    def settled(self):
        """The first second is over."""
        self.loop.cancel(self.settling)
        self.settling = None

    def complaint(self):
        """Keeps the last line of what the program says on standard error."""
        stream = self.process.stderr
        try:
            said = os.read(stream.fileno(), 4096)
        except (OSError, ValueError):
            return
        if said:
            self.said = printable(said.decode('utf-8', 'replace').strip().split('\n')[-1])[:200]
        else:
            self.loop.unwatch(stream.fileno())
            stream.close()

    def shut(self):
        self.loop.cancel(self.settling)
        process, self.process, self.settling = self.process, None, None
        if process is None:
            return
        if self.tether is not None:
            os.close(self.tether)
            self.tether = None
        for stream in (process.stdout, process.stderr):
            if not stream.closed:
                self.loop.unwatch(stream.fileno())
                stream.close()
        self.machine.kill(process)
        try:
            process.wait(1)                        # it has been killed: this does not take long
        except subprocess.TimeoutExpired:
            # it hangs in the kernel, on a dead file server perhaps
            pass


class Logread(Child):
    """OpenWrt's `logread -f`. When its log daemon is replaced it loses lines, or goes deaf without
    a word; but the daemon's ring still has them. So the ring is read at each start, as soon as the
    follower is sure to listen, and what of it is new comes first; and after a silence its last line
    is asked for. A line tells its second, so it is known again as often as it was told, in whatever
    order."""
    fills = True
    SOCKET = '/dev/log'              # each log daemon makes it anew
    RING, LAST = ['logread'], ['logread', '-l', '1']          # what prints all, and the last line
    asked = 0                        # when
    # what the follower may tell although the ring has told it, and how long
    ring, ring_until = None, 0

    def open(self, position):
        self.socket = inode(self.SOCKET)
        # checksums of the last lines, by which it is known what is told again
        self.seen = getattr(self, 'seen', None) or collections.deque(
            position if is_checksums(position) else (), maxlen=SEEN)
        Child.open(self, position)
        self.ring, self.first = None, b''
        self.loop.cancel(self.settling)
        self.settling = self.loop.after(SETTLE, self.ask_ring)

    def ask_ring(self):
        self.asked = self.machine.ticks()
        self.machine.run(Command(self.RING, tail=True),
                         functools.partial(self.read_ring, self.process), RING_SECONDS)

    def take(self, block):
        if self.settling:
            self.first += block
            if len(self.first) >= BACKLOG:
                self.complain(self, 'lines may be lost: too many came at once')
                self.settled()
            return
        if self.ring:
            if self.machine.ticks() > self.ring_until:
                self.ring = None
            else:
                block = lines_not_in(block, self.ring)
        self.pass_on(block, LIVE)

    def read_ring(self, process, problem, output):
        """Hands over what the ring has and was not seen yet, then what the follower has told
        meanwhile."""
        if process is not self.process or not self.settling:
            return
        if problem:
            self.complain(self, 'lines may be lost: %s' % problem)
            return self.settled()
        ring = output.encode('utf-8', 'surrogateescape')
        ring = ring[:ring.rfind(b'\n') + 1]
        new, age = self.new_lines(ring), RECENT if self.seen else OLD
        if self.seen and new == ring:
            self.complain(self,
                          'lines are lost: more were written than the ring holds, or it was '
                          'emptied')
        self.ring, self.ring_until = collections.Counter(
            checksums(ring)), self.machine.ticks() + RING_SECONDS
        Child.settled(self)
        block, self.first = self.first, b''
        self.pass_on(new, age)
        self.take(block)

    def settled(self):
        """The first second is over, and the ring was not asked."""
        Child.settled(self)
        block, self.first = self.first, b''
        self.pass_on(self.new_lines(block), RECENT)

    def pass_on(self, block, age):
        self.seen.extend(checksums(block, SEEN))
        self.hand_over(block, age)

    def position(self):
        return list(self.seen)

    def new_lines(self, block):
        """What of a block was not seen yet. What stands before the oldest line that is remembered
        was."""
        numbers = checksums(block)
        if len(self.seen) == SEEN and self.seen[0] in numbers:
            at = len(numbers) - numbers[::-1].index(self.seen[0]) - 1
        else:
            at = 0
        return lines_not_in(b'\n'.join(block.split(b'\n')[at:]), collections.Counter(self.seen))

    def complaint(self):
        """It has lost its log daemon, and will go on with what a new one is told after it has found
        it."""
        Child.complaint(self)
        if self.said:
            self.loop.after(0, functools.partial(self.is_lost, self.process))

    def is_lost(self, process):
        if process is self.process:
            # what it has told so far: the ring may have it no more
            self.settled()
            self.fail(self.said)

    def check(self):
        """A new log daemon is known by its socket: the follower may go on waiting for the old one.
        And the ring's last line is asked for after a silence."""
        now = self.machine.ticks()
        if self.process and inode(self.SOCKET) not in (None, self.socket):
            self.settled()                         # what has been told so far
            self.fail('its log daemon was replaced')
        elif self.process and not self.settling and now - max(
            self.asked, self.last or 0) >= SILENCE:
            self.asked = now
            self.machine.run(Command(self.LAST, tail=True),
                             functools.partial(self.heard, self.process), RING_SECONDS)

    def heard(self, process, problem, output):
        """The ring's last line is known: the follower should have told it by now, or very soon."""
        last = checksums(output.encode('utf-8', 'surrogateescape'))[-1:]
        if last and last[0] not in self.seen and not problem:
            self.loop.after(SETTLE, functools.partial(self.is_deaf, process, last[0]))

    def is_deaf(self, process, last):
        if process is self.process and last not in self.seen:
            self.fail('has gone deaf')


class Journal(Logread):
    """systemd's journal, in the same way: what it has kept of the last minutes is its ring."""
    RING = ['journalctl', '-q', '-o', 'short-iso', '--since=-10min']
    LAST = ['journalctl', '-q', '-o', 'short-iso', '-n', '1']
    complaint, check = Child.complaint, Source.check           # it finds a new log daemon by itself


def inode(path):
    """(device, inode) of a file, None if there is none."""
    try:
        return file_identity(os.stat(path))
    except OSError:
        return None


def checksums(block, most=None):
    """One number for each of the last lines of a block; without the day and hour of logd's and
    ISO's dates, or a ring that is told in another time zone would be another ring."""
    return [binascii.crc32(line[13:] if line[13:14] == b':' else line)
            for line in block.split(b'\n')[:-1][-most if most else 0:]]


def lines_not_in(block, told):
    """The lines of a block that are not among the `told`, a Counter of checksums; those that are
    count down there."""
    new = []
    for line, number in zip(block.split(b'\n'), checksums(block)):
        if told[number] > 0:
            told[number] -= 1
        else:
            new.append(line + b'\n')
    return b''.join(new)


def is_checksums(position):
    """True if this position is one in the output of a program: checksums of its last lines."""
    return type(position) is list and all(type(n) is int for n in position)


class Datagrams(Source):
    """syslog over UDP. A datagram is one line, whatever it holds; its sender is not to be
    trusted."""
    sock = None

    def open(self, position):
        host, port = self.argument
        self.sock = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET,
                                  socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.sock.setblocking(False)
        self.sock.bind((host, port))
        self.loop.watch(self.sock.fileno(), self.readable)

    def readable(self):
        block = []
        try:
            while len(block) < 256:
                line = self.sock.recv(PLAIN_LINE + 2)
                if len(line) < PLAIN_LINE + 2:     # else it may have been cut: that must be seen
                    line = line.rstrip(b'\0\r\n ')
                block.append(line.replace(b'\n', b' ') + b'\n')
        except BlockingIOError:
            pass
        except OSError as e:
            self.hand_over(b''.join(block))
            return self.fail(e.strerror)
        self.hand_over(b''.join(block))

    def shut(self):
        if self.sock is not None:
            self.loop.unwatch(self.sock)
            self.sock.close()
            self.sock = None


TRAP_CLIENTS, CLIENTS_OF_ONE = 32, 4           # at a time: of a trap, and of one address
LINE_BYTES, CLIENT_BYTES = 512, 4096           # that are taken from a client: a line, in all
SESSION_LIMIT, IDLE_LIMIT = 30, 10             # seconds
MOST_GUESSES = 3                               # of a session, as login(1) has it
Ask = collections.namedtuple('Ask', 'echo')    # what a trap's script yields: it wants a line,
Guess = collections.namedtuple('Guess', 'name')   # somebody has guessed,
Pause = collections.namedtuple('Pause', 'seconds')   # time is to go by; or bytes to be sent


class Trap(Source):
    """A server that lets nobody in. It tells its jail of each connection and each guess, and no
    text of a client's but the name. Nothing here blocks, and everything has a limit."""
    sock = None

    def open(self, position):
        protocol, host, port = self.argument
        self.protocol, self.script = protocol, TRAP_SCRIPTS[protocol]
        self.clients = set()
        if not (host or os.path.exists('/proc/net/if_inet6')):
            host = '0.0.0.0'                       # a kernel without IPv6
        family = socket.AF_INET6
        if '.' in host:
            family = socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not host:                               # IPv4, too
            self.sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.sock.bind((host or '::', port))
        self.sock.listen(CLIENTS_OF_ONE)
        self.listen()

    def listen(self):
        if self.sock is not None:
            self.loop.watch(self.sock, self.accept)

    def accept(self):
        try:
            sock, peer = self.sock.accept()
        except BlockingIOError:
            return
        except OSError:                            # it has gone, or no descriptor is free
            self.loop.unwatch(self.sock)
            self.timer = self.loop.after(1, self.listen)
            return
        ip = address(peer[0])
        self.tell(ip, 'connect')
        same = sum(client.ip == ip for client in self.clients)
        if len(self.clients) >= TRAP_CLIENTS or same >= CLIENTS_OF_ONE:
            sock.close()
        else:
            client = TrapClient(sock, ip, self)
            if client.sock.fileno() >= 0:          # it has not gone already
                self.clients.add(client)

    def tell(self, ip, what):
        """Hands over a line for the filter `trap`."""
        line = 'trap: %s %s %s' % (ip, self.protocol, what)
        self.hand_over(printable(line).encode('utf-8', 'backslashreplace') + b'\n')

    def shut(self):
        if self.sock is not None:
            for client in list(self.clients):
                client.close()
            self.loop.unwatch(self.sock)
            self.sock.close()
            self.sock = None


class TrapClient:
    """One connection to a trap, which runs a script of its own."""

    def __init__(self, sock, ip, trap):
        self.sock, self.ip, self.trap, self.loop = sock, ip, trap, trap.loop
        # what has come of a line; is a LF that comes next the rest of the last one's end?
        self.line, self.skip_lf = b'', False
        self.waits = None                          # the Ask under way
        self.taken, self.guesses, self.names = 0, 0, []
        self.telnet = None
        if trap.protocol == 'telnet':
            self.telnet = Telnet()
        self.script = trap.script(trap.machine.host())
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        self.loop.watch(sock, self.readable)
        self.limit = self.loop.after(SESSION_LIMIT, self.close)
        self.idle = self.loop.after(IDLE_LIMIT, self.close)
        self.go_on(None)

    def go_on(self, line):
        """Runs the script until it waits for a line, or for time to go by."""
        try:
            step = self.script.send(line)
            while True:
                if isinstance(step, Ask):
                    self.waits = step
                    return
                if isinstance(step, Pause):
                    self.waits = None
                    self.loop.after(step.seconds, functools.partial(self.after_pause, self.script))
                    return
                if isinstance(step, Guess):
                    self.guess(step.name)
                else:
                    self.sock.send(step)
                step = next(self.script)
        except (StopIteration, OSError):           # it is over, or the client takes nothing
            self.close()

    def after_pause(self, script):
        if self in self.trap.clients:
            self.go_on(None)
            self.take(b'')

    def guess(self, name):
        """Somebody has tried a password."""
        name = name.decode('utf-8', 'backslashreplace')[:64]
        self.guesses += 1
        self.names.append(name)
        self.trap.tell(self.ip, ('guess ' + name).rstrip())

    def readable(self):
        try:
            data = self.sock.recv(LINE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b''
        self.taken += len(data)
        if not data or self.taken > CLIENT_BYTES:
            self.close()
            return
        self.loop.cancel(self.idle)
        self.idle = self.loop.after(IDLE_LIMIT, self.close)
        if self.telnet:
            data, answer = self.telnet.feed(data)
            if answer and not self.send(answer):
                return
        self.take(data)

    def take(self, data):
        """Hands whole lines to the script, and echoes those that may be seen."""
        self.line = (self.line + data)[:LINE_BYTES * 2]
        while self.line and self.waits and self in self.trap.clients:
            if self.skip_lf and self.line[:1] in b'\n\0':
                self.line = self.line[1:]
            self.skip_lf = False
            ends = [at for at in map(self.line.find, (b'\r', b'\n', b'\0')) if at >= 0]
            if not ends and len(self.line) < LINE_BYTES:
                return
            end = min(ends, default=LINE_BYTES)
            line, self.skip_lf = self.line[:end], self.line[end:end + 1] == b'\r'
            self.line = self.line[end + 1:]
            if not self.waits.echo or self.send(line + b'\r\n'):
                self.go_on(line)

    def send(self, data):
        """False if the client takes nothing, and is gone therefore."""
        try:
            self.sock.send(data)
            return True
        except OSError:
            self.close()
            return False

    def close(self):
        if self in self.trap.clients or self.sock.fileno() >= 0:
            self.trap.clients.discard(self)
            for timer in self.limit, self.idle:
                self.loop.cancel(timer)
            self.loop.unwatch(self.sock)
            self.sock.close()
            said = plural(self.guesses, 'guess', 'guesses')
            names = set(self.names) & set(self.trap.machine.accounts())
            if names:
                said += ' (%s)' % ', '.join(sorted(names))
            self.trap.machine.log('trap %s: %s: %s' % (self.trap.protocol, self.ip, said))


IAC, DONT, DO, WONT, WILL, SB, SE = 255, 254, 253, 252, 251, 250, 240          # RFC 854
ECHO, SGA, NAWS = 1, 3, 31


class Telnet:
    """Takes telnet's commands out of what a client sends, and refuses what it asks for, once."""

    def __init__(self):
        self.state, self.command, self.answered = None, 0, set()

    def feed(self, data):
        """(what is left as text, the answer to the commands)."""
        text, answer = bytearray(), bytearray()
        for byte in data:
            if self.state is None:
                if byte == IAC:
                    self.state = IAC
                else:
                    text.append(byte)
            elif self.state == SB:                 # up to IAC SE
                if byte == IAC:
                    self.state = SE
            elif self.state == SE and byte != SE:
                self.state = SB
            elif self.state == IAC and byte == IAC:
                text.append(byte)
                self.state = None
            elif self.state == IAC and byte in (DO, DONT, WILL, WONT):
                self.state, self.command = DO, byte
            elif self.state == IAC and byte == SB:
                self.state = SB
            elif self.state == DO:
                self.state = None
                answer += self.refusal(byte)
            else:                                  # the end of a subnegotiation, or of a command
                self.state = None
        return bytes(text), bytes(answer)

    def refusal(self, option):
        """The answer to DO or WILL of what this server does not have; b'' if it has been given."""
        known = {DO: (ECHO, SGA), WILL: (ECHO, SGA, NAWS)}.get(self.command)
        if known is None or option in known or (self.command, option) in self.answered:
            return b''
        self.answered.add((self.command, option))
        return bytes((IAC, {DO: WONT, WILL: DONT}[self.command], option))


def telnet_script(host):
    """What busybox' telnetd and login(1) say."""
    yield bytes((IAC, DO, ECHO, IAC, DO, NAWS, IAC, WILL, ECHO, IAC, WILL, SGA)) + b'\r\n'
    for _ in range(MOST_GUESSES):
        yield ('%s login: ' % host).encode()
        name = yield Ask(True)
        if name:
            yield b'Password: '
            yield Ask(False)
            yield Guess(name)
            yield Pause(WRONG_SECONDS)
            yield b'\r\nLogin incorrect\r\n'


def rlogin_script(host):
    """rlogind: four strings, of which the third is who wants to be let in (RFC 1282)."""
    yield Ask(False)
    yield Ask(False)
    name = yield Ask(False)
    yield Ask(False)
    yield b'\0'
    for _ in range(MOST_GUESSES):
        yield b'Password: '
        yield Ask(False)
        yield Guess(name)
        yield Pause(WRONG_SECONDS)
        yield b'\r\nLogin incorrect\r\n'


def ssh_script(host):
    """An SSH server as far as its banner: who goes on after his own has guessed."""
    yield b'SSH-2.0-dropbear_2022.83\r\n'
    banner = yield Ask(False)
    if banner.startswith(b'SSH-'):
        yield Ask(False)
        yield Guess(b'')


def http_script(host):
    """A page that wants a password."""
    name = None
    for _ in range(40):                            # lines of a request
        line = yield Ask(False)
        if not line:
            break
        field, _, value = line.partition(b':')
        if field.strip().lower() == b'authorization':
            try:
                word = value.split()[-1]
                name = binascii.a2b_base64(word).partition(b':')[0]
            except (ValueError, IndexError):
                name = b''
    if name is not None:
        yield Guess(name)
    yield (b'HTTP/1.0 401 Unauthorized\r\nWWW-Authenticate: Basic realm="Router"\r\n'
           b'Content-Type: text/html\r\nConnection: close\r\n\r\n401 Unauthorized\r\n')


def tcp_script(host):
    """Silence."""
    yield Ask(False)


WRONG_SECONDS = 3                    # busybox' login waits as long
TRAP_SCRIPTS = {'telnet': telnet_script, 'rlogin': rlogin_script, 'ssh': ssh_script,
                'http': http_script, 'tcp': tcp_script}


class OpenFile:
    """One log file that a Tail has open."""
    __slots__ = ('fd', 'path', 'identity', 'offset', 'cutter', 'mark', 'head', 'changed', 'seen',
                 'age')

    def __init__(self, fd, path, offset, now, age):
        self.fd, self.path, self.offset = fd, path, offset
        self.identity = file_identity(os.fstat(fd))
        self.cutter = LineSplitter()
        self.changed = None          # its mtime when we last read to its end
        self.seen = now              # when it last had something for us, or was at its path
        self.age = age               # of what it holds; LIVE once its end was reached
        self.remember()

    def remember(self):
        """Notes what stands before the offset, and at the file's beginning, to know it again."""
        at = self.offset - self.cutter.held
        self.mark = fingerprint(self.fd, max(0, at - MARK), min(MARK, at))
        self.head = fingerprint(self.fd, 0, min(2 * MARK, at))

    def position(self):
        return [self.path, list(self.identity), self.offset - self.cutter.held, self.mark,
                self.head]


def file_identity(info):
    """(device, inode) of what stat has found: the same for a file under each of its names."""
    return info.st_dev, info.st_ino


def fingerprint(fd, at, size):
    """[size, checksum] of some bytes of a file."""
    return [size, binascii.crc32(os.pread(fd, size, at)) if size else 0]


class Tail(Source):
    """Log files that match a pattern, read as they grow. A file is known by its inode, so a renamed
    one is read to its end and watched until its writer has moved on; one that was truncated, even
    if it has grown past the old offset since, by the bytes before the offset."""

    def open(self, position):
        self.files = {}              # (device, inode) -> Followed
        self.told = ''               # the trouble that the log knows of
        if type(position) is list:
            known = position
        else:
            known = []
        for row in known:
            try:
                self.resume(*row)
            except (OSError, TypeError, ValueError, LookupError, OverflowError):
                # a position that makes no sense is as good as none
                pass
        self.discover(RECENT if known else OLD, near_end=not known)
        self.look()

    def look(self):
        """Reads what is new, then looks for new files; soon again if there is more."""
        more = False
        try:
            for file in list(self.files.values()):
                more |= self.read(file)
            more |= self.discover()
        finally:
            self.timer = self.loop.after(SOON if more else self.poll, self.look)

    def read(self, file):
        """Hands over what a file has that is new; True if there is more."""
        try:
            there = os.fstat(file.fd)
            if there.st_size == file.offset and there.st_mtime_ns == file.changed:
                return False
            self.rewound(file, there.st_size)
            chunk = os.pread(file.fd, CHUNK, file.offset)
        except OSError as e:
            self.machine.log('%s: %s' % (file.path, e.strerror))
            self.let_go(file)
            return False
        file.changed = there.st_mtime_ns
        age = file.age
        if chunk:
            file.seen = self.machine.ticks()
            file.offset += len(chunk)
        more = file.offset < there.st_size
        if more:
            file.age = age
        else:
            file.age = LIVE
        if chunk:
            block = file.cutter.feed(chunk)
            file.remember()
            self.hand_over(block, age)
        return more

    def rewound(self, file, size):
        """If a file is not the one it was, starts it anew, after what is left of the old one in a
        copy."""
        at = file.offset - file.cutter.held
        if size >= file.offset and fingerprint(file.fd, at - file.mark[0],
                                               file.mark[0]) == file.mark:
            return
        copy = self.find(file.path, at, file.mark, file.head)
        while copy and self.read(copy):
            pass
        file.offset, file.cutter, file.age = 0, LineSplitter(), RECENT
        file.remember()

    def find(self, path, offset, mark, head, known=None):
        """Opens what log rotation has made of a file (renamed it, or copied it) at its old offset.
        A file that nothing was read of is known by its inode alone."""
        beside = set(glob.glob(glob.escape(path) + '*') + glob.glob(self.argument)
                     + glob.glob(glob.escape(os.path.realpath(path)) + '*'))
        dated = []
        for other in beside:
            try:                                   # one may go while we look
                there = os.stat(other)
                if stat.S_ISREG(there.st_mode):
                    dated.append((there.st_mtime, other))
            except OSError:
                pass
        for _, other in sorted(dated, reverse=True)[:20]:      # the newest are enough
            try:
                fd = open_log(other)
            except OSError:
                continue
            this = file_identity(os.fstat(fd))
            if this not in self.files and (
                    same_file(fd, offset, mark, head) if mark[0] else list(this) == known):
                self.files[this] = OpenFile(fd, path, offset, self.machine.ticks(), RECENT)
                return self.files[this]
            os.close(fd)
        return None

    def resume(self, path, known, offset, mark, head):
        """Goes on where an earlier run left off, also if the file has been renamed or copied
        since."""
        for size, _ in (mark, head):
            if not 0 <= size <= min(2 * MARK, offset) or offset > 1 << 50:
                raise ValueError('no position')
        self.find(path, offset, mark, head, known)

    def discover(self, age=None, near_end=False):
        """Opens files that have come; lets go of those that have gone. True if there are new
        ones."""
        now, paths = self.machine.ticks(), sorted(glob.glob(self.argument))
        there, new, trouble = set(), False, '' if paths else 'waiting for it to appear'
        if len(paths) > MOST_FILES:
            trouble = '%d files: only the %d newest are followed' % (len(paths), MOST_FILES)
            paths = sorted(paths, key=lambda path: self.machine.age(path) or 0)[:MOST_FILES]
        for path in paths:
            try:
                info = os.stat(path)
                there.add(file_identity(info))
                known = self.files.get(file_identity(info))
                if known:
                    known.path, known.seen = path, now
                elif not stat.S_ISREG(info.st_mode):
                    raise OSError(0, 'is not a file')
                elif not path.endswith(('.gz', '.bz2', '.xz', '.zst')):
                    if near_end:
                        start = max(0, info.st_size - BACKLOG)
                    else:
                        start = 0
                    new |= self.follow(path, start, self.age_of_new(path) if age is None else age)
            except OSError as e:
                trouble = '%s: %s' % (path, e.strerror)
        for file in list(self.files.values()):
            if file.identity not in there and now - file.seen > RETIRE:
                self.let_go(file)
        if trouble and trouble != self.told:
            self.machine.log('%s: %s' % (self.argument, trouble))
        self.trouble = self.told = trouble
        return new

    def age_of_new(self, path):
        """LIVE for the next file of one that is followed (rotation), RECENT for one that just
        came."""
        if any(file.path == path for file in self.files.values()):
            return LIVE
        return RECENT

    def follow(self, path, start, age):
        """Opens a file at the first whole line from `start`; a copy of what we know, at its end."""
        fd = open_log(path)
        for other in self.files.values():
            if other.head[0] > MARK and fingerprint(fd, 0, other.head[0]) == other.head:
                start = os.fstat(fd).st_size       # log rotation with a wide glob
                break
        else:
            if start:
                start += os.pread(fd, PLAIN_LINE, start).find(b'\n') + 1
        file = OpenFile(fd, path, start, self.machine.ticks(), age)
        self.files[file.identity] = file
        return True

    def let_go(self, file):
        os.close(file.fd)
        del self.files[file.identity]
        self.hand_over(file.cutter.rest(), file.age)

    def position(self):
        return [file.position() for file in self.files.values()]

    def shut(self):
        for file in self.files.values():
            os.close(file.fd)
        self.files = {}


def same_file(fd, offset, mark, head):
    """True if a file is still the one whose fingerprints these are."""
    return (os.fstat(fd).st_size >= offset >= mark[0]
            and fingerprint(fd, offset - mark[0], mark[0]) == mark
            and fingerprint(fd, 0, head[0]) == head)


LOGS = ('/var/log/auth.log', '/var/log/secure', '/var/log/messages', '/opt/var/log/messages')
STALE = 7 * 86400                    # a log that nothing was written to for so long is a left-over


def find_source(machine):
    """What `source = auto` means on this machine."""
    if machine.exists('/etc/openwrt_release') and machine.which('logread'):
        return 'logread'
    logs = [path for path in LOGS if machine.age(path) is not None]
    journal = machine.which('journalctl') and machine.exists('/run/systemd/journal')
    # where there is a journal, a file may be what is left of an older system log
    fresh = [path for path in logs if machine.age(path) < (HOUR if journal else STALE)]
    if fresh:
        return fresh[0]
    if journal:
        return 'journalctl'
    if logs:
        return logs[0]
    return '/var/log/messages'


def make_source(spec, machine, *more):
    """The Source that a line of `source =` names; see Source for the rest."""
    if spec == 'auto':
        meant = find_source(machine)
    else:
        meant = spec
    word, _, rest = meant.partition(':')
    kind, argument = Tail, meant
    if meant == 'logread':
        kind, argument = Logread, ['logread', '-f']
    elif meant == 'journalctl':
        kind, argument = Journal, ['journalctl', '-f', '-q', '-n', '0', '-o', 'short-iso']
    elif word == 'exec':
        kind, argument = Child, shlex.split(rest)
    elif word == 'fifo' or meant == '-':
        kind, argument = Pipe, rest or '-'
    elif word == 'trap':
        protocol, _, place = rest.partition(':')
        host, _, port = place.rpartition(':')
        kind, argument = Trap, (protocol, host.strip('[]'), int(port))
    elif word == 'udp':
        host, _, port = rest.rpartition(':')
        kind, argument = Datagrams, (host.strip('[]') or '127.0.0.1', int(port))
    made = kind(spec, argument, machine, *more)
    made.meant, made.what = meant, meant if meant == spec else '%s: %s' % (spec, meant)
    return made


# ---- Wall ----------------------------------------------------------------------------------
# Owns: what the kernel has, as far as it has been told; which kind of firewall is in use. Always
# true: one batch per firewall is under way at a time; what must never be banned is not in it; after
# a failure all is written from scratch, for something of ours may just have gone.

# networks at a time: for each, conntrack goes through all connections
MOST_CUT = 256
# for the kernel, then a client is told that it has not answered yet
ANSWER_SECONDS = 13
MOST_CHANGES = 2000                  # at once: with more, the loop would stand still for too long
QUARREL_SECONDS = 15                 # between two repairs, where another program undoes them

# What a FirewallSync has to do next; each includes the one before.
NOTHING, CHANGES, CHECK, REBUILD = range(4)
# Where it stands: on trial, somebody else tells of its trouble; closing, it takes out what is ours.
ON_TRIAL, IN_USE, CLOSING = 'on trial', 'in use', 'closing'
# What is known of its firewall: nothing; that a Command has succeeded; that all has been written
# once.
UNTRIED, ANSWERED, BUILT = range(3)


class FirewallSync(Worker):
    """Makes one firewall equal to the tickets: change by change, as a whole where it is in
    doubt."""

    def __init__(self, firewall, machine, bans, refused, before=None, tell=None, tell_drops=None):
        Worker.__init__(self, machine, firewall.name)
        self.firewall, self.bans = firewall, bans
        self.refused = refused       # Ticket -> why it must not be in the kernel, or ''
        # the one in this place before; what it has under way ends first
        self.before = before
        self.tell = tell             # of what went wrong: (name, problem)
        self.tell_drops = tell_drops               # of (jails, packets that were dropped)
        # (network, Scope) -> was it in the kernel, as far as it was told?
        self.changed = {}
        self.need, self.state, self.proven = REBUILD, IN_USE, UNTRIED
        self.rebuilding = False      # does what is under way write all from scratch?
        self.at_once = False         # does the next try follow at once?
        self.repaired = ''           # what was wrong with the rules when they were looked at last
        self.written = 0             # when all was written last
        self.left_out = 0            # networks of lists that it has no room for
        self.offload = False         # may connections bypass the rules?
        # networks whose connections must end once their ban is in the kernel
        self.new = []
        self.uncut = ''              # why such ones could not be ended
        self.one_by_one = False      # is conntrack too old to read a list of them?
        self.removed = False         # was there something of ours to take out at the end?
        self.counted = None          # (jails, rule) -> packets, when the kernel was looked at last
        self.jails_of_scope = {}
        for jail, scope in firewall.scopes.items():
            self.jails_of_scope.setdefault(scope, []).append(jail)
        if before:                   # who waits for that one waits for us now
            self.replies = before.serving + before.replies
            before.serving, before.replies = [], []
            before.take_changes()
            self.new, self.proven = before.new, min(before.proven, ANSWERED)
            self.counted = before.counted

    # what there is to do
    def handles(self, network):
        """Is this network of our family?"""
        return self.firewall.family in (None, 6 if ':' in network else 4)

    def wanted(self):
        """What is to be in the kernel: (network, Scope) -> until."""
        tickets = [ticket for ticket in self.bans.tickets.values()
                   if self.handles(ticket.network) and not self.refused(ticket)]
        wanted = entries_of(tickets, self.firewall.scopes)
        now = self.machine.ticks()
        listed = [((net, self.firewall.scopes[name]), row.until)
                  for name, networks in self.bans.lists.items() if self.firewall.scopes.get(name)
                  for net, row in networks.items()
                  if (row.until is None or row.until > now) and self.handles(net)]
        room = len(listed)
        if self.firewall.capacity:
            room = max(0, self.firewall.capacity - len(wanted))
        wanted.update(listed[:room])
        self.left_out = max(0, len(listed) - room)
        return wanted

    def ban(self, ticket, known):
        """Takes note of a new ticket, or of a known one with another end."""
        scope, net = self.firewall.scopes.get(ticket.jail), ticket.network
        if scope and self.state != CLOSING:
            there = known or any((jail, net) in self.bans.tickets
                                 for jail in self.jails_of_scope[scope] if jail != ticket.jail)
            self.changed.setdefault((net, scope), there)

    def unban(self, ticket):
        """Takes note of a ticket that is no more."""
        scope = self.firewall.scopes.get(ticket.jail)
        if scope and self.state != CLOSING:
            self.changed.setdefault((ticket.network, scope), True)

    def list_changed(self, name, known, new):
        """Takes note of networks that a list has no more, or until another time, or has got."""
        scope = self.firewall.scopes.get(name)
        if scope and self.state != CLOSING and (known or new):
            if self.firewall.capacity:
                self.need = REBUILD
                return
            for networks, there in (known, True), (new, False):
                for net in filter(self.handles, networks):
                    self.changed.setdefault((net, scope), there)

    def due(self):
        return bool(self.changed) or self.need > NOTHING

    def idle(self):
        return not (self.running or self.due())

    def matters(self):
        """False if it has never worked, and nobody can talk to this machine by its family."""
        return self.proven > UNTRIED or self.firewall.family != 6 or self.machine.has_ipv6

    def blocked(self):
        """True while the one before us has something under way; then what it has left is ours."""
        if self.before and self.before.engaged():
            return True
        if self.before:
            self.proven = max(self.proven, min(self.before.proven, ANSWERED))
            self.before = None
        return False

    def engaged(self):
        """Is something under way in this place?"""
        return bool(self.running or self.before and self.before.engaged())

    def look_again(self, at_once=False):
        """Looks at what the kernel has; if it is in trouble at its next try, or at once."""
        self.need = max(self.need, CHECK)
        if at_once:
            self.stop_waiting()
            self.attempts, self.trouble = 0, ''

    def minute(self):
        """Looks at what the kernel has; once a day all is written from scratch, since a kernel's
        timeouts have a limit."""
        self.look_again()
        if self.firewall.longest and self.machine.ticks() - self.written > DAY:
            self.need = REBUILD

    def close(self):
        """Leaves nothing of ours in the kernel."""
        self.look_again(True)
        self.state, self.need, self.changed = CLOSING, CHECK, {}

    def closed(self, tries=1):
        """True when nothing of ours is left, or never was: what has never worked may fail so
        often."""
        if self.state != CLOSING or self.running:
            return False
        gave_up = self.trouble and self.proven == UNTRIED and self.attempts >= tries
        return self.need == NOTHING or bool(gave_up)

    # doing it
    def work(self):
        """Tells the kernel what has changed; then, if in doubt, compares all of it and repairs
        that."""
        closing = self.state == CLOSING
        need, changes = self.need, self.take_changes()
        self.rebuilding = need == REBUILD
        self.need = NOTHING          # what is asked for from now on comes afterwards
        if need < REBUILD and changes and not closing:
            commands = self.firewall.change(changes, self.machine.ticks())
            if commands is None:
                need, self.rebuilding = REBUILD, True
            for command in commands or ():
                yield from self.run_one(command)
        if need >= CHECK:
            yield from self.compare(need == REBUILD, closing)
        if self.offload and self.new:
            yield from self.cut()
        self.new = []

    def run_one(self, command):
        """Runs a Command; what it has printed."""
        output = yield command
        self.proven = max(self.proven, ANSWERED)
        return output

    def compare(self, rebuild, closing):
        """Looks at what the kernel has, and repairs what is wrong. Only the first Command of a
        check must not fail; another one that does has shown None."""
        wanted, shown = {}, []
        if not (rebuild or closing):
            wanted = self.wanted()
        for command in self.firewall.check(wanted):
            try:
                shown.append((yield from self.run_one(command)))
            except Failed:
                if not shown:
                    raise
                shown.append(None)
        self.offload = offloads(shown)
        self.count(self.firewall.counters(shown))
        if closing:
            commands = self.firewall.stop(shown)
            self.removed = bool(commands)
            for command in commands:
                yield from self.run_one(command)
            return
        if rebuild:
            wrong = ''
        else:
            wrong = self.firewall.differences(shown, wanted)
        if not (wrong or rebuild):
            self.repaired = ''
            return
        if wrong and wrong != self.repaired:
            self.complain('repaired (%s)' % wrong)
        self.take_changes()
        self.repaired, self.changed = wrong, {}
        for command in self.firewall.rebuild(shown, self.wanted(), self.machine.ticks()):
            yield from self.run_one(command)
        self.counted, self.proven, self.written = {}, BUILT, self.machine.ticks()

    def take_changes(self):
        """What has changed, as Changes, and no more from now on. Remembers the networks whose open
        connections must end: new ones, banned from all ports."""
        made = []
        for net, scope in list(itertools.islice(self.changed, MOST_CHANGES)):
            there = self.changed.pop((net, scope))
            tickets = [self.bans.tickets.get((jail, net))
                       for jail in self.jails_of_scope.get(scope, ())]
            tickets = [ticket for ticket in tickets if ticket and not self.refused(ticket)]
            wanted = entries_of(tickets, self.firewall.scopes)
            for jail in self.jails_of_scope.get(scope, ()):
                row = self.bans.lists.get(jail, {}).get(net)
                if row:
                    key = net, scope
                    wanted[key] = later_end(wanted.get(key, row.until), row.until)
            made.append(Change(net, scope, there, not wanted, wanted.get((net, scope))))
            if not (there or scope.ports) and wanted:
                self.new = (self.new + [net])[-MOST_CUT:]
        if not self.changed:
            self.changed = {}                      # an empty dict may be a large one
        return made

    def count(self, counters):
        """Reports how many packets rules have dropped since they were looked at last. What is
        changed in between may count from 0 again, and what it had counted since then is lost. What
        was there before the first look has been reported by a daemon that was killed."""
        before, self.counted = self.counted, counters
        if before is None or not self.tell_drops:
            return
        for (jails, rule), packets in counters.items():
            known = before.get((jails, rule), 0)
            if packets != known:
                self.tell_drops(jails, packets - known if packets > known else packets)

    def cut(self):
        """Ends connections that bypass the rules, now that those are in place."""
        uncut = ''
        try:
            if not self.machine.which('conntrack'):
                raise Failed('conntrack is not installed')
            if not self.one_by_one:
                yield cut_connections(self.new)
        except Failed as e:
            uncut = str(e)
            self.one_by_one = 'option' in uncut
        if self.one_by_one:
            uncut = ''
            for command in itertools.chain(*map(cut_one_by_one, self.new[-MOST_CUT // 16:])):
                try:
                    yield command
                except Failed:                     # there is no such connection
                    pass
        if uncut and uncut != self.uncut:
            self.machine.log('offloaded connections of who is banned go on: %s' % uncut)
        self.uncut = uncut

    # how it went
    def complain(self, problem, what_now=''):
        self.machine.log(with_name(self.name, problem) + what_now)
        if self.tell:
            self.tell(self.name, problem)

    def succeeded(self):
        if self.trouble and self.state != ON_TRIAL:
            self.machine.log('%s: works again' % self.name)
        Worker.succeeded(self)

    def failed(self, problem):
        """Nothing is lost: the tickets stay, and all of them are written from scratch. At once if
        it was a change that failed; with patience if it was that."""
        if self.firewall.original and self.rebuilding and self.proven < BUILT:
            # the kernel may lack what that needs: all else matters more
            self.firewall.original, self.need, self.at_once = False, REBUILD, True
            self.take_changes()
            return
        first = not (self.attempts or self.state == CLOSING or self.rebuilding)
        # nft counts lines
        news = re.sub(r'\d+', '', problem) != re.sub(r'\d+', '', self.trouble)
        ever = self.proven > UNTRIED or self.state != CLOSING
        if news and ever and self.state != ON_TRIAL and self.matters():
            self.complain(problem, '; writing all rules again' if first else '; trying again')
        self.trouble = problem
        self.attempts += 1
        if self.state == CLOSING:
            self.need = CHECK
        else:
            self.need = REBUILD
        self.take_changes()
        self.at_once = first
        if not first:
            self.wait(patience(self.attempts))

    def answer(self):
        again, self.at_once = self.at_once, False
        # another firewall may take it
        if not (again or self.state == ON_TRIAL and self.trouble):
            Worker.answer(self)

    def accept(self):
        """Ends the time of being on trial."""
        if self.state == ON_TRIAL:
            self.state = IN_USE
        self.answer()


class Wall(Worker):
    """The firewalls of this machine. For `firewall = auto` its script finds out what the machine's
    own firewall is; then it takes the first kind of firewall that works."""

    def __init__(self, machine, bans, refused, note, tell, tell_drops, dry_run=False):
        Worker.__init__(self, machine, 'firewall')
        self.bans, self.refused = bans, refused
        self.note = note             # (where, trouble): reports it once; '' when it is over
        self.told = tell, tell_drops
        self.dry_run = dry_run       # nothing is touched
        self.syncs = []              # FirewallSyncs in use
        self.old = []                # those that still have to take out their rules
        self.config, self.jails = None, {}
        self.kind = 'none'           # what the conf says
        # kinds that may be tried, the first in use; and why
        self.kinds, self.why = [], ''
        self.best = None             # the kind that `auto` would like most
        self.tools = ()              # the programs that were there when it was found out
        self.six = False             # does nft ban IPv6, since ip6tables does not work here?
        self.probe = False           # has it to be found out which?
        self.trying = False          # is `auto` still looking for one that works?
        self.tried = []              # what `auto` has tried, and why that does not work
        self.ending = False
        self.look_soon = self.look_late = None  # timers, after the machine's firewall has reloaded
        # what OpenWrt's firewall writes at each start: when that was last, and when we looked
        self.stamps, self.stamps_read = None, float('-inf')
        self.look_timer, self.looked = None, float('-inf')     # because of another program

    def set(self, kind, config, jails):
        """Takes over a configuration: the kind of firewall that it says, or the one that is
        found."""
        self.kind, self.config, self.jails = kind, config, jails
        if kind == 'auto':
            self.probe = True
        else:
            self.kinds, self.why, self.trying = [kind], '', False
            self.note('firewall', '')
            self.wire()

    # which kind
    def due(self):
        return self.probe and not self.ending

    def work(self):
        """Finds out what the machine's own firewall is, and follows it."""
        before, self.probe, self.tools = self.tools, False, self.installed()
        shown = {}
        for name, command in PROBES.items():
            try:
                shown[name] = yield command
            except Failed:
                shown[name] = None
        if self.kind != 'auto' or self.ending:
            return
        failed = [name for name in shown if shown[name] is None and self.machine.which(name)]
        kinds, why = choose_kinds(shown, failed)
        # the one in use stays
        if not (self.why and self.built() and kinds[0] == self.best and self.tools == before):
            self.kinds, self.why, self.trying, self.tried = kinds, why, True, []
            self.six = False
        self.best = kinds[0]
        self.wire()

    def installed(self):
        """Paths of the programs that a firewall may need."""
        return [self.machine.which(tool) for tool in ('nft', 'ipset', 'iptables', 'ip6tables')]

    def firewalls(self):
        """Those of the kind in use; nft for IPv6, where that is found to be better."""
        made = make_firewalls(self.kinds[0], self.config['chain'], self.jails)
        if self.six:
            made[1:] = [NFTables(made[0].hooks, made[0].scopes, family=6)]
        return made

    def wire(self):
        """Puts the first of `kinds` to work; what is there already takes the configuration over,
        what is there from another kind goes when it has taken out its rules."""
        there = {sync.firewall.tool: sync for sync in self.old + self.syncs}
        kind, hooks = self.kinds[0], self.config['chain']
        self.syncs, self.old = [], []
        for firewall in self.firewalls():
            sync = there.pop(firewall.tool, None)
            if sync and sync.state != CLOSING and sync.firewall.settings() == firewall.settings():
                sync.look_again(sync.proven < BUILT)
            else:
                sync = self.sync(firewall, sync)
            if self.trying and sync.proven < BUILT:
                sync.state = ON_TRIAL
            else:
                sync.state = IN_USE
            self.syncs.append(sync)
        # a daemon that was killed may have left them
        if self.dry_run:
            others = ()
        else:
            others = FOREIGN_KINDS[kind]
        for other in others:
            for firewall in make_firewalls(other, hooks, {}):
                there.setdefault(firewall.tool, self.sync(firewall))
        for sync in there.values():
            self.syncs[0].replies += sync.serving + sync.replies
            sync.serving, sync.replies = [], []
            self.old.append(sync)
            if sync.proven < BUILT:                # one that works goes when the other one does
                sync.close()

    def sync(self, firewall, before=None):
        """A new FirewallSync."""
        return FirewallSync(firewall, self.machine, self.bans, self.refused, before, *self.told)

    def main_syncs(self):
        """Those that have to work: for IPv4 at least."""
        return [sync for sync in self.syncs if sync.firewall.family in (4, None)]

    def built(self):
        """Does the firewall work, for IPv4 at least?"""
        return all(sync.proven == BUILT for sync in self.main_syncs())

    def try_on(self):
        """While `auto` tries: goes on to the next kind where one does not work."""
        first = self.main_syncs()[0]
        if self.built():
            for sync in self.syncs[1:]:
                if sync.proven < BUILT and not self.six and self.machine.which('nft'):
                    if sync.attempts:              # the other family needs another kind
                        self.six = True
                        self.tried.append(with_name(sync.name, sync.trouble))
                        self.wire()
                    return
            self.trying = False
            others = [text for text in self.tried if not text.startswith(self.kinds[0] + ':')]
            self.why = '; '.join([self.why] + others)
            names = first.name
            if self.six:
                names += ', ' + self.syncs[1].name
            self.machine.log('firewall: %s (%s)' % (names, self.why))
            self.note('firewall', '')
            for sync in self.syncs:
                if sync.trouble and sync.matters():            # that of the other family
                    self.machine.log('%s: %s; trying again' % (sync.name, sync.trouble))
        elif first.trouble and first.attempts and first.state == ON_TRIAL:
            self.tried.append(with_name(self.kinds[0], first.trouble))
            if len(self.kinds) > 1:
                self.kinds = self.kinds[1:]
                return self.wire()
            self.note('firewall',
                      'none works (%s); trying again each minute' % '; '.join(self.tried))
        else:
            return
        for sync in self.syncs:
            sync.accept()

    # each turn, each minute
    def settle_all(self):
        """Brings all firewalls up to date."""
        if self.machine.ticks() - self.stamps_read >= 1:       # once a second, if anything happens
            self.stamps_read = self.machine.ticks()
            before, self.stamps = self.stamps, [self.machine.changed(path) for path in FW_STATES]
            if before not in (None, self.stamps):
                self.firewall_reloads()
        self.settle()
        for sync in self.syncs + self.old:
            sync.settle()
        if self.built():
            for sync in self.old:
                if sync.state != CLOSING:
                    sync.close()
                    sync.settle()
        if self.trying and not self.ending:
            self.try_on()
        self.old = [sync for sync in self.old if not sync.closed(3)]

    def minute(self):
        if self.kind == 'auto' and not (self.built() and self.tools == self.installed()):
            self.probe = True
        for sync in self.syncs:
            sync.minute()

    def firewall_reloads(self):
        """The machine's firewall has said that it reloads: looks after our rules soon, and when it
        must be done."""
        loop = self.machine.loop
        self.look_soon = self.look_soon or loop.after(2, self.look_after)
        loop.cancel(self.look_late)
        self.look_late = loop.after(10, self.look_after_reload)

    def rules_changed(self):
        """Another program has changed rules: looks after ours within a second, but not again and
        again where somebody else repairs his, too."""
        if not self.look_timer:
            wait = 0.2
            if any(sync.repaired for sync in self.syncs):
                wait = QUARREL_SECONDS
            when = max(self.machine.ticks() + 0.2, self.looked + wait)
            self.look_timer = self.machine.loop.at(when, self.look_at_change)

    def look_at_change(self):
        self.look_timer, self.looked = None, self.machine.ticks()
        self.look_after()

    def look_after_reload(self):
        self.look_after()
        self.probe = self.kind == 'auto'

    def write_again(self):
        """Writes all rules again: other tickets may be in the kernel now."""
        for sync in self.syncs:
            sync.need = REBUILD

    def look_after(self):
        """Looks at what the kernel has, at the next turn."""
        self.look_soon = None
        for sync in self.syncs:
            sync.look_again()

    # what others want of it
    def room(self, maxbans):
        """How many bans there may be: maxbans, and what the firewall can hold."""
        holds = [sync.firewall.capacity for sync in self.syncs
                 if sync.firewall.capacity and (sync.proven == BUILT or sync.state != ON_TRIAL)]
        return min([maxbans] + holds)

    def narrow(self, limit):
        """Name of a firewall that can hold no more than `limit` bans, '' if that is not the
        reason."""
        return ''.join([sync.name for sync in self.syncs if sync.firewall.capacity == limit][:1])

    def tell(self, network):
        """Those who have to be told of a ban of this network."""
        return [sync for sync in self.syncs + self.old if sync.handles(network)]

    def when_settled(self, tickets, reply):
        """Calls `reply` with the firewalls' trouble ('' if none) when the kernel knows of these
        tickets; None: of all."""
        # it is being found out which firewall
        if self.probe or self.running or not self.syncs:
            self.replies.append(lambda trouble: self.when_settled(tickets, reply))
            return
        waiting = [sync for sync in self.syncs
                   if tickets is None or any(sync.handles(ticket.network) for ticket in tickets)]
        troubles = []

        def answered(sync, trouble):
            if sync in waiting:
                waiting.remove(sync)
                if trouble:
                    troubles.append(trouble)
                if not waiting:
                    self.machine.loop.cancel(timer)
                    reply('; '.join(troubles))

        def late():                                # the client does not wait much longer
            for sync in waiting:
                troubles.append(sync.trouble or '%s does not answer yet' % sync.name)
            waiting.clear()
            reply('; '.join(troubles))
        if not waiting:
            return reply('')
        timer = self.machine.loop.after(ANSWER_SECONDS, late)
        for sync in waiting:
            sync.replies.append(functools.partial(answered, sync))

    def close(self):
        """Takes out all that is ours."""
        self.ending = True
        for sync in self.syncs + self.old:
            sync.close()

    def closed(self):
        return all(sync.closed() for sync in self.syncs + self.old)

    def left(self):
        """Names of the firewalls that still have rules of ours."""
        return [sync.name for sync in self.syncs + self.old if not sync.closed()]


FW_STATES = '/var/run/fw3.state', '/var/run/fw4.state'         # OpenWrt's, new at each start
# kind in use -> the kinds whose rules a daemon that was killed may have left behind
FOREIGN_KINDS = {'nft': ['ipset'], 'ipset': ['nft'], 'iptables': ['nft'], 'none': ['ipset', 'nft'],
                 'command': ['ipset', 'nft']}


# ---- Store ---------------------------------------------------------------------------------
# Owns: when which state file is written, and how it is read back. Always true: a file is replaced
# as a whole; one that does not load is put aside and reported, and never stops the start; the copy
# on flash is written at a stop, when a report period ends, and at most every `save` if it differs.

class Store:
    """The live state in `runtime`, and the copy on flash. `collect()` says what is to be written,
    as the arguments of `dump` but for the last two."""

    def __init__(self, machine, config, note, collect, written):
        self.machine, self.loop, self.note, self.collect = machine, machine.loop, note, collect
        self.written = written       # told where how many bytes were written: 'written', 'flash'
        self.live = os.path.join(config['runtime'], 'state.json')
        self.flash = machine.followed(config['state'])
        self.save_every = config['save']
        self.live_dirty = self.flash_dirty = False
        self.flash_dirty_since = None              # a restart does not make it wait again
        self.live_saved, self.flash_saved = float('-inf'), None            # ticks
        self.save_seconds = 0        # that the last save of the live file took
        self.save_timer = self.keep_timer = None
        self.running = True          # false once the daemon has been told to stop

    def touch(self, flash=True):
        """Something has changed; if `flash`, something that outlives a reboot."""
        self.live_dirty = True
        self.flash_dirty = self.flash_dirty or flash

    def set_timers(self):
        """Sees to it that what has changed is written in time."""
        now = self.machine.ticks()
        if self.live_dirty and not self.save_timer:
            wait = max(1, 20 * self.save_seconds)
            self.save_timer = self.loop.at(max(now, self.live_saved + wait), self.save)
        if self.flash_dirty and not self.keep_timer:
            if self.flash_dirty_since is None:
                self.flash_dirty_since = now
            when = max(now, self.flash_dirty_since + self.save_every)
            self.keep_timer = self.loop.at(when, self.save_all)

    def save(self):
        """Writes the live state; the clocks that it was written at, None if it could not be
        written."""
        self.loop.cancel(self.save_timer)
        self.save_timer = None
        before = self.machine.ticks()
        pieces, clocks = self.collect(), self.machine.clocks()
        text = dump(*pieces + (clocks, self.flash_dirty_since, self.running))
        self.live_dirty = not self.write(self.live, text)
        self.live_saved = self.machine.ticks()
        self.save_seconds = self.live_saved - before
        if self.live_dirty:
            return None
        return clocks

    def keep(self, clocks=None):
        """Writes the state that outlives a reboot, if it differs. Written together with the live
        one, at the same `clocks`, it is not the newer one, for it holds less."""
        self.loop.cancel(self.keep_timer)
        self.keep_timer = None
        if self.flash_dirty:
            pieces = self.collect()
            text, left = dump_kept(pieces.bans, pieces.wings, pieces.homes,
                                   clocks or self.machine.clocks())
            self.flash_dirty = not self.write(self.flash, text)
            self.note('state', left and '%s no room in %s: they do not outlive a reboot' % (
                plural(left, 'ban has', 'bans have'), self.flash))
            if not self.flash_dirty:
                self.flash_saved = self.machine.ticks()

    def save_all(self):
        """Writes both files. The live one first says that flash has all: a kill between the two
        does not make each start write to it again."""
        self.flash_dirty, self.flash_dirty_since = True, None
        self.keep(self.save())

    def close(self):
        """Writes both for the last time."""
        self.running, self.flash_dirty_since = False, None
        self.keep(self.save())

    def write(self, path, text):
        """True if the file could be written; if not, that is reported once, and in `status`."""
        try:
            self.machine.replace(path, text)
            self.note(path, '')
            where = 'flash'
            if path == self.live:
                where = 'written'
            self.written(where, len(text))
            return True
        except OSError as e:
            self.note(path, 'not saved: %s' % e.strerror)
            return False

    def restore(self):
        """The Restored state, None if there is none: the live one, or the kept one if there is no
        other. Where the live one could not be written any more, since /tmp was full, the kept one
        is newer and knows more of bans and of what the wings hold."""
        live, kept = self.recall(self.live), self.recall(self.flash)
        state = live or kept
        if state is None:
            return None
        if live and kept and kept.age < live.age and not (kept.booted or live.booted):
            state = kept._replace(fails=live.fails, logins=live.logins, sources=live.sources)
        self.flash_dirty = state is live           # the kept one may lag behind it
        now = self.machine.ticks()
        # no haste to write it again
        self.live_saved, self.flash_saved = now, now - state.age
        self.flash_dirty_since = state.dirty_since
        return state

    def recall(self, path):
        """What a state file holds, None if there is none, or nothing that can be used."""
        try:
            text = self.machine.recall(path)
            if text is None:
                state = None
            else:
                state = load(text, self.machine.clocks())
        except (ValueError, RecursionError, OSError) as e:
            self.machine.log('%s: cannot be used (%s); kept as %s' % (
                path, printable(str(e))[:100], self.machine.put_aside(path)))
            return None
        return state and state._replace(path=path)


class Lists:
    """The files of networks that `ignoreip` and `banip` name, as they were read last."""

    def __init__(self, machine, note):
        self.machine, self.note = machine, note
        self.files = {}              # path -> its networks
        self.stamps = {}             # path -> when it was changed, when that was read

    def read(self, paths):
        """Reads these files, as far as they are new; forgets others."""
        for path in self.files.keys() - set(paths):
            del self.files[path], self.stamps[path]
            self.note(path, '')
        for path in paths:
            stamp = self.machine.changed(path)
            if path not in self.files or stamp != self.stamps[path]:
                self.stamps[path], self.files[path] = stamp, self.load(path)

    def load(self, path):
        """The networks of a file; those it had before if it cannot be read now."""
        try:
            text = self.machine.list_text(path)
        except OSError as e:
            self.note(path, 'cannot be read: %s' % e.strerror)
            return self.files.get(path, ())
        networks, wrong = read_networks(text)
        trouble = ''
        if wrong:
            trouble = 'line %d: %s' % wrong[0]
            if wrong[1:]:
                trouble += ' (and %s)' % plural(len(wrong) - 1, 'more line')
        self.note(path, trouble)
        self.machine.log('%s: %s' % (path, plural(len(networks), 'network')))
        return networks


# writes the addresses of a host name. Given as text, Python would want its module `idna`, which
# python3-light lacks
LOOK_UP = ('import socket, sys\n'
           'try:\n'
           '    for row in socket.getaddrinfo(sys.argv[1].encode(), None, 0, socket.SOCK_STREAM):\n'
           '        print(row[4][0])\n'
           'except OSError as e:\n'
           '    sys.exit(e.strerror)\n')
NAME_SECONDS = 5 * MINUTE - 5        # between two looks, which come with a minute's work
MOST_ADDRESSES = 16                  # of a name: one that has more is no home
MOST_LOOKS = 4                       # at once: each takes 8 MB for a moment


def look_up(name):
    """The Command that looks up a host name: a child, for a resolver may take its time."""
    return Command([sys.executable, '-IS', '-c', LOOK_UP, name])


def read_addresses(printed):
    """The addresses that `look_up` has printed."""
    found = set()
    for line in printed.split():
        try:
            found.add(address(line))
        except ValueError:
            pass
    return sorted(found)


class HostName(Worker):
    """A host name of `ignoreip`, looked up each five minutes; what it stood for stays while that
    fails. `names` is all of them."""
    seconds = 30

    def __init__(self, machine, name, names):
        Worker.__init__(self, machine, name)
        self.names = names
        self.known = []              # its addresses
        self.asked = float('-inf')   # ticks

    def due(self):
        return self.machine.ticks() - self.asked >= NAME_SECONDS

    def blocked(self):
        return sum(bool(other.running) for other in self.names.by_name.values()) >= MOST_LOOKS

    def work(self):
        self.asked, trouble = self.machine.ticks(), ''
        try:
            found = read_addresses((yield look_up(self.name)))
            if len(found) > MOST_ADDRESSES:
                trouble = 'stands for %d addresses, too many to believe' % len(found)
        except Failed as e:
            found, trouble = [], 'cannot be looked up (%s)' % str(e).partition(': ')[2]
        if found and not trouble and found != self.known:
            self.known = found
            self.machine.log('%s: %s' % (self.name, ', '.join(found)))
            self.names.changed()
        if trouble and self.known:
            trouble += '; what it stood for before stays exempt'
        self.names.note(self.name, trouble)


class Names:
    """The host names in `ignoreip`."""
    name = 'names'                   # in the state files
    keeps = True

    def __init__(self, machine, note, changed):
        self.machine, self.note, self.changed = machine, note, changed
        self.by_name = {}            # name -> HostName
        self.kept = {}               # name -> addresses, of an earlier run

    def set(self, names):
        """These are the names from now on."""
        before, self.by_name = self.by_name, {}
        for name in names:
            self.by_name[name] = before.pop(name, None) or HostName(self.machine, name, self)
            self.by_name[name].known = self.by_name[name].known or self.kept.pop(name, [])
        for name in before:
            self.note(name, '')

    def known(self):
        """name -> its addresses."""
        return {name: each.known for name, each in self.by_name.items()}

    def settle(self):
        for each in list(self.by_name.values()):
            each.settle()

    def dump(self, now, kept=False, most=KEPT_ROWS):
        """What the state files hold."""
        return self.known()

    def load(self, state, now, gone):
        """Takes in what `dump` wrote; the number of rows that made no sense."""
        lost = 0
        for name, rows in checked_dict(state).items():
            try:
                self.kept[name] = [address(text) for text in rows[:MOST_ADDRESSES]]
            except (ValueError, TypeError, AttributeError):
                lost += 1
        return lost


# ---- Control -------------------------------------------------------------------------------
# Owns: the Unix socket in `runtime`. A client sends one line of JSON and gets one line back.
# Always true: only our own user can reach it; a client that is slow or talks too much is dropped.

REQUEST_BYTES = 1 << 16
CLIENTS = 16
CLIENT_SECONDS = ANSWER_SECONDS + 2
KEPT_SECONDS = HOUR                  # for which one may be silent that has asked to be kept
MOST_SECONDS = 120                   # that a client may ask us to take


class Control:
    """The listening end; `answer(request, reply)` is called for each request."""

    def __init__(self, path, loop, answer):
        self.path, self.loop, self.answer = path, loop, answer
        self.clients = set()
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.sock.bind(path)
        os.chmod(path, 0o600)
        self.inode = os.stat(path).st_ino
        self.sock.listen(CLIENTS)
        self.sock.setblocking(False)
        self.listen()

    def listen(self):
        if self.sock.fileno() >= 0:
            self.loop.watch(self.sock, self.accept)

    def accept(self):
        try:
            sock, _ = self.sock.accept()
        except BlockingIOError:
            return
        # no descriptor is free: it would be ready for ever
        except OSError:
            self.loop.unwatch(self.sock)
            self.loop.after(1, self.listen)
            return
        if len(self.clients) >= CLIENTS:
            sock.close()
        else:
            self.clients.add(Client(sock, self))

    def close(self):
        for client in list(self.clients):
            client.close()
        self.loop.unwatch(self.sock)
        self.sock.close()
        if self.stands():
            os.unlink(self.path)

    def stands(self):
        """False if the socket's file has been removed, or is another daemon's."""
        try:
            return os.stat(self.path).st_ino == self.inode
        except OSError:
            return False


class Client:
    """One connection to the socket, from its request to the end of its answer."""

    def __init__(self, sock, control):
        self.sock, self.control, self.loop = sock, control, control.loop
        self.request, self.reply = b'', None
        self.keep = False            # has it asked to be heard again?
        sock.setblocking(False)
        self.loop.watch(sock, self.readable)
        self.timer = self.loop.after(CLIENT_SECONDS, self.close)

    def readable(self):
        try:
            chunk = self.sock.recv(REQUEST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            chunk = b''
        self.request += chunk
        if not chunk or len(self.request) > REQUEST_BYTES or self.reply is not None:
            self.close()
        elif b'\n' in self.request:
            self.reply = b''
            try:
                request = json.loads(self.request.decode())
            except (ValueError, RecursionError):
                request = None
            if type(request) is not dict:
                self.send({'error': 'not a valid request', 'code': os.EX_USAGE})
                return
            self.keep = request.get('keep') is True
            seconds = request.get('patience')
            if type(seconds) is int and CLIENT_SECONDS < seconds <= MOST_SECONDS:
                self.loop.cancel(self.timer)
                self.timer = self.loop.after(seconds + 5, self.close)
            self.control.answer(request, self.send)

    def send(self, answer):
        if self not in self.control.clients:
            return
        self.reply = json.dumps(answer).encode() + b'\n'
        self.loop.unwatch(self.sock)
        self.loop.watch(self.sock, self.writable, WRITE)
        self.writable()

    def writable(self):
        try:
            self.reply = self.reply[self.sock.send(self.reply):]
        except BlockingIOError:
            return
        except OSError:
            self.reply, self.keep = b'', False
        if not self.reply and self.keep:
            self.request, self.reply, self.keep = b'', None, False
            self.loop.cancel(self.timer)
            self.timer = self.loop.after(KEPT_SECONDS, self.close)
            self.loop.unwatch(self.sock)
            self.loop.watch(self.sock, self.readable)
        elif not self.reply:
            self.close()

    def close(self):
        if self in self.control.clients:
            self.control.clients.discard(self)
            self.loop.cancel(self.timer)
            self.loop.unwatch(self.sock)
            self.sock.close()


def ask_daemon(config, request):
    """The running daemon's answer; Problem if there is no daemon, or its answer is an error."""
    path = os.path.join(config['runtime'], 'control')
    # `socket` around it would cost as much as all the rest
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    sock.settimeout(5 + request.get('patience', CLIENT_SECONDS))
    try:
        sock.connect(path)
        sock.sendall(json.dumps(request).encode() + b'\n')
        answer = json.loads(
            b''.join(iter(functools.partial(sock.recv, REQUEST_BYTES), b'')).decode())
    except PermissionError:
        raise Problem('%s: only root may talk to the daemon (try sudo)' % path,
                      os.EX_NOPERM) from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise Problem('no daemon is running (%s); start one with: banwatch.py run' % path,
                      os.EX_UNAVAILABLE) from None
    except (OSError, ValueError):
        raise Problem('the daemon does not answer on %s' % path, os.EX_UNAVAILABLE) from None
    if 'error' in answer:
        raise Problem(answer['error'], answer.get('code', 1))
    return answer


# ---- Daemon --------------------------------------------------------------------------------
# Owns: the loop and what hangs on it. Wires sources to jails, jails to tickets, tickets to the
# kernel and to the state files; decides nothing itself. Always true: `ban` and `unban` are the
# only two ways in and out of the tickets; a wing is told what happens, and can do nothing about it.

STOP_SECONDS = 4                     # procd kills after 5
BY_HAND = 'by hand'
ROUTE_SECONDS = 2                    # between two looks for a default route
GOES_ON = 10                         # failures of somebody who is banned, until that is told
STEP = 2                             # seconds by which the wall clock may have been set unnoticed
RELOADS = b' firewall: Reloading firewall'         # says OpenWrt's hotplug script, before it does
BLIND = ('most of its lines have no tag (`program: `), so no filter reads them (banwatch.py test '
         'all FILE tells more; a daemon\'s own log is the `source` of its jail)')
# What has become of a ban, for those who are told.
NEW_BAN, EXTENDED, SHORTENED, ENDED, LIFTED = 'ban', 'extend', 'shorten', 'ended', 'lifted'


class Wing:
    """What stands beside the guard. It is told what happens; what it wants done, it hands back:
    Workers whose Commands the daemon runs, and what the state files keep of it under its name."""
    name = ''
    explains = False                 # does it want to know which lines a filter has explained?
    keeps = False                    # have the state files to hold something of it?
    workers = ()
    # what is new in a list that it keeps: (name, networks that are in it no more, network -> until
    # of others), in a deque; each a piece that is done in a moment
    pieces = ()
    events = ()                      # (Jail, LogEvent) of clients that it has found out, in a deque

    def __init__(self, daemon):
        self.daemon = daemon

    def configure(self, config, jails):
        """Reads a configuration; the problems in it, 'file:line: text'. Changes nothing yet."""
        return []

    def adopt(self):
        """The configuration that was read last is in force from now on."""

    def start(self):
        """All is restored; lines will come."""

    def seen(self, source, block, explained, now):
        """A tidy block of lines; in the `explained` positions lie those that a filter has
        explained."""

    def event(self, outcome, jail, network, event, why):
        """What has become of a log event: LOGGED_IN, IGNORED or FAILED; why it is exempt, or ''."""

    def banned(self, ticket, what):
        """A ticket is new, or has another end: NEW_BAN, EXTENDED or SHORTENED."""

    def unbanned(self, ticket, what):
        """A ticket is no more: ENDED or LIFTED."""

    def dropped(self, jails, packets):
        """So many packets of those whom these jails have banned were dropped."""

    def incident(self, where, what):
        """Something has gone wrong."""

    def count(self, what, n=1):
        """Something else has happened: 'written', 'flash' (bytes), 'starts', 'reboots'."""

    def clock_set(self, now, seconds):
        """The wall clock was put forward, or back."""

    def minute(self, now):
        """A minute has gone by."""

    def exempted(self, networks):
        """These of its list are never banned, and left out."""

    def unlisted(self, name, networks):
        """Somebody has lifted the bans of networks in its list."""

    def news(self):
        """Has it anything new to keep since it was asked last?"""
        return False

    def status(self):
        """What it adds to the answer of `status`."""
        return {}

    def dump(self, now, kept=False, most=KEPT_ROWS):
        """What the state files hold of it, as JSON."""
        return {}

    def load(self, state, now, gone):
        """Takes in what `dump` wrote `gone` seconds ago; the number of rows that made no sense."""
        return 0

    def close(self):
        """The daemon stops; what it has under way is to end."""

    def closed(self):
        """Has it ended?"""
        return True

    def abandon(self):
        """The time for a stop is over: what has not ended by now is killed. Names of what is
        left."""
        return []


WINGS = []                           # classes of Wings, in the order in which they are told


class Daemon:
    """The wiring: `start`, then `run` until something calls `stop`."""

    def __init__(self, machine, config, reread=None, dry_run=False, wings=None, requests=()):
        self.machine, self.loop, self.config = machine, machine.loop, config
        self.reread = reread or (lambda: config)   # reads the conf again, or raises Problem
        self.requests = dict(requests)             # word -> function(daemon, request, reply)
        self.dry_run = dry_run
        self.ending = self.stopping = False
        self.stop_replies = []       # to be called at the very end
        self.left_behind = []        # firewalls that still had rules of ours at the end
        self.troubles = {}           # what is wrong, by where
        self.sources = {}            # spec -> Source
        self.positions = {}          # of sources, from the state file
        # what the summary counts this start as, if there was a run before
        self.came_from = ''
        self.control = None
        self.began = machine.ticks()
        # how the clocks stood to each other last
        self.offset = machine.wall() - machine.ticks()
        self.next_timer = None
        # before the last reboot: until when (wall clock) lines have been counted
        self.counted_until = 0
        self.exempt = ()             # what of this machine must never be banned
        # are tickets left out of the kernel until a default route is known?
        self.resting, self.route_timer = False, None
        jails = self.make_jails(config)
        self.most_bans = self.room_for_bans(config)            # whatever the firewall can hold
        self.judge = Judge(jails, config['maxtracked'], self.most_bans, machine.chance)
        self.wall = Wall(machine, self.judge.bans, self.refused, self.note, self.tell_incident,
                         self.tell_drops, dry_run)
        self.judge.bans.crowded4 = jails.crowded4()
        self.store = Store(machine, config, self.note, self.pieces, self.tell_written)
        self.lists = Lists(machine, self.note)
        self.names = Names(machine, self.note, self.names_changed)
        self.drops = collections.Counter()         # jails -> packets dropped since the start
        self.with_matches = collections.deque()    # the latest tickets that have log lines
        self.hearers = {}            # event -> the wings that want to know of it
        self.proxied = {}            # address of a proxy -> the wing that knows its clients
        self.wings = [make(self) for make in (WINGS if wings is None else wings)]
        # those that want to hear of each line, the hot path
        self.judge.told = [wing.event for wing in self.wings if type(wing).event != Wing.event]
        self.readers = [wing for wing in self.wings if type(wing).seen != Wing.seen]
        self.configure_wings(config, jails)
        for wing in self.wings:
            wing.adopt()

    # the configuration
    def make_jails(self, config):
        """The Jails of a configuration."""
        return Jails(config, self.machine.read_or_none, self.machine.guard)

    def room_for_bans(self, config):
        """How many bans there may be: `maxbans`, or what this machine has memory for."""
        return config['maxbans'] or min(20000, self.machine.memory()[1] // 10)

    def configure_wings(self, config, jails):
        """Lets the wings read a configuration; Problem if one of them, or a jail, cannot use it."""
        problems = list(jails.problems)
        for wing in self.wings:
            problems += wing.configure(config, jails)
        if problems:
            raise Problem('\n'.join(in_order(problems)), os.EX_CONFIG)

    def wing(self, name):
        """The wing of that name; Problem if there is none."""
        for wing in self.wings:
            if wing.name == name:
                return wing
        raise Problem('this daemon has no %s' % name)

    # the start
    def start(self):
        """Takes up what was left off: state, firewall, sources; Problem if that cannot be."""
        names = ', '.join(jail.name for jail in self.judge.jails.watching())
        self.machine.log('banwatch %s: %s' % (VERSION, names or 'no jail'))
        if not self.dry_run:
            self.open_runtime()
            self.restore()
            if self.came_from:
                self.tell_wings('count', self.came_from)
            if not self.machine.writable(self.config['state']):
                self.note(self.config['state'], 'cannot be written')
        self.protect()
        self.judge.accounts = set(self.machine.accounts())
        self.set_firewall()
        if not self.dry_run:
            self.machine.rule_events(self.wall.rules_changed)
        self.set_sources()
        for wing in self.wings:
            wing.start()
        self.loop.after(MINUTE, self.minute)

    def open_runtime(self):
        """Makes the directory, the lock and the socket; again if somebody has removed them."""
        if self.control:
            self.machine.log('%s: has gone; making it again' % self.config['runtime'])
            self.control.close()
            self.control = None
        self.machine.directory(self.config['runtime'])
        if not self.machine.lock(self.runtime('lock')):
            raise Problem('another banwatch is running (%s)' % self.runtime('lock'))
        self.control = Control(self.runtime('control'), self.loop, self.answer)
        self.store.touch(False)

    def runtime(self, name):
        """Path of a file in `runtime`."""
        return os.path.join(self.config['runtime'], name)

    def restore(self):
        """Takes in what an earlier run has kept: the Restored state, None if there is none."""
        state, now = self.store.restore(), self.machine.ticks()
        if state is None:
            return None
        bans = self.judge.bans
        if state.offset is not None:
            self.offset = state.offset
        lost = state.lost
        for wing in self.wings + [self.names]:
            lost += wing.load(state.state.get(wing.name), now, state.age)
        if lost:
            self.machine.log('%s: %s could not be read; the rest is used' % (
                state.path, plural(lost, 'entry', 'entries')))
        for key, (n, last) in reversed(list(state.history.items())):
            bans.history.put(key, (n, last))
        for ticket in sorted(state.tickets, key=lambda ticket: ticket.since):
            if ticket.until is None or ticket.until > now:
                bans.put(ticket, now)
            else:                                  # nobody else has told of its end
                self.tell_wings('unbanned', ticket, ENDED)
        for key, when in sorted(state.homes.items(), key=lambda row: row[1]):
            self.judge.homes.put(key, when)
        for key, seen in state.fails.items():
            self.judge.fails.put(key, seen)
        for (name, ip, user), until in state.logins.items():
            jail = self.judge.jails.by_name.get(name)
            if jail:
                jail.logins.put((ip, user), until)
        self.positions = state.sources
        if state.booted:
            self.came_from = 'reboots'
            self.counted_until = state.written
        else:
            self.came_from = 'starts'
        if state.killed:
            self.tell_incident('banwatch',
                               'ended without having been stopped: was it killed, or the memory '
                               'full?')
        if bans.tickets:
            self.machine.log('restored %s' % plural(len(bans.tickets), 'ban'))
        return state

    def pieces(self):
        """What the state files are to hold."""
        for source in self.sources.values():
            self.positions[source.meant] = source.position()
        self.look_at_clock(self.machine.ticks(), self.machine.wall())      # how the clocks stand
        logins = {}
        for jail in self.judge.jails.by_name.values():
            for (ip, user), until in jail.logins.items():
                logins[jail.name, ip, user] = until
        known = {source: position for source, position in self.positions.items() if position}
        return Pieces(self.judge.bans, self.judge.fails, logins, known, self.wings + [self.names],
                      self.judge.homes)

    # who is told
    def note(self, where, trouble):
        """Reports once that something is wrong, `status` goes on saying so; '' when it is over."""
        if not trouble:
            self.troubles.pop(where, None)
            return
        if self.troubles.get(where) != trouble:
            self.machine.log('%s: %s' % (where, trouble))
            self.tell_incident(where, trouble)
        self.troubles[where] = trouble

    def note_slow(self, guards):
        """Reports the regexes that take too long, of pairs (where, Guarded)."""
        for where, guard in guards:
            if guard.trouble:
                self.note(where, guard.trouble)

    def heal(self, guards, now):
        """The same, where their trouble may be over by now."""
        for where, guard in guards:
            if guard.trouble:
                guard.heal(now)
                self.note(where, guard.trouble)

    def tell_wings(self, what, *words):
        """Tells those wings that want to know."""
        if what not in self.hearers:
            self.hearers[what] = [wing for wing in self.wings
                                  if getattr(type(wing), what) != getattr(Wing, what)]
        for wing in self.hearers[what]:
            getattr(wing, what)(*words)

    def tell_incident(self, where, what):
        self.tell_wings('incident', where, what)

    def tell_drops(self, jails, packets):
        self.drops[jails] += packets
        self.tell_wings('dropped', jails, packets)

    def tell_written(self, where, size):
        self.tell_wings('count', where, size)

    def set_firewall(self):
        """Puts the firewall of the configuration to work; a dry run touches none."""
        if self.dry_run:
            kind = 'none'
        else:
            kind = self.config['firewall']
        self.wall.set(kind, self.config, self.judge.jails.by_name)

    # sources
    def part(self, source):
        """Closes a source, and remembers how far it was read."""
        self.positions[source.meant] = source.position()
        source.close()

    def set_sources(self):
        """Opens the sources that the conf names, closes the others; `auto` may mean another one
        now."""
        wanted = self.judge.jails.sources
        auto = self.sources.get('auto')
        silent = auto and auto.meant.startswith('/') and auto.quiet(HOUR)
        if auto and (auto.trouble or silent) and find_source(self.machine) != auto.meant:
            self.part(self.sources.pop('auto'))
        for spec in [spec for spec in self.sources if spec not in wanted]:
            self.part(self.sources.pop(spec))
        for spec in wanted:
            if spec not in self.sources:
                source = make_source(spec, self.machine, self.consume, self.config['poll'],
                                     self.source_failed)
                self.sources[spec] = source
                self.machine.log('source: %s' % source.what)
                source.start(self.positions.get(source.meant))
            self.sources[spec].poll = self.config['poll']

    def source_failed(self, source, reason):
        """A source tells that it has failed."""
        if source.fills:
            text = 'was started again (%s)'
        else:
            text = 'failed, lines may be missing (%s)'
        self.tell_incident(source.what, text % reason)

    # from a line to a ban
    def consume(self, source, block, age):
        """Takes whole lines from a source; `age` says whether they count as of now or at their own
        time."""
        now, wall = self.machine.ticks(), self.machine.wall()
        if not age and RELOADS in block:
            self.wall.firewall_reloads()

        def own_time(when):
            if when is None or when > wall + STEP:             # one of the two clocks is wrong
                if age == RECENT:
                    return now
                return None
            if when <= self.counted_until:
                return None
            return min(now, now - wall + when)

        self.look_at_clock(now, wall)
        jails = self.judge.jails
        block = jails.tidied(source.spec, block)
        self.note_blindness(source, block)
        explained = None
        if age != OLD and any([wing.explains for wing in self.readers]):
            explained = []
        if age:
            moment = own_time
        else:
            moment = lambda date: now
        for wing in set(self.proxied.values()):
            wing.read(block, moment, wall)
        for jail, event in jails.scan_tidy(source.spec, block, moment, wall, explained):
            if event.when > now - jail.options['findtime']:
                if event.ip in self.proxied:       # a wing knows who is behind it
                    self.proxied[event.ip].hold(jail, event)
                else:
                    self.weigh(jail, event)
        if age != OLD:
            for wing in self.readers:
                wing.seen(source, block, explained or [], now)
        self.note_slow(jails.guards)

    def note_blindness(self, source, block):
        """Reports a source whose lines are in no form that filters read, though one of them reads
        it as a system log."""
        if any(not bare for _, bare, _ in self.judge.jails.listeners(source.spec)):
            source.sample(block)
            if source.blind():
                self.note(source.what, BLIND)
            elif self.troubles.get(source.what) == BLIND:
                self.note(source.what, '')

    def look_at_clock(self, now, wall):
        """Notes that the wall clock has been set."""
        step = wall - now - self.offset
        if abs(step) > STEP:
            self.offset += step
            self.tell_wings('clock_set', now, round(step))
            self.machine.log('the clock was put %s by %s' % (
                'forward' if step > 0 else 'back', duration_text(abs(step))))

    def weigh(self, jail, event):
        """Bans if a log event completes a BanOrder."""
        self.store.touch(False)
        order = self.judge.weigh(jail, event)
        if order:
            self.ban(jail, order.network, order.seconds, order.failures, order.matches)

    def note_sieges(self, now):
        """Reports accounts that many networks guess at, each with few failures."""
        self.judge.accounts = set(self.machine.accounts())
        names = sorted(user for user, until in self.judge.sieges.items() if until > now)
        self.note('siege', names and 'many networks guess at %s, each a little: until a day after '
                  'the last, two failures within a day are a ban' % ', '.join(names))

    def note_ineffective(self):
        """Reports bans that stop nobody: failures go on, well after they have come into force."""
        found = [ticket for ticket in self.judge.bans.tickets.values()
                 if ticket.ignored >= GOES_ON and self.wall.built()]
        text = ''
        blocks = not self.dry_run and self.config['firewall'] not in ('none', 'command')
        if found and blocks:
            latest = found[-1]
            text = ('%s goes on although it is banned by %s (%s since)%s: another rule first, a '
                    'proxy in front, a published port, an offloaded connection?' % (
                        latest.network, latest.jail, plural(latest.ignored, 'failure'),
                        ', %d others, too' % (len(found) - 1) if found[1:] else ''))
        if text.partition(' (')[0] != self.troubles.get('bans', '').partition(' (')[0]:
            self.note('bans', text)

    def ban(self, jail, network, seconds, failures=0, matches=None, log=True):
        """The door in: a new ban, or a new end for a running one. Returns why not, or ''."""
        refusal = jail.refusal(network)
        if refusal:
            return 'overlaps ' + refusal
        now = self.machine.ticks()
        ticket, end = self.judge.ban(jail, network, now, seconds, failures)
        new = end is False
        if new:
            what = NEW_BAN
            ticket.matches = matches
        else:
            if later_end(end, ticket.until) == ticket.until:
                what = EXTENDED
            else:
                what = SHORTENED
        if matches:
            self.with_matches.append(ticket)
            if len(self.with_matches) > MOST_MATCHES:
                self.with_matches.popleft().matches = None
        self.store.touch()
        for sync in self.wall.tell(network):
            sync.ban(ticket, not new)
        self.tell_wings('banned', ticket, what)
        why = BY_HAND
        if failures:
            why = '%s, ban number %d' % (plural(failures, 'failure'), ticket.count)
        if new and self.dry_run:
            verb = 'would ban'
        else:
            verb = what
        if log:
            self.machine.log('[%s] %s %s %s (%s)' % (
                jail.name, verb, network, for_text(seconds), why))
        if new and failures:
            for other, event in self.judge.after_ban(jail, network, now):
                self.weigh(other, event)
            wider = self.judge.widening(jail, network, now)
            if wider:
                order, tickets = wider
                for ticket in tickets:
                    self.unban(ticket, 'within %s' % order.network)
                self.ban(jail, order.network, order.seconds, order.failures)
        return ''

    def unban(self, ticket, why, log=True):
        """The door out."""
        if self.judge.bans.remove(ticket.key):
            self.store.touch()
            for sync in self.wall.tell(ticket.network):
                sync.unban(ticket)
            self.tell_wings('unbanned', ticket, LIFTED if why == BY_HAND else ENDED)
            if log:
                self.machine.log('[%s] unban %s (%s)' % (ticket.jail, ticket.network, why))

    def refused(self, ticket):
        """Why a ticket must be neither on record nor in the kernel, or ''."""
        jail = self.judge.jails.by_name.get(ticket.jail)
        if jail is None:
            return 'this jail is off'
        refusal = jail.refusal(ticket.network)
        return refusal and 'overlaps ' + refusal

    def protect(self):
        """Finds out again what must never be banned; releases tickets that overlap it, or whose
        jail is off."""
        try:
            self.exempt = self.machine.networks()
            self.note('netlink', '')
        except OSError as e:
            self.note('netlink', 'the addresses of this machine are not known: %s' % e.strerror)
        self.lists.read(self.judge.jails.files())
        self.names.set(self.judge.jails.names())
        files = dict(self.lists.files, **self.names.known())
        changed = self.judge.jails.protect(self.exempt, files)
        self.set_lists()
        if changed:
            self.wall.write_again()
        elif not self.resting:
            return
        self.resting = False
        for ticket in list(self.judge.bans.tickets.values()):
            why = self.refused(ticket)
            # without a default route, the WAN's own network looks like a LAN: what is in it rests
            if why and '(the LAN, ' in why and not self.machine.outward:
                self.resting = True
            elif why:
                self.unban(ticket, why)
        if self.resting:                           # until the route comes, a minute is long
            self.loop.cancel(self.route_timer)
            self.route_timer = self.loop.after(ROUTE_SECONDS, self.protect)

    def names_changed(self):
        """Host names stand for other addresses."""
        self.store.touch()
        self.protect()

    def set_lists(self):
        """Bans what `banip` means by now, and nothing else of it. What overlaps an exempt range is
        left out, and reported."""
        jails, lists = self.judge.jails, self.judge.bans.lists
        now = Listed(self.machine.ticks(), None)
        for name in list((lists.keys() | jails.lists.keys()) - {HUB}):
            words, before, exempt = jails.lists.get(name, ()), lists.get(name, {}), []
            wanted = {}
            for word in words:
                for net in listed_networks(word, self.lists.files):
                    if jails.by_name[name].refusal(net):
                        exempt.append(net)
                    else:
                        wanted[net] = before.get(net, now)
            self.note(name, exempt and '%s never banned, as %s: %s' % (
                plural(len(exempt), 'network is', 'networks are'), exempt[0],
                jails.by_name[name].refusal(exempt[0])))
            lists[name] = wanted
            if not words:
                del lists[name]
            gone, new = before.keys() - wanted.keys(), wanted.keys() - before.keys()
            if gone or new:
                self.machine.log('[%s] %s banned' % (name, plural(
                    len(wanted), 'network is', 'networks are')))
                for sync in self.wall.syncs:
                    sync.list_changed(name, gone, new)
        if HUB not in jails.by_name:
            lists.pop(HUB, None)
        elif HUB in lists:
            jail = jails.by_name[HUB]
            self.change_list(HUB, [net for net in lists[HUB] if jail.refusal(net)], {})

    def change_list(self, name, gone, new):
        """Bans and lifts networks of a list that a wing keeps; `new` is network -> until. Those
        that are never banned."""
        jail, now = self.judge.jails.by_name[name], self.machine.ticks()
        listed = self.judge.bans.lists.setdefault(name, {})
        known = [net for net in gone if listed.pop(net, None)] + [net for net in new
                                                                  if net in listed]
        fresh, refused = [], []
        for net, until in new.items():
            if jail.refusal(net):
                refused.append(net)
            elif net in listed:
                listed[net] = listed[net]._replace(until=until)
            else:
                listed[net] = Listed(now, until)
                fresh.append(net)
        for sync in self.wall.syncs:
            sync.list_changed(name, known, fresh)
        return refused

    # the loop
    def run(self):
        while not self.stopping:
            self.loop.due()
            self.loop.call(self.settle)
            wait = self.loop.due()
            self.loop.wait(0 if self.stopping else wait)
        self.machine.kill_all()

    def settle(self):
        """After each turn: what has ended goes, the firewalls and then the files are brought up to
        date."""
        bans = self.judge.bans
        bans.limit = bans.history.limit = self.wall.room(self.most_bans)
        for ticket, why in self.judge.leaving(self.machine.ticks()):
            self.unban(ticket, why)
        for wing in self.wings:
            while wing.events:
                self.weigh(*wing.events.popleft())
            if wing.pieces:                        # one a turn
                wing.exempted(self.change_list(*wing.pieces.popleft()))
                self.loop.after(0, lambda: None)
        self.wall.settle_all()
        if self.names.by_name:
            self.names.settle()
        for wing in self.wings:
            for worker in list(wing.workers):
                worker.settle()
            if wing.news():
                self.store.touch()
        if self.ending and self.wall.closed() and all(wing.closed() for wing in self.wings):
            self.finish()
        ticket = bans.next_end()
        if ticket and (not self.next_timer or self.next_timer.time != ticket.until):
            self.loop.cancel(self.next_timer)
            self.next_timer = self.loop.at(ticket.until, lambda: None)
        if not self.dry_run:
            self.store.set_timers()

    def minute(self):
        """Once a minute: what must never be banned, what is forgotten, what the kernel still
        has."""
        now = self.machine.ticks()
        self.loop.after(MINUTE, self.minute)
        self.protect()
        lists = self.judge.bans.lists
        for name in lists:
            ended = [net for net, row in lists[name].items() if row.until is not None
                     and row.until <= now]
            if ended:
                self.change_list(name, ended, {})
            lists[name] = dict(lists[name])        # gives back the room of what has gone
        self.judge.purge(now, self.config['dbpurgeage'])
        self.note_sieges(now)
        self.heal(self.judge.jails.guards, self.machine.wall())
        self.look_at_clock(now, self.machine.wall())
        self.note_ineffective()
        self.tell_wings('minute', now)
        if self.ending:
            return
        self.wall.minute()
        for source in self.sources.values():
            source.check()
        self.set_sources()
        if self.control and not self.control.stands():
            try:
                self.open_runtime()
            # another one runs meanwhile, or there is no place
            except Problem as e:
                self.machine.log('stopping: %s' % e)
                self.stop()

    # signals
    def signalled(self, number):
        """A signal has come."""
        if number in (signal.SIGTERM, signal.SIGINT):
            self.stop()
        elif number == signal.SIGHUP:
            try:
                self.reload()
            except Problem as e:
                for line in str(e).split('\n'):
                    self.machine.log('reload refused, nothing has changed: %s' % line)
        elif number == signal.SIGCHLD:
            self.machine.reap()

    def reload(self):
        """Takes over a changed conf, keeps bans and counts; Problem, and no change, if it is
        invalid."""
        if self.ending:
            return
        config = self.reread()
        jails = self.make_jails(config)
        self.configure_wings(config, jails)
        for name in ('runtime', 'state'):
            if config[name] != self.config[name]:
                where = config.where('banwatch', name)
                raise Problem('%s: a new `%s` needs a restart' % (where, name), os.EX_CONFIG)
        jails.adopt(self.judge.jails)
        for jail in self.judge.jails.by_name:
            self.note(jail, '')
        self.judge.jails, self.config = jails, config
        self.judge.bans.crowded4 = jails.crowded4()
        self.judge.fails.recent.limit = config['maxtracked']
        self.most_bans = self.room_for_bans(config)
        self.store.save_every = config['save']
        self.protect()
        for wing in self.wings:
            wing.adopt()
        self.set_firewall()
        self.set_sources()
        self.machine.log('reloaded %s' % config.name)

    def stop(self):
        """Takes our rules out of the kernel, saves, and ends the loop when the rules have gone."""
        if self.ending:
            return
        self.ending = True
        self.wall.close()
        for wing in self.wings:
            wing.close()
        self.loop.after(STOP_SECONDS, self.give_up)
        for source in self.sources.values():
            self.part(source)
        self.sources = {}
        if not self.dry_run:
            self.store.close()

    def give_up(self):
        """The time for a stop is over."""
        self.left_behind = self.wall.left()
        for name in self.left_behind:
            self.machine.log('%s: not all could be taken out; `banwatch.py stop` tries again'
                             % name)
        for wing in self.wings:
            self.left_behind += wing.abandon()
        self.finish()

    def finish(self):
        """Ends the loop; whoever has asked for that is answered."""
        self.stopping = True
        # the last packets dropped, mails that were not sent
        if any([wing.news() for wing in self.wings]):
            self.store.touch()
        if self.store.live_dirty and not self.dry_run:
            self.store.save_all()
        for reply in self.stop_replies:
            reply({'left': self.left_behind})
        if self.control:
            self.control.close()
            self.control = None

    # requests
    def answer(self, request, reply):
        """Answers a client; `reply` is called with a dict, now or when the kernel has said yes."""
        try:
            word = request.get('do')
            if type(word) is not str or word not in self.requests:
                raise Problem('not a valid request', os.EX_USAGE)
            if self.ending and word != 'stop':
                raise Problem('it is stopping', os.EX_UNAVAILABLE)
            self.requests[word](self, request, reply)
        except Problem as e:
            reply({'error': str(e), 'code': e.code})
        except Exception:                          # the loop reports it with its traceback
            reply({'error': 'a bug in the daemon; its log has the traceback', 'code': 1})
            raise

    def saved(self, reply, answer):
        """What a client is told is on file before it is told."""
        if self.store.live_dirty and not self.dry_run:
            self.store.save()
        reply(answer)

    def full(self):
        """Why there may be no more bans."""
        limit = self.judge.bans.limit
        if limit != self.config['maxbans']:
            name = self.wall.narrow(limit)
        else:
            name = ''
        if name:
            return 'plain %s holds %d' % (name, limit)
        return 'maxbans is reached'

    def wrong(self):
        """Lines for `status`: all that is not as it should be."""
        found = ['%s: %s' % (where, text) for where, text in self.troubles.items()]
        syncs = [sync for sync in self.wall.syncs if sync.matters()]
        workers = list(syncs)
        found += ['%s: offloaded connections of who is banned go on: %s' % (sync.name, sync.uncut)
                  for sync in syncs if sync.uncut]
        for wing in self.wings:
            workers += wing.workers
        found += [with_name(worker.name, worker.trouble) for worker in workers if worker.trouble]
        found += ['%s: %s' % (s.what, s.trouble) for s in self.sources.values() if s.trouble]
        found += self.nameless()
        for sync in syncs:
            if sync.left_out:
                found.append('%s: no room for %s of lists'
                             % (sync.name, plural(sync.left_out, 'network')))
        if self.judge.bans.dropped:
            dropped = plural(self.judge.bans.dropped, 'ban')
            found.append('%s: %s lifted before their time' % (self.full(), dropped))
        return found

    def nameless(self):
        """Lines on failures whose lines do not say from which address."""
        found = []
        for jail in self.judge.jails.watching():
            if jail.filter.names:
                found.append('%s: %s named a host instead of an address; names are not looked up '
                             '(sshd: set `UseDNS no`)' % (
                                 jail.name, plural(jail.filter.names, 'failure')))
            if jail.filter.cut:
                found.append('%s: %s so long that the log daemon may have cut off the address; '
                             'they do not count' % (
                                 jail.name, plural(jail.filter.cut, 'refusal is', 'refusals are')))
        return found


def listen_to_signals(loop, signalled):
    """Makes signals events of the loop: select() goes on after a signal, so they come through a
    socket."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda number, frame: None)

    def readable():
        for number in set(ours.recv(4096)):
            signalled(number)
    loop.watch(ours, readable)
    return ours, theirs


def deafen(loop, pair):
    """Undoes listen_to_signals."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    loop.unwatch(pair[0])
    for end in pair:
        end.close()


# ---- Commands ------------------------------------------------------------------------------
# Owns: the command line. One row of COMMANDS is the whole of a command: its arguments, its help,
# what the client does (`run`), what the daemon answers (`answer`). Always true: a command prints
# its result to standard output and returns its exit code.

CONF = '/etc/banwatch.conf'


def read_conf(name, strict=True, filters=True):
    """The Config in a conf file ('-': standard input; None: /etc/banwatch.conf if there is one).
    Who only wants to talk to the daemon is not strict: whatever is wrong must not bar him from
    `stop`. Who builds the filters himself, and is told then what is wrong with them, leaves them
    out here."""
    if name in (None, CONF) and not os.path.lexists(CONF):
        return Config()
    name = name or CONF
    try:
        with open(0 if name == '-' else name, 'rb', closefd=name != '-') as f:
            text = f.read(1 << 20).decode('utf-8-sig')
    except OSError as e:
        raise Problem('%s: %s' % (name, e.strerror), os.EX_CONFIG) from None
    except UnicodeDecodeError as e:
        raise Problem('%s: byte %d is not UTF-8' % (name, e.start), os.EX_CONFIG) from None
    config, problems = read_config(text, name)
    if strict and (filters or problems):           # all mistakes are told at once
        problems += Jails(config, Machine().read_or_none).problems
        for check in CONF_CHECKS:
            problems += check(config)
    if problems and strict:
        raise Problem('\n'.join(in_order(problems)), os.EX_CONFIG)
    if problems:
        print('banwatch: %s has mistakes (banwatch.py check tells)' % name, file=sys.stderr)
    return config


CONF_CHECKS = []                     # of the wings: Config -> problems


def reread_conf(conf):
    """The Config in a conf file, once more; Problem if it came from standard input."""
    if conf == '-':
        raise Problem('a conf from standard input cannot be read again; restart instead',
                      os.EX_CONFIG)
    return read_conf(conf, filters=False)


def run_daemon(conf, options, words):
    """`run`: the daemon, until it is stopped."""
    machine = Machine()
    machine.become_byte_code()
    LazyModule.load_for_daemon()
    config = read_conf(conf, filters=False)
    dry_run = 'dry-run' in options
    if not dry_run and config['firewall'] != 'none' and not machine.root():
        raise Problem('only root can change the firewall; `run --dry-run` needs no rights',
                      os.EX_NOPERM)
    machine.be_called('banwatch')
    if 'syslog' in options:
        machine.log_to_syslog()
    daemon = Daemon(machine, config, lambda: reread_conf(conf), dry_run, requests=request_table())
    pair = listen_to_signals(daemon.loop, daemon.signalled)
    try:
        daemon.start()
        daemon.run()
    finally:
        deafen(daemon.loop, pair)
    machine.log('stopped')
    if daemon.left_behind:
        return 1
    return 0


def check_file(conf, options, words):
    """`check`: finds all mistakes in the conf."""
    config = read_conf(conf)
    print(config_text(config) if 'print' in options else '%s: all right' % config.name)
    return 0


# what clients ask, and how they say it
def ask_about(conf, options, words, **more):
    """The daemon's answer to a command, which may name a jail."""
    jail = options.get('jail') or (words[0] if words else None)
    return ask_daemon(read_conf(conf, strict=False), dict(more, jail=jail))


def ask_in_parts(conf, options, networks, lengths=None, **more):
    """The same about networks, which may be more than fit into one request; `lengths`: of their
    bans, each its own."""
    whole = {}
    for start in range(0, max(1, len(networks)), 1000):
        some = networks[start:start + 1000]
        if lengths:
            more['seconds'] = lengths[start:start + 1000]
        for key, value in ask_about(conf, options, [], networks=some, **more).items():
            if type(value) is list and key in whole:
                whole[key] = whole[key] + value
            else:
                whole[key] = value or whole.get(key, value)
    return whole


def clock_text(when):
    """'2026-11-20 12:27:01', 'for ever' for None."""
    if when is None:
        return 'for ever'
    return time.strftime('%Y-%m-%d %H:%M:%S', local_time(when))


def print_rows(rows):
    """Prints lines; exit code 0."""
    print('\n'.join(rows))
    return 0


def requested_jail(daemon, request):
    """The Jail that a request names, None if it names none; Problem if there is no such jail."""
    name, jails = request.get('jail'), daemon.judge.jails.by_name
    if name is not None and (type(name) is not str or name not in jails):
        raise Problem('%s: no such jail (there are: %s)' % (printable(str(name)), ' '.join(jails)))
    return jails.get(name)


def requested_networks(request):
    """The networks of a request; Problem if that is no list of them."""
    try:
        return [network_of(text) for text in request['networks']]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Problem('not a valid request', os.EX_USAGE) from None


def requested_lengths(request, jail, n):
    """Seconds of each of n bans by hand: one number for all, or each its own."""
    asked = request.get('seconds')
    if asked is None:
        asked = jail.options['bantime']
    if type(asked) is not list:
        asked = [asked] * n
    if len(asked) != n or not all(type(seconds) in (int, float) for seconds in asked):
        raise Problem('not a valid request', os.EX_USAGE)
    most = jail.options['bantime.maxtime']
    lengths = []
    for seconds in asked:
        if seconds != FOREVER:
            seconds = min(max(1, seconds), most)
        lengths.append(seconds)
    return lengths


def answer_status(daemon, request, reply):
    """How the daemon is, what it has seen, and what is wrong."""
    requested_jail(daemon, request)
    if request.get('look') is True:                # at the kernel, first
        daemon.wall.look_after()
        daemon.wall.when_settled(None, lambda trouble: answer_status(
            daemon, dict(request, look=False), reply))
        return
    machine, judge, store = daemon.machine, daemon.judge, daemon.store
    now, wall = machine.ticks(), machine.wall()
    jails = [jail_status(judge, jail) for jail in judge.jails.by_name.values()
             if request.get('jail') in (None, jail.name)]
    sources = [{'source': source.what, 'lines': source.lines, 'trouble': source.trouble,
                'idle': None if source.last is None else round(now - source.last, 1),
                'sampled': source.sampled, 'tagless': source.tagless}
               for source in daemon.sources.values()]
    firewall = [{'name': sync.name, 'trouble': sync.trouble, 'pending': not sync.idle(),
                 'why': daemon.wall.why, 'mended': sync.repaired, 'offload': sync.offload,
                 'rules': sum(map(sync.handles, itertools.chain(
                     (ticket.network for ticket in judge.bans.tickets.values()),
                     *judge.bans.lists.values())))}
                for sync in daemon.wall.syncs if sync.matters()]
    answer = {
        'version': VERSION, 'pid': os.getpid(), 'conf': daemon.config.name,
        'uptime': round(now - daemon.began, 1), 'jails': jails, 'sources': sources,
        'firewall': firewall, 'actions': [], 'bans': len(judge.bans.tickets),
        'maxbans': judge.bans.limit,
        'tracked': len(judge.fails.recent), 'maxtracked': judge.fails.recent.limit,
        'memory': machine.memory()[0], 'written': machine.written,
        'names': daemon.names.known(),
        'drops': [{'jails': jails, 'packets': n} for jails, n in daemon.drops.items()],
        'saved': None if store.flash_saved is None else round(wall - now + store.flash_saved, 1),
        'wrong': daemon.wrong()}
    for wing in daemon.wings:
        answer.update(wing.status())
    daemon.saved(reply, answer)


def jail_status(judge, jail):
    """What `status` tells of a jail."""
    made = jail.filter
    return {'jail': jail.name, 'filter': (jail.options['filter'] or jail.name) if made else None,
            'origin': made.origin if made else None, 'failures': jail.failures,
            'seen': jail.failures + jail.taken_back, 'ignored': jail.ignored,
            'taken_back': jail.taken_back, 'names': made.names if made else 0,
            'cut': made.cut if made else 0,
            'tracked': sum(key[0] == jail.name for key in judge.fails.recent),
            'banned': sum(key[0] == jail.name for key in judge.bans.tickets)
            + len(judge.bans.lists.get(jail.name, ())), 'bans': jail.banned}


def metrics_rows(answer):
    """Lines of what METRICS tells of the answer of `status`: Prometheus' text format, 0.0.4."""
    for name, kind, about, part, label, key in METRICS:
        rows = [answer]
        if part:
            rows = answer.get(part) or []
        if type(rows) is dict:
            rows = [rows]
        samples = []
        for row in rows:
            if key == 'one':
                value = 1
            elif key == 'bytes':
                value = 1024 * row['memory']
            elif key == 'trouble':
                value = int(not row[key])
            elif key == 'wrong':
                value = len(row[key])
            else:
                value = row.get(key)
            if value is not None:
                text = re.sub(r'[\\"]', r'\\\g<0>', printable(str(row.get(label))))
                labels = label and '{%s="%s"}' % (label, text)
                samples.append('banwatch_%s%s %r' % (name, labels, value))
        if samples:
            yield '# HELP banwatch_%s %s' % (name, about)
            yield '# TYPE banwatch_%s %s' % (name, kind)
            yield from samples


def show_status(conf, options, words):
    """`status`."""
    answer = ask_about(conf, options, words, do='status')
    if 'json' in options:
        return print_rows([json.dumps(answer)])
    if 'metrics' in options:
        return print_rows(metrics_rows(answer))
    rows = ['banwatch %s, pid %d, up %s, %s kB, conf: %s' % (
        answer['version'], answer['pid'], duration_text(answer['uptime']), answer['memory'],
        answer['conf'])]
    for source in answer['sources']:
        said = source['trouble'] or plural(source['lines'], 'line')
        if source['idle'] is not None and not source['trouble']:
            said += ', last %s ago' % duration_text(source['idle'])
        rows.append('source    %s: %s' % (source['source'], said))
    for n, wall in enumerate(answer['firewall']):
        said = wall['trouble'] or plural(wall['rules'], 'ban')
        if wall['name'] == 'none':
            said += ' on record, nothing is blocked'
        if wall['why'] and n == 0:
            said += ' (auto: %s)' % wall['why']
        rows.append('firewall  %s: %s' % (wall['name'], said))
    hub = answer.get(HUB)
    if hub:
        rows.append('crowdsec  %s: %s, %s pushed, %d waiting' % (
            hub['url'], plural(hub['decisions'], 'decision'), plural(hub['pushed'], 'ban'),
            hub['waiting']))
    for action in answer['actions']:
        rows.append('action    %s: %s'
                    % (action['name'], action['trouble'] or plural(action['bans'], 'ban')))
    for name, known in answer['names'].items():
        rows.append('ignoreip  %s: %s' % (name, ', '.join(known) or 'not known'))
    saved = 'not saved yet'
    if answer['saved'] is not None:
        saved = 'saved ' + clock_text(answer['saved'])
    rows.append('state     ' + saved)
    for jail in answer['jails']:
        if jail['origin'] not in (None, BUILT_IN):
            rows.append('filter    %s: %s' % (jail['jail'], jail['origin']))
    keys = 'jail', 'failures', 'tracked', 'ignored', 'bans', 'banned'
    head = 'JAIL', 'FAILURES', 'TRACKED', 'IGNORED', 'BANS', 'NOW'
    rows.append('')
    rows += table(head, [[jail[key] for key in keys] for jail in answer['jails']])
    if answer['wrong']:
        rows.append('')
    rows += ['WRONG: ' + text for text in answer['wrong']]
    return print_rows([printable(row) for row in rows])


def answer_banned(daemon, request, reply):
    """Who is banned; moments by the wall clock, `until` None for ever."""
    requested_jail(daemon, request)
    now, rows = daemon.machine.ticks(), []
    offset = daemon.machine.wall() - now

    def add(name, net, since, until, count, failures):
        left = FOREVER
        if until is not None:
            left, until = round(max(0, until - now), 1), round(offset + until, 1)
        rows.append({'ip': net, 'jail': name, 'since': round(offset + since, 1), 'until': until,
                     'left': left, 'count': count, 'failures': failures})
    for ticket in sorted(daemon.judge.bans.tickets.values(), key=lambda ticket: ticket.since):
        if request.get('jail') in (None, ticket.jail):
            add(ticket.jail, ticket.network, ticket.since, ticket.until, ticket.count,
                ticket.failures)
    for name, networks in daemon.judge.bans.lists.items():
        if request.get('jail') in (None, name):
            for net, row in networks.items():
                if row.until is None or row.until > now:
                    add(name, net, row.since, row.until, 1, 0)
    daemon.saved(reply, {'banned': rows})


def show_banned(conf, options, words):
    """`banned`."""
    rows = ask_about(conf, options, words, do='banned')['banned']
    if 'json' in options:
        return print_rows([json.dumps(rows)])
    if 'plain' in options:
        for net in dict.fromkeys(row['ip'] for row in rows):
            print(net)
        return 0
    if not rows:
        return print_rows(['nobody is banned'])
    return print_rows(table(('ADDRESS', 'JAIL', 'SINCE', 'UNTIL', 'LEFT', 'COUNT'), [
        (row['ip'], row['jail'], clock_text(row['since']), clock_text(row['until']),
         '' if row['until'] is None else duration_text(row['left']), row['count'])
        for row in rows]))


def typed_networks(words):
    """The networks that somebody has typed; Problem for what is none."""
    found = []
    for word in words:
        try:
            found.append(network_of(word))
        except ValueError:
            raise Problem(
                '%s is not an address or network (try 192.0.2.7, 2001:db8::7, 198.51.100.0/24)'
                          % printable(word), os.EX_USAGE) from None
    return found


def answer_ban(daemon, request, reply):
    """Bans networks by hand."""
    jail = requested_jail(daemon, request) or daemon.judge.jails.by_name[MANUAL]
    networks = requested_networks(request)
    lengths = requested_lengths(request, jail, len(networks))
    tickets, refused, bans = [], [], daemon.judge.bans
    few = len(networks) <= FEW_LINES
    for net, seconds in zip(networks, lengths):
        refusal = daemon.ban(jail, net, seconds, log=few)
        if refusal:
            refused.append('%s: not banned: %s' % (net, refusal))
        else:
            tickets.append(bans.tickets[jail.name, net])
    if not few:
        daemon.machine.log('[%s] ban %s (%s)' % (
            jail.name, plural(len(tickets), 'network'), BY_HAND))

    def settled(trouble):
        now, banned = daemon.machine.ticks(), []
        for ticket in tickets:
            if ticket.key in bans.tickets or not ticket.left(now):
                banned.append(ticket.network)
            else:
                refused.append('%s: lifted again: %s' % (ticket.network, daemon.full()))
        answer = {'banned': banned, 'seconds': max(lengths, default=0), 'trouble': trouble,
                  'refused': refused}
        if len(bans.tickets) >= bans.limit:
            answer['full'] = ('%s: each further ban lifts that of whoever has been silent longest'
                              % daemon.full())
        daemon.saved(reply, answer)
    daemon.wall.when_settled(tickets, settled)


def session_address():
    """The address that this session was opened from, '' if it is not known: $SSH_CONNECTION, also
    where sudo has taken it out of our environment, but not out of that of the shell."""
    pid = os.getpid()
    for _ in range(20):
        try:
            with open('/proc/%d/environ' % pid, 'rb') as f:
                said = re.search(br'(?:^|\0)SSH_C(?:ONNECTION|LIENT)=(\S+) ', f.read(1 << 17))
            with open('/proc/%d/stat' % pid, 'rb') as f:
                pid = int(f.read().rpartition(b') ')[2].split()[1])
            if said:
                return address(said.group(1).decode())
        except (OSError, ValueError, IndexError):
            return ''
    return ''


def spare_own_session(networks):
    """Problem if one of these networks holds the address that this session comes from."""
    own = session_address()
    for net in networks:
        if own and networks_overlap(net, own):
            raise Problem('%s holds %s, from which your own session comes: --force bans it all '
                          'the same' % (net, own))


def ban_addresses(conf, options, words):
    """`ban`."""
    seconds = None
    if 'time' in options:
        try:
            seconds = ban_seconds(options['time'])
        except ValueError as e:
            raise Problem('-t %s %s' % (printable(options['time']), e), os.EX_USAGE) from None
    networks, lengths, wrong = typed_networks(words), None, []
    if 'file' in options:
        listed, lengths, wrong = networks_in_file(options['file'])
        if seconds is not None or networks:
            lengths = None
        networks += listed
    if not (networks or 'file' in options):
        raise Problem('usage: banwatch.py ban %s' % COMMANDS['ban'].arguments, os.EX_USAGE)
    if 'force' not in options:
        spare_own_session(networks)
    answer = {'banned': [], 'refused': [], 'trouble': '', 'seconds': seconds}
    if networks:
        answer = ask_in_parts(conf, options, networks, lengths, do='ban', seconds=seconds)
    if 'file' in options:
        print('%s banned' % plural(len(answer['banned']), 'network is', 'networks are'))
    else:
        for net in answer['banned']:
            print('%s: banned %s' % (net, for_text(answer['seconds'])))
    if seconds is not None and seconds != answer['seconds']:
        print('(bantime.maxtime is %s; -t -1 bans for ever)' % duration_text(answer['seconds']))
    if answer.get('full'):
        print('banwatch: ' + answer['full'], file=sys.stderr)
    return print_refusals(answer, wrong + answer['refused'])


def networks_in_file(name):
    """(networks, seconds of each or None, what is wrong line by line) of a list ('-': standard
    input), or of what `banned --json` has printed elsewhere."""
    try:
        with open(0 if name == '-' else name, 'rb', closefd=name != '-') as f:
            text = f.read(LIST_BYTES).decode('utf-8', 'replace')
    except OSError as e:
        raise Problem('%s: %s' % (printable(name), e.strerror)) from None
    if text.lstrip()[:1] != '[':
        networks, wrong = read_networks(text)
        return networks, None, ['%s:%d: %s' % (printable(name), n, why) for n, why in wrong]
    networks, lengths, wrong = [], [], []
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        raise Problem('%s: not what `banned --json` prints' % printable(name)) from None
    for n, row in enumerate(rows, 1):
        try:
            net, seconds = network_of(row['ip']), checked_number(row['left'], FOREVER)
            networks.append(net)
            lengths.append(seconds)
        except (ValueError, TypeError, KeyError, AttributeError):
            wrong.append('%s: entry %d: not a ban' % (printable(name), n))
    return networks, lengths, wrong


def answer_fail(daemon, request, reply):
    """Counts failures that somebody else has seen."""
    jail = requested_jail(daemon, request) or daemon.judge.jails.by_name[MANUAL]
    networks, times, user = requested_networks(request), request.get('times'), request.get('user')
    if type(times) is not int or not 1 <= times <= MOST_TIMES or not (
            user is None or type(user) is str):
        raise Problem('not a valid request', os.EX_USAGE)
    said, tickets, bans = [], [], daemon.judge.bans.tickets
    for net in networks:
        _, key = jail.key_of(net)
        refusal, before = jail.refusal(net), key in bans
        event = LogEvent(net, user and user[:MOST_TEXT], times, False, daemon.machine.ticks())
        daemon.weigh(jail, event)
        seen = len(daemon.judge.fails.recent.get(key, ()))
        if refusal:
            said.append('%s: never banned: %s' % (net, refusal))
        elif key in bans:
            tickets.append(bans[key])
            said.append('%s: %s %s' % (key[1], 'is banned already,' if before else 'banned',
                                       for_text(bans[key].left(daemon.machine.ticks()))))
        else:
            most = plural(jail.options['maxretry'], 'failure')
            said.append('%s: %d of %s' % (key[1], seen, most))
    daemon.wall.when_settled(tickets, lambda trouble: daemon.saved(
        reply, {'said': said, 'trouble': trouble}))


def count_failures(conf, options, words):
    """`fail`."""
    times = options.get('n', '1')
    if not times.isdigit() or not 1 <= int(times) <= MOST_TIMES:
        raise Problem('-n %s is not a number from 1 to %d' % (printable(times), MOST_TIMES),
                      os.EX_USAGE)
    networks = typed_networks(words)
    wide = [net for net in networks if '/' in net]
    if wide:
        raise Problem('%s: fail takes single addresses' % wide[0], os.EX_USAGE)
    answer = ask_in_parts(conf, options, networks, do='fail', times=int(times),
                          user=options.get('u'))
    print_rows(answer['said'])
    return print_refusals(answer, [])


def answer_unban(daemon, request, reply):
    """Lifts bans that touch networks, and forgets their failures."""
    requested_jail(daemon, request)
    networks, name = requested_networks(request), request.get('jail')

    def meant(key):
        return name in (None, key[0]) and bool(
            request.get('all') or any(networks_overlap(key[1], net) for net in networks))
    judge = daemon.judge
    tickets = [ticket for ticket in judge.bans.tickets.values() if meant(ticket.key)]
    pulled = [net for net in judge.bans.lists.get(HUB, ()) if meant((HUB, net))]
    lifted = [ticket.network for ticket in tickets] + pulled
    missing = [net for net in networks
               if not any(networks_overlap(other, net) for other in lifted)]
    listed = [net for net in missing if any(networks_overlap(other, net) for name, others in
                                            judge.bans.lists.items() for other in others)]
    for key in [key for key in judge.fails.recent if meant(key)]:
        del judge.fails.recent[key]
        daemon.store.touch(False)
    few = len(tickets) <= FEW_LINES
    for ticket in tickets:
        daemon.unban(ticket, BY_HAND, few)
    if not few:
        daemon.machine.log('unban %s (%s)' % (plural(len(tickets), 'ban'), BY_HAND))
    if pulled:
        daemon.change_list(HUB, pulled, {})
        daemon.machine.log('[%s] unban %s (%s)' % (HUB, plural(len(pulled), 'network'), BY_HAND))
        daemon.tell_wings('unlisted', HUB, pulled)
        tickets = None                             # it is asked for all
    unbanned = sorted(set(lifted))
    daemon.wall.when_settled(tickets, lambda trouble: daemon.saved(
        reply, {'unbanned': unbanned, 'missing': missing, 'listed': listed, 'trouble': trouble}))


def unban_addresses(conf, options, words):
    """`unban`."""
    everything = 'all' in options
    if everything == bool(words):
        raise Problem('unban takes addresses, or --all', os.EX_USAGE)
    answer = ask_in_parts(conf, options, typed_networks(words), do='unban', all=everything)
    for net in answer['unbanned']:
        print('%s: unbanned' % net)
    if 'jail' in options:
        by = ' by ' + options['jail']
    else:
        by = ''
    refused = ['%s: stands in `banip`: take it out there' % net for net in answer['listed']]
    refused += ['%s: is not banned%s' % (net, by) for net in answer['missing']
                if net not in answer['listed']]
    return print_refusals(answer, refused)


def print_refusals(answer, refused):
    """Prints what did not work; the exit code."""
    for text in refused:
        print('banwatch: ' + text, file=sys.stderr)
    if answer['trouble']:
        print('banwatch: saved, but the firewall refused it: %s' % printable(answer['trouble']),
              file=sys.stderr)
    if refused or answer['trouble']:
        return 1
    return 0


def answer_reload(daemon, request, reply):
    """Reads the conf again."""
    daemon.reload()
    reply({})


def reload_daemon(conf, options, words):
    """`reload`."""
    ask_about(conf, options, words, do='reload')
    return print_rows(['reloaded'])


def answer_stop(daemon, request, reply):
    """Stops; answers at the very end."""
    daemon.stop_replies.append(reply)
    daemon.stop()


def stop_daemon(conf, options, words):
    """`stop`."""
    procd = os.path.exists('/sbin/procd') and os.path.exists('/etc/init.d/banwatch')
    try:
        answer = ask_about(conf, options, words, do='status' if procd else 'stop')
    except Problem as e:
        if e.code != os.EX_UNAVAILABLE or not tidy_up(Machine(), read_conf(conf, strict=False)):
            raise
        raise Problem('no daemon is running; rules that one had left behind have been taken out',
                      e.code) from None
    if procd:
        raise Problem('procd would start it again; use: /etc/init.d/banwatch stop')
    if answer['left']:
        raise Problem('stopped, but not all could be taken out: %s' % ', '.join(answer['left']))
    return print_rows(['stopped'])


def run_loop_until(machine, begin, done, signalled):
    """Lets a command's programs run from `begin()` until `done()`."""
    pair = listen_to_signals(machine.loop, signalled)
    try:
        begin()
        while not done():
            machine.loop.wait(machine.loop.due())
    finally:
        machine.kill_all()
        deafen(machine.loop, pair)


def run_now(machine, command, seconds=10):
    """(problem or '', what it printed) of a Command that is run to its end."""
    ended = []

    def signalled(number):
        if number in (signal.SIGINT, signal.SIGTERM):
            raise KeyboardInterrupt
        machine.reap()
    run_loop_until(machine,
                   lambda: machine.run(command, lambda *answer: ended.append(answer), seconds),
                   lambda: ended, signalled)
    return ended[0]


def tidy_up(machine, config):
    """Takes out the rules of a daemon that was killed; True if there were some."""
    lock = os.path.join(config['runtime'], 'lock')
    if os.path.exists(lock) and not machine.lock(lock):
        pid = machine.read(lock).strip()
        raise Problem('a daemon is running, but does not answer; try: kill %s' % pid)
    syncs = []
    if machine.root():
        for kind in ('ipset', 'nft'):
            for firewall in make_firewalls(kind, config['chain'], {}):
                syncs.append(FirewallSync(firewall, machine, Bans(0), lambda ticket: ''))

    def begin():
        for sync in syncs:
            sync.close()
            sync.settle()
    run_loop_until(machine, begin, lambda: not any(sync.running for sync in syncs),
                   lambda number: machine.reap())
    troubles = []
    for sync in syncs:
        # many a kernel lacks IPv6
        ours = sync.firewall.family != 6 and machine.which(sync.firewall.tool)
        if sync.trouble and (sync.proven > UNTRIED or ours):
            troubles.append('%s: %s' % (sync.name, sync.trouble))
    if troubles:
        raise Problem('no daemon is running, but it may have left rules behind: '
                      + '; '.join(troubles))
    return any(sync.removed for sync in syncs)


def write_page(name, text, mode):
    """Writes a file that somebody has named. A link stays one, unless others may make links there:
    then it is replaced."""
    path, directory = name, os.stat(os.path.dirname(name) or '.')
    if directory.st_uid in (0, os.geteuid()) and not directory.st_mode & 0o022:
        path = os.path.realpath(name)
    if os.path.exists(path) and not os.path.isfile(path):
        raise Problem('%s: not a file (- is standard output)' % printable(name))
    Machine().replace(path, text, mode)


Verb = collections.namedtuple('Verb', 'arguments flags least most help run answer')
Verb.__new__.__defaults__ = None,
ANY = 1 << 16
COMMANDS = {
    'run': Verb('[--dry-run] [--syslog]', ['dry-run', 'syslog'], 0, 0,
                'the daemon, in the foreground; TERM stops it, HUP reloads;\n'
                '--dry-run touches nothing;\n'
                '      --syslog logs to the system log instead of standard error', run_daemon),
    'check': Verb('[--print]', ['print'], 0, 0,
                  'find all mistakes in the conf; --print shows it with every default', check_file),
    'status': Verb('[JAIL] [--json] [--metrics]', ['json', 'metrics'], 0, 1,
                   'how the daemon is, what it has seen, and what is wrong; --metrics: for\n'
                   "      Prometheus' text file collector", show_status, answer_status),
    'banned': Verb('[JAIL] [--json] [--plain]', ['json', 'plain'], 0, 1,
                   'who is banned, since when, until when; --plain: as a list for `ban --file`,\n'
                   '      `banip`, or others', show_banned, answer_banned),
    'ban': Verb('[-j JAIL] [-t TIME] [--force] ADDRESS... | --file FILE',
                ['jail=', 'time=', 'force', 'file='], 0, ANY,
                'ban addresses or networks by hand (-t 2h; -t -1: for ever); --force also what\n'
                '      your own session comes from; --file: those of a list (-: standard input),\n'
                '      or of `banned --json` of another machine, each for the time it has left',
                ban_addresses, answer_ban),
    'fail': Verb('[-j JAIL] [-n N] [-u USER] ADDRESS...', ['jail='], 1, ANY,
                 'count failures that a program of your own has seen; enough of them are a ban',
                 count_failures, answer_fail),
    'unban': Verb('[-j JAIL] ADDRESS... | --all', ['jail=', 'all'], 0, ANY,
                  'lift the bans that touch these and forget '
                  'their failures (not how often they were '
                  'banned)', unban_addresses, answer_unban),
    'reload': Verb('', [], 0, 0, 'read the conf again; keeps every ban and every count',
                   reload_daemon, answer_reload),
    'stop': Verb('', [], 0, 0,
                 'stop the daemon; its rules go, its bans come back at the next start',
                 stop_daemon, answer_stop),
}
SHORT = {'-j': 'jail', '-t': 'time'}
ANSWERS = {}                         # to what only programs ask
HIDDEN = {}                          # commands of our own to ourselves


def request_table():
    """word -> what the daemon answers."""
    return dict(ANSWERS, **{word: verb.answer for word, verb in COMMANDS.items() if verb.answer})


def help_text():
    """What `--help` prints."""
    rows = ['usage: banwatch.py [-c CONF] COMMAND', '']
    for word, verb in COMMANDS.items():
        rows.append(('  %s %s' % (word, verb.arguments)).rstrip())
        rows.append('      ' + verb.help)
    return '\n'.join(rows + [
        '', '  -c CONF    the conf file (%s, if there is one; every option has a default)' % CONF,
        '  --help     this text        --version', '',
        'Try first, as any user:  banwatch.py replay /var/log/auth.log',
        'Exit codes: 0 done, 1 no, 64 usage, 69 no daemon is running, 77 not permitted, 78 '
        'configuration'])


# ==== Part II: the wings. They cannot ban, unban, or run a firewall command by themselves. ====

# ---- Language ------------------------------------------------------------------------------
# Owns: what connections have said, for filters in fail2ban's own manner. Always true: each line is
# looked at by itself, without its date, and never longer than its guard allows.

# what a line is that a regex took too long for
TOO_SLOW = Look(None, None, None, None, None, None, {}, 'a regex took too long')
PRIORITY = Regex(br'^<\d{1,3}>')       # which syslog over UDP has in front of a line


class LineFilter:
    """A filter in fail2ban's own manner, such as a file of filter.d: it sees a line without its
    date. Its regexes are not ours: each line is looked at under `guard`, which raises Runaway."""
    keep_matches = unpacks = False        # see Filter

    def __init__(self, definition, failregex=(), ignoreregex=(), guard=unguarded):
        self.definition, self.origin = definition, definition.origin
        self.guarded = Guarded(
            guard, 'a regex of %s takes too long for some lines, which are skipped' % self.origin)
        self.guards = self.guarded,
        self.meaning = definition.meaning(failregex, ignoreregex)
        get = definition.get
        self.maxlines = max(1, definition.told('maxlines', int, get('maxlines') or '1'))
        self.templates = definition.told('datepattern', date_formats, get('datepattern'))
        if get('prefregex'):
            self.prefregex = self.compile('prefregex', get('prefregex'))
        else:
            self.prefregex = None
        self.texts = failregex or text_rows(get('failregex'))
        self.rows = [self.compile('failregex', text) for text in self.texts]
        # for each row sets of texts (bytes), one of each stands in a line that it matches; the
        # telling ones first
        self.needs = [
            sorted(required_literals(regex.pattern, regex.flags),
                   key=lambda found: (len(found), -min(map(len, found))))
                      for regex in self.rows]
        self.tellers = [only_literal(most_telling(sets)) for sets in self.needs]
        self.ignore = [self.compile('ignoreregex', text) for text in ignoreregex
                       or text_rows(get('ignoreregex'))]
        self.check()
        self.needed = self.what_is_needed()
        self.buffer = []             # the lines that a regex over several of them may want
        # mlfid -> [when it was first seen, what is known of it]
        self.connections = Recent(SESSIONS)
        self.last = None             # the time of the last line that had one, and was asked for it
        # (template, match, now) of a later date that nobody has asked for
        self.pending = None
        self.names = self.cut = 0    # as in Filter
        self.shown = ''              # the last line as the regexes see it

    def compile(self, option, text):
        return self.definition.told(option, compile_line, text, self.maxlines > 1)

    def check(self):
        """ValueError if a regex cannot mean what its author wants."""
        if self.prefregex:
            known = self.prefregex.groupindex
        else:
            known = {}
        ids = {'fid', 'ip4', 'ip6', 'dns', 'mlfid'}
        if not self.rows:
            raise self.definition.complaint('failregex', 'there is none')
        for text, regex in zip(self.texts, self.rows):
            try:
                reject_unfilled_tag(text)
            except ValueError as e:
                raise self.definition.complaint('failregex', e) from None
            if not ids & (set(regex.groupindex) | set(known)):
                raise self.definition.complaint('failregex', '%s has no <HOST>' % quoted(text))

    def what_is_needed(self):
        """The texts without one of which a line need not be looked at; None: look at all."""
        if self.maxlines > 1 or any(template.unbound for template in self.templates):
            return None
        sets = [most_telling(found) for found in self.needs]
        if all(sets):
            rows = set().union(*sets)
        else:
            rows = None
        return most_telling(
            [found for found in (self.prefregex and best_literals(self.prefregex), rows) if found])

    def needle(self, bare):
        """b'': see Filter."""
        return b''

    def scan(self, block, moment, bare=False, wall=0, explained=None):
        """Yields a LogEvent for each line of a tidy block that is a failure or a login; see
        Filter."""
        if self.needed and not any(text in block for text in self.needed):
            return
        for start, end in with_lines(block, self.needed):
            raw = block[start:end].rstrip(b'\r')
            if not raw or self.needed and not self.may_match(raw):
                continue
            raw = PRIORITY.sub(b'', raw)
            found = self.look(raw.decode('utf-8', 'backslashreplace'), wall)
            if found and found is not TOO_SLOW and explained is not None:
                explained.append(start)
            when = None
            if found and found.verdict is not None:
                when = moment(found.when)
            if when is None or found.verdict == NOFAIL:
                continue
            if found.ip and found.verdict == FAIL and may_be_cut(raw):
                self.cut += 1
            elif found.ip and found.verdict == FAIL:
                if self.keep_matches:
                    told = self.told(raw, found.fields)
                else:
                    told = None
                yield LogEvent(found.ip, found.user, 1, False, when, told)
            elif found.ip and found.user:
                told = self.told(raw, found.fields) if self.keep_matches else None
                yield LogEvent(found.ip, found.user, 0, True, when, told)
            elif found.verdict == FAIL:
                self.names += 1

    @staticmethod
    def told(raw, fields):
        """What a LogEvent tells: the line, and what its <F-...> have found."""
        names = {known: tag.lower() for tag, known in TAG_NAMES.items()}
        return raw.decode('utf-8', 'backslashreplace'), {
            names.get(key, key): value for key, value in fields.items()
            if value and type(value) is str
            and not key.startswith(('mlf', 'nofail', 'skiplines', 'ip4', 'ip6', 'dns'))}

    def may_match(self, raw):
        """False if a line lacks, for each regex, some text that it needs: most of the candidates
        do."""
        for sets in self.needs:
            for texts in sets:
                for text in texts:
                    if text in raw:
                        break
                else:
                    break                          # none of them: this regex does not match
            else:
                return True
        return False

    def examine(self, block, wall):
        """(Look or None, failures it counts) of the next line, as a tidy block (of several if it is
        one that came again), for `test`."""
        found, failures = None, 0
        for raw in block[1:-1].split(b'\n'):
            raw = PRIORITY.sub(b'', raw.rstrip(b'\r'))
            if raw:
                found = self.look(raw.decode('utf-8', 'backslashreplace'), wall)
            else:
                found = None
            if found and found.ip and found.verdict == FAIL and may_be_cut(raw):
                found = found._replace(verdict=None, why=CUT_OFF)
            elif found and found.verdict == FAIL and found.ip:
                failures += 1
            elif found and found.verdict == FAIL:
                found = found._replace(why='it names no address')
        return found, failures

    def look(self, text, wall, date=None):
        """The Look of the next line (text); None if no regex matched. `wall` fills in what its date
        lacks; with `date` (seconds since 1970) the text is one that has no date."""
        try:
            matched = self.guarded(wall, len(text), self.match, text, wall, date)
        except Runaway:
            self.buffer = []
            return TOO_SLOW
        if matched is None:
            return None
        regex, fields, when, ignored = matched
        if ignored:
            return Look(None, regex, None, None, None, when, fields, 'an ignoreregex matches')
        if fields.get('mlfid') is not None:
            fields = self.merge(fields, when if when is not None else wall)
        if fields.get('nofail') and not fields.get('mlfgained'):
            verdict = NOFAIL
        elif fields.get('nofail'):
            verdict = LOGIN
        else:
            verdict = FAIL
        ip, fid = fields.get('ip4') or fields.get('ip6'), fields.get('fid')
        if type(fid) is tuple:
            key = ' '.join(map(str, fid))
        else:
            key = fid or ip or fields.get('dns')
        user = fields.get('user')
        if isinstance(user, tuple):
            user = ' '.join(filter(None, user))
        if verdict == FAIL and key is None:
            fields['mlfpending'] = '1'
            return Look(None, regex, None, None, user, when, fields, 'its address is not known yet')
        if fields.get('cidr') and ip:
            ip = '%s/%s' % (ip, fields['cidr'])
        try:
            if key and (ip or fields.get('fid')):
                ip = network_of(key if fields.get('fid') and not ip else ip)
            else:
                ip = None
        except ValueError:
            ip = None
        return Look(verdict, regex, ip, key, user, when, dict(fields), '')

    def match(self, text, wall, date=None):
        """(regex, fields, time or None, ignored) of a line, None if it does not match."""
        if date is None:
            template, m = locate_date(text, self.templates)
        else:
            template, m = (None, None)
        if m:
            start, end = m.span(template.group)
            text = text[:start] + text[end:]
            dated = template, m, wall
        else:
            dated = None
        self.buffer, self.shown = (self.buffer + [text])[-self.maxlines:], text
        seen, fields = '\n'.join(self.buffer) + '\n', {}
        self.pending, before = dated or self.pending, self.pending

        def when():
            if date is None:
                return self.time(dated, before, wall)
            return date
        if self.ignore and len(self.ignore) < len(self.rows) - 2 and matches_any(self.ignore, seen):
            return None, fields, when(), True
        if self.prefregex:
            m = self.prefregex.search(seen)
            if m is None:
                return None
            fields = groups(m)
            content = fields.pop('content', None)
            if content:
                seen = content + '\n'
        for text, regex, teller in zip(self.texts, self.rows, self.tellers):
            if teller in seen:
                m = regex.search(seen)
            else:
                m = None
            if m:
                fields.update((key, value) for key, value in groups(m).items()
                              if value is not None or key not in fields)
                ignored = matches_any(self.ignore, seen)
                self.forget_lines(m)
                return text, fields, when(), ignored
        return None

    def time(self, dated, before, wall):
        """The time of a line: its own; else the last one that a line had, if that was less than a
        minute ago; else now if its date may be missing. (Of lines that do not match, the date is
        not read before it is needed: `before` is that of the line before.)"""
        if before:
            self.last = self.read_date(before) or self.last
        if self.last is not None and self.last > wall - 60:
            recent = self.last
        else:
            recent = None
        when = dated and self.read_date(dated)
        if when is None and dated and not dated[1].group(dated[0].group):
            if recent is None:
                when = wall
            else:
                when = recent
        if when is not None:
            self.last, self.pending = when, None
        if when is None:
            return recent
        return when

    @staticmethod
    def read_date(dated):
        template, m, wall = dated
        when = template.time(m, wall)
        if when is None:
            return None
        return float(int(when))

    def forget_lines(self, m):
        """After a match over several lines, they are not looked at again, but for those it
        skipped."""
        if self.maxlines == 1:
            return
        whole = m.string
        first, last = whole.count('\n', 0, m.start() + 1 if whole[m.start():m.start() + 1] == '\n'
                                  else m.start()), \
            whole.count('\n', 0, m.end())
        if m.end() and whole[m.end() - 1] == '\n':
            last += 0
        else:
            last += 1
        skipped = ''.join(value or '' for key, value in m.groupdict().items()
                          if key.startswith('skiplines')).split('\n')
        used = self.buffer[first:last]
        for line in skipped:
            if line in used:
                used.remove(line)
        left = list(self.buffer)
        for line in used:
            left.remove(line)
        self.buffer = left

    def merge(self, new, when):
        """What is known of a connection, this line's fields laid over it: fail2ban's rules. The
        same connection may tell its address, its user and its failures in different lines."""
        if type(new['mlfid']) is tuple:
            identity = new['mlfid']
        else:
            identity = re.sub(LEVEL.decode(), '', new['mlfid'])
        known = self.connections.get(identity)
        if known and abs(when - known[0]) > 300:
            known = self.connections.pop(identity) and None
        gained, forget = new.get('mlfgained'), new.pop('mlfforget', None)
        if gained:
            new['nofail'] = new.get('nofail') or gained
        if known:
            fields = known[1]
            if new.get('user'):
                users = fields.setdefault('users', set())
            else:
                users = fields.get('users')
            if new.get('user') and len(users) < 3:             # two are asked for
                users.add(new['user'])
            fields.pop('nofail', None)
            fields.pop('mlfgained', None)
            if gained:
                fields.pop('mlfpending', None)
            fields.update((key, value) for key, value in new.items() if value is not None)
            if forget:
                del self.connections[identity]
        else:
            fields = new
            if new.get('user') and not forget:
                users = {new['user']}
            else:
                users = None
            if users:
                fields['users'] = users
            if not forget:
                self.connections.put(identity, [when, fields])
        # who has failed before, or tried two names, does not clear that with a login of his own
        if fields.pop('mlfpending', None) or users and len(users) > 1:
            fields.pop('nofail', None)
            fields.pop('mlfgained', None)
        return fields


def groups(m):
    """The groups of a match; an <F-ALT_USER> stands in for an empty <F-USER>, <F-TUPLE_X> joins
    it."""
    fields = m.groupdict()
    for key, kind, name in special_groups(m.re):
        if kind == 'alt':
            fields[name] = fields.get(name) or fields[key]
        else:
            there = fields.get(name)
            fields[name] = (there if isinstance(there, tuple) else (there,)) + (fields[key],)
    return fields


@functools.lru_cache(maxsize=256)
def special_groups(regex):
    """(group, 'alt' or 'tuple', the group it is for) of those named so."""
    found = [(key, re.match(r'(alt|tuple)_(.+?)(?:_\d+)?$', key))
             for key in sorted(regex.groupindex)]
    return [(key, m.group(1), TAG_NAMES.get(m.group(2).upper(), m.group(2))) for key, m in found
            if m]


ENGINES['lines'] = LineFilter


# ---- Actions -------------------------------------------------------------------------------
# Owns: what the commands of the owner's own have been told. Always true: they run one at a time for
# each jail, ban by ban, in their order, and delay nobody else; text of the log is never in an
# argument, only in their environment.

class Custom:
    """The commands of an [action NAME] for one jail, each an argv with <tags> in it."""

    kind = None                      # the class of its runner

    def __init__(self, action, jail, options, tags):
        self.name, self.action = '%s (%s)' % (action, jail), action
        self.jail = jail
        self.options = options       # of the section, name -> value
        # that stand for the same in all commands
        self.tags = dict(tags, jail=jail, name=jail)

    def settings(self):
        """What two of a name may differ in."""
        return self.options, self.tags

    def commands(self, verb, ticket=None, times=None):
        """Those of the option action`verb`: start ban unban flush check stop."""
        argvs = self.options['action' + verb]
        if not argvs:
            return []
        tags = self.tags
        if ticket:
            found = ticket_tags(ticket, *times)
            tags = dict(tags, **{tag: str(value) for tag, value in found.items()})
        environment = {}
        for tag, text in tags.items():
            environment['BANWATCH_' + re.sub('[^A-Z0-9]', '_', tag.upper())] = text
        return [Command([filled(word, tags) for word in argv], '', environment) for argv in argvs]


def ticket_tags(ticket, now, wall, restored, more=()):
    """Tag -> text or number of what is known of a ban; fail2ban's names. What comes from a log is
    printable."""
    family, first, _ = span(ticket.network)
    rows, fields = ticket.matches or ((), {})
    ip = ticket.network.partition('/')[0]
    if family == 4:
        parts = ip.split('.')
    else:
        parts = '%032x' % first
    tags = {'F-' + name.upper(): printable(str(value))[:MATCH_FIELD]
            for name, value in fields.items()}
    tags.update({
        'ip': ticket.network, 'family': 'inet%d' % family,
        'ip-rev': '.'.join(reversed(parts)) + '.',
        'bantime': FOREVER if ticket.until is None else int(ticket.until - ticket.since + 0.5),
        'bancount': ticket.count, 'failures': ticket.failures,
        'time': int(wall - now + ticket.since),
        'matches': printable_rows(rows), 'restored': int(restored), 'fid': ticket.network})
    tags.update({'ipmatches': tags['matches'], 'ipjailmatches': tags['matches'],
                 'ipfailures': ticket.failures, 'ipjailfailures': ticket.failures})
    tags.update(more)
    tags['raw-ticket'] = ('Ticket: ip=%(ip)s time=%(time)d bantime=%(bantime)d bancount='
                          '%(bancount)d #attempts=%(failures)d matches=%(matches)r' % tags)
    return tags


def printable_rows(rows):
    """Lines of the log as one text."""
    return '\n'.join(printable(row.decode('utf-8', 'backslashreplace'))[:MATCH_BYTES]
                     for row in rows)


def filled(word, tags):
    """An argument with its <tags> replaced, in one go: what a tag puts in is not looked at
    again."""
    return re.sub('<(%s)>' % TAG_WORD, lambda m: tags.get(m.group(1), ''), word)


# Where an ActionRunner stands.
STARTING, RUNNING, LIFTING, FINISHED = 'starting', 'running', 'lifting', 'finished'


class ActionRunner(Worker):
    """Runs one jail's commands of an [action NAME]; one that fails three times is given up."""
    TRIES = 3

    def __init__(self, custom, machine, bans, refused, facts, before=()):
        Worker.__init__(self, machine, custom.name)
        self.custom, self.bans = custom, bans
        self.facts = facts           # Ticket -> what else is known, by tag
        self.refused = refused       # Ticket -> why it rests, or ''
        # those of an earlier conf in the same place, which have to end first
        self.before = before
        self.seconds = custom.options['timeout']
        self.state = STARTING
        self.check = False           # has it to be asked whether all is well?
        self.queue = {}  # ('ban' or 'unban', key) -> (Ticket, tries so far), in their order
        self.applied = {}            # key -> Ticket of a ban that the other side has, or may have
        # the same, of those that could not be lifted; the latest of them
        self.not_removed = Recent(MOST_MATCHES)
        self.deadline = float('inf')               # of lifting bans one by one
        self.begun = False           # has actionstart succeeded?
        self.given_up = False        # has something just been given up? Then its trouble stays
        self.began = machine.ticks()

    def ban(self, ticket):
        """Takes note of a new ticket."""
        if self.state == RUNNING and ticket.jail == self.custom.jail:
            self.queue['ban', ticket.key] = ticket, 0

    def unban(self, ticket):
        """A ban that was not applied is never applied; one that failed may have done its work all
        the same, if it was killed."""
        if self.state in (STARTING, RUNNING) and ticket.jail == self.custom.jail:
            self.queue.pop(('ban', ticket.key), None)
            if ticket.key in self.applied:
                self.queue['unban', ticket.key] = ticket, 0

    def minute(self):
        self.check = True

    def idle(self):
        return not (self.running or self.due())

    def due(self):
        return bool(self.state in (STARTING, LIFTING) or self.state == RUNNING
                    and (self.check or self.queue))

    def blocked(self):
        """True while an earlier one in this place has not ended. Who has to end does not wait."""
        self.before = [runner for runner in self.before if runner.state != FINISHED]
        return bool(self.before) and self.state != LIFTING

    def close(self):
        """Lifts all that was applied; with what is under way it ends first."""
        self.stop_waiting()
        self.queue, self.attempts = {}, 0
        if self.state != FINISHED:
            self.state = LIFTING

    def times(self, ticket):
        """(now, wall, was it restored?, further tags) as ticket_tags wants them."""
        return (self.machine.ticks(), self.machine.wall(), ticket.since < self.began,
                self.facts(ticket))

    def work(self):
        """What is to do next, up to a failure."""
        if self.state == STARTING:
            yield from self.start()
        elif self.state == LIFTING:
            yield from self.lift()
        elif self.check:
            self.check = False
            yield from self.look()
        elif self.queue:
            yield from self.next()

    def start(self):
        """Runs actionstart; then all bans are to be applied."""
        yield from in_turn(self.custom.commands('start'))
        self.begun = True
        if self.state == STARTING:
            self.state = RUNNING
            self.queue = {('ban', ticket.key): (ticket, 0) for ticket in self.bans.tickets.values()
                          if ticket.jail == self.custom.jail and not self.refused(ticket)}

    def look(self):
        """Runs actioncheck; if it fails, as fail2ban does: all of it from scratch."""
        try:
            yield from in_turn(self.custom.commands('check'))
        except Failed as e:
            self.report(str(e))
            if self.state == RUNNING:
                yield from self.each(self.custom.commands('stop'))
            if self.state == RUNNING:
                self.state, self.begun = STARTING, False
                self.applied, self.queue = {}, {}

    def next(self):
        """Applies or lifts the first ban of the queue."""
        (verb, key), (ticket, tries) = next(iter(self.queue.items()))
        del self.queue[verb, key]
        self.not_removed.pop(key, None)            # it is in hand again
        if verb == 'ban':
            self.applied[key] = ticket
        else:
            self.applied.pop(key, None)
        try:
            yield from in_turn(self.custom.commands(verb, ticket, self.times(ticket)))
        except Failed as e:
            self.applied[key] = ticket
            if tries + 1 < self.TRIES:
                if ('unban', key) not in self.queue and self.state == RUNNING:
                    # it stays the first, or a later one overtakes it
                    self.queue = dict([((verb, key), (ticket, tries + 1))]
                                      + list(self.queue.items()))
                raise
            self.report(str(e))
            self.machine.log('%s: %s of %s is given up' % (self.name, verb, ticket.network))
            if verb == 'unban':
                self.not_removed.put(key, self.applied.pop(key))

    def lift(self):
        """Lifts what was applied, all at once or one by one. Who fails again and again, or takes
        too long, is not asked for each ban."""
        if not self.begun:
            self.state = FINISHED                  # it has told nobody anything
            return
        flush, left = self.custom.commands('flush'), 0
        failures = yield from self.each(flush)
        if not flush:
            for ticket in list({**self.not_removed, **self.applied}.values()):
                if failures < self.TRIES and self.machine.ticks() < self.deadline:
                    commands = self.custom.commands('unban', ticket, self.times(ticket))
                    failed = yield from self.each(commands)
                    if failed:
                        failures = failures + failed
                    else:
                        failures = 0
                else:
                    left += 1
        if left:
            self.machine.log('%s: %s could not be lifted' % (self.name, plural(left, 'ban')))
        yield from self.each(self.custom.commands('stop'))
        self.state = FINISHED

    def each(self, commands):
        """Runs commands, each for itself, whether they succeed or not; how many have failed."""
        failures = 0
        for command in commands:
            try:
                yield command
            except Failed as e:
                self.report(str(e))
                failures += 1
        return failures

    def report(self, problem):
        """Logs a failure once."""
        if problem != self.trouble:
            self.machine.log('%s: %s' % (self.name, problem))
        self.trouble, self.given_up = problem, True

    def failed(self, problem):
        Worker.failed(self, problem)
        if self.state == LIFTING:
            self.stop_waiting()                    # who has to end does not wait

    def succeeded(self):
        if not self.given_up:
            Worker.succeeded(self)
        self.given_up = False


Custom.kind = ActionRunner
COMMAND_OPTIONS = ['action' + verb for verb in 'start ban unban flush check stop'.split()]
MOST_LINES = 2000                    # that wait for a program which does not read them
LONG_RUN = MINUTE                    # a program that ran so long was not wrong from the start


class PipeRunner(ActionRunner):
    """Tells a program of an [action NAME] what its jails do; starts it again if it ends."""

    def __init__(self, custom, *more):
        ActionRunner.__init__(self, custom, *more)
        self.lines = collections.deque()           # of JSON, that it has not been told yet
        self.program = None          # the one that runs; it takes the lines
        self.over = False            # is it to end when it has read them?
        self.lost = 0                # lines that it did not read in time

    def say(self, what, jail, ticket=None, **more):
        """Has a line for the program."""
        told = dict({'do': what}, jail=jail, name=jail, **more)
        if ticket:
            told.update(ticket_tags(ticket, *self.times(ticket)))
        if len(self.lines) >= MOST_LINES:
            self.lines.popleft()
            self.lost += 1
            self.report('does not read what it is told: %s dropped' % plural(self.lost, 'line'))
        self.lines.append(packed(told).encode() + b'\n')
        if self.program:
            self.program.write()

    def ban(self, ticket):
        if self.state == RUNNING and ticket.jail in self.custom.jails:
            what = 'ban'
            if ticket.key in self.applied:
                what = 'extend'
            self.applied[ticket.key] = ticket
            self.say(what, ticket.jail, ticket)

    def unban(self, ticket):
        if self.state == RUNNING and self.applied.pop(ticket.key, None):
            self.say('unban', ticket.jail, ticket)

    def minute(self):
        if self.state == RUNNING:
            if self.machine.ticks() - self.began > LONG_RUN:
                self.succeeded()
            for jail in self.custom.jails:
                self.say('check', jail)

    def due(self):
        return self.state == STARTING

    def idle(self):
        return self.state == RUNNING and not self.lines

    def work(self):
        custom, self.began = self.custom, self.machine.ticks()
        self.lines.clear()
        self.applied, self.state = {}, RUNNING
        for jail, tags in custom.jails.items():
            self.say('start', jail, action=custom.action, options=custom.more, **tags)
        for ticket in self.bans.tickets.values():
            if not self.refused(ticket):
                self.ban(ticket)
        try:
            yield Feed(custom.commands('pipe')[0].argv, {'BANWATCH_ACTION': custom.action}, self)
        finally:
            self.program = None
            if self.state == RUNNING:
                self.state = STARTING
            else:
                self.state = FINISHED

    def close(self):
        self.stop_waiting()
        if self.state == RUNNING and not self.over:
            for jail in self.custom.jails:
                self.say('stop', jail)
            self.over, self.state = True, LIFTING
            if self.program:
                self.program.write()
        if not self.running:
            self.state = FINISHED


class Piped(Custom):
    """The program that an [action NAME] feeds, for all jails for which that is the same."""
    kind = PipeRunner

    def __init__(self, action, jail, options, tags, more):
        Custom.__init__(self, action, jail, options, tags)
        self.name, self.more = action, more        # more: entries for Python
        self.jails = {jail: tags}

    def settings(self):
        return self.options, self.jails, self.more


class Actions(Wing):
    """The ActionRunners of all jails."""
    name = 'actions'

    def __init__(self, daemon):
        Wing.__init__(self, daemon)
        self.wanted = []             # Customs of the configuration that was read last
        # ActionRunners in use, and those that still have to end
        self.runners, self.old = [], []
        self.started = False
        # how many addresses with failures, and bans, a jail has; and when that was counted
        self.found = self.held = collections.Counter()
        self.counted_at = float('-inf')

    @property
    def workers(self):
        return self.old + self.runners             # a successor comes after its predecessor

    def configure(self, config, jails):
        self.wanted = []
        pipes = {}                   # (action, argv) -> Piped
        if config['firewall'] == 'none' or self.daemon.dry_run:
            return []
        for name, jail in jails.by_name.items():
            tags = {'port': jail.options['port'], 'protocol': ','.join(jail.options['protocol'])}
            for action in jail.options['action']:
                if 'action ' + action in config.settings:
                    options = config.options('action ' + action)
                    if any(options[option] for option in COMMAND_OPTIONS):
                        self.wanted.append(Custom(action, name, options, tags))
                    if options['python']:
                        options['actionpipe'] = [self.daemon.machine.own_argv(
                            'python-action', options['python'])]
                    if options['actionpipe']:
                        entries = config.more.get('action ' + action, {})
                        piped = Piped(action, name, options, tags,
                                      {key: text for key, (text, _) in entries.items()})
                        key = action, tuple(piped.commands('pipe')[0].argv)
                        pipes.setdefault(key, piped).jails[name] = tags
        self.wanted += pipes.values()
        return []

    def adopt(self):
        if self.started:
            self.start()

    def start(self):
        """Puts the runners to work; those whose commands are the same go on."""
        self.started = True
        there = {runner.name: runner for runner in self.runners}
        self.runners = []
        for custom in self.wanted:
            runner = there.get(custom.name)
            if runner and runner.custom.settings() == custom.settings() and runner.state in (
                STARTING, RUNNING):
                self.runners.append(there.pop(custom.name))
            else:
                before = [each for each in self.old + list(there.values())
                          if each.name == custom.name]
                self.runners.append(
                    custom.kind(custom, self.daemon.machine, self.daemon.judge.bans,
                         self.daemon.refused, self.facts, before))
        for runner in there.values():
            runner.close()
            self.old.append(runner)

    def facts(self, ticket):
        """What fail2ban's ActionInfo tells beside a ban itself, by tag: of the same network in all
        jails, of the jail."""
        judge, now = self.daemon.judge, self.daemon.machine.ticks()
        if now - self.counted_at > 1:              # to count takes some time
            self.counted_at = now
            self.found = collections.Counter(jail for jail, _ in judge.fails.recent)
            self.held = collections.Counter(jail for jail, _ in judge.bans.tickets)
        jail = judge.jails.by_name.get(ticket.jail) or judge.jails.by_name[MANUAL]
        others = [judge.bans.tickets.get((name, ticket.network)) for name in judge.jails.by_name]
        others = [other for other in others if other and other.key != ticket.key]
        rows = [row for each in [ticket] + others for row in (each.matches or ((), {}))[0]]
        return {'ipfailures': ticket.failures + sum(each.failures for each in others),
                'ipmatches': printable_rows(rows),
                'jail.name': ticket.jail, 'jail.banned': self.held[ticket.jail],
                'jail.banned_total': jail.banned, 'jail.found': self.found[ticket.jail],
                'jail.found_total': jail.failures}

    def banned(self, ticket, what):
        for runner in self.runners:
            if what == NEW_BAN or type(runner) == PipeRunner:
                runner.ban(ticket)

    def unbanned(self, ticket, what):
        for runner in self.runners:
            runner.unban(ticket)

    def minute(self, now):
        self.old = [runner for runner in self.old if runner.state != FINISHED]
        for runner in self.runners:
            runner.minute()

    def status(self):
        return {
            'actions': [
                {'name': runner.name, 'trouble': runner.trouble, 'pending': not runner.idle(),
                             'bans': len(runner.applied)} for runner in self.runners]}

    def close(self):
        for runner in self.workers:
            runner.deadline = self.daemon.machine.ticks() + STOP_SECONDS / 2
            runner.close()

    def abandon(self):
        left = [runner.name for runner in self.workers if runner.state != FINISHED]
        for name in left:
            self.daemon.machine.log('%s: not all bans could be lifted' % name)
        return left

    def closed(self):
        return all(runner.state == FINISHED for runner in self.workers)


WINGS.append(Actions)


# The other end: a process of our own that runs a Python action of the owner's, as fail2ban does.

class Quietly:
    """What fail2ban's actions log with; what is no mere detail goes to the daemon's log."""

    def debug(self, text, *words, **more):
        """Nothing."""

    def info(self, text, *words, **more):
        print(str(text) % words if words else text, flush=True)

    notice = warning = warn = error = critical = exception = info

    def log(self, level, text, *words, **more):
        if level >= 20:
            self.info(text, *words)


class ActionBase:
    """fail2ban's, as far as actions need it."""

    def __init__(self, jail, name):
        self._jail, self._name, self._logSys = jail, name, Quietly()

    def start(self):
        """Before the first ban."""

    def stop(self):
        """After the last one."""

    def ban(self, aInfo):
        """A ban."""

    def reban(self, aInfo):
        """A ban that has been lost."""
        return self.ban(aInfo)

    def unban(self, aInfo):
        """Its end."""


class CallingMap(dict):
    """A dict that calls what it holds, as fail2ban's does."""

    def __getitem__(self, key):
        value = dict.__getitem__(self, key)
        return value() if callable(value) else value

    def __iter__(self):              # with one of its own, another dict is updated by calling
        return dict.__iter__(self)


class ActionInfo(dict):
    """What an action is told of a ban. The name of its address is looked up when it is asked
    for."""

    def __missing__(self, key):
        if key != 'ip-host':
            raise KeyError(key)
        self[key] = host_name(self['ip'].partition('/')[0])
        return self[key]

    def get(self, key, otherwise=None):
        try:
            return self[key]
        except KeyError:
            return otherwise


class JailFacts:
    """What a Python action may ask its jail."""

    def __init__(self, name):
        self.name, self.actions, self.seconds = name, self, 0

    def getBanTime(self):
        """Seconds of the latest ban."""
        return self.seconds


def load_action(path):
    """The class Action of a Python file; Problem if it is not to be trusted, or has none."""
    there = os.stat(path)
    if there.st_uid not in (0, os.geteuid()) or there.st_mode & 0o022:
        raise Problem('%s: others may write to it' % path)
    import importlib.util
    for name in 'fail2ban', 'fail2ban.server', 'fail2ban.server.action', 'fail2ban.server.actions':
        module = sys.modules[name] = type(sys)(name)
        module.ActionBase, module.CallingMap = ActionBase, CallingMap
    spec = importlib.util.spec_from_file_location('action', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Action


def host_action(conf, options, words):
    """`python-action`: runs the Action in a file, told by standard input what happens."""
    sys.dont_write_bytecode = True
    try:
        made = load_action(words[0])
    except Exception as e:
        raise Problem('%s: %s' % (words[0], last_line(e))) from None
    actions = {}                     # jail -> (its Action, JailFacts, {ip: ActionInfo})
    for line in iter(sys.stdin.readline, ''):
        info = ActionInfo(json.loads(line))
        name = info['jail']
        try:
            if name not in actions and info['do'] != 'start':
                continue                           # it could not be made
            if name not in actions:
                jail = JailFacts(name)
                actions[name] = made(jail, info['action'], **info['options']), jail, {}
            action, jail, known = actions[name]
            jail.seconds = info.get('bantime', jail.seconds)
            tell_action(action, info, known)
        except Exception as e:
            print('%s: %s %s: %s' % (name, info['do'], info.get('ip', ''), last_line(e)),
                  flush=True)
    return 0


def last_line(e):
    """The last line of an exception's traceback."""
    return traced(e).rstrip().split('\n')[-1]


def tell_action(action, info, known):
    """Calls the methods of an Action for what has happened; `known`: ip -> ActionInfo of bans."""
    what = info['do']
    skipped = info.get('restored') and getattr(action, 'norestored', False)
    if what == 'start':
        action.start()
    elif what == 'ban':
        known[info['ip']] = info
        if not skipped:
            action.ban(info)
    elif what == 'extend':
        known[info['ip']] = info
        if getattr(action, 'prolong', None):
            action.prolong(info)
    elif what == 'unban':
        known.pop(info['ip'], None)
        action.unban(info)
    elif what == 'check' and getattr(action, 'consistencyCheck', None):
        if not action.consistencyCheck():
            again = getattr(action, 'reBan', None) or getattr(action, 'reban', action.ban)
            action.start()
            for each in list(known.values()):
                again(each)
    elif what == 'stop':
        try:
            if getattr(action, 'flush', None):
                action.flush()
            else:
                for each in list(known.values()):
                    action.unban(each)
        finally:
            action.stop()


HIDDEN['python-action'] = Verb('FILE', [], 1, 1, 'for the daemon alone', host_action)


# ---- Tally ---------------------------------------------------------------------------------
# Owns: the counters since the last summary, and what earlier summaries have reported. Always true:
# whatever a log holds, a Tally stays within the limits of PARTS, and what it drops is counted.

# What is counted: how many of it at most, what its key and its cell are made of, a letter a field.
# In a key: t text, h an hour since 1970 by the wall clock, m a moment (ticks). In a cell: n a
# number, to be added up; f and l the first and the last moment; e and t the first and the last
# text; b true from then on; d [moment, text] of some lines, the first and the latest. So 'pairs'
# holds ('192.0.2.0', 'root'): [3, 5017.5].
Part = collections.namedtuple('Part', 'limit key cell')
PARTS = {
    'counts': Part(50, 't', 'n'),              # what has been dropped, and other sums
    'lines': Part(50, 't', 'n'),               # source
    # jail: failures, ignored, bans, extended, ended, lifted by hand
    'jails': Part(100, 't', 'nnnnnn'),
    'hours': Part(192, 'h', 'nn'),             # hour: failures, bans
    'addresses': Part(300, 't', 'nlt'),        # network: failures, last, jail
    'pairs': Part(600, 'tt', 'nl'),            # network, user: failures since the last login, last
    # the same of the period before, if no login has followed
    'earlier': Part(600, 'tt', 'nl'),
    # user: failures, networks, one of them; were there others?
    'users': Part(300, 't', 'nntb'),
    'logins': Part(200, 'ttt', 'nfl'),         # user, address, jail: times, first, last
    # user, address, jail of a login after failures: how many, when
    'guessed': Part(50, 'ttt', 'nl'),
    'ignored': Part(100, 'tt', 'nl'),          # network, why it is never banned: failures, last
    'incidents': Part(50, 'tt', 'nfl'),        # where, what went wrong there: times, first, last
    'steps': Part(20, 'm', 'n'),               # when the clock was set: by how many seconds
    # jails: packets of banned addresses that were dropped
    'drops': Part(50, 't', 'n'),
    'ports': Part(200, 't', 'n'),              # port/protocol: packets that the firewall has logged
    'rules': Part(200, 'ttt', 'nfld'),         # level, rule, text: times, first, last, lines
    # program, pattern, one of LEVELS: lines, first, last, an example
    'other': Part(200, 'ttt', 'nfle')}
JAIL_COUNTS = 'failures', 'ignored', 'bans', 'extended', 'ended', 'lifted'
OLDEST_GO = 'hours', 'steps'                   # of the others, the least frequent
DETAILS, TEXT_LENGTH, NAME_LENGTH = 10, 200, 40
# failures by (jail, network, user), before they are sorted in
FOLDED = 1000
# how bad an other log line is, as far as its severity says
LEVELS = {'err': 2, 'warn': 1, '': 0}
FEW = 3                                        # failures before a login that may be mistyping


class Tally:
    """What has happened since `begun` (ticks). `offset` is how far the wall clock is ahead of
    ticks."""

    def __init__(self, begun, offset=0):
        self.begun, self.offset = begun, offset
        self.parts = {name: {} for name in PARTS}
        # (jail, network, user) -> [failures, last] that are in no part yet
        self.uncounted = {}
        # has anything but plain numbers been counted since somebody looked?
        self.news = False
        self.hour_start = self.hour_end = 0        # of the hour that was counted last
        self.hour = None             # its cell

    def __getitem__(self, part):
        return self.parts[part]

    def note(self, part, key, *cell):
        """Adds a cell to the one with this key."""
        cells = self.parts[part]
        there = cells.get(key)
        self.news = self.news or part not in ('lines', 'counts', 'hours')
        if there is None:
            cells[key] = list(cell)
            if len(cells) > 1.1 * PARTS[part].limit:
                self.shorten(part)
        else:
            codes = PARTS[part].cell
            cells[key] = [COMBINE[code](old, new) for code, old, new in zip(codes, there, cell)]

    def again(self, part, key, n, now):
        """Counts n more of what is known, whose cell begins with a number, the first moment and the
        last one; False if it is not. The short way for what comes all the time."""
        cell = self.parts[part].get(key)
        if cell is None:
            return False
        cell[0] += n
        cell[2] = max(cell[2], now)
        self.news = True
        return True

    def shorten(self, part):
        """Drops what matters least, but for its number."""
        cells, order = self.parts[part], self.order(part)
        for key in order[:len(cells) - PARTS[part].limit]:
            del cells[key]
        if part not in OLDEST_GO and part != 'counts':
            self.note('counts', (part,), len(order) - PARTS[part].limit)

    def order(self, part):
        """Its keys, what matters least first."""
        cells = self.parts[part]
        if part in OLDEST_GO:
            return sorted(cells)
        if part == 'pairs':                        # which stand in the order of their last failure
            return list(cells)

        def weight(key):
            level = 0
            if part == 'other':
                level = LEVELS.get(key[-1], 0)
            elif part == 'rules':
                level = key[0] == 'warning'
            return level, cells[key][0]
        return sorted(cells, key=weight)

    def count(self, what, n=1):
        """Adds to a sum."""
        self.note('counts', (what,), n)

    def count_jail(self, jail, what, n=1):
        """Adds to one of the JAIL_COUNTS of a jail."""
        self.note('jails', (jail,), *[n if what == name else 0 for name in JAIL_COUNTS])

    def set_clock(self, offset):
        """The wall clock was set; hours that were counted before go with it."""
        shift = round((offset - self.offset) / 3600)
        self.offset, self.hour_end = offset, 0
        if shift:
            hours = self.parts['hours']
            self.parts['hours'] = {(number + shift,): cell for (number,), cell in hours.items()}

    def hour_of(self, when):
        """The cell of the hour that a moment lies in, by the wall clock: [failures, bans]."""
        if not self.hour_start <= when < self.hour_end:
            number = int((when + self.offset) // 3600)
            self.hour_start = number * 3600 - self.offset
            self.hour_end = self.hour_start + 3600
            if (number,) not in self.parts['hours']:
                self.note('hours', (number,), 0, 0)
            self.hour = self.parts['hours'].get((number,), [0, 0])
        return self.hour

    def failure(self, jail, net, user, guesses, when):
        """Counts failures of one line."""
        self.news = True
        key = jail, net, shortened(user or '', NAME_LENGTH)
        cell = self.uncounted.get(key)
        if cell is None:
            if len(self.uncounted) >= FOLDED:
                self.fold()
            self.uncounted[key] = [guesses, when]
        else:
            cell[0] += guesses
            cell[1] = when
        self.hour_of(when)[0] += guesses

    def fold(self):
        """Sorts recent failures into their parts."""
        fresh, self.uncounted, news = self.uncounted, {}, self.news
        jails = collections.Counter()
        addresses, pairs, users = (self.parts[part] for part in ('addresses', 'pairs', 'users'))
        for (jail, net, user), (n, when) in fresh.items():
            jails[jail] += n
            cell = addresses.get((net,))
            if cell:
                cell[0] += n
                cell[1] = max(cell[1], when)
            else:
                addresses[net,] = [n, when, jail]
            if not user:
                continue
            # to the end: the latest matter, for a login may follow
            pair = pairs.pop((net, user), None)
            if pair:
                pairs[net, user] = [pair[0] + n, max(pair[1], when)]
            else:
                pairs[net, user] = [n, when]
            there = users.get((user,))
            if there:
                there[0] += n
                there[1] += not pair
                there[3] = there[3] or there[2] != net
            else:
                users[user,] = [n, 1, net, False]
        for jail, n in jails.items():
            self.count_jail(jail, 'failures', n)
        for part in 'addresses', 'pairs', 'users':
            if len(self.parts[part]) > PARTS[part].limit:
                self.shorten(part)
        self.news = news                           # all of this is known

    def ignored(self, jail, net, user, guesses, when, why):
        """Failures of an address that is never banned, or that has logged in lately."""
        self.count_jail(jail, 'ignored', guesses)
        if why:
            self.note('ignored', (net, why), guesses, when)

    def login(self, jail, net, ip, user, when, why):
        """A login; a few failures before it were the same person's."""
        self.fold()
        user = shortened(user, NAME_LENGTH)
        self.note('logins', (user, ip, jail), 1, when, when)
        cells = [self.parts[part].get((net, user)) for part in ('pairs', 'earlier')]
        failed = [cell for cell in cells if cell and cell[0]]
        if failed:
            self.note('guessed', (user, ip, jail), sum(cell[0] for cell in failed), when)
        for cell in failed:
            cell[0] = 0
        ignored = self.parts['ignored'].get((net, why))
        if ignored and ignored[0] < FEW:
            ignored[0] = 0

    def merge(self, later):
        """Adds what has been counted after this one, up to a mail that did not go out."""
        later.fold()
        self.fold()
        pairs = self.parts['pairs']
        for key, (n, _) in later.parts['earlier'].items():     # these are our pairs
            if not n and key in pairs:             # and a login has followed
                pairs[key][0] = 0
        both = collections.Counter(user for net, user in later.parts['pairs']
                                   if (net, user) in pairs)
        for part, cells in later.parts.items():
            if part == 'earlier':
                continue
            for key, cell in cells.items():
                there = self.parts[part].get(key)
                if part == 'users' and there:      # a network that both have met is one
                    n, networks, net, others = cell
                    cell = [n, max(0, networks - both[key[0]]), net, others or net != there[2]]
                self.note(part, key, *cell)
        self.hour_end = 0
        return self

    def dump(self, now, kept=False, most=KEPT_ROWS):
        """As JSON: moments are written as ages. In what is kept on flash, names that were tried
        from one address only are left out (they may be passwords), and of all there is less."""
        self.fold()
        state, left = {'begun': round(now - self.begun, 1)}, {}
        for part, cells in self.parts.items():
            keys = list(cells)
            if kept:
                if part in ('pairs', 'earlier'):
                    keys = []
                else:
                    keys = self.order(part)
                if part == 'users':
                    keys = [key for key in keys if cells[key][3]]
                if part not in OLDEST_GO:
                    left[part] = len(keys) - most
                    keys = keys[-most:]
            if kept:
                details = 2
            else:
                details = DETAILS
            state[part] = [self.aged(PARTS[part].key, key, now, details)
                           + self.aged(PARTS[part].cell, cells[key], now, details) for key in keys]
        state['counts'] += [[part, n] for part, n in left.items() if n > 0 and part != 'counts']
        return {part: rows for part, rows in state.items() if rows}

    def aged(self, codes, fields, now, details):
        """The fields of a key or a cell, moments as ages."""
        found = []
        for code, field in zip(codes, fields):
            if code in 'fml':
                field = round(now - field, 1)
            elif code == 'h':
                field = round(now + self.offset - field * 3600, 1)
            elif code == 'd':
                field = [[round(now - when, 1), text]
                         for when, text in first_and_latest(field, details)]
            found.append(field)
        return found

    def read_field(self, code, field, then):
        """A field of a state file, checked; `then` is when the file was written, in our ticks."""
        if code in 'fml':
            return then - checked_age(field)
        if code == 'h':
            return round((then - checked_age(field) + self.offset) / 3600)
        if code == 'n':
            return checked_number(field, most=1e15)
        if code == 'b':
            return bool(field)
        if code == 'd':
            return [[then - checked_age(age), str(text)[:TEXT_LENGTH]]
                    for age, text in field[:DETAILS]]
        if type(field) is not str:
            raise ValueError('not a text')
        return field[:TEXT_LENGTH + NAME_LENGTH]


def first_and_latest(rows, most=DETAILS):
    """The first and the latest of some lines."""
    if len(rows) <= most:
        return rows
    return rows[:1] + rows[1 - most:]


# what becomes of two fields of a cell, see PARTS
COMBINE = {'n': lambda a, b: a + b, 'f': min, 'l': max, 't': lambda a, b: b or a, 'e': lambda a,
           b: a or b,
           'b': lambda a, b: a or b, 'd': lambda a, b: first_and_latest(a + b)}


def checked_age(value):
    """An age in a state file; a wall clock of 32 bits can show when that was."""
    return checked_number(value, -3e8, 1e9)


def rows_of(state, part):
    """The rows of a part in a state file; one that makes no sense if it has none."""
    rows = state.get(part, [])
    if type(rows) is list:
        return rows
    return [None]


def load_tally(state, now, gone, offset=0):
    """(Tally, number of rows that made no sense) of what `dump` wrote `gone` seconds ago."""
    tally, lost = Tally(now, offset), 0
    try:
        tally.begun = now - gone - checked_age(state.get('begun', 0))
    except ValueError:
        lost += 1
    for part, (_, keys, cell) in PARTS.items():
        for row in rows_of(state, part):
            try:
                if len(row) != len(keys + cell):
                    raise ValueError('too long or too short')
                fields = [tally.read_field(code, field, now - gone)
                          for code, field in zip(keys + cell, row)]
                if part == 'addresses':
                    network_of(fields[0])
                tally.note(part, tuple(fields[:len(keys)]), *fields[len(keys):])
            except (ValueError, TypeError, LookupError):
                lost += 1
    return tally, lost


class Report:
    """The Tally of this period, that of a mail which is on its way, and what summaries have
    reported."""
    name, keeps = 'report', True     # in a state file

    def __init__(self, now, offset=0):
        self.tally = Tally(now, offset)
        self.sent = None             # the Tally of the mail that sendmail has in hand
        # (user, address) -> its last login, as far as summaries have told
        self.logins_reported = Recent(500)
        self.mail_due = False        # has a mail been asked for that has not gone?
        self.maybe_sent = False      # a mail was with sendmail when we died; it may have gone out
        self.last = None             # when the last one went

    def whole(self):
        """A Tally of all that no mail has reported for sure."""
        if not self.sent:
            return self.tally
        return Tally(self.sent.begun, self.tally.offset).merge(self.sent).merge(self.tally)

    def send(self, now):
        """Begins a new period; what was counted so far is on its way."""
        self.tally.fold()
        self.sent, self.tally = self.tally, Tally(now, self.tally.offset)
        for key, (n, last) in self.sent['pairs'].items():
            if n and now - last < DAY:
                self.tally.note('earlier', key, n, last)
        self.tally.news = False

    def gone(self, now):
        """The mail has gone."""
        for (user, ip, _), (_, _, last) in self.sent['logins'].items():
            self.logins_reported.put((user, ip), last)
        self.sent, self.mail_due, self.maybe_sent, self.last = None, False, False, now

    def came_back(self):
        """The mail has not gone: its period goes on."""
        self.sent.set_clock(self.tally.offset)
        self.tally, self.sent, self.mail_due = self.sent.merge(self.tally), None, True

    def dump(self, now, kept=False, most=KEPT_ROWS):
        """As JSON."""
        logins = list(self.logins_reported.items())
        if kept:
            logins = logins[-10 * most:]
        return dict(
            self.whole().dump(now, kept, most), sending=bool(self.sent) or self.maybe_sent,
            owed=self.mail_due, last=None if self.last is None else round(now - self.last, 1),
            known=[[user, ip, round(now - last, 1)] for (user, ip), last in logins])


def load_report(state, now, gone, offset=0):
    """(Report, number of rows that made no sense) of what `dump` wrote `gone` seconds ago."""
    report = Report(now, offset)
    if type(state) is not dict:
        return report, int(state is not None)
    report.tally, lost = load_tally(state, now, gone, offset)
    report.maybe_sent = state.get('sending') is True
    report.mail_due = report.maybe_sent or state.get('owed') is True
    try:
        if state.get('last') is not None:
            report.last = now - gone - checked_age(state['last'])
    except ValueError:
        lost += 1
    for row in rows_of(state, 'known'):
        try:
            user, ip, age = row
            key = str(user)[:NAME_LENGTH], str(ip)[:NAME_LENGTH]
            report.logins_reported.put(key, now - gone - checked_age(age))
        except (TypeError, ValueError):
            lost += 1
    return report, lost


# ---- Digest --------------------------------------------------------------------------------
# Owns: what is known of the log lines that no jail explains: how often rules have been met, and the
# patterns that lines are grouped by. Always true: it is bounded, whatever a log holds; names that
# may be passwords are taken out of a line before anything of it is kept.

DIGITS = b'0123456789'
VARIABLE = Regex(r"""
    # an IPv4 address, with port or prefix
    (?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?:[:/]\d+)?(?![\w.])
    # the address of a network card
  | (?<![\w:])(?:[0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}(?![\w:])
    # an IPv6 address
  | (?<![\w:])(?=[0-9a-fA-F]*:[0-9a-fA-F]*:)[0-9a-fA-F:]{3,}(?:[:/]\d+)?(?![\w:])
    # the name of a host or a file
  | (?<![\w.-])[\w-]+(?:\.[\w-]+)+(?![\w.-])
    # a date, a number of some kind, a quoted word
  | (?:\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),?\ )?
    \b(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\ +\d+(?:[ ]+[\d:]+)*
  | \b0x[0-9a-fA-F]+\b | \b(?=[0-9a-f]*\d)[0-9a-f]{8,}\b
  | \d+(?:[.,:]\d+)*
  | (?<!\w)'[^']*'(?!\w) | "[^"]*" """, re.X)
# who is named in a message may be a password that was typed as a name
NAMED = Regex(r'''(?i)(?:
    (\b(?:(?:user(?:name)?|filename)(?:[ =]|:[ ])|(?:ruser|logname|login|account)=))
    (?!(?:unknown|name|not|is|was|has|id|and|by|from|account)\b)
    |(?<=\bfor[ ])(?=[^\s*]+[ ]from\b))(?:'[^']*'|"[^"]*"|[^\s=*,;]+)''', re.X)
# ... all the more where somebody was refused
REFUSED = Regex(
    r'(?i)auth|passw|shadow|log.?in|account|regist|request|denie|refus|violat|credential|\bSU\b'
    r'|\bEAP|sudoers')
NAMED_THERE = Regex(
    r"""(?i)(?<!\w)'[^']*'(?!\w)|"[^"]*"|(?<=\[)[^][]+(?=\])|(?<==)[^\s;,)]+
    |(?<=\bcommand=).*|(?<=PAM\()[^)]+|(?<=\()[^,()]+(?=,[0-9a-f:.]{3,45}[,)])
    |(?<=password:[ ]).*|(?<=KeysCommand[ ]).*(?=[ ]failed)
    |\(to[ ][^)]+\)[ ]\S+|(?<=failed:[ ])[^\s,;)]+|(?<=session:[ ])[^\s:]+|^\S+(?=[ ]:[ ])
    |(?<!\w)(?:(for|as|peer|password|client|anon|identity|violation:|logname|login:|login
        |unauthorized)[ ]+)
     (?!(?:from|for|to|by|at|as|on|peer|attempt\w*|fail\w*|\w+[ ]for|refused|is|was|the|user)\b)
     (?!\*)[^\s,:)]+
    |^\S+(?=[ ](?:login[ ]|is[ ]now[ ]logged))""", re.X)
SEVERE = Regex(rb'(?:^|[ \n])(?:[a-z]+\d?)\.(?:(emerg|alert|crit|err)|warn)\w* |^<(\d{1,3})>')
# as the kernel writes it: nothing is gone through twice
PORTS_LOGGED = Regex(rb' PROTO=(\w{1,10})(?: SPT=\d{1,5})? DPT=(\d{1,5})')
PRIORITIES = Regex(rb'\n<(\d{1,3})>')
KNOWN_SHAPES, MESSAGE_LENGTH = 2000, 300
# new shapes that are looked at: each costs as much as hundreds of known ones
NEW_AT_ONCE, NEW_A_SECOND = 1000, 50


def masked(message):
    """A message with all that differs from time to time written as *. Names go first: one that is
    half a number would lose only that half."""
    return VARIABLE.sub('*', unnamed(message, '*'))


def unnamed(message, instead='…'):
    """A message without the names in it."""
    found = NAMED.sub(lambda m: (m.group(1) or '') + instead, message)
    if REFUSED.search(found):
        found = NAMED_THERE.sub(lambda m: ' '.join(filter(None, (m.group(1), instead))), found)
    return found


class Rule:
    """One [rule NAME]: which lines it means, and what is to become of them."""

    def __init__(self, name, options, guard=None):
        self.name, self.options, self.guarded = name, options, None
        self.program = compile_regex(options['program'] or '.*', 0, options['program'])
        # made when its program has spoken; at once if `guard` tells that it is not built in
        self.regexes = None
        if guard:
            self.guarded = Guarded(
                guard, 'its regex takes too long for some lines, which are skipped')
            self.check()

    def check(self):
        """Compiles it; ValueError if an option does not mean anything."""
        options = self.options
        self.regexes = [compile_line(text) for text in options['regex']]
        if self.regexes:
            fields = set().union(*(regex.groupindex for regex in self.regexes))
        else:
            fields = set()
        if options['ip'] and not fields & {'ip4', 'ip6'}:
            raise ValueError('ip: no regex has a <HOST>')
        if options['user'] and 'user' not in fields:
            raise ValueError('user: no regex has a <F-USER>')
        self.fields = {'ip', 'program'} | fields - {'ip4', 'ip6', 'dns'}
        key = options['key']
        self.key = tag_field(key)
        if self.key and self.key not in self.fields:
            raise ValueError('key: no regex has a %s' % quoted(key))
        for tag in re.findall('<([A-Za-z][^<>]*)>', options['text']):
            if tag not in ('HOST', 'ADDR') and tag_field(tag) not in self.fields:
                raise ValueError('text: <%s> means nothing here (no regex has it)' % printable(tag))
        # texts (bytes) of which one stands in every line that is meant; None: there is nothing to
        # look for
        sets = [best_literals(regex) for regex in self.regexes]
        self.needed = most_telling(
            [found for found in (best_literals(self.program), all(sets) and set().union(*sets))
             if found])

    def match(self, program, message, now=0):
        """The fields that one of its regexes finds, None if none matches; Runaway if that takes too
        long."""
        search = unguarded
        if self.guarded:
            search = functools.partial(self.guarded, now, len(message))
        if not search(self.program.fullmatch, program):
            return None
        if self.regexes is None:
            self.regexes = [compile_line(text) for text in self.options['regex']]
        for regex in self.regexes:
            m = search(regex.search, message)
            if m:
                fields = groups(m)
                fields['ip'] = fields.get('ip4') or fields.get('ip6') or fields.get('dns')
                return dict(fields, program=program)
        if self.regexes:
            return None
        return {'program': program}

    def unmet(self, fields, around):
        """'' if what it asks of address and user is so; else which of the two is not."""
        ip, user = fields.get('ip'), fields.get('user')
        if self.options['ip'] and not self.asks_for(ip, around.lan):
            return 'ip'
        words, kind = self.options['user'], 'unknown'
        if user in around.accounts:
            kind = 'exists'
        named = user in words and user not in ('exists', 'unknown')
        if words and not (named or user is not None and kind in words):
            return 'user'
        return ''

    def asks_for(self, ip, lan):
        """Is an address in the networks of `ip`?"""
        try:
            ip, positive, found = address(ip or ''), False, False
        except ValueError:                         # a name is in no network
            return False
        for excluded, word in self.options['ip']:
            if word == 'lan':
                inside = bool(exempt_reason(ip, lan))
            else:
                inside = networks_overlap(ip, word)
            if excluded and inside:
                return False
            positive = positive or not excluded
            found = found or inside
        return found or not positive

    def text(self, fields, message):
        """What the summary says of a line."""
        tags = {tag: str(value or '?') for tag, value in fields.items()}
        shown = re.sub('<([A-Za-z][^<>]*)>', lambda m: tags.get(tag_field(m.group(1)), '?'),
                       self.options['text'])
        return clipped(shown or masked(message[:MESSAGE_LENGTH]))


def clipped(text):
    """A text of the log as the summary holds it."""
    return shortened(printable(text), TEXT_LENGTH)


def tag_field(tag):
    """The name of the field that a <tag> stands for."""
    if tag in ('HOST', 'ADDR'):
        return 'ip'
    if tag.startswith('F-'):
        return TAG_NAMES.get(tag[2:], tag[2:].lower())
    return tag


# What rules ask for: ranges of addresses, as merge_ranges returns them; names of accounts.
Around = collections.namedtuple('Around', 'lan accounts')


def look_around(exempt, accounts):
    """The Around of a machine with these Exempts."""
    return Around(merge_ranges([row for row in exempt if '(the LAN, ' in row.why
                                or '(this machine' in row.why]), frozenset(accounts))


class Digest:
    """Reads what no jail explains: the rules of the conf line by line, the built-in ones and the
    grouping of all other lines by shape. Of lines that differ in digits alone only the first is
    looked at."""

    def __init__(self, rules, built_in, other):
        self.rules = rules           # name -> Rule, of the conf
        self.guards = [('rule ' + name, rule.guarded) for name, rule in rules.items()]
        self.built_in = built_in     # name -> Rule
        self.other = other           # are lines grouped that no rule explains?
        self.fails = Fails(1000)     # how often rules have been met that want more than one line
        self.graces = Recent(1000)   # (rule, key) -> until when it is not counted
        # a line without its digits -> (part, key, example), None if it does not matter
        self.shapes = Recent(KNOWN_SHAPES)
        self.speakers = Recent(200)  # program -> the built-in rules that mean it
        self.room = [NEW_AT_ONCE] * 2              # for new shapes of programs, of the kernel
        self.looked = float('-inf')  # when that was brought up to date
        self.around = look_around((), ())

    def adopt(self, old):
        """Takes over what was known before a reload."""
        self.fails, self.graces = old.fails, old.graces

    def read(self, block, explained, tally, now):
        """Counts the lines of a tidy block, but for those in which one of the positions `explained`
        lies. Yields (Rule, text, line) for each that is to be mailed at once."""
        # line by line, not rule by rule: what comes first may reset what comes later
        rows = []
        for n, rule in enumerate(self.rules.values()):
            if rule.needed is None or any(text in block for text in rule.needed):
                for start, end in with_lines(block, rule.needed):
                    rows.append((start, n, end, rule))
        for start, _, end, rule in sorted(rows):
            yield from self.apply(rule, block[start:end], start, explained, tally, now)
        scans = self.other and self.group(without(block, explained), tally, now)
        # a jail may have explained them, too
        if scans or self.other and explained and b' DPT=' in block:
            for protocol, port in PORTS_LOGGED.findall(block):
                tally.note('ports', ('%s/%s' % (port.decode(), protocol.decode().lower()),), 1)

    def group(self, rest, tally, now):
        """Counts lines by their shape; True if the firewall has logged packets in some of them."""
        raw, examples, scans = rest.split(b'\n'), None, False
        if b'\n<' in rest:                         # the severity is in a number there
            rest = PRIORITIES.sub(lambda m: b'\n<%s>' % b'!!!!-...'[int(m.group(1)) & 7:][:1], rest)
        keys = rest.translate(None, DIGITS).split(b'\n')
        counted = {}
        for shape in keys:
            counted[shape] = counted.get(shape, 0) + 1
        counted.pop(b'', None)
        for shape, n in counted.items():
            known = shape[:MESSAGE_LENGTH]
            if known not in self.shapes:
                if examples is None:               # shape -> the first line of it
                    examples = dict(zip(reversed(keys), reversed(raw)))
                if not self.may_analyse(b' kernel: ' in known, now):
                    tally.note('other',
                               ('', 'lines of ever new kinds, too many to be looked at', ''), n,
                               now, now, '')
                    continue
                self.shapes.put(known, self.classify(examples[shape]))
            found = self.shapes[known]
            if not found:
                scans = scans or found is False
                continue
            part, key, last = found
            if last is None:                       # a built-in rule that shows lines
                shown = [as_message(read_line(line).message) for line, key_of in zip(raw, keys)
                         if key_of == shape][-1]
                tally.note(part, key, n, now, now, [[now, clipped(shown)]])
            elif not tally.again(part, key, n, now):
                tally.note(part, key, n, now, now, last)
        return scans

    def may_analyse(self, whose, now):
        """May one more new shape be looked at? Who makes a flood does not hide what the kernel
        says."""
        self.room = [min(NEW_AT_ONCE, room + NEW_A_SECOND * (now - self.looked))
                     for room in self.room]
        self.looked = now
        there = self.room[whose] >= 1
        self.room[whose] -= there
        return there

    def apply(self, rule, raw, start, explained, tally, now):
        """One rule of the conf, and a line that begins at `start`."""
        line = read_line(raw)
        program, message = program_of(line), as_message(line.message, PLAIN_LINE)
        try:
            fields = rule.match(program, message, now)
        except Runaway:
            return
        if fields is None or rule.unmet(fields, self.around):
            return
        explained.append(start)
        if self.counts(rule, fields, now):
            n = 1
            text = rule.text(fields, message)
            shown = clipped('%s: %s' % (program, message[:TEXT_LENGTH]))
            level = rule.options['report']
            if level == 'other':
                tally.note('other', (program[:NAME_LENGTH], text, ''), n, now, now,
                           clipped(unnamed(message)))
            # what is not to be shown may hold a password, and is not kept
            elif level != 'ignore':
                if rule.options['details'] == 'none':
                    details = []
                else:
                    details = [[now, shown]]
                tally.note('rules', (level, rule.name, text), n, now, now, details)
            if rule.options['mail']:
                yield rule, text, clipped(raw[:4 * TEXT_LENGTH].decode('utf-8', 'backslashreplace'))

    def counts(self, rule, fields, now):
        """Is this the n-th occurrence that the rule asks for? If the rule resets another one, it
        does so here."""
        options, what = rule.options, str(fields.get(rule.key) or '')[:TEXT_LENGTH]
        if options['resets']:
            self.fails.recent.pop((options['resets'], what), None)
            if options['grace']:
                self.graces.put((options['resets'], what), now + options['grace'])
        if self.graces.get((rule.name, what), now) > now:
            return False
        if self.fails.add((rule.name, what), now, 1, options['findtime'],
                          options['maxretry']) < options['maxretry']:
            return False
        del self.fails.recent[rule.name, what]
        return True

    def classify(self, raw):
        """(part, key, last field of its cell) of a line whose shape is new; None if it does not
        matter, False if it is a packet that the firewall has logged."""
        line = read_line(raw)
        message = as_message(line.message)
        if not message:
            return None
        program = printable(program_of(line))[:NAME_LENGTH]
        if program not in self.speakers:
            self.speakers.put(program, [rule for rule in self.built_in.values()
                                        if rule.program.fullmatch(program)])
        for rule in self.speakers[program]:
            if rule.match(program, message):
                if rule.options['report'] == 'ignore':
                    if rule.name == 'dropped':
                        return False
                    return None
                key = rule.options['report'], rule.name, rule.text({}, message)
                if rule.options['details'] == 'none':
                    return 'rules', key, []
                return 'rules', key, None
        severe = SEVERE.search(raw[:len(raw) - len(line.message)])
        if severe is None:
            number = 7
        elif severe.group(2):
            number = int(severe.group(2)) & 7
        elif severe.group(1):
            number = 3
        else:
            number = 4
        if number < 4:
            level = 'err'
        elif number == 4:
            level = 'warn'
        else:
            level = ''
        pattern = clipped(' '.join(masked(message).split()))
        return 'other', (program, pattern, level), clipped(unnamed(message))

    def purge(self, now):
        """Forgets what no longer counts."""
        self.fails.purge(now, {name: rule.options['findtime'] for name, rule in self.rules.items()})


def make_digest(config, guard=unguarded):
    """(Digest, problems) of a configuration."""
    made, problems = {}, []
    names = [section for section in list(built_in_rules()) + list(config.settings)
             if kind_of(section) == 'rule']
    for section in dict.fromkeys(names):
        name, options = section[5:], config.options(section)
        try:
            made[name] = Rule(name, options, guard if section in config.settings else None)
            wanted = {'program', 'regex'} & set(config.settings.get(section, ()))
            if section not in built_in_rules() and not wanted:
                raise ValueError(
                    'has neither program nor regex, and no built-in rule is called so (%s)'
                    % choose_from(
                    name, [section[5:] for section in built_in_rules()]))
            if options['grace'] and not options['resets']:
                raise ValueError('grace: means nothing without `resets`')
            if options['resets'] and 'rule ' + options['resets'] not in names:
                raise ValueError('resets: there is no [rule %s]' % options['resets'])
        except ValueError as e:
            option = str(e).partition(':')[0]
            problems.append('%s: [%s]: %s'
                            % (config.where(section, option if option in options else 'regex'),
                               section, e))
    own = {name: rule for name, rule in made.items() if 'rule ' + name in config.settings}
    return Digest(own, {name: rule for name, rule in made.items() if name not in own},
                  config.get('report', 'other')), problems


def without(block, explained):
    """The block without the lines in which these positions lie."""
    if not explained:
        return block
    parts, at = [], 0
    for position in sorted(explained):
        if position >= at:
            parts.append(block[at:block.rfind(b'\n', 0, position + 1)])
            at = block.find(b'\n', position + 1)
            if at < 0:
                at = len(block)
    return b''.join(parts) + block[at:]


def program_of(line):
    """The name of the program that wrote a line, or ''."""
    return (line.program or b'').decode('utf-8', 'replace')


def as_message(raw, most=MESSAGE_LENGTH):
    """A message as text, without the kernel's stamp."""
    text = raw[:most].decode('utf-8', 'backslashreplace').rstrip()
    return re.sub(r'^\[ *\d+\.\d+\] ', '', text)


# ---- Proxies -------------------------------------------------------------------------------
# Owns: which client is behind which port of a proxy. Always true: a failure that a daemon reports
# for a proxy counts for the client that a line of the proxy's own has named, or for nobody; it
# waits for that line for a moment, since two programs log as they please.

LATE = 1.5                           # seconds by which the proxy's line may come after the daemon's
MOST_CLIENTS = 4000
MOST_HELD = 1000                     # events that wait


class ProxyTable:
    """What the lines of the [proxy NAME]s have told; pure, for a replay uses it, too."""

    def __init__(self, config, guard=unguarded):
        self.rules, self.problems = [], []         # [(Rule, keep)]
        self.addresses = {}          # -> name of the proxy
        for section in config.settings:
            if kind_of(section) == 'proxy':
                self.add(config, section, guard)
        self.guards = [(rule.name, rule.guarded) for rule, _ in self.rules]
        # port -> the latest of its clients: (client, since when, until when)
        self.clients = Recent(MOST_CLIENTS)
        self.held = collections.deque()            # (Jail, LogEvent, until when) that wait
        self.nameless = collections.Counter()      # proxy -> failures that no line explained

    def add(self, config, section, guard):
        """Takes in a section."""
        options = config.options(section)
        made = dict.fromkeys(('key', 'text'), '')
        made.update(options, ip=(), user=[])
        try:
            rule = Rule(section, made, guard)
            if not rule.regexes or not {'ip', 'fport'} <= rule.fields or not any(
                    {'ip4', 'ip6'} & set(regex.groupindex) for regex in rule.regexes):
                raise ValueError('regex: needs a <HOST> and <F-PORT>\\d+</F-PORT>')
            self.rules.append((rule, options['keep']))
            for ip in options['address']:
                self.addresses[ip] = section
        except ValueError as e:
            self.problems.append('%s: [%s]: %s' % (config.where(section, 'regex'), section, e))

    def read(self, block, moment, wall):
        """Learns from the lines of proxies in a tidy block; see Jails.scan."""
        today = int(wall // DAY)
        for rule, keep in self.rules:
            if rule.needed is None or any(text in block for text in rule.needed):
                for start, end in with_lines(block, rule.needed):
                    line = read_line(block[start:end])
                    message = as_message(line.message, PLAIN_LINE)
                    try:
                        fields = rule.match(program_of(line), message, wall)
                        client = fields and address(fields['ip'])
                    except (Runaway, ValueError):
                        continue
                    when = moment(line.date and date_time(line.date, today))
                    if client and when is not None:
                        known = self.clients.get(fields['fport'], [])[-3:]
                        self.clients.put(fields['fport'], known + [(client, when, when + keep)])

    def hold(self, jail, event, now):
        """Has a LogEvent wait for what is known of its client."""
        if len(self.held) < MOST_HELD:
            self.held.append((jail, event, now + LATE))
        elif not event.login:
            self.nameless[self.addresses[event.ip]] += event.guesses

    def ready(self, now):
        """Yields (Jail, LogEvent) of those whose client is known by now; what has waited too long
        counts for nobody."""
        for _ in range(len(self.held)):
            jail, event, until = self.held.popleft()
            clients = self.clients.get(self.port_of(jail, event), ())
            clients = [ip for ip, since, until in clients
                       if since - LATE <= event.when <= until]
            if clients:
                if not jail.options['action']:
                    event = event._replace(told=None)
                yield jail, event._replace(ip=clients[-1])
            elif now < until:
                self.held.append((jail, event, until))
            elif not event.login:
                self.nameless[self.addresses[event.ip]] += event.guesses

    @staticmethod
    def port_of(jail, event):
        """The port that a failure came from: what its own line says, or another one of its
        connection; None if none does."""
        line, fields = event.told or ('', {})
        port = fields.get('port') or fields.get('fport')
        pid = re.search(r'[\w.-]\[(\d+)\]:', line)
        if not port and pid:
            for (_, known), session in getattr(jail.filter, 'sessions', {}).items():
                if known == pid.group(1).encode():
                    port = session.port
        return port


class Proxies(Wing):
    """Says whose the failures are that come through proxies."""
    name = 'proxies'

    def __init__(self, daemon):
        Wing.__init__(self, daemon)
        self.table = self.read_last = None
        self.events, self.timer = collections.deque(), None

    def configure(self, config, jails):
        self.read_last = ProxyTable(config, self.daemon.machine.guard)
        return self.read_last.problems

    def adopt(self):
        if self.table:
            self.read_last.clients = self.table.clients
            for name in self.table.rules:
                self.daemon.note(name[0].name, '')
        self.table = self.read_last
        self.daemon.proxied = dict.fromkeys(self.table.addresses, self)
        for jail in self.daemon.judge.jails.watching():
            if self.table.addresses:
                jail.filter.keep_matches = True

    def read(self, block, moment, wall):
        """A tidy block of lines; see Jails.scan."""
        self.table.read(block, moment, wall)
        self.daemon.note_slow(self.table.guards)
        self.release()

    def hold(self, jail, event):
        """An event that the log tells of a proxy."""
        self.table.hold(jail, event, self.daemon.machine.ticks())
        self.release()

    def release(self):
        """Hands over what is known by now, and looks again when it will be too late."""
        self.events.extend(self.table.ready(self.daemon.machine.ticks()))
        if self.table.held and not self.timer:
            self.timer = self.daemon.loop.after(LATE + 0.1, self.late)

    def late(self):
        self.timer = None
        self.release()

    def minute(self, now):
        self.daemon.heal(self.table.guards, self.daemon.machine.wall())
        for name, n in self.table.nameless.items():
            self.daemon.note(name, '%s came through it from ports that no line of it names; they '
                             'count for nobody' % plural(n, 'failure'))


CONF_CHECKS.append(lambda config: ProxyTable(config).problems)
WINGS.append(Proxies)


# ---- Summary -------------------------------------------------------------------------------
# Owns: mails on their way. Says what a Tally holds, as text, as a page and as a mail, and sends it.
# Always true: no text of the log comes out unescaped; what could not be sent is kept, and tried
# again.

# that failed for one account without being banned: guessing that hides
MANY_NETWORKS = 10
# what is told of the exchange with a CrowdSec
HUB_COUNTS = {'new': 'decisions pulled', 'gone': 'withdrawn', 'pushed': 'bans pushed',
              'lost': 'too many to be pushed', 'refused': 'refused'}
SILENT = 12 * 3600                   # a source without a line for so long is in doubt
CHART_BARS = 36


def summarise(report, facts):
    """What is to be reported, as a dict for JSON; moments by the wall clock. `facts` is what only
    the daemon, or who stands in for it, knows: see facts_of_daemon."""
    tally, now = report.whole(), facts['now']
    tally.fold()
    accounts = set(facts['accounts']) | {user for user, _, _ in tally['logins']}
    told = {user for (user,), cell in tally['users'].items() if cell[3] or user in accounts}

    def wall(ticks):
        return round(facts['wall'] - now + ticks)
    seconds = max(0, now - tally.begun)
    counts = collections.Counter({what: n for (what,), (n,) in tally['counts'].items()})
    noted = noted_lines(tally, facts, wall)
    jails, addresses = jail_rows(tally, facts), address_rows(tally, facts, told, wall)
    bans = {what: sum(row[what] for row in jails) for what in JAIL_COUNTS}
    sources = [{'source': source, 'lines': n} for (source,), (n,) in tally['lines'].items()]
    return {
        'host': facts['host'], 'version': VERSION, 'from': wall(tally.begun), 'to': wall(now),
        'seconds': round(seconds), 'uptime': round(facts['uptime']), 'running': facts['running'],
        'repeat': report.maybe_sent, 'reboots': counts['reboots'], 'starts': counts['starts'],
        'steps': [{'when': wall(when), 'seconds': n} for (when,),
                  (n,) in sorted(tally['steps'].items())],
        'warnings': report_warnings(report, tally, noted, counts, facts, accounts, seconds, wall),
        'logins': login_rows(report, tally, wall),
        'bans': dict(bans, active=sum(facts['active'].values())),
        'jails': sorted(jails, key=lambda row: (-row['bans'], -row['failures'], row['jail'])),
        'addresses': addresses, 'users': by_number('failures', [
            {'user': user, 'failures': tally['users'][user,][0],
             'addresses': tally['users'][user,][1]}
            for user in told]),
        'hours': hour_bars(tally, facts, wall), 'networks': neighbours(addresses),
        'dropped': by_number('packets', [{'jails': jails, 'packets': n}
                                         for (jails,), (n,) in tally['drops'].items() if n]),
        'ports': by_number('packets', [{'port': port, 'packets': n}
                                       for (port,), (n,) in tally['ports'].items()]),
        'noted': [row for row in noted if row['level'] != 'warning'],
        'other': other_lines(tally, wall),
        'health': {
            'lines': sum(row['lines'] for row in sources), 'memory': facts['memory'],
            'written': counts['written'], 'flash': counts['flash'], 'firewall': facts['firewall'],
            'unmailed': counts['unmailed'],
            HUB: {what: counts[HUB + ' ' + what] for what in HUB_COUNTS},
            'sources': sources, 'let_go': {part: n for part, n in counts.items() if part in PARTS}}}


def by_number(what, rows):
    """Rows, the largest number first."""
    return sorted(rows, key=lambda row: -row[what])


def login_rows(report, tally, wall):
    """Logins, new ones first."""
    rows = [
        {'user': user, 'ip': ip, 'by': jail, 'times': n, 'first': wall(first), 'last': wall(last),
             'new': (user, ip) not in report.logins_reported}
            for (user, ip, jail), (n, first, last) in tally['logins'].items()]
    return sorted(rows, key=lambda row: (not row['new'], -row['last']))


def jail_rows(tally, facts):
    """What each jail has done."""
    rows = [dict(zip(JAIL_COUNTS, cell), jail=jail, active=facts['active'].get(jail, 0))
            for (jail,), cell in tally['jails'].items()]
    for jail, n in facts['active'].items():
        if (jail,) not in tally['jails']:
            rows.append(dict(dict.fromkeys(JAIL_COUNTS, 0), jail=jail, active=n))
    return rows


def address_rows(tally, facts, told, wall):
    """The offenders; of the names that were tried, only the `told` ones are shown."""
    tried = {}                       # network -> names that were tried, most often first
    for (net, user), _ in sorted(tally['pairs'].items(), key=lambda row: -row[1][0]):
        tried.setdefault(net, []).append(user)
    rows = []
    for (net,), (n, last, jail) in sorted(tally['addresses'].items(), key=lambda row: -row[1][0]):
        until, names = facts['until'].get(net), tried.get(net, ())
        rows.append({
            'ip': net, 'jail': jail, 'failures': n, 'last': wall(last),
            'bans': facts['bans'].get(net, 0),
            'until': None if until is None else wall(until), 'active': net in facts['until'],
            'users': [user for user in names if user in told][:8],
            'hidden': sum(user not in told for user in names)})
    return rows


def report_warnings(report, tally, noted, counts, facts, accounts, seconds, wall):
    """What an owner must know: {'text', 'details': [moment, line] of the log}."""
    rows = []
    if not facts['running']:
        rows.append(('the daemon is not running: nobody is banned', []))
    rows += [(text, []) for text in facts['wrong']]
    rows += [(text, []) for text in suspicions(report, tally, facts, accounts, seconds, wall)]
    rows += [('%s (%s)' % (row['text'], often(row, seconds)), row['details'])
             for row in noted if row['level'] == 'warning']
    rows += [(text, []) for text in mishaps(tally, counts, facts, seconds, wall)]
    kinds, ranked = collections.Counter(), []      # no kind hides the others
    for text, details in rows:
        kind = re.sub(r'\S*\d\S*', '', text)[-30:]
        ranked.append((kinds[kind] // 4, {'text': text, 'details': details}))
        kinds[kind] += 1
    return [row for _, row in sorted(ranked, key=lambda row: row[0])]


def suspicions(report, tally, facts, accounts, seconds, wall):
    """Yields lines on accounts and addresses that should be looked at."""
    banned = set(facts['bans']) | set(facts['until'])
    for (user, ip, jail), (n, when) in tally['guessed'].items():
        if n >= FEW or (user, ip) not in report.logins_reported:
            yield '%s logged in from %s after %s (%s, %s)' % (
                user, ip, plural(n, 'failure'), jail, hour_text(wall(when), seconds))
    for (user,), (n, networks, _, _) in tally['users'].items():
        if user not in accounts:
            continue
        quiet = sum(name == user and net not in banned for net, name in tally['pairs'])
        quiet = max(networks - len(banned), quiet)
        if quiet >= MANY_NETWORKS:
            yield ('%s: tried from %s that '
                   'stayed below the limit: '
                   'guessing that hides (a '
                   'lower maxretry or a longer '
                   'findtime helps)' % (user, plural(quiet, 'address', 'addresses')))
    for (net, why), (n, last) in tally['ignored'].items():
        if n:
            yield '%s failed %s, last %s; it is never banned: %s' % (
                net, plural(n, 'time'), hour_text(wall(last), seconds), why)


def mishaps(tally, counts, facts, seconds, wall):
    """Yields lines on what banwatch itself could not do as it should."""
    def happened(rows):
        return often(
            {'times': sum(n for n, _, _ in rows), 'first': wall(min(first for _, first, _ in rows)),
                      'last': wall(max(last for _, _, last in rows))}, seconds)
    mails = {what: cell for (where, what), cell in tally['incidents'].items() if where == 'mail'}
    if mails:
        latest = max(mails, key=lambda what: (mails[what][2], mails[what][1], mails[what][0], what))
        yield 'mail: %s (%s)' % (latest, happened(mails.values()))
    for (where, what), cell in tally['incidents'].items():
        if where != 'mail':
            yield '%s: %s (%s)' % (where, what, happened([cell]))
    for source, open_for, trouble in facts['sources']:
        silent = min(seconds, open_for) >= SILENT and not tally['lines'].get((source,), [0])[0]
        if trouble:
            yield '%s: %s' % (source, trouble)
        elif silent:
            yield '%s: not a line for %s: is it still the log? (see `source`)' % (
                source, duration_text(seconds))
    for part in 'guessed', 'logins', 'ignored', 'incidents':
        if counts[part]:
            yield '%s: %s more that are not told here; the log has them' % (
                part, format(counts[part], ','))
    for what, why in (('unmailed', 'there were more than `mailmax` in an hour'),
                      ('unsent', 'sendmail failed four times')):
        if counts[what]:
            yield '%s not sent at once, for %s' % (plural(counts[what], 'mail was', 'mails were'),
                                                   why)


def often(row, seconds):
    """'14:02', '3 times, 14:02–15:10'."""
    if row['times'] == 1:
        return span_text(row, seconds)
    return '%s, %s' % (plural(row['times'], 'time'), span_text(row, seconds))


def span_text(row, seconds):
    """'14:02', '14:02–15:10'."""
    first, last = hour_text(row['first'], seconds), hour_text(row['last'], seconds)
    if first == last:
        return last
    return '%s–%s' % (first, last)


def noted_lines(tally, facts, wall):
    """What rules have found."""
    rows = []
    for (level, name, text), (n, first, last, lines) in tally['rules'].items():
        shown = {'all': lines, 'none': [], 'first': lines[:1], 'last': lines[-1:],
                 'firstlast': first_and_latest(lines, 2)}[facts['details'].get(name, 'none')]
        rows.append({'level': level, 'rule': name, 'text': text, 'times': n, 'first': wall(first),
                     'last': wall(last), 'details': [[wall(when), line] for when, line in shown]})
    return by_number('times', rows)


def other_lines(tally, wall):
    """Groups of other log lines, what is severe first. The many that a program says once are
    one."""
    found, once = [], {}
    for (program, pattern, level), (n, first, last, example) in tally['other'].items():
        row = {'program': program, 'text': pattern, 'level': level, 'times': n, 'kinds': 1,
               'first': wall(first), 'last': wall(last), 'example': example}
        if n < FEW and not level:
            once.setdefault(program, []).append(row)
        else:
            found.append(row)
    for program, rows in once.items():
        if len(rows) <= FEW:
            found += rows
        else:
            found.append(dict(
                rows[0], kinds=len(rows), times=sum(row['times'] for row in rows),
                text='%d different lines' % len(rows), first=min(row['first'] for row in rows),
                last=max(row['last'] for row in rows)))
    return sorted(found,
                  key=lambda row: (-LEVELS.get(row['level'], 0), -row['times'], row['program']))


def hour_bars(tally, facts, wall):
    """Bars of a chart, without gaps, each of some full hours."""
    cells, last = {}, wall(facts['now']) // 3600
    for (hour,), (failures, bans) in tally['hours'].items():
        cell = cells.setdefault(min(last, hour), [0, 0])       # the clock may have been set since
        cell[0] += failures
        cell[1] += bans
    if not any(failures or bans for failures, bans in cells.values()):
        return []
    first = max(min(wall(tally.begun) // 3600, min(cells)), last - PARTS['hours'].limit)
    width, bars = -(-(last - first + 1) // CHART_BARS), []
    for start in range(first, last + 1, width):
        some = [cells.get(start + n, (0, 0)) for n in range(width)]
        bars.append(
            {'start': start * 3600, 'hours': width, 'failures': sum(cell[0] for cell in some),
                     'bans': sum(cell[1] for cell in some)})
    return bars


def neighbours(addresses):
    """Networks (/24, /48) from which more than one address has failed."""
    cells = {}
    for row in addresses:
        net = network_of(row['ip'].partition('/')[0], 24, 48)
        cell = cells.setdefault(net, {'network': net, 'addresses': 0, 'failures': 0, 'bans': 0})
        cell['addresses'] += 1
        cell['failures'] += row['failures']
        cell['bans'] += row['bans']
    return by_number('failures', [cell for cell in cells.values() if cell['addresses'] > 1])


def hour_text(when, seconds=0):
    """'14:02', or 'Fri 14:02' if the period is longer than from one cron run to the next."""
    form = '%H:%M'
    if seconds >= 6 * DAY:
        form = '%d %b %H:%M'
    elif seconds >= DAY + HOUR:
        form = '%a %H:%M'
    return time.strftime(form, local_time(when))


def moment_text(when):
    """'Fri 15 Jan 08:00'."""
    return time.strftime('%a %d %b %H:%M', local_time(when))


def until_text(until, now):
    """'14:02', '28 Jan 14:02'."""
    return time.strftime('%H:%M' if until - now < DAY / 2 else '%d %b %H:%M', local_time(until))


def verdict_text(summary):
    """'2 warnings, 14 bans, 1 login'."""
    failures, bans = summary['bans']['failures'], summary['bans']['bans']
    errors = sum(row['times'] for row in summary['other'] if row['level'] == 'err')
    logins = sum(row['times'] for row in summary['logins'])
    numbers = [(len(summary['warnings']), 'warning'), (errors, 'log error'), (bans, 'ban'),
               (logins, 'login')]
    if not bans:
        numbers.append((failures, 'failure'))
    return ', '.join(plural(n, word) for n, word in numbers if n) or 'all quiet'


def subject_text(summary):
    """The subject of its mail."""
    days = round(summary['seconds'] / DAY)
    text = '[%s] %s — %s' % (printable(summary['host']), verdict_text(summary),
                             time.strftime('%a %d %b', local_time(summary['to'])))
    if days > 1:
        text += ', covers %d days' % days
    if summary['repeat']:
        text += ' (may be a repeat)'
    return text


def is_empty(summary):
    """Is there nothing in it that anybody would want to read?"""
    parts = 'warnings', 'logins', 'addresses', 'noted', 'other', 'ports', 'repeat'
    return not (any(summary[part] for part in parts)
                or any(summary['bans'][what] for what in JAIL_COUNTS))


# how a summary looks: (title, note, blocks); a block is (kind, what it shows): lines, quiet lines,
# warnings, a table (head, rows, how many more there are) or a chart

class Outline:
    """The sections of a summary; `most` is the part of the usual number of rows."""

    def __init__(self, summary, most=1.0):
        self.summary, self.most = summary, most
        self.seconds = summary['seconds']

    def some(self, rows, usual):
        """(as many rows as are shown, how many more there are)."""
        room = max(3, int(usual * self.most))
        return rows[:room], max(0, len(rows) - room)

    def lines(self, rows, usual, kind, text):
        """Blocks of rows that may have log lines for details."""
        shown, more = self.some(rows, usual)
        blocks = []
        for row in shown:
            details = ['%s  %s' % (hour_text(when, self.seconds), line)
                       for when, line in row['details']]
            blocks += [(kind, [text(row)]), ('quiet', details)]
        if more:
            blocks.append(('lines', ['+ %d more' % more]))
        return blocks

    def table(self, head, rows, usual, cells):
        """The block of a table; `cells` makes those of a row."""
        shown, more = self.some(rows, usual)
        return 'table', (head, [[printable(str(cell)) for cell in cells(row)] for row in shown],
                         more)

    def sections(self):
        """Yields what there is to show."""
        summary = self.summary
        about = [('lines', [about_text(summary)])]
        if summary['repeat']:
            about.append(
                ('lines', ['An earlier mail may have told this already: banwatch ended before it '
                                    'knew whether that had gone.']))
        yield '%s: %s' % (summary['host'], verdict_text(summary)), '', about
        if summary['warnings']:
            yield 'WARNING', '', self.lines(summary['warnings'], 16, 'warnings',
                                            lambda row: row['text'])
        if summary['logins']:
            yield 'LOGINS', '', [self.table(
                ('', 'USER', 'FROM', 'BY', 'TIMES', 'LAST'), summary['logins'], 12, lambda row: (
                    'NEW' if row['new'] else '', row['user'], row['ip'], row['by'], row['times'],
                    hour_text(row['last'], self.seconds)))]
        if any(summary['bans'].values()):
            yield 'BANS', self.bans_text(), self.bans()
        if summary['hours'] and self.seconds >= 3600:
            hours = summary['hours'][0]['hours']
            if hours == 1:
                each = 'hour'
            else:
                each = '%d hours' % hours
            highest = format(max(bar['failures'] for bar in summary['hours']), ',')
            note = 'failures per %s, %s at most' % (each, highest)
            yield 'HOURS', note, [('chart', summary['hours'])]
        if summary['networks']:
            yield 'NETWORKS', '', [self.table(
                ('NETWORK', 'ADDRESSES', 'FAILURES', 'BANS'), summary['networks'], 6,
                lambda row: (row['network'], row['addresses'], row['failures'], row['bans']))]
        if summary['dropped'] or summary['ports']:
            yield 'FIREWALL', '', self.firewall()
        if summary['noted']:
            yield 'NOTED', '', self.lines(summary['noted'], 12, 'lines', lambda row: '%s (%s)' % (
                row['text'], often(row, self.seconds)))
        if summary['other']:
            lines, kinds = (sum(row[what] for row in summary['other'])
                            for what in ('times', 'kinds'))
            note = '%s of %s that no jail and no rule explains' % (
                plural(lines, 'line'), plural(kinds, 'kind'))
            shown, more = self.some(summary['other'], 14)
            blocks = [block for row in shown for block in other_blocks(row, self.seconds)]
            if more:
                blocks.append(('lines', ['+ %d more' % more]))
            yield 'OTHER LOG LINES', note, blocks
        yield 'HEALTH', '', [('lines', [health_text(summary['health'], self.seconds)])]

    def bans_text(self):
        """'77 failures, 14 new bans, 3 active now'."""
        bans, said = self.summary['bans'], []
        active = 'active now'
        if not self.summary['running'] or self.summary['health']['firewall'] == ['none']:
            active = 'on record, nobody is blocked'
        if bans['failures']:
            said.append(plural(bans['failures'], 'failure'))
        if bans['bans']:
            said.append(plural(bans['bans'], 'new ban'))
        for what, text in (('extended', 'extended'), ('ended', 'ended'),
                           ('lifted', 'lifted by hand'),
                           ('active', active)):
            if bans[what]:
                said.append('%s %s' % (format(bans[what], ','), text))
        return ', '.join(said)

    def bans(self):
        """Tables of jails and of offenders."""
        summary = self.summary
        jails = [row for row in summary['jails']
                 if any(row[what] for what in JAIL_COUNTS + ('active',))]
        blocks = [self.table(
            ('JAIL', 'FAILURES', 'BANS', 'ACTIVE', 'IGNORED'), jails, 8, lambda row: (
                row['jail'], row['failures'], row['bans'], row['active'], row['ignored']))]

        def until(row):
            if not row['active']:
                return ''
            if row['until'] is None:
                return 'for ever'
            return until_text(row['until'], summary['to'])
        if summary['addresses']:
            blocks.append(self.table(
                ('ADDRESS', 'JAIL', 'FAILURES', 'BANS', 'UNTIL', 'USERS TRIED'),
                summary['addresses'], 12,
                lambda row: (row['ip'], row['jail'], row['failures'], row['bans'], until(row),
                             names_text(row))))
        return blocks

    def firewall(self):
        """Packets that were dropped, and logged."""
        blocks, (ports, more) = [], self.some(self.summary['ports'], 12)
        if self.summary['dropped']:
            blocks.append(
                self.table(('BANNED BY', 'PACKETS DROPPED'), self.summary['dropped'], 6,
                           lambda row: (
                row['jails'], format(row['packets'], ','))))
        if ports:
            text = ', '.join('%s %s' % (row['port'], format(row['packets'], ',')) for row in ports)
            if more:
                text += ' + %d more' % more
            blocks.append(('lines', ['packets that the firewall has logged, by port: ' + text]))
        return blocks


def other_blocks(row, seconds):
    """A group of other log lines: what they have in common, and one of them, if that says more."""
    text = '%s × %s' % (format(row['times'], ','), row['program'] or '(no program)')
    if row['level']:
        kind = 'warnings'
    else:
        kind = 'lines'
    if row['level']:
        text += ' ' + row['level']
    if row['times'] == 1 or row['text'] == row['example']:
        return [(kind, ['%s: %s (%s)' % (text, row['example'], span_text(row, seconds))]),
                ('quiet', [])]
    example = '%s  %s' % (span_text(row, seconds), row['example'])
    return [(kind, ['%s: %s' % (text, row['text'])]), ('quiet', [example])]


def about_text(summary):
    """'Thu 14 Jan 08:00 – Fri 15 Jan 08:00, 1d · up 1w3d · 1 reboot'."""
    seconds = summary['seconds']
    said = ['%s – %s, %s'
            % (moment_text(summary['from']), moment_text(summary['to']), duration_text(seconds)),
            'up ' + duration_text(summary['uptime'])]
    for what, word in ('reboots', 'reboot'), ('starts', 'restart'):
        if summary[what]:
            said.append(plural(summary[what], word))
    for step in summary['steps'][:3]:
        said.append('the clock was put %s by %s at %s' % (
            'forward' if step['seconds'] > 0 else 'back', duration_text(abs(step['seconds'])),
            hour_text(step['when'], seconds)))
    return ' · '.join(said)


def health_text(health, seconds):
    """'1,234 lines read, 0.01 a second · 24,680 kB of memory · firewall nft'."""
    rate = health['lines'] / max(1, seconds)
    rate_text = format(rate, ',.2f' if rate < 10 else ',.0f')
    said = ['%s read, %s a second' % (plural(health['lines'], 'line'), rate_text)]
    if health['memory']:
        said.append('%s kB of memory' % format(health['memory'], ','))
    for where, what in ('written', 'RAM'), ('flash', 'flash'):
        if health[where]:
            said.append('%s kB of state written to %s' % (
                format(-(-health[where] // 1000), ','), what))
    if health['firewall']:
        said.append('firewall ' + ' and '.join(health['firewall']))
    shared = ['%s %s' % (format(n, ','), HUB_COUNTS[what]) for what, n in health[HUB].items() if n]
    if shared:
        said.append('crowdsec: ' + ', '.join(shared))
    left = sum(health['let_go'].values())
    if left:
        said.append('%s too many to be told one by one' % format(left, ','))
    return ' · '.join(said)


def names_text(row):
    """Names that were tried by an address; those that may be passwords are a number."""
    names = row['users'][:5]
    if row['hidden']:
        names = names + [plural(row['hidden'], 'possible password')]
    return ', '.join(names)


# as text
EIGHTHS = ' ▁▂▃▄▅▆▇█'
PLAIN = {ord(a): b for a, b in zip('▁▂▃▄▅▆▇█·–—…×', '...::###---.x')}
TEXT_WIDTH, TEXT_LINES, MAIL_BYTES = 80, 120, 32 * 1024
STYLES = {'warnings': 'warning', 'quiet': 'quiet', 'lines': ''}


def text_lines(summary, most=1.0):
    """Yields (style, line): style is '', 'title', 'head', 'warning' or 'quiet'; a line is
    TEXT_WIDTH columns at most."""
    for n, (title, note, blocks) in enumerate(Outline(summary, most).sections()):
        if n:
            yield '', ''
        if note:
            title = '%s  %s' % (title, note)
        yield 'title', shortened(printable(title), TEXT_WIDTH)
        for kind, shown in blocks:
            if kind == 'table':
                yield from table_lines(*shown)
            elif kind == 'chart':
                yield from chart_lines(shown)
            elif kind == 'quiet':
                for text in shown:
                    yield 'quiet', shortened(' ' * 8 + printable(text), TEXT_WIDTH)
            else:
                for text in shown:
                    for line in wrapped(text):
                        yield STYLES[kind], line


def wrapped(text):
    """Lines of a paragraph, three at most."""
    rows = textwrap.wrap(printable(text), TEXT_WIDTH, initial_indent='  ', subsequent_indent='    ')
    if len(rows) < 4:
        return rows
    rest = '    ' + ' '.join(line.strip() for line in rows[2:])
    return rows[:2] + [shortened(rest, TEXT_WIDTH)]


def table_lines(head, rows, more):
    """Yields (style, line) of a table."""
    # 39: an IPv6 address
    rows = [[shortened(cell, 39) for cell in row[:-1]] + row[-1:] for row in rows]
    for n, line in enumerate(table(head, rows)):
        yield '' if n else 'head', shortened('  ' + line, TEXT_WIDTH)
    if more:
        yield '', '  + %d more' % more


def chart_lines(bars, height=4):
    """Yields (style, line) of a chart."""
    highest = max(1, max(bar['failures'] for bar in bars))
    # columns a bar: a day of hours, and the begun one
    if len(bars) > 25:
        wide = 2
    else:
        wide = 3
    for level in reversed(range(height)):
        columns = []
        for bar in bars:
            eighths = max(0, min(8, round(bar['failures'] * 8 * height / highest) - 8 * level))
            if level == 0 and bar['failures']:
                eighths = max(1, eighths)
            columns.append(EIGHTHS[eighths] * (wide - 1) + ' ')
        yield 'bar', ('  ' + ''.join(columns)).rstrip()
    if wide > 2 and bars[0]['hours'] == 1:
        every = 1
    else:
        every = 3
    labels = [bar_label(bar) if n % every == 0 else '' for n, bar in enumerate(bars)]
    yield 'head', ('  ' + ''.join(label.ljust(wide) for label in labels)).rstrip()


def bar_label(bar):
    """The hour that a bar begins with."""
    return time.strftime('%H', local_time(bar['start']))


def report_text(summary, most=1.0):
    """The summary as plain text, TEXT_LINES lines at most."""
    if is_empty(summary):
        rows = (line.strip() for _, line in text_lines(summary))
        about = list(itertools.takewhile(bool, rows))[1:]
        quiet = shortened('%s: all quiet, nothing to report.' % printable(summary['host']),
                          TEXT_WIDTH)
        return '\n'.join([quiet] + about + [''])
    rows = [line for _, line in text_lines(summary, most)]
    if len(rows) > TEXT_LINES:
        rows = rows[:TEXT_LINES - 1] + ['+ %d more lines' % (len(rows) - TEXT_LINES + 1)]
    return '\n'.join(rows) + '\n'


# as a page
ESCAPES = {ord(c): '&#%d;' % ord(c) for c in '&<>"\''}


def report_page(summary, most=1.0):
    """The summary as one HTML page that needs nothing else."""
    out = ['<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
           'content="width=device-width"><title>%s</title><style>%s</style></head>\n<body><main>'
           % (escaped(subject_text(summary)), STYLE)]
    for n, (title, note, blocks) in enumerate(Outline(summary, most).sections()):
        if n == 0:
            out.append('<h1>%s</h1>' % escaped(title))
        else:
            if title == 'WARNING':
                marked = ' class="w"'
            else:
                marked = ''
            if note:
                note = ' <i>%s</i>' % escaped(note)
            else:
                note = ''
            out.append('<section%s><h2>%s%s</h2>' % (marked, escaped(title), note))
        for kind, shown in blocks:
            if kind == 'table':
                out.append(table_html(*shown))
            elif kind == 'chart':
                out.append(chart_html(shown))
            else:
                marked = {'warnings': ' class="x"', 'quiet': ' class="q"', 'lines': ''}[kind]
                out += ['<p%s>%s</p>' % (marked, escaped(text)) for text in shown]
        out.append(tiles(summary) if n == 0 else '</section>')
    return '\n'.join(out + ['</main></body></html>', ''])


def escaped(text):
    """A text in HTML."""
    return printable(text).translate(ESCAPES)


def tiles(summary):
    """The numbers that are looked at first."""
    bans = summary['bans']
    logins = sum(row['times'] for row in summary['logins'])
    numbers = ((len(summary['warnings']), 'warning'), (logins, 'login'),
               (bans['failures'], 'failure'),
               (bans['bans'], 'ban'))
    rows = ['<p><b>%s</b>%s</p>' % (format(n, ','), word if n == 1 else word + 's')
            for n, word in numbers]
    rows.append('<p><b>%s</b>active</p>' % format(bans['active'], ','))
    return '<div class="k">%s</div>' % ''.join(rows)


def table_html(head, rows, more):
    """A table as HTML; columns of numbers stand to the right."""
    right = [all(row[n].replace(',', '').isdigit() for row in rows) for n in range(len(head))]

    def row_html(tag, cells):
        out = []
        for is_number, cell in zip(right, cells):
            marked = ''
            if is_number:
                marked = ' class="n"'
            elif cell == 'NEW':
                marked = ' class="x"'
            elif len(cell) > 24:
                marked = ' class="l"'
            out.append('<%s%s>%s</%s>' % (tag, marked, escaped(cell), tag))
        return '<tr>%s</tr>' % ''.join(out)
    text = row_html('th', head) + ''.join(row_html('td', cells) for cells in rows)
    text = '<div class="t"><table>%s</table></div>' % text
    if more:
        return text + '<p>+ %d more</p>' % more
    return text


def chart_html(bars):
    """A chart as HTML."""
    highest = max(1, max(bar['failures'] for bar in bars))
    if len(bars) < 13:
        every = 1
    else:
        every = 3
    columns, labels = [], []
    for n, bar in enumerate(bars):
        columns.append('<td title="%s: %d failures, %d bans"><b style="height:%dpx"></b></td>' % (
            moment_text(bar['start']), bar['failures'], bar['bans'],
            -(-88 * bar['failures'] // highest)))
        labels.append('<th>%s</th>' % (bar_label(bar) if n % every == 0 else ''))
    return '<table class="c"><tr>%s</tr><tr>%s</tr></table>' % (''.join(columns), ''.join(labels))


# as a mail (RFC 5322, 2045 to 2047)
def mime_message(headers, plain, html=''):
    """The text of a mail; the headers are (name, text) pairs. All of it is ASCII."""
    boundary = '=_banwatch'                        # no quoted-printable text has =_ in it
    out = [mail_header(name, value) for name, value in headers]
    out += ['MIME-Version: 1.0', 'Auto-Submitted: auto-generated']
    if not html:
        return '\n'.join(out + mime_part('plain', plain))
    out += ['Content-Type: multipart/alternative; boundary="%s"' % boundary, '']
    for kind, body in ('plain', plain), ('html', html):
        out += ['--' + boundary] + mime_part(kind, body)
    return '\n'.join(out + ['--%s--' % boundary, ''])


def mime_part(kind, body):
    """Lines of a text as a part of a mail."""
    return ['Content-Type: text/%s; charset=utf-8' % kind,
            'Content-Transfer-Encoding: quoted-printable', '',
            binascii.b2a_qp(body.encode('utf-8', 'backslashreplace')).decode()]


# words that are not ASCII, or would look encoded
UNPLAIN = Regex(r'(W(?: W)*)'.replace('W', r'\S*(?:[^ -~]|=\?)\S*'))


def mail_header(name, value):
    """One line of a header, folded; whatever is not ASCII stands in encoded words (RFC 2047)."""
    rows, line = [], name + ':'
    for n, piece in enumerate(UNPLAIN.split(' '.join(printable(value).split()))):
        for word in encoded_words(piece) if n % 2 else piece.split():
            if len(line) + 1 + len(word) > 76 and line != name + ':':
                rows.append(line)
                line = ''
            line += ' ' + word
    return '\n'.join(rows + [line])


def encoded_words(text):
    """Yields encoded words, none of which ends within a letter."""
    raw, start = [c.encode() for c in text], 0
    for end in range(1, len(raw) + 1):
        # 39 become 64; a line is 76 at most
        if end == len(raw) or len(b''.join(raw[start:end + 1])) > 39:
            coded = binascii.b2a_base64(b''.join(raw[start:end]), newline=False).decode()
            yield '=?utf-8?b?%s?=' % coded
            start = end


def report_mail(summary, settings, now, chance):
    """The message of a summary, MAIL_BYTES at most, for sendmail. `settings` are those of
    [report]."""
    headers = headers_of(settings, summary['host'], subject_text(summary), now, chance)
    for most in (1.0, 0.5, 0.25, 0):
        if is_empty(summary):
            page = ''
        else:
            page = report_page(summary, most)
        made = mime_message(headers, report_text(summary, most), page)
        if len(made) <= MAIL_BYTES:
            return made
    # what an attacker has filled goes without a page, cut
    rows = report_text(summary, 0).split('\n')
    for kept in range(len(rows), 0, -5):
        text = rows[:kept]
        if kept < len(rows):
            text = text + ['+ more, see: banwatch.py report', '']
        made = mime_message(headers, '\n'.join(text))
        if len(made) <= MAIL_BYTES:
            break
    return made


def headers_of(settings, host, title, now, chance):
    """The headers of a mail about `title`, sent `now` (by the wall clock)."""
    name = re.sub('[^A-Za-z0-9.-]', '-', host).strip('.-') or 'localhost'
    return [('From', settings['from'] or 'banwatch <root@%s>' % name), ('To', settings['to']),
            ('Subject', title),
            ('Date', time.strftime('%a, %d %b %Y %H:%M:%S %z', local_time(now))),
            ('Message-ID', '<%d.%d.banwatch@%s>' % (now, chance * 1e9, name))]


# sending it
MAIL_SECONDS = 60                    # for sendmail
MOST_ALERTS = 500                    # that wait for a mail at once
ALERT_TRIES = 4


def sendmail_command(machine, settings, text):
    """The Command that mails a message; `settings` are those of [report]."""
    argv = list(settings['sendmail'])
    if '/' not in argv[0] and not machine.which(argv[0]) and machine.exists('/usr/lib/' + argv[0]):
        argv[0] = '/usr/lib/' + argv[0]
    return Command(argv, text)


class SummaryMailer(Worker):
    """Mails the summary when it is asked for, and begins a new period. What did not go is tried
    again."""
    seconds = MAIL_SECONDS

    def __init__(self, wing):
        Worker.__init__(self, wing.daemon.machine, 'report')
        self.wing = wing
        self.wanted = False          # has a mail been asked for?
        self.told = None             # what has become of the last one

    def due(self):
        return self.wanted

    def ask(self, reply=lambda answer: None):
        """Mails the summary at once; `reply` is called when that is done, or has failed."""
        if self.running:             # that one is as good
            self.serving.append(lambda trouble: reply(self.told))
            return
        self.stop_waiting()
        self.wanted = True
        self.replies.append(lambda trouble: reply(self.told))

    def ask_later(self, seconds):
        """Mails what is due after a while."""
        self.wanted = True
        self.wait(seconds)

    def work(self):
        """Hands the summary to sendmail."""
        self.wanted = False
        wing, machine = self.wing, self.machine
        report, summary, now = wing.report, wing.summary(), self.machine.ticks()
        self.told = {'sent': '', 'problem': 'the daemon was stopped', 'summary': summary}
        if machine.wall() < SANE:
            raise Failed('the clock is not set yet')
        recent = report.last is not None and now - report.last < DAY / 2
        if is_empty(summary) and (recent or not wing.settings['empty']):
            return self.skip(summary, now)
        text = report_mail(summary, wing.settings, machine.wall(), machine.chance())
        report.send(now)
        wing.save_all()                            # says that it is on its way
        try:
            yield sendmail_command(machine, wing.settings, text)
        except Failed as e:
            report.came_back()
            wing.incident('mail', str(e))
            wing.save_all()
            raise
        report.gone(machine.ticks())
        wing.save_all()
        subject = subject_text(summary)
        machine.log('report: sent to %s: %s' % (wing.settings['to'], subject))
        self.told = {'sent': subject, 'to': wing.settings['to'], 'summary': summary}

    def skip(self, summary, now):
        """There is nothing to report: with `empty = no` a period ends without a mail; else it has
        hardly begun, and goes on."""
        report = self.wing.report
        report.mail_due = False
        if not self.wing.settings['empty']:
            report.send(now)
            report.gone(now)
            self.wing.save_all()
        why = 'nothing to report since %s' % moment_text(summary['from'])
        self.told = {'sent': '', 'why': why, 'summary': summary}

    def failed(self, problem):
        problem = 'not sent: ' + problem
        self.told['problem'] = problem[10:]
        if problem != self.trouble:
            self.machine.log('report: %s; it is kept, and tried again' % problem)
        self.trouble, self.wing.report.mail_due = problem, True
        self.ask_later(min(HOUR, MINUTE * 2 ** min(self.attempts, 9)))
        self.attempts += 1


class AlertMailer(Worker):
    """Mails at once what rules have found, together with what comes while the last such mail is on
    its way."""
    seconds = MAIL_SECONDS

    def __init__(self, wing):
        Worker.__init__(self, wing.daemon.machine, 'report')
        self.wing = wing
        self.alerts = []             # (wall, text, line) for the next mail
        self.sent = []               # when such mails went, in the last hour
        self.batch = []              # the alerts of the mail under way
        self.closing = False

    def add(self, text, line):
        """Takes an alert."""
        if len(self.alerts) >= MOST_ALERTS:
            self.wing.tally.count('unmailed')
        else:
            self.alerts.append((self.machine.wall(), text, line))

    def due(self):
        return bool(self.alerts or self.batch)

    def work(self):
        """Hands the next mail to sendmail, or once more the last one."""
        now, wing = self.machine.ticks(), self.wing
        if not self.batch:
            most = wing.settings['mailmax']
            if len(self.sent) >= most and self.sent[-most] > now - HOUR:
                wing.tally.count('unmailed', len(self.alerts))
                self.alerts = []
                return
            slide(self.sent, now, 1, HOUR, most)
            self.batch, self.alerts = self.alerts[:50], self.alerts[50:]
        yield sendmail_command(self.machine, wing.settings, self.message())
        self.batch = []

    def message(self):
        """The text of the mail."""
        host, machine = self.machine.host(), self.machine
        title = '[%s] %s' % (host, self.batch[0][1])
        if self.batch[1:]:
            title += ' + %d more' % (len(self.batch) - 1)
        text = '\n'.join('%s  %s\n    %s\n' % (moment_text(wall), text, line)
                         for wall, text, line in self.batch)
        headers = headers_of(self.wing.settings, host, shortened(title, 120), machine.wall(),
                             machine.chance())
        return mime_message(headers, text)

    def failed(self, problem):
        self.wing.incident('mail', problem)
        if not self.attempts:
            self.machine.log('report: a mail at once was not sent: %s; it is tried again' % problem)
        self.attempts += 1
        if self.attempts >= ALERT_TRIES or self.closing:
            self.wing.lose(len(self.batch))
            self.batch, self.attempts = [], 0
        else:
            self.wait(MINUTE)

    def close(self):
        """What waits is tried once more; what does not go then is counted as not sent."""
        self.closing = True
        self.stop_waiting()


class Reporter(Wing):
    """Counts what happens, and mails it."""
    name, keeps = 'report', True

    def __init__(self, daemon):
        Wing.__init__(self, daemon)
        self.report = Report(daemon.machine.ticks(), daemon.offset)
        self.settings, self.digest = {}, None      # of [report]; the Digest in force
        self.read = None             # the same of the configuration that was read last
        self.mailer, self.alerts = SummaryMailer(self), AlertMailer(self)
        self.workers = self.mailer, self.alerts

    @property
    def tally(self):
        return self.report.tally

    def configure(self, config, jails):
        digest, problems = make_digest(config, self.daemon.machine.guard)
        self.read = config.options('report'), digest
        return problems

    def adopt(self):
        old = self.digest
        self.settings, self.digest = self.read
        self.explains = self.digest.other
        self.look_around()
        if old:
            self.digest.adopt(old)
            for name in old.rules:
                self.daemon.note('rule ' + name, '')

    def start(self):
        self.look_around()
        if self.report.mail_due:
            self.mailer.ask_later(MINUTE)

    # what happens
    def seen(self, source, block, explained, now):
        tally = self.report.tally
        tally.note('lines', (source.what,), block.count(b'\n') - 1)
        if self.digest.other or self.digest.rules:
            for rule, text, line in self.digest.read(block, explained, tally, now):
                if not self.daemon.dry_run:
                    self.alerts.add(text, line)
            self.daemon.note_slow(self.digest.guards)

    def event(self, outcome, jail, network, event, why):
        if outcome == FAILED:
            self.report.tally.failure(jail, network, event.user, event.guesses, event.when)
        elif outcome == IGNORED:
            self.report.tally.ignored(jail, network, event.user, event.guesses, event.when, why)
        else:
            if event.guesses:
                self.report.tally.failure(jail, network, event.user, -event.guesses, event.when)
            self.report.tally.login(jail, network, event.ip, event.user, event.when, why)

    def banned(self, ticket, what):
        if what == NEW_BAN:
            self.tally.count_jail(ticket.jail, 'bans')
            self.tally.hour_of(self.daemon.machine.ticks())[1] += 1
        elif what == EXTENDED:
            self.tally.count_jail(ticket.jail, 'extended')

    def unbanned(self, ticket, what):
        self.tally.count_jail(ticket.jail, what)

    def dropped(self, jails, packets):
        self.tally.note('drops', (jails,), packets)

    def incident(self, where, what):
        now = self.daemon.machine.ticks()
        self.tally.note('incidents', (clipped(where), clipped(what)), 1, now, now)

    def count(self, what, n=1):
        self.tally.count(what, n)

    def clock_set(self, now, seconds):
        self.tally.note('steps', (now,), seconds)
        self.tally.set_clock(self.daemon.offset)

    def look_around(self):
        """Tells the rules what LAN and which accounts there are."""
        self.digest.around = look_around(self.daemon.exempt, self.daemon.judge.accounts)

    def minute(self, now):
        self.look_around()
        self.digest.purge(now)
        self.daemon.heal(self.digest.guards, now)

    def news(self):
        news, self.tally.news = self.tally.news, False
        return news

    # what is kept
    def dump(self, now, kept=False, most=KEPT_ROWS):
        return self.report.dump(now, kept, most)

    def load(self, state, now, gone):
        self.report, lost = load_report(state, now, gone, self.daemon.offset)
        return lost

    def save_all(self):
        if not self.daemon.dry_run:
            self.daemon.store.save_all()

    def close(self):
        self.alerts.close()

    def abandon(self):
        left = len(self.alerts.batch) + len(self.alerts.alerts)
        if left:
            self.lose(left)
        return []

    def lose(self, alerts):
        """So many mails at once will not be sent: the summary tells that, after a restart, too."""
        self.tally.count('unsent', alerts)
        self.tally.news = True

    def closed(self):
        return not (self.mailer.running or self.alerts.running or self.alerts.due())

    # what is asked
    def status(self):
        last = self.report.last
        return {'mailed': None if last is None else round(self.daemon.offset + last)}

    def summary(self):
        """The summary so far."""
        return summarise(self.report, facts_of_daemon(self.daemon, self.digest))


def facts_of_daemon(daemon, digest):
    """What only the machine, the tickets and the daemon know, for `summarise`."""
    machine, bans, until, details = daemon.machine, daemon.judge.bans, {}, {}
    now, wall = machine.ticks(), machine.wall()
    daemon.look_at_clock(now, wall)
    for ticket in bans.tickets.values():
        until[ticket.network] = later_end(until.get(ticket.network, ticket.until), ticket.until)
    times = collections.Counter()
    for (_, net), (n, _) in bans.history.items():
        times[net] += n
    for rules in digest.rules, digest.built_in:
        for name, rule in rules.items():
            details.setdefault(name, rule.options['details'])
    running = daemon.control is not None or daemon.dry_run
    return {
        'host': machine.host(), 'now': now, 'wall': wall, 'uptime': now,
        'accounts': machine.accounts(), 'until': until, 'bans': times, 'details': details,
        'active': dict(collections.Counter(ticket.jail for ticket in bans.tickets.values())),
        'running': running, 'wrong': daemon.nameless(),
        'sources': [(source.what, now - source.since, source.trouble)
                    for source in daemon.sources.values()],
        'firewall': [sync.name for sync in daemon.wall.syncs],
        'memory': machine.memory()[0] if running else 0}


def answer_report(daemon, request, reply):
    """The summary, once the kernel's counters have been looked at; mails it if that is asked
    for."""
    wing = daemon.wing('report')

    def counted(trouble):
        if request.get('send'):
            wing.mailer.ask(lambda answer: daemon.saved(reply, answer))
        else:
            daemon.saved(reply, {'summary': wing.summary()})
    daemon.wall.look_after()
    daemon.wall.when_settled(None, counted)


def show_report(conf, options, words):
    """`report`."""
    config, answer = read_conf(conf, strict=False), None
    send = 'send' in options
    try:
        answer = ask_daemon(config, {'do': 'report', 'send': send, 'patience': MAIL_SECONDS})
    except Problem as e:
        # a daemon that died meanwhile comes back, and must not find its place taken
        if e.code != os.EX_UNAVAILABLE or send and 'no daemon is running' not in str(e):
            raise
        answer = without_daemon(config, e, send)
    summary = answer['summary']
    if options.get('html') == '-':
        print(report_page(summary), end='')
    elif 'html' in options:
        write_page(options['html'], report_page(summary), config.get('report', 'htmlmode'))
    if answer.get('problem'):
        problem = answer['problem']
        raise Problem('not sent: %s (%s)' % (printable(problem), mail_remedy(problem)))
    if 'json' in options:
        return print_rows([json.dumps(summary)])
    if send and not sys.stdout.isatty():           # cron would mail what we say
        return 0
    if send and answer['sent']:
        return print_rows(['sent to %s: %s' % (answer['to'], answer['sent'])])
    if send:
        return print_rows(['not sent: ' + answer['why']])
    if 'html' in options:
        return 0
    return print_rows(for_terminal(text_lines(summary), sys.stdout))


def mail_remedy(problem):
    """What to do about a mail that did not go."""
    if 'not installed' in problem or re.fullmatch(r'\S+: No such file or directory', problem):
        return (
            'install msmtp-mta and name your mail provider in /etc/msmtprc, or set `sendmail` '
            'in [report]; nothing is lost')
    if problem.startswith('the clock'):
        return 'it is kept, the daemon tries again'
    return (
        'see `to` and `sendmail` in [report], and /etc/msmtprc for msmtp-mta; it is kept, the '
        'daemon tries again')


def for_terminal(styled, terminal):
    """Lines for a terminal, of (style, line): in plain letters if it has no others, with colours if
    it is one."""
    try:
        EIGHTHS.encode(terminal.encoding or 'ascii')
        plain = {}
    except UnicodeError:
        plain = PLAIN
    colours = {'title': '1', 'head': '2', 'quiet': '2', 'warning': '33', 'bar': '36'}
    if not terminal.isatty() or os.environ.get('NO_COLOR') or os.environ.get('TERM') == 'dumb':
        colours = {}
    for style, line in styled:
        line = line.translate(plain)
        if line and style in colours:
            line = '\033[%sm%s\033[0m' % (colours[style], line)
        yield line


class Quiet(Machine):
    """A machine that logs nothing: the command's answer says what became of it."""

    def log(self, text):
        pass


def without_daemon(config, absent, send):
    """The answer to `report` while no daemon runs: that of one that only reads the state files, and
    mails; `absent` is the Problem if there are none."""
    machine = Quiet()
    paths = os.path.join(config['runtime'], 'state.json'), config['state']
    if all(machine.age(path) is None for path in paths):
        raise absent
    if send:
        machine.directory(config['runtime'])
        if not machine.lock(os.path.join(config['runtime'], 'lock')):
            raise Problem('a daemon is running, but does not answer')
    else:
        machine.put_aside = lambda path: 'it is'               # it may be a daemon's own
    daemon, answered = Daemon(machine, config), []
    state, wing = daemon.restore(), daemon.wing('report')
    if not send:
        if state is None:                          # not ours to trust
            raise absent
        return {'summary': wing.summary()}
    wing.mailer.ask(answered.append)

    def done():
        wing.mailer.settle()
        return answered or daemon.ending

    # a terminal that closes is no wish for a new conf, which would read the log
    run_loop_until(machine, lambda: None, done,
                   lambda number: number == signal.SIGHUP or daemon.signalled(number))
    if not answered:
        raise Problem('interrupted; the mail may have gone: the next one says so')
    return answered[0]


WINGS.append(Reporter)
CONF_CHECKS.append(lambda config: make_digest(config)[1])
COMMANDS['report'] = Verb(
    '[--send] [--html FILE] [--json]', ['send', 'html=', 'json'], 0, 0,
    'the summary since the last one; --send mails it and begins a new one (for cron: 0 6 * * *);\n'
    '      --html writes it as a page (- is standard output)', show_report, answer_report)


# ---- Fleet ---------------------------------------------------------------------------------
# Owns: what a CrowdSec's Local API has told and is to be told: its list, its outbox. Always true:
# nothing waits for the API, and nothing of it is believed: what it sends is bounded, an address in
# it is what `ipaddress` printed, and the daemon leaves out what is never banned; what could not be
# told is told later, in order. How the API behaves: CrowdSec's swagger, and measured with 1.4.6.

HEAD_BYTES, BODY_BYTES, STREAM_BYTES = 1 << 14, 1 << 16, 32 << 20      # of an answer
OBJECT_BYTES = 1 << 14               # of one decision
PIECE = 500                          # networks that the daemon is given at a time
MOST_WAITING = 1000                  # bans that wait to be told
MOST_PUSHED = 2000                   # of our own bans that are known again
WHOLE_SECONDS = HOUR                 # between two pulls of everything
PUSH_TRIES = 3                       # for what the API does not take
SAME_END = 60                        # seconds by which two ends of one ban may differ
WIDEST = {4: 8, 6: 16}               # prefix lengths: nobody means to ban more than that


class Answer:
    """What an HTTP server answers (RFC 9112), fed piece by piece; the body of a 200 goes to `take`,
    if there is one."""

    def __init__(self, take=None):
        self.take, self.most = take, BODY_BYTES
        if take:
            self.most = STREAM_BYTES
        self.status, self.date, self.body = 0, '', b''
        self.buffer, self.chunked = b'', False
        self.left = None             # bytes of the body, or of a chunk; None: up to the end

    def feed(self, data):
        """Is that all? ValueError for what is no answer."""
        self.buffer += data
        if not self.status:
            head, end, rest = self.buffer.partition(b'\r\n\r\n')
            if not end:
                if len(self.buffer) > HEAD_BYTES:
                    raise ValueError('is no HTTP server')
                return False
            self.begin(head.decode('latin-1'))
            self.buffer = rest
        if self.chunked:
            return self.chunks()
        piece, self.buffer = self.buffer, b''
        if self.left is None:
            self.hand(piece)
            return not data
        piece = piece[:self.left]
        self.left -= len(piece)
        self.hand(piece)
        return not self.left

    def begin(self, head):
        """Takes the head of the answer."""
        m = re.match(r'HTTP/1\.[01] (\d{3})\b', head)
        if not m:
            raise ValueError('is no HTTP server')
        self.status = int(m.group(1))
        fields = dict(re.findall(r'\r\n([\w-]+):[ \t]*([^\r\n]*)', head))
        fields = {name.lower(): value.strip() for name, value in fields.items()}
        self.date = fields.get('date', '')
        self.chunked = fields.get('transfer-encoding', '').lower() == 'chunked'
        if fields.get('content-length', '').isdigit():
            self.left = int(fields['content-length'][:12])

    def chunks(self):
        """Takes what there is of a chunked body; True at its end."""
        while True:
            if not self.left:
                line, end, rest = self.buffer.lstrip(b'\r\n').partition(b'\r\n')
                if not end and len(line) < 100:
                    return False
                size = line.partition(b';')[0].strip()
                if not re.fullmatch(b'[0-9a-fA-F]{1,8}', size):
                    raise ValueError('sends chunks that are none')
                self.left, self.buffer = int(size, 16), rest
                if not self.left:
                    return True
            piece, self.buffer = self.buffer[:self.left], self.buffer[self.left:]
            if not piece:
                return False
            self.left -= len(piece)
            self.hand(piece)

    def hand(self, piece):
        self.most -= len(piece)
        if self.most < 0:
            raise ValueError('sends more than can be read')
        if self.take and self.status == 200:
            self.take(piece)
        else:
            self.body += piece[:BODY_BYTES]

    def json(self):
        """The body, {} if it is no object."""
        try:
            found = json.loads(self.body.decode())
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            return found
        return {}

    def refusal(self):
        """How to say that it did not do as asked."""
        if self.status in (401, 403):
            return 'refuses us (%d)' % self.status
        said = self.json().get('message', '')
        return ('answers %d: %s' % (self.status, printable(str(said))[:100])).rstrip(': ')


class Decisions:
    """Reads `{"deleted": [...], "new": [...]}` piece by piece: `take(kind, row)` gets each."""
    PART = Regex(r'[\s,{]*"(new|deleted)"\s*:\s*(null|\[)')
    ITEM, END = Regex(r'[\s,]*([{\]])'), Regex(r'[\s,{]*\}\s*')

    def __init__(self, take):
        self.take = take
        self.text, self.kind, self.ended = '', '', False
        self.decode = json.JSONDecoder().raw_decode

    def feed(self, data):
        """Takes a piece; ValueError for what is no such thing."""
        # each byte a letter, so that none is torn: all that matters is ASCII
        self.text += data.decode('latin-1')
        at = 0
        while not self.ended:
            if not self.kind:
                m = self.PART.match(self.text, at)
                if m:
                    at = m.end()
                    if m.group(2) == '[':
                        self.kind = m.group(1)
                    continue
                self.ended = bool(self.END.fullmatch(self.text, at))
                break
            m = self.ITEM.match(self.text, at)
            if not m:
                break
            if m.group(1) == ']':
                self.kind, at = '', m.end()
                continue
            try:
                row, at = self.decode(self.text, m.start(1))
            except RecursionError:
                raise ValueError('sends nonsense') from None
            except ValueError:                     # it is not whole yet
                break
            self.take(self.kind, row)
        self.text = self.text[at:]
        if self.ended:
            self.text = ''
        if len(self.text) > OBJECT_BYTES:          # no decision is so long
            raise ValueError('sends nonsense')

    def close(self):
        """Problem if that was not all."""
        if not self.ended:
            raise Failed('sends nonsense')


GO_DURATION = Regex(
    r'([+-]?)((?:[0-9]+(?:\.[0-9]*)?(?:h|ms|m|s|ns|us|[^\x00-\x7f]{1,2}s|d))+)')
GO_UNITS = {'d': DAY, 'h': HOUR, 'm': MINUTE, 's': 1, 'ms': 1e-3, 'us': 1e-6, 'ns': 1e-9}


def go_duration(text):
    """Seconds of a duration as Go writes it: `1h2m3.5s`, `-922.9ms`; ValueError."""
    m = GO_DURATION.fullmatch(text)
    if not m:
        raise ValueError('not a duration')
    seconds = sum(float(number) * GO_UNITS.get(unit, 1e-6)
                  for number, unit in re.findall(r'([\d.]+)([^\d.]+)', m.group(2)))
    if m.group(1) == '-':
        return -seconds
    return seconds


def decision(row):
    """(network, seconds, scenario) of a decision; ValueError, TypeError or KeyError for one that
    is no ban of a network, or of more than anybody means to ban."""
    if row['type'].lower() != 'ban' or row['scope'].lower() not in ('ip', 'range'):
        raise ValueError('no ban of a network')
    net = network_of.__wrapped__(row['value'])     # its cache is for the addresses of the log
    if '/' in net and int(net.partition('/')[2]) < WIDEST[span(net)[0]]:
        raise ValueError('too wide')
    return net, min(go_duration(row['duration']), TOO_LONG), str(row.get('scenario'))


SCENARIO = 'banwatch/'               # and the jail


def date_of_answer(text):
    """The date of an HTTP answer as RFC 3339 writes it, '?' if it has none: then the API takes its
    own. So a wrong clock of ours makes no ban longer or shorter."""
    m = re.fullmatch(r'\w+, (\d\d) (\w{3}) (\d{4}) (\d\d:\d\d:\d\d) GMT', text)
    if not m or m.group(2) not in MONTHS:
        return '?'
    return '%s-%02d-%sT%sZ' % (m.group(3), MONTHS.index(m.group(2)) + 1, m.group(1), m.group(4))


def hub_scope(net):
    """What the API calls an address, or a network."""
    if '/' in net:
        return 'Range'
    return 'Ip'


def alert(ban, now, moment, decides):
    """The alert that tells of a Told ban: for as long as it still lasts, or (not `decides`) as the
    API's profiles say."""
    scope = hub_scope(ban.network)
    source = {'scope': scope, 'value': ban.network}
    if scope == 'Ip':
        source['ip'] = ban.network
    scenario = SCENARIO + ban.jail
    row = {'scenario': scenario, 'scenario_hash': '', 'scenario_version': '',
           'message': 'banwatch: %s: %s' % (ban.network, plural(ban.failures, 'failure')),
           'events_count': max(1, ban.failures), 'start_at': moment, 'stop_at': moment,
           'capacity': 0, 'leakspeed': '0', 'simulated': False, 'events': [], 'source': source}
    if decides:
        left = TOO_LONG
        if ban.until is not None:
            left = max(1, int(ban.until - now + 0.5))
        row['decisions'] = [{'origin': 'crowdsec', 'type': 'ban', 'scope': scope,
                             'value': ban.network, 'duration': '%ds' % left, 'scenario': scenario}]
    else:
        row['remediation'] = True
    return packed([row])


# A ban that the API is to be told of, or (`lift`) that it has ended early.
Told = collections.namedtuple('Told', 'lift jail network until failures')


class HubWorker(Worker):
    """Asks the Local API."""
    seconds = 60

    def __init__(self, machine, fleet, name=HUB):
        Worker.__init__(self, machine, name)
        self.fleet, self.places = fleet, []

    def ask(self, method, path, body='', head='', take=None):
        """Yields what it takes to ask; the Answer."""
        yield from self.find()
        url = URL.fullmatch(self.fleet.options['url'])
        host = (url.group('host') or 'localhost').strip('[]')
        text = '%s %s%s HTTP/1.1\r\nHost: %s\r\nUser-Agent: banwatch/%s\r\n' % (
            method, (url.group('path') or '').rstrip('/'), path, host, VERSION)
        if body:
            text += 'Content-Type: application/json\r\nContent-Length: %d\r\n' % len(body)
        text = (text + head + 'Connection: close\r\n\r\n' + body).encode('ascii')
        answer = Answer(take)
        certified = ''
        if url.group('tls') == 'https':
            certified = host
        try:
            yield Request(self.places[0], certified, text, answer.feed)
        except Failed:
            self.places = self.places[1:]          # the next time at its next address
            raise
        return answer

    def find(self):
        """Yields what it takes to find the API's addresses."""
        if self.places:
            return
        url = URL.fullmatch(self.fleet.options['url'])
        host = (url.group('host') or '').strip('[]')
        port = int(url.group('port') or {'https': 443}.get(url.group('tls'), 80))
        if url.group('socket'):
            self.places = [url.group('socket')]
            return
        try:
            self.places = [(address(host), port)]
        except ValueError:
            self.places = [(ip, port) for ip in read_addresses((yield look_up(host)))]
        if not self.places:
            raise Failed('%s has no address' % host)


class Puller(HubWorker):
    """Asks for decisions, every `interval`; for all of them at first, each hour, and after
    anything has gone wrong."""

    def __init__(self, machine, fleet):
        HubWorker.__init__(self, machine, fleet)
        self.whole_at = float('-inf')              # ticks

    def due(self):
        return self.fleet.pulls and not self.fleet.pieces

    def work(self):
        options, now = self.fleet.options, self.machine.ticks()
        whole, before = now >= self.whole_at, self.whole_at
        self.whole_at = float('-inf')
        yield from self.find()
        pull = Pull(self.fleet, now, self.places)
        reader = Decisions(pull.take)
        path = '/v1/decisions/stream?startup=%s' % str(whole).lower()
        if options['origins']:
            path += '&origins=' + ','.join(re.sub('[^!$-%\'-~]', '', name)
                                           for name in options['origins'])
        answer = yield from self.ask('GET', path, head='X-Api-Key: %s\r\n' % options['key'],
                                     take=reader.feed)
        if answer.status != 200:
            raise Failed('%s: %s' % (options['url'], answer.refusal()))
        reader.close()
        self.fleet.pulled(pull, whole)
        if whole:
            before = now + WHOLE_SECONDS
        self.whole_at = before

    def succeeded(self):
        if self.trouble:
            self.machine.log('%s: works again' % self.name)
        Worker.succeeded(self)
        self.wait(self.fleet.options['interval'])


class Pull:
    """What one answer has told: network -> until of new decisions, those that last longest;
    networks of deleted ones."""

    def __init__(self, fleet, now, places):
        self.fleet, self.now = fleet, now
        self.places = [place[0] for place in places if not isinstance(place, str)]
        self.new, self.gone, self.lifted = {}, set(), set()
        self.left_out = self.unusable = 0
        self.most = fleet.most
        self.scopes = fleet.options['scopes']

    def take(self, kind, row):
        """Takes in an entry."""
        try:
            net, seconds, scenario = decision(row)
            if row['scope'].lower() not in self.scopes:
                return
            for place in self.places:              # or we would hear no more of it
                if net == place or '/' in net and networks_overlap(net, place):
                    raise ValueError('the API itself')
        except (ValueError, TypeError, KeyError, AttributeError):
            self.unusable += 1
            return
        if kind == 'deleted':
            self.gone.add(net)
            return
        until = self.now + seconds
        if net in self.fleet.lifted:
            self.lifted.add(net)
        elif seconds > 0 and not self.fleet.knows(net, until, scenario):
            self.new[net] = max(until, self.new.get(net, 0))
            if len(self.new) > self.most + self.most // 10 + PIECE:
                self.trim()

    def trim(self):
        """Leaves out those that end first, if there are too many."""
        surplus = len(self.new) - self.most
        if surplus > 0:
            self.left_out += surplus
            for net in sorted(self.new, key=self.new.get)[:surplus]:
                del self.new[net]


class Pusher(HubWorker):
    """Tells of bans, one by one; what the API does not take is given up, and counted."""

    def __init__(self, machine, fleet):
        HubWorker.__init__(self, machine, fleet, HUB + ' push')
        self.token, self.tries = '', 0

    def due(self):
        return bool(self.fleet.outbox)

    def work(self):
        fleet = self.fleet
        moment = date_of_answer((yield from self.log_in()).date)
        while fleet.outbox:
            told = fleet.outbox[0]
            now = self.machine.ticks()
            if told.until is not None and told.until <= now:
                fleet.outbox.popleft()
                continue
            bearer = 'Authorization: Bearer %s\r\n' % self.token
            if told.lift:
                answer = yield from self.ask(
                    'DELETE', '/v1/decisions?scopes=%s&value=%s&scenario=%s%s' % (
                        hub_scope(told.network), told.network, SCENARIO, told.jail), head=bearer)
            else:
                body = alert(told, now, moment, fleet.options['push'] == 'bans')
                answer = yield from self.ask('POST', '/v1/alerts', body, bearer)
            if answer.status not in (200, 201):
                self.refused(told, answer)
                continue
            self.tries = 0
            fleet.told(told)

    def log_in(self):
        """Yields what it takes to be logged in; the Answer to the last question."""
        for _ in range(2):
            if self.token:
                answer = yield from self.ask('GET', '/v1/heartbeat', head='Authorization: Bearer '
                                             '%s\r\n' % self.token)
                if answer.status == 200:
                    return answer
                self.token = ''
            options = self.fleet.options
            body = packed({'machine_id': options['machine'], 'password': options['password'],
                           'scenarios': []})
            answer = yield from self.ask('POST', '/v1/watchers/login', body)
            token = answer.json().get('token')
            if answer.status != 200 or not isinstance(token, str) or not re.fullmatch(
                    '[!-~]{1,4096}', token):
                raise Failed('%s: login of %s %s' % (options['url'], options['machine'],
                                                     answer.refusal()))
            self.token = token
        return answer

    def refused(self, told, answer):
        """The API did not take it: tries again, a few times, but if it is ours to blame."""
        why = '%s: %s' % (self.fleet.options['url'], answer.refusal())
        if answer.status in (401, 403):
            self.token = ''
        self.tries += 1
        if self.tries < PUSH_TRIES:
            raise Failed(why)
        self.tries = 0
        if self.fleet.outbox and self.fleet.outbox[0] is told:
            self.fleet.outbox.popleft()
        self.fleet.add_up('refused', 1)
        self.machine.log('%s: %s is given up (%s)' % (self.name, told.network, why))


class Fleet(Wing):
    """What is shared with a CrowdSec."""
    name, keeps = HUB, True

    def __init__(self, daemon):
        Wing.__init__(self, daemon)
        self.options, self.read = {'url': ''}, {'url': ''}     # in force; read last
        self.pulls = self.pushes = False
        self.most = 0                # decisions at a time
        self.pieces = collections.deque()
        self.outbox = collections.deque()          # Tolds
        self.pushed = Recent(MOST_PUSHED)          # (jail, network) -> until, of our own
        self.lifted = Recent(20000)  # networks of decisions that were lifted here, by hand
        # decisions: no room; nothing for us; never banned
        self.left_out, self.unusable, self.exempt = 0, 0, []
        # since the start
        self.counts = collections.Counter()
        self.workers = ()
        self.fresh = False

    def configure(self, config, jails):
        self.read = dict(config.options(HUB), maxbans=self.daemon.room_for_bans(config))
        return check_hub(config)

    def adopt(self):
        before, self.options = self.options, self.read
        options = self.options
        live = bool(options['url']) and not self.daemon.dry_run
        self.pulls = live and options['pull'] and bool(options['key'])
        self.pushes = live and options['push'] != 'no' and bool(options['machine'])
        self.most = options['maxdecisions'] or options['maxbans']
        if before != options:
            for worker in self.workers:            # what it has under way is let go
                worker.running = None
                worker.stop_waiting()
            machine, self.workers = self.daemon.machine, ()
            if live:
                self.workers = Puller(machine, self), Pusher(machine, self)
            self.pieces.clear()
        if not self.pushes:
            self.outbox.clear()

    def add_up(self, what, n):
        """Counts what has come and gone, for `status` and the summary."""
        self.counts[what] += n
        if n:
            self.daemon.tell_wings('count', HUB + ' ' + what, n)

    # pulled
    def knows(self, net, until, scenario):
        """Is a decision our own, come back?"""
        key = scenario[len(SCENARIO):], net
        if scenario.startswith(SCENARIO) and key in self.pushed:
            end = self.pushed[key]
            if end is None or until <= end + SAME_END or self.options['push'] == 'alerts':
                return True
        return False

    def pulled(self, pull, whole):
        """Takes over what an answer has told."""
        pull.trim()
        listed = self.daemon.judge.bans.lists.get(HUB, {})
        if whole:
            gone = [net for net in listed if net not in pull.new]
            self.left_out, self.unusable, self.exempt = pull.left_out, pull.unusable, []
            for net in self.lifted.keys() - pull.lifted:
                del self.lifted[net]
        else:
            for net in pull.gone - pull.lifted:
                self.lifted.pop(net, None)
            gone = [net for net in pull.gone if net in listed and net not in pull.new]
        new = {net: until for net, until in pull.new.items()
               if net not in listed or abs(listed[net].until - until) > SAME_END}
        surplus = len(listed) - len(gone) + len(new.keys() - listed.keys()) - self.most
        if surplus > 0:
            ends = {net: row.until for net, row in listed.items()}
            for net in gone:
                del ends[net]
            ends.update(new)
            for net in sorted(ends, key=ends.get)[:surplus]:
                if new.pop(net, None) is None or net in listed:
                    gone.append(net)
            self.left_out += surplus
        self.add_up('new', len(new))
        self.add_up('gone', len(gone))
        if whole and new:
            self.daemon.machine.log('[%s] %s pulled' % (HUB, plural(len(pull.new), 'decision')))
        self.note()
        new = list(new.items())
        for at in range(0, max(len(new), len(gone)), PIECE):
            self.pieces.append((HUB, gone[at:at + PIECE], dict(new[at:at + PIECE])))

    def note(self):
        """Reports decisions that are not in force."""
        said = []
        if self.left_out:
            said.append('no room for %s that end soonest (maxdecisions is %d)' % (
                plural(self.left_out, 'decision'), self.most))
        if self.exempt:
            said.append('%s never banned, as %s' % (
                plural(len(self.exempt), 'decision is', 'decisions are'), self.exempt[0]))
        self.daemon.note(HUB, '; '.join(said))

    def exempted(self, networks):
        if networks:
            self.exempt += networks
            self.note()

    def unlisted(self, name, networks):
        for net in networks:
            self.lifted.put(net, True)
            self.fresh = True

    # pushed
    def banned(self, ticket, what):
        if self.pushes and what == NEW_BAN:
            self.post(Told(False, ticket.jail, ticket.network, ticket.until, ticket.failures))

    def unbanned(self, ticket, what):
        if self.pushes and what == LIFTED:
            before = len(self.outbox)
            self.outbox = collections.deque(told for told in self.outbox if (
                told.jail, told.network) != ticket.key)
            if self.pushed.pop(ticket.key, False) is not False or before == len(self.outbox):
                self.post(Told(True, ticket.jail, ticket.network, None, 0))

    def post(self, told):
        """Puts something into the outbox; the oldest goes where there is no room."""
        if len(self.outbox) >= MOST_WAITING:
            self.outbox.popleft()
            self.add_up('lost', 1)
        self.outbox.append(told)
        self.fresh = True

    def told(self, told):
        """The API has taken it."""
        if self.outbox and self.outbox[0] is told:
            self.outbox.popleft()
        if not told.lift:
            self.pushed.put((told.jail, told.network), told.until)
            self.add_up('pushed', 1)
        self.fresh = True

    # the daemon's questions
    def news(self):
        fresh, self.fresh = self.fresh, False
        return fresh

    def status(self):
        if not self.options['url']:
            return {}
        listed = self.daemon.judge.bans.lists.get(HUB, ())
        return {HUB: dict(
            {what: self.counts[what] for what in ('new', 'gone', 'pushed', 'refused', 'lost')},
            url=self.options['url'], decisions=len(listed), waiting=len(self.outbox),
            left_out=self.left_out, unusable=self.unusable, exempt=len(self.exempt))}

    def dump(self, now, kept=False, most=KEPT_ROWS):
        def left(until):
            if until is None:
                return FOREVER
            return round(until - now)
        pushed = list(self.pushed.items())
        if kept:
            pushed = pushed[-most:]
        return {'outbox': [[told.lift, told.jail, told.network, left(told.until), told.failures]
                           for told in self.outbox],
                'pushed': [[jail, net, left(until)] for (jail, net), until in pushed
                           if until is None or until > now],
                'lifted': list(self.lifted)[-most:]}

    def load(self, state, now, gone):
        def end(left):
            if left == FOREVER:
                return None
            return now + checked_number(left) - gone
        lost, rows = 0, checked_dict(state)
        for part, take in (
                ('outbox', lambda row: self.outbox.append(Told(
                    row[0] is True, *checked_key(row[1], row[2]), end(row[3]),
                    checked_count(row[4])))),
                ('pushed', lambda row: self.pushed.put(checked_key(row[0], row[1]), end(row[2]))),
                ('lifted', lambda row: self.lifted.put(network_of(row), True))):
            for row in rows.get(part) or ():
                try:
                    take(row)
                except (ValueError, TypeError, LookupError, AttributeError):
                    lost += 1
        return lost


def has_tls():
    """Has this Python the module ssl? On a router it is a package of its own."""
    try:
        import ssl
        return bool(ssl)
    except ImportError:
        return False


def check_hub(config):
    """Problems of [crowdsec]."""
    options = config.options(HUB)
    lacking = []
    if options['url'].startswith('https:') and not has_tls():
        lacking.append(('url', 'https needs the module ssl of Python (OpenWrt: opkg install '
                               'python3-openssl)'))
    if options['url'] and options['pull'] and not options['key']:
        lacking.append(('pull', 'needs a `key` (cscli bouncers add NAME); or say `pull = no`'))
    if options['machine'] and not options['password']:
        lacking.append(('machine', 'needs a `password` (cscli machines add NAME -p ...)'))
    return ['%s: %s: %s' % (config.where(HUB, option), option, text) for option, text in lacking]


CONF_CHECKS.append(check_hub)
WINGS.append(Fleet)


# ---- Replay --------------------------------------------------------------------------------
# Owns: a judge of its own, in the log's own time. Always true: it touches nothing, and bans whom
# the daemon would have banned.

def log_blocks(name):
    """Yields the blocks of whole lines of a log file; '-' is standard input, .gz is unpacked."""
    try:
        if name.endswith('.gz'):
            f = gzip.open(name, 'rb')
        else:
            f = open(0 if name == '-' else name, 'rb', buffering=0, closefd=name != '-')
        with f:
            cutter = LineSplitter()
            for chunk in iter(lambda: f.read(1 << 18), b''):
                yield cutter.feed(chunk)
            yield cutter.rest()
    except (OSError, EOFError) as e:
        if isinstance(e, PermissionError):
            code = os.EX_NOPERM
        else:
            code = 1
        if name in LOGS:
            hint = ' (try: journalctl -o short-iso | banwatch.py replay -)'
        else:
            hint = ''
        why = getattr(e, 'strerror', None) or e
        raise Problem('%s: %s%s' % (printable(name), why, hint), code) from None


def default_log(machine):
    """The log file of this machine; Problem with what to type instead if it has none."""
    found = find_source(machine)
    if not found.startswith('/'):
        if found == 'logread':
            program = 'logread'
        else:
            program = 'journalctl -o short-iso'
        raise Problem('this machine keeps no log file; try: %s | banwatch.py replay -' % program)
    return found


def with_progress(blocks, name, machine):
    """Yields these blocks; once a second it says on a terminal how far that has come."""
    size, read, lines, begun = 0, 0, 0, machine.ticks()
    said = begun
    if os.path.isfile(name) and not name.endswith('.gz'):
        size = os.path.getsize(name)
    for block in blocks:
        yield block
        now, read, lines = machine.ticks(), read + len(block), lines + block.count(b'\n')
        if now - said >= 1 and sys.stderr.isatty():
            said = now
            percent = ''
            if size:
                percent = ' %d %%,' % (100 * read // size)
            sys.stderr.write('\r%s:%s %s lines a second\033[K' % (
                printable(name), percent, format(int(lines / (now - begun)), ',')))
            sys.stderr.flush()
    if said > begun:
        sys.stderr.write('\r\033[K')


NO_DATE = 0.0                        # the time of a line that has none


def own_time(when):
    """When a line was written, NO_DATE if it does not say so."""
    if when is None:
        return NO_DATE
    return when


class Replay:
    """The whole pipeline over a log, in the log's own time."""

    def __init__(self, config, machine):
        jails = Jails(config, machine.read_or_none, machine.guard)
        lists = Lists(machine, lambda where, trouble: None)
        lists.read(jails.files())
        for name in jails.names():
            lists.files[name] = read_addresses(run_now(machine, look_up(name))[1])
        jails.protect(machine.networks(), lists.files)
        self.judge = Judge(jails, config['maxtracked'], config['maxbans'] or 20000, machine.chance)
        self.judge.accounts = set(machine.accounts())
        self.judge.bans.crowded4 = jails.crowded4()
        self.proxies = ProxyTable(config, machine.guard)
        for jail in jails.watching():
            if self.proxies.addresses:
                jail.filter.keep_matches = True
        self.keep_for = config['dbpurgeage']
        self.wall = machine.wall
        self.latest = NO_DATE        # the time of the last line that has one
        self.lines = self.failures = self.undated = 0
        self.next_purge = float('-inf')
        self.timed = True            # does it begin with lines in which some time stands?
        self.found = []              # rows of the answer

    def listen(self, name, only):
        """Chooses the jails that a file is read for: those whose own log it is, or `only` that one,
        else all; the names of the first two."""
        jails = self.judge.jails
        own = [jail for jail in jails.watching()
               if jail.name == only or not only and names_file(jail.options['source'], name)]
        jails.listening.pop(None, None)
        if own:
            rows = [(jail, True, jail.filter.needle(True)) for jail in own]
            if not only and names_file(jails.everywhere, name):
                rows = [row for row in jails.listeners(None)
                        if row[0] in own or not row[0].options['source']]
            jails.listening[None] = rows
        return [jail.name for jail in own]

    def read(self, block):
        """Takes whole lines."""
        if not self.lines:
            rows = [line for line in block.split(b'\n', 100)[:100] if line]
            self.timed = not rows or any(SOME_TIME.search(line) for line in rows)
        self.lines += block.count(b'\n')
        judge = self.judge
        for jail, event in self.events(block):
            dated = event.when != NO_DATE
            if dated:
                self.latest = event.when
            else:
                if not event.login:
                    self.undated += event.guesses
                # nobody knows what else lies within its findtime
                if not event.login and event.guesses < jail.options['maxretry']:
                    self.failures += event.guesses
                    continue
                event = event._replace(when=self.latest)
            ends = judge.bans.ends
            if ends and ends[0][0] <= event.when:
                self.release(event.when)
            if event.when >= self.next_purge:
                self.next_purge = event.when + HOUR        # it goes through all that is known
                judge.purge(event.when, self.keep_for)
            self.failures += -event.guesses if event.login else event.guesses
            order = judge.weigh(jail, event)
            if order:
                self.obey(jail, event, order, dated)

    def events(self, block):
        """Yields (Jail, LogEvent) of a block, those of proxies for their clients."""
        jails, proxies, wall = self.judge.jails, self.proxies, self.wall()
        if not proxies.addresses:
            yield from jails.scan(None, block, own_time, wall)
            return
        block = jails.tidied(None, block)
        proxies.read(block, own_time, wall)
        for jail, event in jails.scan_tidy(None, block, own_time, wall):
            if event.ip not in proxies.addresses:
                yield jail, event
                continue
            proxies.hold(jail, event, event.when)
            yield from proxies.ready(event.when)

    def release(self, when, tickets=()):
        """Drops bans, and those that are over, or too many."""
        for ticket in tickets:
            self.judge.bans.remove(ticket.key)
        for ticket, _ in self.judge.leaving(when):
            self.judge.bans.remove(ticket.key)

    def obey(self, jail, event, order, dated):
        """Notes what Daemon.ban would have done with a BanOrder."""
        ticket, end = self.judge.ban(jail, order.network, event.when, order.seconds, order.failures)
        if end is not False:
            return
        self.release(event.when)
        when = None
        if dated:
            when = event.when
        self.found.append({
            'time': when, 'jail': jail.name, 'ip': ticket.network, 'seconds': order.seconds,
            'count': ticket.count, 'failures': order.failures})
        for other, more in self.judge.after_ban(jail, ticket.network, event.when):
            order = self.judge.weigh(other, more)
            if order:
                self.obey(other, more, order, dated)
        wider = self.judge.widening(jail, ticket.network, event.when)
        if wider:
            order, tickets = wider
            self.release(event.when, tickets)
            self.obey(jail, event, order, dated)


SOME_TIME = Regex(br'\d\d:\d\d:\d\d|\b\d{10}\b')


def names_file(sources, name):
    """True if one of these sources is this file."""
    return any(spec == name or name in glob.glob(spec) for spec in sources if spec[:1] == '/')


def replay_logs(conf, options, words):
    """The command `replay`."""
    config, machine = read_conf(conf), Machine()
    trial, only = Replay(config, machine), options.get('jail')
    known = [jail.name for jail in trial.judge.jails.watching()
             if not isinstance(jail.filter, History)]
    if only is not None and only not in known:
        raise Problem('%s: no jail that reads a log (there are: %s)'
                      % (printable(only), ' '.join(known)), os.EX_USAGE)
    for name in words or ['-' if not sys.stdin.isatty() else default_log(machine)]:
        own = trial.listen(name, only)
        if own and 'json' not in options:
            print('%s: read for %s' % (printable(name), ', '.join(own)), file=sys.stderr)
        for block in with_progress(log_blocks(name), name, machine):
            trial.read(block)
    if 'json' in options:
        return print_rows(
            [json.dumps({'lines': trial.lines, 'failures': trial.failures,
                         'undated': trial.undated, 'bans': trial.found})])
    rows = []
    for ban in trial.found:
        when = 'no date'
        if ban['time'] is not None:
            when = clock_text(ban['time'])
        rows.append((when, ban['jail'], ban['ip'], ban['failures'], ban['count'],
                     duration_text(ban['seconds'])))
    addresses = plural(len({ban['ip'] for ban in trial.found}), 'address', 'addresses')
    print('%s, %s, %s of %s' % (plural(trial.lines, 'line'), plural(trial.failures, 'failure'),
                                plural(len(rows), 'ban'), addresses))
    if not (trial.timed or trial.failures):
        print('banwatch: it does not begin with lines that have a date: is this a log?',
              file=sys.stderr)
    if trial.undated:
        print('banwatch: %s no date that can be read, so each counts by itself alone'
              % plural(trial.undated, 'failure has', 'failures have'), file=sys.stderr)
    if rows:
        return print_rows(table(('TIME', 'JAIL', 'ADDRESS', 'FAILURES', 'COUNT', 'BAN'), rows))
    return 0


class RuleTrial:
    """A rule of the summary, examined as a filter is."""

    def __init__(self, rule, origin, around):
        self.rule, self.origin, self.around = rule, origin, around

    def examine(self, block, wall):
        """(Look or None, 1 if the rule counts it) of a tidy line."""
        line = read_line(block[block.rfind(b'\n', 0, -1) + 1:-1])
        message = as_message(line.message, PLAIN_LINE)
        self.shown = message
        try:
            fields = self.rule.match(program_of(line), message, wall)
        except Runaway:
            fields = None
        if fields is None:
            return None, 0
        unmet, said = self.rule.unmet(fields, self.around), self.rule.text(fields, message)
        ip, user = fields.get('ip'), fields.get('user')
        if unmet:
            return Look(None, said, ip, '', user, None, {}, 'not what `%s` asks for' % unmet), 0
        return Look(FAIL, said, ip, '', user, None, {}, ''), 1


def rule_trial(config, machine, name):
    """The RuleTrial of [rule NAME]."""
    made, problems = make_digest(config, machine.guard)
    rules = dict(made.built_in, **made.rules)
    if problems:
        raise ValueError('\n'.join(problems))
    if name not in rules:
        raise ValueError('%s: no such rule (%s)'
                         % (printable(name), choose_from(name, list(rules))))
    return RuleTrial(rules[name], config.name if name in made.rules else BUILT_IN,
                     look_around(machine.networks(), machine.accounts()))


class Trial:
    """What filters make of a log, line by line."""

    def __init__(self, filters, wall):
        self.filters = filters       # name -> filter
        self.wall = wall
        self.lines = 0
        self.failures = collections.Counter()      # (filter, address) -> how many
        self.regexes = collections.Counter()       # (filter, regex) -> lines that it matched
        self.counts = collections.Counter()        # 'matched', 'login', 'no failure' ... -> lines
        self.why = collections.Counter()           # why a line was not counted -> lines
        self.missed = {}             # a line without its numbers -> [how often, the first]
        self.examples = []
        self.before = b''
        self.seen = {}               # filter -> the first line, as its regexes see it

    def rows(self, block):
        """Yields for each line (number, raw line, filter's name, Look, failures); None, None, 0 for
        a line that no filter has a regex for."""
        for raw in block.split(b'\n')[:-1]:
            self.lines += 1
            tidied, best = tidy(raw + b'\n', self.before), (None, None, 0)
            self.before = tidied[tidied.rfind(b'\n', 0, -1) + 1:-1] or self.before
            for name, each in self.filters.items():
                found, failures = each.examine(tidied, self.wall)
                self.seen.setdefault(name, getattr(each, 'shown', ''))
                if found and (best[1] is None or failures > best[2]
                              or best[1].verdict != FAIL and found.verdict == FAIL):
                    best = name, found, failures
            yield (self.lines, raw) + best

    @staticmethod
    def matched(found):
        return bool(found) and found.verdict == FAIL

    def note(self, n, raw, name, found, failures):
        """Counts a row for the summary."""
        if found is None:
            self.counts['missed'] += 1
            shape = re.sub(br'[0-9a-fA-F.:]*\d[0-9a-fA-F.:]*', b'#', raw)[:100]
            if len(self.missed) < 1000 or shape in self.missed:
                self.missed.setdefault(shape, [0, raw])[0] += 1
            return
        if found.regex:
            self.regexes[name, found.regex] += 1
        kind = {FAIL: 'matched', LOGIN: 'login', NOFAIL: 'no failure',
                None: 'ignored'}[found.verdict]
        self.counts[kind] += 1
        if failures:
            self.failures[name, found.ip] += failures
        if found.why:
            self.why[found.why
                     + ('' if found.ip or not found.id else ': ' + printable(found.id))] += 1
        if self.matched(found) and len(self.examples) < 10:
            self.examples.append(
                (n, printable(found.ip or found.id or ''), found.user or '', clock_text(found.when)
                                  if found.when is not None else 'no date'))

    def summary(self):
        """Lines of text for a person who writes a filter."""
        for name, each in self.filters.items():
            yield 'filter    %s (%s)' % (name, each.origin)
            if self.seen.get(name):
                yield 'sees      %s' % printable(self.seen[name])[:160]
        lines, matched, missed, quiet, ignored = [format(number, ',') for number in (
            self.lines, self.counts['matched'], self.counts['missed'],
            self.counts['no failure'], self.counts['ignored'])]
        logins = plural(self.counts['login'], 'login')
        yield (f'lines     {lines}: {matched} matched, {missed} not; {logins}, '
               f'{quiet} that tell something but no failure, {ignored} ignored')
        yield 'failures  %s of %s' % (format(sum(self.failures.values()), ','),
                                      plural(len({ip for _, ip in self.failures}), 'address',
                                             'addresses'))
        if self.regexes:
            yield ''
            yield from table(('LINES', 'REGEX'), [
                (format(n, ','), regex if len(self.filters) == 1 else '%s: %s' % (name, regex))
                for (name, regex), n in self.regexes.most_common()])
        if self.why:
            yield ''
            yield from table(('LINES', 'NOT COUNTED, BECAUSE'),
                             [(format(n, ','), why) for why, n in self.why.most_common(20)])
        if self.examples:
            yield ''
            yield from table(('LINE', 'ADDRESS', 'USER', 'TIME'), [
                (n, ip, printable(str(user)), when) for n, ip, user, when in self.examples])
        if self.missed:
            yield ''
            yield 'the most frequent lines that no regex matches:'
            for n, raw in sorted(self.missed.values(), key=lambda row: -row[0])[:10]:
                yield '%7s  %s' % (format(n, ','), printable(as_text(raw.rstrip(b'\r')))[:160])


def trial_filters(conf, machine, words, options):
    """({name: filter}, the files) that the words of `test` name."""
    config = read_conf(conf)
    if 'regex' in options:
        try:
            return {'--regex': own_filter({}, [options['regex']], guard=machine.guard)}, words
        except ValueError as e:
            raise Problem(str(e), os.EX_USAGE) from None
    if not words:
        raise Problem('usage: banwatch.py test FILTER [FILE...] (or --regex R)', os.EX_USAGE)
    spec, files = words[0], words[1:]
    name, bracket, more = spec.partition('[')
    if name not in FILTERS and spec not in config.jails() and os.path.isfile(
        name) and '/' not in name:
        name = './' + name                         # a file that is called like a jail is not meant
    try:
        if spec.startswith('rule:'):
            return {spec: rule_trial(config, machine, spec[5:])}, files
        if name == 'all':
            given = filter_spec(spec)[1]
            return {each: built_in_filter(each, given) for each in JAILS
                    if each != 'recidive'}, files
        if spec in config.jails():
            made = Jails(config, machine.read_or_none, machine.guard).by_name[spec].filter
        else:
            made = load_filter(name + bracket + more, {}, machine.read_or_none,
                               filter_directories(config.name), machine.guard)
        if isinstance(made, History):
            raise Problem('%s reads no log, it counts the bans of other jails (try replay)'
                          % printable(spec), os.EX_USAGE)
        return {spec: made}, files
    except ValueError as e:
        raise Problem(str(e), os.EX_CONFIG) from None


def built_in_filter(name, params):
    """A built-in filter, with these options if it knows them."""
    try:
        return load_filter(name, params, directories=(BUILT_IN,))
    except ValueError:
        return load_filter(name, directories=(BUILT_IN,))


def test_filter(conf, options, words):
    """The command `test`."""
    machine = Machine()
    filters, files = trial_filters(conf, machine, words, options)
    try:
        if 'now' in options:
            wall = float(options['now'])
        else:
            wall = machine.wall()
        if not 0 <= wall < 1e11:
            raise ValueError
    except ValueError:
        raise Problem('--now %s is not a number of seconds' % printable(options['now']),
                      os.EX_USAGE) from None
    trial, matches = Trial(filters, wall), 0
    for name in files or ['-' if not sys.stdin.isatty() else default_log(machine)]:
        for block in with_progress(log_blocks(name), name, machine):
            for row in trial.rows(block):
                n, _, by, found, failures = row
                match = trial.matched(found)
                matches += match
                if 'json' in options:
                    print(json.dumps({
                        'line': n, 'match': match, 'ip': found.ip if match else None,
                        'user': found.user if match else None, 'time': found.when if match
                        else None,
                        'filter': by if match else None, 'failures': failures,
                        'why': found.why if found else ''}))
                else:
                    trial.note(*row)
    if 'json' not in options:
        print_rows(trial.summary())
    if matches:
        return 0
    return 1


COMMANDS['test'] = Verb(
    'FILTER [FILE...] [--json] [--now EPOCH] | --regex R [FILE...]', ['json', 'now=', 'regex='], 0,
    ANY,
    'which lines a filter matches, by which regex, and why others are not counted; FILTER is a\n'
    '      name, a jail, a file of filter.d (each with [option=value,...] if need be), all, or\n'
    '      rule:NAME of the summary',
    test_filter)
COMMANDS['replay'] = Verb(
    '[-j JAIL] [FILE...] [--json]', ['jail=', 'json'], 0, ANY,
    'who would have been banned by these logs (- is standard input); touches nothing; -j: read\n'
    '      for one jail, as a log of its own', replay_logs)


# ---- Doctor --------------------------------------------------------------------------------
# Owns: nothing. Looks at the machine as an experienced friend would. Always true: nothing is
# changed that is not ours; a check that fails, or cannot be made, does not keep the others from
# being made.

OK, WARNING, PROBLEM = 'ok', 'warning', 'PROBLEM'
Finding = collections.namedtuple('Finding', 'level text remedy')
Finding.__new__.__defaults__ = '',
# the daemon answers after 13 s at the latest, and is waited for 15
MARKER_SECONDS, LOOK_SECONDS = 3, 10
FINDING_LENGTH = 190                                # characters of a finding
LITTLE_FLASH, LITTLE_RAM = 1 << 20, 8 << 10    # bytes, kB that should be free
RIVALS = {'fail2ban-server': 'fail2ban', 'sshguard': 'sshguard', 'sshg-blocker': 'sshguard',
          'crowdsec': 'crowdsec', 'denyhosts.py': 'denyhosts'}
RIVAL_SCRIPTS = {'/etc/init.d/banip': 'banIP', '/etc/init.d/bearDropper': 'bearDropper'}


def readable_conf(name):
    """What can be read of a conf file with mistakes."""
    try:
        return read_conf(name, strict=False)
    except Problem:
        return Config()


class Doctor:
    """What the checks need to know; `answer` is what the daemon says of itself, None if there is
    none."""

    def __init__(self, machine, conf, mail):
        self.machine, self.conf, self.mail = machine, conf, mail
        self.config, self.answer, self.absent = Config(), None, ''
        self.mistakes = []
        try:
            self.config = read_conf(conf)
        except Problem as e:
            self.mistakes = str(e).split('\n')
            if conf != '-':                        # which has been read
                self.config = readable_conf(conf)
        try:
            self.answer = ask_daemon(self.config,
                                     {'do': 'status', 'look': True, 'patience': LOOK_SECONDS})
        except Problem as e:
            self.absent = str(e)

    def run(self, *argv):
        """What a program prints, None if it fails or is not there."""
        problem, output = run_now(self.machine, Command(list(argv)), 5)
        if problem:
            return None
        return output

    def pause(self, seconds):
        """Lets time go by."""
        until = self.machine.ticks() + seconds
        while self.machine.ticks() < until:
            self.machine.loop.wait(until - self.machine.ticks())


def check_python(doctor):
    """Are all modules there that some command needs? python3-light lacks several."""
    missing = []
    for name in LazyModule.names:
        try:
            __import__(name)
        except ImportError:
            missing.append(name)
    version = '%d.%d.%d' % sys.version_info[:3]
    if sys.version_info < (3, 7):
        yield Finding(PROBLEM, 'Python %s is too old' % version, 'use 3.7 or later')
    elif missing:
        yield Finding(PROBLEM, 'Python %s lacks %s' % (version, ' '.join(missing)),
                      'install the whole python3')
    elif globals().get('COMPILED'):                # by the loader that `install` writes, just now
        yield Finding(WARNING,
                      'Python %s is not the one that banwatch was compiled for: it starts slower'
                      % version, 'banwatch install')
    else:
        yield Finding(OK, 'Python %s, with all that is needed' % version)


def check_conf(doctor):
    """Is the conf free of mistakes?"""
    for text in doctor.mistakes:
        yield Finding(PROBLEM, text,
                      'correct it: a running daemon keeps its old conf, a new one does not start')
    if not doctor.mistakes:
        yield Finding(OK, 'conf: %s' % doctor.config.name)


def check_daemon(doctor):
    """Does a daemon run, is it this version, does it read its logs, and what troubles it?"""
    if doctor.answer is None:
        yield Finding(PROBLEM, doctor.absent, 'nobody new is banned meanwhile; ' + (
            'restart it' if 'not answer' in doctor.absent
            else 'at each boot it starts after: banwatch.py install'))
        return
    if doctor.answer['version'] != VERSION:
        yield Finding(WARNING,
                      'daemon: it still is banwatch %s, this is %s'
                      % (doctor.answer['version'], VERSION), 'restart it')
    yield Finding(OK, 'daemon: pid %d, up %s, %s kB' % (
        doctor.answer['pid'], duration_text(doctor.answer['uptime']),
        format(doctor.answer['memory'], ',')))
    told = [with_name(wall['name'], wall['trouble']) for wall in doctor.answer['firewall']]
    for text in doctor.answer['wrong']:
        if text not in told:                       # check_firewall's
            yield Finding(PROBLEM, text, 'its log says more')


def check_log(doctor):
    """Sends a line into the system log, and waits for it where banwatch would read it."""
    machine, spec = doctor.machine, doctor.config['source'][0]
    if spec == 'auto':
        meant = find_source(machine)
    else:
        meant = spec
    if not (meant == 'logread' or meant.startswith('/')):
        yield Finding(OK, 'log: %s, which is not asked from here' % meant)
        return
    if not machine.which('logger'):
        yield Finding(WARNING, 'log: there is no `logger` to try it with',
                      'see whether `status` counts its lines')
        return
    mark = 'log check %d, level ' % (machine.wall() * 1000)
    for level in ('warning',
                  'info'):  # dropbear's failures are of the first, those of sshd of the second
        problem, _ = run_now(machine,
                             Command(
                                 ['logger', '-t', 'banwatch', '-p', 'authpriv.' + level,
                                  mark + level]), 5)
        if problem:
            yield Finding(PROBLEM, 'log: %s' % problem, 'is the log daemon running?')
            return
    until = machine.ticks() + MARKER_SECONDS
    while True:
        # busybox has no -l, and a script of OpenWrt's syslog-ng little else
        if meant == 'logread':
            said = (doctor.run('logread', '-l', '50') or doctor.run('logread') or '')
        else:
            said = ''.join(machine.end_of(path, 1 << 16) for path in glob.glob(meant))
        if mark + 'info' in said or machine.ticks() >= until:
            break
        doctor.pause(0.2)
    if mark + 'info' in said:
        yield Finding(OK, 'log: what is logged comes through %s' % meant)
    elif mark + 'warning' in said:
        yield Finding(PROBLEM,
                      'log: %s shows warnings only; what sshd says of failures is of level info'
                      % meant,
                      'let the log daemon write `authpriv.info`; busybox syslogd: -l 8')
    else:
        yield Finding(PROBLEM, 'log: a line sent with `logger` does not come through %s' % meant,
                      'is its daemon running? Where does it write? See `source`')


def check_log_level(doctor):
    """Settings that keep failed logins out of the log."""
    # -T: what it takes from all its files
    text = doctor.run('sshd', '-T') or doctor.machine.read('/etc/ssh/sshd_config')
    level, names = re.search(r'(?mi)^\s*LogLevel\s+(QUIET|FATAL|ERROR)\b',
                             text), re.search(r'(?mi)^\s*UseDNS\s+yes\b', text)
    if level:
        yield Finding(PROBLEM, 'sshd logs no failures: LogLevel %s' % level.group(1),
                      'set LogLevel INFO in /etc/ssh/sshd_config')
    if names:
        yield Finding(WARNING, 'sshd logs names instead of addresses: UseDNS yes',
                      'set UseDNS no, or those are never banned')
    if not (level or names):
        yield Finding(OK, 'log levels: failed logins are not hidden, as far as is known')


def check_firewall(doctor):
    """Do the daemon's rules stand, and would a rule of the trial's be obeyed?"""
    for wall in doctor.answer['firewall'] if doctor.answer else ():
        if wall['trouble']:
            yield Finding(PROBLEM, with_name(wall['name'], wall['trouble']),
                          'new bans stop nobody there until that is repaired; it is tried again')
        elif wall['pending']:
            yield Finding(WARNING, '%s: does not answer yet' % wall['name'],
                          'ask again in a minute')
        elif wall['name'] == 'none':
            yield Finding(WARNING, 'firewall = none: nobody is blocked', 'set firewall = auto')
        elif wall['name'] == 'command':
            yield Finding(OK, 'firewall = command: what `action` runs has to block')
        elif wall['mended']:
            yield Finding(WARNING,
                          '%s: its rules were not as they should be, and are again: %s'
                          % (wall['name'], wall['mended']),
                          'what else changes the firewall? banwatch looks after it each minute')
        else:
            yield Finding(OK,
                          '%s: its rules stand first, with %s'
                          % (wall['name'], plural(wall['rules'], 'ban')))
    if not doctor.answer and not any(doctor.machine.which(tool) for tool in ('nft', 'iptables')):
        yield Finding(PROBLEM, 'there is neither nft nor iptables',
                      'install nftables, or iptables and ipset')


TRIAL_IP = '127.66.97.110'           # an address of the loopback that nobody has


def check_drops(doctor):
    """Has the kernel drop a packet, by rules like the daemon's, in a chain or a table of their own;
    without a daemon by those of the firewall that one would take."""
    if doctor.answer:
        kinds = [wall['name'] for wall in doctor.answer['firewall'] if not wall['trouble']][:1]
    else:
        kinds = kinds_to_try(doctor)
    for kind in kinds:
        if kind in TRIAL_FIREWALLS and doctor.machine.root():
            found = try_kind(doctor.machine, kind)
            if found.level != PROBLEM or kind == kinds[-1]:
                yield found
                return


TRIAL_FIREWALLS = {'nft': NFTables, 'iptables': functools.partial(IPTables, 4),
                   'ipset': functools.partial(IPSet, 4)}


def kinds_to_try(doctor):
    """The kinds of firewall that a daemon would try, in this order."""
    if doctor.config['firewall'] != 'auto':
        return [doctor.config['firewall']]
    shown = {}
    for name, command in PROBES.items():
        shown[name] = doctor.run(*command.argv)
    return choose_kinds(shown)[0]


def try_kind(machine, kind):
    """The Finding on whether a packet is dropped by rules of this kind."""
    door = Scope((), '', True)
    trial = TRIAL_FIREWALLS[kind](['INPUT'], {TRIAL: door}, TRIAL)
    remove_trial_rules(machine, trial)             # what a doctor has left who was killed
    if not machine.passes(TRIAL_IP):
        return Finding(WARNING,
                       '%s: not tried, for packets from %s pass nowhere here' % (kind, TRIAL_IP),
                       'another firewall shuts the loopback')
    problem, passes = packet_is_dropped(machine, trial, door)
    if problem:
        return Finding(PROBLEM, '%s: %s' % (kind, problem), 'new bans may stop nobody')
    if passes:
        return Finding(PROBLEM, '%s: a packet that its rules drop comes through' % kind,
                       'set `firewall` to another kind')
    return Finding(OK, '%s: a packet that has to be dropped is dropped' % kind)


def list_trial_rules(machine, trial):
    """What the firewall lists for each command of the trial; None for one that fails."""
    return [None if problem else output
            for problem, output in (run_now(machine, command) for command in trial.check({}))]


def run_commands(machine, commands):
    """Why the first of these commands that failed did so, or '': none is run after it."""
    return next(
        (problem for problem, _ in (run_now(machine, command) for command in commands) if problem),
        '')


def remove_trial_rules(machine, trial):
    """Takes the rules on trial out of the kernel; '' or what is in the way."""
    there = list_trial_rules(machine, trial)
    if there[0] is None:
        return 'its rules cannot be read'
    return run_commands(machine, trial.stop(there))


def packet_is_dropped(machine, trial, door):
    """(problem or '', whether a packet comes through all the same), with the rules of a firewall on
    trial."""
    before = list_trial_rules(machine, trial)
    if before[0] is None:
        return 'its rules cannot be read', None
    if trial.name != 'nft':  # behind the daemon's own jump, which has to stand first
        trial.rank = 1 + any(re.match('-A INPUT -j %s' % OURS, row)
                             for row in trial.listing(before[0])[1]['INPUT'][:1])
    passes = None
    try:
        problem = run_commands(machine,
                               trial.rebuild(before, {(TRIAL_IP, door): machine.ticks() + MINUTE},
                                             machine.ticks()))
        passes = not problem and machine.passes(TRIAL_IP)
    finally:
        left = remove_trial_rules(machine, trial)
    return problem or left, passes


def check_offload(doctor):
    """Where flows bypass the firewall: can those of a banned address be ended?"""
    if doctor.answer and any(wall['offload'] for wall in doctor.answer['firewall']):
        if doctor.machine.which('conntrack'):
            yield Finding(OK, 'flows are offloaded; conntrack ends those of who is banned')
        else:
            yield Finding(WARNING,
                          'flows are offloaded: connections that are open when a ban comes go on',
                          'install conntrack')


def check_traps(doctor):
    """Do traps listen, and does the firewall seem to let the Internet reach them?"""
    specs = [spec for jail in doctor.config.jails() for spec in doctor.config.get(jail, 'source')
             if spec.startswith('trap:')]
    if not specs and 'trap' in doctor.config.jails():
        yield Finding(WARNING, 'trap: has no trap', 'set `source = trap:telnet:23` in [trap]')
    if not specs:
        return
    rules = ''.join(doctor.run(*argv) or '' for argv in (
        ('nft', '-t', 'list', 'ruleset'), ('iptables', '-S'), ('ip6tables', '-S')))
    closed = re.search(r'policy drop|-P INPUT DROP|^-A \S*INPUT\S* .*-j (?:REJECT|DROP)$'
                       r'|jump (?:handle_reject|reject_from_wan|drop_from_wan)', rules, re.M)
    for spec in dict.fromkeys(specs):
        port = spec.rpartition(':')[2]
        opened = re.search(r'dports? (?:\{[^}]*\b)?%s\b.*accept|--dports? (?:\S+,)?%s\b.*ACCEPT'
                           % (port, port), rules)
        if closed and not opened:
            yield Finding(WARNING, '%s: no rule seems to let the Internet reach port %s'
                          % (spec, port), 'open it in the firewall, or it catches nobody')
        else:
            yield Finding(OK, '%s: nothing seems to shut port %s' % (spec, port))


def run_script(machine, script):
    """What a Worker's script comes to, run to its end; Failed if it fails."""
    step, value = script.send, None
    while True:
        try:
            command = step(value)
        except StopIteration as e:
            return e.value
        problem, value = run_now(machine, command)
        step = script.send
        if problem:
            step, value = script.throw, Failed(problem)


def check_crowdsec(doctor):
    """Do key and login open the Local API?"""
    options = doctor.config.options(HUB)
    if not options['url']:
        return
    trial = Fleet(None)
    trial.options = options
    if options['pull']:
        asked = HubWorker(doctor.machine, trial).ask('GET', '/v1/decisions?ip=192.0.2.0', head=(
            'X-Api-Key: %s\r\n' % options['key']))
        try:
            answer = run_script(doctor.machine, asked)
            if answer.status == 200:
                yield Finding(OK, 'crowdsec: %s takes the key' % options['url'])
            else:
                yield Finding(PROBLEM, 'crowdsec: %s %s' % (options['url'], answer.refusal()),
                              'cscli bouncers add NAME prints a key')
        except Failed as e:
            yield Finding(PROBLEM, 'crowdsec: %s: %s' % (options['url'], e),
                          'does it listen there, and may this machine reach it?')
    if options['push'] != 'no' and options['machine']:
        try:
            run_script(doctor.machine, Pusher(doctor.machine, trial).log_in())
            yield Finding(OK, 'crowdsec: %s may push' % options['machine'])
        except Failed as e:
            yield Finding(PROBLEM, 'crowdsec: %s' % e,
                          'cscli machines add %s -p PASSWORD -f /dev/null' % options['machine'])


def check_clock(doctor):
    """Is the clock set, and the time zone?"""
    wall = doctor.machine.wall()
    if wall < SANE:
        yield Finding(PROBLEM, 'the clock says %s' % clock_text(wall),
                      'let ntpd set it; summaries wait for it')
        return
    zone = doctor.machine.read('/etc/TZ').strip()
    ours = time.localtime(wall).tm_zone            # strftime's %Z can be empty with musl
    if zone and os.environ.get('TZ', zone) != zone:
        yield Finding(WARNING, 'time zone: /etc/TZ says %s, this session %s' % (zone, ours),
                      'log in again, and restart banwatch if it is older than the change')
    else:
        yield Finding(OK, 'clock: %s %s' % (clock_text(wall), ours))


def check_mail(doctor):
    """Is there a sendmail, and (if --mail was given) does it take a mail?"""
    machine, settings = doctor.machine, doctor.config.options('report')
    command = sendmail_command(machine, settings, '')
    if not machine.which(command.argv[0]):
        yield Finding(WARNING, 'mail: %s is %s' % (
            command.argv[0], 'no program' if machine.exists(command.argv[0]) else 'not installed'),
            'install msmtp-mta, or read the summary with: banwatch.py report')
    elif is_msmtp(machine.which(command.argv[0])) and not all(
            '@' in word for word in settings['to'].split(',')):
        yield Finding(WARNING, 'mail: msmtp needs a whole address, but `to` is %s' % settings['to'],
                      'set `to = me@example.org` in [report], or aliases in /etc/msmtprc')
    elif not doctor.mail:
        yield Finding(OK,
                      'mail: %s is there, for %s (doctor --mail tries it)'
                      % (command.argv[0], settings['to']))
    else:
        host = machine.host()
        text = mime_message(
            headers_of(settings, host, '[%s] a test by banwatch doctor' % host, machine.wall(),
                       machine.chance()),
                            'The daily summary will come this way.\n')
        problem, _ = run_now(machine, command._replace(stdin=text), MAIL_SECONDS)
        if problem:
            yield Finding(PROBLEM, 'mail: %s' % problem,
                          'see `to` and `sendmail` in [report], and /etc/msmtprc for msmtp-mta')
        else:
            yield Finding(OK,
                          'mail: %s has taken a test for %s; look whether it arrives'
                          % (command.argv[0], settings['to']))


def is_msmtp(path):
    """Is this program, or what it is a link to, msmtp?"""
    return 'msmtp' in os.path.basename(os.path.realpath(path))


def check_room(doctor):
    """Can the state be written, and is there room for it?"""
    directory = os.path.dirname(doctor.config['state'])
    free = doctor.machine.free_bytes(directory)
    if free is None or not doctor.machine.writable(doctor.config['state']):
        yield Finding(PROBLEM, '%s cannot be written' % directory,
                      'bans do not outlive a reboot; set `state`')
    elif free < LITTLE_FLASH:
        yield Finding(WARNING, '%s: %d kB are free' % (directory, free >> 10),
                      'make room: when it is full, bans do not outlive a reboot')
    else:
        yield Finding(OK, '%s: %s kB are free' % (directory, format(free >> 10, ',')))
    m = re.search(r'MemAvailable:\s+(\d+)', doctor.machine.read('/proc/meminfo'))
    if m and int(m.group(1)) < LITTLE_RAM:
        yield Finding(WARNING, 'memory: %s kB are free' % format(int(m.group(1)), ','),
                      'lower `maxtracked` and `maxbans`')
    elif m:
        yield Finding(OK, 'memory: %s kB are free' % format(int(m.group(1)), ','))


def check_jails(doctor):
    """Has a jail of the conf seen nothing for a week?"""
    if not doctor.answer or doctor.answer['uptime'] < 7 * DAY:
        return
    for jail in doctor.answer['jails']:
        silent = jail['filter'] and not jail['failures'] + jail['ignored']
        if silent and jail['jail'] in doctor.config.settings:
            yield Finding(WARNING,
                          '%s: not one failure for %s'
                          % (jail['jail'], duration_text(doctor.answer['uptime'])),
                          'does that daemon log where banwatch '
                          'reads? Try: banwatch.py test %s '
                          'LOGFILE' % shlex.quote(jail['filter']))


def check_rivals(doctor):
    """Does something else here ban addresses, too?"""
    machine = doctor.machine
    found = {RIVALS[name] for name in machine.processes() if name in RIVALS}
    if doctor.config.get(HUB, 'url'):
        found.discard('crowdsec')                  # the agent of which we are a bouncer
    found |= {name for path, name in RIVAL_SCRIPTS.items() if machine.exists(path)
              and glob.glob('/etc/rc.d/S*' + os.path.basename(path))}
    for name in sorted(found):
        yield Finding(WARNING, '%s is here, too' % name,
                      'one of the two is enough; both do no harm')


CHECKS = (check_python, check_conf, check_daemon, check_log, check_log_level, check_firewall,
          check_drops, check_offload, check_traps, check_crowdsec, check_clock, check_mail,
          check_room, check_jails, check_rivals)


def findings(doctor, checks=CHECKS):
    """Yields what the checks find, as lines for a terminal; one that fails is a finding, too."""
    for check in checks:
        rows = check(doctor)
        while True:
            try:
                row = next(rows, None)
            # what a friend cannot see is no reason to go home
            except Exception as e:
                row, rows = Finding(WARNING, '%s: could not be looked at: %s' % (
                    check.__name__[6:], getattr(e, 'strerror', None) or repr(e)),
                                    'the others are not affected'), iter(())
            if row is None:
                break
            remedy = shortened(printable(row.remedy), FINDING_LENGTH - 60)
            yield Finding(row.level,
                          shortened(printable(row.text), FINDING_LENGTH - len(remedy) - 3), remedy)


def ask_doctor(conf, options, words):
    """The command `doctor`: prints all findings; 1 if one is a problem."""
    found, patient = [], Doctor(Quiet(), conf, 'mail' in options)
    if not (patient.answer or patient.machine.root()):         # a daemon that answers is his own
        raise Problem('only root sees its log, firewall and files (try sudo)', os.EX_NOPERM)
    for row in findings(patient):
        found.append(row)
        if 'json' not in options:
            print('%-8s %s%s' % (row.level, row.text, ' (%s)' % row.remedy if row.remedy else ''))
            sys.stdout.flush()
    if 'json' in options:
        print(json.dumps([row._asdict() for row in found]))
    if any(row.level == PROBLEM for row in found):
        return 1
    return 0


COMMANDS['doctor'] = Verb('[--mail] [--json]', ['mail', 'json'], 0, 0,
                          'look at this machine: what works, what does not, and the '
                          'remedy; --mail sends a test mail', ask_doctor)


# ---- Install -------------------------------------------------------------------------------
# Owns: nothing. Puts banwatch where the machine's init system finds it, and takes it out again.
# Always true: each step is said before it is done; what is there already is left as it is, so twice
# is the same as once; a conf that somebody has changed, and the state, are never overwritten.

CRON_TIME = '0 6 * * *'
STEP_SECONDS = 60                    # for a program of the init system
START_SECONDS = 15                   # for a daemon to start on a slow router


def find_init_system(machine, root, kind=None):
    """The Place of that kind, or the one that fits the machine whose files lie under `root` ('' for
    this one)."""
    if kind is not None and kind not in INIT_SYSTEMS:
        raise Problem('--kind %s: there are: %s' % (printable(kind), ' '.join(INIT_SYSTEMS)),
                      os.EX_USAGE)
    if kind:
        return INIT_SYSTEMS[kind]
    signs = [('openwrt', '/etc/openwrt_release'), ('entware', '/opt/etc/init.d/rc.func'),
             ('systemd', '/run/systemd/system')]
    # a machine that runs has said by now what it runs on; an image may have the directories of both
    if root:
        signs.append(('systemd', '/etc/systemd/system'))
    signs.append(('sysvinit', '/etc/init.d'))
    for kind, path in signs:
        if machine.exists(root + path):
            return INIT_SYSTEMS[kind]
    raise Problem(
        'no init system that is known here; name it with --kind (%s), or let yours run: '
        'banwatch.py run' % ' '.join(INIT_SYSTEMS))


class Installer:
    """Does what is to be done to a machine, or only says it."""

    def __init__(self, machine, root, dry_run, kind=None):
        self.machine, self.root, self.dry_run = machine, root, dry_run
        self.place = find_init_system(machine, root, kind)
        self.changed = False         # has anything been done, or would it be?

    def say(self, text, act=None, *words):
        """Says a step, and takes it."""
        print(text)
        self.changed = self.changed or act is not None
        if act and not self.dry_run:
            act(*words)

    def there(self, path):
        """The text of a file under the root, None if there is none."""
        # whole, and with the bytes that are no UTF-8: it is written back
        return self.machine.read(self.root + path, None, 'surrogateescape', -1)

    def write(self, path, text, mode):
        if self.there(path) == text:
            return self.say('%s: is there' % path)
        self.say('%s: written (%d kB)' % (path, len(text) // 1000 + 1), self.put, path, text, mode)

    def put(self, path, text, mode):
        self.machine.make_directory(os.path.dirname(self.root + path))
        self.machine.replace(self.root + path, text.encode('utf-8', 'surrogateescape'), mode)

    def add_lines(self, path, lines):
        """Adds lines to a file that is not ours; each stands there once."""
        text = self.there(path) or ''
        missing = [line for line in lines if line not in text.split('\n')]
        if not missing:
            return self.say('%s: has what it needs' % path)
        new = '\n'.join(missing + [''])
        # a last line without an end stays the last one, so that `uninstall` leaves no trace
        if text and text[-1] != '\n':
            text = new + text
        else:
            text = text + new
        self.say('\n    '.join(['%s: gets' % path] + missing), self.put, path, text,
                 self.machine.mode(self.root + path, 0o644))

    def drop_lines(self, path, wanted):
        """Takes lines out of a file that is not ours."""
        text = self.there(path)
        left = '\n'.join(line for line in (text or '').split('\n') if not wanted(line))
        if text and not left:
            self.remove(path)
        elif text and left != text:
            self.say('%s: loses our lines' % path, self.put, path, left,
                     self.machine.mode(self.root + path, 0o644))

    def run(self, argv):
        if self.root:
            return
        self.say('runs: ' + ' '.join(argv))
        if self.dry_run:
            problem = ''
        else:
            problem = run_now(self.machine, Command(argv), STEP_SECONDS)[0]
        if problem:
            print('    ' + problem)

    def remove(self, path):
        if os.path.lexists(self.root + path):
            self.say('%s: removed' % path, self.machine.remove, self.root + path)

    # what belongs to it
    @property
    def library(self):
        return self.place.program.replace('sbin', 'lib')

    def source(self):
        return self.library + '/banwatch.py.bz2'

    def cron_line(self):
        words = [CRON_TIME, self.place.cron_user, self.place.program, '-c', self.place.conf,
                 'report', '--send', '>/dev/null']
        return ' '.join(filter(None, words))

    def sends(self, line):
        """Is this our line, be it at another hour?"""
        return line[:1] != '#' and self.place.program + ' ' in line and ' report --send' in line

    def sends_any(self, text):
        return any(map(self.sends, (text or '').split('\n')))

    def kept(self):
        """What a firmware upgrade is to keep: no byte code, for its Python may be another one."""
        return [self.place.program, self.library + '/banwatch.py', self.source(), self.place.init,
                self.place.conf, self.place.state] + list(self.place.links)

    def leftovers(self):
        """The byte code of other Pythons."""
        found = glob.glob(glob.escape(self.root + self.library) + '/banwatch.*[0-9].gz')
        found += glob.glob(glob.escape(self.root + self.library) + '/__pycache__/banwatch.*.pyc')
        own = self.machine.byte_code(self.root + self.source())
        return [path[len(self.root):] for path in sorted(found) if path != own]

    def conf_text(self):
        usual = Config()
        if self.place.state != usual['state']:
            usual, _ = read_config('[banwatch]\nstate = %s\n' % self.place.state, 'install')
        return config_text(usual) + '\n'

    def install(self, source):
        """Puts everything in its place; `source` is the text of this program."""
        place = self.place
        self.check_conf()
        print('banwatch %s for %s%s'
              % (VERSION, place.name, ' under ' + self.root if self.root else ''))
        packed_source = bz2.compress(source.encode()).decode('utf-8', 'surrogateescape')
        self.write(self.source(), packed_source, 0o644)
        self.write(self.library + '/banwatch.py', LOADER, 0o644)
        if not self.machine.compiled(self.root + self.source()):
            self.say('%s: compiled for Python %d.%d, so that it starts sooner'
                     % ((self.source(),) + sys.version_info[:2]),
                     self.machine.compile, self.root + self.source(), bool(self.root))
        for path in self.leftovers():
            self.remove(path)
        self.write(place.program, LAUNCHER % (place.python, self.library, self.library), 0o755)
        if self.there(place.conf) is None:
            self.write(place.conf, self.conf_text(), 0o644)
        else:
            self.say('%s: is there, and stays as it is' % place.conf)
        self.write(place.init, place.text, place.mode)
        if self.sends_any(self.there(place.cron)):
            print('%s: has what it needs' % place.cron)
        elif self.machine.exists(self.root + os.path.dirname(place.cron)) or not place.cron_user:
            self.add_lines(place.cron, [self.cron_line()])
        else:
            print('%s: there is no such directory; let cron run each day: %s'
                  % (os.path.dirname(place.cron), self.cron_line()))
        if place.keep:
            self.drop_lines(place.keep, lambda line: line == self.library + '/')
            self.add_lines(place.keep, self.kept())
        for path, target in place.links.items() if self.root else ():
            if not os.path.islink(self.root + path):
                self.say('%s: linked' % path, self.machine.link, target, self.root + path)
        # who runs already what was there already is left alone
        for argv in place.crond + place.start:
            self.run(argv if self.changed
                     else ['start' if word == 'restart' else word for word in argv])
        if not (self.root or self.dry_run):
            self.ask_daemon()
        if not self.root and not self.machine.which('sendmail') and not self.machine.exists(
            '/usr/lib/sendmail'):
            print('There is no sendmail yet: for the daily summary install '
                  'msmtp-mta, and set `to` in %s.' % place.conf)

    def check_conf(self):
        """Problem if the conf that is there has mistakes: with them no daemon would start."""
        if self.there(self.place.conf) is not None:
            read_conf(self.root + self.place.conf)

    def ask_daemon(self):
        """Says whether the daemon runs by now."""
        until, why = self.machine.ticks() + START_SECONDS, ''
        while self.machine.ticks() < until:
            try:
                answer = ask_daemon(readable_conf(self.place.conf), {'do': 'status'})
                print('It runs: banwatch %s, pid %d.' % (answer['version'], answer['pid']))
                return
            except Problem as e:
                why = str(e)
            self.machine.loop.wait(0.2)
        raise Problem('it is in its place, but does not run: %s (see the system log)' % why)

    def uninstall(self, state):
        """Takes out what `install` has put there; the state only if `state` says so."""
        place, files = self.place, self.states()
        for argv in place.stop if self.machine.exists(self.root + place.init) else ():
            self.run(argv)
        for path in [place.init, place.program] + (list(place.links) if self.root else []):
            self.remove(path)
        for argv in place.gone:
            self.run(argv)
        if self.machine.exists(self.root + self.library):
            self.say('%s: removed' % self.library, self.machine.remove_directory,
                     self.root + self.library)
        if place.cron_user:
            self.remove(place.cron)
        else:
            before = self.there(place.cron)
            self.drop_lines(place.cron, self.sends)
            # crond reads its file again only then
            for argv in place.crond[-1:] if self.sends_any(before) else ():
                self.run(argv)
        if place.keep:
            self.drop_lines(place.keep, lambda line: line in self.kept())
        if self.there(place.conf) == self.conf_text():
            self.remove(place.conf)
        elif self.there(place.conf) is not None:
            print('%s: stays, for somebody has changed it' % place.conf)
        files = [path for path in files if os.path.lexists(self.root + path)]
        if files and state():
            for path in files:
                self.remove(path)
        elif place.state in files:
            print('%s: stays (bans and history)' % place.state)

    def states(self):
        """Where the conf has both state files; what stands there now, and where `install` has
        put the one that outlives a reboot."""
        config = readable_conf(self.root + self.place.conf)
        return list(dict.fromkeys([self.place.state, config['state'],
                                   os.path.join(config['runtime'], 'state.json')]))


def make_installer(options):
    """The Installer that the options ask for; Problem if they or this user cannot have it."""
    if options.get('root') == '':
        raise Problem('--root: which directory?', os.EX_USAGE)
    os.umask(0o022)                                # everybody may look, whatever root's shell says
    machine, root = Machine(), options.get('root', '').rstrip('/')
    if root and not os.path.isdir(root):
        raise Problem('%s: is not a directory' % printable(root))
    if not (machine.root() or root or 'dry-run' in options):
        raise Problem('only root can do that (try --dry-run)', os.EX_NOPERM)
    if not (root or 'dry-run' in options):
        machine.be_called(
            'banwatch-setup')        # or Entware's `killall banwatch` would wait for us to end
    return Installer(machine, os.path.abspath(root) if root else '', 'dry-run' in options,
                     options.get('kind'))


def install_here(conf, options, words):
    """The command `install`."""
    here, machine = os.path.realpath(__file__), Machine()
    if 'COMPILED' in globals():                    # it is installed already
        text = machine.unpacked(here + '.bz2').decode()
    else:
        text = machine.read_or_none(here if here.endswith('.py') else here[:-1])
    if not text or not text.startswith('#!'):
        raise Problem('%s: this is not the source; run banwatch.py itself' % here)
    make_installer(options).install(text)
    return 0


def uninstall_here(conf, options, words):
    """The command `uninstall`."""
    def state():
        if 'state' in options:
            return True
        if 'dry-run' in options or not sys.stdin.isatty():
            return False
        print('Remove the bans and their history, too? [y/N] ', end='', flush=True)
        return sys.stdin.readline().strip().lower() in ('y', 'yes')
    make_installer(options).uninstall(state)
    return 0


COMMANDS.update({
    'install': Verb('[--dry-run] [--root DIR] [--kind KIND]', ['dry-run', 'root=', 'kind='], 0, 0,
                    'put it in its place: program, conf, init script, cron line; says each step; '
                    'start it;\n      --root: into the files of an image; '
                    '--kind: openwrt entware systemd sysvinit',
                    install_here),
    'uninstall': Verb('[--dry-run] [--root DIR] [--kind KIND] [--state]',
                      ['dry-run', 'root=', 'kind=', 'state'], 0, 0,
                      'take all that out again; asks before the state, --state does not',
                      uninstall_here)})


# ---- Gate ----------------------------------------------------------------------------------
# Owns: nothing of the daemon's. For Python servers of one's own, which import this file: may who
# connects come in? Always true: who is exempt passes; what is remembered has a limit; a daemon that
# does not answer delays nobody for longer than GATE_SECONDS.

GATE_SECONDS = 0.05                  # for a daemon to answer
GATE_RETRY = 5                       # seconds until it is asked again
GATE_MEMORY = 10000                  # addresses
GATE_LONGEST = DAY                   # no ban is extended beyond this


def gate(maxretry=3, findtime=30, bantime=360, extend=360, ignoreip=(), banip=(), jail=None,
         daemon=None, clock=functools.partial(Machine.ticks, None)):
    """A function of an address (text) that says whether to accept its connection, and counts it:
    `maxretry` within `findtime` seconds are accepted, one more is refused and shuts it out for
    `bantime`, each attempt meanwhile for `extend` more (a day at most). `ignoreip` always passes,
    `banip` never: addresses and networks, in a text or one by one. With `daemon`, the path of a
    daemon's socket, that one decides by its jail `jail` instead, as long as it answers."""
    exempt, refused = (merge_ranges([make_exempt(net, 'gate') for net in gate_networks(nets)])
                       for nets in (ignoreip, banip))
    seen, banned = Recent(GATE_MEMORY), Recent(GATE_MEMORY)
    line = daemon and DaemonLine(daemon, jail, clock)

    def accept(ip):
        now, ip = clock(), address(ip)
        if exempt_reason(ip, exempt):
            return True
        if exempt_reason(ip, refused):
            return False
        if line:
            answer = line.ask(ip, now)
            if answer is not None:
                return answer
        key = network_of(ip, 32, 64)
        until = banned.get(key)
        if until is not None and now < until:
            banned.put(key, min(until + extend, now + max(bantime, GATE_LONGEST)))
            return False
        if until is not None:
            del banned[key]
            seen.pop(key, None)
        moments = seen.get(key)
        if moments is None:
            moments = [now]
        else:
            slide(moments, now, 1, findtime, maxretry + 1)
        seen.put(key, moments)
        if len(moments) > maxretry:
            banned.put(key, now + bantime)
            return False
        return True
    return accept


def gate_networks(nets):
    """The networks of a text, blanks or commas between, or of a list; ValueError for what is
    none."""
    return [network_of(word) for word in (name_list(nets) if isinstance(nets, str) else nets)]


class DaemonLine:
    """One connection to a daemon, kept, on which it is asked who may come in."""

    def __init__(self, path, jail, clock):
        self.path, self.jail, self.clock = path, jail, clock
        self.sock, self.again = None, float('-inf')          # ... when it may be tried again

    def ask(self, ip, now):
        """True or False, None if there is no answer in time."""
        if now < self.again:
            return None
        try:
            if self.sock is None:
                self.sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
                self.sock.settimeout(GATE_SECONDS)
                self.sock.connect(self.path)
            request = {'do': 'gate', 'jail': self.jail, 'ip': ip, 'keep': True}
            self.sock.sendall(json.dumps(request).encode() + b'\n')
            said = b''
            while not said.endswith(b'\n'):
                chunk = self.sock.recv(REQUEST_BYTES)
                if not chunk:
                    raise OSError('it has hung up')
                said += chunk
            return json.loads(said.decode())['accept']
        except (OSError, ValueError, KeyError):
            if self.sock is not None:
                self.sock.close()
            self.sock, self.again = None, now + GATE_RETRY
            return None


def answer_gate(daemon, request, reply):
    """Whether an address may come in by a jail's limits; counts its connection."""
    jail, ip = requested_jail(daemon, request), request.get('ip')
    try:
        ip = address(ip)
    except (ValueError, AttributeError, TypeError):
        raise Problem('not a valid request', os.EX_USAGE) from None
    if jail is None:
        raise Problem('which jail?', os.EX_USAGE)
    daemon.weigh(jail, LogEvent(ip, None, 1, False, daemon.machine.ticks()))
    bans = daemon.judge.bans
    accept = jail.key_of(ip)[1] not in bans.tickets or bool(jail.refusal(ip))
    reply({'accept': accept})


ANSWERS['gate'] = answer_gate


# ==== Part III: the appendix. Data that functions of any part may read. ======================

# ---- Appendix ------------------------------------------------------------------------------
# Owns: the built-in filters and rules, the forms of dates, the scripts of init systems, the page's style, the metrics.
# Always true: it is data; nothing in it runs before it is asked for.

# name, kind, help, which part of the answer of `status` holds it ('': itself), the label of its rows ('': none), and
# the number in them; of `trouble`, whether there is none
METRICS = (
    ('info', 'gauge', 'The version that runs.', '', 'version', 'one'),
    ('uptime_seconds', 'gauge', 'Seconds since its start.', '', '', 'uptime'),
    ('resident_memory_bytes', 'gauge', 'Resident memory.', '', '', 'bytes'),
    ('failures_total', 'counter', 'Failed logins.', 'jails', 'jail', 'seen'),
    ('failures_taken_back_total', 'counter', 'Failed logins that a login has taken back.', 'jails', 'jail', 'taken_back'),
    ('failures_ignored_total', 'counter', 'Failed logins of those who are never banned.', 'jails', 'jail', 'ignored'),
    ('bans_total', 'counter', 'New bans.', 'jails', 'jail', 'bans'),
    ('banned', 'gauge', 'Bans in force.', 'jails', 'jail', 'banned'),
    ('tracked', 'gauge', 'Addresses with recent failures.', 'jails', 'jail', 'tracked'),
    ('dropped_packets_total', 'counter', 'Packets of the banned that the kernel has dropped.', 'drops', 'jails', 'packets'),
    ('log_lines_total', 'counter', 'Log lines read.', 'sources', 'source', 'lines'),
    ('log_idle_seconds', 'gauge', 'Seconds since the last line.', 'sources', 'source', 'idle'),
    ('log_up', 'gauge', '1 if the source can be read.', 'sources', 'source', 'trouble'),
    ('firewall_up', 'gauge', '1 if the firewall does as it is told.', 'firewall', 'name', 'trouble'),
    ('firewall_entries', 'gauge', 'Networks that it is to shut out.', 'firewall', 'name', 'rules'),
    ('action_up', 'gauge', '1 if the commands of an action succeed.', 'actions', 'name', 'trouble'),
    ('problems', 'gauge', 'Lines that status tells as WRONG.', '', '', 'wrong'),
    ('last_mail_timestamp_seconds', 'gauge', 'When the last summary was mailed.', '', '', 'mailed'),
    ('crowdsec_decisions', 'gauge', 'Decisions of the CrowdSec in force.', 'crowdsec', '', 'decisions'),
    ('crowdsec_pushed_total', 'counter', 'Bans that the CrowdSec was told of.', 'crowdsec', '', 'pushed'),
    ('crowdsec_waiting', 'gauge', 'Bans that it is still to be told of.', 'crowdsec', '', 'waiting'))

FILTERS = {
    'dropbear': r'''
[Definition]
program = dropbear

# `dropbear -E`, caught by procd, writes the connection's pid and its date in front
prefregex = ^(?:\[<F-MLFID>\d+</F-MLFID>\] \w{3} [ \d]\d \d\d:\d\d:\d\d )?<F-CONTENT>.+</F-CONTENT>$
# 2026.94 cuts the port of an IPv6 client short, down to nothing: the address is whole where its bracket closes
client = <HOST>(?::\d+|(?<=\]):?)

failregex = ^<F-NOFAIL>Child connection</F-NOFAIL> from <client>$
            ^<F-MLFGAINED>(?:(?:PAM )?[Pp]assword auth succeeded|[Pp]ubkey auth succeeded|Auth succeeded with blank password)</F-MLFGAINED> for '<F-USER>[^']*</F-USER>'(?: with (?:\S+ )?key (?:\S+ )?\S+)? from <client>$

            ^[Bb]ad (?:PAM )?password attempt for '<F-USER>.*</F-USER>' from <client>$
            ^Too-long password attempt for '<F-USER>.*</F-USER>' from <client>$
            ^Pubkey auth bad signature for '<F-USER>.*</F-USER>' with (?:\S+ )?key (?:\S+ )?\S+ from <client>$
            ^[Ll]ogin attempt for nonexistent user(?: '.*')? from <client>$
            ^Login attempt for nonexistent user$
            ^Login attempt with wrong user \S+ from <client>$
            ^Login attempt with wrong user \S+$
            ^User '<F-USER>.*</F-USER>' has (?:invalid shell|blank password), rejected$
            ^Logins are restricted to the group \S+ but user '<F-USER>.*</F-USER>' is not a member$
            ^User account '<F-USER>.*</F-USER>' is locked$
            ^root login rejected$
            ^Client trying multiple usernames from <client>$

            ^pam_\w+\(dropbear:auth\): authentication failure; logname=\S* uid=\d* euid=\d* tty=\S* ruser=\S* rhost=<HOST>(?:\s+user=<F-USER>.*</F-USER>)?\s*$

            ^Exit before auth from <<client>>: <guessed>
            ^[Ee]xit before auth(?: \(user '.{0,128}', \d+ fails\))?: (?:Max auth tries reached - user '.*'|Client trying multiple usernames) from <client>$
            ^[Ee]xit before auth:? <guessed>
            <mode-<mode>>

guessed = (?:\(user '.{0,128}', [1-9]\d* fails\):|Max auth tries reached - user '|Client trying multiple usernames|Attempted username with a null byte)
# normal: guesses. A connection that names no user (ssh-keyscan, a monitor of the port) is a probe: ddos counts
# those, extra those that have no algorithm in common with the server. aggressive: both, and who names a user only.
mode = normal
mode-normal = ^<F-NOFAIL>Exit before auth</F-NOFAIL> from <<client>>:
mode-ddos = <probe>
            <mode-normal>
mode-extra = <no-algorithm>
            <mode-normal>
mode-aggressive = <probe>
            <no-algorithm>
            ^Exit before auth from <<client>>: \(user '.{0,128}', 0 fails\):
            ^[Ee]xit before auth \(user '.{0,128}', 0 fails\):
probe = ^Exit before auth from <<client>>: (?!\(user '|No matching algo )
            ^[Ee]xit before auth: (?!No matching algo )
no-algorithm = ^Exit before auth from <<client>>: No matching algo[ ]
            ^[Ee]xit before auth: No matching algo[ ]
''',
    'sshd': r'''
[Definition]
program = sshd(?:-session|-auth|\(pam_unix\))?
escapes = sshd

# sshd writes up to 100 bytes of a name, but four characters for each that is not ASCII and two for
# a backslash: so its lines are long enough to be cut
prefregex = ^(?:\[ID \d+ \S+\] )?(?:error: |fatal: )?<F-CONTENT>.+</F-CONTENT>$

# The last lines of a connection have no such limit, but their names are cut to .{0,64} here, so that
# a whole line is shorter than what any log daemon lets through (and sshd itself cuts at 500 bytes).
failregex = ^<F-MLFGAINED>Accepted</F-MLFGAINED> \S+ for <F-USER>\S+</F-USER> from <HOST> port \d+(?: ssh\d)?(?:: .*)?$

            ^Failed (?!none |publickey |hostbased |keyboard-interactive)\S+ for <F-USER>\S+</F-USER> from <HOST> port \d+ ssh\d(?: \[preauth\]|:.*)?$
            ^Failed (?!none |publickey |hostbased |keyboard-interactive)\S+ for (?:invalid user |illegal user )?<F-USER>.{0,450}</F-USER> from <HOST> port \d+(?: ssh\d)?(?: \[preauth\])?$
            ^Failed (?!none |publickey |hostbased )\S+ for (?:invalid user |illegal user )?<F-USER>\S+</F-USER> from <HOST>$
            ^PAM: (?:(?! for ).){1,100}(?: for service)? for (?:illegal user |invalid user )?<F-USER>.{0,450}</F-USER> from <HOST>(?: via \S+)?(?: \[preauth\])? ?$

            ^Failed keyboard-interactive\S* for <F-USER>\S+</F-USER> from <HOST> port \d+ ssh\d:
            ^Failed keyboard-interactive\S* for (?:invalid user |illegal user )?<F-USER>.{0,450}</F-USER> from <HOST> port \d+(?: ssh\d)?(?: \[preauth\])?$

            ^Failed publickey for (?:invalid user|illegal user) <F-USER>.{0,450}</F-USER> from <HOST> port \d+(?: ssh\d)?(?:: \S+ \S+)?(?: \[preauth\])?$

            ^Failed <F-CHILD>none</F-CHILD> for (?:invalid user |illegal user )?<F-USER>.{0,450}</F-USER> from <HOST> port \d+(?: ssh\d)?(?: \[preauth\])?$

            ^Failed <F-DISTINCT>hostbased</F-DISTINCT> for <F-USER>\S+</F-USER> from <HOST> port \d+(?: ssh\d)?(?:: |$)

            ^[Ii]nvalid user(?: <F-USER>.{0,450}</F-USER>)? from <HOST>(?: port \d+)?(?: \[preauth\])? ?$
            ^[Ii]llegal user(?: <F-USER>.{0,450}</F-USER>)? from <HOST>(?: port \d+)?(?: \[preauth\])? ?$

            ^pam_unix\(sshd:auth\): <F-CHILD>authentication failure</F-CHILD>; logname=\S* uid=\d* euid=\d* tty=\S* ruser=\S* rhost=<HOST>(?:\s+user=<F-USER>.*</F-USER>)?(?: \[preauth\])?\s*$
            ^<F-CHILD>authentication failure</F-CHILD>; logname=\S* uid=\d* euid=\d* tty=\S* ruser=\S* rhost=<HOST>(?:\s+user=<F-USER>.*</F-USER>)?\s*$

            ^pam_(?!unix)\w+\(sshd:auth\): <F-CHILD>authentication failure</F-CHILD>; logname=\S* uid=\d* euid=\d* tty=\S* ruser=\S* rhost=<HOST>(?:\s+user=<F-USER>.*</F-USER>)?(?: \[preauth\])?\s*$

            ^(?:PAM )?\d+ more <F-CHILD>authentication failure</F-CHILD>s?; logname=\S* uid=\d* euid=\d* tty=\S* ruser=\S* rhost=<HOST>(?:\s+user=<F-USER>.*</F-USER>)?(?: \[preauth\])?\s*$

            ^User <F-USER>.{0,450}</F-USER> from <HOST> not allowed because (?:not listed in AllowUsers|listed in DenyUsers|not in any group|none of user's groups are listed in AllowGroups|a group is listed in DenyGroups|account is locked|shell \S+ (?:does not exist|is not executable))(?: \[preauth\])? ?$

            ^ROOT LOGIN REFUSED FROM <HOST>(?: port \d+)?(?: \[preauth\])?$

            ^maximum authentication attempts exceeded for (?:invalid user |illegal user )?<F-USER>.{0,450}</F-USER> from <HOST> port \d+(?: ssh\d)?(?: \[preauth\])?$

            ^Received disconnect from (?=\S+ (?:port \d+: ?)?3: |\S+:3: )<HOST>(?: port \d+)?: ?3: .*: Auth fail

            ^Disconnecting (?:(?:invalid|authenticating) user <F-USER>.{0,64}</F-USER> )?<HOST> port \d+: Too many authentication failures(?: \[preauth\])?$
            ^Disconnecting: Too many authentication failures
            ^Disconnecting (?:invalid|authenticating) user <F-USER>\S{1,12}</F-USER> <HOST> port \d+: Change of username or service not allowed: \(\S{1,12},ssh-connection\) -> \(\S{0,32}(?: \[preauth\])?$
            ^Connection (?:closed|reset) by invalid user <F-USER>.{0,64}</F-USER> <HOST> port \d+(?: \[preauth\])?$
            ^Disconnected from invalid user <F-USER>.{0,64}</F-USER> <HOST> port \d+(?: \[preauth\])?$

            ^Bad protocol version identification '.{0,100}' from <HOST>(?: port \d+)?(?: \[preauth\])?$
            ^banner exchange: Connection from <HOST> port \d+: (?:invalid format|could not read protocol version)(?: \[preauth\])?$
            ^Protocol major versions differ for <HOST>(?: port \d+)?:
            ^scanned from <HOST>(?: port \d+)? with
            ^probed from <HOST>(?: port \d+)? with
            ^Magic value check failed \(\d+\) on obfuscated handshake from <HOST>(?: port \d+)?(?: \[preauth\])?$
            ^refused connect from \S+ \(<HOST>\)$
            ^drop connection #\d+ from <HOST>:\d+ on \S+ penalty: (?!connections without attempting )
            ^Timeout before authentication for (?:connection from )?<HOST>(?: port \d+)?(?: to \S+, pid = <F-MLFID>\d{1,10}</F-MLFID>(?:[^\d\s]\S{0,100})?)?(?: \[preauth\])?$
            ^<F-NOFAIL>Connection from</F-NOFAIL> <HOST>(?: port \d+)?(?: on .*)?$

            <mode-<mode>>

# normal: failed guesses, and what does not speak SSH. ddos: also connections that come to no login.
# extra: also clients that have no algorithm or method in common with the server. aggressive: both.
mode = normal
mode-normal =
mode-ddos = ^kex_exchange_identification: (?:read: )?(?:[Cc]onnection (?:closed by remote host|reset by peer)|[Cc]lient sent invalid protocol identifier|banner line (?:too long|contains invalid))
            ^Read from socket failed: Connection reset by peer(?: \[preauth\])?$

            ^Did not receive identification string from <HOST>(?: port \d+)?(?: \[preauth\])?$
            ^drop connection #\d+ from <HOST>:\d+ on \S+ penalty: connections without attempting[ ]
            ^Connection (?:closed|reset) by <HOST>(?: port \d+)? \[preauth\]$
            ^Connection (?:closed|reset) by authenticating user <F-USER>.{0,64}</F-USER> <HOST> port \d+(?: \[preauth\])?$
            ^Disconnected from <HOST>(?: port \d+)? \[preauth\]$
            ^Disconnected from authenticating user <F-USER>.{0,64}</F-USER> <HOST> port \d+(?: \[preauth\])?$
            ^Connection from (?:authenticating user <F-USER>.{0,64}</F-USER> )?<HOST> port \d+ timed out(?: \[preauth\])?$
            ^banner exchange: Connection from <HOST> port \d+:
            ^ssh_dispatch_run_fatal: Connection from <HOST> port \d+: .* \[preauth\]$
            ^<F-NOFAIL>Connection (?:closed|reset)</F-NOFAIL> by <HOST>(?: port \d+)?$
            ^<F-NOFAIL>SSH: Server;Ltype:</F-NOFAIL> \w+;Remote: <HOST>-\d+;
mode-extra = ^Unable to negotiate with <HOST>(?: port \d+)?: no matching
            ^Unable to negotiate a key exchange method(?: \[preauth\])?$
            ^no matching [a-zA-Z ]{3,40} found: client

            ^Received disconnect from <HOST>(?: port \d+)?: ?14: No [a-z ]{0,32}authentication methods available

            ^Disconnected from authenticating user <F-USER>.{0,64}</F-USER> <HOST> port \d+(?: \[preauth\])?$
mode-aggressive = <mode-ddos>

            <mode-extra>
''',
    'luci': r'''
[Definition]
# The path and the user are the client's own text. This log cannot be trusted (a user name may hold
# line breaks), so its bans close the web's ports only, and its logins forgive nobody: see JAILS.
program = (?:uhttpd|luci|nginx|uwsgi(?:-luci)?|lighttpd|dispatcher\.uc)?
prefregex = ^(?:\[info\] )?(?:luci: )?<F-CONTENT>.+</F-CONTENT>$
failregex =
    ^<F-MLFGAINED>accepted login</F-MLFGAINED> on /.* for <F-USER>\S+</F-USER> from <HOST>$

    ^failed login on /.* for <F-USER>(?:(?! for ).)*</F-USER> from <HOST>$
    ^auth plugin '[^']{1,64}' verification failed for <F-USER>.*</F-USER> from <HOST>$

    ^<F-CUT>failed login on /</F-CUT>
''',
    'vsftpd': r'''
[INCLUDES]
before = common-pam.conf
[Definition]
# A guess is told by vsftpd (a process for each connection, whose pid only some log daemons write) and by
# PAM, perhaps by two of its modules: what they have in common is the address, so that is the connection.
program = vsftpd(?:\(pam_\w+\))?
prefregex = ^(?=.*(?: Client "| rhost=)(?:::ffff:)?<F-MLFID>[\w.:%-]{1,64}</F-MLFID>)<F-CONTENT>.+</F-CONTENT>$
# The user's name, and paths in the lines of other events, are the client's text: an event has its name in
# front of it, so a line with another one before FAIL LOGIN is not ours. The names are short enough
# that a log daemon which cuts lines at 255 bytes cannot make one of them end in an address of theirs.
head = (?:\w{3} \w{3} [ \d]\d [\d:]{8} \d{4} )?(?:\[pid \d+\] )?
failregex = ^<head>\[<F-USER>[^\]"]*</F-USER>\] <F-MLFGAINED>OK LOGIN: Client</F-MLFGAINED> "(?:::ffff:)?<HOST>"$

            ^<head>(?:\[<F-USER>(?:(?!\] (?:OK |FTP |DEBUG|FAIL (?!LOGIN))[ A-Za-z]*: Client ").){0,128}</F-USER>\] )?FAIL LOGIN: Client "(?:::ffff:)?<HOST>"(?:, "User is [a-z ]+ user list\.?")?$

            <pam-unix>

            <pam-other>
''',
    'proftpd': r'''
[INCLUDES]
before = common-pam.conf
[Definition]
# A guess is told by proftpd and by PAM (without a pid), perhaps by two of its modules: what they have in
# common is the address, so that is the connection. An event has the address in front of all that the
# client has written: through syslog `server (name[address]) - text`, in its own log
# `host proftpd[pid] server (name[address]): text`. Keys are left out: honest clients offer several.
program = (?:in\.)?proftpd(?:\(pam_\w+\))?
prefregex = ^(?=(?:[^()]*\([^ ()\[\]]*\[|.* rhost=)(?:::ffff:)?<F-MLFID>[\w.:%-]{1,64}</F-MLFID>)<F-CONTENT>.+</F-CONTENT>$
head = (?:[\d-]{10} [\d:]{8}(?:,\d+)? )?(?:(?:\S+ )?(?:proftpd|session)\[\d+\]:? )?(?:\S+ )?\([^ \[\]()]*\[(?:::ffff:)?<HOST>\]\)(?: -|:)
failregex = ^(?!.{220})<head> USER <F-USER>[^ :]{1,64}</F-USER>: <F-MLFGAINED>Login successful</F-MLFGAINED>\.?\s*$

            ^<head> USER <F-USER>.{0,600}?</F-USER>(?: \(Login failed\))?: (?:[Nn]o such user found|(?:[Uu]ser is n|N|n)ot a UserAlias)\.?(?: from \S+ \[\S+\] to \S+)?\s*$
            ^<head> (?:USER|ANON) <F-USER>.{0,600}?</F-USER>(?: \(Login failed\))?: [Ll]imit (?:access|configuration) denies login\.?\s*$
            ^<head> USER <F-USER>.{0,600}</F-USER> \(Login failed\): (?:[Ii]ncorrect password|Can't find user|[Pp]assword expired|[Aa]ccount disabled|Insufficient credentials|New authentication token required|[Ii]nvalid shell: '[^']*'|[Uu]ser in /?[\w./-]+|[Mm]aximum (?:USER|login) length exceeded|[Uu]ser not authorized for login|Max authentication service attempts reached|Unable to retrieve user information: .{1,200}|requested (?:public|host) key is blacklisted|signature verification of '[^']*' (?:public|host) key failed)\.?\s*$
            ^<head> SECURITY VIOLATION: <F-USER>[Rr]oot</F-USER> login attempted\.?\s*$

            ^<head> no such user '<F-USER>.{0,600}</F-USER>'\s*$

            ^<head> (?:mod_auth_pam/[\d.]+: )?PAM\(<F-USER>.{0,600}</F-USER>\): Authentication failure\.?\s*$
            ^<head> (?:mod_auth_pam/[\d.]+: )?PAM\(<F-USER>.{0,600}</F-USER>\): User not known to the underlying authentication module\.?\s*$

            ^<head> Maximum login attempts (?:\(\d+\) )?exceeded(?:, connection refused|, refusing connection for user '<F-USER>.{0,600}</F-USER>')?\.?\s*$

            <pam-unix>

            <pam-other>
''',
    'pure-ftpd': r'''
[INCLUDES]
before = common-pam.conf
[Definition]
# A guess is told by pure-ftpd (which writes its pid only if asked to) and by PAM, perhaps by two of its
# modules: what they have in common is the address, so that is the connection. Nobody is logged in when a
# guess fails, so the account in front of the address is always `?`: no text of the client's.
program = pure-ftpd(?:-\w+)?(?:\(pam_\w+\))?
prefregex = ^(?=(?:\(\?@|.* rhost=)(?:::ffff:)?<F-MLFID>[\w.:%-]{1,64}</F-MLFID>)<F-CONTENT>.+</F-CONTENT>$
head = \(\?@(?=[^() ]{1,255}\) \[)(?:::ffff:)?<HOST>\)
failregex = ^<head> \[INFO\] <F-USER>[^ @()\[\]]{1,64}</F-USER> <F-MLFGAINED>is now logged in</F-MLFGAINED>$

            ^<head> \[WARNING\] Authentication failed for user \[<F-USER>.{0,600}</F-USER>\]\.?\s*$
            ^<head> \[WARNING\] (?:Godkendelse mislykkedes for|Godkjennelse mislyktes for|Authentifizierung fehlgeschlagen f\S+ Benutzer|Autentificaci\S+ fallida para el usuario|Erreur d'authentification pour l'utilisateur|Azonos\S+ sikertelen|Autenticazione fall?ita per l'utente|Autorisatie faalde voor gebruiker|Autentica\S+ falhou para usu\S+|Autentificare e\S+ pentru utilizatorul|Autentifik\S+ u\S+ (?:selhala|zlyhala)|Autentyfikacja nie powiod\S+ si\S+ dla u\S+|Beh\S+righetskontroll misslyckas f\S+ anv\S+) \[<F-USER>.{0,600}</F-USER>\](?:\.| felh\S+)?\s*$

            ^<head> \[WARNING\] Can't login as \[<F-USER>.{0,600}</F-USER>\]: account disabled(?: \(uid < \d+\))?\s*$

            ^<head> \[(?:ERROR|WARNING)\] Too many authentication failures\s*$

            <pam-unix>

            <pam-other>
''',
    'openvpn': r'''
[INCLUDES]
before = common-pam.conf
[Definition]
# One process serves all clients, and PAM's lines have no port: the connection is the address. `normal` takes
# only what a client cannot bring about without having read the server's answers; a single packet may come
# from anywhere over UDP, so what it brings about is left to mode=aggressive. The name before the slash is a
# certificate's, so the address is what follows the last slash of the first word: IPv4 with a port, IPv6
# without one. The seven (?<!...) say that an address does not end as `.7:51820` does, where <HOST> is greedy.
program = (?:openvpn|ovpn)[^ :\[\]]*|Error
address = first
prefregex = ^(?=(?:(?:(?:[\d-]{10} [\d:]{8} |\w{3} \w{3} [ \d]\d [\d:]{8} \d{4} )?(?:us=\d+ )?(?:\S{1,128}/)?(?:(?:udp|tcp)[46]?(?:-server)?:)?|.* rhost=|.* from \[AF_INET6?\])(?:::ffff:)?\[?<F-MLFID>(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9a-fA-F:]{2,45})</F-MLFID>(?:[\]: ]|$)))<F-CONTENT>.+</F-CONTENT>$
mode = normal
head = (?:[\d-]{10} [\d:]{8} |\w{3} \w{3} [ \d]\d [\d:]{8} \d{4} )?(?:us=\d+ )?(?=\S{3,200} )(?:\S{1,128}/)?(?:(?:udp|tcp)[46]?(?:-server)?:)?(?:::ffff:)?<HOST>(?<!\.\d:\d)(?<!\.\d:\d\d|\.\d\d:\d)(?<!\.\d:\d{3}|\.\d\d:\d\d|\.\d{3}:\d)(?<!\.\d:\d{4}|\.\d\d:\d{3}|\.\d{3}:\d\d)(?<!\.\d:\d{5}|\.\d\d:\d{4}|\.\d{3}:\d{3})(?<!\.\d\d:\d{5}|\.\d{3}:\d{4})(?<!\.\d{3}:\d{5})(?::\d+)?(?: peer-id=\d+)?
mdre-normal =
mdre-aggressive = ^<head> TLS Error: TLS handshake failed$

            ^(?:us=\d+ )?(?:\S+ )?(?:TLS Error: )?(?:cannot locate HMAC in incoming packet|incoming packet authentication failed|tls-crypt unwrapping failed|could not determine wrapping|can not extract tls-crypt-v2 client key) from \[AF_INET6?\](?:::ffff:)?<HOST>:\d+(?: \(via [^() ]*\))?$
failregex = ^<head> TLS Auth Error: Auth Username/Password verification failed for peer$
            ^<head> TLS Error: Auth Username/Password was not provided by peer$
            ^<head> VERIFY ERROR: depth=\d+, error=(?:[sS]elf[- ]signed certificate(?: in certificate chain)?|unable to get (?:local )?issuer certificate|unable to verify the first certificate|certificate revoked|certificate signature failure|certificate rejected|certificate not trusted|invalid CA certificate|(?:unsupported|unsuitable) certificate purpose|certificate chain too long): .*$
            ^<head> VERIFY ERROR: depth=\d+, subject=.*: The certificate (?:is not correctly signed by the trusted CA|has been revoked \(is on a CRL\)).*$
            ^<head> VERIFY (?:X509NAME|SCRIPT|PLUGIN|KU|EKU|nsCertType) ERROR(?:: .*)?$
            ^<head> VERIFY CRL: depth=\d+, .* is revoked$
            ^<head> CRL CHECK FAILED: .* is REVOKED$

            ^<head> TLS Auth Error: (?:peer provided a blank username|username attempted to change from '.*|TLS object CN.* (?:attempted to change from|client-provided SSL certs unexpectedly changed) .*|--client-config-dir authentication failed for common name '.*|--username-as-common name specified and username is longer than .*)$

            ^<head> SENT CONTROL \[UNDEF\]: 'AUTH_FAILED' \(status=1\)$

            ^<head> SENT CONTROL \[(?!UNDEF\]).*\]: 'AUTH_FAILED' \(status=1\)$

            ^<head> PLUGIN_CALL: plugin function PLUGIN_AUTH_USER_PASS_VERIFY failed with status 1: \S+$
            ^<head> WARNING: Failed running command \(--auth-user-pass-verify\): external program exited with error status: \d+$

            <pam-unix>

            <pam-other>

            <mdre-<mode>>
''',
    'asterisk': r'''
# asterisk 1.8 to 22: chan_sip, res_pjsip, chan_iax2, the manager and the security log. One guess may
# write a NOTICE and a SecurityEvent, and of a name that PJSIP does not know more of each: so there are
# kinds, and one connection per address although asterisk's own log has no tag (F-MLFID is the same in
# every line). Not counted: a wrong number dialled by an authenticated phone, a wrong transport.
# Whoever sends by UDP may do so in another's name: bans close asterisk's ports only, and no login is believed.
[Definition]
program = asterisk
prefregex = ^(?:\[[^\]]{8,32}\] )?(?:(?:NOTICE|WARNING|SECURITY) ?\[\d+\](?:\[C-[0-9a-f]+\])?:? )?(?:(?:[\w./-]*/)?(?:chan_sip|chan_iax2|manager|pjsip_distributor|res_pjsip_session|res_security_log)<F-MLFID>\.c</F-MLFID>(?::\d+)?(?: in)?(?: \w+)?|Ext\. s(?::\d+ in @ [\w-]+)?(?=: "Rejecting unknown )): <F-CONTENT>.+</F-CONTENT>$
failregex = ^Registration from '<F-USER>.*</F-USER>' failed for '(?=\d+\.[\d.]+:|\[)<HOST>:\d+' - (?:Wrong password|Username/auth name mismatch|No matching peer found|Not a local domain|Device does not match ACL|Peer is not supposed to register|ACL error \(permit/deny\))$
            ^Registration from '<F-USER>.*</F-USER>' failed for '(?!\d+\.[\d.]+:|\[)<HOST>' - (?:Wrong password|Username/auth name mismatch|No matching peer found|Not a local domain|Device does not match ACL|Peer is not supposed to register|ACL error \(permit/deny\))$
            ^Request (?:'\S+' )?from '(?:"(?:[^"\\]|\\.)*" ?)?<(?:sips?:|tel:)?<F-USER>[^<>"@]*</F-USER>(?:@[^<>"]*)?>' failed for '<HOST>:\d+' \(callid: .*\) - (?:Failed to authenticate|Error to authenticate|Not match Endpoint(?: Contact)? ACL)(?: after \d+ tries in [\d.]+ ms)?\s*$
            ^Call from '(?:anonymous(?:@[\w.-]+)?)?' \((?:[A-Z]\w*:)?<HOST>:\d+\) to extension '.*' rejected because extension not found(?: in context '[^']*')?\.?$
            ^"Rejecting unknown SIP connection from (?=\d+\.[\d.]+:|\[)<HOST>:\d+"$
            ^"Rejecting unknown SIP connection from (?!\d+\.[\d.]+:|\[)<HOST>"$
            ^hacking attempt detected '<HOST>'$
            ^(?:Host )?<HOST> failed to authenticate as '<F-USER>.*</F-USER>'$
            ^<HOST> tried to authenticate with nonexistent user '<F-USER>.*</F-USER>'$
            ^<HOST> failed to pass IP ACL as '<F-USER>.*</F-USER>'$
            ^Host <HOST> failed MD5 authentication for '<F-USER>[^']*</F-USER>'
            ^Host <HOST> failed RSA authentication with inkeys '
            ^Host <HOST> did not provide proper plaintext password for '<F-USER>[^']*</F-USER>'
            ^Host <HOST> denied access to register peer '<F-USER>[^']*</F-USER>'
            ^No registration for peer '<F-USER>.*</F-USER>' \(from <HOST>\)$
            ^Peer '<F-USER>.*</F-USER>' is not dynamic \(from <HOST>\)$
            ^Rejected connect attempt from <HOST>, who was trying to reach '

            ^Request (?:'\S+' )?from '(?:"(?:[^"\\]|\\.)*" ?)?<(?:sips?:|tel:)?<F-USER>[^<>"@]*</F-USER>(?:@[^<>"]*)?>' failed for '<HOST>:\d+' \(callid: .*\) - No matching endpoint found(?: after \d+ tries in [\d.]+ ms)?\s*$

            ^SecurityEvent="(?:ChallengeResponseFailed|InvalidPassword)",(?!.*RemoteAddress="[^"]*",[A-Z].*RemoteAddress=)(?:[A-Z]\w+="[\w:+. -]*",){2,4}AccountID="<F-USER>[^"]*</F-USER>".*,LocalAddress="IPV[46]/[A-Z]+/[^"/]*/\d+",RemoteAddress="IPV[46]/[A-Z]+/<HOST>/\d+"(?:,[A-Z]\w+="[^"]*"){0,5}$

            ^SecurityEvent="(?:InvalidAccountID|FailedACL)",(?:[A-Z]\w+="[\w:+. -]*",){2,4}AccountID="<F-USER>[^"]*</F-USER>".*,LocalAddress="IPV[46]/[A-Z]+/[^"/]*/\d+",RemoteAddress="IPV[46]/[A-Z]+/<HOST>/\d+"(?:,(?:Module|ACLName|SessionTV)="[^"]*"){0,3}$

            ^<F-CUT>Registration from '</F-CUT>
            ^<F-CUT>Request</F-CUT> (?:'\S+' )?from '
            ^<F-CUT>SecurityEvent="(?:ChallengeResponseFailed|Invalid(?:Password|AccountID))"</F-CUT>
''',
    'nginx-http-auth': r'''
# nginx's auth_basic and auth_pam. A user name holds no colon, so it cannot hold `client: `; what the client wrote
# after its address (request, host, referrer) is cut off by the tail, not by the line's end.
# A path with %0a in it writes whole lines of the client's own into error.log, and nothing in such a
# line tells it from a true one: bans may close the web's ports only, and no login is believed.
[Definition]
program = nginx
address = first
prefregex = ^(?:\d{4}/\d\d/\d\d \d\d:\d\d:\d\d )?\[error\] \d+#\d+: \*\d+ <F-CONTENT>.+</F-CONTENT>$
failregex = ^user "<F-USER>[^:]*</F-USER>": password mismatch, client: <HOST>, server:[ ]
            ^user "<F-USER>[^:]*</F-USER>" was not found in "[^"]+", client: <HOST>, server:[ ]
            ^PAM: user '<F-USER>[^:]*</F-USER>' - not authenticated: (?:Authentication failure|User not known to the underlying authentication module|Permission denied|Have exhausted maximum number of retries for service), client: <HOST>, server:[ ]
''',
    'lighttpd-auth': r'''
# lighttpd 1.4's http_auth (until 1.4.41) and mod_auth. The path and a digest's user are the client's
# own text and stand before the address. logd trims the blanks that a line which it has cut ends in, so its
# log is no proof: close the web's ports only.
[Definition]
program = lighttpd
prefregex = ^(?:\d{4}-\d\d-\d\d \d\d:\d\d:\d\d: )?\(?(?:http|mod)_auth\.c\.\d+\) <F-CONTENT>.+</F-CONTENT>$
failregex = ^password doesn't match for .* username: <F-USER>[^:]*?</F-USER>,? IP: <HOST> ?$
            ^digest: auth failed for +<F-USER>.*?</F-USER> ?: wrong password, IP: <HOST> ?$
            ^digest: auth failed: uri mismatch \(.*\), IP: <HOST> ?$
            ^get_password failed, IP: <HOST> ?$

            ^<F-CUT>password doesn't match for</F-CUT>
''',
    'postfix': r'''
[Definition]
program = [\w.-]+(?:/[\w.-]+){0,3}/(?:smtpd|postscreen)
address = first
failregex = ^[0-9A-Za-z]+: <F-MLFGAINED>client=</F-MLFGAINED>[\w.-]+\[<HOST>\](?::\d+)?, sasl_method=[^ ,]+, sasl_username=<F-USER>[^,]+</F-USER>(?:, .*)?$

            ^warning: [\w.-]+\[<HOST>\](?::\d+)?: SASL \S+ authentication failed:(?! (?:Connection lost to authentication server|Invalid authentication mechanism|no mechanism available|generic failure|remote authentication server unavailable|[Tt]emporary))(?:.*?, sasl_username=(?!\(unavailable\))<F-USER>.+</F-USER>)?

            ^too many errors after (?:AUTH|UNKNOWN|VRFY|EHLO|HELO) from [\w.-]+\[<HOST>\](?::\d+)?$

            ^warning: non-SMTP command from [\w.-]+\[<HOST>\](?::\d+)?:

            ^improper command pipelining after (?:CONNECT|EHLO|HELO|STARTTLS|AUTH) from [\w.-]+\[<HOST>\](?::\d+)?(?::|$)

            ^[0-9A-Za-z]+: reject: RCPT from unknown\[<HOST>\](?::\d+)?: (?:550 5|450 4)\.1\.1 <<F-DISTINCT>[^<>]+</F-DISTINCT>>: Recipient address rejected: (?:[Uu]ser unknown|[Uu]ndeliverable address)
            ^[0-9A-Za-z]+: reject: VRFY from [\w.-]+\[<HOST>\](?::\d+)?: [45]\d\d

            ^PREGREET \d+ after [\d.]+ from \[<HOST>\]:<F-MLFID>\d+</F-MLFID>:

            ^NON-SMTP COMMAND from \[<HOST>\]:<F-MLFID>\d+</F-MLFID> after

            ^COMMAND PIPELINING from \[<HOST>\]:<F-MLFID>\d+</F-MLFID> after

            <mode-<mode>>
mode = normal
mode-normal =
mode-more = ^warning: [\w.-]+\[<HOST>\](?::\d+)?: SASL .{1,100} authentication failed: (?:Invalid authentication mechanism|no mechanism available)

            ^disconnect from [\w.-]+\[<HOST>\](?::\d+)?(?: (?:ehlo|helo|starttls)=[\d/]+){0,3} auth=0/[1-9]

            ^too many errors after [A-Z-]+ from [\w.-]+\[<HOST>\](?::\d+)?$

            ^improper command pipelining after [A-Z-]+ from [\w.-]+\[<HOST>\](?::\d+)?(?::|$)

            ^[0-9A-Za-z]+: reject: RCPT from [\w.-]+\[<HOST>\](?::\d+)?: (?:550 5|450 4)\.1\.1 <<F-DISTINCT>[^<>]+</F-DISTINCT>>: Recipient address rejected: (?:[Uu]ser unknown|[Uu]ndeliverable address)
            ^[0-9A-Za-z]+: reject: RCPT from [\w.-]+\[<HOST>\](?::\d+)?: [45]54 [45]\.7\.1 <<F-DISTINCT>[^<>]+</F-DISTINCT>>: Relay access denied
''',
    'dovecot': r'''
[Definition]
program = dovecot(?:-auth)?|auth(?:-worker)?(?:\([\w-]*\))?|(?:imap|pop3|submission|sieve|managesieve)-login
prefregex = ^(?=(?:.*(?:(?:,| session=|,sasl:[\w-]{1,32}(?:,master)?\)(?:<\d{1,10}>)?)<|rhost=)<F-MLFID>[\w+/=.:]{1,64}</F-MLFID>(?:>\): |>: |>?\s*$|\s+user=\S*\s*$))?)(?:dovecot: )?(?:[a-z0-9]+-login: |auth(?:-worker)?(?:\([^()]*\))?: )?(?:Info: )?(?:conn unix:auth-worker \([^()]*\): auth-worker<\d+>: )?<F-CONTENT>.+</F-CONTENT>$
gone = (?:Disconnected|Aborted login|Login aborted|Remote closed connection|Client has quit the connection)(?:: [^<>]*)?
address = (?:method=[^ ,<>]*, )?rip=<HOST>(?:, [^<>]*)?(?:, session=<[\w+/=]+>)?$
# since 2.4 the database stands behind that
asked24 = auth(?:-worker)?\(<F-USER>[^,()]*</F-USER>,<HOST>,sasl:[\w-]{1,32}(?:,master)?\)(?:<\d{1,10}>)?<[\w+/=]+>: (?:request \[\d{1,10}\]: )?(?:Info: )?
asked = \(<F-USER>[^,()]*</F-USER>,[0-9a-fA-F.:]+(?:,master)?,<[\w+/=]+>\):
# Whom one password database does not know, another one may. The line is so short that no log daemon has
# cut off a second address behind a name that looks like all this.
mismatch = \(<F-USER>[^,()]*</F-USER>,<HOST>(?:,master)?,<[\w+/=]+>\): <F-CHILD>[Pp]assword mismatch</F-CHILD>(?: \([^<>]{0,40}\))?$
failregex = ^<F-MLFGAINED>Log(?:in|ged in)</F-MLFGAINED>: user=<<F-USER>[^<>]+</F-USER>>, <address>

            ^<gone> \(auth failed, <F-TIMES>\d+</F-TIMES> attempts(?: in \d+ secs)?\)(?: \(\w+\))?: (?:user=<<F-USER>.*</F-USER>>, )?<address>
            ^<gone> \(tried to use dis(?:abled|allowed) \w+ auth\)(?: \(\w+\))?: (?:user=<<F-USER>.*</F-USER>>, )?<address>
            ^<gone> \(proxy dest auth failed\)(?: \(\w+\))?: (?:user=<<F-USER>.*</F-USER>>, )?<address>

            <mode-<mode>>
mode = normal
mode-normal = ^pam<asked> pam_authenticate\(\) failed: (?:Authentication failure|User not known|Permission denied)
              ^pam<asked> unknown user

              ^<asked24>pam: pam_authenticate\(\) failed: (?:Authentication failure|User not known|Permission denied)
              ^<asked24>pam: unknown user

              ^<asked24>(?!pam: )[\w-]{1,32}: <F-CHILD>[Pp]assword mismatch</F-CHILD>(?: \([^<>]{0,40}\))?$
              ^<asked24>(?!pam: )[\w-]{1,32}: (?:unknown user|[Pp]assword mismatch|invalid credentials)

              ^passwd-file<mismatch>
              ^passwd-file<asked> (?:unknown user|[Pp]assword mismatch)

              ^(?!pam\(|passwd-file\()[\w-]+<mismatch>
              ^(?!pam\(|passwd-file\()[\w-]+<asked> unknown user
              ^(?!pam\(|passwd-file\()[\w-]+<asked> [Pp]assword mismatch
              ^(?!pam\(|passwd-file\()[\w-]+<asked> invalid credentials
mode-more = <mode-normal>

            ^<gone> \(tried to use unsupported auth mechanism\)(?: \(\w+\))?: (?:user=<[^<>]*>, )?<address>
            ^<gone> \(sent invalid base64 in response\)(?: \(\w+\))?: (?:user=<[^<>]*>, )?<address>

            ^(?:Disconnected|Login aborted): Too many (?:invalid|bad) commands\.? \(no auth attempts(?: in \d+ secs)?\)(?: \(\w+\))?: (?:user=<>, )?rip=<HOST>(?:, [^<>]*)?(?:, session=<[\w+/=]+>)?$
mode-pam = ^pam_\w+\(dovecot:auth\): <F-CHILD>authentication failure</F-CHILD>; logname=\S* uid=\d+ euid=\d+ tty=dovecot ruser=<F-USER>\S{0,80}</F-USER> rhost=<HOST>(?:\s+user=\S*)?\s*$
''',
    'exim': r'''
[Definition]
program = (?:exim4?)?
address = first
prefregex = ^(?:\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?(?: [+-]\d{4})? )?(?:\[<F-MLFID>\d+</F-MLFID>\] )?<F-CONTENT>.+</F-CONTENT>$
# what may follow a client's address, each by a log_selector of its own or for an ident
more = (?: (?:I=\[[0-9a-fA-F.:]+\](?::\d+)?|(?:Ci|U)=[^ \[\]]+)){0,4}
client = (?:[\w.-]+ )?(?:\([^()\[\]]*\) |\(\[[\w.:]+\]\) )?\[<HOST>\](?::\d+)?<more>
failregex = ^\w{6}-\w{6,11}-\w{2,4} <F-MLFGAINED><=</F-MLFGAINED> [^ "<>\[\]]+ H=(?:[\w.-]+ )?(?:\([^ ()\[\]]*\) |\(\[[\w.:]+\]\) )?\[<HOST>\](?::\d+)?<more> P=(?:utf8)?esmtps?a (?:(?:[A-Z][A-Za-z]*=[^ \[\]]+|L[-.*]?|K|TFO\*?) ){0,8}?A=[\w-]+:<F-USER>[^ \[\]]+</F-USER> [^\[\]]*$

            ^\S+ authenticator failed for (?:H=)?<client>: 535 Incorrect authentication data(?: \(set_id=<F-USER>[^\[\]]*</F-USER>\))?$
            ^SMTP protocol error in "[Aa][Uu][Tt][Hh]\b.*" H=(?:[\w.-]+ )?(?:\([^"()\[\]]*\) |\(\[[\w.:]+\]\) )?\[<HOST>\](?::\d+)?<more> AUTH command used when not advertised$

            ^SMTP call from (?:H=)?<client> dropped: too many (?:syntax or protocol errors|unrecognized commands) \(last (?:command )?was "[^\[\]]*$

            ^SMTP protocol synchronization error \(input sent without waiting for greeting\): rejected connection from (?:H=)?(?:[\w.-]+ )?\[<HOST>\](?::\d+)?<more>(?: input="|$)

            ^H=<client>(?: [A-Z][A-Za-z]*=[^ \[\]<>]+){0,6} rejected (?:VRFY|EXPN) [^\[\]]*$

            <mode-<mode>>
mode = normal
mode-normal =
mode-more = ^H=<client>(?: (?!F=)[A-Z][A-Za-z]*=[^ \[\]<>]+){0,6} (?:F=[^\[\]]* )?rejected RCPT <?<F-DISTINCT>[^ <>\[\]]+</F-DISTINCT>>?: (?:Unrouteable address|Unknown user|relay not permitted)$

            ^SMTP call from (?:H=)?<client> dropped: too many nonmail commands \(last (?:command )?was "[^\[\]]*$
''',
    'adguardhome': r'''
# AdGuard Home, as it wrote until 0.107, and since. The host and the URL, which the client wrote, stand before the
# address: they hold no blank, and are quoted where they hold an equals sign. No login is believed, since
# its address may be one that the client wrote.
[Definition]
program = (?:[\w.-]{1,32}[-/_])?(?:AdGuardHome|adguard-?home)(?:[-_]\d{1,2})?
address = first
prefregex = ^(?:\d{4}/\d\d/\d\d \d\d:\d\d:\d\d(?:\.\d+)? )?(?:\d+#\d+ )?\[error\] <F-CONTENT>.+</F-CONTENT>$
value = (?:"(?:[^"\\]|\\.)*"|[^ "]+)
why = (?:invalid username or password|auth: blocked for \w[\w.]{0,40})
failregex = ^POST \S* [^ ?]*/control/login(?:\?\S*)?: from ip <HOST>: <why>$
            ^(?:\w{1,32}: )?http error host=<value> method=POST url=<value> status=(?:403|429) ip=<HOST> err="<why>"$
''',
    'vaultwarden': r'''
# Vaultwarden, bitwarden_rs before. The user's name stands last. It may hold line breaks, and so write whole
# lines of the client's own: bans may close the web's ports only, and no login is believed.
[Definition]
program = (?:[\w.-]{1,32}[-/_])?(?:vaultwarden|bitwarden_rs)(?:[-_]\d{1,2})?
address = first
prefregex = ^(?:\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[\d.,+:-]{0,16}\])?\[[\w:]{1,64}\]\[ERROR\] <F-CONTENT>.+</F-CONTENT>$
failregex = ^Username or (?:password|access code) is incorrect\. Try again\. IP: <HOST>\. Username: <F-USER>.*?</F-USER>\.?$
            ^(?:Incorrect client_secret|Invalid client_id)\. IP: <HOST>\.(?: Username: <F-USER>.*?</F-USER>\.?)?$
            ^Invalid TOTP code! Server time: [\d :UTC-]{10,32} IP: <HOST>$
            ^Token is invalid! IP: <HOST>$
            ^(?:Unauthorized Error: )?Invalid admin token\. IP: <HOST>$
''',
    'home-assistant': r'''
# Home Assistant's login, not its other pages: these refuse a browser that has been logged out. In front of the
# address stands the client's name in DNS, behind it all that the client wrote.
[Definition]
program = (?:[\w.-]{1,32}[-/_])?(?:home-?assistant|hass)(?:[-_]\d{1,2})?
address = first
prefregex = ^(?:\x1b\[[\d;]{1,8}m)?(?:\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)? )?WARNING \([^()]{1,64}\) \[homeassistant\.components\.http\.ban\] <F-CONTENT>.+</F-CONTENT>$
failregex = ^Login attempt or request with invalid authentication from [\w.:%-]{1,255} \(<HOST>\)\. Requested URL: '/auth/
''',
    'nextcloud': r'''
# Nextcloud's own log and its syslog, a JSON object a line. Quotes inside of a text are escaped, so no key stands
# in what the client wrote; and but for the request's id, the client's texts stand behind the address.
[Definition]
program = (?:[\w.-]{1,32}[-/_])?(?:[Nn]extcloud|ownCloud)(?:[-_]\d{1,2})?
address = first
value = (?:"(?:[^"\\]|\\.)*"|[\w.-]{1,32})
prefregex = ^\{(?:"(?:reqId|level|time)":<value>,){1,3}"remoteAddr":<F-CONTENT>.+</F-CONTENT>$
message = (?:"(?:user|app|method|url|scriptName)":<value>,){1,6}"message":"(?:Login|Two-factor challenge) failed:[ ]
failregex = ^"<HOST>",<message>'?<F-USER>(?:[^"\\]|\\.)*?</F-USER>'? \(Remote IP: [^"\\ ]{1,64}\)"
            ^"<HOST>",<message>
''',
    'proxmox': r'''
# Proxmox VE, Mail Gateway, Backup Server and Datacenter Manager: a wrong password or code, or a forged
# ticket. The address stands before all that the client wrote, as ::ffff:192.0.2.7 and [::ffff:192.0.2.7]:58070, too.
[Definition]
program = pvedaemon|pveproxy|pmgdaemon|pmgproxy|proxmox-backup-(?:proxy|api)|proxmox-datacenter-(?:privileged-)?api
address = first
guess = (?:user=<F-USER>\S*</F-USER>(?: |$)|msg=ticket with invalid signature)
failregex = ^authentication (?:verification )?failure; rhost=(?=[\d.]+:\d)<HOST>:\d+ <guess>
            ^authentication (?:verification )?failure; rhost=(?![\d.]+:\d)<HOST>(?::\d+)? <guess>
''',
    'pam-generic': r'''
# What PAM says of a guess, whatever program asks; sshd and dropbear have filters of their own. Two modules may
# tell of one guess: so there are kinds. The names are the client's text, and may hold ` rhost=`: a line
# with two of these is nobody's.
[Definition]
program = (?!sshd|dropbear)[\w./@-]{1,32}(?:\(pam_\w{1,16}\))?
prefregex = ^<F-CONTENT>.+</F-CONTENT>$
unix = (?:pam_unix\(\S{1,64}\): |pam_unix\[\d{1,10}\]: |\(pam_unix\) )?
head = logname=\S{0,32} uid=\d* euid=\d* tty=\S{0,32} ruser=(?:(?! rhost=).){0,64}? rhost=<HOST>(?:\s+user=<F-USER>(?:(?! rhost=).){0,64}</F-USER>)?\s*$
failregex = ^pam_\w{1,32}\(\S{1,64}\): <F-MLFGAINED>authentication success</F-MLFGAINED>; <head>

            ^<unix>authentication failure; <head>
            ^<unix><F-TIMES>\d{1,3}</F-TIMES> more authentication failures?; <head>

            ^pam_(?!unix\()\w{1,32}\(\S{1,64}\): authentication failure; <head>
''',
    'mikrotik': r'''
# RouterOS by UDP, in its formats default, syslog and CEF. The name is the client's text and stands before the
# address; it is short, so that a log daemon between that cuts lines at 255 bytes does not make one end in an address of
# the name's. The address of a login by MAC is none.
[Definition]
program = system(?:,[a-z]{1,16}){1,4}
prefregex = ^(?:[\w.-]{1,64} )?(?:system(?:,[a-z]{1,16}){1,4}:? )?<F-CONTENT>.+</F-CONTENT>$
cef = CEF:0\|MikroTik\|(?:[^|\\]|\\.){0,64}\|[^|]{0,32}\|\d{1,6}\|system(?:,[a-z]{1,16}){1,4}\|\w{1,16}\|dvchost=(?:[^=\\]|\\.){0,64} dvc=[\w.:%-]{0,64} msg=
failregex = ^login failure for user <F-USER>.{0,64}</F-USER> from <HOST> via [\w-]{1,32}$
            ^<cef>login failure for user <F-USER>.{0,32}</F-USER> from <HOST> via [\w-]{1,32}$
            ^<cef>login failure for user .{0,200} from [\w.:%-]{1,64} via [\w-]{1,32} app=[\w-]{0,32} duser=.{0,400} outcome=failure src=<HOST>$
''',
    'kernel-scan': r'''
# Packets to this machine that the firewall has turned away, one failure for each port not tried before. Off unless asked for: anybody can send packets in
# another's name. Late answers must not look like a scan, so no ACK or RST, no UDP from a service's
# port (DNS, NTP, QUIC), nothing sent to everybody.
[Definition]
program = kernel
address = first
prefregex = ^(?:\[ *\d+\.\d+\] ?)?<F-CONTENT>.+</F-CONTENT>$
# What stands in front of a packet, as the rule that logs it says: kernel-scan[prefix="..."] is for rules of
# your own, and takes the place of those of OpenWrt's zones (fw3, fw4), banIP, Asuswrt, Skynet, ufw and UniFi.
prefix = <zone>|banIP/(?:inbound|inp-wan)/(?:drop|drp|reject|rej)/\S+ |DROP |\[BLOCKED - INBOUND\] |\[UFW (?:LIMIT )?BLOCK\] |<unifi>
zone = (?:REJECT|DROP|reject|drop)(?: [\w-]+ in: ?|\(src [\w-]+\) ?)
# the device's name stands there where it sends by UDP, without a tag
unifi = (?:[\w.-]{1,64} )?\[[A-Z]\w{1,40}-(?:\w{1,10}-[DR]|[DR]-\d{1,10})\] ?(?:DESCR="[^"]{0,128}" )?
packet = (?:<prefix>)IN=\S+ OUT= (?:PHYSIN=\S+ )?(?:MAC(?:SRC=\S+ MACDST)?=(?!ff:ff:ff:ff:ff:ff|01:00:5e:|33:33:)\S* (?:(?:VPROTO=\w+ VID=\d+ )?MACPROTO=\w+ )?)?SRC=<HOST> DST=(?!22[4-9]\.|23\d\.|255\.|ff)\S+ (?:[^\[\]=]+=[^\[\]]* )?
failregex = ^<packet>PROTO=TCP SPT=\d+ DPT=<F-DISTINCT>\d+</F-DISTINCT>(?: (?:SEQ=\d+ ACK=\d+ )?WINDOW=\d+ (?:RES=0x[0-9a-f]+ )?(?:(?:CWR|ECE|URG|PSH|SYN|FIN) ){0,6}URGP=.*)?$
            ^<packet>PROTO=UDP SPT=\d{4,5} DPT=<F-DISTINCT>\d+</F-DISTINCT>(?: LEN=\d+.*)?$
''',
    'trap': r'''
# what our own traps tell
[Definition]
program = trap
address = first
failregex = ^<HOST> \w{3,8} connect$
            ^<HOST> \w{3,8} guess(?: <F-USER>.*</F-USER>)?$
''',
    'recidive': r'''
[Definition]
# reads no log: it counts the bans of the other jails
history = bans
''',
    'common-pam': r'''
# What PAM says of a guess, for the daemons that ask it: pam_unix one line, another module one, too.
[Definition]
pam-unix = ^(?:\(?pam_unix\)? |pam_unix\(\S+\): |pam_unix\[\d+\]: )?authentication failure; logname=\S* uid=\d* euid=\d* tty=\S* (?!(?:(?! user=).)* user=.* rhost=)ruser=.{0,64} rhost=(?:::ffff:)?<HOST>(?:\s+user=<F-USER>\S*</F-USER>)?\s*$
pam-other = ^pam_(?!unix)\w+\(\S+\): authentication failure; logname=\S* uid=\d* euid=\d* tty=\S* (?!(?:(?! user=).)* user=.* rhost=)ruser=.{0,64} rhost=(?:::ffff:)?<HOST>(?:\s+user=<F-USER>\S*</F-USER>)?\s*$
''',
    'common': r'''
# What the files of filter.d include as common.conf, for a router that has no fail2ban: the beginning
# of a line, its date cut out, as far as the daemon's name in _daemon.
[DEFAULT]
logtype = file
_daemon = \S*
__pid_re = \[\d+\]
__hostname = \S+
__pam_auth = pam_unix
__daemon_re = [\[\(]?<_daemon>(?:\(\S+\))?[\]\)]?:?
__daemon_combs_re = (?:<__daemon_re>(?:<__pid_re>)?:?|<__pid_re>:\s+<__daemon_re>)
__kernel_prefix = kernel:\s?\[ *\d+\.\d+\]:?
__prefix_line = <lt_<logtype>/__prefix_line>
datepattern = <lt_<logtype>/datepattern>
[lt_file]
__prefix_line = (?:\[\])?\s*(?:\S+\.[a-z]+\s+)?(?:<__hostname>\s+)?(?:<__kernel_prefix>\s+)?(?:<__daemon_combs_re>\s+)?
datepattern = {^LN-BEG}
[lt_short]
__prefix_line = \s*(?:<__hostname>\s+)?(?:<_daemon>(?:<__pid_re>)?:?\s+)?(?:<__kernel_prefix>\s+)?
datepattern = {^LN-BEG}
[lt_journal]
__prefix_line = %(lt_short/__prefix_line)s
datepattern = {^LN-BEG}
[lt_rfc5424]
__prefix_line = \s*<__hostname> <__daemon_re> \S+ \S+ (?:-|(?:\[(?:[^\]"\\]|"[^"]*")*\])+)\s+
datepattern = ^<\d+>\d+\s+{DATE}
''',
}

# the rules that need not be written down
RULES = r'''
# What any healthy day logs, so that what is left is worth a look. The first that fits holds; what is
# alarming stands first. Refused logins are told in a number alone: a name may be a password.

[rule banwatch]
program = banwatch(?:\.py)?
report = ignore

[rule out-of-memory]
program = kernel
report = warning
details = firstlast
text = the kernel ran out of memory
regex = ^(?:(?:Memory cgroup out|Out) of memory: |oom_reaper: |oom-kill:|.{1,15} invoked oom-killer:)

[rule kernel-crash]
program = kernel
report = warning
details = firstlast
text = faults of the kernel
regex = ^(?:Kernel panic|kernel BUG at|(?:watchdog: )?BUG: |Oops\b|Internal error: |general protection fault|WARNING: CPU:)
    ^(?:CPU \d+ )?Unable to handle kernel
    ^(?:rcu: )?INFO: (?:task .{1,40} blocked for more than|\w+ (?:self-)?detected stall)

[rule program-crash]
program = kernel|procd
report = warning
details = firstlast
text = programs that crash
regex = ^.{1,24}: (?:segfault at|unhandled (?:page fault|exception)|potentially unexpected fatal signal)
    ^(?:traps: |do_page_fault\(\): sending SIGSEGV|Instance \S+ i?s in a crash loop)

[rule disk-error]
program = kernel
report = warning
details = firstlast
text = errors of a disk or flash
regex = ^(?:jffs2|UBIFS|UBI|ubi\d+|SQUASHFS|EXT\d-fs):? (?:error|warning)
    ^(?:EXT\d|F2FS|FAT|BTRFS|XFS)(?:-fs)?\b.{0,60}(?: error\b|warning: |orrupt|Remounting|forced readonly|set read-only)
    ^(?:\w+: )?(?:critical \w+|I/O|Buffer I/O) error(?:,| on) dev

[rule flood]
program = kernel
report = warning
details = firstlast
text = signs of a flood of connections
regex = ^(?:\w+: ){1,2}(?:table full|Possible SYN flooding|neighbor table overflow)

[rule dns-rebind]
program = dnsmasq
report = warning
details = firstlast
text = possible DNS rebind attacks
regex = ^possible DNS-rebind attack detected:

[rule accounts]
program = passwd|chpasswd|chage|user(?:add|mod|del)|group(?:add|mod|del)
report = warning
details = firstlast
text = accounts or passwords that were changed
regex = ^(?:(?:new|delete|change) (?:user|group)\b|add '|(?:pam_\w+\(\w+:chauthtok\): )?password (?:for|changed))

[rule disk-failing]
program = smartd
report = warning
details = firstlast
text = disks that are failing
regex = ^Device: .{1,80}(?:unreadable|ncorrectable|FAILED|FAILING|failure)

[rule dropped]
program = kernel
report = ignore
regex = ^(?:REJECT|DROP|reject|drop|banIP/|\[UFW (?:LIMIT )?BLOCK\]|\w+_(?:DROP|REJECT):)[^=]{0,60}\bIN=\S* OUT=

[rule links]
program = kernel|netifd|pppd
text = links and uplinks going up or down
regex = ^(?:[\w.:@/-]+ ){1,8}[Ll]ink (?:is )?(?:[Uu]p|[Dd]own)\b
    ^(?:Interface|Wireless device) '[^']+' (?:is now (?:up|down)|has lost the connection)$
    ^(?:LCP terminated by peer|Modem hangup|Connection terminated|No response to \d+ echo|Timeout waiting for PAD)

[rule starts]
program = procd|systemd
text = starts of the system
regex = ^(?:- init complete -$|Startup finished in [^(]+\((?:firmware|kernel)\))

[rule boot]
program = (?:kernel|procd|netifd|ucitrack|urandom_seed)?
report = ignore
regex = ^\S+: (?:port \d+\([^)]+\) entered \w+ state$|renamed from )
    ^(?:\S+ ){1,5}(?:(?:entered|left) (?:promiscuous|allmulticast) mode|configuring for \S+ link mode)$
    ^(?:IPv6: ADDRCONF\(NETDEV_|8021q: adding VLAN)
    ^(?:Booting Linux|Linux version|Kernel command|Memory: |NET: Registered|random: |usbcore: registered|Freeing |VFS: Mounted|PPP )
    ^[\w -]+(?: hash table entries|: Hash tables configured)
    ^(?:EXT\d-fs|UBIFS|F2FS-fs) \([^)]+\): (?:re-|un-?)?[Mm]ount
    ^(?:init|procd|kmodloader|block|mount_root|urandom-seed|urngd|jffs2|ubi\d+): (?!.*(?:fail|rror|crash))
    ^(?:- [a-z]+ -$|/etc/rc\.d/\S+ setting up |Added device handler |Setting up /etc/config/|Saving \d+ bits of |Seed saved )

[rule uplink]
program = netifd|pppd|firewall
report = ignore
regex = ^Reloading firewall due to
    ^[\w ]+ '[^']+' (?:is setting up now|is (?:en|dis)abled|has link connectivity|link is (?:up|down))
    ^You have delegated IPv6-prefixes
    ^\S+ \(\d+\): (?:WARNING: Variable|udhcpc: (?:started|sending|broadcasting|performing|lease of|received SIG|entering|unicasting))
    ^(?:pppd \S+ started by|Plugin \S+ loaded|(?:RP-)?PPPoE plugin|PPP session is|Connected to|Using interface|Renamed interface|Connect: )
    ^(?:(?:CHAP|PAP|EAP) authentication succeeded|peer from calling number|Connect time|Sent \d+ bytes|Exit\.|Terminating on signal)
    ^(?:local|remote|primary|secondary) +(?:IP|LL|DNS) address

[rule dhcp]
program = dnsmasq-dhcp
text = DHCP messages
regex = ^(?:\d+ )?(?:DHCP[A-Z-]+|RTR-[A-Z]+|SLAAC-CONFIRM)\(

[rule dhcp-notes]
program = dnsmasq-dhcp|odhcpd|odhcp6c|udhcpc6?|dhclient
report = ignore
regex = ^(?:DHCP, |DHCPv\d\S* |(?:IPv6 )?router advertisement |read /|not giving name|DHCP packet received on \S+ which has no)
    ^(?:Using a RA lifetime|No default route present|A default route is present|Raising SIGUSR1|Failed to send to \S+ \()
    ^DHCPV6 [A-Z-]+ IA_\w+ from \w+ on \S+: ok
    ^(?:[Rr]eceived|Got|[Ss]ending) DHCP
    ^(?:\(re\)starting transaction|Starting [A-Z-]+ transaction|Got a valid|entering |Send(?:ing)? [A-Z-]+ message)
    ^(?:started, v|sending|broadcasting|performing|lease of|received SIG|unicasting)
    ^(?:DHCP(?!NAK)[A-Z]+ (?:for|on|of|from)|bound to|XMT:|RCV:|PRC:|Listening on|Sending on) +\S

[rule dns]
program = dnsmasq
report = ignore
regex = ^(?:\d+ \S+ )?(?:(?:dnssec-)?query\[|(?:forwarded|reply|cached\S*|config|/etc/hosts) \S)
    ^(?:started, version|DNS (?:service limited|rebinding protection)|Allowing |compile time options|\w+ support enabled)
    ^(?:exiting on receipt|cleared cache|using (?:nameserver|only|standard|\d+ more) |read(?:ing)? /|no servers found in)
    ^ignoring nameserver \S+ - local interface

[rule wifi-wrong-key]
program = hostapd
text = Wi-Fi logins with a wrong key
regex = ^\S+: (?:AP-STA-POSSIBLE-PSK-MISMATCH|CTRL-EVENT-EAP-(?:TIMEOUT-)?FAILURE|STA \S+ IEEE \S+ authentication failed)

[rule wifi-joined]
program = hostapd
text = Wi-Fi devices that joined
regex = ^\S+: AP-STA-CONNECTED

[rule wifi]
program = hostapd|wpa_supplicant
report = ignore
regex = ^\S+: STA \S+ IEEE \S+ (?:(?:dis|de)?(?:associat|authenticat|connect)ed|did not ack|binding station|\w+ port)
    ^\S+: STA \S+ (?:WPA|RADIUS): \w+ (?:key handshake completed|accounting session)
    ^\S+: (?:AP-STA-(?:DISC|POLL)|(?:AP|INTERFACE)-(?:EN|DIS)ABLED|ACS-(?:STARTED|COMPLETED)|AP-CSA|DFS-|interface state )
    ^\S+: CTRL-EVENT-(?:EAP-|TERMINATING|CHANNEL-SW|STARTED-CH|CONNECTED|REGDOM)
    ^\S+: WPA: (?:Key negotiation|Group rekeying) completed
    ^(?:Configuration file: |Set new config for phy )

[rule clock]
program = crond|ntpd|chronyd|systemd-timesyncd
text = corrections of the clock
regex = ^(?:time disparity of|setting time to|System clock (?:was stepped|wrong) by|Initial clock synchronization)

[rule time]
program = ntpd|chronyd|systemd-timesyncd
report = ignore
regex = ^(?:reply from|sending query|synchronized to|timed out waiting|bad address)
    ^(?:Selected source|Source \S+ |chronyd |Frequency |Contacted time|Timed out|Network configuration changed)

[rule cron]
program = crond?|CRON
report = ignore
regex = ^(?:USER \S+ pid +\d+ cmd |wakeup dt=|crond .{1,40}started, log level)
    ^\([\w.*-]+\) (?:CMD|LIST|RELOAD|INFO|STARTUP) \(

[rule pam]
report = ignore
regex = ^pam_\w+\([\w-]+:session\): (?:session (?:opened|closed) for user|deprecated reading)
    ^pam_unix\([\w-]+:auth\): check pass; user unknown

[rule pam-old]
program = \S+\(pam_\w+\)
report = ignore
regex = ^(?:session (?:opened|closed) for user|check pass; user unknown)

[rule sudo]
program = sudo|su|login
text = uses of sudo and su, console logins
regex = ^ *\S+ : (?:\(command continued\)|(?:\w+=[^;]*; )*COMMAND=)
    ^(?:\(to \S+\) |Successful su |\+ \S+ \S+:\S+$|(?:ROOT LOGIN|root login|LOGIN) +(?:ON|on) )

[rule systemd]
program = systemd(?:-logind|-journald)?|rsyslogd|syslogd|dbus-daemon
report = ignore
regex = ^(?:Start(?:ed|ing)|Finished|Reached target|Stopping|Stopped (?!.*with error)|Listening on|Closed|(?:Creat|Remov)ed slice)
    ^\S+: (?:Deactivated successfully|Succeeded|Consumed )
    ^(?:(?:Unm|M)ount(?:ed|ing)|Reload(?:ed|ing)|Condition check resulted in|.{1,200} was skipped because) \S
    ^(?:systemd \S+ running in|Detected |Hostname set|Queued start job|Startup finished in [\w. ]+\.$)
    ^(?:New s(?:ession|eat) |Removed session|Session \S+ logged out|Journal st|(?:System|Runtime) Journal |Received (?:client request|SIGTERM))
    ^(?:\[origin software=|imuxsock: Acquired|rsyslogd's \w+ changed|-- MARK --|syslogd started)
    ^(?:\[[\w= ]+\] )?(?:Activating |Successfully activated|Reloaded configuration)

[rule auth-chatter]
program = sshd(?:-session|-auth)?|dropbear
report = ignore
regex = ^(?:error: |fatal: )?(?:Received disconnect|Disconnect(?:ed|ing)|Connection (?:closed|reset|from)|Timeout|maximum authentication)\b
    ^(?:error: |fatal: )?(?:kex_\w+|ssh_dispatch_run_fatal|banner exchange|Unable to negotiate|no matching|Read from socket|Write failed)\b
    ^(?:Did not receive|Bad protocol|reverse mapping|Address \S+ maps|drop connection|Postponed \S+ for|Failed (?:none|publickey|hostbased) for)
    ^(?:PAM \d+ more|PAM service|input_userauth|userauth_pubkey: (?:signature|key type)|Server listening|Received (?:signal|SIG)|Starting session)
    ^(?:Close session|User child|Transferred|subsystem request|Accepted key|(?:wtmp_write|lastlog_\w+|syslogin_\w+):)
    ^(?:\[\d+\] .{15} )?(?:Child connection|[Ee]xit |Early exit|[Pp]remature exit|Running in background)

[rule auth-failures]
program = (?!su(?:do)?$).*
text = refused logins that no jail counted
regex = ^(?:pam_\w+\([\w-]+:auth\): )?(?:authentication failure; logname=|auth could not identify password)
    ^(?:error: |fatal: )?(?:[Ii]nvalid user|[Ii]llegal user|Failed (?:password|keyboard|challenge)\S* for|PAM: [\w ]+ for|Access denied for user)\b
    ^(?:User .+ not allowed because|ROOT LOGIN REFUSED|FAILED LOGIN|invalid password for)
    ^(?:\[\d+\] .{15} )?(?:[\w -]+ password|[Ll]ogin) attempt (?:for|with)
    ^auth[^:]*: .*\b(?:pam|passwd-file|sql)\(
    ^(?:(?:\[\w+\] )?luci: failed login on|(?:\[pid \d+\] )?\[[^]]*\] FAIL LOGIN: Client ")
'''

# hours east of Greenwich; an abbreviation means what most of its users mean
ZONES = {'': 0, 'Z': 0, 'UTC': 0, 'GMT': 0, 'UT': 0, 'WET': 0}
ZONES.update((zone, hours) for hours, zones in ((-10, 'HST HAST'), (-9, 'AKST'), (-8, 'PST AKDT'), (-7, 'MST PDT'), (-6, 'CST MDT'), (-5, 'EST CDT ECT PET COT'),
                     (-4, 'AST EDT CLT BOT'), (-3, 'ART BRT ADT CLST UYT'), (-3.5, 'NST'), (-2.5, 'NDT'), (-2, 'BRST'), (-1, 'CVT AZOT'),
                     (1, 'CET WAT WEST BST DFT'), (2, 'CEST EET CAT SAST'), (3, 'EEST MSK EAT IDT'), (3.5, 'IRST'), (4, 'GST AZT SAMT'),
                     (4.5, 'AFT IRDT'), (5, 'PKT UZT YEKT MAWT'), (5.5, 'IST SLT'), (5.75, 'NPT'), (6, 'ALMT BTT NOVT OMST'), (6.5, 'MMT CCT'),
                     (7, 'ICT WIB THA KRAT'), (8, 'HKT SGT PHT MYT AWST WITA IRKT'), (9, 'JST KST WIT YAKT'), (9.5, 'ACST'), (10, 'AEST VLAT'),
                     (10.5, 'ACDT'), (11, 'AEDT MAGT SBT NCT'), (12, 'NZST FJT PETT'), (13, 'NZDT'))
             for zone in zones.split())

# How programs write dates, by strptime's fields and fail2ban's own: %ExY is a year of this century,
# %Exy, %Exm ... exactly two digits, %k and %l an hour that may be padded with a blank. An hour, a date
# and a zone that stand alone are looked for at the line's beginning only (^, {^LN-BEG}).
DATES = (
    r'%ExY[-/.]%m[-/.]%d(?:T| {1,2})%H:%M:%S(?:[.,]%f)?(?: *%z)?',         # ISO 8601, RFC 3339
    r'(?:%a )?%b %d %k:%M:%S(?:\.%f)?(?: %ExY)?',                          # RFC 3164, asctime
    r'(?:%a )?%b %d %ExY %k:%M:%S(?:\.%f)?',
    r'%d[-/]%m[-/](?:%ExY|%Exy) %k:%M:%S',
    r'%d[-/]%b[-/]%ExY[ :]?%H:%M:%S(?:\.%f)?(?: %z)?',                     # web servers, named
    r'%m/%d/%ExY:%H:%M:%S',
    r'%m-%d-%ExY %k:%M:%S(?:\.%f)?',
    'EPOCH',
    r'{^LN-BEG}%H:%M:%S',
    r'^<%m/%d/%Exy@%H:%M:%S>',
    r'%Exy%Exm%Exd {1,2}%H:%M:%S',                                         # MySQL
    r'%b %d, %ExY %I:%M:%S %p',                                            # Tomcat
    r'^%b-%d-%Exy %k:%M:%S',
    r'%ExY%Exm%Exd(?:[-T]| {0,2})%ExH%ExM%ExS(?:[.,]%f)?(?: *%z)?',
    r'%Z (?:%a )?%b %d %k:%M:%S(?:\.%f)?(?: %ExY)?',
    r'%z (?:%a )?%b %d %k:%M:%S(?:\.%f)?(?: %ExY)?',
    'TAI64N')

OPENWRT_INIT = r'''#!/bin/sh /etc/rc.common
# banwatch keeps password guessers out; see banwatch --help. Made by: banwatch install

START=95
STOP=05
USE_PROCD=1
EXTRA_COMMANDS="check report"
EXTRA_HELP="	check	Find mistakes in the conf
	report	Show the summary so far"

PROG=/usr/sbin/banwatch
CONF=/etc/banwatch.conf

say() {
	logger -s -t banwatch -p daemon.err "$1"
}

daemon_runs() {
	for pid in $(pidof banwatch); do	# finds this script, too, and `banwatch install`
		tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -q ' run ' && return 0
	done
	return 1
}

start_service() {
	if ! command -v python3 >/dev/null; then
		say "not started: python3 is missing, as it is after a sysupgrade; install python3-light"
		return 1
	fi
	if ! problems=$("$PROG" -c "$CONF" check 2>&1 >/dev/null); then
		say "not started: $problems"
		daemon_runs || return 1	# one that is running goes on
	fi
	procd_open_instance
	procd_set_param command "$PROG" -c "$CONF" run --syslog
	procd_set_param respawn 3600 5 0
	procd_set_param term_timeout 10
	procd_set_param stderr 1
	procd_close_instance
}

restart() {	# a conf with mistakes does not stop the one that is running
	if daemon_runs && ! problems=$("$PROG" -c "$CONF" check 2>&1 >/dev/null); then
		say "not restarted: $problems"
		return 1
	fi
	stop "$@"
	start "$@"
}

reload_service() {
	if ! problems=$("$PROG" -c "$CONF" check 2>&1 >/dev/null); then
		say "not reloaded: $problems"	# the one that is running goes on with its old conf
		return 1
	fi
	procd_send_signal banwatch "*" HUP
}

check() {
	"$PROG" -c "$CONF" check
}

report() {
	"$PROG" -c "$CONF" report
}
'''

ENTWARE_INIT = r'''#!/bin/sh
# banwatch keeps password guessers out; see banwatch --help. Made by: banwatch install

ENABLED=yes
PROCS=banwatch
ARGS="-c /opt/etc/banwatch.conf run --syslog"
PREARGS=""
PRECMD=""
DESC=$PROCS
PATH=/opt/sbin:/opt/bin:/usr/sbin:/usr/bin:/sbin:/bin

if [ "$1" = start ] || [ "$1" = restart ]; then
	if ! command -v python3 >/dev/null; then
		logger -s -t banwatch -p daemon.err "not started: python3 is missing; opkg install python3-light"
		exit 0
	fi
	if ! problems=$(/opt/sbin/banwatch -c /opt/etc/banwatch.conf check 2>&1 >/dev/null); then
		logger -s -t banwatch -p daemon.err "not started: $problems"
		exit 1
	fi
fi

. /opt/etc/init.d/rc.func
'''

LSB_INIT = r'''#!/bin/sh
# banwatch keeps password guessers out; see banwatch --help. Made by: banwatch install
### BEGIN INIT INFO
# Provides:          banwatch
# Required-Start:    $remote_fs $syslog
# Required-Stop:     $remote_fs $syslog
# Should-Start:      iptables nftables firewall
# Default-Start:     2 3 4 5
# Default-Stop:      0 1 6
# Short-Description: keeps password guessers out
### END INIT INFO

PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin
PROG=/usr/sbin/banwatch
CONF=/etc/banwatch.conf
PID=/run/banwatch.pid

running() {
	[ -r $PID ] && [ "$(cat /proc/"$(cat $PID)"/comm 2>/dev/null)" = banwatch ]
}

start() {
	if running; then
		echo "banwatch is running"
		return 0
	fi
	if ! command -v python3 >/dev/null; then
		echo "banwatch: not started: python3 is missing" >&2
		return 5
	fi
	"$PROG" -c $CONF check >/dev/null || return 6
	rm -f $PID	# after a kill -9 the number may be another's by now
	start-stop-daemon --start --background --make-pidfile --pidfile $PID --startas "$PROG" -- -c $CONF run --syslog
}

stop() {
	running || return 0
	start-stop-daemon --stop --retry TERM/10/KILL/5 --pidfile $PID
	rm -f $PID
}

case "$1" in
	start) start ;;
	stop) stop ;;
	restart | force-reload)
		! running || "$PROG" -c $CONF check >/dev/null || exit 6	# it goes on
		stop
		start
		;;
	reload) running && kill -HUP "$(cat $PID)" ;;
	status)
		if running; then
			"$PROG" -c $CONF status
		else
			echo "banwatch is not running"
			exit 3
		fi
		;;
	*)
		echo "usage: $0 start|stop|restart|reload|status" >&2
		exit 2
		;;
esac
'''

SYSTEMD_UNIT = r'''# banwatch keeps password guessers out; see banwatch --help. Made by: banwatch install
[Unit]
Description=banwatch keeps password guessers out
After=network.target nftables.service iptables.service firewalld.service

[Service]
ExecStart=/usr/sbin/banwatch -c /etc/banwatch.conf run
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=5
RestartPreventExitStatus=78
TimeoutStopSec=15
KillMode=control-group

[Install]
WantedBy=multi-user.target
'''

# the whole of /usr/sbin/banwatch
LAUNCHER = '''#!%s -IS
"""Starts %s/banwatch.py."""
import sys
LIBRARY = %r
sys.path.append(LIBRARY)                           # -I: nothing comes from PYTHONPATH, or from beside this file
sys.dont_write_bytecode = True
import banwatch
banwatch.leave(banwatch.main(sys.argv[1:]))
'''

# the whole of /usr/lib/banwatch/banwatch.py: flash is dear
LOADER = '''# Loads banwatch: its byte code, or its source, where that was compiled by another Python or has changed since.
# To read it: bzcat banwatch.py.bz2
import marshal
import os
import sys
import zlib
from _frozen_importlib_external import MAGIC_NUMBER

HERE = os.path.dirname(os.path.realpath(__file__))
SOURCE = HERE + '/banwatch.py.bz2'


def content(path):
    with open(path, 'rb') as f:
        return f.read()


def byte_code():
    try:
        data = content('%s/banwatch.%s.gz' % (HERE, sys.implementation.cache_tag))
        made = zlib.decompress(data, 31, int.from_bytes(data[-4:], 'little'))      # 31: with gzip's head; it ends with its size
        there = os.stat(SOURCE)
        now = b''.join((int(number) & 0xffffffff).to_bytes(4, 'little') for number in (there.st_mtime, there.st_size))
        # as in a .pyc file (PEP 552): what stands behind MAGIC_NUMBER is not 0 where times mean nothing
        if made[:4] == MAGIC_NUMBER and (made[4] or made[8:16] == now):
            return marshal.loads(made[16:])
    except (OSError, EOFError, ValueError, TypeError, IndexError, zlib.error):
        pass


CODE, COMPILED = byte_code(), None
if CODE is None:
    import bz2
    CODE = COMPILED = compile(bz2.decompress(content(SOURCE)), 'banwatch.py', 'exec', dont_inherit=True, optimize=2)
exec(CODE, globals())
del CODE
'''

# Where things belong. `cron` is a file that gets a line, or one of our own (`cron_user`: with a user's name in it);
# `keep` lists what outlives a firmware upgrade; `links`, made instead of `start` where nothing can be run
InitSystem = collections.namedtuple('Place', 'name program python init mode text conf state cron cron_user keep crond start stop links gone')
INIT_SYSTEMS = {
    'openwrt': InitSystem(
        'OpenWrt', '/usr/sbin/banwatch', '/usr/bin/python3', '/etc/init.d/banwatch', 0o755, OPENWRT_INIT, '/etc/banwatch.conf',
        '/etc/banwatch.state', '/etc/crontabs/root', '', '/etc/sysupgrade.conf',
        [['/etc/init.d/cron', 'enable'], ['/etc/init.d/cron', 'restart']],
        [['/etc/init.d/banwatch', 'enable'], ['/etc/init.d/banwatch', 'restart']],
        [['/etc/init.d/banwatch', 'stop'], ['/etc/init.d/banwatch', 'disable']],
        {'/etc/rc.d/S95banwatch': '../init.d/banwatch', '/etc/rc.d/K05banwatch': '../init.d/banwatch'}, []),
    'entware': InitSystem(
        'Entware', '/opt/sbin/banwatch', '/opt/bin/python3', '/opt/etc/init.d/S99banwatch', 0o755, ENTWARE_INIT, '/opt/etc/banwatch.conf',
        '/opt/etc/banwatch.state', '/opt/etc/cron.d/banwatch', 'root', '', [],
        [['/opt/etc/init.d/S99banwatch', 'restart']], [['/opt/etc/init.d/S99banwatch', 'stop']], {}, []),
    'systemd': InitSystem(
        'systemd', '/usr/sbin/banwatch', '/usr/bin/python3', '/etc/systemd/system/banwatch.service', 0o644, SYSTEMD_UNIT,
        '/etc/banwatch.conf', '/etc/banwatch.state', '/etc/cron.d/banwatch', 'root', '', [],
        [['systemctl', 'daemon-reload'], ['systemctl', 'enable', 'banwatch'], ['systemctl', 'restart', 'banwatch']],
        [['systemctl', 'disable', '--now', 'banwatch']],
        {'/etc/systemd/system/multi-user.target.wants/banwatch.service': '../banwatch.service'}, [['systemctl', 'daemon-reload']]),
    'sysvinit': InitSystem(
        'sysvinit', '/usr/sbin/banwatch', '/usr/bin/python3', '/etc/init.d/banwatch', 0o755, LSB_INIT, '/etc/banwatch.conf',
        '/etc/banwatch.state', '/etc/cron.d/banwatch', 'root', '', [],
        [['update-rc.d', 'banwatch', 'defaults'], ['/etc/init.d/banwatch', 'restart']],
        [['/etc/init.d/banwatch', 'stop'], ['update-rc.d', 'banwatch', 'remove']], {}, [])}

STYLE = (
    ':root{color-scheme:light dark}body{margin:0;background:#eef1f5;color:#1b2430;font:15px/1.5 system-ui,-apple-system,'
    'Segoe UI,Roboto,sans-serif}main{max-width:760px;margin:0 auto;padding:16px 12px 40px}h1{font-size:21px;margin:8px 0 2px}'
    'h2{font-size:12px;letter-spacing:.08em;margin:0 0 6px;color:#5b6b80}h2 i{font-style:normal;letter-spacing:0;font-weight:400}'
    'section{background:#fff;border:1px solid #dde3ea;border-radius:10px;padding:12px 14px;margin:12px 0}.w{border-left:5px solid #d9480f}'
    'p{margin:3px 0;overflow-wrap:anywhere}.q{color:#66758a;font:12px/1.45 ui-monospace,Menlo,Consolas,monospace;margin-left:14px}'
    '.x{color:#c2410c}.t{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:14px}th{font-size:11px;text-align:left;'
    'color:#66758a;font-weight:600;padding:2px 10px 2px 0}td{padding:3px 10px 3px 0;border-top:1px solid #edf0f4;white-space:nowrap}'
    'td:last-child{white-space:normal;min-width:3em}td.l{min-width:13em}.t+.t{margin-top:12px}.n{text-align:right;font-variant-numeric:tabular-nums}.c{table-layout:fixed}.c td{border:0;padding:0 1px;height:90px;'
    'vertical-align:bottom}.c b{display:block;background:#3b7dd8;border-radius:3px 3px 0 0}.c th{font-weight:400;text-align:center;'
    'padding:2px 0;overflow:visible}.k{display:flex;flex-wrap:wrap;gap:8px;margin:10px 0}.k p{background:#fff;border:1px solid #dde3ea;border-radius:10px;'
    'padding:6px 14px;margin:0;flex:1 0 auto;min-width:74px;overflow-wrap:normal}.k b{display:block;font-size:22px}.n+:not(.n){padding-left:8px}@media(prefers-color-scheme:dark){body{background:#12171e;'
    'color:#dbe3ec}section,.k p{background:#1a212b;border-color:#2b3542}td{border-color:#28313d}h2,th,.q{color:#93a1b3}.x{color:#ff9d66}}'
    '@media(max-width:480px){table{font-size:13px}th,td{padding-right:7px}td.l{min-width:22em}.n+:not(.n){padding-left:2px}}')


# ---- Main ----------------------------------------------------------------------------------
# Owns: nothing. Takes the command line apart, and turns a Problem into one line and an exit code.

def dispatch(argv):
    """The exit code of a command line."""
    try:
        opened, rest = getopt.getopt(argv, 'c:hV', ['help', 'version'])
        opened = dict(opened)
        if '-h' in opened or '--help' in opened or rest[:1] == ['help']:
            return print_rows([help_text()])
        if '-V' in opened or '--version' in opened:
            return print_rows(['banwatch ' + VERSION])
        if not rest:
            raise Problem('which command? (%s; --help tells more)' % ' '.join(COMMANDS),
                          os.EX_USAGE)
        verb = COMMANDS.get(rest[0]) or HIDDEN.get(rest[0])
        if verb is None:
            known = ' '.join(COMMANDS)
            raise Problem('%s: no such command (there are: %s)' % (printable(rest[0]), known),
                          os.EX_USAGE)
        short = 'c:h'
        if 'jail=' in verb.flags:
            short += 'j:'
        for letter in re.findall(r'-([a-ik-z]) [A-Z]', verb.arguments):
            short += letter + ':'
        options, words = getopt.gnu_getopt(rest[1:], short, verb.flags + ['help'])
    except getopt.GetoptError as e:
        raise Problem('%s (see --help)' % e, os.EX_USAGE) from None
    options = {SHORT.get(key, key.lstrip('-')): value for key, value in options}
    if 'help' in options or 'h' in options:
        return print_rows(
            [('usage: banwatch.py %s %s' % (rest[0], verb.arguments)).rstrip(), '  ' + verb.help])
    if not verb.least <= len(words) <= verb.most:
        raise Problem(('usage: banwatch.py %s %s' % (rest[0], verb.arguments)).rstrip(),
                      os.EX_USAGE)
    return verb.run(options.get('c', opened.get('-c')), options, words)


def fill_standard_files():
    """Opens /dev/null for those that were closed at our start: what is opened next would be taken
    for them."""
    for name, mode in ('stdin', 'r'), ('stdout', 'w'), ('stderr', 'w'):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))


def main(argv):
    """Runs one command; returns the exit code of the program."""
    fill_standard_files()
    # a terminal that lacks letters is no reason to fail
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='backslashreplace')
    try:
        code = dispatch(argv)
        sys.stdout.flush()
        return code
    except Problem as e:
        for line in str(e).split('\n'):
            located = e.code == os.EX_CONFIG and re.match(r'.+?:\d+: ', line)
            print(printable(line if located else 'banwatch: ' + line), file=sys.stderr)
        return e.code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as e:
        who = printable(str(e.filename or 'the system says'))
        print('banwatch: %s: %s' % (who, e.strerror or e), file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)           # what standard output still holds
        return 1
    except KeyboardInterrupt:
        return 130


def leave(code):
    """Ends the process, without taking it apart piece by piece as Python does: that takes longer
    than `status`."""
    for each in (sys.stdout, sys.stderr):
        try:
            each.flush()
        except (OSError, AttributeError):          # None, if it was closed
            pass
    os._exit(code)


if __name__ == '__main__':
    leave(main(sys.argv[1:]))
