"""Several rules as one pattern: their matches, and what may still become one at the end of a text.

Stateless and thread-safe.
"""

from shared.denylist.rule import Rule, compile_re2

_OPENING_CHARS = 3
_STRIDE = 16
"""Characters of an answer after which a regex searches again."""
_MAX_FOUND = 100
"""Matches of one prompt from which the rules are named."""


class Pattern:
    """The rules as one regular expression. Positions count characters."""

    def __init__(self, rules: list[Rule]) -> None:
        """Raises re2.error if the rules together are too large."""
        self.rules = rules
        self._regexp = compile_re2("|".join(rule.source for rule in rules))
        self.longest = max(rule.longest for rule in rules)
        has_regex = any(rule.regex is not None for rule in rules)
        self._window = self.longest if has_regex else 0
        """Characters from a position on that decide whether a match begins there. 0 = literals
        only."""
        lengths = [len(text) for rule in rules for text in rule.literals]
        self._opening_chars = min(_OPENING_CHARS, *lengths) if lengths else 0
        self._openings: dict[bool, set[str]] = {True: set(), False: set()}
        """`ignore_case` → the first characters of literals, to skip the search without them."""
        self._beginnings: dict[bool, set[str]] = {True: set(), False: set()}
        """`ignore_case` → all proper prefixes of literals."""
        for rule in rules:
            for text in rule.literals:
                key = folded(text) if rule.ignore_case else text
                self._openings[rule.ignore_case].add(key[: self._opening_chars])
                self._beginnings[rule.ignore_case].update(key[:n] for n in range(1, len(key)))
        self._longest_beginning = max(map(len, set().union(*self._beginnings.values())), default=0)

    def is_in(self, text: str) -> bool:
        return self._regexp.search(utf8_of(text)) is not None

    def rules_in(self, text: str) -> list[Rule]:
        """The rules that match, in the order of the first `_MAX_FOUND` matches."""
        found: dict[str, Rule] = {}
        encoded = utf8_of(text)
        for number, match in enumerate(self._regexp.finditer(encoded)):
            if number == _MAX_FOUND:
                break
            rule = self._rule_of(encoded, *match.span())
            found.setdefault(rule.name, rule)
        return list(found.values())

    def next_match(
        self, text: str, start: int, limit: int, end: int
    ) -> tuple[int, int, Rule] | None:
        """The first match that begins in `[start, limit)` and ends at `end` or before, as (begin,
        end, rule); of several from the same begin the longest one up to `longest` characters."""
        while start < limit:
            if not self._window and not self._may_begin(text[start : limit + _OPENING_CHARS]):
                return None
            match = self._regexp.search(text, start, end)
            if match is None or match.start() >= limit:
                return None
            begin, match_end = match.span()
            if match_end - begin > self.longest:
                match = self._regexp.match(text, begin, begin + self.longest)
                match_end = match.end() if match else begin
            if match_end > begin:
                return begin, match_end, self._rule_of(text, begin, match_end)
            start = begin + 1
        return None

    def _may_begin(self, text: str) -> bool:
        """Whether a literal may begin in a text. Cheaper than a search by RE2, which releases the
        GIL: the engine loop, which calls this, would have to wait to get it back."""
        length = self._opening_chars
        for ignore_case, openings in self._openings.items():
            if openings:
                tail = folded(text) if ignore_case else text
                for at in range(len(tail) - length + 1):
                    if tail[at : at + length] in openings:
                        return True
        return False

    def open_from(self, text: str, start: int) -> int:
        """The first position, `start` or later, from which more text may complete or extend a
        match. The text before it is decided."""
        found = len(text)
        if self._window:
            found = max(start, (found - self._window) // _STRIDE * _STRIDE)
        for ignore_case, beginnings in self._beginnings.items():
            if beginnings:
                # Folding keeps the number of characters.
                first = max(start, len(text) - self._longest_beginning)
                tail = folded(text[first:]) if ignore_case else text[first:]
                for at in range(min(len(tail), found - first)):
                    if tail[at:] in beginnings:
                        found = first + at
                        break
        return found

    def _rule_of(self, text: str | bytes, begin: int, end: int) -> Rule:
        for rule in self.rules:
            match = rule.regexp.match(text, begin, end)
            if match is not None and match.end() == end:
                return rule
        raise AssertionError("every match of the joined pattern is a match of one rule")


def utf8_of(text: str) -> bytes:
    """Encode for RE2. Lone surrogates become "?"."""
    return text.encode("utf-8", "replace")


_EXTRA = str.maketrans({"\u1fd3": "\u0390", "\u1fe3": "\u03b0", "\ufb05": "\ufb06"})
"""Simple foldings that Python does not have (Unicode's CaseFolding.txt, status S)."""


def folded(text: str) -> str:
    """Fold the case of a text without changing its number of characters."""
    if text.isascii():
        return text.lower()
    return "".join(map(_fold, text.translate(_EXTRA)))


def _fold(char: str) -> str:
    for one in (char.casefold(), char.lower()):
        if len(one) == 1:
            return one
    return char
