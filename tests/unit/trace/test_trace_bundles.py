"""Bundles: functions as single operations of the graph, their code possibly a parameter."""

import asyncio
import functools
import importlib.machinery
import linecache
import sys
import traceback

import pytest

from agentd.errors import TraceError
from agentd.trace import GRAPH, ExecutionError, FunModule, Graph, MessageNode, TraceMissingInputsError, bundle, model, node, stop_tracing
from agentd.trace.utils import contain, for_all_methods

OUTSIDE = node(10.0, trainable=True, name="outside")


@bundle()
def scale(value, factor=2, *more, offset=0, **rest):
    """Scales a value."""
    return value * factor + offset + sum(more) + sum(rest.values())


@bundle("[renamed] It has a name of its own.")
def named(x):
    return x


@bundle()
def factorial(n):
    return 1 if n <= 1 else n * factorial(n - 1).data


@bundle(overwrite_python_recursion=True)
def plain_factorial(n):
    assert not isinstance(n, MessageNode)
    below = plain_factorial(n - 1) if n > 1 else 1
    assert isinstance(below, int)
    return n * below


@bundle(trainable=True)
def coded(x):
    """Doubles x."""
    return x * 2


@bundle(trainable=True)
def coded_recursion(n):
    return 1 if n <= 1 else n * coded_recursion(n - 1)


def test_a_bundle_gets_plain_values_and_gives_one_node():
    x = node(3)
    made = scale(x)
    assert made.data == 6
    assert made.inputs["value"] is x
    assert made.inputs["factor"].data == 2
    assert made.inputs["offset"].data == 0
    assert made.description == "[scale] Scales a value."
    assert scale.name == "scale"
    assert scale.__doc__ == "Scales a value."


def test_every_way_of_passing_arguments_ends_up_in_the_inputs():
    made = scale(1, 2, 3, node(4), offset=5, extra=node(6))
    assert made.data == 1 * 2 + 5 + 3 + 4 + 6
    assert {name: parent.data for name, parent in made.inputs.items()} == {
        "value": 1, "factor": 2, "args_0": 3, "args_1": 4, "offset": 5, "extra": 6,
    }  # fmt: skip
    assert scale(factor=3, value=node(2)).data == 6
    assert scale(1).inputs["value"].name.startswith("value:")


@pytest.mark.parametrize("call", [named, lambda: named(1, 2), lambda: named(1, x=1), lambda: named(y=1)])
def test_a_call_that_does_not_fit_raises_a_type_error_as_the_function_would(call):
    with pytest.raises(TypeError) as raised:
        call()
    assert not isinstance(raised.value, ExecutionError)


def test_the_description_names_the_operator():
    assert named.name == "renamed"
    assert named(1).name.startswith("renamed:")


def test_an_exception_becomes_a_node_with_the_failing_line_commented():
    @bundle()
    def fails(x):
        y = x + 1
        return y / 0

    x = node(1)
    with pytest.raises(ZeroDivisionError) as raised:
        fails(x)
    made = raised.value.exception_node
    assert made.inputs == {"x": x}
    assert made.name.startswith("exception_fails:")
    full = made.create_feedback("full")
    assert "return y / 0  # <-- (ZeroDivisionError) division by zero" in full
    assert "y = x + 1\n" in full
    assert "@bundle" not in full
    assert made.create_feedback() == "(ZeroDivisionError) division by zero"
    assert "Traceback" in made.info["traceback"]
    assert str(raised.value) == full
    made.backward("explain")
    assert x.feedback


def test_the_comment_shows_the_functions_that_the_error_came_through():
    def helper(value):
        return {}[value]

    @bundle()
    def calls(x):
        return helper(x)

    with pytest.raises(KeyError) as raised:
        calls("k")
    full = str(raised.value)
    assert "return helper(x)  # <-- raised in this call" in full
    assert "return {}[value]  # <-- (KeyError) 'k'" in full


def test_an_error_in_a_bundle_within_a_bundle_is_told_once_with_both_sources():
    @bundle()
    def inner(x):
        return 1 // x

    @bundle()
    def outer(x):
        return inner(x - 1)

    with pytest.raises(ZeroDivisionError) as raised:
        outer(1)
    assert raised.value.exception_node.data == "(ZeroDivisionError) integer division or modulo by zero"
    assert "return inner(x - 1)" in str(raised.value)
    assert "return 1 // x  # <-- (ZeroDivisionError)" in str(raised.value)


def test_errors_pass_through_where_they_are_not_to_be_caught():
    @bundle(catch_execution_error=False)
    def fails():
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is") as raised:
        fails()
    assert not isinstance(raised.value, ExecutionError)


def test_a_returned_exception_is_a_value_and_no_error():
    @bundle()
    def gives():
        return ValueError("just a value")

    assert isinstance(gives().data, ValueError)


def test_reading_a_node_that_was_not_given_is_refused():
    @bundle()
    def reads(x):
        return x + OUTSIDE.data

    with pytest.raises(TraceMissingInputsError, match=r"outside:\d+ = 10\.0"):
        reads(1)


def test_a_node_in_a_container_that_was_given_may_be_read():
    @bundle()
    def reads(items):
        return sum(item.data for item in items)

    x, y = node(1), node(2)
    made = reads([x, y])
    assert made.data == 3
    assert set(made.hidden) == {x, y}
    made.backward("f")
    assert x.feedback
    assert y.feedback


def test_allowed_external_dependencies_become_hidden_inputs():
    @bundle(allow_external_dependencies=True)
    def reads(x):
        return x + OUTSIDE.data

    made = reads(node(1))
    assert made.hidden == (OUTSIDE,)
    assert made.hidden_dependencies == {OUTSIDE}
    assert made.info["external_dependencies"] == [OUTSIDE]
    assert OUTSIDE not in made.parents
    assert made.expandable_dependencies == {made}
    assert made.parameter_dependencies == set()


def test_what_decides_or_computes_within_a_bundle_is_never_lost():
    chosen = node(1, trainable=True)
    factor = node(3, trainable=True)

    @bundle()
    def decides(x):
        scaled = factor * x
        return "big" if chosen and scaled > 2 else "small"

    made = decides(node(1))
    assert made.data == "big"
    assert made.hidden_dependencies == {chosen, factor}
    made.backward("f")
    assert chosen.feedback
    assert factor.feedback


def test_conversions_are_allowed_within_bundles_and_noted():
    index = node(1, trainable=True)

    @bundle()
    def picks(items):
        return items[index], float(index), [0, 1, 2][index], list(range(index))

    made = picks([5, 6])
    assert made.data[1:] == (1.0, 1, [0])
    assert made.hidden_dependencies == {index}


def test_a_returned_node_gives_its_value_and_stays_a_dependency():
    x = node(4, trainable=True)

    @bundle()
    def gives(_):
        return x

    made = gives(1)
    assert made.data == 4
    assert x in made.hidden


def test_traceable_code_gets_nodes_and_keeps_the_graph_within():
    hidden = node(5, trainable=True)

    @bundle(traceable_code=True)
    def computes(a):
        return (a + hidden) * 2

    x = node(1)
    made = computes(x)
    assert made.data == 12
    assert made.parents == [x]
    assert made.hidden_dependencies == {hidden}
    from agentd.trace.propagators import TraceGraph

    within = TraceGraph.expand(made)
    assert [other.data for other in within.nodes] == [1, 5, 6, 2, 12]
    assert hidden in within.nodes
    made.backward("f")
    assert hidden.feedback
    assert x.feedback


def test_unprocessed_inputs_reach_the_function_as_they_are():
    @bundle(_process_inputs=False)
    def looks(x):
        return isinstance(x, FunModule) or x.name.startswith("raw")

    assert looks(node(1, name="raw")).data is True


def test_recursion_goes_through_the_graph_unless_it_is_overwritten():
    assert factorial(node(5)).data == 120
    before = sys.gettrace()
    assert plain_factorial(node(5)).data == 120
    assert sys.gettrace() is before


def test_trainable_code_is_a_parameter_and_runs_what_it_holds():
    made = coded(node(2))
    assert made.data == 4
    assert made.inputs["__code"] is coded.parameter
    assert coded.parameter.data == 'def coded(x):\n    """Doubles x."""\n    return x * 2'
    assert "def coded(x):" in coded.parameter.constraint
    assert coded.parameters() == [coded.parameter]
    other = coded.detach()
    other.parameter._set("def coded(x):\n    return x * 3")
    assert other(2).data == 6
    assert coded(2).data == 4


def test_new_code_is_compiled_once_per_value():
    mine = coded.detach()
    mine.parameter._data = "def coded(x):\n    return x - 1"
    first = mine.fun
    assert mine(1).data == 0
    assert mine.fun is first
    mine.parameter._data = "def coded(x):\n    return x - 2"
    assert mine(1).data == -1
    assert mine.fun is not first
    mine.parameter._data = "def coded(x):\n    return x - 1"
    assert mine.fun is first


def test_a_failing_line_of_new_code_is_shown_in_feedback_and_in_tracebacks():
    mine = coded.detach()
    mine.parameter._data = "def coded(x):\n    y = x\n    return y.nothing"
    with pytest.raises(AttributeError) as raised:
        mine(1)
    assert "return y.nothing  # <-- (AttributeError)" in str(raised.value)
    assert "return y.nothing" in "".join(traceback.format_exception(raised.value))


def test_lines_of_code_that_is_gone_leave_the_line_cache():
    mine = coded.detach()
    mine.parameter._data = "def coded(x):\n    return 'temporary'"
    filename = mine.fun.__code__.co_filename
    assert linecache.getline(filename, 2).strip() == "return 'temporary'"
    mine._compiled.clear()
    mine.parameter._data = coded.parameter.data
    assert mine(1).data == 2
    assert filename not in linecache.cache


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def coded(x):\n    return (", "# <-- (SyntaxError)"),
        ("x = 1", "exactly one function"),
        ("def other(x):\n    return x", "must define coded, not other"),
        ("def coded(x=undefined_name):\n    return x", "NameError"),
        (5, "code is text"),
    ],
)
def test_code_that_is_no_function_is_an_execution_error_at_the_call(source, said):
    mine = coded.detach()
    mine.parameter._data = source
    with pytest.raises(ExecutionError) as raised:
        mine(1)
    assert said in str(raised.value)
    assert raised.value.exception_node.parents == [mine.parameter]


def test_recursion_of_trainable_code_is_plain():
    mine = coded_recursion.detach()
    assert mine(5).data == 120
    mine.parameter._data = "def coded_recursion(n):\n    return 0 if n <= 0 else 1 + coded_recursion(n - 1)"
    assert mine(7).data == 7


def test_no_tracer_of_the_interpreter_is_set_while_a_bundle_runs_or_after_it_raised():
    before, seen = sys.gettrace(), []

    @bundle(trainable=True, overwrite_python_recursion=True)
    def sink(depth):
        seen.append(sys.gettrace())
        return 1 / depth if depth == 0 else sink(depth - 1)

    with pytest.raises(ZeroDivisionError):
        sink(node(3))
    assert seen == [before] * 4
    assert sys.gettrace() is before


def test_trainable_code_sees_its_closure_its_neighbours_and_its_globals():
    step = 1
    neighbour = 100

    @bundle(trainable=True)
    def closes(x):
        return x + step

    assert closes(1).data == 2
    step = 5
    assert closes(1).data == 6
    closes.parameter._data = "def closes(x):\n    return x + step * 2 + neighbour + len(functools.__name__)"
    assert closes(1).data == 1 + 10 + neighbour + len(functools.__name__)
    step = 6
    assert closes(1).data == 1 + 12 + neighbour + 9


def test_super_works_in_new_code_of_a_method():
    class Base:
        def greet(self):
            return "base"

    @model
    class Derived(Base):
        @bundle(trainable=True)
        def greet(self):
            return "derived"

    thing = Derived()
    thing.greet.parameter._data = "def greet(self):\n    return super().greet() + '!'"
    assert thing.greet().data == "base!"


def test_defaults_that_are_nodes_are_inputs():
    weight = node(3, trainable=True)

    @bundle()
    def weighs(x, w=weight):
        return x * w

    made = weighs(2)
    assert made.data == 6
    assert made.inputs["w"] is weight


def test_each_instance_has_its_own_code():
    class Thing:
        @bundle(trainable=True)
        def act(self, x):
            return x

    first, second = Thing(), Thing()
    first.act.parameter._data = "def act(self, x):\n    return -x"
    assert (first.act(1).data, second.act(1).data) == (-1, 1)
    assert first.act.parameter is not second.act.parameter
    assert first.act.parameter is first.act.parameter
    assert first.act == first.act
    assert Thing.act(first, 1).data == -1


def test_a_slotted_class_without_dict_cannot_hold_trainable_code():
    class Slotted:
        __slots__ = ()

        @bundle(trainable=True)
        def act(self):
            return 1

        @bundle()
        def look(self):
            return 2

    assert Slotted().look().data == 2
    with pytest.raises(TraceError, match="__dict__"):
        Slotted().act()


def test_static_and_class_methods_stack_in_either_order():
    class Thing:
        base = 10

        @bundle()
        @staticmethod
        def inner_static(x):
            return x + 1

        @staticmethod
        @bundle()
        def outer_static(x):
            return x + 2

        @bundle()
        @classmethod
        def inner_class(cls, x):
            return cls.base + x

        @classmethod
        @bundle()
        def outer_class(cls, x):
            return cls.base + x + 1

    for thing in (Thing, Thing()):
        assert thing.inner_static(1).data == 2
        assert thing.outer_static(1).data == 3
        assert thing.inner_class(1).data == 11
        assert thing.outer_class(1).data == 12


def test_other_decorators_may_stand_above_and_below():
    def add_one(function):
        @functools.wraps(function)
        def inner(*args):
            return function(*args) + 1

        return inner

    @bundle()
    @add_one
    def below(x):
        return x

    @add_one
    @bundle()
    def above(x):
        return x

    assert below(1).data == 2
    assert above(1).data == 2


def test_code_below_other_decorators_is_trained_and_stays_decorated():
    step = 100

    def plus(amount):
        def decorate(function):
            @functools.wraps(function)
            def inner(*args):
                return function(*args) + amount

            return inner

        return decorate

    @bundle(trainable=True)
    @plus(amount=step)
    @plus(1)
    def count(x):
        """Doc."""
        return 0 if x == 0 else 1000 + count(x - 1)

    assert count.parameter.data.startswith("def count(x):"), "the function's own source, not the wrapper's"
    assert count(node(1)).data == 101 + 1101
    count.parameter._set(count.parameter.data.replace("1000", "2000"))
    assert count(node(1)).data == 101 + 2101, "recursion goes through the decorators, too"
    count.parameter._set(count.parameter.data.replace("2000", "1 / 0"))
    with pytest.raises(ZeroDivisionError) as raised:
        count(node(1))
    assert "1 / 0 + count(x - 1)  # <-- (ZeroDivisionError)" in raised.value.exception_node.create_feedback("full")
    with pytest.raises(TraceError, match="does not stand above it as decorators"):
        bundle(trainable=True)(functools.lru_cache(count._fun.__wrapped__.__wrapped__))


def test_a_decorated_method_of_a_local_class_is_trained():
    step = 10

    def log(function):
        @functools.wraps(function)
        def inner(self, *args):
            return function(self, *args) + step

        return inner

    class Local:
        @bundle(trainable=True)
        @log
        def act(self, x):
            """Acts."""
            return x

    first, second = Local(), Local()
    first.act.parameter._set("def act(self, x):\n    return x * step")
    assert (first.act(2).data, second.act(2).data) == (30, 12)


def test_functions_can_be_bundled_inline_also_lambdas_and_builtins():
    assert bundle()(lambda x: x + 1)(1).data == 2
    assert bundle("[length]")(len)(node([1, 2])).data == 2
    assert bundle(scale._fun)(2).data == 4
    with pytest.raises(TraceError, match="not available as a def"):
        bundle(trainable=True)(lambda x: x)
    with pytest.raises(TypeError):
        bundle("[x]")(5)


def test_source_is_found_without_a_file_and_strings_keep_their_indentation():
    source = '''
class Holder:
    @bundle(
        trainable=True,
        description="[held] not bundle",
    )
    # a comment between
    def held(self):
        """Doc
        string."""
        text = """
kept
    as is"""
        return text
'''

    class Loader:
        def get_source(self, _):
            return source

    for filename in ("agent:memory.py", "<memory>"):
        namespace = {"__name__": "in_memory", "__loader__": Loader(), "bundle": bundle}
        exec(compile(source, filename, "exec"), namespace)
        thing = namespace["Holder"]()
        text = thing.held.parameter.data
        assert text.startswith('def held(self):\n    """Doc\n    string."""\n    text = """\nkept\n    as is"""\n    return text')
        assert thing.held().data == "\nkept\n    as is"
        thing.held.parameter._data = text + " + '!'"
        assert thing.held().data == "\nkept\n    as is!"


def test_no_parents_are_kept_while_tracing_is_stopped():
    x = node(1)
    with stop_tracing():
        made = scale(x)
        assert made.data == 2
        assert made.parents == []
        with stop_tracing():
            pass
        assert (x + 1).parents == []
    assert scale(x).parents


async def test_async_bundles_give_nodes_and_exception_nodes():
    @bundle()
    async def waits(x):
        return x + 1

    @bundle()
    async def fails(x):
        return x / 0

    x = node(1)
    made = await waits(x)
    assert made.data == 2
    assert made.parents == [x]
    with pytest.raises(ZeroDivisionError) as raised:
        await fails(x)
    assert raised.value.exception_node.parents == [x]


def test_a_bundle_shows_its_details():
    assert scale.info["fun_name"] == "scale"
    assert scale.info["source"].startswith("def scale(value, factor=2")
    assert scale(1).info["output"] == 2
    assert scale.info["line_number"] > 1
    assert scale.info["file"].endswith("test_trace_bundles.py")


def test_all_methods_of_a_class_can_be_bundled_at_once():
    @for_all_methods(bundle())
    class Thing:
        def one(self):
            return 1

        def two(self, x):
            return x * 2

    assert Thing().one().data == 1
    assert Thing().two(node(2)).data == 4
    x = node(1)
    assert contain([node(1), x], x)
    assert not contain([node(1)], x)


def test_a_graph_keeps_one_node_per_call_whatever_happens_inside():
    @bundle()
    def busy(x):
        total = node(0)
        for _ in range(20):
            total = total + x
        return total

    with Graph() as graph:
        assert busy(node(2)).data == 40
    assert len(graph) == 2


async def test_a_cancelled_call_leaves_a_node_that_says_so_and_cancels():
    started = asyncio.Event()

    @bundle()
    async def waits(x):
        started.set()
        await asyncio.sleep(60)

    with Graph() as graph:
        task = asyncio.create_task(waits(1))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [other.data for other in graph] == ["(CancelledError) "]
    assert GRAPH.current is None


async def test_async_errors_pass_through_where_they_are_not_to_be_caught_and_failures_keep_their_place():
    @bundle(catch_execution_error=False)
    async def plain():
        raise ValueError("as it is")

    @bundle()
    async def fails(x):
        return x / 0

    with pytest.raises(ValueError, match="as it is") as raised:
        await plain()
    assert not isinstance(raised.value, ExecutionError)
    with Graph() as graph:
        results = await asyncio.gather(fails(1), fails(2), return_exceptions=True)
    assert [type(other).__name__ for other in graph] == ["ExceptionNode", "ExceptionNode"]
    assert [error.exception_node for error in results] == list(graph)


def test_an_interrupt_passes_through_and_leaves_no_frame_behind():
    @bundle()
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    x = node(1)
    assert x.data == 1
    assert (x + 1).parents[0] is x
    with pytest.raises(TypeError):
        int(x)  # outside any bundle again


def test_a_bound_method_knows_its_instance_and_can_be_detached():
    class Thing:
        @bundle(trainable=True)
        def act(self, x):
            return x

    thing = Thing()
    assert thing.act.__self__ is thing
    assert len({thing.act, thing.act}) == 1
    assert thing.act.name == "act"
    assert thing.act.trainable
    assert thing.act.fun(thing, 3) == 3
    detached = thing.act.detach()
    detached.parameter._set("def act(self, x):\n    return -x")
    assert (detached(2).data, thing.act(2).data) == (-2, 2)
    assert thing.act.__get__(None) == thing.act
    assert Thing.act.parameter is None
    with pytest.raises(TypeError, match="call it on an instance"):
        Thing.act()


def test_a_class_methods_code_belongs_to_the_class():
    class Thing:
        factor = 2

        @bundle(trainable=True)
        @classmethod
        def scale(cls, x):
            return x * cls.factor

    assert Thing.scale(3).data == 6
    Thing.scale.parameter._data = "def scale(cls, x):\n    return x * cls.factor + 1"
    assert Thing().scale(3).data == 7


def test_a_bundle_that_is_borrowed_as_a_method_keeps_its_own_code():
    class Thing:
        act = coded

    assert coded.parameter is not None
    assert coded(2).data == 4


def test_detached_and_deep_copied_bundles_stand_alone():
    import copy

    first = coded.detach()
    first.parameter._set("def coded(x):\n    return 0")
    second = copy.deepcopy(first)
    assert second(5).data == 0
    second.parameter._set("def coded(x):\n    return 1")
    assert (first(5).data, second(5).data, coded(5).data) == (0, 1, 10)
    assert coded.forward(3).data == 6


def test_a_traceable_bundle_takes_keywords_and_plain_values():
    @bundle(traceable_code=True)
    def adds(a, b=2):
        assert a.name.split(":")[0] == "int"
        return a + b

    assert adds(1, b=node(5)).data == 6
    assert adds(1).data == 3


def test_a_program_without_a_file_is_traced_and_its_details_are_told():
    namespace = {"__name__": "__main__", "__loader__": importlib.machinery.BuiltinImporter}
    exec(compile("from agentd.trace import bundle\n@bundle()\ndef triple(x):\n    return 3 * x\n", "<stdin>", "exec"), namespace)
    tripled = namespace["triple"](2)
    assert tripled.data == 6
    assert tripled.info["fun_name"] == "triple"
    assert tripled.info["line_number"] is None
