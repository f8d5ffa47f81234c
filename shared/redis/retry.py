"""Retry while Redis is away: which errors pass, and how a call is repeated."""

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

import redis
from kombu.exceptions import OperationalError

_log = logging.getLogger(__name__)
_RETRY_S = 0.2
_MIN_BACK_OFF_S, _MAX_BACK_OFF_S = 0.1, 2.0

TRANSIENT_ERRORS = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.OutOfMemoryError,
    redis.ReadOnlyError,
)
"""Errors that pass: the same call succeeds later. One that has no class: `is_disk_full`."""

T = TypeVar("T")


def is_disk_full(error: BaseException | None) -> bool:
    """Whether Redis refuses to write, because it could not write to its disk."""
    return isinstance(error, redis.ResponseError) and "MISCONF " in str(error)


def retry_forever(call: Callable[[], T], what: str) -> T:
    """Call until Redis answers, however long that takes. For calls that may be repeated."""
    is_logged = False
    while True:
        try:
            return call()
        except redis.RedisError as exc:
            if not isinstance(exc, TRANSIENT_ERRORS) and not is_disk_full(exc):
                raise
            if not is_logged:
                _log.warning("%s waits for Redis: %s", what, exc)
                is_logged = True
            time.sleep(_RETRY_S)


def retry_until(call: Callable[[], T], deadline: float, wait: Callable[[float], None]) -> T:
    """Call until Redis answers, or once more after the deadline (monotonic seconds). For calls
    that may be repeated; a full Redis is not waited for.

    `wait` returns when Redis may be back, and after so many seconds at the latest. Raises the last
    attempt's redis.RedisError or kombu.exceptions.OperationalError.
    """
    back_off_s = _MIN_BACK_OFF_S
    while True:
        try:
            return call()
        except (redis.ConnectionError, redis.TimeoutError, OperationalError):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise
            wait(left_s)
        # Random, so that the waiting requests do not all call at once.
        time.sleep(back_off_s * random.random())  # nosec B311 # no secret depends on it
        back_off_s = min(2 * back_off_s, _MAX_BACK_OFF_S)
