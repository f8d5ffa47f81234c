"""The lengths of the models' queues, kept in memory and refreshed once a second."""

import time
from collections.abc import Iterable

import redis

from shared import names


class QueueLengths:
    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self._lengths: dict[str, int] = {}
        self._counted_at = 0.0

    def refresh(self, models: Iterable[str]) -> None:
        """Count all models' queues in one round trip. Raises redis.RedisError."""
        model_names = sorted(models)
        pipe = self._client.pipeline(transaction=False)
        started_at = time.monotonic()
        for name in model_names:
            for key in names.priority_lists(name):
                pipe.llen(key)
        counts = pipe.execute()
        step = len(names.PRIORITY_STEPS)
        self._lengths = {
            name: sum(counts[i * step : (i + 1) * step]) for i, name in enumerate(model_names)
        }
        self._counted_at = started_at

    def all(self) -> dict[str, int]:
        return self._lengths

    def is_empty_since(self, model: str, enqueued_at: float) -> bool:
        """Whether nothing waits in the model's queue, by a count made after `enqueued_at`
        (monotonic seconds)."""
        return self._counted_at > enqueued_at and self._lengths.get(model) == 0
