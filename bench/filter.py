"""What the denylist costs: `python -m bench.filter [--rounds N] [--before CHECKOUT [--off-only]]`.

The counter model without a denylist, with 1,000 literals, and with a regular expression besides,
in turns; `--before` adds the service of another checkout, which may know no denylist. CPU time
for a token is what counts: it depends less than the rate on what else the machine does.
"""

import argparse
import math
import random
import statistics
import string
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import measure, report
from bench.checkout import HERE, Checkout, other
from bench.processes import machine_facts
from bench.scenarios import counter_load
from bench.servers import FOLDER, ServedModel, Server, counter_file, llmis
from bench.sse import Stream
from shared.denylist import denylist
from shared.wire import codec
from shared.wire.job import Job, JobKind
from worker.replica.attempt import Attempt
from worker.replica.event_builder import events_of
from worker.sequence import StepResult
from worker.text.assembler import TextAssembler

_NUM_LITERALS = 1000
_NUM_TOKENS = 20_000
_NUM_BEST = 15
"""In-process runs of which the fastest counts: it was disturbed least."""
_LOAD = counter_load(16, 512, 1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.filter")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--before", type=Path, help="another checkout of the service")
    parser.add_argument("--off-only", action="store_true", help="with --before: no denylist at all")
    arguments = parser.parse_args()
    model = ServedModel("counter", counter_file(), 32, 2048)
    variants = {
        "off": (HERE, ""),
        "1,000 literals": (HERE, _literals()),
        "1,000 literals, regex": (HERE, _literals() + _REGEX),
    }
    if arguments.off_only:
        variants = {"off": variants["off"]}
    if arguments.before:
        variants = {"before": (other(arguments.before), ""), **variants}
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
    in_process = _in_process()
    print("us a token in the replica:", in_process)
    content = {"machine": machine_facts(), "load": _LOAD.label, "rounds": found,
               "in_process_us": in_process}  # fmt: skip
    print(f"written: {report.write('filter', content)}")


_REGEX = '[[rules]]\nname = "regex"\naction = "mask"\nregex = "[a-z]+@example[.]com"\n'


def _in_process() -> dict[str, float]:
    """Microseconds a token in the replica: bytes to text, filtered, to an encoded event."""
    tables = {"off": "", "1 literal": '[[rules]]\nname="a"\naction="mask"\nliterals=["never"]',
              "1,000 literals": _literals(), "regex": _REGEX,
              "1,000 literals, regex": _literals() + _REGEX}  # fmt: skip
    found = dict.fromkeys(tables, math.inf)
    for _ in range(_NUM_BEST):
        for name, table in tables.items():
            found[name] = min(found[name], _one_run(table))
    return {name: round(best, 2) for name, best in found.items()}


def _one_run(table: str) -> float:
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(table)
        file.flush()
        rules = denylist.read(Path(file.name)).on_output("m") if table else None
    job = Job(id="r", model="m", kind=JobKind.COMPLETION, created_at=0, deadline_at=0)
    run = Attempt(job, 0, [], rules=rules)
    assembler = TextAssembler([], rules=rules)
    began_at = time.process_time()
    for number in range(_NUM_TOKENS):
        result = StepResult(("r", 0), token_ids=[number])
        result.text = assembler.push(b" %d" % (number % 1000))
        result.filtered = assembler.report()
        for _, event in events_of([(run, result)]):
            codec.encode_event(event)
    return 1e6 * (time.process_time() - began_at) / _NUM_TOKENS


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
def _service(name: str, model: ServedModel, checkout: Checkout, denylist: str) -> Iterator[Server]:
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "denylist.toml").write_text(denylist)
    setting = 'denylist = "denylist.toml"' if denylist else ""
    with llmis(model, checkout, name, setting) as server:
        yield server


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
