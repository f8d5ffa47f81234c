"""Leases on a real server: taking, taking over, ending, and calls whose answers are lost."""

from typing import Any

import msgspec
import pytest
import redis

from shared import names
from shared.limits import Limits
from shared.queue import lease
from shared.queue.job_queue import JobQueue
from shared.queue.lease import JobLeases, Lease
from shared.wire import codec
from shared.wire.job import Job, without_request
from tests.support.jobs import completion_job

_OWNER_SETS = (names.waiting_key("key-1"), names.running_key("key-1"))


@pytest.fixture
def queue(server: redis.Redis) -> JobQueue:
    return JobQueue(server, 600)


def _leases(server: redis.Redis, replica_id: str) -> JobLeases:
    return JobLeases(server, replica_id, job_ttl_s=60, running_ttl_s=600)


def _admitted(queue: JobQueue, **fields: Any) -> Job:
    job = completion_job(**{"charged_tokens": 50, "owner": "key-1", **fields})
    limits = Limits(tokens_per_minute=100)
    assert queue.admit(job, "channel", limits, 10).reject_reason is None
    return job


def _sets(server: redis.Redis, job: Job) -> list[bool]:
    """Whether the job waits, and whether it runs."""
    return [server.zscore(key, job.id) is not None for key in _OWNER_SETS]


def _log(server: redis.Redis, *payloads: bytes) -> None:
    server.rpush(names.log_key("j"), *payloads)


def test_the_first_replica_takes_the_job_with_all_that_it_needs(
    server: redis.Redis, queue: JobQueue
) -> None:
    job = _admitted(queue)
    deadline = server.zscore(_OWNER_SETS[0], job.id)
    reply = _leases(server, "a").take(job.id, None, Lease("a"))
    assert reply.payload == codec.encode_job(job)
    assert (reply.lease, reply.readers, reply.log) == (Lease("a"), ("channel",), [])
    assert reply.cancel_flag is None
    assert reply.has_begun
    assert _sets(server, job) == [False, True]
    assert server.zscore(_OWNER_SETS[1], job.id) == deadline
    assert server.smembers(names.held_key("a")) == {b"j"}
    assert server.smembers(names.HOLDERS) == {b"a"}
    assert lease.read(server, "j") == Lease("a")


@pytest.mark.parametrize("mine", [Lease("a"), Lease("a", 3, 5, 4, 1)])
def test_a_second_delivery_to_the_same_replica_finds_its_lease(
    server: redis.Redis, queue: JobQueue, mine: Lease
) -> None:
    job = _admitted(queue)
    server.set(names.lease_key(job.id), mine.encode())
    reply = _leases(server, "a").take(job.id, None, Lease("a"))
    assert reply.lease == mine
    assert reply.has_begun


def test_another_replica_is_only_told_who_has_the_lease(
    server: redis.Redis, queue: JobQueue
) -> None:
    job = _admitted(queue)
    _leases(server, "a").take(job.id, None, Lease("a"))
    _log(server, b"event")
    reply = _leases(server, "b").take(job.id, None, Lease("b"))
    assert (reply.lease, reply.log, reply.has_begun) == (Lease("a"), [b"event"], False)
    assert lease.read(server, "j") == Lease("a")


def test_one_replica_takes_over_after_a_death(server: redis.Redis, queue: JobQueue) -> None:
    job = _admitted(queue)
    _leases(server, "a").take(job.id, None, Lease("a"))
    _log(server, b"event")
    new = Lease("b", 1, 1, 0, 1)
    reply = _leases(server, "b").take(job.id, Lease("a"), new)
    assert (reply.lease, reply.log) == (new, [b"event"])
    late = _leases(server, "c").take(job.id, Lease("a"), Lease("c", 1, 1, 0, 1))
    assert late.lease == new, "the lease that it saw is not there any more"


def test_a_lease_that_has_gone_is_not_taken_over(server: redis.Redis, queue: JobQueue) -> None:
    job = _admitted(queue)
    reply = _leases(server, "b").take(job.id, Lease("a"), Lease("b", 1))
    assert reply.lease is None
    assert not server.exists(names.lease_key(job.id))


@pytest.mark.parametrize("flag", [b"1", names.LEFT])
def test_a_flag_from_before_comes_with_the_job(
    server: redis.Redis, queue: JobQueue, flag: bytes
) -> None:
    job = _admitted(queue)
    if flag == names.LEFT:
        queue.leave(job, "channel", None)
    else:
        lease.flag_cancelled(server, job.id, 60)
    reply = _leases(server, "a").take(job.id, None, Lease("a"))
    assert reply.cancel_flag == flag
    assert reply.readers == (() if flag == names.LEFT else ("channel",))


def test_a_job_that_is_gone_is_not_leased(server: redis.Redis) -> None:
    reply = _leases(server, "a").take("j", None, Lease("a"))
    assert (reply.payload, reply.lease, reply.has_begun) == (None, None, False)
    assert not server.exists(names.lease_key("j"))


def test_an_ended_job_is_not_leased(server: redis.Redis, queue: JobQueue) -> None:
    job = _admitted(queue)
    server.set(names.job_key(job.id), codec.encode_job(without_request(job)))
    reply = _leases(server, "a").take(job.id, None, Lease("a"))
    assert reply.payload is not None
    assert (reply.lease, reply.has_begun) == (None, False)
    assert not server.exists(names.lease_key(job.id))


def test_a_draining_replica_only_notes_the_job(server: redis.Redis, queue: JobQueue) -> None:
    job = _admitted(queue)
    reply = _leases(server, "a").take(job.id, None, None)
    assert (reply.lease, reply.has_begun) == (None, False)
    assert _sets(server, job) == [True, False]
    assert server.smembers(names.held_key("a")) == {b"j"}


@pytest.mark.parametrize("prompt", ["é\u00a5owner" * 5000, [1] * 40_000])
def test_a_large_job_is_left_to_the_replica_to_begin(
    server: redis.Redis, queue: JobQueue, prompt: str | list[int]
) -> None:
    job = _admitted(queue, prompts=[prompt])
    reply = _leases(server, "a").take(job.id, None, Lease("a"))
    assert (reply.lease, reply.has_begun) == (Lease("a"), False)
    assert _sets(server, job) == [True, False]


@pytest.mark.parametrize("payload", [b"\xc1", b"", b"\x93\x01\x02\x03", b"\x91" * 30_000])
def test_a_damaged_job_is_leased_too(server: redis.Redis, payload: bytes) -> None:
    """It gets its last event from this replica."""
    server.set(names.job_key("j"), payload)
    reply = _leases(server, "a").take("j", None, Lease("a"))
    assert (reply.payload, reply.lease, reply.has_begun) == (payload, Lease("a"), False)


@pytest.mark.parametrize("expected", [None, Lease("dead")])
def test_a_take_whose_answer_was_lost_is_repeated(
    server: redis.Redis, queue: JobQueue, expected: Lease | None
) -> None:
    job = _admitted(queue)
    if expected is not None:
        server.set(names.lease_key(job.id), expected.encode())
    _log(server, b"event")
    new = Lease("a", 1) if expected else Lease("a")
    replies = [_leases(server, "a").take(job.id, expected, new) for _ in range(2)]
    assert replies[0] == replies[1]
    assert replies[0].lease == new
    assert _sets(server, job) == [False, True]


# -- the end -------------------------------------------------------------------------------------


def _tokens(server: redis.Redis) -> float:
    return float(server.hget(names.rates_key("key-1"), "tokens"))  # type: ignore[arg-type]


def test_the_end_settles_the_job_and_keeps_it_for_its_readers(
    server: redis.Redis, queue: JobQueue
) -> None:
    job = _admitted(queue)
    leases = _leases(server, "a")
    leases.take(job.id, None, Lease("a"))
    for _ in range(2):  # the first answer was lost
        leases.end(job, used_tokens=20)
        assert _sets(server, job) == [False, False]
        assert _tokens(server) == 100 - 20
        assert server.get(names.job_key(job.id)) == codec.encode_job(without_request(job))
        assert 50 < server.ttl(names.job_key(job.id)) <= 60
        assert not server.exists(names.held_key("a"))
    assert lease.read(server, job.id) == Lease("a"), "it fences until it expires"


def test_the_end_does_not_revive_a_job_that_has_expired(
    server: redis.Redis, queue: JobQueue
) -> None:
    job = _admitted(queue)
    server.delete(names.job_key(job.id))
    _leases(server, "a").end(job, used_tokens=20)
    assert not server.exists(names.job_key(job.id))


def test_a_job_without_readers_is_given_up(server: redis.Redis, queue: JobQueue) -> None:
    job = _admitted(queue)
    leases, mine = _leases(server, "a"), Lease("a", 2, 3, 4, 1)
    leases.take(job.id, None, mine)
    _log(server, b"event")
    queue.leave(job, "channel", None)
    for _ in range(2):
        assert not leases.give_up(job, mine)
        assert lease.read(server, job.id) == msgspec.structs.replace(mine, holder="")
        assert _sets(server, job) == [False, False]
        assert _tokens(server) == 50, "its charge stands"
        assert not server.exists(names.held_key("a"))
    for key in (names.job_key(job.id), names.log_key(job.id), names.lease_key(job.id)):
        assert 50 < server.ttl(key) <= 60


def test_a_job_that_has_a_reader_again_stays_held(server: redis.Redis, queue: JobQueue) -> None:
    """Until it is queued: should the replica die before, the job is recovered."""
    job = _admitted(queue)
    leases = _leases(server, "a")
    leases.take(job.id, None, Lease("a"))
    assert leases.give_up(job, Lease("a"))
    assert server.smembers(names.held_key("a")) == {b"j"}


def test_only_the_own_lease_is_released(server: redis.Redis, queue: JobQueue) -> None:
    job = _admitted(queue)
    leases = _leases(server, "a")
    for other in (Lease("b", 1), Lease("a", 1)):
        server.set(names.lease_key(job.id), other.encode())
        leases.release(job.id, Lease("a"))
        leases.give_up(job, Lease("a"))
        assert lease.read(server, job.id) == other
    leases.release(job.id, Lease("a", 1))
    assert lease.read(server, job.id) == Lease("", 1)


# -- a full Redis --------------------------------------------------------------------------------


def test_a_full_redis_takes_leases_and_flags(server: redis.Redis, queue: JobQueue) -> None:
    job = _admitted(queue)
    server.config_set("maxmemory", 1)
    with pytest.raises(redis.OutOfMemoryError):
        server.set("other", 1)
    leases = _leases(server, "a")
    assert leases.take(job.id, None, Lease("a")).lease == Lease("a")
    assert leases.take(job.id, Lease("a"), Lease("a", 1)).lease == Lease("a", 1)
    lease.flag_cancelled(server, job.id, 10)
    assert server.get(names.cancel_key(job.id)) == b"1"
    leases.release(job.id, Lease("a", 1))
    leases.end(job, 1)
    assert lease.read(server, job.id) == Lease("", 1)
    assert not server.exists(names.held_key("a"))


def test_the_lease_in_redis_is_read_by_earlier_versions() -> None:
    assert Lease("a", 1, 2, 3, 4).encode() == (
        b'{"holder":"a","attempt":1,"num_events":2,"num_tokens":3,"num_barren":4}'
    )
