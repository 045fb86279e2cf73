"""The ready agents that agentd ships: where their folders are, in a checkout and in an installed wheel alike."""

from pathlib import Path

from agentd.errors import SourceError

_PACKAGE = Path(__file__).resolve().parent


def folders(package: Path = _PACKAGE) -> tuple[Path, ...]:
    """The folders of all ready agents, controllers first, by name."""
    return tuple(
        path for shelf in _shelves(package) if shelf.is_dir() for path in sorted(shelf.iterdir()) if (path / "agent.toml").is_file()
    )


def find(name: str, package: Path = _PACKAGE) -> Path:
    """The folder of the ready agent `name`. Raises SourceError that lists what there is."""
    for folder in folders(package):
        if folder.name == name:
            return folder
    names = ", ".join(folder.name for folder in folders(package)) or "none"
    raise SourceError(f"there is no ready agent {name!r}; there are: {names}")


def _shelves(package: Path) -> tuple[Path, Path]:
    installed = package / "_ready"  # a wheel has them inside the package, a checkout beside it
    root = installed if installed.is_dir() else package.parent
    return root / "controllers", root / "policies"
