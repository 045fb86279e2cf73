"""`agent.toml` -> AgentSpec. Every mistake is reported at once, each with its key and what is expected there.

`load_agent` reads an agent folder whole: the spec and the source that revisions are made on (DESIGN section 8).
"""

import enum
import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, BaseModel, Discriminator, Field, Tag, ValidationError

from agentd.cases import read_cases
from agentd.configuration import Section, check_duration, check_size, parse_duration, parse_size, read_toml, validate
from agentd.errors import Mistake, SpecError
from agentd.records import Metric, Mode, Parameter, ReleaseSettings, Source, Space, WatchSettings
from agentd.source import Entrypoint, check_entrypoint, make_source, read_files
from agentd.spaces import why_outside

__all__ = [
    "AgentSpec",
    "load_agent",
    "metric_record",
    "parse_duration",
    "parse_size",
    "release_settings",
    "space_record",
    "watch_settings",
]

Duration = Annotated[str, AfterValidator(check_duration)]
"""A text such as "24h"; `parse_duration` gives its seconds."""
Size = Annotated[str, AfterValidator(check_size)]
"""A text such as "256MiB"; `parse_size` gives its bytes."""
Seconds = Annotated[float, Field(gt=0)]

ALGORITHMS = ("hybrid", "optoprime", "search")


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", name):
        raise ValueError(f'should be 1 to 63 of a-z, 0-9, - and _, and begin with a letter or a digit, not "{name}"')
    return name


def _check_algorithm(name: str) -> str:
    if name not in ALGORITHMS:
        try:
            Entrypoint.parse(name)
        except ValueError as error:
            raise ValueError(f'should be one of {", ".join(ALGORITHMS)}, or "module:Class", not "{name}"') from error
    return name


def _check_path(path: str) -> str:
    if not re.fullmatch(r"[^\W\d]\w*(\.\w+)*", path):
        raise ValueError("should be an attribute path such as act or gains.kp")
    return path


def _check_module(name: str) -> str:
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name):
        raise ValueError(f'should be the name of a module, not "{name}"')
    return name


def _check_ascending(ends: tuple[float | None, float | None]) -> tuple[float | None, float | None]:
    low, high = ends
    if low is not None and high is not None and not low < high:
        raise ValueError(f"should go from a lower to a higher number, not from {low} to {high}")
    return ends


class EnvironmentKind(enum.StrEnum):
    """Where an agent acts."""

    GYMNASIUM = "gymnasium"
    MQTT = "mqtt"
    DATASET = "dataset"
    PYTHON = "python"


_KEYS_OF_KINDS = {
    "id": (EnvironmentKind.GYMNASIUM, 'the registered name of the environment, such as "CartPole-v1"'),
    "entrypoint": (EnvironmentKind.PYTHON, 'a class or a function in this folder, such as "plant:Plant"'),
    "dataset": (EnvironmentKind.DATASET, '{ path = "cases.jsonl" }, with a JSON object such as {"input": ..., "reference": ...} a line'),
}


class AgentSection(Section):
    """`[agent]`: the program."""

    name: Annotated[str, AfterValidator(_check_name)]
    entrypoint: str
    args: dict[str, Any] = Field(default_factory=dict)
    objective: str = ""
    mode: Mode = Mode.ADVISE
    include: tuple[str, ...] = ()


class MqttSection(Section):
    """`[environment.mqtt]`: the way to the devices. `broker` defaults to the daemon's."""

    broker: str | None = None
    prefix: str = "agentd"
    pace: Literal["device"] = "device"
    deadline_ms: Annotated[float, Field(gt=0)] = 50.0
    observation_timeout: Seconds = 5.0
    max_payload: Annotated[int, Field(ge=64)] = 65_536


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
        yield from _order_mistakes(low, high)


class SafeActionSection(Section):
    """`[environment.safe_action]`: what the plant gets when the policy is late, wrong or dead."""

    value: Any = None
    recovery: Literal["latch", "resume"] = "resume"


class EnvironmentSection(Section):
    """`[environment]`."""

    kind: EnvironmentKind
    id: str | None = None
    entrypoint: str | None = None
    """Python only: a class with `reset` and `step`, or a function of the action (agentd.environments.python)."""
    args: dict[str, Any] = Field(default_factory=dict)
    devices: Annotated[int, Field(ge=1, le=1000)] = 1
    """How many copies of an environment in the runner's process run side by side."""
    max_steps: Annotated[int, Field(ge=1)] = 1000
    episode_interval: Annotated[float, Field(ge=0)] = 0.0
    """Seconds of rest before an episode that nobody waits for, so that a fast simulation doesn't keep a core busy for ever."""
    mqtt: MqttSection = MqttSection()
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
        yield from _kind_mistakes(table, value)
        if "folder" in table:
            yield "folder", "not to be written: it is the folder of this file"
        try:
            section = SpaceSection.model_validate(table["action_space"])
        except (KeyError, ValidationError):
            return  # there is none, or it is told already what is wrong with it
        outside = None if value is None else why_outside(space_record(section), value)
        if outside is not None:
            yield "safe_action.value", f"{outside}: that is the action space"


def _kind_mistakes(table: Mapping[str, Any], safe_value: Any) -> Iterator[tuple[str, str]]:
    """Keys that an environment's kind lacks or doesn't know."""
    kind = table.get("kind")
    for key, (owner, wanted) in _KEYS_OF_KINDS.items():
        if kind == owner and not table.get(key):
            yield key, f'required for kind "{kind}": {wanted}'
        elif kind in list(EnvironmentKind) and kind != owner and key in table:
            yield key, f'only for kind "{owner}"'
    if kind == EnvironmentKind.MQTT:
        if safe_value is None:
            yield "safe_action", 'required for kind "mqtt": { value = what the plant gets when the policy is late, wrong or dead }'
        if "devices" in table:
            yield "devices", 'not for kind "mqtt", whose devices announce themselves'
    if kind == EnvironmentKind.PYTHON and safe_value is None and "action_space" not in table:
        yield "safe_action", 'required for kind "python" without an action_space: { value = the action when the policy has none }'


class MetricSection(Section):
    """`[[metrics]]`."""

    name: Annotated[str, Field(min_length=1)]
    range: Annotated[tuple[float, float], AfterValidator(_check_ascending)] = (0.0, 1.0)
    direction: Literal["higher", "lower"] = "higher"


def _check_metrics(metrics: tuple[MetricSection, ...]) -> tuple[MetricSection, ...]:
    if not metrics:
        raise ValueError("should have at least one metric, the score")
    names = [metric.name for metric in metrics]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"should have a name each, but there are several {', '.join(twice)}")
    return metrics


class FeedbackSection(Section):
    """`[feedback]`."""

    entrypoint: str
    timeout: Seconds = 10.0


class ParameterSection(Section):
    """`[parameters."path"]`: rules laid over what the program declares."""

    trainable: bool = True
    bounds: Annotated[tuple[float | None, float | None], AfterValidator(_check_ascending)] | None = None
    choices: Annotated[tuple[Any, ...], Field(min_length=2)] | None = None
    approval: bool = False

    def over(self, parameter: Parameter) -> Parameter:
        """`parameter` with these rules laid over what the program declares."""
        return msgspec.structs.replace(
            parameter,
            bounds=self.bounds if self.bounds is not None else parameter.bounds,
            choices=self.choices if self.choices is not None else parameter.choices,
            approval=self.approval or parameter.approval,
        )


class BudgetSection(Section):
    """`[optimizer] budget`."""

    dollars_per_day: Annotated[float, Field(ge=0)] = 5.0
    calls_per_hour: Annotated[int, Field(ge=0)] = 60
    tokens_per_proposal: Annotated[int, Field(ge=0)] = 50_000


class OptimizerSection(Section):
    """`[optimizer]`."""

    algorithm: Annotated[str, AfterValidator(_check_algorithm)] = "hybrid"
    models: tuple[str, ...] = ()
    history: Annotated[int, Field(ge=0)] = 10
    batch_episodes: Annotated[int, Field(ge=1)] = 4
    trigger: Literal["alarm", "failure", "continuous", "manual"] = "alarm"
    propose_timeout: Seconds = 120.0
    budget: BudgetSection = BudgetSection()
    options: dict[str, Any] = Field(default_factory=dict)


class PruneSection(Section):
    """`[release] prune`."""

    after_pairs: Annotated[int, Field(ge=1)] = 10
    below: Annotated[float, Field(ge=-1, le=1)] = 0.0


class ReleaseSection(Section):
    """`[release]`."""

    goal: Literal["better"] = "better"
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    prune: PruneSection = PruneSection()
    selection_pairs: Annotated[int, Field(ge=0)] = 3
    max_pairs: Annotated[int, Field(ge=1)] = 200
    max_duration: Duration = "24h"
    difference_range: Annotated[float, Field(gt=0, le=1)] = 1.0
    ramp: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.05, 0.25, 0.5)


class WatchSection(Section):
    """`[watch]`: the Shiryaev-Roberts watch on the stable revision."""

    alarm_every: Annotated[float, Field(gt=1)] = 1e6
    burn_in: Annotated[int, Field(ge=5)] = 30
    good_after: Annotated[int, Field(ge=1)] = 100


class ErrorRateSection(Section):
    """`[guardrails] error_rate`."""

    max_increase: Annotated[float, Field(ge=0, le=1)] = 0.0
    abort_at: Annotated[float, Field(gt=0, le=1)] = 0.5


class ActionLimitsSection(Section):
    """`[guardrails] action_limits` written out. `rate` is the largest change from one tick to the next."""

    low: float | tuple[float, ...] | None = None
    high: float | tuple[float, ...] | None = None
    rate: Annotated[float, Field(gt=0)] | None = None

    @classmethod
    def inconsistencies(cls, table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """A low end above the high one."""
        yield from _order_mistakes(table.get("low"), table.get("high"))


def _limits_form(value: Any) -> str:
    return "written out" if isinstance(value, Mapping | ActionLimitsSection) else "space"


class GuardrailsSection(Section):
    """`[guardrails]`."""

    error_rate: ErrorRateSection = ErrorRateSection()
    deadline_misses_per_episode: Annotated[int, Field(ge=0)] = 3
    action_limits: Annotated[
        Annotated[Literal["space"], Tag("space")] | Annotated[ActionLimitsSection, Tag("written out")], Discriminator(_limits_form)
    ] = "space"


class SandboxSection(Section):
    """`[sandbox]`."""

    min_isolation: Annotated[int, Field(ge=0, le=3)] = 2
    scope: Literal["agent"] = "agent"
    memory_limit: Size = "256MiB"
    step_timeout: Duration = "500ms"
    load_timeout: Duration = "10s"
    allowed_imports: tuple[Annotated[str, AfterValidator(_check_module)], ...] = ("math", "numpy")


class AgentSpec(Section):
    """An agent as its author declared it."""

    schema_version: Annotated[Literal[1], Field(alias="schema")] = 1
    agent: AgentSection
    environment: EnvironmentSection
    metrics: Annotated[tuple[MetricSection, ...], AfterValidator(_check_metrics)] = (MetricSection(name="score"),)
    feedback: FeedbackSection | None = None
    parameters: dict[Annotated[str, AfterValidator(_check_path)], ParameterSection] = Field(default_factory=dict)
    optimizer: OptimizerSection = OptimizerSection()
    release: ReleaseSection = ReleaseSection()
    watch: WatchSection = WatchSection()
    guardrails: GuardrailsSection = GuardrailsSection()
    sandbox: SandboxSection = SandboxSection()

    @classmethod
    def inconsistencies(cls, table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """An environment without an action space whose limits should be those of its space, and cases that nobody could judge."""
        environment, guardrails = _table(table, "environment"), _table(table, "guardrails")
        limits = guardrails.get("action_limits", "space")
        if environment.get("kind") == EnvironmentKind.MQTT and "action_space" not in environment and limits == "space":
            yield "environment.action_space", 'required for kind "mqtt" while guardrails.action_limits is "space"'
        if environment.get("kind") == EnvironmentKind.DATASET and "feedback" not in table:
            yield "feedback", 'required for kind "dataset": a function that compares the answer with the reference'


# --- conversions to records -----------------------------------------------------------------------------------------


def metric_record(section: MetricSection) -> Metric:
    """A declared metric. The first of `spec.metrics` is the score that releases are decided on."""
    return Metric(name=section.name, low=section.range[0], high=section.range[1], higher_is_better=section.direction == "higher")


def watch_settings(spec: AgentSpec) -> WatchSettings:
    """The rules of the watch on the stable revision."""
    return WatchSettings(alarm_every=spec.watch.alarm_every, burn_in=spec.watch.burn_in, good_after=spec.watch.good_after)


def release_settings(spec: AgentSpec) -> ReleaseSettings:
    """The rules that a release of this agent is begun with. Durations in seconds."""
    release, error_rate = spec.release, spec.guardrails.error_rate
    return ReleaseSettings(
        alpha=release.alpha,
        prune_after_pairs=release.prune.after_pairs,
        prune_below=release.prune.below,
        selection_pairs=release.selection_pairs,
        max_pairs=release.max_pairs,
        max_duration=parse_duration(release.max_duration),
        difference_range=release.difference_range,
        max_error_rate_increase=error_rate.max_increase,
        abort_error_rate=error_rate.abort_at,
    )


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


def _order_mistakes(low: Any, high: Any) -> Iterator[tuple[str, str]]:
    count = max(len(end) if isinstance(end, list | tuple) else 1 for end in (low, high))
    pairs = zip(*(end if isinstance(end, list | tuple) else (end,) * count for end in (low, high)), strict=False)
    if any(isinstance(a, int | float) and isinstance(b, int | float) and a > b for a, b in pairs):
        yield "low", "should not lie above high"


# --- loading --------------------------------------------------------------------------------------------------------


def load_agent(folder: Path) -> tuple[AgentSpec, Source]:
    """The agent in `folder`: its spec, and its source with the digest that revisions refer to.

    Nothing of the program is imported: entrypoints are looked up in the syntax tree.

    Raises:
        SpecError: every mistake in agent.toml and in the files it refers to.
    """
    path = folder / "agent.toml"
    data = read_toml(path)
    found: list[Mistake] = []
    spec: AgentSpec | None = None
    try:
        spec = validate(AgentSpec, data, str(path))
    except SpecError as error:
        found.extend(error.mistakes)
    # Files and entrypoints are checked even where the table has mistakes: the author wants to hear of everything at once.
    files, unreadable = read_files(folder, _texts(data, "agent", "include"))
    found.extend(unreadable)
    environment = spec.environment if spec else None
    if environment is not None:
        environment, unusable = _located(environment, folder, _texts(data, "agent", "include"))
        found.extend(unusable)
    for section, wanted in (("agent", "a class or factory"), ("environment", "a class or a function"), ("feedback", "a function")):
        entrypoint = _table(data, section).get("entrypoint")
        if isinstance(entrypoint, str):
            found.extend(check_entrypoint(entrypoint, files, file=str(path), folder=folder, key=f"{section}.entrypoint", wanted=wanted))
    if spec is None or environment is None or found:
        raise SpecError(found)
    hashed = {
        "environment": _hashed(spec.environment),
        "parameters": {name: _hashed(section) for name, section in spec.parameters.items()},
        "metrics": [_hashed(metric) for metric in spec.metrics],
        "feedback": _hashed(spec.feedback) if spec.feedback else None,
    }
    source = make_source(
        files, spec.agent.entrypoint, spec.agent.args, spec.feedback.entrypoint if spec.feedback else None, hashed, file=str(path)
    )
    # What was noted is not hashed: no revision changes because its folder was moved, or cases were added.
    return spec.model_copy(update={"environment": environment}), source


def _located(environment: EnvironmentSection, folder: Path, include: Iterable[str]) -> tuple[EnvironmentSection, list[Mistake]]:
    """The section with what the runner needs to find its files; and what is wrong with the file of cases, if there is to be one.

    An `include` that names it would show the policy the references.
    """
    located = environment.model_copy(update={"folder": str(folder.absolute())})
    section = environment.dataset
    if section is None:
        return located, []
    path = folder / section.path
    try:
        cases = read_cases(path, input_key=section.input, reference_key=section.reference)
    except SpecError as error:
        return located, list(error.mistakes)
    shown = [
        Mistake(str(folder / "agent.toml"), f"agent.include[{position}]", "names the data set: the policy could read the references")
        for position, pattern in enumerate(include)
        if pattern and not PurePosixPath(pattern).is_absolute() and path.resolve() in {found.resolve() for found in folder.glob(pattern)}
    ]
    digest = hashlib.sha256(" ".join(case.id for case in cases).encode()).hexdigest()[:16]
    return located.model_copy(update={"dataset": section.model_copy(update={"digest": digest})}), shown


def _hashed(section: BaseModel) -> dict[str, Any]:
    # Without defaults, so that a key that a later agentd adds doesn't make every source a new one.
    return section.model_dump(mode="json", exclude_defaults=True)


def _table(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = data.get(key)
    return table if isinstance(table, Mapping) else {}


def _texts(data: Mapping[str, Any], section: str, key: str) -> tuple[str, ...]:
    items = _table(data, section).get(key)
    return tuple(item for item in items if isinstance(item, str)) if isinstance(items, list) else ()
