"""The daemon dies while clients have answers that nobody has judged yet: no window is lost, and none is counted twice."""

import asyncio

import pytest
from hosted import edited
from served import Clients, add

from agentd.store import SqlStore


async def windows_of(hosted):
    async with await SqlStore.open(f"sqlite:///{hosted.state}/agentd.db", read_only=True) as store:
        return {window.episode: window for window in await store.windows("answers")}


@pytest.mark.long  # a daemon killed in a canary is in test_daemon_killed.py; how windows are adopted, in tests/unit/hosting
async def test_windows_outlive_a_daemon_that_is_killed_and_each_enters_once(hosted):
    add(hosted, edit=edited(release__prune={"after_pairs": 1000}, release__selection_pairs=0))
    await hosted.start()
    async with Clients(hosted) as clients:
        await hosted.until(clients.first_answer)
        release = await hosted.client.submit("answers", {"factor": 2.05})
        await hosted.until_phase(release["id"], "confirmation")
        await clients.use_until(lambda: begun(hosted, release, 3))
        asked = [answer.json() for answer in await asyncio.gather(*(clients.ask(1.0) for _ in range(12)))]
        judged = asked[:4]
        for answer in judged:
            assert (await clients.judge(answer["episode"], 8.0)).status_code == 200
    await hosted.kill()
    committed = hosted.database()

    await hosted.start()
    assert hosted.forgotten(committed) == {}
    async with Clients(hosted) as clients:
        await hosted.until(clients.first_answer)
        for answer in judged:  # what was said before is known, and counts once
            again = await clients.judge(answer["episode"], 8.0)
            assert (again.status_code, again.json()["evidence"]) == (200, True)
            assert (await clients.judge(answer["episode"], 1.0)).status_code == 409
        for answer in asked[4:]:  # what nobody had judged may still be judged, also where its record came to the new daemon only
            told = await hosted.until(lambda answer=answer: taken(clients, answer["episode"]))
            assert told["evidence"] is True
        await hosted.until(lambda: entered(hosted))
        found = await hosted.client.release(release["id"])
        plans = {one["id"] for one in found["evidence"]}
        assert len(plans) == len(found["evidence"]) == found["pairs"]
        names = {answer["episode"] for answer in asked}
        episodes = await hosted.client.episodes("answers", limit=500)
        drawn = {episode["pair"] for episode in episodes if episode["id"] in names and episode["pair"]}
        assert drawn <= plans  # each that was drawn for the release is evidence in it
        state = (await hosted.agent("answers"))["state"]
        stable = [episode for episode in episodes if episode["role"] == "stable"]
        assert len(stable) > len(names) / 4
        assert state["watch"]["episodes"] == len(stable)  # the watch has seen each of them, once
    assert await hosted.stop() == 0


async def begun(hosted, release, count):
    return (await hosted.client.release(release["id"]))["pairs"] >= count


async def taken(clients, episode):
    answer = await clients.judge(episode, 8.0)
    return answer.json() if answer.status_code == 200 else None


async def entered(hosted):
    return not await windows_of(hosted)
