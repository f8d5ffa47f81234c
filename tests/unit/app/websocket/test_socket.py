"""The socket of a WebSocket connection: whole writes, held-back reads, bytes read ahead."""

import selectors
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from simple_websocket import ConnectionClosed, Server

from app.websocket.socket import PatientSocket, _Selector, limit_sizes

_Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[_Pair]:
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    theirs.settimeout(60)
    yield ours, theirs
    ours.close()
    theirs.close()


def test_bytes_that_were_read_ahead_come_first_in_pieces(pair: _Pair) -> None:
    sock = PatientSocket(pair[0], b"ahead")
    pair[1].sendall(b"behind")
    assert [sock.recv(3), sock.recv(3), sock.recv(100)] == [b"ahe", b"ad", b"behind"]


def test_a_socket_is_readable_while_it_has_bytes_read_ahead(pair: _Pair) -> None:
    sock, selector = PatientSocket(pair[0], b"ahead"), _Selector()
    key = selector.register(sock, selectors.EVENT_READ)
    assert selector.select(60) == [(key, selectors.EVENT_READ)]
    sock.recv(5)
    assert selector.select(0) == []
    pair[1].sendall(b"more")
    assert selector.select(10) == [(key, selectors.EVENT_READ)]
    selector.close()


def test_a_large_payload_is_sent_whole(pair: _Pair) -> None:
    """However little the kernel takes at a time."""
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    payload = bytes(range(256)) * 4096
    received = bytearray()

    def read() -> None:
        while len(received) < len(payload):
            received.extend(pair[1].recv(65536))

    reader = threading.Thread(target=read)
    reader.start()
    assert PatientSocket(pair[0], b"").send(payload) == len(payload)
    reader.join(30)
    assert bytes(received) == payload


def test_nothing_is_read_while_reading_is_held_back(pair: _Pair) -> None:
    sock = PatientSocket(pair[0], b"ahead")
    sock.may_read.clear()
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(sock.recv(5)))
    reader.start()
    reader.join(0.05)
    assert reader.is_alive() and not read
    sock.may_read.set()
    reader.join(10)
    assert read == [b"ahead"]


_FIRST_LIMIT, _LIMIT = 50, 100
_TEXT, _BINARY, _CONTINUATION, _PING = 0x1, 0x2, 0x0, 0x9


def _frame(
    opcode: int, payload: bytes = b"", announced: int | None = None, *, fin: bool = True
) -> bytes:
    """A client's frame, masked with zeros. `announced`: the length in its header."""
    size = len(payload) if announced is None else announced
    if size < 126:
        length = bytes([size])
    elif size < 2**16:
        length = b"\x7e" + size.to_bytes(2, "big")
    else:
        length = b"\x7f" + size.to_bytes(8, "big")
    return bytes([fin << 7 | opcode, length[0] | 0x80]) + length[1:] + bytes(4) + payload


def _serve(sock: socket.socket) -> Server:
    def reader(target: Any) -> threading.Thread:
        limit_sizes(target.__self__, _FIRST_LIMIT, _LIMIT)
        return threading.Thread(target=target)

    environ = {
        "gunicorn.socket": PatientSocket(sock, b""),
        "HTTP_HOST": "a",
        "HTTP_UPGRADE": "websocket",
        "HTTP_CONNECTION": "Upgrade",
        "HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ==",
        "HTTP_SEC_WEBSOCKET_VERSION": "13",
    }
    return Server(environ, ping_interval=25, selector_class=_Selector, thread_class=reader)


@pytest.mark.parametrize(
    "frames",
    [
        _frame(_TEXT, announced=2**62),
        _frame(_BINARY, announced=2**63 - 1),
        _frame(_TEXT, announced=_LIMIT + 1),
        _frame(_TEXT, b"a" * 60, fin=False) + _frame(_CONTINUATION, announced=41),
        _frame(_TEXT, b"a", fin=False) + _frame(_PING) + _frame(_CONTINUATION, announced=2**40),
        _frame(_TEXT, "\u20ac".encode() * 33) + _frame(_TEXT, announced=102),
    ],
)
def test_a_message_that_is_too_large_is_refused_when_it_is_announced(
    pair: _Pair, frames: bytes
) -> None:
    """No byte of what is too large follows."""
    server = _serve(pair[0])
    assert b" 101 " in pair[1].recv(4096)
    pair[1].sendall(_frame(_TEXT, b"a" * _FIRST_LIMIT) + frames)
    assert server.receive(10) == "a" * _FIRST_LIMIT
    with pytest.raises(ConnectionClosed) as closed:
        while server.receive(10) is not None:
            pass
    assert (closed.value.reason, closed.value.message) == (1009, "Message is too big")
    answer = b""
    while piece := pair[1].recv(4096):
        answer += piece
    assert answer.endswith(b"\x88\x14" + (1009).to_bytes(2, "big") + b"Message is too big")


def test_the_first_message_has_a_limit_of_its_own_and_the_next_ones_theirs(pair: _Pair) -> None:
    server = _serve(pair[0])
    pair[1].recv(4096)
    largest = _frame(_TEXT, b"b" * 40, fin=False) + _frame(_PING) + _frame(_CONTINUATION, b"c" * 60)
    pair[1].sendall(_frame(_TEXT, b"a" * 20, fin=False) + _frame(_CONTINUATION, b"a" * 30))
    pair[1].sendall(largest + largest)
    received = [server.receive(10) for _ in range(3)]
    assert received == ["a" * 50, "b" * 40 + "c" * 60, "b" * 40 + "c" * 60]
    server.close()


def test_the_first_message_is_refused_beyond_its_own_limit(pair: _Pair) -> None:
    server = _serve(pair[0])
    pair[1].recv(4096)
    pair[1].sendall(_frame(_TEXT, announced=_FIRST_LIMIT + 1))
    with pytest.raises(ConnectionClosed) as closed:
        server.receive(10)
    assert closed.value.reason == 1009


def test_all_else_is_the_sockets(pair: _Pair) -> None:
    assert PatientSocket(pair[0], b"").fileno() == pair[0].fileno()
