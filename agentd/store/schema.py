"""The tables as they are now. What is queried is a column; the whole record is in `content` (agentd.store.packing).

Migrations lead here (agentd/store/migrations); a test compares the two. `seq` is the order of arrival and what lists are paged by; `id` is
the record's own key. Foreign keys say what must never dangle: a route to a revision, evidence to its release.
"""

from sqlalchemy import BigInteger, Column, Float, ForeignKey, Index, Integer, LargeBinary, MetaData, String, Table

SCHEMA_VERSION = "0002"
"""The newest migration; a test holds it equal to the head of the Alembic scripts."""

metadata = MetaData(naming_convention={"fk": "fk_%(table_name)s_%(column_0_name)s", "ix": "ix_%(table_name)s_%(column_0_N_name)s"})

Key = String().with_variant(String(collation="C"), "postgresql")
"""Text that is compared byte by byte, so that a prefix is a range in every database."""

Sequence = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up only an INTEGER PRIMARY KEY


def _sequence() -> Column[int]:
    return Column("seq", Sequence, primary_key=True, autoincrement=True)


def _id() -> Column[str]:
    return Column("id", Key, nullable=False, unique=True)


def _content() -> Column[bytes]:
    return Column("content", LargeBinary, nullable=False)


def _reference(name: str, target: str, *, nullable: bool = False) -> Column[str]:
    return Column(name, Key, ForeignKey(target), nullable=nullable)


facts = Table("facts", metadata, Column("name", String, primary_key=True), Column("value", BigInteger, nullable=False))
"""Single numbers: the epoch of the newest daemon."""

sources = Table("sources", metadata, _sequence(), _id(), _content())

revisions = Table(
    "revisions",
    metadata,
    _sequence(),
    _id(),
    Column("agent", Key, nullable=False),
    _reference("source", "sources.id"),
    Column("added_at", Float, nullable=False),
    _content(),
    Index(None, "agent", "seq"),
    Index(None, "source"),
)

provenance = Table(
    "provenance",
    metadata,
    _sequence(),
    _id(),  # a digest of the row: the same origin told twice is one row
    _reference("revision", "revisions.id"),
    Column("at", Float, nullable=False),
    _content(),
    Index(None, "revision"),
)

agents = Table(
    "agents",
    metadata,
    _sequence(),
    _id(),  # the name
    _reference("source", "sources.id"),
    _reference("stable", "revisions.id"),
    _reference("desired", "revisions.id", nullable=True),
    _reference("last_good", "revisions.id", nullable=True),
    _reference("anchor", "revisions.id", nullable=True),
    _content(),
)

proposals = Table(
    "proposals",
    metadata,
    _sequence(),
    _id(),
    Column("agent", Key, nullable=False),
    Column("parent", Key, nullable=False),
    Column("at", Float, nullable=False),
    _content(),
    Index(None, "agent", "seq"),
)

releases = Table(
    "releases",
    metadata,
    _sequence(),
    _id(),
    Column("agent", Key, nullable=False),
    Column("proposal", Key, nullable=False),  # "" for a probe: no foreign key
    _reference("candidate", "revisions.id"),
    _reference("reference", "revisions.id"),
    Column("phase", String, nullable=False),
    Column("regime", Integer, nullable=False),
    Column("mean", Float),  # the candidate's, normalised; None before the first pair
    Column("begun_at", Float, nullable=False),
    _content(),
    Index(None, "agent", "seq"),
    Index(None, "proposal"),
    Index(None, "candidate"),
    Index(None, "reference"),
)

plans = Table(
    "plans",
    metadata,
    _sequence(),
    _id(),
    _reference("release", "releases.id"),
    _content(),
    Index(None, "release", "seq"),
)

pairs = Table(
    "pairs",
    metadata,
    _sequence(),
    _id(),
    _reference("release", "releases.id"),
    _content(),
    Index(None, "release", "seq"),
)

windows = Table(
    "windows",
    metadata,
    _sequence(),
    _id(),  # the episode's: no foreign key, since a window is committed and an episode only queued
    Column("agent", Key, nullable=False),
    Column("closes_at", Float, nullable=False),
    Column("state", String, nullable=False),
    _content(),
    Index(None, "agent", "state", "seq"),
)
"""Those that have entered stay for a while, so that an episode that is sent again is known."""

usage = Table(
    "usage",
    metadata,
    _sequence(),
    Column("agent", Key, nullable=False),
    Column("at", Float, nullable=False),
    _content(),
    Index(None, "agent", "at"),
)

events = Table(
    "events",
    metadata,
    Column("seq", Sequence, primary_key=True, autoincrement=False),  # given by the writer: without gaps
    Column("agent", Key, nullable=False),
    Column("kind", Key, nullable=False),
    Column("at", Float, nullable=False),
    _content(),
    Column("hash", LargeBinary, nullable=False),  # agentd.store.chain
    Index(None, "agent", "seq"),
    Index(None, "kind", "seq"),
)

episodes = Table(
    "episodes",
    metadata,
    _sequence(),
    _id(),
    Column("agent", Key, nullable=False),
    Column("device", Key, nullable=False),
    Column("revision", Key, nullable=False),  # no foreign key: an episode of a forgotten revision is still true
    Column("role", String, nullable=False),
    Column("regime", Integer, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("ticks", Integer, nullable=False),
    Column("safe_actions", Integer, nullable=False),
    Column("normalised", Float),  # the score on [0, 1]; None without a verdict
    _content(),  # the Episode without steps, final observation and trace
    Column("feedback", LargeBinary),
    Index(None, "agent", "seq"),
    Index(None, "agent", "started_at"),
    Index(None, "revision", "seq"),
)


def _episode_part(name: str) -> Table:
    """A large part of an episode, in a table of its own: lists don't read over it, and retention takes it first."""
    return Table(
        name,
        metadata,
        Column("episode", Key, ForeignKey("episodes.id", ondelete="CASCADE"), primary_key=True),
        Column("size", Integer, nullable=False),  # bytes of content
        _content(),
    )


steps = _episode_part("steps")
traces = _episode_part("traces")
