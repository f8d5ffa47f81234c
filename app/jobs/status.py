"""What Redis knows of a job that may be waiting, running, left or cancelled."""

import logging
from dataclasses import dataclass

import msgspec
import redis

from shared import names
from shared.queue import lease

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JobStatus:
    holder: str | None
    """Id of the replica that holds the job's lease; "" when one has given it back."""
    is_cancelled: bool
    """By an explicit cancellation, not because its readers left."""
    is_parked: bool
    """Its last reader has left."""
    num_events: int
    """In its log."""


def read_statuses(client: "redis.Redis", job_ids: list[str]) -> list[JobStatus]:
    """Read the statuses of jobs in two round trips. Raises redis.RedisError.

    Only jobs that were leased have a log, so only their logs are measured.
    """
    keys = [names.lease_key(job_id) for job_id in job_ids]
    keys += [names.cancel_key(job_id) for job_id in job_ids]
    values = client.mget(keys)
    leases, flags = values[: len(job_ids)], values[len(job_ids) :]
    pipe = client.pipeline(transaction=False)
    for job_id, payload in zip(job_ids, leases, strict=True):
        if payload:
            pipe.llen(names.log_key(job_id))
    lengths = iter(pipe.execute())
    return [
        JobStatus(
            _holder(payload),
            flag not in (None, names.LEFT),
            flag == names.LEFT,
            next(lengths) if payload else 0,
        )
        for payload, flag in zip(leases, flags, strict=True)
    ]


def _holder(payload: object) -> str | None:
    try:
        held = lease.decode(payload)
    except msgspec.DecodeError as exc:
        _log.error("undecodable lease: %s", exc)
        return None
    return held.holder if held else None
