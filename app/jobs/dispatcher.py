"""A job on its model's queue: how to submit, find, follow, resume, leave and cancel it."""

import logging
import os
import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import redis
from celery import Celery
from kombu.exceptions import OperationalError

from app.events.event_id import EventId
from app.events.hub import Hub
from app.events.job_stream import JobStream
from app.jobs.admission_errors import rejection_error
from app.jobs.build import is_streamable
from app.jobs.status import JobStatus, read_statuses
from app.metrics.definitions import RATE_LIMIT_HITS
from shared import errors, names
from shared.errors import InvalidRequest, LlmisError, NotFound
from shared.limits import Allowances, Limits, charge_of
from shared.queue import lease
from shared.queue.job_queue import Admission, JobQueue, LeaveResult, RejectReason
from shared.queue.snapshot import QueuePosition
from shared.redis.connection import payload_bytes
from shared.redis.retry import retry_until
from shared.registry.directory import Directory
from shared.settings.fields import Settings
from shared.wire import codec
from shared.wire.events import Event, Failed, Finished
from shared.wire.job import Job, JobKind, Priority

_log = logging.getLogger(__name__)


def new_request_id() -> str:
    return f"req-{os.urandom(16).hex()}"


def request_id_from(header: str | None) -> str:
    """The client's own request id if it is usable, else a new one."""
    return header if header and names.is_request_id(header) else new_request_id()


_NO_LIMITS = Allowances()
_OUTAGES = (redis.RedisError, OperationalError, OSError)
_KEY_LIMITS = (RejectReason.REQUESTS, RejectReason.TOKENS, RejectReason.OPEN, RejectReason.WAITING)


class IdempotencyKey(NamedTuple):
    """Two requests with the same key and fingerprint share one job."""

    key: str
    """Redis key, made by `names.idempotency_key`."""
    fingerprint: str
    """Digest of path and body. The same key with another fingerprint is an error."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """A job, and this process's stream of it."""

    job: Job
    stream: JobStream
    position: QueuePosition | None = None
    """Of its message in the queue, if this process has put it there."""
    num_ahead: int = 0
    """Requests that were before it in the queue."""
    allowances: Allowances = _NO_LIMITS
    is_first: bool = True
    """The job was made for this subscription; False = it was there before."""
    had_ended: bool = False
    """Before this subscription: only its log is read."""


class Dispatcher:
    def __init__(
        self,
        settings: Settings,
        client: "redis.Redis",
        celery: Celery,
        hub: Hub,
        directory: Directory,
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._client = client
        self._celery = celery
        self._hub = hub
        hub.on_stray = self.leave_unread
        # As long as a job may still be popped from its queue, and as its log is kept then.
        self._job_ttl_s = int(settings.request_timeout_s) + settings.job_ttl_s
        self.queue = JobQueue(client, self._job_ttl_s)

    def submit(self, job: Job, limits: Limits, key: IdempotencyKey | None = None) -> Subscription:
        """Queue a job and subscribe to it, or to the job of an earlier request with the same key.

        `limits` are its owner's. The job gets another id if its own is taken: ids that clients
        send are not always unique. A short outage of Redis is waited for. Raises TooManyRequests,
        TooManyTokens, QueueFull, ReplicaLost, IdempotencyKeyReused, redis.RedisError,
        kombu.exceptions.OperationalError.
        """
        job = msgspec.structs.replace(job, charged_tokens=charge_of(job, limits))
        deadline = time.monotonic() + self._settings.replica_wait_s
        while True:
            # The stream first: pub/sub loses what is published before there is a subscriber.
            stream = self._hub.open(job.id)
            with ExitStack() as unless_admitted:
                # If it was queued all the same, the hub stops it when its first event comes.
                unless_admitted.callback(self._hub.release, stream)
                admission = self._admit_until(deadline, job, limits, key)
                if admission.reject_reason is None:
                    unless_admitted.pop_all()
                    return Subscription(
                        job, stream, admission.position, admission.ahead, admission.allowances
                    )
            if key is not None and admission.reject_reason is RejectReason.REPEATED:
                earlier = self._earlier(admission, key, job.owner)
                if earlier is not None:
                    return earlier
                # The key's job is void. Another process may replace it first: ask again.
                self.queue.forget(key.key, admission)
            elif admission.reject_reason is RejectReason.TAKEN:
                job = msgspec.structs.replace(job, id=f"{job.id[:96]}-{uuid.uuid4().hex[:8]}")
            else:
                raise self._rejection(admission, limits, job.model)

    def _rejection(self, admission: Admission, limits: Limits, model: str) -> LlmisError:
        if admission.reject_reason in _KEY_LIMITS:
            RATE_LIMIT_HITS.labels(admission.reject_reason.value).inc()
        return rejection_error(admission, limits, model, self._directory.replicas(model))

    def find(self, job_id: str, owner: str | None) -> Job:
        """Find a job by its id among those of `owner`; None = among all. The request's content may
        be gone from a job that has ended. Raises NotFound, redis.RedisError."""
        job = self._stored(job_id) if names.is_request_id(job_id) else None
        if job is not None and job.is_over and not self._client.exists(names.log_key(job.id)):
            job = None  # the log of a large answer expires before the job
        if job is None or owner not in (None, job.owner):
            raise NotFound(f"There is no request {job_id!r}, or it ended long ago.", param="id")
        return job

    def follow(self, job: Job) -> Subscription:
        """Subscribe to a job from its first event on, besides its other readers. A job that all
        readers had left goes on. Raises NotFound, redis.RedisError."""
        had_ended = self.end_of(job) is not None
        stream = self._hub.open(job.id)
        with ExitStack() as on_error:
            # It may have been joined all the same.
            on_error.callback(self.release, Subscription(job, stream))
            is_there = had_ended or self.queue.join(job, self._hub.channel)
            on_error.pop_all()
        if not is_there:
            self._hub.release(stream)
            raise NotFound(f"There is no request {job.id!r} any more.", param="id")
        stream.follow()
        return Subscription(job, stream, is_first=False, had_ended=had_ended)

    def resume(self, at: EventId, owner: str, kind: JobKind | None = None) -> Subscription:
        """Follow the job that an event belongs to; None = it may be of any kind that streams.
        Raises InvalidRequest, NotFound, redis.RedisError."""
        job = self.find(at.job_id, owner)
        if kind not in (None, job.kind):
            raise InvalidRequest(
                f"The request {job.id!r} was sent to another endpoint.", param="Last-Event-ID"
            )
        if not is_streamable(job):
            raise InvalidRequest(f"The answer of the request {job.id!r} cannot be streamed.")
        return self.follow(job)

    def _admit_until(
        self, deadline: float, job: Job, limits: Limits, key: IdempotencyKey | None
    ) -> Admission:
        # The hub reconnects on behalf of all that wait here: one connection attempt at a time.
        wait = self._hub.wait_until_connected
        return retry_until(lambda: self._admit(job, limits, key), deadline, wait)

    def _admit(self, job: Job, limits: Limits, key: IdempotencyKey | None) -> Admission:
        """Admit a job. When the reply of an earlier attempt was lost, its id or its idempotency key
        is taken by the job itself: that counts as admitted."""
        redis_key, fingerprint = key or ("", "")
        admission = self.queue.admit(
            job,
            self._hub.channel,
            limits,
            self._settings.max_queue_length,
            idempotency_key=redis_key,
            fingerprint=fingerprint,
        )
        is_known = admission.reject_reason is RejectReason.TAKEN or admission.known_id == job.id
        if is_known:
            known = self._stored(job.id)
            if known is not None and (known.created_at, known.owner) == (job.created_at, job.owner):
                return Admission()
        return admission

    def _earlier(
        self, admission: Admission, key: IdempotencyKey, owner: str
    ) -> Subscription | None:
        """Follow the job of an idempotency key; None when it is void and has to be run anew."""
        if admission.known_fingerprint != key.fingerprint:
            raise errors.IdempotencyKeyReused(
                "The Idempotency-Key belongs to another request: the path or the body differs.",
                param="Idempotency-Key",
            )
        try:
            job = self.find(admission.known_id, owner)
            end = self.end_of(job)
            if isinstance(end, Failed):
                is_void = end.status >= 500 or end.code == errors.RequestCancelled.code
            else:
                is_void = end is None and self.status_of(job).is_cancelled
            return None if is_void else self.follow(job)
        except NotFound:
            return None

    def status_of(self, job: Job) -> JobStatus:
        """Raises redis.RedisError."""
        (status,) = read_statuses(self._client, [job.id])
        return status

    def end_of(self, job: Job) -> Finished | Failed | None:
        """The job's last event, when it has ended. Raises redis.RedisError."""
        payload = self._client.lindex(names.log_key(job.id), -1)
        event = codec.decode_event(payload_bytes(payload)) if payload else None
        return event if isinstance(event, Finished | Failed) else None

    def log_of(self, job: Job) -> list[Event]:
        """Raises redis.RedisError."""
        payloads = self._client.lrange(names.log_key(job.id), 0, -1)
        return [codec.decode_event(payload_bytes(payload)) for payload in payloads]

    def _stored(self, job_id: str) -> Job | None:
        payload = self._client.get(names.job_key(job_id))
        return codec.decode_job(payload_bytes(payload)) if payload else None

    def requeue(self, job: Job) -> None:
        """Queue a job again whose message or replica is lost. Raises redis.RedisError."""
        _log.warning("job is queued again", extra={"request_id": job.id})
        self.queue.requeue(job, self._hub.channel)

    def release(self, subscription: Subscription) -> None:
        """Stop reading. A job whose last reader leaves is parked, and goes on when a reader comes
        back; background and batch jobs run to their end. Raises nothing: a failure is logged, and
        made good with the job's next event (`leave_unread`)."""
        is_read_here = self._hub.release(subscription.stream)
        if is_read_here or subscription.had_ended or subscription.stream.is_ended:
            return
        try:
            self._leave(subscription.job, subscription.position)
        except _OUTAGES as exc:
            extra = {"request_id": subscription.job.id}
            _log.warning("could not leave a job: %s", exc, extra=extra)

    def leave_unread(self, job_id: str) -> None:
        """Leave a job whose events arrive although no stream of this process reads it."""
        try:
            job = self._stored(job_id)
            if job is not None:
                self._leave(job)
        except _OUTAGES as exc:
            _log.warning("could not leave a job: %s", exc, extra={"request_id": job_id})

    def _leave(self, job: Job, position: QueuePosition | None = None) -> None:
        if job.priority is not Priority.INTERACTIVE:
            self._client.srem(names.readers_key(job.id), self._hub.channel)
            return
        result = self.queue.leave(job, self._hub.channel, position)
        if result is LeaveResult.TO_BE_STOPPED:
            self._celery.control.revoke(job.id, terminate=True, signal=names.LEFT.decode())
        elif result is LeaveResult.OUT_OF_QUEUE:
            self._client.expire(names.job_key(job.id), self._settings.job_ttl_s)

    def cancel(self, job_id: str, owner: str | None) -> Finished | Failed | None:
        """Cancel a job for good, for all its readers; `owner` as in `find`. Returns the last event
        of a job that has ended, which stays as it is. Raises NotFound, redis.RedisError."""
        end = self.end_of(self.find(job_id, owner))
        if end is not None:
            return end
        # The flag first: a replica that misses the revocation reads the flag.
        lease.flag_cancelled(self._client, job_id, self._job_ttl_s)
        self._celery.control.revoke(job_id, terminate=True)
        return None
