"""What the runner keeps for a daemon that is slow, or gone."""

import asyncio

import pytest
from episodes import make_episode

from agentd import codec
from agentd.records import Event, Purpose
from agentd.runners import spool as module
from agentd.runners.messages import EPISODE_WINDOW, Counted, Finished, FromRunner, Happened, Log
from agentd.runners.spool import Spool


def episode(number, **changes):
    return make_episode(id=f"e{number}", **changes)


async def taken(spool):
    """Everything that can be sent now."""
    found = []
    while True:
        try:
            async with asyncio.timeout(0.02):
                found.append(codec.decode((await spool.next())[4:], FromRunner))
        except TimeoutError:
            return found


async def test_episodes_are_sent_in_order_and_no_more_than_the_window_at_a_time():
    spool = Spool()
    for number in range(EPISODE_WINDOW + 3):
        spool.add_episode(episode(number))
    first = await taken(spool)
    assert [one.episode.id for one in first] == [f"e{number}" for number in range(EPISODE_WINDOW)]
    spool.acknowledge("e0")
    assert [one.episode.id for one in await taken(spool)] == [f"e{EPISODE_WINDOW}"]


async def test_a_new_daemon_is_told_everything_that_was_not_acknowledged():
    spool = Spool()
    for number in range(3):
        spool.add_episode(episode(number))
    await taken(spool)
    spool.acknowledge("e1")
    spool.rewind()
    assert [one.episode.id for one in await taken(spool)] == ["e0", "e2"]


async def test_where_an_episode_has_to_make_room_evidence_of_pairs_stays(monkeypatch):
    monkeypatch.setattr(module, "MAX_EPISODES", 4)
    spool = Spool()
    spool.add_episode(episode(0, pair="p", purpose=Purpose.PAIR))
    for number in range(1, 20):
        spool.add_episode(episode(number))
    spool.add_episode(episode(20, pair="p", purpose=Purpose.PAIR))
    assert [one.episode.id for one in await taken(spool)] == ["e0", "e18", "e19", "e20"]
    for number in range(21, 25):
        spool.add_episode(episode(number, pair=f"p{number}", purpose=Purpose.PAIR))
    assert len(spool) == 4  # bounded all the same
    spool.acknowledge("e24")
    assert len(spool) == 3


async def test_the_oldest_episodes_make_room_and_are_counted(monkeypatch):
    monkeypatch.setattr(module, "MAX_EPISODES", 3)
    spool = Spool()
    for number in range(5):
        spool.add_episode(episode(number))
    spool.report()
    told = await taken(spool)
    assert [one.episode.id for one in told if isinstance(one, Finished)] == ["e2", "e3", "e4"]
    assert [one.deltas for one in told if isinstance(one, Counted)] == [{"lost.episodes": 2.0}]


async def test_nothing_grows_in_a_long_absence(monkeypatch):
    monkeypatch.setattr(module, "MAX_EPISODES", 3)
    spool = Spool()
    for number in range(50):
        spool.add_episode(episode(number))
    assert max(len(kept) for kept in vars(spool).values() if hasattr(kept, "__len__")) == 3


async def test_memory_is_bounded_by_bytes_too(monkeypatch):
    monkeypatch.setattr(module, "MAX_EPISODE_BYTES", 3000)
    spool = Spool()
    for number in range(5):
        spool.add_episode(episode(number, trace=b"x" * 1000))
    assert len(spool) == 2


async def test_an_episode_that_can_not_travel_is_counted_and_hurts_nothing():
    spool = Spool()
    spool.add_episode(episode(0, trace=object()))
    spool.report()
    assert [one.deltas for one in await taken(spool)] == [{"lost.unsendable": 1.0}]


async def test_counts_add_up_until_they_are_reported():
    spool = Spool()
    spool.count("a")
    spool.count("a", 1.5)
    spool.report()
    spool.report()
    assert [one.deltas for one in await taken(spool)] == [{"a": 2.5}]


async def test_lines_are_bounded_and_the_dropped_are_counted(monkeypatch):
    monkeypatch.setattr(module, "MAX_LINES", 2)
    spool = Spool()
    for number in range(5):
        spool.log(f"line {number}")
    spool.report()
    assert await taken(spool) == [Log(lines=("line 3", "line 4"), dropped=3)]


async def test_events_of_a_long_absence_are_bounded_and_the_newest_stay(monkeypatch):
    monkeypatch.setattr(module, "MAX_MESSAGES", 2)
    spool = Spool()
    for number in range(5):
        spool.happened(Event(kind=f"k{number}", at=0.0))
    assert [one.event.kind for one in await taken(spool) if isinstance(one, Happened)] == ["k3", "k4"]


async def test_what_was_counted_in_a_long_absence_is_told_in_the_end_whatever_had_to_make_room(monkeypatch):
    monkeypatch.setattr(module, "MAX_MESSAGES", 4)
    spool = Spool()
    for number in range(9):
        spool.count("safe_actions.late")
        spool.log(f"line {number}")
        spool.report()
        for kind in range(number):
            spool.happened(Event(kind=f"k{kind}", at=0.0))
    first = await taken(spool)
    spool.report()
    told = first + await taken(spool)
    assert sum(one.deltas.get("safe_actions.late", 0) for one in told if isinstance(one, Counted)) == 9
    assert sum(len(one.lines) + one.dropped for one in told if isinstance(one, Log)) == 9
    lost = sum(one.deltas.get("lost.messages", 0) for one in told if isinstance(one, Counted))
    assert lost >= sum(range(9)) - sum(isinstance(one, Happened) for one in told)


async def test_a_message_that_can_not_travel_is_counted_and_the_others_are_told():
    spool = Spool()
    spool.happened(Event(kind="k0", at=0.0, message="half a pair: \ud800"))
    spool.happened(Event(kind="k1", at=0.0))
    assert [one.event.kind for one in await taken(spool)] == ["k1"]
    spool.report()
    assert [one.deltas for one in await taken(spool)] == [{"lost.unsendable": 1.0}]


async def test_it_is_emptied_when_the_daemon_has_everything():
    spool = Spool()
    spool.add_episode(episode(0))
    waiting = asyncio.create_task(spool.emptied())
    await taken(spool)
    assert not waiting.done()
    spool.acknowledge("e0")
    async with asyncio.timeout(5):
        await waiting


@pytest.mark.parametrize("unknown", ["e9", ""])
async def test_acknowledging_what_is_unknown_is_harmless(unknown):
    spool = Spool()
    spool.add_episode(episode(0))
    spool.acknowledge(unknown)
    assert len(spool) == 1
