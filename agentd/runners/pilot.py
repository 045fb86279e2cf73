"""One worker that drives one device, with a deadline for each answer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from agentd.clock import Clock
from agentd.errors import SandboxError
from agentd.records import Exchange, Value
from agentd.sandbox import UNCHANGED, Desk, PolicyWorker


class NotedDesk(Desk, Protocol):
    """Who answers what a step asks of models, and notes it."""

    outage: str
    """What failed without the program's fault."""

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """What was asked and answered so far."""


class Desks(Protocol):
    """The models of an agent (agentd.runners.models)."""

    def desk(self) -> NotedDesk:
        """For one step."""


class LateError(Exception):
    """The answer did not come before the deadline."""


Spawn = Callable[[Awaitable[Any], str], "asyncio.Task[Any]"]
"""Starts a task in the runner's group, by name."""


class Pilot:
    """A policy at work. A late answer is discarded when it comes; meanwhile nothing is queued behind it.

    `after` is what must be over first on the same worker: the end of an episode that may not have begun there before this one.
    `deadline` is in seconds from an observation's arrival; None leaves the time to the sandbox's `step_timeout`. `begun`: its policy is in
    the middle of its work on this device already, and goes on as it is. `models` answer what it asks of them.
    """

    def __init__(
        self,
        worker: PolicyWorker,
        device: str,
        *,
        episode: str,
        seed: int | None,
        deadline: float | None,
        clock: Clock,
        spawn: Spawn,
        after: "asyncio.Task[Any] | None" = None,
        begun: bool = False,
        models: Desks | None = None,
    ) -> None:
        self.worker = worker
        self.begun = begun
        self.desk: NotedDesk | None = None
        """Who answered the last question to the policy's models; None where it may ask none."""
        self._models = models
        self._noted = True
        self._device = device
        self._episode = episode
        self._seed = seed
        self._deadline = deadline
        self._clock = clock
        self._spawn = spawn
        self._after = after
        self._pending: asyncio.Future[Value] | asyncio.Task[Value | SandboxError] | None = None
        self._corrected: Value = UNCHANGED

    async def begin(self) -> None:
        """Let the policy begin an episode. Raises SandboxError."""
        if self._after is not None:
            await asyncio.wait({self._after})
        self.begun = True
        await self.worker.reset(self._device, self._episode, self._seed)

    async def act(self, tick: int, observation: Value, received_at: float) -> Value:
        """The policy's action. Raises LateError, or SandboxError for what the program did, now or in an answer that came late."""
        if self._pending is not None:
            if not self._pending.done():
                raise LateError
            late, self._pending = self._pending, None
            _outcome(late)
        answer: asyncio.Future[Value] | asyncio.Task[Value | SandboxError]
        if self.begun:
            answer = self._ask(tick, observation)  # on every tick but the first, and there without a task
        else:
            answer = self._spawn(self._begin_and_act(tick, observation), f"begin-{self._device}")
        if self._deadline is None:
            await asyncio.wait((answer,))
        else:
            await asyncio.wait((answer,), timeout=max(0.0, received_at + self._deadline - self._clock.monotonic()))
        if not answer.done():
            self._pending = answer
            raise LateError
        return _outcome(answer)

    def asked(self) -> tuple[Exchange, ...]:
        """What the policy asked of models since the last time this was called."""
        if self._noted or self.desk is None:
            return ()
        self._noted = True
        return self.desk.exchanges

    def correct(self, action: Value) -> None:
        """Tell the policy, with the next observation, that the plant got this action and not its own."""
        self._corrected = action

    async def state(self) -> Value:
        """What the policy would hand over to a successor, after the last observation that it was asked about. Raises SandboxError."""
        return await self.worker.state(self._device)

    async def load_state(self, state: Value) -> None:
        """Let the policy, which has begun, go on from what a predecessor handed over. Raises SandboxError."""
        await self.worker.load_state(self._device, state)

    @property
    def ends_at_once(self) -> bool:
        """Whether `end` tells the worker before it returns: it has begun, and no task of ours is about to ask it."""
        return self.begun and not isinstance(self._pending, asyncio.Task)

    def end(self, final_observation: Value) -> Awaitable[bytes | None]:
        """End the episode; awaiting what it gives takes the trace (untrusted). Raises SandboxError, now or then.

        Where it `ends_at_once`, the policy may be asked about the next episode's first observation as soon as this returns.
        """
        if not self.ends_at_once:
            return self._end_later(final_observation)
        if self._pending is not None:
            self._pending.add_done_callback(_forget)
        return self.worker.collect(self.worker.cut(self._device, final_observation))

    async def _end_later(self, final_observation: Value) -> bytes | None:
        if self._pending is not None:
            await asyncio.wait((self._pending,))
            self._pending.exception()  # what a late answer says now, the end says too
        return await self.worker.finish(self._device, final_observation) if self.begun else None

    def _ask(self, tick: int, observation: Value) -> asyncio.Future[Value]:
        corrected, self._corrected = self._corrected, UNCHANGED
        if self._models is not None:
            self.desk, self._noted = self._models.desk(), False
        return self.worker.ask(self._device, tick, observation, safe=corrected, desk=self.desk)

    async def _begin_and_act(self, tick: int, observation: Value) -> Value | SandboxError:
        """For a task of the runner's group: an error is an answer too, since nobody may be waiting any more."""
        try:
            await self.begin()
            return await self._ask(tick, observation)
        except SandboxError as error:
            return error


def _forget(late: "asyncio.Future[Any]") -> None:
    """What a late answer says, the end of the episode says too."""
    if not late.cancelled():
        late.exception()


def _outcome(answer: "asyncio.Future[Value] | asyncio.Task[Value | SandboxError]") -> Value:
    """The action of an answer that is there. Raises SandboxError."""
    result = answer.result()
    if isinstance(result, SandboxError):
        raise result
    return result
