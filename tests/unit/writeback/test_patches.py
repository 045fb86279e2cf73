"""Patches that git and patch apply: in a repository, in a folder of one, and outside of any."""

import shutil
import subprocess

import pytest

from agentd.writeback import unified_diff

BEFORE = {"controller.py": "a = 1\nb = 2\nc = 3\n", "deep/my gains.py": "x = 1\ny = 2", "crlf.py": "a\r\nb\r\nc\r\n"}
AFTER = {"controller.py": "a = 1\nb = 5\nc = 3\n", "deep/my gains.py": "x = 1\ny = 3", "crlf.py": "a\r\nB\r\nc\r\n"}
MESSAGE = "A learned value\n\nbecause of this\n\n"


def write(folder):
    for file, text in BEFORE.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())


def read(folder):
    return {file: (folder / file).read_bytes().decode() for file in BEFORE}


def run(folder, *words, text=None):
    ran = subprocess.run(
        words, check=False, cwd=folder, input=text.encode(), capture_output=True, env={"PATH": "/usr/bin:/bin", "HOME": str(folder)}
    )
    assert ran.returncode == 0, ran.stderr.decode()


@pytest.mark.parametrize("where", ["repository", "folder of a repository", "nowhere"])
def test_git_applies_it_from_the_agents_folder(tmp_path, where):
    agent = tmp_path / "controllers" / "robot" if where == "folder of a repository" else tmp_path
    if where != "nowhere":
        run(tmp_path, "git", "init", "-q", text="")
    write(agent)
    run(agent, "git", "apply", "-", text=MESSAGE + unified_diff(BEFORE, AFTER))
    assert read(agent) == AFTER


def test_git_applies_it_from_the_repositorys_root_with_the_agents_directory(tmp_path):
    run(tmp_path, "git", "init", "-q", text="")
    write(tmp_path / "robot")
    run(tmp_path, "git", "apply", "-p1", "--directory=robot", "-", text=MESSAGE + unified_diff(BEFORE, AFTER))
    assert read(tmp_path / "robot") == AFTER


@pytest.mark.skipif(shutil.which("patch") is None, reason="GNU patch is not installed")
def test_patch_applies_it(tmp_path):
    write(tmp_path)
    run(tmp_path, "patch", "-p1", "--binary", text=MESSAGE + unified_diff(BEFORE, AFTER))
    assert read(tmp_path) == AFTER


def test_it_is_made_to_be_read():
    assert unified_diff(BEFORE, {"controller.py": AFTER["controller.py"]}) == (
        "--- a/controller.py\n+++ b/controller.py\n@@ -1,3 +1,3 @@\n a = 1\n-b = 2\n+b = 5\n c = 3\n"
    )
    assert unified_diff(BEFORE, {}) == ""
