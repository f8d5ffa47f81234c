"""The admin API's objects, from the registry's records."""

from typing import Any

from msgspec import convert
from msgspec.structs import replace

from app.services import Services
from shared.admin_api import AdminModel, FailureObject, LoadUnderWay, Node, Operation, Replica
from shared.clock import clock
from shared.errors import ErrorObject
from shared.model_spec import ModelSpec
from shared.registry import operations
from shared.registry.directory import Directory
from shared.wire.operations import OperationKind, OperationProgress
from shared.wire.records import NodeRecord, ReplicaRecord


def operation(progress: OperationProgress) -> Operation:
    return replace(
        convert(progress, Operation, from_attributes=True),
        object="model.load" if progress.kind is OperationKind.LOAD else "model.unload",
        error=ErrorObject(**progress.failure.body()) if progress.failure else None,
    )


def model(parts: Services, name: str) -> AdminModel:
    """A model with its replicas."""
    directory = parts.directory
    records = directory.replicas(name)
    failure = directory.failure(name)
    load = directory.operation(OperationKind.LOAD, name)
    return AdminModel(
        id=name,
        state=parts.catalog.state(name),
        is_configured=parts.catalog.is_configured(name),
        **_settings(_spec(parts, name, load), records),
        slots=sum(record.slots for record in records),
        busy_slots=sum(record.busy_slots for record in records),
        queue_length=parts.relay.queues.all().get(name, 0),
        tokens_per_s=round(sum(record.tokens_per_s for record in records), 1),
        last_used_at=directory.used_at(name),
        error=FailureObject(**failure.body(), at=failure.at) if failure else None,
        load=convert(load, LoadUnderWay | None, from_attributes=True),
        replicas=[_replica(record) for record in records],
    )


def _spec(parts: Services, name: str, load: OperationProgress | None) -> ModelSpec | None:
    """The spec of a known model, else that of its running load."""
    spec = parts.catalog.bare_spec(name)
    if spec is not None or load is None:
        return spec
    command = operations.read_load(parts.client, load.id)
    return command.spec if command else None


def _settings(spec: ModelSpec | None, records: list[ReplicaRecord]) -> dict[str, Any]:
    """The settings of the spec. Engine and device are those of the replicas, if there are any."""
    fields = ("path", "engine", "task", "device", "quant", "context_length", "pin", "ttl_s")
    settings = {field: getattr(spec, field) if spec else None for field in fields}
    if records:
        settings["engine"] = records[0].engine
        settings["device"] = ",".join(sorted({record.device for record in records}))
    return settings


def _replica(record: ReplicaRecord) -> Replica:
    return replace(
        convert(record, Replica, from_attributes=True),
        memory_estimated_bytes=record.estimated_bytes,
        step_age_s=round(record.step_age_s, 3),
        uptime_s=round(clock.age_s(record.started_at), 1),
    )


def node(record: NodeRecord, directory: Directory) -> Node:
    replicas = [replica for replica in directory.replicas() if replica.node == record.id]
    return replace(
        convert(record, Node, from_attributes=True),
        version=record.versions.get("llmis", ""),
        memory_total_bytes=sum(device.total_bytes for device in record.devices),
        memory_free_bytes=sum(device.free_bytes for device in record.devices),
        memory_promised_bytes=record.promised_bytes,
        replicas=len(replicas),
        uptime_s=round(clock.age_s(record.started_at), 1),
    )
