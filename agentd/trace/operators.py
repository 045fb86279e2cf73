"""The built-in operators as functions of nodes (plain values are allowed): `operators.add(x, 1)`.

Every primitive of agentd.trace.primitives is here under its name.
"""

from __future__ import annotations

import types
from typing import Any

from agentd.trace.bundle import FunModule, bundle
from agentd.trace.host import current_host
from agentd.trace.nodes import Node, apply, node
from agentd.trace.primitives import ARGUMENTS, PRIMITIVES


class _Operation:
    """A primitive as a function."""

    def __init__(self, name: str) -> None:
        self.name = self.__name__ = name
        self.description = self.__doc__ = PRIMITIVES[name].description

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        names = ARGUMENTS[self.name]
        if kwargs and all(key in names for key in kwargs):  # add(x=1, y=2)
            given = dict(zip(names, args, strict=False)) | kwargs
            if list(given) == list(names[: len(given)]):
                return apply(self.name, *given.values())
        return apply(self.name, *args, **kwargs)

    def __repr__(self) -> str:
        return f"<operator {self.name}>"


def identity(x: Any) -> Any:
    """The same as `x.clone()`."""
    return node(x).clone()


@bundle(  # type: ignore[untyped-decorator]  # what a bundle returns can't be typed
    "[call] Calls fun with the other arguments.", _process_inputs=False, allow_external_dependencies=True
)
def call(fun: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls the value of the node `fun`. Python functions get nodes as they are; what is written in C gets plain values."""
    function = fun._data if isinstance(fun, Node) else fun
    if not callable(function):
        raise TypeError(f"{type(function).__name__!r} object is not callable")
    if not _takes_nodes(function):
        args = tuple(argument._data if isinstance(argument, Node) else argument for argument in args)
        kwargs = {key: argument._data if isinstance(argument, Node) else argument for key, argument in kwargs.items()}
    return function(*args, **kwargs)


@bundle()  # type: ignore[untyped-decorator]  # as above
def call_llm(system_prompt: Any, *user_prompts: Any, **options: Any) -> str:
    """Asks the language model of whoever runs the program (agentd.trace.host). Options: max_tokens, temperature, model."""
    return current_host().complete(_messages(system_prompt, user_prompts), **options)


@bundle()  # type: ignore[untyped-decorator]  # as above
async def acall_llm(system_prompt: Any, *user_prompts: Any, **options: Any) -> str:
    """Asks the language model as call_llm does, and lets other tasks go on meanwhile."""
    return await current_host().acomplete(_messages(system_prompt, user_prompts), **options)


def _messages(system_prompt: Any, user_prompts: tuple[Any, ...]) -> list[dict[str, str]]:
    return [{"role": "system", "content": str(system_prompt)}, *({"role": "user", "content": str(text)} for text in user_prompts)]


def _takes_nodes(function: Any) -> bool:
    if isinstance(function, types.FunctionType | types.MethodType | FunModule):
        return True
    if isinstance(function, type):
        return isinstance(function.__init__, types.FunctionType)  # type: ignore[misc]  # a look, no call
    return isinstance(type(function).__call__, types.FunctionType)


globals().update({_name: _Operation(_name) for _name in PRIMITIVES})


def __getattr__(name: str) -> Any:
    raise AttributeError(f"there is no operator {name!r}")
