"""The daemon's handle on a runner on this machine: adopt the one that is there, or start one, and talk to it."""

import asyncio
import collections
import contextlib
from pathlib import Path
from typing import Self

import msgspec

from agentd.clock import Clock
from agentd.errors import CodecError, Fenced, RunnerError
from agentd.opto.budget import Grant
from agentd.records import Answered, Episode, PairPlan, Parameter, Record, Revision, Source, Value
from agentd.runners import messages
from agentd.runners.forkserver import Forkserver
from agentd.runners.launch import end, fingerprint, holder_of, start
from agentd.runners.messages import (
    Counted,
    DevicesChanged,
    DeviceState,
    Done,
    Failed,
    Finished,
    FromRunner,
    Happened,
    Hello,
    Log,
    ModelAccess,
    ModelReport,
    Request,
    ScreenReport,
    Setup,
    Welcome,
    as_error,
    frame,
    read_frame,
)
from agentd.runners.paths import RunnerPaths, short
from agentd.sandbox import Isolation
from agentd.spec import AgentSpec

__all__ = [
    "Counted",
    "DeviceState",
    "DevicesChanged",
    "Finished",
    "Happened",
    "LocalRunner",
    "Log",
    "Lost",
    "ModelAccess",
    "ModelReport",
    "ScreenReport",
]

CONNECT_TIMEOUT = 5.0
_REPLACE_TIMEOUT = 10.0
ANSWER_TIMEOUT = 10.0
"""Seconds in which a runner answers what costs it no work. One that doesn't is as good as dead, and is replaced."""
LOAD_TIMEOUT = 60.0
SCREEN_TIMEOUT = 600.0
DRAIN_MARGIN = 10.0
MAX_WAITING = 4096


class Lost(Record, frozen=True, kw_only=True):
    """The connection to the runner has ended. The runner itself may live on."""

    reason: str


Told = Finished | DevicesChanged | Happened | Log | Counted | Lost


class LocalRunner:
    """One runner, seen from the daemon. `next` gives what it tells; the other methods ask, and raise agentd.errors as the runner does.

    Attributes:
        session: the runner's life.
        adopted: whether it was there already, left by an earlier daemon.
        replaced: why a runner that was there had to be ended; empty if there was none, or if it was adopted.
        isolation: what its workers are isolated with.
        stable: the revision that it serves; None for a fresh one.
        devices: its devices when the connection was made; later ones come with `DevicesChanged`.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, paths: RunnerPaths) -> None:
        self._reader = reader
        self._writer = writer
        self._paths = paths
        self._asked: dict[int, asyncio.Future[Done | Welcome]] = {}
        self._number = 0
        self._told: collections.deque[Told] = collections.deque()
        self._news = asyncio.Event()
        self._lost: Lost | None = None
        self._listening = asyncio.create_task(self._listen(), name=f"runner-{paths.agent}")
        self.dropped = 0
        self.adopted = False
        self.replaced = ""
        self._welcome: Welcome

    @classmethod
    async def adopt_or_start(
        cls,
        *,
        spec: AgentSpec,
        state_directory: Path,
        epoch: int,
        broker: str | None,
        clock: Clock,
        seed: int | None = None,
        forkserver: Forkserver | None = None,
    ) -> Self:
        """The agent's runner: the living one if it was started as `spec` says now, else a new one.

        Raises:
            Fenced: a daemon with a higher epoch owns the runner.
            IsolationError, PlantError, RunnerError: a new runner could not begin.
        """
        paths = await asyncio.to_thread(RunnerPaths.under, state_directory, spec.agent.name)
        wanted = fingerprint(spec, broker)
        holder = await holder_of(paths)
        replaced = ""
        if holder is not None:
            try:
                runner = await cls._connect(paths, epoch)
            except Fenced:
                raise
            except RunnerError as error:
                replaced = str(error)
            else:
                if runner._welcome.fingerprint == wanted:  # noqa: SLF001 - its own class
                    runner.adopted = True
                    return runner
                replaced = "it was started with another specification"
                await runner.drain(_REPLACE_TIMEOUT)
                await runner.abandon()
            await end(paths, holder, clock)
        setup = Setup(spec=spec.model_dump_json(by_alias=True).encode(), fingerprint=wanted, broker=broker, seed=seed)
        await asyncio.to_thread(start, paths, setup, spec.environment.kind.value, forkserver)
        runner = await cls._connect(paths, epoch)
        runner.replaced = replaced
        return runner

    @classmethod
    async def dismiss(cls, agent: str, state_directory: Path, epoch: int, clock: Clock, *, timeout: float) -> None:  # noqa: ASYNC109 - as drain
        """End the agent's runner, if there is one: drained within `timeout` seconds where it answers, killed where it doesn't.

        Raises:
            Fenced: a daemon with a higher epoch owns it.
            RunnerError: it can't be ended.
        """
        paths = await asyncio.to_thread(RunnerPaths.under, state_directory, agent)
        holder = await holder_of(paths)
        if holder is None:
            return
        try:
            async with await cls._connect(paths, epoch) as runner:
                await runner.drain(timeout)
        except Fenced:
            raise
        except RunnerError:
            pass  # it doesn't answer
        await end(paths, holder, clock)

    @classmethod
    async def _connect(cls, paths: RunnerPaths, epoch: int) -> Self:
        """A conversation with the runner. Raises Fenced, or RunnerError when it doesn't answer in time or as this version does."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                with short(paths.socket) as path:
                    reader, writer = await asyncio.open_unix_connection(path)
        except (OSError, TimeoutError) as error:
            raise RunnerError(f"the runner of {paths.agent} can't be reached ({error!r}); see {paths.log}") from error
        runner = cls(reader, writer, paths)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                welcome = await runner._ask(Hello(epoch=epoch))
        except TimeoutError:
            await runner.abandon()
            raise RunnerError(f"the runner of {paths.agent} doesn't answer; see {paths.log}") from None
        except BaseException:
            await runner.abandon()
            raise
        if not isinstance(welcome, Welcome):
            await runner.abandon()
            raise RunnerError("the runner didn't welcome the daemon")
        runner._welcome = welcome
        runner._told.appendleft(DevicesChanged(devices=welcome.devices, unreachable=welcome.unreachable))
        runner._news.set()
        return runner

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def session(self) -> str:
        """The runner's life."""
        return self._welcome.session

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._welcome.pid

    @property
    def isolation(self) -> Isolation:
        """What its workers are isolated with."""
        return self._welcome.isolation

    @property
    def stable(self) -> str | None:
        """The revision that it served when it was adopted."""
        return self._welcome.stable

    @property
    def loaded(self) -> tuple[str, ...]:
        """The revisions that had workers when it was adopted."""
        return self._welcome.loaded

    @property
    def devices(self) -> tuple[DeviceState, ...]:
        """Its devices when it was adopted."""
        return self._welcome.devices

    @property
    def paused(self) -> bool:
        """Whether it was paused when it was adopted."""
        return self._welcome.paused

    @property
    def spooled(self) -> int:
        """How many finished episodes it held for this daemon."""
        return self._welcome.spooled

    # --- what it is asked ---------------------------------------------------------------------------------------------

    async def load(self, source: Source, revision: Revision) -> tuple[Parameter, ...]:
        """Warm a worker. Raises LoadError, IsolationError, WorkerDied or WorkerTimeout, as the sandbox does."""
        return (await self._do(messages.Load(source=source, revision=revision), LOAD_TIMEOUT)).parameters

    async def screen(self, revision: str, episodes: tuple[Episode, ...]) -> ScreenReport:
        """Replay recorded steps in a loaded revision's worker, as an instance of its own. Raises RunnerError if it isn't loaded."""
        stripped = tuple(_without_trace(episode) for episode in episodes)
        report = (await self._do(messages.Screen(revision=revision, episodes=stripped), SCREEN_TIMEOUT)).report
        return report if report is not None else ScreenReport()

    async def ask(self, observation: Value, *, client: str, instruction: str, limit: float) -> Answered:
        """Have a client's request answered, within `limit` seconds. Raises Overloaded, Unanswered, CodecError, RunnerError."""
        answered = (await self._do(messages.Ask(observation=observation, client=client, instruction=instruction), limit)).answered
        if answered is None:
            raise RunnerError("the runner gave no answer")
        return answered

    async def route(self, revision: str) -> None:
        """Serve a loaded revision as the stable one, from each device's next episode on. Raises RunnerError if it isn't loaded."""
        await self._do(messages.Route(revision=revision))

    async def pair(self, plan: PairPlan, lease: float = 10.0) -> None:
        """Queue a pair. Raises RunnerError if a revision isn't loaded; a missing device is told as `runner.pair_dropped`."""
        await self._do(messages.QueuePair(plan=plan, lease=lease))

    async def renew(self, lease: float = 10.0) -> None:
        """Let queued pairs go on for `lease` seconds from now."""
        await self._do(messages.Renew(lease=lease))

    async def cancel_pairs(self, device: str | None = None) -> tuple[str, ...]:
        """Forget the pairs (on one device, or everywhere) and return their ids; a running episode ends at its boundary."""
        return (await self._do(messages.CancelPairs(device=device))).dropped_pairs

    async def retire(self, revision: str) -> None:
        """End a revision's worker. Raises RunnerError for the stable one."""
        await self._do(messages.Retire(revision=revision))

    async def pause(self) -> None:
        """Begin no more episodes."""
        await self._do(messages.Pause())

    async def resume(self) -> None:
        """Begin episodes again."""
        await self._do(messages.Resume())

    async def lease_models(self, grant: Grant, access: ModelAccess | None = None) -> ModelReport:
        """Let policies ask models within `grant` from now on. What they spent that it doesn't count as taken comes back."""
        timeout = LOAD_TIMEOUT if access is not None else ANSWER_TIMEOUT  # the client of a fresh runner takes seconds to load
        report = (await self._do(messages.LeaseModels(grant=grant, access=access), timeout)).models
        if report is None:
            raise RunnerError("the runner answered out of turn")
        return report

    async def acknowledge(self, episode: str) -> None:
        """Say that an episode was taken in: the runner forgets it."""
        if self._lost is None:
            self._writer.write(frame(messages.Acknowledge(episode=episode)))
            with contextlib.suppress(ConnectionError):
                await self._writer.drain()

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 - the plants' time, not this call's
        """Finish the episodes within `timeout` seconds, leave the plants with the safe action, and end the runner.

        Go on calling `next` and `acknowledge` meanwhile: the last episodes come before the end.
        """
        with contextlib.suppress(RunnerError):  # its connection may end before its answer: what counts is that it ends
            await self._do(messages.Drain(timeout=timeout), timeout + DRAIN_MARGIN)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_TIMEOUT):
                while await holder_of(self._paths) is not None:  # noqa: ASYNC110 - another process's lock
                    await asyncio.sleep(0.02)

    async def abandon(self) -> None:
        """Close the connection only: the runner goes on controlling, and spools."""
        self._listening.cancel()
        await asyncio.wait({self._listening})
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        self._lose("abandoned")

    async def aclose(self) -> None:
        """As `abandon`."""
        await self.abandon()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.abandon()

    # --- what it tells ------------------------------------------------------------------------------------------------

    async def next(self) -> Told:
        """The next thing that the runner tells; `Lost`, again and again, once the connection has ended."""
        while not self._told:
            if self._lost is not None:
                return self._lost
            self._news.clear()
            await self._news.wait()
        return self._told.popleft()

    async def _listen(self) -> None:
        reason = "the runner closed the connection"
        try:
            while (message := await read_frame(self._reader, FromRunner)) is not None:
                if isinstance(message, Failed) and message.request == 0:
                    reason = message.message  # fenced by a newer daemon
                elif isinstance(message, Done | Welcome | Failed):
                    self._answered(message)
                else:
                    self._tell(message)
        except (CodecError, OSError) as error:
            reason = f"the connection failed: {error}"
        self._lose(reason)

    def _answered(self, message: Done | Welcome | Failed) -> None:
        asked = self._asked.pop(message.request, None)
        if asked is None or asked.done():
            return
        if isinstance(message, Failed):
            asked.set_exception(as_error(message.kind, message.message, message.fields))
        else:
            asked.set_result(message)

    def _tell(self, message: Told) -> None:
        # episodes are bounded by the runner's window; of the rest a reader that stands still misses the oldest
        if len(self._told) >= MAX_WAITING:
            for index, waiting in enumerate(self._told):
                if not isinstance(waiting, Finished):
                    del self._told[index]
                    self.dropped += 1
                    break
        self._told.append(message)
        self._news.set()

    def _lose(self, reason: str) -> None:
        if self._lost is None:
            self._lost = Lost(reason=reason)
            self._news.set()
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(RunnerError(f"the runner of {self._paths.agent} is lost: {reason}"))
        self._asked.clear()

    async def _do(self, request: Request, timeout: float = ANSWER_TIMEOUT) -> Done:  # noqa: ASYNC109 - it ends the conversation
        try:
            async with asyncio.timeout(timeout):
                answer = await self._ask(request)
        except TimeoutError:
            self._lose(f"it gave no answer to {type(request).__name__} within {timeout:g} s")
            raise RunnerError(f"the runner of {self._paths.agent} gave no answer to {type(request).__name__} in time") from None
        if not isinstance(answer, Done):
            raise RunnerError("the runner answered out of turn")
        return answer

    async def _ask(self, request: Request) -> Done | Welcome:
        if self._lost is not None:
            raise RunnerError(f"the runner of {self._paths.agent} is lost: {self._lost.reason}")
        self._number += 1
        number = self._number
        asked: asyncio.Future[Done | Welcome] = asyncio.get_running_loop().create_future()
        self._asked[number] = asked
        try:
            self._writer.write(frame(_numbered(request, number)))
            await self._writer.drain()
            return await asked
        except OSError as error:
            raise RunnerError(f"the runner of {self._paths.agent} is out of reach: {error}") from error
        finally:
            self._asked.pop(number, None)


def _numbered(request: Request, number: int) -> Request:
    return msgspec.structs.replace(request, request=number)


def _without_trace(episode: Episode) -> Episode:
    return msgspec.structs.replace(episode, trace=None)
