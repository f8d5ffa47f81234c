"""Server-sent events: one payload per event, and comments between them, which carry no id."""

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from app.streaming.chunk_encoder import DONE, EncodedChunk
from shared.wire.operations import OperationProgress

_encode = msgspec.json.Encoder().encode
_DONE = b"data: [DONE]\n\n"
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}
_LINE_ENDS = re.compile(b"|".join(char.encode() for char in "\x85\u2028\u2029"))
"""Characters that end a line for some clients, such as Python's `str.splitlines`, and that JSON
leaves as they are. The others are control characters, which it escapes."""


def event(payload: Any, event_id: object = None) -> bytes:
    """The end has no id: some clients compare its event as a whole. A reader that resumes behind
    the event before it gets the end once more."""
    if payload is DONE:
        return _DONE
    data = _encode(payload)
    if not data.isascii():
        data = _LINE_ENDS.sub(_escaped, data)
    if event_id is None:
        return b"data: %b\n\n" % data
    return b"id: %b\ndata: %b\n\n" % (str(event_id).encode(), data)


def _escaped(found: re.Match[bytes]) -> bytes:
    """In JSON such a character is in a string."""
    return b"\\u%04x" % ord(found[0].decode())


def events(chunks: Iterable[EncodedChunk]) -> bytes:
    return b"".join([event(chunk.chunk, chunk.event_id) for chunk in chunks])


def keepalive(queue_position: int | None) -> bytes:
    """`queue_position`: number of requests before this one; None = it is not in a queue."""
    return _comment("waiting" if queue_position is None else f"queue position {queue_position}")


def loading(load: OperationProgress) -> bytes:
    return _comment(f"loading {load.model}: {load.stage} {load.fraction:.0%}")


def prefill(fraction: float) -> bytes:
    return _comment(f"reading the prompt {fraction:.0%}")


def _comment(text: str) -> bytes:
    """Clients skip comments.

    No blank line behind it: after an earlier id the `openai` package takes a blank line for an
    event without data, and fails.
    """
    return f": {text}\n".encode()
