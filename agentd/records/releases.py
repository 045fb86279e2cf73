"""Releases: the rules that one was begun with, how far it got, and what was decided."""

import enum

from agentd.records.base import Record


class Phase(enum.StrEnum):
    """Where a release stands. The transition table is in agentd.release.machine."""

    PROPOSED = "proposed"
    VALIDATED = "validated"
    SCREENED = "screened"
    AWAITING_APPROVAL = "awaiting_approval"
    SELECTION = "selection"
    CONFIRMATION = "confirmation"
    PAUSED = "paused"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    PRUNED = "pruned"
    INCONCLUSIVE = "inconclusive"
    ABORTED = "aborted"
    ROLLED_BACK = "rolled_back"


class Goal(enum.StrEnum):
    """What a candidate has to show of a metric."""

    BETTER = "better"
    NO_WORSE = "no_worse"


class MetricRule(Record, frozen=True):
    """What a release asks of a further metric. `margin` (of the normalised range) is how much worse NO_WORSE lets it be."""

    name: str
    goal: Goal = Goal.NO_WORSE
    margin: float = 0.05
    difference_range: float = 1.0
    """The largest absolute difference of this metric that the tests allow for."""


class ReleaseSettings(Record, frozen=True):
    """The `[release]` and `[guardrails]` rules that a release was begun with: a later edit doesn't move a running test."""

    alpha: float = 0.05
    prune_after_pairs: int = 15
    prune_below: float = 0.0
    selection_pairs: int = 3
    max_pairs: int = 300
    max_duration: float = 86_400.0
    difference_range: float = 1.0
    max_error_rate_increase: float = 0.0
    abort_error_rate: float = 0.5
    promotion_alpha: float | None = None
    """The level that this candidate's promotion is tested at, granted by `agentd.release.machine.online_alpha`; None: `alpha`."""
    max_lost_pairs: int = 20
    """More lost pairs than this leave too little to trust: the release ends inconclusive."""
    futile_below: float | None = None
    """PROBE only: the probe is over once its difference is plausibly below this (agentd.release.machine)."""
    goal: Goal = Goal.BETTER
    margin: float = 0.0
    """NO_WORSE only: how much worse, of the normalised range, the candidate may be than the reference, and than the anchor."""
    metrics: tuple[MetricRule, ...] = ()
    """The further metrics: promotion needs all of them."""
    exposure: float | None = None
    """Set for unpaired evidence: the smallest share, over the release's life, that either role's episodes are drawn with."""
    silent_score: float = 0.0
    """Unpaired evidence: the normalised score of an episode that nobody answered in its window."""
    ramp: tuple[float, ...] = ()
    """The share of the devices that each step exposes (agentd.release.fleet); without steps one device is exposed."""
    step_pairs: int = 2
    """A step is over once each device that it exposes has given so many pairs."""
    stratify: tuple[str, ...] = ()
    """Labels: each step has its part of every group of devices with the same values for them."""


class Test(Record, frozen=True):
    """The state of one sequential test (agentd.release.statistics.BettingTest), as it is stored.

    `mean` and `variance` are of X = (D/B + 1)/2 over all that the test has seen, and mean nothing before the first.
    """

    n: int = 0
    log_e: float = 0.0
    log_e_max: float = 0.0
    mean: float = 0.5
    variance: float = 0.25
    learned: int = 0
    """Observations that shaped the bets without being evidence (those of the selection)."""


class Change(Record, frozen=True):
    """One transition of a release: an audit row."""

    phase: Phase
    at: float
    who: str
    reason: str = ""


class Screening(Record, frozen=True):
    """What the replay of recorded steps showed of a candidate before it met the plant: evidence for who approves it."""

    episodes: int = 0
    ticks: int = 0
    differing: int = 0
    """Ticks at which it acts otherwise than what the plant got."""
    invalid: int = 0
    """Ticks at which its action is outside the envelope."""
    max_latency: float = 0.0
    """Seconds from an observation to its action, the longest."""


class ReleaseKind(enum.StrEnum):
    """What a release is for. PROBE asks after an alarm whether the last good revision is still better than the current one."""

    PROPOSAL = "proposal"
    PROBE = "probe"


class Exposure(Record, frozen=True):
    """A device's part in a release: since which step of the ramp it runs pairs, and how many it gave."""

    step: int = 0
    pairs: int = 0
    withdrawn: str = ""
    """The guardrail for which it went back to stable alone."""


class Release(Record, frozen=True):
    """The way of one proposal. Pure state: agentd.release.machine makes the next one from it."""

    id: str
    agent: str
    proposal: str
    candidate: str
    reference: str
    phase: Phase
    settings: ReleaseSettings
    begun_at: float
    kind: ReleaseKind = ReleaseKind.PROPOSAL
    regime: int = 0
    paused_from: Phase | None = None
    selection: Test = Test()
    superiority: Test = Test()
    harm: Test = Test()
    pairs: int = 0
    lost_pairs: int = 0
    reference_sum: float = 0.0
    candidate_sum: float = 0.0
    reference_aborted: int = 0
    candidate_aborted: int = 0
    stage: str = ""
    reason: str = ""
    forced: bool = False
    ended_at: float | None = None
    reference_episodes: int = 0
    candidate_episodes: int = 0
    anchor: str | None = None
    """NO_WORSE only: the last revision that was promoted as better. Every second pair runs against it."""
    anchor_pairs: int = 0
    """Pairs against the anchor; `pairs` and the sums are without them."""
    silent: int = 0
    """Single episodes that nobody answered."""
    tests: dict[str, Test] = {}
    """The further tests by name (agentd.release.evidence)."""
    step: int = 0
    """Where on the ramp it is: an index of `settings.ramp`."""
    fleet: dict[str, Exposure] = {}
    """The devices that were exposed so far, by id; they stay exposed, or withdrawn, for the release's whole life."""
    history: tuple[Change, ...] = ()
    screening: Screening | None = None
    """None before it was screened, and for a probe, whose revisions have both served."""

    @property
    def difference(self) -> float | None:
        """Mean normalised difference candidate - reference over all pairs (single episodes weigh by their inverse probability)."""
        return (self.candidate_sum - self.reference_sum) / self.pairs if self.pairs else None


class Verdict(Record, frozen=True):
    """What the machine decided: the phase to go to, why, and the evidence at that moment."""

    phase: Phase
    reason: str
    stage: str = ""
    e_value: float | None = None
    pairs: int = 0
