"""Whole agentds to break, and arenas to break out of."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from escape import arena
from hosted import hosted  # noqa: F401 - a fixture
from witness import serve_cartpole  # noqa: F401 - a fixture

from agentd.sandbox import Zygote


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[2, 3], ids=["level 2", "level 3"])
async def zygote(request: pytest.FixtureRequest) -> AsyncIterator[Zygote]:
    async with arena(request.param) as locked:
        yield locked


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def unlocked_zygote() -> AsyncIterator[Zygote]:
    async with arena(0) as unlocked:
        yield unlocked
