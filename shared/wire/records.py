"""The records of the registry: replicas and nodes, which expire unless renewed, and assignments."""

from enum import StrEnum

from msgspec import Struct

from shared.model_spec import ModelSpec
from shared.wire.version import VERSION


class Capability(StrEnum):
    """A kind of request that a model serves."""

    CHAT = "chat"
    COMPLETION = "completion"
    INFILL = "infill"
    """Completions with a `suffix`."""
    EMBEDDING = "embedding"


class ReplicaState(StrEnum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


class ReplicaRecord(Struct, frozen=True, kw_only=True):
    """The state of a replica, which it writes about twice a second."""

    version: int = VERSION
    id: str
    model: str
    engine: str
    device: str
    node: str
    assignment_id: str
    pid: int
    versions: dict[str, str]
    state: ReplicaState
    stage: str
    """While it loads: the current step; `fraction` is the progress of the whole load, 0 to 1."""
    fraction: float
    slots: int
    busy_slots: int
    waiting_sequences: int
    context_length: int
    """Tokens per slot, prompt and completion together."""
    capabilities: list[Capability]
    """Empty while it loads."""
    chat_error: str = ""
    """Why the model's own chat template cannot be used."""
    steps: int
    """Engine steps so far: it grows while jobs run."""
    step_age_s: float
    """Seconds since there is work and no step has ended."""
    publish_age_s: float = 0.0
    """Seconds since there are events to publish and the publisher has not tried."""
    generated_tokens: int
    tokens_per_s: float
    """Over the last seconds."""
    slot_s: float = 0.0
    """Recent average of slot seconds per job, its slots added up; 0 = no job has ended yet."""
    memory_bytes: int
    """Resident memory of the process."""
    mapped_bytes: int
    """The part of it that is mapped from files: the system counts it as free."""
    estimated_bytes: int
    """The estimate before the load."""
    device_bytes: dict[str, int] = {}
    """GPU → memory that the process holds there."""
    kv_usage: float | None = None
    """Fraction of the KV cache that running sequences hold, 0 to 1; None = no KV cache."""
    started_at: float
    """Unix time in seconds."""

    def is_stalled(self, timeout_s: float) -> bool:
        """Whether it has had work and made no progress for longer than `timeout_s`."""
        return max(self.step_age_s, self.publish_age_s) > timeout_s


class Assignment(Struct, frozen=True, kw_only=True):
    """A replica that a node must keep running. It outlives the agent's process."""

    id: str
    node: str
    spec: ModelSpec
    memory_bytes: int
    """The estimate of its memory."""
    replica_id: str = ""
    """The process that runs now: each start gets a new id."""


class StopOrder(Struct, frozen=True):
    """How a replica must stop."""

    grace_s: float
    """Time for its running jobs to finish; 0 = none."""
    reason: str
    hands_over: bool = False
    """Whether unfinished jobs then return to the queue, for another replica. Otherwise they fail:
    the model is not served any more."""


class Device(Struct, frozen=True):
    id: str
    name: str
    total_bytes: int
    free_bytes: int
    """Memory for new loads: free memory minus `promised_bytes`."""
    promised_bytes: int = 0
    """Memory that loading replicas have not used yet, by their estimates."""


class NodeRecord(Struct, frozen=True, kw_only=True):
    """The state of a node, which its agent writes about twice a second."""

    id: str
    pid: int
    versions: dict[str, str]
    started_at: float
    """Unix time in seconds."""
    clock_ahead_s: float = 0.0
    """By how much its host's clock is ahead of Redis'."""
    cpus: int
    devices: list[Device]
    promised_bytes: int
    """Memory that loading replicas have not used yet, by their estimates."""
    models: list[str]
    """Models that it keeps running, including those whose replica is being restarted."""


class ModelState(StrEnum):
    READY = "ready"
    LOADING = "loading"
    UNLOADING = "unloading"
    UNLOADED = "unloaded"
    FAILED = "failed"
