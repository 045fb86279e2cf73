"""Lives of a release for hypothesis: random operators, crashes and devices, and what must hold whatever happens.

The machine and its fleet are held against plain lists: what came in, who was exposed, and who went back.
"""

import math
from itertools import pairwise

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agentd.errors import IllegalTransition
from agentd.records import (
    Goal,
    Pair,
    Phase,
    Release,
    ReleaseKind,
    ReleaseSettings,
    Role,
    Single,
    Verdict,
)
from agentd.release import fleet, machine

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
COUNTING = RUNNING | {Phase.PAUSED}

scores = st.floats(0, 1)
verbs = st.sampled_from(["moves", "starts", "pauses", "resumes", "resumes", "waits", "waits"])
people = st.sampled_from(["agentd", "ann", "bob"])
devices = st.sampled_from([f"robot-{number}" for number in range(6)])
ramps = st.sampled_from([(0.34, 1.0), (0.5,), (0.5, 1.0), (0.2, 0.5, 1.0), ()])
hows = st.sampled_from(["exposed"] * 6 + ["screened", "proposed"])
fleets = st.sampled_from([6, 5, 1]).map(lambda count: {f"robot-{number}" for number in range(count)})
chances = st.floats(0, 1, exclude_max=True)
prunings = st.tuples(st.integers(1, 12), st.floats(-1, 0.1))


class Life(RuleBasedStateMachine):
    """`release` is what the store has; everything else is the model."""

    def start(self, rules: ReleaseSettings, *, kind: ReleaseKind, ready: set[str], far: str) -> None:
        """`far`: how far it has come before anything happens. Few lives would come to their canary if each began at its very beginning."""
        self.ledger: list[Pair | Single] = []
        self.lost, self.now = 0, 1.0
        self.ready, self.exposed, self.withdrawn = set(ready), [], []
        self.ramped = False
        """Whether the last step of the ramp was found to be over, with the devices that are exposed now."""
        self.release = machine.begin(None, id="r", agent="a", candidate="c", reference="s", settings=rules, kind=kind, anchor="old", at=0.0)
        for phase in (Phase.VALIDATED, Phase.SCREENED) if far != "proposed" and kind is ReleaseKind.PROPOSAL else ():
            self.release = machine.advance(self.release, phase, at=0.0, who="agentd", reason="")
        if far == "exposed":
            self.commit(machine.start(self.release, at=1.0), None)
            self.the_ramp_is_looked_at(forced=False)

    def commit(self, release: Release, verdict: Verdict | None) -> None:
        """Through the store and back, then the verdict: as the daemon does."""
        self.release = msgspec.msgpack.decode(msgspec.msgpack.encode(release), type=Release)
        assert self.release == release
        if verdict is not None:
            self.release = machine.conclude(self.release, verdict, at=self.now)
            assert self.release.phase is verdict.phase
            assert verdict.reason

    # --- operators and time -------------------------------------------------------------------------------------------

    @rule(verb=verbs, who=people, to=st.sampled_from(Phase), ends=st.integers(0, 9), later=st.sampled_from([1.0, 60.0, 101.0, 30_000.0]))
    def somebody_decides_or_time_passes(self, *, verb, who, to, ends, later):
        self.now += later if verb == "waits" else 1.0
        running, paused = self.release.phase in RUNNING, self.release.phase is Phase.PAUSED
        match verb:
            case "moves":
                self.move(to, who, ends=ends == 9)
            case "starts":
                self.start_canary(who)
            case "pauses" if running:
                self.commit(machine.pause(self.release, at=self.now, who=who), None)
            case "resumes" if paused:
                self.commit(machine.resume(self.release, at=self.now, who=who), None)
            case "waits":
                self.commit(*machine.expire(self.release, self.now))
                self.settle()

    def settle(self) -> None:
        """What a daemon does by its clock."""

    def move(self, to: Phase, who: str, *, ends: bool) -> None:
        before = self.release
        try:
            after = machine.advance(before, to, at=self.now, who=who, reason="because")
        except IllegalTransition:
            assert to not in LEGAL.get(before.phase, "").split() or (before.phase is Phase.PAUSED and to is not before.paused_from)
        else:
            assert to in LEGAL[before.phase].split()
            assert after.history[-1].who == who
            if before.phase is Phase.PAUSED and to in RUNNING:
                assert to is before.paused_from
            if to not in ENDS | {"promoted"} or ends:  # most lives are to go on
                self.commit(after, None)

    def start_canary(self, who: str) -> None:
        try:
            self.commit(machine.start(self.release, at=self.now, who=who), None)
        except IllegalTransition:
            assert self.release.phase not in {Phase.SCREENED, Phase.AWAITING_APPROVAL}

    # --- the fleet ----------------------------------------------------------------------------------------------------

    @rule(device=devices)
    def a_device_joins_or_leaves(self, device):
        self.ready ^= {device}

    @rule(forced=st.booleans())
    def the_ramp_is_looked_at(self, forced):
        if self.release.phase not in RUNNING:
            return
        before, rules = self.release, self.release.settings
        labels = {device: {"site": device[-1]} for device in sorted(self.ready)}
        after = fleet.widen(before, labels, over=forced)
        assert fleet.widen(before, dict(reversed(labels.items())), over=forced) == after  # whatever the order in which they came
        assert before.fleet.items() <= after.fleet.items()  # nobody's part is lost or changed
        added = after.fleet.keys() - before.fleet.keys()
        there = [device for device in self.exposed if device in self.ready]
        wanted = [device for device in there if self.shown(device) < rules.step_pairs]
        if added or (after.step > before.step and after.step == max(1, len(rules.ramp))):
            assert forced or not there or (not wanted and self.is_promising())
        if added:
            assert added <= self.ready
            everybody = (self.ready - set(self.withdrawn)) | set(self.exposed)
            assert len(there) + len(added) <= max(1, int((rules.ramp or (0.0,))[-1] * len(everybody) + 1e-9))
            assert fleet.widen(after, labels) is after  # the next step needs what this one shows
        self.exposed += sorted(added)
        self.ramped = fleet.is_covered(after)
        self.commit(after, None)

    def shown(self, device: str) -> int:
        return sum(evidence.device == device for evidence in self.ledger)

    def is_promising(self) -> bool:
        line = self.release.settings.prune_below - (self.release.settings.margin if self.release.settings.goal is Goal.NO_WORSE else 0.0)
        return self.difference() is None or self.difference() >= line - 1e-9

    def difference(self) -> float | None:
        raise NotImplementedError

    # --- evidence -----------------------------------------------------------------------------------------------------

    def observe(self, evidence: Pair | Single) -> None:
        before = self.release
        after, verdict = machine.observe(before, evidence, at=self.now)
        if before.phase not in COUNTING:
            assert (after, verdict) == (before, None)
            return
        again = machine.observe(msgspec.msgpack.decode(msgspec.msgpack.encode(before), type=Release), evidence, at=self.now)
        assert again == (after, verdict)  # a daemon that died before it could commit is told again, and decides the same
        self.ledger.append(evidence)
        alone = self.goes_alone(evidence, self.withdrawn) if evidence.guardrail else True
        if not alone:
            assert (verdict.phase, verdict.stage) == (Phase.REJECTED, "guardrail")
            assert verdict.reason.startswith(evidence.guardrail)
        elif evidence.guardrail and evidence.device not in self.withdrawn:
            self.withdrawn.append(evidence.device)
            self.exposed.remove(evidence.device)
        self.check(before, after, verdict, alone=alone)
        self.commit(after, verdict)

    def goes_alone(self, evidence: Pair | Single, withdrawn: list[str]) -> bool:
        """A device's own affair: there is another one in the release, and no other one has failed."""
        known = {*self.exposed, *self.withdrawn}
        return evidence.device in known and len(known) > 1 and set(withdrawn) <= {evidence.device}

    def is_rate(self, ledger, withdrawn: list[str]) -> bool:
        """The guardrails on the share of aborted episodes, with what went along with a device left out."""
        runs = [(one.candidate_aborted, one.reference_aborted) for one in ledger if isinstance(one, Pair)]
        mine = [one.aborted for one in ledger if isinstance(one, Single) and one.role is Role.CANDIDATE] + [run[0] for run in runs]
        others = [one.aborted for one in ledger if isinstance(one, Single) and one.role is Role.STABLE] + [run[1] for run in runs]
        aborted = sum(mine) - len(withdrawn)
        if aborted >= 3 and aborted / len(mine) >= 0.5:
            return True
        return min(len(mine), len(others)) >= 10 and aborted / len(mine) > sum(others) / len(others)

    def check(self, before: Release, after: Release, verdict: Verdict | None, *, alone: bool) -> None:
        earned = all(test.decided for test in machine.weighing.promotion_tests(after).values())
        if alone and (verdict is None or verdict.stage != "guardrail") and "outside the declared range" not in str(verdict):
            assert not self.is_rate(self.ledger, self.withdrawn)
        if verdict is None:
            assert len(self.ledger) < before.settings.max_pairs or (earned and before.phase is not Phase.PAUSED)
            assert not (earned and before.phase is Phase.CONFIRMATION and (self.ramped or not self.exposed + self.withdrawn))
        elif verdict.phase is Phase.PROMOTED:
            assert earned
            assert before.phase is Phase.CONFIRMATION or (before.phase is Phase.SELECTION and not before.settings.selection_pairs)
            assert after.superiority.log_e_max >= -math.log(before.settings.alpha)
            assert self.ramped or before.kind is ReleaseKind.PROBE or not self.exposed + self.withdrawn
        elif verdict.phase is Phase.PRUNED:
            assert before.kind is ReleaseKind.PROPOSAL
            assert after.pairs >= before.settings.prune_after_pairs

    # --- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def its_history_is_a_legal_way(self):
        phases = [change.phase for change in self.release.history]
        assert phases[-1] is self.release.phase
        assert phases[0] is (Phase.SCREENED if self.release.kind is ReleaseKind.PROBE else Phase.PROPOSED)
        assert all(to in LEGAL[was].split() for was, to in pairwise(phases))
        assert [change.at for change in self.release.history] == sorted(change.at for change in self.release.history)

    @invariant()
    def it_agrees_with_its_ledger(self):
        release, plain = self.release, [one for one in self.ledger if isinstance(one, Single) or not one.anchored]
        assert machine.agrees(release, self.ledger)
        assert release.pairs == len(plain)
        assert release.lost_pairs == self.lost
        assert release.superiority.n + release.superiority.learned <= release.pairs
        assert (release.difference is None) == (self.difference() is None)
        assert release.difference is None or math.isclose(release.difference, self.difference(), abs_tol=1e-9)

    @invariant()
    def it_touches_the_devices_of_its_ramp_and_knows_what_each_has_given(self):
        assert fleet.exposed(self.release) == tuple(device for device in self.release.fleet if device in self.exposed)
        assert set(self.release.fleet) == {*self.exposed, *self.withdrawn}
        assert set(fleet.withdrawn(self.release)) == set(self.withdrawn)
        assert all(part.pairs == self.shown(device) for device, part in self.release.fleet.items())

    @invariant()
    def an_end_is_an_end(self):
        assert (self.release.ended_at is not None) == (self.release.phase in ENDS | {"promoted"})
        assert (self.release.phase is Phase.PAUSED) == (self.release.paused_from is not None)
