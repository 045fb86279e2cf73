"""What follows from an alarm, on the real store and without a runner."""

from random import Random

import msgspec
import pytest

from agentd.clock import SystemClock
from agentd.events import EventBus
from agentd.hosting.freeze import Freeze
from agentd.hosting.improver import Improver
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
        improver = Improver(self.keeper, self.releases, OptimizerProcess(), None, (), 1)
        self.watcher = Watcher(self.keeper, self.releases, improver, WatchSettings())

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
