"""`POST /v1/chat/completions`, `POST /v1/completions`."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from flask import Blueprint, Response

from app.api import admission, json_response, sse_response
from app.formats import objects
from app.formats.formatter import WholeAnswer
from app.formats.objects import documented_type
from app.jobs.build import JobRequest
from app.middleware.body import read_body
from app.openapi.documented import documented
from app.openapi.error_sets import IDEMPOTENCY_KEY, JOB_ERRORS, LAST_EVENT_ID
from app.schemas.generation import ChatRequest, CompletionRequest, GenerationRequest
from app.schemas.parse import parse
from app.services import services
from shared.errors import InvalidRequest
from shared.wire.job import Job, JobKind

blueprint = Blueprint("generation", __name__)
BodyT = TypeVar("BodyT", bound=GenerationRequest)


@blueprint.post("/v1/chat/completions")
@documented(
    documented_type(objects.ChatCompletion),
    body=ChatRequest,
    example={
        "model": "gemma-3-270m",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 64,
    },
    stream=documented_type(objects.ChatCompletionChunk),
    errors=JOB_ERRORS,
    headers=IDEMPOTENCY_KEY | LAST_EVENT_ID,
)
def chat_completions() -> Response:
    """Answer a conversation."""
    return _answer(JobKind.CHAT, ChatRequest, services().job_builder.chat)


@blueprint.post("/v1/completions")
@documented(
    documented_type(objects.Completion),
    body=CompletionRequest,
    example={"model": "gemma-3-270m", "prompt": "Once upon a time", "max_tokens": 64},
    stream=documented_type(objects.CompletionChunk),
    errors=JOB_ERRORS,
    headers=IDEMPOTENCY_KEY | LAST_EVENT_ID,
)
def completions() -> Response:
    """Continue texts."""
    return _answer(JobKind.COMPLETION, CompletionRequest, services().job_builder.completion)


def _answer(
    kind: JobKind, shape: type[BodyT], build: Callable[[BodyT, JobRequest], Job]
) -> Response:
    payload = read_body()
    at = sse_response.last_event_id()
    if at is not None:
        return sse_response.resume(at, kind)
    body = parse(payload, shape)
    if body.stream_options is not None and not body.is_stream:
        raise InvalidRequest("stream_options needs stream: true.", param="stream_options")
    subscription = admission.admit(partial(build, body))
    if body.is_stream:
        return sse_response.respond(subscription)
    return json_response.respond(subscription, WholeAnswer(subscription.job))
