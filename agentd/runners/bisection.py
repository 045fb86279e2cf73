"""The search for the revision that introduced a failure, along a line of revisions of which each was made from the one before."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from agentd.records import Revision, Value
from agentd.runners.rerun import Rerun
from agentd.trace.replay import difference

FEW = 8
"""So many revisions are all replayed: it costs less than to ask whether a search would be right."""

RAISES, INVALID, ACTS = "raises", "invalid", "acts"


@dataclass(frozen=True, slots=True)
class Tested:
    """What the replay of a revision showed. `fails` None: it could not be told."""

    revision: str
    fails: bool | None
    words: str


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of each replay.

    RAISES: does it raise, or its process end? INVALID: is an action outside of the envelope? ACTS: does it act, in more ticks, like
    `failing` than like `good`? Those are the actions of the two ends, by tick.
    """

    kind: str
    failing: Mapping[int, Value] = field(default_factory=dict)
    good: Mapping[int, Value] = field(default_factory=dict)

    def answer(self, revision: str, replay: Rerun | str) -> Tested:
        """Whether `revision` fails; `replay` is a text where there was none, that says why."""
        if isinstance(replay, str):
            return Tested(revision, None, replay)
        if replay.unrecorded:
            return Tested(revision, None, replay.unrecorded)
        if self.kind == RAISES:
            return Tested(revision, bool(replay.fault), fault_of(replay) or "raises nothing")
        if self.kind == ACTS:
            return self._acts(revision, replay)
        if replay.fault and not replay.invalid:
            return Tested(revision, None, fault_of(replay))
        return Tested(revision, bool(replay.invalid), invalid_of(replay) or "all actions are inside of the limits")

    def _acts(self, revision: str, replay: Rerun) -> Tested:
        like_failing = like_good = 0
        ticks = self.failing.keys() & self.good.keys() & replay.actions.keys()
        for tick in ticks:
            from_failing = difference(self.failing[tick], replay.actions[tick])
            from_good = difference(self.good[tick], replay.actions[tick])
            like_failing += from_failing < from_good
            like_good += from_good < from_failing
        if not ticks:
            return Tested(revision, None, fault_of(replay) or "no tick could be compared")
        words = f"of {len(ticks)} ticks {like_failing} like the failing one, {like_good} like the good one"
        return Tested(revision, like_failing > like_good, words)


def fault_of(replay: Rerun) -> str:
    """What it raised, and when; empty if nothing."""
    where = "before the first tick" if replay.failed_at is None else f"at tick {replay.failed_at}"
    return f"{where}: {replay.fault}" if replay.fault else ""


def invalid_of(replay: Rerun) -> str:
    """Its first action outside of the envelope; empty if there was none."""
    return f"at tick {replay.invalid_at}: the action {replay.invalid}" if replay.invalid else ""


@dataclass(frozen=True, slots=True)
class Ends:
    """Where it turns: `good` doesn't fail (None: all that are known do), `failing` does, what is between them could not be told."""

    good: int | None
    failing: int
    how: str


@dataclass(slots=True)
class Bisection:
    """The answers along `line` (oldest first, the last one fails), each asked for once. `replay` raises for what ends the whole search."""

    line: Sequence[Revision]
    question: Question
    replay: Callable[[Revision], Awaitable[Rerun | str]]
    done: dict[int, Tested] = field(default_factory=dict)

    @property
    def tested(self) -> tuple[Tested, ...]:
        """The answers so far, oldest revision first."""
        return tuple(self.done[index] for index in sorted(self.done))

    async def fails(self, index: int) -> bool | None:
        """Whether the revision at `index` fails."""
        if index not in self.done:
            revision = self.line[index]
            self.done[index] = self.question.answer(revision.id, await self.replay(revision))
        return self.done[index].fails

    async def search(self) -> Ends:
        """Where it turns: by halving a long line in which failing, once there, stays plausibly; else one by one from the failing end."""
        if len(self.line) <= FEW:
            return await self._one_by_one("one by one")
        why_not = taken_back(self.line)
        if why_not:
            return await self._one_by_one(f"one by one: {why_not}")
        return await self._by_halves() or await self._one_by_one("one by one: some revisions could not be replayed, or all fail")

    async def _by_halves(self) -> Ends | None:
        low, high = 0, len(self.line) - 1
        if await self.fails(low) is not False:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            fails = await self.fails(middle)
            if fails is None:
                return None
            low, high = (low, middle) if fails else (middle, high)
        return Ends(low, high, "by halves: no revision takes back what an earlier one changed, so that failing, once there, stays")

    async def _one_by_one(self, how: str) -> Ends:
        failing = len(self.line) - 1
        for index in range(failing, -1, -1):
            fails = await self.fails(index)
            if fails is False:
                return Ends(index, failing, how)
            if fails:
                failing = index
        return Ends(None, failing, how)


def taken_back(line: Sequence[Revision]) -> str:
    """Why failing may come and go along the line: a value returns to what it was. Empty where none does."""
    paths = sorted({path for revision in line for path in revision.values})
    histories = [("the source", [revision.source for revision in line])]
    histories += [(path, [repr(revision.values.get(path)) for revision in line]) for path in paths]
    for name, history in histories:
        changes = [value for index, value in enumerate(history) if index == 0 or value != history[index - 1]]
        if len(changes) != len(set(changes)):
            return f"{name} was changed and changed back, so that failing may come and go"
    return ""
