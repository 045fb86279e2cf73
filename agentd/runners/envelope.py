"""The action envelope: what a plant may be given, whoever computed it (the Simplex architecture of run-time assurance, DESIGN section 7).

A sandbox makes code safe, not actions. An action is applied as the policy gave it, or it is refused and the plant gets the safe one;
nothing in between, so that a record never shows an action that neither the policy nor the operator chose.
"""

import math
from typing import Self

import numpy as np

from agentd.environments.spaces import fit
from agentd.errors import PlantError
from agentd.records import Space, Value
from agentd.spec import ActionLimitsSection, AgentSpec


class Envelope:
    """Space, limits and rate of change of an agent's actions. `rate` is the largest change from one tick to the next, per component."""

    def __init__(self, space: Space, *, limits: Space | None = None, rate: float | None = None) -> None:
        self._space = space
        self._limits = limits
        self._rate = rate

    @classmethod
    def from_spec(cls, spec: AgentSpec, space: Space) -> Self:
        """What `[guardrails] action_limits` says, on the environment's action space; where none is declared, it is the space.

        Raises PlantError where it has another number of ends than an action has components.
        """
        section = spec.guardrails.action_limits
        if not isinstance(section, ActionLimitsSection):
            return cls(space)
        limits = None
        if section.low is not None or section.high is not None:
            counts = {len(end) for end in (section.low, section.high) if isinstance(end, tuple)}
            shape = (*counts,) if space.kind == "any" else space.shape
            if len(counts) > 1 or any(count != math.prod(shape) for count in counts):
                found, wanted = " and ".join(map(str, sorted(counts))), f"{math.prod(shape)} components"
                raise PlantError(f"[guardrails] action_limits: {found} ends in low or high, where an action has {wanted}")
            limits = Space(kind="box", shape=shape, low=section.low, high=section.high)
        if space.kind == "any" and limits is not None:
            space, limits = limits, None
        return cls(space, limits=limits, rate=section.rate)

    def check(self, action: Value, previous: Value | None) -> Value:
        """`action` as a plain value of the space. Raises ValueError, saying why, when the plant must not get it.

        `previous` is the policy's action at the tick before, or None where there was none (the first tick, or one with the safe
        action): the rate of change then has nothing to be measured against.
        """
        fitted = fit(self._space, action)
        if self._limits is not None:
            fit(self._limits, fitted)
        if self._rate is not None and previous is not None:
            change = float(np.max(np.abs(np.subtract(fitted, previous)), initial=0.0))
            if change > self._rate * (1 + 1e-9):
                raise ValueError(f"changes by {change:.6g} from one tick to the next, more than {self._rate:.6g}")
        return fitted
