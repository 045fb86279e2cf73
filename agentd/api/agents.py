"""/api/v1/agents: what is hosted, its parameters, revisions and logs; pause, desired revision, proposals."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response

from agentd.api.answers import AgentName, Before, Body, Decision, IdempotencyKey, Key, Limit, document, once, page
from agentd.api.context import Shared, operator, viewer
from agentd.api.problems import Problem
from agentd.api.views import agent_view, daemon_view, parameters_view, plain, revision_view
from agentd.errors import NotFound

router = APIRouter(prefix="/api/v1", tags=["agents"])


class DesiredRevision(Decision):
    """The revision to serve: an id, or a unique prefix."""

    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{4,64}$")]


class Asker(Body):
    """Who asks."""

    who: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$")] = "operator"


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


@router.post("/agents/{agent}/pause", dependencies=[operator])
async def pause_agent(shared: Shared, request: Request, agent: AgentName, asker: Asker, key: IdempotencyKey = None) -> Response:
    """Start no more episodes; the plant stays in its safe state."""

    async def work() -> Response:
        return document(agent_view(await shared.commands.pause_agent(agent, who=asker.who)))

    return await once(shared, request, key, work)


@router.post("/agents/{agent}/resume", dependencies=[operator])
async def resume_agent(shared: Shared, request: Request, agent: AgentName, asker: Asker, key: IdempotencyKey = None) -> Response:
    """Go on after a pause."""

    async def work() -> Response:
        return document(agent_view(await shared.commands.resume_agent(agent, who=asker.who)))

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
async def set_desired(shared: Shared, agent: AgentName, desired: DesiredRevision) -> Response:
    """Serve a known revision from the next episode on: rollback or pin."""
    status = await shared.commands.set_desired(agent, desired.revision, who=desired.who, reason=desired.reason)
    return document(agent_view(status))


@router.get("/agents/{agent}/proposals", dependencies=[viewer])
async def list_proposals(shared: Shared, agent: AgentName, limit: Limit = 100, before: Before = None) -> Response:
    """The proposals for an agent, newest first."""
    await shared.store.agent(agent)
    return page([plain(proposal) for proposal in await shared.store.proposals(agent, limit=limit, before=before)], limit)


@router.post("/agents/{agent}/proposals", dependencies=[operator], status_code=202)
async def propose(shared: Shared, request: Request, agent: AgentName, asker: Asker, key: IdempotencyKey = None) -> Response:
    """Ask the optimizer for a proposal; 202: it is at work, and events tell what comes of it."""

    async def work() -> Response:
        await shared.commands.propose(agent, who=asker.who)
        return document(agent_view(shared.commands.agent_status(agent)), 202)

    return await once(shared, request, key, work)


@router.get("/agents/{agent}/logs", dependencies=[viewer])
async def read_logs(shared: Shared, agent: AgentName, limit: Limit = 200) -> Response:
    """The last lines that the agent's workers printed, oldest first: untrusted text."""
    return document({"items": list(shared.commands.logs(agent)[-limit:]), "next": None})
