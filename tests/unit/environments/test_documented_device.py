"""The device of docs/devices.md that is written for MicroPython runs as it stands there, against the agent's side and a real broker.

CPython plays the microcontroller: `umqtt.simple`, the clock's MicroPython functions and the two functions that are left to the reader are
given to it. It prints what it drives.
"""

import asyncio
import random
import re
import sys
from pathlib import Path

import pytest

from agentd.clock import SystemClock
from agentd.environments import Joined, make_environment

DOCUMENT = Path(__file__).parents[3] / "docs" / "devices.md"

UMQTT = '''
import os
from paho.mqtt import client as paho


class MQTTClient:
    """umqtt.simple's: nothing happens but in its own calls."""

    def __init__(self, client_id, server, port=0, keepalive=0):
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id)
        self._keepalive = keepalive
        self._connected = False
        self._client.on_disconnect = self._on_disconnect
        self._client.on_connect = self._on_connect

    def _on_connect(self, *_):
        self._connected = True

    def _on_disconnect(self, *_):
        self._connected = False

    def _check(self):
        if not self._connected:
            raise OSError(-1)

    def set_callback(self, callback):
        self._client.on_message = lambda client, data, message: callback(message.topic.encode(), message.payload)

    def set_last_will(self, topic, message, retain=False, qos=0):
        self._client.will_set(topic.decode(), message, qos, retain)

    def connect(self):
        self._client.connect("127.0.0.1", int(os.environ["BROKER_PORT"]), self._keepalive)
        while not self._connected:
            self._client.loop(0.01)

    def subscribe(self, topic, qos=0):
        self._client.subscribe(topic.decode(), qos)

    def publish(self, topic, message, retain=False, qos=0):
        self._check()
        self._client.publish(topic.decode(), message, qos, retain)

    def check_msg(self):
        self._client.loop(0.001)
        self._check()
'''
BOARD = """
import time

time.ticks_ms = lambda: int(time.monotonic() * 1000)
time.ticks_diff = lambda later, earlier: later - earlier
time.sleep_ms = lambda milliseconds: time.sleep(milliseconds / 1000)
position = 0.0

def read_sensors():
    return [position]

def drive(action):
    global position
    position += action
    print(action, flush=True)

"""


def documented() -> str:
    section = DOCUMENT.read_text(encoding="utf-8").partition("## A device in MicroPython")[2]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


def test_it_has_forty_lines() -> None:
    assert len([line for line in documented().splitlines() if line.strip()]) <= 40


@pytest.fixture
async def rover(tmp_path, mosquitto):
    (tmp_path / "umqtt").mkdir()
    (tmp_path / "umqtt" / "simple.py").write_text(UMQTT)
    (tmp_path / "main.py").write_text(BOARD + documented())
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(tmp_path / "main.py"), stdout=asyncio.subprocess.PIPE, env={"BROKER_PORT": str(mosquitto.port)}
    )
    yield process
    if process.returncode is None:
        process.kill()
    await process.wait()


async def drives(rover, action):
    while float(await rover.stdout.readline()) != action:
        pass


async def test_it_is_driven_falls_back_by_itself_comes_back_after_its_broker_and_is_missed_when_it_dies(rover, mosquitto, make_spec):
    tables = {
        "kind": "mqtt",
        "observation_space": {"low": -1e6, "high": 1e6, "shape": [1]},
        "action_space": {"low": -1e3, "high": 1e3},
        "safe_action": {"value": 0.0},
    }
    environment = make_environment(
        make_spec(agent={"name": "rover", "entrypoint": "controller:Controller"}, environment=tables),
        session="agent-1",
        broker=mosquitto.url,
        clock=SystemClock(),
        generator=random.Random(1),
    )
    async with environment, asyncio.timeout(30):
        changes = environment.changes()
        while not isinstance(change := await anext(changes), Joined):
            pass
        device = change.device
        assert device.id == "rover-1"
        applied = 0
        for episode in ("e1", "e2"):
            transition = await device.reset(episode, None, 10)
            began = transition.observation[0]
            while not transition.last:
                transition = await device.step(2.0, revision="r", safe=False)
                applied += not transition.fallback
            assert (transition.truncated, transition.tick) == (True, 10)
            assert transition.observation[0] > began
        assert applied > 0
        await device.reset("e3", None, 1000)
        await drives(rover, 0.0)  # nobody answers: its own fallback
        assert (await device.step(2.0, revision="r", safe=False)).tick > 0
        await drives(rover, 2.0)
        mosquitto.kill()
        await drives(rover, 0.0)
        mosquitto.start()
        while not isinstance(change := await anext(changes), Joined):
            pass
        assert change.device.session != device.session
        await change.device.reset("e4", None, 10)
        rover.kill()
        while (change := await anext(changes)) and getattr(change, "device", None) != "rover-1":
            pass
        assert change.reason in ("disconnected", "silent")
