"""The demo model through the official client, as a new user would ask it."""

from typing import Any

import openai
import pytest

_QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_capital_of_france(client: openai.OpenAI, is_stream: bool) -> None:
    arguments: dict[str, Any] = {
        "model": "gemma-3-270m",
        "messages": _QUESTION,
        "temperature": 0,
        "max_tokens": 32,
    }
    if is_stream:
        chunks = list(client.chat.completions.create(**arguments, stream=True))
        answer = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        answer = client.chat.completions.create(**arguments).choices[0].message.content or ""
    assert "Paris" in answer
    assert "User:" not in answer


async def _ask_async(base_url: str) -> str:
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="gemma-3-270m", messages=_QUESTION, temperature=0, max_tokens=32, stream=True
        )
        return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])


def test_the_async_client(service: Any) -> None:
    import asyncio

    assert "Paris" in asyncio.run(_ask_async(f"{service.url}/v1"))


def test_a_second_question_reuses_the_prompt_of_the_first(client: openai.OpenAI) -> None:
    history = [*_QUESTION, {"role": "assistant", "content": "Paris."}]
    history.append({"role": "user", "content": "And of Spain?"})
    client.chat.completions.create(model="gemma-3-270m", messages=_QUESTION, max_tokens=4)
    answer = client.chat.completions.create(model="gemma-3-270m", messages=history, max_tokens=4)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert (answer.usage.prompt_tokens_details.cached_tokens or 0) > 15
