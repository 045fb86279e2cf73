"""What a worker may use, as `[sandbox]` of agent.toml declares it."""

from typing import Self

from agentd.records import Record
from agentd.spec import SandboxSection, parse_duration, parse_size


class Limits(Record, frozen=True):
    """Bytes and seconds. `memory_bytes` are above what the zygote has; `load_timeout` also bounds everything that is no step."""

    memory_bytes: int = 256 * 1024 * 1024
    step_timeout: float = 0.5
    load_timeout: float = 10.0
    allowed_imports: tuple[str, ...] = ("math", "numpy")

    @classmethod
    def from_spec(cls, section: SandboxSection) -> Self:
        """The limits of an agent."""
        return cls(
            memory_bytes=parse_size(section.memory_limit),
            step_timeout=parse_duration(section.step_timeout),
            load_timeout=parse_duration(section.load_timeout),
            allowed_imports=section.allowed_imports,
        )
