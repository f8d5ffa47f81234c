"""The end of every request: it is counted (`app.metrics.request_record`) and logged in one line,
whose fields are in docs/logs.md.

Runs in the request's greenlet. Each request of a WebSocket connection has a line, the connection
itself has none.
"""

import logging
from typing import Any

from flask import Flask, Response, g, request

from app.auth.authenticator import ANONYMOUS, Principal
from app.auth.scopes import PROBES
from app.jobs.dispatcher import request_id_from
from app.metrics import request_record
from app.metrics.request_record import RequestRecord
from app.services import services
from shared import logs

_log = logging.getLogger(__name__)
_POLLED = {*PROBES, "/metrics"}
"""Routes that monitoring polls: their lines have the level debug."""
_JOB_BLUEPRINTS = ("generation", "embeddings", "tokenization")
"""Blueprints whose requests become jobs."""


def end(
    record: RequestRecord, request_id: str, owner: str, status: int, level: int = logging.INFO
) -> None:
    """Log a request and count it: the last step of each."""
    record.end()
    request_record.count(record)
    if record.error is not None and record.error.status >= 500:
        level = logging.WARNING
    ids = {"request_id": request_id, "owner": owner, "status": status}
    _log.log(level, "request", extra=ids | _fields(record))
    logs.set_request_id("")


def _fields(record: RequestRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "route": record.route,
        "outcome": record.outcome.value,
        "total_ms": _ms(record.total_s),
    }
    if record.error is not None:
        fields["error"] = record.reason
    if record.model:
        fields["model"] = record.model
    if record.kind is not None:
        fields["kind"] = record.kind.value
    if record.has_job:
        fields |= _of_job(record)
    if record.rules:
        fields["filter"] = list(record.rules)
    if record.with_texts and record.kind is not None:
        answers = [text for _, text in sorted(record.answers.items())]
        fields |= {"prompt": record.prompt, "answers": answers}
    return fields


def _of_job(record: RequestRecord) -> dict[str, Any]:
    finished, ttft_s, usage = record.finished, record.ttft_s, record.usage
    return {
        "finish_reason": ",".join(sorted(set(record.finish_reasons.values()))) or None,
        "attempts": record.attempt + 1,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
        "queue_ms": _ms(finished.timings.queue_s) if finished else None,
        "ttft_ms": None if ttft_s is None else _ms(ttft_s),
    }


def register(app: Flask) -> None:
    """Before all other middleware: a request that one of those rejects has a line, too."""
    app.before_request(_begin)
    app.after_request(_end_with_the_body)


def name_request(request_id: str) -> None:
    """Set the id of the request at hand, for its answer and its log lines."""
    g.request_id = request_id
    logs.set_request_id(request_id)


def new_record(route: str, *, is_counted: bool) -> RequestRecord:
    """Begin the record of a request."""
    with_texts = services().settings.log_prompts
    return RequestRecord(route, is_counted=is_counted, with_texts=with_texts)


def _begin() -> None:
    name_request(request_id_from(request.headers.get("x-request-id")))
    rule = request.url_rule.rule if request.url_rule else "?"
    is_job = request.blueprint in _JOB_BLUEPRINTS and request.method == "POST"
    g.record = new_record(f"{request.method} {rule}", is_counted=is_job)


def _end_with_the_body(response: Response) -> Response:
    """A stream ends with its body, long after this hook."""
    principal: Principal | None = g.get("principal")
    owner = principal.owner if principal else ANONYMOUS
    record, request_id = g.record, g.request_id
    is_polled = request.url_rule is not None and request.url_rule.rule in _POLLED
    level = logging.DEBUG if is_polled else logging.INFO
    response.direct_passthrough = False  # else Werkzeug does not report the end of a static file
    response.call_on_close(lambda: end(record, request_id, owner, response.status_code, level))
    return response


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 1)
