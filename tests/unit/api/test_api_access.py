"""Who may do what, from where: tokens, the page's cookie, Host and Origin, sizes. Attacks included."""

import asyncio
import stat

import httpx
import pytest
from api_bench import NOW, make_client

from agentd.api.guard import MAX_BODY
from agentd.api.tokens import SESSION_SECONDS, Role, Tokens, read_token, token_path
from agentd.errors import AgentdError

READS = ["/api/v1/status", "/api/v1/agents/cartpole/episodes", "/api/v1/episodes/e1", "/api/v1/events", "/api/v1/openapi.json"]


@pytest.mark.parametrize("path", READS)
async def test_reading_needs_a_token(api, path) -> None:
    assert (await api.viewer.get(path)).status_code == 200
    answer = await api.nobody.get(path)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("header", ["Bearer wrong", "Bearer ", "Bearer", "Basic abc", "bearer \u00e9".encode(), ""])
async def test_what_is_no_token_opens_nothing(api, header) -> None:
    assert (await api.nobody.get("/api/v1/status", headers={"authorization": header})).status_code == 401


async def test_every_route_but_the_probes_and_the_way_in_refuses_a_stranger(api) -> None:
    schema = (await api.viewer.get("/api/v1/openapi.json")).json()
    tried = 0
    for path, verbs in schema["paths"].items():
        if not path.startswith("/api/"):
            continue
        concrete = path.format(agent="cartpole", release="r-old", revision="abcd", episode="e1", verb="abort")
        for verb in verbs:
            assert (await api.nobody.request(verb, concrete, json={})).status_code == 401, (verb, path)
            tried += 1
    assert tried > 15


async def test_the_viewer_may_change_nothing(api) -> None:
    schema = (await api.viewer.get("/api/v1/openapi.json")).json()
    for path, verbs in schema["paths"].items():
        concrete = path.format(agent="cartpole", release="r-old", revision="abcd", episode="e1", verb="abort")
        for verb in set(verbs) - {"get"}:
            assert (await api.viewer.request(verb, concrete, json={})).status_code == 403, (verb, path)
    assert api.bench.asked == []


async def test_tokens_are_generated_once_with_mode_0600_and_differ(tmp_path) -> None:
    Tokens.load_or_create(tmp_path)
    tokens = [read_token(tmp_path, role) for role in Role]
    assert len(set(tokens)) == 3
    assert all(stat.S_IMODE(token_path(tmp_path, role).stat().st_mode) == 0o600 for role in Role)
    again = Tokens.load_or_create(tmp_path)
    assert again.role(tokens[0]) is Role.VIEWER
    assert again.role(tokens[1]) is Role.OPERATOR
    assert again.role(tokens[2]) is Role.CLIENT


async def test_a_token_that_others_may_read_is_not_trusted(tmp_path) -> None:
    Tokens.load_or_create(tmp_path)
    token_path(tmp_path, Role.OPERATOR).chmod(0o644)
    with pytest.raises(AgentdError, match="others may read"):
        Tokens.load_or_create(tmp_path)


async def test_a_link_in_the_place_of_a_token_is_not_written_through(tmp_path) -> None:
    target = tmp_path / "elsewhere"
    token_path(tmp_path, Role.OPERATOR).symlink_to(target)
    with pytest.raises(AgentdError):
        Tokens.load_or_create(tmp_path)
    assert not target.exists()


async def log_in(api, token: str) -> httpx.Response:
    return await api.nobody.post("/login", data={"token": token}, headers={"origin": "http://localhost:8420"})


async def test_the_page_asks_for_a_token_and_gives_a_cookie_that_scripts_and_other_sites_can_not_use(api, tmp_path) -> None:
    first = await api.nobody.get("/")
    assert first.status_code == 401
    assert 'type="password"' in first.text
    answer = await log_in(api, api.tokens._tokens[Role.OPERATOR])
    assert answer.status_code == 303
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert api.tokens._tokens[Role.OPERATOR] not in answer.headers["set-cookie"]
    assert "cartpole" in (await api.nobody.get("/")).text


async def test_a_wrong_token_gives_no_cookie(api) -> None:
    answer = await log_in(api, "agentd_guess")
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers


async def test_the_cookie_reads_but_never_changes_even_for_the_operator(api) -> None:
    await log_in(api, api.tokens._tokens[Role.OPERATOR])
    assert (await api.nobody.get("/api/v1/status")).status_code == 200
    assert (await api.nobody.post("/api/v1/agents/cartpole/pause", json={})).status_code == 403


async def test_the_cookie_expires_and_can_not_be_prolonged(api) -> None:
    await log_in(api, api.tokens._tokens[Role.VIEWER])
    api.clock.now = NOW + SESSION_SECONDS + 1
    assert (await api.nobody.get("/api/v1/status")).status_code == 401
    session = api.tokens.open_session(NOW)
    forged = f"{float(session.split('.')[0]) + 1e9:.0f}.{session.split('.')[1]}"
    assert not api.tokens.is_session(forged, NOW)
    for nonsense in ("", ".", "nan.", "inf.x", "9" * 400, "\u00e9.\u00e9"):
        assert not api.tokens.is_session(nonsense, NOW)


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::1", "localhost@evil.example"])
async def test_a_foreign_host_name_is_refused_so_that_dns_rebinding_gains_nothing(api, host) -> None:
    answer = await api.operator.get("/api/v1/status", headers={"host": host})
    assert answer.status_code == 421


@pytest.mark.parametrize("host", ["localhost", "localhost:9", "127.0.0.1:8420", "[::1]:8420", "10.1.2.3"])
async def test_localhost_and_addresses_are_known(api, host) -> None:
    assert (await api.operator.get("/api/v1/status", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:9999", "http://localhost:8420.evil.example", "http://[::1"]
)
async def test_requests_from_pages_of_other_sites_are_refused_with_any_credentials(api, origin) -> None:
    answer = await api.operator.post("/api/v1/agents/cartpole/pause", json={}, headers={"origin": origin})
    assert answer.status_code == 403
    assert api.bench.asked == []


async def test_no_answer_allows_other_sites_to_read_it_or_frame_it(api) -> None:
    for client, path in ((api.viewer, "/"), (api.viewer, "/api/v1/status"), (api.nobody, "/"), (api.nobody, "/nowhere")):
        headers = (await client.get(path)).headers
        assert "access-control-allow-origin" not in headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"


async def test_a_body_that_says_it_is_too_large_is_refused_unread(api) -> None:
    answer = await api.operator.post("/api/v1/agents/cartpole/releases", content=b"x" * (MAX_BODY + 1))
    assert answer.status_code == 413


async def test_a_body_that_hides_its_size_is_cut_off(api) -> None:
    sent = 0

    async def endless():
        nonlocal sent
        while True:
            sent += 65_536
            yield b"x" * 65_536

    async def drive():
        return await api.operator.post("/api/v1/agents/cartpole/releases", content=endless())

    async with asyncio.timeout(20):
        answer = await drive()
    assert answer.status_code == 413
    assert sent < 2 * MAX_BODY


async def test_metrics_need_a_token_as_soon_as_others_could_reach_them(api, tmp_path) -> None:
    assert (await api.nobody.get("/metrics")).status_code == 200
    open_to_all = api.settings.model_copy(update={"http_host": "0.0.0.0"})
    api.app.state.context.settings = open_to_all
    assert (await api.nobody.get("/metrics")).status_code == 401
    assert (await api.viewer.get("/metrics")).status_code == 200


async def test_paths_can_not_lead_out_of_the_assets(api) -> None:
    for path in ("/assets/../pages.py", "/assets/%2e%2e%2fpages.py", "/assets/", "/assets/page.css%00"):
        assert (await api.nobody.get(path)).status_code == 404
    assert (await api.nobody.get("/assets/page.js")).status_code == 200


async def test_an_error_never_repeats_the_token(api) -> None:
    async with make_client(api.app, "agentd_secret-guess") as client:
        answer = await client.get("/api/v1/status")
    assert "secret-guess" not in answer.text
