"""Stop strings of a model that reasons and calls tools, through the whole service."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.conftest import Service, models_folder
from tests.support import reciting_model
from tests.support.admin_client import load, unload

_TEMPLATE = "{#- </think> <tool_call> -#}{% if tools %}{% endif %}{{ messages[-1].content }}"
_TEXTS = [
    ["<think>", "I plan", " STOP", ",\n", "\nthen", "</think>", "\n\n", "Yes", ".", " S", "TOP",
     " and more"],
    ["<tool_call>", '\n{"name":', ' "f", ', '"arguments":', ' {"a": ', '"x STOP\\n', ' y"', "}}",
     "\n</tool_call>"],
    ["So", "<|aside|>", " on", "<|turn|>", "\nuser"],
]  # fmt: skip
_TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def reciter(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model that recites `_TEXTS`; its settings end a text at `<|turn|>`."""
    path = models_folder() / f"reciting-{service.port}.gguf"
    reciting_model.write(path, _TEXTS, _TEMPLATE, ("<|aside|>", "<|turn|>"))
    status, answer = load(service, "reciter", path=path.name, stop=["<|turn|>"])
    assert status == 200, answer
    yield "reciter"
    unload(service, "reciter")
    Path(path).unlink()


def _counted(usage: Any) -> Any:
    """Without the tokens from the cache: an earlier request may have left them there."""
    return {name: number for name, number in usage.items() if name != "prompt_tokens_details"}


def _chat(client: openai.OpenAI, text: int, stop: list[str], **fields: Any) -> dict[str, Any]:
    """The choice and the usage of a whole answer, and that its stream adds up to the same."""
    request: dict[str, Any] = {
        "model": "reciter", "stop": stop, "temperature": 0,
        "messages": [{"role": "user", "content": f"<r{text}>"}], **fields,
    }  # fmt: skip
    whole = client.chat.completions.create(**request).to_dict()
    choice: dict[str, Any] = {**whole["choices"][0], "usage": _counted(whole["usage"])}  # type: ignore[index,dict-item]
    message, tokens = choice["message"], (choice["logprobs"] or {}).get("content")
    choice["content"], choice["reasoning"] = message["content"], message.get("reasoning_content")
    calls = [call["function"]["arguments"] for call in message.get("tool_calls", [])]
    choice["calls"] = calls
    streamed = {"content": "", "reasoning_content": ""}
    arguments, reason, usage, told = "", None, None, []
    options = {"stream": True, "stream_options": {"include_usage": True}}
    for chunk in client.chat.completions.create(**request, **options):
        made = chunk.to_dict()
        usage = _counted(made["usage"]) if made["usage"] else usage
        for part in made["choices"]:
            for name in streamed:
                streamed[name] += part["delta"].get(name) or ""
            for call in part["delta"].get("tool_calls") or []:
                arguments += call["function"].get("arguments") or ""
            told += (part["logprobs"] or {}).get("content") or []
            reason = part["finish_reason"] or reason
    assert streamed["content"] == (choice["content"] or "")
    assert streamed["reasoning_content"] == (choice["reasoning"] or "")
    assert (arguments, reason) == ("".join(calls), choice["finish_reason"])
    assert usage == choice["usage"]
    assert told == (tokens or [])
    return choice


def test_a_stop_string_ends_the_answer_and_not_the_reasoning(
    client: openai.OpenAI, reciter: str
) -> None:
    for stop, content in (["STOP"], "Yes. "), (["\n"], "Yes. STOP and more"), (["."], "Yes"):
        choice = _chat(client, 0, stop)
        assert choice["reasoning"] == "I plan STOP,\n\nthen"
        assert (choice["content"], choice["finish_reason"]) == (content, "stop")


def test_a_stop_string_in_a_call_leaves_the_call_whole(client: openai.OpenAI, reciter: str) -> None:
    for stop in "STOP", "\n", '"', "tool_call", "}":
        choice = _chat(client, 1, [stop], tools=_TOOLS)
        assert (choice["finish_reason"], choice["content"]) == ("tool_calls", None)
        assert choice["calls"] == ['{"a": "x STOP\\n y"}']


def test_a_stop_string_does_not_swallow_a_forced_call(client: openai.OpenAI, reciter: str) -> None:
    for stop in ["\n"], ["{", "<"]:
        choice = _chat(client, 1, stop, tools=_TOOLS, tool_choice="required")
        assert choice["finish_reason"] == "tool_calls"
        assert json.loads(choice["calls"][0]) == {}, "the schema has no property"


def test_a_control_token_that_is_a_stop_string_ends_the_answer(
    client: openai.OpenAI, reciter: str
) -> None:
    of_the_model = _chat(client, 2, [])
    assert (of_the_model["content"], of_the_model["finish_reason"]) == ("So on", "stop")
    assert of_the_model["usage"]["completion_tokens"] == 4
    asked = _chat(client, 2, ["<|aside|>"], logprobs=True)
    assert (asked["content"], asked["finish_reason"]) == ("So", "stop")
    assert [token["token"] for token in asked["logprobs"]["content"]] == ["So"]
    raw = {"model": "reciter", "prompt": "<r2>", "max_tokens": 9}
    for stop, text in (None, "So on\nuser"), (["<|turn|>"], "So on"), (["<|turn|>\n"], "So on"):
        made = client.completions.create(**raw, stop=stop)
        assert (made.choices[0].text, made.choices[0].finish_reason) == (text, "stop")
    ends = {"stop": ["</s>"], "extra_body": {"ignore_eos": True}}
    ended = client.completions.create(**{**raw, "max_tokens": 40}, **ends).choices[0]
    assert (ended.text, ended.finish_reason) == ("So on\nuser", "stop")


def test_logprobs_end_where_a_stop_string_begins(client: openai.OpenAI, reciter: str) -> None:
    choice = _chat(client, 0, ["STOP"], logprobs=True)
    told = [token["token"] for token in choice["logprobs"]["content"]]
    assert told == _TEXTS[0][:10], "the last one begins before the stop string"
    legacy = client.completions.create(
        model="counter", prompt="7", stop=["10 11"], logprobs=1, max_tokens=9
    )
    made = legacy.choices[0]
    assert (made.text, made.logprobs.tokens) == (" 8 9 ", [" 8", " 9", " 10"])
    assert made.logprobs.text_offset == [0, 2, 4]
    assert legacy.usage.completion_tokens == 4, "what was drawn"


def test_the_usage_counts_the_tokens_of_the_reasoning(client: openai.OpenAI, reciter: str) -> None:
    for stop in [], ["STOP"]:
        details = _chat(client, 0, stop)["usage"]["completion_tokens_details"]
        assert details == {"reasoning_tokens": 5}, "with the mark before it"
    cut = _chat(client, 0, [], max_tokens=3)
    assert cut["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}
    two = client.chat.completions.create(
        model="reciter", messages=[{"role": "user", "content": "<r0>"}], n=2
    )
    assert two.usage.completion_tokens_details.reasoning_tokens == 10
    none = _chat(client, 2, [])
    assert none["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}
    plain = client.chat.completions.create(
        model="counter", messages=[{"role": "user", "content": "7"}], max_tokens=2
    )
    assert plain.usage.completion_tokens_details is None
