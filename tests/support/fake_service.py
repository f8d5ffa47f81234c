"""A small HTTP server that answers as a test tells it to, for the command `llmis`."""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

_KEEPALIVE_S = 0.01


@dataclass
class Reply:
    """What a path is answered with."""

    body: Any = None
    """JSON; bytes are sent as they are."""
    status: int = 200
    events: list[Any] | None = None
    """Sent as server-sent events; a str is data as it is."""
    is_endless: bool = False
    """After the events: comments, until the client has gone."""


@dataclass
class FakeService:
    url: str
    replies: dict[str, Reply]
    """`POST /path` → the answer"""
    requests: list[tuple[str, Any]] = field(default_factory=list)
    """`POST /path`, and its decoded body"""
    content_types: list[str | None] = field(default_factory=list)
    client_addresses: list[Any] = field(default_factory=list)
    client_gone: threading.Event = field(default_factory=threading.Event)

    def bodies(self, route: str) -> list[Any]:
        return [body for path, body in self.requests if path == route]


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what some tests are about: no traceback into its output."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Answering(BaseHTTPRequestHandler):
    service: ClassVar[FakeService]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(f"GET {self.path}", None)

    def do_POST(self) -> None:
        payload = self.rfile.read(int(self.headers["Content-Length"]))
        self.service.content_types.append(self.headers["Content-Type"])
        self._answer(f"POST {self.path}", json.loads(payload))

    def _answer(self, route: str, body: Any) -> None:
        self.service.requests.append((route, body))
        self.service.client_addresses.append(self.client_address)
        error = {"error": {"message": f"Unknown request URL: {route}.", "code": "unknown_url"}}
        reply = self.service.replies.get(route, Reply(error, 404))
        if reply.events is not None and reply.status == 200:
            self._stream(reply)
            return
        payload = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def _stream(self, reply: Reply) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            self._chunk(b": a comment\n\n")
            for event in reply.events or []:
                data = event if isinstance(event, str) else json.dumps(event)
                self._chunk(f"data: {data}\n\n".encode())
            while reply.is_endless:
                self._chunk(b": waiting\n\n")
                threading.Event().wait(_KEEPALIVE_S)
            self._chunk(b"")
        except OSError:
            self.service.client_gone.set()
            self.close_connection = True

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def running(replies: dict[str, Reply]) -> Iterator[FakeService]:
    """Serve `replies` on a free port; they may be changed while it runs."""
    answering = type("_Own", (_Answering,), {})
    server = _Server(("127.0.0.1", 0), answering)
    server.daemon_threads = True
    service = FakeService(f"http://127.0.0.1:{server.server_port}", replies)
    answering.service = service
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def error(message: str, status: int = 400, code: str | None = None) -> Reply:
    """OpenAI's error body."""
    described = {"message": message, "type": "server_error", "param": None, "code": code}
    return Reply({"error": described}, status)
