"""Models whose numbers or vocabulary cannot be used: refused when they are loaded, and where only a
request meets the fault, an error of that request."""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tests.conftest import Service, models_folder
from tests.support import counter_model, vocabulary_model
from tests.support.admin_client import Completion, load, model, unload
from tests.support.counter_model import expected_text, number_token

_BROKEN = 500
"""The number whose vector is NaN."""


@pytest.fixture
def path() -> Iterator[Path]:
    """Of a file in the model folder."""
    made = models_folder() / "unusable.gguf"
    yield made
    made.unlink(missing_ok=True)


def _post(service: Service, path: str, **body: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


@pytest.mark.parametrize("pooling", [None, gguf.PoolingType.MEAN])
def test_a_model_whose_numbers_are_nan_is_refused(
    service: Service, path: Path, pooling: gguf.PoolingType | None
) -> None:
    counter_model.write(path, pooling, norm=np.nan)
    status, answer = load(service, "nan", path=path.name)
    assert (status, answer["error"]["code"]) == (422, "invalid_model"), answer
    assert "The model computed no valid numbers (NaN or infinite)." in answer["error"]["message"]
    assert not service.pids("worker.replica", "nan@")
    assert model(service, "nan") is None or model(service, "nan")["state"] == "failed"


def test_a_vocabulary_that_adds_a_token_it_lacks_is_refused(service: Service, path: Path) -> None:
    entries = vocabulary_model.SPECIALS + vocabulary_model.BYTES
    vocabulary_model.write(path, entries, "t5", lambda writer: writer.add_add_bos_token(True))
    status, answer = load(service, "no-bos", path=path.name)
    assert (status, answer["error"]["code"]) == (422, "invalid_model"), answer
    assert "its vocabulary has no BOS token" in answer["error"]["message"]


def test_nan_in_a_request_is_an_error_of_that_request_alone(service: Service, path: Path) -> None:
    counter_model.write(path, nan_token=number_token(_BROKEN))
    assert load(service, "part", path=path.name, context_length=2048)[0] == 200
    replicas = service.pids("worker.replica", "part@")
    beside = Completion(service, "part", 450, 17)
    beside.read(5)
    for fields in ({}, {"logprobs": 2}, {"echo": True, "logprobs": 1}, {"temperature": 1}):
        prompt = f"{_BROKEN} 17"
        status, answer = _post(
            service, "/v1/completions", model="part", prompt=prompt, max_tokens=4, **fields
        )
        assert (status, answer["error"]["code"]) == (500, "engine_error"), answer
        assert "NaN" in answer["error"]["message"]
    assert beside.read().text == expected_text(17, 450)
    cut = Completion(service, "part", 20, _BROKEN - 3).read()
    assert cut.text == " 498 499 500" and "NaN" in cut.error["message"]
    assert Completion(service, "part", 30).read().text == expected_text(5, 30)
    assert service.pids("worker.replica", "part@") == replicas
    unload(service, "part", mode="now")


def test_a_text_with_more_tokens_than_bytes_is_answered(service: Service, path: Path) -> None:
    entries = vocabulary_model.SPECIALS + vocabulary_model.BYTES + vocabulary_model.letters("a")
    vocabulary_model.write(path, entries)
    assert load(service, "spaces", path=path.name, context_length=1024)[0] == 200
    prompt = " " * 80 + "a"
    status, answer = _post(service, "/v1/completions", model="spaces", prompt=prompt, max_tokens=1)
    assert status == 200, answer
    # Begin, three for each space and for the one that SentencePiece adds, "a".
    assert answer["usage"]["prompt_tokens"] == 1 + 3 * 81 + 1
    unload(service, "spaces", mode="now")
