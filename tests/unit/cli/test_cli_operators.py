"""Operators in charge: holding agents, watching, deciding with the evidence in front of them, settling conflicts."""

import json

import msgspec
import pytest
from api_bench import NOW, STATE, make_release

from agentd.records import Conflict, Hold, Phase, Screening


@pytest.mark.parametrize("verb", ["freeze", "unfreeze"])
async def test_one_agent_or_all_are_frozen_with_a_reason_but_never_neither_or_both(cli, verb) -> None:
    assert (await cli(verb, "cartpole", "-m", "a demonstration")).exit_code == 0
    assert (await cli(verb, "--all")).exit_code == 0
    assert [asked[0] for asked in cli.api.bench.asked] == [verb, f"{verb}_all"]
    assert cli.api.bench.asked[0] == (verb, "cartpole", "ada", "a demonstration")
    for wrong in ([verb], [verb, "cartpole", "--all"]):
        result = await cli(*wrong)
        assert result.exit_code == 2
        assert "--all" in result.stderr
    assert len(cli.api.bench.asked) == 2


async def test_status_says_what_holds_an_agent_back_and_how_it_is_let_go(cli) -> None:
    hold = Hold(at=NOW, who="ada", reason="fire\x1b[2J")
    cli.api.bench.state = msgspec.structs.replace(STATE, frozen=hold)
    for words in (("status",), ("status", "cartpole"), ("agents",)):
        result = await cli(*words)
        assert result.exit_code == 0
        assert "frozen" in result.stdout
        assert "\x1b[2J" not in result.stdout
    assert "agentd unfreeze cartpole" in (await cli("status")).stdout


async def test_a_freeze_of_every_agent_is_shown_with_its_own_way_out_and_leaves_who_was_frozen_by_itself(cli) -> None:
    result = await cli("freeze", "--all", "-m", "incident 7")
    assert "cartpole, and every agent that comes" in result.stdout
    for words in (("status",), ("status", "cartpole")):
        result = await cli(*words)
        assert "incident 7; `agentd unfreeze --all`" in result.stdout
        assert "unfreeze cartpole" not in result.stdout
    assert "not frozen: cartpole" in (await cli("unfreeze", "--all")).stdout
    assert "frozen" not in (await cli("status")).stdout
    await cli("freeze", "cartpole")
    assert "frozen by itself: cartpole" in (await cli("unfreeze", "--all")).stdout


async def test_an_agent_in_quarantine_is_unhealthy_until_it_is_lifted(cli) -> None:
    assert (await cli("unquarantine", "cartpole")).exit_code == 2  # it is not in quarantine
    cli.api.bench.state = msgspec.structs.replace(STATE, quarantine=Hold(at=NOW, who="agentd", reason="rolled back 4 times"))
    result = await cli("status")
    assert result.exit_code == 1
    assert "rolled back 4 times" in result.stdout
    assert (await cli("unquarantine", "cartpole", "-m", "mended")).exit_code == 0
    assert (await cli("status")).exit_code == 0


@pytest.mark.parametrize("verb", ["pin", "rollback"])
async def test_what_can_not_be_a_revision_is_told_with_what_one_looks_like_and_where_they_are_listed(cli, verb) -> None:
    for wrong in ("zz", "3f9", "stable", "3F9A04"):
        result = await cli(verb, "cartpole", wrong)
        assert result.exit_code == 2
        for words in (wrong, "3f9a04c21b", "agentd history", "cartpole"):
            assert words in result.stderr
    assert cli.api.bench.asked == []


async def test_watching_where_nothing_goes_on_ends_at_once(cli) -> None:
    assert (await cli("status", "--watch")).exit_code == 0
    cli.api.bench.problem = "no runner"
    assert (await cli("status", "cartpole", "--watch")).exit_code == 1


async def test_watching_a_release_that_goes_on_ends_with_4_when_the_time_is_over(cli) -> None:
    await cli.api.store.commit(make_release("r9"))
    cli.api.bench.current = make_release("r9")
    result = await cli("status", "--watch", "--timeout", "1ms")
    assert result.exit_code == 4
    assert "confirmation" in result.stdout
    assert (await cli("status", "--timeout", "1s")).exit_code == 2
    assert (await cli("status", "--watch", "--timeout", "soon")).exit_code == 2


@pytest.mark.parametrize(("phase", "code"), [(Phase.PROMOTED, 0), (Phase.REJECTED, 1), (Phase.ABORTED, 1), (Phase.INCONCLUSIVE, 1)])
async def test_watching_a_release_to_its_end_says_with_its_exit_code_what_became_of_it(cli, phase, code, monkeypatch) -> None:
    monkeypatch.setattr("agentd.cli.watching.PAUSE", 0.01)
    await cli.api.store.commit(make_release("r9", phase, ended_at=NOW, reason="as it went"))
    looks = iter([make_release("r9"), make_release("r9"), None, None, None])
    status = cli.api.bench.agent_status

    def passing(agent):
        cli.api.bench.current = next(looks)
        return status(agent)

    monkeypatch.setattr(cli.api.bench, "agent_status", passing)
    result = await cli("status", "cartpole", "--watch", "--json")
    assert result.exit_code == code
    assert [release["phase"] for release in json.loads(result.stdout)["ended"]] == [phase]


async def test_without_a_daemon_there_is_nothing_to_watch_or_follow(lonely) -> None:
    assert (await lonely("status", "--watch")).exit_code == 3
    assert (await lonely("events", "--follow")).exit_code == 3


async def test_show_puts_changes_reasons_and_replay_in_front_of_who_approves(cli) -> None:
    screening = Screening(episodes=3, ticks=200, differing=50, invalid=0, max_latency=0.0031)
    await cli.api.store.commit(make_release("r-new", Phase.AWAITING_APPROVAL, screening=screening))
    result = await cli("show", "r-new")
    assert result.exit_code == 0
    for words in ("gains.kp: 1.0 -> 2.5", "a hunch", "200 ticks of 3 episodes", "50 (25.0%)", "3.10 ms", "agentd approve cartpole r-new"):
        assert words in result.stdout
    document = json.loads((await cli("show", "r-new", "--json")).stdout)
    assert document["changes"]["parameters"]["gains.kp"] == {"before": 1.0, "after": 2.5}
    assert document["screening"]["differing"] == 50


async def test_promote_goes_one_step_or_with_full_past_them_all(cli) -> None:
    cli.api.bench.current = make_release("r9")
    assert (await cli("promote", "cartpole")).exit_code == 0
    assert (await cli("promote", "cartpole", "r9", "--full", "-m", "urgent")).exit_code == 0
    assert cli.api.bench.asked == [("promote", "r9", "ada", ""), ("promote full", "r9", "ada", "urgent")]


@pytest.fixture
async def torn(cli):
    """An agent of which two learned values are contradicted by its source."""
    conflicts = (
        Conflict(
            path="act",
            base="def act(self, x):\n    return 0\n",
            learned="def act(self, x):\n    return 1\n",
            source="def act(self, x):\n    return 2\n",
        ),
        Conflict(path="gains.kp", base=1.0, learned=2.5, source=2.0),
    )
    cli.api.bench.state = msgspec.structs.replace(STATE, conflicts=conflicts)
    await cli.api.store.commit(cli.api.bench.state)
    return cli


async def test_diff_shows_what_was_learned_and_what_the_author_changed(torn) -> None:
    result = await torn("diff", "cartpole")
    assert result.exit_code == 0
    for words in ("-    return 0", "+    return 1", "+    return 2", "gains.kp: 1.0 -> 2.5", "gains.kp: 1.0 -> 2.0"):
        assert words in result.stdout
    assert len(json.loads((await torn("diff", "cartpole", "--json")).stdout)["conflicts"]) == 2


async def test_rebase_keeps_and_takes_by_path_or_all_the_rest(torn) -> None:
    assert (await torn("rebase", "cartpole", "--keep", "act", "--take-all", "-m", "measured")).exit_code == 4  # the bench settles nothing
    assert torn.api.bench.asked[-1] == ("rebase", ("act",), ("gains.kp",), "ada", "measured")
    await torn("rebase", "cartpole", "--keep-all")
    assert torn.api.bench.asked[-1] == ("rebase", ("act", "gains.kp"), (), "ada", "")


async def test_rebase_where_nobody_can_answer_says_what_to_give(torn) -> None:
    result = await torn("rebase", "cartpole")
    assert result.exit_code == 2
    assert "--keep-all" in result.stderr
    assert (await torn("rebase", "cartpole", "--keep-all", "--take-all")).exit_code == 2
    assert (await torn("rebase", "cartpole", "--keep", "gains.ki")).exit_code == 2
    assert torn.api.bench.asked == []
    assert (await torn("rebase", "cartpole", "--json")).exit_code == 4


async def test_rebase_without_conflicts_has_nothing_to_do(cli) -> None:
    result = await cli("rebase", "cartpole")
    assert result.exit_code == 0
    assert "no conflicts" in result.stdout


@pytest.mark.parametrize(
    ("verb", "words"), [("rollback", "the last good one before"), ("approve", "the one in progress"), ("status", "its setting")]
)
async def test_help_tells_what_is_meant_where_nothing_is_given(cli, verb, words) -> None:
    shown = " ".join((await cli(verb, "--help", state=False)).stdout.replace("│", " ").split())
    assert words in shown
