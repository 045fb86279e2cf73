"""Cases of a data set: an input and what is known of its right answer, one JSON object a line.

The split in training and validation cases follows from each input's content: it is the same on every machine and in every order of the
file, a case keeps its side when others are added, and the same input is never on both sides.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from agentd.errors import Mistake, SpecError
from agentd.records import Record, Value

MAX_BYTES = 256 * 1024 * 1024
MAX_MISTAKES = 10


class Case(Record, frozen=True):
    """One question. `reference` is for the judge: the right answer, or whatever the feedback function makes of it; never for the policy."""

    input: Value
    reference: Value = None

    @property
    def id(self) -> str:
        """Names the case by its content."""
        return _digest([self.input, self.reference])[:12]


class Split(NamedTuple):
    """Cases to learn from, and cases that only decide. Either side is empty only if there is nothing to put there."""

    train: tuple[Case, ...]
    validation: tuple[Case, ...]

    @property
    def deciding(self) -> tuple[Case, ...]:
        """The cases that comparisons are made on: the training cases where none are held back."""
        return self.validation or self.train


def read_cases(path: Path, *, input_key: str = "input", reference_key: str = "reference") -> tuple[Case, ...]:
    """The cases of a JSON lines file, in its order. A line without `reference_key` has the reference None; empty lines are left out.

    Raises:
        SpecError: the file can't be read, or lines are wrong: the first ten of them.
    """
    found: list[Mistake] = []
    cases: list[Case] = []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            cases.append(_case(line, input_key, reference_key))
        except ValueError as error:
            found.append(Mistake(str(path), f"(line {number})", str(error)))
            if len(found) >= MAX_MISTAKES:
                break
    if not cases and not found:
        found.append(Mistake(str(path), "(file)", "should have at least one case"))
    if found:
        raise SpecError(found)
    return tuple(cases)


def split(cases: Iterable[Case], validation: float) -> Split:
    """`validation` is the share of inputs that is held back. With two inputs or more neither side stays empty, unless the share is 0."""
    ranked = sorted(((_share(case), case) for case in cases), key=lambda ranked: ranked[0])
    shares = sorted({share for share, _ in ranked})
    # Where all would fall on one side, the nearest goes to the other.
    bound = min(max(validation, shares[1]), shares[-1]) if validation > 0.0 and len(shares) > 1 else 0.0
    return Split(
        train=tuple(case for share, case in ranked if share >= bound), validation=tuple(case for share, case in ranked if share < bound)
    )


def _lines(path: Path) -> Sequence[str]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SpecError([Mistake(str(path), "(file)", f"should have at most {MAX_BYTES} bytes")])
        return path.read_text(encoding="utf-8").split("\n")  # JSON may hold the other line ends that `splitlines` knows
    except OSError as error:
        raise SpecError([Mistake(str(path), "(file)", f"can't be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise SpecError([Mistake(str(path), "(file)", f"should be UTF-8 text, but byte {error.start} is not")]) from error


def _case(line: str, input_key: str, reference_key: str) -> Case:
    try:
        table = json.loads(line, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg}") from error
    if not isinstance(table, dict):
        raise ValueError(f"should be an object such as {{{json.dumps(input_key)}: ...}}")  # noqa: TRY004 - one kind of error for a line
    if input_key not in table:
        raise ValueError(f"has no {json.dumps(input_key)}; its keys are: {', '.join(map(json.dumps, table)) or 'none'}")
    if table[input_key] is None:
        raise ValueError(f"{json.dumps(input_key)} should be something to answer, not null")
    return Case(input=table[input_key], reference=table.get(reference_key))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _share(case: Case) -> float:
    """Where the input falls on [0, 1), as evenly as a hash does."""
    return int(_digest(case.input)[:13], 16) / 16**13


def _digest(value: Value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
