"""The address behind a proxy: whom failures count for that come through sslh or haproxy."""
import os
import time

import pytest

import banwatch
from conftest import need
from harness import FakeMachine, House, poll
from network import Daemon
from test_end_to_end import busybox_syslogd, dropbear, sshd

SSLH = ('[proxy sslh]\nprogram = sslh.*\nregex = connection from <HOST>:\\d+ to .* forwarded from \\S+:<F-PORT>\\d+</F-PORT> to\n')
HAPROXY = '[proxy haproxy]\nprogram = haproxy\nregex = ^client <HOST>:\\d+ through \\S+:<F-PORT>\\d+</F-PORT>$\n'
HEAD = 'Thu Mar  7 12:34:56 2024 authpriv.warn '
FORWARDED = HEAD + 'sslh[7]: ssh:connection from %s:5555 to 203.0.113.1:443 forwarded from 127.0.0.1:%d to 127.0.0.1:22\n'
BAD = HEAD + "dropbear[%d]: Bad password attempt for 'root' from 127.0.0.1:%d\n"
PAM = HEAD + 'sshd[%d]: pam_unix(sshd:auth): authentication failure; logname= uid=0 euid=0 tty=ssh ruser= rhost=127.0.0.1  user=root\n'
FAILED = HEAD + 'sshd[%d]: Failed password for %s from 127.0.0.1 port %d ssh2\n'


@pytest.fixture
def house(tmp_path):
    return House(tmp_path, SSLH)


def failures(house):
    """(jail, who) of all that has been counted."""
    house.pass_time(0.1)
    return sorted((jail, net, len(seen)) for (jail, net), seen in house.daemon.judge.fails.recent.items())


def test_failures_count_for_the_client_that_the_proxy_has_named(house):
    house.write(FORWARDED % ('198.51.100.7', 40001) + FORWARDED % ('2001:db8:bad::7', 40002) + BAD % (1, 40001) + BAD % (2, 40002) + BAD % (1, 40001))
    assert failures(house) == [('dropbear', '198.51.100.7', 2), ('dropbear', '2001:db8:bad::/64', 1)]
    house.write(BAD % (1, 40001))
    house.turn()
    assert house.banned() == ['198.51.100.7']


def test_either_line_may_come_first_within_a_second(house):
    house.write(BAD % (1, 40001))
    assert failures(house) == []
    house.pass_time(0.7)
    house.write(FORWARDED % ('198.51.100.7', 40001))
    assert failures(house) == [('dropbear', '198.51.100.7', 1)]


def test_what_no_line_explains_counts_for_nobody_and_is_told(house):
    house.write(BAD % (1, 40001) * 9)
    house.pass_time(2)
    house.write(FORWARDED % ('198.51.100.7', 40001))                           # too late
    assert failures(house) == [] and house.banned() == []
    house.pass_time(60)
    assert house.ask('status')['wrong'] == ['proxy sslh: 9 failures came through it from ports that no line of it names; they count for nobody']


def test_a_line_of_the_proxy_explains_failures_for_as_long_as_keep_says(house):
    house.write(FORWARDED % ('198.51.100.7', 40001))
    house.pass_time(119)
    house.write(BAD % (1, 40001))
    assert failures(house) == [('dropbear', '198.51.100.7', 1)]
    house.pass_time(2)
    house.write(BAD % (1, 40001))
    house.pass_time(2)
    assert failures(house) == [('dropbear', '198.51.100.7', 1)]


def test_a_port_that_is_used_again_belongs_to_the_latest_client(house):
    house.write(FORWARDED % ('198.51.100.7', 40001) + BAD % (1, 40001))
    house.write(FORWARDED % ('198.51.100.8', 40001) + BAD % (2, 40001))
    assert failures(house) == [('dropbear', '198.51.100.7', 1), ('dropbear', '198.51.100.8', 1)]


def test_in_lines_of_earlier_each_failure_belongs_to_who_had_the_port_then(tmp_path):
    machine = FakeMachine()
    lines, wall = [], machine.time
    for minute, ip in (9, '198.51.100.7'), (5, '198.51.100.8'), (1, '198.51.100.9'):
        lines += [time.strftime('%b %e %H:%M:%S ', time.localtime(wall - 60 * minute)) + 'gate ' + text.partition(' authpriv.warn ')[2]
                  for text in (FORWARDED % (ip, 40001), BAD % (minute, 40001))]
    house = House(tmp_path, SSLH, machine=machine)
    now = machine.now
    house.daemon.consume(house.daemon.sources['fifo:' + house.fifo], ''.join(lines).encode(), banwatch.RECENT)
    house.turn()
    seen = {net: round(now - when[0]) for (_, net), when in house.daemon.judge.fails.recent.items()}
    assert seen == {'198.51.100.7': 540, '198.51.100.8': 300, '198.51.100.9': 60}


def test_a_line_without_a_port_gets_that_of_its_connection(house):
    house.write(FORWARDED % ('198.51.100.7', 40001) + PAM % 9)
    assert failures(house) == []
    house.write(FAILED % (9, 'root', 40001))
    house.pass_time(2)
    assert failures(house) == [('sshd', '198.51.100.7', 1)]


def test_the_port_is_the_one_behind_the_address_not_one_in_a_name(house):
    """Who chooses a user name must not be able to blame another client of the proxy."""
    house.write(FORWARDED % ('198.51.100.7', 40001) + FORWARDED % ('203.0.113.9', 40666)
                + FAILED % (9, 'invalid user x from 127.0.0.1 port 40666 ssh2', 40001)
                + HEAD + "dropbear[5]: Bad password attempt for 'x from 127.0.0.1:40666' from 127.0.0.1:40001\n"
                + HEAD + "dropbear[6]: Exit before auth from <127.0.0.1:40001>: (user 'x from 127.0.0.1:40666', 1 fails): Exited normally\n")
    assert {net for _, net, _ in failures(house)} == {'198.51.100.7'}


def test_a_client_that_is_exempt_stays_so(tmp_path):
    house = House(tmp_path, SSLH, ignoreip='127.0.0.0/8 198.51.100.7')
    house.write(FORWARDED % ('198.51.100.7', 40001) + BAD % (1, 40001) * 9)
    assert failures(house) == [] and house.banned() == []


def test_a_login_through_the_proxy_forgives_its_client_alone(house):
    house.write(FORWARDED % ('198.51.100.7', 40001) + FORWARDED % ('198.51.100.8', 40002)
                + HEAD + "dropbear[1]: Password auth succeeded for 'root' from 127.0.0.1:40001\n" + BAD % (2, 40002) + BAD % (3, 40001))
    assert failures(house) == [('dropbear', '198.51.100.8', 1)]


def test_others_of_that_address_and_daemons_without_proxies_are_as_ever(tmp_path, house):
    house.fail('198.51.100.9', 3)
    assert house.banned() == ['198.51.100.9']
    (tmp_path / 'other').mkdir()
    plain = House(tmp_path / 'other')
    assert plain.daemon.proxied == {} and not any(jail.filter.keep_matches for jail in plain.daemon.judge.jails.watching())


def test_what_waits_is_bounded(house, monkeypatch):
    monkeypatch.setattr(banwatch, 'MOST_HELD', 10)
    house.write(''.join(BAD % (n, 40000 + n) for n in range(50)))
    assert len(house.daemon.wing('proxies').table.held) == 10
    house.pass_time(62)
    assert '50 failures' in house.ask('status')['wrong'][0]


def test_a_reload_takes_proxies_over(house):
    house.write(FORWARDED % ('198.51.100.7', 40001))
    house.text = SSLH + 'keep = 3m\n'
    house.ask('reload')
    house.write(BAD % (1, 40001))
    assert failures(house) == [('dropbear', '198.51.100.7', 1)]
    house.text = ''
    house.ask('reload')
    house.write(BAD % (1, 40001) * 5)
    assert failures(house) == [('dropbear', '198.51.100.7', 1)] and house.daemon.proxied == {}      # 127.0.0.1 is exempt


@pytest.mark.parametrize('text, why', [
    ('regex = x\n', 'needs a <HOST> and <F-PORT>'), ('regex = <HOST>\n', 'needs a <HOST> and'), ('regex = (\n', 'is not a regex'), ('', 'needs a <HOST> and'),
    ('regex = <HOST> <F-PORT>\\d+</F-PORT>\naddress = x\n', "'x' is not an address"), ('regexp = x\n', 'did you mean regex?')])
def test_mistakes_are_told_with_their_lines(text, why):
    config, problems = banwatch.read_config('[proxy p]\nprogram = sslh\n' + text, 'c')
    problems += banwatch.ProxyTable(config).problems
    assert why in problems[0] and problems[0].startswith('c:')


# --- real proxies in front of real daemons

@pytest.fixture
def through(network):
    """A function that starts a syslog daemon, a server, a proxy and banwatch, and returns (daemon, port, a guess at that port)."""
    made = []

    def start(server, proxy):
        busybox_syslogd(network)
        server(network)
        port, section = proxy(network)
        made.append(Daemon(network, section, firewall='nft', maxretry=3))

        def guess(source='198.51.100.7', **more):
            test_log_in = ['ssh', '-F', 'none', '-p', str(port), '-b', source, '-o', 'UserKnownHostsFile=/dev/null', '-o', 'StrictHostKeyChecking=no',
                           '-o', 'ConnectTimeout=2', '-o', 'LogLevel=ERROR', '-o', 'PreferredAuthentications=password', '-o', 'PubkeyAuthentication=no',
                           '-o', 'NumberOfPasswordPrompts=1', 'alice@203.0.113.1', 'true']
            askpass = network.write('askpass', '#!/bin/sh\necho wrong\n', 0o700)
            network.attacker.run(test_log_in, env=dict(os.environ, SSH_ASKPASS=askpass, SSH_ASKPASS_REQUIRE='force', DISPLAY=':'))
        return made[-1], port, guess
    yield start
    for daemon in made:
        daemon.close()


def sslh(network):
    need('sslh')
    # in the background it logs to syslog
    network.router.popen(['sslh-select', '-b', '-n', '-v', '--listen', '0.0.0.0:443', '--ssh', '127.0.0.1:22', '--pidfile', '/run/sslh.pid'])
    assert poll(lambda: network.router.reaches('203.0.113.1', 443))
    return 443, SSLH


def haproxy(network):
    need('haproxy')
    conf = network.write('haproxy.cfg', '''
global
  log /dev/log local0
defaults
  mode tcp
  timeout connect 5s
  timeout client 1m
  timeout server 1m
frontend f
  bind 0.0.0.0:443
  log global
  option logasap
  log-format "client %ci:%cp through %bi:%bp"
  default_backend b
backend b
  server s 127.0.0.1:22
''')
    network.router.popen(['haproxy', '-db', '-f', conf])
    assert poll(lambda: network.router.reaches('203.0.113.1', 443))
    return 443, HAPROXY


@pytest.mark.slow
@pytest.mark.parametrize('server, proxy', [(dropbear, sslh), (sshd, haproxy), (dropbear, haproxy)])
def test_the_client_of_a_real_proxy_is_banned_and_the_router_is_not(network, through, server, proxy):
    daemon, port, guess = through(server, proxy)
    for _ in range(2):
        guess()
        guess('198.51.100.8')
    guess()
    (row,) = daemon.wait_banned('198.51.100.7')
    assert row['failures'] == 3 and [row['ip'] for row in daemon.ask('banned')] == ['198.51.100.7']
    assert not network.attacker.reaches('203.0.113.1', port, '198.51.100.7') and network.attacker.reaches('203.0.113.1', port, '198.51.100.8')


def test_a_replay_counts_for_clients_too(tmp_path, capsys):
    conf, log = tmp_path / 'conf', tmp_path / 'log'
    conf.write_text(SSLH + '[DEFAULT]\nmaxretry = 3\n')
    log.write_text(BAD % (1, 40001) + FORWARDED % ('198.51.100.7', 40001) + (BAD % (1, 40001)) * 2 + (BAD % (2, 40002)) * 5)
    assert banwatch.main(['-c', str(conf), 'replay', '--json', str(log)]) == 0
    import json
    assert [(row['ip'], row['failures']) for row in json.loads(capsys.readouterr().out)['bans']] == [('198.51.100.7', 3)]
    conf.write_text('[proxy p]\nprogram = x\nregex = y\n')
    assert banwatch.main(['-c', str(conf), 'check']) == 78 and 'needs a <HOST>' in capsys.readouterr().err
