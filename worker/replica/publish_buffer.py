"""The events that the publisher has not written to Redis yet.

The buffer never blocks its writer: the engine must not stop for Redis. While Redis stands still
the text of each choice is joined, so the buffer grows only by text and token ids, bounded by the
token limits of the running jobs.
"""

import queue
import threading
from collections import deque

from worker.replica.attempt import AttemptEvent
from worker.replica.event_builder import joined

_MAX_WAITING = 256
"""Lists that wait before they are joined into one: engine steps, mostly."""


class PublishBuffer:
    """Lists of events, first in, first out; None = the end."""

    def __init__(self) -> None:
        self._lists: deque[list[AttemptEvent] | None] = deque()
        self._is_filled = threading.Condition()

    def put(self, events: list[AttemptEvent] | None) -> None:
        """From any thread; never blocks."""
        with self._is_filled:
            self._lists.append(events)
            if len(self._lists) > _MAX_WAITING:
                self._join()
            self._is_filled.notify()

    def get(self, *, waits: bool = True) -> list[AttemptEvent] | None:
        """Take the next list. Raises queue.Empty without one, unless it `waits` for one."""
        with self._is_filled:
            while not self._lists:
                if not waits:
                    raise queue.Empty
                self._is_filled.wait()
            return self._lists.popleft()

    def empty(self) -> bool:
        return not self._lists

    def _join(self) -> None:
        waiting = [event for events in self._lists for event in events or []]
        is_ended = None in self._lists
        self._lists.clear()
        self._lists.append(joined(waiting))
        if is_ended:
            self._lists.append(None)
