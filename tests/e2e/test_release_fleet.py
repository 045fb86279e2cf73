"""A fleet on a real broker: the ramp, two devices that fail, one that joins. The devices' own logs are the witnesses."""

import asyncio
import contextlib

import pytest

from agentd.device import Device

AGENT = """
schema = 1
[agent]
name = "heaters"
entrypoint = "controller:Heater"
mode = "release"
[environment]
kind = "mqtt"
max_steps = 3
episode_interval = 1.5 # of rest, unless there is a pair to run
[environment.mqtt]
deadline_ms = 2000
[environment.safe_action]
value = 0.0
[environment.action_space]
low = -1.0
high = 1.0
[environment.observation_space]
low = -10.0
high = 10.0
shape = [2]
[[metrics]]
name = "score"
range = [0.0, 3.0]
[optimizer]
trigger = "manual"
[release]
ramp = [0.05, 0.25, 0.5]
step_pairs = 1
stratify = ["site"]
max_pairs = 1000
prune = { after_pairs = 1000 }
[watch]
burn_in = 1000
[sandbox]
step_timeout = "10s"
"""

CONTROLLER = '''
from agentd.trace import bundle, model, node

@model
class Heater:
    def __init__(self):
        self.gain = node(0.5, trainable=True)

    def act(self, observation):
        return self.power(observation, self.gain)

    @bundle()
    def power(self, observation, gain):
        """Power by the wanted temperature; a worn heater (second number) makes any other gain than 0.5 much too hot."""
        wanted, worn = observation
        return gain * wanted + 50.0 * worn * (gain - 0.5)
'''


class Heater:
    """A device that is happiest with a power of 1; `worn` from the operator's point of view: not seen before the next observation."""

    def __init__(self, broker: str, name: str, site: str, begin_after: float | None) -> None:
        self.name = name
        self.worn = 0.0
        self.log = []
        self.device = Device(
            broker,
            name,
            agent="heaters",
            on_reset=lambda seed: [1.0, self.worn],
            on_step=lambda action: ([1.0, self.worn], 1.0 - abs(1.0 - action) / 2.0, False, False, {}),
            fallback=0.0,
            action_timeout=20.0 if begin_after is None else 2.0,
            begin_after=begin_after,
            max_steps=3,
            step_interval=0.01,
            log=self.log.append,
            labels={"site": site},
        )

    def ran(self, revision: str) -> bool:
        return any(applied.revision == revision for applied in self.log)

    def sources(self) -> set[str]:
        return {applied.source for applied in self.log}


@contextlib.asynccontextmanager
async def fleet_of(broker, count, *, begin_after=None):
    """So many heaters, a fifth of them in the cellar; and the way to add one."""
    heaters = {}
    async with asyncio.TaskGroup() as tasks:

        def add(name, site):
            heaters[name] = heater = Heater(broker, name, site, begin_after)
            tasks.create_task(heater.device.run(), name=name)

        for number in range(count):
            add(f"heater-{number}", "cellar" if number % 5 == 0 else "roof")
        yield heaters, add
        for heater in heaters.values():
            heater.device.stop()


async def conduct(hosted, count, gain, agent=AGENT):
    """A release on a fleet that is there; its id."""
    folder = hosted.agents / "heaters"
    folder.mkdir()
    (folder / "agent.toml").write_text(agent)
    (folder / "controller.py").write_text(CONTROLLER)
    await hosted.start()

    async def ready():
        devices = (await hosted.agent("heaters"))["devices"]
        return len(devices) == count and set(devices.values()) == {"ready"}

    await hosted.until(ready)
    return (await hosted.client.submit("heaters", {"gain": gain}))["id"]


async def until_step(hosted, release, step):
    async def there():
        found = await hosted.client.release(release)
        assert found["ended_at"] is None or step >= 3, found["reason"]
        return found if found["step"] >= step and found["fleet"] else None

    return await hosted.until(there, 60)


@pytest.mark.parametrize("count", [8, pytest.param(20, marks=[pytest.mark.long, pytest.mark.timeout(300)])])
async def test_a_ramp_with_two_devices_failing_and_one_joining(hosted, count):
    async with fleet_of(hosted.broker, count) as (heaters, add):
        release = await conduct(hosted, count, gain=0.51)  # better by so little that the ramp is done before the test has decided
        found = await until_step(hosted, release, 1)
        assert len(found["fleet"]) == count // 4

        # the first one fails, and goes back alone
        first = next(iter(found["fleet"]))
        heaters[first].worn = 1.0
        (withdrawal,) = await hosted.until(lambda: hosted.events("release.device_withdrawn", "heaters"))
        assert (withdrawal["data"]["device"], withdrawal["who"]) == (first, "agentd")
        assert "outside the envelope" in withdrawal["data"]["reason"]

        # another joins, and the ramp goes on without the one that failed
        add("newcomer", "roof")
        found = await until_step(hosted, release, 2)
        assert found["fleet"][first]["withdrawn"]
        known = len(heaters[first].log)
        await hosted.until(lambda: len(heaters[first].log) > known + 4)
        assert {applied.revision for applied in heaters[first].log[known + 3 :] if applied.source == "action"} == {found["reference"]}
        exposed = [device for device, exposure in found["fleet"].items() if not exposure.get("withdrawn")]
        assert count // 2 - 1 <= len(exposed) <= count // 2  # of those that are left, with the newcomer or without it
        assert sum(int(device.partition("-")[2] or 1) % 5 == 0 for device in found["fleet"]) >= 1  # the cellar has its part

        # the second one fails, and that is the end, for all of them
        second = next(device for device in exposed if heaters[device].ran(found["candidate"]))
        heaters[second].worn = 1.0
        ended = await hosted.until_ended(release)
        assert (ended["phase"], ended["stage"]) == ("rejected", "guardrail")
        assert first in ended["reason"]
        assert second in ended["reason"]
        known = {name: len(heater.log) for name, heater in heaters.items()}
        await hosted.until(lambda: all(len(heater.log) > known[name] + 4 for name, heater in heaters.items()))
        for name, heater in heaters.items():
            assert not any(applied.revision == ended["candidate"] for applied in heater.log[known[name] + 3 :]), name

        # nobody else ever ran it, and only those that failed were given the safe action
        for name, heater in heaters.items():
            assert heater.ran(ended["candidate"]) <= (name in ended["fleet"]), name
            assert ("safe" in heater.sources()) == (name in {first, second}), name
            assert "fallback" not in heater.sources()
        steps = await hosted.events("release.step", "heaters")
        numbers = [event["data"]["step"] for event in steps]
        assert numbers == sorted(numbers)
        assert {0, 1, 2} <= set(numbers)
        assert all(event["data"]["exposed"] and event["data"]["reason"] for event in steps)
        assert await hosted.stop() == 0


async def test_a_fleet_whose_devices_begin_their_episodes_by_themselves_is_decided_on_single_ones(hosted):
    agent = AGENT.replace("deadline_ms = 2000", 'deadline_ms = 2000\nbegin = "device"')
    async with fleet_of(hosted.broker, 4, begin_after=0.05) as (heaters, _):
        release = await conduct(hosted, 4, gain=1.0, agent=agent)
        ended = await hosted.until_ended(release)
        assert ended["phase"] == "promoted", ended["reason"]
        evidence = (await hosted.client.release(release))["evidence"]
        assert {one["role"] for one in evidence} == {"stable", "candidate"}
        assert {one["probability"] for one in evidence} == {0.5}
        assert ended["difference"] == pytest.approx(0.25, abs=0.15)
        episodes = await hosted.client.episodes("heaters")
        assert {episode["purpose"] for episode in episodes} == {"unsolicited"}  # nobody was told to begin
        assert {one["device"] for one in evidence} == set(ended["fleet"])
        await hosted.until(lambda: all(heater.log[-1].revision == ended["candidate"] for heater in heaters.values()))
        assert all("safe" not in heater.sources() for heater in heaters.values())
        assert await hosted.stop() == 0
