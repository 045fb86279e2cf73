"""A robot that was there before agentd: its own topics, its own payloads, no reset. agentd hosts an agent for it and improves that.

The robot is a tank whose level should stay at its mark. It asks for a valve position with each telegram, closes the valve itself when none
comes, and keeps its own record of what it applied.
"""

import asyncio
import contextlib
import json
import random

import aiomqtt
import pytest
from hosted import Hosted

TOML = """
schema = 1
[agent]
name = "tank"
entrypoint = "controller:Valve"
objective = "Keep the tank's level at its mark."
mode = "release"

[environment]
kind = "mqtt"
max_steps = 12
[environment.mqtt]
deadline_ms = 400
[environment.mqtt.mapping]
observation = { topic = "plant/{device}/telemetry", fields = ["tank.level", "tank.mark"] }
action = { topic = "plant/{device}/set", payload = { command = "valve", opening = "$action.0", safe = "$safe" } }
reward = "quality"
[environment.observation_space]
low = 0.0
high = 1.0
shape = [2]
[environment.action_space]
low = 0.0
high = 1.0
shape = [1]
[environment.safe_action]
value = [0.0]

[[metrics]]
name = "score"
range = [0.0, 1.0]
[feedback]
entrypoint = "feedback:explain"

[parameters.gain]
bounds = [0.0, 10.0]
[optimizer]
trigger = "manual"
[release]
prune = { after_pairs = 1000 }
[sandbox]
step_timeout = "1s"
"""
CONTROLLER = """
from agentd.trace import model, node

@model
class Valve:
    def __init__(self):
        self.gain = node(0.1, trainable=True, bounds=(0.0, 10.0))

    def act(self, observation):
        level, mark = observation
        return [min(1.0, max(0.0, self.gain.data * (mark - level)))]
"""
FEEDBACK = """
def explain(episode):
    errors = [abs(step.observation[1] - step.observation[0]) for step in episode.steps]
    error = sum(errors) / len(errors)
    return 1.0 - error, f"The level was off its mark by {error:.2f} on average."
"""


class Tank:
    """Leaks, and is filled through its valve."""

    def __init__(self, port: int, name: str) -> None:
        self._port = port
        self._name = name
        self._random = random.Random(name)
        self.level = 0.2
        self.applied: list[dict] = []

    async def run(self) -> None:
        async with aiomqtt.Client("127.0.0.1", self._port) as client:
            await client.subscribe(f"plant/{self._name}/set")
            while True:
                tank = {"level": self.level, "mark": 0.8}
                telegram = {"station": 7, "tank": tank, "quality": 1.0 - abs(self.level - 0.8), "alarms": []}
                await client.publish(f"plant/{self._name}/telemetry", json.dumps(telegram))
                command = {"command": "valve", "opening": 0.0, "own": True}
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        command = json.loads((await anext(client.messages)).payload)
                self.applied.append(command)
                leak = 0.1 + 0.02 * self._random.random()
                self.level = min(1.0, max(0.0, self.level + 0.4 * command["opening"] - leak * self.level))
                await asyncio.sleep(0.002)


@pytest.fixture
async def tanks(mosquitto):
    made = {name: Tank(mosquitto.port, name) for name in ("north", "south")}
    running = [asyncio.create_task(tank.run()) for tank in made.values()]
    yield made
    for task in running:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def endless(toml: str) -> str:
    """One long life that agentd cuts into episodes, with the revisions' states handed over."""
    return toml.replace("max_steps = 12\n", "").replace("deadline_ms = 400\n", "deadline_ms = 400\nepisode_ticks = 12\n")


@pytest.mark.parametrize("edit", [str, pytest.param(endless, marks=pytest.mark.long)], ids=["cut at max_steps", "endless"])
async def test_it_is_driven_and_improved_without_knowing_of_agentd(hosted: Hosted, tanks, edit):
    hosted.write_agent("tank", edit(TOML), controller=CONTROLLER, feedback=FEEDBACK)
    await hosted.start()
    await hosted.until_scored(4, "tank")
    release = await hosted.client.submit("tank", {"gain": 5.0})
    ended = await hosted.until_ended(release["id"])
    assert ended["phase"] == "promoted", ended
    known = {name: len(tank.applied) for name, tank in tanks.items()}
    await hosted.until(lambda: all(len(tank.applied) > known[name] + 60 for name, tank in tanks.items()))
    assert set((await hosted.agent("tank"))["devices"]) == {"north", "south"}
    assert await hosted.stop() == 0
    for name, tank in tanks.items():
        lived = tank.applied[known[name] :]
        driven = [command for command in lived if "own" not in command and not command["safe"]]
        assert len(driven) > 50
        assert max(command["opening"] for command in driven) > 0.2, "the better gain opens the valve wider"
        assert all(0.0 <= command["opening"] <= 1.0 for command in tank.applied)
