"""The wire messages of loads and unloads: commands, progress and failures.

Frozen, typed and encoded as MessagePack, like those of `shared.wire.job`. The web tier writes
commands; agents run them and write progress and failures, which all processes may read.
"""

from enum import StrEnum
from typing import Any

from msgspec import Struct

from shared.errors import LlmisError, rebuild
from shared.model_spec import ModelSpec


class OperationKind(StrEnum):
    LOAD = "load"
    UNLOAD = "unload"


class LoadCommand(Struct, frozen=True, kw_only=True):
    """Load replicas of a model. It is sent from node to node until all replicas run."""

    id: str
    spec: ModelSpec
    replicas: int
    """Replicas that the model should have, of all nodes together."""
    nodes: list[str]
    """Nodes not asked yet, the next one first."""
    node: str | None = None
    """Load it on this node only; None = on any."""
    no_room_on: list[str] = []
    """Nodes that have no room now, but may have it later."""
    refusal: "Failure | None" = None
    """Why the last node refused."""
    replaces: str = ""
    """Id of the replica to restart; the command is for its node only."""
    is_on_demand: bool = False
    """A request waits for the model: the load may wait for room."""
    deadline_at: float
    """Unix time in seconds."""


class UnloadCommand(Struct, frozen=True, kw_only=True):
    """Stop all replicas of a model."""

    id: str
    model: str
    grace_s: float
    is_draining: bool
    """Whether the jobs in the model's queue are served before."""
    is_forgotten: bool
    """Whether no request can load the model afterwards: its keys in Redis are deleted."""
    num_nodes: int


class OperationState(StrEnum):
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    UNLOADED = "unloaded"
    FAILED = "failed"


class Failure(Struct, frozen=True, kw_only=True):
    """Why a model is not loaded: the fields of an error of `shared.errors`."""

    status: int
    code: str | None
    message: str
    param: str | None = None
    at: float = 0.0
    """Unix time in seconds."""
    retry_at: float = 0.0
    """Unix time in seconds before which no request loads the model."""

    def holds_at(self, now: float) -> bool:
        """Whether no request loads the model now. Not when the failure is of the future, because
        the clock was set back."""
        return self.at <= now + 1.0 and now < self.retry_at

    def error(self) -> LlmisError:
        return rebuild(self.status, self.code, self.message, self.param)

    def body(self) -> dict[str, Any]:
        return dict(self.error().body()["error"])


class OperationProgress(Struct, frozen=True, kw_only=True):
    """One step of an operation, or its end."""

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
