"""/api/v1/episodes: what happened in an episode, why (the trace), and what it was worth (the feedback)."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from agentd.api.answers import AgentName, Before, Key, Limit, document, page
from agentd.api.context import Shared, viewer
from agentd.api.views import episode_view, plain, summary_view, trace_view
from agentd.errors import NotFound
from agentd.records import Role

router = APIRouter(prefix="/api/v1", tags=["episodes"])


@router.get("/agents/{agent}/episodes", dependencies=[viewer])
async def list_episodes(
    shared: Shared,
    agent: AgentName,
    *,
    role: Role | None = None,
    revision: Annotated[str | None, Query(pattern=r"^[0-9a-f]{4,64}$")] = None,
    limit: Limit = 100,
    before: Before = None,
) -> Response:
    """The episodes of an agent, newest first, without steps and trace."""
    await shared.store.agent(agent)
    whole = (await shared.store.revision(revision)).id if revision else None
    episodes = await shared.store.episodes(agent, limit=limit, before=before, revision=whole, role=role)
    return page([summary_view(episode) for episode in episodes], limit)


@router.get("/episodes/{episode}", dependencies=[viewer])
async def read_episode(shared: Shared, episode: Key) -> Response:
    """An episode with its steps and feedback."""
    found = await shared.store.episode(episode)
    return document(episode_view(found, await shared.store.feedback(found.id)))


@router.get("/episodes/{episode}/trace", dependencies=[viewer])
async def read_trace(shared: Shared, episode: Key) -> Response:
    """The trace graph of an episode: what the program computed. The program wrote it, so its texts are untrusted."""
    content = await shared.store.trace(episode)
    if content is None:
        raise NotFound("trace of the episode", episode)
    return document(trace_view(content))


@router.get("/episodes/{episode}/feedback", dependencies=[viewer])
async def read_feedback(shared: Shared, episode: Key) -> Response:
    """The feedback on an episode."""
    feedback = await shared.store.feedback(episode)
    if feedback is None:
        raise NotFound("feedback on the episode", episode)
    return document(plain(feedback))
