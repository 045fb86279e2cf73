"""/api/v1/agents/{agent}/releases: the way of proposals, and the decisions of operators about them."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response

from agentd.api.answers import AgentName, Before, Decision, IdempotencyKey, Key, Limit, document, once, page
from agentd.api.context import Shared, operator, viewer
from agentd.api.problems import Problem
from agentd.api.views import pairs_view, plain, release_view
from agentd.errors import NotFound
from agentd.records import Release

router = APIRouter(prefix="/api/v1", tags=["releases"])
OF_AGENT = "/agents/{agent}/releases"


class Submission(Decision):
    """An operator's proposal."""

    values: Annotated[dict[str, Any], Field(min_length=1, max_length=1000)]
    note: Annotated[str, Field(max_length=10_000)] = ""


class ReleaseDecision(Decision):
    """What is decided about a release. `full` is for promote: past all steps of its ramp."""

    full: bool = False


@router.get(OF_AGENT, dependencies=[viewer])
async def list_releases(
    shared: Shared, agent: AgentName, active: Annotated[bool, Query()] = False, limit: Limit = 100, before: Before = None
) -> Response:
    """The releases of an agent, newest first."""
    await shared.store.agent(agent)
    releases = await shared.store.releases(agent, limit=limit, before=before, active=active)
    return page([release_view(release) for release in releases], limit)


@router.post(OF_AGENT, dependencies=[operator], status_code=201)
async def submit(shared: Shared, request: Request, agent: AgentName, submission: Submission, key: IdempotencyKey = None) -> Response:
    """Begin a release of values given by an operator. It goes the way of every other."""

    async def work() -> Response:
        release = await shared.commands.submit(agent, submission.values, who=submission.who, note=submission.note or submission.reason)
        return document(release_view(release), 201)

    return await once(shared, request, key, work)


@router.get(f"{OF_AGENT}/{{release}}", dependencies=[viewer])
async def read_release(shared: Shared, agent: AgentName, release: Key) -> Response:
    """A release with its proposal and its evidence."""
    found = await shared.store.release(release)
    if found.agent != agent:
        raise NotFound("release", release)
    return await read_any_release(shared, found.id)


@router.get("/releases/{release}", dependencies=[viewer])
async def read_any_release(shared: Shared, release: Key) -> Response:
    """A release with its proposal and its evidence, whichever agent it is of."""
    found = await shared.store.release(release)
    view = release_view(found) | {"evidence": pairs_view(await shared.store.pairs(found.id))}
    try:
        view["proposed"] = plain(await shared.store.proposal(found.proposal))
    except NotFound:
        view["proposed"] = None  # a probe proposes nothing
    return document(view)


@router.post(f"{OF_AGENT}/{{release}}/{{verb}}", dependencies=[operator])
async def decide(
    shared: Shared,
    request: Request,
    *,
    agent: AgentName,
    release: Key,
    verb: Literal["approve", "promote", "abort", "pause", "resume", "retry"],
    decision: ReleaseDecision,
    key: IdempotencyKey = None,
) -> Response:
    """An operator's decision. 409 where the release has moved on, its phase doesn't allow it, or the agent is held."""
    if decision.full and verb != "promote":
        raise Problem(422, "invalid-request", "full is for promote only")
    commands = shared.commands
    verbs: dict[str, Callable[..., Awaitable[Release]]] = {
        "approve": commands.approve,
        "promote": partial(commands.promote, full=decision.full),
        "abort": commands.abort,
        "pause": commands.pause,
        "resume": commands.resume,
        "retry": commands.retry,
    }

    async def work() -> Response:
        return document(release_view(await verbs[verb](agent, release, who=decision.who, reason=decision.reason)))

    return await once(shared, request, key, work)
