"""Feedback that comes hours later, on the real store and by a clock that is moved by hand; restarts included, the runner not."""

from random import Random

import pytest

from agentd.errors import DecodingError, FeedbackRefused
from agentd.events import EventBus
from agentd.hosting.freeze import Freeze
from agentd.hosting.improver import Improver
from agentd.hosting.keeper import Keeper
from agentd.hosting.releases import Releases
from agentd.hosting.watching import Watcher
from agentd.hosting.windows import Windows
from agentd.observability.metrics import Metrics
from agentd.opto.process import OptimizerProcess
from agentd.records import (
    AgentState,
    Episode,
    Mode,
    Outcome,
    PairPlan,
    Phase,
    Purpose,
    Release,
    ReleaseSettings,
    Role,
    Source,
    WatchSettings,
    make_revision,
)
from agentd.store import SqlStore
from agentd.testing.clock import FixedClock

HOUR = 3600.0
SOURCE = Source(digest="5" * 64, files={"policy.py": ""}, entrypoint="policy:Policy")
STABLE, NEW = make_revision("answers", SOURCE.digest, {}), make_revision("answers", SOURCE.digest, {"factor": 3.0})
SETTINGS = ReleaseSettings(exposure=0.5, silent_score=0.25, selection_pairs=0, prune_after_pairs=1000)
RELEASE = Release(
    id="r1",
    agent="answers",
    proposal="",
    candidate=NEW.id,
    reference=STABLE.id,
    phase=Phase.CONFIRMATION,
    settings=SETTINGS,
    begun_at=0.0,
)
STATE = AgentState(name="answers", source=SOURCE.digest, stable=STABLE.id, mode=Mode.RELEASE, release=RELEASE.id)


class Late:
    """One agent's windows; `restart` forgets all that is not in the store."""

    def __init__(self, spec, store, bus, clock) -> None:
        self.spec, self.store, self.bus, self.clock = spec, store, bus, clock
        self.count = 0

    async def restart(self) -> None:
        state = await self.store.agent("answers")
        self.keeper = Keeper(self.spec, state, self.store, self.bus, self.clock, Random(1), Freeze(self.store, self.bus, self.clock))
        self.releases = Releases(self.keeper, self._ended)
        self.watcher = Watcher(self.keeper, self.releases, self._improver(), WatchSettings())
        self.seen: list[tuple[str, float]] = []
        self.windows = Windows(self.keeper, self.releases, self.watcher, Metrics("0", self.clock), self._judged)
        self.releases.restore((await self.store.release("r1"),), "r1")
        await self.releases.recall()
        await self.windows.restore()

    def _improver(self) -> Improver:
        return Improver(self.keeper, self.releases, OptimizerProcess(), None, (), 1)

    def _judged(self, window, feedback) -> None:
        self.seen.append((window.episode, feedback.score))

    async def _ended(self, release) -> None: ...

    async def ran(self, role=Role.STABLE, *, drawn=True, outcome=Outcome.FINISHED) -> str:
        """An episode that has ended and been taken in; its id."""
        self.count += 1
        name, plan = f"e{self.count}", f"p{self.count}"
        if drawn:
            await self.store.commit(
                PairPlan(
                    id=plan,
                    release="r1",
                    agent="answers",
                    device="http",
                    order=(role,),
                    reference=STABLE.id,
                    candidate=NEW.id,
                    probability=0.5,
                )
            )
            await self.releases.recall()
        episode = Episode(
            id=name,
            agent="answers",
            device="alice",
            revision=NEW.id if role is Role.CANDIDATE else STABLE.id,
            role=role,
            purpose=Purpose.UNSOLICITED,
            outcome=outcome,
            started_at=self.clock.now - 1.0,
            duration=1.0,
            pair=plan if drawn else None,
        )
        await self.store.add_episode(episode, None, regime=0)
        await self.windows.open(episode, None)
        return name

    async def judge(self, episode: str, score: float):
        return await self.windows.answer(episode, score, "", {}, who="client")

    @property
    def pairs(self) -> int:
        assert self.releases.current is not None
        return self.releases.current.pairs

    @property
    def watched(self) -> int:
        return self.keeper.state.watch.episodes if self.keeper.state.watch else 0


@pytest.fixture
async def late(tmp_path, make_spec):
    clock = FixedClock(1_000_000.0)
    spec = make_spec(
        environment={"kind": "http"},
        feedback=None,
        optimizer={"trigger": "manual"},
        release={"feedback_timeout": "48h", "silent_score": 0.25, "max_duration": "14d"},
    )
    async with await SqlStore.open(f"sqlite:///{tmp_path}/agentd.db", clock=clock) as store, EventBus() as bus:
        await store.commit(SOURCE, STABLE, NEW, STATE, RELEASE)
        agent = Late(spec, store, bus, clock)
        await agent.restart()
        yield agent


async def test_an_answer_waits_for_its_elders_and_silence_counts_when_their_windows_have_closed(late):
    silent, answered = await late.ran(Role.CANDIDATE), await late.ran()
    assert (await late.judge(answered, 0.75)).evidence is True
    await late.windows.settle()
    assert (late.pairs, late.watched) == (0, 0)
    await late.restart()
    late.clock.now += 48 * HOUR
    await late.windows.settle()
    assert (late.pairs, late.watched, late.seen) == (2, 1, [(silent, 0.25), (answered, 0.75)])
    first, second = await late.store.pairs("r1")
    assert (first.score, second.score) == (None, 0.75)
    kept = await late.store.feedback(silent)
    assert (kept.silent, kept.score, kept.text) == (True, 0.25, "Nobody answered within 172800 s.")
    await late.restart()
    await late.windows.settle()
    assert (late.pairs, late.watched, late.windows.waiting) == (2, 1, 0)


async def test_an_answer_that_comes_a_moment_too_late_is_kept_though_nobody_has_closed_its_window(late):
    elder = await late.ran(drawn=False)
    name = await late.ran(drawn=False)
    await late.judge(elder, 0.5)
    late.clock.now += 48 * HOUR
    receipt = await late.judge(name, 1.0)
    assert (receipt.evidence, "window is closed" in receipt.detail) == (False, True)
    await late.windows.settle()
    assert late.seen == [(elder, 0.5), (name, 0.25)]
    assert (await late.store.feedback(name)).late
    assert (await late.judge(name, 1.0)).evidence is False  # the same words again
    with pytest.raises(FeedbackRefused):
        await late.judge(name, 0.0)


async def test_a_daemon_that_dies_between_release_and_watch_lets_each_of_them_see_an_episode_once(late):
    name = await late.ran()
    await late.judge(name, 0.75)

    async def dies(*_):
        raise RuntimeError("killed here")

    late.watcher.observe = dies
    with pytest.raises(RuntimeError):
        await late.windows.settle()
    await late.restart()
    assert (late.pairs, late.watched) == (1, 0)
    await late.windows.settle()
    assert (late.pairs, late.watched) == (1, 1)
    assert len(await late.store.pairs("r1")) == 1


async def test_a_candidate_that_aborts_again_and_again_is_stopped_before_anybody_has_answered(late):
    await late.ran()
    for _ in range(3):
        await late.ran(Role.CANDIDATE, outcome=Outcome.ABORTED)
    assert late.releases.current is None
    ended = await late.store.release("r1")
    assert (ended.phase, ended.stage, ended.pairs) == (Phase.REJECTED, "guardrail", 0)


async def test_scores_that_can_not_be_are_refused_and_leave_the_window_open(late):
    name = await late.ran()
    with pytest.raises(DecodingError, match="outside its declared range"):
        await late.judge(name, 7.0)
    assert late.windows.waiting == 1
    assert (await late.judge(name, 0.5)).evidence is True
