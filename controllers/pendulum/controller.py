"""Swing a pendulum up by giving it energy, then hold it upright.

The swing-up is Åström and Furuta's (Swinging up a pendulum by energy control, Automatica 36, 2000): push in the direction of the motion
while the energy is too small, against it while it is too large.
"""

import math

from agentd.trace import bundle, model, node

LIMIT = 2.0  # N m: what the motor can do
GRAVITY = 15.0  # 1/s^2: 3 g / (2 l), the angular acceleration of a pendulum that is held level


@model
class Pendulum:
    """Two laws, four numbers: the first law until the pendulum is within reach of the second."""

    def __init__(self) -> None:
        """Declare the numbers that may be tuned."""
        self.energy_gain = node(1.0, trainable=True, bounds=(-5.0, 5.0), description="torque per missing energy while swinging up")
        self.angle_gain = node(10.0, trainable=True, bounds=(-40.0, 40.0), description="torque per angle from upright, near it (N m/rad)")
        self.rate_gain = node(2.0, trainable=True, bounds=(-10.0, 10.0), description="torque per angular velocity, near it (N m s/rad)")
        self.reach = node(0.4, trainable=True, bounds=(0.0, 3.2), description="angle from upright below which the pendulum is held (rad)")

    def act(self, observation: list[float]) -> list[float]:
        """Choose the torque (N m), positive counter-clockwise, from the cosine and sine of the angle from upright and its rate (rad/s)."""
        return self.torque(observation, self.energy_gain, self.angle_gain, self.rate_gain, self.reach)

    @bundle()
    def torque(self, observation: list[float], energy_gain: float, angle_gain: float, rate_gain: float, reach: float) -> list[float]:
        """Hold the pendulum where it is within reach of upright; elsewhere bring its energy to that of standing still there."""
        cosine, sine, rate = (float(value) for value in observation)
        angle = math.atan2(sine, cosine)
        if abs(angle) < reach:
            wanted = -angle_gain * angle - rate_gain * rate
        else:
            missing = GRAVITY * (1.0 - cosine) - 0.5 * rate * rate
            wanted = energy_gain * missing * math.copysign(1.0, rate)
        return [max(-LIMIT, min(LIMIT, wanted))]
