"""The zygote's process: import what workers may need, find out how well this machine isolates, then fork a worker per request.

It is exec'd with an empty environment and no descriptor but its control socket, and stays single-threaded, so that a fork is a clean copy.
It never sees untrusted code. It ends when the other end of the control socket closes, and its workers with it.
"""

import contextlib
import gc
import importlib
import os
import pkgutil
import select
import signal
import socket
import sys

from agentd import codec
from agentd.sandbox import isolation, kernel, namespaces
from agentd.sandbox.wire import MAX_PACKET, Exited, Fork, Forked, ForkFailed, Ready, StartFailed

ORPHAN_CHECK_MS = 1000
"""How often to look whether the runner still lives, where the closing of a datagram socket is not told (no SOCK_SEQPACKET)."""

ALWAYS_IMPORTED = (
    "abc", "ast", "asyncio", "bisect", "cmath", "collections", "collections.abc", "copy", "dataclasses", "encodings.ascii",
    "encodings.latin_1", "enum", "functools", "heapq", "inspect", "itertools", "linecache", "logging", "math", "operator", "random",
    "statistics", "string", "textwrap", "tokenize", "traceback", "typing", "warnings", "agentd.sandbox.server", "agentd.sandbox.policies",
    "agentd.sandbox.judging", "agentd.sandbox.braking", "agentd.sandbox.leaves", "numpy",
)  # fmt: skip
"""numpy also where the program may not import it: its observations may be arrays, and a locked worker can't read the library any more."""


def main(arguments: list[str]) -> None:
    """`probe` writes an Isolation to stdout; `zygote DESCRIPTOR MIN_LEVEL MAX_LEVEL [IMPORT ...]` serves forks."""
    if arguments[0] == "probe":
        sys.stdout.buffer.write(codec.encode(isolation.examine()))
        return
    control = socket.socket(fileno=int(arguments[1]))
    lowest, highest = int(arguments[2]), int(arguments[3])
    found = isolation.examine(highest)
    if found.level < lowest:
        control.send(codec.encode(StartFailed("; ".join(found.explanation), found.level)))
        return
    try:
        if found.level >= 3:
            _enter_namespaces()
        _import_all(arguments[4:])
        if found.level >= 3:
            namespaces.make_empty_root()
    except Exception as error:  # noqa: BLE001 - whatever an import raises is told to the one who asked for it
        control.send(codec.encode(StartFailed(f"{type(error).__name__}: {error}"[:2000], None)))
        return
    _silence()
    gc.collect()
    gc.freeze()  # so that a collection in a worker doesn't touch, and copy, the pages it shares with us
    control.send(codec.encode(Ready(found.level, found)))
    Zygote(control, found.level).serve()


def _enter_namespaces() -> None:
    """Go on as process 1 of namespaces of our own; what we were waits outside and ends as we end."""
    namespaces.enter()
    child = os.fork()
    if child != 0:
        os.closerange(0, 1024)  # the control socket above all: its end must be told when the child ends
        status = os.waitpid(child, 0)[1]
        os._exit(min(255, abs(os.waitstatus_to_exitcode(status))))
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL, what="parent death signal")


def _import_all(names: list[str]) -> None:
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # before numpy's library reads them
    import agentd.trace  # noqa: PLC0415 - the probe needs none of it

    traced = (f"agentd.trace.{module.name}" for module in pkgutil.iter_modules(agentd.trace.__path__))  # some import others lazily
    for name in (*ALWAYS_IMPORTED, *traced, *names):
        importlib.import_module(name)
    _warm_numpy()


def _warm_numpy() -> None:
    """Import and run what numpy loads lazily: a worker can't open the files any more."""
    for name in ("char", "dtypes", "exceptions", "fft", "linalg", "ma", "polynomial", "random", "rec", "strings"):
        importlib.import_module(f"numpy.{name}")
    import numpy as np  # noqa: PLC0415 - the probe needs none of it

    np.random.default_rng(0).normal(size=3)
    np.linalg.solve(np.eye(3), np.ones(3))
    repr(np.fft.rfft(np.ones(8)))


def _silence() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


class Zygote:
    """Serves the control socket until it closes."""

    def __init__(self, control: socket.socket, level: int) -> None:
        self._control = control
        self._level = level
        self._parent = os.getppid()
        self._children: set[int] = set()

    def serve(self) -> None:
        """Fork and reap until the runner is gone, then kill what is left and end."""
        waking, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else os.pipe()
        os.set_blocking(woken, False)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(waking, select.POLLIN)
        while self._parent == os.getppid():
            ready = {descriptor for descriptor, _ in poll.poll(ORPHAN_CHECK_MS)}
            if waking in ready:
                os.read(waking, 4096)
                self._reap()
            if self._control.fileno() in ready and not self._answer():
                break
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            _kill_group(child)

    def _reap(self) -> None:
        while self._children:
            ended = -1
            if hasattr(os, "waitid"):  # not on macOS before Python 3.13
                seen = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if seen is None:
                    return
                ended = seen.si_pid
                _kill_group(ended)  # while its number can't be somebody else's
            child, status = os.waitpid(ended, os.WNOHANG)
            if child == 0:
                return
            self._children.discard(child)
            self._tell(Exited(child, status))

    def _answer(self) -> bool:
        """Do one request. False when the runner is gone."""
        try:
            packet, descriptors, _, _ = socket.recv_fds(self._control, MAX_PACKET, 3)
        except ConnectionError:
            return False
        if not packet:
            return False
        request = codec.decode(packet, Fork)
        try:
            self._fork(request, descriptors)
        except OSError as error:
            self._tell(ForkFailed(request.id, str(error)))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _fork(self, request: Fork, descriptors: list[int]) -> None:
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            from agentd.sandbox.server import run  # noqa: PLC0415 - imported long ago; named here, since only the child is a server

            run(request, descriptors=descriptors, level=self._level, zygote=parent)
        self._children.add(child)
        forked = Forked(request.id, child)
        if not hasattr(os, "pidfd_open"):
            self._tell(forked)
            return
        handle = os.pidfd_open(child)
        try:
            socket.send_fds(self._control, [codec.encode(forked)], [handle])
        except ConnectionError:
            pass  # the next receive sees it too
        finally:
            os.close(handle)

    def _tell(self, message: Exited | Forked | ForkFailed) -> None:
        with contextlib.suppress(ConnectionError):
            self._control.send(codec.encode(message))


def _kill_group(child: int) -> None:
    """End what a trusted program started: it leads a group of its own, which a locked worker has not, nor could have anybody in it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
