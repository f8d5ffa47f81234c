"""Reads one tool call, a JSON object, while it arrives.

`{"name": …, "arguments": {…}}` in any order of its members, which may be more. Until it is
certain that there is a call, what was read is kept and can be given back; from then on the
arguments are passed on character by character, as the model writes them.
"""

import json
import string
from collections.abc import Callable
from typing import Protocol

from worker.chat.reading import BLANKS, Characters, Reading

_ARGUMENTS = ("arguments", "parameters")
_BARE_MEMBERS = frozenset({"name", "type", "id", *_ARGUMENTS})
_WORD = frozenset(string.ascii_letters + string.digits + "+-.")
"""Numbers, true, false, null, and what a model may take for one."""


class CallSink(Protocol):
    """Takes what readers find."""

    def say(self, text: str) -> None:
        """Text that is not part of a call."""

    def think(self, text: str) -> None:
        """Reasoning, where that is no matter of marks around it."""

    def end_part(self) -> None:
        """What is said or thought next begins a line."""

    def open_call(self, name: str) -> None:
        """A call begins."""

    def add_arguments(self, text: str) -> None:
        """Arguments of the call that was opened last."""


class CallReader:
    """Reads one call from `source`. Use it once."""

    def __init__(self, source: Characters, sink: CallSink, *, is_bare: bool = False) -> None:
        """`is_bare`: nothing but its members says that the object is a call, so it needs both
        name and arguments and may have no strange ones."""
        self._source = source
        self._sink = sink
        self._is_bare = is_bare
        self._raw: list[str] = []
        """What was read and not passed on."""
        self._name: str | None = None
        self._arguments: str | None = None
        """Complete, and waiting for the name."""
        self._is_open = False

    def read(self) -> Reading[bool]:
        """Read an object. False: there is no call, and all that was read is put back."""
        is_whole = (yield from self._visible()) == "{" and (yield from self._members())
        if is_whole and self._is_call():
            self._raw.clear()
            if not self._is_open:
                self._open(self._arguments or "{}")
        self._source.put_back("".join(self._raw))
        return self._is_open

    def read_arguments(self, name: str) -> Reading[bool]:
        """Read the arguments of a call whose name is known. False as above."""
        self._name = name
        first = yield from self._visible()
        if first == "{":
            self._open("")
            yield from self._value(first, self._pass_on)
        self._source.put_back("".join(self._raw))
        return self._is_open

    def _is_call(self) -> bool:
        return self._is_open or (self._name is not None and not self._is_bare)

    def _open(self, arguments: str) -> None:
        assert self._name, "a call has a name before it is opened"
        self._sink.open_call(self._name)
        self._sink.add_arguments(arguments)
        self._is_open = True

    # -- the object --------------------------------------------------------------------------

    def _members(self) -> Reading[bool]:
        char = yield from self._visible()
        if char == "}":
            return True
        while char == '"':
            key = yield from self._text()
            if self._is_bare and key not in _BARE_MEMBERS:
                return False
            if (yield from self._visible()) != ":" or not (yield from self._member(key)):
                return False
            char = yield from self._visible()
            if char == "}":
                return True
            if char != ",":
                return False
            char = yield from self._visible()
        return False

    def _member(self, key: str | None) -> Reading[bool]:
        """Read the value of a member. False: it is none."""
        first = yield from self._visible()
        if key in _ARGUMENTS and not self._is_open and self._arguments is None:
            if self._name and first == "{":
                self._open("")
                return (yield from self._value(first, self._pass_on))
            taken: list[str] = []
            is_whole = yield from self._value(first, taken.append)
            self._arguments = _as_object("".join(taken)) if is_whole else None
            self._open_if_known()
            return self._arguments is not None
        if key == "name" and self._name is None:
            self._name = (yield from self._text()) if first == '"' else None
            self._open_if_known()
            return bool(self._name)
        return (yield from self._value(first, lambda _: None))

    def _open_if_known(self) -> None:
        if self._name and self._arguments is not None:
            self._raw.clear()
            self._open(self._arguments)

    def _pass_on(self, char: str) -> None:
        self._raw.clear()
        self._sink.add_arguments(char)

    # -- its values --------------------------------------------------------------------------

    def _value(self, char: str, emit: Callable[[str], None]) -> Reading[bool]:
        """Read a JSON value that begins with `char`. False: it is broken, or not whole."""
        if char in _WORD and char:
            return (yield from self._word(char, emit))
        closing: list[str] = []
        is_string = is_escaped = False
        while char:
            if is_string:
                is_string = is_escaped or char != '"'
                is_escaped = char == "\\" and not is_escaped
            elif char == '"':
                is_string = True
            elif char in "{[":
                closing.append("}" if char == "{" else "]")
            elif char in "}]":
                if not closing or closing.pop() != char:
                    return False
            elif not closing or not (char in _WORD or char in ",:" or char in BLANKS):
                return False
            emit(char)
            if not closing and not is_string:
                return True
            char = yield from self._take()
        return False

    def _word(self, char: str, emit: Callable[[str], None]) -> Reading[bool]:
        while char and char in _WORD:
            emit(char)
            char = yield from self._take()
        self._give_back(char)
        return True

    def _text(self) -> Reading[str | None]:
        """Read a string behind its first quote. None: it is broken, or not whole."""
        taken = ['"']
        while char := (yield from self._take()):
            taken.append(char)
            if char == "\\":
                taken.append((yield from self._take()))
            elif char == '"':
                return _decoded_text("".join(taken))
        return None

    def _take(self) -> Reading[str]:
        char = yield from self._source.next()
        self._raw.append(char)
        return char

    def _give_back(self, char: str) -> None:
        self._raw.pop()
        self._source.put_back(char)

    def _visible(self) -> Reading[str]:
        """Take the next character that is no blank."""
        while (char := (yield from self._take())) and char in BLANKS:
            pass
        return char


def _decoded_text(quoted: str) -> str | None:
    try:
        text = json.loads(quoted, strict=False)
    except ValueError:
        return None
    # An escape can stand for half of a surrogate pair, which nothing could encode.
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else None


def _as_object(value: str) -> str | None:
    """JSON text of the arguments as an object. A string is the text of one, null is none at
    all; None for anything else."""
    if value.startswith('"'):
        value = (_decoded_text(value) or "null").strip()
    if value.startswith("{"):
        return value
    return "{}" if value == "null" else None
