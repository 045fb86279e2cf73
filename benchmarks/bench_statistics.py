"""What agentd's decisions on releases promise, measured: prints the tables of docs/statistics.md. Seeded; takes a few minutes.

    python benchmarks/bench_statistics.py [--runs 1000] [--only size power candidates lifetime shares pruning order]

Thousands of canaries are simulated side by side with numpy; `check` first runs some of them through the real machine and refuses to go on
if a single one ends differently. The tables of the watch are bench_watch.py's.
"""

import math
from collections import Counter

import numpy as np
import ville
from canaries import PAIRS, SPREAD, Canaries, capital, check, first, gaussian
from scipy import stats
from simulation import NEVER, main, share, table

from agentd.records import Goal, Phase, ReleaseKind, ReleaseSettings, Role, Single
from agentd.release import machine
from agentd.release.statistics import Null, OnlineAlpha

ALPHA = 0.05
OFF = 10**9
LEVEL = 0.5  # the mean of the scores

# --- size ---------------------------------------------------------------------------------------------------------


def worlds(random, runs, worse=0.0):
    """Differences of candidates that are worse by `worse`, shape (runs, PAIRS), by world."""
    shape = (runs, PAIRS)

    def pair(level, noise, drift=0.0):
        """Two episodes after each other, in random order, in a world that drifts by `drift` from one to the next."""
        later = random.integers(0, 2, shape)
        candidate = np.clip(level + noise(shape) - worse + drift * later, 0, 1)
        return candidate - np.clip(level + noise(shape) + drift * (1 - later), 0, 1)

    def normal(size):
        return random.normal(0, SPREAD / math.sqrt(2), size)

    slope = np.linspace(0.8, 0.3, PAIRS)
    jump = np.where(np.arange(PAIRS) % 80 < 40, 0.7, 0.4)
    devices = random.normal(0.5, SPREAD / math.sqrt(2), (runs, 20))
    on_device = np.take_along_axis(devices, random.integers(0, 20, shape), axis=1)
    yield "gaussian", pair(LEVEL, normal)
    yield "drifting down by half the range", pair(slope, normal, drift=-0.5 / (2 * PAIRS))
    yield "jumping between two levels", pair(jump, normal)
    yield "binary", (random.random(shape) < LEVEL - worse).astype(float) - (random.random(shape) < LEVEL)
    yield "heavy tails (Student t, 2 degrees)", pair(LEVEL, lambda size: random.standard_t(2, size) * 0.05)
    yield "rare disasters (1 in 50 episodes)", pair(0.9, lambda size: np.where(random.random(size) < 0.02, -0.9, 0.0))
    yield "20 devices, effects as large as the noise", pair(on_device, normal)


def peeked_t(differences, alternative, alpha=ALPHA):
    """The first pair, from the tenth on, after which a paired t-test that is looked at each time has p < alpha; or NEVER."""
    count = np.arange(1, differences.shape[1] + 1)
    mean = np.cumsum(differences, axis=1) / count
    variance = np.maximum(np.cumsum(differences**2, axis=1) / count - mean**2, 1e-12) * count / np.maximum(count - 1, 1)
    t = mean / np.sqrt(variance / count) * (1 if alternative == "greater" else -1)
    return first((stats.t.sf(t, np.maximum(count - 1, 1)) < alpha) & (count >= 10))


def mann_whitney(random, runs, shift, alpha=ALPHA, alternative="greater"):
    """A fixed-horizon Mann-Whitney test of PAIRS unpaired scores on each side, looked at once, at the end."""
    deviation = SPREAD / math.sqrt(2)
    stable = random.normal(LEVEL, deviation, (runs, PAIRS))
    candidate = random.normal(LEVEL + shift, deviation, (runs, PAIRS))
    return stats.mannwhitneyu(candidate, stable, alternative=alternative, axis=1).pvalue < alpha


def unpaired(random, runs, probability, worse=0.0):
    """Single episodes, the candidate's drawn with `probability`, through the real machine: the phases they end in."""

    def episode():
        by_candidate = random.random() < probability
        return by_candidate, float(np.clip(random.normal(LEVEL - worse * by_candidate, SPREAD / math.sqrt(2)), 0, 1))

    return [decided(probability, (episode() for _ in range(PAIRS))) for _ in range(runs)]


def decided(probability, episodes):
    """The phase in which a release ends that sees so many single episodes, each (by the candidate, score)."""
    rules = {"selection_pairs": 0, "prune_after_pairs": OFF, "max_error_rate_increase": 1.0}
    settings = ReleaseSettings(exposure=probability, max_pairs=PAIRS, **rules)
    release = machine.begin(None, id="r", agent="a", candidate="c", reference="s", settings=settings, kind=ReleaseKind.PROBE, at=0.0)
    release, verdict = machine.start(release, at=0.0), None
    for by_candidate, score in episodes:
        role = Role.CANDIDATE if by_candidate else Role.STABLE
        release, verdict = machine.observe(
            release, Single(id="", release="r", device="", role=role, probability=probability, score=score), at=0.0
        )
        if verdict:
            break
    return verdict.phase


def bench_order(runs):
    """An episode an hour, each liked or not. Who likes the candidate's says so at once, who doesn't after 40 hours; stable's after 20."""
    random, rows = np.random.default_rng(9), []
    for name, likes in (("equal", 0.5), ("worse by 20%", 0.3)):
        ends = {"in their turn": [], "as they are answered": []}
        for _ in range(runs):
            by_candidate = random.random(PAIRS) < 0.5
            liked = random.random(PAIRS) < np.where(by_candidate, likes, 0.5)
            answered = np.arange(PAIRS) + np.where(by_candidate, np.where(liked, 0.0, 40.0), 20.0)
            for order, index in (("in their turn", np.arange(PAIRS)), ("as they are answered", np.argsort(answered, kind="stable"))):
                ends[order].append(decided(0.5, ((bool(by_candidate[at]), float(liked[at])) for at in index)))
        for order, phases in ends.items():
            rows.append([name, order, *(share([phase is end for phase in phases]) for end in (Phase.PROMOTED, Phase.REJECTED))])
    header = ["candidate", "episodes enter", "promoted", "rejected"]
    table(f"Order: {PAIRS} single episodes, praised at once and blamed late, {runs} runs", header, rows)


def bench_size(runs):
    random, rows = np.random.default_rng(1), []
    worse = dict(worlds(random, runs, worse=0.03))
    for world, equal in worlds(random, runs):
        threshold = -math.log(ALPHA)
        promoted = (capital(equal, Null.NOT_BETTER) >= threshold).any(axis=1)
        harmed = (capital(equal, Null.NOT_WORSE) >= threshold).any(axis=1)
        promoted_worse = (capital(worse[world], Null.NOT_BETTER) >= threshold).any(axis=1)
        rows.append([world, share(promoted), share(promoted_worse), share(harmed), share(peeked_t(equal, "greater") < NEVER)])
    for probability in (0.5, 0.2):
        equal, bad = unpaired(random, runs, probability), unpaired(random, runs, probability, worse=0.03)
        rows.append(
            [
                f"unpaired, candidate's share {probability:g}",
                share([end is Phase.PROMOTED for end in equal]),
                share([end is Phase.PROMOTED for end in bad]),
                share([end is Phase.REJECTED for end in equal]),
                "",
            ]
        )
    header = ["world", "equal, promoted", "worse by 3%, promoted", "equal, rejected", "peeked t-test, equal promoted"]
    table(f"Size: {runs} runs of {PAIRS} pairs, looked at after each, alpha 5%, pruning and guardrails off", header, rows)
    print(f"\nFixed-horizon Mann-Whitney, looked at once after {PAIRS} pairs: {share(mann_whitney(random, runs, 0.0))} equal promoted.")


# --- power --------------------------------------------------------------------------------------------------------


def bench_power(runs):
    random, rows = np.random.default_rng(2), []
    for name, deviation in (("gaussian, SD 5% of the range", 0.05), ("gaussian, SD 10%", 0.1), ("gaussian, SD 30%", 0.3)):
        for effect in (0.5, 1.0):
            differences = gaussian(random, (runs, 600), -effect * deviation, deviation)
            rows += [power_row(f"{name}, {-effect:g} SD", differences)]
    for name, candidate, stable in (
        ("0.5 to 0.18: -0.5 SD", 0.18, 0.5),
        ("0.82 to 0.5: -0.5 SD", 0.5, 0.82),
        ("0.56 to 0.05: -1 SD", 0.05, 0.56),
    ):
        binary = (random.random((runs, 600)) < candidate).astype(float) - (random.random((runs, 600)) < stable)
        rows += [power_row(f"binary, {name}", binary)]
    header = ["differences", "agentd: median pairs", "ville: median pairs", "ratio", "agentd: 90% within", "peeked t-test (invalid)"]
    table(f"Power: pairs to reject a worse candidate at alpha 5%, {runs} runs", header, rows)


def power_row(name, differences):
    threshold = -math.log(ALPHA)
    ours = first(capital(differences, Null.NOT_WORSE) >= threshold)
    oracle = ville.BettingTest(0.0, bounds=(-1, 1), alternative="less", alpha=ALPHA)
    theirs = [oracle.fit(row).stopping_time() or NEVER for row in differences]
    mine, other = np.median(ours), np.median(theirs)
    peeked = np.median(peeked_t(differences, "less"))
    return [name, f"{mine:.0f}", f"{other:.0f}", f"{mine / other:.2f}", f"{np.quantile(ours, 0.9):.0f}", f"{peeked:.0f}"]


# --- one candidate after the other --------------------------------------------------------------------------------


def bench_candidates(runs):
    """Worst case for the levels: each earlier candidate reached confirmation, and none was promoted."""
    random, rows = np.random.default_rng(3), []
    settings = ReleaseSettings(prune_after_pairs=OFF)
    better = gaussian(random, (runs, PAIRS), 0.05)
    canaries = Canaries.of(better, settings)
    shipped = Canaries.of(gaussian(random, (runs, PAIRS), 0.05), ReleaseSettings())
    equal = gaussian(np.random.default_rng(11), (runs, PAIRS))
    control = OnlineAlpha(ALPHA)
    for position in range(1, 101):
        if position in {1, 10, 30, 100}:
            level, series = control.level, ALPHA * 6 / (math.pi * position) ** 2
            rows.append(
                [
                    position,
                    f"{level:.4f}",
                    share([canaries.end(run, level)[0] == "promoted" for run in range(runs)]),
                    share([shipped.end(run, level)[0] == "promoted" for run in range(runs)]),
                    f"{series:.6f}",
                    share([canaries.end(run, series)[0] == "promoted" for run in range(runs)]),
                    share(mann_whitney(random, runs, 0.05, level)),
                    share(peeked_t(better, "greater", level) < NEVER),
                    share(peeked_t(equal, "greater", level) < NEVER),
                ]
            )
        control = control.update(promoted=False)
    header = [
        "candidate",
        "level",
        "promoted",
        "with default pruning",
        "1/k^2 level",
        "promoted at that",
        f"Mann-Whitney after {PAIRS} at our level",
        "peeked t-test at our level (invalid)",
        "the same, an equal one",
    ]
    table(f"Power: a candidate better by 5% of the range (paired SD 10%), within {PAIRS} pairs, {runs} runs", header, rows)


# --- a lifetime ---------------------------------------------------------------------------------------------------


def bench_lifetime(runs, candidates=200):
    random, together = np.random.default_rng(4), 20
    effects = np.where(np.arange(candidates) % 2, 0.0, -0.01)
    results = {"e-LORD with decaying memory": [], "alpha for each candidate": []}
    for _ in range(max(runs // together, 1)):
        differences = gaussian(random, (together * candidates, PAIRS), np.tile(effects, together)[:, None])
        canaries = Canaries.of(differences, ReleaseSettings())
        for life in range(together):
            for name, found in results.items():
                found.append(lifetime(canaries, life * candidates, effects, OnlineAlpha(ALPHA) if "e-LORD" in name else None))
    rows = []
    for name, found in results.items():
        promoted, fallen, pairs, lost = np.array(found).T
        rows.append(
            [
                name,
                share(promoted > 0),
                f"{promoted.mean():.2f}",
                share(fallen > 0),
                f"{fallen.mean():.4f}",
                f"{pairs.mean():.1f}",
                f"{lost.mean():.1f}",
            ]
        )
    header = [
        "levels",
        "ever an equal or worse one promoted",
        "such promotions",
        "ever a worse one",
        "stable's mean score lost",
        "pairs per candidate",
        "episodes' scores lost in canaries",
    ]
    title = f"A lifetime: {candidates} candidates, half equal, half worse by 1% (paired SD 10%), shipped defaults, {len(found)} lives"
    table(title, header, rows)
    bench_ratchet(runs, candidates)


def lifetime(canaries, start, effects, control):
    """(promotions, score that the promoted ones lost, pairs per candidate, sum of scores lost in canaries) of one agent."""
    promoted = fallen = pairs = lost = 0
    for run, effect in enumerate(effects, start=start):
        end, used = canaries.end(run, control.level if control else ALPHA)
        pairs, lost = pairs + used, lost - effect * used
        if end == "promoted":
            promoted, fallen = promoted + 1, fallen - effect
        if control and used > canaries.settings.selection_pairs:
            control = control.update(promoted=end == "promoted")
    return promoted, fallen, pairs / len(effects), lost


def bench_ratchet(runs, candidates):
    """Every candidate is worse by 1% than what is stable at that time, under no_worse with a margin of 10%; all lives side by side."""
    rows = []
    settings = ReleaseSettings(goal=Goal.NO_WORSE, margin=0.1, prune_after_pairs=OFF)
    for name, anchored in (("against stable and the anchor", True), ("against stable alone", False)):
        random, below, promotions = np.random.default_rng(5), np.zeros(runs), np.zeros(runs)
        controls = [OnlineAlpha(ALPHA)] * runs
        for _ in range(candidates):
            stable = Canaries.of(gaussian(random, (runs, PAIRS // 2), -0.01), settings)
            anchor = Canaries.of(gaussian(random, (runs, PAIRS // 2), -below[:, None] - 0.01), settings)
            threshold = -np.log([control.level for control in controls])
            passed = (stable.superior[:, -1] >= threshold) & (stable.harmed == NEVER)
            if anchored:
                passed &= anchor.superior[:, -1] >= threshold
            controls = [control.update(promoted=bool(won)) for control, won in zip(controls, passed, strict=True)]
            below, promotions = below + 0.01 * passed, promotions + passed
        rows.append([name, f"{promotions.mean():.1f}", f"{below.mean():.3f}", f"{np.quantile(below, 0.95):.3f}"])
    header = ["tested", "promotions", "score lost at the end (mean)", "95% of lives lose at most"]
    table(f"A ratchet: {candidates} candidates, each worse by 1%, `no_worse` with a margin of 10%, {runs} lives", header, rows)


# --- shares of outcomes -------------------------------------------------------------------------------------------


def bench_shares(runs):
    random, rows = np.random.default_rng(6), []
    level = OnlineAlpha(ALPHA).level
    for effect in (-0.2, -0.05, -0.02, 0.0, 0.02, 0.05, 0.1, 0.3):
        canaries = Canaries.of(gaussian(random, (runs, PAIRS), effect), ReleaseSettings())
        ends = [canaries.end(run, level) for run in range(runs)]
        counted = Counter(name for name, _ in ends)
        shares = [f"{100 * counted[name] / runs:.1f}%" for name in ("promoted", "pruned", "rejected", "inconclusive")]
        rows.append([f"{effect:+.0%}", *shares, f"{np.median([pairs for _, pairs in ends]):.0f}"])
    header = ["difference", "promoted", "pruned", "rejected for harm", "inconclusive", "median pairs"]
    table(f"Shares of outcomes at the shipped defaults, first candidate, paired SD 10% of the range, {runs} runs", header, rows)


def bench_pruning(runs):
    """What the shipped rule costs and gains beside others."""
    rows = []
    levels = (OnlineAlpha(ALPHA).level, 0.0024)
    for after, below, most in ((10, 0.0, 200), (15, 0.0, 200), (20, 0.0, 200), (15, -0.01, 200), (15, 0.0, 300), (20, 0.0, 300)):
        random = np.random.default_rng(10)
        settings = ReleaseSettings(prune_after_pairs=after, prune_below=below, max_pairs=most)
        better, equal, worse = (Canaries.of(gaussian(random, (runs, most), effect), settings) for effect in (0.05, 0.0, -0.05))
        won = [share([better.end(run, level)[0] == "promoted" for run in range(runs)]) for level in levels]
        ends = [equal.end(run, levels[0]) for run in range(runs)]
        pairs = [np.mean([canaries.end(run, levels[0])[1] for run in range(runs)]) for canaries in (equal, worse)]
        rows.append([after, f"{below:+.0%}", most, *won, share([end == "promoted" for end, _ in ends]), *(f"{mean:.0f}" for mean in pairs)])
    header = [
        "after",
        "below",
        "max_pairs",
        "5% better, 1st",
        "10th and later",
        "equal promoted",
        "mean pairs, equal",
        "mean pairs, 5% worse",
    ]
    table(f"Pruning rules: who is promoted, and what the others cost (paired SD 10%), {runs} runs", header, rows)


BENCHES = {
    "size": bench_size,
    "power": bench_power,
    "candidates": bench_candidates,
    "lifetime": bench_lifetime,
    "shares": bench_shares,
    "pruning": bench_pruning,
    "order": bench_order,
}

if __name__ == "__main__":
    main(__doc__.splitlines()[0], BENCHES, before=check)
