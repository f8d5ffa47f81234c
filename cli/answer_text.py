"""The text of a streamed answer, in pieces."""

import contextlib
from collections.abc import Generator
from typing import Any

from msgspec import Struct

from cli.client import ServiceClient, view


class _DeltaText(Struct, frozen=True):
    content: str | None = None


class _ChoiceText(Struct, frozen=True):
    text: str | None = None
    """In a text completion."""
    delta: _DeltaText | None = None
    """In a chat completion."""


class _ChunkText(Struct, frozen=True):
    choices: list[_ChoiceText] = []


def pieces(client: ServiceClient, path: str, body: dict[str, Any]) -> Generator[str, None, None]:
    """Request a stream and yield the text of its first choice. Use it under `contextlib.closing`:
    closing it cancels the request. Raises CliError."""
    given = {name: value for name, value in body.items() if value is not None}
    with contextlib.closing(client.stream(path, {**given, "stream": True})) as events:
        for event in events:
            for choice in view(event, _ChunkText).choices[:1]:
                piece = choice.delta.content if choice.delta else choice.text
                if piece:
                    yield piece
