"""What hosted agents share, opened for one process at a time: state directory, store, event bus, models and their ledger."""

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import agentd
from agentd.clock import Clock
from agentd.errors import AgentdError
from agentd.events import EventBus
from agentd.hosting.freeze import Freeze, read_freeze
from agentd.hosting.releases import LEASE
from agentd.hosting.zygotes import Zygotes
from agentd.observability.metrics import Metrics
from agentd.opto.budget import DAY, Ledger
from agentd.opto.cache import DiskCache
from agentd.opto.contract import Llm
from agentd.opto.llm import CALLS, LitellmClient, LlmSettings
from agentd.records import Usage
from agentd.runners.forkserver import Forkserver
from agentd.settings import DaemonSettings
from agentd.store import SqlStore
from agentd.store.contract import Store


@dataclass(frozen=True, slots=True)
class Services:
    """What the daemon lends to each hosted agent."""

    store: Store
    bus: EventBus
    clock: Clock
    metrics: Metrics
    llm: Llm
    ledger: Ledger
    freeze: Freeze
    zygotes: Zygotes
    forkserver: Forkserver
    state_directory: Path
    epoch: int
    seed: int
    broker: str | None = None
    models: tuple[str, ...] = ()
    llm_settings: LlmSettings = field(default_factory=LlmSettings)
    """How `llm` reaches models; runners of agents that ask them are told the same."""
    lease: float = LEASE


@asynccontextmanager
async def open_services(settings: DaemonSettings, clock: Clock) -> AsyncIterator[Services]:
    """The services, with a new epoch: what an earlier process left running is adopted, or fenced out.

    Raises:
        AgentdError: another process holds the state directory, or the store can't be had.
    """
    settings.state_directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(_only_one(settings.state_directory))
        store = await stack.enter_async_context(await SqlStore.open(settings.store_url, clock=clock))
        metrics = Metrics(agentd.__version__, clock)
        bus = await stack.enter_async_context(EventBus())
        ledger = Ledger(await store.usage(since=clock.time() - DAY))

        async def settle(usage: Usage) -> None:
            metrics.usage(usage)
            await store.commit(usage)

        cache = DiskCache(settings.reply_cache) if settings.reply_cache is not None else None
        llm = await stack.enter_async_context(LitellmClient(_llm_settings(settings), ledger, clock, on_usage=settle, cache=cache))
        yield Services(
            store=store,
            bus=bus,
            clock=clock,
            metrics=metrics,
            llm=llm,
            ledger=ledger,
            freeze=Freeze(store, bus, clock, await read_freeze(store)),
            zygotes=await stack.enter_async_context(Zygotes()),
            forkserver=stack.enter_context(Forkserver()),
            state_directory=settings.state_directory,
            epoch=await store.begin_epoch(),
            seed=settings.seed if settings.seed is not None else Random().getrandbits(31),  # noqa: S311 - chance, not secrecy
            broker=settings.broker_url,
            models=settings.models,
            llm_settings=_llm_settings(settings),
            lease=settings.lease,
        )


@asynccontextmanager
async def _only_one(state_directory: Path) -> AsyncIterator[None]:
    """Hold the state directory: two daemons on one would both decide."""
    path = state_directory / "daemon.lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            advice = "end it, or choose another directory by --state or AGENTD_STATE_DIRECTORY"
            raise AgentdError(f"another agentd runs with the state directory {state_directory}: {advice}") from error
        yield
    finally:
        os.close(handle)


def _llm_settings(settings: DaemonSettings) -> LlmSettings:
    key = settings.api_key.get_secret_value() if settings.api_key else None
    return LlmSettings(
        models=settings.models,
        api_base=settings.api_base,
        api_key=key,
        call_timeout=settings.call_timeout,
        total_timeout=CALLS * settings.call_timeout,
    )
