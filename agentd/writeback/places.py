"""Where a parameter's value is written: its attribute path, followed from the entrypoint through the syntax of the agent's folder.

Followed are classes, their bases, `self.name = ...` in methods, attributes of classes, lists and dicts, and objects of classes of the
folder. A place is found only where exactly one piece of text can be meant: a literal in `node(...)`, or a bundled function. Anything
else is an Obstacle that says why; nothing is guessed.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from agentd.writeback.modules import FUNCTIONS, LOOPS, Folder, Found, Module, Obstacle

_MAX_DEPTH = 16
_ARRAYS = frozenset({"numpy.array", "numpy.asarray"})


@dataclass(frozen=True, slots=True)
class Place:
    """A literal, or a function, in `module`.

    `shared` is True where other objects may have been made by the same text, `is_array` where numpy makes an array of the literal whose
    kind of numbers follows from it.
    """

    module: Module
    node: ast.expr | ast.FunctionDef | ast.AsyncFunctionDef
    shared: bool = False
    is_array: bool = False

    @property
    def is_code(self) -> bool:
        """Whether it is a function and not a literal."""
        return isinstance(self.node, FUNCTIONS)

    @property
    def where(self) -> str:
        """For people."""
        return self.module.at(self.node)

    @property
    def key(self) -> tuple[str, int]:
        """The same for the same place."""
        return self.module.file, self.module.span(self.node)[0]


def locate(files: Mapping[str, str], entrypoint: str, path: str) -> Place:
    """The place of the parameter `path`. Raises Obstacle."""
    folder = Folder(files)
    name, _, attribute = entrypoint.partition(":")
    module = folder.module(name)
    found = folder.definition(module, ast.Name(attribute, ast.Load())) if module is not None else None
    if found is None:
        raise Obstacle(f"{entrypoint} can't be found in the source")
    if not isinstance(found.node, ast.ClassDef):
        raise Obstacle(f"{entrypoint} is no class but a factory ({found.module.at(found.node)}): what it makes is only known when it runs")
    return _Search(folder).in_class(found, path, 0)


@dataclass(frozen=True, slots=True)
class _Store:
    """`self.name = value` in a method (None: not a plain assignment); `loop` where it is in one."""

    module: Module
    method: ast.FunctionDef | ast.AsyncFunctionDef
    node: ast.AST
    value: ast.expr | None
    loop: bool


class _Search:
    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    # --- classes -----------------------------------------------------------------------------------------------------

    def in_class(self, owner: Found, path: str, depth: int) -> Place:
        """The place of `path` in an instance of a class."""
        name, _, rest = path.partition(".")
        if depth > _MAX_DEPTH:
            raise Obstacle(f"{name} leads round in a circle")
        family = list(self._family(owner))
        self._refuse_stores_from_outside(name)
        stores = [store for member in family for store in _stores(member, name)]
        if len(stores) > 1:
            raise Obstacle(f"self.{name} is set in several places: {', '.join(store.module.at(store.node) for store in stores)}")
        if stores:
            return self._stored(stores[0], name, rest, depth)
        for member in family:
            place = self._in_body(member, name, rest, depth)
            if place is not None:
                return place
        raise Obstacle(f"no text sets {name}: it is made while the program runs")

    def _family(self, owner: Found, depth: int = 0) -> Iterator[Found]:
        """A class and its bases in this folder, nearest first."""
        yield owner
        assert isinstance(owner.node, ast.ClassDef)  # noqa: S101 - only classes come here
        for base in owner.node.bases:
            found = self._folder.definition(owner.module, base)
            if found is not None and isinstance(found.node, ast.ClassDef) and depth < _MAX_DEPTH:
                yield from self._family(found, depth + 1)

    def _refuse_stores_from_outside(self, name: str) -> None:
        """`robot.gain = ...` from outside of the class may be what the program runs with."""
        for module in self._folder.modules():
            classes = [Found(module, node) for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)]
            inside = {id(node) for owner in classes for method in _methods(owner) for node in _self_stores(method, name)}
            for node in ast.walk(module.tree):
                if isinstance(node, ast.Attribute) and node.attr == name and not isinstance(node.ctx, ast.Load) and id(node) not in inside:
                    raise Obstacle(f"{name} is also set from outside of its class ({module.at(node)})")

    def _stored(self, store: _Store, name: str, rest: str, depth: int) -> Place:
        if store.value is None:
            raise Obstacle(f"self.{name} is set in a way that can't be followed ({store.module.at(store.node)})")
        if store.loop:
            raise Obstacle(f"self.{name} is set in a loop ({store.module.at(store.node)})")
        return self._follow(store.module, store.value, rest, store.method, depth)

    def _in_body(self, owner: Found, name: str, rest: str, depth: int) -> Place | None:
        """`name` in the body of a class: a bundled method, or an attribute of the class."""
        assert isinstance(owner.node, ast.ClassDef)  # noqa: S101 - only classes come here
        bound: list[ast.AST] = []
        for statement in owner.node.body:
            match statement:
                case ast.FunctionDef(name=defined) | ast.AsyncFunctionDef(name=defined) | ast.ClassDef(name=defined) if defined == name:
                    bound.append(statement)
                case ast.Assign(targets=targets, value=value) if any(isinstance(one, ast.Name) and one.id == name for one in targets):
                    bound.append(value)
                case ast.AnnAssign(target=ast.Name(id=defined), value=ast.expr() as value) if defined == name:
                    bound.append(value)
                case ast.If() | ast.Try() | ast.For() | ast.While() | ast.With():
                    bound += [node for node in ast.walk(statement) if _binds(node, name)]
        if not bound:
            return None
        if len(bound) > 1:
            raise Obstacle(f"{name} is defined in several places: {', '.join(owner.module.at(node) for node in bound)}")
        if isinstance(bound[0], FUNCTIONS):
            return self._bundled(owner.module, bound[0], rest)
        if not isinstance(bound[0], ast.expr):
            raise Obstacle(f"{name} is defined in a way that can't be followed ({owner.module.at(bound[0])})")
        return self._follow(owner.module, bound[0], rest, None, depth)

    # --- expressions -------------------------------------------------------------------------------------------------

    def _follow(  # noqa: C901, PLR0911, PLR0912 - a case per way of holding a parameter
        self, module: Module, value: ast.expr, rest: str, method: ast.FunctionDef | ast.AsyncFunctionDef | None, depth: int
    ) -> Place:
        """The place of `rest` in what `value` makes."""
        match value:
            case ast.Call(func=function):
                called = "" if _is_local(method, function) else self._folder.qualified(module, function)
                if _is_trace(called, "node", "ParameterNode"):
                    if rest:
                        raise Obstacle(f"a node has no parts ({module.at(value)})")
                    return self._literal(module, value)
                if _is_trace(called, "Seq", "Map") and not value.keywords and value.args:
                    inner = value.args[0]
                    whole = len(value.args) == 1 and isinstance(inner, ast.List | ast.Tuple | ast.Dict)
                    return self._follow(module, inner if whole else ast.List(value.args, ast.Load()), rest, method, depth)
                made = None if _is_local(method, function) else self._folder.definition(module, function)
                if made is not None and isinstance(made.node, ast.ClassDef) and rest:
                    found = self.in_class(made, rest, depth + 1)
                    return replace(found, shared=True)
                raise Obstacle(f"it is made by {ast.unparse(function)}(...) ({module.at(value)})")
            case ast.List(elts=items) | ast.Tuple(elts=items):
                index, _, below = rest.partition(".")
                if not index.isdecimal() or int(index) >= len(items) or any(isinstance(item, ast.Starred) for item in items):
                    raise Obstacle(f"it is no element that is written out ({module.file})")
                return self._follow(module, items[int(index)], below, method, depth + 1)
            case ast.Dict(keys=keys, values=values):
                fitting = [
                    (key, item)
                    for key, item in zip(keys, values, strict=True)
                    if isinstance(key, ast.Constant) and f"{rest}.".startswith(f"{key.value!s}.")
                ]
                if len(fitting) != 1 or None in keys:
                    raise Obstacle(f"it is no entry that is written out ({module.at(value)})")
                key, item = fitting[0]
                return self._follow(module, item, rest[len(str(key.value)) + 1 :], method, depth + 1)
            case ast.Name(ctx=ast.Store()):
                raise Obstacle(f"{value.id} is set in a way that can't be followed ({module.at(value)})")
            case ast.Name() | ast.Attribute():
                if _is_local(method, value):
                    raise Obstacle(f"it comes from the variable {ast.unparse(value)} ({module.at(value)})")
                found_name = self._folder.definition(module, value)
                if found_name is not None and isinstance(found_name.node, FUNCTIONS):
                    return replace(self._bundled(found_name.module, found_name.node, rest), shared=True)
                if found_name is not None and isinstance(found_name.node, ast.expr) and depth < _MAX_DEPTH:
                    return self._follow(found_name.module, found_name.node, rest, None, depth + 1)
                raise Obstacle(f"it comes from {ast.unparse(value)} ({module.at(value)})")
        if isinstance(value, LOOPS):
            raise Obstacle(f"it is made in a loop ({module.at(value)})")
        raise Obstacle(f"it is computed by {_excerpt(value)} ({module.at(value)})")

    def _literal(self, module: Module, call: ast.Call) -> Place:
        """The value in `node(value, ...)`: a literal, also that of an array."""
        given = [*call.args[:1], *(keyword.value for keyword in call.keywords if keyword.arg == "data")]
        if len(given) != 1 or any(keyword.arg is None for keyword in call.keywords):
            raise Obstacle(f"the value of {_excerpt(call)} can't be told ({module.at(call)})")
        value, is_array = given[0], False
        match value:
            case ast.Call(func=function, args=[inner], keywords=keywords) if self._folder.qualified(module, function) in _ARRAYS:
                value, is_array = inner, not keywords
        try:
            ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise Obstacle(f"its value is {_excerpt(value)}, which is no literal ({module.at(value)})") from None
        return Place(module, value, is_array=is_array)

    def _bundled(self, module: Module, function: ast.FunctionDef | ast.AsyncFunctionDef, rest: str) -> Place:
        calls = [item for item in function.decorator_list if isinstance(item, ast.Call)]
        if rest or not any(_is_trace(self._folder.qualified(module, item.func), "bundle") for item in calls):
            raise Obstacle(f"{function.name} is not a function that is bundled where it is defined ({module.at(function)})")
        return Place(module, function)


def _methods(owner: Found) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    if isinstance(owner.node, ast.ClassDef):
        yield from (item for item in owner.node.body if isinstance(item, FUNCTIONS))


def _self_name(method: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    arguments = [*method.args.posonlyargs, *method.args.args]
    return arguments[0].arg if arguments else ""


def _self_stores(method: ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> Iterator[ast.Attribute]:
    own = _self_name(method)
    for node in ast.walk(method):
        match node:
            case ast.Attribute(value=ast.Name(id=owner), attr=attribute, ctx=ast.Store() | ast.Del()) if owner == own and attribute == name:
                yield node


def _stores(owner: Found, name: str) -> Iterator[_Store]:
    for method in _methods(owner):
        targets = {id(node) for node in _self_stores(method, name)}
        if not targets:
            continue
        parents = {id(child): node for node in ast.walk(method) for child in ast.iter_child_nodes(node)}
        for target in (node for node in ast.walk(method) if id(node) in targets):
            statement = parents[id(target)]
            above: ast.AST = statement
            loop = False
            while above is not method:
                loop = loop or isinstance(above, LOOPS | FUNCTIONS | ast.Lambda)
                above = parents[id(above)]
            value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
            yield _Store(owner.module, method, target, value, loop)


def _binds(node: ast.AST, name: str) -> bool:
    return (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == name) or (
        isinstance(node, FUNCTIONS) and node.name == name
    )


def _is_local(method: ast.FunctionDef | ast.AsyncFunctionDef | None, expression: ast.expr) -> bool:
    """Whether the first name of `expression` is one of the method's own."""
    while isinstance(expression, ast.Attribute):
        expression = expression.value
    if method is None or not isinstance(expression, ast.Name):
        return False
    return any(
        (isinstance(node, ast.arg) and node.arg == expression.id)
        or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == expression.id)
        or (isinstance(node, ast.alias) and (node.asname or node.name).partition(".")[0] == expression.id)
        or (isinstance(node, ast.ClassDef | FUNCTIONS) and node is not method and node.name == expression.id)
        for node in ast.walk(method)
    )


def _is_trace(qualified: str, *names: str) -> bool:
    package, _, name = qualified.rpartition(".")
    return name in names and (package == "agentd.trace" or package.startswith("agentd.trace."))


def _excerpt(expression: ast.AST) -> str:
    text = ast.unparse(expression)
    return text if len(text) <= 60 else f"{text[:57]}..."
