"""What can become of a robot after its controller was tuned: a stand-in robot changes into one of these in mid-life.

Each change measurably breaks the shipped gains, and other numbers in the same law do the work again (`benchmarks/bench_controllers.py`
measures both). What a controller does not notice is no drift: with 0.3 to 3 times the force the cart-pole's score stays where it was.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np

Env = gymnasium.Env[Any, Any]
ANGLE, ANGULAR_VELOCITY = 2, 3
"""Places in the cart-pole's observation."""
POLE_FACTOR = 3.0


class _ReversedMotor(gymnasium.ActionWrapper[Any, int, int]):
    """Pushes left when it is told right."""

    def action(self, action: int) -> int:
        return 1 - int(action)


class _ReversedSensor(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Reports one reading with the wrong sign."""

    def __init__(self, env: Env, index: int) -> None:
        super().__init__(env)
        self._index = index

    def observation(self, observation: Any) -> Any:
        changed = np.array(observation)
        changed[self._index] = -changed[self._index]
        return changed


def _reverse_angle(env: Env) -> Env:
    return _ReversedSensor(env, ANGLE)


def _reverse_gyroscope(env: Env) -> Env:
    return _ReversedSensor(env, ANGULAR_VELOCITY)


def _lengthen_pole(env: Env) -> Env:
    plant: Any = env.unwrapped
    plant.length *= POLE_FACTOR
    plant.polemass_length *= POLE_FACTOR
    return env


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that happens to a robot. `apply` takes an environment over and returns the changed one; also between two steps."""

    name: str
    description: str
    apply: Callable[[Env], Env]


CARTPOLE_CHANGES: Mapping[str, Change] = MappingProxyType(
    {
        change.name: change
        for change in (
            Change("flip-motor", "the motor is wired the other way round: a push to the right goes to the left", _ReversedMotor),
            Change("flip-gyro", "the gyroscope reports the angular velocity with the wrong sign", _reverse_gyroscope),
            Change("flip-angle", "the angle sensor reports the pole's angle with the wrong sign", _reverse_angle),
            Change("long-pole", f"the pole is {POLE_FACTOR:.0f} times as long, and as heavy as before", _lengthen_pole),
        )
    }
)
"""By name, in the order in which help texts show them."""

CHANGES: Mapping[str, Mapping[str, Change]] = MappingProxyType({"CartPole-v1": CARTPOLE_CHANGES})
"""By Gymnasium id, then by name."""


class ChangingPlant:
    """An environment and the changes that can happen to it while it runs."""

    def __init__(self, env: Env, changes: Mapping[str, Change]) -> None:
        self._env = env
        self._changes = changes

    def change(self, name: str) -> Change:
        """Make a change; the next step already feels it. Raises KeyError for one that this plant doesn't know."""
        change = self._changes[name]
        self._env = change.apply(self._env)
        return change

    def reset(self, seed: int | None) -> Any:
        """Begin an episode and return the first observation."""
        observation, _ = self._env.reset(seed=seed)
        return observation

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Go on by one tick: observation, reward, terminated, truncated, info."""
        observation, reward, terminated, truncated, info = self._env.step(action)
        return observation, float(reward), bool(terminated), bool(truncated), info
