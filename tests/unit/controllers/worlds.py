"""The worlds that the cart-pole's tests play in."""

RETUNED = {
    None: (1, 1, 1, 1),
    "flip-motor": (-1, -1, -1, -1),
    "flip-gyro": (1, 1, 1, -1),
    "flip-angle": (1, 1, -1, 1),
    "long-pole": (0.4, 0.4, 0.4, 1),
}
"""World -> factors of the four shipped numbers that balance there. None: the robot as it was tuned for."""

FOUND = [
    ("flip-gyro", (0.06666, 1.891, 3.617, -2.854)),
    ("flip-gyro", (-1.618, -3.089, 15.11, -3.018)),
    ("flip-angle", (0.5, 1.0, -10.0, 2.0)),
    ("long-pole", (-0.392, -1.69, 26.85, 0.7634)),
]
"""(World, gains) that the search found and the daemon promoted there: one that hardly minds where the cart is, one that balances in
most episodes only, one that is as good as the shipped one, and the one that the subtly worse revision costs the least."""
