"""Splits generated text into content, reasoning and tool calls while it arrives."""

from dataclasses import dataclass

from shared.wire.job import Tool
from worker.chat.char_reader import BLANKS, Characters, CharReader, TrimmedText
from worker.chat.tool_call_formats import BEGINS, READERS, CallSyntax
from worker.chat.tool_call_reader import CallSink
from worker.text_parts import Parts


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The marks around a model's reasoning."""

    begin: str
    end: str


class OutputParser:
    """Parses the text of one choice. The sum of the parts does not depend on how it is cut. Text
    that is not a call, or a broken call, is content: only blanks around calls and after the
    reasoning are lost."""

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
        """`key`: job id and choice index, from which the ids of calls are derived. `calls`: None =
        no calls are read. `tools`: their schemas decide how XML arguments are read.
        `is_parallel`: report more than one call. `is_forced`: only calls are reported."""
        self.job_id = key[0]
        self._source = Characters()
        self._content = TrimmedText(self._source)
        self._thought = TrimmedText(self._source, is_trimming=True)
        self._key = key
        self._syntax = calls
        self._tools = tools or []
        self._calls = CallSink(key, self._tools, is_parallel, self._content, self._thought)
        self._reasoning = reasoning
        self.reads_reasoning = reasoning is not None or calls is CallSyntax.HARMONY
        self._starts_in_reasoning = starts_in_reasoning
        self._is_forced = is_forced
        self._run = self._read()
        next(self._run)  # up to the request of the first character

    @property
    def has_calls(self) -> bool:
        return self._calls.num_calls > 0

    @property
    def has_whole_calls(self) -> bool:
        return self.has_calls and self._calls.are_whole

    @property
    def num_decided(self) -> int:
        """Characters from the beginning of the text whose part does not depend on what follows."""
        return self._source.num_decided

    @property
    def num_reread(self) -> int:
        """Characters that were read more than once."""
        return self._source.num_reread

    def skip(self, text: str) -> None:
        """Read text of the prompt that is no part of the answer. It does not count in places."""
        self.push(text)
        self._source.restart()

    def push(self, text: str) -> Parts:
        """Add generated text and return the parts that are certain now."""
        for char in text:
            self._run.send(char)
        return self._take()

    def finish(self, *, is_cut: bool = False) -> Parts:
        """End the text and return what was held back. Call it once. `is_cut`: the model has not
        ended it. Then the begin of a call is not content, and reasoning does not end in calls."""
        self._source.is_cut = is_cut
        is_behind_call = self.has_calls and self._content.is_trimming
        try:
            self._run.send("")
        except StopIteration:
            held = self._take()
            if is_cut and (is_behind_call or self._begins_mark(held.content.lstrip(BLANKS))):
                held.content, held.places = "", []
            if is_cut and self._is_end_mark(held.reasoning.lstrip(BLANKS)):
                held.reasoning = ""
            return held
        raise AssertionError("a reader ends at the end of the text")

    def _begins_mark(self, text: str) -> bool:
        """Whether a text that was held back to the end begins a call or reasoning. One character
        may be anything."""
        marks = BEGINS[self._syntax] if self._syntax is not None else ()
        if self._reasoning is not None:
            marks += (self._reasoning.begin,)
        return len(text) > 1 and any(
            text.startswith(mark) or mark.startswith(text) for mark in marks
        )

    def _is_end_mark(self, text: str) -> bool:
        """Whether it begins the mark that ends the reasoning."""
        return (
            self._reasoning is not None and len(text) > 1 and self._reasoning.end.startswith(text)
        )

    def _take(self) -> Parts:
        places, content = self._content.places, self._content.take()
        # If a call is forced, other text can only be the begin of a call that was cut off.
        if self._is_forced:
            content, places = "", []
        return Parts(content, self._thought.take(), self._calls.take(), places)

    def _read(self) -> CharReader[None]:
        if self._reasoning is not None:
            yield from self._read_reasoning(self._reasoning)
            self.reads_reasoning = self._syntax is CallSyntax.HARMONY
        if self._syntax is not None:
            yield from READERS[self._syntax](self._source, self._calls, self._tools)
        else:
            self._content.holds_blanks = False
            while char := (yield from self._source.next()):
                self._content.say(char)
        self._content.flush()
        self._thought.flush()

    def _read_reasoning(self, marks: Reasoning) -> CharReader[None]:
        """Models may repeat the begin mark although the prompt ends with one."""
        is_marked = yield from self._source.skip(marks.begin)
        if not is_marked and not self._starts_in_reasoning:
            return
        begins = BEGINS[self._syntax] if self._syntax is not None else ()
        say = self._thought.say
        while mark := (yield from self._source.until(say, marks.end, *begins)):
            if mark == marks.end or (yield from self._read_draft(mark, marks.end)):
                self._thought.trim()
                self._content.trim()
                return

    def _read_draft(self, mark: str, end: str) -> CharReader[bool]:
        """Read on behind a mark of calls in reasoning. True: the reasoning has ended. Calls before
        the mark `end` are a draft, so they are reasoning; if it never comes, the answer."""
        if not self._source.may_look_ahead:
            self._thought.say(mark)
            return False
        draft = OutputParser(self._key, calls=self._syntax, tools=self._tools)
        draft.push(mark)
        raw = mark
        while char := (yield from self._source.next()):
            raw += char
            content = draft.push(char).content
            if raw.endswith(end):
                self._thought.say(raw.removesuffix(end))
                return True
            if content and not draft.has_calls:
                self._source.put_back(raw.removeprefix(mark))
                self._source.num_reread += len(raw) + draft.num_reread
                self._thought.say(mark)
                return False
        draft.finish()
        has_ended = draft.has_whole_calls and not self._source.is_cut
        if has_ended:
            self._source.put_back(raw)
        else:
            self._thought.say(raw)
        return has_ended
