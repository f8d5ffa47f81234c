"""Grammars as text: GBNF as Lark, and which part of a composed grammar is at fault."""

import re

_GBNF = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)
"""How a rule begins in GBNF. In Lark nothing does."""
_ORIGIN = "// of "
_AT = re.compile(r"(?:at )?(\d+)\(\d+\): (.*?)(?:\n +\d+ \||$)", re.DOTALL)
"""How llguidance names a line, before it shows lines of the grammar."""


def is_gbnf(source: str) -> bool:
    return _GBNF.search(source) is not None


def as_lark(source: str) -> str:
    """Return the grammar in Lark's notation. Raises llguidance's own errors."""
    if not is_gbnf(source):
        return source
    # Loads llguidance, which only a process with an engine has to.
    from llguidance.gbnf_to_lark import gbnf_to_lark

    return str(gbnf_to_lark(source))


def origin(what: str) -> str:
    """Return the line above rules that errors in them name: "the JSON schema of …"."""
    return f"{_ORIGIN}{what}"


def fault(source: str, reason: str) -> tuple[str, str] | None:
    """What is at fault, and why without lines of the grammar, if an origin is above the fault."""
    found = _AT.match(reason)
    if found is None:
        return None
    for line in reversed(source.split("\n")[: int(found[1])]):
        if line.startswith(_ORIGIN):
            return line.removeprefix(_ORIGIN), " ".join(found[2].split())
    return None
