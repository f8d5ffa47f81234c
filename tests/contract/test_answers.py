"""Answers of the counter model, whole and streamed, and errors: frozen in `frozen/http/answers`."""

import pytest

from tests.conftest import Service
from tests.contract import frozen_file
from tests.contract.bodies import GENERATIONS, OTHERS, REFUSED, Body
from tests.contract.canonical import canonical_json, canonical_stream
from tests.contract.exchange import exchange

_FOLDER = "http/answers"


def _whole(service: Service, body: Body) -> str:
    fields = {key: value for key, value in body.fields.items() if key != "stream_options"}
    found = exchange(service, "POST", body.path, fields)
    return f"{found.head}\n{canonical_json(found.body, found.request_id)}\n"


def _streamed(service: Service, body: Body) -> str:
    found = exchange(service, "POST", body.path, {**body.fields, "stream": True})
    stream = canonical_stream(found.body, found.request_id, is_joined=body.is_joined)
    return f"{found.head}\n{stream}"


@pytest.mark.parametrize("name", GENERATIONS)
def test_a_generation(service: Service, name: str) -> None:
    body = GENERATIONS[name]
    found = _whole(service, body)
    assert found.startswith("200 ")
    if body.is_streamable:
        found += "\n" + _streamed(service, body)
    frozen_file.assert_frozen_exactly(f"{_FOLDER}/{name}.txt", found)


@pytest.mark.parametrize("name", OTHERS)
def test_another_answer(service: Service, name: str) -> None:
    found = _whole(service, OTHERS[name])
    assert found.startswith("200 ")
    frozen_file.assert_frozen_exactly(f"{_FOLDER}/{name}.txt", found)


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal(service: Service, name: str) -> None:
    body = REFUSED[name]
    answer = exchange(service, "POST", body.path, body.fields)
    found = f"{answer.head}\n{canonical_json(answer.body, answer.request_id)}\n"
    assert found.startswith("4")
    frozen_file.assert_frozen_exactly(f"{_FOLDER}/refused/{name}.txt", found)


def test_no_file_is_left_over() -> None:
    assert frozen_file.frozen_names(_FOLDER) == {*GENERATIONS, *OTHERS, "refused"}
    assert frozen_file.frozen_names(f"{_FOLDER}/refused") == {*REFUSED}
