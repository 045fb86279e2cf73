"""Clients of an agent that is served over HTTP: they ask, they judge, and they see nothing else."""

import pytest

from agentd.api.tokens import Role

ACT = "/api/v1/agents/cartpole/episodes"
JUDGE = "/api/v1/episodes/e2/feedback"


async def test_a_client_asks_and_gets_the_action_without_being_told_whose_it_is(api) -> None:
    answer = await api.client.post(ACT, json={"observation": {"x": 1}, "device": "alice", "instruction": "be brief"})
    assert answer.status_code == 200
    assert set(answer.json()) == {"episode", "action", "revision", "safe"}
    assert answer.json()["action"] == {"x": 1}
    assert api.bench.asked == [("act", {"x": 1}, "alice", "be brief")]


async def test_a_request_that_is_sent_twice_with_its_key_is_one_episode(api) -> None:
    first, second = [await api.client.post(ACT, json={"observation": 1}, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert first.json() == second.json()
    assert len(api.bench.asked) == 1
    other = await api.client.post(ACT, json={"observation": 2}, headers={"Idempotency-Key": "k"})
    assert other.json()["type"] == "urn:agentd:reused-idempotency-key"


@pytest.mark.parametrize(
    ("observation", "status", "kind"),
    [
        ("full", 429, "overloaded"),
        ("waited", 503, "overloaded"),
        ("late", 504, "unanswered"),
        ("failed", 503, "unanswered"),
        ("outside", 422, "codec-error"),
        ("not served", 409, "request-error"),
    ],
)
async def test_what_can_not_be_answered_says_why_and_whether_to_try_again(api, observation, status, kind) -> None:
    answer = await api.client.post(ACT, json={"observation": observation})
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:agentd:{kind}")
    assert ("retry-after" in answer.headers) == (status in {429, 503, 504})
    assert (answer.json().get("episode") == "e1") == (kind == "unanswered")  # its record says what went wrong


async def test_a_client_says_later_what_an_answer_was_worth(api) -> None:
    answer = await api.client.post(JUDGE, json={"score": 0.25, "text": "too late", "metrics": {"cost": 2}})
    assert answer.status_code == 200
    assert answer.json() | {"detail": ""} == {"episode": "e2", "score": 0.25, "normalised": 0.25, "evidence": True, "detail": ""}
    assert api.bench.asked == [("feedback", "e2", 0.25, "too late", {"cost": 2.0}, "client")]


async def test_feedback_that_can_not_be_is_refused_with_its_reason(api) -> None:
    assert (await api.client.post(JUDGE, json={"score": 7})).json()["problems"] == {"score": "is outside its range"}
    assert (await api.client.post(JUDGE, json={"score": "good"})).status_code == 422
    assert (await api.client.post(JUDGE, json={})).status_code == 422
    assert (await api.client.post("/api/v1/episodes/nothing/feedback", json={"score": 0.5})).status_code == 404
    again = await api.client.post(JUDGE, json={"score": 0.5, "text": "another"})
    assert (again.status_code, again.json()["type"]) == (409, "urn:agentd:feedback-refused")


async def test_a_client_reads_nothing_and_decides_nothing_and_a_viewer_does_not_ask(api) -> None:
    for path in ("/api/v1/status", "/api/v1/agents", ACT, "/api/v1/episodes/e1", "/api/v1/events", "/api/v1/openapi.json"):
        assert (await api.client.get(path)).status_code == 403
    for path in ("/api/v1/agents/cartpole/pause", "/api/v1/agents/cartpole/releases", "/api/v1/reload"):
        assert (await api.client.post(path, json={})).status_code == 403
    for someone, status in ((api.viewer, 403), (api.nobody, 401), (api.operator, 200)):
        assert (await someone.post(ACT, json={"observation": 1})).status_code == status
        assert (await someone.post(JUDGE, json={"score": 0.5})).status_code == status


async def test_a_client_s_token_opens_neither_the_status_page_nor_the_metrics_of_a_daemon_that_others_reach(api) -> None:
    token = api.tokens._tokens[Role.CLIENT]
    assert (await api.client.get("/")).status_code == 401
    entered = await api.nobody.post("/login", content=f"token={token}")
    assert (entered.status_code, "set-cookie" in entered.headers) == (401, False)
    api.app.state.context.settings = api.settings.model_copy(update={"http_host": "0.0.0.0"})
    assert (await api.client.get("/metrics")).status_code == 401
    assert (await api.viewer.get("/metrics")).status_code == 200
