"""`python -m bench`: runs the benchmarks, prints their tables, writes bench/results.

python -m bench                          everything
python -m bench counter --streams 8 64   the counter model against llama.cpp's own server
python -m bench demo                     the demo model against it
python -m bench ttft                     time to first token of an idle service
python -m bench relay                    one web process without an engine
python -m bench replicas                 two replicas of the demo model against one
python -m bench loading                  time to ready against starting llama.cpp's server
python -m bench churn                    requests while models are loaded and unloaded
python -m bench faults                   what streams see of each fault, five rounds of it
python -m bench memory                   memory of a request, queued and running
python -m bench metrics                  one web process with its metrics and without
"""

import argparse
import signal
import statistics
import sys
from functools import partial

from bench import faults, lifecycle, memory, metrics_cost, relay, report, scenarios, servers
from bench.load import LIMIT_S
from bench.measure import Numbers, Stalled, medians
from bench.processes import machine_facts
from bench.scenarios import Load
from bench.servers import ServedModel

_NAMES = ("counter", "ttft", "demo", "relay", "replicas", "loading", "churn", "faults", "memory",
          "metrics")  # fmt: skip
_COUNTER_STREAMS = (1, 8, 32, 64)
_DEMO_STREAMS = (1, 8)
_RELAY_STREAMS = (64, 1000)
_RELAY_RATES = (10_000, 30_000, 60_000, 100_000)
_COUNTER_TOKENS = 512
"""A counter load has about this many tokens a stream and request ..."""
_COUNTER_TOTAL = 32_768
"""... and as many requests as give this many tokens, but at most 16 a stream."""


def main() -> int:
    arguments = _arguments()
    # SIGTERM ends this process as Ctrl-C does, so that every child is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    facts = machine_facts()
    chosen = arguments.names or list(_NAMES)
    content: dict[str, object] = {"machine": facts, "rounds": arguments.rounds}
    tables = []
    for name in chosen:
        _say(f"{name} ...")
        try:
            run = _OTHERS.get(name) or partial(_side_by_side, name)
            tables.append(run(arguments, content))
        except Stalled as exc:
            # The results of the others are not lost with it.
            tables.append(f"{name}: stalled: {exc}")
            content[name] = {"stalled": str(exc)}
    print("\n" + "\n\n".join(tables))
    if not arguments.quick:
        path = report.write("-".join(arguments.names) or "all", content)
        print(f"\nwritten: {path}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(_NAMES)}")
    parser.add_argument("--streams", type=int, nargs="+", help="streams at the same time")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each server (default 3)")
    parser.add_argument("--rates", type=int, nargs="+", help="tokens/s offered to the relay")
    parser.add_argument(
        "--quick", action="store_true", help="one short round of everything; writes no file"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(_NAMES)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    if arguments.quick:
        arguments.rounds = 1
    return arguments


def _side_by_side(name: str, arguments: argparse.Namespace, content: dict[str, object]) -> str:
    model, loads = _scenario(name, arguments)
    found = scenarios.side_by_side(model, loads, arguments.rounds, _say)
    results = {
        label: {server: _median(of_rounds) for server, of_rounds in by_server.items()}
        for label, by_server in found.items()
    }
    content[name] = {"medians": results, "rounds": found}
    title = f"{name}: {model.slots} slots of {model.context_length} tokens, 1 compute thread"
    limits = f"a start had {servers.START_LIMIT_S:g} s, a load {LIMIT_S:g} s"
    return f"{title}; times in ms; {limits}{_stalls(found)}\n{report.side_by_side_table(results)}"


def _median(of_rounds: list[Numbers | None]) -> Numbers | None:
    """Of the rounds in which the server did not stall."""
    whole = [numbers for numbers in of_rounds if numbers is not None]
    return medians(whole) if whole else None


def _stalls(found: dict[str, dict[str, list[Numbers | None]]]) -> str:
    """A line for each load that a server did not end in some round."""
    lines = [
        f"{label}, {server}: {of_rounds.count(None)} of {len(of_rounds)} rounds stalled"
        for label, by_server in found.items()
        for server, of_rounds in by_server.items()
        if None in of_rounds
    ]
    return "".join(f"\n{line}; they count for nothing" for line in lines)


def _scenario(name: str, arguments: argparse.Namespace) -> tuple[ServedModel, list[Load]]:
    if name == "demo":
        streams = arguments.streams or _DEMO_STREAMS
        model = ServedModel("demo", servers.demo_file(), max(streams), context_length=1024)
        return model, [scenarios.demo_load(n, 1 if arguments.quick else 3) for n in streams]
    streams = arguments.streams or _COUNTER_STREAMS
    model = ServedModel("counter", servers.counter_file(), max(streams), context_length=1024)
    if name == "ttft":
        return model, [scenarios.ttft_load(10 if arguments.quick else 30)]
    total = _COUNTER_TOTAL // 4 if arguments.quick else _COUNTER_TOTAL
    return model, [_counter_load(n, total) for n in streams]


def _counter_load(num_streams: int, total: int) -> Load:
    max_tokens = min(_COUNTER_TOKENS, max(64, total // num_streams))
    requests = min(16, max(1, total // (num_streams * max_tokens)))
    return scenarios.counter_load(num_streams, max_tokens, requests)


def _relay(arguments: argparse.Namespace, content: dict[str, object]) -> str:
    rates = arguments.rates or _RELAY_RATES
    results = {
        num_streams: relay.run(num_streams, rates, arguments.rounds, _say)
        for num_streams in arguments.streams or _RELAY_STREAMS
    }
    content["relay"] = results
    return f"relay: one web process, no engine\n{relay.relay_table(results)}"


def _replicas(arguments: argparse.Namespace, content: dict[str, object]) -> str:
    model = ServedModel("demo", servers.demo_file(), slots=4, context_length=1024)
    load = scenarios.demo_load(8, 1 if arguments.quick else 2)
    found = lifecycle.replicas(model, load, arguments.rounds, _say)
    results = {label: medians(of_rounds) for label, of_rounds in found.items()}
    content["replicas"] = {"medians": results, "rounds": found}
    one, two = (numbers.tokens_per_s for numbers in results.values())
    return f"replicas: demo model, 8 streams: {one:.1f} → {two:.1f} tokens/s, ratio {two / one:.2f}"


def _loading(arguments: argparse.Namespace, content: dict[str, object]) -> str:
    models = [
        ServedModel("counter", servers.counter_file(), slots=4, context_length=1024),
        ServedModel("demo", servers.demo_file(), slots=4, context_length=4096),
    ]
    found = lifecycle.time_to_ready(models, arguments.rounds, _say)
    content["loading"] = found
    lines = []
    for name, by_server in found.items():
        ours, theirs = (statistics.median(by_server[s]) for s in ("llmis", "llama.cpp"))
        lines.append(f"{name}: {ours:.2f} s against {theirs:.2f} s, ratio {ours / theirs:.2f}")
    return "loading, to ready:\n" + "\n".join(lines)


def _churn(_arguments: argparse.Namespace, content: dict[str, object]) -> str:
    model = ServedModel("counter", servers.counter_file(), slots=8, context_length=1024)
    found = lifecycle.churn(model, _say)
    content["churn"] = found
    return f"churn: {found['requests']} requests, {len(found['errors'])} failed"  # type: ignore[arg-type]


def _faults(arguments: argparse.Namespace, content: dict[str, object]) -> str:
    rounds = 1 if arguments.quick else max(arguments.rounds, 5)
    found = faults.run(rounds, _say)
    found["llama.cpp's server: kill -9, started again"] = faults.llama_server(rounds, _say)
    content["faults"] = found
    limit = f"what had not ended {faults.PATIENCE_S:g} s after the fault is not whole"
    return f"faults: seconds and streams; {limit}\n{faults.faults_table(found)}"


def _memory(arguments: argparse.Namespace, content: dict[str, object]) -> str:
    counts = memory.QUEUED[:2] if arguments.quick else memory.QUEUED
    of_queued = memory.queued(arguments.streams or counts, memory.PROMPT_BYTES, _say)
    of_active = memory.active(memory.ACTIVE, _say)
    content["memory"] = {"queued": of_queued, "active": of_active}
    return f"memory: above that of the idle service\n{memory.memory_table(of_queued, of_active)}"


def _metrics(arguments: argparse.Namespace, content: dict[str, object]) -> str:
    rounds = 1 if arguments.quick else max(arguments.rounds, 7)
    cost = metrics_cost.run(rounds, _say)
    content["metrics"] = cost
    return f"metrics: chunks per CPU second of one web process\n{metrics_cost.lines(cost)}"


_OTHERS = {
    "relay": _relay,
    "replicas": _replicas,
    "loading": _loading,
    "churn": _churn,
    "faults": _faults,
    "memory": _memory,
    "metrics": _metrics,
}


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
