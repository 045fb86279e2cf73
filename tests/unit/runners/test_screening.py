"""Screening in time: a replayed policy that is slower than its plant's deadline, and one that a busy machine held up. Real workers."""

import asyncio
import contextlib
import functools
import os
import sys
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio
from episodes import make_episode

from agentd.clock import SystemClock
from agentd.records import Episode, Source, Space, Step, Value, make_revision
from agentd.runners.envelope import Envelope
from agentd.runners.messages import ScreenReport
from agentd.runners.replay import screen
from agentd.sandbox import Limits, PolicyWorker, Zygote

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEADLINE = 0.2
PROGRAM = """
import time
RUNS = []

class Policy:
    def reset(self, seed):
        self.tick = 0
        RUNS.append(seed)

    def act(self, observation):
        self.tick += 1
        if {slow}:
            {delay}
        return 1
"""


ECHO = """
class Policy:
    def act(self, observation):
        return observation
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def zygote() -> AsyncIterator[Zygote]:
    async with await Zygote.start(imports=(), min_isolation=1) as started:
        yield started


def recorded(name: str, action: int = 1) -> Episode:
    steps = tuple(Step(tick, 0, action) for tick in range(8))
    return make_episode(id=name, seed=1, steps=steps)


async def screened(
    zygote: Zygote,
    slow: str,
    *,
    delay: str = "time.sleep(0.25)",
    deadline: float | None = DEADLINE,
    allowed: int = 1,
    cpu: int | None = None,
) -> ScreenReport:
    source = Source(digest="d", files={"controller.py": PROGRAM.format(slow=slow, delay=delay)}, entrypoint="controller:Policy")
    limits = Limits(step_timeout=20.0, load_timeout=20.0, allowed_imports=("time",))
    starting = PolicyWorker.start(zygote, source=source, revision=make_revision("a", "d", {}), limits=limits, on_log=print)
    async with await starting as worker:
        if cpu is not None:
            os.sched_setaffinity(worker.pid, {cpu})
        envelope = Envelope(Space(kind="discrete", n=2))
        episodes = (recorded("first"), recorded("second", action=0))
        return await screen(worker, envelope, episodes, SystemClock(), deadline=deadline, allowed_misses=allowed)


async def test_more_late_answers_in_an_episode_than_are_allowed_are_too_slow(zygote: Zygote) -> None:
    report = await screened(zygote, "self.tick > 6")
    assert report.late == (
        "more answers than guardrails.deadline_misses_per_episode = 1 took longer than the deadline of 200 ms, "
        "each time that episode first was replayed"
    )
    assert report.error == ""


async def test_as_many_late_answers_as_are_allowed_pass(zygote: Zygote) -> None:
    report = await screened(zygote, "self.tick > 7")
    assert (report.late, report.ticks, report.differing) == ("", 16, 8)
    assert report.max_latency > DEADLINE


async def test_an_episode_that_was_slow_once_counts_as_it_went_the_second_time(zygote: Zygote) -> None:
    report = await screened(zygote, "len(RUNS) == 2 and self.tick == 5", allowed=0)  # the third run is the second one's episode again
    assert (report.late, report.ticks, report.differing) == ("", 16, 8)
    assert report.changed == {0: 1, 1: 1, 2: 1}


@contextlib.asynccontextmanager
async def crowded_cpu() -> AsyncIterator[int]:
    """A processor that three want: a hog, the policy, and this process, which stands for a runner with plants to serve."""

    def serve_plants() -> None:
        nonlocal serving
        serving = asyncio.get_running_loop().call_soon(serve_plants)

    serving: asyncio.Handle | None = None
    serve_plants()
    everywhere = os.sched_getaffinity(0)
    cpu = max(everywhere)
    os.sched_setaffinity(0, {cpu})
    try:
        hog = await asyncio.create_subprocess_exec(sys.executable, "-c", "while True: pass")
        yield cpu
    finally:
        os.sched_setaffinity(0, everywhere)
        hog.kill()
        await hog.wait()
        if serving is not None:
            serving.cancel()


COMPUTES = """began = time.process_time()
            while time.process_time() < began + 0.06: pass"""


async def test_a_policy_that_computes_for_too_long_is_too_slow(zygote: Zygote) -> None:
    report = await screened(zygote, "self.tick > 5", delay=COMPUTES, deadline=0.05)
    assert "took longer than the deadline of 50 ms" in report.late


async def test_so_it_is_where_the_runner_waits_for_a_processor_meanwhile(zygote: Zygote) -> None:
    async with crowded_cpu() as cpu:
        report = await screened(zygote, "self.tick > 5", delay=COMPUTES, deadline=0.05, cpu=cpu)
    assert "took longer than the deadline of 50 ms" in report.late


async def test_an_agent_without_a_deadline_takes_its_time(zygote: Zygote) -> None:
    report = await screened(zygote, "self.tick == 1", deadline=None, allowed=0)
    assert (report.late, report.ticks) == ("", 16)


PAIRS: list[tuple[Value, Value, bool]] = [
    (1, 1.0 + 1e-12, True),
    (1.0 + 1e-12, 1, True),
    ({"x": np.array([1, 2])}, {"x": np.array([1, 2])}, True),
    ({"x": np.array([1, 2])}, {"x": np.array([1, 3])}, False),
    ({"x": np.array([1, 2])}, {"y": np.array([1, 2])}, False),
    ([{"gain": 1.0}, "on"], [{"gain": 1.0 + 1e-13}, "on"], True),
    ([{"gain": 1.0}, "on"], [{"gain": 1.1}, "on"], False),
    ([1.0, 2.0], np.array([1.0, 2.0]), True),
    ([1.0, 2.0], [1.0], False),
    (np.array([1.0, 1.0]), np.array([1.0]), False),
    (["x" * 900_000] + [""] * 16_000, np.array([1.0, 2.0]), False),  # as an array of numpy's, 54 GiB
    (functools.reduce(lambda inner, _: [inner], range(60), 1), functools.reduce(lambda inner, _: [inner], range(60), 2), False),
]


async def test_actions_of_any_form_are_compared() -> None:
    source = Source(digest="e", files={"controller.py": ECHO}, entrypoint="controller:Policy")
    revision = make_revision("a", "e", {})
    async with (
        await Zygote.start(imports=("numpy",), min_isolation=1) as zygote,
        await PolicyWorker.start(zygote, source=source, revision=revision, limits=Limits(), on_log=print) as worker,
    ):
        for one, other, same in PAIRS:
            episode = make_episode(id="e", steps=(Step(0, one, other),))
            report = await screen(worker, Envelope(Space(kind="any")), (episode,), SystemClock())
            assert (report.ticks, report.differing) == (1, int(not same)), (one, other, report)
