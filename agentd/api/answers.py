"""How the routes answer: JSON documents, pages of lists, and what they accept as ids, limits and bodies."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

import msgspec
from fastapi import Header, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from agentd.api.context import Context
from agentd.api.idempotency import Answers

AgentName = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Key = Annotated[str, Path(pattern=r"^[A-Za-z0-9_.:-]{1,128}$", description="An id, or a unique prefix of one.")]
Limit = Annotated[int, Query(ge=1, le=1000)]
Before = Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_.:-]{1,128}$", description="`next` of the page before.")]
IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key")]


class Body(BaseModel):
    """Bodies have no unknown members."""

    model_config = ConfigDict(extra="forbid")


class Decision(Body):
    """Who decided, and why: for the audit."""

    who: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$")] = "operator"
    reason: Annotated[str, Field(max_length=1000)] = ""


def document(value: Any, status: int = 200) -> Response:
    """`value` (plain already) as JSON."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def page(items: Sequence[dict[str, Any]], limit: int) -> Response:
    """A page of a list, newest first. `next` is the `before` of the page after it, or null at the end."""
    return document({"items": list(items), "next": items[-1]["id"] if len(items) == limit else None})


async def once(
    shared: Context, request: Request, key: str | None, work: Callable[[], Awaitable[Response]], *, answers: Answers | None = None
) -> Response:
    """`work`, done once for an Idempotency-Key (see agentd.api.idempotency)."""
    fingerprint = request.method.encode() + b" " + request.url.path.encode() + b"\n" + await request.body()
    return await (answers or shared.answers).once(key, fingerprint, work)
