"""Every message that crosses a process or lies in Redis, byte by byte.

A process of the version before and one of the version after an upgrade read each other's messages,
and both read what lies in Redis. The examples are frozen as MessagePack in hexadecimal digits, or
as JSON text where the encoding is JSON.
"""

import os
import re
import socket
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import redis
from msgspec import NODEFAULT, Struct
from msgspec.structs import fields

from shared.api_keys import ApiKey
from shared.api_keys import read as read_keys
from shared.names import API_KEYS, PRIORITY_STEPS
from shared.queue.celery_message import FIRST, queue_message
from shared.queue.lease import Lease
from shared.queue.lease import decode as decode_claim
from shared.wire.codec import (
    DecodeError,
    decode_event,
    decode_hub_message,
    decode_job,
    encode_event,
    encode_hub_message,
    encode_job,
)
from shared.wire.codec import decode as decode_message
from shared.wire.codec import encode as encode_message
from shared.wire.events import Event, JobEvent
from shared.wire.job import Job
from shared.wire.records import ReplicaRecord
from shared.wire.version import VERSION
from tests.contract.frozen_file import (
    FOLDER,
    assert_frozen_bytes,
    assert_frozen_text,
    frozen_bytes,
    frozen_text,
)
from tests.contract.job_examples import (
    CLAIMS,
    EVENTS,
    HUB_EVENTS,
    JOBS,
    KEYS,
    PUBLISHED_AT,
    REPLICAS,
)
from tests.contract.lifecycle_examples import MESSAGES

_QUEUED = {"queue-message-full": "job-full", "queue-message-minimal": "job-chat-minimal"}


def test_the_version_of_the_messages() -> None:
    assert VERSION == 5


@pytest.mark.parametrize("name", JOBS)
def test_a_job(name: str) -> None:
    assert_frozen_bytes(f"wire/{name}.hex", encode_job(JOBS[name]))
    assert decode_job(frozen_bytes(f"wire/{name}.hex")) == JOBS[name]


def test_a_job_of_another_version_is_refused() -> None:
    old = msgspec.structs.replace(JOBS["job-chat-minimal"], version=VERSION - 1)
    with pytest.raises(DecodeError):
        decode_job(encode_job(old))


@pytest.mark.parametrize("name", EVENTS)
def test_an_event(name: str) -> None:
    assert_frozen_bytes(f"wire/{name}.hex", encode_event(EVENTS[name]))
    assert decode_event(frozen_bytes(f"wire/{name}.hex")) == EVENTS[name]


def test_a_hub_message() -> None:
    encoded = [(one.job_id, encode_event(one.event)) for one in HUB_EVENTS]
    assert_frozen_bytes("wire/hub-message.hex", encode_hub_message(encoded, PUBLISHED_AT))
    assert decode_hub_message(frozen_bytes("wire/hub-message.hex")) == HUB_EVENTS


@pytest.mark.parametrize("name", REPLICAS)
def test_a_replicas_record(name: str) -> None:
    assert_frozen_bytes(f"wire/{name}.hex", encode_message(REPLICAS[name]))
    assert decode_message(frozen_bytes(f"wire/{name}.hex"), ReplicaRecord) == REPLICAS[name]


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_about_models_and_nodes(name: str) -> None:
    example = MESSAGES[name]
    assert_frozen_bytes(f"wire/{name}.hex", encode_message(example))
    assert decode_message(frozen_bytes(f"wire/{name}.hex"), type(example)) == example


@pytest.mark.parametrize("name", KEYS)
def test_an_api_key(name: str, server: redis.Redis) -> None:
    """As the code that makes keys writes it, and as the code that checks them reads it."""
    assert_frozen_bytes(f"wire/{name}.hex", msgspec.msgpack.encode(KEYS[name]))
    server.hset(API_KEYS, "digest", frozen_bytes(f"wire/{name}.hex"))
    assert read_keys(server) == {"digest": KEYS[name]}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim(name: str) -> None:
    assert_frozen_text(f"wire/{name}.json", CLAIMS[name].encode().decode())
    assert decode_claim(frozen_text(f"wire/{name}.json").encode()) == CLAIMS[name]


@pytest.mark.parametrize("name", _QUEUED)
def test_the_celery_message_of_a_job(name: str) -> None:
    job = JOBS[_QUEUED[name]]
    text = _with_fixed_origin(queue_message(job, PRIORITY_STEPS[1]).decode())
    assert_frozen_text(f"wire/{name}.json", text)


def test_the_celery_message_of_a_job_that_comes_again() -> None:
    payload = queue_message(JOBS["job-chat-minimal"], PRIORITY_STEPS[0], FIRST)
    assert_frozen_text("wire/queue-message-again.json", _with_fixed_origin(payload.decode()))


def _with_fixed_origin(text: str) -> str:
    """The message without what differs each time: process, host, delivery tag."""
    origin = f'"origin":"gen{os.getpid()}@{socket.gethostname()}"'
    assert text.count(origin) == 1
    text = text.replace(origin, '"origin":"gen1@host"')
    text, num_tags = re.subn(r'"delivery_tag":"[0-9a-f-]{36}"', '"delivery_tag":"uuid"', text)
    assert num_tags == 1
    return text


# -- the examples --------------------------------------------------------------------------------

_FULL: dict[str, Any] = {
    name: example
    for examples in (JOBS, EVENTS, REPLICAS, MESSAGES, KEYS, CLAIMS)
    for name, example in examples.items()
    if name.endswith("-full")
}


@pytest.mark.parametrize("name", _FULL)
def test_a_full_example_has_a_value_in_every_field(name: str) -> None:
    """So a new field cannot be forgotten here."""
    assert not list(_at_default(_FULL[name], name))


def _at_default(message: Struct, path: str) -> Iterator[str]:
    """Fields at their default, also in messages inside that are not one of several."""
    for field in fields(message):
        value, place = getattr(message, field.name), f"{path}.{field.name}"
        default = field.default
        if field.default_factory is not NODEFAULT:
            default = field.default_factory()
        if default is not NODEFAULT and value == default and field.name != "version":
            yield place
        if isinstance(value, Struct):
            yield from _at_default(value, place)


def test_every_event_has_an_example() -> None:
    assert {type(example) for example in EVENTS.values()} == set(Event.__args__)


def test_no_frozen_message_is_left_without_a_test() -> None:
    names = {*JOBS, *EVENTS, *REPLICAS, *MESSAGES, *KEYS, *CLAIMS, *_QUEUED}
    names |= {"hub-message", "queue-message-again"}
    assert {path.stem for path in (FOLDER / "wire").iterdir()} == names


@pytest.mark.parametrize("shape", [Job, ReplicaRecord, ApiKey, Lease])
def test_unknown_fields_of_a_newer_version_are_left_out(shape: type[Struct]) -> None:
    examples = {Job: JOBS["job-full"], ReplicaRecord: REPLICAS["replica-full"],
                ApiKey: KEYS["key-full"], Lease: CLAIMS["claim-full"]}  # fmt: skip
    values = msgspec.to_builtins(examples[shape]) | {"from_tomorrow": 1}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(values), type=shape) == examples[shape]


def test_more_values_of_a_newer_version_are_left_out() -> None:
    values = msgspec.msgpack.decode(encode_event(EVENTS["event-start"]))
    newer = msgspec.msgpack.encode([*values, "from tomorrow"])
    assert decode_event(newer) == EVENTS["event-start"]
    packed = msgspec.msgpack.encode([["req-1", msgspec.Raw(newer), 1.0, "from tomorrow"]])
    assert decode_hub_message(packed) == [JobEvent("req-1", EVENTS["event-start"], 1.0)]
