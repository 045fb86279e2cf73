"""Every error that agentd raises on purpose. They carry data; the message is made from it.

AgentdError
├── SpecError                 agent.toml or agentd.toml: every mistake at once
├── SourceError               an agent folder that can't be read or loaded
├── CodecError                bytes that are not what they should be
├── TraceError                the trace library was used wrongly
│   └── (ExecutionError, TraceMissingInputsError: agentd.trace)
├── OptimizerError            a proposal could not be made
│   ├── DecodingError         a reply that can't become values
│   ├── ModelError            the LLM's service failed, or refused
│   └── BudgetExhausted       nothing wrong: there is no money left
├── SandboxError              untrusted code, and what became of it
│   ├── IsolationError        this machine can't isolate as much as was asked
│   ├── LoadError             the program raised while it was loaded
│   ├── PolicyError           the program raised while it acted
│   ├── WorkerDied            the process ended by itself or by the kernel
│   ├── WorkerTimeout         no answer in time; the process was killed
│   └── ProtocolViolation     the process lied about sizes or spoke out of turn
├── PlantError                the environment side
│   └── PlantLost             device or network is gone
├── RunnerError               the runner process, and the way to it
│   └── Fenced                a newer daemon owns this runner
├── RequestError              an agent that is served over HTTP can't take a request
│   ├── Overloaded            as many wait as may: later
│   ├── Unanswered            its policy gave nothing, and there is no safe action
│   └── FeedbackRefused       the episode has its feedback already, or takes none from outside
├── ReleaseError
│   ├── IllegalTransition     the machine can't go there from here
│   ├── StaleRelease          an operator's decision about a release that has moved on
│   └── Held                  the agent is frozen, or in quarantine: nothing may begin or go on
├── StoreError
│   ├── NotFound
│   ├── Ambiguous             a prefix of more than one id
│   ├── StoreVersionError     a database from a newer agentd
│   └── StoreUnavailable      full disk, locked or unreachable database
└── DaemonUnreachable         the CLI found no daemon
"""

from collections.abc import Sequence
from dataclasses import dataclass


class AgentdError(Exception):
    """Base of all errors of agentd."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong in a file: where, and what is expected there."""

    file: str
    key: str
    expected: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}: {self.expected}"


class SpecError(AgentdError):
    """A configuration file with mistakes; `mistakes` has all of them."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))


class SourceError(AgentdError):
    """An agent folder that can't be read."""


class CodecError(AgentdError):
    """Bytes that do not decode to the record that was expected."""


class TraceError(AgentdError):
    """The trace library was used wrongly."""


class OptimizerError(AgentdError):
    """A proposal could not be made."""


class DecodingError(OptimizerError):
    """A reply that can't become parameter values.

    `problems` says what is wrong, by parameter path ("" where it is about the whole reply); `reply` is an excerpt of the text.
    """

    def __init__(self, problems: dict[str, str], reply: str = "") -> None:
        self.problems = problems
        self.reply = reply
        super().__init__("; ".join(f"{path}: {what}" if path else what for path, what in problems.items()))


class ModelError(OptimizerError):
    """The service behind a model failed or refused. `retryable` is False where asking again can't help."""

    def __init__(self, message: str, *, model: str, status: int | None = None, retryable: bool = False) -> None:
        self.model = model
        self.status = status
        self.retryable = retryable
        super().__init__(message)


class BudgetExhausted(OptimizerError):  # noqa: N818 - a state, not a fault
    """No budget is left before `resets_at` (Unix seconds); `limit` names which one."""

    def __init__(self, limit: str, *, resets_at: float | None = None) -> None:
        self.limit = limit
        self.resets_at = resets_at
        super().__init__(f"the budget is exhausted: {limit}")


class SandboxError(AgentdError):
    """Something about untrusted code."""


class IsolationError(SandboxError):
    """This machine can't isolate as much as was asked for."""

    def __init__(self, message: str, *, wanted: int, available: int) -> None:
        self.wanted = wanted
        self.available = available
        super().__init__(message)


class LoadError(SandboxError):
    """The program raised while it was loaded. `traceback` is its own (untrusted) text."""

    def __init__(self, message: str, *, traceback: str = "") -> None:
        self.traceback = traceback
        super().__init__(message)


class PolicyError(SandboxError):
    """The program raised, or answered with no action. `traceback` is its own (untrusted) text."""

    def __init__(self, message: str, *, traceback: str = "") -> None:
        self.traceback = traceback
        super().__init__(message)


class WorkerDied(SandboxError):  # noqa: N818 - an event, named as it is spoken of
    """The worker process ended. `signal` is set when the kernel or the watchdog killed it."""

    def __init__(self, message: str, *, exit_code: int | None = None, signal: int | None = None) -> None:
        self.exit_code = exit_code
        self.signal = signal
        super().__init__(message)


class WorkerTimeout(SandboxError):  # noqa: N818 - an event, named as it is spoken of
    """No answer within `timeout` seconds; the worker was killed."""

    def __init__(self, message: str, *, timeout: float) -> None:
        self.timeout = timeout
        super().__init__(message)


class ProtocolViolation(SandboxError):  # noqa: N818 - an event, named as it is spoken of
    """The worker lied about a size or spoke out of turn; it was killed."""


class PlantError(AgentdError):
    """The environment failed."""


class PlantLost(PlantError):  # noqa: N818 - an event, named as it is spoken of
    """Device or network is gone. `reason` is a metric label: disconnected, silent, stopped, superseded, refused."""

    def __init__(self, message: str, *, reason: str) -> None:
        self.reason = reason
        super().__init__(message)


class RunnerError(AgentdError):
    """The runner process failed, or the way to it."""


class Fenced(RunnerError):  # noqa: N818 - an event, named as it is spoken of
    """A daemon with a newer fencing token owns this runner."""


class RequestError(AgentdError):
    """A request to an agent that doesn't take it."""


class Overloaded(RequestError):  # noqa: N818 - a state
    """As many requests wait as may, or this one has waited for as long as it may. `full`: it was not even queued."""

    def __init__(self, message: str, *, full: bool = True) -> None:
        self.full = full
        super().__init__(message)


class Unanswered(RequestError):  # noqa: N818 - named as it is spoken of
    """The policy gave no usable action, and the agent declares no safe one. `late`: it had all its time; `episode` has what went wrong."""

    def __init__(self, message: str, *, late: bool = False, episode: str = "") -> None:
        self.late = late
        self.episode = episode
        super().__init__(message)


class FeedbackRefused(RequestError):  # noqa: N818 - named as it is spoken of
    """An episode has its feedback already, or is judged by its agent's own feedback.py."""


class ReleaseError(AgentdError):
    """Something about a release."""


class IllegalTransition(ReleaseError):  # noqa: N818 - named as it is spoken of
    """The release can't go from `phase` to `to`."""

    def __init__(self, release: str, phase: str, to: str) -> None:
        self.release = release
        self.phase = phase
        self.to = to
        super().__init__(f"release {release} is {phase.replace('_', ' ')}; it can't be {to.replace('_', ' ')}")


class StaleRelease(ReleaseError):  # noqa: N818 - named as it is spoken of
    """A decision about a release that is no longer the one in progress."""


class Held(ReleaseError):  # noqa: N818 - a state
    """The agent is frozen or in quarantine: no proposal, release or promotion begins or goes on."""


class StoreError(AgentdError):
    """The store failed."""


class NotFound(StoreError):  # noqa: N818 - named as it is spoken of
    """No such record."""

    def __init__(self, kind: str, key: str) -> None:
        self.kind = kind
        self.key = key
        super().__init__(f"there is no {kind} {key!r}")


class Ambiguous(StoreError):  # noqa: N818 - named as it is spoken of
    """`key` is the beginning of several ids; `matches` are some of them."""

    def __init__(self, kind: str, key: str, matches: Sequence[str]) -> None:
        self.kind = kind
        self.key = key
        self.matches = tuple(matches)
        super().__init__(f"{key!r} could be more than one {kind}: {', '.join(self.matches)}; give more of it")


class StoreVersionError(StoreError):
    """The database was written by a newer agentd."""


class StoreUnavailable(StoreError):  # noqa: N818 - a state
    """The database can't be reached or written now: full disk, lock, network."""


class DaemonUnreachable(AgentdError):  # noqa: N818 - a state
    """No daemon answers at `url`. `hangs`: its process is there, and says nothing."""

    def __init__(self, url: str, reason: str, *, hangs: bool = False) -> None:
        self.url = url
        self.hangs = hangs
        self.reason = reason
        super().__init__(f"no daemon answers at {url}: {reason}")


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The errors inside a group of groups, in order."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found
