"""`/v1/requests/<id>`: a request's state, its events once more, its cancellation."""

from typing import Any, Literal

from flask import Blueprint, Response, g, request
from msgspec import UNSET

from app.api import json_response, sse_response
from app.events.event_id import EventId
from app.formats.formatter import WholeAnswer
from app.formats.objects import AnswerObject, CancelAnswer, RequestState
from app.jobs.build import is_chat_or_completion
from app.openapi.documented import documented
from app.openapi.error_sets import LAST_EVENT_ID, RUN_ERRORS
from app.services import services
from shared import errors
from shared.api_keys import Scope
from shared.errors import InvalidRequest, NotFound, QueueUnavailable, RequestCancelled
from shared.wire.events import Failed, Finished
from shared.wire.job import Job

blueprint = Blueprint("requests", __name__)
_REQUEST_ID = {"request_id": "The header `x-request-id` of its answer."}


@blueprint.get("/v1/requests/<request_id>")
@documented(RequestState, errors=(NotFound, QueueUnavailable), parameters=_REQUEST_ID)
def show(request_id: str) -> Response:
    """Show where a request is, and its answer when it is finished."""
    job = services().dispatcher.find(request_id, g.principal.owner)
    return json_response.of(_state(job))


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
        # Its body would be dropped before it starts, and never be closed.
        raise errors.MethodNotAllowed("HEAD is not allowed for a stream.")
    at = sse_response.last_event_id() or EventId(request_id)
    if at.job_id != request_id:
        raise InvalidRequest(
            f"Last-Event-ID belongs to the request {at.job_id!r}.", param="Last-Event-ID"
        )
    return sse_response.resume(at)


@blueprint.post("/v1/requests/<request_id>/cancel")
@documented(CancelAnswer, errors=(NotFound, QueueUnavailable), parameters=_REQUEST_ID)
def cancel(request_id: str) -> Response:
    """Cancel a request, wherever it is: in the queue, in the prefill, in mid-stream. One that has
    ended stays as it is.

    The scope admin cancels requests of any owner.
    """
    is_admin = g.principal.scope is Scope.ADMIN
    end = services().dispatcher.cancel(request_id, None if is_admin else g.principal.owner)
    status = "cancelling" if end is None else _status_of(end)
    return json_response.of(CancelAnswer(id=request_id, status=status))


def _state(job: Job) -> RequestState:
    end = services().dispatcher.end_of(job)
    if isinstance(end, Failed):
        if _status_of(end) == "cancelled":
            return _request_state(job, "cancelled")
        error = errors.rebuild(end.status, end.code, end.message, end.param).body()["error"]
        return _request_state(job, "failed", error=errors.ErrorObject(**error))
    if end is not None:
        return _request_state(job, "finished", answer=_answer(job))
    status = services().dispatcher.status_of(job)
    if status.is_cancelled:
        return _request_state(job, "cancelled")
    if status.is_parked:
        return _request_state(job, "parked")
    if status.holder and services().directory.has(status.holder):
        return _request_state(job, "running")
    position = services().dispatcher.queue.position_of(job)
    # -1 between the queue and a replica: it is next.
    return _request_state(job, "queued", position=max(0, position))


def _status_of(end: Finished | Failed) -> Literal["finished", "failed", "cancelled"]:
    if isinstance(end, Finished):
        return "finished"
    return "cancelled" if end.code == RequestCancelled.code else "failed"


def _request_state(job: Job, status: Any, **fields: Any) -> RequestState:
    created = int(job.created_at)
    return RequestState(id=job.id, model=job.model, created=created, status=status, **fields)


def _answer(job: Job) -> Any:
    if not is_chat_or_completion(job):
        return UNSET
    log = services().dispatcher.log_of(job)
    return json_response.body_of([log], WholeAnswer(job))
