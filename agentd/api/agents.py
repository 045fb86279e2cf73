"""/api/v1/agents: what is hosted, its parameters, revisions and logs; pause, desired revision, proposals."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response

from agentd.api.answers import AgentName, Before, Decision, IdempotencyKey, Key, Limit, document, once, page
from agentd.api.context import Context, Shared, operator, viewer
from agentd.api.ports import AgentStatus, DaemonStatus
from agentd.api.problems import Problem
from agentd.api.views import agent_view, daemon_view, parameters_view, plain, release_view, revision_view
from agentd.errors import NotFound

router = APIRouter(prefix="/api/v1", tags=["agents"])


class DesiredRevision(Decision):
    """The revision to serve: an id, or a unique prefix."""

    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{4,64}$")]


class Settlement(Decision):
    """Which values hold where learned ones and a changed source contradict each other, by parameter path."""

    keep: Annotated[tuple[str, ...], Field(max_length=1000)] = ()
    take: Annotated[tuple[str, ...], Field(max_length=1000)] = ()


class Forgotten(Decision):
    """What to erase: all episodes of a device, and those with these whole ids."""

    device: Annotated[str | None, Field(min_length=1, max_length=255)] = None
    episodes: Annotated[tuple[str, ...], Field(max_length=1000)] = ()


@router.get("/status", dependencies=[viewer])
async def read_status(shared: Shared) -> Response:
    """The daemon and all its agents."""
    return document(daemon_view(shared.commands.status()))


@router.post("/reload", dependencies=[operator])
async def reload(shared: Shared) -> Response:
    """Read the agents directory again, as SIGHUP does."""
    await shared.commands.reload()
    return document(daemon_view(shared.commands.status()))


@router.get("/agents", dependencies=[viewer])
async def list_agents(shared: Shared) -> Response:
    """All agents."""
    return document({"items": [agent_view(agent) for agent in shared.commands.status().agents], "next": None})


@router.get("/agents/{agent}", dependencies=[viewer])
async def read_agent(shared: Shared, agent: AgentName) -> Response:
    """One agent."""
    return document(agent_view(shared.commands.agent_status(agent)))


async def _changed(
    shared: Context, request: Request, key: str | None, change: Callable[..., Awaitable[AgentStatus]], decision: Decision
) -> Response:
    async def work() -> Response:
        return document(agent_view(await change(who=decision.who, reason=decision.reason)))

    return await once(shared, request, key, work)


@router.post("/agents/{agent}/pause", dependencies=[operator])
async def pause_agent(shared: Shared, request: Request, agent: AgentName, decision: Decision, key: IdempotencyKey = None) -> Response:
    """Start no more episodes; the plant stays in its safe state."""
    return await _changed(shared, request, key, partial(shared.commands.pause_agent, agent), decision)


@router.post("/agents/{agent}/resume", dependencies=[operator])
async def resume_agent(shared: Shared, request: Request, agent: AgentName, decision: Decision, key: IdempotencyKey = None) -> Response:
    """Go on after a pause."""
    return await _changed(shared, request, key, partial(shared.commands.resume_agent, agent), decision)


@router.post("/agents/{agent}/freeze", dependencies=[operator])
async def freeze(shared: Shared, request: Request, agent: AgentName, decision: Decision, key: IdempotencyKey = None) -> Response:
    """No proposal, release or promotion begins or goes on; the watch may still roll back."""
    return await _changed(shared, request, key, partial(shared.commands.freeze, agent), decision)


@router.post("/agents/{agent}/unfreeze", dependencies=[operator])
async def unfreeze(shared: Shared, request: Request, agent: AgentName, decision: Decision, key: IdempotencyKey = None) -> Response:
    """Go on after a freeze."""
    return await _changed(shared, request, key, partial(shared.commands.unfreeze, agent), decision)


@router.post("/agents/{agent}/unquarantine", dependencies=[operator])
async def unquarantine(shared: Shared, request: Request, agent: AgentName, decision: Decision, key: IdempotencyKey = None) -> Response:
    """Let an agent that rolled back too often release again."""
    return await _changed(shared, request, key, partial(shared.commands.unquarantine, agent), decision)


@router.post("/freeze", dependencies=[operator])
async def freeze_all(shared: Shared, request: Request, decision: Decision, key: IdempotencyKey = None) -> Response:
    """Freeze every agent: those that are not up, and those that come later, too."""
    return await _changed_all(shared, request, key, shared.commands.freeze_all, decision)


@router.post("/unfreeze", dependencies=[operator])
async def unfreeze_all(shared: Shared, request: Request, decision: Decision, key: IdempotencyKey = None) -> Response:
    """Lift the freeze of every agent. One that was frozen by itself stays frozen."""
    return await _changed_all(shared, request, key, shared.commands.unfreeze_all, decision)


async def _changed_all(
    shared: Context, request: Request, key: str | None, change: Callable[..., Awaitable[DaemonStatus]], decision: Decision
) -> Response:
    async def work() -> Response:
        done = await change(who=decision.who, reason=decision.reason)
        return document({"items": [agent_view(agent) for agent in done.agents], "next": None, "frozen": plain(done.frozen)})

    return await once(shared, request, key, work)


@router.get("/agents/{agent}/devices", dependencies=[viewer])
async def list_devices(shared: Shared, agent: AgentName) -> Response:
    """The devices that the agent drives, with their status."""
    devices = shared.commands.agent_status(agent).devices
    return document({"items": [{"id": device, "status": status} for device, status in sorted(devices.items())], "next": None})


@router.get("/agents/{agent}/parameters", dependencies=[viewer])
async def list_parameters(
    shared: Shared, agent: AgentName, revision: Annotated[str | None, Query(pattern=r"^[0-9a-f]{4,64}$")] = None
) -> Response:
    """The trainable parameters with their values in a revision, by default the stable one."""
    state = await shared.store.agent(agent)
    found = await shared.store.revision(revision or state.stable)
    if found.agent != agent:
        raise NotFound("revision", found.id)
    if found.source != state.source:
        raise Problem(409, "other-source", f"revision {found.id[:10]} belongs to another version of the source")
    return document({"items": parameters_view(state, found), "next": None})


@router.get("/agents/{agent}/revisions", dependencies=[viewer])
async def list_revisions(shared: Shared, agent: AgentName, limit: Limit = 100, before: Before = None) -> Response:
    """The revisions of an agent, newest first."""
    await shared.store.agent(agent)
    revisions = await shared.store.revisions(agent, limit=limit, before=before)
    return page([revision_view(revision, await shared.store.provenance(revision.id)) for revision in revisions], limit)


@router.get("/agents/{agent}/revisions/{revision}", dependencies=[viewer])
async def read_revision(shared: Shared, agent: AgentName, revision: Key) -> Response:
    """A revision with its source."""
    found = await shared.store.revision(revision)
    if found.agent != agent:
        raise NotFound("revision", revision)
    return await read_any_revision(shared, found.id)


@router.get("/revisions/{revision}", dependencies=[viewer])
async def read_any_revision(shared: Shared, revision: Key) -> Response:
    """A revision with its source, whichever agent it is of."""
    found = await shared.store.revision(revision)
    return document(revision_view(found, await shared.store.provenance(found.id), await shared.store.source(found.source)))


@router.put("/agents/{agent}/desired-revision", dependencies=[operator])
async def set_desired(shared: Shared, request: Request, agent: AgentName, desired: DesiredRevision, key: IdempotencyKey = None) -> Response:
    """Serve a known revision, with the source that it was measured on, from the next episode on: rollback or pin."""
    return await _changed(shared, request, key, partial(shared.commands.set_desired, agent, desired.revision), desired)


@router.post("/agents/{agent}/forget", dependencies=[operator])
async def forget(shared: Shared, request: Request, agent: AgentName, forgotten: Forgotten, key: IdempotencyKey = None) -> Response:
    """Erase the episodes of a device, or single ones, with steps, traces and feedback. The log says that, by whom and why."""
    if forgotten.device is None and not forgotten.episodes:
        raise Problem(422, "invalid-request", "name a device, episodes, or both")

    async def work() -> Response:
        who, reason = forgotten.who, forgotten.reason
        erased = await shared.commands.forget(agent, device=forgotten.device, episodes=forgotten.episodes, who=who, reason=reason)
        return document({"erased": erased.episodes, "overwritten": erased.overwritten})

    return await once(shared, request, key, work)


@router.get("/agents/{agent}/conflicts", dependencies=[viewer])
async def list_conflicts(shared: Shared, agent: AgentName) -> Response:
    """Learned values whose default in the source has changed since they were learned: `base`, `learned`, and the `source`'s now."""
    state = await shared.store.agent(agent)
    return document({"items": [plain(conflict) for conflict in state.conflicts], "next": None})


@router.post("/agents/{agent}/rebase", dependencies=[operator])
async def rebase(shared: Shared, request: Request, agent: AgentName, settlement: Settlement, key: IdempotencyKey = None) -> Response:
    """Settle conflicts. What is kept is proposed, and `release` is its release, or null; `conflicts` are those that are left."""
    commands = shared.commands

    async def work() -> Response:
        who, reason = settlement.who, settlement.reason
        release = await commands.rebase(agent, keep=settlement.keep, take=settlement.take, who=who, reason=reason)
        left = (await shared.store.agent(agent)).conflicts
        return document({"release": release_view(release) if release else None, "conflicts": plain(left)})

    return await once(shared, request, key, work)


@router.get("/agents/{agent}/proposals", dependencies=[viewer])
async def list_proposals(shared: Shared, agent: AgentName, limit: Limit = 100, before: Before = None) -> Response:
    """The proposals for an agent, newest first."""
    await shared.store.agent(agent)
    return page([plain(proposal) for proposal in await shared.store.proposals(agent, limit=limit, before=before)], limit)


@router.post("/agents/{agent}/proposals", dependencies=[operator], status_code=202)
async def propose(shared: Shared, request: Request, agent: AgentName, decision: Decision, key: IdempotencyKey = None) -> Response:
    """Ask the optimizer for a proposal; 202: it is at work, and events tell what comes of it."""

    async def work() -> Response:
        await shared.commands.propose(agent, who=decision.who)
        return document(agent_view(shared.commands.agent_status(agent)), 202)

    return await once(shared, request, key, work)


@router.get("/agents/{agent}/logs", dependencies=[viewer])
async def read_logs(shared: Shared, agent: AgentName, limit: Limit = 200) -> Response:
    """The last lines that the agent's workers printed, oldest first: untrusted text."""
    return document({"items": list(shared.commands.logs(agent)[-limit:]), "next": None})
