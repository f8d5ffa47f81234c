"""Walking, closing and relaxing JSON schemas: keywords only, never names or data."""

import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from shared.json_schema import (
    all_parts,
    closed,
    enforceable,
    lenient,
    with_parts,
    without_finite_patterns,
)

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
        (
            {**_A, "required": ["a", "z"]},
            {
                "properties": {**_A["properties"], "z": True},
                "required": ["a", "z"],
                "additionalProperties": False,
            },
        ),
        ({"properties": "broken"}, {"properties": "broken", "additionalProperties": False}),
    ],
)
def test_objects_are_closed(schema: Any, expected: Any) -> None:
    assert closed(schema) == expected


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"inner": {"allOf": [{"$ref": "#/$defs/x"}], "default": None}}},
        {**_A, "patternProperties": {}},
        {**_A, "anyOf": [{"required": ["a"]}, {"required": []}]},
    ],
)
def test_what_names_no_other_property_keeps_no_schema_open(schema: dict[str, Any]) -> None:
    """pydantic 1 writes a reference with a description as `allOf` of one part."""
    found = closed({**schema, "$defs": {"x": _A}})
    assert found["additionalProperties"] is False
    assert found["$defs"]["x"]["additionalProperties"] is False


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [_A, {"properties": {"b": {}}}]},
        {**_A, "anyOf": [{"properties": {"b": {}}}]},
        {**_A, "$ref": "#/$defs/x"},
        {**_A, "patternProperties": {"^x": {}}},
        {"properties": {"inner": {"allOf": [_A, _A]}}},
        {**_A, "allOf": [_A]},
        {**_A, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
    ],
)
def test_parts_that_belong_together_are_left_open(schema: dict[str, Any]) -> None:
    assert closed(schema) == schema


_BEHIND = [r"^(?=a)b$", r"(?!x)", r"(?<!x)a", r"(?<=x)a", r"\bfoo", r"a\B", r"(a)\1", r"(?P=n)"]
_FINE = [r"^a+$", r"\\b", r"(?:a|b)", r"(?<n>a)", r"(?i)abc", r"\d{1,3}\.", r"[=!]"]


@pytest.mark.parametrize("pattern", _BEHIND)
def test_patterns_of_no_automaton_are_dropped_wherever_they_are(pattern: str) -> None:
    part = {"type": "string", "pattern": pattern}
    rest = {"type": "string"}
    for key in ("properties", "$defs", "definitions", "patternProperties"):
        assert enforceable({key: {"x": part}}) == {key: {"x": rest}}
    for key in ("anyOf", "allOf", "oneOf", "prefixItems", "items"):
        assert enforceable({key: [part, True]}) == {key: [rest, True]}
    for key in ("items", "additionalProperties", "not"):
        assert enforceable({key: {"items": part}}) == {key: {"items": rest}}
    assert enforceable({"patternProperties": {pattern: {}, "^y": {}}}) == {
        "patternProperties": {"^y": {}}
    }


@pytest.mark.parametrize("pattern", _FINE)
def test_other_patterns_stay(pattern: str) -> None:
    schema = {"properties": {"a": {"pattern": pattern}}}
    assert enforceable(schema) == schema


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"pattern": {"type": "string"}}},
        {"const": {"pattern": "(?=a)"}},
        {"enum": [{"pattern": "(?=a)"}]},
        {"pattern": 5},
        {"properties": 5, "anyOf": 5, "items": False},
    ],
)
def test_what_only_looks_like_a_pattern_stays(schema: dict[str, object]) -> None:
    assert enforceable(schema) == schema


def test_a_lenient_schema_sets_the_option_of_llguidance() -> None:
    assert lenient({"type": "string"}) == {"type": "string", "x-guidance": {"lenient": True}}


_NAMES_BY_KEY = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_KEYWORDS = ("if", "allOf", "$ref", "dependentSchemas", "patternProperties", "not", "items")
_DATA_KEYS = ("default", "const", "enum", "examples")


def _marked(part: Any) -> Any:
    return {"marked": part}


@pytest.mark.parametrize("name", [*_KEYWORDS, *_DATA_KEYS, "properties", "pattern"])
@pytest.mark.parametrize("key", _NAMES_BY_KEY)
def test_a_name_is_no_keyword(key: str, name: str) -> None:
    schema = {key: {name: _A}}
    assert with_parts(schema, _marked) == {key: {name: {"marked": _A}}}
    assert list(all_parts(schema)) == [schema, _A, _A["properties"]["a"]]
    assert enforceable(schema) == schema


@pytest.mark.parametrize("name", [*_KEYWORDS, *_DATA_KEYS, "properties", "unevaluatedProperties"])
@pytest.mark.parametrize("key", ["properties", "$defs", "definitions"])
def test_a_name_keeps_no_schema_open(key: str, name: str) -> None:
    assert closed({key: {name: _A}})[key] == {name: _CLOSED_A}


@pytest.mark.parametrize("key", _DATA_KEYS)
@pytest.mark.parametrize("is_list", [False, True])
def test_data_is_not_walked(key: str, is_list: bool) -> None:
    data: Any = {**_A, "allOf": [_A], "pattern": r"\bfoo", "items": _A}
    schema = {key: [data] if is_list else data}
    assert list(all_parts(schema)) == [schema]
    assert with_parts(schema, _marked) == schema
    assert enforceable(schema) == schema
    assert closed({**schema, **_A}) == {**schema, **_CLOSED_A}


@pytest.mark.parametrize(
    "key",
    [
        "items",
        "additionalItems",
        "unevaluatedItems",
        "contains",
        "not",
        "if",
        "then",
        "else",
        "additionalProperties",
        "unevaluatedProperties",
        "propertyNames",
    ],
)
def test_a_part_that_stands_alone_is_walked(key: str) -> None:
    schema = {key: {"$defs": {"x": {"type": "null"}}}}
    assert list(all_parts(schema)) == [schema, schema[key], {"type": "null"}]


def test_a_part_under_not_stays_open() -> None:
    """Closed, it would match less: the whole would admit what the given schema excludes."""
    assert closed({**_A, "not": _A}) == {**_CLOSED_A, "not": _A}


@pytest.mark.parametrize(
    ("schema", "admitted", "refused"),
    [
        ({"properties": {"if": {}, "$ref": {}}}, {"if": 1, "$ref": 2}, {"if": 1, "b": 2}),
        ({"properties": {"allOf": _A}}, {"allOf": {"a": ""}}, {"allOf": {"b": 1}}),
        ({"properties": {"a": {"default": {"if": 1}}}}, {"a": 1}, {"b": 1}),
        ({"items": [_A]}, [{"a": ""}], [{"b": 1}]),
        ({"prefixItems": [_A]}, [{"a": ""}], [{"b": 1}]),
        ({"$defs": {"if": _A}, "$ref": "#/$defs/if"}, {"a": ""}, {"b": 1}),
        ({"allOf": [_A, {"properties": {"b": {}}}]}, {"a": "", "b": 1}, {"a": 1}),
        ({"properties": {"a": {"pattern": r"\bx"}}}, {"a": "y"}, {"b": 1}),
    ],
)
def test_what_llguidance_makes_of_it(schema: Any, admitted: Any, refused: Any) -> None:
    source = LLMatcher.grammar_from_json_schema(lenient(closed(schema)))
    assert _is_admitted(source, admitted)
    assert not _is_admitted(source, refused)


def _is_admitted(source: str, value: Any) -> bool:
    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, source)
    assert not matcher.is_error(), matcher.get_error()
    text = json.dumps(value).encode()
    return matcher.validate_tokens([*text, tokenizer.eos_token]) == len(text) + 1


_INT = {"type": "integer"}
_NAMED = {"properties": {"xa": _INT, "xb": _INT}, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "complete"),
    [
        ({**_NAMED, "patternProperties": {"^x[ab]$": {"minimum": 3}}}, {"xa": 3, "xb": 4}),
        ({**_NAMED, "patternProperties": {"^(xa|xb)$": _INT}}, {"xa": 3, "xb": 4}),
        ({**_NAMED, "patternProperties": {"^xa$": _INT, "^xb$": _INT}}, {"xa": 3, "xb": 4}),
        ({**_NAMED, "patternProperties": {r"^x\w{1,1}$": False, "^xa$": {}}}, None),
        ({"required": ["a", "b"], "patternProperties": {"^[a-b]$": _INT},
          "additionalProperties": False}, {"a": 1, "b": 2}),
        ({"allOf": [_NAMED, {"patternProperties": {"^x[ab]$": _INT}}]}, {"xa": 3, "xb": 4}),
        ({"items": {**_NAMED, "patternProperties": {"^x[ab]$": _INT}}}, [{"xa": 3, "xb": 4}]),
    ],
)  # fmt: skip
def test_no_property_is_begun_that_no_name_is_left_for(schema: Any, complete: Any) -> None:
    result = without_finite_patterns(schema)
    if complete is None:  # a pattern with more names than those stays
        assert "^x" in str(result.get("patternProperties"))
        return
    source = LLMatcher.grammar_from_json_schema(result)
    assert _is_admitted(source, complete)
    matcher = LLMatcher(LLTokenizer("byte"), source)
    text = json.dumps(complete).rstrip("]}").encode()
    assert matcher.validate_tokens([*text, *b", "]) == len(text)


def test_the_schema_of_a_pattern_that_is_gone_holds_for_its_properties() -> None:
    schema = without_finite_patterns({**_NAMED, "patternProperties": {"^x[ab]$": {"minimum": 3}}})
    source = LLMatcher.grammar_from_json_schema(schema)
    assert _is_admitted(source, {"xa": 3})
    assert not _is_admitted(source, {"xa": 2})
    assert not _is_admitted(source, {"xb": "3"})


@pytest.mark.parametrize("pattern", ["^x", "a", "^x[ab]", "x[ab]$", "^x[abc]$", "(?i)^xa$", "^("])
def test_patterns_of_other_names_stay(pattern: str) -> None:
    schema = {**_NAMED, "patternProperties": {pattern: _INT}, "$defs": {"pattern-0": {}}}
    assert without_finite_patterns(schema) == schema


def test_names_that_are_no_texts_are_left_to_the_compiler() -> None:
    schema = {**_NAMED, "required": [5, ["xa"]], "patternProperties": {"^y$": _INT}}
    assert without_finite_patterns(schema) == schema


def test_definitions_of_the_schema_keep_their_names() -> None:
    pattern = {**_NAMED, "patternProperties": {"^xa$": {"minimum": 3}}}
    schema = {"$ref": "#/$defs/pattern-0", "$defs": {"pattern-0": pattern}}
    source = LLMatcher.grammar_from_json_schema(without_finite_patterns(schema))
    assert _is_admitted(source, {"xa": 3})
    assert not _is_admitted(source, {"xa": 2})
