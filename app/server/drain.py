"""The end of a web process that gunicorn has told to stop."""

import os
import time
from collections.abc import Callable
from typing import Any

import gevent

from app.factory import Services
from shared.errors import GoingAway

_POLL_S = 0.1
_GOING_AWAY = (
    "The server stops before the answer is complete. Send the request again; with the same "
    "Idempotency-Key it goes on where it was."
)


def drain(worker: Any, services: Services) -> None:
    """Let requests end, then end the others: gunicorn would kill them without their `finally`."""
    settings = services.settings
    while worker.alive:
        gevent.sleep(_POLL_S)
    began_at = time.monotonic()
    told: set[Callable[[], None]] = set()
    while True:
        # One that is replaced serves its connections on: who has one does not know of it.
        is_stop = bool(worker.is_stopping.value) or os.getppid() != worker.ppid
        services.is_stopping = is_stop
        limit_s = settings.drain_grace_s if is_stop else settings.web_drain_s
        is_over = time.monotonic() - began_at >= limit_s
        if is_over:
            services.hub.close_streams(GoingAway(_GOING_AWAY))
        if is_over or not services.hub.num_streams:
            for close in services.close_sockets - told:
                gevent.spawn(close)  # it may have to wait for a client that does not read
            told |= services.close_sockets
            if is_over or is_stop:
                # Nothing but idle connections is left.
                worker.cfg.set("graceful_timeout", 0)
        gevent.sleep(_POLL_S)
