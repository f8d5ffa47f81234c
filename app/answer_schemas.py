"""The types of the answers as clients see them, derived from `app.answer_objects`.

`app.answers` fills one shape for all endpoints, with choices of any kind. Here each endpoint's
answer has a type of its own for the OpenAPI document; a field that a shape gains is in it.
"""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from app.answer_objects import AnswerObject, ChatChoice, ChatChunkChoice, TextChoice
from app.error_answer import ErrorObject


class ChatCompletion(AnswerObject, kw_only=True):
    """A whole answer to a conversation."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class ChatCompletionChunk(AnswerObject, kw_only=True):
    """A piece of a streamed answer to a conversation."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]


class Completion(AnswerObject, kw_only=True):
    """The continuations of the prompts."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class CompletionChunk(AnswerObject, kw_only=True):
    """A piece of streamed continuations."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class CancelAnswer(Struct, frozen=True):
    """The request ends soon; it may still end by itself."""

    id: str
    object: Literal["request"] = "request"
    status: Literal["cancelling"] = "cancelling"


class RequestState(Struct, frozen=True, kw_only=True):
    """Where a request is. It is remembered for a while after its end."""

    id: str
    object: Literal["request"] = "request"
    model: str
    created: int
    """Unix time in seconds."""
    status: Literal["queued", "running", "parked", "finished", "failed", "cancelled"]
    """`parked`: nobody reads it, so it stands still until somebody does."""
    position: int | UnsetType = UNSET
    """While it is queued: requests that are before it."""
    answer: AnswerObject | UnsetType = UNSET
    """Of a finished chat or completion: what it is without `stream`."""
    error: ErrorObject | UnsetType = UNSET
    """Of one that failed."""
