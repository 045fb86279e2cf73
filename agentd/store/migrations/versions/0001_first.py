"""The first schema."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_KEY = sa.String().with_variant(sa.String(collation="C"), "postgresql")
_SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _create(name: str, *columns: sa.Column[Any] | sa.ForeignKeyConstraint, content: bool = True, key: bool = True) -> None:
    """A table in the order of arrival, `key`ed by the record's own id, with the record as its last column."""
    keys = [sa.Column("id", _KEY, nullable=False, unique=True)] if key else []
    contents = [sa.Column("content", sa.LargeBinary(), nullable=False)] if content else []
    op.create_table(name, sa.Column("seq", _SEQUENCE, primary_key=True, autoincrement=True), *keys, *columns, *contents)


def _key(name: str) -> sa.Column[str]:
    return sa.Column(name, _KEY, nullable=False)


def _to(table: str, column: str, target: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [target], name=f"fk_{table}_{column}")


def _index(table: str, *columns: str) -> None:
    op.create_index(f"ix_{table}_{'_'.join(columns)}", table, list(columns))


def upgrade() -> None:
    """Create everything."""
    op.create_table("facts", sa.Column("name", sa.String(), primary_key=True), sa.Column("value", sa.BigInteger(), nullable=False))
    _create("sources")
    _create(
        "revisions",
        _key("agent"),
        _key("source"),
        sa.Column("added_at", sa.Float(), nullable=False),
        _to("revisions", "source", "sources.id"),
    )
    _index("revisions", "agent", "seq")
    _index("revisions", "source")
    _create("provenance", _key("revision"), sa.Column("at", sa.Float(), nullable=False), _to("provenance", "revision", "revisions.id"))
    _index("provenance", "revision")
    _create(
        "agents",
        _key("source"),
        _key("stable"),
        sa.Column("desired", _KEY),
        sa.Column("last_good", _KEY),
        sa.Column("anchor", _KEY),
        _to("agents", "source", "sources.id"),
        _to("agents", "stable", "revisions.id"),
        _to("agents", "desired", "revisions.id"),
        _to("agents", "last_good", "revisions.id"),
        _to("agents", "anchor", "revisions.id"),
    )
    _create("proposals", _key("agent"), _key("parent"), sa.Column("at", sa.Float(), nullable=False))
    _index("proposals", "agent", "seq")
    _create(
        "releases",
        _key("agent"),
        _key("proposal"),
        _key("candidate"),
        _key("reference"),
        sa.Column("phase", sa.String(), nullable=False),
        sa.Column("regime", sa.Integer(), nullable=False),
        sa.Column("mean", sa.Float()),
        sa.Column("begun_at", sa.Float(), nullable=False),
        _to("releases", "candidate", "revisions.id"),
        _to("releases", "reference", "revisions.id"),
    )
    _index("releases", "agent", "seq")
    _index("releases", "proposal")
    _index("releases", "candidate")
    _index("releases", "reference")
    for evidence in ("plans", "pairs"):
        _create(evidence, _key("release"), _to(evidence, "release", "releases.id"))
        _index(evidence, "release", "seq")
    _create("usage", _key("agent"), sa.Column("at", sa.Float(), nullable=False), key=False)
    _index("usage", "agent", "at")
    op.create_table(
        "events",
        sa.Column("seq", _SEQUENCE, primary_key=True, autoincrement=False),
        _key("agent"),
        _key("kind"),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
    )
    _index("events", "agent", "seq")
    _index("events", "kind", "seq")
    _create(
        "episodes",
        _key("agent"),
        _key("device"),
        _key("revision"),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("regime", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("ticks", sa.Integer(), nullable=False),
        sa.Column("safe_actions", sa.Integer(), nullable=False),
        sa.Column("normalised", sa.Float()),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("feedback", sa.LargeBinary()),
        content=False,
    )
    _index("episodes", "agent", "seq")
    _index("episodes", "agent", "started_at")
    _index("episodes", "revision", "seq")
    for part in ("steps", "traces"):
        op.create_table(
            part,
            sa.Column("episode", _KEY, primary_key=True),
            sa.Column("size", sa.Integer(), nullable=False),
            sa.Column("content", sa.LargeBinary(), nullable=False),
            sa.ForeignKeyConstraint(["episode"], ["episodes.id"], name=f"fk_{part}_episode", ondelete="CASCADE"),
        )
