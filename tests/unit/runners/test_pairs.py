"""Pairs and their lease."""

import pytest

from agentd.records import PairPlan, Role
from agentd.runners.pairs import MAX_QUEUED, Pairs
from agentd.testing.clock import FixedClock


@pytest.fixture
def clock():
    return FixedClock(100.0)


@pytest.fixture
def pairs(clock):
    return Pairs(clock)


def plan(number, device="d"):
    return PairPlan(
        id=f"p{number}", release="r", agent="a", device=device, order=(Role.STABLE, Role.CANDIDATE), reference="s", candidate="c"
    )


def test_without_a_lease_nothing_is_taken(pairs):
    pairs.add(plan(1))
    assert pairs.take("d") is None
    assert not pairs.waiting("d")


def test_plans_are_taken_in_the_order_in_which_they_came(pairs):
    pairs.renew(10)
    pairs.add(plan(1))
    pairs.add(plan(2))
    assert pairs.take("d") == plan(1)
    assert pairs.take("d") == plan(2)
    assert pairs.take("d") is None


def test_a_plan_is_queued_once(pairs):
    pairs.renew(10)
    pairs.add(plan(1))
    pairs.add(plan(1))
    pairs.take("d")
    pairs.add(plan(1))
    assert pairs.take("d") is None


def test_a_plan_holds_while_it_is_current_and_leased(pairs, clock):
    pairs.renew(10)
    pairs.add(plan(1))
    pairs.take("d")
    assert pairs.holds(plan(1))
    clock.now += 10
    assert not pairs.holds(plan(1))
    assert pairs.pending
    pairs.renew(10)
    pairs.done(plan(1))
    assert not pairs.holds(plan(1))
    assert not pairs.pending


def test_what_is_dropped_is_returned_with_the_one_under_way(pairs):
    pairs.renew(10)
    for number, device in enumerate(("d", "d", "e")):
        pairs.add(plan(number, device))
    pairs.take("d")
    assert [one.id for one in pairs.drop("d")] == ["p0", "p1"]
    assert [one.id for one in pairs.drop()] == ["p2"]
    assert pairs.drop() == ()


def test_the_queue_is_bounded(pairs):
    for number in range(MAX_QUEUED + 5):
        pairs.add(plan(number))
    assert len(pairs.drop()) == MAX_QUEUED
