"""A job's messages and tools in the shape that chat templates on model hubs expect."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from shared.wire.job import ChatMessage, Job, Tool, ToolCall, ToolChoice
from worker.chat.injection_guard import map_texts
from worker.chat.template import END

_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}\Z")
_INSTRUCTIONS = """You can call functions. Each line here describes one, its parameters as a JSON \
schema:
{functions}

To call a function, answer with its name and its arguments as JSON, like this:
<tool_call>
{{"name": "the_name", "arguments": {{"a_parameter": "a value"}}}}
</tool_call>
Several calls follow each other. What a function returns comes back between <tool_response> and \
</tool_response>. Answer without a call when no function helps."""
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_EMPTY_SCHEMA = {"type": "object", "properties": {}}

CALL = "call"
"""The kind of an assistant's message with calls. Of other messages the kind is the role."""


class ArgumentsForm(Enum):
    """How a template takes the arguments of calls."""

    GIVEN = auto()
    """As an object if the text encodes one, else as the text."""
    TEXT = auto()
    OBJECT = auto()


@dataclass(frozen=True, slots=True)
class TemplateStyle:
    """The conventions of a template for messages and tools. The second half is found by
    `worker.chat.template_probe`."""

    is_generic: bool = False
    """It does not render tools: they are described, called and answered in plain messages."""
    has_short_ids: bool = False
    """Ids of calls have nine letters or digits (Mistral)."""
    reasoning_key: str = "reasoning_content"
    parts: frozenset[str] = frozenset()
    """Kinds of messages whose content is a list of parts."""
    arguments: ArgumentsForm = ArgumentsForm.GIVEN
    has_null_content: bool = False
    """A message with calls has no content but null: its text is a message before it."""
    has_one_thought: bool = False
    """A message with calls may have reasoning or content, not both."""
    needs_properties: bool = False
    """The schema of a tool has to have `properties`."""


def template_tools(job: Job, style: TemplateStyle, guard: Callable[[str], str]) -> list[Any] | None:
    """The tools in OpenAI's shape; None if the template gets none."""
    if style.is_generic or not may_call(job):
        return None
    return [_tool(tool, style, guard) for tool in job.tools]


def template_messages(
    job: Job, style: TemplateStyle, guard: Callable[[str], str]
) -> list[dict[str, Any]]:
    """The messages in OpenAI's shape, with strings as contents. `guard` is applied to every string
    of the client. END follows the text of a message that is to be continued."""
    if style.is_generic:
        messages = [_plain_message(message, guard) for message in job.messages]
        if may_call(job):
            messages = _with_instructions(messages, job, guard)
        messages = _joined_answers(messages)
    else:
        messages = [_message(message, style, guard) for message in job.messages]
    if job.continues:
        messages[-1] = messages[-1] | {"content": messages[-1]["content"] + END}
    return messages


def in_style(messages: list[dict[str, Any]], style: TemplateStyle) -> list[dict[str, Any]]:
    """The messages with their contents, which are strings, in the forms that the style wants."""
    formed = []
    for message in messages:
        calls, text = message.get("tool_calls"), message["content"]
        if calls and style.has_null_content:
            if text:
                formed.append({name: message[name] for name in message if name != "tool_calls"})
            message = message | {"content": None}
        elif (CALL if calls else message["role"]) in style.parts:
            message = message | {"content": [{"type": "text", "text": text}]}
        formed.append(message)
    return formed


def may_call(job: Job) -> bool:
    """Whether the model may call tools at all."""
    return bool(job.tools) and job.tool_choice is not ToolChoice.NONE


def _tool(tool: Tool, style: TemplateStyle, guard: Callable[[str], str]) -> dict[str, Any]:
    parameters = map_texts(guard, tool.parameters) or _EMPTY_SCHEMA
    if style.needs_properties and "properties" not in parameters:
        parameters = {**parameters, "properties": {}}
    function = {
        "name": guard(tool.name),
        "description": guard(tool.description),
        "parameters": parameters,
    }
    return {"type": "function", "function": function}


def _message(
    message: ChatMessage, style: TemplateStyle, guard: Callable[[str], str]
) -> dict[str, Any]:
    role = message.role if message.role in _ROLES else guard(message.role)
    content, reasoning = message.content, message.reasoning
    if style.has_one_thought and message.tool_calls and reasoning and content:
        content, reasoning = "", f"{reasoning}\n\n{content}"
    result: dict[str, Any] = {"role": role, "content": guard(content)}
    if message.name is not None:
        result["name"] = guard(message.name)
    if reasoning is not None:
        result[style.reasoning_key] = guard(reasoning)
    if message.tool_call_id is not None:
        result["tool_call_id"] = guard(_call_id(message.tool_call_id, style))
    if message.tool_calls:
        result["tool_calls"] = [_call(call, style, guard) for call in message.tool_calls]
    return result


def _call(call: ToolCall, style: TemplateStyle, guard: Callable[[str], str]) -> dict[str, Any]:
    return {
        "id": guard(_call_id(call.id, style)),
        "type": "function",
        "function": {
            "name": guard(call.name),
            "arguments": map_texts(guard, _arguments(call.arguments, style.arguments)),
        },
    }


def _call_id(call_id: str, style: TemplateStyle) -> str:
    if not style.has_short_ids or _SHORT_ID.match(call_id):
        return call_id
    return hashlib.sha256(call_id.encode("utf-8", "replace")).hexdigest()[:9]


def _arguments(text: str, form: ArgumentsForm) -> Any:
    if form is ArgumentsForm.TEXT:
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    if isinstance(value, dict):
        return value
    if form is ArgumentsForm.GIVEN:
        return text
    is_empty = value is None or not text.strip()
    return {} if is_empty else {"raw_arguments": text}


# -- templates without tools ---------------------------------------------------------------------


def _plain_message(message: ChatMessage, guard: Callable[[str], str]) -> dict[str, Any]:
    if message.role == "tool":
        response = f"<tool_response>\n{guard(message.content)}\n</tool_response>"
        return {"role": "user", "content": response}
    result = _message(message, TemplateStyle(), guard)
    calls = [
        f'<tool_call>\n{{"name": {_json(guard(call.name))}, '
        f'"arguments": {guard(call.arguments) or "{}"}}}\n</tool_call>'
        for call in message.tool_calls
    ]
    result.pop("tool_calls", None)
    result["content"] = "\n".join([result["content"], *calls] if result["content"] else calls)
    return result


def _joined_answers(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join the answers to several calls: many templates require alternating roles."""
    joined: list[dict[str, Any]] = []
    for message in messages:
        if joined and message["role"] == joined[-1]["role"] == "user":
            before = joined[-1]["content"]
            if before.endswith("</tool_response>"):
                joined[-1] = message | {"content": f"{before}\n{message['content']}"}
                continue
        joined.append(message)
    return joined


def _with_instructions(
    messages: list[dict[str, Any]], job: Job, guard: Callable[[str], str]
) -> list[dict[str, Any]]:
    """Add the instructions for tools to the system message, or as one."""
    functions = "\n".join(
        _json(_tool(tool, TemplateStyle(), guard)["function"]) for tool in job.tools
    )
    text = _INSTRUCTIONS.format(functions=functions)
    if messages and messages[0]["role"] == "system":
        first = messages[0]
        return [first | {"content": f"{first['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
