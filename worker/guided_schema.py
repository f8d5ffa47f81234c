"""JSON schemas as llguidance is given them."""

from typing import Any

_OPTIONS = {"whitespace_pattern": r"(?: |\n{1,2}[ \t]{0,20})?"}
"""Small models lose themselves in white space where any amount of it is allowed."""


def guided_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with the options of ours that it does not set itself."""
    asked = schema.get("x-guidance", {})
    if not isinstance(asked, dict):
        return schema  # left to llguidance's complaint
    return {**schema, "x-guidance": {**_OPTIONS, **asked}}
