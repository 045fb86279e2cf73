"""Single episodes that are judged at once, later or by silence, on devices that come and go, in any order of what happens."""

import msgspec
from episodes import make_episode
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule
from lives import RUNNING, Life, chances, fleets, hows, prunings, ramps, scores

from agentd.records import (
    Episode,
    Feedback,
    Goal,
    Metric,
    Outcome,
    Phase,
    Purpose,
    ReleaseKind,
    ReleaseSettings,
    Role,
    WindowState,
)
from agentd.release import machine, windows

SECONDS = 100.0
SCORE = Metric(name="score", low=0.0, high=10.0)


class LifeOnSingles(Life):
    """Single episodes: each ends, is judged at once, later or by silence, and enters in its turn."""

    @initialize(
        exposure=st.sampled_from([0.2, 0.5]),
        silent_score=scores,
        goal=st.sampled_from(Goal),
        selection=st.integers(0, 2),
        pairs=st.integers(5, 40),
        prune=prunings,
        ramp=ramps,
        ready=fleets,
        far=hows,
    )
    def begin(self, *, goal, selection, pairs, prune, ready, far, **rules):
        chosen = {"goal": goal, "margin": 0.1, "selection_pairs": selection, "max_pairs": pairs, "step_pairs": 1}
        settings = ReleaseSettings(prune_after_pairs=prune[0], prune_below=prune[1], **chosen, **rules)
        self.start(settings, kind=ReleaseKind.PROPOSAL, ready=ready, far=far)
        self.waiting = windows.Waiting()
        self.ended: list[str] = []
        """The plans of the episodes that have ended, oldest first."""

    def difference(self):
        """The mean of (Y - c) (A/p - (1 - A)/(1 - p)), c the mean of both roles' weighted sums by then, kept in the range."""
        sums = {Role.STABLE: 0.0, Role.CANDIDATE: 0.0}
        for n, one in enumerate(self.ledger):
            centre = min(max(sum(sums.values()) / (2 * n), 0.0), 1.0) if n else 0.5
            score = self.release.settings.silent_score if one.score is None else one.score
            share = one.probability if one.role is Role.CANDIDATE else 1.0 - one.probability
            for role in sums:
                sums[role] += centre + ((score - centre) / share if role is one.role else 0.0)
        return (sums[Role.CANDIDATE] - sums[Role.STABLE]) / len(self.ledger) if self.ledger else None

    @rule(count=st.integers(1, 6), chance=chances, score=st.floats(0, 10))
    def episodes_are_answered_at_once(self, count, chance, score):
        for number in range(count):
            self.end(number, (chance + number * 0.37) % 1.0)
            self.somebody_answers(which=-1, score=score)
            self.settle()
            self.the_ramp_is_looked_at(forced=False)

    @rule(count=st.integers(1, 6), chance=chances)
    def episodes_wait_for_answers(self, count, chance):
        for number in range(count):
            self.end(number, (chance + number * 0.37) % 1.0)

    @rule(where=st.integers(0, 5), chance=chances, guardrail=st.sampled_from(["", "too hot"]))
    def an_episode_fails(self, where, chance, guardrail):
        role = self.end(where, chance, aborted=True, guardrail=guardrail)
        if role is Role.CANDIDATE:
            self.foresee()

    def end(self, where: int, chance: float, *, aborted: bool = False, guardrail: str = "") -> Role | None:
        """An episode is drawn, run and over: its role; None where none is to be drawn."""
        there = [device for device in self.exposed if device in self.ready]
        under_way = self.waiting.count("r")
        assert machine.missing(self.release, under_way) == max(0, self.release.settings.max_pairs - len(self.ledger) - under_way)
        if not there or self.release.phase not in RUNNING or not machine.missing(self.release, under_way):
            return None
        name = str(len(self.ended))
        plan = machine.draw_single(self.release, id=name, device=there[where % len(there)], chance=chance, at=self.now)
        role = plan.order[0]
        judged = Feedback(episode=name, score=0.0, normalised=0.0) if aborted else None
        violated = guardrail if role is Role.CANDIDATE else ""
        episode = self.episode(name, role, Outcome.ABORTED if aborted else Outcome.FINISHED)
        self.waiting.put(windows.begin(episode, plan, seconds=SECONDS, feedback=judged, guardrail=violated))
        self.ended.append(name)
        return role

    def episode(self, name: str, role: Role, outcome: Outcome) -> Episode:
        revision = "c" if role is Role.CANDIDATE else "s"
        return make_episode(id=name, revision=revision, role=role, purpose=Purpose.UNSOLICITED, outcome=outcome, started_at=self.now - 1.0)

    def foresee(self) -> None:
        """Guardrails look at what waits, and at nothing else."""
        waiting = [windows.evidence(window, at=self.now) for window in self.waiting.of("r")]
        verdict = machine.foresee(self.release, waiting)
        gone, ends = list(self.withdrawn), False
        for one in waiting:
            if one.guardrail:
                ends = ends or not self.goes_alone(one, gone)
                gone += [one.device] * (one.device not in gone)
        assert (verdict is not None) == (ends or self.is_rate([*self.ledger, *waiting], gone))
        if verdict is not None:
            assert (verdict.phase, verdict.stage) == (Phase.REJECTED, "guardrail")
            self.commit(self.release, verdict)

    @rule(which=st.integers(0, 40), score=st.floats(0, 10))
    def somebody_answers(self, which, score):
        window = self.waiting.get(self.ended[which % len(self.ended)]) if self.ended else None
        if window is not None and window.feedback is None and not windows.is_closed(window, self.now):
            given = Feedback(episode=window.episode, score=score, normalised=score / 10.0)
            self.waiting.put(windows.answer(window, given, at=self.now))

    @rule()
    def the_daemon_is_restarted(self):
        self.waiting = windows.Waiting(list(self.waiting))  # as the store has them

    def settle(self):
        while (due := self.waiting.due(self.now)) is not None:
            if due.feedback is None:
                due, _ = windows.close(due, SCORE, 0.0)
            single = windows.evidence(due, at=self.now)
            assert (single.score is None) == due.feedback.silent
            self.observe(single)
            self.waiting.put(msgspec.structs.replace(due, state=WindowState.ENTERED))
        assert all(not windows.is_closed(window, self.now) for window in self.waiting)

    @invariant()
    def its_evidence_is_the_episodes_in_the_order_in_which_they_ended_and_each_once(self):
        assert [one.id for one in self.ledger] == self.ended[: len(self.ledger)]
        assert self.release.silent == sum(one.score is None for one in self.ledger)


LifeOnSingles.TestCase.settings = settings(max_examples=settings.default.max_examples, stateful_step_count=30, deadline=None)
TestLifeOnSingles = LifeOnSingles.TestCase
