"""The watch on the stable revision, and what follows from its alarm: a probe of the last good revision, or a new regime."""

from agentd.hosting.improver import Improver
from agentd.hosting.keeper import Keeper
from agentd.hosting.releases import Releases
from agentd.hosting.sources import comparable
from agentd.records import Event, Feedback, Phase, Release, ReleaseKind, Verdict, Watch, WatchSettings, Window
from agentd.release import machine, watch

COMMIT_EVERY = 10
"""Episodes after which a watch that goes on as before is committed: a crash may cost it fewer than this."""
PROBES = 3
"""How often an alarm is asked about while guardrails end the asking: a machine out of breath makes answers late, whoever gives them."""


class Watcher:
    """Holds the scores of one agent's stable revision against its bound. Its methods are called by who holds `deciding`."""

    def __init__(self, keeper: Keeper, releases: Releases, improver: Improver, settings: WatchSettings) -> None:
        self._keeper = keeper
        self._releases = releases
        self._improver = improver
        self._settings = settings
        self._unsaved = 0
        self._asked = 0
        """Probes of this alarm that a guardrail ended."""

    async def observe(self, normalised: float, *also: Window | Feedback) -> None:
        """The Shiryaev-Roberts watch on the stable revision, the first included. `also` is committed together with it."""
        keeper = self._keeper
        before = keeper.state.watch or watch.begin(keeper.state.stable)
        after, alarmed = watch.observe(before, normalised, settings=self._settings)
        survived = watch.survived(after, self._settings)
        if survived and (self._is_newly_good(after) or self._has_recovered(after)):
            await self._held(after, *also)
        elif alarmed:
            await self._alarm(after, *also)
        else:
            self._unsaved += 1
            if also or self._unsaved >= COMMIT_EVERY or (before.bound is None) != (after.bound is None):
                self._unsaved = 0
                await keeper.commit(*also, watch=after)
            else:
                keeper.amend(watch=after)
        if keeper.spec.optimizer.trigger == "failure" and normalised < 0.5 and not keeper.state.improving:
            await self._improver.start(f"an episode scored {normalised:.3f}")

    async def _held(self, after: Watch, *also: Window | Feedback) -> None:
        """The stable revision is a good one in this world. If the world came back to it by itself, there is nothing left to improve."""
        keeper, state = self._keeper, self._keeper.state
        events: list[Event] = []
        changes: dict[str, object] = {"watch": after}
        if self._is_newly_good(after):
            events.append(keeper.event("watch.good", f"{state.stable[:10]} has held {after.episodes} episodes", revision=state.stable))
            changes |= {"last_good": state.stable, "good": (*state.good, (state.stable, state.regime))[-20:]}
        if self._has_recovered(after):
            reason = f"{state.stable[:10]} scores above {state.target:.3f} again, without a promotion"
            event, stopping = self._improver.stopping(reason)
            events.append(event)
            changes |= stopping
        keeper.tell(*await keeper.commit(*events, *also, **changes))

    def _is_newly_good(self, after: Watch) -> bool:
        """Whether the revision that survived is to be the last good one.

        What the world has turned against survives, too, if it merely goes on being bad: it is good once its score is what it was. Another
        one that has taken its place since is the best that is known of this world, however much of the score is still missing.
        """
        state = self._keeper.state
        if (state.stable, state.regime) in state.good:
            return False
        turned_against = state.tried[:1]  # see `_drift`
        return state.target is None or state.stable not in turned_against or watch.reached(after, state.target)

    def _has_recovered(self, after: Watch) -> bool:
        """Whether the score that the optimizer works for has come back by itself."""
        state = self._keeper.state
        wanted = state.improving and state.target is not None and self._keeper.spec.optimizer.trigger != "continuous"
        return wanted and state.target is not None and watch.reached(after, state.target)

    async def _alarm(self, alarmed: Watch, *also: Window | Feedback) -> None:
        """The stable revision does worse than it did: is it the revision, or the world?"""
        keeper = self._keeper
        recent = alarmed.recent[-10:]
        mean = sum(recent) / len(recent) if recent else 0.0
        bound = alarmed.bound or 0.0
        event = keeper.event(
            "watch.alarm",
            f"{keeper.state.stable[:10]} scored {mean:.3f} of late; at least {bound:.3f} was expected",
            revision=keeper.state.stable,
            recent=mean,
            bound=bound,
            episodes=alarmed.episodes,
        )
        keeper.tell(*await keeper.commit(event, *also, watch=alarmed))
        await self.answer()

    async def answer(self) -> None:
        """Do what an alarm asks for, unless it is being done: also for one that was committed just before the daemon died."""
        keeper, releases = self._keeper, self._releases
        state = keeper.state
        if state.watch is None or not state.watch.alarmed or releases.probing:
            return
        current = releases.current
        if current is not None and current.phase in machine.CANARY | {Phase.PAUSED}:
            verdict = Verdict(phase=Phase.INCONCLUSIVE, reason="the stable revision raised an alarm", stage="watch")
            await releases.finish(current, verdict)
        if state.last_good is None or state.last_good == state.stable:
            await self._drift("no earlier revision is known to be good", state.watch.bound or 0.0)
        elif not await self._comparable(state.last_good):
            await self._drift("the last good revision was measured in another environment, or by other metrics", state.watch.bound or 0.0)
        else:
            await releases.probe(state.last_good)

    async def _comparable(self, revision: str) -> bool:
        """Whether `revision` and the stable one can run as pairs: their sources may differ, but not in what is measured."""
        store, source = self._keeper.store, self._keeper.state.source
        known = (await store.revision(revision)).source
        return known == source or comparable(await store.source(known), await store.source(source))

    async def release_ended(self, release: Release) -> None:
        """A probe that did not show the last good revision to be better: then it was the world.

        One that a guardrail ended has compared nothing, and the last good revision kept within the guardrails before: it is asked again.
        """
        if release.kind is not ReleaseKind.PROBE:
            return
        self._asked = self._asked + 1 if release.stage == "guardrail" else 0
        if 0 < self._asked < PROBES:
            await self.answer()
        elif release.phase not in {Phase.PROMOTED, Phase.ABORTED}:
            self._asked = 0
            bound = self._keeper.state.watch.bound if self._keeper.state.watch else None
            await self._drift(f"the last good revision does no better ({release.phase})", bound or 0.0)

    async def _drift(self, reason: str, bound: float) -> None:
        """The world changed: a new regime, a new watch, and the optimizer with episodes from now on only; all at once, or not at all."""
        keeper = self._keeper
        state = keeper.state
        regime = state.regime + 1
        events = [keeper.event("drift.declared", f"the world changed: {reason}", regime=regime, revision=state.stable)]
        changes: dict[str, object] = {"regime": regime, "watch": watch.begin(state.stable), "tried": (state.stable,)}
        changes["target"] = max(bound, state.target or 0.0) if state.improving else bound
        if keeper.spec.optimizer.trigger != "manual":
            event, starting = self._improver.starting("drift")
            events.append(event)
            changes |= starting
        keeper.tell(*await keeper.commit(*events, **changes))
        self._improver.wake()
