"""Recovery of the jobs of a dead replica: they are queued again, once.

A replica notes the jobs it takes in a set of its own. A process that sees that it is gone goes
through the set: its agent at once, every web process and agent after a while, for hosts that are
gone. Each job is removed from the set and queued in one script, so that only one process does it.
A job whose message was lost is requeued by the reader that waits: `app.streaming.job_supervisor`.
"""

import logging
import time

import msgspec
import redis

from shared import names
from shared.queue import lease
from shared.queue.job_queue import JobQueue, RecoveryResult
from shared.redis.connection import payload_bytes
from shared.registry.records import BEAT_S
from shared.wire import codec
from shared.wire.codec import DecodeError
from shared.wire.events import Failed, Finished
from shared.wire.job import Job

_log = logging.getLogger(__name__)
_GONE_S = 2 * BEAT_S
"""After an outage of Redis all records are gone: live replicas write theirs within this time."""
_STEADY_S = 3 * BEAT_S
"""Between two checks that are further apart there may have been an outage."""


def recover_jobs(client: "redis.Redis", queue: JobQueue, replica_id: str) -> int:
    """Queue the jobs of a dead replica again; returns how many. Raises redis.RedisError."""
    held_key = names.held_key(replica_id)
    num_queued = 0
    for member in client.smembers(held_key):
        job_id = payload_bytes(member).decode()
        try:
            job = _open_job(client, job_id, replica_id)
        except (DecodeError, msgspec.DecodeError) as exc:
            _log.error("undecodable job: %s", exc, extra={"request_id": job_id})
            job = None
        if job is None:
            client.srem(held_key, job_id)
        elif queue.recover(job, replica_id) is RecoveryResult.QUEUED:
            num_queued += 1
            _log.warning(
                "job of a dead replica is queued again",
                extra={"request_id": job_id, "replica": replica_id},
            )
    client.srem(names.HOLDERS, replica_id)
    return num_queued


def _open_job(client: "redis.Redis", job_id: str, replica_id: str) -> Job | None:
    """The job, unless it has ended or another replica has it by now."""
    pipe = client.pipeline(transaction=False)
    pipe.get(names.job_key(job_id))
    pipe.get(names.lease_key(job_id))
    pipe.lindex(names.log_key(job_id), -1)
    payload, leased, last = pipe.execute()
    found = lease.decode(leased)
    if not payload or (found is not None and found.holder not in ("", replica_id)):
        return None
    if last and isinstance(codec.decode_event(payload_bytes(last)), Failed | Finished):
        return None
    return codec.decode_job(payload_bytes(payload))


class JobRecovery:
    """Finds replicas that are gone and have left jobs. Called once a beat."""

    def __init__(self, client: "redis.Redis", queue: JobQueue) -> None:
        self._client = client
        self._queue = queue
        self._gone_since: dict[str, float] = {}
        """Replica id → monotonic time."""
        self._present: set[str] = set()
        """Replicas that had a record at the last check, at `_checked_at` (monotonic seconds)."""
        self._checked_at = float("-inf")

    def check(self) -> None:
        """Raises redis.RedisError."""
        before, self._present = self._present, set()
        holders = [payload_bytes(m).decode() for m in self._client.smembers(names.HOLDERS)]
        pipe = self._client.pipeline(transaction=False)
        for replica_id in holders:
            pipe.exists(names.replica_key(replica_id))
        replies = pipe.execute()
        now = time.monotonic()
        present = {replica_id for replica_id, reply in zip(holders, replies, strict=True) if reply}
        # A replica that lost its record while others kept theirs did not lose it in an outage.
        is_steady = now - self._checked_at < _STEADY_S and bool(present & before)
        self._present, self._checked_at = present, now
        self._gone_since = {
            replica_id: self._gone_since.get(replica_id, now)
            for replica_id in holders
            if replica_id not in present
        }
        for replica_id, since in self._gone_since.items():
            if is_steady or now - since >= _GONE_S:
                recover_jobs(self._client, self._queue, replica_id)
