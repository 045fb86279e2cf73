"""A fleet on a real broker: the ramp, two devices that fail, one that joins. The devices' own logs are the witnesses."""

import pytest
from heaters import AGENT, conduct, fleet_of


async def until_step(hosted, release, step):
    async def there():
        found = await hosted.client.release(release)
        assert found["ended_at"] is None or step >= 3, found["reason"]
        return found if found["step"] >= step and found["fleet"] else None

    return await hosted.until(there, 60)


@pytest.mark.long
@pytest.mark.parametrize("count", [8, pytest.param(20, marks=pytest.mark.timeout(300))])
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


@pytest.mark.long
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
        assert all(heater.log[-1].source == "action" for heater in heaters.values())
        assert await hosted.stop() == 0
