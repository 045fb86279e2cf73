"""Identifiers of episodes, pairs, proposals and releases: sortable by time, short enough to type a prefix of."""

from random import Random

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: no i, l, o, u


def make_id(at: float, random: Random) -> str:
    """A new identifier of 18 characters: 9 of milliseconds since 1970 (`at`, Unix seconds), 9 (45 bits) of chance."""
    number = (int(at * 1000) << 45) | random.getrandbits(45)
    return "".join(_ALPHABET[(number >> shift) & 31] for shift in range(85, -1, -5))
