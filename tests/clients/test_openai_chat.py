"""The `openai` package: chats and their streams, embeddings, models."""

import asyncio
import math
from enum import StrEnum
from typing import Any

import openai
import pydantic
import pytest
from openai.types.chat import ChatCompletion

from tests.support.counter_model import expected_text, number_token
from tests.support.embedding_model import mean_vector, number_vector


def _chat(start: int = 17, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": str(start)}]
    return {"model": "counter", "messages": messages, "max_tokens": 8, "temperature": 0, **fields}


def _said(start: int, num_tokens: int) -> str:
    """The counter in chats: without the first blank."""
    return expected_text(start, num_tokens).lstrip()


_STOPPED = {"max_tokens": 50, "stop": [" 26"]}
"""The stream helper's final completion is for answers that were not cut off."""


async def test_twenty_concurrent_streams_each_count_on(async_client: openai.AsyncOpenAI) -> None:
    async def text(start: int) -> str:
        stream = await async_client.chat.completions.create(
            **_chat(start, max_tokens=120), stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    starts = [37 * i for i in range(20)]
    texts = await asyncio.gather(*map(text, starts))
    assert texts == [_said(start, 120) for start in starts]


def test_the_stream_helper_sees_every_event(client: openai.OpenAI) -> None:
    options = {"stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 2}
    with client.chat.completions.stream(**_chat(**_STOPPED, **options)) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    kinds = {event.type for event in events}
    assert kinds == {
        "chunk",
        "content.delta",
        "content.done",
        "logprobs.content.delta",
        "logprobs.content.done",
    }
    deltas = [event for event in events if event.type == "content.delta"]
    assert "".join(event.delta for event in deltas) == deltas[-1].snapshot == _said(17, 8)
    (done,) = (event for event in events if event.type == "content.done")
    assert done.content == _said(17, 8)
    assert final.choices[0].message.content == _said(17, 8)
    assert final.choices[0].finish_reason == "stop"
    assert final.usage is not None and final.usage.completion_tokens == 9
    logprobs = final.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    tokens = [token.token for token in logprobs.content]
    assert tokens == [f" {n}" for n in range(18, 26)], "none behind the stop string"


async def test_the_async_stream_helper(async_client: openai.AsyncOpenAI) -> None:
    async with async_client.chat.completions.stream(**_chat(**_STOPPED, n=3)) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_completion()
    assert [choice.index for choice in final.choices] == [0, 1, 2]
    assert {choice.message.content for choice in final.choices} == {_said(17, 8)}


def test_a_stream_accumulates_to_the_whole_answer(client: openai.OpenAI) -> None:
    options = {**_STOPPED, "n": 2, "logprobs": True, "top_logprobs": 3}
    whole = client.chat.completions.create(**_chat(**options))
    usage = {"include_usage": True}
    with client.chat.completions.stream(**_chat(**options), stream_options=usage) as stream:
        streamed = stream.get_final_completion()
    assert _lasting(streamed) == _lasting(whole)


def _lasting(answer: ChatCompletion) -> dict[str, Any]:
    """What does not change from request to request."""
    found = answer.to_dict()
    assert isinstance(found["usage"], dict)
    found["usage"].pop("prompt_tokens_details")
    for choice in answer.choices:
        assert choice.message.refusal is None
    messages = [(c.message.role, c.message.content, c.finish_reason) for c in answer.choices]
    logprobs = [c.logprobs.to_dict() if c.logprobs else None for c in answer.choices]
    kept = ("model", "usage", "system_fingerprint")
    return {name: found[name] for name in kept} | {"said": messages, "logprobs": logprobs}


class _Colour(StrEnum):
    RED = "red"
    GREEN = "green"


class _Lamp(pydantic.BaseModel):
    colour: _Colour
    is_on: bool
    name: str | None = pydantic.Field(max_length=4)


def test_a_pydantic_model_is_parsed(client: openai.OpenAI) -> None:
    request = _chat(max_tokens=400, n=3, temperature=1, seed=5)
    answer = client.chat.completions.parse(**request, response_format=_Lamp)
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        assert isinstance(choice.message.parsed, _Lamp)


def test_a_pydantic_model_is_parsed_from_a_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**_chat(max_tokens=400), response_format=_Lamp) as stream:
        (done,) = (event for event in stream if event.type == "content.done")
    assert isinstance(done.parsed, _Lamp)


def test_what_is_cut_off_is_not_parsed(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError) as caught:
        client.chat.completions.parse(**_chat(max_tokens=3), response_format=_Lamp)
    assert caught.value.completion.choices[0].finish_reason == "length"


def test_headers_and_the_request_id(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**_chat())
    assert raw.headers["content-type"] == "application/json"
    assert raw.headers["x-request-id"]
    answer = raw.parse()
    assert answer._request_id == raw.headers["x-request-id"]
    assert answer.id == f"chatcmpl-{answer._request_id}"
    assert answer.choices[0].message.content == _said(17, 8)


def test_headers_of_a_stream_come_before_its_end(client: openai.OpenAI) -> None:
    create = client.chat.completions.with_streaming_response.create
    with create(**_chat(), stream=True) as raw:
        assert raw.headers["content-type"].startswith("text/event-stream")
        request_id = raw.headers["x-request-id"]
        chunks = list(raw.parse())
    assert {chunk.id for chunk in chunks} == {f"chatcmpl-{request_id}"}


async def test_legacy_completions(async_client: openai.AsyncOpenAI) -> None:
    request: dict[str, Any] = {"model": "counter", "max_tokens": 5, "temperature": 0}
    whole = await async_client.completions.create(**request, prompt=["5", "90"], logprobs=1)
    assert [choice.text for choice in whole.choices] == [expected_text(5, 5), expected_text(90, 5)]
    assert whole.choices[0].logprobs is not None
    assert whole.choices[0].logprobs.tokens == [f" {n}" for n in range(6, 11)]
    usage = {"include_usage": True}
    stream = await async_client.completions.create(
        **request, prompt="5", stream=True, stream_options=usage
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].text for c in chunks if c.choices) == expected_text(5, 5)
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 5


async def test_models(async_client: openai.AsyncOpenAI) -> None:
    names = [model.id async for model in async_client.models.list()]
    assert "counter" in names
    assert (await async_client.models.retrieve("counter")).id == "counter"


def test_embeddings(client: openai.OpenAI, embeddings: str) -> None:
    """The client asks for base64 and decodes it by itself."""
    answer = client.embeddings.create(model=embeddings, input=["17 18", "5"])
    assert [item.index for item in answer.data] == [0, 1]
    assert answer.data[0].embedding == pytest.approx(number_vector(17, 18), abs=1e-4)
    assert answer.data[1].embedding == pytest.approx(number_vector(5), abs=1e-4)
    assert answer.usage.prompt_tokens == 5


async def test_embeddings_of_tokens_as_short_floats(
    async_client: openai.AsyncOpenAI, embeddings: str
) -> None:
    tokens = [1, number_token(17)]
    answer = await async_client.embeddings.create(
        model=embeddings, input=tokens, encoding_format="float", dimensions=8
    )
    (item,) = answer.data
    expected = mean_vector(tokens)[:8]
    length = math.hypot(*expected)
    assert item.embedding == pytest.approx([value / length for value in expected], abs=1e-4)
