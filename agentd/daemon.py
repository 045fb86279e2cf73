"""The composition root: everything is made here, given to what needs it, and taken down in reverse."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import structlog

import agentd
from agentd.api.app import create_app
from agentd.api.ports import Acted, AgentStatus, DaemonStatus, FeedbackReceipt
from agentd.api.server import serve
from agentd.api.tokens import Tokens
from agentd.clock import Clock, SystemClock
from agentd.configuration import parse_size
from agentd.errors import AgentdError, NotFound, RunnerError, leaves
from agentd.hosting.agent import HostedAgent
from agentd.hosting.services import Services, open_services
from agentd.hosting.windows import Windows
from agentd.observability.logs import configure_logging
from agentd.observability.systemd import notify
from agentd.records import Event, Release, Value
from agentd.runners.local import LocalRunner
from agentd.settings import DaemonSettings, remove_address, write_address
from agentd.spec import load_agent
from agentd.store.contract import Store
from agentd.store.retention import Erased

FORGET_EVERY = 300.0

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


DRAIN_MARGIN = 20.0
"""Seconds beyond `drain_timeout` for a runner that must be cut short, or one that is just being started."""


@dataclass(slots=True)
class _Hosting:
    """A hosted agent, the folder that it came from, what was in it, and the task that hosts it."""

    agent: HostedAgent
    folder: str
    content: str
    task: asyncio.Task[None]


class Daemon:
    """The agents that are hosted, and the verbs that change them (agentd.api.ports.Commands)."""

    def __init__(self, settings: DaemonSettings, services: Services, tasks: asyncio.TaskGroup, started_at: float) -> None:
        self._settings = settings
        self._services = services
        self._tasks = tasks
        self._started_at = started_at
        self._agents: dict[str, _Hosting] = {}
        self._broken: dict[str, str] = {}
        """Agent folders that can't be loaded, and why: they stop no other agent."""
        self._changing = asyncio.Lock()
        self._stopping = False

    # --- agents ------------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Make the hosted agents those of the agents directory: new ones begin, changed ones are hosted anew, missing ones are drained.

        An agent whose folder can't be loaded any more goes on as it was.
        """
        async with self._changing:
            if self._stopping:
                return
            self._broken.clear()
            found: dict[str, tuple[str, str, HostedAgent]] = {}
            hosted = {hosting.folder for hosting in self._agents.values()}
            folders = await asyncio.to_thread(_agent_folders, self._settings.agents)
            if not folders:
                log.warning(
                    "no agent is hosted: no folder here has an agent.toml; `agentd new` writes one", agents=str(self._settings.agents)
                )
            # Who is hosted keeps the name: a copy of the folder must not take an agent over.
            for folder in sorted(folders, key=lambda folder: folder.name not in hosted):
                try:
                    spec, source = await asyncio.to_thread(load_agent, folder)
                except Exception as error:  # noqa: BLE001 - whatever is in that folder, it stops no other agent
                    self._broken[folder.name] = str(error) if isinstance(error, AgentdError) else repr(error)
                    await self._say("agent.failed", folder.name, f"{folder.name} can't be loaded: {error}")
                    continue
                if spec.agent.name in found:
                    self._broken[folder.name] = f"another folder has an agent named {spec.agent.name!r} already"
                    continue
                content = f"{source.digest}/{spec.model_dump_json()}"
                found[spec.agent.name] = (folder.name, content, HostedAgent(spec, source, self._services))
            for name, hosting in self._agents.items():
                if name in found and found[name][1] == hosting.content:
                    hosting.folder = found[name][0]
            changed = [
                name
                for name, hosting in self._agents.items()
                if hosting.folder not in self._broken and (name not in found or found[name][1] != hosting.content)
            ]
            await self._drain(changed)
            for name, (folder_name, content, agent) in found.items():
                if name not in self._agents:
                    task = self._tasks.create_task(agent.run(), name=f"agent {name}")
                    self._agents[name] = _Hosting(agent, folder_name, content, task)

    async def drain(self) -> None:
        """End all agents in good order: episode finished, safe action sent, runner gone. None begins any more."""
        async with self._changing:
            self._stopping = True
            await self._drain(list(self._agents))

    async def _drain(self, names: list[str]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for name in names:
                tasks.create_task(self._drain_one(name, self._agents[name]), name=f"drain {name}")

    async def _drain_one(self, name: str, hosting: "_Hosting") -> None:
        hosting.agent.drain(self._settings.drain_timeout)
        done, _ = await asyncio.wait({hosting.task}, timeout=self._settings.drain_timeout + DRAIN_MARGIN)
        if not done:
            log.warning("an agent could not be drained in good order", agent=name)
            hosting.task.cancel()
            await asyncio.wait({hosting.task})
            with contextlib.suppress(AgentdError):
                services = self._services
                await LocalRunner.dismiss(name, services.state_directory, services.epoch, services.clock, timeout=0.0)
        del self._agents[name]

    async def _say(self, kind: str, agent: str, message: str) -> None:
        event = Event(kind=kind, at=self._services.clock.time(), agent=agent, message=message)
        for committed in await self._services.store.commit(event):
            self._services.bus.publish(committed)
        log.info(message, event_kind=kind, agent=agent)

    def _agent(self, name: str) -> HostedAgent:
        try:
            return self._agents[name].agent
        except KeyError:
            raise NotFound("agent", name) from None

    # --- agentd.api.ports.Commands -----------------------------------------------------------------------------------

    def status(self) -> DaemonStatus:
        """The daemon and all its agents."""
        return DaemonStatus(
            version=agentd.__version__,
            pid=os.getpid(),
            started_at=self._started_at,
            epoch=self._services.epoch,
            state_directory=str(self._settings.state_directory),
            store_url=self._settings.shown_store_url,
            agents=tuple(hosting.agent.status() for hosting in self._agents.values()),
            broken=dict(self._broken),
            frozen=self._services.freeze.hold,
        )

    def agent_status(self, agent: str) -> AgentStatus:
        """One agent. Raises NotFound."""
        return self._agent(agent).status()

    def logs(self, agent: str) -> tuple[str, ...]:
        """The last lines that the agent's workers printed. Raises NotFound."""
        return tuple(self._agent(agent).logs)

    async def submit(self, agent: str, values: Mapping[str, Value], *, who: str, note: str = "") -> Release:
        """An operator's proposal."""
        return await self._agent(agent).verbs.submit(values, who=who, note=note)

    async def approve(self, agent: str, release: str, *, who: str, reason: str = "") -> Release:
        """Let a release go on to its canary."""
        return await self._agent(agent).verbs.approve(release, who=who, reason=reason)

    async def promote(self, agent: str, release: str, *, who: str, reason: str = "", full: bool = False) -> Release:
        """Force a release on to the next step of its ramp, or past its canary."""
        return await self._agent(agent).verbs.promote(release, who=who, reason=reason, full=full)

    async def abort(self, agent: str, release: str, *, who: str, reason: str = "") -> Release:
        """End a release."""
        return await self._agent(agent).verbs.abort(release, who=who, reason=reason)

    async def pause(self, agent: str, release: str, *, who: str, reason: str = "") -> Release:
        """Stop drawing pairs for a release."""
        return await self._agent(agent).verbs.pause(release, who=who, reason=reason)

    async def resume(self, agent: str, release: str, *, who: str, reason: str = "") -> Release:
        """Go on with a paused release."""
        return await self._agent(agent).verbs.resume(release, who=who, reason=reason)

    async def retry(self, agent: str, release: str, *, who: str, reason: str = "") -> Release:
        """Begin an ended release's proposal again."""
        return await self._agent(agent).verbs.retry(release, who=who, reason=reason)

    async def pause_agent(self, agent: str, *, who: str, reason: str = "") -> AgentStatus:
        """Start no more episodes."""
        await self._agent(agent).holds.pause(who=who, reason=reason)
        return self.agent_status(agent)

    async def resume_agent(self, agent: str, *, who: str, reason: str = "") -> AgentStatus:
        """Go on after `pause_agent`."""
        await self._agent(agent).holds.resume(who=who, reason=reason)
        return self.agent_status(agent)

    async def freeze(self, agent: str, *, who: str, reason: str = "") -> AgentStatus:
        """No proposal, release or promotion begins or goes on."""
        await self._agent(agent).holds.freeze(who=who, reason=reason)
        return self.agent_status(agent)

    async def unfreeze(self, agent: str, *, who: str, reason: str = "") -> AgentStatus:
        """Go on after `freeze`."""
        await self._agent(agent).holds.unfreeze(who=who, reason=reason)
        return self.agent_status(agent)

    async def freeze_all(self, *, who: str, reason: str = "") -> DaemonStatus:
        """As `freeze`, for every agent: those that are not up, and those that come later, too."""
        return await self._froze(await self._services.freeze.begin(who=who, reason=reason))

    async def unfreeze_all(self, *, who: str, reason: str = "") -> DaemonStatus:
        """Go on after `freeze_all`."""
        return await self._froze(await self._services.freeze.end(who=who, reason=reason))

    async def _froze(self, event: Event | None) -> DaemonStatus:
        """It is committed: now it is done, then told."""
        if event is not None:
            for hosting in tuple(self._agents.values()):
                await hosting.agent.follow_freeze()
            self._services.freeze.tell(event)
        return self.status()

    async def unquarantine(self, agent: str, *, who: str, reason: str = "") -> AgentStatus:
        """Let an agent that rolled back too often release again."""
        await self._agent(agent).holds.lift(who=who, reason=reason)
        return self.agent_status(agent)

    async def set_desired(self, agent: str, revision: str, *, who: str, reason: str = "") -> AgentStatus:
        """Serve a known revision: rollback or pin."""
        await self._agent(agent).verbs.set_desired(revision, who=who, reason=reason)
        return self.agent_status(agent)

    async def forget(self, agent: str, *, device: str | None, episodes: Sequence[str], who: str, reason: str = "") -> Erased:
        """Erase episodes, also of an agent that is not hosted now."""
        await self._services.store.agent(agent)
        erased = await self._services.store.erase(agent, device=device, episodes=episodes, who=who, reason=reason)
        for event in erased.events:
            self._services.bus.publish(event)
        return erased

    async def rebase(self, agent: str, *, keep: Sequence[str], take: Sequence[str], who: str, reason: str = "") -> Release | None:
        """Settle conflicts between learned values and a changed source."""
        return await self._agent(agent).verbs.rebase(keep=keep, take=take, who=who, reason=reason)

    async def act(self, agent: str, observation: Value, *, client: str = "", instruction: str = "") -> Acted:
        """Have a request answered."""
        return await self._agent(agent).act(observation, client=client, instruction=instruction)

    async def give_feedback(self, episode: str, score: float, *, text: str, metrics: Mapping[str, float], who: str) -> FeedbackReceipt:
        """Say what an episode was worth."""
        windows, whole = await self._windows_of(episode)
        return await windows.answer(whole, score, text, metrics, who=who)

    async def _windows_of(self, episode: str) -> tuple[Windows, str]:
        """The windows of the agent that ran an episode (an id, or its beginning), and its whole id. Raises NotFound, RunnerError."""
        agents = [hosting.agent for hosting in self._agents.values()]
        found = next((agent.windows for agent in agents if agent.windows is not None and agent.windows.knows(episode)), None)
        if found is not None:
            return found, episode
        try:
            summary = await self._services.store.summary(episode)
        except NotFound:
            behind = next((agent.name for agent in agents if agent.is_behind), None)
            if behind is None:
                raise
            raise RunnerError(f"agent {behind} has yet to take in what it did before it was started: try again soon") from None
        found = self._agent(summary.agent).windows
        if found is None:
            raise RunnerError(f"agent {summary.agent} is not up")
        return found, summary.id

    async def propose(self, agent: str, *, who: str) -> None:
        """Ask the optimizer for a proposal now."""
        await self._agent(agent).verbs.propose(who=who)

    async def reload(self) -> None:
        """Read the agents directory again."""
        await self.load()


def _agent_folders(directory: Path) -> list[Path]:
    """The folders that hold an agent: `directory` itself, or those directly in it."""
    if (directory / "agent.toml").is_file():
        return [directory]
    if not directory.is_dir():
        return []
    return sorted(path.parent for path in directory.glob("*/agent.toml"))


async def serve_forever(settings: DaemonSettings, clock: Clock) -> None:
    """Run the daemon until SIGTERM or SIGINT; SIGHUP reads the agents directory again.

    Raises:
        AgentdError: the store, the state directory or the HTTP port can't be had.
    """
    stop, reload = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    async with open_services(settings, clock) as services, AsyncExitStack() as stack:
        store, bus, metrics = services.store, services.bus, services.metrics
        tokens = Tokens.load_or_create(settings.state_directory)
        async with asyncio.TaskGroup() as tasks:
            daemon = Daemon(settings, services, tasks, clock.time())
            app = create_app(daemon, store=store, bus=bus, metrics=metrics, tokens=tokens, settings=settings)
            server = await stack.enter_async_context(serve(app, settings.http_host, settings.http_port))
            write_address(settings.state_directory, server.url)
            stack.callback(remove_address, settings.state_directory)
            log.info("agentd is up", url=server.url, state=str(settings.state_directory))
            tasks.create_task(metrics.follow(bus), name="metrics")
            await daemon.load()
            notify("READY=1")
            chores = [
                tasks.create_task(_reload(daemon, reload), name="reload"),
                tasks.create_task(_forget(store, settings), name="forget"),
            ]
            await stop.wait()
            notify("STOPPING=1")
            log.info("stopping: runners finish their episodes")
            for chore in chores:
                chore.cancel()
            await daemon.drain()
            await bus.aclose()


async def _reload(daemon: Daemon, asked: asyncio.Event) -> None:
    while True:
        await asked.wait()
        asked.clear()
        try:
            await daemon.load()
        except AgentdError as error:
            log.warning("reload failed; what runs goes on", error=str(error))
        except Exception:
            log.exception("reload failed by a fault of agentd; what runs goes on")


async def _forget(store: Store, settings: DaemonSettings) -> None:
    """Keep the store within its limits of age, count and size. What serves or may serve again is never forgotten."""
    limit = parse_size(settings.keep_size) if settings.keep_size else None
    while True:
        await asyncio.sleep(FORGET_EVERY)
        try:
            pruned = await store.prune(keep_episodes=settings.keep_episodes, keep_days=settings.keep_days, keep_bytes=limit)
        except AgentdError as error:
            log.warning("old episodes could not be forgotten", error=str(error))
        else:
            log.debug("old episodes forgotten", episodes=pruned.episodes, steps=pruned.steps, traces=pruned.traces)


def run(settings: DaemonSettings) -> int:
    """`agentd run`: the exit code."""
    configure_logging(settings)
    failed: list[str] = []
    try:
        asyncio.run(serve_forever(settings, SystemClock()))
    except* AgentdError as group:
        failed = [f"agentd: {error}" for error in leaves(group)]
    print("\n".join(failed), file=sys.stderr, end="\n" if failed else "")  # noqa: T201 - the way out of the process
    return 1 if failed else 0
