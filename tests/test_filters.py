"""Filters: every line of the corpus gets the verdict that stands before it."""
import functools
import glob
import os
import re
import time

import pytest

import banwatch
from harness import FakeMachine, House, turn, zone

CORPORA = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'corpora')
ESCAPE = re.compile(r'\\(x[0-9a-fA-F]{2}|[rett\\])')
PLAIN = {'r': b'\r', 'e': b'\x1b', 't': b'\t', '\\': b'\\'}


def raw_line(text):
    """The bytes that a corpus line stands for."""
    out, end = b'', 0
    for m in ESCAPE.finditer(text):
        out += text[end:m.start()].encode()
        out += PLAIN.get(m.group(1)) or bytes([int(m.group(1)[1:], 16)])
        end = m.end()
    return out + text[end:].encode()


def read_groups(path):
    """Lists of (line number, verdict, ip, user, raw line): each list for a fresh filter."""
    group, groups = [], []
    with open(path, encoding='utf-8') as f:
        for n, line in enumerate(f, 1):
            if line.startswith('#'):
                continue
            if not line.strip():
                groups, group = groups + [group], []
                continue
            verdict, ip, user, text = line.rstrip('\n').split('\t', 3)
            group.append((n, verdict, None if ip == '-' else ip, None if user == '-' else user, raw_line(text)))
    return [g for g in groups + [group] if g]


def corpus():
    for path in sorted(glob.glob(os.path.join(CORPORA, '*.log'))):
        for group in read_groups(path):
            name = os.path.basename(path)
            yield pytest.param(name[:-4], group, id='%s:%d' % (name, group[0][0]))


def sightings(jails, block):
    return [(jail.name, seen) for jail, seen in jails.scan(None, block, lambda date: 1000.0)]


def listeners(name):
    """The filters that a corpus is for, and whether they hear lines without a tag: sshd.ddos.log is for sshd in mode
    ddos; formats.log and hostile.log are for all that are on by default."""
    name, mode = (name.split('.') + [''])[:2]
    if name in ('formats', 'hostile'):
        return [(banwatch.load_filter(each), False) for each in banwatch.JAILS if each in DEFAULTS]
    return [(banwatch.load_filter(name, {'mode': mode} if mode else {}), name not in DEFAULTS)]


DEFAULTS = 'dropbear', 'sshd', 'luci'


@pytest.mark.parametrize('name, group', corpus())
def test_each_line_gets_its_verdict(name, group):
    made = listeners(name)
    for n, verdict, ip, user, line in group:
        block = banwatch.tidy(line + b'\n')
        found = [seen for each, bare in made for seen in each.scan(block, lambda date: 1000.0, bare)]
        if verdict == 'NONE':
            assert found == [], 'line %d' % n
        elif verdict == 'OK':
            assert [(s.login, s.ip, s.user) for s in found] == ([(True, ip, user)] if ip and user else []), 'line %d' % n
        else:
            guesses = int(verdict[4:] or 1)
            assert {(s.login, s.ip) for s in found} == {(False, ip)} and sum(s.guesses for s in found) == guesses, 'line %d' % n
            assert user is None or found[0].user == raw_line(user).decode('utf-8', 'backslashreplace'), 'line %d' % n


@pytest.mark.parametrize('name', sorted({case.values[0] for case in corpus() if '.' in case.values[0]} - {'dovecot.pam'}))
def test_a_stricter_mode_finds_more(name):
    def failures(made):
        block = b''.join(line + b'\n' for other, group in (case.values for case in corpus()) if other == name
                         for _, _, _, _, line in group)
        return sum(seen.guesses for seen in made.scan(banwatch.tidy(block), lambda date: 1000.0, True))
    name, mode = name.split('.')
    assert failures(banwatch.load_filter(name)) < failures(banwatch.load_filter(name, {'mode': mode}))


# --- the table

MODES = {name: ('normal', 'ddos', 'extra', 'aggressive') for name in ('dropbear', 'sshd')}


def filters():
    """Each built-in filter in its most complete mode."""
    for name in banwatch.FILTERS:
        if not name.startswith('common'):
            yield banwatch.load_filter(name, {'mode': 'aggressive'} if name in MODES else {})
    yield banwatch.load_filter('dropbear')             # its last regex holds in no stricter mode


def native():
    return [made for made in filters() if isinstance(made, banwatch.Filter)]


def regexes():
    for made in native():
        for _, text in made.texts:
            yield pytest.param(made, text, id='%s %s' % (made.definition.name, text[:50]))


@functools.lru_cache(maxsize=None)
def corpus_lines():
    return [raw for path in glob.glob(os.path.join(CORPORA, '*.log')) for group in read_groups(path)
            for _, _, _, _, raw in group]


@pytest.mark.slow
def matched(made, raw, bare=False):
    """The regex that a line matches, as a set."""
    return {made.form(bare).texts[abs(row[0])] for row in made.read(banwatch.tidy(raw + b'\n'), bare)}


@pytest.mark.parametrize('made', native(), ids=lambda made: made.definition.name)
def test_every_regex_has_a_sample_in_the_corpus(made):
    """No sample, no regex: some line of the corpus is matched by each, and by none before it."""
    left = {text for _, text in made.texts}
    for raw in corpus_lines():
        for bare in (False, True):
            left -= matched(made, raw, bare)
    assert not left


@pytest.mark.parametrize('made, text', regexes())
def test_every_regex_is_anchored_and_holds_a_literal(made, text):
    assert text.startswith('^')
    alone = banwatch.compile_line(text)
    assert max(map(min, [[len(part) for part in banwatch.best_literals(alone) or [b'']]])) >= 4


@pytest.mark.parametrize('made', native(), ids=lambda made: made.definition.name)
def test_no_built_in_regex_can_match_across_lines(made):
    """Over a block, whatever could match a newline would join two lines: nothing but the first byte may."""
    try:
        from re import _parser as parser
    except ImportError:
        import sre_parse as parser

    def newlines(parsed):
        for op, arg in parsed:
            name = str(op)
            if name == 'LITERAL':
                yield from ['LITERAL'] if arg == 10 else []
            elif name == 'NOT_LITERAL':
                yield name
            elif name == 'IN':
                names = [str(kind) for kind, _ in arg]
                inside = any(str(kind) == 'LITERAL' and value == 10 or str(kind) == 'RANGE' and value[0] <= 10 <= value[1]
                             or str(kind) == 'CATEGORY' and str(value) in (
                                 'CATEGORY_SPACE', 'CATEGORY_NOT_DIGIT', 'CATEGORY_NOT_WORD') for kind, value in arg)
                if ('NEGATE' in names) != inside:
                    yield arg
            elif name in ('MAX_REPEAT', 'MIN_REPEAT', 'POSSESSIVE_REPEAT'):
                yield from newlines(arg[2])
            elif name == 'SUBPATTERN':
                yield from newlines(arg[-1])
            elif name == 'BRANCH':
                for way in arg[1]:
                    yield from newlines(way)
            elif name == 'GROUPREF_EXISTS':
                for way in arg[1:]:
                    yield from newlines(way or [])
            elif name == 'ATOMIC_GROUP':
                yield from newlines(arg)
    for bare in (False, True):
        assert list(newlines(parser.parse(made.form(bare).regex.pattern, re.M))) == ['LITERAL'] * (bare or not made.tag_is_literal)


def test_three_corpora_have_enough_lines():
    sizes = {os.path.basename(p): sum(len(g) for g in read_groups(p)) for p in glob.glob(os.path.join(CORPORA, '*.log'))}
    assert sizes['dropbear.log'] >= 60 and sizes['sshd.log'] >= 100 and sizes['luci.log'] >= 25 and sizes['hostile.log'] >= 30


# --- one guess is one failure

def lines(*messages, tag='sshd[7]'):
    return b''.join(b'Nov 20 13:00:00 h %s: %s\n' % (tag.encode(), m.encode()) for m in messages)


def total(block, config=None):
    return sum(seen.guesses for _, seen in sightings(banwatch.Jails(config or banwatch.Config()), block))


INVALID = 'Invalid user bob from 192.0.2.7 port 5'
PAM = 'pam_unix(sshd:auth): authentication failure; logname= uid=0 euid=0 tty=ssh ruser= rhost=192.0.2.7 '
FAILED = 'Failed password for invalid user bob from 192.0.2.7 port 5 ssh2'


def test_three_lines_of_one_guess_are_one_failure():
    assert total(lines(INVALID, PAM, FAILED)) == 1


def test_five_guesses_on_one_connection_are_five():
    assert total(lines(INVALID, PAM, *[FAILED] * 5)) == 5
    assert total(lines(INVALID, PAM, FAILED, 'message repeated 4 times: [ %s]' % FAILED)) == 5


def test_a_reused_pid_with_another_address_is_another_connection():
    assert total(lines(FAILED, FAILED) + lines(INVALID.replace('.7', '.8'))) == 3


def test_a_pid_that_comes_back_after_ten_minutes_is_another_connection():
    jails = banwatch.Jails(banwatch.Config())
    seen = []
    for when in (0, 601):
        seen += list(jails.scan(None, lines(FAILED) + lines(INVALID), lambda date: when))
    assert [s.guesses for _, s in seen] == [1, 1]
    jails = banwatch.Jails(banwatch.Config())
    seen = list(jails.scan(None, lines(FAILED), lambda date: 0)) + list(jails.scan(None, lines(INVALID), lambda date: 601))
    assert [s.guesses for _, s in seen] == [1, 1]


def test_the_same_pid_on_two_hosts_is_two_connections():
    assert total(lines(INVALID) + lines(PAM).replace(b' h ', b' g ')) == 2


def test_memory_of_connections_is_bounded():
    jails = banwatch.Jails(banwatch.Config())
    for n in range(3000):
        sightings(jails, lines(FAILED, tag='sshd[%d]' % n))
    assert len(jails.by_name['sshd'].filter.sessions) <= 1.1 * banwatch.SESSIONS


# --- what is no address

def test_a_host_name_is_counted_as_such_and_never_resolved():
    jails = banwatch.Jails(banwatch.Config())
    assert sightings(jails, lines(PAM.replace('192.0.2.7', 'host.example'))) == []
    assert jails.by_name['sshd'].filter.names == 1


@pytest.mark.slow
def test_a_cut_line_never_ends_like_a_whole_one():
    user = 'x' * 8000
    head = 'Failed password for invalid user '
    for n in range(8192 - 200, 8192 + 200, 7):
        name = ('x' * n)[:max(0, n - 60)] + ' from 198.51.100.99 port 1 ssh2'
        block = lines(head + name + user + ' from 192.0.2.7 port 5 ssh2')
        assert not [s for _, s in sightings(banwatch.Jails(banwatch.Config()), block) if s.ip == '198.51.100.99']


def test_a_line_that_logd_may_have_cut_is_no_evidence_against_an_address_its_client_wrote():
    path = '/' + 'a' * 930
    line = "Thu Mar  7 12:34:56 2024 daemon.err uhttpd[9]: luci: failed login on %s for x from 198.51.100.99" % path
    assert total(line.encode()[:1023] + b'\n') == 0


# --- a user's own filter

def own(regex, **more):
    text = '[web]\nfailregex = %s\n' % regex + ''.join('%s = %s\n' % pair for pair in more.items())
    made, problems = banwatch.read_config(text, 'c')
    assert not problems
    return made


def test_an_own_failregex_sees_the_line_without_its_date():
    assert total(b'Nov 20 13:00:00 h web[1]: no entry for 192.0.2.7\n', own(r'^ h web\[\d+\]: no entry for <HOST>$')) == 1


def test_the_jail_in_the_readme_works():
    with open(os.path.join(os.path.dirname(os.path.abspath(banwatch.__file__)), 'README'), encoding='utf-8') as f:
        regex = re.search(r'failregex = (.*)', f.read()).group(1)
    block = b'2026-11-20 13:00:00 login failed for bob from 192.0.2.7\n'
    ((_, seen),) = sightings(banwatch.Jails(own(regex)), block)
    assert (seen.ip, seen.user) == ('192.0.2.7', 'bob')


def test_an_own_ignoreregex_wins():
    block = b'Nov 20 13:00:00 h web[1]: no entry for 192.0.2.7\nNov 20 13:00:00 h web[2]: no entry for 192.0.2.7 again\n'
    assert total(block, own(r'no entry for <HOST>', ignoreregex='again$')) == 1


def test_a_failregex_without_a_literal_still_finds_its_lines():
    assert total(b'[1] 192.0.2.7\n[2] 192.0.2.8\n', own(r'^\[\d\] <HOST>$')) == 2


def test_a_jail_may_have_a_built_in_filter_under_its_own_name():
    made, _ = banwatch.read_config('[office]\nfilter = sshd\n', 'c')
    assert {name for name, _ in sightings(banwatch.Jails(made), lines(FAILED))} == {'sshd', 'office'}


# --- sources and jails

def test_a_jail_with_its_own_source_hears_only_that_and_takes_lines_without_a_tag():
    made, _ = banwatch.read_config('[banwatch]\nsource = /all\n[dropbear]\nsource = fifo:/own\n', 'c')
    jails = banwatch.Jails(made)
    line = b"Bad password attempt for 'root' from 192.0.2.7:5\n"
    tagged = b'Nov 20 13:00:00 h dropbear[1]: ' + line

    def count(source, block):
        return len(list(jails.scan(source, block, lambda date: 0)))
    assert jails.sources == ['/all', 'fifo:/own']
    assert count('fifo:/own', line) == 1 and count('fifo:/own', tagged) == 1
    assert count('/all', tagged) == 0 and count('/all', line) == 0


def test_a_login_that_comes_by_udp_forgives_nobody():
    jails = banwatch.Jails(banwatch.read_config('[banwatch]\nsource = udp:5514\n    /log\n', 'c')[0])
    block = lines('Accepted password for root from 192.0.2.7 port 5 ssh2')
    assert not list(jails.scan('udp:5514', block, lambda date: 0))
    assert [s.login for _, s in jails.scan('/log', block, lambda date: 0)] == [True]


@pytest.mark.parametrize('junk', [b'\n', b'\x00\n', b'\xff\xfe sshd[1]: Failed \xff\n', b'sshd[1]: Failed ' * 3000 + b'\n',
                                  b'Nov 20 13:00:00 h sshd[1]: Failed password for ' + b'\xff' * 1000 + b' from 1.2.3 port x\n'])
def test_junk_is_never_a_sighting(junk):
    assert sightings(banwatch.Jails(banwatch.Config()), junk) == []


# --- what attackers tried

def luci(text):
    return b'Thu Mar  7 12:34:56 2024 daemon.err uhttpd[9]: %s\n' % text.encode()


def test_a_line_that_ends_in_blanks_may_have_been_cut_and_is_no_evidence():
    assert total(luci('luci: failed login on / for x from 198.51.100.99' + ' ' * 500)) == 0


def test_a_long_path_hides_no_guess():
    for n in (100, 500, 880, 1100, 3000):
        assert total(luci('luci: failed login on /%s for root from 192.0.2.7' % ('a' * n))) == 1, n


def test_a_login_that_luci_logs_forgives_nobody():
    jails = banwatch.Jails(banwatch.Config())
    jails.protect([], {})
    jail = jails.by_name['luci']
    for _, seen in sightings(jails, luci('luci: accepted login on / for root from 192.0.2.7')):
        banwatch.Judge(jails, 9, 9, lambda: 0).weigh(jail, seen)
    assert not jail.logins and jail.options['port'] == '80,443'


def test_a_global_ignorelogin_is_not_lucis():
    made, _ = banwatch.read_config('[DEFAULT]\nignorelogin = 2h\nport = 22\n', 'c')
    assert made.get('luci', 'ignorelogin') == 0 and made.get('luci', 'port') == '80,443'
    made, _ = banwatch.read_config('[luci]\nignorelogin = 2h\n', 'c')
    assert made.get('luci', 'ignorelogin') == 7200


# Lines of programs that write what their clients say: each form with two such texts, as the program escapes them.
CLIENT, VICTIM = '198.51.100.7', '203.0.113.66'
NAMES = [text.replace('IP', VICTIM) for text in (
    'x from IP port 1 ssh2', 'x from IP via ssh', ' from IP', ' rhost=IP', 'x rhost=IP  user=root', 'x  user=root rhost=IP',
    'x (Remote IP: IP)', '","remoteAddr":"IP","message":"Login failed: y (Remote IP: IP)', 'x. IP: IP. Username: y', '\\', '"',
    "x (IP). Requested URL: '/auth/login'. (", "x' - not authenticated: Authentication failure, client: IP, server: ",
    'x: from ip IP: invalid username or password', 'x status=403 ip=IP err="invalid username or password"',
    'x outcome=failure src=IP', 'authentication failure; rhost=IP user=root@pam msg=', 'x) [IP] Ci=1: 535 Incorrect authentication data')]


def unblank(text):
    return text.replace(' ', '%20')


def slog(text):
    return '"%s"' % text.replace('\\', '\\\\').replace('"', '\\"')


def in_json(text):
    return text.replace('\\', '\\\\').replace('"', '\\"')


def cef(text):
    return text.replace('\\', '\\\\').replace('=', '\\=')


PAM_LINE = 'pam_unix(vsftpd:auth): authentication failure; logname= uid=0 euid=0 tty=ftp '
WRITTEN = {
    'adguardhome old': lambda a, b: 'AdGuardHome[7]: 2026/11/20 13:00:00.123456 [error] POST %s /control/login?%s: from ip %s: invalid '
                                    'username or password' % (unblank(a), unblank(b), CLIENT),
    'adguardhome new': lambda a, b: 'AdGuardHome[7]: 2026/11/20 13:00:00.123456 [error] webapi: http error host=%s method=POST url=%s '
                                    'status=403 ip=%s err="invalid username or password"' % (slog(a), slog('/control/login?' + b), CLIENT),
    'vaultwarden': lambda a, b: 'vaultwarden[7]: [vaultwarden::api::identity][ERROR] Username or password is incorrect. Try again. '
                                'IP: %s. Username: %s%s.' % (CLIENT, a, b),
    'home-assistant': lambda a, b: 'hass[7]: WARNING (MainThread) [homeassistant.components.http.ban] Login attempt or request with invalid '
                                   "authentication from x (%s). Requested URL: '/auth/%s'. (%s)" % (CLIENT, unblank(a), b),
    'nextcloud': lambda a, b: 'Nextcloud[7]: {"reqId":"%s","level":2,"time":"2026-11-20T13:00:00+00:00","remoteAddr":"%s","user":"--",'
                              '"app":"core","method":"POST","url":"/%s","message":"Login failed: %s (Remote IP: %s)","userAgent":"%s",'
                              '"version":"33"}' % (in_json(b), CLIENT, in_json(a), in_json(a), CLIENT, in_json(b)),
    'proxmox': lambda a, b: "pvedaemon[7]: authentication failure; rhost=::ffff:%s user=%s@pam msg=no such user ('%s')" % (CLIENT, a, b),
    'pam-generic both': lambda a, b: 'vsftpd[7]: %sruser=%s rhost=%s  user=%s' % (PAM_LINE, a, CLIENT, b),
    'pam-generic first': lambda a, b: 'vsftpd[7]: %sruser=%s%s rhost=%s' % (PAM_LINE, a, b, CLIENT),
    'mikrotik default': lambda a, b: 'system,error,critical login failure for user %s%s from %s via ssh' % (a, b, CLIENT),
    'mikrotik cef': lambda a, b: 'CEF:0|MikroTik|hAP ax^2|7.25|10|system,error,critical|High|dvchost=h dvc=192.0.2.1 msg=login failure for '
                                 'user %s from %s via ssh app=ssh duser=%s outcome=failure src=%s' % (cef(a), CLIENT, cef(a), CLIENT),
    'nginx-http-auth': lambda a, b: "nginx: 2026/11/20 13:00:00 [error] 7#7: *3 PAM: user '%s' - not authenticated: Authentication failure, "
                                    'client: %s, server: _, request: "GET /%s HTTP/1.1", host: "%s"' % (a.split(':')[0], CLIENT, unblank(b), b),
    'luci': lambda a, b: "uhttpd[7]: luci: auth plugin '2fa' verification failed for %s%s from %s" % (a, b, CLIENT),
    'exim': lambda a, b: 'exim[7]: login authenticator failed for (%s) [%s]:20042 I=[192.0.2.25]:25 Ci=7 U=%s: 535 Incorrect authentication '
                         'data (set_id=%s)' % (a, CLIENT, unblank(b), b)}


@pytest.mark.parametrize('form', sorted(WRITTEN))
def test_no_text_of_a_clients_is_taken_for_its_address(form):
    """Whole lines, and what log daemons leave of them: 255 bytes of a datagram (busybox), 1023 (logd, musl)."""
    made, whole = banwatch.load_filter(form.split()[0]), 0
    for first in NAMES:
        for second in NAMES:
            line = ('<38>Nov 20 13:00:00 ' + WRITTEN[form](first, second)).encode()
            for text in [line] + [line[:size] for size in (255, 256, 1023, 1024) if size < len(line)]:
                found = {seen.ip for seen in made.scan(banwatch.tidy(text + b'\n'), lambda date: 1000.0, True)}
                assert found <= {CLIENT}, text
                whole += text is line and bool(found)
    assert whole


@pytest.mark.parametrize('program, service', [('vsftpd', 'vsftpd'), ('pure-ftpd', 'pure-ftpd'), ('auth', 'dovecot'), ('cockpit-session', 'cockpit')])
@pytest.mark.parametrize('most', [255, 1023])
def test_a_name_that_moves_rhost_behind_the_cut_is_no_evidence(program, service, most):
    """busybox cuts a datagram at 255 bytes, logd and musl at 1023: of two ` rhost=` the true one is lost."""
    made = banwatch.load_filter('pam-generic')
    line = ('<85>Nov 20 13:00:00 %s[12345]: pam_unix(%s:auth): authentication failure; logname= uid=0 euid=0 tty=%s ruser=%s rhost=%s  user=%s')
    for before in range(0, most - 120, 3):
        for padding in 'B', ' ', '\\':
            name = 'A' * before + ' rhost=%s  user=' % VICTIM + padding * most
            cut = (line % (program, service, service, name, CLIENT, name))[:most].encode()
            for text in cut, b'Nov 20 13:00:00 router' + cut[19:]:
                assert not list(made.scan(banwatch.tidy(text + b'\n'), lambda date: 1000.0, True)), text
    whole = (line % (program, service, service, 'alice', CLIENT, 'alice')).encode()
    assert [seen.ip for seen in made.scan(banwatch.tidy(whole + b'\n'), lambda date: 1000.0, True)] == [CLIENT]


def test_a_rule_of_ones_own_names_its_prefix_for_kernel_scan():
    packet = 'IN=eth1 OUT= MAC= SRC=192.0.2.7 DST=203.0.113.5 LEN=40 PROTO=TCP SPT=40000 DPT=%d WINDOW=1024 RES=0x00 SYN URGP=0'
    block = lines('mine! ' + packet % 22, '[other] ' + packet % 23, 'DROP ' + packet % 24, tag='kernel')

    def counted(spec):
        made, problems = banwatch.read_config('[kernel-scan]\nfilter = %s\n' % spec, 'c')
        assert problems == []
        return sum(seen.guesses for name, seen in sightings(banwatch.Jails(made), block) if name == 'kernel-scan')
    assert counted('kernel-scan') == 1
    assert counted('kernel-scan[prefix="mine! "]') == 1
    assert counted(r'kernel-scan[prefix="mine! |\[other\] |DROP "]') == 3


@pytest.mark.parametrize('line, date', [
    ('[2024-06-04 20:37:41.887][vaultwarden::api::identity][ERROR] x', b'2024-06-04 20:37:41.887'),
    ('[2024-06-04 20:37:41.887+0200][error][ERROR] x', b'2024-06-04 20:37:41.887+0200'),
    ('{"reqId":"a\\"b","level":2,"time":"2026-11-20T13:08:23+00:00","remoteAddr":"192.0.2.61"}', b'2026-11-20T13:08:23+00:00'),
    ('{"log":"x\\n","stream":"stdout","time":"2020-07-07T14:15:02.590956303Z"}', b'2020-07-07T14:15:02.590956303Z'),
    ('{"reqId":"\\",\\"time\\":\\"1999-11-20T13:08:23Z\\"","level":2}', None), ('{"time":"soon"}', None), ('{"time":{"time":"x', None)])
def test_the_date_of_a_daemons_own_line_is_found_in_brackets_and_in_json(line, date):
    seen = banwatch.read_line(line.encode())
    assert (seen.date, seen.program) == (date, None) and seen.message.startswith(b'{' if line[0] == '{' else b'[')


def test_routeros_is_heard_from_a_source_of_its_own_only():
    made, _ = banwatch.read_config('[mikrotik]\nsource = udp:5514\n', 'c')
    jails = banwatch.Jails(made)
    block = b'system,error,critical login failure for user admin from 192.0.2.33 via ssh\n'
    assert [(jail.name, seen.ip) for jail, seen in jails.scan('udp:5514', block, lambda date: 0)] == [('mikrotik', '192.0.2.33')]
    assert not list(jails.scan(made['source'][0], block, lambda date: 0))


def cut_by_log_daemons(message, tag, forged):
    """What is left of a line, as files and logread show it, where log daemons cut what a client sends them to /dev/log just
    behind a text of the client's; nothing if it ends elsewhere."""
    for size in 255, 1023:
        for priority in '<27>', '<134>':
            left = ('%sNov 20 13:00:00 %s: %s' % (priority, tag, message))[:size]
            if left.endswith(forged):
                left = left[len(priority):]
                yield left
                yield 'Nov 20 13:00:00 router ' + left[16:]
                yield 'Fri Nov 20 13:00:00 2026 daemon.err ' + left[16:]
                yield '2026-11-20T13:00:00.123+01:00 router ' + left[16:]
                yield priority + left


# the messages of daemons, in which %s is the client's text, and what a byte of it becomes in them
LONG_TEXTS = [
    ('sshd', 'Failed password for invalid user %s from 192.0.2.7 port 5 ssh2', '\\303\\200 \\\\ \\b'),
    ('sshd-session', 'Failed keyboard-interactive/pam for invalid user %s from 192.0.2.7 port 5 ssh2', '\\303\\200 \\\\ \\b'),
    ('sshd', 'Invalid user %s from 192.0.2.7 port 5', '\\303\\200 \\\\ \\b'),
    ('luci', 'failed login on /%s for root from 192.0.2.7', 'x'), ('luci', 'failed login on / for %s from 192.0.2.7', 'x'),
    ('lighttpd', "(mod_auth.c.850) password doesn't match for /%s username: root IP: 192.0.2.7", 'x'),
    ('asterisk', "NOTICE[1]: chan_sip.c:2 in f: Registration from '%s' failed for '192.0.2.7:5' - Wrong password", 'x'),
    ('ftpd', 'pam_unix(ftp:auth): authentication failure; logname= uid=0 euid=0 tty=ftp ruser=%s rhost=192.0.2.7', 'x')]
FORGED = {'sshd': ' from 198.51.100.99 port 22', 'luci': ' for root from 198.51.100.99', 'lighttpd': ' username: a IP: 198.51.100.99',
          'asterisk': "' failed for '198.51.100.99:5060' - Wrong password", 'ftpd': ' rhost=198.51.100.99'}


@pytest.mark.parametrize('program, message, escapes', LONG_TEXTS)
def test_a_line_that_a_log_daemon_may_have_cut_bans_nobody(program, message, escapes):
    """Busybox cuts at 255 bytes, musl and logd at 1023; sshd writes four characters for a byte that is not ASCII, two for a backslash."""
    made, _ = banwatch.read_config('[lighttpd-auth]\n[asterisk]\n[pam-generic]\n', 'c')
    forged, found = FORGED[program.partition('-')[0]], 0
    for pid in '1', '12345':
        tag = '%s[%s]' % (program, pid)
        for unit in escapes.split():
            for more in range(400):
                text = 'y' * (more % len(unit)) + unit * (more // len(unit)) + unit * (more % 7 == 0) * 200
                for line in cut_by_log_daemons(message % (text + forged + 'zz'), tag, forged):
                    jails = banwatch.Jails(made)
                    assert not sightings(jails, line.encode() + b'\n'), line
                    found += 1
    assert found


def test_what_cannot_have_been_cut_counts_however_long_it_is():
    """Else a client would hide his guesses behind the length of a path."""
    made, _ = banwatch.read_config('[lighttpd-auth]\n', 'c')
    for program, message, _ in LONG_TEXTS[3:6:2]:
        head, counted = 'Fri Nov 20 13:00:00 2026 daemon.err %s[1]: ' % program, 0
        for size in range(10, 970):
            line = (head + message % ('x' * size)).encode()
            seen = [event.ip for _, event in sightings(banwatch.Jails(made), line + b'\n')]
            assert seen == ([] if banwatch.may_be_cut(line) else ['192.0.2.7'])
            counted += bool(seen)
        assert counted > 930


def test_a_daemons_own_file_is_never_cut():
    made, _ = banwatch.read_config('[lighttpd-auth]\nsource = /var/log/lighttpd/error.log\n', 'c')
    for size in range(10, 1100):
        line = "2026-11-20 14:02:19: (mod_auth.c.850) password doesn't match for /%s username: root IP: 192.0.2.7\n" % ('x' * size)
        jails = banwatch.Jails(made)
        assert [event.ip for _, event in jails.scan('/var/log/lighttpd/error.log', line.encode(), lambda date: 0)] == ['192.0.2.7']


def test_a_refusal_whose_address_is_cut_off_is_told():
    jails = banwatch.Jails(banwatch.Config())
    for size in 1002, 1003:
        line = 'Fri Nov 20 13:00:00 2026 daemon.err ' + ('uhttpd[904]: luci: failed login on /' + 'x' * 1200)[:size]
        assert not sightings(jails, line.encode() + b'\n')
    assert not sightings(jails, b'Fri Nov 20 13:00:00 2026 daemon.err uhttpd[904]: luci: failed login on /x for root\n')
    assert jails.by_name['luci'].filter.cut == 2
    found, failures = jails.by_name['luci'].filter.examine(banwatch.tidy(line.encode() + b'\n'), 0)
    assert (found.verdict, failures) == (None, 0) and found.why == 'a log daemon may have cut it'


def test_filters_of_fail2bans_manner_are_as_careful():
    made, _ = banwatch.read_config('[x]\nfailregex = ^.* \\S+\\[\\d+\\]: no .* from <HOST>$\n', 'c')
    jails, seen = banwatch.Jails(made), []
    for size in range(150, 300):
        line = 'Nov 20 13:00:00 router d[1]: no %s from 192.0.2.7\n' % ('x' * size)
        cut = banwatch.may_be_cut(line[:-1].encode())
        seen.append(cut)
        assert len([1 for jail, _ in sightings(jails, line.encode()) if jail == 'x']) == (not cut)
    assert jails.by_name['x'].filter.cut == sum(seen) > 3


def test_two_methods_on_one_connection_add_up():
    pam = 'error: PAM: Authentication failure for root from 192.0.2.7'
    interactive = 'Failed keyboard-interactive/pam for root from 192.0.2.7 port 5 ssh2'
    assert total(lines(pam, interactive, pam, interactive, *[FAILED] * 4)) == 6


def test_a_child_is_adopted_once_and_by_its_own_address_only():
    pam = 'error: PAM: Authentication failure for root from 192.0.2.7'
    block = b''.join(lines(PAM, tag='sshd[%d]' % (100 + n)) + lines(pam, tag='sshd[1]') for n in range(5))
    assert total(block) == 5
    assert total(lines(PAM.replace('.7 ', '.8 '), tag='sshd[100]') + lines(pam, tag='sshd[1]')) == 2


def test_children_that_nobody_adopts_do_not_pile_up():
    jails = banwatch.Jails(banwatch.Config())
    for n in range(2000):
        sightings(jails, lines(PAM, tag='sshd[%d]' % n))
    assert len(jails.by_name['sshd'].filter.children['192.0.2.7']) == banwatch.CHILDREN


def test_rfc_5424_without_a_pid_joins_no_connections():
    head = '<84>1 2026-11-20T13:03:54Z h dropbear - - - '
    block = (head + 'Child connection from 192.0.2.9:5\n' + head + 'Login attempt for nonexistent user\n').encode()
    assert total(block) == 0


@pytest.mark.slow
@pytest.mark.parametrize('made', native(), ids=lambda made: made.definition.name)
def test_no_built_in_filter_is_slow_on_a_line_made_against_it(made):
    """Repeated pieces of the messages, up to the longest line there is: far below what a turn may take."""
    import time
    heads = {head.decode('utf-8', 'replace') for _, text in made.texts
             for head in banwatch.best_literals(banwatch.compile_line(text)) or [b'']}
    tag = {raw.partition(b': ')[0] + b': ' for raw in corpus_lines() if matched(made, raw)}
    tag = min(tag, key=len).decode('utf-8', 'replace') if tag else ''
    for piece in (' from ', ' for ', ' for  from ', "' with ", "' from ", ' port 1', ' for x from 1.2.3.4', '1.', 'a:', '\\303', ' ', '"', '[1]'):
        for head in [''] + sorted(heads):
            line = banwatch.tidy(((tag + head + piece * 8192)[:8192] + '\n').encode())
            best = 9
            for _ in range(3):
                began = time.perf_counter()
                for _ in made.scan(line, lambda date: 0.0):
                    pass
                best = min(best, time.perf_counter() - began)
            assert best < 0.05, (piece, head, best)


def test_a_child_that_asked_for_another_users_password_is_not_adopted():
    pam = PAM.strip() + '  user=alice'
    block = (lines(pam, tag='sshd[1002]') + lines('Invalid user nobody from 192.0.2.7 port 5', tag='sshd[1005]')
             + lines(PAM, tag='sshd[1005]')
             + lines('Failed password for alice from 192.0.2.7 port 5 ssh2', tag='sshd[1002]'))
    assert total(block) == 2


@pytest.mark.parametrize('said', [b'Password mismatch', b'unknown user'])
def test_guesses_at_another_account_are_not_forgotten_by_a_login_of_ones_own(said):
    guess = b'Nov 18 11:20:0%d h dovecot: auth: passwd-file(%s,192.0.2.9,<abc>): ' + said + b'\n'
    login = b'Nov 18 11:20:09 h dovecot: imap-login: Login: user=<bob>, method=PLAIN, rip=192.0.2.9, lip=192.0.2.1, session=<abc>\n'
    for users, counted in ((b'root',) * 3, 3), ((b'root', b'root', b'bob'), 2), ((b'bob',), 0):
        made = banwatch.load_filter('dovecot')
        block = b''.join(guess % (n, user) for n, user in enumerate(users)) + login
        seen = list(made.scan(banwatch.tidy(block), lambda date: 0.0))
        assert sum(-s.guesses if s.login else s.guesses for s in seen) == counted and [s.user for s in seen if s.login] == ['bob']


def test_a_login_forgives_one_guess_not_what_has_piled_up():
    jails = banwatch.Jails(banwatch.Config())
    jail, judge = jails.by_name['sshd'], banwatch.Judge(jails, 9, 9, lambda: 0)
    jail.protect([], {})
    for seen in (banwatch.LogEvent('192.0.2.9', 'bob', 0, True, 0.0), banwatch.LogEvent('192.0.2.9', 'bob', 1, False, 1.0),
                 banwatch.LogEvent('192.0.2.9', 'bob', 8, False, 2.0)):
        offence = judge.weigh(jail, seen)
    assert jail.ignored == 1 and offence


def test_a_slow_drip_of_one_kind_hides_no_burst_of_another():
    """One guess each 160 s is no ban; but it must not be credit for later."""
    made, found = banwatch.load_filter('postfix'), 0
    drip = b'Nov 18 11:20:01 h postfix/smtpd[9]: too many errors after AUTH from unknown[192.0.2.9]\n'
    burst = b'Nov 18 11:20:01 h postfix/smtpd[9]: warning: unknown[192.0.2.9]: SASL LOGIN authentication failed: UGFzc3dvcmQ6\n'
    for n in range(60):
        list(made.scan(banwatch.tidy(drip), lambda date: n * 160.0))
    for n in range(60):
        found += sum(seen.guesses for seen in made.scan(banwatch.tidy(burst), lambda date: 60 * 160.0 + n))
    assert found > 50


def test_a_long_line_that_is_told_again_and_again_fills_no_memory():
    block = b'A' * 8100 + b'\n' + b'last message repeated 3 times\n' * 8400
    assert len(banwatch.tidy(block)) < 3 * len(block)


# --- whole logs: what the report of each case in cases/ says

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'cases')
START = 1795132800                                 # Fri 20 Nov 2026 00:00, UTC


def read_case(path):
    """Section -> its lines."""
    found, section = {}, None
    with open(path, encoding='utf-8', newline='\n') as f:
        for line in f.read().split('\n'):
            head = re.fullmatch(r'==> (\w+)', line)
            if head:
                section = found.setdefault(head.group(1), [])
            elif section is not None:
                section.append(line)
    return found


def repetitions(line):
    """The lines that one stands for: `* 3 ...{n}` for three, with 1 to 3, `* 10-12 ...{n}` with 10 to 12."""
    m = re.match(r'\* (?:(\d+)-)?(\d+) (.*)', line)
    return [line] if m is None else [m.group(3).replace('{n}', str(n)) for n in range(int(m.group(1) or 1), int(m.group(2)) + 1)]


class TimedHouse(House):
    """A House that reads what is written, at the moment that the line tells."""

    def __init__(self, folder, conf, first):
        machine = FakeMachine()
        machine.now, machine.time = 100000.0, first // 86400 * 86400
        super().__init__(folder, conf, machine=machine)

    def conf(self):
        """Without defaults of its own."""
        self.defaults = {}
        return super().conf()

    def start(self):
        self.machine.nets = [banwatch.make_exempt('192.168.1.0/24', 'the LAN, br-lan')]
        self.machine.memory = lambda: (0, 1 << 20)
        super().start()

    def pass_time(self, seconds):
        while seconds > 0:                         # what is due each minute need not come more than once an hour
            self.machine.pass_time(min(seconds, 3600))
            turn(self.daemon)
            seconds -= 3600

    def read(self, line):
        raw = line.encode('utf-8', 'surrogateescape')
        when = moment(raw, self.machine.time)
        if when is not None:
            self.pass_time(when - self.machine.time)
        with open(self.fifo, 'wb') as f:
            f.write(raw + b'\n')
        turn(self.daemon)

    def do(self, word, *words):
        """A line of a case that begins with @."""
        if word == 'wait':
            self.pass_time(banwatch.duration(words[0]))
        elif word == 'send':
            assert self.ask('report', send=True)['sent']
        else:
            {'restart': lambda: (self.stop(), self.restart())}[word]()


def moment(raw, now):
    """When a line was written, None if it does not say."""
    date = banwatch.read_line(raw).date
    return date and banwatch.date_time(date, int(now) // 86400)


def raw_text(text):
    """\\xff and the like stand for bytes, \\\\ for a backslash."""
    return re.sub(r'\\(?:x([0-9a-f]{2})|\\)', lambda m: '\\' if m.group(1) is None else bytes([int(m.group(1), 16)]).decode(
        'utf-8', 'surrogateescape'), text)


def told(path, folder):
    """(summary as text without HEALTH, all of it in each form) of a case."""
    case = read_case(path)
    lines = [line for line in case['log'] if line]
    dates = [moment(raw_text(line).encode('utf-8', 'surrogateescape'), START) for line in lines if line[0] not in '@*']
    router = TimedHouse(folder, '\n'.join(case.get('conf', [])) + '\n', min([when for when in dates if when is not None] or [START]))
    for line in lines:
        if line.startswith('@ '):
            router.do(*line[2:].split())
        else:
            for text in repetitions(line):
                router.read(raw_text(text))
    summary = router.ask('report')['summary']
    mail = banwatch.report_mail(summary, router.daemon.config.options('report'), router.machine.time, 0.5)
    router.stop()
    text = banwatch.report_text(summary)
    assert not [line for line in router.machine.logged if 'Traceback' in line]
    return text.partition('\nHEALTH\n')[0].rstrip('\n').split('\n'), (text, banwatch.report_page(summary), mail, str(summary))


def expected(lines):
    """The regex of a report; a line `...` stands for any number of lines."""
    lines = [line.rstrip() for line in '\n'.join(lines).strip('\n').split('\n')]
    return '\n'.join([r'(?:.*\n)*?.*' if line == '...' else re.escape(line) for line in lines])


@pytest.mark.parametrize('path', sorted(glob.glob(os.path.join(FOLDER, '*.case'))), ids=lambda path: os.path.basename(path)[:-5])
def test_the_report_of_a_log_is_the_one_its_case_shows(path, tmp_path, monkeypatch):
    with zone(monkeypatch, 'UTC'):
        shown, forms = told(path, tmp_path)
    case = read_case(path)
    assert re.fullmatch(expected(case['report']), '\n'.join(shown)), '\n'.join(['', 'it says:'] + shown)
    for text in filter(None, case.get('never', [])):
        assert not any(raw_text(text) in form for form in forms), text


def test_there_are_cases():
    assert len(glob.glob(os.path.join(FOLDER, '*.case'))) >= 8


# --- what PAM refuses before another of its modules lets in

KRB5 = 'pam_krb5(sshd:auth): authentication failure; logname=AD\\user1 uid=0 euid=0 tty=ssh ruser= rhost=192.0.2.7'
UNIX = 'pam_unix(sshd:auth): authentication failure; logname= uid=0 euid=0 tty=ssh ruser= rhost=192.0.2.7  user=AD\\user1'
WRONG = 'Failed password for AD\\\\user1 from 192.0.2.7 port 5 ssh2'
RIGHT = 'Accepted password for AD\\\\user1 from 192.0.2.7 port 5 ssh2'


def said(block):
    return list(sightings(banwatch.Jails(banwatch.Config()), block))


def net_guesses(*messages, tag='sshd[7]'):
    block = b''.join(lines(message, tag=tag) for message in messages)
    return sum(-seen.guesses if seen.login else seen.guesses for _, seen in said(block))


@pytest.mark.parametrize('messages, guesses', [
    ([KRB5, UNIX, RIGHT], 0), ([KRB5, UNIX, WRONG, KRB5, UNIX, RIGHT], 1), ([KRB5, UNIX, WRONG, RIGHT], 1),
    ([UNIX.replace('user1', 'eve'), RIGHT], 1), ([KRB5, UNIX, WRONG], 1)])
def test_a_login_takes_back_what_only_pam_has_refused(messages, guesses):
    assert net_guesses(*messages) == guesses


def test_a_refusal_by_a_child_of_pams_is_taken_back_too():
    block = lines(UNIX, tag='sshd[8]') + lines(RIGHT, tag='sshd[7]')
    assert [(seen.guesses, seen.login) for _, seen in said(block)] == [(1, False), (1, True)]


def test_names_are_the_same_with_and_without_sshds_escapes():
    (_, seen), = said(lines('Failed password for b\\303\\274rger from 192.0.2.7 port 5 ssh2'))
    assert seen.user == 'b\u00fcrger'


# --- heads

@pytest.mark.parametrize('head', [
    'Sep 11 13:56:05 2001:db8:115e:c0b::a:1 ', '2024-10-15T06:48:02+00:00 2001:db8:4::7 ', 'Sep 11 13:56:05 h '])
def test_the_host_of_a_line_may_be_an_ipv6_address(head):
    line = (head + 'sshd[1]: Failed password for root from 192.0.2.7 port 5 ssh2\n').encode()
    assert [seen.ip for _, seen in said(line)] == ['192.0.2.7']


def test_a_date_that_the_daemon_itself_writes_stands_in_for_one_that_cannot_be_read():
    made, whens = banwatch.load_filter('sshd'), []
    for head in ('Dez 09 21:35:20', 'Dec 09 21:35:20'):
        line = '%s h sshd[1]: 2023-12-09 21:35:28 Failed password for root from 192.0.2.7 port 5 ssh2\n' % head
        for seen in made.scan(banwatch.tidy(line.encode()), lambda when: when, False, 1702200000):
            whens.append(time.strftime('%m-%d %H:%M:%S', time.localtime(seen.when)))
    assert whens == ['12-09 21:35:28', '12-09 21:35:20']


# --- containers

DOCKER = '{"log":"%s\\n","stream":"stdout"%s,"time":"2026-11-20T11:27:0%d.590956303Z"}\n'
CONTAINED = [
    ('vaultwarden', '[2024-06-04 20:37:41.887][vaultwarden::api::identity][ERROR] Username or password is incorrect. Try again. IP: 192.0.2.7. Username: a.'),
    ('nginx-http-auth', '2023/12/09 21:35:26 [error] 9#9: *3 user \\"a\\": password mismatch, client: 192.0.2.7, server: x, request: \\"GET / HTTP/2.0\\"'),
    ('sshd', 'Failed password for root from 192.0.2.7 port 5 ssh2'), ('sshd', 'Failed password for r\\u00f6\\u000a\\t\\/ from 192.0.2.7 port 5 ssh2')]


@pytest.mark.parametrize('attributes', ['', ',"attrs":{"tag":"x"}'])
@pytest.mark.parametrize('name, line', CONTAINED)
def test_what_docker_keeps_of_a_container_is_read_in_a_jails_own_log(name, line, attributes):
    path = '/var/lib/docker/containers/1/1-json.log'
    program = 'sshd' if name == 'sshd' else ''
    made, _ = banwatch.read_config('[%s]\nsource = %s\n' % (name, path), 'c')
    jails, seen, explained = banwatch.Jails(made), [], []
    block = jails.tidied(path, ''.join(DOCKER % ((program and program + '[1]: ') + line, attributes, n) for n in range(5)).encode() + b'other\n')
    for jail, event in jails.scan_tidy(path, block, banwatch.own_time, 0, explained):
        seen.append((jail.name, event.ip, event.when))
    assert {row[:2] for row in seen} == {(name, '192.0.2.7')} and len(seen) == 5
    assert len({block.count(b'\n', 0, at + 1) for at in explained}) == 5
    assert banwatch.without(block, explained) in (b'\nother\n',)
    assert seen[0][2] in (1795174020.590956303, 1795174020.590956303 // 1 + 0.590956303, 1717533461.887)
    found, failures = jails.by_name[name].filter.examine(banwatch.tidy((DOCKER % ((program and 'sshd[7]: ') + line, attributes, 1)).encode()), 0)
    assert failures == 1


def test_but_not_where_lines_need_a_tag_nor_for_regexes_of_ones_own():
    path = '/var/log/x'
    made, _ = banwatch.read_config('[sshd]\n[x]\nsource = %s\nfailregex = ^\\{"log":".* from <HOST> port\n' % path, 'c')
    jails = banwatch.Jails(made)
    line = (DOCKER % (CONTAINED[2][1], '', 1)).encode()
    assert [jail.name for jail, _ in jails.scan(path, line, banwatch.own_time)] == ['x']
    assert not list(jails.scan('auto', line, banwatch.own_time))


# --- repetitions as syslog-ng tells them

HEAD_NG = '2026-01-12T10:14:51+02:00 ds sshd[100]: '


@pytest.mark.parametrize('said, guesses', [
    ("Last message 'Failed password for ' repeated 4 times, suppressed by syslog-ng on ds", 5),
    ("Last message 'Accepted password f' repeated 4 times, suppressed by syslog-ng on ds", 1),
    ("x Last message 'Failed password for ' repeated 4 times, suppressed by syslog-ng on ds", 1),
    ("Last message 'Failed password for ' repeated 4 times", 1)])
def test_what_syslog_ng_suppresses_counts(said, guesses):
    block = HEAD_NG + 'Failed password for root from 192.0.2.7 port 5 ssh2\n' + HEAD_NG.replace('100', '9') + said + '\n'
    assert sum(event.guesses for _, event in sightings(banwatch.Jails(banwatch.Config()), block.encode())) == guesses


# --- a first question without a password

def test_a_client_that_asks_what_it_may_do_and_then_logs_in_has_not_failed():
    """LogLevel VERBOSE: each login of OpenSSH's client begins with `none`."""
    jails, left = banwatch.Jails(banwatch.Config()), 0
    for pid in range(100, 106):
        for text in 'Failed none for u%d from 198.51.100.2 port 5 ssh2' % pid, 'Accepted password for u%d from 198.51.100.2 port 5 ssh2' % pid:
            for _, event in sightings(jails, ('Nov 20 12:27:00 h sshd[%d]: %s\n' % (pid, text)).encode()):
                left += -event.guesses if event.login else event.guesses
    assert left == 0
    assert total(lines('Failed none for root from 192.0.2.7 port 5 ssh2', 'Failed password for root from 192.0.2.7 port 5 ssh2')) == 1


# --- dates in other words

@pytest.mark.parametrize('date, month', [('nov.', 11), ('déc.', 12), ('août', 8), ('juin', 6), ('juil.', 7), ('févr.', 2), ('ene', 1), ('Mär', 3),
                                         ('Okt', 10), ('lis', 11), ('янв', 1), ('11月', 11), ('mei', 5), ('janv.', 1), ('sept.', 9)])
def test_months_of_other_languages_have_their_time(date, month):
    (event,) = [event for _, event in banwatch.Jails(banwatch.Config()).scan(
        None, ('%s 20 12:27:01 host sshd[1]: Failed password for root from 192.0.2.7 port 5 ssh2\n' % date).encode(),
        banwatch.own_time, 1800000000)]
    assert time.localtime(event.when)[1:6] == (month, 20, 12, 27, 1)


@pytest.mark.parametrize('date, when', [
    ('Fri 2026-11-20 12:27:00 CET', 1795174020), ('Fri 2026-11-20 12:27:00 UTC', 1795177620), ('Fri 2026-11-20 12:27:00 -03', 1795188420),
    ('[ 2123.500000]', 2123.5), ('[ 2123.500000 <    3.000000 >]', 2123.5)])
def test_other_forms_of_journalctl_have_their_time(date, when):
    (event,) = [event for _, event in banwatch.Jails(banwatch.Config()).scan(
        None, ('%s host sshd[1]: Failed password for root from 192.0.2.7 port 5 ssh2\n' % date).encode(), banwatch.own_time, 1800000000)]
    assert event.when == when
