"""The edit itself: one place after the other, each checked by finding it again before the next is made."""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agentd.errors import TraceError
from agentd.opto.space import same
from agentd.records import Parameter, Value
from agentd.writeback.modules import FUNCTIONS, Obstacle
from agentd.writeback.places import Place, locate
from agentd.writeback.spelling import Edit, as_array, function_edits, function_text, literal_edits, literal_value, same_function


@dataclass(frozen=True, slots=True)
class Written:
    """What came of it. `files` are the new texts of those that changed; `places` says where a path's value is written (`file:line`)."""

    files: Mapping[str, str]
    places: Mapping[str, str]
    left_out: Mapping[str, str]
    """Paths whose value could not be written, and why."""


def write_back(files: Mapping[str, str], entrypoint: str, parameters: Sequence[Parameter] | None, values: Mapping[str, Value]) -> Written:
    """Write `values` (by parameter path: what differs from the defaults) into `files`, the source with that entrypoint.

    `parameters` are all of the program's, as its worker found them: a place that holds something else than a parameter's default, or the
    value of another one too, is not touched. None where they are not known: then only what belongs to the entrypoint's own class is
    written. Line ends, formatting, comments and decorators stay as they are outside of what changed.
    """
    defaults = None if parameters is None else {parameter.path: parameter.default for parameter in parameters}
    places, left_out = _locate_all(files, entrypoint, [*(defaults or {}), *values])
    sharers: dict[tuple[str, int], list[str]] = {}
    for path, place in places.items():
        sharers.setdefault(place.key, []).append(path)
    now, where = dict(files), dict[str, str]()
    for paths in sharers.values():
        wanted = {path: values[path] for path in paths if path in values}
        if not wanted:
            continue
        path, value = next(iter(wanted.items()))
        try:
            _check_meant(places[path], path, defaults)
            _check_agreed(paths, values, defaults)
            now = _written(now, entrypoint, path, value, others=[other for other in places if other not in paths])
        except Obstacle as obstacle:
            left_out |= dict.fromkeys(wanted, str(obstacle))
        else:
            where |= {path: places[path].where for path in wanted}
    changed = {file: text for file, text in now.items() if text != files[file]}
    return Written(changed, where, {path: reason for path, reason in left_out.items() if path in values})


def _locate_all(files: Mapping[str, str], entrypoint: str, paths: Sequence[str]) -> tuple[dict[str, Place], dict[str, str]]:
    places: dict[str, Place] = {}
    obstacles: dict[str, str] = {}
    for path in dict.fromkeys(paths):
        try:
            places[path] = locate(files, entrypoint, path)
        except Obstacle as obstacle:
            obstacles[path] = str(obstacle)
    return places, obstacles


def _check_meant(place: Place, path: str, defaults: Mapping[str, Value] | None) -> None:
    """Whether the place holds what the program has there when it is loaded. Raises Obstacle."""
    if defaults is None:
        if place.shared:
            raise Obstacle(f"it belongs to an object of which there may be others ({place.where})")
    elif path not in defaults:
        raise Obstacle("the program has no such parameter")
    elif not _holds(place, defaults[path]):
        raise Obstacle(f"the program has another value there than its text says ({place.where})")


def _check_agreed(paths: Sequence[str], values: Mapping[str, Value], defaults: Mapping[str, Value] | None) -> None:
    """Whether all parameters that are written in one place are to have the same value. Raises Obstacle."""
    wanted = [values.get(path, (defaults or {}).get(path)) for path in paths]
    if not all(same(value, wanted[0]) for value in wanted):
        raise Obstacle(f"{', '.join(sorted(paths))} are written in one place and have different values")


def _holds(place: Place, value: Value) -> bool:
    if isinstance(place.node, FUNCTIONS):
        return isinstance(value, str) and same_function(function_text(place.module, place.node), value)
    return same(literal_value(place.node), value)


def _written(files: dict[str, str], entrypoint: str, path: str, value: Value, *, others: Sequence[str]) -> dict[str, str]:
    """`files` with one value written. Raises Obstacle where that changes anything else."""
    place = locate(files, entrypoint, path)
    try:
        edits = _edits(place, value)
    except (TraceError, SyntaxError) as error:
        raise Obstacle(f"the value can't be spelled: {error}") from error
    content = place.module.content
    line_end = b"\r\n" if content.count(b"\r\n") * 2 > content.count(b"\n") else b"\n"
    for start, end, text in sorted(edits, reverse=True):
        content = content[:start] + re.sub(rb"\n", lambda _: line_end, text.encode()) + content[end:]
    after = {**files, place.module.file: content.decode()}
    before_others = {other: locate(files, entrypoint, other) for other in others}
    try:
        again = locate(after, entrypoint, path)
        moved = [other for other, was in before_others.items() if not _same_place(was, locate(after, entrypoint, other))]
    except Obstacle as obstacle:
        raise Obstacle(f"after the change it could not be found again: {obstacle}") from obstacle
    if moved or not _holds(again, value) or not _same_but(place.module.tree, again.module.tree, place.node):
        raise Obstacle(f"the change would have changed something else too ({place.where})")
    return after


def _edits(place: Place, value: Value) -> list[Edit]:
    if isinstance(place.node, FUNCTIONS):
        return function_edits(place.module, place.node, value)
    return literal_edits(place.module, place.node, as_array(place.node, value) if place.is_array else value)


def _same_place(one: Place, other: Place) -> bool:
    return ast.dump(one.node) == ast.dump(other.node)


def _same_but(before: object, after: object, place: ast.AST) -> bool:
    """Whether two trees are the same everywhere except in `place`, a node of the first. A function keeps its name and decorators."""
    if before is place:
        if isinstance(before, FUNCTIONS):
            kept = isinstance(after, FUNCTIONS) and before.name == after.name
            return kept and _same_but(before.decorator_list, getattr(after, "decorator_list", None), place)
        return isinstance(after, ast.expr)
    if type(before) is not type(after):
        return False
    if isinstance(before, ast.AST):
        return all(_same_but(getattr(before, name, None), getattr(after, name, None), place) for name in before._fields)
    if isinstance(before, list) and isinstance(after, list):
        return len(before) == len(after) and all(_same_but(one, other, place) for one, other in zip(before, after, strict=True))
    return before == after
