"""Numeric constants inside code are found by what they do, and changed without touching anything else."""

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.opto.constants import Place, align_constants, find_constants, replace_constants


def tunable(body, head="def f(self, x):"):
    return [constant.value for constant in find_constants(f"{head}\n    {body}\n")]


@pytest.mark.parametrize(
    ("body", "values"),
    [
        ("return 2.5 * x - 0.1", [2.5, 0.1]),
        ("return -2.5 * x", [-2.5]),
        ("return 20 * x", [20]),
        ("gains = [1.0, -2, 3]", [1.0, -2, 3]),
        ("kp, kd = 10.0, 0.0", [10.0, 0.0]),
        ("if abs(x) > 0.2: return 1.5", [0.2, 1.5]),
        ("return f(gain=3.5)", [3.5]),
        ("return x * 180 / 3.0", [180, 3.0]),
    ],
)
def test_gains_offsets_and_thresholds_are_tunable(body, values):
    assert tunable(body) == values


@pytest.mark.parametrize(
    "body",
    [
        "return 1 if x > 0 else 0",
        "return 1",
        "return x[0] + x[1:3] + x[-1]",
        "for i in range(3, 10): pass",
        "return x ** 2",
        "return x % 2 + x // 2",
        "return round(x, 2)",
        "return np.zeros(4) + np.sum(x, axis=0)",
        "return np.clip(x, -1.0, 1.0)",
        "flag = 0",
        "total = 0.0; total += x",
        "count = count + 1",
        "return x / (y + 1e-9)",
        "return 2 * math.pi * x",
        "return x == 3",
        "return f'{x:.3f} {2.5}'",
        "raise ValueError(3.5)",
        "actions = [0, 1, 2, 3]",
        "return True",
        "return x & 7",
        "y: Literal[5] = x",
    ],
)
def test_indices_labels_counts_and_guards_are_left_alone(body):
    assert tunable(body) == []


def test_the_signature_is_left_alone_but_an_inner_functions_defaults_are_not():
    source = "def f(self, x, gain=2.5):\n    def g(y, scale=3.5):\n        return y\n    return g(x)\n"
    assert [constant.value for constant in find_constants(source)] == [3.5]


def test_a_constant_knows_its_place_and_its_name():
    source = "def f(self, x):\n    kp = 3.0\n    return kp * x[0] + 2.0 * x[1] + 0.5 if x[0] > 0.1 else 7.5\n"
    found = {constant.value: constant for constant in find_constants(source)}
    assert (found[3.0].place, found[3.0].label) == (Place.VALUE, "kp")
    assert (found[2.0].place, found[2.0].label) == (Place.FACTOR, "x[1]")
    assert found[0.5].place is Place.TERM
    assert found[0.1].place is Place.THRESHOLD


def test_formatting_and_comments_stay_and_unchanged_numbers_keep_their_spelling():
    source = "def f(self, x):\n    # größe 3.0 → 'ß'\n    return (1e3*x   +  0x10 * x - 2.50)  # 2.50\n"
    constants = find_constants(source)
    assert [constant.value for constant in constants] == [1000.0, 16, 2.5]
    changed = replace_constants(source, constants, [1000.0, 16, -4.0])
    assert changed == source.replace("- 2.50)", "- -4.0)")


@pytest.mark.parametrize(
    ("source", "value", "expected"),
    [
        ("return-2.0*x", 3.0, "return 3.0*x"),
        ("y = 1.5 if x else-1.0", 3.0, "y = 3.0 if x else 3.0"),
        ("return 2.0**x", -3.0, "return (-3.0)**x"),
        ("return x--2.0", 3.0, "return x-3.0"),
        ("return x-2.0", -3.0, "return x--3.0"),
    ],
)
def test_a_change_of_sign_stays_python_with_the_same_meaning(source, value, expected):
    constants = find_constants(source)
    changed = replace_constants(source, constants, [value] * len(constants))
    assert changed == expected
    ast.parse(f"def f(x):\n    {changed}\n")


NUMBERS = st.one_of(st.floats(-1e6, 1e6).filter(lambda value: value == 0 or abs(value) > 1e-3), st.integers(-1000, 1000))


@given(st.lists(NUMBERS, min_size=6, max_size=6))
def test_whatever_is_written_is_read_back(values):
    source = "def f(self, x):\n    a = 5.0\n    return a * x - 2.0 ** x + (3.0 if x > 0.5 else-1.5) + [4, 1.0][0]\n"
    constants = find_constants(source)
    assert len(constants) == 7
    values = [*values, 0.25]
    changed = replace_constants(source, constants, values)
    assert align_constants(source, constants, changed) == tuple(values)


def test_code_of_another_structure_does_not_align():
    source = "def f(self, x):\n    return 2.0 * x\n"
    constants = find_constants(source)
    assert align_constants(source, constants, "def f(self, x):  # other layout\n\n    return (5.0 * x)\n") == (5.0,)
    for other in ("def f(self, x):\n    return x * 2.0\n", "def f(self, x):\n    return gain * x\n", "def f(self, x:\n"):
        assert align_constants(source, constants, other) is None


@pytest.mark.parametrize("source", ["def f(:", "x = '\x00'", "(" * 500 + ")" * 500])
def test_what_is_no_python_is_a_syntax_error(source):
    with pytest.raises(SyntaxError):
        find_constants(source)
