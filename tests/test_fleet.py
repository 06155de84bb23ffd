"""The exchange with a CrowdSec: its Local API pulled and pushed, by itself, hostile, and for real."""
import glob
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time

import pytest

import banwatch
from conftest import need
from harness import FakeMachine, House, poll


# --- what it says

@pytest.mark.parametrize('text, seconds', [
    ('3600s', 3600), ('60m', 3600), ('1h30m', 5400), ('1.5h', 5400), ('59m59.465826316s', 3599.465826316), ('-1.10165419s', -1.10165419),
    ('97427h51m53.7s', 97427 * 3600 + 51 * 60 + 53.7), ('-922.910538ms', -.922910538), ('5µs', 5e-6), ('5us', 5e-6), ('7ns', 7e-9), ('+1s', 1),
    ('1d', 86400), ('5\xc2\xb5s', 5e-6), ('1.s', 1)])
def test_a_duration_is_read_as_go_writes_it(text, seconds):
    assert banwatch.go_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize('text', ['', '600', 's', '1x', '1h 5m', '--1s', '1e5s', '.s', 'NaNs', '1h-5m', '٣s'])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError):
        banwatch.go_duration(text)


def in_pieces(data, seed):
    """`data` in pieces of random lengths."""
    luck = random.Random(seed)
    while data:
        n = luck.choice([1, 2, 3, 17, 300, 5000])
        yield data[:n]
        data = data[n:]


BODY = json.dumps({'deleted': [{'value': '192.0.2.%d' % n} for n in range(20)], 'new': [{'value': 'a"]}{\\', 'scenario': 'é', 'n': {'x': [1]}}] * 3}).encode()
ANSWERS = {
    'length': b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\nDate: Tue, 01 Dec 2026 05:16:52 GMT\r\n\r\n%s' % (len(BODY), BODY),
    'chunked': b'HTTP/1.1 200 OK\r\ntransfer-encoding:  Chunked\r\n\r\n' + b''.join(
        b'%x;x=y\r\n%s\r\n' % (len(BODY[at:at + 70]), BODY[at:at + 70]) for at in range(0, len(BODY), 70)) + b'0\r\n\r\n',
    'end': b'HTTP/1.0 200 OK\r\n\r\n' + BODY}


@pytest.mark.parametrize('form', sorted(ANSWERS))
@pytest.mark.parametrize('seed', range(3))
def test_an_answer_and_its_decisions_are_read_in_whatever_pieces_they_come(form, seed):
    found = []
    reader = banwatch.Decisions(lambda kind, row: found.append((kind, row)))
    answer = banwatch.Answer(reader.feed)
    ended = False
    for piece in in_pieces(ANSWERS[form], seed):
        assert not ended
        ended = answer.feed(piece)
    assert ended or answer.feed(b'') is True
    reader.close()
    assert answer.status == 200 and [kind for kind, _ in found] == ['deleted'] * 20 + ['new'] * 3
    assert found[0][1] == {'value': '192.0.2.0'} and found[-1][1]['n'] == {'x': [1]}


def test_both_parts_may_be_null_and_stand_in_either_order():
    for text, kinds in (b'{"deleted":null,"new":null}', []), (b' { "new" : [ {} ] , "deleted" : [{}] } \n', ['new', 'deleted']), (b'{}', []):
        found = []
        reader = banwatch.Decisions(lambda kind, row: found.append(kind))
        reader.feed(text)
        reader.close()
        assert found == kinds


@pytest.mark.parametrize('text', [
    b'null', b'[]', b'{"new":[{', b'{"new":[1,2]}', b'{"new":[{}]', b'{"new":[' + b'[' * 40000, b'{"new":[{"a":' + b'[' * 10000, b'<html>',
    b'{"new":[{"a":"' + b'x' * 20000, b'{"other":[]}'])
def test_what_is_no_list_of_decisions_is_refused_before_it_takes_memory(text):
    reader = banwatch.Decisions(lambda kind, row: None)
    with pytest.raises((ValueError, banwatch.Failed)):
        for piece in in_pieces(text, 1):
            reader.feed(piece)
        reader.close()


@pytest.mark.parametrize('text', [
    b'SSH-2.0-x\r\n\r\n', b'HTTP/2 200\r\n\r\n', b'x' * 20000, b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc',
    b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n', b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n' + b'1' * 200,
    b'HTTP/1.1 500 No\r\n\r\n' + b'x' * 70000])
def test_what_is_no_answer_is_refused(text):
    answer = banwatch.Answer()
    with pytest.raises(ValueError):
        for piece in in_pieces(text, 2):
            answer.feed(piece)


@pytest.mark.parametrize('row, why', [
    ({'type': 'captcha'}, ''), ({'scope': 'Country', 'value': 'AQ'}, ''), ({'value': 'x'}, ''), ({'value': None}, ''), ({'value': '0.0.0.0/0'}, ''),
    ({'value': '::/0'}, ''), ({'value': '64.0.0.0/2'}, ''), ({'value': '2000::/3'}, ''), ({'duration': 5}, ''), ({'duration': '1x'}, ''), ({'type': 5}, ''),
    ({'value': {'a': 1}}, ''), ({'scope': None}, '')])
def test_a_decision_that_bans_no_network_is_not_used(row, why):
    good = {'type': 'ban', 'scope': 'Ip', 'value': '192.0.2.7', 'duration': '1h', 'scenario': 's'}
    assert banwatch.decision(good) == ('192.0.2.7', 3600, 's')
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        banwatch.decision(dict(good, **row))


# --- in this process: a hub that is a function

class Hub:
    """A Local API as a FakeMachine's programs are: `answer` is called with each Request."""

    def __init__(self):
        self.now = []                # rows that are in force
        self.deleted = []            # told once
        self.fresh = []              # told once to who does not start up
        self.asked = []              # (method, path, body)
        self.status = {}             # the first word of a path behind /v1/ -> status of its answers
        self.away = ''
        self.key, self.token, self.password = 'KEY', 'T0', 'pw'

    def add(self, value, duration='1h', scenario='other/thing', **more):
        row = dict({'id': 1, 'origin': 'cscli', 'type': 'ban', 'scope': 'Range' if '/' in value else 'Ip', 'value': value, 'duration': duration,
                    'scenario': scenario}, **more)
        self.now.append(row)
        self.fresh.append(row)

    def delete(self, value):
        self.deleted += [dict(row, duration='-1s') for row in self.now if row['value'] == value]
        self.now = [row for row in self.now if row['value'] != value]

    def answer(self, command):
        if not isinstance(command, banwatch.Request):
            return '', ''
        if self.away:
            return self.away, ''
        head, _, body = command.text.partition(b'\r\n\r\n')
        lines = head.decode().split('\r\n')
        method, path, _ = lines[0].split()
        fields = dict(line.split(': ', 1) for line in lines[1:])
        self.asked.append((method, path, json.loads(body.decode()) if body else None))
        status, said = self.say(method, path, fields, json.loads(body.decode()) if body else None)
        text = json.dumps(said).encode()
        assert command.feed(b'HTTP/1.1 %d X\r\nDate: Tue, 01 Dec 2026 05:16:52 GMT\r\nContent-Length: %d\r\n\r\n' % (status, len(text)) + text)
        return '', ''

    def say(self, method, path, fields, body):
        word = path.split('/')[2].partition('?')[0]
        if word in self.status:
            return self.status[word], {'message': 'no \x1b[2J'}
        if '/stream' in path:
            if fields.get('X-Api-Key') != self.key:
                return 403, {'message': 'access forbidden'}
            rows = self.now if 'startup=true' in path else self.fresh
            deleted, self.deleted, self.fresh = self.deleted, [], []
            return 200, {'deleted': deleted or None, 'new': rows or None}
        if path.endswith('/login'):
            if body['password'] != self.password:
                return 401, {'code': 401, 'message': 'incorrect Username or Password'}
            return 200, {'code': 200, 'token': self.token}
        if fields.get('Authorization') != 'Bearer ' + self.token:
            return 401, {'code': 401}
        return (201, ['1']) if method == 'POST' else (200, {'nbDeleted': '1'})

    def pushed(self):
        return [body[0] for method, path, body in self.asked if path == '/v1/alerts']


@pytest.fixture
def fleet(tmp_path):
    """A function that starts a House with a Hub, `house.hub`."""
    def start(more='', pull='yes', firewall='none', nets=(), hub=None, **defaults):
        machine = FakeMachine()
        machine.nets = [banwatch.make_exempt(net, 'the LAN, br-lan') for net in nets]
        hub = hub or Hub()
        machine.answer = hub.answer
        text = '[crowdsec]\nurl = http://192.0.2.1:8080\nkey = KEY\nmachine = router\npassword = pw\npull = %s\n%s' % (pull, more)
        house = House(tmp_path, text=text, machine=machine, firewall=firewall, **defaults)
        house.hub = hub
        house.turn()
        return house
    return start


def rows(house):
    return {row['ip']: row for row in house.ask('banned', jail='crowdsec')['banned']}


def test_decisions_are_banned_until_their_end_and_deleted_ones_are_lifted(fleet):
    hub = Hub()
    hub.add('198.51.100.7', '10m')
    hub.add('2001:db8:5::/64', '1h')
    house = fleet(hub=hub, firewall='nft')
    assert {ip: row['left'] for ip, row in rows(house).items()} == {'198.51.100.7': 600, '2001:db8:5::/64': 3600}
    told = ''.join(command.stdin for command in house.machine.ran if not isinstance(command, banwatch.Request))
    assert '198.51.100.7 timeout 600s' in told and '2001:db8:5:: timeout 3600s' in told
    hub.add('198.51.100.8')
    hub.delete('2001:db8:5::/64')
    house.pass_time(10)
    assert set(rows(house)) == {'198.51.100.7', '198.51.100.8'}
    house.hub.away = 'Connection refused'
    house.pass_time(300)
    assert rows(house)['198.51.100.7']['left'] == 290                          # whatever becomes of the hub
    house.pass_time(300)
    assert set(rows(house)) == {'198.51.100.8'}
    status = house.ask('status')
    assert status['bans'] == 0 and [row['banned'] for row in status['jails'] if row['jail'] == 'crowdsec'] == [1]


def test_it_is_asked_each_interval_for_what_is_new_and_each_hour_for_all(fleet):
    house = fleet('interval = 20s\n')
    for _ in range(5):
        house.pass_time(20)
    paths = [path for _, path, _ in house.hub.asked]
    assert paths == ['/v1/decisions/stream?startup=true'] + ['/v1/decisions/stream?startup=false'] * 5
    house.pass_time(3600)
    assert house.hub.asked[-1][1].endswith('startup=true')


def test_a_pull_of_all_reconciles(fleet):
    hub = Hub()
    hub.add('198.51.100.7')
    hub.add('198.51.100.8', '2h')
    house = fleet(hub=hub)
    hub.now = [dict(hub.now[1], duration='5h'), dict(hub.now[1], value='198.51.100.9')]          # its database was replaced
    hub.fresh = []
    house.pass_time(3601)
    assert {ip: row['left'] for ip, row in rows(house).items()} == {'198.51.100.8': 18000, '198.51.100.9': 7200}


def test_after_anything_has_gone_wrong_all_is_pulled(fleet):
    house = fleet()
    house.hub.status['decisions'] = 500
    house.pass_time(10)
    assert house.ask('status')['wrong'] == ['crowdsec: http://192.0.2.1:8080: answers 500: no \\x1b[2J']
    del house.hub.status['decisions']
    house.hub.add('198.51.100.7')
    house.hub.fresh = []                                                       # it thinks that we know it
    house.pass_time(60)
    assert set(rows(house)) == {'198.51.100.7'} and house.ask('status')['wrong'] == [] and house.machine.said('crowdsec: works again')


def test_trouble_is_told_once_and_tried_later_and_later(fleet):
    house = fleet()
    house.hub.away = 'Connection refused'
    before = len(house.hub.asked)
    for _ in range(100):
        house.pass_time(3)
    assert sum('Connection refused' in line for line in house.machine.logged) == 1
    asked = [c for c in house.machine.ran if isinstance(c, banwatch.Request)]
    assert 5 < len(asked) - before < 20


def test_a_wrong_key_is_told(fleet):
    hub = Hub()
    hub.key = 'ANOTHER'
    house = fleet(hub=hub)
    assert house.ask('status')['wrong'] == ['crowdsec: http://192.0.2.1:8080: refuses us (403)']


def test_what_is_never_banned_is_left_out_and_told(fleet):
    hub = Hub()
    for net in '192.168.1.0/24', '192.168.0.0/16', '0.0.0.0/0', '::/0', '198.51.100.7', '192.0.2.1', '192.0.2.0/24', '127.0.0.1':
        hub.add(net)
    house = fleet(hub=hub, nets=['192.168.1.0/24'])
    assert set(rows(house)) == {'198.51.100.7'}
    (text,) = house.ask('status')['wrong']
    assert text == 'crowdsec: 3 decisions are never banned, as 192.168.1.0/24'
    answer = house.ask('status')['crowdsec']
    assert answer['exempt'] == 3 and answer['unusable'] == 4                    # two of which would cut us off from the hub


def test_of_too_many_those_that_last_longest_are_taken(fleet):
    hub = Hub()
    for n in range(50):
        hub.add('198.51.100.%d' % n, '%dm' % (10 + n))
    house = fleet('maxdecisions = 20\n', hub=hub)
    assert set(rows(house)) == {'198.51.100.%d' % n for n in range(30, 50)}
    assert house.ask('status')['wrong'] == ['crowdsec: no room for 30 decisions that end soonest (maxdecisions is 20)']
    hub.add('198.51.100.99', '5h')
    house.pass_time(10)
    assert set(rows(house)) == {'198.51.100.%d' % n for n in list(range(31, 50)) + [99]}


def test_only_what_is_asked_for_is_taken(fleet):
    hub = Hub()
    hub.add('198.51.100.7')
    hub.add('198.51.100.0/24')
    house = fleet('scopes = range\norigins = cscli, CAPI\n', hub=hub)
    assert set(rows(house)) == {'198.51.100.0/24'} and hub.asked[0][1].endswith('&origins=cscli,CAPI')


def test_its_ports_and_forwarding_are_those_of_its_section(fleet):
    hub = Hub()
    hub.add('198.51.100.7')
    house = fleet('port = ssh\nprotocol = tcp udp\nforward = no\n', hub=hub, firewall='nft')
    told = ''.join(command.stdin for command in house.machine.ran if not isinstance(command, banwatch.Request))
    name = re.search(r'add element inet banwatch (\w+) \{ 198', told).group(1)
    assert 'tcp dport 22 ip saddr @%s' % name in told and 'udp dport 22 ip saddr @%s' % name in told
    assert '@' + name not in told.partition('chain forward')[2].partition('\n}')[0]


def test_a_decision_lifted_by_hand_stays_lifted_until_the_hub_has_forgotten_it(fleet):
    hub = Hub()
    hub.add('198.51.100.7', '9h')
    hub.add('198.51.100.8', '9h')
    house = fleet(hub=hub)
    assert house.ask('unban', networks=['198.51.100.7'])['unbanned'] == ['198.51.100.7']
    house.pass_time(3601)
    assert set(rows(house)) == {'198.51.100.8'}
    house.stop()
    house.restart()
    house.machine.answer = hub.answer
    house.pass_time(61)
    assert set(rows(house)) == {'198.51.100.8'}
    hub.delete('198.51.100.7')
    house.pass_time(10)
    hub.add('198.51.100.7', '9h')
    house.pass_time(10)
    assert set(rows(house)) == {'198.51.100.7', '198.51.100.8'}


# pushed

def test_each_new_ban_of_our_own_is_told_as_the_api_wants_it(fleet):
    house = fleet(pull='no')
    house.fail('198.51.100.7', 3)
    house.ask('ban', networks=['2001:db8:5:6::/64', '203.0.113.9'], seconds=-1)
    house.turn()
    one, two, three = house.hub.pushed()
    assert one['scenario'] == 'banwatch/dropbear' and one['events_count'] == 3 and one['source'] == {
        'scope': 'Ip', 'value': '198.51.100.7', 'ip': '198.51.100.7'}
    assert one['decisions'] == [{'origin': 'crowdsec', 'type': 'ban', 'scope': 'Ip', 'value': '198.51.100.7', 'duration': '600s',
                                 'scenario': 'banwatch/dropbear'}]
    assert one['stop_at'] == '2026-12-01T05:16:52Z'                             # by the hub's clock
    assert two['source'] == {'scope': 'Range', 'value': '2001:db8:5:6::/64'} and two['decisions'][0]['duration'].endswith('s')
    assert three['scenario'] == 'banwatch/manual' and set(one) >= set(
        'scenario scenario_hash scenario_version message events_count start_at stop_at capacity leakspeed simulated events source'.split())
    assert house.ask('status')['crowdsec']['pushed'] == 3


def test_alerts_leave_the_decision_to_the_hub(fleet):
    house = fleet('push = alerts\n', pull='no')
    house.fail('198.51.100.7', 3)
    (one,) = house.hub.pushed()
    assert 'decisions' not in one and one['remediation'] is True


def test_push_may_be_off(fleet):
    house = fleet('push = no\n')
    house.fail('198.51.100.7', 3)
    assert house.hub.pushed() == [] and house.banned() == ['198.51.100.7']


def test_our_own_bans_come_back_and_change_nothing(fleet):
    house = fleet()
    house.fail('198.51.100.7', 3)
    house.hub.add('198.51.100.7', '600s', 'banwatch/dropbear')
    house.hub.add('198.51.100.8', '600s', 'banwatch/dropbear')                # another router's
    house.pass_time(10)
    assert set(rows(house)) == {'198.51.100.8'}
    house.stop()
    house.restart()
    house.machine.answer = house.hub.answer
    house.pass_time(1)
    assert set(rows(house)) == {'198.51.100.8'}
    house.hub.add('198.51.100.7', '5h', 'banwatch/dropbear')                  # ours was not so long
    house.pass_time(10)
    assert set(rows(house)) == {'198.51.100.7', '198.51.100.8'}


def test_a_ban_lifted_by_hand_is_withdrawn_but_not_one_that_ends(fleet):
    house = fleet(pull='no')
    house.ask('ban', networks=['198.51.100.7', '2001:db8::/64'])
    house.turn()
    house.ask('unban', networks=['198.51.100.7', '2001:db8::/64'])
    house.turn()
    assert [path for method, path, _ in house.hub.asked if method == 'DELETE'] == [
        '/v1/decisions?scopes=Ip&value=198.51.100.7&scenario=banwatch/manual',
        '/v1/decisions?scopes=Range&value=2001:db8::/64&scenario=banwatch/manual']
    before = len(house.hub.asked)
    house.ask('ban', networks=['198.51.100.8'], seconds=30)
    house.pass_time(31)
    assert house.banned() == [] and not [1 for method, _, _ in house.hub.asked[before:] if method == 'DELETE']


def test_a_ban_that_was_never_told_is_not_withdrawn_but_forgotten(fleet):
    house = fleet(pull='no')
    house.hub.away = 'Connection refused'
    house.ask('ban', networks=['198.51.100.7'])
    house.ask('unban', networks=['198.51.100.7'])
    house.hub.away = ''
    house.pass_time(60)
    assert house.hub.pushed() == [] and house.ask('status')['crowdsec']['waiting'] == 0


def test_what_waits_survives_a_restart_and_is_told_in_order(fleet):
    house = fleet(pull='no')
    house.hub.away = 'Connection refused'
    house.ask('ban', networks=['198.51.100.%d' % n for n in range(5)])
    assert house.ask('status')['crowdsec']['waiting'] == 5
    house.stop()
    (house.folder / 'run' / 'state.json').unlink()                              # a reboot
    house.restart('boot-2')
    house.machine.answer = house.hub.answer
    house.hub.away = ''
    house.pass_time(60)
    assert [row['source']['value'] for row in house.hub.pushed()] == ['198.51.100.%d' % n for n in range(5)]


def test_one_that_the_hub_refuses_spoils_no_other(fleet):
    house = fleet(pull='no')
    house.hub.say, usual = lambda method, path, fields, body: (
        (500, {'message': 'validation failure list'}) if body and path == '/v1/alerts' and body[0]['source']['value'] == '198.51.100.1'
        else usual(method, path, fields, body)), house.hub.say
    house.ask('ban', networks=['198.51.100.0', '198.51.100.1', '198.51.100.2'])
    for _ in range(10):
        house.pass_time(10)
    assert [row['source']['value'] for row in house.hub.pushed() if row['source']['value'] != '198.51.100.1'] == ['198.51.100.0', '198.51.100.2']
    assert house.ask('status')['crowdsec']['refused'] == 1 and house.machine.said('198.51.100.1 is given up')


def test_the_outbox_is_bounded_and_the_oldest_go(fleet, monkeypatch):
    monkeypatch.setattr(banwatch, 'MOST_WAITING', 10)
    house = fleet(pull='no')
    house.hub.away = 'Connection refused'
    house.ask('ban', networks=['198.51.100.%d' % n for n in range(15)])
    answer = house.ask('status')['crowdsec']
    assert answer['waiting'] == 10 and answer['lost'] == 5


def test_a_login_that_the_hub_has_forgotten_is_made_again(fleet):
    house = fleet(pull='no')
    house.ask('ban', networks=['198.51.100.1'])
    house.turn()
    house.hub.token = 'T1'
    house.ask('ban', networks=['198.51.100.2'])
    house.turn()
    assert [row['source']['value'] for row in house.hub.pushed()] == ['198.51.100.1', '198.51.100.2']
    house.hub.password = 'other'
    house.hub.token = 'T2'
    house.ask('ban', networks=['198.51.100.3'])
    house.turn()
    assert house.ask('status')['wrong'] == ['crowdsec push: http://192.0.2.1:8080: login of router refuses us (401)']
    assert 'pw' not in ' '.join(house.machine.logged)


@pytest.mark.parametrize('token', [None, 5, 'a\r\nX: y', '', 'a' * 9999])
def test_a_token_that_is_none_goes_into_no_header(fleet, token):
    hub = Hub()
    hub.token = token
    house = fleet(pull='no', hub=hub)
    house.ask('ban', networks=['198.51.100.1'])
    house.turn()
    assert house.ask('status')['wrong'] and house.hub.pushed() == []


def test_a_reload_without_the_section_lifts_its_bans(fleet):
    hub = Hub()
    hub.add('198.51.100.7')
    house = fleet(hub=hub)
    house.text = ''
    house.ask('reload')
    house.turn()
    assert house.banned() == [] and 'crowdsec' not in house.ask('status')
    asked = len(hub.asked)
    house.pass_time(600)
    assert len(hub.asked) == asked


def test_nonsense_in_the_state_file_is_counted_and_left_out(fleet):
    wing = fleet().daemon.wing('crowdsec')
    lost = wing.load({'outbox': [5, [True, 'sshd', '192.0.2.1', -1, 3], ['x'], [False, 'sshd', 'x', 1, 1]], 'pushed': [[], ['sshd', '192.0.2.1', 5]],
                      'lifted': [7, '192.0.2.3', None]}, 100, 0)
    assert lost == 6 and list(wing.outbox) == [(True, 'sshd', '192.0.2.1', None, 3)] and list(wing.lifted) == ['192.0.2.3']
    assert wing.load('x', 0, 0) == 0


@pytest.mark.parametrize('text, why', [
    ('url = ftp://x', 'is not an address'), ('url = http://x:99999', 'is not an address'), ('url = http://a b', 'is not an address'),
    ('url = http://x', 'pull: needs a `key`'), ('url = http://x\npull = no\nmachine = m', 'machine: needs a `password`'),
    ('key = a b', 'key:'), ('push = maybe', 'is not one of: bans alerts no'), ('scopes = country', 'is not a choice of: ip range')])
def test_a_mistake_in_its_section_is_told(text, why):
    config, problems = banwatch.read_config('[crowdsec]\n' + text, 'c')
    assert any(why in problem for problem in problems + banwatch.check_hub(config))


def test_without_the_section_nothing_of_it_is_there(tmp_path):
    house = House(tmp_path)
    wing = house.daemon.wing('crowdsec')
    assert wing.workers == () and 'crowdsec' not in house.daemon.judge.jails.by_name and 'crowdsec' not in house.ask('status')


# --- over real sockets: a hub that means no good, or is slow

class Server:
    """An HTTP server in a thread; `say(path)` yields the bytes of an answer, or sleeps, or ends."""

    def __init__(self, say, family=socket.AF_INET, place=('127.0.0.1', 0)):
        self.sock = socket.socket(family)
        self.sock.bind(place)
        self.sock.listen(10)
        self.say, self.ended = say, False
        self.asked = []
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        while not self.ended:
            try:
                sock, _ = self.sock.accept()
            except OSError:
                return
            threading.Thread(target=self.answer, args=(sock,), daemon=True).start()

    def answer(self, sock):
        with sock:
            text = b''
            while b'\r\n\r\n' not in text:
                data = sock.recv(65536)
                if not data:
                    return
                text += data
            path = text.split()[1].decode()
            self.asked.append(path)
            try:
                for piece in self.say(path):
                    sock.sendall(piece)
            except OSError:
                pass

    def close(self):
        self.ended = True
        try:
            self.sock.shutdown(socket.SHUT_RDWR)   # else its thread would take the connections of whoever gets this descriptor next
        except OSError:
            pass
        self.thread.join(5)
        self.sock.close()


def said(value, status=b'200 OK'):
    text = json.dumps(value).encode()
    return b'HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s' % (status, len(text), text)


def row_of(value, duration='1h'):
    return {'id': 1, 'origin': 'cscli', 'type': 'ban', 'scope': 'Ip', 'value': value, 'duration': duration, 'scenario': 's'}


class Timed(banwatch.Machine):
    """A real machine, which notes how long each turn of its loop has taken."""

    def __init__(self):
        super().__init__()
        self.logged, self.longest = [], 0
        call = self.loop.call

        def timed(function):
            began = time.thread_time()
            call(function)
            self.longest = max(self.longest, time.thread_time() - began)
        self.loop.call = timed

    def log(self, text):
        self.logged.append(text)


@pytest.fixture
def real(tmp_path):
    """A function that starts a daemon in this process, on a real machine, with a Server; `until(question)` turns its loop."""
    made = []

    def start(say, more='', **how):
        server = Server(say, **how)
        url = 'unix:' + server.sock.getsockname() if isinstance(server.sock.getsockname(), str) else 'http://127.0.0.1:%d' % server.sock.getsockname()[1]
        config, problems = banwatch.read_config(
            '[banwatch]\nsource = fifo:%s/log\nfirewall = none\nruntime = %s/run\nstate = %s/state\n[DEFAULT]\nignoreself = no\n[crowdsec]\n'
            'url = %s\nkey = KEY\ninterval = 1s\n%s' % (tmp_path, tmp_path, tmp_path, url, more), 'c')
        assert not problems
        daemon = banwatch.Daemon(Timed(), config, requests=banwatch.request_table())
        daemon.start()
        daemon.machine.longest = 0
        daemon.server = server
        made.append(daemon)

        def until(question, seconds=10):
            deadline = time.monotonic() + seconds
            while not question():
                assert time.monotonic() < deadline, daemon.machine.logged
                daemon.loop.due()
                daemon.loop.call(daemon.settle)
                wait = daemon.loop.due()
                daemon.loop.wait(min(0.05, 1 if wait is None else wait))
        daemon.until = until
        daemon.pulled = lambda: sorted(daemon.judge.bans.lists.get('crowdsec', ()))
        return daemon
    yield start
    for daemon in made:
        daemon.server.close()
        daemon.stop()
        os.close(daemon.machine.lock_fd)


def test_a_hub_behind_a_unix_socket(real, tmp_path):
    daemon = real(lambda path: [said({'new': [row_of('198.51.100.7')], 'deleted': None})], family=socket.AF_UNIX, place=str(tmp_path / 'hub.sock'))
    daemon.until(daemon.pulled)
    assert daemon.pulled() == ['198.51.100.7']


def endless(path):
    yield b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n'
    while True:
        yield b'1000\r\n' + b' ' * 4096 + b'\r\n'


def endless_head(path):
    yield b'HTTP/1.1 200 OK\r\n'
    while True:
        yield b'X: ' + b'y' * 1000 + b'\r\n'


def endless_decisions(path):
    yield b'HTTP/1.1 200 OK\r\n\r\n{"new":['
    n = 0
    while True:
        n += 1
        yield (json.dumps(row_of('10.%d.%d.%d' % (n >> 16 & 255, n >> 8 & 255, n & 255))) + ',').encode()


HOSTILE = {
    'endless blanks': (endless, 'nonsense'), 'an endless head': (endless_head, 'is no HTTP server'),
    'deep json': (lambda path: [b'HTTP/1.1 200 OK\r\n\r\n{"new":[{"a":' + b'[' * 100000], 'nonsense'),
    'half an answer': (lambda path: [b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"new":['], 'half an answer'),
    'no answer': (lambda path: [], 'half an answer'), 'another protocol': (lambda path: [b'SSH-2.0-x\r\n' + b'x' * 20000], 'is no HTTP server'),
    'a redirect': (lambda path: [b'HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n'], 'answers 302'),
    'wrong types': (lambda path: [said({'new': 5})], 'nonsense'), 'no json': (lambda path: [b'HTTP/1.1 200 OK\r\n\r\n<html>\r\n'], 'nonsense')}


@pytest.mark.parametrize('what', sorted(HOSTILE))
def test_a_hostile_hub_is_told_as_trouble_and_does_not_hold_up_the_loop(real, what):
    say, why = HOSTILE[what]
    daemon = real(say)
    daemon.until(daemon.wrong)
    assert why in daemon.wrong()[0] and daemon.pulled() == []
    assert not any('Traceback' in line for line in daemon.machine.logged), daemon.machine.logged
    assert daemon.machine.longest < 0.2


@pytest.mark.slow
def test_more_decisions_than_anybody_has_are_cut_off(real, monkeypatch):
    monkeypatch.setattr(banwatch, 'STREAM_BYTES', 4 << 20)
    daemon = real(endless_decisions, 'maxdecisions = 1000\n')
    daemon.until(daemon.wrong, 60)
    assert 'sends more than can be read' in daemon.wrong()[0] and daemon.pulled() == [] and daemon.machine.longest < 0.2


def test_strange_decisions_are_counted_and_the_good_ones_used(real):
    rows = [{}, dict(row_of('x')), dict(row_of('198.51.100.9'), duration=None), row_of('198.51.100.7'), row_of('0.0.0.0/0'),
            dict(row_of('198.51.100.8'), scenario=None, origin=['x'])]
    daemon = real(lambda path: [said({'new': rows, 'deleted': [row_of('y')]})])
    daemon.until(daemon.pulled)
    assert daemon.pulled() == ['198.51.100.7', '198.51.100.8']


def test_a_slow_hub_holds_up_nobody(real):
    def slow(path):
        for byte in said({'new': [row_of('198.51.100.7')], 'deleted': None}):
            yield bytes([byte])
            time.sleep(0.005)
    daemon = real(slow)
    daemon.until(daemon.pulled)
    assert daemon.machine.longest < 0.05


def test_a_hub_that_never_answers_is_given_up_in_time(real, monkeypatch):
    monkeypatch.setattr(banwatch.HubWorker, 'seconds', 1)
    daemon = real(lambda path: iter(lambda: time.sleep(0.2) or b'', 1))
    daemon.until(daemon.wrong)
    assert daemon.wrong() == ['crowdsec: no answer in time']


def test_nobody_there_is_told(real):
    daemon = real(lambda path: [])
    daemon.server.close()
    port = daemon.config.get('crowdsec', 'url')
    daemon.until(daemon.wrong)
    assert re.match('crowdsec: (Connection refused|half an answer)', daemon.wrong()[0]), port


def test_twenty_thousand_decisions_come_and_go_in_short_turns(real):
    rows = [row_of('%d.%d.%d.%d' % (20 + n % 50, n >> 16, n >> 8 & 255, n & 255), '%dh' % (n % 90 + 1)) for n in range(20000)]
    state = {'new': rows, 'deleted': None}
    daemon = real(lambda path: [said(state)], 'maxdecisions = 20000\n')
    daemon.until(lambda: len(daemon.pulled()) == 20000, 30)
    state.update(new=None, deleted=rows)
    daemon.until(lambda: not daemon.pulled(), 30)
    assert daemon.machine.longest < 0.2            # 0.02 on a quiet machine


def test_tls_is_spoken_and_a_certificate_of_nobody_is_refused(real, tmp_path, monkeypatch):
    need('openssl')
    import ssl
    key, cert = str(tmp_path / 'key'), str(tmp_path / 'cert')
    subprocess.run(['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', key, '-out', cert, '-days', '2', '-subj', '/CN=hub',
                    '-addext', 'subjectAltName=IP:127.0.0.1'], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    rows = [row_of('198.51.%d.%d' % (n >> 8, n & 255)) for n in range(600)]

    class Secure(Server):
        def answer(self, sock):
            try:
                super().answer(context.wrap_socket(sock, server_side=True))
            except OSError:
                pass
    monkeypatch.setattr(sys.modules[__name__], 'Server', Secure)
    usual = banwatch.read_config
    monkeypatch.setattr(banwatch, 'read_config', lambda text, name: usual(text.replace('http:', 'https:'), name))
    daemon = real(lambda path: [said({'new': rows, 'deleted': None})])
    daemon.until(daemon.wrong)
    assert 'certificate' in daemon.wrong()[0].lower() and daemon.pulled() == []
    monkeypatch.setenv('SSL_CERT_FILE', cert)
    daemon.until(daemon.pulled)
    daemon.until(lambda: len(daemon.pulled()) == 600)


def test_https_without_the_module_is_one_error_that_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, 'ssl', None)
    config, _ = banwatch.read_config('[crowdsec]\nurl = https://hub.example.net\nkey = K\n', 'c')
    assert banwatch.check_hub(config) == ['c:2: url: https needs the module ssl of Python (OpenWrt: opkg install python3-openssl)']


# --- a real one, and two routers

CONFIG = """\
common: {{daemonize: false, log_media: stdout, working_dir: {0}}}
config_paths: {{config_dir: {0}, data_dir: {0}, simulation_path: {0}/simulation.yaml, hub_dir: {0}/hub, index_path: {0}/hub/.index.json}}
db_config: {{type: sqlite, db_path: {0}/crowdsec.db, use_wal: true}}
api:
  client: {{credentials_path: {0}/credentials.yaml}}
  server: {{listen_uri: '{1}', profiles_path: {0}/profiles.yaml, trusted_ips: [127.0.0.1, 192.168.1.1]}}
prometheus: {{enabled: false}}
"""
PROFILES = """\
name: default_ip_remediation
filters: ['Alert.Remediation == true']
decisions: [{type: ban, duration: 4h}]
on_success: break
"""


class CrowdSec:
    """Debian's crowdsec on the router: its Local API alone."""

    def __init__(self, network, place):
        self.network, self.place = network, place
        self.folder = network.path('crowdsec')
        os.makedirs(self.folder + '/hub')
        for name, text in [('config.yaml', CONFIG.format(self.folder, place)), ('profiles.yaml', PROFILES), ('simulation.yaml', 'simulation: off\n'),
                           ('hub/.index.json', '{}'), ('credentials.yaml', 'url: http://%s\nlogin: x\npassword: y\n' % place)]:
            with open(os.path.join(self.folder, name), 'w') as f:
                f.write(text)
        self.cscli('machines', 'add', 'cli', '--password', 'x', '-f', self.folder + '/credentials.yaml', '--force', '-u', 'http://' + place)
        self.start()

    def cscli(self, *words):
        return self.network.router.output(['cscli', '-c', self.folder + '/config.yaml'] + list(words))

    def start(self, *before):
        with open(self.folder + '/log', 'ab') as log:
            self.process = self.network.router.popen(
                list(before) + ['crowdsec', '-c', self.folder + '/config.yaml', '-no-cs', '-no-capi'], stdout=log, stderr=log)
        host, port = self.place.split(':')
        assert poll(lambda: self.network.router.reached([(host, int(port), None)], 0.2) == [True], 20)

    def stop(self):
        self.process.kill()
        self.process.wait(10)

    def decisions(self):
        """value -> scenario of what is in force."""
        rows = json.loads(self.cscli('decisions', 'list', '-o', 'json')) or []
        return {row['decisions'][0]['value']: row['decisions'][0]['scenario'] for row in rows}


@pytest.fixture
def routers(network):
    """(a CrowdSec, the daemon on the router, a second one on the host in its LAN), the interval being a second."""
    need('crowdsec', 'cscli', 'nft', root=True)
    from network import Daemon
    hub = CrowdSec(network, '192.168.1.1:8080')
    made = [hub]
    for name, host in ('one', network.router), ('two', network.lan):
        hub.cscli('machines', 'add', name, '--password', 'pw', '-f', '/dev/null', '--force')
        hub.cscli('bouncers', 'add', name, '-k', 'KEY' + name)

        class Router(Daemon):
            def popen(self, argv, **more):
                return self.host.popen(argv, **more)

            def run(self, argv, **more):
                return self.host.run(argv, **more)
        Router.host = host
        Router.hub = hub
        folder = os.path.join(network.directory, name)
        os.mkdir(folder)
        keep, network.directory = network.directory, folder
        section = '[crowdsec]\nurl = http://192.168.1.1:8080\nkey = KEY%s\nmachine = %s\npassword = pw\ninterval = 1s\n' % (name, name)
        made.append(Router(network, section, source='fifo:%s/fifo' % folder, firewall='nft', maxretry=3))
        network.directory = keep
    yield made
    for daemon in made[1:]:
        daemon.close()
    hub.stop()


def in_nft(daemon, ip):
    return ip in daemon.host.output(['nft', 'list', 'ruleset'])


@pytest.mark.slow
def test_who_guesses_at_one_router_is_dropped_by_the_others_kernel(routers):
    hub, one, two = routers
    one.fail('198.51.100.7')
    two.until(lambda: in_nft(two, '198.51.100.7'), 'the ban at the other one', 4)
    assert [row['jail'] for row in two.bans('198.51.100.7')] == ['crowdsec']
    assert hub.decisions() == {'198.51.100.7': 'banwatch/dropbear'}
    time.sleep(2.5)
    assert [row['jail'] for row in one.bans('198.51.100.7')] == ['dropbear']  # and its own does not come back
    one.fail('2001:db8:bad::7')
    two.until(lambda: two.bans('2001:db8:bad::7'), 'the IPv6 ban', 4)
    assert one.command('unban', '198.51.100.7').returncode == 0
    two.until(lambda: not two.bans('198.51.100.7'), 'the end of the ban', 4)
    assert not in_nft(two, '198.51.100.7') and '198.51.100.7' not in hub.decisions()


@pytest.mark.slow
def test_what_cscli_decides_comes_and_goes_whatever_happens_to_the_hub(routers):
    hub, one, two = routers
    hub.cscli('decisions', 'add', '--ip', '198.51.100.8', '--duration', '10m')
    hub.cscli('decisions', 'add', '--range', '203.0.112.0/24', '--duration', '10m')
    hub.cscli('decisions', 'add', '--ip', '192.168.1.2', '--duration', '10m')               # of the LAN
    for daemon in one, two:
        daemon.until(lambda: in_nft(daemon, '198.51.100.8') and in_nft(daemon, '203.0.112.0'), 'the decisions', 5)
        assert not daemon.bans('192.168.1.2') and any('never banned, as 192.168.1.2' in text for text in daemon.ask('status')['wrong'])
    hub.stop()
    one.fail('198.51.100.7')
    one.wait_banned('198.51.100.7')
    one.until(lambda: any(text.startswith('crowdsec') for text in one.ask('status')['wrong'] if 'never' not in text), 'the trouble')
    assert one.bans('198.51.100.8') and one.ask('status')['crowdsec']['waiting'] == 1
    hub.start()
    two.until(lambda: two.bans('198.51.100.7'), 'the ban told late', 20)
    hub.cscli('decisions', 'delete', '--ip', '198.51.100.8')
    for daemon in one, two:
        daemon.until(lambda: not daemon.bans('198.51.100.8'), 'the deletion', 5)
    hub.stop()
    for name in os.listdir(hub.folder):
        if name.startswith('crowdsec.db'):
            os.remove(os.path.join(hub.folder, name))
    for name in 'one', 'two':
        hub.cscli('machines', 'add', name, '--password', 'pw', '-f', '/dev/null', '--force')
        hub.cscli('bouncers', 'add', name, '-k', 'KEY' + name)
    two.until(lambda: 'Connection refused' in ' '.join(two.ask('status')['wrong']), 'the trouble')
    hub.cscli('machines', 'add', 'cli', '--password', 'x', '-f', hub.folder + '/credentials.yaml', '--force', '-u', 'http://' + hub.place)
    hub.start()
    two.until(lambda: not two.bans('203.0.112.0'), 'what its new database does not hold', 30)
    one.fail('198.51.100.8')
    two.until(lambda: two.bans('198.51.100.8'), 'a ban told to the new one', 10)


@pytest.mark.slow
def test_a_router_whose_clock_is_an_hour_off_bans_for_as_long_as_others(routers):
    """Go asks the kernel for the time, so it is ours that is turned."""
    libraries = glob.glob('/usr/lib/*/faketime/libfaketime.so.1')
    if not libraries:
        need('libfaketime')
    hub, one, two = routers
    one.stop()
    usual = one.popen
    one.popen = lambda argv, **more: usual(['env', 'LD_PRELOAD=' + libraries[0], 'FAKETIME=+3600', 'FAKETIME_NO_CACHE=1'] + list(argv), **more)
    one.start()
    one.fail('198.51.100.7')
    two.until(lambda: two.bans('198.51.100.7'), 'the ban', 15)
    assert 590 < two.bans('198.51.100.7')[0]['left'] <= 601
    hub.cscli('decisions', 'add', '--ip', '198.51.100.8', '--duration', '10m')
    one.until(lambda: one.bans('198.51.100.8'), 'the decision')
    assert 590 < one.bans('198.51.100.8')[0]['left'] <= 601


@pytest.mark.slow
def test_wrong_keys_are_told_by_status_and_doctor(routers):
    hub, one, two = routers
    one.conf.write_text(one.conf.read_text().replace('KEYone', 'WRONG').replace('password = pw', 'password = no'))
    assert one.command('reload').returncode == 0
    one.fail('198.51.100.7')
    one.until(lambda: len(one.ask('status')['wrong']) >= 2, 'the trouble')
    assert 'refuses us (403)' in ' '.join(one.ask('status')['wrong']) and 'refuses us (401)' in ' '.join(one.ask('status')['wrong'])
    doctor = one.command('doctor').stdout
    assert re.search(r"PROBLEM.*8080 refuses us \(403\)", doctor) and re.search(r"PROBLEM.*login of one refuses us \(401\)", doctor), doctor
    doctor = two.command('doctor').stdout
    assert '8080 takes the key' in doctor and 'two may push' in doctor, doctor


def test_the_summary_tells_what_came_and_went(fleet):
    hub = Hub()
    for n in range(5):
        hub.add('198.51.100.%d' % n)
    house = fleet(hub=hub)
    hub.delete('198.51.100.1')
    house.pass_time(10)
    house.fail('198.51.100.9', 3)
    health = house.ask('report')['summary']['health']
    assert health['crowdsec'] == {'new': 5, 'gone': 1, 'pushed': 1, 'lost': 0, 'refused': 0}
    assert 'crowdsec: 5 decisions pulled, 1 withdrawn, 1 bans pushed' in banwatch.health_text(health, 60)
