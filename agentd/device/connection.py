"""How both sides of MQTT reach a broker: its address with everything that logging in takes, the pauses between attempts, clear refusals.

An address says it all in one text, so that the daemon's settings, an agent.toml, a command line and a robot's program say it alike:

    mqtts://user:password@broker.example:8883?ca_file=/etc/agentd/ca.pem&certificate_file=/etc/agentd/me.pem&key_file=/etc/agentd/me.key

Secrets are better kept out of it: `password_file` names a file, and what an address says is read from there again for each connection, so
that renewed certificates and passwords need no restart.
"""

import asyncio
import contextlib
import functools
import logging
import random
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar, cast
from urllib.parse import parse_qsl, unquote, urlsplit

import aiomqtt
from paho.mqtt import client as mqtt
from paho.mqtt.reasoncodes import ReasonCode

T = TypeVar("T")

PROTOCOLS = {"3.1.1": aiomqtt.ProtocolVersion.V311, "5": aiomqtt.ProtocolVersion.V5}
STABLE_AFTER = 10.0
"""Seconds after which a connection counts as a good one: the pauses after the next failure begin anew."""
MAX_NAME = 200
"""Characters of a device's name."""

_FILES = ("ca_file", "certificate_file", "key_file", "password_file")
_FORM = "a broker's address has the form mqtt://host:port or mqtts://user:password@host:port"
_REFUSED = 0x80
"""Reason codes from here on are refusals, in both protocols."""


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker and how to log in there. Make it with `parse`. Its text never shows the password."""

    host: str
    port: int
    secure: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    protocol: str = "3.1.1"
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    password_file: str = ""

    @classmethod
    def parse(cls, address: str) -> Self:
        """`mqtt://` or `mqtts://`, then `[user[:password]@]host[:port][?option=value&...]`.

        Options: `protocol` (3.1.1 or 5), `ca_file` (instead of the system's authorities), `certificate_file` and `key_file` (the client's),
        `password_file`. Raises ValueError with everything that is wrong with it, and without the password.
        """
        try:
            parts = urlsplit(address)
            port = parts.port
        except ValueError:
            raise ValueError(f"{_FORM}, and the port is a number up to 65535") from None
        if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname:
            raise ValueError(_FORM)
        secure = parts.scheme == "mqtts"
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        mistakes = list(_mistakes(options, secure=secure, username=parts.username, password=parts.password))
        if parts.path not in {"", "/"} or parts.fragment or "@" in "".join(options):
            mistakes.append("nothing may follow the port but ?options; a user or a password with /, ? or # has it as %2F, %3F or %23")
        if mistakes:
            raise ValueError("the broker's address: " + "; ".join(mistakes))
        return cls(
            host=parts.hostname,
            port=port or (8883 if secure else 1883),
            secure=secure,
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            **options,
        )

    def arguments(self) -> dict[str, Any]:
        """Arguments of `aiomqtt.Client`. Reads the files: call it where that may block. Raises ValueError for one that can't be used."""
        return {
            "hostname": self.host,
            "port": self.port,
            "username": self.username,
            "password": self._read_password() if self.password_file else self.password,
            "tls_context": self._tls_context() if self.secure else None,
            "protocol": PROTOCOLS[self.protocol],
            # small messages that wait for each other: Nagle's algorithm would add 40 ms to a tick
            "socket_options": ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),),
        }

    def _read_password(self) -> str:
        try:
            return Path(self.password_file).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"password_file {Path(self.password_file).absolute()} can't be read: {_why(error)}") from None

    def _tls_context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
        except (OSError, ssl.SSLError) as error:
            raise ValueError(f"ca_file {Path(self.ca_file).absolute()} holds no usable certificate: {_why(error)}") from None
        context.sslsocket_class = _Socket
        if self.certificate_file:
            try:
                # a key with a pass phrase would ask for it on the terminal of a daemon
                context.load_cert_chain(self.certificate_file, self.key_file or None, password=_no_pass_phrase)
            except (OSError, ssl.SSLError, ValueError) as error:
                names = " and ".join(str(Path(name).absolute()) for name in (self.certificate_file, self.key_file) if name)
                raise ValueError(f"certificate_file and key_file {names} can't be used: {_why(error)}") from None
        return context


class _Socket(ssl.SSLSocket):
    """Closes where the handshake fails, which paho leaves to the garbage collector. Tells what the broker said before it closed.

    In TLS 1.3 the handshake has ended for this side before the broker looks at its certificate. Where the broker refuses that and has
    closed by the time of the first message, sending fails, with an end of file; the alert that says why waits to be read.
    """

    def send(self, data: Any, flags: int = 0) -> int:
        """Raises the broker's alert, if there is one, rather than that the connection has ended."""
        try:
            return super().send(data, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError:
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLEOFError, ConnectionError):
                self.recv(1)
            raise

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException as error:
            self.close()
            if isinstance(error, ConnectionError):
                raise ConnectionError("the broker ended the TLS handshake; it may speak no TLS on this port") from error
            raise


def connection_arguments(address: str) -> dict[str, Any]:
    """Arguments of `aiomqtt.Client` for a broker's address. Raises ValueError."""
    return Broker.parse(address).arguments()


def _mistakes(options: dict[str, str], *, secure: bool, username: str | None, password: str | None) -> Iterable[str]:
    for name, value in options.items():
        if name not in {*_FILES, "protocol"}:
            shown = f" {name}" if name.isidentifier() and "@" not in value else ""  # it may be the rest of a password
            yield f"knows no option{shown}; there are protocol, {', '.join(_FILES)}"
        elif not value:
            yield f"{name} is empty"
        elif name == "protocol" and value not in PROTOCOLS:
            yield f"protocol should be {' or '.join(PROTOCOLS)}"
        elif name in {"ca_file", "certificate_file", "key_file"} and not secure:
            yield f"{name} is for mqtts:// only"
    if "key_file" in options and "certificate_file" not in options:
        yield "key_file needs certificate_file"
    if "password_file" in options and password:
        yield "has a password and a password_file; one is enough"
    if (password or "password_file" in options) and not username:
        yield "has a password, but no user"


def _no_pass_phrase() -> str:
    raise ValueError("the key has a pass phrase; store it without one, readable for agentd only")


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"{error.reason or error}".replace("_", " ").lower()
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def is_name(name: str) -> bool:
    """Whether this can be a device's name: a level of a topic that leaves room for the others, and that people can read."""
    return 0 < len(name) <= MAX_NAME and name.isprintable() and not set(name) & set("/+#")


class Reports(logging.Logger):
    """The logger of one connection. It keeps the last error: what a broker says of a client's certificate, paho tells nobody else."""

    def __init__(self) -> None:
        super().__init__("mqtt", logging.ERROR)
        self.last = ""

    def handle(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.last = record.getMessage()


_REFUSALS = {
    "session taken over": "another client logged in under the same name",
    "bad user name or password": "the broker refuses the user or the password",
    "not authorized": "the broker refuses the login: not authorised (user, password, certificate, or an access list without its topics)",
    "unsupported protocol version": "the broker does not speak this version of MQTT: set protocol=3.1.1 or protocol=5 in its address",
}


def words(error: BaseException, reports: Reports | None = None) -> str:
    """Why a connection failed or ended, in words for an operator."""
    code = getattr(error, "rc", None) or getattr(error.__cause__, "rc", None)
    if isinstance(code, ReasonCode):
        return _REFUSALS.get(code.getName().lower(), f"the broker ended the connection: {code.getName()}")
    for found in (reports.last if reports is not None else "", str(error)):
        if "CERTIFICATE_VERIFY_FAILED" in found:
            return f"the broker's certificate is not trusted: {_between(found, 'certificate verify failed: ', ' (_ssl')}"
        if "alert" in found and ("certificate" in found or "unknown ca" in found):
            return f"the broker refuses this client's certificate: {_between(found, 'alert ', ' (_ssl')}"
        if "WRONG_VERSION_NUMBER" in found or "RECORD_LAYER_FAILURE" in found:
            return "the broker may speak no TLS on this port"
        if found == "Operation timed out":
            return "the broker did not answer in time; a port for TLS needs mqtts://"
    return str(error) or type(error).__name__


def _between(text: str, start: str, end: str) -> str:
    return text.partition(start)[2].partition(end)[0] or text


class Client(aiomqtt.Client):
    """Leaves nothing open where connecting was refused or given up, which aiomqtt leaves to the broker. Enter it by `connected`.

    aiomqtt has the event loop watch the socket for each message, and be woken for that: seven system calls before the one that sends it.
    Here a message is sent without asking, and the socket is watched only when it didn't take all.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._ending = threading.Lock()
        self._ended = False

    def _client_connect(self) -> None:
        """Runs in a thread that goes on where nobody waits for it any more."""
        super()._client_connect()
        with self._ending:
            if self._ended:
                self._client._sock_close()  # noqa: SLF001 - paho's own disconnect() would wait for a loop that nobody runs

    def _on_disconnect(self, client: mqtt.Client, userdata: Any, flags: Any, reason_code: ReasonCode, properties: Any = None) -> None:
        """Tells whoever waits for the broker's answer that none will come, where aiomqtt has them wait for their time limit."""
        if self._connected.done():
            super()._on_disconnect(client, userdata, flags, reason_code, properties)
            if self._disconnected.done() and not self._disconnected.cancelled():
                self._disconnected.exception()  # aiomqtt forgets it unread where the connection ends in the moment it is made
        else:
            self._connected.set_exception(
                aiomqtt.MqttError("the broker closed the connection before it answered; a port for TLS needs mqtts://")
            )

    async def _wait_for(self, fut: Awaitable[T], timeout: float | None) -> T:  # noqa: ASYNC109 - aiomqtt's signature
        """No longer than the connection lives: aiomqtt waits out its time limit for an answer that can't come any more."""
        waiting = asyncio.ensure_future(fut)
        try:
            ends: set[asyncio.Future[Any]] = {waiting, self._disconnected}
            await asyncio.wait(ends, timeout=self.timeout if timeout is None else timeout, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            if self._disconnected.done():
                raise aiomqtt.MqttError("the broker ended the connection before it answered") from self._disconnected.exception()
            raise aiomqtt.MqttError("Operation timed out")
        finally:
            waiting.cancel()

    def flush(self) -> None:
        """Send what waits, now rather than in the loop's next turn. Where a message is being handled, that turn has to do."""
        if self._client._in_callback_mutex.locked():  # noqa: SLF001 - paho would wait for itself
            return
        try:
            self._client.loop_write()
        except Exception as error:  # noqa: BLE001 - as in aiomqtt: whatever it is, the connection is broken
            if not self._disconnected.done():
                self._disconnected.set_exception(error)

    def _on_socket_register_write(self, client: mqtt.Client, userdata: Any, sock: Any) -> None:
        """Something waits to be sent."""
        if self._connected.done():
            self._loop.call_soon(self._write, sock)
        else:  # from a thread, and why a broker refuses this client must be read before anything is written to it
            super()._on_socket_register_write(client, userdata, sock)

    def _write(self, sock: Any) -> None:
        self.flush()
        if self._client.want_write() and sock.fileno() >= 0:  # it may be closed by now
            self._loop.add_writer(sock.fileno(), self.flush)

    def end(self) -> None:
        """Close the socket, now or as soon as there is one."""
        paho = self._client
        with self._ending:
            self._ended = True
            paho._sock_close()  # noqa: SLF001 - as above
            # what comes later finds the event loop closed, maybe
            paho.on_socket_open = paho.on_socket_close = paho.on_socket_register_write = paho.on_socket_unregister_write = None
        for future in (self._connected, self._disconnected):
            if future.done() and not future.cancelled():
                future.exception()  # whoever waited has been told by another way


@contextlib.asynccontextmanager
async def connected(client: Client) -> AsyncIterator[Client]:
    """`async with client`, once, which always closes its socket."""
    try:
        async with client:
            yield client
    finally:
        client.end()


class Refused(aiomqtt.MqttError):
    """The broker lives, but does not let this client hear what it asked for."""


async def subscribe(client: aiomqtt.Client, topics: list[tuple[str, int]]) -> None:
    """Subscribe, each topic with its own quality. Raises aiomqtt.MqttError; Refused where the broker refuses one of them."""
    codes: Sequence[int | ReasonCode] = await client.subscribe(topics)
    refused = [topic for (topic, _), code in zip(topics, codes, strict=False) if _value(code) >= _REFUSED]
    if refused:
        raise Refused(f"the broker's access list refuses to let this client hear {', '.join(refused)}")


def _value(code: int | ReasonCode) -> int:
    return code.value if isinstance(code, ReasonCode) else code


def backoff(attempt: int, generator: random.Random, *, first: float = 0.1, cap: float = 5.0) -> float:
    """Seconds to wait before attempt number `attempt` (from 0): exponential, capped, and jittered over its upper half against stampedes."""
    limit: float = min(cap, first * 2.0 ** min(attempt, 16))
    return generator.uniform(limit / 2, limit)


async def end_task(task: "asyncio.Task[None]") -> None:
    """Cancel a task until it has ended: `asyncio.wait_for` of Python 3.11, which aiomqtt uses, can swallow a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.5)


class Inbox(asyncio.Queue[aiomqtt.Message]):
    """A queue for aiomqtt that hands each message over where it arrives, so that nothing grows old in it and nothing can fill it."""

    def __init__(self, maxsize: int = 0, *, handle: Callable[[aiomqtt.Message], None]) -> None:
        super().__init__(maxsize)
        self._handle = handle

    def put_nowait(self, item: aiomqtt.Message) -> None:
        """Hand a message over."""
        self._handle(item)

    @classmethod
    def type_for(cls, handle: Callable[[aiomqtt.Message], None]) -> type[asyncio.Queue[aiomqtt.Message]]:
        """What `aiomqtt.Client(queue_type=...)` takes."""
        return cast("type[asyncio.Queue[aiomqtt.Message]]", functools.partial(cls, handle=handle))
