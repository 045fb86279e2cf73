"""Robots behind MQTT that already speak something else: `[environment.mqtt.mapping]` says what.

Such a robot is never reset and names no episodes. It is driven as it lives: an episode begins with its next observation and ends where the
robot says so, or after `max_steps`; what ends one episode so is what the next begins with. What nobody drives gets the safe action.
"""

import asyncio
import sys
from typing import Unpack

import aiomqtt
import msgspec

from agentd.device.connection import is_name, subscribe
from agentd.environments.contract import Begun, Joined, Left, Transition
from agentd.environments.mapping import Mapping, Reading
from agentd.environments.mqtt_device import Carrier, MqttDevice, Observation
from agentd.environments.mqtt_link import MAX_DEVICES, LinkOptions, MqttLink
from agentd.errors import PlantLost
from agentd.records import Purpose, Value

_WATCH_INTERVAL = 0.25


class MappedDevice(MqttDevice):
    """A robot that knows nothing of agentd."""

    def __init__(self, carrier: Carrier, id: str, mapping: Mapping) -> None:  # noqa: A002 - the contract's name
        super().__init__(carrier, id, session="", labels={}, encoding="json", seedable=False)
        self._mapping = mapping
        self._last_step = 0
        self._step = -1
        self._unclaimed: tuple[Reading, float] | None = None
        """What the robot said while no episode ran, and when."""
        self._unanswered: asyncio.TimerHandle | None = None

    def hear_reading(self, reading: Reading) -> None:
        """Sort in what the robot said."""
        self.heard()
        if self._episode is None or self._step < 0:
            self._hold(reading)
            return
        self._step += 1
        ends = self._step >= self._last_step
        self._deliver(reading._replace(truncated=reading.truncated or (ends and not reading.terminated)))
        if ends or reading.terminated or reading.truncated:
            self._step = -1
            if not (reading.terminated or reading.truncated):
                self._hold(reading)  # it only ends for us: the robot waits for an action

    def hear_garbage(self) -> None:
        """It said something that can't be read, and waits for an action all the same, unless one is on its way."""
        self.heard()
        if self._episode is None or self._newest <= self._answered:
            asyncio.get_running_loop().call_soon(self._answer_unasked, "invalid_observation")  # nothing is sent from within the client

    def leave(self, reason: str) -> None:
        """End this life."""
        self._forget()
        super().leave(reason)

    def _deliver(self, reading: Reading) -> None:
        self._hear(
            Observation(
                session=self.session,
                episode=self._episode or "",
                step=self._step,
                observation=reading.observation,
                reward=reading.reward,
                terminated=reading.terminated,
                truncated=reading.truncated,
            )
        )

    def _hold(self, reading: Reading) -> None:
        """Keep it for an episode that begins now; without one, the robot gets the safe action well before the deadline."""
        self._forget()
        if reading.terminated or reading.truncated:
            return
        self._unclaimed = (reading, self._carrier.clock.monotonic())
        self._unanswered = asyncio.get_running_loop().call_later(self._carrier.settings.deadline_ms / 2000.0, self._answer_unclaimed)
        self._wake()

    def _forget(self) -> None:
        self._unclaimed = None
        if self._unanswered is not None:
            self._unanswered.cancel()

    def _answer_unclaimed(self) -> None:
        self._unclaimed = None
        self._answer_unasked("orphan")

    def _answer_unasked(self, reason: str) -> None:
        self._carrier.counters.safe_actions[reason] += 1
        self._carrier.send(self.id, self._mapping.write(self._carrier.safe_action, safe=True))

    async def reset(self, episode: str, seed: int | None, max_steps: int, purpose: Purpose = Purpose.NORMAL) -> Transition:  # noqa: ARG002 - nobody resets this robot
        """Begin an episode with the robot's next observation, or with one that came a moment ago and that nobody has answered."""
        self._check()
        timeout = self._carrier.settings.observation_timeout
        try:
            async with asyncio.timeout(timeout):
                while (first := self._claim(episode, max_steps)) is None:
                    await self._wait()
                    self._check()
        except TimeoutError:
            reason = "silent" if self._carrier.connected else "disconnected"
            raise PlantLost(f"{self.id} sent no usable observation in {timeout:g} s", reason=reason) from None
        return first

    async def begun(self) -> Begun:
        """The robot's next episode where it is its own to begin; otherwise this waits until the robot is gone."""
        mine = self._carrier.settings.begin == "device"
        while True:
            self._check()
            episode = f"{self._carrier.session}-{self._carrier.counters.messages['in']}"
            first = self._claim(episode, sys.maxsize) if mine else None
            if first is not None:
                return Begun(episode, first)
            await self._wait()

    def _claim(self, episode: str, max_steps: int) -> Transition | None:
        """Begin with what nobody has answered yet. None if there is nothing, or nothing that can be used: that was answered safely."""
        if self._unclaimed is None:
            return None
        reading, arrived_at = self._unclaimed
        self._forget()
        self._open(episode)
        self._last_step, self._step = max_steps, 0
        self._deliver(reading)
        if not self._arrivals:
            self._episode, self._step = None, -1
            return None
        return msgspec.structs.replace(self._take(), reward=None, received_at=arrived_at)

    async def rest(self, action: Value) -> None:
        """Leave the episode with the safe action."""
        self._step = -1
        await super().rest(action)

    def _action(self, episode: str, step: int, action: Value, *, revision: str, safe: bool) -> bytes:  # noqa: ARG002 - the robot knows none of them
        return self._mapping.write(action, safe=safe)


class MappedEnvironment(MqttLink, Carrier):
    """The robots of `agent` on one broker that speak as `mapping` says. One joins with its first message, and leaves by falling silent."""

    def __init__(self, mapping: Mapping, **options: Unpack[LinkOptions]) -> None:
        super().__init__(**options)
        self._mapping = mapping
        self._devices: dict[str, MappedDevice] = {}

    async def _begin(self, client: aiomqtt.Client) -> None:
        for device in self._devices.values():
            device.heard()
        await subscribe(client, [(self._mapping.subscription, 0)])

    def _close(self) -> None:
        for device in self._devices.values():
            device.leave("disconnected")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_INTERVAL)
            now = self.clock.monotonic()
            for device in [one for one in self._devices.values() if now - one.heard_at > self.settings.observation_timeout]:
                if self._client is not None:
                    self._leave(device)

    def _leave(self, device: MappedDevice) -> None:
        del self._devices[device.id]
        device.leave("silent")
        self._note(Left(device.id, "silent"))

    async def publish(self, device: str, topic: str, payload: bytes, qos: int = 0) -> bool:  # noqa: ARG002 - actions are all it is sent
        """Publish to a robot; False when the broker is out of reach."""
        return await self._publish(self._mapping.action_topic(device), payload, qos)

    def send(self, device: str, action: bytes) -> bool:
        """Hand an action to the network in this turn of the event loop, or not at all."""
        return self._send(self._mapping.action_topic(device), action)

    def publish_soon(self, device: str, topic: str, payload: bytes) -> None:  # noqa: ARG002 - as above
        """Publish from where messages arrive, which can't wait."""
        self._publish_soon(self._mapping.action_topic(device), payload)

    def _hear(self, message: aiomqtt.Message) -> None:
        self.counters.messages["in"] += 1
        if message.retain:
            self.counters.dropped["retained"] += 1  # from who knows when; the robot's next one is fresh
            return
        if len(message.payload) > self.settings.max_payload:
            self.counters.dropped["too_large"] += 1
            return
        name = self._mapping.device(str(message.topic))
        device = self._devices.get(name)
        try:
            reading = self._mapping.read(message.payload)
        except Exception:  # noqa: BLE001 - a robot that repeats what raised would cut each new connection again
            self.counters.dropped["malformed"] += 1
            if device is not None:
                device.hear_garbage()
            return
        device = device or self._join(name)
        if device is not None:
            device.hear_reading(reading)

    def _join(self, name: str) -> MappedDevice | None:
        if not is_name(name):
            self.counters.dropped["bad_name"] += 1
            return None
        if len(self._devices) >= MAX_DEVICES:
            self.counters.dropped["too_many_devices"] += 1
            return None
        device = self._devices[name] = MappedDevice(self, name, self._mapping)
        self._note(Joined(device))
        return device
