"""`kill -9` of the daemon in the middle of commits: what was acknowledged is there, and nothing is torn."""

import asyncio
import os
import random
import signal
import sys

import pytest

from agentd.records import Phase
from agentd.store import SqlStore
from agentd.testing.store.examples import revision

WRITER = """
import asyncio, itertools, os, sys
from agentd.records import Event
from agentd.store import SqlStore
from agentd.testing.store.examples import SOURCE, agent_state, episode, feedback, release, revision

async def main():
    store = await SqlStore.open(sys.argv[1])
    epoch = await store.begin_epoch()
    await store.commit(SOURCE, revision(0.0), agent_state(revision(0.0)))
    numbers = itertools.count(epoch * 1_000_000)

    async def commit():
        for number in numbers:
            made = revision(float(number))
            canary = release(f"r{number}", made, revision(0.0), pairs=number)
            event = Event(kind="made", at=1.0, data={"number": number, "noise": os.urandom(500)})
            await store.commit(made, canary, agent_state(made), event)
            os.write(1, b"%d\\n" % number)  # unbuffered: acknowledged

    async def run():
        for number in itertools.count():
            ran = episode(f"e{epoch}-{number}", revision(0.0), trace=os.urandom(5000))
            await store.add_episode(ran, feedback(ran.id, 0.5), regime=0)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(commit())
        tasks.create_task(run())

asyncio.run(main())
"""


async def kill_a_writer(url, acknowledgements) -> set[int]:
    """The numbers of the commits that a writer acknowledged before it was killed, after that many of them."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    writer = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, url, stdout=asyncio.subprocess.PIPE, env=environment)
    numbers = set()
    while len(numbers) < acknowledgements:
        line = await writer.stdout.readline()
        assert line.endswith(b"\n"), "the writer died by itself"
        numbers.add(int(line))
    writer.send_signal(signal.SIGKILL)
    rest = await writer.stdout.read()
    await writer.wait()
    return numbers | {int(line) for line in rest.splitlines(keepends=True) if line.endswith(b"\n")}


async def check_whole(url, acknowledged, kills):
    async with await SqlStore.open(url) as store:
        events = await store.events(limit=1_000_000)
        made = {event.data["number"] for event in events}
        assert acknowledged <= made
        assert (await store.verify_chain()).intact
        # Each commit is there with all its records, or with none.
        assert {one.id for one in await store.revisions("cartpole", 1_000_000)} == {revision(float(number)).id for number in (*made, 0)}
        releases = await store.releases("cartpole", 1_000_000)
        assert {(one.id, one.pairs) for one in releases} == {(f"r{number}", number) for number in made}
        assert all(one.phase is Phase.SELECTION for one in releases)
        assert (await store.agent("cartpole")).stable == revision(float(events[-1].data["number"])).id
        # Episodes: the newest may be missing, but each is whole, and each life's are there without a gap.
        episodes = await store.episodes("cartpole", 1_000_000)
        for one in episodes[:: max(1, len(episodes) // 50)]:
            assert len((await store.episode(one.id)).steps) == 3
            assert len(await store.trace(one.id) or b"") in {0, 5000}
        for life in range(1, kills + 1):
            numbers = sorted(int(one.id.split("-")[1]) for one in episodes if one.id.startswith(f"e{life}-"))
            assert numbers == list(range(len(numbers)))
        assert await store.epoch() == kills


async def test_what_was_acknowledged_survives_and_nothing_is_torn(tmp_path):
    url = f"sqlite:///{tmp_path}/agentd.db"
    acknowledged = set()
    for kills, number in enumerate((1, 40, 150), 1):
        acknowledged |= await kill_a_writer(url, number)
        await check_whole(url, acknowledged, kills)


@pytest.mark.long
@pytest.mark.timeout(1200)
async def test_a_hundred_kills_lose_nothing(tmp_path):
    url = f"sqlite:///{tmp_path}/agentd.db"
    acknowledged = set()
    lengths = random.Random(3)
    for kills in range(1, 101):
        acknowledged |= await kill_a_writer(url, lengths.randrange(1, 60))
        await check_whole(url, acknowledged, kills)
