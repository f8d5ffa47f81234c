"""The relay: reads one job for one client. It runs in the request's greenlet, but for `note`,
which the watchdog calls.

However a client leaves, `Dispatcher.release` runs, and parks a job without other readers.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from types import TracebackType
from typing import Self

import msgspec
import redis
from kombu.exceptions import OperationalError

from app.events.job_stream import raise_failure
from app.jobs.dispatcher import Subscription
from app.jobs.status import JobStatus
from app.metrics.buffered import metrics_of
from app.metrics.definitions import RESUMES
from app.metrics.request_record import RequestRecord
from app.streaming.job_supervisor import JobSupervisor, RelayParts
from app.streaming.queue_monitor import WatchedPosition
from app.streaming.watchdog import TICK_S
from shared.clock import clock
from shared.wire.events import Delta, Echo, Event, Failed
from shared.wire.operations import OperationProgress

_REDIS_RETRY_S = 0.2
_LOAD_WAIT_S = 2.0
"""A load that is rejected is rejected by then. After it, the load's progress opens the stream."""


class Relay:
    """Reads one job for one client. A context manager: an exception that leaves it is recorded as
    the request's failure."""

    def __init__(
        self, parts: RelayParts, subscription: Subscription, record: RequestRecord
    ) -> None:
        # Without the request's content: it is in Redis, and a long queue of long prompts would
        # fill this process's memory.
        job = msgspec.structs.replace(
            subscription.job, messages=[], prompts=[], tools=[], suffix=None, grammar=None
        )
        self.job_id, self.model = job.id, job.model
        self._subscription = replace(subscription, job=job)
        self.stream = subscription.stream
        self._record = record
        record.read(job, is_first=subscription.is_first)
        if not subscription.is_first:
            RESUMES.labels(job.model).inc()
        self._parts = parts
        self._supervisor = JobSupervisor(parts, job)
        self._lag = metrics_of(job.model).stream_lag
        self.keepalive_s = parts.settings.keepalive_s
        """Seconds after which a silent stream gets a comment."""
        self._has_replica = not subscription.is_first
        """A replica was ensured before the first wait. A job that was there before may have ended
        and need none."""
        self._failed: list[Event] = []
        """The failure that was read, until it is raised."""
        self._shown_load: OperationProgress | None = None
        self._was_silent = True
        """The last read brought no events: supervisor and position may have to be reset."""
        self._waits_since: float | None = None
        """Monotonic time of the first wait since the last event."""
        self._finding: JobStatus | redis.RedisError | None = None
        """Of the watchdog, for the reader to act on."""
        self._position: WatchedPosition | None = None
        if subscription.position is not None:
            self._position = parts.positions.watch(
                job.model, subscription.position, self.stream.wake
            )
        parts.watchdog.watch(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        """Stop reading."""
        self._parts.watchdog.forget(self)
        self._forget_position()
        self._parts.dispatcher.release(self._subscription)
        self._record.fail(error)

    @property
    def load(self) -> OperationProgress | None:
        """Progress of the load that the job waits for."""
        return self._supervisor.load

    def new_load(self) -> OperationProgress | None:
        """The progress, unless the last call that returned one returned the same."""
        if self.load in (None, self._shown_load):
            return None
        self._shown_load = self.load
        return self.load

    @property
    def queue_position(self) -> int | None:
        """Requests before the job in its queue, as of the last beat; None = it is not in one."""
        return self._position.num_ahead if self._position else None

    def first_events(self) -> list[Event]:
        """Wait for the first events, at most for one keep-alive interval.

        An error before the first token is raised here, and so becomes the HTTP status.
        """
        started_at = time.monotonic()
        deadline = started_at + self.keepalive_s
        while True:
            events = self._read(self.keepalive_s / 2)
            if not any(isinstance(event, (Delta, Echo)) for event in events):
                raise_failure(self._failed)
            if not events and self.load is not None:
                # A rejected load has to be the HTTP status: the watchdog would find it too late.
                self._supervisor.ensure_replica()
                deadline = min(deadline, started_at + _LOAD_WAIT_S)
            if events or time.monotonic() >= deadline:
                return events

    def events(self, first: list[Event]) -> Iterator[list[Event]]:
        """The job's events up to its end, in batches. A batch is empty when none have come: twice
        in a keep-alive interval, and when queue position or load may have changed. Raises
        LlmisError, redis.RedisError, and what the stream was closed with."""
        if first:
            yield first
        while True:
            raise_failure(self._failed)
            if self.stream.is_ended:
                return
            yield self._read(self.keepalive_s / 2)

    def delivered(self) -> None:
        """The client's socket has taken the events read last."""
        if self.stream.published_at:
            self._lag.observe(clock.age_s(self.stream.published_at))

    def _read(self, timeout_s: float) -> list[Event]:
        """The events before a failure, which is kept for the next call. Raises what the stream was
        closed with, LlmisError, redis.RedisError."""
        started_at = time.monotonic()
        was_silent, self._was_silent = self._was_silent, True
        try:
            if not self._has_replica:
                self._supervisor.ensure_replica()
                self._has_replica = True
            if self._waits_since is None:
                self._waits_since = time.monotonic()
            events = self.stream.read(timeout_s)
            # Events are newer than what the watchdog found before them.
            finding, self._finding = self._finding, None
            if not events and isinstance(finding, redis.RedisError):
                raise finding
            if not events and isinstance(finding, JobStatus) and self._supervisor.heal(finding):
                self.stream.push_repair()  # it may have ended unnoticed
        except (redis.RedisError, OperationalError) as exc:
            self._supervisor.tolerate(exc, started_at)
            time.sleep(_REDIS_RETRY_S)
            return []
        if events:
            self._waits_since, self._was_silent = None, False
            self._record.observe(events)
            if was_silent:
                self._supervisor.on_events()
                self._forget_position()
            if isinstance(events[-1], Failed):
                *events, failed = events
                self._failed = [failed]
        return events

    def _forget_position(self) -> None:
        if self._position is not None:
            self._parts.positions.forget(self._position)
            self._position = None

    # -- called by the watchdog --------------------------------------------------------------

    @property
    def is_silent(self) -> bool:
        return self._waits_since is not None and time.monotonic() - self._waits_since >= TICK_S

    def note(self, found: JobStatus | redis.RedisError) -> None:
        """Wake the reader if it has something to do. It replaces what was found before."""
        self._finding = None
        if isinstance(found, JobStatus):
            if found.num_events > self.stream.next_seq:
                self.stream.push_repair()  # the last message was lost
                return
            if self._supervisor.is_well(found):
                self._supervisor.on_well()
                return
        self._finding = found
        self.stream.wake()
