"""gunicorn's gevent worker: client sockets of our own, room for new clients, errors as JSON."""

import logging
import os
import signal
from functools import partial
from typing import Any

import gevent
import msgspec
from gevent import GreenletExit
from gunicorn.http.errors import (
    InvalidResponseHeader,
    InvalidResponseHeaderName,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
    UnsupportedTransferCoding,
)
from gunicorn.workers.ggevent import GeventWorker

from app.client_socket import ClientSocket
from app.fresh_worker import FreshWorker
from app.heritage import heritage
from shared.errors import InternalError, InvalidRequest, LlmisError

_log = logging.getLogger(__name__)
_STATUS = {
    LimitRequestLine: "414 URI Too Long",
    LimitRequestHeaders: "431 Request Header Fields Too Large",
    UnsupportedTransferCoding: "501 Not Implemented",
}
_OUR_FAULTS = (InvalidResponseHeader, InvalidResponseHeaderName)
_INVALID = "400 Bad Request"


class WebWorker(FreshWorker):
    _num_open: int
    _waiting: dict[ClientSocket, None]

    def init_process(self) -> None:
        """The master has made this object, by its own code: `__init__` was another's."""
        self._num_open = 0
        self._waiting = {}
        heritage.is_first = not self.has_served.value
        heritage.denylist_name, heritage.denylist = self.denylist_name, self.denylist
        GeventWorker.init_process(self)

    def run(self) -> None:
        from app.drain import drain  # with all that is to be imported after gevent's patches

        services = self.wsgi.extensions["llmis"]
        # Of its own copy of the configuration.
        self.cfg.set("graceful_timeout", int(services.settings.web_drain_s) + 2)
        gevent.spawn(drain, self, services)
        services.reload_web = partial(os.kill, self.ppid, signal.SIGHUP)
        if self.age == 1:
            # The first one of this service: one that replaces another does not load what an
            # operator has unloaded since.
            gevent.spawn(services.loader.preload)
        self.is_up.value = self.has_served.value = 1
        super().run()

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        settings = self.wsgi.extensions["llmis"].settings
        self._num_open += 1
        if self._num_open >= self.worker_connections:
            self._make_room()
        limits_s = settings.write_timeout_s, settings.read_timeout_s
        try:
            super().handle(listener, ClientSocket(client, *limits_s, self._waiting), addr)
        finally:
            self._num_open -= 1

    def _make_room(self) -> None:
        """No more clients would be accepted: the one goes that is silent for longest, with its
        request not sent whole, or with none."""
        silent = next(iter(self._waiting), None)
        if silent is not None:
            silent.cut_off()

    def handle_request(self, listener_name: Any, req: Any, sock: ClientSocket, addr: Any) -> Any:
        sock.await_body()
        try:
            return super().handle_request(listener_name, req, sock, addr)
        finally:
            sock.await_head()

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer what is no HTTP, or what failed before the application had it."""
        if isinstance(exc, GreenletExit):
            return  # the process ends
        if isinstance(exc, ParseException) and not isinstance(exc, _OUR_FAULTS):
            status = _STATUS.get(type(exc), _INVALID)
            error: LlmisError = InvalidRequest(f"The request could not be read: {exc}")
            # The exception may quote a header: its class is all that is told.
            fields = {"status": int(status[:3]), "reason": type(exc).__name__}
            _log.info("request could not be read", extra=fields)
        else:
            _log.error("unexpected error", exc_info=exc)
            status = "500 Internal Server Error"
            error = InternalError("The server had an error while processing the request.")
        body = msgspec.json.encode(error.body())
        head = (
            f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: application/json\r\n"
            "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        try:
            client.sendall(head.encode() + body)
        except OSError:
            _log.debug("the client of a broken request is gone")
