"""The lengths of the models' queues, kept in memory and refreshed once a second."""

from collections.abc import Iterable

import redis

from shared import names

_PRIORITY_SUFFIXES = ("", "\x06\x163", "\x06\x166", "\x06\x169")
"""Kombu keeps one list a priority step: the queue's name, then separator and step."""


class QueueLengths:
    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self._lengths: dict[str, int] = {}

    def refresh(self, models: Iterable[str]) -> None:
        """Count all models' queues in one round trip. Raises redis.RedisError."""
        model_names = sorted(models)
        pipe = self._client.pipeline(transaction=False)
        for name in model_names:
            for suffix in _PRIORITY_SUFFIXES:
                pipe.llen(names.model_queue(name) + suffix)
        counts = pipe.execute()
        step = len(_PRIORITY_SUFFIXES)
        self._lengths = {
            name: sum(counts[i * step : (i + 1) * step]) for i, name in enumerate(model_names)
        }

    def all(self) -> dict[str, int]:
        return self._lengths

    def is_empty(self, model: str) -> bool:
        """Whether nothing waited in the model's queue when it was last counted."""
        return self._lengths.get(model) == 0
