"""What cannot be enforced of a schema is left out, and nothing else."""

import pytest

from shared.lenient_schema import enforceable, lenient

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


def test_llguidance_is_told() -> None:
    assert lenient({"type": "string"}) == {"type": "string", "x-guidance": {"lenient": True}}
