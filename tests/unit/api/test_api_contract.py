"""The OpenAPI schema is true: whatever a client sends, the answer is one that the schema and RFC 9457 allow, and never a 500."""

import asyncio
import json
import string
import warnings
from urllib.parse import quote

import httpx
import pytest
from api_bench import make_client, make_release, open_api
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentd.api.server import serve
from agentd.api.tokens import Role

TEXT = st.text(max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
SEGMENT = st.sampled_from(["cartpole", "r9", "e1", "abcd", "abort", "..", ""]) | TEXT.map(lambda text: quote(text, safe=""))
HEADER = st.text(string.printable.strip(), max_size=40)


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("contract")


def check(answer: httpx.Response) -> None:
    assert answer.status_code < 500 or answer.json()["type"] != "urn:agentd:internal-error", answer.text
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["status"] == answer.status_code
        assert problem["type"].startswith("urn:agentd:")
        assert problem["detail"]
    elif answer.content:
        json.loads(answer.text)


def fill(template: str, segments: list[str]) -> str:
    for segment in segments:
        template = template.replace("{}", segment, 1)
    return template


OPERATIONS = [
    ("GET", "/api/v1/agents/{}"),
    ("GET", "/api/v1/agents/{}/parameters"),
    ("GET", "/api/v1/agents/{}/revisions"),
    ("GET", "/api/v1/agents/{}/revisions/{}"),
    ("GET", "/api/v1/agents/{}/releases"),
    ("GET", "/api/v1/agents/{}/episodes"),
    ("GET", "/api/v1/agents/{}/logs"),
    ("GET", "/api/v1/releases/{}"),
    ("GET", "/api/v1/revisions/{}"),
    ("GET", "/api/v1/episodes/{}"),
    ("GET", "/api/v1/episodes/{}/trace"),
    ("GET", "/api/v1/events"),
    ("POST", "/api/v1/agents/{}/episodes"),
    ("POST", "/api/v1/episodes/{}/feedback"),
    ("POST", "/api/v1/agents/{}/releases"),
    ("POST", "/api/v1/agents/{}/releases/{}/{}"),
    ("POST", "/api/v1/agents/{}/pause"),
    ("POST", "/api/v1/agents/{}/proposals"),
    ("PUT", "/api/v1/agents/{}/desired-revision"),
]
MEMBERS = ("values", "who", "reason", "note", "revision", "observation", "score", "metrics")
NAMES = st.sampled_from(["limit", "before", "after", "kind", "role", "revision", "active", "agent"])


REQUESTS = st.fixed_dictionaries(
    {
        "operation": st.sampled_from(OPERATIONS),
        "segments": st.lists(SEGMENT, min_size=3, max_size=3),
        "params": st.dictionaries(NAMES, TEXT | st.integers().map(str), max_size=3),
        "json": JSON
        | st.fixed_dictionaries(
            {}, optional=dict.fromkeys(("values", "who", "reason", "note", "revision", "observation", "score", "metrics"), JSON)
        ),
        "headers": st.dictionaries(st.sampled_from(["Idempotency-Key", "Last-Event-ID", "Cookie", "X-Forwarded-For"]), HEADER, max_size=2),
    }
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(requests=st.lists(REQUESTS, min_size=6, max_size=6))
async def test_whatever_is_sent_the_answer_is_json_or_a_problem_and_never_a_failure_inside(module_folder, requests) -> None:
    async with open_api(module_folder) as api, make_client(api.app, api.tokens._tokens[Role.OPERATOR]) as client:
        for request in requests:
            method, template = request.pop("operation")
            path = fill(template, request.pop("segments"))
            api.bench.current = make_release("r9")
            check(await client.request(method, path, **request))


async def test_the_schema_can_be_read_and_names_every_route_once(api) -> None:
    schema = (await api.viewer.get("/api/v1/openapi.json")).json()
    names = [operation["operationId"] for path in schema["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))
    assert "/api/v1/agents/{agent}/releases/{release}/{verb}" in schema["paths"]


def test_schemathesis_finds_no_failure(module_folder) -> None:
    schemathesis = pytest.importorskip("schemathesis")

    async def session() -> list[str]:
        async with open_api(module_folder) as api, serve(api.app, "127.0.0.1", 0) as address:
            return await asyncio.to_thread(probe, schemathesis, address.url, api.tokens._tokens[Role.OPERATOR])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # schemathesis' own and its libraries'
        assert asyncio.run(session()) == []


def probe(schemathesis, url: str, token: str) -> list[str]:
    headers = {"authorization": f"Bearer {token}"}
    document = httpx.get(f"{url}/api/v1/openapi.json", headers=headers, trust_env=False).json()
    schema = schemathesis.openapi.from_dict(document)
    failures: list[str] = []
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path == "/api/v1/reload":
            continue

        @settings(max_examples=8, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def attack(case) -> None:
            answer = case.call(base_url=url, headers=headers)
            if answer.status_code >= 500:
                failures.append(f"{case.method} {case.path}: {answer.status_code} {answer.text[:200]}")

        attack()
    return failures
