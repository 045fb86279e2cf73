"""Pictures for models that take them: what a program saw or drew, as data URLs.

A picture is an array of bytes (height, width, 1, 3 or 4 channels; as environments with cameras give them), a PNG, JPEG, GIF or WebP file
as bytes, or a data URL in a text, such as feedback.py may put into its words. A large array is thinned out; a large file is left out.
"""

import base64
import re
import struct
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeGuard

from agentd.records import Problem, Step, Value

if TYPE_CHECKING:
    import numpy as np

MAX_SIDE = 512
"""Pixels: more is not looked at closely anyway, and costs tokens."""
MAX_URL = 1_500_000
_SMALLEST = 8
_DEPTH = 4
_KINDS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif"}
_URL = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+={0,2}")


def pictures(value: Value, depth: int = _DEPTH) -> Iterator[str]:
    """The pictures in `value`, as data URLs of at most `MAX_URL` characters."""
    if isinstance(value, str):
        yield from (url for url in _URL.findall(value) if len(url) <= MAX_URL)
    elif isinstance(value, bytes):
        kind = next((kind for magic, kind in _KINDS.items() if value.startswith(magic)), "")
        kind = "webp" if value[:4] == b"RIFF" and value[8:12] == b"WEBP" else kind
        if kind and len(value) * 4 // 3 < MAX_URL - 64:
            yield _url(value, kind)
    elif _is_array(value):
        if _is_picture(value):
            yield _url(_png(value), "png")
    elif depth and isinstance(value, Mapping):
        for item in value.values():
            yield from pictures(item, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for item in value:
            yield from pictures(item, depth - 1)


def of_steps(steps: Sequence[Step], final: Value) -> tuple[str, ...]:
    """What was seen last, and what was seen first: at most one picture of each."""
    values = [final, *(value for step in steps[-1:] for value in (step.action, step.observation))]
    last = next((url for value in values for url in pictures(value)), None)
    first = next((url for step in steps[:1] for url in pictures(step.observation)), None)
    return tuple(dict.fromkeys(url for url in (last, first) if url is not None))


def without_pictures(text: str) -> str:
    """`text` with a word in the place of each picture."""
    return _URL.sub("(picture)", text)


def of_case(problem: Problem) -> tuple[str, ...]:
    """The pictures of a case: those in its feedback's words, and those that came with it."""
    return tuple(dict.fromkeys((*pictures(problem.feedback.text), *problem.images)))


def chosen(cases: Sequence[Sequence[str]], limit: int) -> list[tuple[int, str]]:
    """At most `limit` pictures with the number of their case, from 1: each case's first before any case's second; none twice."""
    seen: dict[str, int] = {}
    for rank in range(max(map(len, cases), default=0)):
        for number, case in enumerate(cases, 1):
            if rank < len(case):
                seen.setdefault(case[rank], number)
    return [(number, url) for url, number in list(seen.items())[:limit]]


def _is_array(value: Value) -> "TypeGuard[np.ndarray]":
    numpy = sys.modules.get("numpy")  # where nobody has loaded it there are no arrays
    return numpy is not None and isinstance(value, numpy.ndarray)


def _is_picture(value: "np.ndarray") -> bool:
    shape = value.shape
    return value.dtype == "uint8" and len(shape) == 3 and shape[2] in (1, 3, 4) and min(shape[:2]) >= _SMALLEST


def _url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _png(pixels: "np.ndarray") -> bytes:
    """`pixels` as a PNG file (ISO/IEC 15948), every so many rows and columns so that no side is longer than `MAX_SIDE`."""
    import numpy as np  # noqa: PLC0415 - loaded already, since this is an array

    every = -(-max(pixels.shape[:2]) // MAX_SIDE)
    pixels = np.ascontiguousarray(pixels[::every, ::every])
    height, width, channels = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, width * channels)], axis=1)  # 0: no filter
    header = struct.pack("!IIBBBBB", width, height, 8, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack("!I", len(data)) + name + data + struct.pack("!I", zlib.crc32(name + data)) for name, data in chunks
    )
