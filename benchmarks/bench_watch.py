"""What agentd's watch over the stable revision promises, measured: prints the last tables of docs/statistics.md. Seeded; takes minutes.

    python benchmarks/bench_watch.py [--runs 1000] [--only watch cause]

`watch` raises its alarms with numpy, for many revisions side by side; `cause` takes each fall through the real watch and a real probe.
"""

import math

import numpy as np
from simulation import NEVER, main, share, table

from agentd.records import Pair, ReleaseKind, ReleaseSettings, WatchSettings
from agentd.release import machine, watch
from agentd.release.statistics import BETS, lower_bound

# --- the watch ----------------------------------------------------------------------------------------------------


def burnt_in(scores, settings):
    """The bound of each watch after each episode of its burn-in, from the real `lower_bound`: a list of (episode, bounds)."""
    delta, bounds = 1.0 - settings.confidence, []
    for n in range(settings.burn_in, settings.burn_in * watch.BURN_INS + 1, settings.burn_in):
        found = np.array([lower_bound(row[:n].tolist(), delta) for row in scores])
        bounds.append((n, np.maximum(found, bounds[-1][1]) if bounds else found))
    return bounds


def alarms(scores, settings):
    """At which episode (from 1) each row of scores raises its alarm, and the bounds at the end."""
    bounds = dict(burnt_in(scores, settings))
    bets, runs = np.array(BETS), len(scores)
    bound, log_m = None, np.full((runs, len(BETS)), -np.inf)
    alarm = np.full(runs, NEVER)
    for t in range(scores.shape[1]):
        if bound is not None:
            gain = (bound - scores[:, t]) / np.maximum(1.0 - bound, 1e-6)
            log_m = np.logaddexp(0.0, log_m) + np.log1p(bets * gain[:, None])
            mixture = np.logaddexp.reduce(log_m, axis=1) - math.log(len(BETS))
            alarm = np.where((alarm == NEVER) & (mixture >= math.log(settings.alarm_every)), t + 1, alarm)
        bound = bounds.get(t + 1, bound)
    return alarm, bound


def score_worlds(random, runs, episodes, fall):
    """Scores of revisions that fall by `fall` standard deviations after `episodes - 3000` episodes, by world."""
    shape = (runs, episodes)
    after = np.arange(episodes) >= episodes - 3000 if fall else np.zeros(episodes, dtype=bool)
    yield "gaussian 0.8, SD 5% of the range", np.clip(random.normal(0.8 - 0.05 * fall * after, 0.05, shape), 0, 1)
    yield "gaussian 0.8, SD 10%", np.clip(random.normal(0.8 - 0.1 * fall * after, 0.1, shape), 0, 1)
    yield "gaussian 0.6, SD 20%", np.clip(random.normal(0.6 - 0.2 * fall * after, 0.2, shape), 0, 1)
    yield "binary 0.9", (random.random(shape) < 0.9 - 0.3 * fall * after).astype(float)
    rare = random.random(shape) < np.where(after, 0.03 + 0.14 * fall, 0.03)
    yield "0.9 with rare zeros (3%)", np.where(rare, 0.0, np.clip(random.normal(0.9, 0.02, shape), 0, 1))


def bench_watch(runs):
    settings, rows = WatchSettings(), []
    random = np.random.default_rng(7)
    healthy = {name: alarms(scores, settings) for name, scores in score_worlds(random, runs, 10_000, 0)}
    for burn_in in (30, 240):
        random = np.random.default_rng(8)
        for name, scores in score_worlds(random, runs, burn_in + 3000, 1):
            alarm, bound = alarms(scores, settings)
            delay = np.where(alarm < NEVER, alarm - burn_in, NEVER)
            median = np.median(delay)
            rows.append(
                [
                    name,
                    burn_in,
                    f"{bound.mean():.3f}",
                    share(healthy[name][0] < NEVER),
                    f"{median:.0f}" if median < NEVER else "more than 3000",
                    share(delay <= 100),
                ]
            )
    header = ["scores", "fall after", "bound at the end", "alarms in 10,000 healthy episodes", "median delay at -1 SD", "within 100"]
    table(f"Watch: alarm_every 1e6, burn-in 30 (sharpened to 240), {runs} runs", header, rows)


# --- drift or regression ------------------------------------------------------------------------------------------


def bench_cause(runs):
    rows = []
    cases = [
        ("sudden, 0.9 to 0.15, SD 5%", 0.9, 0.15, 0.05, "sudden"),
        ("sudden, 0.9 to 0.7, SD 10%", 0.9, 0.7, 0.1, "sudden"),
        ("sudden, 0.8 to 0.7 (-1 SD), SD 10%", 0.8, 0.7, 0.1, "sudden"),
        ("sudden, 0.6 to 0.3, SD 30%", 0.6, 0.3, 0.3, "sudden"),
        ("slow: 0.9 to 0.4 over 400 episodes, SD 10%", 0.9, 0.4, 0.1, "slow"),
        ("and back again before the probe: 0.9, 0.3, 0.9, SD 10%", 0.9, 0.3, 0.1, "back"),
    ]
    for name, was, fell_to, deviation, kind in cases:
        random = np.random.default_rng(9)
        found = {True: [], False: []}
        for _ in range(runs):
            for regression in (True, False):
                if kind == "back" and regression:
                    continue
                found[regression].append(cause(random, was, fell_to, deviation, kind, regression=regression))
        right = [cause_found is watch.Cause.REGRESSION for cause_found, _ in found[True]]
        drift = [cause_found is watch.Cause.DRIFT for cause_found, _ in found[False]]
        rows.append(
            [
                name,
                share(right) if right else "",
                share(drift),
                f"{np.median([pairs for _, pairs in found[True]]):.0f}" if right else "",
                f"{np.median([pairs for _, pairs in found[False]]):.0f}",
            ]
        )
    header = ["fall", "regressions called regression", "drifts called drift", "median pairs, regression", "median pairs, drift"]
    table(f"Drift or regression: watch, alarm and probe through the real code, {runs} runs", header, rows)


def cause(random, was, fell_to, deviation, kind, *, regression):
    """The cause found for a fall of the stable revision, and the pairs that the probe took. In a drift the old one falls as well."""

    def draw(mean):
        return float(np.clip(random.normal(mean, deviation), 0.0, 1.0))

    settings, state, since = WatchSettings(), watch.begin("new"), 0
    for _ in range(120):
        state, _ = watch.observe(state, draw(was), settings=settings)
    if state.alarmed:
        return watch.Cause.DRIFT, 0

    def level(episode):
        return max(fell_to, was - (was - fell_to) * episode / 400) if kind == "slow" else fell_to

    while not state.alarmed:
        state, _ = watch.observe(state, draw(level(since)), settings=settings)
        since += 1
    release = machine.begin(
        None,
        id="r",
        agent="a",
        candidate="old",
        reference="new",
        settings=watch.probe_settings(ReleaseSettings(), state),
        kind=ReleaseKind.PROBE,
        at=0.0,
    )
    release, verdict = machine.start(release, at=0.0), None
    while verdict is None:
        now = was if kind == "back" else level(since)
        pair = Pair(id="", release="r", device="", reference=draw(now), candidate=draw(was if regression else now))
        release, verdict = machine.observe(release, pair, at=0.0)
        since += 2
    return watch.classify(machine.conclude(release, verdict, at=0.0)), release.pairs


if __name__ == "__main__":
    main(__doc__.splitlines()[0], {"watch": bench_watch, "cause": bench_cause})
