"""From a checked request to a job on its model's queue, and the way to cancel it."""

import contextlib
import logging
import time
import uuid
from dataclasses import dataclass

import msgspec
import redis
from celery import Celery
from kombu.exceptions import OperationalError

from app.bridge import Bridge
from app.hub import Hub
from app.job_stream import JobStream
from shared import claims, messages, names
from shared.errors import NotFound
from shared.messages import Job, Priority
from shared.settings import Settings

_log = logging.getLogger(__name__)

_CELERY_PRIORITY = {Priority.INTERACTIVE: 0, Priority.BACKGROUND: 3, Priority.BATCH: 6}
"""0 is the highest."""


def new_request_id() -> str:
    return f"req-{uuid.uuid4().hex}"


def request_id_from(header: str | None) -> str:
    """The client's own request id if it is usable, else a new one."""
    return header if header and names.is_request_id(header) else new_request_id()


@dataclass(frozen=True, slots=True)
class JobStanding:
    """What Redis knows of a job besides its log."""

    holder: str | None
    """Id of the replica that has claimed it."""
    is_cancelled: bool


class Dispatcher:
    def __init__(self, settings: Settings, client: "redis.Redis", celery: Celery, hub: Hub) -> None:
        self._settings = settings
        self._client = client
        self._celery = celery
        self._hub = hub
        self._bridge = Bridge(hub, settings.replica_wait_s)
        hub.on_stray = self.cancel_unheard
        # As long as a job may still be popped from its queue, and then some.
        self._job_ttl_s = int(settings.request_timeout_s) + settings.job_ttl_s

    def deadline(self, timeout_s: float | None = None) -> float:
        """Unix time until which a request is waited for that wants `timeout_s`."""
        longest_s = self._settings.request_timeout_s
        return time.time() + min(timeout_s or longest_s, longest_s)

    @property
    def reply_channel(self) -> str:
        return self._hub.channel

    def submit(self, job: Job) -> tuple[Job, JobStream]:
        """Enqueue a job and return it with its stream.

        The job gets another id when its own is taken: ids that clients send are not always
        unique. A short outage of Redis is waited for. Raises redis.RedisError,
        kombu.exceptions.OperationalError.
        """
        deadline = self._bridge.deadline()
        while not self._bridge.cross(lambda: self._reserve(job), deadline):  # noqa: B023
            job = msgspec.structs.replace(job, id=f"{job.id[:96]}-{uuid.uuid4().hex[:8]}")
        stream = self._hub.open(job.id)
        try:
            # Sent twice does no harm: the claim lets one delivery through.
            self._bridge.cross(lambda: self._enqueue(job), deadline)
        except BaseException:
            # Whether it was sent or not: without its key the job is nothing.
            self._hub.release(job.id)
            with contextlib.suppress(redis.RedisError):
                self._client.delete(names.job_key(job.id))
            raise
        return job, stream

    def _reserve(self, job: Job) -> bool:
        """Write the job under its id; False when the id is taken. An attempt whose answer was
        lost has not taken it from itself."""
        payload = messages.encode_job(job)
        found = self._client.set(
            names.job_key(job.id), payload, ex=self._job_ttl_s, nx=True, get=True
        )
        return found is None or found == payload

    def _enqueue(self, job: Job) -> None:
        self._celery.send_task(
            names.GENERATE_TASK,
            args=[job.id],
            argsrepr=repr((job.id,)),
            task_id=job.id,
            queue=names.model_queue(job.model),
            priority=_CELERY_PRIORITY[job.priority],
            ignore_result=True,
            retry=False,
        )

    def inspect(self, job: Job) -> JobStanding:
        """Ask where a silent job stands. Raises redis.RedisError."""
        pipe = self._client.pipeline(transaction=False)
        pipe.get(names.claim_key(job.id))
        pipe.exists(names.cancel_key(job.id))
        payload, is_cancelled = pipe.execute()
        claim = claims.decode(payload)
        return JobStanding(claim.holder if claim else None, bool(is_cancelled))

    def requeue(self, job: Job) -> None:
        """Enqueue a job again: its message or its replica is lost.

        Sent twice does no harm: the claim on the job lets one delivery through. Raises
        redis.RedisError, kombu.exceptions.OperationalError.
        """
        _log.warning("job is queued again", extra={"request_id": job.id})
        self._enqueue(job)

    def release(self, stream: JobStream) -> None:
        """Stop reading. A job that has not ended is cancelled: nobody else waits for it."""
        self._hub.release(stream.job_id)
        if not stream.is_ended:
            self.cancel_unheard(stream.job_id)

    def cancel_unheard(self, job_id: str) -> None:
        """Cancel a job that nobody of this process reads. Never raises: when Redis is away the
        hub comes back to it with the job's next event."""
        try:
            self._revoke(job_id)
        except (redis.RedisError, OperationalError, OSError) as exc:
            _log.warning("could not cancel: %s", exc, extra={"request_id": job_id})

    def cancel(self, job_id: str) -> None:
        """Cancel a job by its id, whoever reads it. Raises NotFound."""
        if not names.is_request_id(job_id) or not self._client.exists(names.job_key(job_id)):
            raise NotFound(f"There is no request {job_id!r}, or it ended long ago.", param="id")
        self._revoke(job_id)

    def _revoke(self, job_id: str) -> None:
        """The flag first: a replica that misses the revocation finds it."""
        claims.flag_cancelled(self._client, job_id, self._job_ttl_s)
        self._celery.control.revoke(job_id, terminate=True)
