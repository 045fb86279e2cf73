"""Folding: a thousand ticks repeat a subgraph a thousand times; a reader needs a few of them and figures about the rest.

A *tick* is what lies between two results of the operator that the graph repeats most, each computed from the one before
(`environment_step` in an episode, any operation of a loop elsewhere). Ticks are compared by structure: which operators, on what.
Kept are the first and the last tick, those in which something failed, the worst by reward, and the most surprising: of a rare structure,
or with values far from the median of their place. Each gap becomes one node with statistics:

    operator "(folded)", value {"$type": "ticks", "count": 994, "first": 3, "last": 996,
                                "values": {"act": {"low": 0, "high": 1, "mean": 0.48}, ...}}

The result is again a TraceGraph, so whatever reads graphs reads folded ones, and its size does not depend on the number of ticks.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from agentd.records import NodeKind, TraceFunction, TraceGraph, TraceNode
from agentd.trace.propagation import check_order
from agentd.trace.shortening import DROPPED, FOLDED, MAX_SOURCES, estimate_tokens, shorten_to

STEP = "environment_step"
"""The operator that ends a tick of an episode."""

_TICKS = 8  # that are shown where the budget allows it
_CANDIDATES = 6  # operators that are tried as the one that separates ticks
_MAX_FIGURES = 12  # places of a tick for which a gap gives statistics
_MAX_COMPONENTS = 8  # numbers of one value that are told apart
_HUGE = 1e300  # sums of such numbers would overflow; NaN is not below it either
_SCALED = 1.4826  # makes the median absolute deviation comparable to a standard deviation

_DOCUMENTATION = "Repeated ticks that are not shown; the value has statistics about them."


@dataclass(frozen=True, slots=True)
class Ticks:
    """How a graph repeats itself: `operator` separates the ticks, `ends[k]` is the node that ends tick k."""

    operator: str
    ends: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ends)


def find_ticks(graph: TraceGraph) -> Ticks | None:
    """How the graph repeats itself; None where no operator's results build on each other at least three times.

    The environment's steps are ticks wherever they are there. Elsewhere it is the repetition that covers most nodes, and of several that
    with the fewest structures: an operator that occurs twice in each round of a loop has two.
    """
    ends: dict[str, list[int]] = {}
    for index, node in enumerate(graph.nodes):
        if node.kind is NodeKind.MESSAGE and node.parents:
            ends.setdefault(node.operator, []).append(index)
    candidates = sorted((operator for operator in ends if len(ends[operator]) >= 3), key=lambda operator: -len(ends[operator]))
    chains = [operator for operator in [STEP, *candidates[:_CANDIDATES]] if operator in candidates and _is_chain(graph, ends[operator])]
    if STEP in chains or len(chains) == 1:
        return Ticks(chains[0], tuple(ends[chains[0]]))
    found = [Ticks(operator, tuple(ends[operator])) for operator in chains]
    return max(found, key=lambda ticks: _regularity(graph, ticks), default=None)


def _regularity(graph: TraceGraph, ticks: Ticks) -> tuple[int, int]:
    """How many nodes are in ticks of structures that repeat, and how few structures there are."""
    blocks = _blocks(graph, ticks)
    shapes = Counter(_structure(graph, block, blocks[tick - 1] if tick else ()) for tick, block in enumerate(blocks))
    return sum(count * len(shape) for shape, count in shapes.items() if count >= 3), -len(shapes)


def _is_chain(graph: TraceGraph, ends: Sequence[int]) -> bool:
    """Whether each of `ends` was computed from the one before."""
    number = {index: position for position, index in enumerate(ends)}
    latest = [-1] * len(graph.nodes)
    for index, node in enumerate(graph.nodes):
        above = max((latest[parent] for parent in node.parents), default=-1)
        position = number.get(index)
        if position is not None and position > 0 and above != position - 1:
            return False
        latest[index] = above if position is None else position
    return True


def fold(
    graph: TraceGraph,
    rewards: Sequence[float | None] = (),
    *,
    worst: int = 1,
    surprising: int = 2,
    minimum: int = 8,
    budget: int | None = None,
    size: Callable[[TraceGraph], int] = estimate_tokens,
) -> TraceGraph:
    """`graph` with its repeated ticks folded; itself where it has fewer than `minimum`.

    Args:
        graph: an exported graph, whole or minimal.
        rewards: of each tick, in order, also of those that were dropped from the graph; left aside where they don't fit the ticks.
        worst: how many of the lowest rewards are shown.
        surprising: how many of the most unusual ticks are shown.
        minimum: shorter graphs are left alone.
        budget: what `size` of the result should not exceed: fewer ticks are shown, then shorter texts and fewer nodes.
        size: of a graph as its reader will get it; about its tokens by default.

    Raises TraceError for a graph whose parents don't come before their children.
    """
    check_order(graph)
    ticks = find_ticks(graph)
    result = graph
    if ticks is not None and len(ticks) >= minimum:
        blocks = _blocks(graph, ticks)
        order = _by_interest(graph, ticks, blocks, rewards, worst=worst, surprising=surprising)
        if budget is None:
            return _Folder(graph, blocks, order).run()
        order = (order + [tick for tick in _spread(len(ticks)) if tick not in order])[:_TICKS]  # as many for every episode
        result = _fitting(graph, blocks, order, lambda made: size(made) <= budget)
    return result if budget is None else shorten_to(result, budget, size)


def _fitting(graph: TraceGraph, blocks: Sequence[Sequence[int]], order: Sequence[int], fits: Callable[[TraceGraph], bool]) -> TraceGraph:
    """The folding that shows as many ticks of `order` as fit, at least the first two of it; found by halving."""
    least, most = 2, len(order)
    best = _Folder(graph, blocks, order[:least]).run()
    while least < most:
        middle = (least + most + 1) // 2
        made = _Folder(graph, blocks, order[:middle]).run()
        if fits(made):
            least, best = middle, made
        else:
            most = middle - 1
    return best


def _spread(count: int) -> list[int]:
    """Some ticks at even distances, the coarsest first."""
    return list(dict.fromkeys(count * part // pieces for pieces in (2, 4, 8) for part in range(1, pieces)))


# --- what a tick is like --------------------------------------------------------------------------------------------


def _blocks(graph: TraceGraph, ticks: Ticks) -> list[list[int]]:
    """The operations of each tick. What comes before the first tick's end is part of the first, unless it is an opening."""
    blocks: list[list[int]] = []
    start = 0
    for end in ticks.ends:
        blocks.append([index for index in range(start, end + 1) if graph.nodes[index].operator])
        start = end + 1
    return blocks


def _structure(graph: TraceGraph, block: Sequence[int], before: Sequence[int]) -> tuple[Any, ...]:
    """What operators a tick consists of, on what: equal for ticks that do the same."""
    inside = {index: place for place, index in enumerate(block)}
    outside = {index: place for place, index in enumerate(before)}
    return tuple(
        (
            graph.nodes[index].operator,
            tuple(
                inside[parent] if parent in inside else ("before", outside[parent]) if parent in outside else graph.nodes[parent].kind.value
                for parent in graph.nodes[index].parents
            ),
        )
        for index in block
    )


def _numbers(value: Any, depth: int = 4) -> list[float]:
    """The first finite numbers in a value."""
    if isinstance(value, bool | int | float):
        return [float(value)] if abs(value) < _HUGE else []
    if isinstance(value, list) and depth > 0:
        found: list[float] = []
        for item in value:
            found.extend(_numbers(item, depth - 1))
            if len(found) >= _MAX_COMPONENTS:
                break
        return found[:_MAX_COMPONENTS]
    return []


def _by_interest(
    graph: TraceGraph, ticks: Ticks, blocks: Sequence[Sequence[int]], rewards: Sequence[float | None], *, worst: int, surprising: int
) -> list[int]:
    """The ticks to show, the most important first."""
    count = len(ticks)
    chosen = [0, count - 1]
    failed = [tick for tick, block in enumerate(blocks) if any(graph.nodes[index].kind is NodeKind.EXCEPTION for index in block)]
    chosen += [tick for tick in failed[-2:] if tick not in chosen]
    known = {tick: reward for tick, reward in enumerate(_of_ticks(graph, ticks, rewards)) if reward is not None}
    if known and min(known.values()) < max(known.values()):
        lowest = sorted((tick for tick in known if tick not in chosen), key=lambda tick: known[tick])
        chosen += lowest[:worst]
    surprise = _surprise(graph, blocks)
    unusual = sorted((tick for tick in range(count) if tick not in chosen and surprise[tick] > 0), key=lambda tick: -surprise[tick])
    chosen += unusual[:surprising]
    chosen += [tick for tick in (1,) if tick not in chosen]  # an ordinary second tick shows how ticks connect
    return chosen


def _of_ticks(graph: TraceGraph, ticks: Ticks, rewards: Sequence[float | None]) -> Sequence[float | None]:
    """The rewards of the ticks in the graph. Of a long episode the middle was dropped: those before and those after it are there."""
    missing = len(rewards) - len(ticks)
    if missing <= 0 or not graph.dropped_nodes:
        return rewards if missing == 0 else ()
    drop = next((index for index, node in enumerate(graph.nodes) if node.operator == DROPPED), 0)
    before = sum(end < drop for end in ticks.ends)
    return [*rewards[:before], *rewards[before + missing :]]


def _surprise(graph: TraceGraph, blocks: Sequence[Sequence[int]]) -> list[float]:
    """How far each tick is from the others: its rarity of structure, or its values' largest distance from their median."""
    shapes = [_structure(graph, block, blocks[tick - 1] if tick else ()) for tick, block in enumerate(blocks)]
    ids: dict[tuple[Any, ...], int] = {}
    kinds = [ids.setdefault(shape, len(ids)) for shape in shapes]
    sizes = Counter(kinds)
    usual = sizes.most_common(1)[0][1]
    surprise = [100.0 * (usual / sizes[kind] - 1.0) / len(kinds) for kind in kinds]
    members: dict[int, list[int]] = {}
    for tick, kind in enumerate(kinds):
        members.setdefault(kind, []).append(tick)
    for group in members.values():
        if len(group) < 4:
            continue
        for place in range(len(blocks[group[0]])):
            rows = [_numbers(graph.nodes[blocks[tick][place]].value) for tick in group]
            for component in range(min(map(len, rows))):
                column = [row[component] for row in rows]
                middle = statistics.median(column)
                spread = _SCALED * statistics.median(abs(number - middle) for number in column)
                if spread > 0:
                    for tick, number in zip(group, column, strict=True):
                        surprise[tick] = max(surprise[tick], abs(number - middle) / spread - 2.0)
    return surprise


# --- making the folded graph ----------------------------------------------------------------------------------------


class _Folder:
    """One folding: where shown nodes and gaps have got to in the new graph."""

    def __init__(self, graph: TraceGraph, blocks: Sequence[Sequence[int]], shown: Iterable[int]) -> None:
        self._graph = graph
        self._blocks = blocks
        self._tick_of = {index: tick for tick, block in enumerate(blocks) for index in block}
        self._gap_of = _gaps(len(blocks), set(shown))
        self._nodes: list[TraceNode] = []
        self._place: dict[int, int] = {}
        self._gap_place: dict[int, int] = {}  # by the tick that a gap starts with

    def run(self) -> TraceGraph:
        """The folded graph."""
        graph = self._graph
        hidden = {index for index, tick in self._tick_of.items() if tick in self._gap_of}
        needed = _needed(graph, hidden)
        for index, node in enumerate(graph.nodes):
            if index in hidden:
                first, last = self._gap_of[self._tick_of[index]]
                if index == self._blocks[last][-1]:
                    gap = self._gap_node(first, last)
                    self._gap_place[first] = len(self._nodes)
                    self._nodes.append(gap)
            elif node.operator or index in needed:
                roles = node.arguments + ("",) * (len(node.parents) - len(node.arguments))
                kept = [
                    (place, role) for parent, role in zip(node.parents, roles, strict=True) if (place := self._placed(parent)) is not None
                ]
                self._place[index] = len(self._nodes)
                self._nodes.append(
                    msgspec.structs.replace(node, parents=tuple(place for place, _ in kept), arguments=tuple(role for _, role in kept))
                )
        functions = graph.functions | ({FOLDED: TraceFunction(documentation=_DOCUMENTATION)} if hidden else {})
        used = {node.operator for node in self._nodes}
        return msgspec.structs.replace(
            graph,
            nodes=tuple(self._nodes),
            functions={name: function for name, function in functions.items() if name in used},
            output=None if graph.output is None else self._placed(graph.output),
        )

    def _placed(self, index: int) -> int | None:
        """Where a node of the old graph is in the new one: itself, or the gap that it is in."""
        if index in self._place:
            return self._place[index]
        gap = self._gap_of.get(self._tick_of.get(index, -1))
        return None if gap is None else self._gap_place.get(gap[0])

    def _gap_node(self, first: int, last: int) -> TraceNode:
        """The node that stands for the ticks of one gap: its parents are the parameters and the last shown nodes that they go back to."""
        blocks = self._blocks[first : last + 1]
        inside = {index for block in blocks for index in block}
        above = {parent for index in inside for parent in self._graph.nodes[index].parents if parent not in inside}
        placed = {place for parent in above if (place := self._placed(parent)) is not None}
        sources = [place for place in placed if self._nodes[place].kind is not NodeKind.INPUT]
        ranked = sorted(sources, key=lambda place: (self._nodes[place].kind is not NodeKind.PARAMETER, -place))
        parents = tuple(sorted(ranked[:MAX_SOURCES]))
        return TraceNode(
            name=f"ticks_{first}_to_{last}",
            kind=NodeKind.MESSAGE,
            operator=FOLDED,
            parents=parents,
            arguments=tuple(self._nodes[parent].name for parent in parents),
            value={"$type": "ticks", "count": last - first + 1, "first": first, "last": last, "values": _figures(self._graph, blocks)},
        )


def _gaps(count: int, shown: set[int]) -> dict[int, tuple[int, int]]:
    """For each hidden tick the run of hidden ticks that it is in."""
    gaps: dict[int, tuple[int, int]] = {}
    start = None
    for tick in range(count + 1):
        if tick < count and tick not in shown:
            start = tick if start is None else start
        elif start is not None:
            gaps.update(dict.fromkeys(range(start, tick), (start, tick - 1)))
            start = None
    return gaps


def _needed(graph: TraceGraph, hidden: set[int]) -> set[int]:
    """The inputs that something shown uses, and every parameter."""
    needed = {index for index, node in enumerate(graph.nodes) if node.kind is NodeKind.PARAMETER or index == graph.output}
    for index, node in enumerate(graph.nodes):
        if index not in hidden:
            needed.update(node.parents)
    return needed


def _figures(graph: TraceGraph, blocks: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Low, high and mean of the numbers at each place of a tick, by operator; a list of them where values have several numbers."""
    columns: dict[str, list[list[float]]] = {}
    for block in blocks:
        seen: Counter[str] = Counter()
        for index in block:
            node = graph.nodes[index]
            seen[node.operator] += 1
            name = node.operator if seen[node.operator] == 1 else f"{node.operator} #{seen[node.operator]}"
            if name not in columns and len(columns) >= _MAX_FIGURES:
                continue
            numbers = _numbers(node.value)
            if numbers:
                columns.setdefault(name, []).append(numbers)
    figures: dict[str, Any] = {}
    for name, rows in columns.items():
        width = min(map(len, rows))
        low, high, mean = (
            [float(f"{pick(row[component] for row in rows):.4g}") for component in range(width)] for pick in (min, max, statistics.fmean)
        )
        figures[name] = {"low": low[0], "high": high[0], "mean": mean[0]} if width == 1 else {"low": low, "high": high, "mean": mean}
    return figures
