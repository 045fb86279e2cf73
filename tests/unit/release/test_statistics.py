"""Sequential statistics: what they compute (against ville and the definitions), and what they promise (by simulation)."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.records import Test as State
from agentd.release.statistics import (
    BETS,
    AsymptoticConfidenceSequence,
    BettingTest,
    Null,
    OnlineAlpha,
    ShiryaevRobertsDetector,
    lower_bound,
    normal_mixture,
)


@pytest.fixture(scope="module")
def ville():
    """The oracle: it loads much of scipy, which not every process that collects these tests has to wait for."""
    import ville

    return ville


differences = st.lists(st.floats(-1, 1), max_size=60)
scores = st.lists(st.floats(0, 1), min_size=1, max_size=60)


def after(test: BettingTest, values) -> BettingTest:
    for value in values:
        test = test.update(float(value))
    return test


def pairs_to_decide(test: BettingTest, values) -> float:
    for count, value in enumerate(values, start=1):
        test = test.update(float(value))
        if test.decided:
            return count
    return math.inf


# --- the betting test ---------------------------------------------------------------------------------------------


@given(differences)
def test_the_capital_is_the_product_of_what_the_bets_won(values):
    test, capital = BettingTest(0.05, Null.NOT_BETTER), 1.0
    for value in values:
        capital *= 1 + test.bet * ((value + 1) / 2 - 0.5)
        test = test.update(value)
    assert test.e_value == pytest.approx(capital)
    assert test.n == len(values)


@given(differences, st.sampled_from(Null), st.floats(-0.5, 0.5), st.floats(1.0, 5.0))
def test_no_bet_can_lose_all_the_capital_or_go_against_the_null(values, null, boundary, bound):
    test = after(BettingTest(0.05, null, bound, boundary), values)
    m = (boundary / bound + 1) / 2
    assert 0 <= test.bet <= 0.95 / (m if null is Null.NOT_BETTER else 1 - m) * (1 + 1e-12)
    assert math.isfinite(test.log_e)


@given(differences)
def test_better_and_worse_are_mirror_images(values):
    better, worse = BettingTest(0.05, Null.NOT_BETTER), BettingTest(0.05, Null.NOT_WORSE)
    assert after(better, values).log_e == pytest.approx(after(worse, [-value for value in values]).log_e, abs=1e-9)


@given(differences, st.floats(0.1, 10.0))
def test_the_scale_of_the_differences_does_not_matter(values, bound):
    scaled = after(BettingTest(0.05, Null.NOT_BETTER, bound), [value * bound * (1 - 1e-12) for value in values])
    assert scaled.log_e == pytest.approx(after(BettingTest(0.05, Null.NOT_BETTER), values).log_e, abs=1e-6)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.sampled_from(Null), st.floats(-0.5, 0.5))
def test_under_any_two_point_null_no_next_pair_is_expected_to_win(values, null, boundary):
    # D takes the two ends with the probabilities that make its mean the boundary: the hardest member of the null.
    test = after(BettingTest(0.05, null, 1.0, boundary), values)
    up = (boundary + 1) / 2
    expected = up * math.exp(test.update(1.0).log_e - test.log_e) + (1 - up) * math.exp(test.update(-1.0).log_e - test.log_e)
    assert expected == pytest.approx(1.0)


@given(differences, differences)
def test_what_only_teaches_is_no_evidence_but_is_remembered_by_the_bets(lessons, values):
    test = BettingTest(0.05, Null.NOT_BETTER)
    for lesson in lessons:
        test = test.learn(lesson)
    assert (test.n, test.log_e, test.state.learned) == (0, 0.0, len(lessons))
    seen = after(BettingTest(0.05, Null.NOT_BETTER), lessons)
    assert test.bet == pytest.approx(seen.bet)
    assert after(test, values).bet == pytest.approx(after(seen, values).bet)


@given(differences, differences)
def test_a_test_goes_on_from_its_stored_state(first, second):
    stored = after(BettingTest(0.05, Null.NOT_WORSE), first).state
    assert after(BettingTest(0.05, Null.NOT_WORSE, state=stored), second) == after(BettingTest(0.05, Null.NOT_WORSE), first + second)


def test_once_decided_it_stays_decided():
    test = after(BettingTest(0.05, Null.NOT_BETTER), [0.9] * 12)
    assert test.decided
    fallen = after(test, [-1.0] * 20)
    assert fallen.log_e < 0
    assert fallen.decided


@pytest.mark.parametrize("bad", [1.01, -1.01, math.nan, math.inf])
def test_a_difference_outside_the_bound_is_refused_not_clipped(bad):
    with pytest.raises(ValueError, match="outside"):
        BettingTest(0.05, Null.NOT_BETTER).update(bad)


@pytest.mark.parametrize(
    "arguments",
    [(0.0, Null.NOT_BETTER), (1.0, Null.NOT_BETTER), (0.05, Null.NOT_BETTER, 0.0), (0.05, Null.NOT_BETTER, 1.0, 1.0)],
)
def test_a_test_that_cannot_be_is_refused_at_once(arguments):
    with pytest.raises(ValueError, match="not"):
        BettingTest(*arguments)


@pytest.mark.parametrize("shape", ["gaussian", "binary", "mostly equal"])
def test_an_equal_candidate_is_falsely_refuted_at_most_alpha_often_under_continuous_peeking(shape):
    random, alpha, runs = np.random.default_rng(7), 0.1, 300
    draw = {
        "gaussian": lambda: np.clip(random.normal(0, 0.3, 150), -1, 1),
        "binary": lambda: random.integers(0, 2, 150) - random.integers(0, 2, 150).astype(float),
        "mostly equal": lambda: random.choice([-1.0, 0.0, 0.05], p=[0.004, 0.916, 0.08], size=150),
    }[shape]
    false = sum(pairs_to_decide(BettingTest(alpha, Null.NOT_BETTER), draw()) < math.inf for _ in range(runs))
    assert false / runs <= alpha + 2.5 * math.sqrt(alpha * (1 - alpha) / runs)


@pytest.mark.parametrize(("shift", "deviation"), [(0.05, 0.1), (0.1, 0.1), (0.15, 0.3), (0.3, 0.3)])
def test_it_needs_no_more_than_1_2_times_the_pairs_of_villes_betting_test(ville, shift, deviation):
    random, ours, theirs = np.random.default_rng(11), [], []
    for _ in range(60):
        values = np.clip(random.normal(-shift, deviation, 600), -1, 1)
        ours.append(pairs_to_decide(BettingTest(0.05, Null.NOT_WORSE), values))
        oracle = ville.BettingTest(0.0, bounds=(-1, 1), alternative="less", alpha=0.05).fit(values)
        theirs.append(oracle.stopping_time() or math.inf)
    assert np.median(ours) <= 1.2 * np.median(theirs)


# --- the asymptotic confidence sequence ---------------------------------------------------------------------------


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=50))
def test_the_confidence_sequence_is_villes(ville, values):
    sequence = AsymptoticConfidenceSequence.of(values)
    oracle = ville.AsymptoticCS(alpha=0.05, min_samples=2).fit(values)
    rho_squared = sequence._rho_squared
    oracle.rho_ = 1 / rho_squared
    oracle.fit(values)
    low, high = oracle.interval()
    assert sequence.interval == pytest.approx((low, high), abs=1e-7)


def test_it_is_nearly_as_narrow_as_can_be_at_the_chosen_length():
    chosen = normal_mixture(50, 0.05, AsymptoticConfidenceSequence(narrowest_at=50)._rho_squared)
    best = min(normal_mixture(50, 0.05, rho_squared) for rho_squared in np.geomspace(1e-3, 10, 400))
    assert chosen <= 1.01 * best


def test_there_is_no_interval_before_the_second_value():
    assert AsymptoticConfidenceSequence().interval is None
    assert AsymptoticConfidenceSequence().update(0.5).interval is None


# --- the detector -------------------------------------------------------------------------------------------------


@given(scores, st.floats(0, 0.99))
def test_the_detector_is_the_mean_over_bets_of_the_sum_over_starts(values, bound):
    detector = ShiryaevRobertsDetector(1e6, bound)
    for value in values:
        detector = detector.update(value)
    growth = [[1 + bet * (bound - value) / (1 - bound) for value in values] for bet in BETS]
    by_definition = np.mean([sum(math.prod(factors[start:]) for start in range(len(factors))) for factors in growth])
    assert detector.log_mixture == pytest.approx(math.log(by_definition), abs=1e-6)


def test_scores_at_the_bound_raise_an_alarm_at_most_as_often_as_promised():
    random, alarms, length, alarm_every = np.random.default_rng(3), 0, 100, 1000.0
    for _ in range(200):
        detector = ShiryaevRobertsDetector(alarm_every, 0.7)
        for score in random.random(length) < 0.7:
            detector = detector.update(float(score))
            if detector.alarmed:
                alarms += 1
                break
    assert alarms / 200 <= length / alarm_every + 0.05


def test_a_controller_that_falls_from_its_feet_is_noticed_within_ten_episodes():
    detector, episodes = ShiryaevRobertsDetector(1e6, 0.85), 0
    while not detector.alarmed:
        detector, episodes = detector.update(0.15), episodes + 1
    assert episodes <= 10


def test_good_episodes_before_the_fall_don_t_delay_the_alarm():
    detector = ShiryaevRobertsDetector(1e6, 0.85)
    fresh = [detector := detector.update(0.95) for _ in range(500)][-1]
    late, early = fresh, ShiryaevRobertsDetector(1e6, 0.85)
    for _ in range(30):
        late, early = late.update(0.4), early.update(0.4)
    assert late.log_mixture >= early.log_mixture


def test_a_bound_of_one_is_watched_too():
    detector = ShiryaevRobertsDetector(1e6, 1.0).update(1.0)
    assert not detector.alarmed
    assert detector.update(0.0).update(0.0).update(0.0).alarmed


@pytest.mark.parametrize("bad", [-0.01, 1.01, math.nan])
def test_a_score_outside_the_range_is_refused(bad):
    with pytest.raises(ValueError, match="outside"):
        ShiryaevRobertsDetector(1e6, 0.5).update(bad)


# --- the lower bound ----------------------------------------------------------------------------------------------


@given(scores)
def test_the_lower_bound_is_a_share_that_a_better_score_never_lowers(values):
    bound = lower_bound(values, 0.05)
    assert 0 <= bound < 1
    assert lower_bound([*values[:-1], 1.0], 0.05) >= bound - 1e-9


@pytest.mark.parametrize("n", [20, 50, 200])
@pytest.mark.parametrize("deviation", [0.01, 0.05, 0.2])
def test_the_lower_bound_is_as_tight_as_villes_betting_interval(ville, n, deviation):
    values = np.clip(np.random.default_rng(n).normal(0.8, deviation, n), 0, 1)
    oracle = ville.BettingCS(alpha=0.1, c=0.95).fit(values)  # two-sided at 0.1: its lower end is one-sided at 0.05
    assert (
        lower_bound([float(value) for value in values], 0.05) >= oracle.interval()[0] - 0.005
    )  # whose grid and log(2/alpha) differ a little


def test_the_lower_bound_is_right_as_often_as_it_says_at_every_length_at_once():
    random, wrong, runs, delta = np.random.default_rng(5), 0, 200, 0.1
    for _ in range(runs):
        values = (random.random(60) < 0.8).astype(float).tolist()
        wrong += any(lower_bound(values[:n], delta) > 0.8 for n in range(5, 61, 5))
    assert wrong / runs <= delta + 2.5 * math.sqrt(delta * (1 - delta) / runs)


def test_nothing_seen_bounds_nothing():
    assert lower_bound([], 0.05) == 0.0
    assert lower_bound([0.0] * 30, 0.05) == pytest.approx(0.0, abs=1e-9)


# --- levels for one candidate after the other ---------------------------------------------------------------------


@given(st.lists(st.booleans(), max_size=80), st.floats(0.5, 0.99), st.floats(0.05, 1.0))
def test_the_estimate_that_bounds_the_false_discovery_rate_never_exceeds_alpha(outcomes, decay, share):
    control, levels, earned, promotions = OnlineAlpha(0.05, decay, share), [], [], 0.0
    for promoted in outcomes:
        levels.append(control.level)
        earned.append(1 / (decay * promotions + 1))
        promotions = decay * promotions + promoted
        control = control.update(promoted=promoted)
        now = len(levels) - 1
        estimate = sum(level * min(decay ** (now - j), gain) for j, (level, gain) in enumerate(zip(levels, earned, strict=True)))
        assert estimate <= 0.05 + 1e-6
        assert 0 <= levels[-1] <= 0.05


def test_the_levels_of_an_agent_without_luck_don_t_die_out():
    control = OnlineAlpha(0.05)
    for _ in range(1000):
        control = control.update(promoted=False)
    assert control.level > 0.002
    assert len(control.spent) < 500


def test_a_promotion_earns_a_higher_level():
    unlucky = OnlineAlpha(0.05)
    for _ in range(10):
        unlucky = unlucky.update(promoted=False)
    assert unlucky.update(promoted=True).level > unlucky.update(promoted=False).level


def test_what_was_really_spent_counts_and_not_what_would_have_been_granted():
    assert OnlineAlpha(0.05).update(promoted=False, level=0.05).level < OnlineAlpha(0.05).update(promoted=False, level=0.001).level


def test_lowering_alpha_in_mid_life_leaves_a_level_that_a_test_can_be_made_with():
    control = OnlineAlpha(0.01)
    for _ in range(5):
        control = control.update(promoted=False, level=0.05)
    assert 0 < control.level < 1e-6
    assert not BettingTest(control.level, Null.NOT_BETTER).update(1.0).decided


def test_a_test_state_before_the_first_pair_says_nothing():
    assert BettingTest(0.05, Null.NOT_BETTER).state == State()
    assert not BettingTest(0.05, Null.NOT_BETTER).decided
