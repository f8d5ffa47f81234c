"""Encodes and decodes the messages between processes: MessagePack, with one version number."""

from typing import TypeVar

import msgspec
from msgspec import Struct

from shared.wire.events import Event, JobEvent
from shared.wire.job import Job
from shared.wire.version import VERSION


class DecodeError(ValueError):
    """Bytes that are not the expected message. They may hold a prompt, so the text of the error,
    which is logged, does not quote them."""

    def __init__(self, reason: str, payload: bytes) -> None:
        super().__init__(f"{reason} ({len(payload)} bytes)")
        self.payload = payload[:200]


class _RawJobEvent(Struct, frozen=True, array_like=True):
    job_id: str
    event: msgspec.Raw
    published_at: float


T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_job_decoder = msgspec.msgpack.Decoder(Job)
_event_decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)
_hub_decoder = msgspec.msgpack.Decoder(list[JobEvent])


def _decode(decoder: "msgspec.msgpack.Decoder[T]", payload: bytes) -> T:
    try:
        return decoder.decode(payload)
    except (msgspec.DecodeError, msgspec.ValidationError) as exc:
        raise DecodeError(str(exc), payload) from exc


def encode_job(job: Job) -> bytes:
    return _encoder.encode(job)


def decode_job(payload: bytes) -> Job:
    """Raises DecodeError, also for a job of another version."""
    job = _decode(_job_decoder, payload)
    if job.version != VERSION:
        raise DecodeError(f"job of version {job.version}, this process speaks {VERSION}", payload)
    return job


def encode_event(event: Event) -> bytes:
    return _encoder.encode(event)


def decode_event(payload: bytes) -> Event:
    """Raises DecodeError."""
    return _decode(_event_decoder, payload)


def encode_hub_message(events: list[tuple[str, bytes]], published_at: float) -> bytes:
    """Pack (job id, encoded event) pairs into one pub/sub message without encoding them again.
    `published_at`: Unix time in seconds."""
    return _encoder.encode(
        [_RawJobEvent(job_id, msgspec.Raw(event), published_at) for job_id, event in events]
    )


def decode_hub_message(payload: bytes) -> list[JobEvent]:
    """Raises DecodeError."""
    return _decode(_hub_decoder, payload)


def encode(message: Struct) -> bytes:
    return _encoder.encode(message)


def decode(payload: bytes | str | None, shape: type[T]) -> T | None:
    """Decode a message; None if there is none. Raises DecodeError."""
    if payload is None:
        return None
    assert isinstance(payload, bytes), "the clients made by shared.redis.connection do not decode"
    return _decode(msgspec.msgpack.Decoder(shape), payload)
