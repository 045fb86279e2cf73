"""The status page: what it shows, and that nothing an agent says becomes markup."""

import asyncio
import shutil

import msgspec
import pytest
from api_bench import BETTER, FIRST, NOW, STATE, make_release

from agentd.api.markup import element, join
from agentd.api.server import serve
from agentd.api.tokens import Role
from agentd.records import Conflict, Event, Hold, Phase, Screening


async def page(api) -> str:
    answer = await api.viewer.get("/")
    assert answer.status_code == 200
    return answer.text


async def test_the_page_shows_agent_score_stable_revision_and_events(api) -> None:
    text = await page(api)
    for shown in ("cartpole", FIRST.id[:10], "0.622", "at least 0.710 expected", "bench-1: ready", "pair 4", "promoted"):
        assert shown in text, shown


async def test_the_page_shows_the_release_in_progress_with_evidence(api) -> None:
    api.bench.current = make_release("r9")
    text = await page(api)
    for shown in ("Release in progress", BETTER.id[:10], "12 of at most 300", "4.48 of 20", "+0.100"):
        assert shown in text, shown


async def test_a_difference_of_nothing_has_no_minus(api) -> None:
    api.bench.current = make_release("r9", candidate_sum=6.0 - 1e-9, reference_sum=6.0)
    assert ">+0.000<" in await page(api)


async def test_the_page_says_what_holds_an_agent_back_and_what_waits_for_a_person(api) -> None:
    frozen = Hold(at=api.clock.now - 7300, who="ada", reason="<b>fire</b>")
    quarantine = Hold(at=api.clock.now, who="agentd", reason="rolled back 4 times")
    conflict = Conflict(path="gains.kp", base=1.0, learned=2.5, source=2.0)
    api.bench.state = msgspec.structs.replace(STATE, frozen=frozen, quarantine=quarantine, conflicts=(conflict,))
    api.bench.current = make_release("r9", Phase.AWAITING_APPROVAL, screening=Screening(episodes=3, ticks=200, differing=50))
    text = await page(api)
    for words in (
        "Frozen by ada, 2 h ago: &lt;b&gt;fire&lt;/b&gt;. agentd unfreeze cartpole",
        "In quarantine by agentd",
        "learned values of gains.kp: agentd rebase cartpole",
        "Of 200 replayed ticks 50 differ",
        "agentd approve cartpole r9",
    ):
        assert words in text
    api.bench.frozen = Hold(at=api.clock.now - 7300, who="<b>ada</b>", everywhere=True)
    assert "Every agent is frozen, those that come included, by &lt;b&gt;ada&lt;/b&gt;, 2 h ago. agentd unfreeze --all" in await page(api)


async def test_a_broken_agent_folder_is_shown_with_its_mistakes(api) -> None:
    api.bench.broken = {"pendulum": "agent.toml: agent.name: required, but missing"}
    assert "required, but missing" in await page(api)


async def test_what_an_agent_says_is_text_and_never_markup(api) -> None:
    hostile = '<script>alert(1)</script><img src=x onerror="alert(2)">'
    api.bench.problem = hostile
    api.bench.current = make_release("r9", reason=hostile)
    api.bench.broken = {hostile: hostile}
    await api.store.commit(Event(kind=hostile, at=NOW, agent="cartpole", message=hostile, who=hostile))
    text = await page(api)
    assert "<script>alert" not in text
    assert "<img" not in text
    assert text.count("&lt;script&gt;alert(1)") >= 6


async def test_the_page_brings_its_own_style_and_script_and_no_other(api) -> None:
    text = await page(api)
    assert text.count("<script") == 1
    assert 'src="/assets/page.js"' in text
    assert "style=" not in text
    assert " on" not in "".join(part.split(">")[0] for part in text.split("<")[1:]).replace(" one", "")


async def test_the_page_shows_no_token(api) -> None:
    text = await page(api)
    assert all(api.tokens._tokens[role] not in text for role in Role)


CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--dump-dom",
)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
async def test_a_real_browser_gets_in_by_the_link_and_runs_the_pages_script(api, tmp_path) -> None:
    async with serve(api.app, "127.0.0.1", 0) as address:
        link = f"{address.url}/#token={api.tokens._tokens[Role.VIEWER]}"
        process = await asyncio.create_subprocess_exec(
            CHROMIUM,
            *FLAGS,
            f"--user-data-dir={tmp_path / 'chromium'}",
            link,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        shown, _ = await process.communicate()
    text = shown.decode()
    assert FIRST.id[:10] in text
    assert "token=" not in text


def test_markup_escapes_texts_and_attributes_and_keeps_elements() -> None:
    assert element("p", "<b>", element("i", "&"), None, ["x", 1]) == "<p>&lt;b&gt;<i>&amp;</i>x1</p>"
    assert element("a", title='"><script>') == '<a title="&quot;&gt;&lt;script&gt;"></a>'
    assert element("input", required=True, hidden=False, value=None) == "<input required>"
    assert join(["<", element("br")]) == "&lt;<br>"
