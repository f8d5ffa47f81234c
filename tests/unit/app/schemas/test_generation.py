"""Request bodies: what is taken, and that a bad one names its parameter."""

from typing import Any

import msgspec
import pytest

from app.parsing import parse
from app.schemas import ChatRequest, CompletionRequest
from app.tool_schemas import tool_use
from shared.errors import InvalidRequest
from shared.messages import Tool, ToolChoice
from shared.settings import SamplingDefaults

_CHAT = {"model": "m", "messages": [{"role": "user", "content": "a"}]}


def _chat(**fields: Any) -> ChatRequest:
    return parse(msgspec.json.encode({**_CHAT, **fields}), ChatRequest)


def test_null_means_not_set() -> None:
    names = ("max_tokens", "temperature", "top_p", "stop", "n", "seed", "stream", "user")
    body = _chat(**dict.fromkeys(names))
    assert body.num_choices == 1
    assert not body.is_stream
    assert body.sampling(SamplingDefaults()).temperature == 1.0


def test_what_clients_send_without_effect_is_taken() -> None:
    fields = {"prompt_cache_key": "k", "safety_identifier": "x", "verbosity": "low", "audio": None}
    assert _chat(metadata={"a": "b"}, store=True, **fields).model == "m"


def test_text_parts_are_joined_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = _chat(messages=[{"role": "developer", "content": parts}])
    message = body.messages[0].to_message(0)
    assert (message.role, message.content) == ("system", "ab")


def test_logit_bias_keys_are_token_ids() -> None:
    assert _chat(logit_bias={"5": -100}).sampling(SamplingDefaults()).logit_bias == {5: -100.0}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"seed": 2**64}, "seed"),
        ({"top_k": 2**32 + 1}, "top_k"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {str(2**40): 1}}, "logit_bias"),
        ({"logprobs": 0}, "logprobs"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": 5}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "custom", "function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"priority": "urgent"}, "priority"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"guided_choice": []}, "guided_choice"),
        ({"modalities": ["text", "audio"]}, "modalities[1]"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"temprature": 1}, "temprature"),
        ({"seed": 1.5}, "seed"),
        ({"model": None}, "model"),
    ],
)
def test_a_bad_value_names_its_parameter(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _chat(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize("name", ["model", "messages"])
def test_a_missing_parameter_is_named(name: str) -> None:
    body = {k: v for k, v in _CHAT.items() if k != name}
    with pytest.raises(InvalidRequest) as caught:
        parse(msgspec.json.encode(body), ChatRequest)
    assert caught.value.param == name


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"[" * 100_000, b'{"model": "\\ud800"}']
)
def test_what_is_not_a_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse(body, ChatRequest)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_prompts_in_all_their_shapes(prompt: Any, expected: list[Any]) -> None:
    body = msgspec.json.encode({"model": "m", "prompt": prompt})
    assert parse(body, CompletionRequest).prompts() == expected


@pytest.mark.parametrize("prompt", [[], [[]], [1, "a"], [-1], [1.5], [None], [2**31], [2**70]])
def test_prompts_of_no_shape_are_refused(prompt: Any) -> None:
    body = msgspec.json.encode({"model": "m", "prompt": prompt})
    with pytest.raises(InvalidRequest) as caught:
        parse(body, CompletionRequest).prompts()
    assert caught.value.param == "prompt"


def test_what_a_request_leaves_open_is_taken_from_the_model() -> None:
    body = parse(
        b'{"model": "m", "prompt": "p", "temperature": 0.5, "top_p": null}', CompletionRequest
    )
    sampling = body.sampling(SamplingDefaults(temperature=0.1, top_p=0.9, min_p=0.05))
    assert (sampling.temperature, sampling.top_p, sampling.min_p) == (0.5, 0.9, 0.05)
    assert sampling.top_k == 0


def test_tools_that_are_allowed_are_the_only_ones() -> None:
    tools = [Tool("a"), Tool("b")]
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "b"}}]}
    choice = _chat(tool_choice={"type": "allowed_tools", "allowed_tools": allowed}).tool_choice
    assert tool_use(choice, tools) == ([Tool("b")], ToolChoice.REQUIRED, None)
    with pytest.raises(InvalidRequest, match="none of the tools"):
        tool_use(choice, tools[:1])
