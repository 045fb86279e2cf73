"""The ready agents are found in a checkout and in a wheel."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from agentd.errors import SourceError
from agentd.ready import find, folders

ROOT = Path(__file__).resolve().parents[2]


def test_a_ready_agent_is_found_by_its_name():
    assert find("cartpole") == ROOT / "controllers" / "cartpole"
    assert (find("pendulum") / "agent.toml").is_file()


def test_an_unknown_name_is_answered_with_those_that_exist():
    with pytest.raises(SourceError, match=r"there is no ready agent 'unicycle'; there are: .*cartpole, pendulum"):
        find("unicycle")


@pytest.mark.parametrize("name", ["", ".", "..", "../controllers/cartpole", "/etc"])
def test_a_name_is_no_path(name):
    with pytest.raises(SourceError):
        find(name)


def test_an_installation_without_ready_agents_says_so(tmp_path):
    assert folders(tmp_path / "agentd") == ()
    with pytest.raises(SourceError, match="there are: none"):
        find("cartpole", tmp_path / "agentd")


@pytest.mark.timeout(120)
def test_a_wheel_brings_the_ready_agents_and_finds_them(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=ROOT, check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("agentd-*.whl")
    installed = tmp_path / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    found = {folder.name: folder for folder in folders(installed / "agentd")}
    assert set(found) == {folder.name for folder in folders()}
    for name, folder in found.items():
        shipped = {path.name for path in folder.iterdir()}
        assert {"agent.toml", "feedback.py", "README.md"} <= shipped
        entrypoint = tomllib.loads((folder / "agent.toml").read_text())["agent"]["entrypoint"]
        assert f"{entrypoint.partition(':')[0]}.py" in shipped, name
        assert folder.is_relative_to(installed / "agentd" / "_ready"), name
        assert not [path for path in folder.rglob("*") if path.suffix == ".pyc"]
