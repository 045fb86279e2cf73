"""The rule by default: parameters learn in which graph they had a part, and what was said of its outputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from agentd.trace.core import AbstractNode
from agentd.trace.nodes import MessageNode, Node
from agentd.trace.propagation import parameters_of, subgraph
from agentd.trace.propagators.propagators import AbstractFeedback, Propagator, moments

T = TypeVar("T")


class TraceGraph(AbstractFeedback):
    """What GraphPropagator brings to a parameter: outputs with the user's feedback, and (when asked) their minimal subgraph.

    Each root gets its own: the paths from there. Adding two puts roots and cases together: the problem of several parameters, and of
    several outputs, each with its own feedback. Programs with propagators of their own make them of nodes with levels: these show too.
    """

    def __init__(self, graph: Sequence[tuple[int, Node]] = (), user_feedback: Any = None) -> None:
        self._given = tuple(node for _, node in graph)
        self._roots: tuple[AbstractNode, ...] = ()
        self._cases: tuple[tuple[int, AbstractNode, Any], ...] = ()
        if graph and user_feedback is not None:
            self._cases = ((next(moments), max(graph, key=lambda item: item[0])[1], user_feedback),)

    def of(self, *roots: AbstractNode) -> TraceGraph:
        """The same as these roots see it: the paths from them only."""
        made = TraceGraph()
        made._given, made._cases, made._roots = self._given, self._cases, roots
        return made

    @property
    def cases(self) -> list[tuple[AbstractNode, Any]]:
        """Outputs with the user's feedback on them, in the order in which it was given."""
        return [(output, feedback) for _, output, feedback in self._cases]

    @property
    def timed_cases(self) -> tuple[tuple[int, AbstractNode, Any], ...]:
        """As `cases`, each with the moment at which it was given: a count that goes up, and is the same wherever the case arrives."""
        return self._cases

    @property
    def user_feedback(self) -> Any:
        """The feedback where there is one case; with several, a list in their order; None without any."""
        if not self._cases:
            return None
        return self._cases[0][2] if len(self._cases) == 1 else [feedback for _, _, feedback in self._cases]

    @functools.cached_property
    def nodes(self) -> list[Node]:
        """The nodes of the minimal subgraph, parents first."""
        found = subgraph([output for output, _ in self.cases], self._roots) if self.cases else []
        known = {id(node) for node in found}
        return [*(node for node in self._given if id(node) not in known), *found]

    @functools.cached_property
    def graph(self) -> list[tuple[int, Node]]:
        """As `nodes`, with levels, sorted by level."""
        height: dict[int, int] = {}
        for node in self.nodes:
            above = [height[id(value)] for value in node._inputs if isinstance(value, Node) and id(value) in height]
            height[id(node)] = 1 + max(above, default=-1)
        return sorted(((height[id(node)], node) for node in self.nodes), key=lambda item: item[0])

    def empty(self) -> bool:
        """Whether nothing has arrived."""
        return not self._cases and not self._given

    def __add__(self, other: TraceGraph) -> TraceGraph:
        cases = _union(self._cases, other._cases, key=lambda case: case[0])
        roots, given = _union(self._roots, other._roots, key=id), _union(self._given, other._given, key=id)
        if cases is self._cases and roots is self._roots and given is self._given:
            return self
        total = TraceGraph()
        total._cases, total._roots, total._given = tuple(sorted(cases, key=lambda case: case[0])), roots, given
        return total

    def __len__(self) -> int:
        return len(self.nodes)

    def __iter__(self) -> Iterator[tuple[int, Node]]:
        return iter(self.graph)

    @classmethod
    def expand(cls, node: MessageNode) -> TraceGraph:
        """The subgraph within a traceable bundle's result; empty for others."""
        if node._extra is None or node._extra.inner is None:
            return cls()
        result, inputs = node._extra.inner
        return cls([(0, result)], "").of(*inputs, *parameters_of(result))  # type: ignore[list-item]  # every node is a Node

    def visualize(self, simple_visualization: bool = True, reverse_plot: bool = False, print_limit: int = 100) -> Any:
        """A Picture of it (agentd.trace.pictures)."""
        from agentd.trace.pictures import picture  # noqa: PLC0415 - few draw

        return picture(self.nodes, simple=simple_visualization, reverse=reverse_plot, print_limit=print_limit)


class GraphPropagator(Propagator):
    """Brings to each parameter (and each other root) the outputs that it had a part in, with their feedback."""

    def init_feedback(self, node: AbstractNode, feedback: Any) -> TraceGraph:
        """One case: `feedback` on `node`."""
        made = TraceGraph()
        made._cases = ((next(moments), node, feedback),)
        return made

    def _propagate(self, child: MessageNode) -> Mapping[Node, Any]:
        total = self.aggregate(child.feedback)
        return {parent: total if parent._inputs else total.of(parent) for parent in child._inputs if isinstance(parent, Node)}

    @staticmethod
    def aggregate(feedback: Mapping[Any, list[Any]]) -> TraceGraph:
        """The cases that the children sent, together."""
        return functools.reduce(TraceGraph.__add__, [item for items in feedback.values() for item in items], TraceGraph())

    def run(self, outputs: Sequence[tuple[AbstractNode, Any]], roots: Sequence[Any]) -> None:
        """As Propagator.run; for one output without exceptions each root is told directly."""
        if self.override or len(outputs) != 1:
            super().run(outputs, roots)
            return
        output, feedback = outputs[0]
        made = self.init_feedback(output, feedback)
        for node in roots:
            node._add_feedback(output, made.of(node))


def _union(first: tuple[T, ...], second: tuple[T, ...], key: Callable[[T], Any]) -> tuple[T, ...]:
    """Both without doubles; `first` itself where it has everything."""
    known = {key(item) for item in first}
    new = tuple(item for item in second if key(item) not in known)
    return first + new if new else first
