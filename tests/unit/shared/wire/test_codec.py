"""What is no wire message is refused with its bytes. tests/contract/test_wire_bytes.py has what
the messages are."""

import msgspec
import pytest

from shared.wire import codec
from shared.wire.codec import DecodeError
from shared.wire.job import Job, JobKind

_JOB = Job(
    id="req-1",
    model="m",
    kind=JobKind.COMPLETION,
    prompts=["a", [1, 2]],
    created_at=1.5,
    deadline_at=2.5,
)


@pytest.mark.parametrize("payload", [b"", b"\xff\x00", b"\x93\xa5delta\x00", b"{}", b"\x00" * 300])
def test_garbage_is_refused_with_its_bytes(payload: bytes) -> None:
    for decode in (codec.decode_job, codec.decode_event, codec.decode_hub_message):
        with pytest.raises(DecodeError) as caught:
            decode(payload)
        assert caught.value.payload == payload[:200]


def test_a_job_of_another_version_is_refused() -> None:
    other = msgspec.structs.replace(_JOB, version=99)
    with pytest.raises(DecodeError, match="version 99"):
        codec.decode_job(codec.encode_job(other))


def test_a_job_can_be_read_by_the_version_before() -> None:
    """What it wants of every job; the rest has defaults there."""
    required = {"id", "model", "kind", "reply_channel", "created_at", "deadline_at"}
    assert required <= set(msgspec.msgpack.decode(codec.encode_job(_JOB)))
