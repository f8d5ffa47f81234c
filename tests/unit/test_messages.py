"""The wire messages survive the wire, and what is not one is refused with its bytes."""

import msgspec
import pytest

from shared import messages
from shared.messages import (
    Delta,
    Event,
    Failed,
    Finished,
    FinishReason,
    Job,
    JobKind,
    Progress,
    Started,
    Timings,
    Usage,
)

_JOB = Job(
    id="req-1",
    model="m",
    kind=JobKind.COMPLETION,
    prompts=["a", [1, 2]],
    created_at=1.5,
    deadline_at=2.5,
)
_EVENTS: list[Event] = [
    Started(0, 0, 7),
    Progress(1, 0, 3, 7),
    Delta(2, 0, 1, "€", [5, 6], FinishReason.STOP),
    Finished(3, 0, Usage(7, 2, 1), Timings(0.1, 0.2, 0.3)),
    Failed(4, 1, 400, None, "no", "prompt"),
]


def test_a_job_survives_the_wire() -> None:
    assert messages.decode_job(messages.encode_job(_JOB)) == _JOB


def test_events_survive_the_wire_alone_and_on_a_hub_channel() -> None:
    encoded = [messages.encode_event(event) for event in _EVENTS]
    assert [messages.decode_event(payload) for payload in encoded] == _EVENTS
    packed = messages.encode_hub_message([("j", payload) for payload in encoded], 1.5)
    assert [e.event for e in messages.decode_hub_message(packed)] == _EVENTS


@pytest.mark.parametrize("payload", [b"", b"\xff\x00", b"\x93\xa5delta\x00", b"{}", b"\x00" * 300])
def test_garbage_is_refused_with_its_bytes(payload: bytes) -> None:
    for decode in (messages.decode_job, messages.decode_event, messages.decode_hub_message):
        with pytest.raises(messages.DecodeError) as caught:
            decode(payload)
        assert caught.value.payload == payload[:200]


def test_a_job_of_another_version_is_refused() -> None:
    other = msgspec.structs.replace(_JOB, version=99)
    with pytest.raises(messages.DecodeError, match="version 99"):
        messages.decode_job(messages.encode_job(other))


def test_a_job_can_be_read_by_the_version_before() -> None:
    """What it wants of every job; the rest has defaults there."""
    required = {"id", "model", "kind", "reply_channel", "created_at", "deadline_at"}
    assert required <= set(msgspec.msgpack.decode(messages.encode_job(_JOB)))
