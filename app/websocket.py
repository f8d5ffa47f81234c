"""`WS /v1/ws`: the same requests as JSON frames, several over one connection.

Frames are described in docs/protocol.md. One greenlet reads the socket; each request has a
greenlet of its own that writes its chunks.
"""

import contextlib
import logging
import threading
from typing import Any
from urllib.parse import urlsplit

import gevent
import msgspec
from flask import Flask, current_app, g, request
from flask_sock import Sock
from simple_websocket import ConnectionClosed, Server
from wsproto.utilities import LocalProtocolError

from app import answers
from app.dispatch import request_id_from
from app.errors import from_exception
from app.job_stream import ClientGone, JobStream
from app.jobs import chat_job, completion_job
from app.parsing import convert
from app.relay import Relay
from app.schemas import ChatRequest, CompletionRequest, GenerationRequest
from app.services import services
from shared.errors import GoingAway, InvalidRequest, LlmisError
from shared.lifecycle import Progress
from shared.messages import Delta, Echo, Finished, Job

_log = logging.getLogger(__name__)
_PATH = "/v1/ws"
_MAX_REQUESTS = 32
"""Open requests on one connection."""


def register(app: Flask) -> None:
    settings = app.extensions["llmis"].settings
    app.config["SOCK_SERVER_OPTIONS"] = {
        "ping_interval": 25,
        "max_message_size": settings.max_body_bytes,
    }
    app.before_request(_check_handshake)
    Sock(app).route(_PATH)(_serve)


def _check_handshake() -> None:
    """Refuse what the library would stumble over. Raises InvalidRequest."""
    if request.path != _PATH:
        return
    # Compressed frames depend on their order, and the library compresses before it locks.
    request.environ.pop("HTTP_SEC_WEBSOCKET_EXTENSIONS", None)
    if request.headers.get("Sec-WebSocket-Version") != "13":
        raise InvalidRequest("This is a WebSocket endpoint: Sec-WebSocket-Version must be 13.")
    if not request.headers.get("Sec-WebSocket-Key"):
        raise InvalidRequest("The header Sec-WebSocket-Key is missing.")


def _is_same_origin(origin: str) -> bool:
    try:
        return urlsplit(origin).netloc == request.host
    except ValueError:
        return False


class _WholeSendSocket:
    """A socket whose `send` sends everything.

    simple-websocket calls `send` and ignores how much went out: a large frame to a slow reader
    would break the stream.
    """

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._lock = threading.Lock()

    def send(self, payload: bytes) -> int:
        with self._lock:
            self._sock.sendall(payload)
        return len(payload)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def _serve(ws: Server) -> None:
    origin = request.headers.get("Origin")
    if origin is not None and not _is_same_origin(origin):
        ws.close(1008, "cross-origin connections are not allowed")
        return
    ws.sock = _WholeSendSocket(ws.sock)
    connection = _Connection(ws, current_app._get_current_object(), g.owner)  # type: ignore[attr-defined]
    services().close_sockets.add(connection.go_away)
    try:
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
    def __init__(self, ws: Server, app: Flask, owner: str) -> None:
        self._ws = ws
        self._app = app
        self._owner = owner
        self._streams: dict[str, JobStream | None] = {}
        """Open requests by the client's id; None until the job is enqueued."""
        self._cancelled: set[str] = set()

    def take(self, frame: str | bytes) -> None:
        """Act on one frame. A bad one is answered with an error frame."""
        frame_id = None
        try:
            message = _decode(frame)
            frame_id = message.get("id")
            kind = message.get("type")
            if kind == "request":
                self._request(message)
            elif kind == "cancel":
                self._cancel(_frame_id(message))
            elif kind == "ping":
                self._send({"type": "pong", "id": frame_id})
            else:
                raise InvalidRequest("type must be request, cancel or ping.", param="type")
        except LlmisError as error:
            self._send({"type": "error", "id": frame_id, **error.body()})

    def go_away(self) -> None:
        """Close the connection from this side: the process ends."""
        self.close_with(1001, "the web process ends")

    def close_with(self, code: int, reason: str) -> None:
        with contextlib.suppress(ConnectionClosed, LocalProtocolError, OSError):
            self._ws.close(code, reason)

    def close(self) -> None:
        """The client is gone: cancel what it waited for."""
        for stream in self._streams.values():
            if stream is not None:
                stream.close()

    def _send(self, frame: dict[str, Any]) -> None:
        """Raises ClientGone, whatever way the connection ended."""
        try:
            self._ws.send(msgspec.json.encode(frame).decode())
        except (ConnectionClosed, LocalProtocolError, OSError) as exc:
            raise ClientGone from exc

    def _request(self, message: dict[str, Any]) -> None:
        frame_id = _frame_id(message)
        if frame_id in self._streams:
            raise InvalidRequest(f"There is an open request {frame_id!r} already.", param="id")
        if len(self._streams) >= _MAX_REQUESTS:
            raise InvalidRequest(f"At most {_MAX_REQUESTS} requests may be open on a connection.")
        self._streams[frame_id] = None
        gevent.spawn(self._answer, frame_id, message)

    def _cancel(self, frame_id: str) -> None:
        if frame_id not in self._streams:
            raise InvalidRequest(f"There is no open request {frame_id!r}.", param="id")
        stream = self._streams[frame_id]
        self._cancelled.add(frame_id)
        if stream is not None:
            stream.close()

    def _answer(self, frame_id: str, message: dict[str, Any]) -> None:
        with self._app.app_context():
            g.owner = self._owner
            try:
                self._relay(frame_id, message)
            except ClientGone:
                self._report(frame_id, {"type": "cancelled", "id": frame_id})
            except GoingAway:
                pass  # the connection is closed next, and the client may come back
            except Exception as exc:
                body = from_exception(exc).body()
                self._report(frame_id, {"type": "error", "id": frame_id, **body})
            finally:
                self._streams.pop(frame_id, None)
                self._cancelled.discard(frame_id)

    def _report(self, frame_id: str, frame: dict[str, Any]) -> None:
        """Tell how a request ended, if there is still somebody to tell."""
        with contextlib.suppress(ClientGone):
            self._send(frame)

    def _relay(self, frame_id: str, message: dict[str, Any]) -> None:
        job, body = _job(message)
        reading = services().dispatcher.submit(job)
        job = reading.job
        self._streams[frame_id] = reading.stream
        relay = Relay(services().relay, reading)
        error: BaseException | None = None
        try:
            if frame_id in self._cancelled or not self._ws.connected:
                raise ClientGone
            shape = answers.shape_for(job, body)
            self._send({"type": "accepted", "id": frame_id, "request_id": job.id})
            for chunk in shape.opening():
                self._send({"type": "chunk", "id": frame_id, "data": chunk})
            told: Progress | None = None
            for events in relay.events([]):
                if relay.load is not None and relay.load != told:
                    told = relay.load
                    self._send(
                        {"type": "loading", "id": frame_id, "model": told.model,
                         "stage": told.stage, "fraction": told.fraction}
                    )  # fmt: skip
                for event in events:
                    if isinstance(event, Delta | Echo):
                        for chunk in shape.chunks(event):
                            self._send({"type": "chunk", "id": frame_id, "data": chunk})
                    elif isinstance(event, Finished):
                        for chunk in shape.closing(event):
                            self._send({"type": "chunk", "id": frame_id, "data": chunk})
                        timings = answers.timings_ms(event.timings)
                        self._send({"type": "done", "id": frame_id, "timings": timings})
        except BaseException as exc:
            error = exc
            raise
        finally:
            relay.close(error)


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


def _job(message: dict[str, Any]) -> tuple[Job, GenerationRequest]:
    endpoint = message.get("endpoint", "chat.completions")
    body = message.get("body")
    wanted_id = message.get("request_id")
    if wanted_id is not None and not isinstance(wanted_id, str):
        raise InvalidRequest("request_id must be a string.", param="request_id")
    request_id = request_id_from(wanted_id)
    if endpoint == "chat.completions":
        chat = convert(body, ChatRequest)
        return chat_job(chat, request_id), chat
    if endpoint == "completions":
        completion = convert(body, CompletionRequest)
        return completion_job(completion, request_id), completion
    raise InvalidRequest("endpoint must be chat.completions or completions.", param="endpoint")
