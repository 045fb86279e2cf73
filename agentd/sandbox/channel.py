"""The trusted end of a worker's channel: one call at a time, in order, each with a time limit. Nothing that comes back is believed.

The way of a call is short, since it is the way of an action to a plant: encode, one `send`, one callback, one `recv_into`, decode. There is
one timer per channel, armed anew only when it fires, rather than one per call.
"""

import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from agentd import codec
from agentd.errors import CodecError, IsolationError, LoadError, PolicyError, ProtocolViolation, SandboxError, WorkerTimeout
from agentd.records import Value
from agentd.sandbox.wire import (
    FRAGMENTED,
    MAX_ANSWER,
    MAX_ERROR_MESSAGE,
    MAX_MESSAGE,
    MAX_PACKET,
    MAX_QUESTION,
    MAX_TRACEBACK,
    Answer,
    Asked,
    Failure,
    Told,
    Trace,
    announced,
    packets,
    printable,
    question_size,
    reply_of,
    shortened,
)

_NUMBERS = struct.Struct("256I")


class Desk(Protocol):
    """Who answers what a worker asks of models within one call."""

    most: int
    """So many questions may be asked; a worker that asks more is ended."""

    def ask(self, question: Asked, until: float, tell: Callable[[Told], None]) -> None:
        """Answer by `tell`, at any time. What is told after the call is thrown away. The worker is ended at `until` (the loop's time)."""

    def close(self) -> None:
        """The call is over, and nobody waits for an answer."""


class _Call(NamedTuple):
    number: int
    message: bytes
    timeout: float
    future: asyncio.Future[Value]
    desk: Desk | None = None


class Channel:
    """Calls to a worker over a non-blocking, connected packet socket, which it owns.

    `on_end` is called once, from the event loop, with what the worker did wrong, or with None when the other end was closed. The owner then
    finds out the rest and calls `close` with the error that open calls get.
    """

    def __init__(self, connection: socket.socket, on_end: Callable[[SandboxError | None], None]) -> None:
        self._socket = connection
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._numbers: list[int] = []
        self._current: _Call | None = None
        self._waiting: deque[_Call] = deque()  # bounded by the devices of an agent: each has at most a few calls
        self._idle: deque[_Call] = deque()  # calls for when no other waits; bounded in the same way
        self._outgoing: Iterator[bytes | memoryview] | None = None
        self._unsent: bytes | memoryview = b""
        self._asked = 0
        """Questions within the open call."""
        self._telling: deque[bytes] = deque()  # bounded by the questions that a call may ask
        self._buffer = bytearray(MAX_PACKET + 1)  # one byte more than allowed, to see that a packet is too long
        self._view = memoryview(self._buffer)
        self._parts: list[bytes] = []
        self._missing = 0
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._error: SandboxError | None = None
        self._open = True
        self._loop.add_reader(connection, self._read)

    def next_number(self) -> int:
        """The number of the next call. It can't be guessed, so that a worker can't answer what it has not been asked yet."""
        if not self._numbers:
            self._numbers = list(_NUMBERS.unpack(os.urandom(_NUMBERS.size)))
        return self._numbers.pop()

    def call(self, number: int, message: bytes, timeout: float, *, urgent: bool = True, desk: Desk | None = None) -> asyncio.Future[Value]:
        """Send the encoded request `number`; the future gets its answer within `timeout` seconds from when it was sent.

        Calls are made in order, but those that aren't `urgent` only when no other waits. Where there is a `desk`, it answers what the
        worker asks meanwhile; the time goes on.

        The future's errors: PolicyError and its siblings for a Failure, WorkerTimeout, ProtocolViolation, WorkerDied. A cancelled call
        keeps its place: the worker finishes it, and the answer is thrown away. Raises CodecError for a message that is too long.
        """
        if len(message) > MAX_MESSAGE:
            raise CodecError(f"a message of {len(message)} bytes is longer than the {MAX_MESSAGE} that a worker's channel carries")
        future: asyncio.Future[Value] = self._loop.create_future()
        call = _Call(number, message, timeout, future, desk)
        if self._error is not None:
            future.set_exception(self._error)
        elif self._current is None and self._open:
            self._start(call)
        elif urgent:
            self._waiting.append(call)
        else:
            self._idle.append(call)
        return future

    def close(self, error: SandboxError) -> None:
        """Close the socket; open calls and later ones get `error`."""
        if self._error is not None:
            return
        self._error = error
        self._stop()
        self._socket.close()
        if self._timer is not None:
            self._timer.cancel()
        calls = [self._current] if self._current is not None else []
        calls += [*self._waiting, *self._idle]
        self._current = None
        self._waiting.clear()
        self._idle.clear()
        for call in calls:
            if call.desk is not None:
                call.desk.close()
            if not call.future.done():
                call.future.set_exception(error)

    def _stop(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)

    def _end(self, error: SandboxError | None) -> None:
        if self._open:
            self._stop()
            self._on_end(error)

    # --- sending ---

    def _start(self, call: _Call) -> None:
        self._current = call
        self._asked = 0
        self._deadline = deadline = self._loop.time() + call.timeout
        if self._timer is None or self._timer.when() > deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(deadline, self._watch)
        message = call.message
        if len(message) <= MAX_PACKET:
            try:
                self._socket.send(message)
            except BlockingIOError:
                self._outgoing, self._unsent = iter(()), message
                self._loop.add_writer(self._socket, self._pump)
            except OSError:
                self._end(None)
            return
        self._outgoing = packets(message)
        self._unsent = next(self._outgoing)
        self._loop.add_writer(self._socket, self._pump)

    def _pump(self) -> None:
        """Send as much as the socket takes; called when it can take some."""
        if self._outgoing is None:
            return
        try:
            while True:
                self._socket.send(self._unsent)
                self._unsent = next(self._outgoing)
        except BlockingIOError:
            return
        except StopIteration:
            self._outgoing = None
            self._loop.remove_writer(self._socket)
        except OSError:
            self._end(None)

    def _watch(self) -> None:
        self._timer = None
        if self._current is None:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._watch)
            return
        late, timeout = self._current, self._current.timeout
        self._read()  # this process may have been stopped, or busy: an answer that lies there is not the worker's lateness
        if not self._open or self._current is not late:
            return
        self._end(WorkerTimeout(f"the worker gave no answer within {timeout:g} s and was killed", timeout=timeout))

    # --- receiving ---

    def _read(self) -> None:
        try:
            size = self._socket.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            self._end(None)
            return
        if size == 0:
            self._end(None)
            return
        try:
            message = self._whole(self._view[:size])
            if message is not None:
                self._settle(message)
        except CodecError as error:
            self._end(ProtocolViolation(f"the worker sent what no worker sends: {error}"))

    def _whole(self, packet: memoryview) -> bytes | memoryview | None:
        """The message that this packet completes, None if it completes none. Raises CodecError for one that was not to come."""
        size = len(packet)
        if self._current is None:
            raise CodecError("a message that nobody asked for")
        if size > MAX_PACKET:
            raise CodecError(f"a packet of more than {MAX_PACKET} bytes")
        if self._missing:
            if size != min(MAX_PACKET, self._missing):
                raise CodecError(f"a fragment of {size} bytes where {min(MAX_PACKET, self._missing)} were announced")
            self._parts.append(bytes(packet))
            self._missing -= size
            if self._missing:
                return None
            message, self._parts = b"".join(self._parts), []
            return message
        if packet[0] == FRAGMENTED:
            self._missing = announced(packet, MAX_ANSWER)
            return None
        return packet

    def _settle(self, message: bytes | memoryview) -> None:
        """Give the open call its answer and start the next one. Raises CodecError for what is no answer to it."""
        call = self._current
        reply = reply_of(message)
        if call is None or reply.id != call.number or self._outgoing is not None:
            raise CodecError(f"an answer to request {reply.id}, which is not open")
        if isinstance(reply, Asked):
            self._hear(call, reply)
            return
        self._current = None
        if call.desk is not None:
            call.desk.close()
            self._stop_telling()
        if not call.future.done():
            if isinstance(reply, Answer):
                call.future.set_result(reply.value)
            elif isinstance(reply, Trace):
                call.future.set_result(reply)
            else:
                call.future.set_exception(_error_of(reply))
        self._start_next()

    # --- questions within a call ---

    def _hear(self, call: _Call, question: Asked) -> None:
        """Raises CodecError for a question that may not be asked."""
        self._asked += 1
        if call.desk is None:
            raise CodecError("a question to a model, in a request that allows none")
        if question.number != self._asked or self._asked > call.desk.most:
            raise CodecError(f"question {question.number} where question {self._asked} of {call.desk.most} could come")
        if (size := question_size(question.messages)) > MAX_QUESTION:
            raise CodecError(f"a question of {size} bytes, where at most {MAX_QUESTION} can be asked")
        call.desk.ask(question, self._deadline, lambda told: self._tell(call, told))

    def _tell(self, call: _Call, told: Told) -> None:
        if self._current is not call or not self._open:
            return  # the worker didn't wait for it
        self._telling.append(codec.encode(told))
        if len(self._telling) == 1:
            self._tell_on()

    def _tell_on(self) -> None:
        """Send as many of the answers as the socket takes; called when it can take some."""
        try:
            while self._telling:
                self._socket.send(self._telling[0])
                self._telling.popleft()
        except BlockingIOError:
            self._loop.add_writer(self._socket, self._tell_on)
            return
        except OSError:
            self._end(None)
            return
        self._loop.remove_writer(self._socket)

    def _stop_telling(self) -> None:
        if self._telling:
            self._telling.clear()
            self._loop.remove_writer(self._socket)

    def _start_next(self) -> None:
        while self._current is None and (waiting := self._waiting or self._idle):
            following = waiting.popleft()
            if not following.future.done():
                self._start(following)


def _error_of(failure: Failure) -> SandboxError:
    """The error of an untrusted failure: its texts are cut and stripped of control characters."""
    message = printable(shortened(failure.message, MAX_ERROR_MESSAGE)) or "no reason given"
    traceback = printable(shortened(failure.traceback, MAX_TRACEBACK))
    if failure.kind == "isolation":
        return IsolationError(message, wanted=2, available=1)
    return LoadError(message, traceback=traceback) if failure.kind == "load" else PolicyError(message, traceback=traceback)
