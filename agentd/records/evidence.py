"""What releases are decided on: pairs and single episodes, planned and run."""

from agentd.records.base import Record
from agentd.records.episodes import Role


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
