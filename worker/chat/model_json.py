"""JSON as models write it, read while it arrives and passed on as strict JSON.

Valid JSON is passed on unchanged. A mistake that has one reading only is repaired:

    True, None, NaN, Infinity, undefined    true, null, null, null, null
    01, +5, .5, 5., 1_000, 0x1F             1, 5, 0.5, 5.0, 1000, 31
    'text', “text”, text, text"             "text"; a key likewise
    a raw line break or control character   its escape
    a backslash that begins no escape       an escaped backslash
    [1, 2,], [1,, 2]                        [1, 2], [1, 2]
    // …, # …, /* … */                      nothing

Anything else, such as a missing comma, colon or bracket, is a fault: no value is made up.
"""

import json
import re
from collections.abc import Callable
from typing import Any, Literal

from worker.chat.char_reader import BLANKS, Characters, CharReader

QUOTES = {'"': '"', "'": "'", "“": "”"}
"""Quote → the quote that ends its text."""
_CLOSING = {"{": "}", "[": "]"}
_TUPLE = {"(": "[", ")": "]"}
"""Bracket of Python's tuples → its JSON."""
_COMMENTS = {"#": "\n", "//": "\n", "/*": "*/"}
"""Begin of a comment → its end."""
_ESCAPES = frozenset('"\\/bfnrt')
_HEX = frozenset("0123456789abcdefABCDEF")
_BARE = frozenset("_-+./@% ")
"""Characters of text without quotes, beside letters and digits."""
_NULLS = ("null", "none", "undefined", "nan", "inf", "+inf", "-inf")
_WORDS = {
    "true": "true",
    "false": "false",
    **dict.fromkeys((*_NULLS, "infinity", "+infinity", "-infinity"), "null"),
}
"""Word in lower case → its JSON."""
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_LOOSE_NUMBER = re.compile(r"([-+]?)([0-9][0-9_]*)?(?:(\.)([0-9]*))?([eE][-+]?[0-9]+)?")
_HEX_NUMBER = re.compile(r"[-+]?0[xX][0-9a-fA-F]{1,16}")


class JsonReader:
    """Reads one value from `source`. Use it once."""

    def __init__(
        self, source: Characters, emit: Callable[[str], None], *, has_tuples: bool = False
    ) -> None:
        """`emit` gets pieces of JSON: what it has got is the begin of valid JSON at any time.
        `has_tuples`: Python's tuples are read as lists."""
        self._source = source
        self._closing = {**_CLOSING, "(": ")"} if has_tuples else _CLOSING
        self._emit = emit
        self._open: list[str] = []
        """The brackets that close what is open."""
        self._next: Literal["value", "item", "key", "colon", "separator", "nothing"] = "value"
        """What the next characters have to be. An item or a key may also be missing."""
        self._held: list[str] = []
        """Blanks, perhaps with a comma, that were read and wait for what follows."""

    def read(self) -> CharReader[bool]:
        """Read the value. False: the text has ended, or a fault is the next to be read."""
        while self._next != "nothing":
            char = yield from read_visible(self._source, self._held.append)
            if not char:
                return False
            if self._is_punctuation(char):
                continue
            if self._next in ("colon", "separator"):
                self._source.put_back(char)
                return False
            read = self._text if char in QUOTES else self._bare
            if not (yield from read(char)):
                return False
            self._next = "colon" if self._next == "key" else self._behind_value()
        return True

    def flush(self) -> None:
        """Pass on what waits for more."""
        self._pass("")

    def close(self) -> bool:
        """Close the open brackets, where nothing but them is missing."""
        if self._next not in ("item", "key", "separator"):
            return False
        self._held.clear()
        self._pass("".join(reversed(self._open)))
        return True

    def _is_punctuation(self, char: str) -> bool:
        """Take the character if it is punctuation that may stand here."""
        may_begin = self._next in ("value", "item")
        may_close = self._next in ("item", "key", "separator")
        if may_begin and char in self._closing:
            self._open.append(self._closing[char])
            self._pass(_TUPLE.get(char, char))
            self._next = "key" if char == "{" else "item"
        elif may_close and char == self._open[-1]:
            self._open.pop()
            self._held = [blank for blank in self._held if blank != ","]
            self._pass(_TUPLE.get(char, char))
            self._next = self._behind_value()
        elif may_close and char == ",":
            if self._next == "separator":
                self._held.append(char)
            self._next = "key" if self._open[-1] == "}" else "item"
        elif self._next == "colon" and char == ":":
            self._pass(char)
            self._next = "value"
        else:
            return False
        return True

    def _behind_value(self) -> Literal["separator", "nothing"]:
        return "separator" if self._open else "nothing"

    def _pass(self, text: str) -> None:
        self._emit("".join(self._held) + text)
        self._held.clear()

    # -- text and words ----------------------------------------------------------------------

    def _text(self, quote: str) -> CharReader[bool]:
        self._pass('"')
        while char := (yield from self._source.next()):
            if char == QUOTES[quote]:
                self._emit('"')
                return True
            if char == "\\":
                self._emit((yield from self._escape(QUOTES[quote])))
            else:
                self._emit(_escaped(char) if char == '"' or char < " " else char)
        return False

    def _escape(self, quote: str) -> CharReader[str]:
        """Read what follows a backslash; return the JSON of both, "" if the text ends here."""
        char = yield from self._source.next()
        if not char or char in _ESCAPES:
            return char and "\\" + char
        if char == quote:
            return char
        digits = ""
        if char == "u":
            while len(digits) < 4 and (char := (yield from self._source.next())) in _HEX:
                digits += char
            if len(digits) == 4 or not char:
                return char and "\\u" + digits
            digits = "u" + digits
        self._source.put_back(char)
        return "\\\\" + digits

    def _bare(self, first: str) -> CharReader[bool]:
        """Read a word, a number, or text that lacks its first quote or both."""
        text, char = "", first
        while (char.isalnum() or char in _BARE) and not (char == "/" and text.endswith(" ")):
            text += char
            char = yield from self._source.next()
        value = text.rstrip(" ")
        may_go_on = not char and (self._open or self._source.is_cut)
        if may_go_on or not any(map(str.isalnum, value)):
            self._source.put_back(text + char)
            return False
        is_text = self._next == "key"
        if char == '"' and value == text:
            is_text = True
        else:
            self._source.put_back(char)
        self._pass(json.dumps(value, ensure_ascii=False) if is_text else _scalar(value))
        self._held.append(text[len(value) :])
        return True


def read_visible(source: Characters, hold: Callable[[str], None]) -> CharReader[str]:
    """Take the next character that is neither blank nor in a comment. `hold` gets the blanks."""
    while char := (yield from source.next()):
        comment = char
        if char == "/":
            second = yield from source.next()
            comment += second
            if comment not in _COMMENTS:
                source.put_back(second)
        if comment in _COMMENTS:
            mark = yield from source.until(lambda _: None, _COMMENTS[comment])
            hold("\n" if mark == "\n" else "")
        elif char.isspace():
            hold(char if char in BLANKS else " ")
        else:
            break
    return char


def read_json(
    source: Characters, emit: Callable[[str], None], ends: tuple[str, ...] = ()
) -> CharReader[bool]:
    """Read one value. What follows a fault is passed on as it is, up to one of the marks `ends`;
    directly in front of one, open brackets are closed. False: what was passed on is no JSON."""
    reader = JsonReader(source, emit)
    if (yield from reader.read()):
        return True
    for end in ends:
        if (yield from source.skip(end)):
            source.put_back(end)
            if reader.close():
                return True
    reader.flush()
    source.put_back((yield from source.until(emit, *ends)))
    return False


def repaired(text: str, *, has_tuples: bool = False) -> str:
    """The strict JSON of a whole text. It is no JSON if the text has a fault."""
    pieces: list[str] = []
    run = _read_all(Characters.of(text), pieces.append, has_tuples)
    try:
        next(run)
    except StopIteration:
        return "".join(pieces)
    raise AssertionError("a reader of a whole text does not wait")


def _read_all(
    source: Characters, emit: Callable[[str], None], has_tuples: bool
) -> CharReader[None]:
    reader = JsonReader(source, emit, has_tuples=has_tuples)
    if not (yield from reader.read()):
        if has_tuples:  # "]" behind the fault would close what "(" has opened
            return
        reader.flush()
    yield from source.skip_all("}")
    yield from source.until(emit)


def strict_json(text: str) -> tuple[Any] | None:
    """The value of strict JSON, in a tuple; None if the text is something else."""
    try:
        return (json.loads(text, parse_constant=_refuse),)
    except (ValueError, RecursionError):
        return None


def is_json_object(text: str) -> bool:
    """Whether it is strict JSON of an object."""
    found = strict_json(text)
    return found is not None and isinstance(found[0], dict)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _escaped(char: str) -> str:
    return json.dumps(char)[1:-1]


def _scalar(text: str) -> str:
    """The JSON of a value without quotes."""
    if _NUMBER.fullmatch(text):
        return text
    word = _WORDS.get(text.lower())
    if word is not None:
        return word
    if _HEX_NUMBER.fullmatch(text):
        return str(int(text, 16))
    found = _LOOSE_NUMBER.fullmatch(text)
    if found is None or not (found[2] or found[4]):
        return json.dumps(text, ensure_ascii=False)
    sign, whole, fraction = found[1].strip("+"), (found[2] or "").replace("_", ""), found[4] or "0"
    point = f".{fraction}" if found[3] else ""
    return f"{sign}{whole.lstrip('0') or '0'}{point}{found[5] or ''}"
