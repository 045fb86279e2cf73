"""What a model wrote, as a reply: tolerant of form, strict about content.

Two forms. JSON: `{"reasoning": ..., "suggestion": {path: value}}`, perhaps fenced, with prose around it, trailing commas, single quotes
or raw newlines (json-repair helps there). Tagged: `<value name="path">...</value>`, for models that write code better without escapes.
There is no stop word: a reply without values is an error that says so. A value that was cut off is never used.
"""

import ast
import io
import itertools
import json
import re
import tokenize
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import json_repair

from agentd.errors import DecodingError
from agentd.opto.decoding import unfenced
from agentd.records import Kind, Parameter, Value

_CUT = "\ue000CUT\ue000"  # private-use characters: no model writes them
_WRAPPERS = ("suggestion", "suggestions", "values", "variables", "parameters", "answer")
_TAGGED = re.compile(r"<(value|variable)\s+name\s*=\s*[\"']?([^\"'>\s]+)[\"']?\s*>(.*?)</\1\s*>", re.DOTALL | re.IGNORECASE)
_OPEN_TAG = re.compile(r"<(?:value|variable)\s+name\s*=\s*[\"']?([^\"'>\s]+)", re.IGNORECASE)
_RARE = {"b": "\b", "f": "\f", "/": "/"}
_RARE_ESCAPES = re.compile(r"(?<!\\)((?:\\\\)*)\\([bf/])")  # escapes of JSON that json-repair leaves as they are
EXCERPT = 2_000
_MOST_BRACES = 16
_MOST_OPEN = 100


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """`values` by parameter path, not yet decoded to types; `reasoning` in the model's words."""

    values: dict[str, Value]
    reasoning: str = ""


def parse_reply(text: str, parameters: Sequence[Parameter], *, cut_off: bool = False) -> ParsedReply:
    """The values that a reply names. `cut_off` when the service says that the answer ended at its length limit.

    Raises DecodingError: the reply is empty, has no values in either form, names values without saying them, or breaks off inside one.
    """
    if not text.strip():
        raise DecodingError({"": "the reply is empty"}, text)
    text = re.sub(r"<think(?:ing)?>.*?</think(?:ing)?>", "", text, flags=re.DOTALL | re.IGNORECASE)
    tagged = _tagged(text, parameters)
    if tagged is not None:
        return tagged
    problems = ["the reply has no JSON object and no <value> tags"]
    for candidate, found, repaired in _objects(text, cut_off=cut_off):
        try:
            return _suggestion(found, parameters, candidate, repaired=repaired)
        except DecodingError as error:
            problems.append(error.problems.get("", str(error)))
            if any(path for path in error.problems):
                raise
    raise DecodingError({"": problems[-1]}, text[:EXCERPT])


def _tagged(text: str, parameters: Sequence[Parameter]) -> ParsedReply | None:
    found = {match[2]: match[3] for match in _TAGGED.finditer(text)}
    opened = [name for name in _OPEN_TAG.findall(text) if name not in found]
    kinds = {parameter.path: parameter.kind for parameter in parameters}
    if not found and not any(name in kinds for name in opened):
        return None
    if opened:
        raise DecodingError(dict.fromkeys(opened, "the reply breaks off inside this value"), text[:EXCERPT])
    values = {name: _from_tag(content, kinds.get(name)) for name, content in found.items()}
    reasoning = re.search(r"<reasoning>(.*?)</reasoning>", text, re.DOTALL | re.IGNORECASE)
    return ParsedReply(values, reasoning[1].strip() if reasoning else text[: text.find("<")].strip())


def _from_tag(content: str, kind: Kind | None) -> Value:
    if kind is Kind.CODE:
        return unfenced(content).strip("\n") + "\n"
    if kind is Kind.TEXT or kind is None:
        return content.removeprefix("\n").removesuffix("\n")
    try:
        return json.loads(content)
    except ValueError:
        return content.strip()


def _candidates(text: str) -> Iterator[tuple[str, bool]]:
    """Parts of the text that may be the object, the likeliest first, and whether each is whole."""
    stripped = text.strip().removeprefix("\ufeff")
    yield stripped, stripped.endswith("}")
    if stripped.startswith("{"):
        end = _end_of_object(stripped)
        yield (stripped[:end], True) if end else (stripped, False)
    fences = re.findall(r"```[\w+-]*[ \t]*\n(.*?)```", text, re.DOTALL)
    for block in fences:
        if block.lstrip().startswith("{"):
            yield block.strip(), block.rstrip().endswith("}")
    braces = [match.start() for match in re.finditer(r"\{", text)]
    if len(braces) > 2 * _MOST_BRACES:  # a small model may repeat itself until its answer is cut off
        braces = braces[:_MOST_BRACES] + braces[-_MOST_BRACES:]
    for position in braces:
        if text[:position].rstrip().endswith((":", ",", "[")) and position > text.find("{"):
            continue  # a part of another object
        rest = text[position:]
        end = _end_of_object(rest)
        if end:
            yield rest[:end], True
    start = text.find("{")
    if start >= 0:
        yield text[start:].rstrip().removesuffix("```").rstrip(), text.rstrip().removesuffix("```").rstrip().endswith("}")


def _end_of_object(text: str) -> int:
    """The length of the object that `text` begins with, by its double-quoted strings and braces; 0 where it does not end."""
    closing: list[str] = []
    inside = escaped = False
    for index, character in enumerate(text):
        if escaped:
            escaped = False
        elif inside:
            escaped = character == "\\"
            inside = character != '"'
        elif character == '"':
            inside = True
        elif character in "{[":
            closing.append("}" if character == "{" else "]")
        elif character in "}]":
            if closing.pop() != character:
                return 0
            if not closing:
                return index + 1
    return 0


def _objects(text: str, *, cut_off: bool) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """The objects that the text may mean, each with its text and whether it had to be repaired; what needs no repair comes first."""
    candidates = list(dict.fromkeys(_candidates(text)))
    for candidate, _ in candidates:
        found = _strictly_read(candidate)
        if found is not None:
            yield candidate, found, False
    for candidate, complete in candidates:
        found = _repaired(candidate, complete=complete and not cut_off)
        if found is not None:
            yield candidate, found, True


def _strictly_read(text: str) -> dict[str, Any] | None:
    """The mapping that `text` is in JSON, in JSON with raw newlines inside strings, or as a Python literal."""
    readers: tuple[Callable[[str], Any], ...] = (
        lambda text: json.loads(text, object_pairs_hook=_without_repetition),
        lambda text: json.loads(text, object_pairs_hook=_without_repetition, strict=False),
        _literal,
    )
    for read in readers:
        try:
            found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError, tokenize.TokenError):
            continue
        return found if isinstance(found, dict) and all(isinstance(key, str) for key in found) else None
    return None


def _without_repetition(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object; a key that comes twice is the trace of a quote that was not escaped."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _literal(text: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an odd escape in somebody's text is not our warning
        tree = ast.parse(text, mode="eval")
        words = [token.type for token in tokenize.generate_tokens(io.StringIO(text).readline)]
    if (tokenize.STRING, tokenize.STRING) in itertools.pairwise(words):
        raise ValueError("two strings in a row: a quote was not escaped")
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            _without_repetition([(ast.dump(key), None) for key in node.keys if key is not None])
    return ast.literal_eval(tree)


def _repaired(text: str, *, complete: bool) -> dict[str, Any] | None:
    """json-repair's reading; a value that was cut off holds the marker that shows it. What only opens objects is none."""
    if text.count("{") - text.count("}") > _MOST_OPEN:
        return None
    text = _RARE_ESCAPES.sub(lambda match: f"{match[1]}\\u{ord(_RARE[match[2]]):04x}", text)
    try:
        found = json_repair.loads(text if complete else _marked(text))
    except (ValueError, RecursionError):
        return None
    if isinstance(found, list):
        found = next((item for item in found if isinstance(item, dict)), None)
    return found if isinstance(found, dict) and found else None


def _marked(text: str) -> str:
    """`text`, which breaks off, with the marker in the value or after the key at its end."""
    if _ends_inside_string(text):
        return text + _CUT
    start = re.search(r"[-+\w.]*$", text)  # half a number or half a word
    rest = text[: start.start()] if start else text
    return f'{rest}"{_CUT}"' if rest != text or rest.rstrip().endswith(":") else text


def _ends_inside_string(text: str) -> bool:
    inside = escaped = False
    for character in text:
        if escaped:
            escaped = False
        elif character == '"':
            inside = not inside
        else:
            escaped = inside and character == "\\"
    return inside


def _suggestion(found: Mapping[str, Any], parameters: Sequence[Parameter], text: str, *, repaired: bool) -> ParsedReply:
    paths = {parameter.path for parameter in parameters}
    reasoning = found.get("reasoning", "")
    holder: Any = None
    for wrapper in _WRAPPERS:
        if wrapper in found and wrapper not in paths and isinstance(_unpacked(found[wrapper]), Mapping | list):
            holder = _unpacked(found[wrapper])
            break
    if holder is None:
        flat = _flattened(found, paths)
        named = {path: value for path, value in flat.items() if path in paths}
        if not named:
            raise DecodingError({"": f"the reply has no `suggestion` with values for {', '.join(sorted(paths))}"}, text[:EXCERPT])
        holder = named
    values = {path: value for path, value in _flattened(_as_mapping(holder), paths).items() if value is not None or path not in paths}
    values = {path: _joined(value) for path, value in values.items()}
    cut = [path for path, value in values.items() if _CUT in path or _has_cut(value)]
    if cut:
        raise DecodingError({path.replace(_CUT, ""): "the reply breaks off inside this value" for path in cut}, text[-EXCERPT:])
    unfaithful = [path for path, value in values.items() if repaired and not _is_said(path, value, text)]
    if unfaithful:
        what = "the JSON string is not escaped, so its end can't be told: escape quotes as \\\" and newlines as \\n"
        raise DecodingError(dict.fromkeys(unfaithful, what), text[:EXCERPT])
    return ParsedReply(values, reasoning if isinstance(reasoning, str) else json.dumps(reasoning))


def _unpacked(value: Any) -> Any:
    """A suggestion that was itself written as a JSON string."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _as_mapping(holder: Any) -> Mapping[str, Any]:
    """Also the list forms that models like: [{"name": ..., "value": ...}] and [{path: value}]."""
    if isinstance(holder, Mapping):
        return holder
    merged: dict[str, Any] = {}
    for item in holder:
        if isinstance(item, Mapping) and "value" in item and isinstance(name := item.get("name", item.get("variable")), str):
            merged[name] = item["value"]
        elif isinstance(item, Mapping):
            merged.update(item)
    return merged


def _flattened(values: Mapping[str, Any], paths: set[str]) -> dict[str, Any]:
    """`{"gains": {"kp": 1}}` for the path `gains.kp`; names with spaces or quotes around them; everything else as it is."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = str(name).strip().strip("`'\"")
        nested = isinstance(value, Mapping) and key not in paths and any(path.startswith(f"{key}.") for path in paths)
        if nested:
            flat |= _flattened({f"{key}.{inner}": item for inner, item in value.items()}, paths)
        elif isinstance(value, Mapping) and key in paths and value.keys() == {"value"}:
            flat[key] = value["value"]
        else:
            flat[key] = value
    return flat


def _joined(value: Any) -> Any:
    """Text whose characters beyond 16 bits came as two escapes that a reader left apart."""
    if not isinstance(value, str) or value.isascii():
        return value
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _has_cut(value: Any) -> bool:
    if isinstance(value, str):
        return _CUT in value
    if isinstance(value, Mapping):
        return any(_CUT in str(key) or _has_cut(item) for key, item in value.items())
    return isinstance(value, list) and any(map(_has_cut, value))


def _is_said(path: str, value: Any, text: str) -> bool:
    """Whether a string stands in the reply as a whole: once, after its key, escaped or raw, quoted, followed by what may follow a value.

    A reader that repairs may begin a string after a quote or end it at a quote inside it; then something else stands around it.
    """
    if not isinstance(value, str):
        return True
    name = re.escape(path.rpartition(".")[2])
    if len(re.findall(rf"""{name}["'`\s]*:""", text)) > 1:
        return False
    key = r"""["'`]?[\w. ]+["'`]?\s*:"""
    after = rf"""\s*(?:,\s*{key}|,?\s*[}}\]][\s}}\],]*(?:{key}|[^"'{{}}]*$)|,?\s*$)"""
    forms = {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], value, value.strip(), repr(value)[1:-1]}
    forms |= {form.replace('\\"', '"') for form in forms} | {form.replace("'", "\\'") for form in forms}
    return any(
        re.search(rf"""(?:{name}|value)["'`\s]*:\s*(?P<quote>\"{{3}}|["'`]?){re.escape(form)}(?P=quote){after}""", text) for form in forms
    )
