"""Three ways of making good code bad, for the demo: what `agentd submit` is given on purpose, and what agentd must stop.

Each takes the source text of a code parameter (one method: `self`, then a list of readings) and returns a changed one, whatever law and
whatever numbers the text holds: the demo's robot has learned other ones by then. Signature and documentation stay; comments do not.
"""

import ast
from collections.abc import Callable, Mapping
from types import MappingProxyType

_SPYING = """
blocked = []
for attempt in (lambda: open("/etc/passwd"), lambda: __import__("socket").socket()):
    try:
        with attempt() as opened:
            opened.fileno()
    except Exception as error:
        blocked.append(f"{type(error).__name__}: {error}")
if len(blocked) == 2:
    raise RuntimeError(" and ".join(blocked))
"""

_COARSE = "{readings} = [0.5 * round(float(reading) / 0.5) for reading in {readings}]"

_INATTENTIVE = """
if abs(float({readings}[2])) < 0.03:
    return 0
"""


def reads_a_file(code: str) -> str:
    """`code` that first reads /etc/passwd and opens a socket. Only if both are refused does it raise, with the reasons.

    It acts like `code` as soon as one of them succeeds, and the import is hidden in `__import__`: the sandbox alone can stop it.
    """
    return _begin_with(code, _SPYING)


def worse(code: str) -> str:
    """`code` on readings rounded to halves: hardly a lean is seen before the pole has fallen."""
    return _begin_with(code, _COARSE)


def subtly_worse(code: str) -> str:
    """`code` that looks away, and pushes to the left, while the pole is within 0.03 rad of upright: it balances, but the cart wanders off.

    What that costs hardly depends on the law: a shifted or rounded reading costs nothing where the law gives that reading no weight.
    """
    return _begin_with(code, _INATTENTIVE)


BAD_REVISIONS: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {"reads-a-file": reads_a_file, "worse": worse, "subtly-worse": subtly_worse}
)
"""By the names under which the demo shows them."""


def _begin_with(code: str, statements: str) -> str:
    """`code` whose function runs `statements` first; `{readings}` in them is its last argument. Raises ValueError for no function."""
    tree = ast.parse(code)
    function = tree.body[0] if tree.body else None
    if not isinstance(function, ast.FunctionDef) or not function.args.args:
        raise ValueError("expected the source text of one function with an argument")
    inserted = ast.parse(statements.replace("{readings}", function.args.args[-1].arg)).body
    after_documentation = int(ast.get_docstring(function, clean=False) is not None)
    function.body[after_documentation:after_documentation] = inserted
    return ast.unparse(tree) + "\n"
