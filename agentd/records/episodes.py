"""Episodes: what was seen, what was done, and what that was worth."""

import enum

import msgspec

from agentd.records.base import Record, Value


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
    """How an episode ended. ABORTED: the policy's fault, scores the minimum. LOST: the plant's, the network's, or its models'."""

    FINISHED = "finished"
    ABORTED = "aborted"
    LOST = "lost"


MODELS_LOST = "model"
"""The reason of a lost episode whose policy got no answer of the models that it asked, by the runner's own word."""


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


class Exchange(msgspec.Struct, frozen=True, array_like=True):
    """A question to a language model and what came of it, as the runner noted it.

    `key` names the whole question (`agentd.trace.host.question_key`), empty where the exchange was too long to be kept whole. `messages`
    are (role, text), long ones shortened. `answer` is whole. `error` begins with the name of ModelError or BudgetExhausted where there was
    no answer. `seconds` from question to answer.
    """

    key: str
    messages: tuple[tuple[str, str], ...]
    answer: str = ""
    error: str = ""
    model: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    dollars: float = 0.0
    seconds: float = 0.0


class Step(msgspec.Struct, frozen=True, array_like=True):
    """One tick: what was seen, what the plant got, and what came of it.

    `safe` is why the safe action was used instead of the policy's, or None. `latency` is seconds from observation to action. `exchanges`
    are what the policy asked of models meanwhile.
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
    exchanges: tuple[Exchange, ...] = ()


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
    silent: bool = False
    """Nobody answered while the episode's window was open: the score is the declared `silent_score`."""
    late: bool = False
    """It came after the window had closed, and is kept for the record: the tests have seen the `silent_score` instead."""


class Answered(Record, frozen=True):
    """What a client's request got. `safe`: a safe action; its `revision` is empty, and its `episode` where no policy was asked."""

    episode: str
    action: Value
    revision: str = ""
    safe: bool = False


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
    awaits_until: float | None = None
    """When the window in which it may be judged closes; None where no feedback is awaited."""
