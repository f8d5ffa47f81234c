"""The registry in Redis: live replicas and nodes, models, failures, operations under way.

Replicas and agents write their records about twice a second with a time to live: the record of a
process that has stopped expires. Readers use a `Directory`, which keeps a copy in memory, so that
no request pays for a round trip.
"""

import logging
import threading
import time
from dataclasses import dataclass, field

import redis

from shared import names
from shared.model_spec import ModelSpec
from shared.registry import operations
from shared.registry.records import RECORD_TTL_S, decode_hash, read, read_nodes, read_used_at
from shared.wire.operations import Failure, OperationKind, OperationProgress
from shared.wire.records import NodeRecord, ReplicaRecord, ReplicaState

_log = logging.getLogger(__name__)
_FRESH_S = 2.0 * RECORD_TTL_S
"""All records of an older copy have expired by now."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """What was read at one time."""

    replicas: list[ReplicaRecord] = field(default_factory=list)
    nodes: list[NodeRecord] = field(default_factory=list)
    specs: dict[str, ModelSpec] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    operations: dict[tuple[OperationKind, str], OperationProgress] = field(default_factory=dict)
    used_at: dict[str, float] = field(default_factory=dict)


class Directory:
    """A process's copy of the registry. The beat calls `refresh`; any thread may read."""

    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self._copy = _Copy()
        self._refreshed_at = float("-inf")
        """Monotonic time of the last success."""
        self._has_failed = False
        """The last attempt to refresh failed."""
        self._refreshing = threading.Lock()

    def refresh(self) -> None:
        """Raises redis.RedisError; the old copy stays then."""
        try:
            self._copy = self._read()
        except redis.RedisError:
            self._has_failed = True
            raise
        self._has_failed = False
        self._refreshed_at = time.monotonic()

    @property
    def is_fresh(self) -> bool:
        """Whether the copy is recent enough for its records to be live."""
        return time.monotonic() - self._refreshed_at < _FRESH_S

    @property
    def is_reachable(self) -> bool:
        """Whether Redis answered the last refresh. False, too, while a refresh hangs: the copy
        grows old then."""
        return self.is_fresh and not self._has_failed

    def _read(self) -> _Copy:
        pipe = self._client.pipeline(transaction=False)
        pipe.hgetall(names.MODELS)
        pipe.hgetall(names.FAILURES)
        specs, failures = pipe.execute()
        return _Copy(
            read(self._client),
            read_nodes(self._client),
            decode_hash(specs, ModelSpec),
            decode_hash(failures, Failure),
            operations.in_flight(self._client),
            read_used_at(self._client),
        )

    def refresh_if_older(self, age_s: float) -> None:
        """For a question that the copy cannot answer. Raises redis.RedisError."""
        with self._refreshing:
            if time.monotonic() - self._refreshed_at > age_s:
                self.refresh()

    def replicas(self, model: str | None = None) -> list[ReplicaRecord]:
        return [r for r in self._copy.replicas if model is None or r.model == model]

    def nodes(self) -> list[NodeRecord]:
        return self._copy.nodes

    def specs(self) -> dict[str, ModelSpec]:
        """Models that were loaded at run time, by name."""
        return self._copy.specs

    def failure(self, model: str) -> Failure | None:
        return self._copy.failures.get(model)

    def operation(self, kind: OperationKind, model: str) -> OperationProgress | None:
        """Where the load or unload of a model stands, while one is under way."""
        return self._copy.operations.get((kind, model))

    def loading(self) -> set[str]:
        """Models whose load is under way."""
        return {model for kind, model in self._copy.operations if kind is OperationKind.LOAD}

    def used_at(self, model: str) -> float | None:
        """Unix time of the model's last request."""
        return self._copy.used_at.get(model)

    def has(self, replica_id: str) -> bool:
        return any(record.id == replica_id for record in self.replicas())

    def is_served(self, model: str) -> bool:
        return any(r.state is ReplicaState.READY for r in self.replicas(model))

    def is_coming(self, model: str) -> bool:
        """Whether a replica serves the model, or loads it."""
        return any(r.state is not ReplicaState.DRAINING for r in self.replicas(model))

    def is_assigned(self, model: str) -> bool:
        """Whether a live node keeps the model running; its replica may be on its way back."""
        return any(model in node.models for node in self.nodes())
