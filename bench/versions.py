"""The relay and the cost for Redis, of this version and another, in turns.

Each version runs its own benchmark by its own Python, because messages and keys may differ.
"""

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.checkout import Checkout
from bench.measure import medians
from bench.relay import RelayNumbers
from bench.report import table

_RELAY = """\
import sys
import msgspec
from bench import relay
streams, rate = (int(argument) for argument in sys.argv[1:])
found = relay.run(streams, [rate], 1, lambda _: None)
sys.stdout.buffer.write(msgspec.json.encode(found[0]))
"""
_REDIS_COST = """\
import pathlib, sys
import msgspec
from bench import redis_cost, report
path, rounds = pathlib.Path(sys.argv.pop()), sys.argv.pop()
redis_cost._ROUNDS = int(rounds)
report.write = lambda _, content: path.write_bytes(msgspec.json.encode(content))
redis_cost.main()
"""
"""`redis_cost.main` is what every version has; its result goes to a file of ours."""
_LIMIT_S = 300.0

RelayFound = dict[str, dict[int, list[RelayNumbers]]]
"""Version → streams → numbers for each rate."""


def relay(
    checkouts: Sequence[Checkout],
    streams: Sequence[int],
    rates: Sequence[int],
    rounds: int,
    say: Callable[[str], None],
) -> RelayFound:
    """Medians over the rounds. The web process starts anew in each turn."""
    found: RelayFound = {checkout.label: {} for checkout in checkouts}
    for num_streams in streams:
        for rate in rates:
            of_rate: dict[str, list[RelayNumbers]] = {checkout.label: [] for checkout in checkouts}
            for number in range(1, rounds + 1):
                for checkout in checkouts:
                    arguments = (str(num_streams), str(rate))
                    answer = checkout.run(_RELAY, *arguments, limit_s=_LIMIT_S)
                    numbers = msgspec.json.decode(answer, type=RelayNumbers)
                    of_rate[checkout.label].append(numbers)
                    say(
                        f"  round {number}, relay, {num_streams} streams, {rate:,} offered, "
                        f"{checkout.label}: {numbers.cpu_us_per_chunk:.1f} CPU µs/chunk"
                    )
            for label, of_rounds in of_rate.items():
                found[label].setdefault(num_streams, []).append(medians(of_rounds))
    return found


def relay_table(found: RelayFound) -> str:
    """The ratio is that of the first version to each other one."""
    rows = [["streams", "version", "offered/s", "relayed/s", "p50 ms", "p99 ms"]]
    rows[0] += ["tokens/chunk", "tokens/CPU s", "CPU µs/chunk"]
    ours, *others = found
    for num_streams, of_rates in found[ours].items():
        for index, own in enumerate(of_rates):
            rows += [
                _relay_row(str(num_streams), label, of_version[num_streams][index])
                for label, of_version in found.items()
            ]
            for label in others:
                theirs = found[label][num_streams][index]
                ratios = [a / b for a, b in zip(_shown(own), _shown(theirs), strict=True)]
                rows.append(["", f"{ours} / {label}", "", *(f"{ratio:.2f}" for ratio in ratios)])
    return table(rows)


def _relay_row(streams: str, label: str, numbers: RelayNumbers) -> list[str]:
    cells = [f"{value:,.1f}" for value in _shown(numbers)]
    return [streams, label, f"{numbers.offered_per_s:,.0f}", *cells]


def _shown(numbers: RelayNumbers) -> list[float]:
    return [
        numbers.relayed_per_s,
        numbers.latency_p50_ms,
        numbers.latency_p99_ms,
        numbers.tokens_per_chunk,
        numbers.tokens_per_cpu_s,
        numbers.cpu_us_per_chunk,
    ]


CostFound = dict[str, list[dict[str, float]]]
"""Version → of each round, what → microseconds."""


def redis_cost(
    checkouts: Sequence[Checkout], rounds: int, inner_rounds: int, say: Callable[[str], None]
) -> CostFound:
    """`inner_rounds` of a second for each value, in every turn."""
    found: CostFound = {checkout.label: [] for checkout in checkouts}
    for number in range(1, rounds + 1):
        for checkout in checkouts:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "result.json"
                checkout.run(_REDIS_COST, str(inner_rounds), str(path), limit_s=_LIMIT_S)
                costs = flat_costs(msgspec.json.decode(path.read_bytes()))
            found[checkout.label].append(costs)
            say(
                f"  round {number}, redis_cost, {checkout.label}: {costs['request']:.0f} µs/request"
            )
    return found


def flat_costs(content: Mapping[str, Any]) -> dict[str, float]:
    """A result of `bench.redis_cost` as one level."""
    found = {"request": content["life_us"]}
    for kind in ("token", "role", "beat"):
        found |= {f"{kind}: {name}": us for name, us in content[f"{kind}_us"].items()}
    return found


def cost_medians(found: CostFound) -> dict[str, dict[str, float]]:
    """Version → what → microseconds, of what all rounds of it have."""
    return {
        label: {
            what: statistics.median(of_round[what] for of_round in rounds) for what in rounds[0]
        }
        for label, rounds in found.items()
    }


def cost_table(costs: Mapping[str, Mapping[str, float]]) -> str:
    """One row for what all versions measure."""
    ours, *others = costs
    titles = [*costs, *(f"{ours} / {label}" for label in others)]
    rows = [["CPU µs of Redis", "", *titles]]
    for what, own in costs[ours].items():
        if not all(what in costs[label] for label in others):
            continue
        cells = [f"{of_version[what]:,.2f}" for of_version in costs.values()]
        cells += [f"{own / costs[label][what]:.2f}" for label in others]
        rows.append([what, "", *cells])
    return table(rows)
