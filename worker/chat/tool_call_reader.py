"""Reads one tool call, a JSON object, while it arrives.

The object is `{"name": …, "arguments": {…}}`, in any order and with other members. Until a call
is certain, the text is kept and can be put back; from then on the arguments are passed on while
the model writes them, as strict JSON (`worker.chat.model_json`).
"""

import hashlib

from shared.wire.events import ToolCallDelta
from shared.wire.job import Tool
from worker.chat.char_reader import Characters, CharReader, TrimmedText
from worker.chat.model_json import (
    QUOTES,
    JsonReader,
    is_json_object,
    read_json,
    read_visible,
    repaired,
    strict_json,
)

_ARGUMENTS = ("arguments", "parameters")
_BARE_MEMBERS = frozenset({"name", "type", "id", *_ARGUMENTS})
MAX_NAME = 256
"""Characters of a name that no quotes enclose."""
NAMESPACE = "functions."
"""Models that learnt the format of gpt-oss put it in front of names in other formats, too."""


class CallSink:
    """Receives the parts that readers find, numbers the calls and gives them ids."""

    def __init__(
        self,
        key: tuple[str, int],
        tools: list[Tool],
        is_parallel: bool,
        content: TrimmedText,
        thought: TrimmedText,
    ) -> None:
        self.names = frozenset(tool.name for tool in tools)
        """Of the tools that there are."""
        self._key = key
        self._is_parallel = is_parallel
        self._content = content
        self._thought = thought
        self._pending: list[ToolCallDelta] = []
        self._arguments: list[str] = []
        """Arguments of the last call since the last `take`."""
        self._whole_arguments: list[str] = []
        """Arguments of the last call."""
        self._are_whole = True
        """Whether the arguments of all calls before the last one are whole JSON."""
        self.num_calls = 0

    @property
    def are_whole(self) -> bool:
        """Whether the arguments of all calls are JSON of an object."""
        return self._are_whole and is_json_object("".join(self._whole_arguments))

    def say(self, text: str) -> None:
        """Add text that is not part of a call."""
        self._content.say(text)

    def think(self, text: str) -> None:
        """Add reasoning, in formats where it is not enclosed in marks."""
        self._thought.say(text)

    def end_part(self) -> None:
        """Begin a new line with the next text or reasoning."""
        self._content.trim()
        self._thought.trim()

    def open_call(self, name: str) -> None:
        self._content.trim()
        self._close()
        index = self.num_calls
        self.num_calls += 1
        if not self._is_reported:
            return
        if index:
            self._are_whole = self.are_whole
            self._whole_arguments.clear()
        plain = name.removeprefix(NAMESPACE)
        is_plain = name not in self.names and plain in self.names
        self._pending.append(ToolCallDelta(index, self._id(index), plain if is_plain else name))

    def add_arguments(self, text: str) -> None:
        """Add arguments to the call that was opened last."""
        self._content.decide()
        if self._is_reported and text:
            self._arguments.append(text)
            self._whole_arguments.append(text)

    @property
    def _is_reported(self) -> bool:
        return self._is_parallel or self.num_calls == 1

    def _close(self) -> None:
        """Add the collected arguments to their call's delta."""
        if not self._arguments:
            return
        text, index = "".join(self._arguments), self.num_calls - 1
        self._arguments.clear()
        if self._pending and self._pending[-1].index == index:
            last = self._pending.pop()
            self._pending.append(ToolCallDelta(index, last.id, last.name, text))
        else:
            self._pending.append(ToolCallDelta(index, arguments=text))

    def take(self) -> list[ToolCallDelta]:
        self._close()
        taken, self._pending = self._pending, []
        return taken

    def _id(self, index: int) -> str:
        """The id of a call. It is the same when another replica runs the job again."""
        job_id, choice = self._key
        digest = hashlib.sha256(f"{job_id}/{choice}/{index}".encode()).hexdigest()
        return f"call_{digest[:24]}"


class CallReader:
    """Reads one call from `source`. Use it once."""

    def __init__(
        self,
        source: Characters,
        sink: CallSink,
        ends: tuple[str, ...] = (),
        *,
        is_bare: bool = False,
    ) -> None:
        """`ends`: marks behind a call; arguments that are no JSON reach to one of them. `is_bare`:
        no mark announces the call. Then the object counts as one only if it has both name and
        arguments, and no unknown members."""
        self._source = source
        self._sink = sink
        self._ends = ends
        self._is_bare = is_bare
        self.name: str | None = None
        self._arguments: str | None = None
        """Complete arguments that wait for the name."""
        self._is_open = False

    def read(self) -> CharReader[bool]:
        """Read an object. False: it is not a call, and its text is put back. If too much was put
        back before, no call is looked for."""
        if not self._source.may_look_ahead:
            return False
        self._source.record()
        is_whole = (yield from self._visible()) == "{" and (yield from self._members())
        if is_whole and not self._is_open and self.name is not None and not self._is_bare:
            self._open(self._arguments or "{}")
        return (yield from self._end(is_whole))

    def read_arguments(self, name: str, *, may_lack: bool = True) -> CharReader[bool]:
        """Read the arguments of a call with a known name. False as in `read`. `may_lack`: without
        arguments it is a call, too, with an empty object."""
        self.name = name
        if not self._source.may_look_ahead:
            return False
        self._source.record()
        first = yield from self._visible()
        self._source.put_back(first)
        if may_lack and (yield from self._is_at_end(first)):
            self._open("{}")
        is_whole = self._is_open or (yield from self._read_arguments())
        return (yield from self._end(is_whole))

    def _end(self, is_whole: bool) -> CharReader[bool]:
        """End a call, or what was none. Put back what was not used."""
        if is_whole and self._is_open:
            self._source.forget()
        else:
            self._source.rewind()
        if self._is_open:
            yield from self._source.skip_all("}")  # models write one too many
        return self._is_open

    def _is_at_end(self, char: str) -> CharReader[bool]:
        if not char:
            return not self._source.is_cut
        for end in self._ends:
            if (yield from self._source.skip(end)):
                self._source.put_back(end)
                return True
        return False

    def _open(self, arguments: str) -> None:
        assert self.name, "a call is opened only with a name"
        self._sink.open_call(self.name)
        self._pass_on(arguments)
        self._is_open = True

    def _pass_on(self, text: str) -> None:
        self._sink.add_arguments(text)
        self._source.record()

    # -- the object --------------------------------------------------------------------------

    def _members(self) -> CharReader[bool]:
        while (char := (yield from self._token())) != "}":
            if self._is_bare and char not in QUOTES:
                return False
            self._source.put_back(char)
            key = yield from self._text()
            if key is None or (self._is_bare and key not in _BARE_MEMBERS):
                return False
            if (yield from self._token()) != ":" or not (yield from self._member(key)):
                return False
            char = yield from self._token()
            if char == "}":
                return True
            if char != ",":
                return False
        return True

    def _member(self, key: str) -> CharReader[bool]:
        """Read the value of a member. False: it is invalid."""
        if key in _ARGUMENTS and not self._is_open and self._arguments is None:
            return (yield from self._read_arguments())
        if key == "function" and self.name is None:
            char = yield from self._token()
            if char == "{":  # as in the requests of OpenAI's API
                return (yield from self._members())
            self._source.put_back(char)
        if key in ("name", "function") and self.name is None:
            self.name = yield from self._text()
            self._open_if_known()
            return bool(self.name)
        return (yield from JsonReader(self._source, lambda _: None).read())

    def _read_arguments(self) -> CharReader[bool]:
        """Read an object, or a text that has one. False: it is invalid."""
        first = yield from self._token()
        self._source.put_back(first)
        if self.name and first == "{":
            self._open("")
            return (yield from read_json(self._source, self._pass_on, self._ends))
        taken: list[str] = []
        is_whole = yield from JsonReader(self._source, taken.append).read()
        self._arguments = _as_object("".join(taken)) if is_whole else None
        self._open_if_known()
        return self._arguments is not None

    def _open_if_known(self) -> None:
        if self.name and self._arguments is not None:
            self._open(self._arguments)

    def _text(self) -> CharReader[str | None]:
        """Read text. None: it is invalid or incomplete, or something else."""
        taken: list[str] = []
        is_whole = yield from JsonReader(self._source, taken.append).read()
        return decoded_text("".join(taken)) if is_whole else None

    def _token(self) -> CharReader[str]:
        return (yield from read_visible(self._source, lambda _: None))

    def _visible(self) -> CharReader[str]:
        """Take the next character that is not blank."""
        yield from self._source.blanks()
        return (yield from self._source.next())


def decoded_text(quoted: str) -> str | None:
    """The text of a JSON string; None if it is something else."""
    found = strict_json(quoted)
    if found is None or not isinstance(found[0], str):
        return None
    # An escape can be half of a surrogate pair, which cannot be encoded.
    return found[0].encode("utf-8", "replace").decode()


def _as_object(value: str) -> str | None:
    """The arguments as JSON text of an object: a string is read as JSON, null as an empty object.
    None for anything else."""
    if value.startswith('"'):
        value = (decoded_text(value) or "null").strip()
        value = repaired(value) if value.startswith("{") else value
    if value.startswith("{"):
        return value
    return "{}" if value == "null" else None
