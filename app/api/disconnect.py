"""Notices that a client has disconnected while its request waits or streams.

A blocked handler never notices by itself. An io watcher on the client's socket does, within a
millisecond. It peeks at data and never reads any, so keep-alive and pipelining are not disturbed.
"""

import errno
import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import gevent
from flask import Response, g, request
from gevent import monkey

from app.jobs.dispatcher import Subscription
from app.services import services
from app.streaming.relay import Relay

_POLL_S = 0.5
_poll = monkey.get_original("select", "poll")
_PlainSocket = monkey.get_original("socket", "socket")


@contextmanager
def relay_to_client(subscription: Subscription) -> Iterator[Relay]:
    """Relay a job to the client of the request at hand. The relay raises ClientGone when the client
    disconnects. Relay and watcher end with the context."""
    with (
        Relay(services().relay, subscription, g.record) as relay,
        closing(DisconnectWatcher(request.environ, subscription.stream.close)),
    ):
        yield relay


def closed() -> Response:
    """For a client that has closed: its connection ends without an answer, also when it has closed
    its sending half alone. The status is for log and metrics."""
    return Response(_break_off(), status=499)


def _break_off() -> Iterator[bytes]:
    raise ConnectionResetError(errno.ECONNRESET, "the client has closed")
    yield b""


class DisconnectWatcher:
    """Calls `on_gone` once when the peer of the request's socket closes it."""

    def __init__(self, environ: dict[str, Any], on_gone: Callable[[], None]) -> None:
        self._on_gone = on_gone
        self._socket: socket.socket | None = environ.get("gunicorn.socket")
        self._watcher: Any = None
        if self._socket is not None:
            self._watcher = gevent.get_hub().loop.io(self._socket.fileno(), 1)
            self._watcher.start(self._on_readable)

    def _on_readable(self) -> None:
        assert self._socket is not None, "watched sockets only"
        try:
            is_gone = self._peek(self._socket) == b""
        except BlockingIOError:
            return
        except OSError:
            is_gone = True
        self.close()
        if is_gone:
            self._on_gone()
        else:
            # A pipelined request is waiting, and keeps the socket readable until it is read: from
            # now on the peer's shutdown is polled for.
            self._watcher = gevent.get_hub().loop.timer(_POLL_S, _POLL_S)
            self._watcher.start(self._check_shutdown)

    def _check_shutdown(self) -> None:
        assert self._socket is not None, "watched sockets only"
        poll = _poll()
        poll.register(self._socket.fileno(), select.POLLRDHUP)
        if poll.poll(0):
            self.close()
            self._on_gone()

    @staticmethod
    def _peek(sock: socket.socket) -> bytes:
        # The plain socket class: gevent's would switch greenlets, which a callback of the event
        # loop must not.
        with _PlainSocket(fileno=os.dup(sock.fileno())) as plain:
            data: bytes = plain.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            return data

    def close(self) -> None:
        """Stop watching. Call it before the socket serves the next request."""
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._watcher = None
