"""Redis connections with time limits, so that a hung server never hangs a process for ever."""

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.errors import SettingsError
from shared.redis.client import Client, ConnectionPool
from shared.redis.oom_writes import AtOomClient
from shared.settings.fields import Settings

_OLDEST_SERVER = (7, 0)
"""Valkey answers with the version of Redis that it is compatible with, 7.2."""


def payload_bytes(reply: bytes | str) -> bytes:
    """Narrow a reply of a client that does not decode: it is bytes."""
    assert isinstance(reply, bytes), "the clients made here do not decode replies"
    return reply


def connect(
    settings: Settings, *, max_connections: int = 64, at_oom: bool = False, **options: Any
) -> "redis.Redis":
    """Return a client whose pool blocks when it is empty. `at_oom`: its writes pass on a full
    Redis.

    RESP2, because the push replies of RESP3 cost nearly double on the publishing path. One
    retry covers a connection that died while it lay in the pool; longer outages are for the
    caller to handle.
    """
    pool = ConnectionPool.from_url(
        settings.redis_url,
        max_connections=max_connections,
        timeout=settings.redis_timeout_s,
        socket_timeout=settings.redis_timeout_s,
        socket_connect_timeout=settings.redis_timeout_s,
        health_check_interval=30,
        protocol=2,
        retry=Retry(NoBackoff(), 1),
        **options,
    )
    return AtOomClient(connection_pool=pool) if at_oom else Client(connection_pool=pool)


def connect_warm(settings: Settings, num_connections: int) -> "redis.Redis":
    """Return a client whose connections are all open, for a process with many callers at once.
    They take turns: Redis runs one command at a time, so more connections are no faster. Raises
    redis.RedisError."""
    client = connect(settings, max_connections=num_connections)
    assert isinstance(client.connection_pool, ConnectionPool)
    client.connection_pool.open()
    return client


def check_server(client: "redis.Redis") -> None:
    """Refuse a server that lacks what is needed: scripts with flags, SET with NX and GET. Raises
    SettingsError, redis.RedisError."""
    version = str(client.info("server").get("redis_version", ""))
    major, _, rest = version.partition(".")
    minor = rest.partition(".")[0]
    is_known = major.isdigit() and minor.isdigit()
    if is_known and (int(major), int(minor)) < _OLDEST_SERVER:
        raise SettingsError(
            f"redis_url: the server is Redis {version}; Redis 7.0 or later, or Valkey, is needed. "
            "Set REDIS_URL to one, or unset it to use the embedded server."
        )
