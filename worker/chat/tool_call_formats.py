"""How model families write tool calls: one reader each.

A reader runs to the end of the text. What is no call, or a broken one, goes to `sink.say`;
blanks around calls are the sink's matter.
"""

import string
from collections.abc import Callable
from enum import StrEnum

from shared.messages import Tool
from worker.chat.call_reader import CallReader, CallSink
from worker.chat.harmony import CHANNEL, CONSTRAIN, END, MESSAGE, START, read_harmony
from worker.chat.reading import Characters, Reading
from worker.chat.xml_calls import CALL, CALL_END, read_xml

_NAME = frozenset(string.ascii_letters + string.digits + "_-.")
_MAX_NAME = 256


class CallSyntax(StrEnum):
    HERMES = "hermes"
    """`<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes, Qwen 2.5 and 3."""
    LLAMA = "llama"
    """`{"name": …, "parameters": …}`, perhaps behind `<|python_tag|>`, `;` between calls."""
    MISTRAL = "mistral"
    """`[TOOL_CALLS] [{"name": …, "arguments": …}]`."""
    MISTRAL_NAMED = "mistral-named"
    """`[TOOL_CALLS]name[ARGS]{…}`, and again for each call: Mistral since 2025."""
    QWEN_XML = "qwen-xml"
    """`<tool_call><function=name><parameter=key>…`: Qwen3-Coder. See `worker.chat.xml_calls`."""
    HARMONY = "harmony"
    """Messages on channels: gpt-oss. See `worker.chat.harmony`; it has reasoning, too."""
    DEEPSEEK = "deepseek"
    """`<｜tool▁call▁begin｜>function<｜tool▁sep｜>name` and a fenced block: V3, R1."""
    DEEPSEEK_NAMED = "deepseek-named"
    """`<｜tool▁call▁begin｜>name<｜tool▁sep｜>{…}<｜tool▁call▁end｜>`: V3.1."""


Reader = Callable[[Characters, CallSink, list[Tool]], Reading[None]]
PYTHON_TAG = "<|python_tag|>"
TOOL_CALLS, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"
FENCED_CALL_END = "<｜tool▁call▁end｜>"


def _hermes(source: Characters, sink: CallSink, _: list[Tool]) -> Reading[None]:
    while (yield from source.until(sink.say, CALL)):
        if (yield from CallReader(source, sink).read()):
            yield from source.skip(CALL_END, is_end=True)
        else:
            sink.say(CALL)


def _llama(source: Characters, sink: CallSink, _: list[Tool]) -> Reading[None]:
    """Without a tag a call may stand at the start only, or behind another one."""
    may_begin = True
    while may_begin:
        is_tagged = yield from source.skip(PYTHON_TAG)
        if (yield from CallReader(source, sink, is_bare=not is_tagged).read()):
            yield from source.skip(";", is_end=True)
            continue
        if is_tagged:
            sink.say(PYTHON_TAG)
        may_begin = bool((yield from source.until(sink.say, PYTHON_TAG)))
        if may_begin:
            source.put_back(PYTHON_TAG)


def _mistral(source: Characters, sink: CallSink, _: list[Tool]) -> Reading[None]:
    """Both of Mistral's ways: models of one generation lapse into the other's."""
    while (yield from source.until(sink.say, TOOL_CALLS)):
        blanks = yield from source.blanks()
        first = yield from source.next()
        source.put_back(first)
        if first == "[":
            is_call = yield from _array(source, sink)
        elif first == "{":
            is_call = yield from CallReader(source, sink).read()
        else:
            is_call = yield from _named(source, sink)
        if not is_call:
            source.put_back(blanks)
            sink.say(TOOL_CALLS)


def _array(source: Characters, sink: CallSink) -> Reading[bool]:
    yield from source.skip("[")
    if not (yield from CallReader(source, sink).read()):
        source.put_back("[")
        return False
    while (yield from source.skip(",")):
        if not (yield from CallReader(source, sink).read()):
            source.put_back(",")
            return True
    yield from source.skip("]")
    return True


def _named(source: Characters, sink: CallSink) -> Reading[bool]:
    name = yield from _name(source)
    taken = name
    if name and (yield from source.skip(CALL_ID)):
        call_id = yield from _name(source)
        taken += CALL_ID + call_id
    if name and (yield from source.skip(ARGS)):
        taken += ARGS
    if name and (yield from CallReader(source, sink).read_arguments(name)):
        return True
    source.put_back(taken)
    return False


def _name(source: Characters) -> Reading[str]:
    name = ""
    while (char := (yield from source.next())) and char in _NAME and len(name) < _MAX_NAME:
        name += char
    source.put_back(char)
    return name


def _deepseek(source: Characters, sink: CallSink, _: list[Tool]) -> Reading[None]:
    """Both of DeepSeek's ways. The mark in front of all calls is dropped with the first."""
    while (yield from source.until(sink.say, CALLS_BEGIN)):
        num_calls = 0
        while (yield from source.skip(CALL_BEGIN)):
            if not (yield from _deepseek_call(source, sink)):
                source.put_back(CALL_BEGIN)
                break
            num_calls += 1
        if num_calls:
            yield from source.skip(CALLS_END, is_end=True)
            continue
        sink.say(CALLS_BEGIN)
        if (yield from source.skip(CALL_BEGIN)):
            sink.say(CALL_BEGIN)


def _deepseek_call(source: Characters, sink: CallSink) -> Reading[bool]:
    name = yield from _name(source)
    taken = name
    if not name or not (yield from source.skip(SEPARATOR)):
        source.put_back(taken)
        return False
    taken += SEPARATOR
    is_fenced = False
    if name == "function":
        inner = yield from _name(source)
        taken += inner
        is_fenced = bool(inner) and (yield from source.skip("```json"))
        if is_fenced:
            taken += "\n```json"
            name = inner
    if not (yield from CallReader(source, sink).read_arguments(name)):
        source.put_back(taken)
        return False
    if is_fenced:
        yield from source.skip("```", is_end=True)
    yield from source.skip(FENCED_CALL_END, is_end=True)
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
"""What a text must show for its reader, also where these are control tokens."""
