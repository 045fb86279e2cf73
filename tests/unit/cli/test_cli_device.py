"""`agentd device gymnasium`: a stand-in robot from the command line, on a real broker."""

import asyncio
import json
import signal
import sys

import aiomqtt
import pytest
from typer.testing import CliRunner

from agentd.cli.app import app

REQUIRED = ("--agent", "cartpole", "--broker")


async def test_the_robot_announces_itself_drives_without_an_agent_by_its_fallback_and_stops_when_told(mosquitto, tmp_path):
    log = tmp_path / "robot.jsonl"
    command = ["device", "gymnasium", "CartPole-v1", *REQUIRED, mosquitto.url, "--name", "arm", "--log", str(log)]
    command += ["--begin-after", "0", "--action-timeout", "0.01", "--change", "flip-motor"]
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "agentd", *command)
    async with aiomqtt.Client("127.0.0.1", mosquitto.port) as client, asyncio.timeout(60):
        await client.subscribe("agentd/v1/devices/arm/up/#")
        statuses, observations = [], 0
        async for message in client.messages:
            if message.topic.matches("+/+/+/+/up/status"):
                statuses.append(json.loads(message.payload))
                if statuses[-1]["status"] == "stopped":
                    break
            elif message.topic.matches("+/+/+/+/up/observation"):
                observations += 1
                if observations == 5:
                    process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    assert (statuses[0]["status"], statuses[0]["agent"], statuses[0]["labels"]) == ("ready", "cartpole", {"stand-in": "CartPole-v1"})
    assert {json.loads(line)["source"] for line in log.read_text().splitlines()} == {"fallback"}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("NoSuch-v0", *REQUIRED, "mqtt://localhost"), "NoSuch"),
        (("CartPole-v1", *REQUIRED, "http://localhost"), "mqtt://"),
        (("CartPole-v1", *REQUIRED, "mqtt://localhost", "--change", "paint-it"), "paint-it"),
        (("CartPole-v1", *REQUIRED, "mqtt://localhost", "--name", "a/b"), "topic level"),
    ],
)
def test_what_can_not_be_is_told_before_anything_begins(arguments, word):
    result = CliRunner().invoke(app, ["device", "gymnasium", *arguments])
    assert result.exit_code == 2
    assert word in result.output
