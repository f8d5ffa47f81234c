"""`WS /v1/ws`: the same requests as JSON frames, several over one connection.

One greenlet reads the socket; each request has a greenlet of its own that sends its chunks.
"""

import contextlib
import logging

import gevent
import redis
from flask import Flask, current_app, g, request
from flask_sock import Sock
from kombu.exceptions import OperationalError
from simple_websocket import ConnectionClosed, Server
from wsproto.utilities import LocalProtocolError

from app.auth.authenticator import ANONYMOUS, Principal, Reason, auth_error, check_scope
from app.auth.scopes import WEBSOCKET
from app.errors import ClientGone, from_exception
from app.jobs.dispatcher import new_request_id
from app.middleware import request_log
from app.middleware.origins import is_allowed_origin
from app.services import services
from app.websocket import frames, socket
from app.websocket.frames import Frame
from app.websocket.request import OpenRequest, new_record
from shared.api_keys import Scope
from shared.errors import InvalidRequest, LlmisError

_log = logging.getLogger(__name__)
_MAX_REQUESTS = 32
"""Open requests on one connection."""
_REQUESTS = ("request", "resume")
"""Types of frames that are requests: each has a line in the log."""
_AUTH_TIMEOUT_S = 10.0
"""For the first frame of a connection that has to bring an API key."""


def register(app: Flask) -> None:
    socket.register(app)
    Sock(app).route(WEBSOCKET)(_serve)


def _serve(ws: Server) -> None:
    if not is_allowed_origin():
        ws.close(1008, "cross-origin connections are not allowed")
        return
    connection = _Connection(ws, current_app._get_current_object())  # type: ignore[attr-defined]
    services().close_sockets.add(connection.go_away)
    try:
        connection.authenticate()
        while True:
            connection.take(ws.receive())
    except (ConnectionClosed, ClientGone):
        pass
    except Exception:  # the greenlet's top: Flask would write an HTTP response into the socket
        _log.exception("WebSocket connection failed")
        connection.close_with(1011, "internal error")
    finally:
        services().close_sockets.discard(connection.go_away)
        connection.close()


class _Connection:
    def __init__(self, ws: Server, app: Flask) -> None:
        self._ws = ws
        self._app = app
        self._address = request.remote_addr or ""
        self._principal: Principal | None = g.principal
        """None until a frame has brought the API key."""
        self._open: dict[str, OpenRequest] = {}
        """By the client's id."""

    def authenticate(self) -> None:
        """Unless the handshake has brought an API key, wait for the frame that does: for a single
        one, and not for long. Raises ConnectionClosed."""
        if self._principal is not None:
            return
        with self._ws.sock.evictable():
            payload = self._ws.receive(_AUTH_TIMEOUT_S)
        # The next frame, which may be large, is not read before the key has been checked.
        self._ws.sock.may_read.clear()
        try:
            if payload is not None:
                self.take(payload)
            if self._principal is None:
                self.close_with(1008, "an API key is needed")
                raise ConnectionClosed(1008)
        finally:
            self._ws.sock.may_read.set()

    def go_away(self) -> None:
        """Close the connection from this side: the process ends."""
        self.close_with(1001, "the web process ends")

    def close_with(self, code: int, reason: str) -> None:
        with contextlib.suppress(ConnectionClosed, LocalProtocolError, OSError):
            self._ws.close(code, reason)

    def close(self) -> None:
        """The client is gone: end the streams of its requests."""
        for open_request in self._open.values():
            open_request.close()

    def take(self, payload: str | bytes) -> None:
        """Act on one frame. A bad one is answered with an error frame."""
        frame_id = kind = None
        try:
            frame = frames.decode(payload)
            frame_id, kind = frame.get("id"), frame.get("type")
            self._act(frames.type_of(frame), frame)
        except (LlmisError, redis.RedisError, OperationalError) as exc:
            error = from_exception(exc)
            if kind in _REQUESTS:
                record = new_record(kind)
                record.fail(error)
                owner = self._principal.owner if self._principal else ANONYMOUS
                request_log.end(record, new_request_id(), owner, error.status)
            self._send(frames.error(frame_id, error))

    def _act(self, kind: str, frame: Frame) -> None:
        if kind == "auth":
            self._identify(frame)
            self._send({"type": "authenticated"})
        elif self._principal is None:
            raise auth_error(Reason.MISSING, "An API key is needed: the first frame is auth.")
        elif kind in _REQUESTS:
            self._begin(frame, self._principal)
        elif kind == "cancel":
            self._cancel(frames.id_of(frame))
        elif kind == "ping":
            self._send({"type": "pong", "id": frame.get("id")})
        else:
            raise InvalidRequest(
                "type must be auth, request, resume, cancel or ping.", param="type"
            )

    def _identify(self, frame: Frame) -> None:
        """Take the API key of a frame. Raises LlmisError, redis.RedisError."""
        key = frames.text_of(frame, "key")
        if not key:
            raise auth_error(Reason.MISSING, "key must be an API key.")
        principal = services().authenticator.identify(key, self._address)
        check_scope(principal, Scope.USER)
        before = self._principal
        if self._open and before is not None and before.owner != principal.owner:
            raise InvalidRequest("The key of open requests cannot be changed.", param="key")
        self._principal = principal

    def _send(self, frame: Frame) -> None:
        """Raises ClientGone, in whatever way the connection ended."""
        try:
            self._ws.send(frames.encode(frame))
        except (ConnectionClosed, LocalProtocolError, OSError) as exc:
            raise ClientGone from exc

    def _begin(self, frame: Frame, principal: Principal) -> None:
        self._principal = services().authenticator.renewed(principal)
        frame_id = frames.id_of(frame)
        if frame_id in self._open:
            raise InvalidRequest(f"There is an open request {frame_id!r} already.", param="id")
        if len(self._open) >= _MAX_REQUESTS:
            raise InvalidRequest(f"At most {_MAX_REQUESTS} requests may be open on a connection.")
        open_request = OpenRequest(frame_id, frame, self._send)
        self._open[frame_id] = open_request
        gevent.spawn(self._run, frame_id, open_request, self._principal)

    def _run(self, frame_id: str, open_request: OpenRequest, principal: Principal) -> None:
        try:
            with self._app.app_context():
                open_request.run(principal)
        finally:
            del self._open[frame_id]

    def _cancel(self, frame_id: str) -> None:
        if frame_id not in self._open:
            raise InvalidRequest(f"There is no open request {frame_id!r}.", param="id")
        self._open[frame_id].cancel()
