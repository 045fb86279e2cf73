"""What every request meets before a route: size, Host, Origin, and the headers that every answer carries."""

import asyncio
import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentd.api.problems import Problem

MAX_BODY = 1_048_576
"""Bytes. Prompts and code of an agent are far smaller."""
BODY_SECONDS = 10.0

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer browsers would send `Origin: null` for this page's own form
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI middleware. A page on another site can reach a loopback port through its visitor's browser; it is stopped here.

    Host must be localhost, an address (which DNS rebinding can't fake) or one of `hosts`; Origin, where a browser sends it, must be the
    same host. A body is read whole, up to MAX_BODY, before a route sees it.
    """

    def __init__(self, app: ASGIApp, *, hosts: Iterable[str]) -> None:
        self._app = app
        self._hosts = {"localhost", *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            headers = Headers(scope=scope)
            self._check_origin(headers)
            body = await _read_body(headers, receive)
        except Problem as problem:
            await problem.response()(scope, receive, send_with_headers)
            return
        await self._app(scope, _replay(body, receive), send_with_headers)

    def _check_origin(self, headers: Headers) -> None:
        host = headers.get("host", "")
        if not self._is_known(host):
            raise Problem(421, "unknown-host", "this host name is not one of agentd's: add it to allowed_hosts")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise Problem(403, "foreign-origin", "requests from pages of other sites are refused")

    def _is_known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            return False
        if name is None:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._hosts
        return True


async def _read_body(headers: Headers, receive: Receive) -> bytes:
    too_large = Problem(413, "too-large", f"a body should have at most {MAX_BODY} bytes", headers={"Connection": "close"})
    declared = headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > MAX_BODY:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    break
                body += message.get("body", b"")
                if len(body) > MAX_BODY:
                    raise too_large
                more = message.get("more_body", False)
    except TimeoutError:
        raise Problem(408, "slow-body", f"the body did not arrive within {BODY_SECONDS:g} s", headers={"Connection": "close"}) from None
    return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receive that gives `body` once, then waits for what the server says next (the disconnect)."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
