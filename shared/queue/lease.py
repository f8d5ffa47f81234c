"""The lease of a job: which replica runs it, and how often that went wrong before.

The lease is a key of the job. It fences: events are appended to the job's log only by the attempt
that the lease names, so a replica whose lease was taken over cannot append to the log.
"""

from typing import Any, NamedTuple

import msgspec
import redis
from msgspec import Struct, field

from shared import names
from shared.redis.connection import payload_bytes
from shared.redis.oom_writes import AtOomClient
from shared.redis.scripts import load_script
from shared.wire import codec
from shared.wire import job as wire
from shared.wire.job import Job

_encode = msgspec.json.Encoder().encode


class Lease(Struct, frozen=True):
    holder: str
    """Id of the replica that runs the job; "" = it was released."""
    attempt: int = 0
    num_events: int = 0
    num_tokens: int = 0
    """Events and tokens in the job's log when the attempt began."""
    num_fruitless: int = field(default=0, name="num_barren")
    """Attempts since the last token that have died with the job in the engine."""

    def encode(self) -> bytes:
        return _encode(self)

    def released(self) -> "Lease":
        return msgspec.structs.replace(self, holder="")

    def succeeded_by(self, holder: str, num_events: int, num_tokens: int) -> "Lease":
        """The lease of the next attempt, with what is in the log now."""
        num_fruitless = 0
        if num_tokens == self.num_tokens:
            # A job that was only waiting in the replica did not cause its death.
            had_begun = bool(self.holder) and num_events > self.num_events
            num_fruitless = self.num_fruitless + had_begun
        return Lease(holder, self.attempt + 1, num_events, num_tokens, num_fruitless)


def decode(payload: Any) -> Lease | None:
    """Raises msgspec.DecodeError."""
    return msgspec.json.decode(payload_bytes(payload), type=Lease) if payload else None


def read(client: "redis.Redis", job_id: str) -> Lease | None:
    """Raises redis.RedisError, msgspec.DecodeError."""
    return decode(client.get(names.lease_key(job_id)))


def flag_cancelled(client: "redis.Redis", job_id: str, ttl_s: int) -> None:
    """Mark a job as cancelled, for a replica that misses the revocation. Passes on a full Redis."""
    AtOomClient(connection_pool=client.connection_pool).set(
        names.cancel_key(job_id), names.CANCELLED, ex=ttl_s
    )


class LeaseReply(NamedTuple):
    """A job as it was when its lease was asked for."""

    payload: bytes | None
    """The encoded `Job`; None = it is gone."""
    lease: Lease | None
    """None = none was asked for, or the job has ended."""
    readers: tuple[str, ...]
    """Channels of the web processes that read the job."""
    log: list[bytes]
    """Encoded events."""
    cancel_flag: bytes | None
    """See `names.cancel_key`."""
    has_begun: bool
    """The job counts as running. False for a job that is too large for the script to decode."""


class JobLeases:
    """The leases of one replica. All methods raise redis.RedisError and may be repeated."""

    def __init__(
        self, client: "redis.Redis", replica_id: str, *, job_ttl_s: int, running_ttl_s: int
    ) -> None:
        """`job_ttl_s`: how long what belongs to a job stays in Redis when it has ended, or waits
        for a reader; `running_ttl_s`: the same while it may run."""
        self._replica_id = replica_id
        self._job_ttl_s = job_ttl_s
        self._running_ttl_s = running_ttl_s
        self._take = load_script(client, "owner", "lease")
        self._release = load_script(client, "release")
        self._end = load_script(client, "owner", "end")

    def take(self, job_id: str, expected: Lease | None, new: Lease | None) -> LeaseReply:
        """Note that this replica holds a job, and lease it if its lease is `expected` (None =
        there is none). With `new` = None it is only noted. The job is this replica's if the
        reply's lease names it as the holder; then the job counts as running."""
        payload, lease, readers, log, flag, has_begun = self._take(
            keys=[
                names.HOLDERS,
                names.held_key(self._replica_id),
                names.job_key(job_id),
                names.lease_key(job_id),
                names.log_key(job_id),
                names.readers_key(job_id),
                names.cancel_key(job_id),
            ],
            args=[
                job_id,
                self._replica_id,
                self._running_ttl_s,
                expected.encode() if expected else b"",
                new.encode() if new else b"",
                # The script learns the owner from the job.
                names.waiting_key("%s"),
                names.running_key("%s"),
            ],
        )
        channels = tuple(sorted(payload_bytes(reader).decode() for reader in readers))
        return LeaseReply(payload, decode(lease), channels, log, flag, bool(has_begun))

    def release(self, job_id: str, lease: Lease) -> None:
        """Let another replica have the job, if the lease is still this one. The job's log must
        be complete."""
        args = [lease.encode(), lease.released().encode(), self._running_ttl_s]
        self._release(keys=[names.lease_key(job_id)], args=args)

    def end(self, job: Job, used_tokens: int) -> None:
        """Settle a job whose last event is in its log. Its request is deleted; its answer may be
        read again."""
        ended = codec.encode_job(wire.without_request(job))
        self._settle(job, job.charged_tokens - used_tokens, ended, b"", b"")

    def give_up(self, job: Job, lease: Lease) -> bool:
        """Release a job without readers; True if it has a reader again, and must be queued. Its
        tokens are settled when it ends; until then its charge stands."""
        return self._settle(job, 0, b"", lease.encode(), lease.released().encode())

    def _settle(self, job: Job, refund: int, ended: bytes, lease: bytes, released: bytes) -> bool:
        keys = [
            names.waiting_key(job.owner),
            names.running_key(job.owner),
            names.rates_key(job.owner),
            names.job_key(job.id),
            names.log_key(job.id),
            names.lease_key(job.id),
            names.readers_key(job.id),
            names.held_key(self._replica_id),
        ]
        args = [job.id, refund, self._job_ttl_s, ended, lease, released]
        return bool(self._end(keys=keys, args=args))
