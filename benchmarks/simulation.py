"""What the simulations of agentd's statistics have in common: their command line and their tables."""

import argparse
import time

import numpy as np

NEVER = 10**9  # an episode or pair that is not reached


def table(title, header, rows):
    print(f"\n### {title}\n")
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")


def share(hits):
    return f"{100 * np.mean(hits):.1f}%"


def main(description, benches, *, before=lambda: None):
    """Run those `benches` (functions of the number of runs, by name) that the command line asks for, and `before` them what must hold."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--only", nargs="*", choices=benches, default=list(benches))
    arguments = parser.parse_args()
    before()
    for name in arguments.only:
        began = time.monotonic()
        benches[name](arguments.runs)
        print(f"\n<!-- {name}: {time.monotonic() - began:.0f} s -->", flush=True)
