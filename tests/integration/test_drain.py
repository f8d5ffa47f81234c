"""Replicas, agents and web processes are told to stop, and the work goes on elsewhere."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import msgspec
import psutil

from shared import names
from shared.limits import Limits
from shared.queue.job_queue import JobQueue
from shared.queue.lease import Lease
from shared.wire import codec
from shared.wire.codec import encode
from shared.wire.events import Event
from shared.wire.job import Priority, Sampling
from shared.wire.records import StopOrder
from tests.conftest import Service, running_service, wait_for
from tests.support.admin_client import Completion, load, unload, wait_for_state
from tests.support.counter_model import expected_text
from tests.support.jobs import completion_job, is_finished
from tests.support.paused_replica import slowed, stopped

_LONG = 2000
"""Tokens of a stream or job: more than a slowed replica makes before it stands still."""


def _pair(service: Service, **fields: Any) -> None:
    body = {"replicas": 2, "slots": 8, "context_length": 4096, **fields}
    assert load(service, "pair", **body)[0] == 200


def _holder(service: Service, request_id: str) -> str:
    """Id of the replica that has the job."""
    payload = service.redis.get(names.lease_key(request_id))
    return str(json.loads(payload)["holder"]) if payload else ""


def _process(service: Service, replica_id: str) -> psutil.Process:
    (pid,) = service.pids("worker.replica", replica_id)
    return psutil.Process(pid)


def _attempt(service: Service, request_id: str) -> int:
    """How often the job was begun before."""
    return int(json.loads(service.redis.get(names.lease_key(request_id)))["attempt"])


def _request_id(stream: Completion) -> str:
    return str(stream.response.headers["x-request-id"])


def _background_job(service: Service, job_id: str, num_tokens: int, model_name: str) -> None:
    """Queue a job that nobody reads."""
    job = completion_job(
        id=job_id,
        model=model_name,
        prompts=["5"],
        max_tokens=num_tokens,
        sampling=Sampling(temperature=0.0),
        priority=Priority.BATCH,
        owner="anonymous",
    )
    admission = JobQueue(service.redis, 600).admit(job, "nobody", Limits(), 1000)
    assert admission.reject_reason is None


def _log(service: Service, job_id: str) -> list[Event]:
    payloads = service.redis.lrange(names.log_key(job_id), 0, -1)
    return [codec.decode_event(payload) for payload in payloads]


def _is_finished(service: Service, job_id: str) -> bool:
    return is_finished(service.redis, job_id)


def _text(service: Service, job_id: str) -> str:
    return "".join(getattr(event, "text", "") for event in _log(service, job_id))


def test_a_replica_that_is_told_to_stop_hands_its_streams_over_at_once(
    own_service: Service,
) -> None:
    _pair(own_service)
    pids = own_service.pids("worker.replica", "pair@")
    with slowed(*pids):
        streams = [Completion(own_service, "pair", _LONG, n).read(1) for n in range(4)]
    request_id = _request_id(streams[0])
    with stopped(*pids):
        victim = _holder(own_service, request_id)
        process = _process(own_service, victim)
        # Who does not read is cut off some day.
        readers = [threading.Thread(target=stream.read) for stream in streams]
        for reader in readers:
            reader.start()
        process.send_signal(signal.SIGTERM)
    with slowed(*set(pids) - {process.pid}):
        wait_for(lambda: _holder(own_service, request_id) != victim, "it has handed over")
        wait_for(lambda: _is_gone(process), "it has stopped")
        assert not _is_finished(own_service, request_id), "it did not wait"
    for reader in readers:
        reader.join()
    assert [s.text for s in streams] == [expected_text(n, _LONG) for n in range(4)]
    assert not [s.error for s in streams if s.error]
    assert _attempt(own_service, request_id) >= 1, "another replica went on with it"


def _is_gone(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_the_only_replica_lets_its_work_end_within_the_grace_time(own_service: Service) -> None:
    _load_lone(own_service)
    (pid,) = own_service.pids("worker.replica", "lone@")
    with slowed(pid):
        stream = Completion(own_service, "lone", _LONG).read(1)
    with stopped(pid):
        request_id = _request_id(stream)
        holder = _holder(own_service, request_id)
        assert not _is_finished(own_service, request_id)
        _stop(own_service, pid, holder, grace_s=120.0)
    assert stream.read().text == expected_text(5, _LONG)
    assert _holder(own_service, request_id) == holder


def test_the_only_replica_hands_over_what_takes_longer_than_the_grace_time(
    own_service: Service,
) -> None:
    _load_lone(own_service)
    (pid,) = own_service.pids("worker.replica", "lone@")
    with slowed(pid):
        stream = Completion(own_service, "lone", _LONG).read(1)
    with stopped(pid):
        holder = _holder(own_service, _request_id(stream))
        _stop(own_service, pid, holder, grace_s=0.0)
    assert stream.read().text == expected_text(5, _LONG)
    assert _holder(own_service, _request_id(stream)) != holder


def _load_lone(service: Service) -> None:
    """A model with one replica."""
    assert load(service, "lone", context_length=8192)[0] == 200


def _stop(service: Service, pid: int, replica_id: str, grace_s: float) -> None:
    """Tell a replica that stands still to stop."""
    order = StopOrder(grace_s, "test", hands_over=True)
    service.redis.set(names.stop_key(replica_id), encode(order), ex=300)
    os.kill(pid, signal.SIGTERM)


def test_a_job_without_a_reader_outlives_its_replica(own_service: Service) -> None:
    _pair(own_service)
    pids = own_service.pids("worker.replica", "pair@")
    with slowed(*pids):
        _background_job(own_service, "unread", _LONG, "pair")
        wait_for(lambda: own_service.redis.llen(names.log_key("unread")) > 5, "it runs")
    with stopped(*pids):
        assert not _is_finished(own_service, "unread")
        _process(own_service, _holder(own_service, "unread")).kill()
    wait_for(lambda: _is_finished(own_service, "unread"), "it is finished", 120)
    assert _text(own_service, "unread") == expected_text(5, _LONG)
    assert _attempt(own_service, "unread") >= 1


def test_what_a_host_that_is_gone_has_left_is_rescued_but_not_parked_jobs(
    own_service: Service,
) -> None:
    """Its agent has died with it: only Redis tells what its replica had."""
    client, replica_id = own_service.redis, "counter@gone-1-1"
    for job_id in ("parked", "open"):
        _background_job(own_service, job_id, 50, "elsewhere")
        job = codec.decode_job(client.get(names.job_key(job_id)))
        job = msgspec.structs.replace(job, model="counter")
        client.set(names.job_key(job_id), codec.encode_job(job))
        client.set(names.lease_key(job_id), Lease(replica_id).encode())
        client.sadd(names.held_key(replica_id), job_id)
    client.set(names.cancel_key("parked"), names.LEFT)
    client.sadd(names.HOLDERS, replica_id)
    wait_for(lambda: _is_finished(own_service, "open"), "the other one is finished")
    assert _text(own_service, "open") == expected_text(5, 50)
    wait_for(lambda: not client.sismember(names.HOLDERS, replica_id), "it was looked at")
    assert not client.exists(names.held_key(replica_id))
    assert _log(own_service, "parked") == []
    assert client.get(names.cancel_key("parked")) == names.LEFT


def test_unloading_now_still_ends_requests_with_an_error(own_service: Service) -> None:
    """They fill nearly the whole context, so that none ends by itself before."""
    _pair(own_service, context_length=32768)
    with slowed(*own_service.pids("worker.replica", "pair@")):
        streams = [Completion(own_service, "pair", 32_000, n).read(1) for n in range(4)]
    assert unload(own_service, "pair", mode="now")[0] == 200
    assert {s.read().error["code"] for s in streams} == {"model_unloaded"}


def test_what_was_loaded_and_what_did_not_end_come_back_after_a_restart(tmp_path: Path) -> None:
    """The replica stands still until it is to stop, and has hardly any grace time then."""
    environ = {"LLMIS_DRAIN_GRACE_S": "0.1"}
    with running_service(tmp_path, small=False, environ=environ) as service:
        assert load(service, "kept", context_length=8192, pin=True)[0] == 200
        replica = service.pids("worker.replica", "kept@")[0]
        with slowed(replica):
            _background_job(service, "unread", _LONG, "kept")
            wait_for(lambda: service.redis.llen(names.log_key("unread")) > 5, "it runs", 60)
        with stopped(replica):
            assert not _is_finished(service, "unread")
            service.process.send_signal(signal.SIGTERM)
            wait_for(lambda: _is_told_to_stop(replica), "the replica is to stop", 60)
        service.process.wait(60)
    with running_service(tmp_path, small=False) as service:
        wait_for(lambda: _is_finished(service, "unread"), "it is finished", 120)
        assert _text(service, "unread") == expected_text(5, _LONG)
        assert _attempt(service, "unread") >= 1
        assert wait_for_state(service, "kept", "ready")["pin"]
        assert Completion(service, "kept", 5).read().text == expected_text(5, 5)


def _is_told_to_stop(pid: int) -> bool:
    """Whether SIGTERM waits for a process that stands still, or the process is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    pending = int(status.split("ShdPnd:")[1].split()[0], 16)
    return bool(pending & 1 << (signal.SIGTERM - 1))
