"""Keeps the text of clients from becoming control tokens.

If a client's string contains the text of a control token, a mark is inserted after its first
character. The template copies the marks; the rendered prompt is cut at them, and no token spans
a cut. A template may also form a control token from several strings or from a changed one. So
the prompt is rendered again with marks wherever a control token could begin, end or be joined:
if the two have different control tokens, the second one is used.

Control tokens of a single character cannot be split and are left as they are.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from worker.chat.template import MARK
from worker.vocabulary import Vocabulary

_BLANKS = " \t\r\n\f\v"


class InjectionGuard:
    """Splits and finds the control tokens of a vocabulary in texts. Immutable, so thread-safe."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._ids = {text: i for text, i in vocabulary.control_tokens.items() if len(text) > 1}
        self._all_ids = set(vocabulary.control_tokens.values())
        self._lengths: dict[str, list[int]] = {}
        """First two characters → lengths of the control texts with this begin, longest first."""
        for text in sorted(self._ids, key=len, reverse=True):
            lengths = self._lengths.setdefault(text[:2], [])
            if len(text) not in lengths:
                lengths.append(len(text))
        self._begins = _any_of(text[0] for text in self._ids)
        self._ends = _any_of(text[-1] for text in self._ids)
        self._tails = {text[i:] for text in self._ids for i in range(1, len(text))}
        self._longest = max(map(len, self._ids), default=0)
        self._joined = "\n".join(self._ids)

    def split_marks(self, text: str) -> str:
        """Put a mark into every control text in a client's string."""
        text = text.replace(MARK, "")
        # After the first character, so that overlapping control texts are all split.
        found = [start + 1 for start, _ in self._occurrences(text)]
        bounds = zip([0, *found], [*found, len(text)], strict=True)
        return MARK.join(text[start:end] for start, end in bounds)

    def fence_marks(self, text: str) -> str:
        """Put marks also where a control text could form if the string is joined or changed;
        none into a string that contains no part of one."""
        text = text.replace(MARK, "")
        core = text.strip(_BLANKS)
        if not core or not self._is_part(core):
            return text
        start = text.index(core)
        inside = self._begins.sub(rf"\g<0>{MARK}", core)
        inside = self._ends.sub(rf"{MARK}\g<0>", inside)
        return text[:start] + MARK + inside + MARK + text[start + len(core) :]

    def _is_part(self, core: str) -> bool:
        """Whether a text may contain the begin, the end or the middle of a control text."""
        if self._begins.search(core) is not None:
            return True
        lengths = range(1, min(len(core), self._longest) + 1)
        has_tail = self._ends.search(core) is not None
        return (has_tail and any(core[:length] in self._tails for length in lengths)) or (
            len(core) < self._longest and core in self._joined
        )

    def ids(self, text: str) -> list[int]:
        """The control tokens of a rendered prompt, in order."""
        return [token for piece in text.split(MARK) for token in self._split(piece, lambda _: [])]

    def tokenize(self, text: str) -> list[int]:
        """Turn a rendered prompt with marks into token ids. Raises EngineError.

        A tokenizer may normalise its input and so find control tokens that the text does not
        contain literally. Then it gets only the text between the literal ones.
        """
        vocabulary, tokens = self._vocabulary, list[int]()
        pieces = [piece for piece in text.split(MARK) if piece]
        for i, piece in enumerate(pieces):
            tokens += vocabulary.tokenize(piece, add_special=i == 0, parse_special=True)
        own = tokens[1:] if vocabulary.adds_bos else tokens
        if [token for token in own if token in self._all_ids] == self.ids(text):
            return tokens
        tokens = vocabulary.tokenize("", add_special=True, parse_special=False) if pieces else []
        for piece in pieces:
            tokens += self._split(piece, self._plain)
        return tokens

    def _plain(self, text: str) -> list[int]:
        return self._vocabulary.tokenize(text, add_special=False, parse_special=False)

    def _split(self, piece: str, between: Callable[[str], list[int]]) -> list[int]:
        """The control tokens of a piece, and the tokens of `between` for the other text."""
        tokens: list[int] = []
        done = 0
        for start, length in self._occurrences(piece):
            if start < done:
                continue
            if start > done:
                tokens += between(piece[done:start])
            done = start + length
            tokens.append(self._ids[piece[start:done]])
        return tokens + between(piece[done:]) if done < len(piece) else tokens

    def _occurrences(self, text: str) -> Iterator[tuple[int, int]]:
        """Start and length of the longest control text at each position; they may overlap."""
        for match in self._begins.finditer(text):
            start = match.start()
            for length in self._lengths.get(text[start : start + 2], ()):
                if text[start : start + length] in self._ids:
                    yield start, length
                    break


def map_texts(change: Callable[[str], str], value: Any) -> Any:
    """Change all strings of a JSON value, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): map_texts(change, item) for key, item in value.items()}
    if isinstance(value, list):
        return [map_texts(change, item) for item in value]
    return value


def _any_of(chars: Iterator[str]) -> re.Pattern[str]:
    """A pattern for any of the characters; without any, one that never matches."""
    escaped = "".join(sorted({re.escape(char) for char in chars}))
    return re.compile(f"[{escaped}]" if escaped else r"(?!)")
