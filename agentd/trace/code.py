"""Code as a parameter: a value that is source text, compiled once per value; and signatures, inspected once per function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from agentd.errors import TraceError
from agentd.trace.forms import Form, Operator
from agentd.trace.nodes import Node
from agentd.trace.source import compile_function, parse

if TYPE_CHECKING:
    from agentd.trace.bundle import FunModule

_MAX_COMPILED = 16  # values per function that stay compiled: those of the revisions in play

CODE_ARGUMENT = "__code"


class Told(NamedTuple):
    """How an error that was raised in another process is shown: the source with the failing line commented, and the traceback there."""

    comment: str
    traceback: str


TOLD = "_agentd_told"
"""The attribute of an exception that holds its Told."""


class Executor(Protocol):
    """Runs code parameters somewhere else: a process whose own code is trusted must not run what a model may have written."""

    def define(self, module: FunModule, source: str) -> Callable[..., Any]:
        """What to call in the place of the function that `source` defines: with its `__signature__`, and as asynchronous as it is.

        Its calls raise what the function raised, with a Told as attribute TOLD. Raises TraceError for what can't be defined.
        """
        ...


class Executing:
    """Who runs the code parameters of this process: the process itself, unless an executor is set before they are made."""

    executor: ClassVar[Executor | None] = None


class Signature:
    """How calls bind to a function's parameters. `arity` is the number of positional arguments of a call that needs no binding."""

    __slots__ = (
        "_coded", "_defaults", "_extra", "_inspected", "_keyword_only", "_operator", "_positional", "_variadic", "arity", "asynchronous",
        "form",
    )  # fmt: skip

    def __init__(self, function: Callable[..., Any], operator: Operator, *, coded: bool) -> None:
        try:
            self._inspected: inspect.Signature | None = inspect.signature(function)
        except (TypeError, ValueError):  # some builtins don't tell
            self._inspected = None
        parameters = list(self._inspected.parameters.values()) if self._inspected is not None else []
        kinds = {parameter.kind: parameter for parameter in parameters}
        self._positional = tuple(
            parameter.name for parameter in parameters if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        )
        self._keyword_only = tuple(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)
        self._variadic = inspect.Parameter.VAR_POSITIONAL in kinds or self._inspected is None
        self._extra = inspect.Parameter.VAR_KEYWORD in kinds or self._inspected is None
        self._defaults = {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}
        self._operator = operator
        self._coded = (CODE_ARGUMENT,) if coded else ()
        self.asynchronous = inspect.iscoroutinefunction(function)
        self.form: Form = operator.form(self._positional + self._coded)
        nothing_else = not self._keyword_only and not any(isinstance(value, Node) for value in self._defaults.values())
        self.arity = len(self._positional) if nothing_else else -1

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Form, tuple[Any, ...], dict[str, Any]]:
        """The form, the inputs (defaults included) and the keyword arguments to call with (nodes as defaults included).

        Raises TypeError for a call that doesn't fit, as the function itself would.
        """
        positional = self._positional
        names = [*positional[: len(args)]]
        inputs = [*args]
        if len(args) > len(positional):
            if not self._variadic:
                self._refuse(args, kwargs)
            names.extend(f"args_{index}" for index in range(len(args) - len(positional)))
        rest = dict(kwargs)
        for name in positional[len(args) :] + self._keyword_only:
            if name in rest:
                value = rest.pop(name)
            elif name in self._defaults:
                value = self._defaults[name]
                if isinstance(value, Node):
                    kwargs = {**kwargs, name: value}
            else:
                self._refuse(args, kwargs)
            names.append(name)
            inputs.append(value)
        if rest:
            if not self._extra or any(name in names for name in rest):
                self._refuse(args, kwargs)
            names.extend(rest)
            inputs.extend(rest.values())
        return self._operator.form((*names, *self._coded)), tuple(inputs), kwargs

    def _refuse(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._inspected is not None:
            self._inspected.bind(*args, **kwargs)
        raise TypeError(f"{self._operator.name} can't be called so")


class Code:
    """What a code parameter's present value means: the function, in the place of the original."""

    __slots__ = ("function", "module", "signature", "source")

    def __init__(self, module: FunModule) -> None:
        self.module = module
        self.source = module.source if Executing.executor is None else None  # None: not even the author's version runs here
        self.function: Callable[..., Any] = module._fun
        self.signature = module._signature

    def load(self, source: Any) -> None:
        """Makes `source` the value. Raises TraceError for what is no function of the same name, or does not compile."""
        if source == self.source:
            self.source = source
            return
        self.function, self.signature = self.compiled(source)
        self.source = source

    def compiled(self, source: Any) -> tuple[Callable[..., Any], Signature]:
        """The function that `source` defines, and its signature; the same for the same source."""
        module = self.module
        if not isinstance(source, str):
            raise TraceError(f"code is text, not a {type(source).__name__}")
        executor = Executing.executor
        if source == module.source and executor is None:
            return module._fun, module._signature
        held = module._compiled
        found = held.get(source)
        if found is None:
            name = parse(source).name
            if name != module._function_name:
                raise TraceError(f"the code must define {module._function_name}, not {name}")
            if executor is None:
                function = compile_function(source, module._fun, module._captured, module._owner)
            else:
                function = executor.define(module, source)
            found = function, Signature(function, module.operator, coded=True)
            while len(held) >= _MAX_COMPILED:
                held.pop(next(iter(held)), None)
            held[source] = found
        return found
