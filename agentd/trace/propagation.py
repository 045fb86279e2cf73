"""Carrying feedback back: one reverse sweep over integer parents, for live graphs and for exported ones.

Both are brought into the same form: `parents[i]` are the positions of node i's parents, all smaller than i. Every function here is
O(nodes + edges) and free of recursion, so that a graph may be deeper than Python's stack.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from agentd.errors import TraceError
from agentd.records import NodeKind, TraceGraph, TraceNode
from agentd.trace.core import AbstractNode
from agentd.trace.errors import BackwardError
from agentd.trace.nodes import MessageNode, Node, ParameterNode

if TYPE_CHECKING:
    from agentd.trace.propagators import Propagator

Parents = Sequence[Sequence[int]]
T = TypeVar("T")

SLICE = 64
"""Nodes that are looked at before work in slices stops for what is more urgent: some tenths of a millisecond."""

# --- over integers --------------------------------------------------------------------------------------------------


def ancestors(parents: Parents, outputs: Iterable[int]) -> bytearray:
    """A mask: 1 for each output and everything that it was computed from."""
    mask = bytearray(len(parents))
    last = -1
    for output in outputs:
        mask[output] = 1
        last = max(last, output)
    for index in range(last, -1, -1):
        if mask[index]:
            for parent in parents[index]:
                mask[parent] = 1
    return mask


def descendants(parents: Parents, roots: Iterable[int]) -> bytearray:
    """A mask: 1 for each root and everything that was computed from it."""
    mask = bytearray(len(parents))
    for root in roots:
        mask[root] = 1
    for index, above in enumerate(parents):
        if not mask[index]:
            for parent in above:
                if mask[parent]:
                    mask[index] = 1
                    break
    return mask


def on_paths(parents: Parents, parameters: Iterable[int], outputs: Sequence[int]) -> list[int]:
    """The nodes on paths from parameters to outputs (the outputs always), in order: the body of the minimal subgraph."""
    below = descendants(parents, parameters)
    above = ancestors(parents, outputs)
    wanted = set(outputs)
    return [index for index in range(len(parents)) if (below[index] and above[index]) or index in wanted]


# --- exported graphs ------------------------------------------------------------------------------------------------


def minimal_subgraph(graph: TraceGraph, output: int) -> TraceGraph:
    """The part of `graph` that matters for feedback on node `output`: the paths from parameters to it.

    What the nodes on these paths also need comes as inputs with values, cut from what is upstream of them. Raises TraceError for an
    output that is no node, and for parents that don't come before their children (an exported graph is a worker's word).
    """
    if not 0 <= output < len(graph.nodes):
        raise TraceError(f"the graph has no node {output}")
    check_order(graph)
    parents = [node.parents for node in graph.nodes]
    parameters = [index for index, node in enumerate(graph.nodes) if node.kind is NodeKind.PARAMETER]
    body = set(on_paths(parents, parameters, [output]))
    sides = {parent for index in body for parent in parents[index]} - body
    kept = sorted(body | sides)
    position = {old: new for new, old in enumerate(kept)}
    nodes = tuple(
        _moved(graph.nodes[old], tuple(position[parent] for parent in parents[old])) if old in body else _cut(graph.nodes[old])
        for old in kept
    )
    operators = {node.operator for node in nodes}
    functions = {name: function for name, function in graph.functions.items() if name in operators}
    return msgspec.structs.replace(graph, nodes=nodes, functions=functions, output=position[output])


def check_order(graph: TraceGraph) -> None:
    """Raises TraceError where a node's parents don't come before it, or their number doesn't fit their names."""
    for index, node in enumerate(graph.nodes):
        if any(not 0 <= parent < index for parent in node.parents) or len(node.arguments) > len(node.parents):
            raise TraceError(f"node {index} ({node.name}) of the trace graph has parents that don't come before it")
    if graph.output is not None and not 0 <= graph.output < len(graph.nodes):
        raise TraceError(f"the trace graph's output {graph.output} is no node of it")


def _moved(node: TraceNode, parents: tuple[int, ...]) -> TraceNode:
    return node if node.parents == parents else msgspec.structs.replace(node, parents=parents)


def _cut(node: TraceNode) -> TraceNode:
    return TraceNode(name=node.name, kind=NodeKind.INPUT, value=node.value, description=node.description)


# --- live graphs ----------------------------------------------------------------------------------------------------

_FINISHED = object()


def topological(outputs: Iterable[AbstractNode]) -> tuple[list[Node], list[tuple[int, ...]]]:
    """`outputs` and what they were computed from, parents first, and the positions of each one's parents.

    The order follows the structure (depth first, arguments in order), not the time: tasks that raced give the same order each time.
    Plain inputs are not among them.
    """
    return exhausted(topological_slices(outputs))


def exhausted(slices: Generator[None, None, T]) -> T:
    """What work that is done in slices comes to, all of it at once."""
    while True:
        try:
            next(slices)
        except StopIteration as end:
            result: T = end.value
            return result


def topological_slices(outputs: Iterable[AbstractNode]) -> Generator[None, None, tuple[list[Node], list[tuple[int, ...]]]]:
    """`topological` for who has something more urgent to do now and then: it stops after every `SLICE` nodes."""
    order: list[Node] = []
    parents: list[tuple[int, ...]] = []
    position: dict[int, int] = {}
    seen: set[int] = set()
    stack: list[Any] = []
    pause_at = SLICE
    for output in outputs:
        stack.append(output)
        while stack:
            item = stack.pop()
            if item is _FINISHED:
                item = stack.pop()
                position[id(item)] = len(order)
                order.append(item)
                parents.append(tuple([position[id(value)] for value in item._inputs if isinstance(value, AbstractNode)]))
            elif id(item) not in seen:
                seen.add(id(item))
                if len(seen) == pause_at:
                    pause_at += SLICE
                    yield
                inputs = item._inputs
                if inputs:
                    stack.append(item)
                    stack.append(_FINISHED)
                    stack.extend([value for value in reversed(inputs) if isinstance(value, AbstractNode) and id(value) not in seen])
                else:
                    position[id(item)] = len(order)
                    order.append(item)
                    parents.append(())
    return order, parents


def reachable(outputs: Iterable[AbstractNode]) -> tuple[list[Any], list[Any]]:
    """`outputs` and everything that they were computed from, in no useful order: what has parents, and the roots.

    Raises BackwardError where something has been backwarded.
    """
    computed: list[Any] = []
    roots: list[Any] = []
    seen: set[int] = set()
    queue = list(outputs)
    for node in queue:  # grows while it is gone through
        if id(node) not in seen:
            seen.add(id(node))
            if node._backwarded is not None:
                raise _closed(node)
            (computed if node._inputs else roots).append(node)
            queue.extend([value for value in node._inputs if isinstance(value, AbstractNode) and id(value) not in seen])
    return computed, roots


def claim(outputs: Iterable[AbstractNode]) -> tuple[list[Any], list[Any]]:
    """As reachable, but marks what has parents as backwarded; where it raises, nothing stays marked.

    The mark is also the memory of what has been seen. A set would outgrow the processor's cache, and a node would take the longer the
    larger its graph is. Roots are not marked: threads that know nothing of each other share parameters.
    """
    mark = object()
    computed: list[Any] = []
    roots: dict[int, Any] = {}
    pending: list[Iterable[Any]] = [outputs]
    for inputs in pending:  # grows while it is gone through
        for node in inputs:
            if not isinstance(node, AbstractNode) or (state := node._backwarded) is mark:
                continue
            if not node._inputs:
                roots[id(node)] = node
            elif state is None:
                node._backwarded = mark
                computed.append(node)
                pending.append(node._inputs)
            else:
                release(computed)
                raise _closed(node)
    return computed, list(roots.values())


def _closed(node: AbstractNode) -> BackwardError:
    return BackwardError(f"{node.name} has been backwarded; retain_graph=True keeps it open")


def release(nodes: Iterable[AbstractNode]) -> None:
    """Opens `nodes` for another backward."""
    for node in nodes:
        node._backwarded = None


def subgraph(outputs: Sequence[AbstractNode], roots: Sequence[AbstractNode] = ()) -> list[Node]:
    """The live minimal subgraph: what lies on the paths from `roots` (by default all parameters), with the inputs of that, parents first.

    Plain inputs are among them, as the nodes that they become when somebody looks.
    """
    order, parents = topological(outputs)
    position = {id(node): index for index, node in enumerate(order)}
    chosen = {id(root) for root in roots}
    starts = [index for index, node in enumerate(order) if (id(node) in chosen if chosen else node.trainable)]
    body = set(on_paths(parents, starts, [position[id(output)] for output in outputs]))
    kept = body.union(*(parents[index] for index in body))
    found: dict[int, Node] = {}
    for index in sorted(kept):
        node = order[index]
        if index in body:
            found.update((id(value), value) for value in node.inputs.values() if id(value) not in position)
        found[id(node)] = node
    return [*found.values()]


def levels(output: AbstractNode) -> list[int]:
    """The longest distance from a root, for each node of `topological([output])`."""
    order = topological([output])[1]
    found = [0] * len(order)
    for index, above in enumerate(order):
        found[index] = 1 + max([found[parent] for parent in above], default=-1)
    return found


def parameters_of(output: AbstractNode) -> list[Node]:
    """All parameters that `output` was computed from."""
    return [node for node in topological([output])[0] if node.trainable]


def visible_parameters(output: AbstractNode) -> set[ParameterNode]:
    """The parameters that `output` was computed from, hidden inputs left aside."""
    found: set[ParameterNode] = set()
    seen = {id(output)}
    stack = [output]
    while stack:
        node = stack.pop()
        if isinstance(node, ParameterNode):
            found.add(node)
        for value in node._inputs[: len(node._form.arguments)]:
            if isinstance(value, AbstractNode) and id(value) not in seen:
                seen.add(id(value))
                stack.append(value)
    return found


def hidden_parameters(node: MessageNode) -> set[ParameterNode]:
    """The parameters that `node` depends on only through its hidden inputs."""
    if not node.hidden:
        return set()
    found = {other for other in topological(node.hidden)[0] if isinstance(other, ParameterNode)}
    return found - visible_parameters(node)


def expandable(node: AbstractNode) -> set[MessageNode]:
    """The nodes among `node` and its ancestors that have hidden dependencies."""
    return {other for other in topological([node])[0] if isinstance(other, MessageNode) and other.hidden and hidden_parameters(other)}


def backward(outputs: Sequence[tuple[AbstractNode, Any]], propagator: Propagator | None = None, *, retain_graph: bool = False) -> None:
    """Carries feedback from one or several outputs back to all that they were computed from; see Node.backward."""
    from agentd.trace.propagators import GraphPropagator  # noqa: PLC0415 - propagators are made of this module's parts

    propagator = GraphPropagator() if propagator is None else propagator
    ends = [output for output, _ in outputs]
    if retain_graph:
        propagator.run(outputs, reachable(ends)[1])
        return
    computed, roots = claim(ends)
    try:
        propagator.run(outputs, roots)
    except BaseException:
        release(computed)
        raise
