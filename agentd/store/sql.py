"""The store on SQL: SQLite by default, PostgreSQL by another URL."""
# ruff: noqa: D102 - the contract has the docstrings

import asyncio
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import msgspec
from sqlalchemy import Table
from sqlalchemy.ext.asyncio import AsyncEngine

from agentd.clock import Clock, SystemClock
from agentd.errors import NotFound, StoreError
from agentd.records import Episode, Event, Feedback, Value
from agentd.store import migrations, retention, schema
from agentd.store.backends import Backend, make_backend
from agentd.store.chain import link
from agentd.store.faults import translated
from agentd.store.packing import pack
from agentd.store.reading import Reader
from agentd.store.retention import Erased, Pruned
from agentd.store.rows import IMMUTABLE, Durable, Row, to_episode_rows, to_feedback_row, to_row
from agentd.store.writer import Transaction, Writer


class SqlStore(Reader):
    """The store behind agentd.store.contract.Store. Made by `open`, not by its constructor."""

    def __init__(self, backend: Backend, readers: AsyncEngine, writer: Writer | None, clock: Clock) -> None:
        super().__init__(readers, backend.name)
        self._backend = backend
        self._writer_or_none = writer
        self._clock = clock
        self._epoch: int | None = None

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        read_only: bool = False,
        clock: Clock | None = None,
        capacity_bytes: int = 64 * 1024 * 1024,
        capacity_episodes: int = 4096,
        retry_after: float = 1.0,
    ) -> Self:
        """Open the store at `url` (agentd.store.backends.make_backend), migrated to the present schema; a SQLite file is created.

        With `read_only` nothing is created, migrated or locked, and a daemon may be at work on it. The two capacities bound the episodes
        that wait to be written; after a failed write they are tried again each `retry_after` seconds.

        Raises:
            NotFound: there is no such store to read.
            StoreVersionError: the database is from a newer agentd, or, with `read_only`, from an older one.
            StoreUnavailable: it can't be opened now.
            StoreError: it is no agentd store, or damaged.
        """
        clock = clock or SystemClock()
        backend = make_backend(url, now=time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(clock.time())))
        with translated(backend.name):
            if not read_only:
                await backend.migrate(migrations.migrate)
            readers = await backend.reader()
            try:
                async with readers.connect() as connection:
                    await connection.run_sync(migrations.check_version)
            except BaseException:
                await readers.dispose()
                raise
        if read_only:
            return cls(backend, readers, None, clock)
        writer = Writer(backend, capacity_bytes=capacity_bytes, capacity_episodes=capacity_episodes, retry_after=retry_after)
        return cls(backend, readers, writer, clock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Write what is queued, as far as the database lets, and close it."""
        try:
            await self._readers.dispose()  # first: only a connection that may write can fold the log into the file and remove it
        finally:
            if self._writer_or_none is not None:
                await self._writer_or_none.aclose()

    @property
    def read_only(self) -> bool:
        """Nothing can be written through this store."""
        return self._writer_or_none is None

    @property
    def _writer(self) -> Writer:
        if self._writer_or_none is None:
            raise StoreError(f"{self._name} was opened to be read only")
        return self._writer_or_none

    @property
    def dropped(self) -> Mapping[str, int]:
        """`traces` and `episodes` that were not stored, since this store was opened."""
        return MappingProxyType(self._writer_or_none.dropped if self._writer_or_none else {})

    @property
    def write_errors(self) -> int:
        """Writes that failed, since this store was opened."""
        return self._writer_or_none.errors if self._writer_or_none else 0

    @property
    def queued(self) -> int:
        """Episodes that wait to be written."""
        return self._writer_or_none.queued if self._writer_or_none else 0

    async def begin_epoch(self) -> int:
        self._epoch = await self._writer.run(Transaction.begin_epoch)
        return self._epoch

    async def commit(self, *records: Durable) -> tuple[Event, ...]:
        now = self._clock.time()
        rows: dict[Table, list[Row]] = {table: [] for table in schema.metadata.sorted_tables}  # what is referred to comes first
        events = [record for record in records if isinstance(record, Event)]
        feedbacks = [record for record in records if isinstance(record, Feedback)]
        for record in records:
            if not isinstance(record, Event | Feedback):
                table, row = to_row(record, now=now)
                rows[table].append(row)

        async def write(transaction: Transaction) -> tuple[Event, ...]:
            await self._check_epoch(transaction)
            for table, table_rows in rows.items():
                if not table_rows:
                    continue
                if table is schema.usage:
                    await transaction.connection.execute(table.insert(), table_rows)
                elif table in IMMUTABLE:
                    await transaction.add(table, table_rows)
                else:
                    await transaction.upsert(table, table_rows)
            await _judge(transaction, feedbacks)
            return await _append(transaction, events)

        if feedbacks and self._writer.queued:
            await self._writer.flush()  # an episode that is still queued would come after its feedback
        return await self._writer.run(write)

    async def add_episode(self, episode: Episode, feedback: Feedback | None, *, regime: int) -> None:
        writer = self._writer
        rows = await asyncio.to_thread(to_episode_rows, episode, feedback, regime=regime)  # compresses up to megabytes
        await writer.add(rows)

    async def flush(self) -> None:
        await self._writer.flush()

    async def prune(
        self,
        *,
        keep_episodes: int | None = None,
        keep_days: float | None = None,
        keep_bytes: int | None = None,
        protect: Collection[str] = (),
    ) -> Pruned:
        return await retention.prune(
            self._writer,
            self._backend,
            keep_episodes=keep_episodes,
            keep_days=keep_days,
            keep_bytes=keep_bytes,
            protect=protect,
            now=self._clock.time(),
        )

    async def erase(self, agent: str, *, device: str | None = None, episodes: Collection[str] = (), who: str, reason: str = "") -> Erased:
        await self.flush()
        for key in episodes:
            if (await self.summary(key)).id != key or (await self.summary(key)).agent != agent:
                raise NotFound("episode", key)
        data: dict[str, Value] = {"device": device, "episodes": list(episodes)}
        what = " and ".join(([f"device {device}"] if device is not None else []) + ([f"{len(episodes)} by id"] if episodes else []))
        asked = f"the episodes of {what} are being erased" + (f": {reason}" if reason else "")
        begun = await self.commit(Event("episodes.erasing", self._clock.time(), agent=agent, who=who, message=asked, data=data))
        count = await retention.erase(self._writer, self._backend, agent, device, episodes)
        done = f"{count} episodes of {what} were erased"
        ended = await self.commit(
            Event("episodes.erased", self._clock.time(), agent=agent, who=who, message=done, data=data | {"erased": count})
        )
        return Erased(count, begun + ended, await self._backend.settle())

    async def backup(self, path: Path) -> None:
        if not self.read_only:
            await self.flush()
        await self._backend.backup(path)

    async def _check_epoch(self, transaction: Transaction) -> None:
        """A daemon that was superseded must not write: the newer one decides from what it read when it began."""
        if self._epoch is not None and (newest := await transaction.epoch()) != self._epoch:
            raise StoreError(f"{self._name} belongs to a newer daemon (epoch {newest}; ours was {self._epoch})")


async def _judge(transaction: Transaction, feedbacks: Collection[Feedback]) -> None:
    for feedback in feedbacks:
        judged = schema.episodes.update().where(schema.episodes.c.id == feedback.episode)
        await transaction.connection.execute(judged.values(**to_feedback_row(feedback)))


async def _append(transaction: Transaction, events: Collection[Event]) -> tuple[Event, ...]:
    """Give events their places in the log and in the audit chain, and write them."""
    if not events:
        return ()
    seq, digest = await transaction.head()
    appended, rows = [], []
    for event in events:
        seq += 1
        placed = msgspec.structs.replace(event, seq=seq)
        content = pack(placed)
        digest = link(digest, content)
        appended.append(placed)
        rows.append({"seq": seq, "agent": event.agent, "kind": event.kind, "at": event.at, "content": content, "hash": digest})
    await transaction.connection.execute(schema.events.insert(), rows)
    transaction.move_head(seq, digest)
    return tuple(appended)
