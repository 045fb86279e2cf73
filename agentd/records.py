"""Frozen records that cross borders: processes, the store, HTTP. No live handle is ever among them.

Times are Unix seconds, durations seconds, scores in the agent's declared range unless a name says `normalised` ([0, 1], 1 is best).
Fields are only ever added, with a default: an older record must stay readable.
"""

import enum
import hashlib
import math
from collections.abc import Mapping
from typing import Any

import msgspec

from agentd.errors import CodecError

Value = Any
"""A plain value: None, bool, int, float, str, list, dict with str keys, or a numpy array."""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of the records."""


# --- agents, sources, revisions -------------------------------------------------------------------------------------


class Mode(enum.StrEnum):
    """How far agentd goes by itself."""

    OBSERVE = "observe"
    ADVISE = "advise"
    RELEASE = "release"


class Kind(enum.StrEnum):
    """What a parameter holds."""

    TEXT = "text"
    NUMBER = "number"
    BOOLEAN = "boolean"
    CHOICE = "choice"
    STRUCTURED = "structured"
    CODE = "code"


class Parameter(Record, frozen=True):
    """A trainable node, as the worker found it, with the rules of `agent.toml` laid over.

    `path` is its attribute path (`act`, `gains.kp`). `default` is the value in the source; for code it is the function's source text,
    dedented, without decorators. `signature` is the `def` line that code must keep. `integer` is True for a number that must stay whole.
    """

    path: str
    kind: Kind
    default: Value = None
    description: str = ""
    constraint: str = ""
    bounds: tuple[float | None, float | None] | None = None
    choices: tuple[Value, ...] | None = None
    signature: str = ""
    integer: bool = False
    approval: bool = False


class Source(Record, frozen=True):
    """An agent's program: files by relative path, and the parts of `agent.toml` that change what it computes."""

    digest: str
    files: dict[str, str]
    entrypoint: str
    args: dict[str, Value] = {}
    feedback: str | None = None
    sections: dict[str, Value] = {}
    """`[environment]` and `[[metrics]]` as they were declared: scores are comparable only where these are the same."""


class Revision(Record, frozen=True):
    """An immutable set of parameter values on one source. `values` holds only what differs from the source's defaults."""

    id: str
    agent: str
    source: str
    values: dict[str, Value] = {}


class Origin(enum.StrEnum):
    """Who made a revision."""

    SOURCE = "source"
    OPTIMIZER = "optimizer"
    OPERATOR = "operator"


class Provenance(Record, frozen=True):
    """Where a revision came from; a row of its own, since equal values may be proposed twice."""

    revision: str
    origin: Origin
    at: float
    parent: str | None = None
    proposal: str | None = None
    who: str = "agentd"
    note: str = ""


def canonical(value: Value) -> Value:
    """The form in which values are hashed: sorted keys, line feeds as line ends, no NaN. Raises CodecError for what has no such form."""
    if isinstance(value, str):
        return value.replace("\r\n", "\n").replace("\r", "\n")
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        if math.isnan(value) or math.isinf(value):
            raise CodecError(f"{value} can't be the value of a parameter")
        return value
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise CodecError("the keys of a structured value must be text")
        return {key: canonical(value[key]) for key in sorted(value)}
    raise CodecError(f"a {type(value).__qualname__} can't be the value of a parameter")


def make_revision(agent: str, source: str, values: Mapping[str, Value]) -> Revision:
    """The content-addressed revision of `values` on `source`. Raises CodecError for values that have no canonical form."""
    canonical_values = canonical(values)
    content = msgspec.msgpack.encode({"agent": agent, "source": source, "values": canonical_values})
    return Revision(id=hashlib.sha256(content).hexdigest(), agent=agent, source=source, values=canonical_values)


# --- the trace graph ------------------------------------------------------------------------------------------------


class NodeKind(enum.StrEnum):
    """What a node of a trace graph is."""

    PARAMETER = "parameter"
    INPUT = "input"
    MESSAGE = "message"
    EXCEPTION = "exception"


class TraceNode(msgspec.Struct, frozen=True, array_like=True):
    """One node of an exported graph. Its id is its position in `TraceGraph.nodes`; parents always come before children.

    `value` is a summary within limits (see agentd.trace.export). `operator` names what made it (`add`, `environment_step`, a bundle's
    name), and is a key of `TraceGraph.functions` where there is more to say. `arguments` names the parents' roles, in order.
    """

    name: str
    kind: NodeKind
    operator: str = ""
    parents: tuple[int, ...] = ()
    arguments: tuple[str, ...] = ()
    value: Value = None
    description: str = ""
    path: str | None = None


class TraceFunction(msgspec.Struct, frozen=True, array_like=True):
    """What is known of an operator: its documentation and, for bundles, its source."""

    documentation: str = ""
    source: str = ""


class TraceGraph(Record, frozen=True):
    """What a program and its environment computed in one episode: a DAG in topological order. Versioned and immutable."""

    version: int = 1
    nodes: tuple[TraceNode, ...] = ()
    functions: dict[str, TraceFunction] = {}
    output: int | None = None
    dropped_nodes: int = 0


# --- episodes -------------------------------------------------------------------------------------------------------


class Role(enum.StrEnum):
    """In which of the two roles a revision serves."""

    STABLE = "stable"
    CANDIDATE = "candidate"


class Purpose(enum.StrEnum):
    """Why an episode was run."""

    NORMAL = "normal"
    PAIR = "pair"
    RECOVERY = "recovery"
    UNSOLICITED = "unsolicited"


class Outcome(enum.StrEnum):
    """How an episode ended. ABORTED: the policy's fault, scores the minimum. LOST: the plant's or the network's."""

    FINISHED = "finished"
    ABORTED = "aborted"
    LOST = "lost"


class Space(Record, frozen=True):
    """The set that observations or actions come from: kind box (low, high, shape), discrete (n, start) or any.

    `low` and `high` are numbers, or flat lists in C order; None is unbounded.
    """

    kind: str = "any"
    shape: tuple[int, ...] = ()
    low: float | tuple[float | None, ...] | None = None
    high: float | tuple[float | None, ...] | None = None
    n: int = 0
    start: int = 0


class Step(msgspec.Struct, frozen=True, array_like=True):
    """One tick: what was seen, what the plant got, and what came of it.

    `safe` is why the safe action was used instead of the policy's, or None. `latency` is seconds from observation to action.
    """

    tick: int
    observation: Value
    action: Value
    reward: float | None = None
    terminated: bool = False
    truncated: bool = False
    info: dict[str, Value] = {}
    safe: str | None = None
    latency: float = 0.0


class Episode(Record, frozen=True):
    """One run of one revision on one device, as the runner recorded it. `trace` is the worker's word: untrusted, encoded TraceGraph."""

    id: str
    agent: str
    device: str
    revision: str
    role: Role
    purpose: Purpose
    outcome: Outcome
    started_at: float
    duration: float
    steps: tuple[Step, ...] = ()
    final_observation: Value = None
    seed: int | None = None
    pair: str | None = None
    reason: str = ""
    error: str = ""
    instruction: str = ""
    session: str = ""
    deadline_misses: int = 0
    trace: bytes | None = None
    state: Value = None
    """What the policy went on from at the first tick, where that was no reset (an endless plant): its word, and no more."""

    @property
    def safe_actions(self) -> int:
        """Ticks at which the plant got the safe action."""
        return sum(step.safe is not None for step in self.steps)


class Metric(Record, frozen=True):
    """A declared metric: its range and which end is better."""

    name: str
    low: float = 0.0
    high: float = 1.0
    higher_is_better: bool = True

    def normalised(self, score: float) -> float:
        """`score` on [0, 1] with 1 the best. Raises ValueError outside the declared range or for NaN."""
        if not self.low <= score <= self.high:
            raise ValueError(f"{self.name} = {score} is outside its declared range [{self.low}, {self.high}]")
        share = (score - self.low) / (self.high - self.low)
        return share if self.higher_is_better else 1.0 - share

    @property
    def worst(self) -> float:
        """The score of a loss that the policy caused."""
        return self.low if self.higher_is_better else self.high


class Feedback(Record, frozen=True):
    """What an episode was worth. `score` is in the declared range; `node` is the trace node it is about (None: the output)."""

    episode: str
    score: float
    normalised: float
    text: str = ""
    metrics: dict[str, float] = {}
    node: int | None = None
    failed: str = ""
    """Why the feedback function gave no verdict (it raised, hung, left the range); the score is then not evidence."""


class EpisodeSummary(Record, frozen=True):
    """An episode as lists show it: without steps and trace."""

    id: str
    agent: str
    device: str
    revision: str
    role: Role
    purpose: Purpose
    outcome: Outcome
    started_at: float
    duration: float
    ticks: int
    regime: int = 0
    seed: int | None = None
    pair: str | None = None
    reason: str = ""
    error: str = ""
    deadline_misses: int = 0
    safe_actions: int = 0
    score: float | None = None
    normalised: float | None = None
    feedback: str = ""
    has_trace: bool = False


# --- optimizing -----------------------------------------------------------------------------------------------------


class Problem(Record, frozen=True):
    """One case of an OPTO problem: parameters with their current values, the minimal subgraph, and the feedback on its output."""

    episode: str
    objective: str
    parameters: tuple[Parameter, ...]
    values: dict[str, Value]
    feedback: Feedback
    graph: TraceGraph | None = None
    instruction: str = ""
    outcome: Outcome = Outcome.FINISHED
    rewards: tuple[float | None, ...] = ()
    """Of each tick, where there are any: the worst tick of a long episode is shown."""
    images: tuple[str, ...] = ()
    """Pictures that belong to the case, as data URLs."""


class MemoryEntry(Record, frozen=True):
    """What became of an earlier attempt. `values` are full (all trainable paths), scores normalised means."""

    proposal: str
    values: dict[str, Value]
    fate: str
    """A release phase, `stable` for a revision that served, or `invalid` for a reply that could not be used."""
    reason: str = ""
    mean: float | None = None
    difference: float | None = None
    pairs: int = 0
    regime: int = 0
    algorithm: str = ""
    feedback: str = ""
    at: float = 0.0


class Usage(Record, frozen=True):
    """What one call of a model cost: a row of the ledger."""

    agent: str
    purpose: str
    model: str
    outcome: str
    at: float
    tokens_in: int = 0
    tokens_out: int = 0
    dollars: float = 0.0


class Proposal(Record, frozen=True):
    """New values for some parameters (only those that change), with the reasons and what they cost."""

    id: str
    agent: str
    parent: str
    values: dict[str, Value]
    algorithm: str
    at: float
    reasoning: str = ""
    answers: tuple[str, ...] = ()
    """Ids of the episodes whose feedback it answers."""
    dollars: float = 0.0
    exchange: str = ""
    """The raw exchange with the model, for people; never kept in memory."""
    who: str = "optimizer"


# --- releases -------------------------------------------------------------------------------------------------------


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


class PairPlan(Record, frozen=True):
    """Two episodes on one device, committed before they are run. `order` is drawn at random; `seed` is shared where the device is seedable.

    Or one: the next that the device begins by itself, whose role was drawn with `probability` for the candidate.
    `reference` and `candidate` are revision ids; the reference is the stable revision of the release.
    """

    id: str
    release: str
    agent: str
    device: str
    order: tuple[Role, ...]
    reference: str
    candidate: str
    seed: int | None = None
    drawn_at: float = 0.0
    anchored: bool = False
    """The reference is the release's anchor instead of the stable revision."""
    probability: float | None = None


class Pair(Record, frozen=True):
    """Evidence: the two normalised scores of a pair, and whether each side was aborted."""

    id: str
    release: str
    device: str
    reference: float
    candidate: float
    reference_aborted: bool = False
    candidate_aborted: bool = False
    guardrail: str = ""
    """A guardrail that the candidate violated in this pair, with its figures."""
    at: float = 0.0
    metrics: dict[str, tuple[float, float]] = {}
    """(reference, candidate), normalised, of the further metrics. A side that was aborted has 0."""
    anchored: bool = False
    """The reference side ran the release's anchor instead of the stable revision."""


class Single(Record, frozen=True):
    """Evidence without a partner: one episode whose role was drawn at random, with `probability` for the candidate.

    It enters when its window has closed; `score` (normalised) is None if nobody answered until then.
    """

    id: str
    release: str
    device: str
    role: Role
    probability: float
    score: float | None = None
    aborted: bool = False
    guardrail: str = ""
    at: float = 0.0
    metrics: dict[str, float] = {}


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


class WatchSettings(Record, frozen=True):
    """The `[watch]` rules.

    Expected healthy episodes to an alarm, length of the burn-in, and how many episodes without an alarm make a revision good.
    """

    alarm_every: float = 1e6
    burn_in: int = 30
    good_after: int = 100
    confidence: float = 0.95
    """Of the lower bound that the burn-in gives."""


class Watch(Record, frozen=True):
    """The Shiryaev-Roberts watch on a stable revision: a burn-in gives a lower bound for its mean, which scores are then held against.

    Scores are normalised. `recent` are the latest ones, oldest first.
    """

    revision: str
    burn_in: tuple[float, ...] = ()
    bound: float | None = None
    inherited: bool = False
    log_statistic: tuple[float, ...] = ()
    episodes: int = 0
    alarmed: bool = False
    recent: tuple[float, ...] = ()


class Hold(Record, frozen=True):
    """Somebody, or a rule, keeps an agent's releases from going on."""

    at: float
    who: str
    reason: str = ""


class Conflict(Record, frozen=True):
    """A learned value whose default in the source has changed since it was learned: its author says which one holds (`agentd rebase`)."""

    path: str
    base: Value
    """The default that it was learned from."""
    learned: Value
    source: Value
    """The default in the source that runs now; it serves until this is settled."""


class AgentState(Record, frozen=True):
    """What the daemon knows of an agent and commits before it acts: the routes follow it, never the other way round."""

    name: str
    source: str
    stable: str
    mode: Mode
    desired: str | None = None
    last_good: str | None = None
    anchor: str | None = None
    release: str | None = None
    regime: int = 0
    watch: Watch | None = None
    good: tuple[tuple[str, int], ...] = ()
    """(revision, regime) of revisions that survived, oldest first: tried first when the world changes."""
    paused: bool = False
    improving: bool = False
    """Whether the optimizer is at work: an alarm, a failure or an operator asked for it."""
    target: float | None = None
    """The normalised score that the optimizer tries to reach again: the watch's bound from before the drift."""
    attempts: int = 0
    """Proposals since the last promotion in this regime."""
    tried: tuple[str, ...] = ()
    """Revisions of earlier worlds that were tried in this regime already."""
    updated_at: float = 0.0
    parameters: tuple[Parameter, ...] = ()
    """The trainable parameters of `source`, as its worker found them: whoever reads the store shows values beside these defaults."""
    frozen: Hold | None = None
    """An operator's freeze: no proposal, release or promotion begins or goes on. The watch may still roll back."""
    quarantine: Hold | None = None
    """It rolled back too often: as `frozen`, until an operator lifts it."""
    lifted_at: float = 0.0
    """When the last quarantine was lifted: rollbacks before that no longer count."""
    conflicts: tuple[Conflict, ...] = ()
    """Learned values that a changed source puts in question."""
    passed_over: str = ""
    """Digest of the source in the agent's folder while an older one serves, because that is what was rolled back to."""

    @property
    def held(self) -> str:
        """What keeps releases from going on, in words; empty if nothing does."""
        for word, hold in (("frozen", self.frozen), ("quarantined", self.quarantine)):
            if hold is not None:
                return f"{word} by {hold.who}" + (f": {hold.reason}" if hold.reason else "")
        return ""


# --- what happened --------------------------------------------------------------------------------------------------


class Event(Record, frozen=True):
    """Something that happened and that someone may ask about later. `kind` is dotted: `release.promoted`, `watch.alarm`."""

    kind: str
    at: float
    agent: str = ""
    who: str = "agentd"
    message: str = ""
    data: dict[str, Value] = {}
    seq: int = 0
    """Position in the store's log; 0 until it is committed."""
