"""From a checked request to a job on its model's queue; how to join, leave and cancel it."""

import logging
import time
import uuid
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import redis
from celery import Celery
from kombu.exceptions import OperationalError

from app.bridge import Bridge
from app.hub import Hub
from app.job_stream import JobStream
from app.lookout import JobStanding, standings
from app.metrics import RATE_LIMIT_HITS
from app.refusals import refusal_error
from shared import claims, messages, names
from shared.connections import payload_bytes
from shared.errors import IdempotencyKeyReused, NotFound, RequestCancelled
from shared.job_queue import Admission, Departure, JobQueue, Order, Refusal
from shared.limits import Allowances, Limits, charge_of
from shared.messages import Event, Failed, Finished, Job, Priority
from shared.registry import Directory
from shared.settings import Settings

_log = logging.getLogger(__name__)


def new_request_id() -> str:
    return f"req-{uuid.uuid4().hex}"


def request_id_from(header: str | None) -> str:
    """The client's own request id if it is usable, else a new one."""
    return header if header and names.is_request_id(header) else new_request_id()


_NO_LIMITS = Allowances()
_KEY_LIMITS = (Refusal.REQUESTS, Refusal.TOKENS, Refusal.OPEN, Refusal.WAITING)


class Once(NamedTuple):
    """What makes a request the same as an earlier one."""

    key: str
    """Made by `names.idempotency_key`."""
    fingerprint: str
    """Of what is asked: the key stands for it alone."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A job, and this process's stream of it."""

    job: Job
    stream: JobStream
    order: Order | None = None
    """Its place in the queue, when this process has put it there."""
    ahead: int = 0
    """Requests that were before it in the queue."""
    allowances: Allowances = _NO_LIMITS
    is_first: bool = True
    """The job was made for this reading; False = it was there before."""
    is_past: bool = False
    """It had ended before: there is only its log to read."""


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
        self._bridge = Bridge(hub, settings.replica_wait_s)
        hub.on_stray = self.leave_unread
        # As long as a job may still be popped from its queue, and then some.
        self._job_ttl_s = int(settings.request_timeout_s) + settings.job_ttl_s
        self.queue = JobQueue(client, self._job_ttl_s)

    def deadline(self, timeout_s: float | None = None) -> float:
        """Unix time until which a request is waited for that wants `timeout_s`."""
        longest_s = self._settings.request_timeout_s
        return time.time() + min(timeout_s or longest_s, longest_s)

    def submit(self, job: Job, limits: Limits, once: Once | None = None) -> Reading:
        """Queue a job and read it; or read the earlier one of the same request.

        `limits` are its owner's. The job gets another id when its own is taken: ids that clients
        send are not always unique. A short outage of Redis is waited for. Raises TooManyRequests,
        IdempotencyKeyReused, redis.RedisError.
        """
        job = msgspec.structs.replace(job, charged_tokens=charge_of(job, limits))
        deadline = self._bridge.deadline()
        while True:
            # The stream first: a message to nobody is lost.
            stream = self._hub.open(job.id)
            try:
                admission = self._bridge.cross(lambda: self._admit(job, limits, once), deadline)  # noqa: B023
            except BaseException:
                # Should it have been queued all the same, the hub stops it with its first event.
                self._hub.release(stream)
                raise
            if admission.refusal is None:
                return Reading(job, stream, admission.order, admission.ahead, admission.allowances)
            self._hub.release(stream)
            if once is not None and admission.refusal is Refusal.REPEATED:
                earlier = self._earlier(admission, once, job.owner)
                if earlier is not None:
                    return earlier
                # What the key stands for has come to nothing. Somebody else may be faster.
                self.queue.forget(once.key, admission)
                continue
            if admission.refusal in _KEY_LIMITS:
                RATE_LIMIT_HITS.labels(admission.refusal.value).inc()
            if admission.refusal is not Refusal.TAKEN:
                replicas = self._directory.replicas(job.model)
                raise refusal_error(admission, limits, job.model, replicas)
            job = msgspec.structs.replace(job, id=f"{job.id[:96]}-{uuid.uuid4().hex[:8]}")

    def find(self, job_id: str, owner: str | None) -> Job:
        """A job by its id, for its owner, or for None who may see all: the request itself may be
        gone. Raises NotFound."""
        job = self._stored(job_id) if names.is_request_id(job_id) else None
        if job is not None and job.is_over and not self._client.exists(names.log_key(job.id)):
            job = None  # a large answer goes sooner than the rest
        if job is None or owner not in (None, job.owner):
            raise NotFound(f"There is no request {job_id!r}, or it ended long ago.", param="id")
        return job

    def follow(self, job: Job) -> Reading:
        """Read a job from its first event on, whoever else does; one that had been left goes on.

        Raises NotFound, redis.RedisError.
        """
        is_past = self.end_of(job) is not None
        stream = self._hub.open(job.id)
        try:
            is_there = is_past or self.queue.join(job, self._hub.channel)
        except BaseException:
            self.release(Reading(job, stream))
            raise
        if not is_there:
            self._hub.release(stream)
            raise NotFound(f"There is no request {job.id!r} any more.", param="id")
        stream.follow()
        return Reading(job, stream, is_first=False, is_past=is_past)

    def _admit(self, job: Job, limits: Limits, once: Once | None) -> Admission:
        """Admit a job; one whose admission was not heard of, because the answer was lost, has
        its id, or its idempotency key, from itself."""
        key, fingerprint = once or ("", "")
        admission = self.queue.admit(
            job,
            self._hub.channel,
            limits,
            self._settings.max_queue_length,
            idempotency_key=key,
            fingerprint=fingerprint,
        )
        is_known = admission.refusal is Refusal.TAKEN or admission.known_id == job.id
        if is_known:
            known = self._stored(job.id)
            if known is not None and (known.created_at, known.owner) == (job.created_at, job.owner):
                return Admission()
        return admission

    def _earlier(self, admission: Admission, once: Once, owner: str) -> Reading | None:
        """Read the job of an idempotency key; None when it has to be run anew."""
        if admission.known_fingerprint != once.fingerprint:
            raise IdempotencyKeyReused(
                "The Idempotency-Key belongs to another request: the path or the body differs.",
                param="Idempotency-Key",
            )
        try:
            job = self.find(admission.known_id, owner)
            end = self.end_of(job)
            if isinstance(end, Failed):
                is_void = end.status >= 500 or end.code == RequestCancelled.code
            else:
                is_void = end is None and self.standing(job).is_cancelled
            return None if is_void else self.follow(job)
        except NotFound:
            return None

    def standing(self, job: Job) -> JobStanding:
        """Raises redis.RedisError."""
        (found,) = standings(self._client, [job.id])
        return found

    def end_of(self, job: Job) -> Finished | Failed | None:
        """The job's last event, when it has ended. Raises redis.RedisError."""
        payload = self._client.lindex(names.log_key(job.id), -1)
        event = messages.decode_event(payload_bytes(payload)) if payload else None
        return event if isinstance(event, Finished | Failed) else None

    def log_of(self, job: Job) -> list[Event]:
        """Raises redis.RedisError."""
        payloads = self._client.lrange(names.log_key(job.id), 0, -1)
        return [messages.decode_event(payload_bytes(payload)) for payload in payloads]

    def _stored(self, job_id: str) -> Job | None:
        payload = self._client.get(names.job_key(job_id))
        return messages.decode_job(payload_bytes(payload)) if payload else None

    def requeue(self, job: Job) -> None:
        """Queue a job again: its message or its replica is lost. Raises redis.RedisError."""
        _log.warning("job is queued again", extra={"request_id": job.id})
        self.queue.requeue(job, self._hub.channel)

    def release(self, reading: Reading) -> None:
        """Stop reading. Nobody waits for a job any more whose last reader leaves: it stops, and
        goes on when somebody comes back. Background and batch jobs go on to their end."""
        is_read_here = self._hub.release(reading.stream)
        if is_read_here or reading.is_past or reading.stream.is_ended:
            return
        try:
            self._leave(reading.job, reading.order)
        except (redis.RedisError, OperationalError, OSError) as exc:
            # The hub comes back to it with the job's next event.
            _log.warning("could not leave a job: %s", exc, extra={"request_id": reading.job.id})

    def leave_unread(self, job_id: str) -> None:
        """Leave a job of which events come, although nobody of this process reads it."""
        try:
            job = self._stored(job_id)
            if job is not None:
                self._leave(job)
        except (redis.RedisError, OperationalError, OSError) as exc:
            _log.warning("could not leave a job: %s", exc, extra={"request_id": job_id})

    def _leave(self, job: Job, order: Order | None = None) -> None:
        if job.priority is not Priority.INTERACTIVE:
            self._client.srem(names.readers_key(job.id), self._hub.channel)
            return
        departure = self.queue.leave(job, self._hub.channel, order)
        if departure is Departure.TO_BE_STOPPED:
            self._celery.control.revoke(job.id, terminate=True, signal=names.LEFT.decode())
        elif departure is Departure.OUT_OF_QUEUE:
            self._client.expire(names.job_key(job.id), self._settings.job_ttl_s)

    def cancel(self, job_id: str, owner: str | None) -> None:
        """Cancel a job of this owner, or of anybody for None, for good and whoever reads it.

        Raises NotFound, redis.RedisError.
        """
        self.find(job_id, owner)
        # The flag first: a replica that misses the revocation finds it.
        claims.flag_cancelled(self._client, job_id, self._job_ttl_s)
        self._celery.control.revoke(job_id, terminate=True)
