"""What the HTTP API needs of the daemon, and what the daemon tells of itself."""

import enum
from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec import field

from agentd.records import AgentState, Hold, Mode, Record, Release, Value
from agentd.store.retention import Erased


class Health(enum.StrEnum):
    """How an agent is. DEGRADED: it serves, but something needs (or is getting) attention. STARTING: it was never up yet."""

    STARTING = "starting"
    OK = "ok"
    DEGRADED = "degraded"
    FAILING = "failing"
    """It is up, and of no use: no action of it is accepted, or none of its episodes can be judged."""
    FAILED = "failed"
    STOPPED = "stopped"
    """No daemon hosts it now (read from the store), or its daemon is about to end."""


class AgentStatus(Record, frozen=True):
    """What an operator sees of an agent at a glance."""

    name: str
    mode: Mode
    health: str = Health.OK
    problem: str = ""
    state: AgentState | None = None
    """None until its runner is up for the first time."""
    release: Release | None = None
    """The release in progress."""
    devices: dict[str, str] = field(default_factory=dict)
    """Status by device id."""
    isolation: int = 0
    runner_session: str = ""
    runner_pid: int | None = None
    runner_adopted: bool = False
    episodes: int = 0
    """Since the daemon started."""
    recent: tuple[float, ...] = ()
    """Normalised scores of the stable revision, oldest first."""
    waiting: str = ""
    """What keeps the release in progress from going on by itself, if anything does: a freeze, a quarantine, the rate of promotions."""
    optimizer: str = "idle"
    """idle, or what it is doing or waiting for."""
    budget_dollars: float | None = None
    """What its optimizer may spend in a day; None: no limit."""
    budget_remaining: float | None = None
    """What of that is left."""
    models_dollars: float | None = None
    """What it may spend in a day on the models that it asks itself; None: it asks none."""
    models_remaining: float | None = None
    """What of that is left."""
    windows: int = 0
    """Episodes that may still be judged."""
    windows_close_at: float | None = None
    """When the oldest of these windows closes, Unix seconds."""


class Acted(Record, frozen=True):
    """The answer to a client's request. `safe`: it is the safe action; `episode` and `revision` are None where no policy was asked."""

    episode: str | None
    action: Value
    revision: str | None = None
    safe: bool = False


class FeedbackReceipt(Record, frozen=True):
    """What became of feedback that somebody gave. `evidence`: it came in time, so that the tests see it; `detail` says it in words."""

    episode: str
    score: float
    normalised: float
    evidence: bool
    detail: str = ""


class DaemonStatus(Record, frozen=True):
    """The daemon and all its agents."""

    version: str
    pid: int
    started_at: float
    epoch: int
    state_directory: str
    store_url: str
    """Without its password."""
    agents: tuple[AgentStatus, ...] = ()
    broken: dict[str, str] = field(default_factory=dict)
    """Agent folders that can't be loaded, and why."""
    frozen: Hold | None = None
    """The freeze of all agents, those that come included."""


class Commands(Protocol):
    """The verbs of an operator. Every one names who gave it.

    They raise NotFound for an agent, release or revision that isn't there; StaleRelease for a decision about a release that has moved on;
    IllegalTransition for one that its phase doesn't allow; Held for what a freeze or a quarantine forbids; RunnerError while the agent is
    not up; StoreUnavailable when nothing can be committed, and then nothing was changed.
    """

    def status(self) -> DaemonStatus:
        """The daemon and all its agents."""
        ...

    def agent_status(self, agent: str) -> AgentStatus:
        """One agent."""
        ...

    def logs(self, agent: str) -> tuple[str, ...]:
        """The last lines that the agent's workers printed, oldest first: untrusted text."""
        ...

    async def submit(self, agent: str, values: Mapping[str, Value], *, who: str, note: str = "") -> Release:
        """An operator's proposal: values by parameter path. It goes the way of every other.

        Raises DecodingError or CodecError for values that can't be, ReleaseError where they change nothing.
        """
        ...

    async def approve(self, agent: str, release: str, *, who: str, reason: str = "") -> Release:
        """Let a release that awaits approval go on to its canary."""
        ...

    async def promote(self, agent: str, release: str, *, who: str, reason: str = "", full: bool = False) -> Release:
        """Force a release on to the next step of its ramp; past the last one, or with `full`, to stable.

        A revision that was forced to stable is watched against its predecessor's bound.
        """
        ...

    async def abort(self, agent: str, release: str, *, who: str, reason: str = "") -> Release:
        """End a release; all routes go back to stable."""
        ...

    async def pause(self, agent: str, release: str, *, who: str, reason: str = "") -> Release:
        """Draw no more pairs; the evidence so far stays."""
        ...

    async def resume(self, agent: str, release: str, *, who: str, reason: str = "") -> Release:
        """Go on with a paused release."""
        ...

    async def retry(self, agent: str, release: str, *, who: str, reason: str = "") -> Release:
        """Begin an ended release's proposal again, as a new release."""
        ...

    async def pause_agent(self, agent: str, *, who: str, reason: str = "") -> AgentStatus:
        """Start no more episodes; the plant stays in its safe state."""
        ...

    async def resume_agent(self, agent: str, *, who: str, reason: str = "") -> AgentStatus:
        """Go on after `pause_agent`."""
        ...

    async def freeze(self, agent: str, *, who: str, reason: str = "") -> AgentStatus:
        """No proposal, release or promotion begins or goes on; the watch may still roll back. Also while the agent is not up."""
        ...

    async def unfreeze(self, agent: str, *, who: str, reason: str = "") -> AgentStatus:
        """Go on after `freeze`. Raises Held while all agents are frozen."""
        ...

    async def freeze_all(self, *, who: str, reason: str = "") -> DaemonStatus:
        """As `freeze`, for every agent: those that are not up, and those that come later, too."""
        ...

    async def unfreeze_all(self, *, who: str, reason: str = "") -> DaemonStatus:
        """Go on after `freeze_all`. An agent that was frozen by itself stays frozen."""
        ...

    async def unquarantine(self, agent: str, *, who: str, reason: str = "") -> AgentStatus:
        """Let an agent that rolled back too often release again."""
        ...

    async def rebase(self, agent: str, *, keep: Sequence[str], take: Sequence[str], who: str, reason: str = "") -> Release | None:
        """Settle conflicts between learned values and a changed source: propose the learned ones of `keep`, leave the source's of `take`.

        Raises DecodingError for paths without a conflict. None where nothing is kept.
        """
        ...

    async def forget(self, agent: str, *, device: str | None, episodes: Sequence[str], who: str, reason: str = "") -> Erased:
        """Erase an agent's episodes of a device, or single ones; also of an agent that is not hosted now."""
        ...

    async def set_desired(self, agent: str, revision: str, *, who: str, reason: str = "") -> AgentStatus:
        """Serve a known revision from the next episode on: rollback or pin."""
        ...

    async def act(self, agent: str, observation: Value, *, client: str = "", instruction: str = "") -> Acted:
        """Have a request answered by an agent that is served over HTTP.

        Raises RequestError where it isn't, Overloaded or Unanswered where it can't be answered now, CodecError for an observation that is
        outside its space.
        """
        ...

    async def give_feedback(self, episode: str, score: float, *, text: str, metrics: Mapping[str, float], who: str) -> FeedbackReceipt:
        """Say what an episode was worth. Raises DecodingError for scores that can't be, FeedbackRefused where it is judged already."""
        ...

    async def propose(self, agent: str, *, who: str) -> None:
        """Ask the optimizer for a proposal now."""
        ...

    async def reload(self) -> None:
        """Read the agents directory again."""
        ...
