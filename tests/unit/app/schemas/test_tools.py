"""The format of the answer: which grammar it stands for."""

from typing import Any

import msgspec
import pytest

from app.schemas.tools import ResponseFormat
from shared.errors import InvalidRequest
from shared.settings.fields import Settings

_SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}


def _format(**fields: Any) -> ResponseFormat:
    return msgspec.convert(fields, ResponseFormat)


@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_a_schema_without_a_name_is_a_json_schema(kind: str) -> None:
    named = _format(type="json_schema", json_schema={"name": "x", "schema": _SCHEMA})
    plain = _format(type=kind, schema=_SCHEMA)
    expected, found = named.grammar(Settings()), plain.grammar(Settings())
    assert expected is not None and found is not None
    assert (found.kind, found.source) == (expected.kind, expected.source)
    assert found.param == "response_format.schema"
    assert '"additionalProperties":false' in found.source


def test_a_schema_of_a_json_object_is_one_of_an_object() -> None:
    schema = {"properties": {"a": {}}}
    for kind, is_object in (("json_object", True), ("json_schema", False)):
        grammar = _format(type=kind, schema=schema).grammar(Settings())
        assert grammar is not None and ('"type":"object"' in grammar.source) is is_object
    grammar = _format(type="json_object", schema={"enum": [{}]}).grammar(Settings())
    assert grammar is not None and '"type"' not in grammar.source


def test_a_json_object_may_have_any_properties() -> None:
    for fields in ({}, {"schema": None}, {"json_schema": None}):
        grammar = _format(type="json_object", **fields).grammar(Settings())
        assert grammar is not None and grammar.source == '{"type":"object"}'


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"type": "text", "schema": _SCHEMA}, "schema"),
        ({"type": "text", "json_schema": {"name": "x"}}, "json_schema"),
        ({"type": "json_object", "json_schema": {"name": "x", "schema": _SCHEMA}}, "json_schema"),
        (
            {"type": "json_schema", "schema": {}, "json_schema": {"name": "x", "schema": {}}},
            "schema",
        ),
        ({"type": "json_schema"}, "json_schema.schema"),
        ({"type": "json_object", "schema": {"properties": 5}}, "schema"),
    ],
)
def test_a_schema_in_the_wrong_place_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _format(**fields).grammar(Settings())
    assert caught.value.param == f"response_format.{param}"
