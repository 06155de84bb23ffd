"""The filter language: every promise of banwatch.py about files of filter.d, regexes, dates and long-running regexes, one by one."""
import ast
import calendar
import os
import re
import signal
import time

import pytest

import banwatch
from harness import zone
from conftest import need

NOW = 1795179705                                   # Fri Nov 20 2026, 14:01:45 in Berlin, 13:01:45 UTC
HEAD = 'Nov 20 14:01:45 h web[1]: '
STOCK = '/etc/fail2ban/filter.d'


@pytest.fixture(autouse=True)
def berlin(monkeypatch):
    """A machine with summer time, so that a zone mistaken for another shows."""
    with zone(monkeypatch, 'CET-1CEST,M3.5.0,M10.5.0/3'):
        yield


def define(text, params=None, **files):
    """The Definition of /f/x.conf with this text; more files by their names, with __ for a dot."""
    made = banwatch.Definition('x', params or {})
    made.load(('/f',), folder(text, **files).get)
    return made


def folder(text, **files):
    there = {'/f/%s' % name.replace('__', '.'): more for name, more in files.items()}
    return dict(there, **{'/f/x.conf': text} if text is not None else {})


def load(text, params=None, guard=banwatch.unguarded, **files):
    """The filter x of a folder /f, as `define` has it; without any [section], all of it is [Definition]."""
    text = text if re.search(r'^\[', text, re.M) else '[Definition]\n' + text
    return banwatch.load_filter('x', params, folder(text, **files).get, ('/f',), guard)


def with_filter(text, guard=banwatch.unguarded):
    """The Jails of a conf with a jail that has this filter."""
    config, _ = banwatch.read_config('[x]\n', '/f/c.conf')
    text = text if re.search(r'^\[', text, re.M) else '[Definition]\n' + text
    return banwatch.Jails(config, {'/f/filter.d/x.conf': text}.get, guard)


def find_date(line, formats, now):
    """(start, end, seconds or None) of the date in a line; None if there is none."""
    found, m = banwatch.locate_date(line, formats)
    return m and m.span(found.group) + (found.time(m, now),)


def one(regex, **options):
    """A filter with this failregex and these options."""
    return load('failregex = %s\n' % regex + ''.join('%s = %s\n' % pair for pair in options.items()))


def block(*texts):
    return banwatch.tidy(''.join(text + '\n' for text in texts).encode('utf-8', 'surrogateescape'))


def scan(made, *texts, wall=NOW, bare=False):
    return list(made.scan(block(*texts), lambda date: 1000.0, bare, wall))


def ips(made, *texts, **more):
    return [seen.ip for seen in scan(made, *texts, **more)]


def finds(made, *texts):
    """The verdicts of lines in turn: (ip, user), '+' in front of a login's user, None for no failure."""
    found = [made.look(text, NOW) for text in texts]
    return [None if look is None or look.verdict in (None, banwatch.NOFAIL) else
            (look.ip, ('+' if look.verdict == banwatch.LOGIN else '') + (look.user or '')) for look in found]


def mistake(text, params=None, **files):
    """What is said about a filter that cannot be loaded."""
    with pytest.raises(ValueError) as caught:
        load(text, params, **files)
    assert '\n' not in str(caught.value)
    return str(caught.value)


SIMPLE = '[Definition]\nfailregex = ^ h web: no <HOST>$\n'
SIMPLE_LINE = 'Nov 20 14:01:45 h web: no 192.0.2.7'


# --- the files

def test_a_later_include_lays_itself_over_an_earlier_one_and_the_file_stands_in_between():
    text = '[INCLUDES]\nbefore = a.conf\n  b.conf\nafter = c.conf\n[Definition]\none = x\ntwo = x\nfailregex = ^<HOST>\n'
    made = define(text, a__conf='[Definition]\none = a\ntwo = a\nthree = a\nfour = a\n',
                  b__conf='[Definition]\nthree = b\n', c__conf='[Definition]\ntwo = c\n')
    assert [made.get(name) for name in ('one', 'two', 'three', 'four')] == ['x', 'c', 'b', 'a']


def test_an_included_file_includes_others_from_its_own_folder():
    files = {'/f/x.conf': '[INCLUDES]\nbefore = /g/a.conf\n[Definition]\n',
             '/g/a.conf': '[INCLUDES]\nbefore = b.conf\n[Definition]\nown = a\n', '/g/b.conf': '[Definition]\nseen = b\nown = b\n'}
    made = banwatch.Definition('x', {})
    made.load(('/f',), files.get)
    assert (made.get('seen'), made.get('own')) == ('b', 'a')


@pytest.mark.parametrize('name', ['../shared/filter.d/common.conf', 'sub/common.conf', './common.conf', '/g/common.conf'])
def test_a_relative_include_is_looked_for_from_where_its_file_lies(name):
    made = banwatch.Definition('x', {})
    here = os.path.normpath(os.path.join('/e/filter.d', name))
    files = {'/e/filter.d/x.conf': '[INCLUDES]\nbefore = %s\n[Definition]\n' % name,
             here: '[INCLUDES]\nafter = ../b.conf\n[Definition]\nseen = yes\n',
             os.path.normpath(os.path.dirname(here) + '/../b.conf'): '[Definition]\ntoo = yes\n'}
    made.load(('/e/filter.d',), files.get)
    assert (made.get('seen'), made.get('too'), made.missing) == ('yes', 'yes', [])


def test_no_include_is_looked_for_in_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(str(tmp_path))
    for name in 'sub/a.conf', 'built-in/sub/a.conf':
        os.makedirs(os.path.dirname(name))
        with open(name, 'w') as f:
            f.write('[Definition]\nseen = yes\n')
    machine = banwatch.Machine()
    made = banwatch.Definition('sshd', {})
    local = str(tmp_path / 'f' / 'sshd.local')
    made.load((os.path.dirname(local), banwatch.BUILT_IN), lambda path: (
        '[INCLUDES]\nbefore = sub/a.conf\n' if path == local else machine.read_or_none(path)))
    assert made.given('seen') is None and 'sub/a.conf' in made.missing[0]


def test_files_that_include_each_other_are_read_once():
    made = define('[INCLUDES]\nbefore = a.conf\n[Definition]\none = x\n',
                  a__conf='[INCLUDES]\nbefore = x.conf\nafter = a.conf\n[Definition]\none = a\ntwo = a\n')
    assert (made.get('one'), made.get('two')) == ('x', 'a')
    assert [len(rows) for rows in made.sections['Definition'].values()] == [2, 1]


def test_the_local_of_an_included_file_is_read_right_after_it():
    made = define('[INCLUDES]\nbefore = a.conf\n[Definition]\nthree = x\n', a__conf='[Definition]\none = a\ntwo = a\nthree = a\n',
                  a__local='[Definition]\ntwo = local\nthree = local\n')
    assert [made.get(name) for name in ('one', 'two', 'three')] == ['a', 'local', 'x']


def test_an_include_that_is_not_there_is_named_where_something_is_undefined_for_it():
    text = '[INCLUDES]\nbefore = gone.conf\n[Definition]\nfailregex = ^%(__prefix)s <HOST>\n'
    assert mistake(text) == ("/f/x.conf:4: failregex: '%(__prefix)s' is not defined anywhere "
                             '(/f/x.conf includes gone.conf, which is not there)')


@pytest.mark.parametrize('rest', ['', 'failregex = <mdre>\n'])
def test_an_include_that_is_not_there_is_named_where_the_failregex_should_have_come_from(rest):
    assert 'gone.conf' in mistake('[INCLUDES]\nbefore = gone.conf\n[Definition]\n' + rest)


def test_a_missing_local_is_no_mistake():
    made = define('[INCLUDES]\nafter = x-own.local\n' + SIMPLE)
    assert made.missing == [] and made.get('failregex')


def test_an_include_that_is_missing_and_not_needed_is_no_mistake():
    assert ips(load('[INCLUDES]\nbefore = gone.conf\n' + SIMPLE), SIMPLE_LINE) == ['192.0.2.7']


def test_a_local_beside_a_conf_is_laid_over_it():
    made = define('[Definition]\none = conf\ntwo = conf\n', x__local='[Definition]\ntwo = local\n')
    assert (made.get('one'), made.get('two'), made.origin) == ('conf', 'local', '/f/x.conf')


def test_a_local_alone_is_laid_over_the_built_in_filter_of_its_name():
    files = {'/etc/banwatch/filter.d/dropbear.local': '[Definition]\nignoreregex = bob\n'}
    made = banwatch.load_filter('dropbear', read=files.get)
    line = "Nov 20 14:01:45 h dropbear[%d]: Bad password attempt for '%s' from 192.0.2.%d:5"
    assert ips(made, line % (1, 'bob', 1), line % (2, 'eve', 2)) == ['192.0.2.2']
    assert made.origin == banwatch.BUILT_IN


def test_a_local_may_be_all_there_is():
    made = banwatch.Definition('x', {})
    made.load(('/f',), {'/f/x.local': SIMPLE}.get)
    assert (made.get('failregex'), made.origin) == ('^ h web: no <HOST>$', '/f/x.local')


def test_of_several_locals_the_one_found_first_holds():
    files = {'/a/x.local': '[Definition]\none = a\n', '/b/x.local': '[Definition]\none = b\ntwo = b\n',
             '/b/x.conf': '[Definition]\none = conf\ntwo = conf\nthree = conf\n', '/c/x.local': '[Definition]\nthree = c\n'}
    made = banwatch.Definition('x', {})
    made.load(('/a', '/b', '/c'), files.get)
    assert [made.get(name) for name in ('one', 'two', 'three')] == ['a', 'b', 'conf']


PLACES = ['/etc/router/filter.d/sshd.conf', '/etc/banwatch/filter.d/sshd.conf', banwatch.BUILT_IN, '/etc/fail2ban/filter.d/sshd.conf']


@pytest.mark.parametrize('n', range(4))
def test_a_filter_is_looked_for_beside_the_conf_then_in_our_folder_then_built_in_then_in_fail2bans(n, monkeypatch):
    if n == 3:
        monkeypatch.delitem(banwatch.FILTERS, 'sshd')
    there = {path: SIMPLE for path in PLACES[n:]}
    folders = banwatch.filter_directories('/etc/router/banwatch.conf')
    assert banwatch.load_filter('sshd', read=there.get, directories=folders).origin == PLACES[n]


def test_a_path_is_a_filter_too_with_or_without_its_ending():
    for spec in ('/g/y.conf', '/g/y', '/g/y.conf[mode=x]'):
        made = banwatch.load_filter(spec, read={'/g/y.conf': SIMPLE}.get)
        assert made.origin == '/g/y.conf' and ips(made, SIMPLE_LINE) == ['192.0.2.7']


def test_a_built_in_common_conf_serves_files_on_a_router_without_fail2ban():
    text = '[INCLUDES]\nbefore = common.conf\n[Definition]\n_daemon = webd\nfailregex = ^%(__prefix_line)sno <HOST>$\n'
    made = banwatch.load_filter('x', read={'/etc/banwatch/filter.d/x.conf': text}.get)
    for head in ('Nov 20 14:01:45 h webd[5]: ', '2026-11-20T14:01:45+01:00 h webd: ', 'Fri Nov 20 14:01:45 2026 daemon.err webd[5]: '):
        assert ips(made, head + 'no 192.0.2.7') == ['192.0.2.7'], head
    assert ips(made, 'Nov 20 14:01:45 h other[5]: no 192.0.2.7') == []


def test_a_filter_that_does_not_exist_gets_a_hint():
    with pytest.raises(ValueError, match=r"no filter is called 'dropbaer' \(did you mean dropbear\?\)"):
        banwatch.load_filter('dropbaer')
    with pytest.raises(ValueError, match=r"no filter is called 'zzzz' \(there are: .*\bsshd\b"):
        banwatch.load_filter('zzzz')


def test_a_line_that_is_no_option_is_named_with_its_file():
    assert mistake('[Definition]\nfailregex = ^<HOST>\nnonsense\n').startswith('/f/x.conf:3: ')
    assert mistake('[INCLUDES]\nbefore = a.conf\n' + SIMPLE, a__conf='[Definition]\na = b\n\nnonsense\n').startswith('/f/a.conf:4: ')


# --- sections

def test_a_parameter_wins_over_init_and_init_over_definition_and_that_over_default():
    text = '[DEFAULT]\na = default\nb = default\nc = default\nd = default\n[Init]\na = init\nb = init\n' \
           '[Definition]\na = own\nb = own\nc = own\n'
    made = define(text, {'a': 'given'})
    assert [made.get(name) for name in 'abcd'] == ['given', 'init', 'own', 'default']
    made = define(text + 'all = <a> <b> <c> <d>\n', {'a': 'given'})
    assert made.get('all') == 'given init own default'


def test_an_option_that_is_not_there_is_empty_or_what_the_caller_says():
    assert (define(SIMPLE).get('nothing'), define(SIMPLE).get('nothing', 'x')) == ('', 'x')


def test_a_conditional_section_is_accepted_and_changes_nothing():
    made = define('[Definition]\nfailregex = ^<a> <HOST>\n[Init]\na = x\n[Init?family=inet6]\na = y\n')
    assert made.get('failregex') == '^x <HOST>'


def test_option_names_may_be_written_in_capitals_and_with_a_colon():
    assert define('[Definition]\nFailRegex: ^<HOST>\n').get('failregex') == '^<HOST>'


# --- what stands in for something else

@pytest.mark.parametrize('text, meant', [
    ('%(b)s', 'bee'), ('%(c)s', 'see'), ('a%%b', 'a%b'), ('%%(b)s', '%(b)s'), ('100%', '100%'), ('%(other/b)s', 'other-bee'),
    ('%(default/b)s', 'default-bee'), ('%(other/c)s', 'see'), ('%(__name__)s', 'Definition'), ('%(d)s', 'bee bee'), ('%(i)s', 'init'),
    ('%(other/n)s', 'bee'),
    ('<b>', 'bee'), ('<c>', 'see'), ('<other/b>', 'other-bee'), ('<other/c>', 'see'), ('<d>', 'bee bee'), ('<i>', 'init'),
    ('<x-<b>>', 'nested'), ('<other/x-<b>>', 'nested-other'), ('%(p)s <p>', 'given given'),
    ('<HOST> <F-USER>.</F-USER> <nobody> <nobody/b> <other/nobody> <x y>', '<HOST> <F-USER>.</F-USER> <nobody> <nobody/b> <other/nobody> <x y>'),
    ('(?P<b>x)', '(?Pbeex)')])
def test_names_are_filled_in(text, meant):
    made = define('[DEFAULT]\nb = default-bee\nc = see\n[other]\nb = other-bee\nx-bee = nested-other\nn = %(b)s\n[Init]\ni = init\n'
                  '[Definition]\nb = bee\nd = %(b)s <b>\nx-bee = nested\ntext = ' + text + '\n', {'p': 'given'})
    assert made.get('text') == meant


def test_a_parameter_never_takes_the_place_of_a_tag_for_an_address():
    made = define('[Definition]\nfailregex = ^<HOST> <IP4> <host>\n', {'host': 'x', 'ip4': 'y'})
    assert made.get('failregex') == '^<HOST> <IP4> x'


def test_known_means_what_an_option_was_before_the_last_file():
    made = define('[INCLUDES]\nbefore = a.conf\n[Definition]\none = %(known/one)s,x\ntwo = %(known/one)s!\n',
                  a__conf='[Definition]\none = a\n', x__local='[Definition]\none = %(known/one)s,local\n')
    assert (made.get('one'), made.get('two')) == ('a,x,local', 'a,x!')


def test_a_parameter_may_add_to_what_is_known():
    made = define('[Definition]\nfailregex = ^<agents> <HOST>\n[Init]\nagents = b|c\n', {'agents': 'a|<known/agents>'})
    assert made.get('failregex') == '^a|b|c <HOST>'


def test_what_is_filled_in_may_have_several_lines_and_the_chosen_mode_may_be_empty():
    text = '[Definition]\nfailregex = ^zero <HOST>$\n   <mdre-<mode>>\nmdre-normal =\nmdre-more = ^one <HOST>$\n   ^two <HOST>$\nmode = normal\n'
    assert [load(text, params).texts for params in ({}, {'mode': 'more'})] == [
        ['^zero <HOST>$'], ['^zero <HOST>$', '^one <HOST>$', '^two <HOST>$']]


def test_a_name_that_is_not_defined_is_told_with_file_and_line():
    assert mistake('[Definition]\n\na = %(nobody)s\nfailregex = ^%(a)s <HOST>\n') == (
        "/f/x.conf:4: failregex: '%(nobody)s' is not defined anywhere")
    assert mistake('[Definition]\nfailregex = ^%(no/body)s <HOST>\n') == (
        "/f/x.conf:2: failregex: '%(no/body)s' is not defined anywhere")


@pytest.mark.parametrize('text', [
    'failregex = ^a <failregex> <HOST>', 'failregex = ^%(failregex)s <HOST>', 'a = <b>\nb = <a>\nfailregex = ^<a> <HOST>',
    'a = %(b)s\nb = %(a)s\nfailregex = ^%(a)s <HOST>', 'a = <b><b>\nb = <a><a>\nfailregex = ^<a> <HOST>', 'a = <a><a>\nfailregex = ^<a> <HOST>', 'a = x<b>\nb = y<a>\nfailregex = ^<a> <HOST>',
    'a = <a>\nfailregex = ^<a> <HOST>',
])
def test_what_stands_in_itself_is_an_error_and_soon(text):
    began = time.process_time()
    assert re.match(r'/f/x\.conf:\d+: failregex: .* stands in itself$', mistake('[Definition]\n' + text + '\n'))
    assert time.process_time() - began < 5


def test_a_mode_that_is_not_there_is_an_error():
    text = '[Definition]\nfailregex = <mdre-<mode>>\nmdre-normal = ^<HOST>\n'
    assert mistake(text, {'mode': 'norml'}).startswith("/f/x.conf:2: failregex: there is no 'mdre-norml'")


def test_known_options_of_fail2ban_that_mean_nothing_here_are_ignored():
    more = 'journalmatch = _SYSTEMD_UNIT=x.service + _COMM=x\nusedns = warn\nlogtype = file\nwhatever = 5\n[Thread]\nstacksize = 0\n'
    assert ips(load(SIMPLE + more), SIMPLE_LINE) == ['192.0.2.7']


def test_nothing_in_banwatch_runs_text_as_code():
    with open(banwatch.__file__, encoding='utf-8') as f:
        called = {node.func.id for node in ast.walk(ast.parse(f.read()))
                  if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {'eval', 'exec', 'compile'}


def test_an_expression_in_a_filter_is_text():
    assert define('[Definition]\na = __import__("os").getpid()\nb = <a>+1\n').get('b') == '__import__("os").getpid()+1'
    assert mistake('[Definition]\nfailregex = ^<HOST>\nmaxlines = 1+1\n')


# --- filter = NAME[...]

@pytest.mark.parametrize('text, name, params', [
    ('sshd', 'sshd', {}), (' sshd ', 'sshd', {}), ('sshd[]', 'sshd', {}), ('sshd[mode=aggressive]', 'sshd', {'mode': 'aggressive'}),
    ('x[a=1,b="a, b"][c=d]', 'x', {'a': '1', 'b': 'a, b', 'c': 'd'}), ("x[a='b], [c', d=]", 'x', {'a': 'b], [c', 'd': ''}),
    ('x [ a = b , c = d ]', 'x', {'a': 'b', 'c': 'd'}), ('/etc/x.conf[a=b]', '/etc/x.conf', {'a': 'b'}),
    ('x[a=b,\n  c=d]', 'x', {'a': 'b', 'c': 'd'}), ('x[Mode=Normal]', 'x', {'mode': 'Normal'}), ('x[a=b c]', 'x', {'a': 'b c'}),
    ('x[a=b=c]', 'x', {'a': 'b=c'}), ('x[a="it\'s"]', 'x', {'a': "it's"}), ('x[a=1] [b=2]', 'x', {'a': '1', 'b': '2'}),
    ('x[lt_file/a.b-c=1]', 'x', {'lt_file/a.b-c': '1'}), ('x[a=1,a=2]', 'x', {'a': '2'}), ('x[a=1,]', 'x', {'a': '1'}),
    ('x[a?family=inet6=v]', 'x', {'a?family=inet6': 'v'}),
])
def test_a_filter_may_be_named_with_options(text, name, params):
    assert banwatch.filter_spec(text) == (name, params)


@pytest.mark.parametrize('text', ['', '[a=b]', 'x[a=b', 'x]', 'x[a]', 'x[=b]', 'x[a=b]c', 'x[a=b]c]', 'x[a=b] c', 'x[a=b,,c=d]', 'x[a b=c]'])
def test_any_other_bracket_is_an_error_that_shows_the_text(text):
    with pytest.raises(ValueError) as caught:
        banwatch.filter_spec(text)
    assert text in str(caught.value)


def test_options_in_the_brackets_win_over_those_of_the_jail():
    made = banwatch.load_filter('x[mode=more]', {'mode': 'normal', 'a': 'jail'}, folder(
        '[Definition]\nfailregex = ^<mode> <a> <HOST>\nmode = none\na = file\n').get, ('/f',))
    assert made.texts == ['^more jail <HOST>']


def test_a_mistake_in_a_filter_reaches_the_operator_with_both_places():
    config, problems = banwatch.read_config('[one]\nfilter = x\n[two]\nfilter = y[a\n[office]\nfilter = sshd\n', '/etc/router/c.conf')
    there = {'/etc/router/filter.d/x.conf': '[Definition]\nfailregex = ^a( <HOST>\n'}
    jails = banwatch.Jails(config, there.get)
    assert not problems and 'office' in jails.by_name
    assert jails.problems == [
        "/etc/router/c.conf:1: [one]: /etc/router/filter.d/x.conf:2: failregex: '^a( <HOST>' is not a regex: missing ), "
        'unterminated subpattern',
        "/etc/router/c.conf:3: [two]: 'y[a' is not a filter (try NAME or NAME[option=value,...])"]


def test_a_jails_own_regexes_and_options_replace_those_of_its_filter():
    text = '[web]\nfilter = x\nfailregex = ^ h web: yes <HOST>\nignoreregex = 8$\ndatepattern = ^%b %d %H:%M:%S\n'
    config, problems = banwatch.read_config(text, '/f/c.conf')
    jails = banwatch.Jails(config, {'/f/filter.d/x.conf': SIMPLE + 'ignoreregex = 7$\ndatepattern = {NONE}\n'}.get)
    found = jails.by_name['web'].filter
    assert not problems + jails.problems
    assert ips(found, SIMPLE_LINE, 'Nov 20 14:01:45 h web: yes 192.0.2.7', 'Nov 20 14:01:45 h web: yes 192.0.2.8') == ['192.0.2.7']


def test_what_a_jail_does_not_say_stays_as_its_filter_has_it():
    config, _ = banwatch.read_config('[web]\nfilter = x\nfailregex = ^yes <HOST>$\n', '/f/c.conf')
    made = banwatch.Jails(config, {'/f/filter.d/x.conf': SIMPLE + 'prefregex = ^ h web: <F-CONTENT>.+</F-CONTENT>$\n'}.get)
    assert not made.problems and ips(made.by_name['web'].filter, 'Nov 20 14:01:45 h web: yes 192.0.2.7') == ['192.0.2.7']


@pytest.mark.parametrize('regex', ['^%(__prefix)sno <HOST>$', '%(known/failregex)s'])
def test_interpolation_in_a_jails_own_regex_is_a_mistake_beside_a_filter_too(regex):
    config, problems = banwatch.read_config('[web]\nfilter = x\nfailregex = ^ok <HOST>$\n    %s\n' % regex, '/f/c.conf')
    made = banwatch.Jails(config, {'/f/filter.d/x.conf': SIMPLE + '__prefix = a\n'}.get)
    assert not problems and made.problems


# --- the regexes of a filter

def test_a_failregex_has_a_regex_a_line_and_comments_and_empty_lines_may_stand_between():
    made = load('failregex = ^ h web: a <HOST>$\n  # a comment\n\n        ^ h web: b <HOST>$\n# and one\n   ; another\n    ^ h web: c <HOST>$\n')
    assert made.texts == ['^ h web: a <HOST>$', '^ h web: b <HOST>$', '^ h web: c <HOST>$']


def test_the_first_regex_that_matches_holds():
    made = one(r'^ h web: no <HOST> for <F-USER>\S+</F-USER>' + '\n  ' + r'^ h web: no <F-USER>\S+</F-USER> for <HOST>$')
    assert finds(made, HEAD.replace('[1]', '') + 'no 192.0.2.7 for 192.0.2.8') == [('192.0.2.7', '192.0.2.8')]


def test_a_regex_sees_the_line_without_its_date_and_is_searched_for():
    assert ips(one('^ h web: no <HOST>$'), SIMPLE_LINE) == ['192.0.2.7']
    assert ips(one('^h web: no <HOST>$'), SIMPLE_LINE) == []
    assert ips(one(r'^\[\] h web: no <HOST>$'), '[20/Nov/2026:14:01:45 +0100] h web: no 192.0.2.7') == ['192.0.2.7']
    assert ips(one(r'^<HOST> - - \[\] "GET'), '192.0.2.7 - - [20/Nov/2026:14:01:45 +0100] "GET / HTTP/1.1"') == ['192.0.2.7']
    assert ips(one('no <HOST>'), SIMPLE_LINE) == ['192.0.2.7']


def test_a_dollar_means_the_end_of_the_line_and_a_carriage_return_is_none_of_it():
    assert ips(one('no <HOST>$'), SIMPLE_LINE, SIMPLE_LINE + '\r', SIMPLE_LINE + ' x') == ['192.0.2.7', '192.0.2.7']


def test_a_prefregex_with_content_says_what_the_others_see():
    made = one('^no <HOST>$', prefregex=r'^ h web\[\d+\]: <F-CONTENT>.+</F-CONTENT>$')
    assert ips(made, HEAD + 'no 192.0.2.7', HEAD.replace('web', 'bew') + 'no 192.0.2.8', HEAD + 'h no 192.0.2.9') == ['192.0.2.7']


def test_a_prefregex_without_content_is_a_condition_and_what_it_caught_counts():
    made = one(r'for <F-USER>\S+</F-USER>$', prefregex=r'^ h web\[\d+\]: no <HOST>')
    assert finds(made, HEAD + 'no 192.0.2.7 for bob', HEAD + 'yes 192.0.2.7 for bob') == [('192.0.2.7', 'bob'), None]


def test_what_a_failregex_catches_wins_over_the_prefregex_unless_it_caught_nothing():
    made = one(r'no(?: <HOST>)?(?: for <F-USER>\S+</F-USER>)?$',
               prefregex=r'^ h web\[\d+\]: \[<F-USER>\w+</F-USER> (?P<ip4>[\d.]+)\] <F-CONTENT>.+</F-CONTENT>$')
    assert finds(made, HEAD + '[bob 192.0.2.7] no', HEAD + '[bob 192.0.2.7] no 192.0.2.8 for eve') == [
        ('192.0.2.7', 'bob'), ('192.0.2.8', 'eve')]


MANY = '^no <HOST>$\n  ^never1 <HOST>$\n  ^never2 <HOST>$\n  ^never3 <HOST>$'
FEW = '^no <HOST>$\n  ^never <HOST>$'
PREF = r'^ h \w+\[\d+\]: <F-CONTENT>.+</F-CONTENT>$'


def test_an_ignoreregex_sees_what_the_failregex_saw():
    assert ips(one(FEW, prefregex=PREF, ignoreregex='8$'), HEAD + 'no 192.0.2.7', HEAD + 'no 192.0.2.8') == ['192.0.2.7']
    assert ips(one(FEW, prefregex=PREF, ignoreregex=r'^no .*7$'), HEAD + 'no 192.0.2.7') == []
    assert ips(one(FEW, prefregex=PREF, ignoreregex=r'web'), HEAD + 'no 192.0.2.7') == ['192.0.2.7']


def test_few_ignoreregexes_among_many_failregexes_see_the_whole_line_first():
    assert ips(one(MANY, prefregex=PREF, ignoreregex='web'), HEAD + 'no 192.0.2.7') == []
    assert ips(one(MANY, prefregex=PREF, ignoreregex='^no'), HEAD + 'no 192.0.2.7') == []       # and the content later


def test_a_line_that_is_ignored_says_why():
    look = one(FEW, prefregex=PREF, ignoreregex='7$').look(HEAD + 'no 192.0.2.7', NOW)
    assert (look.verdict, look.why) == (None, 'an ignoreregex matches')


# --- tags

@pytest.mark.parametrize('regex, text, ip', [
    ('^<HOST>$', '192.0.2.7', '192.0.2.7'), ('^<HOST>$', '2001:db8::7', '2001:db8::7'), ('^<HOST>$', '[2001:DB8:0::7]', '2001:db8::7'),
    ('^<HOST>$', '[192.0.2.7]', '192.0.2.7'), ('^<HOST>$', '::ffff:192.0.2.7', '192.0.2.7'), ('^<HOST>$', '::FFFF:192.0.2.7', '192.0.2.7'),
    ('^<HOST>$', '2001:db8::7%eth0.1', '2001:db8::7'), ('^<HOST>$', '::1', '::1'), ('^<HOST>:\\d+$', '192.0.2.7:22', '192.0.2.7'),
    ('^<ADDR>$', '192.0.2.7', '192.0.2.7'), ('^<ADDR>$', '2001:db8::7', '2001:db8::7'), ('^<F-ADDR/>$', '192.0.2.7', '192.0.2.7'),
    ('^<IP4>$', '192.0.2.7', '192.0.2.7'), ('^<F-IP4/>$', '192.0.2.7', '192.0.2.7'), ('^<IP4>$', '::ffff:192.0.2.7', '192.0.2.7'),
    ('^<IP6>$', '2001:db8::7', '2001:db8::7'), ('^<F-IP6/>$', '2001:db8:1:2:3:4:5:6', '2001:db8:1:2:3:4:5:6'),
    ('^<IP4>/<CIDR>$', '192.0.2.7/24', '192.0.2.0/24'), ('^<IP6>/<F-CIDR/>$', '2001:db8::7/32', '2001:db8::/32'),
    ('^<SUBNET>$', '192.0.2.7/28', '192.0.2.0/28'), ('^<SUBNET>$', '192.0.2.7', '192.0.2.7'), ('^<F-SUBNET/>$', '[2001:db8::7/64]', '2001:db8::/64'),
    ('^<F-ID/>$', '192.0.2.7', '192.0.2.7'), ('^<F-ID>[0-9.]+</F-ID> x$', '192.0.2.7 x', '192.0.2.7'),
    ('^<HOST>:<F-PORT/>$', '192.0.2.7:22', '192.0.2.7')])
def test_a_tag_catches_an_address(regex, text, ip):
    look = one(regex, datepattern='{NONE}').look(text, NOW)
    assert (look.verdict, look.ip) == (banwatch.FAIL, ip)
    assert ips(one(regex, datepattern='{NONE}'), text) == [ip]


@pytest.mark.parametrize('regex, text', [
    ('^<IP4>$', '2001:db8::7'), ('^<IP6>$', '192.0.2.7'), ('^<ADDR>$', 'host.example'), ('^<IP4>$', 'host.example'), ('^<DNS>$', 'a b'), ('^<ADDR>$', '1:2:3:4:5:6:7:8:9')])
def test_a_tag_does_not_catch_another_kind(regex, text):
    assert one(regex, datepattern='{NONE}').look(text, NOW) is None


@pytest.mark.parametrize('regex, text', [
    ('^<HOST>$', 'host.example'), ('^<DNS>$', 'host.example'), ('^<F-DNS/>$', 'host.example'), ('^<HOST>$', '999.1.2.3'),
    ('^<IP4>$', '192.0.2.256'), ('^<ADDR>$', '1:2:3::4::5'), ('^<HOST>$', '1.2.3.4.evil.example'),
    ('^<SUBNET>$', '192.0.2.7/33'), ('^<IP4>/<CIDR>$', '192.0.2.7/999999'), ('^<F-ID/>$', 'a-session-id'), ('^<HOST>$', '::ffff:999.1.2.3')])
def test_a_name_or_what_is_no_address_is_counted_and_never_banned(regex, text):
    made = one(regex, datepattern='{NONE}')
    assert scan(made, text, text) == [] and made.names == 2
    assert made.look(text, NOW).ip is None


def test_a_zone_and_a_prefix_together_are_no_network():
    assert ips(one('^<SUBNET>$', datepattern='{NONE}'), '[fe80::1%eth0/64]') == []


def test_every_other_field_is_caught_by_its_name():
    look = one(r'^ h web\[1\]: <F-XYZ>\d+</F-XYZ> <F-USER>\w+</F-USER> <F-A_1>\w</F-A_1> <HOST>:<F-PORT/>').look(HEAD + '5 bob x 192.0.2.7:22', NOW)
    assert look.user == 'bob'
    assert {name: look.fields[name] for name in ('xyz', 'user', 'a_1', 'fport')} == {'xyz': '5', 'user': 'bob', 'a_1': 'x', 'fport': '22'}


def test_a_port_has_one_name_however_it_is_caught():
    look = one(r'^ h web\[1\]: <HOST>:<F-PORT>\d+</F-PORT>$').look(HEAD + '192.0.2.7:22', NOW)
    assert look.fields['fport'] == '22'


def test_an_alternative_stands_in_for_an_empty_field():
    made = one(r'^ h web\[1\]: <F-USER>\w*</F-USER>/<F-ALT_USER>\w*</F-ALT_USER>/<F-ALT_USER_1>\w*</F-ALT_USER_1> <HOST>$')
    assert [user for _, user in finds(made, *[HEAD + names + ' 192.0.2.7' for names in ('a/b/c', '/b/c', '//c', '//')])] == ['a', 'b', 'c', '']


def test_an_alternative_may_stand_in_for_the_address():
    made = one(r'^ h web\[1\]: (?:<HOST>|-) (?:<F-ALT_IP4>[\d.]+</F-ALT_IP4>|-)$')
    assert ips(made, HEAD + '- 192.0.2.7', HEAD + '192.0.2.8 -') == ['192.0.2.7', '192.0.2.8']


def test_a_tuple_joins_what_several_tags_caught_and_the_user_stays_text():
    made = one(r'^ h web\[1\]: <F-USER>\w+</F-USER> of <F-TUPLE_USER>\w+</F-TUPLE_USER> <HOST>$')
    assert made.look(HEAD + 'bob of sales 192.0.2.7', NOW).fields['user'] == ('bob', 'sales')
    (seen,) = scan(made, HEAD + 'bob of sales 192.0.2.7')
    assert isinstance(seen.user, str)


def test_an_id_wins_over_the_address_as_key_and_the_address_is_banned():
    look = one(r'^ h web\[1\]: <F-ID>s\d+</F-ID> <HOST>$').look(HEAD + 's5 192.0.2.7', NOW)
    assert (look.id, look.ip) == ('s5', '192.0.2.7')


def test_a_group_of_ones_own_may_catch_the_address():
    assert ips(one(r'^ h web\[1\]: no (?P<ip4>[\d.]+)$'), HEAD + 'no 192.0.2.7') == ['192.0.2.7']


def test_a_closing_tag_that_was_not_opened_stays_as_it_is():
    assert banwatch.compile_line('^</F-USER> <HOST>').pattern.startswith('^</F-USER> ')


def test_flags_inside_of_a_group_hold_for_that_group():
    made = one('^ h web: ((?i)no) <HOST>$\n  ^ h web: (?:(?i)yes) <HOST>$')
    assert ips(made, *['Nov 20 14:01:45 h web: %s 192.0.2.7' % word for word in ('NO', 'no', 'yEs')]) == ['192.0.2.7'] * 3
    assert ips(made, 'Nov 20 14:01:45 H WEB: no 192.0.2.7') == []


def test_python_s_conditions_and_backreferences_work():
    made = one(r'^ h web: (\[)?no (?P<q>["\'])x(?P=q)(?(1)\]) <HOST>$')
    texts = 'no "x"', '[no "x"]', '[no "x"', 'no "x\''
    assert [bool(ips(made, 'Nov 20 14:01:45 h web: %s 192.0.2.7' % text)) for text in texts] == [True, True, False, False]


@pytest.mark.parametrize('text, why', [
    ('failregex = ^a( <HOST>', "/f/x.conf:2: failregex: '^a( <HOST>' is not a regex: "), ('failregex = ^a', "/f/x.conf:2: failregex: '^a' has no <HOST>"),
    ('\nfailregex = ^a <HOST>\n  ^b [z-a]', "/f/x.conf:3: failregex: '^b [z-a]' is not a regex: "),
    ('failregex = ^<HOST> <HOST>', "/f/x.conf:2: failregex: '^<HOST> <HOST>' has more than one <HOST>"),
    ('failregex = ^<HOST>\nignoreregex = *', "/f/x.conf:3: ignoreregex: '*' is not a regex: "),
    ('failregex = ^<HOST>\nprefregex = ^(', "/f/x.conf:3: prefregex: '^(' is not a regex: "),
    ('failregex = ^<HOST>\n\n\ndatepattern = %%Y(', '/f/x.conf:5: datepattern: '),
    ('failregex = ^<HOST>\ndatepattern = ({DATE}', '/f/x.conf:3: datepattern: '),
    ('failregex = ^<HOST>\ndatepattern = %%Q', '/f/x.conf:3: datepattern: '),
    ('failregex = ^<HOST>\nmaxlines = many', '/f/x.conf:3: maxlines: '),
    ('failregex =', '/f/x.conf:2: failregex: there is none'), ('a = b', '/f/x.conf: failregex: there is none'),
])
def test_a_mistake_is_told_with_file_line_option_and_regex(text, why):
    said = mistake('[Definition]\n' + text + '\n')
    assert said.startswith(why), said


def test_a_filter_whose_ids_come_from_the_prefregex_needs_no_host():
    assert one('^no$', prefregex=r'^ h web\[1\]: <HOST> <F-CONTENT>.+</F-CONTENT>$').look(HEAD + '192.0.2.7 no', NOW).ip == '192.0.2.7'


# --- several lines

SEVERAL = dict(maxlines=3, datepattern='{^LN-BEG}')


def test_a_regex_may_go_over_several_lines():
    made = one('^ h web: client <HOST>$<SKIPLINES>^ h web: refused$', **SEVERAL)
    line = 'Nov 20 14:01:45 h web: '
    assert ips(made, line + 'client 192.0.2.7', line + 'other', line + 'refused') == ['192.0.2.7']
    made = one('^ h web: client <HOST>$<SKIPLINES>^ h web: refused$', **SEVERAL)
    assert ips(made, line + 'client 192.0.2.7', line + 'refused') == ['192.0.2.7']


def test_no_more_lines_than_maxlines_are_looked_at_together():
    made = one('^ h web: client <HOST>$<SKIPLINES>^ h web: refused$', **SEVERAL)
    line = 'Nov 20 14:01:45 h web: '
    assert ips(made, line + 'client 192.0.2.7', line + 'other', line + 'other', line + 'refused') == []


def test_lines_that_have_matched_are_not_looked_at_again_but_those_in_between_are():
    made = one('^ h web: client <HOST>$<SKIPLINES>^ h web: refused$', **dict(SEVERAL, maxlines=4))
    line = 'Nov 20 14:01:45 h web: '
    assert ips(made, line + 'client 192.0.2.7', line + 'client 192.0.2.8', line + 'refused', line + 'refused', line + 'refused') == [
        '192.0.2.7', '192.0.2.8']


def test_a_value_from_an_earlier_line_may_be_asked_for_again():
    made = one(r'^ h web: \[(?P<c>\d+)\] client <HOST>$<SKIPLINES>^ h web: \[(?P=c)\] refused$', **SEVERAL)
    line = 'Nov 20 14:01:45 h web: '
    assert ips(made, line + '[1] client 192.0.2.7', line + '[2] refused', line + '[1] refused') == ['192.0.2.7']


def test_lines_of_two_blocks_are_lines_of_one_log():
    made = one('^ h web: client <HOST>$<SKIPLINES>^ h web: refused$', **SEVERAL)
    assert ips(made, 'Nov 20 14:01:45 h web: client 192.0.2.7') + ips(made, 'Nov 20 14:01:45 h web: refused') == ['192.0.2.7']


def test_without_maxlines_a_regex_sees_one_line():
    assert ips(one('^ h web: client <HOST>$<SKIPLINES>^ h web: refused$'),
               'Nov 20 14:01:45 h web: client 192.0.2.7', 'Nov 20 14:01:45 h web: refused') == []


# --- connections

CONNECTED = r'''
prefregex = ^\s*<F-MLFID>(?:\S+ ){0,2}web\[\d+\]</F-MLFID>: <F-CONTENT>.+</F-CONTENT>$
failregex = ^bad password for <F-USER>\S+</F-USER>$
            ^bad password for <F-USER>\S+</F-USER> from <HOST>$
            ^<F-NOFAIL>client</F-NOFAIL> <HOST>$
            ^<F-NOFAIL>asks</F-NOFAIL> as <F-USER>\S+</F-USER>$
            ^<F-MLFGAINED>welcome</F-MLFGAINED> <F-USER>\S+</F-USER>$
            ^<F-NOFAIL><F-MLFFORGET>bye</F-MLFFORGET></F-NOFAIL>$
            ^<F-MLFFORGET>gave up</F-MLFFORGET>$
'''


def connected(*messages, made=None):
    return finds(made or load(CONNECTED), *[message if ': ' in message else HEAD + message for message in messages])


BOB, EVE = ('192.0.2.7', 'bob'), ('192.0.2.7', 'eve')


def test_an_earlier_line_of_the_connection_tells_the_address():
    assert connected('client 192.0.2.7', 'bad password for bob', 'bad password for bob') == [None, BOB, BOB]


def test_a_failure_waits_for_the_line_that_tells_its_address():
    assert connected('bad password for bob', 'client 192.0.2.7', 'client 192.0.2.7') == [None, BOB, None]
    look = load(CONNECTED).look(HEAD + 'bad password for bob', NOW)
    assert (look.verdict, look.why) == (None, 'its address is not known yet')


def test_a_line_that_only_tells_something_is_no_failure():
    assert connected('client 192.0.2.7', 'asks as bob', 'client 192.0.2.7') == [None] * 3


def test_a_user_from_an_earlier_line_is_the_failures_user():
    assert connected('client 192.0.2.7', 'asks as bob', 'gave up') == [None, None, BOB]


def test_access_gained_is_a_login():
    assert connected('client 192.0.2.7', 'welcome bob') == [None, ('192.0.2.7', '+bob')]
    (seen,) = scan(load(CONNECTED), HEAD + 'client 192.0.2.7', HEAD + 'welcome bob')
    assert (seen.ip, seen.user, seen.login, seen.guesses) == ('192.0.2.7', 'bob', True, 0)


def test_ones_own_login_does_not_clear_failures_on_another_name():
    assert connected('client 192.0.2.7', 'bad password for eve', 'welcome bob') == [None, EVE, BOB]
    assert connected('client 192.0.2.7', 'asks as eve', 'welcome bob') == [None, None, BOB]


def test_a_login_after_a_mistyped_password_of_the_same_name_is_a_login():
    assert connected('client 192.0.2.7', 'bad password for bob', 'welcome bob') == [None, BOB, ('192.0.2.7', '+bob')]


def test_access_gained_drops_the_failure_that_still_waits():
    assert connected('bad password for bob', 'welcome bob', 'client 192.0.2.7') == [None, (None, '+bob'), None]
    assert scan(load(CONNECTED), *[HEAD + text for text in ('bad password for bob', 'welcome bob', 'client 192.0.2.7')]) == []


def test_a_forgotten_connection_tells_nothing_later():
    assert connected('client 192.0.2.7', 'bye', 'bad password for bob') == [None, None, None]
    assert connected('bad password for bob', 'bye', 'client 192.0.2.7') == [None, None, None]
    assert connected('client 192.0.2.7', 'asks as eve', 'bye', 'client 192.0.2.7', 'welcome bob')[-1] == ('192.0.2.7', '+bob')


def test_a_line_that_forgets_may_itself_be_the_failure():
    assert connected('client 192.0.2.7', 'gave up', 'gave up') == [None, ('192.0.2.7', ''), None]


def test_a_line_that_forgets_with_no_connection_stands_alone():
    made = load('failregex = ^ h <F-MLFID>web</F-MLFID>: <F-MLFFORGET>gave up</F-MLFFORGET> <HOST>$\n  ^ h <F-MLFID>web</F-MLFID>: no$\n')
    assert finds(made, 'Nov 20 14:01:45 h web: gave up 192.0.2.7', 'Nov 20 14:01:45 h web: no') == [('192.0.2.7', ''), None]


def test_connections_are_kept_apart():
    other = HEAD.replace('[1]', '[2]')
    assert connected('client 192.0.2.7', other + 'bad password for bob', other + 'client 192.0.2.8') == [None, None, ('192.0.2.8', 'bob')]


def test_facility_and_severity_are_no_part_of_a_connections_identity():
    head = 'Fri Nov 20 14:01:45 2026 %s web[1]: %s'
    assert connected(head % ('auth.info', 'client 192.0.2.7'), head % ('authpriv.warn', 'bad password for bob')) == [None, BOB]
    head = 'Nov 20 14:01:45 h %s web[1]: %s'
    assert connected(head % ('auth.info', 'client 192.0.2.7'), head % ('local7.err', 'bad password for bob')) == [None, BOB]


def test_a_connection_is_forgotten_after_five_minutes():
    def after(text):
        return connected('Nov 20 14:01:45 h web[1]: client 192.0.2.7', 'Nov 20 %s h web[1]: bad password for bob' % text)
    assert after('14:06:44') == [None, BOB] and after('14:06:46') == [None, None]


def test_a_thousand_connections_are_remembered_and_hardly_more():
    made = load(CONNECTED)
    connected('client 192.0.2.7', made=made)
    connected(*[HEAD.replace('[1]', '[%d]' % n) + 'client 192.0.2.8' for n in range(2, banwatch.SESSIONS + 1)], made=made)
    assert connected('asks as bob', 'bad password for bob', made=made) == [None, BOB]
    connected(*[HEAD.replace('[1]', '[%d]' % n) + 'client 192.0.2.8' for n in range(5000, 5000 + 2 * banwatch.SESSIONS)], made=made)
    assert connected('bad password for bob', made=made) == [None]
    assert len(made.connections) <= 1.1 * banwatch.SESSIONS


def test_the_caller_cannot_change_what_is_known_of_a_connection():
    made = load(CONNECTED)
    made.look(HEAD + 'bad password for bob from 192.0.2.7', NOW).fields.clear()
    assert connected('bad password for bob', made=made) == [BOB]


def test_after_a_reload_a_filter_still_knows_its_connections():
    old, again, other = (with_filter(text) for text in (CONNECTED, CONNECTED, CONNECTED + 'maxlines = 2\n'))
    connected('client 192.0.2.7', made=old.by_name['x'].filter)
    for new in again, other:
        new.adopt(old)
    assert connected('bad password for bob', made=again.by_name['x'].filter) == [BOB]
    assert other.by_name['x'].filter is not old.by_name['x'].filter, 'it means something else'


# --- dates

# text of a date -> its time; one list for each of the forms in banwatch.DATES
SAMPLES = [
    {'2026-11-20 14:01:45': NOW, '2026-11-20T14:01:45,250': NOW, '2026-11-20T13:01:45Z': NOW, '2026-11-20T18:31:45.5+0530': NOW,
     '2026/11/20 14:01:45': NOW, '2026.11.20  14:01:45': NOW, '2026-11-20 08:01:45 -05:00': NOW, '2026-11-20T13:01:45 UTC': NOW,
     '2026-07-20 15:01:45': 1784552505, '2026-11-21T00:01:45+11': NOW},
    {'Nov 20 14:01:45': NOW, 'Fri Nov 20 14:01:45': NOW, 'Fri Nov 20 14:01:45.123456 2026': NOW, 'NOV 20 14:01:45': NOW, 'nov 20 14:01:45': NOW,
     'Nov  2  4:01:45': NOW - 18 * 86400 - 36000, 'Nov 02 04:01:45': NOW - 18 * 86400 - 36000, 'Nov 20 14:01:45 2024': 1732107705},
    {'Fri Nov 20 2026 14:01:45': NOW, 'Nov 20 2026 14:01:45.5': NOW},
    {'20/11/2026 14:01:45': NOW, '20-11-26 14:01:45': NOW, '20/11/26 14:01:45': NOW},
    {'20/Nov/2026:14:01:45 +0100': NOW, '20-Nov-2026 14:01:45.123': NOW, '20/Nov/2026:08:01:45 -0500': NOW, '20/Nov/2026 13:01:45 GMT': NOW,
     '20/Nov/202614:01:45': NOW},
    {'11/20/2026:14:01:45': NOW},
    {'11-20-2026 14:01:45': NOW, '11-20-2026 14:01:45.123': NOW},
    {'1795179705': NOW, '1795179705.123': NOW + .123, '[1795179705]': NOW, 'msg=audit(1795179705.484:12)': NOW + .484},
    {'14:01:45': NOW, '[14:01:45]': NOW},
    {'<11/20/26@14:01:45>': NOW},
    {'261120 14:01:45': NOW, '261120  4:01:45': NOW - 36000},
    {'Nov 20, 2026 2:01:45 PM': NOW, 'nov 20, 2026 02:01:45 pm': NOW, 'Nov 20, 2026 12:01:45 AM': NOW - 14 * 3600,
     'Nov 20, 2026 12:01:45 PM': NOW - 7200},
    {'Nov-20-26 14:01:45': NOW},
    {'20261120140145': NOW, '20261120T130145Z': NOW, '20261120-140145': NOW, '20261120 140145,5 +0100': NOW, '20261120  080145-0500': NOW},
    {'CET Nov 20 14:01:45 2026': NOW, 'UTC Nov 20 13:01:45 2026': NOW, 'EST Fri Nov 20 08:01:45': NOW, 'Z Nov 20 13:01:45.5': NOW},
    {'+0100 Fri Nov 20 14:01:45 2026': NOW, '-0500 Nov 20 08:01:45': NOW},
    {'@400000006b00e5b900000000': 0x6b00e5b9}]


def test_each_default_form_has_its_samples():
    assert len(SAMPLES) == len(banwatch.DATES)


@pytest.mark.parametrize('form, text, when', [
    pytest.param(banwatch.DATES[n], text, when, id=text) for n, samples in enumerate(SAMPLES) for text, when in samples.items()])
def test_every_default_form_of_a_date_is_read_alone_and_among_the_others(form, text, when):
    line = text + ' h web: no 192.0.2.7'
    for choice in (banwatch.date_formats(form), banwatch.date_formats(), banwatch.date_formats('{DEFAULT}'), banwatch.date_formats('{^LN-BEG}')):
        start, end, found = find_date(line, choice, NOW)
        assert found == pytest.approx(when, abs=0.01)
        assert line[:start] + line[end:] in (' h web: no 192.0.2.7', '[] h web: no 192.0.2.7', 'msg=audit(:12) h web: no 192.0.2.7')


@pytest.mark.parametrize('form, text', [
    pytest.param(banwatch.DATES[n], text, id=text) for n, samples in enumerate(SAMPLES) for text in samples
    if not re.match(r'[{^]|EPOCH', banwatch.DATES[n]) and not text.startswith('[')])
def test_a_default_form_may_stand_in_the_middle_of_a_line(form, text):
    line = 'web - %s - no' % text
    assert find_date(line, banwatch.date_formats(), NOW) is not None
    start, end, when = find_date(line, banwatch.date_formats(form), NOW)
    assert line[:start] + line[end:] == 'web -  - no'
    assert find_date(line, banwatch.date_formats('{^LN-BEG}'), NOW) is None


def test_a_date_that_begins_the_line_is_taken_before_any_other():
    line = 'Nov 20 14:01:45 h web: 2020-01-01 00:00:00 no'
    assert find_date(line, banwatch.date_formats(), NOW) == (0, 15, NOW)
    assert find_date('x: Nov 20 14:01:45 - 2020-01-01 00:00:00', banwatch.date_formats(), NOW) == (3, 18, NOW)


def utc(*fields):
    return calendar.timegm(fields + (0,) * (9 - len(fields)))


@pytest.mark.parametrize('text, now, when', [
    ('Nov 21 14:01:45', NOW, NOW + 86400), ('Nov 21 14:01:46', NOW, utc(2025, 11, 21, 13, 1, 46)), ('Dec 31 01:00:00', NOW, utc(2025, 12, 31)),
    ('Jan  1 01:00:00', NOW, utc(2026, 1, 1)), ('Jul  1 02:00:00', NOW, utc(2026, 7, 1)), ('Nov 20 15:00:00', NOW, NOW + 3495),
    ('Feb 29 13:00:00', utc(2028, 3, 1), utc(2028, 2, 29, 12)), ('Feb 29 13:00:00', utc(2029, 1, 10), utc(2028, 2, 29, 12)),
    ('2028-02-29 13:00:00', NOW, utc(2028, 2, 29, 12)), ('Dec 31 23:59:59', utc(2027, 1, 1, 12), utc(2026, 12, 31, 22, 59, 59)),
    ('Jan  1 00:30:00', utc(2026, 12, 31, 23, 40), utc(2026, 12, 31, 23, 30)), ('2031-01-01 01:00:00', NOW, utc(2031, 1, 1)),
    ('14:01:45', NOW, NOW), ('14:01:46', NOW, NOW + 1 - 86400), ('00:00:00', NOW, utc(2026, 11, 19, 23)),
    ('Feb 29 13:00:00', utc(2029, 3, 5), utc(2028, 2, 29, 12)),
])
def test_what_a_date_lacks_is_filled_in(text, now, when):
    assert find_date(text + ' h', banwatch.date_formats(), now)[2] == when


def test_today_is_the_day_in_the_dates_own_zone():
    choice = banwatch.date_formats('%H:%M:%S %z')
    assert find_date('00:05:00 +1200', choice, utc(2026, 11, 20, 12, 10))[2] == utc(2026, 11, 20, 12, 5)
    assert find_date('23:20:00 -0800', choice, utc(2026, 11, 20, 7, 30))[2] == utc(2026, 11, 20, 7, 20)


@pytest.mark.parametrize('text', ['2026-11-20 14:01:45', 'Nov 20 14:01:45', 'Nov 02 14:01:45', '20/Nov/2026:14:01:45 +0100'])
def test_a_line_and_the_engine_of_blocks_agree_about_its_time(text):
    now, then = banwatch.date_time(text.encode(), NOW // 86400), find_date(text, banwatch.date_formats(), NOW)[2]
    assert now is None or now == then


@pytest.mark.parametrize('text', ['2026-13-20 14:01:45', '2026-11-20 25:01:45', 'Nov 32 14:01:45', '2026-11-20 14:61:45', 'no date',
                                  '1.2.3.4 5:6', '20261', '192.0.2.7 1795179705x', '12345678901234567890'])
def test_what_is_no_date_is_none(text):
    assert (find_date(text + ' h', banwatch.date_formats(), NOW) or (0, 0, None))[2] is None


@pytest.mark.parametrize('text', ['2026-02-29 14:01:45', '2026-02-30 14:01:45', 'Jun 31 14:01:45 2026'])
def test_a_day_that_is_not_in_the_calendar_is_no_date(text):
    assert (find_date(text + ' h', banwatch.date_formats(), NOW) or (0, 0, None))[2] is None


@pytest.mark.parametrize('pattern, line, left, when', [
    ('{^LN-BEG}%Y-%m-%d %H:%M:%S', '[2026-11-20 14:01:45] x', '[] x', NOW), ('^%Y-%m-%d %H:%M:%S', '2026-11-20 14:01:45 x', ' x', NOW),
    ('{^LN-BEG}', 'Nov 20 14:01:45 x', ' x', NOW), ('{DATE}', 'x Nov 20 14:01:45 y', 'x  y', NOW), ('{^LN-BEG}{DATE}', 'Nov 20 14:01:45 y', ' y', NOW),
    ('on {DATE};', 'x on 2026-11-20 14:01:45; y', 'x  y', NOW), (r'^<\d+>\d+\s+{DATE}', '<86>1 2026-11-20T13:01:45Z h', ' h', NOW),
    (r'^\[({DATE})\]', '[2026-11-20 14:01:45] x', '[] x', NOW), ('t={DATE},', 'x t=@400000006b00e5b900000000, y', 'x  y', 0x6b00e5b9),
    ('t={DATE},', 'x t=1795179705, y', 'x  y', NOW),
    ('EPOCH', '1795179705.123 x', ' x', NOW + .123), ('EPOCH', '[1795179705] x', '[] x', NOW), ('{^LN-BEG}EPOCH', '1795179705 x', ' x', NOW),
    ('^EPOCH', '1795179705 x', ' x', NOW), ('epoch', '1795179705 x', ' x', NOW),
    ('LEPOCH', '1795179705123 x', ' x', NOW + .123), ('LEPOCH', '1795179705123456 x', ' x', NOW + .123456), ('LEPOCH', '1795179705 x', ' x', NOW),
    (r't={EPOCH}\b', 'a t=1795179705 x', 'a  x', NOW), (r't=({LEPOCH})', 'a t=1795179705123 x', 'a t= x', NOW + .123),
    ('TAI64N', '@400000006b00e5b900000000 x', ' x', 0x6b00e5b9), ('{^LN-BEG}TAI64N', '@400000006b00e5b900000000 x', ' x', 0x6b00e5b9),
    (r'^\w+ (%Y-%m-%d) (?:%H:%M:%S)', 'on 2026-11-20 14:01:45 x', 'on  14:01:45 x', NOW),
    (r'(?P<Y>\d{4})_(?P<m>\d\d)_(?P<d>\d\d) (?P<H>\d\d)h(?P<M>\d\d)', 'x 2026_11_20 14h01 y', 'x  y', NOW - 45),
    ('%d. %B %Y um %H:%M:%S', 'x 20. november 2026 um 14:01:45 y', 'x  y', NOW), ('%A, %d %b %Y %l:%M:%S %p', 'Friday, 20 Nov 2026  2:01:45 PM y', ' y', NOW),
    ('%Y/%j %H:%M:%S', '2026/323 14:01:45 y', ' y', NOW - 86400), ('%y%m%d%%%H%M%S', '261120%140145 y', ' y', NOW),
    ('%Y-%m-%d %H:%M:%S %Z', '2026-11-20 08:01:45 EST y', ' y', NOW), ('%Y-%m-%d %H:%M:%S %Exz', '2026-11-20 15:01:45 UTC+0200 y', ' y', NOW),
    ('%Y-%m-%d %H:%M:%S %ExZ', '2026-11-20 22:01:45 JST y', ' y', NOW), ('%Exd%Exm%Exy-%ExH%ExM%ExS', '201126-140145 y', ' y', NOW),
    ('%m/%d %k:%M:%S', '11/20 14:01:45 y', ' y', NOW), ('{UNB}%Y%m%d%H%M%S', 'ab20261120140145cd', 'abcd', NOW),

    ('**%Y%m%d%H%M%S**', 'ab20261120140145cd', 'abcd', NOW), ('%Y%m%d%H%M%S', 'ab20261120140145cd', 'ab20261120140145cd', None),
    ('%Y-%m-%d %H:%M:%S', 'x2026-11-20 14:01:45 y', 'x2026-11-20 14:01:45 y', None), ('%Y%m%d%H%M%S', 'a 201611201401450 y', 'a 201611201401450 y', None),
    ('%Y-%m-%d\n%H:%M:%S', '14:01:45 x', ' x', NOW), ('%Y-%m-%d %H:%M:%S\n%d.%m.%Y %H:%M:%S', '20.11.2026 14:01:45 x', ' x', NOW),
    ('{NONE}', 'Nov 20 14:01:45 x', 'Nov 20 14:01:45 x', None), ('EPOCH\n{^LN-BEG}', 'Nov 20 14:01:45 x', ' x', NOW),
    ('^[(]%Y-%m-%d %H:%M:%S[)]', '(2026-11-20 14:01:45) x', ' x', NOW),
])
def test_a_datepattern_says_what_is_cut_out_and_what_it_means(pattern, line, left, when):
    made = load('failregex = ^<HOST>\ndatepattern = %s\n' % pattern.replace('%', '%%').replace('\n', '\n    '))
    start, end, found = find_date(line, made.templates, NOW) or (0, 0, None)
    before, after = line[:start], line[end:]
    assert before + after == left
    assert found == when


def test_a_jails_datepattern_has_plain_percent_signs():
    config, problems = banwatch.read_config('[web]\nfailregex = ^: no <HOST>$\ndatepattern = ^%d.%m.%Y %H:%M:%S\n', 'c')
    jails = banwatch.Jails(config)
    assert not problems + jails.problems
    ((_, seen),) = jails.scan(None, b'20.11.2026 14:01:45: no 192.0.2.7\n', lambda date: date, NOW)
    assert (seen.ip, seen.when) == ('192.0.2.7', NOW)


EMPTY = '^%%b %%d, %%ExY %%I:%%M:%%S %%p\n  ^WARNING:()**'


def test_an_empty_date_means_the_last_known_one_and_cuts_nothing():
    made = one('^WARNING: no <HOST>$', datepattern=EMPTY)
    made.look('Nov 20, 2026 2:01:30 PM x', NOW)
    look = made.look('WARNING: no 192.0.2.7', NOW)
    assert (look.ip, look.when) == ('192.0.2.7', NOW - 15)


def test_an_empty_date_long_after_the_last_one_means_now():
    made = one('^WARNING: no <HOST>$', datepattern=EMPTY)
    made.look('Nov 20, 2026 1:01:30 PM x', NOW)
    assert made.look('WARNING: no 192.0.2.7', NOW).when == NOW
    assert one('^WARNING: no <HOST>$', datepattern=EMPTY).look('WARNING: no 192.0.2.7', NOW).when == NOW


def test_a_line_without_a_date_is_as_late_as_the_last_one_for_a_minute():
    made = one('no <HOST>$')
    assert made.look('no 192.0.2.7', NOW).when is None
    made.look('Nov 20 14:01:30 x', NOW)
    assert made.look('no 192.0.2.7', NOW).when == NOW - 15
    assert made.look('no 192.0.2.7', NOW + 60).when is None


def test_an_impossible_date_is_cut_out_and_the_line_still_counts():
    made = one('^ h web: no <HOST>$', datepattern='^%%Y-%%m-%%d %%H:%%M:%%S %%Z')
    look = made.look('2026-11-20 14:01:45 XQZ h web: no 192.0.2.7', NOW)
    assert (look.ip, look.when) == ('192.0.2.7', None)


def test_the_time_of_a_journals_entry_is_given_and_its_text_left_alone():
    look = one('^2026-11-20 14:01:45 no <HOST>$').look('2026-11-20 14:01:45 no 192.0.2.7', NOW, 5.0)
    assert (look.ip, look.when) == ('192.0.2.7', 5.0)


def test_a_line_that_is_too_old_to_matter_is_none():
    asked = []
    assert list(load(SIMPLE).scan(block(SIMPLE_LINE), lambda date: asked.append(date), False, NOW)) == []
    assert asked == [NOW]


# --- lines that came several times

# the line in which `message repeated 3 times: [` stands between the two: most of these tests fail.

def jails(regex=r'^ h web\[1\]: no <HOST>$', **options):
    config, problems = banwatch.read_config('[web]\nfailregex = %s\n' % regex + ''.join('%s = %s\n' % pair for pair in options.items()), 'c')
    made = banwatch.Jails(config)
    assert not problems + made.problems
    return made


def guesses(made, *texts, source=None):
    raw = ''.join(text + '\n' for text in texts).encode()
    return [seen.guesses for _, seen in made.scan(source, raw, lambda date: 1000.0, NOW)]


NO = HEAD + 'no 192.0.2.7'
AGAIN = 'Nov 20 14:01:46 h last message repeated %s times'


@pytest.mark.parametrize('text, n', [
    ('message repeated 3 times: [ no 192.0.2.7]', 3), ('message repeated 3 times: [no 192.0.2.7 ]', 3), ('message repeated 101 times: [ no 192.0.2.7]', 100),
    ('message repeated 999999999 times: [ no 192.0.2.7]', 100), ('message repeated 0 times: [ no 192.0.2.7]', 0),
    ('message repeated 99999999999 times: [ no 192.0.2.7]', 0), ('message repeated -3 times: [ no 192.0.2.7]', 0),
    ('message repeated 3 times: [ yes 192.0.2.7]', 0), ('message repeated 3 times: [ no 192.0.2.7', 0)])
def test_message_repeated_counts_as_often_as_it_says_and_a_hundred_times_at_most(text, n):
    assert sum(guesses(jails(), HEAD + text)) == n


def test_message_repeated_counts_behind_a_header_of_rfc_5424_too():
    made = jails('no <HOST>$')
    assert guesses(made, '<86>1 2026-11-20T13:01:45Z h web 1 - - message repeated 3 times: [ no 192.0.2.7]') == [1] * 3


@pytest.mark.parametrize('count, n', [('3', 3), ('101', 100), ('999999999', 100), ('0', 0), ('99999999999', 0), ('-1', 0), ('x', 0)])
def test_last_message_repeated_counts_the_line_before_as_often_and_a_hundred_times_at_most(count, n):
    assert sum(guesses(jails(), NO, AGAIN % count)) == 1 + n


@pytest.mark.parametrize('form', ['Nov 20 14:01:46 h last message repeated 2 times', 'Nov 20 14:01:46 h syslogd: last message repeated 2 times',
                                  'Nov 20 14:01:46 h syslogd[5]: last message repeated 2 times', 'last message repeated 2 times\r',
                                  'Nov 20 14:01:46 last message repeated 2 times', 'Nov 20 14:01:46 h last message repeated 2 time'])
def test_every_log_daemons_way_to_say_it_is_known(form):
    assert guesses(jails(), NO, form) == [1] * 3


def test_the_line_before_may_have_come_in_the_block_before():
    made = jails()
    assert [guesses(made, NO), guesses(made, AGAIN % 2), guesses(made, AGAIN % 3, AGAIN % 4)] == [[1], [1] * 2, [1] * 7]


def test_twice_in_a_row_both_speak_of_the_same_line():
    assert guesses(jails(), NO, AGAIN % 2, AGAIN % 3) == [1] * 6
    assert guesses(jails(), HEAD + 'message repeated 5 times: [ no 192.0.2.7]', AGAIN % 3) == [1] * 8


def test_a_line_of_another_program_in_between_or_none_at_all_takes_it_away():
    assert guesses(jails(), NO, 'Nov 20 14:01:45 h cron: x', AGAIN % 3) == [1]
    assert guesses(jails(), AGAIN % 3) == []


def test_another_sources_line_is_not_the_one_before():
    config, _ = banwatch.read_config('[banwatch]\nsource = /a\n    /b\n[web]\nfailregex = ^ h web\\[1\\]: no <HOST>$\n', 'c')
    made = banwatch.Jails(config)
    assert [guesses(made, NO, source='/a'), guesses(made, AGAIN % 3, source='/b'), guesses(made, AGAIN % 2, source='/a')] == [[1], [], [1] * 2]


def test_a_message_that_ends_in_a_bracket_keeps_it():
    made = jails(r'^ h web\[1\]: no \[<IP4>\]$')
    line = HEAD + 'no [192.0.2.7]'
    assert guesses(made, line, AGAIN % 3, HEAD + 'message repeated 4 times: [ no [192.0.2.7]]') == [1] * 8


@pytest.mark.parametrize('name', ['message repeated 50 times: [ x', 'message repeated 50 times: [ no y from 198.51.100.9]', 'last message repeated 50 times'])
@pytest.mark.parametrize('end', ['', ' [preauth]', ']'])
def test_a_user_cannot_say_that_his_line_came_several_times(name, end):
    """A log line is wrapped as a whole, right after its tag: what a client wrote in the middle of it is its text."""
    made = jails(r'^ h web\[1\]: no <F-USER>.*</F-USER> from <HOST>(?: \[preauth\]|\])?$')
    line = HEAD + 'no %s from 192.0.2.7%s' % (name, end)
    found = [(seen.ip, seen.user, seen.guesses) for _, seen in made.scan(None, line.encode() + b'\n', lambda date: 0.0, NOW)]
    assert found == [('192.0.2.7', name, 1)]


# --- long lines, junk

def test_of_a_line_over_8_kib_the_beginning_is_looked_at_and_its_cut_end_never_is_an_end():
    made = jails(r'^ h web\[1\]: no \S+ from <HOST>$\n    ^ h web\[1\]: not <HOST> '.replace('\\n', '\n'))
    size = banwatch.PLAIN_LINE
    name = 'x' * (size - len(HEAD + 'no  from 198.51.100.9'))
    assert guesses(made, HEAD + 'no %s from 198.51.100.9' % name) == [1]
    assert guesses(made, HEAD + 'no %s from 198.51.100.99 from 192.0.2.7' % name[1:]) == []
    assert guesses(made, HEAD + 'no %s from 198.51.100.9 from 192.0.2.7' % name) == []
    assert guesses(made, HEAD + 'not 192.0.2.7 ' + 'x' * 100000) == [1]
    assert guesses(made, HEAD + 'no %s from 192.0.2.7' % ('x' * size)) == []
    assert guesses(made, HEAD + 'no x from 192.0.2.7', 'x' * 100000, HEAD + 'no x from 192.0.2.8') == [1, 1]


def test_bytes_that_are_no_utf_8_hide_no_line_and_stay_readable():
    made = jails(r'^ h web\[1\]: no <F-USER>.*</F-USER> from <HOST>$')
    raw = HEAD.encode() + b'no \xff\x00\xc3\xbc from 192.0.2.7\n'
    ((_, seen),) = made.scan(None, raw, lambda date: 0.0, NOW)
    assert (seen.ip, seen.user) == ('192.0.2.7', '\\xff\x00\xfc')


# --- the guard

def evil(search, *arguments):
    """A guard under which a line with EVIL takes too long."""
    if 'EVIL' in arguments[0]:
        raise banwatch.Runaway
    return search(*arguments)


EVIL = 'Nov 20 14:01:45 h web: no EVIL 192.0.2.6'


def test_a_line_whose_regex_takes_too_long_is_skipped_and_the_filter_says_so():
    made = load(SIMPLE, guard=evil)
    assert made.guarded.trouble == ''
    assert ips(made, SIMPLE_LINE, EVIL, SIMPLE_LINE) == ['192.0.2.7'] * 2
    assert made.guarded.trouble == 'a regex of /f/x.conf takes too long for some lines, which are skipped'
    look = made.look(EVIL, NOW)
    assert (look.verdict, look.why) == (None, 'a regex took too long')


def test_after_three_within_a_minute_the_filter_rests_for_a_minute_and_says_so():
    made = load(SIMPLE, guard=evil)
    assert ips(made, EVIL, EVIL, SIMPLE_LINE) == ['192.0.2.7']
    assert ips(made, EVIL, SIMPLE_LINE, wall=NOW + 30) == []
    assert made.guarded.trouble.endswith('; lines of over 30 characters rest for a minute')
    assert ips(made, ' h web: no 192.0.2.7', wall=NOW + 89) == ['192.0.2.7'], 'a short one is looked at'
    assert ips(made, SIMPLE_LINE, wall=NOW + 89) == []
    assert ips(made, SIMPLE_LINE, EVIL, SIMPLE_LINE, wall=NOW + 90) == ['192.0.2.7'] * 2


def test_a_runaway_now_and_then_makes_no_filter_rest():
    made = load(SIMPLE, guard=evil)
    for minute in range(5):
        assert ips(made, EVIL, SIMPLE_LINE, wall=NOW + 31 * minute * 2) == ['192.0.2.7']
    assert 'rest for' not in made.guarded.trouble


def test_after_a_reload_a_filter_that_rests_goes_on_resting():
    old, new = with_filter(SIMPLE, evil), with_filter(SIMPLE, evil)
    scan(old.by_name['x'].filter, EVIL, EVIL, EVIL)
    new.adopt(old)
    made = new.by_name['x'].filter
    assert ips(made, SIMPLE_LINE) == [] and 'rest for' in made.guarded.trouble


def test_a_line_that_is_skipped_does_not_stay_among_the_lines_of_a_regex_over_several():
    made = load('failregex = ^ h web: no <HOST>$\nmaxlines = 5\n')
    bomb = re.compile('EVIL')

    def guard(search, *arguments):
        found = search(*arguments)
        if bomb.search('\n'.join(made.buffer)):
            raise banwatch.Runaway
        return found
    made.guard = guard
    assert ips(made, EVIL, SIMPLE_LINE) == ['192.0.2.7']


def test_every_line_of_a_foreign_filter_is_guarded_and_none_of_a_built_in_one():
    asked = []
    config, _ = banwatch.read_config('[web]\nfailregex = no <HOST>\n[deep]\nfilter = x\n', '/f/c.conf')
    made = banwatch.Jails(config, {'/f/filter.d/x.conf': SIMPLE}.get, lambda search, *more: asked.append(more[0]) or search(*more))
    assert not made.problems
    sshd = 'Nov 20 14:01:45 h sshd[1]: Invalid user x from 192.0.2.7 port 5'
    raw = ''.join(line + '\n' for line in (SIMPLE_LINE, sshd)).encode()
    assert sorted(jail.name for jail, _ in made.scan(None, raw, lambda date: 0.0, NOW)) == ['deep', 'sshd', 'web']
    assert asked == [SIMPLE_LINE] * 2


OWN_KIND = '[Definition]\nprogram = sshd\nfailregex = ^Invalid user <F-USER>\\S+</F-USER> from <HOST> port \\d+$\n'
OWN_LINE = 'Nov 20 14:01:4%d h sshd[%d]: Invalid user x%d from 192.0.2.%d port 5'


@pytest.mark.parametrize('conf, files, lines', [
    ('[mine]\n', {'mine.conf': OWN_KIND}, 1), ('[sshd]\n', {'sshd.local': '[Definition]\nmode = ddos\n'}, 1),
    ('[sshd]\nfilter = sshd\nfailregex = ^Invalid user \\S+ from <HOST> port\n', {}, 1), ('[sshd]\nignoreregex = user y\n', {}, 1),
    ('[sshd]\nfilter = sshd[head=x.*]\n', {}, 1), ('[sshd]\nmode = aggressive\n', {}, 0)])
def test_a_filter_of_our_own_kind_is_guarded_line_by_line_unless_all_of_it_is_built_in(conf, files, lines):
    asked = []

    def guard(search, *arguments):
        asked.append(arguments)
        return search(*arguments)
    config, _ = banwatch.read_config(conf, '/f/c.conf')
    made = banwatch.Jails(config, lambda path: files.get(os.path.basename(path)) if path.startswith('/f/') else None, guard)
    assert not made.problems
    jail = made.by_name[conf[1:5].rstrip(']')]
    raw = ''.join(OWN_LINE % (n, n, n, n) + '\n' + 'Nov 20 14:01:45 h cron[1]: nothing\n' for n in range(1, 4)).encode()
    found = list(jail.filter.scan(banwatch.tidy(raw), lambda date: 0.0, wall=NOW))
    assert [seen.ip for seen in found] == ['192.0.2.1', '192.0.2.2', '192.0.2.3']
    assert len(asked) == 3 * lines


def test_line_by_line_it_finds_what_it_finds_in_a_block():
    path = os.path.join(os.path.dirname(__file__), 'corpora', 'sshd.log')
    with open(path, encoding='utf-8') as f:
        raw = '\n'.join(line.split('\t', 3)[-1] for line in f if line[0] not in '#\n').encode() + b'\n'
    whole, lines = banwatch.load_filter('sshd'), banwatch.load_filter('sshd')
    lines.foreign = True
    for bare in False, True:
        first, second = (list(made.scan(banwatch.tidy(raw), lambda date: 1000.0, bare)) for made in (whole, lines))
        assert first == second and len(first) > 50


@pytest.fixture(scope='module')
def machine():
    return banwatch.Machine()


@pytest.mark.slow
def test_the_real_guard_ends_a_regex_and_the_next_one_has_all_its_time(machine):
    made = load('failregex = ^ h web: (?:x+)+ <HOST>$\n  ^ h web: no <HOST>$\n', guard=machine.guard)
    began = time.process_time()
    assert ips(made, 'Nov 20 14:01:45 h web: ' + 'x' * 60, 'Nov 20 14:01:45 h web: ' + 'x' * 60, SIMPLE_LINE) == ['192.0.2.7']
    assert 0.3 < time.process_time() - began < 1.5
    assert machine.guard(lambda: 5) == 5


def test_the_real_guard_lets_a_mistake_of_the_search_through(machine):
    with pytest.raises(ZeroDivisionError):
        machine.guard(lambda: 1 / 0)


# --- the stock filters

A = ': a' * 60
# spec, a line that takes its regex for ever (each has a text that the regexes need), an ordinary failure
CATASTROPHES = [
    ('exim.conf', '2026-11-20 14:01:45 SMTP protocol error in "AUTH LOGIN' + '"' * 90 + ' AUTH command used when not advertised',
     '2026-11-20 14:01:45 login authenticator failed for (x) [192.0.2.7]: 535 Incorrect authentication data (set_id=bob)'),
    ('dovecot.conf', 'Nov 20 14:01:45 h dovecot: imap-login: Disconnected' + A + ' (auth failed, x',
     'Nov 20 14:01:45 h dovecot: imap-login: Disconnected (auth failed, 1 attempts in 2 secs): user=<bob>, method=PLAIN, rip=192.0.2.7, lip=192.0.2.1'),
    ('dovecot.conf[mode=aggressive]', 'Nov 20 14:01:45 h dovecot: imap-login: Aborted login' + A + ' (no auth attempts',
     'Nov 20 14:01:45 h dovecot: imap-login: Aborted login (no auth attempts in 2 secs): user=<>, rip=192.0.2.7, lip=192.0.2.1'),
    ('domino-smtp.conf', '20-11-2026 14:01:45 smtp: ' + 'a ' * 45 + ' authentication failure using internet password!',
     '20-11-2026 14:01:45   smtp: bob [192.0.2.7] authentication failure using internet password')]


def stock(spec, guard=banwatch.unguarded):
    if not os.path.isdir(STOCK):
        need('fail2ban-client')
    return banwatch.load_filter('%s/%s' % (STOCK, spec), {}, banwatch.Machine().read_or_none, guard=guard)


@pytest.mark.slow
@pytest.mark.parametrize('spec, bad, good', [pytest.param(*row, id='%s-%d' % (row[0], len(row[1]))) for row in CATASTROPHES])
def test_a_catastrophic_line_costs_a_stock_filter_a_moment_and_no_failure(machine, spec, bad, good):
    made = stock(spec, machine.guard)
    began = time.process_time()
    assert ips(made, bad) == []
    assert time.process_time() - began < 1
    began = time.process_time()
    look = made.look(bad, NOW)
    assert time.process_time() - began < 1
    assert look.why == 'a regex took too long'
    assert made.guarded.trouble == 'a regex of %s/%s takes too long for some lines, which are skipped' % (STOCK, spec.partition('[')[0])
    assert finds(made, good)[0][0] == '192.0.2.7'
    assert ips(made, good) == ['192.0.2.7']


@pytest.mark.slow
def test_a_whole_attack_of_them_costs_no_more_than_three_a_minute(machine):
    made = stock('domino-smtp.conf', machine.guard)
    began = time.process_time()
    assert ips(made, *[CATASTROPHES[3][1]] * 200) == []
    assert time.process_time() - began < 2 and 'rest for' in made.guarded.trouble
    assert ips(made, CATASTROPHES[3][2], wall=NOW + 60) == ['192.0.2.7']


RFC5424 = '<86>1 2026-11-20T13:01:45Z h sshd 1 - %s Failed password for root from 192.0.2.7 port 5 ssh2'


@pytest.mark.parametrize('data', ['-', '[x y="z"]', '[x][z]'])
def test_lines_of_rfc_5424_are_found_by_a_stock_filter_that_is_told_so(data):
    assert ips(stock('sshd.conf[logtype=rfc5424]'), RFC5424 % data) == ['192.0.2.7']


@pytest.mark.slow
def test_a_line_that_a_stock_filter_finds_is_never_passed_over_for_want_of_a_text():
    """`scan` looks only at lines that hold a text its regexes need; that must be every line that `look` finds."""
    if not os.path.isdir(STOCK):
        need('fail2ban-client')
    import test_fail2ban_corpus as corpus
    lost = []
    for options in corpus.option_sets():
        with corpus.zone(), corpus.definition(options.filter) as path:
            made = banwatch.load_filter(path, dict(options.options), corpus.read)
            for text in made.needed and [line.text for line in options.lines if not line.journal and made.look(line.text, corpus.NOW)] or ():
                raw = banwatch.tidy(text.encode('utf-8', 'surrogateescape') + b'\n')
                if not banwatch.with_lines(raw, made.needed):
                    lost.append((corpus.title(options), text))
    assert lost == []


# --- what a line must hold to be looked at

@pytest.mark.parametrize('regex, texts', [
    ('^login failed for <HOST>$', {b'login failed for '}), ('^(?:failed|refused) <HOST>', {b'failed', b'refused'}),
    ('^(?:failed ){2}<HOST>', {b'failed '}), ('^(?:failed )+<HOST>', {b'failed '}), ('^(failed) <HOST>', {b'failed'}),
    ('^(?:failed )*<HOST>', None), ('^(?:failed )?<HOST>', None), ('^(?:failed |)<HOST>', None), ('^(?:failed|\\d+) <HOST>', None),
    ('(?i)failed <HOST>', None), ('^(?i:failed) <HOST>', None), ('^no <HOST>', {b'no '}), ('^o <HOST>', None), ('^<HOST>$', None),
    ('^failed  for <HOST>', {b'failed '}), ('^verwehrt für <HOST>', {'verwehrt für '.encode()}), ('^(?!not )failed <HOST>', {b'failed '}), ('^fa[i]led <HOST>', {b'failed '}),
    ('^a\\.b\\[c <HOST>', {b'a.b[c '})])
def test_the_texts_that_a_regex_needs(regex, texts):
    assert banwatch.best_literals(banwatch.compile_line(regex)) == texts


@pytest.mark.parametrize('regex, line', [
    (r'^\[\d\] <HOST>$', '[1] 192.0.2.7'), ('(?i)FAILED <HOST>$', 'x failed 192.0.2.7'), ('^ (?:failed|refused)(?: for)? <HOST>$', 'Nov 20 14:01:45 refused 192.0.2.7'),
    (r'^\[\] failed <HOST>$', '[20/Nov/2026:14:01:45 +0100] failed 192.0.2.7'), ('^h failed  <HOST>$', 'h failed 2026-11-20 14:01:45 192.0.2.7'),
    ('^time="" failed <HOST>$', 'time="2026-11-20 14:01:45" failed 192.0.2.7'), (r'^x \(\) <HOST>$', 'x (2026-11-20 14:01:45) 192.0.2.7'),
    ('^ für verwehrt <HOST>$', 'Nov 20 14:01:45 für verwehrt 192.0.2.7'), ('^ ((?i)failed) <HOST>', 'Nov 20 14:01:45 FAILED 192.0.2.7'),
    ('^<HOST>,,login failed$', '192.0.2.7,2026-11-20 14:01:45,login failed'),
    ("^t='' failed <HOST>$", "t='2026-11-20 14:01:45' failed 192.0.2.7"),
    (r'^login\|\|failed <HOST>$', 'login|2026-11-20 14:01:45|failed 192.0.2.7'),
    ('^failed: : <HOST>$', 'failed: 2026-11-20 14:01:45: 192.0.2.7'),
    (r'^type=X msg=audit\(:\d+\): <HOST>$', 'type=X msg=audit(1795179705.484:12): 192.0.2.7'),
    ('^abcd <HOST>$', 'ab20261120140145cd 192.0.2.7'),
])
def test_a_line_is_found_whatever_its_regex_holds_and_wherever_its_date_stood(regex, line):
    dates = '**%%Y%%m%%d%%H%%M%%S**' if 'abcd' in regex else 'EPOCH' if 'audit' in regex else ''
    made = one(regex, datepattern=dates) if dates else one(regex)
    assert finds(made, line) == [('192.0.2.7', '')]
    assert ips(made, line, 'x', line) == ['192.0.2.7'] * 2


def test_a_line_without_the_needed_text_is_not_even_looked_at():
    asked = []
    made = load(SIMPLE, guard=lambda search, *more: asked.append(more[0]) or search(*more))
    assert ips(made, 'Nov 20 14:01:45 h bew: no 192.0.2.9', SIMPLE_LINE, 'x') == ['192.0.2.7'] and asked == [SIMPLE_LINE]


def test_lines_are_found_in_their_order_each_once():
    made = one('^ h (?:web|bew): (?:web )?no <HOST>$')
    lines = ['Nov 20 14:01:45 h %s: no 192.0.2.%d' % (('web', 'bew')[n % 2], n) for n in range(9)]
    assert ips(made, *lines) == ['192.0.2.%d' % n for n in range(9)]
    assert ips(made, 'Nov 20 14:01:45 h web: web no 192.0.2.7') == ['192.0.2.7']


# --- filters of our own kind

def native(failregex, **options):
    return one(failregex, program='web', **options)


def test_with_program_a_regex_sees_the_message_and_forms_of_lines_do_not_matter():
    made = native('^no <HOST>$')
    for head in ('Nov 20 14:01:45 h web[1]: ', 'Fri Nov 20 14:01:45 2026 daemon.err web[2]: ', '<86>1 2026-11-20T13:01:45Z h web 3 - - ', 'web: '):
        assert ips(made, head + 'no 192.0.2.7') == ['192.0.2.7'], head
        assert ips(made, head + 'x no 192.0.2.7', head.replace('web', 'bew') + 'no 192.0.2.7') == [], head


@pytest.mark.parametrize('failregex, why', [
    ('no <HOST>', "'no <HOST>': with `program`, a regex begins with ^"), ('^<HOST> <HOST>', "'^<HOST> <HOST>': with `program`, there is one <HOST> at most"),
    ('^<ADDR> <HOST>', 'there is one <HOST> at most'), ('^no <IP4>', "'^no <IP4>': with `program`, there is no <IP4>"), ('^<F-XYZ>a</F-XYZ> <HOST>', 'there is no <F-XYZ>'),
    ('^<DNS>', 'there is no <DNS>'), ('^a <SKIPLINES> <HOST>', 'there is no <SKIPLINES>'), ('^no( <HOST>', 'is not a regex: '), ('^[z-a] <HOST>', 'is not a regex: '),
    ('^no) <HOST>', 'is not a regex: ')])
def test_with_program_a_mistake_in_a_regex_is_told(failregex, why):
    assert why in mistake('program = web\nfailregex = %s\n' % failregex)


@pytest.mark.parametrize('failregex', ['no <HOST>', '^<HOST> <HOST>', '^no <IP4>', '^no( <HOST>', '^a <HOST>$\n  ^no( <HOST>$'])
def test_with_program_too_a_mistake_is_told_with_file_line_and_regex(failregex):
    said = mistake('\nprogram = web\nfailregex = %s\n' % failregex)
    assert said.startswith('/f/x.conf:4: failregex: ') and failregex.split('\n  ')[-1] in said, said


@pytest.mark.parametrize('more', ['program = web(', 'program = web)', 'program = web\nprefregex = ^x) <F-CONTENT>.+</F-CONTENT>$', 'program = web\nignoreregex = ('])
def test_with_program_other_mistakes_are_told_with_the_file_too(more):
    assert mistake('failregex = ^no <HOST>$\n' + more + '\n').startswith('/f/x.conf:')


def test_with_program_a_prefregex_has_one_form():
    assert mistake('program = web\nfailregex = ^<HOST>\nprefregex = ^x\n') == (
        '/f/x.conf:4: prefregex: with `program`, it is ^...<F-CONTENT>.+</F-CONTENT>...$')


def test_with_program_a_prefregex_stands_around_all_regexes():
    made = native('^no <HOST>$\n  ^never <HOST>$', prefregex='^(?:a|b): <F-CONTENT>.+</F-CONTENT>(?: end)?$')
    assert ips(made, HEAD + 'a: no 192.0.2.7', HEAD + 'b: never 192.0.2.8 end', HEAD + 'no 192.0.2.9') == ['192.0.2.7', '192.0.2.8']


@pytest.mark.parametrize('prefregex', ['^(a|b): <F-CONTENT>.+</F-CONTENT>$', '^a: <F-CONTENT>.+</F-CONTENT>( end)?$', '^a: <F-CONTENT>.+</F-CONTENT>( end|)$',
                                       '^a(: <F-CONTENT>.+</F-CONTENT>)$'])
def test_with_program_a_prefregex_may_have_groups(prefregex):
    try:
        made = native('^no (x)? ?<HOST>$', prefregex=prefregex)
    except ValueError as e:
        assert '</F-CONTENT>)' in prefregex and str(e).startswith('/f/x.conf:4: prefregex: ')     # one around the content: refused is fine
    else:
        assert ips(made, HEAD + 'a: no x 192.0.2.7') == ['192.0.2.7']


@pytest.mark.parametrize('piece', ['[^x]+', r'\s+', r'[\s]+', r'[^x]*?', r'[\sa-z]*', r'(?:[^\]]|\s)+', '.+', r'\S*\s*\S*', r'[^\]x]+', r'[^]x]+', r'(?:\s|\S)+',
                                   r'\D+', r'\W+\w*\W*',
                                   r'[\W\w]+', r'[\D]+', r'[\s\S]+'])
def test_with_program_no_regex_matches_across_lines(piece):
    try:
        made = native('^no' + piece + '<HOST>$')
    except ValueError as e:                        # what cannot be kept to one line may be refused
        assert re.search(r'\[\S*\\[WD]', piece) and piece in str(e)
        return
    assert ips(made, 'web: no', 'web: 192.0.2.7') + ips(made, 'web: no', '192.0.2.7', bare=True) == [] and made.names == 0


def test_with_program_a_numbered_backreference_means_the_regexs_own_group_or_is_a_mistake():
    try:
        made = native(r'^(a|b) \1 <HOST>$')
    except ValueError as e:
        assert str(e).startswith('/f/x.conf:2: failregex: ')
    else:
        assert ips(made, HEAD + 'a a 192.0.2.7') == ['192.0.2.7']


def test_with_program_bare_lines_are_heard_only_where_asked_for():
    made = native('^no <HOST>$')
    assert ips(made, 'no 192.0.2.7', '2026-11-20 14:01:45 no 192.0.2.7') == []
    assert ips(made, 'no 192.0.2.7', '2026-11-20 14:01:45 no 192.0.2.7', bare=True) == ['192.0.2.7'] * 2


@pytest.mark.parametrize('failregex, texts', [
    ('^verwehrt für überall: <HOST>$', ['verwehrt für überall: 192.0.2.7']), ('^é <HOST>$', ['é 192.0.2.7']),
    (r'^(?:é|è|ê) <HOST>$', ['è 192.0.2.7'])])
def test_with_program_letters_beyond_ascii_are_found(failregex, texts):
    made = one(failregex, program='verwaltungsdienst')
    assert ips(made, *['Nov 20 14:01:45 h verwaltungsdienst: ' + text for text in texts]) == ['192.0.2.7']
    made = one(failregex, program=r'\w+')
    assert ips(made, *['Nov 20 14:01:45 h web: ' + text for text in texts]) == ['192.0.2.7']


def test_with_program_a_line_with_distinct_counts_once_for_each_text():
    made = native('^no <F-DISTINCT>\\w+</F-DISTINCT> <HOST>$')
    assert ips(made, *['Nov 20 14:01:45 h web: no %s 192.0.2.7' % text for text in 'aabab']) == ['192.0.2.7'] * 2


def test_with_program_a_line_with_times_counts_as_often_and_a_hundred_times_at_most():
    made = native('^no <HOST>(?: <F-TIMES>\\d+</F-TIMES> times)?$')
    found = scan(made, *['Nov 20 14:01:45 h web: no 192.0.2.7' + more for more in ('', ' 3 times', ' 101 times', ' 9999999999999 times', ' 0 times')])
    assert [seen.guesses for seen in found] == [1, 3, 100, 100]


def test_with_program_an_ignoreregex_sees_the_message():
    made = native('^no <F-USER>\\w+</F-USER> <HOST>$', ignoreregex='^no bob')
    assert ips(made, 'Nov 20 14:01:45 h web: no bob 192.0.2.7', 'Nov 20 14:01:45 h web: no eve 192.0.2.8') == ['192.0.2.8']


def test_with_program_a_name_or_what_is_no_address_is_never_banned():
    made = native('^no <HOST>$')
    assert ips(made, *[HEAD + 'no ' + text for text in ('host.example', '999.1.2.3', '1:2:3', '1.2.3.4.example', '::ffff:999.1.1.1')]) == []
    assert made.names >= 2
    assert ips(made, *['web: no ' + text for text in ('::ffff:192.0.2.7', '[2001:DB8::7]', '2001:db8::8%eth0')]) == ['192.0.2.7', '2001:db8::7', '2001:db8::8']


def test_with_history_a_filter_reads_no_log():
    made = banwatch.load_filter('x', {}, folder('[Definition]\nhistory = bans\n').get, ('/f',))
    assert isinstance(made, banwatch.History) and ips(made, NO) == []


# --- a jail's own regexes

@pytest.mark.parametrize('regex, why', [
    ('^no <HOOST>$', 'has a tag that is not known: <HOOST>'), ('^no <host>$', 'has no <HOST>'), ('^%(__prefix_line)sno <HOST>$', 'which only a file of filter.d may have'),
    ('^no <HOST> <USER>$', 'has a tag that is not known: <USER>'), ('^no( <HOST>$', 'is not a regex'), ('^no$', 'has no <HOST>')])
def test_a_mistake_in_a_jails_own_regex_is_told_with_the_regex(regex, why):
    with pytest.raises(ValueError) as caught:
        banwatch.own_filter({}, [regex])
    assert why in str(caught.value) and regex in str(caught.value)


def test_a_jails_own_regexes_may_have_a_prefregex_a_datepattern_several_lines_and_all_tags():
    config, problems = banwatch.read_config('''
[web]
prefregex = ^: <F-CONTENT>.+</F-CONTENT>$
datepattern = ^%d.%m.%Y %H:%M:%S
failregex = ^no <IP4>$
            ^not <F-USER>\\w+</F-USER> <SUBNET>$
ignoreregex = 9$
''', 'c')
    made = banwatch.Jails(config)
    assert not problems + made.problems
    lines = ['20.11.2026 14:01:45: ' + text for text in ('no 192.0.2.7', 'not bob 2001:db8::7', 'no 192.0.2.9')]
    assert ips(made.by_name['web'].filter, *lines) == ['192.0.2.7', '2001:db8::7']


def test_own_filter_takes_the_same_options():

    made = banwatch.own_filter({'maxlines': '3', 'datepattern': '{^LN-BEG}'}, ['^ a <HOST>$<SKIPLINES>^ b$'], ['192.0.2.8'], evil)
    lines = ['Nov 20 14:01:45 ' + text for text in ('a 192.0.2.7', 'b', 'a 192.0.2.8', 'b')]
    assert ips(made, *lines) == ['192.0.2.7'] and made.guarded.guard is evil


@pytest.mark.slow
@pytest.mark.parametrize('slowness, passes', [(1, False), (25, True)])
def test_what_is_slow_is_measured_by_what_is_usual_on_this_machine(monkeypatch, slowness, passes):
    """On a router of 580 MHz an ordinary search of a heavy filter takes what would be an attack on a desktop."""
    monkeypatch.setattr(banwatch, 'regex_slowness', lambda: slowness)
    guard = banwatch.Machine().guard

    def search():                                  # 80 ms by the guard's own clock: on a busy machine others tell something else
        while signal.getitimer(signal.ITIMER_VIRTUAL)[0] > banwatch.GUARD_SECONDS - 0.08:
            sum(range(5000))
        return True
    found = []
    try:
        for _ in range(16):
            found.append(guard(search))
    except banwatch.Runaway:
        pass
    assert (len(found) == 16) is passes and len(found) >= 8


def test_no_machine_is_faster_than_the_one_that_slow_was_measured_on():
    assert 1 <= banwatch.regex_slowness() < 1000


@pytest.mark.slow
def test_lines_that_are_slow_but_end_in_time_may_not_take_more_than_a_second_of_a_minute():
    """Each is below the limit of a single one; two hundred of them would jam the daemon for half a minute."""
    made = stock('exim', banwatch.Machine().guard)
    line = b'2026-11-20 12:27:01 SMTP protocol error in "AUTH LOGIN' + b'"' * 17 + b' H=(x) [192.0.2.7] AUTH command used when not advertised x\n'
    block, began = banwatch.tidy(line * 200), time.process_time()
    assert list(made.scan(block, lambda date: 0.0, wall=NOW)) == []
    assert time.process_time() - began < 4 and 'takes too long' in made.guarded.trouble
