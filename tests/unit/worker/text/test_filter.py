"""The denylist on growing texts: what comes out does not depend on how they are cut."""

import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.denylist.denylist import Denylist, OutputRules
from shared.denylist.rule import Rule
from worker.text.filter import TextFilter


def _rules(*rules: dict[str, Any]) -> OutputRules:
    made = [Rule(**{"name": f"r{i}", "on": "output", **rule}) for i, rule in enumerate(rules)]
    found = Denylist(made).on_output("m")
    assert found is not None
    return found


def _whole(rules: OutputRules, text: str) -> tuple[str, bool]:
    made = TextFilter(rules)
    return made.push(text) + made.finish(), made.is_cut


def _in_pieces(rules: OutputRules, text: str, cuts: list[int]) -> tuple[list[str], TextFilter]:
    """What each piece has brought, and then the end."""
    made, outs = TextFilter(rules), []
    places = sorted({cut % (len(text) + 1) for cut in cuts} | {0, len(text)})
    for begin, end in pairwise(places):
        if made.is_cut:
            break
        outs.append(made.push(text[begin:end]))
    outs.append(made.finish())
    return outs, made


_WORD = st.text("abAB ", min_size=1, max_size=4)
_REGEX = st.sampled_from(
    [r"a+b", r"\bab\b", r"b.*a", r"^a", r"a$", r"(a|ab)(b|bb)", r"[^a]b?a", r"a\B"]
)
_RULE = st.one_of(
    st.builds(
        lambda words, fold, action: {"literals": words, "ignore_case": fold, "action": action},
        st.lists(_WORD, min_size=1, max_size=4),
        st.booleans(),
        st.sampled_from(["truncate", "mask", "tag", "refuse"]),
    ),
    st.builds(
        lambda regex, most, action: {"regex": regex, "max_chars": most, "action": action},
        _REGEX,
        st.integers(1, 9),
        st.sampled_from(["truncate", "mask", "tag", "mask"]),
    ),
)


@settings(max_examples=400, deadline=None)
@given(
    rules=st.lists(_RULE, min_size=1, max_size=4),
    text=st.text("abAB \n", max_size=40),
    cuts=st.lists(st.integers(0, 50), max_size=40),
)
@example(rules=[{"regex": "b.*a", "max_chars": 6, "action": "mask"},
                {"literals": ["aa"], "action": "truncate"}],
         text="b  aa   a", cuts=[5])  # fmt: skip
def test_any_cut_gives_the_same(rules: list[dict[str, Any]], text: str, cuts: list[int]) -> None:
    compiled = _rules(*rules)
    expected, is_cut = _whole(compiled, text)
    outs, made = _in_pieces(compiled, text, cuts)
    assert ("".join(outs), made.is_cut) == (expected, is_cut)
    every, last = _in_pieces(compiled, text, list(range(len(text))))
    assert ("".join(every), last.is_cut, last.seen) == (expected, is_cut, made.seen)


@settings(max_examples=250, deadline=None)
@given(
    words=st.lists(_WORD, min_size=1, max_size=4),
    text=st.text("abAB ", max_size=30),
    fold=st.booleans(),
)
def test_literals_are_masked_as_python_would(words: list[str], text: str, fold: bool) -> None:
    pattern = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    expected = re.sub(pattern, "***", text, flags=re.IGNORECASE if fold else 0)
    rules = _rules({"literals": words, "ignore_case": fold, "action": "mask"})
    assert _whole(rules, text) == (expected, False)
    found = re.search(pattern, text, re.IGNORECASE if fold else 0)
    rules = _rules({"literals": words, "ignore_case": fold, "action": "truncate"})
    assert _whole(rules, text) == (text[: found.start()] if found else text, found is not None)


@settings(max_examples=250, deadline=None)
@given(
    rules=st.lists(_RULE, min_size=1, max_size=4),
    text=st.text("abAB ", max_size=40),
    at=st.integers(0, 40),
    cuts=st.lists(st.integers(0, 50), max_size=10),
)
def test_where_it_stands_depends_on_the_text_alone(
    rules: list[dict[str, Any]], text: str, at: int, cuts: list[int]
) -> None:
    """Another replica reads again what has been generated, and has to stand where this one did."""
    compiled = _rules(*rules)
    one, other = TextFilter(compiled), TextFilter(compiled)
    out = one.push(text[:at])
    pieces = [other.push(char) for char in text[:at] if not other.is_cut]
    assert (out, one.seen, one.is_cut) == ("".join(pieces), other.seen, other.is_cut)


def test_literals_hold_back_what_may_become_one_and_no_more() -> None:
    made = TextFilter(_rules({"literals": ["falcon", "Ferry"], "action": "truncate"}))
    assert made.push("a fal") == "a "
    assert made.push("l fe") == "fall "
    assert made.push("e") == "fee"
    assert made.push(" FALCO") == " "
    assert made.push("n!") == ""
    assert made.is_cut


def test_a_regex_holds_back_its_longest_match_and_looks_at_16_characters_at_a_time() -> None:
    made = TextFilter(_rules({"regex": "x+y", "max_chars": 5, "action": "mask"}))
    assert made.push("0123456789abcdef0123") == ""
    assert made.push("x") == "0123456789abcdef"
    assert made.push("xy") == ""
    assert made.finish() == "0123***"


def test_a_match_is_as_long_as_max_chars_and_no_longer() -> None:
    rules = _rules({"regex": "a+b", "max_chars": 4, "action": "mask"})
    assert _whole(rules, "aaaaaab")[0] == "aaa***"
    assert _whole(rules, "aaab")[0] == "***"


def test_tags_hold_nothing_back() -> None:
    made = TextFilter(_rules({"literals": ["secret"], "action": "tag"}))
    assert made.push("sec") == "sec"
    assert made.push("ret") == "ret"
    (match,) = made.report().matches
    assert (match.rule, match.begin, match.end) == ("r0", 0, 6)
    assert made.report().matches == []


@pytest.mark.parametrize(
    ("literal", "text"),
    [("straße", "die STRAẞE"), ("ΣΊΣΥΦΟΣ", "σίσυφος"), ("kelvin", "\u212aelvin"), ("日本", "日本")],
)
def test_case_is_ignored_in_all_of_unicode(literal: str, text: str) -> None:
    made = TextFilter(_rules({"literals": [literal], "action": "mask"}))
    out = "".join(made.push(char) for char in text) + made.finish()
    assert out.endswith("***")


def test_no_pattern_takes_more_than_linear_time() -> None:
    """Python's own engine would take longer than the universe has been there."""
    text = "a" * 1_000_000 + "!"
    for regex in (r"(a+)+$", r"(a|aa)+$", r"(.*a){20}$", r"(a*)*b"):
        rules = _rules({"regex": regex, "action": "mask"})
        _whole(rules, text[-50_000:])
        found = Denylist([Rule(name="p", regex=regex, action="refuse")]).on_prompts("m")
        assert found is not None
        assert found.refuse is not None
        found.refuse.rules_in(text)
