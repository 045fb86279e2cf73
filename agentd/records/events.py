"""What happened."""

from agentd.records.base import Record, Value


class Event(Record, frozen=True):
    """Something that happened and that someone may ask about later. `kind` is dotted: `release.promoted`, `watch.alarm`."""

    kind: str
    at: float
    agent: str = ""
    who: str = "agentd"
    message: str = ""
    data: dict[str, Value] = {}
    seq: int = 0
    """Position in the store's log; 0 until it is committed."""
