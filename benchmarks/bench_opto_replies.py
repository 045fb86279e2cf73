"""How many broken replies become values: agentd's reader over the corpus of tests/data/replies, beside trace-opt's parser.

    python benchmarks/bench_opto_replies.py [folder that holds trace-opt's package `opto`]

Without a folder it takes what `make bench` installs into .venv-peer.
A reply counts as read where the values are exactly those that were meant, and as wrong where other values come out.
trace-opt's values are brought to the parameters' types as trace-opt does it: by calling the type of the present value.
"""

import importlib
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

from agentd.errors import DecodingError
from agentd.opto.decoding import decode_values
from agentd.opto.replies import parse_reply
from agentd.records import Kind, Parameter

FOLDER = Path(__file__).parents[1]
CORPUS = [json.loads(line) for line in (FOLDER / "tests" / "data" / "replies" / "corpus.jsonl").read_text().splitlines()]
PARAMETERS = {
    "code": (
        Parameter(
            path="act", kind=Kind.CODE, default="def act(self, observation):\n    return 0\n", signature="def act(self, observation):"
        ),
    ),
    "prompt": (Parameter(path="system_prompt", kind=Kind.TEXT, default="Answer in English."),),
    "several": (
        Parameter(path="gains.kp", kind=Kind.NUMBER, default=1.0, bounds=(-100.0, 100.0)),
        Parameter(path="gains.kd", kind=Kind.NUMBER, default=0.5),
        Parameter(path="enabled", kind=Kind.BOOLEAN, default=True),
        Parameter(path="mode", kind=Kind.CHOICE, default="slow", choices=("slow", "fast")),
    ),
}


def ours(case, parameters):
    try:
        parsed = parse_reply(case["reply"], parameters, cut_off=case["finish_reason"] == "length")
        return decode_values(parsed.values, parameters, {parameter.path: parameter.default for parameter in parameters}, ("math",))
    except DecodingError:
        return None


def theirs(optimizer):
    def read(case, parameters):
        if "TERMINATE" in case["reply"]:
            return None  # trace-opt takes the word for "no change", wherever it stands
        try:
            suggestion = optimizer.extract_llm_suggestion(case["reply"])
        except Exception:  # noqa: BLE001 - whatever it raises, the reply was not read
            return None
        defaults = {parameter.path: parameter.default for parameter in parameters}
        values = {}
        for name, value in suggestion.items():
            if name in defaults:
                try:
                    values[name] = type(defaults[name])(value)
                except (TypeError, ValueError):
                    continue
        changed = {name: value for name, value in values.items() if value != defaults[name]}
        return changed if changed or suggestion == {} == case.get("values") else None

    return read


def trace_opt(folder):
    sys.path.append(folder)
    logging.disable(logging.CRITICAL)
    stand_ins = {"graphviz": {"Digraph": None}, "black": {"format_str": None, "FileMode": None}, "litellm": {}, "openai": {"OpenAI": None}}
    for name, stand_in in stand_ins.items():
        sys.modules.setdefault(name, SimpleNamespace(**stand_in))  # imported by its modules, not needed by its parser
    optoprime = importlib.import_module("opto.optimizers.optoprime").OptoPrime

    optimizer = object.__new__(optoprime)
    optimizer.ignore_extraction_error = True
    return theirs(optimizer)


def main():
    readers = {"agentd": ours}
    installed = (Path(__file__).parents[1] / ".venv-peer").glob("lib/python*/site-packages/opto")
    folder = sys.argv[1] if len(sys.argv) > 1 else next((str(package.parent) for package in installed), None)
    if folder is not None:
        readers["trace-opt"] = trace_opt(folder)
    complete = [case for case in CORPUS if "values" in case]
    broken = [case for case in CORPUS if "values" not in case]
    print(f"{len(CORPUS)} replies: {len(complete)} whose values are complete, {len(broken)} that must be refused")
    for name, read in readers.items():
        found = [(case, read(case, PARAMETERS[case["parameters"]])) for case in complete]
        right = sum(values == case["values"] for case, values in found)
        wrong = sum(values is not None and values != case["values"] for case, values in found)
        taken = sum(bool(read(case, PARAMETERS[case["parameters"]])) for case in broken)
        share = 100 * right / len(complete)
        print(
            f"{name:10} read {right}/{len(complete)} ({share:.0f}%), misread {wrong}, accepted {taken}/{len(broken)} that must be refused"
        )


if __name__ == "__main__":
    main()
