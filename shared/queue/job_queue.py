"""The queue of jobs: admission, order, requeueing.

A model's queue is its Celery queue: a Redis list for each priority, from which replicas take
messages with BRPOP. Inside a list the messages of different keys take turns: `admit` puts each
one into its place. The waiting and the running jobs of a key are kept in sorted sets whose members
expire with their jobs, so that a lost job does not count for ever.
"""

from enum import StrEnum
from typing import Any

import redis
from msgspec import Struct

from shared import names
from shared.limits import Allowance, Allowances, Limits
from shared.queue.celery_message import FIRST, queue_message
from shared.queue.snapshot import QueuePosition, QueueSnapshot
from shared.redis.connection import payload_bytes
from shared.redis.scripts import load_script
from shared.wire import codec
from shared.wire.job import Job, Priority

_PLACES = {Priority.INTERACTIVE: 2, Priority.BACKGROUND: 3, Priority.BATCH: 4}
"""Priority → place of its list, from 1; the first list is for requeued jobs."""


class RejectReason(StrEnum):
    """Why a job was not admitted."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    OPEN = "open"
    WAITING = "waiting"
    QUEUE = "queue"
    TAKEN = "taken"
    """There is a job of that id."""
    REPEATED = "repeated"
    """There is a job of that idempotency key."""


class Admission(Struct, frozen=True, kw_only=True):
    """The result of a request for admission."""

    reject_reason: RejectReason | None = None
    position: QueuePosition | None = None
    """With an admitted job."""
    ahead: int = 0
    """Messages before the job, or those that fill the queue."""
    retry_s: float = 0.0
    """With REQUESTS and TOKENS: until the bucket is full enough."""
    known_fingerprint: str = ""
    known_id: str = ""
    """With REPEATED."""
    allowances: Allowances = Allowances()


class RecoveryResult(StrEnum):
    """What became of a job whose replica is dead or hands it over."""

    QUEUED = "queued"
    TAKEN = "taken"
    """Another process has queued it, or this call did so before."""
    LEFT = "left"
    """It has no reader."""
    GONE = "gone"


class LeaveResult(StrEnum):
    """What became of a job that a reader has left."""

    READ_BY_OTHERS = "read by others"
    TO_BE_STOPPED = "to be stopped"
    """It has no reader; a replica may run it."""
    OUT_OF_QUEUE = "out of queue"
    """It has no reader, and no replica will get it."""


class JobQueue:
    """All methods raise redis.RedisError."""

    def __init__(self, client: "redis.Redis", job_ttl_s: int) -> None:
        """`job_ttl_s`: how long the keys of a job live, from its admission on."""
        self._client = client
        self._ttl_s = job_ttl_s
        # A full Redis refuses new jobs, before the first write of the script.
        self._admit = load_script(client, "order", "admit", at_oom=False)
        self._requeue = load_script(client, "order", "requeue")
        self._leave = load_script(client, "order", "leave")
        self._begin = load_script(client, "owner", "begin")
        self._settle = load_script(client, "owner", "settle")
        self._snapshot = load_script(client, "order", "snapshot")
        self._position = load_script(client, "position")
        self._forget = load_script(client, "forget")
        self._turn = load_script(client, "turn")

    # -- the web tier's side -----------------------------------------------------------------

    def admit(
        self,
        job: Job,
        channel: str,
        limits: Limits,
        max_queue_length: int,
        *,
        idempotency_key: str = "",
        fingerprint: str = "",
    ) -> Admission:
        """Store and queue a job if its key's limits allow it; else write nothing.

        `idempotency_key` is a key made by `names.idempotency_key`, `fingerprint` a digest of
        the request that was sent with it.
        """
        place, is_interactive = _PLACES[job.priority], job.priority is Priority.INTERACTIVE
        reply: list[Any] = self._admit(
            keys=_admission_keys(job, place, idempotency_key),
            args=[
                job.id,
                codec.encode_job(job),
                queue_message(job, names.PRIORITY_STEPS[place - 1]),
                self._ttl_s,
                place,
                channel,
                job.deadline_at,
                job.charged_tokens,
                fingerprint if idempotency_key else "",
                max_queue_length,
                limits.max_waiting_requests,
                limits.max_open_requests,
                limits.requests_per_minute,
                limits.tokens_per_minute,
                job.owner,
                "" if is_interactive else names.lower_class_member(job.model, job.id),
            ],
        )
        return _admission(reply, place, limits)

    def join(self, job: Job, channel: str) -> bool:
        """Make a channel a reader of a job; one that had been left is queued again. False when the
        job is gone."""
        return self._queue_again(job, "join", channel=channel) != "gone"

    def requeue(self, job: Job, channel: str = "") -> None:
        """Queue a job again whose message or replica is lost. `channel` becomes a reader of it
        again: it may have been removed as one without a subscriber.

        Sent twice does no harm: the lease of the job lets one delivery run.
        """
        self._queue_again(job, "requeue", channel=channel)

    def recover(self, job: Job, holder: str) -> RecoveryResult:
        """Queue a job again that a replica holds or held, unless it has no reader."""
        return RecoveryResult(self._queue_again(job, "recover", holder=holder))

    def _queue_again(self, job: Job, why: str, *, channel: str = "", holder: str = "") -> str:
        place = _PLACES[job.priority]
        lists = names.priority_lists(job.model)
        reply = self._requeue(
            keys=[
                names.job_key(job.id),
                names.readers_key(job.id),
                names.cancel_key(job.id),
                names.waiting_key(job.owner),
                names.running_key(job.owner),
                lists[0],
                names.held_key(holder),
                names.lease_key(job.id),
                names.log_key(job.id),
                names.turns_key(job.model),
                lists[place - 1],
            ],
            args=[
                channel,
                self._ttl_s,
                job.id,
                job.deadline_at,
                queue_message(job, names.PRIORITY_STEPS[0], FIRST),
                why,
                place,
                queue_message(job, names.PRIORITY_STEPS[place - 1]),
            ],
        )
        return payload_bytes(reply).decode()

    def leave(self, job: Job, channel: str, position: QueuePosition | None) -> LeaveResult:
        """Remove a reader. A job without readers is marked as left, and removed from the queue if
        it waits there at `position`."""
        place, tag, number = position or QueuePosition(1, -1, 0)
        reply: int = self._leave(
            keys=[
                names.readers_key(job.id),
                names.cancel_key(job.id),
                names.waiting_key(job.owner),
                names.priority_lists(job.model)[place - 1],
            ],
            args=[channel, job.id, self._ttl_s, tag, number],
        )
        return list(LeaveResult)[reply]

    def snapshot(self, model: str) -> QueueSnapshot:
        """Read the positions in a model's queue. The cost hardly depends on the queue's length."""
        return QueueSnapshot.of(self._snapshot(keys=names.priority_lists(model)))

    def position_of(self, job: Job) -> int:
        """How many messages are before the job's; -1 = it does not wait. Searches the whole
        queue: for single requests, not for a loop."""
        return int(self._position(keys=names.priority_lists(job.model), args=[job.id]))

    def forget(self, idempotency_key: str, known: Admission) -> None:
        """Delete an idempotency key that was found to be taken, if it still names the same job."""
        self._forget(keys=[idempotency_key], args=[f"{known.known_fingerprint} {known.known_id}"])

    # -- the replica's side ------------------------------------------------------------------

    def begin(self, job: Job) -> None:
        """A waiting job runs from now on."""
        keys = [names.waiting_key(job.owner), names.running_key(job.owner)]
        self._begin(keys=keys, args=[job.id, self._ttl_s])

    def settle(self, job: Job, used_tokens: int) -> None:
        """A job neither waits nor runs any more, and has used so many of its key's tokens."""
        owner = job.owner
        keys = [names.waiting_key(owner), names.running_key(owner), names.rates_key(owner)]
        self._settle(keys=keys, args=[job.id, job.charged_tokens - used_tokens])

    def take_turns(self, model: str, interval_s: float) -> int:
        """Move one job of each lower class that has waited for the interval before all others.
        Returns how many were moved. Called periodically by the replicas of a model."""
        keys = [names.turns_key(model), *names.priority_lists(model)]
        return int(self._turn(keys=keys, args=[interval_s]))


def _admission_keys(job: Job, place: int, idempotency_key: str) -> list[str]:
    return [
        names.job_key(job.id),
        names.readers_key(job.id),
        names.waiting_key(job.owner),
        names.running_key(job.owner),
        names.rates_key(job.owner),
        names.turns_key(job.model),
        names.tags_key(job.model, place),
        idempotency_key,
        names.lease_key(job.id),
        names.log_key(job.id),
        names.cancel_key(job.id),
        names.LOWER_CLASS_JOBS,
        *names.priority_lists(job.model),
    ]


def _admission(reply: list[Any], place: int, limits: Limits) -> Admission:
    """Decode the reply of admit.lua; an admitted job is in the list at `place`."""
    verdict = payload_bytes(reply[0]).decode()
    if verdict == "admitted":
        tag, number, ahead, *left = reply[1:]
        return Admission(
            position=QueuePosition(place, tag, number),
            ahead=ahead,
            allowances=_allowances(limits, left),
        )
    reason = RejectReason(verdict)
    if reason is RejectReason.REPEATED:
        fingerprint, job_id = payload_bytes(reply[1]).decode().split(" ", 1)
        return Admission(reject_reason=reason, known_fingerprint=fingerprint, known_id=job_id)
    if reason is RejectReason.TAKEN:
        return Admission(reject_reason=reason)
    value, *left = reply[1:]
    is_rate = reason in (RejectReason.REQUESTS, RejectReason.TOKENS)
    return Admission(
        reject_reason=reason,
        ahead=0 if is_rate else value,
        retry_s=value / 1000 if is_rate else 0.0,
        allowances=_allowances(limits, left),
    )


def _allowances(limits: Limits, left: list[int]) -> Allowances:
    def allowance(limit: int, remaining: int, reset_ms: int) -> Allowance | None:
        if not limit:
            return None
        return Allowance(limit=limit, remaining=remaining, reset_s=reset_ms / 1000)

    return Allowances(
        requests=allowance(limits.requests_per_minute, left[0], left[1]),
        tokens=allowance(limits.tokens_per_minute, left[2], left[3]),
    )
