"""One service that tests break one after the other; each of them finds it whole.

A start costs seconds of processor time, a repair a fraction of one. What cannot be repaired is
stopped, and the next test gets a new service.
"""

import http.client
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from shared.registry.records import read
from tests.conftest import Service, start_service, wait_for
from tests.support.admin_client import admin, lazy_models, load_again, readiness, unload

_MODELS = ("counter", "counter-small")
_EXTRA = (
    "min_residence_s = 0\n"
    + lazy_models("lazy", context_length=512)
    + lazy_models("idle", more="ttl_s = 1")
    + lazy_models("styled", more="chat_template = 'styled.jinja'")
)
"""Its models are loaded by their first request."""
_TEMPLATE = "{{ messages[0].content }}"
_SUPERVISED = ("valkey-server", "worker.agent", "gunicorn")
_MAX_RESTARTS = 3
"""Of one child: its supervisor waits twice as long before each further one."""
_WAIT_S = 60.0
_BROKEN = (OSError, http.client.HTTPException, redis.RedisError, pytest.fail.Exception)


class Breakable:
    """Lends a service to one test at a time."""

    def __init__(self, make_folder: Callable[[], Path]) -> None:
        self._make_folder = make_folder
        self._service: Service | None = None
        self._replicas: dict[str, list[int]] = {}
        self._children: dict[str, int] = {}
        self._restarts: Counter[str] = Counter()

    def lend(self) -> Service:
        if self._service is None:
            folder = self._make_folder()
            (folder / "styled.jinja").write_text(_TEMPLATE)
            self._service = start_service(folder, extra=_EXTRA)
            self._restarts.clear()
            self._children = _children(self._service)
        service = self._service
        wait_for(
            lambda: _ready_models(service) == sorted(_MODELS), "both models are ready", _WAIT_S
        )
        self._replicas = _replicas(service)
        service.begin_logs()
        return service

    def take_back(self) -> None:
        """Repair the service, or stop it if it cannot be repaired."""
        try:
            is_whole = self._service is not None and self._repair(self._service)
        except _BROKEN as exc:
            print(f"the service cannot be repaired: {exc}")
            is_whole = False
        if not is_whole:
            self.discard()

    def discard(self) -> None:
        if self._service is not None:
            self._service.stop()
            self._service = None

    def _repair(self, service: Service) -> bool:
        if service.process.poll() is not None:
            return False
        wait_for(lambda: _set_no_limit(service), "Redis answers", _WAIT_S)
        wait_for(lambda: _answers(service), "it answers", _WAIT_S)
        (service.data_dir / "styled.jinja").write_text(_TEMPLATE)
        wait_for(lambda: len(service.pids("worker.agent")) == 1, "it has its agent", _WAIT_S)
        wait_for(lambda: admin(service, "/nodes")[1]["data"], "the agent is registered", _WAIT_S)
        for view in admin(service, "/models")[1]["data"]:
            if view["id"] not in _MODELS and (view["replicas"] or view["state"] != "unloaded"):
                unload(service, view["id"], mode="now")
        for name in _MODELS:
            # One that has died counts its failures; it must not be given up in another test.
            if _replicas(service).get(name) != self._replicas[name]:
                unload(service, name, mode="now")
                load_again(service, name)
        wait_for(lambda: _is_idle(service), "nothing runs or waits", _WAIT_S)
        children = _children(service)
        self._restarts.update(n for n, pid in children.items() if pid != self._children[n])
        self._children = children
        return max(self._restarts.values(), default=0) < _MAX_RESTARTS


def _set_no_limit(service: Service) -> bool:
    """Take the limit of Redis' memory away. Returns whether Redis was there."""
    try:
        return bool(service.redis.config_set("maxmemory", "0"))
    except redis.RedisError:
        return False


def _answers(service: Service) -> bool:
    try:
        return readiness(service)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def _children(service: Service) -> dict[str, int]:
    return {name: service.pids(name)[0] for name in _SUPERVISED}


def _replicas(service: Service) -> dict[str, list[int]]:
    """Model → the pids of its replicas."""
    return {name: service.pids("worker.replica", f" {name}@") for name in _MODELS}


def _ready_models(service: Service) -> list[str]:
    views = admin(service, "/models")[1]["data"]
    return sorted(view["id"] for view in views if view["state"] == "ready")


def _is_idle(service: Service) -> bool:
    records = read(service.redis)
    return (
        sorted(record.model for record in records) == sorted(_MODELS)
        and not any(record.busy_slots or record.waiting_sequences for record in records)
        and not any(service.num_queued(name) for name in _MODELS)
        and len(service.pids("worker.replica")) == len(_MODELS)
    )
