"""What both configuration files share: reading TOML, reporting every mistake at once, durations and sizes.

`agent.toml` (agentd.spec) and `agentd.toml` (agentd.settings) are checked by the same few functions, so that they speak alike.
"""

import difflib
import json
import re
import tomllib
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from agentd.errors import Mistake, SpecError

T = TypeVar("T", bound=BaseModel)

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_SIZE_UNITS = {"B": 1, "kB": 10**3, "KiB": 2**10, "MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30}
_RATE_UNITS = {"minute": 60.0, "hour": 3600.0, "day": 86_400.0, "week": 604_800.0}
_PASSWORD_IN_URL = re.compile(r"(?<=://)([^/@:]*):.*@")  # up to the last @: a password may hold what it should not
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")

_EXPECTED = {
    "missing": "required, but missing",
    "string_type": "should be text",
    "int_type": "should be a whole number",
    "float_type": "should be a number",
    "bool_type": "should be true or false",
    "bool_parsing": "should be true or false",
    "int_parsing": "should be a whole number",
    "float_parsing": "should be a number",
    "int_from_float": "should be a whole number",
    "path_type": "should be a path",
    "tuple_type": "should be a list",
    "dict_type": "should be a table",
    "model_type": "should be a table",
    "model_attributes_type": "should be a table",
    "finite_number": "should be a finite number",
}


class Section(BaseModel):
    """A table of a configuration file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def inconsistencies(cls, table: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
        """(key, what is expected there) where keys of `table` don't fit together; "" for the table itself.

        They are told beside keys that are wrong by themselves, so the table is as it was written: its values may be of any type.
        """
        del table
        return ()


def masked(url: str) -> str:
    """`url` without its password."""
    return _PASSWORD_IN_URL.sub(r"\1:***@", url)


def parse_duration(text: str) -> float:
    """Seconds of a text such as "500ms", "30s", "5min", "24h" or "7d". Raises ValueError that says what is expected."""
    match = _AMOUNT.fullmatch(text)
    if match is None or match[2] not in _DURATION_UNITS:
        raise ValueError(f'should be a duration such as "500ms", "30s", "5min", "24h" or "7d", not "{text}"')
    return float(match[1]) * _DURATION_UNITS[match[2]]


def parse_size(text: str) -> int:
    """Bytes of a text such as "64KiB", "256MiB" or "1GB". Raises ValueError that says what is expected."""
    match = _AMOUNT.fullmatch(text)
    if match is None or match[2] not in _SIZE_UNITS:
        raise ValueError(f'should be a size such as "64KiB", "256MiB" or "1GB", not "{text}"')
    return int(float(match[1]) * _SIZE_UNITS[match[2]])


def parse_rate(text: str) -> tuple[int, float]:
    """Count and period, seconds, of a text such as "3/day" or "1/12h". Raises ValueError that says what is expected."""
    count, _, period = text.partition("/")
    try:
        seconds = _RATE_UNITS[period.strip()] if period.strip() in _RATE_UNITS else parse_duration(period)
        if seconds > 0:
            return int(count), seconds
    except ValueError:
        pass
    raise ValueError(f'should be a number in a time such as "3/day", "1/hour" or "2/12h", not "{text}"')


def check_duration(text: str) -> str:
    """Pydantic validator: `text` unchanged if it is a duration longer than nothing."""
    if parse_duration(text) <= 0:
        raise ValueError("should be longer than nothing")
    return text


def check_rate(text: str) -> str:
    """Pydantic validator: `text` unchanged if it is a rate, of nothing or more."""
    if parse_rate(text)[0] < 0:
        raise ValueError("should not be negative")
    return text


def check_size(text: str) -> str:
    """Pydantic validator: `text` unchanged if it is a size larger than nothing."""
    if parse_size(text) <= 0:
        raise ValueError("should be larger than nothing")
    return text


def read_toml(path: Path) -> dict[str, Any]:
    """The table that a TOML file holds. Raises SpecError (with the line) where it can't be read or parsed."""
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError([Mistake(str(path), "(file)", f"can't be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise SpecError([Mistake(str(path), "(file)", f"should be UTF-8 text, but byte {error.start} is not")]) from error
    try:
        return tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise SpecError([Mistake(str(path), "(syntax)", f"not TOML: {error}")]) from error


def validate(model: type[T], data: Mapping[str, Any], file: str) -> T:
    """`data` as a `model`, types taken strictly (a number in quotes is text). Raises SpecError with every mistake."""
    found = [Mistake(file, dotted(path), text) for path, text in _inconsistencies(model, data)]
    try:
        # Strict JSON is what TOML means: lists may become tuples and texts enums, but "5" stays text and 5.0 no integer.
        made = model.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise SpecError(mistakes(error, model, data, file) + found) from error
    if found:
        raise SpecError(found)
    return made


def _inconsistencies(model: type[BaseModel], table: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What the sections from `model` down say of the tables that were written for them."""
    if not isinstance(table, Mapping):
        return  # told already
    if issubclass(model, Section):
        for key, text in model.inconsistencies(table):
            yield (*path, *key.split(".")) if key else path, text
    for name, field in model.model_fields.items():
        key = field.alias or name
        for inner in _models(field.annotation):
            value = table.get(key)
            if isinstance(value, list):
                for index, item in enumerate(value):
                    yield from _inconsistencies(inner, item, (*path, key, index))
            elif isinstance(value, Mapping) and typing.get_origin(field.annotation) is dict:
                for chosen, item in value.items():
                    yield from _inconsistencies(inner, item, (*path, key, chosen))
            else:
                yield from _inconsistencies(inner, value, (*path, key))


def mistakes(error: ValidationError, model: type[BaseModel], data: Mapping[str, Any], file: str) -> list[Mistake]:
    """What pydantic found, as sentences about keys of the file; one per key, in the order of the model."""
    found: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        path = _real_path(item["loc"], data)
        expected = found.setdefault(dotted(path), [])
        text = _expected(item, model, path)
        if text not in expected:
            expected.append(text)
    return [Mistake(file, key, ", or ".join(texts)) for key, texts in found.items()]


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean "..."?` for the nearest known word, or the list of them when none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f'; did you mean "{near[0]}"?'
    return f"; known here: {', '.join(known)}" if known else ""


def dotted(path: Iterable[str | int]) -> str:
    """A key as TOML writes it: `parameters."gains.kp".bounds`, `metrics[1].range`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else json.dumps(part)
            text += f".{name}" if text else name
    return text or "(file)"


def _real_path(location: tuple[str | int, ...], data: Any) -> list[str | int]:
    """The part of a pydantic location that is in the file: without the names of union members, but with a missing last key."""
    path: list[str | int] = []
    location = tuple(part for part in location if part != "[key]")  # pydantic's mark for a mistake in a key itself
    for position, part in enumerate(location):
        within = part in data if isinstance(data, Mapping) else isinstance(data, list) and isinstance(part, int)
        if within:
            data = data[part]
        if within or (isinstance(data, Mapping) and position == len(location) - 1):
            path.append(part)
    return path


def _expected(item: Any, model: type[BaseModel], path: list[str | int]) -> str:
    kind, context = item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key{suggestion(str(path[-1]), _keys(model, path[:-1]))}"
    if kind == "value_error":
        return str(context["error"])
    if kind in {"literal_error", "enum"}:
        return f"should be {context['expected']}, not {json.dumps(item['input'], default=str)}"
    if kind == "too_short":
        return f"should have at least {context['min_length']}"
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    message = str(item["msg"]).replace("Input should be", "should be")
    scalar = isinstance(item["input"], int | float | str)
    return f"{message}, not {json.dumps(item['input'])}" if scalar else message


def _keys(model: type[BaseModel], path: list[str | int]) -> set[str]:
    """The keys that the table at `path` may have."""
    models = {model}
    for part in path:
        fields = [field for owner in models for name, field in owner.model_fields.items() if part in {name, field.alias}]
        # An index, or a key that the author chose, stays within the models that its list or table holds.
        models = {found for field in fields for found in _models(field.annotation)} or models
    return {field.alias or name for owner in models for name, field in owner.model_fields.items()}


def _models(annotation: Any) -> set[type[BaseModel]]:
    """Every pydantic model that an annotation mentions, through unions, tuples and tables."""
    if isinstance(annotation, type(BaseModel)):
        return {annotation}
    return {found for argument in typing.get_args(annotation) for found in _models(argument)}
