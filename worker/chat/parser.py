"""What the model says, sorted into content, reasoning and tool calls while it arrives."""

import hashlib
from dataclasses import dataclass, field

from shared.messages import Tool, ToolCallDelta
from worker.chat.calls import READERS, CallSyntax
from worker.chat.reading import Characters, Reading, TrimmedText


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The marks around what a model thinks before it speaks."""

    begin: str
    end: str


@dataclass(slots=True)
class Parts:
    """What a piece of text has brought."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)

    def __add__(self, later: "Parts") -> "Parts":
        return Parts(
            self.content + later.content,
            self.reasoning + later.reasoning,
            self.tool_calls + later.tool_calls,
        )


class OutputParser:
    """Parses the text of one choice. However the text is cut, the parts add up to the same.

    Text that is no call, or a broken one, is content: nothing is lost but blanks around calls
    and behind the reasoning.
    """

    def __init__(
        self,
        key: tuple[str, int],
        *,
        calls: CallSyntax | None = None,
        tools: list[Tool] | None = None,
        reasoning: Reasoning | None = None,
        starts_in_reasoning: bool = False,
        is_parallel: bool = True,
        is_forced: bool = False,
    ) -> None:
        """`key`: job id and choice index, from which the ids of the calls are made. `calls`:
        None = there are no calls. `tools`: where arguments are read by their schemas.
        `is_parallel`: report more than one call."""
        self._source = Characters()
        self._content = TrimmedText()
        self._thought = TrimmedText(is_trimming=True)
        self._calls = _Sink(key, is_parallel, self._content, self._thought)
        self._syntax = calls
        self._tools = tools or []
        self._reasoning = reasoning
        self._starts_in_reasoning = starts_in_reasoning
        self._is_forced = is_forced
        self._run = self._read()
        next(self._run)

    @property
    def has_calls(self) -> bool:
        return self._calls.num_calls > 0

    def push(self, text: str) -> Parts:
        """Add generated text and return what is now certain."""
        for char in text:
            self._run.send(char)
        return self._take()

    def finish(self) -> Parts:
        """Return what was held back. Call it once, after the last text."""
        try:
            self._run.send("")
        except StopIteration:
            return self._take()
        raise AssertionError("a reader ends with its text")

    def _take(self) -> Parts:
        content = self._content.take()
        # Where a call is forced, what is no call is the beginning of one that was cut off.
        return Parts("" if self._is_forced else content, self._thought.take(), self._calls.take())

    def _read(self) -> Reading[None]:
        if self._reasoning is not None:
            yield from self._read_reasoning(self._reasoning)
        if self._syntax is not None:
            yield from READERS[self._syntax](self._source, self._calls, self._tools)
        else:
            while char := (yield from self._source.next()):
                self._content.say(char)
        self._content.flush()
        self._thought.flush()

    def _read_reasoning(self, marks: Reasoning) -> Reading[None]:
        """The begin mark may come although the prompt has one at its end: models repeat it."""
        is_marked = yield from self._source.skip(marks.begin)
        if not is_marked and not self._starts_in_reasoning:
            return
        if (yield from self._source.until(self._thought.say, marks.end)):
            self._thought.trim()
            self._content.trim()


class _Sink:
    """The sink of a reader: numbers the calls and gives them ids."""

    def __init__(
        self, key: tuple[str, int], is_parallel: bool, content: TrimmedText, thought: TrimmedText
    ) -> None:
        self._key = key
        self._is_parallel = is_parallel
        self._content = content
        self._thought = thought
        self._pending: list[ToolCallDelta] = []
        self._arguments: list[str] = []
        """Of the last call, since the last time."""
        self.num_calls = 0

    def say(self, text: str) -> None:
        self._content.say(text)

    def think(self, text: str) -> None:
        self._thought.say(text)

    def end_part(self) -> None:
        self._content.trim()
        self._thought.trim()

    def open_call(self, name: str) -> None:
        self._content.trim()
        self._close()
        index = self.num_calls
        self.num_calls += 1
        if self._is_reported:
            self._pending.append(ToolCallDelta(index, self._id(index), name))

    def add_arguments(self, text: str) -> None:
        if self._is_reported and text:
            self._arguments.append(text)

    @property
    def _is_reported(self) -> bool:
        return self._is_parallel or self.num_calls == 1

    def _close(self) -> None:
        """Put the arguments that came to their call."""
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
        """The same when the job is run again, by another replica."""
        job_id, choice = self._key
        digest = hashlib.sha256(f"{job_id}/{choice}/{index}".encode()).hexdigest()
        return f"call_{digest[:24]}"
