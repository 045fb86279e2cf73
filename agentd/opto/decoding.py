"""Values from outside are decoded to type, bounds, choices and signature, or refused with every reason; nothing is guessed.

`decode_values` reads what a model wrote; `validate_values` checks any proposal before it goes further, an operator's included.
Neither runs code.
"""

import ast
import copy
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence

from agentd.errors import DecodingError
from agentd.opto.space import is_finite, same
from agentd.records import Kind, Parameter, Value

MAX_TEXT = 100_000
MAX_CODE = 50_000
_TRUTH = {"true": True, "false": False}


class Misfit(ValueError):  # noqa: N818 - private to this module: what is wrong with one value
    """Why a value doesn't fit its parameter, in words for people and models."""


def decode_values(
    reply: Mapping[str, Value], parameters: Sequence[Parameter], current: Mapping[str, Value], allowed_imports: Sequence[str] | None = None
) -> dict[str, Value]:
    """The values in a decoded reply, of those parameters only that change.

    Numbers, switches and choices may be written as text where that is unambiguous ("2.5", "false"). Raises DecodingError with every
    problem: unknown names, wrong types, out of bounds, code that doesn't compile, changes its signature or imports what isn't allowed.
    """
    return _checked(reply, parameters, current, allowed_imports, lenient=True)


def validate_values(
    values: Mapping[str, Value], parameters: Sequence[Parameter], current: Mapping[str, Value], allowed_imports: Sequence[str] | None = None
) -> dict[str, Value]:
    """The static check of any proposal: `values` without those that change nothing. Raises DecodingError with every problem."""
    return _checked(values, parameters, current, allowed_imports, lenient=False)


def _checked(
    values: Mapping[str, Value],
    parameters: Sequence[Parameter],
    current: Mapping[str, Value],
    allowed_imports: Sequence[str] | None,
    *,
    lenient: bool,
) -> dict[str, Value]:
    known = {parameter.path: parameter for parameter in parameters}
    problems: dict[str, str] = {}
    changed: dict[str, Value] = {}
    for path, value in values.items():
        parameter = known.get(path)
        if parameter is None:
            names = ", ".join(sorted(known)) or "none"
            problems[str(path)[:100]] = f"there is no such parameter; the parameters are: {names}"
            continue
        now = current.get(path, parameter.default)
        try:
            fitted = _fitted(_lenient(value, parameter) if lenient else value, parameter, allowed_imports)
            unchanged = same(fitted, now) or (parameter.kind is Kind.CODE and _same_code(fitted, now))
        except Misfit as misfit:
            problems[path] = str(misfit)
        except RecursionError:
            problems[path] = "the value is nested too deeply"
        else:
            if not unchanged:
                changed[path] = fitted
    if problems:
        raise DecodingError(problems)
    return changed


def _lenient(value: Value, parameter: Parameter) -> Value:
    """`value` as what a model obviously meant; anything doubtful stays as it is, to be refused."""
    if parameter.choices is not None:
        matching = [choice for choice in parameter.choices if same(choice, value)] or [
            choice
            for choice in parameter.choices
            if isinstance(value, str) and not isinstance(choice, str) and str(choice) == value.strip()
        ]
        return matching[0] if len(matching) == 1 else value
    if not isinstance(value, str):
        return value
    text = value.strip()
    if parameter.kind is Kind.BOOLEAN:
        return _TRUTH.get(text.lower(), value)
    if parameter.kind is Kind.NUMBER and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text):
        return float(text) if re.search(r"[.eE]", text) else int(text[:400])
    if parameter.kind is Kind.CODE:
        return unfenced(value)
    return value


def unfenced(text: str) -> str:
    """Code without the Markdown fence that models like to put around it."""
    match = re.fullmatch(r"\s*```[\w+-]*[ \t]*\n(.*?)\n?[ \t]*```\s*", text, flags=re.DOTALL)
    return match[1] if match else text


def _fitted(value: Value, parameter: Parameter, allowed_imports: Sequence[str] | None) -> Value:
    if parameter.choices is not None:
        for choice in parameter.choices:
            if same(choice, value):
                return choice
        raise Misfit(f"{_shown(value)} is not one of the choices: {', '.join(map(repr, parameter.choices))}")
    match parameter.kind:
        case Kind.NUMBER:
            return _fitted_number(value, parameter)
        case Kind.BOOLEAN:
            if not isinstance(value, bool):
                raise Misfit(f"expected true or false, got {_shown(value)}")
            return value
        case Kind.CODE:
            return check_code(value, parameter, allowed_imports)
        case Kind.STRUCTURED:
            return _fitted_structure(value, parameter.default, parameter)
        case _:
            return _fitted_text(value)


def _fitted_text(value: Value) -> str:
    if not isinstance(value, str):
        raise Misfit(f"expected text, got {_shown(value)}")
    if len(value) > MAX_TEXT:
        raise Misfit(f"the text has {len(value)} characters; at most {MAX_TEXT} are allowed")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Misfit(f"the text is not valid Unicode at character {error.start}") from error
    return value.replace("\r\n", "\n").replace("\r", "\n")


def _fitted_number(value: Value, parameter: Parameter) -> Value:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Misfit(f"expected a number, got {_shown(value)}")
    if not is_finite(value):
        raise Misfit(f"expected a finite number, got {_shown(value)}")
    if parameter.integer:
        if value != int(value):
            raise Misfit(f"expected a whole number, got {value!r}")
        value = int(value)
    low, high = parameter.bounds or (None, None)
    if (low is not None and value < low) or (high is not None and value > high):
        raise Misfit(f"{value!r} is outside the bounds [{'-inf' if low is None else low}, {'inf' if high is None else high}]")
    if isinstance(value, int) and not parameter.integer and isinstance(parameter.default, float):
        return float(value)
    return value


def _fitted_structure(value: Value, default: Value, parameter: Parameter, where: str = "") -> Value:
    """`value` with the same keys, and numbers where the default has numbers. Raises Misfit with the way to the difference."""
    at = f"at {where}: " if where else ""
    default = default.tolist() if hasattr(default, "tolist") else default
    match default:
        case Mapping():
            return _fitted_object(value, default, parameter, where)
        case list() | tuple():
            return _fitted_list(value, default, parameter, where)
        case bool() if not isinstance(value, bool):
            raise Misfit(f"{at}expected true or false, got {_shown(value)}")
        case int() | float() if not isinstance(default, bool):
            rule = parameter if parameter.bounds else Parameter(path="", kind=Kind.NUMBER, default=default)
            try:
                return _fitted_number(value, rule)
            except Misfit as misfit:
                raise Misfit(f"{at}{misfit}") from None
        case str():
            return _fitted_text(value)
    return _plain(value, at)


def _fitted_object(value: Value, default: Mapping[str, Value], parameter: Parameter, where: str) -> Value:
    at = f"at {where}: " if where else ""
    if not isinstance(value, Mapping):
        raise Misfit(f"{at}expected an object with the keys {', '.join(default)}, got {_shown(value)}")
    if default and value.keys() != default.keys():
        missing, extra = sorted(default.keys() - value.keys()), sorted(map(str, value.keys() - default.keys()))
        raise Misfit(f"{at}the keys must stay as they are; missing: {', '.join(missing) or 'none'}, unknown: {', '.join(extra) or 'none'}")
    return {key: _fitted_structure(value[key], default.get(key), parameter, f"{where}.{key}") for key in default or value}


def _fitted_list(value: Value, default: Sequence[Value], parameter: Parameter, where: str) -> Value:
    at = f"at {where}: " if where else ""
    if not isinstance(value, list | tuple):
        raise Misfit(f"{at}expected a list, got {_shown(value)}")
    if default and all(isinstance(item, int | float) for item in default) and len(value) != len(default):
        raise Misfit(f"{at}expected {len(default)} numbers, got {len(value)} items")
    examples = [default[min(index, len(default) - 1)] if default else None for index in range(len(value))]
    pairs = enumerate(zip(value, examples, strict=True))
    return [_fitted_structure(item, example, parameter, f"{where}[{index}]") for index, (item, example) in pairs]


def _plain(value: Value, at: str) -> Value:
    if isinstance(value, float) and not math.isfinite(value):
        raise Misfit(f"{at}expected a finite number, got {value!r}")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, at) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, at) for item in value]
    raise Misfit(f"{at}a {type(value).__name__} can't be part of a value")


def check_code(value: Value, parameter: Parameter, allowed_imports: Sequence[str] | None) -> str:
    """The source text of a code parameter, normalised. Raises Misfit unless it is one function with the same signature, and compiles."""
    if not isinstance(value, str):
        raise Misfit(f"expected the source text of a function, got {_shown(value)}")
    if len(value) > MAX_CODE:
        raise Misfit(f"the code has {len(value)} characters; at most {MAX_CODE} are allowed")
    source = value.replace("\r\n", "\n").replace("\r", "\n").strip("\n") + "\n"
    try:
        source.encode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in somebody's code is not our warning
            tree = ast.parse(source)
            compile(source, f"<{parameter.path}>", "exec", dont_inherit=True)
    except SyntaxError as error:
        line = (error.text or "").strip()[:120]
        raise Misfit(f"the code does not compile: line {error.lineno}: {error.msg}{f': {line}' if line else ''}") from error
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise Misfit(f"the code does not compile: {type(error).__name__}: {error}") from error
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef | ast.AsyncFunctionDef):
        raise Misfit(
            f"expected exactly one function and nothing else at the top level (imports go inside the function): `{parameter.signature}`"
        )
    function = tree.body[0]
    if function.decorator_list:
        raise Misfit("the function must have no decorators")
    _check_signature(function, parameter.signature)
    refused = sorted(set(_imports(tree, allowed_imports)))
    if refused:
        allowed = ", ".join(allowed_imports or ()) or "none"
        raise Misfit(f"the code imports {', '.join(refused)}; allowed imports: {allowed}")
    return source


def _check_signature(function: ast.FunctionDef | ast.AsyncFunctionDef, signature: str) -> None:
    if not signature:
        return
    head = signature.strip().rstrip(":")
    try:
        (wanted,) = ast.parse(f"{head}: ...").body
    except (SyntaxError, ValueError):
        return  # a signature that can't be read can't be compared
    if not isinstance(wanted, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    if type(wanted) is not type(function) or wanted.name != function.name or _arguments(wanted) != _arguments(function):
        raise Misfit(f"the signature must stay `{head}:`, got `{_arguments_text(function)}`")


def _arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Names, kinds and defaults of a function's arguments; annotations don't count."""
    arguments = copy.deepcopy(function.args)
    for node in ast.walk(arguments):
        if isinstance(node, ast.arg):
            node.annotation = None
    return ast.dump(arguments)


def _arguments_text(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    word = "async def" if isinstance(function, ast.AsyncFunctionDef) else "def"
    return f"{word} {function.name}({ast.unparse(function.args)}):"


def _imports(tree: ast.AST, allowed: Sequence[str] | None) -> Iterator[str]:
    """Imported modules that are not allowed; None allows every one."""
    if allowed is None:
        return
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ["." * node.level + (node.module or "")]
        yield from (name for name in names if not any(name == module or name.startswith(f"{module}.") for module in allowed))


def _same_code(source: str, other: Value) -> bool:
    """Whether two texts are the same but for line ends and empty lines around."""
    return isinstance(other, str) and source.strip() == other.replace("\r\n", "\n").strip()


def _shown(value: Value) -> str:
    kinds = {str: "the text", bool: "", int: "the number", float: "the number", list: "a list", dict: "an object"}
    text = repr(value)
    short = text if len(text) <= 60 else text[:57] + "..."
    return f"{kinds.get(type(value), f'a {type(value).__name__}')} {short}".strip() if value is not None else "null"
