"""`[environment.mqtt.mapping]` of agent.toml: how a robot speaks that knows nothing of agentd's protocol.

Nothing in it is computed: a path names a part of the robot's JSON, a template is the robot's payload with places for the action.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from agentd.configuration import Section

DEVICE = "{device}"
"""A level of a topic that differs from robot to robot: its name."""
PLACEHOLDER = re.compile(r"\$(?:action(?:\.(\d+))?|safe)(?![\w.])")
"""`$action`, `$action.0` (the first of several numbers), `$safe` (whether it is the safe action)."""

_PATH = re.compile(r"(?:[^.\s]+(?:\.[^.\s]+)*)?")


class ObservationMapping(Section):
    """`observation`: where it comes from. `fields` is one path, whose value is the observation, or a list of them, strung together."""

    topic: str
    fields: str | tuple[str, ...] = ""

    @classmethod
    def inconsistencies(cls, table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Topics and paths that are none."""
        yield from _topic_mistakes(table.get("topic"), whole_level=True)
        fields = table.get("fields", "")
        if isinstance(fields, str):
            yield from _path_mistakes("fields", fields)
        elif isinstance(fields, list):
            if not fields:
                yield "fields", "should name at least one part of the payload"
            for position, path in enumerate(fields):
                yield from _path_mistakes("fields", path, f"number {position + 1} ")


class ActionMapping(Section):
    """`action`: where it goes and how it is written. `values` is what a discrete action stands for, from the first one on."""

    topic: str
    payload: Any = "$action"
    format: Literal["json", "text"] = "json"
    values: tuple[Any, ...] | None = None

    @classmethod
    def inconsistencies(cls, table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Topics that are none, and templates without the action or with places that nobody knows."""
        yield from _topic_mistakes(table.get("topic"), whole_level=False)
        payload, text = table.get("payload", "$action"), table.get("format") == "text"
        if text and not isinstance(payload, str):
            yield "payload", 'should be text where format = "text"'
            return
        found = list(_strings(payload))
        for string in found:
            left = PLACEHOLDER.sub("", string)
            if "$" in left:
                yield "payload", f'{string!r}: places begin with "$", and there are $action, $action.0 and so on, and $safe'
            elif not text and left != string and left:
                yield "payload", f'{string!r}: a place stands alone in its quotes, unless format = "text"'
        if not any(match.group().startswith("$action") for string in found for match in PLACEHOLDER.finditer(string)):
            yield "payload", "has no place for the action: $action, or $action.0 and so on"


class MappingSection(Section):
    """The whole mapping. `reward`, `terminated` and `truncated` are paths in the observation's payload."""

    device: str | None = None
    """The robot's name where no topic has one."""
    observation: ObservationMapping
    action: ActionMapping
    reward: str | None = None
    terminated: str | None = None
    truncated: str | None = None

    @classmethod
    def inconsistencies(cls, table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Robots that can't be told apart, an agent that would hear itself, and paths that are none."""
        for key in ("reward", "terminated", "truncated"):
            if key in table:
                yield from _path_mistakes(key, table[key])
        name = table.get("device")
        if isinstance(name, str) and (not name or any(character in name for character in "/+#")):
            yield "device", "should be one level of a topic: not empty, without /, + and #"
        topics = [section.get("topic") if isinstance(section := table.get(key), Mapping) else None for key in ("observation", "action")]
        observed, acted = topics
        if not isinstance(observed, str) or not isinstance(acted, str):
            return  # told already
        if (DEVICE in observed) != (DEVICE in acted):
            yield "action.topic", f"should have {DEVICE} exactly where observation.topic has it: each robot gets its own actions"
        if DEVICE in observed and name is not None:
            yield "device", f"not together with {DEVICE} in the topics, which names the robots"
        if _hears(observed, acted):
            yield "action.topic", "should lie outside observation.topic: the agent would hear itself"


def mapping_mistakes(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key below `[environment]`, what is expected there) where a mapping doesn't fit the declared spaces."""
    mqtt = section if isinstance(section := table.get("mqtt"), Mapping) else {}
    mapping = mqtt.get("mapping")
    if not isinstance(mapping, Mapping):
        return
    for key in ("observation_space", "action_space"):
        if not isinstance(table.get(key), Mapping):
            yield key, "required with mqtt.mapping, since the robot can't be asked"
            return
    if mqtt.get("begin") == "device" and not {"terminated", "truncated"} & set(mapping):
        yield "mqtt.begin", '"device" needs mapping.terminated or mapping.truncated: nothing else tells where the robot\'s episodes end'
    action, space = mapping.get("action"), table["action_space"]
    if isinstance(action, Mapping):
        yield from _action_mistakes(action, space)
    observation = mapping.get("observation")
    fields = observation.get("fields") if isinstance(observation, Mapping) else None
    count = _count(table["observation_space"])
    if isinstance(fields, list) and count is not None and len(fields) > count:
        yield "mqtt.mapping.observation.fields", f"has {len(fields)} paths for an observation_space of {count} numbers"


def _action_mistakes(action: Mapping[str, Any], space: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    values, choices = action.get("values"), space.get("discrete")
    if isinstance(values, list) and isinstance(choices, int) and len(values) != choices:
        yield "mqtt.mapping.action.values", f"should have {choices} entries, one for each action of action_space, not {len(values)}"
    if values is not None and choices is None:
        yield "mqtt.mapping.action.values", "only for a discrete action_space"
    count = None if choices is not None else _count(space)
    for match in (found for string in _strings(action.get("payload", "$action")) for found in PLACEHOLDER.finditer(string)):
        if match.group(1) is None:
            continue
        if choices is not None:
            yield "mqtt.mapping.action.payload", f"{match.group()}: an action of a discrete action_space has no parts"
        elif count is not None and int(match.group(1)) >= count:
            yield "mqtt.mapping.action.payload", f"{match.group()}: an action has {count} numbers, counted from 0"


def _count(space: Mapping[str, Any]) -> int | None:
    """How many numbers a value of a written space has; None where that is not to be seen."""
    if "discrete" in space:
        return 1
    shape = space.get("shape")
    if isinstance(shape, list) and all(isinstance(size, int) for size in shape):
        return math.prod(shape)
    return next((len(end) for end in (space.get("low"), space.get("high")) if isinstance(end, list)), 1)


def _topic_mistakes(topic: Any, *, whole_level: bool) -> Iterator[tuple[str, str]]:
    if not isinstance(topic, str):
        return  # told already
    rest = topic.replace(DEVICE, "", 1)
    if not topic or any(character in rest for character in "+#{}$\0"):
        yield "topic", f"should be an MQTT topic without + and #, in which {DEVICE} may stand once for the robot's name"
    elif whole_level and DEVICE in topic and DEVICE not in topic.split("/"):
        yield "topic", f"{DEVICE} should be a level of its own: robots/{DEVICE}/state"


def _hears(observed: str, acted: str) -> bool:
    """Whether what is sent to a robot comes back as the words of one."""
    levels, sent = observed.split("/"), acted.split("/")
    return len(levels) == len(sent) and all(level in (DEVICE, other) for level, other in zip(levels, sent, strict=True))


def _path_mistakes(key: str, path: Any, which: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(path, str) and not _PATH.fullmatch(path):
        yield key, f"{which}should be a path such as pose.x or joints.0.angle, not {path!r}"


def _strings(template: Any) -> Iterator[str]:
    if isinstance(template, str):
        yield template
    elif isinstance(template, Mapping):
        for value in template.values():
            yield from _strings(value)
    elif isinstance(template, list | tuple):
        for value in template:
            yield from _strings(value)
