"""Embeddings over real HTTP: every vector is known in advance."""

import http.client
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
import pytest

from shared import names
from shared.registry.records import read
from tests.conftest import TEST_FILES, Service, wait_for
from tests.support.admin_client import load, model, unload
from tests.support.counter_model import number_token
from tests.support.embedding_model import (
    Bert,
    Vector,
    mean_vector,
    normalized,
    number_vector,
    write_mean,
)

_BERT = Bert(width=128, layers=4)
_LOOSE = 2e-3
"""llama.cpp computes GELU out of a table of half-precision numbers."""


@pytest.fixture(scope="module")
def embedders(service: Service) -> Iterator[Service]:
    """The service with two embedding models: `mean` (8 slots) and `bert`."""
    folder = TEST_FILES / "models"
    write_mean(folder / "mean.gguf")
    _BERT.write(folder / "bert.gguf")
    for name, fields in (("mean", {"slots": 8, "context_length": 2048}), ("bert", {"slots": 4})):
        status, answer = load(service, name, path=f"{name}.gguf", **fields)
        assert status == 200, answer
    yield service
    for name in ("mean", "bert"):
        unload(service, name, mode="now")


@pytest.fixture
def embed(embedders: Service) -> openai.OpenAI:
    return embedders.openai()


def _post(service: Service, path: str, body: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    payload = body if isinstance(body, bytes) else json.dumps(body)
    connection.request("POST", path, payload, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


def _is_near(found: list[float], expected: Vector, tolerance: float = 1e-6) -> bool:
    return bool(np.abs(np.array(found) - expected).max() < tolerance)


def test_the_whole_answer_is_openais(embedders: Service) -> None:
    status, answer = _post(embedders, "/v1/embeddings", {"model": "mean", "input": "17 18"})
    assert status == 200
    assert set(answer) == {"object", "data", "model", "usage"}
    assert (answer["object"], answer["model"]) == ("list", "mean")
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    (item,) = answer["data"]
    assert (item["object"], item["index"]) == ("embedding", 0)
    assert _is_near(item["embedding"], number_vector(17, 18))


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}])
def test_the_openai_client_gets_its_vectors_either_way(embed: openai.OpenAI, options: Any) -> None:
    """By itself it asks for base64 and unpacks it."""
    answer = embed.embeddings.create(
        model="mean", input=["1", "2 3", "999"], user="someone", **options
    )
    expected = [number_vector(1), number_vector(2, 3), number_vector(999)]
    assert [item.index for item in answer.data] == [0, 1, 2]
    for item, vector in zip(answer.data, expected, strict=True):
        assert _is_near(item.embedding, vector)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 2 + 3 + 2


def test_token_ids_are_taken_as_they_are(embed: openai.OpenAI) -> None:
    one, two = number_token(1), number_token(2)
    (single,) = embed.embeddings.create(model="mean", input=[one, two]).data
    assert _is_near(single.embedding, mean_vector([one, two]))
    several = embed.embeddings.create(model="mean", input=[[one], [two, two, one]]).data
    assert _is_near(several[0].embedding, mean_vector([one]))
    assert _is_near(several[1].embedding, mean_vector([two, two, one]))


def test_an_encoder_answers_as_its_reference(embed: openai.OpenAI) -> None:
    texts = ["the cat sat on the mat", "red dog", "a tree not under a cat"] * 5
    answer = embed.embeddings.create(model="bert", input=texts)
    for text, item in zip(texts, answer.data, strict=True):
        assert _is_near(item.embedding, _BERT.vector(_BERT.token_ids(text)), _LOOSE)
    assert answer.usage.prompt_tokens == sum(len(_BERT.token_ids(text)) for text in texts)


def test_dimensions_shorten_and_normalise_again(embed: openai.OpenAI) -> None:
    (item,) = embed.embeddings.create(model="mean", input="5 6", dimensions=10).data
    assert _is_near(item.embedding, normalized(number_vector(5, 6)[:10]))
    (whole,) = embed.embeddings.create(model="mean", input="5 6", dimensions=64).data
    assert _is_near(whole.embedding, number_vector(5, 6))
    with pytest.raises(openai.BadRequestError) as caught:
        embed.embeddings.create(model="mean", input="5 6", dimensions=65)
    assert caught.value.param == "dimensions"
    assert "64" in caught.value.message


def test_fifty_clients_at_once_each_get_their_own(embedders: Service) -> None:
    def ask(number: int) -> None:
        numbers = [number, 999 - number, number]
        inputs = [str(n) for n in numbers] + [" ".join(map(str, numbers))]
        answer = embedders.openai().embeddings.create(model="mean", input=inputs)
        expected = [*(number_vector(n) for n in numbers), number_vector(*numbers)]
        for item, vector in zip(answer.data, expected, strict=True):
            assert _is_near(item.embedding, vector), number

    with ThreadPoolExecutor(50) as pool:
        list(pool.map(ask, range(50)))


def test_two_thousand_inputs_and_none_more(embed: openai.OpenAI) -> None:
    inputs = [str(i % 1000) for i in range(2048)]
    answer = embed.embeddings.create(model="mean", input=inputs)
    assert [item.index for item in answer.data] == list(range(2048))
    for i in (0, 1, 511, 512, 1000, 2047):
        assert _is_near(answer.data[i].embedding, number_vector(i % 1000))
    with pytest.raises(openai.BadRequestError) as caught:
        embed.embeddings.create(model="mean", input=[*inputs, "1"])
    assert caught.value.param == "input"
    assert "2048" in caught.value.message


def test_an_input_may_fill_the_context_and_no_more(embed: openai.OpenAI) -> None:
    zero = number_token(0)
    tokens = [zero + i % 1000 for i in range(2048)]
    (item,) = embed.embeddings.create(model="mean", input=tokens).data
    assert _is_near(item.embedding, mean_vector(tokens))
    for too_long in (tokens + tokens[:1], " ".join(["17"] * 2048), "17 " * 50_000):
        with pytest.raises(openai.BadRequestError) as caught:
            embed.embeddings.create(model="mean", input=too_long)
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")


def test_an_encoders_context_ends_where_its_positions_end(embed: openai.OpenAI) -> None:
    tokens = [2, *([7] * 510), 3]
    (item,) = embed.embeddings.create(model="bert", input=tokens).data
    assert _is_near(item.embedding, _BERT.vector(tokens), _LOOSE)
    with pytest.raises(openai.BadRequestError) as caught:
        embed.embeddings.create(model="bert", input=[*tokens, 3])
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["1", ""]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [1, "a"]}, "input"),
        ({"input": [[1], "a"]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": [100_000]}, "input"),
        ({"input": [1.5]}, "input"),
        ({"input": 17}, "input"),
        ({"input": None}, "input"),
        ({"input": {"text": "17"}}, "input"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": "many"}, "dimensions"),
        ({"model": 3}, "model"),
    ],
)
def test_a_bad_body_names_its_parameter(embedders: Service, fields: Any, param: str) -> None:
    body = {"model": "mean", "input": "17", **fields}
    status, answer = _post(embedders, "/v1/embeddings", body)
    assert (status, answer["error"]["param"]) == (400, param), answer
    assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("name", ["mean", "bert"])
def test_their_vocabularies_can_be_asked_too(embedders: Service, name: str) -> None:
    text = "17 18" if name == "mean" else "the cat"
    expected = [1, number_token(17), number_token(18)]
    if name == "bert":
        expected = _BERT.token_ids(text)
    _, answer = _post(embedders, "/tokenize", {"model": name, "prompt": text})
    assert (answer["tokens"], answer["count"]) == (expected, len(expected))
    assert answer["max_model_len"] == (2048 if name == "mean" else 512)
    body = {"model": name, "tokens": expected[1:3]}
    assert _post(embedders, "/detokenize", body)[1]["prompt"].strip() == text


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"17", b"\xff\xfe", b"[" * 100_000])
def test_garbage_is_a_bad_request(embedders: Service, body: bytes) -> None:
    status, answer = _post(embedders, "/v1/embeddings", body)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


def test_missing_and_unknown_fields(embedders: Service) -> None:
    status, answer = _post(embedders, "/v1/embeddings", {"model": "mean"})
    assert (status, answer["error"]["param"]) == (400, "input")
    status, answer = _post(
        embedders, "/v1/embeddings", {"model": "mean", "input": "17", "colour": "red"}
    )
    assert (status, answer["error"]["param"]) == (400, "colour")
    assert (
        _post(
            embedders, "/v1/embeddings", {"model": "mean", "input": "17", "safety_identifier": "x"}
        )[0]
        == 200
    )


def test_any_text_is_embedded(embed: openai.OpenAI) -> None:
    texts = ["€😀", "\0", " ", "\u202e\u0301", "</s><s>", "x" * 500]
    for name in ("mean", "bert"):
        for item in embed.embeddings.create(model=name, input=texts).data:
            assert abs(np.linalg.norm(item.embedding) - 1) < 1e-5


def test_the_wrong_kind_of_model_is_named(embed: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        embed.embeddings.create(model="counter", input="17")
    assert caught.value.param == "model"
    assert "embed" in caught.value.message
    for ask in (
        lambda: embed.completions.create(model="mean", prompt="17"),
        lambda: embed.completions.create(model="mean", prompt="17", stream=True),
        lambda: embed.chat.completions.create(
            model="mean", messages=[{"role": "user", "content": "17"}]
        ),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            ask()
        assert caught.value.param == "model"
        assert "/v1/embeddings" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        embed.embeddings.create(model="nope", input="17")


def test_a_generating_model_embeds_when_it_is_told_to(service: Service) -> None:
    status, answer = load(service, "told", slots=4, task="embed")
    assert status == 200, answer
    (item,) = service.openai().embeddings.create(model="told", input="8 9").data
    assert _is_near(item.embedding, number_vector(8, 9))
    assert model(service, "told")["task"] == "embed"
    unload(service, "told", mode="now")


def test_a_model_that_declares_a_pooling_generates_when_it_is_told_to(embedders: Service) -> None:
    status, answer = load(embedders, "told", path="mean.gguf", task="generate")
    assert status == 200, answer
    completion = embedders.openai().completions.create(
        model="told", prompt="17", max_tokens=2, temperature=0
    )
    assert completion.choices[0].text == " 18 19"
    unload(embedders, "told", mode="now")


def test_what_cannot_embed_is_refused_before_it_is_loaded(service: Service) -> None:
    import gguf

    path = TEST_FILES / "models" / "rank.gguf"
    Bert().write(path, gguf.PoolingType.RANK)
    status, answer = load(service, "rank", path="rank.gguf")
    assert (status, answer["error"]["code"]) == (422, "invalid_model")
    assert "reranker" in answer["error"]["message"]
    Bert().write(path, None)
    status, answer = load(service, "rank", path="rank.gguf", task="generate")
    assert status == 422
    assert "generates no text" in answer["error"]["message"]
    status, answer = load(service, "rank", task="sing")
    assert (status, answer["error"]["param"]) == (400, "task")
    path.unlink()


def test_a_client_that_leaves_frees_the_slots(embedders: Service) -> None:
    tokens = [2, *([7] * 510), 3]
    connection = http.client.HTTPConnection("127.0.0.1", embedders.port, timeout=60)
    headers = {"Content-Type": "application/json", "x-request-id": "embed-and-leave"}
    body = json.dumps({"model": "bert", "input": [tokens] * 1000})
    connection.request("POST", "/v1/embeddings", body, headers)

    def busy() -> int:
        records = read(embedders.redis)
        return sum(record.busy_slots for record in records if record.model == "bert")

    wait_for(busy, "the request runs")
    connection.close()

    def outcome() -> Any:
        lines = embedders.log("replica-bert").splitlines()
        done = [line for line in lines if '"embed-and-leave"' in line and '"request done"' in line]
        return json.loads(done[0])["outcome"] if done else None

    assert wait_for(outcome, "the request has ended") == "client_gone"
    wait_for(lambda: busy() == 0, "all slots are free")
    (item,) = embedders.openai().embeddings.create(model="bert", input="red dog").data
    assert _is_near(item.embedding, _BERT.vector(_BERT.token_ids("red dog")), _LOOSE)


def test_a_replica_that_dies_in_the_middle_is_not_noticed(embedders: Service) -> None:
    """Vectors can be made again, other than text: the next replica begins anew."""
    inputs = [[2, *([5 + i % 12] * 500), 3] for i in range(24)]

    def ask() -> list[list[float]]:
        answer = embedders.openai().embeddings.create(
            model="bert", input=inputs, extra_headers={"x-request-id": "embed-and-die"}
        )
        assert answer.usage.prompt_tokens == 24 * 502
        return [item.embedding for item in answer.data]

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask)
        log_key = names.log_key("embed-and-die")
        wait_for(lambda: int(embedders.redis.llen(log_key)) > 4, "some vectors are out")
        (pid,) = embedders.pids("worker.replica", " bert@")
        os.kill(pid, signal.SIGKILL)
        found = answer.result(60)
    for tokens, vector in zip(inputs[:12], found[:12], strict=True):
        assert _is_near(vector, _BERT.vector(tokens), _LOOSE)
    assert np.abs(np.array(found[12:24]) - np.array(found[:12])).max() < 1e-5


def test_replicas_take_no_more_than_estimated(embedders: Service) -> None:
    embedders.openai().embeddings.create(model="bert", input=[[2, *([7] * 510), 3]] * 8)
    for name in ("mean", "bert"):
        (replica,) = model(embedders, name)["replicas"]
        assert replica["memory_bytes"] <= replica["memory_estimated_bytes"]
