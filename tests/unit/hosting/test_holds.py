"""Freeze, quarantine, the rate of promotions, stale decisions, and conflicts; on the real store and without a runner."""

from random import Random

import msgspec
import pytest

from agentd.errors import (
    DecodingError,
    Held,
    IllegalTransition,
    LoadError,
    ReleaseError,
    SandboxError,
    StaleRelease,
    StoreUnavailable,
)
from agentd.events import EventBus
from agentd.hosting.freeze import Freeze, read_freeze
from agentd.hosting.holds import Holds
from agentd.hosting.keeper import Keeper
from agentd.hosting.releases import Releases
from agentd.hosting.verbs import Verbs
from agentd.records import (
    AgentState,
    Change,
    Conflict,
    Hold,
    Mode,
    Phase,
    Proposal,
    Release,
    ReleaseKind,
    ReleaseSettings,
    Source,
    make_revision,
)
from agentd.store import SqlStore
from agentd.testing.clock import FixedClock

NOW = 1_800_000_000.0
SOURCE = Source(digest="5" * 64, files={"controller.py": ""}, entrypoint="controller:Controller")
FIRST, SECOND = make_revision("cartpole", SOURCE.digest, {}), make_revision("cartpole", SOURCE.digest, {"gain": 2.0})
STATE = AgentState(name="cartpole", source=SOURCE.digest, stable=FIRST.id, mode=Mode.RELEASE)


class Bench:
    """One agent as its keeper knows it. `again` is what a daemon knows after a crash: what is in the store."""

    def __init__(self, spec, state, store, bus, freeze=None) -> None:
        self.store, self.spec, self.bus, self.clock = store, spec, bus, FixedClock(NOW)
        self.freeze = Freeze(store, bus, self.clock, freeze)
        self.keeper = Keeper(spec, state, store, bus, self.clock, Random(1), self.freeze)
        self.releases = Releases(self.keeper, self._ended)
        self.verbs = Verbs(self.keeper, self.releases, None, lambda: None)
        self.holds = Holds(self.keeper, self.releases)

    async def _ended(self, release) -> None: ...

    async def again(self):
        return Bench(self.spec, await self.store.agent("cartpole"), self.store, self.bus, await read_freeze(self.store))

    async def promoted(self, release, at, kind):
        history = (Change(phase=Phase.PROMOTED, at=at, who="agentd"),)
        made = Release(
            id=release,
            agent="cartpole",
            proposal="",
            candidate=SECOND.id,
            reference=FIRST.id,
            phase=Phase.PROMOTED,
            settings=ReleaseSettings(),
            begun_at=at,
            ended_at=at,
            kind=kind,
            history=history,
        )
        await self.store.commit(made)

    async def examine(self):
        async with self.keeper.deciding:
            await self.holds.examine()
        return self.keeper.state.quarantine

    async def kinds(self):
        return [event.kind for event in await self.store.events("cartpole")]


@pytest.fixture
async def make_bench(tmp_path, make_spec):
    opened = []

    async def make(state=STATE, **sections):
        store = await SqlStore.open(f"sqlite:///{tmp_path}/agentd.db")
        bus = EventBus()
        opened.extend([bus, store])
        await store.commit(SOURCE, FIRST, SECOND, state)
        return Bench(make_spec(**sections), state, store, bus)

    yield make
    for resource in opened:
        await resource.aclose()


async def test_a_freeze_is_committed_with_who_and_why_and_the_first_one_stays(make_bench):
    bench = await make_bench()
    await bench.holds.freeze(who="ada", reason="a demonstration")
    await bench.holds.freeze(who="bob", reason="something else")
    after = await bench.again()
    assert (after.keeper.state.frozen.who, after.keeper.state.frozen.reason) == ("ada", "a demonstration")
    assert after.keeper.state.held == "frozen by ada: a demonstration"
    await after.holds.unfreeze(who="bob")
    await after.holds.unfreeze(who="bob")
    assert after.keeper.state.held == ""
    assert await bench.kinds() == ["agent.frozen", "agent.unfrozen"]


async def test_a_freeze_of_every_agent_is_in_the_log_holds_each_of_them_and_is_lifted_for_all_at_once(make_bench):
    bench = await make_bench()
    await bench.freeze.begin(who="ada", reason="incident 7")
    assert await bench.freeze.begin(who="bob") is None
    after = await bench.again()
    assert after.freeze.hold == Hold(at=NOW, who="ada", reason="incident 7", everywhere=True)
    assert after.keeper.held == "frozen by ada: incident 7"
    assert after.keeper.state.frozen is None
    with pytest.raises(Held, match="agentd unfreeze --all"):
        await after.verbs.submit({"gain": 2.0}, who="ada")
    with pytest.raises(Held, match="agentd unfreeze --all"):
        await after.holds.unfreeze(who="ada")
    await after.holds.freeze(who="carl")
    await after.freeze.end(who="bob")
    assert await after.freeze.end(who="bob") is None
    assert (await after.again()).freeze.hold is None
    assert (await after.again()).keeper.held == "frozen by carl"  # by itself
    await after.holds.unfreeze(who="carl")
    assert after.keeper.held == ""
    assert [event.kind for event in await bench.store.events()] == [
        "daemon.frozen",
        "agent.frozen",
        "daemon.unfrozen",
        "agent.unfrozen",
    ]


async def test_nothing_but_a_probe_is_taken_from_the_queue_while_frozen(make_bench):
    bench = await make_bench()
    queue = bench.releases._queue
    proposal = Proposal(id="p1", agent="cartpole", parent=FIRST.id, values={"gain": 2.0}, algorithm="operator", at=NOW, who="ada")
    waiting = await bench.releases.propose(proposal)
    await bench.holds.freeze(who="ada")
    async with bench.keeper.deciding:
        assert await queue.take() is None
        await queue.probe(SECOND.id)
        assert (await queue.take()).kind is ReleaseKind.PROBE
    await bench.holds.unfreeze(who="ada")
    async with bench.keeper.deciding:
        assert (await queue.take()).id == waiting.id


async def test_a_release_that_waits_for_a_person_makes_room_for_a_probe_and_comes_back_after_it(make_bench):
    bench = await make_bench()
    releases = bench.releases
    proposal = Proposal(id="p1", agent="cartpole", parent=FIRST.id, values={"gain": 2.0}, algorithm="operator", at=NOW, who="ada")
    await releases.propose(proposal)
    async with bench.keeper.deciding:
        await releases._take_next()
        releases.current = msgspec.structs.replace(releases.current, phase=Phase.AWAITING_APPROVAL)
        waiting = releases.current.id
        await releases.probe(SECOND.id)
        await releases._take_next()
        assert releases.current.kind is ReleaseKind.PROBE
        assert (await bench.again()).keeper.state.release == releases.current.id
        releases.current = None
        await releases._take_next()
        assert (releases.current.id, releases.current.phase) == (waiting, Phase.AWAITING_APPROVAL)


async def test_a_decision_about_a_release_that_has_moved_on_is_refused_and_decides_nothing(make_bench):
    bench = await make_bench(agent={"name": "cartpole", "entrypoint": "controller:Controller", "mode": "advise"})
    await bench.promoted("release-0", NOW - 10, ReleaseKind.PROPOSAL)
    proposal = Proposal(id="p1", agent="cartpole", parent=FIRST.id, values={"gain": 2.0}, algorithm="operator", at=NOW, who="ada")
    waiting = await bench.releases.propose(proposal)
    async with bench.keeper.deciding:
        await bench.releases._take_next()
        bench.releases.current = msgspec.structs.replace(bench.releases.current, phase=Phase.AWAITING_APPROVAL)
    for verb in ("approve", "promote", "abort", "pause", "resume"):
        with pytest.raises(StaleRelease, match=f"release-0 is not the one in progress: that is {waiting.id}"):
            await getattr(bench.verbs, verb)("release-0", who="bob")
    assert bench.releases.current.phase is Phase.AWAITING_APPROVAL
    await bench.verbs.approve(waiting.id, who="ada")
    with pytest.raises(IllegalTransition):
        await bench.verbs.approve(waiting.id, who="bob")
    assert [change.who for change in bench.releases.current.history][-1] == "ada"


async def test_more_rollbacks_than_allowed_lead_into_quarantine_once_and_lifting_it_forgets_them(make_bench):
    bench = await make_bench(guardrails={"max_rollbacks": "2/day"})
    for number in range(2):
        await bench.promoted(f"probe-{number}", NOW - 100 + number, ReleaseKind.PROBE)
    assert await bench.examine() is None
    await bench.promoted("probe-2", NOW - 10, ReleaseKind.PROBE)
    after = await bench.again()  # as after a crash between the rollback and the quarantine
    quarantine = await after.examine()
    assert quarantine.who == "agentd"
    assert "3 times" in quarantine.reason
    assert await after.examine() == quarantine
    assert not after.keeper.state.paused
    assert await bench.kinds() == ["agent.quarantined"]
    await after.holds.lift(who="ada", reason="mended")
    assert await after.examine() is None


async def test_lifting_a_quarantine_forgets_rollbacks_that_a_clock_which_was_set_back_puts_into_the_future(make_bench):
    bench = await make_bench(guardrails={"max_rollbacks": "0/day"})
    await bench.promoted("probe", NOW + 3600, ReleaseKind.PROBE)
    assert await bench.examine() is not None
    await bench.holds.lift(who="ada", reason="mended")
    assert await bench.examine() is None
    await bench.promoted("probe-2", NOW + 3601, ReleaseKind.PROBE)
    assert await bench.examine() is not None


async def test_rollbacks_that_are_old_enough_do_not_count(make_bench):
    bench = await make_bench(guardrails={"max_rollbacks": "0/hour"})
    await bench.promoted("probe", NOW - 3601, ReleaseKind.PROBE)
    assert await bench.examine() is None


@pytest.mark.parametrize("paused", [False, True])
async def test_a_safe_quarantine_lets_no_episode_begin_and_lifting_it_leaves_an_operator_s_pause(make_bench, paused):
    bench = await make_bench(guardrails={"max_rollbacks": "0/day", "quarantine": "safe"})
    await bench.promoted("probe", NOW - 1, ReleaseKind.PROBE)
    if paused:
        await bench.holds.pause(who="ada")
    await bench.examine()
    assert (await bench.again()).holds.resting
    await bench.holds.lift(who="ada")
    assert (await bench.again()).holds.resting is paused


async def test_resuming_does_not_lift_a_quarantine(make_bench):
    bench = await make_bench(guardrails={"max_rollbacks": "0/day", "quarantine": "safe"})
    await bench.promoted("probe", NOW - 1, ReleaseKind.PROBE)
    await bench.holds.pause(who="ada")
    await bench.examine()
    await bench.holds.resume(who="ada")
    assert (await bench.again()).holds.resting


async def test_a_quarantine_in_which_the_agent_serves_on_leaves_a_latched_safe_action_to_an_operator_s_resume(make_bench):
    bench, heard = await make_bench(guardrails={"max_rollbacks": "0/day"}), []

    class Runner:
        paused = False

        async def resume(self):
            heard.append("resume")

    await bench.holds.attach(Runner())
    await bench.promoted("probe", NOW - 1, ReleaseKind.PROBE)
    assert await bench.examine() is not None
    await bench.holds.lift(who="ada")
    assert heard == []


async def test_resume_reaches_the_runner_of_an_agent_that_is_not_paused_too_for_its_safe_action_may_have_latched(make_bench):
    bench, heard = await make_bench(), []

    class Runner:
        paused = False

        async def resume(self):
            heard.append("resume")

    await bench.holds.attach(Runner())
    await bench.holds.resume(who="ada", reason="the arm is free")
    assert heard == ["resume"]
    [event] = [event for event in await bench.store.events("cartpole") if event.kind == "agent.resumed"]
    assert (event.who, event.data["reason"]) == ("ada", "the arm is free")


async def test_a_canary_waits_until_the_rate_of_promotions_allows_one_more_and_says_so_once(make_bench):
    bench = await make_bench(release={"max_promotions": "2/day"})
    releases = bench.releases
    await bench.promoted("r1", NOW - 7200, ReleaseKind.PROPOSAL)
    assert not await releases._too_often()
    await bench.promoted("r2", NOW - 3600, ReleaseKind.PROPOSAL)
    assert await releases._too_often()
    assert await releases._too_often()
    assert await bench.kinds() == ["release.waits"]
    proposal = Proposal(id="p1", agent="cartpole", parent=FIRST.id, values={"gain": 2.0}, algorithm="operator", at=NOW, who="ada")
    await releases.propose(proposal)
    assert "max_promotions allows 2/day" in releases.waiting
    bench.clock.now = NOW - 7200 + 86_400
    assert not await releases._too_often()
    assert releases.waiting == ""


async def test_an_operator_is_refused_a_revision_that_can_not_be_loaded_and_one_that_can_not_be_routed_to_yet_is_told(make_bench):
    bench = await make_bench()

    class Runner:
        fails = True

        async def load(self, source, revision):
            if self.fails:
                raise LoadError("no brake in this source")

        async def cancel_pairs(self): ...

        async def route(self, revision):
            raise SandboxError("no log can be opened: Too many open files")

    runner = Runner()
    bench.releases.attach(runner, SOURCE, ())
    with pytest.raises(ReleaseError, match=f"{SECOND.id[:10]} can't be served, {FIRST.id[:10]} goes on: no brake in this source"):
        await bench.verbs.set_desired(SECOND.id, who="ada")
    assert (bench.keeper.state, await bench.kinds(), bench.releases.astray) == (STATE, [], "")
    runner.fails = False
    await bench.verbs.set_desired(SECOND.id, who="ada")
    assert (await bench.again()).keeper.state.stable == SECOND.id
    assert "Too many open files" in bench.releases.astray


async def test_conflicts_are_settled_and_what_is_kept_is_proposed_in_one_commit_or_not_at_all(make_bench):
    torn = tuple(Conflict(path=path, base=1.0, learned=2.0, source=3.0) for path in ("gain", "lead", "trim"))
    bench = await make_bench(state=msgspec.structs.replace(STATE, conflicts=torn))
    commit, written = bench.store.commit, []

    async def fails(*records):
        written.append(records)
        raise StoreUnavailable("the disk is full")

    bench.store.commit = fails
    for keep, take in ((["gain"], ["lead"]), ([], ["lead"])):
        with pytest.raises(StoreUnavailable):
            await bench.verbs.rebase(keep=keep, take=take, who="ada")
    assert len(written) == 2
    assert (bench.keeper.state.conflicts, bench.releases.idle) == (torn, True)

    bench.store.commit = commit
    release = await bench.verbs.rebase(keep=["gain"], take=["lead"], who="ada", reason="measured")
    assert [conflict.path for conflict in (await bench.again()).keeper.state.conflicts] == ["trim"]
    [rebased] = [event for event in await bench.store.events("cartpole") if event.kind == "agent.rebased"]
    assert (rebased.data["kept"], rebased.data["taken"], rebased.data["release"]) == (["gain"], ["lead"], release.id)
    assert (await bench.store.proposal(release.proposal)).values == {"gain": 2.0}
    with pytest.raises(DecodingError):
        await bench.verbs.rebase(keep=["gain"], take=[], who="ada")
    assert await bench.verbs.rebase(keep=[], take=["trim"], who="ada") is None
    assert (await bench.again()).keeper.state.conflicts == ()
