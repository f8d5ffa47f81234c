"""The registry in Redis: live replicas and nodes, models, failures, operations under way.

A replica and an agent write their records about twice a second with a time to live; who stops
beating disappears by itself. Readers go through a `Directory`, which keeps a copy in memory,
so that no request pays for a round trip.
"""

import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import redis

from shared import essential, lifecycle, messages, names, operations
from shared.connections import payload_bytes
from shared.lifecycle import Failure, ModelSpec, NodeRecord, OperationKind, Progress
from shared.messages import DecodeError, ReplicaRecord, ReplicaState

_log = logging.getLogger(__name__)

BEAT_S = 0.5
RECORD_TTL_S = 2
"""Who missed this many seconds of beats is gone."""

T = TypeVar("T", bound=msgspec.Struct)


def announce(client: "redis.Redis", record: ReplicaRecord) -> None:
    """Write or renew a replica's record."""
    _write(
        client,
        names.REPLICA_INDEX,
        record.id,
        names.replica_key(record.id),
        messages.encode_replica(record),
    )


def announce_node(client: "redis.Redis", record: NodeRecord) -> None:
    """Write or renew a node's record."""
    payload = lifecycle.encode(record)
    _write(client, names.NODE_INDEX, record.id, names.node_key(record.id), payload)


def _write(client: "redis.Redis", index: str, member: str, key: str, payload: bytes) -> None:
    pipe = client.pipeline(transaction=False)
    essential.write(pipe, "SET", key, payload, "EX", RECORD_TTL_S)
    essential.write(pipe, "SADD", index, member)
    pipe.execute()


def withdraw(client: "redis.Redis", replica_id: str) -> None:
    _remove(client, names.REPLICA_INDEX, replica_id, names.replica_key(replica_id))


def withdraw_node(client: "redis.Redis", node: str) -> None:
    _remove(client, names.NODE_INDEX, node, names.node_key(node))


def _remove(client: "redis.Redis", index: str, member: str, key: str) -> None:
    pipe = client.pipeline(transaction=False)
    pipe.delete(key)
    pipe.srem(index, member)
    pipe.execute()


def read(client: "redis.Redis") -> list[ReplicaRecord]:
    """Read all live replicas and forget the dead ones."""
    ids = _members(client.smembers(names.REPLICA_INDEX))
    payloads = _alive(client, names.REPLICA_INDEX, ids, [names.replica_key(i) for i in ids])
    records = [record for payload in payloads if (record := _decode(payload, ReplicaRecord))]
    return [record for record in records if record.version == messages.VERSION]


def read_nodes(client: "redis.Redis") -> list[NodeRecord]:
    """Read all live nodes and forget the dead ones."""
    ids = _members(client.smembers(names.NODE_INDEX))
    payloads = _alive(client, names.NODE_INDEX, ids, [names.node_key(i) for i in ids])
    return [record for payload in payloads if (record := _decode(payload, NodeRecord))]


def read_used_at(client: "redis.Redis") -> dict[str, float]:
    """Model → Unix time of its last request."""
    entries: Any = client.zrange(names.LAST_USED, 0, -1, withscores=True)
    return {payload_bytes(name).decode(): float(at) for name, at in entries}


def _alive(client: "redis.Redis", index: str, ids: list[str], keys: list[str]) -> list[bytes]:
    """The records behind an index. Ids without one are taken out of it."""
    if not ids:
        return []
    payloads = client.mget(keys)
    dead = [member for member, payload in zip(ids, payloads, strict=True) if not payload]
    if dead:
        client.srem(index, *dead)
    return [payload_bytes(payload) for payload in payloads if payload]


def _members(members: Iterable[bytes | str]) -> list[str]:
    return sorted(payload_bytes(member).decode() for member in members)


def _decode(payload: bytes, shape: type[T]) -> T | None:
    """A record of another version, or garbage, must not blind its readers to the others."""
    try:
        return lifecycle.decode(payload, shape)
    except DecodeError as exc:
        _log.warning("undecodable record: %s", exc)
        return None


def _decode_hash(entries: dict[bytes, bytes], shape: type[T]) -> dict[str, T]:
    decoded = ((name.decode(), _decode(payload, shape)) for name, payload in entries.items())
    return {name: message for name, message in decoded if message is not None}


@dataclass(frozen=True, slots=True)
class _Copy:
    """What was read at one time."""

    replicas: list[ReplicaRecord] = field(default_factory=list)
    nodes: list[NodeRecord] = field(default_factory=list)
    specs: dict[str, ModelSpec] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    operations: dict[tuple[OperationKind, str], Progress] = field(default_factory=dict)
    used_at: dict[str, float] = field(default_factory=dict)


class Directory:
    """A process's copy of the registry, refreshed by whoever calls `refresh` with every beat."""

    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self._copy = _Copy()
        self._refreshed_at = 0.0
        self._refreshing = threading.Lock()

    def refresh(self) -> None:
        """Raises redis.RedisError; the old copy stays then."""
        pipe = self._client.pipeline(transaction=False)
        pipe.hgetall(names.MODELS)
        pipe.hgetall(names.FAILURES)
        specs, failures = pipe.execute()
        copy = _Copy(
            read(self._client),
            read_nodes(self._client),
            _decode_hash(specs, ModelSpec),
            _decode_hash(failures, Failure),
            operations.in_flight(self._client),
            read_used_at(self._client),
        )
        self._copy = copy
        self._refreshed_at = time.monotonic()

    def refresh_if_older(self, age_s: float) -> None:
        """For a question that the copy cannot answer. Raises redis.RedisError."""
        with self._refreshing:
            if time.monotonic() - self._refreshed_at > age_s:
                self.refresh()

    def replicas(self, model: str | None = None) -> list[ReplicaRecord]:
        records = self._copy.replicas
        return [record for record in records if model is None or record.model == model]

    def nodes(self) -> list[NodeRecord]:
        return self._copy.nodes

    def specs(self) -> dict[str, ModelSpec]:
        """Models that were loaded at run time, by name."""
        return self._copy.specs

    def failure(self, model: str) -> Failure | None:
        return self._copy.failures.get(model)

    def operation(self, kind: OperationKind, model: str) -> Progress | None:
        """Where the load or unload of a model stands, while one is under way."""
        return self._copy.operations.get((kind, model))

    def loading(self) -> set[str]:
        """Models whose load is under way."""
        kinds = self._copy.operations
        return {model for kind, model in kinds if kind is OperationKind.LOAD}

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
