"""The beginning and the end of the episodes of one device: their records, who drives them, and where they go."""

import asyncio
from collections.abc import Awaitable
from typing import Any

from agentd.environments import Begun
from agentd.errors import SandboxError
from agentd.records import Outcome, Purpose, Role
from agentd.runners.answers import words_of
from agentd.runners.control import Control
from agentd.runners.pilot import Pilot
from agentd.runners.recording import Recording


class Episodes:
    """A recording holds its revision's worker from `open` until it is concluded or discarded."""

    def __init__(self, device: str, control: Control) -> None:
        self._device = device
        self._control = control
        self._ending: set[asyncio.Task[Any]] = set()
        self._after: dict[str, asyncio.Task[Any]] = {}
        """By revision, the end of an episode of which its worker has yet to be told: the next one begins after it."""

    def open(
        self,
        revision: str,
        role: Role,
        purpose: Purpose,
        *,
        seed: int | None = None,
        pair: str | None = None,
        begun: Begun | None = None,
    ) -> Recording:
        """The record of an episode that begins now; of a request with the id, client and instruction that it has `begun` with."""
        self._control.workers.hold(revision)
        request = begun if begun is not None and begun.waits else None
        return Recording(
            request.episode if request is not None else self._control.new_id(),
            agent=self._control.agent,
            device=request.client if request is not None and request.client else self._device,
            revision=revision,
            role=role,
            purpose=purpose,
            session=self._control.session,
            clock=self._control.clock,
            seed=seed,
            pair=pair,
            instruction=request.instruction if request is not None else "",
        )

    def pilot(self, recording: Recording, *, begun: bool = False) -> Pilot | None:
        """Its revision's worker at the stick, or None while there is none. `begun` as Pilot has it."""
        worker = self._control.workers.get(recording.revision)
        if worker is None:
            return None
        after = self._after.get(recording.revision)
        return Pilot(
            worker,
            self._device,
            episode=recording.id,
            seed=recording.seed,
            deadline=self._control.deadline,
            clock=self._control.clock,
            spawn=self._control.spawn,
            models=self._control.models,
            after=None if after is None or after.done() else after,
            begun=begun,
        )

    def conclude(self, recording: Recording, pilot: Pilot | None, outcome: Outcome) -> None:
        """End a recording off the control path: neither the plant nor the next episode waits for a trace."""
        recording.stop()
        trace: Awaitable[bytes | None] | None = None
        told = pilot is None or pilot.ends_at_once
        if pilot is not None:
            try:
                trace = pilot.end(recording.final_observation)
            except SandboxError as error:
                recording.error = recording.error or f"no trace: {words_of(error)}"
        ending = self._control.spawn(self._finish(recording, trace, outcome), f"conclude-{self._device}")
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        if not told:
            self._after = {revision: end for revision, end in self._after.items() if not end.done()}
            self._after[recording.revision] = ending

    def discard(self, recording: Recording) -> None:
        """It came to nothing: no plant ever heard of it."""
        self._control.spawn(self._control.workers.release(recording.revision), f"discard-{self._device}")

    async def wait(self) -> None:
        """Until all that were concluded are in the spool."""
        if self._ending:
            await asyncio.wait(self._ending)

    async def _finish(self, recording: Recording, ending: Awaitable[bytes | None] | None, outcome: Outcome) -> None:
        trace = None
        if ending is not None:
            try:
                trace = await ending
            except SandboxError as error:
                if not recording.error:
                    recording.error = f"no trace: {words_of(error)}"
        if trace is None and recording.has_acted:
            self._control.spool.count("lost.traces")
        self._control.spool.add_episode(recording.close(outcome, trace))
        self._control.garbage.concluded()
        await self._control.workers.release(recording.revision)
