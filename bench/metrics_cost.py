"""What the metrics cost: one web process with them and without, in turns, under the same load.

Tokens per CPU second of that process are compared: it is what bounds the throughput, and other
work on the machine disturbs CPU time less than it does the clock.
"""

import statistics
import time
import urllib.request
from collections.abc import Callable

from msgspec import Struct

from bench import lone_web, relay
from bench.fake_replica import REPLICA_ID
from bench.relay import RelayNumbers

_STREAMS, _TOKENS_PER_S = 64, 8_000
_SCRAPES = 20


class Cost(Struct, kw_only=True):
    with_metrics: list[RelayNumbers]
    """Of each round."""
    without: list[RelayNumbers]
    scrape_ms: list[float]
    """Medians of the rounds."""
    page_bytes: int


def run(rounds: int, say: Callable[[str], None]) -> Cost:
    cost = Cost(with_metrics=[], without=[], scrape_ms=[], page_bytes=0)
    for number in range(1, rounds + 1):
        for is_measured in (True, False) if number % 2 else (False, True):
            numbers = _round(cost, is_measured)
            (cost.with_metrics if is_measured else cost.without).append(numbers)
            which = "with metrics" if is_measured else "without"
            say(f"  round {number}, {which}: {numbers.tokens_per_cpu_s:,.0f} tokens/CPU s")
    return cost


def _round(cost: Cost, is_measured: bool) -> RelayNumbers:
    application = "" if is_measured else "bench.unmeasured:app"
    with lone_web.running("relay", relay.MODEL, REPLICA_ID, application=application) as (
        server,
        redis_url,
    ):
        relay.measured(server, redis_url, _STREAMS, _TOKENS_PER_S)  # warm-up
        numbers = relay.measured(server, redis_url, _STREAMS, _TOKENS_PER_S)
        if is_measured:
            times = []
            for _ in range(_SCRAPES):
                began_at = time.perf_counter()
                with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as page:
                    cost.page_bytes = len(page.read())
                times.append(1000 * (time.perf_counter() - began_at))
            cost.scrape_ms.append(statistics.median(times))
    return numbers


def lines(cost: Cost) -> str:
    found, bare = (
        statistics.median(numbers.tokens_per_cpu_s for numbers in rounds)
        for rounds in (cost.with_metrics, cost.without)
    )
    per_round = [
        one.tokens_per_cpu_s / other.tokens_per_cpu_s
        for one, other in zip(cost.with_metrics, cost.without, strict=True)
    ]
    return (
        f"{found:,.0f} with metrics, {bare:,.0f} without: ratio of the medians {found / bare:.3f}, "
        f"median of the rounds' ratios {statistics.median(per_round):.3f}\n"
        f"a scrape: {statistics.median(cost.scrape_ms):.1f} ms, {cost.page_bytes:,} bytes"
    )
