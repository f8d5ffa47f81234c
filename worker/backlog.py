"""What the publisher has not carried to Redis yet.

It does not wait for room: the engine must not stop for Redis. While Redis stands still the text
of each choice is joined, so that what waits grows by its text and token ids alone, and no
further than the token limits of the jobs that run.
"""

import queue
import threading
from collections import deque

from worker.events import joined
from worker.job_run import Emission

_MAX_WAITING = 256
"""Lists that wait before they are joined into one: engine steps, mostly."""


class Backlog:
    """Lists of emissions, first in, first out; None = no more come."""

    def __init__(self) -> None:
        self._lists: deque[list[Emission] | None] = deque()
        self._has_come = threading.Condition()

    def put(self, emissions: list[Emission] | None) -> None:
        """From any thread; waits for nobody."""
        with self._has_come:
            self._lists.append(emissions)
            if len(self._lists) > _MAX_WAITING:
                self._join()
            self._has_come.notify()

    def get(self) -> list[Emission] | None:
        """Wait for the next list."""
        with self._has_come:
            while not self._lists:
                self._has_come.wait()
            return self._lists.popleft()

    def get_nowait(self) -> list[Emission] | None:
        """Raises queue.Empty."""
        with self._has_come:
            if not self._lists:
                raise queue.Empty
            return self._lists.popleft()

    def empty(self) -> bool:
        return not self._lists

    def _join(self) -> None:
        waiting = [emission for emissions in self._lists for emission in emissions or []]
        is_over = None in self._lists
        self._lists.clear()
        self._lists.append(joined(waiting))
        if is_over:
            self._lists.append(None)
