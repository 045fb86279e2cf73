"""A layered drawing of a graph as SVG: rows by distance from the roots, each row ordered to keep edges short."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from typing import Any

from agentd.records import TraceGraph, TraceNode

_WIDTH, _LINE, _GAP_X, _GAP_Y, _MARGIN = 190, 14, 24, 46, 16
_CHARACTERS = 30  # that fit into a box
_SWEEPS = 4
_MAX_TITLE = 4_000
_ARROW = (
    '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0L8 4L0 8z" fill="#8a8a8a"/></marker></defs>'
)


def to_svg(
    graph: TraceGraph, labels: Sequence[Sequence[str]], colours: Callable[[TraceNode], tuple[str, str]], *, reverse: bool = False
) -> str:
    """The drawing. `labels` are the lines in each node's box; `colours` gives fill and border. All texts are escaped."""
    rows = _rows(graph)
    if reverse:
        rows = rows[::-1]
    heights = [max((_height(labels[index]) for index in row), default=0) for row in rows]
    widest = max((len(row) for row in rows), default=1)
    total_width = 2 * _MARGIN + widest * (_WIDTH + _GAP_X) - _GAP_X
    centres: dict[int, tuple[float, float, float]] = {}
    y = float(_MARGIN)
    for row, height in zip(rows, heights, strict=True):
        start = (total_width - len(row) * (_WIDTH + _GAP_X) + _GAP_X) / 2
        for position, index in enumerate(row):
            centres[index] = (start + position * (_WIDTH + _GAP_X) + _WIDTH / 2, y, y + _height(labels[index]))
        y += height + _GAP_Y
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total_width:.0f}" height="{y:.0f}" viewBox="0 0 {total_width:.0f} {y:.0f}">',
        _ARROW,
    ]
    for index, node in enumerate(graph.nodes):
        for parent in dict.fromkeys(node.parents):
            upper, lower = (index, parent) if reverse else (parent, index)
            (x1, _, y1), (x2, y2, _) = centres[upper], centres[lower]
            middle = (y1 + y2) / 2
            parts.append(
                f'<path d="M{x1:.0f} {y1:.0f}C{x1:.0f} {middle:.0f} {x2:.0f} {middle:.0f} {x2:.0f} {y2:.0f}" fill="none" stroke="#b5b5b5" '
                'marker-end="url(#a)"/>'
            )
    parts.extend(_box(node, labels[index], centres[index], colours(node), index == graph.output) for index, node in enumerate(graph.nodes))
    return "".join([*parts, "</svg>"])


def _rows(graph: TraceGraph) -> list[list[int]]:
    levels: list[int] = []
    for node in graph.nodes:
        levels.append(1 + max((levels[parent] for parent in node.parents), default=-1))
    children: dict[int, list[int]] = {}
    for index, node in enumerate(graph.nodes):
        for parent in node.parents:
            children.setdefault(parent, []).append(index)
    for index in range(len(levels) - 1, -1, -1):  # inputs stand just above their first user
        if not graph.nodes[index].parents and index in children:
            levels[index] = min(levels[child] for child in children[index]) - 1
    rows: list[list[int]] = [[] for _ in range(max(levels, default=-1) + 1)]
    for index, level in enumerate(levels):
        rows[level].append(index)
    place = {index: position - len(row) / 2 for row in rows for position, index in enumerate(row)}
    for sweep in range(_SWEEPS):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            around = {index: graph.nodes[index].parents if sweep % 2 == 0 else children.get(index, ()) for index in row}
            row.sort(key=lambda index: sum(place[other] for other in around[index]) / len(around[index]) if around[index] else place[index])
            place.update((index, position - len(row) / 2) for position, index in enumerate(row))
    return rows


def _height(label: Sequence[str]) -> int:
    return _LINE * len(label) + 12


def _box(node: TraceNode, label: Sequence[str], centre: tuple[float, float, float], colours: tuple[str, str], is_output: bool) -> str:
    x, top, bottom = centre
    fill, line = colours
    title = html.escape(f"{node.name} {node.description}\n{shown_value(node.value)}"[:_MAX_TITLE])
    texts = "".join(
        f'<text x="{x:.0f}" y="{top + 16 + number * _LINE:.0f}" text-anchor="middle">{html.escape(_fit(text))}</text>'
        for number, text in enumerate(label)
    )
    corner = 3 if node.operator else 14
    return (
        f'<g><title>{title}</title><rect x="{x - _WIDTH / 2:.0f}" y="{top:.0f}" width="{_WIDTH}" height="{bottom - top:.0f}" rx="{corner}" '
        f'fill="{fill}" stroke="{line}" stroke-width="{3 if is_output else 1}"/>{texts}</g>'
    )


def shown_value(value: Any) -> str:
    """A value as one text; a worker's value may be nested deeper than can be written down."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, default=str, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return f"<{type(value).__name__}>"


def _fit(text: str) -> str:
    return text if len(text) <= _CHARACTERS else f"{text[: _CHARACTERS - 1]}…"
