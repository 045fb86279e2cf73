"""Raw system calls through the standard library's ctypes: for those that Python has no function for."""

import ctypes
import functools
import os
from typing import Any

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38


class KernelError(OSError):
    """The kernel refused, or lacks, something that isolation needs."""


@functools.cache
def _c_library() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    return library


def system_call(number: int, *arguments: Any, what: str) -> int:
    """The result of a system call. Raises KernelError that says `what` was refused and why."""
    converted = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result: int = _c_library().syscall(ctypes.c_long(number), *converted)
    if result < 0:
        error = ctypes.get_errno()
        raise KernelError(error, f"{what}: {os.strerror(error)}")
    return result


def prctl(option: int, *arguments: int, what: str) -> int:
    """Set an attribute of this process; the unused arguments must be zero. Raises KernelError that says `what` was refused."""
    padded = (*arguments, 0, 0, 0, 0)[:4]
    result: int = _c_library().prctl(option, *(ctypes.c_ulong(argument) for argument in padded))
    if result < 0:
        error = ctypes.get_errno()
        raise KernelError(error, f"{what}: {os.strerror(error)}")
    return result


def library_call(name: str, *arguments: Any) -> int:
    """A function of the C library that returns -1 and sets errno when it fails, such as mount or unshare."""
    result: int = getattr(_c_library(), name)(*arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise KernelError(error, f"{name}: {os.strerror(error)}")
    return result
