"""The JSON schema of a reply, made from the parameters: with constrained decoding a model can't name what isn't there."""

from collections.abc import Mapping, Sequence
from typing import Any

from agentd.records import Kind, Parameter, Value


def reply_schema(parameters: Sequence[Parameter], *, reasoning_limit: int) -> dict[str, Any]:
    """A schema for `{"reasoning": text, "suggestion": {path: value}}`.

    With one parameter its value is required; with several each may be null, which leaves it as it is. Every property is listed as required,
    as strict servers want it; reasoning comes first and is limited to so many characters, so that it can't use up the answer.
    """
    optional = len(parameters) > 1
    values = {parameter.path: _nullable(_value(parameter)) if optional else _value(parameter) for parameter in parameters}
    return _object({"reasoning": {"type": "string", "maxLength": reasoning_limit}, "suggestion": _object(values)})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _value(parameter: Parameter) -> dict[str, Any]:
    if parameter.choices is not None:
        return {"enum": list(parameter.choices)}
    match parameter.kind:
        case Kind.BOOLEAN:
            return {"type": "boolean"}
        case Kind.NUMBER:
            low, high = parameter.bounds or (None, None)
            limits = {"minimum": low} if low is not None else {}
            limits |= {"maximum": high} if high is not None else {}
            return {"type": "integer" if parameter.integer else "number", **limits}
        case Kind.STRUCTURED:
            return _like(parameter.default)
        case _:
            return {"type": "string"}


def _like(default: Value) -> dict[str, Any]:
    """The schema of values that have the structure of `default`."""
    match default:
        case bool():
            return {"type": "boolean"}
        case int() | float():
            return {"type": "number"}
        case Mapping():
            return _object({key: _like(value) for key, value in default.items()})
        case list() | tuple() if default:
            length = {"minItems": len(default), "maxItems": len(default)} if all(isinstance(item, int | float) for item in default) else {}
            return {"type": "array", "items": _like(default[0]), **length}
        case str():
            return {"type": "string"}
    return {}
