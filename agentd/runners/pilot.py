"""One worker that drives one device through one episode, with a deadline for each answer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from agentd.clock import Clock
from agentd.errors import SandboxError
from agentd.records import Value
from agentd.sandbox import UNCHANGED, PolicyWorker


class LateError(Exception):
    """The answer did not come before the deadline."""


Spawn = Callable[[Awaitable[Any], str], "asyncio.Task[Any]"]
"""Starts a task in the runner's group, by name."""


class Pilot:
    """A policy at work. A late answer is discarded when it comes; meanwhile nothing is queued behind it.

    `after` is what must be over first on the same worker: the end of its episode before this one.
    `deadline` is in seconds from an observation's arrival; None leaves the time to the sandbox's `step_timeout`.
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
    ) -> None:
        self.worker = worker
        self._device = device
        self._episode = episode
        self._seed = seed
        self._deadline = deadline
        self._clock = clock
        self._spawn = spawn
        self._after = after
        self._begun = False
        self._pending: asyncio.Task[Value | SandboxError] | None = None
        self._corrected: Value = UNCHANGED

    async def begin(self) -> None:
        """Let the policy begin an episode. Raises SandboxError."""
        if self._after is not None:
            await asyncio.wait({self._after})
        self._begun = True
        await self.worker.reset(self._device, self._episode, self._seed)

    async def act(self, tick: int, observation: Value, received_at: float) -> Value:
        """The policy's action. Raises LateError, or SandboxError for what the program did, now or in an answer that came late."""
        if self._pending is not None:
            if not self._pending.done():
                raise LateError
            late, self._pending = self._pending.result(), None
            if isinstance(late, SandboxError):
                raise late
        if self._deadline is None:
            return await self._ask(tick, observation)
        remaining = received_at + self._deadline - self._clock.monotonic()
        task = self._spawn(self._try(tick, observation), f"act-{self._device}")
        await asyncio.wait({task}, timeout=max(0.0, remaining))
        if not task.done():
            self._pending = task
            raise LateError
        answer = task.result()
        if isinstance(answer, SandboxError):
            raise answer
        return answer

    def correct(self, action: Value) -> None:
        """Tell the policy, with the next observation, that the plant got this action and not its own."""
        self._corrected = action

    async def finish(self, final_observation: Value) -> bytes | None:
        """End the episode and take its trace (untrusted). Raises SandboxError."""
        if self._pending is not None:
            await asyncio.wait({self._pending})
        return await self.worker.finish(self._device, final_observation) if self._begun else None

    async def _ask(self, tick: int, observation: Value) -> Value:
        if not self._begun:
            await self.begin()
        corrected, self._corrected = self._corrected, UNCHANGED
        return await self.worker.act(self._device, tick, observation, safe=corrected)

    async def _try(self, tick: int, observation: Value) -> Value | SandboxError:
        """`_ask` for a task of its own: an error is an answer too, since nobody may be waiting any more."""
        try:
            return await self._ask(tick, observation)
        except SandboxError as error:
            return error
