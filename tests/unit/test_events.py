"""The event bus: everybody gets every event, the slow lose their oldest, counted, and nobody holds the publisher up."""

import asyncio

import pytest

from agentd.events import EventBus
from agentd.records import Event


def event(number):
    return Event(kind=f"k{number}", at=float(number), seq=number)


async def test_every_subscriber_gets_every_event_in_order():
    async with EventBus() as bus:
        first, second = bus.subscribe(), bus.subscribe()
        for number in range(5):
            bus.publish(event(number))
        assert [await anext(first) for _ in range(5)] == [event(number) for number in range(5)]
        assert [await anext(second) for _ in range(5)] == [event(number) for number in range(5)]


async def test_a_subscriber_gets_what_is_published_after_it_came():
    async with EventBus() as bus:
        bus.publish(event(1))
        subscription = bus.subscribe()
        bus.publish(event(2))
        assert await anext(subscription) == event(2)
        assert len(subscription) == 0


async def test_a_waiting_subscriber_is_woken():
    async with EventBus() as bus, bus.subscribe() as subscription:
        waiting = asyncio.create_task(anext(subscription))
        await asyncio.sleep(0)
        bus.publish(event(1))
        assert await waiting == event(1)


async def test_a_slow_subscriber_loses_its_oldest_events_and_only_it():
    async with EventBus() as bus:
        slow, quick = bus.subscribe(capacity=2), bus.subscribe(capacity=10)
        for number in range(5):
            bus.publish(event(number))
        assert (slow.dropped, quick.dropped, bus.dropped) == (3, 0, 3)
        assert [await anext(slow), await anext(slow)] == [event(3), event(4)]
        await slow.aclose()
        assert bus.dropped == 3
        assert bus.subscribers == 1


async def test_closing_the_bus_ends_every_loop_after_what_had_come():
    bus = EventBus()
    subscription = bus.subscribe()
    bus.publish(event(1))

    async def collect():
        return [one async for one in subscription]

    collecting = asyncio.create_task(collect())
    await asyncio.sleep(0)
    bus.publish(event(2))
    await bus.aclose()
    await bus.aclose()
    assert await collecting == [event(1), event(2)]
    bus.publish(event(3))
    assert [one async for one in bus.subscribe()] == []


async def test_a_closed_subscription_receives_nothing_more():
    async with EventBus() as bus:
        async with bus.subscribe() as subscription:
            bus.publish(event(1))
        bus.publish(event(2))
        assert [one async for one in subscription] == [event(1)]
        assert bus.subscribers == 0
        await subscription.aclose()


async def test_a_cancelled_wait_loses_no_event():
    async with EventBus() as bus:
        subscription = bus.subscribe()
        waiting = asyncio.create_task(anext(subscription))
        await asyncio.sleep(0)
        bus.publish(event(1))
        waiting.cancel()
        await asyncio.wait([waiting])
        assert [event(1)] == ([waiting.result()] if not waiting.cancelled() else [await anext(subscription)])


async def test_a_subscription_without_room_is_refused():
    async with EventBus() as bus:
        with pytest.raises(ValueError, match="at least one"):
            bus.subscribe(capacity=0)
