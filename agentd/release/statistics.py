"""Sequential statistics that stay valid at every peek. All states are frozen; `update` returns the next one.

Sources (docs/statistics.md has the formulas and what is promised):
- Waudby-Smith, Ramdas: Estimating means of bounded random variables by betting (JRSS-B 2024): the capital process, approximate GRAPA.
- Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas: Time-uniform central limit theory and asymptotic confidence sequences (AoS 2024).
- Shin, Ramdas, Rinaldo: E-detectors (NEJSDS 2024): Shiryaev-Roberts e-detectors and mixtures of them.
- Zhang, Wei, Ren, Zou: e-GAI (ICML 2025, arXiv 2506.01452): e-LORD. Ramdas, Yang, Wainwright, Jordan: Online control of the false
  discovery rate with decaying memory (NeurIPS 2017).
"""

import dataclasses
import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import msgspec

from agentd.records import Test

BET_LIMIT = 0.95
"""Bets as a share of the largest that is allowed: one surprise may cost at most 95% of the capital, never all."""

PRIOR_WEIGHT = 4
PRIOR_EDGE = 0.1
PRIOR_VARIANCE = 1.0 / 16.0
"""The imagined observations that a test's estimates start with, on the scale of X: an edge over the null, so that it bets from the first
pair on, and a spread, so that a few equal values don't make it reckless. Any value is valid, since a bet may be anything that doesn't look
ahead; these were chosen by simulation (benchmarks/bench_statistics.py)."""

_SMALLEST_LEVEL = 1e-9
_LARGEST_LOG = 700.0  # exp() of more than this is no float


class Null(enum.StrEnum):
    """The hypothesis that a test may refute, about the mean difference candidate - reference."""

    NOT_BETTER = "not better"
    NOT_WORSE = "not worse"


@dataclass(frozen=True, slots=True)
class BettingTest:
    """A test of the mean of bounded differences by betting: valid however often one looks, whenever one stops.

    `bound` B is the largest absolute difference, `boundary` the mean difference at the edge of the null (0; -margin for "no worse by a
    margin"). Differences D are mapped to X = (D/B + 1)/2 and the boundary to m. Against NOT_BETTER (E[D] <= boundary) the capital grows by
    1 + l (X - m), against NOT_WORSE (E[D] >= boundary) by 1 + l (m - X); l >= 0 is chosen before X is seen. Under the null the capital is
    a supermartingale, so that by Ville's inequality it ever reaches 1/alpha with a probability of at most alpha. That needs no
    independence, only that each difference's mean given the past is inside the null.
    """

    alpha: float
    null: Null
    bound: float = 1.0
    boundary: float = 0.0
    state: Test = field(default_factory=Test)

    def __post_init__(self) -> None:
        """Raise ValueError for a test that can't be."""
        if not 0.0 < self.alpha < 1.0:
            raise ValueError(f"alpha = {self.alpha} is not in (0, 1)")
        if not self.bound > 0.0:
            raise ValueError(f"bound = {self.bound} is not positive")
        if not -self.bound < self.boundary < self.bound:
            raise ValueError(f"boundary = {self.boundary} is not inside (-{self.bound}, {self.bound})")

    @property
    def n(self) -> int:
        """How many differences are evidence."""
        return self.state.n

    @property
    def log_e(self) -> float:
        """Natural logarithm of the capital: of the e-value against the null, now."""
        return self.state.log_e

    @property
    def e_value(self) -> float:
        """The capital now, cut off where a float ends."""
        return math.exp(min(self.state.log_e, _LARGEST_LOG))

    @property
    def decided(self) -> bool:
        """Whether the capital has ever reached 1/alpha: the null is refuted, and stays so."""
        return self.state.log_e_max >= -math.log(self.alpha)

    @property
    def bet(self) -> float:
        """The next bet l: approximate GRAPA (Waudby-Smith & Ramdas, section B.3), which nearly maximises the expected log growth."""
        m = self._m
        edge = (self._mean(self._seen, self.state.mean) - m) * self._sign
        if edge <= 0.0:
            return 0.0
        variance = (PRIOR_WEIGHT * PRIOR_VARIANCE + self._seen * self.state.variance) / (PRIOR_WEIGHT + self._seen)
        limit = BET_LIMIT / (m if self.null is Null.NOT_BETTER else 1.0 - m)
        return min(edge / (variance + edge * edge), limit)

    def update(self, difference: float) -> Self:
        """The test after one more difference. Raises ValueError for one outside [-bound, bound], or NaN."""
        x = self._x(difference)
        log_e = self.state.log_e + math.log1p(self.bet * (x - self._m) * self._sign)
        learned = self._learn(x)
        state = msgspec.structs.replace(learned, n=learned.n + 1, log_e=log_e, log_e_max=max(learned.log_e_max, log_e))
        return dataclasses.replace(self, state=state)

    def learn(self, difference: float) -> Self:
        """The test after a difference that is no evidence, but sharpens the coming bets (a bet may depend on all that is past)."""
        state = self._learn(self._x(difference))
        return dataclasses.replace(self, state=msgspec.structs.replace(state, learned=state.learned + 1))

    @property
    def _m(self) -> float:
        return (self.boundary / self.bound + 1.0) / 2.0

    @property
    def _sign(self) -> float:
        return 1.0 if self.null is Null.NOT_BETTER else -1.0

    @property
    def _seen(self) -> int:
        return self.state.n + self.state.learned

    def _mean(self, seen: int, mean: float) -> float:
        return (PRIOR_WEIGHT * (self._m + self._sign * PRIOR_EDGE) + seen * mean) / (PRIOR_WEIGHT + seen)

    def _x(self, difference: float) -> float:
        if not -self.bound <= difference <= self.bound:  # also catches NaN
            raise ValueError(f"a difference of {difference} is outside [-{self.bound}, {self.bound}]")
        return (difference / self.bound + 1.0) / 2.0

    def _learn(self, x: float) -> Test:
        # The spread is measured from the running mean with its prior, as in Waudby-Smith & Ramdas, equation (15): after a few equal
        # values it is larger than the sample's variance, and the bets are more careful.
        state, seen = self.state, self._seen
        mean = (state.mean * seen + x) / (seen + 1)
        variance = (state.variance * seen + (x - self._mean(seen + 1, mean)) ** 2) / (seen + 1)
        return msgspec.structs.replace(state, mean=mean, variance=variance)


@dataclass(frozen=True, slots=True)
class AsymptoticConfidenceSequence:
    """An interval for a running mean that holds at all times at once, in the limit (Waudby-Smith et al. 2024, theorem 2.2).

    For people's eyes, never for a verdict: the guarantee is asymptotic. Narrowest near `narrowest_at` observations.
    """

    alpha: float = 0.05
    narrowest_at: int = 50
    n: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared deviations from the mean (Welford)."""

    @classmethod
    def of(cls, values: Sequence[float], *, alpha: float = 0.05, narrowest_at: int = 50) -> "AsymptoticConfidenceSequence":
        """The sequence after `values`."""
        sequence = cls(alpha, narrowest_at)
        for value in values:
            sequence = sequence.update(value)
        return sequence

    def update(self, x: float) -> Self:
        """The sequence after one more value."""
        n = self.n + 1
        mean = self.mean + (x - self.mean) / n
        return dataclasses.replace(self, n=n, mean=mean, squares=self.squares + (x - self.mean) * (x - mean))

    @property
    def radius(self) -> float | None:
        """Half the interval's width, or None before the second value."""
        if self.n < 2:
            return None
        standard_deviation = math.sqrt(self.squares / (self.n - 1))
        return standard_deviation * normal_mixture(self.n, self.alpha, self._rho_squared)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Lower and upper end, or None before the second value."""
        radius = self.radius
        return None if radius is None else (self.mean - radius, self.mean + radius)

    @property
    def _rho_squared(self) -> float:
        # Waudby-Smith et al., equation (10): the approximate minimiser of the width at `narrowest_at`.
        twice = -2.0 * math.log(self.alpha)
        return (twice + math.log(twice) + 1.0) / self.narrowest_at


def normal_mixture(n: int, alpha: float, rho_squared: float) -> float:
    """Robbins' two-sided normal mixture radius for the mean of `n` values with variance 1 (Waudby-Smith et al. 2024, equation 4)."""
    spread = n * rho_squared + 1.0
    return math.sqrt(spread / (n * n * rho_squared) * math.log(spread / (alpha * alpha)))


BETS = tuple(BET_LIMIT / 2.0**k for k in range(10))
"""The detector's bets as shares of the largest: from "the scores are gone" down to "a fall of a few per mille of the range"."""


@dataclass(frozen=True, slots=True)
class ShiryaevRobertsDetector:
    """Detects that the mean of scores in [0, 1] has fallen below `bound`: a mixture of Shiryaev-Roberts e-detectors.

    Each of the bets g in BETS runs M <- (M + 1) (1 + g (b - S) / (1 - b)), started anew at each time at once; the mean over the bets raises
    the alarm at `alarm_every`. While every score's mean given the past is at least `bound`, the expected number of episodes to an alarm is
    at least `alarm_every`, and the probability of one within n episodes at most n / alarm_every (Shin, Ramdas & Rinaldo, proposition 2.4).
    """

    alarm_every: float
    bound: float
    log_statistic: tuple[float, ...] = ()
    """Natural logarithm of each bet's statistic; empty before the first score (all are 0)."""

    def __post_init__(self) -> None:
        """Raise ValueError for a detector that can't be."""
        if not self.alarm_every > 1.0:
            raise ValueError(f"alarm_every = {self.alarm_every} is not above 1")
        if not 0.0 <= self.bound <= 1.0:
            raise ValueError(f"bound = {self.bound} is not in [0, 1]")

    @property
    def log_mixture(self) -> float:
        """Natural logarithm of the detector's value; it is compared with log(alarm_every)."""
        return _log_mean_exp(self.log_statistic) if self.log_statistic else -math.inf

    @property
    def alarmed(self) -> bool:
        """Whether the detector is at or above its threshold now."""
        return self.log_mixture >= math.log(self.alarm_every)

    def update(self, score: float) -> Self:
        """The detector after one more score. Raises ValueError for one outside [0, 1], or NaN."""
        if not 0.0 <= score <= 1.0:
            raise ValueError(f"a score of {score} is outside [0, 1]")
        # A bound of exactly 1 can't be bet on without limit; nothing below it changes if the fall is measured on a hair's breadth less.
        gain = (self.bound - score) / max(1.0 - self.bound, 1e-6)
        before = self.log_statistic or (-math.inf,) * len(BETS)
        return dataclasses.replace(
            self,
            log_statistic=tuple(_log_one_plus_exp(statistic) + math.log1p(bet * gain) for bet, statistic in zip(BETS, before, strict=True)),
        )


def lower_bound(scores: Sequence[float], delta: float) -> float:
    """A lower confidence bound for the mean of scores in [0, 1], right with probability 1 - delta at every length of the sequence at once.

    The bound is where the capital K(m) = prod (1 + min(l, 0.95/m) (S - m)), which falls in m, falls through 1/delta; l is the predictable
    plug-in sqrt(2 log(1/delta) / (variance so far * i log(1 + i))) of Waudby-Smith & Ramdas 2024, theorem 3. With little variance the
    bound is about mean * exp(-log(1/delta) / n): no method can promise more, since a rare zero may not have come up yet.
    Raises ValueError for a score outside [0, 1], or NaN.
    """
    if not all(0.0 <= score <= 1.0 for score in scores):
        raise ValueError("a score is outside [0, 1]")
    target = -math.log(delta)
    bets = []
    total, squares = 0.5, 0.25
    for i, score in enumerate(scores, start=1):
        bets.append(math.sqrt(2.0 * target / (squares * math.log1p(i))))  # the variance before score i is squares / i
        total += score
        squares += (score - total / (i + 1)) ** 2
    low, high = 0.0, 1.0
    for _ in range(20):  # to a millionth
        m = (low + high) / 2.0
        if sum(math.log1p(min(bet, BET_LIMIT / m) * (score - m)) for bet, score in zip(bets, scores, strict=True)) < target:
            high = m
        else:
            low = m
    return low


@dataclass(frozen=True, slots=True)
class OnlineAlpha:
    """The levels for one candidate after the other, so that false promotions stay rare over an agent's whole life, with a decaying memory.

    e-LORD spends a `share` of what is left of alpha on the next test and earns with each promotion; here what was spent is forgotten by the
    factor `decay` per test, so that the levels never die out. With R the decayed number of promotions, the j-th level counts at time t as
    level_j min(decay^(t-j), 1/(decay R_(j-1) + 1)), and the sum never exceeds alpha: that bounds the decaying-memory false discovery rate
    (proof in docs/statistics.md), under any dependence between candidates. Only candidates that entered confirmation count.
    """

    alpha: float
    decay: float = 0.95
    share: float = 0.5
    spent: tuple[tuple[float, float], ...] = ()
    """(level, 1/(decay R + 1)) of the earlier tests, oldest first."""
    promotions: float = 0.0
    """R: promotions, each counted decay^age."""

    def __post_init__(self) -> None:
        """Raise ValueError for parameters outside their ranges."""
        if not (0.0 < self.alpha < 1.0 and 0.0 < self.decay < 1.0 and 0.0 < self.share <= 1.0):
            raise ValueError(f"alpha {self.alpha}, decay {self.decay} and share {self.share} must be in (0, 1)")

    @property
    def level(self) -> float:
        """The level of the next test; next to nothing, but never 0, where more was spent than `alpha` (it was lowered since)."""
        count = len(self.spent)
        owed = sum(level * min(self.decay ** (count - j), earned) for j, (level, earned) in enumerate(self.spent))
        granted = self.share * (self.alpha - owed) * (self.decay * self.promotions + 1.0)
        return min(max(granted, _SMALLEST_LEVEL), self.alpha)

    def update(self, *, promoted: bool, level: float | None = None) -> Self:
        """After a test at `level` (the one this object gave, unless another was used) that ended in a promotion, or not."""
        used = self.level if level is None else level
        spent = (*self.spent, (used, 1.0 / (self.decay * self.promotions + 1.0)))
        forgotten = max(0, len(spent) - math.ceil(math.log(1e-9) / math.log(self.decay)))
        return dataclasses.replace(self, spent=spent[forgotten:], promotions=self.decay * self.promotions + promoted)


def _log_one_plus_exp(x: float) -> float:
    return x + math.log1p(math.exp(-x)) if x > 0.0 else math.log1p(math.exp(x))


def _log_mean_exp(values: Sequence[float]) -> float:
    largest = max(values)
    if math.isinf(largest):
        return largest
    return largest + math.log(sum(math.exp(value - largest) for value in values) / len(values))
