"""Events on their way to whoever watches: server-sent events, metrics, the hosting of an agent.

A watcher that is slow loses its oldest events, counted; it never slows the publisher. What must not be missed is read from the store, where
every event has its place in the log (`Event.seq`): after a gap, ask for the events behind the last one seen.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from agentd.records import Event


class Subscription(AsyncIterator[Event]):
    """The events published since it was made. Iterate over it; it ends when it or the bus is closed, after what had come before."""

    def __init__(self, bus: "EventBus", capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a subscription holds at least one event, not {capacity}")
        self._bus = bus
        self._events: deque[Event] = deque(maxlen=capacity)
        self._changed = asyncio.Event()
        self._closed = False
        self.dropped = 0
        """Events that this subscriber was too slow for."""

    def __len__(self) -> int:
        return len(self._events)

    def _put(self, event: Event) -> None:
        self.dropped += len(self._events) == self._events.maxlen
        self._events.append(event)
        self._changed.set()

    def _close(self) -> None:
        self._closed = True
        self._changed.set()

    async def __anext__(self) -> Event:
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._events.popleft()

    async def aclose(self) -> None:
        """Receive nothing more. Closing twice is fine."""
        self._bus._forget(self)  # noqa: SLF001 - the two are one thing in two classes
        self._close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self.aclose()


class EventBus:
    """Passes each published event to every subscriber. It belongs to one event loop and is not thread-safe."""

    def __init__(self) -> None:
        self._subscriptions: list[Subscription] = []
        self._dropped = 0
        self._closed = False

    @property
    def dropped(self) -> int:
        """Events that subscribers, past ones too, were too slow for."""
        return self._dropped + sum(subscription.dropped for subscription in self._subscriptions)

    @property
    def subscribers(self) -> int:
        """How many are subscribed now."""
        return len(self._subscriptions)

    def publish(self, event: Event) -> None:
        """Pass `event` on; returns at once. After `aclose` there is nobody to pass it to."""
        for subscription in self._subscriptions:
            subscription._put(event)  # noqa: SLF001 - the two are one thing in two classes

    def subscribe(self, capacity: int = 256) -> Subscription:
        """A subscription that holds at most `capacity` events that were not read yet. Close it, or use it with `async with`."""
        subscription = Subscription(self, capacity)
        if self._closed:
            subscription._close()  # noqa: SLF001 - the two are one thing in two classes
        else:
            self._subscriptions.append(subscription)
        return subscription

    def _forget(self, subscription: Subscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
            self._dropped += subscription.dropped

    async def aclose(self) -> None:
        """End every subscription, after what it holds."""
        self._closed = True
        for subscription in tuple(self._subscriptions):
            await subscription.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self.aclose()
