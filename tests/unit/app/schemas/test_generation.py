"""Request bodies: what is taken, and that a bad one names its parameter."""

from typing import Any

import msgspec
import pytest

from app.schemas.generation import ChatRequest, CompletionRequest
from app.schemas.messages import continues_last
from app.schemas.parse import parse
from app.schemas.tools import tool_use
from shared.errors import InvalidRequest
from shared.settings.fields import Settings
from shared.settings.model_settings import SamplingDefaults
from shared.wire.job import Tool, ToolChoice

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


_TOOL = {"type": "function", "function": {"name": "f"}}
_FORM = {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}}
_ALLOWED = {"mode": "auto", "tools": [_TOOL]}
_FUNCTION = {"name": "f", "x - at `$.y`": 1}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"stream_options": {"include_usge": True}}, "stream_options.include_usge"),
        ({"stream_options": {"include_usage": True, "x": None}}, "stream_options.x"),
        ({"response_format": {**_FORM, "strict": True}}, "response_format.strict"),
        ({"response_format": {"type": "text", "schma": {}}}, "response_format.schma"),
        (
            {"response_format": {**_FORM, "json_schema": {"name": "s", "schema": {}, "strct": 1}}},
            "response_format.json_schema.strct",
        ),
        ({"tools": [_TOOL, {**_TOOL, "strict": True}]}, "tools[1].strict"),
        (
            {"tools": [{**_TOOL, "function": {"name": "f", "paramters": {}}}]},
            "tools[0].function.paramters",
        ),
        ({"tool_choice": {**_TOOL, "name": "f"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice.name"),
        (
            {"tool_choice": {"type": "function", "function": _FUNCTION}},
            "tool_choice.function.x - at `$.y`",
        ),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {**_ALLOWED, "x": 1}}},
            "tool_choice.allowed_tools.x",
        ),
        (
            {"tools": [{**_TOOL, "function": {"name": "f", "x" * 300: 1}}]},
            f"tools[0].function.{'x' * 82}",
        ),
    ],
)
def test_an_unknown_name_below_the_top_level_is_refused_with_its_path(
    fields: dict[str, Any], path: str
) -> None:
    with pytest.raises(InvalidRequest, match="Unrecognized request argument") as caught:
        _chat(**fields)
    assert caught.value.param == path


@pytest.mark.parametrize("kind", ["text", "json_object"])
def test_a_schema_beside_another_format_is_refused(kind: str) -> None:
    body = _chat(response_format={"type": kind, "json_schema": _FORM["json_schema"]})
    with pytest.raises(InvalidRequest) as caught:
        body.grammar(Settings())
    assert caught.value.param == "response_format.json_schema"


def test_names_are_free_in_messages_schemas_and_what_has_names_of_the_client() -> None:
    """Answers of other servers come back as messages, with names of theirs."""
    echo = {"role": "assistant", "content": "a", "annotations": [], "audio": None, "x": 1}
    call = {"id": "c", "function": {"name": "f", "arguments": "{}", "x": 1}, "index": 0}
    part = {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}
    user = {"role": "user", "content": [part]}
    function = {"name": "f", "parameters": {"type": "object", "x": 1}}
    body = _chat(
        messages=[user, {**echo, "tool_calls": [call]}],
        tools=[{"type": "function", "function": function}],
        response_format={**_FORM, "json_schema": {"name": "s", "schema": {"x": 1}}},
        metadata={"x": "y"},
        chat_template_kwargs={"x": 1},
    )
    assert len(body.messages) == 2


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
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
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
    with pytest.raises(InvalidRequest, match="not one of the tools"):
        tool_use(choice, tools[:1])


# -- messages --------------------------------------------------------------------------------------


def _called(**function: Any) -> dict[str, Any]:
    call = {"id": "i", "type": "function", "function": {"name": "f", **function}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ({}, ""),
        ({"arguments": ""}, ""),
        ({"arguments": None}, ""),
        ({"arguments": '{"a": "b'}, '{"a": "b'),
        ({"arguments": {"a": "é"}}, '{"a": "é"}'),
        ({"arguments": 5}, "5"),
        ({"arguments": [1]}, "[1]"),
    ],
)
def test_arguments_of_earlier_calls_need_not_be_an_object(
    function: dict[str, Any], expected: str
) -> None:
    body = _chat(messages=[_called(**function)])
    assert body.messages[0].to_message(0).tool_calls[0].arguments == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"reasoning": "a"}, "a"),
        ({"reasoning": "a", "reasoning_content": "b"}, "b"),
        ({"reasoning": "a", "reasoning_content": None}, "a"),
        ({"reasoning": None}, None),
        ({"reasoning": {"effort": "low"}}, None),
        ({"reasoning": ["a"]}, None),
    ],
)
def test_reasoning_is_another_name_of_reasoning_content(
    fields: dict[str, Any], expected: str | None
) -> None:
    for role, found in (("assistant", expected), ("user", None)):
        body = _chat(messages=[{"role": role, "content": "x", **fields}])
        assert body.messages[0].to_message(0).reasoning == found


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        (
            {"reasoning_effort": "none"},
            {"reasoning_effort": "none", "enable_thinking": False, "thinking": False},
        ),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
            {"reasoning_effort": "none", "enable_thinking": True, "thinking": False},
        ),
    ],
)
def test_no_effort_switches_the_templates_thinking_off(
    fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert _chat(**fields).template_arguments == expected


_USER, _PREFIX = _CHAT["messages"][0], {"role": "assistant", "content": "x", "prefix": True}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([_USER], False),
        ([_USER, _PREFIX], True),
        ([_PREFIX], True),
        ([_USER, _PREFIX | {"content": None}], True),
        ([_USER, _PREFIX | {"prefix": False}], False),
        ([_USER | {"prefix": False}, _PREFIX | {"prefix": None}], False),
    ],
)
def test_a_prefix_is_continued(messages: list[Any], expected: bool) -> None:
    assert continues_last(_chat(messages=messages).messages) is expected


@pytest.mark.parametrize(
    ("messages", "position"),
    [
        ([_PREFIX, _USER], 0),
        ([_USER, _PREFIX, _PREFIX], 1),
        ([_USER, _USER | {"prefix": True}], 1),
        ([{"role": "system", "content": "x", "prefix": True}], 0),
        ([_USER, _called() | {"prefix": True}], 1),
    ],
)
def test_a_prefix_elsewhere_is_refused(messages: list[Any], position: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        continues_last(_chat(messages=messages).messages)
    assert caught.value.param == f"messages[{position}].prefix"
