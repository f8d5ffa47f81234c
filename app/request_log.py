"""The end of every request: it is counted (`app.request_metrics`), and has one line in the log:
docs/logs.md has its fields.

Runs in the request's greenlet. The requests of a WebSocket connection have a line each, the
connection has none.
"""

import logging
from typing import Any

from flask import Flask, Response, g, request

from app import request_metrics
from app.auth import ANONYMOUS, Principal
from app.request_facts import RequestFacts
from app.services import services
from shared import logs

_log = logging.getLogger(__name__)
_POLLED = {"health.healthz", "health.readyz", "prometheus_metrics"}
"""Endpoints that machines ask all the time: their lines are of the level debug."""
_ASKING = ("generation", "embeddings", "tokenization")
"""Blueprints whose requests become jobs, or are rejected."""


def end(
    facts: RequestFacts, request_id: str, owner: str, status: int, level: int = logging.INFO
) -> None:
    """Write the line of a request and count it. It is the last that is done for it."""
    facts.end()
    request_metrics.count(facts)
    if facts.error is not None and facts.error.status >= 500:
        level = logging.WARNING
    ids = {"request_id": request_id, "owner": owner, "status": status}
    _log.log(level, "request", extra=ids | _fields(facts))
    logs.set_request_id("")


def _fields(facts: RequestFacts) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "route": facts.route,
        "outcome": facts.outcome.value,
        "total_ms": _ms(facts.total_s),
    }
    if facts.error is not None:
        fields["error"] = facts.reason
    if facts.model:
        fields["model"] = facts.model
    if facts.kind is not None:
        fields["kind"] = facts.kind.value
    if facts.has_job:
        fields |= _of_job(facts)
    if facts.rules:
        fields["filter"] = list(facts.rules)
    if facts.with_texts and facts.kind is not None:
        answers = [text for _, text in sorted(facts.answers.items())]
        fields |= {"prompt": facts.prompt, "answers": answers}
    return fields


def _of_job(facts: RequestFacts) -> dict[str, Any]:
    finished, ttft_s, usage = facts.finished, facts.ttft_s, facts.usage
    return {
        "finish_reason": ",".join(sorted(set(facts.finish_reasons.values()))) or None,
        "attempts": facts.attempt + 1,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
        "queue_ms": _ms(finished.timings.queue_s) if finished else None,
        "ttft_ms": None if ttft_s is None else _ms(ttft_s),
    }


def register(app: Flask) -> None:
    """Before all else that looks at requests: what those refuse has a line, too."""
    app.before_request(_begin)
    app.after_request(_end_with_the_body)


def name_request(request_id: str) -> None:
    """Give the request at hand its id, in its answer and in all its lines."""
    g.request_id = request_id
    logs.set_request_id(request_id)


def new_facts(route: str, *, is_counted: bool) -> RequestFacts:
    """Begin with a request of this process."""
    with_texts = services().settings.log_prompts
    return RequestFacts(route, is_counted=is_counted, with_texts=with_texts)


def _begin() -> None:
    rule = request.url_rule.rule if request.url_rule else "?"
    asks = request.blueprint in _ASKING and request.method == "POST"
    g.facts = new_facts(f"{request.method} {rule}", is_counted=asks)


def _end_with_the_body(response: Response) -> Response:
    """The end of a stream, not its headers."""
    principal: Principal | None = g.get("principal")
    owner = principal.owner if principal else ANONYMOUS
    facts, request_id = g.facts, g.request_id
    level = logging.DEBUG if request.endpoint in _POLLED else logging.INFO
    response.direct_passthrough = False  # a file's: Werkzeug would tell nobody of its end
    response.call_on_close(lambda: end(facts, request_id, owner, response.status_code, level))
    return response


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 1)
