"""The safe action: a value, or the author's function in a process of its own with the value behind it."""

import asyncio
import collections
import os
import signal

import pytest

from agentd.errors import LoadError
from agentd.records import Source, Space
from agentd.runners.brake import ComputedBrake, ConstantBrake
from agentd.runners.envelope import Envelope
from agentd.sandbox import BrakeWorker, Limits, Zygote

LIMITS = Limits(step_timeout=10, allowed_imports=("math", "time"))
HASTY = Limits(step_timeout=0.3, allowed_imports=("math",))
BRAKES = {
    "sensible": "def brake(observation):\n    return -0.5 * observation\n",
    "wild": "def brake(observation):\n    return 1000.0\n",
    "raises": "def brake(observation):\n    raise RuntimeError('no')\n",
    "hangs": "def brake(observation):\n    while observation > 0.5:\n        pass\n    return 0.25\n",
    "broken": "raise RuntimeError('not loaded')\n",
    "slow": "import time\ndef brake(observation):\n    time.sleep(0.05)\n    return -0.25\n",
    "traced": "from agentd.trace import bundle\n@bundle()\ndef brake(observation):\n    return -observation\n",
}


async def test_a_value_is_the_same_for_every_observation():
    brake = ConstantBrake(0.0)
    assert [await brake.action(seen) for seen in (1.0, None)] == [0.0, 0.0]


def source(name):
    return Source(digest=name, files={"controller.py": BRAKES[name]}, entrypoint="controller:Controller")


@pytest.fixture
async def counts():
    return collections.Counter()


@pytest.fixture
async def start():
    async with await Zygote.start(imports=LIMITS.allowed_imports, min_isolation=1) as zygote:

        async def start(source, limits=LIMITS):
            return await BrakeWorker.start(zygote, source=source, entrypoint="controller:brake", limits=limits, on_log=print)

        yield start


def computed(start, counts, limit):
    def count(name):
        counts[name] += 1

    envelope = Envelope(Space(kind="box", low=-1.0, high=1.0), rate=0.01)
    return ComputedBrake(0.0, limit=limit, envelope=envelope, start=start, count=count, happened=lambda kind, _: count(kind))


@pytest.fixture
async def brake(start, counts):
    async with computed(start, counts, limit=5) as made:
        yield made


async def test_the_function_answers_and_may_brake_as_suddenly_as_it_must(brake, counts):
    await brake.fit(source("sensible"))
    assert [await brake.action(seen) for seen in (1.0, -1.0)] == [-0.5, 0.5]
    await brake.fit(source("traced"))
    assert await brake.action(0.75) == -0.75
    assert not counts


async def test_what_is_outside_the_envelope_or_raises_is_replaced_by_the_value(brake, counts):
    await brake.fit(source("wild"))
    assert await brake.action(1.0) == 0.0
    await brake.fit(source("raises"))
    assert await brake.action(1.0) == 0.0
    assert counts == {"brake_faults.invalid": 1, "brake_faults.error": 1}


async def test_before_it_is_loaded_there_is_the_value_and_what_can_not_be_loaded_changes_nothing(brake, counts):
    assert await brake.action(1.0) == 0.0
    await brake.fit(source("sensible"))
    with pytest.raises(LoadError):
        await brake.fit(source("broken"))
    assert await brake.action(1.0) == -0.5
    assert counts == {"brake_faults.dead": 1}


async def test_while_one_function_takes_the_place_of_another_there_is_no_moment_without_one(brake, counts):
    await brake.fit(source("sensible"))
    fitting = asyncio.create_task(brake.fit(source("traced")))
    while not fitting.done():
        await brake.action(0.5)
        await asyncio.sleep(0)
    assert await brake.action(0.5) == -0.5
    assert counts["brake_faults.dead"] == 0


async def test_what_was_asked_of_the_function_before_is_still_answered_by_it(start, counts):
    asked = []

    async def start_while_asked(source):
        worker = await start(source)
        if source.digest != "slow":
            asked.append(asyncio.create_task(brake.action(0.5)))
            await asyncio.sleep(0)
        return worker

    async with computed(start_while_asked, counts, limit=5) as brake:
        await brake.fit(source("slow"))
        await brake.fit(source("sensible"))
        assert await asked[0] == -0.25
        assert await brake.action(1.0) == -0.5
    assert not counts


async def test_a_function_that_hangs_is_not_waited_for_but_killed_and_started_again(start, counts, until):
    async def hastily(source):
        return await start(source, HASTY)

    async with computed(hastily, counts, limit=0.1) as brake:
        await brake.fit(source("hangs"))
        assert await brake.action(1.0) == 0.0
        assert await brake.action(0.0) == 0.0  # nothing is queued behind what hangs
        assert counts["brake_faults.late"] == 2
        await until(lambda: counts["brake.died"] == 1)
        while (action := await brake.action(0.0)) != 0.25:
            assert action == 0.0
            await asyncio.sleep(0.02)


async def test_a_process_that_is_killed_is_started_again(brake, counts, until):
    await brake.fit(source("sensible"))
    os.kill(brake._worker.pid, signal.SIGKILL)
    await until(lambda: counts["brake.died"] == 1)
    while await brake.action(1.0) != -0.5:  # noqa: ASYNC110 - another process comes back
        await asyncio.sleep(0.02)
    assert counts["brake_faults.dead"] >= 1
