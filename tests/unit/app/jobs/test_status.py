"""Statuses of jobs, as Redis has them."""

import pytest
import redis

from app.jobs.status import JobStatus, read_statuses
from shared import names
from shared.queue import lease
from shared.queue.lease import Lease

UNCLAIMED = JobStatus(holder=None, is_cancelled=False, is_parked=False, num_events=0)


def _claim(server: redis.Redis, job_id: str, holder: str = "r", num_events: int = 0) -> None:
    server.set(names.lease_key(job_id), Lease(holder).encode(), ex=60)
    _log(server, job_id, num_events)


def _log(server: redis.Redis, job_id: str, num_events: int) -> None:
    for _ in range(num_events):
        server.rpush(names.log_key(job_id), b"event")


def test_a_job_without_a_claim_has_no_holder(server: redis.Redis) -> None:
    assert read_statuses(server, ["j"]) == [UNCLAIMED]


def test_a_claimed_job_has_its_replica_and_the_length_of_its_log(server: redis.Redis) -> None:
    _claim(server, "j", "r7", 3)
    assert read_statuses(server, ["j"]) == [JobStatus("r7", False, False, 3)]


def test_a_job_that_was_given_back_has_an_empty_holder(server: redis.Redis) -> None:
    _claim(server, "j", "", 2)
    assert read_statuses(server, ["j"]) == [JobStatus("", False, False, 2)]


def test_the_log_of_an_unclaimed_job_is_not_measured(server: redis.Redis) -> None:
    _log(server, "j", 2)
    assert read_statuses(server, ["j"]) == [UNCLAIMED]


def test_a_cancelled_job_is_not_parked(server: redis.Redis) -> None:
    lease.flag_cancelled(server, "j", 60)
    assert read_statuses(server, ["j"]) == [JobStatus(None, True, False, 0)]


def test_a_job_that_its_readers_have_left_is_parked_and_not_cancelled(server: redis.Redis) -> None:
    server.set(names.cancel_key("j"), names.LEFT)
    assert read_statuses(server, ["j"]) == [JobStatus(None, False, True, 0)]


def test_each_job_gets_the_length_of_its_own_log(server: redis.Redis) -> None:
    """Logs are measured only of some: the answers must not slip to a neighbour."""
    _claim(server, "first", "a", 1)
    _claim(server, "third", "b", 3)
    _claim(server, "fourth", "c", 0)
    lease.flag_cancelled(server, "fourth", 60)
    found = read_statuses(server, ["first", "second", "third", "fourth"])
    assert [one.num_events for one in found] == [1, 0, 3, 0]
    assert [one.holder for one in found] == ["a", None, "b", "c"]
    assert [one.is_cancelled for one in found] == [False, False, False, True]


def test_an_undecodable_claim_counts_as_none_and_is_logged(
    server: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    server.set(names.lease_key("j"), b"{")
    _claim(server, "good", "r")
    assert [one.holder for one in read_statuses(server, ["j", "good"])] == [None, "r"]
    assert "undecodable lease" in caplog.text
