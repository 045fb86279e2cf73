"""What the runner asks of an environment.

An environment is a set of devices that come and go. A device runs one episode at a time: `reset` begins it and gives the first
observation; each `step` gives the plant one action and waits for what comes of it, until `terminated` or `truncated`. Whoever drives a
device answers each of its observations, with the policy's action or with the safe one; the environment itself answers only what nobody
drives. A device that is gone raises PlantLost, with a reason, from `reset` or `step`, and never hangs: every wait is limited.

Observations are plain values of the environment's observation space: a whole number for discrete spaces, a float for a box without
shape, a list of floats for a box of one dimension, a numpy array for more.
"""

import collections
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import msgspec

from agentd.records import Purpose, Space, Value


class Transition(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an action: the next observation, and whether it was the last.

    `tick` is the plant's count of it (a lost message leaves a gap). `received_at` is the clock's monotonic time of its arrival: the
    deadline of the answer counts from there. `fallback` says that the plant did not get the action, or not to its end, and used another.
    `braked` says that the environment gave it the safe action since the last observation: nothing usable had been heard of it for too long.
    `stale` says that this is an old observation, and nothing newer came within the dead man's limit: it is answered safely.
    """

    observation: Value
    reward: float | None = None
    terminated: bool = False
    truncated: bool = False
    info: dict[str, Value] = {}
    tick: int = 0
    received_at: float = 0.0
    fallback: bool = False
    braked: bool = False
    stale: bool = False

    @property
    def last(self) -> bool:
        """Whether the episode ends here."""
        return self.terminated or self.truncated


@dataclass(frozen=True, slots=True)
class Begun:
    """An episode that the device began by itself: its id on the device, and the first observation.

    `waits`: a client's request. It may wait for a worker, its id is the episode's own, and `client` is the device that the episode names.
    """

    episode: str
    first: Transition
    waits: bool = False
    client: str = ""
    instruction: str = ""


@runtime_checkable
class Device(Protocol):
    """One plant."""

    id: str
    seedable: bool
    labels: Mapping[str, str]

    async def reset(self, episode: str, seed: int | None, max_steps: int, purpose: Purpose = Purpose.NORMAL) -> Transition:
        """Begin an episode; the transition holds the first observation only. Raises PlantLost or PlantError.

        `purpose` is for devices that hold something back for comparisons; a plant is the same whatever its episode is for.
        """
        ...

    async def step(self, action: Value, *, revision: str, safe: bool) -> Transition:
        """Give the plant its action and wait for what comes of it. Raises PlantLost or PlantError."""
        ...

    async def begun(self) -> Begun:
        """Wait for an episode that the device begins by itself. Where devices don't, it waits for ever. Raises PlantLost."""
        ...

    async def rest(self, action: Value) -> None:
        """Give the plant this (safe) action because its episode is left before its end. Raises nothing: it may be gone already."""
        ...

    async def aclose(self) -> None:
        """Release what the device holds."""
        ...


@dataclass(frozen=True, slots=True)
class Joined:
    """A device that can be driven from now on."""

    device: Device


@dataclass(frozen=True, slots=True)
class Left:
    """A device that is gone. `reason`: disconnected, silent, stopped, superseded."""

    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class Linked:
    """The connection to the devices came (or went, and why)."""

    connected: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Rival:
    """Another runner, of this session, drives the same agent's devices."""

    session: str


Change = Joined | Left | Linked | Rival


class Counters:
    """What an environment counts: messages by direction, dropped messages by reason, answers it gave by itself by reason."""

    def __init__(self) -> None:
        self.messages: collections.Counter[str] = collections.Counter()
        self.dropped: collections.Counter[str] = collections.Counter()
        self.safe_actions: collections.Counter[str] = collections.Counter()


class Environment(Protocol):
    """The devices of one agent. Entering connects; leaving closes every device."""

    observation_space: Space
    action_space: Space
    safe_action: Value
    counters: Counters

    @property
    def connected(self) -> bool:
        """Whether devices can be reached now."""
        ...

    def changes(self) -> AsyncIterator[Change]:
        """Devices as they join and leave, from the beginning; one reader."""
        ...

    async def announce(self, status: str) -> None:
        """Tell the devices what the agent does: starting, ready, paused, stopped. Raises nothing: they may be out of reach."""
        ...

    async def aclose(self) -> None:
        """Disconnect."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exception: object) -> None: ...
