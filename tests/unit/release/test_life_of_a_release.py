"""Random operators, crashes, devices and pairs in any order: whatever happens, a release stays a legal one and agrees with its ledger."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule
from lives import COUNTING, RUNNING, Life, fleets, hows, prunings, ramps, scores

from agentd.errors import ReleaseError
from agentd.records import Goal, Pair, ReleaseKind, ReleaseSettings
from agentd.release import machine


class LifeOnPairs(Life):
    """Pairs of a fleet, with an anchor where the goal asks for one."""

    @initialize(
        kind=st.sampled_from(ReleaseKind),
        goal=st.sampled_from(Goal),
        selection=st.integers(0, 4),
        pairs=st.integers(5, 40),
        prune=prunings,
        difference_range=st.sampled_from([1.0, 1.0, 0.5]),
        ramp=ramps,
        step_pairs=st.integers(1, 3),
        ready=fleets,
        far=hows,
    )
    def begin(self, *, kind, goal, selection, pairs, prune, ready, far, **rules):
        chosen = {"goal": goal, "margin": 0.1, "selection_pairs": selection, "max_pairs": pairs, "max_lost_pairs": 3, "futile_below": 0.1}
        settings = ReleaseSettings(prune_after_pairs=prune[0], prune_below=prune[1], stratify=("site",), **chosen, **rules)
        self.start(settings, kind=kind, ready=ready, far=far)

    def difference(self):
        plain = [pair for pair in self.ledger if not pair.anchored]
        return sum(pair.candidate - pair.reference for pair in plain) / len(plain) if plain else None

    @rule(count=st.integers(1, 12), where=st.integers(0, 5), reference=scores, candidate=scores, anchored=st.booleans())
    def pairs_come_in(self, *, count, where, reference, candidate, anchored):
        for number in range(count):
            self.pair(where + number, reference, candidate, anchored=anchored)

    @rule(count=st.integers(1, 20), gain=st.sampled_from([-0.02, 0.02, 0.4, 0.4]))
    def every_device_gives_pairs_alike(self, count, gain):
        for number in range(count):
            self.pair(number, 0.5, 0.5 + gain + 0.01 * (number % 2))
            self.the_ramp_is_looked_at(forced=False)

    @rule(where=st.integers(0, 5), count=st.integers(1, 4), guardrail=st.sampled_from(["", "too hot", "too hot"]))
    def the_candidate_fails(self, where, count, guardrail):
        for number in range(count):
            self.pair(where + number, 0.5, 0.0, candidate_aborted=True, guardrail=guardrail)

    def pair(self, where: int, reference: float, candidate: float, **fields) -> None:
        known = [*self.exposed, *self.withdrawn] or ["robot"]  # of one that went back a pair may still be under way
        self.now += 1
        device = known[where % len(known)]
        self.observe(Pair(id=str(len(self.ledger)), release="r", device=device, reference=reference, candidate=candidate, **fields))

    @rule()
    def a_pair_is_lost(self):
        before = self.release
        after, verdict = machine.lost(before, at=self.now)
        if before.phase in COUNTING:
            self.lost += 1
            assert (verdict is not None) == (self.lost > 3 * max(1, len(before.fleet)))
        self.commit(after, verdict)

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


LifeOnPairs.TestCase.settings = settings(max_examples=settings.default.max_examples, stateful_step_count=30, deadline=None)
TestLifeOnPairs = LifeOnPairs.TestCase
