"""Log in, report out: each file of cases/ is a log, and the summary that its owner gets of it. See cases/README."""
import glob
import os
import re

import pytest

import banwatch
from harness import FakeMachine, House, turn, zone

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'cases')
START = 1795132800                                 # Fri 20 Nov 2026 00:00, UTC


def read_case(path):
    """Section -> its lines."""
    found, section = {}, None
    with open(path, encoding='utf-8', newline='\n') as f:
        for line in f.read().split('\n'):
            head = re.fullmatch(r'==> (\w+)', line)
            if head:
                section = found.setdefault(head.group(1), [])
            elif section is not None:
                section.append(line)
    return found


def repetitions(line):
    """The lines that one stands for: `* 3 ...{n}` for three, with 1 to 3, `* 10-12 ...{n}` with 10 to 12."""
    m = re.match(r'\* (?:(\d+)-)?(\d+) (.*)', line)
    return [line] if m is None else [m.group(3).replace('{n}', str(n)) for n in range(int(m.group(1) or 1), int(m.group(2)) + 1)]


class TimedHouse(House):
    """A House that reads what is written, at the moment that the line tells."""

    def __init__(self, folder, conf, first):
        machine = FakeMachine()
        machine.now, machine.time = 100000.0, first // 86400 * 86400
        super().__init__(folder, conf, machine=machine)

    def conf(self):
        """Without defaults of its own."""
        self.defaults = {}
        return super().conf()

    def start(self):
        self.machine.nets = [banwatch.make_exempt('192.168.1.0/24', 'the LAN, br-lan')]
        self.machine.memory = lambda: (0, 1 << 20)
        super().start()

    def pass_time(self, seconds):
        while seconds > 0:                         # what is due each minute need not come more than once an hour
            self.machine.pass_time(min(seconds, 3600))
            turn(self.daemon)
            seconds -= 3600

    def read(self, line):
        raw = line.encode('utf-8', 'surrogateescape')
        when = moment(raw, self.machine.time)
        if when is not None:
            self.pass_time(when - self.machine.time)
        with open(self.fifo, 'wb') as f:
            f.write(raw + b'\n')
        turn(self.daemon)

    def do(self, word, *words):
        """A line of a case that begins with @."""
        if word == 'wait':
            self.pass_time(banwatch.duration(words[0]))
        elif word == 'send':
            assert self.ask('report', send=True)['sent']
        else:
            {'restart': lambda: (self.stop(), self.restart())}[word]()


def moment(raw, now):
    """When a line was written, None if it does not say."""
    date = banwatch.read_line(raw).date
    return date and banwatch.date_time(date, int(now) // 86400)


def raw_text(text):
    """\\xff and the like stand for bytes, \\\\ for a backslash."""
    return re.sub(r'\\(?:x([0-9a-f]{2})|\\)', lambda m: '\\' if m.group(1) is None else bytes([int(m.group(1), 16)]).decode(
        'utf-8', 'surrogateescape'), text)


def told(path, folder):
    """(summary as text without HEALTH, all of it in each form) of a case."""
    case = read_case(path)
    lines = [line for line in case['log'] if line]
    dates = [moment(raw_text(line).encode('utf-8', 'surrogateescape'), START) for line in lines if line[0] not in '@*']
    router = TimedHouse(folder, '\n'.join(case.get('conf', [])) + '\n', min([when for when in dates if when is not None] or [START]))
    for line in lines:
        if line.startswith('@ '):
            router.do(*line[2:].split())
        else:
            for text in repetitions(line):
                router.read(raw_text(text))
    summary = router.ask('report')['summary']
    mail = banwatch.report_mail(summary, router.daemon.config.options('report'), router.machine.time, 0.5)
    router.stop()
    text = banwatch.report_text(summary)
    assert not [line for line in router.machine.logged if 'Traceback' in line]
    return text.partition('\nHEALTH\n')[0].rstrip('\n').split('\n'), (text, banwatch.report_page(summary), mail, str(summary))


def expected(lines):
    """The regex of a report; a line `...` stands for any number of lines."""
    lines = [line.rstrip() for line in '\n'.join(lines).strip('\n').split('\n')]
    return '\n'.join([r'(?:.*\n)*?.*' if line == '...' else re.escape(line) for line in lines])


@pytest.mark.parametrize('path', sorted(glob.glob(os.path.join(FOLDER, '*.case'))), ids=lambda path: os.path.basename(path)[:-5])
def test_the_report_of_a_log_is_the_one_its_case_shows(path, tmp_path, monkeypatch):
    with zone(monkeypatch, 'UTC'):
        shown, forms = told(path, tmp_path)
    case = read_case(path)
    assert re.fullmatch(expected(case['report']), '\n'.join(shown)), '\n'.join(['', 'it says:'] + shown)
    for text in filter(None, case.get('never', [])):
        assert not any(raw_text(text) in form for form in forms), text


def test_there_are_cases():
    assert len(glob.glob(os.path.join(FOLDER, '*.case'))) >= 8
