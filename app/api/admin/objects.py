"""The admin API's objects, from the registry's records."""

from typing import TYPE_CHECKING, Any

from app.admin_answers import (
    AdminModel,
    FailureObject,
    LoadUnderWay,
    Node,
    NodeDevice,
    Operation,
    Replica,
)
from app.error_answer import ErrorObject
from shared import operations
from shared.lifecycle import ModelSpec, NodeRecord, OperationKind, Progress
from shared.messages import ReplicaRecord
from shared.registry import Directory

if TYPE_CHECKING:
    from app.factory import Services


def operation(progress: Progress) -> Operation:
    return Operation(
        id=progress.id,
        object="model.load" if progress.kind is OperationKind.LOAD else "model.unload",
        model=progress.model,
        state=progress.state,
        stage=progress.stage,
        fraction=progress.fraction,
        message=progress.message,
        error=ErrorObject(**progress.failure.body()) if progress.failure else None,
    )


def model(shared: "Services", name: str) -> AdminModel:
    """A model with its replicas."""
    directory = shared.directory
    records = directory.replicas(name)
    failure = directory.failure(name)
    load = directory.operation(OperationKind.LOAD, name)
    return AdminModel(
        id=name,
        state=shared.catalog.state(name),
        is_configured=shared.catalog.is_configured(name),
        **_settings(_spec(shared, name, load), records),
        slots=sum(record.slots for record in records),
        busy_slots=sum(record.busy_slots for record in records),
        queue_length=shared.relay.queues.all().get(name, 0),
        tokens_per_s=round(sum(record.tokens_per_s for record in records), 1),
        last_used_at=directory.used_at(name),
        error=FailureObject(**failure.body(), at=failure.at) if failure else None,
        load=LoadUnderWay(load.id, load.stage, load.fraction) if load else None,
        replicas=[_replica(record) for record in records],
    )


def _spec(shared: "Services", name: str, load: Progress | None) -> ModelSpec | None:
    """What is known of a model, or asked for by the load that is under way."""
    spec = shared.catalog.outline(name)
    if spec is not None or load is None:
        return spec
    command = operations.read_load(shared.client, load.id)
    return command.spec if command else None


def _settings(spec: ModelSpec | None, records: list[ReplicaRecord]) -> dict[str, Any]:
    """As asked for; engine and device as they are, once a replica has chosen."""
    fields = ("path", "engine", "task", "device", "quant", "context_length", "pin", "ttl_s")
    settings = {field: getattr(spec, field) if spec else None for field in fields}
    if records:
        settings["engine"] = records[0].engine
        settings["device"] = ",".join(sorted({record.device for record in records}))
    return settings


def _replica(record: ReplicaRecord) -> Replica:
    return Replica(
        id=record.id,
        node=record.node,
        pid=record.pid,
        device=record.device,
        versions=record.versions,
        state=record.state,
        stage=record.stage,
        fraction=record.fraction,
        slots=record.slots,
        busy_slots=record.busy_slots,
        memory_estimated_bytes=record.estimated_bytes,
        memory_bytes=record.memory_bytes,
        tokens_per_s=record.tokens_per_s,
        started_at=record.started_at,
        step_age_s=round(record.step_age_s, 3),
    )


def node(record: NodeRecord, directory: Directory) -> Node:
    replicas = [replica for replica in directory.replicas() if replica.node == record.id]
    return Node(
        id=record.id,
        pid=record.pid,
        version=record.versions.get("llmis", ""),
        versions=record.versions,
        started_at=record.started_at,
        cpus=record.cpus,
        memory_total_bytes=sum(device.total_bytes for device in record.devices),
        memory_free_bytes=sum(device.free_bytes for device in record.devices),
        memory_promised_bytes=record.promised_bytes,
        devices=[NodeDevice(d.id, d.name, d.total_bytes, d.free_bytes) for d in record.devices],
        replicas=len(replicas),
        models=record.models,
    )
