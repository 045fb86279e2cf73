"""The HTTP API from Python: what the CLI, the demo and scripts use."""

import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from agentd.api.tokens import Role, read_token
from agentd.cli.context import JsonObject, Refused
from agentd.errors import DaemonUnreachable
from agentd.settings import read_address

JSON = JsonObject
TIMEOUT = httpx.Timeout(30.0, connect=3.0)
PING = 5.0
"""Seconds in which a daemon that lives says so."""
SILENCE = 45.0
"""Seconds without even a heartbeat after which an event stream counts as dead."""


class Client:
    """A daemon's API at `url`. Every method raises DaemonUnreachable where none answers, Refused for a problem that it names.

    Answers are JSON documents as docs/api.md describes them.
    """

    def __init__(
        self, url: str, token: str | None, *, viewer_token: str | None = None, who: str = "operator", pid: int | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self._pid = pid
        self._viewer_token = viewer_token
        self._who = who
        headers = {"authorization": f"Bearer {token}"} if token else {}
        # A proxy of the environment is for the world outside, not for the daemon on this machine (and must not see its token).
        self._http = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=TIMEOUT, trust_env=False)

    @classmethod
    def from_state(cls, state_directory: Path, *, who: str = "operator") -> Self:
        """The daemon that runs with this state directory, with the best token in it that this user may read.

        Raises:
            DaemonUnreachable: no daemon has left its address there.
        """
        address = read_address(state_directory)
        if address is None:
            raise DaemonUnreachable(str(state_directory), "no running daemon has left its address there")
        viewer = read_token(state_directory, Role.VIEWER)
        return cls(address.url, read_token(state_directory) or viewer, viewer_token=viewer, who=who, pid=address.pid)

    @property
    def page_url(self) -> str:
        """The status page, with a token that may only look in the fragment, which browsers don't send and the page removes."""
        return f"{self.url}/#token={self._viewer_token}" if self._viewer_token else f"{self.url}/"

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    # --- reading -----------------------------------------------------------------------------------------------------

    async def ping(self) -> None:
        """Whether agentd answers at all, soon: a stopped process still takes connections. Raises DaemonUnreachable."""
        try:
            answer = await self._http.get("/livez", timeout=PING)
        except httpx.ReadTimeout as error:
            process = "its process" if self._pid is None else f"process {self._pid}"
            reason = f"{process} took the connection and has said nothing for {PING:g} s; if it hangs, `kill -9` it and start another"
            raise DaemonUnreachable(self.url, reason, hangs=True) from error
        except httpx.TransportError as error:
            raise DaemonUnreachable(self.url, str(error) or type(error).__name__) from error
        if answer.text != "ok\n":
            raise DaemonUnreachable(self.url, "something else than agentd answers there")

    async def status(self) -> JSON:
        """The daemon and all its agents."""
        return await self._get("/status")

    async def agents(self) -> list[JSON]:
        """All agents."""
        return await self._items("/agents")

    async def agent(self, agent: str) -> JSON:
        """One agent."""
        return await self._get(f"/agents/{agent}")

    async def parameter_list(self, agent: str, revision: str | None = None) -> list[JSON]:
        """The parameters with default and value, in a revision (the stable one)."""
        return await self._items(f"/agents/{agent}/parameters", revision=revision)

    async def parameters(self, agent: str, revision: str | None = None) -> JSON:
        """The values by path in a revision (the stable one)."""
        return {parameter["path"]: parameter["value"] for parameter in await self.parameter_list(agent, revision)}

    async def revisions(self, agent: str, limit: int = 100) -> list[JSON]:
        """The newest revisions."""
        return await self._items(f"/agents/{agent}/revisions", limit=limit)

    async def revision(self, revision: str) -> JSON:
        """One revision, by id or prefix, with its source."""
        return await self._get(f"/revisions/{revision}")

    async def releases(self, agent: str, limit: int = 100) -> list[JSON]:
        """The newest releases."""
        return await self._items(f"/agents/{agent}/releases", limit=limit)

    async def release(self, release: str) -> JSON:
        """One release, by id or prefix, with its proposal and evidence."""
        return await self._get(f"/releases/{release}")

    async def episodes(self, agent: str, limit: int = 100, *, revision: str | None = None, role: str | None = None) -> list[JSON]:
        """The newest episodes."""
        return await self._items(f"/agents/{agent}/episodes", limit=limit, revision=revision, role=role)

    async def episode(self, episode: str) -> JSON:
        """One episode, by id or prefix, with steps and feedback."""
        return await self._get(f"/episodes/{episode}")

    async def trace(self, episode: str) -> JSON:
        """The trace graph of an episode: untrusted text."""
        return await self._get(f"/episodes/{episode}/trace")

    async def logs(self, agent: str, limit: int = 200) -> list[str]:
        """The last lines that the agent's workers printed: untrusted text."""
        lines: list[str] = (await self._get(f"/agents/{agent}/logs", limit=limit))["items"]
        return lines

    async def events(self, agent: str | None = None, limit: int = 100, *, after: int | None = None) -> list[JSON]:
        """Events behind `after`, or the latest ones; oldest first."""
        return await self._items("/events", agent=agent, limit=limit, after=after)

    async def follow(self, agent: str | None = None, *, after: int | None = None) -> AsyncIterator[JSON]:
        """Events as they happen, beginning behind `after` or now. Ends when the daemon ends; passing events have `seq` 0."""
        parameters = _given(agent=agent, after=after)
        headers = {"accept": "text/event-stream"}
        timeout = httpx.Timeout(SILENCE, connect=3.0)
        try:
            async with self._http.stream("GET", "/api/v1/events", params=parameters, headers=headers, timeout=timeout) as answer:
                if answer.status_code != httpx.codes.OK:
                    await answer.aread()
                    raise Refused(_problem(answer))
                async for line in answer.aiter_lines():
                    if line.startswith("data: "):
                        yield json.loads(line.removeprefix("data: "))
        except httpx.TransportError as error:
            raise DaemonUnreachable(self.url, str(error) or type(error).__name__) from error

    # --- changing ----------------------------------------------------------------------------------------------------

    async def submit(self, agent: str, values: Mapping[str, Any], *, note: str = "") -> JSON:
        """Begin a release of these values. Safe against being sent twice."""
        return await self._post(f"/agents/{agent}/releases", values=dict(values), note=note)

    async def decide(self, verb: str, agent: str, release: str, *, reason: str = "") -> JSON:
        """approve, promote, abort, pause, resume or retry a release."""
        return await self._post(f"/agents/{agent}/releases/{release}/{verb}", reason=reason)

    async def promote(self, agent: str, release: str, *, reason: str = "", full: bool = False) -> JSON:
        """Force a release on to the next step of its ramp; past the last one, or with `full`, past its canary."""
        return await self._post(f"/agents/{agent}/releases/{release}/promote", reason=reason, full=full)

    async def pause_agent(self, agent: str, *, reason: str = "") -> JSON:
        """Start no more episodes."""
        return await self._post(f"/agents/{agent}/pause", reason=reason)

    async def resume_agent(self, agent: str, *, reason: str = "") -> JSON:
        """Go on after `pause_agent`."""
        return await self._post(f"/agents/{agent}/resume", reason=reason)

    async def freeze(self, agent: str | None, *, reason: str = "") -> list[JSON]:
        """No proposal, release or promotion begins or goes on, of one agent or of all. Returns the agents."""
        return await self._hold("freeze", agent, reason)

    async def unfreeze(self, agent: str | None, *, reason: str = "") -> list[JSON]:
        """Go on after `freeze`."""
        return await self._hold("unfreeze", agent, reason)

    async def unquarantine(self, agent: str, *, reason: str = "") -> list[JSON]:
        """Let an agent that rolled back too often release again."""
        return await self._hold("unquarantine", agent, reason)

    async def _hold(self, verb: str, agent: str | None, reason: str) -> list[JSON]:
        if agent is not None:
            return [await self._post(f"/agents/{agent}/{verb}", reason=reason)]
        items: list[JSON] = (await self._post(f"/{verb}", reason=reason))["items"]
        return items

    async def rebase(self, agent: str, *, keep: Sequence[str] = (), take: Sequence[str] = (), reason: str = "") -> JSON:
        """Settle conflicts: `release` of what is kept (or None), and the `conflicts` that are left."""
        return await self._post(f"/agents/{agent}/rebase", keep=list(keep), take=list(take), reason=reason)

    async def forget(self, agent: str, *, device: str | None = None, episodes: Sequence[str] = (), reason: str = "") -> JSON:
        """Erase episodes: `erased` says how many, `overwritten` whether their bytes are gone from the database's files too."""
        return await self._post(f"/agents/{agent}/forget", device=device, episodes=list(episodes), reason=reason)

    async def act(self, agent: str, observation: Any, *, device: str = "", instruction: str = "") -> JSON:
        """Ask an agent that is served over HTTP. Safe against being sent twice."""
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        body = {"observation": observation, "device": device, "instruction": instruction}
        return await self._request("POST", f"/agents/{agent}/episodes", json=body, headers=headers)

    async def feedback(self, episode: str, score: float, *, text: str = "", metrics: Mapping[str, float] | None = None) -> JSON:
        """Say what an episode was worth; `evidence` tells whether that came in time."""
        return await self._post(f"/episodes/{episode}/feedback", score=score, text=text, metrics=dict(metrics or {}))

    async def propose(self, agent: str) -> JSON:
        """Ask the optimizer for a proposal now."""
        return await self._post(f"/agents/{agent}/proposals")

    async def set_desired(self, agent: str, revision: str, *, reason: str = "") -> JSON:
        """Serve a known revision: rollback or pin."""
        return await self._send("PUT", f"/agents/{agent}/desired-revision", revision=revision, reason=reason)

    async def reload(self) -> JSON:
        """Have the agents directory read again."""
        return await self._request("POST", "/reload")

    # --- HTTP --------------------------------------------------------------------------------------------------------

    async def _get(self, path: str, **parameters: Any) -> JSON:
        return await self._request("GET", path, params=_given(**parameters))

    async def _items(self, path: str, **parameters: Any) -> list[JSON]:
        items: list[JSON] = (await self._get(path, **parameters))["items"]
        return items

    async def _post(self, path: str, **body: Any) -> JSON:
        return await self._send("POST", path, **body)

    async def _send(self, method: str, path: str, **body: Any) -> JSON:
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        for last in (False, True):
            try:
                return await self._request(method, path, json=body | {"who": self._who}, headers=headers)
            except DaemonUnreachable as error:
                # The answer may have been lost after the work was done: with its key the same request can be sent once more.
                if last or isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout):
                    raise
        raise AssertionError("unreachable")

    async def _request(self, method: str, path: str, **options: Any) -> JSON:
        try:
            answer = await self._http.request(method, f"/api/v1{path}", **options)
        except httpx.TransportError as error:
            raise DaemonUnreachable(self.url, str(error) or type(error).__name__) from error
        if answer.is_error:
            raise Refused(_problem(answer))
        try:
            found: JSON = answer.json()
        except ValueError as error:
            raise DaemonUnreachable(self.url, "something else than agentd answers there") from error
        return found


def _given(**parameters: Any) -> JSON:
    return {name: value for name, value in parameters.items() if value is not None}


def _problem(answer: httpx.Response) -> JSON:
    with contextlib.suppress(ValueError):
        found = answer.json()
        if isinstance(found, dict):
            return found
    return {"status": answer.status_code, "title": answer.reason_phrase, "detail": f"the daemon answered {answer.status_code}"}
