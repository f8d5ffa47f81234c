"""`python -m tests.chaos`: load and faults at once; exit status 1 when something is wrong.

python -m tests.chaos --seconds 600 --seed 1
"""

import argparse
import sys
import time

from bench import report
from bench.processes import machine_facts
from tests.chaos import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--only", default="", help="faults with this in their names: kill -9")
    parser.add_argument("--write", action="store_true", help="a file in bench/results")
    arguments = parser.parse_args()
    facts = machine_facts()
    started_at = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started_at:6.1f} s  {text}", flush=True)

    faults = run.faults_for(arguments.seconds, arguments.only)
    found = run.run(faults, arguments.seed, say, arguments.clients)
    print(f"\n{run.tables(found)}\n\ntries: {found.tries}\nrefused: {found.refusals}")
    if arguments.write:
        print(f"written: {report.write('chaos', {'machine': facts, 'chaos': found})}")
    problems = [*found.problems, *found.pauses.problems]
    for problem in problems:
        print(f"WRONG: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
