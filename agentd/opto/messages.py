"""What the daemon and the optimizer's process say to each other: length-prefixed MessagePack frames of tagged messages."""

import struct
from typing import Any

import msgspec

from agentd.errors import AgentdError, BudgetExhausted, CodecError, DecodingError, ModelError, OptimizerError
from agentd.opto.contract import LlmReply, LlmRequest, OptimizerContext, Screening
from agentd.records import MemoryEntry, Problem, Proposal, Value

HEADER = struct.Struct("!I")
MAX_FRAME = 64 * 1024 * 1024


class Failure(msgspec.Struct, frozen=True):
    """An error as it crosses the border: which of ours, its text, its data."""

    kind: str
    message: str
    data: dict[str, Any] = msgspec.field(default_factory=dict)


class Ask(msgspec.Struct, frozen=True, tag=True):
    """Daemon: make a proposal."""

    context: OptimizerContext
    problems: tuple[Problem, ...]
    memory: tuple[MemoryEntry, ...]
    seed: int
    can_screen: bool = False


class Answered(msgspec.Struct, frozen=True, tag=True):
    """Daemon: what came of call `number`."""

    number: int
    reply: LlmReply | None = None
    screening: Screening | None = None
    failure: Failure | None = None


class Complete(msgspec.Struct, frozen=True, tag=True):
    """Process: ask a model."""

    number: int
    request: LlmRequest


class ScreenValues(msgspec.Struct, frozen=True, tag=True):
    """Process: replay values."""

    number: int
    values: dict[str, Value]


class Proposed(msgspec.Struct, frozen=True, tag=True):
    """Process: done."""

    proposal: Proposal


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Process: no proposal."""

    failure: Failure


ToProcess = Ask | Answered
ToDaemon = Complete | ScreenValues | Proposed | Failed


def failure_of(error: BaseException) -> Failure:
    """`error` as data. What is not ours becomes an OptimizerError with the class's name before its text."""
    match error:
        case DecodingError():
            return Failure("DecodingError", str(error), {"problems": error.problems, "reply": error.reply})
        case ModelError():
            return Failure("ModelError", str(error), {"model": error.model, "status": error.status, "retryable": error.retryable})
        case BudgetExhausted():
            return Failure("BudgetExhausted", str(error), {"limit": error.limit, "resets_at": error.resets_at})
        case AgentdError():
            return Failure("OptimizerError", str(error))
        case _:
            return Failure("OptimizerError", f"{type(error).__name__}: {error}")


def error_of(failure: Failure) -> OptimizerError:
    """The error again. What doesn't fit any of ours is an OptimizerError."""
    data = failure.data
    match failure.kind:
        case "DecodingError":
            return DecodingError({str(path): str(what) for path, what in data["problems"].items()}, str(data["reply"]))
        case "ModelError":
            return ModelError(failure.message, model=data["model"], status=data["status"], retryable=data["retryable"])
        case "BudgetExhausted":
            return BudgetExhausted(data["limit"], resets_at=data["resets_at"])
        case _:
            return OptimizerError(failure.message)


def length_of(header: bytes) -> int:
    """The length that a frame's header announces. Raises CodecError for one that no honest side would send."""
    (length,) = HEADER.unpack(header)
    if length > MAX_FRAME:
        raise CodecError(f"a frame of {length} bytes; at most {MAX_FRAME} are allowed")
    return int(length)
