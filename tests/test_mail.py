"""The summary on its way to its reader: as a mail, as a page, at a terminal; and that nothing is lost, or told twice."""
import contextlib
import email
import email.policy
import email.utils
import functools
import html
import html.parser
import json
import os
import pty
import re
import signal
import socketserver
import stat
import subprocess
import threading

import pytest

import banwatch
from banwatch import DAY, HOUR, MINUTE, PARTS
from conftest import need
from harness import FakeMachine, House, Running, banwatch_argv, config, facts_of, poll
from test_end_to_end import ROUTER

# what an attacker would like to have in a mail, a page or a terminal; as it stands in a log's text
HOSTILE = ['Bcc: x@y', 'a\r\nBcc: x@y', 'a\n\n.\nQUIT', '\x1b[31m<script>alert(1)</script>', '<img src=x onerror=alert(1)>', '"><b onclick=\'x\'>',
           '&lt;&#60;', '\udcff\udcfe', '\u202egnp.exe', '\u200f\u2066\ufeff', 'a\0b', '\x7f\x85\u2028\u2029', '=?utf-8?q?=0ABcc:_x?=', '--=_banwatch--',
           '=\n', '.', 'From me', '\U000e0001' * 9, 'e\u0301\u0336' * 20]
HEADERS = ['From', 'To', 'Subject', 'Date', 'Message-ID', 'MIME-Version', 'Auto-Submitted']
LONG = '\U0001f600ü€ ' * 50
TAGS = {'html': {'lang'}, 'head': set(), 'meta': {'charset', 'name', 'content'}, 'title': set(), 'style': set(), 'body': set(), 'main': set(),
        'h1': set(), 'h2': set(), 'i': set(), 'p': {'class'}, 'b': {'style'}, 'section': {'class'}, 'div': {'class'}, 'table': {'class'},
        'tr': set(), 'th': {'class'}, 'td': {'class', 'title'}}


def settings(**options):
    """Those of [report], as they would be written."""
    return config('[report]\n' + ''.join('%s = %s\n' % (name.rstrip('_'), value) for name, value in options.items())).options('report')


def summary(tally=None, accounts=(), **facts):
    """A summary of one day that ends now."""
    machine = FakeMachine()
    machine.now += 10 * DAY
    report = banwatch.Report(machine.now - DAY)
    report.tally.set_clock(machine.time - DAY - (machine.now - DAY))
    if tally:
        tally(report.tally, machine.now)
    return banwatch.summarise(report, dict(facts_of(machine, banwatch.Bans(10), running=True, accounts=accounts), **facts))


def filled(*texts):
    """What makes a tally full: in each part as many rows as it takes, of these texts."""
    def fill(tally, now):
        for name, part in PARTS.items():
            if name == 'counts':
                continue
            for n in range(part.limit):
                text = texts[n % len(texts)]
                value = {'t': '%d%s' % (n, text), 'n': 1000 + n, 'f': now - 60000 + n, 'l': now - n, 'e': text, 'b': True,
                         'm': now - n * HOUR, 'h': int((now + tally.offset) // HOUR) - n, 'd': [[now - i, banwatch.shortened(banwatch.printable('%d%s' % (i, text)), 200)] for i in range(10)]}
                key = [banwatch.shortened(value[code], 200) if code == 't' else value[code] for code in part.key]
                if name == 'addresses':
                    key = ['198.51.%d.%d' % (n % 9, n // 9)]
                elif name in ('pairs', 'ignored'):
                    key[0] = '198.51.%d.%d' % (n % 9, n // 9)
                elif name == 'rules':
                    key[0] = 'warning' if n % 2 else 'info'
                elif name == 'other':
                    key[2] = 'err' if n % 2 else ''
                tally.note(name, tuple(key), *[banwatch.shortened(value[code], 200) if code in 'te' else value[code] for code in part.cell])
            for text in texts:
                tally.failure('sshd', '198.51.1.7', text, 1, now)
                tally.login('sshd', '198.51.1.7', '198.51.1.7', text, now, '')
    return fill


@functools.lru_cache(maxsize=None)
def everything(*texts, **facts):
    """The fullest summary there can be."""
    names = {'%d%s' % (n, text): 'all' for n in range(200) for text in texts}
    return summary(filled(*texts), details={banwatch.shortened(name, 200): which for name, which in names.items()},
                   sources=[('/log/' + text, 1, 'has gone: ' + text) for text in texts], firewall=list(texts), **dict({'host': 'router'}, **facts))


@functools.lru_cache(maxsize=None)
def made_mail(*texts):
    return mail(everything(*texts))


def mail(made, **options):
    """(the message as text, the same as `email` reads it)."""
    text = banwatch.report_mail(made, settings(**options), 1800000000.0, 0.5)
    return text, parsed(text)


def parsed(text):
    return email.message_from_string(text, policy=email.policy.default)


def bodies(message):
    return [part.get_content() for part in message.iter_parts()] if message.is_multipart() else [message.get_content()]


class Tags(html.parser.HTMLParser):
    """Notes the (tag, attributes) of a page, what is open at its end, and its text."""

    def __init__(self, page):
        super().__init__()
        self.seen, self.open, self.text = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        self.open += [tag] * (tag != 'meta')

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def is_ascii(text):
    return all(' ' <= c <= '~' or c == '\n' for c in text)


def is_safe(text):
    """Is there nothing in it but letters and line ends?"""
    return all(c.isprintable() or c == '\n' for c in text)


# --- the message

def test_a_mail_has_the_headers_that_a_mail_needs_and_each_of_them_once():
    text, message = mail(dict(everything('x'), host='OpenWrt'))
    assert [name for name, _ in message.items()] == HEADERS + ['Content-Type']
    assert message['From'] == 'banwatch <root@OpenWrt>' and message['To'] == 'root'
    assert message['Auto-Submitted'] == 'auto-generated' and message['MIME-Version'] == '1.0'
    assert message['Message-ID'] == '<1800000000.500000000.banwatch@OpenWrt>'
    assert message['Date'].datetime.timestamp() == 1800000000 and not message.defects


def test_the_subject_carries_the_verdict():
    def day(tally, now):
        tally.note('incidents', ('nft', 'repaired'), 2, now, now)
        tally.note('incidents', ('mail', 'failed'), 1, now, now)
        tally.note('jails', ('sshd',), 90, 0, 14, 0, 0, 0)
        tally.login('sshd', '192.0.2.7', '192.0.2.7', 'root', now, '')
    made = summary(day, host='OpenWrt', wall=1795240800.0)
    assert re.fullmatch(r'\[OpenWrt\] 2 warnings, 14 bans, 1 login — (Fri 20|Sat 21) Nov', mail(made)[1]['Subject'])
    assert mail(summary())[1]['Subject'].startswith('[router] all quiet — ')


def test_the_two_bodies_are_alternatives_text_first_and_decode_to_what_was_written():
    made = everything('x')
    text, message = made_mail('x')
    assert message.get_content_type() == 'multipart/alternative'
    assert [part.get_content_type() for part in message.iter_parts()] == ['text/plain', 'text/html']
    assert [part['Content-Transfer-Encoding'] for part in message.iter_parts()] == ['quoted-printable'] * 2
    plain, page = bodies(message)
    assert any((plain, page) == (banwatch.report_text(made, most), banwatch.report_page(made, most)) for most in (1.0, 0.5, 0.25, 0))
    assert not message.defects and not any(part.defects for part in message.iter_parts())


def test_letters_of_all_kinds_decode_to_what_was_written():
    made = summary(lambda tally, now: tally.note('rules', ('info', 'mine', 'Grüße — €\U0001f600=\\ .'), 1, now, now, [[now, ' line. ']]))
    assert bodies(mail(made)[1]) == [banwatch.report_text(made), banwatch.report_page(made)]


# texts of which a mail becomes as long as it can: as they are, in quoted-printable, in HTML
SLOW = pytest.mark.slow
FILLINGS = pytest.mark.parametrize('text', [
    'x', '<&>"' * 60, pytest.param('\U0001f600' * 200, marks=SLOW), pytest.param(LONG, marks=SLOW), pytest.param('\0' * 60, marks=SLOW)],
    ids=['letters', 'tags', 'four bytes', 'mixed', 'NUL'])


@FILLINGS
def test_a_mail_never_grows_beyond_32_kib_and_its_text_not_beyond_120_lines_of_80_columns(text):
    whole, message = made_mail(text)
    plain = bodies(message)[0]
    for lines in (plain.split('\n'), banwatch.report_text(everything(text)).split('\n')):
        assert len(lines) - 1 <= 120 and max(map(len, lines)) <= 80
    assert not message.defects and is_safe(plain) and is_ascii(whole) and '\r' not in whole
    assert max(map(len, whole.split('\n'))) <= 76
    assert len(whole) <= 32 * 1024


def test_what_is_too_much_for_a_mail_is_told_as_a_number():
    plain = bodies(made_mail('x')[1])[0]
    assert re.search(r'^  \+ \d+ more$', plain, re.M) and re.search(r'^\+ \d+ more lines$', plain, re.M)


def test_nothing_of_a_log_becomes_a_header_a_boundary_or_a_tag():
    whole, message = made_mail(*HOSTILE)
    assert [part.get_content_type() for part in message.walk()][0] in ('multipart/alternative', 'text/plain')
    assert not message.defects and message.epilogue in (None, '') and is_ascii(whole)
    assert all(is_safe(body) for body in bodies(message))
    page = banwatch.report_page(everything(*HOSTILE))
    assert is_safe(page)
    read = Tags(page)
    assert not read.open and {tag for tag, _ in read.seen} == set(TAGS)
    for tag, attributes in read.seen:
        assert set(attributes) <= TAGS[tag], (tag, attributes)


@pytest.mark.parametrize('text', HOSTILE, ids=ascii)
def test_no_host_name_becomes_a_header_of_its_own(text):
    message = mail(dict(summary(), host='h' + text))[1]
    assert [name for name, _ in message.items()] == HEADERS + ['Content-Type', 'Content-Transfer-Encoding']
    assert is_safe(message['Subject']) and is_safe(message['From']) and len(message['From'].addresses) == 1 and not message.defects
    assert is_safe(message.get_content())


def test_what_stands_in_a_page_is_what_was_logged_but_for_what_could_do_harm():
    shown = ''.join(Tags(banwatch.report_page(everything('<b>&amp;"\''))).text)
    assert '<b>&amp;"\'' in shown


def test_a_page_needs_nothing_else_from_anywhere():
    page = banwatch.report_page(everything('x'))
    assert not re.search(r'src|href|@import|url\(|http|javascript', page)


@pytest.mark.parametrize('host, name', [
    ('OpenWrt', 'OpenWrt'), ('r1.example.org', 'r1.example.org'), ('Büro Süd', 'B-ro-S-d'), ('a\r\nBcc: x', 'a--Bcc--x'), ('...', 'localhost'), ('', 'localhost')])
def test_a_hosts_name_makes_the_sender_whatever_stands_in_it(host, name):
    message = mail(summary(host=host))[1]
    assert message['From'].addresses[0].addr_spec == 'root@' + name
    assert message['Message-ID'].endswith('@%s>' % name)


@pytest.mark.parametrize('written, read', [
    ('root', [('', 'root')]), ('me@example.org', [('', 'me@example.org')]), ('Me <me@example.org>', [('Me', 'me@example.org')]),
    ('root, Jürgen Größe <j+x@example.org>,a@[192.0.2.7]', [('', 'root'), ('Jürgen Größe', 'j+x@example.org'), ('', 'a@[192.0.2.7]')]),
    ('Dachboden — oben <a@b>', [('Dachboden — oben', 'a@b')]), ('"Größe" <a@b>', [('Größe', 'a@b')]), ('日本語 日本語 <a@b>', [('日本語 日本語', 'a@b')])])
def test_mailboxes_reach_the_mail_with_their_names(written, read):
    message = mail(summary(), to=written)[1]
    assert [(box.display_name.strip('"'), box.addr_spec or box.username) for box in message['To'].addresses] == read
    if ',' not in written:
        assert mail(summary(), from_=written)[1]['From'].addresses[0].display_name.strip('"') == read[0][0]


def test_forty_recipients_are_forty_in_folded_lines():
    boxes = ['Person Number %d <person%d@mail.example.org>' % (n, n) for n in range(40)]
    text, message = mail(summary(), to=', '.join(boxes))
    assert [str(box) for box in message['To'].addresses] == [box for box in boxes]
    assert max(map(len, text.split('\n'))) <= 76


@pytest.mark.parametrize('text', [
    'short', 'x' * 300, 'word ' * 60, 'größer ' * 60, '€' * 300, 'a=?utf-8?q?b?= c', '  two  spaces  ', 'ü  ü', '', '?', ' ü',
    '\U0001f600 x \U0001f600'], ids=lambda text: ascii(text[:20]))
def test_a_header_is_folded_and_reads_as_it_was_meant(text):
    header = banwatch.mail_header('Subject', text)
    lines = header.split('\n')
    assert is_ascii(header) and lines[0].startswith('Subject:') and all(line[0] == ' ' and line.strip() for line in lines[1:])
    for line in lines:                             # RFC 2047 allows no more where a word is encoded; any other may be longer
        assert len(line) <= 76 or '=?' not in line and len(line[8:].split()) == 1 and len(line) <= 998
    assert parsed(header + '\n\n')['Subject'].split() == text.split()


def test_a_mail_without_news_is_two_lines_of_plain_text():
    text, message = mail(summary(host='OpenWrt'))
    assert message.get_content_type() == 'text/plain' and not message.defects
    lines = message.get_content().strip().split('\n')
    assert len(lines) == 2 and lines[0] == 'OpenWrt: all quiet, nothing to report.' and '1d · up' in lines[1]


# --- [report] in the conf

@pytest.mark.parametrize('line, complaint', [
    ('to =', "to: '': no mail address"), ('to = me@', "to: 'me@': no mail address"), ('to = a b@c', 'no mail address'), ('to = a@b, , c@d', 'no mail address'),
    ('to = -oQ/tmp', "'-oQ/tmp': no mail address"), ('to = me@a\n  Bcc: you@b', 'no mail address'), ('to = Me <me@a', 'no mail address'),
    ('from = a@b, c@d', "from: 'a@b, c@d' is more than one address"), ('from = x y', "from: 'x y': no mail address"),
    ('sendmail =', "sendmail: '' names no program"), ('sendmail = sendmail "-t', 'sendmail: '), ('sendmail = sendmail -t | tee x', 'sendmail: '),
    ('empty = perhaps', 'empty: '), ('other = 2', 'other: '), ('mailmax = many', 'mailmax: '), ('mailmax = -1', 'mailmax: '),
    ('htmlmode = 6444', "htmlmode: '6444' is not a file mode (try 600, 644)"), ('htmlmode = rw-r--r--', 'is not a file mode'), ('htmlmode = 044', 'is not a file mode'),
    ('subject = x', 'subject')])
def test_each_wrong_value_is_told_with_file_and_line(line, complaint):
    _, found = banwatch.read_config('[report]\n' + line + '\n', 'test.conf')
    assert len(found) == 1 and re.match(r'test\.conf:2: ', found[0]) and complaint in found[0] and is_safe(found[0]), found


def test_who_gets_the_mail_who_sends_it_and_by_what_is_the_owners_choice(make):
    desk = make('[report]\nto = me@example.org\nfrom = Router <r@example.org>\nsendmail = /opt/mail --with "two words"\n')
    desk.fail('192.0.2.7')
    assert desk.send()['to'] == 'me@example.org'
    assert desk.machine.posted[0].argv == ['/opt/mail', '--with', 'two words']
    assert (desk.mails()[0]['To'], desk.mails()[0]['From']) == ('me@example.org', 'Router <r@example.org>')


@pytest.mark.parametrize('there, program', [((), 'sendmail'), (['/usr/lib/sendmail'], '/usr/lib/sendmail')])
def test_sendmail_is_looked_for_where_it_used_to_be_too(make, there, program):
    desk = make()
    desk.machine.which, desk.machine.exists = lambda name: None, lambda path: path in there
    desk.fail('192.0.2.7')
    desk.send()
    assert desk.machine.posted[0].argv == [program, '-t', '-i']


# --- sent by a daemon whose clock is turned, to a sendmail that does as the test says

class Post(FakeMachine):
    """A FakeMachine with a sendmail: what it has been given is `posted`, what it has said yes to has `gone`."""
    slow_mail = False                # does it answer only when the test says so?
    refuses = ''

    def __init__(self):
        self.posted, self.gone, self.held = [], [], []
        super().__init__()

    def run(self, command, done, seconds=10):
        if 'Message-ID:' not in command.stdin:
            return super().run(command, done, seconds)
        self.posted.append(command)

        def ended(problem):
            self.gone += [command] * (not problem)
            done(problem, '')
        if self.slow_mail:
            self.held.append(ended)
        else:
            ended(self.refuses)

    def finish(self, problem=''):
        self.held.pop(0)(problem)


class Desk(House):
    """A House whose mails one can read."""

    def __init__(self, folder, text='', **defaults):
        super().__init__(folder, text, **dict({'maxretry': 100, 'machine': Post()}, **defaults))

    def ask(self, do, **request):
        """The answer, None if there is none yet."""
        self.answers = []
        self.daemon.answer(dict(request, do=do), self.answers.append)
        self.turn()
        return (self.answers or [None])[0]

    def send(self):
        return self.ask('report', send=True)

    def summary(self):
        return self.ask('report')['summary']

    def mails(self):
        return [parsed(command.stdin) for command in self.machine.posted]

    def subjects(self):
        """Of all that was posted, without the router's name and the date."""
        return [re.sub(r'^\[router\] |(?<=— )\w{3} \d\d \w{3}', '', mail['Subject']).strip() for mail in self.mails()]

    def finish(self, problem=''):
        self.machine.finish(problem)
        self.turn()

    def restart(self, boot=None, **clocks):
        """A new daemon; another boot id means that all in RAM has gone."""
        old, self.machine = self.machine, Post()
        for name in ('now', 'time', 'boot', 'posted', 'gone'):
            setattr(self.machine, name, getattr(old, name))
        if boot:
            self.machine.boot = boot
            (self.folder / 'run' / 'state.json').unlink()
        for name, value in clocks.items():
            setattr(self.machine, name, value)
        self.start()

    def failures(self):
        return self.summary()['bans']['failures']

    def quiet_day(self, seconds=DAY):
        """Nothing happens, but the log is not silent."""
        self.pass_time(seconds)
        self.log('hello', 'banwatch')

    def log(self, text, program='prog'):
        self.write('Thu Mar  7 12:34:56 2024 daemon.warn %s[7]: %s\n' % (program, text))


@pytest.fixture
def make(tmp_path):
    return lambda *args, **more: Desk(tmp_path, *args, **more)


@pytest.fixture
def desk(make):
    made = make()
    made.fail('192.0.2.7', 5)
    return made


def test_a_period_ends_when_sendmail_says_yes_and_what_comes_meanwhile_belongs_to_the_next(desk):
    desk.machine.slow_mail = True
    assert desk.send() is None and desk.failures() == 5
    desk.fail('192.0.2.8', 2)
    assert desk.failures() == 7                     # nothing of it has been told for sure
    desk.send()
    desk.finish()
    assert desk.answers[0]['sent'].startswith('[router] 5 failures')
    assert desk.failures() == 2 and len(desk.machine.posted) == 1
    assert desk.machine.said('report: sent to root: [router] 5 failures')


def test_a_mail_that_does_not_go_is_part_of_the_next_and_said_once(desk):
    desk.machine.refuses = 'sendmail: no route'
    answer = desk.send()
    assert answer['problem'] == 'sendmail: no route' and not answer['sent']
    desk.fail('192.0.2.8', 2)
    assert desk.failures() == 7 and 'report: not sent: sendmail: no route' in desk.ask('status')['wrong']
    desk.pass_time(60)
    assert sum('not sent' in line for line in desk.machine.logged) == 1
    desk.machine.refuses = ''
    desk.pass_time(120)
    assert desk.mails()[-1]['Subject'].startswith('[router] 1 warning, 7 failures')
    assert 'mail: sendmail: no route (2 times' in bodies(desk.mails()[-1])[0]
    assert desk.ask('status')['wrong'] == [] and desk.failures() == 0


def test_it_is_tried_again_after_one_minute_then_two_four_and_at_most_an_hour(desk):
    desk.machine.refuses = 'no'
    desk.send()
    for n, minutes in enumerate((1, 2, 4, 8, 16, 32, 60, 60, 60), 1):
        desk.pass_time(minutes * MINUTE - 1)
        assert len(desk.machine.posted) == n
        desk.pass_time(1)
        assert len(desk.machine.posted) == n + 1
    desk.machine.refuses = ''
    assert desk.send()['sent']                     # by hand at once
    desk.pass_time(HOUR)
    assert len(desk.machine.gone) == 1 and len(desk.machine.posted) == 11
    desk.fail('192.0.2.8')
    desk.machine.refuses = 'no'
    desk.send()
    desk.pass_time(MINUTE)
    assert len(desk.machine.posted) == 13          # the next trouble begins with a minute again


def test_two_sends_at_once_send_one_mail_and_answer_both(desk):
    desk.machine.slow_mail = True
    desk.send()
    first = desk.answers
    desk.send()
    desk.finish()
    assert first[0]['sent'] == desk.answers[0]['sent'] and len(desk.machine.posted) == 1


def test_days_that_could_not_be_told_are_one_mail_that_says_how_many(desk):
    desk.machine.refuses = 'no'
    for day in range(3):
        desk.fail('192.0.2.%d' % day)
        desk.send()
        desk.pass_time(DAY)
    desk.machine.refuses = ''
    desk.send()
    assert desk.mails()[-1]['Subject'].endswith(', covers 3 days') and '8 failures' in desk.mails()[-1]['Subject']
    assert len(desk.machine.gone) == 1


def test_a_crash_while_it_is_on_its_way_sends_one_more_that_is_marked(desk):
    desk.machine.slow_mail = True
    desk.send()
    desk.crash()                                   # whether sendmail has sent it nobody will ever know
    desk.restart()
    desk.pass_time(59)
    assert len(desk.machine.posted) == 1
    desk.pass_time(1)
    assert desk.subjects() == ['5 failures —', '1 warning, 5 failures —  (may be a repeat)']
    assert 'may have told this already' in bodies(desk.mails()[1])[0]
    desk.fail('192.0.2.8')
    desk.pass_time(DAY)
    desk.send()
    assert desk.subjects()[2:] == ['1 failure —']


def test_a_crash_after_the_mail_was_written_down_sends_none_again(desk):
    desk.send()
    desk.crash()
    desk.restart()
    desk.pass_time(HOUR)
    assert len(desk.machine.posted) == 1 and desk.failures() == 0


@pytest.mark.parametrize('boot, mails', [(None, 1), ('boot-2', 2)])
def test_a_crash_between_the_two_files_loses_nothing_and_repeats_it_only_if_the_live_one_has_gone(desk, boot, mails):
    desk.machine.slow_mail = True
    desk.send()
    kept = (desk.folder / 'state').read_text()
    desk.finish()
    desk.crash()
    (desk.folder / 'state').write_text(kept)
    desk.restart(boot)
    desk.pass_time(MINUTE)
    assert len(desk.machine.posted) == mails and desk.failures() == 0
    assert desk.subjects()[1:] == ['5 failures —  (may be a repeat)'][:mails - 1]


@pytest.mark.parametrize('end, boot, told', [('crash', None, True), ('stop', None, False), ('crash', 'boot-2', False), ('stop', 'boot-2', False)])
def test_an_end_that_nobody_asked_for_is_told(desk, end, boot, told):
    desk.fail('192.0.2.8')
    getattr(desk, end)()
    desk.restart(boot)
    desk.pass_time(DAY)
    assert ('banwatch: ended without having been stopped' in ' '.join(row['text'] for row in desk.summary()['warnings'])) is told


def test_a_crash_at_each_of_many_tries_marks_each_of_them(desk):
    desk.machine.slow_mail = True
    desk.send()
    for _ in range(3):
        desk.crash()
        desk.restart()
        desk.machine.slow_mail = True
        desk.pass_time(MINUTE)
    assert desk.subjects() == ['5 failures —'] + ['1 warning, 5 failures —  (may be a repeat)'] * 3


def test_a_reboot_does_not_send_yesterday_again(desk):
    desk.send()
    desk.crash()
    desk.restart('boot-2', now=30.0, time=desk.machine.time + 100)
    desk.pass_time(HOUR)
    assert len(desk.machine.posted) == 1
    assert desk.summary()['reboots'] == 1 and desk.failures() == 0


def test_a_reboot_in_the_middle_of_a_period_goes_on_with_it(desk):
    desk.pass_time(DAY / 2)
    desk.stop()
    desk.restart('boot-2', now=30.0)
    desk.pass_time(DAY / 2)
    assert desk.failures() == 5 and desk.summary()['seconds'] == DAY
    desk.send()
    assert desk.mails()[0]['Subject'].startswith('[router] 5 failures') and '1 reboot' in bodies(desk.mails()[0])[0]


@pytest.mark.parametrize('boot', [None, 'boot-2'])
@pytest.mark.parametrize('end', ['stop', 'crash'])
def test_a_mail_that_is_owed_is_sent_a_minute_after_the_start_and_is_no_repeat(desk, boot, end):
    desk.machine.refuses = 'no'
    desk.send()
    getattr(desk, end)()
    desk.restart(boot)
    desk.pass_time(MINUTE)
    warnings = '2 warnings' if end == 'crash' and not boot else '1 warning'      # what was in RAM may tell of the crash
    assert desk.subjects() == ['5 failures —', warnings + ', 5 failures —'] and len(desk.machine.gone) == 1
    desk.pass_time(DAY)
    assert len(desk.machine.posted) == 2


def test_a_stop_while_it_is_on_its_way_is_like_a_crash(desk):
    desk.machine.slow_mail = True
    desk.send()
    desk.stop()
    desk.restart()
    desk.pass_time(MINUTE)
    assert desk.subjects()[1:] == ['5 failures —  (may be a repeat)']


def test_an_empty_day_is_a_mail_of_two_lines_or_none(make):
    desk = make()
    desk.quiet_day()
    assert desk.send()['sent'].startswith('[router] all quiet')
    assert len(desk.mails()[0].get_content().strip().split('\n')) == 2
    desk.text = '[report]\nempty = no\n'
    desk.ask('reload')
    desk.quiet_day()
    answer = desk.send()
    assert not answer['sent'] and answer['why'].startswith('nothing to report since ')
    assert len(desk.machine.posted) == 1 and desk.summary()['seconds'] == 0       # but the day is over


def test_cron_that_runs_twice_sends_one_mail(desk):
    desk.send()
    desk.pass_time(10)
    assert not desk.send()['sent']
    desk.pass_time(DAY / 2 - 20)
    assert not desk.send()['sent']
    desk.quiet_day(DAY / 2 + 10)
    assert desk.send()['sent'] and desk.summary()['seconds'] == 0
    assert desk.subjects() == ['5 failures —', 'all quiet —'] and '1d' in desk.mails()[1].get_content()


def test_a_clock_that_is_put_back_over_the_time_of_the_mail_sends_it_once(desk):
    desk.send()
    desk.machine.time -= 10
    desk.pass_time(10)
    assert not desk.send()['sent'] and len(desk.machine.posted) == 1


def test_a_clock_that_is_put_forward_over_the_time_of_the_mail_loses_nothing(desk):
    desk.machine.time += HOUR                      # and with it cron's
    desk.pass_time(DAY)
    desk.send()
    assert desk.mails()[0]['Subject'].startswith('[router] 5 failures')
    assert 'the clock was put forward by 1h' in re.sub(r'\s+', ' ', bodies(desk.mails()[0])[0])


def test_no_mail_goes_before_the_clock_is_set(make):
    desk = make()
    desk.machine.time = 1000.0
    desk.fail('192.0.2.7', 5)
    assert desk.send()['problem'] == 'the clock is not set yet'
    desk.pass_time(30)
    desk.machine.time = 1800000000.0
    desk.pass_time(30)
    assert len(desk.machine.posted) == 1 and '5 failures' in desk.mails()[0]['Subject']
    assert desk.mails()[0]['Date'].datetime.timestamp() == 1800000030


def test_a_mail_that_waits_for_the_clock_survives_a_crash(make):
    desk = make()
    desk.machine.time = 1000.0
    desk.fail('192.0.2.7', 5)
    desk.send()
    desk.crash()
    desk.restart(time=1800000000.0)
    desk.pass_time(MINUTE)
    assert len(desk.machine.gone) == 1


def test_what_was_wrong_with_the_mail_is_forgotten_when_there_is_none_to_send(make):
    desk = make('[report]\nempty = no\n')
    desk.machine.time = 1000.0
    desk.send()
    desk.machine.time = 1800000000.0
    desk.pass_time(MINUTE)
    assert desk.machine.posted == [] and desk.ask('status')['wrong'] == []


def test_guessing_that_succeeds_just_after_the_mail_is_a_warning_in_the_next(desk):
    desk.send()
    desk.write("Thu Mar  7 12:34:56 2024 authpriv.notice dropbear[7]: Password auth succeeded for 'root' from 192.0.2.7:53066\n")
    assert any('root logged in from 192.0.2.7 after 5 failures' in row['text'] for row in desk.summary()['warnings'])


@pytest.mark.parametrize('part, row', [
    ('addresses', ['no address', 3, 1, 'sshd']), ('logins', ['root', '192.0.2.1', 'sshd', 1e14, 1e14, -1e9]), ('hours', [1e14, 3, 4]),
    ('steps', [5, 1e15]), ('rules', ['warning', 'x', 'y', 1, -1e9, 1e14, [[1e14, 'z']]]), ('other', ['x', 'y', 'err', 1, 1e14, 1, 'z'])], ids=str)
def test_nonsense_in_a_state_file_is_no_reason_not_to_report(desk, part, row):
    desk.stop()
    live = desk.folder / 'run' / 'state.json'
    state = json.loads(live.read_text())
    state['report'].setdefault(part, []).append(row)
    live.write_text(json.dumps(state))
    desk.restart()
    assert desk.send()['sent'] and desk.mails()[0].is_multipart() and desk.failures() == 0


# --- mails at once

FIRE = '[rule fire]\nregex = ^fire at <F-USER>.*</F-USER>$\nreport = warning\ntext = fire at <F-USER>\nmail = true\n'


def test_a_rule_with_mail_sends_one_at_once(make):
    desk = make(FIRE + 'details = all\n')
    desk.log('smoke')
    assert desk.mails() == []
    desk.log('fire at home')
    message = desk.mails()[0]
    assert message['Subject'] == '[router] fire at home' and message['To'] == 'root' and not message.defects
    assert message.get_content_type() == 'text/plain' and 'prog[7]: fire at home' in message.get_content()
    assert [row['text'] for row in desk.summary()['warnings']] == ['fire at home (%s)' % banwatch.hour_text(desk.machine.time)]


@pytest.mark.parametrize('name', HOSTILE, ids=ascii)
def test_what_a_rule_has_found_becomes_neither_header_nor_control_character(make, name):
    desk = make(FIRE)
    with open(desk.fifo, 'wb') as f:
        f.write(b'Thu Mar  7 12:34:56 2024 daemon.warn prog[7]: fire at ' + name.encode('utf-8', 'surrogateescape') + b'!\n')
    desk.turn()
    for message in desk.mails():                   # a line break ends the line
        assert [key for key, _ in message.items()] == HEADERS + ['Content-Type', 'Content-Transfer-Encoding'] and not message.defects
        assert is_safe(message['Subject']) and is_safe(message.get_content())
    assert len(desk.mails()) == 1


def test_mailmax_an_hour_is_all_and_the_rest_is_told_as_a_number(make):
    desk = make(FIRE + '[report]\nmailmax = 2\n')
    for n in range(5):
        desk.log('fire at %d' % n)
        desk.pass_time(MINUTE)
    assert desk.subjects() == ['fire at 0', 'fire at 1']
    assert any('3 mails were not sent at once, for there were more than `mailmax` in an hour' in row['text'] for row in desk.summary()['warnings'])
    desk.pass_time(HOUR)
    desk.log('fire at 6')
    assert desk.subjects()[2:] == ['fire at 6']


def test_what_is_found_while_one_is_on_its_way_is_one_mail_together(make):
    desk = make(FIRE)
    desk.machine.slow_mail = True
    for n in range(4):
        desk.log('fire at %d' % n)
    assert desk.subjects() == ['fire at 0']
    desk.finish()
    assert desk.subjects() == ['fire at 0', 'fire at 1 + 2 more'] and 'fire at 3' in desk.mails()[1].get_content()
    desk.finish()
    assert len(desk.machine.posted) == 2 and not desk.machine.held


def test_a_mail_at_once_is_tried_four_times_then_told_as_not_sent(make):
    desk = make(FIRE)
    desk.machine.refuses = 'sendmail: no'
    desk.log('fire at home')
    for n in range(1, 4):
        assert len(desk.machine.posted) == n
        desk.pass_time(MINUTE)
    desk.pass_time(HOUR)
    assert desk.subjects() == ['fire at home'] * 4 and sum('not sent' in line for line in desk.machine.logged) == 1
    assert any('1 mail was not sent' in row['text'] for row in desk.summary()['warnings'])
    desk.machine.refuses = ''
    desk.log('fire again')
    desk.log('fire at last')
    assert desk.subjects()[4:] == ['fire at last']


def test_a_stop_waits_for_the_mail_at_once_that_is_on_its_way_and_sends_what_waits(make):
    desk = make(FIRE)
    desk.machine.slow_mail = True
    desk.log('fire at home')
    desk.log('fire at work')
    desk.daemon.stop()
    desk.turn()
    assert not desk.daemon.stopping
    desk.finish()
    assert desk.subjects() == ['fire at home', 'fire at work']
    desk.finish()
    assert desk.daemon.stopping


def test_a_mail_at_once_that_does_not_go_at_a_stop_is_counted_and_told_by_the_next_summary(make):
    desk = make(FIRE)
    desk.machine.refuses = 'sendmail: no'
    desk.log('fire at home')
    desk.stop()
    assert desk.daemon.stopping
    desk.restart()
    assert any('1 mail was not sent' in row['text'] for row in desk.summary()['warnings'])


def test_a_flood_while_one_is_on_its_way_neither_fills_the_memory_nor_goes_uncounted(make):
    desk = make(FIRE)
    desk.machine.slow_mail = True
    for _ in range(20):
        desk.write('Thu Mar  7 12:34:56 2024 daemon.warn prog[7]: fire at home\n' * 200)
    assert len(desk.daemon.wing('report').alerts.alerts) <= 1000
    told = 0
    while desk.machine.held:
        desk.finish()
    for message in desk.mails():
        told += len(re.findall('prog.7.: fire at home', message.get_content()))
    assert len(desk.mails()) <= 6 and told + desk.summary()['health']['unmailed'] == 4000


def test_a_dry_run_mails_nothing(tmp_path):
    desk = Desk(tmp_path, FIRE)
    daemon = banwatch.Daemon(desk.machine, desk.conf(), dry_run=True, requests=banwatch.request_table())
    daemon.consume(next(iter(desk.daemon.sources.values())), b'Thu Mar  7 12:34:56 2024 daemon.warn prog[7]: fire at home\n', 0)
    assert desk.mails() == []


# --- what a real program may do to the daemon

class RealPost(Post):
    """A Post whose sendmail is a real program; its deadline is on the clock that the test turns."""

    def run(self, command, done, seconds=10):
        if 'Message-ID:' in command.stdin:
            banwatch.Machine.run(self, command, done, seconds)
        else:
            super().run(command, done, seconds)


def script(folder, text):
    """A program to be called as sendmail."""
    path = folder / 'sendmail'
    path.write_text('#!/bin/sh\n' + text)
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize('text, problem', [
    ('cat >/dev/null; echo "no route to host" >&2; exit 75', 'sendmail: no route to host'),
    ('exit 1', 'sendmail: exit code 1'),
    ('printf "\\033[31mBcc: x\\nnext\\n\\377" >&2; exit 1', 'sendmail: \\x1b[31mBcc: x'),
    ('head -c 100000 /dev/zero >&2; exit 1', 'sendmail: ' + '\\x00' * 50),
    ('kill -9 $$', 'sendmail: exit code -9'),
    ('exec sleep 1000', 'sendmail did not answer in time'),
    ('(sleep 1000 &) ; exec sleep 1000', 'sendmail did not answer in time')])
def test_whatever_sendmail_says_or_does_the_mail_is_kept_and_one_line_tells_why(tmp_path, text, problem):
    desk = Desk(tmp_path, '[report]\nsendmail = %s -t\n' % script(tmp_path, text), machine=RealPost())
    desk.fail('192.0.2.7', 5)
    assert desk.send() is None
    if 'sleep' in text:
        desk.pass_time(59)
        desk.machine.reap()
        assert not desk.answers
        desk.pass_time(1)
    assert poll(lambda: (desk.machine.reap(), desk.turn(1), desk.answers)[2])
    assert desk.answers[0]['problem'][:200] == problem[:200] and desk.failures() == 5
    told = [line for line in desk.machine.logged if 'not sent' in line]
    assert len(told) == 1 and all(map(is_safe, desk.machine.logged)) and is_safe(json.dumps(desk.answers[0]))


def test_a_sendmail_that_reads_nothing_and_says_yes_is_believed(tmp_path):
    desk = Desk(tmp_path, '[report]\nsendmail = %s\n' % script(tmp_path, 'exec >&- <&-; exit 0'), machine=RealPost())
    desk.fail('192.0.2.7', 5)
    desk.send()
    assert poll(lambda: (desk.machine.reap(), desk.turn(1), desk.answers)[2]) and desk.answers[0]['sent']


# --- the real thing: a daemon, msmtp, and the server that it hands the mail to

class Sink(socketserver.ThreadingTCPServer):
    """An SMTP server on loopback that takes every mail: (recipients, message)."""
    daemon_threads = True

    def __init__(self):
        self.mails = []
        super().__init__(('127.0.0.1', 0), Session)
        threading.Thread(target=self.serve_forever, kwargs={'poll_interval': 0.05}, daemon=True).start()


class Session(socketserver.StreamRequestHandler):
    def handle(self):
        recipients = []
        self.say('220 sink')
        for line in iter(self.rfile.readline, b''):
            verb = line[:4].upper()
            if verb == b'RCPT':
                recipients.append(line.decode().partition(':')[2].strip().strip('<>'))
            if verb == b'DATA':
                self.say('354 go on')
                lines = [part[1:] if part[:1] == b'.' else part for part in iter(self.rfile.readline, b'.\r\n')]
                self.server.mails.append((recipients, b''.join(lines).replace(b'\r\n', b'\n').decode()))
            self.say('221 bye' if verb == b'QUIT' else '250 yes')

    def say(self, text):
        self.wfile.write(text.encode() + b'\r\n')


@pytest.fixture
def sink():
    made = Sink()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def start(tmp_path):
    """A function that starts a daemon with this in its conf: start('[report]...')."""
    made = []

    def starts(more):
        made.append(Running(tmp_path, more, maxretry=3))
        return made[-1]
    yield starts
    for each in made:
        each.close()


def counted(running, failures):
    running.until(lambda: running.ask('report')['summary']['bans']['failures'] == failures, 'the failures')


def sender(running):
    """A `report --send` that is not waited for."""
    return subprocess.Popen(banwatch_argv('-c', running.conf, 'report', '--send'),
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_a_real_sendmail_delivers_what_the_daemon_tells_and_what_it_told_without_one(start, sink, tmp_path):
    need('msmtp')
    (tmp_path / 'msmtprc').write_text('account default\nhost 127.0.0.1\nport %d\nfrom r@example.org\n' % sink.server_address[1])
    running = start('[report]\nto = Größe <me@example.org>, you@example.org\nsendmail = msmtp -C %s -t -i\n' % (tmp_path / 'msmtprc'))
    with open(str(running.fifo), 'wb') as f:
        f.write(b''.join(b'Nov 20 12:00:00 h sshd[%d]: Failed password for invalid user %s from 192.0.2.%d port 5 ssh2\n' % (
            i, name.encode('utf-8', 'surrogateescape').replace(b'\n', b'.'), i % 2 + 7) for i, name in enumerate(HOSTILE * 2)))
    with open(str(running.fifo), 'wb') as f:
        f.write(b'Nov 20 12:00:00 h x[1]: .\nNov 20 12:00:00 h x[1]: From here on \xff\x1b[31m\n')
    running.until(lambda: running.json('report', '--json')['health']['lines'] == 2 * len(HOSTILE) + 2, 'the lines')
    shown = running.command('report')
    assert shown.returncode == 0 and is_safe(shown.stdout) and 'FAILURES' in shown.stdout and shown.stderr == ''
    sent = running.command('report', '--send')
    assert (sent.returncode, sent.stdout, sent.stderr) == (0, '', ''), 'cron would mail what it says'
    assert 'report: sent to ' in running.errors.read_text(encoding='utf-8', errors='replace')
    recipients, raw = sink.mails[0]
    message = parsed(raw)
    assert recipients == ['me@example.org', 'you@example.org'] and not message.defects and message['Bcc'] is None
    plain, page = bodies(message)
    assert '192.0.2.7' in plain and page.startswith('<!DOCTYPE html>') and all(map(is_safe, (plain, page)))
    again = running.command('report', '--send')
    assert (again.returncode, again.stdout) == (0, '') and len(sink.mails) == 1
    running.fail('192.0.2.9', 2)
    counted(running, 2)
    running.process.terminate()
    running.process.wait(10)
    shown = running.command('report')
    assert shown.returncode == 0 and 'the daemon is not running: nobody is banned' in shown.stdout and '2 failures' in shown.stdout
    sent = running.command('report', '--send')
    assert (sent.returncode, sent.stdout) == (0, ''), sent
    assert len(sink.mails) == 2 and '2 failures' in bodies(parsed(sink.mails[1][1]))[0] and 'restart' not in bodies(parsed(sink.mails[1][1]))[0]
    assert running.command('report', '--json').returncode == 0 and running.json('report', '--json')['bans']['failures'] == 0


@pytest.mark.slow
def test_a_page_and_json_are_written_as_a_whole_and_for_whom_the_conf_says(start, tmp_path):
    running = start('[report]\nhtmlmode = 640\n')
    page = tmp_path / 'www' / 'page.html'
    missing = running.command('report', '--html', str(page))
    assert missing.returncode == 1 and len(missing.stderr.splitlines()) == 1 and 'No such file' in missing.stderr
    page.parent.mkdir()
    page.write_text('old')
    old = open(str(page))
    assert running.command('report', '--html', str(page)).returncode == 0
    assert stat.S_IMODE(page.stat().st_mode) == 0o640 and old.read() == 'old' and os.listdir(str(page.parent)) == ['page.html']
    assert Tags(page.read_text()).open == [] and running.command('report', '--html', '-').stdout.startswith('<!DOCTYPE html>')
    old.close()
    assert set(running.json('report', '--json')) >= {'host', 'from', 'to', 'warnings', 'bans', 'addresses', 'hours', 'other', 'health'}
    running.conf.write_text(running.text)
    assert running.command('report', '--html', str(page)).returncode == 0 and stat.S_IMODE(page.stat().st_mode) == 0o600


@pytest.mark.slow
def test_a_sendmail_that_is_missing_or_refuses_is_one_line_with_the_remedy_and_nothing_is_lost(start, tmp_path):
    running = start('[report]\nsendmail = %s\n' % (tmp_path / 'sendmail'))
    running.fail('192.0.2.7', 2)
    counted(running, 2)
    for text, said in ((None, ('No such file', 'install msmtp-mta', '/etc/msmtprc')),
                       ('echo "\033[31mno route" >&2; exit 69', ('\\x1b[31mno route', '/etc/msmtprc'))):
        if text:
            script(tmp_path, text)
        failed = running.command('report', '--send')
        assert failed.returncode == 1 and failed.stdout == '' and is_safe(failed.stderr)
        assert len(failed.stderr.splitlines()) == 1 and all(part in failed.stderr for part in said), failed.stderr
    running.process.terminate()
    running.process.wait(10)
    assert running.command('report', '--send').returncode == 1           # without the daemon no less
    script(tmp_path, 'cat >%s' % (tmp_path / 'mail'))
    sent = running.command('report', '--send')
    assert sent.returncode == 0 and '2 failures' in parsed((tmp_path / 'mail').read_text())['Subject'], sent


@pytest.mark.slow
def test_a_kill_of_the_daemon_while_sendmail_has_the_mail_repeats_it_once_and_says_so(start, tmp_path):
    os.mkfifo(str(tmp_path / 'go'))
    running = start('[report]\nsendmail = %s\n' % script(tmp_path, 'cat >%s/mail.$$; read x <%s/go' % (tmp_path, tmp_path)))
    running.fail('192.0.2.7', 2)
    counted(running, 2)
    client = sender(running)

    def mails():
        return sorted(tmp_path.glob('mail.*'), key=lambda path: path.stat().st_mtime)
    running.until(lambda: mails() and mails()[0].stat().st_size, 'the mail')
    running.process.kill()
    running.process.wait(10)
    assert client.communicate(timeout=10)[1].count(b'\n') == 1 and client.returncode == 69
    assert len(mails()) == 1                       # whoever asked for it does not take the daemon's place
    script(tmp_path, 'cat >%s/mail.$$' % tmp_path)
    running.start()
    assert '2 failures' in running.command('report').stdout
    assert running.command('report', '--send').returncode == 0
    with open(str(tmp_path / 'go'), 'w'):          # only now the first one says yes, to nobody
        pass
    first, second = (parsed(path.read_text()) for path in mails())
    assert second['Subject'].endswith('(may be a repeat)') and not first['Subject'].endswith('(may be a repeat)')
    assert running.json('report', '--json')['repeat'] is False and 'repeat' not in running.command('report', '--send').stdout


@pytest.mark.slow
def test_who_waits_for_sendmail_without_a_daemon_can_give_up(start, tmp_path):
    running = start('[report]\nsendmail = %s\n' % script(tmp_path, 'cat >%s/mail; exec sleep 1000' % tmp_path))
    running.fail('192.0.2.7', 2)
    counted(running, 2)
    running.process.terminate()
    running.process.wait(10)
    client = sender(running)
    running.until((tmp_path / 'mail').exists, 'the mail')
    client.send_signal(signal.SIGINT)
    said = client.communicate(timeout=10)
    assert client.returncode == 1 and said[0] == b'' and said[1].count(b'\n') == 1, said
    script(tmp_path, 'cat >%s/mail' % tmp_path)
    assert running.command('report', '--send').stdout == ''
    assert '2 failures' in (tmp_path / 'mail').read_text()
    assert parsed((tmp_path / 'mail').read_text())['Subject'].endswith('(may be a repeat)')


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['iptables', 'ipset', 'nft'])
def test_the_kernels_counters_say_how_many_packets_of_banned_addresses_were_dropped(network, daemon, kind):
    need(*{'iptables': ['iptables'], 'ipset': ['ipset'], 'nft': ['nft']}[kind])
    banwatch_ = daemon(firewall=kind)

    def dropped():
        return {row['jails']: row['packets'] for row in banwatch_.ask('report')['summary']['dropped']}

    def knock(version, ip, port=9):
        with pytest.raises(OSError):
            network.attacker.connect(ROUTER[version], port, ip, 0.1)
    assert network.attacker.reaches(ROUTER[6], source='2001:db8:bad::7')         # or its questions for our MAC would count, too
    assert dropped() == {}
    banwatch_.command('ban', '-j', 'sshd', '198.51.100.7', '2001:db8:bad::7')
    banwatch_.command('ban', '-j', 'luci', '198.51.100.8')
    for _ in range(3):
        knock(4, '198.51.100.7')
    everywhere, = dropped()                        # the jails that shut all ports share a rule
    assert {'sshd', 'dropbear', 'manual'} == set(everywhere.split(', ')) and dropped()[everywhere] >= 3
    before = dropped()[everywhere]
    knock(6, '2001:db8:bad::7')
    knock(4, '198.51.100.8', 80)
    after = dropped()
    assert set(after) == {everywhere, 'luci'} and after[everywhere] > before and after['luci'] >= 1
    banwatch_.command('ban', '-j', 'sshd', '198.51.100.9')       # what has been told stays so, whatever is built anew
    assert dropped() == after
    assert 'FIREWALL' in banwatch_.command('report').stdout


# --- at a terminal

@pytest.fixture
def told(make, tmp_path):
    """A function that runs a command of a conf whose daemon has ended and left much to tell: (exit code, output).
    At a terminal if it is asked for."""
    desk = make()
    desk.pass_time(DAY)
    filled(*HOSTILE)(desk.daemon.wing('report').tally, desk.machine.now)
    desk.stop()
    (tmp_path / 'conf').write_text('[banwatch]\nruntime = %s\nstate = %s\n' % (tmp_path / 'run', tmp_path / 'state'))

    def run(*words, terminal=True, **environment):
        argv = banwatch_argv('-c', tmp_path / 'conf', *words)
        environment = dict({'PATH': os.environ['PATH'], 'TERM': 'xterm', 'LANG': 'C.UTF-8'}, **environment)
        if not terminal:
            done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment)
            return done.returncode, done.stdout.decode()
        ours, theirs = pty.openpty()
        process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True)
        os.close(theirs)
        found = b''
        with open(ours, 'rb', buffering=0) as screen, contextlib.suppress(OSError):       # EIO: the other side has ended
            for chunk in iter(lambda: screen.read(4096), b''):
                found += chunk
        return process.wait(10), found.decode().replace('\r\n', '\n')
    return run


COLOUR = re.compile('\033\\[(?:1|2|33|36|0)m')


@pytest.mark.slow
def test_a_terminal_gets_colours_and_nothing_else_that_it_would_act_upon(told):
    code, text = told('report')
    assert code == 0 and COLOUR.search(text) and is_safe(COLOUR.sub('', text)) and '█' in text
    for environment in ({'NO_COLOR': '1'}, {'TERM': 'dumb'}):
        code, plain = told('report', **environment)
        assert code == 0 and is_safe(plain) and '█' in plain
    code, text = told('report', '--json')
    assert code == 0 and is_safe(text) and len(text.splitlines()) == 1 and json.loads(text)['bans']['failures']
    code, text = told('report', '--html', '-')
    assert code == 0 and is_safe(text)


@pytest.mark.slow
@pytest.mark.parametrize('locale', [{'LC_ALL': 'C', 'PYTHONUTF8': '0'}, {'PYTHONIOENCODING': 'ascii'}, {'PYTHONIOENCODING': 'latin-1'}], ids=str)
def test_a_terminal_without_unicode_gets_plain_letters(told, locale):
    code, text = told('report', terminal=False, **locale)
    assert code == 0 and is_ascii(text) and re.search('^  .*#', text, re.M) and '?' not in text.partition('HOURS')[2].partition('NETWORKS')[0]


@pytest.mark.slow
def test_a_file_gets_bars_but_no_colours(told):
    code, text = told('report', terminal=False)
    assert code == 0 and is_safe(text) and '█' in text


# --- the page in a browser

PROBE = """<script>
const wide = [...document.querySelectorAll('main *')].filter(e => !e.closest('.t') && e.getBoundingClientRect().right > innerWidth + 1);
const colours = [...document.querySelectorAll('h1,h2,p,td,th')].map(e => {
    let box = e; while (box && getComputedStyle(box).backgroundColor === 'rgba(0, 0, 0, 0)') box = box.parentElement;
    return [getComputedStyle(e).color, getComputedStyle(box || document.body).backgroundColor].join('/') });
document.title = JSON.stringify({width: innerWidth, page: document.documentElement.scrollWidth, wide: wide.map(e => e.outerHTML.slice(0, 99)),
    alive: window.alive || 0, colours: [...new Set(colours)]});
</script>"""


def seen_by_a_browser(folder, page, *more):
    """What PROBE finds out about a page, as wide as a telephone and as a desk; in frames, for no window is that narrow."""
    frames = ''.join('<iframe srcdoc="%s" width="%d" height="2400"></iframe>' % (html.escape(page.replace('</body>', PROBE + '</body>')), width)
                     for width in (390, 1100))
    (folder / 'frames.html').write_text('<title></title>' + frames + '<script>onload = () => { document.title = "[" + '
                                        '[...document.querySelectorAll("iframe")].map(f => f.contentDocument.title).join() + "]" }</script>')
    done = subprocess.run(
        ['chromium', '--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--user-data-dir=%s' % (folder / 'profile'),
         '--dump-dom'] + list(more) + ['file://%s' % (folder / 'frames.html')], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    title = re.search(r'<title>(\[.*?\])</title>', done.stdout.decode())
    assert title, (done.stdout[:200], done.stderr[-500:])
    return json.loads(html.unescape(title.group(1)))


def brightness(colour):
    """Of 'rgb(r, g, b)', as WCAG has it."""
    parts = [int(n) / 255 for n in re.findall(r'\d+', colour)[:3]]
    red, green, blue = (n / 12.92 if n <= 0.03928 else ((n + 0.055) / 1.055) ** 2.4 for n in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(pair):
    light, dark = sorted(map(brightness, pair.split('/')), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.slow
@pytest.mark.parametrize('night', [False, True])
def test_in_a_browser_nothing_overflows_no_script_runs_and_all_can_be_read(tmp_path, night):
    need('chromium')
    evil = '<script>window.alive = 1</script>', '"><img src=x onerror="window.alive=1">', 'x' * 200, 'wide ' * 40, '日本語' * 60
    found = seen_by_a_browser(tmp_path, banwatch.report_page(everything(*evil)), *['--blink-settings=preferredColorScheme=0'] * night)
    assert [frame['width'] for frame in found] == [390, 1100]
    for frame in found:
        assert frame['page'] <= frame['width'] and frame['wide'] == [] and frame['alive'] == 0, frame
        assert min(map(contrast, frame['colours'])) >= 4.5, sorted(frame['colours'], key=contrast)[:3]        # WCAG AA
        assert {brightness(pair.split('/')[1]) < 0.1 for pair in frame['colours']} == {night}
