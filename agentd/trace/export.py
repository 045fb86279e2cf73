"""From a live graph to a frozen record: records.TraceGraph, in MessagePack or JSON."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

import msgspec

from agentd.codec import decode, encode
from agentd.errors import CodecError, TraceError
from agentd.records import NodeKind, TraceFunction, TraceGraph, TraceNode
from agentd.trace.forms import Operator
from agentd.trace.nodes import ExceptionNode, MessageNode, Node, ParameterNode
from agentd.trace.propagation import SLICE, check_order, exhausted, topological_slices
from agentd.trace.shortening import DROPPED
from agentd.trace.summaries import REDACTED, Limits, Summariser, names_a_secret, redact

__all__ = ["Limits", "export", "export_slices", "from_bytes", "from_json", "revive", "to_bytes", "to_json"]

_VERSION = 1
_MAX_SOURCES = 16  # kept nodes that a dropped one is said to go back to

_SHARED = (int, float, str, bool, type(None))  # plain inputs of these kinds are one node each, however often they occur


def export(graph: Iterable[Node], output: Node | None = None, limits: Limits | None = None) -> TraceGraph:
    """The record of what `output` was computed from; without an output, of the whole graph.

    Nodes come in an order that follows from the structure alone (depth first from the output, arguments in order), so that the same episode
    gives the same record however its tasks raced. Values are summarised and secrets redacted (agentd.trace.summaries). Beyond
    `limits.nodes` the middle is dropped and counted; what the rest needs of it stays as inputs. Parameters are never dropped.
    """
    return exhausted(export_slices(graph, output, limits))


def export_slices(graph: Iterable[Node], output: Node | None = None, limits: Limits | None = None) -> Generator[None, None, TraceGraph]:
    """`export` for who has something more urgent to do now and then, such as the next tick: it stops after every few nodes.

    No node of it may be changed meanwhile; new ones may be made.
    """
    order, parents = yield from topological_slices([output] if output is not None else list(graph))
    return (yield from _Exporter(limits if limits is not None else Limits()).slices(order, parents, output))


def revive(graph: TraceGraph) -> list[Node]:
    """Live nodes of an exported graph, in its order: for propagators that a program registers, which see nodes.

    Their values are the summaries. Raises TraceError for parents that don't come before their children.
    """
    check_order(graph)
    made: list[Node] = []
    for node in graph.nodes:
        description = f"[{node.operator}] {node.description.partition(']')[2].strip()}".rstrip()
        inputs = {
            role or f"input_{place}": made[parent] for place, (parent, role) in enumerate(zip(node.parents, _roles(node), strict=True))
        }
        if node.kind is NodeKind.PARAMETER:
            parameter: ParameterNode = ParameterNode(node.value, name=node.name, description=node.description or None)
            parameter._more().path = node.path
            made.append(parameter)
        elif node.kind is NodeKind.INPUT or not node.operator:
            made.append(Node(node.value, name=node.name, description=node.description or None))
        else:
            live: MessageNode = MessageNode(node.value, inputs=inputs, description=description, name=node.name)
            if node.kind is NodeKind.EXCEPTION:
                live.__class__ = ExceptionNode  # the same slots; its value is the message already
            made.append(live)
    return made


def _roles(node: TraceNode) -> tuple[str, ...]:
    """A name for each parent; two of the same name get numbers."""
    roles = node.arguments + ("",) * (len(node.parents) - len(node.arguments))
    return tuple(f"{role}_{place}" if role in roles[:place] else role for place, role in enumerate(roles))


def to_bytes(graph: TraceGraph) -> bytes:
    """MessagePack of the record."""
    return encode(graph)


def from_bytes(data: bytes) -> TraceGraph:
    """The record in `data`. Raises CodecError for anything else, a newer version, and parents that don't come before their children."""
    return _checked(decode(data, TraceGraph))


def to_json(graph: TraceGraph) -> str:
    """JSON of the record, for people and other programs."""
    return msgspec.json.encode(graph).decode()


def from_json(text: str | bytes) -> TraceGraph:
    """The record in `text`. Raises CodecError as from_bytes."""
    try:
        return _checked(msgspec.json.decode(text, type=TraceGraph))
    except (msgspec.MsgspecError, RecursionError) as error:
        raise CodecError(f"not a trace graph: {error}") from error


def _checked(graph: TraceGraph) -> TraceGraph:
    if graph.version > _VERSION:
        raise CodecError(f"a trace graph of version {graph.version}; this agentd reads up to {_VERSION}")
    try:
        check_order(graph)
    except TraceError as error:
        raise CodecError(str(error)) from error
    return graph


def _behind(dropped: set[int], order: list[Node], parents: list[tuple[int, ...]]) -> Generator[None, None, dict[int, list[int]]]:
    """For each dropped node the nearest kept nodes that it was computed from; of many, the parameters and the latest."""
    behind: dict[int, list[int]] = {}
    for index in sorted(dropped):
        if index % SLICE == 0:
            yield
        sources: set[int] = set()
        for parent in parents[index]:
            sources.update(behind[parent] if parent in dropped else (parent,))
        if len(sources) > _MAX_SOURCES:
            ranked = sorted(sources, key=lambda source: (not isinstance(order[source], ParameterNode), -source))
            sources = set(ranked[:_MAX_SOURCES])
        behind[index] = sorted(sources)
    return behind


class _Exporter:
    """One export, in slices: names, values, functions and plain inputs as they come."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._summarise = Summariser(limits)
        self._nodes: list[TraceNode] = []
        self._counts: dict[str, int] = {}
        self._functions: dict[str, TraceFunction] = {}
        self._operators: dict[int, str] = {}
        self._names: set[str] = set()
        self._shared: dict[Any, int] = {}

    def slices(self, order: list[Node], parents: list[tuple[int, ...]], output: Node | None) -> Generator[None, None, TraceGraph]:
        dropped = self._dropped(order)
        behind = yield from _behind(dropped, order, parents)
        place: dict[int, int] = {}
        for index, node in enumerate(order):
            if index % SLICE == 0:
                yield
            if index in dropped:
                continue
            for parent in parents[index]:
                if parent in dropped and id(order[parent]) not in place:
                    place[id(order[parent])] = self._stub(order[parent], [place[id(order[source])] for source in behind[parent]])
            if isinstance(node, MessageNode) and node._inputs:
                place[id(node)] = self._message(node, place)
            else:
                place[id(node)] = self._root(node)
        return TraceGraph(
            version=_VERSION,
            nodes=tuple(self._nodes),
            functions=self._functions,
            output=None if output is None else place[id(output)],
            dropped_nodes=len(dropped),
        )

    def _dropped(self, order: list[Node]) -> set[int]:
        excess = len(order) - self._limits.nodes
        if excess <= 0:
            return set()
        start = self._limits.nodes // 2
        return {index for index in range(start, start + excess) if not isinstance(order[index], ParameterNode)}

    def _stub(self, node: Node, sources: list[int]) -> int:
        """What is left of a dropped node that others need: its value, and which kept nodes it goes back to."""
        self._functions[DROPPED] = TraceFunction(documentation="What lies between these nodes was dropped to keep the trace small.")
        return self._append(
            TraceNode(
                name=self._name(node._base),
                kind=NodeKind.MESSAGE,
                operator=DROPPED,
                parents=tuple(sources),
                arguments=tuple(self._nodes[source].name for source in sources),
                value=self._summarise(node._data),
            )
        )

    def _append(self, node: TraceNode) -> int:
        self._nodes.append(node)
        return len(self._nodes) - 1

    def _name(self, base: str) -> str:
        joint = "_" if base[-1:].isdigit() else ""
        number = self._counts.get(base, 0)
        while (name := f"{base}{joint}{number}") in self._names:  # a parameter may be called so
            number += 1
        self._counts[base] = number + 1
        self._names.add(name)
        return name

    def _root(self, node: Node) -> int:
        extra = node._extra
        description = extra.description if extra is not None and extra.description else ""
        if isinstance(node, ParameterNode) and node.trainable:
            name = node.path
            if name is None or name in self._names:
                name = self._name(node._base)
            self._names.add(name)
            value = self._summarise.code(node._data) if extra is not None and extra.code is not None else self._summarise(node._data)
            return self._append(TraceNode(name=name, kind=NodeKind.PARAMETER, value=value, description=redact(description), path=node.path))
        kind = NodeKind.EXCEPTION if isinstance(node, ExceptionNode) else NodeKind.INPUT
        operator = ""
        if isinstance(node, MessageNode):  # an operation without inputs, such as environment_reset
            operator = self._operator(node._form.operator)
            kind = NodeKind.EXCEPTION if isinstance(node, ExceptionNode) else NodeKind.MESSAGE
        value = self._error(node) if isinstance(node, ExceptionNode) else self._named(node._base, node._data)
        return self._append(
            TraceNode(name=self._name(node._base), kind=kind, operator=operator, value=value, description=redact(description))
        )

    def _message(self, node: MessageNode, place: dict[int, int]) -> int:
        form = node._form
        module = form.operator.module
        arguments = form.arguments
        parents: list[int] = []
        names: list[str] = []
        for index, value in enumerate(node._inputs):
            if isinstance(value, Node):
                at = place[id(value)]
            elif index == 0 and module is not None and module.is_method:
                continue  # the program itself is no value in it
            else:
                at = self._plain(value, arguments[index] if module is not None else type(value).__name__)
            parents.append(at)
            names.append(arguments[index] if index < len(arguments) else self._nodes[at].name)
        exception = isinstance(node, ExceptionNode)
        extra = node._extra
        return self._append(
            TraceNode(
                name=self._name(node._base),
                kind=NodeKind.EXCEPTION if exception else NodeKind.MESSAGE,
                operator=self._operator(form.operator),
                parents=tuple(parents),
                arguments=tuple(names),
                value=self._error(node) if exception else self._summarise(node._data),
                description=redact(extra.description) if extra is not None and extra.description else "",
            )
        )

    def _error(self, node: Node) -> Any:
        return self._summarise(node.create_feedback("full")) if isinstance(node, ExceptionNode) else None

    def _plain(self, value: Any, base: str) -> int:
        """The node of a plain input."""
        key: Any = (type(value), value) if type(value) in _SHARED else (None, id(value))
        found = self._shared.get(key)
        if found is None:
            found = self._append(TraceNode(name=self._name(base), kind=NodeKind.INPUT, value=self._named(base, value)))
            self._shared[key] = found
        return found

    def _named(self, base: str, value: Any) -> Any:
        """The summary of an input that was given under a name."""
        return REDACTED if isinstance(value, str) and names_a_secret(base) else self._summarise(value)

    def _operator(self, operator: Operator) -> str:
        """The operator's name in this graph: two of the same name get a number."""
        known = self._operators.get(id(operator))
        if known is not None:
            return known
        name = operator.name
        documentation = operator.description.partition("]")[2].strip()
        source = operator.module.source if operator.module is not None and not operator.module.trainable else ""
        function = TraceFunction(documentation=redact(documentation)[: self._limits.text], source=redact(source)[: self._limits.code])
        number = 1
        while name in self._functions and self._functions[name] != function:
            number += 1
            name = f"{operator.name}_{number}"
        self._functions[name] = function
        self._operators[id(operator)] = name
        return name
