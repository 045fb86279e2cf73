"""Landlock: a ruleset that handles every access right of the kernel's ABI and allows none (linux/landlock.h).

Files and folders can then be neither opened, made, renamed nor removed, TCP ports neither bound nor connected, and nothing outside the
worker can be signalled or reached by an abstract Unix socket. System call numbers are the same on both architectures.
"""

import ctypes
import os
from typing import NamedTuple

from agentd.sandbox.kernel import KernelError, system_call

_CREATE_RULESET = 444
_RESTRICT_SELF = 446
_VERSION_FLAG = 1
_LOG_SAME_EXEC_OFF = 1  # from ABI 7: denials of this process are not logged, so that a hostile loop can't flood the audit log

# How many rights of each kind an ABI knows: fs (execute ... ioctl_dev), net (bind, connect), scope (abstract sockets, signals).
_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_FS_RIGHTS_NOW = 16
_NET_SINCE = 4
_SCOPE_SINCE = 6
_QUIET_SINCE = 7


class Rights(NamedTuple):
    """Bit masks of everything that an ABI can restrict."""

    files: int
    network: int
    scope: int


def rights(abi: int) -> Rights:
    """All rights of `abi`: a ruleset handles them all and grants none."""
    return Rights(
        files=(1 << _FS_RIGHTS.get(abi, _FS_RIGHTS_NOW)) - 1,
        network=0b11 if abi >= _NET_SINCE else 0,
        scope=0b11 if abi >= _SCOPE_SINCE else 0,
    )


def lacks(abi: int) -> tuple[str, ...]:
    """What an older kernel's Landlock leaves to seccomp alone, in words."""
    found = []
    if 0 < abi < 3:
        found.append(f"Landlock ABI {abi} can't restrict truncating files (Linux 6.2 can); seccomp refuses the call")
    if 0 < abi < _NET_SINCE:
        found.append(f"Landlock ABI {abi} knows no network (Linux 6.7 does); seccomp refuses every socket")
    if 0 < abi < _SCOPE_SINCE:
        found.append(f"Landlock ABI {abi} can't scope signals (Linux 6.12 can); seccomp refuses to send any")
    return tuple(found)


def abi() -> int:
    """The ABI version of this kernel's Landlock, 0 where there is none (or where a container's filter hides it)."""
    try:
        return system_call(_CREATE_RULESET, None, 0, _VERSION_FLAG, what="Landlock")
    except KernelError:
        return 0


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scope", ctypes.c_uint64))


def restrict(version: int) -> None:
    """Deny this thread everything that Landlock of this `version` can deny. Needs no_new_privs. Raises KernelError."""
    ruleset = _Ruleset(*rights(version))
    size = 8 if version < _NET_SINCE else 16 if version < _SCOPE_SINCE else 24  # an older kernel refuses fields that it doesn't know
    descriptor = system_call(_CREATE_RULESET, ctypes.byref(ruleset), size, 0, what="Landlock ruleset")
    try:
        system_call(_RESTRICT_SELF, descriptor, _LOG_SAME_EXEC_OFF if version >= _QUIET_SINCE else 0, what="Landlock restriction")
    finally:
        os.close(descriptor)
