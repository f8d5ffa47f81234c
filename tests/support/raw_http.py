"""HTTP byte by byte, for what no client would send."""

import socket
from collections.abc import Iterable

from tests.conftest import Service


def connect(service: Service) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=60)


def exchange(service: Service, *pieces: bytes) -> bytes:
    """Send the pieces and read until the server closes; everything that came back."""
    with connect(service) as sock:
        try:
            for piece in pieces:
                sock.sendall(piece)
        except OSError:
            pass  # it has closed early: what it said is still there
        return read_all(sock)


def read_all(sock: socket.socket) -> bytes:
    received = b""
    try:
        while piece := sock.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def request(start: str, headers: Iterable[str] = (), body: bytes = b"") -> bytes:
    """One request that asks for the connection to be closed."""
    lines = [f"{start} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body
