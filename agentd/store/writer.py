"""The one writer: a task that owns the database's writing side.

Durable work is done first, several callers' in one transaction (one sync for all); episodes follow in batches. When the bounded queue of
episodes is full, traces are dropped, the oldest first, and then `add` waits; durable work is never dropped.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Table, func, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from agentd.errors import StoreError, StoreUnavailable
from agentd.store import schema
from agentd.store.backends import Backend
from agentd.store.chain import GENESIS
from agentd.store.faults import translated
from agentd.store.rows import EpisodeRows, Row

logger = logging.getLogger(__name__)

GROUP = 64
"""Pieces of durable work, or episodes, in one transaction at most."""
BATCH_BYTES = 8 * 1024 * 1024
"""Bytes of episodes in one transaction, about: durable work waits for it."""

T = TypeVar("T")


class Transaction:
    """A transaction in progress, with the end of the event log as it will be."""

    def __init__(self, connection: AsyncConnection, backend: Backend) -> None:
        self.connection = connection
        self._backend = backend
        self._head: tuple[int, bytes] | None = None
        self._epoch: int | None = None

    async def epoch(self) -> int:
        """The number of the newest daemon's life; 0 before the first."""
        if self._epoch is None:
            statement = select(schema.facts.c.value).where(schema.facts.c.name == "epoch")
            self._epoch = (await self.connection.execute(statement)).scalar() or 0
        return self._epoch

    async def begin_epoch(self) -> int:
        """The number of a new life."""
        self._epoch = await self.epoch() + 1
        await self.upsert(schema.facts, [{"name": "epoch", "value": self._epoch}], key="name")
        return self._epoch

    async def head(self) -> tuple[int, bytes]:
        """Sequence number and hash of the newest event."""
        if self._head is None:
            newest = select(schema.events.c.seq, schema.events.c.hash).order_by(schema.events.c.seq.desc()).limit(1)
            row = (await self.connection.execute(newest)).first()
            self._head = (row.seq, row.hash) if row else (0, GENESIS)
        return self._head

    def move_head(self, seq: int, digest: bytes) -> None:
        """Events up to `seq` were added in this transaction."""
        self._head = (seq, digest)

    async def add(self, table: Table, rows: Sequence[Row], *, key: str = "id") -> None:
        """Insert rows; leave those alone whose `key` is there already."""
        await self.connection.execute(self._backend.insert(table).on_conflict_do_nothing(index_elements=[key]), rows)

    async def upsert(self, table: Table, rows: Sequence[Row], *, key: str = "id", sticky: frozenset[str] = frozenset()) -> None:
        """Insert rows, or replace those with the same `key`; a `sticky` column keeps its value when the new one is NULL."""
        insert = self._backend.insert(table)
        new = {
            name: func.coalesce(insert.excluded[name], table.c[name]) if name in sticky else insert.excluded[name]
            for name in rows[0]
            if name != key
        }
        await self.connection.execute(insert.on_conflict_do_update(index_elements=[key], set_=new), rows)


@asynccontextmanager
async def _transaction(engine: AsyncEngine, backend: Backend, *, durable: bool) -> AsyncIterator[Transaction]:
    with translated(backend.name):
        async with engine.connect() as connection:
            await connection.execution_options(durable=durable)
            async with connection.begin():
                yield Transaction(connection, backend)


async def _insert_episodes(transaction: Transaction, batch: Sequence[EpisodeRows]) -> None:
    # An episode may come twice (a runner sends again what was not acknowledged); what only the first had stays.
    await transaction.upsert(schema.episodes, [episode.episode for episode in batch], sticky=frozenset({"feedback", "normalised"}))
    await transaction.upsert(schema.steps, [episode.steps for episode in batch], key="episode")
    if traces := [episode.trace for episode in batch if episode.trace is not None]:
        await transaction.upsert(schema.traces, traces, key="episode")


Work = Callable[[Transaction], Awaitable[Any]]


@dataclass(slots=True)
class _Job:
    work: Work
    result: asyncio.Future[Any]


class Writer:
    """Runs work in transactions, one after the other. It begins at once, in the running loop; `aclose` ends it."""

    def __init__(self, backend: Backend, *, capacity_bytes: int, capacity_episodes: int, retry_after: float) -> None:
        self._backend = backend
        self._engine: AsyncEngine = backend.writer()
        self._capacity_bytes = capacity_bytes
        self._capacity_episodes = capacity_episodes
        self._retry_after = retry_after
        self._jobs: deque[_Job] = deque()  # bounded by its callers: each waits for its own job
        self._episodes: deque[EpisodeRows] = deque()
        self._bytes = 0
        self._added = 0
        self._done = 0
        self._failures = 0
        self._retry_at = 0.0
        self._failure: StoreUnavailable | None = None
        self._closing = False
        self._wake = asyncio.Event()
        self._progress = asyncio.Condition()
        self._task = asyncio.create_task(self._run(), name="store writer")
        self.dropped: Counter[str] = Counter({"traces": 0, "episodes": 0})
        self.errors = 0

    @property
    def queued(self) -> int:
        """Episodes that wait to be written."""
        return self._added - self._done

    async def run(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """What `work` returns, after its transaction is on disk. It may be called twice, the first time being rolled back.

        A cancelled call may still be carried out. Raises StoreUnavailable, and what `work` raises; then nothing of it was written.
        """
        self._check_open()
        job = _Job(work, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self._wake.set()
        result: T = await job.result
        return result

    async def add(self, episode: EpisodeRows) -> None:
        """Queue an episode. Waits for room; raises StoreUnavailable when there is none and the database can't be written."""
        self._check_open()
        if not self._has_room(episode):
            self._drop_traces(episode)
        async with self._progress:
            await self._progress.wait_for(lambda: self._has_room(episode) or self._failure is not None or self._closing)
        if not self._has_room(episode):
            self._check_open()
            raise self._failure or StoreUnavailable("the store's queue is full")
        self._episodes.append(episode)
        self._bytes += episode.size
        self._added += 1
        self._wake.set()

    async def flush(self) -> None:
        """Return once every episode added so far is written; tries at once, also after a failure. Raises StoreUnavailable."""
        target, failures = self._added, self._failures
        self._retry_at = 0.0
        self._wake.set()
        async with self._progress:
            await self._progress.wait_for(lambda: self._done >= target or self._failures > failures)
        if self._done < target:
            raise self._failure or StoreUnavailable("the store could not be written")

    async def aclose(self) -> None:
        """Write what is queued, as far as the database lets, and stop."""
        self._closing = True
        self._wake.set()
        try:
            await asyncio.shield(self._task)
        except asyncio.CancelledError:
            await self._task  # it stops by itself: a cancelled close must not cut a write in two
            raise
        finally:
            await self._engine.dispose()

    def _check_open(self) -> None:
        if self._closing or self._task.done():
            raise self._closed_error()

    def _closed_error(self) -> StoreUnavailable:
        return StoreUnavailable(f"{self._backend.name}: the store is closed")

    def _has_room(self, episode: EpisodeRows) -> bool:
        fits = self._bytes + episode.size <= self._capacity_bytes and self.queued < self._capacity_episodes
        return fits or not self.queued  # one that is larger than all the queue passes alone

    def _drop_traces(self, newest: EpisodeRows) -> None:
        for episode in (*self._episodes, newest):
            if self._bytes + newest.size <= self._capacity_bytes:
                return
            if episode.trace is not None:
                if episode is not newest:
                    self._bytes -= episode.trace_size
                episode.drop_trace()
                self.dropped["traces"] += 1

    async def _run(self) -> None:
        try:
            while True:
                self._wake.clear()
                if self._jobs:
                    await self._write_jobs([self._jobs.popleft() for _ in range(min(GROUP, len(self._jobs)))])
                if self._episodes and self._may_write_episodes():
                    await self._write_episodes(self._take_batch())
                elif self._closing and not self._jobs:
                    return
                elif not self._jobs:
                    await self._sleep()
        finally:
            self._closing = True
            _settle(self._jobs, self._closed_error())
            async with self._progress:
                self._progress.notify_all()

    def _may_write_episodes(self) -> bool:
        return self._failure is None or self._closing or asyncio.get_running_loop().time() >= self._retry_at

    async def _sleep(self) -> None:
        """Until there is work, or, after a failure, until it is time to try again."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._retry_at if self._episodes else None):
                await self._wake.wait()

    async def _write_jobs(self, jobs: Sequence[_Job]) -> None:
        try:
            async with _transaction(self._engine, self._backend, durable=True) as transaction:
                results = [await job.work(transaction) for job in jobs]
        except Exception as error:  # noqa: BLE001 - it belongs to one of the callers, who gets it
            if isinstance(error, StoreUnavailable):
                self._count(error)
            elif len(jobs) > 1:
                for job in jobs:  # whose fault it was shows when each is alone
                    await self._write_jobs([job])
            _settle(jobs, error)
        except BaseException:  # the loop is being torn down without aclose: nobody may wait for ever
            _settle(jobs, self._closed_error())
            raise
        else:
            self._retry_at = 0.0  # there is room again: episodes need not wait for their next attempt
            for job, result in zip(jobs, results, strict=True):
                if not job.result.done():  # its caller was cancelled
                    job.result.set_result(result)

    def _take_batch(self) -> list[EpisodeRows]:
        batch = [self._episodes.popleft()]
        size = batch[0].size
        while self._episodes and len(batch) < GROUP and size + self._episodes[0].size <= BATCH_BYTES:
            batch.append(self._episodes.popleft())
            size += batch[-1].size
        return batch

    async def _write_episodes(self, batch: list[EpisodeRows]) -> None:
        try:
            async with _transaction(self._engine, self._backend, durable=False) as transaction:
                await _insert_episodes(transaction, batch)
        except StoreUnavailable as error:
            self._count(error)
            if not self._closing:
                self._episodes.extendleft(reversed(batch))
                self._failure = error
                self._failures += 1
                self._retry_at = asyncio.get_running_loop().time() + self._retry_after
                await self._tell()
                return
            self._drop_episodes(batch, error)
        except StoreError as error:
            if len(batch) > 1:
                for episode in batch:
                    await self._write_episodes([episode])
                return
            self._drop_episodes(batch, error)
        else:
            self._failure = None
        self._bytes -= sum(episode.size for episode in batch)
        self._done += len(batch)
        await self._tell()

    def _drop_episodes(self, batch: Sequence[EpisodeRows], error: StoreError) -> None:
        self.dropped["episodes"] += len(batch)
        logger.error("%d episodes could not be stored: %s", len(batch), error)

    def _count(self, error: StoreUnavailable) -> None:
        self.errors += 1
        logger.warning("the store can't be written: %s", error)

    async def _tell(self) -> None:
        async with self._progress:
            self._progress.notify_all()


def _settle(jobs: Iterable[_Job], error: Exception) -> None:
    for job in jobs:
        if not job.result.done():
            job.result.set_exception(error)
