"""What the denylist costs: `python -m bench.filter [--rounds N] [--before CHECKOUT]`.

The counter model without a denylist, with 1,000 literals, and with a regular expression besides,
in turns; `--before` adds the service of another checkout, which may know no denylist. CPU time
for a token is what counts: it depends less than the rate on what else the machine does.
"""

import argparse
import os
import random
import statistics
import string
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import measure, report
from bench.processes import free_port, machine_facts
from bench.scenarios import counter_load
from bench.servers import (
    FOLDER,
    ServedModel,
    Server,
    child,
    counter_file,
    llmis_environment,
    pid_of,
    wait_for,
)
from bench.sse import Stream

_NUM_LITERALS = 1000
_LOAD = counter_load(16, 512, 1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.filter")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--before", type=Path, help="another checkout of the service")
    arguments = parser.parse_args()
    model = ServedModel("counter", counter_file(), 32, 2048)
    variants: dict[str, tuple[Path | None, str]] = {
        "off": (None, ""),
        "1,000 literals": (None, _literals()),
        "1,000 literals, regex": (None, _literals() + _REGEX),
    }
    if arguments.before:
        variants = {"before": (arguments.before.resolve(), ""), **variants}
    found: dict[str, list[measure.Numbers]] = {name: [] for name in variants}
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(_service(f"filter-{i}", model, *variant))
            for i, (name, variant) in enumerate(variants.items())
        }
        for number in range(arguments.rounds + 1):
            names = list(variants) if number % 2 else list(reversed(variants))
            for name in names:
                result = measure.run_load(_LOAD.plan(model, running[name]))
                _LOAD.check(result, name)
                if number:  # the first one warms up
                    found[name].append(measure.numbers(result, _tokens_of))
            print(f"round {number} of {arguments.rounds}", file=sys.stderr, flush=True)
    print(_table(found))
    content = {"machine": machine_facts(), "load": _LOAD.label, "rounds": found}
    print(f"written: {report.write('filter', content)}")


_REGEX = '[[rules]]\nname = "regex"\naction = "mask"\nregex = "[a-z]+@example[.]com"\n'


def _tokens_of(_: Stream, text: str) -> float:
    """About: the filter holds back beginnings of numbers."""
    return max(1, text.count(" "))


def _literals() -> str:
    """Words that the counter model never says."""
    rng = random.Random(1)
    words = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(5, 14)))
             for _ in range(_NUM_LITERALS)]  # fmt: skip
    return f'[[rules]]\nname = "words"\naction = "truncate"\nliterals = {words}\n'


@contextmanager
def _service(
    name: str, model: ServedModel, checkout: Path | None, denylist: str
) -> Iterator[Server]:
    port = free_port()
    setting = 'denylist = "denylist.toml"' if denylist else ""
    config = f"""\
port = {port}
flower_port = 0
models_dir = "{model.path.parent}"
{setting}

[[models]]
name = "{model.name}"
path = "{model.path.name}"
slots = {model.slots}
context_length = {model.context_length}
threads = 1
"""
    environment = llmis_environment(name, config)
    (FOLDER / name / "denylist.toml").write_text(denylist)
    folder = str(checkout or Path.cwd())
    environment["PYTHONPATH"] = folder
    command = ["env", "-C", folder, sys.executable, "-m", "cli", "up"]
    with child(name, command, dict(os.environ) | environment) as process:
        wait_for(lambda: b"llmis is ready" in process.log_path.read_bytes(), process)
        yield Server(name, port, pid_of(process))


def _table(found: dict[str, list[measure.Numbers]]) -> str:
    rows = [["service", "", "CPU ms/1k tokens", "of `off`", "tokens/s", "TTFT p50 ms"]]
    for name, rounds in found.items():
        pairs = zip(rounds, found["off"], strict=True)
        ratio = statistics.median(ours.cpu_s_per_1k / off.cpu_s_per_1k for ours, off in pairs)
        middle = measure.medians(rounds)
        rows.append([name, "", f"{1000 * middle.cpu_s_per_1k:.1f}", f"{ratio:.3f}",
                     f"{middle.tokens_per_s:,.0f}", f"{middle.ttft_p50_ms:.1f}"])  # fmt: skip
    return report.table(rows)


if __name__ == "__main__":
    main()
