"""The records of live replicas and nodes in Redis.

A replica and an agent write theirs twice a second with a time to live: the record of a dead process
disappears by itself.
"""

import logging
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec
import redis

from shared import names
from shared.redis.connection import payload_bytes
from shared.wire.codec import DecodeError, decode, encode
from shared.wire.records import NodeRecord, ReplicaRecord
from shared.wire.version import VERSION

_log = logging.getLogger(__name__)
BEAT_S = 0.5
RECORD_TTL_S = 2
"""A process that has not written its record for this many seconds is gone."""

T = TypeVar("T", bound=msgspec.Struct)


def announce(client: "redis.Redis", record: ReplicaRecord) -> None:
    """Write or renew a replica's record."""
    _write(client, names.REPLICA_INDEX, record.id, names.replica_key(record.id), encode(record))


def announce_node(client: "redis.Redis", record: NodeRecord) -> None:
    """Write or renew a node's record."""
    _write(client, names.NODE_INDEX, record.id, names.node_key(record.id), encode(record))


def _write(client: "redis.Redis", index: str, member: str, key: str, payload: bytes) -> None:
    pipe = client.pipeline(transaction=False)
    pipe.set(key, payload, ex=RECORD_TTL_S)
    pipe.sadd(index, member)
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
    return [record for record in records if record.version == VERSION]


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
    """None for a record of another version or a damaged one: the other records must be read."""
    try:
        return decode(payload, shape)
    except DecodeError as exc:
        _log.warning("undecodable record: %s", exc)
        return None


def decode_hash(entries: dict[bytes, bytes], shape: type[T]) -> dict[str, T]:
    decoded = ((name.decode(), _decode(payload, shape)) for name, payload in entries.items())
    return {name: message for name, message in decoded if message is not None}
