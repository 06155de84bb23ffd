"""Each fault of planted.py can be planted. Whether the tests find them takes minutes: `sh tests/run --planted` tells."""
import ast
import bisect

import planted

TEXT = planted.source()
LINES = TEXT.split('\n')
# where the statements of the top level begin; before Python 3.8, a decorated one is where its decorators are
STARTS = [1] + [min([node.lineno] + [each.lineno for each in getattr(node, 'decorator_list', ())]) for node in ast.parse(TEXT).body[1:]]


def statement_with(fault):
    """The statement of the top level that a fault's text begins in."""
    n = bisect.bisect_right(STARTS, TEXT.count('\n', 0, TEXT.index(fault.text)) + 1)
    return '\n'.join(LINES[STARTS[n - 1] - 1:(STARTS + [len(LINES) + 1])[n] - 1])


def test_each_text_stands_in_the_program_once():
    assert {fault.name: TEXT.count(fault.text) for fault in planted.FAULTS if TEXT.count(fault.text) != 1} == {}


def test_what_is_left_is_python():
    for fault in planted.FAULTS:
        if TEXT.count(fault.text) == 1:
            ast.parse(planted.planted(statement_with(fault), fault), fault.name)


def test_no_fault_is_there_twice():
    assert len({fault.name for fault in planted.FAULTS}) == len({fault[2:4] for fault in planted.FAULTS}) == len(planted.FAULTS)
