"""The types of the answers as clients see them, derived from the shapes of `app.answers`.

`app.answers` fills one shape for all endpoints, with choices of any kind. Here each endpoint's
answer has a type of its own for the OpenAPI document; a field that a shape gains is in it.
"""

from typing import Literal

from msgspec import Struct

from app import answers


class ChatCompletion(answers._Answer, kw_only=True):
    """A whole answer to a conversation."""

    object: Literal["chat.completion"]
    choices: list[answers._ChatChoice]


class ChatCompletionChunk(answers._Answer, kw_only=True):
    """A piece of a streamed answer to a conversation."""

    object: Literal["chat.completion.chunk"]
    choices: list[answers._ChatChunkChoice]


class Completion(answers._Answer, kw_only=True):
    """The continuations of the prompts."""

    object: Literal["text_completion"]
    choices: list[answers._TextChoice]


class CompletionChunk(answers._Answer, kw_only=True):
    """A piece of streamed continuations."""

    object: Literal["text_completion"]
    choices: list[answers._TextChoice]


class CancelAnswer(Struct, frozen=True):
    """The request ends soon; it may still end by itself."""

    id: str
    object: Literal["request"] = "request"
    status: Literal["cancelling"] = "cancelling"
