"""A fixed rate of actions: for robots that send what they see when they see it, and want to be told what to do every so often."""

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import msgspec

from agentd.clock import Clock
from agentd.environments import Begun, Device, Transition
from agentd.errors import PlantLost
from agentd.records import Purpose, Value


class Pacer:
    """Ticks at absolute times, `period` seconds apart: what one tick takes too long, the next ones don't add up."""

    def __init__(self, period: float, start: float) -> None:
        self.tick = 0
        self._period = period
        self._start = start

    @property
    def due(self) -> float:
        """When the next tick is."""
        return self._start + (self.tick + 1) * self._period

    def advance(self, now: float) -> int:
        """Go to the tick that is due, and tell how many were missed before it."""
        missed = max(0, math.floor((now - self.due) / self._period))
        self.tick += 1 + missed
        return missed


@runtime_checkable
class Streaming(Device, Protocol):
    """A device that can be given an action without waiting for what comes of it."""

    def send(self, action: Value, *, revision: str, safe: bool) -> bool:
        """Give the plant its action."""
        ...

    def newest(self) -> Transition | None:
        """What came since it was last asked for. Raises PlantLost."""
        ...

    def give_up(self, timeout: float) -> PlantLost:
        """Nobody drives its episode any more, after `timeout` seconds of silence. What to raise."""
        ...


class PacedDevice:
    """A device that is driven at a fixed rate: each step gives it one action and ends at the next tick, with the newest observation.

    A tick without a fresh one has the observation of the tick before, and is counted (`stale_ticks`). Beyond `dead_man` seconds its
    transition says so (`stale`), beyond `timeout` the plant is lost. `missed_ticks` are those that this machine was too slow for.
    """

    def __init__(
        self, device: Streaming, *, rate: float, dead_man: float | None, timeout: float, clock: Clock, count: Callable[[str, float], None]
    ) -> None:
        self.id = device.id
        self.seedable = device.seedable
        self.labels: Mapping[str, str] = device.labels
        self._device = device
        self._period = 1.0 / rate
        self._dead_man = dead_man if dead_man is not None else math.inf
        self._timeout = timeout
        self._clock = clock
        self._count = count
        self._pacer = Pacer(self._period, clock.monotonic())
        self._last = Transition(observation=None)
        self._heard_at = 0.0

    async def reset(self, episode: str, seed: int | None, max_steps: int, purpose: Purpose = Purpose.NORMAL) -> Transition:
        """Begin an episode; its first observation is the first tick."""
        return self._begin(await self._device.reset(episode, seed, max_steps, purpose))

    async def begun(self) -> Begun:
        """Wait for an episode that the device begins by itself."""
        begun = await self._device.begun()
        return Begun(begun.episode, self._begin(begun.first))

    async def step(self, action: Value, *, revision: str, safe: bool) -> Transition:
        """Give the plant its action, and wait for the next tick."""
        self._device.send(action, revision=revision, safe=safe)
        await asyncio.sleep(max(0.0, self._pacer.due - self._clock.monotonic()))
        now = self._clock.monotonic()
        missed = self._pacer.advance(now)
        if missed:
            self._count("missed_ticks", missed)
        fresh = self._device.newest()
        if fresh is not None:
            self._heard_at, self._last = fresh.received_at, fresh
            return msgspec.structs.replace(fresh, tick=self._pacer.tick, received_at=now)
        self._count("stale_ticks", 1)
        silence = now - self._heard_at
        if silence > self._timeout:
            raise self._device.give_up(self._timeout)
        return Transition(observation=self._last.observation, tick=self._pacer.tick, received_at=now, stale=silence > self._dead_man)

    async def rest(self, action: Value) -> None:
        """Leave the plant with this action."""
        self._device.send(action, revision="", safe=True)
        await self._device.rest(action)

    async def aclose(self) -> None:
        """Release what the device holds."""
        await self._device.aclose()

    def _begin(self, first: Transition) -> Transition:
        now = self._clock.monotonic()
        self._pacer = Pacer(self._period, now)
        self._heard_at, self._last = first.received_at, first
        return msgspec.structs.replace(first, tick=0, received_at=now)
