"""What a machine gives is tried out, what it lacks is said in words, and a locked worker looks locked from outside."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentd import codec
from agentd.errors import IsolationError, LoadError, PolicyError
from agentd.records import Source, make_revision
from agentd.sandbox import Isolation, Limits, PolicyWorker, Zygote, landlock, probe
from agentd.spec import SandboxSection

HERE = str(Path(landlock.__file__).resolve().parents[2])


def source(text: str = "class P:\n    def act(self, observation):\n        return 1\n") -> Source:
    return Source(digest="d", files={"controller.py": text}, entrypoint="controller:P")


async def start(zygote: Zygote, text: str | None = None) -> PolicyWorker:
    return await PolicyWorker.start(
        zygote,
        source=source(text) if text else source(),
        revision=make_revision("a", "d", {}),
        limits=Limits(step_timeout=20, load_timeout=30),
        on_log=print,
    )


def status_of(worker: PolicyWorker) -> str:
    return Path(f"/proc/{worker.pid}/status").read_text()


def examine_with(preparation: str) -> Isolation:
    """The isolation that a process finds after `preparation`."""
    program = (
        f"import sys; sys.path.insert(0, {HERE!r})\n"
        "import ctypes, os\n"
        "from agentd import codec\n"
        "from agentd.sandbox import isolation, kernel, seccomp\n"
        "from agentd.sandbox.seccomp import Instruction\n"
        f"{preparation}\n"
        "sys.stdout.buffer.write(codec.encode(isolation.examine()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=50)
    return codec.decode(done.stdout, Isolation)


def refusing(*numbers: int, error: int) -> str:
    """Source that makes the kernel refuse these system calls from now on, as a container's profile does."""
    jumps = "".join(f"Instruction(0x15, 0, 1, {number}), Instruction(0x06, 0, 0, {0x50000 | error})," for number in numbers)
    return (
        "kernel.prctl(38, 1, what='no_new_privs')\n"
        f"program = (Instruction(0x20, 0, 0, 0), {jumps} Instruction(0x06, 0, 0, 0x7fff0000))\n"
        "seccomp.build = lambda architecture, real=seccomp.build: program if architecture is None else real(architecture)\n"
        "content = seccomp.pack(program); buffer = ctypes.create_string_buffer(content, len(content))\n"
        "filter = seccomp._Program(len(program), ctypes.addressof(buffer))\n"
        "kernel.system_call(seccomp._SECCOMP[os.uname().machine], 1, 0, ctypes.byref(filter), what='test filter')"
    )


def test_the_probe_tries_rather_than_asks() -> None:
    found = probe()
    assert found.machine == os.uname().machine
    assert found.level == 1 + found.seccomp + found.namespaces
    assert (found.landlock_abi > 0) or found.level < 2
    assert found.level == 3 or found.explanation, "each lack has its sentence"


def test_a_machine_without_landlock_gets_level_1_and_an_explanation() -> None:
    found = examine_with(refusing(444, 445, 446, error=38))
    assert found.level == 1
    assert found.landlock_abi == 0
    assert any("Landlock" in sentence and "5.13" in sentence for sentence in found.explanation)


def test_a_container_that_forbids_namespaces_gets_level_2_and_the_docker_flags() -> None:
    unshare = {"x86_64": 272, "aarch64": 97}[os.uname().machine]
    found = examine_with(refusing(unshare, error=1))
    assert found.level == 2
    assert any("--cap-add SYS_ADMIN" in sentence for sentence in found.explanation)


def test_a_filter_that_forbids_filters_gets_level_1() -> None:
    number = {"x86_64": 317, "aarch64": 277}[os.uname().machine]
    found = examine_with(refusing(number, error=1))
    assert found.level == 1
    assert not found.seccomp
    assert any("SystemCallFilter" in sentence for sentence in found.explanation)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_an_unprivileged_runner_reaches_level_2_at_least() -> None:
    found = examine_with(
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534); kernel.prctl(4, 1, what='dumpable')"
    )
    assert found.level >= 2
    assert not found.uid_dropped
    assert any("keep uid 65534" in sentence for sentence in found.explanation)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_an_unprivileged_runner_gets_namespaces_from_a_user_namespace() -> None:
    allowed = subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "-Urn", "true"], check=False)
    if allowed.returncode != 0:
        pytest.skip("user namespaces are not for everybody here")
    found = examine_with(
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534); kernel.prctl(4, 1, what='dumpable')"
    )
    assert found.level == 3


AS_NOBODY = """
import sys
sys.path.insert(0, sys.argv[1])
import os
from agentd.sandbox import kernel, main
main._import_all([])  # the interpreter may lie where only root can read
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
kernel.prctl(4, 1, what="dumpable")
main.main(sys.argv[2:])
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("level", [2, 3])
async def test_an_unprivileged_zygote_serves(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "agentd.sandbox.zygote.command", lambda *arguments, isolated: [sys.executable, "-I", "-c", AS_NOBODY, HERE, *arguments]
    )
    try:
        zygote = await Zygote.start(imports=("math",), min_isolation=level, max_isolation=level)
    except IsolationError as error:
        pytest.skip(str(error))
    reading = 'class P:\n    def act(self, observation):\n        return open("/etc/hostname").read()\n'
    async with zygote, await start(zygote) as worker, await start(zygote, reading) as attacker:
        await worker.reset("robot", "e", None)
        assert await worker.act("robot", 0, 0) == 1
        await attacker.reset("robot", "e", None)
        with pytest.raises(PolicyError, match="not permitted"):
            await attacker.act("robot", 0, 0)
        status = status_of(worker)
        assert "Uid:\t65534\t65534" in status
        assert "CapEff:\t0000000000000000" in status


async def test_more_isolation_than_there_is_is_refused() -> None:
    with pytest.raises(IsolationError) as caught:
        await Zygote.start(imports=("math",), min_isolation=4)
    assert caught.value.wanted == 4
    assert caught.value.available <= 3


async def test_an_import_that_fails_is_named() -> None:
    with pytest.raises(LoadError, match="there_is_no_such_module"):
        await Zygote.start(imports=("there_is_no_such_module",))


@pytest.mark.parametrize("level", [2, 3])
async def test_a_worker_is_locked_as_seen_from_outside(level: int) -> None:
    try:
        zygote = await Zygote.start(imports=("math",), min_isolation=level, max_isolation=level)
    except IsolationError as error:
        pytest.skip(str(error))
    async with zygote, await start(zygote) as worker:
        process = Path(f"/proc/{worker.pid}")
        status = dict(line.split(":\t", 1) for line in process.joinpath("status").read_text().splitlines() if ":\t" in line)
        assert worker.isolation == zygote.level == level
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        assert status["Seccomp_filters"] == "1"
        assert status["Threads"] == "1"
        assert {status[name].strip("0") for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {""}
        assert status["Groups"].strip() == "" or os.getuid() != 0
        uids = {int(uid) for uid in status["Uid"].split()}
        assert uids.isdisjoint({0}) if os.getuid() == 0 else uids == {os.getuid()}
        if os.getuid() == 0:  # descriptors and environment of a process that is not dumpable are root's to see
            descriptors = {int(entry.name): str(entry.readlink()) for entry in process.joinpath("fd").iterdir()}
            assert set(descriptors) == {0, 1, 2, 3, 4, 5, 6}
            assert descriptors[0] == "/dev/null"
            assert not [target for target in descriptors.values() if target.startswith("/") and target != "/dev/null"]
            environment = process.joinpath("environ").read_bytes()
            assert environment.replace(b"LC_CTYPE=C.UTF-8", b"").strip(b"\0") == b""
            own_network = Path("/proc/self/ns/net").readlink()  # noqa: ASYNC240 - a link in /proc blocks nobody
            assert (process.joinpath("ns/net").readlink() != own_network) == (level == 3)
            limits = process.joinpath("limits").read_text()
            for name in ("Max file size", "Max processes", "Max core file size", "Max locked memory"):
                assert next(line for line in limits.splitlines() if line.startswith(name)).split()[-3:-1] == ["0", "0"], name


async def test_two_workers_of_a_root_runner_have_users_of_their_own() -> None:
    if os.getuid() != 0:
        pytest.skip("not root")
    async with await Zygote.start(imports=("math",)) as zygote, await start(zygote) as one, await start(zygote) as other:
        uids = {next(line for line in status_of(worker).splitlines() if line.startswith("Uid")) for worker in (one, other)}
        assert len(uids) == 2


CODE = """
from agentd.trace import bundle, model

@model
class P:
    @bundle(trainable=True)
    def act(self, observation):
        return 1
"""


async def test_level_0_is_refused_to_a_program_whose_parameters_are_code() -> None:
    async with await Zygote.start(imports=("math",), min_isolation=0) as zygote:
        assert zygote.level == 0
        with pytest.raises(LoadError, match="code parameters"):
            await start(zygote, CODE)
        async with await start(zygote) as worker:
            assert worker.isolation == 0


async def test_level_1_limits_resources_and_nothing_else() -> None:
    text = """
class P:
    def act(self, observation):
        if observation.data == "read":
            return open("/etc/hostname").read() != ""
        return len([bytearray(10**7) for _ in range(1000)])
"""
    async with await Zygote.start(imports=("math",), min_isolation=1, max_isolation=1) as zygote, await start(zygote, text) as worker:
        await worker.reset("robot", "e", None)
        assert await worker.act("robot", 0, "read") is True
        with pytest.raises(PolicyError, match="MemoryError"):
            await worker.act("robot", 1, "fill")


@pytest.mark.parametrize(
    ("abi", "files", "network", "scope"),
    [(1, 13, 0, 0), (2, 14, 0, 0), (3, 15, 0, 0), (4, 15, 2, 0), (5, 16, 2, 0), (6, 16, 2, 2), (7, 16, 2, 2)],
)
def test_landlock_handles_every_right_of_an_abi(abi: int, files: int, network: int, scope: int) -> None:
    handled = landlock.rights(abi)
    assert (handled.files.bit_length(), handled.network.bit_length(), handled.scope.bit_length()) == (files, network, scope)
    assert (handled.files + 1).bit_count() == 1, "no right in between is left out"


def test_what_an_older_landlock_lacks_is_said() -> None:
    assert landlock.lacks(7) == ()
    assert len(landlock.lacks(1)) == 3
    assert any("6.7" in sentence for sentence in landlock.lacks(3))
    assert any("6.12" in sentence for sentence in landlock.lacks(5))


def test_limits_come_from_agent_toml() -> None:
    limits = Limits.from_spec(SandboxSection(memory_limit="64MiB", step_timeout="20ms", load_timeout="3s", allowed_imports=("math",)))
    assert limits == Limits(memory_bytes=64 * 2**20, step_timeout=0.02, load_timeout=3.0, allowed_imports=("math",))


def test_what_isolates_is_told_in_words() -> None:
    full = Isolation(level=3, landlock_abi=6, seccomp=True, uid_dropped=True, namespaces=True, cgroup=("memory", "pids"))
    words = "seccomp, Landlock ABI 6, namespaces, a user of its own for each worker, cgroup limits of memory and pids, rlimits"
    assert full.means == words
    assert Isolation(level=1, landlock_abi=6).means == "rlimits"
    assert Isolation(level=0).means == "nothing"
