"""Feedback that comes later: windows opened, answered and closed, and what each episode then teaches, once and in its turn."""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Mapping

import msgspec

from agentd.api.ports import FeedbackReceipt
from agentd.errors import DecodingError, FeedbackRefused, RunnerError
from agentd.hosting.canary import violated
from agentd.hosting.keeper import Keeper
from agentd.hosting.releases import Releases
from agentd.hosting.watching import Watcher
from agentd.observability.metrics import Metrics
from agentd.records import Episode, Feedback, Outcome, Purpose, Role, Window, WindowState
from agentd.release import windows
from agentd.spec import feedback_window, metric_record, silent_score

MAX_OPEN = 10_000
"""Windows of one agent, beside those of its canary: the episodes of a busy hour more are not watched, whoever answered them."""
MAX_EXPECTED = 4096
ARRIVAL = 5.0
"""Seconds that feedback waits for an episode whose answer was given and whose record is on its way."""
LOOK_AGAIN = 60.0
"""Seconds after which the clock is looked at in any case: it may have been set."""


class Windows:
    """The windows of one agent, as they are committed; its clock closes them."""

    def __init__(
        self, keeper: Keeper, releases: Releases, watcher: Watcher, metrics: Metrics, on_judged: Callable[[Window, Feedback], None]
    ) -> None:
        self._keeper = keeper
        self._releases = releases
        self._watcher = watcher
        self._metrics = metrics
        self._on_judged = on_judged
        self._seconds = feedback_window(keeper.spec)
        self._silent_score = silent_score(keeper.spec)
        self._metric, *self._further = (metric_record(section) for section in keeper.spec.metrics)
        self._open = windows.Waiting()
        self._expected: OrderedDict[str, asyncio.Event] = OrderedDict()
        self._wake = asyncio.Event()
        releases.canary.count_waiting = self._count

    def _count(self, release: str) -> int:
        return self._open.count(release)

    @property
    def used(self) -> bool:
        """Whether episodes of this agent are judged later."""
        return self._seconds is not None

    @property
    def waiting(self) -> int:
        """How many episodes may still be judged."""
        return sum(window.state is WindowState.OPEN for window in self._open)

    @property
    def next_close(self) -> float | None:
        """When the oldest window that nobody has answered in closes."""
        return next((window.closes_at for window in self._open if window.state is WindowState.OPEN), None)

    async def restore(self) -> None:
        """Begin from what is committed, whatever an earlier life had in memory."""
        if not self.used:
            return
        self._open = windows.Waiting(await self._keeper.store.windows(self._keeper.name))
        self._wake.set()

    # --- opening -----------------------------------------------------------------------------------------------------

    def expect(self, episode: str) -> None:
        """A client got this episode's answer: its feedback may be here before its record is."""
        if self.used and self._open.get(episode) is None:
            self._expected[episode] = asyncio.Event()
            while len(self._expected) > MAX_EXPECTED:
                self._expected.popitem(last=False)[1].set()

    def arrived(self, episode: str) -> None:
        """The record of an episode has been taken in."""
        expected = self._expected.pop(episode, None)
        if expected is not None:
            expected.set()

    def knows(self, episode: str) -> bool:
        """Whether this agent answers for the episode: it is on its way, or its window has not entered."""
        return self._open.get(episode) is not None or episode in self._expected

    async def open(self, episode: Episode, feedback: Feedback | None) -> None:
        """Open the window of an episode; with `feedback` it only waits for its turn."""
        keeper = self._keeper
        async with keeper.deciding:
            plan = self._releases.canary.ended(episode)
            if plan is None and len(self._open) >= MAX_OPEN:
                self._metrics.windowed(keeper.name, "unwatched")
                return
            guardrail = violated(episode) if episode.role is Role.CANDIDATE else ""
            seconds = self._seconds or 0.0
            window = windows.begin(episode, plan, seconds=seconds, regime=keeper.state.regime, feedback=feedback, guardrail=guardrail)
            await keeper.commit(window)
            self._open.put(window)
            if window.outcome is Outcome.ABORTED and window.role is Role.CANDIDATE:
                await self._foresee()
        self._wake.set()
        self._releases.wake()

    async def _foresee(self) -> None:
        """Show the guardrails what waits. The caller holds `deciding`."""
        current = self._releases.current
        if current is None:
            return
        singles = (windows.evidence(window, at=self._keeper.clock.time()) for window in self._open.of(current.id))
        await self._releases.foresee([single for single in singles if single is not None])

    # --- answering ---------------------------------------------------------------------------------------------------

    async def answer(self, episode: str, score: float, text: str, metrics: Mapping[str, float], *, who: str) -> FeedbackReceipt:
        """Take in what somebody says an episode (whole id) was worth.

        Raises:
            DecodingError: the score, or a declared metric, is missing or outside its range.
            FeedbackRefused: it has other feedback already, or the agent's own feedback.py judges.
            RunnerError: the record of the episode has not come yet.
        """
        if not self.used:
            raise FeedbackRefused(f"the episodes of {self._keeper.name} are judged by its own feedback when they end")
        given = self._checked(episode, score, text, metrics)
        await self._arrival(episode)
        async with self._keeper.deciding:
            receipt = await self._answer(given, who=who)
        self._wake.set()
        return receipt

    async def _arrival(self, episode: str) -> None:
        expected = self._expected.get(episode)
        if expected is None:
            return
        try:
            async with asyncio.timeout(ARRIVAL):
                await expected.wait()
        except TimeoutError:
            raise RunnerError(f"episode {episode} has not been taken in yet: try again soon") from None

    async def _answer(self, given: Feedback, *, who: str) -> FeedbackReceipt:
        keeper, now = self._keeper, self._keeper.clock.time()
        window = self._open.get(given.episode)
        if window is not None and window.feedback is None:
            if not windows.is_closed(window, now):
                answered = windows.answer(window, given, at=now)
                await keeper.commit(answered, given)
                self._open.put(answered)
                self._tell(answered, given, now, who=who)
                return _receipt(given, evidence=True, detail="it enters the tests in its turn")
            await self._close(window)
        known = await keeper.store.feedback(given.episode)
        if known is not None and not known.silent:
            if (known.score, known.text, known.metrics) != (given.score, given.text, given.metrics):
                raise FeedbackRefused(f"episode {given.episode} has its feedback already: a score of {known.score:g}")
            return _receipt(known, evidence=not known.late, detail="it was given before, and counts once")
        late = msgspec.structs.replace(given, late=True)
        await keeper.commit(late)
        self._metrics.windowed(keeper.name, "late")
        reason = "its window is closed" if known is not None else "it had no window"
        return _receipt(late, evidence=False, detail=f"{reason}: it is kept for the record, and is no evidence")

    async def _close(self, window: Window) -> None:
        """Nobody answered, and the window's turn has not come. The caller holds `deciding`."""
        closed, silence = windows.close(window, self._metric, self._silent_score)
        await self._keeper.commit(closed, silence)
        self._open.put(closed)
        self._metrics.windowed(window.agent, "silent")

    def _tell(self, window: Window, feedback: Feedback, now: float, *, who: str) -> None:
        keeper = self._keeper
        self._metrics.windowed(keeper.name, "answered")
        self._metrics.judged(keeper.name, str(window.role), feedback, delay=now - window.ended_at)
        data = {"episode": window.episode, "role": str(window.role), "score": feedback.score, "feedback": feedback.text[:300]}
        keeper.bus.publish(keeper.event("feedback.given", f"a score of {feedback.score:.3f}", who=who, **data))

    def _checked(self, episode: str, score: float, text: str, metrics: Mapping[str, float]) -> Feedback:
        problems: dict[str, str] = {}
        normalised = 0.0
        try:
            normalised = self._metric.normalised(score)
        except ValueError as error:
            problems["score"] = str(error)
        for metric in self._further:
            try:
                metric.normalised(metrics[metric.name])
            except KeyError:
                problems[f"metrics.{metric.name}"] = "is declared, and was not given"
            except ValueError as error:
                problems[f"metrics.{metric.name}"] = str(error)
        if problems:
            raise DecodingError(problems)
        return Feedback(episode=episode, score=score, normalised=normalised, text=text, metrics=dict(metrics))

    # --- entering ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Let windows enter as their turn comes. Runs until cancelled."""
        while True:
            self._wake.clear()
            await self.settle()
            due = self._open.next_close()
            left = None if due is None else min(LOOK_AGAIN, max(0.0, due - self._keeper.clock.time()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._wake.wait()

    async def settle(self) -> None:
        """Let those enter whose turn it is now."""
        keeper = self._keeper
        while self._open.due(keeper.clock.time()) is not None:
            async with keeper.deciding:
                due = self._open.due(keeper.clock.time())  # what it was without the lock may have been answered meanwhile
                if due is not None:
                    await self._enter(due)

    async def _enter(self, window: Window) -> None:
        """Weigh it in its release, or hold it against the watch's bound, in one commit with it. The caller holds `deciding`."""
        feedback = window.feedback
        news: tuple[Feedback, ...] = ()
        if feedback is None:
            window, feedback = windows.close(window, self._metric, self._silent_score)
            news = (feedback,)
            self._metrics.windowed(window.agent, "silent")
        entered = msgspec.structs.replace(window, state=WindowState.ENTERED)
        single = windows.evidence(window, metrics=self._further, at=self._keeper.clock.time())
        if single is not None and window.state is not WindowState.WEIGHED:
            # the watch has a turn of its own, and no business with candidates
            after = entered if window.role is Role.CANDIDATE else msgspec.structs.replace(window, state=WindowState.WEIGHED)
            if not await self._releases.enter(single, after, *news):
                await self._keeper.commit(after, *news)
        elif self._is_watched(window):
            after = entered
            await self._watcher.observe(feedback.normalised, after, *news)
        else:
            after = entered
            await self._keeper.commit(after, *news)
        self._open.put(after)
        if after is entered:
            self._on_judged(window, feedback)

    def _is_watched(self, window: Window) -> bool:
        state = self._keeper.state
        ours = (window.revision, window.role, window.regime) == (state.stable, Role.STABLE, state.regime)
        return ours and window.purpose is not Purpose.RECOVERY


def _receipt(feedback: Feedback, *, evidence: bool, detail: str) -> FeedbackReceipt:
    return FeedbackReceipt(episode=feedback.episode, score=feedback.score, normalised=feedback.normalised, evidence=evidence, detail=detail)
