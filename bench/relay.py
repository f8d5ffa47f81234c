"""The relay alone: one web process between a scripted publisher and many clients.

Everything but the engine is real: Redis, gunicorn, the Celery queue, the hub channel, SSE. The
publisher offers tokens at a steady rate; the web process keeps up with it or falls behind.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from bench import lone_web, measure, servers
from bench.fake_replica import JOBS_PER_MESSAGE, REPLICA_ID, Published, Script
from bench.load import LoadResult
from bench.processes import wait_for_quiet
from bench.report import table
from bench.scenarios import Load
from bench.servers import ServedModel, Server, child, wait_for
from tests.support.counter_model import NUMBERS

MODEL = "relay"
_DURATION_S = 4.0
_LAG_LIMIT_S = 0.25
"""A web process whose 99th percentile of relay time is longer does not keep up."""


class RelayNumbers(Struct, kw_only=True):
    """One load on one web process, or the medians of several rounds."""

    offered_per_s: float
    """Tokens per second that the publisher was to send."""
    sent_per_s: float
    """What it did send."""
    relayed_per_s: float
    """All tokens / (first published → last received)."""
    latency_p50_ms: float
    """Token published → chunk that ends with it received."""
    latency_p99_ms: float
    tokens_per_chunk: float
    tokens_per_cpu_s: float
    """Tokens per CPU second of the web process."""

    @property
    def cpu_us_per_chunk(self) -> float:
        """CPU microseconds of the web process: they vary less with the load than its tokens, since
        a busy machine joins more tokens in a chunk."""
        return 1e6 * self.tokens_per_chunk / self.tokens_per_cpu_s

    @property
    def keeps_up(self) -> bool:
        is_paced = self.sent_per_s > 0.97 * self.offered_per_s
        return is_paced and self.latency_p99_ms < 1000 * _LAG_LIMIT_S


def run(
    num_streams: int, rates: Sequence[int], rounds: int, say: Callable[[str], None]
) -> list[RelayNumbers]:
    """Medians over the rounds for each offered rate in tokens/s."""
    found: dict[int, list[RelayNumbers]] = {rate: [] for rate in rates}
    with lone_web.running("relay", MODEL, REPLICA_ID) as (server, redis_url):
        for _ in range(rounds):
            for rate in rates:
                numbers = measured(server, redis_url, num_streams, rate)
                found[rate].append(numbers)
                say(
                    f"  relay, {num_streams} streams, {rate:,} offered: "
                    f"{numbers.relayed_per_s:,.0f} tokens/s, p99 {numbers.latency_p99_ms:.0f} ms"
                )
    return [measure.medians(of_rate) for of_rate in found.values()]


def relay_table(results: dict[int, list[RelayNumbers]]) -> str:
    rows = [["streams", "keeps up", "offered/s", "sent/s", "relayed/s", "p50 ms", "p99 ms"]]
    rows[0] += ["tokens/chunk", "tokens/CPU s", "CPU µs/chunk"]
    for num_streams, of_streams in results.items():
        for numbers in of_streams:
            row = [str(num_streams), "yes" if numbers.keeps_up else "no"]
            row += [f"{numbers.offered_per_s:,.0f}", f"{numbers.sent_per_s:,.0f}"]
            row += [f"{numbers.relayed_per_s:,.0f}", f"{numbers.latency_p50_ms:.1f}"]
            row += [f"{numbers.latency_p99_ms:.1f}", f"{numbers.tokens_per_chunk:.1f}"]
            row += [f"{numbers.tokens_per_cpu_s:,.0f}", f"{numbers.cpu_us_per_chunk:.1f}"]
            rows.append(row)
    return table(rows)


# -- one measurement -------------------------------------------------------------------------


def measured(
    server: Server, redis_url: str, num_streams: int, rate: int, patience_s: float = 30.0
) -> RelayNumbers:
    """A load of so many streams, for some seconds, at so many tokens per second together. The
    server is one of `lone_web` for `MODEL`; the machine has so long to become quiet."""
    num_tokens = max(20, int(rate * _DURATION_S / num_streams))
    script = Script(
        model=MODEL,
        num_jobs=num_streams,
        num_tokens=num_tokens,
        tokens_per_s=rate,
        web_pid=server.pid,
    )
    folder = servers.FOLDER / "relay"
    script_path, result_path = folder / "script.json", folder / "published.json"
    script_path.write_bytes(msgspec.json.encode(script))
    result_path.unlink(missing_ok=True)
    # Distinct for up to 1,000 streams: the publisher puts the jobs in the order of the streams.
    load = Load("relay", [[str(i % NUMBERS)] for i in range(num_streams)], num_tokens)
    model = ServedModel(MODEL, Path(), num_streams, num_tokens + 1)
    command = [sys.executable, "-m", "bench.fake_replica", str(script_path), str(result_path)]
    wait_for_quiet(patience_s)
    with child("fake-replica", command, {"REDIS_URL": redis_url}) as replica:
        result = measure.run_load(load.plan(model, server))
        wait_for(result_path.exists, replica)
    load.check(result, "the relay")
    return _numbers(script, result, msgspec.json.decode(result_path.read_bytes(), type=Published))


def _numbers(script: Script, result: LoadResult, published: Published) -> RelayNumbers:
    at = published.message_at
    total = script.num_jobs * script.num_tokens
    groups = len(at) // script.num_tokens
    latencies = []
    for index, stream in enumerate(result.streams):
        count = 0
        for received_at, text in zip(stream.chunk_at, stream.chunk_texts, strict=True):
            count += text.count(" ")
            sent_at = at[(count - 1) * groups + index // JOBS_PER_MESSAGE]
            latencies.append(1000 * (received_at - sent_at))
    last = max(stream.chunk_at[-1] for stream in result.streams)
    sent_s = (at[-1] - at[0]) * len(at) / (len(at) - 1)
    web_cpu_s = sum(result.server_cpu_after.values()) - published.web_cpu_s
    return RelayNumbers(
        offered_per_s=script.tokens_per_s,
        sent_per_s=total / sent_s,
        relayed_per_s=total / (last - at[0]),
        latency_p50_ms=measure.quantile(latencies, 0.5),
        latency_p99_ms=measure.quantile(latencies, 0.99),
        tokens_per_chunk=total / len(latencies),
        tokens_per_cpu_s=total / web_cpu_s,
    )
