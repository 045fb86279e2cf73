"""Balance a pole on a cart that can only be pushed to the left or to the right, with the same force each time."""

from agentd.trace import bundle, model


@model
class CartPole:
    """One linear law, and the sign of its result."""

    @bundle(trainable=True)
    def act(self, observation: list[float]) -> int:
        """Choose the push: 1 to the right, 0 to the left.

        `observation` is the cart's position (m) and velocity (m/s), the pole's angle (rad) and angular velocity (rad/s). Right is positive.
        The cart must get under the pole, so it is pushed to the side to which the pole leans and turns; it is let drift to one side
        only to make the pole lean back towards the centre.
        """
        position, velocity, angle, angular_velocity = observation
        lean = 0.5 * position + 1.0 * velocity + 10.0 * angle + 2.0 * angular_velocity
        return int(lean > 0.0)
