"""Starting a runner process, and ending one that doesn't answer."""

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import cast

from agentd import codec
from agentd.clock import Clock
from agentd.errors import RunnerError
from agentd.runners import messages
from agentd.runners.forkserver import Forkserver, Order
from agentd.runners.messages import Done, Failed, Setup, as_error
from agentd.runners.paths import RunnerPaths, lock_holder
from agentd.sandbox.zygote import PASSED_ON
from agentd.spec import AgentSpec

START_TIMEOUT = 60.0
END_TIMEOUT = 5.0
_PASSED_ON = (*PASSED_ON, "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")


def fingerprint(spec: AgentSpec, broker: str | None) -> str:
    """What a runner was started with, as far as only another runner could change it.

    Without defaults: a key that a later agentd adds must not keep it from adopting the runners that an earlier one has left controlling.
    Whoever changes what a default is raises `messages.VERSION`.
    """
    parts = spec.model_dump_json(by_alias=True, include={"environment", "guardrails", "models", "sandbox"}, exclude_defaults=True)
    return hashlib.sha256(f"{messages.VERSION}\n{broker}\n{parts}".encode()).hexdigest()


async def holder_of(paths: RunnerPaths) -> int | None:
    """The process id of the agent's living runner, or None."""
    try:
        return await asyncio.to_thread(lock_holder, paths.lock)
    except RunnerError:
        return await asyncio.to_thread(lock_holder, paths.lock)  # it was just being written


async def end(paths: RunnerPaths, pid: int, clock: Clock) -> None:
    """Kill a runner that neither answers nor drained, and wait until its lock is free. Its workers die with it."""
    if await holder_of(paths) is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    limit = clock.monotonic() + END_TIMEOUT
    while await holder_of(paths) is not None:
        if clock.monotonic() > limit:
            raise RunnerError(f"the runner of {paths.agent} (process {pid}) can't be ended")
        await asyncio.sleep(0.02)


def start(paths: RunnerPaths, setup: Setup, kind: str, forkserver: Forkserver | None = None) -> None:
    """Start a runner and wait until it controls. Raises what it could not begin for. Blocks: call it in a thread.

    Forked by the forkserver, where there is one; otherwise a process that imports everything itself.
    """
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment |= {"OPENBLAS_NUM_THREADS": "1", "PYDANTIC_DISABLE_PLUGINS": "__all__"}  # it would look for them in every installed package
    ours, theirs = socket.socketpair()
    with ours:
        with theirs, open(paths.log, "wb", opener=_for_the_owner) as log:
            streams = (theirs.fileno(), theirs.fileno(), log.fileno())
            if forkserver is not None:
                order = Order(directory=str(paths.directory), agent=paths.agent, kind=kind)
                forkserver.fork(order, environment, streams)
            else:
                _exec(paths, environment, streams)
        try:
            answer = _answer(ours, codec.encode(setup))
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                if (holder := lock_holder(paths.lock)) is not None:
                    os.kill(holder, signal.SIGKILL)
            raise RunnerError(f"the runner of {paths.agent} did not begin within {START_TIMEOUT:g} s; see {paths.log}") from None
    if not answer:
        raise RunnerError(f"the runner of {paths.agent} died while it began: {paths.log.read_text(errors='replace')[-2000:]}")
    message: Done | Failed = codec.decode(answer[4:], cast("type[Done | Failed]", Done | Failed))
    if isinstance(message, Failed):
        raise as_error(message.kind, message.message, message.fields)


def _for_the_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _exec(paths: RunnerPaths, environment: Mapping[str, str], streams: tuple[int, int, int]) -> None:
    """What is exec'd forks the runner and ends."""
    command = [sys.executable, "-m", "agentd.runners.process", str(paths.directory), paths.agent]
    stdin, stdout, stderr = streams
    subprocess.run(command, stdin=stdin, stdout=stdout, stderr=stderr, env=environment, start_new_session=True, check=False)  # noqa: S603 - our own interpreter and module


def _answer(runner: socket.socket, setup: bytes) -> bytes:
    """What it says when it is told what to control; nothing where it died. Raises TimeoutError."""
    limit = time.monotonic() + START_TIMEOUT
    runner.settimeout(START_TIMEOUT)
    answer = b""
    with contextlib.suppress(ConnectionError):
        runner.sendall(setup)
        runner.shutdown(socket.SHUT_WR)
        while part := runner.recv(65_536):
            answer += part
            runner.settimeout(max(0.001, limit - time.monotonic()))
    return answer
