"""What closing adds to a schema, and where it must not."""

from typing import Any

import pytest

from shared.closed_schema import closed

_A: dict[str, Any] = {"properties": {"a": {"type": "string"}}}
_CLOSED_A = {**_A, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({}, {}),
        ({"type": "object"}, {"type": "object"}),
        (_A, _CLOSED_A),
        ({**_A, "additionalProperties": True}, {**_A, "additionalProperties": True}),
        ({**_A, "additionalProperties": _A}, {**_A, "additionalProperties": _CLOSED_A}),
        ({"type": "array", "items": _A}, {"type": "array", "items": _CLOSED_A}),
        ({"anyOf": [_A, {"type": "null"}]}, {"anyOf": [_CLOSED_A, {"type": "null"}]}),
        (
            {"$ref": "#/$defs/x", "$defs": {"x": _A}},
            {"$ref": "#/$defs/x", "$defs": {"x": _CLOSED_A}},
        ),
        ({"const": _A}, {"const": _A}),
        (
            {"properties": {"properties": {"type": "string"}}},
            {"properties": {"properties": {"type": "string"}}, "additionalProperties": False},
        ),
        ({"properties": "broken"}, {"properties": "broken", "additionalProperties": False}),
    ],
)
def test_objects_are_closed(schema: Any, expected: Any) -> None:
    assert closed(schema) == expected


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [_A, {"properties": {"b": {}}}]},
        {**_A, "anyOf": [{"properties": {"b": {}}}]},
        {**_A, "$ref": "#/$defs/x"},
        {**_A, "patternProperties": {"^x": {}}},
        {"properties": {"inner": {"allOf": [_A]}}},
    ],
)
def test_parts_that_belong_together_are_left_open(schema: dict[str, Any]) -> None:
    assert closed(schema) == schema
