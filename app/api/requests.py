"""`/v1/requests/<id>`: where a request is, its answer once more, its end."""

from typing import Any

import msgspec
from flask import Blueprint, Flask, Response, g, request
from msgspec import UNSET

from app import streamed, whole_jobs
from app.answer_objects import AnswerObject
from app.answer_schemas import CancelAnswer, RequestState
from app.answers import WholeAnswer
from app.documented import documented
from app.error_answer import ErrorObject
from app.event_id import EventId
from app.generation import LAST_EVENT_ID, RUN_ERRORS
from app.jobs import is_chat_or_completion
from app.services import services
from shared import errors
from shared.api_keys import Scope
from shared.errors import (
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    QueueUnavailable,
    RequestCancelled,
)
from shared.messages import Failed, Job

blueprint = Blueprint("requests", __name__)
_REQUEST_ID = {"request_id": "The header `x-request-id` of its answer."}


def register(app: Flask) -> None:
    app.register_blueprint(blueprint)


@blueprint.get("/v1/requests/<request_id>")
@documented(RequestState, errors=(NotFound, QueueUnavailable), parameters=_REQUEST_ID)
def show(request_id: str) -> Response:
    """Show where a request is, and its answer when it is finished."""
    job = services().dispatcher.find(request_id, g.principal.owner)
    return Response(msgspec.json.encode(_state(job)), content_type="application/json")


@blueprint.get("/v1/requests/<request_id>/events")
@documented(
    AnswerObject,
    media_type="text/event-stream",
    stream=AnswerObject,
    errors=(NotFound, *RUN_ERRORS),
    parameters=_REQUEST_ID,
    headers=LAST_EVENT_ID,
)
def events(request_id: str) -> Response:
    """Stream the answer of a request, from its beginning or behind an event."""
    if request.method == "HEAD":
        # Its body would be dropped before it begins, and never be closed.
        raise MethodNotAllowed("HEAD is not allowed for a stream.")
    at = streamed.last_event_id() or EventId(request_id)
    if at.job_id != request_id:
        raise InvalidRequest(
            f"Last-Event-ID belongs to the request {at.job_id!r}.", param="Last-Event-ID"
        )
    return streamed.resume(at)


@blueprint.post("/v1/requests/<request_id>/cancel")
@documented(CancelAnswer, errors=(NotFound, QueueUnavailable), parameters=_REQUEST_ID)
def cancel(request_id: str) -> Response:
    """Cancel a request, wherever it is: in the queue, in the prefill, in mid-stream.

    With the scope admin anybody's.
    """
    is_admin = g.principal.scope is Scope.ADMIN
    services().dispatcher.cancel(request_id, None if is_admin else g.principal.owner)
    body = CancelAnswer(request_id)
    return Response(msgspec.json.encode(body), content_type="application/json")


def _state(job: Job) -> RequestState:
    end = services().dispatcher.end_of(job)
    if isinstance(end, Failed):
        if end.code == RequestCancelled.code:
            return _worded(job, "cancelled")
        error = errors.rebuild(end.status, end.code, end.message, end.param).body()["error"]
        return _worded(job, "failed", error=ErrorObject(**error))
    if end is not None:
        return _worded(job, "finished", answer=_answer(job))
    standing = services().dispatcher.standing(job)
    if standing.is_cancelled:
        return _worded(job, "cancelled")
    if standing.is_parked:
        return _worded(job, "parked")
    if standing.holder and services().directory.has(standing.holder):
        return _worded(job, "running")
    position = services().dispatcher.queue.position_of(job)
    # Between the queue and a replica it has no place: it is next.
    return _worded(job, "queued", position=max(0, position))


def _worded(job: Job, status: Any, **fields: Any) -> RequestState:
    created = int(job.created_at)
    return RequestState(id=job.id, model=job.model, created=created, status=status, **fields)


def _answer(job: Job) -> Any:
    if not is_chat_or_completion(job):
        return UNSET
    log = services().dispatcher.log_of(job)
    return whole_jobs.body_of([log], WholeAnswer(job))
