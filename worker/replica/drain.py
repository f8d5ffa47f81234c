"""The drain: what a replica does between being told to stop and its end.

It takes no more jobs. Those that run go to other replicas, which go on with their logs: at once
as far as there are free slots elsewhere, else when the grace time is over, to wait in the queue.
Only where nobody is to serve the model any more do they end, with an error. One thread.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import redis
from celery import bootsteps

from shared import lifecycle, names, registry
from shared.errors import ModelUnloaded
from shared.lifecycle import StopOrder
from shared.messages import ReplicaState
from worker.engine_loop import EngineLoop
from worker.job_run import GiveBack, JobRun

_log = logging.getLogger(__name__)
_POLL_S = 0.1
_SIBLINGS_S = 0.1
"""Replicas that are told to stop at the same time have said so by then."""
_NEWS_S = 2 * registry.BEAT_S
"""By then the others have told of the jobs that were handed to them."""
_LAST_WORDS_S = 6.0
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
        """`grace_s` holds where no `StopOrder` says otherwise; `announce` tells the registry."""
        self._client = client
        self._replica_id = replica_id
        self._model = model
        self._loop = loop
        self._grace_s = grace_s
        self._announce = announce
        self._begun = threading.Event()
        self._next_look_at = 0.0

    @property
    def has_begun(self) -> bool:
        """Whether a job that comes now is to go back to the queue."""
        return self._begun.is_set()

    def begin(self) -> None:
        """From a signal handler. Celery waits for the running tasks then."""
        self._begun.set()
        threading.Thread(target=self._run, name="drain", daemon=True).start()

    def _run(self) -> None:
        """Until the process ends: a task may still be on its way into the loop."""
        self._announce()
        started_at = time.monotonic()
        time.sleep(_SIBLINGS_S)
        while True:
            # Read again each time: it may be told to hurry.
            order = self._order()
            late_s = time.monotonic() - started_at - (order.grace_s if order else self._grace_s)
            if order is None or order.hands_over:
                self._hand_over(is_late=late_s >= 0)
            elif late_s >= 0:
                for run in self._loop.running():
                    self._loop.cancel(run.id, ModelUnloaded(order.reason))
            if late_s > _LAST_WORDS_S:
                # Without Redis the last events of its jobs never leave.
                _log.critical("the process ends although jobs have not")
                os._exit(75)
            time.sleep(_POLL_S)

    def _order(self) -> StopOrder | None:
        try:
            return lifecycle.decode(self._client.get(names.stop_key(self._replica_id)), StopOrder)
        except redis.RedisError as exc:
            _log.warning("stop order not readable, the grace time of the settings holds: %s", exc)
            return None

    def _hand_over(self, *, is_late: bool) -> None:
        runs = self._loop.running()
        if not is_late:
            now = time.monotonic()
            if not runs or now < self._next_look_at:
                return
            runs = _fitting(runs, self._free_slots_elsewhere())
            if runs:
                self._next_look_at = now + _NEWS_S
        for run in runs:
            self._loop.give_back(run.id, GiveBack.HANDED_OVER)

    def _free_slots_elsewhere(self) -> int:
        try:
            records = registry.read(self._client)
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


def _fitting(runs: list[JobRun], num_slots: int) -> list[JobRun]:
    """The first of the jobs that find so many slots."""
    fitting = []
    for run in runs:
        num_slots -= max(1, run.open_sequences)
        if num_slots < 0:
            break
        fitting.append(run)
    return fitting


class PutBack(bootsteps.StartStopStep):  # type: ignore[misc]
    """Put back the message that Redis has popped for a consumer that stops.

    kombu has always asked for one more, and would read the answer when the process ends: the
    job would wait for all that run. It is next in its list then.
    """

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
