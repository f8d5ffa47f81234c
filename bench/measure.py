"""From a load on a server to its numbers."""

import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec
from msgspec import Struct

from bench.load import STALLED, LoadResult, Plan
from bench.processes import ROOT
from bench.sse import Stream

T = TypeVar("T", bound=Struct)
_PARSE_LIMIT_S = 120.0
"""Of the load generator, to start and to parse what came back."""


class Numbers(Struct, kw_only=True):
    """What one load showed, or the medians of several rounds."""

    tokens_per_s: float
    """Output tokens of all streams / (first request sent → last stream ended)."""
    ttft_p50_ms: float
    """Request sent → first chunk with text."""
    ttft_p99_ms: float
    ttft_last_ms: float
    """The last stream's of a burst, median over the bursts; without bursts, the longest."""
    itl_p50_ms: float
    """Gap between chunks, whatever they hold."""
    itl_p99_ms: float
    itl_token_p50_ms: float
    """Gap between chunks / tokens of the later one, once for each of these tokens."""
    itl_token_p99_ms: float
    tokens_per_chunk: float
    cpu_s_per_1k: float
    """CPU seconds of all processes of the server for 1,000 output tokens."""
    cpu_by_role: dict[str, float]
    """CPU seconds for 1,000 output tokens, by process."""
    requests_per_s: float
    tokens_per_request: float
    load_cpu_s_per_1k: float
    """CPU seconds that the load generator took besides."""
    other_cores: float
    """Cores kept busy by anything else on the machine: a disturbed run, from about 0.1."""

    @property
    def cpu_ms_per_request(self) -> float:
        return self.cpu_s_per_1k * self.tokens_per_request

    def cpu_ms_per_request_of(self, role: str) -> float | None:
        """None if the server has no such process."""
        if role not in self.cpu_by_role:
            return None
        return self.cpu_by_role[role] * self.tokens_per_request


class Stalled(RuntimeError):
    """A phase took longer than its limit."""


def run_load(plan: Plan) -> LoadResult:
    """Run the load generator. Raises RuntimeError with its message when it fails, Stalled when the
    server does not end the streams in time."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bench.load"],
            cwd=ROOT,
            input=msgspec.json.encode(plan),
            capture_output=True,
            timeout=plan.limit_s + _PARSE_LIMIT_S,
        )
    except subprocess.TimeoutExpired as exc:
        raise Stalled(f"the load generator has not ended after {exc.timeout:g} s") from exc
    if done.returncode == STALLED:
        raise Stalled(done.stderr.decode().strip())
    if done.returncode != 0:
        raise RuntimeError(f"the load failed:\n{done.stderr.decode()[-3000:]}")
    return msgspec.json.decode(done.stdout, type=LoadResult)


def numbers(
    result: LoadResult, tokens_of: Callable[[Stream, str], float], num_bursts: int = 1
) -> Numbers:
    """Work out the numbers; `tokens_of` counts the tokens of a chunk of a stream. Every stream of
    a load with bursts has one request in each."""
    streams = result.streams
    used = {
        role: seconds - result.server_cpu_before.get(role, 0.0)
        for role, seconds in result.server_cpu_after.items()
    }
    num_tokens = sum(stream.completion_tokens for stream in streams)
    wall_s = max(s.ended_at for s in streams) - min(s.sent_at for s in streams)
    ttft = [ttft_s(stream) for stream in streams]
    gaps: list[float] = []
    token_gaps: list[float] = []
    for stream in streams:
        later = zip(stream.chunk_at, stream.chunk_at[1:], stream.chunk_texts[1:], strict=False)
        for before, at, text in later:
            tokens = tokens_of(stream, text)
            gaps.append(at - before)
            token_gaps += [(at - before) / tokens] * max(1, round(tokens))
    return Numbers(
        tokens_per_s=num_tokens / wall_s,
        ttft_p50_ms=1000 * quantile(ttft, 0.5),
        ttft_p99_ms=1000 * quantile(ttft, 0.99),
        # The requests of a stream follow one another: burst j has every num_bursts-th from j on.
        ttft_last_ms=1000 * statistics.median(max(ttft[j::num_bursts]) for j in range(num_bursts)),
        itl_p50_ms=1000 * quantile(gaps, 0.5),
        itl_p99_ms=1000 * quantile(gaps, 0.99),
        itl_token_p50_ms=1000 * quantile(token_gaps, 0.5),
        itl_token_p99_ms=1000 * quantile(token_gaps, 0.99),
        tokens_per_chunk=num_tokens / sum(len(s.chunk_at) for s in streams),
        cpu_s_per_1k=1000 * sum(used.values()) / num_tokens,
        cpu_by_role={role: 1000 * seconds / num_tokens for role, seconds in used.items()},
        requests_per_s=len(streams) / wall_s,
        tokens_per_request=num_tokens / len(streams),
        load_cpu_s_per_1k=1000 * result.load_cpu_s / num_tokens,
        other_cores=(result.machine_cpu_s - sum(used.values()) - result.load_cpu_s) / wall_s,
    )


def ttft_s(stream: Stream) -> float:
    """Raises RuntimeError for a stream without text, which has no first token."""
    if not stream.chunk_at:
        raise RuntimeError(f"a stream of {stream.completion_tokens} tokens has no text")
    return stream.chunk_at[0] - stream.sent_at


def quantile(values: Sequence[float], q: float) -> float:
    """The value at index floor(q * n) in order; 0 without values, as one chunk has no gap."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def medians(rounds: Sequence[T]) -> T:
    """Field by field; a field with several values is treated value by value."""
    fields: dict[str, object] = {}
    for name in rounds[0].__struct_fields__:
        values = [getattr(of_round, name) for of_round in rounds]
        if isinstance(values[0], dict):
            roles = sorted({role for of_round in values for role in of_round})
            fields[name] = {r: statistics.median(v.get(r, 0.0) for v in values) for r in roles}
        else:
            fields[name] = statistics.median(values)
    return type(rounds[0])(**fields)


def whole_medians(rounds: Sequence[T | None]) -> T | None:
    """Medians of the rounds in which the server did not stall; None if it always did."""
    whole = [of_round for of_round in rounds if of_round is not None]
    return medians(whole) if whole else None
