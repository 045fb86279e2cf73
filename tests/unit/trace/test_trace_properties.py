"""For random programs the traced result is the plain one: the same value of the same type, or the same error."""

import copy
import math
import operator

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agentd.trace import ExecutionError, Graph, Node, bundle, node, operators
from agentd.trace.export import export, from_bytes, to_bytes
from agentd.trace.primitives import ARGUMENTS, PRIMITIVES
from agentd.trace.propagation import topological

NUMBERS = st.integers(-50, 50) | st.floats(-50, 50) | st.booleans()
TEXTS = st.text("ab {}-", max_size=6)
PLAIN = st.one_of(
    NUMBERS,
    TEXTS,
    st.lists(NUMBERS, max_size=4),
    st.dictionaries(st.text("ab", max_size=1), NUMBERS, max_size=3),
    st.sets(st.integers(0, 4), max_size=3),
    st.tuples(NUMBERS, NUMBERS),
)
BINARY = [
    operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod, operator.and_, operator.or_, operator.xor,
    operator.lt, operator.le, operator.gt, operator.ge, operator.getitem, divmod, operator.eq, operator.ne, operator.matmul,
]  # fmt: skip
UNARY = [operator.pos, operator.neg, abs, operator.invert, math.floor, math.ceil, math.trunc, round, bool, len, list]


def outcome(function, *args):
    """What a call gives, comparable: value with types, or the class of the error."""
    try:
        value = function(*args)
    except Exception as error:  # noqa: BLE001 - whatever it is, both must raise it
        return ("error", type(error.__cause__) if isinstance(error, ExecutionError) else type(error))
    return ("value", repr(plain(value)))


def plain(value):
    if isinstance(value, Node):
        return plain(value.data)
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    return value


@given(st.sampled_from(BINARY), PLAIN, PLAIN, st.booleans())
def test_binary_operators(function, x, y, both):
    expected = outcome(function, copy.deepcopy(x), copy.deepcopy(y))
    assert outcome(function, node(x), node(y) if both else y) == expected
    if function is not operator.getitem and not (isinstance(x, str) and function is operator.mod):
        assert outcome(function, x, node(y)) == expected


@given(st.sampled_from(UNARY), PLAIN)
def test_unary_operators(function, x):
    assume(not (function is list and isinstance(x, set)))  # their order is not promised
    assert outcome(function, node(x)) == outcome(function, x)


@given(NUMBERS, st.integers(-3, 3))
def test_powers_shifts_and_rounding(x, n):
    for function in (operator.pow, operator.lshift, operator.rshift, round):
        assert outcome(function, node(x), node(n)) == outcome(function, x, n)
        assert outcome(function, node(x), n) == outcome(function, x, n)


@given(TEXTS, TEXTS, TEXTS, st.integers(-1, 3))
def test_methods_of_texts(text, old, new, count):
    for call in (
        lambda s, o, n: s.upper(),
        lambda s, o, n: s.lower(),
        lambda s, o, n: s.title(),
        lambda s, o, n: s.swapcase(),
        lambda s, o, n: s.capitalize(),
        lambda s, o, n: s.strip(o),
        lambda s, o, n: s.split(o),
        lambda s, o, n: s.replace(o, n, count),
        lambda s, o, n: s.join([o, n]),
        lambda s, o, n: s.format(o, n),
        lambda s, o, n: s + o,
    ):
        assert outcome(call, node(text), node(old), node(new)) == outcome(call, text, old, new)


@given(st.sampled_from(sorted(set(PRIMITIVES) - {"cond"})), st.lists(PLAIN, min_size=1, max_size=3))
def test_every_primitive_on_nodes_does_what_it_does_on_plain_values(name, values):
    wanted = len(ARGUMENTS[name]) or len(values)
    assume(len(values) >= wanted)
    values = values[:wanted]
    assume(name not in ("list_sort", "to_list", "set_pop", "is_", "is_not", "make_dict"))
    assume(not any(isinstance(item, set) for item in values))
    expected = outcome(PRIMITIVES[name].function, *copy.deepcopy(values))
    assert outcome(getattr(operators, name), *(node(copy.deepcopy(item)) for item in values)) == expected


@given(NUMBERS, PLAIN, PLAIN)
def test_choosing(condition, x, y):
    assert plain(operators.cond(node(condition), node(x), node(y))) == (x if condition else y)


STEPS = st.lists(
    st.tuples(st.sampled_from(["+", "-", "*", "//", "%", "<", "==", "and"]), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12
)


def run(steps, values, wrap):
    """A random straight program: each step combines two earlier results."""
    results = [wrap(value) for value in values]
    for symbol, left, right in steps:
        x, y = results[left % len(results)], results[right % len(results)]
        if symbol == "and":
            results.append(y if x else x)
        elif symbol == "==":
            results.append(wrap(bool(x == y)))
        else:
            function = {
                "+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv, "%": operator.mod, "<": operator.lt,
            }[symbol]  # fmt: skip
            results.append(function(x, y))
        if isinstance(plain(results[-1]), int) and abs(plain(results[-1])) > 2**60:
            raise OverflowError
    return results[-1]


STARTS = st.integers(-9, 9) | st.floats(-9, 9) | st.text("ab", max_size=2) | st.lists(st.integers(0, 3), max_size=2)


@given(STEPS, st.lists(STARTS, min_size=1, max_size=4))
def test_random_programs(steps, values):
    expected = outcome(run, steps, values, lambda value: value)
    assert outcome(run, steps, values, node) == expected

    @bundle()
    def whole(*inputs):
        return run(steps, inputs, lambda value: value)

    assert outcome(whole, *(node(value) for value in values)) == expected


@given(STEPS, st.lists(st.integers(-9, 9), min_size=1, max_size=4))
def test_exports_of_random_programs_are_the_same_after_a_round_trip_and_hold_every_ancestor(steps, values):
    with Graph() as graph:
        try:
            result = run(steps, values, lambda value: node(value, trainable=True))
        except ArithmeticError:
            assume(condition=False)
    frozen = export(graph, result)
    assert from_bytes(to_bytes(frozen)) == frozen
    assert len(frozen.nodes) == len(topological([result])[0])
    result.backward("f")
    assert all(bool(other.feedback) for other in topological([result])[0] if not other._inputs)


@given(PLAIN)
def test_iterating_gives_the_items(value):
    if isinstance(value, int | float):
        with pytest.raises(TypeError):
            list(node(value))
    elif not isinstance(value, set):
        assert [plain(item) for item in node(value)] == list(value)


@given(st.lists(st.integers(), max_size=6), st.none() | st.integers(-7, 7), st.none() | st.integers(-7, 7), st.none() | st.integers(1, 3))
def test_slices(items, start, stop, step):
    wrap = lambda value: value if value is None else node(value)  # noqa: E731 - short
    assert node(items)[wrap(start) : wrap(stop) : wrap(step)].data == items[start:stop:step]
