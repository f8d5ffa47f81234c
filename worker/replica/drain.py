"""The drain: what a replica does between its stop signal and its end. One thread.

It takes no more jobs. Its running jobs go to other replicas, which resume them: at once as far as
there are free slots elsewhere, else when the grace time is over, to wait in the queue. Only when
the model is unloaded do they end, with an error.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import redis
from celery import bootsteps

from shared import names
from shared.errors import ModelUnloaded
from shared.registry.records import BEAT_S, read
from shared.wire import codec
from shared.wire.records import ReplicaState, StopOrder
from worker.replica.attempt import Attempt, Preemption
from worker.replica.engine_loop import EngineLoop
from worker.replica.threads import daemon_thread

_log = logging.getLogger(__name__)
_POLL_S = 0.1
_SIBLINGS_S = 0.1
"""By then, replicas that are stopped at the same time show it in their records."""
_RECORDS_S = 2 * BEAT_S
"""By then, the records of the others show the jobs that were handed to them."""
_PUBLISH_S = 6.0
"""Beyond the grace time: for the last events of the jobs to reach Redis."""


class Drain:
    def __init__(
        self,
        client: "redis.Redis",
        replica_id: str,
        model: str,
        loop: EngineLoop,
        grace_s: float,
        *,
        announce: Callable[[], None],
    ) -> None:
        """`grace_s` applies without a `StopOrder`; `announce` writes the replica's record."""
        self._client = client
        self._replica_id = replica_id
        self._model = model
        self._loop = loop
        self._grace_s = grace_s
        self._announce = announce
        self._begun = threading.Event()
        self._next_handover_at = 0.0

    @property
    def has_begun(self) -> bool:
        """Whether a job that arrives now goes back to the queue."""
        return self._begun.is_set()

    def begin(self) -> None:
        """From a signal handler. Celery waits for the running tasks then."""
        self._begun.set()
        daemon_thread("drain", self._run).start()

    def _run(self) -> None:
        """Repeat until the process ends: a task may be about to submit a job to the loop."""
        self._announce()
        started_at = time.monotonic()
        time.sleep(_SIBLINGS_S)
        while True:
            # Read again each time: a later order may shorten the grace time.
            order = self._order()
            late_s = time.monotonic() - started_at - (order.grace_s if order else self._grace_s)
            if order is None or order.hands_over:
                self._hand_over(is_late=late_s >= 0)
            elif late_s >= 0:
                for attempt in self._loop.running():
                    self._loop.cancel(attempt.id, ModelUnloaded(order.reason))
            if late_s > _PUBLISH_S:
                # Without Redis the last events of its jobs cannot be written.
                _log.critical("the process ends although jobs have not")
                os._exit(75)
            time.sleep(_POLL_S)

    def _order(self) -> StopOrder | None:
        try:
            return codec.decode(self._client.get(names.stop_key(self._replica_id)), StopOrder)
        except redis.RedisError as exc:
            _log.warning("stop order not readable, the grace time of the settings holds: %s", exc)
            return None

    def _hand_over(self, *, is_late: bool) -> None:
        attempts = self._loop.running()
        if not is_late:
            now = time.monotonic()
            if not attempts or now < self._next_handover_at:
                return
            attempts = _fitting(attempts, self._free_slots_elsewhere())
            if attempts:
                self._next_handover_at = now + _RECORDS_S
        for attempt in attempts:
            self._loop.preempt(attempt.id, Preemption.HANDED_OVER)

    def _free_slots_elsewhere(self) -> int:
        try:
            records = read(self._client)
        except redis.RedisError as exc:
            _log.warning("the registry is not readable, jobs stay for now: %s", exc)
            return 0
        return sum(
            max(0, record.slots - record.busy_slots - record.waiting_sequences)
            for record in records
            if record.model == self._model
            and record.id != self._replica_id
            and record.state is ReplicaState.READY
        )


def _fitting(attempts: list[Attempt], num_slots: int) -> list[Attempt]:
    """The first of the jobs, as many as fit into so many slots."""
    fitting = []
    for attempt in attempts:
        num_slots -= max(1, attempt.open_sequences)
        if num_slots < 0:
            break
        fitting.append(attempt)
    return fitting


class PutBack(bootsteps.StartStopStep):  # type: ignore[misc]
    """Put back the message that Redis has popped for a consumer that stops. kombu's BRPOP for the
    next message is always under way, and its reply would only be read when the process ends: that
    job would wait for all running ones. Put back, it is next in its list."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def stop(self, consumer: Any) -> None:
        channel = consumer.task_consumer.channel
        connection = channel._in_poll
        if not connection:
            return
        reply = channel.client.parse_response(connection, "BRPOP")
        channel._in_poll = None
        if reply:
            with channel.conn_or_acquire() as client:
                client.rpush(*reply)
