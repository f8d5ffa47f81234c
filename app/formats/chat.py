"""The shapes of /v1/chat/completions: chunks and whole answers."""

from msgspec import UNSET

from app.formats.base import Formatter, finish_reason_of, token_usage
from app.formats.choice import Choice
from app.formats.logprobs import chat_logprobs
from app.formats.objects import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    FunctionCall,
    ToolCallObject,
    ToolCallPiece,
)
from shared.wire.events import Delta, Finished, ToolCallDelta


class ChatFormatter(Formatter[ChatCompletionChunk]):
    id_prefix = "chatcmpl"
    chunk_type = ChatCompletionChunk
    chunk_object = "chat.completion.chunk"

    def opening(self) -> list[ChatCompletionChunk]:
        return [
            self._chunk([ChatChunkChoice(index, ChatDelta("assistant", ""), None, None)])
            for index in range(self.num_choices)
        ]

    def _text(self, index: int, text: str) -> ChatChunkChoice:
        return ChatChunkChoice(index, ChatDelta(content=text), None, None)

    def _delta(self, delta: Delta) -> list[ChatCompletionChunk]:
        parts = []
        if delta.reasoning:
            parts.append(ChatDelta(reasoning_content=delta.reasoning))
        if delta.text:
            parts.append(ChatDelta(content=delta.text))
        if delta.tool_calls:
            parts.append(ChatDelta(tool_calls=[_tool_call_piece(c) for c in delta.tool_calls]))
        tokens = self._logprobs_of(delta)
        logprobs = chat_logprobs(tokens) if tokens else None
        if logprobs and logprobs.content and not parts:
            parts.append(ChatDelta())  # the text of these tokens is held back for now
        choices = [ChatChunkChoice(delta.index, part, None, None) for part in parts]
        if logprobs and logprobs.content:
            choices[0].logprobs = logprobs
        if delta.finish_reason is not None:
            choices.append(ChatChunkChoice(delta.index, ChatDelta(), None, delta.finish_reason))
        return [self._chunk([choice]) for choice in choices]

    def whole(self, choices: list[Choice], finished: Finished) -> ChatCompletion:
        return ChatCompletion(
            object="chat.completion",
            choices=[self._choice(index, choice) for index, choice in enumerate(choices)],
            usage=token_usage(finished.usage),
            metadata=self._metadata,
            **self._common,
        )

    def _choice(self, index: int, choice: Choice) -> ChatChoice:
        calls = [
            ToolCallObject(call.id, FunctionCall(call.name, "".join(call.arguments)))
            for _, call in sorted(choice.tool_calls.items())
        ]
        message = AssistantMessage("assistant", choice.text or (None if calls else ""))
        message.reasoning_content = choice.reasoning or UNSET
        message.tool_calls = calls or UNSET
        logprobs = chat_logprobs(choice.logprobs) if self._wants_logprobs else None
        return ChatChoice(index, message, logprobs, finish_reason_of(choice))


def _tool_call_piece(piece: ToolCallDelta) -> ToolCallPiece:
    is_first = piece.id is not None
    return ToolCallPiece(
        piece.index,
        piece.id,
        "function" if is_first else None,
        FunctionCall(piece.name, piece.arguments),
    )
