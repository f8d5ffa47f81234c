"""Grammars of completions: compiled once, copied for every sequence, refused with a reason."""

import pytest
from llguidance import LLTokenizer

from shared.errors import InvalidRequest
from shared.messages import Grammar, GrammarKind
from tests.unit.exl2_folder import ids, make_tokenizer
from worker.engines.grammar import GrammarCompiler

AB = Grammar(GrammarKind.REGEX, "ab")


def _new_tokenizer() -> LLTokenizer:
    return LLTokenizer(make_tokenizer().to_str(), eos_token=[2, 4])


@pytest.fixture
def compiler() -> GrammarCompiler:
    return GrammarCompiler(_new_tokenizer, [2, 4])


def test_every_matcher_is_a_fresh_one(compiler: GrammarCompiler) -> None:
    first = compiler.matcher(AB)
    assert first.consume_tokens(ids("ab")) and first.is_accepting()
    assert compiler.matcher(AB).validate_tokens(ids("ab")) == 2


def test_a_grammar_that_was_checked_is_not_compiled_again(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler.check(AB)
    for i in range(100):
        compiler.check(Grammar(GrammarKind.REGEX, f"ab{i}"))
    monkeypatch.delattr(GrammarCompiler, "_compile")
    assert compiler.matcher(AB).validate_tokens(ids("ab")) == 2


@pytest.mark.parametrize(
    ("kind", "source", "reason"),
    [
        (GrammarKind.JSON_SCHEMA, "{bad", "JSON schema is not valid"),
        (GrammarKind.JSON_SCHEMA, '{"type": 5}', "json_schema is not valid"),
        (GrammarKind.REGEX, "(a", "regex is not valid"),
        (GrammarKind.LARK, "start: nothing", "lark is not valid"),
    ],
)
def test_a_bad_grammar_names_the_field(
    compiler: GrammarCompiler, kind: GrammarKind, source: str, reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        compiler.check(Grammar(kind, source))
    assert caught.value.param == "response_format"


def test_without_an_end_token_there_is_no_grammar() -> None:
    with pytest.raises(InvalidRequest, match="no end token"):
        GrammarCompiler(_new_tokenizer, []).check(AB)


def test_a_vocabulary_unknown_to_llguidance_serves_all_but_grammars() -> None:
    def new_tokenizer() -> LLTokenizer:
        return LLTokenizer('{"model": "none"}')

    compiler = GrammarCompiler(new_tokenizer, [2])
    assert compiler.vocab_size == 0
    with pytest.raises(InvalidRequest, match="this model's tokens") as caught:
        compiler.check(AB)
    assert caught.value.param == "response_format"
