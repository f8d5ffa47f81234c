"""A replica whose heart beats on while nothing moves in it any more."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.admin_client import Completion, load, readiness, unload
from tests.conftest import Service, running_service, wait_for
from tests.counter_model import expected_text
from tests.standstill import standing_still


@pytest.fixture
def alert(tmp_path: Path) -> Iterator[Service]:
    """A service that waits no longer than two seconds for a sign of progress."""
    with running_service(tmp_path, extra="stall_timeout_s = 2\nredis_timeout_s = 0.4") as service:
        yield service


def _is_ready(service: Service) -> bool:
    return readiness(service)[0] == 200


@pytest.mark.parametrize("thread", ["engine-loop", "publisher"])
def test_a_replica_that_makes_no_progress_is_replaced_and_its_jobs_go_on(
    alert: Service, thread: str
) -> None:
    assert load(alert, "pair", replicas=2, slots=2, context_length=16384)[0] == 200
    streams = [Completion(alert, "pair", 12_000, start).read(3) for start in range(4)]
    victim, other = alert.pids("worker.replica", "pair@")
    with standing_still(victim, thread):
        assert [stream.read().text for stream in streams] == [
            expected_text(start, 12_000) for start in range(4)
        ]
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
        with standing_still(victim, "engine-loop"):
            wait_for(lambda: not _is_ready(alert), "it is not ready", 20)
            assert victim in alert.pids("worker.replica", "only@")
            os.kill(agent, signal.SIGCONT)
            assert stream.read().text == expected_text(5, 20_000)
    finally:
        os.kill(agent, signal.SIGCONT)
    wait_for(lambda: _is_ready(alert), "it is ready again", 20)
