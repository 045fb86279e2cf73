"""Level 3: namespaces around the zygote, so that what seccomp and Landlock refuse isn't even there (namespaces(7)).

No network device but a loopback that is down, no process but the zygote and its workers, no System V IPC of others, and for workers a root
folder that is an empty, read-only tmpfs. A zygote that isn't root gets these rights from a user namespace, in which it stays itself.
"""

import ctypes
import os
from pathlib import Path

from agentd.sandbox.kernel import library_call

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REC, _PRIVATE = 1, 2, 4, 8, 0x4000, 0x40000

EMPTY_ROOT = "/sys"
"""Where the zygote's own mount namespace has the empty folder: it exists on every Linux, and nobody needs it after the imports."""


def enter() -> None:
    """Move this process into namespaces of its own; its next child is their process 1. Raises OSError where that is not allowed."""
    user, group = os.getuid(), os.getgid()
    flags = _NEWNS | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET
    library_call("unshare", ctypes.c_int(flags if user == 0 else flags | _NEWUSER))
    if user != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _mount("none", "/", None, _REC | _PRIVATE)


def make_empty_root() -> None:
    """Mount the empty folder that workers will take for their root. After every import, in the new namespaces."""
    _mount("none", EMPTY_ROOT, "tmpfs", _RDONLY | _NOSUID | _NODEV | _NOEXEC)


def change_root() -> None:
    """Make the empty folder this process's root, for ever: lockdown takes away the right to change it back."""
    os.chroot(EMPTY_ROOT)
    os.chdir("/")


def _mount(source: str, target: str, kind: str | None, flags: int) -> None:
    library_call("mount", source.encode(), target.encode(), kind and kind.encode(), ctypes.c_ulong(flags), None)
