"""What becomes of the jobs of a replica that died: they are queued again, once.

A replica notes the jobs it takes in a set of its own. Whoever sees that it is gone goes through
the set: its agent at once, every web process and agent after a while, for hosts that are gone.
Each job is taken out of the set and queued in one call, so that one of them does it.
"""

import logging
import time

import msgspec
import redis

from shared import claims, messages, names, registry
from shared.connections import payload_bytes
from shared.job_queue import JobQueue, Rescue
from shared.messages import Failed, Finished, Job

_log = logging.getLogger(__name__)
_GONE_S = 2 * registry.BEAT_S
"""After an outage of Redis all records are gone: so long do the living take to write theirs."""
_STEADY_S = 3 * registry.BEAT_S
"""Between two looks that are further apart there may have been an outage."""


def rescue_jobs(client: "redis.Redis", queue: JobQueue, replica_id: str) -> int:
    """Queue the jobs of a dead replica again; returns how many. Raises redis.RedisError."""
    held_key = names.held_key(replica_id)
    num_queued = 0
    for member in client.smembers(held_key):
        job_id = payload_bytes(member).decode()
        try:
            job = _open_job(client, job_id, replica_id)
        except (messages.DecodeError, msgspec.DecodeError) as exc:
            _log.error("undecodable job: %s", exc, extra={"request_id": job_id})
            job = None
        if job is None:
            client.srem(held_key, job_id)
        elif queue.rescue(job, replica_id) is Rescue.QUEUED:
            num_queued += 1
            _log.warning(
                "job of a dead replica is queued again",
                extra={"request_id": job_id, "replica": replica_id},
            )
    client.srem(names.HOLDERS, replica_id)
    return num_queued


def _open_job(client: "redis.Redis", job_id: str, replica_id: str) -> Job | None:
    """A job that has not ended, and that no other replica has by now."""
    pipe = client.pipeline(transaction=False)
    pipe.get(names.job_key(job_id))
    pipe.get(names.claim_key(job_id))
    pipe.lindex(names.log_key(job_id), -1)
    payload, claimed, last = pipe.execute()
    claim = claims.decode(claimed)
    if not payload or (claim is not None and claim.holder not in ("", replica_id)):
        return None
    if last and isinstance(messages.decode_event(payload_bytes(last)), Failed | Finished):
        return None
    return messages.decode_job(payload_bytes(payload))


class Rescuer:
    """Finds replicas that are gone and have left jobs. Called once a beat."""

    def __init__(self, client: "redis.Redis", queue: JobQueue) -> None:
        self._client = client
        self._queue = queue
        self._gone_since: dict[str, float] = {}
        """Replica id → monotonic time."""
        self._present: set[str] = set()
        """Replicas that were there at the last look, at `_looked_at` (monotonic seconds)."""
        self._looked_at = float("-inf")

    def look(self) -> None:
        """Raises redis.RedisError."""
        before, self._present = self._present, set()
        holders = [payload_bytes(m).decode() for m in self._client.smembers(names.HOLDERS)]
        pipe = self._client.pipeline(transaction=False)
        for replica_id in holders:
            pipe.exists(names.replica_key(replica_id))
        replies = pipe.execute()
        now = time.monotonic()
        present = {replica_id for replica_id, reply in zip(holders, replies, strict=True) if reply}
        # Who has lost its record while others have kept theirs has not lost it with them.
        is_steady = now - self._looked_at < _STEADY_S and bool(present & before)
        self._present, self._looked_at = present, now
        self._gone_since = {
            replica_id: self._gone_since.get(replica_id, now)
            for replica_id in holders
            if replica_id not in present
        }
        for replica_id, since in self._gone_since.items():
            if is_steady or now - since >= _GONE_S:
                rescue_jobs(self._client, self._queue, replica_id)
