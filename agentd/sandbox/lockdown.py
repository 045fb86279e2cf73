"""What a worker does to itself between the fork and the first line of untrusted code. None of it can be undone.

The order matters. Descriptors are closed first, since what is open stays open. The user changes before PDEATHSIG is set, since changing it
clears the signal. Landlock and seccomp come last and together: seccomp alone would have to trust every allowed call with a path, Landlock
alone knows nothing of fork, ptrace or executable memory.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

from agentd.sandbox import landlock, namespaces, seccomp
from agentd.sandbox.kernel import PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG, KernelError, library_call, prctl

FIRST_WORKER_UID = 2_000_000_000
"""Workers of a root zygote get a random uid of their own above this: two workers can't even signal each other."""
NOBODY = 65_534
DESCRIPTORS = 16
"""The highest number of a descriptor that a worker may have, plus one."""

_CAPABILITY_VERSION_3 = 0x20080522


def lock_down(*, level: int, memory_bytes: int, parent: int) -> None:
    """Lock this process down to `level`; `memory_bytes` are allowed above what it has now. Raises OSError when anything is refused.

    `parent` is the zygote's pid: if it is gone before PDEATHSIG is set, this process ends. At level 0 that is all.
    """
    if level == 0:
        _die_with(parent)
        return
    _limit_resources(memory_bytes)
    if level >= 3:
        namespaces.change_root()
    drop_user()
    if sys.platform != "linux":
        return
    _drop_capabilities()
    prctl(PR_SET_DUMPABLE, 0, what="dumpable")  # no core, no /proc/<pid>/mem, no ptrace by others of the same user
    _die_with(parent)
    prctl(PR_SET_NO_NEW_PRIVS, 1, what="no_new_privs")
    if level >= 2:
        version = landlock.abi()
        architecture = seccomp.architecture_of(os.uname().machine)
        if version == 0:
            raise KernelError("this kernel has no Landlock")
        landlock.restrict(version)
        seccomp.install(architecture)


def _die_with(parent: int) -> None:
    if sys.platform != "linux":
        return
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL, what="parent death signal")
    if os.getppid() != parent:
        raise SystemExit("the zygote is gone")


def _limit_resources(memory_bytes: int) -> None:
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_NOFILE: DESCRIPTORS,
        resource.RLIMIT_MEMLOCK: 0,
    }
    if sys.platform == "linux":
        limits[resource.RLIMIT_AS] = _address_space() + memory_bytes
        limits[resource.RLIMIT_MSGQUEUE] = 0
        with contextlib.suppress(OSError):  # read-only /proc in some containers; the kernel's choice of victim is a comfort only
            Path("/proc/self/oom_score_adj").write_text("1000")
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (limit, limit))


def _address_space() -> int:
    """Bytes of address space that this process has: the zygote's, since it was forked a moment ago."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    return pages * resource.getpagesize()


def drop_user() -> bool:
    """Become a user of one's own when root; whether that was possible. Raises OSError for a root that can't stop being it."""
    if os.getuid() != 0:
        return False
    with contextlib.suppress(PermissionError):  # a user namespace may deny setgroups; root's groups are then no more than its owner's
        os.setgroups([])
    for user in (FIRST_WORKER_UID + int.from_bytes(os.urandom(3)), NOBODY):
        try:
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        except OSError:
            continue  # not mapped in this user namespace
        return True
    raise KernelError("root can't become another user here: CAP_SETUID and CAP_SETGID are missing")


def _drop_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    library_call("capset", header, nothing)
