"""What one request adds to the metrics, by its events, and that its log line says the same."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import REGISTRY

from app.errors import ClientGone
from app.metrics import buffered, definitions
from app.metrics.request_record import Outcome, RequestRecord
from app.middleware import request_log
from shared import errors
from shared.wire.events import (
    Delta,
    Echo,
    Embedding,
    Event,
    Finished,
    FinishReason,
    Started,
    Timings,
    Usage,
)
from shared.wire.job import Job, JobKind
from tests.support.jobs import completion_job

Added = Callable[..., float]


def _job(kind: JobKind = JobKind.COMPLETION) -> Job:
    return completion_job(id="a", kind=kind)


def _delta(
    seq: int, num_tokens: int, reason: FinishReason | None = None, attempt: int = 0
) -> Delta:
    return Delta(seq, attempt, 0, "x", [1] * num_tokens, reason)


_END = Finished(9, 0, Usage(7, 5, 3), Timings(0.5, 0.25, 2.0))


@pytest.fixture
def added() -> Added:
    """By how much a series has grown since the test began."""

    def value(name: str, **labels: str) -> float:
        buffered.flush_buffers()
        return REGISTRY.get_sample_value(f"llmis_{name}", {"model": "m", **labels}) or 0.0

    before: dict[Any, float] = {}
    buffered.flush_buffers()
    for family in REGISTRY.collect():
        for sample in family.samples:
            before[(sample.name, *sorted(sample.labels.items()))] = sample.value

    def grown(name: str, **labels: str) -> float:
        key = (f"llmis_{name}", *sorted({"model": "m", **labels}.items()))
        return value(name, **labels) - before.get(key, 0.0)

    return grown


def _measure(
    *batches: list[Event],
    error: BaseException | None = None,
    kind: JobKind = JobKind.COMPLETION,
    is_first: bool = True,
) -> RequestRecord:
    record = RequestRecord("POST /x", is_counted=True)
    record.read(_job(kind), is_first=is_first)
    for events in batches:
        record.observe(events)
    record.fail(error)
    request_log.end(record, "r", "anonymous", 200)
    return record


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


_LAST = [_delta(1, 2, FinishReason.STOP), _END]


@pytest.mark.parametrize(
    ("seen", "errors_of_it", "outcome"),
    [
        (_LAST, [], "finished"),
        (_LAST, [ZeroDivisionError(), errors.InternalError("x")], "failed"),
        ([_delta(1, 2)], [errors.EngineError("x")], "failed"),
        ([_delta(1, 2)], [errors.RequestCancelled("x")], "cancelled"),
        (_LAST, [errors.RequestCancelled("x")], "cancelled"),
        ([_delta(1, 2)], [ClientGone()], "client_gone"),
        (_LAST, [GeneratorExit()], "client_gone"),
        (None, [errors.InvalidRequest("x")], "rejected"),
        (None, [errors.RequestCancelled("x")], "rejected"),
    ],
)
@pytest.mark.parametrize("is_first", [True, False], ids=["first", "resumed"])
def test_log_line_and_metrics_agree(
    added: Added,
    caplog: pytest.LogCaptureFixture,
    seen: list[Event] | None,
    errors_of_it: list[BaseException],
    outcome: str,
    is_first: bool,
) -> None:
    record = RequestRecord("POST /x", is_counted=is_first or seen is not None)
    record.model = "m"
    if seen is not None:
        record.read(_job(), is_first=is_first)
        record.observe([Started(0, 0, 7)])
        record.observe(seen)
    for error in errors_of_it:
        record.fail(error)
    with caplog.at_level(logging.DEBUG):
        request_log.end(record, "r", "anonymous", 200)
    (line,) = caplog.records
    fields = line.__dict__
    assert fields["outcome"] == outcome
    number = int(is_first)
    counted = {
        (one.value, word): added("requests_total", outcome=one, finish_reason=word)
        for one in Outcome
        for word in ("", "stop")
    }
    word = fields["finish_reason"] if outcome == "finished" else ""
    assert counted == {key: number * (key == (outcome, word)) for key in counted}
    for name in ("failed", "rejected"):
        reason = fields.get("error", "") if outcome == name else "?"
        counter = {"failed": "failures_total", "rejected": "rejections_total"}[name]
        assert added(counter, reason=reason) == (number if outcome == name else 0)
    if seen is not None:
        assert added("generation_tokens_total") == 2 * number
        assert added("time_to_first_token_seconds_count") == number
        ttft_s = added("time_to_first_token_seconds_sum")
        assert ttft_s == pytest.approx(number * fields["ttft_ms"] / 1000, abs=1e-4)
    is_finished = outcome == "finished"
    assert added("e2e_request_latency_seconds_count") == number * is_finished
    assert added("prompt_tokens_total") == number * is_finished * fields.get("prompt_tokens", 0)


def test_tokens_are_content_and_neither_an_echo_nor_an_empty_delta_is(added: Added) -> None:
    record = _measure([Started(0, 0, 7)], [Echo(1, 0, 0, "5")], [_delta(2, 0, FinishReason.LENGTH)])
    assert record.ttft_s is None
    assert added("time_to_first_token_seconds_count") == 0


def test_what_is_buffered_arrives_as_if_it_were_not(added: Added) -> None:
    values = [0.0, 0.001, 0.0010001, 0.03, 600.0, 601.0, 0.2]
    histogram = buffered.BufferedHistogram(definitions.STREAM_LAG, "buffered")
    for value in values:
        histogram.observe(value)
        definitions.STREAM_LAG.labels("plain").observe(value)
    histogram.flush()
    histogram.flush()
    samples = next(iter(definitions.STREAM_LAG.collect())).samples
    of = {
        model: {
            (s.name, s.labels.get("le")): s.value
            for s in samples
            if s.labels["model"] == model and not s.name.endswith("_created")
        }
        for model in ("buffered", "plain")
    }
    assert of["buffered"] == of["plain"]
