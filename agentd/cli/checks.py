"""`agentd check`: what would go wrong, before it does."""

import asyncio
import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiomqtt
from rich.console import Console

from agentd.cli.context import FAILED, GOOD, Where
from agentd.cli.show import text
from agentd.configuration import masked
from agentd.device.connection import Client, Reports, connected, connection_arguments, words
from agentd.errors import AgentdError, NotFound, OptimizerError, SpecError
from agentd.opto.factory import check_options
from agentd.runners.realtime import try_out
from agentd.sandbox import Isolation, probe
from agentd.settings import DaemonSettings
from agentd.spec import NEED_A_MODEL, AgentSpec, EnvironmentKind, ModelsSection, load_agent
from agentd.store import SqlStore

CONNECT_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `level`: good, hint (it runs, but you may want to know) or bad."""

    level: str
    subject: str
    message: str


async def check_all(where: Where, folders: Sequence[Path]) -> list[Finding]:
    """Look at everything that `agentd run` will need."""
    try:
        settings = where.settings()
    except SpecError as error:
        return [Finding("bad", mistake.file, f"{mistake.key}: {mistake.expected}") for mistake in error.mistakes]
    found, specs = _check_agents([_find(folder, settings) for folder in folders] or _agent_folders(settings), settings)
    isolation = await asyncio.to_thread(probe)
    found += _check_isolation(isolation, specs)
    found += map(_check_scope, specs)
    found += [finding for spec in specs for finding in _check_optimizer(spec)]
    found += _check_realtime(specs)
    found.append(await _check_store(settings))
    found += [await _check_broker(url) for url in sorted(_brokers(settings, specs))]
    found += await asyncio.to_thread(_check_models, settings, specs)
    return found


def _find(folder: Path, settings: DaemonSettings) -> Path:
    """The folder that is meant: that one, or the agent's of this name in the agents directory."""
    named = settings.agents / folder
    return named if not folder.exists() and named.is_dir() else folder


def _agent_folders(settings: DaemonSettings) -> list[Path]:
    if (settings.agents / "agent.toml").is_file():
        return [settings.agents]
    return sorted(path.parent for path in settings.agents.glob("*/agent.toml"))


def _check_agents(folders: Sequence[Path], settings: DaemonSettings) -> tuple[list[Finding], list[AgentSpec]]:
    found: list[Finding] = []
    specs: list[AgentSpec] = []
    if not folders:
        found.append(Finding("hint", str(settings.agents), "no agent.toml in its folders: `agentd new` writes an agent"))
    for folder in folders:
        try:
            spec, source = load_agent(folder)
        except SpecError as error:
            found += [Finding("bad", mistake.file, f"{mistake.key}: {mistake.expected}") for mistake in error.mistakes]
            continue
        if spec.agent.name in {other.agent.name for other in specs}:
            found.append(Finding("bad", str(folder), f'another folder has an agent named "{spec.agent.name}" already'))
        specs.append(spec)
        found.append(Finding("good", str(folder), f"agent {spec.agent.name}: {len(source.files)} files, source {source.digest[:10]}"))
        if spec.environment.kind is EnvironmentKind.GYMNASIUM:
            found += _check_gymnasium(folder, spec)
        elif spec.environment.kind is EnvironmentKind.MQTT and spec.environment.mqtt.broker is None and settings.broker_url is None:
            found.append(
                Finding("bad", str(folder), "environment.mqtt.broker: no broker is named here, nor broker_url in the daemon's settings")
            )
    return found, specs


def _check_gymnasium(folder: Path, spec: AgentSpec) -> Iterator[Finding]:
    import gymnasium  # noqa: PLC0415 - only agents that need it pay for it

    name = spec.environment.id or ""
    if ":" not in name:
        try:
            gymnasium.spec(name)
        except gymnasium.error.Error as error:
            yield Finding("bad", str(folder), f"environment.id: {error}")
    elif importlib.util.find_spec(name.split(":")[0]) is None:
        yield Finding("bad", str(folder), f"environment.id: the package {name.split(':')[0]} is not installed")


def _check_isolation(isolation: Isolation, specs: Sequence[AgentSpec]) -> Iterator[Finding]:
    wanted = max((spec.sandbox.min_isolation for spec in specs), default=2)
    level = "good" if isolation.level >= wanted else "bad"
    given = f"this machine gives level {isolation.level} ({isolation.means}); level {wanted} is asked for"
    yield Finding(level, "isolation", given)
    for sentence in isolation.explanation:
        yield Finding("hint", "isolation", sentence)


def _check_scope(spec: AgentSpec) -> Finding:
    """Who wrote what runs outside of the sandbox."""
    subject = f"scope of {spec.agent.name}"
    if spec.sandbox.scope == "agent":
        return Finding("good", subject, "agent: the whole program runs in the sandbox")
    told = "code: only the bodies of code parameters run in the sandbox; the program is trusted with all that the runner's user may"
    return Finding("hint", subject, told)


def _check_optimizer(spec: AgentSpec) -> Iterator[Finding]:
    """A plug-in's own options are its own business."""
    module, plug_in, _ = spec.optimizer.algorithm.partition(":")
    subject = f"optimizer of {spec.agent.name}"
    if plug_in:
        try:
            there = importlib.util.find_spec(module) is not None
        except ImportError:  # the package that it is in
            there = False
        if not there:
            yield Finding("bad", subject, f"there is no module {module} on the daemon's Python path (PYTHONPATH)")
        return
    try:
        check_options(spec.optimizer.options)
    except OptimizerError as error:
        yield Finding("bad", subject, str(error))


def _check_realtime(specs: Sequence[AgentSpec]) -> Iterator[Finding]:
    if any(spec.environment.mqtt.realtime for spec in specs):
        problem = try_out()
        yield Finding("hint" if problem else "good", "realtime", problem or "runners may go first (SCHED_FIFO)")


async def _check_store(settings: DaemonSettings) -> Finding:
    try:
        async with await SqlStore.open(settings.store_url, read_only=True) as store:
            agents = len(await store.agents())
    except NotFound:
        return Finding("good", "store", f"{settings.shown_store_url} will be made at the first start")
    except AgentdError as error:
        return Finding("bad", "store", f"{settings.shown_store_url}: {error}")
    return Finding("good", "store", f"{settings.shown_store_url} knows {agents} agents")


def _brokers(settings: DaemonSettings, specs: Sequence[AgentSpec]) -> set[str]:
    of_kind = [spec.environment.mqtt for spec in specs if spec.environment.kind is EnvironmentKind.MQTT]
    return {url for mqtt in of_kind if (url := mqtt.broker or settings.broker_url)}


async def _check_broker(url: str) -> Finding:
    """Log in, as a runner would, and leave."""
    subject, reports = f"broker {masked(url)}", Reports()
    try:
        arguments = await asyncio.to_thread(connection_arguments, url)
        async with connected(Client(**arguments, timeout=CONNECT_SECONDS, logger=reports)):
            return Finding("good", subject, "lets agentd log in")
    except ValueError as error:
        return Finding("bad", subject, str(error))
    except aiomqtt.MqttError as error:
        return Finding("bad", subject, f"can't be used: {words(error, reports)}")


def _check_models(settings: DaemonSettings, specs: Sequence[AgentSpec]) -> list[Finding]:
    found = []
    if settings.missing_key:
        found.append(Finding("bad", "models", f"api_key_env names {settings.missing_key}, which is not set"))
    models = sorted({model for spec in specs for model in spec.optimizer.models or settings.models} | _of_policies(settings, specs))
    needing = sorted(
        f"{spec.agent.name}: the optimizer {spec.optimizer.algorithm} needs a model; none is named"
        for spec in specs
        if spec.optimizer.algorithm in NEED_A_MODEL and not (spec.optimizer.models or settings.models)
    )
    found += [_check_policy_models(spec, spec.models, settings) for spec in specs if spec.models is not None]
    found += [Finding("bad", "models", text) for text in needing]
    if specs and not models and not needing:
        found.append(Finding("hint", "models", "none is named: proposals come from the search over numbers alone"))
    return found + [_check_model(model, settings) for model in models]


def _of_policies(settings: DaemonSettings, specs: Sequence[AgentSpec]) -> set[str]:
    return {model for spec in specs if spec.models is not None for model in spec.models.names or settings.models}


def _check_policy_models(spec: AgentSpec, section: ModelsSection, settings: DaemonSettings) -> Finding:
    """What an agent may ask while it acts."""
    names, budget = section.names or settings.models, section.budget
    subject = f"models of {spec.agent.name}"
    if not names:
        return Finding("bad", subject, "[models] names none, nor does agentd.toml: each step that asks one would fail")
    told = f"it may ask {', '.join(names)} while it acts, {section.calls_per_step} times a step, {budget.calls_per_hour} an hour"
    return Finding("good", subject, f"{told}, for {budget.dollars_per_day:g} dollars a day")


def _check_model(model: str, settings: DaemonSettings) -> Finding:
    """Whether litellm knows the provider and finds its key. The model itself is not called: that would cost money."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no fetch of price tables
    import litellm  # noqa: PLC0415 - it takes two seconds

    litellm.suppress_debug_info = True
    subject = f"model {model}"
    try:
        litellm.get_llm_provider(model)
    except litellm.exceptions.BadRequestError:
        return Finding("bad", subject, "litellm knows no such provider; a name looks like openai/gpt-4.1-mini")
    missing = litellm.validate_environment(model)["missing_keys"]
    if missing and settings.api_key is None and settings.api_base is None:
        return Finding("bad", subject, f"needs {', '.join(missing)} in the environment, or api_key_env in agentd.toml")
    return Finding("good", subject, "is named; it is first called when it is needed")


def as_json(found: Sequence[Finding]) -> dict[str, Any]:
    """For other programs."""
    return {"good": exit_code(found) == GOOD, "findings": [asdict(finding) for finding in found]}


def exit_code(found: Sequence[Finding]) -> int:
    """1 if something would go wrong."""
    return FAILED if any(finding.level == "bad" for finding in found) else GOOD


def print_findings(out: Console, found: Sequence[Finding]) -> None:
    """For people."""
    marks = {"good": ("ok  ", "green"), "hint": ("note", "yellow"), "bad": ("BAD ", "bold red")}
    for finding in found:
        mark, style = marks[finding.level]
        line = text(mark, style)
        line.append_text(text(f" {finding.subject}", "bold"))
        line.append_text(text(f": {finding.message}"))
        out.print(line)
