"""/api/v1/events: what happened, as a list or (for `Accept: text/event-stream`) as it happens."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response, StreamingResponse

from agentd.api.answers import Limit, document
from agentd.api.context import MAX_STREAMS, Context, Shared, viewer
from agentd.api.problems import Problem
from agentd.api.views import event_view
from agentd.records import Event

router = APIRouter(prefix="/api/v1", tags=["events"])

HEARTBEAT = 15.0
"""Seconds between comments in a quiet stream, so that a dead client is noticed."""
BATCH = 200
CAPACITY = 1024
MAX_SEQ = 2**63 - 1


@router.get(
    "/events",
    dependencies=[viewer],
    responses={200: {"content": {"application/json": {}, "text/event-stream": {}}}},
)
async def read_events(
    shared: Shared,
    request: Request,
    *,
    agent: Annotated[str | None, Query(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")] = None,
    after: Annotated[int | None, Query(ge=0, le=MAX_SEQ)] = None,
    limit: Limit = 100,
    kind: Annotated[list[str] | None, Query(max_length=50, description="Ends with a dot: all that begin with it.")] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """Events behind `after` (a `seq`), oldest first; without `after` the latest.

    As a stream (server-sent events) it goes on with what happens, and begins behind `Last-Event-ID` or `after`, else now. An event that is
    in the log carries its `seq` as the id; passing ones (a finished episode, a pair's evidence) have none and are not sent again.
    """
    if "text/event-stream" not in request.headers.get("accept", ""):
        events = await shared.store.events(agent, after=after or 0, limit=limit, kinds=kind, latest=after is None)
        return document({"items": [event_view(event) for event in events], "next": events[-1].seq if len(events) == limit else None})
    if shared.streams >= MAX_STREAMS:
        raise Problem(503, "too-many-streams", f"{MAX_STREAMS} event streams are open already", headers={"Retry-After": "5"})
    if last_event_id is not None and last_event_id.isdecimal() and int(last_event_id) <= MAX_SEQ:
        after = int(last_event_id)
    return StreamingResponse(_stream(shared, agent, after, kind), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


async def _stream(shared: Context, agent: str | None, after: int | None, kinds: list[str] | None) -> AsyncIterator[bytes]:
    """Events in the order of the log.

    The bus only says that there is something new: what is in the log is read from the log, so that neither a slow client nor two
    transactions that were told in another order than they were committed can lose an event.
    """
    shared.streams += 1
    try:
        async with shared.bus.subscribe(CAPACITY) as events:
            if after is None:
                latest = await shared.store.events(limit=1, latest=True)
                after = latest[-1].seq if latest else 0
            yield b": agentd\n\n"
            waiting = True
            while True:
                while waiting:
                    batch = await shared.store.events(agent, after=after, limit=BATCH, kinds=kinds)
                    for event in batch:
                        yield _frame(event)
                        after = event.seq
                    waiting = len(batch) == BATCH
                try:
                    async with asyncio.timeout(HEARTBEAT):
                        event = await anext(events)
                except TimeoutError:
                    yield b": still here\n\n"
                    waiting = True  # the bus may have dropped what we were too slow for
                    continue
                except StopAsyncIteration:
                    return
                if event.seq == 0 and _is_wanted(event, agent, kinds):
                    yield _frame(event)
                waiting = event.seq > after
    finally:
        shared.streams -= 1


def _is_wanted(event: Event, agent: str | None, kinds: list[str] | None) -> bool:
    if agent is not None and event.agent != agent:
        return False
    return kinds is None or any(event.kind.startswith(kind) if kind.endswith(".") else event.kind == kind for kind in kinds)


def _frame(event: Event) -> bytes:
    # JSON has no raw line ends, so that no text in an event can forge a second one.
    head = f"id: {event.seq}\n".encode() if event.seq else b""
    return head + b"data: " + msgspec.json.encode(event_view(event)) + b"\n\n"
