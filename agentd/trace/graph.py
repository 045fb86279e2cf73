"""Graphs: one per episode, in a ContextVar, freed with the episode."""

from __future__ import annotations

import contextvars
import gc
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from agentd.errors import TraceError
from agentd.trace.context import Origin, Scope, current
from agentd.trace.forms import Operator
from agentd.trace.naming import Registry, root_names
from agentd.trace.nodes import MessageNode, Node, message

if TYPE_CHECKING:
    from agentd.trace.pictures import Picture


class Graph:
    """The nodes of one episode, in order of creation.

    ``with Graph() as graph:`` makes it the current one; tasks and `asyncio.to_thread` calls started inside join it. It may be entered
    again. It owns its nodes, they don't own it: dropping it (and the nodes that somebody holds) frees everything.
    """

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.names = Registry()
        self._named = 0
        self._operators: dict[str, Operator] = {}
        self._scope = Scope(self.nodes.append, Origin(weakref.ref(self)))
        self._tokens: list[contextvars.Token[Scope]] = []

    def __enter__(self) -> Self:
        self._tokens.append(current.set(self._scope))
        return self

    def __exit__(self, *_: object) -> None:
        current.reset(self._tokens.pop())

    def __len__(self) -> int:
        return len(self.nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def message(self, operator: str, inputs: Mapping[str, Node], value: Any, description: str = "") -> MessageNode:
        """The node of an opaque operation, such as a step of the environment: `value` came of `inputs` (plain values are allowed).

        Raises TraceError for a node as `value`: what comes from outside is no node.
        """
        if isinstance(value, Node):
            raise TraceError(f"the value of {operator} is a node already")
        made = self._operators.get(operator)
        if made is None:
            made = self._operators[operator] = Operator(operator, f"[{operator}] {description}".rstrip())
        token = current.set(self._scope)
        try:
            return message(made.form(tuple(inputs)), value, tuple(inputs.values()))
        finally:
            current.reset(token)

    @property
    def roots(self) -> list[Node]:
        """The nodes without parents."""
        return [node for node in self.nodes if node.is_root]

    def name_nodes(self) -> None:
        """Names all nodes so far, in order of creation."""
        self.names.give_all(self.nodes[self._named :])
        self._named = len(self.nodes)

    def get(self, name: str) -> Any:
        """The node called `name` (`add:0`). Raises KeyError."""
        self.name_nodes()
        return self.names.get(name)

    def clear(self, at_most: int | None = None) -> bool:
        """Forgets all nodes and cuts them from their parents, so that a node that a program keeps doesn't keep its past.

        With `at_most`, it forgets only so many and tells whether there are more.
        """
        first = 0 if at_most is None else max(0, len(self.nodes) - at_most)
        for node in self.nodes[first:]:
            node._inputs = ()
            if node._extra is not None:
                node._extra.inner = node._extra.feedback = None
        del self.nodes[first:]
        self.names.clear()
        self._named = 0
        return bool(self.nodes)

    def to_dot(self, **options: Any) -> str:
        """The graph in Graphviz's language (see agentd.trace.pictures)."""
        return self._picture(options).to_dot()

    def to_mermaid(self, **options: Any) -> str:
        """The graph in Mermaid's language."""
        return self._picture(options).to_mermaid()

    def to_html(self, **options: Any) -> str:
        """The graph as one HTML page that needs nothing else."""
        return self._picture(options).to_html()

    def _picture(self, options: dict[str, Any]) -> Picture:
        from agentd.trace.pictures import picture  # noqa: PLC0415 - few draw

        return picture(self, **options)


class GraphFacade:
    """`GRAPH`: whatever graph is current. Outside an episode it is the implicit root, which owns nothing: it sees what is alive."""

    @property
    def current(self) -> Graph | None:
        """The current graph, or None outside an episode."""
        reference = current.get().origin.graph
        return reference() if reference is not None else None

    @property
    def TRACE(self) -> bool:  # noqa: N802 - Trace's name
        """Whether operations are traced in this context."""
        return current.get().tracing

    @property
    def nodes(self) -> list[Node]:
        """The nodes of the current graph; outside, all living ones that were made outside (found by the garbage collector's list)."""
        graph = self.current
        if graph is not None:
            return graph.nodes
        return [item for item in gc.get_objects() if isinstance(item, Node) and item._origin.graph is None]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    def __bool__(self) -> bool:
        return True

    @property
    def roots(self) -> list[Node]:
        """The nodes without parents."""
        return [node for node in self.nodes if node.is_root]

    def get(self, name: str) -> Any:
        """The node called `name`. Raises KeyError."""
        graph = self.current
        if graph is not None:
            return graph.get(name)
        root_names.give_all(self.nodes)
        return root_names.get(name)

    def clear(self) -> None:
        """Clears the current graph. Outside it only frees the names: the nodes are freed with their users."""
        graph = self.current
        if graph is not None:
            graph.clear()
        else:
            root_names.clear()

    def __str__(self) -> str:
        graph = self.current
        return f"{'an episode graph' if graph is not None else 'the root'} of {len(self)} nodes"


GRAPH = GraphFacade()
