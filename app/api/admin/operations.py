"""Loads and unloads as answers: as they begin, at their end, or every step as an event stream.

Follows an operation's progress in Redis by polling; `app.models.loader` sends its commands.
"""

import time
from collections.abc import Iterator

import gevent
import redis
from flask import Response

from app.api import json_response
from app.api.admin import objects
from app.errors import from_exception
from app.services import Services, services
from app.streaming import sse
from app.streaming.chunk_encoder import DONE
from shared.errors import LlmisError, NotFound
from shared.registry import operations
from shared.wire.operations import OperationProgress

_POLL_S = 0.1
_RETRY_S = 0.5
_LAST_EVENT_S = 2.5
"""An operation that is aborted loses its lock first; its node writes the reason soon after."""


def answer(operation_id: str, *, wait: bool, stream: bool) -> Response:
    """Answer with an operation: as it is, at its end, or every step of it."""
    parts = services()
    if stream:
        return Response(_stream(parts, operation_id), headers=sse.HEADERS)
    if not wait:
        return json_response.of(objects.operation(latest(parts.client, operation_id)), 202)
    for progress in _follow(parts.client, operation_id):
        if progress is not None and progress.is_ended:
            parts.directory.refresh()
            if progress.failure is not None:
                raise progress.failure.error()
            return json_response.of(objects.operation(progress))
    raise AssertionError("an operation ends")


def _stream(parts: Services, operation_id: str) -> Iterator[bytes]:
    quiet_since = time.monotonic()
    try:
        for progress in _follow(parts.client, operation_id):
            if progress is not None:
                if progress.is_ended:
                    parts.directory.refresh()
                yield sse.event(objects.operation(progress))
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since > parts.settings.keepalive_s:
                yield sse.keepalive(None)
                quiet_since = time.monotonic()
        yield sse.event(DONE)
    except (LlmisError, redis.RedisError) as exc:
        yield sse.event(from_exception(exc).body())


def _follow(client: "redis.Redis", operation_id: str) -> Iterator[OperationProgress | None]:
    """Yield the operation's progress to its end; None after each pause without news.

    Retries during short outages of Redis. Raises NotFound, redis.RedisError.
    """
    last, num_read = latest(client, operation_id), 0
    active_at = time.monotonic()
    """When the operation was last seen to be worked on."""
    while True:
        try:
            events = operations.progress(client, operation_id, num_read)
            is_lost = not events and operations.is_lost(client, last)
        except redis.RedisError:
            if time.monotonic() - active_at > operations.LOCK_TTL_S:
                raise
            yield None
            gevent.sleep(_RETRY_S)
            continue
        for last in events:
            num_read += 1
            yield last
            if last.is_ended:
                return
        if not is_lost:
            active_at = time.monotonic()
        elif time.monotonic() - active_at > _LAST_EVENT_S:
            yield operations.lost(last)
            return
        yield None
        gevent.sleep(_POLL_S)


def latest(client: "redis.Redis", operation_id: str) -> OperationProgress:
    """Read the latest progress of an operation. Raises NotFound."""
    events = operations.progress(client, operation_id, -1)
    if not events:
        raise NotFound(f"There is no operation {operation_id!r}, or it ended long ago.", param="id")
    last = events[-1]
    if last.is_ended or not operations.is_lost(client, last):
        return last
    # Read again: its last event and the end of its lock may both have come between the two reads.
    last = operations.progress(client, operation_id, -1)[-1]
    return last if last.is_ended else operations.lost(last)
