"""Grammars as the web tier sees them: form and size, and what stands for a choice."""

from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from app.grammars import check_schema, choice_grammar, schema_grammar, text_grammar
from app.tool_schemas import Function, ToolParam
from shared.errors import InvalidRequest
from shared.messages import GrammarKind
from shared.settings import Settings
from tests.unit.hostile_grammars import chained_rules, chained_schema, many_properties

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
