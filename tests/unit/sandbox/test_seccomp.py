"""The seccomp filter, interpreted as the kernel would, for each architecture; and its tables, against the kernel's headers."""

import re
import struct
from pathlib import Path

import pytest

from agentd.sandbox import seccomp
from agentd.sandbox.kernel import KernelError
from agentd.sandbox.seccomp import ALLOW, ARCHITECTURES, EPERM, KILL, Architecture, Instruction

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
X86_64, AARCH64 = ARCHITECTURES
EITHER = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)


def interpret(program: tuple[Instruction, ...], number: int, arguments: tuple[int, ...] = (), *, audit: int) -> int:
    """What the kernel's BPF machine would return (Documentation/networking/filter.rst), for the operations that we use."""
    data = struct.pack("<IIQ6Q", number, audit, 0, *(arguments + (0,) * 6)[:6])
    accumulator = position = 0
    while True:
        code, if_true, if_false, operand = program[position]
        position += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, operand)
            case 0x15:
                position += if_true if accumulator == operand else if_false
            case 0x35:
                position += if_true if accumulator >= operand else if_false
            case 0x45:
                position += if_true if accumulator & operand else if_false
            case 0x06:
                return operand
            case _:
                raise AssertionError(f"an unknown operation {code:#x}")


def fate(architecture: Architecture, number: int, *arguments: int) -> int:
    return interpret(seccomp.build(architecture), number, arguments, audit=architecture.audit)


@EITHER
def test_every_number_is_that_of_the_kernels_header(architecture: Architecture) -> None:
    header = HEADERS[architecture.name]
    if not header.exists():
        pytest.skip(f"{header} is not installed")
    found = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()))
    for name, number in {**architecture.allowed, **architecture.killed}.items():
        assert int(found[name]) == number, name


@EITHER
def test_what_is_allowed_and_what_kills_are_apart(architecture: Architecture) -> None:
    assert not set(architecture.allowed.values()) & set(architecture.killed.values())
    assert len(set(architecture.allowed.values())) == len(architecture.allowed)


@EITHER
def test_nothing_that_is_allowed_opens_makes_or_names_anything(architecture: Architecture) -> None:
    forbidden = {
        "open", "openat", "openat2", "creat", "socket", "socketpair", "connect", "bind", "listen", "accept", "accept4", "sendmsg",
        "recvmsg", "clone", "clone3", "fork", "vfork", "execve", "execveat", "kill", "tkill", "tgkill", "prctl", "ioctl", "fcntl", "dup",
        "dup2", "dup3", "pipe", "pipe2", "memfd_create", "unlink", "unlinkat", "rename", "renameat2", "mkdir", "mkdirat", "chmod",
        "fchmodat", "stat", "statx", "newfstatat", "readlink", "readlinkat", "prlimit64", "setrlimit", "setuid", "setresuid", "capset",
        "sendfile", "splice",
    }  # fmt: skip
    assert not forbidden & set(architecture.allowed)


@EITHER
def test_allowed_calls_pass_and_unknown_ones_get_eperm(architecture: Architecture) -> None:
    for name, number in architecture.allowed.items():
        assert fate(architecture, number) == ALLOW, name
    known = {*architecture.allowed.values(), *architecture.killed.values()}
    for number in set(range(600)) - known:
        assert fate(architecture, number) == EPERM, number


@EITHER
def test_what_only_an_attack_does_kills(architecture: Architecture) -> None:
    for name, number in architecture.killed.items():
        assert fate(architecture, number) == KILL, name


@EITHER
@pytest.mark.parametrize("name", ["mmap", "mprotect"])
def test_executable_memory_kills_and_other_memory_passes(architecture: Architecture, name: str) -> None:
    number = architecture.allowed[name]
    for protection in range(8):
        assert fate(architecture, number, 0, 4096, protection) == (KILL if protection & 4 else ALLOW)
    assert fate(architecture, number, 0, 4096, 0xFFFF_FFFF_0000_0004) == KILL, "whatever the upper half holds"


@EITHER
def test_sending_is_allowed_to_the_connected_peer_only(architecture: Architecture) -> None:
    number = architecture.allowed["sendto"]
    assert fate(architecture, number, 3, 0x1000, 10, 0, 0, 0) == ALLOW
    assert fate(architecture, number, 3, 0x1000, 10, 0, 0x2000, 16) == EPERM
    assert fate(architecture, number, 3, 0x1000, 10, 0, 0x2000_0000_0000, 16) == EPERM, "an address whose lower half is zero"


@EITHER
@pytest.mark.parametrize("name", ["sendto", "recvfrom"])
def test_messages_have_no_flags_but_those_that_only_say_how_to_wait(architecture: Architecture, name: str) -> None:
    number = architecture.allowed[name]
    for bit in range(32):
        assert fate(architecture, number, 3, 0x1000, 10, 1 << bit, 0, 0) == (ALLOW if bit in {6, 14} else EPERM), bit


@EITHER
def test_memory_is_never_shared(architecture: Architecture) -> None:
    number = architecture.allowed["mmap"]
    for flags, wanted in ((0x22, ALLOW), (0x21, EPERM), (0x23, EPERM), (0x4022, ALLOW)):  # private, shared, validated, without reserve
        assert fate(architecture, number, 0, 4096, 3, flags) == wanted


def test_calls_of_another_architecture_kill() -> None:
    for own, other in ((X86_64, AARCH64), (AARCH64, X86_64)):
        for number in range(500):
            assert interpret(seccomp.build(own), number, audit=other.audit) == KILL
    assert interpret(seccomp.build(X86_64), 11, audit=0x40000003) == KILL, "the 32-bit calls"


def test_x32_calls_kill_on_x86_64() -> None:
    for number in (*X86_64.allowed.values(), 1, 2, 59):
        assert fate(X86_64, 0x40000000 | number) == KILL


@EITHER
def test_the_program_fits_into_the_kernels_limit_and_every_jump_stays_inside(architecture: Architecture) -> None:
    program = seccomp.build(architecture)
    assert len(program) <= 4096
    assert len(seccomp.pack(program)) == 8 * len(program)
    for position, (code, if_true, if_false, _) in enumerate(program):
        assert 0 <= if_true <= 255
        assert 0 <= if_false <= 255
        if code in (0x15, 0x35, 0x45):
            assert position + 1 + max(if_true, if_false) < len(program)
    assert program[-1].code == 0x06


def test_a_machine_without_a_table_is_refused_by_name() -> None:
    with pytest.raises(KernelError, match="riscv64"):
        seccomp.architecture_of("riscv64")
