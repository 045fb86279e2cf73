"""A robot that knows nothing of agentd's protocol, driven through a real broker: a bare MQTT client plays it."""

import asyncio
import contextlib
import json
import random

import aiomqtt
import pytest
from devices import change, joined

from agentd.clock import SystemClock
from agentd.environments import Left, make_environment
from agentd.errors import PlantLost


class Rover:
    """The robot: it says where it is and hears how to steer. `heard` has what came."""

    def __init__(self, client, name):
        self.client = client
        self.name = name
        self.heard = asyncio.Queue()

    async def say(self, x, **fields):
        await self.client.publish(f"rovers/{self.name}/odometry", json.dumps({"pose": {"x": x, "speed": 0.0}} | fields))

    async def hears(self):
        async with asyncio.timeout(10):
            return await self.heard.get()

    async def listen(self):
        async for message in self.client.messages:
            await self.heard.put(json.loads(message.payload))


@contextlib.asynccontextmanager
async def rover(mosquitto, name="r1"):
    async with aiomqtt.Client("127.0.0.1", mosquitto.port) as client:
        await client.subscribe(f"rovers/{name}/steer")
        robot = Rover(client, name)
        listening = asyncio.create_task(robot.listen())
        yield robot
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listening


@pytest.fixture
def make_mapped(mosquitto, make_spec):
    mapping = {
        "observation": {"topic": "rovers/{device}/odometry", "fields": ["pose.x", "pose.speed"]},
        "action": {"topic": "rovers/{device}/steer", "payload": {"motor": "$action.0", "stop": "$safe"}},
        "reward": "progress",
        "terminated": "crashed",
    }
    tables = {
        "kind": "mqtt",
        "mqtt": {"observation_timeout": 30.0, "deadline_ms": 200.0, "max_payload": 1000, "mapping": mapping},
        "observation_space": {"low": -10.0, "high": 10.0, "shape": [2]},
        "action_space": {"low": -1.0, "high": 1.0, "shape": [1]},
        "safe_action": {"value": [0.0]},
    }

    def make(**settings):
        spec = make_spec(environment=tables | {"mqtt": tables["mqtt"] | settings})
        return make_environment(spec, session="agent-1", broker=mosquitto.url, clock=SystemClock(), generator=random.Random(1))

    return make


@pytest.fixture
async def environment(make_mapped, until):
    async with make_mapped() as made:
        await until(lambda: made.connected)
        yield made


@pytest.fixture
async def impatient(make_mapped, until):
    """Silence for a second is enough: for those tests only that wait for it, since a busy machine is silent, too."""
    async with make_mapped(observation_timeout=1.0) as made:
        await until(lambda: made.connected)
        yield made


async def driven(environment, robot, max_steps=100):
    """A robot in an episode, which began with where it was."""
    await robot.say(0.0)
    device = await joined(environment)
    assert await robot.hears() == {"motor": 0.0, "stop": True}  # nobody drove it yet
    resetting = asyncio.create_task(device.reset("e1", None, max_steps))
    await asyncio.sleep(0)
    await robot.say(1.0)
    first = await resetting
    assert (first.tick, first.observation, first.reward) == (0, [1.0, 0.0], None)
    return device


async def test_its_words_become_observations_and_actions_its_words(environment, mosquitto):
    async with rover(mosquitto) as robot:
        device = await driven(environment, robot)
        stepping = asyncio.create_task(device.step([0.5], revision="r", safe=False))
        assert await robot.hears() == {"motor": 0.5, "stop": False}
        await robot.say(2.0, progress=1)
        transition = await stepping
        assert (transition.observation, transition.reward, transition.tick, transition.last) == ([2.0, 0.0], 1.0, 1, False)
        assert (device.id, device.seedable) == ("r1", False)


async def test_an_episode_ends_where_the_robot_says_so_and_the_next_one_begins_with_its_next_words(environment, mosquitto):
    async with rover(mosquitto) as robot:
        device = await driven(environment, robot)
        stepping = asyncio.create_task(device.step([0.5], revision="r", safe=False))
        await robot.hears()
        await robot.say(2.0, crashed=True)
        assert (await stepping).terminated
        resetting = asyncio.create_task(device.reset("e2", None, 100))
        await asyncio.sleep(0)
        await robot.say(3.0)
        assert (await resetting).observation == [3.0, 0.0]
        assert robot.heard.empty()


async def test_after_max_steps_the_next_episode_begins_with_what_ended_the_last_one(environment, mosquitto):
    async with rover(mosquitto) as robot:
        device = await driven(environment, robot, max_steps=1)
        stepping = asyncio.create_task(device.step([0.5], revision="r", safe=False))
        await robot.hears()
        await robot.say(2.0)
        assert (await stepping).truncated
        first = await device.reset("e2", None, 1)
        assert (first.observation, first.tick) == ([2.0, 0.0], 0)
        stepping = asyncio.create_task(device.step([-0.5], revision="r", safe=False))
        assert await robot.hears() == {"motor": -0.5, "stop": False}  # and nothing before: the robot never noticed
        await robot.say(3.0)
        assert (await stepping).truncated


async def test_what_nobody_drives_gets_the_safe_action(environment, mosquitto):
    async with rover(mosquitto) as robot:
        device = await driven(environment, robot)
        await device.rest([0.0])
        assert await robot.hears() == {"motor": 0.0, "stop": True}
        await robot.say(2.0)
        assert await robot.hears() == {"motor": 0.0, "stop": True}
        assert environment.counters.safe_actions["orphan"] == 2


async def test_what_lies_outside_the_space_or_can_not_be_read_gets_the_safe_action(environment, mosquitto):
    async with rover(mosquitto) as robot:
        device = await driven(environment, robot)
        stepping = asyncio.create_task(device.step([0.5], revision="r", safe=False))
        await robot.hears()
        await robot.say(99.0)
        assert await robot.hears() == {"motor": 0.0, "stop": True}
        await robot.client.publish("rovers/r1/odometry", b"not JSON")
        assert await robot.hears() == {"motor": 0.0, "stop": True}
        await robot.say(2.0)
        assert (await stepping).observation == [2.0, 0.0]
        assert (environment.counters.dropped["out_of_space"], environment.counters.dropped["malformed"]) == (1, 1)


async def test_a_number_beyond_all_bounds_costs_the_connection_nothing(environment, mosquitto):
    async with rover(mosquitto) as robot:
        device = await driven(environment, robot)
        await robot.say(1.0, progress=10**400)
        await robot.say(10**400)
        await robot.say(2.0)
        assert (await device.step([0.5], revision="r", safe=False)).observation == [2.0, 0.0]
        assert (environment.counters.dropped["malformed"], environment.counters.dropped["out_of_space"]) == (1, 1)


@pytest.mark.parametrize("name", ["", "x" * 65_518], ids=["none", "one that leaves no room"])
async def test_a_robot_under_a_name_that_is_none_is_not_driven(environment, mosquitto, until, name):
    async with rover(mosquitto) as robot:
        await Rover(robot.client, name).say(1.0)
        await until(lambda: environment.counters.dropped["bad_name"])
        assert (await driven(environment, robot)).id == "r1"


async def test_what_the_broker_kept_is_no_observation(make_mapped, mosquitto, until):
    async with rover(mosquitto) as robot:
        await robot.client.publish("rovers/r1/odometry", json.dumps({"pose": {"x": 5.0, "speed": 0.0}}), qos=1, retain=True)
        async with make_mapped() as environment:
            await until(lambda: environment.counters.dropped["retained"])
            await robot.say(1.0)
            assert (await joined(environment)).id == "r1"
            assert environment.counters.messages["in"] == 2


async def test_a_robot_that_falls_silent_is_lost_and_joins_again_with_its_next_words(impatient, mosquitto):
    async with rover(mosquitto) as robot:
        device = await driven(impatient, robot)
        with pytest.raises(PlantLost, match="sent no observation"):
            await device.step([0.5], revision="r", safe=False)
        await robot.say(1.5)
        assert await robot.hears() == {"motor": 0.5, "stop": False}
        assert await robot.hears() == {"motor": 0.0, "stop": True}, "nobody drives it any more"
        assert await change(impatient, Left) == Left("r1", "silent")
        with pytest.raises(PlantLost):
            await device.reset("e2", None, 10)
        await robot.say(1.0)
        assert (await joined(impatient)).id == "r1"


async def test_where_episodes_are_the_robots_own_they_begin_after_their_ends(make_mapped, mosquitto, until):
    async with make_mapped(begin="device") as environment, rover(mosquitto) as robot:
        await until(lambda: environment.connected)
        await robot.say(0.0)
        device = await joined(environment)
        begun = await device.begun()
        assert (begun.first.observation, begun.first.tick) == ([0.0, 0.0], 0)
        stepping = asyncio.create_task(device.step([0.5], revision="r", safe=False))
        assert (await robot.hears())["motor"] == 0.5
        await robot.say(1.0, crashed=True)
        assert (await stepping).terminated
        waiting = asyncio.create_task(device.begun())
        await asyncio.sleep(0)
        await robot.say(2.0)
        following = await waiting
        assert following.episode != begun.episode
        assert following.first.observation == [2.0, 0.0]


async def test_an_episode_does_not_begin_with_what_can_not_be_used(environment, mosquitto):
    async with rover(mosquitto) as robot:
        await robot.say(0.0)
        device = await joined(environment)
        await robot.hears()
        resetting = asyncio.create_task(device.reset("e1", None, 10))
        await asyncio.sleep(0)
        await robot.say(99.0)
        assert await robot.hears() == {"motor": 0.0, "stop": True}
        await robot.say(3.0)
        assert (await resetting).observation == [3.0, 0.0]


async def test_a_reset_of_a_silent_robot_does_not_hang(impatient, mosquitto):
    async with rover(mosquitto) as robot:
        await robot.say(0.0)
        device = await joined(impatient)
        await robot.hears()
        with pytest.raises(PlantLost):
            await device.reset("e1", None, 10)


async def test_of_a_flood_the_newest_words_count_and_no_reward_is_lost(environment, mosquitto, until):
    async with rover(mosquitto) as robot:
        device = await driven(environment, robot)
        known = environment.counters.messages["in"]
        for number in range(5):
            await robot.say(float(number), progress=1)
        await until(lambda: environment.counters.messages["in"] == known + 5)
        transition = await device.step([0.5], revision="r", safe=False)
        assert (transition.observation, transition.reward, transition.fallback) == ([4.0, 0.0], 5.0, True)


async def test_each_robot_hears_its_own_actions(environment, mosquitto):
    async with rover(mosquitto, "r1") as one, rover(mosquitto, "r2") as two:
        devices = {"r1": await driven(environment, one), "r2": await driven(environment, two)}
        steps = [asyncio.create_task(devices[name].step([value], revision="r", safe=False)) for name, value in (("r1", 0.1), ("r2", 0.2))]
        assert (await one.hears())["motor"] == 0.1
        assert (await two.hears())["motor"] == 0.2
        for task in steps:
            task.cancel()
