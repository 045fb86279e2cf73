"""SqlStore keeps the store's contract, on SQLite and, where a URL to an empty database is given, on PostgreSQL."""

import os

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from agentd.store import SqlStore
from agentd.testing.store import StoreContract

POSTGRESQL = os.environ.get("AGENTD_TEST_POSTGRESQL")


@pytest.fixture(params=["sqlite", "postgresql"] if POSTGRESQL else ["sqlite"])
async def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/agentd.db"
    engine = create_async_engine(POSTGRESQL.replace("postgresql://", "postgresql+asyncpg://"))
    async with engine.begin() as connection:
        await connection.execute(text("DROP SCHEMA public CASCADE"))
        await connection.execute(text("CREATE SCHEMA public"))
    await engine.dispose()
    return POSTGRESQL


@pytest.fixture
async def open_store(url):
    opened = []

    async def open_again(clock=None):
        opened.append(await SqlStore.open(url, clock=clock))
        return opened[-1]

    yield open_again
    for store in opened:
        await store.aclose()


class TestSqlStore(StoreContract):
    pass
