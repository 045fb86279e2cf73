"""`agent.toml` -> AgentSpec. Every mistake is reported at once, each with its key and what is expected there."""

import enum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agentd.records import Mode


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EnvironmentKind(enum.StrEnum):
    """Where an agent acts."""

    GYMNASIUM = "gymnasium"
    MQTT = "mqtt"


class AgentSection(_Section):
    """`[agent]`: the program."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
    entrypoint: str
    args: dict[str, Any] = {}
    objective: str = ""
    mode: Mode = Mode.ADVISE
    include: tuple[str, ...] = ()


class MqttSection(_Section):
    """`[environment.mqtt]`: the way to the devices. `broker` defaults to the daemon's."""

    broker: str | None = None
    prefix: str = "agentd"
    pace: Literal["device"] = "device"
    deadline_ms: Annotated[float, Field(gt=0)] = 50.0
    observation_timeout: float = 5.0
    max_payload: int = 65_536


class SpaceSection(_Section):
    """A space: `{discrete = 2}` or `{low = ..., high = ..., shape = [...]}`."""

    discrete: int | None = None
    start: int = 0
    low: float | tuple[float, ...] | None = None
    high: float | tuple[float, ...] | None = None
    shape: tuple[int, ...] = ()


class SafeActionSection(_Section):
    """`[environment.safe_action]`: what the plant gets when the policy is late, wrong or dead."""

    value: Any = None
    recovery: Literal["latch", "resume"] = "resume"


class EnvironmentSection(_Section):
    """`[environment]`."""

    kind: EnvironmentKind
    id: str | None = None
    args: dict[str, Any] = {}
    devices: Annotated[int, Field(ge=1, le=1000)] = 1
    """Gymnasium only: how many copies of the environment run side by side."""
    max_steps: Annotated[int, Field(ge=1)] = 1000
    mqtt: MqttSection = MqttSection()
    safe_action: SafeActionSection | None = None
    observation_space: SpaceSection | None = None
    action_space: SpaceSection | None = None


class MetricSection(_Section):
    """`[[metrics]]`."""

    name: str
    range: tuple[float, float] = (0.0, 1.0)
    direction: Literal["higher", "lower"] = "higher"


class FeedbackSection(_Section):
    """`[feedback]`."""

    entrypoint: str
    timeout: float = 10.0


class ParameterSection(_Section):
    """`[parameters."path"]`: rules laid over what the program declares."""

    trainable: bool = True
    bounds: tuple[float | None, float | None] | None = None
    choices: tuple[Any, ...] | None = None
    approval: bool = False


class BudgetSection(_Section):
    """`[optimizer] budget`."""

    dollars_per_day: Annotated[float, Field(ge=0)] = 5.0
    calls_per_hour: Annotated[int, Field(ge=0)] = 60
    tokens_per_proposal: Annotated[int, Field(ge=0)] = 50_000


class OptimizerSection(_Section):
    """`[optimizer]`."""

    algorithm: str = "hybrid"
    models: tuple[str, ...] = ()
    history: int = 10
    batch_episodes: int = 4
    trigger: Literal["alarm", "failure", "continuous", "manual"] = "alarm"
    propose_timeout: float = 120.0
    budget: BudgetSection = BudgetSection()
    options: dict[str, Any] = {}


class PruneSection(_Section):
    """`[release] prune`."""

    after_pairs: Annotated[int, Field(ge=1)] = 10
    below: float = 0.0


class ReleaseSection(_Section):
    """`[release]`."""

    goal: Literal["better"] = "better"
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    prune: PruneSection = PruneSection()
    selection_pairs: Annotated[int, Field(ge=0)] = 3
    max_pairs: Annotated[int, Field(ge=1)] = 200
    max_duration: str = "24h"
    difference_range: Annotated[float, Field(gt=0, le=1)] = 1.0


class WatchSection(_Section):
    """`[watch]`: the Shiryaev-Roberts watch on the stable revision."""

    alarm_every: Annotated[float, Field(gt=1)] = 1e6
    burn_in: Annotated[int, Field(ge=5)] = 30
    good_after: Annotated[int, Field(ge=1)] = 100


class ErrorRateSection(_Section):
    """`[guardrails] error_rate`."""

    max_increase: Annotated[float, Field(ge=0, le=1)] = 0.0
    abort_at: Annotated[float, Field(gt=0, le=1)] = 0.5


class ActionLimitsSection(_Section):
    """`[guardrails] action_limits` written out. `rate` is the largest change from one tick to the next."""

    low: float | tuple[float, ...] | None = None
    high: float | tuple[float, ...] | None = None
    rate: float | None = None


class GuardrailsSection(_Section):
    """`[guardrails]`."""

    error_rate: ErrorRateSection = ErrorRateSection()
    deadline_misses_per_episode: Annotated[int, Field(ge=0)] = 3
    action_limits: Literal["space"] | ActionLimitsSection = "space"


class SandboxSection(_Section):
    """`[sandbox]`."""

    min_isolation: Annotated[int, Field(ge=0, le=3)] = 2
    scope: Literal["agent"] = "agent"
    memory_limit: str = "256MiB"
    step_timeout: str = "500ms"
    load_timeout: str = "10s"
    allowed_imports: tuple[str, ...] = ("math", "numpy")


class AgentSpec(_Section):
    """An agent as its author declared it."""

    schema_version: Annotated[Literal[1], Field(alias="schema")] = 1
    agent: AgentSection
    environment: EnvironmentSection
    metrics: tuple[MetricSection, ...] = (MetricSection(name="score"),)
    feedback: FeedbackSection | None = None
    parameters: dict[str, ParameterSection] = {}
    optimizer: OptimizerSection = OptimizerSection()
    release: ReleaseSection = ReleaseSection()
    watch: WatchSection = WatchSection()
    guardrails: GuardrailsSection = GuardrailsSection()
    sandbox: SandboxSection = SandboxSection()
