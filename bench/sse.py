"""What came back on a socket → the chunks of a stream, each with its time of arrival.

HTTP/1.1 with chunked transfer encoding, server-sent events, OpenAI's completion chunks: as much
of each as both servers use.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
from msgspec import Struct


class Stream(Struct, kw_only=True):
    """One answer. Times are CLOCK_MONOTONIC seconds, comparable between processes."""

    sent_at: float
    ended_at: float
    chunk_at: list[float]
    """Arrival of each chunk with text."""
    chunk_texts: list[str]
    completion_tokens: int
    """From the usage chunk; -1 if the stream was cut off before it."""
    prompt_tokens: int = 0

    @property
    def text(self) -> str:
        return "".join(self.chunk_texts)


@dataclass(slots=True)
class Answer:
    """One request under way, with every piece of the answer as it came."""

    request: bytes
    sent_at: float = 0.0
    ended_at: float = 0.0
    received: list[tuple[float, bytes]] = field(default_factory=list)
    is_cut: bool = False
    """The client left before the end."""


class _Choice(Struct):
    text: str


class _Usage(Struct):
    completion_tokens: int
    prompt_tokens: int = 0


class _Chunk(Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw | None = None


def parse(answer: Answer) -> Stream:
    """Raises RuntimeError unless the answer is a whole stream with usage, or one that was cut."""
    stream = Stream(
        sent_at=answer.sent_at,
        ended_at=answer.ended_at,
        chunk_at=[],
        chunk_texts=[],
        completion_tokens=-1,
    )
    decoder = msgspec.json.Decoder(_Chunk)
    is_done = False
    for at, line in _sse_lines(answer):
        if line == b"data: [DONE]":
            is_done = True
        elif line.startswith(b"data: "):
            chunk = decoder.decode(line[6:])
            if chunk.error is not None:
                raise RuntimeError(f"error in the stream: {bytes(chunk.error)!r}")
            if chunk.usage is not None:
                stream.completion_tokens = chunk.usage.completion_tokens
                stream.prompt_tokens = chunk.usage.prompt_tokens
            text = "".join(choice.text for choice in chunk.choices)
            if text:
                stream.chunk_at.append(at)
                stream.chunk_texts.append(text)
    if not answer.is_cut and (not is_done or stream.completion_tokens < 0):
        raise RuntimeError("the stream ended without usage and [DONE]")
    return stream


def _sse_lines(answer: Answer) -> Iterator[tuple[float, bytes]]:
    """The lines of the event stream, each with the time at which it was complete."""
    lines = b""
    for at, piece in _body_pieces(answer):
        *complete, lines = (lines + piece).split(b"\n")
        for line in complete:
            yield at, line.rstrip(b"\r")


def _body_pieces(answer: Answer) -> Iterator[tuple[float, bytes]]:
    """Undo the chunked transfer encoding. Raises RuntimeError unless the status is 200."""
    raw = b""
    in_body = False
    for at, data in answer.received:
        raw += data
        if not in_body:
            head, end, rest = raw.partition(b"\r\n\r\n")
            if not end:
                continue
            if b" 200 " not in head.split(b"\r\n")[0] or b"chunked" not in head.lower():
                raise RuntimeError(f"no stream: {raw[:2000]!r}")
            raw, in_body = rest, True
        start = 0
        while (line_end := raw.find(b"\r\n", start)) >= 0:
            size = int(raw[start:line_end], 16)
            end_at = line_end + 2 + size + 2
            if len(raw) < end_at:
                break
            yield at, raw[line_end + 2 : end_at - 2]
            start = end_at
        raw = raw[start:]
    if not in_body:
        raise RuntimeError("the connection ended before the answer began")
