"""Replicas, agents and web processes are told to stop, and the work goes on elsewhere."""

import json
import signal
import threading
from pathlib import Path
from typing import Any

import msgspec
import psutil

from shared import messages, names
from shared.claims import Claim
from shared.job_queue import JobQueue
from shared.lifecycle import StopOrder, encode
from shared.limits import Limits
from shared.messages import Finished, Job, JobKind, Priority, Sampling
from tests.admin_client import Completion, load, unload
from tests.conftest import Service, running_service, wait_for
from tests.counter_model import expected_text

_LONG = 14_000
"""Tokens: seconds of work."""


def _pair(service: Service, **fields: Any) -> None:
    body = {"replicas": 2, "slots": 8, "context_length": 16384, **fields}
    assert load(service, "pair", **body)[0] == 200


def _holder(service: Service, request_id: str) -> str:
    """Id of the replica that has the job."""
    payload = service.redis.get(names.claim_key(request_id))
    return str(json.loads(payload)["holder"]) if payload else ""


def _process(service: Service, replica_id: str) -> psutil.Process:
    (pid,) = service.pids("worker.replica", replica_id)
    return psutil.Process(pid)


def _request_id(stream: Completion) -> str:
    return str(stream.response.headers["x-request-id"])


def _background_job(service: Service, job_id: str, num_tokens: int, model_name: str) -> None:
    """Queue a job that nobody reads."""
    job = Job(
        id=job_id,
        model=model_name,
        kind=JobKind.COMPLETION,
        prompts=["5"],
        max_tokens=num_tokens,
        sampling=Sampling(temperature=0.0),
        priority=Priority.BATCH,
        owner="anonymous",
        created_at=0.0,
        deadline_at=2e9,
    )
    admission = JobQueue(service.redis, 600).admit(job, "nobody", Limits(), 1000)
    assert admission.refusal is None


def _log(service: Service, job_id: str) -> list[messages.Event]:
    payloads = service.redis.lrange(names.log_key(job_id), 0, -1)
    return [messages.decode_event(payload) for payload in payloads]


def _is_finished(service: Service, job_id: str) -> bool:
    last = service.redis.lindex(names.log_key(job_id), -1)
    return bool(last) and isinstance(messages.decode_event(last), Finished)


def _text(service: Service, job_id: str) -> str:
    return "".join(getattr(event, "text", "") for event in _log(service, job_id))


def test_a_replica_that_is_told_to_stop_hands_its_streams_over_at_once(
    own_service: Service,
) -> None:
    _pair(own_service)
    streams = [Completion(own_service, "pair", _LONG, n).read(3) for n in range(4)]
    victim = _holder(own_service, _request_id(streams[0]))
    process = _process(own_service, victim)
    # Who does not read is cut off some day.
    readers = [threading.Thread(target=stream.read) for stream in streams]
    for reader in readers:
        reader.start()
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: not psutil.pid_exists(process.pid) or _is_zombie(process), "it has stopped")
    assert not all(_is_finished(own_service, _request_id(s)) for s in streams), "it did not wait"
    for reader in readers:
        reader.join()
    assert [s.text for s in streams] == [expected_text(n, _LONG) for n in range(4)]
    assert not [s.error for s in streams if s.error]
    attempts = own_service.redis.get(names.claim_key(_request_id(streams[0])))
    assert json.loads(attempts)["attempt"] >= 1, "another replica went on with it"


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_the_only_replica_lets_its_work_end_within_the_grace_time(own_service: Service) -> None:
    stream = Completion(own_service, "counter", 1500).read(2)
    request_id = _request_id(stream)
    holder = _holder(own_service, request_id)
    _process(own_service, holder).send_signal(signal.SIGTERM)
    assert stream.read().text == expected_text(5, 1500)
    assert _holder(own_service, request_id) == holder


def test_the_only_replica_hands_over_what_takes_longer_than_the_grace_time(
    own_service: Service,
) -> None:
    assert load(own_service, "slow", context_length=30000)[0] == 200
    stream = Completion(own_service, "slow", 29000).read(2)
    holder = _holder(own_service, _request_id(stream))
    order = StopOrder(0.0, "test", hands_over=True)
    own_service.redis.set(names.stop_key(holder), encode(order), ex=60)
    _process(own_service, holder).send_signal(signal.SIGTERM)
    assert stream.read().text == expected_text(5, 29000)
    assert _holder(own_service, _request_id(stream)) != holder


def test_a_job_without_a_reader_outlives_its_replica(own_service: Service) -> None:
    _pair(own_service)
    _background_job(own_service, "unread", _LONG, "pair")
    wait_for(lambda: own_service.redis.llen(names.log_key("unread")) > 5, "it runs")
    _process(own_service, _holder(own_service, "unread")).kill()
    wait_for(lambda: _is_finished(own_service, "unread"), "it is finished", 60)
    assert _text(own_service, "unread") == expected_text(5, _LONG)


def test_what_a_host_that_is_gone_has_left_is_rescued_but_not_parked_jobs(
    own_service: Service,
) -> None:
    """Its agent has died with it: only Redis tells what its replica had."""
    client, replica_id = own_service.redis, "counter@gone-1-1"
    for job_id in ("parked", "open"):
        _background_job(own_service, job_id, 50, "elsewhere")
        job = messages.decode_job(client.get(names.job_key(job_id)))
        job = msgspec.structs.replace(job, model="counter")
        client.set(names.job_key(job_id), messages.encode_job(job))
        client.set(names.claim_key(job_id), Claim(replica_id).encode())
        client.sadd(names.held_key(replica_id), job_id)
    client.set(names.cancel_key("parked"), names.LEFT)
    client.sadd(names.HOLDERS, replica_id)
    wait_for(lambda: _is_finished(own_service, "open"), "the other one is finished", 30)
    assert _text(own_service, "open") == expected_text(5, 50)
    wait_for(lambda: not client.sismember(names.HOLDERS, replica_id), "it was looked at", 30)
    assert not client.exists(names.held_key(replica_id))
    assert _log(own_service, "parked") == []
    assert client.get(names.cancel_key("parked")) == names.LEFT


def test_unloading_now_still_ends_requests_with_an_error(own_service: Service) -> None:
    _pair(own_service)
    streams = [Completion(own_service, "pair", _LONG, n).read(3) for n in range(4)]
    assert unload(own_service, "pair", mode="now")[0] == 200
    assert {s.read().error["code"] for s in streams} == {"model_unloaded"}


def test_what_does_not_end_at_a_shutdown_goes_on_at_the_next_start(tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        assert load(service, "kept", context_length=30000)[0] == 200
        _background_job(service, "unread", 29000, "kept")
        wait_for(lambda: service.redis.llen(names.log_key("unread")) > 5, "it runs")
    with running_service(tmp_path) as service:
        wait_for(lambda: _is_finished(service, "unread"), "it is finished", 60)
        assert _text(service, "unread") == expected_text(5, 29000)
