"""What is recorded of one request: how it ended, its tokens and its times. The events of its reader
are walked once, here; its log line (`app.middleware.request_log`) and its metrics come from the
same record.

Runs in the request's greenlet; nothing here waits.
"""

import time
from enum import StrEnum

from app.errors import ClientGone
from app.metrics import definitions
from app.metrics.buffered import BufferedMetrics, metrics_of
from shared.errors import ContentFiltered, InternalError, LlmisError, RequestCancelled
from shared.wire.events import Delta, Event, Finished, FinishReason, Started, Usage
from shared.wire.job import Job, JobKind

_MAX_TEXT = 4000
"""Characters of a prompt, and of an answer, with `log_prompts`."""


class Outcome(StrEnum):
    """How a request ended: docs/metrics.md."""

    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    CLIENT_GONE = "client_gone"
    REJECTED = "rejected"


class Stage(StrEnum):
    """How far a request has come."""

    QUEUED = "queued"
    PREFILL = "prefill"
    DECODE = "decode"


class RequestRecord:
    """The record of one request, which has one reader of a job at most."""

    def __init__(self, route: str, *, is_counted: bool = False, with_texts: bool = False) -> None:
        self.route = route
        self.is_counted = is_counted
        """In the metrics: it is for a model, and not for a job that was there before."""
        self.with_texts = with_texts
        self.received_at = time.monotonic()
        self.total_s = 0.0
        """Received → end."""
        self.ttft_s: float | None = None
        """Received → first tokens delivered to this reader."""
        self.model = ""
        """A model that exists, or empty: it becomes a label."""
        self.kind: JobKind | None = None
        self.generates = False
        self.has_job = False
        self.attempt = 0
        self.started: Started | None = None
        self.finished: Finished | None = None
        self.finish_reasons: dict[int, FinishReason] = {}
        """By choice index."""
        self.rules: dict[str, None] = {}
        """Denylist rules that matched, in order."""
        self.prompt = ""
        self.answers: dict[int, str] = {}
        """Texts by choice index. They and the prompt are kept only with `with_texts`."""
        self._num_chars = 0
        self._num_tokens = 0
        self._error: BaseException | None = None
        self._last_tokens_at = 0.0
        self._metrics: BufferedMetrics | None = None

    def ask(self, job: Job) -> None:
        """Note the job that the request is to become."""
        self.kind = job.kind
        if self.with_texts:
            self.prompt = _text_of(job)

    def read(self, job: Job, *, is_first: bool) -> None:
        """Note the job that the answer is read from. `is_first`: it was made for this request."""
        self.model, self.kind, self.has_job = job.model, job.kind, True
        self.generates = job.kind in (JobKind.CHAT, JobKind.COMPLETION)
        self.is_counted = self.is_counted and is_first
        if self.is_counted:
            self._metrics = metrics_of(job.model)

    def observe(self, events: list[Event]) -> None:
        """Note events as they are read: one or more."""
        num_tokens = 0
        for event in events:
            if isinstance(event, Delta):
                if self.generates:
                    num_tokens += len(event.token_ids)
                    if event.finish_reason or event.filtered or self.with_texts:
                        self._observe_delta(event)
            elif isinstance(event, Started):
                self.started = event
            elif isinstance(event, Finished):
                self.finished = event
        if num_tokens:
            self._observe_tokens(num_tokens)
        attempt = events[-1].attempt
        if attempt > self.attempt:
            if self.is_counted:
                definitions.FAILOVERS.labels(self.model).inc(attempt - self.attempt)
            self.attempt = attempt

    def _observe_delta(self, delta: Delta) -> None:
        if delta.finish_reason is not None:
            self.finish_reasons[delta.index] = delta.finish_reason
        if delta.filtered is not None:
            for match in delta.filtered.matches:
                self.note_match(match.rule, match.action, "output")
        if self.with_texts and self._num_chars < _MAX_TEXT:
            calls = "".join((call.name or "") + call.arguments for call in delta.tool_calls)
            text = (delta.reasoning + delta.text + calls)[: _MAX_TEXT - self._num_chars]
            self._num_chars += len(text)
            self.answers[delta.index] = self.answers.get(delta.index, "") + text

    def _observe_tokens(self, num_tokens: int) -> None:
        now, metrics = time.monotonic(), self._metrics
        self._num_tokens += num_tokens
        if metrics is not None:
            metrics.generation_tokens.inc(num_tokens)
        if self.ttft_s is None:
            self.ttft_s = now - self.received_at
            if metrics is not None:
                metrics.time_to_first_token.observe(self.ttft_s)
        elif metrics is not None:
            metrics.inter_token_latency.observe((now - self._last_tokens_at) / num_tokens)
        self._last_tokens_at = now

    def note_match(self, rule: str, action: str, where: str) -> None:
        """Note a match of a denylist rule; `where` is prompt or output."""
        self.rules[rule] = None
        if self.is_counted:
            definitions.FILTER_MATCHES.labels(self.model, action, where).inc()

    def fail(self, error: BaseException | None) -> None:
        """Note the error that the request ends with; None = no error. A later one replaces it: it
        is the one in the answer."""
        if error is not None:
            self._error = error

    def end(self) -> None:
        self.total_s = time.monotonic() - self.received_at

    @property
    def error(self) -> LlmisError | None:
        """The error of the answer, or that it would have had."""
        return self._error if isinstance(self._error, LlmisError) else None

    @property
    def reason(self) -> str:
        """Why it did not finish: the error's code, or its type when it has no code."""
        error = self.error or InternalError("")
        return error.code or error.type

    @property
    def outcome(self) -> Outcome:
        """The one rule for logs and metrics; docs/metrics.md describes it."""
        if self._error is None:
            return Outcome.FINISHED
        if not self.has_job:
            return Outcome.REJECTED
        if isinstance(self._error, RequestCancelled):
            return Outcome.CANCELLED
        if isinstance(self._error, ClientGone | GeneratorExit):
            return Outcome.CLIENT_GONE
        return Outcome.FAILED

    @property
    def stage(self) -> Stage:
        if self.ttft_s is not None:
            return Stage.DECODE
        return Stage.PREFILL if self.started else Stage.QUEUED

    @property
    def usage(self) -> Usage:
        """The usage in the answer; of a request that did not finish, what was relayed."""
        if self.finished is not None:
            return self.finished.usage
        return Usage(self.started.prompt_tokens if self.started else 0, self._num_tokens)


def _text_of(job: Job) -> str:
    texts = [f"{message.role}: {message.content}" for message in job.messages]
    texts += [
        prompt if isinstance(prompt, str) else str(prompt[:_MAX_TEXT]) for prompt in job.prompts
    ]
    return "\n".join(texts)[:_MAX_TEXT]


def count(record: RequestRecord) -> None:
    """Count a request that has ended, unless its job was there before."""
    if not record.is_counted:
        return
    outcome, model = record.outcome, record.model
    is_finished = outcome is Outcome.FINISHED
    finish_reason = record.finish_reasons.get(0, "") if is_finished else ""
    definitions.REQUESTS.labels(model, outcome, finish_reason).inc()
    if is_finished:
        _count_work(record)
    elif outcome is Outcome.REJECTED:
        definitions.REJECTIONS.labels(model, record.reason).inc()
    elif outcome is Outcome.FAILED:
        definitions.FAILURES.labels(model, record.reason).inc()
        if isinstance(record.error, ContentFiltered):
            definitions.FILTER_MATCHES.labels(model, "refuse", "prompt").inc()
    else:
        definitions.CANCELLATIONS.labels(model, record.stage).inc()


def _count_work(record: RequestRecord) -> None:
    """Count tokens and times of a finished request, if an engine ran it: tokenizing needs none."""
    finished = record.finished
    if finished is None or not (record.generates or record.kind is JobKind.EMBEDDING):
        return
    timings, usage = finished.timings, finished.usage
    metrics = metrics_of(record.model)
    metrics.e2e_latency.observe(record.total_s)
    metrics.queue_time.observe(timings.queue_s)
    metrics.prefill_time.observe(timings.prefill_s)
    metrics.request_prompt_tokens.observe(usage.prompt_tokens)
    metrics.prompt_tokens.inc(usage.prompt_tokens)
    metrics.cached_tokens.inc(usage.cached_tokens)
    if record.generates:
        metrics.decode_time.observe(timings.decode_s)
        metrics.request_generation_tokens.observe(usage.completion_tokens)
