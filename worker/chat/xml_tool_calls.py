"""Tool calls as Qwen3-Coder writes them, with the arguments as JSON for the client.

    <tool_call>
    <function=name>
    <parameter=key>
    a value, as plain text
    </parameter>
    </function>
    </tool_call>

The tool's schema decides how a value is read: as JSON if it is JSON of a type that the schema
admits, as text otherwise.
"""

import json
from collections.abc import Callable, Iterator

from shared.errors import InvalidRequest
from shared.wire.job import Tool
from worker.chat.char_reader import BLANKS, Characters, CharReader
from worker.chat.model_json import QUOTES, repaired, strict_json
from worker.chat.parameter_schemas import ToolSchema, Way, admits, kinds
from worker.chat.tool_call_reader import MAX_NAME, CallSink, decoded_text

CALL, CALL_END = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
_WORDS = {"null": ("null",), "boolean": ("true", "false")}
_MAX_SCALAR = 4300
"""Characters of a number or word beside text. Python reads no integer with more digits."""
_MARKED = ("[", "{", "(", *QUOTES)
_PYTHON = ("True", "False", "None")
_NUMBER_CHARS = frozenset("+-.0123456789eE")


def read_xml(source: Characters, sink: CallSink, tools: list[Tool]) -> CharReader[None]:
    """Read calls to the end of the text. `<tool_call>` is optional: models sometimes omit it."""
    # The first tool of a name counts.
    schemas = {tool.name: ToolSchema(tool.parameters) for tool in reversed(tools)}
    while mark := (yield from source.until(sink.say, CALL, FUNCTION)):
        begin = mark + ((yield from source.skip(FUNCTION)) if mark == CALL else "")
        name = (yield from _name(source, BLANKS)) if begin != CALL else ""
        if not name or not (yield from _is_begun(source)):
            source.put_back(f"{name}>" if name else "")
            sink.say(begin)
            continue
        sink.open_call(name)
        if (yield from _arguments(source, sink, _Parameters(schemas.get(name)))):
            yield from source.skip(CALL_END, is_end=True)


def is_name(text: str) -> bool:
    """Whether a parameter of this name can be read."""
    return 0 < len(text) <= MAX_NAME and not set(text) & set("<>\r\n")


class _Parameters:
    """The schemas of a tool's parameters."""

    def __init__(self, schema: ToolSchema | None) -> None:
        self._schema = schema

    def ways(self, key: str) -> list[Way] | None:
        """None: no schema says anything, so the value is text."""
        if self._schema is None:
            return None
        try:
            return self._schema.read_as(key) or None
        except InvalidRequest:  # more alternatives than are followed
            return None


def _name(source: Characters, ends: str = "\r\n") -> CharReader[str]:
    """Read a name and the bracket after it; "" if there is none, and then nothing is taken."""
    name = ""
    while (char := (yield from source.next())) and char not in ends + "<>":
        name += char
        if len(name) > MAX_NAME:
            break
    if name and char == ">":
        return name
    source.put_back(name + char if len(name) <= MAX_NAME else name)
    return ""


def _is_name_to_the_end(source: Characters) -> CharReader[bool]:
    """Whether the text ends within a name. Then it is taken, else nothing."""
    name = ""
    while (char := (yield from source.next())) and is_name(name + char):
        name += char
    source.put_back(name + char if char else "")
    return not char


def _is_begun(source: Characters) -> CharReader[bool]:
    """Look ahead whether a call follows its name: prose may mention `<function=…>`, too."""
    for mark in (PARAMETER, FUNCTION_END):
        if (yield from source.skip(mark)):
            source.put_back(mark)
            return True
    return False


def _arguments(source: Characters, sink: CallSink, parameters: _Parameters) -> CharReader[bool]:
    """Read parameters. False: the text was cut off, and the JSON stays incomplete to show it."""
    keys: set[str] = set()
    while (yield from source.skip(PARAMETER, is_end=True)):
        key = yield from _name(source)
        if not key and (yield from _is_name_to_the_end(source)):
            return False
        if not key:
            source.put_back(PARAMETER)
            break
        begin = f"{', ' if keys else '{'}{json.dumps(key, ensure_ascii=False)}: "
        # The first value of a key has been sent when a second one comes.
        emit = _drop if key in keys else sink.add_arguments
        value = _Value(parameters.ways(key), begin, emit)
        if not (yield from _read(source, value)):
            return False
        if value.is_sent:
            keys.add(key)
    if not (yield from source.skip(FUNCTION_END, is_end=True)):
        yield from source.blanks()
        if source.is_over:
            return False
    sink.add_arguments("}" if keys else "{}")
    return True


def _read(source: Characters, value: "_Value") -> CharReader[bool]:
    """Read a value to its end mark, or to a line that can only follow it. False: it was cut off."""
    first = yield from source.next()
    source.put_back(first if first == "\n" else f"\n{first}")
    marks = (PARAMETER_END, f"\n{FUNCTION_END}", f"\n{PARAMETER}")
    while mark := (yield from source.until(value.add, *marks)):
        if mark == PARAMETER_END and not value.is_in_quotes:
            break
        if mark != PARAMETER_END and (yield from _is_next(source, mark[1:])):
            source.put_back(mark[1:])
            break
        value.add(mark)
    else:
        value.cut()
        return False
    value.end()
    return True


def _is_next(source: Characters, mark: str) -> CharReader[bool]:
    """Look ahead whether a parameter or the end of a call has come, not text about them."""
    if mark == PARAMETER:
        name = yield from _name(source)
        source.put_back(f"{name}>" if name else "")
        return bool(name)
    for following in (CALL_END, CALL, FUNCTION):
        if (yield from source.skip(following)):
            source.put_back(following)
            return True
    blanks = yield from source.blanks()
    if source.is_over:
        return True
    source.put_back(blanks)
    return False


class _Value:
    """A value, passed on as soon as it can only be text, or else when it ends."""

    def __init__(self, found: list[Way] | None, begin: str, emit: Callable[[str], object]) -> None:
        """`found`: the ways to match it; None = it is text. `begin`: precedes it."""
        self._ways = found or []
        self._kinds = frozenset[str]().union(*map(kinds, found or [({"type": "string"},)]))
        self._begin = begin
        self._emit = emit
        self._held: list[str] = []
        """What is not known to be text."""
        self._waits = "string" not in self._kinds
        """For the end: before, it may be JSON."""
        self._others = self._kinds - {"string"}
        self._words = [word for kind in self._others for word in _WORDS.get(kind, ())]
        self._start = ""
        """What is held, without blanks at its edges, as far as needed."""
        self._is_whole = False
        """Blanks follow `_start`: neither a word nor a number goes on behind them."""
        self._is_number = not self._others.isdisjoint(("integer", "number"))
        """`_start` may be one."""
        self._is_quoted = self._is_escaped = False
        """In what is held a text of JSON is open; a backslash is its last character."""
        self._break = ""
        """A line break in a text, which is passed on only if more text follows."""
        self.is_sent = False

    @property
    def is_in_quotes(self) -> bool:
        """Whether the value is JSON so far and a text in it is open. It has no line breaks."""
        is_open = not self.is_sent and self._is_quoted and self._start[:1] in ("[", "{")
        return is_open and not self._held[-1].endswith("\n")

    def add(self, text: str) -> None:
        """Add text; the first is the line break behind the mark."""
        if self.is_sent:
            self._say(text)
            return
        self._held.append(text)
        for char in text:
            self._is_quoted ^= char == '"' and not self._is_escaped
            self._is_escaped = char == "\\" and not self._is_escaped
        if self._may_be_json(text):
            return
        self._send('"')
        self._say("".join(self._held)[1:])
        self._held.clear()

    def end(self) -> None:
        if self.is_sent:
            self._emit('"')
            return
        text = "".join(self._held)[1:]
        found = self._json(text.strip(BLANKS))
        if found is None:
            text = text.removesuffix("\n") if "string" in self._kinds else text.strip(BLANKS)
            found = json.dumps(text, ensure_ascii=False)
        if found:
            self._send(found)

    def cut(self) -> None:
        """The text has ended in the value."""
        self._emit(_escaped(self._break))

    def _may_be_json(self, text: str) -> bool:
        """Whether the value may be other than text when this is added. Only this is looked at."""
        new = text.strip(BLANKS)
        if self._waits:
            self._start = self._start or new
            return True
        if not new or not self._others:
            self._is_whole = bool(self._start)
            return bool(self._others)
        if self._is_whole or len(self._start) >= _MAX_SCALAR:
            return False
        self._start += new
        self._waits = {"[": "array", "{": "object"}.get(self._start[0]) in self._others
        self._is_number = self._is_number and _NUMBER_CHARS.issuperset(new)
        is_word = any(word.startswith(self._start) for word in self._words)
        return self._waits or self._is_number or is_word

    def _json(self, text: str) -> str | None:
        """The value as JSON; "" if there is none, None if it is text."""
        if "string" in self._kinds:
            value = strict_json(text)
            is_json = value is not None and not isinstance(value[0], str)
            return text if value and is_json and admits(value[0], self._ways) else None
        if not text:
            return "null" if "null" in self._kinds else ""
        first = None
        for candidate in _candidates(text):
            found = strict_json(candidate)
            if found and admits(found[0], self._ways):
                return candidate
            # So the model meant no text, although the schema does not admit what it meant.
            is_certain = candidate == text or text[0] in _MARKED or text.capitalize() in _PYTHON
            first = first or (candidate if found and is_certain else None)
        return first

    def _send(self, text: str) -> None:
        self.is_sent = True
        self._emit(self._begin + text)

    def _say(self, text: str) -> None:
        text = self._break + text
        self._break = "\n" if text.endswith("\n") else ""
        self._emit(_escaped(text.removesuffix("\n")))


def _candidates(text: str) -> Iterator[str]:
    """What a value that is no text may stand for, as JSON: models also write Python's notation,
    raw line breaks, and quotes around."""
    yield text
    loose = repaired(text, has_tuples=True)
    yield loose
    if text[0] in QUOTES:
        yield repaired(decoded_text(loose) or "", has_tuples=True)


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _drop(_: str) -> None:
    """Takes what is not passed on."""
