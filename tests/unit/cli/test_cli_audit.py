"""`agentd audit`: what ran on device 7 at 14:03, why, and who let it; and whether the log that says so is whole."""

import json
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from api_bench import BETTER, FIRST, NOW, STATE, fill, make_episode, make_release

from agentd.cli.audits import parse_time
from agentd.cli.context import UsageMistake
from agentd.records import Change, Event, Origin, Outcome, PairPlan, Phase, Proposal, Provenance, Purpose, ReleaseKind, Role, make_revision
from agentd.store import SqlStore

PINNED = make_revision("cartpole", STATE.source, {"gains.kp": 9.0})
START = NOW + 1000.0
HISTORY = (
    Change(phase=Phase.PROPOSED, at=START, who="optimizer"),
    Change(phase=Phase.AWAITING_APPROVAL, at=START + 5, who="agentd", reason="waits for `agentd approve`"),
    Change(phase=Phase.SELECTION, at=START + 100, who="grace", reason="looked at the replay"),
    Change(phase=Phase.PROMOTED, at=START + 200, who="agentd", reason="better by 0.1"),
)


def event(kind: str, at: float, who: str = "agentd", message: str = "", **data) -> Event:
    return Event(kind=kind, at=at, agent="cartpole", who=who, message=message, data=data)


@pytest.fixture
async def past(tmp_path) -> Path:
    """A store with a day's past: the source, a canary on device 7, a promotion, an operator's pin, a rollback by the watch."""
    path = tmp_path / "past.db"
    async with await SqlStore.open(f"sqlite:///{path}") as store:
        await fill(store)
        release = make_release(
            "r7", Phase.PROMOTED, proposal="p7", begun_at=START, ended_at=START + 200, reason="better by 0.1", history=HISTORY
        )
        probe = make_release(
            "r8", Phase.PROMOTED, kind=ReleaseKind.PROBE, proposal="", candidate=BETTER.id, reference=PINNED.id, begun_at=START + 500,
            ended_at=START + 600, reason="better by 0.2",
        )  # fmt: skip
        await store.commit(
            PINNED,
            Provenance(revision=PINNED.id, origin=Origin.OPERATOR, at=START + 290, parent=BETTER.id, who="ada", note="try nine"),
            Proposal(
                id="p7", agent="cartpole", parent=FIRST.id, values={"gains.kp": 2.5}, algorithm="hybrid", at=START, reasoning="more gain"
            ),
            release,
            probe,
            PairPlan(id="pair7", release="r7", agent="cartpole", device="7", order=(Role.STABLE, Role.CANDIDATE), reference=FIRST.id,
                     candidate=BETTER.id),
            event("agent.added", START - 500, message="cartpole is new", revision=FIRST.id),
            event("release.promoted", START + 200, release="r7", candidate=BETTER.id, phase="promoted"),
            event("revision.desired", START + 300, who="ada", message="ada made it stable", revision=PINNED.id, reason="a demonstration"),
            event("release.probe_ended", START + 450, release="r6", candidate=FIRST.id, phase="inconclusive"),
            event("release.probe_ended", START + 600, release="r8", candidate=BETTER.id, phase="promoted"),
        )  # fmt: skip
        for episode in (
            make_episode("a1", device="7", started_at=START + 10, duration=20.0),
            make_episode("a2", device="7", started_at=START + 120, duration=20.0, revision=BETTER.id, role=Role.CANDIDATE,
                         purpose=Purpose.PAIR, pair="pair7"),
            make_episode("b2", device="8", started_at=START + 125, duration=20.0),
            make_episode("a3", device="7", started_at=START + 250, duration=20.0, revision=BETTER.id),
            make_episode("a4", device="7", started_at=START + 320, duration=20.0, revision=PINNED.id, outcome=Outcome.ABORTED,
                         error="Traceback\nZeroDivisionError: division by zero"),
            make_episode("a5", device="7", started_at=START + 700, duration=20.0, revision=BETTER.id),
        ):  # fmt: skip
            await store.add_episode(episode, None, regime=0)
        await store.flush()
    return path


async def ask(lonely, past, *words, device="7"):
    where = ("--device", device) if device else ()
    answer = await lonely("audit", "cartpole", *where, *words, "--store", str(past), "--json", state=False)
    return answer, json.loads(answer.stdout)


async def test_a_candidate_is_told_with_its_release_its_approval_and_who_proposed_it(lonely, past) -> None:
    answer, found = await ask(lonely, past, "--at", str(START + 130))
    assert answer.exit_code == 0
    [device] = found["devices"]
    assert (device["device"], device["during"]) == ("7", True)
    assert device["episode"]["id"] == "a2"
    assert device["release"]["id"] == "r7"
    assert device["proposal"]["reasoning"] == "more gain"
    assert device["let_by"] == {
        "who": "grace", "when": START + 100, "why": "release r7 tried it beside the stable revision: looked at the replay",
    }  # fmt: skip
    assert found["stable"]["revision"] == FIRST.id


@pytest.mark.parametrize(
    ("at", "episode", "who", "why"),
    [
        (15, "a1", "author", "cartpole is new"),
        (260, "a3", "agentd", "release r7 promoted it: better by 0.1"),
        (330, "a4", "ada", "an operator's decision: a demonstration"),
        (710, "a5", "agentd", "probe r8 found the last good revision better: better by 0.2"),
    ],
)
async def test_a_stable_revision_is_told_with_the_decision_that_made_it_stable(lonely, past, at, episode, who, why) -> None:
    _, found = await ask(lonely, past, "--at", str(START + at))
    [device] = found["devices"]
    assert device["episode"]["id"] == episode
    assert (device["let_by"]["who"], device["let_by"]["why"]) == (who, why)


async def test_people_read_device_revision_decision_and_evidence(lonely, past) -> None:
    answer = await lonely("audit", "cartpole", "--device", "7", "--at", str(START + 260), "--store", str(past), state=False)
    assert answer.exit_code == 0
    for told in (
        "device 7 of cartpole", "a3", BETTER.id, "stable, normal", "release r7 promoted it: better by 0.1", "(operator)", "a hunch",
        "12 pairs, difference +0.100, e-value 4.48", "grace  looked at the replay", "the log is whole",
    ):  # fmt: skip
        assert told in answer.stdout, told


async def test_without_a_device_every_device_is_told(lonely, past) -> None:
    _, found = await ask(lonely, past, "--at", str(START + 130), device=None)
    assert [(one["device"], one["episode"]["id"]) for one in found["devices"]] == [("7", "a2"), ("8", "b2"), ("bench-1", "e2")]
    assert [one["during"] for one in found["devices"]] == [True, True, False]


async def test_between_episodes_the_last_one_is_told_as_over(lonely, past) -> None:
    _, found = await ask(lonely, past, "--at", str(START + 60))
    assert [(one["episode"]["id"], one["during"]) for one in found["devices"]] == [("a1", False)]
    text = (await lonely("audit", "cartpole", "--device", "7", "--at", str(START + 60), "--store", str(past), state=False)).stdout
    assert "it had ended 30.0 s before, and no other is known to have begun" in text


async def test_before_the_first_episode_there_is_no_answer_and_the_exit_code_says_so(lonely, past) -> None:
    answer, found = await ask(lonely, past, "--at", str(START), device="7")
    assert (answer.exit_code, found["devices"]) == (1, [])
    assert (await lonely("audit", "nobody", "--store", str(past), state=False)).exit_code == 2


def test_times_are_unix_seconds_local_times_times_with_an_offset_and_times_of_today() -> None:
    local = time.mktime((2026, 10, 17, 14, 3, 0, 0, 0, -1))
    assert parse_time("1792245780.5", 0.0) == 1792245780.5
    assert parse_time("2026-10-17T14:03", 0.0) == parse_time("2026-10-17 14:03:00", 0.0) == local
    assert parse_time("2026-10-17T14:03+02:00", 0.0) == datetime(2026, 10, 17, 12, 3, tzinfo=UTC).timestamp()
    assert parse_time("14:03", local + 3600) == local
    for wrong in ("soon", "nan", "inf", "25:00", "2026-13-01", ""):
        with pytest.raises(UsageMistake, match="--at should be a time"):
            parse_time(wrong, 0.0)


# --- the log itself --------------------------------------------------------------------------------------------------


async def verify(lonely, store, *words):
    answer = await lonely("audit", "verify", *words, "--store", str(store), "--json", state=False)
    return answer.exit_code, json.loads(answer.stdout) if answer.stdout else {}


async def test_a_whole_log_is_whole_and_its_head_can_be_checked_later(lonely, past) -> None:
    code, report = await verify(lonely, past)
    assert (code, report["intact"]) == (0, True)
    async with await SqlStore.open(f"sqlite:///{past}") as store:
        await store.commit(event("test.more", START + 900))
    code, later = await verify(lonely, past, "--head", report["head"].upper())
    assert (code, later["events"]) == (0, report["events"] + 1)
    people = await lonely("audit", "verify", "--store", str(past), state=False)
    assert later["head"] in people.stdout
    assert people.exit_code == 0


@pytest.mark.parametrize(
    "crime",
    [
        "UPDATE events SET content = (SELECT content FROM events WHERE seq = 2) WHERE seq = 3",
        "UPDATE events SET at = at + 1 WHERE seq = 3",
        "DELETE FROM events WHERE seq = 3",
        "UPDATE events SET hash = zeroblob(32) WHERE seq = 3",
        "UPDATE events SET content = 'words' WHERE seq = 3",
    ],
)
async def test_a_log_that_somebody_touched_exits_1_and_names_the_place(lonely, past, crime) -> None:
    with sqlite3.connect(past) as connection:
        connection.execute(crime)
    connection.close()
    code, report = await verify(lonely, past)
    assert (code, report["intact"], report["broken_at"]) == (1, False, 3)
    asked = await lonely("audit", "cartpole", "--device", "8", "--at", str(START + 130), "--store", str(past), state=False)
    assert asked.exit_code == 1


async def test_a_log_that_was_cut_off_is_only_found_with_a_head_that_was_written_down(lonely, past) -> None:
    _, report = await verify(lonely, past)
    with sqlite3.connect(past) as connection:
        connection.execute("DELETE FROM events WHERE seq = (SELECT max(seq) FROM events)")
    connection.close()
    assert (await verify(lonely, past))[0] == 0
    code, cut = await verify(lonely, past, "--head", report["head"])
    assert code == 1
    assert "cut off" in cut["reason"]


async def test_wrong_usage_is_told(lonely, past, tmp_path) -> None:
    for words in (
        ("audit", "cartpole", "--head", "ab", "--store", str(past)),
        ("audit", "cartpole", "--at", "soon", "--store", str(past)),
        ("audit", "verify", "--store", str(tmp_path / "none.db")),
        ("audit", "verify", "--state", str(tmp_path / "nothing")),
    ):
        answer = await lonely(*words, state=False)
        assert answer.exit_code == 2, words


async def test_the_log_can_be_verified_beside_a_daemon_that_writes_it(cli) -> None:
    answer = await cli("audit", "verify", "--json")
    assert answer.exit_code == 0
    assert json.loads(answer.stdout)["events"] == 6
    assert (await cli("audit", "cartpole", "--at", str(NOW), "--json")).exit_code == 0
