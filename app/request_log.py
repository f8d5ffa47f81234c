"""One log line for each request, written when it has ended: docs/logs.md has its fields.

Runs in the request's greenlet. The requests of a WebSocket connection have a line each, the
connection has none.
"""

import logging
import time
from typing import Any

from flask import Flask, Response, g, request

from app.auth import ANONYMOUS, Principal
from app.job_stream import ClientGone
from app.services import services
from shared import logs
from shared.errors import LlmisError, RequestCancelled
from shared.messages import Delta, Echo, Event, Finished, Job, JobKind, Started, Timings, Usage

_log = logging.getLogger(__name__)
_MAX_TEXT = 4000
"""Characters of a prompt, and of an answer, with `log_prompts`."""
_POLLED = {"health.healthz", "health.readyz", "prometheus_metrics"}
"""Endpoints that machines ask all the time: their lines are of the level debug."""


class RequestLine:
    """What is gathered about one request."""

    def __init__(self, route: str, *, is_polled: bool = False, with_prompts: bool = False) -> None:
        self._route = route
        self._is_polled = is_polled
        self._with_prompts = with_prompts
        self.began_at = time.monotonic()
        """When the request came, by the monotonic clock."""
        self._first_content_at = 0.0
        self._model = ""
        self._kind: JobKind | None = None
        self._has_job = False
        self._is_finished = False
        self._error: BaseException | None = None
        self._attempt = 0
        self._usage = Usage(0, 0)
        self._timings: Timings | None = None
        self._reasons: dict[int, str] = {}
        """Choice index → its finish reason."""
        self._rules: dict[str, None] = {}
        """Of the denylist, that have matched."""
        self._prompt = ""
        self._answers: dict[int, str] = {}
        self._num_chars = 0

    def ask(self, job: Job) -> None:
        """The request is to become this job."""
        self._model, self._kind = job.model, job.kind
        if self._with_prompts:
            self._prompt = _text_of(job)

    def read(self, job: Job) -> None:
        """The request is answered from this job."""
        self._model, self._kind, self._has_job = job.model, job.kind, True

    def observe(self, events: list[Event]) -> None:
        for event in events:
            self._attempt = max(self._attempt, event.attempt)
            if isinstance(event, Delta):
                self._observe_delta(event)
            elif isinstance(event, Started):
                self._usage = Usage(event.prompt_tokens, self._usage.completion_tokens)
            elif isinstance(event, Finished):
                self._is_finished = True
                self._usage, self._timings = event.usage, event.timings
            elif isinstance(event, Echo):
                self._note_content()

    def _observe_delta(self, delta: Delta) -> None:
        if self._kind not in (JobKind.CHAT, JobKind.COMPLETION):
            return
        for match in delta.filtered.matches if delta.filtered else ():
            self.note_rule(match.rule)
        self._note_content()
        made, usage = len(delta.token_ids), self._usage
        self._usage = Usage(usage.prompt_tokens, usage.completion_tokens + made)
        if delta.finish_reason is not None:
            self._reasons[delta.index] = delta.finish_reason
        if self._with_prompts and self._num_chars < _MAX_TEXT:
            calls = "".join((call.name or "") + call.arguments for call in delta.tool_calls)
            text = (delta.reasoning + delta.text + calls)[: _MAX_TEXT - self._num_chars]
            self._num_chars += len(text)
            self._answers[delta.index] = self._answers.get(delta.index, "") + text

    def _note_content(self) -> None:
        self._first_content_at = self._first_content_at or time.monotonic()

    def note_rule(self, name: str) -> None:
        """A rule of the denylist matches."""
        self._rules[name] = None

    def fail(self, error: BaseException | None) -> None:
        """The request ends with this error; None = it has none."""
        if error is not None:
            self._error = error

    def write(self, request_id: str, owner: str, status: int) -> None:
        """Write the line. It is the last that is done for the request."""
        level = logging.DEBUG if self._is_polled else logging.INFO
        if isinstance(self._error, LlmisError) and self._error.status >= 500:
            level = logging.WARNING
        fields = self._fields(status) | {"request_id": request_id, "owner": owner}
        _log.log(level, "request", extra=fields)
        logs.set_request_id("")

    def _fields(self, status: int) -> dict[str, Any]:
        error = self._error if isinstance(self._error, LlmisError) else None
        fields: dict[str, Any] = {
            "route": self._route,
            "status": status,
            "outcome": self._outcome(status),
            "total_ms": _ms(time.monotonic() - self.began_at),
        }
        if error is not None:
            fields["error"] = error.code or error.type
        if self._kind is not None:
            fields |= {"model": self._model, "kind": self._kind.value}
        if self._has_job:
            fields |= self._of_job()
        if self._rules:
            fields["filter"] = list(self._rules)
        if self._with_prompts and self._kind is not None:
            answers = [text for _, text in sorted(self._answers.items())]
            fields |= {"prompt": self._prompt, "answers": answers}
        return fields

    def _of_job(self) -> dict[str, Any]:
        began_at, first_at, timings = self.began_at, self._first_content_at, self._timings
        return {
            "finish_reason": ",".join(sorted(set(self._reasons.values()))) or None,
            "attempts": self._attempt + 1,
            "prompt_tokens": self._usage.prompt_tokens,
            "completion_tokens": self._usage.completion_tokens,
            "cached_tokens": self._usage.cached_tokens,
            "queue_ms": _ms(timings.queue_s) if timings else None,
            "ttft_ms": _ms(first_at - began_at) if first_at else None,
        }

    def _outcome(self, status: int) -> str:
        if isinstance(self._error, RequestCancelled):
            return "cancelled"
        if isinstance(self._error, ClientGone | GeneratorExit):
            return "client_gone"
        if self._is_finished:
            return "finished"
        if self._has_job:
            return "failed"
        return "rejected" if status >= 400 or self._error else "finished"


def register(app: Flask) -> None:
    """Before all else that looks at requests: what those refuse has a line, too."""
    app.before_request(_begin)
    app.after_request(_write_at_the_end)


def name_request(request_id: str) -> None:
    """Give the request at hand its id, in its answer and in all its lines."""
    g.request_id = request_id
    logs.set_request_id(request_id)


def new_line(route: str, *, is_polled: bool = False) -> RequestLine:
    """Begin the line of a request of this process."""
    with_prompts = services().settings.log_prompts
    return RequestLine(route, is_polled=is_polled, with_prompts=with_prompts)


def _begin() -> None:
    rule = request.url_rule.rule if request.url_rule else "?"
    is_polled = request.endpoint in _POLLED
    g.line = new_line(f"{request.method} {rule}", is_polled=is_polled)


def _write_at_the_end(response: Response) -> Response:
    """The end of a stream, not its headers."""
    principal: Principal | None = g.get("principal")
    owner = principal.owner if principal else ANONYMOUS
    line, request_id = g.line, g.request_id
    response.direct_passthrough = False  # a file's: Werkzeug would tell nobody of its end
    response.call_on_close(lambda: line.write(request_id, owner, response.status_code))
    return response


def _text_of(job: Job) -> str:
    texts = [f"{message.role}: {message.content}" for message in job.messages]
    texts += [
        prompt if isinstance(prompt, str) else str(prompt[:_MAX_TEXT]) for prompt in job.prompts
    ]
    return "\n".join(texts)[:_MAX_TEXT]


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 1)
