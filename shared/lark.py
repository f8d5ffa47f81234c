"""Texts in llguidance's dialect of Lark."""

import json


def quoted(text: str) -> str:
    """The text as a literal. Only printable ASCII stands as it is: the lexer refuses U+007F."""
    return json.dumps(text).replace("\x7f", "\\u007f")
