"""How long OptoPrime's prompt is for an episode of so many ticks, beside trace-opt's OptoPrime.

    python benchmarks/bench_opto_prompt.py

The same traced loop on both libraries: a controller with two parameters (a number and a function) and a plant, three operators per tick,
feedback on the last state. All that is sent to the model is counted; no model is asked. trace-opt is what `make bench` installs into
.venv-peer; an episode that takes it longer than a minute is not waited for.
"""

import json
import subprocess
import sys
import types
from pathlib import Path

import opto_run

PEER = Path(__file__).parents[1] / ".venv-peer" / "bin" / "python"
TICKS = (1, 10, 100, 1_000, 10_000)
PATIENCE = 60.0
ANSWER = '{"reasoning": "more", "answer": "", "suggestion": {"gain": 2.0}}'


def asked(library, ticks):
    """The characters of the messages that are sent for an episode of `ticks`."""
    trace, _ = opto_run.libraries(library)
    gain = trace.node(1.0, trainable=True, name="gain")

    @trace.bundle(trainable=True)
    def act(state, gain):
        """The force for a state (position, speed)."""
        return -gain * state[0] - 0.5 * state[1]

    @trace.bundle()
    def move(state, force):
        """The state after 20 ms."""
        return [state[0] + 0.02 * state[1], state[1] + 0.02 * force]

    state = trace.node([1.0, 0.0], name="start")
    for _ in range(ticks):
        state = move(state, act(state, gain) * 1.0)
    if library == "agentd":
        from agentd.opto import OptoPrime  # noqa: PLC0415 - the peer's interpreter has no agentd
    else:
        from opto.optimizers import OptoPrime  # noqa: PLC0415 - agentd's has no trace-opt
    heard = []

    def listen(messages, **_):
        heard.extend(message["content"] for message in messages)
        message = types.SimpleNamespace(content=ANSWER)
        return types.SimpleNamespace(choices=[types.SimpleNamespace(message=message, finish_reason="stop")], usage=None, model="none")

    optimizer = OptoPrime([act.parameter, gain], listen)
    optimizer.zero_feedback()
    optimizer.backward(state, "It came to rest too late.")
    optimizer.step()
    return sum(map(len, heard))


def measured(python, library, ticks):
    try:
        done = subprocess.run(
            [python, __file__, library, str(ticks)], capture_output=True, text=True, timeout=PATIENCE, check=False, encoding="utf-8"
        )
    except subprocess.TimeoutExpired:
        return f"> {PATIENCE:g} s"
    if done.returncode != 0:
        return (done.stderr.strip().splitlines() or ["failed"])[-1][:30]
    return json.loads(done.stdout.splitlines()[-1])


def main():
    if len(sys.argv) > 1:
        print(json.dumps(asked(sys.argv[1], int(sys.argv[2]))))
        return
    print(f"characters of the prompt{'agentd':>12}{'trace-opt':>14}   for an episode of")
    for ticks in TICKS:
        theirs = measured(str(PEER), "trace-opt", ticks) if PEER.exists() else "-"
        print(f"{'':24}{measured(sys.executable, 'agentd', ticks):>12}{theirs:>14}   {ticks:,} ticks", flush=True)


if __name__ == "__main__":
    main()
