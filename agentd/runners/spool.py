"""What waits for the daemon: episodes until they are acknowledged, the rest until it is sent. Bounded; what is dropped is counted."""

import asyncio
import collections

from agentd.errors import CodecError
from agentd.records import Episode, Event
from agentd.runners.messages import EPISODE_WINDOW, Counted, Finished, Happened, Log, Message, frame

MAX_EPISODES = 512
MAX_EPISODE_BYTES = 128 * 1024 * 1024
MAX_MESSAGES = 1000
MAX_LINES = 2000
CROWD = 2 * EPISODE_WINDOW
"""With more episodes than this waiting, a simulation is faster than the daemon learns from it."""


class Spool:
    """The runner's memory of what the daemon hasn't heard. A daemon that is slow or gone costs the control path nothing."""

    def __init__(self) -> None:
        self._episodes: dict[str, bytes] = {}
        self._halves: set[str] = set()
        """Those of pairs."""
        self._bytes = 0
        self._unsent: dict[str, None] = {}
        """Ids in order."""
        self._in_flight: set[str] = set()
        self._messages: collections.deque[Message] = collections.deque()
        self._lines: collections.deque[str] = collections.deque()
        self._dropped_lines = 0
        self._counts: collections.Counter[str] = collections.Counter()
        self._news = asyncio.Event()
        self._taken = asyncio.Event()

    def __len__(self) -> int:
        return len(self._episodes)

    @property
    def crowded(self) -> bool:
        """Whether the daemon is far behind."""
        return len(self._episodes) > CROWD

    def add_episode(self, episode: Episode) -> None:
        """Keep an episode until the daemon has it. The oldest make room, but evidence of pairs only where nothing else can."""
        try:
            content = frame(Finished(episode=episode))
        except CodecError:
            self.count("lost.unsendable")
            return
        while self._episodes and (len(self._episodes) >= MAX_EPISODES or self._bytes + len(content) > MAX_EPISODE_BYTES):
            self._forget(next((name for name in self._episodes if name not in self._halves), next(iter(self._episodes))))
            self.count("lost.episodes")
        self._episodes[episode.id] = content
        if episode.pair:
            self._halves.add(episode.id)
        self._bytes += len(content)
        self._unsent[episode.id] = None
        self._news.set()

    def acknowledge(self, episode: str) -> None:
        """The daemon has taken it in."""
        if episode in self._episodes:
            self._forget(episode)
            self._news.set()
            self._taken.set()

    def _forget(self, episode: str) -> None:
        self._bytes -= len(self._episodes.pop(episode))
        self._unsent.pop(episode, None)
        self._in_flight.discard(episode)
        self._halves.discard(episode)

    def tell(self, message: Message) -> None:
        """Say something when there is somebody to hear it."""
        if len(self._messages) >= MAX_MESSAGES:
            self._make_room(self._messages.popleft())
        self._messages.append(message)
        self._news.set()

    def _make_room(self, oldest: Message) -> None:
        """Drop a message. What it counts is told by a later one."""
        if isinstance(oldest, Counted):
            self._counts.update(oldest.deltas)
            return
        if isinstance(oldest, Log):
            self._dropped_lines += len(oldest.lines) + oldest.dropped
        self.count("lost.messages")

    def happened(self, event: Event) -> None:
        """Tell of an event."""
        self.tell(Happened(event=event))

    def log(self, line: str) -> None:
        """Keep a worker's line for the next report."""
        if len(self._lines) >= MAX_LINES:
            self._lines.popleft()
            self._dropped_lines += 1
        self._lines.append(line)

    def count(self, name: str, amount: float = 1) -> None:
        """Add to a counter of the next report."""
        self._counts[name] += amount  # type: ignore[assignment]  # Counter is typed for whole numbers only

    def report(self) -> None:
        """Say what has been counted and logged since the last report, unless much is waiting already."""
        if len(self._messages) > MAX_MESSAGES // 2:
            return  # counts add up and lines are bounded: nothing is lost by waiting
        if self._counts:
            self.tell(Counted(deltas={name: float(amount) for name, amount in self._counts.items()}))
            self._counts.clear()
        if self._lines:
            self.tell(Log(lines=tuple(self._lines), dropped=self._dropped_lines))
            self._lines.clear()
            self._dropped_lines = 0

    def rewind(self) -> None:
        """A new daemon listens: every episode that wasn't acknowledged is told again."""
        self._in_flight.clear()
        self._unsent = dict.fromkeys(self._episodes)
        self._news.set()

    async def next(self) -> bytes:
        """Wait for something to send, and take it."""
        while True:
            if self._messages:
                self._taken.set()
                message = self._messages.popleft()
                try:
                    return frame(message)
                except CodecError:  # the others are told all the same
                    self.count("lost.unsendable")
                    continue
            if self._unsent and len(self._in_flight) < EPISODE_WINDOW:
                episode = next(iter(self._unsent))
                del self._unsent[episode]
                self._in_flight.add(episode)
                return self._episodes[episode]
            self._news.clear()
            await self._news.wait()

    async def emptied(self) -> None:
        """Wait until the daemon has everything."""
        while self._episodes or self._messages:
            self._taken.clear()
            await self._taken.wait()
