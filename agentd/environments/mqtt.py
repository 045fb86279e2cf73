"""Plants behind MQTT: one connection per agent, one `MqttDevice` per device that says it belongs to the agent. Protocol: docs/devices.md.

Control wants fresh or nothing. Messages are handled where they arrive, so no queue can grow old; per device the newest observation wins.
What is stale, out of order, malformed, too large, outside the space or from an older session is dropped and counted by reason; an
observation that can't be used but asks for an action gets the safe one.
"""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from typing import Literal, Self

import aiomqtt
import msgspec
from paho.mqtt import client as mqtt

from agentd.clock import Clock
from agentd.device import Inbox, backoff, connection_arguments, end_task
from agentd.environments.contract import Change, Counters, Joined, Left, Linked
from agentd.environments.mqtt_device import Carrier, Heartbeat, MqttDevice
from agentd.errors import PlantError
from agentd.records import Space, Value
from agentd.spec import MqttSection

MAX_DEVICES = 1000
_HEARTBEAT = 1.0
_PUBLISH_TIMEOUT = 2.0
_MAX_ANSWERS = 256


class _Status(msgspec.Struct):
    """`up/status`."""

    status: Literal["ready", "stopped", "lost"]
    session: str
    agent: str = ""
    labels: dict[str, str] = {}
    encoding: Literal["json", "msgpack"] = "json"
    seedable: bool = False


class MqttEnvironment(Carrier):
    """The devices of `agent` on one broker. Entering starts connecting and doesn't wait for it."""

    def __init__(
        self,
        *,
        agent: str,
        session: str,
        broker: str,
        settings: MqttSection,
        spaces: tuple[Space, Space],
        safe_action: Value,
        clock: Clock,
        generator: random.Random,
    ) -> None:
        self.counters = Counters()
        self.observation_space, self.action_space = spaces
        self.safe_action = safe_action
        self.session = session
        self.settings = settings
        self.clock = clock
        try:
            self._connection_arguments = connection_arguments(broker)
        except ValueError as error:
            raise PlantError(str(error)) from error
        self._agent = agent
        self._random = generator
        self._agent_topic = f"{settings.prefix}/v1/agents/{agent}"
        self._devices_topic = f"{settings.prefix}/v1/devices"
        self._status = "starting"
        self._client: aiomqtt.Client | None = None
        self._devices: dict[str, MqttDevice] = {}
        self._silent: dict[str, _Status] = {}
        self._changes: asyncio.Queue[Change] = asyncio.Queue(4 * MAX_DEVICES)
        self._group: asyncio.TaskGroup | None = None
        self._running: asyncio.Task[None] | None = None
        self._answers = 0
        self._flushing = False
        self._congested = False
        """The network didn't take all that the last turn had for it."""

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self._run(), name=f"mqtt-{self._agent}")
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Disconnect, without last will. Waits for the connection's end, which is limited by the client's time-out."""
        if self._running is not None:
            await end_task(self._running)
        for device in self._devices.values():
            device.leave("disconnected")

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
        attempt = 0
        while True:
            reason = ""
            try:
                async with asyncio.TaskGroup() as self._group:
                    self._group.create_task(self._watch(), name=f"mqtt-{self._agent}-watch")
                    await self._converse()
            except* aiomqtt.MqttError as errors:
                reason = str(errors.exceptions[0]) or "disconnected"
            except* Exception as errors:  # noqa: BLE001 - a fault of ours or of a library costs one connection, never control for good
                reason = repr(errors.exceptions[0])
                self.counters.dropped["link_faults"] += 1
            finally:
                was_connected, self._client = self._client is not None, None
                self._group = None
            attempt = 0 if was_connected else attempt + 1
            if attempt <= 1:
                self._note(Linked(connected=False, reason=reason))
            await asyncio.sleep(backoff(attempt, self._random))

    async def _converse(self) -> None:
        """One connection. Raises MqttError when it ends."""
        async with self._new_client() as client:
            self._client = client  # before anything is heard: a device that joins now is subscribed to, and commanded, at once
            for device in list(self._devices.values()):
                await self._subscribe(client, device.id)
                device.heard()
            await client.subscribe(f"{self._devices_topic}/+/up/status", qos=1)
            await self._announce()
            await self._describe()
            self._note(Linked(connected=True))
            async for _ in client.messages:  # messages go to `_hear`; this only ends, by an error, with the connection
                pass

    def _new_client(self) -> aiomqtt.Client:
        lost = json.dumps({"status": "lost", "session": self.session})
        return aiomqtt.Client(
            **self._connection_arguments,
            identifier=f"agentd-agent-{self._agent}-{self.session}",
            will=aiomqtt.Will(f"{self._agent_topic}/status", lost, qos=1, retain=True),
            queue_type=Inbox.type_for(self._hear),
            keepalive=5,
            timeout=5.0,
        )

    async def _subscribe(self, client: aiomqtt.Client, device: str) -> None:
        topic = f"{self._devices_topic}/{device}/up"
        # each with its own quality: a subscription with QoS 1 would make some brokers acknowledge every observation
        await client.subscribe([(f"{topic}/observation", 0), (f"{topic}/heartbeat", 0), (f"{topic}/response", 1)])

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

    async def publish(self, device: str, topic: str, payload: bytes, qos: int = 0) -> bool:
        """Publish under a device's topics; False when the broker is out of reach. The carrier's part for MqttDevice."""
        if self._client is None:
            return False
        try:
            await self._client.publish(f"{self._devices_topic}/{device}/{topic}", payload, qos=qos, timeout=_PUBLISH_TIMEOUT)
        except aiomqtt.MqttError:
            return False
        self.counters.messages["out"] += 1
        return True

    def send(self, device: str, action: bytes) -> bool:
        """Hand an action to the network in this turn of the event loop, or not at all: behind what it doesn't take it would grow old."""
        if self._client is None:
            return False
        wire = self._client._client  # noqa: SLF001 - aiomqtt's publish waits even for QoS 0: a task, a timer, a poll of the socket
        if self._congested and wire.want_write():
            self.counters.dropped["congested"] += 1
            return False
        if wire.publish(f"{self._devices_topic}/{device}/down/action", action).rc != 0:
            return False
        if not self._flushing:
            self._flushing = True
            # after aiomqtt's own callback, that has the loop watch the socket: when this closes it, nothing may begin to watch it later
            asyncio.get_running_loop().call_soon(self._flush, wire)
        self.counters.messages["out"] += 1
        return True

    def _flush(self, wire: mqtt.Client) -> None:
        self._flushing = False
        wire.loop_write()
        self._congested = wire.want_write()

    def publish_soon(self, device: str, topic: str, payload: bytes) -> None:
        """Publish from where messages arrive, which can't wait."""
        if self._group is None or self._client is None or self._answers >= _MAX_ANSWERS:
            self.counters.dropped["unanswered"] += 1
            return
        self._answers += 1
        self._group.create_task(self._answer(device, topic, payload), name=f"mqtt-{self._agent}-answer")

    async def _answer(self, device: str, topic: str, payload: bytes) -> None:
        try:
            await self.publish(device, topic, payload)
        finally:
            self._answers -= 1

    async def _watch(self) -> None:
        """Send the agent's heartbeats, and miss the devices': a hung process keeps its TCP connection."""
        sequence = 0
        while True:
            await asyncio.sleep(_HEARTBEAT)
            if self._client is None:
                continue
            payload = msgspec.json.encode(Heartbeat(session=self.session, seq=sequence))
            sequence += 1
            now = self.clock.monotonic()
            for device in list(self._devices.values()):
                if now - device.heard_at > self.settings.observation_timeout:
                    if len(self._silent) >= MAX_DEVICES:
                        self._silent.pop(next(iter(self._silent)))
                    self._silent[device.id] = _Status(
                        "ready", device.session, self._agent, dict(device.labels), device.encoding, device.seedable
                    )
                    self._leave(device, "silent")
                else:
                    await self.publish(device.id, "down/heartbeat", payload)

    # --- what arrives -------------------------------------------------------------------------------------------------

    def _hear(self, message: aiomqtt.Message) -> None:
        """Handle one message. It runs inside the MQTT client, so it must not raise, whatever was sent."""
        self.counters.messages["in"] += 1
        device_name, _, kind = str(message.topic).removeprefix(f"{self._devices_topic}/").partition("/up/")
        payload = message.payload
        if len(payload) > self.settings.max_payload:
            self.counters.dropped["too_large"] += 1
            return
        try:
            if kind == "status":
                self._hear_status(device_name, payload)
                return
            if device_name in self._silent:
                self._rejoin(device_name, payload)
            device = self._devices.get(device_name)
            if device is None:
                self.counters.dropped["unknown_device"] += 1
            elif kind == "observation":
                device.hear_observation(payload)
            elif kind == "heartbeat":
                device.hear_heartbeat(payload)
        except Exception:  # noqa: BLE001 - a retained message that raised would cut each new connection again
            self.counters.dropped["malformed"] += 1

    def _hear_status(self, name: str, payload: bytes) -> None:
        if not payload:
            return  # somebody cleared the retained status
        status = msgspec.json.decode(payload, type=_Status)
        known = self._devices.get(name)
        if status.status == "ready" and status.agent == self._agent:
            self._join(name, status)
        elif known is not None:
            if status.session != known.session:
                self.counters.dropped["older_session"] += 1
            else:
                self._leave(known, "stopped" if status.status == "stopped" else "disconnected")

    def _join(self, name: str, status: _Status) -> None:
        known = self._devices.get(name)
        if known is not None:
            if known.session == status.session:
                known.heard()  # a repeated status, as after a new subscription
                return
            self._leave(known, "superseded")
        self._silent.pop(name, None)
        if len(self._devices) >= MAX_DEVICES:
            self.counters.dropped["too_many_devices"] += 1
            return
        device = MqttDevice(self, name, session=status.session, labels=status.labels, encoding=status.encoding, seedable=status.seedable)
        self._devices[name] = device
        if self._group is not None:
            self._group.create_task(self._welcome(device), name=f"mqtt-{self._agent}-welcome-{name}")

    async def _welcome(self, device: MqttDevice) -> None:
        if self._client is not None:
            with contextlib.suppress(aiomqtt.MqttError):  # the link's task connects again, and subscribes for all devices
                await self._subscribe(self._client, device.id)
        if self._devices.get(device.id) is device:
            self._note(Joined(device))

    def _rejoin(self, name: str, payload: bytes) -> None:
        status = self._silent[name]
        session = msgspec.json.decode(payload, type=Heartbeat).session if status.encoding == "json" else ""
        if status.encoding != "json":
            session = msgspec.msgpack.decode(payload, type=Heartbeat).session
        if session == status.session:
            self._join(name, status)

    def _leave(self, device: MqttDevice, reason: str) -> None:
        del self._devices[device.id]
        device.leave(reason)
        self._note(Left(device.id, reason))

    def _note(self, change: Change) -> None:
        try:
            self._changes.put_nowait(change)
        except asyncio.QueueFull:
            self.counters.dropped["changes"] += 1
