"""The relay of this version and of another, in turns.

Each version runs its own benchmark by its own Python, because messages and keys may differ.
"""

from collections.abc import Callable, Sequence

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
    rows = [["streams", "version", "offered/s", "sent/s", "relayed/s", "p50 ms", "p99 ms"]]
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
        numbers.sent_per_s,
        numbers.relayed_per_s,
        numbers.latency_p50_ms,
        numbers.latency_p99_ms,
        numbers.tokens_per_chunk,
        numbers.tokens_per_cpu_s,
        numbers.cpu_us_per_chunk,
    ]
