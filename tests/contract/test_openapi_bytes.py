"""`/openapi.json` without its words: every path, name of a component, field, type and bound."""

import json
from typing import Any

import pytest
from flask.testing import FlaskClient

from shared.version import VERSION
from tests.contract import frozen_file
from tests.contract.canonical import decode
from tests.support import web_app

_WORDS = ("description", "summary")
_VALUES = ("example", "default", "const", "enum")
"""Under these keys is data, in which a key of `_WORDS` is one."""


def test_the_document_is_the_frozen_one(openapi: bytes) -> None:
    frozen_file.assert_frozen_exactly("http/openapi.json", canonical_document(openapi))


@pytest.fixture
def openapi() -> bytes:
    client: FlaskClient = web_app.made().test_client()
    return client.get("/openapi.json").data


def canonical_document(document: bytes) -> str:
    """The document with indented lines, so that a diff of it can be read."""
    value = _without_words(decode(document))
    assert value["info"].pop("version") == VERSION
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _without_words(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_words(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: item if key in _VALUES and not isinstance(item, dict) else _without_words(item)
        for key, item in value.items()
        if not (key in _WORDS and isinstance(item, str))
    }


def test_only_words_are_left_out() -> None:
    """A field that is called `description` is none."""
    field = {"type": "string", "description": "What it is for."}
    schema = {"summary": "A tool.", "properties": {"description": field}, "enum": ["summary"]}
    assert _without_words({"a": [schema]}) == {
        "a": [{"properties": {"description": {"type": "string"}}, "enum": ["summary"]}]
    }
