"""What lies where others may write, the current directory and that of the program, is neither run nor read as root."""
import json
import os
import shutil
import subprocess
import sys

import pytest

import banwatch

PROGRAM = os.path.abspath(banwatch.__file__)
STRANGERS = 'collections encodings errno functools itertools os re time json ipaddress getopt heapq socket struct subprocess selectors textwrap'.split()
EVIL = 'import os\nopen(%r, "a").write(__name__ + " ")\nos._exit(3)\n'
FILTER = '[Definition]\nfailregex = please ban <HOST>$\n'
LOG = ''.join('Nov 20 08:00:0%d h sshd[%d]: please ban 192.0.2.7\n' % (n, n) for n in range(6))


def run(argv, **more):
    more = dict({'stdin': subprocess.DEVNULL, 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'universal_newlines': True, 'timeout': 60}, **more)
    if 'input' in more:
        del more['stdin']
    return subprocess.run([str(word) for word in argv], **more)


def plant(folder):
    """Puts modules with the names of the standard library's into a folder; the file that tells of those that were run."""
    ran = str(folder / 'ran')
    for name in STRANGERS:
        (folder / (name + '.py')).write_text(EVIL % ran)
    return ran


@pytest.fixture
def program(tmp_path):
    return shutil.copy(PROGRAM, str(tmp_path / 'banwatch.py'))


@pytest.mark.parametrize('how', ['beside the program', 'in PYTHONPATH', 'in the current directory'])
def test_no_module_is_taken_from_where_strangers_may_write(how, program, tmp_path):
    place = tmp_path if how == 'beside the program' else tmp_path / 'place'
    place.mkdir(exist_ok=True)
    ran = plant(place)
    # what the interpreter itself imports before it looks at the program is not ours to choose
    for name in 'encodings', 'os', 'collections', 'functools', 'itertools', 're', 'heapq', 'time', 'errno':
        if how == 'in PYTHONPATH':
            os.unlink(str(place / (name + '.py')))
    environment = dict(os.environ, PYTHONPATH=str(place)) if how == 'in PYTHONPATH' else os.environ
    log = tmp_path / 'log'
    log.write_text(LOG)
    for words in ['check'], ['replay', log], ['-c', os.devnull, 'status']:
        run([sys.executable, program] + words, env=environment, cwd=str(place))
    assert not os.path.exists(ran), open(ran).read()


def test_the_launcher_takes_no_module_from_anywhere_but_the_library(tmp_path):
    """All of them, also those that an interpreter imports by itself: for that there is -I."""
    root, place = tmp_path / 'root', tmp_path / 'place'
    (root / 'etc').mkdir(parents=True)
    (root / 'etc' / 'openwrt_release').write_text('')
    place.mkdir()
    assert run([sys.executable, PROGRAM, 'install', '--root', root]).returncode == 0
    launcher = root / 'usr' / 'sbin' / 'banwatch'
    library = root / 'usr' / 'lib' / 'banwatch'
    text = launcher.read_text()
    first, rest = text.replace("'/usr/lib/banwatch'", repr(str(library))).split('\n', 1)
    assert first == '#!/usr/bin/python3 -IS'
    launcher.write_text('#!%s -IS\n%s' % (sys.executable, rest))
    ran = [plant(folder) for folder in (place, root / 'usr' / 'sbin', library)]
    done = run([launcher, '--version'], env=dict(os.environ, PYTHONPATH=str(place), PYTHONHOME='/nowhere'), cwd=str(place))
    assert done.stdout == 'banwatch %s\n' % banwatch.VERSION, done
    assert not any(map(os.path.exists, ran))


@pytest.mark.parametrize('conf, words', [(None, []), ('', ['-c', '-'])])
def test_without_a_conf_file_no_filter_comes_from_the_current_directory(conf, words, tmp_path):
    if conf is None and os.path.lexists(banwatch.CONF):
        pytest.skip('this machine has a conf')
    (tmp_path / 'filter.d').mkdir()
    (tmp_path / 'filter.d' / 'sshd.conf').write_text(FILTER)
    (tmp_path / 'sshd').write_text(FILTER)
    (tmp_path / 'log').write_text(LOG)
    more = {} if conf is None else {'input': conf}
    done = run([sys.executable, PROGRAM] + words + ['replay', '--json', 'log'], cwd=str(tmp_path), **more)
    assert json.loads(done.stdout)['bans'] == []
    done = run([sys.executable, PROGRAM] + words + ['test', 'sshd', 'log'], cwd=str(tmp_path), **more)
    assert 'filter    sshd (built-in)' in done.stdout, done


def test_a_filter_of_the_conf_with_a_relative_path_is_looked_for_from_where_the_conf_lies(tmp_path):
    (tmp_path / 'etc' / 'my').mkdir(parents=True)
    (tmp_path / 'etc' / 'my' / 'door.conf').write_text(FILTER)
    (tmp_path / 'log').write_text(LOG)
    conf = '[door]\nfilter = my/door\n'
    (tmp_path / 'etc' / 'conf').write_text(conf)
    done = run([sys.executable, PROGRAM, '-c', '../etc/conf', 'replay', '--json', '../log'], cwd=str(tmp_path / 'etc'))
    assert [(ban['jail'], ban['ip']) for ban in json.loads(done.stdout)['bans']] == [('door', '192.0.2.7')]
    done = run([sys.executable, PROGRAM, '-c', '-', 'check'], input=conf, cwd=str(tmp_path / 'etc'))
    assert (done.returncode, done.stderr) == (78, "-:1: [door]: filter: 'my/door' is not an absolute path\n")
