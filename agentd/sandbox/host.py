"""A worker's way to models: it asks the runner, who has keys and budget, over its channel and within the request that is open."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from agentd import codec
from agentd.errors import BudgetExhausted, ModelError
from agentd.sandbox.wire import MAX_QUESTION, Act, Asked, Call, Define, Load, Request, Told, question_size
from agentd.trace.host import checked

_NOT_ALLOWED = "this agent may ask no models: its agent.toml has no [models]"
_OUT_OF_PLACE = "models can be asked within `act` only"
_IN_LEAF = 'a code parameter of an agent with scope = "code" can ask no models: ask in the program, and pass the answer on as an argument'


class Connection(Protocol):
    """The worker's end of its channel (agentd.sandbox.server)."""

    def fileno(self) -> int:
        """Readable when there is something to receive."""

    def receive(self) -> Request | Told | None:
        """The next message; blocks."""

    def send(self, message: bytes) -> None:
        """Send a message."""


class WorkerHost:
    """The Host of programs in a worker (agentd.trace.host). Blocking questions and those of tasks may be mixed."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._most = 0
        self._request: int | None = None
        """The request within which may be asked."""
        self._in_leaf = False
        self._asked = 0
        self._blocking: dict[int, Told | None] = {}
        self._waiting: dict[int, asyncio.Future[Told]] = {}

    def begin(self, request: Request) -> None:
        """A request begins."""
        if isinstance(request, Load):
            self._most = request.model_calls
        self._in_leaf = isinstance(request, Call | Define)
        self._request = request.id if isinstance(request, Act) else None
        self._asked = 0

    def end(self) -> None:
        """The request is over: who still waits for an answer gets none."""
        self._request = None
        for waiting in self._waiting.values():
            waiting.cancel()

    def complete(self, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
        """A model's answer. Raises ModelError and BudgetExhausted."""
        number = self._ask(messages, options)
        self._blocking[number] = None
        try:
            while (told := self._blocking[number]) is None:
                self._receive()
        finally:
            del self._blocking[number]
        return _text(told)

    async def acomplete(self, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
        """As `complete`, while other tasks go on."""
        number = self._ask(messages, options)
        loop = asyncio.get_running_loop()
        self._waiting[number] = loop.create_future()
        loop.add_reader(self._connection.fileno(), self._receive)
        try:
            return _text(await self._waiting[number])
        finally:
            del self._waiting[number]
            if not self._waiting:
                loop.remove_reader(self._connection.fileno())

    def _ask(self, messages: Sequence[Mapping[str, str]], options: Mapping[str, Any]) -> int:
        said = checked(messages, options)
        if self._in_leaf:
            raise ModelError(_IN_LEAF, model="")
        if self._most == 0 or self._request is None:
            raise ModelError(_OUT_OF_PLACE if self._most else _NOT_ALLOWED, model="")
        if self._asked >= self._most:
            raise ModelError(f"{self._most} questions to models are allowed in a step ([models] calls_per_step)", model="")
        size = question_size(said)
        if size > MAX_QUESTION:
            raise ModelError(f"a question of {size} bytes, where at most {MAX_QUESTION} can be asked", model="")
        question = codec.encode(Asked(self._request, self._asked + 1, said, **options))
        self._asked += 1
        self._connection.send(question)
        return self._asked

    def _receive(self) -> None:
        """Take the next message, which can only be an answer. Those that nobody waits for are thrown away."""
        told = self._connection.receive()
        if told is None:
            os._exit(0)  # the runner is gone
        if not isinstance(told, Told) or told.id != self._request:
            return
        waiting = self._waiting.get(told.number)
        if told.number in self._blocking:
            self._blocking[told.number] = told
        elif waiting is not None and not waiting.done():
            waiting.set_result(told)


def _text(told: Told) -> str:
    if told.error == "BudgetExhausted":
        raise BudgetExhausted(told.text, resets_at=told.resets_at)
    if told.error:
        raise ModelError(told.text, model=told.model, status=told.status, retryable=told.retryable)
    return told.text
