"""Grammars as the web tier sees them: form and size, and what stands for a choice."""

from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from app.schemas.grammars import check_schema, choice_grammar, schema_grammar, text_grammar
from app.schemas.tools import Function, ToolParam
from shared.errors import InvalidRequest
from shared.settings.fields import Settings
from shared.wire.job import GrammarKind
from tests.support.hostile_grammars import chained_rules, chained_schema, many_properties

_SETTINGS = Settings()


@pytest.mark.parametrize(
    "schema",
    [
        chained_schema(1001),
        chained_schema(1001, is_wrapped=True),
        many_properties(1001),
        {"enum": ["x" * 70_000]},
        {"required": 5},
        {"enum": 5},
        {"properties": 5},
        {"patternProperties": 5},
        {"$defs": []},
        {"anyOf": {}},
        {"patternProperties": {f"p{i}": {} for i in range(1001)}},
        {"properties": {"a": {"required": "a"}}},
        {"anyOf": [{"items": {"enum": {}}}]},
    ],
)
def test_schemas_that_cannot_be_used_are_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_schema(schema, "tools[0].function.parameters", _SETTINGS)
    assert caught.value.param == "tools[0].function.parameters"


@pytest.mark.parametrize(
    "schema",
    [
        many_properties(450),
        chained_schema(400),
        {"properties": {"required": {"type": "string"}, "enum": {"enum": [1]}}},
        {"const": {"required": 5}},
    ],
)
def test_schemas_that_can_be_used_are_taken(schema: dict[str, Any]) -> None:
    check_schema(schema, "guided_json", _SETTINGS)


def test_rules_are_counted_and_texts_measured() -> None:
    assert text_grammar(GrammarKind.LARK, chained_rules(900), "guided_grammar", _SETTINGS)
    for kind, source in (
        (GrammarKind.LARK, chained_rules(1000)),
        (GrammarKind.LARK, chained_rules(1000).replace(":", " ::=")),
        (GrammarKind.REGEX, "a" * 65_537),
    ):
        with pytest.raises(InvalidRequest, match="at most") as caught:
            text_grammar(kind, source, "guided_x", _SETTINGS)
        assert caught.value.param == "guided_x"


def test_choices_together_are_held_to_the_size_of_a_grammar() -> None:
    with pytest.raises(InvalidRequest, match="at most 65536") as caught:
        choice_grammar(["x" * 4000] * 20, "guided_choice", _SETTINGS)
    assert caught.value.param == "guided_choice"


@pytest.mark.parametrize("text", ["a\x7fb", "é😀", '"\\\n\x00', "%}|"])
def test_a_choice_may_be_any_text(text: str) -> None:
    grammar = choice_grammar(["no", text], "guided_choice", _SETTINGS)
    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar.source), log_level=0)
    assert matcher.consume_tokens(list(text.encode())), matcher.get_error()
    assert matcher.is_accepting()


def test_a_schema_is_strict_only_where_it_is_asked_to_be() -> None:
    schema = {"type": "string", "pattern": "(?=a)a"}
    lenient = schema_grammar(schema, "response_format", _SETTINGS, is_strict=False)
    assert "(?=a)" not in lenient.source and '"lenient":true' in lenient.source
    strict = schema_grammar(schema, "response_format", _SETTINGS, is_strict=True)
    assert "(?=a)" in strict.source and "lenient" not in strict.source


@pytest.mark.parametrize(("strict", "expected"), [(True, True), (False, False), (None, False)])
def test_a_tool_says_whether_it_is_strict(strict: bool | None, expected: bool) -> None:
    param = ToolParam("function", Function("f", strict=strict))
    assert param.to_tool("tools[0]", _SETTINGS).is_strict is expected


_REQUIRES_MORE: dict[str, Any] = {"properties": {"a": {"const": 1}}, "required": ["a", "zz"]}


@pytest.mark.parametrize(
    "schema", [_REQUIRES_MORE, {"properties": {"x": {"items": _REQUIRES_MORE}}}]
)
def test_a_strict_schema_may_only_require_what_it_describes(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="'zz'") as caught:
        schema_grammar(schema, "guided_json", _SETTINGS, is_strict=True)
    assert caught.value.param == "guided_json"
    with pytest.raises(InvalidRequest, match="'zz'") as caught:
        ToolParam("function", Function("f", parameters=schema, strict=True)).to_tool("t", _SETTINGS)
    assert caught.value.param == "t.function.parameters"


@pytest.mark.parametrize(
    "schema",
    [
        {**_REQUIRES_MORE, "additionalProperties": True},
        {**_REQUIRES_MORE, "patternProperties": {"z": {}}},
        {"allOf": [_REQUIRES_MORE, {"properties": {"zz": {}}}]},
        {"anyOf": [{"required": ["zz"]}]},
    ],
)
def test_a_strict_schema_may_describe_what_it_requires_elsewhere(schema: dict[str, Any]) -> None:
    assert schema_grammar(schema, "guided_json", _SETTINGS, is_strict=True)


def test_a_schema_that_is_not_strict_may_require_anything() -> None:
    source = schema_grammar(_REQUIRES_MORE, "guided_json", _SETTINGS, is_strict=False).source
    tokenizer = LLTokenizer("byte")
    for text, is_admitted in (
        (b'{"a":1,"zz":[2]}', True),
        (b'{"a":1}', False),
        (b'{"a":1,"zz":[2],"yy":3}', False),
    ):
        matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(source), log_level=0)
        assert (matcher.consume_tokens(list(text)) and matcher.is_accepting()) is is_admitted


@pytest.mark.parametrize("pattern", ["^a$", "^a.$"])
def test_patterns_of_names_keep_an_object_open(pattern: str) -> None:
    schema = {"type": "object", "patternProperties": {pattern: {"type": "integer"}}}
    schema |= {"required": ["a"]}
    source = schema_grammar(schema, "guided_json", _SETTINGS, is_strict=False).source
    text = b'{"a":1,"b":"x"}'
    matcher = LLMatcher(
        LLTokenizer("byte"), LLMatcher.grammar_from_json_schema(source), log_level=0
    )
    assert matcher.consume_tokens(list(text)) and matcher.is_accepting()
