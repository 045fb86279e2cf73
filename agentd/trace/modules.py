"""Programs with parameters: Module, and `model`, which makes one of a class."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from agentd.errors import TraceError
from agentd.trace.broadcast import apply_op
from agentd.trace.containers import NodeContainer, ParameterContainer
from agentd.trace.nodes import ParameterNode

__all__ = ["Module", "NodeContainer", "apply_op", "model"]  # two of them are here as well, as in Trace

C = TypeVar("C", bound=type)


class Module(ParameterContainer):
    """A container of parameters that can be called: `forward` says what that does."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What a call computes."""
        del args, kwargs
        raise TypeError(f"{type(self).__name__} has no forward method")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As forward."""
        return self.forward(*args, **kwargs)

    def copy(self) -> Self:
        """An independent copy with parameters of its own, of the same values."""
        return copy.deepcopy(self)

    def save(self, file_name: str | Path) -> None:
        """Writes the parameters' values, by attribute path, to a readable JSON file (agentd.trace.saving)."""
        from agentd.trace.saving import save  # noqa: PLC0415 - it imports this module

        save(self, Path(file_name))

    def load(self, file_name: str | Path) -> None:
        """Sets the parameters from a file that `save` wrote, or a pickle that Trace wrote (read without executing anything).

        Raises TraceError, and changes nothing, where a parameter is missing in the file or a value is refused.
        """
        from agentd.trace.saving import load  # noqa: PLC0415 - as above

        load(self, Path(file_name))

    def export(self, file_name: str | Path | None = None, projections: Any = ()) -> str:
        """The program as plain Python source with what it learned (agentd.trace.publishing), written to a file where one is named."""
        from agentd.trace.publishing import publish  # noqa: PLC0415 - as above

        return publish(self, None if file_name is None else Path(file_name), projections)

    model_dump = export

    def _set(self, new_parameters: Mapping[str, Any] | ParameterContainer) -> None:
        """Sets all parameters from another container's, or from a dict by name; names that are new become attributes."""
        given = new_parameters.parameters_dict() if isinstance(new_parameters, ParameterContainer) else new_parameters
        own = self.parameters_dict()
        missing = [name for name in own if name not in given]
        if missing:
            raise TraceError(f"the new parameters lack {', '.join(missing)}")
        for name, value in given.items():
            if name not in own:
                if not isinstance(value, ParameterNode | ParameterContainer):
                    raise TraceError(f"{name} is neither a parameter nor a container of parameters")
                setattr(self, name, value)
            else:
                own[name]._set(value)


def model(cls: C) -> C:
    """Makes a class a Module: its instances list their parameters, and can be saved, loaded and copied.

    The class keeps its name, so that its instances can be pickled and its source found.
    """
    if issubclass(cls, Module):
        return cls
    namespace = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    metaclass: Any = type(cls)
    made: Any = metaclass(cls.__name__, (cls, Module), namespace)
    return made  # type: ignore[no-any-return]  # a subclass stands where the class was
