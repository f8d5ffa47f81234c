"""A job's way into this replica and out of it: lease, takeover, settlement. Runs in task threads.

Every step is repeated until Redis answers. The message of a job is acknowledged when its task
returns, and is not delivered again: an outage must not end the task.
"""

import logging
import time
from dataclasses import dataclass
from enum import StrEnum

from shared import names
from shared.queue.job_queue import RecoveryResult
from shared.queue.lease import Lease, LeaseReply
from shared.queue.lease import read as read_lease
from shared.redis.connection import payload_bytes
from shared.redis.retry import retry_forever
from shared.registry import records
from shared.registry.records import BEAT_S
from shared.wire import codec
from shared.wire.codec import DecodeError
from shared.wire.events import Event
from shared.wire.job import Job, JobKind
from worker.replica.attempt import Attempt, Preemption
from worker.replica.context import ReplicaContext
from worker.replica.resume import LoggedProgress, logged_progress

_log = logging.getLogger(__name__)


class NotRun(StrEnum):
    """Why a delivery of a job runs nothing."""

    EXPIRED = "expired"
    DUPLICATE = "duplicate"
    HANDED_OVER = "handed_over"


@dataclass(frozen=True, slots=True)
class LeasedJob:
    """A job that this replica may run."""

    job: Job
    lease: Lease
    progress: LoggedProgress
    readers: tuple[str, ...]
    cancel_flag: bytes | None
    """Both as in `LeaseReply`, whose encoded job and log are not kept."""
    is_readable: bool = True
    """False = `job` only stands for one that this process cannot decode. It only gets its end."""


def take(replica: ReplicaContext, job_id: str) -> LeasedJob | NotRun:
    """Lease a job, if no live replica has it or had it to its end."""
    new = None if replica.is_draining() else Lease(replica.id)
    reply = retry_forever(lambda: replica.leases.take(job_id, None, new), "a job")
    if reply.payload is None:
        _log.warning("the job has expired")
        _forget(replica, job_id)
        return NotRun.EXPIRED
    is_readable = True
    try:
        job = codec.decode_job(reply.payload)
    except DecodeError:
        _log.error("the job is not readable and ends", exc_info=True)
        is_readable, new = False, Lease(replica.id)  # to be ended here, although this one may drain
        job = Job(id=job_id, model="", kind=JobKind.COMPLETION, created_at=0.0, deadline_at=0.0)
        reply = retry_forever(lambda: replica.leases.take(job_id, None, new), "a job")
    if new is None:
        requeue(replica, job)
        return NotRun.HANDED_OVER
    if job.is_over:
        retry_forever(lambda: replica.queue.settle(job, job.charged_tokens), "a second delivery")
        _forget(replica, job_id)
        return NotRun.DUPLICATE
    leased = retry_forever(lambda: _leased(replica, job, reply, is_readable), "a lease")
    if leased is None:
        _log.info("second delivery of a job dropped")
        if is_readable:
            retry_forever(lambda: _recount(replica, job), "a second delivery")
        _forget(replica, job_id)
        return NotRun.DUPLICATE
    return leased


def _leased(
    replica: ReplicaContext, job: Job, reply: LeaseReply, is_readable: bool
) -> LeasedJob | None:
    """Take over a lease that was released or whose holder is dead; None when there is nothing to
    run here. A lease of our own, while no thread here has the job, is one whose answer was lost."""
    found = reply.lease
    if found is not None and found.holder != replica.id:
        progress = _progress(reply.log)
        if found.holder:
            if _is_alive(replica, found.holder):
                return None
            # The holder may have written until it died.
            progress = _read_progress(replica, job.id)
        if progress.is_ended:
            return None
        new = found.succeeded_by(replica.id, progress.num_events, progress.num_tokens)
        reply = replica.leases.take(job.id, found, new)
    if reply.lease is None or reply.lease.holder != replica.id:
        return None  # another replica was faster, or the job has gone meanwhile
    # From the lease on, no other replica appends: this log is complete.
    progress = _progress(reply.log)
    if progress.is_ended:
        return None  # Redis had lost the lease
    if is_readable and not reply.has_begun:
        replica.queue.begin(job)
    return LeasedJob(job, reply.lease, progress, reply.readers, reply.cancel_flag, is_readable)


def _progress(log: list[bytes]) -> LoggedProgress:
    events: list[Event] = []
    error: DecodeError | None = None
    for payload in log:
        try:
            events.append(codec.decode_event(payload))
        except DecodeError as exc:
            error = exc
    progress = logged_progress(events)
    if error is not None:
        _log.error("the log of the job is not readable", exc_info=error)
        progress.num_events, progress.is_readable = len(log), False
    return progress


def _read_progress(replica: ReplicaContext, job_id: str) -> LoggedProgress:
    payloads = replica.client.lrange(names.log_key(job_id), 0, -1)
    return _progress([payload_bytes(payload) for payload in payloads])


def _is_alive(replica: ReplicaContext, replica_id: str) -> bool:
    """Whether a replica beats. After an outage of Redis all records are gone, this replica's as
    well: then the others get the time to write theirs again."""
    for wait_s in (2 * BEAT_S, 0.0):
        alive = {record.id for record in records.read(replica.client)}
        if replica_id in alive or replica.id in alive:
            return replica_id in alive
        time.sleep(wait_s)
    return False


def _recount(replica: ReplicaContext, job: Job) -> None:
    """The dropped delivery had made the job a waiting one again: it runs, or has ended."""
    if _read_progress(replica, job.id).is_ended:
        replica.queue.settle(job, job.charged_tokens)
        return
    replica.queue.begin(job)
    lease = read_lease(replica.client, job.id)
    if lease is not None and lease.holder:
        # A holder that was taken for dead may have lost it: if it dies, its jobs are looked for
        # there.
        pipe = replica.client.pipeline(transaction=False)
        pipe.sadd(names.HOLDERS, lease.holder)
        pipe.sadd(names.held_key(lease.holder), job.id)
        pipe.expire(names.held_key(lease.holder), replica.running_ttl_s)
        pipe.execute()


def _forget(replica: ReplicaContext, job_id: str) -> None:
    """This replica does not hold the job any more."""
    held_key = names.held_key(replica.id)
    retry_forever(lambda: replica.client.srem(held_key, job_id), "a job's end")


def requeue(replica: ReplicaContext, job: Job) -> None:
    """Queue a job that this replica holds, unless it has no reader, and hold it no more."""
    retry_forever(lambda: replica.queue.recover(job, replica.id), "a job's return")


def leave(replica: ReplicaContext, leased: LeasedJob, attempt: Attempt) -> bool:
    """Settle, hand over or give up a job that is out of the engine and has its log complete.
    Returns True if it was given up but has a reader again: then it must be requeued."""
    if attempt.is_fenced or not leased.is_readable:
        _forget(replica, attempt.id)
        return False
    return retry_forever(lambda: _leave(replica, leased.lease, attempt), "a job's end")


def _leave(replica: ReplicaContext, lease: Lease, attempt: Attempt) -> bool:
    job = attempt.job
    if attempt.outcome == Preemption.HANDED_OVER:
        replica.leases.release(job.id, lease)
        if replica.queue.recover(job, replica.id) in (RecoveryResult.QUEUED, RecoveryResult.TAKEN):
            return False
        attempt.outcome = Preemption.LEFT  # its last reader has left meanwhile
    if attempt.outcome == Preemption.LEFT:
        return replica.leases.give_up(job, lease)
    replica.leases.end(job, attempt.prompt_tokens + attempt.completion_tokens)
    return False
