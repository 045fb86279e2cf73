"""A robot that sends what it sees when it sees it, and is told what to do at a fixed rate; the runner brakes it when it goes blind."""

import asyncio
import json

import aiomqtt
import pytest
from daemons import of, serve

from agentd.device import end_task
from agentd.records import Outcome

PROGRAM = """
    class Controller:
        def act(self, observation):
            return 2.0 * observation

    def brake(observation):
        return -observation
"""
TOPIC = "agentd/v1/devices/streamer"


class Streamer:
    """It applies each action as it comes, and keeps its own log of them."""

    def __init__(self, port: int) -> None:
        self.applied: list[dict] = []
        self.seen = 1.0
        self.blind = False
        self._leaving = False
        self._port = port
        self._episode = ""

    async def __aenter__(self):
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *exception):
        self._leaving = True  # aiomqtt can swallow a cancellation (see agentd.device.end_task)
        await end_task(self._task)

    async def _run(self):
        async with aiomqtt.Client("127.0.0.1", self._port) as client, asyncio.TaskGroup() as group:
            await client.subscribe(f"{TOPIC}/down/+")
            await client.publish(f"{TOPIC}/up/status", json.dumps({"status": "ready", "session": "s", "agent": "cartpole"}), retain=True)
            group.create_task(self._stream(client))
            async for message in client.messages:
                content = json.loads(message.payload)
                if message.topic.matches("+/+/+/+/down/command"):
                    self._episode = content["episode"]
                elif message.topic.matches("+/+/+/+/down/action"):
                    self.applied.append(content)

    async def _stream(self, client):
        step = 0
        while not self._leaving:
            await asyncio.sleep(0.007)
            if self._episode and not self.blind:
                message = {"session": "s", "episode": self._episode, "step": step, "observation": self.seen}
                await client.publish(f"{TOPIC}/up/observation", json.dumps(message))
                step += 1
            await client.publish(f"{TOPIC}/up/heartbeat", json.dumps({"session": "s"}))


@pytest.fixture
def paced(make_spec):
    environment = {
        "kind": "mqtt",
        "mqtt": {"rate_hz": 100.0, "dead_man_ms": 150.0, "deadline_ms": 10.0, "episode_ticks": 50, "observation_timeout": 30.0},
        "observation_space": {"low": -10.0, "high": 10.0},
        "action_space": {"low": -50.0, "high": 50.0},
        "safe_action": {"value": -7.0, "entrypoint": "controller:brake", "deadline_ms": 5.0},
    }
    return make_spec(environment=environment, sandbox={"step_timeout": "1s"})


async def test_a_robot_gets_its_actions_at_its_rate_and_a_blind_one_is_braked(runners, paced, mosquitto, make_program, until):
    async with Streamer(mosquitto.port) as robot:
        daemon = await serve(runners, paced, mosquitto, make_program(PROGRAM))
        await until(lambda: len(of(daemon, outcome=Outcome.FINISHED)) >= 2)
        known = len(robot.applied)
        robot.seen = 3.0
        await until(lambda: 6.0 in [line["action"] for line in robot.applied[known:]])
        robot.blind = True  # it lives, and says so, but sees nothing
        await until(lambda: len([line for line in robot.applied[known:] if line["safe"]]) > 20)
        await until(lambda: daemon.counts["safe_actions.dead_man"] > 20)
        robot.blind = False
        known = len(robot.applied)
        await until(lambda: 6.0 in [line["action"] for line in robot.applied[known:] if not line["safe"]])
        braked = [line["action"] for line in robot.applied if line["safe"]]
        assert -3.0 in braked  # the author's function of what was seen last, not the value
        assert set(braked) <= {-3.0, -1.0, -7.0}
        assert daemon.counts["stale_ticks"] > daemon.counts["safe_actions.dead_man"]
        assert {step.safe for episode in daemon.episodes for step in episode.steps} >= {None, "dead_man"}
        await daemon.aclose()


async def test_a_silent_robot_is_told_to_brake_in_case_its_last_answer_was_lost_and_so_it_stays_where_that_latches(
    runners, make_spec, mosquitto, make_program, until
):
    environment = {
        "kind": "mqtt",
        "mqtt": {"dead_man_ms": 100.0, "deadline_ms": 90.0, "episode_ticks": 50, "observation_timeout": 30.0, "realtime": True},
        "observation_space": {"low": -10.0, "high": 10.0},
        "action_space": {"low": -50.0, "high": 50.0},
        "safe_action": {"value": -7.0, "recovery": "latch"},
    }
    async with Streamer(mosquitto.port) as robot:
        daemon = await serve(runners, make_spec(environment=environment), mosquitto, make_program(PROGRAM))
        await until(lambda: robot.applied)
        robot.blind = True
        await until(lambda: robot.applied[-1]["safe"])
        safe, last = robot.applied[-1], [line for line in robot.applied if not line["safe"]][-1]
        assert (safe["action"], safe["step"]) == (-7.0, last["step"])
        robot.blind = False
        await until(lambda: daemon.counts["safe_actions.latched"] > 20)  # though it sees again
        await daemon.runner.resume()
        await until(lambda: not robot.applied[-1]["safe"])
        await until(lambda: "fallback" in {step.safe for episode in daemon.episodes for step in episode.steps})
        await until(lambda: daemon.counts["safe_actions.dead_man"] >= 1)
        assert "runner.realtime" in daemon.kinds()  # whether it may or not, it says so
        await daemon.aclose()
