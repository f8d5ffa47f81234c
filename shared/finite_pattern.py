"""The texts in which a pattern is found, where they can be counted."""

import itertools
import re
import string
from collections.abc import Iterable, Set
from re import _constants as kinds  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

_MAX_REPEATS = 64
_MOST_CHARS = 4096
_CHARS_OF_NAME = 16
"""What may be put together for a schema: `_MOST_CHARS`, and so many for each character of its names
and patterns."""
_BEGIN, _END = "\ue000", "\ue001"
"""Stand for the anchors in a text."""
_REPEATED = re.compile(f"([{_BEGIN}{_END}])\\1+")
_ANCHORS = {
    kinds.AT_BEGINNING: _BEGIN,
    kinds.AT_BEGINNING_STRING: _BEGIN,
    kinds.AT_END: _END,
    kinds.AT_END_STRING: _END,
}
_DOT = re.DOTALL
"""A flag that matters to `.` only, which is never counted."""
_NAMED_GROUP = re.compile(r"(?<!\\)\(\?P?<\w+>")
_END_OF_TEXT = re.compile(r"(?<!\\)((?:\\\\)*)\\z")
"""As other languages write `\\Z`."""
_CLASSES = {
    kinds.CATEGORY_DIGIT: string.digits,
    kinds.CATEGORY_WORD: string.ascii_letters + string.digits + "_",
}


class FinitePatterns:
    """The texts in which the patterns of a schema are found, where they can be counted. Takes time
    and memory in proportion to the names and to the patterns, all together."""

    def __init__(self, names: Set[str]) -> None:
        self._names, self._texts = names, _Texts(names)

    def texts_of(self, pattern: str) -> set[str] | None:
        """None: some are not among the names, or it is not certain which they are."""
        self._texts.allow(len(pattern))
        try:
            plain = _NAMED_GROUP.sub(_plain_group, _END_OF_TEXT.sub(r"\1$", pattern))
            parsed = parser.parse(plain)
            found = self._texts.of_sequence(parsed)
        except (re.error, _Unknown, RecursionError, OverflowError):
            return None
        # Anchors may be repeated.
        found = {_REPEATED.sub(r"\1", text) for text in found}
        inner = {text[1:-1] for text in found if len(text) > 1}
        is_whole = all(text[:1] == _BEGIN and text[-1:] == _END for text in found)
        has_more = any(mark in text for text in inner for mark in (_BEGIN, _END))
        is_certain = is_whole and len(inner) == len(found) and not has_more and inner <= self._names
        return inner if is_certain and parsed.state.flags & ~_DOT == re.UNICODE else None


def _plain_group(found: re.Match[str]) -> str:
    """A group without its name; in a class of characters, the characters."""
    text, end = found.string, found.start()
    return found[0] if text.rfind("[", 0, end) > text.rfind("]", 0, end) else "("


class _Unknown(Exception):
    pass


class _Texts:
    """Of the parts of a parsed pattern, with marks for the anchors."""

    def __init__(self, names: Set[str]) -> None:
        self._limit = len(names)
        self._chars_left = _MOST_CHARS + _CHARS_OF_NAME * sum(map(len, names))

    def allow(self, num_chars: int) -> None:
        """A pattern of so many characters comes next."""
        self._chars_left = max(0, self._chars_left) + _CHARS_OF_NAME * num_chars

    def of_sequence(self, items: Any) -> set[str]:
        texts = {""}
        for is_literal, run in itertools.groupby(items, lambda item: item[0] is kinds.LITERAL):
            if is_literal:
                texts = self._joined(texts, {"".join(chr(value) for _, value in run)})
                continue
            for item in run:
                texts = self._joined(texts, self._of(*item))
        return texts

    def _joined(self, firsts: set[str], seconds: set[str]) -> set[str]:
        if len(firsts) * len(seconds) > self._limit:
            raise _Unknown
        self._take(len(firsts) * _size(seconds) + len(seconds) * _size(firsts))
        return {first + second for first in firsts for second in seconds}

    def _take(self, num_chars: int) -> None:
        self._chars_left -= num_chars
        if self._chars_left < 0:
            raise _Unknown

    def _of(self, kind: Any, value: Any) -> set[str]:
        if kind is kinds.LITERAL:
            return {chr(value)}
        if kind is kinds.RANGE and value[1] - value[0] < self._limit:
            return {chr(code) for code in range(value[0], value[1] + 1)}
        if kind is kinds.CATEGORY and value in _CLASSES:
            return set(_CLASSES[value])
        if kind is kinds.AT and value in _ANCHORS:
            return {_ANCHORS[value]}
        if kind is kinds.IN:
            return self._any_of(self._of(*member) for member in value)
        if kind is kinds.SUBPATTERN and not (value[1] & ~_DOT or value[2]):
            return self.of_sequence(value[3])
        if kind is kinds.BRANCH:
            return self._any_of(map(self.of_sequence, value[1]))
        if kind in (kinds.MAX_REPEAT, kinds.MIN_REPEAT) and value[1] <= _MAX_REPEATS:
            return self._repeated(self.of_sequence(value[2]), value[0], int(value[1]))
        raise _Unknown

    def _any_of(self, parts: Iterable[set[str]]) -> set[str]:
        found: set[str] = set()
        for texts in parts:
            self._take(_size(texts))
            found |= texts
        return found

    def _repeated(self, texts: set[str], least: int, most: int) -> set[str]:
        found: set[str] = set()
        several = {""}
        for number in range(most + 1):
            found |= several if number >= least else set()
            several = self._joined(several, texts) if number < most else several
        return found


def _size(texts: set[str]) -> int:
    """Characters, and one more for each text: an empty one takes time, too."""
    return len(texts) + sum(map(len, texts))
