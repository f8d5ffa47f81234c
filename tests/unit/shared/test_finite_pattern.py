"""The texts of patterns that match a few."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from shared.finite_pattern import FinitePatterns
from tests.support.cpu_time import is_linear

_NAMES = {"", "a", "b", "c", "ac", "bc", "bb", "ab", "abb", "xa", "xb", "é", *"01"}
_NAMES |= {f".{i}" for i in range(10)}


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        ("^x[ab]$", {"xa", "xb"}),
        ("^a$|^b$", {"a", "b"}),
        ("(^a$)", {"a"}),
        ("^(?:a|b)c?$", {"a", "ac", "b", "bc"}),
        ("^a?b{1,2}$", {"b", "bb", "ab", "abb"}),
        (r"^\.\d$", {f".{i}" for i in range(10)}),
        ("^$", {""}),
        ("^(?<n>x)[ab]$", {"xa", "xb"}),
        ("^^x[ab]$$", {"xa", "xb"}),
        ("(?s)^x[ab]$", {"xa", "xb"}),
        ("^(?s:x)[ab]$", {"xa", "xb"}),
        (r"\Ax[ab]\z", {"xa", "xb"}),
        ("^é$", {"é"}),
    ],
)
def test_texts_that_can_be_counted(pattern: str, texts: set[str]) -> None:
    assert FinitePatterns(_NAMES).texts_of(pattern) == texts


@pytest.mark.parametrize(
    "pattern",
    ["", "a", "^a", "a$", "^a|b$", "^a*$", "^[^a]$", "^.$", "$a^", "^a$b", "(?i)^a$", "^(?i:a)$",
     "^(?=a)a$", r"^\p{L}$", "^(", "^[a-z]$", "^((a|b){60}){60}$", "^a{100000}$",
     "^[a-d]$", "^(a|x)$", "^[(?<a>]$",
     "^" + "(" * 5000 + "a" + ")" * 5000 + "$"],
)  # fmt: skip
def test_texts_that_cannot(pattern: str) -> None:
    before_s = time.thread_time()
    assert FinitePatterns(_NAMES).texts_of(pattern) is None
    assert time.thread_time() - before_s < 1


def _levels(length: int) -> list[str]:
    """Repetitions of repetitions, in all of the length."""
    one = "^" + "(" * 10 + "a" + "{64})" * 10 + "$"
    return [one] * (length // len(one))


@pytest.mark.parametrize(
    "patterns",
    [
        _levels,
        lambda n: [f"^[a-z][a-z]{'x' * n}$"],
        lambda n: [f"^[a-z][a-z]{'(x)' * (n // 3)}$"],
        lambda n: [f"^[{'a-z' * (n // 3)}]$"],
        lambda n: ["^" + "(){64}" * (n // 6) + "$"],
        lambda n: ["^" + "(|)" * (n // 3) + "$"],
    ],
)
def test_the_time_grows_as_the_pattern_and_the_names(patterns: Any) -> None:
    def call(length: int) -> Callable[[], object]:
        names = {f"{i}" for i in range(1000)} | {"ab" + "x" * length}

        return lambda: list(map(FinitePatterns(names).texts_of, patterns(length)))

    assert is_linear(call(2000), call(8000))


def test_many_patterns_and_many_names_do_not_multiply() -> None:
    def call(number: int) -> Callable[[], object]:
        names = {str(1000 + i) for i in range(number)}
        patterns = [f"^[1-8][0-9]{{3}}$|^{i}$" for i in range(number)]
        return lambda: list(map(FinitePatterns(names).texts_of, patterns))

    assert is_linear(call(500), call(2000))
