"""What `python -m bench NAME` runs: from a name to its table."""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from bench import (
    faults,
    lifecycle,
    memory,
    metrics_cost,
    prefill,
    relay,
    report,
    scenarios,
    servers,
    versions,
)
from bench.checkout import HERE, Checkout
from bench.load import LIMIT_S
from bench.measure import Numbers, medians, whole_medians
from bench.report import Column
from bench.scenarios import Effort, Load
from bench.servers import ServedModel

_COUNTER_STREAMS = (1, 8, 32, 64)
_DEMO_STREAMS = (1, 8)
_GROWTH_STREAMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_RELAY_STREAMS = (64, 1000)
_RELAY_RATES = (10_000, 30_000, 60_000, 100_000)
_CLIENTS = 16
_BURST = 64
_COUNTER_TOKENS = 512
"""A counter load has about this many tokens a stream and request ..."""
_COUNTER_TOTAL = 32_768
"""... and as many requests as give this many tokens, but at most 16 a stream."""


@dataclass
class Session:
    """One call of `python -m bench`."""

    arguments: argparse.Namespace
    effort: Effort
    against: Checkout | None = None
    content: dict[str, object] = field(default_factory=dict)
    """For the file of results, by name."""

    @property
    def is_quick(self) -> bool:
        return bool(self.arguments.quick)

    @property
    def checkouts(self) -> list[Checkout]:
        return [HERE] if self.against is None else [HERE, self.against]

    def streams(self, default: Sequence[int]) -> Sequence[int]:
        return self.arguments.streams or default

    def say(self, text: str) -> None:
        print(text, flush=True)


# -- llmis against llama.cpp's server ---------------------------------------------------------


def _side_by_side(name: str, columns: Sequence[Column], session: Session) -> str:
    model, loads = scenario(name, session)
    servers_of = scenarios.sides(session.against)
    found = scenarios.side_by_side(model, loads, session.effort, servers_of, session.say)
    results = {
        label: {server: whole_medians(of_rounds) for server, of_rounds in by_server.items()}
        for label, by_server in found.items()
    }
    streams = {load.label: len(load.prompts) for load in loads}
    session.content[name] = {"streams": streams, "medians": results, "rounds": found}
    table = report.side_by_side_table(results, columns=columns)
    return f"{_title(name, model)}{_stalls(found)}\n{table}"


def _title(name: str, model: ServedModel) -> str:
    title = f"{name}: {model.slots} slots of {model.context_length} tokens, 1 compute thread"
    limits = f"a start had {servers.START_LIMIT_S:g} s, a load {LIMIT_S:g} s"
    return f"{title}; times in ms; {limits}"


def _stalls(found: dict[str, dict[str, list[Numbers | None]]]) -> str:
    """A line for each load that a server did not end in some round."""
    lines = [
        f"{label}, {server}: {of_rounds.count(None)} of {len(of_rounds)} rounds stalled"
        for label, by_server in found.items()
        for server, of_rounds in by_server.items()
        if None in of_rounds
    ]
    return "".join(f"\n{line}; they count for nothing" for line in lines)


def scenario(name: str, session: Session) -> tuple[ServedModel, list[Load]]:
    """The model and the loads of a benchmark that sets servers side by side."""
    is_quick = session.is_quick
    if name == "demo":
        streams = session.streams(_DEMO_STREAMS)
        loads = [scenarios.demo_load(n, 1 if is_quick else 3) for n in streams]
        return ServedModel("demo", servers.demo_file(), max(streams), context_length=1024), loads
    if name == "ttft":
        slots, loads = max(_COUNTER_STREAMS), [scenarios.ttft_load(10 if is_quick else 30)]
    elif name == "requests":
        slots, loads = _CLIENTS, [scenarios.request_load(_CLIENTS, 5 if is_quick else 60)]
    elif name == "burst":
        slots, loads = _BURST, [scenarios.burst_load(_BURST, 2 if is_quick else 5)]
    else:
        streams = session.streams(_GROWTH_STREAMS if name == "growth" else _COUNTER_STREAMS)
        total = _COUNTER_TOTAL // 4 if is_quick else _COUNTER_TOTAL
        slots, loads = max(streams), [_counter_load(n, total) for n in streams]
    return ServedModel("counter", servers.counter_file(), slots, context_length=1024), loads


def _counter_load(num_streams: int, total: int) -> Load:
    max_tokens = min(_COUNTER_TOKENS, max(64, total // num_streams))
    requests = min(16, max(1, total // (num_streams * max_tokens)))
    return scenarios.counter_load(num_streams, max_tokens, requests)


def _prefill(session: Session) -> str:
    slots = prefill.STREAMS + 1
    model = ServedModel("demo", servers.demo_file(), slots, prefill.CONTEXT)
    servers_of = scenarios.sides(session.against)
    found = prefill.run(model, session.effort, servers_of, session.say)
    results = prefill.medians(found)
    session.content["prefill"] = {"medians": results, "rounds": found}
    what = f"{prefill.STREAMS} running streams while a long prompt is read"
    return f"{_title('prefill', model)}; {what}\n{prefill.prefill_table(results)}"


# -- parts of llmis, and of another version --------------------------------------------------


def _relay(session: Session) -> str:
    streams = session.streams(_RELAY_STREAMS)
    rates = session.arguments.rates or _RELAY_RATES
    rounds = session.effort.rounds
    title = "relay: one web process, no engine"
    if session.against is not None:
        found = versions.relay(session.checkouts, streams, rates, rounds, session.say)
        session.content["relay"] = found
        return f"{title}\n{versions.relay_table(found)}"
    results = {n: relay.run(n, rates, rounds, session.say) for n in streams}
    session.content["relay"] = results
    return f"{title}\n{relay.relay_table(results)}"


def _metrics(session: Session) -> str:
    rounds = 1 if session.is_quick else max(session.effort.rounds, 7)
    cost = metrics_cost.run(rounds, session.say)
    session.content["metrics"] = cost
    return f"metrics: chunks per CPU second of one web process\n{metrics_cost.lines(cost)}"


def _memory(session: Session) -> str:
    counts = memory.QUEUED[:2] if session.is_quick else memory.QUEUED
    of_queued = memory.queued(session.streams(counts), memory.PROMPT_BYTES, session.say)
    of_active = memory.active(memory.ACTIVE, session.say)
    session.content["memory"] = {"queued": of_queued, "active": of_active}
    return f"memory: above that of the idle service\n{memory.memory_table(of_queued, of_active)}"


# -- models that come and go, and faults -----------------------------------------------------


def _replicas(session: Session) -> str:
    model = ServedModel("demo", servers.demo_file(), slots=4, context_length=1024)
    load = scenarios.demo_load(8, 1 if session.is_quick else 2)
    found = lifecycle.replicas(model, load, session.effort.rounds, session.say)
    results = {label: medians(of_rounds) for label, of_rounds in found.items()}
    session.content["replicas"] = {"medians": results, "rounds": found}
    one, two = (numbers.tokens_per_s for numbers in results.values())
    return f"replicas: demo model, 8 streams: {one:.1f} → {two:.1f} tokens/s, ratio {two / one:.2f}"


def _loading(session: Session) -> str:
    models = [
        ServedModel("counter", servers.counter_file(), slots=4, context_length=1024),
        ServedModel("demo", servers.demo_file(), slots=4, context_length=4096),
    ]
    found = lifecycle.time_to_ready(models, session.effort.rounds, session.say)
    session.content["loading"] = found
    lines = []
    for name, by_server in found.items():
        ours, theirs = (statistics.median(by_server[s]) for s in ("llmis", "llama.cpp"))
        lines.append(f"{name}: {ours:.2f} s against {theirs:.2f} s, ratio {ours / theirs:.2f}")
    return "loading, to ready:\n" + "\n".join(lines)


def _churn(session: Session) -> str:
    model = ServedModel("counter", servers.counter_file(), slots=8, context_length=1024)
    found = lifecycle.churn(model, session.say)
    session.content["churn"] = found
    return f"churn: {found['requests']} requests, {len(found['errors'])} failed"  # type: ignore[arg-type]


def _faults(session: Session) -> str:
    rounds = 1 if session.is_quick else max(session.effort.rounds, 5)
    found = faults.run(rounds, session.say)
    found["llama.cpp's server: kill -9, started again"] = faults.llama_server(rounds, session.say)
    session.content["faults"] = found
    limit = f"what had not ended {faults.PATIENCE_S:g} s after the fault is not whole"
    return f"faults: seconds and streams; {limit}\n{faults.faults_table(found)}"


COMMANDS: dict[str, Callable[[Session], str]] = {
    "counter": partial(_side_by_side, "counter", report.OF_TOKENS),
    "ttft": partial(_side_by_side, "ttft", report.OF_TOKENS),
    "requests": partial(_side_by_side, "requests", report.OF_REQUESTS),
    "burst": partial(_side_by_side, "burst", report.OF_BURSTS),
    "demo": partial(_side_by_side, "demo", report.OF_TOKENS),
    "prefill": _prefill,
    "growth": partial(_side_by_side, "growth", report.OF_TOKENS),
    "relay": _relay,
    "replicas": _replicas,
    "loading": _loading,
    "churn": _churn,
    "faults": _faults,
    "memory": _memory,
    "metrics": _metrics,
}
"""In the order in which `python -m bench` runs them."""
