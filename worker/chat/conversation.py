"""A job's messages and tools as chat templates on model hubs expect them."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shared.messages import ChatMessage, Job, Tool, ToolCall, ToolChoice
from worker.chat.control_text import map_texts

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


@dataclass(frozen=True, slots=True)
class Style:
    """What a template wants of its messages."""

    is_generic: bool = False
    """It knows no tools: they are described, called and answered in plain messages."""
    has_short_ids: bool = False
    """Mistral's: ids of calls have nine letters or digits."""
    has_text_arguments: bool = False
    """Arguments of calls are JSON text, not objects."""
    reasoning_key: str = "reasoning_content"
    has_system: bool = True
    """It takes a system message; if not, instructions go into the first one of the user."""


def template_tools(job: Job, style: Style, guard: Callable[[str], str]) -> list[Any] | None:
    """The tools in OpenAI's shape, or None when the template is to know of none."""
    if style.is_generic or not may_call(job):
        return None
    return [_tool(tool, guard) for tool in job.tools]


def template_messages(job: Job, style: Style, guard: Callable[[str], str]) -> list[dict[str, Any]]:
    """The messages; `guard` is applied to every string that the client has written."""
    if not style.is_generic:
        return [_message(message, style, guard) for message in job.messages]
    plain = [_plain_message(message, guard) for message in job.messages]
    if may_call(job):
        plain = _with_instructions(plain, job, guard)
        if not style.has_system:
            plain = _without_system(plain)
    return _joined_answers(plain)


def may_call(job: Job) -> bool:
    """Whether the model may call tools at all."""
    return bool(job.tools) and job.tool_choice is not ToolChoice.NONE


def _tool(tool: Tool, guard: Callable[[str], str]) -> dict[str, Any]:
    function = {
        "name": guard(tool.name),
        "description": guard(tool.description),
        "parameters": map_texts(guard, tool.parameters) or _EMPTY_SCHEMA,
    }
    return {"type": "function", "function": function}


def _message(message: ChatMessage, style: Style, guard: Callable[[str], str]) -> dict[str, Any]:
    role = message.role if message.role in _ROLES else guard(message.role)
    result: dict[str, Any] = {"role": role, "content": guard(message.content)}
    if message.name is not None:
        result["name"] = guard(message.name)
    if message.reasoning is not None:
        result[style.reasoning_key] = guard(message.reasoning)
    if message.tool_call_id is not None:
        result["tool_call_id"] = guard(_call_id(message.tool_call_id, style))
    if message.tool_calls:
        result["tool_calls"] = [_call(call, style, guard) for call in message.tool_calls]
    return result


def _call(call: ToolCall, style: Style, guard: Callable[[str], str]) -> dict[str, Any]:
    arguments = call.arguments if style.has_text_arguments else _decoded(call.arguments)
    return {
        "id": guard(_call_id(call.id, style)),
        "type": "function",
        "function": {"name": guard(call.name), "arguments": map_texts(guard, arguments)},
    }


def _call_id(call_id: str, style: Style) -> str:
    if not style.has_short_ids or _SHORT_ID.match(call_id):
        return call_id
    return hashlib.sha256(call_id.encode("utf-8", "replace")).hexdigest()[:9]


def _decoded(arguments: str) -> Any:
    """The object that the text stands for, or the text if it stands for none."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


# -- templates that know no tools ----------------------------------------------------------------


def _plain_message(message: ChatMessage, guard: Callable[[str], str]) -> dict[str, Any]:
    if message.role == "tool":
        response = f"<tool_response>\n{guard(message.content)}\n</tool_response>"
        return {"role": "user", "content": response}
    result = _message(message, Style(), guard)
    calls = [
        f'<tool_call>\n{{"name": {_json(guard(call.name))}, '
        f'"arguments": {guard(call.arguments) or "{}"}}}\n</tool_call>'
        for call in message.tool_calls
    ]
    result.pop("tool_calls", None)
    result["content"] = "\n".join([result["content"], *calls] if result["content"] else calls)
    return result


def _joined_answers(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers to several calls as one message: many templates want the roles to alternate."""
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
    functions = "\n".join(_json(_tool(tool, guard)["function"]) for tool in job.tools)
    text = _INSTRUCTIONS.format(functions=functions)
    if messages and messages[0]["role"] == "system":
        first = messages[0]
        return [first | {"content": f"{first['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _without_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first message, which is the system's, in front of the text of the second one."""
    text, rest = messages[0]["content"], messages[1:]
    if rest and rest[0]["role"] == "user":
        first = rest.pop(0)
        text = f"{text}\n\n{first['content']}"
    return [{"role": "user", "content": text}, *rest]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
