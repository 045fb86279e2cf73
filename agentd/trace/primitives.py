"""The built-in operators as plain functions on plain values, with their names, arguments and documentation.

`agentd.trace.nodes` hangs them on Node, `agentd.trace.operators` offers them as functions.
In-place methods of containers have a copying form here (`list_append`): a node's value never changes behind its graph.
"""

import builtins
import copy
import math
import operator
from collections.abc import Callable
from typing import Any

from agentd.trace.forms import Operator

PRIMITIVES: dict[str, Operator] = {}
ARGUMENTS: dict[str, tuple[str, ...]] = {}


def _primitive(name: str, arguments: str, documentation: str, function: Callable[..., Any]) -> None:
    PRIMITIVES[name] = Operator(name, f"[{name}] {documentation}", function)
    ARGUMENTS[name] = tuple(arguments.split())


def _copying(method: str) -> Callable[..., Any]:
    """The in-place `method` of a container, on a shallow copy that is returned."""

    def on_copy(container: Any, *args: Any, **kwargs: Any) -> Any:
        made = copy.copy(container)
        getattr(made, method)(*args, **kwargs)
        return made

    return on_copy


def _of_type(kind: type, method: str) -> Callable[..., Any]:
    """A method that only values of `kind` have; its result, made a list."""

    def checked(value: Any) -> Any:
        if not isinstance(value, kind):
            raise AttributeError(f"{type(value).__name__!r} object has no attribute {method!r}")  # noqa: TRY004 - as the value would
        return list(getattr(value, method)())

    return checked


def _round(x: Any, n: Any = None) -> Any:
    return builtins.round(x) if n is None else builtins.round(x, n)


_primitive("clone", "x", "A deep copy of x.", copy.deepcopy)
_primitive("pos", "x", "+x.", operator.pos)
_primitive("neg", "x", "-x.", operator.neg)
_primitive("abs", "x", "The absolute value of x.", operator.abs)
_primitive("invert", "x", "~x, the bitwise inverse.", operator.invert)
_primitive("round", "x n", "x rounded to n digits.", _round)
_primitive("floor", "x", "The largest integer not above x.", math.floor)
_primitive("ceil", "x", "The smallest integer not below x.", math.ceil)
_primitive("trunc", "x", "x without its fraction.", math.trunc)
_primitive("add", "x y", "x + y.", operator.add)
_primitive("subtract", "x y", "x - y.", operator.sub)
_primitive("multiply", "x y", "x * y.", operator.mul)
_primitive("matrix_multiply", "x y", "x @ y.", operator.matmul)
_primitive("floor_divide", "x y", "x // y.", operator.floordiv)
_primitive("divide", "x y", "x / y.", operator.truediv)
_primitive("mod", "x y", "x % y, the remainder.", operator.mod)
_primitive("node_divmod", "x y", "The pair (x // y, x % y).", builtins.divmod)
_primitive("power", "x y", "x ** y.", operator.pow)
_primitive("lshift", "x y", "x << y.", operator.lshift)
_primitive("rshift", "x y", "x >> y.", operator.rshift)
_primitive("and_", "x y", "x & y.", operator.and_)
_primitive("or_", "x y", "x | y.", operator.or_)
_primitive("xor", "x y", "x ^ y.", operator.xor)
_primitive("lt", "x y", "Whether x < y.", operator.lt)
_primitive("le", "x y", "Whether x <= y.", operator.le)
_primitive("eq", "x y", "Whether x == y.", operator.eq)
_primitive("neq", "x y", "Whether x != y.", operator.ne)
_primitive("ne", "x y", "Whether x != y.", operator.ne)
_primitive("ge", "x y", "Whether x >= y.", operator.ge)
_primitive("gt", "x y", "Whether x > y.", operator.gt)
_primitive("cond", "condition x y", "x if condition holds, else y.", lambda condition, x, y: x if condition else y)
_primitive("not_", "x", "not x.", operator.not_)
_primitive("is_", "x y", "Whether x and y are the same object.", operator.is_)
_primitive("is_not", "x y", "Whether x and y are different objects.", operator.is_not)
_primitive("in_", "x y", "Whether x is in y.", lambda x, y: x in y)
_primitive("not_in", "x y", "Whether x is not in y.", lambda x, y: x not in y)
_primitive("getitem", "x index", "x[index].", operator.getitem)
_primitive("pop", "x index", "Takes the item at index out of x (in place) and gives it.", lambda x, index: x.pop(index))
_primitive("len_", "x", "The number of items of x.", len)
_primitive("ord_", "x", "The code point of the character x.", ord)
_primitive("chr_", "x", "The character with code point x.", chr)
_primitive("concat", "x y", "x + y: the texts joined.", operator.add)
_primitive("lower", "x", "x in lower case.", lambda x: x.lower())
_primitive("upper", "x", "x in upper case.", lambda x: x.upper())
_primitive("title", "x", "x in title case.", lambda x: x.title())
_primitive("swapcase", "x", "x with upper and lower case exchanged.", lambda x: x.swapcase())
_primitive("capitalize", "x", "x with a capital first letter.", lambda x: x.capitalize())
_primitive("split", "x y maxsplit", "The parts of the text x between separators y.", lambda x, y=None, maxsplit=-1: x.split(y, maxsplit))
_primitive("strip", "x chars", "x without the characters chars at its ends.", lambda x, chars=None: x.strip(chars))
_primitive(
    "replace",
    "x old new count",
    "x with old replaced by new, at most count times.",
    lambda x, old, new, count=-1: x.replace(old, new, count),
)
_primitive("format", "x", "The text x with its fields filled in.", lambda x, /, *args, **kwargs: x.format(*args, **kwargs))
_primitive("join", "x", "The other texts joined, with x between them.", lambda x, *y: x.join(y))
_primitive("node_getattr", "obj attr", "The attribute attr of obj.", getattr)
_primitive("to_list", "x", "x as a list.", list)
_primitive("make_list", "", "A list of the arguments.", lambda *args: list(args))
_primitive("to_dict", "x", "x as a dict.", dict)
_primitive("make_dict", "", "A dict of the keyword arguments.", lambda **kwargs: kwargs)
_primitive("to_set", "x", "x as a set.", set)
_primitive("make_set", "", "A set of the arguments.", lambda *args: set(args))
_primitive("to_tuple", "x", "x as a tuple.", tuple)
_primitive("make_tuple", "", "A tuple of the arguments.", lambda *args: args)
_primitive("keys", "x", "The keys of the dict x as a list.", _of_type(dict, "keys"))
_primitive("values", "x", "The values of the dict x as a list.", _of_type(dict, "values"))
_primitive("dict_update", "x y", "A copy of x updated with y.", _copying("update"))
_primitive("dict_pop", "x key", "A copy of x without key.", _copying("pop"))
_primitive("dict_popitem", "x", "A copy of x without its last item.", _copying("popitem"))
_primitive("list_append", "x y", "A copy of x with y appended.", _copying("append"))
_primitive("list_clear", "x", "An empty copy of x.", _copying("clear"))
_primitive("list_extend", "x y", "A copy of x extended with y.", _copying("extend"))
_primitive("list_insert", "x index y", "A copy of x with y inserted at index.", _copying("insert"))
_primitive("list_pop", "x index", "A copy of x without the item at index.", _copying("pop"))
_primitive("list_remove", "x y", "A copy of x without the first y.", _copying("remove"))
_primitive("list_reverse", "x", "A reversed copy of x.", _copying("reverse"))
_primitive(
    "list_sort",
    "x key reverse",
    "A sorted copy of x.",
    lambda x, key=None, reverse=False: _copying("sort")(x, key=key, reverse=reverse),
)
_primitive("set_add", "x y", "A copy of x with y added.", _copying("add"))
_primitive("set_clear", "x", "An empty copy of x.", _copying("clear"))
_primitive("set_discard", "x y", "A copy of x without y.", _copying("discard"))
_primitive("set_intersection_update", "x y", "The items that x and y share.", _copying("intersection_update"))
_primitive("set_pop", "x", "A copy of x without an arbitrary item.", _copying("pop"))
_primitive("set_remove", "x y", "A copy of x without y, which must be there.", _copying("remove"))
_primitive("set_symmetric_difference_update", "x y", "The items in exactly one of x and y.", _copying("symmetric_difference_update"))
_primitive("set_update", "x y", "The items of x and of y.", _copying("update"))
