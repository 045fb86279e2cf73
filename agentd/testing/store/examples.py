"""Small records to store."""

from typing import Protocol

import msgspec

from agentd.clock import Clock
from agentd.records import (
    AgentState,
    Episode,
    Feedback,
    Mode,
    Outcome,
    Phase,
    Proposal,
    Purpose,
    Release,
    ReleaseSettings,
    Revision,
    Role,
    Source,
    Step,
    Window,
    make_revision,
)
from agentd.store.contract import Store


class OpenStore(Protocol):
    """Opens the test's store, once more each time."""

    async def __call__(self, clock: Clock | None = None) -> Store:
        """The store; `clock` is what it shall take its time from."""
        ...


SOURCE = Source(digest="5eed", files={"controller.py": "class Controller: ...\n" * 100}, entrypoint="controller:Controller", args={"k": 1})


def revision(gain: float, agent: str = "cartpole") -> Revision:
    """A revision with one parameter."""
    return make_revision(agent, SOURCE.digest, {"gain": gain})


def agent_state(stable: Revision, **changes: object) -> AgentState:
    """An agent that runs `stable`."""
    state = AgentState(name=stable.agent, source=SOURCE.digest, stable=stable.id, mode=Mode.RELEASE)
    return msgspec.structs.replace(state, **changes)


def proposal(id_: str, parent: Revision, gain: float, at: float = 0.0) -> Proposal:
    """A proposal to change the gain."""
    return Proposal(id=id_, agent=parent.agent, parent=parent.id, values={"gain": gain}, algorithm="search", at=at)


def release(id_: str, candidate: Revision, reference: Revision, phase: Phase = Phase.SELECTION, **changes: object) -> Release:
    """A release of `candidate` against `reference`."""
    made = Release(
        id=id_,
        agent=candidate.agent,
        proposal="",
        candidate=candidate.id,
        reference=reference.id,
        phase=phase,
        settings=ReleaseSettings(),
        begun_at=1.0,
    )
    return msgspec.structs.replace(made, **changes)


def episode(id_: str, of: Revision, **changes: object) -> Episode:
    """An episode of three ticks."""
    made = Episode(
        id=id_,
        agent=of.agent,
        device="robot",
        revision=of.id,
        role=Role.STABLE,
        purpose=Purpose.NORMAL,
        outcome=Outcome.FINISHED,
        started_at=10.0,
        duration=0.5,
        steps=tuple(Step(tick, [0.1 * tick, -1.0], 1, reward=1.0, safe="late" if tick == 2 else None) for tick in range(3)),
        final_observation=[0.3, -1.0],
        seed=7,
        instruction="stay up",
    )
    return msgspec.structs.replace(made, **changes)


def feedback(of: str, normalised: float, text: str = "well done", **changes: object) -> Feedback:
    """A score on [0, 100] with words."""
    return msgspec.structs.replace(Feedback(episode=of, score=100 * normalised, normalised=normalised, text=text), **changes)


def window(of: str, closes_at: float, agent: str = "cartpole") -> Window:
    """An open window of a canary's episode."""
    return Window(
        episode=of,
        agent=agent,
        revision="5eed",
        role=Role.CANDIDATE,
        purpose=Purpose.UNSOLICITED,
        outcome=Outcome.FINISHED,
        ended_at=0.0,
        closes_at=closes_at,
        plan="x1",
        release="r1",
        probability=0.5,
    )
