"""What environments in the runner's own process share: a fixed set of devices that never leave and begin nothing by themselves."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Self

from agentd.environments.contract import Begun, Change, Counters, Device, Joined
from agentd.records import Space, Value


class InProcessDevice:
    """A plant that waits for its runner."""

    seedable = True

    def __init__(self, id: str) -> None:  # noqa: A002 - the contract's name
        self.id = id
        self.labels: Mapping[str, str] = {}

    async def begun(self) -> Begun:
        """It never begins by itself: this waits for ever."""
        never: asyncio.Future[Begun] = asyncio.get_running_loop().create_future()
        return await never

    async def rest(self, action: Value) -> None:
        """What isn't stepped stands still already."""

    async def aclose(self) -> None:
        """Release what is held."""


class InProcessEnvironment:
    """`devices`, there from the beginning to the end."""

    def __init__(self, devices: Sequence[Device], spaces: tuple[Space, Space], safe_action: Value) -> None:
        self.counters = Counters()
        self.observation_space, self.action_space = spaces
        self.safe_action = safe_action
        self._devices = tuple(devices)

    @property
    def connected(self) -> bool:
        """Whether devices can be reached now."""
        return True

    async def changes(self) -> AsyncIterator[Change]:
        """Devices as they join and leave, as the contract says."""
        for device in self._devices:
            yield Joined(device)
        await asyncio.get_running_loop().create_future()  # none ever joins or leaves later

    async def announce(self, status: str) -> None:
        """Nobody listens."""

    async def aclose(self) -> None:
        """Release what is held."""
        for device in self._devices:
            await device.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()
