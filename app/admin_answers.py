"""The admin API's answers. Shapes only; `app.admin_views` fills them."""

from typing import Literal

from msgspec import Struct

from app.catalog import ModelState
from app.error_answer import ErrorObject
from shared.lifecycle import OperationState
from shared.messages import ReplicaState


class Operation(Struct, frozen=True, kw_only=True):
    """Where a load or an unload stands."""

    id: str
    object: Literal["model.load", "model.unload"]
    model: str
    state: OperationState
    stage: str
    """What it is doing."""
    fraction: float
    """0 to 1, over all stages."""
    message: str
    error: ErrorObject | None
    """Why it failed."""


class FailureObject(ErrorObject, frozen=True):
    """Why a model is not there."""

    at: float
    """Unix time in seconds."""


class LoadUnderWay(Struct, frozen=True):
    """The load that a model waits for; `GET /admin/operations/{operation_id}` has more."""

    id: str
    stage: str
    fraction: float
    """0 to 1, over all stages."""


class Replica(Struct, frozen=True, kw_only=True):
    """A worker process with one loaded model."""

    id: str
    node: str
    pid: int
    device: str
    versions: dict[str, str]
    state: ReplicaState
    stage: str
    fraction: float
    """How far it is with loading, 0 to 1."""
    slots: int
    """Sequences that it generates at the same time."""
    busy_slots: int
    memory_estimated_bytes: int
    """What the estimate said before the load."""
    memory_bytes: int
    tokens_per_s: float
    """Over the last seconds."""
    started_at: float
    """Unix time in seconds."""
    step_age_s: float
    """Seconds since the engine's last step; 0 when there is nothing to do."""


class AdminModel(Struct, frozen=True, kw_only=True):
    """A model with its replicas. Null is what nobody knows before it is loaded."""

    id: str
    object: Literal["model"] = "model"
    state: ModelState
    is_configured: bool
    """From the settings: a request can load it."""
    path: str | None
    """Under the model folder of the nodes."""
    engine: str | None
    task: str | None
    """As in the settings."""
    device: str | None
    quant: str | None
    """Precision of the KV cache."""
    context_length: int | None
    """Tokens per slot, prompt and completion together."""
    pin: bool | None
    """Never unloaded for want of room or for being idle."""
    ttl_s: float | None
    """Unloaded after so long without a request; 0 = never."""
    slots: int
    busy_slots: int
    queue_length: int
    tokens_per_s: float
    last_used_at: float | None
    """Unix time in seconds."""
    error: FailureObject | None
    load: LoadUnderWay | None
    replicas: list[Replica]


class NodeDevice(Struct, frozen=True):
    """Memory that models can be loaded into."""

    id: str
    name: str
    total_bytes: int
    free_bytes: int
    """What a load may take: free memory without what is promised."""


class Node(Struct, frozen=True, kw_only=True):
    """A host with an agent."""

    id: str
    object: Literal["node"] = "node"
    pid: int
    version: str
    versions: dict[str, str]
    started_at: float
    """Unix time in seconds."""
    cpus: int
    memory_total_bytes: int
    memory_free_bytes: int
    memory_promised_bytes: int
    """Memory that replicas will still take: estimated, not yet in use."""
    devices: list[NodeDevice]
    replicas: int
    models: list[str]
    """Models that it keeps running."""


class AdminModelList(Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[AdminModel]


class NodeList(Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Node]


class WebProcess(Struct, frozen=True, kw_only=True):
    """The web process that answers."""

    object: Literal["web"] = "web"
    pid: int
    started_at: float
    """Unix time in seconds."""


class RestartBegun(Struct, frozen=True, kw_only=True):
    object: Literal["restart"] = "restart"
    asked_at: float
    """Unix time in seconds: what has started later is new."""
