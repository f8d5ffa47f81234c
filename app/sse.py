"""Server-sent events: one payload an event, and comments between them."""

from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode
DONE = b"data: [DONE]\n\n"
KEEPALIVE = b": waiting\n\n"


def event(payload: Any) -> bytes:
    return b"data: " + _encode(payload) + b"\n\n"


def comment(text: str) -> bytes:
    """Clients skip it, people who look see it."""
    return f": {text}\n\n".encode()
