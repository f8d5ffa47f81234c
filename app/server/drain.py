"""The end of a web process after SIGTERM: let requests finish, then break them off. Which process
is to stop, and when its successor serves, is decided in gunicorn's master: `app.gunicorn_conf`."""

import os
import time
from collections.abc import Callable
from typing import Any

import gevent

from app.services import Services
from shared.errors import GoingAway

_POLL_S = 0.1
_GOING_AWAY = (
    "The server stops before the answer is complete. Send the request again; with the same "
    "Idempotency-Key it goes on where it was."
)


def drain(worker: Any, services: Services) -> None:
    """Wait for requests until the time limit, then end them: gunicorn would kill them without their
    `finally`."""
    settings = services.settings
    while worker.alive:
        gevent.sleep(_POLL_S)
    began_at = time.monotonic()
    closing: set[Callable[[], None]] = set()
    while True:
        # A process that is only replaced goes on serving its open connections.
        is_stop = bool(worker.is_stopping.value) or os.getppid() != worker.ppid
        services.is_stopping = is_stop
        limit_s = settings.drain_grace_s if is_stop else settings.web_drain_s
        is_over = time.monotonic() - began_at >= limit_s
        if is_over:
            services.hub.close_streams(GoingAway(_GOING_AWAY))
        if is_over or not services.hub.num_streams:
            for close in services.close_sockets - closing:
                gevent.spawn(close)  # may wait for a client that does not read
            closing |= services.close_sockets
            if is_over or is_stop:
                # Only idle connections are left.
                worker.cfg.set("graceful_timeout", 0)
        gevent.sleep(_POLL_S)
