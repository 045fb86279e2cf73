"""Replies kept on disk by what was asked: the same question twice costs once. For experiments and repeated runs; off unless asked for."""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Protocol

import msgspec

from agentd.errors import Mistake, SpecError
from agentd.opto.contract import LlmReply, LlmRequest


class ReplyCache(Protocol):
    """Where replies may be found."""

    def get(self, model: str, request: LlmRequest) -> LlmReply | None:
        """An earlier reply of `model` to exactly this request."""
        ...

    def put(self, model: str, request: LlmRequest, reply: LlmReply) -> None:
        """Keeps a reply."""
        ...


class NoCache:
    """Every question is asked."""

    def get(self, model: str, request: LlmRequest) -> LlmReply | None:  # noqa: ARG002 - the contract's arguments
        """Nothing."""
        return None

    def put(self, model: str, request: LlmRequest, reply: LlmReply) -> None:
        """Nothing."""


class DiskCache:
    """One file per request in `folder`, named by a hash of model and request; agent and purpose don't count, the seed does."""

    def __init__(self, folder: Path) -> None:
        """Raises SpecError where there can't be such a folder."""
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise SpecError([Mistake(str(folder), "reply_cache", f"should be a folder, or a place for one: {error.strerror}")]) from error

    def get(self, model: str, request: LlmRequest) -> LlmReply | None:
        """As ReplyCache.get, with nothing spent. A damaged file is no reply."""
        try:
            reply = msgspec.json.decode(self._file(model, request).read_bytes(), type=LlmReply)
        except (OSError, msgspec.MsgspecError, ValueError):
            return None
        return msgspec.structs.replace(reply, tokens_in=0, tokens_out=0, dollars=0.0, cached=True)

    def put(self, model: str, request: LlmRequest, reply: LlmReply) -> None:
        """As ReplyCache.put. Written beside and renamed, so that a reader never sees half a file; on a full disk nothing is kept."""
        with contextlib.suppress(OSError):  # the answer is there, and paid for
            handle, beside = tempfile.mkstemp(dir=self._folder, suffix=".partial")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(msgspec.json.encode(reply))
                Path(beside).rename(self._file(model, request))
            except BaseException:
                Path(beside).unlink(missing_ok=True)
                raise

    def _file(self, model: str, request: LlmRequest) -> Path:
        bare = msgspec.structs.replace(request, agent="", purpose="", models=())
        content = msgspec.json.encode((model, bare), order="deterministic")
        return self._folder / f"{hashlib.sha256(content).hexdigest()}.json"
