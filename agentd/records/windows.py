"""Windows: the time in which a finished episode may be judged."""

import enum

from agentd.records.base import Record
from agentd.records.episodes import Feedback, Outcome, Purpose, Role


class WindowState(enum.StrEnum):
    """Where an episode stands whose feedback comes later (agentd.release.windows has what may follow what).

    OPEN: nobody has answered. JUDGED: its feedback is there (an answer, a policy's own fault, or silence) and waits for its turn.
    WEIGHED: it is evidence in its release, and the watch has yet to see it. ENTERED: every test that it belongs to has seen it.
    """

    OPEN = "open"
    JUDGED = "judged"
    WEIGHED = "weighed"
    ENTERED = "entered"


class Window(Record, frozen=True):
    """The time in which a finished episode may be judged, and what the tests have to know of the episode until then.

    No words and no client are in it: those are the episode's, and are erased with it.
    """

    episode: str
    agent: str
    revision: str
    role: Role
    purpose: Purpose
    outcome: Outcome
    ended_at: float
    closes_at: float
    regime: int = 0
    state: WindowState = WindowState.OPEN
    feedback: Feedback | None = None
    guardrail: str = ""
    """A guardrail that the candidate violated in it."""
    plan: str = ""
    """The plan of a canary that it was run for; empty for any other episode."""
    release: str = ""
    plant: str = ""
    """The device that the plan was drawn for."""
    probability: float | None = None
