"""Expressions as terminals, asked of llguidance itself."""

import pytest
from llguidance import LLMatcher, LLTokenizer

from tests.support.cpu_time import is_linear
from worker.grammar.patterns import ascii_classes, lark_regex, whole_match


def _matches(source: str, text: str) -> bool:
    matcher = LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_lark(source), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    bytes_ = list(text.encode())
    return matcher.validate_tokens(bytes_) == len(bytes_) and _ends(matcher, bytes_)


def _ends(matcher: LLMatcher, bytes_: list[int]) -> bool:
    return bool(matcher.consume_tokens(bytes_)) and bool(matcher.is_accepting())


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("b", ["b", "abc", "a\nb"], ["", "a"]),
        ("^b", ["b", "bc"], ["ab"]),
        ("b$", ["b", "ab"], ["bc"]),
        ("^b$", ["b"], ["ab", "bc"]),
        ("^a|b$", ["ac", "cb", "a", "b"], ["ca", "bc"]),
        ("^(a|b)$", ["a", "b"], ["ab"]),
        ("(^a|b$)", ["ac", "cb"], ["ca"]),
        ("(?:^a$|(?<x>^b$))", ["a", "b"], ["ab"]),
        ("(^a|((b$)|^(c|d)))", ["ax", "xb", "cx", "dx"], ["xa", "bx", "xd"]),
        ("(?i:ab)", ["ab", "xABx"], ["a"]),
        ("(a)|(b)", ["xa", "bx"], ["c"]),
        (r"^a\$", ["a$", "a$b"], ["a"]),
        (r"^[$|(]$", ["$", "|", "("], ["a"]),
        (r"^[]a]$", ["]", "a"], ["b"]),
        (r"^[^\]]$", ["a"], ["]"]),
        (r"\A\d+\z", ["12"], ["a1", "٣"]),
        ("(?i)^ab$", ["AB", "aB"], ["xab"]),
        ("^a/b\nc$", ["a/b\nc"], ["a/b"]),
        ("", ["", "x"], []),
        (r"^\w\W$", ["a ", "aé"], ["éa"]),
    ],
)
def test_a_pattern_of_a_schema_is_searched(pattern: str, good: list[str], bad: list[str]) -> None:
    source = f"start: A\nA: {lark_regex(whole_match(pattern))}"
    for text in good:
        assert _matches(source, text), text
    for text in bad:
        assert not _matches(source, text), text


def test_classes_are_those_of_ascii() -> None:
    assert ascii_classes(r"\d\\d\W[\w.]\s") == r"[0-9]\\d[^0-9A-Za-z_][[0-9A-Za-z_].]\s"


@pytest.mark.parametrize("group", ["(", "(?:", "(?P<a>"])
def test_groups_around_a_pattern_may_be_many(group: str) -> None:
    assert whole_match(group * 900 + "^a$" + ")" * 900) == "(?:a)"


def test_the_time_for_groups_around_a_pattern_grows_as_their_number() -> None:
    def nested(number: int) -> str:
        return whole_match("(" * number + "^a|b$" + ")" * number)

    assert is_linear(lambda: nested(10_000), lambda: nested(40_000))
