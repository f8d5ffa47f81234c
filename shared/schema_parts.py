"""Where a JSON schema holds other schemas."""

from collections.abc import Callable, Iterator
from typing import Any

_BY_NAME = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_IN_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_ALONE = (
    "items", "additionalItems", "additionalProperties", "propertyNames", "contains", "not", "if",
    "then", "else", "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip


def with_parts(schema: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """The schema with each part replaced by what `change` makes of it."""
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
    """The schema and all parts in it, at every depth."""
    if not isinstance(schema, dict):
        return
    yield schema
    parts: list[Any] = []
    with_parts(schema, parts.append)
    for part in parts:
        yield from all_parts(part)
