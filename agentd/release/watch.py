"""The watch on the stable revision: a burn-in gives a bound, a Shiryaev-Roberts detector holds the scores against it.

The bound is a lower confidence bound for the revision's own mean, from fresh episodes (not those of the canary that it won: the winner of
a comparison was lucky on average). It goes on rising for `BURN_INS` burn-ins as more episodes sharpen it, and never falls, so that a slow
decline can't drag it along. A revision that became stable without winning is held against its predecessor's bound from its first episode.

An alarm says that the scores fell, not why. A probe (agentd.release.machine) runs the last good revision and this one as pairs.
"""

import enum
import math

import msgspec

from agentd.records import Goal, Phase, Release, ReleaseKind, ReleaseSettings, Watch, WatchSettings
from agentd.release.statistics import BET_LIMIT, ShiryaevRobertsDetector, lower_bound

RECENT = 100
"""How many of the latest scores a watch remembers."""

REACHED_EVERY = 1000.0
"""Episodes below a target after which it may once be called reached by mistake: what follows from that is mended by the next alarm."""

BURN_INS = 8
"""The bound is sharpened until so many times the burn-in's length have been seen."""


class Cause(enum.StrEnum):
    """What a probe found out about an alarm."""

    REGRESSION = "regression"
    DRIFT = "drift"


def begin(revision: str) -> Watch:
    """A watch with its burn-in ahead."""
    return Watch(revision=revision)


def inherit(revision: str, predecessor: Watch) -> Watch:
    """The watch on a revision that became stable without winning its canary (forced, pinned): its predecessor's bound holds at once.

    Its own burn-in may only raise that. Without a bound to inherit it is `begin`. The caller sees to it that both are of the same regime.
    """
    return Watch(revision=revision, bound=predecessor.bound, inherited=predecessor.bound is not None)


def observe(watch: Watch, score: float, *, settings: WatchSettings) -> tuple[Watch, bool]:
    """The watch after one more normalised score, and whether this one raised the alarm (once: an alarmed watch only remembers).

    Raises ValueError for a score outside [0, 1].
    """
    if not 0.0 <= score <= 1.0:
        raise ValueError(f"a score of {score} is outside [0, 1]")
    episodes = watch.episodes + 1
    recent = (*watch.recent, score)[-RECENT:]
    if watch.alarmed:
        return msgspec.structs.replace(watch, episodes=episodes, recent=recent), False
    log_statistic, alarmed = watch.log_statistic, False
    if watch.bound is not None:
        detector = ShiryaevRobertsDetector(settings.alarm_every, watch.bound, log_statistic).update(score)
        log_statistic, alarmed = detector.log_statistic, detector.alarmed
    bound, burn_in = watch.bound, watch.burn_in
    if episodes <= settings.burn_in * BURN_INS:
        burn_in = (*burn_in, score)
        if episodes % settings.burn_in == 0:
            bound = max(lower_bound(burn_in, 1.0 - settings.confidence), bound or 0.0)
        if episodes == settings.burn_in * BURN_INS:
            burn_in = ()
    return (
        msgspec.structs.replace(
            watch, burn_in=burn_in, bound=bound, log_statistic=log_statistic, episodes=episodes, alarmed=alarmed, recent=recent
        ),
        alarmed,
    )


def survived(watch: Watch, settings: WatchSettings) -> bool:
    """Whether the revision has served long enough without an alarm to be the last good one.

    Its latest scores must reach the bound, too: a forced revision that is a little worse than its predecessor falls below the inherited
    bound at once, but the alarm takes its time.
    """
    if watch.alarmed or watch.bound is None or watch.episodes < settings.good_after:
        return False
    latest = watch.recent[-settings.good_after :]
    return sum(latest) / len(latest) >= watch.bound


def reached(watch: Watch, target: float) -> bool:
    """Whether the latest scores show that their mean is above `target` by now: the alarm's mirror image, on 1 - S.

    While each score's mean given the past is at most `target`, that is said of one in `REACHED_EVERY` episodes at most; the mean of the
    latest scores would be above it sooner or later, if only one looks often enough. It sees gains within `RECENT` scores.
    """
    detector = ShiryaevRobertsDetector(REACHED_EVERY, 1.0 - target)
    for score in watch.recent:
        detector = detector.update(1.0 - score)
    return detector.alarmed


def fallen_episodes(watch: Watch) -> int:
    """How many of the latest episodes most likely belong to the time after the fall; 0 without a bound.

    The maximum-likelihood change point of the detector's own bets: where the sum of log(1 + g (b - S)/(1 - b)) over the latest scores is
    largest, for the best single bet. What the optimizer learns from should be no older than this.
    """
    if watch.bound is None:
        return 0
    best, length = 0.0, 0
    for bet in (BET_LIMIT, 0.5, 0.25, 0.1, 0.03):
        total = 0.0
        for count, score in enumerate(reversed(watch.recent), start=1):
            total += math.log1p(bet * (watch.bound - score) / max(1.0 - watch.bound, 1e-6))
            if total > best:
                best, length = total, count
    return length


def fall(watch: Watch) -> float:
    """By how much the mean of the episodes after the fall is below the bound (at least 0): what a probe has to explain."""
    length = fallen_episodes(watch)
    if watch.bound is None or not length:
        return 0.0
    return max(watch.bound - sum(watch.recent[-length:]) / length, 0.0)


def probe_settings(settings: ReleaseSettings, watch: Watch) -> ReleaseSettings:
    """The rules for the probe after `watch`'s alarm: no selection, and just enough pairs to prove that the old revision explains the fall.

    It asks about the score alone, and begins with the last step of the ramp: both revisions have served the whole fleet before.

    If it does, the old revision is better by at least the fall. The probe is futile once it is plausibly not better by half of that
    (agentd.release.machine says what "plausibly" is); futility makes no claim at a level, since calling a regression drift only means that
    the optimizer is asked instead of a rollback made.
    """
    explained = max(fall(watch), 0.01)
    growth = math.log1p(BET_LIMIT * min(explained / settings.difference_range, 1.0))
    needed = math.ceil(-2.0 * math.log(settings.alpha) / growth)
    return msgspec.structs.replace(
        settings,
        goal=Goal.BETTER,
        margin=0.0,
        metrics=(),
        ramp=settings.ramp[-1:],
        selection_pairs=0,
        max_pairs=min(settings.max_pairs, max(40, needed)),
        futile_below=explained / 2.0,
    )


def classify(probe: Release) -> Cause:
    """What the probe says about the alarm: a regression only if the last good revision proved better; anything else is drift."""
    if probe.kind is not ReleaseKind.PROBE:
        raise ValueError(f"release {probe.id} is no probe")
    return Cause.REGRESSION if probe.phase is Phase.PROMOTED else Cause.DRIFT
