"""Unified diffs that `git apply` and `patch -p1` take."""

import difflib
import re
from collections.abc import Mapping

_NO_END = "\\ No newline at end of file\n"


def unified_diff(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """The patch from the files `before` to those of `after`, which has only changed ones; names are relative to the agent's folder.

    There is no `diff --git` line: with it, git would take the names as relative to the repository and skip the files when it is run in
    a folder of one.
    """
    parts: list[str] = []
    for file in sorted(after):
        old, new = _lines(before[file]), _lines(after[file])
        diff = difflib.unified_diff(old, new, _name(f"a/{file}"), _name(f"b/{file}"))
        parts += [line if line.endswith("\n") else f"{line}\n{_NO_END}" for line in diff]
    return "".join(parts)


def _lines(text: str) -> list[str]:
    return re.findall(r"[^\n]*\n|[^\n]+\Z", text)


def _name(name: str) -> str:
    """A file name as git quotes it; one with a space is ended by a tab, or what comes behind would be taken for a date."""
    if re.search(r'["\\\x00-\x1f\x7f]', name):
        escaped = re.sub(r'["\\\x00-\x1f\x7f]', lambda found: f"\\{ord(found[0]):03o}", name)
        return f'"{escaped}"'
    return f"{name}\t" if " " in name else name
