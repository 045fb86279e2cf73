"""What operators may ask of one agent: proposals, decisions about releases, the revision to serve, and what becomes of conflicts."""

from collections.abc import Callable, Mapping, Sequence

from agentd.errors import DecodingError, Held, NotFound, ReleaseError
from agentd.hosting.improver import Improver
from agentd.hosting.keeper import Keeper
from agentd.hosting.releases import Releases
from agentd.records import Conflict, Proposal, Release, Value


class Verbs:
    """The verbs of one agent. Every one names who gave it; what begins or moves on a release is refused while the agent is held."""

    def __init__(self, keeper: Keeper, releases: Releases, improver: Improver, on_source: Callable[[], None]) -> None:
        self._keeper = keeper
        self._releases = releases
        self._improver = improver
        self._on_source = on_source

    def _begins(self, what: str) -> None:
        state, name = self._keeper.shown, self._keeper.name
        if state.held:
            whose = "--all" if state.frozen is not None and state.frozen.everywhere else name
            word = "unfreeze" if state.frozen is not None else "unquarantine"
            raise Held(f"{name} can't {what}: it is {state.held}; `agentd {word} {whose}` lets it go on")

    # --- proposals ---------------------------------------------------------------------------------------------------

    async def submit(self, values: Mapping[str, Value], *, who: str, note: str = "") -> Release:
        """An operator's proposal: it goes the way of every other one. Raises Held, ReleaseError, CodecError."""
        if not values:
            raise ReleaseError("there are no values in this proposal")
        async with self._keeper.deciding:
            self._begins("begin a release")
            return await self._releases.add(self._proposal(values, who=who, note=note))

    def _proposal(self, values: Mapping[str, Value], *, who: str, note: str) -> Proposal:
        keeper = self._keeper
        return Proposal(
            id=keeper.new_id(),
            agent=keeper.name,
            parent=keeper.state.stable,
            values=dict(values),
            algorithm="operator",
            at=keeper.clock.time(),
            reasoning=note,
            who=who,
        )

    async def retry(self, release: str, *, who: str, reason: str = "") -> Release:
        """Begin the release of an ended release's proposal again. Raises NotFound, Held, ReleaseError."""
        keeper = self._keeper
        ended = await self._known(release)
        if ended.ended_at is None:
            raise ReleaseError(f"release {ended.id} has not ended: it is {ended.phase}")
        if not ended.proposal:
            raise ReleaseError(f"release {ended.id} is a probe of the watch: it has no proposal that could be tried again")
        proposal = await keeper.store.proposal(ended.proposal)
        return await self.submit(proposal.values, who=who, note=f"retry of {ended.id}" + (f": {reason}" if reason else ""))

    async def propose(self, *, who: str) -> None:
        """Ask the optimizer for a proposal now. Raises Held."""
        async with self._keeper.deciding:
            self._begins("ask its optimizer for a proposal")
            await self._improver.start(f"asked for by {who}", who=who)

    # --- a release ---------------------------------------------------------------------------------------------------

    async def _known(self, release: str) -> Release:
        """The release that `release` names: a beginning that fits an ended one and the one in progress is neither's."""
        found = await self._keeper.store.release(release)
        if found.agent != self._keeper.name:
            raise NotFound("release", release)
        return found

    async def approve(self, release: str, *, who: str, reason: str = "") -> Release:
        """Let a release that awaits approval go on to its canary. Raises NotFound, StaleRelease, IllegalTransition, Held."""
        self._begins("begin a canary")
        return await self._releases.approve((await self._known(release)).id, who=who, reason=reason)

    async def promote(self, release: str, *, who: str, reason: str = "", full: bool = False) -> Release:
        """The next step of a release's ramp; past the last one, or with `full`, stable. Raises as `approve`."""
        self._begins("promote a release")
        return await self._releases.promote((await self._known(release)).id, who=who, reason=reason, full=full)

    async def abort(self, release: str, *, who: str, reason: str = "") -> Release:
        """End a release that is in progress, or waits. Raises NotFound, StaleRelease."""
        return await self._releases.abort((await self._known(release)).id, who=who, reason=reason)

    async def pause(self, release: str, *, who: str, reason: str = "") -> Release:
        """Draw no more pairs for a release. Raises NotFound, StaleRelease, IllegalTransition."""
        return await self._releases.pause((await self._known(release)).id, who=who, reason=reason)

    async def resume(self, release: str, *, who: str, reason: str = "") -> Release:
        """Go on with a paused release. Raises NotFound, StaleRelease, IllegalTransition, Held."""
        self._begins("resume a release")
        return await self._releases.resume((await self._known(release)).id, who=who, reason=reason)

    # --- revisions and sources ---------------------------------------------------------------------------------------

    async def set_desired(self, revision: str, *, who: str, reason: str = "") -> None:
        """Serve this revision, with its own source, from the next episode on: rollback or pin. Raises NotFound, ReleaseError."""
        keeper = self._keeper
        async with keeper.deciding:
            known = await keeper.store.revision(revision)
            if known.agent != keeper.name:
                raise NotFound("revision", revision)
            await self._releases.switch(known.id, who=who, reason=reason)
        self._on_source()

    async def rebase(self, *, keep: Sequence[str], take: Sequence[str], who: str, reason: str = "") -> Release | None:
        """Settle conflicts between learned values and a changed source: `keep` proposes the learned ones, `take` leaves the source's.

        Returns the release of what is kept, which has to win its canary like any other; None where nothing is kept.

        Raises:
            DecodingError: a path has no conflict, or is to be both kept and taken.
            Held: a release can't begin now; nothing was settled.
            ReleaseError: as of `submit`; nothing was settled.
        """
        keeper = self._keeper
        async with keeper.deciding:
            found = {conflict.path: conflict for conflict in keeper.state.conflicts}
            problems = _unsettleable(found, keep, take)
            if problems:
                raise DecodingError(problems)
            words = [f"keep {', '.join(sorted(keep))}"] * bool(keep) + [f"take the source's {', '.join(sorted(take))}"] * bool(take)
            release = keeper.new_id() if keep else ""
            event = keeper.event(
                "agent.rebased",
                f"{who} settled conflicts: {'; '.join(words)}",
                who=who,
                kept=sorted(keep),
                taken=sorted(take),
                release=release,
                reason=reason,
            )
            rest = tuple(conflict for conflict in keeper.state.conflicts if conflict.path not in {*keep, *take})
            if not keep:
                keeper.tell(*await keeper.commit(event, conflicts=rest))
                return None
            self._begins("begin a release")
            note = f"rebase: keeps what was learned of {', '.join(sorted(keep))}" + (f"; {reason}" if reason else "")
            proposal = self._proposal({path: found[path].learned for path in keep}, who=who, note=note)
            return await self._releases.add(proposal, event, release=release, conflicts=rest)


def _unsettleable(found: Mapping[str, Conflict], keep: Sequence[str], take: Sequence[str]) -> dict[str, str]:
    if not found:
        return {"": "there is no conflict between learned values and the source"}
    unknown = f"has no conflict; those that have: {', '.join(sorted(found))}"
    problems = {path: unknown for path in (*keep, *take) if path not in found}
    problems |= {path: "can't be both kept and taken" for path in keep if path in take}
    return problems or ({} if keep or take else {"": f"name what to keep or to take of: {', '.join(sorted(found))}"})
