"""gunicorn's configuration of the web tier, from the settings, and the hooks of its master.

The master reads code and settings once, when it starts.
"""

import logging
import os
import resource
import signal
import uuid
from collections.abc import Callable
from functools import partial
from multiprocessing.sharedctypes import RawValue
from typing import Any

from app.metrics import MASTER_ID_VARIABLE
from shared import logs
from shared.settings.load import load as load_settings

_settings = load_settings()
_log = logging.getLogger(__name__)
_OTHER_FILES = 256
"""Descriptors of a web process besides those of its clients."""

_host = f"[{_settings.host}]" if ":" in _settings.host else _settings.host
bind = f"{_host}:{_settings.port}"
worker_class = "app.server.reloading_worker.ReloadingWorker"
workers = _settings.web_workers
worker_connections = _settings.web_connections
keepalive = 75
timeout = 60
control_socket_disable = True
# No header of a client may change the paths or the scheme that the application sees.
forwarder_headers = ""
secure_scheme_headers: dict[str, str] = {}
# Nobody is trusted with them, so whose they are does not matter: gunicorn would parse the address
# of each request's client.
forwarded_allow_ips = "*"
proc_name = "llmis-web"
limit_request_line = 8190

_is_stopping = RawValue("b", 0)
_has_served = RawValue("b", 0)
"""Both are explained in `app.server.reloading_worker`."""


def on_starting(server: Any) -> None:
    logs.configure("web", _settings.log_level, with_prompts=_settings.log_prompts)
    for name in ("gunicorn.error", "gunicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.propagate = True
    _allow_open_files()
    server.stop = partial(_stop, server, server.stop)
    server.reload = partial(_reload, server)
    server.manage_workers = partial(_manage_workers, server)


def _allow_open_files() -> None:
    """A WebSocket takes two descriptors; most systems allow 1,024 by default."""
    wanted = 2 * _settings.web_connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        _log.warning(
            "%d open files are allowed, and web_connections = %d may need %d: raise the limit",
            hard,
            _settings.web_connections,
            wanted,
        )
        wanted = hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def when_ready(server: Any) -> None:
    """Name the web processes' common counters, which begin at 0."""
    os.environ[MASTER_ID_VARIABLE] = uuid.uuid4().hex


def _stop(server: Any, stop: Callable[[bool], None], graceful: bool = True) -> None:
    _is_stopping.value = 1
    server.cfg.set("graceful_timeout", int(_settings.drain_grace_s) + 2)
    stop(graceful)


def _reload(server: Any) -> None:
    for _ in range(server.num_workers):
        server.spawn_worker()


def _manage_workers(server: Any) -> None:
    """Keep `num_workers` running. Stop the oldest of more, but only once the others serve: new
    workers that cannot start must not end old ones."""
    ours = [worker for worker in server.WORKERS.values() if not worker.is_leaving]
    for _ in range(server.num_workers - len(ours)):
        server.spawn_worker()
    up = sorted((worker for worker in ours if worker.is_up.value), key=lambda worker: worker.age)
    for worker in up[: max(0, len(up) - server.num_workers)]:
        worker.is_leaving = True
        server.kill_worker(worker.pid, signal.SIGTERM)


def pre_fork(server: Any, worker: Any) -> None:
    worker.is_up = RawValue("b", 0)
    worker.is_stopping, worker.has_served = _is_stopping, _has_served


def worker_exit(server: Any, worker: Any) -> None:
    """Add what was counted since the last beat, and withdraw the gauges."""
    if worker.booted:  # never so in the master, which calls this for a worker that it has lost
        import redis

        from app.metrics import buffered

        try:
            buffered.end(worker.wsgi.extensions["llmis"].client)
        except redis.RedisError as exc:
            _log.warning("the counts of the last half second are lost: %s", exc)
