"""A client that goes away frees its slot, wherever its request is."""

import json
import socket
import time
from typing import Any

import pytest

from shared import names
from shared.registry import records
from tests.conftest import ENDLESS, Service, wait_for
from tests.support.raw_http import read_all
from tests.support.sse_reader import Answer

_LONG = {
    "model": "gemma-3-270m",
    "prompt": "Once upon a time",
    "max_tokens": 3000,
    "logit_bias": ENDLESS,
}


def _send(service: Service, request_id: str, **body: Any) -> socket.socket:
    """Send a completion request and return its open socket."""
    payload = json.dumps({**_LONG, "temperature": 0.7, **body}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nx-request-id: {request_id}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=90)
    connection.sendall(head.encode() + payload)
    return connection


def _read_until(connection: socket.socket, marker: bytes, times: int = 1) -> bytes:
    received = b""
    while received.count(marker) < times:
        more = connection.recv(65536)
        assert more, f"closed before {marker!r}: {received!r}"
        received += more
    return received


def _outcome(service: Service, request_id: str, model: str = "gemma-3-270m") -> Any:
    """The replica's line about the finished request, once it is there."""

    def find() -> Any:
        for line in service.log(f"replica-{model}").splitlines():
            if f'"{request_id}"' in line and '"request done"' in line:
                return json.loads(line)
        return None

    return wait_for(find, f"the replica's log line of {request_id}")


def _busy(service: Service, model: str) -> int:
    return sum(r.busy_slots for r in records.read(service.redis) if r.model == model)


def _unique(name: str) -> str:
    return f"{name}-{time.monotonic_ns()}"


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_closed_socket_cancels_a_running_request(service: Service, is_stream: bool) -> None:
    request_id = _unique("close")
    connection = _send(service, request_id, stream=is_stream)
    if is_stream:
        _read_until(connection, b"data:", times=3)
    else:
        wait_for(lambda: _busy(service, "gemma-3-270m") == 1, "the request runs")
    connection.close()
    line = _outcome(service, request_id)
    assert line["outcome"] == "client_gone"
    assert line["completion_tokens"] < 3000
    wait_for(lambda: _busy(service, "gemma-3-270m") == 0, "all slots free")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_closes_its_sending_half_alone_gets_no_answer(
    service: Service, stream: bool
) -> None:
    """It looks like one that is gone. A stream that has begun is broken off."""
    request_id = _unique("half")
    connection = _send(service, request_id, stream=stream)
    received = b""
    if stream:
        received = _read_until(connection, b"data:", times=3)
    else:
        wait_for(lambda: _busy(service, "gemma-3-270m") == 1, "the request runs")
    connection.shutdown(socket.SHUT_WR)
    received += read_all(connection)
    if stream:
        assert b"[DONE]" not in received and not received.endswith(b"\r\n0\r\n\r\n")
    else:
        assert received == b""
    assert _outcome(service, request_id)["outcome"] == "client_gone"


def test_a_closed_socket_cancels_in_the_middle_of_a_long_prefill(service: Service) -> None:
    request_id = _unique("prefill")
    prompt = request_id + " " + " ".join(f"word{i}" for i in range(900))
    connection = _send(service, request_id, prompt=prompt, stream=True)
    wait_for(lambda: _busy(service, "gemma-3-270m") == 1, "the prefill runs")
    connection.close()
    line = _outcome(service, request_id)
    assert line["outcome"] == "client_gone"
    assert line["completion_tokens"] == 0


def test_a_queued_request_whose_client_leaves_is_out_of_the_queue(service: Service) -> None:
    running = [_send(service, _unique("fill"), stream=True) for _ in range(4)]
    for connection in running:
        _read_until(connection, b"data:")
    queued_id = _unique("queued")
    queued = _send(service, queued_id, stream=True)
    wait_for(lambda: service.num_queued("gemma-3-270m"), "the request waits in the queue")
    queued.close()
    wait_for(lambda: not service.num_queued("gemma-3-270m"), "it is out of the queue")
    for connection in running:
        connection.close()
    wait_for(lambda: _busy(service, "gemma-3-270m") == 0, "all slots free")
    assert not service.redis.exists(names.log_key(queued_id)), "no replica has had it"


def test_a_queued_request_that_is_cancelled_by_id_ends_at_once(service: Service) -> None:
    running = [_send(service, _unique("fill"), stream=True) for _ in range(4)]
    for connection in running:
        _read_until(connection, b"data:")
    queued_id = _unique("byhand")
    queued = _send(service, queued_id, stream=True)
    wait_for(lambda: service.num_queued("gemma-3-270m"), "the request waits in the queue")
    _cancel(service, queued_id)
    received = _read_until(queued, b"request_cancelled")
    assert b'"choices"' not in received
    for connection in (queued, *running):
        connection.close()


def test_a_client_that_pipelines_and_leaves_is_noticed(service: Service) -> None:
    request_id = _unique("pipelined")
    connection = _send(service, request_id, stream=True)
    connection.sendall(b"\r\n")
    _read_until(connection, b"data:", times=2)
    connection.close()
    assert _outcome(service, request_id)["outcome"] == "client_gone"


def _cancel(service: Service, request_id: str) -> None:
    canceller = socket.create_connection(("127.0.0.1", service.port), timeout=30)
    path = f"/v1/requests/{request_id}/cancel"
    canceller.sendall(f"POST {path} HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 0\r\n\r\n".encode())
    assert b"200 OK" in _read_until(canceller, b"cancelling")
    canceller.close()


def test_cancelling_by_id_ends_the_stream_with_an_error_event(service: Service) -> None:
    request_id = _unique("byhand")
    connection = _send(service, request_id, stream=True)
    _read_until(connection, b"data:", times=3)
    _cancel(service, request_id)
    rest = _read_until(connection, b"request_cancelled")
    assert b'"error"' in rest
    assert b"[DONE]" not in rest
    connection.close()
    assert _outcome(service, request_id)["outcome"] == "request_cancelled"


def test_cancelling_what_has_ended_says_how(service: Service) -> None:
    body = {"model": "counter", "prompt": "17", "max_tokens": 2, "stream": True}
    request_id = Answer(service, "completions", body).read().request_id
    for _ in range(2):
        answer = Answer(service, f"requests/{request_id}/cancel", {})
        assert answer.status == 200
        assert answer.json() == {"id": request_id, "object": "request", "status": "finished"}


def test_cancelling_an_unknown_request_is_404(service: Service) -> None:
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=30)
    connection.sendall(
        b"POST /v1/requests/none/cancel HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    )
    assert b"404" in _read_until(connection, b"not_found")
    connection.close()


def test_a_silent_stream_is_kept_alive_while_it_is_queued(service: Service) -> None:
    running = [_send(service, _unique("fill"), stream=True) for _ in range(4)]
    for connection in running:
        _read_until(connection, b"data:")
    queued = _send(service, _unique("alive"), stream=True, max_tokens=1)
    _read_until(queued, b": queue position 0\n", times=2)
    for connection in running:
        connection.close()
    received = _read_until(queued, b"[DONE]")
    assert b'"finish_reason":"length"' in received
    queued.close()


def test_a_stream_is_kept_alive_while_a_long_prompt_is_read(service: Service) -> None:
    prompt = _unique("long") + " " + " ".join(f"word{i}" for i in range(300))
    connection = _send(service, _unique("alive"), prompt=prompt, stream=True, max_tokens=1)
    received = _read_until(connection, b"[DONE]")
    connection.close()
    assert received.index(b": reading the prompt ") < received.index(b"data:")


def test_flower_and_celery_see_a_revoked_task(service: Service) -> None:
    wait_for(lambda: "counter-small@" in _flower(service, "/workers"), "Flower sees workers", 60)
    request_id = _unique("flower")
    connection = _send(service, request_id, stream=True)
    _read_until(connection, b"data:", times=2)
    connection.close()

    def state() -> str | None:
        page = _flower(service, f"/task/{request_id}")
        return page if "REVOKED" in page else None

    page = str(wait_for(state, "Flower shows the task as revoked", 15))
    assert "llmis.generate" in page
    assert "Once upon a time" not in page, "prompts are not visible in the queue"
    wait_for(lambda: "model.counter-small" in _flower(service, "/broker"), "the queue is shown")


def _flower(service: Service, path: str) -> str:
    """A page of Flower; nothing while it starts."""
    try:
        connection = socket.create_connection(("127.0.0.1", service.flower_port), timeout=30)
    except ConnectionRefusedError:
        return ""
    connection.sendall(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
    received = b""
    while more := connection.recv(65536):
        received += more
    connection.close()
    return received.decode(errors="replace")
