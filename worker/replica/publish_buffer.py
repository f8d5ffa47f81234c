"""The events that the publisher has not written to Redis yet.

The buffer never blocks its writers: the engine must not stop for Redis. While Redis stands still
the text of each choice is joined, so the buffer grows only by text and token ids, bounded by the
token limits of the running jobs.

Writers add without a lock, because appending to a deque is atomic. The lock is for those who
remove: the publisher, and a writer that joins.
"""

import threading
from collections import deque

from worker.replica.attempt import AttemptEvent
from worker.replica.event_builder import joined

_MAX_WAITING = 256
"""Lists that wait before they are joined into one: engine steps, mostly."""


class PublishBuffer:
    """Lists of events, first in, first out; None = the end. One thread takes them."""

    def __init__(self) -> None:
        self._lists: deque[list[AttemptEvent] | None] = deque()
        self._removes = threading.Lock()
        self._wakes = threading.Event()
        """Set when the taker is to stop waiting."""
        self._waits_for_any = False
        """The taker's pause is over: every list wakes it, urgent or not."""

    def put(self, events: list[AttemptEvent] | None, *, is_urgent: bool = True) -> None:
        """From any thread; never blocks. Urgent events end the pause of the taker."""
        self._lists.append(events)
        if len(self._lists) > _MAX_WAITING:
            self._join()
        # Read after the append: the taker writes it before it looks for lists, so that one of the
        # two sees the other.
        if is_urgent or self._waits_for_any:
            self._wakes.set()

    def take(self, max_events: int, pause_s: float = 0.0) -> list[list[AttemptEvent] | None]:
        """Wait until the pause is over or something is urgent, and until there is a list. Return
        what is there, up to the list that makes `max_events` complete."""
        if pause_s > 0:
            self._wakes.wait(pause_s)
        self._waits_for_any = True
        while not self._lists:
            self._wakes.wait()
            self._wakes.clear()
        self._waits_for_any = False
        self._wakes.clear()  # before the lists are taken: one that comes now wakes again
        taken, num_events = [], 0
        with self._removes:
            while self._lists and num_events < max_events:
                events = self._lists.popleft()
                taken.append(events)
                num_events += len(events or ())
        if num_events >= max_events:
            self._wakes.set()  # what is left may be urgent
        return taken

    def empty(self) -> bool:
        return not self._lists

    def _join(self) -> None:
        with self._removes:
            lists = [self._lists.popleft() for _ in range(len(self._lists))]
            self._lists.appendleft(joined([event for events in lists for event in events or ()]))
            if None in lists:
                self._lists.append(None)
