"""Many devices on one agent: one connection, one worker, a loop for each device. Each device's own log is the witness."""

import asyncio
import collections

import pytest

from agentd.device import Device
from agentd.runners.local import Counted, DevicesChanged, Finished, Lost

FOLLOW = """
    class Controller:
        def reset(self, seed):
            self.tick = 0

        def act(self, observation):
            self.tick += 1
            return [observation[0] + self.tick]
"""
LENGTH = 10


class Walker:
    """A plant that shows its own number, so that an action for another one would be seen."""

    def __init__(self, number: int, url: str, interval: float) -> None:
        self.number = number
        self.applied = []
        self.device = Device(
            url, f"walker-{number}", agent="cartpole", on_reset=self._reset, on_step=self._step, fallback=[-1.0], max_steps=LENGTH,
            step_interval=interval, action_timeout=5.0, log=self.applied.append,
        )  # fmt: skip

    def _reset(self, _):
        return [1000.0 * self.number]

    def _step(self, _):
        return [1000.0 * self.number], 1.0, False, False, {}

    def prove(self) -> None:
        """At each tick one action, of this walker and of this tick, or its own fallback."""
        episodes = collections.defaultdict(list)
        for line in self.applied:
            episodes[line.episode].append(line)
        assert episodes
        for lines in episodes.values():
            assert [line.step for line in lines] == list(range(len(lines)))
            for line in lines:
                if line.source == "action":
                    assert line.action == [1000.0 * self.number + line.step + 1]
                else:
                    assert line.action in ([-1.0], [0.0])


async def read(runner, found):
    while True:
        match await runner.next():
            case Finished(episode=episode):
                found.episodes[episode.device] += 1
                await runner.acknowledge(episode.id)
            case DevicesChanged(devices=devices):
                found.ready = {device.id for device in devices if device.status == "ready"}
            case Counted(deltas=deltas):
                found.counts.update(deltas)
            case Lost():
                return


class Found:
    def __init__(self):
        self.episodes = collections.Counter()
        self.ready = set()
        self.counts = collections.Counter()


@pytest.mark.parametrize(
    ("count", "interval"), [(20, 0.05), pytest.param(200, 0.5, marks=[pytest.mark.long, pytest.mark.timeout(600)])], ids=["20", "200"]
)
async def test_each_of_many_devices_gets_its_own_actions_also_after_their_broker_was_killed(
    count, interval, runners, make_spec, make_program, mosquitto, until
):
    environment = {
        "kind": "mqtt",
        "max_steps": LENGTH,
        "mqtt": {"deadline_ms": 2000.0, "observation_timeout": 10.0},
        "observation_space": {"low": -1e9, "high": 1e9, "shape": [1]},
        "action_space": {"low": -1e9, "high": 1e9, "shape": [1]},
        "safe_action": {"value": [0.0]},
    }
    runner = await runners.start(make_spec(environment=environment, sandbox={"step_timeout": "2s"}), broker=mosquitto.url)
    found = Found()
    reading = asyncio.create_task(read(runner, found))
    program = make_program(FOLLOW)
    await runner.load(*program)
    await runner.route(program[1].id)
    walkers = [Walker(number, mosquitto.url, interval) for number in range(1, count + 1)]
    names = {walker.device.name for walker in walkers}
    async with asyncio.TaskGroup() as group:
        for walker in walkers:
            group.create_task(walker.device.run())
        await until(lambda: found.ready == names, limit=120)
        await until(lambda: all(found.episodes[name] for name in names), limit=120)
        mosquitto.kill()
        await until(lambda: not any(walker.device.connected for walker in walkers), limit=60)
        mosquitto.start()
        await until(lambda: found.ready == names, limit=120)
        known = dict(found.episodes)
        await until(lambda: all(found.episodes[name] > known[name] + 1 for name in names), limit=120)
        for walker in walkers:
            walker.device.stop()
    for walker in walkers:
        walker.prove()
    sources = collections.Counter(line.source for walker in walkers for line in walker.applied)
    assert sources["action"] > 2 * count * LENGTH
    await runner.abandon()
    await reading
