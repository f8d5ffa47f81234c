"""gunicorn's configuration of the web tier, from the settings, and what its master does.

The master reads code and settings once, when it starts.
"""

import logging
import os
import resource
import signal
from collections.abc import Callable
from functools import partial
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any

from app import shared_counters
from shared import logs
from shared import settings as settings_module
from shared.denylist_file import denylist_of

_settings = settings_module.load()
_log = logging.getLogger(__name__)
_OTHER_FILES = 256
"""Descriptors of a web process besides its clients'."""

_host = f"[{_settings.host}]" if ":" in _settings.host else _settings.host
bind = f"{_host}:{_settings.port}"
worker_class = "app.fresh_worker.FreshWorker"
workers = _settings.web_workers
worker_connections = _settings.web_connections
keepalive = 75
timeout = 60
control_socket_disable = True
# No header of a client may change the paths or the scheme that the application sees.
forwarder_headers = ""
secure_scheme_headers: dict[str, str] = {}
proc_name = "llmis-web"
limit_request_line = 8190

_is_stopping = RawValue("b", 0)
_has_served = RawValue("b", 0)
"""Both are explained in `app.fresh_worker`."""
_denylist = denylist_of(_settings)
"""Read here for web processes that start while the file is not valid."""
_dead: set[int] = set()
"""Workers whose counters are still to be added to those of all the dead."""


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
    """Before prometheus_client is imported, which looks for the variable then."""
    folder = shared_counters.own_folder(_settings.metrics_path)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)


def _stop(server: Any, stop: Callable[[bool], None], graceful: bool = True) -> None:
    _is_stopping.value = 1
    server.cfg.set("graceful_timeout", int(_settings.drain_grace_s) + 2)
    stop(graceful)


def _reload(server: Any) -> None:
    for _ in range(server.num_workers):
        server.spawn_worker()


def _manage_workers(server: Any) -> None:
    """Have `num_workers`. Of more the oldest are told to end, but not before others are up: new
    ones that cannot start end nothing."""
    ours = [worker for worker in server.WORKERS.values() if not worker.is_leaving]
    for _ in range(server.num_workers - len(ours)):
        server.spawn_worker()
    up = sorted((worker for worker in ours if worker.is_up.value), key=lambda worker: worker.age)
    for worker in up[: max(0, len(up) - server.num_workers)]:
        worker.is_leaving = True
        server.kill_worker(worker.pid, signal.SIGTERM)
    _bury()
    if _denylist is not None:
        _denylist.look()


def pre_fork(server: Any, worker: Any) -> None:
    worker.is_up = RawValue("b", 0)
    worker.is_stopping, worker.has_served = _is_stopping, _has_served
    if _denylist is not None:
        worker.denylist_name = str(_settings.denylist_path)
        worker.denylist = _denylist.payload


def worker_exit(server: Any, worker: Any) -> None:
    if worker.booted:  # never so in the master, which calls this for a worker that it has lost
        from app import meters

        meters.flush()


def child_exit(server: Any, worker: Any) -> None:
    _dead.add(worker.pid)
    _bury()


def _bury() -> None:
    """Never raises: it would be the end of all workers."""
    for pid in tuple(_dead):
        try:
            shared_counters.bury(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]), pid)
        except BlockingIOError:
            continue  # it is tried again with the next second
        except Exception:
            _log.exception("the counters of web process %d were not put to those of others", pid)
        _dead.discard(pid)
