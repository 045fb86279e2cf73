"""`[environment]` of agent.toml: where an agent acts."""

import enum
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from agentd.cases import read_cases
from agentd.configuration import Section
from agentd.errors import Mistake, SpecError
from agentd.mapping_spec import MappingSection, mapping_mistakes
from agentd.records import Space
from agentd.spaces import why_outside

Seconds = Annotated[float, Field(gt=0)]


class EnvironmentKind(enum.StrEnum):
    """Where an agent acts."""

    GYMNASIUM = "gymnasium"
    MQTT = "mqtt"
    DATASET = "dataset"
    PYTHON = "python"
    HTTP = "http"


_KEYS_OF_KINDS = {
    "id": (EnvironmentKind.GYMNASIUM, 'the registered name of the environment, such as "CartPole-v1"'),
    "entrypoint": (EnvironmentKind.PYTHON, 'a class or a function in this folder, such as "plant:Plant"'),
    "dataset": (EnvironmentKind.DATASET, '{ path = "cases.jsonl" }, with a JSON object such as {"input": ..., "reference": ...} a line'),
}


def _check_prefix(prefix: str) -> str:
    if not prefix or prefix[0] in "/$" or set(prefix) & set("+#") or not prefix.isprintable():
        raise ValueError(f"should be the beginning of a topic, such as plant/agentd: without + and #, no / or $ first; not {prefix!r}")
    return prefix


class MqttSection(Section):
    """`[environment.mqtt]`: the way to the devices. `broker` defaults to the daemon's."""

    broker: str | None = None
    prefix: Annotated[str, AfterValidator(_check_prefix)] = "agentd"
    pace: Literal["device"] = "device"
    """An action for each observation, unless `rate_hz` says otherwise."""
    rate_hz: Annotated[float, Field(gt=0, le=1000)] | None = None
    """So many actions a second, each from the newest observation."""
    deadline_ms: Annotated[float, Field(gt=0)] = 50.0
    dead_man_ms: Annotated[float, Field(gt=0)] | None = None
    """Without a fresh observation for so long the plant gets the safe action. None: only `observation_timeout` counts."""
    observation_timeout: Seconds = 5.0
    begin: Literal["agent", "device"] = "agent"
    """Who begins an episode. What only its device can begin is never part of a pair: releases are decided on single episodes."""
    episode_ticks: Annotated[int, Field(ge=1)] | None = None
    """For a plant that is never reset: after so many ticks an episode ends and the next one begins, in the middle of its life."""
    realtime: bool = False
    """Let the runner go before everything else on its machine (SCHED_FIFO), where it may."""
    max_payload: Annotated[int, Field(ge=64)] = 65_536
    mapping: MappingSection | None = None
    """For robots that speak something else than agentd's protocol."""

    @classmethod
    def inconsistencies(cls, table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Two paces at once, and times that don't fit into each other."""
        if table.get("begin") == "device" and table.get("episode_ticks") is not None:
            yield "episode_ticks", 'not together with begin = "device": it is the agent that cuts an endless plant into episodes'
        rate, deadline, dead_man = (_number(table.get(key)) for key in ("rate_hz", "deadline_ms", "dead_man_ms"))
        if rate is not None and "pace" in table:
            yield "rate_hz", 'not together with pace = "device": either the device asks for each action, or they come at a fixed rate'
        if rate is not None and rate > 0 and deadline is not None and deadline > 1000.0 / rate:
            yield "deadline_ms", f"should not be longer than a tick, which is {1000.0 / rate:g} ms at rate_hz = {rate:g}"
        timeout = _number(table.get("observation_timeout", 5.0))
        if dead_man is not None and timeout is not None and dead_man > 1000.0 * timeout:
            yield "dead_man_ms", f"should not be longer than observation_timeout, which is {timeout:g} s"


class DatasetSection(Section):
    """`[environment.dataset]`: a file with one JSON object a line. `validation` is the share of the inputs that only decide."""

    path: str
    input: str = "input"
    reference: str = "reference"
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.3
    digest: str = ""
    """Of the cases: `load_agent` notes it, so that an edited file makes the agent begin anew; nobody writes it."""

    @classmethod
    def inconsistencies(cls, table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """What isn't the author's to say."""
        if "digest" in table:
            yield "digest", "not to be written: it follows from the cases"


class HttpSection(Section):
    """`[environment.http]`: how requests are taken."""

    concurrency: Annotated[int, Field(ge=1, le=64)] = 2
    """Episodes at a time. Each revision has one worker, which answers one observation after the other."""
    queue: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Requests that may wait for one of these; further ones are refused at once (429)."""
    queue_timeout: Seconds = 10.0
    """For so long; then they are refused, too (503)."""


class SpaceSection(Section):
    """A space: `{discrete = 2}` or `{low = ..., high = ..., shape = [...]}`."""

    discrete: Annotated[int, Field(ge=1)] | None = None
    start: int = 0
    low: float | tuple[float, ...] | None = None
    high: float | tuple[float, ...] | None = None
    shape: tuple[Annotated[int, Field(ge=1)], ...] = ()

    @classmethod
    def inconsistencies(cls, table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Two kinds of space at once, none, or ends that don't fit the shape."""
        low, high, shape = table.get("low"), table.get("high"), table.get("shape")
        if ("discrete" in table) == any(key in table for key in ("low", "high", "shape")):
            yield "", "should be either { discrete = n } or { low = ..., high = ..., shape = [...] }"
        if isinstance(shape, list) and all(isinstance(size, int) for size in shape):
            count = math.prod(shape)
        else:
            count = next((len(end) for end in (low, high) if isinstance(end, list)), 1)
        for name, end in (("low", low), ("high", high)):
            if isinstance(end, list) and len(end) != count:
                yield name, f"should have {count} numbers, not {len(end)}"
        yield from order_mistakes(low, high)


class SafeActionSection(Section):
    """`[environment.safe_action]`: what the plant gets when the policy is late, wrong or dead."""

    value: Any = None
    entrypoint: str | None = None
    """A function of the observation in this folder, such as "controller:brake". Where it gives nothing usable, the value is used."""
    deadline_ms: Annotated[float, Field(gt=0)] = 2.0
    """What the function gets of the time in which an action is due."""
    recovery: Literal["latch", "resume"] = "resume"


class EnvironmentSection(Section):
    """`[environment]`."""

    kind: EnvironmentKind
    id: str | None = None
    entrypoint: str | None = None
    """Python only: a class with `reset` and `step`, or a function of the action (agentd.environments.python)."""
    args: dict[str, Any] = Field(default_factory=dict)
    seed_with: str | None = None
    """Gymnasium only: a method of the environment, such as "seed", that is called with the seed before each `reset(seed)`. For those that
    draw something before `reset` has seeded them, as Meta-World does its task: without it the two episodes of a pair differ."""
    devices: Annotated[int, Field(ge=1, le=1000)] = 1
    """How many copies of an environment in the runner's process run side by side."""
    max_steps: Annotated[int, Field(ge=1)] = 1000
    episode_interval: Annotated[float, Field(ge=0)] = 0.0
    """Seconds of rest before an episode that nobody waits for, so that a fast simulation doesn't keep a core busy for ever."""
    mqtt: MqttSection = MqttSection()
    http: HttpSection = HttpSection()
    dataset: DatasetSection | None = None
    folder: str = ""
    """Where the agent's files are: `load_agent` notes it for the runner, nobody writes it."""
    safe_action: SafeActionSection | None = None
    observation_space: SpaceSection | None = None
    action_space: SpaceSection | None = None

    @classmethod
    def inconsistencies(cls, table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """What each kind needs, and a safe action outside the action space."""
        safe_action = table.get("safe_action")
        value = safe_action.get("value") if isinstance(safe_action, Mapping) else None
        yield from _time_mistakes(table)
        yield from _kind_mistakes(table, value)
        yield from mapping_mistakes(table)
        if "folder" in table:
            yield "folder", "not to be written: it is the folder of this file"
        try:
            section = SpaceSection.model_validate(table["action_space"])
        except (KeyError, ValidationError):
            return  # there is none, or it is told already what is wrong with it
        outside = None if value is None else why_outside(space_record(section), value)
        if outside is not None:
            yield "safe_action.value", f"{outside}: that is the action space"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _time_mistakes(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Times of several sections that don't fit into each other."""
    mqtt, safe_action = (section if isinstance(section := table.get(key), Mapping) else {} for key in ("mqtt", "safe_action"))
    if "episode_ticks" in mqtt and "max_steps" in table:
        yield "max_steps", "not together with mqtt.episode_ticks: a plant that is never reset has no last step"
    if table.get("kind") == EnvironmentKind.MQTT and safe_action.get("entrypoint"):
        whole = _number(mqtt.get("deadline_ms", MqttSection().deadline_ms))
        own = _number(safe_action.get("deadline_ms", SafeActionSection().deadline_ms))
        if whole is not None and own is not None and own > whole / 2:
            yield "safe_action.deadline_ms", f"should be at most half of mqtt.deadline_ms, which is {whole:g}: the policy needs time, too"


def _kind_mistakes(table: Mapping[str, Any], safe_value: Any) -> Iterator[tuple[str, str]]:
    """Keys that an environment's kind lacks or doesn't know."""
    kind = table.get("kind")
    for key, (owner, wanted) in _KEYS_OF_KINDS.items():
        if kind == owner and not table.get(key):
            yield key, f'required for kind "{kind}": {wanted}'
        elif kind in list(EnvironmentKind) and kind != owner and key in table:
            yield key, f'only for kind "{owner}"'
    if kind in list(EnvironmentKind) and kind != EnvironmentKind.GYMNASIUM and table.get("seed_with") is not None:
        yield "seed_with", 'only for kind "gymnasium"'
    if kind == EnvironmentKind.MQTT:
        if safe_value is None:
            yield "safe_action", 'required for kind "mqtt": { value = what the plant gets when the policy is late, wrong or dead }'
        if "devices" in table:
            yield "devices", 'not for kind "mqtt", whose devices announce themselves'
    yield from _http_mistakes(table, safe_value)
    if kind == EnvironmentKind.PYTHON and safe_value is None and "action_space" not in table:
        yield "safe_action", 'required for kind "python" without an action_space: { value = the action when the policy has none }'


def _http_mistakes(table: Mapping[str, Any], safe_value: Any) -> Iterator[tuple[str, str]]:
    kind = table.get("kind")
    if kind == EnvironmentKind.HTTP:
        for key in ("devices", "max_steps", "episode_interval"):
            if key in table:
                yield key, 'not for kind "http", where each request is an episode of one step'
        if table.get("safe_action") is not None and safe_value is None:
            yield "safe_action.value", 'required for kind "http": the answer when the policy has none; without a safe_action it is an error'
    elif kind in list(EnvironmentKind) and "http" in table:
        yield "http", 'only for kind "http"'


def space_record(section: SpaceSection | None) -> Space:
    """The space that a section declares; without one, any value is in it."""
    if section is None:
        return Space()
    if section.discrete is not None:
        return Space(kind="discrete", n=section.discrete, start=section.start)
    if section.low is None and section.high is None and not section.shape:
        return Space()
    shape = section.shape or next(((len(end),) for end in (section.low, section.high) if isinstance(end, tuple)), ())
    return Space(kind="box", shape=shape, low=section.low, high=section.high)


def order_mistakes(low: Any, high: Any) -> Iterator[tuple[str, str]]:
    """(key, what is expected there) where a low end lies above its high one; ends of any type, as they were written."""
    count = max(len(end) if isinstance(end, list | tuple) else 1 for end in (low, high))
    pairs = zip(*(end if isinstance(end, list | tuple) else (end,) * count for end in (low, high)), strict=False)
    if any(isinstance(a, int | float) and isinstance(b, int | float) and a > b for a, b in pairs):
        yield "low", "should not lie above high"


def located(environment: EnvironmentSection, folder: Path, include: Iterable[str]) -> tuple[EnvironmentSection, list[Mistake]]:
    """The section with what the runner needs to find its files; and what is wrong with the file of cases, if there is to be one.

    An `include` that names it would show the policy the references.
    """
    placed = environment.model_copy(update={"folder": str(folder.absolute())})
    section = environment.dataset
    if section is None:
        return placed, []
    path = folder / section.path
    try:
        cases = read_cases(path, input_key=section.input, reference_key=section.reference)
    except SpecError as error:
        return placed, list(error.mistakes)
    shown = [
        Mistake(str(folder / "agent.toml"), f"agent.include[{position}]", "names the data set: the policy could read the references")
        for position, pattern in enumerate(include)
        if pattern and not PurePosixPath(pattern).is_absolute() and path.resolve() in {found.resolve() for found in folder.glob(pattern)}
    ]
    digest = hashlib.sha256(" ".join(case.id for case in cases).encode()).hexdigest()[:16]
    return placed.model_copy(update={"dataset": section.model_copy(update={"digest": digest})}), shown
