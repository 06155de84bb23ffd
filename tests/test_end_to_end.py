"""The real thing: attackers with real ssh clients, real dropbear and sshd, a real syslog daemon, the real firewall."""
import ast
import contextlib
import os
import re
import socket
import sys

import pytest

from conftest import need
from harness import poll
from network import PASSWORDS

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROUTER = {4: '203.0.113.1', 6: '2001:db8:1::1'}
ATTACKER = {4: '198.51.100.7', 6: '2001:db8:bad::7'}
# Debian's own, but for the two seconds that pam_unix waits after a wrong password
PAM = """
auth [success=1 default=ignore] pam_unix.so nodelay
auth requisite pam_deny.so
auth required pam_permit.so
account required pam_unix.so
session required pam_permit.so
"""
SSHD = """
Port 22
HostKey {key}
PidFile none
UsePAM yes
PasswordAuthentication yes
KbdInteractiveAuthentication yes
PermitRootLogin yes
MaxAuthTries 20
"""
RSYSLOG = """
module(load="imuxsock")
$RepeatedMsgReduction {reduce}
$ActionFileDefaultTemplate RSYSLOG_TraditionalFileFormat
*.* {log}
"""


# --- servers on the router

def busybox_syslogd(network):
    need('busybox')
    network.router.popen(['busybox', 'syslogd', '-n', '-O', network.log])
    assert poll(lambda: network.router.run(['test', '-S', '/dev/log']).returncode == 0)


def rsyslogd(network, reduce='off'):
    need('rsyslogd')
    conf = network.write('rsyslog.conf', RSYSLOG.format(log=network.log, reduce=reduce))
    network.router.popen(['rsyslogd', '-n', '-i', 'NONE', '-f', conf])
    assert poll(lambda: network.router.run(['test', '-S', '/dev/log']).returncode == 0)


def dropbear(network):
    need('dropbear', 'dropbearkey')
    key = network.path('dropbear_key')
    network.router.output(['dropbearkey', '-t', 'ed25519', '-f', key])
    network.router.popen(['dropbear', '-F', '-r', key, '-p', '22'])
    wait_for_port(network)


def sshd(network):
    need('sshd', 'ssh-keygen')
    key = network.path('sshd_key')
    network.router.output(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', key])
    network.router.output(['mount', '--bind', network.write('pam', PAM), '/etc/pam.d/sshd'])
    # sshd runs itself again for each connection, so it wants its full path
    network.router.script('exec "$(command -v sshd)" -t -f %s' % network.write('sshd_config', SSHD.format(key=key)))
    network.router.popen(['sh', '-c', 'exec "$(command -v sshd)" -D -f %s' % network.path('sshd_config')])
    wait_for_port(network)


def wait_for_port(network):
    assert poll(lambda: network.router.reaches('127.0.0.1', 22))


# --- clients

def log_in(network, host, address, source, password='wrong', user='alice', times=1, method='password'):
    """Tries one password so many times on one connection from `host`; True if it was let in."""
    need('ssh')
    askpass = network.write('askpass', "#!/bin/sh\necho '%s'\n" % password, 0o700)
    done = host.run(['ssh', '-F', 'none', '-p', '22', '-b', source, '-o', 'UserKnownHostsFile=/dev/null',
                     '-o', 'StrictHostKeyChecking=no', '-o', 'ConnectTimeout=1', '-o', 'LogLevel=ERROR',
                     '-o', 'PreferredAuthentications=' + method, '-o', 'PubkeyAuthentication=no',
                     '-o', 'NumberOfPasswordPrompts=%d' % times, '%s@%s' % (user, address), 'echo I am in'],
                    env=dict(os.environ, SSH_ASKPASS=askpass, SSH_ASKPASS_REQUIRE='force', DISPLAY=':'))
    return 'I am in' in done.stdout


def guess(network, version=4, **more):
    return log_in(network, network.attacker, ROUTER[version], ATTACKER[version], **more)


def gets_through(network, version=4):
    return network.attacker.reaches(ROUTER[version], source=ATTACKER[version])


# --- from guesses to a ban, and back

@pytest.mark.slow
@pytest.mark.parametrize('server, version', [(dropbear, 6), (sshd, 4)])
def test_third_wrong_password_cuts_the_attacker_off_and_unban_lets_it_in_again(network, daemon, server, version):
    busybox_syslogd(network)
    server(network)
    banwatch = daemon(maxretry=3)
    for count in (1, 2):
        guess(network, version)
        banwatch.wait_failures(server.__name__, count)
        assert gets_through(network, version)
    guess(network, version)
    row = banwatch.wait_banned(ATTACKER[version])[0]
    assert (row['jail'], row['ip']) == (server.__name__, {4: '198.51.100.7', 6: '2001:db8:bad::/64'}[version])
    assert poll(lambda: not gets_through(network, version))
    unbanned = banwatch.command('unban', ATTACKER[version])
    assert unbanned.returncode == 0, unbanned
    assert gets_through(network, version)
    assert guess(network, version, password=PASSWORDS['alice'])


@pytest.mark.slow
@pytest.mark.parametrize('server, version', [(dropbear, 4), (sshd, 6)])
def test_guessing_users_that_do_not_exist_is_cut_off_too(network, daemon, server, version):
    busybox_syslogd(network)
    server(network)
    banwatch = daemon(maxretry=3)
    for count in (1, 2, 3):
        assert banwatch.bans(ATTACKER[version]) == []
        guess(network, version, user='nobody-here-%d' % count)
        banwatch.wait_failures(server.__name__, count)
    banwatch.wait_banned(ATTACKER[version])
    assert poll(lambda: not gets_through(network, version))


@pytest.mark.parametrize('server, method', [
    (dropbear, 'password'),
    (sshd, 'password'), (sshd, 'keyboard-interactive')])
@pytest.mark.slow
def test_five_wrong_passwords_on_one_connection_are_five_failures(network, daemon, server, method):
    busybox_syslogd(network)
    server(network)
    banwatch = daemon(maxretry=6)
    guess(network, times=5, method=method)
    assert poll(lambda: 'Exit before auth' in log(network) or 'Connection closed by' in log(network))
    banwatch.wait_failures(server.__name__, 5)
    guess(network)
    banwatch.wait_banned(ATTACKER[4])


@pytest.mark.slow
@pytest.mark.parametrize('method', ['password', 'keyboard-interactive'])
def test_one_wrong_password_for_sshd_is_one_failure_whatever_it_logs(network, daemon, method):
    busybox_syslogd(network)
    sshd(network)
    banwatch = daemon(maxretry=10)
    guess(network, method=method)
    guess(network, method=method, user='nobody-here')
    assert poll(lambda: log(network).count('Connection closed by') >= 3)      # one of them: wait_for_port
    banwatch.wait_failures('sshd', 2)


@pytest.mark.slow
@pytest.mark.parametrize('reduce', ['off', 'on'])
def test_rsyslog_is_followed_and_its_repeated_messages_count(network, daemon, reduce):
    rsyslogd(network, reduce)
    dropbear(network)
    banwatch = daemon(maxretry=5)
    guess(network, times=5)
    banwatch.wait_banned(ATTACKER[4])
    assert ('message repeated 4 times' in log(network)) == (reduce == 'on')


@pytest.mark.slow
def test_two_mistakes_before_the_right_password_ban_nobody(network, daemon):
    busybox_syslogd(network)
    dropbear(network)
    banwatch = daemon(maxretry=3)
    guess(network, times=2)
    banwatch.wait_failures('dropbear', 2)
    assert guess(network, password=PASSWORDS['alice'])
    guess(network)
    assert poll(lambda: log(network).count('Bad password') == 3)
    assert guess(network, password=PASSWORDS['alice'])
    assert banwatch.ask('banned') == []


def log(network):
    with contextlib.suppress(FileNotFoundError), open(network.log, errors='replace') as f:
        return f.read()
    return ''


# --- who is never banned

@pytest.mark.slow
def test_a_host_of_the_lan_is_never_banned(network, daemon):
    busybox_syslogd(network)
    dropbear(network)
    banwatch = daemon(maxretry=3)
    for address, source in (('192.168.1.1', '192.168.1.2'), ('2001:db8:2::1', '2001:db8:2::2')):
        log_in(network, network.lan, address, source, times=4)
    guess(network, times=3)                            # what counts elsewhere
    banwatch.wait_banned(ATTACKER[4])
    assert len(banwatch.ask('banned')) == 1
    assert network.lan.reaches('192.168.1.1') and network.lan.reaches('2001:db8:2::1')


@pytest.mark.slow
def test_a_neighbour_on_the_routers_own_ipv6_network_is_banned_alone(network, daemon):
    busybox_syslogd(network)
    dropbear(network)
    banwatch = daemon(maxretry=3)
    log_in(network, network.attacker, ROUTER[6], '2001:db8:1::66', times=3)
    assert [row['ip'] for row in banwatch.wait_banned('2001:db8:1::66')] == ['2001:db8:1::66']
    assert poll(lambda: not network.attacker.reaches(ROUTER[6], source='2001:db8:1::66'))
    assert network.attacker.reaches(ROUTER[6], source='2001:db8:1::fe')


# --- what a ban does to what is open

@pytest.mark.slow
@pytest.mark.parametrize('version', [4, 6], ids=['IPv4', 'IPv6'])
def test_no_further_byte_of_an_open_connection_passes_after_the_ban(network, daemon, version):
    """Neither to the router nor through it to the LAN."""
    banwatch = daemon()
    with contextlib.ExitStack() as opened:
        lines = []
        for host, address in (network.router, ROUTER[version]), (network.lan, {4: '192.168.1.2', 6: '2001:db8:2::2'}[version]):
            listening = opened.enter_context(host.listen(address, 7))
            client = opened.enter_context(network.attacker.connect(address, 7, ATTACKER[version]))
            server = opened.enter_context(listening.accept()[0])
            server.settimeout(0.5)
            client.sendall(b'before')
            assert server.recv(100) == b'before'
            lines.append((client, server))
        assert banwatch.command('ban', ATTACKER[version]).returncode == 0
        for client, server in lines:
            client.sendall(b'during')
            with pytest.raises(socket.timeout):
                server.recv(100)
        assert banwatch.command('unban', ATTACKER[version]).returncode == 0
        for _, server in lines:
            server.settimeout(10)
            assert server.recv(100) == b'during'       # so it was the ban, and nothing else, that kept it


# --- the daemon's end

@pytest.mark.slow
def test_a_ban_survives_a_killed_daemon_and_is_taken_up_by_the_next(network, daemon):
    dropbear(network)
    banwatch = daemon()
    assert banwatch.command('ban', ATTACKER[4], ATTACKER[6]).returncode == 0
    rules = firewall(network)
    banwatch.kill()
    assert not gets_through(network, 4) and not gets_through(network, 6)
    banwatch.start()
    assert {row['ip'] for row in banwatch.ask('banned')} == {ATTACKER[4], ATTACKER[6]}
    assert poll(lambda: firewall(network) == rules), firewall(network)
    assert not gets_through(network, 4) and not gets_through(network, 6)
    assert banwatch.command('unban', '--all').returncode == 0
    assert gets_through(network, 4) and gets_through(network, 6)


@pytest.mark.parametrize('end', ['stop', 'TERM'])
def test_the_firewall_is_after_a_stop_as_it_was_before(network, daemon, end):
    for program in ('iptables', 'ip6tables'):          # the owner's own rules
        network.router.output([program, '-A', 'INPUT', '-i', 'lan', '-j', 'ACCEPT'])
        network.router.output([program, '-A', 'FORWARD', '-i', 'wan', '-p', 'tcp', '--dport', '23', '-j', 'DROP'])
    before = firewall(network)
    banwatch = daemon()
    assert banwatch.command('ban', ATTACKER[4], ATTACKER[6]).returncode == 0
    assert firewall(network) != before
    if end == 'stop':
        assert banwatch.command('stop').returncode == 0
        assert banwatch.process.wait(10) == 0
    else:
        assert banwatch.stop() == 0
    assert firewall(network) == before


def firewall(network):
    """What iptables-save and ip6tables-save say, without dates and counters."""
    text = network.router.script('iptables-save; ip6tables-save')
    return re.sub(r'\[\d+:\d+\]', '', re.sub(r'(?m)^#.*\n', '', text))


@pytest.mark.slow
def test_stop_tidies_up_after_a_daemon_that_was_killed(network, daemon):
    network.router.script('iptables -A INPUT -i lan -j ACCEPT; ip6tables -A INPUT -i lan -j ACCEPT; '
                          'iptables -P OUTPUT ACCEPT; ip6tables -P FORWARD ACCEPT')
    before = firewall(network)
    guard = daemon()
    guard.command('ban', '-t', '-1', '198.51.100.7')
    guard.kill()
    assert 'banwatch' in firewall(network)
    done = guard.command('stop')
    assert done.returncode == 69 and 'rules that one had left behind have been taken out' in done.stderr
    assert firewall(network) == before


@pytest.mark.slow
def test_stop_leaves_the_rules_of_a_daemon_alone_that_runs_but_cannot_be_asked(network, daemon):
    guard = daemon()
    guard.command('ban', '198.51.100.7')
    rules = firewall(network)
    os.unlink(next(os.path.join(folder, 'control') for folder, _, files in os.walk(network.directory)
                   if 'control' in files))
    done = guard.command('stop')
    assert done.returncode == 1 and 'a daemon is running, but does not answer; try: kill ' in done.stderr
    assert firewall(network) == rules


def test_what_is_never_banned_is_read_from_the_kernel(network):
    """This machine, its LAN, gateways; while the default route is away, its network does not become a LAN."""
    script = ('import sys; sys.path.insert(0, %r); import banwatch, subprocess\n'
              'machine = banwatch.Machine()\n'
              'for words in ([], ["ip", "route", "del", "default"], ["ip", "-6", "route", "del", "default"]):\n'
              '    words and subprocess.run(words, check=True)\n'
              '    print(sorted(row.why for row in machine.networks()))' % ROOT)
    first, _, last = [ast.literal_eval(line) for line in network.router.output([sys.executable, '-c', script]).splitlines()]
    for why in ('203.0.113.1 (this machine, wan)', '192.168.1.1 (this machine, lan)', '192.168.1.0/24 (the LAN, lan)',
                '2001:db8:2::/64 (the LAN, lan)', '203.0.113.254 (a gateway)', '2001:db8:1::fe (a gateway)'):
        assert why in first, first
    assert not [why for why in first + last if why.startswith(('203.0.113.0/24', '2001:db8:1::/64'))]


# --- other daemons

VSFTPD = """
listen=YES
background=NO
anonymous_enable=NO
local_enable=YES
syslog_enable=YES
nopriv_user=daemon
secure_chroot_dir={folder}
delay_failed_login=0
"""
# without its own brakes, which would make the test as slow as an attacker
DOVECOT = """
base_dir = {folder}
protocols = imap
listen = *
ssl = no
disable_plaintext_auth = no
log_path = syslog
auth_failure_delay = 0
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
passdb {{
  driver = static
  args = password={password}
}}
userdb {{
  driver = static
  args = uid=mail gid=mail home=/tmp
}}
"""


def vsftpd(network):
    need('vsftpd')
    os.mkdir(network.path('empty'), 0o755)
    network.router.output(['mount', '--bind', network.write('pam', PAM), '/etc/pam.d/vsftpd'])
    network.router.popen(['vsftpd', network.write('vsftpd.conf', VSFTPD.format(folder=network.path('empty')))])
    assert poll(lambda: network.router.reaches('127.0.0.1', 21))


def dovecot(network):
    need('dovecot')
    network.router.popen(['dovecot', '-F', '-c', network.write('dovecot.conf', DOVECOT.format(
        folder='/run/dovecot', password=PASSWORDS['alice'].replace(' ', '-')))])
    assert poll(lambda: network.router.reaches('127.0.0.1', 143))


def talk(network, port, words):
    """Says one line after another to a server of the router's, as the attacker; its answers, '' where there was none."""
    with network.attacker.connect(ROUTER[4], port, ATTACKER[4], 5) as sock, sock.makefile('r', errors='replace') as answers:
        sock.settimeout(5)
        said = [answers.readline()]
        for word in words:
            sock.sendall(word.encode() + b'\r\n')
            said.append(answers.readline())
        return said


def ftp(network, password):
    return talk(network, 21, ['USER alice', 'PASS ' + password])[-1][:3] == '230'


def imap(network, password):
    return ' OK ' in talk(network, 143, ['x LOGIN alice "%s"' % password])[-1][:5]


@pytest.mark.slow
@pytest.mark.parametrize('server, port, log_in', [(vsftpd, 21, ftp), (dovecot, 143, imap)], ids=['vsftpd', 'dovecot'])
def test_the_fifth_wrong_password_for_another_daemon_is_a_ban_too(network, daemon, server, port, log_in):
    busybox_syslogd(network)
    server(network)
    banwatch = daemon('[%s]\n' % server.__name__, maxretry=5)
    for _ in range(4):
        assert not log_in(network, 'wrong')
    banwatch.wait_failures(server.__name__, 4)
    assert banwatch.ask('banned') == [] and gets_through(network)
    assert not log_in(network, 'wrong')
    assert [row['jail'] for row in banwatch.wait_banned(ATTACKER[4])] == [server.__name__]
    assert poll(lambda: not gets_through(network))


@pytest.mark.slow
def test_wrong_passwords_on_one_connection_to_dovecot_are_as_many_failures(network, daemon):
    busybox_syslogd(network)
    dovecot(network)
    banwatch = daemon('[dovecot]\n', maxretry=5)
    talk(network, 143, ['x LOGIN alice wrong'] * 3 + ['x LOGOUT'])
    banwatch.wait_failures('dovecot', 3)
    talk(network, 143, ['x LOGIN bob wrong'] * 2 + ['x LOGOUT'])
    assert [row['jail'] for row in banwatch.wait_banned(ATTACKER[4])] == ['dovecot']
