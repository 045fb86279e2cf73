"""A device that floods, repeats, reorders, falls silent and lies about its session does not disturb its neighbour on the same agent.

The neighbour's own log is the witness. The liar is a bare MQTT client.
"""

import asyncio
import contextlib
import json
import random

import aiomqtt
import pytest
from witness import Robot

LIAR = "agentd/v1/devices/liar"


class Liar:
    """Joins the agent and then says what it likes."""

    def __init__(self, client, generator):
        self._client = client
        self._random = generator
        self.sessions = ["l0"]
        self.episode = "none"
        self.heard = []

    async def join(self, session):
        self.sessions.append(session)
        status = {"status": "ready", "session": session, "agent": "cartpole", "seedable": True}
        await self._client.publish(f"{LIAR}/up/status", json.dumps(status), qos=1, retain=True)

    async def listen(self):
        async for message in self._client.messages:
            content = json.loads(message.payload)
            self.heard.append((str(message.topic).rpartition("/")[2], content))
            if content.get("verb") == "reset":
                self.episode = content["episode"]

    async def observe(self, step, **fields):
        message = {"session": self.sessions[-1], "episode": self.episode, "step": step, "observation": [0.0] * 4}
        await self._client.publish(f"{LIAR}/up/observation", json.dumps(message | fields))

    async def flood(self):
        for step in range(300):
            await self.observe(step, reward=1e300)

    async def repeat(self):
        for _ in range(100):
            await self.observe(7)

    async def reorder(self):
        steps = list(range(100))
        self._random.shuffle(steps)
        for step in steps:
            await self.observe(step)

    async def lie(self):
        for number in range(100):
            await self.observe(number, session=self._random.choice([*self.sessions, "robot-1", "", "x" * 500]))
            await self.observe(number, episode=self._random.choice(["none", "", self.episode, "e" * 500]))
            await self.observe(10**15 + number, observation=[1e308] * 4, terminated=number % 2 == 0)

    async def leap(self):
        for number in range(20):
            await self.join(f"leap-{number}")
            await self.observe(0)


@pytest.fixture
async def liar(mosquitto):
    async with aiomqtt.Client("127.0.0.1", mosquitto.port) as client:
        await client.subscribe(f"{LIAR}/down/#", qos=1)
        made = Liar(client, random.Random(1))
        listening = asyncio.create_task(made.listen())
        yield made
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listening


async def test_its_neighbour_is_driven_on_and_it_hears_nothing_but_its_own(liar, mosquitto, serve_cartpole, tmp_path, until):
    async with Robot(tmp_path / "robot.jsonl", mosquitto.url) as robot:
        reader = await serve_cartpole(mosquitto.url)
        await until(lambda: reader.finished)
        await liar.join("l1")
        await until(lambda: liar.episode != "none")
        for mischief in (liar.flood, liar.repeat, liar.reorder, liar.lie, liar.leap, liar.flood):
            await mischief()
            known = reader.finished
            await until(lambda known=known: reader.finished > known + 1)
        robot.prove_with(reader)
        own = [line["step"] for line in robot.applied() if line["source"] == "action"]
        assert len(own) > 300
        assert {content["session"] for _, content in liar.heard} <= {*liar.sessions, *reader.sessions}
        actions = [content["action"] for kind, content in liar.heard if kind == "action"]
        assert actions
        assert set(actions) <= {0, 1}
        await reader.aclose()
