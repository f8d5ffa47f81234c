"""The socket of a WebSocket connection, as simple-websocket needs it, and the checks of the
handshake.

The library reads in a greenlet of its own, which waits in `select`; others send.
"""

import selectors
import threading
from collections.abc import Callable
from typing import Any

from flask import Flask, current_app, g, request
from simple_websocket import Server
from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, Opcode, ParseFailed, RsvBits

from app.auth.scopes import WEBSOCKET
from shared.errors import InvalidRequest

_PING_S = 25
_MAX_KEYLESS_BYTES = 16 * 1024
"""Of the first message of a connection that has no API key yet: a key, or a token with many
claims."""


def register(app: Flask) -> None:
    app.config["SOCK_SERVER_OPTIONS"] = {
        "ping_interval": _PING_S,
        "selector_class": _Selector,
        "thread_class": _reader,
    }
    app.before_request(_prepare_handshake)


def _prepare_handshake() -> None:
    """Refuse what the library does not check. Raises InvalidRequest."""
    if request.path != WEBSOCKET:
        return
    # Compressed frames depend on their order, and the library compresses before it locks.
    request.environ.pop("HTTP_SEC_WEBSOCKET_EXTENSIONS", None)
    if request.headers.get("Sec-WebSocket-Version") != "13":
        raise InvalidRequest("This is a WebSocket endpoint: Sec-WebSocket-Version must be 13.")
    if not request.headers.get("Sec-WebSocket-Key"):
        raise InvalidRequest("The header Sec-WebSocket-Key is missing.")
    sock = request.environ["gunicorn.socket"]
    request.environ["gunicorn.socket"] = PatientSocket(sock, _read_ahead(request.environ))


def _reader(target: Callable[[], None]) -> threading.Thread:
    """The thread of a connection's reader, which `target` is a method of: it is made behind the
    handshake, and before a frame is read."""
    limit: int = current_app.extensions["llmis"].settings.max_body_bytes
    first_limit = _MAX_KEYLESS_BYTES if g.principal is None else limit
    limit_sizes(target.__self__, first_limit, limit)  # type: ignore[attr-defined]
    return threading.Thread(target=target)


def limit_sizes(server: Server, first_limit: int, limit: int) -> None:
    """Refuse larger messages, in bytes, as soon as they are announced. `first_limit` is that of the
    first one."""
    extension = _SizeLimit(first_limit, limit)
    server.ws.connection._proto._frame_decoder.extensions.append(extension)


class _SizeLimit(Extension):
    """Sees the header of each frame; it is not negotiated with the client."""

    name = "size-limit"

    def __init__(self, first_limit: int, limit: int) -> None:
        self._limits = [limit, first_limit]
        """Of the messages to come; the last one is that of the next."""
        self._left = 0
        """Bytes that further frames of the message may have."""

    def offer(self) -> bool:
        return False

    def frame_inbound_header(
        self, proto: Any, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> RsvBits:
        if opcode in (Opcode.TEXT, Opcode.BINARY):
            self._left = self._limits.pop() if len(self._limits) > 1 else self._limits[0]
        if not opcode.iscontrol():
            self._left -= payload_length
            if self._left < 0:
                raise ParseFailed("Message is too big", CloseReason.MESSAGE_TOO_BIG)
        return RsvBits(False, False, False)


def _read_ahead(environ: dict[str, Any]) -> bytes:
    """Take what gunicorn has read behind the handshake: frames that came along with it."""
    unreader = getattr(environ["wsgi.input"].reader, "unreader", None)
    payload: bytes = b"" if unreader is None else unreader.take_buffered()
    return payload


class PatientSocket:
    """A socket whose `send` sends everything, and that is not read while `may_read` is cleared.

    simple-websocket calls `send` and ignores how much was sent: a large frame to a slow reader
    would break the stream. It reads on while an earlier frame is still being checked.
    """

    def __init__(self, sock: Any, read_ahead: bytes) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self.read_ahead = read_ahead
        """Comes before what the socket has."""
        self.may_read = threading.Event()
        self.may_read.set()

    def send(self, payload: bytes) -> int:
        with self._lock:
            self._sock.sendall(payload)
        return len(payload)

    def recv(self, size: int) -> bytes:
        self.may_read.wait()
        if self.read_ahead:
            payload, self.read_ahead = self.read_ahead[:size], self.read_ahead[size:]
        else:
            payload = self._sock.recv(size)
        return payload

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class _Selector(selectors.DefaultSelector):
    """Of one PatientSocket, which is readable, too, while it has bytes that were read ahead. The
    system's selector sees only what is still in the kernel: it would wait for the next ping."""

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self._socket = fileobj
        key: selectors.SelectorKey = super().register(fileobj, events, data)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._socket.read_ahead:
            return [(self.get_key(self._socket), selectors.EVENT_READ)]
        found: list[tuple[selectors.SelectorKey, int]] = super().select(timeout)
        return found
