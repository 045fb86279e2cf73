"""Values as a trace graph shows them: plain, small, and without secrets.

Small plain values stay what they are. Everything else becomes a mapping with the key `$type`:

    {"$type": "text", "length": 9000, "start": "...", "end": "..."}            a long text (also code, with a higher limit)
    {"$type": "list", "length": 500, "start": [...], "end": [...]}             a long list (tuple, set); a dict has "items"
    {"$type": "array", "shape": [64, 64], "dtype": "float32", "low": .., "high": .., "mean": .., "start": [...]}
    {"$type": "image", "shape": [96, 96, 3], "dtype": "uint8", "sha256": "..."}  by reference: the pixels are not in the trace
    {"$type": "bytes", "length": 10}; {"$type": "float", "repr": "nan"}; {"$type": "int", "repr": "1000..."}
    {"$type": "controller.Planner", "repr": "..."}                              any other object

Small arrays become nested lists. Secrets are replaced by `[redacted]` wherever a text looks like one, and below keys that name one.
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from agentd.errors import TraceError
from agentd.trace.core import AbstractNode

REDACTED = "[redacted]"
_MARGIN = 4096  # read beyond a cut, so that a secret across it is seen whole
_OPAQUE = 200  # characters of the repr of an object
_ROUND = 6  # significant digits of an array's statistics
_INT64 = 2**63

_SECRET = re.compile(
    r"""
    \b(?:sk|pk|rk)-[A-Za-z0-9_-]{16,} | \bgsk_\w{20,} | \bxai-\w{20,} | \br8_\w{30,}  # model providers
    | \b(?:[spr]k_(?:live|test)|whsec)_\w{16,}            # Stripe
    | \bgh[oprsu]_[A-Za-z0-9]{20,} | \bgithub_pat_\w{20,}   # GitHub
    | \bglpat-[\w-]{16,} | \bhf_[A-Za-z0-9]{20,}            # GitLab, Hugging Face
    | \bnpm_[A-Za-z0-9]{30,} | \bpypi-[\w-]{16,}            # package registries
    | \bxox[abeoprs]-[\w-]{10,}                             # Slack
    | \bA(?:KI|SI)A[0-9A-Z]{16}\b | \bAIza[\w-]{30,} | \bya29\.[\w-]{20,}  # AWS, Google
    | \bSG\.[\w-]{16,100}\.[\w-]{16,}                      # SendGrid
    | \beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*                     # JSON web tokens
    | -----BEGIN\ [A-Z ]{0,30}PRIVATE\ KEY-----(?:[^-]{0,8000}-----END\ [A-Z ]{0,30}PRIVATE\ KEY-----|[^-]*)
    | (?i:\b(?:bearer|basic)\ +)[\w.~+/=-]{16,}             # Authorization headers
    | (?i:\btoken\ +)(?=[\w.~+/=-]{0,200}\d)[\w.~+/=-]{20,}
    | (?<=://)[^/\s:@]{0,100}:[^/\s@]{1,200}(?=@)           # user:password, or a token, in addresses
    | (?<=://)(?=[^/\s:@]{0,200}\d)[^/\s:@]{12,200}(?=@)
    """,
    re.VERBOSE,
)
_PARTS_OF_SECRETS = (  # of each way to match, in lower case
    *("sk-", "pk-", "rk-", "gsk_", "xai-", "r8_", "k_live_", "k_test_", "whsec_", "ghp_", "gho_", "ghr_", "ghs_", "ghu_", "github_pat_"),
    *("glpat-", "hf_", "npm_", "pypi-", "xox", "akia", "asia", "aiza", "ya29.", "sg.", "eyj", "private key", "bearer ", "basic ", "token "),
    "://",
)
_PARTS_OF_NAMES = ("key", "secret", "token", "passw", "passphrase", "credential", "sig=", "signature=")
_NAMES = (
    r"api[_-]?key|secret(?:[_-]?access)?(?:[_-]?key)?|(?:access|account|private)[_-]?key"
    r"|(?:access|auth|refresh|bearer)?[_-]?token|passw(?:or)?d|passphrase|credential"
)
_ASSIGNED = re.compile(
    rf"""(?i)((?:(?:{_NAMES})\\?["']?\s{{0,4}}[:=]|[?&](?:key|sig|signature)=)\s{{0,4}}\\?["']?)"""
    r"""(?=[^\s"']{0,200}\d)(?=[^\s"']{0,200}[a-z])[^\s"',;(){}\[\]\\]{8,}"""
)
_PASSWORD = re.compile(r"""(?i)(\bpassw(?:or)?d=)(?=[^\s"']{0,200}\d)(?=[^\s"']{0,200}[a-z])[^\s"',;(){}\[\]\\]{6,}""")
_QUOTED = re.compile(  # a quoted value of a quoted name, as in JSON, also JSON within JSON; or of a password in code
    rf"""(?i)((?:(\\?["'])[\w-]{{0,40}}?(?:{_NAMES})\2\s{{0,4}}:|\bpassw(?:or)?d\s{{0,4}}=)\s{{0,4}}(\\?["']))"""
    r"""(?:(?!\3)(?:\\.|[^\\\n])){1,4000}(?=\3)"""
)
_SECRET_KEY = re.compile(rf"(?i)^(?:.*[_-])?(?:{_NAMES}|credentials|authorization|(?:set-)?cookie)$")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a graph is kept. Raises TraceError for a limit below 1.

    `text` and `code` are characters of one text, `items` of one container (half from each end), `array` items of one array, `depth` levels
    of nesting, `nodes` nodes of the graph (half from each end), `characters` text in all: beyond it each text is cut to 80.
    """

    text: int = 2_000
    code: int = 20_000
    items: int = 16
    array: int = 32
    depth: int = 5
    nodes: int = 20_000
    characters: int = 2_000_000

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise TraceError(f"the limit {name} must be at least 1")


def redact(text: str) -> str:
    """`text` without what looks like a key, token or password; what UTF-8 can't hold becomes `?`."""
    if not text.isascii():
        text = text.encode(errors="replace").decode()
    if len(text) < 8:
        return text
    folded = text.casefold()  # searching for parts takes a hundredth of the patterns' time, and most texts have none
    if any(part in folded for part in _PARTS_OF_SECRETS):
        text = _SECRET.sub(REDACTED, text)
    if any(part in folded for part in _PARTS_OF_NAMES):
        for pattern in (_QUOTED, _ASSIGNED, _PASSWORD):
            text = pattern.sub(rf"\1{REDACTED}", text)
    return text


@lru_cache(maxsize=4096)
def names_a_secret(name: str) -> bool:
    """Whether a value of this name is a key, token or password, as far as names tell: `apiKey`, `AWS_SECRET_ACCESS_KEY`, not `tokens`."""
    return _SECRET_KEY.match(_HUMP.sub("_", name[:200])) is not None


class Summariser:
    """Makes values fit for a trace, within limits that hold for all of them together."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._characters = limits.characters

    def __call__(self, value: Any) -> Any:
        """The plain form of `value` (see this module's docstring)."""
        kind = type(value)
        if kind is float and math.isfinite(value):
            return value
        return self._value(value, self._limits.depth)

    def code(self, text: str) -> Any:
        """The source of a parameter: cut later than other texts."""
        return self._text(text, self._limits.code)

    def _value(self, value: Any, depth: int) -> Any:  # noqa: C901, PLR0911 - a case per type
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            return self._text(str(value), self._limits.text)
        if isinstance(value, int):
            number = int(value)
            return number if -_INT64 <= number < _INT64 else {"$type": "int", "repr": _huge(number)}
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"$type": "float", "repr": repr(float(value))}
        if isinstance(value, bytes | bytearray | memoryview):
            return {"$type": "bytes", "length": len(value)}
        if isinstance(value, Mapping):
            return self._mapping(value, depth)
        if isinstance(value, list | tuple):
            return self._sequence(value, depth)
        if isinstance(value, set | frozenset):  # their order differs from process to process
            return self._sequence(
                sorted(value, key=lambda item: (type(item).__name__, item if isinstance(item, str) else hash(item))), depth
            )
        numpy = sys.modules.get("numpy")  # a value can be numpy's only if numpy is loaded
        if numpy is not None and isinstance(value, numpy.ndarray):
            return self._array(numpy, value, depth)
        if numpy is not None and isinstance(value, numpy.generic):
            return self._value(value.item(), depth) if not isinstance(value.item(), numpy.generic) else self._object(value)
        return self._value(value._data, depth) if isinstance(value, AbstractNode) else self._object(value)

    def _text(self, text: str, limit: int) -> Any:
        limit = min(limit, 80) if self._characters <= 0 else limit
        if len(text) <= limit:
            text = redact(text)
            self._characters -= len(text)
            return text
        half = limit // 2
        start, end = redact(text[: limit - half + _MARGIN])[: limit - half], redact(text[-half - _MARGIN :])[-half:] if half else ""
        self._characters -= limit
        return {"$type": "text", "length": len(text), "start": start, "end": end}

    def _sequence(self, items: Sequence[Any], depth: int) -> Any:
        if depth <= 0:
            return {"$type": "list", "length": len(items)}
        limit = self._limits.items
        if len(items) <= limit:
            return [self._value(item, depth - 1) for item in items]
        half = limit // 2
        return {
            "$type": "list",
            "length": len(items),
            "start": [self._value(item, depth - 1) for item in items[: limit - half]],
            "end": [self._value(item, depth - 1) for item in items[len(items) - half :]],
        }

    def _mapping(self, value: Mapping[Any, Any], depth: int) -> Any:
        if depth <= 0:
            return {"$type": "dict", "length": len(value)}
        kept: dict[str, Any] = {}
        for index, (key, item) in enumerate(value.items()):
            if index >= self._limits.items:
                return {"$type": "dict", "length": len(value), "items": kept}
            name = redact(str(key))[:200]
            place = f"{name} #{index}" if name in kept else name  # as 1 and "1" are, or long keys that begin alike
            kept[place] = REDACTED if isinstance(item, str) and names_a_secret(name) else self._value(item, depth - 1)
        return kept

    def _array(self, numpy: Any, value: Any, depth: int) -> Any:
        if value.size <= self._limits.array and value.dtype.kind in "biuf" and value.ndim <= depth:
            return self._listed(value.tolist())
        made: dict[str, Any] = {"$type": "array", "shape": list(value.shape), "dtype": str(value.dtype)}
        if value.dtype == numpy.uint8 and value.ndim == 3 and value.shape[-1] in (1, 3, 4) and value.size >= 1024:
            digest = hashlib.sha256(numpy.ascontiguousarray(value)).hexdigest()
            return {**made, "$type": "image", "sha256": digest}
        if value.size and value.dtype.kind in "biuf":
            finite = value[numpy.isfinite(value)] if value.dtype.kind == "f" else value
            if finite.size < value.size:
                made["not_finite"] = int(value.size - finite.size)
            if finite.size:
                mean = float(finite.mean(dtype=numpy.float64))
                made |= {"low": _rounded(finite.min()), "high": _rounded(finite.max()), "mean": _rounded(mean)}
            made["start"] = self._listed(value.ravel()[: min(8, self._limits.array)].tolist())
        return made

    def _listed(self, items: Any) -> Any:
        return [self._listed(item) for item in items] if isinstance(items, list) else self(items)

    def _object(self, value: Any) -> Any:
        cls = type(value)
        made = {"$type": f"{cls.__module__}.{cls.__qualname__}"}
        if cls.__repr__ is not object.__repr__:  # type: ignore[comparison-overlap]  # the default shows an address, different each time
            try:
                made["repr"] = redact(repr(value)[: _OPAQUE + _MARGIN])[:_OPAQUE]
            except Exception as error:  # noqa: BLE001 - a repr is the program's code
                made["repr"] = f"(its repr raised {type(error).__name__})"
            self._characters -= len(made["repr"])
        return made


def _rounded(number: Any) -> Any:
    plain = number.item() if hasattr(number, "item") else number
    return float(f"{plain:.{_ROUND}g}") if isinstance(plain, float) else plain


def _huge(number: int) -> str:
    return f"about {'-' if number < 0 else ''}2**{number.bit_length() - 1}"
