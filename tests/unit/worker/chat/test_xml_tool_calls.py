"""Values of Qwen3-Coder's XML, read by the schemas of their parameters, at every cut."""

import json
from typing import Any

import pytest

from shared.wire.job import Tool
from tests.support.cpu_time import is_linear
from worker.chat.output_parser import OutputParser
from worker.chat.tool_call_formats import CallSyntax
from worker.text_parts import Parts

_S, _I, _N = {"type": "string"}, {"type": "integer"}, {"type": "null"}
_ARRAY = {"type": "array", "items": _S}
_MIXED = {"anyOf": [_S, _ARRAY]}
_SIZE = 8000


def _arguments(body: str, tool: Tool) -> str:
    """The arguments of the only call, which is read in one piece and in single characters."""
    text = f"<tool_call>\n<function=f>\n{body}</function>\n</tool_call>"
    found = set()
    for pieces in ([text], list(text)):
        parser, parts = OutputParser(("j", 0), calls=CallSyntax.QWEN_XML, tools=[tool]), Parts()
        for piece in pieces:
            parts = parts + parser.push(piece)
        parts = parts + parser.finish()
        assert parts.content == ""
        assert [delta.name for delta in parts.tool_calls if delta.name] == ["f"]
        found.add("".join(delta.arguments for delta in parts.tool_calls))
    assert len(found) == 1
    arguments = found.pop()
    arguments.encode()  # raises for half of a surrogate pair
    return arguments


def _tool(**properties: Any) -> Tool:
    return Tool("f", "", {"type": "object", "properties": properties})


def _value(schema: Any, text: str) -> Any:
    arguments = json.loads(_arguments(f"<parameter=a>\n{text}\n</parameter>\n", _tool(a=schema)))
    return arguments.get("a", "left out")


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"anyOf": [_S, _N]}, "12345", "12345"),
        ({"anyOf": [_S, _N]}, "true", "true"),
        ({"anyOf": [_S, _N]}, "null", None),
        ({"anyOf": [_S, _N]}, "None", "None"),
        ({"anyOf": [_S, _N]}, "nullable", "nullable"),
        ({"anyOf": [_S, _N]}, '"x"', '"x"'),
        ({"anyOf": [_S, _N]}, "", ""),
        ({"type": ["string", "null"]}, "54321", "54321"),
        ({"oneOf": [_N, {"$ref": "#/properties/b"}]}, "5", "5"),
        ({"type": ["string", "integer"]}, "5", 5),
        ({"type": ["string", "integer"]}, "5.5", "5.5"),
        ({"type": ["string", "integer"]}, "2024-01-02", "2024-01-02"),
        ({"type": ["string", "boolean"]}, "false", False),
        ({"enum": ["5", 6]}, "5", "5"),
        ({"enum": ["5", 6]}, "6", 6),
        ({"const": 5}, "5", 5),
        ({"minimum": 3}, "5", 5),
        ({}, "5", 5),
        (_MIXED, '["x"]', ["x"]),
        (_MIXED, "[x] y", "[x] y"),
        (_MIXED, "['x']", "['x']"),
        (_S, "5", "5"),
        (_S, "{}", "{}"),
    ],
)
def test_a_value_is_json_if_the_schema_admits_its_type(schema: Any, text: str, value: Any) -> None:
    tool = Tool("f", "", {"properties": {"a": schema, "b": _S}})
    arguments = json.loads(_arguments(f"<parameter=a>\n{text}\n</parameter>\n", tool))
    assert arguments == {"a": value}
    assert type(arguments["a"]) is type(value)


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        (_ARRAY, "['a', 'b']", ["a", "b"]),
        (_ARRAY, "('a', \"it's\",)", ["a", "it's"]),
        (_ARRAY, '["a\nb"]', ["a\nb"]),
        (_ARRAY, '"[\\"a\\"]"', ["a"]),
        (_ARRAY, "a, b", "a, b"),
        ({"type": "object"}, "{'k': None, \"z\": True}", {"k": None, "z": True}),
        ({"type": "object"}, "{'None': 'True'}", {"None": "True"}),
        ({"type": "object"}, "{'x': 'it\\'s \\u00e9'}", {"x": "it's é"}),
        ({"type": "object"}, "{'a': [(1, -2.5), {}]}", {"a": [[1, -2.5], {}]}),
        ({"type": "object"}, "{'a': f()}", "{'a': f()}"),
        ({"type": "object"}, "[" * 100_000, "[" * 100_000),
        (_ARRAY, "['\\ud800']", ["\ud800"]),
        (_ARRAY, '["a\nb\\ud800"]', ["a\nb\ud800"]),
        (_ARRAY, '"[\\"\\ud800\\"]"', ["?"]),
        (_ARRAY, "[NaN, 0x1F, +1, New York]", [None, 31, 1, "New York"]),
        (_ARRAY, "[1 2]", ["1 2"]),
        (_ARRAY, "[1, # one\n 2,]", [1, 2]),
        (_ARRAY, "(1, 2]", "(1, 2]"),
        (_ARRAY, "# a title\nof text", "# a title\nof text"),
        (_ARRAY, "x}", "x}"),
        ({"type": "object"}, "{'a': 01, b: “x”}", {"a": 1, "b": "x"}),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "tr ue", "tr ue"),
        ({"type": "boolean"}, "01", "01"),
        (_I, "01", 1),
        (_I, "none", None),
        (_I, "NaN", "NaN"),
        ({"type": "number"}, "1 . 5", "1 . 5"),
        (_I, "12 34", "12 34"),
        (_I, "- 5", "- 5"),
        (_I, "'5'", 5),
        (_I, "'five'", "five"),
        (_I, '5"', '5"'),
        (_I, '"5"', 5),
        (_I, "five", "five"),
        (_I, "5.0", 5.0),
        (_I, "", "left out"),
        ({"type": ["integer", "null"]}, "", None),
        ({"type": ["integer", "null"]}, "None", None),
    ],
)  # fmt: skip
def test_mistakes_are_repaired_where_text_is_not_admitted(
    schema: Any, text: str, value: Any
) -> None:
    assert _value(schema, text) == value


@pytest.mark.parametrize(
    ("schema", "begin", "repeated"),
    [
        ({"type": ["integer", "string"]}, "", "1"),
        ({"type": ["string", "null"]}, "", "\n"),
        ({"type": ["string", "null"]}, "null", "\n"),
        (_ARRAY, "['", "\\'"),
        (_ARRAY, '["', "\\\\</parameter>"),
        (_ARRAY, "[", "'a',"),
    ],
)
def test_a_value_costs_time_in_proportion_to_its_length(
    schema: Any, begin: str, repeated: str
) -> None:
    def read(size: int) -> None:
        parser = OutputParser(("j", 0), calls=CallSyntax.QWEN_XML, tools=[_tool(a=schema)])
        body = begin + repeated * (size // len(repeated))
        parser.push(f"<tool_call>\n<function=f>\n<parameter=a>\n{body}\n</parameter>\n</function>")
        parser.finish()

    assert is_linear(lambda: read(_SIZE), lambda: read(4 * _SIZE))


@pytest.mark.parametrize("digits", [4300, 4301])
def test_a_number_of_more_digits_than_are_read_is_text(digits: int) -> None:
    text = "1" * digits
    value = _value({"type": ["integer", "string"]}, text)
    assert value == (text if digits > 4300 else int(text))


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ("<parameter=s>\nno end\n", {"s": "no end"}),
        ("<parameter=s>\nno end\n<parameter=n>\n5\n</parameter>\n", {"s": "no end", "n": 5}),
        ("<parameter=n>\n5\n<parameter=s>\nno end\n", {"n": 5, "s": "no end"}),
        ("<parameter=s>\n<parameter=n>\n5\n", {"s": "", "n": 5}),
        ("<parameter=s>one</parameter>\n<parameter=s>two</parameter>\n", {"s": "one"}),
        (
            "<parameter=s>\na\n</function>\nb <parameter=x>\n<parameter=\n</parameter>\n",
            {"s": "a\n</function>\nb <parameter=x>\n<parameter="},
        ),
        ("<parameter=a b>\nx\n</parameter>\n", {"a b": "x"}),
        ('<parameter=l>\n["</parameter>", "\\"</parameter>"]\n</parameter>\n',
         {"l": ["</parameter>", '"</parameter>']}),
        ('<parameter=l>\n["x\n</parameter>\n<parameter=s>\ny\n</parameter>\n',
         {"l": '["x', "s": "y"}),
    ],
)  # fmt: skip
def test_a_value_ends_where_the_next_part_begins(body: str, arguments: dict[str, Any]) -> None:
    text = _arguments(body, _tool(s=_S, n=_I, l=_ARRAY))
    assert json.loads(text) == arguments
    assert text.count('"s":') == ("s" in arguments)


def test_text_is_passed_on_while_it_arrives_though_it_might_have_been_null() -> None:
    tool = _tool(a={"anyOf": [_S, _N, _I]})
    parser = OutputParser(("j", 0), calls=CallSyntax.QWEN_XML, tools=[tool])
    (call,) = parser.push("<tool_call>\n<function=f>\n<parameter=a>\nnu").tool_calls
    assert call.arguments == ""
    (more,) = parser.push("mber\n").tool_calls
    assert more.arguments == '{"a": "number'


def test_without_a_schema_a_value_is_text() -> None:
    assert _arguments("<parameter=x>\n5\n</parameter>\n", _tool(a=_I)) == '{"x": "5"}'
    assert _arguments("<parameter=x>\n5\n</parameter>\n", Tool("other")) == '{"x": "5"}'


def test_a_schema_of_too_many_alternatives_is_read_as_text() -> None:
    many = {"anyOf": [{"minimum": i} for i in range(50)]}
    tool = _tool(a={"allOf": [many, many, many]})
    assert _arguments("<parameter=a>\n5\n</parameter>\n", tool) == '{"a": "5"}'


_CUT = (
    "<tool_call>\n<function=f>\n<parameter=a>\nx\n</parameter>\n<parameter=flag>\ny\n</parameter>\n"
)


@pytest.mark.parametrize("is_cut", [True, False])
@pytest.mark.parametrize("length", range(_CUT.index("a>"), len(_CUT) + 1))
def test_a_call_that_ends_within_its_parameters_is_not_whole(length: int, is_cut: bool) -> None:
    parser = OutputParser(("j", 0), calls=CallSyntax.QWEN_XML, tools=[_tool(a=_S, flag=_S)])
    parts = parser.push(_CUT[:length]) + parser.finish(is_cut=is_cut)
    assert not parser.has_whole_calls
    assert "parameter" not in parts.content
