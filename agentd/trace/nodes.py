"""The kinds of nodes: inputs, parameters, results and errors; and `node`, which makes the first two."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from agentd.errors import TraceError
from agentd.trace.context import current
from agentd.trace.core import PARAMETER_FORM, AbstractNode
from agentd.trace.forms import IDENTITY_OPERATORS, Operator, get_op_name
from agentd.trace.operations import Made, OperableNode, apply, error_message, message, raise_error, unwrap
from agentd.trace.values import check_bounds, check_choices, check_value

if TYPE_CHECKING:
    from typing_extensions import TypeVar as DefaultingTypeVar

    T = DefaultingTypeVar("T", default=Any)
else:
    T = TypeVar("T")

__all__ = [
    "IDENTITY_OPERATORS",
    "AbstractNode",
    "ExceptionNode",
    "MessageNode",
    "Node",
    "ParameterNode",
    "apply",
    "error_message",
    "get_op_name",
    "message",
    "node",
    "raise_error",
    "unwrap",
]


class Node(OperableNode[T]):
    """A value in the graph: an input, or (as MessageNode) what an operation made of others."""

    __slots__ = ()


class ParameterNode(Node[T]):
    """A node that an optimizer may change. It belongs to no graph, and is known by its attribute path in the program.

    `bounds` is (low, high), either may be None; `choices` are the only values allowed; `projections` are applied to what is set.
    Raises TraceError for a value outside.
    """

    __slots__ = ()

    def __init__(
        self,
        value: Any,
        *,
        name: str | None = None,
        trainable: bool = True,
        description: str | None = None,
        constraint: str | None = None,
        info: dict[str, Any] | None = None,
        bounds: tuple[float | None, float | None] | None = None,
        choices: Sequence[Any] | None = None,
        projections: Sequence[Callable[[Any], Any]] = (),
    ) -> None:
        super().__init__(value, name=name, trainable=True, description=description, constraint=constraint, info=info)
        if not trainable:
            self._form = _FROZEN_FORM
        if bounds is not None or choices is not None or projections:
            extra = self._more()
            extra.projections = tuple(projections)
            extra.bounds = None if bounds is None else check_bounds(bounds)
            extra.choices = None if choices is None else check_choices(choices)
            check_value(self._data, extra.bounds, extra.choices)

    @property
    def bounds(self) -> tuple[float | None, float | None] | None:
        """The lowest and the highest value allowed."""
        return self._extra.bounds if self._extra else None

    @property
    def choices(self) -> tuple[Any, ...] | None:
        """The only values allowed."""
        return self._extra.choices if self._extra else None

    @property
    def path(self) -> str | None:
        """Its attribute path in the program in which find_parameters found it."""
        return self._extra.path if self._extra else None


class MessageNode(Node[T]):
    """What an operation made of its inputs. `description` starts with `[operator]` and speaks of the inputs by name."""

    __slots__ = ()

    def __init__(
        self,
        value: Any,
        *,
        inputs: Sequence[Node] | Mapping[str, Node],
        description: str,
        constraint: str | None = None,
        name: str | None = None,
        info: dict[str, Any] | None = None,
    ) -> None:
        named = dict(inputs) if isinstance(inputs, Mapping) else {parent.name: parent for parent in inputs}
        for key, parent in named.items():
            if not isinstance(parent, Node):
                raise TypeError(f"input {key} of a MessageNode is a {type(parent).__name__}, not a node")
        operator = get_op_name(description) if description.lstrip().startswith("[") else type(self).__name__
        super().__init__(value, name=name, constraint=constraint, info=info)
        self._form = Operator(operator, description).form(tuple(named))
        self._inputs = tuple(named.values()) if current.get().tracing else ()

    @property
    def _base(self) -> str:
        return self._form.operator.name if self._name is None else self._name.rsplit(":", 1)[0]

    @property
    def hidden(self) -> tuple[Node, ...]:
        """Nodes that its computation read without being given them: parents that don't show as arguments."""
        return self._inputs[len(self._form.arguments) :]

    @property
    def hidden_dependencies(self) -> set[ParameterNode]:
        """The parameters it was computed from that its visible parents don't show."""
        from agentd.trace.propagation import hidden_parameters  # noqa: PLC0415 - as details

        return hidden_parameters(self)


class ExceptionNode(MessageNode[T]):
    """An operation that raised. Its value is the message, `(class) text`."""

    __slots__ = ()

    def __init__(
        self,
        value: Exception,
        *,
        inputs: Sequence[Node] | Mapping[str, Node],
        description: str = "[ExceptionNode] This is node containing the error of execution.",
        constraint: str | None = None,
        name: str | None = None,
        info: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(error_message(value), inputs=inputs, description=description, constraint=constraint, name=name, info=info)

    @property
    def _base(self) -> str:
        return f"exception_{self._form.operator.name}" if self._name is None else self._name.rsplit(":", 1)[0]

    def create_feedback(self, style: str = "simple") -> str:
        """What to tell an optimizer: "simple" is the message, "full" the source with the failing line commented."""
        if style not in ("simple", "full"):
            raise ValueError(f"style is simple or full, not {style!r}")
        info = self._extra.info if self._extra else None
        comment = info.get("error_comment") if style == "full" and info else None
        return comment or str(self._data)


_FROZEN_FORM = Operator("ParameterNode", PARAMETER_FORM.operator.description).form(())
Made.message, Made.exception = MessageNode, ExceptionNode


def node(
    data: Any,
    name: str | None = None,
    trainable: bool = False,
    description: str | None = None,
    constraint: str | None = None,
    *,
    bounds: tuple[float | None, float | None] | None = None,
    choices: Sequence[Any] | None = None,
    projections: Sequence[Callable[[Any], Any]] = (),
) -> Any:
    """A node of `data`; a ParameterNode where `trainable`. A node stays itself, unless it is to become trainable: then its value is taken.

    `bounds` (low, high) and `choices` limit what an optimizer may set; `projections` bring what it sets to a form.
    Raises TraceError where `data` is outside of bounds or choices already.
    """
    if trainable:
        if isinstance(data, Node):
            name = name or data.name.rsplit(":", 1)[0]
        return ParameterNode(
            data, name=name, description=description, constraint=constraint, bounds=bounds, choices=choices, projections=projections
        )
    if bounds is not None or choices is not None or projections:
        raise TraceError("bounds, choices and projections are for trainable nodes")
    if isinstance(data, Node):
        if name is not None:
            warnings.warn(f"the name {name} is ignored: the data is a node already", stacklevel=2)
        return data
    return Node(data, name=name, description=description, constraint=constraint)


def __getattr__(name: str) -> Any:
    if name in ("GRAPH", "Graph"):  # where Trace has them
        from agentd.trace import graph  # noqa: PLC0415 - it imports this module

        return getattr(graph, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
