"""How well this machine isolates: found out by locking a child process down and letting it try to break out."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import agentd
from agentd import codec
from agentd.errors import CodecError, SandboxError
from agentd.sandbox import cgroup, landlock, lockdown, namespaces
from agentd.sandbox.kernel import KernelError
from agentd.sandbox.wire import Isolation

__all__ = ["Isolation", "command", "examine", "probe"]

PROBE_TIMEOUT = 30.0
_TRIAL_MEMORY = 64 * 1024 * 1024

HIGHEST_LEVEL = 3

_NO_LINUX = "this is no Linux: workers are plain processes with resource limits; run the daemon in a Linux container for level 2"
_NO_LANDLOCK = (
    "there is no Landlock: it needs Linux 5.13 with CONFIG_SECURITY_LANDLOCK and `landlock` in the kernel's `lsm=` list; "
    "under Docker a seccomp profile from 23.0 on lets it through"
)
_LEVEL_2_HINT = (
    "level 2 needs landlock_*, seccomp and prctl: systemd units must not set `SystemCallFilter=` without @sandbox, "
    "and Docker's default seccomp profile (23.0 or later) has them"
)
_LEVEL_3_HINT = (
    "level 3 needs namespaces: as root CAP_SYS_ADMIN (Docker: `--cap-add SYS_ADMIN --security-opt apparmor=unconfined`); otherwise user "
    "namespaces (`sysctl kernel.apparmor_restrict_unprivileged_userns=0` on Ubuntu; systemd: no `RestrictNamespaces=`)"
)


def command(*arguments: str, isolated: bool = True) -> list[str]:
    """The command line of a process of this package, with the agentd that runs now: `isolated` from the user's site and environment."""
    home = str(Path(agentd.__file__).parents[1])
    start = (  # another agentd may be installed; and nothing that lies beside ours may hide a module of the standard library
        "import sys; sys.path.insert(0, sys.argv[1]); import agentd; sys.path.append(sys.path.pop(0)); "
        "from agentd.sandbox.main import main; main(sys.argv[2:])"
    )
    return [sys.executable, "-I" if isolated else "-P", "-X", "utf8", "-c", start, home, *arguments]


def probe() -> Isolation:
    """What this machine gives, tried out in a child process. Blocks for about 0.2 s. Raises SandboxError if the child can't even start."""
    try:
        process = subprocess.run(  # noqa: S603 - our own interpreter and module
            command("probe"), env={}, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxError(f"the isolation probe did not run: {error}") from error
    try:
        branch = cgroup.find()
        return codec.decode(process.stdout, Isolation).with_groups(branch.controllers, branch.explanation)
    except CodecError as error:
        raise SandboxError(f"the isolation probe failed: {process.stderr.decode(errors='replace')[-2000:]}") from error


def examine(highest: int = HIGHEST_LEVEL) -> Isolation:
    """What this process can give the workers it forks, up to level `highest`. Forks a child per level; call it with one thread only."""
    machine = os.uname().machine
    if sys.platform != "linux":
        return Isolation(level=min(1, highest), explanation=(_NO_LINUX,), machine=machine)
    abi = landlock.abi()
    level, found, reached = min(1, highest), [], 1
    for trial in range(2, highest + 1):
        reason = _fate(trial)
        if reason:
            found.append(f"level {trial} does not work here: {reason}; {_LEVEL_2_HINT if trial == 2 else _LEVEL_3_HINT}")
            break
        level = reached = trial
    if abi == 0:
        found.append(_NO_LANDLOCK)
    if os.getuid() != 0:
        found.append(f"not root: workers keep uid {os.getuid()}; started as root, each would get a uid of its own")
    return Isolation(
        level=level,
        explanation=(*found, *landlock.lacks(abi)),
        landlock_abi=abi,
        seccomp=reached >= 2,
        uid_dropped=os.getuid() == 0 and reached >= 2,
        namespaces=reached >= 3,
        machine=machine,
    )


def _fate(level: int) -> str:
    """Why `level` does not work, "" if it does."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _end_with(writing, lambda: _try_level(level))
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        reason = stream.read().decode(errors="replace")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return reason or (f"the trial ended with {status}" if status != 0 else "")


def _try_level(level: int) -> None:
    if level < 3:
        _try_lockdown(level)
        return
    namespaces.enter()
    child = os.fork()
    if child == 0:
        namespaces.make_empty_root()
        _try_lockdown(level)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        raise KernelError("a locked process in namespaces of its own did not survive")


def _try_lockdown(level: int) -> None:
    lockdown.lock_down(level=level, memory_bytes=_TRIAL_MEMORY, parent=os.getppid())
    for what, attempt in (("open a file", _open_something), ("open a socket", _open_socket), ("fork", os.fork)):
        try:
            attempt()
        except OSError:
            continue
        raise KernelError(f"a locked process could {what}")


def _open_something() -> None:
    os.close(os.open("/", os.O_RDONLY))


def _open_socket() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()


def _end_with(writing: int, action: Callable[[], None]) -> None:
    """Do it, write what went wrong, and end this forked child without running anybody's exit handlers."""
    try:
        action()
    except BaseException as error:  # noqa: BLE001 - a forked child must not return into its parent's code
        os.write(writing, (str(error) or type(error).__name__).encode())
        os._exit(1)
    os._exit(0)
