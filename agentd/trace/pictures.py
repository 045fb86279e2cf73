"""Pictures of graphs: Graphviz, Mermaid, and one self-contained HTML page.

They are readable at any size: what repeats is folded, what is long is cut.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from agentd.records import NodeKind, TraceGraph, TraceNode
from agentd.trace.core import AbstractNode
from agentd.trace.drawing import rounded, shown_value, to_svg
from agentd.trace.export import export
from agentd.trace.folding import fold
from agentd.trace.forms import IDENTITY_OPERATORS
from agentd.trace.shortening import FOLDED, shorten

_MAX_NODES = 60  # what an eye takes in

_COLOURS = {
    NodeKind.PARAMETER: ("#ffe5e5", "#d1443c"),
    NodeKind.INPUT: ("#f2f2f2", "#8a8a8a"),
    NodeKind.MESSAGE: ("#deebf6", "#3f78a8"),
    NodeKind.EXCEPTION: ("#fff0c2", "#b07d00"),
}
_STYLE = "<style>.agentd-graph text{font:11px sans-serif}.agentd-graph g:hover rect{stroke-width:3}</style>"
_MAX_FIGURES = 6  # that a node for many ticks shows
_FOLDED_COLOURS = ("#ffffff", "#8a8a8a")


def picture(
    source: Any, *, simple: bool = True, reverse: bool = False, print_limit: int = 100, max_nodes: int = _MAX_NODES, feedback: str = ""
) -> Picture:
    """A picture of a node (with what it was computed from), of several, of a graph, or of an exported graph.

    Args:
        source: what to draw.
        simple: leaves out operators that only copy (identity, clone).
        reverse: arrows from results to inputs.
        print_limit: characters of a value that are shown.
        max_nodes: above it repeated ticks are folded, then the middle is left out.
        feedback: shown with the output.
    """
    if isinstance(source, TraceGraph):
        graph = source
    elif isinstance(source, AbstractNode):
        graph = export([], source)  # type: ignore[arg-type]  # every node is a Node
    else:
        nodes: Iterable[Any] = source
        graph = export(nodes)
    if simple:
        graph = _without_copies(graph)
    if len(graph.nodes) > max_nodes:
        graph = fold(graph)
    return Picture(shorten(graph, max_nodes), reverse=reverse, print_limit=print_limit, feedback=feedback)


def _without_copies(graph: TraceGraph) -> TraceGraph:
    """The graph with the users of a copy pointing at its original."""
    through: dict[int, int] = {}
    nodes: list[TraceNode] = []
    place: dict[int, int] = {}
    for index, node in enumerate(graph.nodes):
        parents = tuple(place[through.get(parent, parent)] for parent in node.parents)
        if node.operator in IDENTITY_OPERATORS and len(parents) == 1 and index != graph.output:
            through[index] = through.get(node.parents[0], node.parents[0])
            continue
        place[index] = len(nodes)
        nodes.append(msgspec.structs.replace(node, parents=parents))
    return msgspec.structs.replace(graph, nodes=tuple(nodes), output=None if graph.output is None else place[graph.output])


class Picture:
    """A drawn graph. In a notebook it shows itself; elsewhere `save` it or take its text."""

    def __init__(self, graph: TraceGraph, *, reverse: bool = False, print_limit: int = 100, feedback: str = "") -> None:
        self.graph = graph
        self._reverse = reverse
        self._limit = print_limit
        self._feedback = feedback

    @property
    def source(self) -> str:
        """As to_dot: what a Graphviz object of Trace would have here."""
        return self.to_dot()

    def save(self, path: str | Path) -> Path:
        """Writes the picture; the suffix says how: .html, .mmd (Mermaid), anything else is Graphviz's language."""
        path = Path(path)
        text = {".html": self.to_html, ".mmd": self.to_mermaid}.get(path.suffix, self.to_dot)()
        path.write_text(text, encoding="utf-8")
        return path

    def to_dot(self) -> str:
        """Graphviz's language."""
        lines = ["digraph trace {", '  node [style="filled", fontname="sans-serif", fontsize=10];']
        for index, node in enumerate(self.graph.nodes):
            fill, line = _colours(node)
            shape = "box" if node.operator else "ellipse"
            style = ', style="dashed,filled"' if node.operator == FOLDED else ""
            width = 3 if index == self.graph.output else 1
            label = _dot_text("\n".join(self._label(index, node)))
            lines.append(f'  n{index} [label="{label}", shape={shape}, fillcolor="{fill}", color="{line}", penwidth={width}{style}];')
        for index, node in enumerate(self.graph.nodes):
            for parent, role in zip(node.parents, (*node.arguments, *[""] * len(node.parents)), strict=False):
                start, end = (index, parent) if self._reverse else (parent, index)
                lines.append(f'  n{start} -> n{end} [label="{_dot_text(_short(role, 20))}", fontsize=8, color="#8a8a8a"];')
        return "\n".join([*lines, "}"])

    def to_mermaid(self) -> str:
        """Mermaid's language, as GitHub and many wikis draw it."""
        lines = ["flowchart BT" if self._reverse else "flowchart TD"]
        for index, node in enumerate(self.graph.nodes):
            label = "<br/>".join(_mermaid_text(line) for line in self._label(index, node))
            opening, closing = ("[", "]") if node.operator else ("([", "])")
            lines.append(f'  n{index}{opening}"{label}"{closing}')
        for index, node in enumerate(self.graph.nodes):
            lines.extend(
                f"  n{index} --> n{parent}" if self._reverse else f"  n{parent} --> n{index}" for parent in dict.fromkeys(node.parents)
            )
        for kind, (fill, line) in _COLOURS.items():
            members = [f"n{index}" for index, node in enumerate(self.graph.nodes) if node.kind is kind and node.operator != FOLDED]
            if members:
                lines += [f"  classDef {kind.value} fill:{fill},stroke:{line},color:#000", f"  class {','.join(members)} {kind.value}"]
        return "\n".join(lines)

    def to_html(self) -> str:
        """One page with the picture as SVG; values in full on hover; needs nothing from anywhere."""
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Trace graph</title>'
            f"<style>body{{font-family:sans-serif;margin:1rem}}</style></head><body>{self._repr_html_()}</body></html>"
        )

    def _repr_html_(self) -> str:
        """The part of the page that a notebook shows; its style holds for nothing else there. A wide picture is scrolled, not shrunk."""
        svg = to_svg(self.graph, [self._label(index, node) for index, node in enumerate(self.graph.nodes)], _colours, reverse=self._reverse)
        words = f"<p><b>Feedback:</b> {html.escape(self._feedback)}</p>" if self._feedback else ""
        dropped = f"<p>{self.graph.dropped_nodes} nodes were not recorded.</p>" if self.graph.dropped_nodes else ""
        return (
            f'<div class="agentd-graph">{_STYLE}{words}{dropped}<div style="overflow-x:auto;background:#fff;color:#000">{svg}</div></div>'
        )

    def __str__(self) -> str:
        return self.to_dot()

    def _label(self, index: int, node: TraceNode) -> list[str]:
        """Name, what made it, and its value, each a short line."""
        mark = " (output)" if index == self.graph.output else ""
        value = node.value
        if node.operator == FOLDED and isinstance(value, dict):
            return _folded_lines(value, self._limit)
        shown = shown_value(rounded(value))
        lines = [f"{_short(node.name, 60)}{mark}"]
        if node.operator and not node.name.startswith(node.operator):
            lines.append(f"[{_short(node.operator, 60)}]")
        return [*lines, _short(shown, self._limit)]


def _folded_lines(value: dict[str, Any], limit: int) -> list[str]:
    """What a node says that stands for ticks or nodes: how many, and between what their values lie."""
    if not isinstance(value.get("values"), dict):
        return [_short(f"{value.get('count')} nodes that are not shown", 60)]
    lines = [_short(f"{value.get('count')} ticks: {value.get('first')} to {value.get('last')}", 60)]
    figured = list(value["values"].items())
    for name, figures in figured if len(figured) <= _MAX_FIGURES else [*figured[: _MAX_FIGURES - 1], figured[-1]]:
        low, high = (figures.get("low"), figures.get("high")) if isinstance(figures, dict) else (None, None)
        shown = f"{_number(low)} to {_number(high)}" if not isinstance(low, list) else f"{len(low)} numbers"
        lines.append(_short(f"{name}: {shown}", limit))
    return lines


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else shown_value(value)


def _colours(node: TraceNode) -> tuple[str, str]:
    return _FOLDED_COLOURS if node.operator == FOLDED else _COLOURS[node.kind]


def _short(text: str, limit: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def _dot_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _mermaid_text(text: str) -> str:
    return "".join(f"#{ord(character)};" if character in '"#<>&;`[](){}|\\' else character for character in text)
