"""From token bytes to text that can be shown: whole characters, no part of a stop string."""

import codecs


class TextAssembler:
    """Turns the bytes of one sequence's tokens into text.

    Holds back what may still change: bytes of an unfinished UTF-8 character, and the longest
    tail that a stop string could begin with. However the text is cut into tokens, the pieces
    returned by `push` and `finish` add up to the same text: of several stop strings the one
    that is complete first counts, wherever it began.
    """

    def __init__(self, stop: list[str], *, strip_leading_space: bool = False) -> None:
        self._strip = strip_leading_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = [s for s in stop if s]
        self._held = ""
        self.is_stopped = False
        """A stop string was met: the text is complete, `push` must not be called any more."""

    def push(self, piece: bytes) -> str:
        """Add one token's bytes and return the text that is now certain."""
        return self._release(self._decoder.decode(piece))

    def finish(self) -> str:
        """Return what was held back. An unfinished character becomes U+FFFD."""
        if self.is_stopped:
            return ""
        text = self._release(self._decoder.decode(b"", True))
        text, self._held = text + self._held, ""
        return text

    def _release(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
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
