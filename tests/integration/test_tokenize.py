"""`POST /tokenize` and `POST /detokenize` over real HTTP."""

import http.client
import json
from typing import Any

import pytest

from tests.conftest import Service
from tests.support.counter_model import number_token

_BOS = 1


def _post(service: Service, path: str, **body: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    payload = json.dumps({"model": "counter", **body})
    connection.request("POST", path, payload, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


def _get(service: Service, path: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_a_text_becomes_tokens(service: Service) -> None:
    status, answer = _post(service, "/tokenize", prompt="17 999")
    assert status == 200
    assert answer == {
        "count": 3,
        "max_model_len": 2048,
        "tokens": [_BOS, number_token(17), number_token(999)],
        "token_strs": None,
    }


def test_special_tokens_may_be_left_out_and_texts_be_asked_for(service: Service) -> None:
    options = {"add_special_tokens": False, "return_token_strs": True}
    _, answer = _post(service, "/tokenize", prompt="17 18", **options)
    assert answer["tokens"] == [number_token(17), number_token(18)]
    assert answer["token_strs"] == [" 17", " 18"]
    _, answer = _post(service, "/tokenize", prompt="17", return_token_strs=True)
    assert answer["token_strs"] == ["<s>", " 17"]
    assert _post(service, "/tokenize", prompt="", add_special_tokens=False)[1]["count"] == 0


def test_control_tokens_in_a_text_are_text(service: Service) -> None:
    for prompt in ("17</s>", "</s> ", "</s></s>"):
        _, answer = _post(service, "/tokenize", prompt=prompt, add_special_tokens=False)
        assert answer["count"] > 2
    assert _post(service, "/tokenize", prompt="</s>")[1]["count"] > 2


def test_the_names_in_the_tokenizers_description_lead_to_their_tokens(service: Service) -> None:
    expected = {
        "model": "counter",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": None,
        "add_bos_token": True,
        "model_max_length": 2048,
    }
    for query in ("", "?model=counter"):
        status, info = _get(service, f"/tokenizer_info{query}")
        assert status == 200
        assert info.pop("chat_template"), "the counter has one"
        assert info == expected
    for name, token in (("<s>", _BOS), ("</s>", 2)):
        _, answer = _post(service, "/tokenize", prompt=name, add_special_tokens=False)
        assert answer["tokens"] == [token]
    assert _get(service, "/tokenizer_info?model=none")[0] == 404


def test_the_first_configured_model_is_meant_where_none_is_named(service: Service) -> None:
    _, named = _post(service, "/tokenize", prompt="17 999")
    assert _post(service, "/tokenize", model=None, prompt="17 999") == (200, named)
    back = _post(service, "/detokenize", model=None, tokens=named["tokens"][1:])
    assert back == (200, {"prompt": " 17 999"})


def test_there_and_back(service: Service) -> None:
    for text in ("5 6 7", "€ 😀 <euro>", "a\nb\0c"):
        _, answer = _post(service, "/tokenize", prompt=text, add_special_tokens=False)
        status, back = _post(service, "/detokenize", tokens=answer["tokens"])
        assert status == 200
        assert back["prompt"].removeprefix(" ") == text
    assert _post(service, "/detokenize", tokens=[])[1] == {"prompt": ""}
    assert _post(service, "/detokenize", tokens=[_BOS, number_token(3)])[1] == {"prompt": "<s> 3"}


def test_a_text_longer_than_the_context_is_counted(service: Service) -> None:
    status, answer = _post(service, "/tokenize", prompt=" ".join(["17"] * 3000))
    assert (status, answer["count"]) == (200, 3001)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 17}, "prompt"),
        ("/tokenize", {"prompt": "x", "add_special_tokens": "yes"}, "add_special_tokens"),
        ("/tokenize", {"prompt": "x" * 1_000_000}, "prompt"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "17"}, "tokens"),
        ("/detokenize", {"tokens": [5, -1]}, "tokens[1]"),
        ("/detokenize", {"tokens": [10_000_000]}, "tokens"),
    ],
)
def test_a_bad_body_names_its_parameter(service: Service, path: str, body: Any, param: str) -> None:
    status, answer = _post(service, path, **body)
    assert (status, answer["error"]["param"]) == (400, param), answer


@pytest.mark.parametrize(
    ("path", "body"), [("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [1]})]
)
def test_an_unknown_model_is_not_found(service: Service, path: str, body: Any) -> None:
    status, answer = _post(service, path, model="nope", **body)
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


def test_it_counts_as_no_generation(service: Service) -> None:
    def counted() -> list[str]:
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        names = ("llmis_generation_tokens_total", "llmis_prompt_tokens_total")
        return [line for line in lines if line.startswith(names) and '"counter"' in line]

    before = counted()
    _post(service, "/tokenize", prompt="1 2 3")
    assert counted() == before


def test_the_tokens_of_a_chat_are_those_that_it_begins_with(service: Service) -> None:
    messages = [{"role": "user", "content": "17 999"}]
    status, answer = _post(service, "/tokenize", model="counter", messages=messages)
    assert status == 200
    chat = service.openai().chat.completions.create(
        model="counter",
        messages=messages,  # type: ignore[arg-type]
        max_tokens=1,
    )
    assert chat.usage is not None and answer["count"] == chat.usage.prompt_tokens
    both = _post(service, "/tokenize", model="counter", messages=messages, prompt="x")
    assert both[0] == 400
