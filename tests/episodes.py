"""Episodes for tests to which most of their fields are the same."""

from typing import Any

import msgspec

from agentd.records import Episode, Outcome, Purpose, Role


def make_episode(**changes: Any) -> Episode:
    """An episode of the stable revision that finished after a second, without steps; `changes` are what else its fields are to be."""
    made = Episode(
        id="e",
        agent="a",
        device="d",
        revision="r",
        role=Role.STABLE,
        purpose=Purpose.NORMAL,
        outcome=Outcome.FINISHED,
        started_at=0.0,
        duration=1.0,
    )
    return msgspec.structs.replace(made, **changes)
