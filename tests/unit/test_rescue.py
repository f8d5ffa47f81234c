"""Who is taken for dead, and when."""

import pytest
import redis

from shared import names, rescue
from shared.job_queue import JobQueue
from shared.rescue import Rescuer


@pytest.fixture
def client(redis_socket: str) -> redis.Redis:
    return redis.Redis(unix_socket_path=redis_socket, protocol=2)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(rescue.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def rescued(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    ids: list[str] = []
    monkeypatch.setattr(rescue, "rescue_jobs", lambda _client, _queue, id_: ids.append(id_))
    return ids


def _beat(client: redis.Redis, *replica_ids: str) -> None:
    for key in ("a", "b"):
        client.delete(names.replica_key(key))
        client.sadd(names.HOLDERS, key)
    for replica_id in replica_ids:
        client.set(names.replica_key(replica_id), b"record")


def test_who_is_gone_while_others_are_there_is_rescued_at_once(
    client: redis.Redis, clock: list[float], rescued: list[str]
) -> None:
    rescuer = Rescuer(client, JobQueue(client, 60))
    _beat(client, "a", "b")
    rescuer.look()
    clock[0] += 0.5
    _beat(client, "b")
    rescuer.look()
    assert rescued == ["a"]


def test_when_all_are_gone_they_get_time_to_come_back(
    client: redis.Redis, clock: list[float], rescued: list[str]
) -> None:
    rescuer = Rescuer(client, JobQueue(client, 60))
    _beat(client, "a", "b")
    rescuer.look()
    clock[0] += 0.5
    _beat(client)
    rescuer.look()
    clock[0] += 0.5
    _beat(client, "b")
    rescuer.look()
    assert rescued == [], "a may be a moment later"
    clock[0] += 0.5
    rescuer.look()
    assert rescued == ["a"]


def test_after_a_long_time_without_a_look_nobody_is_dead_yet(
    client: redis.Redis, clock: list[float], rescued: list[str]
) -> None:
    rescuer = Rescuer(client, JobQueue(client, 60))
    _beat(client, "a", "b")
    rescuer.look()
    clock[0] += 5.0
    _beat(client, "b")
    rescuer.look()
    assert rescued == []
