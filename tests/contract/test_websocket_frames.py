"""Frames of `WS /v1/ws` for what a client can send: frozen in `frozen/http/websocket`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from simple_websocket import Client

from tests.conftest import Service
from tests.contract import frozen_file
from tests.contract.bodies import NO_SPACE
from tests.contract.canonical import decode, is_event_id, joined, text_of
from tests.support.counter_model import number_token
from tests.support.raw_http import websocket_close

_FOLDER = "http/websocket"
_UNTIMED = ("queued", "loading", "prefill")
"""Types of frames that depend on how busy the service is."""
_LAST = ("done", "error", "cancelled", "pong", "authenticated")
_COMPLETION = {"model": "counter", "prompt": "17", "max_tokens": 4, "temperature": 0}
_CHAT = {
    "model": "counter",
    "messages": [{"role": "user", "content": "17"}],
    "max_tokens": 4,
    "temperature": 0,
}


def _request(frame_id: Any = "a", endpoint: str = "completions", **body: Any) -> dict[str, Any]:
    base = _COMPLETION if endpoint == "completions" else _CHAT
    return {"type": "request", "id": frame_id, "endpoint": endpoint, "body": {**base, **body}}


_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
        "strict": True,
    },
}
_MESSAGES: dict[str, Any] = {
    "completion": _request(),
    "completion-n-usage": _request(n=2, stream_options={"include_usage": True}),
    "completion-logprobs": _request(logprobs=1),
    "completion-echo": _request(prompt=[number_token(5)], echo=True),
    "chat": _request(endpoint="chat.completions"),
    "chat-by-default": {"type": "request", "id": "a", "body": _CHAT},
    "chat-tool": _request(
        endpoint="chat.completions",
        tools=[_TOOL],
        tool_choice="required",
        n=1,
        max_tokens=200,
        parallel_tool_calls=False,
        logit_bias=NO_SPACE,
    ),
    "chat-metadata-usage": _request(
        endpoint="chat.completions",
        metadata={"a": "b"},
        service_tier="auto",
        stream_options={"include_usage": True},
    ),
    "ping": {"type": "ping", "id": "p"},
    "ping-without-id": {"type": "ping"},
    "bytes": json.dumps({"type": "ping", "id": "p"}).encode(),
    "auth-not-needed": {"type": "auth", "key": "any"},
    "auth-without-key": {"type": "auth"},
    "no-json": "{",
    "no-object": "[]",
    "no-text": b"\xff\xfe",
    "unknown-type": {"type": "what", "id": "a"},
    "id-of-another-type": {"type": "request", "id": 5},
    "unknown-endpoint": {"type": "request", "id": "a", "endpoint": "embeddings", "body": {}},
    "no-body": {"type": "request", "id": "a", "body": None},
    "bad-body": _request(no_such=1),
    "bad-request-id": {**_request(), "request_id": 5},
    "unknown-model": _request(model="none"),
    "too-long": _request(prompt=[number_token(1)] * 3000),
    "cancel-of-nothing": {"type": "cancel", "id": "none"},
    "resume-without-event": {"type": "resume", "id": "a"},
    "resume-of-nothing": {"type": "resume", "id": "a", "last_event_id": "none:3"},
}


@pytest.mark.parametrize("name", _MESSAGES)
def test_one_message(service: Service, name: str) -> None:
    with _connected(service) as ws:
        _send(ws, _MESSAGES[name])
        found = _canonical(_receive_until_end(ws))
    frozen_file.assert_frozen_exactly(f"{_FOLDER}/{name}.txt", found)


def test_a_request_that_is_cancelled(service: Service) -> None:
    with _connected(service) as ws:
        _send(ws, _request(n=16, max_tokens=1900))
        first = _receive(ws)
        _send(ws, {"type": "cancel", "id": "a"})
        rest = [frame for frame in _receive_until_end(ws) if frame["type"] != "chunk"]
    frozen_file.assert_frozen_exactly(f"{_FOLDER}/cancelled.txt", _canonical([first, *rest]))


def test_a_second_request_with_the_id_of_an_open_one(service: Service) -> None:
    with _connected(service) as ws:
        _send(ws, _request(n=16, max_tokens=1900))
        _send(ws, _request())
        frames = [frame for frame in _receive_until_end(ws) if frame["type"] == "error"]
    frozen_file.assert_frozen_exactly(f"{_FOLDER}/id-in-use.txt", _canonical(frames))


def test_a_request_that_is_read_once_more(service: Service) -> None:
    with _connected(service) as ws:
        _send(ws, _request())
        start = _receive_until_end(ws)[0]["event_id"]
        _send(ws, {"type": "resume", "id": "b", "last_event_id": start})
        found = _canonical(_receive_until_end(ws))
    frozen_file.assert_frozen_exactly(f"{_FOLDER}/resumed.txt", found)


def test_a_connection_from_another_origin_is_closed(service: Service) -> None:
    assert websocket_close(service, "http://evil.example").code == 1008


def test_no_file_is_left_over() -> None:
    others = {"cancelled", "id-in-use", "resumed"}
    assert frozen_file.frozen_names(_FOLDER) == {*_MESSAGES, *others}


@contextmanager
def _connected(service: Service) -> Iterator[Client]:
    ws = Client.connect(f"ws://127.0.0.1:{service.port}/v1/ws")
    try:
        yield ws
    finally:
        if ws.connected:
            ws.close()


def _send(ws: Client, message: Any) -> None:
    ws.send(message if isinstance(message, str | bytes) else json.dumps(message))


def _receive(ws: Client) -> dict[str, Any]:
    """The next frame that does not depend on how busy the service is."""
    while True:
        text = ws.receive(timeout=60)
        assert isinstance(text, str), "a text frame within a minute"
        frame: dict[str, Any] = decode(text.encode())
        if frame["type"] not in _UNTIMED:
            return frame


def _receive_until_end(ws: Client) -> list[dict[str, Any]]:
    frames = [_receive(ws)]
    while frames[-1]["type"] not in _LAST:
        frames.append(_receive(ws))
    return frames


def _canonical(frames: list[dict[str, Any]]) -> str:
    request_id = next((f["request_id"] for f in frames if f["type"] == "accepted"), "")
    chunks = [frame for frame in frames if frame["type"] == "chunk"]
    assert len({tuple(frame) for frame in chunks}) <= 1, "all chunks have the same keys"
    before = [frame for frame in frames if frame["type"] == "accepted"]
    after = [frame for frame in frames if frame["type"] not in ("accepted", "chunk")]
    types = [frame["type"] for frame in frames]
    assert types == [f["type"] for f in [*before, *chunks, *after]], "accepted, chunks, the end"
    data = joined([frame["data"] for frame in chunks])
    in_order = [*before, *({**chunks[0], "data": d} for d in data), *after]
    return "".join(text_of(_untimed(f, request_id), request_id) + "\n" for f in in_order)


def _untimed(frame: dict[str, Any], request_id: str) -> dict[str, Any]:
    found = dict(frame)
    if "event_id" in frame:
        assert is_event_id(frame["event_id"], request_id), frame
        found["event_id"] = "<event>"
    if "timings" in frame:
        assert all(value >= 0 for value in frame["timings"].values()), frame
        found["timings"] = dict.fromkeys(frame["timings"], 0)
    return found
