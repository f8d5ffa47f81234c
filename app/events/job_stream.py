"""A job's events as its reader sees them: in order, without gaps or duplicates."""

import time
from typing import Any

import gevent
import redis
from gevent.queue import SimpleQueue

from app.errors import ClientGone
from shared import errors, names
from shared.redis.connection import payload_bytes
from shared.wire import codec
from shared.wire.events import Event, Failed, Finished, join

_ENDS = (Finished, Failed)
_REPAIR = object()
_FOLLOW_S = 0.05
"""Seconds between two reads of a log whose events are not pushed yet."""
_FOLLOW_LIMIT_S = 5.0
"""A replica knows of a new reader by then. The watchdog checks jobs that are silent for longer."""
_WAKE = object()
_MAX_QUEUED = 256
"""Events that wait for one reader. More are dropped, and read from the log later."""
MAX_READ = 512
"""Events of one read of the log; `JobStream.read` returns fewer than twice as many."""


class JobStream:
    """One reader of one job. The hub pushes, one greenlet reads.

    Pub/sub may lose events; the job's log has them all, each at the index that is its sequence
    number. A gap, or a reconnection of the hub, is repaired from the log before reading goes on.
    So a slow reader costs a bounded queue, however much its job produces meanwhile.
    """

    def __init__(self, job_id: str, client: "redis.Redis") -> None:
        self.job_id = job_id
        self._client = client
        self._queue: SimpleQueue[object] = SimpleQueue()
        self.next_seq = 0
        """Sequence number of the next event to read = number of events read."""
        self._has_dropped = False
        """Events were dropped since the log was read last."""
        self.is_ended = False
        """The last event has been read."""
        self._polls_until = 0.0
        """Monotonic time until which the log is polled; 0 once the hub pushes events."""
        self._waits_until: float | None = None
        """Monotonic time at which `read` returns without an event; None = it does not wait."""
        self._timer: Any = None
        """Wakes the reader. One for many reads: when it is too early, it is started again."""
        self._fires_at = 0.0
        """Monotonic time, of the timer."""
        self._pushed_at = 0.0
        self.published_at = 0.0
        """Unix time, by the replica's clock, at which it published the first of the events read
        last; 0 = they come from the log."""

    # -- called by the hub -------------------------------------------------------------------

    def push(self, event: Event, published_at: float = 0.0) -> None:
        self._polls_until = 0.0
        self._pushed_at = self._pushed_at or published_at
        if self._queue.qsize() < _MAX_QUEUED:
            self._queue.put(event)
        else:
            self._has_dropped = True

    def push_repair(self) -> None:
        """Events may have been lost: let the reader read the log."""
        self._queue.put(_REPAIR)

    def wake(self) -> None:
        """Let `read` return, without an event if there is none."""
        self._queue.put(_WAKE)

    def close(self, error: Exception | None = None) -> None:
        """Let `read` raise an error; ClientGone without one."""
        self._queue.put(error or ClientGone())

    # -- called by the reader ----------------------------------------------------------------

    def follow(self) -> None:
        """Read a job that runs already: past events come from its log, and so do new ones until
        its replica knows of this reader."""
        self._polls_until = time.monotonic() + _FOLLOW_LIMIT_S
        self.push_repair()

    def skip(self, num_events: int) -> list[Event]:
        """Take the next `num_events` events from the log, or as many as there are. Call it before
        the first `read`. Raises redis.RedisError."""
        events = self._log(num_events)
        self.is_ended = bool(events) and isinstance(events[-1], _ENDS)
        return events

    def read(self, timeout_s: float) -> list[Event]:
        """Wait for events and return all that are there, the deltas of each choice joined.

        Returns [] after `timeout_s` without one, or when woken. Raises what `close` was given, and
        redis.RedisError: no event is lost then, the next call reads it.
        """
        events: list[Event] = []
        try:
            self._take(self._next(timeout_s), events)
            while self._queue.qsize() and len(events) < MAX_READ:
                self._take(self._queue.get_nowait(), events)
        except redis.RedisError:
            self.push_repair()
            if not events:
                raise
        if not events and time.monotonic() < self._polls_until:
            self._read_log(events)
        self.published_at, self._pushed_at = self._pushed_at, 0.0
        if events and isinstance(events[-1], _ENDS):
            self.is_ended = True
        elif self._has_dropped:
            self._has_dropped = False
            self.push_repair()
        return join(events) if len(events) > 1 else events

    def _next(self, timeout_s: float) -> object:
        """The next item of the queue, or _WAKE."""
        if not self._queue.qsize():
            now = time.monotonic()
            if now < self._polls_until:
                timeout_s = min(timeout_s, _FOLLOW_S)
            until = self._waits_until = now + timeout_s
            if self._timer is None or self._fires_at > until:
                self._start_timer(until, timeout_s)
        try:
            return self._queue.get()
        finally:
            self._waits_until = None

    def _start_timer(self, fires_at: float, delay_s: float) -> None:
        self.stop_timer()
        self._fires_at = fires_at
        self._timer = gevent.get_hub().loop.timer(delay_s)
        self._timer.start(self._on_timer)

    def _on_timer(self) -> None:
        """Called by the event loop, in no greenlet."""
        self.stop_timer()
        until = self._waits_until
        if until is None:
            return  # the next wait starts it
        if until <= self._fires_at:
            self.wake()
        else:
            self._start_timer(until, max(0.0, until - time.monotonic()))

    def stop_timer(self) -> None:
        """Call it when nobody reads any more."""
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def _take(self, item: object, events: list[Event]) -> None:
        if isinstance(item, Exception):
            raise item
        if item is _REPAIR:
            self._read_log(events)
        elif item is not _WAKE:
            event: Event = item  # type: ignore[assignment]
            if event.seq > self.next_seq:
                self._read_log(events)
            elif event.seq == self.next_seq:
                self.next_seq += 1
                events.append(event)
            # A smaller number is a duplicate: it was read from the log before.

    def _read_log(self, events: list[Event]) -> None:
        found = self._log(MAX_READ)
        events += found
        if len(found) == MAX_READ:
            self.push_repair()  # the log may have more

    def _log(self, num_events: int) -> list[Event]:
        first = self.next_seq
        payloads = self._client.lrange(names.log_key(self.job_id), first, first + num_events - 1)
        found = [codec.decode_event(payload_bytes(payload)) for payload in payloads]
        self.next_seq += len(found)
        return found


def raise_failure(events: list[Event]) -> None:
    """Raise the error that the job failed with, if the last event is its failure."""
    if events and isinstance(events[-1], Failed):
        failed = events[-1]
        raise errors.rebuild(failed.status, failed.code, failed.message, failed.param)
