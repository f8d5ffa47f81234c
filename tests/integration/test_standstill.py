"""A replica whose heart beats on while nothing moves in it any more."""

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from shared import names
from shared.registry import records
from tests.conftest import Service, running_service, wait_for
from tests.support.admin_client import Completion, admin, load, read_together, readiness, unload
from tests.support.counter_model import expected_text
from tests.support.paused_replica import slowed, stopped
from tests.support.standstill import standing_still

_LONG = 6000
"""Tokens of a stream: more than are made until a thread is caught in a replica that runs freely."""


@pytest.fixture(scope="module")
def stalling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that waits no longer than five seconds for a sign of progress."""
    extra = "stall_timeout_s = 5\nredis_timeout_s = 1"
    with running_service(tmp_path_factory.mktemp("alert"), extra=extra) as service:
        yield service


@pytest.fixture
def alert(stalling: Service) -> Iterator[Service]:
    """That service, with the two counter models alone."""
    stalling.begin_logs()
    yield stalling
    for view in admin(stalling, "/models")[1]["data"]:
        if view["id"] not in ("counter", "counter-small"):
            assert unload(stalling, view["id"], mode="now")[0] == 200


def _beats(service: Service, pid: int) -> Callable[[], bool]:
    """Whether a replica goes on writing its record: its time to live grows then.

    One write may be on its way when a thread is caught with a lock that the heartbeat waits for,
    and a replica that becomes busy writes one out of turn: three writes are needed.
    """
    (replica_id,) = [r.id for r in records.read(service.redis) if r.pid == pid]
    client, key = service.redis, names.replica_key(replica_id)

    def does() -> bool:
        writes, before, ends_at = 0, 10_000, time.monotonic() + 2
        while writes < 3 and time.monotonic() < ends_at:
            left = client.pttl(key)
            if left > before:
                writes, ends_at = writes + 1, time.monotonic() + 2
            before = left
            time.sleep(0.05)
        return writes == 3

    return does


def _is_ready(service: Service) -> bool:
    return readiness(service)[0] == 200


@pytest.mark.parametrize("thread", ["engine-loop", "publisher"])
def test_a_replica_that_makes_no_progress_is_replaced_and_its_jobs_go_on(
    alert: Service, thread: str
) -> None:
    assert load(alert, "pair", replicas=2, slots=2, context_length=8192)[0] == 200
    victim, other = alert.pids("worker.replica", "pair@")
    does_beat = _beats(alert, victim)
    with slowed(victim, other):
        streams = [Completion(alert, "pair", _LONG, start).read(1) for start in range(4)]
    with standing_still(victim, thread, does_beat):
        assert read_together(streams) == [expected_text(start, _LONG) for start in range(4)]
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
    assert load(alert, "only", slots=2, context_length=8192)[0] == 200
    for name in ("counter", "counter-small"):
        assert unload(alert, name)[0] == 200
    assert _is_ready(alert)
    (victim,) = alert.pids("worker.replica", "only@")
    (agent,) = alert.pids("worker.agent")
    does_beat = _beats(alert, victim)
    with slowed(victim):
        stream = Completion(alert, "only", _LONG).read(1)
    # The agent would kill the replica at once.
    with stopped(agent), standing_still(victim, "engine-loop", does_beat):
        wait_for(lambda: not _is_ready(alert), "it is not ready")
        assert victim in alert.pids("worker.replica", "only@")
        os.kill(agent, signal.SIGCONT)
        assert stream.read().text == expected_text(5, _LONG)
    wait_for(lambda: _is_ready(alert), "it is ready again")
