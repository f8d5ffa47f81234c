"""Many clients that stream at once and throw away what they get, on one thread."""

import resource
import select
import socket
import time
from types import TracebackType

_BURST = 50
"""Connections that are opened before their answers are looked at: less than the backlog."""


def raise_descriptor_limit() -> None:
    """As many open sockets as the system lets this process and its children have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Crowd:
    """Open streams. Leaving the `with` block closes them, which cancels their requests."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self.received: dict[int, bytes] = {}
        """Descriptor → the beginning of what came."""

    def __enter__(self) -> "Crowd":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for sock in self._sockets.values():
            sock.close()
        self._poll.close()

    @property
    def num_answered(self) -> int:
        return sum(1 for received in self.received.values() if received)

    def add(self, num_clients: int, body: bytes) -> None:
        """Open so many more streams of a completion with this JSON body."""
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        for i in range(num_clients):
            sock = socket.create_connection(("127.0.0.1", self._port), timeout=60)
            sock.sendall(head.encode() + body)
            sock.setblocking(False)
            self._sockets[sock.fileno()] = sock
            self.received[sock.fileno()] = b""
            self._poll.register(sock, select.EPOLLIN)
            if i % _BURST == _BURST - 1:
                self.read(0.1)

    def read(self, seconds: float) -> None:
        """Take what comes. Raises RuntimeError when a stream is refused or ends."""
        deadline = time.monotonic() + seconds
        while (left_s := deadline - time.monotonic()) > 0:
            for descriptor, _ in self._poll.poll(left_s):
                self._take(descriptor)

    def _take(self, descriptor: int) -> None:
        data = self._sockets[descriptor].recv(65536)
        beginning = self.received[descriptor]
        if len(beginning) < 12:
            self.received[descriptor] = beginning = beginning + data[:500]
        if not data or not beginning.startswith(b"HTTP/1.1 200"[: len(beginning)]):
            raise RuntimeError(f"a stream of the crowd ended: {beginning!r}")
