"""What all tests share: banwatch can be imported, `need` says what a machine must have, `network` is a small internet."""
import faulthandler
import os
import shutil
import sys

import pytest

TESTS = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.dirname(TESTS), TESTS]
pytest.register_assert_rewrite('network', 'harness')
os.environ['PATH'] += ':/usr/sbin:/sbin'               # a user's PATH may lack the administrator's programs


LONGEST = 180                                           # seconds; a test that takes longer hangs


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: takes seconds; left out on all interpreters but the first')
    config.addinivalue_line('markers', 'mips: runs on an emulated MIPS processor; left out unless `-m mips` asks for it')
    config.addinivalue_line('markers', 'bench: a long measurement is tried; left out unless `-m bench` asks for it')
    config.real_stderr = os.dup(2)                      # while a test runs, 2 is pytest's


def pytest_collection_modifyitems(config, items):
    """Leaves out what is marked mips or bench, unless -m says something about that."""
    for name in 'mips', 'bench':
        if name not in config.option.markexpr:
            items[:] = [item for item in items if not item.get_closest_marker(name)]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    """Ends a run that hangs, with a traceback that says where."""
    faulthandler.dump_traceback_later(LONGEST, exit=True, file=item.config.real_stderr)
    yield
    faulthandler.cancel_dump_traceback_later()


def missing(*programs, root=False):
    """What keeps this machine from running a test; empty if nothing does."""
    wanted = ['the program ' + name for name in programs if not shutil.which(name)]
    return wanted + ['root'] * bool(root and os.geteuid())


def need(*programs, root=False):
    """Skips the test where something is missing; under CI nothing may be missing, so there it fails."""
    wanted = missing(*programs, root=root)
    if wanted:
        (pytest.fail if os.environ.get('CI') == 'true' else pytest.skip)('needs ' + ', '.join(wanted))


@pytest.fixture
def network(tmp_path):
    """A router with an attacker outside and a host on its LAN: see network.py."""
    need('ip', 'unshare', 'nsenter', 'iptables', 'ip6tables', root=True)
    from network import Network
    made = Network(tmp_path)
    yield made
    made.close()


@pytest.fixture
def daemon(network):
    """A function that starts banwatch on the router: daemon(maxretry=3). It ends with the network."""
    from network import Daemon
    return lambda *words, **options: Daemon(network, *words, **options)
