"""Which error a client sees for an exception."""

import logging

import redis
from kombu.exceptions import OperationalError

from shared.errors import InternalError, LlmisError, QueueUnavailable, StorageFull
from shared.redis.retry import is_disk_full

_log = logging.getLogger(__name__)


class ClientGone(Exception):
    """The client has closed its connection: there is no one left to answer."""


def from_exception(exc: Exception) -> LlmisError:
    """The error that a client sees for an exception. Logs outages and our own faults."""
    if isinstance(exc, LlmisError):
        return exc
    if isinstance(exc, redis.RedisError | OperationalError):
        _log.warning("Redis failed a request: %s", exc)
        # Kombu raises an error of its own from that of Redis.
        causes = (exc, exc.__cause__)
        if any(isinstance(error, redis.OutOfMemoryError) for error in causes):
            return StorageFull("The queue has no memory left for the request. Please try again.")
        if any(map(is_disk_full, causes)):
            return StorageFull("The queue cannot write to its disk. Please try again.")
        return QueueUnavailable("The queue is not reachable at the moment. Please try again.")
    _log.error("unexpected error", exc_info=exc)
    return InternalError("The server had an error while processing the request.")
