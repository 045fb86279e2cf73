"""Contract tests: looking things up and paging through them."""
# ruff: noqa: S101, D102 - assertions are what it is for, and the tests' names are sentences

from collections.abc import Awaitable, Callable

import pytest

from agentd.errors import Ambiguous, NotFound
from agentd.records import Phase
from agentd.testing.store.examples import SOURCE, OpenStore, agent_state, episode, proposal, release, revision


class FindingContract:
    """Prefixes, pages and phases."""

    async def test_an_id_may_be_shortened_as_long_as_only_one_has_it(self, open_store: OpenStore) -> None:
        store = await open_store()
        first, second = revision(1.0), revision(2.0)
        await store.commit(SOURCE, first, second, proposal("p-1", first, 2.0), proposal("p-1-2", first, 3.0))
        await store.commit(*(release(id_, first, second) for id_ in ("ra", "rb", "rbb", "_", "%")))
        assert await store.revision(first.id[:12]) == first
        assert (await store.release("ra")).id == "ra"
        assert (await store.release("rb")).id == "rb"  # whole ids win over longer ones
        assert (await store.proposal("p-1-")).id == "p-1-2"
        with pytest.raises(Ambiguous) as ambiguous:
            await store.release("r")
        assert ambiguous.value.matches == ("ra", "rb", "rbb")
        for key in ("", "R", "rbbb", "a%", "__", "\udcff", "r\0"):
            with pytest.raises(NotFound):
                await store.release(key)

    async def test_agents_are_found_by_their_whole_name_only(self, open_store: OpenStore) -> None:
        store = await open_store()
        await store.commit(SOURCE, revision(1.0), agent_state(revision(1.0)))
        with pytest.raises(NotFound):
            await store.agent("cart")

    async def test_pages_show_everything_once_newest_first(self, open_store: OpenStore) -> None:
        store = await open_store()
        revisions = [revision(float(gain)) for gain in range(7)]
        others = [revision(float(gain), agent="other") for gain in range(3)]
        await store.commit(SOURCE, *revisions, *others)
        await store.commit(*(release(f"r{i}", revisions[0], revisions[1]) for i in range(7)))
        for i in range(7):
            await store.add_episode(episode(f"e{i}", revisions[0], started_at=float(7 - i)), None, regime=0)
        await store.flush()

        async def walk(page: Callable[[str | None], Awaitable[tuple[str, ...]]]) -> list[str]:
            ids: list[str] = []
            while found := await page(ids[-1] if ids else None):
                assert len(found) <= 3
                ids.extend(found)
            return ids

        async def revision_page(before: str | None) -> tuple[str, ...]:
            return tuple(one.id for one in await store.revisions("cartpole", 3, before))

        async def release_page(before: str | None) -> tuple[str, ...]:
            return tuple(one.id for one in await store.releases("cartpole", 3, before))

        async def episode_page(before: str | None) -> tuple[str, ...]:
            return tuple(one.id for one in await store.episodes("cartpole", 3, before))

        assert await walk(revision_page) == [one.id for one in reversed(revisions)]
        assert await walk(release_page) == [f"r{i}" for i in reversed(range(7))]
        assert await walk(episode_page) == [f"e{i}" for i in reversed(range(7))]

    async def test_active_releases_are_those_that_have_not_ended(self, open_store: OpenStore) -> None:
        store = await open_store()
        first, second = revision(1.0), revision(2.0)
        await store.commit(SOURCE, first, second, *(release(f"r-{phase}", first, second, phase) for phase in Phase))
        active = {one.phase for one in await store.releases("cartpole", active=True)}
        over = {Phase.PROMOTED, Phase.REJECTED, Phase.PRUNED, Phase.INCONCLUSIVE, Phase.ABORTED, Phase.ROLLED_BACK}
        assert active == set(Phase) - over
