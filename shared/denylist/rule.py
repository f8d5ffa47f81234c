"""One rule of the denylist and its regular expression, compiled for RE2."""

from functools import cached_property
from typing import Annotated, Any, Literal

import re2
from msgspec import Meta, Struct

from shared import names

_RE2_BYTES = 64 * 1024 * 1024
"""Memory of one compiled pattern. If RE2 needs more it is slower, but still correct."""

Action = Literal["refuse", "truncate", "mask", "tag"]
RulePlace = Literal["prompt", "output"]


class Rule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """One `[[rules]]` table of the file."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    """Its name in headers, logs and errors."""
    action: Action
    literals: list[Annotated[str, Meta(min_length=1, max_length=256)]] = []
    regex: Annotated[str, Meta(max_length=2000)] | None = None
    """In RE2's syntax. A rule has either this or `literals`."""
    ignore_case: bool = True
    models: list[Annotated[str, Meta(pattern=names.MODEL_NAME_PATTERN)]] | None = None
    """None = all."""
    on: Literal["prompt", "output", "both"] | None = None
    """None = every place where the action is possible."""
    max_chars: Annotated[int, Meta(ge=1, le=1000)] = 128
    """Longest match of a regex on output, in characters: as many are held back."""

    def is_on(self, place: RulePlace) -> bool:
        where = self.on or ("output" if self.action in ("truncate", "mask") else "both")
        return where in (place, "both")

    @property
    def source(self) -> str:
        """The rule as a regular expression of RE2."""
        texts = sorted(self.literals, key=len, reverse=True)
        inner = "|".join(map(re2.escape, texts)) if self.regex is None else self.regex
        return f"(?{'i' if self.ignore_case else ''}:{inner})"

    @cached_property
    def regexp(self) -> Any:
        """Raises re2.error."""
        return compile_re2(self.source)

    @property
    def longest(self) -> int:
        """Characters of the longest possible match on output."""
        return self.max_chars if self.regex is not None else max(map(len, self.literals))


def compile_re2(source: str) -> Any:
    """Raises re2.error."""
    options = re2.Options()
    options.max_mem = _RE2_BYTES
    options.longest_match = True  # the match does not depend on the order of the rules
    options.never_capture = True
    options.log_errors = False
    return re2.compile(source, options)
