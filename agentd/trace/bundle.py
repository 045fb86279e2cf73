"""`bundle`: a function becomes one operation of the graph, its code possibly a parameter."""

from __future__ import annotations

import functools
import inspect
import sys
import traceback
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NoReturn, cast

from agentd.errors import TraceError
from agentd.trace.code import TOLD, Code, Signature, Told
from agentd.trace.containers import RESERVED
from agentd.trace.context import Frame, Scope, current
from agentd.trace.core import ROOT_FORM
from agentd.trace.details import function_details
from agentd.trace.errors import ExecutionError, TraceMissingInputsError
from agentd.trace.forms import Form, Operator, get_op_name
from agentd.trace.hidden import outside
from agentd.trace.modules import Module
from agentd.trace.nodes import ExceptionNode, MessageNode, Node, ParameterNode, error_message, message, node, raise_error
from agentd.trace.source import compile_function, error_comment, locals_around, signature_of, source_of

__all__ = ["BoundFunModule", "ExceptionNode", "ExecutionError", "FunModule", "TraceMissingInputsError", "bundle", "node"]  # as in Trace

_CODE = RESERVED + "code__"
_PENDING = "(pending)"


def bundle(
    description: Any = None,
    traceable_code: bool = False,
    _process_inputs: bool = True,
    trainable: bool = False,
    catch_execution_error: bool = True,
    allow_external_dependencies: bool = False,
    overwrite_python_recursion: bool = False,
) -> Any:
    """Makes a function (method, coroutine function) one operation of the graph; its calls give nodes.

    Args:
        description: `[name] text`; by default the function's name and docstring.
        traceable_code: the function gets nodes and its own operations are kept as a graph within (see TraceGraph.expand).
        _process_inputs: False hands nodes through as they are, without making traceable inputs of them.
        trainable: the function's source is a parameter. For a method each instance has its own.
        catch_execution_error: what the function raises becomes an ExceptionNode, raised as ExecutionError; False lets it through.
        allow_external_dependencies: the function may read `.data` of nodes that it was not given; they become hidden inputs.
            Otherwise that raises TraceMissingInputsError.
        overwrite_python_recursion: within the function its own name means the plain function. Always so for trainable ones.
    """
    if callable(description) and not isinstance(description, str):  # @bundle without parentheses
        return FunModule(description)
    captured = locals_around(sys._getframe(1)) if trainable else {}

    def decorate(function: Any) -> FunModule:
        return FunModule(
            function,
            description=description,
            traceable_code=traceable_code,
            _process_inputs=_process_inputs,
            trainable=trainable,
            catch_execution_error=catch_execution_error,
            allow_external_dependencies=allow_external_dependencies,
            overwrite_python_recursion=overwrite_python_recursion,
            _ldict=captured,
        )

    return decorate


class FunModule(Module):
    """A bundled function. `parameter` is its code, where it is trainable and no method."""

    def __init__(
        self,
        fun: Any,
        description: str | None = None,
        traceable_code: bool = False,
        _process_inputs: bool = True,
        trainable: bool = False,
        catch_execution_error: bool = True,
        allow_external_dependencies: bool = False,
        overwrite_python_recursion: bool = False,
        _ldict: Mapping[str, Any] | None = None,
    ) -> None:
        self._to_class = isinstance(fun, classmethod)
        self._static = isinstance(fun, staticmethod)
        fun = fun.__func__ if isinstance(fun, classmethod | staticmethod) else fun
        if not callable(fun):
            raise TypeError(f"bundle wraps functions, not a {type(fun).__name__}")
        functools.update_wrapper(self, fun, updated=())
        self._fun = fun
        self._function_name = getattr(fun, "__name__", type(fun).__name__)
        documentation = inspect.getdoc(fun) if hasattr(fun, "__code__") else ""
        self.description = description or f"[{self._function_name}] {documentation or ''}".rstrip()
        self.operator = Operator(get_op_name(self.description), self.description, fun, self)
        self.traceable_code = traceable_code
        self._process_inputs = _process_inputs
        self.catch_execution_error = catch_execution_error
        self.allow_external_dependencies = allow_external_dependencies
        self.overwrite_python_recursion = overwrite_python_recursion or trainable
        self._signature = Signature(fun, self.operator, coded=trainable)
        self._captured = dict(_ldict or {})
        self._owner: type | None = None
        self._attribute = ""
        self._trainable = trainable
        self._compiled: dict[str, tuple[Callable[..., Any], Signature]] = {}
        self.parameter: ParameterNode | None = self._new_parameter() if trainable else None

    # --- what it is ---

    @property
    def trainable(self) -> bool:
        """Whether its code is a parameter."""
        return self._trainable

    @property
    def name(self) -> str:
        """The operator's name."""
        return self.operator.name

    @property
    def is_method(self) -> bool:
        """Whether its first argument is the program that it belongs to."""
        return self._owner is not None and not self._static

    @functools.cached_property
    def source(self) -> str:
        """The function's source as written, without decorators; empty where it can't be found."""
        try:
            return source_of(self._fun)[0]
        except (OSError, AttributeError):
            return ""

    @property
    def fun(self) -> Callable[..., Any]:
        """The function that a call runs now. Raises ExecutionError where the code parameter does not compile."""
        return self._fun if self.parameter is None else self._current(self.parameter)[0]

    @property
    def info(self) -> dict[str, Any]:
        """Function, documentation, signature, source, file and line, as Trace programs ask for them."""
        return function_details(self)

    def _new_parameter(self) -> ParameterNode:
        if not self.source or not self.source.lstrip().startswith(("def ", "async def ")):
            raise TraceError(f"the source of {self._function_name} is not available as a def, so its code can't be trainable")
        if hasattr(self._fun, "__wrapped__"):
            compile_function(self.source, self._fun, self._captured, self._owner)  # its decorators can be applied again
        signature = signature_of(self.source)
        made: ParameterNode = ParameterNode(self.source, name="__code", constraint=f"The code must start with: {signature}")
        made._more().code = Code(self)
        return made

    def _current(self, parameter: ParameterNode) -> tuple[Callable[..., Any], Signature]:
        """The function and signature of the parameter's present value, compiled once per value."""
        code: Code = parameter._extra.code  # type: ignore[union-attr]  # _new_parameter made it
        if parameter._data is not code.source:
            try:
                code.load(parameter._data)
            except TraceError as error:
                form = Operator(self.name, f"[exception] The code parameter of {self.name} has an error.").form(("code",))
                raise_error(form, (parameter,), cast("Exception", error.__cause__ or error), comment=str(error))
        return code.function, code.signature

    # --- binding ---

    def __set_name__(self, owner: type, name: str) -> None:
        self._owner, self._attribute = owner, name
        if not self._static and self._fun.__qualname__.rpartition(".")[0] == owner.__qualname__:
            self.parameter = None  # a method's code belongs to each instance

    def __get__(self, instance: Any, owner: type | None = None) -> FunModule:
        if self._static:
            return self
        if self._to_class:
            return BoundFunModule(self, owner if owner is not None else type(instance))
        if instance is None:
            return self
        return BoundFunModule(self, instance)

    def _parameter_of(self, instance: Any) -> ParameterNode | None:
        """The code parameter that `instance` has for this method."""
        if not self._trainable:
            return None
        try:
            held = instance.__dict__
        except AttributeError:
            raise TraceError(f"{type(instance).__name__} has no __dict__ to keep the trainable code of {self.name} in") from None
        if self._to_class or isinstance(instance, type):
            if self.parameter is None:
                self.parameter = self._new_parameter()
            return self.parameter
        codes = held.get(_CODE)
        if codes is None:
            codes = held[_CODE] = {}
        key = self._fun.__qualname__
        found: ParameterNode | None = codes.get(key)
        if found is None:
            found = codes[key] = self._new_parameter()
        return found

    def detach(self) -> FunModule:
        """A copy of its own, whose code parameter is changed independently."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        if self.parameter is not None:
            made.parameter = made._new_parameter()
            made.parameter._data = self.parameter._data
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> FunModule:
        return self.detach()

    # --- calling ---

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the function on the values of nodes and plain arguments; gives the node of its result.

        Raises ExecutionError for what the function raises, TraceMissingInputsError for reads of nodes that it was not given, and TypeError
        for arguments that don't fit.
        """
        if self.overwrite_python_recursion and current.get().module is self:
            return self._fun(*args, **kwargs)
        if self.parameter is None and self._trainable:
            if not args:
                raise TypeError(f"{self.name} is a method: call it on an instance")
            return self._run(self._parameter_of(args[0]), args, kwargs)
        return self._run(self.parameter, args, kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As a call."""
        return self(*args, **kwargs)

    def _run(  # noqa: C901, PLR0912 - the path of every call, in one piece because each further function would be a tenth of it
        self, parameter: ParameterNode | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if parameter is None:
            function, signature = self._fun, self._signature
        else:
            function, signature = self._current(parameter)
        inputs: tuple[Any, ...]
        if not kwargs and len(args) == signature.arity:
            form, inputs = signature.form, args
        else:
            form, inputs, kwargs = signature.bind(args, kwargs)
        if parameter is not None:
            inputs = (*inputs, parameter)
        detached: tuple[Node, ...] = ()
        values: Any = args
        if self._process_inputs:
            if self.traceable_code:
                detached = tuple(_detached(value) for value in (*args, *kwargs.values()))
                values, kwargs = detached[: len(args)], dict(zip(kwargs, detached[len(args) :], strict=True))
            else:
                values = [value._data if isinstance(value, Node) else value for value in args]
                if kwargs:
                    kwargs = {key: value._data if isinstance(value, Node) else value for key, value in kwargs.items()}
        if signature.asynchronous:
            pending = message(form, _PENDING, ())  # its place in the graph is that of the call, whenever it ends
            return self._run_async(function, form, inputs, values, kwargs, detached, pending)
        frame = Frame(current.get(), self)
        token = current.set(frame)
        try:
            value = function(*values, **kwargs)
        except Exception as error:
            current.reset(token)
            if not self.catch_execution_error:
                raise
            self._fail(error, form, inputs, frame, None)
        except BaseException:
            current.reset(token)
            raise
        current.reset(token)
        if frame.nodes or frame.reads or frame.touched or isinstance(value, Node):
            return self._wrap(value, form, inputs, frame, detached, None)
        return message(form, value, inputs)

    async def _run_async(
        self,
        function: Callable[..., Coroutine[Any, Any, Any]],
        form: Form,
        inputs: tuple[Any, ...],
        values: Any,
        kwargs: dict[str, Any],
        detached: tuple[Node, ...],
        pending: MessageNode,
    ) -> MessageNode:
        frame = Frame(current.get(), self)
        token = current.set(frame)
        try:
            value = await function(*values, **kwargs)
        except Exception as error:
            current.reset(token)
            if not self.catch_execution_error:
                raise
            self._fail(error, form, inputs, frame, pending)
        except BaseException as error:
            current.reset(token)
            pending._data = f"({type(error).__name__}) {error}"
            raise
        current.reset(token)
        return self._wrap(value, form, inputs, frame, detached, pending)

    def _wrap(
        self,
        value: Any,
        form: Form,
        inputs: tuple[Any, ...],
        frame: Scope,
        detached: tuple[Node, ...],
        pending: MessageNode | None,
    ) -> MessageNode:
        """The result's node, with what the function read from outside as hidden inputs."""
        inner = value if isinstance(value, Node) else None
        asked = None if self.allow_external_dependencies else self.name
        hidden = outside(inputs, frame, detached, inner, strict_for=asked)
        value = value if inner is None else inner._data
        if pending is None:
            made = message(form, value, inputs + hidden)
        else:
            made = pending
            made._data = value
            made._inputs = inputs + hidden if frame.tracing else ()
        if inner is not None and self.traceable_code and frame.tracing:
            made._more().inner = (inner, detached)
        return made

    def _fail(self, error: Exception, form: Form, inputs: tuple[Any, ...], frame: Scope, pending: MessageNode | None) -> NoReturn:
        """Raises ExecutionError: the exception's node has the source with the failing line commented."""
        hidden = outside(inputs, frame, (), None)
        told: Told | None = None if isinstance(error, ExecutionError) else getattr(error, TOLD, None)
        if told is not None:
            raise_error(form, inputs + hidden, error, comment=told.comment, traceback=told.traceback, made=pending)
        sources = {inspect.unwrap(function).__code__: source for source, (function, _) in self._compiled.items()}
        within = str(error) if isinstance(error, ExecutionError) else ""  # a bundle or operator that was called has said where
        comment = error_comment(error, error_message(error), sources, within)
        raise_error(form, inputs + hidden, error, comment=comment, traceback="".join(traceback.format_exception(error)), made=pending)


class BoundFunModule(FunModule):
    """A bundled method, bound to its instance (or class). Made anew by each attribute access, as bound methods are."""

    def __init__(self, module: FunModule, instance: Any) -> None:
        self._module = module
        self._instance = instance
        if module._trainable:
            self.parameter = module._parameter_of(instance)
        else:
            self.parameter = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As FunModule's, with the instance as first argument."""
        return self._module._run(self.parameter, (self._instance, *args), kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in ("_module", "_instance"):  # not initialised yet, as when copied
            raise AttributeError(name)
        return getattr(self._module, name)

    def __get__(self, instance: Any, owner: type | None = None) -> FunModule:
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BoundFunModule) and self._module is other._module and self._instance is other._instance

    def __hash__(self) -> int:
        return hash((id(self._module), id(self._instance)))

    @property
    def __self__(self) -> Any:
        return self._instance

    @property
    def fun(self) -> Callable[..., Any]:
        """The plain function that a call runs now, unbound."""
        return self._module._fun if self.parameter is None else self._module._current(self.parameter)[0]

    def detach(self) -> FunModule:
        """A copy bound to the same instance, whose code parameter is changed independently."""
        made = self._module.detach()
        bound = BoundFunModule.__new__(BoundFunModule)
        bound._module, bound._instance, bound.parameter = made, self._instance, None
        if self.parameter is not None:
            bound.parameter = made._new_parameter()
            bound.parameter._data = self.parameter._data
        return bound


def _detached(value: Any) -> Node:
    """An input of traceable code: the same value without its past."""
    made: Node = object.__new__(Node)
    source = value if isinstance(value, Node) else Node(value)
    for slot in ("_data", "_origin", "_name"):
        object.__setattr__(made, slot, getattr(source, slot))
    made._form, made._inputs, made._extra, made._backwarded = ROOT_FORM, (), None, None
    return made
