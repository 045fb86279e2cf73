"""Learned values written back into source text: what is changed, what stays, and what is left alone and said by name."""

import textwrap

import pytest

from agentd.records import Parameter
from agentd.trace.parameters import describe, find_parameters
from agentd.writeback import write_back


class Program:
    """A program of one file (or several), loaded, with its parameters as a worker would tell them."""

    def __init__(self, text, **others):
        self.files = {"controller.py": textwrap.dedent(text), **{f"{name}.py": textwrap.dedent(other) for name, other in others.items()}}

    @property
    def text(self):
        return self.files["controller.py"]

    def parameters(self, files=None) -> tuple[Parameter, ...]:
        made = load(files or self.files)
        return tuple(describe(path, node) for path, node in find_parameters(made).items())

    def write(self, **values):
        return write_back(
            self.files, "controller:Robot", self.parameters(), {path.replace("__", "."): value for path, value in values.items()}
        )

    def learned(self, written):
        """The defaults of the program after the edit, by path."""
        return {parameter.path: parameter.default for parameter in self.parameters({**self.files, **written.files})}


def load(files):
    """The entrypoint of `files`, imported from memory in a way that leaves nothing behind."""
    import linecache
    import sys
    from types import ModuleType

    names = {file.removesuffix(".py"): text for file, text in files.items()}
    before = {name: sys.modules.get(name) for name in names}
    try:
        for name in sorted(names, key=lambda name: name == "controller"):
            module = ModuleType(name)
            sys.modules[name] = module
            filename = f"<{name} {id(module)}>"
            linecache.cache[filename] = (len(names[name]), None, names[name].splitlines(keepends=True), filename)
            exec(compile(names[name], filename, "exec"), vars(module))
        return sys.modules["controller"].Robot()
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


HEAD = "from agentd.trace import bundle, model, node\n"


def robot(body, head=HEAD):
    return head + "\n\n@model\nclass Robot:\n    def __init__(self):\n" + textwrap.indent(textwrap.dedent(body), " " * 8)


# --- literals --------------------------------------------------------------------------------------------------------


def test_a_number_is_changed_where_it_stands_and_nothing_else():
    program = Program(
        """\
        import agentd.trace as t   # spelled in a way of one's own

        class Robot :
            def __init__( self ):
                self.kp=t.node( 1.0 ,   # the gain
                    trainable = True, bounds=(0, 9))
                self.kd = t.node(-2, trainable=True)
        """
    )
    written = program.write(kp=2.5, kd=3)
    assert written.files["controller.py"] == program.text.replace("( 1.0 ,", "( 2.5 ,").replace("(-2,", "(3,")
    assert written.places == {"kp": "controller.py:5", "kd": "controller.py:7"}
    assert not written.left_out


def test_a_number_keeps_its_type():
    program = Program(robot("self.a = node(1.0, trainable=True)\nself.b = node(4, trainable=True)\n"))
    written = program.write(a=2, b=5.0)
    assert "node(2.0," in written.files["controller.py"]
    assert "node(5," in written.files["controller.py"]


@pytest.mark.parametrize(
    ("before", "value", "after"),
    [
        ("'short'", 'say "so"', "'say \"so\"'"),
        ('"short"', "it's", '"it\'s"'),
        ('"short"', 'it\'s "so"', "'it\\'s \"so\"'"),
        ('"short"', "one\ntwo\n", '"""one\ntwo\n"""'),
        ('"""\\\none\ntwo\n"""', "one\nthree\n", '"""\\\none\nthree\n"""'),
        ("'''one\n'''", "two\\ \"\"\" '''\n'", "'''two\\\\ \"\"\" \\'''\n\\''''"),
        ('r"raw\\d"', "\\w", '"\\\\w"'),
        ("True", False, "False"),
        ("None", None, "None"),
        ("(1.0, 2.0)", [1.0, 3.0], "(1.0, 3.0)"),
        ("(1.0, 2.0)", [1.0], "(1.0,)"),
        ("{1, 2}", [1, 5], "{1, 5}"),
        ('{"a": 1,  "b": [1, 2]}', {"a": 1, "b": [1, 4]}, '{"a": 1,  "b": [1, 4]}'),
        ('{"a": 1}', {"b": 1}, "{'b': 1}"),
        ("[1, 2,]", [1, 2, 3], "[1, 2, 3]"),
    ],
)
def test_each_kind_of_literal_is_spelled_as_its_author_would(before, value, after):
    program = Program(robot(f"self.x = node(\n    {before},\n    trainable=True)\n").replace("\n    \n", "\n"))
    program.files["controller.py"] = HEAD + f"class Robot:\n    def __init__(self):\n        self.x = node({before}, trainable=True)\n"
    written = program.write(x=value)
    assert not written.left_out
    text = written.files.get("controller.py", program.text)
    assert text == program.text.replace(f"node({before}", f"node({after}")
    assert program.learned(written)["x"] == value


def test_a_text_of_several_pieces_stays_one_and_its_unchanged_lines_are_no_part_of_the_difference():
    program = Program(robot('self.prompt = node(\n    "Be brief.\\n"\n    "Be kind.\\n",\n    trainable=True,\n)\n'))
    written = program.write(prompt="Be brief.\nBe exact.\n")
    assert written.files["controller.py"] == program.text.replace("Be kind", "Be exact")


@pytest.mark.parametrize(
    "hostile",
    [
        '"""',
        '""""""',
        "'''\"\"\"",
        "\\",
        '\\"',
        "a\r\nb",
        "\x00\x1b[2J",
        "\u2028",
        "\n\n",
        '"',
        "# ${x} {y}",
        "é\U0001f600",
        '")\nimport os\n("',
    ],
)
def test_no_text_can_break_out_of_its_quotes(hostile):
    for quotes in ('"x"', "'x'", '"""x"""', '"a\\n"\n            "b"'):
        body = f"        self.x = node({quotes}, trainable=True)\n        self.y = node(1, trainable=True)\n"
        program = Program(f"{HEAD}class Robot:\n    def __init__(self):\n{body}")
        written = program.write(x=hostile)
        assert not written.left_out
        assert program.learned(written) == {"x": hostile, "y": 1}


def test_arrays_are_changed_in_their_literal_unless_their_kind_would_change():
    program = Program(
        robot(
            "self.f = node(np.array([0.5, 1.5]), trainable=True)\n"
            "self.i = node(np.array([1, 2]), trainable=True)\n"
            "self.z = node(np.zeros(2), trainable=True)\n",
            HEAD + "import numpy as np\n",
        )
    )
    written = program.write(f=[1, 2, 3], i=[0.5, 1.0], z=[1.0, 1.0])
    assert "np.array([1.0, 2.0, 3.0])" in written.files["controller.py"]
    assert written.left_out.keys() == {"i", "z"}
    assert "array of whole numbers" in written.left_out["i"]
    assert "np.zeros(2), which is no literal" in written.left_out["z"]


# --- paths -----------------------------------------------------------------------------------------------------------


def test_paths_are_followed_into_lists_dicts_objects_bases_and_other_files():
    program = Program(
        """\
        from agentd.trace import Map, Seq, node
        from gains import Gains
        import gains as g

        class Base:
            height = node(0.1, trainable=True)

            def __init__(self):
                self.low = node(1, trainable=True)

        class Robot(Base):
            def __init__(self):
                super().__init__()
                self.weights = [node(1.0, trainable=True), node(2.0, trainable=True)]
                self.seq = Seq(node("a", trainable=True), node("b", trainable=True))
                self.names = Map({"p.q": node(1, trainable=True), "x": {"z": node(2, trainable=True)}})
                self.gains = Gains()
                self.more: g.Other = g.Other()
        """,
        gains="""\
        from agentd import trace
        class Gains:
            def __init__(self):
                self.kp = trace.node(1.0, trainable=True)
        class Other:
            def __init__(self):
                self.kp = trace.node(5.0, trainable=True)
        """,
    )
    values = {
        "height": 0.2, "low": 2, "weights.1": 2.5, "seq.0": "c", "names.p.q": 7, "names.x.z": 8, "gains.kp": 1.5, "more.kp": 5.5,
    }  # fmt: skip
    written = program.write(**values)
    assert written.left_out == {}
    assert {path: value for path, value in program.learned(written).items() if path in values} == values
    assert written.places["gains.kp"] == "gains.py:4"
    changed = [
        one
        for file, text in program.files.items()
        for one, other in zip(text.splitlines(), written.files[file].splitlines(), strict=True)
        if one != other
    ]
    assert len(changed) == 7  # the two names share a line


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("self.x = node(0.5 + 0.5, trainable=True)", "its value is 0.5 + 0.5, which is no literal (controller.py:7)"),
        ("value = 1.0\nself.x = node(value, trainable=True)", "its value is value, which is no literal"),
        ("made = node(1.0, trainable=True)\nself.x = made", "it comes from the variable made (controller.py:8)"),
        ("for _ in range(2):\n    self.x = node(1.0, trainable=True)", "self.x is set in a loop (controller.py:8)"),
        (
            "self.x = node(1.0, trainable=True)\nself.x = node(1.0, trainable=True)",
            "self.x is set in several places: controller.py:7, controller.py:8",
        ),
        ("if True:\n    self.x = node(1.0, trainable=True)\nelse:\n    self.x = node(1.0, trainable=True)", "in several places"),
        ("setattr(self, 'x', node(1.0, trainable=True))", "no text sets x: it is made while the program runs"),
        ("self.x, y = node(1.0, trainable=True), 1", "set in a way that can't be followed"),
        ("self.x = make()", "it is made by make(...) (controller.py:7)"),
        ("self.x = node(*[1.0], trainable=True)", "its value is *[1.0], which is no literal"),
        ("self.x = node(1.0, **{'trainable': True})", "can't be told"),
        ("self.x = node(f'{1.0}', trainable=True)", "no literal"),
        ("node = globals()['node']\nself.x = node(1.0, trainable=True)", "it is made by node(...)"),
        ("self.x = NODE", "it is made by make(...) (controller.py:3)"),
    ],
)
def test_what_is_not_written_out_is_left_alone_and_the_reason_named(body, said):
    program = Program(robot(body, HEAD + "def make(): return node(1.0, trainable=True)\nNODE = make()\n").replace("\n\n\n", "\n\n"))
    program.files["controller.py"] = robot(body, HEAD + "def make(): return node(1.0, trainable=True)\nNODE = make()\n").replace(
        "\n\n\n@model", "\n@model"
    )
    written = program.write(x="2.0" if "f'" in body else 2.0)
    assert written.files == {}
    assert written.places == {}
    assert said in written.left_out["x"]


def test_elements_that_a_loop_makes_are_left_alone():
    program = Program(
        robot("self.w = [node(float(i), trainable=True) for i in range(3)]\nself.m = {k: node(1.0, trainable=True) for k in 'ab'}\n")
    )
    written = program.write(w__0=5.0, m__a=2.0)
    assert written.files == {}
    assert all("made in a loop" in reason for reason in written.left_out.values())
    assert written.left_out.keys() == {"w.0", "m.a"}


def test_what_a_factory_makes_is_left_alone():
    files = {
        "controller.py": HEAD
        + "class R:\n    def __init__(self):\n        self.x = node(1.0, trainable=True)\ndef Robot():\n    return R()\n"
    }
    written = write_back(files, "controller:Robot", Program(files["controller.py"]).parameters(), {"x": 2.0})
    assert written.files == {}
    assert "controller:Robot is no class but a factory" in written.left_out["x"]


SHARED = """\
from agentd.trace import bundle, node
class Wheel:
    def __init__(self):
        self.gain = node(1.0, trainable=True)
    @bundle(trainable=True)
    def turn(self, x):
        return x
class Robot:
    def __init__(self):
        self.left = Wheel()
        self.right = Wheel()
"""


def test_a_text_that_makes_two_parameters_is_changed_only_if_both_are_to_have_the_value():
    program = Program(SHARED)
    apart = program.write(left__gain=2.0)
    assert apart.files == {}
    assert apart.left_out == {"left.gain": "left.gain, right.gain are written in one place and have different values"}
    code = program.write(left__turn="def turn(self, x):\n    return -x")
    assert "different values" in code.left_out["left.turn"]
    together = program.write(left__gain=2.0, right__gain=2.0)
    assert program.learned(together)["left.gain"] == program.learned(together)["right.gain"] == 2.0


def test_without_knowing_all_parameters_only_the_entrypoints_own_class_is_written():
    files = {"controller.py": SHARED.replace("self.left = Wheel()", "self.left = Wheel()\n        self.top = node(1, trainable=True)")}
    written = write_back(files, "controller:Robot", None, {"left.gain": 2.0, "top": 2})
    assert written.places == {"top": "controller.py:11"}
    assert "of which there may be others" in written.left_out["left.gain"]


def test_a_parameter_that_is_set_from_elsewhere_too_is_left_alone():
    program = Program(SHARED.replace("self.right = Wheel()", "self.left.gain = node(1.0, trainable=True)"))
    assert "also set from outside of its class (controller.py:11)" in program.write(left__gain=2.0).left_out["left.gain"]


def test_a_place_that_does_not_hold_the_programs_default_is_not_the_place():
    files = {"controller.py": robot("self.x = node(1.0, trainable=True)\n")}
    known = Program(robot("self.x = node(3.0, trainable=True)\n")).parameters()
    written = write_back(files, "controller:Robot", known, {"x": 2.0})
    assert written.files == {}
    assert "another value there than its text says" in written.left_out["x"]


def test_what_can_be_written_is_written_beside_what_can_not():
    program = Program(robot("self.a = node(1.0, trainable=True)\nself.b = node(float(2), trainable=True)\n"))
    written = program.write(a=5.0, b=6.0)
    assert program.learned(written) == {"a": 5.0, "b": 2.0}
    assert list(written.places) == ["a"]
    assert list(written.left_out) == ["b"]


# --- code ------------------------------------------------------------------------------------------------------------

CODE = '''\
from agentd.trace import bundle, model


def traced(function): return function


@model
class Robot:

    # before the decorators
    @traced
    @bundle(  # the one
        trainable=True
    )
    def act(
        self, observation: list[float],  # what is seen
    ) -> int:
        """Choose.

          Indented further.
        """
        # take it apart
        position, velocity = observation

        lean = 0.5*position  +  1.0*velocity   # weighted
        text = """
kept as it is
        """
        return int(lean > 0.0)  # the sign


    def other(self): return 1
'''


def test_when_only_numbers_differ_only_they_change_whatever_the_layout_of_the_learned_code():
    import ast

    program = Program(CODE)
    [parameter] = program.parameters()
    plain = ast.unparse(ast.parse(parameter.default)).replace("0.5", "-0.75").replace("1.0 *", "2.0 *")
    written = program.write(act=plain)
    assert written.files["controller.py"] == CODE.replace("0.5*position", "-0.75*position").replace("1.0*velocity", "2.0*velocity")


def test_statements_that_stay_keep_their_comments_and_layout():
    import ast

    program = Program(CODE)
    [parameter] = program.parameters()
    learned = ast.unparse(ast.parse(parameter.default)).replace("return int(lean > 0.0)", "if lean > 1.0:\n        return 1\n    return 0")
    written = program.write(act=learned)
    assert written.files["controller.py"] == CODE.replace(
        "        return int(lean > 0.0)  # the sign\n", "        if lean > 1.0:\n            return 1\n        return 0\n"
    )


def test_learned_code_as_a_model_writes_it_takes_the_place_of_the_authors():
    program = Program(CODE)
    learned = "@bundle(trainable=True)\ndef act(self, observation):\n    'New.'\n    # why not\n    return 1\n\n"
    written = program.write(act=learned)
    text = written.files["controller.py"]
    head, _, tail = CODE.partition("    def act(\n")
    assert (
        text
        == head
        + "    def act(self, observation):\n        'New.'\n        # why not\n        return 1\n"
        + tail[tail.index("\n\n    def other") :]
    )
    assert program.learned(written)["act"].splitlines()[-1] == "    return 1"


def test_tabs_and_dos_line_ends_stay():
    program = Program(CODE)
    tabbed = CODE.replace("    ", "\t").replace("\n", "\r\n")
    program.files["controller.py"] = tabbed
    defaults = Program(CODE.replace("    ", "\t")).parameters()
    learned = "def act(self, observation):\n    if observation:\n        return 0\n    return 1\n"
    written = write_back(program.files, "controller:Robot", defaults, {"act": learned})
    text = written.files["controller.py"]
    assert written.left_out == {}
    assert "\tdef act(self, observation):\r\n\t\tif observation:\r\n\t\t\treturn 0\r\n\t\treturn 1\r\n\r\n\r\n\tdef other" in text
    assert text.count("\n") == text.count("\r\n")
    assert program.parameters({"controller.py": text.replace("\r\n", "\n")})[0].default.startswith("def act(self, observation):\n\tif")


def test_a_function_of_a_module_that_the_program_holds_is_written_there():
    program = Program(
        HEAD + "@bundle(trainable=True)\ndef law(x):\n    return x + 1\nclass Robot:\n    def __init__(self):\n        self.law = law\n"
    )
    written = program.write(law="def law(x):\n    return x + 2\n")
    assert written.files["controller.py"] == program.text.replace("x + 1", "x + 2")


def test_coroutine_functions_one_liners_and_the_last_line_of_a_file_are_written_too():
    bodies = (
        "    @bundle(trainable=True)\n    async def act(self, x): return 1  # so\n    @bundle(trainable=True)\n    def b(self): return 2"
    )
    program = Program(HEAD + "class Robot:\n" + bodies)
    numbers = program.write(act="async def act(self, x):\n    return 3", b="def b(self):\n    return 4")
    assert numbers.files["controller.py"] == program.text.replace("return 1", "return 3").replace("return 2", "return 4")
    more = program.write(act="async def act(self, x):\n    y = x\n    return y", b="def b(self):\n    x = 1\n    return x")
    assert [parameter.default for parameter in program.parameters({**more.files})] == [
        "async def act(self, x):\n    y = x\n    return y",
        "def b(self):\n    x = 1\n    return x",
    ]
    assert not more.files["controller.py"].endswith("\n")


def test_code_that_differs_only_in_layout_changes_nothing():
    import ast

    program = Program(CODE)
    [parameter] = program.parameters()
    written = program.write(act=ast.unparse(ast.parse(parameter.default)))
    assert written.files == {}
    assert list(written.places) == ["act"]


def test_learned_code_that_is_no_function_is_refused():
    for learned in ("x = 1", "def act(", 5, "def act(self): pass\ndef b(): pass"):
        written = Program(CODE).write(act=learned)
        assert written.files == {}
        assert "no function" in written.left_out["act"]
