"""What follows from an alarm, on the real store and without a runner."""

from random import Random

import msgspec
import pytest

from agentd.clock import SystemClock
from agentd.events import EventBus
from agentd.hosting.freeze import Freeze
from agentd.hosting.improver import PATIENCE, Improver
from agentd.hosting.keeper import Keeper
from agentd.hosting.releases import Releases
from agentd.hosting.watching import PROBES, Watcher
from agentd.opto.process import OptimizerProcess
from agentd.records import AgentState, Mode, Phase, Release, ReleaseKind, ReleaseSettings, Source, Watch, WatchSettings, make_revision
from agentd.store import SqlStore

SOURCE = Source(digest="5" * 64, files={"controller.py": ""}, entrypoint="controller:Controller")
GOOD, FORCED = make_revision("cartpole", SOURCE.digest, {}), make_revision("cartpole", SOURCE.digest, {"gain": 2.0})
ALARMED = Watch(revision=FORCED.id, bound=0.8, alarmed=True, recent=(0.5,) * 10)
STATE = AgentState(name="cartpole", source=SOURCE.digest, stable=FORCED.id, last_good=GOOD.id, mode=Mode.RELEASE, watch=ALARMED)


class Alarmed:
    def __init__(self, spec, store, bus) -> None:
        self.store = store
        self.keeper = Keeper(spec, STATE, store, bus, SystemClock(), Random(1), Freeze(store, bus, SystemClock()))
        self.releases = Releases(self.keeper, self._ended)
        self.improver = Improver(self.keeper, self.releases, OptimizerProcess(), None, (), 1)
        self.watcher = Watcher(self.keeper, self.releases, self.improver, WatchSettings())

    async def _ended(self, release) -> None: ...

    async def probe_ends(self, phase, stage):
        """The probe that waits, if any, has run and ended so."""
        self.releases.restore((), None)
        probe = Release(
            id="probe",
            agent="cartpole",
            proposal="",
            candidate=GOOD.id,
            reference=FORCED.id,
            phase=phase,
            stage=stage,
            settings=ReleaseSettings(),
            begun_at=1.0,
            kind=ReleaseKind.PROBE,
        )
        async with self.keeper.deciding:
            await self.watcher.release_ended(probe)
        return "asked again" if self.releases.probing else "drift" if self.keeper.state.regime else "nothing"


@pytest.fixture
async def alarmed(tmp_path, make_spec):
    async with await SqlStore.open(f"sqlite:///{tmp_path}/agentd.db") as store, EventBus() as bus:
        await store.commit(SOURCE, GOOD, FORCED, msgspec.structs.replace(STATE))
        yield Alarmed(make_spec(optimizer={"trigger": "manual"}), store, bus)


async def test_an_alarm_is_asked_about_again_where_a_guardrail_ended_the_asking_but_not_for_ever(alarmed):
    told = [await alarmed.probe_ends(Phase.REJECTED, "guardrail") for _ in range(PROBES)]
    assert told == ["asked again"] * (PROBES - 1) + ["drift"]


async def test_pairs_that_do_not_show_the_last_good_revision_to_be_better_mean_drift(alarmed):
    assert await alarmed.probe_ends(Phase.INCONCLUSIVE, "canary") == "drift"


@pytest.mark.parametrize(("phase", "stage"), [(Phase.PROMOTED, "canary"), (Phase.ABORTED, "operator")])
async def test_a_probe_that_was_answered_or_aborted_declares_nothing(alarmed, phase, stage):
    assert await alarmed.probe_ends(phase, stage) == "nothing"


# --- a world that comes back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trigger", "target", "score", "improving"),
    [("alarm", 0.8, 0.9, False), ("alarm", 0.8, 0.5, True), ("alarm", None, 0.9, True), ("continuous", 0.8, 0.9, True)],
)
async def test_the_optimizer_rests_once_the_stable_revision_is_as_good_again_as_it_was(
    alarmed, make_spec, trigger, target, score, improving
):
    keeper, watcher = alarmed.keeper, alarmed.watcher
    keeper.spec = make_spec(optimizer={"trigger": trigger})
    async with keeper.deciding:
        await keeper.commit(improving=True, target=target, regime=1, watch=Watch(revision=FORCED.id))
        for _ in range(WatchSettings().good_after):
            await watcher.observe(score)
    kept = await alarmed.store.agent("cartpole")
    assert (kept.improving, kept.target) == (improving, target if improving else None)
    events = [event.kind for event in await alarmed.store.events("cartpole")]
    assert ("optimizer.stopped" in events) is not improving


async def test_what_the_world_has_just_turned_against_is_not_tried_as_good_in_an_earlier_one(alarmed):
    await alarmed.probe_ends(Phase.INCONCLUSIVE, "canary")
    assert alarmed.keeper.state.tried == (FORCED.id,)


# --- a world that does not come back --------------------------------------------------------------------------------


def ended(phase, score):
    """A release of the optimizer that is over; its candidate scored so."""
    return Release(
        id="r", agent="cartpole", proposal="p", candidate=FORCED.id, reference=GOOD.id, phase=phase,
        settings=ReleaseSettings(), begun_at=1.0, pairs=10, candidate_sum=10 * score,
    )  # fmt: skip


async def after_as_many_as_it_has_patience_for(alarmed, *, promoted_after=None):
    """What is committed, and said, once so many proposals were pruned."""
    async with alarmed.keeper.deciding:
        for number in range(PATIENCE):
            if number == promoted_after:
                await alarmed.keeper.commit(attempts=0)  # as the promotion does
                await alarmed.improver.release_ended(ended(Phase.PROMOTED, 0.6))
            await alarmed.improver.release_ended(ended(Phase.PRUNED, 0.5))
    return await alarmed.store.agent("cartpole"), alarmed.improver.told


@pytest.fixture
async def improving(alarmed, make_spec):
    alarmed.keeper.spec = make_spec(optimizer={"trigger": "alarm"})
    async with alarmed.keeper.deciding:
        await alarmed.keeper.commit(improving=True, target=0.8, regime=1, tried=(GOOD.id,), watch=Watch(revision=FORCED.id))
    return alarmed


async def test_where_a_harder_world_keeps_the_score_out_of_reach_the_optimizer_rests_and_says_so_also_after_a_restart(improving):
    assert "aims at 0.800 again; 0 of 60 proposals without a promotion" in improving.improver.told
    state, told = await after_as_many_as_it_has_patience_for(improving)
    assert (state.improving, state.target, state.attempts) == (False, None, PATIENCE)
    assert "rests: 60 proposals without a promotion; `agentd propose cartpole` asks again" in told
    [stopped] = [event for event in await improving.store.events("cartpole") if event.kind == "optimizer.stopped"]
    assert stopped.message == "60 proposals without a promotion, wanted 0.800"


async def test_a_promotion_that_gains_some_of_what_was_lost_gives_the_optimizer_its_patience_back(improving):
    state, told = await after_as_many_as_it_has_patience_for(improving, promoted_after=10)
    assert (state.improving, state.target, state.attempts) == (True, 0.8, PATIENCE - 10)
    assert "50 of 60" in told


async def test_one_that_never_stops_gives_up_the_old_score_and_goes_on(improving, make_spec):
    improving.keeper.spec = make_spec(optimizer={"trigger": "continuous"})
    state, _ = await after_as_many_as_it_has_patience_for(improving)
    assert (state.improving, state.target, state.attempts) == (True, None, PATIENCE)


@pytest.mark.parametrize(("turned_against", "is_good"), [(GOOD, True), (FORCED, False)])
async def test_what_has_taken_the_place_of_the_revision_that_the_world_turned_against_is_rolled_back_to_though_the_score_is_not_reached(
    improving, turned_against, is_good
):
    async with improving.keeper.deciding:
        await improving.keeper.commit(tried=(turned_against.id,), last_good=None)
        for _ in range(WatchSettings().good_after):
            await improving.watcher.observe(0.6)
    state = await improving.store.agent("cartpole")
    assert (state.last_good, state.improving, state.target) == (FORCED.id if is_good else None, True, 0.8)
    async with improving.keeper.deciding:  # and when the world comes back to it later, the optimizer rests
        for _ in range(WatchSettings().good_after):
            await improving.watcher.observe(0.9)
    assert not (await improving.store.agent("cartpole")).improving
