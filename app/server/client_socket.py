"""The server's side of a client's connection, with time limits for slow clients.

A client that reads nothing for `write_timeout_s` is cut off. To the code behind the write it is as
if the client had closed: its stream ends, and its job is kept for a while so that it can resume. A
client that sends its request more slowly than `read_timeout_s` allows is cut off, too. Between
requests it may be silent for as long as gunicorn keeps connections.
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
"""Bounds what the kernel buffers for a client that does not read; by default that grows to
megabytes. The kernel doubles the number for its own bookkeeping."""
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing discards unsent bytes, which the kernel would keep for minutes."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_MIN_BYTES_PER_S = 500
"""Rate at which the time limit of a request is extended; the default of Apache's mod_reqtimeout."""


class ClientSocket(gevent_socket.socket):  # type: ignore[misc]
    """A gevent socket with time limits.

    A timer starts only when the kernel has no bytes, or no room for more: calls that need not wait
    cost nothing, and the service's own time does not count. The reader of a WebSocket waits in
    `select`, without a limit.
    """

    def __init__(
        self,
        accepted: gevent_socket.socket,
        write_timeout_s: float,
        read_timeout_s: float,
        waiting: "dict[ClientSocket, None]",
    ) -> None:
        """Takes the descriptor of `accepted`, which is closed to its owner then. `waiting` holds
        all sockets that wait for their clients, the longest silent first."""
        super().__init__(accepted.family, accepted.type, accepted.proto, accepted.detach())
        self._write_timeout_s = write_timeout_s
        self._read_timeout_s = read_timeout_s
        self._waiting = waiting
        self.is_too_slow = False
        """The client was cut off while it sent a request."""
        self.await_head()
        self.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)

    def await_head(self) -> None:
        """Wait for the next request, which may take its time."""
        self._await(may_be_idle=True)

    def await_body(self, *, awaits_continue: bool) -> None:
        """`awaits_continue`: the client sends its body when it is asked for it, which is when the
        body is read first."""
        self._await(may_be_idle=False)
        self.awaits_continue = awaits_continue

    def _await(self, *, may_be_idle: bool) -> None:
        self._may_be_idle = may_be_idle
        self.awaits_continue = False
        self._num_received = 0
        self._waited_s = 0.0

    def cut_off(self) -> None:
        """End the connection; its readers see that the client has closed."""
        self._waiting.pop(self, None)
        with contextlib.suppress(OSError):
            # The plain socket's shutdown: gevent's would raise EBADF in the greenlet that waits.
            self._sock.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def evictable(self) -> Iterator[None]:
        """Within it the caller waits for the client in `select`; the socket may be cut off to make
        room for new clients."""
        self._waiting[self] = None
        try:
            yield
        finally:
            self._waiting.pop(self, None)

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive at least one byte, or b"" at the end. Raises OSError when the connection is gone
        or the client too slow."""
        if self.awaits_continue:
            self.awaits_continue = False
            self.sendall(_CONTINUE)
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
            gevent_socket.wait(self._read_event, self._time_left_s())
        except TimeoutError:
            _log.info("a client sent its request too slowly: cut off")
            self.is_too_slow = True
        finally:
            self._waiting.pop(self, None)
            self._waited_s += time.monotonic() - began_at

    def _time_left_s(self) -> float | None:
        if self._may_be_idle and not self._num_received:
            return None  # gunicorn's own limit
        allowed_s = self._read_timeout_s + self._num_received / _MIN_BYTES_PER_S
        return max(0.0, allowed_s - self._waited_s)

    def send(self, data: Any, flags: int = 0) -> int:
        """Send at least one byte. Raises OSError when the connection is gone or was cut off."""
        while True:
            try:
                num_sent: int = self._sock.send(data, flags)
                return num_sent
            except BlockingIOError:
                self._wait_until_writable()

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send everything. Raises OSError likewise."""
        num_sent = self.send(data, flags)
        if num_sent == len(data):
            return
        unsent = memoryview(data)[num_sent:]
        while unsent:
            unsent = unsent[self.send(unsent, flags) :]

    def _wait_until_writable(self) -> None:
        """The kernel reports a socket as writable when a third of its buffer is free: the client
        must read that much in `write_timeout_s`."""
        try:
            gevent_socket.wait(self._write_event, self._write_timeout_s)
        except TimeoutError:
            _log.warning("a client read nothing for %g s: cut off", self._write_timeout_s)
            self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            # Wakes the reader of this socket, and fails the next write.
            self.shutdown(socket.SHUT_RDWR)
            raise BrokenPipeError(errno.EPIPE, "the client does not read") from None
