"""The policy workers of a runner: one process per loaded revision, started again when it dies, the stable one first."""

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any, Self

from agentd.clock import Clock
from agentd.device import backoff
from agentd.errors import RunnerError, SandboxError
from agentd.records import Parameter, Revision, Source
from agentd.runners.realtime import prefer
from agentd.sandbox import BrakeWorker, Isolation, Limits, PolicyWorker, Zygote

_LIVED_WELL = 30.0
"""Seconds after which a worker's death is no longer counted with the one before."""
_STABLE_FIRST = 5.0
"""Seconds that other workers wait for the stable one."""


class _Slot:
    """One revision and, most of the time, its worker."""

    def __init__(self, source: Source, revision: Revision) -> None:
        self.source = source
        self.revision = revision
        self.worker: PolicyWorker | None = None
        self.loaded: asyncio.Future[tuple[Parameter, ...]] = asyncio.get_running_loop().create_future()
        self.ready = asyncio.Event()
        self.keeper: asyncio.Task[None] | None = None
        self.episodes = 0
        self.retired = False


class Workers:
    """Workers by revision id. Entering starts the zygote; leaving ends every process."""

    def __init__(
        self,
        limits: Limits,
        *,
        min_isolation: int,
        scope: str = "agent",
        on_log: Callable[[str], None],
        on_event: Callable[[str, str, dict[str, Any]], None],
        on_ready: Callable[[], None],
        clock: Clock,
        generator: random.Random,
    ) -> None:
        self.stable: str | None = None
        self._limits = limits
        self._min_isolation = min_isolation
        self._scope = scope
        self._on_log = on_log
        self._on_event = on_event
        self._on_ready = on_ready
        self._clock = clock
        self._random = generator
        self._slots: dict[str, _Slot] = {}
        self._zygote: Zygote | None = None
        self._zygote_lock = asyncio.Lock()
        self._preferred = False

    @property
    def isolation(self) -> Isolation:
        """What the zygote gives its workers."""
        if self._zygote is None:
            raise RunnerError("the workers are not started")
        return self._zygote.isolation

    @property
    def loaded(self) -> tuple[str, ...]:
        """Ids of the revisions that have, or will soon again have, a worker."""
        return tuple(self._slots)

    async def __aenter__(self) -> Self:
        await self._living_zygote()
        return self

    async def __aexit__(self, *exception: object) -> None:
        for revision in list(self._slots):
            await self._end(revision)
        if self._zygote is not None:
            await self._zygote.aclose()

    async def _living_zygote(self) -> Zygote:
        async with self._zygote_lock:
            if self._zygote is not None and not self._zygote.alive:
                await self._zygote.aclose()
                self._zygote = None
                self._on_event("worker.zygote_died", "the process that workers are forked from died and is started again", {})
            if self._zygote is None:
                self._zygote = await Zygote.start(
                    imports=self._limits.allowed_imports, min_isolation=self._min_isolation, scope=self._scope
                )
                if self._preferred:
                    _prefer(self._zygote)
            return self._zygote

    def prefer(self) -> None:
        """Let the workers have a larger share of the machine than others, for a runner that goes first."""
        self._preferred = True
        if self._zygote is not None:
            _prefer(self._zygote)

    async def load(self, source: Source, revision: Revision) -> tuple[Parameter, ...]:
        """Start a worker for `revision`, unless it has one, and return the program's parameters. Raises SandboxError."""
        slot = self._slots.get(revision.id)
        if slot is not None:
            slot.retired = False
        else:
            slot = self._slots[revision.id] = _Slot(source, revision)
            slot.keeper = asyncio.create_task(self._keep(slot), name=f"worker-{revision.id[:10]}")
        return await asyncio.shield(slot.loaded)

    def get(self, revision: str) -> PolicyWorker | None:
        """The living worker of a revision, or None while there is none."""
        slot = self._slots.get(revision)
        return slot.worker if slot is not None else None

    def source(self, revision: str) -> Source | None:
        """The source of a loaded revision."""
        slot = self._slots.get(revision)
        return slot.source if slot is not None else None

    async def start_brake(self, source: Source, entrypoint: str) -> BrakeWorker:
        """A process of its own for the author's safe action. Raises SandboxError."""
        zygote = await self._living_zygote()
        return await BrakeWorker.start(zygote, source=source, entrypoint=entrypoint, limits=self._limits, on_log=self._on_log)

    def hold(self, revision: str) -> None:
        """An episode of this revision begins: its worker stays until `release`."""
        slot = self._slots.get(revision)
        if slot is not None:
            slot.episodes += 1

    async def release(self, revision: str) -> None:
        """An episode of this revision has ended. The last one ends a worker that was retired meanwhile."""
        slot = self._slots.get(revision)
        if slot is not None:
            slot.episodes -= 1
            if slot.retired and slot.episodes <= 0:
                await self._end(revision)

    async def retire(self, revision: str) -> None:
        """End a revision's worker for good: at once, or with the last episode that it is in."""
        slot = self._slots.get(revision)
        if slot is not None and slot.episodes > 0:
            slot.retired = True
        else:
            await self._end(revision)

    async def _end(self, revision: str) -> None:
        slot = self._slots.pop(revision, None)
        if slot is None or slot.keeper is None:
            return
        slot.keeper.cancel()
        await asyncio.wait({slot.keeper})
        if not slot.loaded.done():
            slot.loaded.set_exception(RunnerError(f"revision {revision[:10]} was retired while it was loaded"))
        with contextlib.suppress(BaseException):
            slot.loaded.exception()  # nobody has to ask for it

    async def _keep(self, slot: _Slot) -> None:
        """Keep one worker alive. A program that never loaded is not tried again: that is its author's to mend."""
        attempt = 0
        try:
            while True:
                started_at = self._clock.monotonic()
                try:
                    await self._start(slot)
                except SandboxError as error:
                    if not slot.loaded.done():
                        self._slots.pop(slot.revision.id, None)
                        slot.loaded.set_exception(error)
                        slot.loaded.exception()  # `load` raises it to whoever waits
                        return
                    self._on_event("worker.start_failed", str(error), {"revision": slot.revision.id})
                else:
                    await self._until_dead(slot)
                if self._clock.monotonic() - started_at > _LIVED_WELL:
                    attempt = 0
                await asyncio.sleep(backoff(attempt, self._random, first=0.05, cap=10.0))
                attempt += 1
                await self._let_stable_go_first(slot)
        except Exception as error:
            if not slot.loaded.done():
                slot.loaded.set_exception(RunnerError(f"the worker could not be started: {error!r}"))
            raise
        finally:
            if slot.worker is not None:
                worker, slot.worker = slot.worker, None
                await worker.aclose()

    async def _start(self, slot: _Slot) -> None:
        zygote = await self._living_zygote()
        worker = await PolicyWorker.start(zygote, source=slot.source, revision=slot.revision, limits=self._limits, on_log=self._on_log)
        slot.worker = worker
        slot.ready.set()
        if not slot.loaded.done():
            slot.loaded.set_result(worker.parameters)
        self._on_ready()

    async def _until_dead(self, slot: _Slot) -> None:
        worker = slot.worker
        if worker is None:
            return
        await worker.died.wait()
        slot.worker = None
        slot.ready.clear()
        data = {"revision": slot.revision.id, "pid": worker.pid, "reason": type(worker.reason).__name__}
        message = f"the worker of revision {slot.revision.id[:10]} died and is started again: {worker.reason}"
        self._on_event("worker.died", message, data)
        await worker.aclose()

    async def _let_stable_go_first(self, slot: _Slot) -> None:
        stable = self._slots.get(self.stable or "")
        if stable is not None and stable is not slot:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STABLE_FIRST):
                    await stable.ready.wait()


def _prefer(zygote: Zygote) -> None:
    prefer(zygote.pid)
    if zygote.programs is not None:
        prefer(zygote.programs.pid)
