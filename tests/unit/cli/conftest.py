"""The command line against a real server on a real socket, with the small agent of tests/unit/api behind it."""

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "api"))

from api_bench import Api, open_api
from typer.testing import CliRunner

from agentd.api.server import serve
from agentd.cli.app import app
from agentd.settings import remove_address, write_address


@dataclass
class Cli:
    """`await cli("status", "cartpole")` runs `agentd status cartpole --state ...` as a shell would, in a thread."""

    folder: Path
    api: Api

    async def __call__(self, *arguments: str, state: bool = True):
        where = ["--state", str(self.folder)] if state else []
        return await asyncio.to_thread(CliRunner().invoke, app, [*arguments, *where])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds a configuration file or a state directory of this machine's."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LOGNAME", "ada")
    monkeypatch.delenv("AGENTD_CONFIG", raising=False)


@pytest.fixture
async def cli(tmp_path: Path) -> AsyncIterator[Cli]:
    """With a daemon's API that answers."""
    async with open_api(tmp_path) as api, serve(api.app, "127.0.0.1", 0) as address:
        write_address(tmp_path, address.url)
        yield Cli(tmp_path, api)


@pytest.fixture
async def lonely(tmp_path: Path) -> Cli:
    """With a store that a daemon left behind, and no daemon."""
    async with open_api(tmp_path) as api:
        left = Cli(tmp_path, api)
    remove_address(tmp_path)
    return left
