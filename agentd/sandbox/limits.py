"""What a worker may use, as `[sandbox]` of agent.toml declares it."""

from typing import Self

from agentd.records import Record
from agentd.spec import ModelsSection, SandboxSection, parse_duration, parse_size


class Limits(Record, frozen=True):
    """Bytes and seconds. `memory_bytes` are above what the zygote has; `load_timeout` also bounds everything that is no step."""

    memory_bytes: int = 256 * 1024 * 1024
    step_timeout: float = 0.5
    load_timeout: float = 10.0
    allowed_imports: tuple[str, ...] = ("math", "numpy")
    model_calls: int = 0
    """Questions to models in one step; 0 for programs that may ask none."""

    @classmethod
    def from_spec(cls, section: SandboxSection, models: ModelsSection | None = None) -> Self:
        """The limits of an agent."""
        return cls(
            memory_bytes=parse_size(section.memory_limit),
            step_timeout=parse_duration(section.step_timeout),
            load_timeout=parse_duration(section.load_timeout),
            allowed_imports=section.allowed_imports,
            model_calls=models.calls_per_step if models is not None else 0,
        )
