"""What schemas may cost that are small and say much: the work is bounded, or grows as they do."""

from collections.abc import Callable
from typing import Any

import pytest

from shared.errors import InvalidRequest
from shared.wire.job import Tool, ToolChoice
from tests.support.chat_jobs import chat_job
from tests.support.cpu_time import is_linear
from worker.chat.conversation import TemplateStyle
from worker.chat.format import ChatFormat
from worker.chat.parameter_schemas import ToolSchema
from worker.chat.tool_call_formats import CallSyntax


def _grammar(schema: dict[str, Any]) -> str:
    job = chat_job(tools=[Tool("f", "", schema)], tool_choice=ToolChoice.REQUIRED)
    grammar = ChatFormat(CallSyntax.QWEN_XML, None, TemplateStyle()).grammar(job, False, {})
    assert grammar is not None
    return grammar.source


def _doubled(num_levels: int, key: str, other: Any = None) -> dict[str, Any]:
    """References, of which each is followed twice, or once beside what nothing matches."""
    refs = [{"$ref": f"#/$defs/d{i + 1}"} for i in range(num_levels)]
    defs = {f"d{i}": {key: [ref, ref if other is None else other]} for i, ref in enumerate(refs)}
    return {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/d0"}},
        "$defs": {**defs, f"d{num_levels}": {"type": "integer"}},
    }


_REFUSED = {
    "allOf": _doubled(40, "allOf"),
    "anyOf": _doubled(40, "anyOf"),
    "alternatives that nothing matches": {
        **_doubled(40, "anyOf"),
        "$defs": {**_doubled(40, "anyOf")["$defs"], "d40": {"type": []}},
    },
}


@pytest.mark.parametrize("name", _REFUSED)
def test_references_to_references_are_followed_for_a_while(name: str) -> None:
    with pytest.raises(InvalidRequest, match="too many alternatives"):
        _grammar(_REFUSED[name])


@pytest.mark.parametrize("name", _REFUSED)
def test_a_parameter_with_too_many_alternatives_is_read_as_text(name: str) -> None:
    tools = [Tool("f", "", _REFUSED[name])]
    parser = ChatFormat(CallSyntax.QWEN_XML, None, TemplateStyle()).parser(
        chat_job(tools=tools), 0, False
    )
    assert parser is not None
    text = "<tool_call>\n<function=f>\n<parameter=a>\n5\n</parameter>\n</function>\n</tool_call>"
    parts = parser.push(text) + parser.finish()
    assert [call.arguments for call in parts.tool_calls] == ['{"a": "5"}']


def test_a_part_that_is_named_twice_holds_once() -> None:
    schema = _doubled(8, "allOf")
    [way] = ToolSchema(schema).ways(schema["properties"]["a"])
    assert [part for part in way if part] == [{"type": "integer"}]


def _names_and_patterns(number: int) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {f"name_{i}": {"type": "integer"} for i in range(number)},
        "patternProperties": {f"^x{i}_": {"enum": ["x", i]} for i in range(number)},
        "additionalProperties": {"type": "boolean"},
    }


def _anchors(number: int) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {f"p{i}": {"$ref": f"#a{i}"} for i in range(number)},
        "$defs": {f"d{i}": {"$anchor": f"a{i}", "type": "integer"} for i in range(number)},
    }


def _alternatives_of_an_enum(number: int) -> dict[str, Any]:
    """Of parameters that all refer to one list, of the same number of values."""
    return {
        "type": "object",
        "properties": {f"p{i}": {"$ref": "#/$defs/all"} for i in range(number)},
        "$defs": {"all": {"enum": [f"value {i}" for i in range(number)] + list(range(number))}},
    }


def _two_lists(number: int) -> dict[str, Any]:
    lists = [{"enum": [f"value {i}" for i in range(a, a + 3 * number)]} for a in (0, number)]
    return {"type": "object", "properties": {"p": {"allOf": lists}}}


@pytest.mark.parametrize(
    "schema_of", [_two_lists, _names_and_patterns, _anchors, _alternatives_of_an_enum]
)
def test_the_time_and_the_size_grow_as_the_schema(
    schema_of: Callable[[int], dict[str, Any]],
) -> None:
    small, large = schema_of(60), schema_of(240)
    assert len(_grammar(large)) <= 8 * len(_grammar(small))
    assert is_linear(lambda: _grammar(small), lambda: _grammar(large))


def test_parts_that_are_written_out_too_often_are_refused() -> None:
    large = {"type": "object", "properties": {f"n{i}": {"type": "string"} for i in range(300)}}
    own = {f"p{i}": {"type": "array", "items": [{"$ref": "#/$defs/x"}, {"const": i}]}
           for i in range(300)}  # fmt: skip
    schema = {"type": "object", "properties": own, "$defs": {"x": large}}
    with pytest.raises(InvalidRequest, match="too often"):
        _grammar(schema)


def test_many_parameters_may_refer_to_a_long_list() -> None:
    optional = {"anyOf": [{"$ref": "#/$defs/zone"}, {"type": "null"}]}
    schema = {
        "type": "object",
        "properties": {f"p{i}": dict(optional) for i in range(30)},
        "$defs": {"zone": {"enum": [f"Zone/{i}" for i in range(600)]}},
    }
    assert _grammar(schema)
