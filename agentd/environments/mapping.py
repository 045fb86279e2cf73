"""Between a robot's own payloads and the values of agentd: paths into its JSON, templates of what it is sent. Pure."""

import re
from typing import Any, NamedTuple

import msgspec
import numpy as np

from agentd.environments.spaces import fit
from agentd.mapping_spec import DEVICE, PLACEHOLDER, MappingSection
from agentd.records import Space, Value

_MISSING = object()


class Reading(NamedTuple):
    """What one message of a robot says. `observation` isn't yet known to lie in the space."""

    observation: Any
    reward: float | None = None
    terminated: bool = False
    truncated: bool = False


class Mapping:
    """A checked `[environment.mqtt.mapping]`, ready for use."""

    def __init__(self, section: MappingSection, action_space: Space) -> None:
        self._section = section
        self._action_space = action_space
        self._levels = section.observation.topic.split("/")
        self._place = self._levels.index(DEVICE) if DEVICE in self._levels else None
        self._fields = _parts(section.observation.fields) if isinstance(section.observation.fields, str) else None
        self._several = () if isinstance(section.observation.fields, str) else tuple(_parts(path) for path in section.observation.fields)

    @property
    def subscription(self) -> str:
        """The topic filter that every robot's observations match."""
        return self._section.observation.topic.replace(DEVICE, "+")

    def device(self, topic: str) -> str:
        """The robot that an observation's topic belongs to."""
        if self._place is None:
            return self._section.device or "robot"
        return topic.split("/")[self._place]

    def action_topic(self, device: str) -> str:
        """Where this robot hears its actions."""
        return self._section.action.topic.replace(DEVICE, device)

    def read(self, payload: bytes) -> Reading:
        """What a robot's message says. Raises ValueError for one that is not JSON or lacks what the mapping names."""
        message = msgspec.json.decode(payload)  # its DecodeError is a ValueError
        reading = Reading(
            observation=None,
            reward=_number(message, self._section.reward),
            terminated=_flag(message, self._section.terminated),
            truncated=_flag(message, self._section.truncated),
        )
        try:
            observation = self._observation(message)
        except ValueError:
            if reading.terminated or reading.truncated:
                return reading  # the end is news even where there is no observation
            raise
        return reading._replace(observation=observation)

    def _observation(self, message: Any) -> Any:
        if self._fields is not None:
            return _at(message, self._fields)
        found: list[Any] = []
        for path in self._several:
            value = _at(message, path)
            found += value if isinstance(value, list) else [value]
        return found

    def write(self, action: Value, *, safe: bool) -> bytes:
        """The payload for a robot. Raises ValueError for an action outside the action space."""
        fitted = fit(self._action_space, action)
        section = self._section.action
        numbers = np.ravel(np.asarray(fitted)).tolist()
        value = section.values[int(numbers[0]) - self._action_space.start] if section.values is not None else fitted
        given = _Given(value.tolist() if hasattr(value, "tolist") else value, numbers, safe)
        if section.format == "text":
            return PLACEHOLDER.sub(lambda match: _words(given.at(match)), section.payload).encode()
        return msgspec.json.encode(_filled(section.payload, given))


class _Given(NamedTuple):
    """What the places of a template stand for."""

    action: Any
    numbers: list[float]
    safe: bool

    def at(self, place: "re.Match[str]") -> Any:
        if place.group() == "$safe":
            return self.safe
        return self.action if place.group(1) is None else self.numbers[int(place.group(1))]


def _filled(template: Any, given: _Given) -> Any:
    if isinstance(template, str):
        place = PLACEHOLDER.fullmatch(template)
        return template if place is None else given.at(place)
    if isinstance(template, dict):
        return {key: _filled(value, given) for key, value in template.items()}
    if isinstance(template, list | tuple):
        return [_filled(value, given) for value in template]
    return template


def _words(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _parts(path: str) -> tuple[str, ...]:
    return tuple(path.split(".")) if path else ()


def _find(message: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        if isinstance(message, dict):
            message = message.get(part, _MISSING)
        elif isinstance(message, list) and part.isdecimal() and int(part) < len(message):
            message = message[int(part)]
        else:
            return _MISSING
    return message


def _at(message: Any, path: tuple[str, ...]) -> Any:
    found = _find(message, path)
    if found is _MISSING:
        raise ValueError(f"there is no {'.'.join(path)}")
    return found


def _number(message: Any, path: str | None) -> float | None:
    found = _MISSING if path is None else _find(message, _parts(path))
    if found is _MISSING or found is None:
        return None
    if not isinstance(found, int | float):
        raise ValueError(f"{path} should be a number")  # noqa: TRY004 - one kind of error for "not what the mapping says"
    try:
        return float(found)
    except OverflowError:
        raise ValueError(f"{path} should be a number of a size that can be computed with") from None


def _flag(message: Any, path: str | None) -> bool:
    found = _MISSING if path is None else _find(message, _parts(path))
    if found is _MISSING:
        return False
    if found not in (True, False):  # 0 and 1 among them
        raise ValueError(f"{path} should be true or false")
    return bool(found)
