"""The registry of live replicas in Redis.

A replica writes its record about once a second with a time to live; a replica that stops
beating disappears by itself. Readers go through a `Directory`, which keeps a copy in memory,
so that no request pays for a round trip.
"""

import logging
import threading

import redis

from shared import messages, names
from shared.connections import payload_bytes
from shared.messages import ReplicaRecord, ReplicaState

_log = logging.getLogger(__name__)

BEAT_S = 1.0
RECORD_TTL_S = 4
"""A replica that missed this many seconds of beats is gone."""


def announce(client: "redis.Redis", record: ReplicaRecord) -> None:
    """Write or renew a replica's record."""
    pipe = client.pipeline(transaction=False)
    pipe.set(names.replica_key(record.id), messages.encode_replica(record), ex=RECORD_TTL_S)
    pipe.sadd(names.REPLICA_INDEX, record.id)
    pipe.execute()


def withdraw(client: "redis.Redis", replica_id: str) -> None:
    pipe = client.pipeline(transaction=False)
    pipe.delete(names.replica_key(replica_id))
    pipe.srem(names.REPLICA_INDEX, replica_id)
    pipe.execute()


def read(client: "redis.Redis") -> list[ReplicaRecord]:
    """Read all live replicas and forget the dead ones."""
    ids = sorted(payload_bytes(member).decode() for member in client.smembers(names.REPLICA_INDEX))
    if not ids:
        return []
    payloads = client.mget([names.replica_key(replica_id) for replica_id in ids])
    dead = [replica_id for replica_id, payload in zip(ids, payloads, strict=True) if not payload]
    if dead:
        client.srem(names.REPLICA_INDEX, *dead)
    return [record for payload in payloads if payload and (record := _decode(payload))]


def _decode(payload: bytes | str) -> ReplicaRecord | None:
    """A record of another version, or garbage, must not blind its readers to the others."""
    try:
        record = messages.decode_replica(payload_bytes(payload))
    except messages.DecodeError as exc:
        _log.warning("undecodable replica record: %s", exc)
        return None
    return record if record.version == messages.VERSION else None


class Directory:
    """A process's copy of the registry, refreshed by whoever calls `refresh` every second."""

    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self._records: list[ReplicaRecord] = []
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Raises redis.RedisError; the old copy stays then."""
        records = read(self._client)
        with self._lock:
            self._records = records

    def replicas(self, model: str | None = None) -> list[ReplicaRecord]:
        with self._lock:
            records = self._records
        return [record for record in records if model is None or record.model == model]

    def has(self, replica_id: str) -> bool:
        return any(record.id == replica_id for record in self.replicas())

    def is_served(self, model: str) -> bool:
        return any(r.state is ReplicaState.READY for r in self.replicas(model))
