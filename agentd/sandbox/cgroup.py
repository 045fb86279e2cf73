"""A control group for each worker where the machine delegates them: limits of memory and processes that the kernel keeps for a whole group.

rlimits hold what one process may ask for; a group holds what it really uses, with what the kernel spends for it, and cannot be left. Groups
are version 2 only (Documentation/admin-guide/cgroup-v2.rst, "Delegation"): somebody, usually systemd, gives agentd a branch of the tree. A
branch with limits holds no processes itself, so agentd must run in a leaf of it, and its workers get leaves beside that.
"""

import contextlib
import logging
import os
from pathlib import Path
from typing import NamedTuple

CONTROLLERS = ("memory", "pids")
MEMORY_SLACK = 64 * 1024 * 1024
"""Bytes above a worker's own limit: pages of the zygote that it writes to become its own."""

_HOW = (
    "systemd: `Delegate=memory pids` with `DelegateSubgroup=supervisor` (254 or later); elsewhere start agentd in a leaf of a group whose "
    "folder its user may write"
)

_logger = logging.getLogger("agentd.sandbox")


class Branch(NamedTuple):
    """The part of the tree that is ours. `folder` is None where there is none; `explanation` says in words what is missing."""

    folder: Path | None
    controllers: tuple[str, ...]
    explanation: str


class _Missing(Exception):  # noqa: N818 - never leaves this module
    """Why there is no branch for us."""


def find(proc: Path = Path("/proc/self")) -> Branch:
    """Look where this process is, and whether groups with limits can be made beside it. Makes one, and removes it."""
    try:
        folder = _branch(proc)
        controllers = _controllers(folder)
    except (_Missing, OSError) as reason:
        return Branch(None, (), f"no cgroup limits: {reason}")
    lacking = [name for name in CONTROLLERS if name not in controllers]
    return Branch(folder, controllers, f"cgroup limits without {lacking[0]}: {folder} lacks the controller" if lacking else "")


def _branch(proc: Path) -> Path:
    """The folder beside which this process is a leaf. Raises _Missing, OSError."""
    place, mounted = _place(proc), _mount_point(proc)
    if place is None or mounted is None:
        raise _Missing("this system has no cgroup v2; rlimits hold alone")
    own = mounted / place.lstrip("/")
    if own == mounted:
        if (own / "cgroup.type").exists():  # only the real root, which has no type, may have both processes and limited groups
            raise _Missing(f"this process is not in a leaf of a group of its own; {_HOW}")
        return own
    if not _is_delegated(own.parent):
        raise _Missing(f"{own.parent} is not delegated to agentd; {_HOW}")
    return own.parent


def _controllers(folder: Path) -> tuple[str, ...]:
    """Those of its controllers that limit workers, switched on and tried out. Raises _Missing."""
    available = _words(folder / "cgroup.controllers")
    wanted = tuple(name for name in CONTROLLERS if name in available)
    if not wanted:
        raise _Missing(f"{folder} has neither memory nor pids; cgroup v1 or a parent may hold them; {_HOW}")
    try:
        off = [name for name in wanted if name not in _words(folder / "cgroup.subtree_control")]
        if off:
            (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in off))
        trial = folder / f"agentd-trial-{os.getpid()}"
        trial.mkdir()
        trial.rmdir()
    except OSError as error:
        raise _Missing(f"{folder} is not delegated ({error.strerror}); {_HOW}") from error
    return wanted


class Groups:
    """The groups of one zygote's workers. It limits them where it can; a machine that suddenly refuses is told once, and rlimits hold."""

    def __init__(self, branch: Branch) -> None:
        self._branch = branch
        self._made: dict[int, Path] = {}
        self._warned = False

    @property
    def available(self) -> bool:
        """Whether there is a branch at all."""
        return self._branch.folder is not None

    def hold(self, pid: int, memory_bytes: int) -> bool:
        """Put a worker that has not begun yet into a group of its own; whether that was done."""
        if self._branch.folder is None:
            return False
        self.sweep()
        group = self._branch.folder / f"agentd-{os.getpid()}-{pid}"
        try:
            group.mkdir(exist_ok=True)
            self._made[pid] = group
            for name, value in self._limits(memory_bytes):
                (group / name).write_text(value)
            (group / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            if not self._warned:
                self._warned = True
                _logger.warning("a worker is held by rlimits only, its cgroup refuses: %s", error)
            return False
        return True

    def _limits(self, memory_bytes: int) -> list[tuple[str, str]]:
        limits = []
        if "memory" in self._branch.controllers:
            limits.append(("memory.max", str(memory_bytes + MEMORY_SLACK)))
            limits.append(("memory.oom.group", "1"))
        if "pids" in self._branch.controllers:
            limits.append(("pids.max", "1"))
        return limits

    def sweep(self) -> None:
        """Remove the groups whose worker has ended. The kernel refuses for one that lives."""
        for pid, group in list(self._made.items()):
            with contextlib.suppress(OSError):
                group.rmdir()
                del self._made[pid]


def _is_delegated(folder: Path) -> bool:
    """Root may write everywhere, so for root it is systemd's mark that counts: its tree has one writer for each branch."""
    if os.getuid() != 0:
        return os.access(folder, os.W_OK) and os.access(folder / "cgroup.procs", os.W_OK)
    for mark in ("trusted.delegate", "user.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(folder, mark) == b"1":
                return True
    return False


def _place(proc: Path) -> str | None:
    """This process's place in the tree of version 2."""
    for line in (proc / "cgroup").read_text(encoding="utf-8").splitlines():
        if line.startswith("0::"):
            return line[3:]
    return None


def _mount_point(proc: Path) -> Path | None:
    for line in (proc / "mountinfo").read_text(encoding="utf-8").splitlines():
        fields, _, kind = line.partition(" - ")
        if kind.split(" ")[0] == "cgroup2":
            return Path(fields.split(" ")[4])
    return None


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split()
    except OSError:
        return []
