"""Attacks on processes: forking, executing, threads, signals, ptrace, identity, namespaces, and the kernel itself."""

import os
from pathlib import Path
from typing import Any

import pytest
from escape import DIED, KILLED, REFUSED, Attack, Attacks, assert_fails, assert_succeeds, outcome, start

from agentd.errors import WorkerDied
from agentd.sandbox import Zygote
from agentd.sandbox.seccomp import architecture_of

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

attack = Attacks()


Target = dict[str, Any]


@attack(REFUSED)
def forks(target: Target) -> Any:
    import os

    child = os.fork()
    if child == 0:
        os._exit(0)
    return os.waitpid(child, 0)[0] == child


@attack(REFUSED, works_unlocked=False)
def bombs_with_forks(target: Target) -> Any:
    import os

    alive = 0
    for _ in range(1000):
        try:
            alive += os.fork() > 0
        except OSError:
            continue
    return alive


@attack(REFUSED)
def starts_a_shell(target: Target) -> Any:
    import subprocess

    return subprocess.run(["/bin/true"], check=False).returncode == 0


@attack(REFUSED)
def runs_a_command(target: Target) -> Any:
    import os

    if os.system("/bin/true") != 0:
        raise PermissionError("the shell did not start")
    return True


@attack(REFUSED)
def spawns(target: Target) -> Any:
    import os

    return os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)[1] == 0


@attack(REFUSED, works_unlocked=False)
def executes_another_program(target: Target) -> Any:
    import os

    os.execv("/bin/true", ["true"])
    return True


@attack(REFUSED, says="RuntimeError: can't start new thread|PermissionError")
def starts_a_thread(target: Target) -> Any:
    import threading

    done = threading.Event()
    threading.Thread(target=done.set).start()
    return done.wait(1)


@attack(REFUSED, says="can't start new thread", works_unlocked=False)
def bombs_with_threads(target: Target) -> Any:
    import threading
    import time

    alive = 0
    for _ in range(1000):
        try:
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            alive += 1
        except RuntimeError as error:
            refusal = error
    if alive == 0:
        raise refusal
    return alive


@attack(REFUSED)
def clones_with_a_raw_call(target: Target) -> Any:
    import ctypes
    import os

    library = ctypes.CDLL(None, use_errno=True)
    child = library.syscall({"x86_64": 56, "aarch64": 220}[target["machine"]], 17, 0, 0, 0, 0)
    if child == 0:
        os._exit(0)
    if child < 0:
        raise OSError(ctypes.get_errno(), "clone")
    return True


@attack(REFUSED, works_unlocked=False)
def kills_its_parent(target: Target) -> Any:
    import os
    import signal

    os.kill(os.getppid(), signal.SIGKILL)
    return True


@attack(REFUSED, works_unlocked=False)
def kills_the_runner(target: Target) -> Any:
    import os
    import signal

    os.kill(target["runner"], signal.SIGTERM)
    return True


@attack(REFUSED)
def kills_another_process(target: Target) -> Any:
    import os
    import signal

    os.kill(target["victim"], signal.SIGTERM)
    return True


@attack(REFUSED, works_unlocked=False)
def kills_everything(target: Target) -> Any:
    import os
    import signal

    os.kill(-1, signal.SIGKILL)
    return True


@attack(KILLED)
def kills_through_a_handle(target: Target) -> Any:
    import os
    import signal

    signal.pidfd_send_signal(os.pidfd_open(target["victim"]), signal.SIGTERM)
    return True


@attack(KILLED, works_unlocked=False)
def traces_another_process(target: Target) -> Any:
    import ctypes

    return ctypes.CDLL(None).ptrace(16, target["victim"], None, None) == 0


@attack(KILLED, works_unlocked=False)
def reads_another_processes_memory(target: Target) -> Any:
    import ctypes

    return ctypes.CDLL(None).process_vm_readv(target["victim"], None, 0, None, 0, 0) >= 0


@attack(REFUSED, says="not allowed to raise maximum limit", works_unlocked=False)
def raises_its_own_limits(target: Target) -> Any:
    import resource

    resource.setrlimit(resource.RLIMIT_NPROC, (100_000, 100_000))
    return True


@attack(REFUSED)
def becomes_root(target: Target) -> Any:
    import os

    os.setuid(0)
    return True


@attack(REFUSED, works_unlocked=False)
def survives_its_parent(target: Target) -> Any:
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(1, 0, 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "prctl")
    return True


@attack(KILLED, works_unlocked=False)
def makes_a_user_namespace(target: Target) -> Any:
    import ctypes

    return ctypes.CDLL(None).unshare(0x10000000) == 0


@attack(KILLED, works_unlocked=False)
def joins_the_runners_namespaces(target: Target) -> Any:
    import ctypes

    return ctypes.CDLL(None).setns(0, 0) == 0


@attack(KILLED, works_unlocked=False)
def replaces_its_filter(target: Target) -> Any:
    import ctypes

    return ctypes.CDLL(None).syscall(317, 0, 0, None) == 0


@attack(KILLED, works_unlocked=False)
def loads_a_kernel_program(target: Target) -> Any:
    import ctypes

    return ctypes.CDLL(None).syscall(321, 5, None, 0) >= 0


@attack(KILLED, works_unlocked=False)
def reads_kernel_keys(target: Target) -> Any:
    import ctypes

    return ctypes.CDLL(None).syscall(250, 0, -3, 0) >= 0


@attack(KILLED, works_unlocked=False)
def speaks_the_x32_dialect(target: Target) -> Any:
    import ctypes

    return ctypes.CDLL(None).syscall(0x40000000 | 257, -100, target["file"].encode(), 0) >= 0


@attack(KILLED)
def maps_executable_memory(target: Target) -> Any:
    import mmap

    return mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)


@attack(KILLED)
def makes_memory_executable(target: Target) -> Any:
    import ctypes
    import mmap

    memory = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), 4096, 7) == 0


@attack(DIED, works_unlocked=False)
def writes_into_the_c_library(target: Target) -> Any:
    import ctypes

    function = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p).value
    ctypes.memset(function, 0xCC, 16)
    return True


@attack(DIED, works_unlocked=False)
def reads_address_zero(target: Target) -> Any:
    import ctypes

    return ctypes.string_at(0)


@attack(DIED, works_unlocked=False)
def ends_its_process(target: Target) -> Any:
    import os

    os._exit(0)


@attack(DIED, works_unlocked=False)
def aborts(target: Target) -> Any:
    import os

    os.abort()


@attack(REFUSED, says="SystemExit", works_unlocked=False)
def exits_politely(target: Target) -> Any:
    raise SystemExit(0)


@attack(DIED, works_unlocked=False)
def closes_its_channel(target: Target) -> Any:
    import os
    import time

    os.close(3)
    time.sleep(60)


UNFILTERED = {335, 336} if os.uname().machine == "x86_64" else set()
"""uretprobe and uprobe: from Linux 6.14 on no filter sees them, and who calls them not from a probe is ended by SIGILL."""

CALLER = """
import ctypes

class Caller:
    def act(self, observation):
        library, allowed = ctypes.CDLL(None, handle=ctypes.pythonapi._handle, use_errno=True), []  # which nobody hears of
        for number in observation.data:
            ctypes.set_errno(0)
            if library.syscall(number, 0, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != 1:
                allowed.append(number)
        return allowed
"""


async def test_the_kernel_refuses_every_call_that_the_tables_do_not_allow(zygote: Zygote) -> None:
    """io_uring, keys, others' descriptors and memory, shared memory and queues, timers, limits: none is left to a test of its own."""
    architecture = architecture_of(os.uname().machine)
    deadly = set(architecture.killed.values())
    async with await start(zygote, CALLER, "Caller") as caller:
        await caller.reset("robot", "episode", None)
        others = sorted(set(range(600)) - deadly - UNFILTERED - set(architecture.allowed.values()))
        assert await caller.act("robot", 0, others) == []
    for number in deadly:
        async with await start(zygote, CALLER, "Caller") as caller:
            await caller.reset("robot", "episode", None)
            end = await outcome(caller.act("robot", 0, [number]))
            assert isinstance(end, WorkerDied), number
            assert "forbidden" in str(end), number


@pytest.mark.parametrize("which", attack.found, ids=lambda which: which.name)
async def test_the_attack_fails_and_the_next_worker_serves(zygote: Zygote, which: Attack, tmp_path: Path) -> None:
    await assert_fails(zygote, which, tmp_path)


@pytest.mark.parametrize("which", attack.unlocked, ids=lambda which: which.name)
async def test_the_same_attack_succeeds_where_nothing_is_locked(unlocked_zygote: Zygote, which: Attack, tmp_path: Path) -> None:
    await assert_succeeds(unlocked_zygote, which, tmp_path)
