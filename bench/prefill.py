"""What running streams see while the server reads a long prompt.

Some streams of a model run; then a request with a prompt of about 4,000 tokens comes. The gaps
between the chunks of the running streams are compared before it and while it is read: an engine
that reads all of it in one step lets them wait as long.
"""

import math
from collections.abc import Callable, Iterable, Mapping

import msgspec
from msgspec import Struct

from bench import measure, scenarios
from bench.load import LoadResult
from bench.measure import Stalled, quantile
from bench.processes import wait_for_quiet
from bench.report import table
from bench.scenarios import Effort, Load, Start
from bench.servers import ServedModel, Server
from bench.sse import Stream

CONTEXT = 4608
STREAMS = 3
_PROMPT_DIGITS = 2000
"""With a space before each: Gemma's vocabulary makes two tokens of them."""


class PrefillNumbers(Struct, kw_only=True):
    """One round, or the medians of several."""

    before_p50_ms: float
    """Gap between chunks of the running streams, before the long prompt came."""
    p50_ms: float
    """Gap between them while it was read, and so on."""
    p99_ms: float
    longest_ms: float
    p99_over_median: float
    """Both while it was read."""
    p99_over_before: float
    """The median before it came: stricter, since reading makes every step longer."""
    ttft_ms: float
    """Of the request with the long prompt."""
    prompt_tokens: float


Found = dict[str, list[PrefillNumbers | None]]
"""Server → numbers of each round, None where it stalled."""


def run(
    model: ServedModel, effort: Effort, servers_of: Mapping[str, Start], say: Callable[[str], None]
) -> Found:
    """One server runs at a time, in turns."""
    found: Found = {name: [] for name in servers_of}
    for number in range(1, effort.rounds + 1):
        for name, start in servers_of.items():
            numbers = None
            try:
                with start(model) as server:
                    numbers = _measured(model, server, effort)
            except Stalled as exc:
                say(f"  {exc}")
            found[name].append(numbers)
            what = "stalled" if numbers is None else f"ITL p99 {numbers.p99_ms:.0f} ms"
            say(f"  round {number}, prefill, {name}: {what}")
    return found


def _measured(model: ServedModel, server: Server, effort: Effort) -> PrefillNumbers:
    scenarios.warm_up(model, server)
    running = scenarios.demo_load(STREAMS, 1)
    load = msgspec.structs.replace(
        Load(running.label, running.prompts, CONTEXT // 2, counts=False).plan(model, server),
        late=[_late_body(model, server)],
    )
    wait_for_quiet(effort.patience_s)
    return prefill_numbers(measure.run_load(load))


def _late_body(model: ServedModel, server: Server) -> msgspec.Raw:
    """Digits, so that its length in tokens is known beforehand."""
    prompt = " ".join(str(i * i % 7) for i in range(_PROMPT_DIGITS))
    return Load("late", [[prompt]], 8, counts=False).plan(model, server).streams[0][0]


def prefill_numbers(result: LoadResult) -> PrefillNumbers:
    """Raises RuntimeError when the running streams ended before the prompt was read, or when no
    text follows it."""
    late = result.late
    assert late is not None, "the plan has a late request"
    read_from, read_to = late.sent_at, late.sent_at + measure.ttft_s(late)
    before = [b - a for a, b in _gaps(result.streams) if b <= read_from]
    # A gap that began before the prompt came, or ends after it was read, was caused by it, too.
    during = [b - a for a, b in _gaps(result.streams) if b > read_from and a < read_to]
    if not during:
        raise RuntimeError("no stream ran while the long prompt was read")
    p50, p99 = quantile(during, 0.5), quantile(during, 0.99)
    before_p50 = quantile(before, 0.5)
    return PrefillNumbers(
        before_p50_ms=1000 * before_p50,
        p50_ms=1000 * p50,
        p99_ms=1000 * p99,
        longest_ms=1000 * max(during),
        p99_over_median=p99 / p50 if p50 else math.inf,
        p99_over_before=p99 / before_p50 if before_p50 else math.inf,
        ttft_ms=1000 * (read_to - read_from),
        prompt_tokens=late.prompt_tokens,
    )


def _gaps(streams: Iterable[Stream]) -> list[tuple[float, float]]:
    return [pair for s in streams for pair in zip(s.chunk_at, s.chunk_at[1:], strict=False)]


def medians(found: Found) -> dict[str, PrefillNumbers | None]:
    """Of the rounds in which the server did not stall."""
    return {name: measure.whole_medians(of_rounds) for name, of_rounds in found.items()}


def prefill_table(results: Mapping[str, PrefillNumbers | None]) -> str:
    rows = [
        ["server", "", "ITL before", "while read p50", "p99", "longest", "p99/p50", "p99/before"]
    ]
    rows[0] += ["TTFT of the long one", "its tokens"]
    for name, numbers in results.items():
        if numbers is None:
            rows.append([name, "stalled", *[""] * (len(rows[0]) - 2)])
            continue
        times = (numbers.before_p50_ms, numbers.p50_ms, numbers.p99_ms, numbers.longest_ms)
        cells = [f"{time_ms:,.1f}" for time_ms in times]
        cells += [f"{numbers.p99_over_median:.1f}", f"{numbers.p99_over_before:.1f}"]
        cells += [f"{numbers.ttft_ms:,.0f}", f"{numbers.prompt_tokens:,.0f}"]
        rows.append([name, "", *cells])
    return table(rows)
