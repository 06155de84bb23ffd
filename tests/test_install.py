"""install, uninstall and init.d/: in trees of files, and on machines of their own with each init system's ways."""
import configparser
import errno
import bz2
import glob
import os
import re
import pty
import stat
import subprocess
import sys

import pytest

import banwatch
from conftest import need
from harness import FakeMachine, poll
from network import Namespace

PROGRAM = os.path.abspath(banwatch.__file__)
INIT_D = os.path.join(os.path.dirname(PROGRAM), 'init.d')
SOURCE = '#!/usr/bin/env python3\nVERSION = "short"\n'      # compiled in no time
CACHED = '/usr/lib/banwatch/banwatch.%s.gz' % sys.implementation.cache_tag
PACKED = '/usr/lib/banwatch/banwatch.py.bz2'
LINE = '0 6 * * * /usr/sbin/banwatch -c /etc/banwatch.conf report --send >/dev/null'

# what a machine of each kind has before, and what it gets: path -> mode, or where a link leads
BEFORE = {
    'openwrt': {'/etc/openwrt_release': 'ID=openwrt\n', '/etc/init.d/cron': '', '/etc/rc.d/S50cron': '', '/usr/lib/x': '', '/usr/sbin/x': '',
                '/etc/crontabs/root': '# mine\n55 3 * * * banip report\n', '/etc/sysupgrade.conf': '## keep these\n/etc/mine\n'},
    'entware': {'/opt/etc/init.d/rc.func': '', '/opt/etc/cron.d/x': '', '/opt/sbin/x': '', '/opt/lib/x': ''},
    'systemd': {'/etc/systemd/system/multi-user.target.wants/x': '', '/etc/init.d/x': '', '/etc/cron.d/x': '', '/usr/lib/x': '',
                '/usr/sbin/x': ''},
    'sysvinit': {'/etc/init.d/x': '', '/etc/cron.d/x': '', '/usr/lib/x': '', '/usr/sbin/x': ''}}
USUAL = {'/usr/sbin/banwatch': 0o755, '/usr/lib/banwatch/banwatch.py': 0o644, PACKED: 0o644, CACHED: 0o644, '/etc/banwatch.conf': 0o644}
GETS = {
    'openwrt': dict(USUAL, **{'/etc/init.d/banwatch': 0o755, '/etc/rc.d/S95banwatch': '../init.d/banwatch',
                              '/etc/rc.d/K05banwatch': '../init.d/banwatch'}),
    'entware': dict({'/opt' + path.replace('/usr', ''): mode for path, mode in USUAL.items()},
                    **{'/opt/etc/init.d/S99banwatch': 0o755, '/opt/etc/cron.d/banwatch': 0o644}),
    'systemd': dict(USUAL, **{'/etc/systemd/system/banwatch.service': 0o644, '/etc/cron.d/banwatch': 0o644,
                              '/etc/systemd/system/multi-user.target.wants/banwatch.service': '../banwatch.service'}),
    'sysvinit': dict(USUAL, **{'/etc/init.d/banwatch': 0o755, '/etc/cron.d/banwatch': 0o644})}
KINDS = sorted(BEFORE)


def plant(root, files):
    for path, text in files.items():
        os.makedirs(os.path.dirname(str(root) + path), exist_ok=True)
        with open(str(root) + path, 'wb') as f:
            f.write(text.encode('utf-8', 'surrogateescape'))
    return str(root)


@pytest.fixture
def machine():
    return FakeMachine()


def install(machine, root, dry_run=False, source=SOURCE):
    banwatch.Installer(machine, root, dry_run).install(source)


def uninstall(machine, root, state=False, dry_run=False):
    banwatch.Installer(machine, root, dry_run).uninstall(lambda: state)


def read(path):
    with open(path, 'rb') as f:
        return f.read().decode('utf-8', 'surrogateescape')


def tree(root, times=False):
    """Path -> (mode, text or where a link leads) of all that is there; with `times`, when it was changed, too."""
    found = {}
    for folder, folders, files in os.walk(root):
        for path in [os.path.join(folder, name) for name in folders + files]:
            there = os.lstat(path)
            text = os.readlink(path) if os.path.islink(path) else read(path) if stat.S_ISREG(there.st_mode) else None
            found[path[len(root):]] = (there.st_mode, text) + (there.st_mtime_ns,) * times
    return found


# --- in trees

@pytest.mark.parametrize('kind', KINDS)
def test_each_kind_of_machine_gets_its_files(kind, tmp_path, machine):
    root = plant(tmp_path, BEFORE[kind])
    before = tree(root)
    install(machine, root)
    after = tree(root)
    new = {path: text if stat.S_ISLNK(mode) else stat.S_IMODE(mode)
           for path, (mode, text) in after.items() if path not in before and not stat.S_ISDIR(mode)}
    assert new == GETS[kind]
    place = banwatch.INIT_SYSTEMS[kind]
    assert after[place.init][1] == place.text
    assert after[place.program][1].startswith('#!' + place.python)
    assert banwatch.read_config(after[place.conf][1], 'c')[0]['state'] == place.state
    if kind == 'openwrt':
        assert after['/etc/crontabs/root'][1] == BEFORE[kind]['/etc/crontabs/root'] + LINE + '\n'
        assert after['/etc/sysupgrade.conf'][1].split('\n')[2:] == [
            '/usr/sbin/banwatch', '/usr/lib/banwatch/banwatch.py', PACKED, '/etc/init.d/banwatch', '/etc/banwatch.conf', '/etc/banwatch.state',
            '/etc/rc.d/S95banwatch', '/etc/rc.d/K05banwatch', '']
    else:
        assert after[place.cron][1] == '0 6 * * * root %s -c %s report --send >/dev/null\n' % (place.program, place.conf)


@pytest.mark.parametrize('kind', KINDS)
def test_twice_is_the_same_as_once(kind, tmp_path, machine, capsys):
    root = plant(tmp_path, BEFORE[kind])
    install(machine, root)
    once = tree(root, times=True)
    capsys.readouterr()
    install(machine, root)
    assert tree(root, times=True) == once
    assert 'written' not in capsys.readouterr().out


@pytest.mark.parametrize('kind', KINDS)
def test_uninstall_leaves_what_was_there_before(kind, tmp_path, machine, capsys):
    root = plant(tmp_path, BEFORE[kind])
    before = tree(root)
    install(machine, root)
    uninstall(machine, root)
    assert tree(root) == before
    capsys.readouterr()
    uninstall(machine, root)
    assert tree(root) == before and capsys.readouterr().out == ''


@pytest.mark.parametrize('text', [
    None, '# mine\n', '# no last newline', '# mine\n\n\n', '# caf\udce9\n', '# \u00fc\r\n', '# a long one\n' * 90000],
    ids=['missing', 'usual', 'without a last newline', 'empty lines', 'not UTF-8', 'DOS', 'over a MB'])
def test_files_of_others_come_out_as_they_went_in(text, tmp_path, machine):
    root = plant(tmp_path, BEFORE['openwrt'])
    for path in ('/etc/crontabs/root', '/etc/sysupgrade.conf'):
        os.unlink(root + path)
        if text is not None:
            plant(root, {path: text})
            os.chmod(root + path, 0o600)
    before = tree(root)
    install(machine, root)
    assert LINE in read(root + '/etc/crontabs/root').split('\n')
    for path in ('/etc/crontabs/root', '/etc/sysupgrade.conf'):
        assert (text or '') in read(root + path)
    uninstall(machine, root)
    assert tree(root) == before


def test_a_cron_line_that_somebody_moved_to_another_hour_gets_no_twin(tmp_path, machine):
    root = plant(tmp_path, BEFORE['openwrt'])
    install(machine, root)
    moved = read(root + '/etc/crontabs/root').replace('0 6 *', '30 7 *')
    plant(root, {'/etc/crontabs/root': moved})
    install(machine, root)
    assert read(root + '/etc/crontabs/root') == moved
    uninstall(machine, root)
    assert read(root + '/etc/crontabs/root') == BEFORE['openwrt']['/etc/crontabs/root']


def test_without_a_folder_for_cron_it_tells_the_line(tmp_path, machine, capsys):
    root = plant(tmp_path, {'/opt/etc/init.d/rc.func': ''})
    install(machine, root)
    assert 'let cron run each day: 0 6 * * * root /opt/sbin/banwatch' in capsys.readouterr().out
    assert not os.path.exists(root + '/opt/etc/cron.d')


def test_a_changed_conf_stays_and_an_unchanged_one_goes(tmp_path, machine, capsys):
    root = plant(tmp_path, dict(BEFORE['openwrt'], **{'/etc/banwatch.conf': '[sshd]\nenabled = true\n'}))
    before = tree(root)
    install(machine, root)
    assert '/etc/banwatch.conf: is there, and stays as it is' in capsys.readouterr().out
    uninstall(machine, root)
    assert tree(root) == before
    assert '/etc/banwatch.conf: stays, for somebody has changed it' in capsys.readouterr().out
    os.unlink(root + '/etc/banwatch.conf')
    install(machine, root)
    uninstall(machine, root)
    assert not os.path.exists(root + '/etc/banwatch.conf')


def test_the_state_stays_unless_it_is_told_to_go(tmp_path, machine, capsys):
    root = plant(tmp_path, BEFORE['openwrt'])
    before = tree(root)
    install(machine, root)
    plant(root, {'/etc/banwatch.state': '{}'})
    uninstall(machine, root)
    assert '/etc/banwatch.state: stays (bans and history)' in capsys.readouterr().out
    assert set(tree(root)) - set(before) == {'/etc/banwatch.state'}
    uninstall(machine, root, state=True)
    assert tree(root) == before


@pytest.mark.parametrize('kind', KINDS)
def test_a_dry_run_says_the_same_and_writes_nothing(kind, tmp_path, machine, capsys):
    root = plant(tmp_path, BEFORE[kind])
    for act in (install, uninstall):
        before = tree(root, times=True)
        act(machine, root, dry_run=True)
        said = capsys.readouterr().out
        assert tree(root, times=True) == before
        act(machine, root)
        assert said and capsys.readouterr().out == said


def test_a_newer_program_replaces_an_older_one_and_its_byte_code(tmp_path, machine, capsys):
    root = plant(tmp_path, BEFORE['sysvinit'])
    install(machine, root)
    old = read(root + CACHED)
    capsys.readouterr()
    install(machine, root, source=SOURCE + '# newer\n')
    said = capsys.readouterr().out
    assert PACKED + ': written' in said and 'compiled' in said
    assert '/usr/sbin/banwatch: is there' in said and '/etc/init.d/banwatch: is there' in said
    assert read(root + CACHED) != old and '# newer' in bz2.decompress(open(root + PACKED, 'rb').read()).decode()


@pytest.mark.parametrize('size', [0, 10, 16, 60])
def test_byte_code_that_a_power_cut_has_torn_is_made_again(size, tmp_path, machine):
    root = plant(tmp_path, BEFORE['sysvinit'])
    install(machine, root)
    whole = read(root + CACHED)
    os.truncate(root + CACHED, size)
    install(machine, root)
    assert read(root + CACHED) == whole


def test_the_byte_code_of_an_image_is_made_once_whatever_its_builder_does_to_times(tmp_path, machine):
    root = plant(tmp_path, BEFORE['sysvinit'])
    install(machine, root)
    os.utime(root + PACKED, (1, 1))
    once = tree(root, times=True)
    install(machine, root)
    assert tree(root, times=True) == once and machine.compiled(root + PACKED)
    with open(root + PACKED, 'wb') as f:
        f.write(bz2.compress(SOURCE.replace('short', 'SHORT').encode()))
    assert not machine.compiled(root + PACKED)


@pytest.mark.parametrize('before, kind', [
    ({'/etc/openwrt_release': '', '/etc/init.d/x': '', '/opt/etc/init.d/rc.func': ''}, 'openwrt'),
    ({'/opt/etc/init.d/rc.func': '', '/etc/init.d/x': ''}, 'entware'),
    ({'/run/systemd/system/x': '', '/etc/init.d/x': ''}, 'systemd'),
    ({'/etc/systemd/system/x': '', '/etc/init.d/x': ''}, 'systemd'), ({'/etc/init.d/x': ''}, 'sysvinit')])
def test_the_init_system_is_found_by_its_files(before, kind, tmp_path, machine):
    assert banwatch.find_init_system(machine, plant(tmp_path, before)) is banwatch.INIT_SYSTEMS[kind]


def test_the_place_can_be_named_for_files_of_an_image_that_do_not_tell(tmp_path):
    argv = [sys.executable, banwatch.__file__, 'install', '--root', str(tmp_path), '--kind', 'entware']
    assert 'for Entware' in subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout.decode()
    assert (tmp_path / 'opt/etc/init.d/S99banwatch').exists()
    argv[2] = 'uninstall'
    subprocess.run(argv, stdout=subprocess.PIPE, check=True)
    assert not list(tmp_path.glob('opt/*/init.d/*'))


class Files(FakeMachine):
    """A machine that has these files only."""

    def __init__(self, *paths):
        super().__init__()
        self.paths = paths

    def exists(self, path):
        return path in self.paths


def test_a_running_machine_has_systemd_only_if_it_was_booted_with_it():
    there = ('/etc/systemd/system', '/etc/init.d')              # Debian's packages bring both, whatever runs
    assert banwatch.find_init_system(Files(*there), '').name == 'sysvinit'
    assert banwatch.find_init_system(Files('/run/systemd/system', *there), '').name == 'systemd'


def test_systemd_is_told_when_its_unit_has_gone(capsys):
    banwatch.Installer(Files('/etc/systemd/system/banwatch.service'), '', True, 'systemd').uninstall(lambda: False)
    ran = [line for line in capsys.readouterr().out.split('\n') if line.startswith('runs: ')]
    assert ran == ['runs: systemctl disable --now banwatch', 'runs: systemctl daemon-reload']


@pytest.mark.parametrize('words, code, said', [
    (['--root', 'TREE'], 1, 'no init system that is known here; name it with --kind (openwrt entware systemd sysvinit), or let yours run: banwatch.py run'),
    (['--root', 'TREE', '--kind', 'qnx'], 64, '--kind qnx: there are: openwrt entware systemd sysvinit'),
    (['--root', 'TREE/nowhere'], 1, 'nowhere: is not a directory'), (['--root', ''], 64, '--root'), (['more'], 64, 'usage: banwatch.py '),
    (['--root'], 64, '--root requires argument'), (['--force'], 64, '--force not recognized')])
@pytest.mark.parametrize('word', ['install', 'uninstall'])
def test_what_cannot_be_done_is_one_line(word, words, code, said, tmp_path, capsys):
    words = [each.replace('TREE', str(tmp_path)) for each in words]
    assert banwatch.main([word, '--dry-run'] + words) == code
    told = capsys.readouterr()
    assert said in told.err and told.err.count('\n') == 1 and told.out == ''


# --- how it is kept there

def test_it_fits_into_little_flash(tmp_path, machine):
    """All of it is packed, so a file system that packs, too, needs no less: 450 kB are asked for."""
    root = plant(tmp_path, BEFORE['openwrt'])
    install(machine, root, source=read(PROGRAM))
    library = root + '/usr/lib/banwatch'
    assert sum(os.path.getsize(os.path.join(library, name)) for name in os.listdir(library)) < 475000


def loads(library, python=sys.executable):
    """(version, whether it was compiled just now) of what a Python loads from there."""
    code = 'import sys; sys.path.append(%r); import banwatch; print(banwatch.VERSION, banwatch.COMPILED is not None)' % library
    return subprocess.run([python, '-IB', '-c', code], stdout=subprocess.PIPE, universal_newlines=True, timeout=60, check=True).stdout.split()


TINY = '#!/usr/bin/env python3\n"""long words"""\nVERSION = %r\n'


def test_the_loader_takes_byte_code_that_fits_and_else_the_source(tmp_path, machine):
    root = plant(tmp_path, BEFORE['sysvinit'])
    install(machine, root, source=TINY % '1')
    library, packed, made = root + '/usr/lib/banwatch', root + PACKED, root + CACHED
    assert loads(library) == ['1', 'False']
    whole = open(made, 'rb').read()
    for torn in b'', whole[:20], whole[:-9], banwatch.gzipped(b'x' * 16), banwatch.gzipped(b'\0' * 40):
        with open(made, 'wb') as f:
            f.write(torn)
        assert loads(library) == ['1', 'True']
    os.unlink(made)
    assert loads(library) == ['1', 'True'] and not os.path.exists(made)
    machine.compile(packed)                                        # with the time of the source, as on a machine that runs
    assert loads(library) == ['1', 'False'] and machine.compiled(packed)
    with open(packed, 'wb') as f:
        f.write(bz2.compress((TINY % '22').encode()))
    assert loads(library) == ['22', 'True'] and not machine.compiled(packed)
    assert sorted(os.listdir(library)) == sorted(['banwatch.py', 'banwatch.py.bz2', os.path.basename(made)])


def test_the_byte_code_of_other_pythons_goes(tmp_path, machine, capsys):
    root = plant(tmp_path, dict(BEFORE['sysvinit'], **{
        '/usr/lib/banwatch/banwatch.cpython-36.gz': 'x', '/usr/lib/banwatch/__pycache__/banwatch.cpython-311.pyc': 'x', '/usr/lib/banwatch/other.gz': 'x'}))
    install(machine, root)
    there = tree(root)
    assert '/usr/lib/banwatch/banwatch.cpython-36.gz' not in there and not any(path.endswith('.pyc') for path in there)
    assert {PACKED, CACHED, '/usr/lib/banwatch/other.gz'} <= set(there)
    assert '/usr/lib/banwatch/banwatch.cpython-36.gz: removed' in capsys.readouterr().out


def test_an_upgrade_keeps_the_source_and_no_byte_code(tmp_path, machine):
    keep = '/etc/sysupgrade.conf'
    root = plant(tmp_path, dict(BEFORE['openwrt'], **{keep: '/etc/mine\n/usr/lib/banwatch/\n'}))
    install(machine, root)
    rows = read(root + keep).split('\n')
    assert rows[0] == '/etc/mine' and PACKED in rows and '/usr/lib/banwatch/' not in rows
    assert not any(os.path.basename(CACHED) in row for row in rows)


def test_installing_over_a_conf_with_mistakes_changes_nothing(tmp_path, machine):
    root = plant(tmp_path, dict(BEFORE['sysvinit'], **{'/etc/banwatch.conf': '[sshd]\nmaxretri = 3\n'}))
    before = tree(root)
    with pytest.raises(banwatch.Problem) as e:
        install(machine, root)
    assert 'banwatch.conf:2: maxretri: no such option' in str(e.value) and e.value.code == 78
    assert tree(root) == before


def test_uninstall_takes_the_state_where_the_conf_has_it_live_and_kept(tmp_path, machine, capsys):
    files = {'/mnt/disk/bans': '{}', '/var/run/bw/state.json': '{}', '/etc/banwatch.state': '{}',
             '/etc/banwatch.conf': '[banwatch]\nstate = /mnt/disk/bans\nruntime = /var/run/bw\n'}
    for state in False, True:
        root = plant(tmp_path / str(state), dict(BEFORE['sysvinit'], **files))
        install(machine, root)
        uninstall(machine, root, state=state)
        there = tree(root)
        assert [path in there for path in files] == ([False] * 3 if state else [True] * 3) + [True]


# --- init.d/

def test_init_d_holds_what_install_writes():
    names = {'openwrt': 'banwatch', 'entware': 'S99banwatch', 'sysvinit': 'banwatch.lsb', 'systemd': 'banwatch.service'}
    assert sorted(os.listdir(INIT_D)) == sorted(names.values())
    for kind, name in names.items():
        path = os.path.join(INIT_D, name)
        assert read(path) == banwatch.INIT_SYSTEMS[kind].text
        assert stat.S_IMODE(os.stat(path).st_mode) == banwatch.INIT_SYSTEMS[kind].mode


@pytest.mark.parametrize('name', ['banwatch', 'S99banwatch', 'banwatch.lsb'])
def test_busybox_can_parse_the_scripts(name):
    need('busybox')
    done = subprocess.run(['busybox', 'ash', '-n', os.path.join(INIT_D, name)], stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b'')


def test_the_unit_says_what_systemd_is_to_do():
    unit = configparser.RawConfigParser()
    unit.optionxform = str
    unit.read(os.path.join(INIT_D, 'banwatch.service'))
    service = unit['Service']
    run = '/usr/sbin/banwatch -c /etc/banwatch.conf run'
    assert service['ExecStart'] == run and '--syslog' not in run       # standard error is the journal's
    assert service['ExecReload'] == '/bin/kill -HUP $MAINPID'
    assert service['Restart'] == 'on-failure' and service['KillMode'] == 'control-group'
    assert unit['Install']['WantedBy'] == 'multi-user.target'
    # a bad conf is no crash loop: this holds for ExecStart only, so what tells the mistakes must be `run` itself
    assert service['RestartPreventExitStatus'] == '78' and 'ExecStartPre' not in service


# --- as a command

def banwatch_py(*words, **more):
    """The CompletedProcess of a command line."""
    how = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=30)
    how.update(more)
    return subprocess.run([sys.executable, PROGRAM] + list(words), **how)


@pytest.mark.parametrize('word', ['install', 'uninstall'])
def test_only_root_can_do_it(word, capfd):
    need(root=True)
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setuid(65534)
            code = banwatch.main([word])
            sys.stderr.flush()
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] >> 8 == 77
    assert capfd.readouterr() == ('', 'banwatch: only root can do that (try --dry-run)\n')


@pytest.mark.slow
def test_with_any_umask_everybody_can_run_it(tmp_path):
    root = plant(tmp_path, BEFORE['sysvinit'])
    before = tree(root)
    done = banwatch_py('install', '--root', root, preexec_fn=lambda: os.umask(0o077))
    assert done.returncode == 0, done.stderr
    for path, (mode, _) in tree(root).items():
        if path not in before:
            assert mode & 0o044 == 0o044 and (mode & 0o011 == 0o011 or not stat.S_ISDIR(mode)), path


@pytest.mark.slow
@pytest.mark.parametrize('answer, left', [('y', False), ('n', True), ('', True)])
def test_on_a_terminal_uninstall_asks_before_it_removes_the_state(answer, left, tmp_path):
    root = plant(tmp_path, dict(BEFORE['sysvinit'], **{'/etc/banwatch.state': '{}'}))
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode() + b'\n')
    done = banwatch_py('uninstall', '--root', root, stdin=theirs)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0 and 'Remove the bans and their history, too? [y/N] ' in done.stdout
    assert os.path.exists(root + '/etc/banwatch.state') == left


@pytest.mark.slow
def test_where_nothing_can_be_written_one_line_says_so_and_nothing_is_torn(tmp_path, machine):
    need('unshare', root=True)
    root = str(tmp_path / 'tree')
    os.mkdir(root)
    script = '''
        mount -t tmpfs -o size=64m banwatch-test {root}; mkdir -p {root}/etc/init.d
        mount -o remount,$1 {root}; {python} {program} install --root {root} >/dev/null; echo $?
        mount -o remount,rw,size=64m {root}; find {root} -name '*.new'; {python} {program} install --root {root} >/dev/null; echo $?
        cd {root}/usr/lib/banwatch; {python} -c 'import banwatch; print(banwatch.VERSION)'; bzcat banwatch.py.bz2 | cmp - {program}
        '''.format(root=root, python=sys.executable, program=PROGRAM)
    for option, why in [('ro', errno.EROFS)] + [('size=%dk' % more, errno.ENOSPC) for more in (100, 300)]:
        done = subprocess.run(['unshare', '--mount', '--propagation', 'private', 'sh', '-c', script, 'sh', option],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=30)
        assert done.stdout.split() == ['1', '0', banwatch.VERSION], (option, done)
        assert done.stderr.startswith('banwatch: ') and done.stderr.endswith(os.strerror(why) + '\n'), done.stderr
        assert done.stderr.count('\n') == 1


# --- on machines

# The machine's files seen through an overlay, processes and network of its own. Orphans are reaped by the kernel.
BOX = '''
mount -t tmpfs banwatch-test {folder}; cd {folder}; mkdir upper work root
mount -t overlay banwatch-test -o lowerdir=/,upperdir=upper,workdir=work root
mount -t proc proc root/proc; for name in dev tmp run; do mount -t tmpfs banwatch-test root/$name; done
for name in null zero urandom; do : >root/dev/$name; mount --bind /dev/$name root/dev/$name; done
trap '' CHLD; read pid rest </proc/self/stat; echo $pid; exec env --ignore-signal=CHLD chroot root cat
'''
LACKS = 'timeout stat nohup shuf sendmail telnet ipcalc syslogd klogd'.split()      # what OpenWrt's busybox has not
CONF = '[banwatch]\nsource = /tmp/log\nfirewall = none\n'
BAD = CONF + '[DEFAULT]\nbantime = 1x\n'
MISTAKE = "banwatch.conf:5: bantime: '1x' is not a duration"


class Box(Namespace):
    """A machine to install on; busybox is its shell and its tools, nothing it does is seen outside."""

    def __init__(self, folder, bin, files):
        self.processes = []
        self.holder = subprocess.Popen(
            ['unshare', '--net', '--mount', '--pid', '--fork', '--propagation', 'private', 'sh', '-ec', BOX.format(folder=folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self.first = int(self.holder.stdout.readline())
        self.holder.stdin.write(b'\n')
        self.holder.stdin.flush()
        self.holder.stdout.readline()              # cat's echo says that everything is in its place
        self.root, self.bin = '/proc/%d/root' % self.first, bin
        plant(self.root, dict(files, **{'/root/banwatch.py': read(PROGRAM), '/tmp/log': ''}))
        self.script('''
            mkdir -p {bin}; for tool in $(busybox --list); do ln -sf /bin/busybox {bin}/$tool; done; cd {bin}; rm -f {lacks}
            ln -sf /bin/busybox /bin/sh; ln -sf /usr/bin/python3 {bin}/python3; rm -f /var/log/messages; busybox syslogd
            chmod 755 /etc/init.d/* /etc/rc.common 2>/dev/null || :'''.format(bin=bin, lacks=' '.join(LACKS)))

    def command(self, argv):
        return ['nsenter', '--target', str(self.first), '--net', '--mount', '--pid', '--root', '--wd=' + self.root] + list(argv)

    def __call__(self, *argv):
        """The CompletedProcess of a program that finds only busybox's tools in its PATH."""
        return self.run(('/usr/bin/env', '-i', 'PATH=' + self.bin) + argv)

    def said(self, *argv):
        """What a program prints; it must succeed."""
        done = self(*argv)
        assert done.returncode == 0, done
        return done.stdout

    def banwatch_py(self, *words):
        """What a command of the program prints that has not been installed yet."""
        return self.said('/usr/bin/python3', '/root/banwatch.py', *words)

    def read(self, path):
        return read(self.root + path) if os.path.lexists(self.root + path) else ''

    def write(self, path, text):
        plant(self.root, {path: text})

    def logged(self, text, times=None):
        """Do soon so many lines of the system log hold a text (None: any)? Its daemon may be a moment late."""
        return poll(lambda: self.read('/var/log/messages').count(text) == times if times is not None else text in self.read('/var/log/messages'))

    def daemons(self):
        """The pids of what busybox's pidof finds as banwatch."""
        return self('/bin/busybox', 'pidof', 'banwatch').stdout.split()

    def daemon(self):
        """The pid of the daemon, once it answers."""
        assert poll(lambda: self('/usr/bin/python3', '/root/banwatch.py', 'status').returncode == 0), self.read('/var/log/messages')
        found = self.daemons()
        assert len(found) == 1, found
        return found[0]

    def kill(self, pid, number='KILL'):
        self.said('/bin/busybox', 'kill', '-' + number, pid)

    def gone(self):
        """Is there no daemon any more, soon?"""
        return poll(lambda: not self.daemons(), 5)

    def close(self):
        self.holder.communicate(timeout=5)         # its first process ends, and with it all others


@pytest.fixture
def box(tmp_path):
    """A function that makes a machine with these files and busybox' tools in that folder."""
    need('unshare', 'nsenter', 'busybox', '/usr/bin/python3', root=True)
    made = []

    def make(files, bin='/bb'):
        (tmp_path / 'box').mkdir()
        made.append(Box(str(tmp_path / 'box'), bin, files))
        return made[0]
    yield make
    for each in made:
        each.close()


# OpenWrt's rc.common and as much of procd as it takes: a service is set to its instances; one that is there
# already stays, one that is not named any more is stopped. What is asked of it is written to /tmp/procd.
RC_COMMON = r'''#!/bin/sh
initscript=$1
action=${2:-help}
shift 2
name=$(basename "$initscript")
pid() { cat /tmp/procd.pid 2>/dev/null; }
alive() { [ -d "/proc/$(pid)/fd" ]; }
procd() { echo "$*" >>/tmp/procd; }
procd_open_instance() { procd open; instance=; }
procd_set_param() { procd "$@"; [ "$1" != command ] || { shift; instance="$*"; }; }
procd_close_instance() { procd close; opened=$instance; }
procd_send_signal() { procd signal "$@"; alive && kill "-$3" "$(pid)"; }
set_service() {
	if [ -z "$opened" ]; then
		! alive || kill "$(pid)"
	elif ! alive; then
		$opened </dev/null >/dev/null 2>>/tmp/stderr &
		echo $! >/tmp/procd.pid
	fi
}
boot() { start "$@"; }
start() { opened=; start_service "$@"; set_service; }
stop() { opened=; set_service; while alive; do sleep 0.05; done; }
restart() { stop; start; }
reload() { if type reload_service >/dev/null; then reload_service "$@"; else start; fi; }
disable() { rm -f /etc/rc.d/S??"$name" /etc/rc.d/K??"$name"; }
enable() { disable; ln -s "../init.d/$name" "/etc/rc.d/S$START$name"; ln -s "../init.d/$name" "/etc/rc.d/K$STOP$name"; }
. "$initscript"
case " start stop reload restart boot enable disable $EXTRA_COMMANDS " in
	*" $action "*) $action "$@" ;;
	*) echo "Available commands: $EXTRA_HELP"; exit 1 ;;
esac
'''
ASKED = '''open
command /usr/sbin/banwatch -c /etc/banwatch.conf run --syslog
respawn 3600 5 0
term_timeout 10
stderr 1
close
'''


@pytest.fixture
def openwrt(box):
    return box(dict(BEFORE['openwrt'], **{'/etc/rc.common': RC_COMMON, '/etc/banwatch.conf': CONF,
                                          '/etc/init.d/cron': '#!/bin/sh\necho $1 >>/tmp/cron\n'}))


SERVICE = '/etc/init.d/banwatch'


@pytest.mark.slow
def test_openwrt_from_install_to_uninstall(openwrt):
    planned = openwrt.banwatch_py('install', '--dry-run')
    assert not openwrt.read('/tmp/procd') and not openwrt.read('/tmp/cron')
    said = openwrt.banwatch_py('install')
    assert said.startswith(planned) and re.fullmatch(r'It runs: banwatch \S+, pid \d+\.\n', said[len(planned):])
    assert openwrt.read('/tmp/procd') == ASKED and openwrt.read('/tmp/cron') == 'enable\nrestart\n'
    pid = openwrt.daemon()
    assert openwrt.read('/proc/%s/comm' % pid) == 'banwatch\n'
    assert sorted(os.listdir(openwrt.root + '/etc/rc.d')) == ['K05banwatch', 'S50cron', 'S95banwatch']
    openwrt.said('/usr/sbin/banwatch', 'install')               # once more, by what is there: nothing starts anew
    assert openwrt.daemon() == pid and openwrt.read('/etc/crontabs/root').count('banwatch') == 2
    assert openwrt.said(SERVICE, 'check') == '/etc/banwatch.conf: all right\n'
    assert 'HEALTH' in openwrt.said(SERVICE, 'report')

    openwrt.write('/etc/banwatch.conf', CONF + '[DEFAULT]\nmaxretry = 7\n')
    openwrt.said(SERVICE, 'reload')
    assert openwrt.read('/tmp/procd').endswith('signal banwatch * HUP\n')
    assert openwrt.logged('daemon.notice banwatch[%s]: reloaded ' % pid) and openwrt.daemon() == pid
    openwrt.kill(pid)
    assert openwrt.gone()
    openwrt.said('/etc/rc.d/S95banwatch', 'boot')
    assert openwrt.daemon() != pid

    openwrt.write('/tmp/cron', '')
    openwrt.said('/usr/sbin/banwatch', 'uninstall')
    assert openwrt.gone() and os.listdir(openwrt.root + '/etc/rc.d') == ['S50cron']
    assert openwrt.read('/etc/crontabs/root') == BEFORE['openwrt']['/etc/crontabs/root']
    assert openwrt.read('/tmp/cron') == 'restart\n'             # crond reads its files again only then


@pytest.mark.slow
def test_openwrt_with_a_bad_conf_starts_nothing_and_stops_nothing(openwrt):
    openwrt.write('/etc/banwatch.conf', BAD)
    done = openwrt('/usr/bin/python3', '/root/banwatch.py', 'install')
    assert done.returncode == 78 and MISTAKE in done.stderr and not os.path.exists(openwrt.root + SERVICE)
    openwrt.write('/etc/banwatch.conf', CONF)
    openwrt.banwatch_py('install')
    openwrt.said(SERVICE, 'stop')
    assert openwrt.gone()
    openwrt.write('/tmp/procd', '')

    openwrt.write('/etc/banwatch.conf', BAD)
    openwrt(SERVICE, 'start')                                   # now the script itself is the only `banwatch` that runs
    assert openwrt.read('/tmp/procd') == '' and openwrt.daemons() == []
    assert openwrt.logged(MISTAKE, 1) and openwrt.logged(' banwatch: not started: ', 1)

    openwrt.write('/etc/banwatch.conf', CONF)
    openwrt.said(SERVICE, 'start')
    pid = openwrt.daemon()
    openwrt.write('/etc/banwatch.conf', BAD)
    openwrt(SERVICE, 'start')
    assert openwrt.read('/tmp/procd') == 2 * ASKED and openwrt.logged(MISTAKE, 2)
    done = openwrt(SERVICE, 'reload')
    assert done.returncode == 1 and MISTAKE in done.stderr and 'not reloaded: ' in done.stderr and poll(lambda: openwrt.daemons() == [pid])
    assert openwrt(SERVICE, 'restart').returncode == 1 and poll(lambda: openwrt.daemons() == [pid]) and openwrt.logged(' banwatch: not restarted: ', 1)
    openwrt.write('/etc/banwatch.conf', CONF)
    openwrt.said(SERVICE, 'restart')
    assert openwrt.daemon() != pid


@pytest.mark.slow
def test_openwrt_after_a_sysupgrade_says_that_python_is_missing(openwrt):
    openwrt.banwatch_py('install')
    openwrt.said(SERVICE, 'stop')
    openwrt.write('/tmp/procd', '')
    os.unlink(openwrt.root + '/bb/python3')
    done = openwrt('/etc/rc.d/S95banwatch', 'boot')
    assert 'not started: python3 is missing' in done.stderr and done.stderr.count('\n') == 1
    assert openwrt.logged('install python3-light', 1) and openwrt.read('/tmp/procd') == ''


# Entware's, but for its pauses, which are of a second there
RC_FUNC = r'''#!/bin/sh
ACTION=$1
CALLER=$2
LIMIT=30
start() {
	printf " Starting %s... " "$DESC"
	if [ -n "$(pidof $PROC)" ]; then echo "already running"; return 0; fi
	$PRECMD >/dev/null 2>&1
	$PREARGS $PROC $ARGS >/dev/null 2>&1 &
	COUNTER=0
	while [ -z "$(pidof $PROC)" ] && [ "$COUNTER" -le "$LIMIT" ]; do sleep 0.1; COUNTER=$((COUNTER + 1)); done
	if [ -z "$(pidof $PROC)" ]; then echo "failed"; logger "Failed to start $DESC from $CALLER."; return 255; fi
	echo "done"
}
stop() {
	printf " Shutting down %s... " "$PROC"
	killall $PROC 2>/dev/null
	COUNTER=0
	while [ -n "$(pidof $PROC)" ] && [ "$COUNTER" -le "$LIMIT" ]; do sleep 0.1; COUNTER=$((COUNTER + 1)); done
	if [ -n "$(pidof $PROC)" ]; then echo "failed"; return 255; fi
	echo "done"
}
check() { if [ -n "$(pidof $PROC)" ]; then echo " alive"; else echo " dead"; return 1; fi; }
for PROC in $PROCS; do
	case $ACTION in
		start) start ;;
		stop) check >/dev/null && stop ;;
		restart) check >/dev/null && stop; start ;;
		check) check ;;
		reconfigure) killall -HUP $PROC ;;
	esac
done
'''


@pytest.mark.slow
def test_entware_from_install_to_uninstall(box):
    entware = box(dict(BEFORE['entware'], **{'/opt/etc/init.d/rc.func': RC_FUNC, '/opt/etc/banwatch.conf': CONF}), '/opt/bin')
    service = '/opt/etc/init.d/S99banwatch'
    entware.banwatch_py('install')
    pid = entware.daemon()
    assert 'already running' in entware.said(service, 'start') and 'alive' in entware.said(service, 'check')
    entware.said(service, 'reconfigure')
    assert entware.logged('banwatch[%s]: ' % pid) and entware.logged('reload') and entware.daemon() == pid
    assert 'failed' not in entware.said(service, 'restart')
    again = entware.daemon()
    assert again != pid

    entware.write('/opt/etc/banwatch.conf', BAD)
    done = entware(service, 'restart')
    assert done.returncode == 1 and entware.logged(MISTAKE, 1) and poll(lambda: entware.daemons() == [again])
    entware.write('/opt/etc/banwatch.conf', CONF)
    with open(entware.root + '/opt/lib/banwatch/banwatch.py.bz2', 'wb') as f:
        f.write(bz2.compress(read(PROGRAM).encode() + b'# older\n'))
    entware.write('/tmp/opt-banwatch', entware.read('/opt/sbin/banwatch').replace('/opt/lib/banwatch', '/root'))
    entware.script('mkdir /tmp/new; mv /tmp/opt-banwatch /tmp/new/banwatch; chmod 755 /tmp/new/banwatch')
    said = entware.said('/tmp/new/banwatch', 'install')         # itself called banwatch, as what `killall banwatch` is to stop
    assert '%s restart' % service in said
    newer = entware.daemon()
    assert newer != again
    entware.said(service, 'stop')
    assert entware.gone() and entware.said(service, 'start').endswith('done\n')
    entware.daemon()
    entware.said('/opt/sbin/banwatch', 'uninstall')
    assert entware.gone() and not os.path.exists(entware.root + '/opt/lib/banwatch')
    assert 'python3 is missing' not in entware.read('/var/log/messages')


@pytest.mark.slow
def test_entware_without_python_says_so_and_exits_politely(box):
    entware = box({'/opt/etc/init.d/rc.func': RC_FUNC, '/opt/etc/init.d/S99banwatch': banwatch.ENTWARE_INIT}, '/opt/bin')
    entware.script('rm -f /opt/bin/python3 /usr/bin/python3')
    done = entware('sh', '/opt/etc/init.d/S99banwatch', 'start')
    assert done.returncode == 0 and 'python3 is missing' in done.stderr and entware.logged('python3 is missing', 1)


@pytest.fixture
def sysvinit(box):
    need('start-stop-daemon', 'update-rc.d')
    made = box({'/etc/banwatch.conf': CONF}, '/bb')
    made.script('rm -rf /etc/systemd /run/systemd; mkdir -p /etc/cron.d')
    made.bin = '/usr/sbin:/usr/bin:/sbin:/bin'
    return made


@pytest.mark.slow
def test_sysvinit_from_install_to_uninstall(sysvinit):
    sysvinit.banwatch_py('install')
    pid = sysvinit.daemon()
    assert sysvinit.read('/run/banwatch.pid').strip() == pid
    assert glob.glob(sysvinit.root + '/etc/rc2.d/S??banwatch')
    assert 'is running' in sysvinit.said(SERVICE, 'start') and sysvinit.daemon() == pid
    assert 'firewall' in sysvinit.said(SERVICE, 'status')
    sysvinit.said(SERVICE, 'reload')
    assert sysvinit.logged('banwatch[%s]: ' % pid) and sysvinit.logged('reload')
    sysvinit.write('/etc/banwatch.conf', BAD)
    sysvinit.said(SERVICE, 'reload')
    assert sysvinit.logged(MISTAKE) and poll(lambda: sysvinit.daemons() == [pid])
    done = sysvinit(SERVICE, 'restart')
    assert done.returncode == 6 and MISTAKE in done.stderr and poll(lambda: sysvinit.daemons() == [pid])
    sysvinit.said(SERVICE, 'stop')
    assert sysvinit.gone()
    done = sysvinit(SERVICE, 'start')
    assert done.returncode == 6 and MISTAKE in done.stderr and not sysvinit.daemons()
    assert sysvinit(SERVICE, 'status').returncode == 3 and sysvinit(SERVICE, 'reload').returncode == 1

    sysvinit.write('/etc/banwatch.conf', CONF)
    sysvinit.said(SERVICE, 'start')
    sysvinit.kill(sysvinit.daemon())
    assert sysvinit.gone() and sysvinit(SERVICE, 'status').returncode == 3
    sysvinit.write('/run/banwatch.pid', '1\n')                  # the pid has become another's since
    sysvinit.said(SERVICE, 'start')
    sysvinit.daemon()
    sysvinit.said('/usr/sbin/banwatch', 'uninstall')
    assert sysvinit.gone() and not glob.glob(sysvinit.root + '/etc/rc?.d/*banwatch') and not os.path.exists(sysvinit.root + SERVICE)


@pytest.mark.slow
def test_the_launcher_uses_byte_code_that_fits_and_no_other(sysvinit):
    sysvinit.banwatch_py('install')
    code = 'import sys; sys.path.append("/usr/lib/banwatch"); import banwatch; print(banwatch.VERSION, banwatch.COMPILED is None)'

    def start(python):
        return sysvinit.said(python, '-IB', '-c', code).split()
    assert start('/usr/bin/python3') == [banwatch.VERSION, 'True']
    assert sysvinit.said('/usr/sbin/banwatch', '--version') == 'banwatch %s\n' % banwatch.VERSION
    for python in other_pythons(sysvinit)[:1]:
        assert start(python) == [banwatch.VERSION, 'False']
    with open(sysvinit.root + PACKED, 'wb') as f:
        f.write(bz2.compress(read(PROGRAM).replace("VERSION = '%s'" % banwatch.VERSION, "VERSION = '99'").encode()))
    assert start('/usr/bin/python3') == ['99', 'False']


def other_pythons(box):
    """Paths of Pythons that banwatch runs on, other than the system's."""
    own = box.said('/usr/bin/python3', '-c', 'import sys; print("/%d.%d." % sys.version_info[:2])').strip()
    return [path for path in sorted(glob.glob(os.path.expanduser('~/.pyenv/versions/3.*/bin/python3')))
            if own not in path and '/3.6.' not in path]


@pytest.mark.slow
def test_a_daemon_is_called_banwatch_however_it_was_started(sysvinit):
    daemon = sysvinit.popen(['/usr/bin/python3', '/root/banwatch.py', 'run', '--syslog'], stderr=subprocess.DEVNULL)
    pid = sysvinit.daemon()
    assert sysvinit.read('/proc/%s/comm' % pid) == 'banwatch\n'
    assert sysvinit.logged('daemon.notice banwatch[%s]: ' % pid)
    sysvinit.kill(pid, 'TERM')
    assert daemon.wait(10) == 0
