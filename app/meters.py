"""What requests add to the metrics. An observation costs a tenth of a microsecond here: it is
written to the files that the web processes share with the next beat, or when they are read.

Runs in the process's one thread; nothing here waits.
"""

from bisect import bisect_left

from prometheus_client import Counter, Histogram

from app import metrics


class BufferedHistogram:
    """One model's part of a histogram."""

    def __init__(self, histogram: Histogram, model: str) -> None:
        child = histogram.labels(model)
        self._buckets, self._total = child._buckets, child._sum
        self._bounds: list[float] = child._upper_bounds
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def flush(self) -> None:
        for index, count in enumerate(self._counts):
            if count:
                self._buckets[index].inc(count)
                self._counts[index] = 0
        if self._sum:
            self._total.inc(self._sum)
            self._sum = 0.0


class BufferedCounter:
    """One model's part of a counter."""

    def __init__(self, counter: Counter, model: str) -> None:
        self._child = counter.labels(model)
        self._pending = 0

    def inc(self, amount: int) -> None:
        self._pending += amount

    def flush(self) -> None:
        if self._pending:
            self._child.inc(self._pending)
            self._pending = 0


class Meters:
    """A model's. Only for models that exist: whoever has one, has series."""

    def __init__(self, model: str) -> None:
        self.time_to_first_token = BufferedHistogram(metrics.TIME_TO_FIRST_TOKEN, model)
        self.inter_token_latency = BufferedHistogram(metrics.INTER_TOKEN_LATENCY, model)
        self.queue_time = BufferedHistogram(metrics.QUEUE_TIME, model)
        self.prefill_time = BufferedHistogram(metrics.PREFILL_TIME, model)
        self.decode_time = BufferedHistogram(metrics.DECODE_TIME, model)
        self.e2e_latency = BufferedHistogram(metrics.E2E_LATENCY, model)
        self.stream_lag = BufferedHistogram(metrics.STREAM_LAG, model)
        self.request_prompt_tokens = BufferedHistogram(metrics.REQUEST_PROMPT_TOKENS, model)
        self.request_generation_tokens = BufferedHistogram(metrics.REQUEST_GENERATION_TOKENS, model)
        self.prompt_tokens = BufferedCounter(metrics.PROMPT_TOKENS, model)
        self.cached_tokens = BufferedCounter(metrics.CACHED_TOKENS, model)
        self.generation_tokens = BufferedCounter(metrics.GENERATION_TOKENS, model)

    def flush(self) -> None:
        for meter in vars(self).values():
            meter.flush()


_meters: dict[str, Meters] = {}


def meters_of(model: str) -> Meters:
    found = _meters.get(model)
    if found is None:
        found = _meters[model] = Meters(model)
    return found


def flush() -> None:
    """Write down what has been observed since the last call."""
    for meters in _meters.values():
        meters.flush()
