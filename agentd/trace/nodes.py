"""Nodes: values that remember what they were computed from.

A node holds its value, the tuple of what it was computed from (nodes, or plain values that become nodes when somebody looks) and a form
shared with all nodes that the same operator made. Everything else (names, descriptions, children, levels) is computed on demand, so that an
operator costs about half a microsecond and 200 bytes. Nodes point at their parents only: a graph is freed with its last user.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from agentd.errors import TraceError
from agentd.trace.context import current
from agentd.trace.errors import ExecutionError, execution_error
from agentd.trace.forms import IDENTITY_OPERATORS, Form, Operator, get_op_name
from agentd.trace.primitives import ARGUMENTS, PRIMITIVES

if TYPE_CHECKING:
    from typing_extensions import TypeVar as DefaultingTypeVar

    T = DefaultingTypeVar("T", default=Any)
else:
    T = TypeVar("T")

__all__ = [
    "IDENTITY_OPERATORS",
    "ExceptionNode",
    "MessageNode",
    "Node",
    "ParameterNode",
    "get_op_name",
    "message",
    "node",
]

_ROOT_FORM = Operator("Node", "[Node] This is a node in a computational graph.").form(())
_PARAMETER_FORM = Operator("ParameterNode", "[ParameterNode] This is a ParameterNode in a computational graph.").form(())


class Extra:
    """What few nodes have: kept apart, so that the many stay small."""

    __slots__ = ("bounds", "choices", "code", "constraint", "description", "feedback", "info", "inner", "path")

    def __init__(self) -> None:
        self.description: str | None = None
        self.constraint: str | None = None
        self.info: dict[str, Any] | None = None
        self.feedback: defaultdict[Any, list[Any]] | None = None
        self.bounds: tuple[float | None, float | None] | None = None
        self.choices: tuple[Any, ...] | None = None
        self.path: str | None = None
        self.code: Any = None  # for code parameters: the compiled function and what it belongs to (agentd.trace.code)
        self.inner: tuple[Node, tuple[Node, ...]] | None = None  # for traceable bundles: the inner result and the inner inputs


def _binary(name: str, *, reflected: bool = False) -> Callable[[Any, Any], Any]:
    operator = PRIMITIVES[name]
    form, function = operator.form(ARGUMENTS[name]), operator.function
    assert function is not None  # noqa: S101 - every primitive has one; for the type checker

    if reflected:

        def method(self: Node, other: Any) -> MessageNode:
            inputs = (other, self)
            try:
                value = function(other._data if isinstance(other, Node) else other, self._data)
            except Exception as error:  # noqa: BLE001 - whatever the value's class raises becomes a node
                raise_error(form, inputs, error)
            return message(form, value, inputs)

    else:

        def method(self: Node, other: Any) -> MessageNode:
            inputs = (self, other)
            try:
                value = function(self._data, other._data if isinstance(other, Node) else other)
            except Exception as error:  # noqa: BLE001 - whatever the value's class raises becomes a node
                raise_error(form, inputs, error)
            return message(form, value, inputs)

    method.__doc__ = operator.description
    return method


def _unary(name: str) -> Callable[[Any], Any]:
    operator = PRIMITIVES[name]
    form, function = operator.form(ARGUMENTS[name]), operator.function
    assert function is not None  # noqa: S101 - every primitive has one; for the type checker

    def method(self: Node) -> MessageNode:
        try:
            value = function(self._data)
        except Exception as error:  # noqa: BLE001 - whatever the value's class raises becomes a node
            raise_error(form, (self,), error)
        return message(form, value, (self,))

    method.__doc__ = operator.description
    return method


def _of_text(name: str, *defaults: Any) -> Callable[..., Any]:
    """A method that only texts have."""

    def method(self: Node, *args: Any) -> MessageNode:
        if not isinstance(self._data, str):
            raise AttributeError(f"{type(self._data).__name__!r} object has no attribute {name!r}")
        return apply(name, self, *args, *defaults[len(args) :])

    method.__doc__ = PRIMITIVES[name].description
    return method


class Node(Generic[T]):
    """A value in the graph: an input, or (as MessageNode) what an operation made of others.

    `description` may start with `[name]`. Equality compares values, hashing goes by identity (so that nodes of unhashable values can be
    keys), truth is the value's: all three as in Trace.
    """

    __slots__ = ("__weakref__", "_backwarded", "_data", "_extra", "_form", "_inputs", "_name", "_origin")

    __array_ufunc__ = None  # numpy leaves mixed operations to the node

    _data: Any
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
        if isinstance(value, Node):
            name = name or value._base
            value = value._data
        self._data = value
        self._inputs = ()
        self._form = _PARAMETER_FORM if trainable else _ROOT_FORM
        self._origin = scope.origin
        self._name = None if name is None else str(name)
        self._extra = None
        self._backwarded = False
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
        return self._form is _PARAMETER_FORM

    @property
    def type(self) -> type:
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
        if inputs and not all(isinstance(value, Node) for value in inputs):
            self._inputs = inputs = self._wrap_inputs()
        return dict(zip(self._form.arguments, inputs, strict=False))

    def _wrap_inputs(self) -> tuple[Node, ...]:
        """Plain values among the inputs become nodes of their own, named after the arguments of bundles."""
        named = self._form.operator.module is not None
        names = self._form.arguments
        return tuple(
            value if isinstance(value, Node) else _constant(value, names[index] if named else None, self._origin)
            for index, value in enumerate(self._inputs)
        )

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

        return picture(self, simple=simple_visualization, reverse=reverse_plot, print_limit=print_limit)

    # --- changing and copying ---

    def _set(self, value: Any) -> None:
        """Replaces the value, untraced. Raises TraceError for what bounds or choices refuse."""
        value = value._data if isinstance(value, Node) else value
        if self._extra:
            check_value(value, self._extra.bounds, self._extra.choices)
        self._data = value

    def clone(self) -> MessageNode:
        """A traced deep copy."""
        return apply("clone", self)

    def detach(self) -> Node:
        """A deep copy without parents."""
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Node:
        made: Node = object.__new__(type(self))
        memo[id(self)] = made
        made._data = copy.deepcopy(self._data, memo)
        made._inputs = ()
        made._form = self._form
        made._origin = self._origin
        made._name = None if self._name is None else self._base.removeprefix(self._origin.prefix)
        made._backwarded = False
        made._extra = None
        if self._extra:
            made._extra = extra = copy.copy(self._extra)
            extra.feedback = extra.inner = None
            if extra.code is not None:
                extra.code = copy.copy(extra.code)  # what it means now; it is changed independently
        return made

    def __copy__(self) -> Node:
        return self.__deepcopy__({id(self._data): self._data})

    def __reduce__(self) -> NoReturn:
        raise TypeError("nodes are not pickled: save parameters with Module.save, graphs with agentd.trace.export")

    # --- attributes and calls of the wrapped value ---

    def getattr(self, key: Any) -> MessageNode:
        """The attribute `key` of the value, traced."""
        return apply("node_getattr", self, key)

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_"):  # protocols ask for these: a node answers only with its own
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {key!r}")
        if not hasattr(self._data, key):
            raise AttributeError(f"a node of {type(self._data).__name__!r} has no attribute {key!r}")
        return self.getattr(key)

    def call(self, fun: str, *args: Any, **kwargs: Any) -> Any:
        """Calls the method `fun` of the value, traced."""
        return self.getattr(fun)(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from agentd.trace.operators import call  # noqa: PLC0415 - as details

        return call(self, *args, **kwargs)

    # --- containers ---

    def len(self) -> MessageNode:
        """The number of items, as a node (`len(node)` gives a plain int)."""
        return apply("len_", self)

    def __len__(self) -> int:
        return len(self._touch())

    def __iter__(self) -> Iterator[Any]:
        from agentd.trace.iterators import iterate  # noqa: PLC0415 - as details

        return iterate(self)

    def __reversed__(self) -> Iterator[Any]:
        return reversed(list(self))

    _item = _binary("getitem")

    def __getitem__(self, index: Any) -> Any:
        made = apply("getitem", self, index) if isinstance(index, slice | tuple) else self._item(index)
        return adopt(made) if isinstance(made._data, Node) else made

    def __contains__(self, item: Any) -> bool:
        return bool(apply("in_", item, self))

    def items(self) -> Iterator[tuple[MessageNode, MessageNode]]:
        """Pairs of nodes, key and value, of a dict."""
        from agentd.trace.iterators import DictIterable  # noqa: PLC0415 - as details

        if not isinstance(self._data, Mapping):
            raise AttributeError(f"{type(self._data).__name__!r} object has no attribute 'items'")
        return DictIterable(self)

    values = _unary("values")
    keys = _unary("keys")

    def pop(self, index: Any = -1) -> MessageNode:
        """Takes an item out of the value, in place, traced."""
        return apply("pop", self, index)

    def append(self, *args: Any, **kwargs: Any) -> Any:
        """Appends to the value, in place, traced."""
        return self.call("append", *args, **kwargs)

    # --- arithmetic ---

    __pos__ = _unary("pos")
    __neg__ = _unary("neg")
    __abs__ = _unary("abs")
    __invert__ = _unary("invert")
    __floor__ = _unary("floor")
    __ceil__ = _unary("ceil")
    __trunc__ = _unary("trunc")

    def __round__(self, n: Any = None) -> MessageNode:
        return apply("round", self, n)

    _add = _binary("add")
    _concat = _binary("concat")

    def __add__(self, other: Any) -> Any:
        return self._concat(other) if type(self._data) is str else self._add(other)

    __radd__ = _binary("add", reflected=True)
    __sub__, __rsub__ = _binary("subtract"), _binary("subtract", reflected=True)
    __mul__, __rmul__ = _binary("multiply"), _binary("multiply", reflected=True)
    __matmul__, __rmatmul__ = _binary("matrix_multiply"), _binary("matrix_multiply", reflected=True)
    __floordiv__, __rfloordiv__ = _binary("floor_divide"), _binary("floor_divide", reflected=True)
    __truediv__, __rtruediv__ = _binary("divide"), _binary("divide", reflected=True)
    __div__, __rdiv__ = __truediv__, __rtruediv__
    __mod__, __rmod__ = _binary("mod"), _binary("mod", reflected=True)
    __divmod__, __rdivmod__ = _binary("node_divmod"), _binary("node_divmod", reflected=True)
    __pow__, __rpow__ = _binary("power"), _binary("power", reflected=True)
    __lshift__, __rlshift__ = _binary("lshift"), _binary("lshift", reflected=True)
    __rshift__, __rrshift__ = _binary("rshift"), _binary("rshift", reflected=True)
    __and__, __rand__ = _binary("and_"), _binary("and_", reflected=True)
    __or__, __ror__ = _binary("or_"), _binary("or_", reflected=True)
    __xor__, __rxor__ = _binary("xor"), _binary("xor", reflected=True)

    # --- comparing ---

    __lt__ = _binary("lt")
    __le__ = _binary("le")
    __gt__ = _binary("gt")
    __ge__ = _binary("ge")
    eq = _binary("eq")
    neq = _binary("neq")

    def __eq__(self, other: object) -> Any:
        return self._touch() == (other._touch() if isinstance(other, Node) else other)

    def __ne__(self, other: object) -> Any:
        return self._touch() != (other._touch() if isinstance(other, Node) else other)

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        return bool(self._touch())

    # --- leaving the graph ---

    def _convert(self, kind: Callable[[Any], Any]) -> Any:
        """Conversions lose the graph, except where a bundle that runs notes them: elsewhere they are refused, as in Trace."""
        if current.get().touched is None:
            raise TypeError(f"{kind.__name__}() of a node leaves the graph: use .data, or convert inside a bundle")
        return kind(self._touch())

    def __int__(self) -> int:
        return self._convert(int)  # type: ignore[no-any-return]  # int() gives an int

    def __float__(self) -> float:
        return self._convert(float)  # type: ignore[no-any-return]  # float() gives a float

    def __complex__(self) -> complex:
        return self._convert(complex)  # type: ignore[no-any-return]  # complex() gives a complex

    def __index__(self) -> int:
        return self._convert(_index)  # type: ignore[no-any-return]  # operator.index gives an int

    def __str__(self) -> str:
        return f"{type(self).__name__}: ({self.name}, dtype={type(self._data)}, data={self._touch()})"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}={self._data!r:.80}>"


class ParameterNode(Node[T]):
    """A node that an optimizer may change. It belongs to no graph, and is known by its attribute path in the program.

    `bounds` is (low, high), either may be None; `choices` are the only values allowed. Raises TraceError for a value outside.
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
    ) -> None:
        super().__init__(value, name=name, trainable=True, description=description, constraint=constraint, info=info)
        if not trainable:
            self._form = _FROZEN_FORM
        if bounds is not None or choices is not None:
            extra = self._more()
            extra.bounds = None if bounds is None else check_bounds(bounds)
            extra.choices = None if choices is None else tuple(choices)
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


_FROZEN_FORM = Operator("ParameterNode", _PARAMETER_FORM.operator.description).form(())
_new = object.__new__


def message(form: Form, value: Any, inputs: tuple[Any, ...], kind: type[MessageNode] = MessageNode) -> MessageNode:
    """The node of one operation's result, in the current graph. Nodes beyond the form's arguments are hidden inputs."""
    scope = current.get()
    made: MessageNode = _new(kind)
    made._data = value
    made._inputs = inputs if scope.tracing else ()
    made._form = form
    made._origin = scope.origin
    made._name = made._extra = None
    made._backwarded = False
    scope.append(made)
    return made


def adopt(made: MessageNode) -> MessageNode:
    """An operation's result that is itself a node: its value is taken over, and it becomes a hidden input."""
    inner = made._data
    made._data = inner._data
    if current.get().tracing:
        made._inputs = (*made._inputs, inner)
    return made


def apply(name: str, *args: Any, **kwargs: Any) -> MessageNode:
    """The primitive `name` on nodes and plain values, also on nodes within lists, tuples, dicts, sets and slices."""
    operator = PRIMITIVES[name]
    names = ARGUMENTS[name]
    if len(args) > len(names):
        names += tuple(f"args_{index}" for index in range(len(args) - len(names)))
    form = operator.form(names[: len(args)] + tuple(kwargs))
    inputs = (*args, *kwargs.values())
    found: list[Node] = []
    values = [unwrap(value, found) for value in args]
    keywords = {key: unwrap(value, found) for key, value in kwargs.items()}
    inputs += tuple(other for other in found if not any(other is value for value in inputs))
    try:
        value = operator.function(*values, **keywords)  # type: ignore[misc]  # every primitive has a function
    except Exception as error:  # noqa: BLE001 - whatever the value's class raises becomes a node
        raise_error(form, inputs, error)
    made = message(form, value, inputs)
    return adopt(made) if isinstance(value, Node) else made


def unwrap(value: Any, found: list[Node]) -> Any:
    """`value` with the nodes in it replaced by their values; they are added to `found`. Containers without nodes stay the same object."""
    if isinstance(value, Node):
        found.append(value)
        return value._data
    kind = type(value)
    if kind in (list, tuple, set, frozenset):
        count = len(found)
        items = [unwrap(item, found) for item in value]
        return kind(items) if len(found) > count else value
    if kind is dict:
        count = len(found)
        items = {unwrap(key, found): unwrap(item, found) for key, item in value.items()}  # type: ignore[assignment]  # as the line above
        return items if len(found) > count else value
    if kind is slice:
        return slice(unwrap(value.start, found), unwrap(value.stop, found), unwrap(value.step, found))
    return value


def raise_error(
    form: Form, inputs: tuple[Any, ...], error: Exception, *, comment: str = "", traceback: str = "", made: Any = None
) -> NoReturn:
    """Puts `error` into the graph as an ExceptionNode (`made`, where the call has its place already) and raises it as ExecutionError."""
    if made is None:
        made = message(form, error_message(error), inputs, ExceptionNode)
    else:
        made._data, made._inputs = error_message(error), inputs if current.get().tracing else ()
    extra = made._more()
    extra.description = f"[exception] The operator {form.operator.name} raised an exception."
    if not comment:
        call = ", ".join(
            f"{name}={value._data if isinstance(value, Node) else value!r:.60}" for name, value in zip(form.arguments, inputs, strict=False)
        )
        comment = f"{form.operator.name}({call})  # <-- {made._data}"
    extra.info = {"error_comment": comment, "traceback": traceback or comment, "fun_name": form.operator.name}
    raise execution_error(made, error) from error


def error_message(error: BaseException) -> str:
    """`(class) text` of an error; of a traced one the original's."""
    if isinstance(error, ExecutionError):
        return str(error.exception_node._data)
    return f"({type(error).__name__}) {error}"


def check_bounds(bounds: tuple[float | None, float | None]) -> tuple[float | None, float | None]:
    """`bounds` as a pair. Raises TraceError where they are not (low, high) with low <= high."""
    try:
        low, high = bounds
        if low is not None and high is not None and not low <= high:
            raise ValueError(f"{low} is above {high}")
    except (TypeError, ValueError) as error:
        raise TraceError(f"bounds must be (low, high), either may be None: {bounds!r} ({error})") from error
    return low, high


def check_value(value: Any, bounds: tuple[float | None, float | None] | None, choices: tuple[Any, ...] | None) -> None:
    """Raises TraceError, with the reason, for a value that bounds or choices refuse. Bounds hold for every item of a list or array."""
    if choices is not None and not any(type(value) is type(choice) and value == choice for choice in choices):
        raise TraceError(f"{value!r} is not one of the choices {list(choices)!r}")
    if bounds is None:
        return
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        for item in value:
            check_value(item, bounds, None)
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise TraceError(f"{value!r} is no number, but has bounds {bounds}")
    low, high = bounds
    if (low is not None and value < low) or (high is not None and value > high):
        raise TraceError(f"{value!r} is outside its bounds [{low}, {high}]")


def _index(value: Any) -> int:
    return value.__index__()  # type: ignore[no-any-return]  # the protocol says int


def _constant(value: Any, name: str | None, origin: Any) -> Node:
    """A plain input as a node of its own, made when somebody looks, outside any scope's order."""
    made: Node = _new(Node)
    made._data = value
    made._inputs = ()
    made._form = _ROOT_FORM
    made._origin = origin
    made._name = name
    made._extra = None
    made._backwarded = False
    return made


def node(
    data: Any,
    name: str | None = None,
    trainable: bool = False,
    description: str | None = None,
    constraint: str | None = None,
    *,
    bounds: tuple[float | None, float | None] | None = None,
    choices: Sequence[Any] | None = None,
) -> Any:
    """A node of `data`; a ParameterNode where `trainable`. A node stays itself, unless it is to become trainable: then its value is taken.

    `bounds` (low, high) and `choices` limit what an optimizer may set. Raises TraceError where `data` is outside them already.
    """
    if trainable:
        if isinstance(data, Node):
            name = name or data.name.rsplit(":", 1)[0]
        return ParameterNode(data, name=name, description=description, constraint=constraint, bounds=bounds, choices=choices)
    if bounds is not None or choices is not None:
        raise TraceError("bounds and choices are for trainable nodes")
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
