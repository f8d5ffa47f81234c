"""The messages of a conversation, as clients send them."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from shared.errors import InvalidRequest
from shared.messages import ChatMessage, ToolCall

_NO_TEXT_PARTS = {
    "image_url": "images",
    "input_image": "images",
    "input_audio": "audio",
    "file": "files",
    "video_url": "video",
}


class ContentPart(Struct, frozen=True):
    """A part of a message. Only text is understood, and a refusal, which is one."""

    type: str
    text: str | None = None
    refusal: str | None = None


class CalledFunction(Struct, frozen=True):
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    arguments: str = ""
    """JSON text, as the model wrote it."""


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
    """Role assistant: what it thought before it spoke."""
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
                "Only messages of the role assistant carry tool_calls.",
                param=f"{where}.tool_calls",
            )
        if self.role == "tool" and not self.tool_call_id:
            raise InvalidRequest(
                "A message of the role tool names the call that it answers.",
                param=f"{where}.tool_call_id",
            )
        if self.content is None and not is_assistant:
            raise InvalidRequest(f"{where}.content is missing.", param=f"{where}.content")
        return ChatMessage(
            "system" if self.role == "developer" else self.role,
            _text(self.content, f"{where}.content") or self.refusal or "",
            self.name,
            [
                ToolCall(call.id, call.function.name, call.function.arguments)
                for call in self.tool_calls or []
            ],
            self.tool_call_id if self.role == "tool" else None,
            self.reasoning_content if is_assistant else None,
        )


def _text(content: str | list[ContentPart] | None, where: str) -> str:
    """The text of a message. Raises InvalidRequest for parts that are none."""
    if not isinstance(content, list):
        return content or ""
    texts = []
    for i, part in enumerate(content):
        text = {"text": part.text, "refusal": part.refusal}.get(part.type)
        if text is None:
            kind = _NO_TEXT_PARTS.get(part.type)
            known = f"this model does not take {kind}" if kind else "parts are of type text"
            raise InvalidRequest(
                f"{where}[{i}] is a part of type {part.type[:40]!r}; {known}.",
                param=f"{where}[{i}]",
            )
        texts.append(text)
    return "".join(texts)
