"""The admin objects take every field from the records: none keeps the default that is meant for
a reader of another version."""

from typing import Any, cast

import msgspec
import pytest
from msgspec import Struct
from msgspec.structs import fields, replace

from app.api.admin import objects
from shared.admin_api import LoadUnderWay, Operation
from shared.registry.directory import Directory
from shared.wire.operations import Failure, OperationKind, OperationProgress, OperationState
from shared.wire.records import ReplicaRecord
from tests.support.registry_records import make_node, make_replica

_FAILURE = Failure(status=507, code="insufficient_memory", message="too large", at=5.0)
_UNLOAD = OperationProgress(
    id="o",
    kind=OperationKind.UNLOAD,
    model="m",
    state=OperationState.FAILED,
    stage="draining",
    fraction=0.5,
    message="waits",
    failure=_FAILURE,
)
_REPLICA = replace(
    make_replica(),
    versions={"llmis": "1"},
    busy_slots=1,
    step_age_s=0.25,
    tokens_per_s=2.0,
    memory_bytes=3,
    estimated_bytes=4,
    started_at=5.0,
    chat_error="unexpected '.'",
)
_NODE = replace(
    make_node("n", 60, 70, models=["m"]),
    versions={"llmis": "1"},
    started_at=5.0,
    clock_ahead_s=1.5,
    promised_bytes=6,
)


class _OneReplica:
    def replicas(self) -> list[ReplicaRecord]:
        return [_REPLICA]


_NODE_OBJECT = objects.node(_NODE, cast("Directory", _OneReplica()))
_FILLED = [
    objects.operation(_UNLOAD),
    msgspec.convert(_UNLOAD, LoadUnderWay, from_attributes=True),
    objects._replica(_REPLICA),
    _NODE_OBJECT,
    *_NODE_OBJECT.devices,
]


@pytest.mark.parametrize("filled", _FILLED, ids=[type(each).__name__ for each in _FILLED])
def test_no_field_keeps_its_default(filled: Struct) -> None:
    kept = [f.name for f in fields(filled) if getattr(filled, f.name) == _default(f)]
    assert [name for name in kept if (type(filled).__name__, name) != ("Node", "object")] == []


def _default(field: msgspec.structs.FieldInfo) -> Any:
    factory = field.default_factory
    return field.default if factory is msgspec.NODEFAULT else factory()


def test_values_that_are_not_a_field_of_the_record() -> None:
    replica = objects._replica(_REPLICA)
    assert (replica.memory_estimated_bytes, replica.memory_bytes) == (4, 3)
    assert (_NODE_OBJECT.memory_total_bytes, _NODE_OBJECT.memory_free_bytes) == (2000, 130)
    assert (_NODE_OBJECT.memory_promised_bytes, _NODE_OBJECT.replicas) == (6, 1)
    assert _NODE_OBJECT.version == "1"


def test_an_unload_that_failed() -> None:
    operation = objects.operation(_UNLOAD)
    assert operation.object == "model.unload"
    assert operation.error is not None
    assert (operation.error.code, operation.error.message) == ("insufficient_memory", "too large")


def test_the_command_reads_what_the_service_sends() -> None:
    sent = msgspec.json.encode(objects.operation(_UNLOAD))
    assert msgspec.json.decode(sent, type=Operation) == objects.operation(_UNLOAD)
