"""When Redis is away for a moment: which errors say so, and how a thread waits for its return."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import redis

_log = logging.getLogger(__name__)
_RETRY_S = 0.2

OUTAGES = (redis.ConnectionError, redis.TimeoutError, redis.OutOfMemoryError, redis.ReadOnlyError)
"""Errors that pass: the same call succeeds later."""

T = TypeVar("T")


def outlast(call: Callable[[], T], what: str) -> T:
    """Call until Redis answers, however long that takes. For calls that may be repeated."""
    is_told = False
    while True:
        try:
            return call()
        except OUTAGES as exc:
            if not is_told:
                _log.warning("%s waits for Redis: %s", what, exc)
                is_told = True
            time.sleep(_RETRY_S)
