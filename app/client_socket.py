"""The server's side of a client's connection: a write waits for a slow reader, but not for ever.

A client that takes nothing for `write_timeout_s` is cut off. Everything behind the write notices
as if the client had closed: its stream ends, its job waits for it to come back.
"""

import errno
import logging
import socket
import struct
from typing import Any

from gevent import socket as gevent_socket

_log = logging.getLogger(__name__)
_SEND_BUFFER_BYTES = 128 * 1024
"""The kernel doubles it for its own book-keeping: what one client that does not read can hold
there. Left alone it grows to megabytes."""
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing throws away what is unsent, which the kernel would keep for minutes."""


class ClientSocket(gevent_socket.socket):  # type: ignore[misc]
    """A gevent socket with a time limit on writes alone: reads may be idle for ever.

    The timer starts when the kernel takes no more, so a write that need not wait costs nothing.
    """

    def __init__(self, accepted: gevent_socket.socket, write_timeout_s: float) -> None:
        """Takes the descriptor of `accepted`, which is of no more use then."""
        super().__init__(accepted.family, accepted.type, accepted.proto, accepted.detach())
        self._write_timeout_s = write_timeout_s
        self.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)

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
