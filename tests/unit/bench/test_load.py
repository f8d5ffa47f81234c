"""The load generator against a small server."""

import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from bench import load
from bench.load import LATE_AFTER, Plan

_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_TEXT = b'data: {"choices": [{"text": " 1"}]}\n\n'
_USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 1}}\n\n'


def _chunk(event: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(event), event)


_END = _chunk(_USAGE) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class _Requests:
    """What has come in, as the names in the bodies."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.names: list[str] = []

    def note(self, name: str) -> None:
        with self.changed:
            self.names.append(name)
            self.changed.notify_all()

    def wait(self, is_so: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(is_so, 60)


@contextmanager
def _server(answer: Callable[[socket.socket, str], None], requests: _Requests) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve(connection: socket.socket) -> None:
            with connection:
                found = re.search(rb'"name": ?"(\w+)"', connection.recv(65536))
                assert found is not None
                name = found[1].decode()
                requests.note(name)
                answer(connection, name)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def _body(name: str) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode({"name": name}))


def _plan(port: int, streams: list[list[str]], **more: object) -> Plan:
    bodies = [[_body(name) for name in of_stream] for of_stream in streams]
    return Plan(port=port, server_pid=os.getpid(), streams=bodies, limit_s=60, **more)  # type: ignore[arg-type]


def test_a_burst_is_sent_whole_and_the_next_one_after_its_end() -> None:
    requests = _Requests()

    def answer(connection: socket.socket, name: str) -> None:
        connection.sendall(_HEAD)
        burst = name[-1]
        # None is answered before all are there: a load that waited for one would hang.
        requests.wait(lambda: sum(other[-1] == burst for other in requests.names) == 3)
        connection.sendall(_chunk(_TEXT) + _END)

    with _server(answer, requests) as port:
        names = [[f"s{i}b{j}" for j in range(2)] for i in range(3)]
        result = load.run(_plan(port, names, in_bursts=True))
    assert [name[-1] for name in requests.names] == ["0"] * 3 + ["1"] * 3
    assert [stream.text for stream in result.streams] == [" 1"] * 6
    first, second = result.streams[0::2], result.streams[1::2]
    assert max(s.ended_at for s in first) <= min(s.sent_at for s in second)


def test_a_late_request_comes_when_all_streams_run_and_ends_them() -> None:
    requests = _Requests()
    left: list[str] = []

    def answer(connection: socket.socket, name: str) -> None:
        connection.sendall(_HEAD)
        if name == "late":
            connection.sendall(_chunk(_TEXT) + _END)
            return
        try:
            while True:
                connection.sendall(_chunk(_TEXT))
        except OSError:
            left.append(name)

    with _server(answer, requests) as port:
        result = load.run(_plan(port, [["one"], ["two"]], late=[_body("late")]))
    assert requests.names[-1] == "late"
    assert result.late is not None
    assert (result.late.text, result.late.prompt_tokens) == (" 1", 7)
    for stream in result.streams:
        assert stream.completion_tokens == -1, "cut off"
        assert stream.ended_at >= result.late.ended_at
        assert stream.chunk_at, f"{LATE_AFTER} pieces and more"
