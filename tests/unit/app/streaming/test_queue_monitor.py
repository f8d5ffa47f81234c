"""How long the models' queues are, and whether a job's message is lost from one."""

import time
from collections.abc import Callable

import pytest
import redis

from app.streaming.queue_monitor import QueueLengths
from shared import names
from shared.queue.celery_message import queue_message
from tests.support.jobs import completion_job


@pytest.fixture
def queues(server: redis.Redis) -> QueueLengths:
    return QueueLengths(server)


def _queue(server: redis.Redis, job_id: str, model: str = "m", place: int = 1) -> None:
    """Put a job's message into one of the lists of a queue."""
    job = completion_job(id=job_id, model=model, owner="a")
    message = queue_message(job, names.PRIORITY_STEPS[place])
    server.lpush(names.priority_lists(model)[place], message)


def test_a_length_is_that_of_all_priorities_together(
    server: redis.Redis, queues: QueueLengths
) -> None:
    for place in range(len(names.PRIORITY_STEPS)):
        _queue(server, f"a{place}", "a", place)
    _queue(server, "c", "c", 3)
    queues.refresh(["c", "b", "a"])
    assert queues.all() == {"a": 4, "b": 0, "c": 1}


def test_a_model_that_is_gone_has_no_length_any_more(
    server: redis.Redis, queues: QueueLengths
) -> None:
    _queue(server, "j")
    queues.refresh(["m"])
    queues.refresh([])
    assert queues.all() == {}


def test_lengths_stay_as_they_are_when_redis_is_away(
    server: redis.Redis, absent: redis.Redis
) -> None:
    queues = QueueLengths(absent)
    with pytest.raises(redis.ConnectionError):
        queues.refresh(["m"])
    assert queues.all() == {}
    assert not queues.lacks("m", "j", 0.0)


# -- by a count ------------------------------------------------------------------------------


def test_an_empty_queue_lacks_every_job(queues: QueueLengths) -> None:
    queues.refresh(["m"])
    assert queues.lacks("m", "j", 0.0)


def test_a_count_from_before_a_job_was_queued_says_nothing(queues: QueueLengths) -> None:
    queues.refresh(["m"])
    assert not queues.lacks("m", "j", time.monotonic())


def test_a_queue_that_was_never_counted_lacks_nothing(queues: QueueLengths) -> None:
    queues.refresh(["other"])
    assert not queues.lacks("m", "j", 0.0)


def test_a_queue_with_messages_lacks_nothing_before_a_look(
    server: redis.Redis, queues: QueueLengths
) -> None:
    _queue(server, "other")
    queues.refresh(["m"])
    assert not queues.lacks("m", "j", 0.0)


# -- by a look -------------------------------------------------------------------------------


def test_a_look_finds_messages_of_every_priority(server: redis.Redis, queues: QueueLengths) -> None:
    for place in range(len(names.PRIORITY_STEPS)):
        _queue(server, f"j{place}", "m", place)
    queues.refresh(["m"])
    queues.read_contents(["m"])
    assert not any(queues.lacks("m", f"j{place}", 0.0) for place in range(4))
    assert queues.lacks("m", "lost", 0.0)


def test_a_message_as_celery_itself_writes_it_is_found(
    server: redis.Redis, queues: QueueLengths
) -> None:
    """Python's json puts a space behind the colon."""
    server.lpush(names.model_queue("m"), '{"headers": {"root_id": "root", "id": "j"}}', "{}")
    queues.refresh(["m"])
    queues.read_contents(["m"])
    assert not queues.lacks("m", "j", 0.0)
    assert queues.lacks("m", "root", 0.0)


def test_a_look_from_before_a_job_was_queued_says_nothing(
    server: redis.Redis, queues: QueueLengths
) -> None:
    _queue(server, "other")
    queues.refresh(["m"])
    queues.read_contents(["m"])
    assert not queues.lacks("m", "j", time.monotonic())


def test_a_look_into_one_queue_says_nothing_of_another(
    server: redis.Redis, queues: QueueLengths
) -> None:
    _queue(server, "j", "a")
    _queue(server, "k", "b")
    queues.refresh(["a", "b"])
    queues.read_contents(["a"])
    assert queues.lacks("a", "k", 0.0)
    assert not queues.lacks("b", "j", 0.0)


def test_a_queue_that_was_empty_when_counted_is_not_looked_into(
    server: redis.Redis, queues: QueueLengths
) -> None:
    """An empty one is known to lack the job; one that has filled since is counted again soon."""
    queues.refresh(["m"])
    _queue(server, "other")
    queues.read_contents(["m", "unknown"])
    assert not queues.lacks("m", "j", time.monotonic())
    counted_later = time.monotonic()
    queues.refresh(["m"])
    assert not queues.lacks("m", "j", counted_later), "it has never been looked into"


@pytest.mark.usefixtures("forward")
def test_a_look_from_a_moment_ago_is_not_repeated(
    server: redis.Redis, queues: QueueLengths
) -> None:
    _queue(server, "other")
    queues.refresh(["m"])
    queues.read_contents(["m"])
    _queue(server, "j")
    queues.read_contents(["m"])
    assert queues.lacks("m", "j", 0.0), "the look is the old one"


def test_an_old_look_is_repeated(
    server: redis.Redis, queues: QueueLengths, forward: Callable[[float], None]
) -> None:
    _queue(server, "other")
    queues.refresh(["m"])
    queues.read_contents(["m"])
    _queue(server, "j")
    forward(60)
    queues.read_contents(["m"])
    assert not queues.lacks("m", "j", 0.0)
