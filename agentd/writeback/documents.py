"""The export as a document: what a revision learned, on what source, and on what evidence. Readable, versioned, and taken in again."""

import json
from typing import Any

import msgspec

from agentd.errors import CodecError
from agentd.records import Kind, Record, Value

FORMAT = "agentd-export"
VERSION = 1


class ExportedParameter(Record, frozen=True, omit_defaults=False):
    """One learned value. `place` is where the patch writes it (`file:line`); empty with a reason in `not_in_patch`.

    `kind`, `default` and `signature` are the source's; kind None where the revision belongs to an older source than the agent's.
    """

    path: str
    value: Value
    kind: Kind | None = None
    default: Value = None
    signature: str = ""
    place: str = ""
    not_in_patch: str = ""


class ExportDocument(Record, frozen=True, omit_defaults=False):
    """`agentd export --format json`. `evidence` is for people; whoever takes the document in again tests the values anew."""

    agent: str
    revision: str
    source: str
    learned: tuple[ExportedParameter, ...]
    evidence: dict[str, Any] = {}  # noqa: RUF012 - a record copies its defaults
    format: str = FORMAT
    version: int = VERSION

    def encode(self) -> bytes:
        """As JSON, one field a line."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def read_document(content: bytes) -> ExportDocument:
    """The document that `content` is. Raises CodecError that says what it is instead."""
    try:
        whole = json.loads(content)
    except ValueError as error:
        raise CodecError(f"not JSON: {error}") from error
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise CodecError(f'not a document of `agentd export --format json`: its "format" should be "{FORMAT}"')
    version = whole.get("version")
    if version != VERSION:
        raise CodecError(f"version {version!r} of the format is not known here, only {VERSION}")
    try:
        return msgspec.convert(whole, ExportDocument)
    except msgspec.ValidationError as error:
        raise CodecError(f"a damaged document: {error}") from error
