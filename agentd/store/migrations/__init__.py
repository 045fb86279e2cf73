"""From any older schema to the present one, with Alembic; the scripts are in `versions/`, named by ascending numbers.

A new one copies the shape of the last and writes its operations out. It must not import agentd.store.schema: that describes today, a
migration its own day.
"""

from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection, inspect, text

from agentd import __version__
from agentd.errors import StoreError, StoreVersionError
from agentd.store.schema import SCHEMA_VERSION


def read_version(connection: Connection) -> str | None:
    """The schema version of a database; None for an empty one. Raises StoreError for a database that belongs to something else."""
    tables = inspect(connection).get_table_names()
    if "alembic_version" in tables:
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if tables:
        raise StoreError(f"the database belongs to something else: it holds the table {tables[0]!r} and no agentd schema")
    return None


def migrate(connection: Connection, backup: Callable[[str], None]) -> None:
    """Bring the database behind `connection` to the present schema, after `backup(version)` unless it is empty.

    The caller's transaction holds it all: a crash in the middle leaves the old schema. Raises StoreVersionError for a newer database.
    """
    version = read_version(connection)
    if version == SCHEMA_VERSION:
        return  # without importing Alembic: most starts end here

    from alembic import command  # noqa: PLC0415 - a quarter of a second, needed once per version
    from alembic.config import Config  # noqa: PLC0415 - as above
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - as above

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if version is not None:
        if version not in known:
            raise _newer(version)
        backup(version)
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def check_version(connection: Connection) -> None:
    """Raise StoreVersionError unless the database has the present schema; it is only read."""
    version = read_version(connection)
    if version is None:
        raise StoreVersionError("the database is empty: no agentd has run on it")
    if version < SCHEMA_VERSION:
        raise StoreVersionError(f"the database has schema {version}, from an older agentd; the daemon migrates it when it starts")
    if version > SCHEMA_VERSION:
        raise _newer(version)


def _newer(version: str) -> StoreVersionError:
    return StoreVersionError(
        f"the database has schema {version}, from a newer agentd; this is agentd {__version__} with schema {SCHEMA_VERSION}. "
        f"Upgrade agentd, or restore the backup that the newer one made beside the database (*.backup-{SCHEMA_VERSION}-*)"
    )
