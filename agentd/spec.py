"""`agent.toml` -> AgentSpec. Every mistake is reported at once, each with its key and what is expected there.

`load_agent` reads an agent folder whole: the spec and the source that revisions are made on (DESIGN section 8).
"""

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, BaseModel, Discriminator, Field, Tag

from agentd.configuration import (
    Section,
    check_duration,
    check_rate,
    check_size,
    parse_duration,
    parse_rate,
    parse_size,
    read_toml,
    validate,
)
from agentd.environment_spec import (
    DatasetSection,
    EnvironmentKind,
    EnvironmentSection,
    MqttSection,
    Seconds,
    SpaceSection,
    located,
    order_mistakes,
    space_record,
)
from agentd.errors import Mistake, SpecError
from agentd.late_spec import late_mistakes
from agentd.records import Goal, Metric, MetricRule, Mode, Parameter, ReleaseSettings, Source, WatchSettings
from agentd.source import Entrypoint, check_entrypoint, make_source, read_files

__all__ = [
    "AgentSpec",
    "DatasetSection",
    "EnvironmentKind",
    "MqttSection",
    "SpaceSection",
    "feedback_window",
    "is_unpaired",
    "load_agent",
    "metric_record",
    "parse_duration",
    "parse_rate",
    "parse_size",
    "release_settings",
    "silent_score",
    "space_record",
    "watch_settings",
]

Duration = Annotated[str, AfterValidator(check_duration)]
"""A text such as "24h"; `parse_duration` gives its seconds."""
Rate = Annotated[str, AfterValidator(check_rate)]
"""A text such as "3/day"; `parse_rate` gives its count and period."""
Size = Annotated[str, AfterValidator(check_size)]
"""A text such as "256MiB"; `parse_size` gives its bytes."""

NEED_A_MODEL = ("opro", "optoprime", "textgrad")
ALGORITHMS = ("hybrid", *NEED_A_MODEL, "search")


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


class AgentSection(Section):
    """`[agent]`: the program."""

    name: Annotated[str, AfterValidator(_check_name)]
    entrypoint: str
    args: dict[str, Any] = Field(default_factory=dict)
    objective: str = ""
    mode: Mode = Mode.ADVISE
    include: tuple[str, ...] = ()


Margin = Annotated[float, Field(gt=0, lt=1)]
"""A share of a metric's declared range."""


class MetricSection(Section):
    """`[[metrics]]`. What a release asks of the first one, the score, is said in `[release]`; of a further one, here."""

    name: Annotated[str, Field(min_length=1)]
    range: Annotated[tuple[float, float], AfterValidator(_check_ascending)] = (0.0, 1.0)
    direction: Literal["higher", "lower"] = "higher"
    goal: Goal = Goal.NO_WORSE
    margin: Margin = 0.05
    difference_range: Annotated[float, Field(gt=0, le=1)] = 1.0

    @classmethod
    def inconsistencies(cls, table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """A margin that no difference could reach."""
        yield from _margin_mistakes(table, default=0.05)


RULES = frozenset({"goal", "margin", "difference_range"})
"""What of `[[metrics]]` is a rule of releases and no part of the program."""


def _margin_mistakes(table: Mapping[str, Any], *, default: float | None = None) -> Iterator[tuple[str, str]]:
    margin, largest = table.get("margin", default), table.get("difference_range", 1.0)
    if isinstance(margin, int | float) and isinstance(largest, int | float) and margin >= largest:
        yield "margin", f"should be less than difference_range, {largest:g}, not {margin:g}"


def _check_metrics(metrics: tuple[MetricSection, ...]) -> tuple[MetricSection, ...]:
    if not metrics:
        raise ValueError("should have at least one metric, the score")
    score = metrics[0].model_dump(include=set(RULES), exclude_defaults=True)  # a runner is told of the defaults as well
    if rules := sorted(score):
        raise ValueError(f"should not have {', '.join(rules)} in the first: of the score [release] says it")
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


class PolicyBudgetSection(Section):
    """`[models] budget`: of the agent itself, apart from its optimizer's."""

    dollars_per_day: Annotated[float, Field(ge=0)] = 5.0
    calls_per_hour: Annotated[int, Field(ge=0)] = 1000


class ModelsSection(Section):
    """`[models]`: the program may ask language models while it acts (`agentd.trace.call_llm`).

    `names` are litellm names in order of preference; none: those of the daemon's settings. `max_tokens` is the longest answer that a call
    may ask for, and what it gets where it doesn't say.
    """

    names: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    budget: PolicyBudgetSection = PolicyBudgetSection()
    calls_per_step: Annotated[int, Field(ge=1, le=64)] = 8
    max_tokens: Annotated[int, Field(ge=1, le=16_384)] = 2048


class PruneSection(Section):
    """`[release] prune`."""

    after_pairs: Annotated[int, Field(ge=1)] = 15
    below: Annotated[float, Field(ge=-1, le=1)] = 0.0


def _check_ramp(ramp: tuple[float, ...]) -> tuple[float, ...]:
    if not ramp or list(ramp) != sorted(set(ramp)):
        raise ValueError("should be shares of the devices, each larger than the one before, such as [0.05, 0.25, 0.5]")
    return ramp


class ReleaseSection(Section):
    """`[release]`. `margin` is how much worse, as a share of the score's range, `goal = "no_worse"` lets a candidate be.

    A fleet is exposed by whole devices: `ramp` has the shares, a step is over after `step_pairs` pairs on each exposed device, and each
    step has its part of every group of devices that have the same values for the labels in `stratify`. Where devices begin their episodes
    by themselves the candidate gets the share `exposure` of them, drawn one by one, and `max_pairs` and the like count single episodes.
    """

    goal: Goal = Goal.BETTER
    margin: Margin | None = None
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    prune: PruneSection = PruneSection()
    selection_pairs: Annotated[int, Field(ge=0)] = 3
    max_pairs: Annotated[int, Field(ge=1)] = 300
    max_duration: Duration = "24h"
    difference_range: Annotated[float, Field(gt=0, le=1)] = 1.0
    ramp: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], AfterValidator(_check_ramp)] = (0.05, 0.25, 0.5)
    step_pairs: Annotated[int, Field(ge=1)] = 2
    exposure: Annotated[float, Field(gt=0, le=0.5)] = 0.5
    feedback_timeout: Duration | None = None
    """`kind = "http"` without `[feedback]`: how long after an episode's end somebody may judge it (agentd.release.windows)."""
    silent_score: float | None = None
    """The score, in its declared range, of an episode that nobody judged in that time; the worst one, if it isn't said."""
    stratify: tuple[str, ...] = ()
    max_promotions: Rate = "24/day"
    """Of those that evidence decides: a candidate beyond them waits before its canary. An operator's are not limited."""

    @classmethod
    def inconsistencies(cls, table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """A margin where none is used, none where one is needed, or one that no difference could reach."""
        wanted = table.get("goal") == Goal.NO_WORSE
        margin = table.get("margin")
        if wanted and margin is None:
            yield "margin", 'required for goal "no_worse": how much worse a candidate may be, as a share of the range'
        elif not wanted and margin is not None:
            yield "margin", 'only for goal "no_worse"'
        yield from _margin_mistakes(table)


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
        yield from order_mistakes(table.get("low"), table.get("high"))


def _limits_form(value: Any) -> str:
    return "written out" if isinstance(value, Mapping | ActionLimitsSection) else "space"


class GuardrailsSection(Section):
    """`[guardrails]`."""

    error_rate: ErrorRateSection = ErrorRateSection()
    deadline_misses_per_episode: Annotated[int, Field(ge=0)] = 3
    max_rollbacks: Rate = "3/day"
    """More rollbacks by the watch than this put the agent into quarantine (restart intensity, as supervisors have it)."""
    quarantine: Literal["serve", "safe"] = "serve"
    """In quarantine: serve the revision that was rolled back to, or begin no more episodes."""
    action_limits: Annotated[
        Annotated[Literal["space"], Tag("space")] | Annotated[ActionLimitsSection, Tag("written out")], Discriminator(_limits_form)
    ] = "space"


class SandboxSection(Section):
    """`[sandbox]`."""

    min_isolation: Annotated[int, Field(ge=0, le=3)] = 2
    scope: Literal["agent", "code"] = "agent"
    """What is sandboxed: the whole program, or only its code parameters, which a trusted program then calls."""
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
    models: ModelsSection | None = None
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
        known = isinstance(limits, Mapping) and set(limits) <= {"low", "high", "rate"}  # else it has mistakes of its own
        shapeless = known and limits.get("low") is None and limits.get("high") is None
        if environment.get("action_space") is None and (limits == "space" or shapeless):
            if environment.get("kind") == EnvironmentKind.MQTT:
                yield "environment.action_space", 'required for kind "mqtt" unless guardrails.action_limits has low or high'
            elif environment.get("kind") != EnvironmentKind.GYMNASIUM and limits != "space":
                yield "guardrails.action_limits", "should have low or high, or the environment an action_space: a rate alone is of no shape"
        if environment.get("kind") == EnvironmentKind.DATASET and "feedback" not in table:
            yield "feedback", 'required for kind "dataset": a function that compares the answer with the reference'
        served = environment.get("kind") == EnvironmentKind.HTTP
        if (served or _table(environment, "mqtt").get("begin") == "device") and _table(table, "release").get("goal") == Goal.NO_WORSE:
            which = 'kind "http"' if served else 'begin = "device"'
            yield "release.goal", f'should be "better" with {which}: without pairs there is no anchor, and a margin ratchets down'
        if "models" in table and "step_timeout" not in _table(table, "sandbox"):
            yield (
                "sandbox.step_timeout",
                'required with [models]: how long a step may take, the answers of models included, such as "60s"',
            )
        sandbox = _table(table, "sandbox")
        if sandbox.get("scope") == "code" and sandbox.get("min_isolation") == 0:
            yield "sandbox.min_isolation", 'should be at least 1 with scope = "code": its code parameters run locked down'
        yield from late_mistakes(table)
        metrics = table.get("metrics")
        if isinstance(metrics, list) and len(metrics) > 1 and "feedback" not in table and not served:
            yield "feedback", "required for several metrics: a function that gives (score, text, {name: value})"


# --- conversions to records -----------------------------------------------------------------------------------------


def metric_record(section: MetricSection) -> Metric:
    """A declared metric. The first of `spec.metrics` is the score that releases are decided on."""
    return Metric(name=section.name, low=section.range[0], high=section.range[1], higher_is_better=section.direction == "higher")


def watch_settings(spec: AgentSpec) -> WatchSettings:
    """The rules of the watch on the stable revision."""
    return WatchSettings(alarm_every=spec.watch.alarm_every, burn_in=spec.watch.burn_in, good_after=spec.watch.good_after)


def is_unpaired(spec: AgentSpec) -> bool:
    """Whether only the devices, or who asks over HTTP, begin episodes, so that no two of them can be made a pair."""
    environment = spec.environment
    return environment.kind is EnvironmentKind.HTTP or (environment.kind is EnvironmentKind.MQTT and environment.mqtt.begin == "device")


def feedback_window(spec: AgentSpec) -> float | None:
    """Seconds after its end in which an episode may be judged; None where every episode is judged when it ends."""
    return None if spec.release.feedback_timeout is None else parse_duration(spec.release.feedback_timeout)


def silent_score(spec: AgentSpec) -> float:
    """The score, in its declared range, of an episode that nobody judged in its window."""
    declared = spec.release.silent_score
    return metric_record(spec.metrics[0]).worst if declared is None else declared


def release_settings(spec: AgentSpec) -> ReleaseSettings:
    """The rules that a release of this agent is begun with. Durations in seconds."""
    release, error_rate = spec.release, spec.guardrails.error_rate
    return ReleaseSettings(
        goal=release.goal,
        margin=release.margin or 0.0,
        metrics=tuple(
            MetricRule(name=metric.name, goal=metric.goal, margin=metric.margin, difference_range=metric.difference_range)
            for metric in spec.metrics[1:]
        ),
        ramp=release.ramp,
        step_pairs=release.step_pairs,
        stratify=release.stratify,
        exposure=release.exposure if is_unpaired(spec) else None,
        silent_score=metric_record(spec.metrics[0]).normalised(silent_score(spec)),
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
        environment, unusable = located(environment, folder, _texts(data, "agent", "include"))
        found.extend(unusable)
    for section, wanted in (("agent", "a class or factory"), ("environment", "a class or a function"), ("feedback", "a function")):
        entrypoint = _table(data, section).get("entrypoint")
        if isinstance(entrypoint, str):
            found.extend(check_entrypoint(entrypoint, files, file=str(path), folder=folder, key=f"{section}.entrypoint", wanted=wanted))
    brake = _table(_table(data, "environment"), "safe_action").get("entrypoint")
    if isinstance(brake, str):
        key = "environment.safe_action.entrypoint"
        found.extend(check_entrypoint(brake, files, file=str(path), folder=folder, key=key, wanted="a function"))
    if spec is None or environment is None or found:
        raise SpecError(found)
    hashed = {
        "environment": _hashed(spec.environment),
        "parameters": {name: _hashed(section) for name, section in spec.parameters.items()},
        "metrics": [_hashed(metric, but=RULES) for metric in spec.metrics],
        "feedback": _hashed(spec.feedback) if spec.feedback else None,
    }
    source = make_source(
        files, spec.agent.entrypoint, spec.agent.args, spec.feedback.entrypoint if spec.feedback else None, hashed, file=str(path)
    )
    # What was noted is not hashed: no revision changes because its folder was moved, or cases were added.
    return spec.model_copy(update={"environment": environment}), source


def _hashed(section: BaseModel, *, but: Collection[str] = ()) -> dict[str, Any]:
    # Without defaults, so that a key that a later agentd adds doesn't make every source a new one.
    return section.model_dump(mode="json", exclude_defaults=True, exclude=set(but))


def _table(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = data.get(key)
    return table if isinstance(table, Mapping) else {}


def _texts(data: Mapping[str, Any], section: str, key: str) -> tuple[str, ...]:
    items = _table(data, section).get(key)
    return tuple(item for item in items if isinstance(item, str)) if isinstance(items, list) else ()
