"""From a finished episode to what it teaches: judged, kept, shown, and weighed as evidence and by the watch."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Container

from agentd.errors import NotFound
from agentd.hosting.failing import FAILING_AFTER, Failing
from agentd.hosting.improver import Improver
from agentd.hosting.judge import Judge
from agentd.hosting.keeper import Keeper
from agentd.hosting.releases import Releases
from agentd.hosting.watching import Watcher
from agentd.hosting.windows import Windows
from agentd.observability.metrics import Metrics
from agentd.records import Episode, Feedback, Outcome, Purpose, Role, Window
from agentd.runners.local import LocalRunner

EPISODES_AHEAD = 64
RECENT = 120


class Intake:
    """The episodes of one agent, each taken in once, in the order in which they ended."""

    def __init__(self, keeper: Keeper, releases: Releases, watcher: Watcher, improver: Improver, metrics: Metrics) -> None:
        self.windows = Windows(keeper, releases, watcher, metrics, self._judged)
        self._keeper = keeper
        self._releases = releases
        self._watcher = watcher
        self._improver = improver
        self._metrics = metrics
        self._episodes: asyncio.Queue[Episode] = asyncio.Queue(EPISODES_AHEAD)
        self._taken: deque[str] = deque(maxlen=2 * EPISODES_AHEAD)
        self._resent = 0
        self._feedback_failure = ""
        self._failing = Failing()
        self.recent: deque[float] = deque(maxlen=RECENT)
        """Normalised scores of the stable revision, oldest first."""
        self.count = 0

    @property
    def trouble(self) -> str:
        """What makes the agent useless though it is up; empty while nothing does."""
        return self._failing.trouble

    async def recall(self) -> None:
        """Know again of an agent that was of no use when an earlier daemon died: from the newest episodes in the store."""
        keeper = self._keeper
        for summary in reversed(await keeper.store.episodes(keeper.name, limit=FAILING_AFTER, role=Role.STABLE)):
            self._failing.weigh(await keeper.store.episode(summary.id), await keeper.store.feedback(summary.id))

    def ready(self, devices: Container[str]) -> None:
        """These devices are ready; of another one it is not known how it is."""
        self._failing.keep(devices)

    def attach(self, runner: LocalRunner) -> None:
        """Begin anew with this runner: what an earlier connection brought and nobody acknowledged comes again."""
        self._episodes = asyncio.Queue(EPISODES_AHEAD)
        self._resent = runner.spooled

    async def put(self, episode: Episode) -> None:
        """Hand over an episode. Waits while the judge is behind: the runner spools meanwhile, and never waits."""
        await self._episodes.put(episode)

    async def join(self) -> None:
        """Return once all that was handed over is taken in."""
        await self._episodes.join()

    async def run(self, judge: Judge, runner: LocalRunner) -> None:
        """Learn from one episode after the other. Runs until cancelled."""
        while True:
            episode = await self._episodes.get()
            if not await self._is_known(episode):
                late = self.windows.used and episode.outcome is Outcome.FINISHED
                await self._take_in(episode, None if late else await judge.judge(episode))
                self._taken.append(episode.id)
            self.windows.arrived(episode.id)
            await runner.acknowledge(episode.id)
            self._episodes.task_done()

    async def _is_known(self, episode: Episode) -> bool:
        """Whether it was taken in before and only the acknowledgement was lost: evidence and watch must not see it twice."""
        if episode.id in self._taken:
            return True
        if self._resent <= 0:
            return False
        self._resent -= 1
        store = self._keeper.store
        with contextlib.suppress(NotFound):
            # where there are windows, an episode without one may be in the store and nowhere else
            if not self.windows.used:
                await store.summary(episode.id)
                return True
            window = await store.window(episode.id)
            try:
                await store.summary(episode.id)
            except NotFound:  # a window is committed at once, and its episode was only queued
                await store.add_episode(episode, window.feedback, regime=window.regime)
            return True
        return False

    @property
    def behind(self) -> bool:
        """Whether episodes that an earlier connection brought may still come."""
        return self._resent > 0

    def expect(self, episode: str) -> None:
        """A client has got the answer of this episode."""
        if episode not in self._taken:
            self.windows.expect(episode)

    async def _take_in(self, episode: Episode, feedback: Feedback | None) -> None:
        """One finished episode: kept, shown, and weighed, now or when its window lets it."""
        keeper = self._keeper
        await keeper.store.add_episode(episode, feedback, regime=keeper.state.regime)
        self.count += 1
        self._metrics.episode(episode, feedback)
        keeper.bus.publish(
            keeper.event(
                "episode.finished",
                f"{episode.role} {episode.outcome}" + ("" if feedback is None else f", score {feedback.score:.3f}"),
                episode=episode.id,
                device=episode.device,
                role=str(episode.role),
                purpose=str(episode.purpose),
                revision=episode.revision,
                outcome=str(episode.outcome),
                score=None if feedback is None else feedback.score,
                normalised=None if feedback is None else feedback.normalised,
                ticks=len(episode.steps),
                safe_actions=episode.safe_actions,
                feedback="" if feedback is None else feedback.text[:300],
                failed="" if feedback is None else feedback.failed,
            )
        )
        await self._weigh(episode, feedback)
        if feedback is None or (self.windows.used and episode.outcome is not Outcome.LOST):
            await self.windows.open(episode, feedback)
            return
        if episode.outcome is not Outcome.LOST:
            if feedback.failed not in {"", self._feedback_failure}:  # a judge that fails at every episode is told of once
                await keeper.say("feedback.failed", feedback.failed, episode=episode.id)
            self._feedback_failure = feedback.failed
        async with keeper.deciding:
            await self._releases.observe(episode, feedback)
            if self._is_watched(episode, feedback):
                await self._watcher.observe(feedback.normalised)
        self._judged(episode, feedback)

    def _judged(self, episode: Episode | Window, feedback: Feedback) -> None:
        """What is known of an episode once it is judged and weighed."""
        state = self._keeper.state
        if episode.role is Role.STABLE and episode.revision == state.stable and not feedback.failed:
            self.recent.append(feedback.normalised)
        if state.improving:
            self._improver.wake()

    async def _weigh(self, episode: Episode, feedback: Feedback | None) -> None:
        """Say once that the agent is of no use, and once that it is again."""
        before = self._failing.trouble
        self._failing.weigh(episode, feedback)
        if self._failing.trouble and not before:
            await self._keeper.say("agent.failing", self._failing.trouble, episode=episode.id)
        elif before and not self._failing.trouble:
            await self._keeper.say("agent.recovered", "its actions are accepted, and its episodes judged", episode=episode.id)

    def _is_watched(self, episode: Episode, feedback: Feedback) -> bool:
        return (
            episode.revision == self._keeper.state.stable
            and episode.role is Role.STABLE
            and episode.purpose is not Purpose.RECOVERY
            and episode.outcome is not Outcome.LOST
            and not feedback.failed
        )
