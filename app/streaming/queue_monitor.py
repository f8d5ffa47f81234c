"""The models' queues: lengths and positions, renewed with every beat, and contents, on demand."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import redis

from shared import names
from shared.queue.job_queue import JobQueue
from shared.queue.snapshot import QueuePosition, queued_jobs

_CONTENTS_S = 2.0
"""Seconds between two reads of a queue: one transfers about 1 KB for each message."""


@dataclass(frozen=True, slots=True)
class _Contents:
    """The jobs whose messages were in a queue."""

    read_at: float
    """Monotonic time, before the read."""
    job_ids: frozenset[str]


class QueueLengths:
    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self._lengths: dict[str, int] = {}
        self._counted_at = 0.0
        self._contents: dict[str, _Contents] = {}

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
        """Whether a job's message is missing in its model's queue, by a count or a read that began
        after `enqueued_at` (monotonic seconds)."""
        if self._counted_at > enqueued_at and self._lengths.get(model) == 0:
            return True
        found = self._contents.get(model)
        return found is not None and found.read_at > enqueued_at and job_id not in found.job_ids

    def read_contents(self, models: Iterable[str]) -> None:
        """Read the queues of these models that are not empty and were not read just now. Raises
        redis.RedisError."""
        for model in models:
            found = self._contents.get(model)
            is_old = found is None or time.monotonic() - found.read_at > _CONTENTS_S
            if self._lengths.get(model) and is_old:
                read_at = time.monotonic()
                self._contents[model] = _Contents(read_at, queued_jobs(self._client, model))


@dataclass(eq=False, slots=True)
class WatchedPosition:
    """Where one waiting job is in its queue."""

    model: str
    position: QueuePosition
    on_found: Callable[[], None]
    """Called when the job is found in the queue for the first time. Must not block."""
    num_ahead: int | None = None
    """Messages before it; None = unknown yet, or it has left the queue."""


class QueuePositions:
    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._watched: set[WatchedPosition] = set()
        self._oldest_at: dict[str, float] = {}

    def watch(
        self, model: str, position: QueuePosition, on_found: Callable[[], None]
    ) -> WatchedPosition:
        """Keep `num_ahead` up to date until the position is forgotten."""
        watched = WatchedPosition(model, position, on_found)
        self._watched.add(watched)
        return watched

    def forget(self, watched: WatchedPosition) -> None:
        watched.num_ahead = None
        self._watched.discard(watched)

    def oldest_at(self, model: str) -> float | None:
        """Unix time at which the oldest waiting request was made; see `QueueSnapshot.oldest_at`."""
        return self._oldest_at.get(model)

    def refresh(self, waiting: Iterable[str]) -> None:
        """`waiting`: models whose queues are not empty. Raises redis.RedisError."""
        oldest_at: dict[str, float] = {}
        for model in {watched.model for watched in self._watched}.union(waiting):
            snapshot = self._queue.snapshot(model)
            if snapshot.oldest_at is not None:
                oldest_at[model] = snapshot.oldest_at
            # A list: `on_found` may forget a position.
            for watched in [watched for watched in self._watched if watched.model == model]:
                is_new = watched.num_ahead is None
                watched.num_ahead = snapshot.position(watched.position)
                if is_new and watched.num_ahead is not None:
                    watched.on_found()
        self._oldest_at = oldest_at
