"""A trace graph as text: one tree for each tick, from what the tick led to back to what it was made of."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text
from rich.tree import Tree

from agentd.cli.show import text

JSON = Mapping[str, Any]
ENDS_TICK = frozenset({"environment_step", "episode_end"})
FIRST, LAST = 3, 3
"""Ticks that a folded trace shows."""
MAX_VALUE = 100


def trees(graph: JSON, *, everything: bool = False) -> list[Tree | Text]:
    """The parts to print. Long traces are folded to their first and last ticks unless `everything` is asked for."""
    nodes = graph["nodes"]
    ends = [index for index, node in enumerate(nodes) if node["operator"] in ENDS_TICK]
    if not ends or ends[-1] != len(nodes) - 1:
        ends.append(len(nodes) - 1)
    sections = [(begin + 1, end) for begin, end in zip([-1, *ends[:-1]], ends, strict=True) if end >= 0]
    parameters = [node for node in nodes if node["kind"] == "parameter"]
    head = Tree(text("parameters", "bold"))
    for node in parameters:
        head.add(text(f"{node['path'] or node['name']} = {_value(node)}"))
    parts: list[Tree | Text] = [head] if parameters else []
    folded = len(sections) - FIRST - LAST
    for tick, (begin, end) in enumerate(sections):
        if not everything and folded > 1 and FIRST <= tick < len(sections) - LAST:
            if tick == FIRST:
                parts.append(text(f"... {folded} more ticks (--all shows them) ...", "dim"))
            continue
        parts.append(_section(nodes, tick, begin, end))
    if graph["dropped_nodes"]:
        parts.append(text(f"{graph['dropped_nodes']} nodes were left out when the trace was recorded", "yellow"))
    return parts


def _section(nodes: Sequence[JSON], tick: int, begin: int, end: int) -> Tree:
    """The nodes from `begin` to `end`; what none of them uses is a root, and what was made earlier is only named."""
    used = {parent for index in range(begin, end + 1) for parent in nodes[index]["parents"]}
    tree = Tree(text(f"tick {tick}", "bold"))
    shown: set[int] = set()
    for root in range(end, begin - 1, -1):
        if root not in used and nodes[root]["kind"] != "parameter":
            _add(tree, nodes, root, begin, shown)
    return tree


def _add(tree: Tree, nodes: Sequence[JSON], root: int, begin: int, shown: set[int]) -> None:
    # Without recursion: a worker may have written a graph that is one long chain.
    waiting = [(tree, root, "")]
    while waiting:
        branch, index, role = waiting.pop()
        node = nodes[index]
        prefix = f"{role} = " if role else ""
        if node["kind"] == "parameter":
            branch.add(text(f"{prefix}parameter {node['path'] or node['name']}", "cyan"))
        elif index < begin or index in shown:
            branch.add(text(f"{prefix}{node['name']} (above)" if index in shown else f"{prefix}{node['name']} (earlier)", "dim"))
        else:
            shown.add(index)
            line = text(prefix)
            line.append_text(text(node["name"], "bold red" if node["kind"] == "exception" else "bold"))
            line.append_text(text(f": {node['operator']}" if node["operator"] else ""))
            line.append_text(text(f" -> {_value(node)}"))
            below = branch.add(line)
            roles = node["arguments"]
            parents = [(below, parent, roles[place] if place < len(roles) else "") for place, parent in enumerate(node["parents"])]
            waiting.extend(reversed(parents))


def _value(node: JSON) -> str:
    shown = node["value"] if isinstance(node["value"], str) else repr(node["value"])
    shown = " ".join(shown.split())
    return shown if len(shown) <= MAX_VALUE else shown[: MAX_VALUE - 3] + "..."
