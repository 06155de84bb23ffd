"""The built-in rules of the summary do what corpora/rules.txt says: what a healthy router writes, and what it does not."""
import os
import re
import time

import pytest

import banwatch

HERE = os.path.dirname(os.path.abspath(__file__))
BUILT_IN = banwatch.make_digest(banwatch.Config())[0].built_in


def samples():
    """(rule or '-', raw line) of each sample."""
    with open(os.path.join(HERE, 'corpora', 'rules.txt'), encoding='utf-8') as f:
        return [tuple(line.rstrip('\n').split('\t', 1)) for line in f if line.strip() and line[0] != '#']


def taken_apart(raw):
    line = banwatch.read_line(raw.encode())
    return (line.program or b'').decode(), banwatch.as_message(line.message)


def regex_of(raw):
    """(rule, which of its regexes; None if it needs none) that a line falls under; ('-', None) if under none."""
    program, message = taken_apart(raw)
    for name, rule in BUILT_IN.items():
        if rule.match(program, message) is not None:
            return name, next((n for n, regex in enumerate(rule.regexes) if regex.search(message)), None)
    return '-', None


@pytest.mark.parametrize('name', ['-'] + list(BUILT_IN))
def test_every_sample_falls_under_its_rule(name):
    wrong = [(raw, regex_of(raw)[0]) for rule, raw in samples() if rule == name and regex_of(raw)[0] != name]
    assert [rule for rule, _ in samples()].count(name) and not wrong


def test_every_regex_has_a_sample():
    seen = {regex_of(raw) for _, raw in samples()}
    for name, rule in BUILT_IN.items():
        for n in range(len(rule.options['regex'])) if rule.options['regex'] else [None]:
            assert (name, n) in seen, (name, n is not None and rule.options['regex'][n])


def test_a_regex_is_anchored_and_knows_no_digit():
    """Only one of all lines that differ in digits alone is looked at."""
    for name, rule in BUILT_IN.items():
        for text in rule.options['regex']:
            assert text.startswith('^'), (name, text)
            for raw in [raw for rule, raw in samples() if rule == name]:
                message = taken_apart(raw)[1]
                other = re.sub(r'(?<![A-Za-z\d])\d+(?![A-Za-z\d])', '7', message)
                assert bool(re.search(text, other)) == bool(re.search(text, message)), (text, raw)


def test_no_line_takes_a_rule_long():
    lines = [raw for _, raw in samples()] + ['Mar  5 09:00:00 r kernel: ' + part * 150 for part in ('a: ', 'x ', '-', 'w.', '1')]
    began = time.process_time()
    for raw in lines:
        regex_of((raw + ' ') * 3 + raw[-60:] * 20)
    assert time.process_time() - began < 0.01 * len(lines)


def test_what_is_built_in_says_only_what_it_was_told_to_say():
    """A text with a field of the log would show what somebody typed."""
    for rule in BUILT_IN.values():
        assert '<' not in rule.options['text'] and bool(rule.options['text']) == (rule.options['report'] != 'ignore')
