"""Readers of generated text: generators that receive one character at a time.

A reader cannot see how its text was cut into pieces, so its result cannot depend on the cuts.
In a reader `yield` returns the next character; the empty string is the end of the text.
"""

from collections.abc import Callable, Generator
from typing import TypeVar

_Result = TypeVar("_Result")
CharReader = Generator[None, str, _Result]

BLANKS = " \t\r\n"


class Characters:
    """The text as readers see it: a stream into which characters can be put back."""

    def __init__(self) -> None:
        self._back: list[str] = []
        """Characters that were put back, the next one last."""
        self._num_taken = 0
        self.num_reread = 0
        """Characters that are read again after a look ahead; see `may_look_ahead`."""
        self._has_ended = False
        self._taken: list[str] | None = None
        """Characters since `record`; None = they are not recorded."""
        self.num_decided = 0
        """Characters from the beginning that are content already, or cannot become content."""
        self.is_cut = False
        """The text has ended, but not where the model ended it. Set before the end is read."""

    @property
    def is_over(self) -> bool:
        """Whether the end of the text was reached and nothing was put back."""
        return self._has_ended and not self._back

    @property
    def position(self) -> int:
        """Of the next character, counted from the beginning of the text."""
        return self._num_taken - len(self._back)

    @property
    def may_look_ahead(self) -> bool:
        """Whether not too much is read again, so that reading stays linear."""
        return self.num_reread <= 16 * self._num_taken + 4096

    def next(self) -> CharReader[str]:
        """Return the next character; "" at the end of the text, also on later calls."""
        if self._back:
            char = self._back.pop()
        elif self._has_ended:
            return ""
        else:
            char = yield
            self._num_taken += len(char)
            self._has_ended = not char
        if char and self._taken is not None:
            self._taken.append(char)
        return char

    def put_back(self, text: str) -> None:
        """Let `next` return these characters first."""
        self._back.extend(reversed(text))
        if text and self._taken is not None:
            del self._taken[-len(text) :]

    def record(self) -> None:
        """Remember what `next` returns from now on, and forget what it has returned before."""
        self._taken = []

    def rewind(self) -> None:
        """Put back what was recorded, and end the recording."""
        taken = self._taken or []
        self.num_reread += len(taken)
        self.forget()
        self.put_back("".join(taken))

    def restart(self) -> None:
        """Count positions from the next character on."""
        self._num_taken -= self.position
        self.num_decided = 0

    def forget(self) -> None:
        """End the recording."""
        self._taken = None

    @classmethod
    def of(cls, text: str) -> "Characters":
        """A text that is there as a whole: its readers never yield."""
        source = cls()
        source._has_ended = True
        source.put_back(text)
        return source

    def until(self, say: Callable[[str], None], *marks: str) -> CharReader[str]:
        """Pass characters to `say` up to one of the marks; drop the mark and return it, or ""
        at the end of the text. No mark may be a prefix of another one. When `say` is called, the
        next character is the one behind what it gets."""
        begins = {mark[0] for mark in marks}
        held = ""
        while char := (yield from self.next()):
            if not held and char not in begins:
                say(char)
                continue
            held += char
            if held in marks:
                return held
            # Invariant: `held` is a proper prefix of a mark. What cannot begin one is passed on.
            if not any(mark.startswith(held) for mark in marks):
                self.put_back(held[1:])
                say(held[0])
                held = ""
        if held:
            say(held)
        return ""

    def skip(self, mark: str, *, is_end: bool = False) -> CharReader[str]:
        """Take and return blanks and the mark behind them. Put anything else back and return "".
        With `is_end`, a mark that the end of the text cuts short counts as whole."""
        taken = blanks = yield from self.blanks()
        while taken != blanks + mark:
            char = yield from self.next()
            taken += char
            if not char and is_end and taken != blanks:
                return taken
            if not char or not (blanks + mark).startswith(taken):
                self.put_back(taken)
                return ""
        return taken

    def skip_all(self, marks: str) -> CharReader[str]:
        """Drop those of the one-character marks that come next, and the blanks before each. Return
        the marks."""
        dropped = ""
        while True:
            blanks = yield from self.blanks()
            char = yield from self.next()
            if not char or char not in marks:
                self.put_back(blanks + char)
                return dropped
            dropped += char

    def drop(self, num_chars: int) -> CharReader[None]:
        """Take characters that were put back."""
        for _ in range(num_chars):
            yield from self.next()

    def blanks(self) -> CharReader[str]:
        """Take and return the blanks that come next."""
        taken = ""
        while (char := (yield from self.next())) and char in BLANKS:
            taken += char
        self.put_back(char)
        return taken


class TrimmedText:
    """Collects text without blanks at its edges; inner blanks are held until text follows."""

    def __init__(self, source: Characters, *, is_trimming: bool = False) -> None:
        """`source`: where the text is read. `is_trimming`: drop blanks at the start, too."""
        self._source = source
        self.is_trimming = is_trimming
        """Blanks are dropped: no text has come since `trim`."""
        self.holds_blanks = True
        """False = `trim` does not come any more: blanks are as certain as other text."""
        self.places: list[int] = []
        """Where each character of what `take` returns stood in the source."""
        self._blanks = ""
        self._blank_places: list[int] = []
        """Where each of the held blanks stood; none for a line break in place of trimmed ones."""
        self._taken: list[str] = []
        self._is_empty = True

    def say(self, text: str) -> None:
        """Add text that was read just now."""
        for place, char in enumerate(text, self._source.position - len(text)):
            if char in BLANKS and (self.is_trimming or self.holds_blanks):
                if not self.is_trimming:
                    self._blanks += char
                    self._blank_places.append(place)
                continue
            if self._blanks:
                self._add_blanks(place)
            self._taken.append(char)
            self.places.append(place)
            self._source.num_decided = place + 1
            self.is_trimming = self._is_empty = False

    def trim(self) -> None:
        """Drop the held blanks and those that come next. Text after earlier text begins a line."""
        self._blanks = "" if self._is_empty else "\n"
        self._blank_places.clear()
        self.is_trimming = True
        self.decide()

    def decide(self) -> None:
        """What was read up to here is no content."""
        self._source.num_decided = self._source.position

    def flush(self) -> None:
        """End the text: blanks at its end are kept, unless they were to be trimmed."""
        if not self.is_trimming:
            self._add_blanks(self._source.position)
        self._blanks = ""
        self._blank_places.clear()

    def take(self) -> str:
        """Return the text that has become certain since the last call."""
        text = "".join(self._taken)
        self._taken.clear()
        self.places = []
        return text

    def _add_blanks(self, end: int) -> None:
        """Add the held blanks, which stood before `end`. A line break that stands for what was
        trimmed has the place of the text behind it."""
        self._taken.append(self._blanks)
        self.places += self._blank_places or [end] * len(self._blanks)
        self._blanks = ""
        self._blank_places.clear()
