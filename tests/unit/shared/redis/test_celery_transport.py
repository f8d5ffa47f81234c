"""Where Celery's messages are while a worker has them."""

from collections.abc import Iterator

import pytest
import redis
from kombu import Connection
from kombu.simple import SimpleQueue

import celeryconfig
from shared.redis.celery_transport import register


@pytest.fixture
def connection(redis_socket: str) -> Iterator[Connection]:
    register()
    options = celeryconfig.broker_transport_options
    with Connection(f"redis+socket://{redis_socket}", transport_options=options) as connection:
        yield connection


@pytest.fixture
def taken(connection: Connection) -> SimpleQueue:
    """A queue whose two messages, 1 and 2, a worker has."""
    queue = connection.SimpleQueue("q", serializer="json")
    for number in (1, 2):
        queue.put(number, priority=0)
    assert [queue.get(timeout=10).payload for _ in range(2)] == [1, 2]
    return queue


def _payloads(connection: Connection) -> list[int]:
    """What a worker gets from now on."""
    with connection.clone() as another:
        queue = another.SimpleQueue("q", serializer="json")
        messages = [queue.get_nowait() for _ in range(len(queue))]
        for message in messages:
            message.ack()
        return [message.payload for message in messages]


def test_redis_has_no_copy_of_a_message_that_a_worker_has(
    taken: SimpleQueue, server: redis.Redis
) -> None:
    assert [key for key in server.scan_iter() if not key.startswith(b"_kombu.")] == []


def test_what_is_not_acknowledged_is_put_back_in_its_order(
    taken: SimpleQueue, connection: Connection
) -> None:
    taken.put(3, priority=0)
    taken.channel.close()
    assert _payloads(connection) == [1, 2, 3]


def test_what_is_acknowledged_is_not_put_back(taken: SimpleQueue, server: redis.Redis) -> None:
    for tag in list(taken.channel.qos._delivered):
        taken.channel.basic_ack(tag)
    taken.channel.close()
    assert server.keys("q*") == []


def test_a_rejected_message_is_the_last_one(taken: SimpleQueue, connection: Connection) -> None:
    taken.put(3, priority=0)
    first, second = list(taken.channel.qos._delivered)
    taken.channel.basic_reject(first, requeue=True)
    taken.channel.basic_reject(second, requeue=False)
    taken.channel.close()
    assert _payloads(connection) == [3, 1]


def test_a_message_goes_back_into_the_list_of_its_priority(
    connection: Connection, server: redis.Redis
) -> None:
    queue = connection.SimpleQueue("q", serializer="json")
    queue.put(1, priority=9)
    (key,) = server.keys("q*")
    queue.get(timeout=10)
    queue.channel.close()
    assert server.keys("q*") == [key]


def test_messages_are_put_back_into_a_full_redis(
    taken: SimpleQueue, connection: Connection, server: redis.Redis
) -> None:
    server.config_set("maxmemory", 1)
    taken.channel.close()
    server.config_set("maxmemory", 0)
    assert _payloads(connection) == [1, 2]


def test_a_worker_whose_redis_is_gone_puts_nothing_back(
    taken: SimpleQueue, server: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    server.shutdown(nosave=True)
    taken.channel.close()
    assert "messages cannot be put back" in caplog.text


def test_a_message_that_is_rejected_after_its_channel_was_closed_stays_out(
    connection: Connection, server: redis.Redis
) -> None:
    """The worker has lost its connection meanwhile; the message was put back then."""
    queue = connection.SimpleQueue("q", serializer="json")
    queue.put(1, priority=0)
    message = queue.get(timeout=10)
    queue.channel.close()
    message.requeue()
    assert server.llen("q") == 1
