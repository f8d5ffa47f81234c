"""The admin API's objects. Shapes only."""

from typing import TYPE_CHECKING, Any

from shared import operations
from shared.lifecycle import ModelSpec, NodeRecord, OperationKind, Progress
from shared.messages import ReplicaRecord
from shared.registry import Directory

if TYPE_CHECKING:
    from app.factory import Services


def operation(progress: Progress) -> dict[str, Any]:
    return {
        "id": progress.id,
        "object": f"model.{progress.kind}",
        "model": progress.model,
        "state": progress.state,
        "stage": progress.stage,
        "fraction": progress.fraction,
        "message": progress.message,
        "error": progress.failure.body() if progress.failure else None,
    }


def model(shared: "Services", name: str) -> dict[str, Any]:
    """A model with its replicas."""
    directory = shared.directory
    records = directory.replicas(name)
    failure = directory.failure(name)
    load = directory.operation(OperationKind.LOAD, name)
    return {
        "id": name,
        "object": "model",
        "state": shared.catalog.state(name),
        "is_configured": shared.catalog.is_configured(name),
        **_settings(_spec(shared, name, load), records),
        "slots": sum(record.slots for record in records),
        "busy_slots": sum(record.busy_slots for record in records),
        "queue_length": shared.relay.queues.all().get(name, 0),
        "tokens_per_s": round(sum(record.tokens_per_s for record in records), 1),
        "last_used_at": directory.used_at(name),
        "error": {**failure.body(), "at": failure.at} if failure else None,
        "load": {"id": load.id, "stage": load.stage, "fraction": load.fraction} if load else None,
        "replicas": [_replica(record) for record in records],
    }


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


def _replica(record: ReplicaRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "node": record.node,
        "pid": record.pid,
        "device": record.device,
        "versions": record.versions,
        "state": record.state,
        "stage": record.stage,
        "fraction": record.fraction,
        "slots": record.slots,
        "busy_slots": record.busy_slots,
        "memory_estimated_bytes": record.estimated_bytes,
        "memory_bytes": record.memory_bytes,
        "tokens_per_s": record.tokens_per_s,
        "started_at": record.started_at,
        "step_age_s": round(record.step_age_s, 3),
    }


def node(record: NodeRecord, directory: Directory) -> dict[str, Any]:
    replicas = [replica for replica in directory.replicas() if replica.node == record.id]
    return {
        "id": record.id,
        "object": "node",
        "pid": record.pid,
        "version": record.versions.get("llmis", ""),
        "versions": record.versions,
        "started_at": record.started_at,
        "cpus": record.cpus,
        "memory_total_bytes": sum(device.total_bytes for device in record.devices),
        "memory_free_bytes": sum(device.free_bytes for device in record.devices),
        "memory_promised_bytes": record.promised_bytes,
        "devices": [
            {"id": d.id, "name": d.name, "total_bytes": d.total_bytes, "free_bytes": d.free_bytes}
            for d in record.devices
        ],
        "replicas": len(replicas),
        "models": record.models,
    }
