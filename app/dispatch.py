"""From a checked request to a job on its model's queue, and the way to cancel it."""

import logging
import re
import time
import uuid

import msgspec
import redis
from celery import Celery

from app.hub import Hub
from app.job_stream import JobStream
from shared import messages, names
from shared.errors import NotFound
from shared.messages import Job
from shared.settings import Settings

_log = logging.getLogger(__name__)
_REQUEST_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")

INTERACTIVE = 0
"""Celery priority of requests that somebody waits for; 0 is the highest."""


def new_request_id() -> str:
    return f"req-{uuid.uuid4().hex}"


def request_id_from(header: str | None) -> str:
    """The client's own request id if it is usable, else a new one."""
    return header if header and _REQUEST_ID.match(header) else new_request_id()


class Dispatcher:
    def __init__(self, settings: Settings, client: "redis.Redis", celery: Celery, hub: Hub) -> None:
        self._settings = settings
        self._client = client
        self._celery = celery
        self._hub = hub

    def deadline(self) -> float:
        return time.time() + self._settings.request_timeout_s

    @property
    def reply_channel(self) -> str:
        return self._hub.channel

    def submit(self, job: Job) -> tuple[Job, JobStream]:
        """Enqueue a job and return it with its stream.

        The job gets another id when its own is taken: ids that clients send are not always
        unique. Raises redis.RedisError, kombu.exceptions.OperationalError.
        """
        ttl_s = int(self._settings.request_timeout_s) + self._settings.job_ttl_s
        while not self._client.set(
            names.job_key(job.id), messages.encode_job(job), ex=ttl_s, nx=True
        ):
            job = msgspec.structs.replace(job, id=f"{job.id[:96]}-{uuid.uuid4().hex[:8]}")
        stream = self._hub.open(job.id)
        try:
            self._enqueue(job)
        except BaseException:
            self._hub.release(job.id)
            raise
        return job, stream

    def _enqueue(self, job: Job) -> None:
        self._celery.send_task(
            names.GENERATE_TASK,
            args=[job.id],
            argsrepr=repr((job.id,)),
            task_id=job.id,
            queue=names.model_queue(job.model),
            priority=INTERACTIVE,
            ignore_result=True,
            retry=False,
        )

    def requeue_if_lost(self, job: Job) -> None:
        """Enqueue a job again that no replica has claimed although the queue is empty.

        Redis hands a message to a worker before the worker can note it down as its own: one
        that is killed in between takes the message along. Sent twice does no harm: the claim
        on the job lets one delivery through. Raises redis.RedisError.
        """
        if not self._client.exists(names.claim_key(job.id)):
            _log.warning("job was not claimed, queued again", extra={"request_id": job.id})
            self._enqueue(job)

    def release(self, stream: JobStream) -> None:
        """Stop reading. A job that has not ended is cancelled: nobody else waits for it."""
        self._hub.release(stream.job_id)
        if not stream.is_ended:
            try:
                self._revoke(stream.job_id)
            except (redis.RedisError, OSError) as exc:
                # The replica finds out by itself: the job's events reach nobody.
                _log.warning("could not cancel: %s", exc, extra={"request_id": stream.job_id})

    def cancel(self, job_id: str) -> None:
        """Cancel a job by its id, whoever reads it. Raises NotFound."""
        if not self._client.exists(names.job_key(job_id)):
            raise NotFound(f"There is no request {job_id!r}, or it ended long ago.", param="id")
        self._revoke(job_id)

    def _revoke(self, job_id: str) -> None:
        """The flag first: a replica that misses the revocation finds it."""
        self._client.set(names.cancel_key(job_id), 1, ex=self._settings.job_ttl_s)
        self._celery.control.revoke(job_id, terminate=True)
