"""Figures of the trace library, each with its ratio to trace-opt where that has the thing.

    python benchmarks/bench_trace.py [--peer PYTHON] [--json] [--quick]

PYTHON is an interpreter that can `import opto.trace` (pip install --no-deps trace-opt; it needs graphviz, black and numpy). Without it,
the one that `make bench` installs and this one are tried, and otherwise the ratios are missing. Both libraries run the same programs, in
processes of their own, in turns; shown are the median round and (for agentd) the best, which a busy machine disturbs less.
"""

import argparse
import asyncio
import gc
import importlib
import json
import math
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

ROUNDS = 3


def per_call(function, number):
    """Microseconds per call, the best of five."""
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        function(number)
        best = min(best, time.perf_counter() - start)
    return best / number * 1e6


class Workloads:
    """The same programs for either library; `library` is its module."""

    def __init__(self, name, quick):
        self.name = name
        self.trace = importlib.import_module(name)
        self.ours = name.startswith("agentd")
        self.scale = (1 if self.ours else 0.02) * (0.3 if quick else 1)

    def number(self, wanted):
        return max(20, int(wanted * self.scale))

    def fresh(self):
        if not self.ours:
            self.trace.GRAPH.clear()
        gc.collect()

    def operator_us(self):
        x = self.trace.node(1.5)

        def run(number):
            for _ in range(number):
                x + 1.0

        return per_call(run, self.number(200_000))

    def operator_two_nodes_us(self):
        x, y = self.trace.node(1.5), self.trace.node(2.0)

        def run(number):
            for _ in range(number):
                x * y

        return per_call(run, self.number(200_000))

    def operator_in_episode_us(self):
        """Of a chain of 500 in an episode, which keeps them all."""
        best = math.inf
        for _ in range(self.number(1_000)):
            if not self.ours:
                self.trace.GRAPH.clear()
            with self._episode():
                x = self.trace.node(1.5)
                start = time.perf_counter()
                for _ in range(500):
                    x = x + 1.0
                best = min(best, time.perf_counter() - start)
        return best / 500 * 1e6

    def bundle_us(self):
        node, bundle = self.trace.node, self.trace.bundle

        @bundle()
        def f(a, b):
            return a, b

        x = node(1.5)

        def run(number):
            for _ in range(number):
                f(x, 2.0)

        return per_call(run, self.number(50_000))

    def trainable_us(self):
        node, bundle = self.trace.node, self.trace.bundle

        @bundle(trainable=True)
        def f(a, b):
            return a, b

        f.parameter._set(f.parameter.data + "\n")  # noqa: SLF001 - both libraries' name; not the original function: compiled text
        x = node(1.5)

        def run(number):
            for _ in range(number):
                f(x, 2.0)

        return per_call(run, self.number(50_000))

    def _chain(self, length):
        x = self.trace.node(0, trainable=True)
        y = x
        for _ in range(length):
            y = y + 1
        return y

    def _diamond(self, length):
        y = self.trace.node(0, trainable=True)
        for _ in range(length // 2):
            y = (y + 0) + y.eq(1)
        return y

    def _backward_s(self, make, length):
        best = math.inf
        for _ in range(ROUNDS):
            self.fresh()
            output = make(length)
            start = time.perf_counter()
            output.backward("feedback")
            best = min(best, time.perf_counter() - start)
        return best

    def backward_chain_1000_s(self):
        return self._backward_s(self._chain, 1_000)

    def backward_diamond_1000_s(self):
        return self._backward_s(self._diamond, 1_000 if self.ours else 300) * (1 if self.ours else 1_000 / 300)

    def backward_chain_100000_s(self):
        return self._backward_s(self._chain, 100_000) if self.ours else None

    def backward_diamond_100000_s(self):
        return self._backward_s(self._diamond, 100_000) if self.ours else None

    def backward_flatness_chain(self):
        return self._flatness(self._chain)

    def backward_flatness_diamond(self):
        return self._flatness(self._diamond)

    def _flatness(self, make):
        """Time per node at 100,000 to that at 1,000: equally many nodes in all, taken in turns."""
        if not self.ours:
            return None
        short, long = [], []
        for _ in range(7):
            for times, length in ((short, 1_000), (long, 100_000)):
                outputs = [make(length) for _ in range(100_000 // length)]
                start = time.perf_counter()
                for output in outputs:
                    output.backward("feedback")
                times.append(time.perf_counter() - start)
                del outputs, output
        return min(long) / min(short)

    def bytes_per_operator(self):
        self.fresh()
        count = self.number(100_000)
        held = self.trace.Graph() if self.ours else None
        if held is not None:
            held.__enter__()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        output = self._chain(count)
        after = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        if held is not None:
            held.__exit__(None, None, None)
        del output
        return (after - before) / count

    def growth_10000_episodes_mb(self):
        def episode():
            y = self.trace.node(1.0)
            for _ in range(500):
                y = y + 1.0

        def one():
            if self.ours:
                with self.trace.Graph():
                    episode()
            else:
                episode()

        count = 10_000 if self.ours and self.scale == 1 else 1_000 if self.ours else 20
        for _ in range(max(2, count // 20)):
            one()
        gc.collect()
        before = _resident()
        for _ in range(count):
            one()
        gc.collect()
        return (_resident() - before) * 10_000 / count

    def cartpole_episodes_per_s(self):
        return self._programs_per_s(self._cartpole)

    def battleship_episodes_per_s(self):
        return self._programs_per_s(self._battleship)

    def _programs_per_s(self, program):
        run = program()
        run(0)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < (1.5 if self.scale != 0.3 else 0.5):
            if not self.ours:
                self.trace.GRAPH.clear()  # or it would slow down with every episode
            run(count)
            count += 1
        return count / (time.perf_counter() - start)

    def _episode(self):
        return self.trace.Graph() if self.ours else _Nothing()

    def _cartpole(self):
        """200 ticks of a cart with a pole; the environment's step is a bundle."""
        node, bundle, model = self.trace.node, self.trace.bundle, self.trace.model

        @model
        class Policy:
            def __init__(self):
                self.gain = node(10.0, trainable=True)

            @bundle(trainable=True)
            def act(self, observation, gain):
                """Push right (1) or left (0)."""
                position, speed, angle, spin = observation
                return 1 if gain * angle + spin + 0.1 * position + 0.2 * speed > 0 else 0

        @bundle()
        def environment_step(observation, action):
            """One step of 20 ms."""
            position, speed, angle, spin = observation
            force = 10.0 if action == 1 else -10.0
            cosine, sine = math.cos(angle), math.sin(angle)
            temporary = (force + 0.05 * spin * spin * sine) / 1.1
            turning = (9.8 * sine - cosine * temporary) / (0.5 * (4.0 / 3.0 - 0.1 * cosine * cosine / 1.1))
            pushing = temporary - 0.05 * turning * cosine / 1.1
            return [position + 0.02 * speed, speed + 0.02 * pushing, angle + 0.02 * spin, spin + 0.02 * turning]

        policy = Policy()

        def run(seed):
            generator = random.Random(seed)
            with self._episode():
                observation = node([generator.uniform(-0.05, 0.05) for _ in range(4)])
                for _ in range(200):
                    observation = environment_step(observation, policy.act(observation, policy.gain))
                observation.backward("stood")
            for parameter in policy.parameters():
                parameter.zero_feedback()

        return run

    def _battleship(self):
        """60 shots on a board of 8 by 8: reason about the map, then choose, both as trainable code."""
        node, bundle, model = self.trace.node, self.trace.bundle, self.trace.model

        @model
        class Player:
            @bundle(trainable=True)
            def reason(self, board):
                """Finds the cells next to hits."""
                found = []
                for row in range(8):
                    for column in range(8):
                        if board[row][column] == "X":
                            found += [(row + a, column + b) for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0))]
                return [cell for cell in found if 0 <= cell[0] < 8 and 0 <= cell[1] < 8 and board[cell[0]][cell[1]] == "."]

            @bundle(trainable=True)
            def act(self, board, plan):
                """Shoots at the plan, else at the next free cell."""
                if plan:
                    return plan[0]
                return next((row, column) for row in range(8) for column in range(8) if board[row][column] == ".")

        player = Player()

        def run(seed):
            generator = random.Random(seed)
            ships = {(generator.randrange(8), generator.randrange(8)) for _ in range(12)}
            shown = [["."] * 8 for _ in range(8)]
            with self._episode():
                reward = None
                for _ in range(60):
                    board = node([row[:] for row in shown])
                    cell = player.act(board, player.reason(board))
                    row, column = cell
                    hit = (row.data, column.data) in ships
                    shown[row.data][column.data] = "X" if hit else "O"
                    reward = row * 8 + column
                reward.backward("sunk")
            for parameter in player.parameters():
                parameter.zero_feedback()

        return run

    # --- what only agentd has ---

    def export_500_ticks_ms(self):
        if not self.ours:
            return None
        from agentd.trace.export import Limits, export, to_bytes  # noqa: PLC0415 - the peer's interpreter has no agentd

        graph, end = self._control_episode(500)
        best = math.inf
        for _ in range(5):
            start = time.perf_counter()
            data = to_bytes(export(graph, end, Limits()))
            best = min(best, time.perf_counter() - start)
        self.export_bytes = len(data)
        return best * 1e3

    def prompt_ratio_10000_to_100_ticks(self):
        """Of the whole text that OptoPrime sends to a model, both with its default budget."""
        if not self.ours:
            return None
        return len(self._prompt(10_000)) / len(self._prompt(100))

    def prompt_10000_ticks_characters(self):
        return len(self._prompt(10_000)) if self.ours else None

    def _prompt(self, ticks):
        from agentd.opto.algorithms.optoprime import OptoPrime  # noqa: PLC0415 - as above
        from agentd.opto.contract import OptimizerContext  # noqa: PLC0415 - the peer's interpreter has no agentd
        from agentd.records import Feedback, Problem  # noqa: PLC0415 - as above
        from agentd.trace.export import export  # noqa: PLC0415 - as above
        from agentd.trace.parameters import describe, find_parameters  # noqa: PLC0415 - as above
        from agentd.trace.propagation import minimal_subgraph  # noqa: PLC0415 - as above

        program = {"gain": self.trace.node(1.0, trainable=True)}
        parameters = tuple(describe(path, node) for path, node in find_parameters(program).items())
        frozen = export(*self._control_episode(ticks, program["gain"]))
        objective, values = "Keep the pole upright.", {"gain": 1.0}
        context = OptimizerContext(agent="bench", stable="r0", parameters=parameters, values=values, objective=objective, at=0.0)
        problem = Problem(
            episode="e0",
            objective=objective,
            parameters=parameters,
            values=values,
            feedback=Feedback(episode="e0", score=0.5, normalised=0.5, text="It drifted to the right."),
            graph=minimal_subgraph(frozen, frozen.output),
            rewards=tuple(1.0 for _ in range(ticks)),
        )
        llm = _Listener()
        asyncio.run(OptoPrime(context, llm).propose([problem], [], seed=1))
        return llm.heard

    def _control_episode(self, ticks, gain=None):
        gain = self.trace.node(1.0, trainable=True) if gain is None else gain
        with self.trace.Graph() as graph:
            observation = graph.message("environment_reset", {}, [0.0, 0.0, 0.1, 0.2])
            for tick in range(ticks):
                lean = observation[2] * gain + observation[3]
                push = (lean * 2.0 - observation[0]) / 3.0 > 0.0
                step = [0.01 * tick, math.sin(tick), math.cos(tick), 0.2]
                observation = graph.message("environment_step", {"observation": observation, "action": push}, step)
            end = graph.message("episode_end", {"observation": observation}, None)
        return graph, end


class _Listener:
    """A model that remembers what it was asked."""

    async def complete(self, request):
        from agentd.opto.contract import LlmReply  # noqa: PLC0415 - the peer's interpreter has no agentd

        self.heard = "\n".join(message.content for message in request.messages)
        return LlmReply(text='{"reasoning": "more", "suggestion": {"gain": 2.0}}', model="listener")


class _Nothing:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def _resident():
    """Megabytes of this process now; where /proc is missing, its peak."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


FIGURES = {  # name: (unit, target, whether more is better)
    "operator_us": ("us per operator with a constant", "<= 1.5", False),
    "operator_two_nodes_us": ("us per operator on two nodes", "<= 1.5", False),
    "operator_in_episode_us": ("us per operator in an episode of 500", "<= 1.5", False),
    "bundle_us": ("us per plain bundle call", "<= 4", False),
    "trainable_us": ("us per trainable bundle call", "<= 5", False),
    "backward_chain_1000_s": ("s backward, chain of 1,000", "", False),
    "backward_diamond_1000_s": ("s backward, diamonds of 1,500 (trace-opt: from 450, scaled linearly)", "", False),
    "backward_chain_100000_s": ("s backward, chain of 100,000", "< 0.3", False),
    "backward_diamond_100000_s": ("s backward, diamonds of 150,000", "< 0.3", False),
    "backward_flatness_chain": ("backward per node, chain of 100,000 to chains of 1,000", "<= 1.5", False),
    "backward_flatness_diamond": ("backward per node, diamonds of 150,000 to diamonds of 1,500", "<= 1.5", False),
    "bytes_per_operator": ("bytes per operator node", "<= 350", False),
    "growth_10000_episodes_mb": ("MB growth over 10,000 episodes of 500 operators", "< 5", False),
    "cartpole_episodes_per_s": ("episodes/s, traced cartpole of 200 ticks", "", True),
    "battleship_episodes_per_s": ("episodes/s, traced battleship of 60 shots", "", True),
    "export_500_ticks_ms": ("ms to export and encode 500 ticks of 10 operators", "< 30", False),
    "prompt_ratio_10000_to_100_ticks": ("OptoPrime's prompt for 10,000 ticks to that for 100", "<= 1.3", False),
    "prompt_10000_ticks_characters": ("characters of OptoPrime's prompt for 10,000 ticks of 10 operators", "", False),
}


def measure(python, library, name, quick):
    """One figure, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [python, __file__, "--measure", library, name, *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{library} {name} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def find_peer(python):
    for candidate in [python] if python else [str(Path(__file__).parents[1] / ".venv-peer" / "bin" / "python"), sys.executable]:
        if not Path(candidate).exists():
            continue
        if subprocess.run([candidate, "-c", "import opto.trace"], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="an interpreter that has trace-opt")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="smaller, less exact")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        library, name = options.measure
        print(json.dumps(getattr(Workloads(library, options.quick), name)()))
        return
    peer = find_peer(options.peer)
    results = {}
    if not options.json:
        print(f"Python {platform.python_version()}, {os.cpu_count()} cores of {processor()}, {platform.system()} {platform.release()}")
        if not peer:
            print("trace-opt is not installed here (--peer names an interpreter that has it): no ratios")
        print(f"{'agentd':>12} {'(best)':>12} {'trace-opt':>12} {'better':>9}  {'target':<8} what")
    for name, (unit, target, more_is_better) in FIGURES.items():
        ours, theirs = [], []
        for _ in range(1 if options.quick else ROUNDS):  # in turns, so that a busy machine is busy for both
            ours.append(measure(sys.executable, "agentd.trace", name, options.quick))
            if peer:
                theirs.append(measure(peer, "opto.trace", name, options.quick))
        mine = statistics.median(ours)
        other = statistics.median(theirs) if theirs and theirs[0] is not None else None
        ratio = None if other is None or not mine or mine <= 0 else (mine / other if more_is_better else other / mine)
        results[name] = {"agentd": mine, "agentd_rounds": ours, "trace_opt": other, "trace_opt_rounds": theirs, "times_better": ratio}
        if not options.json:
            peers = "-" if other is None else f"{other:.4g}"
            better = "-" if ratio is None else f"{ratio:.0f}x"
            best = (max if more_is_better else min)(ours)
            print(f"{mine:>12.4g} {best:>12.4g} {peers:>12} {better:>9}  {target:<8} {unit}", flush=True)
    load = ", ".join(f"{number:.1f}" for number in os.getloadavg())
    if options.json:
        print(json.dumps({"machine": processor(), "cores": os.cpu_count(), "load": load, "figures": results}, indent=2))
    else:
        print(f"median of {1 if options.quick else ROUNDS} rounds; load at the end: {load}")


def processor():
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
