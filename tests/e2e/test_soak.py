"""Many episodes, and nothing grows: neither memory, nor descriptors, nor processes."""

import psutil
import pytest
from hosted import quick

MEGABYTE = 1024 * 1024


def footprint(root):
    """Of a process and all below it: resident bytes, open descriptors, processes."""
    processes = [root, *root.children(recursive=True)]
    return (
        sum(process.memory_info().rss for process in processes),
        sum(process.num_fds() for process in processes),
        len(processes),
    )


@pytest.mark.long
@pytest.mark.parametrize(("warm_up", "episodes"), [(20, 60), pytest.param(60, 360, marks=pytest.mark.timeout(600))], ids=["short", "long"])
async def test_episodes_leave_nothing_behind(hosted, warm_up, episodes):
    hosted.add_agent(edit=quick(environment__max_steps=20))
    robot = await hosted.robot()
    await hosted.start()
    await hosted.until_scored(warm_up)
    parts = {"daemon": psutil.Process(hosted.daemon.pid), "runner": psutil.Process(hosted.runner_pid())}
    before = {name: footprint(part) for name, part in parts.items()}
    await hosted.until_scored(episodes, limit=400.0)
    after = {name: footprint(part) for name, part in parts.items()}
    for name, (memory, descriptors, processes) in after.items():
        grown = memory - before[name][0]
        assert grown < 8 * MEGABYTE + (episodes - warm_up) * MEGABYTE // 40, (name, grown / MEGABYTE)
        assert descriptors <= before[name][1] + 4, name
        assert processes <= before[name][2], name
    assert await hosted.stop() == 0
    assert robot.sources()["fallback"] == 0


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_releases_leave_no_worker_behind(hosted):
    hosted.add_agent(edit=quick(environment__max_steps=20))
    await hosted.robot()
    await hosted.start()
    await hosted.until_good()
    runner = psutil.Process(hosted.runner_pid())
    code = (await hosted.client.parameters("cartpole"))["act"]
    settled = None
    for number in range(30):
        release = await hosted.client.submit("cartpole", {"act": code.replace("10.0 * angle", f"{10.0 + number % 7 + 0.5} * angle")})
        if number % 3 == 0:
            await hosted.until_phase(release["id"], "selection", "confirmation", "pruned", "promoted", "rejected")
            if not (await hosted.client.release(release["id"])).get("ended_at"):
                await hosted.client.promote("cartpole", release["id"])
        await hosted.until_ended(release["id"])
        if number == 5:
            settled = footprint(runner)

    def back():
        memory, descriptors, processes = footprint(runner)
        return processes <= settled[2] and descriptors <= settled[1] + 4 and memory < settled[0] + 20 * MEGABYTE

    await hosted.until(back)
