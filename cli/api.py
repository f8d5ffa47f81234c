"""What the service's admin API says, as far as the commands show it.

Unknown fields are skipped and most may be missing, so that a service of a neighbouring version
can still be looked at.
"""

from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from cli.client import Client
from cli.errors import ServiceError

T = TypeVar("T")


class ErrorView(Struct, frozen=True):
    message: str = "no reason given"


class LoadView(Struct, frozen=True):
    """The load that a model is in."""

    id: str
    stage: str = ""
    fraction: float = 0.0


class ReplicaView(Struct, frozen=True):
    id: str
    node: str | None = None
    device: str | None = None
    state: str = ""
    stage: str | None = None
    fraction: float | None = None
    slots: int = 0
    busy_slots: int = 0
    memory_estimated_bytes: int | None = None
    memory_bytes: int | None = None
    """None or 0 = not measured yet."""
    tokens_per_s: float | None = None
    started_at: float | None = None
    """Unix time in seconds."""


class ModelView(Struct, frozen=True):
    id: str
    state: str = ""
    is_configured: bool = False
    engine: str | None = None
    device: str | None = None
    quant: str | None = None
    context_length: int | None = None
    slots: int | None = None
    busy_slots: int | None = None
    queue_length: int | None = None
    tokens_per_s: float | None = None
    pin: bool | None = None
    ttl_s: float | None = None
    error: ErrorView | None = None
    load: LoadView | None = None
    replicas: list[ReplicaView] = []


class DeviceView(Struct, frozen=True):
    id: str
    name: str | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None


class NodeView(Struct, frozen=True):
    id: str
    version: str | None = None
    started_at: float | None = None
    """Unix time in seconds."""
    cpus: int | None = None
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    memory_promised_bytes: int | None = None
    devices: list[DeviceView] = []
    replicas: int = 0
    models: list[str] = []


class Operation(Struct, frozen=True):
    """A load or an unload, under way or over."""

    model: str
    state: str
    """loading, ready, unloading, unloaded, failed"""
    id: str = ""
    stage: str | None = None
    fraction: float | None = None
    message: str | None = None
    error: ErrorView | None = None


class _Offered(Struct, frozen=True):
    """A model in `GET /v1/models`."""

    id: str
    state: str = ""
    capabilities: list[str] | None = None


class _Listed(Struct, frozen=True):
    data: list[Any]


def view(raw: Any, shape: type[T]) -> T:
    """Read an answer of the service. Raises ServiceError."""
    try:
        return msgspec.convert(raw, shape, strict=False)
    except msgspec.ValidationError as exc:
        raise ServiceError(
            f"the service's answer is not understood: {exc}. Is its version that of this "
            "command? See `llmis status`."
        ) from exc


def views(raw: Any, shape: type[T]) -> list[T]:
    """Read a list object of the service. Raises ServiceError."""
    return [view(each, shape) for each in view(raw, _Listed).data]


def choose_model(client: Client, wanted: str | None, capability: str) -> str:
    """The model asked for, else one that is ready, else the first that may have the capability.
    Raises CliError."""
    if wanted:
        return wanted
    offered = views(client.get("/v1/models"), _Offered)
    models = [m for m in offered if m.capabilities is None or capability in m.capabilities]
    if offered and not models:
        raise ServiceError(f"no model of the service can do this ({capability}).")
    if not models:
        raise ServiceError("the service has no model. `llmis models load` loads one.")
    return next((model.id for model in models if model.state == "ready"), models[0].id)
