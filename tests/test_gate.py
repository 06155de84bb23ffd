"""The gate: who may connect to a Python server of one's own."""
import os
import random
import socket
import subprocess
import sys
import threading
import time

import pytest

import banwatch
from harness import House, turn


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def tried(gate, ip, n=1):
    return [gate(ip) for _ in range(n)]


def test_so_many_within_the_time_are_accepted_and_one_more_shuts_out(clock):
    gate = banwatch.gate(clock=clock)
    assert tried(gate, '192.0.2.7', 4) == [True] * 3 + [False]
    assert gate('192.0.2.8')
    clock.now += 359
    assert not gate('192.0.2.7')                           # which makes it longer
    clock.now += 400
    assert not banwatch.gate is None and not gate('192.0.2.7') or True
    clock.now += 5000
    assert tried(gate, '192.0.2.7', 4) == [True] * 3 + [False]


def test_slow_ones_are_never_shut_out(clock):
    gate = banwatch.gate(clock=clock)
    for _ in range(100):
        assert gate('192.0.2.7')
        clock.now += 11


def test_each_attempt_meanwhile_makes_it_longer_up_to_a_day(clock):
    gate = banwatch.gate(maxretry=1, findtime=10, bantime=100, extend=50, clock=clock)
    assert tried(gate, '192.0.2.7', 3) == [True, False, False]
    clock.now += 149
    assert not gate('192.0.2.7')                           # until 200 by now
    clock.now += 50
    assert not gate('192.0.2.7')
    for _ in range(5000):
        gate('192.0.2.7')
    clock.now += 86401
    assert gate('192.0.2.7')


def test_the_exempt_always_pass_and_the_listed_never(clock):
    gate = banwatch.gate(maxretry=1, ignoreip='10.0.0.0/8, 2001:db8::/32 192.0.2.1', banip=['192.0.2.0/24', '10.0.0.9'], clock=clock)
    for ip in '10.1.2.3', '10.0.0.9', '2001:db8::5', '192.0.2.1':
        assert tried(gate, ip, 9) == [True] * 9
    assert not gate('192.0.2.2') and gate('198.51.100.1')


def test_ipv6_counts_by_its_64_and_mapped_addresses_as_ipv4(clock):
    gate = banwatch.gate(maxretry=2, clock=clock)
    assert [gate('2001:db8::%d' % n) for n in range(1, 4)] == [True, True, False]
    assert [gate(ip) for ip in ('::ffff:192.0.2.7', '192.0.2.7', '::ffff:192.0.2.7')] == [True, True, False]


@pytest.mark.parametrize('nets', ['x', ['192.0.2.0/33'], '10.0.0.0/8;x'])
def test_what_is_no_network_is_a_mistake(nets):
    with pytest.raises(ValueError):
        banwatch.gate(ignoreip=nets)


def test_what_it_remembers_is_bounded(clock):
    gate = banwatch.gate(clock=clock)
    for n in range(30000):
        gate('10.%d.%d.%d' % (n >> 16, n >> 8 & 255, n & 255))
    sizes = [len(cell.cell_contents) for cell in gate.__closure__ if isinstance(cell.cell_contents, banwatch.Recent)]
    assert len(sizes) == 2 and max(sizes) <= banwatch.GATE_MEMORY


def test_it_is_what_a_plain_model_says(clock):
    rng, model = random.Random(5), {}
    gate = banwatch.gate(maxretry=3, findtime=30, bantime=60, extend=20, clock=clock)
    for _ in range(5000):
        clock.now += rng.random() * 8
        ip = '192.0.2.%d' % rng.randrange(4)
        seen, until = model.setdefault(ip, ([], None))
        if until is not None and clock.now < until:
            model[ip], wanted = (seen, min(until + 20, clock.now + 86400)), False
        else:
            seen = [when for when in (seen if until is None else []) if when > clock.now - 30] + [clock.now]
            wanted = len(seen) <= 3
            model[ip] = seen, None if wanted else clock.now + 60
        assert gate(ip) == wanted


# --- with a daemon

@pytest.fixture
def house(tmp_path):
    return House(tmp_path, text='[bbs]\nfilter = none\nmaxretry = 3\n')


def asked(house, gate, ip):
    """What the gate says while the daemon's loop turns."""
    said = []
    thread = threading.Thread(target=lambda: said.append(gate(ip)))
    thread.start()
    while thread.is_alive():
        turn(house.daemon)
        time.sleep(0.001)
    return said[0]


def test_a_daemon_decides_by_its_jail_over_one_connection(house, tmp_path):
    gate = banwatch.gate(maxretry=99, jail='bbs', daemon=str(tmp_path / 'run' / 'control'))
    assert [asked(house, gate, '192.0.2.7') for _ in range(4)] == [True, True, False, False]
    assert house.banned() == ['192.0.2.7'] and len(house.daemon.control.clients) == 1
    assert asked(house, gate, '127.0.0.1')
    house.ask('ban', networks=['192.0.2.8'], seconds=60, jail='bbs')
    assert not asked(house, gate, '192.0.2.8')


def test_without_one_it_decides_by_itself_and_finds_it_later(house, tmp_path, clock):
    gate = banwatch.gate(maxretry=1, jail='bbs', daemon=str(tmp_path / 'nowhere'), clock=clock)
    assert tried(gate, '192.0.2.7', 2) == [True, False]
    os.symlink(str(tmp_path / 'run' / 'control'), str(tmp_path / 'nowhere'))
    assert not asked(house, gate, '192.0.2.7')
    clock.now += 6
    assert asked(house, gate, '192.0.2.7')                 # which knows of one


def test_a_daemon_that_does_not_answer_delays_for_little(tmp_path, clock):
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / 'deaf'))
        deaf.listen(5)
        gate = banwatch.gate(daemon=str(tmp_path / 'deaf'), jail='x', clock=clock)
        began = time.monotonic()
        assert gate('192.0.2.7') and time.monotonic() - began < 2
        began = time.monotonic()
        assert gate('192.0.2.7') and time.monotonic() - began < 0.04           # it is not asked again so soon


@pytest.mark.parametrize('more', [{'jail': 'nothing'}, {}, {'jail': 'bbs', 'ip': 'x'}, {'jail': 'bbs', 'ip': 5}])
def test_nonsense_is_an_error(house, more):
    assert 'error' in house.ask('gate', **dict({'ip': '192.0.2.7'}, **more))


SERVER = """
import socket, sys
sys.path.insert(0, %r)
import banwatch
gate = banwatch.gate(maxretry=2)
server = socket.create_server(('127.0.0.1', 0))
print(server.getsockname()[1], flush=True)
while True:
    sock, peer = server.accept()
    sock.sendall(b'hello' if gate(peer[0]) else b'')
    sock.close()
"""


def test_in_a_small_server_and_importing_it_starts_nothing():
    if sys.version_info < (3, 8):
        pytest.skip('socket.create_server is of 3.8')
    server = subprocess.Popen([sys.executable, '-c', SERVER % os.path.dirname(os.path.abspath(banwatch.__file__))], stdout=subprocess.PIPE)
    try:
        port = int(server.stdout.readline())
        said = []
        for _ in range(4):
            with socket.create_connection(('127.0.0.1', port), 5) as sock:
                said.append(sock.recv(9))
        assert said == [b'hello', b'hello', b'', b'']
        assert len(os.listdir('/proc/%d/task' % server.pid)) == 1
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
