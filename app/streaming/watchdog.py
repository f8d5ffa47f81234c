"""The watchdog: one greenlet of a web process that checks all jobs whose readers are silent.

Once a second it reads the status of all of them in two or three round trips, and wakes only the
relays that have something to do. So a stream that waits in a queue costs next to nothing.
"""

from typing import Protocol

import gevent
import redis

from app.jobs.status import JobStatus, read_statuses
from app.streaming.queue_monitor import QueueLengths
from shared.periodic import run_periodically

TICK_S = 1.0
"""Interval of the checks, and how long a reader waits before its job is checked."""


class Watched(Protocol):
    """A reader of one job. Neither method may block."""

    job_id: str
    model: str

    @property
    def is_silent(self) -> bool:
        """Whether the reader has waited for an event for at least a tick."""

    def note(self, found: JobStatus | redis.RedisError) -> None:
        """Take the job's status, or the error that kept it from being read."""


class JobWatchdog:
    def __init__(self, client: "redis.Redis", queues: QueueLengths) -> None:
        self._client = client
        self._queues = queues
        self._watched: set[Watched] = set()

    def start(self) -> None:
        check = "the check of silent jobs"
        gevent.spawn(run_periodically, self.check, TICK_S, check, sleep=gevent.sleep)

    def watch(self, reader: Watched) -> None:
        self._watched.add(reader)

    def forget(self, reader: Watched) -> None:
        self._watched.discard(reader)

    def check(self) -> None:
        """Give every silent reader the status of its job."""
        silent = [reader for reader in self._watched if reader.is_silent]
        if not silent:
            return
        try:
            # Reading works while Redis refuses to write, for its disk is full; PING does not.
            self._client.ping()
            statuses = read_statuses(self._client, [reader.job_id for reader in silent])
            checked = list(zip(silent, statuses, strict=True))
            # A job that a replica takes in between may look lost and be queued again: the second
            # delivery finds the lease.
            self._queues.read_contents(
                {reader.model for reader, status in checked if not status.holder}
            )
        except redis.RedisError as exc:
            for reader in silent:
                reader.note(exc)
            return
        for reader, status in checked:
            reader.note(status)
