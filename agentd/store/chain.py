"""The audit chain: every event carries the hash of the one before, so that nobody can change, take out or slip in one unnoticed.

hash = sha256(hash of the event before + stored content); before the first come 32 zero bytes. What the chain can't see by itself is
the newest events cut off: check against a `head` written down elsewhere (an e-mail, another machine).
"""

import hashlib

from agentd.records import Record

GENESIS = bytes(32)


class ChainReport(Record, frozen=True):
    """What `verify_chain` found. `broken_at` is the first place in the log that doesn't fit, or None; `head` is the last hash, hex."""

    events: int
    head: str
    broken_at: int | None = None
    reason: str = ""

    @property
    def intact(self) -> bool:
        """Nothing was changed, removed or inserted."""
        return self.broken_at is None


def link(previous: bytes, content: bytes) -> bytes:
    """The hash of an event with `content`, whose predecessor has the hash `previous`."""
    return hashlib.sha256(previous + content).digest()
