#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""banwatch keeps password guessers off a router: it follows the log, counts failed logins per
address, and bans offenders in the kernel's firewall, for longer each time.

    log file ─┐                                             ┌─> iptables-restore
    logread  ─┤  bytes   ┌───────┐ failure ┌──────┐ ticket  │   (one batch a turn)
    fifo     ─┼─────────>│ Jails │────────>│ Bans │─────────┤
    udp      ─┤  lines   └───────┘         └──────┘         └─> state, JSON
    program  ─┘      filter, count, limits    ^
                                              └── banwatch ban / unban, over a Unix socket

What it touches, as root
    runs      iptables, ip6tables (and their -save, -restore forms); logread or journalctl if they
              are the log source; the programs named in `source = exec:...`. Never a shell.
    writes    `runtime` (/var/run/banwatch: lock, socket, live state), `state` (/etc/banwatch.state),
              nothing else (each with .new while it is written, .bad if it could not be used); a
              FIFO that `source` names is made if it is missing.
    reads     the log files, its conf, /proc, the resolv.conf files, addresses and routes (netlink).
    listens   on its Unix socket; on UDP only if `source = udp:...`, on loopback unless told otherwise.

Map, from the ground up; a section names only itself and what stands above it:
    Values  Options  Lines  Filters  Fails  Bans  Jail  Firewalls  State          decide, and are pure
    ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~ water line ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
    Machine  Sources  Control  Daemon  Commands  Main                             act

Two doors: every new ban goes through Daemon.ban, every release through Daemon.unban.
"""

import binascii
import bisect
import collections
import errno
import fcntl
import functools
import getopt
import glob
import heapq
import ipaddress
import json
import os
import random
import re
import sched
import selectors
import shlex
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
import traceback

VERSION = '0.1'


# ---- Values --------------------------------------------------------------------------------
# Owns: nothing. The plain values that all sections speak in, and how they look as text. Always
# true: an address or network is the text that `ipaddress` printed for it; a length is in seconds
# (FOREVER for a permanent ban); a moment is in seconds of one clock, always passed as an argument.

FOREVER = -1
PLAIN_LINE = 8192                    # bytes of a line that are looked at; the rest is cut

Command = collections.namedtuple('Command', 'argv stdin')
# What one line of a log said: `login` is True for a success; `guesses` is how many it stands for.
Sighting = collections.namedtuple('Sighting', 'ip user guesses login when')
# Why an address has to go: where it was counted, and for how long.
Offence = collections.namedtuple('Offence', 'network failures seconds')
# A stretch of addresses that is never banned, as numbers, with the reason for the operator.
Free = collections.namedtuple('Free', 'version first last why')


class Problem(Exception):
    """One line for the operator: what, where, what to do. `code` is the exit code it ends with."""

    def __init__(self, text, code=1):
        Exception.__init__(self, text)
        self.code = code


class Ticket:
    """One ban: `network` is shut out by `jail` from `since` to `until` (None: for ever), in ticks."""
    __slots__ = ('jail', 'network', 'since', 'until', 'count', 'failures')

    def __init__(self, jail, network, since, until, count, failures):
        self.jail = jail
        self.network = network
        self.since = since
        self.until = until
        self.count = count           # how many bans of this network in this jail, this one included
        self.failures = failures     # that led to it

    @property
    def key(self):
        return self.jail, self.network

    def left(self, now):
        """Seconds it still lasts, FOREVER for a permanent one."""
        return FOREVER if self.until is None else max(0, self.until - now)


SECONDS = {'': 1, 's': 1, 'm': 60, 'h': 3600, 'd': 86400, 'w': 604800, 'mo': 2629800, 'y': 31557600}
DURATION = re.compile(r'\s*(\d+(?:\.\d+)?)\s*(mo|[smhdwy]?)', re.I)


def duration(text):
    """Seconds that '600', '10m', '2h30m' or '7d' stand for (fail2ban's units, no arithmetic)."""
    total, end = 0, 0
    for part in iter(lambda: DURATION.match(text, end), None):
        if not part.group(2) and (end or part.end() != len(text)):
            break                                  # a number without unit stands alone
        total, end = total + float(part.group(1)) * SECONDS[part.group(2).lower()], part.end()
    if not end or end != len(text) or total > 100 * SECONDS['y']:
        raise ValueError('is not a duration (try 600, 10m, 2h30m, 7d)')
    return int(total) if total == int(total) else total


def duration_text(seconds):
    """'2h30m' for 9000; the two largest units, 'for ever' for FOREVER."""
    if seconds == FOREVER:
        return 'for ever'
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
    return duration_text(seconds) if seconds == FOREVER else 'for ' + duration_text(seconds)


@functools.lru_cache(maxsize=2048)
def address(text):
    """The address in `text` as text: IPv4 for ::ffff:a.b.c.d, without zone; ValueError if it is none."""
    ip = ipaddress.ip_address(text.strip('[]').partition('%')[0])
    return str(getattr(ip, 'ipv4_mapped', None) or ip)


@functools.lru_cache(maxsize=2048)
def network(text, ipv4prefix=32, ipv6prefix=128):
    """The network around `text` (an address or network) as text; a single address has no prefix."""
    if '%' in text and '/' in text:
        raise ValueError('a network has no zone')
    net = ipaddress.ip_network(text if '/' in text else address(text), strict=False)
    if '/' not in text:
        prefix = ipv4prefix if net.version == 4 else ipv6prefix
        net = net if prefix == net.prefixlen else net.supernet(new_prefix=prefix)
    return str(net) if net.prefixlen < net.max_prefixlen else str(net.network_address)


@functools.lru_cache(maxsize=2048)
def span(text):
    """(version, first, last) of an address or network, as numbers."""
    net = ipaddress.ip_network(text)
    first = int(net.network_address)
    return net.version, first, first + net.num_addresses - 1


def free(text, why):
    """The row for an address or network that must never be banned, because it is `why`."""
    return Free(*(span(network(text)) + ('%s (%s)' % (network(text), why),)))


def overlap(text, frees):
    """Which of `frees` the network touches, as text; '' if none."""
    return next((row.why for row in frees if meet(span(text), row)), '')


def meet(one, other):
    """True if two spans share an address."""
    return one[0] == other[0] and one[1] <= other[2] and other[1] <= one[2]


def touches(one, other):
    """True if two networks share an address."""
    return meet(span(one), span(other))


NEVER = tuple(free(text, why) for text, why in (
    ('0.0.0.0', 'no address'), ('255.255.255.255', 'broadcast'), ('224.0.0.0/4', 'multicast'),
    ('169.254.0.0/16', 'link-local'), ('::', 'no address'), ('fe80::/10', 'link-local'),
    ('ff00::/8', 'multicast')))


def printable(text):
    """`text` with all that could move a cursor, forge a line or break a terminal written as escapes."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


def quoted(text):
    return "'%s'" % printable(text)


def plural(n, word, many=''):
    """'1 ban', '2 bans'."""
    return '%s %s' % (format(n, ','), word if n == 1 else many or word + 's')


def table(head, rows):
    """Lines of a plain text table, each column as wide as it must be, numbers to the right."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows)]
    right = [all(row[i].replace(',', '').isdigit() for row in rows) for i in range(len(head))]
    for row in [head] + rows:
        yield '  '.join(cell.rjust(w) if r else cell.ljust(w)
                        for cell, w, r in zip(row, widths, right)).rstrip()


# ---- Options -------------------------------------------------------------------------------
# Owns: nothing. One row of OPTIONS is the whole of an option: what reads it, its default, and the
# line of banwatch.conf that explains it. Always true: reading a conf finds every problem in one
# go, each with its line; what `config_text` prints reads back as the same configuration.

def count(text):
    if not text.isdigit() or not 1 <= int(text) <= 1000000:
        raise ValueError('is not a number from 1 to 1000000')
    return int(text)


def count_or_auto(text):
    return None if text == 'auto' else count(text)


def number(text):
    if not re.match(r'\d{1,9}(\.\d{1,9})?$', text):
        raise ValueError('is not a number (try 1, 2.5)')
    return float(text)


def numbers(text):
    return [number(word) for word in text.split()]


def flag(text):
    try:
        return {'true': True, 'yes': True, 'on': True, '1': True,
                'false': False, 'no': False, 'off': False, '0': False}[text.lower()]
    except KeyError:
        raise ValueError('is neither true nor false') from None


def length(text):
    seconds = duration(text)
    if seconds < 1:
        raise ValueError('is too short (1s at least)')
    return seconds


def ban_seconds(text):
    return FOREVER if text == '-1' else length(text)


def path(text):
    if not text.startswith('/'):
        raise ValueError('is not an absolute path')
    return text


def networks(text):
    found, bad = [], []
    for word in text.replace(',', ' ').split():
        try:
            found.append(free(network(word), 'ignoreip'))
        except ValueError:
            bad.append(word)
    if bad:
        raise ValueError('%s: no address or network (names are not looked up)' % quoted(' '.join(bad)))
    return tuple(found)


def lines(text):
    return [line for line in text.split('\n') if line]


def paragraphs(text):
    """Lists of lines; an empty line ends a list. See Filters for what the lists mean."""
    return [part.split('\n') for part in re.split(r'\n{2,}', text) if part]


PORTS = {'ssh': '22', 'http': '80', 'https': '443', 'ftp': '21', 'smtp': '25', 'submission': '587',
         'imap': '143', 'imaps': '993', 'pop3': '110', 'pop3s': '995', 'openvpn': '1194'}


def ports(text):
    """'22,8000:8080' for 'ssh,8000:8080'; '' for all ports."""
    if text in ('', 'all', 'any', '0:65535', '1:65535'):
        return ''
    words = text.replace(',', ' ').split()
    found = [PORTS.get(word, word).replace('-', ':') for word in words]
    bad = [word for word, port in zip(words, found) if not port_range(port)]
    if bad:
        raise ValueError('%s: no port (try 22, ssh, 8000:8080)' % quoted(' '.join(bad)))
    if len(found) > 15:
        raise ValueError('names over 15 ports (each is a rule of its own)')
    return ','.join(found)


def port_range(text):
    """True for '22' and '8000:8080'."""
    ends = text.split(':')
    return (len(ends) < 3 and all(end.isdigit() and 0 < int(end) < 65536 for end in ends)
            and int(ends[0]) <= int(ends[-1]))


def choice(*known):
    def one_of(text):
        if text not in known:
            raise ValueError('is not one of: ' + ' '.join(known))
        return text
    return one_of


def some_of(*known):
    def words(text):
        found = text.replace(',', ' ').split()
        if not found or set(found) - set(known):
            raise ValueError('is not a choice of: ' + ' '.join(known))
        return found
    return words


def prefix(least, most):
    def bits(text):
        if not text.isdigit() or not least <= int(text) <= most:
            raise ValueError('is not a prefix length from %d to %d' % (least, most))
        return int(text)
    return bits


SOURCE = re.compile(r'auto|logread|-|/\S.*|fifo:/\S.*|exec:/\S.*|'
                    r'udp:(?:(?:\[[\da-fA-F:]+\]|[\d.]+):)?(?P<port>\d{1,5})')


def sources(text):
    bad = [line for line in lines(text) if not is_source(line)]
    if bad:
        raise ValueError('%s: no log source (one a line: auto, logread, /var/log/messages, fifo:/PATH, '
                         'udp:127.0.0.1:5514, exec:/PROGRAM ARGS, -)' % quoted(' | '.join(bad)))
    return lines(text)


def is_source(line):
    m = SOURCE.fullmatch(line)
    try:
        return bool(m and 0 < int(m.group('port') or 1) < 65536
                    and (shlex.split(line) if line.startswith('exec:') else not re.search(r'[,\s]/', line)))
    except ValueError:                             # an open quotation
        return False


Option = collections.namedtuple('Option', 'section name read default help')

# section 'banwatch': once for the program; 'DEFAULT': for every jail, where it may be set anew
OPTIONS = [Option(*row) for row in (
    ('banwatch', 'source', sources, 'auto',
     'Where the log is: auto | logread | /PATH (globs allowed) | fifo:/PATH | exec:/PROGRAM ARGS |\n'
     'udp:PORT (on loopback) | udp:ADDR:PORT | - (standard input). One a line, several allowed.'),
    ('banwatch', 'firewall', choice('auto', 'iptables', 'none'), 'auto',
     'auto | iptables | none. `none` counts and reports but bans nobody.'),
    ('banwatch', 'chain', some_of('INPUT', 'FORWARD'), 'INPUT FORWARD',
     'Which packets a ban stops: to the router itself (INPUT), through it (FORWARD).'),
    ('banwatch', 'runtime', path, '/var/run/banwatch',
     'Folder for the socket, the lock and the live state. Best on a RAM disk.'),
    ('banwatch', 'state', path, '/etc/banwatch.state',
     'The copy of bans and history that outlives a reboot. On flash: see `save`.'),
    ('banwatch', 'save', length, '1h',
     'Write that copy at most this often. A power failure forgets at most this much.'),
    ('banwatch', 'poll', length, '1s',
     'How often log files are looked at. Longer saves power, and is how late a ban may be.'),
    ('banwatch', 'maxtracked', count, '10000',
     'At most this many addresses with failures in memory; the least recently seen go first.'),
    ('banwatch', 'maxbans', count_or_auto, 'auto',
     'At most this many bans; the ones nearest their end go first. auto is 20000, or 100 for\n'
     'each MB of RAM if that is less. Plain iptables holds 2000.'),
    ('banwatch', 'dbpurgeage', length, '30d',
     'How long after its last ban an address is remembered, and banned longer next time.'),
    ('DEFAULT', 'enabled', flag, 'true', 'false switches a jail off.'),
    ('DEFAULT', 'filter', str, '', 'The filter of a jail. Empty: the one that is named like the jail.'),
    ('DEFAULT', 'failregex', paragraphs, '',
     'Your own regexes, one a line, in fail2ban\'s language, instead of the filter\'s.'),
    ('DEFAULT', 'ignoreregex', lines, '', 'Lines that match one of these are never failures.'),
    ('DEFAULT', 'source', sources, '',
     'A log for this jail alone (also called logpath). Empty: those of [banwatch].'),
    ('DEFAULT', 'port', ports, '',
     'Ports that a ban closes: numbers, names, ranges, at most 15. Empty: all of them.'),
    ('DEFAULT', 'protocol', some_of('tcp', 'udp'), 'tcp', 'tcp, udp or both; matters only with `port`.'),
    ('DEFAULT', 'maxretry', count, '5', 'This many failures ...'),
    ('DEFAULT', 'findtime', length, '10m', '... within this time are a ban ...'),
    ('DEFAULT', 'bantime', ban_seconds, '10m', '... of this length, -1 for ever.'),
    ('DEFAULT', 'bantime.increment', flag, 'true', 'Each further ban of an address is longer:'),
    ('DEFAULT', 'bantime.factor', number, '1', 'bantime x factor x 1, 2, 4, 8 ... up to bantime.maxtime'),
    ('DEFAULT', 'bantime.multipliers', numbers, '',
     'or, if this is set, bantime x factor x the n-th of these; the last one serves from then on.'),
    ('DEFAULT', 'bantime.maxtime', length, '4w', 'No ban is longer than this, but for those of -1.'),
    ('DEFAULT', 'bantime.rndtime', duration, '0',
     'Add a random time up to this, so that a botnet cannot learn when a ban ends.'),
    ('DEFAULT', 'bantime.overalljails', flag, 'false', 'Count the bans of all jails, not of this one alone.'),
    ('DEFAULT', 'bantime.extend', duration, '0',
     'Each attempt seen during a ban makes it this much longer (0: not at all).'),
    ('DEFAULT', 'ignoreip', networks, '127.0.0.0/8 ::1',
     'Addresses and networks that are never banned: put your own fixed address here.'),
    ('DEFAULT', 'ignoreself', flag, 'true',
     'Nor are this machine, its LAN, the gateway and the resolvers. Leave this on.'),
    ('DEFAULT', 'ignorelogin', duration, '1h',
     'After a login, mistyping that same user\'s password from there is forgiven for this long.'),
    ('DEFAULT', 'ipv4prefix', prefix(8, 32), '32', 'Count and ban IPv4 addresses by networks of this size.'),
    ('DEFAULT', 'ipv6prefix', prefix(32, 128), '64', 'The same for IPv6, where an attacker owns a /64.'),
)]
ROWS = {(row.section, row.name): row for row in OPTIONS}
ALIASES = {'logpath': 'source'}
# the jails that are on without being written down, and what they do not take from [DEFAULT]
JAILS = {'dropbear': {}, 'sshd': {}, 'luci': {'port': 'http,https', 'ignorelogin': '0'}}
NOTES = {'luci': '; LuCI logs whatever its client sends, line breaks too. So this jail closes the web\'s ports\n'
                 '; only, and a login that it reports forgives nobody.'}
MANUAL = 'manual'                                  # the jail of bans by hand
SECTIONS = {
    'banwatch': 'banwatch.conf: every option with its default. All of it may be left out.\n'
                'A comment is a line that starts with ; or #, or follows ` ;`. Times: 600, 10m, 2h30m, 7d, 4w.\n'
                'After a change: banwatch.py check, then banwatch.py reload.',
    'DEFAULT': 'For every jail; a jail may set each of these anew.'}


class Config:
    """What a conf file says; asked by section and option, it answers with the defaults filled in."""

    def __init__(self, name='built-in defaults'):
        self.name = name
        self.settings = {}           # section -> {option: (value, text, line)}, as written
        self.lines = {}              # section -> line of its head

    def __getitem__(self, option):
        return self.get('banwatch', option)

    def get(self, section, option):
        """The value in force, parsed."""
        row = ROWS['banwatch' if section == 'banwatch' else 'DEFAULT', option]
        if option in self.settings.get(section, ()):
            return self.settings[section][option][0]
        if option in JAILS.get(section, ()):
            return row.read(JAILS[section][option])
        if option in self.settings.get('DEFAULT', ()):
            return self.settings['DEFAULT'][option][0]
        return row.read(row.default)

    def text(self, section, option):
        """The value in force, as it was written."""
        if option in self.settings.get(section, ()):
            return self.settings[section][option][1]
        return ROWS[section, option].default

    def where(self, section, option=None):
        """'file:line' of an option, or of its section."""
        said = self.settings.get(section, {}).get(option)
        at = said[2] if said else self.lines.get(section)
        return '%s:%d' % (self.name, at) if at else self.name

    def jail(self, name):
        """All options of a jail, name -> value."""
        return {row.name: self.get(name, row.name) for row in OPTIONS if row.section == 'DEFAULT'}

    def jails(self):
        """Names of the jails that are on."""
        written = [name for name in self.settings if name not in ('banwatch', 'DEFAULT', MANUAL)]
        known = [name for name in JAILS if name not in written]
        return [name for name in known + written if self.get(name, 'enabled')]


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
            yield n, None, None, quoted(line.strip()) + (
                ' stands before any [section]' if pair else
                ' must begin in the first column' if re.match(r'\s+(\[.+\]|[\w.]+\s*=)', line) else
                ' is neither a [section] nor `option = value`')


def read_config(text, name):
    """(Config, problems): the problems are 'file:line: what is wrong', all of them at once."""
    config, problems = Config(name), []
    for n, section, key, value in read_ini(text):
        complaint = value if section is None else take(config, n, section, key, value)
        if complaint:
            problems.append('%s:%d: %s' % (name, n, complaint))
    return config, problems


def take(config, n, section, key, value):
    """Puts one entry of a conf file into `config`; returns what is wrong with it, or ''."""
    if key is None:
        if section in config.lines:
            return '[%s] stands here twice' % printable(section)
        config.lines[section] = n
        if section in SECTIONS or re.match(r'[A-Za-z0-9][\w.-]{0,29}$', section):
            config.settings[section] = {}
            return ''
        return '[%s]: a jail\'s name is up to 30 letters, digits, dots and dashes' % printable(section)
    said = config.settings.get(section, {})
    key = ALIASES.get(key, key)
    row = ROWS.get(('banwatch' if section == 'banwatch' else 'DEFAULT', key))
    if not row:
        return '%s: no such option in [%s]%s' % (printable(key), printable(section), near(key, section))
    if key in said:
        return '%s: stands in [%s] twice' % (key, section)
    said[key] = row.read(row.default), value, n
    try:
        said[key] = row.read(value), value, n
    except ValueError as e:
        text = str(e)
        hint = ' (a comment after a value starts with ` ;`)' if re.search('[#;]', value) else ''
        return '%s: %s%s' % (key, text if text.startswith("'") else '%s %s' % (quoted(value), text), hint)
    return ''


def near(key, section):
    """A hint for a mistyped or misplaced option: ' (did you mean maxretry?)'."""
    there = [s for s, name in ROWS if name == key]
    if there:
        return ' (it belongs into [%s])' % there[0]
    import difflib
    known = [row.name for row in OPTIONS if (row.section == 'banwatch') == (section == 'banwatch')]
    found = difflib.get_close_matches(key, known, 1)
    return ' (did you mean %s?)' % found[0] if found else ''


def in_order(problems):
    """Problems ('file:line: ...') by line."""
    return sorted(problems, key=lambda text: int((re.search(r':(\d+): ', text) or [0, 0])[1]))


def config_text(config):
    """The effective configuration in its own syntax, each option explained; reads back the same."""
    out = []
    for section in SECTIONS:
        out += ['; ' + line for line in SECTIONS[section].split('\n')] + ['', '[%s]' % section]
        for row in OPTIONS:
            if row.section == section:
                out += ['; ' + line for line in row.help.split('\n')]
                out.append(setting_text(row.name, config.text(section, row.name)))
        out.append('')
    out.append('; A jail. Without a `filter` of its own it takes the one that is named like it.')
    for name in list(JAILS) + [s for s in config.settings if s not in SECTIONS and s not in JAILS]:
        said = dict({'enabled': 'true'}, **JAILS.get(name, {}))
        said.update((key, value[1]) for key, value in config.settings.get(name, {}).items())
        out += [NOTES[name]] if name in NOTES else []
        out += ['[%s]' % name] + [setting_text(key, said[key]) for key in said] + ['']
    return '\n'.join(out)


def setting_text(key, text):
    return ('%s = %s' % (key, text.replace('\n', '\n    '))).rstrip()


# ---- Lines ---------------------------------------------------------------------------------
# Owns: nothing. Knows the forms in which log daemons write a line, and takes one apart:
#     Thu Nov 20 12:27:01 2026 authpriv.warn dropbear[123]: text      OpenWrt's logread (-t too)
#     Nov 20 12:27:01 host prog[1]: text, Nov 20 12:27:01 prog[1]: text    RFC 3164, busybox -S
#     Nov 20 12:27:01 host authpriv.warn prog[1]: text                busybox syslogd
#     2026-11-20T12:27:01.123+01:00 host prog[1]: text                rsyslog, journalctl
#     <86>Nov 20 12:27:01 host prog[1]: text                          datagrams
#     <86>1 2026-11-20T12:27:01Z host prog 1 - [x y="z"] text         RFC 5424
#     1795179705.484 prog[1]: text;  prog[1]: text;  text             epoch; no date; nothing
# Always true: all of it works on bytes, and a line's program is never taken from its message.

Line = collections.namedtuple('Line', 'date host program pid times message')

DATE = (br'(?:[A-Z][a-z]{2} )?[A-Z][a-z]{2} [ \d]?\d \d\d:\d\d:\d\d(?:\.\d+)?(?: \d{4}(?= ))?'
        br'|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z| ?[+-]\d\d:?\d\d)?'
        br'|\d{10}(?:\.\d+)?')
LEVEL = br'(?:[a-z]+\d?|<unknown>)\.[a-z]+ '
TAG = br'(?P<program>[^\s:\[\]]*)(?:\[(?P<pid>\d+)\])?:(?: |$)'
LOGREAD = re.compile(br'(?P<date>[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4})(?P<host>)'
                     br'(?: \[\d+\.\d+\])? ' + LEVEL + TAG)
RFC5424 = re.compile(br'<\d{1,3}>1 (?P<date>\S+) (?P<host>\S+) (?P<program>\S+) (?P<pid>\S+) \S+ '
                     br'(?:-|(?:\[[^\]"]*(?:"(?:[^"\\]|\\.)*"[^\]"]*)*\])+) ?(?:\xef\xbb\xbf)?')
HEAD = re.compile(br'(?:<(?P<pri>\d{1,3})>)?(?:(?P<date>' + DATE + br') )?')
REST = re.compile(br'(?:(?!' + LEVEL + br')(?P<host>[^\s:\[\]]+) )?(?:' + LEVEL + br')?' + TAG)
PREFIXED = re.compile(br'(?P<program>[^\s:\[\]]+)\[(?P<pid>\d+)\]: ')
REPEATED = re.compile(br'message repeated (\d{1,9}) times: \[ ?(.*?) ?\]$', re.S)
AUTH = (b'4', b'10')                               # facilities auth and authpriv, as PRI >> 3
MOST_TIMES = 100                                   # what one `message repeated` may count at most


def read_line(line):
    """The Line in `line` (bytes, no newline); program None if it has no tag at all."""
    m, pri = RFC5424.match(line) or LOGREAD.match(line), None
    if m:
        date, host, program, pid = m.group('date', 'host', 'program', 'pid')
        program, pid = (None if field == b'-' else field for field in (program, pid))  # NILVALUE
    else:
        head = HEAD.match(line)
        pri, date = head.group('pri', 'date')
        m = REST.match(line, head.end())
        if m is None:
            return Line(date, b'', None, None, 1, line[head.end():])
        host, program, pid = m.group('host', 'program', 'pid')
    message = line[m.end():]
    if pri and not pid and b'%d' % (int(pri) >> 3) in AUTH:
        inner = PREFIXED.match(message)            # logd's `log_prefix`; only where a login may be logged
        if inner:
            program, pid, message = inner.group(1), inner.group(2), message[inner.end():]
    if message.startswith(b'message repeated '):
        m = REPEATED.match(message)
        if m:
            return Line(date, host, program, pid, min(int(m.group(1)), MOST_TIMES), m.group(2))
    return Line(date, host, program, pid, 1, message)


MONTHS = 'Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec'.split()
ISO = re.compile(r'(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)([.,]\d+)?(Z| ?[+-]\d\d:?\d\d)?$')
CTIME = re.compile(r'(?:\w{3} )?(\w{3}) ([ \d]?\d) (\d\d):(\d\d):(\d\d)(\.\d+)?(?: (\d{4}))?$')


@functools.lru_cache(maxsize=256)
def date_time(date, today):
    """Seconds since 1970 of a line's date (bytes), None if it is none. `today` (days since 1970, of
    now) fills in a missing year: the one that brings the date nearest to, but not past, tomorrow."""
    text = date.decode('ascii', 'replace')
    m = ISO.match(text)
    try:
        if m:
            return iso_time(m)
        m = CTIME.match(text)
        if m is None:
            when = float(text)
            return when if abs(when) < 1e11 else None
        month, day = MONTHS.index(m.group(1)) + 1, int(m.group(2))
        clock = int(m.group(3)), int(m.group(4)), int(m.group(5)), 0, 0, -1
        year = int(m.group(7) or time.gmtime(today * 86400).tm_year)
        when = time.mktime((year, month, day) + clock)
        if not m.group(7) and when > (today + 2) * 86400:
            when = time.mktime((year - 1, month, day) + clock)
        return when + float(m.group(6) or 0)
    except (ValueError, OverflowError):
        return None


def iso_time(m):
    fields = tuple(int(part) for part in m.groups()[:6])
    fraction, zone = float((m.group(7) or '0').replace(',', '.')), m.group(8)
    if not zone:
        return time.mktime(fields + (0, 0, -1)) + fraction
    import calendar
    digits = zone.strip(' Z').replace(':', '')
    offset = int(digits[1:3]) * 3600 + int(digits[3:]) * 60 if digits else 0
    offset = -offset if digits[:1] == '-' else offset
    return calendar.timegm(fields + (0, 0, 0)) - offset + fraction


# ---- Filters -------------------------------------------------------------------------------
# Owns: compiled regexes, and for each connection (host, program, pid) what it has said so far.
# Always true: a regex sees one line's message, from its first byte; what it captures is an
# address only if `ipaddress` says so.
#
# The language is fail2ban's: <HOST> is the address, <F-USER>...</F-USER> the user; a line with
# <F-NOFAIL> only tells a connection's address, one with <F-MLFGAINED> is a login; <F-MLFID> is the
# connection, if it is not the pid; <F-CONTENT> in prefregex is what the other regexes see. Two
# things are added. An empty line parts a failregex into kinds: one guess makes a daemon write
# several lines, but at most one of each kind; so a connection has made as many guesses as it has
# lines of its most frequent kind. And a line with <F-CHILD> may come from a process that was forked
# for one guess, with a pid of its own (PAM, when sshd asks for a keyboard-interactive password): it
# belongs to a connection of the same address that has no such line yet, or to the next guess there.

Match = collections.namedtuple('Match', 'kind verdict ip user mlfid child')

FILTERS = {
    'dropbear': {
        'program': r'dropbear',
        # `dropbear -E`, caught by procd, writes the connection's pid and its date in front
        'prefregex': r'^(?:\[<F-MLFID>\d+</F-MLFID>\] \w{3} [ \d]\d \d\d:\d\d:\d\d )?<F-CONTENT>.+</F-CONTENT>$',
        'failregex': r"""
            ^<F-NOFAIL>Child connection</F-NOFAIL> from <HOST>:\d+$
            ^<F-NOFAIL>Exit before auth</F-NOFAIL> from <<HOST>:\d+>: \(user '.*', \d+ fails\): .*$
            ^<F-NOFAIL>[Ee]xit before auth</F-NOFAIL>(?: \(user '.*', \d+ fails\))?: Max auth tries reached - user '.*' from <HOST>:\d+$
            ^<F-MLFGAINED>(?:(?:PAM )?[Pp]assword auth succeeded|[Pp]ubkey auth succeeded|Auth succeeded with blank password)</F-MLFGAINED> for '<F-USER>[^']*</F-USER>'(?: with (?:\S+ )?key (?:\S+ )?\S+)? from <HOST>:\d+$

            ^[Bb]ad (?:PAM )?password attempt for '<F-USER>.*</F-USER>' from <HOST>:\d+$
            ^Too-long password attempt for '<F-USER>.*</F-USER>' from <HOST>:\d+$
            ^Pubkey auth bad signature for '<F-USER>.*</F-USER>' with (?:\S+ )?key (?:\S+ )?\S+ from <HOST>:\d+$
            ^[Ll]ogin attempt for nonexistent user(?: '.*')? from <HOST>:\d+$
            ^Login attempt for nonexistent user$
            ^Login attempt with wrong user \S+ from <HOST>:\d+$
            ^Login attempt with wrong user \S+$
            ^User '<F-USER>.*</F-USER>' has (?:invalid shell|blank password), rejected$
            ^Logins are restricted to the group \S+ but user '<F-USER>.*</F-USER>' is not a member$
            ^User account '<F-USER>.*</F-USER>' is locked$
            ^root login rejected$
            ^Client trying multiple usernames from <HOST>:\d+$

            ^Exit before auth from <<HOST>:\d+>: (?!\(user ')
            ^[Ee]xit before auth: (?!Max auth tries reached - user ')
        """},
    'sshd': {
        'program': r'sshd(?:-session|-auth|\(pam_unix\))?',
        # sshd writes up to 100 bytes of a name, but four characters for each that is not ASCII: where
        # a log daemon cuts lines at 255 bytes, what is left could end in an address from the name
        'prefregex': r'^(?!(?=.{150,256}$).*\\\d\d\d)(?:error: |fatal: )?<F-CONTENT>.+?</F-CONTENT>(?: \[preauth\])?$',
        'failregex': r"""
            ^<F-MLFGAINED>Accepted</F-MLFGAINED> \S+ for <F-USER>\S+</F-USER> from <HOST> port \d+(?: ssh\d)?(?:: .*)?$

            ^Failed (?!none |publickey |hostbased |keyboard-interactive)\S+ for (?:invalid user |illegal user )?<F-USER>.*</F-USER> from <HOST> port \d+(?: ssh\d)?$
            ^PAM: (?:(?! for ).)+(?: for service)? for (?:illegal user |invalid user )?<F-USER>.*</F-USER> from <HOST>(?: via \S+)?$

            ^Failed keyboard-interactive\S* for (?:invalid user |illegal user )?<F-USER>.*</F-USER> from <HOST> port \d+(?: ssh\d)?$

            ^Failed publickey for (?:invalid user|illegal user) <F-USER>.*</F-USER> from <HOST> port \d+(?: ssh\d)?(?:: \S+ \S+)?$

            ^Failed none for (?:invalid user |illegal user )?<F-USER>.*</F-USER> from <HOST> port \d+(?: ssh\d)?$

            ^Invalid user <F-USER>.*</F-USER> from <HOST>(?: port \d+)?$
            ^Illegal user <F-USER>.*</F-USER> from <HOST>(?: port \d+)?$

            ^(?:pam_\w+\(sshd:auth\): )?<F-CHILD>authentication failure</F-CHILD>; logname=\S* uid=\d+ euid=\d+ tty=\S* ruser=\S* rhost=<HOST>(?:\s+user=<F-USER>.*</F-USER>)?\s*$

            ^User <F-USER>.*</F-USER> from <HOST> not allowed because (?:not listed in AllowUsers|listed in DenyUsers|not in any group|none of user's groups are listed in AllowGroups|a group is listed in DenyGroups|account is locked|shell \S+ (?:does not exist|is not executable))$

            ^ROOT LOGIN REFUSED FROM <HOST>(?: port \d+)?$

            ^maximum authentication attempts exceeded for (?:invalid user |illegal user )?<F-USER>.*</F-USER> from <HOST> port \d+(?: ssh\d)?$
        """},
    'luci': {
        # The path and the user are the client's own text, and logd cuts a line at 1023 bytes: one that
        # may have been cut could end in an address that the client wrote. Nor can this log be trusted
        # beyond that (a user name may hold line breaks), so its bans close the web's ports only, and
        # its logins forgive nobody: see JAILS.
        'program': r'(?:uhttpd|luci|nginx|uwsgi|lighttpd|dispatcher\.uc)?',
        'prefregex': r'^(?!.{960,1024}$)(?:\[info\] )?(?:luci: )?<F-CONTENT>(?:failed|accepted) login on /.*</F-CONTENT>$',
        'failregex': r"""
            ^<F-MLFGAINED>accepted login</F-MLFGAINED> on .* for <F-USER>\S+</F-USER> from <HOST>$

            ^failed login on .* for <F-USER>(?:(?! for ).)*</F-USER> from <HOST>$
        """},
}

TAGS = {
    'IP4': r'(?:::[fF]{4,6}:)?(?P<ip4>(?:\d{1,3}\.){3}\d{1,3})',
    'IP6': r'(?P<ip6>(?:[0-9a-fA-F]{1,4}::?|:){1,7}(?:[0-9a-fA-F]{1,4}|(?<=:):)(?:%[\w.-]+)?)',
    'DNS': r'(?P<dns>[\w\-.^_]*\w)'}
TAGS['ADDR'] = r'\[?(?:%(IP4)s|%(IP6)s)\]?' % TAGS
TAGS['HOST'] = r'(?:%(ADDR)s|%(DNS)s)' % TAGS
FIELDS = ('USER', 'NOFAIL', 'MLFGAINED', 'MLFID', 'CONTENT', 'CHILD')
SESSIONS = 1000                                    # connections remembered per filter
CHILDREN = 64                                      # ... and per address, those that may be a child
SESSION_SECONDS = 600                              # dropbear gives up after 300 s, sshd after 120


def compile_regex(text):
    """The compiled form (bytes) of a regex in fail2ban's language; ValueError says what is wrong."""
    regex = re.sub(r'<(/?)F-(%s)>' % '|'.join(FIELDS),
                   lambda m: ')' if m.group(1) else '(?P<%s>' % m.group(2).lower(), text)
    regex = re.sub(r'<(%s)>' % '|'.join(TAGS), lambda m: TAGS[m.group(1)], regex)
    try:
        return re.compile(regex.encode())
    except (re.error, OverflowError, RecursionError) as e:
        raise ValueError('%s is not a regex: %s' % (quoted(text), getattr(e, 'msg', e))) from None


def literal(regex):
    """The most telling text that must stand in whatever matches `regex` (bytes): the longest, but
    rather its beginning than a short word such as ' from '."""
    try:
        from re import _parser as parser           # since Python 3.11
    except ImportError:
        import sre_parse as parser
    runs, parsed = [b''], parser.parse(regex)
    if (getattr(parsed, 'state', None) or parsed.pattern).flags & re.I:        # `pattern` until Python 3.7
        return b''
    todo = list(parsed)[::-1]
    while todo:
        op, arg = todo.pop()
        name = str(op)
        if name == 'LITERAL':
            runs[-1] += bytes([arg])
        elif name == 'SUBPATTERN' and not arg[1] & re.I:
            todo += list(arg[-1])[::-1]
        elif name not in ('AT', 'ASSERT', 'ASSERT_NOT'):
            runs.append(b'')
    return max(runs, key=lambda run: len(run) - 4 * (run is not runs[0]))


class Session:
    """What one connection has said: its address and user, lines of each kind, guesses counted."""
    __slots__ = ('ip', 'user', 'lines', 'counted', 'pending', 'seen')

    def __init__(self):
        self.ip = self.user = None
        self.lines = {}              # kind -> how many lines of it
        self.counted = 0             # guesses so far
        self.pending = 0             # of these, the ones that still wait for an address
        self.seen = None


class Filter:
    """One jail's filter: `read` turns a line into a Sighting."""

    def __init__(self, program, failregex, ignoreregex=(), prefregex=''):
        self.program = re.compile(b'(?:%s)$' % program.encode()) if program is not None else None
        self.prefregex = compile_regex(prefregex) if prefregex else None
        self.rows = [(kind, compile_regex(text)) for kind, part in enumerate(failregex) for text in part]
        self.ignore = [compile_regex(text) for text in ignoreregex]
        self.literals = {literal(regex.pattern) for _, regex in self.rows}
        self.sessions = {}           # (host, program, pid) -> Session, least recently seen first
        self.parents = {}            # (host, ip) -> identity of its latest session
        self.children = {}           # (host, ip) -> identities of sessions that may be a child of that
        self.names = 0               # failures that named a host, not an address

    def wants(self, line, bare):
        """True if this line is from a program that the filter reads; `bare` lets tagless lines in."""
        if self.program is None:
            return True
        return bare if line.program is None else bool(self.program.match(line.program))

    def match(self, line, raw):
        """The Match for a line, or None."""
        if self.program is None:                   # as in fail2ban: all of the line but its date
            message = raw.replace(line.date, b'', 1) if line.date else raw
        else:
            message = line.message
        message, before = message.rstrip(b'\r\n'), {}
        if self.prefregex:
            m = self.prefregex.match(message)
            if m is None:
                return None
            before = m.groupdict()
            message = before.get('content') or message
        for kind, regex in self.rows:
            m = regex.search(message)
            if m:
                ignored = any(r.search(message) for r in self.ignore)
                return None if ignored else self.found(kind, dict(before, **m.groupdict()))
        return None

    def found(self, kind, group):
        verdict = 'nofail' if group.get('nofail') else 'login' if group.get('mlfgained') else 'fail'
        ip, user = group.get('ip4') or group.get('ip6'), group.get('user')
        if ip:
            try:
                ip = address(ip.decode())
            except ValueError:
                return None                        # 999.1.2.3
        elif group.get('dns'):
            self.names += verdict == 'fail'
            return None
        user = user and user.decode('utf-8', 'backslashreplace')
        return Match(kind, verdict, ip, user, group.get('mlfid'), bool(group.get('child')))

    def read(self, line, raw, when):
        """The Sighting that a line is, or completes; None if it is none."""
        match = self.match(line, raw)
        if match is None:
            return None
        pid = match.mlfid or line.pid
        if pid is None:
            new, ip, user = line.times * (match.verdict == 'fail'), match.ip, match.user
        else:
            session = self.session((line.host, line.program, pid), match, when)
            new = self.guesses(session, match, line)
            ip, user = session.ip, match.user or session.user
        if match.verdict == 'login':
            return Sighting(ip, user, 0, True, when) if ip and user else None
        return Sighting(ip, user, new, False, when) if ip and new else None

    def session(self, identity, match, when):
        """The Session that a line belongs to; a new one if its pid has been taken by another connection."""
        session, ip = self.sessions.pop(identity, None), match.ip
        if (session is None or when - session.seen > SESSION_SECONDS
                or ip and session.ip and ip != session.ip):
            session = Session()
            parent = self.sessions.get(self.parents.get((identity[0], ip))) if match.child else None
            if parent and match.kind not in parent.lines and when - parent.seen <= SESSION_SECONDS:
                return parent
        self.sessions[identity] = session
        if len(self.sessions) > SESSIONS:
            del self.sessions[next(iter(self.sessions))]
        if ip and match.verdict == 'fail':
            self.relate(identity, session, match)
        session.seen = when
        return session

    def relate(self, identity, session, match):
        """Notes which session of an address may have children, and which ones may be children."""
        home = identity[0], match.ip
        if not match.child:
            self.parents.pop(home, None)
            self.parents[home] = identity
        elif not session.lines:
            self.children.setdefault(home, collections.deque(maxlen=CHILDREN)).append(identity)
        for known in (self.parents, self.children):
            if len(known) > SESSIONS:
                del known[next(iter(known))]

    def guesses(self, session, match, line):
        """How many guesses with a known address this line adds."""
        session.ip = match.ip or session.ip
        session.user = match.user or session.user
        if match.verdict == 'fail':
            n = session.lines[match.kind] = session.lines.get(match.kind, 0) + line.times
            new = max(0, n - session.counted)
            session.counted += new
            if not match.child:
                new -= self.adopt(session, (line.host, session.ip), new)
            session.pending += new
        if not session.ip:
            return 0
        new, session.pending = session.pending, 0
        return new

    def adopt(self, session, home, most):
        """How many of a connection's `most` new guesses its children have told already."""
        waiting, found = self.children.get(home, ()), 0
        for identity in list(waiting):
            child = self.sessions.get(identity)
            if found == most:
                break
            if child and child is not session and child.user not in (None, session.user):
                continue                           # it asked for another user's password
            waiting.remove(identity)
            if child and child is not session and child.ip == session.ip and len(child.lines) == 1:
                (kind, _), = child.lines.items()
                session.lines[kind] = session.lines.get(kind, 0) + 1
                child.lines, child.counted = {}, 0
                found += 1
        if not waiting:
            self.children.pop(home, None)
        return found


def check_regex(text):
    """ValueError if a failregex from a conf cannot mean what its author wants."""
    hosts = len(re.findall('<(?:HOST|ADDR|IP4|IP6|DNS)>', text))
    unknown = re.search(r'</?(?!F-(?:%s)>)[A-Z][A-Z0-9_-]*>' % '|'.join(FIELDS),
                        re.sub('<(?:%s)>' % '|'.join(TAGS), '', text))
    complaint = ('has no <HOST>' if not hosts else 'has more than one <HOST>' if hosts > 1 else
                 'has a tag that is not known: ' + unknown.group() if unknown else
                 'has %(...)s, which is not expanded here' if re.search(r'%\(\S+\)s', text) else '')
    if complaint:
        raise ValueError('%s %s' % (quoted(text), complaint))


def make_filter(name, failregex=(), ignoreregex=()):
    """A new Filter for a jail's options; ValueError says what is wrong."""
    row = FILTERS.get(name)
    if row is None and not failregex:
        import difflib
        near = difflib.get_close_matches(name.lower(), list(FILTERS) + list(SECTIONS), 1)
        hint = 'did you mean %s?' % near[0] if near else 'there are: ' + ' '.join(sorted(FILTERS))
        raise ValueError('no filter is called %s (%s)' % (quoted(name), hint))
    if failregex:
        for regex in sum(failregex, []):
            check_regex(regex)
        return Filter(None, failregex, ignoreregex)
    text = '\n'.join(line.strip() for line in row['failregex'].strip().split('\n'))
    kinds = [part.split('\n') for part in text.split('\n\n')]
    return Filter(row['program'], kinds, ignoreregex, row['prefregex'])


class Scanner:
    """Finds in a block of whole lines the few that some of these filters may want."""

    def __init__(self, filters):
        literals = sorted(set().union(*(f.literals for f in filters)))
        if b'' in literals:
            self.wanted = re.compile(b'[^\\n]+')
        else:
            self.wanted = re.compile(b'(?:%s)[^\\n]*' % b'|'.join(re.escape(text) for text in literals))

    def lines(self, block):
        """Yields the candidate lines of `block`, without newline, cut at PLAIN_LINE."""
        for m in self.wanted.finditer(block):
            yield cut(block[block.rfind(b'\n', 0, m.start()) + 1:m.end()])


def cut(line):
    """A line of at most PLAIN_LINE bytes; a cut one gets a mark, so that it never ends like a whole one."""
    return line if len(line) <= PLAIN_LINE else line[:PLAIN_LINE] + b' [cut]'


# ---- Fails ---------------------------------------------------------------------------------
# Owns: recent failures per (jail, network). Always true: each list is sorted, holds maxretry
# moments at most, and nothing in it is older than findtime before its newest; the dict holds
# `limit` networks at most, least recently seen first.

class Fails:
    """Counts failures in a sliding window."""

    def __init__(self, limit):
        self.limit = limit
        self.recent = {}             # (jail, network) -> moments, oldest first

    def add(self, key, when, guesses, findtime, maxretry):
        """How many failures lie within `findtime`, after `guesses` more at `when`."""
        seen = self.recent.pop(key, [])
        for _ in range(min(guesses, maxretry)):
            bisect.insort(seen, when)
        del seen[:bisect.bisect_right(seen, seen[-1] - findtime)]
        del seen[:-maxretry]
        self.recent[key] = seen
        if len(self.recent) > self.limit:
            del self.recent[next(iter(self.recent))]
        return len(seen)

    def put(self, key, seen):
        """Takes in a restored list of moments, oldest first."""
        if seen and len(self.recent) < self.limit:
            self.recent[key] = seen

    def forget(self, key):
        self.recent.pop(key, None)

    def purge(self, now, findtimes):
        """Drops what is older than its jail's findtime (name -> seconds), and jails not named there."""
        for key in [key for key, seen in self.recent.items()
                    if key[0] not in findtimes or seen[-1] <= now - findtimes[key[0]]]:
            del self.recent[key]


# ---- Bans ----------------------------------------------------------------------------------
# Owns: tickets, history, and how long a ban is. Always true: one ticket per (jail, network);
# neither dict holds more than `limit` entries.

def ban_length(options, bans, chance):
    """Seconds of the next ban after `bans` earlier ones (fail2ban's bantime.* rules); `chance` is
    a random number from 0 to 1. The cap is applied last: no ban is longer than bantime.maxtime."""
    seconds = options['bantime']
    if seconds == FOREVER:
        return FOREVER
    if options['bantime.increment']:
        steps = options['bantime.multipliers']
        times = steps[min(bans, len(steps) - 1)] if steps else 1 << min(bans, 20)
        seconds = max(seconds, seconds * options['bantime.factor'] * times)
    seconds += chance * options['bantime.rndtime']
    return min(seconds, options['bantime.maxtime'])


class Bans:
    """Who is banned until when, and how often before."""

    def __init__(self, limit):
        self.limit = limit
        self.tickets = {}            # (jail, network) -> Ticket
        self.history = {}            # (jail, network) -> (bans so far, end of the last), oldest first
        self.ends = []               # heap of (until, key); rows that no longer hold are skipped
        self.dropped = 0             # bans that `limit` has cost

    def earlier(self, jail, network, jails=None):
        """How many bans the network has behind it, in `jail` or in all `jails`."""
        return sum(self.history.get((name, network), (0, 0))[0] for name in jails or [jail])

    def add(self, jail, network, now, seconds, failures):
        """The Ticket of a new ban, or of the running one with its new end."""
        key = jail, network
        until = None if seconds == FOREVER else now + seconds
        ticket = self.tickets.get(key)
        if ticket is None:
            ticket = Ticket(jail, network, now, until, self.earlier(jail, network) + 1, failures)
        ticket.until = until
        self.put(ticket, now)
        return ticket

    def put(self, ticket, now):
        """Takes in a ticket, new or restored."""
        self.tickets[ticket.key] = ticket
        if ticket.until is not None:
            heapq.heappush(self.ends, (ticket.until, ticket.key))
            if len(self.ends) > 2 * len(self.tickets) + 64:
                self.ends = [(t.until, t.key) for t in self.tickets.values() if t.until is not None]
                heapq.heapify(self.ends)
        self.remember(ticket.key, ticket.count, now if ticket.until is None else ticket.until)

    def remember(self, key, bans, last):
        self.history.pop(key, None)
        self.history[key] = bans, last
        if len(self.history) > self.limit:
            del self.history[next(iter(self.history))]

    def remove(self, key):
        return self.tickets.pop(key, None)

    def next_end(self):
        """The ticket that ends first, None if none ever does."""
        while self.ends:
            until, key = self.ends[0]
            ticket = self.tickets.get(key)
            if ticket is not None and ticket.until == until:
                return ticket
            heapq.heappop(self.ends)
        return None

    def ended(self, now):
        """Yields the tickets whose time is over; the caller removes them."""
        ticket = self.next_end()
        while ticket is not None and ticket.until <= now:
            yield ticket
            ticket = self.next_end()

    def surplus(self):
        """Yields tickets that `limit` leaves no room for, nearest end first; the caller removes them."""
        while len(self.tickets) > self.limit:
            self.dropped += 1
            yield self.next_end() or next(iter(self.tickets.values()))

    def purge(self, now, age):
        """Forgets history whose last ban ended more than `age` ago and is not running."""
        for key in [key for key, (_, last) in self.history.items()
                    if last < now - age and key not in self.tickets]:
            del self.history[key]


# ---- Jail ----------------------------------------------------------------------------------
# Owns: a filter, its limits, what it ignores, and who has logged in. Always true: what overlaps
# one of `frees` is never an Offence, whatever the log says.

class Jail:
    """One jail: turns what its filter has seen into Offences."""

    def __init__(self, name, options, filter=None):
        self.name = name
        self.options = options
        self.filter = filter         # None: bans by hand only
        self.frees = ()
        self.freed = {}              # address or network -> which of `frees` it touches, '' if none
        self.logins = {}             # (ip, user) -> until when their failures are forgiven
        self.failures = self.banned = self.ignored = 0         # since the start

    def protect(self, machine):
        """Sets what is never banned: ignoreip, and with ignoreself these Frees of the machine."""
        frees = (tuple(machine) if self.options['ignoreself'] else ()) + self.options['ignoreip'] + NEVER
        if frees != self.frees:
            self.frees, self.freed = frees, {}

    def refusal(self, network):
        """Why an address or network must not be banned; '' if it may be."""
        if network not in self.freed:
            if len(self.freed) > 4096:
                self.freed.clear()
            self.freed[network] = overlap(network, self.frees)
        return self.freed[network]

    def cell(self, ip):
        """(network that an address is counted by, network that it is banned by): the address itself
        is banned where the network holds a free address."""
        net = network(ip, self.options['ipv4prefix'], self.options['ipv6prefix'])
        return net, ip if self.refusal(net) else net

    def weigh(self, seen, fails, bans, jails, chance):
        """The Offence that a Sighting completes, else None; counts it in `fails`."""
        if seen.login:
            return self.admit(seen, bans)
        if self.refusal(seen.ip) or self.forgiven(seen):
            self.ignored += seen.guesses
            return None
        self.failures += seen.guesses
        options, (cell, net) = self.options, self.cell(seen.ip)
        ticket = bans.tickets.get((self.name, net))
        if ticket:
            return self.longer(ticket, seen)
        n = fails.add((self.name, cell), seen.when, seen.guesses, options['findtime'], options['maxretry'])
        if n < options['maxretry']:
            return None
        everywhere = jails if options['bantime.overalljails'] else None
        return Offence(net, max(n, seen.guesses),
                       ban_length(options, bans.earlier(self.name, net, everywhere), chance))

    def longer(self, ticket, seen):
        """bantime.extend: each attempt during a ban makes it longer, up to bantime.maxtime."""
        extra = self.options['bantime.extend'] * seen.guesses
        if not extra or ticket.until is None:
            return None
        seconds = min(ticket.until - seen.when + extra, self.options['bantime.maxtime'])
        return Offence(ticket.network, ticket.failures + seen.guesses, seconds)

    def admit(self, seen, bans):
        """Remembers a login, unless the address is banned (so it had fewer than maxretry failures)."""
        if self.options['ignorelogin'] and (self.name, self.cell(seen.ip)[1]) not in bans.tickets:
            self.logins.pop((seen.ip, seen.user), None)
            self.logins[seen.ip, seen.user] = seen.when + self.options['ignorelogin']
            if len(self.logins) > 1000:
                del self.logins[next(iter(self.logins))]

    def forgiven(self, seen):
        return self.logins.get((seen.ip, seen.user), seen.when) > seen.when


class Jails:
    """The jails of one configuration, and who listens to what."""

    def __init__(self, config):
        self.problems = []
        self.listening = {}          # source -> (jails, their Scanner)
        self.by_name = {MANUAL: Jail(MANUAL, config.jail(MANUAL))}
        for name in config.jails():
            options = config.jail(name)
            try:
                made = make_filter(options['filter'] or name, options['failregex'], options['ignoreregex'])
                self.by_name[name] = Jail(name, options, made)
            except ValueError as e:
                self.problems.append('%s: [%s]: %s' % (config.where(name), name, e))
        self.everywhere = config['source']
        self.sources = list(dict.fromkeys(self.everywhere + sum(
            [jail.options['source'] for jail in self.watching()], [])))

    def watching(self):
        return [jail for jail in self.by_name.values() if jail.filter]

    def adopt(self, old):
        """Takes over what the jails of an earlier configuration know; call before the first line."""
        for name, jail in self.by_name.items():
            before = old.by_name.get(name)
            if before:
                jail.logins, jail.failures, jail.banned, jail.ignored = (
                    before.logins, before.failures, before.banned, before.ignored)
                if jail.filter and before.filter:
                    for name in ('sessions', 'parents', 'children', 'names'):
                        setattr(jail.filter, name, getattr(before.filter, name))

    def protect(self, machine):
        for jail in self.by_name.values():
            jail.protect(machine)

    def listeners(self, source):
        """(jails that listen to `source`, their Scanner); all jails for None, as in a replay."""
        if source not in self.listening:
            jails = [j for j in self.watching()
                     if source is None or source in (j.options['source'] or self.everywhere)]
            self.listening[source] = jails, Scanner([j.filter for j in jails]) if jails else None
        return self.listening[source]

    def scan(self, source, block, moment):
        """Yields (jail, Sighting) for a block of whole lines; `moment` turns a line's date (bytes or
        None) into its time, or into None for a line that is too old to matter."""
        jails, scanner = self.listeners(source)
        for raw in scanner.lines(block) if jails else ():
            line = read_line(raw)
            for jail in jails:
                if jail.filter.wants(line, bare=bool(jail.options['source'])):
                    when = moment(line.date)
                    seen = None if when is None else jail.filter.read(line, raw, when)
                    if seen and not (seen.login and (source or '').startswith('udp:')):
                        yield jail, seen


# ---- Firewalls -----------------------------------------------------------------------------
# Owns: nothing; turns tickets into Commands. Always true: rules stand in chains of our own, which
# the hooks enter before anything else, so a ban also cuts what is established; no other rule is
# touched. Each batch is safe to repeat, and happens as a whole or not at all.
#
# A firewall answers: check() - the Commands whose output shows what the kernel has; mend(shown,
# tickets) - (what is amiss, the Commands that make it right), which is also how it starts;
# ban and unban(changed, tickets) - the Commands for these; stop(shown) - those that leave nothing.

class Null:
    """firewall = none: counts and reports, bans nobody."""
    name, family, capacity = 'none', None, None

    def check(self):
        return []

    def mend(self, shown, tickets):
        return '', []

    def ban(self, changed, tickets):
        return []

    unban = ban

    def stop(self, shown):
        return []


class IPTables:
    """Rules in chain `banwatch`, spread over sub-chains by an address's leading bits, so that a
    packet meets some tens of them and not all. A changed sub-chain is written anew as a whole."""
    CHAIN = 'banwatch'
    capacity = 2000                  # each packet pays for each rule it meets

    def __init__(self, family, hooks, doors):
        self.family = family
        self.name = 'iptables' if family == 4 else 'ip6tables'
        self.bits, self.lead = (32, 5) if family == 4 else (128, 16)       # at most 32, or as many as in use
        self.hooks = hooks           # ['INPUT', 'FORWARD']
        self.doors = doors           # jail -> matches in front of DROP, [''] for all packets
        self.ours = re.compile(r'%s(-[0-9a-f]+)?$' % self.CHAIN)

    def chain(self, net):
        """The chain that a network's rules stand in; the main one if it is wider than a sub-chain."""
        first, last = (end >> (self.bits - self.lead) for end in span(net)[1:])
        return self.CHAIN if first != last else '%s-%0*x' % (self.CHAIN, (self.lead + 3) // 4, first)

    def rules(self, tickets):
        """chain -> its rules, as `iptables -S` prints them; the main chain always."""
        chains = {self.CHAIN: set()}
        for ticket in tickets:
            chain = self.chain(ticket.network)
            if chain not in chains:
                chains[chain] = set()
                base = network('%s/%d' % (ticket.network.partition('/')[0], self.lead))
                chains[self.CHAIN].add('-A %s -s %s -j %s' % (self.CHAIN, base, chain))
            net = ticket.network if '/' in ticket.network else '%s/%d' % (ticket.network, self.bits)
            for door in self.doors.get(ticket.jail, ['']):
                chains[chain].add('-A %s -s %s%s -j DROP' % (chain, net, door))
        return chains

    def check(self):
        return [Command([self.name, '-S'], '')]

    def restore(self, rows):
        text = '\n'.join(['*filter'] + rows + ['COMMIT', ''])
        return [Command([self.name + '-restore', '-w', '5', '--noflush'], text)]

    def listing(self, shown):
        """(chains of ours -> their rules, hook -> its rules) in what `iptables -S` printed."""
        chains, hooks = {}, {hook: [] for hook in self.hooks}
        for row in shown.split('\n'):
            word, _, rest = row.partition(' ')
            name = rest.partition(' ')[0]
            if word == '-N' and self.ours.match(name):
                chains[name] = []
            elif word == '-A' and self.ours.match(name):
                chains.setdefault(name, []).append(row.rstrip())
            elif word == '-A' and name in ('INPUT', 'FORWARD'):
                hooks.setdefault(name, []).append(row.rstrip())
        return chains, hooks

    def mend(self, shown, tickets):
        """('', []) if the kernel has just these tickets; else what is amiss, and how to mend it."""
        chains, hooks = self.listing(shown[0])
        wanted, amiss, rows = self.rules(tickets), [], []
        for hook, there in hooks.items():
            wrong = self.misplaced(there, self.jump(hook), hook in self.hooks)
            if wrong:
                amiss.append('%s rule %s' % (hook, wrong))
                rows += self.unhook(hook, there)
                rows += ['-I %s 1 -j %s' % (hook, self.CHAIN)] * (hook in self.hooks)
        if {name: sorted(have) for name, have in chains.items()} != {
                name: sorted(want) for name, want in wanted.items()}:
            n, m = (sum(len(rules) for rules in some.values()) for some in (chains, wanted))
            amiss.append('chain %s missing' % self.CHAIN if self.CHAIN not in chains
                         else '%d rules instead of %d' % (n, m) if n != m else 'other rules than ours')
        if not amiss:
            return '', []
        return ', '.join(amiss), self.restore(self.fill(wanted, set(chains) - set(wanted)) + rows)

    def jump(self, hook):
        return '-A %s -j %s' % (hook, self.CHAIN)

    def unhook(self, hook, there):
        """Rows that delete our jump from a hook, as often as it stands there."""
        return ['-D %s -j %s' % (hook, self.CHAIN)] * there.count(self.jump(hook))

    @staticmethod
    def misplaced(there, jump, wanted):
        """What is wrong with our jump among a hook's rules; '' if it is right."""
        times = there.count(jump)
        if not wanted:
            return 'not wanted' if times else ''
        if times != 1:
            return 'doubled' if times else 'missing'
        return '' if there[0] == jump else 'not first'

    @staticmethod
    def fill(wanted, gone=()):
        """Rows that write these chains anew and delete those that are gone."""
        rows = [':%s - [0:0]' % name for name in sorted(set(wanted) | set(gone))]
        for name in sorted(wanted):
            rows += sorted(wanted[name])
        return rows + ['-X %s' % name for name in sorted(gone)]

    def ban(self, changed, tickets):
        """Rewrites the sub-chains of the changed tickets, and the main chain, which is short."""
        touched = {self.chain(ticket.network) for ticket in changed} | {self.CHAIN}
        wanted = self.rules(tickets)
        return self.restore(self.fill({name: rules for name, rules in wanted.items() if name in touched},
                                      touched - set(wanted)))

    unban = ban

    def stop(self, shown):
        chains, hooks = self.listing(shown[0])
        rows = [':%s - [0:0]' % name for name in sorted(chains)]
        for hook, there in hooks.items():
            rows += self.unhook(hook, there)
        rows += ['-X %s' % name for name in sorted(chains)]
        return self.restore(rows) if rows else []


def door_matches(options):
    """What stands in front of DROP in a jail's rules: a match per protocol and port, or [''] for all
    packets. Not `multiport`, which a router may lack: one rule refused is a whole batch refused."""
    if not options['port']:
        return ['']
    return [' -p %s -m %s --dport %s' % (protocol, protocol, port)
            for protocol in options['protocol'] for port in options['port'].split(',')]


def make_firewalls(kind, hooks, jails):
    """The firewalls that `firewall =` names: one per family, or one for both."""
    doors = {name: door_matches(jail.options) for name, jail in jails.items()}
    if kind == 'none':
        return [Null()]
    return [IPTables(4, hooks, doors), IPTables(6, hooks, doors)]


# ---- State ---------------------------------------------------------------------------------
# Owns: the format. Two files hold it, the live one in `runtime` and the kept one on flash:
#     {"banwatch": 1,                     format
#      "boot": "…", "ticks": s, "wall": s   boot id, boot clock and wall clock when it was written
#      "bans":    [[jail, network, seconds left (-1: for ever), seconds since its start, count, failures]]
#      "history": [[jail, network, bans, seconds since the last one's end (< 0: not yet)]]
#   and in the live one
#      "fails":   [[jail, network, [seconds since each failure]]]
#      "logins":  [[jail, ip, user, seconds left]]
#      "sources": {source: position}}
# Always true: moments are written as lengths, so that a file outlives its clocks. In the same boot
# the boot clock says how much time has passed since; in another one the wall clock, if both of its
# readings can be true; else none has. A file may be torn or hostile: each row is checked by itself.

FORMAT = 1
SANE = 1767225600                    # 1 Jan 2026: a clock that shows less has not been set yet
KEPT_BYTES = 256 * 1024

Restored = collections.namedtuple('Restored', 'tickets history fails logins sources lost age')


def dump(bans, fails, logins, sources, clocks):
    """The live state as text. `clocks` is (boot id, ticks, wall)."""
    now = clocks[1]
    state = dump_bans(bans, clocks)
    state['fails'] = [[jail, net, [round(now - t, 2) for t in seen]]
                      for (jail, net), seen in fails.recent.items()]
    state['logins'] = [[jail, ip, user, round(until - now, 2)]
                       for (jail, ip, user), until in logins.items() if until > now]
    state['sources'] = sources
    return json.dumps(state, separators=(',', ':'))


def dump_bans(bans, clocks):
    boot, now, wall = clocks
    by_left = sorted(bans.tickets.values(), key=lambda t: (t.until is not None, -(t.until or 0)))
    return {'banwatch': FORMAT, 'boot': boot, 'ticks': round(now, 2), 'wall': round(wall, 2),
            'bans': [[t.jail, t.network, round(t.left(now), 2), round(now - t.since, 2),
                      t.count, t.failures] for t in by_left],
            'history': [[jail, net, n, round(now - last, 2)]
                        for (jail, net), (n, last) in reversed(list(bans.history.items()))]}


def dump_kept(bans, clocks):
    """The kept state as text, at most KEPT_BYTES: the longest bans and the latest history first."""
    state = dump_bans(bans, clocks)
    room = KEPT_BYTES - 200
    for part in ('bans', 'history'):
        rows = []
        for row in state[part]:
            room -= len(json.dumps(row, separators=(',', ':'))) + 2
            if room < 0:
                break
            rows.append(row)
        state[part] = rows
    return json.dumps(state, separators=(',', ':')).replace('],[', '],\n[')


def elapsed(state, clocks):
    """Seconds since a state was written."""
    boot, now, wall = clocks
    try:
        if state.get('boot') == boot and moment(state.get('ticks')) <= now:
            return now - state['ticks']
        then = moment(state.get('wall'))
        return wall - then if SANE <= then <= wall else 0
    except ValueError:
        return 0


def moment(value, least=-1e10):
    """A number of seconds as it stands in a state file; ValueError for anything else."""
    if type(value) not in (int, float) or not least <= value <= 1e10:
        raise ValueError('no time: %r' % (value,))
    return value


def load(text, clocks):
    """The Restored state in `text`, in this machine's ticks; ValueError if it is not a state at all."""
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
    sources = state.get('sources')
    return Restored(restored['bans'], dict(restored['history']), dict(restored['fails']),
                    dict(restored['logins']), sources if type(sources) is dict else {}, lost, gone)


def name_and_network(jail, net):
    if type(jail) is not str or type(net) is not str or len(jail) > 64:
        raise ValueError('no ticket')
    return jail, network(net)


def load_ban(row, now, gone):
    jail, net, left, age, n, failures = row
    until = None if left == FOREVER else now + moment(left, 0) - gone
    jail, net = name_and_network(jail, net)
    return Ticket(jail, net, now - moment(age) - gone, until, whole(n), whole(failures))


def whole(n):
    return int(moment(n, 0))


def load_history(row, now, gone):
    jail, net, n, age = row
    return name_and_network(jail, net), (whole(n), now - moment(age) - gone)


def load_fails(row, now, gone):
    jail, net, ages = row
    return name_and_network(jail, net), sorted(now - moment(age, 0) - gone for age in ages[:1000])


def load_login(row, now, gone):
    jail, ip, user, left = row
    if type(user) is not str:
        raise ValueError('no user')
    return name_and_network(jail, ip) + (user,), now + moment(left) - gone


LOADERS = {'bans': load_ban, 'history': load_history, 'fails': load_fails, 'logins': load_login}


# ==== the water line: everything above decides, everything below acts ========================

# ---- Machine -------------------------------------------------------------------------------
# Owns: the outside world. Always true: here is the only exec, the only clock, the only file that
# is written. A program gets an argv list, its own process group, a deadline and LC_ALL=C; what it
# prints is bounded; it is never waited for, its pipes and its end are events of the loop.

OUTPUT_BYTES = 8 << 20               # a firewall with 50,000 rules lists them in this
SBIN = '/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin:/opt/sbin:/opt/bin'
RESOLVERS = ('/etc/resolv.conf', '/tmp/resolv.conf.d/resolv.conf.auto', '/tmp/resolv.conf.auto',
             '/run/systemd/resolve/resolv.conf')


class Loop:
    """One selector, one scheduler: each fd carries its handler, each timer its function."""

    def __init__(self, ticks, log):
        self.selector = selectors.DefaultSelector()
        self.timers = sched.scheduler(ticks, lambda seconds: None)
        self.made = 0                # timers so far
        self.ticks = ticks
        self.log = log
        self.bugs = set()            # tracebacks already told

    def watch(self, fd, handler, events=selectors.EVENT_READ):
        self.selector.register(fd, events, handler)

    def unwatch(self, fd):
        """Forgets an fd, also one that is not watched (any more)."""
        try:
            self.selector.unregister(fd)
        except (KeyError, ValueError):
            pass

    def at(self, when, function):
        """A timer that calls `function` once, for `cancel`."""
        self.made += 1               # before Python 3.10, timers of equal time and priority are equal
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
        except Exception:
            text = traceback.format_exc()
            if text not in self.bugs:
                self.bugs.add(text)
                self.log('bug, please report it:\n' + text)

    def due(self):
        """Runs the timers that are due; seconds until the next one, None if there is none."""
        return self.timers.run(blocking=False)

    def wait(self, seconds):
        for key, _ in self.selector.select(None if seconds is None else max(0, seconds)):
            if self.selector.get_map().get(key.fd) is key:         # not closed by a handler before it
                self.call(key.data)


class Program:
    """A Command that runs to its end: `done(problem, output)`, problem '' if it exited with 0."""

    def __init__(self, machine, command, done, seconds):
        self.machine, self.done, self.name = machine, done, os.path.basename(command.argv[0])
        self.late = False
        self.read = {}               # fd -> what came from it
        self.left = command.stdin.encode()
        self.process = machine.spawn(command.argv, subprocess.PIPE)
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
                self.machine.loop.watch(fd, self.write, selectors.EVENT_WRITE)
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
        try:
            chunk = os.read(fd, 65536)
        except BlockingIOError:
            return True
        except OSError:
            chunk = b''
        if not chunk:
            self.open.discard(fd)
            self.machine.loop.unwatch(fd)
        elif len(self.read[fd]) < OUTPUT_BYTES:
            self.read[fd] += chunk
        return bool(chunk)

    def expired(self):
        self.late = True
        self.machine.kill(self.process)

    def ended(self):
        """Looks whether the process has ended; if so, hands over what it said."""
        if self.process.poll() is None:
            return
        out, err = self.read
        for fd in (out, err):                      # the rest; a grandchild may hold the pipes open
            for _ in range(64):
                if fd not in self.open or not self.drained(fd):
                    break
            if fd in self.open:
                self.machine.loop.unwatch(fd)
        self.end_of_input()
        self.process.stdout.close()
        self.process.stderr.close()
        self.machine.loop.cancel(self.timer)
        self.machine.programs.discard(self)
        self.done(self.problem(self.read[err]), self.read[out].decode('utf-8', 'replace'))

    def drained(self, fd):
        before = len(self.read[fd])
        return self.readable(fd) and len(self.read[fd]) != before

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


class Machine:
    """What the program may do to the machine it runs on; tests have one of their own."""

    def __init__(self):
        self.loop = Loop(self.ticks, self.log)
        self.programs = set()
        self.lock_fd = None
        self.outward = set()         # interfaces that a default route goes through, or did
        self.written = 0             # bytes of state files, for `status`

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
        for folder in os.environ.get('PATH', '').split(':') + SBIN.split(':'):
            found = os.path.join(folder, name)
            if folder.startswith('/') and os.path.isfile(found) and os.access(found, os.X_OK):
                return found
        return None

    def exists(self, path):
        return os.path.exists(path)

    def age(self, path):
        """Seconds since a file was changed, None if it is not there."""
        try:
            return self.wall() - os.stat(path).st_mtime
        except OSError:
            return None

    def root(self):
        return os.geteuid() == 0

    def read(self, path, limit=1 << 20):
        """Text of a file of the system, '' if it cannot be read."""
        try:
            with open(path, 'rb') as f:
                return f.read(limit).decode('utf-8', 'replace')
        except OSError:
            return ''

    def memory(self):
        """(resident kB of this process, kB of RAM in the machine)."""
        own = re.search(r'VmRSS:\s+(\d+)', self.read('/proc/self/status'))
        ram = re.search(r'MemTotal:\s+(\d+)', self.read('/proc/meminfo'))
        return int(own.group(1)) if own else 0, int(ram.group(1)) if ram else 1 << 20

    # programs
    def spawn(self, argv, stdin):
        path = argv[0] if argv[0].startswith('/') else self.which(argv[0])
        if path is None:
            raise FileNotFoundError(errno.ENOENT, '%s is not installed' % argv[0])
        environment = {'PATH': os.environ.get('PATH', '') + ':' + SBIN, 'LC_ALL': 'C'}
        return subprocess.Popen(
            [path] + list(argv[1:]), stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            bufsize=0, cwd='/', start_new_session=True, env=environment)

    def run(self, command, done, seconds=10):
        """Starts a Command; `done(problem, output)` is called when it has ended."""
        try:
            Program(self, command, done, seconds)
        except OSError as e:
            done(e.strerror or str(e), '')

    def reap(self):
        for program in list(self.programs):
            program.ended()

    def kill(self, process, number=signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except OSError:
            pass

    # files
    def folder(self, path):
        """Makes sure of a folder that is ours alone."""
        try:
            os.makedirs(path, 0o700, exist_ok=True)
            there = os.lstat(path)
        except OSError as e:
            code = os.EX_NOPERM if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else 1
            raise Problem('%s: %s (see `runtime` in the conf)' % (path, e.strerror), code) from None
        if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.geteuid():
            raise Problem('%s: not a folder of our own; remove it or set `runtime`' % path)
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
        os.ftruncate(self.lock_fd, 0)
        os.write(self.lock_fd, b'%d\n' % os.getpid())
        return True

    def replace(self, path, text):
        """Writes a file of ours as a whole: after a crash there is the old one or the new one."""
        new = path + '.new'
        self.remove(new)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, 'wb') as f:
                f.write(text.encode())
                f.flush()
                os.fsync(f.fileno())
            os.rename(new, path)
        except OSError:
            self.remove(new)
            raise
        self.written += len(text)

    def remove(self, path):
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass

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
            if not stat.S_ISREG(there.st_mode) or there.st_uid != os.geteuid() or there.st_mode & 0o022:
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

    # network
    def networks(self):
        """Frees of this machine: addresses, LANs, gateways, resolvers; OSError if they are unknown."""
        found = [(text, 'a resolver') for text in self.resolvers()]
        addresses, gateways, outward = read_netlink()
        self.outward = outward or self.outward     # while the line is down, its network is no LAN
        found += [(text, 'a gateway') for text in gateways]
        for ip, peer, bits, index in addresses:
            name = interface(index)
            found += [(ip, 'this machine, %s' % name)]
            found += [(peer, 'the other end of %s' % name)] * (peer != ip)
            if index not in self.outward:
                what = 'this machine' if name == 'lo' else 'the LAN, %s' % name
                found += [('%s/%d' % (peer, bits), what)]
        rows = {}
        for text, why in found:
            try:
                rows.setdefault(network(text), free(text, why))
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

    def log(self, text):
        """One line to standard error, where init scripts and procd pick it up."""
        stamp = time.strftime('%H:%M:%S ') if sys.stderr.isatty() else ''
        try:
            sys.stderr.write(stamp + text + '\n')
            sys.stderr.flush()
        except OSError:
            pass


def interface(index):
    try:
        return socket.if_indextoname(index)
    except OSError:
        return 'interface %d' % index


def read_netlink():
    """(addresses as (ip, peer, prefix length, interface), default gateways, their interfaces): rtnetlink(7)."""
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
    while at + 4 <= len(body):
        size, kind = struct.unpack_from('=HH', body, at)
        if size < 4:
            return
        yield kind & 0x3fff, body[at + 4:at + size]
        at += size + 3 & ~3


# ---- Sources -------------------------------------------------------------------------------
# Owns: where the log comes from, offsets, partial lines. Always true: a source hands over whole
# lines, each once; one that ends or fails is opened again, later and later, and neither spins nor
# disturbs the others.

LIVE, RECENT, OLD = range(3)         # lines count: as of now; at their own time, else now; ... else not
CHUNK = 1 << 18
SOON = 0.001                         # seconds to the next chunk: signals and clients come in between
BACKLOG = 1 << 18                    # of a log seen for the first time, this much is read back
MARK = 64                            # bytes before an offset that tell whether it is still the same file
RETIRE = 600                         # a renamed file that has been quiet for so long is let go
PATIENCE = 60                        # seconds between attempts, at most


class Cutter:
    """Makes whole lines of what comes in pieces. A line over PLAIN_LINE keeps its beginning only."""

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
        return block + b'\n' if block else b''


class Source:
    """One place that lines come from; `deliver(source, block, age)` takes them, age LIVE, RECENT or OLD."""

    def __init__(self, spec, argument, machine, deliver, poll=1):
        self.spec = spec             # as the conf names it
        self.argument = argument     # what to open: a path, an address, a command
        self.machine, self.loop, self.deliver, self.poll = machine, machine.loop, deliver, poll
        self.meant = self.what = spec              # what `auto` has found; the same for people
        self.trouble = ''            # why nothing comes, for `status`
        self.reason = ''             # why it was closed last
        self.lines = 0
        self.last = None             # ticks of the last line
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

    def position(self):
        """What `start` needs to go on from here after a restart; None if there is no such thing."""
        return None

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
        self.cutter = Cutter()
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
    """A program that prints log lines, such as `logread -f`. It is killed with its whole group."""
    process = None

    def open(self, position):
        self.process = self.machine.spawn(self.argument, subprocess.DEVNULL)
        self.cutter, self.said = Cutter(), ''
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
            self.hand_over(self.cutter.feed(chunk))
            return
        self.hand_over(self.cutter.rest())
        self.complaint()
        self.fail('ended' + (': ' + self.said if self.said else ''))

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
        process, self.process = self.process, None
        if process is None:
            return
        for stream in (process.stdout, process.stderr):
            if not stream.closed:
                self.loop.unwatch(stream.fileno())
                stream.close()
        self.machine.kill(process)
        process.wait()                             # it has been killed: this does not take long


class Datagrams(Source):
    """syslog over UDP. A datagram is one line, whatever it holds; its sender is not to be trusted."""
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
                block.append(self.sock.recv(PLAIN_LINE + 2).rstrip(b'\0\r\n ').replace(b'\n', b' ') + b'\n')
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


class Followed:
    """One log file that a Tail has open."""
    __slots__ = ('fd', 'path', 'identity', 'offset', 'cutter', 'mark', 'head', 'changed', 'seen', 'age')

    def __init__(self, fd, path, offset, now, age):
        self.fd, self.path, self.offset = fd, path, offset
        self.identity = identity(os.fstat(fd))
        self.cutter = Cutter()
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
        return [self.path, list(self.identity), self.offset - self.cutter.held, self.mark, self.head]


def identity(info):
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
        known = position if type(position) is list else []
        for row in known:
            try:
                self.resume(*row)
            except (OSError, TypeError, ValueError, LookupError, OverflowError):
                pass                               # a position that makes no sense is as good as none
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
        file.age = age if more else LIVE
        if chunk:
            block = file.cutter.feed(chunk)
            file.remember()
            self.hand_over(block, age)
        return more

    def rewound(self, file, size):
        """If a file is not the one it was, starts it anew, after what is left of the old one in a copy."""
        at = file.offset - file.cutter.held
        if size >= file.offset and fingerprint(file.fd, at - file.mark[0], file.mark[0]) == file.mark:
            return
        copy = self.find(file.path, at, file.mark, file.head)
        while copy and self.read(copy):
            pass
        file.offset, file.cutter, file.age = 0, Cutter(), RECENT
        file.remember()

    def find(self, path, offset, mark, head, known=None):
        """Opens what log rotation has made of a file (renamed it, or copied it) at its old offset. A
        file that nothing was read of is known by its inode alone."""
        beside = set(glob.glob(glob.escape(path) + '*') + glob.glob(self.argument)
                     + glob.glob(glob.escape(os.path.realpath(path)) + '*'))
        beside = [p for p in beside if os.path.isfile(p)]
        for other in sorted(beside, key=os.path.getmtime, reverse=True)[:20]:      # the newest are enough
            fd = open_log(other)
            this = identity(os.fstat(fd))
            if this not in self.files and (
                    same(fd, offset, mark, head) if mark[0] else list(this) == known):
                self.files[this] = Followed(fd, path, offset, self.machine.ticks(), RECENT)
                return self.files[this]
            os.close(fd)
        return None

    def resume(self, path, known, offset, mark, head):
        """Goes on where an earlier run left off, also if the file has been renamed or copied since."""
        for size, _ in (mark, head):
            if not 0 <= size <= min(2 * MARK, offset) or offset > 1 << 50:
                raise ValueError('no position')
        self.find(path, offset, mark, head, known)

    def discover(self, age=None, near_end=False):
        """Opens files that have come; lets go of those that have gone. True if there are new ones."""
        now, paths = self.machine.ticks(), sorted(glob.glob(self.argument))
        there, new, trouble = set(), False, '' if paths else 'waiting for it to appear'
        for path in paths:
            try:
                info = os.stat(path)
                there.add(identity(info))
                known = self.files.get(identity(info))
                if known:
                    known.path, known.seen = path, now
                elif not stat.S_ISREG(info.st_mode):
                    raise OSError(0, 'is not a file')
                elif not path.endswith(('.gz', '.bz2', '.xz', '.zst')):
                    start = max(0, info.st_size - BACKLOG) if near_end else 0
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
        """LIVE for the next file of one that is followed (rotation), RECENT for one that just came."""
        return LIVE if any(file.path == path for file in self.files.values()) else RECENT

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
        file = Followed(fd, path, start, self.machine.ticks(), age)
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


def open_log(path):
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)


def same(fd, offset, mark, head):
    """True if a file is still the one whose fingerprints these are."""
    return (os.fstat(fd).st_size >= offset >= mark[0] and fingerprint(fd, offset - mark[0], mark[0]) == mark
            and fingerprint(fd, 0, head[0]) == head)


LOGS = ('/var/log/auth.log', '/var/log/secure', '/var/log/messages', '/opt/var/log/messages')
STALE = 7 * 86400                    # a log that nothing was written to for so long is a left-over


def find_source(machine):
    """What `source = auto` means on this machine."""
    if machine.exists('/etc/openwrt_release') and machine.which('logread'):
        return 'logread'
    logs = [path for path in LOGS if machine.age(path) is not None]
    fresh = [path for path in logs if machine.age(path) < STALE]
    if fresh:
        return fresh[0]
    if machine.which('journalctl') and machine.exists('/run/systemd/journal'):
        return 'exec:%s -f -q -n 0 -o short-iso' % machine.which('journalctl')
    return logs[0] if logs else '/var/log/messages'


def make_source(spec, machine, deliver, poll):
    """The Source that a line of `source =` names."""
    meant = find_source(machine) if spec == 'auto' else spec
    word, _, rest = meant.partition(':')
    if meant == 'logread':
        made = Child(spec, ['logread', '-f'], machine, deliver)
    elif word == 'exec':
        made = Child(spec, shlex.split(rest), machine, deliver)
    elif word == 'fifo' or meant == '-':
        made = Pipe(spec, rest or '-', machine, deliver)
    elif word == 'udp':
        host, _, port = rest.rpartition(':')
        made = Datagrams(spec, (host.strip('[]') or '127.0.0.1', int(port)), machine, deliver)
    else:
        made = Tail(spec, meant, machine, deliver, poll)
    made.meant, made.what = meant, meant if meant == spec else '%s: %s' % (spec, meant)
    return made


# ---- Control -------------------------------------------------------------------------------
# Owns: the Unix socket in `runtime`. A client sends one line of JSON and gets one line back.
# Always true: only our own user can reach it; a client that is slow or talks too much is dropped.

REQUEST_BYTES = 1 << 16
CLIENTS = 16
CLIENT_SECONDS = 15


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
        except OSError:                            # no descriptor is free: it would be ready for ever
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
                self.control.answer(request if type(request) is dict else {}, self.send)
            except (ValueError, RecursionError):
                self.send({'error': 'this was no request', 'code': 64})

    def send(self, answer):
        if self not in self.control.clients:
            return
        self.reply = json.dumps(answer).encode() + b'\n'
        self.loop.unwatch(self.sock)
        self.loop.watch(self.sock, self.writable, selectors.EVENT_WRITE)
        self.writable()

    def writable(self):
        try:
            self.reply = self.reply[self.sock.send(self.reply):]
        except BlockingIOError:
            return
        except OSError:
            self.reply = b''
        if not self.reply:
            self.close()

    def close(self):
        if self in self.control.clients:
            self.control.clients.discard(self)
            self.loop.cancel(self.timer)
            self.loop.unwatch(self.sock)
            self.sock.close()


def ask(config, request):
    """The running daemon's answer; Problem if there is no daemon, or its answer is an error."""
    path = os.path.join(config['runtime'], 'control')
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(CLIENT_SECONDS + 5)
    try:
        sock.connect(path)
        sock.sendall(json.dumps(request).encode() + b'\n')
        with sock.makefile('rb') as answers:
            answer = json.loads(answers.readline().decode())
    except PermissionError:
        raise Problem('%s: only root may talk to the daemon (try sudo)' % path, os.EX_NOPERM) from None
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
# only two ways in and out of the tickets; one batch per firewall is under way at a time.

MINUTE = 60
STOP_SECONDS = 4                     # procd kills after 5


class Kernel:
    """Makes one firewall equal to the tickets: batch by batch, as a whole where it is in doubt."""

    def __init__(self, firewall, machine, tickets):
        self.firewall, self.machine, self.tickets, self.log = firewall, machine, tickets, machine.log
        self.new, self.gone = {}, {}               # tickets by key, not yet told to the kernel
        self.unsure = True           # compare everything with what the kernel has, first
        self.busy = self.closing = self.removed = False
        self.trouble = ''            # why the kernel is not as it should be
        self.attempts = 0
        self.retry = None            # timer
        self.amiss = ''              # what was mended last
        self.fresh = True            # nothing there yet: what is amiss is no news
        self.worked = False          # has its program ever done what it was told?
        self.waiting, self.served = [], []         # to be called with `trouble` when all is done

    def take(self, firewall):
        """Goes on with a firewall of the same kind that has other settings."""
        self.firewall, self.unsure, self.fresh, self.closing = firewall, True, True, False

    def handles(self, network):
        return self.firewall.family in (None, span(network)[0])

    def ban(self, ticket):
        if not self.closing:
            self.gone.pop(ticket.key, None)
            self.new[ticket.key] = ticket

    def unban(self, ticket):
        if not self.closing:
            self.new.pop(ticket.key, None)
            self.gone[ticket.key] = ticket

    def idle(self):
        return not (self.busy or self.new or self.gone or self.unsure)

    def settle(self):
        """Starts the next batch, if there is something to do and nothing under way."""
        if self.busy:
            return
        if self.retry or self.idle():
            self.served, self.waiting = self.waiting, []
            return self.answer()
        self.busy, self.served, self.waiting = True, self.waiting, []
        tickets, new, gone = self.tickets(self), list(self.new.values()), list(self.gone.values())
        self.new, self.gone = {}, {}
        if self.unsure:
            self.unsure = False
            self.run(self.firewall.check(), self.compare)
        else:
            self.run(merge((self.firewall.ban(new, tickets) if new else [])
                           + (self.firewall.unban(gone, tickets) if gone else [])), self.done)

    def compare(self, shown):
        if self.closing:
            commands = self.firewall.stop(shown)
            self.removed = bool(commands)
            return self.run(commands, self.done)
        self.new, self.gone = {}, {}
        amiss, commands = self.firewall.mend(shown, self.tickets(self))
        if amiss and amiss != self.amiss and not self.fresh:
            self.log('%s: repaired (%s)' % (self.firewall.name, amiss))
        self.amiss, self.fresh = '' if self.fresh else amiss, False
        self.run(commands, self.done)

    def run(self, commands, then, shown=()):
        """Runs one Command after the other, then calls `then` with what they printed."""
        if not commands:
            return then(list(shown))

        def ended(problem, output):
            if problem:
                self.fail(problem)
            else:
                self.worked = True
                self.run(commands[1:], then, list(shown) + [output])
        self.machine.run(commands[0], ended)

    def done(self, shown):
        self.busy = False
        if self.trouble:
            self.log('%s: works again' % self.firewall.name)
        self.trouble, self.attempts = '', 0
        self.answer()

    def fail(self, problem):
        """Nothing is lost: the tickets stay, and all of them are compared with the kernel next time."""
        self.busy, self.unsure = False, True
        if problem != self.trouble and (self.worked or not self.closing):
            self.log('%s: %s; trying again' % (self.firewall.name, problem))
        self.trouble = problem
        self.retry = self.machine.loop.after(min(MINUTE, 2 ** min(self.attempts, 9)), self.again)
        self.attempts += 1
        self.answer()

    def again(self):
        self.retry = None

    def answer(self):
        served, self.served = self.served, []
        for reply in served:
            reply(self.trouble)

    def close(self):
        """Leaves nothing of ours in the kernel."""
        self.closing, self.unsure, self.trouble = True, True, ''
        self.new, self.gone, self.attempts = {}, {}, 0
        if self.retry:
            self.machine.loop.cancel(self.retry)
            self.retry = None

    def closed(self):
        """True when nothing of ours is left, or never was."""
        return self.idle() or bool(self.trouble) and not self.worked and not self.busy


def merge(commands):
    """The same Commands, those for the same program as one."""
    by_argv = {}
    for command in commands:
        by_argv.setdefault(tuple(command.argv), []).append(command.stdin)
    return [Command(list(argv), ''.join(texts)) for argv, texts in by_argv.items()]


class Daemon:
    """The wiring: `start`, then `run` until something calls `stop`."""

    def __init__(self, machine, config, reread=None, dry_run=False):
        self.machine, self.loop, self.config = machine, machine.loop, config
        self.reread = reread or (lambda: config)   # reads the conf anew, or raises Problem
        self.dry_run = dry_run
        self.ending = self.stopping = False
        self.left_behind = []        # firewalls that still had rules of ours at the end
        self.jails = Jails(config)
        if self.jails.problems:
            raise Problem('\n'.join(self.jails.problems), os.EX_CONFIG)
        self.fails = Fails(config['maxtracked'])
        self.bans = Bans(self.room())
        self.kernels, self.parting = [], []        # Kernels in use, and those that still have to tidy up
        self.frees = []              # what of this machine must never be banned
        self.sources = {}            # spec -> Source
        self.positions = {}          # of sources, from the state file
        self.control = None
        self.began = machine.ticks()
        self.saved, self.kept = float('-inf'), None            # ticks of the last save of either file
        self.cost = 0                # seconds that the last save of the live file took
        self.changed = self.ban_changed = False    # since the last save
        self.troubles = {}           # what is wrong, by where
        self.next_timer = self.save_timer = self.keep_timer = None

    # the start
    def start(self):
        """Takes up what was left off: state, firewall, sources; Problem if that cannot be."""
        names = ', '.join(jail.name for jail in self.jails.watching())
        self.machine.log('banwatch %s: %s' % (VERSION, names or 'no jail'))
        if not self.dry_run:
            self.open_runtime()
            self.restore()
            if not self.machine.writable(self.config['state']):
                self.note(self.config['state'], 'cannot be written')
        self.protect()
        self.set_firewall()
        self.set_sources()
        self.loop.after(MINUTE, self.minute)

    def open_runtime(self):
        """Makes the folder, the lock and the socket; anew if somebody has removed them."""
        if self.control:
            self.machine.log('%s: has gone; making it anew' % self.config['runtime'])
            self.control.close()
            self.control = None
        self.machine.folder(self.config['runtime'])
        if not self.machine.lock(self.runtime('lock')):
            raise Problem('another banwatch is running (%s)' % self.runtime('lock'))
        self.control = Control(self.runtime('control'), self.loop, self.answer)
        self.changed = True

    def note(self, where, trouble):
        """Says once that something is wrong; `status` goes on saying so."""
        if self.troubles.get(where) != trouble:
            self.machine.log('%s: %s' % (where, trouble))
        self.troubles[where] = trouble

    def runtime(self, name):
        return os.path.join(self.config['runtime'], name)

    def room(self):
        """How many bans there may be: maxbans, and what the firewall can hold."""
        room = self.config['maxbans'] or min(20000, self.machine.memory()[1] // 10)
        return min([room] + [f.capacity for f in self.firewalls({}) if f.capacity])

    def firewalls(self, jails):
        kind = 'none' if self.dry_run else self.config['firewall']
        return make_firewalls(kind, self.config['chain'], jails)

    def set_firewall(self):
        """Wires the firewalls of the configuration; those that are there already take it over."""
        there = {kernel.firewall.name: kernel for kernel in self.parting + self.kernels}
        self.kernels, self.parting = [], []
        for firewall in self.firewalls(self.jails.by_name):
            kernel = there.pop(firewall.name, None) or Kernel(firewall, self.machine, self.tickets_for)
            kernel.take(firewall)
            self.kernels.append(kernel)
        for kernel in there.values():
            kernel.close()
            self.parting.append(kernel)

    def part(self, source):
        """Closes a source, and remembers how far it was read."""
        self.positions[source.meant] = source.position()
        source.close()

    def set_sources(self):
        """Opens the sources that the conf names, closes the others; `auto` may mean another one now."""
        wanted = self.jails.sources
        auto = self.sources.get('auto')
        if auto and auto.trouble and find_source(self.machine) != auto.meant:
            self.part(self.sources.pop('auto'))
        for spec in [spec for spec in self.sources if spec not in wanted]:
            self.part(self.sources.pop(spec))
        for spec in wanted:
            if spec not in self.sources:
                source = make_source(spec, self.machine, self.consume, self.config['poll'])
                self.sources[spec] = source
                self.machine.log('source: %s' % source.what)
                source.start(self.positions.get(source.meant))
            self.sources[spec].poll = self.config['poll']

    def tickets_for(self, kernel):
        """The tickets that belong into a kernel; what must never be banned is not among them."""
        return [t for t in self.bans.tickets.values()
                if kernel.handles(t.network) and not self.jails.by_name[t.jail].refusal(t.network)]

    # from a line to a ban
    def consume(self, source, block, age):
        """Takes whole lines from a source; `age` says whether they count as of now or at their own time."""
        now, wall = self.machine.ticks(), self.machine.wall()
        oldest = now - max([jail.options['findtime'] for jail in self.jails.watching()] or [0])

        def own_time(date):
            when = date_time(date, int(wall) // 86400) if date else None
            if when is None:
                return now if age == RECENT else None
            return min(now, now - wall + when) if now - wall + when > oldest else None

        for jail, seen in self.jails.scan(source.spec, block, own_time if age else lambda date: now):
            self.changed = True
            offence = jail.weigh(seen, self.fails, self.bans, self.jails.by_name, self.machine.chance())
            if offence:
                self.ban(jail, offence.network, offence.seconds, offence.failures)

    def ban(self, jail, network, seconds, failures=0):
        """The door in: a new ban, or a new end for a running one. Returns why not, or ''."""
        refusal = jail.refusal(network)
        if refusal:
            return 'overlaps ' + refusal
        now, known = self.machine.ticks(), (jail.name, network) in self.bans.tickets
        self.fails.forget((jail.name, network))
        ticket = self.bans.add(jail.name, network, now, seconds, failures)
        ticket.failures = max(ticket.failures, failures)
        if not known:
            jail.banned += 1
        self.tell('ban', ticket)
        verb = 'extend' if known else 'would ban' if self.dry_run else 'ban'
        why = '%s, ban number %d' % (plural(failures, 'failure'), ticket.count) if failures else 'by hand'
        self.machine.log('[%s] %s %s %s (%s)' % (jail.name, verb, network, for_text(seconds), why))
        return ''

    def unban(self, ticket, why):
        """The door out."""
        if self.bans.remove(ticket.key):
            self.tell('unban', ticket)
            self.machine.log('[%s] unban %s (%s)' % (ticket.jail, ticket.network, why))

    def tell(self, verb, ticket):
        """Tells the firewalls, and the files in due time."""
        self.changed = self.ban_changed = True
        for kernel in self.kernels:
            if kernel.handles(ticket.network):
                getattr(kernel, verb)(ticket)

    def protect(self):
        """Learns anew what must never be banned; releases tickets that overlap it, or whose jail is off."""
        try:
            self.frees = self.machine.networks()
            self.troubles.pop('netlink', None)
        except OSError as e:
            self.note('netlink', 'the addresses of this machine are not known: %s' % e.strerror)
        self.jails.protect(self.frees)
        for ticket in list(self.bans.tickets.values()):
            jail = self.jails.by_name.get(ticket.jail)
            refusal = jail.refusal(ticket.network) if jail else ''
            if not jail or refusal:
                self.unban(ticket, 'overlaps ' + refusal if jail else 'this jail is off')

    # the loop
    def run(self):
        while not self.stopping:
            self.loop.due()
            self.loop.call(self.settle)
            wait = self.loop.due()
            self.loop.wait(0 if self.stopping else wait)

    def settle(self):
        """After each turn: what has ended goes, the firewalls and then the files are brought up to date."""
        now = self.machine.ticks()
        for ticket in self.bans.ended(now):
            self.unban(ticket, 'its time is over')
        for ticket in self.bans.surplus():
            self.unban(ticket, 'maxbans')
        for kernel in self.kernels + self.parting:
            kernel.settle()
        for kernel in [kernel for kernel in self.parting if kernel.closed()]:
            self.parting.remove(kernel)
            kernel.served += kernel.waiting
            kernel.answer()
        if self.ending and all(kernel.closed() for kernel in self.kernels + self.parting):
            self.stopping = True
        self.set_timers(now)

    def set_timers(self, now):
        """Wakes us up for the next end of a ban, and for the files if they are behind."""
        ticket = self.bans.next_end()
        if ticket and (not self.next_timer or self.next_timer.time != ticket.until):
            self.loop.cancel(self.next_timer)
            self.next_timer = self.loop.at(ticket.until, lambda: None)
        if self.changed and not self.save_timer and not self.dry_run:
            self.save_timer = self.loop.at(max(now, self.saved + max(1, 20 * self.cost)), self.save)
        if self.ban_changed and not self.keep_timer and not self.dry_run:
            self.keep_timer = self.loop.after(self.config['save'], self.keep)

    def minute(self):
        """Once a minute: what must never be banned, what is forgotten, what the kernel still has."""
        now = self.machine.ticks()
        self.loop.after(MINUTE, self.minute)
        self.protect()
        self.fails.purge(now, {j.name: j.options['findtime'] for j in self.jails.watching()})
        self.bans.purge(now, self.config['dbpurgeage'])
        if self.ending:
            return
        for kernel in self.kernels:
            kernel.unsure = True
        for source in self.sources.values():
            source.check()
        self.set_sources()
        if self.control and not self.control.stands():
            try:
                self.open_runtime()
            except Problem as e:                   # another one runs meanwhile, or there is no place
                self.machine.log('giving way: %s' % e)
                self.stop()

    # signals
    def signalled(self, number):
        if number in (signal.SIGTERM, signal.SIGINT):
            self.stop()
        elif number == signal.SIGHUP:
            try:
                self.reload()
            except Problem as e:
                self.machine.log('reload refused, nothing has changed: %s' % e)
        elif number == signal.SIGCHLD:
            self.machine.reap()

    def reload(self):
        """Takes over a changed conf, keeps bans and counts; Problem, and no change, if it is invalid."""
        if self.ending:
            return
        config = self.reread()
        jails = Jails(config)
        if jails.problems:
            raise Problem('\n'.join(jails.problems), os.EX_CONFIG)
        for name in ('runtime', 'state'):
            if config[name] != self.config[name]:
                where = config.where('banwatch', name)
                raise Problem('%s: a new `%s` needs a restart' % (where, name), os.EX_CONFIG)
        jails.adopt(self.jails)
        self.jails, self.config = jails, config
        self.fails.limit, self.bans.limit = config['maxtracked'], self.room()
        self.protect()
        self.set_firewall()
        self.set_sources()
        self.machine.log('reloaded %s' % config.name)

    def stop(self):
        """Takes our rules out of the kernel, saves, and ends the loop when the rules have gone."""
        if self.ending:
            return
        self.ending = True
        for kernel in self.kernels:
            kernel.close()
        self.loop.after(STOP_SECONDS, self.give_up)
        for source in self.sources.values():
            self.part(source)
        self.sources = {}
        if not self.dry_run:
            self.save()
            self.keep()
        if self.control:
            self.control.close()
            self.control = None

    def give_up(self):
        self.left_behind = [k.firewall.name for k in self.kernels + self.parting if not k.closed()]
        for name in self.left_behind:
            self.machine.log('%s: our rules could not be taken out; `banwatch.py stop` tries again' % name)
        self.stopping = True

    # the files
    def save(self):
        """Writes the live state."""
        self.loop.cancel(self.save_timer)
        self.save_timer = None
        self.positions.update((source.meant, source.position()) for source in self.sources.values())
        logins = {(jail.name, ip, user): until for jail in self.jails.by_name.values()
                  for (ip, user), until in jail.logins.items()}
        before = self.machine.ticks()
        known = {source: position for source, position in self.positions.items() if position}
        text = dump(self.bans, self.fails, logins, known, self.machine.clocks())
        self.changed = not self.write(self.runtime('state.json'), text)
        self.saved = self.machine.ticks()
        self.cost = self.saved - before

    def keep(self):
        """Writes the state that outlives a reboot, if it differs."""
        self.loop.cancel(self.keep_timer)
        self.keep_timer = None
        if self.ban_changed:
            text = dump_kept(self.bans, self.machine.clocks())
            self.ban_changed = not self.write(self.config['state'], text)
            self.kept = self.kept if self.ban_changed else self.machine.ticks()

    def write(self, path, text):
        """True if the file could be written; if not, that is said once, and in `status`."""
        try:
            self.machine.replace(path, text)
            self.troubles.pop(path, None)
            return True
        except OSError as e:
            self.note(path, 'not saved: %s' % e.strerror)
            return False

    def restore(self):
        """Takes in the live state, or the kept one if there is none."""
        state = self.recall(self.runtime('state.json'))
        self.ban_changed = state is not None       # the kept one may lag behind the live one
        state = state or self.recall(self.config['state'])
        if state is None:
            return
        now = self.machine.ticks()
        self.kept = now - state.age
        for key, (n, last) in reversed(list(state.history.items())):
            self.bans.remember(key, n, last)
        for ticket in state.tickets:
            if ticket.until is None or ticket.until > now:
                self.bans.put(ticket, now)
        for key, seen in state.fails.items():
            self.fails.put(key, seen)
        for (jail, ip, user), until in state.logins.items():
            if jail in self.jails.by_name:
                self.jails.by_name[jail].logins[ip, user] = until
        self.positions = state.sources
        if self.bans.tickets:
            self.machine.log('restored %s' % plural(len(self.bans.tickets), 'ban'))

    def recall(self, path):
        try:
            text = self.machine.recall(path)
            state = text and load(text, self.machine.clocks())
        except (ValueError, RecursionError, OSError) as e:
            self.machine.log('%s: cannot be used (%s); kept as %s' % (
                path, printable(str(e))[:100], self.machine.put_aside(path)))
            return None
        if state and state.lost:
            lost = plural(state.lost, 'entry', 'entries')
            self.machine.log('%s: %s could not be read; the rest is used' % (path, lost))
        return state

    # requests
    def answer(self, request, reply):
        """Answers a client; `reply` is called with a dict, now or when the kernel has said yes."""
        verbs = {'status': self.status, 'banned': self.banned, 'ban': self.ban_by_hand,
                 'unban': self.unban_by_hand, 'reload': self.reload_by_hand, 'stop': self.stop_by_hand}
        try:
            verbs[request['do']](request, reply)
        except Problem as e:
            reply({'error': str(e), 'code': e.code})
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            reply({'error': 'not a request that makes sense: %r' % e, 'code': os.EX_USAGE})

    def shown(self, reply, answer):
        """What a client is told is on file before it is told."""
        if self.changed:
            self.save()
        reply(answer)

    def when_settled(self, tickets, reply):
        """Calls `reply` with the firewalls' trouble ('' if none) when the kernel knows of these tickets."""
        kernels = [k for k in self.kernels if any(k.handles(t.network) for t in tickets)]
        troubles, left = [], [len(kernels)]

        def one(trouble):
            left[0] -= 1
            if trouble:
                troubles.append(trouble)
            if left[0] <= 0:
                reply('; '.join(troubles))
        for kernel in kernels:
            kernel.waiting.append(one)
        if not kernels:
            reply('')

    def jail_named(self, request):
        name = request.get('jail')
        if name is not None and name not in self.jails.by_name:
            known = ' '.join(self.jails.by_name)
            raise Problem('%s: no such jail (there are: %s)' % (printable(str(name)), known))
        return self.jails.by_name.get(name)

    def ban_by_hand(self, request, reply):
        jail = self.jail_named(request) or self.jails.by_name[MANUAL]
        seconds = request.get('seconds')
        seconds = jail.options['bantime'] if seconds is None else seconds
        if seconds != FOREVER:
            seconds = min(max(1, seconds), jail.options['bantime.maxtime'])
        refused, tickets = [], []
        for net in [network(text) for text in request['networks']]:
            refusal = self.ban(jail, net, seconds)
            if refusal:
                refused.append('%s: not banned: %s' % (net, refusal))
            else:
                tickets.append(self.bans.tickets[jail.name, net])
        self.when_settled(tickets, lambda trouble: self.shown(reply, {
            'banned': [t.network for t in tickets], 'seconds': seconds,
            'refused': refused, 'trouble': trouble}))

    def unban_by_hand(self, request, reply):
        self.jail_named(request)
        name, everything = request.get('jail'), request.get('all')
        nets = [network(text) for text in request['networks']]
        tickets = [t for t in self.bans.tickets.values() if name in (None, t.jail)
                   and (everything or any(touches(t.network, net) for net in nets))]
        missing = [net for net in nets if not any(touches(t.network, net) for t in tickets)]
        for key in [key for key in self.fails.recent if name in (None, key[0])
                    and (everything or any(touches(key[1], net) for net in nets))]:
            self.fails.forget(key)
            self.changed = True
        for ticket in tickets:
            self.unban(ticket, 'by hand')
        self.when_settled(tickets, lambda trouble: self.shown(reply, {
            'unbanned': sorted({t.network for t in tickets}), 'missing': missing, 'trouble': trouble}))

    def reload_by_hand(self, request, reply):
        self.reload()
        reply({})

    def stop_by_hand(self, request, reply):
        reply({})
        self.stop()

    def banned(self, request, reply):
        self.jail_named(request)
        clocks = self.machine.clocks()
        self.shown(reply, {'banned': [self.describe(t, clocks) for t in sorted(
            self.bans.tickets.values(), key=lambda t: t.since) if request.get('jail') in (None, t.jail)]})

    @staticmethod
    def describe(ticket, clocks):
        """A ticket for people: moments by the wall clock, `until` None for ever."""
        _, now, wall = clocks
        return {'ip': ticket.network, 'jail': ticket.jail, 'since': round(wall - now + ticket.since, 1),
                'until': None if ticket.until is None else round(wall - now + ticket.until, 1),
                'left': round(ticket.left(now), 1), 'count': ticket.count, 'failures': ticket.failures}

    def status(self, request, reply):
        self.jail_named(request)
        now, wall = self.machine.ticks(), self.machine.wall()
        rows = [self.jail_status(jail) for jail in self.jails.by_name.values()
                if request.get('jail') in (None, jail.name)]
        self.shown(reply, {
            'version': VERSION, 'pid': os.getpid(), 'conf': self.config.name,
            'uptime': round(now - self.began, 1), 'jails': rows,
            'sources': [{'source': s.what, 'lines': s.lines, 'trouble': s.trouble,
                         'idle': None if s.last is None else round(now - s.last, 1)}
                        for s in self.sources.values()],
            'firewall': [{'name': k.firewall.name, 'trouble': k.trouble, 'pending': not k.idle(),
                          'rules': len(self.tickets_for(k))} for k in self.kernels],
            'bans': len(self.bans.tickets), 'maxbans': self.bans.limit,
            'tracked': len(self.fails.recent), 'maxtracked': self.fails.limit,
            'memory': self.machine.memory()[0], 'written': self.machine.written,
            'saved': None if self.kept is None else round(wall - now + self.kept, 1),
            'wrong': self.wrong()})

    def jail_status(self, jail):
        name = jail.options['filter'] or jail.name
        return {'jail': jail.name, 'filter': name if jail.filter else None,
                'failures': jail.failures, 'ignored': jail.ignored,
                'names': jail.filter.names if jail.filter else 0,
                'tracked': sum(key[0] == jail.name for key in self.fails.recent),
                'banned': sum(key[0] == jail.name for key in self.bans.tickets), 'bans': jail.banned}

    def wrong(self):
        """Lines for `status`: all that is not as it should be."""
        found = ['%s: %s' % (path, text) for path, text in self.troubles.items()]
        found += ['%s: %s' % (k.firewall.name, k.trouble) for k in self.kernels if k.trouble]
        found += ['%s: %s' % (s.what, s.trouble) for s in self.sources.values() if s.trouble]
        for jail in self.jails.watching():
            if jail.filter.names:
                found.append('%s: %s named a host instead of an address; names are not looked up' % (
                    jail.name, plural(jail.filter.names, 'failure')))
        if self.bans.dropped:
            dropped = plural(self.bans.dropped, 'ban')
            found.append('maxbans is reached: %s lifted before their time' % dropped)
        return found


def listen_to_signals(loop, signalled):
    """Makes signals events of the loop: select() goes on after a signal, so they come through a socket."""
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
    loop.unwatch(pair[0])
    for end in pair:
        end.close()


# ---- Commands ------------------------------------------------------------------------------
# Owns: the command line. One row of COMMANDS is the whole of a command; dispatch and --help read
# it. Always true: a command prints its result to standard output and returns its exit code.

CONF = '/etc/banwatch.conf'


def read_conf(name, strict=True):
    """The Config in a conf file ('-': standard input; None: /etc/banwatch.conf if there is one). Who
    only wants to talk to the daemon is not strict: whatever is wrong must not bar him from `stop`."""
    if name is None and not os.path.lexists(CONF):
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
    problems += Jails(config).problems
    if problems and strict:
        raise Problem('\n'.join(in_order(problems)), os.EX_CONFIG)
    if problems:
        print('banwatch: %s has mistakes (banwatch.py check tells)' % name, file=sys.stderr)
    return config


def run(conf, options, words):
    config = read_conf(conf)
    dry_run = 'dry-run' in options
    machine = Machine()
    if not dry_run and config['firewall'] != 'none' and not machine.root():
        raise Problem('only root can change the firewall; `run --dry-run` needs no rights', os.EX_NOPERM)
    daemon = Daemon(machine, config, lambda: read_conf(conf), dry_run)
    pair = listen_to_signals(daemon.loop, daemon.signalled)
    try:
        daemon.start()
        daemon.run()
    finally:
        deafen(daemon.loop, pair)
    machine.log('stopped')
    return 1 if daemon.left_behind else 0


def check(conf, options, words):
    config = read_conf(conf)
    print(config_text(config) if 'print' in options else '%s: all right' % config.name)
    return 0


def request(conf, options, words, **more):
    """The daemon's answer to a command, which may name a jail."""
    jail = options.get('jail') or (words[0] if words else None)
    return ask(read_conf(conf, strict=False), dict(more, jail=jail))


def clock_text(when):
    return 'for ever' if when is None else time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(when))


def show(rows):
    print('\n'.join(rows))
    return 0


def status(conf, options, words):
    answer = request(conf, options, words, do='status')
    if 'json' in options:
        return show([json.dumps(answer)])
    head = 'JAIL', 'FAILURES', 'TRACKED', 'IGNORED', 'BANS', 'NOW'
    keys = 'jail', 'failures', 'tracked', 'ignored', 'bans', 'banned'
    rows = ['banwatch %s, pid %d, up %s, %s kB, conf: %s' % (
        answer['version'], answer['pid'], duration_text(answer['uptime']), answer['memory'], answer['conf'])]
    for source in answer['sources']:
        last = '' if source['idle'] is None else ', last %s ago' % duration_text(source['idle'])
        said = source['trouble'] or plural(source['lines'], 'line') + last
        rows.append('source    %s: %s' % (source['source'], said))
    for wall in answer['firewall']:
        rows.append('firewall  %s: %s' % (wall['name'], wall['trouble'] or plural(wall['rules'], 'ban')))
    saved = 'not saved yet' if answer['saved'] is None else 'saved ' + clock_text(answer['saved'])
    rows.append('state     ' + saved)
    rows += [''] + list(table(head, [[jail[key] for key in keys] for jail in answer['jails']]))
    rows += [''] * bool(answer['wrong']) + ['WRONG: ' + printable(text) for text in answer['wrong']]
    return show(rows)


def banned(conf, options, words):
    rows = request(conf, options, words, do='banned')['banned']
    if 'json' in options:
        return show([json.dumps(rows)])
    if not rows:
        return show(['nobody is banned'])
    return show(table(('ADDRESS', 'JAIL', 'SINCE', 'UNTIL', 'LEFT', 'COUNT'), [
        (row['ip'], row['jail'], clock_text(row['since']), clock_text(row['until']),
         '' if row['until'] is None else duration_text(row['left']), row['count']) for row in rows]))


def typed_networks(words):
    found = []
    for word in words:
        try:
            found.append(network(word))
        except ValueError:
            raise Problem('%s is no address or network (try 192.0.2.7, 2001:db8::7, 198.51.100.0/24)'
                          % printable(word), os.EX_USAGE) from None
    return found


def ban(conf, options, words):
    try:
        seconds = ban_seconds(options['time']) if 'time' in options else None
    except ValueError as e:
        raise Problem('-t %s %s' % (printable(options['time']), e), os.EX_USAGE) from None
    answer = request(conf, options, [], do='ban', networks=typed_networks(words), seconds=seconds)
    for net in answer['banned']:
        print('%s: banned %s' % (net, for_text(answer['seconds'])))
    if seconds is not None and seconds != answer['seconds']:
        print('(bantime.maxtime is %s; -t -1 bans for ever)' % duration_text(answer['seconds']))
    return verdict(answer, answer['refused'])


def unban(conf, options, words):
    everything = 'all' in options
    if everything == bool(words):
        raise Problem('unban takes addresses, or --all', os.EX_USAGE)
    answer = request(conf, options, [], do='unban', networks=typed_networks(words), all=everything)
    for net in answer['unbanned']:
        print('%s: unbanned' % net)
    by = ' by ' + options['jail'] if 'jail' in options else ''
    return verdict(answer, ['%s: is not banned%s' % (net, by) for net in answer['missing']])


def verdict(answer, refused):
    """Prints what did not work; the exit code."""
    for text in refused:
        print('banwatch: ' + text, file=sys.stderr)
    if answer['trouble']:
        print('banwatch: it is on record, but the firewall does not take it: %s'
              % printable(answer['trouble']), file=sys.stderr)
    return 1 if refused or answer['trouble'] else 0


def reload(conf, options, words):
    request(conf, options, words, do='reload')
    return show(['reloaded'])


def stop(conf, options, words):
    if os.path.exists('/sbin/procd') and os.path.exists('/etc/init.d/banwatch'):
        raise Problem('procd would start it again; use: /etc/init.d/banwatch stop')
    try:
        request(conf, options, words, do='stop')
        return show(['stopping'])
    except Problem as e:
        if e.code != os.EX_UNAVAILABLE or not tidy_up(Machine(), read_conf(conf, strict=False)):
            raise
        raise Problem('no daemon is running; rules that one had left behind have been taken out',
                      e.code) from None


def tidy_up(machine, config):
    """Takes out the rules of a daemon that was killed; True if there were some."""
    lock = os.path.join(config['runtime'], 'lock')
    if os.path.exists(lock) and not machine.lock(lock):
        raise Problem('a daemon is running, but does not answer; try: kill %s' % machine.read(lock).strip())
    kernels = [Kernel(firewall, machine, lambda kernel: []) for firewall in
               make_firewalls(config['firewall'], config['chain'], {}) if machine.root()]
    pair = listen_to_signals(machine.loop, lambda number: machine.reap())
    for kernel in kernels:
        kernel.close()
        kernel.settle()
    while any(kernel.busy for kernel in kernels):
        machine.loop.wait(machine.loop.due())
    deafen(machine.loop, pair)
    troubles = ['%s: %s' % (k.firewall.name, k.trouble) for k in kernels if k.trouble and k.worked]
    if troubles:
        raise Problem('no daemon is running, but it may have left rules behind: ' + '; '.join(troubles))
    return any(kernel.removed for kernel in kernels)


def log_blocks(name):
    """Yields the blocks of whole lines of a log file; '-' is standard input, .gz is unpacked."""
    try:
        if name.endswith('.gz'):
            import gzip
            f = gzip.open(name, 'rb')
        else:
            f = open(0 if name == '-' else name, 'rb', buffering=0, closefd=name != '-')
        with f:
            cutter = Cutter()
            for chunk in iter(lambda: f.read(1 << 20), b''):
                yield cutter.feed(chunk)
            yield cutter.rest()
    except (OSError, EOFError) as e:
        code = os.EX_NOPERM if isinstance(e, PermissionError) else 1
        hint = ' (try: journalctl -o short-iso | banwatch.py replay -)' if name in LOGS else ''
        raise Problem('%s: %s%s' % (name, getattr(e, 'strerror', None) or e, hint), code) from None


def default_log(machine):
    """The log file of this machine; Problem with what to type instead if it has none."""
    found = find_source(machine)
    if not found.startswith('/'):
        program = 'logread' if found == 'logread' else 'journalctl -o short-iso'
        raise Problem('this machine keeps no log file; try: %s | banwatch.py replay -' % program)
    return found


class Replay:
    """The whole pipeline over a log, in the log's own time."""

    def __init__(self, config, machine):
        self.jails = Jails(config)
        self.jails.protect(machine.networks())
        self.fails, self.bans = Fails(config['maxtracked']), Bans(config['maxbans'] or 20000)
        self.today = int(machine.wall()) // 86400
        self.chance = machine.chance
        self.now = None              # the log's time
        self.lines = self.failures = 0
        self.dated = True            # does it begin with lines whose date is known?
        self.found = []              # rows of the answer

    def moment(self, date):
        """A line's time; one without a date is as late as the one before."""
        when = date_time(date, self.today) if date else None
        if when is not None:
            self.now = when
        return self.now or 0.0

    def read(self, block):
        if not self.lines:
            first = [line for line in block.split(b'\n', 100)[:100] if line]
            self.dated = not first or any(read_line(line).date for line in first)
        self.lines += block.count(b'\n')
        for jail, seen in self.jails.scan(None, block, self.moment):
            self.failures += seen.guesses
            for ticket in self.bans.ended(seen.when):
                self.bans.remove(ticket.key)
            offence = jail.weigh(seen, self.fails, self.bans, self.jails.by_name, self.chance())
            if offence:
                self.ban(jail, offence, seen.when)

    def ban(self, jail, offence, when):
        """Notes what Daemon.ban would have done."""
        known = (jail.name, offence.network) in self.bans.tickets
        self.fails.forget((jail.name, offence.network))
        ticket = self.bans.add(jail.name, offence.network, when, offence.seconds, offence.failures)
        if not known:
            self.found.append({
                'time': when, 'jail': jail.name, 'ip': ticket.network, 'seconds': offence.seconds,
                'count': ticket.count, 'failures': offence.failures})


def replay(conf, options, words):
    config, machine = read_conf(conf), Machine()
    trial = Replay(config, machine)
    for name in words or ['-' if not sys.stdin.isatty() else default_log(machine)]:
        for block in log_blocks(name):
            trial.read(block)
    if 'json' in options:
        return show([json.dumps({'lines': trial.lines, 'failures': trial.failures, 'bans': trial.found})])
    rows = [(clock_text(ban['time']), ban['jail'], ban['ip'], ban['failures'], ban['count'],
             duration_text(ban['seconds'])) for ban in trial.found]
    addresses = plural(len({ban['ip'] for ban in trial.found}), 'address', 'addresses')
    print('%s, %s, %s of %s' % (plural(trial.lines, 'line'), plural(trial.failures, 'failure'),
                                plural(len(rows), 'ban'), addresses))
    if not trial.dated:
        print('banwatch: it does not begin with lines that have a date: is this a log?', file=sys.stderr)
    return show(table(('TIME', 'JAIL', 'ADDRESS', 'FAILURES', 'COUNT', 'BAN'), rows)) if rows else 0


Verb = collections.namedtuple('Verb', 'arguments flags least most help run')
ANY = 1 << 16
COMMANDS = {
    'run': Verb('[--dry-run]', ['dry-run'], 0, 0,
                'the daemon, in the foreground; TERM stops it, HUP reloads; --dry-run touches nothing', run),
    'check': Verb('[--print]', ['print'], 0, 0,
                  'find all mistakes in the conf; --print shows it with every default', check),
    'status': Verb('[JAIL] [--json]', ['json'], 0, 1,
                   'how the daemon is, what it has seen, and what is wrong', status),
    'banned': Verb('[JAIL] [--json]', ['json'], 0, 1, 'who is banned, since when, until when', banned),
    'ban': Verb('[-j JAIL] [-t TIME] ADDRESS...', ['jail=', 'time='], 1, ANY,
                'ban addresses or networks by hand (-t 2h; -t -1: for ever)', ban),
    'unban': Verb('[-j JAIL] ADDRESS... | --all', ['jail=', 'all'], 0, ANY,
                  'lift the bans that touch these and forget their failures (not how often they were '
                  'banned)', unban),
    'reload': Verb('', [], 0, 0, 'read the conf again; keeps every ban and every count', reload),
    'stop': Verb('', [], 0, 0, 'stop the daemon; its rules go, its bans come back at the next start', stop),
    'replay': Verb('[FILE...] [--json]', ['json'], 0, ANY,
                   'who would have been banned by these logs (- is standard input); touches nothing', replay),
}
SHORT = {'-j': 'jail', '-t': 'time'}


def help_text():
    rows = ['usage: banwatch.py [-c CONF] COMMAND', '']
    for word, verb in COMMANDS.items():
        rows.append(('  %s %s' % (word, verb.arguments)).rstrip())
        rows.append('      ' + verb.help)
    return '\n'.join(rows + [
        '', '  -c CONF    the conf file (%s, if there is one; every option has a default)' % CONF,
        '  --help     this text        --version', '',
        'Try first, as any user:  banwatch.py replay /var/log/auth.log',
        'Exit codes: 0 done, 1 no, 64 usage, 69 no daemon is running, 77 not permitted, 78 configuration'])


# ---- Main ----------------------------------------------------------------------------------
# Owns: nothing. Takes the command line apart, and turns a Problem into one line and an exit code.

def dispatch(argv):
    """The exit code of a command line."""
    try:
        opened, rest = getopt.getopt(argv, 'c:hV', ['help', 'version'])
        opened = dict(opened)
        if '-h' in opened or '--help' in opened or rest[:1] == ['help']:
            return show([help_text()])
        if '-V' in opened or '--version' in opened:
            return show(['banwatch ' + VERSION])
        if not rest:
            raise Problem('which command? (%s; --help tells more)' % ' '.join(COMMANDS), os.EX_USAGE)
        verb = COMMANDS.get(rest[0])
        if verb is None:
            known = ' '.join(COMMANDS)
            raise Problem('%s: no such command (there are: %s)' % (printable(rest[0]), known), os.EX_USAGE)
        short = 'c:hj:t:' if 'jail=' in verb.flags else 'c:h'
        options, words = getopt.gnu_getopt(rest[1:], short, verb.flags + ['help'])
    except getopt.GetoptError as e:
        raise Problem('%s (see --help)' % e, os.EX_USAGE) from None
    options = {SHORT.get(key, key.lstrip('-')): value for key, value in options}
    if 'help' in options or 'h' in options:
        return show([('usage: banwatch.py %s %s' % (rest[0], verb.arguments)).rstrip(), '  ' + verb.help])
    if not verb.least <= len(words) <= verb.most:
        raise Problem(('usage: banwatch.py %s %s' % (rest[0], verb.arguments)).rstrip(), os.EX_USAGE)
    return verb.run(options.get('c', opened.get('-c')), options, words)


def main(argv):
    try:
        code = dispatch(argv)
        sys.stdout.flush()
        return code
    except Problem as e:
        for line in str(e).split('\n'):
            located = e.code == os.EX_CONFIG and re.match(r'.+?:\d+: ', line)
            print(line if located else 'banwatch: ' + line, file=sys.stderr)
        return e.code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as e:
        print('banwatch: %s: %s' % (e.filename or 'the system says', e.strerror or e), file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)           # what standard output still holds
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
