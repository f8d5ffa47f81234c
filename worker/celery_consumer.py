"""Celery's consumer, with short pauses between attempts to reach Redis."""

from functools import partial
from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer

_MAX_RETRY_S = 2.0
"""Celery's own pause grows by two seconds each time, up to 30: requests would wait for that."""


class Consumer(CeleryConsumer):  # type: ignore[misc]
    """The consumer of replicas and agents."""

    def ensure_connected(self, conn: Any) -> Any:
        conn.ensure_connection = partial(
            conn.ensure_connection, interval_start=0.5, interval_step=0.5, interval_max=_MAX_RETRY_S
        )
        return super().ensure_connected(conn)
