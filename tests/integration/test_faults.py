"""Processes that die, and a client that nobody can reach any more."""

import http.client
import json
import os
import signal
import socket

from shared import names
from shared.registry import records
from tests.conftest import ENDLESS, Service, wait_for
from tests.support.admin_client import Completion, read_together
from tests.support.counter_model import expected_text
from tests.support.paused_replica import paused


def _complete(service: Service, **body: object) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    payload = {"model": "counter", "prompt": "5", "max_tokens": 5, "temperature": 0, **body}
    connection.request("POST", "/v1/completions", json.dumps(payload))
    return connection.getresponse()


def _text(response: http.client.HTTPResponse) -> str:
    return str(json.loads(response.read())["choices"][0]["text"])


def test_a_killed_web_process_leaves_no_job_running(service: Service) -> None:
    """Its jobs' events reach nobody, so they end after the grace time."""
    payload = json.dumps(
        {"model": "gemma-3-270m", "prompt": "A", "max_tokens": 3500, "temperature": 1, "n": 4,
         "stream": True, "logit_bias": ENDLESS}
    ).encode()  # fmt: skip
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=30)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: [::1]\r\nContent-Length: {len(payload)}\r\n\r\n"
    connection.sendall(head.encode() + payload)
    assert b"data:" in connection.recv(65536) or b"data:" in connection.recv(65536)

    _, *workers = service.pids("gunicorn")
    assert workers, "gunicorn has a worker"
    for pid in workers:
        os.kill(pid, signal.SIGKILL)

    def busy() -> int:
        return sum(r.busy_slots for r in records.read(service.redis) if r.model == "gemma-3-270m")

    wait_for(lambda: busy() == 4, "the choices still run")
    wait_for(lambda: busy() == 0, "the orphaned job is cancelled")
    connection.close()
    wait_for(lambda: _is_ready(service), "a new web process serves")
    assert _text(_complete(service)) == expected_text(5, 5)


def _is_ready(service: Service) -> bool:
    try:
        return _complete(service).status == 200
    except OSError:
        return False


def test_requests_wait_in_the_queue_while_a_killed_replica_starts_again(
    own_service: Service,
) -> None:
    (pid,) = own_service.pids("worker.replica", "counter-small")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not own_service.pids("worker.replica", "counter-small"), "the replica is dead")
    response = _complete(own_service, model="counter-small")
    assert response.status == 200
    assert _text(response) == expected_text(5, 5)


def test_garbage_in_the_registry_blinds_nobody(own_service: Service) -> None:
    client = own_service.redis
    client.set(names.replica_key("junk"), b"\xffjunk", ex=30)
    client.sadd(names.REPLICA_INDEX, "junk")
    (pid,) = own_service.pids("worker.replica", "counter-small")
    os.kill(pid, signal.SIGKILL)
    assert _text(_complete(own_service, model="counter-small")) == expected_text(5, 5)


def test_a_request_fails_with_503_when_no_replica_comes(own_service: Service) -> None:
    """The whole node stands still: neither a replica nor an agent that would start one."""
    (agent,) = own_service.pids("worker.agent")
    (replica,) = own_service.pids("worker.replica", "counter-small")
    for pid in (agent, replica):
        os.kill(pid, signal.SIGSTOP)
    try:
        response = _complete(own_service, model="counter-small")
        assert response.status == 503
        assert json.loads(response.read())["error"]["code"] == "replica_lost"
        assert response.headers["Retry-After"]
    finally:
        for pid in (agent, replica):
            os.kill(pid, signal.SIGCONT)


def test_a_redis_that_restarts_is_bridged(own_service: Service) -> None:
    """The server dies in the middle of a stream; its append-only file has what was written."""
    payload = {"model": "counter", "prompt": "5", "max_tokens": 2000, "temperature": 0}
    connection = http.client.HTTPConnection("127.0.0.1", own_service.port, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps({**payload, "stream": True}))
    response = connection.getresponse()
    first = response.read(200)
    (pid,) = own_service.pids("valkey-server")
    os.kill(pid, signal.SIGTERM)
    lines = (first + response.read()).decode().split("\n")
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    text = "".join(c["choices"][0]["text"] for c in chunks)
    assert text == expected_text(5, 2000)
    wait_for(lambda: _is_ready(own_service), "requests are served again")


def test_a_replica_with_running_jobs_outlives_a_redis_that_is_killed(own_service: Service) -> None:
    replicas = own_service.pids("worker.replica")
    streams = [Completion(own_service, "counter", 2000, start).read(2) for start in range(4)]
    (pid,) = own_service.pids("valkey-server")
    os.kill(pid, signal.SIGKILL)
    assert read_together(streams) == [expected_text(n, 2000) for n in range(4)]
    wait_for(lambda: _is_ready(own_service), "requests are served again")
    assert own_service.pids("worker.replica") == replicas


def test_a_web_process_that_starts_without_redis_waits_for_it(own_service: Service) -> None:
    (server,) = own_service.pids("valkey-server")
    master, worker = own_service.pids("gunicorn")
    os.kill(server, signal.SIGSTOP)
    try:
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: "the start waits for Redis" in own_service.log("web"), "it waits", 60)
    finally:
        os.kill(server, signal.SIGCONT)
    wait_for(lambda: _is_ready(own_service), "requests are served again", 60)
    assert master in own_service.pids("gunicorn")


def test_garbage_on_the_hub_channel_and_in_the_queue_hurts_nobody(own_service: Service) -> None:
    client = own_service.redis
    (channel,) = client.pubsub_channels("llmis:hub:*")
    client.publish(channel, b"\x00garbage")
    client.lpush("model.counter", b"not a celery message")
    assert _text(_complete(own_service)) == expected_text(5, 5)


def test_a_job_that_no_replica_can_read_ends(service: Service) -> None:
    """As one of another version would be, or a damaged one."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    body = json.dumps({"model": "counter", "prompt": "5", "max_tokens": 5})
    key = names.job_key("unreadable")
    with paused(service, "counter"):
        connection.request("POST", "/v1/completions", body, {"x-request-id": "unreadable"})
        wait_for(lambda: service.redis.exists(key), "it is queued")
        service.redis.set(key, b"\x01" + (service.redis.get(key) or b""))
    response = connection.getresponse()
    assert response.status == 500
    assert json.loads(response.read())["error"]["type"] == "server_error"
    assert _text(_complete(service)) == expected_text(5, 5)
