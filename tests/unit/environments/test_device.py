"""The device's side of the protocol: a bare MQTT client plays the agent, well or badly. The plant has an action at every tick."""

import asyncio
import contextlib
import json
import random
import time

import pytest
from paho.mqtt import client as mqtt

from agentd.configuration import validate
from agentd.device import Device, backoff, connection_arguments
from agentd.device.connection import Client, connected
from agentd.environment_spec import MqttSection
from agentd.errors import SpecError

TOPIC = "agentd/v1/devices/arm"


class Plant:
    """Counts up; remembers what it was given."""

    def __init__(self, length=5):
        self.length = length
        self.given = []
        self.seeds = []
        self.tick = 0

    def reset(self, seed):
        self.seeds.append(seed)
        self.tick = 0
        return [0.0]

    async def step(self, action):
        self.given.append(action)
        self.tick += 1
        return [float(self.tick)], 1.0, self.tick >= self.length, False, {}


class Agent:
    """The other side, spoken by hand."""

    def __init__(self, client):
        self.client = client
        self.session = ""

    async def next(self, kind):
        async with asyncio.timeout(10):
            while str((message := await anext(self.client.messages)).topic) != f"{TOPIC}/up/{kind}":
                pass
            return json.loads(message.payload)

    async def ready(self):
        while (status := await self.next("status"))["status"] != "ready":
            pass
        self.session = status["session"]
        return status

    async def command(self, verb="reset", **fields):
        message = {"id": "c1", "verb": verb, "session": self.session, "episode": "e1", "seed": 7, "max_steps": 100} | fields
        await self.client.publish(f"{TOPIC}/down/command", json.dumps(message), qos=1)

    async def act(self, observation, action="go", **fields):
        message = {"session": self.session, "episode": observation["episode"], "step": observation["step"], "revision": "r"}
        await self.client.publish(f"{TOPIC}/down/action", json.dumps(message | {"action": action, "safe": False} | fields))


@pytest.fixture
async def agent(mosquitto):
    async with connected(Client("127.0.0.1", mosquitto.port)) as client:
        await client.subscribe(f"{TOPIC}/up/#", qos=1)
        yield Agent(client)


@contextlib.asynccontextmanager
async def serving(mosquitto, plant, **options):
    log = []
    settings = {"agent": "a", "fallback": "brake", "action_timeout": 0.2, "log": log.append} | options
    device = Device(mosquitto.url, "arm", on_reset=plant.reset, on_step=plant.step, **settings)
    device.applied = log
    running = asyncio.create_task(device.run())
    try:
        yield device
    finally:
        device.stop()
        async with asyncio.timeout(20):
            await running


async def test_it_says_who_it_is_and_for_whom(mosquitto, agent):
    async with serving(mosquitto, Plant(), labels={"site": "lab"}):
        status = await agent.ready()
    assert {key: value for key, value in status.items() if key != "session"} == {
        "status": "ready",
        "agent": "a",
        "labels": {"site": "lab"},
        "encoding": "json",
        "seedable": True,
    }
    assert (await agent.next("status"))["status"] == "stopped"


async def test_an_episode_applies_each_action_at_its_own_tick(mosquitto, agent):
    plant = Plant()
    async with serving(mosquitto, plant) as device:
        await agent.ready()
        await agent.command()
        for step in range(5):
            observation = await agent.next("observation")
            assert (observation["step"], observation["episode"], observation["session"]) == (step, "e1", agent.session)
            await agent.act(observation, f"action {step}", safe=step == 3)
        last = await agent.next("observation")
    assert (last["terminated"], last["step"]) == (True, 5)
    assert plant.seeds == [7]
    assert plant.given == [f"action {step}" for step in range(5)]
    assert [line.source for line in device.applied] == ["action", "action", "action", "safe", "action"]


async def test_without_an_answer_it_falls_back_and_says_so(mosquitto, agent):
    plant = Plant()
    async with serving(mosquitto, plant):
        await agent.ready()
        await agent.command()
        fallbacks = [(await agent.next("observation"))["fallback"] for _ in range(6)]
    assert fallbacks == [False, True, True, True, True, True]
    assert plant.given == ["brake"] * 5


async def test_a_fallback_may_be_computed_from_the_last_observation(mosquitto, agent):
    plant = Plant(length=3)
    async with serving(mosquitto, plant, fallback=lambda observation: -observation[0]):
        await agent.ready()
        await agent.command()
        while not (await agent.next("observation")).get("terminated"):
            pass
    assert plant.given == [0.0, -1.0, -2.0]


@pytest.mark.parametrize(
    "lie",
    [{"session": "older"}, {"episode": "other"}, {"step": 99}, {"step": -1}, {"action": "refused"}, {"session": None}],
)
async def test_an_action_that_is_not_for_this_tick_is_not_applied(mosquitto, agent, lie):
    plant = Plant(length=1)
    async with serving(mosquitto, plant, accepts=lambda action: action != "refused") as device:
        await agent.ready()
        await agent.command()
        observation = await agent.next("observation")
        await agent.act(observation, **lie)
        await agent.next("observation")
    assert plant.given == ["brake"]
    assert sum(device.counts[name] for name in ("older_session", "stale", "refused")) == 1


@pytest.mark.parametrize("payload", [b"", b"\xff", b"[]", b"{}", b"null", b"[" * 10_000, b'"x"'])
async def test_garbage_is_counted_and_costs_nothing(mosquitto, agent, payload):
    plant = Plant(length=1)
    async with serving(mosquitto, plant) as device:
        await agent.ready()
        await agent.command()
        observation = await agent.next("observation")
        for topic in ("down/action", "down/command"):
            await agent.client.publish(f"{TOPIC}/{topic}", payload)
        await agent.act(observation, "right")
        await agent.next("observation")
    assert plant.given == ["right"]
    assert device.counts["malformed"] == 2


@pytest.mark.parametrize("when", ["in a tick", "between two ticks", "as it waits for an action", "as a reset has come"])
async def test_stopped_at_any_moment_it_leaves_the_plant_with_its_fallback(mosquitto, agent, when):
    reset_came = asyncio.Event()

    class Stopping(Plant):
        async def step(self, action):
            if when == "in a tick":
                device.stop()
            elif when == "as a reset has come":
                await reset_came.wait()
                device.stop()
            elif when == "between two ticks":
                asyncio.get_running_loop().call_later(0.01, device.stop)
            return await super().step(action)

    plant = Stopping(length=100)
    async with serving(mosquitto, plant, action_timeout=5.0, step_interval=0.05) as device:
        await agent.ready()
        await agent.command()
        await agent.act(await agent.next("observation"))
        if when == "as it waits for an action":
            await agent.next("observation")
            device.stop()
        elif when == "as a reset has come":
            await agent.command(episode="e2")
            await agent.next("response")
            reset_came.set()
        while (status := await agent.next("status"))["status"] != "stopped":
            assert status["status"] == "ready"
    assert plant.given == ["go", "brake"]
    assert [line.source for line in device.applied] == ["action", "fallback"]


async def test_a_new_reset_ends_the_episode_that_runs(mosquitto, agent):
    plant = Plant(length=100)
    async with serving(mosquitto, plant):
        await agent.ready()
        await agent.command()
        await agent.act(await agent.next("observation"), "a")
        await agent.next("observation")
        await agent.command(episode="e2", seed=None)
        while (observation := await agent.next("observation"))["episode"] != "e2":
            pass
    assert observation["step"] == 0
    assert plant.seeds == [7, None]


async def test_an_episode_that_was_cut_leaves_the_plant_with_its_fallback_unless_another_one_begins_in_time(mosquitto, agent, until):
    plant = Plant(length=100)
    async with serving(mosquitto, plant, action_timeout=1.0) as device:
        await agent.ready()
        await agent.command(max_steps=1)
        await agent.act(await agent.next("observation"), "ahead")
        await until(lambda: plant.given == ["ahead", "brake"])
        assert [(line.step, line.source) for line in device.applied] == [(0, "action"), (1, "rest")]
        await agent.command(episode="e2", max_steps=1)
        while (observation := await agent.next("observation"))["episode"] != "e2":
            pass
        await agent.act(observation, "ahead")
        await agent.next("observation")
        await agent.command(episode="e3")
        await agent.next("observation")
        assert plant.given == ["ahead", "brake", "ahead"]


async def test_a_plant_that_was_cut_is_stopped_with_its_fallback(mosquitto, agent):
    plant = Plant(length=100)
    async with serving(mosquitto, plant, action_timeout=5.0):
        await agent.ready()
        await agent.command(max_steps=1)
        await agent.act(await agent.next("observation"), "ahead")
        await agent.next("observation")
    assert plant.given == ["ahead", "brake"]


async def test_a_command_that_the_broker_delivers_twice_is_done_once_and_answered_twice(mosquitto, agent):
    plant = Plant(length=100)
    async with serving(mosquitto, plant, action_timeout=5.0):
        await agent.ready()
        await agent.command()
        await agent.act(await agent.next("observation"))
        await agent.command()
        assert (await agent.next("observation"))["step"] == 1
        await agent.act({"episode": "e1", "step": 1})
        assert (await agent.next("observation"))["step"] == 2
    assert plant.seeds == [7]


async def test_max_steps_truncates(mosquitto, agent):
    async with serving(mosquitto, Plant(length=100)):
        await agent.ready()
        await agent.command(max_steps=2)
        seen = [await agent.next("observation") for _ in range(3)]
    assert [(one["step"], one.get("truncated", False)) for one in seen] == [(0, False), (1, False), (2, True)]


async def test_a_command_it_does_not_know_is_answered(mosquitto, agent):
    async with serving(mosquitto, Plant()):
        await agent.ready()
        await agent.command("dance")
        answer = await agent.next("response")
    assert (answer["id"], answer["ok"], answer["error"]) == ("c1", False, "unknown verb 'dance'")


async def test_an_action_is_not_applied_after_its_time_though_it_came_before(mosquitto, agent, until):
    """The plant's process is held up: when it goes on, the action is there, and the limit has passed."""
    loop = asyncio.get_running_loop()

    def answer(client, _, message):
        observation = json.loads(message.payload)
        if observation["step"] == 1:
            loop.call_soon_threadsafe(time.sleep, 0.8)
            time.sleep(0.1)
        fields = {key: observation[key] for key in ("session", "episode", "step")}
        client.publish(f"{TOPIC}/down/action", json.dumps(fields | {"action": "go", "revision": "r", "safe": False}))

    elsewhere = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    elsewhere.on_message = answer
    elsewhere.connect("127.0.0.1", mosquitto.port)
    elsewhere.subscribe(f"{TOPIC}/up/observation")
    elsewhere.loop_start()
    try:
        async with serving(mosquitto, Plant(length=3), action_timeout=0.5) as device:
            await agent.ready()
            await agent.command()
            await until(lambda: len(device.applied) == 3)
    finally:
        elsewhere.disconnect()
        elsewhere.loop_stop()
    assert [applied.source for applied in device.applied] == ["action", "fallback", "action"]
    assert device.counts["late"] == 1


async def test_how_long_an_action_was_waited_for_is_told_without_the_plants_own_step(mosquitto, agent, until):
    class Slow(Plant):
        async def step(self, action):
            await asyncio.sleep(0.6)  # longer than an action is waited for
            return await super().step(action)

    async with serving(mosquitto, Slow(length=1), action_timeout=0.5) as device:
        await agent.ready()
        await agent.command()
        await agent.act(await agent.next("observation"))
        await until(lambda: device.applied)
    (applied,) = device.applied
    assert applied.source == "action"
    assert applied.waited < 0.5


async def test_it_can_begin_by_itself_when_nobody_asks(mosquitto, agent, until):
    plant = Plant(length=1)
    async with serving(mosquitto, plant, begin_after=0.05, action_timeout=5.0) as device:
        await agent.ready()
        while (first := await agent.next("observation"))["step"] > 0:  # an episode began before the device was connected
            pass
        await agent.act(first, "a")
        await until(lambda: any(applied.episode == first["episode"] for applied in device.applied))
        (applied,) = [applied for applied in device.applied if applied.episode == first["episode"]]
        assert (applied.action, applied.source) == ("a", "action")
        while (await agent.next("observation"))["episode"] == first["episode"]:
            pass


async def test_the_plant_goes_on_while_the_network_is_gone_and_comes_back_in_a_new_session(mosquitto, agent, until):
    plant = Plant(length=10_000)
    async with serving(mosquitto, plant, step_interval=0.005) as device:
        await agent.ready()
        await agent.command()
        await agent.act(await agent.next("observation"), "a")
        await agent.next("observation")
        first = device.session
        mosquitto.kill()
        count = len(plant.given)
        await until(lambda: len(plant.given) > count + 50)
        mosquitto.start()
        await until(lambda: device.connected and device.session != first)
        assert set(plant.given[count + 2 :]) == {"brake"}
        assert device.counts["disconnected"] >= 1
    assert [line.step for line in device.applied] == list(range(len(device.applied)))


async def test_its_heartbeats_carry_session_and_sequence(mosquitto, agent):
    async with serving(mosquitto, Plant(), heartbeat=0.05):
        await agent.ready()
        beats = [await agent.next("heartbeat") for _ in range(3)]
    assert [beat["seq"] for beat in beats] == [0, 1, 2]
    assert {beat["session"] for beat in beats} == {agent.session}


@pytest.mark.parametrize("how", ["its plant fails", "it is cancelled"])
async def test_a_device_that_ends_otherwise_than_by_stop_is_lost_at_once(mosquitto, agent, how):
    class Broken(Plant):
        async def step(self, action):
            if how == "its plant fails":
                raise RuntimeError("the motor is on fire")
            return await super().step(action)

    plant = Broken(length=10_000)
    device = Device(mosquitto.url, "arm", agent="a", on_reset=plant.reset, on_step=plant.step, fallback="brake", action_timeout=0.01)
    running = asyncio.create_task(device.run())
    await agent.ready()
    await agent.command()
    if how == "it is cancelled":
        await agent.next("observation")
        running.cancel()
    while (status := await agent.next("status"))["status"] == "ready":
        pass
    assert (status["status"], status["session"]) == ("lost", agent.session)
    await asyncio.wait([running])
    with pytest.raises(asyncio.CancelledError if how == "it is cancelled" else ExceptionGroup):
        running.result()


@pytest.mark.parametrize("prefix", ["", "#", "a/+", "$SYS", "/a", "a\0"])
def test_a_prefix_is_the_beginning_of_a_topic(prefix):
    with pytest.raises(ValueError, match="prefix"):
        Device("mqtt://x", "arm", agent="a", on_reset=lambda _: None, on_step=lambda _: None, fallback=0, prefix=prefix)
    with pytest.raises(SpecError, match="should be the beginning of a topic"):
        validate(MqttSection, {"prefix": prefix}, "agent.toml")


@pytest.mark.parametrize("name", ["", "a/b", "#", "+", "a\0", "\x1b[2J", "x" * 201])
def test_a_name_is_one_topic_level(name):
    with pytest.raises(ValueError):
        Device("mqtt://x", name, agent="a", on_reset=lambda _: None, on_step=lambda _: None, fallback=0)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("mqtt://broker", ("broker", 1883, None, None)),
        ("mqtt://u%40x:p%3A@broker:99", ("broker", 99, "u@x", "p:")),
        ("mqtts://broker", ("broker", 8883, None, None)),
    ],
)
def test_a_brokers_address_is_taken_apart(address, expected):
    found = connection_arguments(address)
    assert (found["hostname"], found["port"], found["username"], found["password"]) == expected
    assert (found["tls_context"] is not None) == address.startswith("mqtts")


def test_a_pause_before_the_next_attempt_grows_to_a_cap_and_is_jittered():
    generator = random.Random(1)
    pauses = [backoff(attempt, generator) for attempt in range(40)]
    assert 0.05 <= pauses[0] <= 0.1
    assert max(pauses) <= 5.0
    assert len(set(pauses)) == 40


@pytest.mark.parametrize(
    "action_timeout", [0.0007, 0.0015, *(pytest.param(seconds, marks=pytest.mark.long) for seconds in (0.0004, 0.001, 0.003))]
)
async def test_a_time_limit_that_ends_while_an_observation_is_just_sent_never_leaves_the_plant_waiting(mosquitto, until, action_timeout):
    plant = Plant(length=10_000)
    async with serving(mosquitto, plant, action_timeout=action_timeout, begin_after=0.0) as device:
        await until(lambda: device.connected)
        known = len(plant.given)
        await until(lambda: len(plant.given) > known + 1000)
    assert set(plant.given) == {"brake"}


async def test_a_message_beyond_the_limit_is_dropped_unread(mosquitto, agent):
    plant = Plant(length=1)
    async with serving(mosquitto, plant, max_payload=500) as device:
        await agent.ready()
        await agent.command()
        observation = await agent.next("observation")
        await agent.act(observation, "x" * 1000)
        await agent.act(observation, "short")
        await agent.next("observation")
    assert plant.given == ["short"]
    assert device.counts["too_large"] == 1


async def test_why_there_is_no_broker_is_told_and_forgotten_when_there_is_one(mosquitto, until, caplog):
    mosquitto.kill()
    async with serving(mosquitto, Plant()) as device:
        await until(lambda: "refused" in device.trouble)
        mosquitto.start()
        await until(lambda: device.connected and device.trouble == "")
    assert caplog.text.count("arm has no broker") == 1
