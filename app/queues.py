"""The models' queues: their lengths, counted with every beat, and what is in them, on demand."""

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass

import redis

from shared import names
from shared.connections import payload_bytes

_LOOK_S = 5.0
"""Between two looks into a queue: one costs a round trip with about 1 KB for each message."""
_TASK_ID = re.compile(rb'"id": ?"([^"]+)"')


@dataclass(frozen=True, slots=True)
class _Look:
    """The jobs whose messages were in a queue at a time (monotonic seconds)."""

    at: float
    job_ids: frozenset[str]


class QueueLengths:
    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self._lengths: dict[str, int] = {}
        self._counted_at = 0.0
        self._looks: dict[str, _Look] = {}

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

    def lacks(self, model: str, job_id: str, enqueued_at: float) -> bool:
        """Whether a job's message is not in its model's queue, by a count or a look made after
        `enqueued_at` (monotonic seconds)."""
        if self._counted_at > enqueued_at and self._lengths.get(model) == 0:
            return True
        look = self._looks.get(model)
        return look is not None and look.at > enqueued_at and job_id not in look.job_ids

    def look(self, models: Iterable[str]) -> None:
        """See what is in the queues of these models, unless that is known from a moment ago.
        Raises redis.RedisError."""
        for model in models:
            look = self._looks.get(model)
            if self._lengths.get(model) and (look is None or time.monotonic() - look.at > _LOOK_S):
                self._looks[model] = self._look(model)

    def _look(self, model: str) -> _Look:
        pipe = self._client.pipeline(transaction=False)
        at = time.monotonic()
        for key in names.priority_lists(model):
            pipe.lrange(key, 0, -1)
        queued = [payload_bytes(message) for part in pipe.execute() for message in part]
        found = (_TASK_ID.search(message) for message in queued)
        return _Look(at, frozenset(match[1].decode() for match in found if match))
