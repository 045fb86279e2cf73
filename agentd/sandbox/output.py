"""What a worker prints and logs: whole lines into a pipe that never blocks it. What doesn't fit is dropped and counted."""

import io
import os

MAX_LINE = 2_000
"""Bytes of a line, well below PIPE_BUF: a write to a full pipe then writes all of it or nothing."""


class LineOutput(io.TextIOBase):
    """A text stream over a non-blocking descriptor. Longer lines are cut into several."""

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._pending = ""
        self._dropped = 0
        os.set_blocking(descriptor, False)

    def writable(self) -> bool:
        """Yes."""
        return True

    def fileno(self) -> int:
        """The pipe."""
        return self._descriptor

    def write(self, text: str) -> int:
        """Buffer `text`, and send each line that it completes."""
        lines = (self._pending + text).split("\n")
        self._pending = lines.pop()
        for line in lines:
            self._send(line)
        if len(self._pending) > MAX_LINE:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Send what is buffered, as a line."""
        if self._pending:
            pending, self._pending = self._pending, ""
            self._send(pending)

    def _send(self, line: str) -> None:
        content = line.encode(errors="replace")
        for start in range(0, len(content) or 1, MAX_LINE):
            if self._dropped and self._try(f"({self._dropped} lines were dropped)".encode()):
                self._dropped = 0
            if not self._try(content[start : start + MAX_LINE]):
                self._dropped += 1

    def _try(self, content: bytes) -> bool:
        try:
            os.write(self._descriptor, content + b"\n")
        except OSError:
            return False
        return True
