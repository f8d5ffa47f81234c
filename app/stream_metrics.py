"""Measures requests where their answers are read: a streamed one where its stream ends, not where
its headers go out."""

import time
from enum import StrEnum

from app import metrics
from app.job_stream import ClientGone
from app.meters import meters_of
from shared.errors import LlmisError, RequestCancelled
from shared.messages import Delta, Event, Finished, Job, JobKind, Started

_GENERATING = (JobKind.CHAT, JobKind.COMPLETION)


class Outcome(StrEnum):
    """How a request ended, as its first reader saw it."""

    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    CLIENT_GONE = "client_gone"
    REJECTED = "rejected"


class Stage(StrEnum):
    """How far a request had come."""

    QUEUED = "queued"
    PREFILL = "prefill"
    DECODE = "decode"


class StreamMetrics:
    """Measures one request from its events."""

    def __init__(self, job: Job, received_at: float) -> None:
        """`received_at`: when the request came, by the monotonic clock."""
        self._model = job.model
        self._generates = job.kind in _GENERATING
        self._reaches_engine = self._generates or job.kind is JobKind.EMBEDDING
        self._received_at = received_at
        self._last_content_at = 0.0
        self._stage = Stage.QUEUED
        self._attempt = 0
        self._finish_reason = ""
        self._meters = meters_of(job.model)

    def observe(self, events: list[Event]) -> None:
        num_tokens = 0
        for event in events:
            if isinstance(event, Delta):
                num_tokens += len(event.token_ids)
                if event.finish_reason is not None and event.index == 0:
                    self._finish_reason = event.finish_reason.value
            elif isinstance(event, Finished):
                self._finish(event)
            elif isinstance(event, Started):
                self._stage = Stage.PREFILL
        if num_tokens and self._generates:
            self._take_content(num_tokens)
        attempt = events[-1].attempt
        if attempt > self._attempt:
            metrics.FAILOVERS.labels(self._model).inc(attempt - self._attempt)
            self._attempt = attempt

    def _take_content(self, num_tokens: int) -> None:
        now = time.monotonic()
        if self._last_content_at:
            gap_s = now - self._last_content_at
            self._meters.inter_token_latency.observe(gap_s / num_tokens)
        else:
            self._stage = Stage.DECODE
            self._meters.time_to_first_token.observe(now - self._received_at)
        self._last_content_at = now
        self._meters.generation_tokens.inc(num_tokens)

    def _finish(self, event: Finished) -> None:
        if not self._reaches_engine:
            return
        meters, timings, usage = self._meters, event.timings, event.usage
        meters.queue_time.observe(timings.queue_s)
        meters.prefill_time.observe(timings.prefill_s)
        meters.request_prompt_tokens.observe(usage.prompt_tokens)
        meters.prompt_tokens.inc(usage.prompt_tokens)
        meters.cached_tokens.inc(usage.cached_tokens)
        if self._generates:
            meters.decode_time.observe(timings.decode_s)
            meters.request_generation_tokens.observe(usage.completion_tokens)

    def close(self, error: BaseException | None) -> None:
        """Count the request. `error` is what ended it."""
        outcome = _outcome(error)
        metrics.REQUESTS.labels(self._model, outcome.value, self._reason(outcome)).inc()
        if outcome is Outcome.FINISHED and self._reaches_engine:
            self._meters.e2e_latency.observe(time.monotonic() - self._received_at)
        elif outcome is Outcome.FAILED:
            metrics.FAILURES.labels(self._model, reason_of(error)).inc()
        elif outcome in (Outcome.CANCELLED, Outcome.CLIENT_GONE):
            metrics.CANCELLATIONS.labels(self._model, self._stage.value).inc()

    def _reason(self, outcome: Outcome) -> str:
        is_worded = outcome is Outcome.FINISHED and self._generates
        return self._finish_reason if is_worded else ""


def _outcome(error: BaseException | None) -> Outcome:
    if error is None:
        return Outcome.FINISHED
    if isinstance(error, ClientGone | GeneratorExit):
        return Outcome.CLIENT_GONE
    return Outcome.CANCELLED if isinstance(error, RequestCancelled) else Outcome.FAILED


def reason_of(error: BaseException | None) -> str:
    """A label for an error: its code, or its type; one of those in `shared.errors`."""
    if isinstance(error, LlmisError):
        return error.code or error.type
    return "server_error"


def count_rejection(model: str, error: LlmisError) -> None:
    """A request that never became a job. `model` is one that exists, or empty."""
    metrics.REQUESTS.labels(model, Outcome.REJECTED.value, "").inc()
    metrics.REJECTIONS.labels(model, reason_of(error)).inc()
