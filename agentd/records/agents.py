"""What the daemon knows of each agent: the revisions that serve it, the watch on them, and who holds it."""

import enum

import msgspec

from agentd.records.base import Record, Value
from agentd.records.revisions import Parameter


class Mode(enum.StrEnum):
    """How far agentd goes by itself."""

    OBSERVE = "observe"
    ADVISE = "advise"
    RELEASE = "release"


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
    everywhere: bool = False
    """Put on all agents at once, those that come included."""


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

    def under(self, freeze: Hold | None) -> "AgentState":
        """What holds of this agent while all agents are frozen: its own freeze comes first."""
        return self if freeze is None or self.frozen is not None else msgspec.structs.replace(self, frozen=freeze)

    @property
    def held(self) -> str:
        """What keeps releases from going on, in words; empty if nothing does."""
        for word, hold in (("frozen", self.frozen), ("quarantined", self.quarantine)):
            if hold is not None:
                return f"{word} by {hold.who}" + (f": {hold.reason}" if hold.reason else "")
        return ""
