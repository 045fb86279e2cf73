"""A stand-in robot: any Gymnasium environment behind MQTT, in a process of its own.

    python -m agentd.environments.standin --broker mqtt://127.0.0.1:1883 --device robot-1 --agent cartpole --env CartPole-v1

With `--change-from-stdin` each line `change NAME` breaks or alters the robot while it runs (agentd.environments.changes), and is
answered on the standard output by `changed NAME`; `quit`, or the end of the input, ends it. `--log FILE` keeps the device's own record
of each action that was applied: JSON lines of episode, step, action and source (action, safe or fallback).
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import uvloop

from agentd.device import Applied, Device
from agentd.environments.changes import CHANGES, ChangingPlant
from agentd.environments.spaces import fit, from_gymnasium, safe_default


class StandIn:
    """A Gymnasium environment as a Device. `change` alters it while it runs."""

    def __init__(
        self,
        env: str,
        *,
        broker: str,
        device: str,
        agent: str,
        max_steps: int = 200,
        step_ms: float = 0.0,
        action_timeout: float = 0.25,
        fallback: Any = None,
        begin_after: float | None = None,
        prefix: str = "agentd",
        log: Callable[[Applied], None] | None = None,
    ) -> None:
        import gymnasium  # noqa: PLC0415 - `--help` needn't pay for it

        self._simulation: Any = gymnasium.make(env, max_episode_steps=max_steps)
        self._space = from_gymnasium(self._simulation.action_space)
        self._plant = ChangingPlant(self._simulation, CHANGES.get(env, {}))
        self.device = Device(
            broker,
            device,
            agent=agent,
            on_reset=self._plant.reset,
            on_step=self._step,
            fallback=safe_default(self._space) if fallback is None else fallback,
            action_timeout=action_timeout,
            step_interval=step_ms / 1000.0,
            max_steps=max_steps,
            begin_after=begin_after,
            accepts=self._accepts,
            log=log,
            prefix=prefix,
            labels={"stand-in": env},
        )

    def change(self, name: str) -> str:
        """Make a change, from the next tick on, and return its description. Raises KeyError for one that isn't known."""
        return self._plant.change(name).description

    async def run(self) -> None:
        """Serve until `device.stop()`."""
        try:
            await self.device.run()
        finally:
            self._simulation.close()

    def _step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._space.kind == "box":
            native = self._simulation.action_space
            action = np.asarray(fit(self._space, action), dtype=native.dtype).reshape(native.shape)
        return self._plant.step(action)

    def _accepts(self, action: Any) -> bool:
        try:
            fit(self._space, action)
        except ValueError:
            return False
        return True


async def _read_changes(robot: StandIn) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode().strip():
        verb, _, name = line.partition(" ")
        if verb == "change":
            try:
                robot.change(name)
                answer = f"changed {name}"
            except KeyError:
                answer = f"unknown {name}"
            sys.stdout.write(f"{answer}\n")
            sys.stdout.flush()
        elif verb == "quit":
            break
    robot.device.stop()


async def serve(arguments: argparse.Namespace) -> None:
    """Run the stand-in robot that the command line asks for, until SIGTERM, SIGINT or the end of the changes."""
    with contextlib.ExitStack() as stack:
        log = None
        if arguments.log is not None:
            log = _log_to(stack.enter_context(arguments.log.open("a", encoding="utf-8", buffering=1)))
        robot = StandIn(
            arguments.env,
            broker=arguments.broker,
            device=arguments.device,
            agent=arguments.agent,
            max_steps=arguments.max_steps,
            step_ms=arguments.step_ms,
            action_timeout=arguments.action_timeout,
            begin_after=arguments.begin_after,
            prefix=arguments.prefix,
            log=log,
        )
        for name in arguments.change:
            robot.change(name)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, robot.device.stop)
        async with asyncio.TaskGroup() as group:
            if arguments.change_from_stdin:
                changes = group.create_task(_read_changes(robot), name="changes")
            await robot.run()
            if arguments.change_from_stdin:
                changes.cancel()


def _log_to(file: TextIO) -> Callable[[Applied], None]:
    def log(applied: Applied) -> None:
        action = applied.action.tolist() if hasattr(applied.action, "tolist") else applied.action
        line = {"episode": applied.episode, "step": applied.step, "action": action, "source": applied.source}
        file.write(json.dumps(line | {"revision": applied.revision, "waited": applied.waited}) + "\n")

    return log


def parser() -> argparse.ArgumentParser:
    """The command line, also of `agentd device gymnasium`."""
    result = argparse.ArgumentParser(prog="python -m agentd.environments.standin", description="Any Gymnasium environment behind MQTT.")
    result.add_argument("--broker", required=True, help="mqtt://host:port")
    result.add_argument("--device", default="robot-1", help="the device's name")
    result.add_argument("--agent", required=True, help="the agent that shall drive it")
    result.add_argument("--env", default="CartPole-v1", help="a Gymnasium environment")
    result.add_argument("--max-steps", type=int, default=200)
    result.add_argument("--step-ms", type=float, default=0.0, help="milliseconds from tick to tick; 0: as fast as actions come")
    result.add_argument("--action-timeout", type=float, default=0.25, help="seconds after which the robot uses its own fallback")
    result.add_argument("--begin-after", type=float, help="seconds without a command after which it begins an episode by itself")
    result.add_argument("--prefix", default="agentd")
    result.add_argument("--change", action="append", default=[], help="a change to begin with; may be repeated")
    result.add_argument("--change-from-stdin", action="store_true", help="read `change NAME` and `quit` from the standard input")
    result.add_argument("--log", type=Path, help="append a JSON line for each action that was applied")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stand-in robot."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    uvloop.run(serve(parser().parse_args(arguments)))


if __name__ == "__main__":
    main()
