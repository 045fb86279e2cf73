"""`agentd init`: an existing Trace program becomes an agent; its own files stay as they are.

The program is read, not run, until the end: then a locked worker loads it as `agentd run` would, and says what is trainable.
"""

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

from rich.console import Console

from agentd.cases import read_cases, split
from agentd.cli import show as views
from agentd.cli.context import JsonObject, UsageMistake
from agentd.errors import AgentdError, SourceError
from agentd.records import Parameter, make_revision
from agentd.sandbox import Limits, PolicyWorker, Zygote
from agentd.sandbox.loader import ALWAYS_ALLOWED
from agentd.source import Entrypoint
from agentd.spec import load_agent

VALIDATION = 0.3
_ALLOWED = ("math", "numpy")

_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for on the command line. `args` are for the program's constructor."""

    program: str
    guide: str
    data: Path
    folder: Path
    name: str = ""
    input_key: str = "input"
    reference_key: str = "reference"
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Written:
    """What was made, and what it was made of."""

    name: str
    files: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    training: int
    validation: int


@dataclass(frozen=True, slots=True)
class _Program:
    """A module's class or function, as its text says. `inputs` are what a call needs; `acts` if it is a policy already."""

    entrypoint: Entrypoint
    tree: ast.Module
    definition: ast.ClassDef | _Function
    inputs: tuple[str, ...]
    acts: bool


async def init(options: Options) -> Written:
    """Write agent.toml, and what else it takes, beside the program.

    Raises:
        UsageMistake: the program, its guide or its data can't be used, or the folder is an agent already.
        SourceError: the program can't be loaded; nothing is left behind.
    """
    folder = options.folder
    if (folder / "agent.toml").exists():
        raise UsageMistake(f"{folder / 'agent.toml'} is there already")
    program = _program(folder, options)
    cases = read_cases(options.data, input_key=options.input_key, reference_key=options.reference_key)
    parts = split(cases, VALIDATION)
    files, entrypoint, feedback = _wrappers(folder, program, options.guide)
    name = options.name or re.sub(r"[^a-z0-9]+", "-", program.entrypoint.module.lower()).strip("-")
    files["agent.toml"] = _agent_toml(name, entrypoint, feedback, program, options)
    for file, content in files.items():
        (folder / file).write_text(content, encoding="utf-8")
    try:
        parameters = await _trainable(folder)
    except BaseException:
        for file in files:
            (folder / file).unlink()
        raise
    return Written(name, tuple(sorted(files)), parameters, len(parts.train), len(parts.validation))


async def _trainable(folder: Path) -> tuple[Parameter, ...]:
    """What a locked worker finds. Raises SourceError where it can't load the program, or where there is nothing to train."""
    spec, source = load_agent(folder)
    limits = Limits.from_spec(spec.sandbox)
    try:
        async with (
            await Zygote.start(
                imports=limits.allowed_imports, min_isolation=spec.sandbox.min_isolation, scope=spec.sandbox.scope
            ) as zygote,
            await PolicyWorker.start(
                zygote, source=source, revision=make_revision(spec.agent.name, source.digest, {}), limits=limits, on_log=_ignore
            ) as worker,
        ):
            parameters = worker.parameters
    except AgentdError as error:
        raise SourceError(f"{source.entrypoint} can't be hosted: {error}") from error
    if not parameters:
        raise SourceError(f"{source.entrypoint} has nothing trainable: mark it with node(..., trainable=True) or @bundle(trainable=True)")
    return parameters


def _ignore(line: str) -> None:
    """What the program prints while it is loaded."""


def argument(text: str) -> tuple[str, Any]:
    """`name=value`; the value is JSON where it can be, else text. Raises UsageMistake."""
    name, equals, written = text.partition("=")
    if not equals or not name.isidentifier():
        raise UsageMistake(f"an argument should be name=value, not {text}")
    try:
        value = json.loads(written)
    except ValueError:
        return name, written
    if not _is_toml(value):
        raise UsageMistake(f"--arg {name}: a text, a number, true, false or a list of these can stand in agent.toml, not {written}")
    return name, value


def _is_toml(value: Any) -> bool:
    """Whether TOML writes it as JSON does."""
    return all(map(_is_toml, value)) if isinstance(value, list) else isinstance(value, bool | int | float | str)


def as_json(written: Written) -> JsonObject:
    """For other programs."""
    return {
        "agent": written.name,
        "files": list(written.files),
        "parameters": [{"path": parameter.path, "kind": str(parameter.kind)} for parameter in written.parameters],
        "training": written.training,
        "validation": written.validation,
    }


def print_written(out: Console, written: Written, folder: Path) -> None:
    """For people."""
    out.print(views.text(f"wrote {', '.join(str(folder / file) for file in written.files)}"))
    out.print(views.text(f"{written.training} cases to learn from, {written.validation} held back to decide"))
    out.print(views.text("trainable:"))
    rows = [(parameter.path, parameter.kind, parameter.signature or parameter.description) for parameter in written.parameters]
    out.print(views.indented(views.table(("", "", ""), rows)))
    out.print(views.text(f"`agentd optimize {folder}` improves it here, `agentd run --agents {folder}` hosts it"))


# --- reading the program --------------------------------------------------------------------------------------------------


def _program(folder: Path, options: Options) -> _Program:
    entrypoint, tree = _module(folder, options.program)
    definition = _definition(tree, entrypoint)
    if isinstance(definition, _Function):
        return _Program(entrypoint, tree, definition, _required(definition, 0), acts=False)
    methods = {statement.name: statement for statement in definition.body if isinstance(statement, _Function)}
    needed = set(_required(methods["__init__"], 1)) - set(options.args) if "__init__" in methods else set()
    if needed:
        names = " ".join(f"--arg {name}=..." for name in sorted(needed))
        raise UsageMistake(f"{entrypoint.name} can't be made without {', '.join(sorted(needed))}: give {names}")
    call = methods.get("__call__") or methods.get("forward")
    inputs = _required(call, 1) if call is not None else ("observation",)
    return _Program(entrypoint, tree, definition, inputs or ("observation",), acts="act" in methods)


def _module(folder: Path, text: str) -> tuple[Entrypoint, ast.Module]:
    try:
        entrypoint = Entrypoint.parse(text)
    except ValueError as error:
        raise UsageMistake(str(error)) from error
    path = next((folder / file for file in entrypoint.files if (folder / file).is_file()), None)
    if path is None:
        raise UsageMistake(f"there is no {folder / entrypoint.files[0]}")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise UsageMistake(f"{path}: not Python: {error}") from error
    for statement in ast.walk(tree):
        for module in _imported(statement):
            if module.partition(".")[0] == "opto":
                line = getattr(statement, "lineno", 0)
                advice = "agentd.trace in place of opto.trace and agentd.opto in place of opto.optimizers let it run as it is"
                raise UsageMistake(f"{path}, line {line}: imports {module}; {advice}")
    return entrypoint, tree


def _definition(tree: ast.Module, entrypoint: Entrypoint) -> ast.ClassDef | _Function:
    found = {statement.name: statement for statement in tree.body if isinstance(statement, ast.ClassDef | _Function)}
    if entrypoint.name not in found:
        raise UsageMistake(f"{entrypoint.files[0]} defines no {entrypoint.name}; it defines: {', '.join(found) or 'nothing'}")
    return found[entrypoint.name]


def _required(function: _Function, bound: int) -> tuple[str, ...]:
    """The arguments that a call must give, without the first `bound`."""
    arguments = [*function.args.posonlyargs, *function.args.args]
    count = len(arguments) - len(function.args.defaults)
    only_named = [item.arg for item, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True) if default is None]
    return (*(item.arg for item in arguments[bound:count]), *only_named)


def _imported(statement: ast.AST) -> Iterable[str]:
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    return [statement.module] if isinstance(statement, ast.ImportFrom) and statement.module and not statement.level else []


# --- writing around it ----------------------------------------------------------------------------------------------------


def _wrappers(folder: Path, program: _Program, guide: str) -> tuple[dict[str, str], str, str]:
    """The files to write, the entrypoint of the policy and that of the feedback."""
    files: dict[str, str] = {}
    entrypoint = ":".join(program.entrypoint)
    if not program.acts:
        module = _free(folder, "hosted")
        files[f"{module}.py"] = _hosted(program)
        entrypoint = f"{module}:Hosted"
    of_guide, tree = _module(folder, guide)
    definition = _definition(tree, of_guide)
    if not isinstance(definition, ast.FunctionDef):
        raise UsageMistake(f"{guide} should be a function of the answer and the reference")
    # A default doesn't make an argument less of one: Trace's own example has a default for the reference.
    count = len(definition.args.posonlyargs) + len(definition.args.args)
    if count == 1:
        return files, entrypoint, ":".join(of_guide)
    given = {2: "step.action, reference", 3: "step.observation, step.action, reference"}.get(count)
    if given is None:
        raise UsageMistake(f"{guide} takes {count} arguments; known are (episode), (answer, reference) and (input, answer, reference)")
    module = _free(folder, "feedback")
    files[f"{module}.py"] = _FEEDBACK.format(module=of_guide.module, name=of_guide.name, given=given)
    return files, entrypoint, f"{module}:feedback"


def _free(folder: Path, name: str) -> str:
    """A module's name that nothing in the folder has."""
    candidates = [name, f"agentd_{name}", *(f"agentd_{name}_{number}" for number in range(2, 100))]
    return next(word for word in candidates if not (folder / f"{word}.py").exists() and not (folder / word).exists())


_FEEDBACK = '''\
"""What an answer is worth, as `{name}` says. Written by `agentd init`; change it as you like."""

from {module} import {name}


def feedback(episode):
    """The score in [0, 1], and words."""
    step = episode.steps[-1]
    reference = step.info["reference"]
    verdict = {name}({given})
    if isinstance(verdict, str):
        # Words alone decide nothing. An answer is taken for right if they begin so.
        return float(verdict.strip().lower().startswith(("correct", "right", "yes", "success"))), verdict
    return verdict
'''

_OF_CLASS = '''\
"""What agentd calls: `{name}` of {file}, which stays as it is. Written by `agentd init`."""

from {module} import {name}


class Hosted({name}):
    """`{name}` as a policy: from a case's input to the answer."""

    def act(self, observation):
        """The answer."""
        return self({given})
'''

_OF_FUNCTION = '''\
"""What agentd calls: `{name}` of {file}, which stays as it is. Written by `agentd init`."""

import {module} as program


class Hosted:
    """`{name}` as a policy: from a case's input to the answer. Its attributes are what can be trained."""

    def __init__(self):
{attributes}

    def act(self, observation):
        """The answer."""
        return program.{name}({given})
'''


def _hosted(program: _Program) -> str:
    module, name = program.entrypoint
    if len(program.inputs) == 1:
        given = "observation"
    else:
        given = ", ".join(f"{argument}=observation[{json.dumps(argument)}]" for argument in program.inputs)
    form = {"name": name, "module": module, "file": program.entrypoint.files[0], "given": given}
    if isinstance(program.definition, ast.ClassDef):
        return _OF_CLASS.format(**form)
    attributes = "\n".join(f"self.{attribute} = program.{attribute}" for attribute in _module_parameters(program.tree)) or "pass"
    return _OF_FUNCTION.format(**form, attributes=indent(attributes, " " * 8))


def _module_parameters(tree: ast.Module) -> Iterator[str]:
    """Names at the top of a module that hold what is trainable: nodes and bundled functions."""
    for statement in tree.body:
        if isinstance(statement, _Function) and any(map(_is_trainable, statement.decorator_list)):
            yield statement.name
        elif isinstance(statement, ast.Assign) and _is_trainable(statement.value):
            yield from (target.id for target in statement.targets if isinstance(target, ast.Name))
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and _is_trainable(statement.value):
            yield statement.target.id


def _is_trainable(expression: ast.expr | None) -> bool:
    """A call such as `node(..., trainable=True)`."""
    return isinstance(expression, ast.Call) and any(
        keyword.arg == "trainable" and isinstance(keyword.value, ast.Constant) and keyword.value.value is True
        for keyword in expression.keywords
    )


def _agent_toml(name: str, entrypoint: str, feedback: str, program: _Program, options: Options) -> str:
    inside = options.data.resolve().is_relative_to(options.folder.resolve())
    data = options.data.resolve().relative_to(options.folder.resolve()) if inside else options.data.resolve()
    objective = (ast.get_docstring(program.definition) or "Answer as the reference does.").split("\n\n")[0]
    keys = {"input": (options.input_key, "input"), "reference": (options.reference_key, "reference")}
    dataset = [f"path = {_quoted(str(data))}", *(f"{key} = {_quoted(value)}" for key, (value, default) in keys.items() if value != default)]
    args = "".join(f"\n{key} = {_quoted(value)}" for key, value in options.args.items())
    allowed = sorted({*_ALLOWED, *_needed(options.folder, program.tree)})
    asks = _asks_models(options.folder)
    sandbox = "" if tuple(allowed) == _ALLOWED else f"allowed_imports = {_quoted(allowed)}\n"
    sandbox += 'step_timeout = "60s" # a step with all that it asks of models\n' if asks else ""
    text = _AGENT_TOML.format(
        name=_quoted(name),
        entrypoint=_quoted(entrypoint),
        objective=_quoted(" ".join(objective.split())),
        args=f"\n[agent.args]{args}\n" if args else "",
        dataset="\n".join(dataset),
        validation=VALIDATION,
        feedback=_quoted(feedback),
        models=_MODELS if asks else "",
        sandbox=f"\n[sandbox]\n{sandbox}" if sandbox else "",
    )
    return dedent(text)


_AGENT_TOML = """\
schema = 1

[agent]
name = {name}
entrypoint = {entrypoint}
objective = {objective}
mode = "advise" # propose, and a person promotes; "release" goes by evidence alone
{args}
[environment]
kind = "dataset"
episode_interval = 0.5 # seconds between two cases while nothing is compared

[environment.dataset]
{dataset}
validation = {validation} # of the inputs: no optimizer sees them, they decide

{models}[feedback]
entrypoint = {feedback}

[optimizer]
algorithm = "hybrid" # code and prompts need a model: models = ["openai/gpt-4.1-mini"], or the daemon's
trigger = "manual"

[release]
prune = {{ after_pairs = 10, below = 0.0 }}
{sandbox}"""


_MODELS = """\
[models] # what the program may ask while it acts: names = ["openai/gpt-4.1-mini"], or the daemon's
budget = { dollars_per_day = 5.0, calls_per_hour = 1000 }

"""


def _asks_models(folder: Path) -> bool:
    """Whether a module of the program calls a language model."""
    return any("call_llm" in path.read_text(encoding="utf-8", errors="replace") for path in folder.glob("*.py"))


def _needed(folder: Path, tree: ast.Module) -> set[str]:
    """What the program imports at its top, beyond its own files and what every program may import."""
    modules = {module.partition(".")[0] for statement in tree.body for module in _imported(statement)}
    own = {path.stem for path in folder.glob("*.py")} | {path.name for path in folder.iterdir() if path.is_dir()}
    return modules - own - set(ALWAYS_ALLOWED)


def _quoted(value: Any) -> str:
    """A value as TOML: what JSON writes of texts, numbers and lists is TOML too."""
    return json.dumps(value, ensure_ascii=False)
