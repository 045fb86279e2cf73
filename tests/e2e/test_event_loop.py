"""The daemon's event loop, in this process: nothing blocks it, and nothing is left in it."""

import asyncio
import os
import signal

from blockbuster import blockbuster_ctx
from hosted import quick

from agentd.cli.bad_revisions import subtly_worse, worse
from agentd.cli.client import Client
from agentd.clock import SystemClock
from agentd.daemon import serve_forever
from agentd.settings import load_settings

HOUR = 3600.0
SIMULATION = {"environment__kind": "gymnasium", "environment__id": "CartPole-v1", "environment__episode_interval": 0.02}


class WallClock(SystemClock):
    """The machine's clock, which can be set."""

    ahead = 0.0

    def time(self):
        return super().time() + self.ahead


async def test_a_daemon_at_work_never_blocks_its_loop_goes_on_when_its_clock_is_set_and_leaves_no_task_behind(hosted):
    folder = hosted.add_agent(edit=quick(**SIMULATION, optimizer__trigger="continuous", optimizer__algorithm="search"))
    settings = load_settings(agents=hosted.agents, state_directory=hosted.state, http_port=0, seed=3)
    before, clock = asyncio.all_tasks(), WallClock()
    async with asyncio.TaskGroup() as tasks:  # if the daemon fails, the test does
        daemon = tasks.create_task(serve_forever(settings, clock))
        await hosted.until((hosted.state / "daemon.json").exists)
        async with Client.from_state(hosted.state) as client:
            hosted.client = client
            with blockbuster_ctx(["agentd"]) as blockbuster:  # from here on there may be plants that wait
                blockbuster.functions["os.unlink"].can_block_in("agentd/settings.py", "remove_address")  # when all agents are gone
                await work(hosted, folder)
                for ahead, candidate in ((HOUR, worse), (-HOUR, subtly_worse)):
                    clock.ahead = ahead
                    await goes_on(hosted, candidate)
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.wait({daemon})
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().remove_signal_handler(number)
    left = {task.get_name() for task in asyncio.all_tasks() - before}
    assert left == set()


async def work(hosted, folder):
    """All kinds of things that a daemon does."""
    client = hosted.client
    await hosted.until_good()
    await hosted.until(lambda: hosted.events("release.proposed"))
    code = (await client.parameters("cartpole"))["act"]
    release = await client.submit("cartpole", {"act": code.replace("10.0 * angle", "11.0 * angle")})
    await hosted.until_ended(release["id"])
    episode = (await client.episodes("cartpole"))[0]["id"]
    await client.trace(episode)
    controller = folder / "controller.py"
    await asyncio.to_thread(controller.write_text, (await asyncio.to_thread(controller.read_text)) + "\n\nUNRELATED = 1\n")
    os.kill(os.getpid(), signal.SIGHUP)
    await hosted.until(lambda: hosted.events("agent.source_changed"))
    await hosted.until_scored(2)


async def goes_on(hosted, candidate):
    """Episodes are judged, what an operator submits is decided, and nothing took less than no time."""
    await hosted.until_scored((await hosted.agent())["episodes"] + 2)
    code = (await hosted.client.parameters("cartpole"))["act"]
    release = await hosted.client.submit("cartpole", {"act": candidate(code)})
    await hosted.until_ended(release["id"])
    assert all(episode["duration"] >= 0.0 for episode in await hosted.client.episodes("cartpole"))
