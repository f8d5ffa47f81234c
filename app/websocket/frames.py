"""The frames of a WebSocket connection: decodes the client's, makes the server's.

docs/protocol.md describes them.
"""

from typing import Any

import msgspec

from app.events.event_id import EventId, parse_event_id
from app.formats.base import timings_ms
from app.schemas.parse import unknown_name
from app.streaming.chunk_encoder import EncodedChunk
from shared.errors import InvalidRequest, LlmisError
from shared.wire.operations import OperationProgress

Frame = dict[str, Any]
_NAMES: dict[str, set[str]] = {
    "auth": {"type", "id", "key"},
    "request": {"type", "id", "endpoint", "body", "request_id", "idempotency_key"},
    "resume": {"type", "id", "last_event_id"},
    "cancel": {"type", "id"},
}
"""Type of a frame → the names in it."""


def decode(payload: str | bytes) -> Frame:
    """Raises InvalidRequest."""
    try:
        frame = msgspec.json.decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise InvalidRequest(f"The frame is not valid JSON: {exc}") from exc
    if not isinstance(frame, dict):
        raise InvalidRequest("A frame must be a JSON object.")
    return frame


def type_of(frame: Frame) -> str:
    """Empty if it is not a string. Raises InvalidRequest for a name that its type does not have."""
    kind = frame.get("type")
    if not isinstance(kind, str):
        return ""
    unknown = frame.keys() - _NAMES.get(kind, frame.keys())
    if unknown:
        raise unknown_name(min(unknown))
    return kind


def id_of(frame: Frame) -> str:
    """Raises InvalidRequest."""
    frame_id = frame.get("id")
    if not isinstance(frame_id, str) or not 1 <= len(frame_id) <= 128:
        raise InvalidRequest("id must be a string of 1 to 128 characters.", param="id")
    return frame_id


def event_id_of(frame: Frame) -> EventId:
    """Raises InvalidRequest."""
    return parse_event_id(text_of(frame, "last_event_id") or "")


def text_of(frame: Frame, name: str) -> str | None:
    """Raises InvalidRequest."""
    value = frame.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{name} must be a string.", param=name)
    return value


def encode(frame: Frame) -> str:
    return msgspec.json.encode(frame).decode()


def accepted(frame_id: str, at: EventId) -> Frame:
    request_id = at.job_id
    return {"type": "accepted", "id": frame_id, "request_id": request_id, "event_id": str(at)}


def loading(frame_id: str, load: OperationProgress) -> Frame:
    progress = {"model": load.model, "stage": load.stage, "fraction": load.fraction}
    return {"type": "loading", "id": frame_id, **progress}


def queued(frame_id: str, position: int) -> Frame:
    return {"type": "queued", "id": frame_id, "position": position}


def prefill(frame_id: str, fraction: float) -> Frame:
    return {"type": "prefill", "id": frame_id, "fraction": round(fraction, 4)}


def chunk(frame_id: str, encoded: EncodedChunk) -> Frame:
    """A chunk of the answer, or its end."""
    event_id = str(encoded.event_id)
    if encoded.finished is None:
        return {"type": "chunk", "id": frame_id, "event_id": event_id, "data": encoded.chunk}
    timings = timings_ms(encoded.finished.timings)
    return {"type": "done", "id": frame_id, "event_id": event_id, "timings": timings}


def error(frame_id: Any, failure: LlmisError) -> Frame:
    """`frame_id`: as the client sent it, whatever it is; None = no frame could be decoded."""
    return {"type": "error", "id": frame_id, **failure.body()}
