"""Server-sent events: one payload an event, and comments between them."""

from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode
DONE = b"data: [DONE]\n\n"


def event(payload: Any) -> bytes:
    return b"data: " + _encode(payload) + b"\n\n"


def keepalive(queue_position: int | None) -> bytes:
    """`queue_position`: how many requests are before this one; None = it does not wait there."""
    return comment("waiting" if queue_position is None else f"queue position {queue_position}")


def comment(text: str) -> bytes:
    """Clients skip it, people who look see it."""
    return f": {text}\n\n".encode()
