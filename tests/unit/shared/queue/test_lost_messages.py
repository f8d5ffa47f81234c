"""Background and batch jobs whose message is lost: a replica took it and was killed."""

import logging
from typing import Any

import pytest
import redis

from shared import names
from shared.limits import Limits
from shared.queue.job_queue import JobQueue
from shared.queue.lease import Lease
from shared.queue.lost_messages import LostMessages
from shared.wire import codec
from shared.wire import job as wire
from shared.wire.job import Job, Priority
from tests.support.jobs import completion_job

_TTL_S = 60


@pytest.fixture
def queue(server: redis.Redis) -> JobQueue:
    return JobQueue(server, _TTL_S)


@pytest.fixture
def lost(server: redis.Redis, queue: JobQueue) -> LostMessages:
    return LostMessages(server, queue)


def _admit(queue: JobQueue, **fields: Any) -> Job:
    job = completion_job(**{"id": "j", "owner": "a", "priority": Priority.BATCH, **fields})
    assert queue.admit(job, "c", Limits(), 100).reject_reason is None
    return job


def _pop(server: redis.Redis) -> bool:
    """Take a message, as a replica does that is killed then."""
    return server.brpop(names.priority_lists("m"), timeout=0.01) is not None  # type: ignore[arg-type]


def _num_queued(server: redis.Redis) -> int:
    return sum(server.llen(key) for key in names.priority_lists("m"))


def _hold(server: redis.Redis, holder: str) -> None:
    server.set(names.lease_key("j"), Lease(holder).encode())


@pytest.mark.parametrize("priority", [Priority.BACKGROUND, Priority.BATCH])
def test_a_job_whose_message_is_lost_is_queued_again(
    server: redis.Redis, queue: JobQueue, lost: LostMessages, priority: Priority
) -> None:
    _admit(queue, priority=priority)
    assert _pop(server)
    lost.search()
    lost.search()
    assert _num_queued(server) == 1


def test_a_job_that_waits_is_left_there(
    server: redis.Redis, queue: JobQueue, lost: LostMessages
) -> None:
    _admit(queue)
    lost.search()
    assert _num_queued(server) == 1


def test_interactive_jobs_are_left_to_their_readers(
    server: redis.Redis, queue: JobQueue, lost: LostMessages
) -> None:
    _admit(queue, priority=Priority.INTERACTIVE)
    assert _pop(server)
    lost.search()
    assert _num_queued(server) == 0
    assert server.exists(names.LOWER_CLASS_JOBS) == 0


def test_a_job_that_a_replica_has_is_left_to_it(
    server: redis.Redis, queue: JobQueue, lost: LostMessages
) -> None:
    _admit(queue)
    assert _pop(server)
    server.sadd(names.HOLDERS, "r")
    _hold(server, "r")
    lost.search()
    assert _num_queued(server) == 0


@pytest.mark.parametrize("holder", ["", "dead"])
def test_a_job_is_queued_again_whose_message_was_lost_after_an_earlier_attempt(
    server: redis.Redis, queue: JobQueue, lost: LostMessages, holder: str
) -> None:
    """It was handed over, or recovered from a dead replica, and the next one was killed."""
    _admit(queue)
    assert _pop(server)
    _hold(server, holder)
    lost.search()
    assert _num_queued(server) == 1


def test_a_job_that_has_ended_is_forgotten(
    server: redis.Redis, queue: JobQueue, lost: LostMessages
) -> None:
    job = _admit(queue)
    assert _pop(server)
    _hold(server, "dead")
    server.set(names.job_key(job.id), codec.encode_job(wire.without_request(job)))
    lost.search()
    assert _num_queued(server) == 0
    assert server.exists(names.LOWER_CLASS_JOBS) == 0


def test_a_job_that_is_over_its_deadline_is_forgotten(
    server: redis.Redis, queue: JobQueue, lost: LostMessages
) -> None:
    _admit(queue, deadline_at=1.0)
    assert _pop(server)
    lost.search()
    assert _num_queued(server) == 0
    assert server.exists(names.LOWER_CLASS_JOBS) == 0


def test_a_job_that_cannot_be_decoded_keeps_no_other_from_being_found(
    server: redis.Redis, queue: JobQueue, lost: LostMessages, caplog: pytest.LogCaptureFixture
) -> None:
    _admit(queue, id="a")
    _admit(queue, id="b")
    assert _pop(server)
    assert _pop(server)
    server.set(names.job_key("a"), b"\xc1")
    with caplog.at_level(logging.ERROR):
        lost.search()
    assert _num_queued(server) == 1
    assert "undecodable job" in caplog.text


def test_the_queues_are_not_read_with_every_beat(
    server: redis.Redis, queue: JobQueue, lost: LostMessages
) -> None:
    _admit(queue)
    lost.check()
    assert _pop(server)
    lost.check()
    assert _num_queued(server) == 0


def test_the_noted_jobs_expire(server: redis.Redis, queue: JobQueue) -> None:
    _admit(queue)
    assert 0 < server.ttl(names.LOWER_CLASS_JOBS) <= _TTL_S
