"""Applies the denylist to a growing text: text once released is never revised. The text released by
`push` and `finish` is the same for every split of the input."""

from dataclasses import dataclass

from shared.denylist.denylist import OutputRules
from shared.denylist.matcher import Pattern
from shared.denylist.rule import Rule
from shared.wire.events import Filtered, FilterMatch

MASK = "***"
_SLICE = 128
"""Characters added per search: a search may scan to the end of the text."""
_MAX_KEPT = 64
"""Characters before every possible match that are kept, so that they are dropped in bulk."""


@dataclass(slots=True)
class _Scanner:
    """Finds the matches of one pattern, each as soon as more text cannot change it."""

    pattern: Pattern
    start: int = 0
    """All matches before it are decided."""

    def decided(self, text: str, end: int, *, is_last: bool) -> list[tuple[int, int, Rule]]:
        """Matches before `end` decided since the last call. `is_last`: the text ends at `end`."""
        found: list[tuple[int, int, Rule]] = []
        while True:
            limit = end if is_last else self.pattern.open_from(text, self.start)
            match = self.pattern.next_match(text, self.start, limit, end)
            if match is None:
                self.start = max(self.start, limit)
                return found
            found.append(match)
            self.start = match[1]


class TextFilter:
    """Filters one choice's text. Positions count its characters from the beginning."""

    def __init__(self, rules: OutputRules, before: str = "") -> None:
        """`before`: text released earlier, which the new text follows."""
        self.is_cut = False
        """A rule has ended the text. `push` must not follow."""
        self.seen = len(before)
        """Characters released or masked."""
        self._text = before[-1:]  # word boundaries depend on it
        self._base = len(before) - len(self._text)
        """Position of `_text`. The positions below count from there."""
        self._out = len(self._text)
        """Everything before it is released."""
        self._end, self._mask, self._tag = (
            _Scanner(pattern, self._out) if pattern else None
            for pattern in (rules.end, rules.mask, rules.tag)
        )
        self._masks: list[tuple[int, int]] = []
        """Begin and end of masks that are not released yet."""
        self._matches: list[FilterMatch] = []

    def push(self, text: str) -> str:
        """Add text and return what is now final."""
        pieces = []
        for at in range(0, len(text), _SLICE):
            if self.is_cut:
                break
            self._text += text[at : at + _SLICE]
            pieces.append(self._advance(is_last=False))
        return "".join(pieces)

    def finish(self) -> str:
        """End the text and return what was held back."""
        return "" if self.is_cut else self._advance(is_last=True)

    def report(self) -> Filtered:
        """The matches since the last call, and how far the text is released."""
        matches, self._matches = self._matches, []
        return Filtered(self.seen, matches)

    def _advance(self, *, is_last: bool) -> str:
        end = hold = len(self._text)
        if self._end is not None:
            for begin, match_end, rule in self._end.decided(self._text, end, is_last=is_last):
                self._note(begin, match_end, rule)
                self.is_cut = is_last = True
                end = begin
                break
            hold = min(end, self._end.start)
        if self._mask is not None:
            hold = min(hold, self._find_masks(self._mask, end, is_last=is_last))
        if self._tag is not None:
            for match in self._tag.decided(self._text, end, is_last=is_last):
                self._note(*match)
        return self._let_through(end if is_last else hold)

    def _find_masks(self, scanner: _Scanner, end: int, *, is_last: bool) -> int:
        """Find masks; return the position up to which they are decided."""
        if self.is_cut and self._masks and self._masks[-1][1] > end:
            # The cut falls into this mask: search the part that remains again.
            self._masks = [mask for mask in self._masks if mask[1] <= end]
            scanner.start = min(scanner.start, self._masks[-1][1] if self._masks else self._out)
        for begin, match_end, rule in scanner.decided(self._text, end, is_last=is_last):
            self._note(begin, match_end, rule)
            self._masks.append((begin, match_end))
        return scanner.start

    def _note(self, begin: int, end: int, rule: Rule) -> None:
        base = self._base
        self._matches.append(FilterMatch(rule.name, rule.action, base + begin, base + end))

    def _let_through(self, hold: int) -> str:
        """Return the text before `hold`. A mask is released as a whole."""
        pieces: list[str] = []
        at = self._out
        while self._masks and self._masks[0][1] <= hold:
            begin, end = self._masks.pop(0)
            pieces += (self._text[at:begin], MASK)
            at = end
        hold = max(at, min(hold, self._masks[0][0]) if self._masks else hold)
        pieces.append(self._text[at:hold])
        self._out = hold
        self.seen = self._base + hold
        self._drop_old()
        return "".join(pieces)

    def _drop_old(self) -> None:
        if len(self._text) < 2 * _MAX_KEPT:
            return
        scanners = [s for s in (self._end, self._mask, self._tag) if s]
        # - 1: the character before decides whether a word begins here.
        num_old = min([self._out, *(scanner.start for scanner in scanners)]) - 1
        if num_old < _MAX_KEPT:
            return
        # In fixed units, so that the state depends on the text alone: see `Pattern.open_from`.
        num_old -= num_old % _MAX_KEPT
        self._text = self._text[num_old:]
        self._base += num_old
        self._out -= num_old
        self._masks = [(begin - num_old, end - num_old) for begin, end in self._masks]
        for scanner in scanners:
            scanner.start -= num_old
