"""The rule by default: parameters learn in which graph they had a part, and what was said of its outputs."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agentd.trace.core import AbstractNode
from agentd.trace.nodes import MessageNode, Node
from agentd.trace.propagation import subgraph
from agentd.trace.propagators.propagators import AbstractFeedback, Propagator, moments


class TraceGraph(AbstractFeedback):
    """What GraphPropagator brings to a parameter: outputs with the user's feedback, and (when asked) their minimal subgraph.

    Adding two puts their cases together: several outputs, each with its own feedback.
    """

    def __init__(self, cases: Sequence[tuple[AbstractNode, Any]] = ()) -> None:
        self._cases = tuple((next(moments), output, feedback) for output, feedback in cases)

    @property
    def cases(self) -> list[tuple[AbstractNode, Any]]:
        """Outputs with the user's feedback on them, in the order in which it was given."""
        return [(output, feedback) for _, output, feedback in self._cases]

    @property
    def user_feedback(self) -> Any:
        """The feedback where there is one case; with several, a list in their order; None without any."""
        if not self._cases:
            return None
        return self._cases[0][2] if len(self._cases) == 1 else [feedback for _, _, feedback in self._cases]

    @functools.cached_property
    def nodes(self) -> list[Node]:
        """The nodes of the minimal subgraph, parents first."""
        return subgraph([output for output, _ in self.cases]) if self.cases else []

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
        return not self._cases

    def __add__(self, other: TraceGraph) -> TraceGraph:
        known = {case[0] for case in self._cases}
        new = [case for case in other._cases if case[0] not in known]
        if not new:
            return self
        total = TraceGraph()
        total._cases = tuple(sorted((*self._cases, *new), key=lambda case: case[0]))
        return total

    def __len__(self) -> int:
        return len(self.nodes)

    def __iter__(self) -> Iterator[tuple[int, Node]]:
        return iter(self.graph)

    @classmethod
    def expand(cls, node: MessageNode) -> TraceGraph:
        """The subgraph within a traceable bundle's result; empty for others."""
        inner = node._extra.inner if node._extra is not None else None
        return cls([(inner[0], "")]) if inner is not None else cls()

    def visualize(self, simple_visualization: bool = True, reverse_plot: bool = False, print_limit: int = 100) -> Any:
        """A Picture of it (agentd.trace.pictures)."""
        from agentd.trace.pictures import picture  # noqa: PLC0415 - few draw

        return picture(self.nodes, simple=simple_visualization, reverse=reverse_plot, print_limit=print_limit)


class GraphPropagator(Propagator):
    """Brings to each parameter (and each other root) the outputs that it had a part in, with their feedback."""

    def init_feedback(self, node: AbstractNode, feedback: Any) -> TraceGraph:
        """One case: `feedback` on `node`."""
        return TraceGraph([(node, feedback)])

    def _propagate(self, child: MessageNode) -> Mapping[Node, Any]:
        total = self.aggregate(child.feedback)
        return dict.fromkeys((parent for parent in child._inputs if isinstance(parent, Node)), total)

    @staticmethod
    def aggregate(feedback: Mapping[Any, list[Any]]) -> TraceGraph:
        """The cases that the children sent, together."""
        return functools.reduce(TraceGraph.__add__, [item for items in feedback.values() for item in items], TraceGraph())

    def run(self, outputs: Sequence[tuple[AbstractNode, Any]], roots: Sequence[Any]) -> None:
        """As Propagator.run; for one output without exceptions each root is told directly."""
        if self.override or len(outputs) != 1:
            super().run(outputs, roots)
            return
        # One output and no exceptions: every ancestor gets the same, so only the roots need to be told.
        output, feedback = outputs[0]
        made = self.init_feedback(output, feedback)
        for node in roots:
            node._add_feedback(output, made)
