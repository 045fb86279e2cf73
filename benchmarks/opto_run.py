"""One run of one optimizer on one small problem: bench_opto_local.py starts it, under agentd's interpreter or trace-opt's.

A task in JSON comes on standard input: {library, problem, seed, steps, options, api_base}. The record of the run goes to standard output.
The same program text runs on both libraries: `trace` is agentd.trace or opto.trace.
"""

import json
import os
import random
import sys
import time
import types
import urllib.request
import warnings

MODEL = "model"
MAX_TOKENS = 1024
TERMINATE = "If no changes or answer are needed, just output TERMINATE."
PATIENCE = 600  # seconds for one answer: the model may share its cores


# The functions that problems trace are functions of the module: trace-opt shows the qualified name, and the text as it is indented.


def triple(x):
    """Three times x."""
    return 3 * x


def raise_by_seven(x):
    """Add 7."""
    return x + 7


def sum_and_difference(a, b):
    """The list [a + b, a - b]."""
    return [a + b, a - b]


def mix(red, green, blue):
    """The colour as [red, green, blue], each from 0 to 255."""
    return [min(255, max(0, part)) for part in (red, green, blue)]


def predict(x):
    """Predict y from x."""
    return 2 * x - 1


def without_vowels(text):
    """The text without its vowels."""
    return "".join(letter for letter in text if letter not in "ae")


def greeter(system_prompt, message):
    """A language model that follows its system prompt and answers the message."""
    wants = system_prompt.lower() + message.lower()
    return "¡Hola!" if "spanish" in wants or "español" in wants else "Hello!"


def geographer(system_prompt, message):
    """A language model that follows its system prompt and answers the message."""
    return '{"capital": "Paris"}' if "json" in system_prompt.lower() + message.lower() else "The capital of France is Paris."


def rings(temperature, limit):
    """Whether the alarm rings."""
    return temperature < limit


def tested(cold, warm, hot):
    """The alarm at 20, 55 and 70 degrees."""
    return [cold, warm, hot]


class Problem:
    """A traced program with trainable parameters. `run` gives the output node, `judge(value)` a score in [0, 1] and words."""

    objective = ""

    def __init__(self, trace):
        self.trace = trace
        self.build(trace)

    def build(self, trace):
        """Sets `parameters` and `run`."""
        raise AssertionError(f"{type(self).__name__} has no program for {trace.__name__}")


class Number(Problem):
    """One number through two fixed functions."""

    objective = "Make the output equal to 25."

    def build(self, trace):
        self.x = trace.node(-2.0, trainable=True, name="x")
        self.parameters = [self.x]
        first, second = trace.bundle()(triple), trace.bundle()(raise_by_seven)
        self.run = lambda: second(first(self.x))

    def judge(self, value):
        away = abs(value - 25)
        return max(0.0, 1 - away / 50) if away > 0.5 else 1.0, f"The output is {value:g}; it should be 25."


class Pair(Problem):
    """Two numbers that must fit together."""

    objective = "Make the first number of the output 12 and the second 2."

    def build(self, trace):
        self.parameters = [trace.node(1.0, trainable=True, name="a"), trace.node(1.0, trainable=True, name="b")]
        combine = trace.bundle()(sum_and_difference)
        self.run = lambda: combine(*self.parameters)

    def judge(self, value):
        total, difference = value
        away = abs(total - 12) + abs(difference - 2)
        words = f"The sum of a and b is {total:g} and should be 12; their difference a - b is {difference:g} and should be 2."
        return max(0.0, 1 - away / 20) if away > 0.5 else 1.0, words


class Colour(Problem):
    """Three numbers, each with feedback of its own in one text."""

    objective = "Mix the colour that the customer wants."

    def build(self, trace):
        self.parameters = [trace.node(100, trainable=True, name=name) for name in ("red", "green", "blue")]
        mixed = trace.bundle()(mix)
        self.run = lambda: mixed(*self.parameters)

    def judge(self, value):
        wanted = (200, 40, 100)
        away = [part - goal for part, goal in zip(value, wanted, strict=True)]
        words = "; ".join(
            f"{name} is right" if not off else f"{name} is too {'high' if off > 0 else 'low'} by {abs(off):g}"
            for name, off in zip(("red", "green", "blue"), away, strict=True)
        )
        return (1.0 if not any(away) else max(0.0, 1 - sum(map(abs, away)) / 300)), words


class Formula(Problem):
    """A function with a wrong sign."""

    objective = "The function must give twice its input plus one."

    def build(self, trace):
        function = trace.bundle(trainable=True)(predict)
        self.parameters = [function.parameter]
        self.run = lambda: function(3)

    def judge(self, value):
        right = value == 7
        return float(right), "correct" if right else f"For x = 3 the function gave {value}; 7 was expected. Twice x plus one is wanted."


class Vowels(Problem):
    """A function of texts that removes the wrong letters."""

    objective = "The function must remove all vowels (a, e, i, o, u) from a text and keep everything else."

    def build(self, trace):
        function = trace.bundle(trainable=True)(without_vowels)
        self.parameters = [function.parameter]
        self.run = lambda: function("education in rome")

    def judge(self, value):
        right = value == "dctn n rm"
        words = f"For 'education in rome' the function gave {value!r}; 'dctn n rm' was expected."
        return float(right), "correct" if right else words


class Language(Problem):
    """A prompt. What follows it is a stand-in for a model: it does what the prompt says about the language, and nothing else."""

    objective = "The assistant must greet in Spanish."

    def build(self, trace):
        self.parameters = [
            trace.node("Answer in English.", trainable=True, name="system_prompt", description="Tells the model what to do.")
        ]
        assistant = trace.bundle()(greeter)
        self.run = lambda: assistant(self.parameters[0], "Good morning")

    def judge(self, value):
        right = value == "¡Hola!"
        return float(right), "correct" if right else f"The assistant said {value!r}. It should answer in Spanish."


class Form(Problem):
    """A prompt that must ask for a form of answer."""

    objective = "The assistant's answers are read by a program, so they must be JSON objects."

    def build(self, trace):
        self.parameters = [
            trace.node("You know geography.", trainable=True, name="system_prompt", description="Tells the model what to do.")
        ]
        assistant = trace.bundle()(geographer)
        self.run = lambda: assistant(self.parameters[0], "What is the capital of France?")

    def judge(self, value):
        right = value.startswith("{")
        return float(right), "correct" if right else f"The assistant answered {value!r}, which is no JSON object, so it could not be read."


class Alarm(Problem):
    """A function and a number that must fit together."""

    objective = "Ring the alarm when the temperature is above 60 degrees, and only then."

    def build(self, trace):
        limit = trace.node(30, trainable=True, name="limit", description="The limit in degrees.")
        function, collect = trace.bundle(trainable=True)(rings), trace.bundle()(tested)
        self.parameters = [function.parameter, limit]
        self.run = lambda: collect(function(20, limit), function(55, limit), function(70, limit))

    def judge(self, value):
        wrong = [
            f"at {at} degrees it {'rang' if got else 'was silent'}, which is wrong"
            for at, got, right in zip((20, 55, 70), value, (False, False, True), strict=True)
            if bool(got) != right
        ]
        return 1 - len(wrong) / 3, "; ".join(wrong) or "correct"


PROBLEMS = {each.__name__.lower(): each for each in (Number, Pair, Colour, Formula, Vowels, Language, Form, Alarm)}


def of_agentd(task, problem):
    """The optimizer, and the list to which it adds all that it asks and is answered."""
    os.environ.update(OPENAI_API_BASE=task["api_base"], OPENAI_API_KEY="none", AGENTD_CALL_TIMEOUT=f"{PATIENCE}s")
    from agentd.opto import OptoPrime  # noqa: PLC0415 - the peer's interpreter has no agentd

    options = {"memory_size": 10, "max_tokens": MAX_TOKENS, **task["options"]}
    optimizer = OptoPrime(problem.parameters, f"openai/{MODEL}", objective=problem.objective, seed=task["seed"], **options)
    return optimizer, optimizer.log


def of_trace_opt(task, problem):
    """As above. Its own log leaves out what it could not use.

    The option `mended`: replies in a schema made of the parameters' names, with a limit on the reasoning, and no word that ends it all.
    """
    from opto.optimizers import OptoPrime  # noqa: PLC0415 - agentd's has no trace-opt

    seeds = random.Random(task["seed"])
    log = []
    options = dict(task["options"])
    mended = options.pop("mended", False)

    def ask(messages, max_tokens=MAX_TOKENS, **more):
        if mended:
            more["response_format"] = {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema_of(problem.parameters)}}
        body = {"model": MODEL, "messages": messages, "max_tokens": min(max_tokens, MAX_TOKENS), "seed": seeds.randrange(2**31), **more}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{task['api_base']}/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
            answer = json.load(reply, object_hook=lambda fields: types.SimpleNamespace(**fields))
        system, user = (message["content"] for message in messages)
        log.append({"system_prompt": system, "user_prompt": user, "response": answer.choices[0].message.content})
        return answer

    objective = f"{OptoPrime.default_objective} {problem.objective}"
    optimizer = OptoPrime(problem.parameters, ask, objective=objective, **options)
    if mended:
        optimizer.output_format_prompt = optimizer.output_format_prompt.replace(TERMINATE, "")
    return optimizer, log


def schema_of(parameters):
    """A reply in trace-opt's form: reasoning, and the values of these parameters."""
    kinds = {int: "integer", float: "number", str: "string"}
    values = {parameter.py_name: {"type": kinds[type(parameter.data)]} for parameter in parameters}
    suggestion = {"type": "object", "properties": values, "required": list(values), "additionalProperties": False}
    properties = {"reasoning": {"type": "string", "maxLength": 800}, "suggestion": suggestion}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def libraries(name):
    """The trace module and the way to its OptoPrime."""
    if name == "agentd":
        import agentd.trace  # noqa: PLC0415 - as above

        return agentd.trace, of_agentd
    for missing in ("litellm", "openai"):  # trace-opt imports them at once, and they are not needed with a model of one's own
        sys.modules.setdefault(missing, types.ModuleType(missing)).OpenAI = None
    import opto.trace  # noqa: PLC0415 - as above

    return opto.trace, of_trace_opt


def attempt(problem, execution_error):
    """One run of the program, judged: output node, value, score, words."""
    try:
        output = problem.run()
    except execution_error as error:
        return error.exception_node, None, 0.0, str(error.exception_node.data)
    try:
        return output, output.data, *problem.judge(output.data)
    except (TypeError, ValueError, AttributeError) as error:
        return output, output.data, 0.0, f"The output {output.data!r} is of the wrong kind: {error}"


def main():
    task = json.load(sys.stdin)
    output, sys.stdout = sys.stdout, sys.stderr
    warnings.simplefilter("ignore")
    trace, make = libraries(task["library"])
    problem = PROBLEMS[task["problem"]](trace)
    optimizer, log = make(task, problem)
    steps, solved = [], False
    for number in range(task["steps"] + 1):
        node, value, score, words = attempt(problem, trace.ExecutionError)
        solved = score >= 1.0
        entry = {"values": [str(parameter.data) for parameter in problem.parameters], "output": str(value)[:500], "score": score}
        steps.append(entry)
        if solved or number == task["steps"]:
            break
        began = time.monotonic()
        logged = len(log)
        try:
            optimizer.zero_feedback()
            optimizer.backward(node, words)
            optimizer.step()
        except Exception as error:  # noqa: BLE001 - whatever a library raises is a step without a change
            entry["error"] = f"{type(error).__name__}: {error}"[:500]
        entry |= {"seconds": time.monotonic() - began, "exchange": log[logged:]}
        entry["changed"] = [str(parameter.data) for parameter in problem.parameters] != entry["values"]
    json.dump({"solved": solved, "steps": steps}, output, default=str)


if __name__ == "__main__":
    main()
