"""Converts token bytes to final text: whole characters, nothing from a stop string on."""

import codecs
from collections.abc import Sequence

from shared.denylist.denylist import OutputRules
from shared.wire.events import Filtered, FilterMatch, FinishReason
from worker.text.content import ContentReader, StopSearch
from worker.text.filter import TextFilter
from worker.text_parts import TextParser


class TextAssembler:
    """Assembles the text of one sequence from the bytes of its tokens.

    Holds back what may still change: bytes of an unfinished UTF-8 character, what may be the
    beginning of a stop string, and what may be content or not, if stop strings are looked for in
    it. The pieces returned by `push` and `finish` add up to the same text for every split into
    tokens: see `StopSearch`. The denylist filters the result.
    """

    def __init__(
        self,
        stop: list[str],
        *,
        strip_leading_space: bool = False,
        rules: OutputRules | None = None,
        parser: TextParser | None = None,
        reports: bool = False,
    ) -> None:
        """`parser`: tells the content, in which stop strings count; None = all text is content.
        `reports`: report how much is released even if there is no denylist."""
        self._strip = strip_leading_space
        self.num_stripped = 0
        """Characters stripped from the start."""
        self._filter = TextFilter(rules) if rules is not None else None
        self._carried = ""
        """Filtered text that the next `push` or `finish` returns."""
        self._undecoded = b""
        """Bytes of an unfinished character."""
        self._reader = ContentReader(parser) if parser is not None else None
        self._search = StopSearch(wanted) if (wanted := [s for s in stop if s]) else None
        self._only_decodes = rules is None and parser is None and self._search is None
        self._only_decodes &= not reports
        self._reports = reports
        self._num_read = self._num_released = 0
        """Characters without the stripped one, if there are stop strings."""
        self._held = ""
        """Those that are read and not released."""
        self.is_stopped = False
        """The text is complete, by a stop string or the denylist. `push` must not follow."""

    @property
    def reason(self) -> FinishReason:
        """Why the text is stopped."""
        is_cut = self._filter is not None and self._filter.is_cut
        return FinishReason.CONTENT_FILTER if is_cut else FinishReason.STOP

    @property
    def seen(self) -> int | None:
        """See `Filtered.seen`; None = nothing is reported."""
        if self._filter is not None:
            return self._filter.seen + self.num_stripped
        return self._num_released + self.num_stripped if self._reports else None

    @property
    def reasoning_tokens(self) -> int | None:
        """See `ContentReader`. None = they are not counted."""
        return self._reader.reasoning_tokens if self._reader is not None else None

    def push(self, piece: bytes, name: str = "") -> str:
        """Add one token's bytes and return the text that is now final. `name`: what a token is
        called that adds no text, if a stop string contains it."""
        text = self._release(self.decode(piece))
        if name and self._search is not None and not self.is_stopped:
            stop_at = self._search.find(name, [self._num_read] * len(name))
            text += "" if stop_at is None else self._stop(stop_at)
        return text if self._filter is None else self._filtered(self._filter, text)

    @property
    def only_decodes(self) -> bool:
        """Whether `push` does no more than `decode` from now on."""
        return self._only_decodes and not self._strip

    def decode(self, piece: bytes, *, is_last: bool = False) -> str:
        """Decode the bytes that complete characters. Bytes that are not UTF-8 become U+FFFD."""
        piece = self._undecoded + piece
        text, num_decoded = codecs.utf_8_decode(piece, "replace", is_last)
        self._undecoded = piece[num_decoded:]
        return text

    def finish(self, *, is_cut: bool = False) -> str:
        """Return the text held back. An unfinished character becomes U+FFFD. `is_cut`: the model
        has not ended the text."""
        if self.is_stopped:
            return ""
        text = self._release(self.decode(b"", is_last=True), is_last=True, is_cut=is_cut)
        if self._filter is None:
            return text
        return self._filtered(self._filter, text, is_last=True)

    def filter_behind(self, rules: OutputRules, before: str, text: str) -> None:
        """Filter from now on: `before` has been sent; `text` was pushed but not sent."""
        self._filter = TextFilter(rules, before)
        self._only_decodes = False
        self._carried = self._filter.push(text)

    def report(self) -> Filtered | None:
        """What the denylist did since the last call; None = nothing is reported."""
        if self._filter is None:
            return None if self.seen is None else Filtered(self.seen)
        found, shift = self._filter.report(), self.num_stripped
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

    def _release(self, text: str, *, is_last: bool = False, is_cut: bool = False) -> str:
        if self._strip and text:
            self._strip = False
            self.num_stripped = int(text.startswith(" "))
            text = text.removeprefix(" ")
        if self._search is None:
            if self._reader is not None and self._reader.reads_reasoning:
                self._reader.read(text, is_last=is_last, is_cut=is_cut)
            return text
        begin, self._num_read = self._num_read, self._num_read + len(text)
        content, num_decided = text, self._num_read
        places: Sequence[int] = range(begin, num_decided)
        if self._reader is not None:
            content, places = self._reader.read(text, is_last=is_last, is_cut=is_cut)
            num_decided = self._reader.num_decided
        self._held += text
        stop_at = self._search.find(content, places)
        if stop_at is not None:
            return self._stop(stop_at)
        open_from = self._num_read if is_last else self._search.open_from(num_decided)
        return self._let_through(open_from)

    def _stop(self, place: int) -> str:
        text, self._held = self._let_through(place), ""
        self.is_stopped = True
        return text

    def _let_through(self, end: int) -> str:
        """Release the text before a place, as far as it is not released yet."""
        length = max(0, end - (self._num_read - len(self._held)))
        text, self._held = self._held[:length], self._held[length:]
        self._num_released += len(text)
        return text
