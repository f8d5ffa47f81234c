"""The form and size of the grammars in requests, as the web tier checks them.

The replica compiles them. Refused here is what would cost the replica much time to refuse.
"""

import re
from typing import Any

import msgspec

from shared.errors import InvalidRequest
from shared.json_schema import (
    all_parts,
    can_be_closed,
    closed,
    lenient,
    quoted,
    unnamed,
    without_finite_patterns,
)
from shared.settings.fields import Settings
from shared.wire.job import Grammar, GrammarKind

_RULE = re.compile(r"^[ \t]*[?!]?[\w-]+[^:\n]{0,64}:", re.MULTILINE)
"""How a rule begins, in Lark's notation or GBNF."""
_FORMS = {
    **dict.fromkeys(("properties", "patternProperties", "$defs", "definitions"), dict),
    **dict.fromkeys(("required", "enum", "allOf", "anyOf", "oneOf"), list),
}


def schema_grammar(
    schema: dict[str, Any], where: str, settings: Settings, *, is_strict: bool
) -> Grammar:
    """Check a JSON schema. Raises InvalidRequest.

    Keywords that cannot be enforced: with `is_strict` the replica refuses them, otherwise they are
    left out here.
    """
    check_schema(schema, where, settings, is_strict=is_strict)
    schema = without_finite_patterns(closed(schema))
    if not is_strict:
        schema = lenient(schema)
    return Grammar(GrammarKind.JSON_SCHEMA, msgspec.json.encode(schema).decode(), where)


def choice_grammar(choices: list[str], where: str, settings: Settings) -> Grammar:
    """Make a grammar of several texts, of which one has to match. Raises InvalidRequest."""
    source = "start: " + " | ".join(map(quoted, choices))
    return text_grammar(GrammarKind.LARK, source, where, settings)


def text_grammar(kind: GrammarKind, source: str, where: str, settings: Settings) -> Grammar:
    """Check a regular expression or rules. Raises InvalidRequest."""
    _check_size(len(source.encode("utf-8", "replace")), where, settings)
    if kind is GrammarKind.LARK:
        num_rules = sum(1 for _ in _RULE.finditer(source))
        _check_parts(num_rules, "rules", where, settings)
    return Grammar(kind, source, where)


def check_schema(
    schema: dict[str, Any], where: str, settings: Settings, *, is_strict: bool = False
) -> None:
    """Check that a JSON schema is well formed and small enough to be compiled. Raises
    InvalidRequest. With `is_strict`, an object may only require what it describes."""
    _check_size(len(msgspec.json.encode(schema)), where, settings)
    if _depth(schema, settings.max_schema_depth) > settings.max_schema_depth:
        raise InvalidRequest(
            f"{where} is nested more than {settings.max_schema_depth} levels deep.", param=where
        )
    num_parts, is_closed = 0, is_strict and can_be_closed(schema)
    for part in all_parts(schema):
        _check_form(part, where)
        named = [part.get(key, ()) for key in ("properties", "patternProperties")]
        num_parts += sum(map(len, named)) + ("$ref" in part)
        if is_closed and "additionalProperties" not in part and (names := unnamed(part)):
            raise InvalidRequest(
                f"{where}: 'required' names {names[0][:64]!r}, which is not in 'properties'.",
                param=where,
            )
    _check_parts(num_parts, "properties and references", where, settings)


def _check_form(part: dict[str, Any], where: str) -> None:
    for key, form in _FORMS.items():
        if key in part and not isinstance(part[key], form):
            name = "an object" if form is dict else "a list"
            raise InvalidRequest(f"{where}: {key!r} must be {name}.", param=where)


def _check_size(size: int, where: str, settings: Settings) -> None:
    limit = settings.max_schema_bytes
    if size > limit:
        raise InvalidRequest(f"{where} has {size} bytes; at most {limit} are allowed.", param=where)


def _check_parts(number: int, what: str, where: str, settings: Settings) -> None:
    limit = settings.max_schema_parts
    if number > limit:
        raise InvalidRequest(
            f"{where} has {number} {what}; at most {limit} are allowed.", param=where
        )


def _depth(value: Any, limit: int) -> int:
    """Levels of nesting, counted to `limit + 1` at most."""
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
