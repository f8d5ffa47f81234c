"""JSON schemas without room for what they do not name.

JSON Schema admits any property that is not forbidden. A model that is held to a schema takes
that up and makes some; nobody who wrote the schema expects them. What a closed schema admits,
the given one admits too.
"""

from typing import Any

_BY_NAME = ("properties", "$defs", "definitions")
_IN_LISTS = ("anyOf", "oneOf", "prefixItems")
_ALONE = ("items", "additionalProperties")
_JOINING = frozenset({"allOf", "if", "dependentSchemas", "patternProperties",
                      "unevaluatedProperties"})  # fmt: skip
_JOINING_BESIDE_PROPERTIES = frozenset({"$ref", "anyOf", "oneOf"})


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, with `additionalProperties` false wherever it has `properties` and does not
    say. Unchanged if its parts name properties for each other: closed, they would exclude them.
    """
    return schema if _is_joined(schema) else _closed(schema)


def _is_joined(value: Any) -> bool:
    if isinstance(value, dict):
        is_joined = not _JOINING.isdisjoint(value) or (
            "properties" in value and not _JOINING_BESIDE_PROPERTIES.isdisjoint(value)
        )
        return is_joined or any(map(_is_joined, value.values()))
    return isinstance(value, list) and any(map(_is_joined, value))


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    result = dict(schema)
    for key in _BY_NAME:
        if isinstance(schema.get(key), dict):
            result[key] = {name: _closed(part) for name, part in schema[key].items()}
    for key in _IN_LISTS:
        if isinstance(schema.get(key), list):
            result[key] = [_closed(part) for part in schema[key]]
    for key in _ALONE:
        if key in schema:
            result[key] = _closed(schema[key])
    if "properties" in schema:
        result.setdefault("additionalProperties", False)
    return result
