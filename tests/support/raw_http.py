"""HTTP byte by byte, for what no client would send."""

import socket
from collections.abc import Iterable

import wsproto
from wsproto.events import CloseConnection, Request

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


def websocket_close(service: Service, origin: str) -> CloseConnection:
    """How the server closes a new connection of a page of this origin.

    simple-websocket does not tell when the close frame comes along with the handshake."""
    protocol = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    host = f"127.0.0.1:{service.port}"
    handshake = Request(host=host, target="/v1/ws", extra_headers=[(b"Origin", origin.encode())])
    with connect(service) as sock:
        sock.sendall(protocol.send(handshake))
        while True:
            protocol.receive_data(sock.recv(4096) or None)
            for event in protocol.events():
                if isinstance(event, CloseConnection):
                    return event
