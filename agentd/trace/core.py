"""What every node is: a value, what it was computed from, and a form shared with all nodes that the same operator made.

Everything else (names, descriptions, children, levels) is computed on demand, so that an operation costs about half a microsecond and 200
bytes. Nodes point at their parents only: a graph is freed with its last user.
"""

from __future__ import annotations

import builtins
import copy
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypeVar

from agentd.trace.context import Origin, current
from agentd.trace.forms import Form, Operator
from agentd.trace.values import check_value

if TYPE_CHECKING:
    from typing_extensions import TypeVar as DefaultingTypeVar

    from agentd.trace.nodes import MessageNode, Node, ParameterNode

    T = DefaultingTypeVar("T", default=Any)
else:
    T = TypeVar("T")

_once = threading.Lock()  # threads that know nothing of each other share parameters

ROOT_FORM = Operator("Node", "[Node] This is a node in a computational graph.").form(())
PARAMETER_FORM = Operator("ParameterNode", "[ParameterNode] This is a ParameterNode in a computational graph.").form(())


class Extra:
    """What few nodes have: kept apart, so that the many stay small."""

    __slots__ = ("bounds", "choices", "code", "constraint", "description", "feedback", "info", "inner", "path", "projections")

    def __init__(self) -> None:
        self.description: str | None = None
        self.constraint: str | None = None
        self.info: dict[str, Any] | None = None
        self.feedback: defaultdict[Any, list[Any]] | None = None
        self.bounds: tuple[float | None, float | None] | None = None
        self.choices: tuple[Any, ...] | None = None
        self.path: str | None = None
        self.projections: tuple[Callable[[Any], Any], ...] = ()
        self.code: Any = None  # for code parameters: the compiled function and what it belongs to (agentd.trace.code)
        self.inner: tuple[AbstractNode, tuple[AbstractNode, ...]] | None = (
            None  # for traceable bundles: the inner result and the inner inputs
        )


class AbstractNode(Generic[T]):
    """A value in the graph. `description` may start with `[name]`.

    Equality compares values, hashing goes by identity (so that nodes of unhashable values can be
    keys), truth is the value's: all three as in Trace.
    """

    __slots__ = ("__weakref__", "_backwarded", "_data", "_extra", "_form", "_inputs", "_name", "_origin")

    _data: Any
    _form: Form
    _origin: Origin
    _backwarded: object | None  # the mark of the backward that went through it
    _inputs: tuple[Any, ...]
    _extra: Extra | None
    _name: str | None

    def __init__(
        self,
        value: Any,
        *,
        name: str | None = None,
        trainable: bool = False,
        description: str | None = None,
        constraint: str | None = None,
        info: dict[str, Any] | None = None,
    ) -> None:
        scope = current.get()
        if isinstance(value, AbstractNode):
            name = name or value._base
            value = value._data
        self._data = value
        self._inputs = ()
        self._form = PARAMETER_FORM if trainable else ROOT_FORM
        self._origin = scope.origin
        self._name = None if name is None else str(name)
        self._extra = None
        self._backwarded = None
        if description or constraint is not None or info is not None:
            extra = self._more()
            if description:
                operator = self._form.operator
                extra.description = description if description.lstrip().startswith("[") else f"[{operator.name}] {description.strip()}"
            extra.constraint, extra.info = constraint, info
        if not trainable:  # parameters belong to no graph
            scope.append(self)

    def _more(self) -> Extra:
        if self._extra is None:
            with _once:
                if self._extra is None:
                    self._extra = Extra()
        return self._extra

    # --- what it is ---

    @property
    def data(self) -> T:
        """The value. Reading it inside a bundle's function makes this node a dependency that the bundle must have been given."""
        reads = current.get().reads
        if reads is not None:
            reads.append(self)
        return self._data  # type: ignore[no-any-return]  # the slot holds a T

    def _touch(self) -> Any:
        """The value, for conversions and decisions: a bundle that runs depends on it silently."""
        touched = current.get().touched
        if touched is not None:
            touched.append(self)
        return self._data

    @property
    def trainable(self) -> bool:
        """Whether an optimizer may change it."""
        return self._form is PARAMETER_FORM

    @property
    def type(self) -> builtins.type:
        """The class of the value."""
        return type(self._data)

    @property
    def description(self) -> str:
        """What it is, in words, after its `[operator]`."""
        return (self._extra and self._extra.description) or self._form.operator.description

    @property
    def constraint(self) -> str | None:
        """What the value must obey, in words."""
        return self._extra.constraint if self._extra else None

    _constraint = constraint

    @property
    def info(self) -> Any:
        """More about it: what was passed as `info`, or for operations a fresh dict of function, documentation, source, inputs, output."""
        if self._extra and self._extra.info is not None:
            return self._extra.info
        from agentd.trace.details import details  # noqa: PLC0415 - needed by few programs, and imports this module

        return details(self)

    # --- names ---

    @property
    def _base(self) -> str:
        if self._name is not None:
            return self._name.rsplit(":", 1)[0]
        return type(self._data).__name__

    @property
    def name(self) -> str:
        """`base:number`, unique in its graph; numbered when first asked for, in order of creation."""
        if self._name is None or ":" not in self._name:
            from agentd.trace.naming import give_name  # noqa: PLC0415 - as details

            give_name(self)
        return self._name  # type: ignore[return-value]  # give_name has set it

    @property
    def py_name(self) -> str:
        """The name as an identifier in prompts: `add:3` is `add3`."""
        return self.name.replace(":", "")

    @property
    def id(self) -> str:
        """The number in the name."""
        return self.name.rsplit(":", 1)[1]

    # --- the graph around it ---

    @property
    def parents(self) -> list[Node]:
        """The nodes that it was computed from, without hidden ones."""
        return [*self.inputs.values()]

    @property
    def inputs(self) -> dict[str, Node]:
        """Its parents by argument name."""
        inputs = self._inputs
        if inputs and not all(isinstance(value, AbstractNode) for value in inputs):
            self._inputs = inputs = self._wrap_inputs()
        return dict(zip(self._form.arguments, inputs, strict=False))

    def _wrap_inputs(self) -> tuple[Any, ...]:
        """Plain values among the inputs become nodes of their own, named after the arguments of bundles."""
        named = self._form.operator.module is not None
        names = self._form.arguments
        return tuple(
            value if isinstance(value, AbstractNode) else self._constant(value, names[index] if named else None)
            for index, value in enumerate(self._inputs)
        )

    def _constant(self, value: Any, name: str | None) -> Node:
        """A plain input as a node of its own, made when somebody looks, outside the order of creation."""
        from agentd.trace.nodes import Node  # noqa: PLC0415 - as details

        made: Node = object.__new__(Node)
        made._data, made._inputs, made._form, made._origin = value, (), ROOT_FORM, self._origin
        made._name, made._extra, made._backwarded = name, None, None
        return made

    @property
    def children(self) -> list[Node]:
        """The nodes of the current graph that were computed from it (computed: nodes hold no children)."""
        from agentd.trace.graph import GRAPH  # noqa: PLC0415 - as details

        return [other for other in GRAPH if any(value is self for value in other._inputs)]

    @property
    def is_root(self) -> bool:
        """Whether it has no parents."""
        return not self._inputs

    @property
    def is_leaf(self) -> bool:
        """Whether nothing in the current graph was computed from it."""
        return not self.children

    @property
    def level(self) -> int:
        """The length of the longest path to it from a root."""
        from agentd.trace.propagation import levels  # noqa: PLC0415 - as details

        return levels(self)[-1]

    @property
    def parameter_dependencies(self) -> set[ParameterNode]:
        """The parameters it was computed from along visible parents."""
        from agentd.trace.propagation import visible_parameters  # noqa: PLC0415 - as details

        return visible_parameters(self)

    @property
    def expandable_dependencies(self) -> set[MessageNode]:
        """The nodes it was computed from (itself included) that have hidden dependencies."""
        from agentd.trace.propagation import expandable  # noqa: PLC0415 - as details

        return expandable(self)

    # --- feedback ---

    @property
    def feedback(self) -> defaultdict[Any, list[Any]]:
        """What `backward` brought here: lists of feedback by the child that it came from."""
        extra = self._more()
        if extra.feedback is None:
            with _once:
                if extra.feedback is None:
                    extra.feedback = defaultdict(list)
        return extra.feedback

    _feedback = feedback

    def zero_feedback(self) -> None:
        """Forgets the feedback."""
        if self._extra:
            self._extra.feedback = None

    def _add_feedback(self, child: Any, feedback: Any) -> None:
        self.feedback[child].append(feedback)

    def backward(
        self,
        feedback: Any = "",
        propagator: Any = None,
        retain_graph: bool = False,
        visualize: bool = False,
        simple_visualization: bool = True,
        reverse_plot: bool = False,
        print_limit: int = 100,
    ) -> Any:
        """Carries `feedback` on this node back to everything it was computed from, in O(nodes + edges).

        Afterwards each parameter's `feedback` holds what the propagator made of it (default: the minimal subgraph from the parameters to
        here, with the feedback). With `visualize` it returns a Picture (agentd.trace.pictures), else None.
        Raises BackwardError where an operation has been propagated already without `retain_graph`.
        """
        from agentd.trace.propagation import backward  # noqa: PLC0415 - as details

        backward([(self, feedback)], propagator, retain_graph=retain_graph)
        if not visualize:
            return None
        from agentd.trace.pictures import picture  # noqa: PLC0415 - as details

        return picture(self, simple=simple_visualization, reverse=reverse_plot, print_limit=print_limit, feedback=str(feedback))

    # --- changing and copying ---

    def _set(self, value: Any) -> None:
        """Replaces the value, untraced. Raises TraceError for what bounds or choices refuse."""
        value = value._data if isinstance(value, AbstractNode) else value
        if self._extra:
            for projection in self._extra.projections:
                value = projection(value)
            check_value(value, self._extra.bounds, self._extra.choices)
        self._data = value

    def detach(self) -> Self:
        """A deep copy without parents."""
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        made = object.__new__(type(self))
        memo[id(self)] = made
        made._data = copy.deepcopy(self._data, memo)
        made._inputs = ()
        made._form = self._form
        made._origin = self._origin
        made._name = None if self._name is None else self._base.removeprefix(self._origin.prefix)
        made._backwarded = None
        made._extra = None
        if self._extra:
            made._extra = extra = copy.copy(self._extra)
            extra.feedback = extra.inner = None
            if extra.code is not None:
                extra.code = copy.copy(extra.code)  # what it means now; it is changed independently
        return made

    def __copy__(self) -> Self:
        return self.__deepcopy__({id(self._data): self._data})

    def __reduce__(self) -> NoReturn:
        raise TypeError("nodes are not pickled: save parameters with Module.save, graphs with agentd.trace.export")

    def __eq__(self, other: object) -> Any:
        return self._touch() == (other._touch() if isinstance(other, AbstractNode) else other)

    def __ne__(self, other: object) -> Any:
        return self._touch() != (other._touch() if isinstance(other, AbstractNode) else other)

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        return bool(self._touch())

    # --- leaving the graph ---

    def _convert(self, kind: Callable[[Any], Any]) -> Any:
        """Conversions lose the graph, except where a bundle that runs notes them: elsewhere they are refused, as in Trace."""
        if current.get().touched is None:
            raise TypeError("to convert a node would leave the graph: use .data, or convert inside a bundle")
        return kind(self._touch())

    def __int__(self) -> int:
        return self._convert(int)  # type: ignore[no-any-return]  # int() gives an int

    def __float__(self) -> float:
        return self._convert(float)  # type: ignore[no-any-return]  # float() gives a float

    def __complex__(self) -> complex:
        return self._convert(complex)  # type: ignore[no-any-return]  # complex() gives a complex

    def __index__(self) -> int:
        return self._convert(_index)  # type: ignore[no-any-return]  # operator.index gives an int

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        del copy  # numpy asks; the value's own array is made anew where needed
        import numpy as np  # noqa: PLC0415 - it is numpy that asks

        return self._convert(lambda value: np.asarray(value, dtype=dtype))

    def __str__(self) -> str:
        return f"{type(self).__name__}: ({self.name}, dtype={type(self._data)}, data={self._touch()})"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}={self._data!r:.80}>"


def _index(value: Any) -> int:
    return value.__index__()  # type: ignore[no-any-return]  # the protocol says int
