"""JSON schemas for llguidance: walk, close and relax them; literals of its Lark dialect.

Only keywords are walked. Property and definition names are never taken for keywords, and the
values of `default`, `const`, `enum` and `examples` are data, never schemas.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from shared.finite_pattern import FinitePatterns

_BY_NAME = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
"""Keywords with an object of schemas: its keys are names, patterns or paths."""
_IN_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_FOR_ITEMS = ("items", "additionalItems", "unevaluatedItems", "contains")
_FOR_PROPERTIES = ("additionalProperties", "unevaluatedProperties", "propertyNames")
_ALONE = (*_FOR_ITEMS, *_FOR_PROPERTIES, "not", "if", "then", "else")
_JOINING = {"allOf", "if", "dependentSchemas", "patternProperties", "unevaluatedProperties"}
_UNSUPPORTED = re.compile(r"\(\?<?[=!]|\(\?P=|\\[1-9bBk]")
"""Look-around, word boundaries and back-references: no automaton has them."""
_ESCAPED_BACKSLASH = re.compile(r"\\\\")


def with_parts(schema: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """Return the schema with each direct part replaced by `change(part)`. A part is a schema: an
    object, or true or false inside a list or an object of schemas."""
    result = dict(schema)
    for key in _BY_NAME:
        if isinstance(schema.get(key), dict):
            result[key] = {name: change(part) for name, part in schema[key].items()}
    for key in _IN_LISTS:
        if isinstance(schema.get(key), list):
            result[key] = [change(part) for part in schema[key]]
    for key in _ALONE:
        if isinstance(schema.get(key), dict):
            result[key] = change(schema[key])
    return result


def all_parts(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield the schema and the parts of every depth, without true and false."""
    if not isinstance(schema, dict):
        return
    yield schema
    parts: list[Any] = []
    with_parts(schema, parts.append)
    for part in parts:
        yield from all_parts(part)


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with `additionalProperties` false wherever it has `properties` and does
    not set it. What the result admits, the given schema admits too.

    JSON Schema admits any property that is not forbidden, and a constrained model invents some.
    A property that is required but not in `properties` may have any value.

    Unchanged if parts name properties for each other: closed, they would exclude them.
    """
    return _closed(schema) if can_be_closed(schema) else schema


def can_be_closed(schema: dict[str, Any]) -> bool:
    """Whether no part names properties for another one."""
    return not any(map(_is_joined, all_parts(schema)))


def _is_joined(part: dict[str, Any]) -> bool:
    joining = _JOINING & part.keys()
    if part.get("patternProperties") == {}:
        joining.discard("patternProperties")
    whole, has_properties = part.get("allOf"), "properties" in part
    if isinstance(whole, list) and len(whole) == 1 and not has_properties:
        joining.discard("allOf")  # one part beside a description is that part
    if joining or not has_properties:
        return bool(joining)
    lists = [part.get("anyOf", []), part.get("oneOf", [])]
    return "$ref" in part or not all(
        isinstance(choices, list) and all(_only_requires(one, part) for one in choices)
        for choices in lists
    )


def _only_requires(choice: Any, beside: dict[str, Any]) -> bool:
    """Whether an alternative requires properties that stand beside it, and says nothing else."""
    is_bare = isinstance(choice, dict) and choice.keys() == {"required"}
    return is_bare and not unnamed({**beside, **choice})


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    result = with_parts(schema, _closed)
    if "not" in schema:
        # Closed, it would match less, and so the whole would admit more.
        result["not"] = schema["not"]
    if "properties" in schema and "additionalProperties" not in schema:
        if names := unnamed(schema):
            result["properties"] = {**result["properties"], **dict.fromkeys(names, True)}
        result["additionalProperties"] = False
    return result


def without_finite_patterns(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema without the `patternProperties` whose pattern matches named properties
    only, which get its schema. llguidance would begin another property and find no name for it.
    """
    names = {name for part in all_parts(schema) for name in _names(part)}
    defined = schema.get("$defs", {})
    keys = (key for i in itertools.count() if (key := f"pattern-{i}") not in defined)
    moved: dict[str, Any] = {}
    result = _without_patterns(schema, FinitePatterns(names), keys, moved)
    return {**result, "$defs": {**result.get("$defs", {}), **moved}} if moved else schema


def _names(part: dict[str, Any]) -> list[str]:
    lists = [part.get("properties", ()), part.get("required", ())]
    found = (name for names in lists if isinstance(names, dict | list) for name in names)
    return [name for name in found if isinstance(name, str)]


def _without_patterns(
    schema: Any, finite: FinitePatterns, keys: Iterator[str], moved: dict[str, Any]
) -> Any:
    """Moves the schemas of the patterns to `moved`, under the next keys."""
    if not isinstance(schema, dict):
        return schema
    result = with_parts(schema, lambda part: _without_patterns(part, finite, keys, moved))
    by_pattern, known = result.pop("patternProperties", {}), dict(result.get("properties", {}))
    for pattern in list(by_pattern):
        texts = finite.texts_of(pattern)
        if texts is None:
            continue
        key = next(keys)
        moved[key] = by_pattern.pop(pattern)
        for name in sorted(texts):
            ref = {"$ref": f"#/$defs/{key}"}
            known[name] = {"allOf": [known[name], ref]} if name in known else ref
    if by_pattern:
        result["patternProperties"] = by_pattern
    return {**result, "properties": known} if known else result


def unnamed(part: dict[str, Any]) -> list[str]:
    """The names that an object requires beside its `properties`."""
    names, known = part.get("required"), part.get("properties")
    if not isinstance(names, list) or not isinstance(known, dict):
        return []
    return [name for name in names if isinstance(name, str) and name not in known]


def lenient(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the enforceable schema with llguidance's option to ignore what it cannot enforce."""
    return {**enforceable(schema), "x-guidance": {"lenient": True}}


def enforceable(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema without the patterns that llguidance cannot enforce."""
    result = with_parts(schema, lambda part: enforceable(part) if isinstance(part, dict) else part)
    if _is_unsupported(result.get("pattern")):
        del result["pattern"]
    by_pattern = result.get("patternProperties")
    if isinstance(by_pattern, dict):
        kept = {key: part for key, part in by_pattern.items() if not _is_unsupported(key)}
        result["patternProperties"] = kept
    return result


def _is_unsupported(pattern: Any) -> bool:
    if not isinstance(pattern, str):
        return False
    return bool(_UNSUPPORTED.search(_ESCAPED_BACKSLASH.sub("", pattern)))


def quoted(text: str) -> str:
    """Return the text as a Lark literal. llguidance's lexer refuses U+007F unless escaped."""
    return json.dumps(text).replace("\x7f", "\\u007f")
