"""The clock of the service: that of the Redis server, the same for all hosts.

Times that one process writes and another one reads are of this clock, because the clocks of two
hosts may differ by minutes. Each process measures how far its monotonic clock is from Redis' and
reads the monotonic one in between, so a step of the host's clock changes nothing.
"""

import logging
import threading
import time

import redis

_log = logging.getLogger(__name__)
_STEP_S = 1.0
"""A larger difference between two measurements is a step of Redis' clock, not a drift."""
_MAX_STEPS = 16
_SKEW_S = 5.0
"""A host whose clock differs by more from Redis' is named in the log."""


class Clock:
    """For any thread. Before the first measurement it is the clock of the host."""

    def __init__(self) -> None:
        self._offset: float | None = None
        """Redis' Unix time less this process's monotonic time, in seconds."""
        self._error_s = 0.0
        """At most so far from the truth when it was measured best."""
        self._steps: list[tuple[float, float]] = []
        """The last steps forward of Redis' clock: its time after, and by how many seconds."""
        self._measuring = threading.Lock()
        self._has_warned = False

    def now(self) -> float:
        """Unix time in seconds. No round trip."""
        return time.time() if self._offset is None else time.monotonic() + self._offset

    def age_s(self, at: float) -> float:
        """Seconds since a time of this clock, never negative. Steps forward of Redis' clock that
        this process has seen since then do not count."""
        age_s = self.now() - at
        if self._steps:  # asked for each chunk: mostly there are none
            # Between the two ends of a step lie only times of a process that had not seen it yet.
            age_s -= sum(step for after, step in self._steps if at < after)
        return max(0.0, age_s)

    def is_past(self, deadline_at: float, *, made_at: float) -> bool:
        """Whether the time from `made_at` to `deadline_at` is over."""
        return self.age_s(made_at) > deadline_at - made_at

    @property
    def host_ahead_s(self) -> float:
        """By how much this host's clock is ahead of Redis', as of the last measurement."""
        return 0.0 if self._offset is None else time.time() - self.now()

    def measure(self, client: "redis.Redis") -> None:
        """Ask Redis for its time. Called at the start of a process and with every beat. Raises
        redis.RedisError."""
        before = time.monotonic()
        seconds, micros = client.time()
        self._note(seconds + micros / 1e6, before, time.monotonic())
        ahead_s = self.host_ahead_s
        if abs(ahead_s) > _SKEW_S and not self._has_warned:
            _log.warning("this host's clock is %+.1f s from Redis': set it by NTP", ahead_s)
        self._has_warned = abs(ahead_s) > _SKEW_S

    def _note(self, at: float, before: float, after: float) -> None:
        """Redis read its clock between two monotonic times. The offset moves no further than it
        must: a slow round trip does not make it worse."""
        low, high, error_s = at - after, at - before, (after - before) / 2
        with self._measuring:
            known = self._offset
            if known is None:
                self._offset, self._error_s = (low + high) / 2, error_s
                return
            self._offset = min(max(known, low), high)
            step = self._offset - known
            if step > _STEP_S + self._error_s:
                self._steps = [*self._steps[1 - _MAX_STEPS :], (before + self._offset, step)]
            self._error_s = min(self._error_s, error_s)


clock = Clock()
"""This process's."""
