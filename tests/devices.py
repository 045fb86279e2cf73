"""What becomes of an environment's devices."""

import asyncio
from typing import TypeVar

from agentd.environments import Change, Device, Environment, Joined

Kind = TypeVar("Kind", bound=Change)


async def change(environment: Environment, kind: type[Kind]) -> Kind:
    """The next change of this kind; others are passed over."""
    async with asyncio.timeout(10):
        changes = environment.changes()
        while not isinstance(found := await anext(changes), kind):
            pass
        return found


async def joined(environment: Environment) -> Device:
    """The next device that joins."""
    return (await change(environment, Joined)).device
