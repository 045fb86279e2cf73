"""A callable of the agent's folder as an environment: a class with `reset` and `step`, or a function of the action.

    class Pendulum:                                    def rosenbrock(action):
        def reset(self, seed): ...                         x, y = action
            return observation                             return -((1 - x) ** 2 + 100 * (y - x * x) ** 2)
        def step(self, action): ...
            return observation, reward, terminated

`[environment] args` go to the class, or with each action to the function. A class follows Gymnasium's forms too: `reset` may return
(observation, info), `step` (observation, reward, terminated, truncated, info), or the first four with `info` last. A function gives the
reward, or (reward, info), and ends the episode; its policy observes {}. Both may be `async def`.

It is the author's own code and as trusted as an installed environment: it runs in the runner's process, stepped as fast as the policy
answers. Policy and feedback.py can import the same file, each in its own process.
"""

import asyncio
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from agentd.clock import Clock
from agentd.environments.contract import Transition
from agentd.environments.inprocess import InProcessDevice, InProcessEnvironment
from agentd.environments.spaces import fit, plain_info, safe_default
from agentd.errors import PlantError
from agentd.records import Purpose, Space, Value
from agentd.source import Entrypoint

_STEP_FORMS = "step should return (observation, reward, terminated), (..., info) or (..., truncated, info)"


class PythonDevice(InProcessDevice):
    """One plant of the author's."""

    def __init__(self, id: str, plant: Any, clock: Clock) -> None:  # noqa: A002 - the contract's name
        super().__init__(id)
        self._plant = plant
        self._clock = clock
        self._tick = 0
        self._max_steps = 0

    async def reset(self, episode: str, seed: int | None, max_steps: int, purpose: Purpose = Purpose.NORMAL) -> Transition:  # noqa: ARG002 - a plant isn't told what an episode is for
        """Begin an episode, as the contract says."""
        self._tick = 0
        self._max_steps = max_steps
        made = await self._call("reset", seed)
        gymnasium = isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], Mapping)
        observation, info = made if gymnasium else (made, {})
        return self._transition(observation, None, ended=(False, False), info=info)

    async def step(self, action: Value, *, revision: str, safe: bool) -> Transition:  # noqa: ARG002 - a plant doesn't ask who chose it
        """Answer the plant and wait, as the contract says."""
        await asyncio.sleep(0)  # other devices, the daemon and the clock get their turn
        made = await self._call("step", action)
        if not isinstance(made, tuple) or not 3 <= len(made) <= 5:
            raise PlantError(f"{self.id}: {_STEP_FORMS}, not {_shown(made)}")
        observation, reward, terminated, *rest = made
        info = rest.pop() if rest else {}
        if not isinstance(info, Mapping):
            raise PlantError(f"{self.id}: {_STEP_FORMS}, not {_shown(made)}")
        try:
            reward = None if reward is None else float(reward)
        except (TypeError, ValueError) as error:
            raise PlantError(f"{self.id}: the reward should be a number, not {_shown(reward)}") from error
        self._tick += 1
        truncated = bool(rest and rest[0]) or self._tick >= self._max_steps
        return self._transition(observation, reward, ended=(bool(terminated), truncated), info=info)

    async def aclose(self) -> None:
        """Release what is held."""
        if callable(getattr(self._plant, "close", None)):
            await self._call("close")

    async def _call(self, method: str, *arguments: Any) -> Any:
        try:
            result = getattr(self._plant, method)(*arguments)
            return await result if inspect.isawaitable(result) else result
        except Exception as error:
            raise PlantError(f"{self.id}: {method} raised {error!r}") from error

    def _transition(self, observation: Value, reward: float | None, *, ended: tuple[bool, bool], info: Mapping[str, Any]) -> Transition:
        terminated, truncated = ended
        return Transition(
            observation=list(observation) if isinstance(observation, tuple) else observation,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            info=plain_info(info),
            tick=self._tick,
            received_at=self._clock.monotonic(),
        )


class _Function:
    """A function of the action as a plant of one step."""

    def __init__(self, function: Any, args: Mapping[str, Any]) -> None:
        self._function = function
        self._args = args

    def reset(self, seed: int | None) -> Value:
        """There is nothing to see."""
        del seed
        return {}

    async def step(self, action: Value) -> tuple[Value, Any, bool, Mapping[str, Any]]:
        """What the action is worth."""
        made = self._function(action, **self._args)
        result = await made if inspect.isawaitable(made) else made
        reward, info = result if isinstance(result, tuple) else (result, {})
        return None, reward, True, info


def make_python(
    entrypoint: str,
    folder: Path,
    *,
    args: Mapping[str, Any],
    devices: int,
    spaces: tuple[Space, Space],
    safe_action: Value,
    clock: Clock,
) -> InProcessEnvironment:
    """`devices` plants, named `sim-1`, ... Raises PlantError when they can't be made."""
    action_space = spaces[1]
    try:
        safe_action = safe_default(action_space) if safe_action is None else fit(action_space, safe_action)
    except ValueError as error:
        raise PlantError(f"[environment.safe_action] value: {error}") from error
    found = _import(Entrypoint.parse(entrypoint), folder)
    plants = [PythonDevice(f"sim-{number}", _make(found, entrypoint, args), clock) for number in range(1, devices + 1)]
    return InProcessEnvironment(plants, spaces, safe_action)


def _import(entrypoint: Entrypoint, folder: Path) -> Any:
    path = next((folder / file for file in entrypoint.files if (folder / file).is_file()), None)
    # Under a name of its own: a file called like one of our modules, or an installed one, must not take its place.
    name = f"agentd_environment.{entrypoint.module}"
    spec = importlib.util.spec_from_file_location(name, path) if path is not None else None
    if spec is None or spec.loader is None:
        raise PlantError(f"there is no {folder / entrypoint.files[0]}")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # last, for the same reason
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        return getattr(module, entrypoint.name)
    except Exception as error:
        raise PlantError(f"the environment {path}:{entrypoint.name} can't be loaded: {error!r}") from error


def _make(found: Any, entrypoint: str, args: Mapping[str, Any]) -> Any:
    if not isinstance(found, type):
        if not callable(found):
            raise PlantError(f"the environment {entrypoint} is neither a class nor a function")
        return _Function(found, args)
    try:
        plant = cast("Any", found)(**args)
    except Exception as error:
        raise PlantError(f"the environment {entrypoint} can't be made: {error!r}") from error
    missing = [method for method in ("reset", "step") if not callable(getattr(plant, method, None))]
    if missing:
        raise PlantError(f"the environment {entrypoint} has no {' and no '.join(missing)}")
    return plant


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
