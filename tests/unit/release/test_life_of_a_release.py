"""Random operators, crashes and pairs in any order: whatever happens, a release stays a legal one and agrees with its ledger."""

import math
from itertools import pairwise

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentd.errors import IllegalTransition, ReleaseError
from agentd.records import Goal, Pair, Phase, Release, ReleaseKind, ReleaseSettings, Verdict
from agentd.release import machine

# The way of a release, written down a second time and as an author would draw it: the table must not allow more.
LEGAL = {
    "proposed": "validated rejected inconclusive aborted",
    "validated": "screened rejected inconclusive aborted",
    "screened": "awaiting_approval selection confirmation promoted rejected inconclusive aborted",
    "awaiting_approval": "selection confirmation promoted rejected inconclusive aborted",
    "selection": "confirmation paused promoted pruned rejected inconclusive aborted",
    "confirmation": "paused promoted pruned rejected inconclusive aborted",
    "paused": "selection confirmation promoted pruned rejected inconclusive aborted",
    "promoted": "rolled_back",
}
ENDS = {"rejected", "pruned", "inconclusive", "aborted", "rolled_back"}
RUNNING = {Phase.SELECTION, Phase.CONFIRMATION}

scores = st.floats(0, 1)
people = st.sampled_from(["agentd", "ann", "bob"])


class LifeOfARelease(RuleBasedStateMachine):
    """`release` is what the store has; `ledger` and `lost` are the model."""

    release: Release
    ledger: list[Pair]
    lost: int
    now: float

    @initialize(
        kind=st.sampled_from(ReleaseKind),
        goal=st.sampled_from(Goal),
        selection=st.integers(0, 4),
        pairs=st.integers(1, 30),
        prune=st.tuples(st.integers(1, 12), st.floats(-1, 0.3)),
        difference_range=st.sampled_from([0.5, 1.0]),
    )
    def begin(self, *, kind, goal, selection, pairs, prune, difference_range):
        rules = ReleaseSettings(
            goal=goal,
            margin=0.1,
            selection_pairs=selection,
            max_pairs=pairs,
            prune_after_pairs=prune[0],
            prune_below=prune[1],
            difference_range=difference_range,
            max_lost_pairs=3,
            futile_below=0.1,
        )
        self.ledger, self.lost, self.now = [], 0, 1.0
        self.release = machine.begin(None, id="r", agent="a", candidate="c", reference="s", settings=rules, kind=kind, anchor="old", at=0.0)

    def commit(self, release: Release, verdict: Verdict | None) -> None:
        """Through the store and back, then the verdict: as the daemon does."""
        self.release = msgspec.msgpack.decode(msgspec.msgpack.encode(release), type=Release)
        assert self.release == release
        if verdict is not None:
            self.release = machine.conclude(self.release, verdict, at=self.now)
            assert self.release.phase is verdict.phase
            assert verdict.reason

    @rule(to=st.sampled_from(Phase), who=people)
    def somebody_moves_it(self, to, who):
        before = self.release
        self.now += 1
        try:
            after = machine.advance(before, to, at=self.now, who=who, reason="because")
        except IllegalTransition:
            assert to not in LEGAL.get(before.phase, "").split() or (before.phase is Phase.PAUSED and to is not before.paused_from)
        else:
            assert to in LEGAL[before.phase].split()
            assert after.history[-1].who == who
            if before.phase is Phase.PAUSED and to in RUNNING:
                assert to is before.paused_from
            self.commit(after, None)

    @rule(who=people)
    def the_canary_starts(self, who):
        try:
            self.commit(machine.start(self.release, at=self.now, who=who), None)
        except IllegalTransition:
            assert self.release.phase not in {Phase.SCREENED, Phase.AWAITING_APPROVAL}

    @precondition(lambda self: self.release.phase in RUNNING)
    @rule(who=people)
    def an_operator_pauses(self, who):
        self.commit(machine.pause(self.release, at=self.now, who=who), None)

    @precondition(lambda self: self.release.phase is Phase.PAUSED)
    @rule(who=people)
    def an_operator_resumes(self, who):
        self.commit(machine.resume(self.release, at=self.now, who=who), None)

    @rule(
        count=st.integers(1, 12), reference=scores, candidate=scores, aborted=st.booleans(), guardrail=st.booleans(), anchored=st.booleans()
    )
    def pairs_come_in(self, *, count, reference, candidate, aborted, guardrail, anchored):
        for _ in range(count):
            before = self.release
            pair = Pair(
                id=str(len(self.ledger)),
                release="r",
                device="d",
                reference=reference,
                candidate=0.0 if aborted else candidate,
                candidate_aborted=aborted,
                guardrail="too hot" if guardrail and aborted else "",
                anchored=anchored,
            )
            self.now += 1
            after, verdict = machine.observe(before, pair, at=self.now)
            if before.phase not in RUNNING | {Phase.PAUSED}:
                assert (after, verdict) == (before, None)
                return
            self.ledger.append(pair)
            self.check(before, after, verdict, pair)
            self.commit(after, verdict)

    def check(self, before: Release, after: Release, verdict: Verdict | None, pair: Pair) -> None:
        if pair.guardrail:
            assert verdict is not None
            assert verdict.stage == "guardrail"
        if verdict is None:
            assert len(self.ledger) < before.settings.max_pairs
            return
        if verdict.phase is Phase.PROMOTED:
            assert before.phase is Phase.CONFIRMATION or before.settings.selection_pairs == 0
            assert after.superiority.log_e_max >= -math.log(before.settings.alpha)
        if verdict.phase is Phase.PRUNED:
            assert before.kind is ReleaseKind.PROPOSAL
            assert after.pairs >= before.settings.prune_after_pairs

    @rule()
    def a_pair_is_lost(self):
        before = self.release
        after, verdict = machine.lost(before, at=self.now)
        if before.phase in RUNNING | {Phase.PAUSED}:
            self.lost += 1
            assert (verdict is not None) == (self.lost > 3)
        self.commit(after, verdict)

    @rule(later=st.floats(0, 50_000))
    def time_passes(self, later):
        self.now += later
        self.commit(*machine.expire(self.release, self.now))

    @rule(reference=scores, candidate=scores)
    def the_daemon_dies_before_it_could_commit(self, reference, candidate):
        before = msgspec.msgpack.encode(self.release)
        pair = Pair(id="x", release="r", device="d", reference=reference, candidate=candidate)
        after, verdict = machine.observe(self.release, pair, at=self.now)
        again = machine.observe(msgspec.msgpack.decode(before, type=Release), pair, at=self.now)
        assert again == (after, verdict)  # the same evidence, delivered again, decides the same
        assert msgspec.msgpack.encode(self.release) == before  # and nothing has leaked into what was committed

    @invariant()
    def its_history_is_a_legal_way(self):
        phases = [change.phase for change in self.release.history]
        assert phases[-1] is self.release.phase
        assert phases[0] is (Phase.SCREENED if self.release.kind is ReleaseKind.PROBE else Phase.PROPOSED)
        assert all(to in LEGAL[was].split() for was, to in pairwise(phases))
        assert [change.at for change in self.release.history] == sorted(change.at for change in self.release.history)

    @invariant()
    def it_agrees_with_its_ledger(self):
        release, plain = self.release, [pair for pair in self.ledger if not pair.anchored]
        assert machine.agrees(release, self.ledger)
        assert release.pairs == len(plain)
        assert release.lost_pairs == self.lost
        assert release.superiority.n + release.superiority.learned <= release.pairs

    @invariant()
    def an_end_is_an_end(self):
        assert (self.release.ended_at is not None) == (self.release.phase in ENDS | {"promoted"})
        assert (self.release.phase is Phase.PAUSED) == (self.release.paused_from is not None)

    @invariant()
    def pairs_are_drawn_only_while_it_runs(self):
        try:
            plan = machine.draw_pair(self.release, id="x", device="d", seed=1, flip=True, at=self.now)
        except ReleaseError:
            assert self.release.phase not in RUNNING
        else:
            assert self.release.phase in RUNNING
            assert plan.reference in {"s", "old"}
            assert plan.reference == "s" or self.release.settings.goal is Goal.NO_WORSE


LifeOfARelease.TestCase.settings = settings(max_examples=settings.default.max_examples, stateful_step_count=30, deadline=None)
TestLifeOfARelease = LifeOfARelease.TestCase
