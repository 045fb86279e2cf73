"""The writer: what it does under pressure, with cancelled callers, and with work that fails."""

import asyncio
import random
import sqlite3
from contextlib import closing

import pytest
from sqlalchemy import event

from agentd.errors import CodecError, StoreError, StoreUnavailable
from agentd.records import Event
from agentd.store import SqlStore, schema
from agentd.store.writer import GROUP
from agentd.testing.store.examples import SOURCE, agent_state, episode, feedback, revision

noise = random.Random(5)


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/agentd.db"


@pytest.fixture
def locked(tmp_path):
    """Another process's connection that holds the database for writing until the test lets it go."""

    class Lock:
        def __enter__(self):
            self._connection = sqlite3.connect(tmp_path / "agentd.db", isolation_level=None)
            self._connection.execute("BEGIN IMMEDIATE")
            return self

        def __exit__(self, *_):
            self._connection.close()

    return Lock()


async def test_commits_wait_for_another_process_s_lock(url, locked):
    async with await SqlStore.open(url) as store:
        with locked:
            commit = asyncio.create_task(store.commit(SOURCE))
            await asyncio.sleep(0.2)
            assert not commit.done()
        await commit
        assert await store.source(SOURCE.digest) == SOURCE


async def test_a_lock_that_is_held_too_long_makes_the_store_unavailable_not_stuck(url, locked, monkeypatch):
    monkeypatch.setattr("agentd.store.backends._BUSY_TIMEOUT", 0.1)
    async with await SqlStore.open(url) as store:
        with locked:
            with pytest.raises(StoreUnavailable, match="another process"):
                await store.commit(SOURCE)
            assert await store.agents() == ()
        await store.commit(SOURCE)


async def test_commits_that_were_made_at_once_share_a_transaction(url):
    async with await SqlStore.open(url) as store:
        committed = []
        event.listen(store._writer._engine.sync_engine, "commit", committed.append)
        await asyncio.gather(*(store.commit(Event(kind="x", at=1.0)) for _ in range(3 * GROUP)))
        assert len(committed) <= 5
        assert [one.seq for one in await store.events(limit=1000)] == list(range(1, 3 * GROUP + 1))


async def test_a_cancelled_commit_does_not_disturb_the_others(url):
    async with await SqlStore.open(url) as store:
        await store.commit(SOURCE)
        commits = [asyncio.create_task(store.commit(revision(float(gain)))) for gain in range(40)]
        await asyncio.sleep(0)
        for commit in commits[::2]:
            commit.cancel()
        results = await asyncio.gather(*commits, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
        assert all(result == () for result in results[1::2])
        stored = {one.id for one in await store.revisions("cartpole")}
        assert {revision(float(gain)).id for gain in range(1, 40, 2)} <= stored


async def test_work_that_fails_is_rolled_back_and_its_error_reaches_its_caller(url):
    async with await SqlStore.open(url) as store:

        async def fail(transaction):
            await transaction.connection.execute(schema.facts.insert(), [{"name": "half", "value": 1}])
            raise ZeroDivisionError

        results = await asyncio.gather(store._writer.run(fail), store.commit(SOURCE), return_exceptions=True)
        assert isinstance(results[0], ZeroDivisionError)
        assert results[1] == ()
        assert await store._rows(schema.facts.select()) == []


async def test_episodes_are_written_while_commits_never_pause(url):
    async with await SqlStore.open(url) as store:
        await store.commit(SOURCE, revision(1.0))
        stop = asyncio.Event()

        async def commit():
            while not stop.is_set():
                await store.commit(agent_state(revision(1.0)))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(8):
                tasks.create_task(commit())
            for number in range(100):
                await store.add_episode(episode(f"e{number}", revision(1.0)), None, regime=0)
            await store.flush()
            stop.set()
        assert len(await store.episodes("cartpole", 1000)) == 100


async def test_under_pressure_the_oldest_traces_go_first_and_no_episode_does(url, locked):
    async with await SqlStore.open(url, capacity_bytes=100_000, retry_after=0.05) as store:
        with locked:
            for number in range(20):
                ran = episode(f"e{number}", revision(1.0), trace=noise.randbytes(10_000))
                await store.add_episode(ran, feedback(ran.id, 0.5), regime=0)
            assert store.dropped["traces"] > 0
            assert store.dropped["episodes"] == 0
        await store.flush()
        summaries = list(reversed(await store.episodes("cartpole")))
        assert [summary.id for summary in summaries] == [f"e{number}" for number in range(20)]
        assert sum(not summary.has_trace for summary in summaries) == store.dropped["traces"]
        assert summaries[-1].has_trace
        assert all(summary.score == 50.0 for summary in summaries)


async def test_a_full_queue_makes_the_caller_wait_until_there_is_room(url, locked):
    async with await SqlStore.open(url, capacity_episodes=5) as store:
        with locked:
            for number in range(5):
                await store.add_episode(episode(f"e{number}", revision(1.0)), None, regime=0)
            sixth = asyncio.create_task(store.add_episode(episode("e5", revision(1.0)), None, regime=0))
            await asyncio.sleep(0.2)
            assert not sixth.done()
            assert store.queued == 5
        await sixth
        await store.flush()
        assert len(await store.episodes("cartpole")) == 6


async def test_an_episode_larger_than_the_queue_passes_alone(url):
    async with await SqlStore.open(url, capacity_bytes=1000) as store:
        for number in range(3):
            ran = episode(f"e{number}", revision(1.0), final_observation=noise.randbytes(10_000).hex())
            await store.add_episode(ran, None, regime=0)
        await store.flush()
        assert len(await store.episodes("cartpole")) == 3


async def test_an_episode_that_the_database_refuses_is_dropped_alone(url, tmp_path):
    async with await SqlStore.open(url) as store:
        with closing(sqlite3.connect(tmp_path / "agentd.db", isolation_level=None)) as connection:
            connection.execute("CREATE TRIGGER no BEFORE INSERT ON episodes WHEN new.id = 'bad' BEGIN SELECT RAISE(ABORT, 'no'); END")
        for id_ in ("good", "bad", "better"):
            await store.add_episode(episode(id_, revision(1.0)), None, regime=0)
        await store.flush()
        assert [one.id for one in await store.episodes("cartpole")] == ["better", "good"]
        assert store.dropped["episodes"] == 1


async def test_an_episode_that_can_not_be_encoded_is_its_caller_s_error(url):
    async with await SqlStore.open(url) as store:
        with pytest.raises(CodecError):
            await store.add_episode(episode("e", revision(1.0), final_observation=object()), None, regime=0)
        assert store.queued == 0


async def test_nobody_waits_for_a_store_whose_loop_was_torn_down(url):
    store = await SqlStore.open(url)
    store._writer._task.cancel()
    await asyncio.wait([store._writer._task])
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.commit(SOURCE)
    await store._readers.dispose()
    await store._writer._engine.dispose()


async def test_a_close_that_is_cancelled_still_writes_what_was_queued(url):
    store = await SqlStore.open(url)
    for number in range(100):
        await store.add_episode(episode(f"e{number}", revision(1.0)), None, regime=0)
    closing_task = asyncio.create_task(store.aclose())
    await asyncio.sleep(0)
    closing_task.cancel()
    await asyncio.wait([closing_task])
    async with await SqlStore.open(url) as again:
        assert len(await again.episodes("cartpole", 1000)) == 100


async def test_a_damaged_database_is_an_error_of_the_store(url, tmp_path):
    async with await SqlStore.open(url) as store:
        await store.commit(SOURCE)
    with closing(sqlite3.connect(tmp_path / "agentd.db", isolation_level=None)) as connection:
        for damage in ("x'02ffff'", "x'01c1'", "'text'", "CAST(x'ff' AS TEXT)"):
            connection.execute(f"UPDATE sources SET content = {damage}")
            async with await SqlStore.open(url) as store:
                with pytest.raises(StoreError, match="damaged") as raised:
                    await store.source(SOURCE.digest)
                assert not isinstance(raised.value, StoreUnavailable)


async def test_what_was_erased_is_in_none_of_the_databases_files(tmp_path):
    async with await SqlStore.open(f"sqlite:///{tmp_path}/agentd.db") as store:
        await store.add_episode(episode("e1", revision(1.0), device="lovelace-7"), None, regime=0)
        await store.flush()
        assert b"lovelace-7" in b"".join(file.read_bytes() for file in tmp_path.glob("agentd.db*"))
        erased = await store.erase("cartpole", episodes=["e1"], who="eve")
        assert erased.overwritten
        assert b"lovelace-7" not in b"".join(file.read_bytes() for file in tmp_path.glob("agentd.db*"))
