"""Reading without a daemon: the same documents as the API's, made from the store."""
# ruff: noqa: D102 - agentd.cli.client.Client has the docstrings

import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

from agentd.api import views
from agentd.api.ports import AgentStatus, Health
from agentd.cli.context import Reader, UsageMistake, Where, note
from agentd.configuration import masked
from agentd.errors import DaemonUnreachable, NotFound, StoreError
from agentd.hosting.freeze import read_freeze
from agentd.records import AgentState, Role
from agentd.store import SqlStore

JSON = dict[str, Any]
RECENT = 120


class StoreReader:
    """A store that may have no daemon. What only a living daemon knows (devices, workers' output) is missing."""

    def __init__(self, store: SqlStore, shown_url: str) -> None:
        self._store = store
        self._shown_url = shown_url

    async def status(self) -> JSON:
        return {
            "store_url": self._shown_url,
            "epoch": await self._store.epoch(),
            "agents": await self.agents(),
            "broken": {},
            "frozen": views.plain(await read_freeze(self._store)),
        }

    async def agents(self) -> list[JSON]:
        freeze = await read_freeze(self._store)
        return [await self._agent(state.under(freeze)) for state in await self._store.agents()]

    async def agent(self, agent: str) -> JSON:
        state = await self._store.agent(agent)
        return await self._agent(state.under(await read_freeze(self._store)))

    async def _agent(self, state: AgentState) -> JSON:
        summaries = await self._store.episodes(state.name, limit=RECENT, revision=state.stable, role=Role.STABLE)
        scores = tuple(summary.normalised for summary in reversed(summaries) if summary.normalised is not None)
        release = await self._store.release(state.release) if state.release else None
        problem = "no daemon hosts it now"
        status = AgentStatus(
            name=state.name,
            mode=state.mode,
            health=Health.STOPPED,
            problem=problem,
            state=state,
            release=release,
            recent=scores,
            optimizer="",
        )
        return views.agent_view(status)

    async def parameter_list(self, agent: str, revision: str | None = None) -> list[JSON]:
        state = await self._store.agent(agent)
        return views.parameters_view(state, await self._store.revision(revision or state.stable))

    async def revisions(self, agent: str, limit: int = 100) -> list[JSON]:
        await self._store.agent(agent)
        revisions = await self._store.revisions(agent, limit=limit)
        return [views.revision_view(revision, await self._store.provenance(revision.id)) for revision in revisions]

    async def revision(self, revision: str) -> JSON:
        found = await self._store.revision(revision)
        return views.revision_view(found, await self._store.provenance(found.id), await self._store.source(found.source))

    async def releases(self, agent: str, limit: int = 100) -> list[JSON]:
        await self._store.agent(agent)
        return [views.release_view(release) for release in await self._store.releases(agent, limit=limit)]

    async def release(self, release: str) -> JSON:
        found = await self._store.release(release)
        view = views.release_view(found) | {"evidence": views.pairs_view(await self._store.pairs(found.id)), "proposed": None}
        with contextlib.suppress(NotFound):
            view["proposed"] = views.plain(await self._store.proposal(found.proposal))
        return view

    async def episodes(self, agent: str, limit: int = 100, *, revision: str | None = None, role: str | None = None) -> list[JSON]:
        await self._store.agent(agent)
        whole = (await self._store.revision(revision)).id if revision else None
        summaries = await self._store.episodes(agent, limit=limit, revision=whole, role=Role(role) if role else None)
        return [views.summary_view(summary) for summary in summaries]

    async def episode(self, episode: str) -> JSON:
        found = await self._store.episode(episode)
        summary = await self._store.summary(found.id)
        return views.episode_view(found, await self._store.feedback(found.id), summary.awaits_until)

    async def trace(self, episode: str) -> JSON:
        content = await self._store.trace(episode)
        if content is None:
            raise NotFound("trace of the episode", episode)
        return views.trace_view(content)

    async def logs(self, agent: str, limit: int = 200) -> list[str]:
        del limit
        raise DaemonUnreachable(self._shown_url, f"the output of {agent}'s workers is kept by the daemon, not in the store")

    async def events(self, agent: str | None = None, limit: int = 100, *, after: int | None = None) -> list[JSON]:
        events = await self._store.events(agent, after=after or 0, limit=limit, latest=after is None)
        return [views.event_view(event) for event in events]


@contextlib.asynccontextmanager
async def open_reader(where: Where) -> AsyncIterator[Reader]:
    """The daemon's API where one answers, else the store, which is said on standard error.

    Raises:
        DaemonUnreachable: neither is there.
        UsageMistake: the store that was named can't be read.
    """
    async with contextlib.AsyncExitStack() as stack:
        yield await _find_reader(where, stack)


@contextlib.asynccontextmanager
async def open_store(where: Where) -> AsyncIterator[SqlStore]:
    """The store itself, to read: beside a daemon that uses it, or without one.

    Raises:
        UsageMistake: there is none, or it can't be read.
    """
    if where.store is not None:
        store = await _open_named(where.store)
    else:
        settings = where.settings()
        try:
            store = await SqlStore.open(settings.store_url, read_only=True)
        except NotFound as error:
            raise UsageMistake(f"there is no store at {settings.shown_store_url} yet; --config, --state or --store name another") from error
    async with store:
        yield store


async def _open_named(store: str) -> SqlStore:
    url = store if "://" in store else f"sqlite:///{os.path.abspath(store)}"  # noqa: ASYNC240, PTH100 - reads no file
    try:
        return await SqlStore.open(url, read_only=True)
    except StoreError as error:
        raise UsageMistake(f"the store {masked(store)} can't be read: {error}") from error


async def _find_reader(where: Where, stack: contextlib.AsyncExitStack) -> Reader:
    if where.store is not None:
        return StoreReader(await stack.enter_async_context(await _open_named(where.store)), masked(where.store))
    settings = where.settings()
    try:
        client = await stack.enter_async_context(where.client())
        await client.ping()
    except DaemonUnreachable as unreachable:
        try:
            store = await stack.enter_async_context(await SqlStore.open(settings.store_url, read_only=True))
        except NotFound:
            raise unreachable from None
        hangs = f" ({unreachable.reason})" if unreachable.hangs else ""
        note(f"no daemon answers{hangs}; reading the store {settings.shown_store_url}")
        return StoreReader(store, settings.shown_store_url)
    return client
