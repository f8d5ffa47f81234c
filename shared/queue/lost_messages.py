"""The search for lost messages of background and batch jobs, which run without a reader, too.

A replica that is killed loses the messages that it has taken and not begun. The reader of a job
finds that (`app.streaming.job_supervisor`); for jobs that nobody may be reading, the agents look.
"""

import logging
import time
from typing import Any

import redis

from shared import names
from shared.clock import clock
from shared.queue import lease
from shared.queue.job_queue import JobQueue
from shared.queue.snapshot import queued_jobs
from shared.redis.connection import payload_bytes
from shared.wire import codec
from shared.wire.codec import DecodeError

_log = logging.getLogger(__name__)
_INTERVAL_S = 15.0
"""No client waits for these jobs, and a search reads the queues of their models."""


class LostMessages:
    """Called by the watch thread of an agent, once a beat."""

    def __init__(self, client: "redis.Redis", queue: JobQueue) -> None:
        self._client = client
        self._queue = queue
        self._searched_at = float("-inf")
        """Monotonic seconds."""

    def check(self) -> None:
        """Search, if it is time to. Raises redis.RedisError."""
        now = time.monotonic()
        if now - self._searched_at >= _INTERVAL_S:
            self._searched_at = now
            self.search()

    def search(self) -> None:
        """Queue the jobs again whose message is lost. A job that a replica takes meanwhile may be
        among them: its second delivery finds the lease. Raises redis.RedisError."""
        client, key = self._client, names.LOWER_CLASS_JOBS
        client.zremrangebyscore(key, "-inf", clock.now())
        members = [_text(member) for member in client.zrange(key, 0, -1)]
        if not members:
            return
        # Before the leases: what a replica takes from the queue has a lease a moment later.
        models = {member.partition("/")[0] for member in members}
        queued = {model: queued_jobs(client, model) for model in models}
        missing = [m for m in members if m.partition("/")[2] not in queued[m.partition("/")[0]]]
        for member in self._without_holder(missing):
            self._queue_again(member)

    def _without_holder(self, members: list[str]) -> list[str]:
        """Those that no replica has. The jobs of a dead one are recovered before it is no holder
        any more."""
        pipe = self._client.pipeline(transaction=False)
        pipe.smembers(names.HOLDERS)
        for member in members:
            pipe.get(names.lease_key(member.partition("/")[2]))
        holders, *leases = pipe.execute()
        ids = {_text(holder) for holder in holders}
        found = zip(members, map(lease.decode, leases), strict=True)
        return [member for member, leased in found if not leased or leased.holder not in ids]

    def _queue_again(self, member: str) -> None:
        job_id = member.partition("/")[2]
        payload = self._client.get(names.job_key(job_id))
        try:
            job = codec.decode_job(payload_bytes(payload)) if payload else None
        except DecodeError as exc:
            _log.error("undecodable job: %s", exc, extra={"request_id": job_id})
            job = None
        if job is None or job.is_over:
            self._client.zrem(names.LOWER_CLASS_JOBS, member)
            return
        _log.warning("job whose message is lost is queued again", extra={"request_id": job_id})
        self._queue.requeue(job)


def _text(payload: Any) -> str:
    return payload_bytes(payload).decode()
