"""The release machine: what may follow what, and what evidence makes of a release."""

import math

import msgspec
import pytest

from agentd.errors import IllegalTransition, ReleaseError
from agentd.records import Goal, MetricRule, Pair, Phase, Proposal, Release, ReleaseKind, ReleaseSettings, Role, Single, Verdict
from agentd.release import evidence as weighing
from agentd.release import machine

SETTINGS = ReleaseSettings(prune_after_pairs=3, prune_below=0.1)


def begun(settings: ReleaseSettings = SETTINGS, kind: ReleaseKind = ReleaseKind.PROPOSAL, anchor: str | None = None) -> Release:
    proposal = Proposal(id="p", agent="robot", parent="stable", values={"gain": 2.0}, algorithm="search", at=0.0)
    return machine.begin(
        proposal if kind is ReleaseKind.PROPOSAL else None,
        id="r",
        agent="robot",
        candidate="new",
        reference="stable",
        settings=settings,
        kind=kind,
        anchor=anchor,
        at=0.0,
    )


def in_canary(settings: ReleaseSettings = SETTINGS, kind: ReleaseKind = ReleaseKind.PROPOSAL, anchor: str | None = None) -> Release:
    release = begun(settings, kind, anchor)
    if kind is ReleaseKind.PROPOSAL:
        release = machine.advance(release, Phase.VALIDATED, at=1.0, who="agentd", reason="compiles")
        release = machine.advance(release, Phase.SCREENED, at=2.0, who="agentd", reason="replayed")
    return machine.start(release, at=3.0)


def pair(reference: float, candidate: float, **fields) -> Pair:
    return Pair(id="e", release="r", device="d", reference=reference, candidate=candidate, **fields)


def fed(release: Release, pairs) -> tuple[Release, Verdict | None]:
    """The release after the pairs, up to the first verdict."""
    verdict = None
    for one in pairs:
        release, verdict = machine.observe(release, one, at=4.0)
        if verdict:
            break
    return release, verdict


# --- the way to the canary ----------------------------------------------------------------------------------------


def test_a_proposal_begins_proposed_and_a_probe_begins_screened():
    assert begun().phase is Phase.PROPOSED
    assert begun(kind=ReleaseKind.PROBE).phase is Phase.SCREENED


def test_every_phase_has_its_row_in_the_transition_table():
    assert set(machine.TRANSITIONS) == set(Phase)


def test_nothing_follows_an_end_but_a_rollback_after_a_promotion():
    ends = [phase for phase, after in machine.TRANSITIONS.items() if not after]
    assert set(ends) == {Phase.REJECTED, Phase.PRUNED, Phase.INCONCLUSIVE, Phase.ABORTED, Phase.ROLLED_BACK}
    assert machine.TRANSITIONS[Phase.PROMOTED] == {Phase.ROLLED_BACK}


@pytest.mark.parametrize("phase", [Phase.PROPOSED, Phase.VALIDATED])
def test_nothing_reaches_the_plant_or_is_promoted_before_it_was_screened(phase):
    assert not machine.TRANSITIONS[phase] & {Phase.SELECTION, Phase.CONFIRMATION, Phase.PROMOTED, Phase.AWAITING_APPROVAL}


def test_the_transition_table_can_t_be_changed():
    with pytest.raises(TypeError):
        machine.TRANSITIONS[Phase.REJECTED] = frozenset({Phase.PROMOTED})


def test_an_illegal_transition_says_where_it_was_and_where_it_was_to_go():
    with pytest.raises(IllegalTransition) as caught:
        machine.start(begun(), at=1.0)
    assert (caught.value.release, caught.value.phase, caught.value.to) == ("r", "proposed", "selection")


def test_every_change_is_in_the_history_with_who_and_why():
    release = machine.advance(begun(), Phase.REJECTED, at=7.0, who="ann", reason="does not compile", stage="validation")
    last = release.history[-1]
    assert (last.phase, last.at, last.who, last.reason) == (Phase.REJECTED, 7.0, "ann", "does not compile")
    assert (release.stage, release.ended_at) == ("validation", 7.0)


def test_a_release_without_selection_pairs_and_a_probe_begin_with_confirmation():
    assert in_canary().phase is Phase.SELECTION
    assert in_canary(ReleaseSettings(selection_pairs=0)).phase is Phase.CONFIRMATION
    assert in_canary(kind=ReleaseKind.PROBE).phase is Phase.CONFIRMATION


# --- pairs --------------------------------------------------------------------------------------------------------


def test_a_pair_is_drawn_in_the_order_of_the_coin():
    plan = machine.draw_pair(in_canary(), id="x", device="d7", seed=3, flip=False, at=5.0)
    flipped = machine.draw_pair(in_canary(), id="x", device="d7", seed=3, flip=True, at=5.0)
    assert plan.order == (Role.STABLE, Role.CANDIDATE)
    assert flipped.order == (Role.CANDIDATE, Role.STABLE)
    assert (plan.release, plan.reference, plan.candidate, plan.seed, plan.device) == ("r", "stable", "new", 3, "d7")


@pytest.mark.parametrize("paused", [True, False])
def test_no_pair_is_drawn_outside_a_running_canary(paused):
    release = machine.pause(in_canary(), at=4.0, who="ann") if paused else begun()
    with pytest.raises(ReleaseError, match="draws no pairs"):
        machine.draw_pair(release, id="x", device="d", seed=None, flip=True, at=5.0)


def test_a_pair_of_another_release_is_refused():
    with pytest.raises(ReleaseError, match="belongs to"):
        machine.observe(in_canary(), msgspec.structs.replace(pair(0, 1), release="other"), at=4.0)


def test_a_clearly_better_candidate_is_promoted_within_ten_confirmation_pairs():
    release, verdict = fed(in_canary(), [pair(0.15, 0.9)] * 30)
    assert verdict.phase is Phase.PROMOTED
    assert release.superiority.n <= 10
    assert verdict.e_value >= 1 / SETTINGS.alpha
    done = machine.conclude(release, verdict, at=9.0)
    assert (done.phase, done.forced, done.ended_at) == (Phase.PROMOTED, False, 9.0)


def test_selection_pairs_are_no_evidence():
    release, _ = fed(in_canary(), [pair(0.0, 1.0)] * 3)
    assert release.phase is Phase.CONFIRMATION
    assert (release.superiority.n, release.superiority.log_e) == (0, 0.0)
    assert release.selection.n == 3


def test_a_hopeless_candidate_is_pruned_after_as_many_pairs_as_the_rule_says():
    release, verdict = fed(in_canary(), [pair(0.5, 0.55)] * 30)
    assert (verdict.phase, release.pairs, release.phase) == (Phase.PRUNED, 3, Phase.SELECTION)
    assert "+0.050" in verdict.reason


def test_pruning_goes_on_in_confirmation_and_counts_all_pairs():
    release, verdict = fed(in_canary(), [pair(0.5, 0.65)] * 3 + [pair(0.5, 0.4)] * 3)
    assert verdict.phase is Phase.PRUNED
    assert release.phase is Phase.CONFIRMATION
    assert release.pairs == 4


def test_a_harmful_candidate_is_rejected_for_harm():
    release, verdict = fed(in_canary(ReleaseSettings(prune_after_pairs=100)), [pair(0.9, 0.1)] * 60)
    assert (verdict.phase, verdict.stage) == (Phase.REJECTED, "canary")
    assert verdict.reason.startswith("harm")
    assert release.pairs <= 15


def test_without_a_decision_the_release_ends_inconclusive_at_max_pairs():
    release, verdict = fed(in_canary(ReleaseSettings(max_pairs=20)), [pair(0.5, 0.5)] * 40)
    assert (verdict.phase, release.pairs) == (Phase.INCONCLUSIVE, 20)


def test_a_difference_outside_the_declared_range_ends_it_inconclusive():
    release, verdict = fed(in_canary(ReleaseSettings(difference_range=0.3)), [pair(0.2, 0.45), pair(0.2, 0.6)])
    assert verdict.phase is Phase.INCONCLUSIVE
    assert "outside the declared range" in verdict.reason
    assert release.superiority.n == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_never_a_pass(bad):
    _, verdict = fed(in_canary(), [pair(0.2, bad)])
    assert verdict.phase is Phase.INCONCLUSIVE


def test_a_smaller_declared_range_decides_sooner():
    wide, _ = fed(in_canary(ReleaseSettings()), [pair(0.5, 0.6)] * 200)
    narrow, _ = fed(in_canary(ReleaseSettings(difference_range=0.2)), [pair(0.5, 0.6)] * 200)
    assert narrow.pairs < wide.pairs / 2


def test_evidence_after_the_end_changes_nothing():
    release, verdict = fed(in_canary(), [pair(0.5, 0.1)] * 10)
    ended = machine.conclude(release, verdict, at=5.0)
    assert machine.observe(ended, pair(0.1, 0.9), at=6.0) == (ended, None)
    assert machine.lost(ended, at=6.0) == (ended, None)
    assert machine.expire(ended, 1e12) == (ended, None)


# --- guardrails ---------------------------------------------------------------------------------------------------


def test_a_guardrail_rejects_at_once_however_good_the_scores():
    release, _ = fed(in_canary(), [pair(0.1, 0.9)] * 9)
    _, verdict = machine.observe(release, pair(0.1, 0.9, guardrail="7 deadline misses, 3 allowed"), at=5.0)
    assert (verdict.phase, verdict.stage, verdict.reason) == (Phase.REJECTED, "guardrail", "7 deadline misses, 3 allowed")


def test_one_or_two_crashes_are_no_rate_but_three_of_three_are():
    release, verdict = fed(in_canary(ReleaseSettings(selection_pairs=0)), [pair(0.0, 0.0, candidate_aborted=True)] * 2)
    assert verdict is None
    _, verdict = machine.observe(release, pair(0.0, 0.0, candidate_aborted=True), at=5.0)
    assert (verdict.phase, verdict.stage) == (Phase.REJECTED, "guardrail")


def test_error_rates_are_compared_from_the_tenth_pair_on():
    crash = [pair(0.5, 0.6, candidate_aborted=True)]
    release, verdict = fed(in_canary(ReleaseSettings()), crash + [pair(0.5, 0.6)] * 8)
    assert verdict is None
    release, verdict = machine.observe(release, pair(0.5, 0.6), at=5.0)
    assert (verdict.phase, verdict.stage, release.pairs) == (Phase.REJECTED, "guardrail", 10)


def test_a_candidate_that_crashes_no_more_often_than_stable_is_not_held_to_account():
    both = pair(0.5, 0.6, candidate_aborted=True, reference_aborted=True)
    _, verdict = fed(in_canary(ReleaseSettings()), [both] + [pair(0.5, 0.6)] * 15)
    assert verdict is None


# --- lost pairs and time ------------------------------------------------------------------------------------------


def test_lost_pairs_are_drawn_again_up_to_a_limit():
    release, verdicts = in_canary(ReleaseSettings(max_lost_pairs=2)), []
    for _ in range(3):
        release, verdict = machine.lost(release, at=5.0)
        verdicts.append(verdict)
    assert verdicts[:2] == [None, None]
    assert verdicts[2].phase is Phase.INCONCLUSIVE
    assert "lost evidence" in verdicts[2].reason
    assert release.pairs == 0


def test_a_canary_expires_and_waiting_for_approval_does_not_count():
    release = machine.advance(begun(), Phase.VALIDATED, at=1.0, who="agentd", reason="")
    release = machine.advance(release, Phase.SCREENED, at=2.0, who="agentd", reason="")
    waiting = machine.advance(release, Phase.AWAITING_APPROVAL, at=3.0, who="agentd", reason="")
    assert machine.expire(waiting, 1e9) == (waiting, None)
    canary = machine.start(waiting, at=1000.0, who="ann")
    assert machine.expire(canary, 1000.0 + SETTINGS.max_duration - 1)[1] is None
    assert machine.expire(canary, 1000.0 + SETTINGS.max_duration)[1].phase is Phase.INCONCLUSIVE


# --- operators ----------------------------------------------------------------------------------------------------


def test_a_paused_release_goes_on_where_it_stopped_and_nowhere_else():
    confirming, _ = fed(in_canary(), [pair(0.1, 0.9)] * 3)
    paused = machine.pause(confirming, at=5.0, who="ann", reason="lunch")
    with pytest.raises(IllegalTransition):
        machine.advance(paused, Phase.SELECTION, at=6.0, who="ann", reason="")
    assert machine.resume(paused, at=6.0, who="ann").phase is Phase.CONFIRMATION


def test_what_is_not_paused_can_t_be_resumed():
    with pytest.raises(IllegalTransition):
        machine.resume(in_canary(), at=5.0, who="ann")


def test_a_pair_under_way_counts_while_paused_and_the_promotion_waits_for_the_next():
    release, _ = fed(in_canary(), [pair(0.1, 0.9)] * 3)
    release = machine.pause(release, at=5.0, who="ann")
    release, verdict = fed(release, [pair(0.1, 0.9)] * 15)
    assert verdict is None
    assert release.superiority.n == 15
    _, verdict = machine.observe(machine.resume(release, at=6.0, who="ann"), pair(0.1, 0.9), at=7.0)
    assert verdict.phase is Phase.PROMOTED


def test_a_selection_that_ends_while_paused_is_resumed_as_confirmation():
    release = machine.pause(in_canary(), at=4.0, who="ann")
    release, _ = fed(release, [pair(0.1, 0.9)] * 3)
    assert machine.resume(release, at=6.0, who="ann").phase is Phase.CONFIRMATION


def test_harm_and_guardrails_end_a_paused_release():
    release = machine.pause(in_canary(), at=5.0, who="ann")
    _, verdict = machine.observe(release, pair(0.5, 0.5, guardrail="hit the wall"), at=6.0)
    assert machine.conclude(release, verdict, at=6.0).phase is Phase.REJECTED


@pytest.mark.parametrize("pairs", [0, 2, 5])
def test_a_promotion_that_the_test_has_not_earned_is_marked_as_forced(pairs):
    release, _ = fed(in_canary(), [pair(0.1, 0.9)] * pairs)
    assert machine.advance(release, Phase.PROMOTED, at=5.0, who="ann", reason="I know better").forced


def test_a_promoted_release_can_be_rolled_back_once():
    release, verdict = fed(in_canary(), [pair(0.1, 0.9)] * 30)
    promoted = machine.conclude(release, verdict, at=5.0)
    back = machine.advance(promoted, Phase.ROLLED_BACK, at=6.0, who="watch", reason="alarm")
    with pytest.raises(IllegalTransition):
        machine.advance(back, Phase.ROLLED_BACK, at=7.0, who="ann", reason="again")


# --- probes -------------------------------------------------------------------------------------------------------


PROBE = ReleaseSettings(prune_after_pairs=3, prune_below=0.1, futile_below=0.3, max_pairs=40)


def test_a_probe_is_never_pruned_and_promotes_the_old_revision_if_it_is_better():
    release, verdict = fed(in_canary(PROBE, ReleaseKind.PROBE), [pair(0.4, 0.39), pair(0.2, 0.9)] * 20)
    assert verdict.phase is Phase.PROMOTED
    assert release.pairs > 3


def test_a_probe_of_two_revisions_that_are_both_broken_is_over_after_five_pairs():
    release, verdict = fed(in_canary(PROBE, ReleaseKind.PROBE), [pair(0.1, 0.12), pair(0.12, 0.1)] * 20)
    assert (verdict.phase, release.pairs) == (Phase.INCONCLUSIVE, machine.PAIRS_BEFORE_FUTILITY)
    assert "not better" in verdict.reason


# --- no worse, and several metrics --------------------------------------------------------------------------------


NO_WORSE = ReleaseSettings(goal=Goal.NO_WORSE, margin=0.2, prune_after_pairs=10)


def test_no_worse_promotes_an_equal_candidate():
    _, verdict = fed(in_canary(NO_WORSE), [pair(0.5, 0.5)] * 200)
    assert verdict.phase is Phase.PROMOTED
    assert verdict.reason.startswith("no worse by 0.2")


def test_no_worse_rejects_what_is_worse_by_more_than_the_margin():
    _, verdict = fed(in_canary(msgspec.structs.replace(NO_WORSE, prune_after_pairs=200)), [pair(0.9, 0.3)] * 200)
    assert verdict.phase is Phase.REJECTED


def conducted(release: Release, reference: float, anchor: float, candidate: float) -> tuple[Release, Verdict]:
    """Draw pairs as the machine asks for them until it decides."""
    verdict = None
    while verdict is None:
        plan = machine.draw_pair(release, id="x", device="d", seed=None, flip=True, at=4.0)
        anchored = plan.reference != release.reference
        release, verdict = machine.observe(release, pair(anchor if anchored else reference, candidate, anchored=anchored), at=4.0)
    return release, verdict


def test_no_worse_is_also_tested_against_the_anchor_so_that_it_can_t_ratchet_downwards():
    release, verdict = conducted(in_canary(NO_WORSE, anchor="the last better one"), reference=0.5, anchor=0.7, candidate=0.45)
    assert verdict.phase is not Phase.PROMOTED
    assert release.anchor_pairs == pytest.approx(release.pairs, abs=1)
    _, verdict = conducted(in_canary(NO_WORSE, anchor="the last better one"), reference=0.5, anchor=0.5, candidate=0.5)
    assert verdict.phase is Phase.PROMOTED


def test_an_anchor_that_is_the_reference_already_costs_nothing():
    plan = machine.draw_pair(in_canary(NO_WORSE, anchor="stable"), id="x", device="d", seed=None, flip=True, at=4.0)
    assert plan.reference == "stable"
    release, _ = conducted(in_canary(NO_WORSE, anchor="stable"), reference=0.5, anchor=0.0, candidate=0.5)
    assert release.anchor_pairs == 0


TWO_METRICS = ReleaseSettings(metrics=(MetricRule(name="energy", margin=0.2),))


def test_promotion_needs_every_metric():
    thrifty, verdict = fed(in_canary(TWO_METRICS), [pair(0.1, 0.9, metrics={"energy": (0.5, 0.5)})] * 100)
    assert verdict.phase is Phase.PROMOTED
    silent, verdict = fed(in_canary(TWO_METRICS), [pair(0.1, 0.9)] * 100)
    assert verdict is None  # no data is never a pass
    assert silent.superiority.log_e > thrifty.superiority.log_e


def test_harm_in_one_metric_rejects_whatever_the_score():
    _, verdict = fed(in_canary(TWO_METRICS), [pair(0.1, 0.9, metrics={"energy": (0.9, 0.0)})] * 100)
    assert verdict.phase is Phase.REJECTED
    assert "energy" in verdict.reason


def test_rejection_splits_alpha_between_the_metrics_and_promotion_does_not():
    tests = weighing.rejection_tests(in_canary(TWO_METRICS))
    assert {test.alpha for test in tests.values()} == {0.025}
    assert {test.alpha for test in weighing.promotion_tests(in_canary(TWO_METRICS)).values()} == {0.05}


# --- single episodes ----------------------------------------------------------------------------------------------


UNPAIRED = ReleaseSettings(exposure=0.5, selection_pairs=0, prune_after_pairs=10_000, max_pairs=10_000)


def singles(random, stable: float, candidate: float, *, answers=(1.0, 1.0), probability=0.5, deviation=0.1):
    while True:
        role = Role.CANDIDATE if random.random() < probability else Role.STABLE
        mean, answering = (candidate, answers[1]) if role is Role.CANDIDATE else (stable, answers[0])
        score = min(max(random.gauss(mean, deviation), 0.0), 1.0) if random.random() < answering else None
        yield Single(id="s", release="r", device="d", role=role, probability=probability, score=score)


def decided(release: Release, evidence) -> tuple[Release, Verdict]:
    verdict = None
    while verdict is None:
        release, verdict = machine.observe(release, next(evidence), at=4.0)
    return release, verdict


@pytest.mark.parametrize("probability", [0.5, 0.2])
def test_single_episodes_promote_a_better_candidate(probability):
    import random

    settings = msgspec.structs.replace(UNPAIRED, exposure=probability)
    release, verdict = decided(in_canary(settings), singles(random.Random(1), 0.5, 0.8, probability=probability))
    assert verdict.phase is Phase.PROMOTED
    assert release.pairs < 400
    assert release.difference == pytest.approx(0.3, abs=0.15)


def test_a_silent_outcome_scores_the_declared_value_and_a_difference_in_response_rates_is_a_guardrail():
    import random

    settings = msgspec.structs.replace(UNPAIRED, silent_score=0.6)
    release, verdict = decided(in_canary(settings), singles(random.Random(2), 0.6, 0.6, answers=(0.95, 0.4)))
    assert (verdict.phase, verdict.stage) == (Phase.REJECTED, "guardrail")
    assert "fewer answers" in verdict.reason
    assert release.difference == pytest.approx(0.0, abs=0.15)


def test_equal_response_rates_are_no_guardrail():
    import random

    _, verdict = decided(
        in_canary(msgspec.structs.replace(UNPAIRED, max_pairs=300)), singles(random.Random(3), 0.6, 0.6, answers=(0.7, 0.7))
    )
    assert verdict.stage != "guardrail"


def test_a_role_that_was_not_drawn_is_no_evidence():
    with pytest.raises(ValueError, match="not drawn"):
        machine.observe(in_canary(UNPAIRED), Single(id="s", release="r", device="d", role=Role.STABLE, probability=1.0, score=0.5), at=4.0)


def test_a_probability_below_the_declared_exposure_ends_it_inconclusive():
    rare = Single(id="s", release="r", device="d", role=Role.CANDIDATE, probability=0.05, score=1.0)
    _, verdict = machine.observe(in_canary(UNPAIRED), rare, at=4.0)
    assert verdict.phase is Phase.INCONCLUSIVE


# --- across releases and restarts ---------------------------------------------------------------------------------


def ended(release: Release, phase: Phase) -> Release:
    return machine.advance(release, phase, at=9.0, who="agentd", reason="")


def test_only_confirmed_candidates_spend_alpha():
    pruned_early, verdict = fed(in_canary(), [pair(0.5, 0.5)] * 3)
    pruned_early = machine.conclude(pruned_early, verdict, at=9.0)
    confirmed, _ = fed(in_canary(), [pair(0.1, 0.9)] * 4)
    fresh = machine.online_alpha([], 0.05).level
    assert machine.online_alpha([pruned_early] * 50, 0.05).level == fresh
    assert machine.online_alpha([in_canary(PROBE, ReleaseKind.PROBE)], 0.05).level == fresh
    assert machine.online_alpha([ended(confirmed, Phase.INCONCLUSIVE)], 0.05).level < fresh


def test_a_forced_promotion_earns_nothing():
    confirmed, _ = fed(in_canary(), [pair(0.1, 0.9)] * 4)
    won, verdict = fed(in_canary(), [pair(0.1, 0.9)] * 40)
    forced = machine.online_alpha([ended(confirmed, Phase.PROMOTED)], 0.05)
    earned = machine.online_alpha([machine.conclude(won, verdict, at=9.0)], 0.05)
    assert forced.level < earned.level


def test_a_granted_level_is_what_the_promotion_is_tested_at_and_harm_is_not():
    release = in_canary(msgspec.structs.replace(SETTINGS, promotion_alpha=0.002))
    assert weighing.superiority(release).alpha == 0.002
    assert weighing.harm(release).alpha == 0.05
    strict, _ = fed(release, [pair(0.1, 0.9)] * 60)
    lenient, _ = fed(in_canary(), [pair(0.1, 0.9)] * 60)
    assert strict.pairs > lenient.pairs


def test_a_release_agrees_with_its_ledger_and_with_no_other():
    ledger = [pair(0.1, 0.7), pair(0.3, 0.4, candidate_aborted=True), pair(0.2, 0.9)]
    release, _ = fed(in_canary(), ledger)
    assert machine.agrees(release, ledger)
    assert not machine.agrees(release, ledger[:2])
    assert not machine.agrees(release, [*ledger[:2], pair(0.2, 0.8)])
    assert not machine.agrees(release, [*ledger[:2], msgspec.structs.replace(ledger[2], release="other")])
