"""`POST /v1/chat/completions`, `POST /v1/completions`, `POST /v1/requests/<id>/cancel`."""

import time
from typing import Any

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
from app.relay import Relay, stream_sse, whole_answer
from app.schemas import ChatRequest, CompletionRequest, GenerationRequest, parse, shortened
from app.services import services
from shared.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineError,
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
    TooManyModels,
    Unavailable,
)
from shared.messages import Job, JobKind
from shared.settings import SamplingDefaults

blueprint = Blueprint("generation", __name__)
_COMPLETION_MAX_TOKENS = 16
JOB_ERRORS = (
    *(ContextLengthExceeded, Quarantined, ModelNotFound, RequestCancelled, DeadlineExceeded),
    *(EngineError, ReplicaLost, QueueUnavailable, Unavailable),
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
        body = request.get_data()
        # Werkzeug cuts a chunked body off at the limit and only tells who reads on.
        request.stream.read(1)
        return body
    except (OSError, ParseException) as exc:
        raise InvalidRequest(f"The body could not be read: {exc}") from exc


def chat_job(body: ChatRequest, request_id: str) -> Job:
    """Turn a checked chat request into a job. Raises LlmisError."""
    settings = services().settings
    if len(body.messages) > settings.max_messages:
        raise InvalidRequest(
            f"messages has {len(body.messages)} entries; "
            f"at most {settings.max_messages} are taken.",
            param="messages",
        )
    max_tokens = body.max_completion_tokens or body.max_tokens
    chat_messages = [message.to_message(i) for i, message in enumerate(body.messages)]
    return _job(body, request_id, JobKind.CHAT, messages=chat_messages, max_tokens=max_tokens)


def completion_job(body: CompletionRequest, request_id: str) -> Job:
    """Turn a checked legacy request into a job. Raises LlmisError."""
    max_tokens = body.max_tokens or _COMPLETION_MAX_TOKENS
    prompts = body.prompts()
    return _job(body, request_id, JobKind.COMPLETION, prompts=prompts, max_tokens=max_tokens)


def _job(body: GenerationRequest, request_id: str, kind: JobKind, **fields: Any) -> Job:
    shared = services()
    _check_model(body.model)
    if shared.is_stopping:
        raise Unavailable("The service is shutting down.")
    num_choices = body.num_choices * max(1, len(fields.get("prompts", [])))
    if num_choices > shared.settings.max_choices:
        raise InvalidRequest(
            f"{num_choices} choices were asked for; at most {shared.settings.max_choices} "
            "are made for one request.",
            param="n",
        )
    shared.usage.note(body.model)
    return Job(
        id=request_id,
        model=body.model,
        kind=kind,
        num_choices=body.num_choices,
        stop=body.stop_strings,
        sampling=body.sampling(_sampling_defaults(body.model)),
        reply_channel=shared.dispatcher.reply_channel,
        created_at=time.time(),
        deadline_at=shared.dispatcher.deadline(),
        **fields,
    )


def _check_model(name: str) -> None:
    """A configured model may be on its way up: its queue keeps the request until then."""
    if not services().catalog.is_known(name):
        raise ModelNotFound(
            f"The model {shortened(name)} does not exist. GET /v1/models lists those that do.",
            param="model",
        )
    if services().catalog.is_leaving(name):
        raise ModelUnloaded(f"The model {shortened(name)} is being unloaded.")


def _sampling_defaults(name: str) -> SamplingDefaults:
    configured = services().settings.model(name)
    return configured.sampling if configured else SamplingDefaults()


def _answer(job: Job, body: GenerationRequest) -> Response:
    shared = services()
    job, stream = shared.dispatcher.submit(job)
    g.request_id = job.id
    watcher = DisconnectWatcher(request.environ, stream.close)
    relay = Relay(shared.relay, job, stream)
    shape = answers.shape_for(job, wants_usage=body.wants_usage)
    if not body.is_stream:
        try:
            answer = whole_answer(relay, shape, answers.num_choices(job))
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
