"""What is not the same in every database; all SQL that only one of them understands is here.

SQLite: WAL, so that readers never wait for the writer nor it for them. Durable commits are synced (`synchronous=FULL`); the batched class
is only written (`NORMAL`): a power failure may take its newest rows, but never tears one.
PostgreSQL: the same two classes through `synchronous_commit`.
"""
# ruff: noqa: D102 - the protocol has the docstrings

import asyncio
import fcntl
import os
import sqlite3
import urllib.parse
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, Table, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool

from agentd.errors import NotFound, StoreError, StoreUnavailable

READERS = 4
"""Reads that go on at once; more wait."""

_BUSY_TIMEOUT = 5.0  # seconds to wait for another process's lock
_WAL_LIMIT = 64 * 1024 * 1024  # bytes that the write-ahead log keeps after a checkpoint; without it a burst stays for ever
_RECLAIM_PAGES = 2000  # freed pages given back at a time: a longer transaction would keep commits waiting

Insert = sqlite.Insert | postgresql.Insert
Migrate = Callable[[Connection, Callable[[str], None]], None]


class Backend(Protocol):
    """One database, at one URL."""

    name: str
    """For people: a path or a URL without its password."""

    async def migrate(self, migrate: Migrate) -> None:
        """Run `migrate(connection, backup)` in a transaction that no other process can enter; `backup(version)` copies the database."""

    async def reader(self) -> AsyncEngine:
        """An engine that only reads; it needs no daemon and takes no lock."""

    def writer(self) -> AsyncEngine:
        """An engine with one connection; `execution_options(durable=False)` leaves out the sync."""

    def insert(self, table: Table) -> Insert:
        """`INSERT` with `ON CONFLICT`."""

    async def backup(self, path: Path) -> None:
        """Copy the database as it is now, while it is in use, to `path`, which appears complete or not at all."""

    def overwriting(self, connection: AsyncConnection) -> AbstractAsyncContextManager[None]:
        """Within it, what is deleted in `connection`'s transaction is overwritten, where the database can do that."""

    async def settle(self) -> bool:
        """Take out of the write-ahead log what was deleted; False where a reader is in the way, or a server does it in its own time."""

    async def reclaim(self, connection: AsyncConnection) -> bool:
        """Give a part of what deletions freed back to the file system; False when there is none left."""


def make_backend(url: str, *, now: str) -> Backend:
    """The backend for `url`: `sqlite:///relative/path`, `sqlite:////absolute/path` or `postgresql://...`. `now` names backups.

    Raises StoreError for any other URL.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise StoreError("the store's URL can't be read; write sqlite:////path/to/agentd.db or postgresql://user@host/database") from error
    match parsed.get_backend_name():
        case "sqlite" if parsed.database and parsed.database != ":memory:":
            return Sqlite(Path(parsed.database), now=now)
        case "postgresql":
            return Postgresql(parsed.set(drivername="postgresql+asyncpg"))
        case name:
            raise StoreError(f"agentd stores in a SQLite file or in PostgreSQL, not in {name!r}")


def _on_connect(engine: Engine, *pragmas: str) -> None:
    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()


def _on_begin(engine: Engine, statement: str, *, durability: bool = False) -> None:
    """The driver is told to begin nothing by itself (`isolation_level=None`): it would begin too late, after the first read."""

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if durability:
            durable = connection.get_execution_options().get("durable", True)
            connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        connection.exec_driver_sql(statement)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Keeps other processes and threads that ask for the same out."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Sqlite:
    """A SQLite file."""

    def __init__(self, path: Path, *, now: str) -> None:
        self.name = str(path)
        self._path = path.absolute()
        self._now = now

    def _url(self, driver: str, **parameters: str) -> URL:
        return URL.create(driver, database=f"file:{urllib.parse.quote(str(self._path))}", query={**parameters, "uri": "true"})

    async def migrate(self, migrate: Migrate) -> None:
        await asyncio.to_thread(self._migrate, migrate)

    def _migrate(self, migrate: Migrate) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _one_at_a_time(self._path.parent):
            self._create()
        engine = self._engine("synchronous=FULL", "foreign_keys=ON")
        _on_begin(engine, "BEGIN IMMEDIATE")
        with engine.begin() as connection:
            migrate(connection, self._backup_before_migration)

    def _create(self) -> None:
        """An empty database, unless there is one: what can be set only before the first table, and only with nobody else at it."""
        with suppress(FileExistsError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # episodes hold users' words
        if self._path.stat().st_size > 0:
            return
        # WAL takes the file for itself for a moment, and does not wait for another process that does the same.
        with self._engine("auto_vacuum=INCREMENTAL", "journal_mode=WAL").connect():
            pass

    def _engine(self, *pragmas: str) -> Engine:
        engine = create_engine(
            self._url("sqlite+pysqlite", mode="rw"), poolclass=NullPool, connect_args={"timeout": _BUSY_TIMEOUT, "isolation_level": None}
        )
        _on_connect(engine, *pragmas)
        return engine

    def _backup_before_migration(self, version: str) -> None:
        self._copy(self._path.with_name(f"{self._path.name}.backup-{version}-{self._now}"))

    async def reader(self) -> AsyncEngine:
        return await asyncio.to_thread(self._reader)

    def _reader(self) -> AsyncEngine:
        engine = create_async_engine(
            self._url("sqlite+aiosqlite", **self._reading_mode()),
            poolclass=AsyncAdaptedQueuePool,
            pool_size=READERS,
            max_overflow=0,
            connect_args={"timeout": _BUSY_TIMEOUT, "isolation_level": None},
        )
        _on_connect(engine.sync_engine, "query_only=ON")
        _on_begin(engine.sync_engine, "BEGIN")  # one snapshot for all that a method reads
        return engine

    def _reading_mode(self) -> dict[str, str]:
        """How the file can be read: as part of a live database, or, where SQLite may not put its index beside it, as it lies there.

        `immutable` is right only if nobody writes: with a daemon at work the index exists, and commits in a log left by a crash count.
        """
        if not self._path.is_file():
            raise NotFound("store", self.name)
        uri = f"file:{urllib.parse.quote(str(self._path))}?mode=ro"
        try:
            with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT)) as connection:
                connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        except sqlite3.OperationalError as error:
            folder_is_closed = error.sqlite_errorname in {"SQLITE_READONLY_DIRECTORY", "SQLITE_CANTOPEN"}
            log = self._path.with_name(self._path.name + "-wal")
            if not folder_is_closed or not os.access(self._path, os.R_OK):
                raise StoreUnavailable(f"{self.name}: the database can't be read ({error})") from error
            if log.exists() and log.stat().st_size:
                raise StoreUnavailable(
                    f"{self.name}: a daemon died with commits in {log.name}, and this folder may not be written: copy both to one that may"
                ) from error
            return {"mode": "ro", "immutable": "1"}
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{self.name}: this is no SQLite database, or a damaged one ({error})") from error
        return {"mode": "ro"}

    def writer(self) -> AsyncEngine:
        engine = create_async_engine(
            self._url("sqlite+aiosqlite", mode="rw"),
            poolclass=AsyncAdaptedQueuePool,
            pool_size=1,
            max_overflow=0,
            connect_args={"timeout": _BUSY_TIMEOUT, "isolation_level": None},
        )
        _on_connect(engine.sync_engine, "foreign_keys=ON", f"journal_size_limit={_WAL_LIMIT}")
        _on_begin(engine.sync_engine, "BEGIN IMMEDIATE", durability=True)
        return engine

    def insert(self, table: Table) -> Insert:
        return sqlite.insert(table)

    async def backup(self, path: Path) -> None:
        await asyncio.to_thread(self._copy, path)

    def _copy(self, path: Path) -> None:
        partial = path.with_name(path.name + ".partial")
        try:
            partial.unlink(missing_ok=True)
            os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            source_uri = f"file:{urllib.parse.quote(str(self._path))}?mode=ro"
            with closing(sqlite3.connect(source_uri, uri=True)) as source, closing(sqlite3.connect(partial)) as target:
                source.backup(target)  # in one step: a read transaction, so the writer goes on
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        except (sqlite3.Error, OSError) as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise StoreUnavailable(f"{self.name}: no backup could be written to {path} ({error})") from error

    @asynccontextmanager
    async def overwriting(self, connection: AsyncConnection) -> AsyncIterator[None]:
        await connection.exec_driver_sql("PRAGMA secure_delete=ON")
        try:
            yield
        finally:
            await connection.exec_driver_sql("PRAGMA secure_delete=OFF")  # retention need not pay for it

    async def settle(self) -> bool:
        return await asyncio.to_thread(self._settle)

    def _settle(self) -> bool:
        try:
            with closing(sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT, isolation_level=None)) as connection:
                busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error:
            return False
        return not busy

    async def reclaim(self, connection: AsyncConnection) -> bool:
        free = (await connection.exec_driver_sql("PRAGMA freelist_count")).scalar_one()
        if free:
            # As a script, because each step of the pragma frees one page and the driver takes only one of an ordinary statement.
            driver: Any = (await connection.get_raw_connection()).driver_connection
            await driver.executescript(f"PRAGMA incremental_vacuum({_RECLAIM_PAGES})")
        return bool(free > _RECLAIM_PAGES)


class Postgresql:
    """A PostgreSQL database, through asyncpg (`pip install agentd[postgresql]`)."""

    def __init__(self, url: URL) -> None:
        self.name = url.render_as_string(hide_password=True)
        self._url = url

    def _engine(self, size: int) -> AsyncEngine:
        try:
            return create_async_engine(self._url, pool_size=size, max_overflow=0, pool_pre_ping=True)
        except ModuleNotFoundError as error:
            raise StoreError("PostgreSQL needs a driver: pip install 'agentd[postgresql]'") from error

    async def migrate(self, migrate: Migrate) -> None:
        def locked(connection: Connection) -> None:
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7017295)")  # any number that is only ours
            migrate(connection, lambda _: None)  # a server has backups of its own

        async def run() -> None:
            engine = self._engine(1)
            try:
                async with engine.begin() as connection:
                    await connection.run_sync(locked)
            finally:
                await engine.dispose()

        await asyncio.to_thread(asyncio.run, run())  # Alembic reads its scripts from disk: not in the daemon's loop

    async def reader(self) -> AsyncEngine:
        return self._engine(READERS).execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    def writer(self) -> AsyncEngine:
        engine = self._engine(1)

        @event.listens_for(engine.sync_engine, "begin")
        def begin(connection: Connection) -> None:
            if not connection.get_execution_options().get("durable", True):
                connection.exec_driver_sql("SET LOCAL synchronous_commit TO OFF")

        return engine

    def insert(self, table: Table) -> Insert:
        return postgresql.insert(table)

    async def backup(self, path: Path) -> None:  # noqa: ARG002 - the protocol's
        raise StoreError(f"{self.name}: back a PostgreSQL store up with pg_dump")

    @asynccontextmanager
    async def overwriting(self, connection: AsyncConnection) -> AsyncIterator[None]:  # noqa: ARG002 - the protocol's; vacuuming does it
        yield

    async def settle(self) -> bool:
        return False

    async def reclaim(self, connection: AsyncConnection) -> bool:  # noqa: ARG002 - the protocol's; autovacuum does it here
        return False
