"""OpenAI's answer objects: what the JSON of an answer or a chunk is made of."""

from typing import Any

from msgspec import UNSET, Struct, UnsetType

from app.logprobs import ChatLogprobs, CompletionLogprobs


class PromptTokensDetails(Struct):
    cached_tokens: int


class TokenUsage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


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


class AnswerObject(Struct, omit_defaults=True):
    """An answer or a chunk of either endpoint."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Any]
    usage: TokenUsage | UnsetType | None = UNSET
    system_fingerprint: str | UnsetType = UNSET
    service_tier: str | UnsetType = UNSET
    metadata: dict[str, str] | UnsetType = UNSET
