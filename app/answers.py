"""OpenAI's answer objects: whole ones and chunks. Shapes only, no input or output."""

import time
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from shared.messages import Delta, Finished, Job, JobKind, Timings
from shared.messages import Usage as JobUsage

_encode = msgspec.json.Encoder().encode
DONE = b"data: [DONE]\n\n"
KEEPALIVE = b": waiting\n\n"


def comment(text: str) -> bytes:
    """An SSE comment: clients skip it, people who look see it."""
    return f": {text}\n\n".encode()


class _PromptDetails(Struct):
    cached_tokens: int


class _Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _PromptDetails


class _TextChoice(Struct):
    index: int
    text: str
    logprobs: None
    finish_reason: str | None


class _Role(Struct):
    role: str
    content: str


class _Content(Struct):
    content: str


class _Empty(Struct):
    pass


class _ChatDelta(Struct):
    index: int
    delta: _Role | _Content | _Empty
    logprobs: None
    finish_reason: str | None


class _ChatMessage(Struct):
    role: str
    content: str
    refusal: None = None


class _ChatChoice(Struct):
    index: int
    message: _ChatMessage
    logprobs: None
    finish_reason: str


class _Answer(Struct, omit_defaults=True):
    id: str
    object: str
    created: int
    model: str
    choices: list[Any]
    usage: _Usage | msgspec.UnsetType | None = msgspec.UNSET


def usage(counted: JobUsage) -> _Usage:
    return _Usage(
        counted.prompt_tokens,
        counted.completion_tokens,
        counted.prompt_tokens + counted.completion_tokens,
        _PromptDetails(counted.cached_tokens),
    )


def sse(payload: Any) -> bytes:
    return b"data: " + _encode(payload) + b"\n\n"


class AnswerShape(Protocol):
    """How one endpoint words its answers."""

    def opening(self) -> list[Any]:
        """Chunks before any text."""

    def chunks(self, delta: Delta) -> list[Any]: ...

    def closing(self, finished: Finished) -> list[Any]:
        """Chunks after all text: the usage, when it was asked for."""

    def whole(self, texts: list[str], reasons: list[str], finished: Finished) -> Any: ...


class _Shape:
    chunk_object: str
    whole_object: str
    id_prefix: str

    def __init__(self, job: Job, wants_usage: bool) -> None:
        self._id = f"{self.id_prefix}-{job.id}"
        self._created = int(time.time())
        self._model = job.model
        self._wants_usage = wants_usage
        self._num_choices = num_choices(job)

    def _chunk(self, choices: list[Any]) -> _Answer:
        answer = _Answer(self._id, self.chunk_object, self._created, self._model, choices)
        if self._wants_usage:
            answer.usage = None
        return answer

    def closing(self, finished: Finished) -> list[Any]:
        if not self._wants_usage:
            return []
        chunk = self._chunk([])
        chunk.usage = usage(finished.usage)
        return [chunk]

    def _whole(self, choices: list[Any], finished: Finished) -> _Answer:
        return _Answer(
            self._id,
            self.whole_object,
            self._created,
            self._model,
            choices,
            usage(finished.usage),
        )


class ChatShape(_Shape):
    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"
    id_prefix = "chatcmpl"

    def opening(self) -> list[Any]:
        return [
            self._chunk([_ChatDelta(index, _Role("assistant", ""), None, None)])
            for index in range(self._num_choices)
        ]

    def chunks(self, delta: Delta) -> list[Any]:
        chunks = []
        if delta.text:
            chunks.append(self._chunk([_ChatDelta(delta.index, _Content(delta.text), None, None)]))
        if delta.finish_reason is not None:
            chunks.append(
                self._chunk([_ChatDelta(delta.index, _Empty(), None, delta.finish_reason)])
            )
        return chunks

    def whole(self, texts: list[str], reasons: list[str], finished: Finished) -> Any:
        choices = [
            _ChatChoice(i, _ChatMessage("assistant", text), None, reason)
            for i, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return self._whole(choices, finished)


class CompletionShape(_Shape):
    chunk_object = "text_completion"
    whole_object = "text_completion"
    id_prefix = "cmpl"

    def opening(self) -> list[Any]:
        return []

    def chunks(self, delta: Delta) -> list[Any]:
        if not delta.text and delta.finish_reason is None:
            return []
        return [self._chunk([_TextChoice(delta.index, delta.text, None, delta.finish_reason)])]

    def whole(self, texts: list[str], reasons: list[str], finished: Finished) -> Any:
        choices = [
            _TextChoice(i, text, None, reason)
            for i, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return self._whole(choices, finished)


def shape_for(job: Job, *, wants_usage: bool) -> AnswerShape:
    if job.kind is JobKind.CHAT:
        return ChatShape(job, wants_usage)
    return CompletionShape(job, wants_usage)


def num_choices(job: Job) -> int:
    return job.num_choices * max(1, len(job.prompts))


def timings_ms(timings: Timings) -> dict[str, float]:
    """The replica's durations for a client that wants to show them."""
    return {
        "queue_ms": round(1000 * timings.queue_s, 3),
        "prefill_ms": round(1000 * timings.prefill_s, 3),
        "decode_ms": round(1000 * timings.decode_s, 3),
    }
