"""Which arguments the schemas of an object name, and which others they admit."""

from functools import lru_cache
from typing import Any, NamedTuple

import re2

_QUIET = re2.Options()
_QUIET.log_errors = False


class Form(NamedTuple):
    """One form of a call's arguments."""

    members: dict[str, Any]
    """Schema by name, in the order of the schema."""
    required: frozenset[str]
    others: list[tuple[str | None, Any]]
    """Pattern of further names, None = any name, and their schema."""


def form_of(way: tuple[dict[str, Any], ...]) -> Form:
    """Return the form of the objects that match all these schemas, which have no combiners."""
    named = [part.get("properties", {}) for part in way]
    required = [name for part in way for name in part.get("required", ())]
    names = dict.fromkeys([*(name for part in named for name in part), *required])
    by_pattern = [part.get("patternProperties", {}) for part in way]
    rest = [part.get("additionalProperties", True) for part in way]
    found = [(part, _any_of(tuple(part.get("patternProperties", {})))) for part in way]
    members = {name: _all_of([s for p in found for s in _of_name(*p, name)]) for name in names}
    others = [
        (pattern, _all_of([schema, *(r for j, r in enumerate(rest) if j != i)]))
        for i, patterns in enumerate(by_pattern)
        for pattern, schema in patterns.items()
    ]
    # What no schema mentions is not made up, unless nothing is mentioned.
    is_open = any("additionalProperties" in part for part in way) or not (names or others)
    if is_open and False not in rest:
        others.append((None, _all_of(rest)))
    return Form(members, frozenset(required), others)


def _of_name(part: dict[str, Any], any_pattern: Any, name: str) -> list[Any]:
    """The schemas of a part for a property."""
    known, by_pattern = part.get("properties", {}), part.get("patternProperties", {})
    found = [known[name]] if name in known else []
    if any_pattern is None or any_pattern.search(name):
        patterns = ((_compiled(pattern), schema) for pattern, schema in by_pattern.items())
        found += [schema for pattern, schema in patterns if pattern and pattern.search(name)]
    return found or [part.get("additionalProperties", True)]


def _any_of(patterns: tuple[str, ...]) -> Any:
    """One expression for all, so that most names take one search; None if there is none."""
    if not all(map(_compiled, patterns)):
        return None
    return _compiled("|".join(f"(?:{pattern})" for pattern in patterns) or "$^a")


@lru_cache(1024)
def _compiled(pattern: str) -> Any:
    try:
        return re2.compile(pattern, _QUIET)
    except re2.error:  # llguidance refuses it, too
        return None


def _all_of(schemas: list[Any]) -> Any:
    """One schema for several; True and False as they are."""
    if False in schemas:
        return False
    parts = [schema for schema in schemas if schema is not True]
    return {"allOf": parts} if len(parts) > 1 else parts[0] if parts else True
