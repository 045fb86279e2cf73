"""The handle of a zygote: start it, ask it for workers, hear of their ends, end it."""

import asyncio
import contextlib
import os
import secrets
import socket
import sys
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from agentd import codec
from agentd.errors import CodecError, IsolationError, LoadError, SandboxError, WorkerDied
from agentd.sandbox import cgroup
from agentd.sandbox.isolation import HIGHEST_LEVEL, command
from agentd.sandbox.wire import MAX_PACKET, Exited, Fork, Forked, ForkFailed, FromZygote, Isolation, Ready, StartFailed, from_zygote

START_TIMEOUT = 60.0
FORK_TIMEOUT = 10.0
END_TIMEOUT = 5.0
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV")
"""Of the environment that a runner has from its daemon, and a trusted program from its runner: no keys, ever."""


def packet_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets that keep the borders of messages. Where the system has no SOCK_SEQPACKET (macOS), datagrams do.

    Raises SandboxError where the system gives none.
    """
    kind = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_DGRAM
    try:
        one, other = socket.socketpair(socket.AF_UNIX, kind)
    except OSError as error:
        raise SandboxError(f"no channel can be opened: {error.strerror}") from error
    if kind == socket.SOCK_DGRAM:
        for end in (one, other):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_PACKET)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * MAX_PACKET)
    return one, other


class Child(NamedTuple):
    """A forked worker. `handle` is its pidfd (-1 where there are none), `exited` gets its exit status as waitpid tells it.

    It is cancelled where the zygote ended first.
    """

    pid: int
    handle: int
    exited: asyncio.Future[int]


class Zygote:
    """A process of its own, exec'd with an empty environment, that forks workers. Use it with `async with`.

    `level` is the isolation its workers get, `isolation` what the machine gives.
    """

    level: int
    isolation: Isolation
    programs: "Zygote | None" = None
    """Where trusted programs are forked from, which are not locked down, if only code parameters are: another process than this."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self._process = process
        self._control = control
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._ready: asyncio.Future[Ready] = self._loop.create_future()
        self._forks: dict[int, asyncio.Future[Child]] = {}
        self._exits: dict[int, asyncio.Future[int]] = {}
        self._seed_key = secrets.token_bytes(32)
        self._groups = cgroup.Groups(cgroup.Branch(None, (), ""))
        self._alive = True
        self._stuck = False
        self._loop.add_reader(control, self._read)

    @property
    def alive(self) -> bool:
        """False as soon as the process is gone, and its workers with it."""
        return self._alive and (self.programs is None or self.programs.alive)

    @classmethod
    async def start(
        cls,
        *,
        imports: Sequence[str] = ("math", "numpy"),
        min_isolation: int = 2,
        max_isolation: int | None = None,
        scope: str = "agent",
    ) -> Self:
        """Start a zygote whose workers have `imports` in memory, at the best isolation that works here.

        `min_isolation` 0 declares the code trusted: nothing is locked down then, unless `max_isolation` says otherwise. With the scope
        "code" policies are trusted programs, forked from `programs`, and only their code parameters run in workers of this one.
        Raises IsolationError where the machine gives less than `min_isolation`, LoadError where an import fails, SandboxError where the
        process does not start.
        """
        highest = max_isolation if max_isolation is not None else HIGHEST_LEVEL if min_isolation > 0 else 0
        zygote = await cls._start(imports, min_isolation, highest)
        if scope == "code":
            try:
                zygote.programs = await cls._start((), 0, 0, {name: os.environ[name] for name in PASSED_ON if name in os.environ})
            except BaseException:
                await zygote.aclose()
                raise
        return zygote

    @classmethod
    async def _start(cls, imports: Sequence[str], min_isolation: int, highest: int, environment: Mapping[str, str] | None = None) -> Self:
        ours, theirs = packet_pair()
        try:
            ours.setblocking(False)  # noqa: FBT003 - the standard library takes it by position
            arguments = command("zygote", str(theirs.fileno()), str(min_isolation), str(highest), *imports, isolated=environment is None)
            process = await asyncio.create_subprocess_exec(
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=environment or {},
                cwd="/",
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except BaseException as error:
            ours.close()
            if isinstance(error, OSError):
                raise SandboxError(f"the zygote does not start: {error}") from error
            raise
        finally:
            theirs.close()
        zygote = cls(process, ours)
        try:
            async with asyncio.timeout(START_TIMEOUT):
                ready = await zygote._ready
                branch = await asyncio.to_thread(cgroup.find) if ready.level > 0 else cgroup.Branch(None, (), "")
        except TimeoutError as error:
            await zygote.aclose()
            raise SandboxError(f"the zygote was not ready after {START_TIMEOUT:g} s") from error
        except _Refused as refused:
            await zygote.aclose()
            if refused.available is None:
                raise LoadError(f"an import of the sandbox failed: {refused}") from None
            raise IsolationError(
                f"isolation level {min_isolation} was asked for, but this machine gives {refused.available}: {refused}",
                wanted=min_isolation,
                available=refused.available,
            ) from None
        except SandboxError as error:
            await zygote.aclose()
            said = await process.stderr.read(2_000) if process.stderr is not None else b""
            raise SandboxError(f"{error}: {said.decode(errors='replace').strip() or 'it said nothing'}") from error
        except BaseException:
            await zygote.aclose()
            raise
        zygote._groups = cgroup.Groups(branch)
        zygote.level, zygote.isolation = ready.level, ready.isolation.with_groups(branch.controllers, branch.explanation)
        return zygote

    @property
    def pid(self) -> int:
        """Of the process that was exec'd."""
        return self._process.pid

    @property
    def is_well(self) -> bool:
        """Whether it lives, and forks in time."""
        return self.alive and not self._stuck

    def policy_seed(self, seed: int | None) -> int | None:
        """What a policy is told of a plant's `seed`: the same for the same one, and nothing that it could be computed from."""
        if seed is None:
            return None
        digest = blake2b(str(seed).encode(), key=self._seed_key, digest_size=4).digest()
        return int.from_bytes(digest)

    async def fork(self, program: str, memory_bytes: int, channel: int, log: int, *leaf: int) -> Child:
        """A new worker with these descriptors, a trusted program's with that of its leaf.

        Raises WorkerDied where the zygote is gone, SandboxError where it could not fork.
        """
        if not self._alive:
            raise WorkerDied("the zygote is gone")
        self._number += 1
        number = self._number
        forked = self._forks[number] = self._loop.create_future()
        try:
            socket.send_fds(self._control, [codec.encode(Fork(number, program, memory_bytes))], [channel, log, *leaf])
            async with asyncio.timeout(FORK_TIMEOUT):
                child: Child = await forked
            if self.level >= 3:
                child = child._replace(pid=await asyncio.to_thread(_own_view, child.handle, child.pid))
            if self._groups.available:
                await asyncio.to_thread(self._groups.hold, child.pid, memory_bytes)  # it waits for its program, which is sent later
        except BaseException as error:
            if forked.done() and not forked.cancelled() and forked.exception() is None and forked.result().handle >= 0:
                os.close(forked.result().handle)  # nobody gets it; the worker ends with its channel
            if isinstance(error, TimeoutError):
                self._stuck = True
                raise SandboxError(f"the zygote forked no worker within {FORK_TIMEOUT:g} s") from error
            if isinstance(error, OSError):
                raise WorkerDied(f"the zygote is gone: {error}") from error
            raise
        else:
            return child
        finally:
            del self._forks[number]

    async def aclose(self) -> None:
        """End the process and with it every worker."""
        if self.programs is not None:
            await self.programs.aclose()
        self._gone("the zygote was closed")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_TIMEOUT):
                await self._process.wait()
                await asyncio.to_thread(self._groups.sweep)
                return
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await asyncio.to_thread(self._groups.sweep)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    def _gone(self, why: str) -> None:
        if not self._alive:
            return
        self._alive = False
        self._loop.remove_reader(self._control)
        self._control.close()
        if not self._ready.done():
            self._ready.set_exception(SandboxError(why))
            self._ready.exception()  # start() may be gone already
        for exited in self._exits.values():
            exited.cancel()
        self._exits.clear()
        for forked in self._forks.values():
            if not forked.done():
                forked.set_exception(WorkerDied(why))

    def _read(self) -> None:
        try:
            packet, descriptors, _, _ = socket.recv_fds(self._control, MAX_PACKET, 1)
        except BlockingIOError:
            return
        except OSError:
            packet, descriptors = b"", []
        if not packet:
            self._gone("the zygote ended")
            return
        try:
            self._handle(from_zygote(packet), descriptors)
        except CodecError as error:
            self._gone(f"the zygote is broken: {error}")

    def _handle(self, message: FromZygote, descriptors: list[int]) -> None:
        match message:
            case Ready() if not self._ready.done():
                self._ready.set_result(message)
            case StartFailed() if not self._ready.done():
                self._ready.set_exception(_Refused(message.message, message.available))
            case Forked():
                self._forked(message, descriptors)
            case ForkFailed(id=number, message=text) if number in self._forks and not self._forks[number].done():
                self._forks[number].set_exception(SandboxError(f"the zygote could not fork: {text}"))
            case Exited(pid=pid, status=status) if pid in self._exits:
                self._exits.pop(pid).set_result(status)
            case _:
                pass

    def _forked(self, message: Forked, descriptors: list[int]) -> None:
        handle = descriptors[0] if descriptors else -1
        exited: asyncio.Future[int] = self._loop.create_future()
        self._exits[message.pid] = exited
        forked = self._forks.get(message.id)
        if forked is not None and not forked.done():
            forked.set_result(Child(message.pid, handle, exited))
        elif handle >= 0:  # nobody waits any more; the worker's channel is closed, so it ends by itself
            os.close(handle)


class _Refused(Exception):  # noqa: N818 - never leaves this module
    """The zygote said why it doesn't start."""

    def __init__(self, message: str, available: int | None) -> None:
        self.available = available
        super().__init__(message)


def _own_view(handle: int, pid: int) -> int:
    """The pid of a process in other namespaces as we see it."""
    for line in Path(f"/proc/self/fdinfo/{handle}").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == "Pid":
            return int(value)
    return pid
