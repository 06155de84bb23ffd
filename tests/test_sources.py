"""Sources: whole lines, each once, whatever happens to the file, the pipe or the program."""
import collections
import gc
import json
import os
import random
import shutil
import socket
import sys
import threading
import time

import pytest

import banwatch
from harness import FakeMachine, poll, seeds


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
    ({'/var/log/auth.log': 10 ** 7, '/run/systemd/journal': 1}, ['journalctl'], 'journalctl'),
    ({'/var/log/auth.log': 10 ** 7, '/var/log/messages': 5}, [], '/var/log/messages'),
    ({'/var/log/auth.log': 7200, '/run/systemd/journal': 1}, ['journalctl'], 'journalctl'),
    ({'/var/log/auth.log': 7200}, ['journalctl'], '/var/log/auth.log'),
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


# --- `logread -f`

LOGREAD = r"""#!%s -IS
import os, sys, time
os.chdir(os.path.dirname(sys.argv[0]))

def said(name):                      # what a file of the test says, once
    try:
        with open(name) as f:
            text = f.read()
        os.unlink(name)
        return text or '0'
    except OSError:
        return ''

def tell(block):
    while block:
        try:
            block = block[os.write(1, block):]
        except OSError:              # the real one does not notice either that nobody reads
            return

def no_log_daemon():
    os.write(2, b'Failed to find log object: Not found\n')

def ring():
    with open('ring', 'rb') as f:
        return f.read()

def note(name):
    with open(name, 'a') as f:
        f.write('%%d\n' %% os.getpid())

if '-f' not in sys.argv:
    while os.path.exists('waits'):
        time.sleep(0.005)
    if said('hang'):
        time.sleep(1000)
    text = said('fails')
    if text:
        no_log_daemon()
        sys.exit(int(text))
    lines = ring().splitlines(True)
    size = int(open('size').read()) if os.path.exists('size') else len(lines)
    most = int(sys.argv[2]) if '-l' in sys.argv else size
    tell(b''.join(lines[-min(most, size):] if lines else []))
    time.sleep(float(said('lingers') or 0))
    sys.exit(0)

time.sleep(float(said('slow') or 0))
text = said('away')
if text:
    for n in range(int(text)):
        no_log_daemon()
        time.sleep(0.02)
    sys.exit(4)
log = open('ring', 'rb', 0)
if said('replays'):
    tell(log.read())
log.seek(0, 2)
note('followers')
while True:
    if os.path.exists('lags'):
        time.sleep(0.005)
        continue
    tell(log.read(1 << 16))
    text = said('dies')
    if text:
        sys.exit(int(text))
    if said('deaf'):
        note('deafened')
        time.sleep(1000)
    if os.stat('ring').st_ino != os.fstat(log.fileno()).st_ino:
        if not os.path.exists('silent'):
            no_log_daemon()
        time.sleep(float(said('sleeps') or 1))       # then it goes on with what comes from now on
        log = open('ring', 'rb', 0)
        log.seek(0, 2)
        note('reconnected')
    time.sleep(0.005)
"""


class Log:
    """The log daemon, and what its logread is to do."""

    def __init__(self, folder):
        self.folder, self.ring = folder, folder / 'ring'
        self.ring.write_bytes(b'')
        program = folder / 'logread'
        program.write_text(LOGREAD % sys.executable)
        program.chmod(0o755)

    def write(self, *lines):
        with open(str(self.ring), 'ab') as f:
            f.write(b''.join(line if type(line) is bytes else line.encode() + b'\n' for line in lines))

    def restart(self, kept=b'', *lines):
        """Another log daemon, with a ring of its own: what it is given, and these lines."""
        new = self.folder / 'new'
        new.write_bytes(kept + b''.join(line.encode() + b'\n' for line in lines))
        os.rename(str(new), str(self.ring))

    def let(self, name, text=''):
        """Makes the next logread, or the one that follows, do something."""
        path = self.folder / (name + '.new')
        path.write_text(str(text))
        os.rename(str(path), str(self.folder / name))

    def end(self, name):
        os.unlink(str(self.folder / name))

    def pids(self, name):
        path = self.folder / name
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def followers(self):
        return self.pids('followers')

    def alive(self):
        return [pid for pid in self.followers() if is_running(pid)]


def terminal(pid):
    """The number of the terminal that a process is hung up with, 0 if there is none."""
    with open('/proc/%d/stat' % pid) as f:
        return int(f.read().rpartition(')')[2].split()[4])


def is_running(pid):
    try:
        with open('/proc/%d/stat' % pid) as f:
            return f.read().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


class Follower(Reader):
    """A Reader whose machine runs real programs; its clock stands still while it waits for them."""

    def __init__(self, syslog, spec='logread'):
        self.log = syslog
        self.machine = FakeMachine()
        self.machine.run = self.run
        self.got, self.backlog, self.ages, self.incidents = [], [], [], []
        self.source = banwatch.make_source(spec, self.machine, self.deliver, 1, lambda source, why: self.incidents.append(why))

    def run(self, command, done, seconds=10):
        self.machine.ran.append(command.argv)
        banwatch.Machine.run(self.machine, command, done, seconds)

    def tick(self, seconds=0.0):
        self.machine.pass_time(seconds)
        self.machine.reap()
        for _ in range(4):
            self.machine.loop.due()
            self.machine.loop.wait(0)

    def wait(self, done, seconds=5):
        """Goes on until it is done, or the time is up: that of the programs, not of our clock."""
        end = time.monotonic() + seconds
        while not done() and time.monotonic() < end:
            self.machine.loop.wait(0.004)
            self.tick()

    def until(self, done):
        self.wait(done)
        assert done(), (self.got, self.source.trouble, self.incidents, self.machine.ran)

    def idle(self):
        return not self.machine.programs

    def settle(self, seconds=0.0):
        """Goes on until a (new) follower follows, and the ring has been read."""
        self.tick(seconds)
        self.until(lambda: self.source.process and self.source.process.pid in self.log.followers())
        for _ in range(3):
            self.tick(banwatch.SETTLE)
            self.until(self.idle)
        return self

    def new(self):
        got, self.got = self.got, []
        return got

    def has(self, *lines):
        """These, and no others, have come, or come now."""
        self.wait(lambda: len(self.got) >= len(lines))
        self.tick(banwatch.SETTLE)
        assert self.got == list(lines), (self.source.trouble, self.incidents, self.machine.ran)

    def hears(self, *lines):
        """Lines that the follower is to tell, and that come once, live."""
        self.log.write(*lines)
        self.has(*self.got + list(lines))
        assert self.ages[-len(lines):] == [banwatch.LIVE] * len(lines)

    def after_silence(self):
        self.machine.pass_time(banwatch.SILENCE)
        self.source.check()
        self.until(self.idle)
        self.tick(banwatch.SETTLE)

    def stopped(self):
        """What the state file keeps of it, once it has ended."""
        position = json.loads(json.dumps(self.source.position()))
        self.source.close()
        for program in list(self.machine.programs):
            self.machine.kill(program.process)
        self.until(self.idle)
        return position


@pytest.fixture
def syslog(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', '%s:%s' % (tmp_path, os.environ['PATH']))
    return Log(tmp_path)


@pytest.fixture
def follower(syslog):
    made = []

    def start(position=None):
        made.append(Follower(syslog).start(position))
        return made[-1]
    yield start
    for each in made:
        each.stopped()


# --- the start

def test_at_the_first_start_the_ring_is_backlog_and_what_follows_is_live(syslog, follower):
    syslog.write('old one', 'old two')
    reader = follower().settle()
    reader.has('old one', 'old two')
    assert reader.ages == [banwatch.OLD] * 2
    reader.hears('new')
    assert not reader.incidents


def test_bytes_that_are_not_utf8_and_a_last_line_without_newline(syslog, follower):
    syslog.write(b'caf\xe9 \xff\xfe\x00\r\n', b'half')
    reader = follower().settle()
    reader.has('caf\xe9 \xff\xfe\0\r')
    syslog.write(b'way\n')
    reader.tick(1)
    assert reader.stopped() == banwatch.checksums(b'caf\xe9 \xff\xfe\0\r\n')


def test_lines_that_both_the_ring_and_the_follower_have_come_once(syslog, follower):
    """Written after the follower began to follow, and before the ring is read."""
    syslog.write('old')
    reader = follower()
    reader.until(syslog.followers)
    syslog.write('both', 'both', 'and this')
    reader.settle()
    reader.has('old', 'both', 'both', 'and this')
    reader.hears('live')


def test_lines_that_the_ring_has_before_the_follower_tells_them_come_once(syslog, follower):
    """It is slower than the program that reads the ring: all cores are busy."""
    syslog.write('old')
    syslog.let('lags')
    syslog.let('waits')
    reader = follower()
    reader.until(syslog.followers)
    syslog.write('one', 'two')
    syslog.end('waits')
    reader.settle()
    reader.has('old', 'one', 'two')
    syslog.end('lags')
    reader.hears('three')


def test_a_follower_that_tells_the_whole_ring_first_tells_nothing_twice(syslog, follower):
    syslog.write(*['line %d' % n for n in range(150)])
    syslog.let('replays')
    reader = follower().settle()
    reader.hears('new')
    assert reader.got == ['line %d' % n for n in range(150)] + ['new']
    syslog.let('replays')
    syslog.let('dies')
    reader.until(lambda: reader.source.trouble)
    reader.settle(1)
    reader.hears('newer')
    assert len(reader.got) == 152


def test_a_ring_that_does_not_come_does_not_keep_the_follower_silent_and_is_an_incident(syslog, follower):
    syslog.let('hang')
    reader = follower(banwatch.checksums(b'seen before\n'))
    reader.until(syslog.followers)
    reader.tick(banwatch.SETTLE)
    syslog.write('new')
    reader.tick(banwatch.RING_SECONDS)
    reader.until(lambda: reader.got == ['new'])
    reader.hears('newer')
    assert reader.incidents


def test_a_flood_while_the_ring_is_read_is_bounded_and_an_incident(syslog, follower):
    syslog.write('seen', 'gap')
    syslog.let('hang')
    reader = follower(banwatch.checksums(b'seen\n'))
    reader.until(syslog.followers)
    syslog.write(*['a line of the flood, number %05d' % n for n in range(20000)])
    reader.until(lambda: len(reader.got) == 20000)
    assert len(reader.source.first) < 2 * banwatch.BACKLOG
    assert reader.incidents


# --- the gap

@pytest.mark.parametrize('code', [0, 4])
def test_a_follower_that_dies_is_started_again_and_the_gap_comes_from_the_ring(syslog, follower, code):
    syslog.write('old')
    reader = follower().settle()
    reader.hears('one', 'two')
    syslog.let('dies', code)
    reader.until(lambda: reader.source.trouble)
    syslog.write('in the gap', 'in the gap')
    reader.settle(1)
    reader.has('old', 'one', 'two', 'in the gap', 'in the gap')
    assert reader.ages[-1] == banwatch.RECENT
    reader.hears('live')
    assert reader.source.trouble == '' and reader.incidents == ['ended']


@pytest.mark.parametrize('again', [True, False])
def test_in_another_time_zone_the_ring_is_still_the_same(syslog, follower, again):
    line = 'Fri Nov 20 %02d:%02d:45 2026 authpriv.warn dropbear[%d]: Bad password attempt for \'root\' from 192.0.2.7:5'
    syslog.write(*[line % (22, n, n) for n in range(3)])
    reader = follower(None).settle()
    if again:                                      # banwatch is started again
        reader = Follower(syslog).start(reader.stopped())
    else:
        syslog.let('dies', 1)
        reader.until(lambda: reader.source.trouble)
        reader.new()
    syslog.ring.write_text(''.join((line % (23, n, n)) + '\n' for n in range(4)))
    reader.settle(1)
    reader.has(line % (23, 3, 3))
    reader.stopped()


@pytest.mark.parametrize('kept', [False, True])
def test_what_a_new_log_daemon_was_told_before_the_follower_found_it_comes_from_its_ring(syslog, follower, kept):
    syslog.write('old')
    reader = follower().settle()
    reader.hears('one')
    syslog.restart(b'old\none\n' if kept else b'', 'lost one', 'lost two')
    reader.until(lambda: reader.incidents)
    reader.settle(2)
    reader.has('old', 'one', 'lost one', 'lost two')
    reader.hears('live')


def test_a_hole_in_what_the_follower_told_does_not_make_the_ring_count_twice(syslog, follower):
    """It found the new log daemon without a word; then it died."""
    syslog.write('old')
    reader = follower().settle()
    syslog.let('silent')
    syslog.let('sleeps', 0.02)
    syslog.restart(b'old\n', 'lost')
    reader.until(lambda: syslog.pids('reconnected'))
    reader.hears('told')
    syslog.let('dies')
    reader.until(lambda: reader.source.trouble)
    syslog.write('last')
    reader.settle(1)
    assert sorted(reader.got) == ['last', 'lost', 'old', 'told']


def test_while_the_log_daemon_is_away_it_is_looked_for_later_and_later(syslog, follower):
    syslog.let('away', 10)
    reader = follower()
    reader.until(lambda: reader.source.trouble)
    assert 'Failed to find log object' in reader.source.trouble
    syslog.write('meanwhile')
    reader.settle(1)
    reader.has('meanwhile')
    assert reader.source.trouble == ''


def test_a_ring_that_holds_nothing_of_what_was_seen_has_lost_lines_and_that_is_told(syslog, follower):
    syslog.let('size', 3)
    syslog.write('one')
    reader = follower().settle()
    syslog.let('dies')
    reader.until(lambda: reader.source.trouble)
    reader.incidents.clear()
    syslog.write(*'abcde')
    reader.settle(1)
    reader.has('one', 'c', 'd', 'e')
    assert any('lost' in why for why in reader.incidents)


def test_equal_lines_on_both_sides_of_a_restart_count_as_often_as_they_were_written(syslog, follower):
    syslog.write('a', 'b', 'b')
    reader = follower().settle()
    position = reader.stopped()
    syslog.write('b', 'b', 'c')
    again = follower(position).settle()
    again.has('b', 'b', 'c')
    assert set(again.ages) == {banwatch.RECENT} and not again.incidents


def test_more_lines_than_are_remembered(syslog, follower):
    syslog.write(*['line %d' % n for n in range(3 * banwatch.SEEN)])
    position = follower().settle().stopped()
    assert len(position) == banwatch.SEEN
    syslog.write('new')
    assert follower(position).settle().got == ['new']


@pytest.mark.parametrize('position', [5, 'x', [[]], [1.5]])
def test_a_senseless_position_in_a_ring_is_as_good_as_none(syslog, follower, position):
    syslog.write('old')
    reader = follower(position).settle()
    reader.has('old')
    assert reader.source.trouble == ''


# --- silence

def test_a_deaf_follower_is_found_out_and_what_it_missed_comes_once(syslog, follower):
    syslog.write('old')
    reader = follower().settle()
    reader.hears('one')
    syslog.let('deaf')
    reader.until(lambda: syslog.pids('deafened'))
    syslog.write('missed', 'missed')
    reader.after_silence()
    assert reader.incidents == ['has gone deaf']
    reader.settle(1)
    reader.has('old', 'one', 'missed', 'missed')
    reader.hears('live')
    assert len(syslog.alive()) == 1


def log_socket(syslog):
    """What each log daemon makes anew."""
    path = str(syslog.folder / 'socket')
    if os.path.exists(path):
        os.rename(path, path + '.old')               # its inode is not to be given to the next one
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(path)
    return path


def test_a_new_log_daemon_is_noticed_within_a_minute_though_the_follower_says_nothing(syslog, follower, monkeypatch):
    monkeypatch.setattr(banwatch.Logread, 'SOCKET', log_socket(syslog))
    reader = follower().settle()
    reader.hears('one')
    reader.source.check()
    syslog.let('deaf')
    reader.until(lambda: syslog.pids('deafened'))
    log_socket(syslog)
    syslog.restart(syslog.ring.read_bytes(), 'two')
    syslog.write('three')
    assert not reader.incidents, 'nothing had changed'
    reader.source.check()
    assert reader.incidents == ['its log daemon was replaced']
    reader.settle(2)
    reader.has('one', 'two', 'three')
    reader.hears('four')
    os.rename(log_socket(syslog), str(syslog.folder / 'gone'))        # none, for a while: the follower has its own way to tell
    reader.source.check()
    assert len(reader.incidents) == 1 and len(syslog.alive()) == 1


def test_a_line_that_comes_while_the_ring_is_asked_is_no_deafness(syslog, follower):
    syslog.write('old')
    reader = follower().settle()
    syslog.let('lags')
    syslog.let('lingers', 0.05)
    syslog.write('just now')
    reader.machine.pass_time(banwatch.SILENCE)
    reader.source.check()
    reader.until(reader.idle)
    syslog.end('lags')
    reader.until(lambda: 'just now' in reader.got)
    reader.tick(banwatch.SETTLE)
    assert not reader.incidents and reader.got == ['old', 'just now']


def test_the_ring_is_asked_once_each_silence_and_never_while_lines_come(syslog, follower):
    syslog.write('old')
    reader = follower().settle()
    for n in range(30):                            # half an hour, in its first ten minutes a line each
        if n < 10:
            reader.hears('line')
        assert len(reader.machine.ran) == 1 or n > 10
        reader.machine.pass_time(60)
        reader.source.check()
        reader.until(reader.idle)
    assert reader.machine.ran[1:] == [['logread', '-l', '1']] * (1200 // banwatch.SILENCE)
    assert not reader.incidents and len(syslog.alive()) == 1


def test_an_empty_ring_and_one_that_cannot_be_asked_are_no_deafness(syslog, follower):
    reader = follower().settle()
    reader.after_silence()
    syslog.let('fails', 4)
    reader.after_silence()
    assert not reader.incidents
    reader.hears('live')


# --- what it leaves behind, and what it must not find

def no_terminal():
    raise FileNotFoundError(2, 'No such file or directory')


@pytest.mark.parametrize('openpty', [no_terminal, os.pipe])
def test_a_machine_without_terminals_or_with_odd_ones_can_follow_too(syslog, follower, monkeypatch, openpty):
    monkeypatch.setattr(os, 'openpty', openpty)    # there is no machine without /dev/ptmx to try it on
    reader = follower().settle()
    reader.hears('live')
    reader.stopped()
    assert poll(lambda: not syslog.alive())


def test_each_start_gives_back_its_files_and_its_process(syslog, follower):
    reader = follower().settle()
    gc.collect()                                   # what other tests have left open
    before = len(os.listdir('/proc/self/fd'))
    for _ in range(4):
        syslog.let('dies')
        reader.until(lambda: reader.source.trouble)
        reader.settle(60)
    assert len(os.listdir('/proc/self/fd')) <= before and len(syslog.alive()) == 1


def test_what_banwatch_writes_matches_none_of_its_filters():
    """Its own lines come back to it through the log; a quotation from the log in them must not count again."""
    def found(head, text):
        block = banwatch.tidy((head + text + '\n').encode())
        return [name for name, each in filters.items() if list(each.scan(block, lambda date: 5000.0))]
    filters = {name: banwatch.load_filter(name) for name in banwatch.FILTERS if not name.startswith('common')}
    said = ['[sshd] ban 192.0.2.7 for 10m (5 failures, ban number 1)', '[dropbear] unban 192.0.2.7 (its time is over)',
            "logread: ended: Bad password attempt for 'root' from 192.0.2.7:51234; trying again",
            'logread: ended: Failed password for root from 192.0.2.7 port 5 ssh2; trying again',
            'luci: failed login on / for root from 192.0.2.7']
    day = 'Fri Jan 15 08:00:00 2027 '
    assert found(day + 'authpriv.warn dropbear[77]: ', "Bad password attempt for 'root' from 192.0.2.7:51234") == ['dropbear']
    for head in day + 'daemon.notice banwatch[77]: ', day + 'daemon.err banwatch: ', 'Jan 15 08:00:00 router banwatch[77]: ':
        assert not [(text, found(head, text)) for text in said if found(head, text)]


# --- whatever happens

class Model:
    """A Follower, what was written and has to come, and what may be lost since its ring was emptied."""

    def __init__(self, syslog, rng):
        self.log, self.rng = syslog, rng
        self.written, self.excused, self.pending = collections.Counter(), collections.Counter(), []
        self.got, self.incidents, self.deaf = [], [], False
        self.reader = Follower(syslog).start().settle()

    def lines(self):
        """Some lines of this second, equal ones among them."""
        made = ['%d %s' % (self.reader.machine.time, self.rng.choice('abc')) for _ in range(self.rng.randrange(4))]
        self.written.update(made)
        self.pending += made
        return made

    def came(self):
        """What was pending has come, or comes now."""
        n = len(self.got) + len(self.pending)
        self.reader.wait(lambda: len(self.got + self.reader.got) >= n)
        self.got, self.pending = self.got + self.reader.new(), []
        self.reader.tick(1)

    def write(self):
        self.log.write(*self.lines())
        if not self.deaf:
            self.came()

    def comes_back(self):
        """A new follower follows, and the ring has been read."""
        self.reader.settle(banwatch.PATIENCE + 1)
        self.deaf = False
        self.came()

    def dies(self):
        if not self.deaf:
            self.log.let('dies', self.rng.randrange(5))
            self.reader.until(lambda: self.reader.source.trouble)
            self.log.write(*self.lines())
            self.comes_back()

    def goes_deaf(self):
        if not self.deaf:
            n = len(self.log.pids('deafened'))
            self.log.let('deaf')
            self.reader.until(lambda: len(self.log.pids('deafened')) > n)
            self.deaf = True
            self.reader.tick(1)
            self.log.write(*self.lines())

    def silence(self):
        self.reader.after_silence()
        if self.reader.source.trouble:
            self.comes_back()

    def new_ring(self):
        """Another log daemon, which may know what the old one was told."""
        kept = self.log.ring.read_bytes() if self.rng.random() < 0.5 else b''
        if not kept:
            self.excused.update(self.pending)
            self.pending = []
        self.log.restart(kept, *self.lines())

    def log_daemon_restarts(self):
        self.new_ring()
        if not self.deaf:
            self.reader.until(lambda: self.reader.source.trouble)
            self.comes_back()

    def banwatch_restarts(self):
        """After a stop, or a SIGKILL that came after more lines than the state file knows of."""
        position = json.loads(json.dumps(self.reader.source.position()))
        if self.rng.random() < 0.5 and not self.deaf:
            new = self.lines()
            self.log.write(*new)
            self.reader.until(lambda: len(self.reader.got) == len(new))
            self.reader.new()
        self.reader.stopped()
        self.incidents += self.reader.incidents
        self.log.write(*self.lines())
        if self.rng.random() < 0.3:
            self.new_ring()
        now, self.reader = self.reader.machine.time, Follower(self.log)
        self.reader.machine.time = now + 1
        self.reader.start(position)
        self.comes_back()

    def verdict(self):
        self.deaf and self.log.write(*self.lines(), 'end')
        self.silence()
        self.reader.stopped()
        got, must = collections.Counter(self.got), self.written - self.excused
        assert not got - self.written - collections.Counter(['end']), 'counted twice'
        assert not must - got, 'lost'
        assert self.incidents + self.reader.incidents or not self.written - got, 'lost without a word'


@pytest.mark.slow
@seeds()
def test_any_sequence_of_troubles_counts_each_line_once(syslog, seed):
    model = Model(syslog, random.Random(seed))
    syslog.let('size', model.rng.choice([20, 150, 1000]))
    for _ in range(50):
        act = model.rng.choice([model.write] * 3 + [model.dies, model.goes_deaf, model.silence, model.log_daemon_restarts, model.banwatch_restarts])
        print(act.__name__)
        act()
    model.verdict()


# --- the whole program

def guesses(n, ago=0, ip='198.51.100.7'):
    """Wrong passwords of this second, or one before, as logread prints them."""
    now = time.strftime('%a %b %e %H:%M:%S %Y', time.localtime(time.time() - ago))
    return ["%s authpriv.warn dropbear[%d]: Bad password attempt for 'root' from %s:51234" % (now, 100 + k, ip) for k in range(n)]


@pytest.mark.slow
def test_a_killed_banwatch_leaves_no_program_behind_and_counts_on_where_it_was(syslog, daemon):
    syslog.write(*guesses(5, ago=7200) + guesses(1))  # the ring is backlog: what is in it counts if it is recent
    there = daemon(source='logread\n  exec:/bin/sh -c "echo $$ >%s; sleep 1000"' % (syslog.folder / 'other'), firewall='none', maxretry=7)
    there.wait_failures('dropbear', 1)
    syslog.write(*guesses(2))
    there.wait_failures('dropbear', 3)
    pids = syslog.alive() + syslog.pids('other')
    assert len(pids) == 2 and all(terminal(pid) for pid in pids) and not terminal(there.process.pid)
    there.kill()
    assert poll(lambda: not any(is_running(pid) for pid in pids))
    syslog.write(*guesses(1))
    syslog.let('slow', 0.3)                           # seconds until the new follower follows
    there.start()
    syslog.write(*guesses(2))
    there.wait_failures('dropbear', 3)
    assert not there.bans('198.51.100.7')
    syslog.write(*guesses(1))
    assert [row['failures'] for row in there.wait_banned('198.51.100.7')] == [7]
    there.stop()
    assert poll(lambda: not syslog.alive())


@pytest.mark.slow
def test_a_log_daemon_that_is_restarted_during_an_attack_costs_no_failure(syslog, daemon):
    there = daemon(source='logread', firewall='none', maxretry=26)
    poll(syslog.followers)
    syslog.write(*guesses(10))
    there.wait_failures('dropbear', 10)
    syslog.restart(b'', *guesses(5))
    syslog.write(*guesses(5))
    there.wait_failures('dropbear', 20)
    syslog.write(*guesses(5))
    there.wait_failures('dropbear', 25)
    syslog.write(*guesses(1))
    assert [row['failures'] for row in there.wait_banned('198.51.100.7')] == [26]
    assert there.said().count('] ban ') == 1 and poll(lambda: len(syslog.alive()) == 1)
    assert 'logread' in there.command('report').stdout


def test_of_a_glob_with_very_many_files_the_newest_are_followed(tmp_path):
    for n in range(banwatch.MOST_FILES + 20):
        path = tmp_path / ('%d.log' % n)
        path.write_text('')
        os.utime(str(path), (1000 + n, 1000 + n))
    reader = Reader('%s/*.log' % tmp_path).start()
    assert len(reader.source.files) == banwatch.MOST_FILES and '220 files: only the 200 newest' in reader.source.trouble
    assert str(tmp_path / '219.log') in {file.path for file in reader.source.files.values()}
    reader.source.close()
