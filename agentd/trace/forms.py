"""What made a node, shared by all the nodes that it made."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentd.trace.bundle import FunModule

_MAX_FORMS = 256  # call shapes remembered per operator; more come only from generated keyword names
_NAME = re.compile(r"\s*\[([^\[\]]+)\]")

IDENTITY_OPERATORS = ("identity", "clone")


def get_op_name(description: str) -> str:
    """The operator's name in a description of the form `[name] text`. Raises ValueError where there is none."""
    match = _NAME.match(description)
    if match is None:
        raise ValueError(f"a description must start with [name]: {description!r}")
    return match.group(1)


class Operator:
    """A named operation: a built-in operator, a bundle, or something opaque such as an environment's step."""

    __slots__ = ("_forms", "description", "function", "module", "name")

    def __init__(self, name: str, description: str, function: Callable[..., Any] | None = None, module: FunModule | None = None) -> None:
        self.name = name
        self.description = description
        self.function = function
        self.module = module
        self._forms: dict[tuple[str, ...], Form] = {}

    def form(self, arguments: tuple[str, ...]) -> Form:
        """The form of a call with these argument names; equal shapes share one."""
        form = self._forms.get(arguments)
        if form is None:
            form = Form(self, arguments)
            if len(self._forms) < _MAX_FORMS:
                self._forms[arguments] = form
        return form


class Form:
    """An operator together with the names of the arguments that one call of it had."""

    __slots__ = ("arguments", "operator")

    def __init__(self, operator: Operator, arguments: tuple[str, ...]) -> None:
        self.operator = operator
        self.arguments = arguments
