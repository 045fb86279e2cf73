"""The handle of a brake: the author's safe action, computed in a process of its own, where no policy can reach it."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from agentd import codec
from agentd.errors import CodecError, PolicyError
from agentd.records import Source, Value
from agentd.sandbox.limits import Limits
from agentd.sandbox.process import WorkerProcess
from agentd.sandbox.wire import Act
from agentd.sandbox.zygote import Zygote


class BrakeWorker:
    """A locked process that runs a function of the observation, on the author's source alone. `died` is set when it has ended."""

    def __init__(self, process: WorkerProcess, limits: Limits) -> None:
        self._process = process
        self._limits = limits
        self.pid = process.pid

    @property
    def died(self) -> asyncio.Event:
        """Set when the process has ended, by itself or killed."""
        return self._process.died

    @classmethod
    async def start(cls, zygote: Zygote, *, source: Source, entrypoint: str, limits: Limits, on_log: Callable[[str], None]) -> Self:
        """Fork a worker that imports `entrypoint` of `source`. Raises as PolicyWorker.start."""
        process = await WorkerProcess.start(zygote, "brake", limits.memory_bytes, on_log)
        await process.load(source, entrypoint, limits)
        return cls(process, limits)

    def ask(self, observation: Value) -> asyncio.Future[Value]:
        """The safe action on `observation`: sent before this returns. It is not checked. Killed after `step_timeout`.

        The future's errors, and this call's: PolicyError when the function raised or the observation can't be passed on, WorkerTimeout,
        WorkerDied, ProtocolViolation.
        """
        channel = self._process.channel
        number = channel.next_number()
        try:
            return channel.call(
                number, codec.encode(Act(number, "", 0, observation, replaced=False, previous=None)), self._limits.step_timeout
            )
        except CodecError as error:
            raise PolicyError(f"the observation can't be passed on: {error}") from error

    async def aclose(self) -> None:
        """End the process and wait until it has."""
        await self._process.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()
