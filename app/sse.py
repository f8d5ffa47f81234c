"""Server-sent events: one payload an event, and comments between them."""

from collections.abc import Iterable
from typing import Any

import msgspec

from app.wording import END, Piece

_encode = msgspec.json.Encoder().encode
_DONE = b"[DONE]"
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}


def event(payload: Any, event_id: object = None) -> bytes:
    data = b"data: " + (_DONE if payload is END else _encode(payload)) + b"\n\n"
    return data if event_id is None else f"id: {event_id}\n".encode() + data


def events(pieces: Iterable[Piece]) -> bytes:
    return b"".join(event(piece.chunk, piece.event_id) for piece in pieces)


def keepalive(queue_position: int | None) -> bytes:
    """`queue_position`: how many requests are before this one; None = it does not wait there."""
    return comment("waiting" if queue_position is None else f"queue position {queue_position}")


def comment(text: str) -> bytes:
    """Clients skip it, people who look see it.

    No blank line behind it: where an id has come before, the `openai` package takes one for an
    event without data, and fails.
    """
    return f": {text}\n".encode()
