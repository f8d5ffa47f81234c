"""The agent's watch of its replicas."""

import threading
from typing import Any

import redis

from worker.agent.agent import Agent


class _Replicas:
    """Raises its errors one after the other, then stops the watch."""

    def __init__(self, stop: threading.Event, errors: list[Exception]) -> None:
        self._stop, self._errors = stop, errors

    def all(self) -> list[Any]:
        return []

    def wait_for_exit(self, timeout_s: float) -> None:
        pass

    def refresh(self) -> None:
        if self._errors:
            raise self._errors.pop(0)
        self._stop.set()
        raise redis.ConnectionError("the watch needs no more")


def test_the_watch_outlives_any_error_of_its_checks() -> None:
    agent: Any = Agent.__new__(Agent)
    agent._stop = threading.Event()
    errors: list[Exception] = [OSError("too many open files"), redis.ConnectionError("away")]
    agent.replicas = _Replicas(agent._stop, errors)
    watch = threading.Thread(target=agent._watch_forever, daemon=True)
    watch.start()
    watch.join(60)
    assert not watch.is_alive() and not errors
