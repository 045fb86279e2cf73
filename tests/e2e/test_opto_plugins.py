"""What an optimizer does wrong is an event, and nothing else: the agent runs on."""

import pytest
from hosted import quick

SIMULATION = {"environment__kind": "gymnasium", "environment__id": "CartPole-v1", "environment__episode_interval": 0.1}
PLUG_INS = """
import os


class Raises:
    def __init__(self, context, llm, screen):
        pass

    async def propose(self, problems, memory, seed):
        raise ZeroDivisionError(f"of memory there is {sorted({path for entry in memory for path in entry.values})}")


class Hangs(Raises):
    async def propose(self, problems, memory, seed):
        while True:
            pass


class Nonsense(Raises):
    async def propose(self, problems, memory, seed):
        return 5


class Dies(Raises):
    async def propose(self, problems, memory, seed):
        os._exit(3)
"""
SAID = {
    "Raises": "raised ZeroDivisionError: of memory there is ['act']",  # whole values, though all that serves are defaults
    "Hangs": "gave no proposal within 2 s and was killed",
    "Nonsense": "returned a int instead of a Proposal",
    "Dies": "exit code 3",
}
TWO = """
from agentd.trace import bundle, model, node


@model
class CartPole:
    def __init__(self):
        self.bias = node(0.5, trainable=True)

    @bundle(trainable=True)
    def push(self, observation, bias):
        "The push."
        return int(observation[2] + 0.1 * observation[3] + bias * 0.01 > 0.0)

    def act(self, observation):
        return self.push(observation, self.bias)
"""
ONE = TWO.replace("node(0.5, trainable=True)", "0.5")


@pytest.mark.parametrize("names", [("Hangs", "Raises"), pytest.param(("Nonsense", "Dies"), marks=pytest.mark.long)])
async def test_a_plug_in_that_hangs_dies_raises_or_returns_nonsense_is_told_and_its_agent_goes_on(hosted, names):
    (hosted.folder / "plug_ins.py").write_text(PLUG_INS)
    for name in names:
        edit = quick(**SIMULATION, optimizer__algorithm=f"plug_ins:{name}", optimizer__propose_timeout=2 if name == "Hangs" else 60)
        hosted.add_agent(name=name.lower(), edit=edit)
    await hosted.start()
    for name in names:
        await hosted.until_scored(3, name.lower())
        await hosted.client.propose(name.lower())
    for name in names:
        agent = name.lower()

        async def told(agent=agent, words=SAID[name]):
            return [event for event in await hosted.events("optimizer.failed", agent) if words in event["message"]]

        await hosted.until(told)
        scored = (await hosted.agent(agent))["episodes"]
        await hosted.until_scored(scored + 2, agent)
        assert await hosted.client.releases(agent) == []


@pytest.mark.long
async def test_a_parameter_that_disappeared_between_two_revisions_is_no_obstacle(hosted):
    folder = hosted.add_agent(edit=quick(**SIMULATION, optimizer__algorithm="search"), controller=TWO)
    toml = (folder / "agent.toml").read_text().replace('[parameters."act"]\ntrainable = true\n', "")
    (folder / "agent.toml").write_text(toml)
    await hosted.start()
    await hosted.until_scored(3)
    release = await hosted.client.submit("cartpole", {"bias": -0.5})
    await hosted.until_phase(release["id"], "selection", "confirmation")
    await hosted.client.decide("abort", "cartpole", release["id"])
    assert await hosted.stop() == 0
    (folder / "controller.py").write_text(ONE)
    await hosted.start()
    await hosted.until_scored(3)
    assert set(await hosted.client.parameters("cartpole")) == {"push"}
    await hosted.client.propose("cartpole")

    async def proposed():
        return [event for event in await hosted.events("release.proposed") if event["who"] == "optimizer"]

    [event, *_] = await hosted.until(proposed)
    assert event["data"]["paths"] == ["push"]
    assert await hosted.events("optimizer.failed") == []
