"""Poison requests: those that end one replica after the other.

A job carries in its lease how many attempts died with it: `check` refuses it after two. A request
that comes back with the client's next try is known by its fingerprint: a replica whose engine
fails for good stores those of its running requests, unless it is killed; the next one that loads
the model reads them. `worker.engines.exllamav2.failures.Quarantine` decides which are to blame.
"""

from collections.abc import Mapping

import redis

from shared import names
from shared.errors import Quarantined
from shared.queue.lease import Lease
from shared.redis.connection import payload_bytes

_KEPT_S = 600
_MAX_FRUITLESS = 2
"""Replicas that may die over a job in a row without a token from any of them."""


def check(lease: Lease) -> None:
    """Raises Quarantined if the job has ended too many replicas."""
    if lease.num_fruitless >= _MAX_FRUITLESS:
        num = lease.num_fruitless
        raise Quarantined(f"{num} replicas died while they ran this request. It is not run again.")


def remember(client: "redis.Redis", model: str, counts: Mapping[str, int]) -> None:
    """`counts`: fingerprint → failures so far, `EngineFatal.poison`. Raises redis.RedisError."""
    key = names.poison_key(model)
    with client.pipeline(transaction=False) as pipe:
        pipe.hset(key, mapping={fingerprint: str(n) for fingerprint, n in counts.items()})
        pipe.expire(key, _KEPT_S)
        pipe.execute()


def recall(client: "redis.Redis", model: str) -> dict[str, int]:
    """Raises redis.RedisError."""
    found = client.hgetall(names.poison_key(model))
    return {payload_bytes(fingerprint).decode(): int(n) for fingerprint, n in found.items()}
