"""Schemas of tools hold in every format of calls: what may be written is read back unchanged."""

import json
from typing import Any, NamedTuple

import pytest

from app.schemas.tools import Function, ToolParam
from shared.settings.fields import Settings
from shared.wire.job import Tool, ToolChoice
from tests.support.call_grammars import World, said
from tests.support.chat_jobs import chat_job
from worker.chat.conversation import TemplateStyle
from worker.chat.format import ChatFormat
from worker.chat.tool_call_formats import CallSyntax

_WORLD = World(has_control_tokens=False)
_S, _I, _N = {"type": "string"}, {"type": "integer"}, {"type": "null"}
_OPTIONAL = {"anyOf": [_S, _N]}
_TREE = {
    "properties": {"v": _I, "kids": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["v"],
}


def _object(required: list[str] | None = None, /, **properties: Any) -> dict[str, Any]:
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names}


class _Case(NamedTuple):
    schema: dict[str, Any]
    admitted: list[dict[str, Any]]
    refused: list[dict[str, Any]]
    is_strict: bool = True


_CASES = {
    "a reference to a sibling": _Case(
        _object(a={"type": "object", "properties": {"x": _I}}, b={"$ref": "#/properties/a"}),
        [{"a": {"x": 1}, "b": {"x": 2}}],
        [{"a": {"x": 1}, "b": {"x": "y"}}, {"a": {"x": 1}, "b": 5}],
    ),
    "a reference to a sibling that is text": _Case(
        _object(a={"type": "string", "minLength": 2}, b={"$ref": "#/properties/a"}),
        [{"a": "xy", "b": "12"}],
        [{"a": "xy", "b": "1"}],
    ),
    "a reference into a sibling": _Case(
        _object(a={"type": "array", "items": _I}, b={"$ref": "#/properties/a/items"}),
        [{"a": [1], "b": 5}],
        [{"a": [1], "b": "x"}],
    ),
    "a reference with escapes": _Case(
        {**_object(a={"$ref": "#/$defs/x~1y%20z"}), "$defs": {"x/y z": _I}},
        [{"a": 5}],
        [{"a": "x"}],
    ),
    "references at the root": _Case(
        {"$ref": "#/$defs/call", "$defs": {"call": _object(n={"$ref": "#/$defs/n"}), "n": _I}},
        [{"n": 5}],
        [{}, {"n": "x"}],
    ),
    "anyOf at the root": _Case(
        {"anyOf": [_object(a=_I), _object(b=_S)]},
        [{"a": 5}, {"b": "5"}],
        [{}, {"a": "x"}, {"c": 5}],
    ),
    "oneOf at the root": _Case(
        {"oneOf": [_object(k={"const": "x"}, a=_I), _object(k={"const": "y"}, a=_S)]},
        [{"k": "x", "a": 5}, {"k": "y", "a": "z"}],
        [{"k": "x", "a": "z"}, {"k": "z", "a": 5}],
    ),
    "allOf at the root": _Case(
        {"allOf": [_object(a=_I), {"properties": {"b": _S}, "required": ["b"]}]},
        [{"a": 5, "b": "5"}],
        [{}, {"a": 5}, {"b": "5"}, {"a": "x", "b": "5"}],
    ),
    "allOf about one parameter": _Case(
        {"type": "object", "allOf": [_object(a=_I), _object(a={"minimum": 3})]},
        [{"a": 5}],
        [{"a": 2}, {"a": "x"}],
    ),
    "anyOf beside properties": _Case(
        {**_object([], a=_I, b=_I), "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        [{"a": 5}, {"b": 5}, {"a": 5, "b": 6}],
        [{}],
    ),
    "recursion to the root": _Case(
        _TREE,
        [{"v": 5}, {"v": 5, "kids": [{"v": 6, "kids": [{"v": 7}]}]}],
        [{"v": 5, "kids": [{}]}, {"v": 5, "kids": [{"v": 6, "kids": [5]}]}],
    ),
    "recursion of a definition": _Case(
        {
            **_object(t={"$ref": "#/$defs/t"}),
            "$defs": {"t": _object(["v"], v=_I, t={"$ref": "#/$defs/t"})},
        },
        [{"t": {"v": 1, "t": {"v": 2}}}],
        [{"t": {"v": 1, "t": {}}}],
    ),
    "pattern": _Case(
        _object(a={"type": "string", "pattern": "^[a-z]+/[0-9]{2}$"}),
        [{"a": "ab/12"}],
        [{"a": "ab/1"}, {"a": "x ab/12"}],
    ),
    "pattern without anchors": _Case(
        _object(a={"type": "string", "pattern": r"\d-|^x|y$"}),
        [{"a": "a1-b"}, {"a": "xa"}, {"a": "ay"}],
        [{"a": "ax"}, {"a": "ya"}, {"a": "٣-"}],
    ),
    "pattern of ASCII": _Case(
        _object(a={"type": "string", "pattern": r"^\w+\W\d$"}), [{"a": "a_ 1"}], [{"a": "é 1"}]
    ),
    "minLength": _Case(_object(a={"type": "string", "minLength": 2}), [{"a": "éé"}], [{"a": "é"}]),
    "maxLength": _Case(
        _object(a={"type": "string", "maxLength": 2}), [{"a": ""}, {"a": "éé"}], [{"a": "abc"}]
    ),
    "pattern and maxLength": _Case(
        _object(a={"type": "string", "pattern": "^a+$", "maxLength": 2}),
        [{"a": "aa"}],
        [{"a": "aaa"}, {"a": "b"}],
    ),
    "const": _Case(_object(a={"const": "x"}), [{"a": "x"}], [{"a": "y"}, {"a": 5}]),
    "const that is no text": _Case(_object(a={"const": 5}), [{"a": 5}], [{"a": 6}, {"a": "x"}]),
    "enum of several types": _Case(
        _object(a={"enum": ["x", 5, None, True, [1]]}),
        [{"a": "x"}, {"a": 5}, {"a": None}, {"a": True}, {"a": [1]}],
        [{"a": "y"}, {"a": 6}, {"a": False}, {"a": [2]}],
    ),
    "enum of numbers and texts of digits": _Case(
        _object(a={"enum": ["5", 6]}), [{"a": "5"}, {"a": 6}], [{"a": 7}, {"a": "x"}]
    ),
    "enum with a type": _Case(
        _object(a={"type": "string", "enum": ["x", "y z"]}), [{"a": "y z"}], [{"a": "z"}]
    ),
    "optional text": _Case(
        _object(a=_OPTIONAL, b=_I), [{"a": "x", "b": 1}, {"a": None, "b": 1}], [{"a": "x"}]
    ),
    "optional text of digits": _Case(
        _object(a={"type": ["string", "null"]}), [{"a": "12345"}, {"a": "true"}, {"a": None}], [{}]
    ),
    "optional enum": _Case(
        _object(a={"anyOf": [{"enum": ["x", "y"]}, _N]}),
        [{"a": "x"}, {"a": None}],
        [{"a": "z"}, {"a": 5}],
    ),
    "text or a number": _Case(
        _object(a={"type": ["string", "number"]}), [{"a": "5 km"}, {"a": 5}, {"a": -0.5}], [{}]
    ),
    "text or a bounded number": _Case(
        _object(a={"anyOf": [_S, {"type": "integer", "maximum": 9}]}),
        [{"a": "km"}, {"a": "5 km"}, {"a": "2024-01-02"}, {"a": 5}],
        [{"a": 10}],
    ),
    "text or a list": _Case(
        _object(a={"anyOf": [_S, {"type": "array", "items": _S}]}),
        [{"a": "x"}, {"a": ["x", "y"]}],
        [{"a": [5]}],
    ),
    "text with a pattern, or a list": _Case(
        _object(a={"anyOf": [{"type": "string", "pattern": "^a"}, {"type": "array", "items": _I}]}),
        [{"a": "ab"}, {"a": [1, 2]}],
        [{"a": "b"}, {"a": ["a"]}],
    ),
    "an optional object": _Case(
        _object(a={"anyOf": [_object(x=_I), _N]}), [{"a": {"x": 1}}, {"a": None}], [{"a": {}}]
    ),
    "any value": _Case(
        _object(a={}), [{"a": "x"}, {"a": 5}, {"a": [1, {"b": None}]}, {"a": False}], [{}]
    ),
    "any value by true": _Case(_object(a=True), [{"a": "x"}, {"a": 5}], [{}]),
    "no value by false": _Case(_object([], a=False, b=_I), [{}, {"b": 5}], [{"a": 5, "b": 5}]),
    "names that are keywords": _Case(
        {**_object(["if"], **{"if": _S, "$ref": _I, "allOf": _I, "default": _S})},
        [{"if": "x", "$ref": 5, "allOf": 6, "default": "y"}],
        [{"if": "x", "then": 5}, {"$ref": 5}],
    ),
    "a default that looks like a schema": _Case(
        _object(a={"type": "object", "properties": {"x": _I}, "default": {"if": 1, "$ref": "#"}}),
        [{"a": {"x": 1}}],
        [{"a": {"y": 1}}],
    ),
    "additional properties": _Case(
        {**_object(a=_S), "additionalProperties": _I},
        [{"a": "x"}, {"a": "x", "b": 5, "c": 6}],
        [{"a": "x", "b": "y"}],
    ),
    "only additional properties": _Case(
        {"type": "object", "additionalProperties": _S},
        [{}, {"b": "5"}, {"b": "x", "c": "null"}],
        [],
    ),
    "an object of anything": _Case({"type": "object"}, [{}, {"a": 5, "b": "x"}], []),
    "patterns of names": _Case(
        {**_object(a=_S), "patternProperties": {"^n_": _I}, "additionalProperties": False},
        [{"a": "x"}, {"a": "x", "n_1": 5}],
        [{"a": "x", "n_1": "y"}, {"a": "x", "m_1": 5}],
    ),
    "patterns of names and more": _Case(
        {**_object(xa={}, b=_I), "patternProperties": {"^x": _I}, "additionalProperties": False},
        [{"xa": 5, "b": 6}, {"xa": 5, "b": 6, "xc": 7}],
        [{"xa": "y", "b": 6}, {"xa": 5, "b": 6, "c": 7}],
    ),
    "patterns of required names": _Case(
        {"type": "object", "patternProperties": {"^x": _I}, "required": ["xa"]},
        [{"xa": 5}],
        [{"xa": "y"}, {}],
    ),
    "patterns of the named properties": _Case(
        {
            **_object(xa=_I, xb=_I),
            "patternProperties": {"^x[ab]$": {"minimum": 3}},
            "additionalProperties": False,
        },
        [{"xa": 3, "xb": 4}],
        [{"xa": 2, "xb": 4}, {"xa": 3, "xb": 4, "xc": 5}],
    ),
    "nested objects are closed": _Case(
        _object(a=_object([], x=_I)), [{"a": {"x": 1}}], [{"a": {"y": 1}}]
    ),
    "required without a schema": _Case(
        {"properties": {"a": {"const": 1}}, "required": ["a", "zz"]},
        [{"a": 1, "zz": "x"}, {"a": 1, "zz": 5}],
        [{"a": 1}, {"a": 1, "zz": 5, "yy": 6}],
        is_strict=False,
    ),
    "what cannot be enforced": _Case(
        _object(a={"type": "string", "pattern": "^(?=x)", "maxLength": 2}, b={"contains": {}}),
        [{"a": "yz", "b": [1]}],
        [{"a": "xyz", "b": [1]}],
        is_strict=False,
    ),
    "an object or null": _Case(
        {"anyOf": [_object(a=_I), _N], "$defs": {}}, [{"a": 5}], [{"a": "x"}, {}]
    ),
    "a recursive reference without a type": _Case(
        {"$ref": "#/$defs/n", "$defs": {"n": {**_object([], k={"$ref": "#"}, v=_I)}}},
        [{"v": 5}, {"k": {"k": {"v": 5}}}],
        [{"k": {"k": {"v": "x"}}}],
    ),
    "no parameters": _Case({}, [{}], [{"a": 5}]),
}
_FORMATS = {
    "date": (["2024-02-29"], ["2024-02-30", "x2024-02-29"]),
    "time": (["10:59:60Z", "10:00:00.5+01:00"], ["24:00:00Z", "10:00:00"]),
    "date-time": (["2024-02-29T10:00:00Z"], ["2024-02-29 10:00:00Z"]),
    "duration": (["P1Y2M3DT4H5M6S", "PT5S", "P3W"], ["P", "PT", "5S"]),
    "email": (["a.b+c@d-e.org", "a@[127.0.0.1]"], ["a", "a@", "a@b@c", "a.@b"]),
    "hostname": (["a-b.example"], ["-a", "a..b"]),
    "ipv4": (["127.0.0.1", "255.0.0.0"], ["256.0.0.1", "1.2.3"]),
    "ipv6": (["::", "::1", "1::", "fe80::1:2", "1:2:3:4:5:6:7:8"], ["1:2:3", ":::", "1::2::3"]),
    "uuid": (["123e4567-e89b-12d3-a456-426614174000"], ["123e4567-e89b-12d3-a456-42661417400"]),
    "uri": (["https://u@a.b:80/c?d=%20#e", "urn:x:y", "http://[::1]/"], ["a", "http://a b", "%:x"]),
}
_CASES |= {
    f"format {name}": _Case(
        _object(a={"type": "string", "format": name}),
        [{"a": text} for text in good],
        [{"a": text} for text in bad],
    )
    for name, (good, bad) in _FORMATS.items()
}


@pytest.mark.parametrize("syntax", CallSyntax)
@pytest.mark.parametrize("name", _CASES)
def test_a_schema_holds_in_every_format(name: str, syntax: CallSyntax) -> None:
    case = _CASES[name]
    param = ToolParam("function", Function("f", parameters=case.schema, strict=case.is_strict))
    tool = param.to_tool("tools[0]", Settings())
    form = ChatFormat(syntax, None, TemplateStyle())
    job = chat_job(tools=[tool], tool_choice=ToolChoice.REQUIRED)
    grammar = form.grammar(job, False, {})
    for arguments in case.admitted:
        text = said(syntax, ("f", json.dumps(arguments, ensure_ascii=False)))
        assert _WORLD.admits(grammar, text), arguments
        assert _read(syntax, tool, text) == arguments
    for arguments in case.refused:
        text = said(syntax, ("f", json.dumps(arguments, ensure_ascii=False)))
        assert not _WORLD.admits(grammar, text), arguments


def _read(syntax: CallSyntax, tool: Tool, text: str) -> Any:
    parser = ChatFormat(syntax, None, TemplateStyle()).parser(chat_job(tools=[tool]), 0, False)
    assert parser is not None
    parts = parser.push(text) + parser.finish()
    assert not parts.content and len(parts.tool_calls) == 1
    return json.loads(parts.tool_calls[0].arguments)
