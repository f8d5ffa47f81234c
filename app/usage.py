"""When each model was asked for last: what the agents go by when room is needed."""

import time

import redis

from shared import names


class Usage:
    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self._used_at: dict[str, float] = {}

    def note(self, model: str) -> None:
        """A request has come. Costs no round trip: `flush` writes it."""
        self._used_at[model] = time.time()

    def flush(self) -> None:
        """Write what was noted since the last time. Raises redis.RedisError."""
        noted, self._used_at = self._used_at, {}
        if noted:
            self._client.zadd(names.LAST_USED, noted, gt=True)
