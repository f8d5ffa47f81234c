"""JSON schemas with this project's defaults for llguidance. Apart from `worker.grammar.compiler`,
which imports llguidance: `worker.chat.tool_grammar` must not."""

from typing import Any

_OPTIONS = {"whitespace_pattern": r"(?: |\n{1,2}[ \t]{0,20})?"}
"""Small models generate white space endlessly if any amount of it is allowed."""


def guided_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Add the options that the schema does not set itself."""
    options = schema.get("x-guidance", {})
    if not isinstance(options, dict):
        return schema  # llguidance rejects it
    return {**schema, "x-guidance": {**_OPTIONS, **options}}
