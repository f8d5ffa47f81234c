"""Redis connections with time limits, so that a hung server never hangs a process for ever."""

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.settings import Settings


def payload_bytes(reply: bytes | str) -> bytes:
    """Narrow a reply of a client that does not decode: it is bytes."""
    assert isinstance(reply, bytes), "the clients made here do not decode replies"
    return reply


def connect(settings: Settings, *, max_connections: int = 64, **options: Any) -> "redis.Redis":
    """Return a client whose pool blocks when it is empty.

    RESP2, because the push replies of RESP3 cost nearly double on the publishing path. One
    retry covers a connection that died while it lay in the pool; longer outages are for the
    caller to handle.
    """
    pool = redis.BlockingConnectionPool.from_url(
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
    return redis.Redis(connection_pool=pool)
