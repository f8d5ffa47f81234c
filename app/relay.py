"""The relay: one job's stream to one client, as SSE or as one whole answer.

Whatever way a client leaves, `Dispatcher.release` runs and stops a job that nobody else reads.
"""

import errno
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import msgspec
import redis
from kombu.exceptions import OperationalError

from app import sse
from app.answers import AnswerShape
from app.choices import Choice
from app.dispatch import Dispatcher, Reading
from app.errors import from_exception
from app.job_stream import ClientGone
from app.loader import Loader
from app.lookout import TICK_S, JobStanding, Lookout
from app.metrics import StreamMetrics
from app.queues import QueueLengths
from shared import errors
from shared.errors import DeadlineExceeded, GoingAway, ReplicaLost, RequestCancelled
from shared.lifecycle import Progress
from shared.messages import Delta, Echo, Event, Failed, Finished
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


class Relay:
    """Reads one job for one client."""

    def __init__(self, parts: RelayParts, reading: Reading) -> None:
        self._parts = parts
        self._settings = parts.settings
        # What it asks for is in Redis; a long queue of long prompts would be held here, too.
        self._job = job = msgspec.structs.replace(
            reading.job, messages=[], prompts=[], tools=[], suffix=None, grammar=None
        )
        self._reading = replace(reading, job=job)
        self._stream = reading.stream
        self.metrics = StreamMetrics(job.model, job.created_at, job.kind)
        self._tick_s = parts.settings.keepalive_s / 2
        self._enqueued_at = time.monotonic()
        self._requeue_wait_s = TICK_S
        self._num_requeues = 0
        self._unserved_since: float | None = None
        self._is_begun = False
        self._waits_since: float | None = None
        """Since when the stream has been read without an event."""
        self._concern: JobStanding | redis.RedisError | None = None
        """What the lookout has found and the reader has to see to."""
        self.load: Progress | None = None
        """How far the load is that the job waits for."""
        parts.lookout.watch(self)

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

    def first_events(self) -> list[Event]:
        """Wait until the job's fate is known, or for one keep-alive interval.

        An error before the first token is raised here, and so becomes the HTTP status.
        """
        started_at = time.monotonic()
        deadline = started_at + self._settings.keepalive_s
        while True:
            events = self._read(self._tick_s)
            if self.load is not None:
                deadline = min(deadline, started_at + _LOAD_PATIENCE_S)
            if events or time.monotonic() >= deadline:
                _raise_failure(events)
                return events

    def events(self, first: list[Event]) -> Iterator[list[Event]]:
        """The job's events to its end; [] now and then while there are none: twice in a
        keep-alive interval, and when something has changed. Raises LlmisError."""
        if first:
            yield first
        while not self._stream.is_ended:
            events = self._read(self._tick_s)
            _raise_failure(events)
            yield events

    def _read(self, timeout_s: float) -> list[Event]:
        """Raises what the stream was closed with, LlmisError, redis.RedisError."""
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
            self.metrics.observe(events)
            self._unserved_since = self.load = None
            self._num_requeues, self._requeue_wait_s = 0, TICK_S
        return events

    def _wait(self, timeout_s: float) -> list[Event]:
        if self._waits_since is None:
            self._waits_since = time.monotonic()
        events = self._stream.read(timeout_s)
        if events:
            self._waits_since = None
        return events

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
        if standing.holder is not None:
            return self._parts.directory.has(standing.holder)
        if standing.is_cancelled or not self._parts.directory.is_served(self._job.model):
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
        self._see_to_a_replica()
        if standing.holder is None and standing.is_cancelled:
            raise RequestCancelled("The request was cancelled.")
        is_due = time.monotonic() - self._enqueued_at > self._requeue_wait_s
        if is_due and self._is_lost(is_held=standing.holder is not None):
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

    def close(self, error: BaseException | None = None) -> None:
        """Stop reading; a job that nobody reads any more stops."""
        self._parts.lookout.forget(self)
        self._parts.dispatcher.release(self._reading)
        self.metrics.close(error)


def _raise_failure(events: list[Event]) -> None:
    if events and isinstance(events[-1], Failed):
        failed = events[-1]
        raise errors.rebuild(failed.status, failed.code, failed.message, failed.param)


def stream_sse(
    relay: Relay, shape: AnswerShape, first: list[Event], on_close: Callable[[], None]
) -> Iterator[bytes]:
    """The SSE body. After the first byte an error is one event, then the end of the stream."""
    error: BaseException | None = None
    try:
        opening = b"".join(sse.event(chunk) for chunk in shape.opening())
        if opening:
            yield opening
        written_at = time.monotonic()
        told: Progress | None = None
        for events in relay.events(first):
            body = sse_chunks(shape, events)
            if not body and relay.load is not None and relay.load != told:
                told = relay.load
                body = sse.comment(f"loading {told.model}: {told.stage} {told.fraction:.0%}")
            if not body and time.monotonic() - written_at >= relay.keepalive_s:
                body = sse.KEEPALIVE
            if body:
                yield body
                written_at = time.monotonic()
        yield sse.DONE
    except ClientGone as exc:
        error = exc
    except GeneratorExit as exc:
        error = exc
        raise
    except GoingAway as exc:
        error = exc
        # A body without its last chunk is seen to be cut off by every client, which may come back.
        raise ConnectionResetError(errno.ECONNRESET, "the web process ends") from exc
    except Exception as exc:
        error = exc
        yield sse.event(from_exception(exc).body())
    finally:
        on_close()
        relay.close(error)


def sse_chunks(shape: AnswerShape, events: list[Event]) -> bytes:
    parts: list[bytes] = []
    for event in events:
        if isinstance(event, Delta | Echo):
            parts.extend(sse.event(chunk) for chunk in shape.chunks(event))
        elif isinstance(event, Finished):
            parts.extend(sse.event(chunk) for chunk in shape.closing(event))
    return b"".join(parts)


def whole_answer(relay: Relay, shape: AnswerShape) -> object:
    """Read the job to its end and return the answer object. Raises LlmisError, ClientGone."""
    choices = [Choice() for _ in range(shape.num_choices)]
    error: BaseException | None = None
    try:
        for events in relay.events([]):
            for event in events:
                if isinstance(event, Delta | Echo):
                    choices[event.index].add(event)
                elif isinstance(event, Finished):
                    return shape.whole(choices, event)
        raise AssertionError("a stream ends with Finished or raises")
    except BaseException as exc:
        error = exc
        raise
    finally:
        relay.close(error)
