"""What one request comes to. The events that its reader gets are walked once, here; the log line
(`app.request_log`) and the metrics (`app.request_metrics`) tell of the same facts.

Runs in the request's greenlet; nothing here waits.
"""

import time
from enum import StrEnum

from app import metrics
from app.job_stream import ClientGone
from app.meters import Meters, meters_of
from shared.errors import InternalError, LlmisError, RequestCancelled
from shared.messages import Delta, Event, Finished, FinishReason, Job, JobKind, Started, Usage

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
    """How far a request had come."""

    QUEUED = "queued"
    PREFILL = "prefill"
    DECODE = "decode"


class RequestFacts:
    """One request's, of one reader."""

    def __init__(self, route: str, *, is_counted: bool = False, with_texts: bool = False) -> None:
        self.route = route
        self.is_counted = is_counted
        """In the metrics: it asks a model, and for what nobody has asked for before."""
        self.with_texts = with_texts
        self.received_at = time.monotonic()
        self.total_s = 0.0
        """Received → end."""
        self.ttft_s: float | None = None
        """Received → first tokens that this reader got."""
        self.model = ""
        """One that exists, or empty."""
        self.kind: JobKind | None = None
        self.generates = False
        self.has_job = False
        self.attempt = 0
        self.started: Started | None = None
        self.finished: Finished | None = None
        self.finish_reasons: dict[int, FinishReason] = {}
        """By choice index."""
        self.rules: dict[str, None] = {}
        """Of the denylist, that have matched."""
        self.prompt = ""
        self.answers: dict[int, str] = {}
        """Texts by choice index; like the prompt with `with_texts` alone."""
        self._num_chars = 0
        self._num_tokens = 0
        self._error: BaseException | None = None
        self._last_tokens_at = 0.0
        self._meters: Meters | None = None

    def ask(self, job: Job) -> None:
        """The request is to become this job."""
        self.kind = job.kind
        if self.with_texts:
            self.prompt = _text_of(job)

    def read(self, job: Job, *, is_first: bool) -> None:
        """The request is answered from this job, which was made for it or was there before."""
        self.model, self.kind, self.has_job = job.model, job.kind, True
        self.generates = job.kind in (JobKind.CHAT, JobKind.COMPLETION)
        self.is_counted = self.is_counted and is_first
        if self.is_counted:
            self._meters = meters_of(job.model)

    def observe(self, events: list[Event]) -> None:
        """Take what was read: one event or more."""
        num_tokens = 0
        for event in events:
            if isinstance(event, Delta):
                if self.generates:
                    num_tokens += len(event.token_ids)
                    self._observe_delta(event)
            elif isinstance(event, Started):
                self.started = event
            elif isinstance(event, Finished):
                self.finished = event
        if num_tokens:
            self._take_tokens(num_tokens)
        attempt = events[-1].attempt
        if attempt > self.attempt:
            if self.is_counted:
                metrics.FAILOVERS.labels(self.model).inc(attempt - self.attempt)
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

    def _take_tokens(self, num_tokens: int) -> None:
        now, meters = time.monotonic(), self._meters
        self._num_tokens += num_tokens
        if meters is not None:
            meters.generation_tokens.inc(num_tokens)
        if self.ttft_s is None:
            self.ttft_s = now - self.received_at
            if meters is not None:
                meters.time_to_first_token.observe(self.ttft_s)
        elif meters is not None:
            meters.inter_token_latency.observe((now - self._last_tokens_at) / num_tokens)
        self._last_tokens_at = now

    def note_match(self, rule: str, action: str, where: str) -> None:
        """A rule of the denylist matches, in the prompt or in the output."""
        self.rules[rule] = None
        if self.is_counted:
            metrics.FILTER_MATCHES.labels(self.model, action, where).inc()

    def fail(self, error: BaseException | None) -> None:
        """The request ends with this error; None = it has none. The last one counts: the one that
        the client is told."""
        if error is not None:
            self._error = error

    def end(self) -> None:
        self.total_s = time.monotonic() - self.received_at

    @property
    def error(self) -> LlmisError | None:
        """What the client is, or would be, told."""
        return self._error if isinstance(self._error, LlmisError) else None

    @property
    def reason(self) -> str:
        """Why it did not finish: the error's code, or its type without one."""
        error = self.error or InternalError("")
        return error.code or error.type

    @property
    def outcome(self) -> Outcome:
        """The one rule for logs and metrics; docs/metrics.md has it in words."""
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
        """As in the answer; of a request that did not finish, what was relayed."""
        if self.finished is not None:
            return self.finished.usage
        return Usage(self.started.prompt_tokens if self.started else 0, self._num_tokens)


def _text_of(job: Job) -> str:
    texts = [f"{message.role}: {message.content}" for message in job.messages]
    texts += [
        prompt if isinstance(prompt, str) else str(prompt[:_MAX_TEXT]) for prompt in job.prompts
    ]
    return "\n".join(texts)[:_MAX_TEXT]
