"""Symmetries: the structured trials that search makes before it asks the estimator.

What breaks a plant most often is a sign, a scale or a mixed-up channel: a motor wired the other way round, a sensor in other units, two
plugs exchanged. Such a fault leaves the controller's structure right, and a symmetry of its constants undoes it. Nothing here knows a
domain. Two lists, since they end differently: of signs there are so many and no more, of scales there are others around each better point.

Signs, in order: values that were good in an earlier regime; everything negated, and doubled and halved with it once that was seen to be
the better sign; each sign alone, the largest constants first, since they weigh most; the signs of neighbours, of a statement and of a
parameter; all signs but one; each switch and choice alone; neighbours exchanged. Scales: everything halved and doubled, with either sign;
a statement's, a parameter's; each alone. Thresholds of comparisons keep their sign and scale when others change together: they compare,
they don't act.
"""

import itertools
from collections.abc import Hashable, Iterator, Sequence

from agentd.opto.space import Point, Space, same
from agentd.records import MemoryEntry

GOOD_FATES = frozenset({"stable", "promoted"})
Idea = tuple[Point, str]


def signs(space: Space, around: Point, memory: Sequence[MemoryEntry], regime: int, improved: Sequence[Point] = ()) -> Iterator[Idea]:
    """Points to try and why, the likeliest remedies of `around` first. Lazily; points may come twice.

    `improved` are points that scored better than `around`, however little: they only change the order.
    """
    signed = _signed(space)
    yield from _good_before(space, memory, regime)
    yield from _negated(space, around, signed, improved)
    for index in sorted(signed, key=lambda index: -abs(around[index])):
        yield from _scaled(space, around, [index], -1.0, space.dimensions[index].label)
    for pair in itertools.pairwise(signed):
        yield from _scaled(space, around, pair, -1.0, " and ".join(space.dimensions[index].label for index in pair))
    for members, label in _groups(space, signed):
        yield from _scaled(space, around, members, -1.0, label)
    for index in signed:
        others = [other for other in signed if other != index]
        yield from _scaled(space, around, others, -1.0, f"everything but {space.dimensions[index].label}")
    yield from _switched(space, around)
    yield from _exchanged(space, around, signed)


def scales(space: Space, around: Point) -> Iterator[Idea]:
    """As `signs`."""
    signed = _signed(space)
    alone = [([index], dimension.label) for index, dimension in enumerate(space.dimensions) if dimension.choices is None]
    for factor in (0.5, 2.0, -2.0, -0.5):
        yield from _scaled(space, around, signed, factor, "everything")
    for members, label in (*_groups(space, signed), *alone):
        for factor in (0.5, 2.0):
            yield from _scaled(space, around, members, factor, label)


def _signed(space: Space) -> list[int]:
    return [index for index, dimension in enumerate(space.dimensions) if dimension.choices is None and dimension.signed]


def _good_before(space: Space, memory: Sequence[MemoryEntry], regime: int) -> Iterator[Idea]:
    for entry in reversed(memory):
        point = space.point(entry.values) if entry.regime != regime and entry.fate in GOOD_FATES else None
        if point is not None:
            yield point, "these values were good before the world changed"


def _negated(space: Space, around: Point, signed: Sequence[int], improved: Sequence[Point]) -> Iterator[Idea]:
    for negated, reason in _scaled(space, around, signed, -1.0, "everything"):
        yield negated, reason
        if any(same(negated, point) for point in improved):
            for factor in (-2.0, -0.5):
                yield from _scaled(space, around, signed, factor, "everything")


def _switched(space: Space, around: Point) -> Iterator[Idea]:
    for index, dimension in enumerate(space.dimensions):
        for choice in dimension.choices or ():
            if not same(choice, around[index]):
                yield (*around[:index], choice, *around[index + 1 :]), f"{dimension.label} alone changed"


def _exchanged(space: Space, around: Point, signed: Sequence[int]) -> Iterator[Idea]:
    for first, second in itertools.pairwise(signed):
        one, other = space.dimensions[first], space.dimensions[second]
        if one.path == other.path and one.integer == other.integer and one.holds(around[second]) and other.holds(around[first]):
            point = list(around)
            point[first], point[second] = around[second], around[first]
            yield tuple(point), f"{one.label} and {other.label} exchanged"


def _groups(space: Space, signed: Sequence[int]) -> Iterator[tuple[list[int], str]]:
    """Dimensions of one statement, and of one parameter, where these are neither one nor all."""
    yielded: list[list[int]] = []
    for kind in ("statement", "path"):
        groups: dict[Hashable, list[int]] = {}
        for index in signed:
            groups.setdefault(getattr(space.dimensions[index], kind), []).append(index)
        for members in groups.values():
            if 1 < len(members) < len(signed) and members not in yielded:
                yielded.append(members)
                yield members, " and ".join(space.dimensions[index].label for index in members)


def _scaled(space: Space, around: Point, members: Sequence[int], factor: float, label: str) -> Iterator[Idea]:
    point = tuple(
        dimension.rounded(value * factor) if index in members and dimension.holds(value * factor) else value
        for index, (dimension, value) in enumerate(zip(space.dimensions, around, strict=True))
    )
    if not same(point, around):
        yield point, f"{label} {'negated' if factor == -1.0 else f'times {factor:g}'}"
