"""Garbage collection off the control path: when plants have just got their actions, never because of what an observation allocates."""

import asyncio
import gc

YOUNG_OBJECTS = 2_000
"""How many new objects may wait. Looking at so few takes some tens of microseconds."""
EPISODES = 200
"""After so many ends of episodes everything is looked at. Reference counts free nearly all before."""


class GarbageCollector:
    """Takes over from the interpreter's own, which begins in the middle of whatever allocates too much."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._episodes = 0

    def take_over(self) -> None:
        """What is there now stays: it is never looked at again. From now on nothing is collected by itself."""
        gc.collect()
        gc.freeze()
        gc.disable()

    def answered(self) -> None:
        """A plant gets its action in this turn of the event loop: the next one is a good time for what is young."""
        if gc.get_count()[0] > YOUNG_OBJECTS:
            self._loop.call_soon(gc.collect, 1)

    def concluded(self) -> None:
        """An episode has ended: now and then a good time for everything."""
        self._episodes += 1
        if self._episodes % EPISODES == 0:
            gc.collect()
