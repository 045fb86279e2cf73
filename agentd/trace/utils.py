"""Small helpers that programs import from Trace."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from agentd.trace.nodes import Node

C = TypeVar("C", bound=type)

_ENDING = re.compile(r"\s*(?:[,:}\]]|$)")
_ESCAPE = re.compile(r"\\(?:[\\/\"nbfrt]|u[0-9a-fA-F]{4})")


def sum_feedback(nodes: Iterable[Node]) -> Any:
    """The sum of all the feedback on `nodes`."""
    return sum(item for node in nodes for items in node.feedback.values() for item in items)


def contain(container_of_nodes: Iterable[Any], node: Node) -> bool:
    """Whether this very node (not one of equal value) is among them."""
    return any(node is other for other in container_of_nodes)


def parse_eqs_to_dict(text: str) -> dict[str, str]:
    """Lines `name = value` as a dict; a line without `=` continues the value before it; backticks are left out."""
    found: dict[str, str] = {}
    last = None
    for line in text.split("\n"):
        name, equals, value = line.partition("=")
        if equals:
            last = name.strip()
            found[last] = value.replace("`", "").strip()
        elif line and last is not None:
            found[last] += "\n" + line.replace("`", "")
    return found


def for_all_methods(decorator: Callable[[Any], Any]) -> Callable[[C], C]:
    """A class decorator that applies `decorator` to every method without a leading `__`."""

    def decorate(cls: C) -> C:
        for name, value in list(vars(cls).items()):
            if callable(value) and not name.startswith("__"):
                made = decorator(value)
                setattr(cls, name, made)
                if hasattr(made, "__set_name__"):
                    made.__set_name__(cls, name)
        return cls

    return decorate


def escape_json_nested_quotes(json_str: str) -> str:
    """Repairs JSON strings that a model wrote: escapes the quotes within them, and takes away backslashes that JSON doesn't know.

    A quote ends a string only before `,`, `:`, `}`, `]` or the end.
    """
    made: list[str] = []
    inside, index = False, 0
    while index < len(json_str):
        character = json_str[index]
        step = 1
        if character == "\\" and inside:
            if json_str.startswith('\\"', index + 1) and not _ENDING.match(json_str, index + 3):
                character, step = '\\"', 3  # escaped twice
            elif _ESCAPE.match(json_str, index):
                character, step = json_str[index : index + 2], 2
            else:
                character = ""
        elif character == '"':
            if inside and not _ENDING.match(json_str, index + 1):
                character = '\\"'
            else:
                inside = not inside
        made.append(character)
        index += step
    return "".join(made)


def remove_non_ascii(json_txt: str) -> str:
    """As escape_json_nested_quotes, without control characters other than tabs and line ends. Letters of any language stay, as in Trace."""
    return "".join(character for character in escape_json_nested_quotes(json_txt) if character in "\n\t\b\r\f" or character.isprintable())


def render_opt_step(step_idx: int, optimizer: Any, no_trace_graph: bool = False, no_improvement: bool = False) -> Any:
    """One step of an optimizer's log as HTML: the problem, the feedback, the reasoning and the suggestion.

    In a notebook it is displayed; elsewhere the HTML text is returned.
    """
    from agentd.trace.notebook import step_html  # noqa: PLC0415 - few programs are notebooks

    return step_html(step_idx, optimizer, graph=not no_trace_graph, improvement=not no_improvement)
