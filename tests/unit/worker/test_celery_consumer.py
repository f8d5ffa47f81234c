"""When a worker sends task events: while there is a listener."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery
from celery.worker import control

from worker.celery_consumer import Consumer, TaskEvents, enable_events, heartbeat


class _Timer:
    """Celery's timer, whose time is over when the test says so."""

    def __init__(self) -> None:
        self.due: list[_Entry] = []

    def call_after(
        self, seconds: float, call: Callable[..., None], arguments: tuple[Any]
    ) -> "_Entry":
        entry = _Entry(self, lambda: call(*arguments))
        self.due.append(entry)
        return entry

    def pass_all(self) -> None:
        for entry in list(self.due):
            entry.cancel()
            entry.call()


class _Entry:
    def __init__(self, timer: _Timer, call: Callable[[], None]) -> None:
        self._timer = timer
        self.call = call

    def cancel(self) -> None:
        if self in self._timer.due:
            self._timer.due.remove(self)


@pytest.fixture
def celery_app(redis_socket: str) -> Iterator[Celery]:
    with Celery("test", broker=f"redis+socket://{redis_socket}") as app:
        yield app


@pytest.fixture
def consumer(celery_app: Celery) -> Iterator[Any]:
    """A consumer, of which only the events and the timer are there."""
    with celery_app.connection() as connection, celery_app.events.Dispatcher(connection) as events:
        consumer = SimpleNamespace(timer=_Timer(), event_dispatcher=events)
        TaskEvents(consumer)
        yield consumer


@pytest.fixture
def sent(consumer: Any, server: redis.Redis) -> Callable[[], list[str]]:
    """Sends an event of a task and one of the worker; returns the types that arrive."""

    def send() -> list[str]:
        with server.pubsub(ignore_subscribe_messages=True) as listener:
            listener.psubscribe("*celeryev*")
            consumer.event_dispatcher.send("task-started")
            consumer.event_dispatcher.send("worker-heartbeat")
            types: list[str] = []
            while "worker.heartbeat" not in types:
                message = listener.get_message(timeout=60)
                if message is not None:
                    types.append(message["channel"].decode().rpartition("/")[2])
            return types

    return send


_ALL = ["task.started", "worker.heartbeat"]
_OF_THE_WORKER = ["worker.heartbeat"]


def test_a_worker_that_starts_without_a_listener_sends_no_task_events(
    consumer: Any, sent: Callable[[], list[str]]
) -> None:
    consumer.task_events.start(consumer)
    assert sent() == _OF_THE_WORKER


def test_a_listener_that_was_there_first_misses_no_task_event(
    consumer: Any, celery_app: Celery, sent: Callable[[], list[str]]
) -> None:
    with celery_app.connection() as connection:
        receiver = celery_app.events.Receiver(connection)
        with receiver.consumer_context():
            consumer.task_events.start(consumer)
    assert sent() == _ALL


@pytest.mark.parametrize("command", [enable_events, heartbeat])
def test_task_events_go_on_until_a_listener_has_given_no_sign(
    consumer: Any, sent: Callable[[], list[str]], command: Callable[[Any], Any]
) -> None:
    consumer.task_events.start(consumer)
    command(SimpleNamespace(consumer=consumer))
    assert sent() == _ALL
    consumer.timer.pass_all()
    assert sent() == _OF_THE_WORKER


def test_each_sign_of_a_listener_begins_the_time_anew(consumer: Any) -> None:
    enable_events(SimpleNamespace(consumer=consumer))
    (first,) = consumer.timer.due
    enable_events(SimpleNamespace(consumer=consumer))
    (second,) = consumer.timer.due
    assert second is not first


def test_a_worker_that_stops_leaves_no_timer(consumer: Any) -> None:
    enable_events(SimpleNamespace(consumer=consumer))
    consumer.task_events.stop(consumer)
    assert consumer.timer.due == []


def test_the_commands_are_those_that_listeners_send() -> None:
    assert control.Panel.data["enable_events"] is enable_events
    assert control.Panel.data["heartbeat"] is heartbeat
    assert TaskEvents in Consumer.Blueprint.default_steps
