"""What the metrics cost: one web process with them and one without, in turns, under the same load.

Chunks sent per CPU second are compared: that is what bounds the throughput of a web process, and
other work on the machine disturbs it less than what the clock says.
"""

import statistics
import time
import urllib.request
from collections.abc import Callable

from msgspec import Struct

from bench import lone_web, relay
from bench.fake_replica import REPLICA_ID
from bench.servers import Server

_STREAMS, _TOKENS_PER_S = 64, 3_000
_PATIENCE_S = 2.0
_SCRAPES = 20


class Cost(Struct, kw_only=True):
    """Chunks per CPU second of each round."""

    with_metrics: list[float]
    without: list[float]
    scrape_ms: float
    """Median, after the last round."""
    page_bytes: int


def run(rounds: int, say: Callable[[str], None]) -> Cost:
    cost = Cost(with_metrics=[], without=[], scrape_ms=0.0, page_bytes=0)
    bare = "bench.unmeasured:app"
    with (
        lone_web.running("relay", relay.MODEL, REPLICA_ID) as one,
        lone_web.running("relay-bare", relay.MODEL, REPLICA_ID, application=bare) as other,
    ):
        sides = [("with metrics", cost.with_metrics, one), ("without", cost.without, other)]
        for number in range(rounds + 1):  # the first one warms up
            for name, found, (server, redis_url) in sides if number % 2 else sides[::-1]:
                numbers = relay.measured(server, redis_url, _STREAMS, _TOKENS_PER_S, _PATIENCE_S)
                if number:
                    found.append(1e6 / numbers.cpu_us_per_chunk)
                    say(f"  round {number}, {name}: {found[-1]:,.0f} chunks/CPU s")
        cost.scrape_ms, cost.page_bytes = _scrape(one[0])
    return cost


def _scrape(server: Server) -> tuple[float, int]:
    times = []
    for _ in range(_SCRAPES):
        began_at = time.perf_counter()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as page:
            size = len(page.read())
        times.append(1000 * (time.perf_counter() - began_at))
    return statistics.median(times), size


def lines(cost: Cost) -> str:
    found, bare = statistics.median(cost.with_metrics), statistics.median(cost.without)
    ratios = [a / b for a, b in zip(cost.with_metrics, cost.without, strict=True)]
    return (
        f"{found:,.0f} with them, {bare:,.0f} without: ratio of the medians {found / bare:.3f}, "
        f"median of the rounds' ratios {statistics.median(ratios):.3f}\n"
        f"a scrape: {cost.scrape_ms:.1f} ms, {cost.page_bytes:,} bytes"
    )
