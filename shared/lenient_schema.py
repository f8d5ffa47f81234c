"""JSON schemas of which only what can be enforced is: all that are not strict."""

import re
from typing import Any

from shared.schema_parts import with_parts

_UNSUPPORTED = re.compile(r"\(\?<?[=!]|\(\?P=|\\[1-9bBk]")
"""Look-around, word boundaries, references to groups: of no automaton."""
_NO_BACKSLASH = re.compile(r"\\\\")


def lenient(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without the patterns that cannot be enforced, and with the leave to leave out
    what else cannot."""
    return {**enforceable(schema), "x-guidance": {"lenient": True}}


def enforceable(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without the patterns that cannot be enforced."""
    result = with_parts(schema, lambda part: enforceable(part) if isinstance(part, dict) else part)
    if _is_unsupported(result.get("pattern")):
        del result["pattern"]
    by_pattern = result.get("patternProperties")
    if isinstance(by_pattern, dict):
        kept = {key: part for key, part in by_pattern.items() if not _is_unsupported(key)}
        result["patternProperties"] = kept
    return result


def _is_unsupported(pattern: Any) -> bool:
    return isinstance(pattern, str) and bool(_UNSUPPORTED.search(_NO_BACKSLASH.sub("", pattern)))
