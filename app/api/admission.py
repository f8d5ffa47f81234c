"""Admits the job of an HTTP request: headers of the request in, headers for the response out.

Runs in the request's greenlet.
"""

from collections.abc import Callable

from flask import g, request

from app.jobs.build import JobRequest
from app.jobs.dispatcher import Subscription
from app.jobs.idempotency import idempotency_key
from app.jobs.prompt_filter import HEADER as FILTER_HEADER
from app.jobs.rate_limit_headers import headers_of
from app.middleware import request_log, response_headers
from app.services import services
from shared.errors import GoingAway
from shared.wire.job import Job


def admit(build: Callable[[JobRequest], Job]) -> Subscription:
    """Build the job of the request at hand, queue it and subscribe to it, or to the job of an
    earlier request with the same Idempotency-Key. Raises what `build` and `Dispatcher.submit`
    raise, and GoingAway."""
    asked = JobRequest(g.request_id, g.principal.owner, g.record)
    job = build(asked)
    if asked.filter_tags:
        response_headers.add({FILTER_HEADER: ", ".join(asked.filter_tags)})
    if services().is_stopping:
        raise GoingAway("The service is shutting down. Send the request again.")
    header = request.headers.get("Idempotency-Key")
    key = None if header is None else idempotency_key(header, asked.owner, g.fingerprint)
    subscription = services().dispatcher.submit(job, g.principal.limits, key)
    request_log.name_request(subscription.job.id)
    response_headers.add(_headers(subscription))
    return subscription


def _headers(subscription: Subscription) -> dict[str, str]:
    if not subscription.is_first:
        return {"Idempotent-Replayed": "true"}
    position = {"x-llmis-queue-position": str(subscription.num_ahead)}
    return headers_of(subscription.allowances) | position
