"""The status page at `/`: one server-rendered page, a little script that follows the events, and the way in."""

import math
from importlib import resources
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

import agentd
from agentd.api.context import COOKIE, Context, Shared, role_of
from agentd.api.markup import Child, Markup, document, element
from agentd.api.ports import AgentStatus, DaemonStatus
from agentd.api.problems import Problem
from agentd.api.tokens import SESSION_SECONDS
from agentd.records import Event, Hold, Phase, Release, ReleaseKind

router = APIRouter(include_in_schema=False)

ASSETS = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
NOTHING = "\N{EM DASH}"
RECENT_RELEASES = 8
RECENT_EVENTS = 15
_GOOD = {Phase.PROMOTED}
_BAD = {Phase.REJECTED, Phase.ROLLED_BACK, Phase.ABORTED}


@router.get("/assets/{name}")
def read_asset(name: str) -> Response:
    """Style and script."""
    if name not in ASSETS:
        raise Problem(404, "not-found", "there is no such file")
    content = resources.files("agentd.api").joinpath("assets", name).read_bytes()
    return Response(content, media_type=ASSETS[name], headers={"Cache-Control": "no-cache"})


@router.get("/")
async def read_page(shared: Shared, request: Request) -> Response:
    """The status page, or the way in."""
    role = role_of(request)
    if role is None or not role.reads:
        return HTMLResponse(_login(), 401)
    status = shared.commands.status()
    releases = {agent.name: await shared.store.releases(agent.name, limit=RECENT_RELEASES) for agent in status.agents if agent.state}
    events = await shared.store.events(limit=RECENT_EVENTS, latest=True)
    return HTMLResponse(_page(shared, status, releases, events))


@router.post("/login")
async def log_in(shared: Shared, request: Request) -> Response:
    """A token for a cookie that may read, and only read, whichever token it was."""
    form = parse_qs((await request.body()).decode("utf-8", "replace"))
    role = shared.tokens.role(form.get("token", [""])[0].strip())
    if role is not None and not role.reads:
        return HTMLResponse(_login("The client's token may ask agents, and look at nothing."), 401)
    if role is None:
        return HTMLResponse(_login("That is no token of this daemon."), 401)
    response = RedirectResponse("/", 303)
    session = shared.tokens.open_session(shared.clock.time())
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, session, max_age=int(SESSION_SECONDS), httponly=True, samesite="strict", secure=secure)
    return response


@router.post("/logout")
async def log_out() -> Response:
    """Forget the cookie."""
    response = RedirectResponse("/", 303)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response


def _login(problem: str = "") -> Markup:
    form = element(
        "form",
        element("h1", "agentd"),
        element("label", "Token", for_="token"),
        element("input", id="token", name="token", type="password", autocomplete="off", required=True, autofocus=True),
        element("button", "Look", type="submit"),
        element("p", problem, class_="problem", role="alert") if problem else None,
        element("p", element("code", "agentd token --link"), " prints a link that needs no typing.", class_="hint"),
        method="post",
        action="/login",
        id="login",
    )
    return document("agentd", element("main", form, class_="login"))


def _page(shared: Context, status: DaemonStatus, releases: dict[str, tuple[Release, ...]], events: tuple[Event, ...]) -> Markup:
    now = shared.clock.time()
    frozen = (
        element(
            "p",
            f"Every agent is frozen, those that come included, {_put_on(status.frozen, now)}. agentd unfreeze --all lifts it.",
            class_="held",
        )
        if status.frozen
        else None
    )
    broken = [
        element(
            "article", element("h2", folder, _badge("can't be loaded", "failed")), element("pre", why, class_="problem"), class_="agent"
        )
        for folder, why in status.broken.items()
    ]
    agents = [_agent(agent, releases.get(agent.name, ()), now) for agent in status.agents]
    nothing = (
        None
        if agents or broken
        else element("p", "No agent is hosted yet: ", element("code", "agentd new"), " writes one; a SIGHUP takes it up.", class_="hint")
    )
    return document(
        "agentd",
        element(
            "header",
            element("h1", "agentd"),
            element(
                "span", f"{agentd.__version__} · up {_span(now - status.started_at)} · life {status.epoch}", class_="quiet", id="daemon"
            ),
            element("span", "live", id="live", class_="badge quiet"),
            element("form", element("button", "Log out", type="submit", class_="link"), method="post", action="/logout"),
        ),
        element("main", frozen, broken, agents, nothing, _events(events, now), id="content"),
        element("footer", f"state {status.state_directory} · store {status.store_url}", class_="quiet"),
    )


def _agent(agent: AgentStatus, releases: tuple[Release, ...], now: float) -> Markup:
    state = agent.state
    score = sum(agent.recent[-10:]) / len(agent.recent[-10:]) if agent.recent else None
    facts: list[tuple[str, Child]] = [
        ("stable", _revision(state.stable if state else None)),
        ("last good", _revision(state.last_good if state else None)),
        ("watch", _watch(agent)),
        ("devices", ", ".join(f"{device}: {status}" for device, status in sorted(agent.devices.items())) or "none"),
        ("optimizer", agent.optimizer),
        ("isolation", f"level {agent.isolation}"),
        ("episodes", agent.episodes),
        ("regime", state.regime if state else NOTHING),
    ]
    return element(
        "article",
        element(
            "h2",
            agent.name,
            _badge(str(agent.health), str(agent.health)),
            _badge(agent.mode.value),
            _badge("paused", "degraded") if state and state.paused else None,
            _badge("frozen", "held") if state and state.frozen else None,
            _badge("quarantine", "failed") if state and state.quarantine else None,
        ),
        element("p", agent.problem, class_="problem") if agent.problem else None,
        [element("p", text, class_="held") for text in _holds(agent, now)],
        element(
            "div",
            element(
                "div",
                element("span", NOTHING if score is None else f"{score:.3f}", class_="score"),
                element("span", "mean of the last 10 scores of stable", class_="quiet"),
                class_="figure",
            ),
            _sparkline(agent.recent, state.watch.bound if state and state.watch else None),
            class_="scores",
        ),
        element("dl", [element("div", element("dt", name), element("dd", value)) for name, value in facts]),
        _in_progress(agent.release, agent.waiting, now) if agent.release else None,
        _history(releases, now),
        class_="agent",
    )


def _put_on(hold: Hold, now: float) -> str:
    return f"by {hold.who}, {_span(now - hold.at)} ago" + (f": {hold.reason}" if hold.reason else "")


def _holds(agent: AgentStatus, now: float) -> list[str]:
    """What an operator or a rule holds back, and what waits for a person, in sentences."""
    state = agent.state
    if state is None:
        return []
    found = []
    for hold, word, lift in ((state.quarantine, "In quarantine", "unquarantine"), (state.frozen, "Frozen", "unfreeze")):
        if hold is not None:
            whose = "--all" if hold.everywhere else agent.name
            found.append(f"{word} {_put_on(hold, now)}. agentd {lift} {whose} lets its releases go on.")
    if state.conflicts:
        paths = ", ".join(conflict.path for conflict in state.conflicts)
        found.append(f"The source has changed under learned values of {paths}: agentd rebase {agent.name} settles it.")
    return found


def _watch(agent: AgentStatus) -> str:
    watch = agent.state.watch if agent.state else None
    if watch is None:
        return NOTHING
    if watch.alarmed:
        return "alarm"
    return f"burn-in, {watch.episodes} episodes" if watch.bound is None else f"at least {watch.bound:.3f} expected"


def _sparkline(scores: tuple[float, ...], bound: float | None) -> Markup:
    """Scores from left (old) to right; the dashed line is what the watch expects at least."""
    width, height = 360, 64

    def y(score: float) -> float:
        return round(height - 2 - max(0.0, min(1.0, score)) * (height - 4), 1)

    points = [(round(index * width / max(1, len(scores) - 1), 1), y(score)) for index, score in enumerate(scores) if math.isfinite(score)]
    line = " ".join(f"{x},{height_}" for x, height_ in points)
    return element(
        "svg",
        element("title", f"the last {len(scores)} scores, from 0 at the bottom to 1 at the top"),
        element("polygon", points=f"0,{height} {line} {points[-1][0]},{height}", class_="area") if len(points) > 1 else None,
        element("polyline", points=line, class_="line") if len(points) > 1 else None,
        element("line", x1=0, x2=width, y1=y(bound), y2=y(bound), class_="bound") if bound is not None else None,
        viewBox=f"0 0 {width} {height}",
        preserveAspectRatio="none",
        role="img",
        class_="sparkline",
    )


def _in_progress(release: Release, waiting: str, now: float) -> Markup:
    need = math.log(1 / (release.settings.promotion_alpha or release.settings.alpha))
    log_e = release.superiority.log_e
    return element(
        "section",
        element(
            "h3",
            "Release in progress",
            _badge(release.phase.value.replace("_", " "), "running"),
            element("code", release.id, class_="quiet"),
        ),
        element(
            "p",
            "candidate ",
            _revision(release.candidate),
            " against ",
            _revision(release.reference),
            f" · begun {_span(now - release.begun_at)} ago",
            f" · {release.reason}" if release.reason else "",
        ),
        element("p", f"Waits: {waiting}", class_="held") if waiting else None,
        _approval(release) if release.phase is Phase.AWAITING_APPROVAL else None,
        element(
            "div",
            _gauge("pairs", f"{release.pairs} of at most {release.settings.max_pairs}", release.pairs / release.settings.max_pairs),
            _gauge("e-value", f"{math.exp(min(log_e, 700)):.3g} of {math.exp(need):.3g}", log_e / need),
            element("div", element("span", "difference", class_="quiet"), element("strong", _signed(release.difference)), class_="gauge"),
            class_="gauges",
        ),
        class_="release",
    )


def _approval(release: Release) -> Markup:
    """What a person is asked for, and what the replay showed."""
    replay = release.screening
    shown = f"Of {replay.ticks} replayed ticks {replay.differing} differ. " if replay is not None and replay.ticks else ""
    return element(
        "p",
        f"{shown}Waits for a person: ",
        element("code", f"agentd show {release.id}"),
        ", then ",
        element("code", f"agentd approve {release.agent} {release.id}"),
        class_="held",
    )


def _gauge(name: str, text: str, share: float) -> Markup:
    bar = element("progress", value=f"{max(0.0, min(1.0, share)):.3f}", max=1, aria_label=name)
    return element("div", element("span", name, class_="quiet"), element("strong", text), bar, class_="gauge")


def _history(releases: tuple[Release, ...], now: float) -> Markup | None:
    ended = [release for release in releases if release.ended_at is not None]
    if not ended:
        return None
    rows = [
        element(
            "tr",
            element("td", _span(now - (release.ended_at or now)), " ago", class_="quiet"),
            element("td", _revision(release.candidate)),
            element(
                "td",
                _badge(release.phase.value.replace("_", " "), _tone(release.phase)),
                " forced" if release.forced else " probe" if release.kind is ReleaseKind.PROBE else None,
            ),
            element("td", release.pairs, class_="number"),
            element("td", _signed(release.difference), class_="number"),
            element("td", f"{math.exp(min(release.superiority.log_e, 700)):.3g}", class_="number"),
            element("td", release.reason, class_="text"),
        )
        for release in ended
    ]
    heads = ("ended", "candidate", "verdict", "pairs", "difference", "e-value", "reason")
    return element(
        "div",
        element("table", element("thead", element("tr", [element("th", head) for head in heads])), element("tbody", rows)),
        class_="scroll",
    )


def _events(events: tuple[Event, ...], now: float) -> Markup | None:
    if not events:
        return None
    rows = [
        element(
            "tr",
            element("td", _span(now - event.at), " ago", class_="quiet"),
            element("td", event.agent),
            element("td", element("code", event.kind)),
            element("td", event.message, class_="text"),
            element("td", event.who, class_="quiet"),
        )
        for event in reversed(events)
    ]
    return element(
        "section", element("h2", "Events"), element("div", element("table", element("tbody", rows)), class_="scroll"), class_="events"
    )


def _badge(text: str, tone: str = "") -> Markup:
    return element("span", text, class_=f"badge {tone}".strip())


def _tone(phase: Phase) -> str:
    return "ok" if phase in _GOOD else "failed" if phase in _BAD else "quiet"


def _revision(revision: str | None) -> Markup:
    return element("code", revision[:10] if revision else NOTHING, title=revision)


def _signed(difference: float | None) -> str:
    return NOTHING if difference is None else f"{round(difference, 3) + 0.0:+.3f}"  # no -0.000


def _span(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
