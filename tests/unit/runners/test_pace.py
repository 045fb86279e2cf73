"""Ticks at a fixed rate: absolute, counted when they are stale or missed, safe beyond the dead man's limit."""

import asyncio
import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.environments import Begun, Transition
from agentd.errors import PlantLost
from agentd.runners.pace import PacedDevice, Pacer
from agentd.testing.clock import FixedClock


@given(st.lists(st.floats(0.0, 3.0), min_size=1, max_size=50))
def test_ticks_keep_to_their_grid_however_long_each_takes(delays):
    pacer, now = Pacer(0.1, start=50.0), 50.0
    for delay in delays:
        due = pacer.due
        now = max(now + delay, due)
        missed = pacer.advance(now)
        assert pacer.due > now - 1e-9
        assert pacer.due - now <= 0.1 + 1e-9
        assert pacer.due == pytest.approx(due + (1 + missed) * 0.1)
        assert round((pacer.due - 50.0) / 0.1, 6) == pacer.tick + 1


def test_nothing_is_missed_by_who_is_in_time():
    pacer = Pacer(0.02, start=0.0)
    assert [pacer.advance(pacer.due) for _ in range(500)] == [0] * 500
    assert pacer.due == pytest.approx(501 * 0.02)


class Robot:
    """Streams what it is told to, and notes what it is sent."""

    id, seedable, labels = "robot", False, {}

    def __init__(self, clock):
        self.clock = clock
        self.sent = []
        self.waiting = collections.deque()

    async def reset(self, episode, seed, max_steps, purpose=None):
        return Transition(observation=0.0, received_at=self.clock.now)

    async def begun(self):
        return Begun("own", Transition(observation=0.5, received_at=self.clock.now))

    def send(self, action, *, revision, safe):
        self.sent.append((action, safe))
        return True

    def newest(self):
        return self.waiting.popleft() if self.waiting else None

    def give_up(self, timeout):
        return PlantLost(f"nothing in {timeout} s", reason="silent")

    async def rest(self, action):
        pass

    async def aclose(self):
        pass

    async def step(self, action, *, revision, safe):
        raise AssertionError("nobody waits for it")

    def see(self, observation, tick):
        self.waiting.append(Transition(observation=observation, tick=tick, received_at=self.clock.now))


@pytest.fixture
def clock(monkeypatch):
    clock = FixedClock(100.0)

    async def sleep(seconds):
        clock.now += seconds

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return clock


@pytest.fixture
def counts():
    return collections.Counter()


@pytest.fixture
def robot(clock):
    return Robot(clock)


@pytest.fixture
def paced(robot, clock, counts):
    def count(name, amount):
        counts[name] += amount

    return PacedDevice(robot, rate=50.0, dead_man=0.1, timeout=1.0, clock=clock, count=count)


async def test_each_step_sends_one_action_and_ends_at_the_next_tick_with_the_newest_observation(paced, robot, clock, counts):
    await paced.reset("e", None, 10)
    for tick in range(1, 4):
        robot.see(float(tick), tick * 7)
        transition = await paced.step(tick, revision="r", safe=False)
        assert (transition.observation, transition.tick) == (float(tick), tick)
        assert clock.now == pytest.approx(100.0 + tick * 0.02)
        assert transition.received_at == clock.now
    assert robot.sent == [(1, False), (2, False), (3, False)]
    assert not counts


async def test_a_tick_without_a_fresh_observation_is_counted_and_beyond_the_limit_it_is_stale(paced, robot, counts):
    await paced.reset("e", None, 10)
    stale = [(await paced.step(0, revision="r", safe=False)).stale for _ in range(8)]
    assert stale == [False] * 5 + [True] * 3  # 0.1 s are five ticks
    assert counts == {"stale_ticks": 8}
    robot.see(1.0, 1)
    assert not (await paced.step(0, revision="r", safe=False)).stale


async def test_a_plant_that_stays_silent_is_lost(paced, counts):
    await paced.reset("e", None, 10)
    for _ in range(50):
        await paced.step(0, revision="r", safe=False)
    with pytest.raises(PlantLost) as lost:
        await paced.step(0, revision="r", safe=False)
    assert lost.value.reason == "silent"
    assert counts["stale_ticks"] == 51


async def test_ticks_that_the_machine_was_too_slow_for_are_skipped_and_counted(paced, robot, clock, counts):
    await paced.reset("e", None, 10)
    clock.now += 0.07
    robot.see(1.0, 1)
    assert (await paced.step(0, revision="r", safe=False)).tick == 3
    assert counts == {"missed_ticks": 2}
    robot.see(2.0, 2)
    assert (await paced.step(0, revision="r", safe=False)).tick == 4
    assert clock.now == pytest.approx(100.08)


async def test_an_episode_that_the_device_begins_is_paced_from_its_first_observation(paced, clock):
    begun = await paced.begun()
    assert (begun.episode, begun.first.tick, begun.first.received_at) == ("own", 0, clock.now)
