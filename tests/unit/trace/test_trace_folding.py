"""Folding: a long episode reads like a short one; and pictures of it stay readable."""

import random
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.errors import TraceError
from agentd.records import NodeKind, TraceGraph, TraceNode
from agentd.trace import Graph, bundle, node
from agentd.trace.export import Limits, export, revive
from agentd.trace.folding import find_ticks, fold
from agentd.trace.pictures import Picture, picture
from agentd.trace.propagation import check_order, minimal_subgraph
from agentd.trace.shortening import FOLDED, estimate_tokens, shorten

ALL = Limits(nodes=1_000_000)


def episode(ticks, *, values=lambda tick: tick % 7 / 7, branch=(), size=4):
    gain = node(1.0, trainable=True, name="gain")

    @bundle()
    def act(observation):
        """Decides."""
        return 1 if gain * observation[0] > 0.5 else 0

    @bundle()
    def recover(observation):
        """Does something else."""
        return -1 if gain else 0

    with Graph() as graph:
        observation = graph.message("environment_reset", {}, [0.0] * size)
        for tick in range(ticks):
            action = (recover if tick in branch else act)(observation)
            observation = graph.message("environment_step", {"observation": observation, "action": action}, [values(tick)] * size)
        end = graph.message("episode_end", {"observation": observation}, None)
    frozen = export(graph, end, ALL)
    return minimal_subgraph(frozen, frozen.output)


def shown_ticks(graph):
    hidden = set()
    for other in graph.nodes:
        if other.operator == FOLDED:
            hidden |= set(range(other.value["first"], other.value["last"] + 1))
    return hidden


def test_the_environments_steps_are_found_as_ticks():
    ticks = find_ticks(episode(20))
    assert (ticks.operator, len(ticks)) == ("environment_step", 20)


def test_a_loop_of_plain_operations_is_found_too():
    with Graph() as graph:
        x = node(1, trainable=True)
        for number in range(50):
            x = x * 2 % 97 + number
    frozen = export(graph, x, ALL)
    assert len(find_ticks(frozen)) == 50
    assert len(fold(frozen).nodes) < 30
    assert find_ticks(export([], node(1) + 1)) is None


def test_branches_that_do_not_build_on_each_other_are_no_ticks():
    with Graph() as graph:
        x = node(1)
        parts = [x + number for number in range(20)]

        @bundle()
        def together(*items):
            return sum(items)

        total = together(*parts)
    frozen = export(graph, total)
    assert find_ticks(frozen) is None
    assert fold(frozen) is frozen


def test_a_short_episode_is_left_alone():
    graph = episode(7)
    assert fold(graph) is graph


def test_first_and_last_ticks_are_kept_and_the_rest_has_statistics():
    graph = episode(100)
    folded = fold(graph)
    check_order(folded)
    assert {0, 99}.isdisjoint(shown_ticks(folded))
    gaps = [other for other in folded.nodes if other.operator == FOLDED]
    assert sum(gap.value["count"] for gap in gaps) == len(shown_ticks(folded)) >= 90
    figures = max(gaps, key=lambda gap: gap.value["count"]).value["values"]
    assert figures["act"] == {"low": 0.0, "high": 1.0, "mean": pytest.approx(0.43, abs=0.1)}
    assert len(figures["environment_step"]["low"]) == 4
    assert folded.nodes[folded.output].operator == "episode_end"


def test_parameters_stay_connected_to_the_output_through_the_gaps():
    folded = fold(episode(1000))
    cut = minimal_subgraph(folded, folded.output)
    assert len(cut.nodes) == len(folded.nodes)
    gap = next(other for other in folded.nodes if other.operator == FOLDED)
    assert "gain0" in [folded.nodes[parent].name for parent in gap.parents]


def test_the_worst_tick_by_reward_is_shown():
    rewards = [1.0] * 100
    rewards[60] = -5.0
    assert 60 not in shown_ticks(fold(episode(100), rewards))
    assert 60 in shown_ticks(fold(episode(100), [1.0] * 100))


def test_the_most_surprising_ticks_are_shown_by_value_and_by_structure():
    assert 42 not in shown_ticks(fold(episode(100, values=lambda tick: 50.0 if tick == 42 else tick % 7 / 7)))
    folded = fold(episode(100, branch=(33,)))
    assert 33 not in shown_ticks(folded)
    assert any(other.operator == "recover" for other in folded.nodes)


def test_a_tick_that_failed_is_shown():
    graph = episode(50)
    nodes = list(graph.nodes)
    index = [at for at, other in enumerate(nodes) if other.operator == "act"][25]
    old = nodes[index]
    nodes[index] = TraceNode(
        name=old.name, kind=NodeKind.EXCEPTION, operator="act", parents=old.parents, arguments=old.arguments, value="(ValueError) x"
    )
    folded = fold(TraceGraph(nodes=tuple(nodes), functions=graph.functions, output=graph.output))
    assert any(other.kind is NodeKind.EXCEPTION for other in folded.nodes)


def test_ten_thousand_ticks_take_hardly_more_room_than_a_hundred():
    short, long = fold(episode(100)), fold(episode(10_000))
    assert estimate_tokens(long) <= 1.3 * estimate_tokens(short)


@pytest.mark.parametrize("budget", [2000, 800, 400])
def test_a_budget_is_kept_by_showing_less(budget):
    graph = episode(300, size=16)
    folded = fold(graph, budget=budget)
    assert estimate_tokens(folded) <= budget
    check_order(folded)


def test_a_budget_is_kept_for_long_texts_without_repetition():
    with Graph() as graph:
        x = node("word " * 300) + "!"
    frozen = export(graph, x)
    assert estimate_tokens(frozen) > 300
    assert estimate_tokens(fold(frozen, budget=120)) <= 120


def test_a_graph_that_lies_is_refused():
    with pytest.raises(TraceError):
        fold(TraceGraph(nodes=(TraceNode(name="a", kind=NodeKind.MESSAGE, operator="x", parents=(0,)),)))


def test_folding_is_deterministic_and_keeps_names_unique():
    graph = episode(200, branch=(3, 90))
    assert fold(graph) == fold(graph)
    names = [other.name for other in fold(graph).nodes]
    assert len(names) == len(set(names))


def test_what_has_no_ticks_can_still_be_shortened():
    with Graph() as graph:
        parts = [node(number) + 1 for number in range(300)]

        @bundle()
        def together(*items):
            return sum(items)

        total = together(*parts)
    short = shorten(export(graph, total), 40)
    check_order(short)
    assert len(short.nodes) <= 45
    assert short.nodes[short.output].operator == "together"
    assert shorten(short, 100) is short
    with pytest.raises(TraceError):
        shorten(short, 3)


# --- pictures -------------------------------------------------------------------------------------------------------


def test_a_live_result_draws_what_it_was_computed_from():
    x = node(2, name="x", trainable=True)
    made = ((x + 1).clone() * 3).backward("too <low>", visualize=True)
    assert isinstance(made, Picture)
    dot = made.to_dot()
    assert dot.startswith("digraph")
    assert dot.count("->") == 4
    assert "clone" not in dot
    assert "too &lt;low&gt;" in made.to_html()
    assert made.source == dot == str(made)


def test_copies_are_drawn_when_asked_for_and_arrows_can_be_reversed():
    x = node(2)
    y = x.clone() + 1
    assert "clone" in picture(y, simple=False).to_dot()
    forward, backward = picture(y).to_dot(), picture(y, reverse=True).to_dot()
    assert {tuple(pair) for pair in re.findall(r"(n\d+) -> (n\d+)", forward)} == {
        tuple(reversed(pair)) for pair in re.findall(r"(n\d+) -> (n\d+)", backward)
    }
    assert "flowchart BT" in picture(y, reverse=True).to_mermaid()
    assert "<svg" in picture(y, reverse=True).to_html()


def test_a_graph_draws_itself_in_three_ways():
    with Graph() as graph:
        y = node(1) + 2
        y * 3
    assert graph.to_dot().count("label=") >= 5
    assert graph.to_mermaid().startswith("flowchart TD")
    assert graph.to_html().startswith("<!doctype html>")


def test_a_picture_of_a_long_episode_has_few_nodes():
    for ticks in (300, 3000):
        made = picture(episode(ticks))
        assert len(made.graph.nodes) <= 30
        assert "ticks" in made.to_mermaid()


def test_a_page_is_well_formed_self_contained_and_escapes_what_the_trace_says():
    with Graph() as graph:
        y = node("</svg><script>alert(1)</script>\"'&", name="evil<b>") + "x"
    page = picture(export(graph, y)).to_html()
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    svg = page[page.index("<svg") : page.index("</svg>") + 6]
    assert len(ET.fromstring(svg).findall("{http://www.w3.org/2000/svg}g")) == 3
    assert "<script" not in picture(y).to_mermaid()


def tangled(count, seed):
    """Nodes of one operation each on recent and on old ones: nothing repeats."""
    choose = random.Random(seed)
    with Graph():
        made = [node(1.0, trainable=True), node("text"), node([1, 2, 3])]
        for number in range(count):
            made.append(bundle(description=f"[op{number}]")(lambda a, b: 1)(choose.choice(made[-8:]), choose.choice(made)))
    return made[-1]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_no_edge_passes_behind_a_box(seed, reverse):
    page = picture(tangled(500, seed), reverse=reverse).to_html()
    boxes = [tuple(map(float, found)) for found in re.findall(r'<rect x="(\S+)" y="(\S+)" width="(\S+)" height="(\S+)"', page)]
    paths = re.findall(r'<path d="(M[^"]+)" fill="none"', page)
    assert 30 < len(boxes) <= 61
    assert len(paths) > 60
    for path in paths:
        for x, y in points_of(path):
            assert not any(left + 1 < x < left + width - 1 and top + 1 < y < top + height - 1 for left, top, width, height in boxes)


def test_inputs_that_nothing_was_computed_from_stand_in_short_rows_above_the_rest():
    with Graph() as graph:
        alone = [node(number) for number in range(20)]
        result = node(1.0) + 2.0
    page = graph.to_html()
    boxes = [(float(x), float(y)) for x, y in re.findall(r'<rect x="(\S+)" y="(\S+)"', page)]
    assert len(boxes) == len(alone) + 3
    assert len({x for x, _ in boxes}) < 12
    assert max(x for x, _ in boxes) < 1_300
    lowest = max(boxes, key=lambda box: box[1])
    assert boxes.index(lowest) == len(boxes) - 1, result


def test_numbers_are_shown_to_six_digits_and_whole_on_hover():
    page = picture(node(0.1) + 0.2).to_html()
    assert ">0.3</text>" in page
    assert "0.30000000000000004</title>" in page
    assert ">[0.333333, 1]</text>" in picture(bundle()(lambda x: [x / 3, 1])(1)).to_html()


def test_a_wide_picture_is_scrolled_and_not_shrunk():
    page = picture(tangled(500, 1)).to_html()
    assert "overflow-x:auto" in page
    assert "max-width" not in page


def points_of(path):
    """Points along a path of M, C and V commands."""
    x = y = 0.0
    for command, text in re.findall(r"([MCV])([^MCV]+)", path):
        numbers = [float(number) for number in text.split()]
        if command == "M":
            x, y = numbers
        elif command == "V":
            yield from ((x, y + (numbers[0] - y) * step / 10) for step in range(11))
            y = numbers[0]
        else:
            curve = [(x, y), *zip(numbers[::2], numbers[1::2], strict=True)]
            for step in range(21):
                t = step / 20
                weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
                yield tuple(sum(weight * point[axis] for weight, point in zip(weights, curve, strict=True)) for axis in (0, 1))
            x, y = curve[-1]


def test_backward_gives_a_picture_where_one_is_asked_for():
    x = node("a long text " * 10, trainable=True, name="x")
    y = x.clone() + "!"
    assert y.backward("too long", retain_graph=True) is None
    made = y.backward("too long", retain_graph=True, visualize=True, print_limit=12)
    assert "Feedback:</b> too long" in made.to_html()
    assert "a long text…" in made.to_dot()
    assert "a long text a" not in made.to_dot()
    assert "clone" not in made.to_mermaid()
    other = y.backward("too long", visualize=True, simple_visualization=False, reverse_plot=True)
    assert "clone" in other.to_mermaid()
    assert other.to_mermaid().startswith("flowchart BT")


def test_what_is_folded_is_told_in_words():
    page = picture(episode(400)).to_html()
    assert re.search(r"\d+ ticks: \d+ to \d+", page)
    assert "act: 0 to 1" in page
    assert "nodes that are not shown" in picture(tangled(300, 1)).to_html()


def test_texts_in_graphviz_are_escaped():
    dot = picture(node('a"b\\c\nd') + "x").to_dot()
    for line in dot.splitlines():
        assert len(re.findall(r'(?<!\\)(?:\\\\)*"', line)) % 2 == 0


def test_a_picture_is_saved_by_its_suffix(tmp_path):
    made = picture(node(1) + 1)
    assert made.save(tmp_path / "x.html").read_text().startswith("<!doctype")
    assert made.save(tmp_path / "x.mmd").read_text().startswith("flowchart")
    assert made.save(tmp_path / "x.dot").read_text().startswith("digraph")


def test_a_notebook_gets_the_part_of_the_page_whose_style_holds_for_nothing_else():
    made = picture(node(1) + 1)
    part = made._repr_html_()
    assert part in made.to_html()
    assert "<body" not in part
    selectors = re.findall(r"([^{}<>]+)\{", part[part.index("<style>") : part.index("</style>")])
    assert selectors
    assert all(selector.startswith(".agentd-graph ") for selector in selectors)


def test_an_empty_graph_has_a_picture():
    assert "<svg" in picture(TraceGraph()).to_html()


def test_importing_the_library_loads_neither_numpy_nor_pydantic():
    code = "import sys, agentd.trace; print([name for name in ('numpy', 'pydantic', 'graphviz', 'asyncio') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# --- a worker may say anything ---------------------------------------------------------------------------------------

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=20) | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6) | st.sampled_from(["$type", "values"]), inner, max_size=4)
    ),
    max_leaves=8,
)
HOSTILE = st.lists(
    st.builds(
        TraceNode,
        name=st.text(max_size=5),
        kind=st.sampled_from(NodeKind),
        operator=st.sampled_from(["", "step", "act", FOLDED, "(dropped)", "<b>"]),
        parents=st.lists(st.integers(-1, 12), max_size=3).map(tuple),
        arguments=st.lists(st.text(max_size=4), max_size=3).map(tuple),
        value=ANYTHING,
        description=st.text(max_size=10),
        path=st.none() | st.text(max_size=4),
    ),
    max_size=30,
)


def repaired(nodes):
    """The same nodes with parents that come before them."""
    return tuple(
        msgspec.structs.replace(
            other,
            parents=(made := tuple(abs(parent) % index for parent in other.parents) if index else ()),
            arguments=other.arguments[: len(made)],
        )
        for index, other in enumerate(nodes)
    )


@given(HOSTILE, st.booleans(), st.none() | st.integers(-2, 40))
def test_no_graph_makes_reading_it_fail_in_any_other_way_than_being_refused(nodes, lies, output):
    nodes = tuple(nodes) if lies else repaired(nodes)
    if not lies and output is not None:
        output = abs(output) % len(nodes) if nodes else None
    graph = TraceGraph(nodes=nodes, output=output)
    for read in (
        lambda: fold(graph, [1.0, 0.0], minimum=3, budget=50),
        lambda: minimal_subgraph(graph, output or 0),
        lambda: revive(graph),
    ):
        try:
            read()
        except TraceError:
            assert lies or not nodes
    if not lies:
        drawn = picture(graph, max_nodes=5)
        ET.fromstring(
            re.sub(r"[^\x20-\x7e]", "", drawn.to_html().partition("<body>")[2].removesuffix("</body></html>").join(["<b>", "</b>"]))
        )
        assert drawn.to_mermaid()
        assert drawn.to_dot()


def test_a_value_nested_beyond_measure_is_shown_as_what_it_is():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    graph = TraceGraph(nodes=(TraceNode(name="x", kind=NodeKind.INPUT, value=deep),), output=0)
    assert "list" in picture(graph).to_html()
    assert estimate_tokens(fold(graph, budget=100)) <= 100
    while deep:
        deep = deep[0]  # taken apart step by step
