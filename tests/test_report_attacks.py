"""The summary under attack: who writes log lines must neither blind it, nor slow it down, nor fill it, nor learn from it."""
import json
import os
import time

import pytest

import banwatch
from harness import FakeMachine, House, config, facts_of, poll

HEAD = b'Fri Jan 15 08:00:00 2027 auth.info '
# passwords that somebody has typed as a name: with digits at its beginning, in it, at its end, and none
SECRETS = '7zqSecret', 'zq9xSecret', 'Secret12', 'zqsecretzq'


def digest(text=''):
    made, problems = banwatch.make_digest(config(text))
    assert not problems
    return made


def read(lines, reader=None, tally=None):
    """The Tally of these lines, each a program with its message, as one block."""
    tally = tally or banwatch.Tally(0)
    list((reader or digest()).read(banwatch.tidy(b''.join(HEAD + line + b'\n' for line in lines)), [], tally, 5.0))
    return tally


def cost(work):
    """Seconds of processor time."""
    before = time.process_time()
    work()
    return time.process_time() - before


def nth(n):
    """A word of letters only, another one for each number."""
    return bytes(97 + n // 26 ** i % 26 for i in range(5))


def summary(report, **facts):
    machine = FakeMachine()
    return banwatch.summarise(report, facts_of(machine, banwatch.Bans(5), running=True, **facts))


# --- to blind it

def test_lines_of_rfc_5424_keep_no_jail_from_its_lines(tmp_path):
    house = House(tmp_path)
    house.write("<38>1 2026-11-20T12:00:00Z r dropbear 5 - - Bad password attempt for 'x' from 192.0.2.7:5\n" + ''.join(
        'Thu Mar  7 12:34:56 2024 auth.info sshd[%d]: Failed password for root from 192.0.2.8 port 5 ssh2\n' % n for n in range(3)))
    assert house.banned() == ['192.0.2.8'] and not house.machine.said('bug')
    assert not house.daemon.wing('report').tally['other']


@pytest.mark.parametrize('message', ['\xa0', '\x1c\x1d', '\u2028', '\x85', ' ' * 400 + 'x', '[    1.5] \u3000'], ids=ascii)
def test_a_line_of_odd_spaces_hides_none_of_its_neighbours(message):
    assert 'something odd' in [key[1] for key in read([b'p: ' + message.encode(), b'q: something odd'])['other']]


def test_what_has_happened_without_a_line_of_the_log_survives_a_crash(tmp_path):
    house = House(tmp_path)
    house.daemon.wing('report').incident('nft', 'repaired')
    house.pass_time(banwatch.MINUTE)
    house.crash()
    house.restart()
    assert ('nft', 'repaired') in house.daemon.wing('report').tally['incidents']


def test_a_flood_of_ever_new_lines_does_not_hide_what_the_kernel_says():
    reader = digest()
    flood = [b'p: ' + b' '.join(nth(1000 * n + i) for i in range(6)) for n in range(3000)]
    tally = read(flood + [b'kernel: Kernel panic - not syncing'], reader)
    assert [key[1] for key in tally['rules']] == ['kernel-crash']
    assert sum(cell[0] for cell in tally['other'].values()) + tally['counts'].get(('other',), [0])[0] > 2000


def test_forged_logins_that_push_out_the_real_one_are_told_as_a_number():
    report = banwatch.Report(0)
    for n in range(300):
        report.tally.login('luci', '198.51.100.%d' % (n % 250), '198.51.100.%d' % (n % 250), 'u%d' % n, 5, '')
    assert any(row['text'].startswith('logins: ') for row in summary(report)['warnings'])


def test_no_kind_of_warning_hides_the_others():
    report = banwatch.Report(0)
    for n in range(100):
        report.tally.ignored('sshd', '192.168.1.%d' % n, 'root', 9, 5, 'the LAN')
    report.tally.note('rules', ('warning', 'kernel-crash', 'faults of the kernel'), 1, 5, 5, [])
    report.tally.note('incidents', ('nft', 'repaired'), 1, 5, 5)
    shown = banwatch.report_text(summary(report))
    assert 'faults of the kernel' in shown and 'nft: repaired' in shown and '192.168.1.0 failed' in shown


# --- to slow it down

def test_a_long_run_behind_proto_is_not_gone_through_again_and_again():
    packet = b'kernel: [ 1.0] DROP wan in: IN=eth0 OUT= SRC=192.0.2.1 DST=192.0.2.2 LEN=40 PROTO=TCP SPT=1 DPT=23 WINDOW=1'
    lines = [packet] + [b'p: PROTO=' + b'a' * 8000, b'p: ' + b'PROTO=' * 1300] * 4
    tallies = []
    assert cost(lambda: tallies.append(read(lines))) < 0.5             # it was 3 s
    assert tallies[0]['ports'] == {('23/tcp',): [1]}


def test_a_block_of_lines_that_are_all_different_costs_no_more_per_line_than_a_short_one():
    lines = [b'p: ' + nth(n) for n in range(20000)]
    assert cost(lambda: read(lines)) < 0.6                             # it was 3 s


def test_ten_thousand_lines_of_rfc_5424_are_explained_in_one_go():
    jails, found = banwatch.Jails(config()), []
    block = jails.tidied(None, b''.join(b'<38>1 2026-11-20T12:00:00Z r sshd %d - - Failed password for root from 192.0.2.%d port 5 ssh2\n' % (
        n, n % 200) for n in range(10000)))
    assert cost(lambda: list(jails.scan_tidy(None, block, lambda date: 5.0, 0, found))) < 1
    assert banwatch.without(block, found).strip() == b''


# --- to fill it

@pytest.mark.parametrize('letter', ['x', '\xe9', '\U00010400', '\x01'], ids=ascii)
def test_what_an_attacker_has_filled_leaves_room_for_the_bans_on_flash(letter):
    report, bans, reader = banwatch.Report(0), banwatch.Bans(1000), digest('[rule r]\nprogram = mine\ndetails = all\n')
    wild = letter.encode() * 200
    lines = [b'mine: ' + nth(n) + wild for n in range(220)] + [b'p' + letter.encode() * 30 + b': ' + nth(n) + wild for n in range(220)]
    for _ in range(2):
        read(lines, reader, report.tally)
    for n in range(500):
        report.logins_reported[letter * 40, '192.0.2.%d' % n] = 1
    for n in range(250):
        bans.add('sshd', '203.0.113.%d' % n, 0, 600, 5)
    kept, left = banwatch.dump_kept(bans, [report], {}, ('boot', 10, banwatch.SANE))
    assert len(kept) <= banwatch.KEPT_BYTES and len(json.loads(kept)['bans']) == 250 and not left
    assert len(banwatch.dump(bans, banwatch.Fails(5), {}, {}, [report], {}, ('boot', 10, banwatch.SANE))) < 8 << 20


# --- to learn from it

@pytest.mark.parametrize('message', [
    'su: FAILED SU (to %s) alice on pts/1', 'sudo: %s : user NOT in sudoers ; TTY=pts/0 ; PWD=/ ; USER=root ; COMMAND=/bin/sh',
    'pppd[1]: CHAP authentication failed: %s', 'charon: 05[IKE] EAP method EAP_MSCHAPV2 failed for peer %s',
    "charon: 05[IKE] no EAP key found for hosts '192.0.2.1' - '%s'", "cockpit-ws[1]: couldn't open session: %s: authentication failed",
    'sshd[1]: AuthorizedKeysCommand /bin/x %s failed, status 1', 'in.tftpd[1]: RRQ from 192.0.2.1 filename %s',
    'nextcloud: Login failed: %s (Remote IP: 192.0.2.1)', "dropbear[1]: User account '%s' is locked",
    'dovecot[1]: auth(%s,192.0.2.7,sasl:plain)<ABC3>: Info: passwd-file: Password mismatch',
    'dovecot: auth: Debug: sql(bob,192.0.2.1): Password mismatch (given password: %s)',
    'sshd[1]: error: Could not get shadow information for %s', 'login[1]: failed login for %s', 'su: FAILED SU (to root) %s on pts/0',
    'pppd[1]: Peer %s failed CHAP authentication', 'mosquitto: Client %s disconnected, not authorised.',
    'postfix/smtpd[1]: warning: unknown[192.0.2.1]: SASL LOGIN authentication failed: x, sasl_username=%s',
    'exim[1]: plain authenticator failed for (pc) [192.0.2.1]: 535 Incorrect authentication data (set_id=%s)',
    'lighttpd[1]: (mod_auth.c.1534) digest: auth failed for %s: wrong password, IP: 192.0.2.1',
    'proftpd[1]: ftp.example (192.0.2.1[192.0.2.1]) - SECURITY VIOLATION: %s login attempted.',
    "pure-ftpd: (?@192.0.2.1) [WARNING] Can't login as [%s]: account disabled", 'transmission: Unauthorized %s',
    'vsftpd[1]: Sat Nov 21 13:58:32 2026 [pid 12] [%s] FAIL LOGIN: Client "192.0.2.1"',
    'asterisk[1]: Registration from \'"%s" <sip:%s@192.0.2.1>\' failed for \'192.0.2.1\' - Wrong password',
    'telnetd[4]: login failed for user %s from 192.0.2.7', 'cron: (CRON) bad username %s', 'rpcd: login failed for user %s',
    'smbd[3]: check_ntlm_password:  Authentication for user [%s] -> [%s] FAILED with error NT_STATUS_NO_SUCH_USER',
    'pppd[4]: PAP peer authentication failed for %s', 'xl2tpd: auth failed for user %s', 'gdm: AccountsService: user %s does not exist',
    'sshd[5]: userauth_pubkey: unsupported public key algorithm for %s', 'unix_chkpwd[9]: password check failed for user (%s)',
    'sshd[5]: pam_sss(sshd:auth): received for user %s: 10 (User not known to the underlying authentication module)',
    'sshd[5]: pam_listfile(sshd:auth): Refused user %s for service sshd', 'gitea: Failed authentication attempt for %s from 192.0.2.7:5',
    'sshd[5]: pam_faillock(sshd:auth): Consecutive login failures for user %s account temporarily locked'])
@pytest.mark.parametrize('secret', SECRETS)
def test_a_password_that_was_typed_as_a_name_is_in_no_template_and_no_example(message, secret):
    tally = read([message.replace('%s', secret).encode()])
    assert tally['other'] or tally['rules']
    shown = json.dumps(tally.dump(6)).lower()
    assert 'secret' not in shown and secret.strip('0123456789').lower() not in shown


# --- to make it lie

def test_what_a_killed_daemon_has_told_of_the_kernels_counters_is_not_told_again(tmp_path):
    daemon = House(tmp_path).daemon
    kernel = daemon.wall.sync(daemon.wall.syncs[0].firewall)
    for packets in 5, 7:                           # the first is what the killed one's rules have counted
        kernel.count({('sshd', 4): packets})
    assert daemon.wing('report').tally['drops'] == {('sshd',): [2]}


@pytest.mark.slow
def test_packets_are_told_once_though_the_daemon_was_killed(network, daemon):
    banwatch_ = daemon(firewall='iptables')
    assert banwatch_.command('ban', '203.0.113.66').returncode == 0
    for _ in range(3):
        with pytest.raises(OSError):
            network.attacker.connect('203.0.113.1', 9, seconds=0.1)

    def dropped():
        return [row['packets'] for row in banwatch_.ask('report')['summary']['dropped']]
    before = dropped()
    assert before[0] >= 3
    banwatch_.command('ban', '198.51.100.99')      # writes the state, if nothing else has
    banwatch_.kill()
    banwatch_.start()
    assert dropped() == before


@pytest.mark.slow
def test_a_hostile_log_fills_neither_the_memory_of_the_process_nor_its_files(network, daemon):
    with open(network.log, 'w'):
        pass
    banwatch_ = daemon('[rule a]\nprogram = app\nregex = ^user <F-USER>\\S+</F-USER> did\nkey = F-USER\nmaxretry = 3\n'
                       '[rule b]\nprogram = mine\ndetails = all\n', firewall='none')
    wild = '\U00010400'.encode()

    def flood(start, end):
        with open(network.log, 'ab') as f:
            for n in range(start, end):
                word = nth(n) + wild
                f.write(b''.join(HEAD + line + b'\n' for line in (
                    b'sshd[%d]: Failed password for invalid user %s from 10.%d.%d.%d port 5 ssh2' % (n % 30000, word, n >> 16, n >> 8 & 255, n & 255),
                    word + b': ' + b' '.join([word] * 6), b'app: user %s did' % (word * 20), b'mine: ' + word * 20)))
            f.write(HEAD + b"dropbear[1]: Bad password attempt for 'x' from 192.0.2.%d:5\n" % (end >> 13) + HEAD + b'long: ' + wild * 2000 + b'\n')
        assert poll(lambda: banwatch_.failures('dropbear') == (1 if start == 0 else 2), 100)
        with open('/proc/%d/status' % banwatch_.process.pid) as f:
            return [int(line.split()[1]) for line in f if line.startswith('VmRSS')][0]
    once = flood(0, 11000)                         # as much as there is room for, in the jails too
    assert flood(11000, 22000) - once < 4000
    assert banwatch_.command('report').returncode == 0
    banwatch_.stop()
    assert os.path.getsize(network.path('state')) <= banwatch.KEPT_BYTES
