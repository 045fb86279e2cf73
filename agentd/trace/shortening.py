"""Graphs made to fit a reader: texts cut, and the middle left out. For what doesn't repeat; agentd.trace.folding is for what does."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from agentd.errors import TraceError
from agentd.records import NodeKind, TraceFunction, TraceGraph, TraceNode

FOLDED = "(folded)"
"""The operator of a node that stands for ticks or nodes that are not shown."""

DROPPED = "(dropped)"
"""The operator of a node that stands for a part of the graph that was not exported."""

MAX_SOURCES = 12
"""Parents that such a node names."""

_CHARACTERS_PER_TOKEN = 4
_UNREADABLE = 1_000_000  # characters that a value counts for which can't be written down
_STEPS = ((400, 400), (160, 200), (60, 100), (24, 50))  # characters of a text, and nodes, ever fewer


def estimate_tokens(graph: TraceGraph) -> int:
    """About how many tokens the graph takes as text: names, calls and values."""
    characters = sum(
        len(node.name) + len(node.operator) + sum(len(graph.nodes[parent].name) + 4 for parent in node.parents) + _width(node.value) + 8
        for node in graph.nodes
    )
    characters += sum(len(function.documentation) + len(function.source) for function in graph.functions.values())
    return characters // _CHARACTERS_PER_TOKEN


def _width(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    try:
        return len(json.dumps(value, default=str))
    except (TypeError, ValueError, RecursionError):  # a worker may nest deeper than anybody reads
        return _UNREADABLE


def shorten_to(graph: TraceGraph, budget: int, size: Callable[[TraceGraph], int] = estimate_tokens) -> TraceGraph:
    """`graph` with texts cut and its middle left out, ever more, until its `size` is at most `budget` or nothing more can go.

    Parameters stay whole.
    """
    for characters, nodes in _STEPS:
        if size(graph) <= budget:
            break
        graph = shorten(_with_short_texts(graph, characters), nodes)
    return graph


def _with_short_texts(graph: TraceGraph, limit: int) -> TraceGraph:
    nodes = tuple(
        node
        if node.kind is NodeKind.PARAMETER
        else msgspec.structs.replace(node, value=_cut(node.value, limit), description=node.description[:limit])
        for node in graph.nodes
    )
    functions = {
        name: TraceFunction(documentation=function.documentation[:limit], source=function.source[: limit * 4])
        for name, function in graph.functions.items()
    }
    return msgspec.structs.replace(graph, nodes=nodes, functions=functions)


def _cut(value: Any, limit: int) -> Any:  # noqa: PLR0911 - a case per kind of value
    width = _width(value)
    if width <= limit:
        return value
    if width == _UNREADABLE:
        return {"$type": type(value).__name__}
    if isinstance(value, str):
        half = limit // 2
        return {"$type": "text", "length": len(value), "start": value[: limit - half], "end": value[-half:]}
    if isinstance(value, Mapping) and "$type" in value:
        return {key: item[: limit // 4] if isinstance(item, str) else _cut(item, limit // 2) for key, item in list(value.items())[:6]}
    if isinstance(value, list):
        return {"$type": "list", "length": len(value), "start": [_cut(item, limit // 4) for item in value[: max(1, limit // 40)]]}
    if isinstance(value, Mapping):
        kept = dict(list(value.items())[: max(1, limit // 40)])
        return {"$type": "dict", "length": len(value), "items": {key: _cut(item, limit // 4) for key, item in kept.items()}}
    return value


def shorten(graph: TraceGraph, nodes: int) -> TraceGraph:
    """`graph` with at most about `nodes` nodes: the first and the last ones, with one node for what lies between."""
    if nodes < 4:
        raise TraceError("a shortened graph needs at least 4 nodes")
    if len(graph.nodes) <= nodes:
        return graph
    start = nodes // 3
    end = len(graph.nodes) - (nodes - start)
    kept = [index for index in range(len(graph.nodes)) if index < start or index >= end or graph.nodes[index].kind is NodeKind.PARAMETER]
    dropped = set(range(start, end)).difference(kept)
    made: list[TraceNode] = []
    place: dict[int, int] = {}
    gap: int | None = None
    for index in kept:
        if index >= end and gap is None:
            gap = len(made)
            made.append(_gap_node(graph, dropped, place))
        node = graph.nodes[index]
        above: list[tuple[int, str]] = []
        for parent, role in zip(node.parents, node.arguments + ("",) * (len(node.parents) - len(node.arguments)), strict=True):
            at = place.get(parent, gap)
            if at is not None and (at != gap or all(other != gap for other, _ in above)):
                above.append((at, role))
        place[index] = len(made)
        made.append(msgspec.structs.replace(node, parents=tuple(at for at, _ in above), arguments=tuple(role for _, role in above)))
    output = graph.output
    used = {node.operator for node in made}
    return msgspec.structs.replace(
        graph,
        nodes=tuple(made),
        functions={name: function for name, function in graph.functions.items() if name in used},
        output=None if output is None else place.get(output, gap),
    )


def _gap_node(graph: TraceGraph, dropped: Collection[int], place: Mapping[int, int]) -> TraceNode:
    """The node that stands for the dropped ones: its parents are the kept nodes that they were computed from, parameters first."""
    used = {parent for index in dropped for parent in graph.nodes[index].parents if parent in place}
    ranked = sorted(used, key=lambda parent: (graph.nodes[parent].kind is not NodeKind.PARAMETER, -parent))
    parents = tuple(sorted(place[parent] for parent in ranked[:MAX_SOURCES]))
    return TraceNode(
        name=f"{len(dropped)} more",
        kind=NodeKind.MESSAGE,
        operator=FOLDED,
        parents=parents,
        arguments=("",) * len(parents),
        value={"$type": "nodes", "count": len(dropped)},
    )
