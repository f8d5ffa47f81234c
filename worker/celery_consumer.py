"""Celery's consumer, as replicas and agents run it.

It makes short pauses between attempts to reach Redis, and sends task events only while there is a
listener: they would cost a replica a quarter of what it spends on a short request.
"""

from functools import partial
from typing import Any

from celery import bootsteps
from celery.worker import control
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.control import control_command

_MAX_RETRY_S = 2.0
"""Celery's own pause grows by two seconds each time, up to 30: requests would wait for that."""
_EVENTS_S = 15.0
"""How long task events go on after the last sign of a listener. Flower gives one every 5 s."""


class TaskEvents(bootsteps.StartStopStep):  # type: ignore[misc]
    """Sends task events while there is a listener, and stops when none gave a sign for a while.

    A worker that starts or reconnects sends them at once if a listener's queue is bound to the
    exchange of events: that listener misses none.
    """

    requires = ("celery.worker.consumer.events:Events",)

    def __init__(self, consumer: Any, **_: Any) -> None:
        consumer.task_events = self
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        events = consumer.event_dispatcher
        if events.producer.channel.get_table(events.exchange.name):
            self.keep_on(consumer)
        else:
            self._turn_off(consumer)

    def stop(self, consumer: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def keep_on(self, consumer: Any) -> None:
        """There is a listener."""
        self.stop(consumer)
        consumer.event_dispatcher.groups = {"worker", "task"}
        self._timer = consumer.timer.call_after(_EVENTS_S, self._turn_off, (consumer,))

    def _turn_off(self, consumer: Any) -> None:
        consumer.event_dispatcher.groups = {"worker"}


class Consumer(CeleryConsumer):  # type: ignore[misc]
    """The consumer of replicas and agents."""

    class Blueprint(CeleryConsumer.Blueprint):  # type: ignore[misc]
        default_steps = (*CeleryConsumer.Blueprint.default_steps, TaskEvents)

    def ensure_connected(self, conn: Any) -> Any:
        conn.ensure_connection = partial(
            conn.ensure_connection, interval_start=0.5, interval_step=0.5, interval_max=_MAX_RETRY_S
        )
        return super().ensure_connected(conn)


@control_command()  # type: ignore[untyped-decorator]
def enable_events(state: Any) -> Any:
    """Replace Celery's command, which Flower sends every 5 s: it holds for a while."""
    state.consumer.task_events.keep_on(state.consumer)
    return control.ok("task events enabled")


@control_command()  # type: ignore[untyped-decorator]
def heartbeat(state: Any) -> None:
    """Extend Celery's command, which every listener sends when it begins."""
    state.consumer.task_events.keep_on(state.consumer)
    control.heartbeat(state)
