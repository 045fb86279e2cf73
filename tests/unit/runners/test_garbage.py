"""Garbage is collected when plants have got their actions, and never by what an observation allocates."""

import asyncio
import gc
import weakref

import pytest

from agentd.runners.garbage import EPISODES, YOUNG_OBJECTS, GarbageCollector


class Ring:
    """Only the collector can free it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
async def collector():
    made = GarbageCollector()
    made.take_over()
    yield made
    gc.enable()
    gc.unfreeze()


def litter(count):
    """Something that the collector frees, and `count` objects that stay."""
    seen = weakref.ref(Ring())
    return seen, [[] for _ in range(count)]


async def test_nothing_is_collected_by_itself(collector):
    seen, _kept = litter(20 * YOUNG_OBJECTS)
    assert seen() is not None


async def test_after_an_answer_the_young_are_looked_at_but_not_before_the_plant_has_it(collector):
    seen, _kept = litter(2 * YOUNG_OBJECTS)
    collector.answered()
    assert seen() is not None
    await asyncio.sleep(0)
    assert seen() is None


async def test_little_garbage_waits(collector):
    gc.collect()
    seen, _kept = litter(10)
    collector.answered()
    await asyncio.sleep(0)
    assert seen() is not None


async def test_what_is_old_is_looked_at_after_many_episodes(collector):
    ring = Ring()
    gc.collect()
    seen = weakref.ref(ring)
    del ring
    for _ in range(EPISODES):
        collector.concluded()
    assert seen() is None
