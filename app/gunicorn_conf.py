"""gunicorn's configuration of the web tier, from the settings."""

import logging
from typing import Any

import gevent
from prometheus_client import multiprocess

from shared import logs
from shared import settings as settings_module
from shared.errors import Unavailable

_settings = settings_module.load()

bind = f"{_settings.host}:{_settings.port}"
worker_class = "app.web_worker.WebWorker"
workers = _settings.web_workers
worker_connections = _settings.web_connections
keepalive = 75
# Streams are ended by `_end_streams` before; what is left then is beyond help.
graceful_timeout = int(_settings.drain_grace_s) + 2
timeout = 60
control_socket_disable = True
# No header of a client may change the paths or the scheme that the application sees.
forwarder_headers = ""
proc_name = "llmis-web"
limit_request_line = 8190

_CLOSE_S = 0.5


def on_starting(server: Any) -> None:
    logs.configure("web", _settings.log_level)
    for name in ("gunicorn.error", "gunicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.propagate = True


def post_worker_init(worker: Any) -> None:
    """gunicorn kills greenlets without running their `finally`: end streams before it does."""
    gevent.spawn(_end_streams, worker)
    if worker.age == 1:
        # The first one of this service: one that replaces another does not load what an
        # operator has unloaded since.
        gevent.spawn(worker.wsgi.extensions["llmis"].loader.preload)


def _end_streams(worker: Any) -> None:
    services = worker.wsgi.extensions["llmis"]
    while worker.alive:
        gevent.sleep(0.2)
    services.is_stopping = True
    waited_s = 0.0
    while services.hub.num_streams and waited_s < _settings.drain_grace_s:
        gevent.sleep(0.1)
        waited_s += 0.1
    # Sockets first: their clients come back to another process, and there is nothing to tell.
    closers = [gevent.spawn(close) for close in list(services.close_sockets)]
    # One may have to wait for a client that does not read.
    gevent.joinall(closers, timeout=_CLOSE_S)
    services.hub.close_streams(Unavailable("The service is shutting down."))


def child_exit(server: Any, worker: Any) -> None:
    multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]
