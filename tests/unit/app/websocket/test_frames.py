"""Frames of the WebSocket: what is decoded, what is sent."""

import json
from typing import Any

import pytest

from app.events.event_id import EventId
from app.streaming.chunk_encoder import DONE, EncodedChunk
from app.websocket import frames
from shared.errors import InvalidRequest, ModelNotFound
from shared.wire.events import Finished, Timings, Usage
from shared.wire.operations import OperationKind, OperationProgress, OperationState


@pytest.mark.parametrize("payload", ["{", "[]", '"text"', b"\xff\xfe", "[" * 100_000])
def test_what_is_no_json_object_is_refused(payload: str | bytes) -> None:
    with pytest.raises(InvalidRequest):
        frames.decode(payload)


def test_text_and_binary_frames_are_the_same() -> None:
    assert frames.decode('{"type": "ping"}') == frames.decode(b'{"type": "ping"}')


@pytest.mark.parametrize(
    ("frame", "name"),
    [
        ({"type": "request", "id": "a", "body": {}, "idempotency-key": "k"}, "idempotency-key"),
        ({"type": "resume", "id": "a", "event_id": "r:3"}, "event_id"),
        ({"type": "auth", "api_key": "k"}, "api_key"),
        ({"type": "cancel", "request_id": "r"}, "request_id"),
    ],
)
def test_a_name_that_the_type_does_not_have_is_refused(frame: frames.Frame, name: str) -> None:
    with pytest.raises(InvalidRequest, match="Unrecognized") as caught:
        frames.type_of(frame)
    assert caught.value.param == name


@pytest.mark.parametrize("kind", [None, 5, [], {}])
def test_a_type_is_a_string(kind: Any) -> None:
    assert frames.type_of({"type": kind, "x": 1}) == ""
    assert frames.type_of({"type": "ping", "x": 1}) == "ping"


@pytest.mark.parametrize("frame_id", [None, 5, "", "x" * 129])
def test_an_id_is_a_short_string(frame_id: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        frames.id_of({"id": frame_id})
    assert caught.value.param == "id"
    assert frames.id_of({"id": "x" * 128}) == "x" * 128


def test_a_text_field_may_be_missing_but_not_of_another_type() -> None:
    assert frames.text_of({}, "key") is None
    with pytest.raises(InvalidRequest, match="key must be a string"):
        frames.text_of({"key": 5}, "key")


def test_an_event_id_is_needed_to_resume() -> None:
    assert frames.event_id_of({"last_event_id": "r:3"}) == EventId("r", 3)
    with pytest.raises(InvalidRequest):
        frames.event_id_of({})


def _sent(frame: frames.Frame) -> Any:
    return json.loads(frames.encode(frame))


def test_progress_frames_name_their_request() -> None:
    load = OperationProgress(
        id="o",
        kind=OperationKind.LOAD,
        model="m",
        state=OperationState.LOADING,
        stage="reading weights",
        fraction=0.5,
    )
    assert _sent(frames.loading("a", load)) == {
        "type": "loading", "id": "a", "model": "m", "stage": "reading weights", "fraction": 0.5
    }  # fmt: skip
    assert _sent(frames.queued("a", 0)) == {"type": "queued", "id": "a", "position": 0}
    assert _sent(frames.prefill("a", 1 / 3)) == {"type": "prefill", "id": "a", "fraction": 0.3333}


def test_the_end_of_an_answer_is_no_chunk() -> None:
    at = EventId("r", 4)
    chunk = _sent(frames.chunk("a", EncodedChunk(at, {"n": 1})))
    assert chunk == {"type": "chunk", "id": "a", "event_id": "r:4", "data": {"n": 1}}
    finished = Finished(2, 0, Usage(3, 1), Timings(0.5, 0.25, 0.125))
    done = _sent(frames.chunk("a", EncodedChunk(at, DONE, finished)))
    assert (done["type"], done["event_id"]) == ("done", "r:4")
    assert done["timings"] == {"queue_ms": 500, "prefill_ms": 250, "decode_ms": 125}


def test_an_error_carries_the_id_as_it_came() -> None:
    error = _sent(frames.error(5, ModelNotFound("no such model", param="model")))
    assert (error["type"], error["id"], error["error"]["param"]) == ("error", 5, "model")
