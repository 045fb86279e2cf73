"""The leaf's program: functions that a trusted program defines here, one by one, and calls on plain values."""

import asyncio
import importlib
import inspect
import traceback
import types
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from agentd.errors import LoadError, TraceError
from agentd.records import Value
from agentd.sandbox.loader import MemoryFinder
from agentd.sandbox.plain import NotPlainError, pack, unpack
from agentd.sandbox.wire import (
    MAX_ERROR_MESSAGE,
    MAX_TRACEBACK,
    Call,
    Define,
    Load,
    Raised,
    Request,
    encodable,
    shortened,
)
from agentd.trace.core import AbstractNode
from agentd.trace.nodes import error_message
from agentd.trace.source import compile_function, error_comment, parse


class _Defined(NamedTuple):
    function: Callable[..., Any]
    source: str
    method: bool


class LeafProgram:
    """Serves Load, Define and Call. It has no file of the agent: only the functions, and what they were said to need."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._finder = MemoryFinder({}, ())
        self._defined: dict[int, _Defined] = {}

    def load(self, request: Load) -> None:
        """Take the list of allowed imports."""
        self._finder = MemoryFinder({}, request.allowed_imports or ())

    def handle(self, request: Request) -> Value:
        """Define a function, or call one."""
        if isinstance(request, Define):
            return self._define(request)
        if isinstance(request, Call):
            return self._call(request)
        raise TypeError(f"a leaf can't {type(request).__name__}")

    def _define(self, request: Define) -> Value:
        """Compile the function; its defaults, by name."""
        namespace: dict[str, Any] = {"__name__": request.module, "__builtins__": self._finder.builtins}
        for name, (module, attribute) in request.imports.items():  # the program looked whether they are allowed
            try:
                found = importlib.import_module(module)
                namespace[name] = getattr(found, attribute) if attribute else found
            except (ImportError, AttributeError) as error:
                raise LoadError(f"{name} can't be had in a sandbox: {error}") from error
        namespace.update((name, unpack(value)) for name, value in request.constants.items())
        name = parse(request.source).name
        place = types.FunctionType((lambda: None).__code__, namespace, name)
        try:
            function = compile_function(request.source, place, {}, None, annotated=False)
        except TraceError as error:
            raise LoadError(str(error)) from error
        defaults = {}
        for parameter in inspect.signature(function).parameters.values():
            if parameter.default is not parameter.empty:
                try:
                    defaults[parameter.name] = pack(parameter.default)
                except NotPlainError as error:
                    raise LoadError(f"the default of {parameter.name} is {error}, which can't leave the sandbox") from None
        self._defined[request.function] = _Defined(function, request.source, request.method)
        return defaults

    def _call(self, request: Call) -> Value:
        function, source, method = self._defined[request.function]
        args = [unpack(value) for value in request.args]
        if method:
            args[0] = types.SimpleNamespace(**args[0])
        try:
            value = function(*args, **{name: unpack(value) for name, value in request.kwargs.items()})
            if inspect.iscoroutine(value):
                value = self._loop.run_until_complete(_await(value))
        except MemoryError:
            raise  # the server frees what the frames hold before it answers
        except Exception as error:  # noqa: BLE001 - whatever it is, the program has it raised
            error.__traceback__ = _from(function, error.__traceback__)
            return _raised(request, error, error_comment(error, error_message(error), {function.__code__: source}))
        try:
            return pack(value._data if isinstance(value, AbstractNode) else value)  # noqa: SLF001 - as in agentd.sandbox.policies
        except NotPlainError as error:
            message = f"{function.__name__} returned {error}, which can't leave the sandbox of a code parameter"
            return _raised(request, TypeError(message), f"(TypeError) {message}")


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _from(function: Callable[..., Any], trace: types.TracebackType | None) -> types.TracebackType | None:
    """The traceback from the frame that called the function, without those of an event loop between."""
    found = trace
    while found is not None and (found.tb_next is None or found.tb_next.tb_frame.f_code is not function.__code__):
        found = found.tb_next
    return found or trace


def _raised(request: Call, error: Exception, comment: str) -> Raised:
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - an exception's own __str__ may raise
        message = "which can't be shown"
    kinds = [kind.__name__ for kind in type(error).__mro__]
    shown = "".join(traceback.format_exception(type(error), error, error.__traceback__ and error.__traceback__.tb_next))
    return Raised(
        request.id,
        kinds=tuple(encodable(kind) for kind in kinds[:20]),
        message=encodable(shortened(message, MAX_ERROR_MESSAGE)),
        comment=encodable(shortened(comment, MAX_TRACEBACK)),
        traceback=encodable(shortened(shown, MAX_TRACEBACK)),
    )
