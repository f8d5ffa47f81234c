"""The tool call formats of model families, with a reader for each. A reader runs to the end of the
text. Other text and broken calls go to `sink.say`; the sink trims the blanks around calls."""

import string
from collections.abc import Callable
from enum import StrEnum

from shared.wire.job import Tool
from worker.chat.char_reader import Characters, CharReader
from worker.chat.harmony import CHANNEL, CONSTRAIN, END, MESSAGE, RECIPIENT, START, read_harmony
from worker.chat.tool_call_reader import MAX_NAME, CallReader, CallSink
from worker.chat.xml_tool_calls import CALL, CALL_END, FUNCTION, read_xml

_NAME = frozenset(string.ascii_letters + string.digits + "_-.")


class CallSyntax(StrEnum):
    HERMES = "hermes"
    """`<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes, Qwen 2.5 and 3."""
    LLAMA = "llama"
    """`{"name": …, "parameters": …}`, optionally after `<|python_tag|>`, `;` between calls."""
    MISTRAL = "mistral"
    """`[TOOL_CALLS] [{"name": …, "arguments": …}]`."""
    MISTRAL_NAMED = "mistral-named"
    """`[TOOL_CALLS]name[ARGS]{…}` for each call: Mistral since 2025."""
    QWEN_XML = "qwen-xml"
    """`<tool_call><function=name><parameter=key>…`: Qwen3-Coder (`worker.chat.xml_tool_calls`)."""
    HARMONY = "harmony"
    """Messages on channels, reasoning included: gpt-oss. See `worker.chat.harmony`."""
    DEEPSEEK = "deepseek"
    """`<｜tool▁call▁begin｜>function<｜tool▁sep｜>name` and a fenced block: V3, R1."""
    DEEPSEEK_NAMED = "deepseek-named"
    """`<｜tool▁call▁begin｜>name<｜tool▁sep｜>{…}<｜tool▁call▁end｜>`: V3.1."""


Reader = Callable[[Characters, CallSink, list[Tool]], CharReader[None]]
PYTHON_TAG = "<|python_tag|>"
TOOL_CALLS, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"
FENCED_CALL_END = "<｜tool▁call▁end｜>"


def _calls(source: Characters, sink: CallSink, *ends: str) -> CharReader[bool]:
    """Read calls, one behind the other or in a list. False: there is none, and nothing is taken."""
    bracket = yield from source.skip("[")
    if not (yield from CallReader(source, sink, ends).read()):
        source.put_back(bracket)
        return False
    while True:
        yield from source.skip_all(",;")
        if bracket and (yield from source.skip("]")):
            return True
        if not (yield from CallReader(source, sink, ends).read()):
            return True


def _hermes(source: Characters, sink: CallSink, _: list[Tool]) -> CharReader[None]:
    is_begun = False
    """A mark was followed by calls, and its end mark has not come."""
    while mark := (yield from source.until(sink.say, CALL, CALL_END)):
        if mark == CALL and (yield from _calls(source, sink, CALL_END, CALL)):
            is_begun = not (yield from source.skip(CALL_END, is_end=True))
        elif mark == CALL_END and is_begun:
            is_begun = False
        else:
            sink.say(mark)


def _llama(source: Characters, sink: CallSink, _: list[Tool]) -> CharReader[None]:
    """Without a tag, a call can only be at the start or after another call."""
    may_begin = True
    while may_begin:
        tag = yield from source.skip(PYTHON_TAG)
        reader = CallReader(source, sink, (PYTHON_TAG,), is_bare=not tag)
        if (yield from reader.read()):
            yield from source.skip(";", is_end=True)
            continue
        if source.is_cut and reader.name in sink.names:
            return
        sink.say(tag)
        may_begin = bool((yield from source.until(sink.say, PYTHON_TAG)))
        if may_begin:
            source.put_back(PYTHON_TAG)


def _mistral(source: Characters, sink: CallSink, _: list[Tool]) -> CharReader[None]:
    """Both formats of Mistral: models of one generation also use the other's."""
    while (yield from source.until(sink.say, TOOL_CALLS)):
        is_call = yield from _calls(source, sink, TOOL_CALLS)
        if not is_call and not (yield from _named(source, sink)):
            sink.say(TOOL_CALLS)


def _named(source: Characters, sink: CallSink) -> CharReader[bool]:
    blanks = yield from source.blanks()
    name = yield from _name(source)
    taken = blanks + name
    if name and (mark := (yield from source.skip(CALL_ID))):
        taken += mark + (yield from _name(source))
    mark = (yield from source.skip(ARGS)) if name else ""
    taken += mark
    reader = CallReader(source, sink, (TOOL_CALLS,))
    may_lack = bool(mark) or name in sink.names
    if name and (yield from reader.read_arguments(name, may_lack=may_lack)):
        return True
    source.put_back(taken)
    return False


def _name(source: Characters) -> CharReader[str]:
    name = ""
    while (char := (yield from source.next())) and char in _NAME and len(name) < MAX_NAME:
        name += char
    source.put_back(char)
    return name


def _deepseek(source: Characters, sink: CallSink, _: list[Tool]) -> CharReader[None]:
    """Both formats of DeepSeek. The mark before all calls is dropped with the first call."""
    while (yield from source.until(sink.say, CALLS_BEGIN)):
        num_calls = 0
        while mark := (yield from source.skip(CALL_BEGIN)):
            if not (yield from _deepseek_call(source, sink)):
                source.put_back(mark)
                break
            num_calls += 1
        if num_calls:
            yield from source.skip(CALLS_END, is_end=True)
            continue
        sink.say(CALLS_BEGIN)
        sink.say((yield from source.skip(CALL_BEGIN)))


def _deepseek_call(source: Characters, sink: CallSink) -> CharReader[bool]:
    name = yield from _name(source)
    taken = name
    separator = (yield from source.skip(SEPARATOR)) if name else ""
    if not separator:
        source.put_back(taken)
        return False
    taken += separator
    fence = ""
    if name == "function":
        inner = yield from _name(source)
        fence = (yield from source.skip("```json")) if inner else ""
        taken += inner + fence
        name = inner if fence else name
    ends = ("```", FENCED_CALL_END) if fence else (FENCED_CALL_END,)
    if not (yield from CallReader(source, sink, ends).read_arguments(name)):
        source.put_back(taken)
        return False
    for end in ends:
        yield from source.skip(end, is_end=True)
    return True


READERS: dict[CallSyntax, Reader] = {
    CallSyntax.HERMES: _hermes,
    CallSyntax.LLAMA: _llama,
    CallSyntax.QWEN_XML: read_xml,
    CallSyntax.HARMONY: read_harmony,
    CallSyntax.MISTRAL: _mistral,
    CallSyntax.MISTRAL_NAMED: _mistral,
    CallSyntax.DEEPSEEK: _deepseek,
    CallSyntax.DEEPSEEK_NAMED: _deepseek,
}
BEGINS: dict[CallSyntax, tuple[str, ...]] = {
    CallSyntax.HERMES: (CALL,),
    CallSyntax.LLAMA: (PYTHON_TAG,),
    CallSyntax.QWEN_XML: (CALL, FUNCTION),
    CallSyntax.HARMONY: (START, CHANNEL, RECIPIENT),
    CallSyntax.MISTRAL: (TOOL_CALLS,),
    CallSyntax.MISTRAL_NAMED: (TOOL_CALLS,),
    CallSyntax.DEEPSEEK: (CALLS_BEGIN,),
    CallSyntax.DEEPSEEK_NAMED: (CALLS_BEGIN,),
}
"""What calls begin with, if they begin with a mark."""
MARKS: dict[CallSyntax, tuple[str, ...]] = {
    CallSyntax.HERMES: (CALL, CALL_END),
    CallSyntax.LLAMA: (PYTHON_TAG,),
    CallSyntax.QWEN_XML: (CALL, CALL_END),
    CallSyntax.HARMONY: (START, CHANNEL, MESSAGE, CONSTRAIN, END),
    CallSyntax.MISTRAL: (TOOL_CALLS, ARGS, CALL_ID),
    CallSyntax.MISTRAL_NAMED: (TOOL_CALLS, ARGS, CALL_ID),
    CallSyntax.DEEPSEEK: (CALLS_BEGIN, CALLS_END, CALL_BEGIN, SEPARATOR, FENCED_CALL_END),
    CallSyntax.DEEPSEEK_NAMED: (CALLS_BEGIN, CALLS_END, CALL_BEGIN, SEPARATOR, FENCED_CALL_END),
}
"""Marks that the text must contain for its reader, even if they are control tokens."""
