"""Grammars that once took a replica down, or its memory, or its time."""

import json
from typing import Any

from shared.wire.job import Grammar, GrammarKind


def chained_schema(number: int, *, is_wrapped: bool = False) -> dict[str, Any]:
    """`$defs` that refer to each other in a row."""
    refs = [{"$ref": f"#/$defs/d{i + 1}"} for i in range(number)]
    parts: dict[str, Any] = {
        f"d{i}": {"allOf": [ref]} if is_wrapped else ref for i, ref in enumerate(refs)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**parts, f"d{number}": {"type": "string"}}}


def chained_rules(number: int) -> str:
    rules = [f"r{i}: r{i + 1}" for i in range(number)]
    return "\n".join(["start: r0", *rules, f'r{number}: "x"'])


def many_properties(number: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(number)}}


def _schema(schema: dict[str, Any]) -> Grammar:
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema), "guided_json")


def _regex(source: str) -> Grammar:
    return Grammar(GrammarKind.REGEX, source, "guided_regex")


def _lark(source: str) -> Grammar:
    return Grammar(GrammarKind.LARK, source, "guided_grammar")


REFUSED = {
    "memory": _regex("a?" * 10_000),
    "time": _regex("a?" * 100_000),
    "recursion": _schema(chained_schema(60_000)),
    "slow at the first token": _regex("((((a{100}){100}){100}){100})"),
    "slow at every token": _regex("a" * 200_000),
    "wide": _schema(many_properties(3000)),
    "wide by alternatives": _lark("start: " + "|".join('"x"' for _ in range(12_007))),
    "brackets": _schema({"type": "string", "pattern": "[" * 1_000_000}),
    "parentheses": _lark("start: " + "(" * 20_000 + '"x"' + ")" * 20_000),
}
TAKEN = {
    "references": _schema(chained_schema(7000)),
    "references in allOf": _schema(chained_schema(3000, is_wrapped=True)),
    "rules": _lark(chained_rules(18_000)),
    "terminals": _lark(chained_rules(5000).replace("r", "R").replace("staRt", "start")),
    "properties": _schema(many_properties(450)),
}
