"""A trace as text: folded, readable, and safe against graphs that lie."""

import io

from rich.console import Console

from agentd.cli.traces import trees


def node(name, operator="", parents=(), kind="message", value=0):
    return {
        "name": name,
        "kind": kind,
        "operator": operator,
        "parents": list(parents),
        "arguments": [],
        "value": value,
        "description": "",
        "path": None,
    }


def graph(nodes):
    return {"nodes": nodes, "functions": {}, "output": len(nodes) - 1 if nodes else None, "dropped_nodes": 0, "version": 1}


def text(parts) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    for part in parts:
        console.print(part)
    return console.export_text()


def episode(ticks: int):
    nodes = [node("gain", kind="parameter"), node("o0", "environment_reset")]
    for tick in range(ticks):
        last = len(nodes) - 1
        nodes.append(node(f"a{tick}", "act", (0, last)))
        nodes.append(node(f"o{tick + 1}", "environment_step", (last, last + 1)))
    return graph([*nodes, node("end", "episode_end", (len(nodes) - 1,))])


def test_a_long_trace_is_folded_to_its_first_and_last_ticks() -> None:
    shown = text(trees(episode(200)))
    assert "195 more ticks" in shown
    assert "a0" in shown
    assert "a199" in shown
    assert "a100" not in shown


def test_everything_is_shown_when_asked_for() -> None:
    shown = text(trees(episode(200), everything=True))
    assert "a100" in shown
    assert "more ticks" not in shown


def test_what_an_earlier_tick_made_is_named_and_not_repeated() -> None:
    shown = text(trees(episode(3), everything=True))
    assert "o1 (earlier)" in shown
    assert shown.count("o1: environment_step") == 1


def test_a_chain_of_a_hundred_thousand_nodes_is_no_problem() -> None:
    chain = [node("n0")] + [node(f"n{number}", "add", (number - 1,)) for number in range(1, 3000)]
    parts = trees(graph(chain))
    assert len(parts) == 1


def test_an_empty_graph_shows_nothing() -> None:
    assert text(trees(graph([]))).strip() == ""


def test_values_are_cut_and_control_characters_shown() -> None:
    shown = text(trees(graph([node("a", value="x" * 500), node("b", "episode_end", (0,), value="\x1b[31mred")])))
    assert "x" * 101 not in shown
    assert "\x1b" not in shown
