"""The watch on the stable revision: burn-in, bound, alarm, and what a probe makes of it."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.records import Change, Pair, Phase, ReleaseKind, ReleaseSettings, Watch, WatchSettings
from agentd.release import machine, watch

SETTINGS = WatchSettings(burn_in=20, good_after=50)


def watched(state: Watch, scores, settings: WatchSettings = SETTINGS) -> tuple[Watch, int | None]:
    """The watch after the scores, and at which of them (from 1) it raised the alarm."""
    alarm = None
    for count, score in enumerate(scores, start=1):
        state, alarmed = watch.observe(state, float(score), settings=settings)
        alarm = count if alarmed else alarm
    return state, alarm


def healthy(mean=0.9, deviation=0.05, episodes=200, seed=0):
    return np.clip(np.random.default_rng(seed).normal(mean, deviation, episodes), 0, 1)


def test_there_is_no_bound_before_the_burn_in_is_over():
    state, _ = watched(watch.begin("a"), healthy(episodes=19))
    assert state.bound is None
    state, _ = watched(state, [0.9])
    assert 0.7 < state.bound < 0.9


def test_the_bound_rises_as_episodes_come_in_and_then_stays():
    state, bounds = watch.begin("a"), []
    for score in healthy(episodes=400):
        state, _ = watch.observe(state, float(score), settings=SETTINGS)
        bounds.append(state.bound or 0.0)
    assert bounds == sorted(bounds)
    assert bounds[-1] > bounds[19] + 0.05
    assert bounds[-1] == bounds[SETTINGS.burn_in * watch.BURN_INS - 1]
    assert state.burn_in == ()


def test_a_healthy_revision_raises_no_alarm():
    _, alarm = watched(watch.begin("a"), healthy(episodes=3000))
    assert alarm is None


@pytest.mark.parametrize(("fallen", "within"), [(0.15, 12), (0.6, 40)])
def test_a_fall_raises_one_alarm(fallen, within):
    state, _ = watched(watch.begin("a"), healthy())
    state, alarm = watched(state, healthy(fallen, 0.1))
    assert alarm is not None
    assert alarm <= within
    assert state.alarmed


def test_an_alarm_is_raised_once():
    state, _ = watched(watch.begin("a"), healthy())
    state, _ = watched(state, [0.0] * 20)
    _, again = watched(state, [0.0] * 20)
    assert again is None


def test_a_slow_decline_can_t_drag_the_bound_along():
    decline = np.linspace(0.9, 0.5, 600)
    _, alarm = watched(watch.begin("a"), np.concatenate([healthy(episodes=100), decline]))
    assert alarm is not None
    assert decline[alarm - 101] > 0.6


def test_a_forced_revision_is_held_against_its_predecessor_from_its_first_episode():
    predecessor, _ = watched(watch.begin("good"), healthy())
    forced = watch.inherit("forced", predecessor)
    assert (forced.bound, forced.inherited, forced.episodes) == (predecessor.bound, True, 0)
    _, alarm = watched(forced, healthy(0.6, 0.05))
    assert alarm is not None
    assert alarm < SETTINGS.burn_in * 2


def test_a_worse_burn_in_of_its_own_does_not_lower_what_was_inherited():
    predecessor, _ = watched(watch.begin("good"), healthy())
    state, _ = watched(watch.inherit("forced", predecessor), healthy(0.86, 0.02))
    assert state.bound >= predecessor.bound


def test_a_better_burn_in_of_its_own_raises_what_was_inherited():
    predecessor, _ = watched(watch.begin("good"), healthy(0.6))
    state, _ = watched(watch.inherit("forced", predecessor), healthy(0.95, 0.02))
    assert state.bound > predecessor.bound + 0.2


def test_with_nothing_to_inherit_a_forced_revision_begins_afresh():
    assert watch.inherit("b", watch.begin("a")) == watch.begin("b")


def test_a_revision_survives_by_its_episodes_without_an_alarm():
    young, _ = watched(watch.begin("a"), healthy(episodes=49))
    old, _ = watched(young, [0.9])
    assert not watch.survived(young, SETTINGS)
    assert watch.survived(old, SETTINGS)
    alarmed, _ = watched(old, [0.0] * 30)
    assert not watch.survived(alarmed, SETTINGS)


def test_a_forced_revision_that_stays_below_the_inherited_bound_does_not_survive_while_the_alarm_takes_its_time():
    predecessor, _ = watched(watch.begin("good"), healthy(0.9, episodes=100))
    forced = watch.inherit("forced", predecessor)
    alarmed = False
    for _ in range(SETTINGS.good_after):
        forced, alarmed = watch.observe(forced, predecessor.bound - 0.01, settings=SETTINGS)
    assert not alarmed
    assert not watch.survived(forced, SETTINGS)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_a_score_outside_the_range_is_refused_during_the_burn_in_too(bad):
    with pytest.raises(ValueError, match="outside"):
        watch.observe(watch.begin("a"), bad, settings=SETTINGS)


@given(st.lists(st.floats(0, 1), max_size=80), st.integers(0, 80))
def test_a_watch_goes_on_from_its_stored_state(scores, cut):
    settings = WatchSettings(burn_in=5)
    first, _ = watched(watch.begin("a"), scores[:cut], settings)
    restored = msgspec.msgpack.decode(msgspec.msgpack.encode(first), type=Watch)
    assert watched(restored, scores[cut:], settings)[0] == watched(watch.begin("a"), scores, settings)[0]


@given(st.lists(st.floats(0, 1), max_size=300))
def test_what_a_watch_remembers_is_bounded(scores):
    state, _ = watched(watch.begin("a"), scores, WatchSettings(burn_in=5))
    assert len(state.recent) <= watch.RECENT
    assert len(state.burn_in) <= 5 * watch.BURN_INS
    assert state.episodes == len(scores)


# --- after the alarm ----------------------------------------------------------------------------------------------


def test_it_knows_how_many_episodes_are_from_after_the_fall_and_how_deep_it_was():
    state, _ = watched(watch.begin("a"), healthy())
    bound = state.bound
    state, _ = watched(state, healthy(0.2, 0.05, episodes=9, seed=1))
    assert watch.fallen_episodes(state) == 9
    assert watch.fall(state) == pytest.approx(bound - 0.2, abs=0.05)


def test_without_a_fall_there_is_nothing_to_explain():
    assert watch.fall(watch.begin("a")) == 0.0
    state, _ = watched(watch.begin("a"), [1.0] * 100)
    assert watch.fallen_episodes(state) == 0


def probed(was: float, fell_to: float, old_now: float, deviation: float, seed: int) -> tuple[watch.Cause, int]:
    """A revision that scored `was` fell to `fell_to`; in its probe the old one scores `old_now`. The cause found, and the pairs it took."""
    random = np.random.default_rng(seed)
    state, _ = watched(watch.begin("new"), np.clip(random.normal(was, deviation, 160), 0, 1))
    while not state.alarmed:
        state, _ = watch.observe(state, float(np.clip(random.normal(fell_to, deviation), 0, 1)), settings=SETTINGS)
    settings = watch.probe_settings(ReleaseSettings(), state)
    release = machine.begin(None, id="r", agent="a", candidate="old", reference="new", settings=settings, kind=ReleaseKind.PROBE, at=0.0)
    release, verdict = machine.start(release, at=0.0), None
    while verdict is None:
        new, old = np.clip(random.normal([fell_to, old_now], deviation), 0, 1)
        pair = Pair(id=str(release.pairs), release="r", device="d", reference=float(new), candidate=float(old))
        release, verdict = machine.observe(release, pair, at=1.0)
    return watch.classify(machine.conclude(release, verdict, at=2.0)), release.pairs


CASES = [(0.9, 0.1, 0.05), (0.9, 0.7, 0.1), (0.6, 0.3, 0.2)]


@pytest.mark.parametrize(("was", "fell_to", "deviation"), CASES)
def test_where_the_old_revision_is_still_good_it_was_a_regression(was, fell_to, deviation):
    causes = [probed(was, fell_to, was, deviation, seed)[0] for seed in range(20)]
    assert causes.count(watch.Cause.REGRESSION) >= 19


@pytest.mark.parametrize(("was", "fell_to", "deviation"), CASES)
def test_where_the_old_revision_is_no_better_it_was_drift_and_that_takes_few_pairs(was, fell_to, deviation):
    found = [probed(was, fell_to, fell_to, deviation, seed) for seed in range(20)]
    assert [cause for cause, _ in found].count(watch.Cause.DRIFT) >= 19
    assert np.median([pairs for _, pairs in found]) <= 30


def test_an_aborted_or_rejected_probe_means_drift():
    probe = machine.begin(None, id="r", agent="a", candidate="c", reference="s", settings=ReleaseSettings(), kind=ReleaseKind.PROBE, at=0.0)
    rejected = machine.advance(machine.start(probe, at=0.0), Phase.REJECTED, at=1.0, who="agentd", reason="guardrail")
    assert watch.classify(rejected) is watch.Cause.DRIFT
    assert probe.history[0] == Change(phase=Phase.SCREENED, at=0.0, who="agentd", reason=probe.history[0].reason)


def test_only_a_probe_can_be_classified():
    proposal = machine.begin(None, id="r", agent="a", candidate="c", reference="s", settings=ReleaseSettings(), at=0.0)
    with pytest.raises(ValueError, match="no probe"):
        watch.classify(proposal)


# --- a target that is reached again ----------------------------------------------------------------------------------


def latest(mean, deviation, count, seed):
    """A watch after so many scores around `mean`."""
    scores = np.clip(np.random.default_rng(seed).normal(mean, deviation, count), 0.0, 1.0)
    return Watch(revision="a", recent=tuple(float(score) for score in scores)[-watch.RECENT :])


@pytest.mark.parametrize(("mean", "deviation"), [(0.97, 0.02), (0.95, 0.1), (1.0, 0.0)])
def test_scores_as_high_as_they_were_reach_the_target(mean, deviation):
    assert all(watch.reached(latest(mean, deviation, 100, seed), 0.83) for seed in range(20))


def test_looking_after_each_episode_does_not_make_a_noisy_score_below_the_target_reach_it():
    series = [latest(0.75, 0.25, watch.RECENT, seed).recent for seed in range(20)]
    seen = [Watch(revision="a", recent=scores[:end]) for scores in series for end in range(1, len(scores) + 1)]
    assert any(sum(one.recent[-10:]) / 10 >= 0.83 for one in seen if len(one.recent) >= 10), "their latest mean is above it now and then"
    assert not any(watch.reached(one, 0.83) for one in seen)


def test_no_score_shows_nothing():
    assert not watch.reached(Watch(revision="a"), 0.5)
