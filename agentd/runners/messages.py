"""What daemon and runner say to each other: MessagePack records in frames with a length of four bytes (big-endian) before each.

The daemon asks, each request with a number of its own, and gets `Done` or `Failed` with that number. The runner also tells things
unasked. Episodes are told until they are acknowledged, at most `EPISODE_WINDOW` at a time, so that replies never wait behind them.
"""

import asyncio
from typing import Any

import msgspec

from agentd import codec, errors
from agentd.errors import AgentdError, CodecError, RunnerError
from agentd.opto.budget import Grant
from agentd.records import Answered, Episode, Event, PairPlan, Parameter, Record, Revision, Source, Usage, Value
from agentd.sandbox import Isolation

VERSION = 1
EPISODE_WINDOW = 32
MAX_FRAME = 256 * 1024 * 1024


class Setup(Record, frozen=True, kw_only=True):
    """What a runner is started with, on its standard input. `spec` is the AgentSpec as JSON; `seed` makes episode seeds reproducible."""

    spec: bytes
    fingerprint: str
    broker: str | None = None
    seed: int | None = None


class DeviceState(Record, frozen=True, kw_only=True):
    """A device as the daemon sees it. `status`: ready, lost, stopped."""

    id: str
    status: str
    seedable: bool
    labels: dict[str, str] = msgspec.field(default_factory=dict)


class ScreenReport(Record, frozen=True, kw_only=True):
    """What replaying recorded steps showed.

    `error` is the first exception's name and text, `traceback` the program's own words (untrusted). `changed` are the first actions that
    differ, by tick, of the first episode that has any.
    """

    ticks: int = 0
    differing: int = 0
    invalid: int = 0
    errors: int = 0
    max_latency: float = 0.0
    error: str = ""
    traceback: str = ""
    first_invalid: str = ""
    late: str = ""
    """Why it is too slow for its plant; empty where it isn't."""
    changed: dict[int, Value] = msgspec.field(default_factory=dict)
    unrecorded: int = 0
    """Episodes that could be replayed only up to a question to a model that is not recorded."""
    first_unrecorded: str = ""


class ModelAccess(Record, frozen=True, kw_only=True):
    """How a runner reaches the models of its agent: names in order of preference, and keys, which it shows nobody.

    `variables` are those of the daemon's environment in which litellm looks for the providers' keys and for the way out.
    """

    names: tuple[str, ...]
    api_base: str | None = None
    api_key: str | None = None
    variables: dict[str, str] = msgspec.field(default_factory=dict)

    def __repr__(self) -> str:
        return f"ModelAccess(names={self.names!r})"


class ModelReport(Record, frozen=True, kw_only=True):
    """What policies spent on models: the rows after the first `taken`.

    `trouble`: what keeps models from answering, in words; `exhausted` where that is the budget.
    """

    usage: tuple[Usage, ...] = ()
    taken: int = 0
    trouble: str = ""
    exhausted: bool = False


# --- to the runner ----------------------------------------------------------------------------------------------------


class Request(Record, frozen=True, kw_only=True, tag=True):
    """Something asked of the runner."""

    request: int = 0


class Hello(Request, frozen=True, kw_only=True):
    """The first message: `epoch` is the fencing token of the daemon that speaks."""

    epoch: int
    version: int = VERSION


class Load(Request, frozen=True, kw_only=True):
    """Warm a worker for a revision."""

    source: Source
    revision: Revision


class Screen(Request, frozen=True, kw_only=True):
    """Replay recorded steps in a loaded worker."""

    revision: str
    episodes: tuple[Episode, ...]


class Route(Request, frozen=True, kw_only=True):
    """Serve this revision as the stable one from the next episode on."""

    revision: str


class QueuePair(Request, frozen=True, kw_only=True):
    """Run a pair on its device, while the lease lasts."""

    plan: PairPlan
    lease: float


class Renew(Request, frozen=True, kw_only=True):
    """Let the pairs go on for `lease` seconds from now."""

    lease: float


class CancelPairs(Request, frozen=True, kw_only=True):
    """Forget the pairs (on one device, or everywhere); a running episode ends at its boundary."""

    device: str | None = None


class Retire(Request, frozen=True, kw_only=True):
    """End a revision's worker."""

    revision: str


class Pause(Request, frozen=True, kw_only=True):
    """Begin no more episodes."""


class Resume(Request, frozen=True, kw_only=True):
    """Begin episodes again."""


class Ask(Request, frozen=True, kw_only=True):
    """Answer a client's request: an episode of one step, of an agent that is served over HTTP."""

    observation: Value
    client: str = ""
    instruction: str = ""


class Drain(Request, frozen=True, kw_only=True):
    """Finish the episodes within `timeout` seconds, leave the plants with the safe action, and exit."""

    timeout: float


class LeaseModels(Request, frozen=True, kw_only=True):
    """Ask models within this grant from now on; answered with what was spent. `access` where it is new to this connection."""

    grant: Grant
    access: ModelAccess | None = None


class Acknowledge(Request, frozen=True, kw_only=True):
    """The daemon has taken an episode in."""

    episode: str


ToRunner = (
    Hello | Load | Screen | Ask | Route | QueuePair | Renew | CancelPairs | Retire | Pause | Resume | Drain | LeaseModels | Acknowledge
)


# --- to the daemon ----------------------------------------------------------------------------------------------------


class Message(Record, frozen=True, kw_only=True, tag=True):
    """Something the runner says."""


class Welcome(Message, frozen=True, kw_only=True):
    """The answer to Hello: what the runner is and has."""

    request: int
    session: str
    pid: int
    isolation: Isolation
    fingerprint: str
    stable: str | None = None
    loaded: tuple[str, ...] = ()
    devices: tuple[DeviceState, ...] = ()
    unreachable: str = ""
    """Why no device can be reached; empty where one could be."""
    paused: bool = False
    spooled: int = 0


class Done(Message, frozen=True, kw_only=True):
    """A request was carried out."""

    request: int
    parameters: tuple[Parameter, ...] = ()
    report: ScreenReport | None = None
    dropped_pairs: tuple[str, ...] = ()
    models: ModelReport | None = None
    answered: Answered | None = None


class Failed(Message, frozen=True, kw_only=True):
    """A request failed: one of agentd.errors, by name."""

    request: int
    kind: str
    message: str
    fields: dict[str, Any] = msgspec.field(default_factory=dict)


class Finished(Message, frozen=True, kw_only=True):
    """An episode ended."""

    episode: Episode


class DevicesChanged(Message, frozen=True, kw_only=True):
    """All devices, as they are now, and why none of them can be reached (or an empty text)."""

    devices: tuple[DeviceState, ...]
    unreachable: str = ""


class Happened(Message, frozen=True, kw_only=True):
    """An event, not yet committed."""

    event: Event


class Log(Message, frozen=True, kw_only=True):
    """Lines that workers printed; `dropped` were too many."""

    lines: tuple[str, ...]
    dropped: int = 0


class Counted(Message, frozen=True, kw_only=True):
    """What was counted since the last time, by dotted name: `messages.in`, `dropped.stale`, `safe_actions.late`, ..."""

    deltas: dict[str, float]


FromRunner = Welcome | Done | Failed | Finished | DevicesChanged | Happened | Log | Counted


def failure(request: int, error: AgentdError) -> Failed:
    """An error as a message."""
    return Failed(request=request, kind=type(error).__name__, message=str(error), fields=dict(vars(error)))


def as_error(kind: str, message: str, fields: dict[str, Any]) -> AgentdError:
    """The error that a `Failed` carries, as an instance of its own class."""
    class_ = getattr(errors, kind, RunnerError)
    if not (isinstance(class_, type) and issubclass(class_, AgentdError)):
        class_ = RunnerError
    try:
        return class_(message, **fields)
    except TypeError:
        return RunnerError(f"{kind}: {message}")


# --- frames -----------------------------------------------------------------------------------------------------------


def frame(message: Record) -> bytes:
    """A message with its length before it. Raises CodecError for what can't travel."""
    content = codec.encode(message)
    if len(content) > MAX_FRAME:
        raise CodecError(f"a message of {len(content)} bytes is too large")
    return len(content).to_bytes(4, "big") + content


async def read_frame(reader: asyncio.StreamReader, type_: Any) -> Any:
    """The next message; None at the end of the stream. Raises CodecError for anything that is not of `type_`."""
    try:
        size = int.from_bytes(await reader.readexactly(4), "big")
        if size > MAX_FRAME:
            raise CodecError(f"a frame of {size} bytes is announced, {MAX_FRAME} are allowed")
        content = await reader.readexactly(size)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return codec.decode(content, type_)
