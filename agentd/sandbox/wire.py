"""What crosses the border: messages between the trusted side and a zygote, and between the trusted side and a worker.

Both travel as MessagePack in packets (SOCK_SEQPACKET), so a message is whole or not there. A message of at most MAX_PACKET bytes is one
packet. A longer one is announced by a packet of FRAGMENTED (a byte that MessagePack never begins with) and its length, and follows in
packets of exactly MAX_PACKET bytes and a rest: the receiver knows each length beforehand, so there is nothing to lie about but the
announcement, and that is capped.

A byte of hostile MessagePack can become an empty list of 56 bytes, so answers are capped well below what requests may have. A trace,
whose bytes are not looked into here, travels in parts.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import msgspec

from agentd import codec
from agentd.errors import CodecError
from agentd.records import Record, Step, Value

MAX_PACKET = 65_536
MAX_MESSAGE = 32 * 1024 * 1024
MAX_ANSWER = 1024 * 1024
MAX_VALUES = 16_384
"""In an answer. Plants wait for their actions while the runner reads it: so many take some milliseconds."""
MAX_TRACE = 4 * 1024 * 1024
MAX_PART = 48 * 1024
"""Bytes of a trace that travel at once, so that a tick never waits behind a long one."""
FRAGMENTED = 0xC1  # "never used" in MessagePack
_ANNOUNCEMENT = struct.Struct(">BI")
ANNOUNCEMENT_SIZE = _ANNOUNCEMENT.size

MAX_QUESTION = 256 * 1024
"""Bytes of a question to a model: of its texts, and of the roles that say them."""
MAX_TOLD = 48 * 1024
"""Bytes of text in a model's answer: it travels in one packet, so that nothing waits for the rest of it."""

LEAF_CHANNEL = 4
"""The descriptor of a trusted program's channel to its leaf."""
LEAF_GONE_EXIT, LEAF_LIED_EXIT = 72, 73
"""How a trusted program ends whose leaf is gone, or sent what none sends."""

MAX_ERROR_MESSAGE = 2_000
MAX_TRACEBACK = 20_000


def packets(message: bytes) -> Iterator[bytes | memoryview]:
    """The packets of a message of at most MAX_MESSAGE bytes, in order."""
    size = len(message)
    if size <= MAX_PACKET:
        yield message
        return
    yield _ANNOUNCEMENT.pack(FRAGMENTED, size)
    view = memoryview(message)
    for start in range(0, size, MAX_PACKET):
        yield view[start : start + MAX_PACKET]


def announced(packet: memoryview, most: int) -> int:
    """The length that an announcement promises, at most `most`. Raises CodecError for one that is malformed or out of bounds."""
    if len(packet) != ANNOUNCEMENT_SIZE:
        raise CodecError(f"an announcement of {len(packet)} bytes")
    size: int = _ANNOUNCEMENT.unpack(packet)[1]
    if not MAX_PACKET < size <= most:
        raise CodecError(f"an announcement of {size} bytes, where {MAX_PACKET + 1} to {most} are possible")
    return size


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of the messages."""


# --- trusted side <-> zygote ------------------------------------------------------------------------------------------


class Isolation(Record, frozen=True):
    """How well this machine isolates, tried out and not only asked for.

    `level` is the highest level that works (DESIGN section 7), `explanation` a sentence for each thing that it lacks and how to get it.
    `landlock_abi` is 0 where there is no Landlock; `uid_dropped` says whether workers run as a user of their own.
    """

    level: int
    explanation: tuple[str, ...] = ()
    landlock_abi: int = 0
    seccomp: bool = False
    uid_dropped: bool = False
    namespaces: bool = False
    machine: str = ""
    cgroup: tuple[str, ...] = ()
    """The controllers that limit each worker as a group; none where no branch of cgroup v2 is delegated."""

    @property
    def means(self) -> str:
        """What workers are isolated with here, in words."""
        found = [
            "seccomp" if self.seccomp else "",
            f"Landlock ABI {self.landlock_abi}" if self.landlock_abi and self.seccomp else "",
            "namespaces" if self.namespaces else "",
            "a user of its own for each worker" if self.uid_dropped else "",
            f"cgroup limits of {' and '.join(self.cgroup)}" if self.cgroup else "",
            "rlimits" if self.level > 0 else "",
        ]
        return ", ".join(word for word in found if word) or "nothing"

    def with_groups(self, controllers: tuple[str, ...], explanation: str) -> "Isolation":
        """The same with what was found out about control groups."""
        more = (explanation,) if explanation else ()
        return msgspec.structs.replace(self, cgroup=controllers, explanation=(*self.explanation, *more))


class Ready(_Message, frozen=True):
    """The zygote's first message: it imported everything; workers will run at `level`."""

    level: int
    isolation: Isolation


class StartFailed(_Message, frozen=True):
    """The zygote's first and last message. `available` is the level that works, where that was too low; else an import failed."""

    message: str
    available: int | None


class Fork(_Message, frozen=True):
    """Fork a worker. Its channel and its log pipe come with the packet, and a trusted program's channel to its leaf.

    `memory_bytes` are above the zygote's own.
    """

    id: int
    program: str
    memory_bytes: int


class Forked(_Message, frozen=True):
    """The worker `pid` (as the zygote sees it) lives. On Linux a pidfd comes with the packet."""

    id: int
    pid: int


class ForkFailed(_Message, frozen=True):
    """The kernel refused to fork."""

    id: int
    message: str


class Exited(_Message, frozen=True):
    """A worker ended with this status, as waitpid tells it."""

    pid: int
    status: int


FromZygote = Ready | StartFailed | Forked | ForkFailed | Exited

# --- trusted side -> worker -------------------------------------------------------------------------------------------


class Load(_Message, frozen=True):
    """Import the program and build it. The first request of every worker."""

    id: int
    files: dict[str, str]
    entrypoint: str
    args: dict[str, Value]
    allowed_imports: tuple[str, ...] | None
    """None: whatever it likes."""
    data_only: bool
    """Refuse code parameters: level 0 is for trusted programs whose parameters are data."""
    model_calls: int = 0
    """Questions to models that a single Act may ask."""


class Assign(_Message, frozen=True):
    """Take a revision's values, after Load: code among them is compiled here, which may already run a line that a model wrote."""

    id: int
    values: dict[str, Value]


class Reset(_Message, frozen=True):
    """A new episode on a device."""

    id: int
    device: str
    seed: int | None


class Act(_Message, frozen=True):
    """An observation; the answer is the action. When `replaced`, the plant got `previous` at the tick before, not the policy's answer."""

    id: int
    device: str
    tick: int
    observation: Value
    replaced: bool
    previous: Value


class Finish(_Message, frozen=True):
    """The episode is over. Its graph is set aside, to be fetched by this request's id; the policy may go on in the next episode at once."""

    id: int
    device: str
    final_observation: Value


class Fetch(_Message, frozen=True):
    """Some work on the trace of the episode that the request `finished` ended; the answer is a Trace: a part of it, or nothing yet."""

    id: int
    device: str
    finished: int


class State(_Message, frozen=True):
    """What the policy wants to hand over."""

    id: int
    device: str


class LoadState(_Message, frozen=True):
    """What another revision handed over."""

    id: int
    device: str
    value: Value


class JudgedEpisode(Record, frozen=True):
    """What feedback.py sees of an episode: what the *runner* recorded."""

    id: str
    device: str
    outcome: str
    steps: tuple[Step, ...]
    final_observation: Value = None
    instruction: str = ""
    error: str = ""
    reason: str = ""
    metrics: dict[str, float] = {}  # noqa: RUF012 - msgspec copies it


class Judge(_Message, frozen=True):
    """Call feedback(episode); the answer is (score, text, metrics)."""

    id: int
    episode: JudgedEpisode


class Told(_Message, frozen=True):
    """What came of the question `number` of the request `id`: a model's answer, or an error of agentd.errors by its name."""

    id: int
    number: int
    text: str
    error: str = ""
    model: str = ""
    status: int | None = None
    retryable: bool = False
    resets_at: float | None = None


# --- trusted program -> leaf ------------------------------------------------------------------------------------------


class Define(_Message, frozen=True):
    """Compile `source`, to be called as `function`; the answer is its defaults by name. Values are packed (agentd.sandbox.plain).

    `imports`: name -> (module, name in it, or "" for the module itself). `module` is what the function believes to be in.
    """

    id: int
    function: int
    module: str
    source: str
    imports: dict[str, tuple[str, str]]
    constants: dict[str, Value]
    method: bool
    """The first argument is a dict: attributes, for an object to have."""


class Call(_Message, frozen=True):
    """Call a defined function on packed values; the answer is the packed result, or Raised."""

    id: int
    function: int
    args: list[Value]
    kwargs: dict[str, Value]


Request = Load | Assign | Reset | Act | Finish | Fetch | State | LoadState | Judge | Define | Call

# --- worker -> trusted side -------------------------------------------------------------------------------------------


class Answer(_Message, frozen=True):
    """The request was done. Nothing of `value` can be trusted."""

    id: int
    value: Value


class Trace(_Message, frozen=True):
    """The answer to Fetch: the next bytes of an encoded TraceGraph, which is the worker's word and no more. `more`: ask again."""

    id: int
    content: bytes
    more: bool = False


class Failure(_Message, frozen=True):
    """The request raised. `kind` says where: isolation, load, policy."""

    id: int
    kind: str
    message: str
    traceback: str


_Role = Annotated[str, msgspec.Meta(pattern="^(system|user|assistant)$")]


class Asked(_Message, frozen=True):
    """A question to a model, within the request `id` and no reply to it; a Told answers it. `number` counts from 1 in each request.

    The limits are those of agentd.trace.host, which an honest worker keeps: an answer of fewer than no tokens would be paid for.
    """

    id: int
    number: int
    messages: Annotated[tuple[tuple[_Role, str], ...], msgspec.Meta(min_length=1)]
    model: str | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None


def question_size(messages: Iterable[tuple[str, str]]) -> int:
    """The bytes of a question, which may be MAX_QUESTION at most."""
    return sum(len(role) + len(text.encode()) for role, text in messages)


class Raised(_Message, frozen=True):
    """A leaf's answer to a Call that raised: the names of the error's class and its bases, and texts."""

    id: int
    kinds: tuple[str, ...]
    message: str
    comment: str
    traceback: str


Reply = Answer | Trace | Failure | Asked
LeafReply = Answer | Raised | Failure

_FROM_ZYGOTE: Any = FromZygote  # for the type checker, which takes a union for no type
_TO_WORKER: Any = Request | Told
_REPLY: Any = Reply
_LEAF_REPLY: Any = LeafReply


def from_zygote(packet: bytes) -> FromZygote:
    """Raises CodecError."""
    message: FromZygote = codec.decode(packet, _FROM_ZYGOTE)
    return message


def request_of(message: bytes | memoryview) -> Request | Told:
    """Raises CodecError."""
    request: Request | Told = codec.decode(message, _TO_WORKER)
    return request


def reply_of(message: bytes | memoryview) -> Reply:
    """Raises CodecError for whatever is no reply."""
    reply: Reply = codec.decode_untrusted(message, _REPLY, MAX_VALUES)
    return reply


def leaf_reply_of(message: bytes | memoryview) -> LeafReply:
    """Raises CodecError for whatever is no reply of a leaf."""
    reply: LeafReply = codec.decode_untrusted(message, _LEAF_REPLY, MAX_VALUES)
    return reply


def encodable(text: str) -> str:
    """`text` without what UTF-8 can't carry."""
    return text.encode(errors="replace").decode()


def shortened(text: str, limit: int) -> str:
    """Untrusted text, cut in the middle, since the end of a traceback says most."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n... ({len(text) - limit} characters left out) ...\n{text[-half:]}"


def printable(text: str) -> str:
    """Untrusted text without the control characters that terminals obey. Line breaks and tabs stay."""
    return "".join(character if character.isprintable() or character in "\n\t" else "\N{REPLACEMENT CHARACTER}" for character in text)
