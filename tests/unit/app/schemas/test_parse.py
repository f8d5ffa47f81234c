"""What checking a body costs: nothing that depends on its class alone."""

import sys
from types import FrameType
from typing import Any

import pytest
from msgspec import Struct

from app.schemas.generation import ChatRequest, CompletionRequest
from app.schemas.parse import parse

_BODY = b'{"model":"m","prompt":"p","messages":[{"role":"user","content":"c"}]}'


@pytest.mark.parametrize("shape", [ChatRequest, CompletionRequest])
def test_a_body_is_checked_without_a_look_at_the_annotations(shape: type[Struct]) -> None:
    other = "prompt" if shape is ChatRequest else "messages"
    body = _BODY.replace(f'"{other}"'.encode(), b'"verbosity"')
    parse(body, shape)
    called: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            called.add(frame.f_globals["__name__"])

    sys.setprofile(note)
    try:
        parse(body, shape)
    finally:
        sys.setprofile(None)
    assert called == {"app.schemas.parse"}
