"""`WS /v1/ws`: the same requests as JSON frames, several over one connection.

Frames are described in docs/protocol.md. One greenlet reads the socket; each request has a
greenlet of its own that writes its chunks.
"""

import contextlib
import logging
import threading
from typing import Any

import gevent
import msgspec
import redis
from flask import Flask, current_app, g, request
from flask_sock import Sock
from kombu.exceptions import OperationalError
from simple_websocket import ConnectionClosed, Server
from wsproto.utilities import LocalProtocolError

from app import request_log
from app.access import WEBSOCKET
from app.answers import timings_ms
from app.auth import ANONYMOUS, Principal, Reason, check_scope, refusal
from app.dispatch import Reading, new_request_id, request_id_from
from app.errors import from_exception
from app.event_id import EventId, parse_event_id
from app.idempotency import digest, once
from app.job_stream import ClientGone
from app.jobs import chat_job, completion_job
from app.origins import is_allowed_origin
from app.parsing import convert
from app.relay import Relay
from app.request_facts import RequestFacts
from app.schemas import ChatRequest, CompletionRequest
from app.services import services
from app.streamed import followed
from app.wording import Piece, Wording
from shared.api_keys import Scope
from shared.errors import GoingAway, InvalidRequest, LlmisError, RequestCancelled
from shared.lifecycle import Progress
from shared.messages import Job

_log = logging.getLogger(__name__)
_MAX_REQUESTS = 32
"""Open requests on one connection."""
_ASKING = ("request", "resume")
"""Types of frames that are requests: each has a line in the log."""
_AUTH_TIMEOUT_S = 10.0
"""For the first frame of a connection that has to bring an API key."""
_MAX_KEYLESS_BYTES = 16 * 1024
"""Of that frame: a key, or a token with many claims."""
_CANCELLED = "The client cancelled the request."


def register(app: Flask) -> None:
    settings = app.extensions["llmis"].settings
    app.config["SOCK_SERVER_OPTIONS"] = {
        "ping_interval": 25,
        "max_message_size": settings.max_body_bytes,
    }
    app.before_request(_check_handshake)
    Sock(app).route(WEBSOCKET)(_serve)


def _check_handshake() -> None:
    """Refuse what the library would stumble over. Raises InvalidRequest."""
    if request.path != WEBSOCKET:
        return
    # Compressed frames depend on their order, and the library compresses before it locks.
    request.environ.pop("HTTP_SEC_WEBSOCKET_EXTENSIONS", None)
    if request.headers.get("Sec-WebSocket-Version") != "13":
        raise InvalidRequest("This is a WebSocket endpoint: Sec-WebSocket-Version must be 13.")
    if not request.headers.get("Sec-WebSocket-Key"):
        raise InvalidRequest("The header Sec-WebSocket-Key is missing.")


class _PatientSocket:
    """A socket whose `send` sends everything, and that is not read while `may_read` is cleared.

    simple-websocket calls `send` and ignores how much went out: a large frame to a slow reader
    would break the stream. It reads on while the frame before is looked at.
    """

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self.may_read = threading.Event()
        self.may_read.set()

    def send(self, payload: bytes) -> int:
        with self._lock:
            self._sock.sendall(payload)
        return len(payload)

    def recv(self, size: int) -> bytes:
        self.may_read.wait()
        payload: bytes = self._sock.recv(size)
        return payload

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def _serve(ws: Server) -> None:
    if not is_allowed_origin():
        ws.close(1008, "cross-origin connections are not allowed")
        return
    ws.sock = _PatientSocket(ws.sock)
    connection = _Connection(ws, current_app._get_current_object())  # type: ignore[attr-defined]
    services().close_sockets.add(connection.go_away)
    try:
        connection.authenticate()
        while True:
            connection.take(ws.receive())
    except (ConnectionClosed, ClientGone):
        pass
    except Exception:
        # Flask would write an HTTP answer into the socket.
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
        self._readings: dict[str, Reading | None] = {}
        """Open requests by the client's id; None until the job is enqueued."""
        self._cancelled: set[str] = set()

    def authenticate(self) -> None:
        """Wait for the frame that brings the API key, if the handshake has not: for one, a small
        one, and not for long. Raises ConnectionClosed."""
        if self._principal is not None:
            return
        max_message_size = self._ws.max_message_size
        self._ws.max_message_size = _MAX_KEYLESS_BYTES
        with self._ws.sock.evictable():
            frame = self._ws.receive(_AUTH_TIMEOUT_S)
        self._ws.sock.may_read.clear()
        try:
            if frame is not None:
                self.take(frame)
            if self._principal is None:
                self.close_with(1008, "an API key is needed")
                raise ConnectionClosed(1008)
            self._ws.max_message_size = max_message_size
        finally:
            self._ws.sock.may_read.set()

    def take(self, frame: str | bytes) -> None:
        """Act on one frame. A bad one is answered with an error frame."""
        frame_id = kind = None
        try:
            message = _decode(frame)
            frame_id = message.get("id")
            kind = message.get("type")
            if kind == "auth":
                self._identify(message)
                self._send({"type": "authenticated"})
            elif self._principal is None:
                raise refusal(Reason.MISSING, "An API key is needed: the first frame is auth.")
            elif kind in _ASKING:
                self._open(message)
            elif kind == "cancel":
                self._cancel(_frame_id(message))
            elif kind == "ping":
                self._send({"type": "pong", "id": frame_id})
            else:
                raise InvalidRequest(
                    "type must be auth, request, resume, cancel or ping.", param="type"
                )
        except (LlmisError, redis.RedisError, OperationalError) as exc:
            error = from_exception(exc)
            if kind in _ASKING:
                facts = _new_facts(kind)
                facts.fail(error)
                owner = self._principal.owner if self._principal else ANONYMOUS
                request_log.end(facts, new_request_id(), owner, error.status)
            self._send({"type": "error", "id": frame_id, **error.body()})

    def go_away(self) -> None:
        """Close the connection from this side: the process ends."""
        self.close_with(1001, "the web process ends")

    def close_with(self, code: int, reason: str) -> None:
        with contextlib.suppress(ConnectionClosed, LocalProtocolError, OSError):
            self._ws.close(code, reason)

    def close(self) -> None:
        """The client is gone: nobody here reads what it waited for."""
        for reading in self._readings.values():
            if reading is not None:
                reading.stream.close()

    def _send(self, frame: dict[str, Any]) -> None:
        """Raises ClientGone, whatever way the connection ended."""
        try:
            self._ws.send(msgspec.json.encode(frame).decode())
        except (ConnectionClosed, LocalProtocolError, OSError) as exc:
            raise ClientGone from exc

    def _identify(self, message: dict[str, Any]) -> None:
        """Take the API key of a frame. Raises LlmisError, redis.RedisError."""
        key = _text(message, "key")
        if not key:
            raise refusal(Reason.MISSING, "key must be an API key.")
        principal = services().authenticator.identify(key, self._address)
        check_scope(principal, Scope.USER)
        before = self._principal
        if self._readings and before is not None and before.owner != principal.owner:
            raise InvalidRequest("The key of open requests cannot be changed.", param="key")
        self._principal = principal

    def _open(self, message: dict[str, Any]) -> None:
        assert self._principal is not None, "take() lets nobody else here"
        self._principal = services().authenticator.renewed(self._principal)
        frame_id = _frame_id(message)
        if frame_id in self._readings:
            raise InvalidRequest(f"There is an open request {frame_id!r} already.", param="id")
        if len(self._readings) >= _MAX_REQUESTS:
            raise InvalidRequest(f"At most {_MAX_REQUESTS} requests may be open on a connection.")
        self._readings[frame_id] = None
        gevent.spawn(self._answer, frame_id, message, self._principal)

    def _cancel(self, frame_id: str) -> None:
        if frame_id not in self._readings:
            raise InvalidRequest(f"There is no open request {frame_id!r}.", param="id")
        self._cancelled.add(frame_id)
        reading = self._readings[frame_id]
        if reading is not None:
            services().dispatcher.cancel(reading.job.id, reading.job.owner)
            reading.stream.close()

    def _answer(self, frame_id: str, message: dict[str, Any], principal: Principal) -> None:
        with self._app.app_context():
            g.principal = principal
            g.facts = _new_facts(message["type"])
            request_log.name_request(new_request_id())
            status = 200
            try:
                self._relay(frame_id, message)
            except ClientGone:
                status = RequestCancelled.status
                self._report(frame_id, {"type": "cancelled", "id": frame_id})
            except GoingAway as exc:
                status = exc.status  # the connection is closed next, and the client may come back
            except Exception as exc:
                error = from_exception(exc)
                g.facts.fail(error)
                status = error.status
                self._report(frame_id, {"type": "error", "id": frame_id, **error.body()})
            finally:
                self._readings.pop(frame_id, None)
                self._cancelled.discard(frame_id)
                request_log.end(g.facts, g.request_id, principal.owner, status)

    def _report(self, frame_id: str, frame: dict[str, Any]) -> None:
        """Tell how a request ended, if there is still somebody to tell."""
        with contextlib.suppress(ClientGone):
            self._send(frame)

    def _relay(self, frame_id: str, message: dict[str, Any]) -> None:
        at = _event_id(message) if message["type"] == "resume" else None
        reading = followed(at) if at else _submit(message)
        self._readings[frame_id] = reading
        request_log.name_request(reading.job.id)
        relay = Relay(services().relay, reading, g.facts)
        error: BaseException | None = None
        try:
            if frame_id in self._cancelled:
                services().dispatcher.cancel(reading.job.id, reading.job.owner)
                raise ClientGone
            if not self._ws.connected:
                raise ClientGone
            self._write(frame_id, relay, Wording(reading.job), at)
        except BaseException as exc:
            error = exc
            if isinstance(exc, Exception) and frame_id in self._cancelled:
                # Whatever was faster: the closed stream, or the end that the replica writes.
                error = RequestCancelled(_CANCELLED)
                raise ClientGone from exc
            raise
        finally:
            relay.close(error)

    def _write(self, frame_id: str, relay: Relay, wording: Wording, at: EventId | None) -> None:
        pieces = wording.begin(relay.stream, at)
        job_id = wording.at.job_id
        start = str(at or EventId(job_id))
        self._send(
            {"type": "accepted", "id": frame_id, "request_id": job_id, "event_id": start}
        )  # fmt: skip
        self._send_pieces(frame_id, pieces)
        told: Progress | None = None
        told_position: int | None = None
        for events in relay.events([]):
            if relay.load is not None and relay.load != told:
                told = relay.load
                self._send(
                    {"type": "loading", "id": frame_id, "model": told.model,
                     "stage": told.stage, "fraction": told.fraction}
                )  # fmt: skip
            position = relay.queue_position
            if position is not None and position != told_position:
                told_position = position
                self._send({"type": "queued", "id": frame_id, "position": position})
            if events:
                self._send_pieces(frame_id, wording.of(events))
                relay.delivered()

    def _send_pieces(self, frame_id: str, pieces: list[Piece]) -> None:
        for piece in pieces:
            event_id = str(piece.event_id)
            if piece.finished is not None:
                timings = timings_ms(piece.finished.timings)
                self._send(
                    {"type": "done", "id": frame_id, "event_id": event_id, "timings": timings}
                )
            else:
                self._send(
                    {"type": "chunk", "id": frame_id, "event_id": event_id, "data": piece.chunk}
                )


def _new_facts(kind: str) -> RequestFacts:
    return request_log.new_facts(f"WS {WEBSOCKET}", is_counted=kind == "request")


def _decode(frame: str | bytes) -> dict[str, Any]:
    try:
        message = msgspec.json.decode(frame)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise InvalidRequest(f"The frame is not valid JSON: {exc}") from exc
    if not isinstance(message, dict):
        raise InvalidRequest("A frame must be a JSON object.")
    return message


def _frame_id(message: dict[str, Any]) -> str:
    frame_id = message.get("id")
    if not isinstance(frame_id, str) or not 1 <= len(frame_id) <= 128:
        raise InvalidRequest("id must be a string of 1 to 128 characters.", param="id")
    return frame_id


def _event_id(message: dict[str, Any]) -> EventId:
    return parse_event_id(_text(message, "last_event_id") or "")


def _submit(message: dict[str, Any]) -> Reading:
    """Queue a request, or read the job of its first sending."""
    key = _text(message, "idempotency_key")
    if key is None:
        return services().dispatcher.submit(_job(message), g.principal.limits)
    asked = msgspec.json.encode([WEBSOCKET, message.get("endpoint"), message.get("body")])
    same = once(key, digest(asked))
    return services().dispatcher.submit(_job(message), g.principal.limits, same)


def _text(message: dict[str, Any], name: str) -> str | None:
    value = message.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{name} must be a string.", param=name)
    return value


def _job(message: dict[str, Any]) -> Job:
    endpoint = message.get("endpoint", "chat.completions")
    body = message.get("body")
    request_id = request_id_from(_text(message, "request_id"))
    request_log.name_request(request_id)
    if endpoint == "chat.completions":
        return chat_job(convert(body, ChatRequest), request_id)
    if endpoint == "completions":
        return completion_job(convert(body, CompletionRequest), request_id)
    raise InvalidRequest("endpoint must be chat.completions or completions.", param="endpoint")
