"""Attacks on files: reading, writing, listing, and reaching them by the back doors of numpy, ctypes and /proc."""

# ruff: noqa: PTH101, PTH102, PTH104, PTH107, PTH116, PTH123, PTH208, PTH211 - attackers are not tidy

from pathlib import Path
from typing import Any

import pytest
from escape import KILLED, REFUSED, Attack, Attacks, assert_fails, assert_succeeds

from agentd.sandbox import Zygote

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

attack = Attacks()


Target = dict[str, Any]


@attack(REFUSED)
def reads_with_open(target: Target) -> Any:
    return open(target["file"]).read()


@attack(REFUSED)
def reads_with_os_open(target: Target) -> Any:
    import os

    return os.read(os.open(target["file"], os.O_RDONLY), 100)


@attack(REFUSED)
def reads_with_pathlib(target: Target) -> Any:
    import pathlib

    return pathlib.Path(target["file"]).read_text()


@attack(REFUSED)
def reads_with_raw_io(target: Target) -> Any:
    import io

    return io.FileIO(target["file"]).readall()


@attack(REFUSED)
def reads_and_hides_the_refusal(target: Target) -> Any:
    try:
        return open(target["file"]).read()
    except OSError:
        return False


@attack(REFUSED)
def reads_in_a_string_that_it_executes(target: Target) -> Any:
    names: dict[str, Any] = {}
    exec(compile("text = open(path).read()", "innocent.py", "exec"), {"path": target["file"]}, names)
    return names["text"]


@attack(REFUSED)
def reads_with_numpy_fromfile(target: Target) -> Any:
    import numpy as np

    return np.fromfile(target["file"], dtype="u1").size


@attack(REFUSED)
def reads_with_numpy_memmap(target: Target) -> Any:
    import numpy as np

    return np.memmap(target["file"], dtype="u1", mode="r").size


@attack(REFUSED, says="secret.txt not found")
def reads_with_numpy_genfromtxt(target: Target) -> Any:
    import numpy as np

    return np.genfromtxt(target["file"], dtype=str).size


@attack(REFUSED)
def reads_with_the_c_library(target: Target) -> Any:
    import ctypes
    import os

    library = ctypes.CDLL(None, use_errno=True)
    descriptor = library.open(target["file"].encode(), 0)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "open")
    return os.read(descriptor, 100)


@attack(REFUSED, works_unlocked=False)
def reads_with_the_raw_openat2_call(target: Target) -> Any:
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    how = (ctypes.c_uint64 * 3)(0, 0, 0)
    if library.syscall(437, -100, target["file"].encode(), ctypes.byref(how), 24) < 0:
        raise OSError(ctypes.get_errno(), "openat2")
    return True


@attack(KILLED, works_unlocked=False)
def reads_through_io_uring(target: Target) -> Any:
    import ctypes

    return ctypes.CDLL(None).syscall(425, 8, (ctypes.c_char * 256)()) >= 0


@attack(KILLED, works_unlocked=False)
def reads_by_file_handle(target: Target) -> Any:
    import ctypes

    return ctypes.CDLL(None).open_by_handle_at(-100, (ctypes.c_char * 256)(), 0) >= 0


@attack(REFUSED)
def learns_whether_a_file_exists(target: Target) -> Any:
    import os

    return os.stat(target["file"]).st_size


@attack(REFUSED)
def lists_the_root_folder(target: Target) -> Any:
    import os

    return os.listdir("/")


@attack(REFUSED)
def walks_the_file_system(target: Target) -> Any:
    import os

    with os.scandir(target["folder"]) as entries:
        return [entry.name for entry in entries]


@attack(REFUSED)
def writes_a_file(target: Target) -> Any:
    with open(target["folder"] + "/left.txt", "w") as file:
        return file.write("I was here")


@attack(REFUSED)
def overwrites_with_numpy(target: Target) -> Any:
    import numpy as np

    np.zeros(4).tofile(target["file"])
    return True


@attack(REFUSED)
def saves_with_numpy(target: Target) -> Any:
    import numpy as np

    np.save(target["folder"] + "/left.npy", np.zeros(4))
    return True


@attack(REFUSED)
def removes_a_file(target: Target) -> Any:
    import os

    os.remove(target["file"])
    return True


@attack(REFUSED)
def renames_a_file(target: Target) -> Any:
    import os

    os.rename(target["file"], target["file"] + ".old")
    return True


@attack(REFUSED)
def links_a_file(target: Target) -> Any:
    import os

    os.link(target["file"], target["folder"] + "/link")
    return True


@attack(REFUSED)
def makes_a_symbolic_link(target: Target) -> Any:
    import os

    os.symlink("/etc/passwd", target["folder"] + "/link")
    return True


@attack(REFUSED)
def makes_a_folder(target: Target) -> Any:
    import os

    os.mkdir(target["folder"] + "/made")
    return True


@attack(REFUSED)
def makes_a_named_pipe(target: Target) -> Any:
    import os

    os.mkfifo(target["folder"] + "/pipe")
    return True


@attack(REFUSED)
def changes_a_mode(target: Target) -> Any:
    import os

    os.chmod(target["file"], 0o777)
    return True


@attack(REFUSED)
def truncates_a_file(target: Target) -> Any:
    import os

    os.truncate(target["file"], 0)
    return True


@attack(REFUSED)
def makes_a_file_in_memory(target: Target) -> Any:
    import os

    return os.memfd_create("left") >= 0


@attack(REFUSED, says="No usable temporary directory")
def makes_a_temporary_file(target: Target) -> Any:
    import tempfile

    with tempfile.TemporaryFile() as file:
        return file.write(b"I was here")


@attack(REFUSED)
def changes_its_folder(target: Target) -> Any:
    import os

    os.chdir(target["folder"])
    return True


@attack(KILLED)
def changes_its_root(target: Target) -> Any:
    import os

    os.chroot(target["folder"])
    return True


@attack(REFUSED)
def reads_the_runners_environment(target: Target) -> Any:
    return open(f"/proc/{target['runner']}/environ", "rb").read()


@attack(REFUSED)
def reads_its_memory_map(target: Target) -> Any:
    return open("/proc/self/maps").read()


@attack(REFUSED)
def writes_its_own_memory_through_proc(target: Target) -> Any:
    with open("/proc/self/mem", "r+b") as memory:
        return memory.writable()


@attack(REFUSED)
def loads_a_shared_library(target: Target) -> Any:
    import ctypes

    return ctypes.CDLL("libresolv.so.2")


@attack(REFUSED, says="no file with expected extension")
def loads_a_shared_library_with_numpy(target: Target) -> Any:
    import numpy as np

    return np.ctypeslib.load_library("libresolv.so.2", "/lib/x86_64-linux-gnu")


@attack(REFUSED, says="No module named '_curses'")
def imports_native_code_late(target: Target) -> Any:
    import sys

    real_import = next(module for name, module in sys.modules.items() if name == "builtins").__import__
    return real_import("_curses")


@attack(REFUSED)
def walks_the_subclasses_to_a_shell(target: Target) -> Any:
    wrap = next(kind for kind in ().__class__.__base__.__subclasses__() if kind.__name__ == "_wrap_close")
    popen = wrap.__init__.__globals__["popen"]
    return "uid" in popen("id").read()


@attack(REFUSED)
def opens_with_a_pickle(target: Target) -> Any:
    import io
    import pickle

    class Opening:
        def __reduce__(self) -> Any:
            return io.open, (target["file"],)

    return pickle.loads(pickle.dumps(Opening())).read()


@attack(KILLED, works_unlocked=False)
def mounts_a_file_system(target: Target) -> Any:
    import ctypes

    return ctypes.CDLL(None).mount(b"none", target["folder"].encode(), b"tmpfs", 0, None) == 0


@attack(REFUSED, works_unlocked=False)
def reads_from_whatever_descriptor_was_left_open(target: Target) -> Any:
    import os

    refusals = []
    for descriptor in range(4, 1024):
        try:
            return os.read(descriptor, 100)
        except OSError as error:
            refusals.append(error.strerror)
    raise PermissionError(f"nothing but {set(refusals)}")


@pytest.mark.parametrize("which", attack.found, ids=lambda which: which.name)
async def test_the_attack_fails_and_the_next_worker_serves(zygote: Zygote, which: Attack, tmp_path: Path) -> None:
    await assert_fails(zygote, which, tmp_path)


@pytest.mark.parametrize("which", attack.unlocked, ids=lambda which: which.name)
async def test_the_same_attack_succeeds_where_nothing_is_locked(unlocked_zygote: Zygote, which: Attack, tmp_path: Path) -> None:
    await assert_succeeds(unlocked_zygote, which, tmp_path)
