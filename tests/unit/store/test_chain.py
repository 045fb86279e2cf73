"""The audit chain: whoever changes, removes, inserts or reorders events is found out."""

import sqlite3
from contextlib import closing

import pytest

from agentd.records import Event
from agentd.store import SqlStore
from agentd.store.chain import GENESIS, link


def test_a_link_depends_on_all_that_came_before():
    assert link(link(GENESIS, b"a"), b"b") != link(link(GENESIS, b"b"), b"b")
    assert len(link(GENESIS, b"")) == 32


@pytest.mark.parametrize(
    ("statements", "broken_at"),
    [
        (["UPDATE events SET content = replace(content, 'k3', 'k4') WHERE seq = 3"], 3),
        (["UPDATE events SET content = CAST(replace(content, 'k3', 'k4') AS BLOB), kind = 'k4' WHERE seq = 3"], 3),
        (["UPDATE events SET agent = 'other' WHERE seq = 3"], 3),
        (["UPDATE events SET kind = 'other' WHERE seq = 4"], 4),
        (["UPDATE events SET at = 0 WHERE seq = 2"], 2),
        (["UPDATE events SET hash = zeroblob(32) WHERE seq = 2"], 2),
        (["DELETE FROM events WHERE seq = 2"], 2),
        (["DELETE FROM events WHERE seq = 1"], 1),
        (["DELETE FROM events WHERE seq = 2", "UPDATE events SET seq = seq - 1 WHERE seq > 2"], 2),
        (["UPDATE events SET seq = -seq WHERE seq IN (2, 3)", "UPDATE events SET seq = 5 + seq WHERE seq < 0"], 2),
        (["INSERT INTO events SELECT 6, agent, kind, at, content, hash FROM events WHERE seq = 5"], 6),
    ],
)
async def test_tampering_is_found_where_it_was_done(tmp_path, statements, broken_at):
    url = f"sqlite:///{tmp_path}/agentd.db"
    async with await SqlStore.open(url) as store:
        await store.commit(*(Event(kind=f"k{n}", at=float(n), agent="a", who="agentd") for n in range(1, 6)))
        assert (await store.verify_chain()).intact
    with closing(sqlite3.connect(tmp_path / "agentd.db", isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
    async with await SqlStore.open(url) as store:
        report = await store.verify_chain()
    assert report.broken_at == broken_at
    assert not report.intact
    assert str(broken_at) in report.reason


async def test_a_cut_off_end_shows_only_beside_a_head_that_was_written_down(tmp_path):
    url = f"sqlite:///{tmp_path}/agentd.db"
    async with await SqlStore.open(url) as store:
        await store.commit(Event(kind="a", at=1.0), Event(kind="b", at=2.0))
        written_down = await store.verify_chain()
    with closing(sqlite3.connect(tmp_path / "agentd.db", isolation_level=None)) as connection:
        connection.execute("DELETE FROM events WHERE seq = 2")
    async with await SqlStore.open(url) as store:
        report = await store.verify_chain()
    assert report.intact
    assert (report.events, report.head) != (written_down.events, written_down.head)


async def test_a_chain_longer_than_one_read_is_checked_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("agentd.store.reading._CHAIN_PAGE", 7)
    async with await SqlStore.open(f"sqlite:///{tmp_path}/agentd.db") as store:
        for count in (7, 7, 3):
            await store.commit(*(Event(kind="x", at=1.0) for _ in range(count)))
            report = await store.verify_chain()
        assert (report.intact, report.events) == (True, 17)
