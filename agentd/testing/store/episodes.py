"""Contract tests: episodes, feedback, and reads beside writes."""
# ruff: noqa: S101, D102 - assertions are what it is for, and the tests' names are sentences

import asyncio

import msgspec
import pytest

from agentd import codec
from agentd.errors import NotFound
from agentd.records import Event, Role, WindowState
from agentd.testing.store.examples import SOURCE, OpenStore, episode, feedback, revision, window


class EpisodesContract:
    """Episodes come back as they were, once."""

    async def test_an_episode_comes_back_with_steps_trace_and_feedback(self, open_store: OpenStore) -> None:
        store = await open_store()
        trace = codec.encode({"nodes": ["x"] * 5000})
        ran = episode("e1", revision(1.0), trace=trace, pair="x1")
        await store.add_episode(ran, feedback("e1", 0.5, metrics={"effort": 0.25}), regime=3)
        await store.flush()
        await store.aclose()
        store = await open_store()
        assert await store.episode("e1") == msgspec.structs.replace(ran, trace=None)
        assert await store.trace("e1") == trace
        assert await store.feedback("e1") == feedback("e1", 0.5, metrics={"effort": 0.25})
        (summary,) = await store.episodes("cartpole")
        assert summary == await store.summary("e")
        assert (summary.ticks, summary.safe_actions, summary.regime, summary.seed, summary.pair) == (3, 1, 3, 7, "x1")
        assert (summary.score, summary.normalised, summary.feedback, summary.has_trace) == (50.0, 0.5, "well done", True)

    async def test_the_same_episode_twice_is_one_and_keeps_what_it_had(self, open_store: OpenStore) -> None:
        store = await open_store()
        ran = episode("e1", revision(1.0), trace=b"trace")
        await store.add_episode(ran, feedback("e1", 0.5), regime=0)
        await store.add_episode(msgspec.structs.replace(ran, trace=None), None, regime=0)
        await store.flush()
        await store.add_episode(msgspec.structs.replace(ran, trace=None), None, regime=0)
        await store.flush()
        (summary,) = await store.episodes("cartpole")
        assert (summary.normalised, summary.has_trace) == (0.5, True)
        assert await store.trace("e1") == b"trace"

    async def test_late_feedback_is_added_to_its_episode(self, open_store: OpenStore) -> None:
        store = await open_store()
        ran = episode("e1", revision(1.0))
        await store.add_episode(ran, None, regime=0)
        await store.flush()
        assert await store.feedback("e1") is None
        assert (await store.summary("e1")).score is None
        await store.add_episode(ran, feedback("e1", 0.25), regime=0)
        await store.flush()
        assert (await store.summary("e1")).score == 25.0

    async def test_a_committed_feedback_reaches_an_episode_that_is_still_queued_and_survives_its_being_sent_again(
        self, open_store: OpenStore
    ) -> None:
        store = await open_store()
        ran = episode("e1", revision(1.0))
        await store.add_episode(ran, None, regime=0)
        await store.commit(feedback("e1", 0.75))
        await store.add_episode(ran, None, regime=0)
        await store.flush()
        assert await store.feedback("e1") == feedback("e1", 0.75)
        assert (await store.summary("e1")).normalised == 0.75
        await store.commit(feedback("gone", 0.5))  # retention was quicker: nobody minds

    async def test_windows_come_back_in_the_order_in_which_they_were_opened_until_they_have_entered(self, open_store: OpenStore) -> None:
        store = await open_store()
        first, second = window("e1", 20.0), window("e2", 10.0)
        await store.add_episode(episode("e1", revision(1.0)), None, regime=0)
        await store.commit(first)
        await store.commit(second, window("other", 5.0, agent="pendulum"))
        await store.flush()
        assert (await store.summary("e1")).awaits_until == 20.0
        judged = msgspec.structs.replace(first, state=WindowState.JUDGED, feedback=feedback("e1", 0.5))
        await store.commit(judged)
        await store.aclose()
        store = await open_store()
        assert await store.windows("cartpole") == (judged, second)
        assert (await store.summary("e1")).awaits_until is None
        entered = msgspec.structs.replace(second, state=WindowState.ENTERED)
        await store.commit(entered)
        assert await store.windows("cartpole") == (judged,)
        assert await store.window("e2") == entered  # who sends the episode again hears that it is known
        with pytest.raises(NotFound):
            await store.window("e")

    async def test_windows_that_have_entered_are_forgotten_a_day_after_they_closed_and_open_ones_never(self, open_store: OpenStore) -> None:
        store = await open_store()
        left, done = window("left", 10.0), msgspec.structs.replace(window("done", 10.0), state=WindowState.ENTERED)
        await store.commit(left, done)
        await store.prune(keep_episodes=1)
        assert await store.windows("cartpole") == (left,)
        with pytest.raises(NotFound):
            await store.window("done")

    async def test_a_failed_feedback_is_shown_but_is_no_score(self, open_store: OpenStore) -> None:
        store = await open_store()
        await store.add_episode(episode("e1", revision(1.0)), feedback("e1", 0.0, failed="feedback.py raised ValueError"), regime=0)
        await store.flush()
        summary = await store.summary("e1")
        assert (summary.score, summary.normalised, summary.feedback) == (None, None, "feedback.py raised ValueError")

    async def test_episodes_are_filtered(self, open_store: OpenStore) -> None:
        store = await open_store()
        first, second = revision(1.0), revision(2.0)
        await store.add_episode(episode("e1", first, started_at=1.0), None, regime=0)
        await store.add_episode(episode("e2", second, started_at=2.0, role=Role.CANDIDATE), None, regime=0)
        await store.add_episode(episode("e3", second, started_at=3.0), None, regime=1)
        await store.add_episode(episode("e4", revision(1.0, "other"), started_at=3.0), None, regime=1)
        await store.flush()

        async def found(**filters: object) -> list[str]:
            return [summary.id for summary in await store.episodes("cartpole", **filters)]  # type: ignore[arg-type]

        assert await found() == ["e3", "e2", "e1"]
        assert await found(revision=second.id) == ["e3", "e2"]
        assert await found(role=Role.CANDIDATE) == ["e2"]
        assert await found(since=2.0) == ["e3", "e2"]
        assert await found(until=2.0) == ["e2", "e1"]
        assert await found(regime=1) == ["e3"]
        assert await found(device="nobody's") == []
        assert await found(device=episode("e1", first).device) == ["e3", "e2", "e1"]
        assert await found(revision=second.id, role=Role.STABLE, regime=0) == []

    async def test_what_is_not_there_is_not_found(self, open_store: OpenStore) -> None:
        store = await open_store()
        for read in (store.agent, store.source, store.revision, store.release, store.proposal, store.episode, store.trace, store.feedback):
            with pytest.raises(NotFound):
                await read("nothing")
        assert await store.episodes("nobody") == ()
        assert await store.memory("nobody") == ()
        for read_all in (store.pairs, store.plans, store.provenance):
            assert await read_all("nothing") == ()

    async def test_reads_go_on_while_many_commits_do(self, open_store: OpenStore) -> None:
        store = await open_store()
        await store.commit(SOURCE)

        async def write() -> None:
            for gain in range(30):
                await store.commit(revision(float(gain)), Event(kind="made", at=1.0, data={"n": gain}))

        async def read() -> int:
            seen = 0
            while seen < 30:
                events = await store.events()
                revisions = await store.revisions("cartpole")
                assert len(revisions) >= len(events) >= seen  # what an event tells of is there, and nothing disappears
                seen = len(events)
            return seen

        async with asyncio.TaskGroup() as tasks:
            readers = [tasks.create_task(read()) for _ in range(8)]
            tasks.create_task(write())
        assert [reader.result() for reader in readers] == [30] * 8
