"""Gymnasium environments as devices: `devices` copies, each an own instance, stepped in this process as fast as the policy answers.

An observation is handed over without a pace of its own; a slow simulation holds up the other copies of its agent, and nobody else.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from agentd.clock import Clock
from agentd.environments.contract import Transition
from agentd.environments.inprocess import InProcessDevice, InProcessEnvironment
from agentd.environments.spaces import fit, from_gymnasium, plain_info, safe_default
from agentd.errors import PlantError
from agentd.records import Purpose, Space, Value


class GymnasiumDevice(InProcessDevice):
    """One copy of the environment."""

    def __init__(
        self,
        id: str,  # noqa: A002 - the contract's name
        plant: Any,
        spaces: tuple[Space, Space],
        clock: Clock,
        seed: Callable[[int], Any] = lambda _: None,
    ) -> None:
        super().__init__(id)
        self._seed = seed
        self._plant = plant
        self._observation_space, self._action_space = spaces
        self._clock = clock
        self._tick = 0
        self._max_steps = 0

    async def reset(self, episode: str, seed: int | None, max_steps: int, purpose: Purpose = Purpose.NORMAL) -> Transition:  # noqa: ARG002 - an episode has neither name nor purpose in Gymnasium
        """Begin an episode, as the contract says."""
        self._tick = 0
        self._max_steps = max_steps
        try:
            if seed is not None:
                self._seed(seed)
            observation, info = self._plant.reset(seed=seed)
        except Exception as error:
            raise PlantError(f"{self.id}: reset raised {error!r}") from error
        return self._transition(observation, None, terminated=False, truncated=False, info=info)

    async def step(self, action: Value, *, revision: str, safe: bool) -> Transition:  # noqa: ARG002 - a simulation doesn't ask who chose it
        """Answer the plant and wait, as the contract says."""
        await asyncio.sleep(0)  # other devices, the daemon and the clock get their turn
        try:
            observation, reward, terminated, truncated, info = self._plant.step(self._native(action))
        except Exception as error:
            raise PlantError(f"{self.id}: step({action!r}) raised {error!r}") from error
        self._tick += 1
        truncated = bool(truncated) or self._tick >= self._max_steps
        return self._transition(observation, float(reward), terminated=bool(terminated), truncated=truncated, info=info)

    async def aclose(self) -> None:
        """Release what is held."""
        self._plant.close()

    def _native(self, action: Value) -> Any:
        space = self._plant.action_space
        return action if self._action_space.kind == "discrete" else np.asarray(action, dtype=space.dtype).reshape(space.shape)

    def _transition(self, observation: Any, reward: float | None, *, terminated: bool, truncated: bool, info: dict[str, Any]) -> Transition:
        space = self._observation_space
        if space.kind == "discrete":
            value: Value = int(observation)
        elif len(space.shape) <= 1:
            value = observation.tolist()
        else:
            value = observation
        return Transition(
            observation=value,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            info=plain_info(info),
            tick=self._tick,
            received_at=self._clock.monotonic(),
        )


class GymnasiumEnvironment(InProcessEnvironment):
    """`devices` copies of the environment `id`, named `sim-1`, `sim-2`, ..."""

    def __init__(
        self,
        id: str,  # noqa: A002 - Gymnasium's word
        *,
        args: Mapping[str, Any],
        devices: int,
        max_steps: int,
        safe_action: Value,
        clock: Clock,
        seed_with: str | None = None,
    ) -> None:
        plants = [_make(id, args, max_steps) for _ in range(devices)]
        spaces = (from_gymnasium(plants[0].observation_space), from_gymnasium(plants[0].action_space))
        try:
            safe_action = safe_default(spaces[1]) if safe_action is None else fit(spaces[1], safe_action)
        except ValueError as error:
            raise PlantError(f"the safe action is not in the action space of {id}: {error}") from error
        seeds = [_seeding(plant, seed_with) for plant in plants]
        copies = [
            GymnasiumDevice(f"sim-{number}", plant, spaces, clock, seed)
            for number, (plant, seed) in enumerate(zip(plants, seeds, strict=True), 1)
        ]
        super().__init__(copies, spaces, safe_action)


def _seeding(plant: Any, name: str | None) -> Callable[[int], Any]:
    """The method that seeds what `reset` would seed too late; of the outermost wrapper that has one."""
    if name is None:
        return lambda _: None
    try:
        method = plant.get_wrapper_attr(name)
    except AttributeError:
        method = None
    if not callable(method):
        raise PlantError(f"[environment] seed_with: {plant.spec.id} has no method {name!r}")
    return cast("Callable[[int], Any]", method)


def _make(id: str, args: Mapping[str, Any], max_steps: int) -> Any:  # noqa: A002 - Gymnasium's word
    import gymnasium  # noqa: PLC0415 - it costs 0.3 s that a runner of MQTT devices doesn't need

    try:
        return gymnasium.make(id, max_episode_steps=max_steps, **args)
    except Exception as error:
        raise PlantError(f"the Gymnasium environment {id!r} can't be made: {error}") from error
