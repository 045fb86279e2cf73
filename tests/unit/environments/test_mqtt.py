"""The agent's side of the protocol against a device that floods, repeats, reorders, goes silent and lies: a bare MQTT client plays it."""

import asyncio
import contextlib
import json
import math
import random

import aiomqtt
import msgspec
import pytest
from devices import change

from agentd.clock import SystemClock
from agentd.device.connection import Client, connected
from agentd.environments import Joined, Left, Linked, Rival, make_environment
from agentd.errors import PlantError, PlantLost
from agentd.runners.pace import PacedDevice

TOPIC = "agentd/v1/devices/arm"


class Arm:
    """A device, spoken by hand. `heard` has what came down."""

    def __init__(self, client, session="s1"):
        self.client = client
        self.session = session
        self.heard = asyncio.Queue()

    async def status(self, status="ready", **fields):
        message = {"status": status, "session": self.session, "agent": "cartpole", "seedable": True} | fields
        await self.client.publish(f"{TOPIC}/up/status", json.dumps(message), qos=1, retain=True)

    async def see(self, episode, step, observation=(0.0, 0.0, 0.0, 0.0), **fields):
        message = {"session": self.session, "episode": episode, "step": step, "observation": list(observation)} | fields
        await self.client.publish(f"{TOPIC}/up/observation", json.dumps(message))

    async def listen(self):
        async for message in self.client.messages:
            await self.heard.put((str(message.topic).rpartition("/")[2], json.loads(message.payload)))

    async def next(self, kind):
        async with asyncio.timeout(10):
            while True:
                heard, message = await self.heard.get()
                if heard == kind:
                    return message


@pytest.fixture
async def arm(mosquitto):
    async with connected(Client("127.0.0.1", mosquitto.port)) as client:
        arm = Arm(client)
        await client.subscribe([(f"{TOPIC}/down/action", 0), (f"{TOPIC}/down/command", 1)])
        listening = asyncio.create_task(arm.listen())
        yield arm
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listening


@pytest.fixture
def make_agent(mosquitto, make_spec):
    tables = {
        "kind": "mqtt",
        "mqtt": {"observation_timeout": 30.0, "max_payload": 2000},
        "observation_space": {"low": -10.0, "high": 10.0, "shape": [4]},
        "action_space": {"discrete": 2},
        "safe_action": {"value": 0},
    }

    def make(broker=None, session="agent-1", **changes):
        spec = make_spec(environment=tables | changes)
        broker = broker or mosquitto.url
        return make_environment(spec, session=session, broker=broker, clock=SystemClock(), generator=random.Random(1))

    return make


@pytest.fixture
async def environment(make_agent):
    async with make_agent() as made:
        yield made


@pytest.fixture
async def impatient(make_agent):
    """Silence for a second is enough: for those tests only that wait for it, since a busy machine is silent, too."""
    async with make_agent(mqtt={"observation_timeout": 1.0}) as made:
        yield made


async def driven(environment, arm, episode="e1"):
    """A device in the middle of an episode: its first observation was delivered."""
    await arm.status()
    device = (await change(environment, Joined)).device
    resetting = asyncio.create_task(device.reset(episode, 7, 100))
    command = await arm.next("command")
    assert (command["verb"], command["episode"], command["seed"], command["max_steps"], command["session"]) == (
        "reset",
        episode,
        7,
        100,
        "s1",
    )
    await arm.see(episode, 0)
    assert (await resetting).tick == 0
    return device


async def answered(device, arm, action=1):
    """Give an action and see it arrive; the task waits for what comes of it."""
    stepping = asyncio.create_task(device.step(action, revision="r", safe=False))
    return stepping, await arm.next("action")


async def test_an_action_names_session_episode_step_revision_and_whether_it_is_safe(environment, arm):
    device = await driven(environment, arm)
    stepping, message = await answered(device, arm)
    assert message == {"session": "s1", "episode": "e1", "step": 0, "revision": "r", "action": 1, "safe": False}
    await arm.see("e1", 1, reward=1.0, info={"note": "x"})
    transition = await stepping
    assert (transition.tick, transition.reward, transition.info) == (1, 1.0, {"note": "x"})


async def test_a_device_that_was_there_before_the_agent_can_be_driven_at_once(make_agent, arm):
    await arm.status()
    for number in range(5):
        async with make_agent() as agent:
            device = (await change(agent, Joined)).device
            resetting = asyncio.create_task(device.reset(f"e{number}", None, 10))
            assert (await arm.next("command"))["episode"] == f"e{number}"
            await arm.see(f"e{number}", 0)
            assert (await resetting).tick == 0


async def test_actions_that_the_network_does_not_take_are_dropped_rather_than_sent_late(environment, arm, mosquitto, until):
    await driven(environment, arm)
    action = b"x" * 2_000
    mosquitto.freeze()

    async def until_congested():
        while not environment.counters.dropped["congested"]:
            environment.send("another", action)
            await asyncio.sleep(0)

    async with asyncio.timeout(20):
        await until_congested()
    assert environment.send("another", action) is False
    mosquitto.thaw()
    await until(lambda: environment.send("another", b"{}"))


async def test_repeated_and_reordered_observations_are_dropped_and_counted(environment, arm):
    device = await driven(environment, arm)
    stepping, _ = await answered(device, arm)
    await arm.see("e1", 0)
    await arm.see("e1", 3)
    assert (await stepping).tick == 3
    stepping, _ = await answered(device, arm)
    for step in (2, 3, 1):
        await arm.see("e1", step)
    await arm.see("e1", 4)
    assert (await stepping).tick == 4
    assert environment.counters.dropped == {"stale": 4}


async def test_of_a_flood_the_newest_observation_counts_and_no_reward_is_lost(environment, arm):
    device = await driven(environment, arm)
    for step in range(1, 6):
        await arm.see("e1", step, reward=1.0)
    await arm.client.publish("agentd/v1/devices/arm/up/heartbeat", b'{"session": "s1"}', qos=1)
    await asyncio.sleep(0.2)
    transition = await device.step(1, revision="r", safe=False)
    assert (transition.tick, transition.reward, transition.fallback) == (5, 5.0, True)
    assert environment.counters.dropped == {"late_action": 1, "superseded": 4}
    assert arm.heard.empty()  # the action for a tick that has gone is never sent


async def test_of_an_action_that_came_too_late_to_be_sent_it_is_said_that_the_plant_did_not_get_it(environment, arm, until):
    device = await driven(environment, arm)
    await arm.see("e1", 1)
    await until(lambda: environment.counters.messages["in"] >= 3)
    transition = await device.step(1, revision="r", safe=False)
    assert (transition.tick, transition.fallback, transition.braked) == (1, True, False)
    stepping, _ = await answered(device, arm)
    await arm.see("e1", 2)
    assert not (await stepping).fallback
    await arm.see("e1", 3, observation=(99.0, 0, 0, 0))  # and what it got instead is the safe action
    assert (await arm.next("action"))["safe"]
    stepping = asyncio.create_task(device.step(1, revision="r", safe=False))
    await arm.see("e1", 4)
    transition = await stepping
    assert (transition.tick, transition.fallback, transition.braked) == (4, True, True)
    assert environment.counters.dropped == {"late_action": 1, "out_of_space": 1}


async def test_at_a_fixed_rate_observations_between_ticks_are_no_fallback_and_a_plant_given_up_is_answered_safely(environment, arm, until):
    device = await driven(environment, arm)
    paced = PacedDevice(device, rate=50.0, dead_man=None, timeout=0.1, clock=SystemClock(), count=lambda *_: None)
    for steps, fallback in ((range(1, 4), False), (range(4, 7), True)):
        for step in steps:
            await arm.see("e1", step, reward=1.0, fallback=fallback and step == 5)
        await until(lambda last=steps[-1]: device._newest == last)
        transition = await paced.step(1, revision="r", safe=False)
        assert (transition.reward, transition.fallback) == (3.0, fallback)
    with contextlib.suppress(PlantLost):
        while True:
            await paced.step(1, revision="r", safe=False)
    await arm.see("e1", 7)
    while (message := await arm.next("action"))["step"] != 7:
        assert not message["safe"]
    assert message["safe"]


async def test_a_long_flood_is_bounded_and_keeps_the_end_of_the_episode(environment, arm):
    device = await driven(environment, arm)
    for step in range(1, 60):
        await arm.see("e1", step)
    await arm.see("e1", 60, terminated=True)
    await asyncio.sleep(0.3)
    transition = await device.step(1, revision="r", safe=False)
    assert (transition.tick, transition.terminated) == (60, True)


async def test_an_older_session_is_dropped_and_counted(environment, arm):
    device = await driven(environment, arm)
    stepping, _ = await answered(device, arm)
    arm.session = "an older life"
    await arm.see("e1", 1)
    arm.session = "s1"
    await arm.see("e1", 2)
    assert (await stepping).tick == 2
    assert environment.counters.dropped == {"older_session": 1}


async def test_an_observation_outside_the_space_gets_the_safe_action_at_once(environment, arm):
    device = await driven(environment, arm)
    stepping, _ = await answered(device, arm)
    await arm.see("e1", 1, observation=(99.0, 0, 0, 0))
    message = await arm.next("action")
    assert (message["step"], message["action"], message["safe"]) == (1, 0, True)
    await arm.see("e1", 2)
    assert (await stepping).tick == 2
    assert environment.counters.dropped == {"out_of_space": 1}
    assert environment.counters.safe_actions == {"invalid_observation": 1}


async def test_an_episode_ends_even_with_an_observation_outside_the_space(environment, arm):
    device = await driven(environment, arm)
    stepping, _ = await answered(device, arm)
    await arm.see("e1", 1, observation=(99.0, 0, 0, 0), terminated=True)
    transition = await stepping
    assert (transition.terminated, transition.observation) == (True, None)


async def test_what_nobody_drives_is_answered_with_the_safe_action(environment, arm):
    await arm.status()
    await change(environment, Joined)
    await arm.see("of an earlier runner", 17)
    message = await arm.next("action")
    assert (message["episode"], message["step"], message["action"], message["safe"]) == ("of an earlier runner", 17, 0, True)
    assert environment.counters.safe_actions == {"orphan": 1}


async def test_an_episode_left_in_the_middle_is_answered_to_its_end(environment, arm):
    device = await driven(environment, arm)
    await device.rest(0)
    assert (await arm.next("action"))["safe"] is True
    await arm.see("e1", 1)
    assert (await arm.next("action"))["step"] == 1


async def test_a_step_zero_that_nobody_asked_for_is_an_episode_of_the_device(environment, arm):
    await arm.status()
    device = (await change(environment, Joined)).device
    await arm.see("mine", 0)
    async with asyncio.timeout(10):
        begun = await device.begun()
    assert (begun.episode, begun.first.tick, begun.first.observation) == ("mine", 0, [0.0, 0.0, 0.0, 0.0])
    stepping, message = await answered(device, arm)
    assert message["episode"] == "mine"
    await arm.see("mine", 1, truncated=True)
    assert (await stepping).last


async def test_a_device_that_begins_another_episode_supersedes_the_one_that_ran(environment, arm):
    device = await driven(environment, arm)
    stepping, _ = await answered(device, arm)
    await arm.see("mine", 0)
    with pytest.raises(PlantLost) as lost:
        await stepping
    assert lost.value.reason == "superseded"
    assert (await device.begun()).episode == "mine"


async def test_a_device_that_refuses_a_reset_is_lost_at_once_in_its_own_words(environment, arm):
    await arm.status()
    device = (await change(environment, Joined)).device
    resetting = asyncio.create_task(device.reset("e1", 7, 100))
    command = await arm.next("command")
    answer = {"id": "another", "session": "s1", "ok": False, "error": "not this one"}
    for fields in ({}, {"id": command["id"], "session": "older"}, {"id": command["id"], "error": "the emergency stop is pressed"}):
        await arm.client.publish(f"{TOPIC}/up/response", json.dumps(answer | fields), qos=1)
    with pytest.raises(PlantLost, match="arm refuses to begin: the emergency stop is pressed") as lost:
        await resetting
    assert lost.value.reason == "refused"
    assert environment.counters.dropped == {"older_session": 1}
    resetting = asyncio.create_task(device.reset("e2", 7, 100))
    await arm.next("command")
    await arm.see("e2", 0)
    assert (await resetting).tick == 0


async def test_a_device_that_falls_silent_in_an_episode_is_lost(impatient, arm):
    device = await driven(impatient, arm)
    stepping, _ = await answered(device, arm)
    with pytest.raises(PlantLost) as lost:
        await stepping
    assert lost.value.reason == "silent"


async def test_a_device_without_a_sign_of_life_leaves_and_comes_back_with_one(impatient, arm):
    await arm.status()
    await change(impatient, Joined)
    assert (await change(impatient, Left)).reason == "silent"
    await arm.client.publish(f"{TOPIC}/up/heartbeat", json.dumps({"session": "s1", "seq": 9}))
    assert (await change(impatient, Joined)).device.id == "arm"


@pytest.mark.parametrize(("status", "reason"), [("stopped", "stopped"), ("lost", "disconnected")])
async def test_a_device_that_stops_or_whose_will_is_read_is_gone(environment, arm, status, reason):
    device = await driven(environment, arm)
    stepping, _ = await answered(device, arm)
    await arm.status(status)
    with pytest.raises(PlantLost) as lost:
        await stepping
    assert lost.value.reason == reason
    assert (await change(environment, Left)).reason == reason
    with pytest.raises(PlantLost):
        await device.reset("e2", None, 10)


async def test_a_new_session_of_a_device_ends_its_old_one(environment, arm):
    device = await driven(environment, arm)
    stepping, _ = await answered(device, arm)
    arm.session = "s2"
    await arm.status()
    with pytest.raises(PlantLost) as lost:
        await stepping
    assert lost.value.reason == "superseded"
    assert (await change(environment, Joined)).device.session == "s2"


async def test_the_last_will_of_an_older_session_hurts_nobody(environment, arm, until):
    device = await driven(environment, arm)
    session, arm.session = arm.session, "an older life"
    await arm.status("lost")
    await until(lambda: environment.counters.dropped["older_session"])
    arm.session = session
    stepping, _ = await answered(device, arm)
    await arm.see("e1", 1)
    assert (await stepping).tick == 1


async def test_a_device_that_serves_another_agent_now_leaves_at_once(environment, arm):
    device = await driven(environment, arm)
    stepping, _ = await answered(device, arm)
    arm.session = "s2"
    await arm.status(agent="somebody else's")
    with pytest.raises(PlantLost) as lost:
        await stepping
    assert lost.value.reason == "superseded"
    assert not environment.counters.dropped


async def test_an_action_beyond_the_payload_limit_is_not_sent_and_its_tick_is_the_devices_own(environment, arm):
    device = await driven(environment, arm)
    stepping = asyncio.create_task(device.step("x" * 3000, revision="r", safe=False))
    await asyncio.sleep(0)
    await arm.see("e1", 1, fallback=True)
    assert (await stepping).fallback
    assert environment.counters.dropped == {"too_large": 1}
    assert arm.heard.empty()


async def test_a_device_of_another_agent_is_not_ours(environment, arm):
    await arm.status(agent="somebody else's")
    arm.session = "s2"
    await arm.status()
    assert (await change(environment, Joined)).device.session == "s2"


async def test_a_payload_beyond_the_limit_is_counted_and_not_read(environment, arm, until):
    device = await driven(environment, arm)
    stepping, _ = await answered(device, arm)
    await arm.see("e1", 1, info={"padding": "x" * 2000})
    await arm.see("e1", 2)
    assert (await stepping).tick == 2
    assert environment.counters.dropped == {"too_large": 1}


@pytest.mark.parametrize(
    ("encoding", "info"),
    [("json", 2**64), ("msgpack", msgspec.msgpack.Ext(5, b"whose?")), ("msgpack", msgspec.msgpack.Ext(1, b"no array"))],
)
async def test_an_info_that_could_not_be_passed_on_makes_its_message_malformed(environment, arm, until, encoding, info):
    write = {"json": json.dumps, "msgpack": msgspec.msgpack.encode}[encoding]
    await arm.status(encoding=encoding)
    device = (await change(environment, Joined)).device
    first = {"session": "s1", "episode": "e1", "step": 0, "observation": [0.0] * 4}
    await arm.client.publish(f"{TOPIC}/up/observation", write(first | {"info": {"id": info}}))
    await until(lambda: environment.counters.dropped == {"malformed": 1})
    await arm.client.publish(f"{TOPIC}/up/observation", write(first | {"info": {"id": 2**64 - 1}}))
    async with asyncio.timeout(10):
        assert (await device.begun()).first.info == {"id": 2**64 - 1}


@pytest.mark.parametrize("reward", [math.nan, -math.inf])
async def test_a_reward_that_is_no_number_makes_its_message_malformed_in_messagepack_as_it_does_in_json(environment, arm, until, reward):
    await arm.status(encoding="msgpack")
    device = (await change(environment, Joined)).device
    first = {"session": "s1", "episode": "e1", "step": 0, "observation": [0.0] * 4}
    await arm.client.publish(f"{TOPIC}/up/observation", msgspec.msgpack.encode(first | {"reward": reward}))
    await until(lambda: environment.counters.dropped == {"malformed": 1})
    await arm.client.publish(f"{TOPIC}/up/observation", msgspec.msgpack.encode(first | {"reward": 1.0}))
    async with asyncio.timeout(10):
        assert (await device.begun()).first.reward == 1.0


async def test_a_step_beyond_all_counting_is_malformed_and_does_not_cost_the_episode(environment, arm):
    device = await driven(environment, arm)
    stepping, _ = await answered(device, arm)
    await arm.see("e1", 2**63)
    await arm.see("e1", 1)
    assert (await stepping).tick == 1
    assert environment.counters.dropped == {"malformed": 1}


async def test_an_observation_of_no_declared_space_that_could_not_be_passed_on_is_malformed(make_agent, arm):
    async with make_agent(observation_space=None) as environment:
        device = await driven(environment, arm)
        stepping, _ = await answered(device, arm)
        await arm.see("e1", 1, observation=[2**64])
        await arm.see("e1", 2, observation=["text"])
        assert (await stepping).observation == ["text"]
        assert environment.counters.dropped == {"malformed": 1}


async def test_a_device_that_asks_for_messagepack_is_spoken_to_in_it(environment, mosquitto):
    async with aiomqtt.Client("127.0.0.1", mosquitto.port) as client:
        await client.subscribe(f"{TOPIC}/down/#", qos=1)
        arm = Arm(client)
        await arm.status(encoding="msgpack")
        device = (await change(environment, Joined)).device
        resetting = asyncio.create_task(device.reset("e1", None, 10))
        async with asyncio.timeout(10):
            while True:
                message = await anext(client.messages)
                if str(message.topic).endswith("command"):
                    break
        assert msgspec.msgpack.decode(message.payload)["episode"] == "e1"
        first = {"session": "s1", "episode": "e1", "step": 0, "observation": [0.0] * 4}
        await client.publish(f"{TOPIC}/up/observation", msgspec.msgpack.encode(first))
        assert (await resetting).observation == [0.0] * 4


async def test_the_agent_says_what_it_does_and_what_it_expects(environment, mosquitto):
    await environment.announce("ready")
    await change(environment, Linked)
    said = {}
    async with aiomqtt.Client("127.0.0.1", mosquitto.port) as client:
        await client.subscribe("agentd/v1/agents/cartpole/#")
        async with asyncio.timeout(10):
            while len(said) < 2:
                message = await anext(client.messages)
                assert message.retain
                said[str(message.topic).rpartition("/")[2]] = json.loads(message.payload)
    assert said["status"] == {"status": "ready", "session": "agent-1"}
    assert (said["description"]["safe_action"], said["description"]["deadline_ms"]) == (0, 50.0)


async def test_the_last_will_of_an_older_life_of_the_agent_does_not_stay(environment, mosquitto):
    await environment.announce("ready")
    await change(environment, Linked)
    async with aiomqtt.Client("127.0.0.1", mosquitto.port) as client, asyncio.timeout(10):
        await client.publish("agentd/v1/agents/cartpole/status", json.dumps({"status": "lost", "session": "agent-0"}), qos=1, retain=True)
        await client.subscribe("agentd/v1/agents/cartpole/status")
        async for message in client.messages:
            if json.loads(message.payload) == {"status": "ready", "session": "agent-1"}:
                break


async def test_two_agentds_that_drive_the_same_devices_are_told_of_each_other_once(make_agent):
    async with make_agent() as one:
        await one.announce("ready")
        await change(one, Linked)
        async with make_agent(session="agent-2") as two:
            await two.announce("ready")
            assert (await change(one, Rival)).session == "agent-2"
            assert (await change(two, Rival)).session == "agent-1"
            await two.announce("paused")
            await two.announce("stopped")
        assert len(one._rivals) == 1


async def test_a_broker_that_is_not_there_is_waited_for(mosquitto, make_spec):
    tables = {"kind": "mqtt", "action_space": {"discrete": 2}, "observation_space": {"shape": [4]}, "safe_action": {"value": 0}}
    spec = make_spec(environment=tables)
    mosquitto.kill()
    made = make_environment(spec, session="a", broker=mosquitto.url, clock=SystemClock(), generator=random.Random(1))
    async with made:
        assert not (await change(made, Linked)).connected
        mosquitto.start()
        while not (await change(made, Linked)).connected:
            pass
        assert made.connected


@pytest.mark.parametrize("address", ["broker:1883", "http://broker", "mqtt://", "", "mqtt://host:port"])
def test_an_address_that_is_none_is_said(make_spec, address):
    tables = {"kind": "mqtt", "action_space": {"discrete": 2}, "observation_space": {"shape": [4]}, "safe_action": {"value": 0}}
    with pytest.raises(PlantError):
        make_environment(
            make_spec(environment=tables), session="a", broker=address or None, clock=SystemClock(), generator=random.Random(1)
        )


@pytest.mark.parametrize("name", ["", "x" * 65_505], ids=["none", "one that leaves no room"])
async def test_a_device_under_a_name_that_is_none_costs_the_others_nothing(make_agent, arm, until, name):
    status = {"status": "ready", "session": "s1", "agent": "cartpole"}
    await arm.client.publish(f"agentd/v1/devices/{name}/up/status", json.dumps(status), qos=1, retain=True)
    async with make_agent() as environment:
        await until(lambda: environment.counters.dropped["bad_name"])
        assert (await driven(environment, arm)).id == "arm"


@pytest.mark.parametrize("then", [{"status": "lost"}, {"session": "s2"}])
async def test_of_a_device_that_goes_before_it_could_be_heard_nobody_is_told_that_it_left(environment, arm, then):
    await change(environment, Linked)
    await asyncio.gather(arm.status(), arm.status(**then))
    await arm.status(session="s3")
    here = set()
    async with asyncio.timeout(10):
        async for found in environment.changes():
            if isinstance(found, Left):
                assert found.device in here
                here.remove(found.device)
            elif found.device.session == "s3":
                break
            else:
                here.add(found.device.id)


@contextlib.asynccontextmanager
async def relay(port, up, down):
    """A way to the broker, and the connections to it. Where `up` or `down` (number of the connection, from, to) ends, it ends."""
    connections, serving = [], []

    async def serve(reader, writer):
        serving.append(asyncio.current_task())
        connections.append(writer)
        number, ends, pumps = len(connections), [writer], []
        try:
            there, onward = await asyncio.open_connection("127.0.0.1", port)
            ends.append(onward)
            pumps = [asyncio.create_task(up(number, reader, onward)), asyncio.create_task(down(number, there, writer))]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for end in ends:
                end.transport.abort()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}", connections
    await asyncio.wait(serving)
    await asyncio.sleep(0)  # what was aborted closes in the loop's next turn


async def pump(_, reader, writer):
    while content := await reader.read(4096):
        writer.write(content)


def cut_once(port, word):
    """A way to the broker that ends the connection of who says `word`, the first time."""
    said = asyncio.Event()

    async def up(_, reader, writer):
        while content := await reader.read(4096):
            if word in content and not said.is_set():
                said.set()
                return
            writer.write(content)

    return relay(port, up, pump)


async def test_a_device_that_was_being_welcomed_when_the_connection_ended_joins_on_the_next_one(make_agent, arm, mosquitto):
    async with cut_once(mosquitto.port, b"arm/up/observation") as (broker, _), make_agent(broker) as environment:
        await change(environment, Linked)
        await arm.status()
        assert not (await change(environment, Linked)).connected
        assert (await change(environment, Joined)).device.id == "arm"


def withholding(port, word):
    """A way to the broker; the second connection gets no answer but the first one until it has said `word`."""
    said = asyncio.Event()

    async def up(number, reader, writer):
        while content := await reader.read(4096):
            writer.write(content)
            if number == 2 and word in content:
                said.set()

    async def down(number, reader, writer):
        if number == 2:
            writer.write(await reader.readexactly(4))
            await said.wait()
        await pump(number, reader, writer)

    return relay(port, up, down)


async def test_many_devices_are_heard_again_after_one_round_trip_and_not_after_one_for_each(make_agent, arm, mosquitto, until):
    settings = {"observation_timeout": 20.0}
    async with (
        withholding(mosquitto.port, b"leg/up/observation") as (broker, connections),
        make_agent(broker, mqtt=settings) as environment,
    ):
        await change(environment, Linked)
        await arm.status()
        await change(environment, Joined)
        leg = json.dumps({"status": "ready", "session": "l1", "agent": "cartpole"})
        await arm.client.publish("agentd/v1/devices/leg/up/status", leg, qos=1)
        await change(environment, Joined)
        connections[0].transport.abort()
        assert not (await change(environment, Linked)).connected
        assert (await change(environment, Linked)).connected


async def test_a_device_that_comes_back_while_others_get_their_heartbeats_is_not_taken_for_silent(environment, arm):
    publish, back = environment.publish, asyncio.get_running_loop().create_future()

    async def slowly(device, topic, payload, qos=0):
        if device == "leg" and not back.done():
            first.heard_at = -math.inf  # its earlier life has been silent for long enough
            await arm.status(session="s2")
            back.set_result((await change(environment, Joined)).device)
        return await publish(device, topic, payload, qos)

    leg = json.dumps({"status": "ready", "session": "l1", "agent": "cartpole"})
    await arm.client.publish("agentd/v1/devices/leg/up/status", leg, qos=1, retain=True)
    await change(environment, Joined)
    await arm.status()
    first = (await change(environment, Joined)).device
    environment.publish = slowly
    async with asyncio.timeout(20):
        second = await back
        arm.session = "s2"
        await arm.see("e1", 0)
        assert (await second.begun()).episode == "e1"
