"""OptoPrime of agentd beside that of trace-opt, with one local model, on eight small problems; and what agentd's is without its parts.

    ../shared/local-llm/serve &                                # or any server that speaks OpenAI's protocol, with a model named "model"
    python benchmarks/bench_opto_local.py --run [--seeds 5] [--steps 8] [--only CONTESTANT]... [--seed N] [--problem NAME]
    python benchmarks/bench_opto_local.py                      # only the table, from the records

A run appends one line to benchmarks/results/opto_local.jsonl, with all that was asked and answered. What is there already is not run
again, so it can be stopped at any time and continued, and several can run beside each other, on seeds or problems of their own.
trace-opt is what `make bench` installs into .venv-peer. Every contestant meets every problem in turn, seed by seed, so that whatever
stops it leaves a fair table. It keeps two cores busy for hours.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import opto_run

HERE = Path(__file__).parent
RECORDS = HERE / "results" / "opto_local.jsonl"
PEER = HERE.parent / ".venv-peer" / "bin" / "python"
TIME_LIMIT = 1800.0
GRAPH = ["documentation", "code", "inputs", "others"]
CONTESTANTS = {
    "agentd": ("agentd", {}),
    "trace-opt": ("trace-opt", {}),
    "trace-opt, mended": ("trace-opt", {"memory_size": 10, "mended": True}),
    "agentd without graph": ("agentd", {"mask": GRAPH}),
    "agentd without memory": ("agentd", {"memory_size": 0}),
    "agentd without schema": ("agentd", {"schema": False}),
}


def known():
    """The records so far; a last line that a stopped run left unfinished is passed over."""
    records = []
    for line in RECORDS.read_text().splitlines() if RECORDS.exists() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            print("a record that is not whole is passed over", file=sys.stderr)
    return records


def key(record):
    return record["contestant"], record["problem"], record["seed"], record["limit"]


def run(contestant, problem, seed, options):
    """One run in a process of its own, as a record."""
    library, chosen = CONTESTANTS[contestant]
    python = sys.executable if library == "agentd" else str(PEER)
    task = {"library": library, "problem": problem, "seed": seed, "steps": options.steps, "options": chosen, "api_base": options.api_base}
    began = time.monotonic()
    try:
        done = subprocess.run(
            [python, str(HERE / "opto_run.py")], input=json.dumps(task), capture_output=True, text=True, timeout=TIME_LIMIT, check=False
        )
        outcome = json.loads(done.stdout) if done.returncode == 0 else {"solved": False, "steps": [], "failed": done.stderr[-2000:]}
    except subprocess.TimeoutExpired:
        outcome = {"solved": False, "steps": [], "failed": f"longer than {TIME_LIMIT:g} s"}
    about = {"contestant": contestant, "problem": problem, "seed": seed, "limit": options.steps, "at": time.time()}
    return {**about, "machine": platform.machine(), "seconds": time.monotonic() - began, **outcome}


def append(record):
    RECORDS.parent.mkdir(exist_ok=True)
    whole = not RECORDS.exists() or RECORDS.read_bytes()[-1:] in {b"", b"\n"}
    with RECORDS.open("a") as file:
        file.write(("" if whole else "\n") + json.dumps(record) + "\n")


def measure(options):
    try:
        urllib.request.urlopen(f"{options.api_base}/models", timeout=10).close()
    except (urllib.error.URLError, TimeoutError) as error:
        sys.exit(f"no model answers at {options.api_base} ({error}): start a server first, or name its --api-base")
    done = {key(record) for record in known() if "failed" not in record}
    for seed in range(options.seeds) if options.seed is None else [options.seed]:
        for problem in [options.problem] if options.problem else opto_run.PROBLEMS:
            for contestant in options.only or CONTESTANTS:
                if (contestant, problem, seed, options.steps) in done:
                    continue
                if CONTESTANTS[contestant][0] == "trace-opt" and not PEER.exists():
                    print("trace-opt is not installed: `make bench` puts it into .venv-peer", file=sys.stderr)
                    continue
                record = run(contestant, problem, seed, options)
                append(record)
                outcome = record.get("failed") or ("solved" if record["solved"] else "not solved")
                print(f"{problem:10} seed {seed}  {contestant:24} {outcome} after {max(0, len(record['steps']) - 1)} steps", flush=True)


def table(records):
    """For each contestant and problem how many runs were solved and in how many steps (median of the solved ones)."""
    latest = {key(record): record for record in records}.values()
    problems = list(opto_run.PROBLEMS)
    print("solved runs (median steps of those), and over all: median seconds per step, usable replies (those that changed a value)")
    print(f"{'':24} " + " ".join(f"{name:>11}" for name in problems) + f" {'all':>8} {'s/step':>7} {'usable':>7}")
    for contestant in CONTESTANTS:
        runs = [record for record in latest if record["contestant"] == contestant]
        if not runs:
            continue
        cells = []
        for problem in problems:
            of_it = [record for record in runs if record["problem"] == problem]
            steps = [len(record["steps"]) - 1 for record in of_it if record["solved"]]
            median = f" ({statistics.median(steps):g})" if steps else ""
            cells.append(f"{len(steps)}/{len(of_it)}{median}" if of_it else "-")
        asked = [step for record in runs for step in record["steps"] if "seconds" in step]
        seconds = f"{statistics.fmean(step['seconds'] for step in asked):.1f}" if asked else "-"
        usable = f"{sum(step['changed'] for step in asked) / len(asked):.0%}" if asked else "-"
        solved = f"{sum(record['solved'] for record in runs)}/{len(runs)}"
        print(f"{contestant:24} " + " ".join(f"{cell:>11}" for cell in cells) + f" {solved:>8} {seconds:>7} {usable:>7}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", action="store_true", help="run what is not in the records yet")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="proposals after which a run is given up")
    parser.add_argument("--only", choices=CONTESTANTS, action="append", help="may be given several times")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--problem", choices=opto_run.PROBLEMS)
    parser.add_argument("--api-base", default="http://127.0.0.1:8091/v1")
    options = parser.parse_args()
    if options.run:
        measure(options)
    records = known()
    if records:
        table(records)
    else:
        print("no records yet: --run makes them, and takes hours (see the top of this file)")


if __name__ == "__main__":
    main()
