"""What one request adds to the metrics, by its events."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import REGISTRY

from app import meters, metrics
from app.job_stream import ClientGone
from app.stream_metrics import StreamMetrics
from shared import errors
from shared.messages import (
    Delta,
    Embedding,
    Event,
    Finished,
    FinishReason,
    Job,
    JobKind,
    Started,
    Timings,
    Usage,
)

Added = Callable[..., float]


def _job(kind: JobKind = JobKind.COMPLETION) -> Job:
    now = time.time()
    return Job(id="a", model="m", kind=kind, created_at=now, deadline_at=now + 60)


def _delta(
    seq: int, num_tokens: int, reason: FinishReason | None = None, attempt: int = 0
) -> Delta:
    return Delta(seq, attempt, 0, "x", [1] * num_tokens, reason)


_END = Finished(9, 0, Usage(7, 5, 3), Timings(0.5, 0.25, 2.0))


@pytest.fixture
def added() -> Added:
    """By how much a series has grown since the test began."""

    def value(name: str, **labels: str) -> float:
        meters.flush()
        return REGISTRY.get_sample_value(f"llmis_{name}", {"model": "m", **labels}) or 0.0

    before: dict[Any, float] = {}
    meters.flush()
    for family in REGISTRY.collect():
        for sample in family.samples:
            before[(sample.name, *sorted(sample.labels.items()))] = sample.value

    def grown(name: str, **labels: str) -> float:
        key = (f"llmis_{name}", *sorted({"model": "m", **labels}.items()))
        return value(name, **labels) - before.get(key, 0.0)

    return grown


def _measure(
    *batches: list[Event], error: BaseException | None = None, kind: JobKind = JobKind.COMPLETION
) -> None:
    measured = StreamMetrics(_job(kind), time.monotonic())
    for events in batches:
        measured.observe(events)
    measured.close(error)


def test_a_finished_request(added: Added) -> None:
    _measure([Started(0, 0, 7)], [_delta(1, 2)], [_delta(2, 3, FinishReason.LENGTH), _END])
    assert added("requests_total", outcome="finished", finish_reason="length") == 1
    assert added("time_to_first_token_seconds_count") == 1
    assert added("inter_token_latency_seconds_count") == 1
    assert added("request_queue_time_seconds_sum") == 0.5
    assert added("request_prefill_time_seconds_sum") == 0.25
    assert added("request_decode_time_seconds_sum") == 2.0
    assert added("e2e_request_latency_seconds_count") == 1
    assert added("request_prompt_tokens_sum") == 7
    assert added("request_generation_tokens_sum") == 5
    assert added("prompt_tokens_total") == 7
    assert added("prompt_tokens_cached_total") == 3
    assert added("generation_tokens_total") == 5


@pytest.mark.parametrize(
    ("seen", "stage"),
    [
        ([], "queued"),
        ([[Started(0, 0, 7)]], "prefill"),
        ([[Started(0, 0, 7)], [_delta(1, 1)]], "decode"),
    ],
)
@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ClientGone(), "client_gone"),
        (GeneratorExit(), "client_gone"),
        (errors.RequestCancelled("x"), "cancelled"),
    ],
)
def test_where_a_request_was_left(
    added: Added, seen: list[list[Event]], stage: str, error: BaseException, outcome: str
) -> None:
    _measure(*seen, error=error)
    assert added("requests_total", outcome=outcome, finish_reason="") == 1
    assert added("cancellations_total", stage=stage) == 1
    assert added("e2e_request_latency_seconds_count") == 0, "it did not end"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errors.EngineError("x"), "engine_error"),
        (errors.ContextLengthExceeded("x"), "context_length_exceeded"),
        (errors.InvalidRequest("x"), "invalid_request_error"),
        (errors.GoingAway("x"), "going_away"),
        (ZeroDivisionError(), "server_error"),
    ],
)
def test_why_a_request_failed(added: Added, error: Exception, reason: str) -> None:
    _measure([Started(0, 0, 7)], error=error)
    assert added("requests_total", outcome="failed", finish_reason="") == 1
    assert added("failures_total", reason=reason) == 1


def test_attempts_after_the_first_are_failovers(added: Added) -> None:
    _measure([Started(0, 0, 7)], [_delta(1, 1)], [_delta(2, 1, attempt=2)], [_END])
    assert added("failovers_total") == 2


def test_embeddings_have_no_tokens_to_wait_for(added: Added) -> None:
    _measure([Started(0, 0, 7)], [Embedding(1, 0, 0, b"1234"), _END], kind=JobKind.EMBEDDING)
    assert added("requests_total", outcome="finished", finish_reason="") == 1
    assert added("prompt_tokens_total") == 7
    assert added("e2e_request_latency_seconds_count") == 1
    assert added("time_to_first_token_seconds_count") == 0
    assert added("request_decode_time_seconds_count") == 0


def test_tokenizing_is_counted_and_not_timed(added: Added) -> None:
    delta = _delta(0, 4, FinishReason.STOP)
    _measure([delta, _END], kind=JobKind.TOKENIZE)
    assert added("requests_total", outcome="finished", finish_reason="") == 1
    for name in ("generation_tokens_total", "prompt_tokens_total"):
        assert added(name) == 0
    for name in ("e2e_request_latency_seconds_count", "request_queue_time_seconds_count"):
        assert added(name) == 0


def test_what_is_buffered_arrives_as_if_it_were_not(added: Added) -> None:
    values = [0.0, 0.001, 0.0010001, 0.03, 600.0, 601.0, 0.2]
    buffered = meters.BufferedHistogram(metrics.STREAM_LAG, "m")
    for value in values:
        buffered.observe(value)
        metrics.STREAM_LAG.labels("plain").observe(value)
    buffered.flush()
    buffered.flush()
    samples = next(iter(metrics.STREAM_LAG.collect())).samples
    of = {
        model: {
            (s.name, s.labels.get("le")): s.value
            for s in samples
            if s.labels["model"] == model and not s.name.endswith("_created")
        }
        for model in ("m", "plain")
    }
    assert of["m"] == of["plain"]
