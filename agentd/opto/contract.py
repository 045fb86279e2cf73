"""The contract of an optimizer: OPTO problems and memory in, a proposal out (Trace, arXiv 2406.16218, section 3).

An optimizer never touches a running agent. It is made anew for each proposal from an `OptimizerContext`, in a process of its own that
may be killed at any time, and what it must remember it finds in `memory`, which the store keeps: what became of each attempt, and the
`notes` that were given with it. A plug-in is any class whose
constructor takes `(context, llm, screen)` and that has `propose`; `algorithm = "module:Class"` names it, and
`agentd.testing.optimizers` has the suite that it must pass.
"""

import hashlib
from collections.abc import Sequence
from typing import Protocol

import msgspec

from agentd.records import MemoryEntry, Parameter, Problem, Proposal, Record, Value

__all__ = [
    "BudgetLimits",
    "Llm",
    "LlmReply",
    "LlmRequest",
    "Message",
    "NoScreen",
    "Optimizer",
    "OptimizerContext",
    "Screen",
    "Screening",
    "make_proposal",
    "whole",
]


class BudgetLimits(Record, frozen=True):
    """What an agent's optimizer may spend. 0 allows nothing; None is no limit."""

    dollars_per_day: float | None = 5.0
    calls_per_hour: int | None = 60
    tokens_per_proposal: int | None = 50_000


class OptimizerContext(Record, frozen=True):
    """All that an optimizer is made from.

    `parameters` are the trainable ones, with the rules of `agent.toml` laid over; `values` the full values of the running revision, whose
    id is `stable` and whose mean normalised score in this regime is `stable_mean`, where known. Only memory of the same `regime` says how
    good values are now. `models` are litellm names in order of preference; none means that no model is configured. `at` is the time of
    asking (Unix seconds). `allowed_imports` None allows every module. `options` are the algorithm's own.
    """

    agent: str
    stable: str
    parameters: tuple[Parameter, ...]
    values: dict[str, Value]
    objective: str = ""
    algorithm: str = "hybrid"
    models: tuple[str, ...] = ()
    regime: int = 0
    stable_mean: float | None = None
    history: int = 10
    allowed_imports: tuple[str, ...] | None = ("math", "numpy")
    budget: BudgetLimits = BudgetLimits()
    options: dict[str, Value] = msgspec.field(default_factory=dict)
    at: float = 0.0


class Message(Record, frozen=True):
    """One message of a chat. `images` are data URLs."""

    role: str
    content: str
    images: tuple[str, ...] = ()


class LlmRequest(Record, frozen=True):
    """One question to a model. `schema` is the JSON schema that the answer must follow, where the model supports it."""

    agent: str
    purpose: str
    messages: tuple[Message, ...]
    models: tuple[str, ...] = ()
    schema: dict[str, Value] | None = None
    max_tokens: int = 2048
    temperature: float = 0.3
    seed: int | None = None


class LlmReply(Record, frozen=True):
    """A model's answer and what it cost. `finish_reason` is `length` for an answer that was cut off."""

    text: str
    model: str
    tokens_in: int = 0
    tokens_out: int = 0
    dollars: float = 0.0
    finish_reason: str = "stop"
    cached: bool = False


class Llm(Protocol):
    """The way to the models. In the optimizer's process it leads back to the daemon, which keeps keys and ledger."""

    async def complete(self, request: LlmRequest) -> LlmReply:
        """The model's answer. Raises ModelError, or BudgetExhausted before anything was spent."""
        ...


class Screening(Record, frozen=True):
    """What replay of recorded steps said about values before any plant sees them.

    `ok` is False with a `reason` for values that can't be released. `report` tells in words which recorded actions would have differed.
    """

    ok: bool = True
    reason: str = ""
    report: str = ""
    ticks: int = 0
    differing: int = 0


class Screen(Protocol):
    """Validation and replay of values in the sandbox, as far as the daemon can do it."""

    async def __call__(self, values: dict[str, Value]) -> Screening:
        """What became of `values` (changed ones only)."""
        ...


class NoScreen:
    """Where there is nothing to replay: everything passes, nothing is said."""

    async def __call__(self, values: dict[str, Value]) -> Screening:  # noqa: ARG002 - the contract's argument
        """Nothing known against `values`."""
        return Screening()


class Optimizer(Protocol):
    """Turns OPTO problems and memory into a proposal."""

    async def propose(self, problems: Sequence[Problem], memory: Sequence[MemoryEntry], seed: int) -> Proposal:
        """New values for some parameters.

        `problems` are cases of the running revision, `memory` earlier attempts, oldest first. The same arguments and seed give the same
        proposal in any process, as far as the models do. Raises OptimizerError: DecodingError for replies that can't be used, ModelError,
        BudgetExhausted.
        """
        ...


def whole(memory: Sequence[MemoryEntry], parameters: Sequence[Parameter]) -> tuple[MemoryEntry, ...]:
    """`memory` with the values that its revisions leave to the source's defaults: revisions name only what differs from those."""
    defaults = {parameter.path: parameter.default for parameter in parameters}
    return tuple(msgspec.structs.replace(entry, values={**defaults, **entry.values}) for entry in memory)


def make_proposal(
    context: OptimizerContext,
    problems: Sequence[Problem],
    values: dict[str, Value],
    *,
    algorithm: str,
    seed: int,
    reasoning: str = "",
    dollars: float = 0.0,
    exchange: str = "",
    notes: dict[str, Value] | None = None,
) -> Proposal:
    """A proposal whose id follows from what it says and when it was asked for."""
    content = msgspec.msgpack.encode((context.agent, context.stable, values, algorithm, seed, context.at), order="deterministic")
    return Proposal(
        id=hashlib.sha256(content).hexdigest()[:32],
        agent=context.agent,
        parent=context.stable,
        values=values,
        algorithm=algorithm,
        at=context.at,
        reasoning=reasoning,
        answers=tuple(dict.fromkeys(problem.episode for problem in problems)),
        dollars=dollars,
        exchange=exchange,
        notes=notes or {},
    )
