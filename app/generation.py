"""`POST /v1/chat/completions`, `POST /v1/completions`, `POST /v1/requests/<id>/cancel`."""

import msgspec
from flask import Blueprint, Flask, Response, g, request
from gunicorn.http.errors import ParseException

from app import answers
from app.answer_schemas import (
    CancelAnswer,
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
)
from app.disconnect import DisconnectWatcher
from app.documented import documented
from app.job_stream import ClientGone
from app.jobs import chat_job, completion_job
from app.parsing import parse
from app.relay import Relay, stream_sse, whole_answer
from app.schemas import ChatRequest, CompletionRequest, GenerationRequest
from app.services import services
from shared.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineError,
    GoingAway,
    InsufficientMemory,
    InvalidModel,
    InvalidRequest,
    ModelFailed,
    ModelNotFound,
    ModelUnloaded,
    NotFound,
    Quarantined,
    QueueUnavailable,
    ReplicaLost,
    RequestCancelled,
    StorageFull,
    TooManyModels,
    Unavailable,
)
from shared.messages import Job

blueprint = Blueprint("generation", __name__)
JOB_ERRORS = (
    *(ContextLengthExceeded, Quarantined, ModelNotFound, RequestCancelled, DeadlineExceeded),
    *(EngineError, ReplicaLost, QueueUnavailable, StorageFull, GoingAway, Unavailable),
    *(ModelUnloaded, ModelFailed, InvalidModel, InsufficientMemory, TooManyModels),
)
"""How a request that becomes a job can fail before its first token."""
SSE_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


def register(app: Flask) -> None:
    app.register_blueprint(blueprint)


@blueprint.post("/v1/chat/completions")
@documented(
    ChatCompletion,
    body=ChatRequest,
    example={
        "model": "gemma-3-270m",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 64,
    },
    stream=ChatCompletionChunk,
    errors=JOB_ERRORS,
)
def chat_completions() -> Response:
    """Answer a conversation."""
    body = parse(read_body(), ChatRequest)
    return _answer(chat_job(body, g.request_id), body)


@blueprint.post("/v1/completions")
@documented(
    Completion,
    body=CompletionRequest,
    example={"model": "gemma-3-270m", "prompt": "Once upon a time", "max_tokens": 64},
    stream=CompletionChunk,
    errors=JOB_ERRORS,
)
def completions() -> Response:
    """Continue texts."""
    body = parse(read_body(), CompletionRequest)
    return _answer(completion_job(body, g.request_id), body)


@blueprint.post("/v1/requests/<request_id>/cancel")
@documented(
    CancelAnswer,
    errors=(NotFound, QueueUnavailable),
    parameters={"request_id": "The header `x-request-id` of its answer."},
)
def cancel(request_id: str) -> Response:
    """Cancel a request, wherever it is: in the queue, in the prefill, in mid-stream."""
    services().dispatcher.cancel(request_id)
    body = CancelAnswer(request_id)
    return Response(msgspec.json.encode(body), content_type="application/json")


def read_body() -> bytes:
    """Read the request's body. Raises InvalidRequest for a broken chunk or a client that left."""
    try:
        body = request.get_data(cache=False)
        # Werkzeug cuts a chunked body off at the limit and only tells who reads on.
        request.stream.read(1)
        return body
    except (OSError, ParseException) as exc:
        raise InvalidRequest(f"The body could not be read: {exc}") from exc


def _answer(job: Job, body: GenerationRequest) -> Response:
    if body.stream_options is not None and not body.is_stream:
        raise InvalidRequest("stream_options needs stream: true.", param="stream_options")
    shared = services()
    reading = shared.dispatcher.submit(job)
    job = reading.job
    g.request_id = job.id
    watcher = DisconnectWatcher(request.environ, reading.stream.close)
    relay = Relay(shared.relay, reading)
    shape = answers.shape_for(job, body)
    if not body.is_stream:
        try:
            answer = whole_answer(relay, shape)
        except ClientGone:
            # Nobody reads this.
            return Response(status=499)
        finally:
            watcher.close()
        return Response(msgspec.json.encode(answer), content_type="application/json")
    try:
        first = relay.first_events()
    except BaseException as exc:
        watcher.close()
        relay.close(exc)
        if isinstance(exc, ClientGone):
            return Response(status=499)
        raise
    chunks = stream_sse(relay, shape, first, watcher.close)
    return Response(chunks, headers=SSE_HEADERS)
