"""A trusted program's end of its leaf: the code parameters' bodies run in a locked worker, called one at a time over its channel.

Nothing that comes back is believed, and nothing but a plain value or an error's text does. A leaf that is gone, or that sends what no leaf
sends, takes the program with it at once, so that no `except` of the program can hide it: the runner knows both ends by their exit codes.
"""

import contextlib
import functools
import inspect
import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from agentd import codec
from agentd.errors import CodecError, IsolationError, TraceError
from agentd.records import Value
from agentd.sandbox.needs import Needs, builtin_error, needs_of
from agentd.sandbox.plain import NotPlainError, pack, unpack
from agentd.sandbox.wire import (
    FRAGMENTED,
    LEAF_GONE_EXIT,
    LEAF_LIED_EXIT,
    MAX_ANSWER,
    MAX_ERROR_MESSAGE,
    MAX_MESSAGE,
    MAX_PACKET,
    MAX_TRACEBACK,
    Answer,
    Call,
    Define,
    Failure,
    Load,
    Raised,
    Request,
    announced,
    leaf_reply_of,
    packets,
    printable,
    shortened,
)
from agentd.trace.bundle import FunModule
from agentd.trace.code import TOLD, Told
from agentd.trace.context import current
from agentd.trace.core import AbstractNode
from agentd.trace.operations import unwrap
from agentd.trace.source import signature_of


class Leaf:
    """The executor of a trusted program's code parameters. Calls block, in whatever thread they are made, and follow one another."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._buffer = bytearray(MAX_PACKET + 1)  # one byte more than allowed, to see that a packet is too long
        self._view = memoryview(self._buffer)
        self._allowed: Sequence[str] = ()
        self._defined = 0

    def start(self, allowed_imports: Sequence[str]) -> None:
        """Let the leaf begin. Raises IsolationError where it could not lock itself down."""
        self._allowed = allowed_imports
        reply = self._ask(lambda number: Load(number, {}, "", {}, tuple(allowed_imports), data_only=False))
        if isinstance(reply, Failure):
            raise IsolationError(_shown(reply.message, MAX_ERROR_MESSAGE), wanted=2, available=1)

    def define(self, module: FunModule, source: str) -> Callable[..., Any]:
        """As Executor."""
        needs = needs_of(module, source, self._allowed)
        self._defined += 1
        defined, name = self._defined, module.__module__
        reply = self._ask(
            lambda number: Define(number, defined, name, source, needs.imports, needs.constants, method=needs.attributes is not None)
        )
        if isinstance(reply, Failure):
            raise TraceError(_shown(reply.message, MAX_TRACEBACK))
        signature = inspect.Signature([_with_default(parameter, reply) for parameter in needs.arguments])

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._call(defined, source, needs, args, kwargs)

        async def call_async(*args: Any, **kwargs: Any) -> Any:
            return self._call(defined, source, needs, args, kwargs)

        made: Any = call_async if needs.asynchronous else call
        functools.update_wrapper(made, module._fun)  # noqa: SLF001 - it stands in that function's place
        del made.__wrapped__  # whoever unwraps it must not get the function that may not run here
        made.__signature__ = signature
        return made  # type: ignore[no-any-return]  # one of the two above

    def _call(self, defined: int, source: str, needs: Needs, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            given = self._packed(needs, args), {name: _argument(name, value) for name, value in kwargs.items()}
            reply = self._ask(lambda number: Call(number, defined, *given))
        except (NotPlainError, CodecError) as error:
            raise _error(["TypeError"], str(error), f"{signature_of(source)}  # <-- {error}", "") from None
        if isinstance(reply, Failure):  # refused, out of memory, too large an answer: there is no line to show
            kind, _, message = reply.message.partition(": ")
            message = _shown(message or kind, MAX_ERROR_MESSAGE)
            raise _error([kind], message, f"{signature_of(source)}  # <-- {message}", reply.traceback)
        if isinstance(reply, Raised):
            raise _error(list(reply.kinds), _shown(reply.message, MAX_ERROR_MESSAGE), reply.comment, reply.traceback)
        return reply

    def _packed(self, needs: Needs, args: tuple[Any, ...]) -> list[Value]:
        """The arguments; of `self` what the code reads of it."""
        names = [parameter.name for parameter in needs.arguments]
        first = 0 if needs.attributes is None else 1
        given = [_argument(names[min(index, len(names) - 1)], value) for index, value in enumerate(args) if index >= first]
        if needs.attributes is None:
            return given
        read = {}
        for name in needs.attributes:
            value = getattr(args[0], name)
            if isinstance(value, AbstractNode):
                raise NotPlainError(f"self.{name} is a node: pass it as an argument")
            read[name] = _argument(f"self.{name}", value)
        return [read, *given]

    # --- the channel ---

    def _ask(self, make: Callable[[int], Request]) -> Any:
        """The leaf's answer to a request: a value, Raised, or Failure. Raises CodecError for a request that can't be sent."""
        if os.getpid() != self._process:
            raise NotPlainError("a process that the program forked can't call its code parameters")
        number = secrets.randbits(32)
        message = codec.encode(make(number))
        if len(message) > MAX_MESSAGE:
            raise CodecError(f"arguments of {len(message)} bytes, where at most {MAX_MESSAGE} can travel")
        with self._lock:
            try:
                for packet in packets(message):
                    self._channel.send(packet)
                return _believed(self._receive(), number)
            except OSError:
                _end(LEAF_GONE_EXIT)
            except CodecError as error:
                _end(LEAF_LIED_EXIT, f"the sandbox of the code parameters sent what none sends: {error}")

    def _receive(self) -> bytes | memoryview:
        """The next message. Raises CodecError for one that is not as it was announced."""
        packet = self._packet()
        if packet[0] != FRAGMENTED:
            return packet
        missing, parts = announced(packet, MAX_ANSWER), []
        while missing:
            part = self._packet()
            if len(part) != min(MAX_PACKET, missing):
                raise CodecError(f"a fragment of {len(part)} bytes where {min(MAX_PACKET, missing)} were announced")
            parts.append(bytes(part))
            missing -= len(part)
        return b"".join(parts)

    def _packet(self) -> memoryview:
        size = self._channel.recv_into(self._buffer)
        if size == 0:
            _end(LEAF_GONE_EXIT)
        if size > MAX_PACKET:
            raise CodecError(f"a packet of more than {MAX_PACKET} bytes")
        return self._view[:size]


def _believed(message: bytes | memoryview, number: int) -> Any:
    """The answer to request `number`. Raises CodecError for whatever is none."""
    reply = leaf_reply_of(message)
    if reply.id != number:
        raise CodecError(f"an answer to request {reply.id}, which is not open")
    return unpack(reply.value) if isinstance(reply, Answer) else reply


def _end(code: int, message: str = "") -> NoReturn:
    """End this process, whatever stands above on the stack."""
    with contextlib.suppress(Exception):
        if message:
            sys.stderr.write(f"{message}\n")
    os._exit(code)


def _argument(name: str, value: Any) -> Value:
    try:
        return pack(_plain(value))
    except NotPlainError as error:
        raise NotPlainError(f"{name} is {error}, which can't enter the sandbox of a code parameter") from None


def _plain(value: Any) -> Any:
    """`value` with the nodes within it replaced by what they hold; like what a function computes with, they become hidden inputs."""
    found: list[AbstractNode] = []
    plain = unwrap(value, found)
    touched = current.get().touched
    if found and touched is not None:
        touched.extend(found)
    return plain


def _with_default(parameter: inspect.Parameter, defaults: Any) -> inspect.Parameter:
    if parameter.default is parameter.empty:
        return parameter
    if not isinstance(defaults, dict) or parameter.name not in defaults:
        _end(LEAF_LIED_EXIT, "the sandbox of the code parameters did not tell the defaults of a function that it defined")
    return parameter.replace(default=defaults[parameter.name])


def _error(kinds: list[str], message: str, comment: str, traceback: str) -> Exception:
    """An exception of the builtin class that comes first, named as the first: its text is all that else is taken from the leaf."""
    base = builtin_error(kinds)
    name = kinds[0] if kinds and kinds[0].isidentifier() else base.__name__
    kind = base if name == base.__name__ else type(name[:100], (base,), {})
    try:
        error: Exception = kind(message)
        if str(error) != message:  # a KeyError shows its key by repr
            error = type(kind.__name__, (kind,), {"__str__": _first_argument})(message)
    except TypeError:  # a class that wants more, as those of Unicode do
        error = RuntimeError(message)
    setattr(error, TOLD, Told(_shown(comment, MAX_TRACEBACK), _shown(traceback, MAX_TRACEBACK)))
    return error


def _first_argument(error: Exception) -> str:
    return str(error.args[0])


def _shown(text: str, limit: int) -> str:
    return printable(shortened(text, limit))
