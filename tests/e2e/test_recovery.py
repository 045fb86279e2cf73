"""The whole loop: a controller balances, the world changes, and the score comes back."""

import pytest
from hosted import mirrored, quick

WORLD = '''
"""A CartPole whose motor can be wired the other way round while it runs: by a file."""

from pathlib import Path

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv


class Drifting(CartPoleEnv):
    def __init__(self, switch):
        super().__init__()
        self._switch = Path(switch)

    def reset(self, **arguments):
        self._flipped = self._switch.exists()
        return super().reset(**arguments)

    def step(self, action):
        return super().step(1 - action if self._flipped else action)


gymnasium.register("Drifting-v0", entry_point=Drifting)
'''


def mean_score(agent):
    recent = agent["recent"][-5:]
    return sum(recent) / len(recent) if len(recent) == 5 else 0.0


async def recovered(hosted, broken):
    agent = await hosted.agent()
    return agent if agent["state"]["stable"] != broken and not agent["state"]["improving"] and mean_score(agent) > 0.8 else None


@pytest.mark.long
async def test_a_robot_that_changes_is_noticed_and_the_search_brings_its_score_back(hosted):
    hosted.add_agent(edit=quick(optimizer__trigger="alarm"))
    robot = await hosted.robot()
    await hosted.start()
    good = await hosted.until_good()
    await robot.change("flip-motor")
    await hosted.until(lambda: hosted.events("watch.alarm"))
    agent = await hosted.until(lambda: recovered(hosted, good), limit=90.0)
    kinds = [event["kind"] for event in await hosted.client.events("cartpole", limit=500)]
    assert kinds.index("watch.alarm") < kinds.index("drift.declared") <= kinds.index("optimizer.started") < kinds.index("release.proposed")
    assert kinds.index("release.promoted") < kinds.index("optimizer.stopped")
    assert agent["state"]["regime"] == 1
    assert await hosted.stop() == 0
    robot.prove()


@pytest.mark.long
async def test_a_simulation_that_changes_is_recovered_in_the_same_way(hosted):
    switch = hosted.folder / "flipped"
    (hosted.folder / "drifting_world.py").write_text(WORLD)
    world = {"kind": "gymnasium", "id": "drifting_world:Drifting-v0", "args": {"switch": str(switch)}, "episode_interval": 0.01}
    hosted.add_agent(edit=quick(**{f"environment__{key}": value for key, value in world.items()}))
    await hosted.start()
    good = await hosted.until_good()
    switch.touch()
    await hosted.until(lambda: hosted.events("drift.declared"))
    code = (await hosted.client.parameters("cartpole"))["act"]
    release = await hosted.client.submit("cartpole", {"act": mirrored(code)})
    ended = await hosted.until_ended(release["id"])
    assert (ended["phase"], ended["forced"]) == ("promoted", False)
    agent = await hosted.until(lambda: recovered(hosted, good))
    assert agent["state"]["stable"] == ended["candidate"]
