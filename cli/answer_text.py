"""The text of a streamed answer, piece by piece."""

import contextlib
from collections.abc import Generator
from typing import Any

from msgspec import Struct

from cli.api import view
from cli.client import Client


class _Delta(Struct, frozen=True):
    content: str | None = None


class _Choice(Struct, frozen=True):
    text: str | None = None
    """Of a legacy completion."""
    delta: _Delta | None = None
    """Of a chat completion."""


class _Chunk(Struct, frozen=True):
    choices: list[_Choice] = []


def pieces(client: Client, path: str, body: dict[str, Any]) -> Generator[str, None, None]:
    """Ask for a stream and yield the first choice's text.

    Use it under `contextlib.closing`: closing it cancels the request. Raises CliError.
    """
    given = {name: value for name, value in body.items() if value is not None}
    with contextlib.closing(client.stream(path, {**given, "stream": True})) as events:
        for event in events:
            for choice in view(event, _Chunk).choices[:1]:
                piece = choice.delta.content if choice.delta else choice.text
                if piece:
                    yield piece
