"""OpenAI's answer objects, as they are sent and as /openapi.json describes them. The order of the
fields is that of the JSON, the names of the classes are those of the document's components.
"""

from typing import Any, Generic, Literal, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import fields

from app.formats.logprobs import ChatLogprobs, CompletionLogprobs
from shared.errors import ErrorObject


class PromptTokensDetails(Struct):
    cached_tokens: int


class CompletionTokensDetails(Struct):
    reasoning_tokens: int


class TokenUsage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET
    """Of a chat with a model that reasons."""


class TextChoice(Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


class FunctionCall(Struct, omit_defaults=True):
    name: str | None = None
    arguments: str | None = None


class ToolCallObject(Struct):
    id: str
    function: FunctionCall
    type: str = "function"


class ToolCallPiece(Struct, omit_defaults=True):
    index: int
    id: str | None = None
    type: str | None = None
    function: FunctionCall | None = None


class ChatDelta(Struct, omit_defaults=True):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallPiece] = []


class ChatChunkChoice(Struct):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class AssistantMessage(Struct):
    role: str
    content: str | None
    refusal: None = None
    annotations: list[Any] = []
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallObject] | UnsetType = UNSET


class ChatChoice(Struct):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


ObjectT = TypeVar("ObjectT", bound=str)
ChoiceT = TypeVar("ChoiceT")


class AnswerObject(Struct, Generic[ObjectT, ChoiceT], omit_defaults=True):
    """An answer or a chunk of either endpoint."""

    id: str
    object: ObjectT
    created: int
    """Unix time in seconds."""
    model: str
    choices: list[ChoiceT]
    usage: TokenUsage | UnsetType | None = UNSET
    """Null in the chunks before the last one, when the usage of a stream was asked for."""
    system_fingerprint: str | UnsetType = UNSET
    service_tier: str | UnsetType = UNSET
    metadata: dict[str, str] | UnsetType = UNSET


class ChatCompletion(AnswerObject[Literal["chat.completion"], ChatChoice]):
    """A whole answer to a conversation."""


class ChatCompletionChunk(AnswerObject[Literal["chat.completion.chunk"], ChatChunkChoice]):
    """A piece of a streamed answer to a conversation."""


class Completion(AnswerObject[Literal["text_completion"], TextChoice]):
    """The continuations of the prompts."""


class CompletionChunk(AnswerObject[Literal["text_completion"], TextChoice]):
    """A piece of streamed continuations."""


def documented_type(answer: type[AnswerObject[Any, Any]]) -> type[Struct]:
    """The same type for /openapi.json, which has had the fields that differ by endpoint last."""
    narrowed = [(f.name, f.type) for f in fields(answer) if f.name in ("object", "choices")]
    # A field that a subclass declares again moves behind the others.
    return msgspec.defstruct(
        answer.__name__,
        narrowed,
        bases=(answer,),
        namespace={"__doc__": answer.__doc__},
        kw_only=True,
    )


class CancelAnswer(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["request"] = "request"
    status: Literal["cancelling", "finished", "failed", "cancelled"]
    """`cancelling`: it ends soon, and may still end by itself. Otherwise it had ended already."""


class RequestState(Struct, frozen=True, kw_only=True):
    """Where a request is. It is remembered for a while after its end."""

    id: str
    object: Literal["request"] = "request"
    model: str
    created: int
    """Unix time in seconds."""
    status: Literal["queued", "running", "parked", "finished", "failed", "cancelled"]
    """`parked`: it has no reader, and waits until it has one."""
    position: int | UnsetType = UNSET
    """While it is queued: requests that are before it."""
    answer: AnswerObject | UnsetType = UNSET  # type: ignore[type-arg]
    """Of a finished chat or completion: what it is without `stream`."""
    error: ErrorObject | UnsetType = UNSET
    """Of one that failed."""
