"""The rules by which feedback goes back: the base of all, and the sum.

A propagator sees one node at a time, children before parents, with the feedback of its children by child, and says what its parents get.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from agentd.errors import TraceError
from agentd.trace.core import AbstractNode
from agentd.trace.forms import get_op_name
from agentd.trace.nodes import MessageNode, Node
from agentd.trace.propagation import topological

ORACLE = "user"
"""The child that the user's own feedback comes from."""

moments = itertools.count()  # orders feedback by when it was given, whatever way it came

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
        return _Texts(((next(moments), feedback),)) if isinstance(feedback, str) else feedback

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
