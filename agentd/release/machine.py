"""The life of a release: what may follow what, and how evidence moves it.

    PROPOSED -> VALIDATED -> SCREENED [-> AWAITING_APPROVAL] -> SELECTION -> CONFIRMATION -> PROMOTED [-> ROLLED_BACK]
                                                                 (PAUSED)     (PAUSED)    -> REJECTED | PRUNED | INCONCLUSIVE | ABORTED

Everything is pure: a record goes in, the next one comes out, and with it a Verdict where the evidence decides. Whoever calls commits the
record, then acts on the verdict (`conclude`), then tells.

The way of a pair, or of a single episode, through `observe`, in this order:

1. a guardrail that it violated rejects the candidate at once, whatever the statistics say; in a fleet the first device that violates one
   goes back to stable alone, while another one is exposed (agentd.release.fleet);
2. a difference outside its declared `difference_range` ends the release inconclusive: the tests' promises don't hold for it;
3. during SELECTION it only teaches the tests how to bet; during CONFIRMATION it is evidence in all (agentd.release.evidence);
4. a difference in response rates (unpaired evidence) rejects as a guardrail; so do error rates: `abort_error_rate` from the third aborted
   episode of the candidate on (one or two crashes of a few episodes are no rate), `max_error_rate_increase` from the tenth pair on;
5. harm in any metric rejects, superiority in all promotes once the ramp is done; then pruning (over all pairs), futility (probes), and
   `max_pairs`, unless the candidate is superior already and only has the rest of its ramp before it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import msgspec

from agentd.errors import IllegalTransition, ReleaseError
from agentd.records import Change, Goal, Pair, PairPlan, Phase, Proposal, Release, ReleaseKind, ReleaseSettings, Role, Single, Test, Verdict
from agentd.release import evidence as weighing
from agentd.release import fleet
from agentd.release.statistics import BettingTest, Null, OnlineAlpha

ABORTED_EPISODES_BEFORE_RATE = 3
"""So many aborted episodes make a rate that `abort_error_rate` is compared with."""

PAIRS_BEFORE_COMPARING_ERRORS = 10
"""From this pair on the error rates of the two roles are compared."""

PAIRS_BEFORE_FUTILITY = 5
"""A probe is futile, from this pair on, once its mean difference plus 2 (1 + 3/n) standard errors is below `futile_below`.

The factor 1 + 3/n stands for how much few pairs understate their spread. It is a rule of thumb and claims no level: it can only end a
probe as drift, and then the optimizer is asked instead of a rollback made.
"""

FINAL = frozenset({Phase.REJECTED, Phase.PRUNED, Phase.INCONCLUSIVE, Phase.ABORTED, Phase.ROLLED_BACK})
CANARY = frozenset({Phase.SELECTION, Phase.CONFIRMATION})

_ANY_TIME = frozenset({Phase.REJECTED, Phase.INCONCLUSIVE, Phase.ABORTED})

TRANSITIONS: Mapping[Phase, frozenset[Phase]] = MappingProxyType(
    {
        Phase.PROPOSED: _ANY_TIME | {Phase.VALIDATED},
        Phase.VALIDATED: _ANY_TIME | {Phase.SCREENED},
        Phase.SCREENED: _ANY_TIME | CANARY | {Phase.AWAITING_APPROVAL, Phase.PROMOTED},
        Phase.AWAITING_APPROVAL: _ANY_TIME | CANARY | {Phase.PROMOTED},
        Phase.SELECTION: _ANY_TIME | {Phase.CONFIRMATION, Phase.PAUSED, Phase.PRUNED, Phase.PROMOTED},
        Phase.CONFIRMATION: _ANY_TIME | {Phase.PAUSED, Phase.PRUNED, Phase.PROMOTED},
        Phase.PAUSED: _ANY_TIME | CANARY | {Phase.PRUNED, Phase.PROMOTED},
        Phase.PROMOTED: frozenset({Phase.ROLLED_BACK}),
        **dict.fromkeys(FINAL, frozenset[Phase]()),
    }
)
"""What may follow what. PAUSED goes back only to the phase that was paused. PROMOTED before CONFIRMATION decides is an operator's force."""


def begin(
    proposal: Proposal | None,
    *,
    id: str,  # noqa: A002 - the record's own name for it
    agent: str,
    candidate: str,
    reference: str,
    settings: ReleaseSettings,
    at: float,
    kind: ReleaseKind = ReleaseKind.PROPOSAL,
    regime: int = 0,
    anchor: str | None = None,
    who: str = "agentd",
) -> Release:
    """A new release. A probe begins SCREENED, since both its revisions have served before; a proposal begins PROPOSED."""
    probe = kind is ReleaseKind.PROBE
    phase = Phase.SCREENED if probe else Phase.PROPOSED
    reason = "asks after an alarm whether the last good revision is better" if probe else "proposed"
    return Release(
        id=id,
        agent=agent,
        proposal=proposal.id if proposal else "",
        candidate=candidate,
        reference=reference,
        phase=phase,
        settings=settings,
        begun_at=at,
        kind=kind,
        regime=regime,
        anchor=anchor,
        history=(Change(phase=phase, at=at, who=who, reason=reason),),
    )


def advance(release: Release, to: Phase, *, at: float, who: str, reason: str, stage: str = "") -> Release:
    """The release in its next phase, with the change in its history. Raises IllegalTransition.

    A promotion that the superiority test hasn't earned is marked `forced`. Pausing and resuming go through here as well.
    """
    if to not in TRANSITIONS[release.phase] or (release.phase is Phase.PAUSED and to in CANARY and to is not release.paused_from):
        raise IllegalTransition(release.id, release.phase, to)
    promoted = to is Phase.PROMOTED
    return msgspec.structs.replace(
        release,
        phase=to,
        paused_from=release.phase if to is Phase.PAUSED else None,
        stage=stage or release.stage,
        reason=reason,
        forced=release.forced or (promoted and not _superior(release)),
        ended_at=at if promoted or to in FINAL else release.ended_at,
        history=(*release.history, Change(phase=to, at=at, who=who, reason=reason)),
    )


def start(release: Release, *, at: float, who: str = "agentd", reason: str = "") -> Release:
    """Begin the canary: with SELECTION, or with CONFIRMATION where there is nothing to select (a probe, or no selection pairs)."""
    to = Phase.SELECTION if _selection_pairs(release) else Phase.CONFIRMATION
    return advance(release, to, at=at, who=who, reason=reason or f"canary begins with {to}")


def pause(release: Release, *, at: float, who: str, reason: str = "paused") -> Release:
    """No more pairs are drawn; those under way still count. Raises IllegalTransition outside a canary."""
    return advance(release, Phase.PAUSED, at=at, who=who, reason=reason)


def resume(release: Release, *, at: float, who: str, reason: str = "resumed") -> Release:
    """Go on where the release was paused. Raises IllegalTransition if it isn't."""
    if release.paused_from is None:
        raise IllegalTransition(release.id, release.phase, "resumed")
    return advance(release, release.paused_from, at=at, who=who, reason=reason)


def conclude(release: Release, verdict: Verdict, *, at: float, who: str = "agentd") -> Release:
    """The release after its verdict. Raises IllegalTransition."""
    return advance(release, verdict.phase, at=at, who=who, reason=verdict.reason, stage=verdict.stage)


def draw_pair(release: Release, *, id: str, device: str, seed: int | None, flip: bool, at: float) -> PairPlan:  # noqa: A002 - as in begin
    """The next two episodes on `device`; `flip` (drawn by the caller, with probability 1/2) lets the candidate go first.

    Where there is an anchor (`goal = no_worse`) every second pair has it as the reference; such a pair's evidence is `anchored`.
    Raises ReleaseError outside a canary.
    """
    if release.phase not in CANARY:
        raise ReleaseError(f"release {release.id} is {release.phase}: it draws no pairs")
    anchored = weighing.has_anchor(release) and release.anchor_pairs < release.pairs
    return PairPlan(
        id=id,
        release=release.id,
        agent=release.agent,
        device=device,
        order=(Role.CANDIDATE, Role.STABLE) if flip else (Role.STABLE, Role.CANDIDATE),
        reference=(release.anchor or release.reference) if anchored else release.reference,
        candidate=release.candidate,
        seed=seed,
        drawn_at=at,
        anchored=anchored,
    )


def draw_single(release: Release, *, id: str, device: str, chance: float, at: float) -> PairPlan:  # noqa: A002 - as in begin
    """The role of the next episode that `device` begins by itself; `chance` is drawn by the caller, evenly from [0, 1).

    Raises ReleaseError outside a canary, and for a release that is decided on pairs.
    """
    probability = release.settings.exposure
    if release.phase not in CANARY or probability is None:
        raise ReleaseError(f"release {release.id} is {release.phase}: it draws no single episodes")
    return PairPlan(
        id=id,
        release=release.id,
        agent=release.agent,
        device=device,
        order=(Role.CANDIDATE if chance < probability else Role.STABLE,),
        reference=release.reference,
        candidate=release.candidate,
        probability=probability,
        drawn_at=at,
    )


# --- evidence -------------------------------------------------------------------------------------------------------


def observe(release: Release, evidence: Pair | Single, *, at: float) -> tuple[Release, Verdict | None]:
    """The release after one more pair or single episode, and the verdict if this one decides.

    Evidence of a release that has ended changes nothing. While PAUSED it counts, harm and guardrails end the release, and a promotion
    waits for the first evidence after `resume`. Each must come once: whoever calls commits evidence and release together.
    Raises ReleaseError for evidence of another release, ValueError for a role that was not drawn at random.
    """
    if evidence.release != release.id:
        raise ReleaseError(f"evidence {evidence.id} belongs to release {evidence.release}, not {release.id}")
    if release.phase not in CANARY | {Phase.PAUSED}:
        return release, None
    found = weighing.differences(release, evidence)
    counted = weighing.count(release, evidence)
    if evidence.guardrail:
        if not fleet.goes_alone(counted, evidence.device):
            return counted, _verdict(counted, Phase.REJECTED, _violated(counted, evidence), stage="guardrail")
        counted = fleet.withdraw(counted, evidence.device, evidence.guardrail)
    within = {}
    for about, difference in found.items():
        limit = weighing.bound(release.settings, about)
        if not abs(difference) <= limit * (1.0 + 1e-12):
            reason = f"a difference of {difference:+.3f} {about}".rstrip() + f" is outside the declared range of {limit:g}"
            return counted, _verdict(counted, Phase.INCONCLUSIVE, reason, stage="canary")
        within[about] = min(max(difference, -limit), limit)
    tested = _test(counted, within, at=at)
    return tested, _decide(tested)


def foresee(release: Release, waiting: Iterable[Single]) -> Verdict | None:
    """The verdict of the guardrails on evidence that waits for its turn: a candidate that fails need not fail for a whole window more.

    Only guardrails may look ahead. They reject, and promise no level; the tests see evidence in its order.
    """
    counted = release
    if release.phase not in CANARY | {Phase.PAUSED}:
        return None
    for evidence in waiting:
        counted = weighing.count(counted, evidence)
        if evidence.guardrail:
            if not fleet.goes_alone(counted, evidence.device):
                return _verdict(release, Phase.REJECTED, _violated(counted, evidence), stage="guardrail")
            counted = fleet.withdraw(counted, evidence.device, evidence.guardrail)
    return _errors(counted)


def missing(release: Release, waiting: int) -> int:
    """How many more may be drawn: `max_pairs` counts what was seen, and `waiting` is under way."""
    return max(0, release.settings.max_pairs - _seen(release) - waiting)


def _violated(release: Release, evidence: Pair | Single) -> str:
    before = [device for device in fleet.withdrawn(release) if device != evidence.device]
    return f"{evidence.guardrail} (on {evidence.device}, after {', '.join(before)})" if before else evidence.guardrail


def lost(release: Release, *, at: float) -> tuple[Release, Verdict | None]:  # noqa: ARG001 - every way of a release takes the time
    """The release after a pair that a lost plant or network left without a result: it is drawn again.

    Up to `max_lost_pairs` times for each exposed device: when a lease runs out, a fleet loses all that is under way at once.
    """
    if release.phase not in CANARY | {Phase.PAUSED}:
        return release, None
    counted = msgspec.structs.replace(release, lost_pairs=release.lost_pairs + 1)
    if counted.lost_pairs <= release.settings.max_lost_pairs * max(1, len(release.fleet)):
        return counted, None
    return counted, _verdict(counted, Phase.INCONCLUSIVE, f"lost evidence: {counted.lost_pairs} pairs", stage="canary")


def expire(release: Release, at: float) -> tuple[Release, Verdict | None]:
    """INCONCLUSIVE once the canary has lasted `max_duration`, pauses included; waiting for approval doesn't count."""
    since = next((change.at for change in release.history if change.phase in CANARY), None)
    if release.phase not in CANARY | {Phase.PAUSED} or since is None or at - since < release.settings.max_duration:
        return release, None
    return release, _verdict(release, Phase.INCONCLUSIVE, f"no decision within {release.settings.max_duration:g} s", stage="canary")


def online_alpha(releases: Iterable[Release], alpha: float) -> OnlineAlpha:
    """What an agent's earlier releases leave of `alpha`; its `level` is the next release's `promotion_alpha`.

    `releases` are all of the agent's, oldest first. Only proposals whose confirmation began have spent anything; a candidate that was
    forced to stable was not promoted by its test. Probes are not counted: they follow alarms, not proposals.
    """
    control = OnlineAlpha(alpha)
    for release in releases:
        confirmed = any(change.phase is Phase.CONFIRMATION for change in release.history)
        if release.kind is ReleaseKind.PROPOSAL and confirmed:
            control = control.update(promoted=_superior(release), level=weighing.superiority(release).alpha)
    return control


def agrees(release: Release, ledger: Sequence[Pair | Single]) -> bool:
    """Whether the release's sums are those of its evidence as the store has it: only then may a canary resume after a crash."""
    counted = msgspec.structs.replace(release, **dict.fromkeys(_COUNTERS, 0))
    for evidence in ledger:
        if evidence.release != release.id:
            return False
        counted = weighing.count(counted, evidence)
    return all(math.isclose(getattr(release, name), getattr(counted, name), abs_tol=1e-9) for name in _COUNTERS)


_COUNTERS = (
    "pairs",
    "anchor_pairs",
    "reference_sum",
    "candidate_sum",
    "reference_episodes",
    "candidate_episodes",
    "reference_aborted",
    "candidate_aborted",
    "silent",
)


def _selection_pairs(release: Release) -> int:
    return 0 if release.kind is ReleaseKind.PROBE else release.settings.selection_pairs


def _superior(release: Release) -> bool:
    return all(test.decided for test in weighing.promotion_tests(release).values())


def _seen(release: Release) -> int:
    return release.pairs + release.anchor_pairs


def _test(release: Release, found: Mapping[str, float], *, at: float) -> Release:
    phase = release.paused_from if release.phase is Phase.PAUSED else release.phase
    if phase is Phase.CONFIRMATION or release.selection.n >= _selection_pairs(release):
        tested = weighing.weigh(release, found, learning=False)
        return tested if phase is Phase.CONFIRMATION else _confirm(tested, at=at)
    learned = weighing.weigh(release, found, learning=True)
    selected = msgspec.structs.replace(learned, selection=_selected(release, found))
    return _confirm(selected, at=at) if selected.selection.n >= _selection_pairs(release) and not _hopeless(selected) else selected


def _selected(release: Release, found: Mapping[str, float]) -> Test:
    """What the selection saw: the state of a test that never bets."""
    test = BettingTest(0.5, Null.NOT_BETTER, weighing.bound(release.settings), state=release.selection)
    state = test.learn(found[""]).state if "" in found else test.state
    return msgspec.structs.replace(state, n=release.selection.n + 1, learned=0)


def _confirm(release: Release, *, at: float) -> Release:
    if release.phase is Phase.PAUSED:
        return msgspec.structs.replace(release, paused_from=Phase.CONFIRMATION)
    return advance(release, Phase.CONFIRMATION, at=at, who="agentd", reason=f"selected after {release.selection.n} pairs")


def _decide(release: Release) -> Verdict | None:
    return _answers(release) or _errors(release) or _tests(release) or _hopes(release)


def _answers(release: Release) -> Verdict | None:
    decided = next((name for name, test in weighing.answer_tests(release).items() if test.decided), None)
    return _verdict(release, Phase.REJECTED, f"the candidate gets {decided}", stage="guardrail") if decided else None


def _errors(release: Release) -> Verdict | None:
    settings, episodes, others = release.settings, release.candidate_episodes, release.reference_episodes
    if not episodes:
        return None
    aborted = release.candidate_aborted - len(fleet.withdrawn(release))  # a device that went back alone has taken its abort along
    rate = aborted / episodes
    if aborted >= ABORTED_EPISODES_BEFORE_RATE and rate >= settings.abort_error_rate:
        reason = f"error rate {rate:.0%} ({aborted} of {episodes} episodes) reached {settings.abort_error_rate:.0%}"
        return _verdict(release, Phase.REJECTED, reason, stage="guardrail")
    reference_rate = release.reference_aborted / others if others else 0.0
    if min(episodes, others) >= PAIRS_BEFORE_COMPARING_ERRORS and rate - reference_rate > settings.max_error_rate_increase:
        reason = f"error rate {rate:.0%} against {reference_rate:.0%}, over {episodes} episodes"
        return _verdict(release, Phase.REJECTED, reason, stage="guardrail")
    return None


def _tests(release: Release) -> Verdict | None:
    harmful = next(((name, test) for name, test in weighing.rejection_tests(release).items() if test.decided), None)
    if harmful:
        name, test = harmful
        about = name.removesuffix(" rejects")
        reason = f"harm{about and f' ({about})'}: {_evidence(release, test)}"
        return _verdict(release, Phase.REJECTED, reason, stage="canary", log_e=test.log_e)
    covered = release.kind is ReleaseKind.PROBE or fleet.is_covered(release)  # both revisions of a probe have served everywhere
    if _superior(release) and release.phase is not Phase.PAUSED and covered:
        test = weighing.superiority(release)
        word = "better" if release.settings.goal is Goal.BETTER else f"no worse by {release.settings.margin:g}"
        return _verdict(release, Phase.PROMOTED, f"{word}: {_evidence(release, test)}", stage="canary")
    return None


def _hopes(release: Release) -> Verdict | None:
    settings = release.settings
    if _hopeless(release):
        reason = f"mean difference {release.difference:+.3f} after {release.pairs} pairs is below {fleet.prune_below(settings):+g}"
        return _verdict(release, Phase.PRUNED, reason, stage="canary")
    if _futile(release):
        reason = (
            f"the last good revision is not better by {settings.futile_below:.3f}: {release.difference:+.3f} after {release.pairs} pairs"
        )
        return _verdict(release, Phase.INCONCLUSIVE, reason, stage="canary")
    if _seen(release) >= settings.max_pairs and (not _superior(release) or release.phase is Phase.PAUSED):
        return _verdict(release, Phase.INCONCLUSIVE, f"no decision within {settings.max_pairs} pairs", stage="canary")
    return None


def _hopeless(release: Release) -> bool:
    settings, difference = release.settings, release.difference
    if release.kind is ReleaseKind.PROBE or difference is None or release.pairs < settings.prune_after_pairs:
        return False
    return difference < fleet.prune_below(settings)


def _futile(release: Release) -> bool:
    settings, difference, n = release.settings, release.difference, release.superiority.n
    if release.kind is ReleaseKind.PROPOSAL or settings.futile_below is None or difference is None or n < PAIRS_BEFORE_FUTILITY:
        return False
    deviation = math.sqrt(release.superiority.variance * n / (n - 1)) * 2.0 * weighing.bound(settings)  # from X = (D/B + 1)/2 back to D
    return difference + 2.0 * (1.0 + 3.0 / n) * deviation / math.sqrt(n) < settings.futile_below


def _evidence(release: Release, test: BettingTest) -> str:
    difference = 0.0 if release.difference is None else release.difference
    return f"{difference:+.3f} over {release.pairs} pairs, e = {test.e_value:.3g} against {1.0 / test.alpha:.0f}"


def _verdict(release: Release, phase: Phase, reason: str, *, stage: str, log_e: float | None = None) -> Verdict:
    shown = release.superiority.log_e if log_e is None else log_e
    return Verdict(phase=phase, reason=reason, stage=stage, e_value=math.exp(min(shown, 700.0)), pairs=_seen(release))
