"""Traps: servers that let nobody in, tried with raw bytes and with real clients."""
import os
import socket
import subprocess
import time

import pytest

import banwatch
from conftest import need
from harness import House, poll

GREETING = b'\xff\xfd\x01\xff\xfd\x1f\xff\xfb\x01\xff\xfb\x03\r\nrouter login: '
PROTOCOLS = 'telnet', 'rlogin', 'ssh', 'http', 'tcp'


def free_port():
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


class Trapped(House):
    """A House with a trap, and clients of it."""

    def __init__(self, folder, protocol, **more):
        self.port, self.socks = free_port(), []
        more.setdefault('maxretry', 2)
        House.__init__(self, folder, text='[trap]\nmaxretry = %d\nsource = trap:%s:127.0.0.1:%d\n' % (more.pop('maxretry'), protocol, self.port),
                       ignoreip='192.0.2.1', ignoreself='false', **more)

    def client(self, ip='127.0.0.5'):
        sock = socket.create_connection(('127.0.0.1', self.port), 5, (ip, 0))
        sock.settimeout(0.01)
        self.socks.append(sock)
        self.turn(2)
        return sock

    def talk(self, sock, data=b'', turns=4):
        """What the trap says to that."""
        if data:
            sock.sendall(data)
        said = b''
        for _ in range(4):
            time.sleep(0.003)
            self.turn(turns)
            try:
                while True:
                    chunk = sock.recv(4096)
                    if not chunk:
                        return said + b'<end>'
                    said += chunk
            except socket.timeout:
                pass
            except (ConnectionResetError, BrokenPipeError):
                return said
        return said

    def told(self):
        return [line for line in self.machine.logged if line.startswith('trap ')]

    def trap(self):
        (trap,) = [source for source in self.daemon.sources.values() if isinstance(source, banwatch.Trap)]
        return trap


@pytest.fixture
def trapped(tmp_path):
    made = []

    def start(protocol, **more):
        made.append(Trapped(tmp_path, protocol, **more))
        return made[0]
    yield start
    for house in made:
        for sock in house.socks:
            sock.close()
        house.stop()


@pytest.mark.parametrize('end', [b'\r\0', b'\r\n', b'\n'])
def test_telnet_asks_as_busybox_does_and_counts_connection_and_password(trapped, end):
    house = trapped('telnet')
    sock = house.client()
    assert house.talk(sock) == GREETING and house.banned() == []
    assert house.talk(sock, b'root' + end) == b'root\r\nPassword: '
    assert house.talk(sock, b'secret1' + end) == b'' and house.banned() == ['127.0.0.5']
    house.pass_time(3.1)
    assert house.talk(sock) == b'\r\nLogin incorrect\r\nrouter login: '
    (row,) = house.ask('banned')['banned']
    assert row['jail'] == 'trap' and row['failures'] == 2
    sock.close()
    house.turn(3)
    assert house.told() == ['trap telnet: 127.0.0.5: 1 guess (root)']


def test_after_three_guesses_it_hangs_up(trapped):
    house = trapped('telnet', maxretry=9)
    sock = house.client()
    house.talk(sock)
    for n in range(3):
        house.talk(sock, b'root\r\n')
        house.talk(sock, b'x\r\n')
        house.pass_time(3.1)
    assert house.talk(sock).endswith(b'<end>') and house.told() == ['trap telnet: 127.0.0.5: 3 guesses (root)']


def test_no_password_and_no_unknown_name_is_written_anywhere(trapped, tmp_path):
    house = trapped('telnet')
    for ip, name in ('127.0.0.5', b'root'), ('127.0.0.6', b'hunter2hunter2'):
        sock = house.client(ip)
        house.talk(sock)
        house.talk(sock, name + b'\r\n')
        house.talk(sock, b'swordfish\r\n')
        sock.close()
        house.turn(3)
    house.daemon.store.save_all()
    everything = ''.join(house.machine.logged) + (tmp_path / 'state').read_text() + str(house.ask('report')) + str(house.ask('status'))
    assert 'swordfish' not in everything + (tmp_path / 'run' / 'state.json').read_text() and 'hunter2' not in everything


def test_telnets_commands_are_answered_once_and_cut_out(trapped):
    house = trapped('telnet')
    sock = house.client()
    house.talk(sock)
    inetutils = bytes.fromhex('fffd26fffb26fffd03fffb18fffb1ffffb20fffb21fffb22fffb27fffd05')
    answer = house.talk(sock, inetutils)
    assert answer == bytes.fromhex('fffc26fffe26fffe18fffe20fffe21fffe22fffe27fffc05')
    assert house.talk(sock, inetutils) == b''
    assert house.talk(sock, b'ro\xff\xfa\x1f\x00\x50\x00\x18\xff\xf0ot\xff\xf1\r\n') == b'root\r\nPassword: '


def test_an_endless_subnegotiation_ends_the_session(trapped):
    house = trapped('telnet')
    sock = house.client()
    house.talk(sock)
    said = b''
    for _ in range(20):
        try:
            said += house.talk(sock, b'\xff\xfa' + b'x' * 500)
        except OSError:
            break
    assert not house.trap().clients and house.banned() == []


def test_rlogin(trapped):
    house = trapped('rlogin')
    sock = house.client()
    assert house.talk(sock) == b''
    assert house.talk(sock, b'\0alice\0root\0vt100/38400\0') == b'\0Password: '
    assert house.talk(sock, b'toor\r') == b'' and house.banned() == ['127.0.0.5']
    house.pass_time(3.1)
    assert house.talk(sock) == b'\r\nLogin incorrect\r\nPassword: '
    sock.close()
    house.turn(3)
    assert house.told() == ['trap rlogin: 127.0.0.5: 1 guess (root)']


@pytest.mark.parametrize('first, more, banned', [(b'SSH-2.0-Go\r\n', b'\0\0\1\2\n', True), (b'SSH-2.0-Go\r\n', b'', False), (b'GET /\r\n', b'x\n', False)])
def test_ssh_is_a_banner_and_who_goes_on_has_guessed(trapped, first, more, banned):
    house = trapped('ssh')
    sock = house.client()
    assert house.talk(sock).startswith(b'SSH-2.0-')
    house.talk(sock, first)
    if more:
        try:
            house.talk(sock, more)
        except OSError:
            pass
    assert house.banned() == ['127.0.0.5'] * banned


@pytest.mark.parametrize('header, banned', [
    ('', False), ('Authorization: Basic cm9vdDpzZWNyZXQ=', True), ('authorization:Basic !!!', True), ('Authorization: Digest x', True),
    ('X-Authorization: Basic cm9vdDpzZWNyZXQ=', False)])
def test_http_wants_a_password_and_each_one_is_a_guess(trapped, header, banned):
    house = trapped('http')
    answer = house.talk(house.client(), ('GET / HTTP/1.1\r\nHost: x\r\n%s\r\n' % (header and header + '\r\n')).encode(), 6)
    assert answer.startswith(b'HTTP/1.0 401 Unauthorized\r\nWWW-Authenticate: Basic ') and answer.endswith(b'<end>')
    assert house.banned() == ['127.0.0.5'] * banned


def test_tcp_is_silent_and_a_connection_counts(trapped):
    house = trapped('tcp')
    assert house.talk(house.client(), b'hello') == b'' and house.banned() == []
    house.client()
    assert house.banned() == ['127.0.0.5']


def test_sessions_have_an_end(trapped):
    house = trapped('telnet')
    silent, slow = house.client('127.0.0.5'), house.client('127.0.0.6')
    for _ in range(2):
        house.pass_time(6)
        house.talk(slow, b'x')
    assert house.talk(silent).endswith(b'<end>') and not house.talk(slow).endswith(b'<end>')
    for _ in range(4):
        house.pass_time(6)
        try:
            house.talk(slow, b'x')
        except OSError:
            break
    assert not house.trap().clients


def test_clients_are_few_and_of_one_address_four(trapped):
    house = trapped('tcp', maxretry=999)
    socks = [house.client('127.0.0.5') for _ in range(6)]
    assert [house.talk(sock).endswith(b'<end>') for sock in socks] == [False] * 4 + [True] * 2
    more = [house.client('127.0.1.%d' % n) for n in range(1, 41)]
    assert len(house.trap().clients) == 32 and sum(house.talk(sock).endswith(b'<end>') for sock in more) == 12
    assert house.ask('status')['jails'][-1]['failures'] == 46


def test_lines_and_sessions_are_bounded(trapped):
    house = trapped('telnet')
    sock = house.client()
    house.talk(sock)
    for _ in range(12):
        try:
            house.talk(sock, b'A' * 400)
        except OSError:
            break
    assert not house.trap().clients


def test_a_port_that_is_taken_is_one_error_and_tried_again(tmp_path):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        house = House(tmp_path, text='[trap]\nsource = trap:tcp:127.0.0.1:%d\n' % port)
        wrong = 'trap:tcp:127.0.0.1:%d: Address already in use' % port
        assert house.ask('status')['wrong'] == [wrong]
    for _ in range(10):
        house.pass_time(1)
    assert house.ask('status')['wrong'] == [] and sum('Address already' in line for line in house.machine.logged) == 1


@pytest.mark.parametrize('text, problem', [
    ('[trap]\nsource = trap:gopher:70\n', "'trap:gopher:70': no log source"),
    ('[trap]\nsource = trap:telnet:99999\n', 'no log source'), ('[trap]\nsource = trap:telnet\n', 'no log source')])
def test_what_is_no_trap_is_a_mistake(text, problem):
    made, problems = banwatch.read_config(text, 'c')
    assert problem in ' '.join(problems + banwatch.Jails(made).problems)


def test_ipv6_and_mapped_addresses(tmp_path):
    house = House(tmp_path, text='[trap]\nsource = trap:tcp:%d\n' % free_port(), ignoreip='192.0.2.1', ignoreself='false')
    (source,) = [source for source in house.daemon.sources.values() if isinstance(source, banwatch.Trap)]
    port = source.argument[2]
    both = [('127.0.0.1', '127.0.0.9')] + [('::1', '::1')] * os.path.exists('/proc/net/if_inet6')
    for host, ip in both:
        for _ in range(2):
            sock = socket.create_connection((host, port), 5, (ip, 0))
            house.turn(3)
            sock.close()
    house.turn(3)
    assert [ip for ip in house.banned() if '.' in ip] == ['127.0.0.9'] and len(house.banned()) == len(both)
    house.stop()


@pytest.mark.slow
def test_real_clients_see_what_they_expect_and_are_dropped(network, daemon):
    need('telnet', 'busybox', 'curl', 'ssh', 'nft', 'rsh-redone-rlogin', 'script')
    lines = '[trap]\nsource = trap:telnet:23\n    trap:ssh:2222\n    trap:http:8080\n    trap:rlogin:513\n'
    guard = daemon(lines, firewall='nft')
    assert poll(lambda: network.attacker.reaches('203.0.113.1', 23, '203.0.113.254'))

    def typed(argv):
        script = '{ sleep 1; echo root; sleep 1; echo secret1; sleep 5; } | ' + argv
        return network.attacker.run(['timeout', '12', 'sh', '-c', script]).stdout
    said = typed('telnet -b 198.51.100.7 203.0.113.1')
    assert 'login: ' in said and 'Password: ' in said and 'secret1' not in said
    assert poll(lambda: '198.51.100.7' in guard.command('banned', '--plain').stdout)
    assert not network.attacker.reaches('203.0.113.1', 9, '198.51.100.7')
    said = typed('busybox telnet 203.0.113.1')             # from 203.0.113.66, in the WAN's network
    assert 'login: ' in said and 'Password: ' in said and 'secret1' not in said
    assert poll(lambda: '203.0.113.66' in guard.command('banned', '--plain').stdout)
    assert guard.command('unban', '203.0.113.66').returncode == 0
    rlogin = "{ sleep 1; printf 'toor\\r'; sleep 4; } | timeout 9 script -qec 'rsh-redone-rlogin -l admin 203.0.113.1' /dev/null"
    said = network.attacker.run(['sh', '-c', rlogin]).stdout
    assert 'Password: ' in said and 'toor' not in said
    assert poll(lambda: '203.0.113.66' in guard.command('banned', '--plain').stdout), guard.said()
    done = network.attacker.run(['curl', '-s', '-m', '5', '--interface', '198.51.100.8', '-u', 'root:x', 'http://203.0.113.1:8080/'])
    assert poll(lambda: '198.51.100.8' in guard.command('banned', '--plain').stdout), done
    network.attacker.run(['timeout', '5', 'ssh', '-6', '-o', 'BatchMode=yes', '-o', 'StrictHostKeyChecking=no', '-b', '2001:db8:bad::7',
                          '-p', '2222', 'root@2001:db8:1::1'])
    assert poll(lambda: '2001:db8:bad::/64' in guard.command('banned', '--plain').stdout)
    assert not network.attacker.reaches('2001:db8:1::1', 9, '2001:db8:bad::7')


@pytest.mark.slow
def test_a_flood_of_connections_costs_little_and_no_ban(network, daemon):
    need('nft')
    open(network.log, 'w').close()                         # what stands in a new file counts at its own time
    guard = daemon('[trap]\nsource = trap:telnet:2323\n', firewall='nft')
    before = guard.ask('status')['memory']
    socks = []
    for _ in range(300):
        try:
            socks.append(network.attacker.connect('203.0.113.1', 2323, '203.0.113.66', 1))
        except OSError:
            break
    with open(network.log, 'a') as f:
        f.write(''.join('Nov 20 12:00:00 h sshd[%d]: Failed password for root from 192.0.2.77 port 5 ssh2\n' % n for n in range(5)))
    assert poll(lambda: '192.0.2.77' in guard.command('banned', '--plain').stdout, 5)
    assert poll(lambda: '203.0.113.66' in guard.command('banned', '--plain').stdout, 5)
    assert guard.ask('status')['memory'] - before < 3000
    for sock in socks:
        sock.close()
