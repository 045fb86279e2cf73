"""Requests as an environment: a bounded queue, and an answer or a reason for each."""

import asyncio
import random

import pytest

from agentd.environment_spec import EnvironmentSection
from agentd.environments.http import HttpEnvironment
from agentd.errors import CodecError, Overloaded, Unanswered
from agentd.records import Space
from agentd.testing.clock import FixedClock

ANYTHING = Space()


def environment(clock=None, *, observations=ANYTHING, **section):
    made = EnvironmentSection.model_validate({"kind": "http", "http": {"concurrency": 1, "queue": 2, "queue_timeout": 0.05}} | section)
    return HttpEnvironment(made, (observations, ANYTHING), step_timeout=5.0, clock=clock or FixedClock(1000.0), generator=random.Random(1))


async def seat_of(env):
    return (await anext(env.changes())).device.seats[0]


async def test_a_request_is_an_episode_of_one_step_with_its_client_and_an_id_of_its_own():
    env = environment()
    seat = await seat_of(env)
    asked = asyncio.create_task(env.ask({"x": 1}, client="alice", instruction="briefly"))
    begun = await seat.begun()
    assert (begun.first.observation, begun.client, begun.instruction, begun.waits) == ({"x": 1}, "alice", "briefly", True)
    after = await seat.step("hello", revision="r", safe=False)
    assert (after.terminated, after.observation) == (True, None)
    answered = await asked
    assert (answered.episode, answered.action, answered.revision, answered.safe) == (begun.episode, "hello", "r", False)


async def test_without_a_safe_action_a_failed_policy_is_an_error_and_a_late_one_says_so():
    clock = FixedClock(1000.0)
    env = environment(clock)
    seat = await seat_of(env)
    for seconds, late in ((0.1, False), (5.0, True)):
        asked = asyncio.create_task(env.ask(1))
        begun = await seat.begun()
        clock.now += seconds
        await seat.step(None, revision="", safe=True)
        with pytest.raises(Unanswered) as caught:
            await asked
        assert (caught.value.late, caught.value.episode) == (late, begun.episode)


async def test_with_a_safe_action_every_request_is_answered_by_it_also_where_nobody_was_asked():
    env = environment(safe_action={"value": "later"})
    seat = await seat_of(env)
    asked = asyncio.create_task(env.ask(1))
    await seat.begun()
    await seat.rest(env.safe_action)
    answered = await asked
    assert (answered.action, answered.safe, answered.episode) == ("later", True, "")


async def test_the_queue_is_bounded_and_nobody_waits_in_it_for_ever():
    env = environment()
    waiting = [asyncio.create_task(env.ask(number)) for number in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as refused:
        await env.ask(3)
    assert refused.value.full
    for task in waiting:
        with pytest.raises(Overloaded) as waited:
            await task
        assert not waited.value.full
    later = asyncio.create_task(env.ask("after them"))
    assert (await (await seat_of(env)).begun()).first.observation == "after them"
    later.cancel()


async def test_an_observation_outside_its_space_is_refused_before_anybody_is_asked():
    with pytest.raises(CodecError, match="observation"):
        await environment(observations=Space(kind="discrete", n=3)).ask(7)


async def test_at_the_end_everybody_who_waits_is_told():
    env = environment()
    waiting = asyncio.create_task(env.ask(1))
    await asyncio.sleep(0)
    await env.announce("stopped")
    with pytest.raises(Unanswered, match="stopping"):
        await waiting
    with pytest.raises(Unanswered, match="stopping"):
        await env.ask(2)
