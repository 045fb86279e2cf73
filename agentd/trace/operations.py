"""What nodes can do: Python's operators and the common methods, each making one node of the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar

from agentd.trace.context import current
from agentd.trace.core import AbstractNode
from agentd.trace.errors import ExecutionError, execution_error
from agentd.trace.forms import Form
from agentd.trace.primitives import ARGUMENTS, PRIMITIVES

if TYPE_CHECKING:
    from typing_extensions import TypeVar as DefaultingTypeVar

    from agentd.trace.nodes import MessageNode

    T = DefaultingTypeVar("T", default=Any)
else:
    T = TypeVar("T")

_new = object.__new__
_scope = current.get  # bound once: these are looked up in every operation


class Made:
    """The classes of what operations make. They are themselves OperableNodes: agentd.trace.nodes ties the knot."""

    message: ClassVar[type[MessageNode]]
    exception: ClassVar[type[MessageNode]]


def message(form: Form, value: Any, inputs: tuple[Any, ...]) -> MessageNode:
    """The node of one operation's result, in the current graph. Nodes beyond the form's arguments are hidden inputs."""
    scope = _scope()
    made = _new(Made.message)
    made._data = value
    made._inputs = inputs if scope.tracing else ()
    made._form = form
    made._origin = scope.origin
    made._name = made._extra = made._backwarded = None
    scope.append(made)
    return made


def adopt(made: MessageNode) -> MessageNode:
    """An operation's result that is itself a node: its value is taken over, and it becomes a hidden input."""
    inner = made._data
    made._data = inner._data
    if _scope().tracing:
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
    found: list[AbstractNode] = []
    values = [unwrap(value, found) for value in args]
    keywords = {key: unwrap(value, found) for key, value in kwargs.items()}
    inputs += tuple(other for other in found if not any(other is value for value in inputs))
    try:
        value = operator.function(*values, **keywords)  # type: ignore[misc]  # every primitive has a function
    except Exception as error:  # noqa: BLE001 - whatever the value's class raises becomes a node
        raise_error(form, inputs, error)
    made = message(form, value, inputs)
    return adopt(made) if isinstance(value, AbstractNode) else made


def unwrap(value: Any, found: list[AbstractNode]) -> Any:
    """`value` with the nodes in it replaced by their values; they are added to `found`. Containers without nodes stay the same object."""
    if isinstance(value, AbstractNode):
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
        made = message(form, error_message(error), inputs)
    else:
        made._data, made._inputs = error_message(error), inputs if _scope().tracing else ()
    made.__class__ = Made.exception  # the same slots; a call keeps its place in the graph
    extra = made._more()
    extra.description = f"[exception] The operator {form.operator.name} raised an exception."
    if not comment:
        call = ", ".join(f"{name}={_shown(value)}" for name, value in zip(form.arguments, inputs, strict=False))
        comment = f"{form.operator.name}({call})  # <-- {made._data}"
    extra.info = {"error_comment": comment, "traceback": traceback or comment, "fun_name": form.operator.name}
    raise execution_error(made, error) from error


def _shown(value: Any) -> str:
    try:
        return f"{value._data if isinstance(value, AbstractNode) else value!r:.60}"
    except Exception:  # noqa: BLE001 - a repr is the program's code
        return f"<{type(value).__name__}>"


def error_message(error: BaseException) -> str:
    """`(class) text` of an error; of a traced one the original's."""
    if isinstance(error, ExecutionError):
        return str(error.exception_node._data)
    return f"({type(error).__name__}) {error}"


def _binary(name: str, *, reflected: bool = False, of_texts: str = "") -> Callable[[Any, Any], Any]:
    """The method of a binary operator. `of_texts` is what the same is called where the node holds a text."""
    operator = PRIMITIVES[name]
    form, function = operator.form(ARGUMENTS[name]), operator.function
    text_form = PRIMITIVES[of_texts].form(ARGUMENTS[of_texts]) if of_texts else form
    assert function is not None  # noqa: S101 - every primitive has one; for the type checker

    if reflected:

        def method(self: AbstractNode, other: Any) -> MessageNode:
            own, inputs = self._data, (other, self)
            made_by = text_form if type(own) is str else form
            try:
                value = function(other._data if isinstance(other, AbstractNode) else other, own)
            except Exception as error:  # noqa: BLE001 - whatever the value's class raises becomes a node
                raise_error(made_by, inputs, error)
            return message(made_by, value, inputs)

    else:

        def method(self: AbstractNode, other: Any) -> MessageNode:
            own, inputs = self._data, (self, other)
            made_by = text_form if type(own) is str else form
            try:
                value = function(own, other._data if isinstance(other, AbstractNode) else other)
            except Exception as error:  # noqa: BLE001 - whatever the value's class raises becomes a node
                raise_error(made_by, inputs, error)
            return message(made_by, value, inputs)

    method.__doc__ = operator.description
    return method


def _unary(name: str) -> Callable[[Any], Any]:
    operator = PRIMITIVES[name]
    form, function = operator.form(ARGUMENTS[name]), operator.function
    assert function is not None  # noqa: S101 - every primitive has one; for the type checker

    def method(self: AbstractNode) -> MessageNode:
        try:
            value = function(self._data)
        except Exception as error:  # noqa: BLE001 - whatever the value's class raises becomes a node
            raise_error(form, (self,), error)
        return message(form, value, (self,))

    method.__doc__ = operator.description
    return method


def _demand_text(subject: AbstractNode, method: str) -> None:
    if not isinstance(subject._data, str):
        raise AttributeError(f"{type(subject._data).__name__!r} object has no attribute {method!r}")  # noqa: TRY004 - as the value would


def _of_text(name: str) -> Callable[..., Any]:
    """A method that only texts have."""

    def method(self: AbstractNode, *args: Any, **kwargs: Any) -> MessageNode:
        _demand_text(self, name)
        return apply(name, self, *args, **kwargs)

    method.__doc__ = PRIMITIVES[name].description
    return method


class OperableNode(AbstractNode[T]):
    """A node with Python's operators. Comparisons by `==` and `!=` and truth are the value's (not traced), as in Trace."""

    __slots__ = ()

    __array_ufunc__ = None  # numpy leaves mixed operations to the node

    def clone(self) -> MessageNode:
        """A traced deep copy."""
        return apply("clone", self)

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
        """Calls the value, traced."""
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

        return iter(iterate(self))

    _item = _binary("getitem")

    def __getitem__(self, index: Any) -> Any:
        made = apply("getitem", self, index) if isinstance(index, slice | tuple) else self._item(index)
        return adopt(made) if isinstance(made._data, AbstractNode) else made

    def __contains__(self, item: Any) -> bool:
        return bool(apply("in_", item, self))

    def items(self) -> Iterator[tuple[MessageNode, MessageNode]]:
        """Pairs of nodes, key and value, of a dict."""
        from agentd.trace.iterators import DictIterable  # noqa: PLC0415 - as details

        if not isinstance(self._data, Mapping):
            raise AttributeError(f"{type(self._data).__name__!r} object has no attribute 'items'")  # noqa: TRY004 - as the value would
        return DictIterable(self)

    values = _unary("values")
    keys = _unary("keys")

    format = _of_text("format")
    capitalize = _of_text("capitalize")
    lower = _of_text("lower")
    upper = _of_text("upper")
    swapcase = _of_text("swapcase")
    title = _of_text("title")
    strip = _of_text("strip")
    replace = _of_text("replace")
    split = _of_text("split")

    def join(self, seq: Any) -> MessageNode:
        """The texts of `seq` (nodes or plain, or one node of them) joined, with this one between them."""
        _demand_text(self, "join")
        return apply("join", self, *seq)

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

    __add__, __radd__ = _binary("add", of_texts="concat"), _binary("add", reflected=True, of_texts="concat")
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
