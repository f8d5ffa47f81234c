"""`POST /v1/chat/completions`, `POST /v1/completions`."""

from flask import Blueprint, Flask, Response, g, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import ClientDisconnected

from app import idempotency, streamed, whole_jobs
from app.answer_schemas import ChatCompletion, ChatCompletionChunk, Completion, CompletionChunk
from app.answers import WholeAnswer
from app.documented import documented
from app.jobs import chat_job, completion_job
from app.parsing import parse
from app.schemas import ChatRequest, CompletionRequest, GenerationRequest
from shared.errors import (
    ContentFiltered,
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineError,
    GoingAway,
    IdempotencyKeyReused,
    InsufficientMemory,
    InvalidModel,
    InvalidRequest,
    ModelFailed,
    ModelNotFound,
    ModelUnloaded,
    Quarantined,
    QueueFull,
    QueueTimeout,
    QueueUnavailable,
    ReplicaLost,
    RequestCancelled,
    RequestTooSlow,
    StorageFull,
    TooManyModels,
    TooManyRequests,
    TooManyTokens,
    Unavailable,
    UnsupportedMediaType,
)
from shared.messages import Job, JobKind

blueprint = Blueprint("generation", __name__)
RUN_ERRORS = (
    *(
        ContextLengthExceeded,
        ContentFiltered,
        Quarantined,
        ModelNotFound,
        RequestCancelled,
        DeadlineExceeded,
    ),
    *(EngineError, QueueTimeout, ReplicaLost, QueueUnavailable, GoingAway, Unavailable),
    *(ModelUnloaded, ModelFailed, InvalidModel, InsufficientMemory, TooManyModels),
)
"""How a job can fail before its first token."""
JOB_ERRORS = (
    *RUN_ERRORS,
    *(TooManyRequests, TooManyTokens, QueueFull, StorageFull, IdempotencyKeyReused),
)
"""How a request can fail that becomes a job."""
IDEMPOTENCY_KEY = {
    "Idempotency-Key": "Up to 255 visible characters. The same request, sent again with the same "
    "key, gets the answer of the first one, with the header `Idempotent-Replayed`.",
}
LAST_EVENT_ID = {
    "Last-Event-ID": "The id of the last event of a stream that broke off: the answer is what "
    "comes after it.",
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
    headers=IDEMPOTENCY_KEY | LAST_EVENT_ID,
)
def chat_completions() -> Response:
    """Answer a conversation."""
    payload = read_body()
    at = streamed.last_event_id()
    if at is not None:
        return streamed.resume(at, JobKind.CHAT)
    body = parse(payload, ChatRequest)
    return _answer(chat_job(body, g.request_id), body)


@blueprint.post("/v1/completions")
@documented(
    Completion,
    body=CompletionRequest,
    example={"model": "gemma-3-270m", "prompt": "Once upon a time", "max_tokens": 64},
    stream=CompletionChunk,
    errors=JOB_ERRORS,
    headers=IDEMPOTENCY_KEY | LAST_EVENT_ID,
)
def completions() -> Response:
    """Continue texts."""
    payload = read_body()
    at = streamed.last_event_id()
    if at is not None:
        return streamed.resume(at, JobKind.COMPLETION)
    body = parse(payload, CompletionRequest)
    return _answer(completion_job(body, g.request_id), body)


def read_body() -> bytes:
    """Read the request's body. Raises UnsupportedMediaType for a compressed one, RequestTooSlow,
    InvalidRequest for a broken chunk or a client that left."""
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMediaType("Compressed request bodies are not read: send it as it is.")
    try:
        body = request.get_data(cache=False)
        # Werkzeug cuts a chunked body off at the limit and only tells who reads on.
        request.stream.read(1)
    except (OSError, ParseException, ClientDisconnected) as exc:
        if request.environ["gunicorn.socket"].is_too_slow:
            raise RequestTooSlow(
                "The body came too slowly: see the setting read_timeout_s."
            ) from exc
        raise InvalidRequest(f"The body could not be read: {exc}") from exc
    idempotency.note(body)
    return body


def _answer(job: Job, body: GenerationRequest) -> Response:
    if body.stream_options is not None and not body.is_stream:
        raise InvalidRequest("stream_options needs stream: true.", param="stream_options")
    reading = idempotency.admit(job)
    if body.is_stream:
        return streamed.respond(reading)
    return whole_jobs.respond(reading, WholeAnswer(reading.job))
