"""When each model was requested last: agents unload the least recently used to make room."""

import redis

from shared import names
from shared.clock import clock


class LastUsed:
    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self._used_at: dict[str, float] = {}

    def note(self, model: str) -> None:
        """Note a request now. Costs no round trip: `flush` writes it."""
        self._used_at[model] = clock.now()

    def flush(self) -> None:
        """Write the notes since the last call. Raises redis.RedisError; the next call writes them
        then."""
        noted, self._used_at = self._used_at, {}
        if not noted:
            return
        try:
            self._client.zadd(names.LAST_USED, noted, gt=True)
        except redis.RedisError:
            self._used_at = noted | self._used_at  # a note made meanwhile is later
            raise
