"""The optimizer's loop beside the releases: it ends when it is told to."""

import asyncio
from types import SimpleNamespace

import pytest

from agentd.hosting.improver import Improver
from agentd.records import Mode


async def test_being_woken_in_the_moment_of_its_end_does_not_keep_it_alive():
    keeper = SimpleNamespace(state=SimpleNamespace(mode=Mode.OBSERVE))
    improver = Improver(keeper, None, None, None, (), 1)
    waiting = asyncio.create_task(improver.run())
    await asyncio.sleep(0)
    improver.wake()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(10):
            await waiting
