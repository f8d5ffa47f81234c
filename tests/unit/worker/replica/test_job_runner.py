"""One job in a replica, on a real Redis: who may run it, what stops it, what is left of it."""

import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import redis

from shared import names
from shared.clock import clock
from shared.limits import Limits
from shared.queue import lease
from shared.queue.job_queue import JobQueue
from shared.queue.lease import Lease
from shared.registry import records
from shared.settings.fields import Settings
from shared.wire import codec
from shared.wire.events import Delta, Event, Failed, Finished, Started, Timings, Usage
from shared.wire.job import Job
from tests.contract.job_examples import REPLICAS
from tests.contract.replica_parts import REPLICA_ID, serving
from tests.support.jobs import completion_job
from worker.replica import job_runner, leasing, tasks
from worker.replica.context import ReplicaContext

_STARTED = Started(0, 0, 1)
_TOKEN = Delta(1, 0, 0, "a", [97])
_FINISHED = Finished(2, 0, Usage(1, 1), Timings(0, 0, 0))


@pytest.fixture
def replica(server: redis.Redis) -> Iterator[ReplicaContext]:
    """A replica whose engine answers "ab"."""
    with serving(server, Settings()):
        assert tasks._replica is not None
        yield tasks._replica


@pytest.fixture
def job(server: redis.Redis) -> Job:
    admitted = completion_job(max_tokens=5)
    assert JobQueue(server, 600).admit(admitted, "channel", Limits(), 10).reject_reason is None
    return admitted


def _log(server: redis.Redis) -> list[Event]:
    payloads: Any = server.lrange(names.log_key("j"), 0, -1)
    return [codec.decode_event(payload) for payload in payloads]


def _text(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def _write_log(server: redis.Redis, *events: Event) -> None:
    server.rpush(names.log_key("j"), *[codec.encode_event(event) for event in events])


def _leased_by(server: redis.Redis, found: Lease) -> None:
    server.set(names.lease_key("j"), found.encode())


def _beating(server: redis.Redis, replica_id: str) -> None:
    """A record that does not expire within the test."""
    record: Any = msgspec.structs.replace(REPLICAS["replica-full"], id=replica_id)
    records.announce(server, record)
    server.persist(names.replica_key(replica_id))


def test_a_job_runs_to_its_end_and_is_not_held_any_more(
    server: redis.Redis, replica: ReplicaContext, job: Job
) -> None:
    assert job_runner.run(replica, job.id) == "finished"
    events = _log(server)
    assert _text(events) == "ab"
    assert isinstance(events[-1], Finished)
    assert not server.exists(names.held_key(REPLICA_ID), names.running_key(job.owner))
    assert codec.decode_job(server.get(names.job_key(job.id))).is_over  # type: ignore[arg-type]


def test_a_second_delivery_of_an_ended_job_runs_nothing(
    server: redis.Redis, replica: ReplicaContext, job: Job
) -> None:
    job_runner.run(replica, job.id)
    before = _log(server)
    assert job_runner.run(replica, job.id) == "duplicate"
    assert _log(server) == before
    assert not server.exists(names.held_key(REPLICA_ID))


def test_a_job_that_is_gone_has_expired(server: redis.Redis, replica: ReplicaContext) -> None:
    assert job_runner.run(replica, "j") == "expired"
    assert not server.exists(names.held_key(REPLICA_ID))


def test_a_job_of_a_live_replica_stays_there_and_counts_as_running(
    server: redis.Redis, replica: ReplicaContext, job: Job
) -> None:
    _beating(server, "other")
    _leased_by(server, Lease("other"))
    assert job_runner.run(replica, job.id) == "duplicate"
    assert lease.read(server, job.id) == Lease("other")
    assert server.zscore(names.running_key(job.owner), job.id) is not None
    assert server.smembers(names.held_key("other")) == {b"j"}
    assert not server.exists(names.held_key(REPLICA_ID))


@pytest.mark.parametrize("holder", ["dead", ""])
def test_a_job_of_a_dead_replica_is_resumed_behind_its_log(
    server: redis.Redis, replica: ReplicaContext, job: Job, holder: str
) -> None:
    _beating(server, REPLICA_ID)  # or all records might be gone, as after an outage
    _leased_by(server, Lease(holder))
    _write_log(server, _STARTED, _TOKEN)
    replica.loop._engine.scripts["j"] = ["b"]  # type: ignore[attr-defined]
    assert job_runner.run(replica, job.id) == "finished"
    assert lease.read(server, job.id) == Lease(REPLICA_ID, 1, 2, 1)
    events = _log(server)
    assert [event.seq for event in events] == list(range(len(events)))
    assert _text(events) == "ab"
    assert events[-1].attempt == 1


def test_deaths_without_a_token_are_counted_up_to_the_limit(
    server: redis.Redis, replica: ReplicaContext, job: Job
) -> None:
    _beating(server, REPLICA_ID)
    _write_log(server, _STARTED)
    _leased_by(server, Lease("dead", 1, 0, 0, 1))
    assert job_runner.run(replica, job.id) == "request_quarantined"
    found = lease.read(server, job.id)
    assert found is not None and found.num_fruitless == 2


def test_a_log_that_has_ended_is_not_continued(
    server: redis.Redis, replica: ReplicaContext, job: Job
) -> None:
    """Redis has lost the lease."""
    ended = Failed(1, 0, 500, "engine_error", "no")
    _write_log(server, _STARTED, ended)
    assert job_runner.run(replica, job.id) == "duplicate"
    assert _log(server) == [_STARTED, ended]
    assert not server.exists(names.running_key(job.owner), names.waiting_key(job.owner))


def test_a_job_that_was_cancelled_before_gets_its_end(
    server: redis.Redis, replica: ReplicaContext, job: Job
) -> None:
    lease.flag_cancelled(server, job.id, 60)
    assert job_runner.run(replica, job.id) == "request_cancelled"
    assert [type(event) for event in _log(server)] == [Failed]


def test_a_job_without_readers_waits_for_one(
    server: redis.Redis, replica: ReplicaContext, job: Job
) -> None:
    replica.queue.leave(job, "channel", None)
    assert job_runner.run(replica, job.id) == "client_gone"
    assert _log(server) == []
    assert lease.read(server, job.id) == Lease("")
    assert not codec.decode_job(server.get(names.job_key(job.id))).is_over  # type: ignore[arg-type]


def test_a_reader_that_comes_back_too_late_has_the_job_queued_again(
    server: redis.Redis, replica: ReplicaContext, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica.queue.leave(job, "channel", None)
    check = replica.publisher.emit

    def emit(events: Any) -> None:
        replica.queue.join(job, "back")
        check(events)

    monkeypatch.setattr(replica.publisher, "emit", emit)
    recover, was_free = replica.queue.recover, []

    def recover_if_free(job: Job, holder: str) -> Any:
        """This replica may pop the message at once: the job must not count as in flight here."""
        was_free.append(replica.in_flight.begin(job.id))
        replica.in_flight.end(job.id)
        return recover(job, holder)

    monkeypatch.setattr(replica.queue, "recover", recover_if_free)
    lists = names.priority_lists(job.model)
    server.delete(*lists)
    assert job_runner.run(replica, job.id) == "client_gone"
    assert was_free == [True]
    assert server.llen(lists[0]) >= 1
    assert server.zscore(names.waiting_key(job.owner), job.id) is not None
    assert not server.exists(names.held_key(REPLICA_ID))


@pytest.mark.parametrize(
    ("flag", "outcome"), [(b"1", "request_cancelled"), (names.LEFT, "client_gone")]
)
def test_a_revocation_that_comes_before_the_job_is_in_the_loop_stops_it(
    server: redis.Redis,
    replica: ReplicaContext,
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
    flag: bytes,
    outcome: str,
) -> None:
    """The loop does not know the job yet, and the flag in Redis has been read before."""
    submit = replica.loop.submit
    replica.loop._engine.scripts["j"] = ["x"] * 10**6  # type: ignore[attr-defined]

    def submit_late(attempt: Any) -> None:
        server.set(names.cancel_key(attempt.id), flag)
        job_runner.stop(replica, attempt.id, flag)
        submit(attempt)

    monkeypatch.setattr(replica.loop, "submit", submit_late)
    assert job_runner.run(replica, job.id) == outcome


def test_a_reader_that_comes_back_before_the_job_is_in_the_loop_keeps_it_running(
    server: redis.Redis, replica: ReplicaContext, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = replica.loop.submit

    def submit_late(attempt: Any) -> None:
        replica.queue.leave(job, "channel", None)
        job_runner.stop(replica, attempt.id, names.LEFT)
        replica.queue.join(job, "channel")
        submit(attempt)

    monkeypatch.setattr(replica.loop, "submit", submit_late)
    assert job_runner.run(replica, job.id) == "finished"
    assert _text(_log(server)) == "ab"


def test_a_revocation_stops_a_job_although_redis_does_not_answer(
    replica: ReplicaContext, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[str] = []
    request = SimpleNamespace(id=job.id, terminate=lambda pool, signal: stopped.append(job.id))

    def flag_cancelled(*_: Any) -> None:
        raise redis.ConnectionError("cut")

    monkeypatch.setattr(lease, "flag_cancelled", flag_cancelled)
    monkeypatch.setattr(tasks.worker_state, "reserved_requests", {request.id: request}.values())
    state = SimpleNamespace(consumer=SimpleNamespace(pool=None))
    with pytest.raises(redis.ConnectionError):
        tasks.revoke(state, job.id)
    assert stopped == [job.id]


def test_a_job_that_runs_here_is_not_run_twice(
    server: redis.Redis, replica: ReplicaContext, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: list[str] = []
    submit = replica.loop.submit

    def deliver_again(attempt: Any) -> None:
        outcomes.append(job_runner.run(replica, attempt.id))
        submit(attempt)

    monkeypatch.setattr(replica.loop, "submit", deliver_again)
    assert job_runner.run(replica, job.id) == "finished"
    assert outcomes == ["duplicate"]
    assert _text(_log(server)) == "ab"


def test_a_job_that_cannot_be_read_gets_its_end_and_stays_as_it_is(
    server: redis.Redis, replica: ReplicaContext, job: Job
) -> None:
    server.set(names.job_key(job.id), b"\xc1", keepttl=True)
    assert job_runner.run(replica, job.id) == "server_error"
    assert [type(event) for event in _log(server)] == [Failed]
    assert server.get(names.job_key(job.id)) == b"\xc1"
    assert not server.exists(names.held_key(REPLICA_ID))


@pytest.mark.parametrize(
    ("holder", "log"),
    [("alive", (_STARTED, _TOKEN)), ("alive", (_STARTED, _TOKEN, _FINISHED)),
     ("dead", (_STARTED, _TOKEN, _FINISHED)), ("", (_STARTED, _TOKEN, _FINISHED))],
)  # fmt: skip
def test_a_job_that_cannot_be_read_is_left_to_a_live_replica_and_ends_once(
    server: redis.Redis, replica: ReplicaContext, job: Job, holder: str, log: tuple[Event, ...]
) -> None:
    _beating(server, REPLICA_ID)
    _beating(server, "alive")
    _leased_by(server, Lease(holder))
    _write_log(server, *log)
    server.set(names.job_key(job.id), b"\xc1", keepttl=True)
    assert job_runner.run(replica, job.id) == "duplicate"
    assert _log(server) == list(log)
    assert lease.read(server, job.id) == Lease(holder)
    assert not server.exists(names.held_key(REPLICA_ID))


@pytest.mark.parametrize("holder", ["dead", ""])
def test_a_job_that_cannot_be_read_is_taken_over_to_get_its_end(
    server: redis.Redis, replica: ReplicaContext, job: Job, holder: str
) -> None:
    _beating(server, REPLICA_ID)
    _leased_by(server, Lease(holder))
    _write_log(server, _STARTED, _TOKEN)
    server.set(names.job_key(job.id), b"\xc1", keepttl=True)
    assert job_runner.run(replica, job.id) == "server_error"
    assert lease.read(server, job.id) == Lease(REPLICA_ID, 1, 2, 1)
    end = _log(server)[2]
    assert isinstance(end, Failed) and (end.seq, end.attempt) == (2, 1)


def test_a_draining_replica_ends_a_job_that_cannot_be_read_behind_its_log(
    server: redis.Redis, job: Job
) -> None:
    server.set(names.job_key(job.id), b"\xc1", keepttl=True)
    _write_log(server, _STARTED, _TOKEN)
    with serving(server, Settings(), is_draining=True):
        assert tasks._replica is not None
        assert job_runner.run(tasks._replica, job.id) == "server_error"
    assert [type(event) for event in _log(server)] == [Started, Delta, Failed]


def test_a_job_whose_log_cannot_be_read_gets_its_end_and_is_settled(
    server: redis.Redis, replica: ReplicaContext, job: Job
) -> None:
    server.rpush(names.log_key(job.id), b"\xc1")
    assert job_runner.run(replica, job.id) == "server_error"
    payloads: Any = server.lrange(names.log_key(job.id), 0, -1)
    assert payloads[0] == b"\xc1" and len(payloads) == 2
    assert isinstance(codec.decode_event(payloads[1]), Failed)
    assert job_runner.run(replica, job.id) == "duplicate"
    assert not server.exists(names.held_key(REPLICA_ID), names.running_key(job.owner))


def test_a_draining_replica_returns_the_job(server: redis.Redis, job: Job) -> None:
    with serving(server, Settings(), is_draining=True):
        assert tasks._replica is not None
        assert job_runner.run(tasks._replica, job.id) == "handed_over"
    assert not server.exists(names.lease_key(job.id), names.held_key(REPLICA_ID))
    assert server.llen(names.priority_lists(job.model)[0]) == 1


def test_an_answer_that_is_lost_changes_nothing(
    server: redis.Redis, replica: ReplicaContext, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call of each script is applied, and its answer lost."""
    lost: set[str] = set()

    for name in ("_take", "_end"):
        script = getattr(replica.leases, name)

        def call(*, keys: Any, args: Any, name: str = name, script: Any = script) -> Any:
            reply = script(keys=keys, args=args)
            if name not in lost:
                lost.add(name)
                raise redis.ConnectionError("cut")
            return reply

        monkeypatch.setattr(replica.leases, name, call)
    assert job_runner.run(replica, job.id) == "finished"
    assert lost == {"_take", "_end"}
    assert _text(_log(server)) == "ab"
    assert lease.read(server, job.id) == Lease(REPLICA_ID)
    assert not server.exists(names.running_key(job.owner), names.held_key(REPLICA_ID))


def test_a_full_redis_lets_a_job_end(
    server: redis.Redis, replica: ReplicaContext, job: Job
) -> None:
    server.config_set("maxmemory", 1)
    assert job_runner.run(replica, job.id) == "finished"
    assert not server.exists(names.held_key(REPLICA_ID))


def test_after_an_outage_a_holder_gets_time_to_beat_again(
    server: redis.Redis, replica: ReplicaContext, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No replica has a record, not even this one."""
    _leased_by(server, Lease("other"))
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        _beating(server, "other")

    monkeypatch.setattr(leasing.time, "sleep", sleep)
    assert job_runner.run(replica, job.id) == "duplicate"
    assert len(waits) == 1
    assert lease.read(server, job.id) == Lease("other")


def test_of_two_heirs_one_takes_over(
    server: redis.Redis, replica: ReplicaContext, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    _beating(server, REPLICA_ID)
    _leased_by(server, Lease("dead"))
    is_alive = leasing._is_alive

    def another_is_faster(context: ReplicaContext, replica_id: str) -> bool:
        answer = is_alive(context, replica_id)
        _leased_by(server, Lease("heir", 1))
        return answer

    monkeypatch.setattr(leasing, "_is_alive", another_is_faster)
    assert job_runner.run(replica, job.id) == "duplicate"
    assert lease.read(server, job.id) == Lease("heir", 1)
    assert server.smembers(names.held_key("heir")) == {b"j"}


def test_an_error_while_preparing_ends_the_job(
    server: redis.Redis, replica: ReplicaContext, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Job) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(replica.prompts, "sequences", fail)
    assert job_runner.run(replica, job.id) == "server_error"
    (event,) = _log(server)
    assert isinstance(event, Failed) and event.status == 500


@pytest.mark.parametrize("ahead_s", [40, 700, -700])
def test_a_job_is_as_old_as_redis_says_whatever_the_clock_of_the_host(
    server: redis.Redis,
    replica: ReplicaContext,
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
    ahead_s: int,
) -> None:
    clock.measure(server)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + ahead_s)
    assert job_runner.run(replace(replica, max_queue_s=10.0), job.id) == "finished"


def test_a_clock_that_was_set_back_since_the_last_beat_is_asked_again(
    server: redis.Redis, replica: ReplicaContext, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.measure(server)
    assert clock._offset is not None
    monkeypatch.setattr(clock, "_offset", clock._offset + 700)
    assert job_runner.run(replica, job.id) == "finished"
