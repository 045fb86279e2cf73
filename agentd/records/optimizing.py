"""What optimizers are asked, what they remember, propose and cost."""

import msgspec

from agentd.records.base import Record, Value
from agentd.records.episodes import Feedback, Outcome
from agentd.records.revisions import Parameter
from agentd.records.tracing import TraceGraph


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
    """To `reference`, over `pairs` pairs: less noisy than the mean, since both halves of a pair met the same."""
    reference: str = ""
    """The revision that served then; empty where nothing was compared."""
    pairs: int = 0
    regime: int = 0
    algorithm: str = ""
    feedback: str = ""
    at: float = 0.0
    notes: dict[str, Value] = msgspec.field(default_factory=dict)
    """What the optimizer noted with its proposal."""


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
    notes: dict[str, Value] = msgspec.field(default_factory=dict)
    """What its optimizer wants to find beside it in memory: an optimizer is made anew for each proposal."""
