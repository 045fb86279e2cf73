"""What each verb prints, does, and how it exits, with a daemon that answers."""

import json

import msgspec
import pytest
from api_bench import BETTER, FIRST, NOW, STATE, make_episode, make_release

from agentd.records import Event, Exchange, Phase, Step


async def test_status_shows_every_agent_and_exits_1_when_one_has_failed(cli) -> None:
    good = await cli("status")
    assert good.exit_code == 0
    assert "cartpole" in good.stdout
    assert FIRST.id[:10] in good.stdout
    cli.api.bench.problem = "the runner is lost"
    bad = await cli("status")
    assert bad.exit_code == 1
    assert "the runner is lost" in bad.stdout
    assert (await cli("status", "cartpole")).exit_code == 1


async def test_status_exits_1_when_a_folder_can_not_be_loaded(cli) -> None:
    cli.api.bench.broken = {"pendulum": "agent.toml: agent.name: required, but missing"}
    answer = await cli("status")
    assert answer.exit_code == 1
    assert "pendulum: agent.toml: agent.name: required, but missing" in answer.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("status", "cartpole"),
        ("agents",),
        ("devices", "cartpole"),
        ("history", "cartpole"),
        ("show", "cartpole"),
        ("show", "r-old"),
        ("show", BETTER.id[:8]),
        ("show", "e1"),
        ("diff", "cartpole"),
        ("diff", FIRST.id[:8], BETTER.id[:8]),
        ("episodes", "cartpole"),
        ("trace", "e1"),
        ("logs", "cartpole"),
        ("events",),
    ],
)
async def test_reading_verbs_print_json_that_is_nothing_but_json(cli, words) -> None:
    answer = await cli(*words, "--json")
    assert answer.exit_code == 0, answer.output
    json.loads(answer.stdout)
    assert answer.stderr == ""


@pytest.mark.parametrize("verb", ["history", "episodes", "events", "devices", "logs"])
async def test_what_is_empty_says_so_in_a_line_on_standard_error(cli, verb, monkeypatch) -> None:
    async def nothing(*_: object, **__: object) -> tuple[()]:
        return ()

    for query in ("releases", "episodes", "events"):
        monkeypatch.setattr(cli.api.store, query, nothing)
    status = msgspec.structs.replace(cli.api.bench.agent_status("cartpole"), devices={})
    monkeypatch.setattr(cli.api.bench, "agent_status", lambda _: status)
    monkeypatch.setattr(cli.api.bench, "logs", lambda _: ())
    answer = await cli(verb, "cartpole")
    assert (answer.exit_code, answer.stdout) == (0, "")
    assert "cartpole" in answer.stderr
    assert len(answer.stderr.splitlines()) == 1
    document = await cli(verb, "cartpole", "--json")
    assert json.loads(document.stdout) in ([], {})
    assert document.stderr == ""


async def test_history_tells_verdict_evidence_who_and_why(cli) -> None:
    text = (await cli("history", "cartpole")).stdout
    for shown in ("r-old", "promoted", "+0.100", "4.48", "12", "better"):
        assert shown in text, shown


async def test_show_tells_what_an_episode_asked_of_models(cli) -> None:
    asked = (("system", "Name the team."), ("user", "Where is\nmy parcel?"))
    exchanges = (
        Exchange(key="k", messages=asked, answer="delivery", model="openai/x", tokens_in=30, tokens_out=1, seconds=0.5),
        Exchange(key="", messages=(), error="ModelError: on fire"),
    )
    step = Step(0, "Where is my parcel?", "delivery", exchanges=exchanges)
    await cli.api.store.add_episode(make_episode("asked", steps=(step,)), None, regime=0)
    await cli.api.store.flush()
    text = " ".join((await cli("show", "asked")).stdout.split())
    assert "tick 0 asked Where is my parcel? -> delivery (openai/x, 30+1 tokens, 0.5 s)" in text
    assert "(not kept) -> ModelError: on fire" in text


async def test_show_finds_agents_releases_revisions_and_episodes_by_their_beginnings(cli) -> None:
    assert "gains.kp" in (await cli("show", "cartpole")).stdout
    assert "a hunch" in (await cli("show", "r-o")).stdout
    assert f"revision {BETTER.id}" in (await cli("show", BETTER.id[:6])).stdout
    assert "fell to the right" in (await cli("show", "e1")).stdout
    nothing = await cli("show", "nothing")
    assert nothing.exit_code == 2
    assert "there is no agent, release, revision or episode 'nothing'" in nothing.stderr


async def test_diff_compares_a_revision_with_its_parent_an_agent_with_its_source_and_any_two(cli) -> None:
    assert "gains.kp: 1.0 -> 2.5" in (await cli("diff", BETTER.id[:8])).stdout
    assert "gains.kp: 2.5 -> 1.0" in (await cli("diff", BETTER.id[:8], "source")).stdout
    assert "gains.kp: 1.0 -> 2.5" in (await cli("diff", "cartpole", BETTER.id[:8])).stdout
    assert "no differences" in (await cli("diff", "cartpole")).stdout


async def test_diff_shows_changed_code_line_by_line(cli) -> None:
    from agentd.records import make_revision

    revision = make_revision("cartpole", STATE.source, {"act": "def act(self, x):\n    return 1\n"})
    await cli.api.store.commit(revision)
    text = (await cli("diff", "source", revision.id[:8])).stdout
    assert "-    return 0" in text
    assert "+    return 1" in text


async def test_trace_prints_each_tick_as_a_tree_and_takes_an_agent_for_its_newest(cli) -> None:
    for name in ("e1", "cartpole"):
        text = (await cli("trace", name)).stdout
        assert "parameter act" in text
        assert "reset: environment_reset -> [0.1, 0.2]" in text
        assert "score 0.800" in text


async def test_what_an_agent_says_can_not_move_the_cursor_or_style_the_terminal(cli) -> None:
    hostile = "\x1b[2J\x1b[1;31m[bold]owned[/bold]\r\x07"
    cli.api.bench.problem = hostile
    await cli.api.store.commit(Event(kind="x.y", at=NOW, agent="cartpole", message=hostile))
    for words in (("status",), ("status", "cartpole"), ("events",)):
        text = (await cli(*words)).stdout
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "[bold]owned[/bold]" in text


async def test_submit_takes_values_from_toml_json_and_python(cli, tmp_path) -> None:
    toml = tmp_path / "try.toml"
    toml.write_text('note = "more gain"\n[values.gains]\nkp = 3.0\n')
    js = tmp_path / "try.json"
    js.write_text('{"values": {"gains.kp": 4.0}}')
    py = tmp_path / "try.py"
    py.write_text('"""Always push left."""\n\ndef act(self, x):\n    return 0\n')
    for file in (toml, js, py):
        answer = await cli("submit", "cartpole", str(file))
        assert answer.exit_code == 0, answer.stderr
        assert BETTER.id[:10] in answer.stdout
    values = [asked[1] for asked in cli.api.bench.asked]
    assert values == [{"gains.kp": 3.0}, {"gains.kp": 4.0}, {"act": "def act(self, x):\n    return 0\n"}]
    assert cli.api.bench.asked[0] == ("submit", {"gains.kp": 3.0}, "ada", "more gain")
    assert cli.api.bench.asked[2][3] == "Always push left."


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.toml", "[values]\nkq = 1\n", "no parameter is called kq; known: act, gains.kp"),
        ("a.toml", "x = \n", "not TOML"),
        ("a.toml", "note = 'n'\n", "should have a table [values]"),
        ("a.json", "[1]", "should have a table [values]"),
        ("a.py", "def act(:\n", "line 1: not Python"),
        ("a.py", "x = 1\n", "has no top-level function"),
        ("a.py", "def brake(self):\n    pass\n", "no parameter is called brake"),
        ("a.txt", "", "should be a .toml, .json or .py file"),
    ],
)
async def test_a_submission_that_can_not_be_is_refused_with_what_is_expected(cli, tmp_path, name, content, said) -> None:
    (tmp_path / name).write_text(content)
    answer = await cli("submit", "cartpole", str(tmp_path / name))
    assert answer.exit_code == 2
    assert said in answer.stderr
    assert cli.api.bench.asked == []


async def test_submit_can_wait_for_the_verdict_and_says_with_its_exit_code_that_it_goes_on(cli, tmp_path, monkeypatch) -> None:
    file = tmp_path / "try.json"
    file.write_text('{"values": {"gains.kp": 4.0}}')
    real = cli.api.bench.submit

    async def submit(*arguments, **options):
        release = await real(*arguments, **options)
        await cli.api.store.commit(release)
        return release

    monkeypatch.setattr(cli.api.bench, "submit", submit)
    assert (await cli("submit", "cartpole", str(file), "--wait", "1ms")).exit_code == 4
    for phase, code in ((Phase.PROMOTED, 0), (Phase.PRUNED, 1)):

        async def ended(*_arguments, phase=phase, **_options):
            return make_release("r7", phase)

        monkeypatch.setattr(cli.api.bench, "submit", ended)
        assert (await cli("submit", "cartpole", str(file), "--wait", "5s")).exit_code == code
    assert (await cli("submit", "cartpole", str(file), "--wait", "soon")).exit_code == 2


@pytest.mark.parametrize("verb", ["promote", "abort", "pause", "resume", "retry"])
async def test_decisions_name_the_user_and_the_reason(cli, verb) -> None:
    cli.api.bench.current = make_release("r9")
    answer = await cli(verb, "cartpole", "r9", "--reason", "because")
    assert answer.exit_code == 0, answer.stderr
    assert cli.api.bench.asked == [(verb, "r9", "ada", "because")]


async def test_without_an_id_the_release_in_progress_is_meant(cli) -> None:
    nothing = await cli("abort", "cartpole")
    assert nothing.exit_code == 2
    assert "no release in progress" in nothing.stderr
    cli.api.bench.current = make_release("r9", Phase.AWAITING_APPROVAL)
    assert (await cli("approve", "cartpole")).exit_code == 0
    assert cli.api.bench.asked == [("approve", "r9", "ada", "")]


async def test_a_stale_decision_exits_1_and_says_why(cli) -> None:
    cli.api.bench.current = make_release("r9")
    answer = await cli("abort", "cartpole", "r-old")
    assert answer.exit_code == 1
    assert "not the one in progress" in answer.stderr


async def test_rollback_goes_to_the_last_good_revision_or_to_the_one_that_is_named(cli) -> None:
    none = await cli("rollback", "cartpole")
    assert none.exit_code == 2
    cli.api.bench.state = msgspec.structs.replace(STATE, stable=BETTER.id, last_good=FIRST.id)
    assert (await cli("rollback", "cartpole", "-m", "worse in the field")).exit_code == 0
    assert cli.api.bench.asked == [("set_desired", FIRST.id, "ada", "worse in the field")]
    assert (await cli("pin", "cartpole", BETTER.id[:8])).exit_code == 0
    assert cli.api.bench.asked[-1][1] == BETTER.id


async def test_rollback_goes_further_back_where_the_last_good_revision_is_what_serves(cli) -> None:
    cli.api.bench.state = msgspec.structs.replace(STATE, stable=BETTER.id, last_good=BETTER.id, good=((FIRST.id, 0), (BETTER.id, 0)))
    assert (await cli("rollback", "cartpole")).exit_code == 0
    assert cli.api.bench.asked == [("set_desired", FIRST.id, "ada", "")]


async def test_without_a_release_pause_and_resume_are_about_the_agent(cli) -> None:
    assert "paused" in (await cli("pause", "cartpole")).stdout
    assert "running" in (await cli("resume", "cartpole")).stdout
    assert (await cli("propose", "cartpole")).exit_code == 0
    assert [asked[0] for asked in cli.api.bench.asked] == ["pause_agent", "resume_agent", "propose"]


async def test_an_unknown_agent_is_wrong_usage(cli) -> None:
    for words in (("status", "nobody"), ("history", "nobody"), ("propose", "nobody"), ("logs", "nobody")):
        answer = await cli(*words)
        assert answer.exit_code == 2, words
        assert "there is no agent 'nobody'" in answer.stderr


async def test_token_prints_the_token_or_a_link_that_can_only_look(cli) -> None:
    operator = (await cli("token")).stdout.strip()
    viewer = (await cli("token", "--viewer")).stdout.strip()
    link = (await cli("token", "--link")).stdout.strip()
    assert operator != viewer
    assert link.endswith(f"/#token={viewer}")
    assert operator not in link


async def test_a_devices_episodes_are_erased_only_when_somebody_means_it(cli) -> None:
    assert (await cli("forget", "cartpole")).exit_code == 2
    assert (await cli("forget", "cartpole", "--device", "bench-1")).exit_code == 2  # nobody can be asked here
    assert (await cli("forget", "cartpole", "nothing", "--yes")).exit_code == 2
    assert await cli.api.store.episodes("cartpole")
    answer = await cli("forget", "cartpole", "--device", "bench-1", "--yes", "-m", "she asked", "--json")
    assert (answer.exit_code, json.loads(answer.stdout)["erased"] > 0) == (0, True)
    assert not await cli.api.store.episodes("cartpole", device="bench-1")
    told = await cli("audit", "verify")
    assert told.exit_code == 0
    event = (await cli.api.store.events(kinds=["episodes."], latest=True))[0]
    assert (event.who, "she asked" in event.message, event.data["device"]) == ("ada", True, "bench-1")


async def test_feedback_says_what_an_episode_was_worth_and_hears_whether_it_counts(cli) -> None:
    told = await cli("feedback", "e2", "0.25", "-m", "too late", "--metric", "cost=2")
    assert (told.exit_code, "counts" in told.output) == (0, True)
    assert cli.api.bench.asked == [("feedback", "e2", 0.25, "too late", {"cost": 2.0}, "ada")]
    late = await cli("feedback", "e2", "0.5", "-m", "late", "--json")
    assert json.loads(late.stdout)["evidence"] is False
    assert (await cli("feedback", "e2", "7")).exit_code == 2
    assert (await cli("feedback", "e2", "0.5", "--metric", "cost")).exit_code == 2
    assert (await cli("feedback", "e2", "0.5", "-m", "another")).exit_code == 1
