"""The runner process: `python -m agentd.runners.process DIRECTORY AGENT`, or forked (`forkserver`), with a `Setup` on its standard input.

It leaves its parent at once (an own session, reparented), so that no daemon's death reaches it, and says on its standard output whether it
controls: one frame, `Done` or `Failed`, then the end of the stream. Its lock is held for as long as it lives.
"""

import asyncio
import contextlib
import logging
import os
import random
import secrets
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import uvloop

from agentd import codec
from agentd.clock import SystemClock
from agentd.errors import AgentdError, RunnerError
from agentd.records import Record
from agentd.runners.messages import Done, Setup, failure, frame
from agentd.runners.paths import RunnerPaths, take_lock
from agentd.runners.runner import Runner

_LOCK_PATIENCE = 40


def main() -> None:
    """Detach, and run."""
    directory, agent = sys.argv[1:]
    if os.fork():
        os._exit(0)  # the daemon waits for this process and never has to reap the runner
    run(directory, agent)


def run(directory: str, agent: str) -> None:
    """Read what is to be controlled, and do it."""
    os.setsid()
    with contextlib.suppress(OSError):  # Linux only: `ps -o pid,comm` and `top` tell whose runner it is
        Path("/proc/self/comm").write_text(f"agentd:{agent}"[:15])
    setup = codec.decode(sys.stdin.buffer.read(), Setup)
    paths = RunnerPaths(Path(directory), agent)
    answer = _Answer(os.dup(1))
    _redirect(paths.log)
    logging.getLogger("mqtt").setLevel(logging.CRITICAL)  # a line for each message that can't be sent would fill the log in a night
    try:
        control(setup, paths, lambda: answer.say(Done(request=0)))
    except* AgentdError as group:
        traceback.print_exception(group)
        answer.say(failure(0, _first(group)))
        raise SystemExit(1) from None


def control(setup: Setup, paths: RunnerPaths, on_ready: Callable[[], None]) -> None:
    """Take the lock and control until drained. Raises AgentdError when it can't begin."""
    session = secrets.token_hex(8)
    lock = _lock(paths, session)

    async def run() -> None:
        runner = Runner(setup, paths, session=session, clock=SystemClock(), generator=random.SystemRandom())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, runner.drain_soon)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        await runner.run(on_ready)

    try:
        uvloop.run(run())
    finally:
        os.close(lock)


def _lock(paths: RunnerPaths, session: str) -> int:
    for _ in range(_LOCK_PATIENCE):
        lock = take_lock(paths.lock, f"{os.getpid()} {session}\n")
        if lock is not None:
            return lock
        time.sleep(0.025)  # somebody may only be looking who holds it
    raise RunnerError(f"another runner of {paths.agent} holds {paths.lock}")


def _redirect(log: Path) -> None:
    """Nothing of the daemon's is kept open: the standard streams go to the log file."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for source, target in ((nothing, 0), (written, 1), (written, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(written)


class _Answer:
    """The one frame that the daemon waits for."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def say(self, message: Record) -> None:
        """Say it and hang up; what comes later goes to the log only."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        try:
            os.write(descriptor, frame(message))
        except BrokenPipeError:
            sys.stderr.write("the daemon that started this runner is gone\n")
        os.close(descriptor)


def _first(group: BaseExceptionGroup[AgentdError]) -> AgentdError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


if __name__ == "__main__":
    main()
