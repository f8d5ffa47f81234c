"""`python -m bench.gpu`: llmis with ExLlamaV2 on a GPU; prints tables, writes bench/results.

python -m bench.gpu                 everything (about 15 minutes on an H100)
python -m bench.gpu attention       bandwidth of the attention kernels (bench/attention.py)
python -m bench.gpu served          the whole service against ExLlamaV2's bare generator, at 1, 8,
                                    32, 33 and 64 streams; 33 is where the quantised path changes
python -m bench.gpu sdpa            the service with its Triton attention against torch's SDPA
python -m bench.gpu memory          estimates of worker/agent/estimate against memory used
python -m bench.gpu cancel          closed connection → free slot
"""

import argparse
import signal
import statistics
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bench import gpu_cancel, gpu_machine, gpu_memory, gpu_served, report
from bench.gpu_servers import GpuModel
from bench.measure import Numbers, medians
from bench.processes import ROOT, machine_facts

_KINDS = ("1b-gptq", "1b")
_STREAMS = (1, 8, 32, 33, 64)
_SERVED_TARGET = 0.97
_PARTIAL = ROOT / "var" / "bench" / "gpu-partial.json"
"""What there is after each load: a machine that is taken away leaves it behind."""


@dataclass
class Session:
    """What is asked for, and what has been found."""

    kinds: tuple[str, ...]
    streams: tuple[int, ...]
    rounds: int
    is_quick: bool
    partial: Path
    content: dict[str, object] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)

    def save(self) -> None:
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        encoded = msgspec.json.encode(self.content)
        # In one step: the end of the time may come in the middle of it.
        fresh = self.partial.with_name(self.partial.name + ".new")
        fresh.write_bytes(msgspec.json.format(encoded, indent=1))
        fresh.rename(self.partial)

    def say(self, text: str) -> None:
        """Keep what was just found, and print it."""
        self.save()
        print(text, flush=True)


def main() -> int:
    names, session = _arguments()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    session.content |= {"machine": machine_facts(), "gpu": gpu_machine.device_facts()}
    session.content["rounds"] = session.rounds
    failed = []
    for name in names:
        session.say(f"{name} ...")
        try:
            _BENCHMARKS[name](session)
        except Exception:
            # The next one may still work, and a machine may not come a second time.
            traceback.print_exc()
            failed.append(name)
            session.content[f"{name} error"] = traceback.format_exc()
        finally:
            # Also when time is up: a signal ends this process by SystemExit.
            session.save()
    print("\n" + "\n\n".join(session.tables))
    if not session.is_quick:
        everything = len(names) == len(_BENCHMARKS)
        path = report.write("gpu" if everything else "gpu-" + "-".join(names), session.content)
        print(f"\nwritten: {path}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _end(number: int, _frame: object) -> None:
    """End in order, once: what runs is stopped, and `timeout` signals a whole group twice."""
    for ignored in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ignored, signal.SIG_IGN)
    sys.exit(128 + number)


def _arguments() -> tuple[list[str], Session]:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(_BENCHMARKS)}")
    parser.add_argument("--kinds", nargs="+", default=_KINDS, help="models (default both)")
    parser.add_argument("--streams", type=int, nargs="+", default=_STREAMS)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (default 3)")
    parser.add_argument("--quick", action="store_true", help="one short round; writes no file")
    parser.add_argument("--partial", type=Path, default=_PARTIAL, help="kept up to date")
    given = parser.parse_args()
    unknown = set(given.names) - set(_BENCHMARKS)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    rounds = 1 if given.quick else given.rounds
    session = Session(tuple(given.kinds), tuple(given.streams), rounds, given.quick, given.partial)
    return given.names or list(_BENCHMARKS), session


def _served(session: Session) -> None:
    by_kind: dict[str, object] = {}
    session.content["served"] = by_kind
    for kind in session.kinds:
        model = GpuModel(kind, slots=max(session.streams))
        loads = [
            gpu_served.token_load(model, n, is_short=session.is_quick) for n in session.streams
        ]
        # Filled while it runs, and so is what stands in the result.
        found: gpu_served.Found = {load.label: {} for load in loads}

        def say(text: str, kind: str = kind, found: gpu_served.Found = found) -> None:
            by_kind[kind] = served_result(found)
            session.say(text)

        gpu_served.against_bare(model, loads, session.rounds, found, say)
        title = f"{kind}: {model.slots} slots of {model.context_length} tokens; times in ms"
        session.tables.append(f"{title}\n{report.side_by_side_table(_medians(found))}")


def served_result(found: gpu_served.Found) -> dict[str, object]:
    """Of as many rounds and sides as there are so far."""
    medians = _medians(found)
    ratios = {
        label: by_side["llmis"].tokens_per_s / by_side["bare"].tokens_per_s
        for label, by_side in medians.items()
        if {"llmis", "bare"} <= by_side.keys()
    }
    return {
        "medians": medians,
        "rounds": found,
        "served_over_bare": ratios,
        "target": _SERVED_TARGET,
        "meets_target": len(ratios) == len(found) and min(ratios.values()) >= _SERVED_TARGET,
    }


def _sdpa(session: Session) -> None:
    """The service with both kinds of attention, in turns."""
    model = GpuModel(session.kinds[0], slots=max(session.streams), context_length=4096)
    streams = (min(session.streams), max(session.streams))
    loads = [gpu_served.token_load(model, n, is_short=session.is_quick) for n in streams]
    loads.append(gpu_served.long_load(model, min(32, model.slots)))
    found: gpu_served.Found = {load.label: {} for load in loads}
    session.content["sdpa"] = {"kind": model.kind, "rounds": found}
    gpu_served.attentions(model, loads, session.rounds, found, session.say)
    results = _medians(found)
    session.content["sdpa"] = {"kind": model.kind, "medians": results, "rounds": found}
    table = report.side_by_side_table(results, ours="llmis triton")
    session.tables.append(f"{model.kind}: Triton attention against SDPA; times in ms\n{table}")


def _attention(session: Session) -> None:
    """In a process of its own, or this one would hold a CUDA context beside what comes after."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [sys.executable, "-m", "bench.attention", "--json", out.name]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"bench.attention failed:\n{done.stderr[-3000:]}")
        session.content["attention"] = msgspec.json.decode(Path(out.name).read_bytes())
    session.tables.append(f"attention kernels\n{done.stdout.strip()}")


def _memory(session: Session) -> None:
    rows: list[dict[str, object]] = []
    session.content["memory"] = rows
    gpu_memory.run(session.is_quick, rows, session.say)
    session.tables.append(gpu_memory.table(rows))


def _cancel(session: Session) -> None:
    model = GpuModel(session.kinds[0], slots=32, context_length=8192)
    found = gpu_cancel.run(model, 3 if session.is_quick else 12)
    session.content["cancel"] = found
    lines = [
        f"{where}: median {statistics.median(of_where):.0f} ms, worst {max(of_where):.0f} ms"
        for where, of_where in found.items()
    ]
    session.tables.append("closed connection → free slot\n" + "\n".join(lines))


def _medians(found: gpu_served.Found) -> dict[str, dict[str, Numbers]]:
    return {
        label: {side: medians(of_rounds) for side, of_rounds in by_side.items()}
        for label, by_side in found.items()
    }


_BENCHMARKS: dict[str, Callable[[Session], None]] = {
    "attention": _attention,
    "served": _served,
    "sdpa": _sdpa,
    "memory": _memory,
    "cancel": _cancel,
}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
