"""What each step of a job leaves in Redis, and for how long.

The functions are the real ones, with the default settings, against a real server.
"""

from typing import Any

import pytest
import redis
from celery.exceptions import Ignore

from app.events.hub import Hub
from app.jobs.dispatcher import Dispatcher, IdempotencyKey
from shared import names
from shared.limits import Limits
from shared.names import HOLDERS, held_key, idempotency_key
from shared.queue.job_queue import JobQueue
from shared.queue.lease import JobLeases, Lease, flag_cancelled
from shared.queue.recovery import recover_jobs
from shared.queue.snapshot import QueuePosition
from shared.registry.directory import Directory
from shared.settings.fields import Settings
from shared.wire.job import Job, JobKind, Priority
from tests.contract.job_examples import EVENTS, REPLICAS
from tests.contract.redis_state import assert_state_after
from tests.contract.replica_parts import REPLICA_ID, run_job, serving
from tests.support.jobs import completion_job
from worker.replica.attempt import Attempt
from worker.replica.heartbeat import Heartbeat
from worker.replica.poison import remember
from worker.replica.publisher import Publisher
from worker.replica.tasks import generate

_TTL_S = 1200
"""What the processes give `JobQueue`: the longest life of a request and of its log."""
_LIMITS = Limits(requests_per_minute=60, tokens_per_minute=6000, max_open_requests=9)
_CHANNEL = "llmis:hub:w"


def _job(**fields: Any) -> Job:
    return completion_job(**{"id": "req-1", "max_tokens": 5, "owner": "key-1", **fields})


class _Control:
    """Celery's remote control, in a service without workers."""

    def __init__(self) -> None:
        self.control = self

    def revoke(self, *_: Any, **__: Any) -> None:
        pass


def _dispatcher(server: redis.Redis) -> Dispatcher:
    return Dispatcher(Settings(), server, _Control(), Hub(server), Directory(server))  # type: ignore[arg-type]


def _leases(server: redis.Redis, running_ttl_s: int) -> JobLeases:
    return JobLeases(server, REPLICA_ID, job_ttl_s=600, running_ttl_s=running_ttl_s)


# -- jobs: the web tier --------------------------------------------------------------------------


@pytest.mark.parametrize("priority", Priority)
def test_admit(server: redis.Redis, priority: Priority) -> None:
    key = IdempotencyKey(idempotency_key("key-1", "d"), "fingerprint")

    def step() -> None:
        _dispatcher(server).submit(_job(priority=priority), _LIMITS, key)

    assert_state_after(server, f"ttl/admit-{priority.value}.json", step)


def test_admit_without_limits_or_idempotency_key(server: redis.Redis) -> None:
    queue = JobQueue(server, _TTL_S)
    assert_state_after(
        server, "ttl/admit-plain.json", lambda: queue.admit(_job(), _CHANNEL, Limits(), 10)
    )


def test_leave_the_queue(server: redis.Redis) -> None:
    def step() -> None:
        dispatcher = _dispatcher(server)
        dispatcher.release(dispatcher.submit(_job(), _LIMITS))

    assert_state_after(server, "ttl/leave.json", step)


def test_leave_a_job_that_may_run(server: redis.Redis) -> None:
    queue, job = JobQueue(server, _TTL_S), _job()

    def step() -> None:
        queue.admit(job, _CHANNEL, Limits(), 10)
        queue.begin(job)
        queue.leave(job, _CHANNEL, None)

    assert_state_after(server, "ttl/leave-running.json", step)


@pytest.mark.parametrize("has_begun", [True, False])
def test_come_back(server: redis.Redis, has_begun: bool) -> None:
    queue, job = JobQueue(server, _TTL_S), _job()

    def step() -> None:
        admission = queue.admit(job, _CHANNEL, Limits(), 10)
        assert admission.position is not None
        if has_begun:
            server.set(names.lease_key(job.id), Lease(REPLICA_ID).encode(), ex=5)
        queue.leave(job, _CHANNEL, QueuePosition(*admission.position))
        assert queue.join(job, _CHANNEL)

    assert_state_after(server, f"ttl/join-{'begun' if has_begun else 'waiting'}.json", step)


def test_queue_again(server: redis.Redis) -> None:
    """With times to live that were nearly over before."""
    job = _job()

    def step() -> None:
        JobQueue(server, 60).admit(job, _CHANNEL, Limits(), 10)
        server.set(names.lease_key(job.id), Lease(REPLICA_ID).encode(), ex=60)
        JobQueue(server, _TTL_S).requeue(job, _CHANNEL)

    assert_state_after(server, "ttl/requeue.json", step)


def test_take_turns(server: redis.Redis) -> None:
    queue = JobQueue(server, _TTL_S)

    def step() -> None:
        queue.admit(_job(priority=Priority.BATCH), _CHANNEL, Limits(), 10)
        assert queue.take_turns("m", 0.0) == 0
        assert queue.take_turns("m", 0.0) == 1

    assert_state_after(server, "ttl/turn.json", step)


def test_cancel(server: redis.Redis) -> None:
    def step() -> None:
        dispatcher = _dispatcher(server)
        dispatcher.submit(_job(), Limits())
        dispatcher.cancel("req-1", "key-1")

    assert_state_after(server, "ttl/cancel.json", step)


# -- jobs: replicas ------------------------------------------------------------------------------


@pytest.mark.parametrize("is_over", [False, True])
def test_begin_and_settle(server: redis.Redis, is_over: bool) -> None:
    queue, job = JobQueue(server, _TTL_S), _job(charged_tokens=10)

    def step() -> None:
        queue.admit(job, _CHANNEL, _LIMITS, 10)
        queue.begin(job)
        if is_over:
            queue.settle(job, 3)

    assert_state_after(server, f"ttl/{'settle' if is_over else 'begin'}.json", step)


def test_leases(server: redis.Redis) -> None:
    first, second = Lease(REPLICA_ID), Lease(REPLICA_ID, 1)

    def step() -> None:
        for job_id in ("taken", "taken-over", "released"):
            server.set(names.job_key(job_id), b"", ex=60)
            assert _leases(server, 7).take(job_id, None, first).lease == first
        assert _leases(server, 9).take("taken-over", first, second).lease == second
        _leases(server, 11).release("released", first)
        flag_cancelled(server, "cancelled", 13)

    assert_state_after(server, "ttl/leases.json", step)


@pytest.mark.parametrize("kind", ["completion", "tokenize", "unreadable"])
def test_run_a_job(server: redis.Redis, kind: str) -> None:
    settings = Settings()
    job = _job(kind=JobKind.TOKENIZE if kind == "tokenize" else JobKind.COMPLETION)

    def step() -> None:
        JobQueue(server, _TTL_S).admit(job, _CHANNEL, _LIMITS, 10)
        if kind == "unreadable":
            server.set("llmis:job:req-1", b"\xc1", keepttl=True)
        with serving(server, settings):
            run_job(job.id)

    assert_state_after(server, f"ttl/run-{kind}.json", step)


def test_run_a_job_whose_reader_has_left(
    server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "send_event", lambda *_, **__: None)  # there is no broker
    job = _job()

    def step() -> None:
        queue = JobQueue(server, _TTL_S)
        queue.admit(job, _CHANNEL, _LIMITS, 10)
        queue.leave(job, _CHANNEL, None)
        with serving(server, Settings()), pytest.raises(Ignore):
            run_job(job.id)

    assert_state_after(server, "ttl/run-left.json", step)


def test_run_a_job_on_a_draining_replica(server: redis.Redis) -> None:
    job = _job()

    def step() -> None:
        JobQueue(server, _TTL_S).admit(job, _CHANNEL, _LIMITS, 10)
        with serving(server, Settings(), is_draining=True):
            run_job(job.id)

    assert_state_after(server, "ttl/run-draining.json", step)


def test_rescue(server: redis.Redis) -> None:
    queue, job = JobQueue(server, _TTL_S), _job()

    def step() -> None:
        queue.admit(job, _CHANNEL, _LIMITS, 10)
        server.set(names.lease_key(job.id), Lease(REPLICA_ID).encode(), ex=60)
        queue.begin(job)
        server.sadd(HOLDERS, REPLICA_ID)
        server.sadd(held_key(REPLICA_ID), job.id)
        assert recover_jobs(server, queue, REPLICA_ID) == 1

    assert_state_after(server, "ttl/rescue.json", step)


@pytest.mark.parametrize("end", ["running", "ended", "ended-large"])
def test_the_log_of_a_job(server: redis.Redis, end: str) -> None:
    """One with vectors is read at once, and goes soon."""
    settings = Settings()
    run = Attempt(_job(kind=JobKind.EMBEDDING if end == "ended-large" else JobKind.CHAT), 0, [])

    def step() -> None:
        publisher = Publisher(server, settings.job_ttl_s, settings.request_timeout_s)
        publisher.send([(run, EVENTS["event-start"])])
        if end != "running":
            publisher.send([(run, EVENTS["event-end-full"])])

    assert_state_after(server, f"ttl/log-{end}.json", step)


def test_a_job_whose_readers_are_gone(server: redis.Redis) -> None:
    settings, record = Settings(), REPLICAS["replica-full"]
    run = Attempt(_job(), 0, [], channels=(_CHANNEL,))
    heartbeat = Heartbeat(
        server,
        lambda: record,
        Publisher(server, settings.job_ttl_s, settings.request_timeout_s),
        settings,
        take_turns=lambda: None,
        on_wedged=lambda: None,
    )

    def step() -> None:
        assert heartbeat._is_unread(run, {_CHANNEL})

    assert_state_after(server, "ttl/unread.json", step)


def test_requests_that_failed_with_an_engine(server: redis.Redis) -> None:
    assert_state_after(server, "ttl/suspects.json", lambda: remember(server, "m", {"abc": 1}))
