"""Contract tests: commits, the log of events and its chain."""
# ruff: noqa: S101, D102 - assertions are what it is for, and the tests' names are sentences

import asyncio

import msgspec
import pytest

from agentd.errors import CodecError, NotFound, StoreError
from agentd.records import Event, Origin, Pair, PairPlan, Phase, Provenance, Role, Usage
from agentd.testing.store.examples import SOURCE, OpenStore, agent_state, episode, proposal, release, revision


class CommittingContract:
    """All or nothing, and there after reopening."""

    async def test_what_was_committed_is_there_after_reopening(self, open_store: OpenStore) -> None:
        store = await open_store()
        first, second = revision(1.0), revision(2.0)
        wanted = proposal("p1", first, 2.0)
        canary = release("r1", second, first, proposal="p1")
        plan = PairPlan(
            id="x1",
            release="r1",
            agent="cartpole",
            device="robot",
            order=(Role.CANDIDATE, Role.STABLE),
            reference=first.id,
            candidate=second.id,
            seed=3,
        )
        pair = Pair(id="x1", release="r1", device="robot", reference=0.5, candidate=0.7, at=2.0)
        origin = Provenance(revision=second.id, origin=Origin.OPTIMIZER, at=1.0, parent=first.id, proposal="p1")
        usage = Usage(agent="cartpole", purpose="propose", model="m", outcome="ok", at=5.0, tokens_in=10, dollars=0.25)
        await store.commit(SOURCE, first, agent_state(first))
        await store.commit(second, origin, wanted, canary, plan, pair, usage)
        await store.aclose()

        store = await open_store()
        assert await store.source("5eed") == SOURCE
        assert await store.revision(first.id) == first
        assert await store.revisions("cartpole") == (second, first)
        assert await store.provenance(second.id) == (origin,)
        assert await store.agents() == (await store.agent("cartpole"),) == (agent_state(first),)
        assert await store.proposal("p1") == wanted
        assert await store.proposals("cartpole") == (wanted,)
        assert await store.release("r1") == canary
        assert await store.plans("r1") == (plan,)
        assert await store.pairs("r1") == (pair,)
        assert await store.usage("cartpole") == await store.usage() == (usage,)

    async def test_records_of_one_commit_may_come_in_any_order(self, open_store: OpenStore) -> None:
        store = await open_store()
        first, second = revision(1.0), revision(2.0)
        await store.commit(release("r1", second, first), agent_state(first), second, first, SOURCE)
        assert (await store.release("r1")).candidate == second.id

    async def test_a_commit_is_written_whole_or_not_at_all(self, open_store: OpenStore) -> None:
        store = await open_store()
        known, unknown = revision(1.0), revision(2.0)
        with pytest.raises(StoreError):
            await store.commit(SOURCE, known, agent_state(known), release("r1", unknown, known), Event(kind="x", at=1.0))
        assert await store.agents() == ()
        assert await store.events() == ()
        with pytest.raises(NotFound):
            await store.revision(known.id)

    async def test_a_bad_commit_does_not_harm_the_ones_made_at_the_same_time(self, open_store: OpenStore) -> None:
        store = await open_store()
        await store.commit(SOURCE)
        good = [revision(float(gain)) for gain in range(20)]
        dangling = agent_state(revision(1000.0))
        results = await asyncio.gather(*(store.commit(one) for one in good), store.commit(dangling), return_exceptions=True)
        assert [result for result in results[:-1] if isinstance(result, BaseException)] == []
        assert isinstance(results[-1], StoreError)
        assert len(await store.revisions("cartpole")) == 20

    async def test_the_same_id_replaces_and_keeps_its_place(self, open_store: OpenStore) -> None:
        store = await open_store()
        first, second = revision(1.0), revision(2.0)
        await store.commit(SOURCE, first, second, release("r1", second, first), release("r2", first, second))
        await store.commit(release("r1", second, first, Phase.PROMOTED, pairs=4))
        assert (await store.release("r1")).phase is Phase.PROMOTED
        assert [one.id for one in await store.releases("cartpole")] == ["r2", "r1"]

    async def test_sources_never_change_and_provenance_is_not_doubled(self, open_store: OpenStore) -> None:
        store = await open_store()
        one = revision(1.0)
        origin = Provenance(revision=one.id, origin=Origin.SOURCE, at=1.0)
        await store.commit(SOURCE, one, origin)
        await store.commit(msgspec.structs.replace(SOURCE, files={}), one, origin, msgspec.structs.replace(origin, at=2.0))
        assert await store.source("5eed") == SOURCE
        assert [row.at for row in await store.provenance(one.id)] == [1.0, 2.0]

    async def test_what_can_not_be_stored_is_refused_before_anything_is_written(self, open_store: OpenStore) -> None:
        store = await open_store()
        with pytest.raises(CodecError):
            await store.commit(SOURCE, Event(kind="x", at=1.0, data={"what": object()}))
        with pytest.raises(TypeError):
            await store.commit(SOURCE, episode("e1", revision(1.0)))  # type: ignore[arg-type]
        with pytest.raises(NotFound):
            await store.source("5eed")

    async def test_a_superseded_daemon_can_not_commit(self, open_store: OpenStore) -> None:
        older, newer = await open_store(), await open_store()
        assert await older.begin_epoch() == 1
        await older.commit(SOURCE)
        assert await newer.begin_epoch() == 2
        with pytest.raises(StoreError, match="newer daemon"):
            await older.commit(revision(1.0))
        await newer.commit(revision(2.0))
        assert await newer.revisions("cartpole") == (revision(2.0),)
        assert await newer.epoch() == 2

    async def test_events_get_consecutive_places_whoever_commits_them(self, open_store: OpenStore) -> None:
        store = await open_store()
        batches = await asyncio.gather(*(store.commit(*(Event(kind=f"k.{i}.{j}", at=1.0) for j in range(3))) for i in range(10)))
        await store.aclose()
        store = await open_store()
        (last,) = await store.commit(Event(kind="last", at=2.0))
        returned = sorted((event for batch in batches for event in batch), key=lambda event: event.seq)
        assert [event.seq for event in returned] == list(range(1, 31))
        assert await store.events() == (*returned, last)
        assert last.seq == 31

    async def test_events_are_found_by_agent_kind_and_place(self, open_store: OpenStore) -> None:
        store = await open_store()
        kinds = ("release.begun", "release.promoted", "releases", "watch.alarm")
        events = await store.commit(*(Event(kind=kind, at=1.0, agent=agent) for agent in ("a", "b") for kind in kinds))
        assert await store.events("a") == events[:4]
        assert await store.events(after=3, limit=2) == events[3:5]
        assert await store.events("b", kinds=("watch.alarm", "releases")) == events[6:]
        assert await store.events(kinds=("release.",)) == (*events[:2], *events[4:6])
        assert await store.events(kinds=()) == ()
        assert await store.events(latest=True, limit=3) == events[5:]
        assert await store.events("a", after=2, latest=True, limit=1) == events[3:4]

    async def test_the_audit_chain_holds_over_reopening(self, open_store: OpenStore) -> None:
        store = await open_store()
        empty = await store.verify_chain()
        assert empty.intact
        assert empty.events == 0
        await store.commit(Event(kind="a", at=1.0, data={"x": [1, {"y": None}]}), Event(kind="b", at=2.0))
        before = await store.verify_chain()
        await store.aclose()
        store = await open_store()
        assert await store.verify_chain() == before
        await store.commit(Event(kind="c", at=3.0))
        after = await store.verify_chain()
        assert (after.intact, after.events) == (True, 3)
        assert after.head != before.head
        assert await store.verify_chain(before.head) == await store.verify_chain(empty.head) == after
        unknown = await store.verify_chain("00" * 31 + "01")
        assert (unknown.intact, unknown.broken_at, unknown.head) == (False, 4, after.head)

    async def test_usage_is_added_up_never_replaced(self, open_store: OpenStore) -> None:
        store = await open_store()
        row = Usage(agent="a", purpose="propose", model="m", outcome="ok", at=5.0, dollars=0.5)
        await store.commit(row)
        await store.commit(row, msgspec.structs.replace(row, at=9.0), msgspec.structs.replace(row, agent="b"))
        assert len(await store.usage("a")) == 3
        assert [found.at for found in await store.usage("a", since=6.0)] == [9.0]
        assert len(await store.usage(None)) == 4
