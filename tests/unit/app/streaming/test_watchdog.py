"""Silent jobs are checked: which status each reader gets, and when Redis is asked."""

from dataclasses import dataclass, field
from pathlib import Path

import gevent
import pytest
import redis
from gevent.event import Event

from app.jobs.status import JobStatus
from app.streaming.queue_monitor import QueueLengths
from app.streaming.watchdog import JobWatchdog
from shared import names
from shared.limits import Limits
from shared.queue.job_queue import JobQueue
from shared.queue.lease import Lease
from tests.support.full_disk import full_disk
from tests.support.jobs import completion_job

UNCLAIMED = JobStatus(holder=None, is_cancelled=False, is_parked=False, num_events=0)


@dataclass(eq=False)
class _Reader:
    job_id: str
    model: str = "m"
    is_silent: bool = True
    heard: list[JobStatus | redis.RedisError] = field(default_factory=list)

    def note(self, found: JobStatus | redis.RedisError) -> None:
        self.heard.append(found)


class _FailingQueues(QueueLengths):
    """Redis goes away between two of its answers."""

    def read_contents(self, models: object) -> None:
        raise redis.ConnectionError("away")


def _watchdog(
    client: redis.Redis, *readers: _Reader, queues: QueueLengths | None = None
) -> JobWatchdog:
    watchdog = JobWatchdog(client, queues or QueueLengths(client))
    for reader in readers:
        watchdog.watch(reader)
    return watchdog


def _claim(server: redis.Redis, job_id: str, holder: str = "r", num_events: int = 0) -> None:
    server.set(names.lease_key(job_id), Lease(holder).encode(), ex=60)
    _log(server, job_id, num_events)


def _log(server: redis.Redis, job_id: str, num_events: int) -> None:
    for _ in range(num_events):
        server.rpush(names.log_key(job_id), b"event")


def _enqueue(server: redis.Redis, job_id: str, model: str) -> None:
    job = completion_job(id=job_id, model=model, owner="a")
    assert JobQueue(server, 60).admit(job, "c", Limits(), 100).reject_reason is None


# -- readers ---------------------------------------------------------------------------------


def test_every_silent_reader_gets_the_status_of_its_own_job(server: redis.Redis) -> None:
    waits, runs = _Reader("waits"), _Reader("runs")
    _claim(server, "runs", "r", 1)
    _watchdog(server, waits, runs).check()
    assert waits.heard == [UNCLAIMED]
    assert runs.heard == [JobStatus("r", False, False, 1)]


def test_two_readers_of_one_job_both_get_it(server: redis.Redis) -> None:
    readers = [_Reader("j"), _Reader("j")]
    _watchdog(server, *readers).check()
    assert [reader.heard for reader in readers] == [[UNCLAIMED], [UNCLAIMED]]


def test_a_reader_that_gets_events_is_left_alone(server: redis.Redis) -> None:
    lively, silent = _Reader("lively", is_silent=False), _Reader("silent")
    _watchdog(server, lively, silent).check()
    assert (lively.heard, silent.heard) == ([], [UNCLAIMED])


def test_redis_is_not_asked_when_no_reader_is_silent(absent: redis.Redis) -> None:
    lively = _Reader("lively", is_silent=False)
    _watchdog(absent, lively).check()
    assert lively.heard == []


def test_a_forgotten_reader_gets_nothing(server: redis.Redis) -> None:
    gone, stays = _Reader("gone"), _Reader("stays")
    watchdog = _watchdog(server, gone, stays)
    watchdog.forget(gone)
    watchdog.forget(gone)
    watchdog.check()
    assert (gone.heard, stays.heard) == ([], [UNCLAIMED])


def test_an_error_of_redis_reaches_every_silent_reader(absent: redis.Redis) -> None:
    readers = [_Reader("a"), _Reader("b"), _Reader("lively", is_silent=False)]
    _watchdog(absent, *readers).check()
    (first,), (second,), none = [reader.heard for reader in readers]
    assert isinstance(first, redis.ConnectionError)
    assert second is first
    assert none == []


def test_a_disk_that_takes_no_writes_reaches_every_silent_reader(
    server: redis.Redis, tmp_path: Path
) -> None:
    """The statuses can be read all the same."""
    reader = _Reader("j")
    with full_disk(server, tmp_path):
        _watchdog(server, reader).check()
        (heard,) = reader.heard
        assert "MISCONF" in str(heard)
    _watchdog(server, reader).check()
    assert reader.heard[1:] == [UNCLAIMED]


def test_an_error_at_the_queues_reaches_every_reader_in_place_of_its_status(
    server: redis.Redis,
) -> None:
    held, waits = _Reader("held"), _Reader("waits")
    _claim(server, "held")
    _watchdog(server, held, waits, queues=_FailingQueues(server)).check()
    for reader in (held, waits):
        (heard,) = reader.heard
        assert isinstance(heard, redis.ConnectionError)


def test_readers_get_statuses_again_when_redis_is_back(
    server: redis.Redis, absent: redis.Redis
) -> None:
    reader = _Reader("j")
    _watchdog(absent, reader).check()
    _watchdog(server, reader).check()
    assert reader.heard[1:] == [UNCLAIMED]


# -- queues ----------------------------------------------------------------------------------


def test_only_the_queues_of_jobs_without_a_holder_are_looked_into(server: redis.Redis) -> None:
    for model in ("held", "free", "back"):
        _enqueue(server, f"queued-{model}", model)
    _claim(server, "job-held", "r")
    _claim(server, "job-back", "")
    queues = QueueLengths(server)
    queues.refresh(["held", "free", "back"])
    readers = [_Reader(f"job-{model}", model) for model in ("held", "free", "back")]
    _watchdog(server, *readers, queues=queues).check()
    lacking = [queues.lacks(reader.model, reader.job_id, 0.0) for reader in readers]
    assert lacking == [False, True, True]


# -- the loop --------------------------------------------------------------------------------


def test_the_loop_goes_on_after_a_look_that_fails(
    server: redis.Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    is_noted_again = Event()

    class Fussy(_Reader):
        def note(self, found: JobStatus | redis.RedisError) -> None:
            super().note(found)
            if len(self.heard) == 1:
                raise ValueError("a reader that is not well")
            is_noted_again.set()

    reader = Fussy("j")
    watchdog = _watchdog(server, reader)

    def sleep(_: float) -> None:
        if is_noted_again.is_set():
            raise gevent.GreenletExit

    monkeypatch.setattr(gevent, "sleep", sleep)
    watchdog.start()
    assert is_noted_again.wait(60)
    assert reader.heard == [UNCLAIMED, UNCLAIMED]
    assert "the check of silent jobs failed" in caplog.text
