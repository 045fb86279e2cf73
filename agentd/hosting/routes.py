"""What the runner has loaded and serves: it follows the committed state, never the other way round."""

from collections.abc import Collection

import structlog

from agentd.errors import RunnerError, SandboxError
from agentd.hosting.keeper import Keeper
from agentd.records import Source
from agentd.runners.local import LocalRunner

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Routes:
    """The runner of one agent, as far as it is there, and the revisions that it was asked to load."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._source: Source | None = None
        self._loaded: set[str] = set()
        self.runner: LocalRunner | None = None
        self.astray = ""
        """Why the runner may serve something else than what was committed: `follow` failed. Empty where it didn't."""

    def attach(self, runner: LocalRunner, source: Source) -> None:
        """Work with this runner from now on: a new one has loaded the stable revision of `source`."""
        self.runner, self._source = runner, source
        self._loaded.clear()
        self.astray = ""

    def detach(self) -> None:
        """The runner is gone; the next one gets its routes when it is attached."""
        self.runner = None

    async def load(self, revision: str) -> LocalRunner:
        """Warm the revision's worker, unless this runner was asked for it already. Raises SandboxError, RunnerError."""
        runner, source = self.runner, self._source
        if runner is None or source is None:
            raise RunnerError(f"agent {self._keeper.name} has no runner")
        if revision not in self._loaded:
            known = await self._keeper.store.revision(revision)
            if known.source != source.digest:  # a rollback goes back to the pair of source and values that was measured
                source = await self._keeper.store.source(known.source)
            await runner.load(source, known)
            self._loaded.add(revision)
        return runner

    async def follow(self, *, retire: Collection[str] = ()) -> None:
        """Stable everywhere, as it was committed; no pairs; and no workers for what is no longer needed."""
        stable = self._keeper.state.stable
        if self.runner is None:
            return
        try:
            await self.runner.cancel_pairs()
            runner = await self.load(stable)
            await runner.route(stable)
            self.astray = ""
            for revision in retire:
                if revision != stable:
                    self._loaded.discard(revision)
                    await runner.retire(revision)
        except (RunnerError, SandboxError) as error:
            self.astray = f"{stable[:10]} can't be served yet, what served before it goes on: {error}"
            log.warning("routes could not be set yet", agent=self._keeper.name, error=str(error))

    async def spare(self, device: str | None = None) -> None:
        """No more pairs on this device (on any): it goes back to stable at once, also from the middle of a pair."""
        if self.runner is None:
            return
        try:
            await self.runner.cancel_pairs(device)
        except RunnerError as error:
            log.warning("a device could not be spared yet", agent=self._keeper.name, device=device, error=str(error))
