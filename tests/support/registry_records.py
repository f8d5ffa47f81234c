"""Records of replicas and nodes, and specs of models, as the registry keeps them."""

from typing import Any

from shared.model_spec import ModelSpec
from shared.wire.records import Device, NodeRecord, ReplicaRecord, ReplicaState

_COUNTS = ("busy_slots", "waiting_sequences", "steps", "generated_tokens", "memory_bytes",
           "mapped_bytes", "estimated_bytes")  # fmt: skip
_AMOUNTS = ("step_age_s", "tokens_per_s", "started_at")


def make_spec(name: str = "m", **fields: Any) -> ModelSpec:
    return ModelSpec(name=name, path=f"{name}.gguf", **fields)


def make_node(node: str = "n", *free_bytes: int, models: list[str] | None = None) -> NodeRecord:
    """A node whose devices have so much free memory."""
    devices = [
        Device(f"device-{i}", "a device", 1000, free) for i, free in enumerate(free_bytes or (100,))
    ]
    return NodeRecord(
        id=node,
        pid=1,
        versions={},
        started_at=0.0,
        cpus=1,
        devices=devices,
        promised_bytes=0,
        models=models or [],
    )


def make_replica(
    replica_id: str = "r",
    model: str = "m",
    state: ReplicaState = ReplicaState.READY,
    node: str = "n",
    **fields: Any,
) -> ReplicaRecord:
    base: dict[str, Any] = {
        "engine": "llamacpp",
        "device": "cpu",
        "assignment_id": "a",
        "pid": 1,
        "versions": {},
        "stage": "ready",
        "fraction": 1.0,
        "slots": 1,
        "context_length": 512,
        "capabilities": [],
    }
    base |= dict.fromkeys(_COUNTS, 0) | dict.fromkeys(_AMOUNTS, 0.0) | fields
    return ReplicaRecord(id=replica_id, model=model, state=state, node=node, **base)
