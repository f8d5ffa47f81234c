"""The relay: reads one job for one client, and sees to it when it is not well.

Whatever way a client leaves, `Dispatcher.release` runs and stops a job that nobody else reads.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import msgspec
import redis
from kombu.exceptions import OperationalError

from app.dispatch import Dispatcher, Reading
from app.job_stream import JobStream, raise_failure
from app.loader import Loader
from app.lookout import TICK_S, JobStanding, Lookout
from app.meters import meters_of
from app.metrics import RESUMES
from app.positions import Place, Positions
from app.queues import QueueLengths
from app.refusals import expected_wait_s, retry_after_s
from app.request_facts import RequestFacts
from shared.errors import DeadlineExceeded, QueueTimeout, ReplicaLost, RequestCancelled
from shared.lifecycle import Progress
from shared.messages import Delta, Echo, Event, Failed
from shared.registry import Directory
from shared.settings import Settings

_REDIS_RETRY_S = 0.2
_DEADLINE_GRACE_S = 5.0
"""The replica enforces the deadline; this long after it the web tier does."""
_MAX_REQUEUES = 6
_LOAD_PATIENCE_S = 2.0
"""A load that is refused is refused by then: after this the progress is worth an open stream."""


@dataclass(frozen=True, slots=True)
class RelayParts:
    """What every relay of this process shares."""

    settings: Settings
    dispatcher: Dispatcher
    directory: Directory
    queues: QueueLengths
    loader: Loader
    lookout: Lookout
    positions: Positions


class Relay:
    """Reads one job for one client."""

    def __init__(self, parts: RelayParts, reading: Reading, facts: RequestFacts) -> None:
        self._parts = parts
        self._settings = parts.settings
        # What it asks for is in Redis; a long queue of long prompts would be held here, too.
        self._job = job = msgspec.structs.replace(
            reading.job, messages=[], prompts=[], tools=[], suffix=None, grammar=None
        )
        self._reading = replace(reading, job=job)
        self._facts = facts
        facts.read(job, is_first=reading.is_first)
        self._stream = reading.stream
        if not reading.is_first:
            RESUMES.labels(job.model).inc()
        self._lag = meters_of(job.model).stream_lag
        self._tick_s = parts.settings.keepalive_s / 2
        self._enqueued_at = time.monotonic()
        self._requeue_wait_s = TICK_S
        self._num_requeues = 0
        self._unserved_since: float | None = None
        self._is_begun = not reading.is_first
        """A job that was there before may need no replica any more."""
        self._failed: list[Event] = []
        self._waits_since: float | None = None
        """Since when the stream has been read without an event."""
        self._concern: JobStanding | redis.RedisError | None = None
        """What the lookout has found and the reader has to see to."""
        self._place: Place | None = None
        if reading.order is not None:
            self._place = parts.positions.watch(job.model, reading.order, self._stream.wake)
        self.load: Progress | None = None
        """How far the load is that the job waits for."""
        parts.lookout.watch(self)

    @property
    def stream(self) -> JobStream:
        return self._stream

    @property
    def job_id(self) -> str:
        return self._job.id

    @property
    def model(self) -> str:
        return self._job.model

    @property
    def keepalive_s(self) -> float:
        """Seconds after which a silent stream gets a comment."""
        return self._settings.keepalive_s

    @property
    def queue_position(self) -> int | None:
        """Requests before the job in its queue, as of late; None = it does not wait there."""
        return self._place.position if self._place else None

    def first_events(self) -> list[Event]:
        """Wait until the job's fate is known, or for one keep-alive interval.

        An error before the first token is raised here, and so becomes the HTTP status.
        """
        started_at = time.monotonic()
        deadline = started_at + self._settings.keepalive_s
        while True:
            events = self._read(self._tick_s)
            if not any(isinstance(event, Delta | Echo) for event in events):
                raise_failure(self._failed)
            if not events and self.load is not None:
                # A refused load is to be the HTTP status: the lookout would tell too late.
                self._see_to_a_replica()
                deadline = min(deadline, started_at + _LOAD_PATIENCE_S)
            if events or time.monotonic() >= deadline:
                return events

    def events(self, first: list[Event]) -> Iterator[list[Event]]:
        """The job's events to its end; [] now and then while there are none: twice in a
        keep-alive interval, and when something has changed. Raises LlmisError."""
        if first:
            yield first
        while True:
            raise_failure(self._failed)
            if self._stream.is_ended:
                return
            yield self._read(self._tick_s)

    def delivered(self) -> None:
        """The client's socket has taken what was read last."""
        if self._stream.published_at:
            self._lag.observe(max(0.0, time.time() - self._stream.published_at))

    def _read(self, timeout_s: float) -> list[Event]:
        """What comes before a failure, which is kept for the next call.

        Raises what the stream was closed with, LlmisError, redis.RedisError.
        """
        began_at = time.monotonic()
        try:
            if not self._is_begun:
                self._see_to_a_replica()
                self._is_begun = True
            events = self._wait(timeout_s)
            if not events and self._concern is not None:
                concern, self._concern = self._concern, None
                if isinstance(concern, redis.RedisError):
                    raise concern
                self._look_after_job(concern)
        except (redis.RedisError, OperationalError) as exc:
            self._give_up_after_a_while(exc, began_at)
            time.sleep(_REDIS_RETRY_S)
            return []
        if events:
            self._facts.observe(events)
            self._unserved_since = self.load = None
            self._has_begun()
            self._num_requeues, self._requeue_wait_s = 0, TICK_S
            if isinstance(events[-1], Failed):
                *events, failed = events
                self._failed = [failed]
        return events

    def _wait(self, timeout_s: float) -> list[Event]:
        if self._waits_since is None:
            self._waits_since = time.monotonic()
        events = self._stream.read(timeout_s)
        if events:
            self._waits_since = None
        return events

    def _has_begun(self) -> None:
        if self._place is not None:
            self._parts.positions.forget(self._place)
            self._place = None

    def _see_to_a_replica(self) -> None:
        """For a job that no live replica has: load its model if nothing serves it.

        Raises what keeps it from being loaded, and ReplicaLost when none comes for too long.
        """
        name, directory = self._job.model, self._parts.directory
        if directory.is_served(name):
            self._unserved_since = self.load = None
            return
        self.load = self._parts.loader.ensure(name, self._job.deadline_at)
        if self.load is not None or directory.is_coming(name) or directory.is_assigned(name):
            self._unserved_since = None
        else:
            self._give_up_after_a_while(
                ReplicaLost(f"No replica of the model {name!r} is running at the moment.")
            )

    def _give_up_after_a_while(self, error: Exception, since: float | None = None) -> None:
        """A short outage is bridged; raise `error` when it has lasted too long, from now on or
        from `since` (monotonic seconds)."""
        now = time.monotonic()
        if self._unserved_since is None:
            self._unserved_since = now if since is None else since
        if now - self._unserved_since > self._settings.replica_wait_s:
            raise error

    # -- the lookout's side ------------------------------------------------------------------

    @property
    def is_silent(self) -> bool:
        return self._waits_since is not None and time.monotonic() - self._waits_since >= TICK_S

    def note(self, found: JobStanding | redis.RedisError) -> None:
        """Wake the reader if it has something to see to."""
        if isinstance(found, JobStanding):
            if found.num_events > self._stream.num_read:
                self._stream.push_repair()  # the last message was lost
                return
            if self._is_well(found):
                self._unserved_since = self.load = None
                return
        self._concern = found
        self._stream.wake()

    def _is_well(self, standing: JobStanding) -> bool:
        """Whether the job has but to wait: somebody runs it, or will take it from its queue."""
        if time.time() > self._job.deadline_at + _DEADLINE_GRACE_S:
            return False
        if standing.holder:
            return self._parts.directory.has(standing.holder)
        if standing.is_cancelled or not self._parts.directory.is_served(self._job.model):
            return False
        if standing.holder is None and self._is_too_old():
            return False
        return not self._is_lost(is_held=False)

    # -- the reader's side -------------------------------------------------------------------

    def _look_after_job(self, standing: JobStanding) -> None:
        """See to a job that is not well. Raises RequestCancelled, DeadlineExceeded, ReplicaLost.

        A replica that is killed takes along the message it has just been handed, and the jobs
        it has claimed. Both are queued again: the next replica finds the claim of a dead one
        and decides what becomes of the job.
        """
        if time.time() > self._job.deadline_at + _DEADLINE_GRACE_S:
            raise DeadlineExceeded("The request was not done before its deadline.")
        if standing.holder is None:
            self._check_queue_time()
        if standing.is_cancelled:
            raise RequestCancelled("The request was cancelled.")
        self._see_to_a_replica()
        is_due = time.monotonic() - self._enqueued_at > self._requeue_wait_s
        if is_due and self._is_lost(is_held=bool(standing.holder)):
            self._requeue()

    def _requeue(self) -> None:
        if self._num_requeues == _MAX_REQUEUES:
            raise ReplicaLost("The request was lost several times. Please try again.")
        self._num_requeues += 1
        self._requeue_wait_s *= 2
        self._enqueued_at = time.monotonic()
        self._parts.dispatcher.requeue(self._job)
        self._stream.push_repair()  # it may have ended unheard

    def _is_lost(self, *, is_held: bool) -> bool:
        """Whether no message of the job is on its way. The one of a holder that has died went
        with it; those that were sent after it are in the queue, or lost, too."""
        if is_held and self._num_requeues == 0:
            return True
        return self._parts.queues.lacks(self._job.model, self._job.id, self._enqueued_at)

    def _is_too_old(self) -> bool:
        """Whether the job has waited for longer than one may that no replica has had."""
        waited_s, longest_s = time.time() - self._job.created_at, self._settings.max_queue_s
        return 0 < longest_s < waited_s - _DEADLINE_GRACE_S

    def _check_queue_time(self) -> None:
        """Raises QueueTimeout."""
        if self._is_too_old():
            name = self._job.model
            depth = self._parts.queues.all().get(name, 0)
            wait_s = expected_wait_s(self._parts.directory.replicas(name), depth)
            raise QueueTimeout(
                f"The request waited in the queue for {self._settings.max_queue_s:g} s, which is "
                "as long as it may.",
                retry_after_s=retry_after_s(wait_s),
            )

    def close(self, error: BaseException | None = None) -> None:
        """Stop reading; a job that nobody reads any more stops."""
        self._parts.lookout.forget(self)
        self._has_begun()
        self._parts.dispatcher.release(self._reading)
        self._facts.fail(error)
