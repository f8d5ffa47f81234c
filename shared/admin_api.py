"""The admin API's answers: `app.api.admin.objects` fills them, `llmis` reads them."""

from typing import Literal

from msgspec import Struct

from shared.errors import ErrorObject
from shared.wire.operations import OperationState
from shared.wire.records import ModelState, ReplicaState

MAX_UNLOAD_S = 86_400
"""A day: the longest wait of an unload for its requests."""


class AdminObject(Struct, frozen=True, kw_only=True):
    # The service sends every field. The defaults are for `llmis` when it reads a service of a
    # neighbouring version, which may not have the field.
    pass


class Operation(AdminObject, frozen=True, kw_only=True):
    """State of a load or an unload."""

    id: str
    object: Literal["model.load", "model.unload"] = "model.load"
    model: str
    state: OperationState
    stage: str = ""
    """What it is doing."""
    fraction: float = 0.0
    """0 to 1, over all stages."""
    message: str = ""
    error: ErrorObject | None = None
    """Why it failed."""


class FailureObject(ErrorObject, frozen=True):
    """Why a model failed to load."""

    at: float
    """Unix time in seconds."""


class LoadUnderWay(AdminObject, frozen=True, kw_only=True):
    """The running load of a model; `GET /admin/operations/{operation_id}` has more."""

    id: str
    stage: str = ""
    fraction: float = 0.0
    """0 to 1, over all stages."""


class Replica(AdminObject, frozen=True, kw_only=True):
    """A worker process with one loaded model."""

    id: str
    node: str = ""
    pid: int = 0
    device: str = ""
    versions: dict[str, str] = {}
    state: ReplicaState
    stage: str = ""
    fraction: float = 0.0
    """Progress of the load, 0 to 1."""
    slots: int = 0
    """Sequences that it generates at the same time."""
    busy_slots: int = 0
    memory_estimated_bytes: int = 0
    """The estimate made before the load."""
    memory_bytes: int = 0
    tokens_per_s: float = 0.0
    """Over the last seconds."""
    started_at: float = 0.0
    """Unix time in seconds."""
    uptime_s: float = 0.0
    step_age_s: float = 0.0
    """Seconds since the engine's last step; 0 when there is nothing to do."""
    chat_error: str = ""
    """Why the model's own chat template cannot be used: it serves completions only."""


class AdminModel(AdminObject, frozen=True, kw_only=True):
    """A model with its replicas. Null: not known before the model is loaded."""

    id: str
    object: Literal["model"] = "model"
    state: ModelState
    is_configured: bool = False
    """In the settings: a request can load it."""
    path: str | None = None
    """Under the model folder of the nodes."""
    engine: str | None = None
    task: str | None = None
    """As in the settings."""
    device: str | None = None
    quant: str | None = None
    """Precision of the KV cache."""
    context_length: int | None = None
    """Tokens per slot, prompt and completion together."""
    pin: bool | None = None
    """Never unloaded to free memory or for being idle."""
    ttl_s: float | None = None
    """Seconds without a request after which it is unloaded; 0 = never."""
    slots: int = 0
    busy_slots: int = 0
    queue_length: int = 0
    tokens_per_s: float = 0.0
    last_used_at: float | None = None
    """Unix time in seconds."""
    error: FailureObject | None = None
    load: LoadUnderWay | None = None
    replicas: list[Replica] = []


class NodeDevice(AdminObject, frozen=True, kw_only=True):
    """Memory that models can be loaded into."""

    id: str
    name: str = ""
    total_bytes: int = 0
    free_bytes: int = 0
    """Memory that a load may take: free and not promised."""


class Node(AdminObject, frozen=True, kw_only=True):
    """A host with an agent."""

    id: str
    object: Literal["node"] = "node"
    pid: int = 0
    version: str = ""
    versions: dict[str, str] = {}
    started_at: float = 0.0
    """Unix time in seconds."""
    uptime_s: float = 0.0
    clock_ahead_s: float = 0.0
    """By how much its clock is ahead of the service's, which is that of Redis."""
    cpus: int = 0
    memory_total_bytes: int = 0
    memory_free_bytes: int = 0
    memory_promised_bytes: int = 0
    """Estimated memory of replicas that is not yet in use."""
    devices: list[NodeDevice] = []
    replicas: int = 0
    models: list[str] = []
    """Models that it keeps running."""


class AdminModelList(AdminObject, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[AdminModel]


class NodeList(AdminObject, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Node]


class WebProcess(AdminObject, frozen=True, kw_only=True):
    """The web process that answered."""

    object: Literal["web"] = "web"
    pid: int = 0
    started_at: float = 0.0
    """Unix time in seconds."""


class RestartBegun(AdminObject, frozen=True, kw_only=True):
    object: Literal["restart"] = "restart"
    asked_at: float = 0.0
    """Unix time in seconds: a process with a later start is new."""
