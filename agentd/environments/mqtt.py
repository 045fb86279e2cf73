"""Plants behind MQTT: one connection per agent, one `MqttDevice` per device that says it belongs to the agent. Protocol: docs/devices.md.

Control wants fresh or nothing. Messages are handled where they arrive, so no queue can grow old; per device the newest observation wins.
What is stale, out of order, malformed, too large, outside the space or from an older session is dropped and counted by reason; an
observation that can't be used but asks for an action gets the safe one.
"""

import asyncio
import logging
from typing import Literal, Unpack

import aiomqtt
import msgspec

from agentd.device.connection import Refused, is_name, subscribe
from agentd.environments.contract import Joined, Left
from agentd.environments.mqtt_device import Carrier, Heartbeat, MqttDevice
from agentd.environments.mqtt_link import MAX_DEVICES, LinkOptions, MqttLink

_HEARTBEAT = 1.0

_logger = logging.getLogger("agentd.environments.mqtt")


class _Status(msgspec.Struct):
    """`up/status`."""

    status: Literal["ready", "stopped", "lost"]
    session: str
    agent: str = ""
    labels: dict[str, str] = {}
    encoding: Literal["json", "msgpack"] = "json"
    seedable: bool = False


class MqttEnvironment(MqttLink, Carrier):
    """The devices of `agent` on one broker that speak agentd's protocol."""

    def __init__(self, **options: Unpack[LinkOptions]) -> None:
        super().__init__(**options)
        self._devices_topic = f"{self.settings.prefix}/v1/devices"
        self._devices: dict[str, MqttDevice] = {}
        self._told: set[str] = set()
        """Of which devices it was told that they joined."""
        self._silent: dict[str, _Status] = {}

    async def _begin(self, client: aiomqtt.Client) -> None:
        for device in list(self._devices.values()):
            device.heard()
            if self._group is not None:
                self._group.create_task(self._welcome(device), name=f"mqtt-{self._agent}-welcome-{device.id}")
        await subscribe(client, [(f"{self._devices_topic}/+/up/status", 1)])

    def _close(self) -> None:
        for device in self._devices.values():
            device.leave("disconnected")

    async def _subscribe(self, client: aiomqtt.Client, device: MqttDevice) -> None:
        """Raises MqttError when the connection has ended. A device that the broker forbids to hear is none: the others go on."""
        topic = f"{self._devices_topic}/{device.id}/up"
        try:
            # each with its own quality: a subscription with QoS 1 would make some brokers acknowledge every observation
            await subscribe(client, [(f"{topic}/observation", 0), (f"{topic}/heartbeat", 0), (f"{topic}/response", 1)])
        except Refused as error:
            self.counters.dropped["refused"] += 1
            _logger.warning("device %s can't be driven: %s", device.id, error)
            if self._devices.get(device.id) is device:
                self._leave(device, "disconnected")

    async def publish(self, device: str, topic: str, payload: bytes, qos: int = 0) -> bool:
        """Publish under a device's topics; False when the broker is out of reach. The carrier's part for MqttDevice."""
        return await self._publish(f"{self._devices_topic}/{device}/{topic}", payload, qos)

    def send(self, device: str, action: bytes) -> bool:
        """Hand an action to the network in this turn of the event loop, or not at all."""
        return self._send(f"{self._devices_topic}/{device}/down/action", action)

    def publish_soon(self, device: str, topic: str, payload: bytes) -> None:
        """Publish from where messages arrive, which can't wait."""
        self._publish_soon(f"{self._devices_topic}/{device}/{topic}", payload)

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
                if self._devices.get(device.id) is not device:
                    continue  # it went, or began a new life, while others were sent their heartbeats
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
            elif kind == "response":
                device.hear_response(payload)
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
            if status.status == "ready":
                self._leave(known, "superseded")  # in a new life it serves another agent
            elif status.session != known.session:
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
        if not is_name(name):
            self.counters.dropped["bad_name"] += 1  # a retained status under it would cut each new connection again
            return
        if len(self._devices) >= MAX_DEVICES:
            self.counters.dropped["too_many_devices"] += 1
            return
        device = MqttDevice(self, name, session=status.session, labels=status.labels, encoding=status.encoding, seedable=status.seedable)
        self._devices[name] = device
        if self._group is not None:
            self._group.create_task(self._welcome(device), name=f"mqtt-{self._agent}-welcome-{name}")

    async def _welcome(self, device: MqttDevice) -> None:
        """Raises MqttError where it can't be heard: that ends the connection, and the next one welcomes all devices."""
        if self._client is not None:
            await self._subscribe(self._client, device)
            self._introduce(device)

    def _introduce(self, device: MqttDevice) -> None:
        """Tell of a device that is still there, once."""
        if self._devices.get(device.id) is device and device.id not in self._told:
            self._told.add(device.id)
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
        if device.id in self._told:  # not where it went before it could be heard
            self._told.remove(device.id)
            self._note(Left(device.id, reason))
