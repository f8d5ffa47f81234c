"""Requests that were running when an engine failed for good, from one process to the next.

A request that ends its replica comes back with the client's next try, and would end every
replica after it. A replica that dies writes them down, one that loads reads them; they are
forgotten after a while. Best effort: a process that is killed writes nothing.
"""

from collections.abc import Mapping

import redis

from shared import names
from shared.connections import payload_bytes

_KEPT_S = 600


def remember(client: "redis.Redis", model: str, counts: Mapping[str, int]) -> None:
    """`counts`: fingerprint → failures so far, `EngineFatal.suspects`. Raises redis.RedisError."""
    key = names.suspects_key(model)
    with client.pipeline(transaction=False) as pipe:
        pipe.hset(key, mapping={fingerprint: str(n) for fingerprint, n in counts.items()})
        pipe.expire(key, _KEPT_S)
        pipe.execute()


def recall(client: "redis.Redis", model: str) -> dict[str, int]:
    """Raises redis.RedisError."""
    found = client.hgetall(names.suspects_key(model))
    return {payload_bytes(fingerprint).decode(): int(n) for fingerprint, n in found.items()}
