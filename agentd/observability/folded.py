"""Metrics that arrive already added up: a runner counts its ticks itself and reports the sums twice a second."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

from prometheus_client.core import HistogramMetricFamily, SummaryMetricFamily
from prometheus_client.registry import Collector

Labels = tuple[str, ...]


class FoldedHistogram(Collector):
    """A histogram fed with counts per bucket instead of single observations."""

    def __init__(self, name: str, help_text: str, labels: Sequence[str]) -> None:
        self._name, self._help, self._labels = name, help_text, tuple(labels)
        self._buckets: dict[Labels, dict[float, float]] = defaultdict(lambda: defaultdict(float))
        self._sums: dict[Labels, float] = defaultdict(float)

    def add(self, labels: Labels, bound: float, count: float) -> None:
        """`count` more observations at most `bound` large, and larger than the bound below."""
        self._buckets[labels][bound] += count

    def add_sum(self, labels: Labels, amount: float) -> None:
        """`amount` more of the quantity in all."""
        self._sums[labels] += amount

    def forget(self, agent: str) -> None:
        """Forget what the first label says is `agent`'s."""
        for labels in [labels for labels in {*self._buckets, *self._sums} if labels[0] == agent]:
            self._buckets.pop(labels, None)
            self._sums.pop(labels, None)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """What a scrape sees: cumulative buckets."""
        family = HistogramMetricFamily(self._name, self._help, labels=self._labels)
        for labels, counts in self._buckets.items():
            total, cumulative = 0.0, []
            for bound in sorted({*counts, math.inf}):
                total += counts.get(bound, 0.0)
                cumulative.append(("+Inf" if math.isinf(bound) else repr(bound), total))
            family.add_metric(labels, cumulative, self._sums.get(labels, 0.0))
        yield family


class FoldedSummary(Collector):
    """A count and a sum, without quantiles."""

    def __init__(self, name: str, help_text: str, labels: Sequence[str]) -> None:
        self._name, self._help, self._labels = name, help_text, tuple(labels)
        self._counts: dict[Labels, int] = defaultdict(int)
        self._sums: dict[Labels, float] = defaultdict(float)

    def add(self, labels: Labels, *, count: int = 0, amount: float = 0.0) -> None:
        """So many more observations, and so much more of the quantity in all."""
        self._counts[labels] += count
        self._sums[labels] += amount

    def forget(self, agent: str) -> None:
        """Forget what the first label says is `agent`'s."""
        for labels in [labels for labels in self._counts if labels[0] == agent]:
            del self._counts[labels], self._sums[labels]

    def collect(self) -> Iterator[SummaryMetricFamily]:
        """What a scrape sees."""
        family = SummaryMetricFamily(self._name, self._help, labels=self._labels)
        for labels, count in self._counts.items():
            family.add_metric(labels, count, self._sums[labels])
        yield family
