"""What the API tells and does, over HTTP, on the real store."""

import httpx
import msgspec
import pytest
import structlog
from api_bench import BETTER, FIRST, STATE, make_release

from agentd.errors import StoreUnavailable
from agentd.records import Conflict, Phase


async def test_the_status_names_every_agent_with_its_stable_revision_and_scores(api) -> None:
    answer = await api.viewer.get("/api/v1/status")
    assert answer.status_code == 200
    [agent] = answer.json()["agents"]
    assert agent["state"]["stable"] == FIRST.id
    assert "parameters" not in agent["state"]
    assert agent["recent"][-1] == 0.74
    assert agent["state"]["watch"]["bound"] == 0.71
    assert (await api.viewer.get("/api/v1/agents/cartpole")).json() == agent
    assert (await api.viewer.get("/api/v1/agents")).json()["items"] == [agent]


async def test_an_unknown_agent_is_a_404_problem_document(api) -> None:
    for path in (
        "/agents/nobody",
        "/agents/nobody/releases",
        "/agents/nobody/episodes",
        "/agents/nobody/logs",
        "/agents/nobody/parameters",
    ):
        answer = await api.viewer.get(f"/api/v1{path}")
        assert answer.status_code == 404, path
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == "urn:agentd:not-found"
        assert answer.json()["status"] == 404


async def test_parameters_are_shown_with_defaults_and_values_of_any_revision_of_the_source(api) -> None:
    [act, gain] = (await api.viewer.get("/api/v1/agents/cartpole/parameters")).json()["items"]
    assert act["kind"] == "code"
    assert act["value"] == act["default"]
    assert gain["value"] == 1.0
    better = await api.viewer.get("/api/v1/agents/cartpole/parameters", params={"revision": BETTER.id[:8]})
    assert better.json()["items"][1]["value"] == 2.5


async def test_lists_come_in_pages_that_together_hold_everything_once(api) -> None:
    seen, before = [], None
    while True:
        parameters = {"limit": 1} | ({"before": before} if before else {})
        page = (await api.viewer.get("/api/v1/agents/cartpole/revisions", params=parameters)).json()
        seen += [revision["id"] for revision in page["items"]]
        before = page["next"]
        if before is None:
            break
    assert sorted(seen) == sorted([FIRST.id, BETTER.id])


async def test_a_revision_is_found_by_a_prefix_and_says_where_it_came_from(api) -> None:
    revision = (await api.viewer.get(f"/api/v1/agents/cartpole/revisions/{BETTER.id[:6]}")).json()
    assert revision["id"] == BETTER.id
    assert revision["values"] == {"gains.kp": 2.5}
    assert revision["provenance"][0]["note"] == "a hunch"
    assert "controller.py" in revision["source_files"]
    assert (await api.viewer.get(f"/api/v1/revisions/{BETTER.id[:6]}")).json() == revision


async def test_a_release_is_shown_with_proposal_difference_and_e_value(api) -> None:
    release = (await api.viewer.get("/api/v1/agents/cartpole/releases/r-old")).json()
    assert (await api.viewer.get("/api/v1/releases/r-o")).json() == release
    assert release["phase"] == "promoted"
    assert release["difference"] == pytest.approx(0.1)
    assert release["e_value"] == pytest.approx(4.4817, rel=1e-4)
    assert release["proposed"]["reasoning"] == "a hunch"
    assert release["evidence"] == []


async def test_an_episode_has_steps_feedback_and_trace_and_nan_becomes_null(api) -> None:
    episode = (await api.viewer.get("/api/v1/episodes/e1")).json()
    assert episode["steps"][1]["observation"] == [0.2, None]
    assert episode["steps"][1]["safe"] == "late"
    assert episode["feedback"]["score"] == 0.8
    assert "trace" not in episode
    trace = (await api.viewer.get("/api/v1/episodes/e1/trace")).json()
    assert [node["operator"] for node in trace["nodes"]] == ["", "environment_reset", "act", "episode_end"]
    assert (await api.viewer.get("/api/v1/episodes/e1/feedback")).json()["normalised"] == 0.8
    assert (await api.viewer.get("/api/v1/episodes/e2/trace")).status_code == 404
    assert (await api.viewer.get("/api/v1/episodes/e2/feedback")).status_code == 404


async def test_episodes_can_be_chosen_by_role_and_revision(api) -> None:
    def ids(answer):
        return [episode["id"] for episode in answer.json()["items"]]

    path = "/api/v1/agents/cartpole/episodes"
    assert ids(await api.viewer.get(path)) == ["e2", "e1"]
    assert ids(await api.viewer.get(path, params={"role": "candidate"})) == []
    assert ids(await api.viewer.get(path, params={"revision": FIRST.id[:8]})) == ["e2", "e1"]
    assert (await api.viewer.get(path, params={"role": "boss"})).status_code == 422


async def test_logs_end_with_the_newest_line(api) -> None:
    assert (await api.viewer.get("/api/v1/agents/cartpole/logs", params={"limit": 2})).json()["items"] == ["second", "third"]


async def test_a_submission_becomes_a_release_and_names_who_gave_it(api) -> None:
    body = {"values": {"gains.kp": 3.0}, "who": "ada", "note": "try more"}
    answer = await api.operator.post("/api/v1/agents/cartpole/releases", json=body)
    assert answer.status_code == 201
    assert answer.json()["phase"] == "proposed"
    assert api.bench.asked == [("submit", {"gains.kp": 3.0}, "ada", "try more")]


async def test_values_that_can_not_be_come_back_with_every_problem_by_path(api) -> None:
    answer = await api.operator.post("/api/v1/agents/cartpole/releases", json={"values": {"x": 1, "y": 2}})
    assert answer.status_code == 422
    assert answer.json()["problems"] == {"x": "there is no such parameter", "y": "there is no such parameter"}


@pytest.mark.parametrize("verb", ["promote", "abort", "pause", "resume", "retry"])
async def test_each_decision_reaches_the_release_in_progress_with_name_and_reason(api, verb) -> None:
    api.bench.current = make_release("r9")
    answer = await api.operator.post(f"/api/v1/agents/cartpole/releases/r9/{verb}", json={"who": "ada", "reason": "because"})
    assert answer.status_code == 200
    assert api.bench.asked == [(verb, "r9", "ada", "because")]


async def test_a_decision_about_a_release_that_has_moved_on_is_409(api) -> None:
    api.bench.current = make_release("r9")
    stale = await api.operator.post("/api/v1/agents/cartpole/releases/r-old/abort", json={})
    assert (stale.status_code, stale.json()["type"]) == (409, "urn:agentd:stale-release")
    illegal = await api.operator.post("/api/v1/agents/cartpole/releases/r9/approve", json={})
    assert (illegal.status_code, illegal.json()["type"]) == (409, "urn:agentd:illegal-transition")
    assert illegal.json()["phase"] == "confirmation"
    assert api.bench.asked == []


async def test_an_unknown_verb_is_refused_before_anything_is_done(api) -> None:
    api.bench.current = make_release("r9")
    answer = await api.operator.post("/api/v1/agents/cartpole/releases/r9/destroy", json={})
    assert answer.status_code == 422
    assert api.bench.asked == []


async def test_the_desired_revision_is_put_by_prefix(api) -> None:
    answer = await api.operator.put("/api/v1/agents/cartpole/desired-revision", json={"revision": BETTER.id[:8], "reason": "better"})
    assert answer.status_code == 200
    assert answer.json()["state"]["stable"] == BETTER.id
    assert (await api.operator.put("/api/v1/agents/cartpole/desired-revision", json={"revision": "feed" * 4})).status_code == 404


async def test_an_agent_is_paused_and_resumed_and_the_optimizer_is_asked(api) -> None:
    assert (await api.operator.post("/api/v1/agents/cartpole/pause", json={})).json()["state"]["paused"] is True
    assert (await api.operator.post("/api/v1/agents/cartpole/resume", json={"who": "ada"})).json()["state"]["paused"] is False
    assert (await api.operator.post("/api/v1/agents/cartpole/proposals", json={})).status_code == 202
    assert (await api.operator.post("/api/v1/reload")).status_code == 200
    assert [asked[0] for asked in api.bench.asked] == ["pause_agent", "resume_agent", "propose", "reload"]


async def test_a_body_with_unknown_members_or_no_json_says_what_is_expected(api) -> None:
    unknown = await api.operator.post("/api/v1/agents/cartpole/releases", json={"values": {"gains.kp": 1}, "force": True})
    assert unknown.status_code == 422
    assert unknown.json()["mistakes"][0]["key"] == "body.force"
    broken = await api.operator.post("/api/v1/agents/cartpole/releases", content=b"{", headers={"content-type": "application/json"})
    assert broken.status_code == 422
    assert broken.json()["type"] == "urn:agentd:invalid-request"


async def test_a_store_that_fails_is_a_503_that_may_be_tried_again(api, monkeypatch) -> None:
    async def refuse(*_args, **_kwargs):
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(api.bench, "submit", refuse)
    answer = await api.operator.post("/api/v1/agents/cartpole/releases", json={"values": {"gains.kp": 1}})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


async def test_what_went_wrong_inside_is_logged_and_not_told_to_the_client(api, monkeypatch) -> None:
    def fail():
        raise RuntimeError("postgresql://user:hunter2@db")

    monkeypatch.setattr(api.bench, "status", fail)
    transport = httpx.ASGITransport(api.app, raise_app_exceptions=False)
    with structlog.testing.capture_logs() as logged:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=api.viewer.headers) as client:
            answer = await client.get("/api/v1/status")
    assert answer.status_code == 500
    assert "hunter2" not in answer.text
    assert [(entry["event"], entry["path"]) for entry in logged] == [("a request failed", "/api/v1/status")]


async def test_a_live_daemon_is_ready_only_while_its_agents_are_up(api) -> None:
    assert (await api.nobody.get("/livez")).status_code == 200
    assert (await api.nobody.get("/readyz")).status_code == 200
    api.bench.problem = "the runner is lost"
    answer = await api.nobody.get("/readyz")
    assert answer.status_code == 503
    assert "cartpole" not in answer.text


async def test_metrics_show_the_release_in_progress(api) -> None:
    api.bench.current = make_release("r9")
    text = (await api.nobody.get("/metrics")).text
    assert 'agentd_release_phase{agent="cartpole",phase="confirmation"} 1.0' in text
    assert 'agentd_release_log_e_value{agent="cartpole",hypothesis="better"} 1.5' in text
    api.bench.current = None
    text = (await api.nobody.get("/metrics")).text
    assert 'agentd_release_phase{agent="cartpole",phase="confirmation"} 0.0' in text


async def test_finished_releases_are_left_out_when_only_active_ones_are_asked_for(api) -> None:
    await api.store.commit(make_release("r-new", Phase.SELECTION))
    answer = await api.viewer.get("/api/v1/agents/cartpole/releases", params={"active": "true"})
    assert [release["id"] for release in answer.json()["items"]] == ["r-new"]


@pytest.mark.parametrize("verb", ["pause", "resume", "freeze", "unfreeze", "unquarantine"])
async def test_an_agent_is_held_and_let_go_with_name_and_reason(api, verb) -> None:
    answer = await api.operator.post(f"/api/v1/agents/cartpole/{verb}", json={"who": "ada", "reason": "a demonstration"})
    assert answer.status_code == 200
    asked = {"pause": "pause_agent", "resume": "resume_agent"}.get(verb, verb)
    assert api.bench.asked == [(asked, "cartpole", "ada", "a demonstration")]


async def test_all_agents_are_frozen_at_once_and_each_says_so(api) -> None:
    answer = (await api.operator.post("/api/v1/freeze", json={"who": "ada", "reason": "fire"})).json()
    [agent] = answer["items"]
    assert agent["state"]["frozen"] == answer["frozen"] == {"at": api.clock.now, "who": "ada", "reason": "fire", "everywhere": True}
    assert (await api.viewer.get("/api/v1/status")).json()["frozen"] == answer["frozen"]
    assert b'agentd_held{agent="cartpole",by="frozen"} 1.0' in (await api.viewer.get("/metrics")).content
    [agent] = (await api.operator.post("/api/v1/unfreeze", json={})).json()["items"]
    assert agent["state"]["frozen"] is None
    assert b'agentd_held{agent="cartpole",by="frozen"} 0.0' in (await api.viewer.get("/metrics")).content


async def test_full_is_for_promotions_only(api) -> None:
    api.bench.current = make_release("r9")
    answer = await api.operator.post("/api/v1/agents/cartpole/releases/r9/promote", json={"full": True})
    assert answer.status_code == 200
    assert api.bench.asked == [("promote full", "r9", "operator", "")]
    answer = await api.operator.post("/api/v1/agents/cartpole/releases/r9/abort", json={"full": True})
    assert answer.status_code == 422


async def test_conflicts_with_the_source_are_listed_and_settled_by_path(api) -> None:
    conflict = Conflict(path="gains.kp", base=1.0, learned=2.5, source=2.0)
    await api.store.commit(msgspec.structs.replace(STATE, conflicts=(conflict,)))
    [shown] = (await api.viewer.get("/api/v1/agents/cartpole/conflicts")).json()["items"]
    assert shown == {"path": "gains.kp", "base": 1.0, "learned": 2.5, "source": 2.0}
    answer = await api.operator.post("/api/v1/agents/cartpole/rebase", json={"keep": ["gains.kp"], "who": "ada"})
    assert answer.json()["release"]["id"] == "r-rebase"
    assert api.bench.asked == [("rebase", ("gains.kp",), (), "ada", "")]
    answer = await api.operator.post("/api/v1/agents/cartpole/rebase", json={"take": ["act"]})
    assert (answer.status_code, answer.json()["problems"]) == (422, {"act": "has no conflict"})


async def test_a_rollback_that_is_sent_again_with_its_key_is_done_once(api) -> None:
    body, headers = {"revision": BETTER.id}, {"idempotency-key": "k1"}
    first = await api.operator.put("/api/v1/agents/cartpole/desired-revision", json=body, headers=headers)
    again = await api.operator.put("/api/v1/agents/cartpole/desired-revision", json=body, headers=headers)
    assert first.json() == again.json()
    assert len(api.bench.asked) == 1
