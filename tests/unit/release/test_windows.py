"""Windows: an episode enters each test once and in its turn, judged by its answer or by silence; in any order of what happens."""

import msgspec
import pytest
from episodes import make_episode
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from agentd.errors import FeedbackRefused
from agentd.records import Feedback, Metric, Outcome, PairPlan, Phase, Purpose, Release, ReleaseSettings, Role, WindowState
from agentd.release import machine, windows

SECONDS = 100.0
SCORE = Metric(name="score", low=0.0, high=10.0)


def episode(name, at=0.0, *, role=Role.STABLE, **changes):
    return make_episode(id=name, device="alice", role=role, purpose=Purpose.UNSOLICITED, started_at=at - 1.0, **changes)


def plan(name, *, role=Role.STABLE, release="rel"):
    return PairPlan(id=name, release=release, agent="a", device="http", order=(role,), reference="r", candidate="c", probability=0.5)


def window(name, at=0.0, *, role=Role.STABLE, release="", **changes):
    drawn = plan(f"p-{name}", role=role, release=release) if release else None
    return windows.begin(episode(name, at, role=role, **changes), drawn, seconds=SECONDS)


def praise(name, score=9.0):
    return Feedback(episode=name, score=score, normalised=score / 10.0)


def test_a_window_is_open_from_the_end_of_its_episode_and_an_answer_is_in_time_until_it_closes():
    opened = window("e", at=50.0)
    assert (opened.ended_at, opened.closes_at, opened.state) == (50.0, 150.0, WindowState.OPEN)
    assert windows.answer(opened, praise("e"), at=149.9).state is WindowState.JUDGED
    with pytest.raises(FeedbackRefused, match="is closed"):
        windows.answer(opened, praise("e"), at=150.0)


def test_what_somebody_said_is_kept_with_the_episode_alone_and_is_erased_with_it():
    said = msgspec.structs.replace(praise("e"), text="Dear Ada, ...")
    assert b"Ada" not in msgspec.msgpack.encode(windows.answer(window("e"), said, at=1.0))
    assert b"alice" not in msgspec.msgpack.encode(window("e"))


def test_a_second_answer_is_refused():
    judged = windows.answer(window("e"), praise("e"), at=1.0)
    with pytest.raises(FeedbackRefused, match="already"):
        windows.answer(judged, praise("e", 1.0), at=2.0)


def test_silence_is_the_declared_score_and_says_so():
    closed, silence = windows.close(window("e"), SCORE, 2.5)
    assert (closed.state, closed.feedback) == (WindowState.JUDGED, msgspec.structs.replace(silence, text=""))
    assert (silence.score, silence.normalised, silence.silent, silence.text) == (2.5, 0.25, True, "Nobody answered within 100 s.")


def test_what_it_says_of_a_candidate_is_a_single_episode_and_silence_has_no_score_of_its_own():
    cost = Metric(name="cost", high=4.0, higher_is_better=False)
    judged = windows.answer(
        window("e", role=Role.CANDIDATE, release="rel"), msgspec.structs.replace(praise("e"), metrics={"cost": 1.0}), at=1.0
    )
    single = windows.evidence(judged, metrics=[cost], at=5.0)
    assert (single.id, single.release, single.device, single.role, single.probability) == ("p-e", "rel", "http", Role.CANDIDATE, 0.5)
    assert (single.score, single.metrics, single.at) == (0.9, {"cost": 0.75}, 5.0)
    closed, _ = windows.close(window("e", release="rel"), SCORE, 5.0)
    silent = windows.evidence(closed, metrics=[cost], at=5.0)
    assert (silent.score, silent.metrics) == (None, {"cost": 0.0})
    assert windows.evidence(window("e"), at=5.0) is None  # of no release


def test_nobody_overtakes_in_a_release_however_soon_it_is_judged():
    waiting = windows.Waiting([window("slow", 0.0, release="rel"), window("quick", 1.0, release="rel")])
    waiting.put(windows.answer(waiting.get("quick"), praise("quick"), at=2.0))
    assert waiting.due(2.0) is None
    assert waiting.next_close() == 100.0
    assert waiting.due(100.0).episode == "slow"


def test_a_release_does_not_wait_for_what_ended_before_it_began():
    waiting = windows.Waiting([window("old", 0.0), window("new", 1.0, role=Role.CANDIDATE, release="rel")])
    waiting.put(windows.answer(waiting.get("new"), praise("new"), at=2.0))
    assert waiting.due(2.0).episode == "new"


def test_the_guardrails_look_at_what_still_waits_and_the_tests_do_not():
    release = Release(
        id="rel", agent="a", proposal="", candidate="c", reference="r", phase=Phase.CONFIRMATION,
        settings=ReleaseSettings(exposure=0.5), begun_at=0.0,
    )  # fmt: skip
    failed = [window(f"e{n}", n, role=Role.CANDIDATE, release="rel", outcome=Outcome.ABORTED) for n in range(3)]
    fine = [window(f"f{n}", n, release="rel") for n in range(3)]
    assert machine.foresee(release, [windows.evidence(one, at=0.0) for one in (*fine, *failed[:2])]) is None
    verdict = machine.foresee(release, [windows.evidence(one, at=0.0) for one in (*fine, *failed)])
    assert (verdict.phase, verdict.stage) == (Phase.REJECTED, "guardrail")
    violated = msgspec.structs.replace(failed[0], guardrail="an action was outside the envelope")
    assert "envelope" in machine.foresee(release, [windows.evidence(violated, at=0.0)]).reason


def test_no_more_is_drawn_than_the_release_can_still_use():
    release = Release(
        id="rel", agent="a", proposal="", candidate="c", reference="r", phase=Phase.CONFIRMATION,
        settings=ReleaseSettings(exposure=0.5, max_pairs=10), begun_at=0.0, pairs=4,
    )  # fmt: skip
    assert machine.missing(release, 5) == 1
    assert machine.missing(release, 6) == machine.missing(release, 60) == 0


class AnyOrder(RuleBasedStateMachine):
    """Episodes end, are answered or not, time passes, daemons are restarted: what enters is what a plain list says."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.waiting = windows.Waiting()
        self.ended = []
        self.answered = set()
        self.weighed = []
        self.entered = []

    @rule(release=st.sampled_from(["", "r1", "r2"]), candidate=st.booleans())
    def end(self, release, candidate):
        role = Role.CANDIDATE if candidate and release else Role.STABLE
        self.ended.append(window(f"e{len(self.ended)}", self.now, role=role, release=release))
        self.waiting.put(self.ended[-1])

    @rule(chosen=st.integers(0, 30))
    def answer(self, chosen):
        name = self.ended[chosen % len(self.ended)].episode if self.ended else ""
        current = self.waiting.get(name)
        if current is not None and current.feedback is None and not windows.is_closed(current, self.now):
            self.answered.add(name)
            self.waiting.put(windows.answer(current, praise(name), at=self.now))

    @rule(seconds=st.sampled_from([1.0, 30.0, 60.0, 150.0]))
    def time(self, seconds):
        self.now += seconds

    @rule()
    def restart(self):
        self.waiting = windows.Waiting(list(self.waiting))  # as the store has them: in the order in which they were opened

    @rule()
    def settle(self):
        while (due := self.waiting.due(self.now)) is not None:
            if due.feedback is None:
                due, _ = windows.close(due, SCORE, 0.0)
            said, state = (due.episode, due.feedback.silent), WindowState.ENTERED
            if due.release and due.state is not WindowState.WEIGHED:
                self.weighed.append(said)
                state = WindowState.ENTERED if due.role is Role.CANDIDATE else WindowState.WEIGHED
            if state is WindowState.ENTERED:
                self.entered.append(said)
            self.waiting.put(msgspec.structs.replace(due, state=state))
        # whoever is left waits for somebody no younger who may still be judged
        for left in self.waiting:
            elders = [one for one in self.ended if int(one.episode[1:]) <= int(left.episode[1:])]
            assert any(one.episode not in self.answered and not windows.is_closed(one, self.now) for one in elders)

    def teardown(self):
        self.now += 2 * SECONDS
        self.settle()
        assert (len(self.waiting), self.waiting.next_close()) == (0, None)
        # each once, by its own answer or by silence, and in order: the watch's those of stable, a release's its own
        outcome = {one.episode: one.episode not in self.answered for one in self.ended}
        for seen, of in (
            (self.entered, self.ended),
            (self.weighed, [one for one in self.ended if one.release]),
        ):
            assert sorted(seen) == sorted((one.episode, outcome[one.episode]) for one in of)
        stable = [one.episode for one in self.ended if one.role is Role.STABLE]
        assert [name for name, _ in self.entered if name in stable] == stable
        for release in ("r1", "r2"):
            mine = [one.episode for one in self.ended if one.release == release]
            assert [name for name, _ in self.weighed if name in mine] == mine


AnyOrder.TestCase.settings = settings(max_examples=settings.default.max_examples, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
