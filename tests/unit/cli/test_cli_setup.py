"""Help, new, check: before there is a daemon."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hosted import edited
from typer.testing import CliRunner

from agentd.cli.app import app
from agentd.cli.scaffold import BLANK
from agentd.ready import find
from agentd.spec import load_agent

HEAVY = (
    "numpy",
    "litellm",
    "optuna",
    "gymnasium",
    "sqlalchemy",
    "fastapi",
    "uvicorn",
    "httpx",
    "prometheus_client",
    "structlog",
    "aiomqtt",
)
"""Not pydantic: typer itself imports it."""


def invoke(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_help_and_completion_import_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from agentd.cli.app import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "assert CliRunner().invoke(app, ['status', '--help']).exit_code == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_python_dash_m_agentd_is_the_command_line() -> None:
    answer = subprocess.run([sys.executable, "-m", "agentd", "--version"], capture_output=True, text=True, check=True)
    assert answer.stdout.strip()


def test_every_verb_of_the_manual_is_there() -> None:
    verbs = (
        "demo run check new agents status history show diff episodes trace logs events propose submit approve promote abort rollback pause "
        "resume devices retry pin backup token init optimize forget replay"
    )
    for verb in verbs.split():
        assert invoke(verb, "--help").exit_code == 0, verb


def test_wrong_usage_exits_2() -> None:
    for words in (("bogus",), ("status", "--bogus"), ("history",), ("episodes", "a", "--role", "boss"), ("demo", "--change", "nothing")):
        assert invoke(*words).exit_code == 2, words


def test_a_demo_does_not_begin_in_the_state_of_an_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "agentd.db").touch()
    answer = invoke("demo", "--once", "--state", str(tmp_path))
    assert (answer.exit_code, "earlier" in answer.stderr) == (2, True)


def test_completion_is_offered_for_shells() -> None:
    environment = {**os.environ, "_AGENTD_COMPLETE": "complete_bash", "COMP_WORDS": "agentd roll", "COMP_CWORD": "1"}
    program = "from agentd.cli.app import app; app(prog_name='agentd')"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert "rollback" in answer.stdout


def test_a_new_agent_is_without_mistakes_and_is_never_written_over(tmp_path: Path) -> None:
    assert invoke("new", "mine", "--into", str(tmp_path)).exit_code == 0
    spec, source = load_agent(tmp_path / "mine")
    assert spec.agent.name == "mine"
    assert sorted([*source.files, "agent.toml"]) == sorted(BLANK)
    again = invoke("new", "mine", "--into", str(tmp_path))
    assert (again.exit_code, "is there already" in again.stderr) == (2, True)


def test_a_new_agent_can_begin_as_a_ready_one(tmp_path: Path) -> None:
    assert invoke("new", "balance", "--template", "cartpole", "--into", str(tmp_path)).exit_code == 0
    assert load_agent(tmp_path / "balance")[0].agent.name == "balance"


def test_an_agent_behind_http_is_written_and_checked_and_can_not_be_optimized_without_its_clients(tmp_path: Path) -> None:
    assert invoke("new", "greeter", "--template", "served", "--into", str(tmp_path)).exit_code == 0
    code, findings = check(tmp_path, str(tmp_path / "greeter"))
    assert (code, bad(findings)) == (0, [])
    refused = invoke("optimize", str(tmp_path / "greeter"), "--state", str(tmp_path / "state"))
    assert (refused.exit_code, "waits for its clients" in refused.stderr) == (2, True)


def test_names_and_templates_that_can_not_be_are_refused(tmp_path: Path) -> None:
    for words in (("new", "../evil"), ("new", "Has Spaces"), ("new", "ok", "--template", "nothing")):
        answer = invoke(*words, "--into", str(tmp_path))
        assert answer.exit_code == 2, words
    assert list(tmp_path.glob("*.toml")) == []


def check(tmp_path: Path, *words: str):
    answer = invoke("check", *words, "--json", "--state", str(tmp_path / "state"))
    return answer.exit_code, json.loads(answer.stdout)["findings"]


def bad(findings) -> list[str]:
    return [f"{finding['subject']}: {finding['message']}" for finding in findings if finding["level"] == "bad"]


def test_check_finds_nothing_wrong_with_a_new_agent(tmp_path: Path) -> None:
    invoke("new", "mine", "--into", str(tmp_path))
    code, findings = check(tmp_path, str(tmp_path / "mine"))
    assert (code, bad(findings)) == (0, [])
    assert not (tmp_path / "state").exists()


def test_check_takes_a_name_in_the_agents_directory(tmp_path: Path, monkeypatch) -> None:
    invoke("new", "mine", "--into", str(tmp_path / "agents"))
    monkeypatch.chdir(tmp_path)
    code, findings = check(tmp_path, "mine")
    assert (code, bad(findings)) == (0, [])


def test_check_asks_for_a_broker_only_where_the_environment_is_behind_one(tmp_path: Path) -> None:
    code, findings = check(tmp_path, str(Path(__file__).parents[3] / "policies" / "greeting"))
    assert (code, bad(findings)) == (0, [])
    invoke("new", "robot", "--template", "cartpole", "--into", str(tmp_path))
    code, findings = check(tmp_path, str(tmp_path / "robot"))
    assert (code, len(bad(findings))) == (1, 1)


def test_check_tells_all_mistakes_of_all_agents_at_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        invoke("new", name, "--into", str(tmp_path))
        file = tmp_path / name / "agent.toml"
        file.write_text(file.read_text().replace('mode = "advise"', 'mode = "yolo"').replace("controller:Controller", "controller:Missing"))
    code, findings = check(tmp_path, str(tmp_path / "one"), str(tmp_path / "two"))
    assert code == 1
    assert len(bad(findings)) == 4


def test_check_says_what_the_environment_lacks(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("AGENTD_MODELS", "openai/gpt-4.1-mini,nonsense")
    monkeypatch.setenv("AGENTD_BROKER_URL", "mqtt://127.0.0.1:9")
    invoke("new", "robot", "--template", "cartpole", "--into", str(tmp_path))
    invoke("new", "mine", "--into", str(tmp_path))
    file = tmp_path / "mine" / "agent.toml"
    file.write_text(edited(optimizer__options={"sampels": 3})(file.read_text().replace("CartPole-v1", "CartPool-v1")))
    file = tmp_path / "robot" / "agent.toml"
    file.write_text(edited(optimizer__algorithm="no_such_module.at_all:Mine")(file.read_text()))
    code, findings = check(tmp_path, str(tmp_path / "robot"), str(tmp_path / "mine"))
    said = "\n".join(bad(findings))
    assert code == 1
    for expected in (
        "needs OPENAI_API_KEY",
        "model nonsense: litellm knows no such provider",
        "broker mqtt://127.0.0.1:9: can't be used: [Errno 111] Connection refused",
        "CartPool",
        "optimizer of robot: there is no module no_such_module.at_all on the daemon's Python path",
        "optimizer of mine: [optimizer] options: there is no option 'sampels'; did you mean 'samples'?",
    ):
        assert expected in said, expected


def test_check_reports_mistakes_of_the_daemons_own_settings(tmp_path: Path) -> None:
    (tmp_path / "agentd.toml").write_text('http_port = "x"\nmodelz = []\n')
    answer = invoke("check", "--json", "--config", str(tmp_path / "agentd.toml"))
    assert answer.exit_code == 1
    assert len(bad(json.loads(answer.stdout)["findings"])) == 2


def test_run_refuses_wrong_settings_with_every_mistake_and_exits_2(tmp_path: Path) -> None:
    (tmp_path / "agentd.toml").write_text('http_port = "x"\nmodelz = []\n')
    answer = invoke("run", "--config", str(tmp_path / "agentd.toml"))
    assert answer.exit_code == 2
    assert "http_port" in answer.stderr
    assert 'did you mean "models"' in answer.stderr


def test_check_says_what_isolates_workers_here(tmp_path: Path) -> None:
    invoke("new", "mine", "--into", str(tmp_path))
    _, findings = check(tmp_path, str(tmp_path / "mine"))
    told = [finding["message"] for finding in findings if finding["subject"] == "isolation"]
    assert "this machine gives level" in told[0]
    assert "rlimits" in told[0]
    assert any("cgroup" in message for message in told)


def test_check_says_how_much_of_each_agent_is_in_the_sandbox(tmp_path: Path) -> None:
    for name in ("one", "two"):
        invoke("new", name, "--into", str(tmp_path))
    with (tmp_path / "two" / "agent.toml").open("a") as file:
        file.write('\n[sandbox]\nscope = "code"\n')
    code, findings = check(tmp_path, str(tmp_path / "one"), str(tmp_path / "two"))
    told = {finding["subject"]: (finding["level"], finding["message"]) for finding in findings if "scope" in finding["subject"]}
    assert code == 0, bad(findings)
    assert told["scope of one"] == ("good", "agent: the whole program runs in the sandbox")
    assert told["scope of two"][0] == "hint"
    assert "only the bodies of code parameters run in the sandbox; the program is trusted" in told["scope of two"][1]


def test_check_tells_mistakes_in_a_brokers_address_and_no_password(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("AGENTD_BROKER_URL", "mqtt://arm:s3cret@127.0.0.1:9?colour=red&protocol=4")
    invoke("new", "robot", "--template", "cartpole", "--into", str(tmp_path))
    _, findings = check(tmp_path, str(tmp_path / "robot"))
    (told,) = [message for message in bad(findings) if message.startswith("broker ")]
    assert "knows no option colour" in told
    assert "protocol should be 3.1.1 or 5" in told
    assert "s3cret" not in json.dumps(findings)


@pytest.mark.parametrize("algorithm", ["opro", "optoprime", "textgrad"])
def test_check_says_that_an_optimizer_needs_a_model(tmp_path: Path, monkeypatch, algorithm: str) -> None:
    monkeypatch.delenv("AGENTD_MODELS", raising=False)
    folder = tmp_path / "cartpole"
    shutil.copytree(find("cartpole"), folder)
    text = (folder / "agent.toml").read_text()
    (folder / "agent.toml").write_text(
        re.sub(r"(?m)^algorithm = .*$", "", text).replace("[optimizer]", f'[optimizer]\nalgorithm = "{algorithm}"')
    )
    code, findings = check(tmp_path, str(folder))
    assert code == 1
    assert f"cartpole: the optimizer {algorithm} needs a model; none is named" in [finding["message"] for finding in findings]


def test_check_says_what_an_agent_may_ask_of_models(tmp_path: Path, monkeypatch) -> None:
    for name in ("AGENTD_MODELS", "OPENAI_API_KEY", "AGENTD_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    folder = str(find("triage"))
    code, findings = check(tmp_path, folder)
    assert code == 1
    [found] = [finding for finding in findings if finding["subject"] == "models of triage"]
    assert "each step that asks one would fail" in found["message"]
    monkeypatch.setenv("AGENTD_MODELS", "openai/gpt-4.1-mini")
    monkeypatch.setenv("AGENTD_API_KEY", "sk-test")
    code, findings = check(tmp_path, folder)
    assert code == 0, [finding for finding in findings if finding["level"] == "bad"]
    [found] = [finding for finding in findings if finding["subject"] == "models of triage"]
    assert found["message"] == "it may ask openai/gpt-4.1-mini while it acts, 1 times a step, 1000 an hour, for 5 dollars a day"
