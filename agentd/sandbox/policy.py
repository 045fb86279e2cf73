"""The handle of a policy worker: one process per revision, with a policy instance per device."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

import msgspec

from agentd import codec
from agentd.errors import CodecError, LoadError, PolicyError, ProtocolViolation, SandboxError
from agentd.records import Parameter, Revision, Source, Value
from agentd.sandbox.channel import Desk
from agentd.sandbox.limits import Limits
from agentd.sandbox.process import WorkerProcess
from agentd.sandbox.wire import MAX_TRACE, Act, Asked, Assign, Fetch, Finish, LoadState, Reset, State, Told, Trace
from agentd.sandbox.zygote import Zygote

UNCHANGED: Value = msgspec.UNSET
"""The plant got what the policy answered."""


class NoModels:
    """The desk where nobody gives a program the models that it may ask elsewhere."""

    def __init__(self, most: int) -> None:
        self.most = most

    def ask(self, question: Asked, until: float, tell: Callable[[Told], None]) -> None:  # noqa: ARG002 - the contract's arguments
        """Refuse."""
        tell(Told(question.id, question.number, "there are no models here", error="ModelError"))

    def close(self) -> None:
        """Nothing is open."""


class Cut(NamedTuple):
    """An episode that was ended and whose trace has not been collected yet."""

    device: str
    number: int
    answered: asyncio.Future[Value]


class PolicyWorker:
    """A locked process that serves one revision, or a trusted program with the locked process of its code parameters.

    Calls for several devices queue up: one is open at a time.

    Errors of every call: PolicyError when the program raised (the worker goes on), WorkerTimeout and ProtocolViolation (it was killed),
    WorkerDied. `died` is set, and `reason` says why, when the process has ended.
    """

    def __init__(self, process: WorkerProcess, zygote: Zygote, limits: Limits, parameters: tuple[Parameter, ...]) -> None:
        self._process = process
        self._zygote = zygote
        self._limits = limits
        self._channel = process.channel
        self.model_calls = limits.model_calls
        self._nobody = NoModels(limits.model_calls) if limits.model_calls else None
        self.parameters = parameters
        self.isolation = zygote.level
        self.pid = process.pid
        self.leaf_pid = process.leaf.pid if process.leaf is not None else None

    @property
    def died(self) -> asyncio.Event:
        """Set when the process has ended, by itself or killed."""
        return self._process.died

    @property
    def reason(self) -> SandboxError | None:
        """Why it ended."""
        return self._process.reason

    @classmethod
    async def start(cls, zygote: Zygote, *, source: Source, revision: Revision, limits: Limits, on_log: Callable[[str], None]) -> Self:
        """Fork a worker, lock it down, then let it import the source and take the revision's values.

        Where the zygote has `programs`, it is a trusted program, and what is locked down is the process for its code parameters.
        `on_log` gets each line that the program prints or logs, on the event loop. Raises LoadError where the program raises or does not
        fit the revision, IsolationError, WorkerDied, WorkerTimeout.
        """
        if zygote.programs is None:
            process = await WorkerProcess.start(zygote, "policy", limits.memory_bytes, on_log)
        else:
            process = await WorkerProcess.start_trusted(zygote, zygote.programs, limits.memory_bytes, on_log)
        answer = await process.load(source, source.entrypoint, limits, data_only=zygote.level == 0, model_calls=limits.model_calls)
        try:
            # they are told before any of the revision's code is there, which could tell others
            parameters = msgspec.convert(answer, tuple[Parameter, ...])
            await process.call(lambda number: Assign(number, revision.values), limits.load_timeout)
        except msgspec.ValidationError as error:
            await process.aclose()
            raise LoadError(f"the worker described its parameters in a way that no worker does: {error}") from error
        except BaseException:
            await process.aclose()
            raise
        return cls(process, zygote, limits, parameters)

    async def reset(self, device: str, episode: str, seed: int | None) -> None:
        """Begin an episode on `device`: its policy instance is made, or reset. `episode` is not told to the policy.

        Nor is the plant's `seed`: a policy that knew it could compute what the plant will do. It gets one derived from it.
        """
        del episode
        derived = self._zygote.policy_seed(seed)
        await self._process.call(lambda number: Reset(number, device, derived), self._limits.load_timeout)

    async def act(self, device: str, tick: int, observation: Value, *, safe: Value = UNCHANGED, desk: Desk | None = None) -> Value:
        """The policy's action for `observation`, as a plain value: untrusted, anything may be in it.

        `safe` is what the plant got at the tick before, when it was not the policy's answer (a safe or a clipped action): the
        trace then shows that instead. `desk` answers what the program asks of models. Raises WorkerTimeout after `step_timeout`, within
        which these answers come too.
        """
        return await self.ask(device, tick, observation, safe=safe, desk=desk)

    def ask(
        self, device: str, tick: int, observation: Value, *, safe: Value = UNCHANGED, desk: Desk | None = None
    ) -> asyncio.Future[Value]:
        """`act` for who doesn't wait in a task of its own: the request is sent before this returns, the future gets the action."""
        replaced = safe is not UNCHANGED
        number = self._channel.next_number()
        request = Act(number, device, tick, observation, replaced, safe if replaced else None)
        try:
            return self._channel.call(number, codec.encode(request), self._limits.step_timeout, desk=desk or self._nobody)
        except CodecError as error:
            raise PolicyError(f"the observation can't be passed on: {error}") from error

    async def finish(self, device: str, final_observation: Value) -> bytes | None:
        """End the episode; its encoded TraceGraph (untrusted) with `episode_end` as output.

        None if there was no tick, or if it is larger than MAX_TRACE.
        """
        return await self.collect(self.cut(device, final_observation))

    def cut(self, device: str, final_observation: Value) -> Cut:
        """End the episode in the time of a tick: the policy may go on at once, in the next one. Its trace waits to be collected."""
        number = self._channel.next_number()
        try:
            message = codec.encode(Finish(number, device, final_observation))
            answered = self._channel.call(number, message, self._limits.step_timeout)
        except CodecError as error:
            raise PolicyError(f"the final observation can't be passed on: {error}") from error
        return Cut(device, number, answered)

    async def collect(self, cut: Cut) -> bytes | None:
        """The encoded TraceGraph (untrusted) of an episode that was cut, as `finish` gives it.

        The worker makes it in slices of a fraction of a millisecond, one for each call, and only while no other call waits: ticks of this
        and other devices pass in between. None as well if that took longer than `load_timeout`.
        """
        await cut.answered
        loop = asyncio.get_running_loop()
        limit = loop.time() + self._limits.load_timeout
        parts, missing = [], MAX_TRACE
        while loop.time() < limit:
            number = self._channel.next_number()
            message = codec.encode(Fetch(number, cut.device, cut.number))
            part = await self._channel.call(number, message, self._limits.step_timeout, urgent=False)
            if not isinstance(part, Trace) or len(part.content) > missing:
                what = "too long a trace" if isinstance(part, Trace) else f"a {type(part).__name__} for a trace"
                error = ProtocolViolation(f"the worker gave {what} and was killed")
                self._process.end(error)
                raise error
            parts.append(part.content)
            missing -= len(part.content)
            if not part.more:
                return b"".join(parts) or None
        return None

    async def state(self, device: str) -> Value:
        """What the policy hands over to a successor (its `state()`), None if it has no such method."""
        return await self._process.call(lambda number: State(number, device), self._limits.step_timeout)

    async def load_state(self, device: str, value: Value) -> None:
        """Pass on what a predecessor handed over."""
        await self._process.call(lambda number: LoadState(number, device, value), self._limits.step_timeout)

    def kill(self) -> None:
        """End the process now. Open calls get WorkerDied."""
        self._process.kill()

    async def aclose(self) -> None:
        """End the process and wait until it has."""
        await self._process.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()
