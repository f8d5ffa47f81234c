"""The lookout: one greenlet of a web process that looks after all jobs that are silent.

Once a second it asks Redis about all of them in one or two round trips, and wakes only those
relays that have something to do. So a stream that waits in a queue costs next to nothing.
"""

import logging
from dataclasses import dataclass
from typing import Protocol

import gevent
import msgspec
import redis

from app.queues import QueueLengths
from shared import claims, names

_log = logging.getLogger(__name__)
TICK_S = 1.0
"""How often a silent job is looked after."""


@dataclass(frozen=True, slots=True)
class JobStanding:
    """What Redis knows of a job."""

    holder: str | None
    """Id of the replica that has claimed it; "" when one has given it back."""
    is_cancelled: bool
    """By somebody who named it, not by its readers' leaving."""
    is_parked: bool
    """Its last reader has left."""
    num_events: int
    """In its log."""


class Watched(Protocol):
    """A reader of one job. Neither method may block."""

    @property
    def job_id(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def is_silent(self) -> bool:
        """Whether the reader has been waiting for the job for a while."""

    def note(self, found: JobStanding | redis.RedisError) -> None:
        """Take what was found out, or what has kept it from being found out."""


class Lookout:
    def __init__(self, client: "redis.Redis", queues: QueueLengths) -> None:
        self._client = client
        self._queues = queues
        self._watched: set[Watched] = set()

    def start(self) -> None:
        gevent.spawn(self._run)

    def watch(self, reader: Watched) -> None:
        self._watched.add(reader)

    def forget(self, reader: Watched) -> None:
        self._watched.discard(reader)

    def _run(self) -> None:
        while True:
            gevent.sleep(TICK_S)
            try:
                self.look()
            except Exception:
                # Without it silent streams would wait for ever: go on.
                _log.exception("silent jobs were not looked after")

    def look(self) -> None:
        """Tell every silent reader where its job stands."""
        silent = [reader for reader in self._watched if reader.is_silent]
        if not silent:
            return
        try:
            found = standings(self._client, [reader.job_id for reader in silent])
            both = list(zip(silent, found, strict=True))
            self._queues.look({reader.model for reader, standing in both if not standing.holder})
        except redis.RedisError as exc:
            for reader in silent:
                reader.note(exc)
            return
        for reader, standing in both:
            reader.note(standing)


def standings(client: "redis.Redis", job_ids: list[str]) -> list[JobStanding]:
    """Where jobs stand. Raises redis.RedisError. Only what was claimed has a log to be measured."""
    keys = [names.claim_key(job_id) for job_id in job_ids]
    keys += [names.cancel_key(job_id) for job_id in job_ids]
    found = client.mget(keys)
    payloads, flags = found[: len(job_ids)], found[len(job_ids) :]
    pipe = client.pipeline(transaction=False)
    for job_id, payload in zip(job_ids, payloads, strict=True):
        if payload:
            pipe.llen(names.log_key(job_id))
    lengths = iter(pipe.execute())
    return [
        JobStanding(
            _holder(payload),
            flag not in (None, names.LEFT),
            flag == names.LEFT,
            next(lengths) if payload else 0,
        )
        for payload, flag in zip(payloads, flags, strict=True)
    ]


def _holder(payload: object) -> str | None:
    try:
        claim = claims.decode(payload)
    except msgspec.DecodeError as exc:
        _log.error("undecodable claim: %s", exc)
        return None
    return claim.holder if claim else None
