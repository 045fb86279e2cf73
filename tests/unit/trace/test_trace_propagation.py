"""Feedback travels back once over each edge: to exactly the ancestors, and as the minimal subgraph to the parameters."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.errors import TraceError
from agentd.records import NodeKind, TraceGraph, TraceNode
from agentd.trace import BackwardError, ExceptionNode, ExecutionError, Graph, ParameterNode, bundle, node
from agentd.trace.export import Limits, export, revive
from agentd.trace.propagation import ancestors, backward, descendants, levels, minimal_subgraph, on_paths, subgraph, topological
from agentd.trace.propagators import GraphPropagator, Propagator, SumPropagator
from agentd.trace.propagators import TraceGraph as Problem
from agentd.trace.utils import sum_feedback


def test_feedback_reaches_every_root_that_had_a_part_and_no_other():
    w, unused = node(1, trainable=True), node(2, trainable=True)
    x = node(3)
    beside = x * 5
    y = w * x + 1
    y.backward("too small")
    assert [problem.user_feedback for problem in w.feedback[y]] == ["too small"]
    assert x.feedback[y]
    assert not unused.feedback
    assert not beside._backwarded
    w.zero_feedback()
    assert not w.feedback


def test_a_second_backward_needs_a_retained_graph():
    w = node(1, trainable=True)
    y = w * 2
    y.backward("a", retain_graph=True)
    y.backward("b")
    assert len(w.feedback[y]) == 2
    with pytest.raises(BackwardError, match="has been backwarded"):
        y.backward("c")
    with pytest.raises(AttributeError):
        (y + 1).backward("d")


def test_a_backward_that_fails_leaves_the_graph_as_it_was():
    x = node(1, trainable=True)
    first, second = x + 1, x * 2
    first.backward("closes it")
    x.zero_feedback()
    with pytest.raises(BackwardError, match="add"):
        (second - first).backward("meets it")
    assert not x.feedback
    second.backward("is still open", retain_graph=True)

    def refuse(child):
        raise ValueError(child.name)

    propagator = SumPropagator()
    propagator.register("multiply", refuse)
    with pytest.raises(ValueError, match="multiply"):
        second.backward("fails", propagator=propagator)
    second.backward("is open after the failure too")
    with pytest.raises(BackwardError):
        second.backward("is closed now")


def test_the_problem_is_the_paths_from_parameters_with_side_inputs_cut():
    w = node(2, trainable=True, name="w")
    upstream = node(1) + 1
    side = upstream * 3
    y = w * side
    z = y + 1
    unrelated = side + 5
    found = subgraph([z])
    assert [other is z for other in found][-1]
    assert all(any(other is wanted for other in found) for wanted in (w, side, y, z))
    assert not any(other is upstream or other is unrelated for other in found)


def test_the_problem_of_an_export_is_the_same_as_that_of_the_live_graph():
    with Graph() as graph:
        w = node(2, trainable=True, name="w")
        side = (node(1) + node(1)) * node(3)
        z = w * side + node(4)
    live = {other.data for other in subgraph([z])}
    frozen = export(graph, z)
    cut = minimal_subgraph(frozen, frozen.output)
    assert {other.value for other in cut.nodes} == live
    sides = [other for other in cut.nodes if other.value == 6]
    assert [(other.kind, other.parents) for other in sides] == [(NodeKind.INPUT, ())]
    assert cut.nodes[cut.output].value == z.data
    assert "multiply" in cut.functions


def test_a_minimal_subgraph_without_parameters_is_the_output_with_its_inputs():
    with Graph() as graph:
        z = (node(1) + node(2)) * node(3)
    cut = minimal_subgraph(export(graph, z), export(graph, z).output)
    assert [other.value for other in cut.nodes] == [3, 3, 9]
    assert cut.nodes[-1].kind is NodeKind.MESSAGE


@pytest.mark.parametrize(
    "nodes",
    [
        (TraceNode(name="a", kind=NodeKind.MESSAGE, parents=(1,), arguments=("x",)), TraceNode(name="b", kind=NodeKind.INPUT)),
        (TraceNode(name="a", kind=NodeKind.MESSAGE, parents=(0,), arguments=("x",)),),
        (TraceNode(name="a", kind=NodeKind.MESSAGE, parents=(-1,), arguments=("x",)),),
        (TraceNode(name="a", kind=NodeKind.MESSAGE, arguments=("x",)),),
    ],
)
def test_a_graph_that_lies_about_its_order_is_refused(nodes):
    with pytest.raises(TraceError):
        minimal_subgraph(TraceGraph(nodes=nodes), 0)
    with pytest.raises(TraceError, match="no node"):
        minimal_subgraph(TraceGraph(), 0)


def test_hidden_dependencies_are_on_the_paths():
    w = node(2, trainable=True, name="w")

    @bundle()
    def act(x):
        return w * x

    with Graph() as graph:
        made = act(node(3))
    made.backward("f")
    assert w.feedback
    frozen = export(graph, made)
    assert [other.name for other in minimal_subgraph(frozen, frozen.output).nodes if other.kind is NodeKind.PARAMETER] == ["w0"]


def test_numbers_sum_over_paths_and_texts_come_once():
    w = node(1, trainable=True)
    y = w + w
    z = y + y
    z.backward(1.0, propagator=SumPropagator(), retain_graph=True)
    assert sum_feedback([w]) == 1.0
    w.zero_feedback()
    left, right = w * 2, w * 3
    (left + right).backward(1.0, propagator=SumPropagator(), retain_graph=True)
    assert sum_feedback([w]) == 2.0
    w.zero_feedback()
    a, b = left + right, right * 5
    backward([(a, "low. "), (b, "late. ")], SumPropagator())
    assert SumPropagator.aggregate(w.feedback) == "low. late. "
    with pytest.raises(TraceError, match="can't be added"):
        SumPropagator.aggregate({1: ["text", 1.0]})


def test_texts_on_a_deep_diamond_stay_small():
    w = node(1, trainable=True)
    y = w
    for _ in range(200):
        y = (y + 0).eq(y * 0)
    y.backward("once", propagator=SumPropagator())
    assert SumPropagator.aggregate(w.feedback) == "once"


def test_an_operator_can_have_a_rule_of_its_own():
    propagator = SumPropagator()
    propagator.register("subtract", lambda child: {child.parents[0]: 1, child.parents[1]: -1})
    a, b = node(1, trainable=True), node(2, trainable=True)
    (a - b).backward(5, propagator=propagator)
    assert (sum_feedback([a]), sum_feedback([b])) == (1, -1)
    graph_rule = GraphPropagator()
    graph_rule.register("multiply", lambda child: dict.fromkeys(child.parents, Problem()))
    c = node(1, trainable=True)
    ((c * 2) + 1).backward("f", propagator=graph_rule)
    assert sum_feedback([c]).empty()


def test_a_rule_that_forgets_a_parent_is_told_so():
    propagator = SumPropagator()
    propagator.register("add", lambda _: {})
    with pytest.raises(TraceError, match="gives no feedback for"):
        (node(1, trainable=True) + node(2)).backward(1, propagator=propagator)
    with pytest.raises(TypeError, match="does not say"):
        (node(1) + node(2)).backward(1, propagator=Propagator())


def test_several_outputs_with_different_feedback_are_cases_of_one_problem():
    w = node(1, trainable=True)
    first, second = w * 2, w * 3
    backward([(first, "low"), (second, "high")])
    total = sum_feedback([w])
    assert total.user_feedback == ["low", "high"]
    assert [other.data for other in total.nodes] == [1, 2, 2, 3, 3]
    assert {id(other) for other in total.nodes} >= {id(w), id(first), id(second)}
    third = w * 4
    third.backward("again")
    assert sum_feedback([w]).user_feedback == ["low", "high", "again"]


def test_the_live_problem_lists_nodes_with_levels():
    w, z = node(1, trainable=True), node(5)
    y = (w + z * 3) * 2
    y.backward("f")
    problem = sum_feedback([w])
    assert [(level, other.data) for level, other in problem] == [(0, 1), (0, 15), (0, 2), (1, 16), (2, 32)]  # 2 was no node before
    assert len(problem) == 5
    assert [other for other in problem.nodes if other is y.inputs["y"]]
    assert problem.user_feedback == "f"
    assert Problem().empty()


def test_each_parameter_sees_the_paths_from_itself_and_a_sum_of_them_all():
    w, v = node(1, trainable=True, name="w"), node(2, trainable=True, name="v")
    y = (w + 10) * (v * 20)
    y.backward("f")
    own, other, both = sum_feedback([w]), sum_feedback([v]), sum_feedback([w, v])
    assert [found.data for found in own.nodes] == [1, 10, 11, 40, 440]  # v * 20 is a value to w
    assert [found.data for found in other.nodes] == [11, 2, 20, 40, 440]
    assert [found.data for found in both.nodes] == [1, 10, 11, 2, 20, 40, 440]
    assert own.user_feedback == both.user_feedback == "f"
    general = GraphPropagator()
    general.register("never", lambda child: {})
    w.zero_feedback()
    ((w + 10) * (v * 20)).backward("f", propagator=general)
    assert [found.data for found in sum_feedback([w]).nodes] == [1, 10, 11, 40, 440]


def test_a_rule_may_make_problems_of_nodes_with_levels():
    w = node(1, trainable=True, name="w")
    propagator = GraphPropagator()
    propagator.register(
        "multiply", lambda child: dict.fromkeys(child.parents, Problem(graph=[(child.level, child)], user_feedback="of the rule"))
    )
    y = w * 2
    y.backward("of the user", propagator=propagator)
    problem = sum_feedback([w])
    assert problem.user_feedback == "of the rule"
    assert [other.data for _, other in problem.graph] == [1, 2, 2]
    assert Problem(graph=[], user_feedback=None).empty()
    shown = Problem(graph=[(0, w)], user_feedback=None)
    assert [other for _, other in shown + problem if other is w]
    assert len(shown) == 1
    assert not shown.empty()


def test_deep_wide_and_diamond_graphs_need_no_recursion():
    w = node(0, trainable=True)
    chain = diamond = w
    for _ in range(10_000):
        chain = chain + 1
        diamond = diamond + diamond.eq(0)
    wide = w
    parts = [w + number for number in range(3_000)]

    @bundle()
    def gather(*items):
        return len(items)

    wide = gather(*parts)
    backward([(chain, "c"), (wide, "w")])
    assert sum_feedback([w]).user_feedback == ["c", "w"]
    assert levels(chain)[-1] == 10_000
    diamond.backward("d")
    frozen = export([], diamond, Limits(nodes=1_000_000))
    assert len(minimal_subgraph(frozen, frozen.output).nodes) == len(frozen.nodes)


GRAPHS = st.integers(1, 25).flatmap(
    lambda size: st.tuples(*(st.lists(st.integers(0, index - 1), max_size=3).map(tuple) if index else st.just(()) for index in range(size)))
)


def reaches(parents, start, goal):
    return start == goal or any(reaches(parents, parent, goal) for parent in parents[start])


@given(GRAPHS, st.data())
def test_ancestors_and_paths_are_what_their_names_say(parents, data):
    size = len(parents)
    output = data.draw(st.integers(0, size - 1))
    parameters = data.draw(st.sets(st.integers(0, size - 1)))
    assert [bool(item) for item in ancestors(parents, [output])] == [reaches(parents, output, index) for index in range(size)]
    assert [bool(item) for item in descendants(parents, parameters)] == [
        any(reaches(parents, index, parameter) for parameter in parameters) for index in range(size)
    ]
    assert on_paths(parents, parameters, [output]) == [
        index
        for index in range(size)
        if index == output or (reaches(parents, output, index) and any(reaches(parents, index, parameter) for parameter in parameters))
    ]


@given(GRAPHS, st.data())
def test_live_feedback_reaches_exactly_the_ancestors_and_exports_agree(parents, data):
    with Graph() as graph:
        made = []
        for index, above in enumerate(parents):
            if above:
                made.append(graph.message(f"op{index}", {f"a{place}": made[parent] for place, parent in enumerate(above)}, index))
            else:
                made.append(node(index, trainable=data.draw(st.booleans())))
    output = data.draw(st.integers(0, len(parents) - 1))
    made[output].backward("f")
    for index, above in enumerate(parents):
        wanted = reaches(parents, output, index)
        assert (bool(made[index].feedback) if not above else made[index]._backwarded is not None) == wanted
    order, positions = topological([made[output]])
    assert all(parent < index for index, above in enumerate(positions) for parent in above)
    frozen = export(graph, made[output])
    cut = minimal_subgraph(frozen, frozen.output)
    assert {other.value for other in cut.nodes} == {other.data for other in subgraph([made[output]])}
    assert {other.data for other in order} == {other.value for other in frozen.nodes}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(cut), type=TraceGraph) == cut


@given(GRAPHS, st.data())
def test_a_revived_export_propagates_as_the_live_graph_by_any_rule(parents, data):
    with Graph() as graph:
        made = []
        for index, above in enumerate(parents):
            inputs = {f"a{place}": made[parent] for place, parent in enumerate(above)}
            made.append(graph.message(f"op{index % 3}", inputs, index) if above else node(index, trainable=True))
    output = data.draw(st.integers(0, len(parents) - 1))
    frozen = export(graph, made[output])
    again = revive(frozen)

    def rule():
        propagator = SumPropagator()
        propagator.register("op1", lambda child: {parent: sum_feedback([child]) * 2 for parent in child.parents})
        return propagator

    made[output].backward(1, propagator=rule())
    again[frozen.output].backward(1, propagator=rule())
    live = {other.data: sum_feedback([other]) for other in made if isinstance(other, ParameterNode) and other.feedback}
    assert live == {other.data: sum_feedback([other]) for other in again if isinstance(other, ParameterNode) and other.feedback}
    assert export(again, again[frozen.output]).output == frozen.output


def test_a_revived_exception_explains_itself():
    with Graph() as graph, pytest.raises(ExecutionError) as raised:
        1 / node(0)
    frozen = export(graph, raised.value.exception_node)
    again = revive(frozen)[frozen.output]
    assert isinstance(again, ExceptionNode)
    assert "ZeroDivisionError" in again.create_feedback()
