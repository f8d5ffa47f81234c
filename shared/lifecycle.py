"""The wire messages about models' lives: what is to run where, and what became of it.

Frozen, typed and encoded as MessagePack, like those of `shared.messages`. The web tier writes
commands, agents carry them out and write progress; nodes, assignments and failures are state
that anyone may read.
"""

from enum import StrEnum
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from shared import names
from shared.errors import InvalidModel, LlmisError, rebuild
from shared.messages import DecodeError
from shared.settings import ModelSettings, SamplingDefaults, Settings

T = TypeVar("T", bound=Struct)


class ModelSpec(Struct, frozen=True, kw_only=True):
    """A model as any host can load it: `ModelSettings` without a word about files of one host,
    but for the weights under the model folder."""

    name: Annotated[str, Meta(pattern=names.MODEL_NAME_PATTERN)]
    path: str
    """Relative to the model folder of the node."""
    engine: str = "auto"
    task: str = "auto"
    """generate, embed, or auto."""
    device: str = "auto"
    quant: str = "f16"
    """Precision of the KV cache."""
    package: str | None = None
    context_length: int = 4096
    slots: int = 4
    cache_tokens: int = 0
    """Tokens of the KV cache, all slots together; 0 = slots × context_length."""
    draft: str = ""
    """Folder of a draft model, or `ngram`; empty = no speculation."""
    draft_tokens: int = 4
    threads: int = 0
    chat_template: str | None = None
    """The Jinja text; None = the model's own."""
    stop: list[str] = []
    strip_leading_space: bool = False
    sampling: SamplingDefaults = SamplingDefaults()
    pin: bool = False
    """Never evicted, never unloaded for being idle."""
    ttl_s: float = 0.0
    """Unloaded after so long without a request; 0 = never."""
    is_configured: bool = False
    """From the settings: it can be loaded again by a request."""


def spec_of(settings: Settings, model: ModelSettings) -> ModelSpec:
    """Make a spec of a configured model. Raises InvalidModel when its template is unreadable."""
    template = settings.template_path(model)
    try:
        text = template.read_text("utf-8") if template else None
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidModel(
            f"The chat template of {model.name!r} cannot be read: {exc}", param="chat_template"
        ) from exc
    return msgspec.structs.replace(outline_of(model), chat_template=text)


def outline_of(model: ModelSettings) -> ModelSpec:
    """The spec of a configured model but for its chat template, which is in a file."""
    files = ("preload", "chat_template")
    values = {f: getattr(model, f) for f in ModelSettings.__struct_fields__ if f not in files}
    return ModelSpec(**values, is_configured=True)


class Assignment(Struct, frozen=True, kw_only=True):
    """A replica that a node is to keep running. Outlives the agent's process."""

    id: str
    node: str
    spec: ModelSpec
    memory_bytes: int
    """What the estimate says it needs."""
    replica_id: str = ""
    """The process that runs now: each start has an id of its own."""


class StopOrder(Struct, frozen=True):
    """How a replica is to stop."""

    grace_s: float
    """Time for its running jobs to end; 0 = none."""
    reason: str
    hands_over: bool = False
    """What has not ended by then goes back to the queue, for another replica; else it ends with
    an error: nobody is to serve the model any more."""


class Device(Struct, frozen=True):
    id: str
    name: str
    total_bytes: int
    free_bytes: int
    """What a load may take: free memory without what is promised."""
    promised_bytes: int = 0
    """What replicas will still take: estimated, not yet in use."""


class NodeRecord(Struct, frozen=True, kw_only=True):
    """What an agent says of its node, about twice a second."""

    id: str
    pid: int
    versions: dict[str, str]
    started_at: float
    """Unix time in seconds."""
    cpus: int
    devices: list[Device]
    promised_bytes: int
    """Memory that replicas will still take: estimated, not yet in use."""
    models: list[str]
    """Models that it keeps running, with those whose replica is just being restarted."""


class OperationKind(StrEnum):
    LOAD = "load"
    UNLOAD = "unload"


class LoadCommand(Struct, frozen=True, kw_only=True):
    """Load replicas of a model. It travels from node to node until all of them run."""

    id: str
    spec: ModelSpec
    replicas: int
    """How many the model is to have, all nodes together."""
    nodes: list[str]
    """Nodes still to be asked, the next one first."""
    node: str | None = None
    """There and nowhere else."""
    no_room_on: list[str] = []
    """Nodes that had no room, but may have it later."""
    refusal: "Failure | None" = None
    """Why the last node refused."""
    replaces: str = ""
    """Id of a replica that the new one is for; the command is for its node alone then."""
    is_on_demand: bool = False
    """A request waits for it: it may wait for room."""
    deadline_at: float
    """Unix time in seconds."""


class UnloadCommand(Struct, frozen=True, kw_only=True):
    """Stop all replicas of a model on the nodes given."""

    id: str
    model: str
    grace_s: float
    is_draining: bool
    """Whether what waits in the model's queue is served before."""
    is_forgotten: bool
    """Whether nobody can ask for the model afterwards: what is left of it in Redis goes."""
    num_nodes: int


class OperationState(StrEnum):
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    UNLOADED = "unloaded"
    FAILED = "failed"


class Failure(Struct, frozen=True, kw_only=True):
    """Why a model is not there: an error of `shared.errors`, field by field."""

    status: int
    code: str | None
    message: str
    param: str | None = None
    at: float = 0.0
    """Unix time in seconds."""
    retry_at: float = 0.0
    """Unix time in seconds before which no request loads the model."""

    def error(self) -> LlmisError:
        return rebuild(self.status, self.code, self.message, self.param)

    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = self.error().body()["error"]
        return body


class Progress(Struct, frozen=True, kw_only=True):
    """Where an operation stands."""

    id: str
    kind: OperationKind
    model: str
    state: OperationState
    stage: str
    fraction: float
    """0 to 1, over all stages."""
    message: str = ""
    failure: Failure | None = None

    @property
    def is_ended(self) -> bool:
        return self.state not in (OperationState.LOADING, OperationState.UNLOADING)


STAGES = {
    "checking": 0.0,
    "waiting for room": 0.02,
    "spawning": 0.05,
    "reading weights": 0.15,
    "warming up": 0.9,
    "ready": 1.0,
}
"""Stage of a load → fraction at which it begins."""


_encoder = msgspec.msgpack.Encoder()


def encode(message: Struct) -> bytes:
    return _encoder.encode(message)


def decode(payload: bytes | str | None, shape: type[T]) -> T | None:
    """Decode a message; None when there is none. Raises DecodeError."""
    if payload is None:
        return None
    assert isinstance(payload, bytes), "the clients made by shared.connections do not decode"
    try:
        return msgspec.msgpack.decode(payload, type=shape)
    except (msgspec.DecodeError, msgspec.ValidationError) as exc:
        raise DecodeError(str(exc), payload) from exc
