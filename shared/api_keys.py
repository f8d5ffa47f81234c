"""The API keys in Redis: `llmis keys` makes and revokes them; only their hashes are stored.

A key is 256 random bits, so one SHA-256 protects it as well as a slow hash protects a password.
Looking a hash up leaks nothing by its timing, as a client cannot choose the hash of a guess. The
key itself is shown once, when it is made.
"""

import hashlib
import logging
import secrets
import uuid
from collections.abc import Mapping
from enum import StrEnum

import msgspec
import redis
from msgspec import Struct

from shared import names
from shared.clock import clock
from shared.limits import Limits

_log = logging.getLogger(__name__)
_PREFIX = "sk-llmis-"
_NUM_SHOWN = len(_PREFIX) + 4


class Scope(StrEnum):
    USER = "user"
    """Inference, and the key's own requests."""
    METRICS = "metrics"
    """Only `GET /metrics`, for Prometheus."""
    ADMIN = "admin"
    """Both, the admin routes, and cancelling the requests of all keys."""


class ApiKey(Struct, frozen=True, kw_only=True):
    """The stored record of a key."""

    id: str
    """Identifies the key without revealing it: in logs, limits and `llmis keys`."""
    name: str
    """Chosen by the operator."""
    scope: Scope
    shown: str
    """The first characters of the key."""
    created_at: float
    """Unix time in seconds."""
    expires_at: float = 0.0
    """Unix time in seconds; 0 = never."""
    limits: dict[str, int] = {}
    """Fields of `Limits` that override those of the settings."""

    def is_expired(self, now: float) -> bool:
        return bool(self.expires_at) and now >= self.expires_at


def digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def create(
    client: "redis.Redis",
    name: str,
    scope: Scope,
    *,
    expires_at: float = 0.0,
    limits: Mapping[str, int] | None = None,
) -> tuple[str, ApiKey]:
    """Make a key; return it, for the only time, and its record. Raises redis.RedisError."""
    key = _PREFIX + secrets.token_urlsafe(32)
    record = ApiKey(
        id=f"key-{uuid.uuid4().hex[:12]}",
        name=name,
        scope=scope,
        shown=key[:_NUM_SHOWN],
        created_at=clock.now(),
        expires_at=expires_at,
        limits=dict(limits or {}),
    )
    pipe = client.pipeline()
    pipe.hset(names.API_KEYS, digest(key), msgspec.msgpack.encode(record))
    pipe.set(names.API_KEYS_VERSION, uuid.uuid4().hex)
    pipe.execute()
    return key, record


def read(client: "redis.Redis") -> dict[str, ApiKey]:
    """Digest → key of all keys; an undecodable one is logged and left out, so it is not valid.

    Limits unknown to this version are ignored: a newer one may have made the key. Raises
    redis.RedisError.
    """
    entries: dict[bytes, bytes] = client.hgetall(names.API_KEYS)  # type: ignore[assignment]
    found = {}
    for field, payload in entries.items():
        try:
            record = msgspec.msgpack.decode(payload, type=ApiKey)
            limits = {n: v for n, v in record.limits.items() if n in Limits.__struct_fields__}
            msgspec.convert(limits, Limits)
            found[field.decode()] = msgspec.structs.replace(record, limits=limits)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            _log.error("an API key cannot be read: %s", exc)
    return found


def is_there(client: "redis.Redis", key_digest: str) -> bool:
    """Raises redis.RedisError."""
    return bool(client.hexists(names.API_KEYS, key_digest))


def version(client: "redis.Redis") -> bytes:
    """A text that differs after each change of the keys. Raises redis.RedisError."""
    return client.get(names.API_KEYS_VERSION) or b""  # type: ignore[return-value]


def revoke(client: "redis.Redis", id_or_name: str) -> list[ApiKey]:
    """Delete the keys of that id or name and return their records. Raises redis.RedisError."""
    found = {d: k for d, k in read(client).items() if id_or_name in (k.id, k.name)}
    if found:
        pipe = client.pipeline()
        pipe.hdel(names.API_KEYS, *found)
        pipe.set(names.API_KEYS_VERSION, uuid.uuid4().hex)
        pipe.execute()
    return list(found.values())
