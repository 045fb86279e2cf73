"""From evidence to tests: what one pair, or one single episode, adds to a release. Verdicts are agentd.release.machine's.

A release runs these tests, all with the same differences D of normalised scores (candidate - reference):

- promotion needs all of: the score (`Release.superiority`), the score against the anchor (ANCHOR, only for `goal = no_worse`), and one
  per further metric ("<metric> promotes"). Each has the whole level: refuting the union of the nulls needs every one refuted (Berger 1982).
- rejection needs one of: the score (`Release.harm`) and one per further metric ("<metric> rejects"). They share alpha evenly.
- unpaired evidence also tests whether the candidate's users answer more rarely, or more often ("fewer answers", "more answers").

For BETTER the boundary of the null is a difference of 0. For NO_WORSE it is -margin, for promotion and for rejection.

Single episodes enter as Z = (Y - c) (A/p - (1 - A)/(1 - p)): Y the score, A whether the candidate ran, p the probability with which it was
drawn, c the running mean of what came before, which takes out the variance of the level (as ville's BettingABTest does). E[Z] is the mean
difference whatever c, and |Z| <= 1/min(p, 1 - p). Whether somebody answered is compared in the same way.
"""

from collections.abc import Mapping

import msgspec

from agentd.records import Goal, Pair, Release, ReleaseSettings, Role, Single, Test
from agentd.release import fleet
from agentd.release.statistics import BettingTest, Null

ANCHOR = "against the anchor"
FEWER_ANSWERS = "fewer answers"
MORE_ANSWERS = "more answers"


def bound(settings: ReleaseSettings, about: str = "") -> float:
    """The largest absolute difference that the tests allow for; `about` as in `differences`."""
    declared = next((rule.difference_range for rule in settings.metrics if rule.name == about), settings.difference_range)
    return declared if settings.exposure is None else max(1.0 / settings.exposure, declared)


def superiority(release: Release) -> BettingTest:
    """The test of the score that promotes, at the level that was granted to this candidate."""
    return _promotion(release, release.superiority, release.settings.goal, release.settings.margin)


def harm(release: Release) -> BettingTest:
    """The test of the score that rejects."""
    return _rejection(release, release.harm, release.settings.goal, release.settings.margin)


def promotion_tests(release: Release) -> Mapping[str, BettingTest]:
    """All that must be decided before the candidate is promoted, by name; the score's is ""."""
    tests = {"": superiority(release)}
    if has_anchor(release):
        tests[ANCHOR] = _promotion(release, _state(release, ANCHOR), release.settings.goal, release.settings.margin)
    for rule in release.settings.metrics:
        name = f"{rule.name} promotes"
        tests[name] = _promotion(release, _state(release, name), rule.goal, rule.margin, rule.name)
    return tests


def rejection_tests(release: Release) -> Mapping[str, BettingTest]:
    """All of which one is enough to reject the candidate for harm, by name; the score's is ""."""
    tests = {"": harm(release)}
    for rule in release.settings.metrics:
        name = f"{rule.name} rejects"
        tests[name] = _rejection(release, _state(release, name), rule.goal, rule.margin, rule.name)
    return tests


def answer_tests(release: Release) -> Mapping[str, BettingTest]:
    """The two tests of a difference in response rates, sharing alpha; empty for paired evidence."""
    settings = release.settings
    if settings.exposure is None:
        return {}
    return {
        name: BettingTest(settings.alpha / 2.0, null, bound(settings), state=_state(release, name))
        for name, null in ((FEWER_ANSWERS, Null.NOT_WORSE), (MORE_ANSWERS, Null.NOT_BETTER))
    }


def has_anchor(release: Release) -> bool:
    """Whether the release also runs against its anchor: only for NO_WORSE, and if the anchor isn't the reference already."""
    unpaired = release.settings.exposure is not None
    return not unpaired and release.settings.goal is Goal.NO_WORSE and release.anchor not in {None, release.reference, release.candidate}


def count(release: Release, evidence: Pair | Single) -> Release:
    """The release with the evidence in its counters and sums, and nothing tested yet."""
    if isinstance(evidence, Pair):
        counted = msgspec.structs.replace(
            release,
            reference_episodes=release.reference_episodes + 1,
            candidate_episodes=release.candidate_episodes + 1,
            reference_aborted=release.reference_aborted + evidence.reference_aborted,
            candidate_aborted=release.candidate_aborted + evidence.candidate_aborted,
            fleet=fleet.count_pair(release, evidence.device),
        )
        if evidence.anchored:
            return msgspec.structs.replace(counted, anchor_pairs=release.anchor_pairs + 1)
        return msgspec.structs.replace(
            counted,
            pairs=release.pairs + 1,
            reference_sum=release.reference_sum + evidence.reference,
            candidate_sum=release.candidate_sum + evidence.candidate,
        )
    # The two sums are unbiased for the roles' means times n, and their difference is the sum of Z.
    centre, reference, candidate = _shares(release, evidence)
    by_candidate = evidence.role is Role.CANDIDATE
    return msgspec.structs.replace(
        release,
        pairs=release.pairs + 1,
        silent=release.silent + (evidence.score is None),
        reference_sum=release.reference_sum + centre + reference,
        candidate_sum=release.candidate_sum + centre + candidate,
        reference_episodes=release.reference_episodes + (not by_candidate),
        candidate_episodes=release.candidate_episodes + by_candidate,
        reference_aborted=release.reference_aborted + (evidence.aborted and not by_candidate),
        candidate_aborted=release.candidate_aborted + (evidence.aborted and by_candidate),
        fleet=fleet.count_pair(release, evidence.device),
    )


def differences(release: Release, evidence: Pair | Single) -> dict[str, float]:
    """The differences in `evidence` by what they are about: "" the score, ANCHOR, the name of a further metric, FEWER_ANSWERS.

    `release` is the one before `count`.
    """
    if isinstance(evidence, Pair):
        found = {ANCHOR if evidence.anchored else "": evidence.candidate - evidence.reference}
        if not evidence.anchored:
            found |= {name: candidate - reference for name, (reference, candidate) in evidence.metrics.items()}
        return found
    _, reference, candidate = _shares(release, evidence)
    weight = _weight(evidence)
    answering = 1.0 - release.silent / release.pairs if release.pairs else 1.0
    answered = (evidence.score is not None) - answering
    metrics = {name: (value - 0.5) * weight for name, value in evidence.metrics.items()}
    return {"": candidate - reference, FEWER_ANSWERS: answered * weight} | metrics


def weigh(release: Release, found: Mapping[str, float], *, learning: bool) -> Release:
    """The release with `found` (of `differences`) in its tests. `learning` only teaches them how to bet."""

    def advanced(test: BettingTest, about: str) -> Test:
        if about not in found:
            return test.state
        return (test.learn(found[about]) if learning else test.update(found[about])).state

    better, worse = superiority(release), harm(release)
    further = dict(release.tests)
    for name, betting in {**promotion_tests(release), **rejection_tests(release)}.items():
        if name:
            further[name] = advanced(betting, name.removesuffix(" promotes").removesuffix(" rejects"))
    for name, betting in answer_tests(release).items():
        if FEWER_ANSWERS in found:
            further[name] = betting.update(found[FEWER_ANSWERS]).state  # a guardrail counts from the first episode on
    return msgspec.structs.replace(release, superiority=advanced(better, ""), harm=advanced(worse, ""), tests=further)


def _promotion(release: Release, state: Test, goal: Goal, margin: float, about: str = "") -> BettingTest:
    settings = release.settings
    level = settings.alpha if settings.promotion_alpha is None else settings.promotion_alpha
    boundary = -margin if goal is Goal.NO_WORSE else 0.0
    return BettingTest(level, Null.NOT_BETTER, bound(settings, about), boundary, state)


def _rejection(release: Release, state: Test, goal: Goal, margin: float, about: str = "") -> BettingTest:
    settings = release.settings
    boundary = -margin if goal is Goal.NO_WORSE else 0.0
    return BettingTest(settings.alpha / (1 + len(settings.metrics)), Null.NOT_WORSE, bound(settings, about), boundary, state)


def _state(release: Release, name: str) -> Test:
    return release.tests.get(name, Test())


def _weight(single: Single) -> float:
    if not 0.0 < single.probability < 1.0:
        raise ValueError(f"single {single.id}: a role drawn with probability {single.probability} was not drawn")
    return 1.0 / single.probability if single.role is Role.CANDIDATE else -1.0 / (1.0 - single.probability)


def _shares(release: Release, single: Single) -> tuple[float, float, float]:
    """(c, (1 - A)(Y - c)/(1 - p), A (Y - c)/p): the centre, and what the episode adds to each role's sum beside it."""
    mean = (release.reference_sum + release.candidate_sum) / (2 * release.pairs) if release.pairs else 0.5
    centre = min(max(mean, 0.0), 1.0)  # inverse weights can carry the running mean out of the range, and Z with it
    score = release.settings.silent_score if single.score is None else single.score
    share = (score - centre) * _weight(single)
    return (centre, 0.0, share) if single.role is Role.CANDIDATE else (centre, -share, 0.0)
