"""What a web process renews with every beat, twice a second: its copies of keys, registry and
queues, and its counts in Redis.

Runs in one greenlet of its own. Requests read the copies and pay for no round trip.
"""

import logging
from collections.abc import Callable, Iterable
from functools import partial

import gevent
import redis

from app.metrics import buffered
from app.metrics.definitions import STREAMS
from app.services import Services
from shared.clock import clock
from shared.periodic import run_periodically, run_step
from shared.queue.recovery import JobRecovery
from shared.registry.records import BEAT_S

_log = logging.getLogger(__name__)


def start(services: Services) -> None:
    """Start the beat."""
    beat = partial(take_steps, _steps(services))
    gevent.spawn(run_periodically, beat, BEAT_S, "the beat", sleep=gevent.sleep)


def take_steps(steps: Iterable[Callable[[], None]]) -> None:
    """Run each step. One that fails does not stop the others, unless Redis is away."""
    for step in steps:
        try:
            # The other copies must stay fresh, or requests go to replicas that are gone.
            run_step(step, "a step of the beat", let_through=redis.RedisError)
        except redis.OutOfMemoryError as exc:
            # Redis answers, and a later beat makes up for this one. The counters' step warns, once.
            _log.debug("a step of the beat waits until Redis has memory: %s", exc)
        except redis.RedisError as exc:
            _log.warning("the beat waits for Redis: %s", exc)
            return


def _steps(services: Services) -> list[Callable[[], None]]:
    """The steps that use Redis come last: without it they are skipped."""
    queues, positions = services.relay.queues, services.relay.positions

    def refresh_queues() -> None:
        queues.refresh(services.catalog.names())
        positions.refresh(name for name, length in queues.all().items() if length)

    return [
        lambda: STREAMS.set(services.hub.num_streams),
        *([services.denylist.refresh] if services.denylist is not None else []),
        # First of those that use Redis: it notes whether Redis answers.
        services.directory.refresh,
        lambda: clock.measure(services.client),
        services.authenticator.refresh,
        refresh_queues,
        JobRecovery(services.client, services.dispatcher.queue).check,
        services.last_used.flush,
        lambda: buffered.flush(services.client),
    ]
