"""A layered drawing of a graph as SVG (Sugiyama, Tagawa and Toda 1981): rows by distance from the roots, edges kept short and apart.

An edge over several rows runs in a lane of its own through the rows between, so that no edge passes behind a box; all that leaves one node
shares its lane.
"""

from __future__ import annotations

import html
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

from agentd.records import TraceGraph, TraceNode

_WIDTH, _LANE, _LINE, _GAP_X, _GAP_Y, _MARGIN = 190, 6, 14, 18, 46, 16
_CHARACTERS = 30  # that fit into a box
_ISOLATED = 6  # to a row, of what nothing was computed from
_SWEEPS = 8
_STRAIGHT = 8.0  # how much more a lane wants to be straight than a box wants to be near
_MAX_TITLE = 4_000
_ARROW = (
    '<defs><marker id="agentd-arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0L8 4L0 8z" fill="#8a8a8a"/></marker></defs>'
)

Spot = tuple[int, int]  # a node and a row: the node itself in its own row, its lane in those below


def to_svg(
    graph: TraceGraph, labels: Sequence[Sequence[str]], colours: Callable[[TraceNode], tuple[str, str]], *, reverse: bool = False
) -> str:
    """The drawing. `labels` are the lines in each node's box; `colours` gives fill and border. All texts are escaped."""
    layout = _Layout(graph)
    heights = [max((_height(labels[index]) for index, level in row if layout.levels[index] == level), default=0) for row in layout.rows]
    tops: list[float] = []
    y = float(_MARGIN)
    for row in range(len(heights) - 1, -1, -1) if reverse else range(len(heights)):
        tops.append(y)
        y += heights[row] + _GAP_Y
    tops = tops[::-1] if reverse else tops
    width = layout.width
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{y:.0f}" viewBox="0 0 {width:.0f} {y:.0f}">',
        _ARROW,
    ]

    def edge(parent: int, child: int) -> str:
        corners: list[tuple[float, float, float]] = []  # x, and where the edge enters and leaves the row, seen from the parent
        for row in range(layout.levels[parent], layout.levels[child] + 1):
            spot = (parent, row) if row < layout.levels[child] else (child, row)
            own = _height(labels[spot[0]]) if layout.levels[spot[0]] == row else heights[row]
            ends = (tops[row], tops[row] + own)
            corners.append((layout.centres[spot], *(ends[::-1] if reverse else ends)))
        if reverse:
            corners = [(x, leaving, entering) for x, entering, leaving in corners[::-1]]
        path = [f"M{corners[0][0]:.0f} {corners[0][2]:.0f}"]
        for (x1, _, y1), (x2, y2, y3) in itertools.pairwise(corners):
            middle = (y1 + y2) / 2
            path.append(f"C{x1:.0f} {middle:.0f} {x2:.0f} {middle:.0f} {x2:.0f} {y2:.0f}" + f"V{y3:.0f}")
        path[-1] = path[-1].rpartition("V")[0]  # it ends at the box's border
        stroke = colours(graph.nodes[parent])[1]
        return f'<path d="{"".join(path)}" fill="none" stroke="{stroke}" stroke-opacity=".55" marker-end="url(#agentd-arrow)"/>'

    parts.extend(edge(parent, index) for index, node in enumerate(graph.nodes) for parent in dict.fromkeys(node.parents))
    for index, node in enumerate(graph.nodes):
        top = tops[layout.levels[index]]
        centre = (layout.centres[index, layout.levels[index]], top, top + _height(labels[index]))
        parts.append(_box(node, labels[index], centre, colours(node), index == graph.output))
    return "".join([*parts, "</svg>"])


class _Layout:
    """Where everything stands: `levels` of nodes, the spots of each row from left to right, and their centres."""

    def __init__(self, graph: TraceGraph) -> None:
        self.levels = _levels(graph)
        self.rows: list[list[Spot]] = [[] for _ in range(max(self.levels, default=-1) + 1)]
        self._above: dict[Spot, list[Spot]] = {}
        self._below: dict[Spot, list[Spot]] = {}
        for index, node in enumerate(graph.nodes):
            own = (index, self.levels[index])
            self._add(own)
            for parent in dict.fromkeys(node.parents):
                spot = (parent, self.levels[parent])
                for row in range(self.levels[parent] + 1, self.levels[index]):
                    spot = self._add((parent, row), spot)
                self._link(spot, own)
        self._order()
        self.centres = self._settled()
        left = min((self.centres[spot] for row in self.rows for spot in row), default=0.0) - _WIDTH / 2 - _MARGIN
        self.centres = {spot: x - left for spot, x in self.centres.items()}
        self.width = max(self.centres.values(), default=0.0) + _WIDTH / 2 + _MARGIN

    def _add(self, spot: Spot, above: Spot | None = None) -> Spot:
        if spot not in self._above:
            self._above[spot], self._below[spot] = [], []
            self.rows[spot[1]].append(spot)
            if above is not None:
                self._link(above, spot)
        return spot

    def _link(self, above: Spot, below: Spot) -> None:
        self._above[below].append(above)
        self._below[above].append(below)

    def _order(self) -> None:
        """Each row by the mean place of its neighbours, downwards and upwards in turns (the barycentre rule)."""
        place = {spot: position - len(row) / 2 for row in self.rows for position, spot in enumerate(row)}
        for sweep in range(_SWEEPS):
            near = self._below if sweep % 2 else self._above
            for row in reversed(self.rows) if sweep % 2 else self.rows:
                row.sort(key=lambda spot: sum(place[other] for other in near[spot]) / len(near[spot]) if near[spot] else place[spot])
                place.update((spot, position - len(row) / 2) for position, spot in enumerate(row))

    def _settled(self) -> dict[Spot, float]:
        """The centres: each spot as near to its neighbours as its row allows."""
        centres: dict[Spot, float] = {}
        for row in self.rows:
            offsets = self._offsets(row)
            centres.update((spot, offset - offsets[-1] / 2) for spot, offset in zip(row, offsets, strict=True))
        for sweep in range(_SWEEPS):
            near = self._below if sweep % 2 else self._above
            for row in reversed(self.rows) if sweep % 2 else self.rows:
                offsets, wanted, weights = self._offsets(row), [], []
                for spot, offset in zip(row, offsets, strict=True):
                    others = near[spot]
                    pulls = [_STRAIGHT if self._is_lane(spot) and self._is_lane(other) else 1.0 for other in others]
                    mean = (
                        sum(pull * centres[other] for pull, other in zip(pulls, others, strict=True)) / sum(pulls)
                        if others
                        else centres[spot]
                    )
                    wanted.append(mean - offset)
                    weights.append(max(sum(pulls), 0.1))
                for spot, x, offset in zip(row, _nondecreasing(wanted, weights), offsets, strict=True):
                    centres[spot] = x + offset
        return centres

    def _is_lane(self, spot: Spot) -> bool:
        return self.levels[spot[0]] != spot[1]

    def _offsets(self, row: Sequence[Spot]) -> list[float]:
        """How far each spot of a row is from the first at the least."""
        offsets = [0.0]
        widths = [_LANE if self._is_lane(spot) else _WIDTH for spot in row]
        for left, right in itertools.pairwise(widths):
            offsets.append(offsets[-1] + (left + right) / 2 + _GAP_X)
        return offsets


def _nondecreasing(wanted: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The nearest sequence that never decreases (weighted least squares, by pooling adjacent violators)."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, how many
    for value, weight in zip(wanted, weights, strict=True):
        pools.append((value, weight, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (mean, heavy, count), (other, light, more) = pools[-2], pools[-1]
            pools[-2:] = [((mean * heavy + other * light) / (heavy + light), heavy + light, count + more)]
    return [mean for mean, _, count in pools for _ in range(count)]


def _levels(graph: TraceGraph) -> list[int]:
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
    isolated = [index for index, node in enumerate(graph.nodes) if not node.parents and index not in children]
    if len(isolated) > 1:  # in short rows of their own above the rest, which they would make too wide
        down = -(-len(isolated) // _ISOLATED)
        levels = [level + down for level in levels]
        for place, index in enumerate(isolated):
            levels[index] = place // _ISOLATED
    return levels


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


def rounded(value: Any) -> Any:
    """`value` with its numbers to six digits, which is what an eye wants."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list | tuple):
        return [rounded(item) if isinstance(item, float) else item for item in value]
    return value


def _fit(text: str) -> str:
    return text if len(text) <= _CHARACTERS else f"{text[: _CHARACTERS - 1]}…"
