"""A scripted language model: a real HTTP server on loopback that speaks the OpenAI chat-completions protocol.

    async with ScriptedLlm(lambda request: '{"suggestion": {"x": 1}}') as server:
        client = LitellmClient(LlmSettings(models=("openai/scripted",), api_base=server.url, api_key="sk-test"), ...)

Faults are scripted with `Reply`: status codes, Retry-After, delays, bodies that break off, connections that are dropped.
"""

import asyncio
import contextlib
import inspect
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self

_REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    408: "Timeout",
    429: "Too Many Requests",
    500: "Server Error",
}
_MAX_BODY = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Reply:
    """How the model answers once.

    `body` replaces the whole JSON body. `cut_after` sends only so many bytes of it, though the length that was announced is longer, and
    drops the connection; 0 drops it without any answer. `delay` is in seconds.
    """

    text: str = ""
    status: int = 200
    delay: float = 0.0
    retry_after: float | None = None
    finish_reason: str = "stop"
    tokens_in: int = 100
    tokens_out: int = 20
    body: bytes | None = None
    cut_after: int | None = None
    error: str = "scripted failure"


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What was asked: the JSON body, and the headers with lower-case names."""

    body: dict[str, Any]
    headers: dict[str, str] = field(repr=False)

    @property
    def prompt(self) -> str:
        """The text of all messages."""
        return "\n\n".join(_text(message.get("content")) for message in self.body.get("messages", ()))

    @property
    def schema(self) -> dict[str, Any] | None:
        """The JSON schema that the answer should follow, if one was sent."""
        wanted = self.body.get("response_format") or {}
        return (wanted.get("json_schema") or {}).get("schema")


Script = Callable[[ChatRequest], Reply | str | Awaitable[Reply | str]]


def in_turn(replies: Iterable[Reply | str]) -> Script:
    """A script that gives each reply once, and the last one from then on."""
    waiting = list(replies)
    return lambda _: waiting.pop(0) if len(waiting) > 1 else waiting[0]


class ScriptedLlm:
    """The server. `requests` has every chat request, in the order of arrival; `url` is the API base."""

    def __init__(self, script: Script | str) -> None:
        self._script: Script = in_turn([script]) if isinstance(script, str) else script
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[Any]] = set()
        self.requests: list[ChatRequest] = []
        self.open_requests = 0
        self.most_open_requests = 0

    @property
    def url(self) -> str:
        """The API base, for litellm's `api_base`."""
        assert self._server is not None  # noqa: S101 - used inside `async with`
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stops listening and drops every connection."""
        if self._server is None:
            return
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio runs this in a task
        self._connections.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):  # the client went, or we do
                while await self._serve(reader, writer):
                    pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; whether the connection may go on."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(min(int(headers.get("content-length", 0)), _MAX_BODY))
        if method != "POST" or not path.endswith("/chat/completions"):
            return await _send(writer, Reply(status=404, error=f"no such path: {path}"), "")
        request = ChatRequest(json.loads(body), headers)
        self.requests.append(request)
        self.open_requests += 1
        self.most_open_requests = max(self.most_open_requests, self.open_requests)
        try:
            answer = self._script(request)
            reply = await answer if inspect.isawaitable(answer) else answer
            reply = Reply(reply) if isinstance(reply, str) else reply
            await asyncio.sleep(reply.delay)
        finally:
            self.open_requests -= 1
        return await _send(writer, reply, str(request.body.get("model", "")))


async def _send(writer: asyncio.StreamWriter, reply: Reply, model: str) -> bool:
    body = reply.body if reply.body is not None else json.dumps(_content(reply, model)).encode()
    retry = f"Retry-After: {reply.retry_after:g}\r\n" if reply.retry_after is not None else ""
    head = f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Other')}\r\nContent-Type: application/json\r\n"
    content = f"{head}{retry}Content-Length: {len(body)}\r\n\r\n".encode() + body
    if reply.cut_after is not None:
        if reply.cut_after:
            writer.write(content[: len(content) - len(body) + reply.cut_after])
            await writer.drain()
        return False
    writer.write(content)
    await writer.drain()
    return True


def _content(reply: Reply, model: str) -> dict[str, Any]:
    if reply.status != 200:
        return {"error": {"message": reply.error, "type": "scripted", "code": None}}
    return {
        "id": "chatcmpl-scripted",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, "finish_reason": reply.finish_reason, "message": {"role": "assistant", "content": reply.text}}],
        "usage": {
            "prompt_tokens": reply.tokens_in,
            "completion_tokens": reply.tokens_out,
            "total_tokens": reply.tokens_in + reply.tokens_out,
        },
    }


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", f"[{part.get('type')}]")) for part in content)
    return str(content or "")
