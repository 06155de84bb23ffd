"""The floor plan holds: sections in order, each naming only what stands above it, effects below the water line."""
import ast
import bisect
import os
import re

import banwatch
import planted

PATH = banwatch.__file__
TEXT = open(PATH, encoding='utf-8').read()
TREE = ast.parse(TEXT)
LINES = TEXT.split('\n')

GUARD = ['Preamble', 'Values', 'Conf', 'Lines', 'Filters', 'Judge', 'Firewalls', 'State',
         'Machine', 'Worker', 'Sources', 'Wall', 'Store', 'Control', 'Daemon', 'Commands']
WINGS = ['Language', 'Actions', 'Tally', 'Digest', 'Proxies', 'Summary', 'Fleet', 'Replay', 'Doctor', 'Install', 'Gate']
PLAN = GUARD + WINGS + ['Appendix', 'Main']
WATER = next(n for n, line in enumerate(LINES, 1) if line.startswith('# ==== the water line'))
BANNERS = [(n, m.group(1)) for n, m in ((n, re.match(r'# ---- (\w+) -+$', line)) for n, line in enumerate(LINES, 1)) if m]

# what only these sections may do: module or name.attribute -> sections
EFFECTS = {
    'subprocess': {'Machine', 'Sources'}, 'signal': {'Machine', 'Daemon', 'Commands', 'Summary'},
    'socket': {'Machine', 'Sources', 'Control', 'Daemon'}, 'selectors': {'Machine', 'Control'},
    'fcntl': {'Machine'}, 'random': {'Machine'}, 'sys.stderr': {'Machine', 'Commands', 'Replay', 'Main'},
    'time.time': {'Machine'}, 'time.clock_gettime': {'Machine'}, 'time.monotonic': set(), 'time.sleep': set(),
    'os.rename': {'Machine'}, 'os.replace': set(), 'os.system': set(), 'os.popen': set(), 'os.fork': set(),
    'os.unlink': {'Machine', 'Control'}, 'os.remove': set(), 'os.open': {'Machine', 'Sources', 'Main'},
    'os.mkfifo': {'Machine'}, 'os.symlink': {'Machine'}, 'os.makedirs': {'Machine'}, 'shutil.rmtree': {'Machine'}, 'os.chmod': {'Machine', 'Control'}, 'os.kill': set(), 'os.killpg': {'Machine'},
    'subprocess.Popen': {'Machine'}, 'os.execv': {'Machine'}, 'os._exit': {'Main'}, '_socket': {'Control', 'Gate'}, 'selectors.DefaultSelector': {'Machine'},
}
CALLS = {'open': {'Machine', 'Commands', 'Replay', 'Main'}, 'print': {'Commands', 'Actions', 'Summary', 'Replay', 'Doctor', 'Install', 'Main'}, 'eval': set(),
         'exec': set(), 'compile': set(), '__import__': {'Preamble', 'Doctor'}, 'input': set()}


def section(line):
    """The section that a line belongs to."""
    return ([name for n, name in BANNERS if n <= line] or ['Preamble'])[-1]


def defined():
    """name -> the line where the module first defines it."""
    found = {}
    for node in TREE.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [n.id for target in node.targets for n in ast.walk(target)
                     if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        else:
            names = []
        for name in names:
            found.setdefault(name, node.lineno)
    return found


def test_sections_stand_in_the_order_of_the_plan():
    assert [name for _, name in BANNERS] == PLAN[1:]


def test_the_three_parts_are_marked_where_they_begin():
    parts = [(n, line) for n, line in enumerate(LINES, 1) if re.match('# ==== Part I+:', line)]
    assert [section(n) for n, _ in parts] == ['Commands', 'Gate'] and len(parts) == 2


def test_a_wing_cannot_ban_unban_run_a_command_or_write_a_file():
    """What it wants done, it hands back: Workers whose Commands the daemon runs. Only the commands that look at or set up
    a whole machine do so themselves."""
    def last_word(node):
        node = node.func if isinstance(node, ast.Call) else node
        return getattr(node, 'id', None) or getattr(node, 'attr', None)
    for node in ast.walk(TREE):
        if isinstance(node, ast.Attribute) and section(node.lineno) in set(WINGS) - {'Doctor', 'Install'}:
            what = '%s.%s' % (last_word(node.value), node.attr)
            assert not re.match(r'(machine|Machine|Quiet|daemon|sync)\.(ban|unban|run|start|spawn\w*|replace|remove)$', what), \
                'line %d: %s' % (node.lineno, what)


def test_the_guard_alone_bans(tmp_path):
    """The daemon with no wing at all."""
    from harness import House
    house = House(tmp_path, wings=[])
    house.fail('192.0.2.7', 3)
    assert house.banned() == ['192.0.2.7']
    house.stop()
    house.restart()
    assert house.banned() == ['192.0.2.7'] and house.ask('status')['wrong'] == []
    house.ask('unban', networks=['192.0.2.7'])
    house.ask('reload')
    assert house.banned() == []


def test_the_water_line_runs_between_state_and_machine():
    assert section(WATER) == 'State'
    assert next(name for n, name in BANNERS if n > WATER) == 'Machine'


def test_each_banner_is_followed_by_what_the_section_owns_and_what_is_always_true():
    for n, name in BANNERS:
        text = []
        for line in LINES[n:]:
            if not line.startswith('#'):
                break
            text.append(line.strip('# '))
        text = ' '.join(text)
        assert 'Owns:' in text, name
        assert 'lways true:' in text or name == 'Main', name


def test_no_room_is_empty():
    for at, name in BANNERS:
        end = min([n for n, _ in BANNERS if n > at] + [len(LINES)])
        assert [node for node in TREE.body if at < node.lineno < end and not isinstance(node, ast.Import)], name


def test_no_name_is_defined_twice():
    """The later one would be taken in the earlier one's section, too."""
    names = []
    for node in TREE.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    assert [name for name in names if names.count(name) > 1] == []


def bound_in(scope):
    """Names that a function or class binds itself."""
    names = set()
    for node in ast.walk(scope):
        if isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node is not scope:
            names.add(node.name)
    return names


def free_names(node, bound=frozenset()):
    """(line, name) of the names below `node` that are not local there."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in bound:
        yield node.lineno, node.id
    if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda)):
        bound = bound | bound_in(node)
    for child in ast.iter_child_nodes(node):
        yield from free_names(child, bound)


def test_a_section_names_only_itself_and_what_stands_above_it():
    home = defined()
    for line, name in free_names(TREE):
        if name in home:
            here, there = section(line), section(home[name])
            if there == 'Appendix':
                continue                           # data
            assert PLAN.index(there) <= PLAN.index(here), 'line %d: %s names %s of %s' % (line, here, name, there)


def used():
    """(line, 'name' or 'name.attribute') of everything that is used."""
    for node in ast.walk(TREE):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node.lineno, '%s.%s' % (node.value.id, node.attr)
            if node.attr != 'inet_aton':           # which has no effect
                yield node.lineno, node.value.id


def test_effects_happen_only_where_the_plan_puts_them():
    for line, name in used():
        if name in EFFECTS:
            assert section(line) in EFFECTS[name], 'line %d: %s in %s' % (line, name, section(line))


def test_plain_calls_with_effects_are_where_the_plan_puts_them():
    for node in ast.walk(TREE):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
            assert section(node.lineno) in CALLS[node.func.id], 'line %d: %s' % (node.lineno, node.func.id)


def test_tickets_change_only_behind_the_two_doors():
    """bans.add, put and remove: in Bans itself, the judge, the two doors, the start (restore), and a replay's own Bans."""
    allowed = {'add': {'ban'}, 'put': {'add', 'restore'}, 'remove': {'unban', 'release'}}
    for function in ast.walk(TREE):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
                        and isinstance(node.func.value, ast.Attribute) and node.func.value.attr == 'bans'
                        and node.func.attr in allowed):
                    assert function.name in allowed[node.func.attr], \
                        'line %d: %s calls bans.%s' % (node.lineno, function.name, node.func.attr)


def test_nothing_runs_a_shell():
    assert not re.search(r'shell\s*=\s*True', TEXT)
    assert "'sh', '-c'" not in TEXT


def test_the_program_imports_only_what_python3_light_has():
    light = {'binascii', 'bisect', 'bz2', 'collections', 'difflib', 'errno', 'fcntl', 'functools', 'getopt', 'glob',
             'gzip', 'heapq', 'importlib', 'importlib.util', 'ipaddress', 'itertools', 'json', 'marshal', 'os', 'random', 're', 'sched', 'selectors', 'shlex', 'shutil',
             'signal', 'socket', 'sre_parse', 'stat', 'struct', 'subprocess', 'sys', 'syslog', '_socket', 'tempfile', 'termios', 'textwrap', 'time', 'traceback', 'warnings', 'zlib'}
    for node in ast.walk(TREE):
        if isinstance(node, ast.Import):
            # ssl is asked for where the conf says https, and may be missing
            assert {alias.name for alias in node.names} - {'ssl'} <= light
        elif isinstance(node, ast.ImportFrom):
            assert node.module in light
    assert set(banwatch.LazyModule.names) <= light


def test_the_program_is_python_3_7():
    import sys
    if sys.version_info >= (3, 8):
        ast.parse(TEXT, feature_version=(3, 7))


def test_the_top_level_holds_what_was_promised_and_nothing_else():
    import subprocess
    root = os.path.dirname(os.path.abspath(PATH))
    try:
        listed = subprocess.run(['git', 'ls-files'], cwd=root, stdout=subprocess.PIPE, check=True).stdout.decode().split('\n')
    except (OSError, subprocess.CalledProcessError):
        listed = []                                # not a clone: an unpacked archive
    tops = {name.split('/')[0] for name in listed if name}
    assert all(top.startswith('.') for top in tops - {'banwatch.py', 'banwatch.conf', 'README', 'init.d', 'tests'})


def test_the_licence_stands_in_the_file():
    assert LINES[1] == '# SPDX-License-Identifier: MIT'


def test_the_map_in_the_preamble_names_every_section():
    for _, name in BANNERS:
        assert name in banwatch.__doc__


def test_no_line_is_over_100_columns_but_for_regexes_of_the_appendix():
    assert [n for n, line in enumerate(LINES, 1) if len(line) > 100 and section(n) != 'Appendix'] == []


def test_no_local_name_hides_a_function_or_a_class_of_the_module():
    top = {node.name for node in TREE.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    hidden = set()
    for node in ast.walk(TREE):
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            hidden |= {a.arg for a in node.args.args + node.args.kwonlyargs} & top
            hidden |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)} & top
    assert hidden == set()


def test_every_function_and_every_class_of_the_module_says_what_it_is():
    assert [node.name for node in TREE.body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not ast.get_docstring(node)] == []


def test_statements_are_plain():
    """No number times a truth value, no tuple for the sake of its calls."""
    for node in ast.walk(TREE):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            assert not isinstance(node.right, (ast.Compare, ast.BoolOp)), node.lineno
            assert not (isinstance(node.right, ast.Call) and getattr(node.right.func, 'id', '') == 'bool'), node.lineno
        assert not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Tuple)), node.lineno


def test_the_walk_from_a_line_in_a_file_to_the_kernel_is_no_longer_than_it_was(tmp_path, capsys):
    """Functions that the last failure before a ban passes through, from the look at the file to the batch for nft. 75 are
    wanted; that number only falls."""
    import sys
    from harness import House, LINE

    class Walk(House):
        def conf(self):
            made, problems = banwatch.read_config(
                '[banwatch]\nsource = %s\nfirewall = nft\nruntime = %s\nstate = %s\n[DEFAULT]\nmaxretry = 3\n' % (
                    tmp_path / 'log.txt', tmp_path / 'run', tmp_path / 'state'), 'c')
            assert not problems
            return made

    def write(*pids):
        with open(str(tmp_path / 'log.txt'), 'a') as f:
            f.write(''.join(LINE % (pid, '192.0.2.7') for pid in pids))
    (tmp_path / 'log.txt').write_text('')
    walk = Walk(tmp_path)
    write(1, 2)
    walk.pass_time(2)
    write(3)
    walk.machine.pass_time(2)
    passed, run = set(), walk.machine.run

    def profile(frame, event, argument):
        if event == 'call' and frame.f_code.co_filename == PATH and '<' not in frame.f_code.co_name:
            passed.add((frame.f_code.co_firstlineno, frame.f_code.co_name))

    def arrived(command, done, seconds=10):
        if 'element' in command.stdin:
            sys.setprofile(None)
        run(command, done, seconds)
    walk.machine.run = arrived
    sys.setprofile(profile)
    try:
        walk.turn()
    finally:
        sys.setprofile(None)
    assert walk.banned() == ['192.0.2.7']
    print(len(passed), ' '.join(name for _, name in sorted(passed)))
    assert len(passed) <= 92


# --- each fault of planted.py can be planted; whether the tests find them takes minutes: `sh tests/run --planted` tells

PROGRAM_TEXT = planted.source()
PROGRAM_LINES = PROGRAM_TEXT.split('\n')
# where the statements of the top level begin; before Python 3.8, a decorated one is where its decorators are
STARTS = [1] + [min([node.lineno] + [each.lineno for each in getattr(node, 'decorator_list', ())]) for node in ast.parse(PROGRAM_TEXT).body[1:]]


def statement_with(fault):
    """The statement of the top level that a fault's text begins in."""
    n = bisect.bisect_right(STARTS, PROGRAM_TEXT.count('\n', 0, PROGRAM_TEXT.index(fault.text)) + 1)
    return '\n'.join(PROGRAM_LINES[STARTS[n - 1] - 1:(STARTS + [len(PROGRAM_LINES) + 1])[n] - 1])


def test_each_text_stands_in_the_program_once():
    assert {fault.name: PROGRAM_TEXT.count(fault.text) for fault in planted.FAULTS if PROGRAM_TEXT.count(fault.text) != 1} == {}


def test_what_is_left_is_python():
    for fault in planted.FAULTS:
        if PROGRAM_TEXT.count(fault.text) == 1:
            ast.parse(planted.planted(statement_with(fault), fault), fault.name)


def test_no_fault_is_there_twice():
    assert len({fault.name for fault in planted.FAULTS}) == len({fault[2:4] for fault in planted.FAULTS}) == len(planted.FAULTS)


def test_what_fails_on_the_first_python_alone_fails_the_whole_run():
    """A lane goes on with other Pythons after that; these must not make it forget."""
    import subprocess
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'run')) as f:
        text = f.read()
    functions = ''.join(re.findall(r'^(?:in_one_piece|files|lane)\(\) \{\n.*?^\}\n', text, re.M | re.S))
    stubs = 'version() { echo 3; }\nother_pythons() { echo a; echo b; echo c; }\ntest_on() { [ "$1" != "$BAD" ]; }\nPYTHON=first SAME=x\n'
    for bad, code in ('first', 1), ('a', 1), ('none', 0):
        done = subprocess.run(['sh', '-c', functions + stubs + 'BAD=%s\nlane 1 y >/dev/null\nexit $?' % bad])
        assert done.returncode == code, bad
