"""Looking at processes from outside."""

from pathlib import Path


def alive(pid: int) -> bool:
    """Whether a process runs. One that has ended may wait for its parent, often init in no hurry, to take note of it."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in {"Z", "X"}
