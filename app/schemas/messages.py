"""The messages of a conversation, as clients send them."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from shared.errors import InvalidRequest
from shared.wire.job import ChatMessage, ToolCall

_NO_TEXT_PARTS = {
    "image_url": "images",
    "input_image": "images",
    "input_audio": "audio",
    "file": "files",
    "video_url": "video",
}


class ContentPart(Struct, frozen=True):
    """A part of a message. Text and refusals are supported; a refusal is text."""

    type: str
    text: str | None = None
    refusal: str | None = None


class CalledFunction(Struct, frozen=True):
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    arguments: Any = ""
    """JSON text, as the model wrote it; other JSON values are taken as well."""

    def to_text(self) -> str:
        if self.arguments is None:
            return ""
        is_text = isinstance(self.arguments, str)
        return self.arguments if is_text else json.dumps(self.arguments, ensure_ascii=False)


class MessageToolCall(Struct, frozen=True):
    """A call that the assistant made earlier in the conversation."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class Message(Struct, frozen=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    """Role assistant only."""
    tool_call_id: str | None = None
    """Role tool only: the call that it answers."""
    refusal: str | None = None
    reasoning_content: str | None = None
    """Role assistant: its reasoning before the content."""
    reasoning: Any = None
    """Role assistant: another name of `reasoning_content`, if it is a string; ignored otherwise."""
    prefix: bool | None = None
    """The last message, of the role assistant: the answer continues it."""
    function_call: Any | UnsetType = UNSET

    def to_message(self, position: int) -> ChatMessage:
        """Raises InvalidRequest."""
        where = f"messages[{position}]"
        if self.function_call not in (UNSET, None):
            raise InvalidRequest(
                "function_call was replaced by tool_calls.", param=f"{where}.function_call"
            )
        is_assistant = self.role == "assistant"
        if self.tool_calls and not is_assistant:
            raise InvalidRequest(
                "Only messages of the role assistant may have tool_calls.",
                param=f"{where}.tool_calls",
            )
        if self.role == "tool" and not self.tool_call_id:
            raise InvalidRequest(
                "A message of the role tool needs the tool_call_id of the call that it answers.",
                param=f"{where}.tool_call_id",
            )
        if self.content is None and not is_assistant:
            raise InvalidRequest(f"{where}.content is missing.", param=f"{where}.content")
        reasoning = self.reasoning_content
        if reasoning is None and isinstance(self.reasoning, str):
            reasoning = self.reasoning
        return ChatMessage(
            "system" if self.role == "developer" else self.role,
            _text(self.content, f"{where}.content") or self.refusal or "",
            self.name,
            [
                ToolCall(call.id, call.function.name, call.function.to_text())
                for call in self.tool_calls or []
            ],
            self.tool_call_id if self.role == "tool" else None,
            reasoning if is_assistant else None,
        )


def continues_last(messages: Sequence[Message]) -> bool:
    """Whether the answer continues the last message. Raises InvalidRequest for a `prefix` elsewhere
    than in a last message of the assistant without calls."""
    for position, message in enumerate(messages):
        if not message.prefix:
            continue
        is_last = position == len(messages) - 1
        if not is_last or message.role != "assistant" or message.tool_calls:
            raise InvalidRequest(
                "Only the last message, of the role assistant and without tool_calls, may have "
                "prefix: true.",
                param=f"messages[{position}].prefix",
            )
    return bool(messages and messages[-1].prefix)


def _text(content: str | list[ContentPart] | None, where: str) -> str:
    """The text of a message. Raises InvalidRequest for parts that are not text."""
    if not isinstance(content, list):
        return content or ""
    texts = []
    for index, part in enumerate(content):
        text = {"text": part.text, "refusal": part.refusal}.get(part.type)
        if text is None:
            kind = _NO_TEXT_PARTS.get(part.type)
            reason = f"this model does not take {kind}" if kind else "parts must be of type text"
            raise InvalidRequest(
                f"{where}[{index}] is a part of type {part.type[:40]!r}; {reason}.",
                param=f"{where}[{index}]",
            )
        texts.append(text)
    return "".join(texts)
