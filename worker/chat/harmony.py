"""The format of gpt-oss: messages on channels; a message with a recipient is a call.

    <|channel|>analysis<|message|>hm<|end|>
    <|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{…}<|call|>
    <|start|>assistant<|channel|>final<|message|>yes<|return|>

The prompt ends with the first `<|start|>assistant`. Source: openai/harmony, docs/format.md.
"""

import re

from shared.wire.job import Tool
from worker.chat.char_reader import Characters, CharReader
from worker.chat.tool_call_reader import NAMESPACE, CallReader, CallSink

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
RECIPIENT = "to="
_ENDS = (END, CALL, RETURN, START)
_MAX_HEADER = 300
_RECIPIENT = re.compile(RECIPIENT + r"([\w.-]+)")
_BEFORE = re.compile(rf"(^(?:{re.escape(START)})?(?:assistant)?|{RECIPIENT}[\w.-]+)")
_THOUGHT = re.compile(re.escape(CHANNEL) + r"\s*analysis\b")


def read_harmony(source: Characters, sink: CallSink, tools: list[Tool]) -> CharReader[None]:
    """Read messages to the end of the text. Without tools, no calls are read."""
    has_begun = False
    while True:
        header = yield from _header(source)
        if not header.endswith(MESSAGE):
            # The end of the text, perhaps inside a header; or text that is not in this format.
            if not has_begun or len(header) > _MAX_HEADER:
                sink.say(header)
                yield from source.until(sink.say)
            return
        has_begun = True
        yield from _say_stray(source, sink, header)
        name = _called(header, sink)
        if name and tools:
            yield from CallReader(source, sink, _ENDS).read_arguments(name)
        say = sink.think if not name and _THOUGHT.search(header) else sink.say
        mark = yield from source.until(say, *_ENDS)
        if mark:
            sink.end_part()
        source.put_back(START if mark == START else "")


def _called(header: str, sink: CallSink) -> str:
    """The function that a message goes to; "" for none. A name alone counts if there is such a
    tool: the format also has tools of its own, such as `python`."""
    for recipient in _RECIPIENT.findall(header):
        name: str = recipient.removeprefix(NAMESPACE)
        if name and (name != recipient or name in sink.names):
            return name
    return ""


def _say_stray(source: Characters, sink: CallSink, header: str) -> CharReader[None]:
    """Say the text before the marks of a header that was read, which does not belong there."""
    before = header.removesuffix(MESSAGE).partition(CHANNEL)[0]
    pieces = _BEFORE.split(before)  # each second one belongs there
    if not "".join(pieces[::2]).strip():
        return
    source.put_back(header)
    for at, piece in enumerate(pieces):
        yield from source.drop(len(piece))
        sink.say("" if at % 2 else piece)
    yield from source.drop(len(header) - len(before))


def _header(source: Characters) -> CharReader[str]:
    """Read up to the end of a header, the end of the text, or the length limit."""
    header = ""
    while not header.endswith(MESSAGE) and len(header) <= _MAX_HEADER:
        char = yield from source.next()
        if not char:
            break
        header += char
    return header
