"""Control groups: found only where a branch is ours, said in words where it is not, and removed when a worker has ended.

The tree is a folder of the test's own that is laid out like the kernel's; on a machine that delegates a real one, that is used as well.
"""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from agentd.errors import WorkerDied
from agentd.records import Source, make_revision
from agentd.sandbox import Limits, PolicyWorker, Zygote
from agentd.sandbox.cgroup import MEMORY_SLACK, Branch, Groups, find


class Tree:
    """A hierarchy below `root`, and a /proc/self that says where we are in it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "cgroup"
        self.proc = folder / "proc"
        self.proc.mkdir()
        self.mount("cgroup2")
        self.leaf = self.group("agentd.service/supervisor")
        self.branch = self.group("agentd.service")
        self.be_in("/agentd.service/supervisor")

    def mount(self, kind: str) -> None:
        line = f"30 23 0:26 / {self.root} rw,nosuid shared:4 - {kind} cgroup rw\n"
        (self.proc / "mountinfo").write_text("22 28 0:20 / /proc rw - proc proc rw\n" + line)

    def be_in(self, place: str) -> None:
        (self.proc / "cgroup").write_text(f"4:memory:/elsewhere\n0::{place}\n")

    def group(self, name: str, controllers: str = "cpu memory pids") -> Path:
        made = self.root / name
        made.mkdir(parents=True, exist_ok=True)
        for file, text in (
            ("cgroup.controllers", controllers),
            ("cgroup.subtree_control", "memory"),
            ("cgroup.type", "domain"),
            ("cgroup.procs", ""),
        ):
            (made / file).write_text(text)
        return made

    def delegate(self) -> None:
        if os.getuid() == 0:
            try:
                os.setxattr(self.branch, "user.delegate", b"1")
            except OSError as error:
                pytest.skip(f"this file system keeps no marks: {error}")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_a_delegated_branch_is_used_and_its_controllers_are_switched_on(tree: Tree) -> None:
    tree.delegate()
    assert find(tree.proc) == Branch(tree.branch, ("memory", "pids"), "")
    assert (tree.branch / "cgroup.subtree_control").read_text() == "+pids"
    assert not list(tree.branch.glob("agentd-trial-*"))


def test_a_branch_with_one_controller_is_used_and_the_other_is_missed(tree: Tree) -> None:
    tree.group("agentd.service", controllers="cpu pids")
    tree.delegate()
    found = find(tree.proc)
    assert (found.folder, found.controllers) == (tree.branch, ("pids",))
    assert "without memory" in found.explanation


def no_version_2(tree: Tree) -> None:
    tree.mount("cgroup")


def no_controllers(tree: Tree) -> None:
    tree.group("agentd.service", controllers="hugetlb")
    tree.delegate()


def not_delegated(tree: Tree) -> None:
    tree.branch.chmod(0o555)


def not_in_a_leaf(tree: Tree) -> None:
    (tree.root / "cgroup.type").write_text("domain")
    tree.be_in("/")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (no_version_2, "this system has no cgroup v2"),
        (no_controllers, "has neither memory nor pids"),
        (not_delegated, "is not delegated to agentd; systemd: `Delegate=memory pids`"),
        (not_in_a_leaf, "not in a leaf of a group of its own"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_missing_is_said_with_how_to_get_it(tree: Tree, change, expected: str) -> None:
    change(tree)
    found = find(tree.proc)
    assert found.folder is None
    assert expected in found.explanation


def test_a_worker_gets_a_group_with_its_limits(tree: Tree) -> None:
    groups = Groups(Branch(tree.branch, ("memory", "pids"), ""))
    assert groups.hold(4711, 1_000_000)
    (group,) = tree.branch.glob("agentd-*-4711")
    written = {file.name: file.read_text() for file in group.iterdir()}
    assert written == {"memory.max": str(1_000_000 + MEMORY_SLACK), "memory.oom.group": "1", "pids.max": "1", "cgroup.procs": "4711"}


def test_the_group_of_a_worker_that_has_ended_is_removed(tree: Tree) -> None:
    groups = Groups(Branch(tree.branch, (), ""))
    groups.hold(4711, 1_000_000)
    (group,) = tree.branch.glob("agentd-*-4711")
    groups.sweep()
    assert group.exists(), "the kernel refuses while it holds a process; here a file does"
    (group / "cgroup.procs").unlink()
    groups.sweep()
    assert not group.exists()


def test_a_branch_that_refuses_is_told_once_and_stops_nothing(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    groups = Groups(Branch(tree.root / "gone" / "away", ("pids",), ""))
    assert not groups.hold(1, 1)
    assert not groups.hold(2, 1)
    assert caplog.text.count("held by rlimits only") == 1


async def test_where_this_machine_delegates_a_branch_a_worker_is_held_by_it() -> None:
    branch = await asyncio.to_thread(find)
    if branch.folder is None:
        pytest.skip(branch.explanation)
    async with await Zygote.start() as zygote:
        assert zygote.isolation.cgroup == branch.controllers
        worker = await PolicyWorker.start(
            zygote,
            source=Source(
                digest="d", files={"controller.py": "class P:\n    def act(self, o):\n        return 1\n"}, entrypoint="controller:P"
            ),
            revision=make_revision("a", "d", {}),
            limits=Limits(step_timeout=20, load_timeout=30),
            on_log=print,
        )
        (group,) = branch.folder.glob(f"agentd-*-{worker.pid}")
        assert (await asyncio.to_thread((group / "cgroup.procs").read_text)).split() == [str(worker.pid)]
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerDied):
            await worker.act("a", 0, 1)
        await worker.aclose()
    assert not group.exists()


async def test_a_zygote_says_what_holds_its_workers() -> None:
    branch = await asyncio.to_thread(find)
    async with await Zygote.start() as zygote:
        assert zygote.isolation.cgroup == branch.controllers
        assert branch.explanation in ("", zygote.isolation.explanation[-1])
