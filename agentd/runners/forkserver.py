"""A process that has imported what runners need, and forks them: many runners share its pages, and start in milliseconds.

Server side: `python -m agentd.runners.forkserver`, exec'd by the daemon with a clean environment, so that it has nothing of the daemon's.
It keeps to one thread and opens nothing, so that a fork is a clean copy, and it never reads what a runner is told. It ends with the daemon;
its runners don't: they have sessions of their own. Daemon side: `Forkserver`.
"""

import contextlib
import gc
import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Self

from agentd import codec
from agentd.errors import RunnerError
from agentd.records import Record

ALWAYS = ("uvloop", "numpy", "agentd.runners.process")
KINDS = {
    "gymnasium": ("agentd.environments.gymnasium", "gymnasium"),
    "mqtt": ("agentd.environments.mqtt", "agentd.environments.mapped"),
}
"""What an environment of this kind imports beside it."""
FORK_TIMEOUT = 30.0
"""Seconds; the first fork waits for the imports."""
_MAX_ORDER = 8192


class Order(Record, frozen=True, kw_only=True):
    """Fork a runner; with it come its standard streams. The answer is the process id as text."""

    directory: str
    agent: str
    kind: str


class Forkserver:
    """The daemon's handle. The server is started with the first runner, and again when it is found dead or hanging."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def fork(self, order: Order, environment: Mapping[str, str], streams: tuple[int, int, int]) -> int:
        """A new runner's process id. Raises RunnerError. Blocks: call it in a thread; several may."""
        with self._lock:
            try:
                return self._ask(order, environment, streams)
            except ConnectionError:  # it died some time since the last fork
                self._end()
            except OSError as error:
                self._end()
                raise RunnerError(f"the process that forks runners gives none: {error!r}") from error
            try:
                return self._ask(order, environment, streams)
            except OSError as error:
                self._end()
                raise RunnerError(f"the process that forks runners can't be started: {error!r}") from error

    @property
    def pid(self) -> int | None:
        """The server's process id; None while there is none."""
        return self._process.pid if self._process is not None else None

    def _ask(self, order: Order, environment: Mapping[str, str], streams: tuple[int, int, int]) -> int:
        if self._control is None:
            self._control, theirs = socket.socketpair()
            self._control.settimeout(FORK_TIMEOUT)
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "agentd.runners.forkserver"],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    env=dict(environment),
                    start_new_session=True,
                )
        socket.send_fds(self._control, [codec.encode(order)], streams)
        answer = self._control.recv(100)
        if not answer.isdigit():
            raise ConnectionError(answer.decode(errors="replace") or "it has ended")
        return int(answer)

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """End the server. Its runners go on."""
        with self._lock:
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _serve() -> Order | None:
    """Fork for whoever asks. In a forked runner: what it is to be; in the server: nothing, when the daemon is gone."""
    control = socket.socket(fileno=os.dup(0))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a runner
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _load(ALWAYS)
    while True:
        packet, streams, _, _ = socket.recv_fds(control, _MAX_ORDER, 3)
        if not packet:
            return None
        order = codec.decode(packet, Order)
        _load(KINDS.get(order.kind, ()))
        try:
            pid = os.fork()
        except OSError as error:
            control.send(str(error).encode())
        else:
            if pid == 0:
                control.close()
                for target, stream in enumerate(streams):
                    os.dup2(stream, target)
                    os.close(stream)
                return order
            control.send(str(pid).encode())
        for stream in streams:
            os.close(stream)


def _load(names: tuple[str, ...]) -> None:
    if all(name in sys.modules for name in names):
        return
    for name in names:
        with contextlib.suppress(Exception):  # the runner that needs it says what is wrong with it
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a runner doesn't touch, and copy, the pages that it shares


def main() -> None:
    """Serve; a forked runner comes back from that, too, with a stack that is as good as new."""
    order = _serve()
    if order is None:
        return
    for number in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()  # as the standard library's does by itself
    from agentd.runners.process import run  # noqa: PLC0415 - the daemon's side doesn't need it

    run(order.directory, order.agent)


if __name__ == "__main__":
    main()
