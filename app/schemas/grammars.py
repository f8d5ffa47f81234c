"""Grammars of requests, as far as the web tier looks into them: their form and their size.

The replica compiles them. What is refused here is what would take it long to find out.
"""

import re
from typing import Any

import msgspec

from shared.closed_schema import closed
from shared.errors import InvalidRequest
from shared.lark import quoted
from shared.lenient_schema import lenient
from shared.messages import Grammar, GrammarKind
from shared.schema_parts import all_parts
from shared.settings import Settings

_RULE = re.compile(r"^[ \t]*[?!]?[\w-]+[^:\n]{0,64}:", re.MULTILINE)
"""How a rule begins, in Lark's notation or GBNF."""
_FORMS = {"properties": dict, "required": list, "enum": list}


def schema_grammar(
    schema: dict[str, Any], where: str, settings: Settings, *, is_strict: bool
) -> Grammar:
    """Raises InvalidRequest. A strict one is refused later where it says what cannot be
    enforced; of others that is left out."""
    check_schema(schema, where, settings)
    schema = closed(schema)
    if not is_strict:
        schema = lenient(schema)
    return Grammar(GrammarKind.JSON_SCHEMA, msgspec.json.encode(schema).decode(), where)


def choice_grammar(choices: list[str], where: str, settings: Settings) -> Grammar:
    """One of several texts, and nothing else. Raises InvalidRequest."""
    source = "start: " + " | ".join(map(quoted, choices))
    return text_grammar(GrammarKind.LARK, source, where, settings)


def text_grammar(kind: GrammarKind, source: str, where: str, settings: Settings) -> Grammar:
    """A regular expression, or rules. Raises InvalidRequest."""
    _check_size(len(source.encode("utf-8", "replace")), where, settings)
    if kind is GrammarKind.LARK:
        num_rules = sum(1 for _ in _RULE.finditer(source))
        _check_parts(num_rules, "rules", where, settings)
    return Grammar(kind, source, where)


def check_schema(schema: dict[str, Any], where: str, settings: Settings) -> None:
    """Whether a JSON schema is in form, and small enough to be compiled. Raises
    InvalidRequest."""
    _check_size(len(msgspec.json.encode(schema)), where, settings)
    if _depth(schema, settings.max_schema_depth) > settings.max_schema_depth:
        raise InvalidRequest(
            f"{where} is nested more than {settings.max_schema_depth} levels deep.", param=where
        )
    num_parts = 0
    for part in all_parts(schema):
        _check_form(part, where)
        num_parts += len(part.get("properties", ())) + ("$ref" in part)
    _check_parts(num_parts, "properties and references", where, settings)


def _check_form(part: dict[str, Any], where: str) -> None:
    for key, form in _FORMS.items():
        if key in part and not isinstance(part[key], form):
            name = "an object" if form is dict else "a list"
            raise InvalidRequest(f"{where}: {key!r} has to be {name}.", param=where)


def _check_size(size: int, where: str, settings: Settings) -> None:
    limit = settings.max_schema_bytes
    if size > limit:
        raise InvalidRequest(f"{where} has {size} bytes; at most {limit} are taken.", param=where)


def _check_parts(number: int, what: str, where: str, settings: Settings) -> None:
    limit = settings.max_schema_parts
    if number > limit:
        raise InvalidRequest(
            f"{where} has {number} {what}; at most {limit} are taken.", param=where
        )


def _depth(value: Any, limit: int) -> int:
    """Levels of nesting, counted up to one beyond the limit."""
    level, depth = [value], 0
    while level and depth <= limit:
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        depth += 1
    return depth
