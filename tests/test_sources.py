"""Sources: whole lines, each once, whatever happens to the file, the pipe or the program."""
import os
import random
import shutil
import socket
import sys
import threading
import time

import pytest

import banwatch
from harness import FakeMachine, seeds


class Reader:
    """A source with a list of what it delivered."""

    def __init__(self, spec, poll=1):
        self.machine = FakeMachine()
        self.machine.spawn = lambda argv, stdin, **more: banwatch.Machine.spawn(self.machine, argv, stdin, **more)
        self.got, self.backlog, self.ages = [], [], []
        self.source = banwatch.make_source(spec, self.machine, self.deliver, poll)

    def deliver(self, source, block, age):
        assert block.endswith(b'\n')
        lines = block.decode('latin-1').split('\n')[:-1]
        self.got += lines
        self.ages += [age] * len(lines)
        self.backlog += lines if age else []

    def start(self, position=None):
        self.source.start(position)
        return self

    def tick(self, seconds=1.0):
        """Time goes by; everything that is due or ready is done."""
        self.machine.pass_time(seconds)
        for _ in range(8):
            self.machine.loop.due()
            self.machine.loop.wait(0)
            self.machine.pass_time(2 * banwatch.SOON)

    def until(self, done, seconds=5):
        end = time.time() + seconds
        while not done() and time.time() < end:
            self.tick(0.1)
            time.sleep(0.01)
        assert done(), (self.got, self.source.trouble)

    def new(self):
        """What came since the last look."""
        self.tick()
        got, self.got = self.got, []
        return got


def append(path, *lines):
    with open(str(path), 'a') as f:
        f.write(''.join(line + '\n' for line in lines))


@pytest.fixture
def log(tmp_path):
    path = tmp_path / 'log'
    path.write_text('old one\nold two\n')
    return path


@pytest.fixture
def tail(log):
    reader = Reader(str(log)).start()
    assert reader.new() == ['old one', 'old two'] and reader.backlog == ['old one', 'old two']
    reader.backlog = []
    return reader


# --- tailed files

def test_new_lines_come_once_and_as_live(tail, log):
    append(log, 'one', 'two')
    assert tail.new() == ['one', 'two'] and not tail.backlog
    assert tail.new() == []


def test_a_line_that_is_written_in_two_parts_comes_when_it_is_whole(tail, log):
    with open(str(log), 'a') as f:
        f.write('ha')
    assert tail.new() == []
    append(log, 'lf', 'next')
    assert tail.new() == ['half', 'next']


def test_lines_written_before_and_after_a_rename_are_all_read(tail, log):
    writer = open(str(log), 'a')
    writer.write('before\n')
    writer.flush()
    os.rename(str(log), str(log) + '.1')
    append(log, 'new file')
    writer.write('after, by the old descriptor\n')
    writer.flush()
    assert sorted(tail.new()) == ['after, by the old descriptor', 'before', 'new file']
    writer.write('still by the old one\n')
    writer.flush()
    append(log, 'more')
    assert sorted(tail.new()) == ['more', 'still by the old one']


def test_a_renamed_file_is_let_go_when_its_writer_has_moved_on(tail, log):
    os.rename(str(log), str(log) + '.1')
    append(log, 'new file')
    tail.new()
    assert len(tail.source.files) == 2
    tail.machine.pass_time(banwatch.RETIRE + 1)
    append(log, 'x')
    tail.new()
    assert len(tail.source.files) == 1


def test_the_last_line_of_a_renamed_file_counts_without_a_newline(tail, log):
    with open(str(log), 'a') as f:
        f.write('torn')
    os.rename(str(log), str(log) + '.1')
    append(log, 'new')
    tail.new()
    tail.machine.pass_time(banwatch.RETIRE + 1)
    assert tail.new() == ['torn']


def test_three_rotations_in_a_row(tail, log):
    for n in range(3):
        append(log, 'a%d' % n)
        os.rename(str(log), '%s.%d' % (log, n))
        append(log, 'b%d' % n)
        assert tail.new() == ['a%d' % n, 'b%d' % n]


def test_copytruncate_loses_nothing_that_is_in_the_copy(tail, log):
    append(log, 'unread')
    shutil.copy(str(log), str(log) + '.1')
    os.truncate(str(log), 0)
    append(log, 'fresh')
    assert tail.new() == ['unread', 'fresh']


def test_a_truncated_file_is_read_from_its_beginning(tail, log):
    os.truncate(str(log), 0)
    assert tail.new() == []
    append(log, 'fresh')
    assert tail.new() == ['fresh']


def test_a_file_truncated_and_refilled_past_the_old_offset_is_noticed(tail, log):
    log.write_text('x1 and some more text\nx2 and some more text\n')
    assert tail.new() == ['x1 and some more text', 'x2 and some more text']


def test_a_file_truncated_and_refilled_to_the_same_size_is_noticed(tail, log):
    size = log.stat().st_size
    log.write_text('z' * (size - 1) + '\n')
    os.utime(str(log), (1, 1))
    assert tail.new() == ['z' * (size - 1)]


def test_a_file_that_disappears_and_comes_back(tail, log):
    os.unlink(str(log))
    assert tail.new() == []
    assert tail.source.trouble == 'waiting for it to appear' and tail.machine.said('waiting for it to appear')
    append(log, 'back')
    assert tail.new() == ['back'] and tail.source.trouble == ''


def test_a_file_that_does_not_exist_yet_is_read_whole_when_it_comes(tmp_path):
    reader = Reader(str(tmp_path / 'later')).start()
    assert reader.new() == []
    append(tmp_path / 'later', 'first')
    assert reader.new() == ['first'] and reader.ages == [banwatch.RECENT]
    append(tmp_path / 'later', 'second')
    assert reader.new() == ['second'] and reader.ages[-1] == banwatch.LIVE


def test_what_is_in_a_file_that_comes_or_is_refilled_counts_at_its_own_time(tail, log):
    append(log, *['line %d' % n for n in range(20)])
    tail.new()
    tail.ages = []
    text = log.read_text()
    log.write_text(text[60:])                      # `tail -n 20 log > t; cat t > log`
    tail.new()
    assert set(tail.ages) == {banwatch.RECENT}
    tail.ages = []
    os.unlink(str(log))
    tail.new()
    tail.machine.pass_time(banwatch.RETIRE + 1)
    tail.new()
    log.write_text(text)
    assert tail.new() and set(tail.ages) == {banwatch.RECENT}


def test_the_next_file_of_a_rotation_is_live(tail, log):
    tail.ages = []
    os.rename(str(log), str(log) + '.1')
    append(log, 'new')
    assert tail.new() == ['new'] and tail.ages == [banwatch.LIVE]


def test_copytruncate_with_a_wide_glob_reads_nothing_twice(tmp_path):
    path = tmp_path / 'log'
    append(path, *['line number %d' % n for n in range(50)])
    reader = Reader(str(path) + '*').start()
    reader.new()
    append(path, 'unread 1', 'unread 2')
    shutil.copy(str(path), str(path) + '.1')
    path.write_text('fresh\n')
    assert reader.new() == ['unread 1', 'unread 2', 'fresh']
    assert reader.new() == []
    again = restart(reader)
    assert again.new() == []


def test_a_wide_glob_after_two_rotations_and_a_restart_reads_nothing_twice(tmp_path):
    path = tmp_path / 'log'
    append(path, 'first line')
    reader = Reader(str(path) + '*').start()
    reader.new()
    os.rename(str(path), str(path) + '.1')
    append(path, 'second line')
    assert reader.new() == ['second line']
    position = eval_json(reader.source.position())
    reader.source.close()
    os.rename(str(path) + '.1', str(path) + '.2')
    os.rename(str(path), str(path) + '.1')
    append(path, 'third line')
    assert Reader(str(path) + '*').start(position).new() == ['third line']


def test_a_log_that_is_a_symlink_is_rotated_where_it_points_to(tmp_path):
    (tmp_path / 'sub').mkdir()
    real, link = tmp_path / 'sub' / 'real', tmp_path / 'link'
    append(real, 'old')
    link.symlink_to(real)
    reader = Reader(str(link)).start()
    reader.new()
    append(real, 'unread')
    shutil.copy(str(real), str(real) + '.1')
    real.write_text('fresh\n')
    assert reader.new() == ['unread', 'fresh']
    position = eval_json(reader.source.position())
    reader.source.close()
    append(real, 'rest')
    os.rename(str(real), str(real) + '.2')
    append(real, 'new')
    assert Reader(str(link)).start(position).new() == ['rest', 'new']


def test_a_rotated_file_that_goes_while_it_is_looked_for_makes_no_other_be_read_twice(tail, log, monkeypatch):
    append(log, 'one')
    assert tail.new() == ['one']
    position = eval_json(tail.source.position())
    tail.source.close()
    append(log, 'two')
    look = banwatch.glob.glob
    monkeypatch.setattr(banwatch.glob, 'glob', lambda pattern: look(pattern) + [str(log) + '.7.gz'])
    again = Reader(str(log)).start(position)
    assert again.new() == ['two']


def test_a_file_that_was_empty_at_the_stop_and_renamed_since_is_read(tmp_path):
    path = tmp_path / 'log'
    path.write_text('')
    reader = Reader(str(path)).start()
    position = eval_json(reader.source.position())
    reader.source.close()
    append(path, 'rest')
    os.rename(str(path), str(path) + '.1')
    append(path, 'new')
    assert Reader(str(path)).start(position).new() == ['rest', 'new']


@seeds(1)
def test_any_sequence_of_appends_rotations_and_restarts_reads_each_line_once(tmp_path, seed):
    """Numbered lines; renames and copytruncates with shifting; the model knows every line that was written."""
    rng = random.Random(seed)
    path = tmp_path / 'log'
    append(path, 'line number 0')
    reader, n, got = Reader(str(path)).start(), 0, []
    got += reader.new()

    def shift():
        for k in range(6, 0, -1):
            if os.path.exists('%s.%d' % (path, k)):
                os.rename('%s.%d' % (path, k), '%s.%d' % (path, k + 1))
    for _ in range(300):
        for _ in range(rng.randrange(4)):
            n += 1
            append(path, 'line number %d' % n)
        act = rng.randrange(6)
        if act == 0:
            shift()
            os.rename(str(path), str(path) + '.1')
        elif act == 1:
            shift()
            shutil.copy(str(path), str(path) + '.1')
            os.truncate(str(path), 0)
        elif act == 2:
            position = eval_json(reader.source.position())
            reader.source.close()
            reader = Reader(str(path)).start(position)
        n += 1
        append(path, 'line number %d' % n)         # so that no file is left empty
        got += reader.new()
    assert sorted(got, key=lambda line: int(line.split()[-1])) == ['line number %d' % k for k in range(n + 1)], seed


def test_the_same_content_under_a_new_inode_while_we_were_down_is_not_read_twice(tail, log):
    append(log, *['line number %d' % n for n in range(20)])
    tail.new()
    position = eval_json(tail.source.position())
    tail.source.close()
    shutil.copy(str(log), str(log) + 'x')
    os.rename(str(log) + 'x', str(log))
    append(log, 'meanwhile')
    assert Reader(str(log)).start(position).new() == ['meanwhile']


def test_other_timers_run_between_the_chunks_of_a_large_file(tmp_path):
    path = tmp_path / 'log'
    path.write_bytes(b'x' * 99 + b'\n')
    reader = Reader(str(path)).start()
    reader.new()
    with open(str(path), 'ab') as f:
        f.write((b'x' * 99 + b'\n') * 40000)
    reader.machine.pass_time(1)
    reader.got = []
    reader.machine.loop.due()
    assert 0 < len(reader.got) < 4000


def test_a_bug_in_whoever_takes_the_lines_does_not_stop_a_tail(tail, log):
    def broken(source, block, age):
        raise RuntimeError('oops')
    good, tail.source.deliver = tail.source.deliver, broken
    append(log, 'lost')
    tail.tick()
    assert tail.machine.said('RuntimeError: oops')
    tail.source.deliver = good
    append(log, 'next')
    assert tail.new() == ['next']


def test_a_glob_gains_files(tmp_path):
    append(tmp_path / 'a.log', 'a')
    reader = Reader(str(tmp_path / '*.log')).start()
    assert reader.new() == ['a']
    append(tmp_path / 'b.log', 'b')
    append(tmp_path / 'c.txt', 'c')
    assert reader.new() == ['b']


def test_a_wide_glob_does_not_read_rotated_copies_again(tmp_path):
    path = tmp_path / 'log'
    append(path, *['line number %d' % n for n in range(20)])
    reader = Reader(str(path) + '*').start()
    reader.new()
    os.rename(str(path), str(path) + '.1')
    append(path, 'new')
    (tmp_path / 'log.2.gz').write_bytes(b'\x1f\x8b junk\n')
    assert reader.new() == ['new']
    shutil.copy(str(path) + '.1', str(path) + '.3')
    assert reader.new() == []


def test_a_very_large_backlog_is_read_from_near_its_end_only(tmp_path):
    path = tmp_path / 'log'
    append(path, *['line number %06d' % n for n in range(50000)])
    reader = Reader(str(path)).start()
    got = reader.new()
    assert got[-1] == 'line number 049999' and got[0].startswith('line number ') and 5000 < len(got) < 20000


def test_a_folder_is_not_a_log(tmp_path):
    reader = Reader(str(tmp_path)).start()
    assert 'is not a file' in reader.source.trouble


# --- across restarts

def restart(reader):
    position = reader.source.position()
    reader.source.close()
    return Reader(reader.source.spec).start(eval_json(position))


def eval_json(position):
    import json
    return json.loads(json.dumps(position))


def test_after_a_restart_nothing_is_read_twice_and_what_came_meanwhile_is_backlog(tail, log):
    append(log, 'seen')
    tail.new()
    position = eval_json(tail.source.position())
    tail.source.close()
    append(log, 'meanwhile')
    reader = Reader(str(log)).start(position)
    assert reader.new() == ['meanwhile'] and reader.backlog == ['meanwhile']
    reader.backlog = []
    append(log, 'live')
    assert reader.new() == ['live'] and not reader.backlog


def test_a_half_line_at_a_restart_comes_whole(tail, log):
    with open(str(log), 'a') as f:
        f.write('ha')
    tail.new()
    reader = restart(tail)
    append(log, 'lf')
    assert reader.new() == ['half']


def test_a_file_renamed_while_we_were_down_is_read_to_its_end(tail, log):
    position = eval_json(tail.source.position())
    tail.source.close()
    append(log, 'rest')
    os.rename(str(log), str(log) + '.1')
    append(log, 'new')
    assert Reader(str(log)).start(position).new() == ['rest', 'new']


def test_a_file_copied_and_truncated_while_we_were_down_is_read_to_its_end(tail, log):
    position = eval_json(tail.source.position())
    tail.source.close()
    append(log, 'rest')
    shutil.copy(str(log), str(log) + '.1')
    log.write_text('new\n')
    assert Reader(str(log)).start(position).new() == ['rest', 'new']


@pytest.mark.parametrize('position', [5, 'x', [5], [[]], [['a', [1, 2], 0, [0, 0], [0, 0]]], [[None] * 5], {}, [['/', [1, 2], -1, [-5, 0], [9, 'x']]],
                                      'mark []', 'mark {}', 'huge', 'long'])
def test_a_senseless_position_is_as_good_as_none(log, position):
    there = log.stat()
    odd = {'mark []': [], 'mark {}': {}, 'huge': [2 ** 62, 0], 'long': [10 ** 30, 0]}
    if type(position) is str and position in odd:
        position = [[str(log), [there.st_dev, there.st_ino], 2 ** 63, odd[position], [0, 0]]]
    reader = Reader(str(log)).start(position)
    assert set(reader.new()) <= {'old one', 'old two'} and reader.source.trouble == ''


# --- long and dirty lines

def test_bytes_are_split_at_newlines_only(tail, log):
    with open(str(log), 'ab') as f:
        f.write(b'a\rb\x0b\x0c\x1c\x85\xe2\x80\xa8c\x00\xff\n')
    assert tail.new() == ['a\rb\x0b\x0c\x1c\x85\xe2\x80\xa8c\x00\xff']


def test_a_line_of_a_megabyte_does_not_fill_the_memory_and_the_next_one_is_whole():
    cutter = banwatch.LineSplitter()
    for _ in range(16):
        assert cutter.feed(b'x' * 65536) == b''
        assert len(cutter.partial) < 3 * 65536
    block = cutter.feed(b'y\nnext\n')
    assert block.endswith(b'y\nnext\n') and len(block) < 2 * 65536


# --- pipes

def test_a_fifo_is_made_and_survives_its_writers(tmp_path):
    path = str(tmp_path / 'fifo')
    reader = Reader('fifo:' + path).start()
    for n in range(3):
        with open(path, 'w') as f:
            f.write('line %d\n' % n)
        assert reader.new() == ['line %d' % n]
    assert reader.source.trouble == ''


def test_a_fifo_that_was_replaced_is_opened_anew(tmp_path):
    path = str(tmp_path / 'fifo')
    reader = Reader('fifo:' + path).start()
    os.unlink(path)
    reader.source.check()
    reader.tick(1)
    with open(path, 'w') as f:
        f.write('again\n')
    assert reader.new() == ['again']


def test_a_plain_file_is_no_fifo(log):
    reader = Reader('fifo:' + str(log)).start()
    assert reader.source.trouble == 'is not a FIFO'
    assert reader.machine.said('is not a FIFO; trying again')


def test_a_source_that_cannot_be_opened_is_tried_again_later_and_later(log):
    reader = Reader('fifo:' + str(log)).start()
    opened = []
    reader.source.open = lambda position: opened.append(reader.machine.now) or (_ for _ in ()).throw(OSError(0, 'no'))
    for _ in range(400):
        reader.tick(1)
    gaps = [b - a for a, b in zip(opened, opened[1:])]
    assert gaps == sorted(gaps) and gaps[-1] >= banwatch.PATIENCE and len(opened) < 20


# --- programs

def test_a_program_that_ends_is_started_again_and_what_it_said_is_told():
    reader = Reader('exec:/bin/sh -c "echo one $$; echo oops >&2"').start()
    reader.until(lambda: len(reader.got) == 2)
    assert reader.machine.said('ended: oops')


def test_what_a_log_daemon_tells_again_at_a_reconnect_counts_once(tmp_path):
    """The program prints its ring each time it starts; two equal lines of one second are two lines."""
    ring = tmp_path / 'ring'
    ring.write_text('a\nb\nb\n')
    reader = Reader('exec:/bin/cat %s' % ring).start()
    reader.until(lambda: len(reader.got) == 3)
    ring.write_text('b\nb\nb\nc\n')                # the oldest line has left the ring, two are new
    reader.until(lambda: 'c' in reader.got)
    assert reader.got == ['a', 'b', 'b', 'b', 'c']
    ring.write_text('b\nb\nb\nc\n')
    known, passed = reader.source.position(), reader.source.lines
    reader.source.close()
    again = Reader('exec:/bin/cat %s' % ring)
    again.source.start(known)
    ring.write_text('b\nc\nd\n')
    again.until(lambda: 'd' in again.got)
    assert again.got == ['d'] and passed == 5


def test_what_is_replayed_is_found_as_a_sequence():
    seen = list('abcb')
    assert banwatch.count_replayed(seen, list('cbx')) == 2
    assert banwatch.count_replayed(seen, list('zzabcbx')) == 6
    assert banwatch.count_replayed(seen, list('bx')) == 1
    assert banwatch.count_replayed(seen, list('xyz')) == 0
    assert banwatch.count_replayed(seen, list('abab')) == 0
    assert banwatch.count_replayed([], []) == 0


def test_a_missing_program_is_trouble_not_an_end():
    reader = Reader('exec:/no/such/program').start()
    assert 'No such file' in reader.source.trouble


@pytest.mark.slow
def test_a_closed_source_leaves_no_process_behind():
    reader = Reader('exec:/bin/sh -c "echo $$; sleep 1000 & wait"').start()
    reader.until(lambda: reader.got)
    group = int(reader.got[0])
    reader.source.close()
    end = time.time() + 5
    while time.time() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail('the program lives on')


def test_a_program_that_hangs_in_the_kernel_does_not_hold_up_a_stop(monkeypatch):
    """It is killed, but does not end: its files lie on a dead server, perhaps."""
    reader = Reader('exec:/bin/sh -c "trap \\"\\" HUP; echo one; exec sleep 1000"').start()
    reader.until(lambda: reader.got == ['one'])
    process, kill, began = reader.source.process, reader.machine.kill, time.time()
    monkeypatch.setattr(reader.machine, 'kill', lambda process: None)
    rescue = threading.Timer(8, kill, [process])
    rescue.start()
    reader.source.close()
    assert time.time() - began < 5
    rescue.cancel()
    kill(process)
    process.wait(5)


def test_the_last_line_of_a_program_counts_without_a_newline():
    reader = Reader("exec:/bin/sh -c 'echo whole; printf rest'").start()
    reader.until(lambda: 'rest' in reader.got)


def test_logread_is_followed_with_f_and_nothing_else(tmp_path, monkeypatch):
    fake = tmp_path / 'logread'
    fake.write_text('#!/bin/sh\necho "$0 $*"\nexec sleep 1000\n')
    fake.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path))
    reader = Reader('logread').start()
    reader.until(lambda: reader.got)
    reader.source.close()
    assert reader.got == ['%s -f' % fake]


# --- datagrams

def test_a_datagram_is_one_line_whatever_it_holds():
    reader = Reader('udp:127.0.0.1:0').start()
    address = reader.source.sock.getsockname()
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.sendto(b'<84>one\nforged\0', address)
    sender.sendto(b'two\r\n', address)
    sender.sendto(b'x' * 20000, address)
    got = reader.new()
    assert got[:2] == ['<84>one forged', 'two'] and len(got[2]) == banwatch.PLAIN_LINE + 2
    reader.source.close()


def test_udp_listens_on_loopback_unless_told_otherwise():
    assert Reader('udp:5514').source.argument == ('127.0.0.1', 5514)
    assert Reader('udp:[::1]:5514').source.argument == ('::1', 5514)


def test_a_port_that_is_taken_is_trouble_not_an_end():
    first = Reader('udp:127.0.0.1:0').start()
    port = first.source.sock.getsockname()[1]
    second = Reader('udp:127.0.0.1:%d' % port).start()
    assert 'in use' in second.source.trouble
    first.source.close()
    second.tick(5)
    assert second.source.trouble == ''


# --- what `auto` finds

class Place(FakeMachine):
    def __init__(self, files=(), programs=()):
        super().__init__()
        self.files, self.programs = dict(files), programs

    def exists(self, path):
        return path in self.files

    def age(self, path):
        return self.files.get(path)

    def which(self, name):
        return '/bin/' + name if name in self.programs else None


@pytest.mark.parametrize('files, programs, found', [
    ({'/etc/openwrt_release': 1}, ['logread'], 'logread'),
    ({'/var/log/auth.log': 5, '/var/log/messages': 5}, ['journalctl'], '/var/log/auth.log'),
    ({'/var/log/messages': 5}, [], '/var/log/messages'),
    ({'/var/log/auth.log': 10 ** 7, '/run/systemd/journal': 1}, ['journalctl'], 'exec:/bin/journalctl -f -q -n 0 -o short-iso'),
    ({'/var/log/auth.log': 10 ** 7, '/var/log/messages': 5}, [], '/var/log/messages'),
    ({'/var/log/auth.log': 10 ** 7}, [], '/var/log/auth.log'),
    ({'/opt/var/log/messages': 5}, [], '/opt/var/log/messages'),
    ({}, [], '/var/log/messages')])
def test_auto_finds_what_the_machine_has(files, programs, found):
    assert banwatch.find_source(Place(files, programs)) == found


def test_standard_input_is_read_to_its_end(tmp_path):
    script = ('import sys; sys.path[:0] = %r; from test_sources import Reader\n'
              'r = Reader("-").start(); r.until(lambda: r.source.trouble == "ended"); print(r.got)'
              % ([os.path.dirname(os.path.abspath(__file__)), os.path.dirname(os.path.abspath(banwatch.__file__))],))
    import subprocess
    for feed in ({'input': b'one\ntwo'}, {'stdin': subprocess.DEVNULL}):
        out = subprocess.run([sys.executable, '-c', script], stdout=subprocess.PIPE, **feed).stdout
        assert out.strip() == (b"['one', 'two']" if 'input' in feed else b'[]')
    (tmp_path / 'f').write_text('one\ntwo\n')
    with open(str(tmp_path / 'f')) as f:
        assert subprocess.run([sys.executable, '-c', script], stdin=f, stdout=subprocess.PIPE).stdout.strip() == b"['one', 'two']"
