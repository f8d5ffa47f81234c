"""Clients that read slowly or not at all: they are cut off, and cost nobody else anything."""

import contextlib
import http.client
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wsproto
from wsproto.events import Request, TextMessage

from shared import names
from tests.conftest import Service, running_service, wait_for
from tests.support.admin_client import Completion, load, unload
from tests.support.counter_model import expected_text
from tests.support.paused_replica import stopped

_MODEL = """
[[models]]
name = "long"
path = "counter.gguf"
context_length = 32768
slots = 4
"""
_NUM_TOKENS = 32000
_LOGPROBS = 5
"""They make a token a few hundred bytes, so that the buffers on the way fill soon."""
_CUT_OFF = "cut off"
_FULL_BYTES = 2**18
"""Of a job's log in Redis: as text it is more than the buffers on the way to its reader take."""


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that soon cuts off who does not read."""
    folder, extra = tmp_path_factory.mktemp("hasty"), f"write_timeout_s = 3\n{_MODEL}"
    with running_service(folder, small=False, extra=extra) as service:
        yield service


@pytest.fixture
def patient(service: Service) -> Iterator[Service]:
    """The service of the session, which waits for its readers, with the long model."""
    assert load(service, "long", context_length=8192, slots=4)[0] == 200
    yield service
    unload(service, "long")


def _connect(service: Service) -> socket.socket:
    """A client with little room for what it does not read."""
    sock = socket.socket()
    # Before the connection is made: afterwards the system lets the window grow.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    sock.settimeout(60)
    sock.connect(("127.0.0.1", service.port))
    return sock


def _body(num_tokens: int = _NUM_TOKENS, **fields: Any) -> dict[str, Any]:
    return {"model": "long", "prompt": "5", "max_tokens": num_tokens, "temperature": 0,
            "logprobs": _LOGPROBS, **fields}  # fmt: skip


def _post(service: Service, request_id: str, body: dict[str, Any]) -> socket.socket:
    payload = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nx-request-id: {request_id}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    sock = _connect(service)
    sock.sendall(head.encode() + payload)
    return sock


def _open_websocket(service: Service, request_ids: list[str]) -> socket.socket:
    """A WebSocket with one request of each id."""
    sock = _connect(service)
    protocol = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    sock.sendall(protocol.send(Request(host=f"127.0.0.1:{service.port}", target="/v1/ws")))
    protocol.receive_data(sock.recv(4096))
    for request_id in request_ids:
        frame = {"type": "request", "id": request_id, "endpoint": "completions"}
        frame |= {"request_id": request_id, "body": _body()}
        sock.sendall(protocol.send(TextMessage(json.dumps(frame))))
    return sock


def _outcome(service: Service, request_id: str) -> Any:
    """The replica's line about the finished request, once it is there."""

    def find() -> Any:
        for line in service.log("replica-long").splitlines():
            if f'"{request_id}"' in line and '"request done"' in line:
                return json.loads(line)
        return None

    return wait_for(find, f"the replica's log line of {request_id}")


def _is_stopped_early(service: Service, request_id: str) -> bool:
    line = _outcome(service, request_id)
    return line["outcome"] == "client_gone" and 0 < line["completion_tokens"] < _NUM_TOKENS


@contextlib.contextmanager
def _held_when_full(service: Service, *request_ids: str) -> Iterator[None]:
    """The replica stands still from when the buffers on the way are full until the requests are
    cancelled: it would reach their end before."""

    def is_cut_off(request_id: str) -> bool:
        return bool(service.redis.exists(names.cancel_key(request_id)))

    def is_full(request_id: str) -> bool:
        log_bytes = service.redis.memory_usage(names.log_key(request_id), samples=0)
        return (log_bytes or 0) > _FULL_BYTES or is_cut_off(request_id)

    replicas = service.pids("worker.replica", "long@")
    wait_for(lambda: all(map(is_full, request_ids)), "the buffers are full")
    with stopped(*replicas):
        yield
        wait_for(lambda: all(map(is_cut_off, request_ids)), "they are cancelled")


def _rest(sock: socket.socket) -> bytes:
    """What is left to be read of a connection that ends by itself."""
    received = []
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(65536):
            received.append(data)
    sock.close()
    return b"".join(received)


def test_who_reads_nothing_of_a_stream_is_cut_off(hasty: Service) -> None:
    with _post(hasty, "deaf-sse", _body(stream=True)) as deaf:
        with _held_when_full(hasty, "deaf-sse"):
            other = Completion(hasty, "counter", 200).read()
            assert (other.text, other.is_done) == (expected_text(5, 200), True)
            assert not hasty.redis.exists(names.cancel_key("deaf-sse")), "it still waits"
        assert _is_stopped_early(hasty, "deaf-sse")
        assert b"[DONE]" not in _rest(deaf)


def test_who_reads_a_byte_a_second_is_cut_off(hasty: Service) -> None:
    is_over = threading.Event()

    def trickle() -> None:
        with contextlib.suppress(OSError):
            while not is_over.wait(1.0) and slow.recv(1):
                pass

    with _post(hasty, "trickle", _body(stream=True)) as slow:
        reader = threading.Thread(target=trickle)
        reader.start()
        try:
            with _held_when_full(hasty, "trickle"):
                pass
            assert _is_stopped_early(hasty, "trickle")
        finally:
            is_over.set()
            reader.join()


def test_a_websocket_that_is_not_read_ends_with_all_its_requests(hasty: Service) -> None:
    request_ids = ["deaf-ws-1", "deaf-ws-2", "deaf-ws-3"]
    with _open_websocket(hasty, request_ids) as deaf:
        with _held_when_full(hasty, *request_ids):
            other = Completion(hasty, "counter", 200).read()
            assert other.text == expected_text(5, 200)
        for request_id in request_ids:
            assert _is_stopped_early(hasty, request_id)
        _rest(deaf)
    after = Completion(hasty, "long", 200).read()
    assert after.text.strip() == expected_text(5, 200).strip()


def test_a_whole_answer_that_is_not_read_is_thrown_away(hasty: Service) -> None:
    num_before = hasty.log("web").count(_CUT_OFF)
    with _post(hasty, "deaf-whole", _body(num_tokens=6000)) as deaf:
        assert _outcome(hasty, "deaf-whole")["outcome"] == "finished"
        wait_for(lambda: hasty.log("web").count(_CUT_OFF) > num_before, "it is cut off")
        head, _, answer = _rest(deaf).partition(b"\r\n\r\n")
    (length,) = (line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    assert len(answer) < int(length.split(b":")[1])


def test_who_reads_late_gets_everything_and_was_no_burden_meanwhile(patient: Service) -> None:
    """What is produced while a client does not read waits in its job's log, not in the web
    process."""
    num_tokens = 2500
    (_, web) = patient.pids("gunicorn")
    Completion(patient, "long", 200, logprobs=_LOGPROBS).read()
    before = _resident_bytes(web)
    request_ids = [f"late-{n}" for n in range(4)]
    late = [_post(patient, name, _body(num_tokens, stream=True)) for name in request_ids]
    for request_id in request_ids:
        assert _outcome(patient, request_id)["outcome"] == "finished"
    assert _resident_bytes(web) - before < 5e6
    for sock in late:
        assert _text(sock) == expected_text(5, num_tokens)


def _text(sock: socket.socket) -> str:
    """The text of a stream that has been open for a while."""
    with sock:
        response = http.client.HTTPResponse(sock)
        response.begin()
        lines = response.read().decode().splitlines()
    assert lines[-2] == "data: [DONE]"
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return "".join(chunk["choices"][0]["text"] for chunk in chunks)


def _resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
