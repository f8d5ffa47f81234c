"""The part of a sequence's text that its client reads as the answer, and stop strings in it."""

import logging
from collections.abc import Sequence
from itertools import pairwise

from worker.text_parts import Parts, TextParser

_log = logging.getLogger(__name__)


def split(parser: TextParser, text: str, *, is_last: bool, is_cut: bool = False) -> Parts | None:
    """Push text to a parser, with `is_last` the end of the text; `is_cut` as in its `finish`. None:
    the parser has failed."""
    try:
        parts = parser.push(text)
        return parts + parser.finish(is_cut=is_cut) if is_last else parts
    except Exception:  # an error in one text must not stop the others
        _log.exception("output parser failed", extra={"request_id": parser.job_id})
        return None


class ContentReader:
    """Tells content from reasoning, calls and marks in a growing text, and counts the tokens of the
    reasoning. It reads the text that the denylist has not changed."""

    def __init__(self, parser: TextParser) -> None:
        self._parser: TextParser | None = parser
        self._num_read = 0
        self._num_undecided = 0
        """Tokens since the last one that has added to a part."""
        self.reasoning_tokens = 0 if parser.reads_reasoning else None
        """Up to the last one that has added to the reasoning, with the marks before it; None = the
        model writes no reasoning."""

    @property
    def num_decided(self) -> int:
        """Characters from the beginning whose part does not depend on what follows."""
        return self._num_read if self._parser is None else self._parser.num_decided

    @property
    def reads_reasoning(self) -> bool:
        """Whether later text can add to `reasoning_tokens`."""
        return self._parser is not None and self._parser.reads_reasoning

    def read(
        self, text: str, *, is_last: bool = False, is_cut: bool = False
    ) -> tuple[str, Sequence[int]]:
        """Read the text of a token, or with `is_last` the end of the text. Returns the content that
        is certain now, and where each of its characters stands in the text."""
        begin, self._num_read = self._num_read, self._num_read + len(text)
        parts = None
        if self._parser is not None:
            parts = split(self._parser, text, is_last=is_last, is_cut=is_cut)
        if parts is None:  # all text is content from now on
            self._parser = None
            parts = Parts(text, places=list(range(begin, self._num_read)))
        self._num_undecided += not is_last
        if parts.reasoning and self.reasoning_tokens is not None:
            self.reasoning_tokens += self._num_undecided
        if parts.reasoning or parts.content or parts.tool_calls:
            self._num_undecided = 0
        return parts.content, parts.places


class StopSearch:
    """Finds the stop string that is complete first, wherever it began. One lies within a stretch of
    content: what stands between two stretches, such as a call, ends the search in the first."""

    def __init__(self, stop: list[str]) -> None:
        self._stop = stop
        self._tail = ""
        """The longest end of the content that is the beginning of a stop string."""
        self._places: Sequence[int] = []
        """Where its characters stand in the text."""

    def find(self, content: str, places: Sequence[int]) -> int | None:
        """Add content. Returns the place of the stop string; nothing may be added then."""
        for begin, end in _stretches(places):
            self._forget(places[begin])
            text, at = content[begin:end], places[begin:end]
            if self._tail:
                text, at = self._tail + text, [*self._places, *at]
            # (end, begin) of each: the smallest end is the one that is complete first.
            found = [(text.find(s) + len(s), text.find(s)) for s in self._stop if s in text]
            if found:
                return at[min(found)[1]]
            held = len(text) - max(_overlap(text, s) for s in self._stop)
            self._tail, self._places = text[held:], at[held:]
        return None

    def open_from(self, num_decided: int) -> int:
        """The place from which a stop string may begin, if `num_decided` characters are decided."""
        self._forget(num_decided)
        return min(num_decided, self._places[0]) if self._tail else num_decided

    def _forget(self, place: int) -> None:
        """Forget content that does not reach to the place."""
        if self._tail and self._places[-1] + 1 < place:
            self._tail, self._places = "", []


def _stretches(places: Sequence[int]) -> list[tuple[int, int]]:
    """Begin and end of the parts without a gap. Places do not fall."""
    if not places:
        return []
    begins = [0]
    if places[-1] - places[0] >= len(places):
        begins += [at for at in range(1, len(places)) if places[at] > places[at - 1] + 1]
    return list(pairwise([*begins, len(places)]))


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that ends `text`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
