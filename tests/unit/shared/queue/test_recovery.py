"""When a replica is taken for dead."""

import pytest
import redis

from shared import names
from shared.queue import recovery
from shared.queue.job_queue import JobQueue
from shared.queue.recovery import JobRecovery


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(recovery.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def recovered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    ids: list[str] = []
    monkeypatch.setattr(recovery, "recover_jobs", lambda _client, _queue, id_: ids.append(id_))
    return ids


def _beat(client: redis.Redis, *replica_ids: str) -> None:
    for key in ("a", "b"):
        client.delete(names.replica_key(key))
        client.sadd(names.HOLDERS, key)
    for replica_id in replica_ids:
        client.set(names.replica_key(replica_id), b"record")


def test_a_replica_that_is_gone_while_others_beat_is_recovered_at_once(
    client: redis.Redis, clock: list[float], recovered: list[str]
) -> None:
    checks = JobRecovery(client, JobQueue(client, 60))
    _beat(client, "a", "b")
    checks.check()
    clock[0] += 0.5
    _beat(client, "b")
    checks.check()
    assert recovered == ["a"]


def test_when_all_are_gone_they_get_time_to_come_back(
    client: redis.Redis, clock: list[float], recovered: list[str]
) -> None:
    checks = JobRecovery(client, JobQueue(client, 60))
    _beat(client, "a", "b")
    checks.check()
    clock[0] += 0.5
    _beat(client)
    checks.check()
    clock[0] += 0.5
    _beat(client, "b")
    checks.check()
    assert recovered == [], "a may be a moment later"
    clock[0] += 0.5
    checks.check()
    assert recovered == ["a"]


def test_after_a_long_time_without_a_check_no_replica_is_dead_yet(
    client: redis.Redis, clock: list[float], recovered: list[str]
) -> None:
    checks = JobRecovery(client, JobQueue(client, 60))
    _beat(client, "a", "b")
    checks.check()
    clock[0] += 5.0
    _beat(client, "b")
    checks.check()
    assert recovered == []
