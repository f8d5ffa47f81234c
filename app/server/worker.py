"""gunicorn's gevent worker, with time limits for clients, room for new ones, and errors as JSON."""

import gc
import logging
import os
import signal
from functools import partial
from typing import Any

import gevent
import msgspec
from gevent import GreenletExit
from gunicorn.http import errors as http_errors
from gunicorn.workers.base import Worker
from gunicorn.workers.ggevent import GeventWorker

from app.server.client_socket import ClientSocket
from app.server.reloading_worker import ReloadingWorker
from shared.denylist.file import check_denylist
from shared.errors import InternalError, InvalidRequest, LlmisError

_log = logging.getLogger(__name__)
_STATUS = {
    http_errors.LimitRequestLine: "414 URI Too Long",
    http_errors.LimitRequestHeaders: "431 Request Header Fields Too Large",
    http_errors.UnsupportedTransferCoding: "501 Not Implemented",
}
_OUR_FAULTS = (http_errors.InvalidResponseHeader, http_errors.InvalidResponseHeaderName)
_INVALID = "400 Bad Request"


def _has_body_begun(req: Any) -> bool:
    payload = req.unreader.take_buffered()
    req.unreader.unread(payload)
    return bool(payload)


class WebWorker(ReloadingWorker):
    _num_open: int
    _waiting: dict[ClientSocket, None]

    def init_process(self) -> None:
        """The master has made this object with its own code: this class has no `__init__`."""
        self._num_open = 0
        self._waiting = {}
        GeventWorker.init_process(self)

    def load_wsgi(self) -> None:
        """The first worker of a service refuses to start with an invalid denylist or file of the
        issuer's keys. Later ones start: with the rules that were valid last, and no issuer."""
        # Until `run`: to look for garbage among what stays is a tenth of the start.
        gc.disable()
        super().load_wsgi()
        if not self.has_served.value:
            services = self.wsgi.extensions["llmis"]
            check_denylist(services.settings)
            services.authenticator.check_issuer_file()

    def run(self) -> None:
        from app.server.drain import drain  # imports modules that need gevent's patches

        services = self.wsgi.extensions["llmis"]
        # In this worker's own copy of the configuration.
        self.cfg.set("graceful_timeout", int(services.settings.web_drain_s) + 2)
        gevent.spawn(drain, self, services)
        services.reload_web = partial(os.kill, self.ppid, signal.SIGHUP)
        if self.age == 1:
            # The first worker of this service. A later one would load models that an operator has
            # unloaded since.
            gevent.spawn(services.loader.preload)
        # What has been made so far stays: the garbage collector need not visit it again and again.
        # Without a last collection, which takes 40 ms and frees half a megabyte.
        gc.freeze()
        gc.enable()
        self.is_up.value = self.has_served.value = 1
        super().run()

    def notify(self) -> None:
        """Without its master it drains, as after SIGTERM: gunicorn's own would exit at once."""
        Worker.notify(self)
        if os.getppid() != self.ppid:
            self.alive = False

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        settings = self.wsgi.extensions["llmis"].settings
        self._num_open += 1
        if self._num_open >= self.worker_connections:
            self._make_room()
        try:
            sock = ClientSocket(
                client, settings.write_timeout_s, settings.read_timeout_s, self._waiting
            )
            super().handle(listener, sock, addr)
        finally:
            self._num_open -= 1

    def _make_room(self) -> None:
        """gunicorn accepts no more clients at the limit: cut off the one that is silent for
        longest, with no request or a part of one."""
        silent = next(iter(self._waiting), None)
        if silent is not None:
            silent.cut_off()

    def handle_request(self, listener_name: Any, req: Any, sock: ClientSocket, addr: Any) -> Any:
        # gunicorn itself would ask for any body, before it is known whether the answer needs it.
        is_expected, req._expected_100_continue = req._expected_100_continue, False
        sock.await_body(awaits_continue=is_expected and not _has_body_begun(req))
        closes = req.should_close
        # A client that was not asked for its body may send it or not: no request can follow.
        req.should_close = lambda: sock.awaits_continue or closes()
        try:
            return super().handle_request(listener_name, req, sock, addr)
        finally:
            sock.await_head()

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer a request that is not valid HTTP, or that failed outside the application."""
        if isinstance(exc, GreenletExit):
            return  # the process is stopping
        if isinstance(exc, http_errors.ParseException) and not isinstance(exc, _OUR_FAULTS):
            status = _STATUS.get(type(exc), _INVALID)
            error: LlmisError = InvalidRequest(f"The request could not be read: {exc}")
            # The message may quote a header, so only the class is logged.
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
            _log.debug("the client of an invalid request is gone")
