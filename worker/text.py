"""From token bytes to text that can be shown: whole characters, no part of a stop string."""

import codecs

from shared.denylist import OutputRules
from shared.messages import Filtered, FilterMatch, FinishReason
from worker.text_filter import TextFilter


class TextAssembler:
    """Turns the bytes of one sequence's tokens into text.

    Holds back what may still change: bytes of an unfinished UTF-8 character, and the longest
    tail that a stop string could begin with. However the text is cut into tokens, the pieces
    returned by `push` and `finish` add up to the same text: of several stop strings the one
    that is complete first counts, wherever it began. What the denylist lets through of that is
    the text.
    """

    def __init__(
        self,
        stop: list[str],
        *,
        strip_leading_space: bool = False,
        rules: OutputRules | None = None,
    ) -> None:
        self._strip = strip_leading_space
        self.num_stripped = 0
        """Characters that were left off at the beginning."""
        self._filter = TextFilter(rules) if rules is not None else None
        self._carried = ""
        """Text that comes with the next piece."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = [s for s in stop if s]
        self._held = ""
        self.is_stopped = False
        """A stop string was met, or the denylist ends the text: it is complete, `push` must not
        be called any more."""

    @property
    def reason(self) -> FinishReason:
        """Why the text is stopped."""
        is_cut = self._filter is not None and self._filter.is_cut
        return FinishReason.CONTENT_FILTER if is_cut else FinishReason.STOP

    @property
    def seen(self) -> int | None:
        """See `Filtered.seen`; None = there is no denylist."""
        return None if self._filter is None else self._filter.seen + self.num_stripped

    def push(self, piece: bytes) -> str:
        """Add one token's bytes and return the text that is now certain."""
        text = self._release(self._decoder.decode(piece))
        return text if self._filter is None else self._filtered(self._filter, text)

    def finish(self) -> str:
        """Return what was held back. An unfinished character becomes U+FFFD."""
        if self.is_stopped:
            return ""
        text = self._release(self._decoder.decode(b"", True))
        text, self._held = text + self._held, ""
        if self._filter is None:
            return text
        return self._filtered(self._filter, text, is_last=True)

    def filter_behind(self, rules: OutputRules, before: str, text: str) -> None:
        """Filter from now on: `before` is out, and `text` is not, although it was pushed."""
        self._filter = TextFilter(rules, before)
        self._carried = self._filter.push(text)

    def report(self) -> Filtered | None:
        """What the denylist has done since the last time; None = there is none."""
        if self._filter is None:
            return None
        found, shift = self._filter.take(), self.num_stripped
        matches = [
            FilterMatch(match.rule, match.action, match.begin + shift, match.end + shift)
            for match in found.matches
        ]
        return Filtered(found.seen + shift, matches)

    def _filtered(self, text_filter: TextFilter, text: str, *, is_last: bool = False) -> str:
        shown, self._carried = self._carried, ""
        if not text_filter.is_cut:
            shown += text_filter.push(text)
        if self.is_stopped or is_last:
            shown += text_filter.finish()
        self.is_stopped = self.is_stopped or text_filter.is_cut
        return shown

    def _release(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            self.num_stripped = int(text.startswith(" "))
            text = text.removeprefix(" ")
        if not self._stop:
            return text
        text = self._held + text
        found = [(text.find(s) + len(s), text.find(s)) for s in self._stop if s in text]
        if found:
            self.is_stopped = True
            self._held = ""
            return text[: min(found)[1]]
        held = max(_overlap(text, s) for s in self._stop)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that ends `text`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
