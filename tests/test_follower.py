"""`source = logread`: a follower that dies, goes deaf or loses lines; what the ring still has comes, each line once.

OpenWrt's logread is played by a program of the same name, first in PATH, which behaves as the real one was measured to.
What it is to do wrong stands in files beside it.
"""
import collections
import gc
import json
import os
import random
import socket
import sys
import time

import pytest

import banwatch
from harness import FakeMachine, poll, seeds
from test_sources import Reader

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

    def __init__(self, log, spec='logread'):
        self.log = log
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
def log(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', '%s:%s' % (tmp_path, os.environ['PATH']))
    return Log(tmp_path)


@pytest.fixture
def follower(log):
    made = []

    def start(position=None):
        made.append(Follower(log).start(position))
        return made[-1]
    yield start
    for each in made:
        each.stopped()


# --- the start

def test_at_the_first_start_the_ring_is_backlog_and_what_follows_is_live(log, follower):
    log.write('old one', 'old two')
    reader = follower().settle()
    reader.has('old one', 'old two')
    assert reader.ages == [banwatch.OLD] * 2
    reader.hears('new')
    assert not reader.incidents


def test_bytes_that_are_not_utf8_and_a_last_line_without_newline(log, follower):
    log.write(b'caf\xe9 \xff\xfe\x00\r\n', b'half')
    reader = follower().settle()
    reader.has('caf\xe9 \xff\xfe\0\r')
    log.write(b'way\n')
    reader.tick(1)
    assert reader.stopped() == banwatch.checksums(b'caf\xe9 \xff\xfe\0\r\n')


def test_lines_that_both_the_ring_and_the_follower_have_come_once(log, follower):
    """Written after the follower began to follow, and before the ring is read."""
    log.write('old')
    reader = follower()
    reader.until(log.followers)
    log.write('both', 'both', 'and this')
    reader.settle()
    reader.has('old', 'both', 'both', 'and this')
    reader.hears('live')


def test_lines_that_the_ring_has_before_the_follower_tells_them_come_once(log, follower):
    """It is slower than the program that reads the ring: all cores are busy."""
    log.write('old')
    log.let('lags')
    log.let('waits')
    reader = follower()
    reader.until(log.followers)
    log.write('one', 'two')
    log.end('waits')
    reader.settle()
    reader.has('old', 'one', 'two')
    log.end('lags')
    reader.hears('three')


def test_a_follower_that_tells_the_whole_ring_first_tells_nothing_twice(log, follower):
    log.write(*['line %d' % n for n in range(150)])
    log.let('replays')
    reader = follower().settle()
    reader.hears('new')
    assert reader.got == ['line %d' % n for n in range(150)] + ['new']
    log.let('replays')
    log.let('dies')
    reader.until(lambda: reader.source.trouble)
    reader.settle(1)
    reader.hears('newer')
    assert len(reader.got) == 152


def test_a_ring_that_does_not_come_does_not_keep_the_follower_silent_and_is_an_incident(log, follower):
    log.let('hang')
    reader = follower(banwatch.checksums(b'seen before\n'))
    reader.until(log.followers)
    reader.tick(banwatch.SETTLE)
    log.write('new')
    reader.tick(banwatch.RING_SECONDS)
    reader.until(lambda: reader.got == ['new'])
    reader.hears('newer')
    assert reader.incidents


def test_a_flood_while_the_ring_is_read_is_bounded_and_an_incident(log, follower):
    log.write('seen', 'gap')
    log.let('hang')
    reader = follower(banwatch.checksums(b'seen\n'))
    reader.until(log.followers)
    log.write(*['a line of the flood, number %05d' % n for n in range(20000)])
    reader.until(lambda: len(reader.got) == 20000)
    assert len(reader.source.first) < 2 * banwatch.BACKLOG
    assert reader.incidents


# --- the gap

@pytest.mark.parametrize('code', [0, 4])
def test_a_follower_that_dies_is_started_again_and_the_gap_comes_from_the_ring(log, follower, code):
    log.write('old')
    reader = follower().settle()
    reader.hears('one', 'two')
    log.let('dies', code)
    reader.until(lambda: reader.source.trouble)
    log.write('in the gap', 'in the gap')
    reader.settle(1)
    reader.has('old', 'one', 'two', 'in the gap', 'in the gap')
    assert reader.ages[-1] == banwatch.RECENT
    reader.hears('live')
    assert reader.source.trouble == '' and reader.incidents == ['ended']


@pytest.mark.parametrize('again', [True, False])
def test_in_another_time_zone_the_ring_is_still_the_same(log, follower, again):
    line = 'Fri Nov 20 %02d:%02d:45 2026 authpriv.warn dropbear[%d]: Bad password attempt for \'root\' from 192.0.2.7:5'
    log.write(*[line % (22, n, n) for n in range(3)])
    reader = follower(None).settle()
    if again:                                      # banwatch is started again
        reader = Follower(log).start(reader.stopped())
    else:
        log.let('dies', 1)
        reader.until(lambda: reader.source.trouble)
        reader.new()
    log.ring.write_text(''.join((line % (23, n, n)) + '\n' for n in range(4)))
    reader.settle(1)
    reader.has(line % (23, 3, 3))
    reader.stopped()


@pytest.mark.parametrize('kept', [False, True])
def test_what_a_new_log_daemon_was_told_before_the_follower_found_it_comes_from_its_ring(log, follower, kept):
    log.write('old')
    reader = follower().settle()
    reader.hears('one')
    log.restart(b'old\none\n' if kept else b'', 'lost one', 'lost two')
    reader.until(lambda: reader.incidents)
    reader.settle(2)
    reader.has('old', 'one', 'lost one', 'lost two')
    reader.hears('live')


def test_a_hole_in_what_the_follower_told_does_not_make_the_ring_count_twice(log, follower):
    """It found the new log daemon without a word; then it died."""
    log.write('old')
    reader = follower().settle()
    log.let('silent')
    log.let('sleeps', 0.02)
    log.restart(b'old\n', 'lost')
    reader.until(lambda: log.pids('reconnected'))
    reader.hears('told')
    log.let('dies')
    reader.until(lambda: reader.source.trouble)
    log.write('last')
    reader.settle(1)
    assert sorted(reader.got) == ['last', 'lost', 'old', 'told']


def test_while_the_log_daemon_is_away_it_is_looked_for_later_and_later(log, follower):
    log.let('away', 10)
    reader = follower()
    reader.until(lambda: reader.source.trouble)
    assert 'Failed to find log object' in reader.source.trouble
    log.write('meanwhile')
    reader.settle(1)
    reader.has('meanwhile')
    assert reader.source.trouble == ''


def test_a_ring_that_holds_nothing_of_what_was_seen_has_lost_lines_and_that_is_told(log, follower):
    log.let('size', 3)
    log.write('one')
    reader = follower().settle()
    log.let('dies')
    reader.until(lambda: reader.source.trouble)
    reader.incidents.clear()
    log.write(*'abcde')
    reader.settle(1)
    reader.has('one', 'c', 'd', 'e')
    assert any('lost' in why for why in reader.incidents)


def test_equal_lines_on_both_sides_of_a_restart_count_as_often_as_they_were_written(log, follower):
    log.write('a', 'b', 'b')
    reader = follower().settle()
    position = reader.stopped()
    log.write('b', 'b', 'c')
    again = follower(position).settle()
    again.has('b', 'b', 'c')
    assert set(again.ages) == {banwatch.RECENT} and not again.incidents


def test_more_lines_than_are_remembered(log, follower):
    log.write(*['line %d' % n for n in range(3 * banwatch.SEEN)])
    position = follower().settle().stopped()
    assert len(position) == banwatch.SEEN
    log.write('new')
    assert follower(position).settle().got == ['new']


@pytest.mark.parametrize('position', [5, 'x', [[]], [1.5]])
def test_a_senseless_position_is_as_good_as_none(log, follower, position):
    log.write('old')
    reader = follower(position).settle()
    reader.has('old')
    assert reader.source.trouble == ''


# --- silence

def test_a_deaf_follower_is_found_out_and_what_it_missed_comes_once(log, follower):
    log.write('old')
    reader = follower().settle()
    reader.hears('one')
    log.let('deaf')
    reader.until(lambda: log.pids('deafened'))
    log.write('missed', 'missed')
    reader.after_silence()
    assert reader.incidents == ['has gone deaf']
    reader.settle(1)
    reader.has('old', 'one', 'missed', 'missed')
    reader.hears('live')
    assert len(log.alive()) == 1


def log_socket(log):
    """What each log daemon makes anew."""
    path = str(log.folder / 'socket')
    if os.path.exists(path):
        os.rename(path, path + '.old')               # its inode is not to be given to the next one
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(path)
    return path


def test_a_new_log_daemon_is_noticed_within_a_minute_though_the_follower_says_nothing(log, follower, monkeypatch):
    monkeypatch.setattr(banwatch.Logread, 'SOCKET', log_socket(log))
    reader = follower().settle()
    reader.hears('one')
    reader.source.check()
    log.let('deaf')
    reader.until(lambda: log.pids('deafened'))
    log_socket(log)
    log.restart(log.ring.read_bytes(), 'two')
    log.write('three')
    assert not reader.incidents, 'nothing had changed'
    reader.source.check()
    assert reader.incidents == ['its log daemon was replaced']
    reader.settle(2)
    reader.has('one', 'two', 'three')
    reader.hears('four')
    os.rename(log_socket(log), str(log.folder / 'gone'))        # none, for a while: the follower has its own way to tell
    reader.source.check()
    assert len(reader.incidents) == 1 and len(log.alive()) == 1


def test_a_line_that_comes_while_the_ring_is_asked_is_no_deafness(log, follower):
    log.write('old')
    reader = follower().settle()
    log.let('lags')
    log.let('lingers', 0.05)
    log.write('just now')
    reader.machine.pass_time(banwatch.SILENCE)
    reader.source.check()
    reader.until(reader.idle)
    log.end('lags')
    reader.until(lambda: 'just now' in reader.got)
    reader.tick(banwatch.SETTLE)
    assert not reader.incidents and reader.got == ['old', 'just now']


def test_the_ring_is_asked_once_each_silence_and_never_while_lines_come(log, follower):
    log.write('old')
    reader = follower().settle()
    for n in range(30):                            # half an hour, in its first ten minutes a line each
        if n < 10:
            reader.hears('line')
        assert len(reader.machine.ran) == 1 or n > 10
        reader.machine.pass_time(60)
        reader.source.check()
        reader.until(reader.idle)
    assert reader.machine.ran[1:] == [['logread', '-l', '1']] * (1200 // banwatch.SILENCE)
    assert not reader.incidents and len(log.alive()) == 1


def test_an_empty_ring_and_one_that_cannot_be_asked_are_no_deafness(log, follower):
    reader = follower().settle()
    reader.after_silence()
    log.let('fails', 4)
    reader.after_silence()
    assert not reader.incidents
    reader.hears('live')


# --- what it leaves behind, and what it must not find

def no_terminal():
    raise FileNotFoundError(2, 'No such file or directory')


@pytest.mark.parametrize('openpty', [no_terminal, os.pipe])
def test_a_machine_without_terminals_or_with_odd_ones_can_follow_too(log, follower, monkeypatch, openpty):
    monkeypatch.setattr(os, 'openpty', openpty)    # there is no machine without /dev/ptmx to try it on
    reader = follower().settle()
    reader.hears('live')
    reader.stopped()
    assert poll(lambda: not log.alive())


def test_each_start_gives_back_its_files_and_its_process(log, follower):
    reader = follower().settle()
    gc.collect()                                   # what other tests have left open
    before = len(os.listdir('/proc/self/fd'))
    for _ in range(4):
        log.let('dies')
        reader.until(lambda: reader.source.trouble)
        reader.settle(60)
    assert len(os.listdir('/proc/self/fd')) <= before and len(log.alive()) == 1


def test_what_banwatch_writes_matches_none_of_its_filters():
    """Its own lines come back to it through the log; a quotation from the log in them must not count again."""
    def found(head, text):
        block = banwatch.tidy((head + text + '\n').encode())
        return [name for name, each in filters.items() if list(each.scan(block, lambda date: 5000.0))]
    filters = {name: banwatch.load_filter(name) for name in set(banwatch.FILTERS) - {'common'}}
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

    def __init__(self, log, rng):
        self.log, self.rng = log, rng
        self.written, self.excused, self.pending = collections.Counter(), collections.Counter(), []
        self.got, self.incidents, self.deaf = [], [], False
        self.reader = Follower(log).start().settle()

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
def test_any_sequence_of_troubles_counts_each_line_once(log, seed):
    model = Model(log, random.Random(seed))
    log.let('size', model.rng.choice([20, 150, 1000]))
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
def test_a_killed_banwatch_leaves_no_program_behind_and_counts_on_where_it_was(log, daemon):
    log.write(*guesses(5, ago=7200) + guesses(1))  # the ring is backlog: what is in it counts if it is recent
    there = daemon(source='logread\n  exec:/bin/sh -c "echo $$ >%s; sleep 1000"' % (log.folder / 'other'), firewall='none', maxretry=7)
    there.wait_failures('dropbear', 1)
    log.write(*guesses(2))
    there.wait_failures('dropbear', 3)
    pids = log.alive() + log.pids('other')
    assert len(pids) == 2 and all(terminal(pid) for pid in pids) and not terminal(there.process.pid)
    there.kill()
    assert poll(lambda: not any(is_running(pid) for pid in pids))
    log.write(*guesses(1))
    log.let('slow', 0.3)                           # seconds until the new follower follows
    there.start()
    log.write(*guesses(2))
    there.wait_failures('dropbear', 3)
    assert not there.bans('198.51.100.7')
    log.write(*guesses(1))
    assert [row['failures'] for row in there.wait_banned('198.51.100.7')] == [7]
    there.stop()
    assert poll(lambda: not log.alive())


@pytest.mark.slow
def test_a_log_daemon_that_is_restarted_during_an_attack_costs_no_failure(log, daemon):
    there = daemon(source='logread', firewall='none', maxretry=26)
    poll(log.followers)
    log.write(*guesses(10))
    there.wait_failures('dropbear', 10)
    log.restart(b'', *guesses(5))
    log.write(*guesses(5))
    there.wait_failures('dropbear', 20)
    log.write(*guesses(5))
    there.wait_failures('dropbear', 25)
    log.write(*guesses(1))
    assert [row['failures'] for row in there.wait_banned('198.51.100.7')] == [26]
    assert there.said().count('] ban ') == 1 and poll(lambda: len(log.alive()) == 1)
    assert 'logread' in there.command('report').stdout
