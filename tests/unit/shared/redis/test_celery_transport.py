"""How Celery's messages are kept while a worker has them."""

import time
from collections.abc import Iterator

import pytest
import redis
from kombu import Connection

from shared.clock import clock
from shared.redis.celery_transport import register


@pytest.fixture
def connection(redis_socket: str) -> Iterator[Connection]:
    register()
    with Connection(f"redis+socket://{redis_socket}") as connection:
        yield connection


def test_a_worker_whose_clock_is_ahead_takes_no_message_from_others(
    connection: Connection, redis_socket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = redis.Redis(unix_socket_path=redis_socket)
    # This host is a day ahead of Redis.
    monkeypatch.setattr(clock, "_offset", time.time() - 86_400 - time.monotonic())
    queue = connection.SimpleQueue("q")
    queue.put("a job")
    queue.get(timeout=10)
    ((_, delivered_at),) = client.zrange("unacked_index", 0, -1, withscores=True)
    assert delivered_at == pytest.approx(clock.now(), abs=60)
    queue.channel.qos.restore_visible()
    assert client.llen("q") == 0
    monkeypatch.setattr(clock, "_offset", time.time() - time.monotonic())  # a day later
    queue.channel.qos._vrestore_count = 0  # each tenth call looks
    queue.channel.qos.restore_visible()
    assert client.llen("q") == 1
