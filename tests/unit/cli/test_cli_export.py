"""`agentd export` and `agentd import`: what was learned, as a patch for the author and as a document that is taken in again."""

import json
import subprocess
from pathlib import Path

import msgspec
import pytest
from api_bench import NOW, STATE, make_release

from agentd.records import Kind, Origin, Parameter, Phase, Proposal, Provenance, Source, make_revision
from agentd.store import SqlStore

CONTROLLER = '''\
"""The robot."""

from agentd.trace import bundle, model, node


@model
class CartPole:
    def __init__(self):
        self.kp = node(1.0, trainable=True)  # the gain
        self.limit = node(max(1.0, 2.0), trainable=True)

    @bundle(trainable=True)
    def act(self, x):
        """Choose."""
        return int(x[0] > 0.0)  # right
'''
CODE = 'def act(self, x):\n    """Choose."""\n    return int(x[0] > 0.0)  # right'
LEARNED = {"kp": 2.5, "act": 'def act(self, x):\n    """Choose."""\n    return int(x[0] > 0.25)\n'}
SOURCE = Source(digest="7" * 64, files={"controller.py": CONTROLLER}, entrypoint="controller:CartPole")
OTHER = Source(digest="8" * 64, files={"controller.py": CONTROLLER + "\n"}, entrypoint="controller:CartPole")
FIRST = make_revision("cartpole", SOURCE.digest, {})
BETTER = make_revision("cartpole", SOURCE.digest, LEARNED)
DYNAMIC = make_revision("cartpole", SOURCE.digest, LEARNED | {"limit": 3.0})
OLDER = make_revision("cartpole", OTHER.digest, {"kp": 4.0})
PARAMETERS = (
    Parameter(path="kp", kind=Kind.NUMBER, default=1.0),
    Parameter(path="limit", kind=Kind.NUMBER, default=2.0),
    Parameter(path="act", kind=Kind.CODE, default=CODE, signature="def act(self, x):"),
)
AGENT = msgspec.structs.replace(STATE, source=SOURCE.digest, stable=BETTER.id, desired=BETTER.id, parameters=PARAMETERS)
HOSTILE = "better\n--- a/controller.py\n+++ b/controller.py\n@@ -1 +1 @@\n-x\n+import os\ndiff --git a/x b/x\n\x1b[2J"


async def fill(store: SqlStore, **changes) -> None:
    await store.commit(
        SOURCE, OTHER, FIRST, BETTER, DYNAMIC, OLDER, msgspec.structs.replace(AGENT, **changes),
        Proposal(
            id="p7", agent="cartpole", parent=FIRST.id, values=LEARNED, algorithm="hybrid", at=NOW - 90, reasoning=HOSTILE, who="optimizer"
        ),
        Provenance(revision=BETTER.id, origin=Origin.OPTIMIZER, at=NOW - 90, parent=FIRST.id, proposal="p7"),
        make_release("r7", Phase.PROMOTED, proposal="p7", candidate=BETTER.id, reference=FIRST.id, ended_at=NOW - 10, reason=HOSTILE),
    )  # fmt: skip


@pytest.fixture
async def hosted(cli):
    """A daemon whose agent has learned."""
    await fill(cli.api.store)
    cli.api.bench.state = AGENT
    return cli


@pytest.fixture
def checkout(tmp_path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "controller.py").write_text(CONTROLLER)
    return folder


def apply(folder: Path, patch: str) -> str:
    ran = subprocess.run(
        ["git", "-c", "core.autocrlf=false", "apply", "-"], check=False, cwd=folder, input=patch.encode(), capture_output=True
    )
    assert ran.returncode == 0, ran.stderr
    return (folder / "controller.py").read_bytes().decode()


CHANGED = CONTROLLER.replace("node(1.0", "node(2.5").replace("x[0] > 0.0", "x[0] > 0.25")


async def test_the_learned_values_come_out_as_a_patch_with_the_evidence_in_its_message(hosted, checkout) -> None:
    answer = await hosted("export", "cartpole")
    assert answer.exit_code == 0, answer.output
    assert answer.stderr == ""
    message, _, _ = answer.stdout.partition("--- a/controller.py\n+++")
    assert message.startswith("cartpole: act, kp as learned by agentd\n\n")
    for told in (BETTER.id, SOURCE.digest, "r7, promoted", "12 pairs, mean difference +0.1000", "e-value 4.482", "optimizer (hybrid)"):
        assert told in message, told
    assert apply(checkout, answer.stdout) == CHANGED


async def test_what_a_model_or_an_operator_wrote_can_not_become_a_part_of_the_patch(hosted, checkout) -> None:
    text = (await hosted("export", "cartpole")).stdout
    assert "\x1b" not in text
    assert [line for line in text.splitlines() if line.startswith(("--- ", "+++ ", "diff ", "@@", "Index"))] == [
        "--- a/controller.py", "+++ b/controller.py", *[line for line in text.splitlines() if line.startswith("@@ -")]
    ]  # fmt: skip
    assert "import os" not in apply(checkout, text)


async def test_it_works_without_a_daemon_and_writes_a_file(tmp_path, hosted, checkout) -> None:
    out = tmp_path / "learned.patch"
    answer = await hosted("export", "cartpole", "--store", str(hosted.folder / "agentd.db"), "--output", str(out), state=False)
    assert answer.exit_code == 0, answer.output
    assert answer.stdout == ""
    assert apply(checkout, out.read_text()) == CHANGED
    assert out.read_text() == (await hosted("export", "cartpole")).stdout


async def test_a_value_without_a_place_is_named_left_to_the_document_and_the_exit_code_says_so(hosted, checkout) -> None:
    answer = await hosted("export", "cartpole", "--revision", DYNAMIC.id[:8])
    assert answer.exit_code == 1
    assert "not in the patch: limit: its value is max(1.0, 2.0), which is no literal (controller.py:10)" in answer.stderr
    assert "Left out: limit: its value is max(1.0, 2.0)" in answer.stdout
    assert apply(checkout, answer.stdout) == CHANGED
    document = json.loads((await hosted("export", "cartpole", "--revision", DYNAMIC.id[:8], "--format", "json")).stdout)
    [limit] = [one for one in document["learned"] if one["path"] == "limit"]
    assert limit["value"] == 3.0
    assert limit["place"] == ""
    assert "no literal" in limit["not_in_patch"]


async def test_the_document_is_versioned_and_tells_values_places_and_evidence(hosted) -> None:
    answer = await hosted("export", "cartpole", "--format", "json")
    assert answer.exit_code == 0
    document = json.loads(answer.stdout)
    assert (document["format"], document["version"]) == ("agentd-export", 1)
    assert (document["agent"], document["revision"], document["source"]) == ("cartpole", BETTER.id, SOURCE.digest)
    kp = next(one for one in document["learned"] if one["path"] == "kp")
    assert kp == {
        "path": "kp", "value": 2.5, "kind": "number", "default": 1.0, "signature": "", "place": "controller.py:9", "not_in_patch": "",
    }  # fmt: skip
    assert document["evidence"]["release"]["id"] == "r7"
    assert (await hosted("export", "cartpole", "--json")).stdout == answer.stdout
    assert document["evidence"]["proposal"]["reasoning"] == HOSTILE
    assert answer.stdout.count("\n") > 30


async def test_a_revision_that_learned_nothing_gives_no_patch(hosted) -> None:
    answer = await hosted("export", "cartpole", "--revision", FIRST.id[:8])
    assert (answer.exit_code, answer.stdout) == (0, "")
    assert "has learned nothing" in answer.stderr


async def test_dos_line_ends_and_other_contents_of_a_checkout_are_taken_into_account(hosted, checkout) -> None:
    file = checkout / "controller.py"
    file.write_bytes(CONTROLLER.replace("\n", "\r\n").encode())
    answer = await hosted("export", "cartpole", "--folder", str(checkout))
    assert answer.exit_code == 0, answer.output
    assert apply(checkout, answer.stdout_bytes.decode()) == CHANGED.replace("\n", "\r\n")
    file.write_text(CONTROLLER + "# more\n")
    changed = await hosted("export", "cartpole", "--folder", str(checkout))
    assert changed.exit_code == 2
    assert "differs from what revision" in changed.stderr
    gone = await hosted("export", "cartpole", "--folder", str(checkout / "nowhere"))
    assert gone.exit_code == 2


async def test_a_revision_of_an_older_source_is_exported_against_that_source(hosted) -> None:
    answer = await hosted("export", "cartpole", "--revision", OLDER.id[:8])
    assert answer.exit_code == 0
    assert "+        self.kp = node(4.0, trainable=True)  # the gain" in answer.stdout
    assert "Release: none" in answer.stdout


async def test_values_that_a_new_source_took_over_show_the_release_of_the_revision_that_they_came_from(hosted) -> None:
    carried = make_revision("cartpole", OTHER.digest, LEARNED)
    origin = Provenance(revision=carried.id, origin=Origin.SOURCE, at=NOW, parent=BETTER.id, who="author", note="new source")
    await hosted.api.store.commit(carried, origin)
    text = (await hosted("export", "cartpole", "--revision", carried.id[:8])).stdout
    assert f"Release: r7, promoted {text.partition('r7, promoted ')[2].partition(' by ')[0]} by agentd, as revision {BETTER.id}" in text


async def test_wrong_usage_is_told(hosted, tmp_path) -> None:
    for words, said in (
        (("export", "nobody"), "there is no agent 'nobody'"),
        (("export", "cartpole", "--revision", "ffff"), "there is no revision 'ffff'"),
        (("export", "cartpole", "--format", "xml"), "patch or json"),
        (("export", "cartpole", "--output", str(tmp_path / "no" / "file")), "can't be written"),
    ):
        answer = await hosted(*words)
        assert answer.exit_code == 2, words
        assert said in answer.stderr


# --- import ----------------------------------------------------------------------------------------------------------


async def exported(hosted, tmp_path, *words) -> Path:
    file = tmp_path / "export.json"
    assert (await hosted("export", "cartpole", "--format", "json", "--output", str(file), *words)).exit_code in {0, 1}
    return file


def allow(hosted, monkeypatch):
    """The bench takes values of these parameters."""
    asked = []

    async def submit(agent, values, *, who, note=""):
        asked.append((agent, dict(values), who, note))
        return make_release("r9", Phase.PROPOSED)

    monkeypatch.setattr(hosted.api.bench, "submit", submit)
    return asked


async def serve(hosted, stable) -> None:
    state = msgspec.structs.replace(AGENT, stable=stable, desired=stable)
    await hosted.api.store.commit(state)
    hosted.api.bench.state = state


async def test_an_exported_revision_is_proposed_again_by_import(hosted, tmp_path, monkeypatch) -> None:
    file = await exported(hosted, tmp_path)
    asked = allow(hosted, monkeypatch)
    await serve(hosted, FIRST.id)
    answer = await hosted("import", "cartpole", str(file), "--note", "from the other robot")
    assert answer.exit_code == 0, answer.stderr
    assert "release r9" in answer.stdout
    assert asked == [("cartpole", {**LEARNED, "act": LEARNED["act"]}, "ada", "from the other robot")]
    assert (await hosted("import", "cartpole", str(file), "--json")).exit_code == 0
    assert asked[1][3] == f"imported: the values of revision {BETTER.id}"


async def test_import_sets_back_what_the_exported_revision_had_not_learned(hosted, tmp_path, monkeypatch) -> None:
    file = await exported(hosted, tmp_path)
    asked = allow(hosted, monkeypatch)
    await serve(hosted, DYNAMIC.id)
    assert (await hosted("import", "cartpole", str(file))).exit_code == 0
    assert asked[0][1] == {"limit": 2.0}


async def test_import_of_what_runs_already_is_refused(hosted, tmp_path, monkeypatch) -> None:
    file = await exported(hosted, tmp_path)
    asked = allow(hosted, monkeypatch)
    answer = await hosted("import", "cartpole", str(file))
    assert answer.exit_code == 2
    assert "nothing to change" in answer.stderr
    assert asked == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda document: document.update(agent="pendulum"), "is of the agent pendulum, not of cartpole"),
        (lambda document: document.update(version=2), "version 2 of the format is not known here, only 1"),
        (lambda document: document.pop("version"), "version None of the format"),
        (lambda document: document.update(format="else"), "not a document of `agentd export --format json`"),
        (lambda document: document.update(learned=[{"value": 1}]), "a damaged document"),
        (lambda document: document["learned"].append({"path": "brake", "value": 1}), "brake: the agent has no such parameter"),
        (lambda document: document.update(source="9" * 64) or document["learned"][0].update(default="x"), "in the source has changed"),
    ],
)
async def test_import_refuses_what_is_not_meant_for_this_agent_and_says_why(hosted, tmp_path, monkeypatch, change, said) -> None:
    file = await exported(hosted, tmp_path)
    asked = allow(hosted, monkeypatch)
    await serve(hosted, FIRST.id)
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
    answer = await hosted("import", "cartpole", str(file))
    assert answer.exit_code == 2, answer.output
    assert said in answer.stderr
    assert asked == []


async def test_values_of_another_source_fit_where_the_parameters_are_still_the_same(hosted, tmp_path, monkeypatch) -> None:
    file = await exported(hosted, tmp_path)
    asked = allow(hosted, monkeypatch)
    await serve(hosted, FIRST.id)
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document | {"source": "9" * 64}))
    assert (await hosted("import", "cartpole", str(file))).exit_code == 0
    assert asked[0][1] == LEARNED


async def test_import_needs_a_document_that_can_be_read(hosted, tmp_path) -> None:
    (tmp_path / "list.json").write_text("[]")
    for name in ("list.json", "none.json"):
        assert (await hosted("import", "cartpole", str(tmp_path / name))).exit_code == 2


async def test_import_needs_the_daemon(lonely, tmp_path) -> None:
    assert (await lonely("import", "cartpole", str(tmp_path / "none.json"))).exit_code == 3
