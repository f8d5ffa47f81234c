"""Bodies of embedding requests, and the answers' shapes."""

import base64
import math
import struct
from typing import Any

import msgspec
import pytest

from app.api.embeddings import EmbeddingAnswer, EmbeddingRequest, shorten
from app.schemas.parse import convert
from shared.errors import InvalidRequest
from shared.wire.events import Embedding, Finished, Started, Timings, Usage


def _request(**fields: Any) -> EmbeddingRequest:
    return convert({"model": "m", "input": "x", **fields}, EmbeddingRequest)


def _packed(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_the_four_kinds_of_input(given: Any, expected: Any) -> None:
    assert _request(input=given).inputs() == expected


@pytest.mark.parametrize(
    "given", ["", [], [""], ["a", ""], [[]], [[1], []], [True], [1, "a"], [-1], [2**31], [None]]
)
def test_what_is_empty_or_mixed_is_refused(given: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _request(input=given).inputs()
    assert caught.value.param == "input"


def test_null_is_not_set_and_fields_without_effect_are_ignored() -> None:
    request = _request(encoding_format=None, dimensions=None, user=None, safety_identifier="x")
    assert (request.encoding_format, request.dimensions) == (None, None)


def _answer(**fields: Any) -> Any:
    answer = EmbeddingAnswer(_request(**fields), 2)
    answer.take(Started(0, 0, 5))
    answer.take(Embedding(1, 0, 1, _packed(0.6, 0.8)))
    answer.take(Embedding(2, 0, 0, _packed(1.0, 0.0)))
    body = answer.body(Finished(3, 0, Usage(5, 0), Timings(0, 0, 0)))
    return msgspec.json.decode(msgspec.json.encode(body))


def test_vectors_stand_in_the_order_of_the_inputs() -> None:
    answer = _answer()
    assert [item["index"] for item in answer["data"]] == [0, 1]
    assert answer["data"][0]["embedding"] == [1.0, 0.0]
    assert answer["data"][1]["embedding"] == pytest.approx([0.6, 0.8])
    assert answer["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


def test_base64_holds_the_same_floats() -> None:
    item = _answer(encoding_format="base64")["data"][1]
    assert base64.b64decode(item["embedding"]) == _packed(0.6, 0.8)


def test_a_shortened_vector_has_length_one() -> None:
    values = struct.unpack("<2f", shorten(_packed(0.1, 0.2, 0.9), 2))
    assert math.hypot(*values) == pytest.approx(1.0)
    assert values[1] / values[0] == pytest.approx(2.0)
    whole = _packed(0.6, 0.8)
    assert shorten(whole, 2) is whole
    assert shorten(_packed(0.0, 1.0), 1) == _packed(0.0)
    with pytest.raises(InvalidRequest, match="3"):
        shorten(_packed(0.1, 0.2, 0.9), 4)
