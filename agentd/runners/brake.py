"""The safe action. A value needs nobody; a function of the author's gets a process of its own, a limit of time, and the value behind it.

The function comes from the agent's files as their author wrote them. It must not run where a policy does, since code that was learned can
change whatever it shares a process with; and not in the runner, since it may hang. So it runs as policies do, forked from the same zygote,
locked down in the same way, but with no revision's values. What it gives is checked against the envelope, without the rate of change:
a brake may be as sudden as it must be.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Protocol, Self

from agentd.errors import PolicyError, SandboxError
from agentd.records import Source, Value
from agentd.runners.envelope import Envelope
from agentd.sandbox import BrakeWorker

RESTART = 0.5
"""Seconds before a brake that died is started again."""


class Brake(Protocol):
    """What gives the safe action."""

    async def action(self, observation: Value) -> Value:
        """The safe action on `observation`, soon, whatever happens."""
        ...

    async def check(self, source: Source) -> None:
        """Raises SandboxError when the function of this source can't be loaded."""
        ...

    async def fit(self, source: Source) -> None:
        """Take the function from this source from now on. Raises SandboxError when it can't be loaded."""
        ...

    async def aclose(self) -> None:
        """End what runs."""
        ...


class ConstantBrake:
    """The value of `[environment.safe_action]`."""

    def __init__(self, value: Value) -> None:
        self._value = value

    async def action(self, observation: Value) -> Value:  # noqa: ARG002 - the same for every observation
        """The value."""
        return self._value

    async def check(self, source: Source) -> None:
        """It needs no source."""

    async def fit(self, source: Source) -> None:
        """It needs no source."""

    async def aclose(self) -> None:
        """Nothing runs."""


class ComputedBrake:
    """The function that `[environment.safe_action] entrypoint` names, with the value behind it. `limit` is in seconds.

    `brake_faults` are counted by reason: dead, late, error, invalid.
    """

    def __init__(
        self,
        value: Value,
        *,
        limit: float,
        envelope: Envelope,
        start: Callable[[Source], Awaitable[BrakeWorker]],
        count: Callable[[str], None],
        happened: Callable[[str, str], None],
    ) -> None:
        self._value = value
        self._limit = limit
        self._envelope = envelope
        self._start = start
        self._count = count
        self._happened = happened
        self._digest = ""
        self._worker: BrakeWorker | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._asked: set[asyncio.Future[Value]] = set()  # what may still be answered in time
        self._late: asyncio.Future[Value] | None = None  # what the function at work has not answered in time

    async def action(self, observation: Value) -> Value:
        """The function's action if it is there in time and within the envelope, else the value."""
        worker = self._worker
        if worker is None:
            return self._instead("dead")
        if self._late is not None and not self._late.done():
            return self._instead("late")  # nothing is queued behind an answer that is late
        try:
            answer = worker.ask(observation)
            self._asked.add(answer)
            try:
                await asyncio.wait((answer,), timeout=self._limit)
            finally:
                self._asked.discard(answer)
            if not answer.done():
                if worker is self._worker:  # what another took the place of holds nobody up
                    self._late = answer
                answer.add_done_callback(_forget)
                return self._instead("late")
            return self._envelope.check(answer.result(), None)
        except ValueError:
            return self._instead("invalid")
        except SandboxError as error:
            return self._instead("error" if isinstance(error, PolicyError) else "dead")

    def _instead(self, reason: str) -> Value:
        self._count(f"brake_faults.{reason}")
        return self._value

    async def check(self, source: Source) -> None:
        """Start the function of this source, and end it again. Raises SandboxError when it can't be loaded."""
        if source.digest != self._digest:
            await (await self._start(source)).aclose()

    async def fit(self, source: Source) -> None:
        """Start the function of this source, then end the one before, which may still answer what it was asked in time.

        Raises SandboxError when it can't be loaded.
        """
        if source.digest == self._digest:
            return
        worker = await self._start(source)
        before, self._keeper = self._keeper, asyncio.create_task(self._keep(source, worker), name="brake")
        self._digest, self._worker, self._late = source.digest, worker, None  # from here on it brakes: no moment is without a function
        try:
            if self._asked:
                await asyncio.wait(self._asked, timeout=self._limit)  # not for what is late: a hung one holds up no switch
        finally:
            await _ended(before)

    async def _keep(self, source: Source, worker: BrakeWorker) -> None:
        """Start it again when it has died: it is killed when it hangs."""
        try:
            while True:
                await worker.died.wait()
                await worker.aclose()
                self._happened("brake.died", "what computes the safe action died and is started again; meanwhile the value is used")
                while worker.died.is_set():
                    await asyncio.sleep(RESTART)
                    with contextlib.suppress(SandboxError):
                        self._worker = worker = await self._start(source)
        finally:
            if self._worker is worker:
                self._worker = None
            await worker.aclose()

    async def aclose(self) -> None:
        """End it."""
        keeper, self._keeper = self._keeper, None
        await _ended(keeper)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()


async def _ended(keeper: "asyncio.Task[None] | None") -> None:
    if keeper is not None:
        keeper.cancel()
        await asyncio.wait({keeper})


def _forget(late: "asyncio.Future[Value]") -> None:
    if not late.cancelled():
        late.exception()
