"""Saved parameters: a readable, versioned JSON file; and Trace's old pickles, read without executing anything.

    {"format": "agentd-parameters", "version": 1, "parameters": {"act": {"code": "def act(..."}, "gain": {"value": 1.0}}}

A value that JSON can't hold as it is (tuple, set, array, a key that is no text) is `{"tuple": [...]}`, `{"set": [...]}`,
`{"array": ...}` or `{"dict": [[key, value], ...]}` in the place of the plain one, under `"encoded"`.
"""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

from agentd.errors import TraceError
from agentd.trace.nodes import Node, ParameterNode
from agentd.trace.parameters import assign, find_parameters
from agentd.trace.values import check_value

_FORMAT = "agentd-parameters"
_VERSION = 1


def save(program: Any, path: Path) -> None:
    """Writes the parameters of `program`. The file appears whole or not at all. Raises TraceError for a value that no file can hold."""
    content: dict[str, Any] = {"format": _FORMAT, "version": _VERSION, "parameters": {}}
    for name, parameter in find_parameters(program).items():
        try:
            content["parameters"][name] = _written(parameter)
            _json(content["parameters"][name])
        except (TraceError, ValueError, RecursionError) as error:  # half a surrogate pair, too many digits, a list within itself
            raise TraceError(f"parameter {name} can't be saved: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(_json(content))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def load(program: Any, path: Path) -> None:
    """Sets the parameters of `program` from a file of `save` or a pickle of Trace. All or nothing.

    Raises TraceError for a file of another kind or a newer version, for parameters that it lacks, and for values that are refused.
    """
    data = path.read_bytes()
    values = _from_json(data) if data.lstrip()[:1] == b"{" else _from_pickle(data)
    parameters = find_parameters(program)
    missing = [name for name in parameters if name not in values]
    if missing:
        raise TraceError(f"{path} lacks the parameters {', '.join(missing)}")
    before = [(parameter, parameter._data) for parameter in parameters.values()]
    for name, parameter in parameters.items():
        try:
            _set(parameter, values[name])
        except TraceError as error:
            for changed, value in before:
                changed._data = value
            raise TraceError(f"{path}: {name}: {error}") from error


def _set(parameter: ParameterNode, value: Any) -> None:
    """A saved value has its own type: only code, bounds and choices are checked."""
    if parameter._extra is not None and parameter._extra.code is not None:
        assign(parameter, value)
        return
    check_value(value, parameter.bounds, parameter.choices)
    parameter._data = value


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"


def _written(parameter: ParameterNode) -> dict[str, Any]:
    if parameter._extra is not None and parameter._extra.code is not None:
        return {"code": parameter._data}
    encoded = _encode(parameter._data)
    return {"value": encoded} if _same(encoded, parameter._data) else {"encoded": encoded}


def _same(encoded: Any, value: Any) -> bool:
    if isinstance(encoded, dict):
        return isinstance(value, dict) and encoded.keys() == value.keys() and all(_same(encoded[key], value[key]) for key in encoded)
    if isinstance(encoded, list):
        return type(value) is list and all(map(_same, encoded, value))
    return encoded is value


def _encode(value: Any) -> Any:  # noqa: PLR0911 - a case per type
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [_encode(item) for item in value]
    if type(value) is dict:
        if all(isinstance(key, str) for key in value) and not (len(value) == 1 and next(iter(value)) in _DECODERS):
            return {key: _encode(item) for key, item in value.items()}
        return {"dict": [[_encode(key), _encode(item)] for key, item in value.items()]}
    if type(value) in (tuple, set, frozenset):
        items = value if isinstance(value, tuple) else sorted(value, key=repr)
        return {type(value).__name__: [_encode(item) for item in items]}
    if isinstance(value, Node):
        return _encode(value._data)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist") and value.dtype.kind in "biuf":
        return {"array": {"dtype": value.dtype.str, "shape": list(value.shape), "items": value.reshape(-1).tolist()}}
    raise TraceError(f"a {type(value).__module__}.{type(value).__qualname__} has no readable form")


def _decode_array(content: Any) -> Any:
    import numpy as np  # noqa: PLC0415 - only who saved arrays needs it

    dtype = np.dtype(content["dtype"])
    if dtype.kind not in "biuf":
        raise TraceError(f"an array of {dtype} can't be loaded")
    array = np.array(content["items"], dtype=dtype).reshape(content["shape"])
    return array if content["shape"] else array[()]


_DECODERS: dict[str, Any] = {
    "tuple": lambda items: tuple(_decode(item) for item in items),
    "set": lambda items: {_decode(item) for item in items},
    "frozenset": lambda items: frozenset(_decode(item) for item in items),
    "dict": lambda items: {_decode(key): _decode(item) for key, item in items},
    "array": _decode_array,
}


def _decode(content: Any) -> Any:
    if isinstance(content, list):
        return [_decode(item) for item in content]
    if isinstance(content, dict):
        if len(content) == 1:
            kind, items = next(iter(content.items()))
            if kind in _DECODERS:
                return _DECODERS[kind](items)
        return {key: _decode(item) for key, item in content.items()}
    return content


def _from_json(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
        if content["format"] != _FORMAT:
            raise TraceError(f"a file of format {content['format']!r}, not {_FORMAT!r}")
        if content["version"] > _VERSION:
            raise TraceError(f"saved parameters of version {content['version']}; this agentd reads up to {_VERSION}")
        return {
            name: _decode(item["encoded"]) if "encoded" in item else item["code"] if "code" in item else item["value"]
            for name, item in content["parameters"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise TraceError(f"no file of saved parameters: {type(error).__name__}: {error}") from error


# --- Trace's pickles ------------------------------------------------------------------------------------------------


class _Shell:
    """Stands for any object in an old pickle: holds its state, does nothing."""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def append(self, item: Any) -> None:
        """What pickles of list-like containers call."""
        self.args = (*self.args, item)

    def __setitem__(self, key: Any, item: Any) -> None:
        self.args = (*self.args, (key, item))


_PLAIN = {
    ("builtins", name) for name in ("set", "frozenset", "complex", "bytearray", "list", "dict", "tuple", "int", "float", "str", "bool")
}


class _RestrictedUnpickler(pickle.Unpickler):
    """Knows plain builtins and arrays; every other class or function becomes a shell, which does nothing when it is called."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) in _PLAIN:
            return super().find_class(module_name, global_name)
        if (module_name, global_name) == ("collections", "defaultdict"):
            return _default_dict
        if (module_name, global_name) in {("copyreg", "_reconstructor"), ("copy_reg", "_reconstructor")}:
            return _reconstruct
        if module_name in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy._core.numeric", "numpy.core.numeric"):
            found = _numpy_class(global_name)
            if found is not None:
                return found
        return _Shell

    def persistent_load(self, pid: Any) -> Any:
        raise TraceError(f"the pickle asks for something outside it: {pid!r:.80}")


def _default_dict(*_: Any) -> dict[Any, Any]:
    return {}


def _reconstruct(cls: Any, base: Any, state: Any) -> Any:
    del base, state
    return _Shell() if cls is _Shell else cls()


def _numpy_class(name: str) -> Any:
    import numpy as np  # noqa: PLC0415 - only a pickle with arrays asks

    if name in ("ndarray", "dtype"):
        return getattr(np, name)
    if name in ("_reconstruct", "scalar", "_frombuffer"):
        import importlib  # noqa: PLC0415 - as above

        return getattr(importlib.import_module("numpy._core.numeric" if name == "_frombuffer" else "numpy._core.multiarray"), name, None)
    return None


def _from_pickle(data: bytes) -> dict[str, Any]:
    try:
        content = _RestrictedUnpickler(io.BytesIO(data)).load()
    except TraceError:
        raise
    except Exception as error:  # a hostile or broken pickle fails in any way
        raise TraceError(f"no file of saved parameters: {type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise TraceError("the pickle holds no dict of parameters")
    found: dict[str, Any] = {}
    _flatten(content, "", found, 0)
    return found


def _flatten(content: Any, prefix: str, found: dict[str, Any], depth: int) -> None:
    """Values by attribute path, from the shells of parameters and of containers within containers."""
    if depth > 32:
        raise TraceError("the pickle is nested too deeply")
    for name, item in content.items():
        state = item.state if isinstance(item, _Shell) else None
        state = state[0] or {} if isinstance(state, tuple) else state
        if not isinstance(state, dict):
            continue
        path = f"{prefix}{name}"
        if "_data" in state:
            found[path] = state["_data"]
        elif isinstance(state.get("parameter"), _Shell):
            _flatten({name: state["parameter"]}, prefix, found, depth + 1)
        else:
            inside = state.get("data", state)
            if isinstance(inside, list):
                inside = {str(index): part for index, part in enumerate(inside)}
            if isinstance(inside, dict):
                _flatten(inside, f"{path}.", found, depth + 1)
