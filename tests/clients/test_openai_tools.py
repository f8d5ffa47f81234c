"""The `openai` package: tools, with calls that a grammar makes valid whatever the model says."""

import json
from typing import Any, Literal

import openai
import pydantic
import pytest
from openai.types.chat import ChatCompletionMessageFunctionToolCall as Call

from tests.support.counter_model import expected_text

_MODELS = ("counter", "gemma-3-270m")


class Weather(pydantic.BaseModel):
    """Look the weather up."""

    city: Literal["Paris", "Rome"]
    in_celsius: bool


class Lamp(pydantic.BaseModel):
    """Switch the lamp."""

    is_on: bool
    note: str = pydantic.Field(max_length=5)


_TOOLS = [openai.pydantic_function_tool(tool) for tool in (Weather, Lamp)]
_SCHEMAS = {"Weather": Weather, "Lamp": Lamp}
_LAMP: Any = {"type": "function", "function": {"name": "Lamp"}}


def _request(model: str = "counter", content: str = "17", **fields: Any) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "tools": _TOOLS,
        "max_tokens": 200,
        "temperature": 0,
        "parallel_tool_calls": False,
        **fields,
    }


@pytest.mark.parametrize("model", _MODELS)
def test_required_makes_a_valid_call(client: openai.OpenAI, model: str) -> None:
    request = _request(model, tool_choice="required", n=2)
    answer = client.chat.completions.parse(**request)
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        assert choice.message.tool_calls is not None
        (call,) = choice.message.tool_calls
        assert isinstance(call.function.parsed_arguments, _SCHEMAS[call.function.name])
        assert call.id.startswith("call_")


@pytest.mark.parametrize("model", _MODELS)
def test_a_named_tool_is_called_once(client: openai.OpenAI, model: str) -> None:
    """As OpenAI has it, whatever `parallel_tool_calls` says."""
    request = _request(model, tool_choice=_LAMP, parallel_tool_calls=True)
    answer = client.chat.completions.parse(**request)
    assert answer.choices[0].message.tool_calls is not None
    (call,) = answer.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Lamp)


@pytest.mark.parametrize("choice", ["none", "auto", openai.omit])
def test_a_model_that_makes_no_call_says_its_text(client: openai.OpenAI, choice: Any) -> None:
    answer = client.chat.completions.create(**_request(tool_choice=choice, max_tokens=9))
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].message.content == expected_text(17, 9).lstrip()


@pytest.mark.parametrize("model", _MODELS)
def test_streamed_pieces_of_a_call_add_up(client: openai.OpenAI, model: str) -> None:
    request = _request(model, tool_choice="required")
    whole = client.chat.completions.create(**request).choices[0].message.tool_calls
    with client.chat.completions.stream(**request) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    pieces = [e for e in events if e.type == "tool_calls.function.arguments.delta"]
    (done,) = (e for e in events if e.type == "tool_calls.function.arguments.done")
    assert "".join(piece.arguments_delta for piece in pieces) == done.arguments
    assert isinstance(done.parsed_arguments, _SCHEMAS[done.name])
    assert not any(e.delta for e in events if e.type == "content.delta")
    choice = final.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert whole is not None and choice.message.tool_calls is not None
    assert [_called(c) for c in choice.message.tool_calls] == [_called(c) for c in whole]


def _called(call: Any) -> tuple[str, str]:
    return call.function.name, call.function.arguments


async def test_streamed_calls_of_several_choices(async_client: openai.AsyncOpenAI) -> None:
    request = _request(tool_choice="required", n=3, temperature=1, seed=3)
    async with async_client.chat.completions.stream(**request) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_completion()
    calls = [choice.message.tool_calls for choice in final.choices]
    assert len(calls) == 3
    assert all(len(made or []) == 1 for made in calls)
    assert len({made[0].id for made in calls if made}) == 3


def test_the_answer_to_a_call_is_what_the_model_goes_on_from(
    client: openai.OpenAI, tool_counter: str
) -> None:
    messages: list[Any] = [{"role": "user", "content": "17"}]
    request = _request(tool_counter, messages=messages)
    asked = client.chat.completions.create(**request | {"tool_choice": "required"})
    call = (asked.choices[0].message.tool_calls or [])[0]
    assert isinstance(call, Call)
    json.loads(call.function.arguments)
    messages.append(asked.choices[0].message)
    messages.append({"role": "tool", "tool_call_id": call.id, "content": "640"})
    answer = client.chat.completions.create(**request | {"max_tokens": 3})
    assert answer.choices[0].message.content == "641 642 643"


def test_the_answer_to_a_call_of_a_model_that_knows_no_tools(client: openai.OpenAI) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "Weather", "arguments": '{"city": "Rome", "in_celsius": true}'},
    }
    messages: list[Any] = [
        {"role": "user", "content": "How warm is it in Rome?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "31 °C"}]},
    ]
    answer = client.chat.completions.create(**_request("gemma-3-270m", messages=messages))
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")
    assert answer.usage is not None and answer.usage.prompt_tokens > 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "Nope"}}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"messages": [{"role": "tool", "content": "5"}]}, "messages[0].tool_call_id"),
    ],
)
def test_what_cannot_be_called_is_refused(
    client: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**_request(**fields))
    assert caught.value.param == param
