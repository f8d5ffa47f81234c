"""The supervisor of one job for one of its readers: sees that the job makes progress, or ends it.

It decides from statuses that the watchdog has read. It ensures that the model is served, queues a
lost job again with back-off, and enforces queue time and deadline when no replica does.
"""

import time
from dataclasses import dataclass

from app.jobs.admission_errors import expected_wait_s, retry_after_s
from app.jobs.dispatcher import Dispatcher
from app.jobs.status import JobStatus
from app.models.loader import Loader
from app.streaming.queue_monitor import QueueLengths, QueuePositions
from app.streaming.watchdog import TICK_S, JobWatchdog
from shared.clock import clock
from shared.errors import DeadlineExceeded, QueueTimeout, ReplicaLost, RequestCancelled
from shared.registry.directory import Directory
from shared.settings.fields import Settings
from shared.wire.job import Job
from shared.wire.operations import OperationProgress

_DEADLINE_GRACE_S = 5.0
"""The replica enforces the deadline; the web tier does so this long after it."""
_MAX_REQUEUES = 6


@dataclass(frozen=True, slots=True)
class RelayParts:
    """What all relays of a process share."""

    settings: Settings
    dispatcher: Dispatcher
    directory: Directory
    queues: QueueLengths
    loader: Loader
    watchdog: JobWatchdog
    positions: QueuePositions


class JobSupervisor:
    """`is_well`, `on_well` and `on_events` never block; the other methods may."""

    def __init__(self, parts: RelayParts, job: Job) -> None:
        self._parts = parts
        self._job = job
        self._enqueued_at = time.monotonic()
        self._requeue_wait_s = TICK_S
        """Doubled with each requeue."""
        self._num_requeues = 0
        self._holder = ""
        """The last replica that was seen to have the job."""
        self._failing_since: float | None = None
        """Monotonic time since which the job has had no replica, or Redis has been away."""
        self.load: OperationProgress | None = None
        """Progress of the load that the job waits for."""

    def on_events(self) -> None:
        """The job makes progress."""
        self.on_well()
        self._end_back_off()

    def on_well(self) -> None:
        self._failing_since = self.load = None

    def _end_back_off(self) -> None:
        self._num_requeues, self._requeue_wait_s = 0, TICK_S

    def is_well(self, status: JobStatus) -> bool:
        """Whether the job only has to wait: a live replica runs it, or will take it from its
        queue."""
        if self._is_overdue():
            return False
        if status.holder:
            return self._parts.directory.has(status.holder)
        if status.is_cancelled or not self._parts.directory.is_served(self._job.model):
            return False
        if status.holder is None and self._is_queue_time_over():
            return False
        return not self._is_lost(is_held=False)

    def heal(self, status: JobStatus) -> bool:
        """Act on a job that is not well; True = it was queued again.

        A replica that is killed takes along the message that it has just received, and the jobs
        that it holds leases of. Both are queued again: the next replica finds the dead one's lease
        and decides what becomes of the job. Raises RequestCancelled, DeadlineExceeded,
        QueueTimeout, redis.RedisError, and what `ensure_replica` raises.
        """
        if self._is_overdue():
            raise DeadlineExceeded("The request was not done before its deadline.")
        if status.holder is None and self._is_queue_time_over():
            num_waiting = self._parts.queues.all().get(self._job.model, 0)
            wait_s = expected_wait_s(self._parts.directory.replicas(self._job.model), num_waiting)
            limit_s = self._parts.settings.max_queue_s
            raise QueueTimeout(
                f"The request waited in the queue for {limit_s:g} s, which is as long as it may.",
                retry_after_s=retry_after_s(wait_s),
            )
        if status.is_cancelled:
            raise RequestCancelled()
        self.ensure_replica()
        if status.holder and status.holder != self._holder:
            # Its message has arrived since: this death is a new one.
            self._holder = status.holder
            self._end_back_off()
        is_due = time.monotonic() - self._enqueued_at > self._requeue_wait_s
        if not is_due or not self._is_lost(is_held=bool(status.holder)):
            return False
        self._requeue()
        return True

    def ensure_replica(self) -> None:
        """Load the job's model if nothing serves it. Returns while the load runs. Raises what keeps
        the model from being loaded, and ReplicaLost when no replica has come for
        `replica_wait_s`."""
        name, directory = self._job.model, self._parts.directory
        if directory.is_served(name):
            self.on_well()
            return
        self.load = self._parts.loader.ensure(name, self._job.deadline_at)
        if self.load is not None or directory.is_coming(name) or directory.is_assigned(name):
            self._failing_since = None
        else:
            self.tolerate(
                ReplicaLost(f"No replica of the model {name!r} is running at the moment.")
            )

    def tolerate(self, error: Exception, since: float | None = None) -> None:
        """Raise `error` when failures have lasted for `replica_wait_s`: since the first one, which
        began at `since` (monotonic seconds) or now."""
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now if since is None else since
        if now - self._failing_since > self._parts.settings.replica_wait_s:
            raise error

    def _requeue(self) -> None:
        if self._num_requeues == _MAX_REQUEUES:
            raise ReplicaLost("The request was lost several times. Please try again.")
        self._num_requeues += 1
        self._requeue_wait_s *= 2
        self._enqueued_at = time.monotonic()
        self._parts.dispatcher.requeue(self._job)

    def _is_lost(self, *, is_held: bool) -> bool:
        """Whether no message of the job is on its way. The message that a dead holder took is lost
        with it; messages sent after that are in the queue, or lost, too."""
        if is_held and self._num_requeues == 0:
            return True
        return self._parts.queues.lacks(self._job.model, self._job.id, self._enqueued_at)

    def _is_overdue(self) -> bool:
        deadline_at = self._job.deadline_at + _DEADLINE_GRACE_S
        return clock.is_past(deadline_at, made_at=self._job.created_at)

    def _is_queue_time_over(self) -> bool:
        """Whether a job that no replica has had has waited longer than `max_queue_s`; 0 = no
        limit."""
        waited_s, limit_s = clock.age_s(self._job.created_at), self._parts.settings.max_queue_s
        return 0 < limit_s < waited_s - _DEADLINE_GRACE_S
