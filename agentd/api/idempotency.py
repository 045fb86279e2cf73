"""Idempotency-Key: a POST that is sent again gets the first one's answer, and is done once."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.responses import Response

from agentd.api.problems import Problem

CAPACITY = 1024
MAX_KEY = 255


@dataclass(slots=True)
class _Answer:
    fingerprint: bytes
    done: asyncio.Event = field(default_factory=asyncio.Event)
    response: Response | None = None


class Answers:
    """The latest answers by key, as long as the daemon runs; the oldest are forgotten first."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._answers: OrderedDict[str, _Answer] = OrderedDict()

    async def once(self, key: str | None, request: bytes, work: Callable[[], Awaitable[Response]]) -> Response:
        """What `work` answers; for a key that was seen before with the same `request`, what it answered then.

        A second request waits for a first that is still going on. Failures are not remembered: asking again tries again.

        Raises:
            Problem: the key is too long, or came with another request.
        """
        if key is None:
            return await work()
        if not 0 < len(key) <= MAX_KEY:
            raise Problem(400, "bad-idempotency-key", f"an Idempotency-Key should have 1 to {MAX_KEY} characters")
        fingerprint = hashlib.sha256(request).digest()
        while (known := self._answers.get(key)) is not None:
            if known.fingerprint != fingerprint:
                raise Problem(422, "reused-idempotency-key", "this Idempotency-Key came with another request before")
            if known.response is not None:
                return known.response
            await known.done.wait()
        return await self._first(key, fingerprint, work)

    async def _first(self, key: str, fingerprint: bytes, work: Callable[[], Awaitable[Response]]) -> Response:
        answer = self._answers[key] = _Answer(fingerprint)
        try:
            answer.response = await work()
            return answer.response
        finally:
            answer.done.set()
            if answer.response is None:
                del self._answers[key]
            elif len(self._answers) > self._capacity:
                finished = next((name for name, item in self._answers.items() if item.response is not None), None)
                if finished is not None:
                    del self._answers[finished]
