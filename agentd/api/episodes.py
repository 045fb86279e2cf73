"""/api/v1/episodes: asking an agent, what happened in an episode, why (the trace), and what it was worth (the feedback)."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response

from agentd.api.answers import AgentName, Before, Body, IdempotencyKey, Key, Limit, document, once, page
from agentd.api.context import Shared, client, viewer
from agentd.api.views import episode_view, plain, summary_view, trace_view
from agentd.errors import NotFound
from agentd.records import Role

router = APIRouter(prefix="/api/v1", tags=["episodes"])


class Act(Body):
    """A request: the observation, and whose it is."""

    observation: Any
    device: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:@-]{0,128}$")] = ""
    """The client's own name for itself, or for its user: episodes are listed under it."""
    instruction: Annotated[str, Field(max_length=10_000)] = ""


class Judgement(Body):
    """What an episode was worth: a score in the declared range, words, and the further metrics that are declared."""

    score: Annotated[float, Field(allow_inf_nan=False)]
    text: Annotated[str, Field(max_length=10_000)] = ""
    metrics: Annotated[dict[str, Annotated[float, Field(allow_inf_nan=False)]], Field(default_factory=dict, max_length=100)]
    who: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$")] = "client"


@router.post("/agents/{agent}/episodes", dependencies=[client])
async def act(shared: Shared, request: Request, agent: AgentName, asked: Act, key: IdempotencyKey = None) -> Response:
    """Ask an agent that is served over HTTP: an episode of one step, on the revision that is its turn.

    429 and 503 say that it has too much to do, or no policy now; 504 that its policy took too long. None of these was answered.
    """

    async def work() -> Response:
        return document(plain(await shared.commands.act(agent, asked.observation, client=asked.device, instruction=asked.instruction)))

    return await once(shared, request, key, work, answers=shared.acts)


@router.post("/episodes/{episode}/feedback", dependencies=[client])
async def give_feedback(shared: Shared, request: Request, episode: Key, given: Judgement, key: IdempotencyKey = None) -> Response:
    """Say what an episode was worth. `evidence` tells whether it came in time; the same words again are the same feedback, others 409."""

    async def work() -> Response:
        commands = shared.commands
        receipt = await commands.give_feedback(episode, given.score, text=given.text, metrics=given.metrics, who=given.who)
        return document(plain(receipt))

    return await once(shared, request, key, work, answers=shared.acts)


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
    summary = await shared.store.summary(found.id)
    return document(episode_view(found, await shared.store.feedback(found.id), summary.awaits_until))


@router.get("/episodes/{episode}/trace", dependencies=[viewer])
async def read_trace(shared: Shared, episode: Key) -> Response:
    """The trace graph of an episode: what the program computed. The program wrote it, so its texts are untrusted."""
    content = await shared.store.trace(episode)
    if content is None:
        raise NotFound("trace of the episode", episode)
    return document(await asyncio.to_thread(trace_view, content))  # up to 4 MiB, and whoever wrote it may want us busy


@router.get("/episodes/{episode}/feedback", dependencies=[viewer])
async def read_feedback(shared: Shared, episode: Key) -> Response:
    """The feedback on an episode."""
    feedback = await shared.store.feedback(episode)
    if feedback is None:
        raise NotFound("feedback on the episode", episode)
    return document(plain(feedback))
