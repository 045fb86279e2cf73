"""The strict seccomp allow-list of a worker, as classic BPF built by hand (linux/seccomp.h, linux/bpf_common.h).

Three fates of a system call:

- *allowed*: what computing, sleeping, and talking on the descriptors that are already open needs. Nothing here opens, creates or names
  anything.
- *EPERM*: everything else. What an honest program does by mistake (open a file, a socket, a thread, a process) raises in its own line,
  which its author and the optimizer can read.
- *kill*: what only an attack does (another architecture's calls, executable memory, ptrace, bpf, io_uring, mount, namespaces, keys,
  modules).

Calls that a later kernel adds are not in the table and get EPERM. `build` is pure, so that tests interpret the program of each
architecture.
"""

import ctypes
import struct
from collections.abc import Mapping
from typing import NamedTuple

from agentd.sandbox.kernel import KernelError, system_call

# The numbers are those of asm/unistd_64.h (x86-64) and asm-generic/unistd.h (aarch64); tests compare them with the headers.
_X86_64_ALLOWED = {
    "sendto": 44, "recvfrom": 45, "futex": 202, "read": 0, "write": 1, "close": 3, "fstat": 5, "lseek": 8, "poll": 7, "mmap": 9,
    "mprotect": 10, "munmap": 11, "brk": 12, "mremap": 25, "madvise": 28, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15,
    "sigaltstack": 131, "sched_yield": 24, "nanosleep": 35, "clock_nanosleep": 230, "clock_gettime": 228, "clock_getres": 229,
    "gettimeofday": 96, "time": 201, "times": 100, "getrusage": 98, "getpid": 39, "getppid": 110, "gettid": 186, "getuid": 102,
    "geteuid": 107, "getgid": 104, "getegid": 108, "getcwd": 79, "getcpu": 309, "sched_getaffinity": 204, "getrandom": 318, "select": 23,
    "pselect6": 270, "ppoll": 271, "epoll_wait": 232, "epoll_pwait": 281, "epoll_ctl": 233, "restart_syscall": 219, "exit": 60,
    "exit_group": 231,
}  # fmt: skip
_AARCH64_ALLOWED = {
    "sendto": 206, "recvfrom": 207, "futex": 98, "read": 63, "write": 64, "close": 57, "fstat": 80, "lseek": 62, "mmap": 222,
    "mprotect": 226, "munmap": 215, "brk": 214, "mremap": 216, "madvise": 233, "rt_sigaction": 134, "rt_sigprocmask": 135,
    "rt_sigreturn": 139, "sigaltstack": 132, "sched_yield": 124, "nanosleep": 101, "clock_nanosleep": 115, "clock_gettime": 113,
    "clock_getres": 114, "gettimeofday": 169, "times": 153, "getrusage": 165, "getpid": 172, "getppid": 173, "gettid": 178, "getuid": 174,
    "geteuid": 175, "getgid": 176, "getegid": 177, "getcwd": 17, "getcpu": 168, "sched_getaffinity": 123, "getrandom": 278,
    "pselect6": 72, "ppoll": 73, "epoll_pwait": 22, "epoll_ctl": 21, "restart_syscall": 128, "exit": 93, "exit_group": 94,
}  # fmt: skip
_X86_64_KILLED = {
    "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "process_madvise": 440, "pidfd_open": 434,
    "pidfd_getfd": 438, "pidfd_send_signal": 424, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "seccomp": 317,
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "init_module": 175, "finit_module": 313, "delete_module": 176,
    "kexec_load": 246, "kexec_file_load": 320, "reboot": 169, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161,
    "move_mount": 429, "fsopen": 430, "fsmount": 432, "fsconfig": 431, "open_tree": 428, "mount_setattr": 442, "unshare": 272,
    "setns": 308, "keyctl": 250, "add_key": 248, "request_key": 249, "name_to_handle_at": 303, "open_by_handle_at": 304,
    "personality": 135, "swapon": 167, "swapoff": 168, "acct": 163, "iopl": 172, "ioperm": 173, "modify_ldt": 154, "pkey_mprotect": 329,
    "remap_file_pages": 216, "memfd_secret": 447,
}  # fmt: skip
_AARCH64_KILLED = {
    "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272, "process_madvise": 440, "pidfd_open": 434,
    "pidfd_getfd": 438, "pidfd_send_signal": 424, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "seccomp": 277,
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "init_module": 105, "finit_module": 273, "delete_module": 106,
    "kexec_load": 104, "kexec_file_load": 294, "reboot": 142, "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51,
    "move_mount": 429, "fsopen": 430, "fsmount": 432, "fsconfig": 431, "open_tree": 428, "mount_setattr": 442, "unshare": 97,
    "setns": 268, "keyctl": 219, "add_key": 217, "request_key": 218, "name_to_handle_at": 264, "open_by_handle_at": 265,
    "personality": 92, "swapon": 224, "swapoff": 225, "acct": 89, "pkey_mprotect": 288, "remap_file_pages": 234, "memfd_secret": 447,
}  # fmt: skip


class Architecture(NamedTuple):
    """What a filter depends on: the audit token that the kernel puts into each call's data, and the numbers of the calls."""

    name: str
    audit: int
    allowed: Mapping[str, int]
    killed: Mapping[str, int]


ARCHITECTURES = (
    Architecture("x86_64", 0xC000003E, _X86_64_ALLOWED, _X86_64_KILLED),
    Architecture("aarch64", 0xC00000B7, _AARCH64_ALLOWED, _AARCH64_KILLED),
)

ALLOW = 0x7FFF0000  # SECCOMP_RET_ALLOW
EPERM = 0x00050000 | 1  # SECCOMP_RET_ERRNO with errno EPERM
KILL = 0x80000000  # SECCOMP_RET_KILL_PROCESS

_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
_X32_BIT = 0x40000000  # the x32 calls on x86-64: a second table with other numbers, refused whole
_PROT_EXEC = 4
_MAP_SHARED = 1
_OTHER_FLAGS = 0xFFFFFFFF & ~(0x40 | 0x4000)
"""Flags of sendto and recvfrom but MSG_DONTWAIT and MSG_NOSIGNAL. Out-of-band data of Unix sockets has been a way into the kernel."""

_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


class Instruction(NamedTuple):
    """One `struct sock_filter`: operation, how far to jump when true and when false, operand."""

    code: int
    if_true: int
    if_false: int
    operand: int


def _argument(index: int, *, high: bool = False) -> int:
    return 16 + 8 * index + (4 if high else 0)  # both architectures are little-endian


def build(architecture: Architecture) -> tuple[Instruction, ...]:
    """The filter program for one architecture."""
    program = [
        Instruction(_LOAD, 0, 0, _ARCHITECTURE),
        Instruction(_JUMP_EQUAL, 1, 0, architecture.audit),
        Instruction(_RETURN, 0, 0, KILL),
        Instruction(_LOAD, 0, 0, _NUMBER),
    ]
    if architecture.name == "x86_64":
        program += [Instruction(_JUMP_GREATER_EQUAL, 0, 1, _X32_BIT), Instruction(_RETURN, 0, 0, KILL)]
    for name, number in architecture.allowed.items():
        verdict = _verdict(name)
        program += [Instruction(_JUMP_EQUAL, 0, len(verdict), number), *verdict]
    for number in architecture.killed.values():
        program += [Instruction(_JUMP_EQUAL, 0, 1, number), Instruction(_RETURN, 0, 0, KILL)]
    return (*program, Instruction(_RETURN, 0, 0, EPERM))


def _verdict(name: str) -> tuple[Instruction, ...]:
    allow = Instruction(_RETURN, 0, 0, ALLOW)
    if name in {"mmap", "mprotect"}:  # memory, but never executable
        return (
            Instruction(_LOAD, 0, 0, _argument(2)),
            Instruction(_JUMP_SET, 0, 1, _PROT_EXEC),
            Instruction(_RETURN, 0, 0, KILL),
            *(_refuse_bits(3, _MAP_SHARED) if name == "mmap" else ()),  # of what is shared the pages stay when all but one are unmapped
            allow,
        )
    if name == "sendto":  # to the connected peer only: no address
        return (
            Instruction(_LOAD, 0, 0, _argument(4)),
            Instruction(_JUMP_EQUAL, 0, 2, 0),
            Instruction(_LOAD, 0, 0, _argument(4, high=True)),
            Instruction(_JUMP_EQUAL, 1, 0, 0),
            Instruction(_RETURN, 0, 0, EPERM),
            *_refuse_bits(3, _OTHER_FLAGS),
            allow,
        )
    if name == "recvfrom":
        return (*_refuse_bits(3, _OTHER_FLAGS), allow)
    return (allow,)


def _refuse_bits(argument: int, bits: int) -> tuple[Instruction, ...]:
    return (
        Instruction(_LOAD, 0, 0, _argument(argument)),
        Instruction(_JUMP_SET, 0, 1, bits),
        Instruction(_RETURN, 0, 0, EPERM),
    )


def pack(program: tuple[Instruction, ...]) -> bytes:
    """The program as the kernel reads it: an array of `struct sock_filter`."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SET_MODE_FILTER = 1


def architecture_of(machine: str) -> Architecture:
    """The tables for a machine name as `os.uname` tells it. Raises KernelError for one that has none."""
    for architecture in ARCHITECTURES:
        if architecture.name == machine:
            return architecture
    raise KernelError(f"there is no table of system calls for {machine}")


def install(architecture: Architecture) -> None:
    """Filter every later system call of this thread, for ever. Needs no_new_privs. Raises KernelError where the kernel refuses."""
    content = pack(build(architecture))
    buffer = ctypes.create_string_buffer(content, len(content))
    program = _Program(len(content) // 8, ctypes.addressof(buffer))
    system_call(_SECCOMP[architecture.name], _SET_MODE_FILTER, 0, ctypes.byref(program), what="seccomp")
