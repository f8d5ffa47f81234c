"""A replica whose heart beats on while nothing moves in it any more."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared import names, registry
from tests.admin_client import Completion, load, read_together, readiness, unload
from tests.conftest import Service, running_service, wait_for
from tests.counter_model import expected_text
from tests.standstill import standing_still


@pytest.fixture
def alert(tmp_path: Path) -> Iterator[Service]:
    """A service that waits no longer than five seconds for a sign of progress."""
    with running_service(tmp_path, extra="stall_timeout_s = 5\nredis_timeout_s = 1") as service:
        yield service


def _beats(service: Service, pid: int) -> Callable[[], bool]:
    """Whether a replica writes its record: its time to live grows then."""
    (replica_id,) = [r.id for r in registry.read(service.redis) if r.pid == pid]
    client, key = service.redis, names.replica_key(replica_id)

    def does() -> bool:
        before, ends_at = 10_000, time.monotonic() + 2
        while time.monotonic() < ends_at:
            left = client.pttl(key)
            if left > before:
                return True
            before = left
            time.sleep(0.05)
        return False

    return does


def _is_ready(service: Service) -> bool:
    return readiness(service)[0] == 200


@pytest.mark.parametrize("thread", ["engine-loop", "publisher"])
def test_a_replica_that_makes_no_progress_is_replaced_and_its_jobs_go_on(
    alert: Service, thread: str
) -> None:
    assert load(alert, "pair", replicas=2, slots=2, context_length=30000)[0] == 200
    streams = [Completion(alert, "pair", 16_000, start).read(3) for start in range(4)]
    victim, other = alert.pids("worker.replica", "pair@")
    with standing_still(victim, thread, _beats(alert, victim)):
        assert read_together(streams) == [expected_text(start, 16_000) for start in range(4)]
        assert victim not in alert.pids("worker.replica", "pair@")
    assert other in alert.pids("worker.replica", "pair@")
    assert "it had jobs and made no progress" in alert.log("agent")
    wait_for(lambda: len(alert.pids("worker.replica", "pair@")) == 2, "it is replaced")


def test_an_engine_that_stood_still_before_its_job_came_is_found(alert: Service) -> None:
    assert load(alert, "only", slots=2)[0] == 200
    (victim,) = alert.pids("worker.replica", "only@")
    with standing_still(victim, "engine-loop"):
        assert Completion(alert, "only", 20).read().text == expected_text(5, 20)


def test_a_service_without_progress_is_not_ready(alert: Service) -> None:
    """Its one replica is alive, says so every second, and calls itself ready."""
    assert load(alert, "only", slots=2, context_length=30000)[0] == 200
    for name in ("counter", "counter-small"):
        assert unload(alert, name)[0] == 200
    assert _is_ready(alert)
    stream = Completion(alert, "only", 20_000).read(3)
    (victim,) = alert.pids("worker.replica", "only@")
    (agent,) = alert.pids("worker.agent")
    os.kill(agent, signal.SIGSTOP)  # or it would kill the replica at once
    try:
        with standing_still(victim, "engine-loop", _beats(alert, victim)):
            wait_for(lambda: not _is_ready(alert), "it is not ready", 20)
            assert victim in alert.pids("worker.replica", "only@")
            os.kill(agent, signal.SIGCONT)
            assert stream.read().text == expected_text(5, 20_000)
    finally:
        os.kill(agent, signal.SIGCONT)
    wait_for(lambda: _is_ready(alert), "it is ready again", 20)
