"""The events of a release: who did what, why, and on what evidence."""

from agentd.hosting.keeper import Keeper
from agentd.records import Event, Pair, Phase, Release, ReleaseKind, Single, Value
from agentd.release import fleet


def changed(keeper: Keeper, release: Release, **data: Value) -> Event:
    """The release is in another phase."""
    kind = "release.rolled_back" if release.phase is Phase.ROLLED_BACK else f"release.{release.phase}"
    if release.kind is ReleaseKind.PROBE:
        kind = "release.probe_ended" if release.ended_at is not None else "release.probe_changed"
    last = release.history[-1]
    return keeper.event(
        kind,
        f"{release.candidate[:10]} {release.phase.replace('_', ' ')}: {release.reason}",
        who=last.who,
        **_facts(release),
        stage=release.stage,
        reason=release.reason,
        forced=release.forced,
        **data,
    )


def weighed(keeper: Keeper, release: Release, evidence: Pair | Single) -> Event:
    """One more piece of evidence came in."""
    if isinstance(evidence, Pair):
        against = "anchor" if evidence.anchored else "stable"
        message = f"pair {release.pairs + release.anchor_pairs}: candidate {evidence.candidate:.3f}, {against} {evidence.reference:.3f}"
        scores: dict[str, Value] = {"candidate": evidence.candidate, "reference": evidence.reference}
    else:
        score = "silent" if evidence.score is None else f"{evidence.score:.3f}"
        message = f"episode {release.pairs}: {evidence.role} {score}"
        scores = {} if evidence.score is None else {str(evidence.role): evidence.score}
    return keeper.event(
        "release.evidence",
        message,
        release=release.id,
        pairs=release.pairs,
        phase=str(release.phase),
        log_e=release.superiority.log_e,
        log_e_harm=release.harm.log_e,
        device=evidence.device,
        **scores,
    )


def stepped(keeper: Keeper, before: Release, after: Release, *, who: str = "agentd") -> Event:
    """The ramp goes on, or is done."""
    added = [device for device in after.fleet if device not in before.fleet]
    evidence = "nothing seen yet" if after.difference is None else f"{after.difference:+.3f} over {after.pairs} pairs so far"
    return keeper.event(
        "release.step",
        f"{after.candidate[:10]} {fleet.summary(after)}; {evidence}",
        who=who,
        **_facts(after),
        step=after.step,
        added=added,
        exposed=list(fleet.exposed(after)),
        reason=evidence,
    )


def withdrawn(keeper: Keeper, release: Release, evidence: Pair | Single) -> Event:
    """One device went back to stable alone."""
    return keeper.event(
        "release.device_withdrawn",
        f"{evidence.device} goes back to stable alone: {evidence.guardrail}",
        **_facts(release),
        device=evidence.device,
        reason=evidence.guardrail,
        evidence=evidence.id,
        exposed=list(fleet.exposed(release)),
    )


def _facts(release: Release) -> dict[str, Value]:
    return {
        "release": release.id,
        "candidate": release.candidate,
        "reference": release.reference,
        "phase": str(release.phase),
        "pairs": release.pairs,
        "difference": release.difference,
        "log_e": release.superiority.log_e,
    }
