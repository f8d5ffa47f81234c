"""EleutherAI's lm-eval 0.4.13 with `--model local-completions` and the tokenizer of the service.

The package brings 0.7 GB of others, so these are its requests and its reading of the answers, as in
`lm_eval/models/openai_completions.py`, `lm_eval/models/api_models.py` and `lm_eval/utils.py`.
"""

import json
import urllib.request
from typing import Any

import pytest

from tests.conftest import Service

_MODEL = "counter"
_SEED = 1234


def _ask(service: Service, path: str, body: Any = None) -> Any:
    payload = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(
        urllib.request.Request(f"{service.url}{path}", payload, headers), timeout=60
    ) as answer:
        return json.load(answer)


def _encode(service: Service, text: str) -> list[int]:
    body = {"prompt": text, "add_special_tokens": False}
    tokens: list[int] = _ask(service, "/tokenize", body)["tokens"]
    return tokens


def _token(service: Service, name: str) -> int:
    """A token of the description, as `RemoteTokenizer.bos_token_id` and `eos_token_id` find it."""
    return _encode(service, _ask(service, "/tokenizer_info")[name])[0]


def _logprobs(
    service: Service, pairs: list[tuple[list[int], list[int]]]
) -> list[tuple[float, bool]]:
    """Of continuations behind their contexts, and whether each is what the model would write."""
    body = {
        "model": _MODEL,
        "prompt": [context + continuation for context, continuation in pairs],
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": _SEED,
        "echo": True,
    }
    choices = sorted(
        _ask(service, "/v1/completions", body)["choices"], key=lambda choice: choice["index"]
    )
    found = []
    for choice, (context, _) in zip(choices, pairs, strict=True):
        tokens = choice["logprobs"]["token_logprobs"][len(context) : -1]
        tops = choice["logprobs"]["top_logprobs"][len(context) : -1]
        is_greedy = all(token == max(top.values()) for token, top in zip(tokens, tops, strict=True))
        found.append((sum(tokens), is_greedy))
    return found


def test_the_tokenizer_of_the_service_is_found(service: Service) -> None:
    """`check_remote_tokenizer_support`, and the ids of what begins and ends a text."""
    assert _ask(service, "/tokenizer_info")["eos_token"] == "</s>"
    assert isinstance(_encode(service, "test"), list)
    assert (_token(service, "bos_token"), _token(service, "eos_token")) == (1, 2)
    tokens = _encode(service, "5 6 7")
    assert _ask(service, "/detokenize", {"tokens": tokens})["prompt"].lstrip() == "5 6 7"


@pytest.mark.parametrize("num_at_once", [1, 4])
def test_loglikelihood(service: Service, num_at_once: int) -> None:
    context = _encode(service, "5 6 7")
    texts = [_encode(service, f"5 6 7{choice}") for choice in (" 8", " 9", " 8 9", " 8 10")]
    pairs = [(context, text[len(context) :]) for text in texts]
    found = []
    for first in range(0, len(pairs), num_at_once):
        found += _logprobs(service, pairs[first : first + num_at_once])
    assert [is_greedy for _, is_greedy in found] == [True, False, True, False]
    sums = [value for value, _ in found]
    assert sums[0] > sums[1] and sums[2] > sums[3]
    assert all(value <= 0 for value in sums)


def test_loglikelihood_of_a_whole_text(service: Service) -> None:
    """Rolling windows begin with the token that begins a text."""
    prefix = [_token(service, "bos_token")]
    ((counted, _), (jumbled, _)) = _logprobs(
        service, [(prefix, _encode(service, text)) for text in ("5 6 7 8", "5 8 6 7")]
    )
    assert 0 > counted > jumbled


def test_generate_until(service: Service) -> None:
    prompts = [_encode(service, text) for text in ("5 6", "100 101")]
    body = {
        "prompt": prompts,
        "model": _MODEL,
        "max_tokens": 256,
        "temperature": 0,
        "stop": ["\n", " 105", " 9", "</s>"],
        "seed": _SEED,
    }
    choices = _ask(service, "/v1/completions", body)["choices"]
    assert {choice["index"]: choice["text"] for choice in choices} == {0: " 7 8", 1: " 102 103 104"}
