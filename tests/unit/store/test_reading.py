"""The reading side: cancelled readers, many readers, and readers beside retention and backups."""

import asyncio
import gc
import random

import pytest

from agentd.records import Event
from agentd.store import SqlStore
from agentd.testing.store.examples import SOURCE, episode, feedback, release, revision


@pytest.fixture
async def store(tmp_path):
    async with await SqlStore.open(f"sqlite:///{tmp_path}/agentd.db") as store:
        yield store


async def test_readers_that_are_cancelled_leave_no_connection_behind(store):
    await store.commit(*(Event(kind="x", at=1.0, data={"n": number}) for number in range(500)))
    for delay in range(60):
        reading = [asyncio.create_task(store.events(limit=1000)) for _ in range(6)]
        await asyncio.sleep(delay / 10_000)
        for task in reading:
            task.cancel()
        await asyncio.wait(reading)
    gc.collect()  # a lost connection would be a ResourceWarning, hence an error
    assert store._readers.pool.checkedout() == 0
    assert len(await store.events(limit=1000)) == 500


async def test_more_readers_than_connections_take_turns(store):
    await store.commit(Event(kind="x", at=1.0))
    assert await asyncio.gather(*(store.events() for _ in range(100))) == [await store.events()] * 100


async def test_a_read_sees_one_state_of_the_store(store):
    first = revision(0.0)
    await store.commit(SOURCE, first)
    stop = asyncio.Event()

    async def write():
        number = 0
        while not stop.is_set():
            number += 1
            # Both are promoted or neither is: memory reads them with several queries.
            await store.commit(*(release(f"r{which}", first, first, pairs=number, candidate_sum=float(number)) for which in "ab"))

    async def read():
        for _ in range(100):
            pairs = {one.pairs for one in await store.releases("cartpole")}
            assert len(pairs) <= 1
        stop.set()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(write())
        tasks.create_task(read())


async def test_commits_reads_retention_and_backups_go_on_together(store, tmp_path):
    await store.commit(SOURCE, revision(0.0))
    committed = []

    async def commit():
        for number in range(60):
            committed.extend(await store.commit(Event(kind="x", at=1.0, data={"n": number}), revision(float(number))))

    async def run():
        for number in range(300):
            ran = episode(f"e{number}", revision(0.0), trace=b"t" * 3000)
            await store.add_episode(ran, feedback(ran.id, 0.5), regime=0)

    async def keep_small():
        for _ in range(10):
            await store.prune(keep_episodes=20, keep_bytes=50_000, keep_days=1_000_000.0)

    async def copy():
        for number in range(5):
            await store.backup(tmp_path / f"copy{number}.db")

    async with asyncio.TaskGroup() as tasks:
        for work in (commit, run, keep_small, copy):
            tasks.create_task(work())
    await store.flush()
    await store.prune(keep_episodes=20)
    assert len(await store.episodes("cartpole", 1000)) == 20
    assert await store.events(limit=1000) == tuple(committed)
    async with await SqlStore.open(f"sqlite:///{tmp_path}/copy4.db") as copied:
        assert (await copied.verify_chain()).intact


async def test_what_retention_frees_is_given_back_to_the_file_system(store, tmp_path):
    noise = random.Random(3)
    for number in range(300):
        ran = episode(f"e{number}", revision(0.0), trace=noise.randbytes(50_000))
        await store.add_episode(ran, None, regime=0)
    await store.flush()

    async def pages(transaction):
        return (await transaction.connection.exec_driver_sql("PRAGMA page_count")).scalar()

    before = await store._writer.run(pages)
    await store.prune(keep_episodes=1)
    assert await store._writer.run(pages) < before / 10
