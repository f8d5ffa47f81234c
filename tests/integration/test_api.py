"""The OpenAI surface over real HTTP: shapes, parameters, errors."""

import contextlib
import http.client
import json
import socket
from typing import Any

import openai
import pytest

from tests.conftest import Service
from tests.support.counter_model import expected_text, number_token


def _post(service: Service, path: str, body: Any, headers: Any = None) -> tuple[int, Any, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(
        "POST", path, payload, {"Content-Type": "application/json", **(headers or {})}
    )
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, response.headers, content


def _get(service: Service, path: str, method: str = "GET") -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    connection.request(method, path)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content


def _chat_body(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "17"}]
    return {"model": "counter", "messages": messages, "max_tokens": 3, "temperature": 0, **fields}


def _sse(content: bytes) -> list[Any]:
    """The data of each event; [DONE] as text."""
    lines = [line[6:] for line in content.decode().split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_chat_chunks_come_in_openais_order_and_shape(service: Service) -> None:
    body = _chat_body(stream=True, stream_options={"include_usage": True})
    status, headers, content = _post(service, "/v1/chat/completions", body)
    assert status == 200
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, done = _sse(content)
    assert done == "[DONE]"
    for chunk in chunks:
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk["id"] == chunks[0]["id"]
        assert chunk["model"] == "counter"
    first, *middle, finish, usage = chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(c["choices"][0]["delta"]["content"] for c in middle) == "18 19 20"
    assert all(c["choices"][0]["finish_reason"] is None and c["usage"] is None for c in middle)
    assert finish["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "length",
    }
    assert usage["choices"] == []
    assert usage["usage"]["prompt_tokens"] == 2
    assert usage["usage"]["completion_tokens"] == 3
    assert usage["usage"]["total_tokens"] == 5


def test_without_include_usage_no_chunk_has_usage(service: Service) -> None:
    _, _, content = _post(service, "/v1/chat/completions", _chat_body(stream=True))
    assert all("usage" not in chunk for chunk in _sse(content)[:-1])


def test_chat_whole_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**_chat_body())
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == "18 19 20"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 3)


def test_max_completion_tokens_wins(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**_chat_body(max_completion_tokens=1))
    assert answer.choices[0].message.content == "18"


def test_legacy_completion_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="counter", prompt="5", max_tokens=4, temperature=0)
    assert whole.object == "text_completion"
    assert whole.choices[0].text == expected_text(5, 4)
    stream = client.completions.create(
        model="counter", prompt="5", max_tokens=4, temperature=0, stream=True
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected_text(5, 4)
    assert [c.choices[0].finish_reason for c in chunks][-1] == "length"


def test_legacy_default_is_sixteen_tokens(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="counter", prompt="5", temperature=0)
    assert answer.choices[0].text == expected_text(5, 16)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_stop_string_ends_the_text_and_never_leaks(
    client: openai.OpenAI, is_stream: bool
) -> None:
    arguments: dict[str, Any] = {
        "model": "counter",
        "prompt": "5",
        "max_tokens": 50,
        "temperature": 0,
        "stop": ["never", "10 11", "9 1"],
    }
    if is_stream:
        chunks = list(client.completions.create(**arguments, stream=True))
        text = "".join(chunk.choices[0].text for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        choice = client.completions.create(**arguments).choices[0]
        text, reason = choice.text, choice.finish_reason
    assert text == " 6 7 8 "
    assert reason == "stop"


def test_the_models_own_end_token_finishes_with_stop(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="counter", prompt="7<stop>", max_tokens=9)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("", "stop")


@pytest.mark.parametrize(("trigger", "character"), [("<euro>", "€"), ("<smile>", "😀")])
def test_a_character_of_several_tokens_arrives_whole(
    client: openai.OpenAI, trigger: str, character: str
) -> None:
    stream = client.completions.create(
        model="counter", prompt=trigger, max_tokens=8, temperature=0, stream=True
    )
    texts = [chunk.choices[0].text for chunk in stream]
    assert "".join(texts).startswith(character + " 0 1")
    assert not any("\ufffd" in text for text in texts)


def test_several_choices_and_prompts_keep_their_order(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="counter", prompt=["5", "800"], n=2, max_tokens=3, temperature=0
    )
    expected = [expected_text(5, 3)] * 2 + [expected_text(800, 3)] * 2
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    assert [c.text for c in answer.choices] == expected
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 12)


def test_more_choices_than_slots_take_turns(client: openai.OpenAI) -> None:
    chunks = client.chat.completions.create(
        **_chat_body(model="counter-small", n=5, stream=True, max_tokens=20)
    )
    texts: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    assert texts == dict.fromkeys(range(5), expected_text(17, 20).lstrip())


def test_token_ids_as_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="counter", prompt=[1, number_token(40)], max_tokens=2, temperature=0
    )
    assert answer.choices[0].text == expected_text(40, 2)


def test_sampling_parameters_reach_the_engine(client: openai.OpenAI) -> None:
    """A strong bias wins over the model's own choice; penalties push a repeated token away."""
    forty = number_token(40)
    biased = client.completions.create(
        model="counter", prompt="5", max_tokens=1, temperature=0, logit_bias={str(forty): 100}
    )
    assert biased.choices[0].text == " 40"
    sampled = client.completions.create(
        model="counter", prompt="5", max_tokens=20, temperature=1, top_p=0.9, seed=3,
        extra_body={"top_k": 5, "min_p": 0.05}, presence_penalty=0.5, frequency_penalty=0.5,
    )  # fmt: skip
    assert sampled.choices[0].text == expected_text(5, 20)


def test_a_penalty_pushes_a_repeated_token_away(client: openai.OpenAI) -> None:
    """Of two tokens that are wanted alike one would win always. And it costs no time."""
    bias = {str(number_token(number)): 100 for number in (40, 200)}

    def drawn(penalty: float) -> set[str]:
        answer = client.with_options(timeout=5).completions.create(
            model="counter", prompt="5", max_tokens=30, temperature=0,
            frequency_penalty=penalty, logit_bias=bias,
        )  # fmt: skip
        return set(answer.choices[0].text.split())

    assert len(drawn(0)) == 1
    assert drawn(2) >= {"40", "200"}


def test_a_seed_makes_sampling_repeatable(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str:
        answer = client.completions.create(
            model="gemma-3-270m", prompt="Once upon a time", max_tokens=12, temperature=1, seed=seed
        )
        return answer.choices[0].text

    assert ask(7) == ask(7)
    assert len({ask(seed) for seed in range(4)}) > 1


def test_completion_without_max_tokens_in_chat_fills_the_context(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "17"}]
    answer = client.chat.completions.create(model="counter-small", messages=messages, temperature=0)
    assert answer.usage is not None
    assert answer.usage.total_tokens == 512
    assert answer.choices[0].finish_reason == "length"


# -- errors ----------------------------------------------------------------------------------


def _error(content: bytes) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(content)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize("is_stream", [False, True])
def test_unknown_model_is_404(service: Service, is_stream: bool) -> None:
    body = _chat_body(model="none", stream=is_stream)
    status, _, content = _post(service, "/v1/chat/completions", body)
    assert status == 404
    assert _error(content)["code"] == "model_not_found"


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_prompt_that_is_too_long_is_400_before_the_stream(
    service: Service, is_stream: bool
) -> None:
    content = " ".join(["17"] * 600)
    body = _chat_body(
        model="counter-small", messages=[{"role": "user", "content": content}], stream=is_stream
    )
    status, _, answer = _post(service, "/v1/chat/completions", body)
    error = _error(answer)
    assert status == 400
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert "512" in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"", None),
        (b"[]", None),
        (_chat_body(temperature=3), "temperature"),
        (_chat_body(n=0), "n"),
        (_chat_body(n=10**9), "n"),
        (_chat_body(messages=[{"role": "user"}]), "messages[0].content"),
        (_chat_body(logit_bias={"99999": 1}), "logit_bias"),
        ({"model": "counter"}, "messages"),
    ],
)
def test_bad_bodies_are_400_and_name_the_parameter(
    service: Service, body: Any, param: str | None
) -> None:
    status, _, content = _post(service, "/v1/chat/completions", body)
    assert status == 400, content
    error = _error(content)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


def test_body_too_large_is_413(service: Service) -> None:
    status, _, content = _post(service, "/v1/chat/completions", b"x" * (9 * 1024 * 1024))
    assert status == 413
    assert _error(content)["code"] == "body_too_large"


def test_a_broken_chunked_body_is_400(service: Service) -> None:
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=30)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    connection.sendall(head + b"ZZ\r\nno chunk\r\n")
    assert connection.recv(65536).startswith(b"HTTP/1.1 400")
    connection.close()


def test_a_chunked_body_that_is_too_large_is_413(service: Service) -> None:
    body = b'{"model": "counter", "prompt": "5"}' + b" " * (9 * 1024 * 1024)
    chunks = (body[i : i + 65536] for i in range(0, len(body), 65536))
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.request("POST", "/v1/completions", chunks, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_a_forwarding_header_of_a_client_is_no_fault(service: Service) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    connection.request("GET", "/healthz", headers={"SCRIPT_NAME": "/foo"})
    assert connection.getresponse().status < 500
    connection.close()


def test_unknown_route_and_wrong_method(service: Service) -> None:
    status, content = _get(service, "/v1/nothing")
    assert (status, _error(content)["code"]) == (404, "unknown_url")
    status, content = _get(service, "/v1/chat/completions")
    assert (status, _error(content)["code"]) == (405, "method_not_allowed")


# -- the rest of the surface -----------------------------------------------------------------


def test_models(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {
        "counter",
        "counter-small",
        "gemma-3-270m",
    }
    assert client.models.retrieve("counter").owned_by == "llmis"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none")


def test_health_and_version(service: Service) -> None:
    assert _get(service, "/healthz")[0] == 200
    assert _get(service, "/readyz")[0] == 200
    assert "version" in json.loads(_get(service, "/version")[1])


def test_request_ids_are_taken_made_and_never_shared(service: Service) -> None:
    def ask(request_id: str | None) -> str:
        headers = {"x-request-id": request_id} if request_id else {}
        status, answer, _ = _post(service, "/v1/chat/completions", _chat_body(), headers)
        assert status == 200
        return str(answer["x-request-id"])

    assert ask("my-own.id_1") == "my-own.id_1"
    assert ask("my-own.id_1").startswith("my-own.id_1-"), "taken already: made unique"
    assert ask(None).startswith("req-")
    assert ask("bad id\tno").startswith("req-")
    _, content = _get(service, "/v1/nothing")
    assert content


def test_metrics_count_what_was_done(service: Service, client: openai.OpenAI) -> None:
    def value(name: str) -> float:
        _, content = _get(service, "/metrics")
        lines = content.decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    counter = 'llmis_generation_tokens_total{model="counter"}'
    before = value(counter)
    client.completions.create(model="counter", prompt="5", max_tokens=11, temperature=0)
    assert value(counter) == before + 11
    assert value('llmis_time_to_first_token_seconds_count{model="counter"}') >= 1
    assert value('llmis_num_requests_running{model="counter"}') >= 0
