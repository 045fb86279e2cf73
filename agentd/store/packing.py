"""How records lie in the database: one format byte, then MessagePack, compressed where it is worth it.

The byte is there so that the format can change without rewriting old rows: a reader knows every format that ever was.
"""

from typing import Any, TypeVar

import zstandard

from agentd import codec
from agentd.errors import CodecError, StoreError, StoreVersionError

PLAIN = 1
COMPRESSED = 2
_COMPRESS_FROM = 1024  # bytes: below, the zstd frame eats what it saves
_LEVEL = 3  # zstd's default: the higher ones take several times as long for some percent

T = TypeVar("T")


def pack(value: Any) -> bytes:
    """The bytes that are stored for a record or a plain value. Raises CodecError for what can't be stored."""
    return pack_bytes(codec.encode(value))


def pack_bytes(content: bytes) -> bytes:
    """The bytes that are stored for `content`, which is encoded already."""
    if len(content) < _COMPRESS_FROM:
        return bytes((PLAIN,)) + content
    return bytes((COMPRESSED,)) + zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True).compress(content)


def unpack(stored: bytes | str, type_: type[T]) -> T:
    """The record that `stored` holds.

    Raises:
        StoreVersionError: a format of a newer agentd.
        StoreError: damaged bytes.
    """
    try:
        return codec.decode(unpack_bytes(stored), type_)
    except CodecError as error:
        raise StoreError(f"a stored record is damaged: {error}") from error


def unpack_bytes(stored: bytes | str) -> bytes:
    """The content that `pack_bytes` was given. Raises like `unpack`."""
    if not isinstance(stored, bytes) or not stored:  # SQLite keeps what it is given, text too
        raise StoreError("a stored record is damaged: it holds no bytes")
    match stored[0]:
        case 1:  # PLAIN
            return stored[1:]
        case 2:  # COMPRESSED
            try:
                return zstandard.ZstdDecompressor().decompress(stored[1:])
            except zstandard.ZstdError as error:
                raise StoreError(f"a stored record is damaged: {error}") from error
        case other:
            raise StoreVersionError(f"a record is stored in format {other}, which this agentd does not know: upgrade agentd")
