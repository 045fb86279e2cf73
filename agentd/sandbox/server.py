"""A worker, from the fork to its end: lock down, then answer requests one after another."""

import asyncio
import fcntl
import gc
import importlib
import logging
import os
import random
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import NoReturn, Protocol

from agentd import codec
from agentd.errors import CodecError, IsolationError, LoadError
from agentd.records import Value
from agentd.sandbox.host import WorkerHost
from agentd.sandbox.loader import is_program
from agentd.sandbox.lockdown import lock_down
from agentd.sandbox.output import LineOutput
from agentd.sandbox.telltale import Attempt, Telltale
from agentd.sandbox.wire import (
    FRAGMENTED,
    LEAF_CHANNEL,
    MAX_ANSWER,
    MAX_ERROR_MESSAGE,
    MAX_MESSAGE,
    MAX_PACKET,
    MAX_TRACEBACK,
    MAX_VALUES,
    Answer,
    Assign,
    Failure,
    Fork,
    Load,
    Raised,
    Request,
    Told,
    Trace,
    announced,
    encodable,
    packets,
    request_of,
    shortened,
)
from agentd.trace.host import hosted

_CHANNEL = 3
_OUT_OF_MEMORY_EXIT = 71
_LOCKDOWN_EXIT = 70
_RESERVE = 256 * 1024
_YOUNG_OBJECTS = 50_000
"""Garbage is collected after an answer rather than within a call, unless a single call makes more objects than this."""
_COLLECT_AFTER = 1_000


class Program(Protocol):
    """What a worker does: one of agentd.sandbox.policies, judging, braking, trusted, leaves."""

    def load(self, request: Load) -> Value:
        """Import and build the untrusted program."""

    def handle(self, request: Request) -> Value:
        """Do any other request."""


_PROGRAMS = {
    "policy": ("agentd.sandbox.policies", "PolicyProgram"),
    "feedback": ("agentd.sandbox.judging", "JudgeProgram"),
    "brake": ("agentd.sandbox.braking", "BrakeProgram"),
    "trusted": ("agentd.sandbox.trusted", "TrustedProgram"),
    "leaf": ("agentd.sandbox.leaves", "LeafProgram"),
}


class Connection:
    """The worker's end of its channel: blocking, one message at a time."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._buffer = bytearray(MAX_PACKET)
        self._view = memoryview(self._buffer)

    def fileno(self) -> int:
        """The channel's descriptor, readable when there is something to receive."""
        return self._channel.fileno()

    def receive(self) -> Request | Told | None:
        """The next request, or the answer to a question within one; None when the other side is gone."""
        size = self._channel.recv_into(self._buffer)
        if size == 0:
            return None
        packet = self._view[:size]
        if packet[0] != FRAGMENTED:
            return request_of(packet)
        total, parts = announced(packet, MAX_MESSAGE), []
        while total > 0:
            parts.append(self._channel.recv(MAX_PACKET))
            total -= len(parts[-1])
        return request_of(b"".join(parts))

    def send(self, message: bytes) -> None:
        """Answer."""
        if len(message) <= MAX_PACKET:
            self._channel.send(message)
            return
        for packet in packets(message):
            self._channel.send(packet)


def run(request: Fork, *, descriptors: Sequence[int], level: int, zygote: int) -> NoReturn:
    """The forked child's whole life. Never returns: what is below on the stack is the zygote's."""
    exit_code = 1
    try:
        exit_code = _run(request, descriptors=descriptors, level=level, zygote=zygote)
    except MemoryError:
        exit_code = _OUT_OF_MEMORY_EXIT
    except ConnectionError:
        exit_code = 0  # the runner is gone
    except BaseException:  # noqa: BLE001 - nothing may return into the zygote's code
        traceback.print_exc()
    finally:
        os._exit(exit_code)


def _run(request: Fork, *, descriptors: Sequence[int], level: int, zygote: int) -> int:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection = Connection(_keep_descriptors(*descriptors))
    loop = asyncio.new_event_loop()  # its descriptors can't be made after lockdown
    asyncio.set_event_loop(loop)
    _reseed()
    module, name = _PROGRAMS[request.program]
    program: Program = getattr(importlib.import_module(module), name)(loop)
    gc.set_threshold(_YOUNG_OBJECTS, 10, 10)
    try:
        lock_down(level=level, memory_bytes=request.memory_bytes, parent=zygote)
    except OSError as error:
        first = connection.receive()
        if isinstance(first, Load):
            connection.send(codec.encode(Failure(first.id, "isolation", str(error), "")))
        return _LOCKDOWN_EXIT
    serve(connection, program, Telltale() if level >= 2 else None, WorkerHost(connection))
    return 0


def _keep_descriptors(channel: int, log: int, *leaf: int) -> socket.socket:
    """Standard output and error become the log pipe, 3 the channel, 4 a leaf's where there is one; everything else is closed."""
    kept = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, LEAF_CHANNEL + 1) for descriptor in (channel, log, *leaf)]  # away from 1 to 4
    os.dup2(kept[1], 1)
    os.dup2(kept[1], 2)
    os.dup2(kept[0], _CHANNEL, inheritable=False)
    if leaf:
        os.dup2(kept[2], LEAF_CHANNEL, inheritable=False)
    os.closerange(LEAF_CHANNEL + 1 if leaf else _CHANNEL + 1, os.sysconf("SC_OPEN_MAX"))
    sys.stdout = sys.stderr = LineOutput(1)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", force=True)
    return socket.socket(fileno=_CHANNEL)


def _reseed() -> None:
    """Workers must not share the generators' state that they were forked with."""
    random.seed()
    if "numpy" in sys.modules:
        import numpy as np  # noqa: PLC0415 - imported long ago, if at all

        np.random.seed(int.from_bytes(os.urandom(4)))  # noqa: NPY002 - the global generator is what unseeded old code draws from


def serve(connection: Connection, program: Program, telltale: Telltale | None, host: WorkerHost) -> None:
    """Answer requests until the other side is gone."""
    reserve = [bytearray(_RESERVE)]  # memory to say with that there is none
    with hosted(host):
        _serve(connection, program, telltale, host, reserve)


def _serve(connection: Connection, program: Program, telltale: Telltale | None, host: WorkerHost, reserve: list[bytearray]) -> None:
    while (request := connection.receive()) is not None:
        if isinstance(request, Told):
            continue  # of a question that the program gave up, and whose request is over
        host.begin(request)
        reply = _reply(request, program, telltale, reserve)
        host.end()
        connection.send(reply)
        del request  # it may be large, and the next one may be long in coming
        if not reserve:
            reserve.append(bytearray(_RESERVE))
        if gc.get_count()[0] > _COLLECT_AFTER:
            gc.collect(1)


def _reply(request: Request, program: Program, telltale: Telltale | None, reserve: list[bytearray]) -> bytes:
    try:
        value = program.load(request) if isinstance(request, Load) else program.handle(request)
        if telltale is not None:
            telltale.tell()
        return _encode_answer(request, value)
    except MemoryError as error:
        reserve.clear()
        _forget_locals(error.__traceback__)
        return codec.encode(_failure(request, error))
    except BaseException as error:  # noqa: BLE001 - SystemExit and the like are an answer too, never this process's end
        if telltale is not None:
            telltale.forget()
        return codec.encode(_failure(request, error))


def _encode_answer(request: Request, value: Value) -> bytes:
    message = codec.encode(value if isinstance(value, Trace | Raised) else Answer(request.id, value))
    if len(message) > MAX_ANSWER:
        raise CodecError(f"an answer of {len(message)} bytes, where at most {MAX_ANSWER} can travel")
    codec.check(message, MAX_VALUES)
    return message


def _forget_locals(trace: TracebackType | None) -> None:
    """Drop what the frames of a MemoryError hold: usually the very thing that filled the memory."""
    if trace is not None:
        traceback.clear_frames(trace)
    gc.collect()


def _failure(request: Request, error: BaseException) -> Failure:
    kind = "isolation" if isinstance(error, IsolationError) else "load" if isinstance(request, Load | Assign) else "policy"
    try:
        if isinstance(error, (Attempt, CodecError, IsolationError, LoadError)):
            message, trace = str(error), getattr(error, "traceback", "")
        else:
            message = "".join(traceback.format_exception_only(error)).strip()
            trace = "".join(traceback.format_exception(type(error), error, _from_program(error.__traceback__)))
    except Exception:  # noqa: BLE001 - an exception's own __str__ may raise
        message, trace = f"{type(error).__name__}, which can't be shown", ""
    return Failure(request.id, kind, encodable(shortened(message, MAX_ERROR_MESSAGE)), encodable(shortened(trace, MAX_TRACEBACK)))


def _from_program(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without our own frames before the program's first; all of it when the program has none."""
    inner = trace
    while inner is not None and not is_program(inner.tb_frame):
        inner = inner.tb_next
    return inner or trace
