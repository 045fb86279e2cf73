"""A plant that wears out a little with each episode, and is repaired: the world changed, and no revision is to blame."""

import json

import pytest

from agentd.store import SqlStore

PLANT = '''
"""The best setting is 0.2. Driven so for thirty episodes in a row the plant wears: the best one wanders to 0.8 until it is repaired."""

from pathlib import Path
from random import Random

driven = worn = 0
random = Random(1)


def worth(action, repaired):
    global driven, worn
    driven = driven + 1 if action == 0.2 or driven >= 30 else 0
    worn = 0 if Path(repaired).exists() else min(worn + (driven >= 30), 120)
    return 0.95 - abs(action - 0.2 - 0.005 * worn) - 0.05 * random.random()
'''
CONTROLLER = """
from agentd.trace import model, node


@model
class Setting:
    def __init__(self):
        self.gain = node(0.0, trainable=True, bounds=(0.0, 1.0))

    def act(self, observation):
        return self.gain
"""
OPTIMIZER = """
import json
from pathlib import Path

from agentd.opto.contract import make_proposal

ASKED = Path(__file__).with_name("asked.jsonl")


class Steps:
    '''One step back with each proposal; and a note of what it was told.'''

    def __init__(self, context, llm, screen):
        self.context = context

    async def propose(self, problems, memory, seed):
        told = {"regime": self.context.regime, "episodes": [problem.episode for problem in problems]}
        with ASKED.open("a") as file:
            file.write(json.dumps(told) + "\\n")
        tried = [entry for entry in memory if entry.regime == self.context.regime]
        gain = max(0.3, 0.8 - 0.05 * len(tried))
        return make_proposal(self.context, problems, {"gain": gain}, algorithm="steps", reasoning="so it was", seed=seed)
"""
TOML = """
schema = 1
[agent]
name = "setting"
entrypoint = "controller:Setting"
mode = "release"
[environment]
kind = "python"
entrypoint = "plant:worth"
args = { repaired = "%s" }
[environment.action_space]
low = 0.0
high = 1.0
[optimizer]
algorithm = "steps:Steps"
[release]
selection_pairs = 1
prune = { after_pairs = 4, below = 0.0 }
[watch]
burn_in = 20
good_after = 150
alarm_every = 1e3
"""


@pytest.mark.long
async def test_slow_wear_is_drift_and_no_regression_and_what_was_good_before_comes_back_first_after_the_repair(hosted):
    repaired = hosted.folder / "repaired"
    hosted.write_agent("setting", TOML % repaired, plant=PLANT, controller=CONTROLLER)
    (hosted.folder / "steps.py").write_text(OPTIMIZER)
    await hosted.start()
    first = await hosted.until_good("setting")
    better = await hosted.client.submit("setting", {"gain": 0.2})
    ended = await hosted.until_ended(better["id"])
    assert ended["phase"] == "promoted", ended["reason"]

    async def is_well_again():
        state = (await hosted.agent("setting"))["state"]
        return state["regime"] and not state["improving"] and state["last_good"] == state["stable"] and state

    state = await hosted.until(is_well_again)
    learned, regime = state["stable"], state["regime"]
    releases = await hosted.client.releases("setting")
    [asked, *_] = [release for release in reversed(releases) if release["kind"] == "probe"]
    assert (asked["candidate"], asked["reference"]) == (first, better["candidate"])
    assert asked["phase"] in {"inconclusive", "rejected"}
    assert await hosted.events("release.rolled_back") == []
    assert len(await hosted.events("drift.declared")) == len(await hosted.events("watch.alarm")) == regime

    repaired.touch()

    known = {first, better["candidate"]}

    async def is_back():
        return (await hosted.agent("setting"))["state"]["stable"] in known

    await hosted.until(is_back)
    [drift, *_] = [event for event in reversed(await hosted.events("drift.declared")) if event["data"]["regime"] == regime + 1]
    tried = [event["data"] for event in await hosted.events("release.proposed") if event["seq"] > drift["seq"]]
    back = next(number for number, proposed in enumerate(tried) if proposed["candidate"] in known)
    assert {proposed["algorithm"] for proposed in tried[: back + 1]} == {"revival"}
    assert learned not in known
    assert await hosted.events("release.rolled_back") == []
    assert await hosted.stop() == 0

    # what the optimizer was told of was of the world as it was by then, and of nothing before
    told = [json.loads(line) for line in (hosted.folder / "asked.jsonl").read_text().splitlines()]
    async with await SqlStore.open(f"sqlite:///{hosted.state}/agentd.db") as store:
        for one in told:
            assert {(await store.summary(name)).regime for name in one["episodes"]} == {one["regime"]}
    assert {one["regime"] for one in told} <= set(range(1, regime + 2))
