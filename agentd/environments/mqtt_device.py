"""One device behind MQTT: which observation is expected, which one counts, and what is answered when nobody drives."""

import asyncio
import collections
import math
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol, TypeVar

import msgspec

from agentd import codec
from agentd.clock import Clock
from agentd.environments.contract import Begun, Counters, Transition
from agentd.environments.spaces import fit
from agentd.errors import PlantLost
from agentd.records import Purpose, Space, Value
from agentd.spec import MqttSection

T = TypeVar("T")

_LARGEST = sys.float_info.max
_KEPT_OBSERVATIONS = 8
_KNOWN_EPISODES = 32
_MAX_WORDS = 500
"""Characters of a device's own words that are told."""


class Observation(msgspec.Struct):
    """`up/observation`. `fallback`: since the last observation the device used its own action."""

    session: str
    episode: str
    step: Annotated[int, msgspec.Meta(le=2**62)]
    observation: Any = None
    reward: Annotated[float, msgspec.Meta(ge=-_LARGEST, le=_LARGEST)] | None = None
    terminated: bool = False
    truncated: bool = False
    info: dict[str, Any] = {}
    fallback: bool = False


class Heartbeat(msgspec.Struct):
    """`up/heartbeat` and `down/heartbeat`."""

    session: str
    seq: int = 0


class Response(msgspec.Struct):
    """`up/response`: whether a command is obeyed."""

    id: str
    session: str
    ok: bool
    error: str | None = None


class Carrier(Protocol):
    """What a device needs of its environment."""

    counters: Counters
    observation_space: Space
    action_space: Space
    safe_action: Value
    session: str
    settings: MqttSection
    clock: Clock

    async def publish(self, device: str, topic: str, payload: bytes, qos: int = 0) -> bool:
        """Publish now; False when it can't."""
        ...

    def send(self, device: str, action: bytes) -> bool:
        """Hand an action to the network at once; False when it takes none."""
        ...

    def publish_soon(self, device: str, topic: str, payload: bytes) -> None:
        """Publish from a handler."""
        ...

    @property
    def connected(self) -> bool:
        """Whether the broker is there."""
        ...


class MqttDevice:
    """One life (session) of a device on the broker."""

    def __init__(
        self,
        carrier: Carrier,
        id: str,  # noqa: A002 - the contract's name
        *,
        session: str,
        labels: Mapping[str, str],
        encoding: Literal["json", "msgpack"],
        seedable: bool,
    ) -> None:
        self.id = id
        self.session = session
        self.labels = labels
        self.encoding: Literal["json", "msgpack"] = encoding
        self.seedable = seedable
        self.heard_at = carrier.clock.monotonic()
        self._carrier = carrier
        format_ = msgspec.json if encoding == "json" else msgspec.msgpack
        self._encode = format_.Encoder(enc_hook=_plain).encode
        self._decode_observation = format_.Decoder(Observation).decode
        self._decode_heartbeat = format_.Decoder(Heartbeat).decode
        self._decode_response = format_.Decoder(Response).decode
        self._episode: str | None = None
        self._newest = -1
        self._answered = -1
        self._commanding = False
        self._command = ""
        self._commands = 0
        self._refusal: str | None = None
        """Why the device doesn't obey the command."""
        self._known: collections.deque[str] = collections.deque(maxlen=_KNOWN_EPISODES)
        self._arrivals: collections.deque[Transition] = collections.deque(maxlen=_KEPT_OBSERVATIONS)
        self._begun: Begun | None = None
        self._gone: str | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._silent_at = math.inf
        """When whoever waits for an observation gives up."""
        self._safe_at = math.inf
        """When the plant gets the safe action because nothing was heard of it."""
        self._braked = False
        self._wakes_at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    # --- for the environment ------------------------------------------------------------------------------------------

    def hear_observation(self, payload: bytes) -> None:
        """Sort an observation in, or drop it.

        Raises msgspec.MsgspecError for what is none in the encoding that the status asked for, CodecError for an info, or an observation of
        no declared space, that can't be passed on: an episode that holds it would be lost, or cut the daemon's connection again and again,
        and a policy that it ends would be blamed.
        """
        message = self._decode_observation(payload)
        anything = self._carrier.observation_space.kind == "any"
        if message.info or anything:
            codec.decode(codec.encode((message.info, message.observation if anything else None)), object)
        self._hear(message)

    def hear_heartbeat(self, payload: bytes) -> None:
        """Note a sign of life. Raises msgspec.MsgspecError."""
        self.heard(self._decode_heartbeat(payload).session)

    def hear_response(self, payload: bytes) -> None:
        """Note that the device refuses a command. Raises msgspec.MsgspecError."""
        response = self._decode_response(payload)
        self.heard(response.session)
        if response.session == self.session and response.id == self._command and self._commanding and not response.ok:
            self._refusal = (response.error or "it doesn't say why")[:_MAX_WORDS]
            self._wake()

    def heard(self, session: str | None = None) -> None:
        """Note a sign of life."""
        if session is None or session == self.session:
            self.heard_at = self._carrier.clock.monotonic()
        else:
            self._carrier.counters.dropped["older_session"] += 1

    def leave(self, reason: str) -> None:
        """End this life: whoever waits hears PlantLost."""
        self._gone = self._gone or reason
        self._wake()
        if self._timer is not None:
            self._timer.cancel()

    def _hear(self, message: Observation) -> None:
        dropped = self._carrier.counters.dropped
        if message.session != self.session:
            dropped["older_session"] += 1
            return
        self.heard_at = self._carrier.clock.monotonic()
        if message.episode != self._episode and not self._adopt(message):
            dropped["stale"] += 1
            self._answer_safely(message, "orphan")
            return
        if message.step <= self._newest:
            dropped["stale"] += 1
            return
        self._newest = message.step
        try:
            value = fit(self._carrier.observation_space, message.observation)
        except ValueError:
            dropped["out_of_space"] += 1
            if self._begun is not None:
                self._episode = self._begun = None  # an episode can't begin with what can't be used
            if not (message.terminated or message.truncated):
                self._answered = message.step
                self._braked = True
                self._answer_safely(message, "invalid_observation")
                return
            value = None  # the end is news even where the observation is none
        transition = Transition(
            observation=value,
            reward=message.reward,
            terminated=message.terminated,
            truncated=message.truncated,
            info=message.info,
            tick=message.step,
            received_at=self.heard_at,
            fallback=message.fallback,
        )
        if self._begun is not None and message.step == 0:
            self._begun = Begun(message.episode, transition)
        else:
            if len(self._arrivals) == _KEPT_OBSERVATIONS:
                dropped["superseded"] += 1
            self._arrivals.append(transition)
        self._wake()

    def _adopt(self, message: Observation) -> bool:
        """Whether this begins an episode that nobody asked for."""
        if message.step != 0 or self._commanding or message.episode in self._known:
            return False
        self._open(message.episode)
        self._begun = Begun(message.episode, Transition(observation=None))  # completed by `_hear`
        return True

    def _open(self, episode: str) -> None:
        self._known.append(episode)
        self._episode = episode
        self._newest = self._answered = -1
        self._arrivals.clear()
        self._begun = None
        self._braked = False

    def _answer_safely(self, message: Observation, reason: str) -> None:
        if message.terminated or message.truncated:
            return
        self._carrier.counters.safe_actions[reason] += 1
        payload = self._action(message.episode, message.step, self._carrier.safe_action, revision="", safe=True)
        self._carrier.publish_soon(self.id, "down/action", payload)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- the contract -------------------------------------------------------------------------------------------------

    async def reset(self, episode: str, seed: int | None, max_steps: int, purpose: Purpose = Purpose.NORMAL) -> Transition:  # noqa: ARG002 - a plant isn't told what an episode is for
        """Begin an episode, as the contract says."""
        self._check()
        self._open(episode)
        self._commanding = True
        self._commands += 1
        self._command, self._refusal = f"{self._carrier.session}-{self._commands}", None
        command = {
            "id": self._command,
            "verb": "reset",
            "session": self.session,
            "episode": episode,
            "seed": seed,
            "max_steps": max_steps,
        }
        try:
            await self._carrier.publish(self.id, "down/command", self._encode(command), qos=1)
            return await self._next()
        finally:
            self._commanding, self._refusal = False, None

    async def step(self, action: Value, *, revision: str, safe: bool) -> Transition:
        """Answer the plant and wait, as the contract says."""
        self._check()
        if self._begun is not None:
            raise PlantLost(f"{self.id} began another episode", reason="superseded")
        sent = False
        if self._arrivals:
            self._carrier.counters.dropped["late_action"] += 1  # the plant has moved on: a late action is never sent
        elif self._episode is not None and self._newest > self._answered:
            self._answered = self._newest
            payload = self._action(self._episode, self._newest, action, revision=revision, safe=safe)
            sent = self._carrier.send(self.id, payload)
        transition = await self._next()
        return transition if sent else msgspec.structs.replace(transition, fallback=True)

    def send(self, action: Value, *, revision: str, safe: bool) -> bool:
        """Give the plant an action on its newest observation, and don't wait for what comes of it. False when the network takes none.

        The same observation may be answered again: at a fixed rate of actions there may be several of them for one.
        """
        if self._episode is None or self._newest < 0:
            return False
        self._answered = self._newest
        return self._carrier.send(self.id, self._action(self._episode, self._newest, action, revision=revision, safe=safe))

    def newest(self) -> Transition | None:
        """What came since it was last asked for, or None. Raises PlantLost."""
        self._check()
        if self._begun is not None:
            raise PlantLost(f"{self.id} began another episode", reason="superseded")
        return self._take(each=False) if self._arrivals else None

    def give_up(self, timeout: float) -> PlantLost:
        """Nobody drives the episode any more: what still comes of it is answered safely. Gives what to raise after `timeout` seconds."""
        self._episode = None
        reason = "silent" if self._carrier.connected else "disconnected"
        return PlantLost(f"{self.id} sent no observation in {timeout:g} s", reason=reason)

    async def begun(self) -> Begun:
        """Wait for an episode that the device begins by itself."""
        while self._begun is None:
            self._check()
            await self._wait()
        begun, self._begun = self._begun, None
        return begun

    async def rest(self, action: Value) -> None:
        """Leave the episode with the safe action."""
        if self._gone is None and self._episode is not None and self._newest > self._answered:
            payload = self._action(self._episode, self._newest, action, revision="", safe=True)
            self._carrier.send(self.id, payload)
        self._episode = None

    async def aclose(self) -> None:
        """The environment owns the connection: nothing is held here."""

    def _action(self, episode: str, step: int, action: Value, *, revision: str, safe: bool) -> bytes:
        message = {"session": self.session, "episode": episode, "step": step, "revision": revision, "action": action, "safe": safe}
        payload: bytes = self._encode(message)
        return payload

    def _check(self) -> None:
        if self._gone is not None:
            raise PlantLost(f"{self.id} is gone: {self._gone}", reason=self._gone)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _watch(self) -> None:
        """The dead-man timer: one per device, armed anew when it fires and not at each tick."""
        self._timer = None
        now = self._carrier.clock.monotonic()
        if now >= self._safe_at:
            self._safe_at = math.inf
            self._brake()
        if now >= self._silent_at:
            self._wake()
        elif self._silent_at < math.inf:
            self._arm()

    def _brake(self) -> None:
        """Answer the last observation again, safely: perhaps its answer was lost, and the plant still does what it did before."""
        if self._episode is not None and self._newest >= 0:
            self._braked = True
            self._carrier.counters.safe_actions["dead_man"] += 1
            self._carrier.send(self.id, self._action(self._episode, self._newest, self._carrier.safe_action, revision="", safe=True))

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_at = min(self._silent_at, self._safe_at)
        remaining = max(0.0, self._wakes_at - self._carrier.clock.monotonic())
        self._timer = asyncio.get_running_loop().call_later(remaining, self._watch)

    async def _next(self) -> Transition:
        """The newest observation of the episode. What came between is counted; its rewards are not lost."""
        timeout, dead_man = self._carrier.settings.observation_timeout, self._carrier.settings.dead_man_ms
        now = self._carrier.clock.monotonic()
        self._silent_at = now + timeout
        if dead_man is not None:
            self._safe_at = now + dead_man / 1000.0
        if self._timer is None or self._wakes_at > min(self._silent_at, self._safe_at):
            self._arm()
        try:
            while not self._arrivals:
                self._check()
                if self._begun is not None:
                    raise PlantLost(f"{self.id} began another episode", reason="superseded")
                if self._refusal is not None:
                    self._episode = None
                    raise PlantLost(f"{self.id} refuses to begin: {self._refusal}", reason="refused")
                if self._carrier.clock.monotonic() >= self._silent_at:
                    raise self.give_up(timeout)
                await self._wait()
        finally:
            self._silent_at = self._safe_at = math.inf
        return self._take()

    def _take(self, *, each: bool = True) -> Transition:
        """The newest observation. `each` of those before it was to be answered, and wasn't."""
        newest = self._arrivals.pop()
        if self._arrivals:
            self._carrier.counters.dropped["superseded"] += len(self._arrivals)
            earlier = [transition.reward for transition in self._arrivals if transition.reward is not None]
            reward = sum(earlier, newest.reward or 0.0) if earlier else newest.reward
            fallback = each or newest.fallback or any(transition.fallback for transition in self._arrivals)
            newest = msgspec.structs.replace(newest, reward=reward, fallback=fallback)
            self._arrivals.clear()
        if self._braked:
            self._braked = False
            newest = msgspec.structs.replace(newest, fallback=True, braked=True)
        if newest.last:
            self._episode = None
        return newest


def _plain(value: Any) -> Any:
    """Actions of two and more dimensions are arrays."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__qualname__} can't be sent")
