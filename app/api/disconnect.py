"""Notices that a client has gone, while its request waits or streams.

A blocked handler never notices by itself. An io watcher on the client's socket does, within a
millisecond: data there is peeked at, not read, so keep-alive and pipelining stay whole.
"""

import os
import select
import socket
from collections.abc import Callable
from typing import Any

import gevent
from gevent import monkey

_ASK_S = 0.5
_poll = monkey.get_original("select", "poll")
_PlainSocket = monkey.get_original("socket", "socket")


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
            # The next pipelined request waits for its turn. Readable it stays, so from here on
            # only asking tells whether the peer is still there.
            self._watcher = gevent.get_hub().loop.timer(_ASK_S, _ASK_S)
            self._watcher.start(self._ask)

    def _ask(self) -> None:
        assert self._socket is not None, "watched sockets only"
        poll = _poll()
        poll.register(self._socket.fileno(), select.POLLRDHUP)
        if poll.poll(0):
            self.close()
            self._on_gone()

    @staticmethod
    def _peek(sock: socket.socket) -> bytes:
        # The plain socket class: gevent's would switch greenlets, which the event loop cannot.
        with _PlainSocket(fileno=os.dup(sock.fileno())) as plain:
            data: bytes = plain.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            return data

    def close(self) -> None:
        """Stop watching. Before the request's socket is used for another one."""
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._watcher = None
