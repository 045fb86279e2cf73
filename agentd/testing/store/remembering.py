"""Contract tests: the optimizer's memory."""
# ruff: noqa: S101, D102 - assertions are what it is for, and the tests' names are sentences

import msgspec

from agentd.records import Phase, Role
from agentd.store.contract import Store
from agentd.testing.store.examples import SOURCE, OpenStore, agent_state, episode, feedback, proposal, release, revision


async def attempt(store: Store, number: int, phase: Phase, mean: float | None, *, regime: int = 0) -> None:
    """Proposal `p<number>` of gain `number`, made at second `number`, with a release that came so far."""
    first, candidate = revision(0.0), revision(float(number))
    canary = release(f"r{number}", candidate, first, phase, proposal=f"p{number}", regime=regime, reason=f"reason {number}")
    if mean is not None:
        canary = msgspec.structs.replace(canary, pairs=10, candidate_sum=10 * mean, reference_sum=5.0)
    await store.commit(SOURCE, first, candidate, proposal(f"p{number}", first, float(number), at=float(number)), canary)


class RememberingContract:
    """`memory` tells what was tried and what became of it."""

    async def test_memory_joins_a_proposal_with_its_revision_release_and_feedback(self, open_store: OpenStore) -> None:
        store = await open_store()
        await attempt(store, 1, Phase.PRUNED, 0.25, regime=2)
        tried = revision(1.0)
        await store.add_episode(episode("e1", tried, role=Role.CANDIDATE), feedback("e1", 0.2, "fell"), regime=2)
        await store.add_episode(episode("e2", tried, role=Role.CANDIDATE), feedback("e2", 0.3, "fell later"), regime=2)
        await store.flush()
        (entry,) = await store.memory("cartpole")
        assert (entry.proposal, entry.values, entry.algorithm, entry.at) == ("p1", {"gain": 1.0}, "search", 1.0)
        assert (entry.fate, entry.reason, entry.pairs, entry.regime) == ("pruned", "reason 1", 10, 2)
        assert (entry.mean, entry.difference, entry.reference, entry.feedback) == (0.25, -0.25, revision(0.0).id, "fell later")

    async def test_what_an_optimizer_noted_is_remembered_whether_its_proposal_was_released_or_not(self, open_store: OpenStore) -> None:
        store = await open_store()
        parent, child = revision(1.0), revision(2.0)
        await store.commit(SOURCE, parent, child, msgspec.structs.replace(proposal("p1", parent, 2.0), notes={"step": 0.5}))
        assert [entry.notes for entry in await store.memory("cartpole")] == [{"step": 0.5}]
        await store.commit(release("r1", child, parent, Phase.PRUNED, proposal="p1"))
        assert [entry.notes for entry in await store.memory("cartpole")] == [{"step": 0.5}]

    async def test_values_are_those_of_the_whole_revision(self, open_store: OpenStore) -> None:
        store = await open_store()
        parent, child = revision(1.0), revision(2.0)
        wanted = msgspec.structs.replace(proposal("p1", parent, 3.0), values={"bias": 1.0})
        await store.commit(SOURCE, parent, child, wanted)
        (entry,) = await store.memory("cartpole")
        assert (entry.fate, entry.values) == ("invalid", {"gain": 1.0, "bias": 1.0})  # never released: laid over its parent
        await store.commit(release("r1", child, parent, Phase.REJECTED, proposal="p1"))
        (entry,) = await store.memory("cartpole")
        assert (entry.fate, entry.values) == ("rejected", {"gain": 2.0})

    async def test_a_retried_proposal_has_the_fate_of_its_newest_release(self, open_store: OpenStore) -> None:
        store = await open_store()
        await attempt(store, 1, Phase.INCONCLUSIVE, 0.5)
        await store.commit(release("again", revision(1.0), revision(0.0), Phase.PROMOTED, proposal="p1"))
        (entry,) = await store.memory("cartpole")
        assert entry.fate == "promoted"

    async def test_a_full_memory_keeps_the_best_and_the_newest_and_all_that_were_rolled_back(self, open_store: OpenStore) -> None:
        store = await open_store()
        await attempt(store, 1, Phase.ROLLED_BACK, 0.1)
        await attempt(store, 2, Phase.PROMOTED, 0.9, regime=1)
        await attempt(store, 3, Phase.PRUNED, 0.99, regime=0)  # in another world
        for number in range(4, 20):
            await attempt(store, number, Phase.PRUNED, 0.2, regime=1)
        await store.commit(agent_state(revision(2.0), regime=1))
        assert [entry.proposal for entry in await store.memory("cartpole", 5)] == ["p1", "p2", "p4", "p18", "p19"]
        await attempt(store, 20, Phase.ROLLED_BACK, 0.1)
        await attempt(store, 21, Phase.ROLLED_BACK, 0.1)
        assert [entry.proposal for entry in await store.memory("cartpole", 2) if entry.fate != "stable"] == ["p1", "p20", "p21"]

    async def test_what_serves_without_a_proposal_is_remembered_with_its_mean_of_this_regime(self, open_store: OpenStore) -> None:
        store = await open_store()
        first = revision(0.0)
        await store.commit(SOURCE, first, agent_state(first, regime=1))
        for number, (score, regime) in enumerate([(1.0, 0), (0.4, 1), (0.6, 1)]):
            await store.add_episode(episode(f"e{number}", first), feedback(f"e{number}", score), regime=regime)
        await store.add_episode(episode("unjudged", first), feedback("unjudged", 0.0, failed="it hung"), regime=1)
        await store.flush()
        (entry,) = await store.memory("cartpole")
        assert (entry.fate, entry.proposal, entry.values, entry.regime) == ("stable", "", {"gain": 0.0}, 1)
        assert entry.mean == 0.5

    async def test_one_agent_does_not_remember_another_s_attempts(self, open_store: OpenStore) -> None:
        store = await open_store()
        await attempt(store, 1, Phase.PRUNED, 0.25)
        assert await store.memory("pendulum") == ()
