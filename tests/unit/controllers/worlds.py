"""The worlds that the cart-pole's tests play in."""

RETUNED = {
    None: (1, 1, 1, 1),
    "flip-motor": (-1, -1, -1, -1),
    "flip-gyro": (1, 1, 1, -1),
    "flip-angle": (1, 1, -1, 1),
    "long-pole": (0.4, 0.4, 0.4, 1),
}
"""World -> factors of the four shipped numbers that balance there. None: the robot as it was tuned for."""
