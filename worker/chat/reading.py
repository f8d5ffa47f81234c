"""Reading generated text as it arrives: generators that ask for one character after the other.

A generator cannot see how its text was cut into pieces, so what it makes of it cannot depend
on that. Inside a reader `yield` stands for "the next character, please"; an empty string is
the end of the text.
"""

from collections.abc import Callable, Generator
from typing import TypeVar

_Result = TypeVar("_Result")
Reading = Generator[None, str, _Result]

BLANKS = " \t\r\n"


class Characters:
    """The text from the reader's side: characters may be put back."""

    def __init__(self) -> None:
        self._back: list[str] = []
        """Last in, first out."""
        self._has_ended = False

    @property
    def is_over(self) -> bool:
        """A reader has met the end of the text, and nothing was put back."""
        return self._has_ended and not self._back

    def next(self) -> Reading[str]:
        """Return the next character; "" at the end of the text, however often it is asked."""
        if self._back:
            return self._back.pop()
        if self._has_ended:
            return ""
        char = yield
        self._has_ended = not char
        return char

    def put_back(self, text: str) -> None:
        """Let `next` return these characters first."""
        self._back.extend(reversed(text))

    def until(self, say: Callable[[str], None], *marks: str) -> Reading[str]:
        """Pass characters on to `say` up to one of the marks, which is dropped and returned.
        "" = the text is over. No mark begins with another one."""
        begins = {mark[0] for mark in marks}
        held = ""
        while char := (yield from self.next()):
            if not held and char not in begins:
                say(char)
                continue
            held += char
            if held in marks:
                return held
            while not any(mark.startswith(held) for mark in marks):
                say(held[0])
                held = held[1:]
        if held:
            say(held)
        return ""

    def skip(self, mark: str, *, is_end: bool = False) -> Reading[bool]:
        """Drop blanks and a mark behind them. Anything else is put back, and False returned;
        with `is_end` a mark that the end of the text cuts short counts."""
        taken = blanks = yield from self.blanks()
        while taken != blanks + mark:
            char = yield from self.next()
            taken += char
            if not char and is_end and taken != blanks:
                return True
            if not char or not (blanks + mark).startswith(taken):
                self.put_back(taken)
                return False
        return True

    def blanks(self) -> Reading[str]:
        """Take the blanks that come next."""
        taken = ""
        while (char := (yield from self.next())) and char in BLANKS:
            taken += char
        self.put_back(char)
        return taken


class TrimmedText:
    """Collects text without blanks at its edges; blanks inside wait for what follows them."""

    def __init__(self, *, is_trimming: bool = False) -> None:
        """`is_trimming`: drop the blanks at the start, too."""
        self._is_trimming = is_trimming
        self._blanks = ""
        self._taken: list[str] = []
        self._is_empty = True

    def say(self, text: str) -> None:
        """Add text."""
        for char in text:
            if char not in BLANKS:
                self._taken.append(self._blanks + char)
                self._blanks, self._is_trimming, self._is_empty = "", False, False
            elif not self._is_trimming:
                self._blanks += char

    def trim(self) -> None:
        """Drop the blanks that wait, and those that come next. What follows text that was
        there before begins a line."""
        self._blanks = "" if self._is_empty else "\n"
        self._is_trimming = True

    def flush(self) -> None:
        """The text is over: blanks at its end belong to it, unless they were to be trimmed."""
        if not self._is_trimming:
            self._taken.append(self._blanks)
        self._blanks = ""

    def take(self) -> str:
        """Return what is certain since the last time."""
        text = "".join(self._taken)
        self._taken.clear()
        return text
