"""The server's side of a client's connection: it waits for a slow client, but not for ever.

A client that takes nothing for `write_timeout_s` is cut off. Everything behind the write notices
as if the client had closed: its stream ends, its job waits for it to come back. One that sends
its request more slowly than `read_timeout_s` allows is cut off, too; between requests it may be
silent for as long as gunicorn keeps connections.
"""

import contextlib
import errno
import logging
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

from gevent import socket as gevent_socket

_log = logging.getLogger(__name__)
_SEND_BUFFER_BYTES = 128 * 1024
"""The kernel doubles it for its own book-keeping: what one client that does not read can hold
there. Left alone it grows to megabytes."""
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing throws away what is unsent, which the kernel would keep for minutes."""


_MIN_BYTES_PER_S = 500
"""What a request that takes longer than the time limit has to come with; Apache's
mod_reqtimeout has the same by default."""


class ClientSocket(gevent_socket.socket):  # type: ignore[misc]
    """A gevent socket with time limits.

    Their timers start when the kernel takes or has no more, so a call that need not wait costs
    nothing, and the time that the service itself takes does not count. Who reads a WebSocket waits
    in `select`, without a limit.
    """

    def __init__(
        self,
        accepted: gevent_socket.socket,
        write_timeout_s: float,
        read_timeout_s: float,
        waiting: "dict[ClientSocket, None]",
    ) -> None:
        """Takes the descriptor of `accepted`, which is of no more use then. In `waiting` stand
        all sockets whose clients are waited for, those that are silent for longest first."""
        super().__init__(accepted.family, accepted.type, accepted.proto, accepted.detach())
        self._write_timeout_s = write_timeout_s
        self._read_timeout_s = read_timeout_s
        self._waiting = waiting
        self.is_too_slow = False
        """The client was cut off while it sent a request."""
        self.await_head()
        self.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)

    def await_head(self) -> None:
        """The next request is to come, sooner or later."""
        self._await(may_be_idle=True)

    def await_body(self) -> None:
        self._await(may_be_idle=False)

    def _await(self, *, may_be_idle: bool) -> None:
        self._may_be_idle = may_be_idle
        self._num_received = 0
        self._waited_s = 0.0

    def cut_off(self) -> None:
        """End the connection: who waits for it finds that the client has closed."""
        self._waiting.pop(self, None)
        with contextlib.suppress(OSError):
            # Of the plain socket: gevent's would raise EBADF where it is waited for.
            self._sock.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def evictable(self) -> Iterator[None]:
        """Within it the client is waited for elsewhere, in `select`: it may have to make room."""
        self._waiting[self] = None
        try:
            yield
        finally:
            self._waiting.pop(self, None)

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive what is there, at least one byte, or b"" at the end. Raises OSError when the
        connection is gone, or the client too slow."""
        while True:
            if self.is_too_slow:
                raise ConnectionResetError(errno.ECONNRESET, "the request came too slowly")
            try:
                payload: bytes = self._sock.recv(size, flags)
            except BlockingIOError:
                self._wait_until_readable()
            else:
                self._num_received += len(payload)
                return payload

    def _wait_until_readable(self) -> None:
        began_at = time.monotonic()
        self._waiting[self] = None
        try:
            gevent_socket.wait(self._read_event, self._patience_s())
        except TimeoutError:
            _log.info("a client sent its request too slowly: cut off")
            self.is_too_slow = True
        finally:
            self._waiting.pop(self, None)
            self._waited_s += time.monotonic() - began_at

    def _patience_s(self) -> float | None:
        if self._may_be_idle and not self._num_received:
            return None  # gunicorn's own limit
        allowed_s = self._read_timeout_s + self._num_received / _MIN_BYTES_PER_S
        return max(0.0, allowed_s - self._waited_s)

    def send(self, data: Any, flags: int = 0) -> int:
        """Send what the kernel takes, at least one byte. Raises OSError when the connection is
        gone or was cut off."""
        while True:
            try:
                num_sent: int = self._sock.send(data, flags)
                return num_sent
            except BlockingIOError:
                self._wait_until_writable()

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send everything. Raises OSError likewise."""
        unsent = memoryview(data)
        while unsent:
            unsent = unsent[self.send(unsent, flags) :]

    def _wait_until_writable(self) -> None:
        """The kernel calls a socket writable when a third of its buffer is free: so much has to
        be taken in `write_timeout_s`."""
        try:
            gevent_socket.wait(self._write_event, self._write_timeout_s)
        except TimeoutError:
            _log.warning("a client took nothing for %g s: cut off", self._write_timeout_s)
            self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            # Wakes who reads from it, and fails who writes to it next.
            self.shutdown(socket.SHUT_RDWR)
            raise BrokenPipeError(errno.EPIPE, "the client does not read") from None
