"""A bridge over short outages of Redis, for requests that are just coming in."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

import gevent
import redis
from kombu.exceptions import OperationalError

from app.hub import Hub

_MIN_RETRY_S = 0.1
_MAX_RETRY_S = 2.0

T = TypeVar("T")


class Bridge:
    """Repeats what failed, and no longer than a request waits for a replica either."""

    def __init__(self, hub: Hub, wait_s: float) -> None:
        self._hub = hub
        self._wait_s = wait_s

    def deadline(self) -> float:
        """Monotonic time at which a request that comes now is refused."""
        return time.monotonic() + self._wait_s

    def cross(self, call: Callable[[], T], deadline: float) -> T:
        """Call until Redis answers, or once more after the deadline.

        For calls that may be repeated. Raises redis.RedisError,
        kombu.exceptions.OperationalError: the last attempt's.
        """
        wait_s = _MIN_RETRY_S
        while True:
            try:
                return call()
            except (redis.ConnectionError, redis.TimeoutError, OperationalError):
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise
                # The hub looks for Redis on behalf of all who wait here: one connection a try.
                self._hub.wait_until_connected(left_s)
            gevent.sleep(wait_s * random.random())  # nosec B311 # it spreads tries and keeps no secret
            wait_s = min(2 * wait_s, _MAX_RETRY_S)
