"""What feedback becomes on its way back: the minimal subgraph with the feedback on it, a sum, or what a program registers.

A propagator sees one node at a time, children before parents, with the feedback of its children by child, and says what its parents get.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

from agentd.errors import TraceError
from agentd.trace.core import AbstractNode
from agentd.trace.forms import get_op_name
from agentd.trace.nodes import MessageNode, Node
from agentd.trace.propagation import subgraph, topological

__all__ = ["AbstractFeedback", "AbstractPropagator", "GraphPropagator", "Propagator", "SumPropagator", "TraceGraph"]

ORACLE = "user"
"""The child that the user's own feedback comes from."""

_moments = itertools.count()  # orders feedback by when it was given, whatever way it came

Propagate = Callable[[Any], Mapping[Node, Any]]


class AbstractFeedback:
    """Feedback that can be added up; `sum` works on it."""

    def __add__(self, other: Any) -> Any:
        raise TypeError(f"{type(self).__name__} can't be added to {type(other).__name__}")

    def __radd__(self, other: Any) -> Any:
        return self if other == 0 else self.__add__(other)


class AbstractPropagator:
    """Gives, for one node, the feedback of its parents."""

    def __call__(self, child: MessageNode) -> Mapping[Node, Any]:
        """As propagate. Raises TraceError where a parent is left out."""
        propagated = self.propagate(child)
        visible = child._inputs[: len(child._form.arguments)]
        missing = [parent.name for parent in visible if isinstance(parent, Node) and parent not in propagated]
        if missing:
            raise TraceError(f"the propagator gives no feedback for {', '.join(missing)}, of which {child.name} was computed")
        return propagated

    def propagate(self, child: MessageNode) -> Mapping[Node, Any]:
        """The feedback for each of `child.parents`, made from `child.feedback`."""
        del child
        raise TypeError(f"{type(self).__name__} does not say how to propagate")


class Propagator(AbstractPropagator):
    """A rule for all operators, with exceptions by operator name (`register`)."""

    def __init__(self) -> None:
        self.override: dict[str, Propagate] = {}

    def register(self, operator_name: str, propagate_function: Propagate) -> None:
        """From now on nodes of `operator_name` are propagated by `propagate_function(child) -> {parent: feedback}`."""
        self.override[operator_name] = propagate_function

    def propagate(self, child: MessageNode) -> Mapping[Node, Any]:
        """By the rule that is registered for the child's operator, else by the general one."""
        override = self.override.get(get_op_name(child.description)) if self.override else None
        return self._propagate(child) if override is None else override(child)

    def init_feedback(self, node: AbstractNode, feedback: Any) -> Any:
        """What is carried back, made from the user's feedback on `node`."""
        del node
        return feedback

    def _propagate(self, child: MessageNode) -> Mapping[Node, Any]:
        del child
        raise TypeError(f"{type(self).__name__} does not say how to propagate")

    def run(self, outputs: Sequence[tuple[AbstractNode, Any]], roots: Sequence[Any]) -> None:
        """The reverse sweep: children before parents, each node once; roots keep what arrives, the others pass it on.

        `roots` are the nodes without parents among what the outputs were computed from.
        """
        del roots
        order, parents = topological([output for output, _ in outputs])
        for output, feedback in outputs:
            output._add_feedback(ORACLE, self.init_feedback(output, feedback))
        for index in range(len(order) - 1, -1, -1):
            child = order[index]
            if not isinstance(child, MessageNode) or not child._inputs or child._extra is None or not child._extra.feedback:
                continue
            propagated = self(child)
            child.zero_feedback()
            given = {id(order[above]) for above in parents[index]}
            for parent, feedback in propagated.items():
                if id(parent) in given:
                    parent._add_feedback(child, feedback)


class SumPropagator(Propagator):
    """Numbers add up over all paths; texts come together, each once, in the order in which they were given."""

    def init_feedback(self, node: AbstractNode, feedback: Any) -> Any:
        """Texts remember when they were given; numbers are what they are."""
        del node
        return _Texts(((next(_moments), feedback),)) if isinstance(feedback, str) else feedback

    def _propagate(self, child: MessageNode) -> Mapping[Node, Any]:
        total = self.aggregate(child.feedback)
        return dict.fromkeys((parent for parent in child._inputs if isinstance(parent, Node)), total)

    @staticmethod
    def aggregate(feedback: Mapping[Any, list[Any]]) -> Any:
        """The sum of what the children sent. Raises TraceError for feedback of several kinds."""
        received = [item for items in feedback.values() for item in items]
        texts = [item for item in received if isinstance(item, _Texts)]
        if len(texts) == len(received) and texts:
            return functools.reduce(_Texts.joined, texts)
        try:
            return sum(received[1:], received[0])
        except TypeError as error:
            raise TraceError(f"feedback of several kinds can't be added up: {error}") from error


class _Texts(str):
    """Texts joined into one, remembering the parts: along a hundred paths comes one text, not a hundred."""

    __slots__ = ("parts",)
    parts: tuple[tuple[int, str], ...]

    def __new__(cls, parts: tuple[tuple[int, str], ...]) -> Self:
        made = super().__new__(cls, "".join(text for _, text in parts))
        made.parts = parts
        return made

    def joined(self, other: _Texts) -> _Texts:
        if set(other.parts) <= set(self.parts):
            return self
        return _Texts(tuple(sorted({*self.parts, *other.parts})))


class TraceGraph(AbstractFeedback):
    """What GraphPropagator brings to a parameter: outputs with the user's feedback, and (when asked) their minimal subgraph.

    Adding two puts their cases together: several outputs, each with its own feedback.
    """

    def __init__(self, cases: Sequence[tuple[AbstractNode, Any]] = ()) -> None:
        self._cases = tuple((next(_moments), output, feedback) for output, feedback in cases)

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
