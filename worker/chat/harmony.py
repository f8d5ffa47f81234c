"""What gpt-oss writes: messages with a channel each, and a recipient where they are calls.

    <|channel|>analysis<|message|>hm<|end|>
    <|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{…}<|call|>
    <|start|>assistant<|channel|>final<|message|>yes<|return|>

The prompt ends with the first `<|start|>assistant`. Source: openai/harmony, docs/format.md.
"""

import re

from shared.messages import Tool
from worker.chat.call_reader import CallReader, CallSink
from worker.chat.reading import Characters, Reading

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
_MAX_HEADER = 300
_RECIPIENT = re.compile(r"to=functions\.([\w.-]+)")
_THOUGHT = re.compile(re.escape(CHANNEL) + r"\s*analysis\b")


def read_harmony(source: Characters, sink: CallSink, tools: list[Tool]) -> Reading[None]:
    """Read messages to the end of the text. Without tools there are no calls."""
    has_begun = False
    while True:
        header = yield from _header(source)
        if not header.endswith(MESSAGE):
            # The end, perhaps within a header; or a text that is no such message at all.
            if not has_begun or len(header) > _MAX_HEADER:
                sink.say(header)
                yield from source.until(sink.say)
            return
        has_begun = True
        sink.say(_stray(header))
        call = _RECIPIENT.search(header)
        if call is not None and tools:
            yield from CallReader(source, sink).read_arguments(call[1])
        say = sink.think if call is None and _THOUGHT.search(header) else sink.say
        mark = yield from source.until(say, END, CALL, RETURN, START)
        if mark:
            sink.end_part()
        source.put_back(START if mark == START else "")


def _stray(header: str) -> str:
    """What has no business in a header: text in front of its marks."""
    before = header.removesuffix(MESSAGE).partition(CHANNEL)[0]
    before = _RECIPIENT.sub("", before.removeprefix(START).removeprefix("assistant"))
    return before if before.strip() else ""


def _header(source: Characters) -> Reading[str]:
    header = ""
    while not header.endswith(MESSAGE) and len(header) <= _MAX_HEADER:
        char = yield from source.next()
        if not char:
            break
        header += char
    return header
