"""The one connection of an agent to its broker: kept for good, with what the agent says of itself, and bounded on both ways."""

import asyncio
import collections
import contextlib
import json
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any, Self, TypedDict, Unpack

import aiomqtt
import msgspec
from paho.mqtt import client as mqtt
from paho.mqtt.reasoncodes import ReasonCode

from agentd.clock import Clock
from agentd.device.connection import STABLE_AFTER, Broker, Client, Inbox, Refused, Reports, backoff, connected, end_task, subscribe, words
from agentd.environments.contract import Change, Counters, Linked, Rival
from agentd.errors import PlantError
from agentd.records import Space, Value
from agentd.spec import MqttSection

MAX_DEVICES = 1000
_PUBLISH_TIMEOUT = 2.0
_MAX_ANSWERS = 256
_KNOWN_RIVALS = 32

_logger = logging.getLogger("agentd.environments.mqtt")


class _Client(Client):
    """It hears when a broker of MQTT 5 refuses a message; one of 3.1.1 has no words for that."""

    def __init__(self, counters: Counters, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._counters = counters
        self._warned = False

    def _on_publish(self, client: mqtt.Client, userdata: Any, mid: int, reason_code: ReasonCode, properties: Any) -> None:
        if reason_code.is_failure:
            self._counters.dropped["refused"] += 1
            if not self._warned:
                self._warned = True
                _logger.warning("the broker refuses what this agent publishes: %s; see its access list", reason_code.getName())
        super()._on_publish(client, userdata, mid, reason_code, properties)


class _Said(msgspec.Struct):
    """An agent's `status`."""

    status: str
    session: str


class LinkOptions(TypedDict):
    """What a connection is made from."""

    agent: str
    session: str
    broker: str
    settings: MqttSection
    spaces: tuple[Space, Space]
    safe_action: Value
    clock: Clock
    generator: random.Random


class MqttLink(ABC):
    """Keeps the connection. Entering starts connecting and doesn't wait for it; what arrives goes to `_hear`."""

    def __init__(self, **options: Unpack[LinkOptions]) -> None:
        self.counters = Counters()
        self.observation_space, self.action_space = options["spaces"]
        self.safe_action = options["safe_action"]
        self.session = options["session"]
        self.settings = settings = options["settings"]
        self.clock = options["clock"]
        self._agent = options["agent"]
        self._random = options["generator"]
        self._agent_topic = f"{settings.prefix}/v1/agents/{self._agent}"
        try:
            self._broker = Broker.parse(options["broker"])
            self._broker.arguments()  # files that can't be read are told now and not in a log
        except ValueError as error:
            raise PlantError(str(error)) from error
        self._status = "starting"
        self._client: Client | None = None
        self._changes: asyncio.Queue[Change] = asyncio.Queue(4 * MAX_DEVICES)
        self._group: asyncio.TaskGroup | None = None
        self._running: asyncio.Task[None] | None = None
        self._answers = 0
        self._rivals: collections.deque[str] = collections.deque(maxlen=_KNOWN_RIVALS)

    @abstractmethod
    async def _begin(self, client: aiomqtt.Client) -> None:
        """Subscribe on a new connection. Raises MqttError."""

    @abstractmethod
    async def _watch(self) -> None:
        """What is to be done while there is a connection; it never returns."""

    @abstractmethod
    def _hear(self, message: aiomqtt.Message) -> None:
        """Handle one message. It runs inside the MQTT client, so it must not raise, whatever was sent."""

    @abstractmethod
    def _close(self) -> None:
        """Tell whoever drives a device that it is gone."""

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self._run(), name=f"mqtt-{self._agent}")
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Disconnect, without last will. Waits for the connection's end, which is limited by the client's time-out."""
        if self._running is not None:
            await end_task(self._running)
        self._close()

    @property
    def connected(self) -> bool:
        """Whether devices can be reached now."""
        return self._client is not None

    async def changes(self) -> AsyncIterator[Change]:
        """Devices as they join and leave, as the contract says."""
        while True:
            yield await self._changes.get()

    async def announce(self, status: str) -> None:
        """Tell the devices what the agent does."""
        self._status = status
        with contextlib.suppress(aiomqtt.MqttError):
            await self._announce()

    # --- the connection -----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Keep the connection, whatever ends it: without one the devices have only their own fallback."""
        attempt, told = 0, ""
        while True:
            reason, reports = "", Reports()
            opened_at = self.clock.monotonic()
            try:
                async with asyncio.TaskGroup() as self._group:
                    self._group.create_task(self._watch(), name=f"mqtt-{self._agent}-watch")
                    await self._converse(reports)
            except* (aiomqtt.MqttError, ValueError) as errors:
                reason = words(errors.exceptions[0], reports) or "disconnected"
            except* Exception as errors:  # noqa: BLE001 - a fault of ours or of a library costs one connection, never control for good
                reason = repr(errors.exceptions[0])
                self.counters.dropped["link_faults"] += 1
            finally:
                was_connected, self._client = self._client is not None, None
                self._group = None
            if was_connected or reason != told:
                told = reason
                self._note(Linked(connected=False, reason=reason))
            # a broker that takes a connection and drops it at once is not asked in a busy loop
            attempt = 0 if self.clock.monotonic() - opened_at > STABLE_AFTER else attempt + 1
            await asyncio.sleep(backoff(attempt, self._random))

    async def _converse(self, reports: Reports) -> None:
        """One connection. Raises MqttError when it ends, ValueError where a file of the address can't be read any more."""
        arguments = await asyncio.to_thread(self._broker.arguments)
        async with connected(self._new_client(arguments, reports)) as client:
            self._client = client  # before anything is heard: a device that joins now is subscribed to, and commanded, at once
            await self._begin(client)
            with contextlib.suppress(Refused):  # it is only to hear of others
                await subscribe(client, [(f"{self._agent_topic}/status", 1)])
            await self._announce()
            await self._describe()
            self._note(Linked(connected=True))
            async for _ in client.messages:  # messages go to `_hear`; this only ends, by an error, with the connection
                pass

    def _new_client(self, arguments: dict[str, Any], reports: Reports) -> Client:
        lost = json.dumps({"status": "lost", "session": self.session})
        return _Client(
            self.counters,
            **arguments,
            identifier=f"agentd-agent-{self._agent}-{self.session}",
            will=aiomqtt.Will(f"{self._agent_topic}/status", lost, qos=1, retain=True),
            queue_type=Inbox.type_for(self._receive),
            keepalive=5,
            timeout=5.0,
            logger=reports,
        )

    def _receive(self, message: aiomqtt.Message) -> None:
        if message.topic.value == f"{self._agent_topic}/status":
            self._hear_agent(message)
        else:
            self._hear(message)

    def _hear_agent(self, message: aiomqtt.Message) -> None:
        """Somebody spoke in this agent's name: this runner, an earlier one whose last will came late, or another agentd."""
        try:
            said = msgspec.json.decode(message.payload, type=_Said)
        except (msgspec.MsgspecError, ValueError):
            return
        if said.session == self.session or message.retain or said.status == "stopped" or self._group is None:
            return
        if said.status != "lost":
            if said.session in self._rivals:
                return
            self._rivals.append(said.session)
            self._note(Rival(said.session))
        self._group.create_task(self.announce(self._status), name=f"mqtt-{self._agent}-announce")  # what is retained is the truth again

    async def _announce(self) -> None:
        if self._client is not None:
            status = json.dumps({"status": self._status, "session": self.session})
            await self._client.publish(f"{self._agent_topic}/status", status, qos=1, retain=True)

    async def _describe(self) -> None:
        if self._client is not None:
            description = msgspec.json.encode(
                {
                    "protocol": 1,
                    "observation_space": self.observation_space,
                    "action_space": self.action_space,
                    "pace": self.settings.pace,
                    "deadline_ms": self.settings.deadline_ms,
                    "safe_action": self.safe_action,
                }
            )
            await self._client.publish(f"{self._agent_topic}/description", description, qos=1, retain=True)

    # --- what is sent -------------------------------------------------------------------------------------------------

    async def _publish(self, topic: str, payload: bytes, qos: int = 0) -> bool:
        """Publish; False when the broker is out of reach."""
        if self._client is None:
            return False
        try:
            await self._client.publish(topic, payload, qos=qos, timeout=_PUBLISH_TIMEOUT)
        except aiomqtt.MqttError:
            return False
        self.counters.messages["out"] += 1
        return True

    def _send(self, topic: str, payload: bytes) -> bool:
        """Hand a message to the network now, or not at all: behind what it doesn't take it would grow old."""
        if self._client is None:
            return False
        if len(payload) > self.settings.max_payload:
            self.counters.dropped["too_large"] += 1  # many a broker would end the connection, and with it everybody's
            return False
        wire = self._client._client  # noqa: SLF001 - aiomqtt's publish waits even for QoS 0: a task, a timer, a poll of the socket
        if wire.want_write():
            self._client.flush()
            if wire.want_write():
                self.counters.dropped["congested"] += 1
                return False
        if wire.publish(topic, payload).rc != 0:
            return False
        self._client.flush()
        self.counters.messages["out"] += 1
        return True

    def _publish_soon(self, topic: str, payload: bytes) -> None:
        """Publish from where messages arrive, which can't wait."""
        if self._group is None or self._client is None or self._answers >= _MAX_ANSWERS:
            self.counters.dropped["unanswered"] += 1
            return
        self._answers += 1
        self._group.create_task(self._answer(topic, payload), name=f"mqtt-{self._agent}-answer")

    async def _answer(self, topic: str, payload: bytes) -> None:
        try:
            await self._publish(topic, payload)
        finally:
            self._answers -= 1

    def _note(self, change: Change) -> None:
        try:
            self._changes.put_nowait(change)
        except asyncio.QueueFull:
            self.counters.dropped["changes"] += 1
