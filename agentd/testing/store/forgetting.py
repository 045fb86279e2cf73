"""Contract tests: retention."""
# ruff: noqa: S101, D102 - assertions are what it is for, and the tests' names are sentences

import random

import pytest

from agentd.errors import Ambiguous, NotFound
from agentd.records import Event, Origin, Phase, Provenance
from agentd.store.contract import Store
from agentd.testing.clock import FixedClock
from agentd.testing.store.examples import SOURCE, OpenStore, agent_state, episode, feedback, proposal, release, revision

DAY = 86_400.0


async def ids(store: Store, agent: str = "cartpole") -> list[str]:
    """An agent's episodes, oldest first."""
    return [summary.id for summary in reversed(await store.episodes(agent))]


class ForgettingContract:
    """`prune` takes what may go, in the right order, and nothing else."""

    async def test_only_the_newest_episodes_of_each_agent_stay(self, open_store: OpenStore) -> None:
        store = await open_store()
        for number in range(300):  # more than one transaction takes
            await store.add_episode(episode(f"e{number}", revision(1.0), trace=b"t"), None, regime=0)
        await store.add_episode(episode("other", revision(1.0, "other")), None, regime=0)
        await store.flush()
        pruned = await store.prune(keep_episodes=3)
        assert (pruned.episodes, pruned.steps, pruned.traces) == (297, 0, 0)
        assert await ids(store) == ["e297", "e298", "e299"]
        assert await ids(store, "other") == ["other"]
        assert await store.trace("e299") == b"t"

    async def test_a_devices_episodes_are_erased_audited_and_leave_a_log_that_is_whole(self, open_store: OpenStore) -> None:
        store = await open_store()
        for number in range(250):  # more than one transaction takes
            ran = episode(f"e{number}", revision(1.0), trace=b"t", device="ada" if number else "bob")
            await store.add_episode(ran, feedback(ran.id, 0.5), regime=0)
        erased = await store.erase("cartpole", device="ada", who="eve", reason="ada asked for it")
        assert erased.episodes == 249
        assert await ids(store) == ["e0"]
        with pytest.raises(NotFound):
            await store.trace("e1")
        assert [(event.kind, event.who) for event in await store.events()] == [("episodes.erasing", "eve"), ("episodes.erased", "eve")]
        assert (await store.verify_chain()).intact

    async def test_single_episodes_are_erased_by_whole_id_and_only_the_agents_own(self, open_store: OpenStore) -> None:
        store = await open_store()
        await store.add_episode(episode("e1", revision(1.0)), None, regime=0)
        await store.add_episode(episode("e2", revision(1.0)), None, regime=0)
        await store.add_episode(episode("other", revision(1.0, "other")), None, regime=0)
        for wrong in ("other", "nothing", "e"):
            with pytest.raises((NotFound, Ambiguous)):
                await store.erase("cartpole", episodes=["e1", wrong], who="eve")
        assert await ids(store) == ["e1", "e2"]
        assert await store.events() == ()
        assert (await store.erase("cartpole", episodes=["e1"], who="eve")).episodes == 1
        assert await ids(store) == ["e2"]

    async def test_episodes_older_than_the_limit_go(self, open_store: OpenStore) -> None:
        store = await open_store(FixedClock(10 * DAY))
        for day in (1.0, 6.9, 7.1, 9.9):
            await store.add_episode(episode(f"day {day}", revision(1.0), started_at=day * DAY), None, regime=0)
        await store.flush()
        await store.prune(keep_days=3.0)
        assert await ids(store) == ["day 7.1", "day 9.9"]

    async def test_a_size_limit_takes_traces_first_then_steps_then_rows_the_oldest_first(self, open_store: OpenStore) -> None:
        store = await open_store()
        noise = random.Random(1)  # noqa: S311 - only incompressible
        for number in range(4):
            ran = episode(f"e{number}", revision(1.0), trace=noise.randbytes(10_000), final_observation=noise.randbytes(10_000).hex())
            await store.add_episode(ran, feedback(ran.id, 0.5), regime=0)
        await store.flush()

        async def kept() -> list[tuple[bool, bool]]:
            return [(bool((await store.episode(id_)).steps), await store.trace(id_) is not None) for id_ in await ids(store)]

        assert (await store.prune(keep_bytes=1_000_000)).traces == 0
        assert (await store.prune(keep_bytes=70_000)).traces > 0
        some = await kept()
        assert [steps for steps, _ in some] == [True] * 4
        assert [trace for _, trace in some] == sorted(trace for _, trace in some)  # the oldest lost theirs
        await store.prune(keep_bytes=25_000)
        fewer = await kept()
        assert [trace for _, trace in fewer] == [False] * 4
        assert [steps for steps, _ in fewer] == [False, False, True, True]
        assert [summary.score for summary in await store.episodes("cartpole")] == [50.0] * 4
        assert (await store.prune(keep_bytes=0)).episodes == 4
        assert await ids(store) == []

    async def test_a_revision_that_anything_refers_to_is_never_forgotten(self, open_store: OpenStore) -> None:
        clock = FixedClock(0.0)
        store = await open_store(clock)
        names = ("stable", "desired", "last_good", "anchor", "good", "candidate", "reference", "parent", "ran", "protected", "forgotten")
        revisions = {name: revision(float(number)) for number, name in enumerate(names)}
        origins = [Provenance(revision=one.id, origin=Origin.SOURCE, at=0.0) for one in revisions.values()]
        await store.commit(SOURCE, *revisions.values(), *origins, Event(kind="x", at=0.0), proposal("p", revisions["parent"], 1.0))
        routes = {name: revisions[name].id for name in ("desired", "last_good", "anchor")}
        await store.commit(agent_state(revisions["stable"], good=((revisions["good"].id, 0),), **routes))
        await store.commit(release("r", revisions["candidate"], revisions["reference"], Phase.REJECTED))
        clock.now = 100 * DAY
        await store.add_episode(episode("e", revisions["ran"], started_at=clock.now), None, regime=0)
        await store.commit(young := revision(1000.0))
        await store.flush()

        pruned = await store.prune(keep_days=1.0, keep_episodes=10, keep_bytes=1_000_000, protect={revisions["protected"].id})
        assert pruned.revisions == 1
        with pytest.raises(NotFound):
            await store.revision(revisions.pop("forgotten").id)
        assert {one.id for one in await store.revisions("cartpole")} == {young.id, *(one.id for one in revisions.values())}
        assert len(await store.events()) == len(await store.releases("cartpole")) == len(await store.proposals("cartpole")) == 1

    async def test_no_limit_forgets_nothing(self, open_store: OpenStore) -> None:
        store = await open_store()
        await store.add_episode(episode("e", revision(1.0), trace=b"t"), None, regime=0)
        await store.flush()
        pruned = await store.prune()
        assert (pruned.episodes, pruned.steps, pruned.traces, pruned.revisions) == (0, 0, 0, 0)
        assert await store.trace("e") == b"t"
