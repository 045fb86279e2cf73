"""What is deployed: parameters, the source they belong to, and revisions of their values."""

import enum
import hashlib
import math
from collections.abc import Mapping

import msgspec

from agentd.errors import CodecError
from agentd.records.base import Record, Value


class Kind(enum.StrEnum):
    """What a parameter holds."""

    TEXT = "text"
    NUMBER = "number"
    BOOLEAN = "boolean"
    CHOICE = "choice"
    STRUCTURED = "structured"
    CODE = "code"


class Parameter(Record, frozen=True):
    """A trainable node, as the worker found it, with the rules of `agent.toml` laid over.

    `path` is its attribute path (`act`, `gains.kp`). `default` is the value in the source; for code it is the function's source text,
    dedented, without decorators. `signature` is the `def` line that code must keep. `integer` is True for a number that must stay whole.
    """

    path: str
    kind: Kind
    default: Value = None
    description: str = ""
    constraint: str = ""
    bounds: tuple[float | None, float | None] | None = None
    choices: tuple[Value, ...] | None = None
    signature: str = ""
    integer: bool = False
    approval: bool = False


class Source(Record, frozen=True):
    """An agent's program: files by relative path, and the parts of `agent.toml` that change what it computes."""

    digest: str
    files: dict[str, str]
    entrypoint: str
    args: dict[str, Value] = {}
    feedback: str | None = None
    sections: dict[str, Value] = {}
    """`[environment]` and `[[metrics]]` as they were declared: scores are comparable only where these are the same."""


class Revision(Record, frozen=True):
    """An immutable set of parameter values on one source. `values` holds only what differs from the source's defaults."""

    id: str
    agent: str
    source: str
    values: dict[str, Value] = {}


class Origin(enum.StrEnum):
    """Who made a revision."""

    SOURCE = "source"
    OPTIMIZER = "optimizer"
    OPERATOR = "operator"


class Provenance(Record, frozen=True):
    """Where a revision came from; a row of its own, since equal values may be proposed twice."""

    revision: str
    origin: Origin
    at: float
    parent: str | None = None
    proposal: str | None = None
    who: str = "agentd"
    note: str = ""


def canonical(value: Value) -> Value:
    """The form in which values are hashed: sorted keys, line feeds as line ends, no NaN. Raises CodecError for what has no such form."""
    if isinstance(value, str):
        return value.replace("\r\n", "\n").replace("\r", "\n")
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        if math.isnan(value) or math.isinf(value):
            raise CodecError(f"{value} can't be the value of a parameter")
        return value
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise CodecError("the keys of a structured value must be text")
        return {key: canonical(value[key]) for key in sorted(value)}
    raise CodecError(f"a {type(value).__qualname__} can't be the value of a parameter")


def make_revision(agent: str, source: str, values: Mapping[str, Value]) -> Revision:
    """The content-addressed revision of `values` on `source`. Raises CodecError for values that have no canonical form."""
    canonical_values = canonical(values)
    content = msgspec.msgpack.encode({"agent": agent, "source": source, "values": canonical_values})
    return Revision(id=hashlib.sha256(content).hexdigest(), agent=agent, source=source, values=canonical_values)
