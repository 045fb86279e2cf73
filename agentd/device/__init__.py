"""The device side of agentd's MQTT protocol, version 1: what a robot runs. It needs aiomqtt and nothing else of agentd.

    class Arm:
        def on_reset(self, seed): ...                 # -> observation
        def on_step(self, action): ...                # -> (observation, reward, terminated, truncated, info)

    arm = Arm()
    device = Device("mqtt://broker:1883", "arm-1", agent="arm", on_reset=arm.on_reset, on_step=arm.on_step, fallback=0.0)
    await device.run()

The device owns the last line of defence. When no action comes within `action_timeout`, or the network is gone, it applies its own
`fallback` and goes on: a network's death never leaves the plant without an action. `log` hears of each action that was applied.
The protocol is written down in docs/devices.md.
"""

import asyncio
import collections
import contextlib
import inspect
import json
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import aiomqtt

from .connection import (  # relative: this folder can be copied to a robot
    MAX_NAME,
    STABLE_AFTER,
    Broker,
    Client,
    Inbox,
    Reports,
    backoff,
    connected,
    connection_arguments,
    end_task,
    is_name,
    subscribe,
    words,
)

__all__ = ["Applied", "Broker", "Device", "Inbox", "Outcome", "SourceOfAction", "backoff", "connection_arguments"]

_logger = logging.getLogger("agentd.device")

Outcome = tuple[Any, float, bool, bool, dict[str, Any]]
"""What a step returns: observation, reward, terminated, truncated, info; as in Gymnasium."""

SourceOfAction = Literal["action", "safe", "fallback", "rest"]
"""`rest`: the fallback, too, after an episode that was cut while the plant was doing something."""


@dataclass(frozen=True, slots=True)
class Applied:
    """One line of the device's own log: what the plant got at one tick, and where it came from.

    `waited` is the time in seconds from the observation until the plant's step begins; `revision` is what the agent said had chosen it.
    """

    episode: str
    step: int
    action: Any
    source: SourceOfAction
    revision: str
    waited: float


@dataclass(frozen=True, slots=True)
class _Reset:
    """The command to begin an episode, or the device's own wish to (`commanded` is False)."""

    episode: str
    seed: int | None
    max_steps: int | None
    commanded: bool = True


@dataclass(frozen=True, slots=True)
class _Action:
    """What the agent answered."""

    action: Any
    safe: bool
    revision: str


_Answer = _Action | Literal["late", "unsent"] | None
"""Of an observation: the action, or why there is none; None where it is no longer wanted."""


def _settle(answered: "asyncio.Future[_Answer]", answer: _Answer) -> None:
    if not answered.done():
        answered.set_result(answer)


async def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    result = function(*arguments)
    return await result if inspect.isawaitable(result) else result


class Device:
    """A plant behind MQTT. `run()` serves until it is cancelled or `stop()` is called.

    Args:
        broker: `mqtt://` or `mqtts://` address, with TLS files, password file and protocol version as `Broker.parse` says.
        name: the device's name, unique on the broker: a topic level, so without `/`, `+` and `#`.
        agent: the agent that shall drive it.
        on_reset: called with a seed (or None), returns the first observation. Callbacks may be async.
        on_step: called with an action, returns (observation, reward, terminated, truncated, info).
        fallback: the device's own action when none comes: a value, or a function of the last observation.
        action_timeout: seconds after an observation at which the fallback is applied.
        step_interval: seconds from one tick to the next (0: as fast as actions come).
        begin_after: seconds without a command after which the device begins an episode by itself (None: never).
        accepts: a last check of an action before it is applied; what it refuses counts as no action.
        log: called with what was applied at each tick.
        max_payload: bytes above which a message is dropped unread.

    Raises ValueError for a name or an address that is none.
    """

    def __init__(
        self,
        broker: str,
        name: str,
        *,
        agent: str,
        on_reset: Callable[[int | None], Any],
        on_step: Callable[[Any], Outcome | Awaitable[Outcome]],
        fallback: Any,
        action_timeout: float = 0.25,
        step_interval: float = 0.0,
        max_steps: int = 1_000_000,
        begin_after: float | None = None,
        accepts: Callable[[Any], bool] | None = None,
        log: Callable[[Applied], None] | None = None,
        prefix: str = "agentd",
        labels: Mapping[str, str] | None = None,
        seedable: bool = True,
        heartbeat: float = 1.0,
        max_payload: int = 65_536,
        generator: random.Random | None = None,
    ) -> None:
        if not is_name(name):
            raise ValueError(f"a device's name is one topic level: 1 to {MAX_NAME} characters that can be printed, without /, + and #")
        if not prefix or prefix[0] in "/$" or set(prefix) & set("+#") or not prefix.isprintable():
            raise ValueError("a prefix is the beginning of a topic: not empty, without + and #, and not with / or $ at its beginning")
        self.name = name
        self.session = ""
        self.counts: collections.Counter[str] = collections.Counter()
        self.trouble = ""
        """Why there is no connection, in words; empty while there is one."""
        self._broker = Broker.parse(broker)
        self._agent = agent
        self._on_reset = on_reset
        self._on_step = on_step
        self._fallback = fallback
        self._action_timeout = action_timeout
        self._step_interval = step_interval
        self._max_steps = max_steps
        self._begin_after = begin_after
        self._accepts = accepts or (lambda _: True)
        self._log = log or (lambda _: None)
        self._topic = f"{prefix}/v1/devices/{name}"
        self._labels = dict(labels or {})
        self._seedable = seedable
        self._heartbeat = heartbeat
        self._max_payload = max_payload
        self._random = generator or random.Random()  # noqa: S311 - jitter, no secret
        self._client: Client | None = None
        self._reset: _Reset | None = None
        self._command: dict[str, Any] | None = None
        self._command_came = asyncio.Event()
        self._stopping = False
        self._wanted: tuple[str, int] | None = None
        self._answer: asyncio.Future[_Answer] | None = None
        self._unsent: tuple[dict[str, Any], asyncio.Future[_Answer]] | None = None
        self._sending: asyncio.Task[None] | None = None
        self._group: asyncio.TaskGroup

    @property
    def connected(self) -> bool:
        """Whether the broker answers at this moment."""
        return self._client is not None

    def stop(self) -> None:
        """End at the next tick: the plant gets the fallback, the agent hears `stopped`, and `run()` returns."""
        self._stopping = True
        self._interrupt()

    async def run(self) -> None:
        """Serve: keep the connection, and the plant, until `stop()`."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            link = group.create_task(self._keep_link(), name=f"device-{self.name}-link")
            try:
                await self._serve()
            except BaseException:
                if self._client is not None:
                    self._client.end()  # without a farewell: the broker publishes the last will
                raise
            finally:
                await end_task(link)

    # --- the plant ----------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        while not self._stopping:
            begin = await self._next_episode()
            if begin is not None:
                await self._episode(begin)
        with contextlib.suppress(aiomqtt.MqttError):
            await self._say("up/status", {"status": "stopped", "session": self.session, "agent": self._agent}, qos=1, retain=True)

    async def _next_episode(self) -> _Reset | None:
        if self._reset is None:
            self._command_came.clear()
            try:
                async with asyncio.timeout(self._begin_after):
                    await self._command_came.wait()
            except TimeoutError:
                return _Reset(secrets.token_hex(8), None, None, commanded=False)
        begin, self._reset = self._reset, None
        return begin

    async def _episode(self, begin: _Reset) -> None:
        limit = min(self._max_steps, begin.max_steps or self._max_steps)
        observation = await _call(self._on_reset, begin.seed)
        message: dict[str, Any] = {"observation": observation}
        fallback = False
        tick_at = time.monotonic()
        for step in range(limit + 1):
            last = step == limit or bool(message.get("terminated") or message.get("truncated"))
            if step == limit and not message.get("terminated"):
                message["truncated"] = True
            message |= {"session": self.session, "episode": begin.episode, "step": step, "fallback": fallback}
            if last:
                with contextlib.suppress(aiomqtt.MqttError, TimeoutError):
                    async with asyncio.timeout(self._action_timeout):
                        await self._say("up/observation", message)
                if not message.get("terminated") and not fallback:
                    await self._rest(begin.episode, step, message["observation"])
                return
            asked_at = time.monotonic()
            action, source, revision = await self._ask(begin.episode, step, message, asked_at)
            if self._reset is not None and not self._stopping:
                return  # a new episode was asked for: its reset is this plant's next action
            waited = time.monotonic() - asked_at
            observation, reward, terminated, truncated, info = await _call(self._on_step, action)
            self._log(Applied(begin.episode, step, action, source, revision, waited))
            self.counts[source] += 1
            fallback = source == "fallback"
            message = {
                "observation": observation,
                "reward": reward,
                "terminated": bool(terminated),
                "truncated": bool(truncated) or (self._stopping and fallback),
                "info": info,
            }
            tick_at = max(tick_at + self._step_interval, time.monotonic())
            await asyncio.sleep(tick_at - time.monotonic())

    async def _rest(self, episode: str, step: int, observation: Any) -> None:
        """A plant whose episode was cut still does what it was told last: it gets the fallback, unless another one begins in time."""
        if self._begin_after is not None and self._begin_after <= self._action_timeout and not self._stopping:
            return  # its next one is its own
        if self._reset is None and not self._stopping:
            self._command_came.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._action_timeout):
                    await self._command_came.wait()
        if self._reset is None or self._stopping:
            action = self._own(observation)
            await _call(self._on_step, action)
            self._log(Applied(episode, step, action, "rest", "", 0.0))  # no action was waited for
            self.counts["rest"] += 1

    async def _ask(self, episode: str, step: int, message: dict[str, Any], asked_at: float) -> tuple[Any, SourceOfAction, str]:
        """Publish an observation and wait for its action, no longer than `action_timeout`.

        The limit is a timer that answers, not a cancellation: what it would have to cancel is aiomqtt's, whose `asyncio.wait_for` of
        Python 3.11 swallows one that comes as the message is confirmed, and this plant would wait for ever. Where this process was held up,
        the event loop reads what came meanwhile before it looks at its timers: so the clock decides.
        """
        self._wanted = (episode, step)
        answered = self._answer = asyncio.get_running_loop().create_future()
        if self._stopping:
            _settle(answered, None)
        limit = asyncio.get_running_loop().call_later(self._action_timeout, _settle, answered, "late")
        self._unsent = (message, answered)  # in the place of one that the network hasn't taken yet
        if self._sending is None or self._sending.done():
            self._sending = self._group.create_task(self._send_newest(), name=f"device-{self.name}-observation")
        try:
            answer = await answered
        finally:
            limit.cancel()
            self._wanted = self._answer = None
        if isinstance(answer, _Action) and time.monotonic() - asked_at > self._action_timeout:
            answer = "late"
        if isinstance(answer, _Action):
            return answer.action, "safe" if answer.safe else "action", answer.revision
        if answer is not None:
            self.counts[answer] += 1
        if answer == "unsent" and not self._step_interval:
            await asyncio.sleep(self._action_timeout)  # without a pace of its own the plant would rush through the outage
        return self._own(message["observation"]), "fallback", ""

    def _own(self, observation: Any) -> Any:
        """The fallback."""
        return self._fallback(observation) if callable(self._fallback) else self._fallback

    async def _send_newest(self) -> None:
        while self._unsent is not None:
            (message, answered), self._unsent = self._unsent, None
            if answered.done():
                continue  # its tick is over
            try:
                await self._say("up/observation", message)
            except aiomqtt.MqttError:
                _settle(answered, "unsent")

    def _interrupt(self) -> None:
        self._command_came.set()
        if self._answer is not None:
            _settle(self._answer, None)

    # --- the link -----------------------------------------------------------------------------------------------------

    async def _say(self, topic: str, message: dict[str, Any], *, qos: int = 0, retain: bool = False) -> None:
        if self._client is None:
            raise aiomqtt.MqttError("not connected")
        payload = json.dumps(message, separators=(",", ":"), default=_plain)
        await self._client.publish(f"{self._topic}/{topic}", payload, qos=qos, retain=retain)

    async def _keep_link(self) -> None:
        attempt, told = 0, ""
        while True:
            # a session is one life of the connection: answers to an older one are recognised and dropped
            self.session = secrets.token_hex(8)
            reports = Reports()
            opened_at = time.monotonic()
            try:
                await self._converse(reports)
            except (aiomqtt.MqttError, ValueError) as error:
                self.counts["disconnected"] += 1
                reason = words(error, reports)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with the network's side, the plant's side goes on
                self.counts["link_faults"] += 1
                reason = repr(error)
            finally:
                was_connected, self._client = self.connected, None
            brief = time.monotonic() - opened_at <= STABLE_AFTER
            if brief and was_connected:  # few brokers say that they ended it for a newcomer of the same name
                reason += f", soon after it had let this device in: another one may have the name {self.name}"
            if reason != told or not brief:
                _logger.warning("%s has no broker: %s; it tries again", self.name, reason)
            self.trouble = told = reason
            # a broker that takes a connection and drops it at once is not asked in a busy loop
            attempt = attempt + 1 if brief else 0
            await asyncio.sleep(backoff(attempt, self._random))

    async def _converse(self, reports: Reports) -> None:
        """One connection. Raises MqttError when it ends, ValueError where a file of the address can't be read."""
        arguments = await asyncio.to_thread(self._broker.arguments)
        async with connected(self._new_client(arguments, reports)) as client:
            await subscribe(client, [(f"{self._topic}/down/action", 0), (f"{self._topic}/down/command", 1)])
            self._client = client
            await self._say("up/status", self._ready(), qos=1, retain=True)
            self.trouble = ""
            await self._beat(client)

    def _new_client(self, arguments: dict[str, Any], reports: Reports) -> Client:
        lost = {"status": "lost", "session": self.session, "agent": self._agent}
        return Client(
            **arguments,
            identifier=f"agentd-device-{self.name}",
            will=aiomqtt.Will(f"{self._topic}/up/status", json.dumps(lost), qos=1, retain=True),
            queue_type=Inbox.type_for(self._hear),
            keepalive=5,
            timeout=5.0,
            logger=reports,
        )

    def _ready(self) -> dict[str, Any]:
        return {
            "status": "ready",
            "session": self.session,
            "agent": self._agent,
            "labels": self._labels,
            "encoding": "json",
            "seedable": self._seedable,
        }

    async def _beat(self, client: aiomqtt.Client) -> None:
        """Say each `heartbeat` seconds that this process lives; raises MqttError when the connection ends."""
        sequence = 0
        while True:
            await self._say("up/heartbeat", {"session": self.session, "seq": sequence})
            sequence += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat):
                    async for _ in client.messages:  # messages go to `_hear`; this only ends, by an error, with the connection
                        pass

    def _hear(self, message: aiomqtt.Message) -> None:
        if len(message.payload) > self._max_payload:
            self.counts["too_large"] += 1
            return
        try:
            content = json.loads(message.payload)
            verb = str(message.topic).removeprefix(f"{self._topic}/down/")
            if verb == "action":
                self._hear_action(content)
            elif verb == "command":
                self._hear_command(content)
        except Exception:  # noqa: BLE001 - whatever was sent, it must not cut the connection
            self.counts["malformed"] += 1

    def _hear_action(self, content: dict[str, Any]) -> None:
        if content["session"] != self.session:
            self.counts["older_session"] += 1
        elif self._answer is None or self._answer.done() or self._wanted != (content["episode"], content["step"]):
            self.counts["stale"] += 1  # an action is applied at its own tick or not at all
        elif not self._accepts(content["action"]):
            self.counts["refused"] += 1
        else:
            self._answer.set_result(_Action(content["action"], content["safe"] is True, str(content.get("revision", ""))))

    def _hear_command(self, content: dict[str, Any]) -> None:
        if content["session"] != self.session:
            self.counts["older_session"] += 1
            return
        problem = ""
        if content == self._command:
            pass  # QoS 1: at least once
        elif content["verb"] == "reset":
            self._reset = _Reset(str(content["episode"]), _whole(content.get("seed")), _whole(content.get("max_steps")))
            self._interrupt()
        elif content["verb"] == "stop":
            self.stop()
        else:
            problem = f"unknown verb {content['verb']!r}"
        if not problem:
            self._command = content
        answer = {"id": content.get("id"), "session": self.session, "ok": not problem, "error": problem}
        self._group.create_task(self._respond(answer), name=f"device-{self.name}-respond")

    async def _respond(self, answer: dict[str, Any]) -> None:
        with contextlib.suppress(aiomqtt.MqttError):
            await self._say("up/response", answer, qos=1)


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def _plain(value: Any) -> Any:
    """Numpy's arrays and scalars for JSON, without importing numpy."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__qualname__} can't be sent")
