"""gunicorn's configuration of the web tier, from the settings."""

import logging
import os
import resource
import signal
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.sharedctypes import RawValue
from typing import Any

import gevent

from shared import logs
from shared import settings as settings_module
from shared.errors import GoingAway

_settings = settings_module.load()
# Before prometheus_client is imported, which looks for it then.
os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(_settings.metrics_path)
_log = logging.getLogger(__name__)
_POLL_S = 0.1
_OTHER_FILES = 256
"""Descriptors of a web process besides its clients'."""
_GOING_AWAY = (
    "The server stops before the answer is complete. Send the request again; with the same "
    "Idempotency-Key it goes on where it was."
)

_host = f"[{_settings.host}]" if ":" in _settings.host else _settings.host
bind = f"{_host}:{_settings.port}"
worker_class = "app.web_worker.WebWorker"
workers = _settings.web_workers
worker_connections = _settings.web_connections
keepalive = 75
# Of the master at a reload, where it looks after nothing else meanwhile. What it waits when all is
# to stop, and what the workers wait, is set below.
graceful_timeout = 1
timeout = 60
control_socket_disable = True
# No header of a client may change the paths or the scheme that the application sees.
forwarder_headers = ""
proc_name = "llmis-web"
limit_request_line = 8190

_is_stopping = RawValue("b", 0)
"""Shared by the master and its workers: all is to stop. Else a worker that ends is replaced."""


def on_starting(server: Any) -> None:
    logs.configure("web", _settings.log_level, with_prompts=_settings.log_prompts)
    for name in ("gunicorn.error", "gunicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.propagate = True
    _allow_open_files()
    server.stop = partial(_stop, server, server.stop)


def _allow_open_files() -> None:
    """A WebSocket has two descriptors, and the first limit of most systems is 1,024."""
    wanted = 2 * _settings.web_connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        _log.warning(
            "%d open files are allowed, and web_connections = %d may need %d: raise the limit",
            *(hard, _settings.web_connections, wanted),
        )
        wanted = hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def when_ready(server: Any) -> None:
    """Of this folder's masters only one comes so far: it listens, and has no workers yet."""
    _settings.metrics_path.mkdir(parents=True, exist_ok=True)
    for file in _settings.metrics_path.glob("*.db"):
        file.unlink()


def _stop(server: Any, stop: Callable[[bool], None], graceful: bool = True) -> None:
    _is_stopping.value = 1
    server.cfg.set("graceful_timeout", int(_settings.drain_grace_s) + 2)
    stop(graceful)


def post_worker_init(worker: Any) -> None:
    # Of its own copy of the configuration.
    worker.cfg.set("graceful_timeout", int(_settings.web_drain_s) + 2)
    gevent.spawn(_drain, worker)
    worker.wsgi.extensions["llmis"].reload_web = partial(os.kill, worker.ppid, signal.SIGHUP)
    if worker.age == 1:
        # The first one of this service: one that replaces another does not load what an
        # operator has unloaded since.
        gevent.spawn(worker.wsgi.extensions["llmis"].loader.preload)


def _drain(worker: Any) -> None:
    """Let requests end, then end the others: gunicorn would kill them without their `finally`."""
    services = worker.wsgi.extensions["llmis"]
    while worker.alive:
        gevent.sleep(_POLL_S)
    began_at = time.monotonic()
    told: set[Callable[[], None]] = set()
    while True:
        # One that is replaced serves its connections on: who has one does not know of it.
        is_stop = bool(_is_stopping.value) or os.getppid() != worker.ppid
        services.is_stopping = is_stop
        limit_s = _settings.drain_grace_s if is_stop else _settings.web_drain_s
        is_over = time.monotonic() - began_at >= limit_s
        if is_over:
            services.hub.close_streams(GoingAway(_GOING_AWAY))
        if is_over or not services.hub.num_streams:
            for close in services.close_sockets - told:
                gevent.spawn(close)  # it may have to wait for a client that does not read
            told |= services.close_sockets
            if is_over or is_stop:
                # Nothing but idle connections is left.
                worker.cfg.set("graceful_timeout", 0)
        gevent.sleep(_POLL_S)


def worker_exit(server: Any, worker: Any) -> None:
    from app import meters

    meters.flush()


def child_exit(server: Any, worker: Any) -> None:
    from app import shared_counters

    shared_counters.bury(_settings.metrics_path, worker.pid)
