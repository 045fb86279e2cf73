"""Many canaries side by side with numpy, decided as the release machine decides them one by one; `check` compares the two."""

import dataclasses
import math

import numpy as np
from simulation import NEVER

from agentd.records import Goal, Pair, Phase, ReleaseKind, ReleaseSettings
from agentd.release import machine
from agentd.release.statistics import BET_LIMIT, PRIOR_EDGE, PRIOR_VARIANCE, PRIOR_WEIGHT, Null

PAIRS = ReleaseSettings().max_pairs
SPREAD = 0.1  # the standard deviation of a paired difference


def capital(differences, null, *, learned=0, boundary=0.0):
    """Log capital of many betting tests, shape (runs, pairs); the first `learned` pairs only teach. As BettingTest does."""
    sign = 1.0 if null is Null.NOT_BETTER else -1.0
    m = (boundary + 1.0) / 2.0
    limit = BET_LIMIT / (m if sign > 0 else 1.0 - m)
    runs = len(differences)
    total, squares, log_e = np.zeros(runs), np.zeros(runs), np.zeros(runs)
    path = np.zeros_like(differences)
    for t in range(differences.shape[1]):
        x = (differences[:, t] + 1.0) / 2.0
        weight = PRIOR_WEIGHT + t
        edge = ((PRIOR_WEIGHT * (m + sign * PRIOR_EDGE) + total) / weight - m) * sign
        bet = np.clip(edge / ((PRIOR_WEIGHT * PRIOR_VARIANCE + squares) / weight + edge**2), 0.0, limit)
        bet = np.where(edge > 0.0, bet, 0.0)
        if t >= learned:
            log_e = log_e + np.log1p(bet * (x - m) * sign)
        path[:, t] = log_e
        total = total + x
        squares = squares + (x - (PRIOR_WEIGHT * (m + sign * PRIOR_EDGE) + total) / (weight + 1)) ** 2
    return path


def first(reached):
    """The first pair (from 1) at which `reached` (runs, pairs) holds, or NEVER."""
    return np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, NEVER)


@dataclasses.dataclass
class Canaries:
    """Many canaries, decided but for the level of their promotion."""

    superior: np.ndarray  # running maximum of the log capital
    harmed: np.ndarray
    pruned: np.ndarray
    settings: ReleaseSettings

    @classmethod
    def of(cls, differences, settings):
        boundary = -settings.margin if settings.goal is Goal.NO_WORSE else 0.0
        learned = settings.selection_pairs
        superior = np.maximum.accumulate(capital(differences, Null.NOT_BETTER, learned=learned, boundary=boundary), axis=1)
        harmed = first(capital(differences, Null.NOT_WORSE, learned=learned, boundary=boundary) >= -math.log(settings.alpha))
        count = np.arange(1, differences.shape[1] + 1)
        hopeless = (np.cumsum(differences, axis=1) / count < settings.prune_below + boundary) & (count >= settings.prune_after_pairs)
        return cls(superior, harmed, first(hopeless), settings)

    def end(self, run, level):
        """How canary `run` ends at this level, and after how many pairs."""
        path = self.superior[run]
        promoted = int(np.searchsorted(path, -math.log(level))) + 1
        ends = [
            (self.harmed[run], 0, "rejected"),
            (promoted, 1, "promoted"),
            (self.pruned[run], 2, "pruned"),
            (len(path), 3, "inconclusive"),
        ]
        pairs, _, name = min(ends)
        return name, int(pairs)


def gaussian(random, shape, mean=0.0, deviation=SPREAD):
    return np.clip(random.normal(mean, deviation, shape), -1.0, 1.0)


def conducted(differences, settings):
    """One canary through the real machine."""
    release = machine.begin(None, id="r", agent="a", candidate="c", reference="s", settings=settings, kind=ReleaseKind.PROPOSAL, at=0.0)
    for phase in (Phase.VALIDATED, Phase.SCREENED):
        release = machine.advance(release, phase, at=0.0, who="bench", reason="")
    release, verdict = machine.start(release, at=0.0), None
    for difference in differences:
        low, high = (0.0, float(difference)) if difference >= 0 else (float(-difference), 0.0)
        pair = Pair(id="", release="r", device="", reference=low, candidate=high)
        release, verdict = machine.observe(release, pair, at=0.0)
        if verdict:
            break
    return release, verdict


def check():
    random = np.random.default_rng(0)
    for settings in (
        ReleaseSettings(),
        ReleaseSettings(promotion_alpha=0.004, prune_below=-1.0),
        ReleaseSettings(goal=Goal.NO_WORSE, margin=0.03),
    ):
        differences = gaussian(random, (60, PAIRS), random.normal(0.0, 0.1, (60, 1)), 0.15)
        canaries = Canaries.of(differences, settings)
        for run, row in enumerate(differences):
            release, verdict = conducted(row, settings)
            real = (str(verdict.phase), release.pairs)
            assert canaries.end(run, settings.promotion_alpha or settings.alpha) == real, (run, real)
