"""Without a daemon: reading verbs read the store and say so; changing verbs exit 3."""

import json
import os
import socket

import pytest
from api_bench import BETTER, NOW

from agentd.records import Event
from agentd.settings import write_address


@pytest.mark.parametrize(
    "words",
    [
        ("agents",),
        ("history", "cartpole"),
        ("show", "cartpole"),
        ("show", "r-old"),
        ("show", BETTER.id[:8]),
        ("show", "e1"),
        ("diff", "cartpole"),
        ("diff", BETTER.id[:8]),
        ("episodes", "cartpole"),
        ("trace", "e1"),
        ("events",),
    ],
)
async def test_reading_verbs_read_the_store_and_say_so_on_standard_error(lonely, words) -> None:
    answer = await lonely(*words, "--json")
    assert answer.exit_code == 0, answer.output
    json.loads(answer.stdout)
    assert "no daemon answers; reading the store" in answer.stderr
    assert (await lonely(*words)).exit_code == 0


@pytest.mark.parametrize(
    "words",
    [
        ("history", "cartpole", "--limit", "1"),
        ("show", "r-old"),
        ("show", BETTER.id[:8]),
        ("show", "e1"),
        ("diff", BETTER.id[:8]),
        ("episodes", "cartpole"),
        ("trace", "e1"),
        ("events",),
    ],
)
async def test_the_store_tells_the_same_as_the_daemon(cli, words) -> None:
    with_daemon = await cli(*words, "--json")
    without = await cli(*words, "--json", "--store", str(cli.folder / "agentd.db"), state=False)
    assert with_daemon.exit_code == without.exit_code == 0
    assert json.loads(with_daemon.stdout) == json.loads(without.stdout)


async def test_a_freeze_of_every_agent_is_read_from_the_log_in_the_store(cli) -> None:
    store = ("--store", str(cli.folder / "agentd.db"))
    frozen = Event(kind="daemon.frozen", at=NOW, who="ada", data={"reason": "incident 7"})
    for event, expected in ((frozen, True), (Event(kind="daemon.unfrozen", at=NOW, data={"reason": ""}), False)):
        await cli.api.store.commit(event)
        for words in (("status",), ("status", "cartpole")):
            shown = (await cli(*words, *store, state=False)).stdout
            assert ("incident 7; `agentd unfreeze --all`" in shown) is expected


async def test_an_agent_without_a_daemon_is_shown_as_stopped_with_its_last_scores(lonely) -> None:
    [agent] = json.loads((await lonely("agents", "--json")).stdout)
    assert agent["health"] == "stopped"
    assert agent["recent"] == [0.8]


@pytest.mark.parametrize(
    "words",
    [
        ("propose", "cartpole"),
        ("approve", "cartpole", "r9"),
        ("promote", "cartpole", "r9"),
        ("abort", "cartpole", "r9"),
        ("retry", "cartpole", "r9"),
        ("rollback", "cartpole"),
        ("pin", "cartpole", "abcd"),
        ("pause", "cartpole"),
        ("resume", "cartpole"),
        ("logs", "cartpole"),
        ("token", "--link"),
    ],
)
async def test_verbs_that_need_the_daemon_exit_3(lonely, words) -> None:
    answer = await lonely(*words)
    assert answer.exit_code == 3
    assert "no daemon answers" in answer.stderr


async def test_a_daemon_that_was_killed_counts_as_none(lonely) -> None:
    write_address(lonely.folder, "http://127.0.0.1:9")
    assert (await lonely("propose", "cartpole")).exit_code == 3
    for words in (("status",), ("status", "cartpole"), ("status", "--json")):
        answer = await lonely(*words)
        assert answer.exit_code == 3  # who asks every minute whether all is well has to be told
        assert "cartpole" in answer.stdout
        assert "reading the store" in answer.stderr
    assert (await lonely("status", "--store", str(lonely.folder / "agentd.db"), state=False)).exit_code == 0
    assert (await lonely("history", "cartpole")).exit_code == 0


async def test_with_neither_daemon_nor_store_reading_verbs_exit_3(lonely, tmp_path) -> None:
    answer = await lonely("status", "--state", str(tmp_path / "nothing"), state=False)
    assert answer.exit_code == 3


async def test_a_store_that_is_none_is_wrong_usage(lonely, tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("not a database, only words about one")
    for name in ("missing.db", "notes.txt"):
        answer = await lonely("status", "--store", str(tmp_path / name), state=False)
        assert answer.exit_code == 2, name
        assert "can't be read" in answer.stderr
    assert not (tmp_path / "missing.db").exists()


async def test_something_else_on_the_daemons_port_is_not_taken_for_it(lonely) -> None:
    import asyncio

    async def answer(reader, writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        write_address(lonely.folder, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        read = await lonely("status")
        changed = await lonely("propose", "cartpole")
    assert "reading the store" in read.stderr
    assert changed.exit_code == 3


async def test_a_backup_is_a_store_of_its_own_and_never_overwrites(lonely, tmp_path) -> None:
    copy = tmp_path / "copy.db"
    assert (await lonely("backup", str(copy))).exit_code == 0
    assert (await lonely("history", "cartpole", "--store", str(copy), state=False)).exit_code == 0
    assert (await lonely("backup", str(copy))).exit_code == 2


@pytest.mark.parametrize("words", [("status",), ("pause", "cartpole")])
async def test_a_daemon_that_hangs_is_named_in_seconds(lonely, monkeypatch, words) -> None:
    monkeypatch.setattr("agentd.cli.client.PING", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as hung:  # as a stopped process does, it takes connections and says nothing
        write_address(lonely.folder, f"http://127.0.0.1:{hung.getsockname()[1]}")
        answer = await lonely(*words)
    assert answer.exit_code == 3
    assert f"process {os.getpid()}" in answer.stderr
    assert "hang" in answer.stderr
