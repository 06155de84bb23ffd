"""The state files: what is written comes back, whatever the clocks did, and whatever was done to the file."""
import json
import os
import random
import re
import subprocess
import sys
import time

import pytest

import banwatch
from conftest import need
from harness import FakeMachine, House

NOW, WALL = 5000.0, 1800000000.0


def clocks(boot='boot-1', ticks=NOW, wall=WALL):
    return boot, ticks, wall


def some_state():
    bans, fails = banwatch.Bans(100), banwatch.Fails(100)
    bans.add('sshd', '192.0.2.7', NOW - 100, 600, 5)
    bans.add('sshd', '2001:db8::/64', NOW - 50, banwatch.FOREVER, 6)
    bans.add('luci', '198.51.100.0/24', NOW - 100, 50, 5)
    bans.remove(('luci', '198.51.100.0/24'))
    for ago in (300, 200):
        fails.add(('dropbear', '192.0.2.9'), NOW - ago, 1, 600, 5)
    return bans, fails


def dumped(**more):
    bans, fails = some_state()
    text = banwatch.dump(bans, fails, {('sshd', '192.0.2.5', 'root'): NOW + 99}, {'/log': [1]}, [banwatch.Report(NOW)], {('root', '192.0.2.5'): NOW - 50}, clocks())
    return dict(json.loads(text), **more)


def loaded(state, **now):
    return banwatch.load(json.dumps(state), clocks(**now))


def until(restored):
    return {t.network: t.until for t in restored.tickets}


def test_everything_comes_back():
    back = loaded(dumped())
    assert until(back) == {'192.0.2.7': NOW + 500, '2001:db8::/64': None}
    ticket = [t for t in back.tickets if t.network == '192.0.2.7'][0]
    assert (ticket.jail, ticket.since, ticket.count, ticket.failures) == ('sshd', NOW - 100, 1, 5)
    assert back.history[('luci', '198.51.100.0/24')] == (1, NOW - 50)
    assert back.fails == {('dropbear', '192.0.2.9'): [NOW - 300, NOW - 200]}
    assert back.logins == {('sshd', '192.0.2.5', 'root'): NOW + 99}
    assert back.sources == {'/log': [1]} and back.lost == 0


def test_in_the_same_boot_the_boot_clock_decides_whatever_the_wall_clock_did():
    for wall in (0, WALL - 3600, WALL + 10 ** 9):
        assert until(loaded(dumped(), ticks=NOW + 60, wall=wall))['192.0.2.7'] == NOW + 500


def test_after_a_reboot_the_wall_clock_decides():
    assert until(loaded(dumped(), boot='boot-2', ticks=30, wall=WALL + 60))['192.0.2.7'] == 30 + 440


@pytest.mark.parametrize('wall', [0, 946684800, WALL - 1])
def test_after_a_reboot_with_a_clock_that_cannot_be_true_no_time_has_passed(wall):
    assert until(loaded(dumped(), boot='boot-2', ticks=30, wall=wall))['192.0.2.7'] == 30 + 500


def test_a_state_written_before_the_clock_was_set_counts_no_time_either():
    assert until(loaded(dumped(wall=100.0), boot='boot-2', ticks=30, wall=WALL))['192.0.2.7'] == 30 + 500


def test_the_kept_copy_holds_bans_and_history_but_no_failures():
    bans, fails = some_state()
    kept = json.loads(banwatch.dump_kept(bans, [banwatch.Report(NOW)], {}, clocks())[0])
    assert set(kept) == {'banwatch', 'boot', 'ticks', 'wall', 'bans', 'history', 'homes', 'report'}
    assert until(banwatch.load(json.dumps(kept), clocks())) == {'192.0.2.7': NOW + 500, '2001:db8::/64': None}


def test_the_kept_copy_is_bounded_and_the_longest_remaining_come_first():
    bans = banwatch.Bans(40000)
    for n in range(30000):
        bans.add('sshd', '10.%d.%d.7' % (n >> 8, n & 255), NOW, 100 + n, 5)
    bans.add('sshd', '192.0.2.7', NOW, banwatch.FOREVER, 5)
    text, left = banwatch.dump_kept(bans, [banwatch.Report(NOW)], {}, clocks())
    assert 1000 * 1024 < len(text) <= banwatch.KEPT_BYTES == 1 << 20
    rows = json.loads(text)['bans']
    assert left == 30001 - len(rows) > 0
    assert rows[0][1] == '192.0.2.7' and rows[1][2] == 100 + 29999
    lefts = [row[2] for row in rows[1:]]
    assert lefts == sorted(lefts, reverse=True)


def test_a_thousand_bans_cost_far_less_than_a_megabyte():
    bans = banwatch.Bans(20000)
    for n in range(1000):
        bans.add('sshd', '10.%d.%d.7' % (n >> 8, n & 255), NOW, 600, 5)
    assert len(banwatch.dump_kept(bans, [banwatch.Report(NOW)], {}, clocks())[0]) < 120000


# --- hostile and torn files

@pytest.mark.parametrize('text', ['', '{', '[]', '1', 'null', '"x"', '{}', '{"banwatch":99}', '[' * 100000, '\x00\xff',
                                  '{"banwatch":"1"}'])
def test_what_is_no_state_is_refused_as_a_whole(text):
    with pytest.raises((ValueError, RecursionError)):
        banwatch.load(text, clocks())


BAD_BANS = [
    None, 5, 'x', [], ['sshd'], ['sshd', '999.1.2.3', 5, 5, 1, 1], ['sshd', '192.0.2.7; reboot', 5, 5, 1, 1],
    [5, '192.0.2.7', 5, 5, 1, 1], ['sshd', 3232235777, 5, 5, 1, 1], ['sshd', '192.0.2.7', 1e99, 5, 1, 1],
    ['sshd', '192.0.2.7', float('nan'), 5, 1, 1], ['sshd', '192.0.2.7', float('inf'), 5, 1, 1],
    ['sshd', '192.0.2.7', -5, 5, 1, 1], ['sshd', '192.0.2.7', True, 5, 1, 1], ['sshd', '192.0.2.7', '5', 5, 1, 1],
    ['sshd', '192.0.2.7', 5, 5, -1, 1], ['s' * 99, '192.0.2.7', 5, 5, 1, 1], [['sshd'], '192.0.2.7', 5, 5, 1, 1],
    {'a': 1}, ['sshd', '192.0.2.7', 5, 5, 1, 1, 1]]


@pytest.mark.parametrize('row', BAD_BANS)
def test_a_bad_row_is_left_out_and_the_others_are_kept(row):
    state = dumped()
    state['bans'].insert(0, row)
    back = loaded(state)
    assert back.lost == 1 and set(until(back)) == {'192.0.2.7', '2001:db8::/64'}


@pytest.mark.parametrize('clock', ['boot', 'ticks', 'wall'])
@pytest.mark.parametrize('value', [None, 'x', [], float('nan'), 1e99])
def test_a_state_whose_clocks_are_spoilt_keeps_its_bans(clock, value):
    assert until(loaded(dumped(**{clock: value}), boot='boot-2' if clock == 'wall' else 'boot-1'))['192.0.2.7'] == NOW + 500


@pytest.mark.parametrize('part', ['bans', 'history', 'fails', 'logins', 'sources'])
def test_a_part_of_the_wrong_kind_costs_that_part_only(part):
    back = loaded(dumped(**{part: 'x'}))
    assert bool(back.tickets) == (part != 'bans') and bool(back.fails) == (part != 'fails')


def test_a_thousand_random_mutilations_never_raise_anything_but_valueerror():
    rng = random.Random(7)
    text = json.dumps(dumped())
    for _ in range(1000):
        at, n = rng.randrange(len(text)), rng.randrange(1, 9)
        torn = text[:at] + ''.join(rng.choice('[]{}",:0919.-eE tn') for _ in range(n)) + text[at + rng.randrange(9):]
        try:
            banwatch.load(torn, clocks())
        except (ValueError, RecursionError):
            pass


# --- on disk

def test_a_file_is_replaced_as_a_whole_and_is_ours_alone(tmp_path):
    machine, path = FakeMachine(), str(tmp_path / 'state')
    machine.replace(path, 'one')
    machine.replace(path, 'two')
    assert machine.recall(path) == 'two'
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.listdir(str(tmp_path)) == ['state']
    assert machine.written == 6


def test_a_symlink_is_neither_followed_nor_read(tmp_path):
    machine, path, target = FakeMachine(), str(tmp_path / 'state'), tmp_path / 'target'
    target.write_text('precious')
    os.symlink(str(target), path)
    with pytest.raises(ValueError):
        machine.recall(path)
    os.symlink(str(target), path + '.new')
    machine.replace(path, 'mine')
    assert target.read_text() == 'precious' and machine.recall(path) == 'mine'


def test_a_file_that_others_may_write_is_not_trusted(tmp_path):
    machine, path = FakeMachine(), tmp_path / 'state'
    path.write_text('{}')
    path.chmod(0o666)
    with pytest.raises(ValueError, match='not a file of our own'):
        machine.recall(str(path))


def test_the_runtime_folder_must_be_ours(tmp_path):
    machine = FakeMachine()
    (tmp_path / 'real').mkdir()
    os.symlink(str(tmp_path / 'real'), str(tmp_path / 'link'))
    with pytest.raises(banwatch.Problem, match='not a directory of our own'):
        machine.directory(str(tmp_path / 'link'))
    (tmp_path / 'open').mkdir(mode=0o777)
    machine.directory(str(tmp_path / 'open'))
    assert (tmp_path / 'open').stat().st_mode & 0o777 == 0o700


def test_there_is_one_lock(tmp_path):
    path = str(tmp_path / 'lock')
    assert FakeMachine().lock(path)
    assert not FakeMachine().lock(path)


# --- where it lies

def test_a_state_file_that_is_a_link_of_ours_is_followed(tmp_path):
    (tmp_path / 'disk').mkdir(mode=0o755)
    os.symlink(str(tmp_path / 'disk' / 'bans'), str(tmp_path / 'state'))
    house = House(tmp_path)
    house.fail('192.0.2.7', 3)
    house.stop()
    assert os.path.islink(str(tmp_path / 'state')) and '192.0.2.7' in (tmp_path / 'disk' / 'bans').read_text()
    (tmp_path / 'run' / 'state.json').unlink()
    house.restart()
    assert house.banned() == ['192.0.2.7']


def test_but_not_where_others_may_make_links(tmp_path):
    (tmp_path / 'disk').mkdir()
    os.symlink(str(tmp_path / 'disk' / 'bans'), str(tmp_path / 'state'))
    os.chmod(str(tmp_path), 0o777)
    house = House(tmp_path)
    house.fail('192.0.2.7', 3)
    house.stop()
    assert not os.path.islink(str(tmp_path / 'state')) and not (tmp_path / 'disk' / 'bans').exists()


def test_a_state_file_that_is_mounted_by_itself_is_written_in_its_place(tmp_path):
    need('unshare', 'mount', root=True)
    (tmp_path / 'real').write_text('old and longer than what is written then')
    (tmp_path / 'state').write_text('')
    code = 'import sys; sys.path.insert(0, %r); import banwatch; banwatch.Machine().replace(%r, "new")' % (
        os.path.dirname(banwatch.__file__), str(tmp_path / 'state'))
    script = 'mount --bind %s %s; exec %s -c \'%s\'' % (tmp_path / 'real', tmp_path / 'state', sys.executable, code.replace("'", '"'))
    subprocess.run(['unshare', '--mount', '--propagation', 'private', 'sh', '-ec', script], check=True, timeout=30)
    assert (tmp_path / 'real').read_text() == 'new' and not list(tmp_path.glob('*.new'))


def test_bans_that_have_no_room_on_flash_are_told(tmp_path, monkeypatch):
    house = House(tmp_path)
    monkeypatch.setattr(banwatch, 'KEPT_BYTES', 1200)
    house.ask('ban', networks=['198.51.100.%d' % n for n in range(50)], seconds=600)
    house.pass_time(3700)
    house.ask('ban', networks=['198.51.100.%d' % n for n in range(50)], seconds=600)
    house.daemon.store.save_all()
    (wrong,) = house.ask('status')['wrong']
    assert re.match(r'state: \d+ bans have no room in .*/state: they do not outlive a reboot$', wrong)
    house.ask('unban', networks=[], all=True)
    house.daemon.store.save_all()
    assert house.ask('status')['wrong'] == []


# --- what has been counted before a reboot

def test_lines_that_were_counted_before_a_reboot_do_not_count_again(tmp_path):
    """Else bans that were over, or lifted by hand, would come back from old lines, and be longer."""
    log = tmp_path / 'auth.log'
    house = House(tmp_path)

    def write(ip, when):
        with open(str(log), 'a') as f:
            for n in range(3):
                f.write('%s h sshd[%d]: Failed password for root from %s port 5 ssh2\n' % (
                    time.strftime('%b %e %H:%M:%S', time.localtime(when)), n, ip))
    house.more, wall = '', house.machine.time
    write('192.0.2.7', wall - 60)
    house.fail('192.0.2.7', 3)
    assert house.ask('unban', networks=['192.0.2.7'])['unbanned'] == ['192.0.2.7']
    house.stop()
    write('192.0.2.8', wall + 60)                    # while nobody looked
    for path in (tmp_path / 'run').glob('*'):
        path.unlink()
    house.fifo, house.more = str(tmp_path / 'unused'), ''
    house.text = '[sshd]\nsource = %s\n' % log
    house.restart(boot='boot-2', now=30.0, time=wall + 120)
    house.pass_time(2)
    assert house.banned() == ['192.0.2.8']
