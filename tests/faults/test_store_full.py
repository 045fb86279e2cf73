"""A full disk: the store says so, loses nothing that was committed, goes on reading, and goes on writing when there is room again."""

import asyncio
import os
import random
import subprocess
import sys

import pytest
from disks import disk_at, fill

from agentd.errors import StoreUnavailable
from agentd.records import Event
from agentd.store import SqlStore
from agentd.testing.store.examples import SOURCE, episode, feedback, revision

noise = random.Random(7)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes."""
    with disk_at(tmp_path / "disk", megabytes=2) as folder:
        yield folder


async def commit_until_full(store) -> list[Event]:
    """All the events that were committed before the store said that the disk is full."""
    committed = []

    async def commit_for_ever():
        while True:
            committed.extend(await store.commit(Event(kind="made", at=1.0, data={"noise": noise.randbytes(2000)})))

    with pytest.raises(StoreUnavailable, match="full"):
        await commit_for_ever()
    return committed


async def test_a_full_disk_loses_no_commit_and_the_store_goes_on_when_there_is_room(small_disk):
    url = f"sqlite:///{small_disk}/agentd.db"
    async with await SqlStore.open(url) as store:
        await store.commit(SOURCE, revision(1.0))
        ballast = await asyncio.to_thread(fill, small_disk)
        committed = await commit_until_full(store)
        for _ in range(3):  # it stays an error, and stays harmless
            with pytest.raises(StoreUnavailable):
                await store.commit(Event(kind="made", at=1.0, data={"noise": noise.randbytes(50_000)}))
        assert await store.events(limit=100_000) == tuple(committed)
        assert await store.revision(revision(1.0).id) == revision(1.0)
        assert store.write_errors >= 4

        await asyncio.to_thread(ballast.unlink)
        committed += await store.commit(Event(kind="made", at=2.0, data={"noise": noise.randbytes(50_000)}))
        assert await store.events(limit=100_000) == tuple(committed)
    async with await SqlStore.open(url) as store:
        assert await store.events(limit=100_000) == tuple(committed)
        assert (await store.verify_chain()).intact


async def test_episodes_wait_for_room_and_are_all_written_then(small_disk):
    async with await SqlStore.open(f"sqlite:///{small_disk}/agentd.db", retry_after=0.05) as store:
        ballast = await asyncio.to_thread(fill, small_disk)
        for number in range(30):
            ran = episode(f"e{number}", revision(1.0), trace=noise.randbytes(20_000))
            await store.add_episode(ran, feedback(ran.id, 0.5), regime=0)
        with pytest.raises(StoreUnavailable):
            await store.flush()
        assert store.queued > 0
        await asyncio.to_thread(ballast.unlink)
        await store.flush()
        assert store.queued == 0
        assert len(await store.episodes("cartpole")) == 30
        assert store.dropped == {"traces": 0, "episodes": 0}


async def test_on_a_full_disk_a_full_queue_gives_up_traces_then_says_so(small_disk):
    store = await SqlStore.open(f"sqlite:///{small_disk}/agentd.db", retry_after=0.05, capacity_bytes=200_000, capacity_episodes=20)
    async with store:
        ballast = await asyncio.to_thread(fill, small_disk)
        for number in range(20):
            await store.add_episode(episode(f"e{number}", revision(1.0), trace=noise.randbytes(20_000)), None, regime=0)
        with pytest.raises(StoreUnavailable):
            await store.add_episode(episode("e20", revision(1.0), trace=noise.randbytes(20_000)), None, regime=0)
        assert store.dropped["traces"] > 0
        await asyncio.to_thread(ballast.unlink)
        await store.flush()
        assert [one.id for one in reversed(await store.episodes("cartpole"))] == [f"e{number}" for number in range(20)]
        assert store.dropped["episodes"] == 0


async def test_closing_on_a_full_disk_ends_and_counts_what_is_lost(small_disk):
    store = await SqlStore.open(f"sqlite:///{small_disk}/agentd.db")
    await asyncio.to_thread(fill, small_disk)
    for number in range(10):
        await store.add_episode(episode(f"e{number}", revision(1.0), trace=noise.randbytes(20_000)), None, regime=0)
    await store.aclose()
    assert store.dropped["episodes"] == 10


async def test_a_store_that_can_not_be_opened_for_want_of_room_says_so(small_disk):
    await asyncio.to_thread(fill, small_disk)
    with pytest.raises(StoreUnavailable):
        await SqlStore.open(f"sqlite:///{small_disk}/agentd.db")


WITH_A_QUOTA = """
import asyncio, resource, sys
from agentd.errors import StoreUnavailable
from agentd.records import Event
from agentd.store import SqlStore

async def main():
    async with await SqlStore.open(sys.argv[1]) as store:
        committed = 0
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, most))
        try:
            while committed < 1000:
                await store.commit(Event(kind="made", at=1.0, data={"noise": bytes(range(256)) * 40}))
                committed += 1
        except StoreUnavailable:
            print("unavailable after", committed)
        assert len(await store.events(limit=1000)) == committed
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        for _ in range(50):
            await store.commit(Event(kind="made", at=1.0, data={"noise": bytes(range(256)) * 40}))
        print(committed + 50)

asyncio.run(main())
"""


async def test_a_quota_on_file_sizes_is_survived_like_a_full_disk(tmp_path):
    url = f"sqlite:///{tmp_path}/agentd.db"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WITH_A_QUOTA, url]
    run = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    unavailable, total = run.stdout.splitlines()
    assert unavailable.startswith("unavailable")
    async with await SqlStore.open(url) as store:
        assert len(await store.events(limit=10_000)) == int(total)
        assert (await store.verify_chain()).intact
