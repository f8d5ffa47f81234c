"""Writes the table of errors of docs/protocol.md: `make tables`.

Status, type and code are those of the classes of `shared.errors`; the meaning is the first
paragraph of the docstring.
"""

import inspect
from pathlib import Path

from shared.errors import LlmisError, all_errors
from tools.marked_tables import filled, markdown

DOCUMENT = Path(__file__).parent.parent / "docs" / "protocol.md"


def tables() -> dict[str, str]:
    """The table by the name of its place, sorted by status and code."""
    # An engine's own subclasses count only where it is loaded: clients see them as their base.
    errors = [error for error in all_errors() if error.__module__ == LlmisError.__module__]
    errors.sort(key=lambda error: (error.status, error.code or "", error.type))
    heading = ["status", "`type`", "`code`", "meaning"]
    return {"errors": markdown([heading, ["---"] * len(heading), *map(_row, errors)])}


def _row(error: type[LlmisError]) -> list[str]:
    meaning = inspect.cleandoc(error.__doc__ or "").partition("\n\n")[0]
    code = "null" if error.code is None else error.code
    text = " ".join(meaning.split()).rstrip(".")
    return [str(error.status), f"`{error.type}`", f"`{code}`", text]


def main() -> None:
    DOCUMENT.write_text(filled(DOCUMENT.read_text(), tables()))


if __name__ == "__main__":
    main()
