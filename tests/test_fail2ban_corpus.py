"""fail2ban's own samples: each annotated log line that comes with fail2ban gets, from its own filter, the verdict fail2ban gives.

    python3 tests/test_fail2ban_corpus.py [FILTER...]      prints what differs, for all filters or for these

FAIL2BAN_LOGS and FAIL2BAN_FILTERS in the environment name the folders of another fail2ban, unpacked somewhere.
"""
import ast
import contextlib
import functools
import glob
import ipaddress
import json
import operator
import os
import re
import shutil
import sys
import tempfile
import time
from collections import namedtuple

import pytest

from conftest import need                        # before banwatch: it knows where that is
import banwatch

LOGS = os.environ.get('FAIL2BAN_LOGS') or ''.join(glob.glob('/usr/lib/python3*/*-packages/fail2ban/tests/files/logs')[:1])
FILTERS = os.environ.get('FAIL2BAN_FILTERS', '/etc/fail2ban/filter.d')
TEST_FILTERS = os.path.join(LOGS, '..', '..', 'config', 'filter.d')      # filters zzz-*, which only fail2ban's tests use

NOW = 1124013600                                 # 2005-08-14 12:00:00 there: the clock of the samples stands still
ZONE = 'CET-01CEST-02,M3.5.0,M10.5.0'            # and they were logged here

# What the engine answers otherwise, for a reason: (filter, 'FILE:NUMBER' or the line's text) -> the reason.
EXCEPTIONS = {
}

# Keys of annotations that the engine has no word for: fail2ban's number of log lines kept for a failure.
UNTOLD = ('attempts',)


# --- the engine: all that this file knows of it

def load(path, options):
    """A fresh filter."""
    return banwatch.load_filter(path, options, read)


def look(made, text):
    """What a filter finds in a line of a log file; None if nothing."""
    # as the engine gets it
    tidied = banwatch.tidy(text.encode('utf-8', 'surrogateescape') + b'\n')[1:-1]
    return failure(made.look(banwatch.PRIORITY.sub(b'', tidied).decode('utf-8', 'surrogateescape'), NOW))


def look_journal(made, text, when):
    """The same for an entry of a journal, whose time is known: its text holds no date."""
    return failure(made.look(text, NOW, when))


def failure(found):
    return found if found is not None and found.verdict == banwatch.FAIL else None


def told(found, key):
    """What the engine says about a key of an annotation."""
    if key == 'host':
        return found.ip or found.id
    if key in ('ip4', 'ip6'):
        return found.ip
    if key == 'time':
        return found.when
    return found.fields.get(key)


def read(path):
    """Text of a file, None if it cannot be read."""
    try:
        with open(path, encoding='utf-8', errors='replace') as f:
            return f.read()
    except OSError:
        return None


# --- the corpus

# wanted: the annotation, {} for a line without one, which no filter may match
Line = namedtuple('Line', 'place text wanted journal')
OptionSet = namedtuple('OptionSet', 'filter options lines')

DIRECTIVE = re.compile(r'#+ ?(failJSON|fileOptions|filterOptions|addFILE):(.+)')
CONDITION = re.compile(r"(?:name|opts\.get\('([\w.-]+)'\))\s*(==|!=|\bin\b|\bnot in\b)\s*(\S.*)")
COMPARE = {'==': operator.eq, '!=': operator.ne,
           'in': lambda one, many: one in many, 'not in': lambda one, many: one not in many}


def holds(text, name, options):
    """Whether a condition such as "name == 'sshd'" or "opts.get('mode') != 'extra'" is true; never evaluated as code."""
    m = CONDITION.fullmatch(text.strip())
    if not m:
        raise ValueError('%s: a condition this test cannot read: %s' % (name, text))
    value = options.get(m.group(1)) if m.group(1) else name
    return COMPARE[m.group(2)](value, ast.literal_eval(m.group(3)))


def raw_lines(name):
    """(number, line) of one log file; lines end at \\n only."""
    with open(os.path.join(LOGS, name), 'rb') as f:
        for n, line in enumerate(f, 1):
            yield n, line.decode('utf-8', 'replace').rstrip('\r\n')


def filter_path(name):
    """Where a filter is defined, None if it is not."""
    path = os.path.join(TEST_FILTERS if name.startswith('zzz-') else FILTERS, name + '.conf')
    return path if os.path.isfile(path) else None


class Samples:
    """The log files of one filter, read into option sets: one fresh filter each, whatever block a line stands in."""

    def __init__(self, name):
        self.name, self.sets = name, {}          # fail2ban's key of a filter instance -> OptionSet
        self.common = {}                         # the last fileOptions
        self.active, self.ignored = [], False    # (OptionSet, options with test.*) that the next lines are for
        self.files = [name]
        for file in self.files:                  # grows at addFILE
            self.ignored = False
            self.read(file, raw_lines(file))

    def read(self, file, lines):
        for n, text in lines:
            m = DIRECTIVE.fullmatch(text)
            if not m and (text.startswith('#') or not text.strip()):
                continue
            value = self.decode(m.group(2), '%s:%d' % (file, n)) if m else {}
            if m and m.group(1) == 'addFILE':
                self.files.append(value)
            elif m and m.group(1) == 'fileOptions':
                self.common = value
            elif m and m.group(1) == 'filterOptions':
                self.choose(value if isinstance(value, list) else [value])
            else:
                if m:                            # the line that is annotated, whatever it looks like
                    n, text = next(lines)
                self.add('%s:%d' % (file, n), text, value)

    def decode(self, text, place):
        try:
            return json.loads(text)
        except ValueError as e:
            raise ValueError('%s: %s' % (place, e))

    def choose(self, several):
        """From here on lines are for these options; a condition that fails ends this for the rest of the list."""
        self.active, self.ignored = [], False
        for options in several:
            options = dict(self.common, **options)
            if options.get('test.condition'):
                self.ignored = not holds(options['test.condition'], self.name, options)
            if not self.ignored:
                self.active.append((self.option_set(options), options))

    def option_set(self, options):
        own = {key: value for key, value in options.items() if not key.startswith('test.')}
        key = options.get('test.filter-name') or (str(own) if own else '')
        return self.sets.setdefault(key, OptionSet(self.name, own, []))

    def add(self, place, text, wanted):
        if self.ignored:
            return
        self.active = self.active or [(self.option_set({}), {})]
        for one, options in self.active:
            if not wanted.get('constraint') or holds(wanted['constraint'], self.name, options):
                journal = options.get('logtype') == 'journal'
                prefix = options.get('test.prefix-line', '') if journal else ''
                one.lines.append(Line(place, prefix + text, wanted, journal))


@functools.lru_cache(None)
def corpus():
    """Samples of all filters that have a log file and a definition."""
    names = sorted(os.listdir(LOGS)) if os.path.isdir(LOGS) else []
    return [Samples(name) for name in names if filter_path(name)]


def option_sets(names=()):
    return [one for samples in corpus() if not names or samples.name in names for one in samples.sets.values()]


def title(one):
    options = ','.join('%s=%s' % pair for pair in one.options.items())
    return one.filter + ('[%s]' % options if options else '')


# --- wanted and found

# line: None if it concerns all of them
Mismatch = namedtuple('Mismatch', 'set line what wanted came')


@contextlib.contextmanager
def zone():
    """The samples' time zone, for as long as it lasts."""
    before = os.environ.get('TZ')
    os.environ['TZ'] = ZONE
    time.tzset()
    try:
        yield
    finally:
        os.environ.pop('TZ')
        if before is not None:
            os.environ['TZ'] = before
        time.tzset()


def epoch(text):
    """Seconds since 1970 of a local time such as 2005-06-21T16:47:48 or ….500."""
    whole, _, fraction = text.partition('.')
    return time.mktime(time.strptime(whole, '%Y-%m-%dT%H:%M:%S')[:8] + (-1,)) + float('0.' + (fraction or '0'))


def canonical(text):
    """An address as ipaddress writes it, an IPv4-mapped one as IPv4; a name or anything else as it is."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text
    return str(getattr(address, 'ipv4_mapped', None) or address)


def comparable(key, value):
    if key in ('host', 'ip4', 'ip6'):
        return canonical(value)
    return sorted(value) if isinstance(value, (set, frozenset, list, tuple)) else value


def differences(wanted, found):
    """(what, wanted, came) of all that an annotation and a find disagree about."""
    if (found is not None) != wanted.get('match', False):
        yield 'match', wanted.get('match', False), 'host %r' % told(found, 'host') if found else 'nothing'
    elif found is not None:
        for key in wanted:
            if key not in ('match', 'desc', 'constraint') + UNTOLD and not (key == 'time' and wanted[key] is None):
                value = epoch(wanted[key]) if key == 'time' else comparable(key, wanted[key])
                came = comparable(key, told(found, key))
                if came != value:
                    yield key, value, came


@contextlib.contextmanager
def definition(name):
    """Path of a filter that can be loaded: what zzz-* include is not where an installed package looks for it."""
    with tempfile.TemporaryDirectory() as folder:
        path = filter_path(name)
        if name.startswith('zzz-'):
            shutil.copy(os.path.join(FILTERS, 'common.conf'), folder)
            text = re.sub(r'(?m)^(before = )\S*/(?=common\.conf$)', r'\1', read(path))
            path = os.path.join(folder, name + '.conf')
            with open(path, 'w', encoding='utf-8') as f:
                f.write(text)
        yield path


def mismatches(one):
    """What differs for one option set: all its lines through one fresh filter."""
    with zone():
        try:
            with definition(one.filter) as path:
                made = load(path, dict(one.options))
        except Exception as e:
            return [Mismatch(one, None, 'load', 'a filter', '%s: %s' % (type(e).__name__, e))]
        found = []
        for line in one.lines:
            try:
                seen = look_journal(made, line.text, NOW) if line.journal else look(made, line.text)
                found += [Mismatch(one, line, *what) for what in differences(line.wanted, seen)]
            except Exception as e:
                found.append(Mismatch(one, line, 'look', 'no exception', '%s: %s' % (type(e).__name__, e)))
        return found


@functools.lru_cache(None)
def mismatches_of(name):
    """{title: mismatches} of one filter; two tests want them."""
    return {title(one): mismatches(one) for one in option_sets([name])}


def excepted(mismatch):
    """The keys of EXCEPTIONS that cover a mismatch."""
    names = (mismatch.line.place, mismatch.line.text) if mismatch.line else ()
    return {(mismatch.set.filter, name) for name in names} & set(EXCEPTIONS)


def tell(mismatch):
    where = '%s %s' % (title(mismatch.set), mismatch.line.place if mismatch.line else '')
    return '%-45s %-8s wanted %r, came %r%s' % (
        where, mismatch.what, mismatch.wanted, mismatch.came, '\n        ' + mismatch.line.text if mismatch.line else '')


# --- the tests

@pytest.fixture(autouse=True)
def fail2ban_is_here():
    if not os.path.isdir(LOGS):
        need('fail2ban-client')
        pytest.fail('no log files of fail2ban in %r' % LOGS)
    if not os.path.isdir(FILTERS):
        pytest.fail('no filters of fail2ban in %r' % FILTERS)


@pytest.mark.parametrize('one', [pytest.param(one, id=title(one)) for one in option_sets()])
def test_every_line_gets_the_verdict_that_fail2ban_gives(one):
    left = [m for m in mismatches_of(one.filter)[title(one)] if not excepted(m)]
    assert not left, '%d differences\n%s' % (len(left), '\n'.join(map(tell, left)))


def test_no_exception_outlives_its_reason():
    needed = set()
    for name in {name for name, _ in EXCEPTIONS}:
        for several in mismatches_of(name).values():
            needed.update(*map(excepted, several))
    assert not set(EXCEPTIONS) - needed, 'these lines agree, or are not there'


def size():
    sets = option_sets()
    places = {line.place: line.wanted for one in sets for line in one.lines}
    runs = [line.wanted.get('match', False) for one in sets for line in one.lines]
    return {'filters': len({one.filter for one in sets}), 'option sets': len(sets), 'lines': len(places),
            'annotated': sum(map(bool, places.values())), 'runs': len(runs), 'runs that match': sum(runs)}


SIZE = {'filters': 91, 'option sets': 128, 'lines': 1067, 'annotated': 1067, 'runs': 1627, 'runs that match': 1317}


def test_the_corpus_is_as_large_as_the_one_of_fail2ban_1_0_2():
    here = size()
    assert all(here[word] >= SIZE[word] for word in SIZE), here


def test_every_log_file_of_the_corpus_is_run():
    files = {name for name in os.listdir(LOGS) if os.path.isfile(os.path.join(LOGS, name))}
    assert files == {file for samples in corpus() for file in samples.files}


def test_two_option_sets_of_a_filter_have_two_titles():
    titles = [title(one) for one in option_sets()]
    assert len(titles) == len(set(titles))


SMALL = 'drupal-auth'                    # seven lines, one option set; matches have time and host, two a user
SPOILED = {
    'a match': lambda wanted: dict(wanted, match=False),
    'no annotation': lambda wanted: {},
    'the time': lambda wanted: dict(wanted, time=time.strftime('%Y-%m-%dT%H:%M:%S', time.localtime(epoch(wanted['time']) + 1))),
    'the host': lambda wanted: dict(wanted, host='192.0.2.250'),
    'the user': lambda wanted: dict(wanted, user='nobody-else'),
    'any other key': lambda wanted: dict(wanted, nosuchkey='x'),
}


def spoilable():
    """The one option set of a small filter, which agrees as it is."""
    (one,) = option_sets([SMALL])
    assert mismatches(one) == []
    return one


@pytest.mark.parametrize('what', SPOILED)
def test_a_spoiled_annotation_is_noticed_on_every_line_that_matches(what):
    one = spoilable()
    with zone():
        lines = [line._replace(wanted=SPOILED[what](line.wanted)) if line.wanted['match'] else line for line in one.lines]
    wrong = [old.place for old, new in zip(one.lines, lines) if old != new]
    assert wrong and [m.line.place for m in mismatches(one._replace(lines=lines))] == wrong


def test_a_match_that_does_not_come_is_noticed():
    one = spoilable()
    lines = [line._replace(wanted=dict(line.wanted, match=True)) for line in one.lines]
    wrong = [line.place for line in one.lines if not line.wanted['match']]
    assert wrong and [m.line.place for m in mismatches(one._replace(lines=lines))] == wrong


@pytest.mark.parametrize('text, true', [("name == 'sshd'", True), ("name != 'sshd'", False), ("opts.get('mode')=='x'", True),
                                        ("opts.get('mode') in ('x', 'y')", True), ("opts.get('none') not in ['x']", True)])
def test_a_condition_is_read_not_evaluated(text, true):
    assert holds(text, 'sshd', {'mode': 'x'}) is true
    with pytest.raises((ValueError, SyntaxError)):
        holds(text + ' or exit()', 'sshd', {'mode': 'x'})


def main(names):
    """Prints a table of mismatches; 0 if there are none, 1 else."""
    unknown = set(names) - {samples.name for samples in corpus()}
    if unknown or not corpus():
        print('no samples in %r with a filter in %r: %s' % (LOGS, FILTERS, ' '.join(sorted(unknown)) or 'none at all'))
        return 1
    sets = option_sets(names)
    began = time.perf_counter()
    found = [m for one in sets for m in mismatches(one)]
    for mismatch in found:
        print(tell(mismatch) + (' (excepted)' if excepted(mismatch) else ''))
    print('%d filters, %d option sets, %d runs of a line, %.1f s: %d differences in %d option sets of %d filters' % (
        len({one.filter for one in sets}), len(sets), sum(len(one.lines) for one in sets), time.perf_counter() - began,
        len(found), len({title(m.set) for m in found}), len({m.set.filter for m in found})))
    return int(any(not excepted(m) for m in found))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
