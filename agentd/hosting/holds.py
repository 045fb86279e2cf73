"""What keeps an agent from going on: a pause holds its episodes; a freeze or a quarantine holds its releases.

A freeze is an operator's. While it lasts no proposal, release or promotion begins or goes on: a canary draws no pairs, those under way no
longer count, and what waits keeps waiting. The watch goes on: a plant must not suffer from a revision that turned bad because somebody
froze the agent for the night. Its probe runs, and rolls back where the last good revision is better. Operators may still abort a release
and choose the stable revision themselves.

All agents can be frozen at once, those that come included (agentd.hosting.freeze); such a freeze is lifted for all of them.

A quarantine is the same, put on by agentd when the watch has rolled back too often (`[guardrails] max_rollbacks`): something proposes, or
judges, what does not hold. The agent serves what was rolled back to (or, with `quarantine = "safe"`, begins no more episodes) until an
operator lifts it.
"""

import contextlib

from agentd.errors import Held, RunnerError
from agentd.hosting.keeper import Keeper
from agentd.hosting.releases import Releases
from agentd.records import Hold
from agentd.release.limits import Rate, rollbacks
from agentd.runners.local import LocalRunner
from agentd.spec import parse_rate

MEMORY = 1000
"""Releases that are looked through for rollbacks."""


class Holds:
    """The holds of one agent. They are committed with its state, so they survive every restart."""

    def __init__(self, keeper: Keeper, releases: Releases) -> None:
        self._keeper = keeper
        self._releases = releases
        self._runner: LocalRunner | None = None

    async def attach(self, runner: LocalRunner) -> None:
        """Hold this runner from now on. The caller holds `deciding`. Before a route: that begins an episode."""
        self._runner = runner
        await self.examine()
        if runner.paused or self.resting:
            await (runner.pause() if self.resting else runner.resume())

    def detach(self) -> None:
        """The runner is gone; the next one is held when it is attached."""
        self._runner = None

    @property
    def resting(self) -> bool:
        """Whether no episodes begin: by an operator's pause, or in a quarantine that is to be spent safely. Neither lifts the other."""
        keeper = self._keeper
        return keeper.state.paused or (keeper.state.quarantine is not None and keeper.spec.guardrails.quarantine == "safe")

    # --- episodes ----------------------------------------------------------------------------------------------------

    async def pause(self, *, who: str, reason: str = "") -> None:
        """Start no more episodes; the plant stays in its safe state."""
        await self._set_paused(paused=True, who=who, reason=reason)

    async def resume(self, *, who: str, reason: str = "") -> None:
        """Go on after `pause`, or where a safe action has latched; that it was said is told, whatever it ends."""
        await self._set_paused(paused=False, who=who, reason=reason)

    async def _set_paused(self, *, paused: bool, who: str, reason: str) -> None:
        keeper = self._keeper
        async with keeper.deciding:
            if paused and keeper.state.paused:
                return
            word = "paused" if paused else "resumed"
            message = f"{word} by {who}" + (f": {reason}" if reason else "")
            events = await keeper.commit(keeper.event(f"agent.{word}", message, who=who, reason=reason), paused=paused)
            await self._follow()
            keeper.tell(*events)

    async def _follow(self, rested: bool | None = None) -> None:
        """Make the runner do what was committed. One that is lost meanwhile is told when it is attached again.

        Where it goes on as it `rested`, or didn't, it is told nothing: to resume also ends a safe action that has latched.
        """
        if self._runner is not None and rested is not self.resting:
            with contextlib.suppress(RunnerError):
                await (self._runner.pause() if self.resting else self._runner.resume())

    # --- releases ----------------------------------------------------------------------------------------------------

    async def freeze(self, *, who: str, reason: str = "") -> None:
        """No proposal, release or promotion begins or goes on. An agent that is frozen stays as it was frozen first."""
        keeper = self._keeper
        async with keeper.deciding:
            if keeper.state.frozen is not None:
                return
            hold = Hold(at=keeper.clock.time(), who=who, reason=reason)
            message = f"frozen by {who}" + (f": {reason}" if reason else "")
            events = await keeper.commit(keeper.event("agent.frozen", message, who=who, reason=reason), frozen=hold)
            await self._releases.halt()
            keeper.tell(*events)

    async def unfreeze(self, *, who: str, reason: str = "") -> None:
        """Go on after `freeze`: what was in progress is in progress again. Raises Held where not it alone is frozen, but every agent."""
        keeper = self._keeper
        async with keeper.deciding:
            if keeper.state.frozen is None and keeper.shown.frozen is not None:
                raise Held(f"every agent is {keeper.held}; `agentd unfreeze --all` lets them go on")
            if keeper.state.frozen is None:
                return
            message = f"unfrozen by {who}" + (f": {reason}" if reason else "")
            keeper.tell(*await keeper.commit(keeper.event("agent.unfrozen", message, who=who, reason=reason), frozen=None))
        self._releases.wake()

    async def examine(self) -> None:
        """Put the agent into quarantine if it rolled back too often. The caller holds `deciding`.

        What it looks at is what was committed: it may be asked again at any time, as after a crash between rollback and quarantine.
        """
        keeper, guardrails = self._keeper, self._keeper.spec.guardrails
        state, now = keeper.state, keeper.clock.time()
        if state.quarantine is not None:
            return
        rate = Rate(*parse_rate(guardrails.max_rollbacks))
        times = rollbacks(await keeper.store.releases(keeper.name, limit=MEMORY), since=state.lifted_at)
        if not rate.exceeded(times, now):
            return
        count = sum(now - at < rate.period for at in times)
        reason = f"rolled back {count} times, and [guardrails] max_rollbacks allows {guardrails.max_rollbacks}"
        hold = Hold(at=now, who="agentd", reason=reason)
        event = keeper.event(
            "agent.quarantined", f"in quarantine: {reason}", rollbacks=count, stable=state.stable, then=guardrails.quarantine
        )
        rested = self.resting
        events = await keeper.commit(event, quarantine=hold)
        await self._releases.halt()
        await self._follow(rested)
        keeper.tell(*events)

    async def lift(self, *, who: str, reason: str = "") -> None:
        """End the quarantine. Rollbacks so far no longer count; an operator's pause goes on."""
        keeper = self._keeper
        async with keeper.deciding:
            if keeper.state.quarantine is None:
                return
            message = f"out of quarantine by {who}" + (f": {reason}" if reason else "")
            event = keeper.event("agent.unquarantined", message, who=who, reason=reason)
            known = rollbacks(await keeper.store.releases(keeper.name, limit=MEMORY), since=0.0)
            now = max((keeper.clock.time(), *known))  # a clock that was set back puts them into the future
            rested = self.resting
            events = await keeper.commit(event, quarantine=None, lifted_at=now)
            await self._follow(rested)
            keeper.tell(*events)
        self._releases.wake()
