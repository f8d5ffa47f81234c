"""Tool calls as a model may write them, through the official client.

The counter model says any text to which a grammar forces it. With tools, the grammar admits calls,
too; the bias rules out the only tool's name, so that the text is all that remains.
"""

import json
from typing import Any

import openai
import pytest

from tests.support.counter_model import trigger_token

_TOOLS = [{"type": "function", "function": {"name": "zz", "parameters": {"type": "object"}}}]


def _said(client: openai.OpenAI, text: str, **fields: Any) -> Any:
    """The choice with this text, after a check that it is streamed likewise."""
    regex = "".join(f"\\x{ord(c):02X}" if not c.isalnum() else c for c in text)
    request: dict[str, Any] = {
        "model": "counter",
        "messages": [{"role": "user", "content": "17"}],
        "tools": _TOOLS,
        "temperature": 0,
        "max_tokens": 300,
        "logit_bias": {str(trigger_token("<0x00>") + ord("z")): -100},
        "extra_body": {"guided_regex": regex},
        **fields,
    }
    choice = client.chat.completions.create(**request).choices[0]
    content, reason, arguments = "", None, dict[int, str]()
    for chunk in client.chat.completions.create(**request, stream=True):
        delta = chunk.choices[0].delta
        content += delta.content or ""
        reason = chunk.choices[0].finish_reason or reason
        for piece in delta.tool_calls or []:
            before = arguments.get(piece.index, "")
            arguments[piece.index] = before + (piece.function.arguments or "")
    assert content == (choice.message.content or "")
    assert reason == choice.finish_reason
    assert list(arguments.values()) == _arguments(choice)
    return choice


def _arguments(choice: Any) -> list[str]:
    return [call.function.arguments for call in choice.message.tool_calls or []]


def test_mistakes_in_arguments_reach_the_client_as_json(client: openai.OpenAI) -> None:
    arguments = '{"a": "1\n2 \\d", "b": [True, 01,], }'
    choice = _said(
        client, f'<tool_call>\n{{"name": "f", "arguments": {arguments}}}}}\n</tool_call>'
    )
    assert choice.finish_reason == "tool_calls" and not choice.message.content
    assert json.loads(_arguments(choice)[0]) == {"a": "1\n2 \\d", "b": [True, 1]}


def test_arguments_that_are_no_json_do_not_end_as_tool_calls(client: openai.OpenAI) -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {"a" 4}}</tool_call>'
    choice = _said(client, call)
    assert choice.finish_reason == "stop" and not choice.message.content


@pytest.mark.parametrize("max_tokens", [2, 8, 12, 20, 35])
def test_a_call_that_max_tokens_cuts_shows_no_marks(client: openai.OpenAI, max_tokens: int) -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {"a": 4}}\n</tool_call>'
    choice = _said(client, call, max_tokens=max_tokens)
    assert choice.finish_reason == "length" and not choice.message.content
