"""What a zygote leaves behind whose start was given up: nothing."""

import asyncio
import contextlib
import gc

import pytest

from agentd.sandbox import Zygote


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.01, 0.05, 0.1, 0.2])
async def test_a_start_that_is_cancelled_leaves_nothing_open(delay):
    starting = asyncio.create_task(Zygote.start(imports=("math",)))
    await asyncio.sleep(delay)
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await (await starting).aclose()
    del starting
    gc.collect()  # what was left open warns now, and warnings are errors
